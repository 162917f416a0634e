"""Regions of grayordinates, and those that a run has."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np

from gpumask.engine.maps import OVERLAP, explained
from gpumask.engine.regions import RegionsOnGrid
from gpumask.images.brain_models import BrainModels
from gpumask.images.cifti_images import dense_labels
from gpumask.images.dense_atlas import DenseAtlas, DenseMaps
from gpumask.images.labels import label_counts
from gpumask.images.lookup import plain_label
from gpumask.kernels.least_squares import Solution, least_squares
from gpumask.kernels.segments import Segments
from gpumask.process import one_blas_thread, one_linalg_thread
from gpumask.text_tables import listed


@dataclass(frozen=True, eq=False)
class DenseLabelsOnRun(RegionsOnGrid):
    """Labels of the grayordinates of a run.

    Attributes
    ----------
    atlas : DenseAtlas
    """

    atlas: DenseAtlas

    @cached_property
    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of grayordinates of each region in the atlas, and in the run; see `RegionsOnGrid.coverage`."""
        values, counts = self.atlas.counted
        there = np.minimum(np.searchsorted(values, self.ids), values.size - 1)
        return np.where(values[there] == self.ids, counts[there], 0), self.segments.counts  # a run's atlas may lack ids

    def coverage_without(self, claimed: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The coverage of labels if `claimed` grayordinates of the atlas (ndarray of bool) don't count as covered."""
        labels, grid = self.atlas.labels, self.atlas.grid
        inside = _covered(self.grid.positions_in(grid), grid) & ~claimed
        return label_counts(labels, ids), label_counts(labels[inside], ids)

    @cached_property
    def image(self) -> nib.Cifti2Image | nib.GiftiImage:
        """The labels of the atlas that have a column; the background elsewhere."""
        labels = np.where(np.isin(self.atlas.labels, self.ids), self.atlas.labels, self.atlas.background)
        return dense_labels(self.atlas, labels)


@dataclass(frozen=True, eq=False)
class DenseLabelRegions:
    """The regions of a map of labels. See `gpumask.engine.regions.Regions`.

    Attributes
    ----------
    atlas : DenseAtlas
    columns : ndarray, shape (n_regions,), or None
        Labels that have a column, in this order, whether they occur or not. None: see `on`.
    """

    atlas: DenseAtlas
    columns: np.ndarray | None = None

    @property
    def grid(self) -> BrainModels:
        """Grayordinates of the labels."""
        return self.atlas.grid

    @cached_property
    def identity(self) -> str:
        """Hash of labels, grayordinates, background and chosen columns."""
        digest = hashlib.blake2b(self.atlas.labels.tobytes(), digest_size=16)
        columns = None if self.columns is None else self.columns.tolist()
        digest.update(repr((self.grid.key, self.atlas.background, columns)).encode())
        return digest.hexdigest()

    def on(self, grid: BrainModels, target: str | None, keep: str) -> DenseLabelsOnRun:
        """Return the regions on the grayordinates of a run.

        Parameters
        ----------
        grid : BrainModels
            Grayordinates of the run.
        target : {"data", None}
            None: other grayordinates than the atlas's are an error.
        keep : {"found", "all"}
            Regions that have a column: those with a grayordinate in the run, or all.

        Raises
        ------
        ValueError
            If meshes or grids of voxels differ, no region is left, or the grayordinates differ and `target` is None.
        """
        place = _positions(grid, self.grid, target)
        labels = np.where(place >= 0, self.atlas.labels[place], self.atlas.background)
        found = self.atlas.values[self.atlas.values != self.atlas.background]
        ids = found if self.columns is None else self.columns
        segments = Segments.from_labels(labels, ids)
        notes: list[tuple[str, type[Warning]]] = []
        if keep != "all" and self.columns is None and not segments.counts.all():
            full = segments.counts > 0
            lost = listed(map(plain_label, ids[~full].tolist()))
            what = f"{(~full).sum()} of {len(ids)} labels of {self.grid.name}: {lost}"
            message = f"{grid.name} has no grayordinate of {what}. They have no column; keep_all_regions=True keeps it."
            notes, ids = [(message, UserWarning)], ids[full]
            segments = Segments.from_labels(labels, ids)
        if not segments.counts.any():
            msg = f"{grid.name} has no grayordinate of any label of {self.grid.name}. Use files of the same space."
            raise ValueError(msg)
        return DenseLabelsOnRun(grid, grid, segments, ids, (), notes, self.atlas)


def _positions(run: BrainModels, atlas: BrainModels, target):
    place = run.positions_in(atlas)
    if (place < 0).all():
        msg = (
            f"{run.name} and {atlas.name} have no grayordinate in common: {run.contents} in the first file, "
            f"{atlas.contents} in the second. Use files of the same space."
        )
        raise ValueError(msg)
    if target is None and not np.array_equal(place, np.arange(atlas.n_grayordinates)):
        msg = (
            f"{run.name} and {atlas.name} have different grayordinates: {run.contents} in the first file, "
            f"{atlas.contents} in the second. Pass resampling_target='data' to match them by vertex and voxel."
        )
        raise ValueError(msg)
    return place


def _covered(place: np.ndarray, atlas: BrainModels) -> np.ndarray:
    """Which grayordinates of an atlas are among those at `place`, see `BrainModels.positions_in`: ndarray of bool."""
    covered = np.zeros(atlas.n_grayordinates, bool)
    covered[place[place >= 0]] = True
    return covered


@dataclass(frozen=True, eq=False)
class DenseMapsOnRun(RegionsOnGrid):
    """Weights of the grayordinates of a run.

    Attributes
    ----------
    weights : ndarray of float64, shape (n_regions, n)
        Of all grayordinates of the maps.
    covered : ndarray of bool, shape (n,)
        Which of them the run has.
    solution : Solution or None
        None for weighted means.
    """

    weights: np.ndarray
    covered: np.ndarray
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
        """float64."""
        return self.weights.dtype

    @property
    def counts(self) -> np.ndarray:
        """Number of grayordinates with a weight in the run; see `RegionsOnGrid.counts`."""
        return self.coverage[1]

    @cached_property
    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of grayordinates with a weight, and of those in the run; see `RegionsOnGrid.coverage`."""
        some = self.weights != 0
        return some.sum(axis=1), some[:, self.covered].sum(axis=1)

    @cached_property
    def covered_share(self) -> np.ndarray:
        """Share of each map's weights (without signs) in the run."""
        weights = np.abs(self.weights)
        return weights[:, self.covered].sum(axis=1) / weights.sum(axis=1)


@dataclass(frozen=True, eq=False)
class DenseMapRegions:
    """The regions of maps of weights. See `gpumask.engine.regions.Regions`.

    Attributes
    ----------
    maps : DenseMaps
    solves : bool
        Whether signals are the least squares of the maps, or their weighted means.
    allow_overlap : bool
        Whether several maps may have positive weights at a grayordinate.
    """

    maps: DenseMaps
    solves: bool
    allow_overlap: bool = True

    @property
    def grid(self) -> BrainModels:
        """Grayordinates of the maps."""
        return self.maps.grid

    @cached_property
    def identity(self) -> str:
        """Hash of weights, grayordinates and parameters."""
        digest = hashlib.blake2b(self.maps.weights.tobytes(), digest_size=16)
        digest.update(repr((self.grid.key, self.solves, self.allow_overlap)).encode())
        return digest.hexdigest()

    def on(self, grid: BrainModels, target: str | None, keep: str) -> DenseMapsOnRun:
        """Return the maps on the grayordinates of a run; parameters and errors as of `DenseLabelRegions.on`.

        ValueError also for maps without a weight there, negative ones of a weighted mean, and overlap that isn't
        allowed.
        """
        place = _positions(grid, self.grid, target)
        covered = _covered(place, self.grid)
        weights = np.where(place >= 0, self.maps.weights[:, place], 0.0)
        if not self.allow_overlap and ((weights > 0).sum(axis=0) > 1).any():
            raise ValueError(OVERLAP)
        if not self.solves and weights.min() < 0:
            k = int(np.flatnonzero((weights < 0).any(axis=1))[0])
            msg = (
                f"strategy='weighted_mean' needs maps without negative weights, but map {self.maps.names[k]!r} of "
                f"{self.grid.name} has {weights.min()}. Use strategy='least_squares', or set them to 0."
            )
            raise ValueError(msg)
        full = weights.any(axis=1)
        if not full.all():
            names = listed(self.maps.names[k] for k in np.flatnonzero(~full))
            msg = f"{grid.name} has no grayordinate with a weight of these maps of {self.grid.name}: {names}."
            raise ValueError(msg)
        regions, indices = np.nonzero(weights)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(regions, minlength=len(weights)))])
        segments, solution = Segments(indices.astype(np.int32), offsets, weights[regions, indices]), None
        if self.solves:
            with one_linalg_thread:
                solution = least_squares(segments)
            segments = solution.basis or segments
        ids = np.arange(len(weights))
        return DenseMapsOnRun(grid, grid, segments, ids, (), [], self.maps.weights, covered, solution)
