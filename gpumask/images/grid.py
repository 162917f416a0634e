"""The voxel grid of an image (shape and affine), and nearest-voxel resampling of label and mask volumes."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import scipy

from gpumask.images.errors import ImageError

_MOST = 1e9  # mm: a thousand kilometres. With far larger or smaller numbers, products overflow and inverses are noise.
_MOST_VOXELS = 2**31 - 1  # of a requested grid: the indices of voxels have 32 bits


@dataclass(frozen=True, eq=False)
class Grid:
    """Positions of an image's voxels.

    Parameters
    ----------
    shape : tuple of 3 int
        Number of voxels along x, y and z.
    affine : numpy.ndarray, shape (4, 4), float64
        Voxel indices to world coordinates in mm. Copied and made read-only.
    name : str, optional
        Name of the image in messages.

    Attributes
    ----------
    elements : str
        What has a position, for messages.

    Raises
    ------
    ImageError
        If the affine isn't 4 x 4, isn't finite, doesn't end in 0, 0, 0, 1, is singular, holds values beyond 1e9 mm or
        has voxels below 1e-9 mm.
    """

    elements: ClassVar[str] = "voxels"

    shape: tuple[int, int, int]
    affine: np.ndarray
    name: str = field(default="image", repr=False)

    def __post_init__(self):
        affine = np.array(self.affine, dtype=np.float64)
        problem = None
        if affine.shape != (4, 4):
            problem = f"has shape {affine.shape}, expected (4, 4)"
        elif not np.isfinite(affine).all():
            problem = "holds NaN or infinite values"
        # 4 * np.eye(4), as in quick scripts, is accepted as in nilearn.
        elif np.abs(affine[3, :3]).max() > 1e-5 or not 1e-3 < affine[3, 3] < 1e3:
            problem = "has another last row than 0, 0, 0, 1"
        elif np.abs(affine).max() > _MOST:
            problem = f"holds values beyond {_MOST:g} mm"
        elif abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(np.linalg.norm(affine[:3, :3], axis=0)):
            problem = "is singular: its voxels have no volume"
        elif np.linalg.norm(affine[:3, :3], axis=0).min() < 1 / _MOST:
            problem = f"has voxels smaller than {1 / _MOST:g} mm"
        if problem:
            msg = f"The affine of {self.name} {problem}. Correct the image's header (sform or qform). Got:\n{affine}"
            raise ImageError(msg)
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def key(self) -> tuple[tuple[int, ...], bytes]:
        """Hashable value that grids with the same positions share."""
        return self.shape, self.affine.tobytes()

    @property
    def description(self) -> str:
        """Where the voxels are, in words."""
        return "a {} x {} x {} grid".format(*self.shape)

    @property
    def n_voxels(self) -> int:
        """Number of voxels of one volume."""
        return math.prod(self.shape)

    @property
    def voxel_sizes(self) -> np.ndarray:
        """Distance in mm between neighbouring voxels along x, y and z: ndarray of float64, shape (3,)."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    def matches(self, other: "Grid") -> bool:
        """Whether voxels with equal indices lie at the same position, up to the rounding of image headers.

        Shapes must be equal, and affines must agree within 1e-5 relative or 1e-5 mm. This test decides both whether to
        resample and whether to accept an image. nilearn has two tests: it doesn't resample affines that agree within
        1e-5 relative, but then rejects those that differ by more than 1.2e-4. The relative tolerance here is nilearn's,
        so images that nilearn uses unchanged aren't resampled. The absolute tolerance (nilearn: 1e-8) accepts zeros
        that became 1e-7 when a header's float32 quaternion was converted. nilearn resamples such images, and loses the
        outermost voxels to coordinates like -1e-8.
        """
        return self.shape == other.shape and np.allclose(self.affine, other.affine, rtol=1e-5, atol=1e-5)


