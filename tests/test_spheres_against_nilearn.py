"""The masker of spheres against nilearn's, on random images and parameters; see `draws`."""

import re
import warnings
from functools import partial

import nibabel as nib
import nilearn.maskers
import nilearn.masking
import numpy as np
import pytest
from nilearn.maskers.nifti_spheres_masker import apply_mask_and_get_affinity

from gpumask import NiftiSpheresMasker
from gpumask.engine.spheres import SphereRegions
from gpumask.images.grid import Grid

from .draws import ALL_EXPLAINED, BITWISE, N_DRAWS, SCALED_AUTO, both_failed, not_compared, tolerance
from .test_against_nilearn import draw

OF_LABELS = ("labels_img", "background_label", "labels", "resampling_target", "strategy", "keep_masked_labels")

# Where a draw is known to differ; see `draws`.
KNOWN = [
    BITWISE,
    SCALED_AUTO,
    ALL_EXPLAINED,
    (
        "all",
        lambda f: f["imgs"] == "list" and f["dtype"] == "auto",
        'nilearn fails with dtype="auto" on lists of images: a TypeError',
    ),
    ("all", lambda f: f["mask"] == "4D", "nilearn accepts a 4D mask in fit, and fails in transform"),
    ("dtype", lambda f: f["kind"] == ">f4", "nilearn returns signals in the byte order of the file"),
]
NON_FINITE = "Non-finite values detected. "
THEIR_NON_FINITE = (NON_FINITE, "The imgs you have fed", "NaNs or infinite values are")


def spheres(rng, affine, shape):
    """Random seeds and a radius, often with voxels at exactly the radius or halfway between voxels."""
    n = int(rng.integers(1, 6))
    voxels = rng.uniform(-0.4, np.array(shape) - 0.6, (n, 3))
    at = rng.integers(4)
    voxels = [voxels, voxels, np.round(voxels), np.round(voxels * 2) / 2][at]
    seeds = voxels @ affine[:3, :3].T + affine[:3, 3]
    if at == 0:
        seeds = np.round(seeds)
    size = float(np.linalg.norm(affine[:3, 0]))
    radius = [None, 0, size, 2 * size, size * 2**0.5, 4.0, 7.5, 0.1][rng.integers(8)]
    return [seeds, seeds.tolist(), [tuple(seed) for seed in seeds]][rng.integers(3)], radius


def sphere_case(seed, folder):
    case = draw(seed, folder)
    rng = np.random.default_rng([seed, 1])
    imgs = case["imgs"]
    first = imgs[0] if isinstance(imgs, list) else imgs if isinstance(imgs, nib.Nifti1Image) else nib.load(imgs)
    seeds, radius = spheres(rng, first.affine, first.shape[:3])
    parameters = {name: value for name, value in case["parameters"].items() if name not in OF_LABELS}
    parameters |= {"seeds": seeds, "radius": radius, "allow_overlap": bool(rng.random() < 0.8)}
    case["facts"]["truncated"] = case["facts"]["stored"].kind in "iu" and parameters["smoothing_fwhm"] is None
    return case | {"parameters": parameters}


def as_floats(imgs):
    if isinstance(imgs, list):
        return [as_floats(img) for img in imgs]
    img = imgs if isinstance(imgs, nib.Nifti1Image) else nib.load(imgs)
    return nib.Nifti1Image(np.asarray(img.dataobj, np.float64), img.affine, dtype=np.float64)


def painted(masker, signals):
    """nilearn's `inverse_transform`, with the spheres of its `transform`: its own lack the nearest voxel."""
    mask_img = masker.mask_img_
    blank = nib.Nifti1Image(np.zeros((*mask_img.shape, 1), "f4"), mask_img.affine)
    adjacency = apply_mask_and_get_affinity(masker.seeds_, blank, masker.radius, masker.allow_overlap, mask_img)[1]
    shares = adjacency.toarray() / np.maximum(adjacency.sum(axis=0), 1)
    return nilearn.masking.unmask(np.asarray(signals @ shares).ravel(), mask_img)


