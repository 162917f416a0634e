"""Grids, and nearest-neighbour resampling against nilearn's."""

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import resample_img

from gpumask.images.errors import ImageError
from gpumask.images.grid import Grid, resample_nearest, voxel_mapping


def affine(*voxel_sizes, origin=(0, 0, 0), rotation=None):
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag(voxel_sizes)
    matrix[:3, 3] = origin
    return matrix


def rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


def test_describes_the_image():
    grid = Grid((2, 3, 4), affine(2, -3, 0.5, rotation=rotation(0)))
    assert grid.shape == (2, 3, 4)
    assert grid.n_voxels == 24
    np.testing.assert_allclose(grid.voxel_sizes, [2, 3, 0.5], rtol=1e-14)


def test_affine_is_an_own_constant():
    mine = affine(2, 2, 2)
    grid = Grid((2, 2, 2), mine)
    mine[0, 3] = 7
    assert grid.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 3] = 7


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (np.eye(3), "has shape (3, 3), expected (4, 4)"),
        (affine(2, 2, np.nan), "holds NaN or infinite values"),
        (affine(2, 2, 2, origin=(0, np.inf, 0)), "holds NaN or infinite values"),
        (np.diag([2.0, 2, 2, 0]), "has another last row than 0, 0, 0, 1"),
        (np.diag([2.0, 2, 2, 1]) + np.outer([0, 0, 0, 1], [0.1, 0, 0, 0]), "has another last row than 0, 0, 0, 1"),
        (affine(2, 2, 2e9), "holds values beyond 1e+09 mm"),
        (affine(1e200, 1e200, 1e200), "holds values beyond 1e+09 mm"),  # the determinant overflows
        (affine(2, 2, 2, origin=(0, -3e38, 0)), "holds values beyond 1e+09 mm"),
        (affine(2, 1e-45, 2), "has voxels smaller than 1e-09 mm"),
        (affine(2, 2, 0), "is singular: its voxels have no volume"),
        (affine(2, 2, 2, rotation=np.ones((3, 3))), "is singular: its voxels have no volume"),
    ],
)
def test_unusable_affine(bad, problem):
    with pytest.raises(ImageError) as caught:
        Grid((2, 2, 2), bad, "atlas.nii")
    assert str(caught.value) == (
        f"The affine of atlas.nii {problem}. Correct the image's header (sform or qform). Got:\n{bad}"
    )


def test_tiny_voxels_are_no_singularity():
    Grid((2, 2, 2), affine(1e-4, 1e-4, 1e-4))


def test_matches():
    grid = Grid((5, 6, 7), affine(2, 2, 2, origin=(-90, 0, 0)))
    assert grid.matches(Grid((5, 6, 7), grid.affine))
    assert not grid.matches(Grid((5, 6, 8), grid.affine))
    # nilearn neither resamples nor accepts this one.
    assert grid.matches(Grid((5, 6, 7), affine(2, 2, 2, origin=(-90 + 5e-4, 0, 0))))
    # nilearn resamples this one, for the rounding of a float32 header.
    assert grid.matches(Grid((5, 6, 7), affine(2, 2, 2, origin=(-90, 1e-6, -1e-6))))
    assert not grid.matches(Grid((5, 6, 7), affine(2, 2, 2, origin=(-90 + 2e-3, 0, 0))))
    assert not grid.matches(Grid((5, 6, 7), affine(2.001, 2, 2, origin=(-90, 0, 0))))


