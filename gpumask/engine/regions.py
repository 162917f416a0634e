"""Regions, and what they become on the grid of a run."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import nibabel as nib
import numpy as np

from gpumask.images.grid import Grid
from gpumask.images.labels import Atlas, covered_voxels
from gpumask.kernels.segments import Segments

KEEP = ("found", "masked", "all")  # regions with a column: those with voxels; those the mask covers too; all


class Regions(Protocol):
    """What the engine needs of a kind of regions; a new kind is a class with these.

    Attributes
    ----------
    grid : Grid
        Where the regions are defined.
    identity : str
        Hash of everything that decides the regions, for keys of caches.
    """

    grid: Grid
    identity: str

    def on(self, grid: Grid, target: str | None, keep: str) -> "RegionsOnGrid":
        """Bring the regions to the grid where they meet runs on `grid`."""


@dataclass(frozen=True, eq=False)
class RegionsOnGrid:
    """What is extracted from the runs of one grid.

    Attributes
    ----------
    run_grid : Grid
        Of the runs.
    grid : Grid
        Where regions and runs meet.
    segments : Segments
        Voxels of each region, flat in Fortran order on `grid`.
    ids : ndarray, shape (n_regions,)
        Label of each column.
    resampled : tuple of str
        What had to be resampled: "labels", "mask", "images".
    notes : list of (message, category)
        Warnings about regions that were lost.
    """

    run_grid: Grid
    grid: Grid
    segments: Segments
    ids: np.ndarray
    resampled: tuple[str, ...]
    notes: list[tuple[str, type[Warning]]]

    @property
    def image(self) -> nib.Nifti1Image:
        """The regions as they are applied, for figures and reports."""
        raise NotImplementedError

    @property
    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxels of each region in its own grid, and of these the ones that mask and field of view cover.

        Two ndarrays of int64, shape (n_regions,).
        """
        raise NotImplementedError

    @property
    def covered_share(self) -> np.ndarray:
        """Share of each region's voxels that mask and field of view cover: float64, shape (n_regions,)."""
        voxels, covered = self.coverage
        return covered / np.maximum(voxels, 1)


@dataclass(frozen=True, eq=False)
class _LabelsOnGrid(RegionsOnGrid):
    atlas: Atlas  # as it is applied
    given: Atlas

    @cached_property
    def image(self):
        """The labels as they are applied, masked: of int32, or of their own dtype where that can't hold them."""
        masked = self.atlas.masked_labels
        fits = masked.min() >= -(2**31) and masked.max() < 2**31
        if fits and np.array_equal(masked, masked.astype(np.int32)):
            masked = masked.astype(np.int32)
        return nib.Nifti1Image(masked, self.atlas.grid.affine, dtype=masked.dtype)

    @cached_property
    def coverage(self):
        return covered_voxels(self.given, self.atlas, self.run_grid, self.ids)


@dataclass(frozen=True, eq=False)
class LabelRegions:
    """The regions of a label image.

    Attributes
    ----------
    atlas : Atlas
        As fitted: with its mask, maybe resampled to a grid that runs are expected on.
    given : Atlas
        As the user gave it.
    """

    atlas: Atlas
    given: Atlas

    @property
    def grid(self) -> Grid:
        """Grid of the labels."""
        return self.atlas.grid

    @cached_property
    def identity(self) -> str:
        """Hash of labels, grid, background, mask, and the labels that the user gave."""
        digest, atlas = hashlib.blake2b(digest_size=16), self.atlas
        for array in (atlas.labels, atlas.grid.affine, np.asarray(atlas.background), self.given.values, atlas.mask):
            digest.update(repr(None if array is None else (array.dtype.str, array.shape)).encode())
            digest.update(b"" if array is None else array.tobytes(order="F"))
        digest.update(b"" if atlas.mask_grid is None else atlas.mask_grid.affine.tobytes())
        return digest.hexdigest()

    def on(self, grid: Grid, target: str | None, keep: str) -> RegionsOnGrid:
        """Bring labels and mask to the grid where they meet the runs.

        Parameters
        ----------
        grid : Grid
            Of the runs.
        target : {"data", "labels", None}
            What is resampled to what.
        keep : {"found", "masked", "all"}
            Regions that have a column: those with voxels; also those that the mask covers; all of the given atlas.

        Raises
        ------
        ValueError
            If no region is left, or if the grids differ and `target` is None.
        """
        atlas, notes = self.atlas, []

        def note(message, category=UserWarning, **_):
            if keep != "all":
                notes.append((message, category))

        if target is None:
            differ = "different affine matrices" if grid.shape == atlas.grid.shape else "incompatible shapes"
            check_same_grids(f"Images have {differ}.", atlas.grid, data=grid)
        resampled = []
        if target == "data":
            there = {"labels": atlas.grid, "mask": atlas.mask_grid}
            resampled = [name for name, own in there.items() if own is not None and not own.matches(grid)]
        elif target == "labels" and not atlas.grid.matches(grid):
            resampled = ["images"]
        meeting = grid if target == "data" else atlas.grid
        if not atlas.grid.matches(meeting):
            atlas = atlas.resampled(meeting, note)
        if atlas.mask is not None and not atlas.mask_grid.matches(meeting):
            atlas = atlas.with_mask_resampled(meeting)
            atlas.check_mask()
        if keep == "all":
            ids = self.given.values[self.given.values != self.given.background]
        else:
            ids = atlas.columns(keep_masked=keep == "masked", warn=note)
        return _LabelsOnGrid(
            grid,
            # Of two grids that match, the run's decides the voxel sizes that it is smoothed by.
            grid if atlas.grid.matches(grid) else atlas.grid,
            _segments(atlas, ids),
            ids,
            tuple(resampled),
            notes,
            atlas,
            self.given,
        )


def _segments(atlas, ids):
    labels = atlas.labels.ravel(order="F")
    if atlas.mask is None:
        return Segments.from_labels(labels, ids)
    inside = np.flatnonzero(atlas.mask.ravel(order="F"))
    segments = Segments.from_labels(labels[inside], ids)
    return Segments(inside[segments.indices].astype(segments.indices.dtype), segments.offsets)


def check_same_grids(lead: str, labels: Grid, **others: Grid | None) -> None:
    """Raise ValueError, beginning with `lead`, if a grid differs from that of the labels; says in what."""
    errors = []
    for name, grid in others.items():
        if grid is None or grid.matches(labels):
            continue
        if grid.shape != labels.shape:
            errors.append(
                f"- labels and {name} do not have the same shape: {labels.shape} ({labels.name}) "
                f"and {grid.shape} ({grid.name})"
            )
        if not np.allclose(grid.affine, labels.affine, rtol=1e-5, atol=1e-5):
            errors.append(
                f"- labels and {name} do not have the same affine.\n"
                f"labels affine ({labels.name}):\n{labels.affine}\n{name} affine ({grid.name}):\n{grid.affine}"
            )
    if errors:
        remedy = "Pass resampling_target='data' or 'labels' to resample one to the other."
        raise ValueError("\n".join([lead, *errors, remedy]))
