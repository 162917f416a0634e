"""Reduces chunks of stored volumes to region signals on the host, whatever scaling, NaN and resampling ask for."""

from itertools import pairwise

import numpy as np
import scipy.ndimage
import scipy.sparse

from gpumask.engine.plan import LINEAR
from gpumask.images.grid import resample_nearest


class Reducer:
    """Turns chunks into rows of the result; `add` may run in several threads at once.

    Parameters
    ----------
    plan : Plan
    volumes : Volumes
    clip : tuple of two floats, or None
        What resampled values are clipped to. If None, to the range of the values that were added, by `result`.
    nan_policy : {"zero", "omit"}
    """

    def __init__(self, plan, volumes, clip, nan_policy):
        self.plan, self.grid, self.clip, self.nan_policy = plan, volumes.grid, clip, nan_policy
        self.signals = np.empty((volumes.n_volumes, len(plan.counts)))
        self.non_finite = False
        self.overshoots = Overshoots(plan)

    def prepare(self):
        """Do what every `add` needs, lest every worker does it."""
        if self.plan.strategy in LINEAR:
            _ = self.plan.segments.blocks, self.plan.segments.totals

    def add(self, chunk):
        """Reduce a `Chunk` of the run; any order will do."""
        plan, data = self.plan, chunk.data
        signals = self.signals[chunk.start : chunk.start + len(data)]
        if plan.resampling is not None:
            signals[:] = self._resampled(chunk)
            return
        # Each volume is judged by itself: its bits must not depend on its neighbours in the chunk.
        is_float = data.dtype.kind == "f"
        hidden = plan.way == "staged" or plan.strategy in ("minimum", "maximum", "median")
        by_scaled = np.full(len(data), plan.strategy in ("minimum", "maximum") and chunk.slope < 0)
        if is_float and hidden:
            by_scaled |= ~np.isfinite(data).all(axis=1)
        if not by_scaled.all():
            stored = data[~by_scaled] if by_scaled.any() else data
            signals[~by_scaled] = _rescale(plan.strategy, plan.reduce(stored), chunk, plan.segments)
            if is_float and not hidden:
                # In a sum, a non-finite voxel shows: checking the result spares a pass over the volumes.
                by_scaled = ~np.isfinite(signals[:, plan.counts > 0]).all(axis=1)
        if by_scaled.any():
            values = chunk._replace(data=data[by_scaled]).scaled()
            finite = np.isfinite(values)
            if not finite.all():
                self.non_finite = True
                if self.nan_policy == "omit":
                    signals[by_scaled] = self._of_finite(values, finite)
                    return
                values[~finite] = 0.0
            signals[by_scaled] = plan.reduce(values)

    def _of_finite(self, values, finite):
        """The statistic of the finite voxels; NaN for a region without any."""
        plan, strategy, segments = self.plan, self.plan.strategy, self.plan.segments
        if strategy in LINEAR:
            sums = plan.reduce(np.where(finite, values, 0.0))
            if strategy == "sum":
                return sums
            shares = plan.reduce(finite.astype(np.float64))
            return np.divide(sums, shares, out=np.full_like(sums, np.nan), where=shares > 0)
        statistic = {"median": np.nanmedian, "minimum": np.nanmin, "maximum": np.nanmax, "variance": np.nanvar}
        statistic = statistic.get(strategy, np.nanstd)
        values = np.where(finite, values, np.nan)
        result = np.full((len(values), len(segments)), np.nan)
        for region, (start, stop) in enumerate(pairwise(segments.bounds)):
            block = values[:, segments.indices[start:stop]]
            some = np.isfinite(block).any(axis=1)
            if some.any():
                result[some, region] = statistic(block[some], axis=1)
        return result

    def _resampled(self, chunk):
        data = chunk.data if (chunk.slope, chunk.inter) == (1.0, 0.0) else chunk.scaled()
        outside = None
        if data.dtype.kind == "f" and not np.isfinite(data).all():
            self.non_finite = True
            data, outside = fill_non_finite(data, self.grid, self.plan)
        points = self.plan.sample(data)
        if outside is not None:
            points = np.where(outside, 0.0, points)
        if self.clip is not None:
            points = np.clip(points, *self.clip)
        else:
            low, high = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
            volumes, entries = np.nonzero((points < low) | (points > high))
            self.overshoots.add(low, high, volumes + chunk.start, entries, points[volumes, entries])
        return self.plan.reduce(points)

    def result(self):
        """Signals of all chunks: ndarray of float64, shape (n_volumes, n_regions)."""
        self.overshoots.clip(self.signals)
        return self.signals