CASES = {
    "identity": (affine(2, 2, 2, origin=(3, 4, 5)), affine(2, 2, 2, origin=(3, 4, 5))),
    "shifted by voxels": (affine(2, 2, 2), affine(2, 2, 2, origin=(4, -2, 6))),
    "shifted by half a voxel": (affine(2, 2, 2), affine(2, 2, 2, origin=(1, -1, 3))),
    "finer": (affine(3, 3, 3, origin=(-9, -9, -9)), affine(1, 1, 1, origin=(-9, -9, -9))),
    "coarser": (affine(1, 1, 1, origin=(-5, -5, -5)), affine(2, 2.5, 3, origin=(-5.5, -6, -5))),
    "anisotropic, thirds": (affine(0.7, 1.1, 3.3), affine(3, 0.9, 1.7, origin=(0.1, 0.2, 0.3))),
    "mirrored": (affine(-2, 2, 2, origin=(14, 0, 0)), affine(2, -2, 2, origin=(1, 13, 0))),
    "permuted": (affine(2, 2, 2, rotation=np.eye(3)[[2, 0, 1]]), affine(1, 1, 3)),
    "oblique source": (affine(2, 2, 2, rotation=rotation(1)), affine(2, 2, 2, origin=(-5, -5, -5))),
    "oblique target": (affine(2, 2, 2), affine(3, 3, 3, rotation=rotation(2), origin=(4, 4, 4))),
    "both oblique": (affine(2, 2, 2, rotation=rotation(3)), affine(1, 2, 3, rotation=rotation(3) @ rotation(4))),
    "same, oblique": (affine(2, 3, 2, rotation=rotation(5)), affine(2, 3, 2, rotation=rotation(5))),
    "out of view": (affine(2, 2, 2), affine(2, 2, 2, origin=(99, 0, 0))),
    "off by rounding": (affine(2, 2, 2), affine(2, 2, 2, origin=(1e-12, -1e-12, 0))),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # nilearn's, about non-finite values
@pytest.mark.parametrize("target_shape", [(7, 8, 9), (12, 5, 10), (1, 1, 1)])
@pytest.mark.parametrize("dtype", ["i2", "f4", ">f4", "u1"])
@pytest.mark.parametrize("case", CASES)
def test_nearest_equals_nilearn(case, dtype, target_shape):
    source_affine, target_affine = CASES[case]
    volume = np.random.default_rng(0).integers(1, 99, (7, 8, 9)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        volume[3, 3, 3], volume[0, 0, 0], volume[-1, -1, -1] = np.nan, np.inf, -np.inf
    before = volume.copy()
    header = nib.Nifti1Header()
    header.set_sform(source_affine, code=2)
    resampled = resample_nearest(volume, Grid(volume.shape, source_affine), Grid(target_shape, target_affine))
    np.testing.assert_array_equal(volume, before)
    assert not np.shares_memory(resampled, volume)
    assert resampled.dtype == np.dtype(dtype).newbyteorder("=")
    image = nib.Nifti1Image(volume, source_affine, header)
    how = {"interpolation": "nearest", "force_resample": True, "copy_header": True}
    if case == "out of view":
        with pytest.raises(ValueError, match="does not contain any of the data"):
            resample_img(image, target_affine, target_shape, **how)
        assert not resampled.any()
    else:
        expected = resample_img(image, target_affine, target_shape, **how)
        np.testing.assert_array_equal(resampled, np.asanyarray(expected.dataobj))


def test_nearest_on_real_atlases(data):
    atlas = nib.load(data / "atlases" / "DS01216_space-MNI152NLin6_res-2x2x2.nii.gz")
    bold = nib.load(data / "sub-02_space-bold_desc-brain_mask.nii.gz")
    volume = np.asanyarray(atlas.dataobj)
    resampled = resample_nearest(volume, Grid(atlas.shape, atlas.affine), Grid(bold.shape, bold.affine))
    expected = resample_img(
        atlas, bold.affine, bold.shape, interpolation="nearest", force_resample=True, copy_header=True
    )
    assert resampled.any()
    np.testing.assert_array_equal(resampled, np.asanyarray(expected.dataobj))


def test_mapping_is_diagonal_where_the_axes_agree():
    matrix, offset = voxel_mapping(
        Grid((4, 4, 4), affine(2, 2, 2)), Grid((4, 4, 4), affine(4, -2, 1, origin=(2, 0, 0)))
    )
    np.testing.assert_array_equal(matrix, [2, -1, 0.5])
    np.testing.assert_array_equal(offset, [1, 0, 0])
    matrix, _ = voxel_mapping(Grid((4, 4, 4), affine(2, 2, 2, rotation=rotation(0))), Grid((4, 4, 4), np.eye(4)))
    assert matrix.shape == (3, 3)
