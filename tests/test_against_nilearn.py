"""The masker against nilearn's: a real run, and a seeded grid of small random images and parameters; see `draws`."""

import re
import warnings

import nibabel as nib
import nilearn.maskers
import numpy as np
import pandas as pd
import pytest

from gpumask import NiftiLabelsMasker

from .draws import (
    ALL_EXPLAINED,
    BITWISE,
    N_DRAWS,
    SCALED_AUTO,
    UNSIGNED,
    Draw,
    both_failed,
    mask_on,
    not_compared,
    save,
    tolerance,
)

# Where a draw is known to differ; see `draws`.
KNOWN = [
    BITWISE,
    SCALED_AUTO,
    (
        "all",
        lambda f: f["background"] != 0 and f["mask"] != "none" and f["their error"] == NO_LABEL,
        "nilearn compares with 0, not with background_label, to see whether the mask leaves a region",
    ),
    UNSIGNED,
    ALL_EXPLAINED,
    ("atlas", lambda f: f["labels"] == "half", "nilearn truncates the region_atlas_ to integers"),
    (
        "names",
        lambda f: f["background"] != 0 and not f["same_grid"] and f["resampling_target"] == "data",
        "voxels from outside the label image are 0, a region if the background is another; nilearn has no name for it",
    ),
]
NON_FINITE = (UserWarning, "Non-finite values detected. These values")
NO_LABEL = "No label left after applying mask to the labels image."


