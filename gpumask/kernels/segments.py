"""Region statistics of volumes: sums, means, variances, extremes and medians over segments of voxels.

A segment is the list of voxels of one region, and optionally a weight for each. Segments are compiled once from a label
volume (`Segments.from_labels`) and reduce any number of volumes after that, without looking at a label again.

Every reduction takes ``data`` of shape (n_volumes, n_voxels), of any real dtype, and returns float64 of shape
(n_volumes, n_regions) in the library and on the device of ``data``. Sums are taken in float64 and in a fixed order, so
a volume's result has the same bits however many volumes are reduced with it.
"""

from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import scipy.sparse

from gpumask import backend
from gpumask.kernels import segments_cuda
from gpumask.kernels.compiled import _segments, readable
from gpumask.kernels.weights import BLOCK, cut, fold


class Segments:
    """Voxels of each region, in compressed sparse row form.

    Parameters
    ----------
    indices : array of int, shape (n_entries,)
        Voxel of each entry, region after region.
    offsets : array of int, shape (n_regions + 1,)
        Region ``r`` holds the entries ``offsets[r]:offsets[r + 1]``; it may be empty.
    weights : array of float64 or float32, shape (n_entries,), or None
        Weight of each entry. If None, every weight is 1.

    Notes
    -----
    Indices are not checked against the volumes: on a GPU that would cost a synchronisation per reduction.
    """

    def __init__(self, indices, offsets, weights=None):
        self.indices = indices
        self.offsets = offsets
        self.weights = weights

    @classmethod
    def from_labels(cls, labels, ids):
        """Compile a flat label volume, on the host.

        Parameters
        ----------
        labels : ndarray, shape (n_voxels,)
            Label of each voxel, integer or float.
        ids : sequence of numbers, shape (n_regions,)
            Labels of the regions in the order of the output's columns. Voxels with any other label (the background,
            NaN) belong to no region; an id that no voxel has makes an empty segment.

        Returns
        -------
        Segments
            On the host; `like` moves it.
        """
        labels, ids = np.asarray(labels).ravel(), np.asarray(ids)
        by_id = np.argsort(ids, kind="stable")
        sorted_ids = ids[by_id]
        if np.any(sorted_ids[1:] == sorted_ids[:-1]):
            msg = f"`ids` must not repeat, got {ids.tolist()}."
            raise ValueError(msg)
        if len(ids) == 0:
            return cls(np.zeros(0, np.int32), np.zeros(1, np.int64))
        position = np.minimum(np.searchsorted(sorted_ids, labels), len(ids) - 1)
        voxels = np.flatnonzero(sorted_ids[position] == labels)
        region = by_id[position[voxels]]
        order = np.argsort(region, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(region, minlength=len(ids)))])
        dtype = np.int32 if len(labels) < 2**31 else np.int64
        return cls(voxels[order].astype(dtype), offsets)

    def __len__(self):
        return self.offsets.shape[0] - 1

    @cached_property
    def totals(self):
        """Sum of the weights of each region (its voxel count without weights): float64, shape (n_regions,)."""
        totals = self.counts.astype(np.float64)
        if self.weights is not None and totals.any():
            full = np.flatnonzero(self.counts)  # `reduceat` knows no empty segment
            starts = backend.to_host(self.offsets)[full]
            totals[full] = np.add.reduceat(backend.to_host(self.weights), starts, dtype=np.float64)
        return backend.like(totals, self.offsets)

    @cached_property
    def counts(self):
        """Entries of each region, on the host: int64, shape (n_regions,)."""
        return np.diff(backend.to_host(self.offsets))

    @cached_property
    def bounds(self):
        """Offsets as Python integers, for slicing."""
        return backend.to_host(self.offsets).tolist()

    @cached_property
    def blocks(self):
        """The segments cut into blocks of voxels, on the host; made once."""
        return cut(self.indices, self.offsets, self.weights)

    def require_no_weights(self, statistic):
        """Raise ValueError if these segments have weights, which `statistic` (its name) doesn't take."""
        if self.weights is not None:
            msg = f"`segments` has weights, and a {statistic} takes none: compile it without (Segments.from_labels)."
            raise ValueError(msg)

    @cached_property
    def layout(self):
        """What the CUDA kernels take: a `segments_cuda.Layout`, on the device of the segments."""
        return segments_cuda.lay_out(self)

    def like(self, array):
        """Return these segments in the library and on the device of `array` (themselves, where they are already)."""
        if backend.is_numpy(array):
            return self
        parts = (self.indices, self.offsets, self.weights)
        return Segments(*(None if part is None else backend.like(part, array) for part in parts))

    def __getstate__(self):
        return {"indices": self.indices, "offsets": self.offsets, "weights": self.weights}


