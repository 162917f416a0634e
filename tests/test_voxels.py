"""NiftiMasker and MultiNiftiMasker: masks, grids, results, and what differs from nilearn's on purpose."""

import importlib.util
import inspect
import pickle
import re
import subprocess
import sys
import warnings

import joblib
import nibabel as nib
import nilearn.image
import nilearn.maskers
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gpumask import MultiNiftiMasker, NiftiLabelsMasker, NiftiMasker, backend, transform_together
from gpumask.images.errors import ImageError
from gpumask.images.grid import Grid, target_grid
from gpumask.kernels.segments import Segments, reduce

from .draws import save as save_stored
from .helpers import AFFINE, blocks, image, save

SHAPE = (6, 7, 8)
FAR = AFFINE.copy()
FAR[:3, 3] += [0.7, -0.4, 1.1]


def mask_data():
    mask = np.random.default_rng(3).random(SHAPE) < 0.6
    mask[0] = mask[:, :, -1] = False
    return mask


@pytest.fixture
def mask():
    return image(mask_data().astype("u1"))


def values(n_volumes=20, dtype="f4", seed=0):
    return np.random.default_rng(seed).normal(100, 5, (*SHAPE, n_volumes)).astype(dtype)


@pytest.fixture
def run():
    return image(values())


def both(masker_class=NiftiMasker):
    return masker_class, getattr(nilearn.maskers, masker_class.__name__)


@pytest.mark.parametrize("masker_class", [NiftiMasker, MultiNiftiMasker])
def test_parameters_are_nilearns_in_order(masker_class):
    ours, theirs = (inspect.signature(each).parameters for each in both(masker_class))
    assert list(ours) == [*theirs, "device", "output"]
    assert {ours[name].kind for name in ("device", "output")} == {inspect.Parameter.KEYWORD_ONLY}
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default
    assert NiftiMasker(device="cpu").get_params().keys() == set(inspect.signature(NiftiMasker).parameters)


@pytest.mark.parametrize("masker_class", [NiftiMasker, MultiNiftiMasker])
def test_default_masker_is_quiet(masker_class, run, mask):
    masker_class(mask).fit_transform(run)  # warnings are errors


def test_voxels_in_c_order(run, mask):
    signals = NiftiMasker(mask).fit_transform(run)
    np.testing.assert_array_equal(signals, values()[mask_data()].T)
    assert signals.flags.c_contiguous
    assert signals.dtype == np.float32


@pytest.mark.parametrize("form", ["path", "text", "image", "4D", "mask_img_"])
def test_forms_of_masks(form, run, mask, tmp_path):
    path = save(tmp_path / "mask.nii.gz", mask_data().astype("u1"), AFFINE)
    given = {
        "path": path,
        "text": str(path),
        "image": mask,
        "4D": image(np.stack([mask_data(), np.ones(SHAPE)], axis=-1)),
        "mask_img_": NiftiMasker(mask).fit().mask_img_,
    }[form]
    masker = NiftiMasker(given).fit()
    np.testing.assert_array_equal(masker.transform(run), values()[mask_data()].T)
    assert masker.n_elements_ == mask_data().sum()
    np.testing.assert_array_equal(masker.affine_, AFFINE)
    assert masker.mask_img_.get_data_dtype() == np.int8


@pytest.mark.parametrize("source", ["array", "list", "nii", "nii.gz"])
def test_sources(source, run, mask, tmp_path):
    if source == "list":
        given = [image(values()[..., t]) for t in range(20)]
    else:
        given = run if source == "array" else save(tmp_path / f"run.{source}", values(), AFFINE)
    np.testing.assert_array_equal(NiftiMasker(mask).fit().transform(given), values()[mask_data()].T)


def test_3d_image_gives_one_dimension(mask):
    volume = values()[..., 0]
    masker = NiftiMasker(mask).fit()
    np.testing.assert_array_equal(masker.transform(image(volume)), volume[mask_data()])
    assert masker.transform([image(volume)]).shape == (1, masker.n_elements_)


