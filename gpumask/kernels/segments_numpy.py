"""Region statistics on NumPy: compiled loops, or NumPy's and SciPy's where there was no C compiler."""

from functools import partial
from itertools import pairwise

import numpy as np
import scipy

from gpumask.choices import EXTREMES
from gpumask.kernels import compiled
from gpumask.kernels.weights import BLOCK

# Statistics whose value can be finite although one of the voxels isn't.
_HIDING = ("median", *EXTREMES)


def reduce(data, segments, strategy, *, slope=1.0, inter=0.0, non_finite="keep"):
    """Region statistics of scaled NumPy volumes; see `gpumask.kernels.segments.reduce`.

    Stored values are reduced as they are wherever that is possible, and the statistic is scaled. Volumes with
    non-finite voxels are scaled first. Each volume is judged by itself, so its bits don't depend on its neighbours.
    """
    signals, found = np.empty((len(data), len(segments))), np.zeros(len(data), bool)
    is_float, hides = data.dtype.kind == "f", strategy in _HIDING
    first_scaled = np.full(len(data), slope < 0 and strategy in EXTREMES)
    if is_float and hides:
        first_scaled |= _has_non_finite(data, segments, slope, inter)
    if not first_scaled.all():
        stored = data[~first_scaled] if first_scaled.any() else data
        with np.errstate(over="ignore", invalid="ignore"):
            signals[~first_scaled] = rescaled(strategy, statistic(stored, segments, strategy), slope, inter, segments)
        if is_float and not hides:
            # A non-finite voxel shows in the result, which spares a pass over the volumes.
            first_scaled = ~np.isfinite(signals[:, segments.counts > 0]).all(axis=1)
    if first_scaled.any():
        values = _scaled(data[first_scaled], slope, inter)
        finite = np.isfinite(values)
        found[first_scaled] = holed = ~np.take(finite, segments.voxels, axis=1).all(axis=1)
        if non_finite != "keep":
            values[~finite] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            results = statistic(values, segments, strategy)
        if non_finite == "omit" and holed.any():
            results[holed] = _of_finite(values[holed], finite[holed], segments, strategy)
        signals[first_scaled] = results
    return signals, found


def statistic(data, segments, strategy):
    """Statistic of stored values: ndarray of float64, shape (n_volumes, n_regions); NaN (a sum: 0) without voxels."""
    if strategy == "sum":
        return _sums(data, segments)
    if strategy == "mean":
        return _means(_sums(data, segments), segments)
    if strategy == "standard_deviation":
        return np.sqrt(_unweighted("variance", data, segments))
    return _unweighted(strategy, data, segments)


def from_sums(sums, segments, strategy, slope=1.0, inter=0.0):
    """Sums or means of scaled volumes, from the sums of stored ones: arrays of shape (n_volumes, n_regions)."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = sums if strategy == "sum" else _means(sums, segments)
        return rescaled(strategy, values, slope, inter, segments)


def _means(sums, segments):
    totals = segments.totals
    return np.where(totals == 0, np.nan, sums / np.where(totals == 0, 1.0, totals))


def _scaled(data, slope, inter):
    with np.errstate(over="ignore", invalid="ignore"):
        return data.astype(np.float64) * slope + inter


def _has_non_finite(data, segments, slope, inter):
    """Whether each volume has a scaled value that isn't finite in any region: ndarray of bool, shape (n_volumes,)."""
    if data.dtype.itemsize >= 8 and (slope, inter) != (1.0, 0.0):  # scaling can overflow
        data = _scaled(data, slope, inter)
    found = ~np.isfinite(data).all(axis=1)  # quicker than gathering, and False for most volumes
    if found.any():
        found[found] = ~np.isfinite(np.take(data[found], segments.voxels, axis=1)).all(axis=1)
    return found


def rescaled(strategy, values, slope, inter, segments):
    """A statistic of the stored values, shape (n_volumes, n_regions), as the statistic of the scaled ones."""
    if strategy == "variance":
        return values * slope**2
    if strategy == "standard_deviation":
        return values * abs(slope)
    if slope != 1.0:
        values = values * slope
    if inter == 0.0:
        return values
    return values + inter * (segments.totals if strategy == "sum" else 1.0)


