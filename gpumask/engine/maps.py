"""The regions of maps: their weighted sums, and the least squares after these."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from gpumask.engine.regions import RegionsOnGrid, check_overlap, check_same_grids
from gpumask.images.grid import Grid
from gpumask.images.labels import covered_part
from gpumask.images.maps import Maps, covered_maps
from gpumask.kernels.least_squares import Solution, least_squares
from gpumask.kernels.segments import Segments
from gpumask.process import n_cores, one_blas_thread, one_linalg_thread, versions

if TYPE_CHECKING:
    import joblib

OVERLAP = (
    "Overlap detected in the maps. The overlap may be due to the atlas itself or possibly introduced by resampling."
)


@dataclass(frozen=True, eq=False)
class MapsOnGrid(RegionsOnGrid):
    """Maps on the grid of a run.

    Attributes
    ----------
    maps, given : Maps
        As applied to the runs, and the user's.
    solution : Solution or None
        None for weighted means.
    """

    maps: Maps
    given: Maps
    solution: Solution | None

    def combine(self, signals: np.ndarray) -> np.ndarray:
        """Turn weighted sums into the amplitudes of the maps; see `RegionsOnGrid.combine`."""
        if self.solution is None:
            return signals
        with one_blas_thread:
            return signals @ self.solution.matrix.T

    @property
    def explanation(self) -> list[str]:
        """How the sums are turned into amplitudes; see `RegionsOnGrid.explanation`."""
        return [] if self.solution is None else [explained(self.solution, len(self.ids))]

    @property
    def maps_dtype(self) -> np.dtype:
        """Dtype of the weights."""
        return self.maps.weights.dtype

    @cached_property
    def image(self) -> nib.Nifti1Image:
        """The maps as applied, masked: 4D, one volume per column."""
        return as_image(self._columns)

    @property
    def _columns(self):
        return self.maps.masked.chosen(self.ids)

    @property
    def counts(self) -> np.ndarray:
        """Number of voxels with a weight, inside the mask; see `RegionsOnGrid.counts`."""
        return self._columns.counts

    @property
    def parcels(self) -> nib.Nifti1Image:
        """Column, from 1, of the map that is largest at each voxel; 0 where none has a weight: 3D."""
        return nib.Nifti1Image(self._columns.largest(), self.maps.grid.affine)

    @cached_property
    def _covered(self):
        return covered_maps(self.given, self.maps, self.run_grid, self.ids)

    @property
    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of voxels with a weight, and of those inside; see `RegionsOnGrid.coverage`."""
        return self._covered[:2]

    @property
    def covered_share(self) -> np.ndarray:
        """Share of each map's weights (without signs) inside mask and field of view."""
        return self._covered[2]

    @cached_property
    def extent(self) -> tuple[float, str]:
        """See `RegionsOnGrid`."""
        given = self.given
        if given.grid.matches(self.run_grid):
            return 1.0, ""
        inside = covered_part(given.grid, self.run_grid).ravel(order="F")[given.voxels]
        return float(inside.mean()), f"the maps {given.grid.name}"


