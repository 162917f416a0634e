"""NiftiMapsMasker against nilearn's: a seeded grid of small random images and parameters, and a real atlas.

``GPUMASK_DRAWS`` sets the number of random draws (default 150).
"""

import os
import warnings

import nibabel as nib
import nilearn.maskers
import numpy as np
import pandas as pd
import pytest

from gpumask import NiftiMapsMasker

N_DRAWS = int(os.environ.get("GPUMASK_DRAWS", "150"))

# Where a draw is known to differ: (what is not compared, when, why).
KNOWN = [
    (
        "all",
        lambda f: f["butterworth"] and f["censored"],
        "nilearn inverts the indices of the kept volumes bitwise, interpolates others and returns wrong volumes",
    ),
    (
        "values",
        lambda f: f["resampled"] and f["stored"].kind == "u",
        "nilearn rounds resampled unsigned integers to integers",
    ),
    (
        "values",
        lambda f: f["n_kept"] < 2 + f["detrend"] + f["n_confounds"] + bool(f["standardize"]),
        "a trend or confounds explain so few volumes in full; nilearn leaves, or scales to variance 1, rounding noise",
    ),
    (
        "values",
        lambda f: f["negative"] and not f["allow_overlap"],
        "to find overlaps, nilearn sets the negative weights of the user's maps to 0",
    ),
    (
        "values",
        lambda f: f["twice"],
        "the cut-off for the rank in SciPy's lstsq may be lower than the rounding of two equal maps' difference",
    ),
    (
        "warnings",
        lambda f: f["keep_masked_maps"] or f["resampling_target"] == "mask",
        "nilearn announces that keep_masked_maps goes; ours tells that runs are resampled to a mask on the maps' grid",
    ),
]


