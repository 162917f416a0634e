"""NiftiMapsMasker against nilearn's, for a seeded grid of small random images and parameters; see `draws`."""

import warnings

import nibabel as nib
import nilearn.maskers
import numpy as np
import pytest

from gpumask import NiftiMapsMasker

from .draws import ALL_EXPLAINED, BITWISE, N_DRAWS, UNSIGNED, Draw, both_failed, mask_on, not_compared

# Where a draw is known to differ; see `draws`.
KNOWN = [
    BITWISE,
    UNSIGNED,
    ALL_EXPLAINED,
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
    random = Draw(seed)
    rng, pick, maybe = random.rng, random.pick, random.maybe
    affine, orientation = random.affine()
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
    map_shape, map_affine = (shape, affine) if same_grid else random.grid_near(shape, affine, shift=maybe(0.7))
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
    mask_img = mask_on(map_shape, map_affine, mask_kind, maps[..., 0] != 0)

    filters = maybe(0.5 if n_volumes >= 40 else 0.03)
    confounds, sample_mask = random.confounds(n_volumes), random.sample_mask(n_volumes)
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
        "n_confounds": (4 if isinstance(confounds, list) else 3) * (confounds is not None)
        + 5 * parameters["high_variance_confounds"],
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
    skipped = not_compared(KNOWN, facts)
    if "all" in skipped or both_failed(ours, theirs, facts):
        return
    assert ours.dtype == theirs.dtype, facts
    assert ours.shape == theirs.shape, facts
    if "warnings" not in skipped:
        ours_only = {w for w in our_warnings ^ their_warnings if not w[1].startswith("Non-finite values")}
        assert not ours_only, (facts, ours_only)
    if "values" not in skipped:
        atol = tolerance(facts, theirs)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=str(facts))