def outcome(masker_class, case, imgs):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        try:
            masker = masker_class(**case["parameters"])
            masker.fit(imgs if case["fit_to_run"] else None)
            signals = masker.transform(imgs, confounds=case["confounds"], sample_mask=case["sample_mask"])
            names = list(masker.get_feature_names_out())
            back = None
            if masker.mask_img_ is not None:
                paint = masker.inverse_transform if masker_class is NiftiSpheresMasker else partial(painted, masker)
                back = paint(np.arange(masker.n_elements_) + 0.5)
        except Exception as error:
            signals, names, back = error, None, None
    told = {str(w.message)[:28] for w in record if w.category is not FutureWarning}
    if masker_class is not NiftiSpheresMasker:  # NumPy's of 0 / 0, that resampling NaN is slow; what it casts inside
        told = {t for t in told if not t.startswith(("invalid value", "divide by", "Casting data", *THEIR_NON_FINITE))}
    if isinstance(signals, Exception):
        return signals, told
    return (signals, names, masker.seeds_, back), told


@pytest.mark.parametrize("seed", range(N_DRAWS // 2))
def test_random_cases_equal_nilearn(seed, tmp_path):
    case, theirs_case = sphere_case(seed, tmp_path), sphere_case(seed, tmp_path)
    facts, imgs = case["facts"], theirs_case["imgs"]
    skipped = not_compared(KNOWN, facts)
    if "all" in skipped:
        return
    truncated, _ = outcome(nilearn.maskers.NiftiSpheresMasker, theirs_case, imgs) if facts["truncated"] else (None, ())
    if facts["truncated"]:  # nilearn truncates means to integers
        imgs = as_floats(imgs)
    theirs, their_warnings = outcome(nilearn.maskers.NiftiSpheresMasker, theirs_case, imgs)
    ours, our_warnings = outcome(NiftiSpheresMasker, case, case["imgs"])
    if both_failed(ours, theirs, facts, 25):
        return
    assert our_warnings - {NON_FINITE} == their_warnings, facts
    assert ours[1:3] == theirs[1:3]
    assert ours[0].shape == theirs[0].shape, facts
    if "dtype" not in skipped:
        assert ours[0].dtype == (truncated or theirs)[0].dtype, facts
    if "values" not in skipped:
        atol = max(tolerance(facts, theirs[0]), tolerance(facts, ours[0]))
        np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=atol, err_msg=str(facts))
    if theirs[3] is not None:
        np.testing.assert_allclose(ours[3].get_fdata(), theirs[3].get_fdata(), rtol=1e-6)
        np.testing.assert_array_equal(ours[3].affine, theirs[3].affine)


@pytest.mark.parametrize("seed", range(N_DRAWS))
def test_spheres_have_nilearns_voxels(seed):
    rng = np.random.default_rng(seed)
    several = rng.choice([1, 1.5, 2, 2.4, 2.7, 3, 3.3], 3)
    sizes = several if rng.random() < 0.5 else np.repeat(several[:1], 3)
    affine = np.diag([*sizes, 1.0])
    if rng.random() < 0.3:
        affine[0, 0] *= -1
    if rng.random() < 0.3:
        cos, sin = np.cos(0.7), np.sin(0.7)
        affine[:2, :2] = np.array([[cos, -sin], [sin, cos]]) @ affine[:2, :2]
    shape = tuple(rng.integers(5, 16, 3).tolist())
    # In half of the cases, the origin of mm lies inside: truncating makes cells around it 2 mm wide.
    affine[:3, 3] = -affine[:3, :3] @ np.array(shape) / 2 if rng.random() < 0.5 else rng.choice([-20.0, -13.7, 0.5], 3)
    seeds, radius = spheres(rng, affine, shape)
    mask = (rng.random(shape) < rng.choice([0.3, 0.9])) if rng.random() < 0.5 else None
    grid = Grid(shape, affine)
    mask_img = None if mask is None else nib.Nifti1Image(mask.astype("u1"), affine)
    coordinates, radii = np.array(seeds, dtype=float), [radius] * len(seeds)
    regions = SphereRegions(coordinates, radii, True, mask, None if mask is None else grid)
    run = nib.Nifti1Image(np.zeros((*shape, 1), "f4"), affine)
    try:
        rows = apply_mask_and_get_affinity(seeds, run, radius, True, mask_img)[1].rows
    except ValueError as empty:
        with pytest.raises(ValueError, match=rf"^{re.escape(str(empty))}\. No voxel of image"):
            regions.on(grid, "data", "found")
        return
    voxels = np.arange(np.prod(shape)).reshape(shape, order="F").ravel(order="C")
    voxels = voxels if mask is None else voxels[mask.ravel(order="C")]
    on_grid = regions.on(grid, "data", "found")
    ours = np.split(on_grid.segments.indices, on_grid.segments.offsets[1:-1])
    assert [part.tolist() for part in ours] == [np.sort(voxels[row]).tolist() for row in rows]