def outcome(masker_class, case):
    """What comes of a case: the result's properties or the exception, and the warnings' classes and starts."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        try:
            masker = masker_class(**case["parameters"])
            masker.fit(case["imgs"] if case["fit_to_run"] else None)
            signals = masker.transform(case["imgs"], confounds=case["confounds"], sample_mask=case["sample_mask"])
            result = {
                "signals": signals,
                "names": masker.get_feature_names_out(),
                "labels": masker.labels_,
                "ids": masker.region_ids_,
                "atlas": np.asarray(masker.region_atlas_.dataobj),
            }
        except Exception as error:
            result = error
    told = {(w.category, str(w.message)[:40]) for w in record}
    if masker_class is not NiftiLabelsMasker:  # NumPy's of 0 / 0, that resampling NaN is slow; what it casts inside
        told = {w for w in told if w[0] is not RuntimeWarning and not w[1].startswith("Casting data from")}
    return result, told


def draw(seed, folder):
    """A random case: images, parameters and arguments of `transform`; `facts` says what is in it."""
    random = Draw(seed)
    rng, pick, maybe = random.rng, random.pick, random.maybe
    affine, orientation = random.affine()
    shape = tuple(rng.integers(6, 10, 3).tolist())
    n_volumes = int(pick(1, 2, 5, 12, 40, 60))
    is_3d = n_volumes == 1 and maybe(0.5)

    kind = pick("i2", "u1", "i4", "f4", "f8", ">f4", ">i2", "u2", "scaled", "f4", "f8")
    values = rng.normal(20, 4, (*shape, n_volumes)) + rng.normal(0, 3, n_volumes)
    values[..., rng.integers(n_volumes)] += 3
    scaled = kind == "scaled"
    dtype = np.dtype("i2" if scaled else kind)
    data = (values * (10 if dtype.kind in "iu" and dtype.itemsize > 1 else 3)).clip(0, 255 if kind == "u1" else None)
    data = data.astype(dtype)
    non_finite = dtype.kind == "f" and maybe(0.25)
    if non_finite:
        data.reshape(-1)[rng.integers(data.size, size=5)] = np.nan
        data.reshape(-1)[rng.integers(data.size)] = np.inf
    imgs = random.run(data, affine, folder / f"{seed}", is_3d=is_3d, scaled=scaled)

    n_regions = int(rng.integers(1, 7))
    same_grid = maybe(0.6)
    label_shape, label_affine = (shape, affine) if same_grid else random.grid_near(shape, affine)
    regions = rng.integers(0, n_regions + 1, [-(-n // 3) for n in label_shape])
    regions = regions.repeat(3, 0).repeat(3, 1).repeat(3, 2)[tuple(slice(n) for n in label_shape)]
    regions.flat[:n_regions] = np.arange(1, n_regions + 1)
    label_kind = pick("i2", "i2", "f4", "f8", "u2", "negative", "half")
    numbers = np.concatenate([[0], np.sort(rng.choice(np.arange(1, 400), n_regions, replace=False))])
    if label_kind == "negative":
        numbers[1:] -= 200
        numbers[numbers == 0] = 0
    if label_kind == "half":
        numbers = numbers + 0.5 * (numbers > 0)
    label_dtype = {"negative": "i4", "half": "f8"}.get(label_kind, label_kind)
    background = pick(0, 0, 0, 0, 999, numbers[-1].item())
    labels_img = nib.Nifti1Image(numbers[regions].astype(label_dtype), label_affine)

    mask_kind = pick("none", "none", "box", "no region 1", "4D", "other grid")
    mask_img = mask_on(label_shape, label_affine, mask_kind, regions == 1)

    filters = maybe(0.5 if n_volumes >= 40 else 0.03)
    confounds, sample_mask = random.confounds(n_volumes), random.sample_mask(n_volumes)
    parameters = {
        "labels_img": labels_img,
        "background_label": background,
        "mask_img": mask_img,
        "labels": pick(None, None, None, [f"region {k}" for k in range(n_regions - 1)], [*"abcdefghi"]),
        "smoothing_fwhm": pick(None, None, None, 4, 7.5, 0),
        "standardize": pick(None, None, "zscore_sample", "psc"),
        "standardize_confounds": maybe(0.8),
        "detrend": maybe(0.4),
        "low_pass": 0.1 if filters and maybe(0.7) else None,
        "high_pass": 0.01 if filters and maybe(0.7) else None,
        "t_r": pick(2.0, 2.0, 2.0, 0.8, 6.0) if maybe(0.95) else None,
        "resampling_target": pick("data", "data", "labels", "labels", None if same_grid or maybe(0.1) else "data"),
        "strategy": pick("mean", "mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation"),
        "high_variance_confounds": n_volumes > 1 and maybe(0.1),
        "keep_masked_labels": maybe(0.15),
        "dtype": pick(None, None, None, None, "auto", "f4", "f8"),
    }
    facts = {
        **{name: value for name, value in parameters.items() if not name.endswith("_img")},
        "kind": kind,
        "stored": dtype,
        "non_finite": non_finite,
        "same_grid": same_grid,
        "resampled": not same_grid and parameters["resampling_target"] == "labels",
        "mask": mask_kind,
        "background": background,
        "labels": label_kind,
        "fractional": bool(np.any(numbers % 1)),
        "n_regions": n_regions,
        "n_volumes": n_volumes,
        "n_kept": n_volumes if sample_mask is None else max(1, n_volumes - 3),
        "censored": sample_mask is not None,
        "n_confounds": 9 * (confounds is not None or parameters["high_variance_confounds"]),
        "butterworth": bool(parameters["low_pass"] or parameters["high_pass"]),
        "imgs": type(imgs).__name__,
        "orientation": orientation,
        "fit_to_run": maybe(0.7),
    }
    arguments = {"imgs": imgs, "confounds": confounds, "sample_mask": sample_mask}
    return {"parameters": parameters, "fit_to_run": facts["fit_to_run"], "facts": facts, **arguments}


@pytest.mark.parametrize("seed", range(N_DRAWS))
def test_random_cases_equal_nilearn(seed, tmp_path):
    case = draw(seed, tmp_path)
    theirs, their_warnings = outcome(nilearn.maskers.NiftiLabelsMasker, draw(seed, tmp_path))
    ours, our_warnings = outcome(NiftiLabelsMasker, case)
    facts = case["facts"] | {"their error": str(theirs)}
    skipped = not_compared(KNOWN, facts)
    if "all" in skipped or both_failed(ours, theirs, facts):
        return
    for part in {"names", "labels", "ids"} - skipped:
        assert ours[part] == theirs[part], (part, facts)
    assert ours["signals"].dtype == theirs["signals"].dtype, facts
    assert ours["signals"].shape == theirs["signals"].shape, facts
    if facts["non_finite"]:  # nilearn warns of voxels that are in no region too, and not if it smooths or resamples
        our_warnings, their_warnings = our_warnings - {NON_FINITE}, their_warnings - {NON_FINITE}
    own = {(kind, text) for kind, text in our_warnings if re.match(r"\d+ of \d+ labels in ", text)}  # aren't whole
    assert bool(own) == facts["fractional"], facts
    assert our_warnings - own == their_warnings, facts
    if "values" not in skipped:
        atol = tolerance(facts, theirs["signals"])
        np.testing.assert_allclose(ours["signals"], theirs["signals"], rtol=0, atol=atol, err_msg=str(facts))
    if "atlas" not in skipped:
        np.testing.assert_array_equal(ours["atlas"], theirs["atlas"], err_msg=str(facts))


# A real run


RUN = "sub-02_task-oneback_run-1"
NATIVE_ATLAS = "sub-02_space-bold_atlas-Schaefer400TianS4_dseg.nii.gz"
MNI_ATLAS = "atlases/Schaefer2018_100Parcels_7Networks_order_Tian_Subcortex_S1_MNI152NLin6Asym_2mm.nii.gz"
MOTION_24 = [
    f"{kind}_{axis}{form}"
    for kind in ("trans", "rot")
    for axis in "xyz"
    for form in ("", "_derivative1", "_power2", "_derivative1_power2")
]
CLEANING = {"detrend": True, "low_pass": 0.08, "high_pass": 0.01, "t_r": 2.0, "standardize": "zscore_sample"}


def both(run, confounds=None, sample_mask=None, **parameters):
    """Signals by gpumask and by nilearn of a run that both are fitted to."""
    signals = []
    for masker_class in (NiftiLabelsMasker, nilearn.maskers.NiftiLabelsMasker):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of regions that are lost, and casts
            masker = masker_class(**{"standardize": None, **parameters})
            signals.append(masker.fit_transform(run, confounds=confounds, sample_mask=sample_mask))
    assert signals[0].shape == signals[1].shape
    assert signals[0].dtype == signals[1].dtype == np.float64
    return signals


@pytest.fixture
def native(data):
    return data / f"{RUN}_bold.nii.gz"


@pytest.fixture
def mni(data):
    return data / f"{RUN}_space-MNI152NLin6Asym_res-3_desc-preproc_bold.nii.gz"


@pytest.fixture
def confounds(data):
    table = pd.read_csv(data / f"{RUN}_desc-confounds_timeseries.tsv", sep="\t")
    others = [name for name in table if name.startswith(("t_comp_cor", "cosine"))]  # it has no csf or white_matter
    return table[[*MOTION_24, "global_signal", *others]].fillna(0)


def first_volumes(path, n, folder):
    """File with the first `n` volumes, as stored: integers that the header scales."""
    img = nib.load(path)
    short = nib.Nifti1Image(img.dataobj.get_unscaled()[..., :n], img.affine, img.header)
    save(short, folder / "short.nii", img.dataobj.slope, img.dataobj.inter)
    return folder / "short.nii"


def test_whole_real_run_in_native_space(data, native):
    mask = data / "sub-02_space-bold_desc-brain_mask.nii.gz"
    ours, theirs = both(native, labels_img=data / NATIVE_ATLAS, mask_img=mask)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_whole_real_run_in_native_space_smoothed_and_cleaned(data, native, confounds):
    ours, theirs = both(native, confounds, labels_img=data / NATIVE_ATLAS, smoothing_fwhm=6, **CLEANING)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("smoothing_fwhm", [None, 6])
def test_real_run_in_mni_space_cleaned(data, mni, confounds, tmp_path, smoothing_fwhm):
    run = first_volumes(mni, 80, tmp_path)
    ours, theirs = both(run, confounds[:80], labels_img=data / MNI_ATLAS, smoothing_fwhm=smoothing_fwhm, **CLEANING)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_real_run_scrubbed_in_percent(data, native, confounds, tmp_path):
    run = first_volumes(native, 60, tmp_path)
    sample_mask = np.flatnonzero(np.arange(60) % 7)
    options = {"labels_img": data / NATIVE_ATLAS, "detrend": True, "standardize": "psc"}
    ours, theirs = both(run, confounds[:60], sample_mask, **options)
    assert ours.shape[0] == sample_mask.size
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("smoothing_fwhm", [None, 5])
@pytest.mark.parametrize("strategy", ["mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation"])
def test_strategies_on_a_real_run(data, mni, tmp_path, strategy, smoothing_fwhm):
    run = first_volumes(mni, 5, tmp_path)
    ours, theirs = both(run, labels_img=data / MNI_ATLAS, strategy=strategy, smoothing_fwhm=smoothing_fwhm)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * np.abs(theirs).max())


@pytest.mark.parametrize("space", ["mni", "native"], ids=["axis-aligned", "oblique"])
def test_real_run_resampled_to_labels(data, space, tmp_path, request):
    run = first_volumes(request.getfixturevalue(space), 4, tmp_path)
    ours, theirs = both(run, labels_img=data / MNI_ATLAS, resampling_target="labels")
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * np.abs(theirs).max())