class Overshoots:
    """What clipping resampled values to the range of a run, known at its end only, takes from its signals.

    A cubic spline overshoots. Only values outside the range of their own chunk can lie outside that of the run, so
    these are kept while all are reduced as they are.
    """

    def __init__(self, plan):
        self._plan = plan
        self._chunks = []

    def add(self, low, high, volumes, entries, values):
        """Keep a chunk's `values` outside its range `low` to `high`, 0 included, with their volumes and entries."""
        self._chunks.append((low, high, volumes, entries, values))

    def clip(self, signals):
        """Take from the `signals`, in place, what the kept values exceed the range of all chunks by."""
        if not self._chunks:
            return
        low, high = min(chunk[0] for chunk in self._chunks), max(chunk[1] for chunk in self._chunks)
        volumes, entries, values = (np.concatenate([chunk[k] for chunk in self._chunks]) for k in (2, 3, 4))
        signals -= self._weighted(len(signals), volumes, entries, values - np.clip(values, low, high))

    def _weighted(self, n_volumes, volumes, entries, excess):
        segments = self._plan.segments
        indices, offsets = segments.indices, segments.offsets
        weights = np.ones(len(indices)) if segments.weights is None else segments.weights
        if self._plan.strategy == "mean":
            weights = weights / np.repeat(segments.totals, np.diff(offsets))
        n_points = int(max(indices.max(initial=-1), entries.max(initial=-1))) + 1
        by_region = scipy.sparse.csr_array((weights, indices, offsets), (len(offsets) - 1, n_points))
        by_volume = scipy.sparse.csr_array((excess, (volumes, entries)), (n_volumes, n_points))
        return (by_volume @ by_region.T).toarray()


def _rescale(strategy, values, chunk, segments):
    """A statistic of the stored values as the statistic of the scaled ones."""
    if strategy == "variance":
        return values * chunk.slope**2
    if strategy == "standard_deviation":
        return values * abs(chunk.slope)
    if chunk.slope != 1.0:
        values = values * chunk.slope
    if chunk.inter == 0.0:
        return values
    return values + chunk.inter * (segments.totals if strategy == "sum" else 1.0)


def fill_non_finite(data, grid, plan):
    """Replace non-finite voxels as nilearn does before it resamples.

    Each becomes the mean of its finite face neighbours; a second shell likewise, from the first; the rest 0. Where the
    nearest voxel of the source was not finite, the resampled value is 0 afterwards.

    Returns
    -------
    filled : ndarray of float64, shape (n_volumes, n_voxels)
    outside : ndarray of bool, shape (n_volumes, n_points)
    """
    filled = data.astype(np.float64)
    outside = np.zeros((len(data), len(plan.points)), bool)
    for volume, blank in zip(filled, outside, strict=True):
        missing = ~np.isfinite(volume)
        if not missing.any():
            continue
        volume[missing] = 0.0
        values, known = (a.reshape(grid.shape, order="F") for a in (volume, ~missing))
        for _ in range(2):
            neighbours = scipy.ndimage.generate_binary_structure(3, 1).astype(float)
            neighbours[1, 1, 1] = 0.0
            count = scipy.ndimage.convolve(known.astype(float), neighbours, mode="constant")
            total = scipy.ndimage.convolve(np.where(known, values, 0.0), neighbours, mode="constant")
            shell = ~known & (count > 0)
            values[shell] = total[shell] / count[shell]
            known = known | shell
        holes = resample_nearest(missing.reshape(grid.shape, order="F").astype(np.uint8), grid, plan.label_grid)
        blank[:] = holes.ravel(order="F")[plan.points].astype(bool)
    return filled, outside
