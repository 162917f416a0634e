"""Sums of series: data with time as the last axis, as CIFTI-2 files have it.

Series arrive in blocks. `Cut` assigns the entries of segments to the blocks once; `add_block` adds a block's series to
the sums of their regions, in float64 and in ascending order. So the sums have the same bits for any size of the blocks.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gpumask import backend
from gpumask.backend import Array
from gpumask.kernels import compiled, series_cuda
from gpumask.kernels.segments import Segments


class Entries(NamedTuple):
    """The entries of segments in one block of series.

    Attributes
    ----------
    rows : array of int64, shape (n_entries,)
        Series of each entry, counted from the block's first.
    offsets : array of int64, shape (n + 1,)
        Region ``regions[r]`` has the entries ``offsets[r]:offsets[r + 1]``.
    regions : array of int32, shape (n,)
        Those that have entries in the block.
    weights : array of float64, shape (n_entries,), or None
    """

    rows: Array
    offsets: Array
    regions: Array
    weights: Array | None

    def like(self, array: Array) -> "Entries":
        """Return these arrays in the library and on the device of `array`."""
        return Entries(*(None if part is None else backend.like(part, array) for part in self))


def cut(segments: Segments, size: int, n_series: int) -> list[Entries]:
    """Cut segments into blocks of series, on the host.

    Parameters
    ----------
    segments : Segments
        Series of each region.
    size : int
        Series in a block; the last one may have fewer.
    n_series : int

    Returns
    -------
    list of Entries
        One for each block.
    """
    n_blocks = -(-n_series // size)
    indices = np.asarray(segments.indices, np.int64)
    region = np.repeat(np.arange(len(segments), dtype=np.int32), segments.counts)
    if not _ascend(indices, region):
        order = np.lexsort((indices, region))
        indices = indices[order]
    else:
        order = None
    block = (indices // size).astype(np.uint16 if n_blocks <= 1 << 16 else np.int64)  # NumPy counts small ones
    by_block = np.argsort(block, kind="stable")
    weights = None
    if segments.weights is not None:
        weights = np.asarray(segments.weights, np.float64)
        weights = (weights if order is None else weights[order])[by_block]
    indices, region = indices[by_block], region[by_block]
    ends = np.concatenate([[0], np.cumsum(np.bincount(block, minlength=n_blocks))])
    entries = []
    for number, (start, stop) in enumerate(pairwise(ends.tolist())):
        own = region[start:stop]
        starts = np.flatnonzero(np.diff(own, prepend=-1))
        offsets = np.append(starts, stop - start).astype(np.int64)
        rows = indices[start:stop] - number * size
        entries.append(Entries(rows, offsets, own[starts], None if weights is None else weights[start:stop]))
    return entries


def _ascend(indices, region):
    """Whether the series of each region are in ascending order."""
    return bool(np.all((np.diff(indices) > 0) | (np.diff(region) > 0)))


def add_block(data: Array, entries: Entries, sums: Array) -> None:
    """Add the series of a block to the sums of their regions.

    Parameters
    ----------
    data : array, shape (n_series, n_times)
        Stored values of any real dtype, of NumPy or CuPy.
    entries : Entries
        In the library and on the device of `data`.
    sums : array of float64, shape (n_regions, n_times)
        Added to, time point by time point. Time points are contiguous.
    """
    half: Callable = series_cuda.add_block if backend.is_cupy(data) else _add_numpy
    half(data, entries, sums)


def reads_extremes(data: np.ndarray) -> bool:
    """Whether `extremes` can read stored values where they lie."""
    return compiled.extension is not None and compiled.readable(data[:0]).dtype == data.dtype and data.flags.aligned


def extremes(strategy: str, data: np.ndarray, segments: Segments, out: np.ndarray, odd: np.ndarray) -> None:
    """Compute the minimum or maximum of each region at each time point.

    Parameters
    ----------
    strategy : {"minimum", "maximum"}
    data : ndarray, shape (n_series, n_times)
        Stored values that `reads_extremes` accepts. Time points are contiguous.
    segments : Segments
        Without weights.
    out : ndarray of float64, shape (n_regions, n_times)
        Written to; NaN for a region without series.
    odd : ndarray of uint8, shape (n_regions, n_times)
        Written to: 1 where a value isn't finite, and `out` is meaningless, else 0.
    """
    rows, offsets = (np.ascontiguousarray(part, np.int64) for part in (segments.indices, segments.offsets))
    compiled.extension.extremes_of_series(strategy, data, rows, offsets, out, odd)


def _add_numpy(data, entries, sums):
    if compiled.extension is None:
        for region, (start, stop) in zip(entries.regions.tolist(), pairwise(entries.offsets.tolist()), strict=True):
            for entry in range(start, stop):
                row = data[entries.rows[entry]].astype(np.float64)
                sums[region] += row if entries.weights is None else row * entries.weights[entry]
        return
    data = compiled.readable(data)
    if data.shape[1] > 1 and data.strides[1] != data.itemsize:
        data = np.ascontiguousarray(data)
    compiled.extension.add_series(data, *entries, sums)
