"""Confounds from the voxels that vary most: against nilearn's, and within a few volumes' memory."""

import tracemalloc

import nibabel as nib
import nilearn.image
import nilearn.maskers
import numpy as np
import pandas as pd
import pytest

from gpumask import MultiNiftiLabelsMasker, NiftiLabelsMasker
from gpumask.confounds.high_variance import high_variance_confounds
from gpumask.images.volumes import open_volumes

AFFINE = np.diag([2.0, 2, 3, 1])
SHAPE = (10, 11, 12)


def components(n, n_large=40, seed=0):
    """A run with some voxels of large variance, by components of distinct size, on a baseline and with trends."""
    rng = np.random.default_rng(seed)
    data = rng.normal(0, 1, (*SHAPE, n)) + rng.uniform(200, 900, (*SHAPE, 1))
    data += rng.normal(0, 0.1, (*SHAPE, 1)) * np.arange(n)
    sources = rng.normal(size=(6, n)) * np.array([40, 25, 16, 10, 6, 3])[:, None]
    large = rng.choice(data[..., 0].size, n_large, replace=False)
    data.reshape(-1, n)[large] += rng.normal(size=(n_large, 6)) @ sources
    return data


def written(data, kind, folder):
    """The path of a file of these data."""
    path = folder / "run.nii.gz"
    if kind == "scaled i2":
        img = nib.Nifti1Image(data, AFFINE)
        img.set_data_dtype("i2")  # nibabel finds slope and intercept
    else:
        img = nib.Nifti1Image(data.astype(kind), AFFINE, dtype=kind)
    nib.save(img, path)
    return path


def same_up_to_sign(ours, theirs, atol):
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours * signs, theirs, rtol=0, atol=atol)
    np.testing.assert_allclose(ours.T @ ours, np.eye(ours.shape[1]), atol=1e-10)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, rtol=0, atol=atol)


@pytest.mark.parametrize("options", [{}, {"detrend": False}, {"n_confounds": 3, "percentile": 3.5}, {"n_confounds": 1}])
@pytest.mark.parametrize("kind", ["scaled i2", "f8", "f4", ">f4", "i2"])
def test_equals_nilearns(tmp_path, kind, options):
    """nilearn computes in float32 for float32 and integers; it is given the same values in float64."""
    path = written(components(50), kind, tmp_path)
    img = nib.load(path)
    theirs = nilearn.image.high_variance_confounds(nib.Nifti1Image(img.get_fdata(), img.affine), **options)
    ours = high_variance_confounds(open_volumes(path), **options)
    assert ours.dtype == np.float64
    assert ours.shape == theirs.shape == (50, options.get("n_confounds", 5))
    same_up_to_sign(ours, theirs, 1e-8)


@pytest.mark.parametrize("n", [5, 6, 8, 12])
@pytest.mark.parametrize("detrend", [True, False])
def test_few_volumes(n, detrend):
    img = nib.Nifti1Image(components(n), AFFINE)
    n_confounds = min(5, n - 2)  # a trend takes two dimensions
    theirs = nilearn.image.high_variance_confounds(img, n_confounds=n_confounds, detrend=detrend)
    ours = high_variance_confounds(open_volumes(img), n_confounds, detrend=detrend)
    same_up_to_sign(ours, theirs, 1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_left_out(value):
    data = components(40)
    spoilt = data.copy()
    spoilt[0, 0, :3], spoilt[5, 5, 5, 7] = value, value
    ours = high_variance_confounds(open_volumes(nib.Nifti1Image(spoilt, AFFINE)))
    assert np.isfinite(ours).all()
    kept = np.isfinite(spoilt).all(axis=-1)
    finite = nib.Nifti1Image(data[kept][None, None], AFFINE)  # (1, 1, n_voxels, n_volumes): a run of the others alone
    same_up_to_sign(ours, high_variance_confounds(open_volumes(finite)), 1e-10)


@pytest.mark.parametrize("form", ["none", "array", "list", "path", "frame"])
@pytest.mark.parametrize("cleaning", [{}, {"detrend": True, "standardize": "zscore_sample"}])
def test_through_the_masker(tmp_path, form, cleaning):
    labels = nib.Nifti1Image(np.repeat(np.arange(5, dtype="i2"), 2 * 11 * 12).reshape(SHAPE), AFFINE)
    run = written(components(60), "scaled i2", tmp_path)
    values = np.random.default_rng(1).normal(size=(60, 3))
    frame = pd.DataFrame(values, columns=list("abc"))
    frame.to_csv(tmp_path / "confounds.tsv", sep="\t", index=False)
    forms = {"array": values, "list": [values[:, 0], values[:, 1:]], "path": tmp_path / "confounds.tsv", "frame": frame}
    signals = [
        module(labels, high_variance_confounds=True, **{"standardize": None, **cleaning}).fit_transform(
            str(run), confounds=forms.get(form)
        )
        for module in (NiftiLabelsMasker, nilearn.maskers.NiftiLabelsMasker)
    ]
    np.testing.assert_allclose(*signals, rtol=0, atol=1e-7)


def test_several_runs_leave_the_callers_list_alone(tmp_path):
    """nilearn adds its own confounds to the arrays of a list, not to the list."""
    labels = nib.Nifti1Image(np.repeat(np.arange(5, dtype="i2"), 2 * 11 * 12).reshape(SHAPE), AFFINE)
    run = written(components(60), "f8", tmp_path)
    one, other = np.random.default_rng(1).normal(size=(2, 60, 2))
    both = [one, other]
    options = {"high_variance_confounds": True, "standardize": None}
    with pytest.raises(ValueError, match="operands could not be broadcast together"):
        nilearn.maskers.MultiNiftiLabelsMasker(labels, **options).fit_transform([run], confounds=[list(both)])
    (signals,) = MultiNiftiLabelsMasker(labels, **options).fit_transform([run], confounds=[both])
    assert [c is d for c, d in zip(both, [one, other], strict=True)] == [True, True]
    expected = NiftiLabelsMasker(labels, **options).fit_transform(run, confounds=np.hstack([one, other]))
    np.testing.assert_allclose(signals, expected, atol=1e-12)


def test_never_holds_the_run(tmp_path):
    rng = np.random.default_rng(0)
    n = 200
    data = rng.integers(0, 1000, (24, 24, 24, n), dtype="i2")
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "run.nii.gz")
    n_bytes, volume = data.nbytes, data[..., 0].size * 8
    del data
    volumes = open_volumes(tmp_path / "run.nii.gz")
    tracemalloc.start()
    high_variance_confounds(volumes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    chosen = 0.02 * n * volume
    assert peak < 25 * volume + 3 * chosen < n_bytes, (peak, volume, chosen, n_bytes)
