"""The voxels of a mask as regions of one voxel each."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np

from gpumask.engine.regions import RegionsOnGrid, check_overlap
from gpumask.images.grid import Grid
from gpumask.kernels.segments import Segments


@dataclass(frozen=True, eq=False)
class VoxelsOnGrid(RegionsOnGrid):
    """The voxels of a mask, in the C order of their indices x, y, z, as nilearn has them."""

    mask: np.ndarray
    share: float  # of the voxels, in the field of view of the runs

    @property
    def extent(self) -> tuple[float, str]:
        """See `RegionsOnGrid`."""
        return self.share, f"the mask {self.grid.name}"

    @cached_property
    def image(self) -> nib.Nifti1Image:
        """The mask, cropped if runs are resampled: int8."""
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

        As in nilearn, resampled runs are cut to the mask, with a margin of one voxel: smoothing ends there.

        Parameters
        ----------
        grid : Grid
            Grid of the runs.
        target, keep
            Unused: runs are always resampled to the mask, and every voxel has a column.

        Raises
        ------
        ValueError
            If no voxel of the mask lies in the field of view of the runs.
        """
        matches = self.grid.matches(grid)
        # If both grids match, the run's voxel sizes are used for smoothing.
        mask, on_grid = (self.mask, grid) if matches else self._cropped
        ids = np.flatnonzero(self.mask.ravel(order="C"))
        x, y, z = np.nonzero(mask)
        indices = np.ravel_multi_index((z, y, x), mask.shape[::-1]).astype(np.int32)
        segments = Segments.trusted(indices, np.arange(len(indices) + 1))
        # Nothing is left to check for the empty mask of a masker that allows one.
        share = 1.0 if matches or not len(indices) else check_overlap(grid, on_grid, indices)
        return VoxelsOnGrid(grid, on_grid, segments, ids, () if matches else ("images",), [], mask, share)

    @cached_property
    def _cropped(self):
        bounds = [(at.min(), at.max() + 1) for at in np.nonzero(self.mask)]
        box = [(max(low - 1, 0), min(high + 1, n)) for (low, high), n in zip(bounds, self.mask.shape, strict=True)]
        mask = self.mask[tuple(slice(low, high) for low, high in box)]
        affine = self.grid.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [low for low, _ in box]
        return mask, Grid(mask.shape, affine, self.grid.name)