# Grids


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("orientation", ["straight", "mirrored", "oblique"])
@pytest.mark.parametrize("seed", range(4))
def test_target_grid_is_nilearns(orientation, size, seed):
    rng = np.random.default_rng(seed)
    affine = np.diag([*rng.uniform(1.5, 4, 3), 1.0])
    if orientation == "mirrored":
        affine[0, 0] *= -1
    if orientation == "oblique":
        affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ affine[:3, :3]
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    target = np.diag([*rng.uniform(1.5, 5, 3), 1.0])[:size, :size]
    if size == 4:
        target[:3, 3] = affine[:3, 3] - 20
    shape = tuple(rng.integers(4, 12, 3).tolist())
    expected = nilearn.image.resample_img(
        nib.Nifti1Image(np.ones(shape, "u1"), affine), target_affine=target, interpolation="nearest"
    )
    grid = target_grid(Grid(shape, affine), target)
    assert grid.shape == expected.shape
    np.testing.assert_allclose(grid.affine, expected.affine, rtol=1e-14, atol=1e-12)
    if size == 4:
        assert target_grid(Grid(shape, affine), target, (3, 4, 5)).shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("affine", "shape", "error", "message"),
    [
        (None, (3, 3, 3), ValueError, "If target_shape is specified, target_affine should be specified too."),
        (
            np.eye(4),
            (3, 3),
            ValueError,
            "The shape specified should be the shape of the 3D grid, and thus of length 3. (3, 3) was specified.",
        ),
        (
            np.eye(3),
            (3, 3, 3),
            ValueError,
            "Given target shape without anchor vector: 'target_affine' shape should be (4, 4) and not (3, 3). "
            "Pass a 4 x 4 affine, or no target_shape.",
        ),
        (
            np.eye(4),
            (3.0, 3, 3),
            ValueError,
            "'target_shape' must hold three whole numbers of 1 or more, got (3.0, 3, 3).",
        ),
        (
            np.eye(4),
            (3, 3, -1),
            ValueError,
            "'target_shape' must hold three whole numbers of 1 or more, got (3, 3, -1).",
        ),
        (
            np.eye(4),
            3,
            TypeError,
            "'target_shape' must be of type(s): 'tuple | list | numpy.ndarray | None'.\nGot: 'int'",
        ),
        (
            np.eye(4),
            (3000, 3000, 3000),
            ValueError,
            "The grid of 'target_affine' has 3000 x 3000 x 3000 voxels, expected at most 2,147,483,647. "
            "Choose larger voxels, or a smaller target_shape.",
        ),
        (
            "x",
            None,
            TypeError,
            "'target_affine' must be of type(s): 'numpy.ndarray | list | tuple | None'.\nGot: 'str'",
        ),
        (
            [1, 2, 3],
            None,
            np.linalg.LinAlgError,
            "'target_affine' must be an invertible matrix of shape (4, 4) or (3, 3), got:\n[1, 2, 3]",
        ),
        (
            np.zeros((3, 3)),
            None,
            np.linalg.LinAlgError,
            f"'target_affine' must be an invertible matrix of shape (4, 4) or (3, 3), got:\n{np.zeros((3, 3))}",
        ),
        (
            np.eye(4),
            (2000, 2000, 2000),
            ValueError,
            "The grid of 'target_affine' has 2000 x 2000 x 2000 voxels, expected at most 2,147,483,647. "
            "Choose larger voxels, or a smaller target_shape.",
        ),
    ],
)
def test_invalid_targets(affine, shape, error, message, mask):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        NiftiMasker(mask, target_affine=affine, target_shape=shape).fit()


def test_affine_is_4_by_4(mask):
    masker = NiftiMasker(mask, target_affine=np.eye(3) * 4).fit()
    np.testing.assert_array_equal(masker.affine_, masker.mask_img_.affine)


def test_target_beside_the_mask(mask):
    target = np.eye(4)
    target[:3, 3] = 1000
    with pytest.raises(ValueError, match="The field of view given by the target affine does not contain any of the da"):
        NiftiMasker(mask, target_affine=target).fit()


RESAMPLED = (
    "imgs are being resampled to the mask_img resolution. This process is memory intensive. You might want to "
    "provide a target_affine that is equal to the affine of the imgs or resample the mask beforehand to save memory "
    "and computation time."
)