def target_grid(source: Grid, affine: np.ndarray, shape: Sequence[int] | None = None, name: str = "target") -> Grid:
    """Return the grid that nilearn resamples an image to, given its parameters `target_affine` and `target_shape`.

    Parameters
    ----------
    source : Grid
        Grid of the image.
    affine : array-like, shape (4, 4) or (3, 3)
        A 3 x 3 matrix has no origin: the grid starts at the corner of the box that holds the image.
    shape : sequence of 3 int, optional
        If None, the grid extends to the far corner of the image's box.
    name : str
        Name of the grid in messages.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the affine isn't an invertible 4 x 4 or 3 x 3 matrix. It is a ValueError.
    ValueError
        If the shape doesn't have three numbers, or comes with a 3 x 3 affine, if the image lies outside the grid, or
        if the grid has more than 2**31 - 1 voxels.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if shape is not None and len(shape) != 3:
        msg = f"The shape specified should be the shape of the 3D grid, and thus of length 3. {shape} was specified."
        raise ValueError(msg)
    if shape is not None and not all(isinstance(n, int | np.integer) and n > 0 for n in shape):
        msg = f"'target_shape' must hold three whole numbers of 1 or more, got {shape}."
        raise ValueError(msg)
    if shape is not None and matrix.shape == (3, 3):
        msg = (
            "Given target shape without anchor vector: 'target_affine' shape should be (4, 4) and not (3, 3). "
            "Pass a 4 x 4 affine, or no target_shape."
        )
        raise ValueError(msg)
    if matrix.shape not in ((3, 3), (4, 4)) or not np.isfinite(matrix).all() or not np.linalg.det(matrix):
        msg = f"'target_affine' must be an invertible matrix of shape (4, 4) or (3, 3), got:\n{affine}"
        raise np.linalg.LinAlgError(msg)
    full = np.eye(4)
    full[: len(matrix), : len(matrix)] = matrix
    corners = np.array(list(itertools.product(*((0.0, n - 1.0) for n in source.shape), (1.0,))))
    inside = np.dot(np.linalg.inv(full).dot(source.affine), corners.T)[:3]
    low, high = inside.min(axis=1), inside.max(axis=1)
    if matrix.shape == (3, 3):
        full[:3, 3] = matrix.dot(low)
        high = high - low
    if (high < 0).any():
        msg = (
            "The field of view given by the target affine does not contain any of the data. "
            f"The data's corners have the target voxels {low.tolist()} to {high.tolist()}."
        )
        raise ValueError(msg)
    x, y, z = (int(n) for n in (np.ceil(high) + 1 if shape is None else shape))
    if x * y * z > _MOST_VOXELS:
        msg = (
            f"The grid of 'target_affine' has {x} x {y} x {z} voxels, expected at most {_MOST_VOXELS:,}. "
            "Choose larger voxels, or a smaller target_shape."
        )
        raise ValueError(msg)
    return Grid((x, y, z), full, name)


def voxel_mapping(source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the affine map from target voxel indices to source voxel coordinates, rounded as in nilearn.

    Parameters
    ----------
    source, target : Grid

    Returns
    -------
    matrix : numpy.ndarray, float64, shape (3, 3), or (3,) where it is diagonal
        With a (3,) matrix, coordinates are ``(k + offset / matrix) * matrix``, with a (3, 3) one
        ``offset + matrix @ k``, as in `scipy.ndimage.affine_transform`. Both differ only in the last bit, but this bit
        decides which voxels lie outside the field of view.
    offset : numpy.ndarray, float64, shape (3,)
        In source voxels.
    """
    if np.array_equal(source.affine, target.affine):
        return np.ones(3), np.zeros(3)
    transform = np.dot(scipy.linalg.inv(source.affine), target.affine)
    matrix, offset = transform[:3, :3], transform[:3, 3]
    diagonal = np.diag(matrix)
    return (diagonal.copy() if np.array_equal(np.diag(diagonal), matrix) else matrix), offset


def resample_nearest(volume: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Resample labels or a mask to the nearest voxels.

    Equals ``nilearn.image.resample_img(interpolation="nearest")`` bit for bit, including the borders: target voxels
    become 0 if their centre lies outside the outermost source voxel centres, and matching grids give a copy. But a
    target entirely outside the source becomes all 0, which is an error in nilearn.

    Parameters
    ----------
    volume : numpy.ndarray, shape `source.shape`, real
        Infinite values become NaN, as in nilearn, unless the grids match.
    source, target : Grid

    Returns
    -------
    numpy.ndarray, shape `target.shape`, Fortran order
        A new array of the volume's dtype, in native byte order.
    """
    dtype = volume.dtype.newbyteorder("=")
    if source.matches(target):
        return np.array(volume, dtype=dtype, order="F")
    matrix, offset = voxel_mapping(source, target)
    resampled = np.zeros(target.shape, dtype=dtype, order="F")
    if matrix.ndim == 2:
        scipy.ndimage.affine_transform(volume, matrix, offset, target.shape, resampled, order=0)
    else:
        # The axes are parallel, so three look-up tables replace one coordinate per voxel.
        coordinates = [(np.arange(n) + b / a) * a for n, a, b in zip(target.shape, matrix, offset, strict=True)]
        inside = [(c >= 0) & (c <= n - 1) for c, n in zip(coordinates, source.shape, strict=True)]
        nearest = [np.floor(c[k] + 0.5).astype(np.intp) for c, k in zip(coordinates, inside, strict=True)]
        resampled[np.ix_(*inside)] = volume[np.ix_(*nearest)]
    if resampled.dtype.kind == "f":
        resampled[np.isinf(resampled)] = np.nan
    return resampled