def _of_finite(values, finite, segments, strategy):
    """The statistic of the finite voxels; NaN for a region without any (a sum: 0). Others are 0 in `values`."""
    if strategy == "sum":
        return statistic(values, segments, "sum")
    if strategy == "mean":
        means, shares = statistic(values, segments, "mean"), statistic(finite.astype(np.float64), segments, "mean")
        return np.divide(means, shares, out=np.full_like(means, np.nan), where=shares > 0)
    by_name = {"median": np.nanmedian, "minimum": np.nanmin, "maximum": np.nanmax, "variance": np.nanvar}
    of_block = by_name.get(strategy, np.nanstd)
    values = np.where(finite, values, np.nan)
    result = np.full((len(values), len(segments)), np.nan)
    for region, (start, stop) in enumerate(pairwise(segments.bounds)):
        block = values[:, segments.indices[start:stop]]
        some = np.isfinite(block).any(axis=1)
        if some.any():
            result[some, region] = of_block(block[some], axis=1)
    return result


def _sums(data, segments):
    sums = np.zeros((data.shape[0], len(segments)))
    if compiled.extension is None:
        _sum_scipy(data, segments.blocks, sums.T)
    else:
        compiled.extension.sums(np.ascontiguousarray(compiled.readable(data)), segments.checked_blocks, sums)
    return sums


def _unweighted(name, data, segments):
    """Variance, extreme or median of each region; NaN for an empty one."""
    if compiled.extension is None or data.shape[1] >= 2**31:
        return _IN_NUMPY[name](data, segments)
    indices = np.ascontiguousarray(segments.indices, np.int32)
    offsets = np.ascontiguousarray(segments.offsets, np.int64)
    values = np.empty((data.shape[0], len(segments)))
    compiled.extension.statistics(name, np.ascontiguousarray(compiled.readable(data)), indices, offsets, values)
    return values


def _sum_scipy(data, blocks, sums):
    """Add to `sums`, shape (n_regions, n_volumes): the compiled sums' bits in four to seven times their time."""
    n_volumes = len(data)
    gathered = np.empty(n_volumes * BLOCK, data.dtype)
    block = np.empty((BLOCK, n_volumes))
    for (voxel, row), (next_voxel, next_row) in pairwise(blocks.parts):
        voxels, rows, k = blocks.voxels[voxel:next_voxel], blocks.rows[row:next_row], next_voxel - voxel
        stored = gathered[: n_volumes * k].reshape(n_volumes, k)
        np.take(data, voxels, axis=1, out=stored, mode="clip")  # "raise" would copy `stored` to protect it
        np.copyto(block[:k], stored.T)
        firsts, lengths = blocks.spans[row:next_row, 0], np.diff(blocks.spans[row:next_row], axis=1)[:, 0]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        entries = np.arange(starts[-1]) + np.repeat(firsts - starts[:-1], lengths)
        weights = np.ones(len(entries)) if blocks.weights is None else blocks.weights[entries]
        matrix = scipy.sparse.csr_array((weights, blocks.columns[entries].astype(np.int32), starts), (len(rows), k))
        with np.errstate(invalid="ignore"):  # +inf and -inf make NaN
            sums[rows] += matrix @ block[:k]


def _full(segments):
    """Regions that have voxels, with their starts and counts: `reduceat` can't handle empty segments."""
    full = np.flatnonzero(segments.counts)
    return full, segments.offsets[full], segments.counts[full]


def _extreme_numpy(extreme, data, segments):
    values = np.full((data.shape[0], len(segments)), np.nan)
    full, starts, _ = _full(segments)
    if len(full):
        values[:, full] = extreme.reduceat(np.take(data, segments.indices, axis=1), starts, axis=1)
    return values


def _variance_numpy(data, segments):
    full, starts, counts = _full(segments)
    variances = np.full((data.shape[0], len(segments)), np.nan)
    if not len(full):
        return variances
    for volume, variance in zip(data, variances, strict=True):  # one volume's voxels stay in the cache for four passes
        values = volume[segments.indices].astype(np.float64)
        with np.errstate(invalid="ignore"):  # an infinite voxel makes NaN
            values -= np.repeat(np.add.reduceat(values, starts) / counts, counts)
        np.square(values, out=values)
        variance[full] = np.add.reduceat(values, starts) / counts
    return variances


def _median_numpy(data, segments):
    gathered = np.take(data, segments.indices, axis=1)
    medians = np.full((data.shape[0], len(segments)), np.nan)
    for region, (start, stop) in enumerate(pairwise(segments.bounds)):
        n = stop - start
        if n:
            low, high = (n - 1) // 2, n // 2
            block = np.partition(gathered[:, start:stop], (low, high), axis=1)
            with np.errstate(invalid="ignore"):  # -inf and +inf in the middle make NaN
                lower, upper = block[:, low].astype(np.float64), block[:, high]
                medians[:, region] = (lower + upper) / 2 if low < high else lower
    return medians


_IN_NUMPY = {
    "variance": _variance_numpy,
    "minimum": partial(_extreme_numpy, np.minimum),
    "maximum": partial(_extreme_numpy, np.maximum),
    "median": _median_numpy,
}