@pytest.mark.parametrize("smoothing_fwhm", [None, 6])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
def test_runs_of_other_grids_are_resampled_to_the_cropped_mask(mask, dtype, smoothing_fwhm):
    # Smoothing ends at the crop: a mask with more room around it gives other values, in nilearn too.
    masked = image(values(5, dtype), FAR)
    ours, theirs = (each(mask, smoothing_fwhm=smoothing_fwhm, standardize=None).fit() for each in both())
    with pytest.warns(UserWarning, match=f"^{re.escape(RESAMPLED)}$"):
        signals = ours.transform(masked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.transform(masked)
    assert signals.dtype == expected.dtype
    np.testing.assert_allclose(signals, expected, rtol=0, atol=1e-12 if dtype == "f8" else 2e-5)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", "<f4"])
def test_dtypes_are_nilearns(dtype, scaled, mask, tmp_path):
    of_run = nib.Nifti1Image(values(3, "u1").astype(dtype), AFFINE, dtype=np.dtype(dtype))
    path = tmp_path / "run.nii"
    save_stored(of_run, path, 0.5 if scaled else 1, 3 if scaled else 0)
    cases = [{}, {"smoothing_fwhm": 5}, {"target_affine": FAR}, {"target_affine": FAR, "smoothing_fwhm": 5}]
    if dtype == "u8" and not scaled:
        cases.pop()  # nilearn turns resampled ones into 32 bits, then smooths
    for options in cases:
        for asked in (None, "f4", "f8", "i4") if scaled else (None, "f4", "f8", "i4", "auto"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                maskers = [each(mask, standardize=None, dtype=asked, **options).fit() for each in both()]
                ours, theirs = (masker.transform(path) for masker in maskers)
            assert ours.dtype == theirs.dtype, (options, asked)


def test_clipped_series_are_exact(mask):
    # Next to a bright voxel, splines undershoot 0 in all volumes: all of these values are clipped to 0.
    data = np.zeros((*SHAPE, 6), "f4")
    data[3, 3, 3] = np.arange(1, 7) * 1000
    with pytest.warns(UserWarning, match="imgs are being resampled"):
        signals = NiftiMasker(image(np.ones(SHAPE, "u1"))).fit().transform(image(data, FAR))
    assert (signals == 0).all(axis=0).sum() > 50
    for standardize in ("zscore_sample", None):
        masker = NiftiMasker(image(np.ones(SHAPE, "u1")), standardize=standardize, detrend=True).fit()
        with pytest.warns(UserWarning, match="imgs are being resampled"):
            cleaned = masker.transform(image(data, FAR))
        assert not cleaned[:, (signals == 0).all(axis=0)].any()


# The kernel: one voxel a segment


@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (0.5, -3.0)])
@pytest.mark.parametrize("non_finite", ["keep", "zero", "omit"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "u1"])
def test_values_of_voxels(put, dtype, non_finite, slope, inter):
    stored = np.random.default_rng(0).normal(100, 20, (3, 12)).astype(dtype)
    if stored.dtype.kind == "f":
        stored[1, 4], stored[2, 5], stored[0, 7] = np.nan, np.inf, np.nan
    chosen = [5, 0, 4, 11]  # not 7
    segments = Segments(np.array(chosen, np.int32), np.arange(5))
    data = put(stored)
    result, found = reduce(data, segments.like(data), "voxel", slope=slope, inter=inter, non_finite=non_finite)
    expected = stored[:, chosen].astype("f8") * slope + inter
    holes = ~np.isfinite(expected)
    if non_finite != "keep":
        expected[holes] = 0.0 if non_finite == "zero" else np.nan
    np.testing.assert_array_equal(backend.to_host(result), expected)
    np.testing.assert_array_equal(backend.to_host(found), holes.any(axis=1))
    assert backend.to_host(result).dtype == np.float64
    np.testing.assert_array_equal(backend.to_host(data), stored)


def test_segments_of_two_voxels_have_no_value():
    segments = Segments(np.array([0, 1, 2], np.int32), np.array([0, 2, 3]))
    with pytest.raises(ValueError, match=r"^A voxel's value needs segments of one voxel each, got 3 in 2\.$"):
        reduce(np.zeros((1, 4)), segments, "voxel")


# Masks computed from runs


def bordered(n_volumes=3, seed=0):
    data = np.zeros((12, 13, 14, n_volumes), "f4")
    data[2:-2, 3:-2, 2:-3] = np.random.default_rng(seed).normal(100, 5, (8, 8, 9, n_volumes))
    return image(data)


