"""What is beyond nilearn: coverage, columns that stay, non-finite voxels left out, several atlases in one pass."""

import functools
import itertools
import math
import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import sklearn.exceptions

import gpumask.engine.plan
import gpumask.images.volumes
from gpumask import NiftiLabelsMasker, transform_together

from . import helpers
from .helpers import AFFINE, image

blocks = functools.partial(helpers.blocks, wide=(9,))
IDS = [1, 2, 5, 9]
N = 40
STRATEGIES = {
    "mean": np.nanmean,
    "sum": np.nansum,
    "median": np.nanmedian,
    "minimum": np.nanmin,
    "maximum": np.nanmax,
    "variance": np.nanvar,
    "standard_deviation": np.nanstd,
}


def moved(*voxels, scale=(1, 1, 1)):
    """The affine of a grid that begins so many voxels further on, of larger voxels."""
    affine = AFFINE.copy()
    affine[:3, 3] += AFFINE[:3, :3] @ voxels
    return affine @ np.diag([*scale, 1])


def run_of(shape=(6, 7, 8), affine=AFFINE, n=N, seed=0, dtype="f8"):
    data = np.random.default_rng(seed).normal(100, 5, (*shape, n)) + np.linspace(0, 4, n)
    return image(data.astype(dtype), affine)


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*args, **kwargs)


@pytest.fixture
def atlas():
    return image(blocks())


@pytest.fixture
def reads(monkeypatch):
    """Chunks that are read, as (first volume, bytes)."""
    chunks, seen = gpumask.images.volumes.Volumes.chunks, []

    def counted(self, *args):
        for chunk in chunks(self, *args):
            seen.append((chunk.start, chunk.data.nbytes))
            yield chunk

    monkeypatch.setattr(gpumask.images.volumes.Volumes, "chunks", counted)
    return seen


# Coverage


def voxel_of(index, affine, there, shape):
    """The voxel of another grid that a voxel lies in, or None outside of its field of view; plain arithmetic."""
    point = np.linalg.inv(there) @ affine @ [*index, 1.0]
    if any(c < -1e-9 or c > n - 1 + 1e-9 for c, n in zip(point[:3], shape, strict=True)):
        return None
    return tuple(math.floor(c + 0.5) for c in point[:3])


def coverage_by_loops(labels, ids, run, mask=None, target="data"):
    """`mask` is an image; it is brought to the run (or the labels) before it covers anything."""
    run_affine, run_shape = run.affine, run.shape[:3]
    on = (run_affine, run_shape) if target == "data" else (AFFINE, labels.shape)
    voxels, covered = dict.fromkeys(ids, 0), dict.fromkeys(ids, 0)
    for index in np.ndindex(labels.shape):
        label = labels[index]
        if label not in voxels:
            continue
        voxels[label] += 1
        seen = voxel_of(index, AFFINE, run_affine, run_shape) is not None
        if mask is not None:
            there = voxel_of(index, AFFINE, *on)
            there = there and voxel_of(there, on[0], mask.affine, mask.shape)
            seen = seen and there is not None and bool(np.asarray(mask.dataobj)[there])
        covered[label] += seen
    return list(voxels.values()), list(covered.values())