@dataclass(frozen=True, eq=False)
class MapRegions:
    """The regions of maps.

    Attributes
    ----------
    maps : Maps
        The fitted maps: with their mask, and possibly resampled to the grid of the run that `fit` got, or the mask's.
    given : Maps
        The user's maps.
    solves : bool
        Whether signals are the amplitudes of the maps by least squares; otherwise, they are weighted means.
    allow_overlap : bool
        Whether two maps may have a positive weight at the same voxel.
    memory : joblib.Memory or None
        Cache of resampled maps and of least-squares solutions on disk.
    """

    maps: Maps
    given: Maps
    solves: bool = True
    allow_overlap: bool = True
    memory: "joblib.Memory | None" = None

    @property
    def grid(self) -> Grid:
        """Grid of the maps."""
        return self.maps.grid

    @cached_property
    def identity(self) -> str:
        """Hash of the maps, the mask and how signals are computed."""
        parts = self.maps.identity, self.given.identity, self.solves
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def resampled(self, grid: Grid) -> Maps:
        """Return the maps on another grid, with the mask as it is; see `Maps.resampled`."""
        make = self._cached(_resampled, "maps", "grid")
        key = self.memory and (versions(), self.maps.identity, grid.shape, grid.affine.tobytes())
        maps = make(key, maps=self.maps, grid=grid)
        return replace(
            maps, grid=replace(grid, name=self.grid.name), mask=self.maps.mask, mask_grid=self.maps.mask_grid
        )

    def on(self, grid: Grid, target: str | None, keep: str) -> MapsOnGrid:
        """Return the maps on the grid on which the runs are reduced.

        Parameters
        ----------
        grid : Grid
            Grid of the runs.
        target : {"data", "labels", None}
            The grid to resample to: "data" resamples maps and mask, "labels" mask and runs. None: neither.
        keep : {"found", "masked", "all"}
            Maps that have a column: those with a weight inside the mask ("found"), or all. Without a mask, all do.

        Raises
        ------
        ValueError
            If no map is left, none lies in the field of view of the runs, maps overlap that must not, or the grids
            differ and `target` is None.
        """
        maps = self.maps
        if target is None:
            check_same_grids("Following field of view errors were detected:", maps.grid, "maps", data=grid)
        resampled = []
        if target == "data":
            there = {"maps": maps.grid, "mask": maps.mask_grid}
            resampled = [name for name, own in there.items() if own is not None and not own.matches(grid)]
        elif target == "labels" and maps.grid is self.given.grid and not maps.grid.matches(grid):
            resampled = ["images"]  # to the mask's grid, they are resampled on purpose
        meeting = grid if target == "data" else maps.grid
        if not maps.grid.matches(meeting):
            maps = self.resampled(meeting)
        if maps.mask_grid is not None and not maps.mask_grid.matches(meeting):
            maps = maps.with_mask_resampled(meeting)
        if not self.allow_overlap and maps.overlap():
            raise ValueError(OVERLAP)
        masked = maps.masked
        notes: list[tuple[str, type[Warning]]] = []
        ids = np.arange(len(maps))
        if maps.mask is not None and keep == "found":
            ids = np.flatnonzero(masked.counts)
            if len(ids) < len(maps):
                removed = set(range(len(maps))) - set(ids.tolist())
                msg = (
                    f"After applying mask to the maps image, maps with the following indices were removed: {removed}. "
                    f"Out of {len(maps)} maps, the masked map image only contains {len(ids)} maps."
                )
                notes.append((msg, UserWarning))
        chosen = masked.chosen(ids)
        segments = Segments(chosen.voxels, chosen.offsets, chosen.weights.astype(np.float64, copy=False))
        if not maps.grid.matches(grid):
            check_overlap(grid, maps.grid, chosen.voxels)
        solution = None
        if self.solves:
            solve = self._cached(_solved, "segments")
            with one_linalg_thread:
                solution = solve(self.memory and (versions(), chosen.identity), segments=segments)
            segments = solution.basis or segments
        else:
            _check_weights(chosen, ids)
        return MapsOnGrid(
            grid,
            # If both grids match, the run's voxel sizes are used for smoothing.
            grid if maps.grid.matches(grid) else maps.grid,
            segments,
            ids,
            tuple(resampled),
            notes,
            maps,
            self.given,
            solution,
        )

    def _cached(self, function: Callable, *ignored: str) -> Callable[..., Any]:
        return self.memory.cache(function, ignore=list(ignored)) if self.memory else function


def _resampled(key, *, maps, grid):
    """Resample maps; cached by `key`."""
    return replace(maps, mask=None, mask_grid=None).resampled(grid, n_threads=n_cores())


def _solved(key, *, segments):
    """Solve for the amplitudes of maps; cached by `key`."""
    return least_squares(segments)


def _check_weights(maps, ids):
    for k, (_, weights) in zip(ids, maps, strict=True):
        if weights.min(initial=0.0) < 0:
            msg = (
                f"strategy='weighted_mean' needs maps without negative weights, but map {k} of {maps.grid.name} has "
                f"{weights.min()}. Use strategy='least_squares', or set them to 0."
            )
            raise ValueError(msg)


def explained(solution: Solution, n_maps: int) -> str:
    """Describe how sums are turned into the amplitudes of maps."""
    over = "the maps" if solution.basis is None else "a dense basis of the maps"
    rank = f"rank {len(solution.singular_values)} of {n_maps}, condition {solution.condition:.2g}"
    return f"least squares: one matrix after sums over {over}; {rank}"


def as_image(maps: Maps) -> nib.Nifti1Image:
    """Return maps as a 4D image."""
    data = maps.dense()
    return nib.Nifti1Image(data, maps.grid.affine, dtype=data.dtype)