@pytest.mark.parametrize("strategy", ["background", "epi", "gm-template"])
def test_computed_masks(strategy):
    mask_args = {"threshold": -1.0} if "template" in strategy else {"opening": 0}
    ours, theirs = (each(mask_strategy=strategy, mask_args=mask_args).fit(bordered()) for each in both())
    np.testing.assert_array_equal(ours.mask_img_.dataobj, theirs.mask_img_.dataobj)
    runs = [bordered(), bordered(seed=1)]
    ours, theirs = (each(mask_strategy=strategy, mask_args=mask_args).fit(runs) for each in both(MultiNiftiMasker))
    np.testing.assert_array_equal(ours.mask_img_.dataobj, theirs.mask_img_.dataobj)


def test_computed_masks_are_not_cached(tmp_path):
    masker = NiftiMasker(mask_args={"opening": 0}, memory=tmp_path / "cache")
    path = tmp_path / "run.nii"
    nib.save(bordered(), path)
    assert masker.fit(path).n_elements_ == 8 * 8 * 9
    moved = np.zeros((12, 13, 14), "f4")
    moved[3:-3, 3:-3, 3:-3] = 100
    nib.save(image(moved), path)
    assert masker.fit(path).n_elements_ == 6 * 7 * 8


def test_unknown_mask_strategy(run):
    message = (
        "Unknown value of mask_strategy 'brain'. Acceptable values are 'background', 'epi', 'whole-brain-template', "
        "'gm-template', and 'wm-template'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NiftiMasker(mask_strategy="brain").fit(run)


def test_mask_args_that_are_no_dict():
    message = "'mask_args' must be of type(s): 'dict | None'.\nGot: 'list'"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        NiftiMasker(mask_args=["opening"]).fit(bordered())


def test_unknown_mask_args():
    message = "The following arguments are not supported by the masking strategy 'background': ['nothing', 'memory']"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        NiftiMasker(mask_args={"nothing": 1, "opening": 0, "memory": "here"}).fit(bordered())


def test_without_nilearn(run, mask, monkeypatch):
    monkeypatch.setattr("gpumask.maskers.brain_masks.find_spec", lambda name: None)
    NiftiMasker(mask).fit_transform(run)
    message = (
        "mask_strategy='background' computes the mask from the images with nilearn, which isn't installed. Install it "
        "(pip install 'gpumask[nilearn]'), or pass a mask as mask_img."
    )
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        NiftiMasker().fit(run)


def test_neither_mask_nor_run():
    for masker_class in (NiftiMasker, MultiNiftiMasker):
        message = (
            f"Parameter 'imgs' must be provided to {masker_class.__name__}.fit() if no mask is passed to mask_img."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            masker_class().fit()


def test_mask_and_run(run, mask):
    message = (
        "[NiftiMasker.fit] Generation of a mask has been requested (imgs != None) while a mask was given at masker "
        "creation. Given mask will be used."
    )
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(message)}$"):
        NiftiMasker(mask).fit(run)


def test_empty_masks(run):
    empty = image(np.zeros(SHAPE, "u1"))
    with pytest.raises(ValueError, match="The mask is invalid as it is empty: it masks all data"):
        NiftiMasker(empty).fit()


# Cleaning


OPTIONS = {"detrend": True, "standardize": "zscore_sample", "high_pass": 0.01, "low_pass": 0.1, "t_r": 2.0}


@pytest.mark.parametrize("fwhm", [None, 5])
@pytest.mark.parametrize("dtype", ["f4", "i2", "f8"])
def test_z_scores_of_a_large_mean(dtype, fwhm, mask):
    rng = np.random.default_rng(0)
    data = (20_000 + rng.normal(0, 20, (*SHAPE, 80))).astype(dtype)
    signals = NiftiMasker(mask, smoothing_fwhm=fwhm, **OPTIONS).fit_transform(image(data))
    exact = NiftiMasker(mask, smoothing_fwhm=fwhm, **OPTIONS).fit_transform(image(data.astype("f8")))
    assert exact.dtype == np.float64
    np.testing.assert_allclose(signals, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 1.4, 0])
def test_z_scores_after_volumes_that_are_not_steady(factor, mask):
    data = (1000 + np.random.default_rng(0).normal(0, 5, (*SHAPE, 80))).astype("f4")
    data[..., :3] *= factor
    signals, exact = (
        NiftiMasker(mask, smoothing_fwhm=8, detrend=True, standardize="zscore_sample").fit_transform(
            image(data.astype(dtype)), sample_mask=np.arange(3, 80)
        )
        for dtype in ("f4", "f8")
    )
    np.testing.assert_allclose(signals, exact, rtol=0, atol=1e-6)


