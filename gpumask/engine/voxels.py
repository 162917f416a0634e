"""The voxels of a mask as regions of one voxel each."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np

from gpumask.engine.regions import RegionsOnGrid
from gpumask.images.grid import Grid
from gpumask.kernels.segments import Segments


@dataclass(frozen=True, eq=False)
class VoxelsOnGrid(RegionsOnGrid):
    """The voxels of a mask, in the C order of their indices x, y, z, as nilearn has them."""

    mask: np.ndarray

    @cached_property
    def image(self) -> nib.Nifti1Image:
        """The mask: int8."""
        return nib.Nifti1Image(self.mask.astype(np.int8), self.grid.affine)

    @cached_property
    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """One voxel each, inside."""
        return np.ones(len(self.ids), np.int64), np.ones(len(self.ids), np.int64)


@dataclass(frozen=True, eq=False)
class VoxelRegions:
    """The voxels of a mask.

    Attributes
    ----------
    mask : ndarray of bool, shape (x, y, z)
    grid : Grid
    """

    mask: np.ndarray
    grid: Grid

    @cached_property
    def identity(self) -> str:
        """Hash of mask and grid."""
        digest = hashlib.blake2b(repr(self.mask.shape).encode(), digest_size=16)
        digest.update(np.packbits(self.mask).tobytes())
        digest.update(self.grid.affine.tobytes())
        return digest.hexdigest()

    def on(self, grid: Grid, target: str | None, keep: str) -> VoxelsOnGrid:
        """Return the voxels on the mask's grid, to which runs of other grids are resampled.

        Parameters
        ----------
        grid : Grid
            Grid of the runs.
        target, keep
            Unused: runs are always resampled to the mask, and every voxel has a column.
        """
        inside = np.flatnonzero(self.mask.ravel(order="C"))
        x, y, z = np.unravel_index(inside, self.mask.shape)
        indices = np.ravel_multi_index((z, y, x), self.mask.shape[::-1]).astype(np.int32)
        segments = Segments.trusted(indices, np.arange(len(indices) + 1))
        matches = self.grid.matches(grid)
        return VoxelsOnGrid(
            grid, grid if matches else self.grid, segments, inside, () if matches else ("images",), [], self.mask
        )
