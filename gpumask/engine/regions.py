"""Regions, and the regions on the grid of a run."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import nibabel as nib
import numpy as np

from gpumask.images.brain_models import BrainModels
from gpumask.images.grid import Grid, resample_nearest
from gpumask.images.labels import Atlas, covered_voxels
from gpumask.kernels.segments import Segments


class Regions(Protocol):
    """The interface of a kind of regions for the engine."""

    @property
    def grid(self) -> Grid | BrainModels | None:
        """Where the regions are; None for seeds."""

    @property
    def identity(self) -> str:
        """Hash of everything that defines the regions, for cache keys."""

    def on(self, grid: Any, target: str | None, keep: str) -> "RegionsOnGrid":
        """Return the regions on the grid on which volumes of the grid `grid` are reduced.

        Kinds of regions ignore what they have no choice of.

        Parameters
        ----------
        grid : Grid or BrainModels
            Of the runs; of the kind of the regions.
        target : {"data", "labels", None}
            The grid to resample to: that of the runs or that of the regions. None: different grids are an error.
        keep : {"found", "masked", "all"}
            Regions that have a column: those with voxels, also those outside the mask, or all.
        """


@dataclass(frozen=True, eq=False)
class RegionsOnGrid:
    """The regions to extract from the runs on one grid.

    Attributes
    ----------
    run_grid : Grid or BrainModels
        Grid of the runs.
    grid : Grid or BrainModels
        Grid on which volumes are reduced: that of the runs, or that of the regions.
    segments : Segments
        Voxels of each region, flat in Fortran order on `grid`; or its grayordinates.
    ids : ndarray, shape (n_regions,)
        Label of each column; of regions without labels, their index.
    resampled : tuple of str
        What must be resampled: "labels" or "maps", "mask", "images".
    notes : list of (message, category)
        Warnings about lost regions.
    """

    run_grid: Any
    grid: Any
    segments: Segments
    ids: np.ndarray
    resampled: tuple[str, ...]
    notes: list[tuple[str, type[Warning]]]

    def combine(self, signals: np.ndarray) -> np.ndarray:
        """Turn what the plan reduces volumes to into the regions' signals: themselves, unless a kind solves for them.

        Parameters
        ----------
        signals : ndarray of float64, shape (n_volumes, n_segments)

        Returns
        -------
        ndarray of float64, shape (n_volumes, n_regions)
        """
        return signals

    @property
    def explanation(self) -> list[str]:
        """What `combine` does, in lines; empty if nothing."""
        return []

    @property
    def stay_integers(self) -> bool:
        """Whether nilearn keeps the signals of integer runs in their dtype until they are cleaned."""
        return False

    @property
    def maps_dtype(self) -> np.dtype | None:
        """Dtype of the weights of maps, which the dtype of the signals depends on; None for other regions."""
        return None

    @property
    def counts(self) -> np.ndarray:
        """Number of voxels that each region's signal is made of: int64, shape (n_regions,)."""
        return self.segments.counts

    @property
    def origins(self) -> list[dict[str, Any]]:
        """What tells regions of several images apart, for JSON: empty, unless a kind combines images."""
        return [{} for _ in self.ids]

    @property
    def image(self) -> Any:
        """The regions as applied to the runs, for figures and reports: a NIfTI image, or a CIFTI-2 one."""
        raise NotImplementedError

    @property
    def parcels(self) -> Any:
        """The regions as a 3D image, with a number per voxel."""
        return self.image

    @property
    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of voxels of each region on its own grid, and how many of them lie inside mask and field of view.

        Two ndarrays of int64, shape (n_regions,).
        """
        raise NotImplementedError

    @property
    def covered_share(self) -> np.ndarray:
        """Share of each region's voxels inside mask and field of view: float64, shape (n_regions,)."""
        voxels, covered = self.coverage
        return covered / np.maximum(voxels, 1)

    @property
    def overlaps(self) -> list[str]:
        """Messages about what images lose to others that are combined with them."""
        return []

    @property
    def extent(self) -> tuple[float, str]:
        """Share of the regions' volume in the field of view of the runs, and what they were read from, for messages.

        All of it, for kinds of regions that are refused where they are empty.
        """
        return 1.0, ""

    def little_overlap(self, run: str) -> str | None:
        """Message if less than half of the regions' volume lies in the field of view of a run called `run`."""
        extent, source = self.extent
        if extent >= _LEAST_EXTENT:
            return None
        share = f"{extent:.0%}" if extent >= 0.01 else "less than 1%"
        return f"{run} covers only {share} of {source}. Are they in the same space?"


_LEAST_EXTENT = 0.5  # a field of view that cuts off the cerebellum has more, another space often less


