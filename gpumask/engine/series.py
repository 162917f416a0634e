"""Runs plans over a dense CIFTI-2 series, in which the time points of a grayordinate are contiguous.

Sums and means are taken in one pass over the file, a block of grayordinates at a time: threads share out the time
points, and each adds the series of a region in ascending order. Extremes are compared where the mapped file has them.
Other statistics, and time points with values that aren't finite, need all grayordinates of a region at once. These are
gathered from the file, some regions and time points at a time. None depends on the size of a block or the number of
threads, to the bit.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from gpumask import backend, devices
from gpumask.choices import EXTREMES, LINEAR
from gpumask.engine.plan import Plan
from gpumask.engine.staging import Signals
from gpumask.engine.stream import Extraction
from gpumask.images.grayordinates import DenseImage
from gpumask.kernels.segments import Segments, reduce
from gpumask.kernels.segments_numpy import from_sums, rescaled
from gpumask.kernels.series import add_block, cut, extremes, reads_extremes
from gpumask.process import in_threads, n_cores

_BLOCK_BYTES = 8 << 20  # of stored values
_TILE_BYTES = 8 << 20  # of gathered values, in float64
_LEAST_TIMES = 64  # of a thread: with fewer, the threads would share cache lines
_GROUP = 8192  # grayordinates of the regions that are gathered together


def run_series(
    plans: Sequence[Plan],
    series: DenseImage,
    *,
    progress: Callable[[int], object] | None = None,
    size: int | None = None,
    n_threads: int | None = None,
) -> list[Extraction]:
    """Extract the region signals of several plans from a dense series.

    Parameters
    ----------
    plans : sequence of Plan
        For the grayordinates of `series`, without smoothing or resampling. Each is run on its device.
    series : DenseImage
        Read once for all sums and means; once more for each plan with another statistic.
    progress : callable, optional
        Called in the calling thread with a number that grows up to that of the time points.
    size : int, optional
        Grayordinates in a block. If None, as many as fit in 8 MiB.
    n_threads : int, optional
        Threads on the CPU. If None, one per core that the process may use.

    Returns
    -------
    list of Extraction
        One per plan, bit for bit as if it ran alone. The seconds are those of all plans.
    """
    started = time.perf_counter()
    n_threads = n_threads or n_cores()
    n_rows, row_bytes = series.grid.n_grayordinates, series.n_volumes * series.dtype.itemsize
    size = min(size or max(_BLOCK_BYTES // row_bytes, 1), n_rows)
    sums = {plan: _Sums(plan, series, size) for plan in plans if plan.strategy in LINEAR}
    if sums:
        _add_all(list(sums.values()), series, size, n_threads, progress)
    results = [_result(plan, sums.get(plan), series, n_threads) for plan in plans]
    if progress and not sums:
        progress(series.n_volumes)
    total = time.perf_counter() - started
    # The file is mapped: it is read where it is reduced.
    seconds = {"read": 0.0, "reduce": total, "total": total}
    return [Extraction(*result, seconds) for result in results]


class _Sums:
    """Sums of stored values of one plan, on its device."""

    def __init__(self, plan, series, size):
        self.device = plan.device
        self._entries = cut(plan.segments, size, series.grid.n_grayordinates)
        with self._on_device():
            self._values = backend.to_device(np.zeros((len(plan.counts), series.n_volumes)), plan.device)

    @contextlib.contextmanager
    def _on_device(self):
        with devices.device_errors(self.device), backend.using(self.device):
            yield

    def add(self, number, block, span):
        """Add some time points of a block; on the CPU, threads may add others at the same time."""
        add_block(block[:, span], self._entries[number], self._values[:, span])

    def add_on_device(self, number, block):
        """Copy a block to the GPU and add it."""
        with self._on_device():
            there = backend.to_device(np.ascontiguousarray(block), self.device)
            add_block(there, self._entries[number].like(there), self._values)

    @property
    def values(self):
        """The sums on the host: ndarray of float64, shape (n_regions, n_times)."""
        with self._on_device():
            return backend.to_host(self._values)


def _add_all(all_sums, series, size, n_threads, progress):
    """Add all series to the sums."""
    spans, n_rows = _spans(series.n_volumes, n_threads), series.grid.n_grayordinates
    on_host = [sums for sums in all_sums if sums.device == "cpu"]
    on_device = [sums for sums in all_sums if sums.device != "cpu"]
    with ThreadPoolExecutor(n_threads, "gpumask-reduce") as workers:
        for number, start in enumerate(range(0, n_rows, size)):
            stop = min(start + size, n_rows)
            block = series.rows(start, stop)
            running = [workers.submit(sums.add, number, block, span) for sums in on_host for span in spans]
            for sums in on_device:
                sums.add_on_device(number, block)
            for task in running:  # the next block's series come after these
                task.result()
            if progress:
                progress(series.n_volumes * stop // n_rows)


def _spans(n_times, n_threads):
    """Time points of each thread."""
    n = min(n_threads, max(n_times // _LEAST_TIMES, 1))
    ends = np.linspace(0, n_times // 16, n + 1).astype(int) * 16  # whole cache lines
    ends[-1] = n_times
    return [slice(start, stop) for start, stop in pairwise(ends.tolist())]


def _result(plan: Plan, sums: Any, series: DenseImage, n_threads: int) -> Signals:
    if sums is None:
        signals, wanted = _extremes(plan, series, n_threads)
        found = bool(wanted.any()) and _gather(plan, series, signals, wanted, n_threads)
        return Signals(signals, None, found)
    signals = from_sums(sums.values.T, plan.segments, plan.strategy, series.slope, series.inter)
    signals = np.ascontiguousarray(signals)
    # A value that isn't finite shows in the sum, which spares a look at each.
    wrong = ~np.isfinite(signals) & (plan.counts > 0)
    found = series.dtype.kind == "f" and bool(wrong.any()) and _gather(plan, series, signals, wrong, n_threads)
    return Signals(signals, None, found)


def _extremes(plan, series, n_threads):
    """Extremes of finite values, and which signals are still wanted: all, where values can't be compared as they lie.

    A group of regions that has a value that isn't finite is wanted whole, as `reduce` judges it.
    """
    values = series.rows(0, series.grid.n_grayordinates)
    shape = len(plan.counts), series.n_volumes
    overflows = series.dtype.itemsize == 8 and (series.slope, series.inter) != (1.0, 0.0)
    compares = plan.strategy in EXTREMES and plan.device == "cpu" and reads_extremes(values)
    if not compares or overflows or series.slope < 0:
        return np.empty(shape[::-1]), np.ones(shape[::-1], bool)
    out, odd = np.empty(shape), np.empty(shape, np.uint8)

    def fill(span):
        extremes(plan.strategy, values[:, span], plan.segments, out[:, span], odd[:, span])

    for _ in in_threads(fill, _spans(series.n_volumes, n_threads), n_threads):
        pass
    signals = rescaled(plan.strategy, np.ascontiguousarray(out.T), series.slope, series.inter, plan.segments)
    wanted = np.zeros(signals.shape, bool)
    for first, last in _groups(plan.segments):
        wanted[:, first:last] = odd[first:last].any(axis=0)[:, np.newaxis]
    return signals, wanted


def _gather(plan, series, signals, wanted, n_threads):
    """Set the wanted signals, with the grayordinates of some regions at a time; return whether one isn't finite."""
    bounds = plan.segments.bounds
    values = series.rows(0, series.grid.n_grayordinates)

    def tiles():
        for first, last in _groups(plan.segments):
            length = max(_TILE_BYTES // (8 * max(bounds[last] - bounds[first], 1)), 1)
            for start in range(0, series.n_volumes, length):
                if wanted[start : start + length, first:last].any():
                    yield first, last, start, start + length

    def fill(tile):
        first, last, start, stop = tile
        some = wanted[start:stop, first:last]
        times = np.flatnonzero(some.any(axis=1))
        part = slice(bounds[first], bounds[last])
        weights = plan.segments.weights
        own = Segments.trusted(
            np.arange(bounds[last] - bounds[first], dtype=np.int32),
            np.asarray(plan.segments.offsets[first : last + 1], np.int64) - bounds[first],
            None if weights is None else weights[part],
        )
        rows = values[:, start:stop][plan.segments.indices[part]]
        data = np.ascontiguousarray((rows if len(times) == rows.shape[1] else rows[:, times]).T)
        result, holed = _reduced(plan, data, own, series)
        target = signals[start:stop, first:last]
        target[some] = result[some[times].nonzero()]
        return bool(holed.any())

    if plan.device != "cpu":
        return max(map(fill, tiles()), default=False)
    return max(in_threads(fill, tiles(), n_threads), default=False)  # not `any`, which would stop at the first


def _groups(segments):
    """First and last + 1 of the regions that are gathered together: a choice that depends on nothing else."""
    first, bounds = 0, segments.bounds
    for last in range(1, len(segments) + 1):
        if last == len(segments) or bounds[last + 1] - bounds[first] > _GROUP:
            yield first, last
            first = last


def _reduced(plan, data, segments, series):
    policy = plan.nan_policy if data.dtype.kind == "f" else "keep"
    options = {"slope": series.slope, "inter": series.inter, "non_finite": policy}
    if plan.device == "cpu":
        return reduce(data, segments, plan.strategy, **options)
    with devices.device_errors(plan.device), backend.using(plan.device):
        there = backend.to_device(data, plan.device)
        return tuple(map(backend.to_host, reduce(there, segments.like(there), plan.strategy, **options)))