class FoldedSegments(Segments):
    """Segments with a smoothing folded into their weights, on the host.

    Folding is left to whoever asks first, and done once: a worker does it while the first volumes are decoded.

    Parameters
    ----------
    segments : Segments
        Without weights.
    matrices : sequence of three ndarrays
        As `gpumask.kernels.weights.fold` takes them.
    """

    def __init__(self, segments, matrices):
        self._given, self._matrices = segments, matrices

    @cached_property
    def _folded(self):
        return fold(self._given.indices, self._given.offsets, self._matrices)

    indices, offsets, weights = (property(lambda self, k=k: self._folded[k]) for k in range(3))

    def __len__(self):
        return len(self._given)

    def __reduce__(self):
        return Segments, self._folded


def segment_sum(data, segments):
    """Sum each region's voxels, times their weights.

    Parameters
    ----------
    data : array, shape (n_volumes, n_voxels)
        Volumes, of any real dtype.
    segments : Segments
        In the library and on the device of `data`.

    Returns
    -------
    array of float64, shape (n_volumes, n_regions)
        0 for an empty region.

    Notes
    -----
    Equals ``scipy.ndimage.sum_labels`` on each volume.
    """
    if backend.is_numpy(data):
        return _sum_numpy(data, segments)
    if backend.is_cupy(data):
        return segments_cuda.reduce(data, segments, "sum")[0]
    xp = backend.array_namespace(data)
    return _per_region(data, segments, lambda block, weights: xp.sum(block * weights, axis=1), weighted=True)


def segment_mean(data, segments):
    """Average each region's voxels, by their weights.

    Returns the `segment_sum` divided by the sum of the weights; NaN for an empty region. With the smoothed indicator
    of each region as weights, this is the mean of the smoothed volume over the region.
    See `segment_sum` for the parameters. Equals ``scipy.ndimage.mean``.
    """
    if backend.is_cupy(data):
        return segments_cuda.reduce(data, segments, "mean")[0]
    return _divide(segment_sum(data, segments), segments)


def segment_variance(data, segments):
    """Population variance (divided by n, not n - 1) of each region's voxels; NaN for an empty region.

    The squares are taken of the differences from the region's mean, in a second pass over the gathered voxels.
    See `segment_sum` for the parameters; weights are not taken. Equals ``scipy.ndimage.variance``.
    """
    segments.require_no_weights("variance")
    if backend.is_numpy(data):
        return _statistic_numpy("variance", data, segments)
    if backend.is_cupy(data):
        return segments_cuda.reduce(data, segments, "variance")[0]
    xp = backend.array_namespace(data)

    def squares(block):
        mean = xp.sum(block, axis=1, keepdims=True) / max(block.shape[1], 1)
        return xp.sum((block - mean) ** 2, axis=1)

    return _divide(_per_region(data, segments, squares), segments)


def segment_standard_deviation(data, segments):
    """Square root of `segment_variance`. Equals ``scipy.ndimage.standard_deviation``."""
    variance = segment_variance(data, segments)
    return backend.array_namespace(variance).sqrt(variance)


def segment_minimum(data, segments):
    """Smallest value of each region; NaN for an empty region. See `segment_variance` for the parameters.

    Equals ``scipy.ndimage.minimum`` (integers beyond 2**53 are rounded to float64).
    """
    return _extreme(data, segments, "minimum")