@dataclass(frozen=True, eq=False)
class LabelsOnGrid(RegionsOnGrid):
    """The regions of a label image on the grid of the runs.

    Attributes
    ----------
    atlas : Atlas
        As applied to the runs.
    given : Atlas
        The user's atlas.
    """

    atlas: Atlas
    given: Atlas

    @cached_property
    def image(self) -> nib.Nifti1Image:
        """The labels as applied, masked: int32, or their own dtype if int32 can't hold them."""
        masked = self.atlas.masked_labels
        fits = masked.min() >= -(2**31) and masked.max() < 2**31
        if fits and np.array_equal(masked, masked.astype(np.int32)):
            masked = masked.astype(np.int32)
        return nib.Nifti1Image(masked, self.atlas.grid.affine, dtype=masked.dtype)

    @cached_property
    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """See `RegionsOnGrid`."""
        return covered_voxels(self.given, self.atlas, self.run_grid, self.ids)

    def coverage_without(self, claimed: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The coverage of labels if `claimed` voxels of the user's atlas (ndarray of bool) don't count as covered."""
        return covered_voxels(self.given, self.atlas, self.run_grid, ids, claimed)

    @cached_property
    def extent(self) -> tuple[float, str]:
        """See `RegionsOnGrid`."""
        share = 1.0 if self.given.grid.matches(self.run_grid) else self.given.share_inside(self.run_grid)
        return share, f"the atlas {self.given.grid.name}"


@dataclass(frozen=True, eq=False)
class LabelRegions:
    """The regions of a label image.

    Attributes
    ----------
    atlas : Atlas
        The fitted atlas: with its mask, and possibly resampled to the grid of the run that `fit` got.
    given : Atlas
        The user's atlas.
    columns : ndarray, shape (n_regions,), or None
        Labels that have a column, in this order, whether they occur or not. None: see `on`.
    """

    atlas: Atlas
    given: Atlas
    columns: np.ndarray | None = None

    @property
    def grid(self) -> Grid:
        """Grid of the labels."""
        return self.atlas.grid

    @cached_property
    def identity(self) -> str:
        """Hash of labels, grid, background, mask, the labels of the user's atlas, and chosen columns."""
        digest, atlas = hashlib.blake2b(digest_size=16), self.atlas
        labels = atlas.labels, np.asarray(atlas.background), self.given.values, self.columns
        for array in (*labels, atlas.grid.affine, atlas.mask):
            digest.update(repr(None if array is None else (array.dtype.str, array.shape)).encode())
            digest.update(b"" if array is None else array.tobytes(order="F"))
        digest.update(b"" if atlas.mask_grid is None else atlas.mask_grid.affine.tobytes())
        return digest.hexdigest()

    def on(self, grid: Grid, target: str | None, keep: str) -> LabelsOnGrid:
        """Return the regions with labels and mask on the grid on which the runs are reduced.

        Parameters
        ----------
        grid : Grid
            Grid of the runs.
        target : {"data", "labels", None}
            The grid to resample to: "data" resamples labels and mask, "labels" mask and runs. None: neither.
        keep : {"found", "masked", "all"}
            Regions that have a column. "found": those with voxels. "masked": also those entirely outside the mask.
            "all": every label of the user's atlas.

        Raises
        ------
        ValueError
            If no region is left, none lies in the field of view of the runs, or the grids differ and `target` is None.
        """
        atlas, notes = self.atlas, []

        def note(message, category=UserWarning, **_):
            if keep != "all" and self.columns is None:
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
        if atlas.mask_grid is not None and not atlas.mask_grid.matches(meeting):
            atlas = atlas.with_mask_resampled(meeting)
            atlas.check_mask()
        if self.columns is not None:
            atlas.check_mask()
            ids = self.columns
        elif keep == "all":
            atlas.check_mask()  # else `columns` does, in nilearn's way
            ids = self.given.values[self.given.values != self.given.background]
        else:
            ids = atlas.columns(keep_masked=keep == "masked", warn=note)
        segments = _segments(atlas, ids)
        if resampled == ["images"]:
            check_overlap(grid, atlas.grid, segments.indices)
        return LabelsOnGrid(
            grid,
            # If both grids match, the run's voxel sizes are used for smoothing.
            grid if atlas.grid.matches(grid) else atlas.grid,
            segments,
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


def check_overlap(run: Grid, grid: Grid, voxels: np.ndarray) -> float:
    """Return the share of the regions' voxels that runs reach once they are resampled to the regions' grid.

    Parameters
    ----------
    run : Grid
    grid : Grid
        Grid of the regions.
    voxels : ndarray of int
        Voxels of the regions, flat in Fortran order.

    Raises
    ------
    ValueError
        If it is 0: resampling leaves no value in any region.
    """
    there = resample_nearest(np.ones(run.shape, np.uint8), run, grid).ravel(order="F")[voxels]
    if not there.any():
        msg = (
            f"{run.name} doesn't overlap with the regions of {grid.name}: resampled to their grid, it is 0 in all of "
            "them. They may lie in different spaces: compare their affines."
        )
        raise ValueError(msg)
    return float(there.mean())


def check_same_grids(lead: str, own: Grid, what: str = "labels", **others: Grid | None) -> None:
    """Raise ValueError if a grid differs from that of the regions: `lead`, then a list of the differences.

    `what` names the image of the regions; so it is called in `resampling_target` too.
    """
    errors = []
    for name, grid in others.items():
        if grid is None or grid.matches(own):
            continue
        if grid.shape != own.shape:
            errors.append(
                f"- {what} and {name} do not have the same shape: {own.shape} ({own.name}) "
                f"and {grid.shape} ({grid.name})"
            )
        if not np.allclose(grid.affine, own.affine, rtol=1e-5, atol=1e-5):
            errors.append(
                f"- {what} and {name} do not have the same affine.\n"
                f"{what} affine ({own.name}):\n{own.affine}\n{name} affine ({grid.name}):\n{grid.affine}"
            )
    if errors:
        remedy = f"Pass resampling_target='data' or '{what}' to resample one to the other."
        raise ValueError("\n".join([lead, *errors, remedy]))
