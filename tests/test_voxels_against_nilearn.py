"""NiftiMasker against nilearn's, for a seeded grid of small random images and parameters; see `draws`."""

import re
import warnings

import nibabel as nib
import nilearn.maskers
import numpy as np
import pytest

from gpumask import NiftiMasker

from .draws import ALL_EXPLAINED, BITWISE, N_DRAWS, SCALED_AUTO, UNSIGNED, Draw, both_failed, not_compared, tolerance

# Where a draw is known to differ; see `draws`.
KNOWN = [
    BITWISE,
    SCALED_AUTO,
    UNSIGNED,
    ALL_EXPLAINED,
    (
        "values",
        lambda f: f["resampled"] and f["infinite"],
        "nilearn clips resampled values to a range that includes infinity, so it doesn't clip",
    ),
    (
        "values",
        lambda f: f["resampled"] and f["bordered"] and f["standardize"],
        "splines of zeros are rounding noise of 1e-15, which is scaled",
    ),
    (
        "dtype",
        lambda f: f["kind"] == "i8" and (f["imgs"] == "list" or f["n_volumes"] == 1),
        "nilearn turns lists of 64-bit images, and 3D ones, into 32 bits",
    ),
    (
        "dtype",
        lambda f: f["kind"] == ">f4",
        "nilearn returns float32 of another byte order as it is, as float32 or as float64, as the steps have it",
    ),
    (
        "all",
        lambda f: f["in_runs"] and (f["censored"] or not f["standardize_confounds"]),
        "nilearn wants a list of masks by run, and ignores standardize_confounds",
    ),
]


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
                "names": list(masker.get_feature_names_out()),
                "mask": np.asarray(masker.mask_img_.dataobj) != 0,
                "affine": masker.mask_img_.affine,
                "image": masker.inverse_transform(signals),
            }
        except Exception as error:
            result = error
    told = {(w.category, str(w.message)[:40]) for w in record if " covers only " not in str(w.message)}  # ours
    # NumPy's of 0 / 0, that resampling NaN is slow; what nilearn casts inside; sforms; standardize.
    inside = "Casting data from|The provided image has no sform|boolean values for|Resampling binary|Data array used to"
    return result, {w for w in told if w[0] is not RuntimeWarning and not re.match(inside, w[1])}


