"""Clipping of resampled values to the range of a run, which is known only at its end."""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy

from gpumask import backend
from gpumask.choices import VOXEL
from gpumask.engine.staging import Staged

if TYPE_CHECKING:
    from gpumask.engine.plan import Plan


class Overshoot(NamedTuple):
    """Resampled values of a chunk that lie outside the chunk's range of stored values.

    Attributes
    ----------
    low, high : float
        The chunk's range, 0 included.
    volumes, entries : ndarray of int, shape (n,)
        Volume in the run, and resampled point, of each value.
    values : ndarray of float64, shape (n,)
    """

    low: float
    high: float
    volumes: np.ndarray
    entries: np.ndarray
    values: np.ndarray


class Overshoots:
    """Corrects a run's signals for the clipping of resampled values to the run's range.

    A cubic spline overshoots. Only values outside the range of their own chunk can lie outside that of the run, so all
    values are reduced unclipped, and these few are kept to correct the signals.

    Parameters
    ----------
    plan : Plan
        A linear one.
    """

    def __init__(self, plan: "Plan") -> None:
        self._plan = plan
        self._chunks: list[Overshoot] = []

    def add(self, overshoot: Overshoot) -> None:
        """Keep the overshoots of a chunk."""
        self._chunks.append(overshoot)

    def clip(self, staged: Staged) -> None:
        """Subtract from signals, in place, the amount by which the kept values exceed the range of all chunks."""
        if not self._chunks:
            return
        low, high = min(chunk.low for chunk in self._chunks), max(chunk.high for chunk in self._chunks)
        volumes, entries, values = (np.concatenate([chunk[k] for chunk in self._chunks]) for k in (2, 3, 4))
        if self._plan.strategy == VOXEL:
            self._replace(staged, volumes, entries, np.clip(values, low, high))
            return
        excess = self._weighted(len(staged.values), volumes, entries, values - np.clip(values, low, high))
        staged.values[excess.row, excess.col] -= excess.data

    def _replace(self, staged, volumes, entries, clipped):
        """Set values of voxels: a difference would leave rounding noise, where all of a voxel's values are clipped."""
        column = np.empty(int(self._plan.segments.indices.max()) + 1, np.intp)
        column[self._plan.segments.indices] = np.arange(len(self._plan.segments.indices))
        values, base = staged.values, staged.base
        there = partial(backend.like, array=values)  # those of a GPU may have stayed there
        columns = there(column[entries])
        if base is not None:
            is_base = volumes == staged.base_volume
            moved, to = there(column[entries[is_base]]), there(clipped[is_base])
            values[:, moved] += base[moved] - to
            base[moved] = to
            clipped = there(clipped) - base[columns]
        values[there(volumes), columns] = there(clipped)

    def _weighted(self, n_volumes, volumes, entries, excess):
        segments = self._plan.segments
        indices, offsets = segments.indices, segments.offsets
        weights = np.ones(len(indices)) if segments.weights is None else segments.weights
        if self._plan.strategy == "mean":
            weights = weights / np.repeat(segments.totals, np.diff(offsets))
        n_points = int(max(indices.max(initial=-1), entries.max(initial=-1))) + 1
        by_region = scipy.sparse.csr_array((weights, indices, offsets), (len(offsets) - 1, n_points))
        by_volume = scipy.sparse.csr_array((excess, (volumes, entries)), (n_volumes, n_points))
        return (by_volume @ by_region.T).tocoo()