def test_runs_are_cleaned_apart(mask):
    data, runs = values(30), np.repeat([1, 0], 15)
    together = NiftiMasker(mask, runs=runs, standardize="zscore_sample").fit_transform(image(data))
    alone = [NiftiMasker(mask, standardize="zscore_sample").fit_transform(image(data[..., runs == k])) for k in (0, 1)]
    np.testing.assert_allclose(together, np.vstack(alone), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"The length of the run vector \(3\) does not match the length of the sig"):
        NiftiMasker(mask, runs=[0, 0, 1]).fit_transform(image(data))
    message = "`runs` must have one dimension, the run of each volume, got the shape (30, 1)."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NiftiMasker(mask, runs=runs[:, None]).fit_transform(image(data))


@pytest.mark.parametrize("smoothing_fwhm", [None, 5])
def test_voxels_that_are_not_finite_count_as_0_silently(mask, smoothing_fwhm):
    data = values()
    data[2, 2, 2, 3], data[3, 3, 3] = np.nan, np.inf
    ours, theirs = (each(mask, smoothing_fwhm=smoothing_fwhm, standardize=None).fit() for each in both())
    np.testing.assert_allclose(ours.transform(image(data)), theirs.transform(image(data.copy())), rtol=0, atol=1e-4)


def test_infinite_voxels_do_not_lift_the_clipping(mask):
    data = np.abs(values(3, "f8")) * (values(3, "f8", seed=1) > 100)
    bright = data.copy()
    bright[0, 0, 0, 0] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maskers = [each(image(np.ones(SHAPE, "u1")), standardize=None).fit() for each in both()]
        ours, theirs = (masker.transform(image(bright, FAR)) for masker in maskers)
    assert ours.max() <= data.max() < theirs.max()
    assert ours.min() == theirs.min() == 0


def test_the_same_bits_alone_and_together(run, mask):
    masker = NiftiMasker(mask, smoothing_fwhm=5, **OPTIONS | {"low_pass": None, "high_pass": None}).fit()
    labels = NiftiLabelsMasker(image(blocks())).fit()
    alone, of_labels = masker.transform(run), labels.transform(run)
    together = transform_together([masker, labels], run)
    np.testing.assert_array_equal(together[0], alone)
    np.testing.assert_array_equal(together[1], of_labels)
    assert masker.explain().splitlines()[:2] == [
        f"{mask_data().sum()} voxels of a 6 x 7 x 8 grid",
        "staged: each volume is smoothed, then its voxels are taken",
    ]


# Estimators


@pytest.mark.parametrize("shape", ["(T, V)", "(V,)", "frame"])
def test_inverse_transform(shape, run, mask):
    masker = NiftiMasker(mask).fit()
    signals = masker.transform(run)
    given = {"(T, V)": signals, "(V,)": signals[0], "frame": pd.DataFrame(signals)}[shape]
    back = masker.inverse_transform(given)
    expected = np.where(mask_data()[..., None], values(), 0)
    np.testing.assert_array_equal(back.dataobj, expected[..., 0] if shape == "(V,)" else expected)
    assert back.get_data_dtype() == np.float32
    np.testing.assert_array_equal(back.affine, AFFINE)


def test_inverse_transform_of_maps_with_infinite_values(mask):
    masker = NiftiMasker(mask).fit()
    scores = np.zeros(masker.n_elements_)
    scores[:2] = np.nan, np.inf
    back = np.asarray(masker.inverse_transform(scores).dataobj)[mask_data()]
    np.testing.assert_array_equal(back, scores)


def test_inverse_transform_of_another_shape(mask):
    masker = NiftiMasker(mask).fit()
    n = masker.n_elements_
    message = f"Input to 'inverse_transform' has wrong shape.\nExpected (3, {n}).\nGot (3, {n + 1})."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        masker.inverse_transform(np.zeros((3, n + 1)))


def test_names_and_tables(run, mask):
    masker = NiftiMasker(mask).set_output(transform="pandas").fit()
    table = masker.transform(run)
    assert list(table) == [f"niftimasker{k}" for k in range(masker.n_elements_)] == list(masker.get_feature_names_out())
    tables = MultiNiftiMasker(mask).set_output(transform="pandas").fit_transform([run, run])
    assert [type(each) for each in tables] == [pd.DataFrame] * 2