def draw(seed, folder):
    """A random case: images, parameters and arguments of `transform`; `facts` says what is in it."""
    random = Draw(seed)
    rng, pick, maybe = random.rng, random.pick, random.maybe
    affine, orientation = random.affine()
    shape = tuple(rng.integers(6, 10, 3).tolist())
    n_volumes = int(pick(1, 2, 5, 12, 40, 60))
    is_3d = n_volumes == 1 and maybe(0.5)
    kind = pick("i2", "u1", "i4", "f4", "f8", ">f4", ">i2", "u2", "i8", "scaled", "f4", "f8")
    values = rng.normal(20, 4, (*shape, n_volumes)) + rng.normal(0, 3, n_volumes)
    scaled = kind == "scaled"
    dtype = np.dtype("i2" if scaled else kind)
    data = (values * (10 if dtype.kind in "iu" and dtype.itemsize > 1 else 3)).clip(0, 255 if kind == "u1" else None)
    data = data.astype(dtype)
    bordered = maybe(0.5)
    if bordered:  # zeros around, for masks that are computed
        data[[0, -1]] = data[:, [0, -1]] = data[:, :, [0, -1]] = 0
    non_finite = dtype.kind == "f" and maybe(0.25)
    if non_finite:
        data.reshape(-1)[rng.integers(data.size, size=5)] = np.nan
    infinite = non_finite and maybe(0.5)
    if infinite:
        data.reshape(-1)[rng.integers(data.size)] = np.inf
    imgs = random.run(data, affine, folder / f"{seed}", is_3d=is_3d, scaled=scaled)

    same_grid = maybe(0.6)
    mask_shape, mask_affine = (shape, affine) if same_grid else random.grid_near(shape, affine)
    mask = rng.random(mask_shape) < pick(0.3, 1.0)
    mask[:2] = mask[:, -1:] = False
    mask[3, 2, 2] = True
    mask_kind = pick("box", "box", "box", "4D", "computed", "computed")
    if mask_kind == "4D":
        mask = np.stack([mask, np.ones_like(mask)], axis=-1)
    mask_img = None if mask_kind == "computed" else nib.Nifti1Image(mask.astype(pick("u1", "f4")), mask_affine)
    target = pick(None, None, None, 3, 4)
    target_affine = None
    if target:
        target_affine = np.diag([3.0, 2.8, 4.0, 1.0])[:target, :target]
        if target == 4:
            target_affine[:3, 3] = [-18, 11, 4]

    filters = maybe(0.5 if n_volumes >= 40 else 0.03)
    confounds, sample_mask = random.confounds(n_volumes), random.sample_mask(n_volumes)
    runs = rng.integers(0, 2, n_volumes) if maybe(0.2) else None
    parameters = {
        "mask_img": mask_img,
        "runs": runs,
        "smoothing_fwhm": pick(None, None, None, 4, 7.5, 0),
        "standardize": pick(None, None, "zscore_sample", "psc"),
        "standardize_confounds": maybe(0.8),
        "detrend": maybe(0.4),
        "low_pass": 0.1 if filters and maybe(0.7) else None,
        "high_pass": 0.01 if filters and maybe(0.7) else None,
        "t_r": pick(2.0, 2.0, 2.0, 0.8, 6.0) if maybe(0.95) else None,
        "high_variance_confounds": n_volumes > 1 and maybe(0.1),
        "target_affine": target_affine,
        "target_shape": (4, 5, 4) if target == 4 and maybe(0.5) else None,
        "mask_strategy": pick("background", "epi", "background", "guess"),
        "mask_args": pick(None, None, {"opening": 0}, {"connected": False, "nothing": 1}),
        "dtype": pick(None, None, None, None, "auto", "f4", "f8"),
    }
    n_kept = n_volumes if sample_mask is None else max(1, n_volumes - 3)
    facts = {
        **{name: value for name, value in parameters.items() if name != "mask_img"},
        "kind": kind,
        "stored": dtype,
        "infinite": infinite,
        "bordered": bordered,
        "resampled": bool(target) or (mask_img is not None and not same_grid),
        "mask": mask_kind,
        "n_volumes": n_volumes,
        "n_kept": n_kept if runs is None else min(np.bincount(runs)[np.unique(runs)]),
        "censored": sample_mask is not None,
        "in_runs": runs is not None,
        "n_confounds": 9 * (confounds is not None or parameters["high_variance_confounds"]),
        "butterworth": bool(parameters["low_pass"] or parameters["high_pass"]),
        "imgs": type(imgs).__name__,
        "orientation": orientation,
        "fit_to_run": mask_img is None or maybe(0.3),
    }
    arguments = {"imgs": imgs, "confounds": confounds, "sample_mask": sample_mask}
    return {"parameters": parameters, "fit_to_run": facts["fit_to_run"], "facts": facts, **arguments}


@pytest.mark.parametrize("seed", range(N_DRAWS))
def test_random_cases_equal_nilearn(seed, tmp_path):
    case = draw(seed, tmp_path)
    theirs, their_warnings = outcome(nilearn.maskers.NiftiMasker, draw(seed, tmp_path))
    ours, our_warnings = outcome(NiftiMasker, case)
    facts = case["facts"]
    skipped = not_compared(KNOWN, facts)
    if "all" in skipped or both_failed(ours, theirs, facts):
        return
    assert ours["names"] == theirs["names"], facts
    np.testing.assert_array_equal(ours["mask"], theirs["mask"], err_msg=str(facts))
    np.testing.assert_allclose(ours["affine"], theirs["affine"], rtol=1e-12, atol=1e-12, err_msg=str(facts))
    assert "dtype" in skipped or ours["signals"].dtype == theirs["signals"].dtype, facts
    assert ours["signals"].shape == theirs["signals"].shape, facts
    if "values" in skipped:
        of_zeros = {(UserWarning, "psc standardization strategy is meaningl")}
        our_warnings, their_warnings = our_warnings - of_zeros, their_warnings - of_zeros
    assert our_warnings == their_warnings, facts
    assert ours["image"].shape == theirs["image"].shape, facts
    if "values" not in skipped:
        atol = tolerance(facts, theirs["signals"])
        np.testing.assert_allclose(ours["signals"], theirs["signals"], rtol=0, atol=atol, err_msg=str(facts))
        images = [np.asarray(each["image"].dataobj) for each in (ours, theirs)]
        np.testing.assert_allclose(*images, rtol=0, atol=atol, err_msg=str(facts))