def box(dtype="u1", shape=(6, 7, 8), affine=AFFINE):
    mask = np.zeros(shape, dtype)
    mask[: shape[0] // 2, 1:-2, 2:] = 1
    mask[-2:, 2:4] = 1
    return image(mask, affine)


RUNS = {
    "same": ((6, 7, 8), AFFINE),
    "partial": ((6, 4, 5), moved(0, 0, 2)),
    "larger": ((9, 10, 11), moved(-1, -2, -1)),
    "coarse": ((3, 4, 4), moved(0.2, 0.2, 0.2, scale=(1.7, 1.7, 1.7))),
}
MASKS = {"none": None, "own grid": box(), "another grid": box(shape=(8, 8, 8), affine=moved(-0.3, -0.4, 0.3))}


@pytest.mark.parametrize("target", ["data", "labels"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("run", RUNS)
def test_coverage_is_what_loops_count(atlas, run, mask, target):
    run, mask = run_of(*RUNS[run], n=2), MASKS[mask]
    masker = NiftiLabelsMasker(atlas, mask_img=mask, resampling_target=target, labels=["a", "b", "c", "d"])
    quietly(masker.fit_transform, run)
    table = masker.coverage_
    assert list(table) == ["index", "name", "voxels", "covered", "fraction"]
    ids = [label for key, label in masker.region_ids_.items() if key != "background"]
    voxels, covered = coverage_by_loops(blocks(), ids, run, mask, target)
    assert table["index"].to_list() == ids
    assert table["name"].to_list() == masker.get_feature_names_out()
    assert table["voxels"].to_list() == voxels
    assert table["covered"].to_list() == covered
    np.testing.assert_array_equal(table["fraction"], np.array(covered) / voxels)
    table["voxels"] = 0  # a copy
    assert masker.coverage_["voxels"].to_list() == voxels


def test_coverage_of_all_regions(atlas):
    run = run_of((6, 4, 5), moved(0, 0, 2), n=2)
    masker = NiftiLabelsMasker(atlas, keep_all_regions=True)
    voxels, covered = coverage_by_loops(blocks(), IDS, run)
    share = f"{sum(covered) / sum(voxels):.0%}"
    with pytest.warns(UserWarning, match=rf"^in-memory image covers only {share} of the atlas in-memory image\. Are "):
        masker.fit_transform(run)
    assert masker.coverage_["index"].to_list() == IDS
    assert masker.coverage_["covered"].to_list() == covered
    assert masker.coverage_["covered"].min() == 0


@pytest.mark.parametrize("limit", [None, 0, 0.5])
def test_a_region_that_only_resampling_brings_in(atlas, limit):
    """Voxels from outside the atlas are 0; with another background, a region that the atlas doesn't have."""
    run = run_of((9, 10, 11), moved(-1, -2, -1), n=3)
    masker = NiftiLabelsMasker(image(blocks() + (blocks() == 0) * 77), background_label=77, min_coverage=limit)
    signals = quietly(masker.fit_transform, run)
    assert masker.coverage_.iloc[0].to_list()[2:] == [0, 0, 0.0]
    assert masker.coverage_["fraction"].to_list() == [0, 1, 1, 1, 1]
    assert np.isnan(signals).any(axis=0).tolist() == [limit == 0.5, False, False, False, False]


# Columns of NaN


@pytest.mark.parametrize("form", ["array", "pandas", "3D"])
@pytest.mark.parametrize("limit", [0, 0.55, 0.7, 1])
@pytest.mark.parametrize(
    "cleaning", [{}, {"standardize": "psc"}, {"detrend": True, "standardize": "psc"}, {"standardize": "zscore_sample"}]
)
def test_min_coverage(atlas, limit, cleaning, form):
    mask = np.ones((6, 7, 8), "u1")
    mask[0, 1:4, 1:4] = 0  # 9 of region 1's 30 voxels
    mask[:, 4:6, 1:6] = 0  # 20 of region 2's 30, 30 of region 9's 45
    run = run_of()
    if form == "3D":
        run = image(run.get_fdata()[..., 0])
        cleaning = {}
    plain = NiftiLabelsMasker(atlas, mask_img=image(mask), **cleaning)
    masker = NiftiLabelsMasker(atlas, mask_img=image(mask), min_coverage=limit, **cleaning)
    if form == "pandas":
        masker.set_output(transform="pandas")
    signals = masker.fit_transform(run)
    lost = np.array([21 / 30, 1 / 3, 1, 1 / 3]) < limit
    if form == "pandas":
        assert list(signals.columns) == ["1", "2", "5", "9"]
        signals = signals.to_numpy()
    assert np.isnan(signals[..., lost]).all()
    kept = [i for i, gone in zip(IDS, lost, strict=True) if not gone]
    alone = image(np.where(np.isin(blocks(), kept), blocks(), 0))
    expected = plain.set_params(labels_img=alone).fit_transform(run)  # psc: as if there were no others
    np.testing.assert_array_equal(signals[..., ~lost], expected)


@pytest.mark.parametrize("standardize", [None, "psc", "zscore_sample"])
def test_nothing_covered_enough(atlas, standardize):
    mask = np.zeros((6, 7, 8), "u1")
    mask[:, ::2] = 1
    signals = NiftiLabelsMasker(
        atlas, mask_img=image(mask), min_coverage=1.0, standardize=standardize, detrend=True
    ).fit_transform(run_of())
    assert signals.shape == (N, 4)
    assert np.isnan(signals).all()


CLEANING = {
    "plain": {},
    "psc": {"detrend": True, "standardize": "psc"},
    "filtered": {"detrend": True, "standardize": "zscore_sample", "low_pass": 0.1, "high_pass": 0.01, "t_r": 2.0},
    "cosine": {"high_pass": 0.02, "t_r": 2.0, "clean_args": {"filter": "cosine"}, "standardize": "zscore"},
}


@pytest.mark.parametrize("cleaning", CLEANING)
@pytest.mark.parametrize("strategy", ["mean", "median"])
def test_all_regions_have_a_column_whatever_a_run_lost(atlas, cleaning, strategy):
    rng = np.random.default_rng(1)
    confounds, keep = rng.normal(size=(N, 2)), np.delete(np.arange(N), [7, 20])
    one_voxel = blocks()
    one_voxel[1, 1, 1] = 77  # lost by coarse voxels
    atlas = image(one_voxel)
    mask = np.ones((6, 7, 8), "u1")
    mask[blocks() == 2] = 0
    names = ["one", "two", "five", "nine", "lost"]
    for mask_img, (shape, affine) in itertools.product((None, image(mask)), RUNS.values()):
        options = {"mask_img": mask_img, "strategy": strategy, "labels": names, **CLEANING[cleaning]}
        run = run_of(shape, affine)
        all_of_them = NiftiLabelsMasker(atlas, keep_all_regions=True, **options)
        signals = quietly(all_of_them.fit_transform, run, confounds=confounds, sample_mask=keep)
        some = NiftiLabelsMasker(atlas, **{**options, "labels": None})
        expected = quietly(some.fit_transform, run, confounds=confounds, sample_mask=keep)
        left = [int(name) for name in some.get_feature_names_out()]
        columns = [[*IDS, 77].index(i) for i in left]
        assert signals.shape == (N - 2, 5)
        assert all_of_them.get_feature_names_out() == names
        assert all_of_them.n_elements_ == 5
        np.testing.assert_array_equal(signals[:, columns], expected)
        assert np.isnan(np.delete(signals, columns, axis=1)).all()
        assert all_of_them.coverage_["index"].to_list() == [*IDS, 77]
        later = quietly(all_of_them.fit().transform, run, confounds=confounds, sample_mask=keep)
        np.testing.assert_array_equal(later, signals)


@pytest.mark.parametrize("lost", [False, True])
def test_runs_in_clean_args(lost):
    """Apart from maskers of voxels, as in nilearn, there is no parameter `runs`."""
    run, runs = run_of(), np.repeat([0, 1], [N - 12, 12])
    options = {"detrend": True, "standardize": "zscore_sample"}
    labels = blocks()
    if lost:
        labels[1, 1, 1] = 77
    mask = np.ones((6, 7, 8), "u1")
    mask[1, 1, 1] = 0
    masker = NiftiLabelsMasker(
        image(labels), mask_img=image(mask), keep_all_regions=True, clean_args={"runs": runs}, **options
    )
    signals = quietly(masker.fit_transform, run)
    plain = NiftiLabelsMasker(image(blocks()), mask_img=image(mask), **options).fit()
    parts = [plain.transform(image(np.asarray(run.dataobj)[..., runs == k])) for k in (0, 1)]
    np.testing.assert_allclose(signals[:, :4], np.concatenate(parts), rtol=1e-10, atol=1e-10)
    assert np.isnan(signals[:, 4:]).all()


def test_all_regions_with_the_data_resampled(atlas):
    run = run_of((6, 4, 5), moved(0, 0, 2), n=3)
    masker = NiftiLabelsMasker(atlas, resampling_target="labels", keep_all_regions=True, min_coverage=0.1)
    signals = quietly(masker.fit_transform, run)
    assert signals.shape == (3, 4)
    assert np.isnan(signals).all(axis=0).tolist() == [f < 0.1 for f in masker.coverage_["fraction"]]
    assert 0 < np.isnan(signals).all(axis=0).sum() < 4


def test_regions_without_data_are_painted_nan(atlas):
    mask = np.ones((6, 7, 8), "u1")
    mask[blocks() == 2] = 0
    mask[:2, 1:4, 1:4] = 0
    masker = NiftiLabelsMasker(atlas, mask_img=image(mask), keep_all_regions=True, min_coverage=0.5)
    signals = masker.fit_transform(run_of())
    assert np.isnan(signals).all(axis=0).tolist() == [True, True, False, False]
    volumes = masker.inverse_transform(signals).get_fdata()
    for k, i in enumerate(IDS):
        inside = (blocks() == i) & (mask == 1)
        np.testing.assert_array_equal(volumes[inside], np.broadcast_to(signals[:, k], (inside.sum(), N)))
    assert not volumes[(blocks() == 0) | (mask == 0)].any()
    with pytest.raises(ValueError, match=r"Input contains NaN\."):
        NiftiLabelsMasker(atlas).fit().inverse_transform(signals)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_tables_of_all_regions(atlas, container):
    pytest.importorskip(container)
    mask = np.ones((6, 7, 8), "u1")
    mask[blocks() == 2] = 0
    masker = NiftiLabelsMasker(atlas, mask_img=image(mask), keep_all_regions=True, labels=["a", "b", "c", "d"])
    table = masker.set_output(transform=container).fit_transform(run_of())
    assert list(table.columns) == ["a", "b", "c", "d"]
    assert np.isnan(table.to_numpy()).all(axis=0).tolist() == [False, True, False, False]


@pytest.mark.filterwarnings("ignore:In version 0.15.0")
@pytest.mark.parametrize("options", [{"keep_all_regions": True}, {"min_coverage": 0.5}, {"nan_policy": "omit"}])
def test_integers_cannot_hold_nan(atlas, options):
    data = run_of(n=3).get_fdata()
    data[blocks() == 2] = np.nan
    mask = np.ones((6, 7, 8), "u1")
    if "nan_policy" not in options:
        data, mask[blocks() == 2] = np.nan_to_num(data), 0
    run = image(data)
    options = options | {"mask_img": image(mask)} | ({"keep_masked_labels": True} if "min_coverage" in options else {})
    masker = NiftiLabelsMasker(atlas, dtype="i4", **options)
    with pytest.raises(ValueError) as error:
        masker.fit_transform(run)
    assert str(error.value) == ("dtype='i4' can't hold NaN, which marks regions without data. Use a float dtype.")
    floats = masker.set_params(dtype="f4").fit_transform(run)
    assert floats.dtype == np.float32
    assert np.isnan(floats).any(axis=0).tolist() == [False, True, False, False]
    whole = NiftiLabelsMasker(atlas, dtype="i4", keep_all_regions=True, min_coverage=1).fit_transform(run_of(n=3))
    assert whole.dtype == np.int32  # nothing is lost


# Non-finite voxels


def spoilt(dtype="f8", n=6):
    """A run with holes that differ between volumes; region 9 has no finite voxel at all in two volumes."""
    data = run_of(n=n).get_fdata().astype(dtype)
    rng = np.random.default_rng(2)
    for value in (np.nan, np.inf, -np.inf):
        data[rng.random(data.shape) < 0.04] = value
    data[..., 1] = run_of(n=n).get_fdata()[..., 1]
    data[blocks() == 9, 2:4] = np.nan
    return data


def nan_statistic(function, data, ids=IDS):
    data = np.where(np.isfinite(data), data, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of regions without any
        filled = [[function(data[blocks() == i][:, t]) if some(data, i, t) else np.nan for i in ids]
                  for t in range(data.shape[-1])]  # fmt: skip
    return np.array(filled)


def some(data, i, t):
    return np.isfinite(data[blocks() == i][:, t]).any()


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f8"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_omit_is_numpys_nan_statistic(atlas, strategy, dtype):
    data = spoilt(dtype)
    masker = NiftiLabelsMasker(atlas, strategy=strategy, nan_policy="omit", dtype="f8")
    signals = masker.fit_transform(image(data))
    expected = nan_statistic(STRATEGIES[strategy], data.astype("f8"))
    if strategy == "sum":
        expected[2:4, 3] = 0  # as np.nansum has it
    np.testing.assert_allclose(signals, expected, rtol=1e-11)
    finite = run_of(n=6)
    plain = NiftiLabelsMasker(atlas, strategy=strategy).fit_transform(finite)
    np.testing.assert_array_equal(masker.transform(finite), plain)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("slope", "inter"), [(0.5, 1200.5), (-2.0, 7.0)])
def test_omit_of_a_scaled_file(atlas, strategy, slope, inter, tmp_path):
    data = spoilt("f4")
    nib.save(image(data), tmp_path / "run.nii")
    content = bytearray((tmp_path / "run.nii").read_bytes())
    content[112:120] = np.array([slope, inter], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "run.nii").write_bytes(content)
    signals = NiftiLabelsMasker(atlas, strategy=strategy, nan_policy="omit").fit_transform(tmp_path / "run.nii")
    expected = nan_statistic(STRATEGIES[strategy], data.astype("f8") * slope + inter)
    if strategy == "sum":
        expected[2:4, 3] = 0
    np.testing.assert_allclose(signals, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_omit_smooths_with_normalised_weights(atlas, monkeypatch, dtype):
    data, signals = spoilt(dtype), {}
    for way, constant, value in (("folded", "_NS_PER_WEIGHT", -1e9), ("staged", "_MAX_WEIGHTS", -1)):
        monkeypatch.setattr(gpumask.engine.plan, constant, value)
        masker = NiftiLabelsMasker(atlas, smoothing_fwhm=5, nan_policy="omit", dtype="f8")
        signals[way] = masker.fit_transform(image(data))
        assert masker.plan_.way == way
    smooth = lambda values: NiftiLabelsMasker(atlas, smoothing_fwhm=5).fit_transform(image(values))  # noqa: E731
    finite = np.isfinite(data)
    expected = smooth(np.where(finite, data, 0).astype("f8")) / smooth(finite.astype("f8"))
    np.testing.assert_allclose(signals["folded"], expected, rtol=1e-12)
    np.testing.assert_allclose(signals["staged"], expected, rtol=1e-12)
    assert np.isfinite(expected).all()  # the regions' neighbours reach into region 9


@pytest.mark.parametrize(
    "cleaning", [{}, *[{"standardize": s, "detrend": True} for s in (None, "psc", "zscore_sample")]]
)
def test_region_of_nan_alone(atlas, cleaning):
    """Its column is NaN; the others have the bits that they have without it."""
    data = run_of().get_fdata()
    data[blocks() == 2] = np.nan
    signals = NiftiLabelsMasker(atlas, nan_policy="omit", **cleaning).fit_transform(image(data))
    assert np.isnan(signals).all(axis=0).tolist() == [False, True, False, False]
    others = image(blocks() * (blocks() != 2))
    expected = NiftiLabelsMasker(others, **cleaning).fit_transform(image(np.nan_to_num(data)))
    np.testing.assert_array_equal(np.delete(signals, 1, axis=1), expected)


def test_nan_of_one_volume_can_be_censored(atlas):
    data = run_of().get_fdata()
    data[blocks() == 2, 7] = np.nan
    masker = NiftiLabelsMasker(atlas, nan_policy="omit", standardize="zscore_sample").fit()
    keep = np.delete(np.arange(N), 7)
    assert np.isnan(masker.transform(image(data))[:, 1]).all()
    signals = masker.transform(image(data), sample_mask=keep)
    expected = NiftiLabelsMasker(atlas, standardize="zscore_sample").fit_transform(image(data[..., keep]))
    np.testing.assert_allclose(signals, expected, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["smoothed", "resampled"])
def test_where_omit_is_not_defined(atlas, strategy, kind):
    options = {"smoothing_fwhm": 4} if kind == "smoothed" else {"resampling_target": "labels"}
    run = run_of(n=2, affine=AFFINE if kind == "smoothed" else moved(0, 0, 1))
    masker = NiftiLabelsMasker(atlas, strategy=strategy, nan_policy="omit", **options).fit()
    if kind == "smoothed" and strategy in ("mean", "sum"):
        assert masker.transform(run).shape == (2, 4)
        return
    with pytest.raises(ValueError) as error:
        quietly(masker.transform, run)
    what, other = "resampled volumes", "resampling_target='data'"
    if kind == "smoothed":
        what, other = f"the {strategy} of smoothed volumes", "strategy='mean'"
    assert str(error.value) == f"nan_policy='omit' isn't defined for {what}: use nan_policy='zero', or {other}."


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_zero_is_as_before(atlas, strategy):
    data = spoilt()
    with pytest.warns(UserWarning, match="Non-finite values detected"):
        signals = NiftiLabelsMasker(atlas, strategy=strategy).fit_transform(image(data))
    expected = nan_statistic(STRATEGIES[strategy], np.where(np.isfinite(data), data, 0))
    np.testing.assert_allclose(signals, expected, rtol=1e-11)


# Several atlases in one pass


def maskers_of(**options):
    other = image(blocks([3, 4, 6, 7])[::-1].copy())
    mask = image(np.ones((6, 7, 8), "u1"))
    filters = {"low_pass": 0.1, "high_pass": 0.01, "t_r": 2.0}
    return [
        NiftiLabelsMasker(image(blocks()), **options),
        NiftiLabelsMasker(other, strategy="median", detrend=True, standardize="psc", **options),
        NiftiLabelsMasker(image(blocks()), smoothing_fwhm=5, standardize="zscore_sample", **filters, **options),
        NiftiLabelsMasker(other, mask_img=mask, strategy="variance", dtype="f4", **options),
        NiftiLabelsMasker(image(blocks()), smoothing_fwhm=4, strategy="maximum", **options),
    ]


def size_of(reads):
    return len([first for first, _ in reads if first == 0]), sum(n_bytes for _, n_bytes in reads)


@pytest.mark.parametrize("form", ["array", "i2", "nii.gz", "list"])
@pytest.mark.parametrize("confounded", [False, True])
def test_together_as_alone(form, confounded, reads, tmp_path):
    run = run_of(dtype="i2" if form == "i2" else "f4")
    if form == "nii.gz":
        nib.save(run, tmp_path / "run.nii.gz")
        run = tmp_path / "run.nii.gz"
    if form == "list":
        run = [image(np.asarray(run.dataobj)[..., t]) for t in range(N)]
    rng = np.random.default_rng(3)
    of_run = {"confounds": rng.normal(size=(N, 3)), "sample_mask": np.delete(np.arange(N), 4)} if confounded else {}
    maskers = [masker.fit(run) for masker in maskers_of()]
    alone = [masker.transform(run, **of_run) for masker in maskers]
    reads.clear()
    together = transform_together(maskers, run, **of_run)
    n_bytes = 6 * 7 * 8 * N * (2 if form == "i2" else 4)
    assert size_of(reads) == (1, n_bytes)
    for ours, expected, masker in zip(together, alone, maskers, strict=True):
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)
        assert masker.plan_.counts.sum() > 0
        assert masker.coverage_["fraction"].eq(1).all()
    assert len({masker.seconds_["read"] for masker in maskers}) == 1


def test_together_with_other_ways(reads):
    """Several grids, NaN left out, columns of NaN, tables; high variance confounds need their own passes."""
    data = run_of().get_fdata()
    data[blocks() == 2] = np.nan
    run = image(data)
    coarse = image(blocks()[::2, ::2, ::2], moved(0, 0, 0, scale=(2, 2, 2)))
    options = {"nan_policy": "omit", "device": "cpu"}
    maskers = [
        *maskers_of(**options)[:2],
        NiftiLabelsMasker(coarse, min_coverage=0.5, keep_all_regions=True, **options).set_output(transform="pandas"),
    ]
    quietly(lambda: [masker.fit() for masker in maskers])
    alone = quietly(lambda: [masker.transform(run) for masker in maskers])
    together = quietly(transform_together, maskers, run)
    for ours, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert isinstance(together[2], pd.DataFrame)
    maskers = [NiftiLabelsMasker(image(blocks()), high_variance_confounds=flag).fit() for flag in (True, False)]
    alone = [masker.transform(run_of()) for masker in maskers]
    reads.clear()
    together = transform_together(maskers, run_of())
    assert size_of(reads)[0] == 1 + 2
    for ours, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_together_of_a_volume(atlas):
    volume = image(run_of().get_fdata()[..., 0])
    (signals,) = transform_together([NiftiLabelsMasker(atlas).fit()], volume)
    assert signals.shape == (4,)


def test_together_with_policies_of_their_own(atlas):
    data = run_of().get_fdata()
    data[(*np.argwhere(blocks() == 2)[0], 1)] = np.nan
    maskers = [NiftiLabelsMasker(atlas, nan_policy=policy).fit() for policy in ("zero", "omit")]
    alone = [quietly(masker.transform, image(data)) for masker in maskers]
    assert not np.array_equal(*alone)
    for ours, expected in zip(quietly(transform_together, maskers, image(data)), alone, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_together_needs_maskers_that_fit(atlas):
    zero = NiftiLabelsMasker(atlas, device="cpu").fit()
    with pytest.raises(ValueError, match=r"^`maskers` must hold at least one masker, got \[\]\.$"):
        transform_together([], run_of())
    with pytest.raises(sklearn.exceptions.NotFittedError):
        transform_together([zero, NiftiLabelsMasker(atlas)], run_of())