@pytest.mark.parametrize(
    ("runs", "error", "message"),
    [
        ([np.nan] * 20, ValueError, "is missing (NaN or None) for the volumes [0, 1, 2, 3, 4]."),
        (["a"] * 18 + [None] * 2, ValueError, "is missing (NaN or None) for the volumes [18, 19]."),
        ([{1}] * 10 + ["a"] * 10, TypeError, None),
    ],
)
def test_runs_that_are_no_labels(run, mask, runs, error, message):
    message = message and f"`runs` must name the run of each volume, but {message}"
    message = message or "`runs` must hold labels that can be sorted, all numbers or all texts, got set, str."
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        NiftiMasker(mask, runs=runs).fit().transform(run)


@pytest.mark.parametrize(("dtype", "standardize"), [("int8", False), ("uint8", "zscore_sample"), ("u2", "psc")])
@pytest.mark.parametrize("kind", ["voxels", "labels"])
def test_signals_that_an_integer_dtype_cannot_hold(mask, dtype, standardize, kind):
    """Values of 400 wrapped around, to -112 in int8. Signals that fit are truncated, as in nilearn."""
    img = image(values() * 4)
    masker_class = {"voxels": NiftiMasker, "labels": NiftiLabelsMasker}[kind]
    signals = masker_class(mask, standardize=standardize).fit().transform(img)
    low, high = signals.min(), signals.max()
    message = (
        f"dtype={dtype!r} can't hold the signals of in-memory image, which reach from {low:.6g} to {high:.6g}. "
        "Use a float dtype."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        masker_class(mask, standardize=standardize, dtype=dtype).fit().transform(img)
    fitting = masker_class(mask, standardize=standardize, dtype="int16").fit().transform(img)
    np.testing.assert_array_equal(fitting, signals.astype("int16"))


def test_masks_of_a_truncated_run(run, tmp_path):
    save(tmp_path / "whole.nii.gz", values())
    path = tmp_path / "run.nii.gz"
    path.write_bytes((tmp_path / "whole.nii.gz").read_bytes()[:20_000])
    message = (
        f"No mask can be computed from '{path}': EOFError: Compressed file ended before the end-of-stream marker was "
        "reached. Create the file again."
    )
    with pytest.raises(ImageError, match=f"^{re.escape(message)}$"):
        NiftiMasker().fit(path)


def test_memory_that_is_a_file(mask, tmp_path):
    (tmp_path / "file").touch()
    message = f"`memory` must be a folder, but {tmp_path / 'file'} is a file. Choose another name."
    with pytest.raises(NotADirectoryError, match=f"^{re.escape(message)}$"):
        NiftiMasker(mask, memory=tmp_path / "file").fit()


def test_not_fitted(run, mask):
    for call in (lambda m: m.transform(run), lambda m: m.inverse_transform(np.zeros(3)), lambda m: m.generate_report()):
        with pytest.raises(NotFittedError):
            call(NiftiMasker(mask))


def test_clones_and_pickles(run, mask):
    masker = NiftiMasker(mask, standardize="psc").fit()
    expected = masker.transform(run)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(masker)).transform(run), expected)
    np.testing.assert_array_equal(clone(masker).fit_transform(run), expected)


@pytest.mark.parametrize("masker_class", [NiftiMasker, MultiNiftiMasker])
def test_report(masker_class, run, mask):
    masker = masker_class(mask)
    masker.fit_transform(run)
    page = str(masker.generate_report())
    assert f"<h1>{masker_class.__name__}</h1>" in page
    assert f"Voxels: {masker.n_elements_}" in page
    assert "value of the stored voxels" in page


def test_shelved_signals(run, mask, tmp_path):
    expected = NiftiMasker(mask).fit_transform(run)
    masker = NiftiMasker(mask, memory=joblib.Memory(tmp_path, verbose=0)).fit()
    masker._shelving = True
    shelved = masker.transform(run)
    assert not isinstance(shelved, np.ndarray)
    np.testing.assert_array_equal(shelved.get(), expected)
    assert masker.transform(run).timestamp == shelved.timestamp  # not computed again
    with pytest.raises(AttributeError, match="has no attribute 'explain' before transform"):
        masker.explain()  # rather than of another run
    volume = image(values()[..., 0])
    assert [masker.transform(given).get().ndim for given in (volume, [volume])] == [1, 2]
    np.testing.assert_array_equal(masker.transform(image(values() + 1)).get(), expected + 1)
    confounds = np.random.default_rng(0).normal(size=(20, 1))
    cleaned = masker.transform(run, confounds=confounds).get()
    assert not np.array_equal(cleaned, expected)
    assert not np.array_equal(cleaned, masker.transform(run, confounds=confounds**2).get())