def segment_maximum(data, segments):
    """Largest value of each region; NaN for an empty region. See `segment_variance` for the parameters.

    Equals ``scipy.ndimage.maximum`` (integers beyond 2**53 are rounded to float64).
    """
    return _extreme(data, segments, "maximum")


def segment_median(data, segments):
    """Median of each region: the mean of its two middle values; NaN for an empty region.

    See `segment_variance` for the parameters. Equals ``scipy.ndimage.median`` of float64 volumes.
    """
    segments.require_no_weights("median")
    if backend.is_numpy(data):
        return _statistic_numpy("median", data, segments)
    if backend.is_cupy(data):
        return segments_cuda.reduce(data, segments, "median")[0]
    xp = backend.array_namespace(data)

    def middle(block):
        ordered, n = xp.sort(block, axis=1), block.shape[1]
        return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2 if n else xp.sum(block, axis=1)

    return _nan_where_empty(_per_region(data, segments, middle), segments)


STRATEGIES = {
    "mean": segment_mean,
    "sum": segment_sum,
    "median": segment_median,
    "minimum": segment_minimum,
    "maximum": segment_maximum,
    "variance": segment_variance,
    "standard_deviation": segment_standard_deviation,
}


def _divide(sums, segments):
    xp = backend.array_namespace(sums)
    totals = segments.totals
    empty = totals == 0
    return xp.where(empty, xp.nan, sums / xp.where(empty, 1.0, totals))


def _nan_where_empty(values, segments):
    if segments.counts.all():
        return values
    xp = backend.array_namespace(values)
    return xp.where(backend.like(segments.counts == 0, values), xp.nan, values)


def _per_region(data, segments, statistic, *, weighted=False):
    """Apply `statistic` region after region, in standard array-API calls: correct anywhere, fast nowhere."""
    xp = backend.array_namespace(data)
    gathered = xp.astype(xp.take(data, segments.indices, axis=1), xp.float64)
    columns = []
    for start, stop in pairwise(segments.bounds):
        block = gathered[:, start:stop]
        if not weighted:
            columns.append(statistic(block))
        elif segments.weights is None:
            columns.append(statistic(block, 1.0))
        else:
            columns.append(statistic(block, segments.weights[start:stop]))
    if not columns:
        return xp.zeros((data.shape[0], 0), dtype=xp.float64, device=backend.device_of(data))
    return xp.stack(columns, axis=1)


def _extreme(data, segments, name):
    segments.require_no_weights(name)
    if backend.is_cupy(data):
        return segments_cuda.reduce(data, segments, name)[0]
    if backend.is_numpy(data):
        return _statistic_numpy(name, data, segments)
    xp = backend.array_namespace(data)
    extreme = xp.min if name == "minimum" else xp.max
    reduce = lambda block: (extreme if block.shape[1] else xp.sum)(block, axis=1)  # noqa: E731
    return _nan_where_empty(_per_region(data, segments, reduce), segments)


def _sum_numpy(data, segments):
    sums = np.zeros((data.shape[0], len(segments)))
    if _segments is None:
        _sum_scipy(data, segments.blocks, sums.T)
    else:
        _segments.sums(np.ascontiguousarray(readable(data)), *segments.blocks, sums)
    return sums


def _statistic_numpy(name, data, segments):
    """Variance, extreme or median of each region; NaN for an empty one."""
    if _segments is None or data.shape[1] >= 2**31:
        return _IN_NUMPY[name](data, segments)
    indices = np.ascontiguousarray(segments.indices, np.int32)
    offsets = np.ascontiguousarray(segments.offsets, np.int64)
    values = np.empty((data.shape[0], len(segments)))
    _segments.statistics(name, np.ascontiguousarray(readable(data)), indices, offsets, values)
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
    """Regions that have voxels, with their starts and counts: `reduceat` knows no empty segment."""
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