def outcome(masker_class, case):
    """What comes of a case: the signals or the exception, and the warnings' classes and starts."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        try:
            masker = masker_class(**case["parameters"])
            masker.fit(case["imgs"] if case["fit_to_run"] else None)
            result = masker.transform(case["imgs"], confounds=case["confounds"], sample_mask=case["sample_mask"])
        except Exception as error:
            result = error
    told = {(w.category, str(w.message)[:40]) for w in record if " covers only " not in str(w.message)}  # ours
    if masker_class is not NiftiMapsMasker:  # NumPy's of 0 / 0, that resampling NaN is slow; what it casts inside
        told = {w for w in told if w[0] is not RuntimeWarning and not w[1].startswith("Casting data from")}
    return result, told


def draw(seed, folder):
    """A random case: images, parameters and arguments of `transform`; `facts` says what is in it."""
    rng = np.random.default_rng(seed)
    pick = lambda *options: options[rng.integers(len(options))]  # noqa: E731
    maybe = lambda p: bool(rng.random() < p)  # noqa: E731

    affine = np.diag([*(pick(2.0, 2.5, 3.0) for _ in range(3)), 1.0])
    orientation = pick("straight", "straight", "mirrored", "oblique")
    if orientation == "mirrored":
        affine[0, 0] *= -1
    if orientation == "oblique":
        affine[:2, :2] = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]) @ affine[:2, :2]
    affine[:3, 3] = [-20, 10, 5]
    shape = tuple(rng.integers(6, 10, 3).tolist())
    n_volumes = int(pick(1, 5, 12, 20, 40, 60))
    is_3d = n_volumes == 1 and maybe(0.5)
    dtype = np.dtype(pick("i2", "u1", "i4", "f4", "f8", "f8", "f8", "f8", "u2"))
    values = rng.normal(20, 4, (*shape, n_volumes)) + rng.normal(0, 3, n_volumes)
    data = values.clip(0, 255).astype(dtype)
    non_finite = dtype.kind == "f" and maybe(0.25)
    if non_finite:
        data.reshape(-1)[rng.integers(data.size, size=5)] = np.nan
    imgs = nib.Nifti1Image(data[..., 0] if is_3d else data, affine, dtype=dtype)
    if maybe(0.3):
        nib.save(imgs, folder / f"{seed}.nii.gz")
        imgs = folder / f"{seed}.nii.gz"

    n_maps = int(rng.integers(1, 7))
    same_grid = maybe(0.5)
    map_shape = shape if same_grid else tuple(rng.integers(5, 12, 3).tolist())
    map_affine = affine.copy()
    if not same_grid:
        map_affine[:3, :3] *= np.array(shape) / np.array(map_shape)
        map_affine[:3, 3] += rng.uniform(-1, 1, 3) * maybe(0.7)
    density = pick(0.2, 0.6, 1.0)
    maps = rng.random((*map_shape, n_maps)) * (rng.random((*map_shape, n_maps)) < density)
    if not_overlapping := maybe(0.2):
        maps *= np.arange(n_maps) == rng.integers(0, n_maps, (*map_shape, 1))
    negative = maybe(0.3)
    if negative:
        maps *= rng.choice([-1, 1], maps.shape)
    map_dtype = np.dtype(pick("f8", "f8", "f4", "u1" if not negative else "i2"))
    maps = (maps * (1 if map_dtype.kind == "f" else 100)).astype(map_dtype)
    twice, empty = n_maps > 1 and maybe(0.08), n_maps > 1 and maybe(0.1)
    if twice:
        maps[..., 0] = maps[..., 1]
    if empty:
        maps[..., -1] = 0
    if map_dtype.kind == "f" and maybe(0.1):
        maps.reshape(-1)[rng.integers(maps.size, size=3)] = np.nan
    maps_img = nib.Nifti1Image(maps[..., 0] if n_maps == 1 and maybe(0.5) else maps, map_affine, dtype=map_dtype)

    mask_kind = pick("none", "none", "box", "no map 0", "4D", "other grid")
    mask_img = None
    if mask_kind != "none":
        mask = np.zeros(map_shape, "u1")
        mask[1:-1, :-1, 1:] = 1
        if mask_kind == "no map 0":
            mask[maps[..., 0] != 0] = 0
        if mask_kind == "4D":
            mask = np.stack([mask, np.ones_like(mask)], axis=-1)
        mask_affine = map_affine.copy()
        if mask_kind == "other grid":
            mask_affine[:3, 3] += 0.5
        mask_img = nib.Nifti1Image(mask, mask_affine)

    filters = maybe(0.5 if n_volumes >= 40 else 0.03)
    confounds = None
    if maybe(0.4):
        confounds = rng.normal(size=(n_volumes, 3)) * [1, 10, 0.1] + [0, 5, 1]
        confounds = pick(confounds, pd.DataFrame(confounds, columns=list("abc")))
    sample_mask = None
    if maybe(0.25):
        sample_mask = np.sort(rng.choice(n_volumes, max(1, n_volumes - 3), replace=False))
    parameters = {
        "maps_img": maps_img,
        "mask_img": mask_img,
        "allow_overlap": maybe(0.5 if not_overlapping and same_grid else 0.97),
        "smoothing_fwhm": pick(None, None, None, 4, 7.5, 0),
        "standardize": pick(None, None, "zscore_sample", "psc"),
        "standardize_confounds": maybe(0.8),
        "detrend": maybe(0.4),
        "low_pass": 0.1 if filters and maybe(0.7) else None,
        "high_pass": 0.01 if filters and maybe(0.7) else None,
        "t_r": pick(2.0, 2.0, 0.8, 6.0),
        "resampling_target": pick(
            "data", "data", "maps", "mask" if mask_kind != "none" else "maps", None if same_grid else "data"
        ),
        "high_variance_confounds": n_volumes > 1 and maybe(0.1),
        "keep_masked_maps": maybe(0.15),
        "dtype": pick(None, None, None, None, "auto", "f4", "f8"),
    }
    to_regions = parameters["resampling_target"] in ("mask", "maps")
    facts = {
        **{name: value for name, value in parameters.items() if not name.endswith("_img")},
        "stored": dtype,
        "maps": map_dtype,
        "not_overlapping": not_overlapping,
        "negative": negative,
        "twice": twice,
        "empty": empty,
        "same_grid": same_grid,
        "resampled": to_regions and not (same_grid and mask_kind != "other grid"),
        "mask": mask_kind,
        "n_kept": n_volumes if sample_mask is None else max(1, n_volumes - 3),
        "non_finite": non_finite,
        "censored": sample_mask is not None,
        "n_confounds": 3 * (confounds is not None) + 5 * parameters["high_variance_confounds"],
        "butterworth": bool(parameters["low_pass"] or parameters["high_pass"]),
        "orientation": orientation,
        "n_maps": n_maps,
        "fit_to_run": maybe(0.7),
    }
    arguments = {"imgs": imgs, "confounds": confounds, "sample_mask": sample_mask}
    return {"parameters": parameters, "fit_to_run": facts["fit_to_run"], "facts": facts, **arguments}


def tolerance(facts, signals):
    """The difference that rounding may make: nilearn computes in float32 unless run or maps are float64."""
    single = signals.dtype == np.float32 or facts["maps"] != np.float64 or facts["stored"] != np.float64
    relative = (1e-5 if single else 1e-11) * (10 if facts["standardize"] else 1)
    return relative * max(1.0, np.abs(signals).max(initial=0.0))


@pytest.mark.parametrize("seed", range(N_DRAWS))
def test_random_cases_equal_nilearn(seed, tmp_path):
    theirs, their_warnings = outcome(nilearn.maskers.NiftiMapsMasker, draw(seed, tmp_path))
    ours, our_warnings = outcome(NiftiMapsMasker, case := draw(seed, tmp_path))
    facts = case["facts"]
    skipped = {what for what, applies, _ in KNOWN if applies(facts)}
    if "all" in skipped:
        return
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        assert type(ours).__name__ == type(theirs).__name__, (facts, ours, theirs)
        if "padlen" not in str(theirs):  # SciPy's message, where ours says how many volumes are needed
            assert str(ours)[:30] == str(theirs)[:30], (facts, ours, theirs)
        return
    assert ours.dtype == theirs.dtype, facts
    assert ours.shape == theirs.shape, facts
    if "warnings" not in skipped:
        ours_only = {w for w in our_warnings ^ their_warnings if not w[1].startswith("Non-finite values")}
        assert not ours_only, (facts, ours_only)
    if "values" not in skipped:
        atol = tolerance(facts, theirs)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=str(facts))