def test_cached_signals_are_not_cleaned_twice(run, mask, tmp_path):
    masker = NiftiMasker(mask, memory=joblib.Memory(tmp_path, mmap_mode="r+", verbose=0), detrend=True).fit()
    first = masker.transform(run)
    np.testing.assert_array_equal(masker.transform(run), first)
    np.testing.assert_array_equal(masker.transform(run), NiftiMasker(mask, detrend=True).fit_transform(run))


# Several runs


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_several_runs(mask, n_jobs):
    runs = [image(values(8, seed=k)) for k in range(3)]
    confounds = [np.random.default_rng(k).normal(size=(8, 2)) for k in range(3)]
    masker = MultiNiftiMasker(mask, n_jobs=n_jobs).fit()
    signals = masker.transform(runs, confounds=confounds)
    for one, of_run, own in zip(signals, runs, confounds, strict=True):
        np.testing.assert_array_equal(one, NiftiMasker(mask).fit_transform(of_run, confounds=own))
    with pytest.raises(ValueError, match=r"number of confounds \(2\) unequal to number of images \(3\)\."):
        masker.transform(runs, confounds=confounds[:2])
    by_position = masker.transform_imgs(runs, confounds, [[0, 1, 2]] * 3, True, n_jobs)  # nilearn's order
    assert [one.shape for one in by_position] == [(3, masker.n_elements_)] * 3


def test_several_runs_keep_their_dtype_and_grid(mask):
    masker = MultiNiftiMasker(mask, dtype="f8").fit()
    runs = [image(values(3), FAR), image(values(3))]
    with pytest.warns(UserWarning, match="imgs are being resampled"):
        far, near = masker.transform(runs)
    with pytest.warns(UserWarning, match="imgs are being resampled"):
        alone = NiftiMasker(mask, dtype="f8").fit().transform(runs[0])
    np.testing.assert_array_equal(far, alone)
    assert near.dtype == np.float64
    np.testing.assert_array_equal(near, values(3)[mask_data()].T)


# Memory and devices


PEAK = """
import resource, sys
import numpy as np
from gpumask import NiftiMasker
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
options = dict(detrend=True, standardize="zscore_sample", high_pass=0.01, t_r=2.0, reports=False, device="cpu")
NiftiMasker(sys.argv[1], smoothing_fwhm=5, **options).fit().transform(sys.argv[2])  # what every run needs
before = peak()
signals = NiftiMasker(sys.argv[1], smoothing_fwhm=5, **options).fit().transform(sys.argv[3])
print(signals.nbytes, peak() - before)
"""


@pytest.mark.skipif(importlib.util.find_spec("resource") is None, reason="only Unix tells the peak")
def test_peak_memory_is_at_most_twice_the_result(tmp_path):
    shape = (40, 42, 40)
    paths = [tmp_path / "mask.nii", tmp_path / "few.nii", tmp_path / "run.nii"]
    save(paths[0], np.ones(shape, "u1"), AFFINE)
    data = np.random.default_rng(0).normal(100, 5, (*shape, 50)).astype("f4")
    save(paths[1], data[..., :40], AFFINE)
    save(paths[2], np.concatenate([data] * 5, axis=-1), AFFINE)
    command = [sys.executable, "-W", "ignore", "-c", PEAK, *map(str, paths)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    result, peak = map(int, out.split())
    assert result == 250 * 40 * 42 * 40 * 4
    assert peak <= 2 * result


@pytest.mark.parametrize("case", ["raw", "smoothed", "resampled", "both"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
def test_on_a_gpu(case, dtype, mask, gpu):
    options = OPTIONS | {"smoothing_fwhm": 5 if case in ("smoothed", "both") else None}
    of_run = image(values(60, dtype), FAR if case in ("resampled", "both") else AFFINE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="imgs are being resampled")
        there = NiftiMasker(mask, device="cuda", **options).fit_transform(of_run)
        here = NiftiMasker(mask, device="cpu", **options).fit_transform(of_run)
    assert there.dtype == here.dtype
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-10 if dtype == "f8" else 1e-6)
