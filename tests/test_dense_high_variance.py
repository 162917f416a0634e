"""Confounds from the grayordinates that vary most: by least squares and SVD of NumPy, and within a few blocks."""

import tracemalloc

import nilearn.signal
import numpy as np
import pytest

from gpumask import NiftiLabelsMasker, NiftiMapsMasker
from gpumask.confounds.high_variance import high_variance_confounds
from gpumask.images import grayordinates
from gpumask.images.grayordinates import open_dense
from gpumask.signal import clean
from tests import dense


def components(n, n_grayordinates, seed=0):
    """Series of some grayordinates of large variance, by components of distinct size, on baselines and with trends."""
    rng = np.random.default_rng(seed)
    data = rng.normal(0, 1, (n, n_grayordinates)) + rng.uniform(200, 900, n_grayordinates)
    data += rng.normal(0, 0.1, n_grayordinates) * np.arange(n)[:, None]
    large = rng.choice(n_grayordinates, n_grayordinates // 10, replace=False)
    data[:, large] += rng.normal(size=(n, 6)) * np.array([40, 25, 16, 10, 6, 3]) @ rng.normal(size=(6, len(large)))
    return data


def by_numpy(data, n_confounds=5, percentile=2.0, detrend=True):
    """Left singular vectors of the series of the largest mean squares, in float64."""
    series = np.array(data, np.float64)
    if detrend:
        design = np.stack([np.ones(len(series)), np.arange(len(series))], axis=1)
        series = series - design @ np.linalg.lstsq(design, series, rcond=None)[0]
    squares = (series**2).mean(axis=0)
    return np.linalg.svd(series[:, squares > np.percentile(squares, 100 - percentile)])[0][:, :n_confounds]


def same_up_to_sign(ours, theirs, atol):
    np.testing.assert_allclose(ours * np.sign((ours * theirs).sum(axis=0)), theirs, rtol=0, atol=atol)


@pytest.fixture
def made():
    axis = dense.models(np.random.default_rng(1)) + dense.surface(np.arange(500), "CIFTI_STRUCTURE_CEREBELLUM", 600)
    return components(80, len(axis)), axis


@pytest.mark.parametrize(
    "options", [{"percentile": 10}, {"percentile": 12.5, "detrend": False}, {"n_confounds": 2, "percentile": 20}]
)
@pytest.mark.parametrize(("dtype", "slope", "inter"), [("<f8", None, None), (">f4", None, None), (">i2", 0.25, 100.0)])
def test_equals_numpys_and_nilearns(made, tmp_path, dtype, slope, inter, options, monkeypatch):
    data, axis = made
    path = dense.save(dense.series_image(data.astype("f4"), axis), tmp_path / "run.dtseries.nii")
    stored = (data if slope is None else np.rint((data - inter) / slope)).astype(dtype)
    dense.recoded(path, dtype, stored, slope, inter)
    values = stored.astype(np.float64) * (slope or 1) + (inter or 0)
    ours = high_variance_confounds(open_dense(path), **options)
    assert ours.dtype == np.float64
    same_up_to_sign(ours, by_numpy(values, **options), 1e-9)
    same_up_to_sign(ours, nilearn.signal.high_variance_confounds(values.copy(), **options), 1e-9)
    monkeypatch.setattr(grayordinates, "_BLOCK", 500)  # six grayordinates
    assert len(open_dense(path).blocks()) > 10
    same_up_to_sign(ours, high_variance_confounds(open_dense(path), **options), 1e-12)


@pytest.mark.parametrize("detrend", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_grayordinates_that_are_not_finite_are_left_out(made, value, detrend):
    data, axis = made
    spoilt = data.copy()
    spoilt[3, :4], spoilt[:, 9] = value, value
    expected = by_numpy(np.delete(spoilt, [0, 1, 2, 3, 9], axis=1), percentile=10, detrend=detrend)
    image = open_dense(dense.series_image(spoilt, axis))
    same_up_to_sign(high_variance_confounds(image, percentile=10, detrend=detrend), expected, 1e-9)


def test_through_the_maskers(made, tmp_path):
    """They are removed along with the confounds of the caller, of labels and of maps alike."""
    data, axis = made
    rng = np.random.default_rng(2)
    run = dense.save(dense.series_image(data, axis), tmp_path / "run.dtseries.nii")
    labels, weights = rng.choice([0, 1, 2, 3], len(axis)), rng.random((2, len(axis)))
    own = by_numpy(data)
    atlas = dense.save(dense.labels_image(labels, axis), tmp_path / "atlas.dlabel.nii")
    maps = dense.save(dense.scalars_image(weights, axis), tmp_path / "maps.dscalar.nii")
    given = rng.normal(size=(len(data), 2))
    means = np.stack([data[:, labels == k].mean(axis=1) for k in (1, 2, 3)], axis=1)
    amplitudes = np.linalg.lstsq(weights.T, data.T, rcond=None)[0].T
    for masker, raw in ((NiftiLabelsMasker(atlas), means), (NiftiMapsMasker(maps), amplitudes)):
        masker.set_params(high_variance_confounds=True, memory=tmp_path / "cache", memory_level=1)
        for confounds in (None, given):
            removed = own if confounds is None else np.hstack([own, confounds])
            expected = clean(raw, confounds=removed, detrend=False, standardize=None)
            for _ in range(2):  # computed, then from the cache
                signals = masker.fit_transform(run, confounds=confounds)
                np.testing.assert_allclose(signals, expected, rtol=0, atol=1e-6 * np.abs(raw).max())


def test_never_holds_the_run(tmp_path, monkeypatch):
    axis = dense.surface(np.arange(40_000), n_vertices=40_000)
    data = np.random.default_rng(0).standard_normal((300, len(axis)), dtype=np.float32)
    path = dense.save(dense.series_image(data, axis), tmp_path / "run.dtseries.nii")
    monkeypatch.setattr(grayordinates, "_BLOCK", 2**17)
    chosen, n_bytes = 0.02 * data.size * 8, data.nbytes
    del data
    run = open_dense(path)
    tracemalloc.start()
    high_variance_confounds(run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * chosen + 30 * 2**17 * 8 < n_bytes, (peak, chosen, n_bytes)
