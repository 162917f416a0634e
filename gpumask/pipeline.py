"""Runs a plan over a stream of volumes: one pass, a few chunks in memory, reading overlapped with reducing.

The calling thread reads (or decompresses: isal releases the interpreter lock) chunks of stored volumes into buffers
from a small pool, and worker threads reduce them. A chunk's rows of the result depend on nothing but its own volumes,
so the result has the same bits for any chunk size and any number of threads.
"""

import contextlib
import os
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import scipy.ndimage
import scipy.sparse
from threadpoolctl import threadpool_limits

from gpumask import backend
from gpumask.images.grid import resample_nearest
from gpumask.plan import LINEAR

# A sparse product with 16 volumes at once reads each weight once for all of them; more volumes only cost memory.
_CHUNK_VOLUMES = 16
_CHUNK_BYTES = 48 * 2**20


@dataclass
class Extraction:
    """Region signals of one run, and what they cost.

    Attributes
    ----------
    signals : ndarray of float64, shape (n_volumes, n_regions)
        Before any cleaning.
    non_finite : bool
        Whether NaN or infinite voxels counted as 0.
    seconds : dict
        Wall-clock seconds in "read" (the calling thread, waiting for the disk or decompressing), "reduce" (summed over
        the workers) and "total".
    """

    signals: np.ndarray
    non_finite: bool = False
    seconds: dict = field(default_factory=dict)


def extract(plan, volumes, **options):
    """Region signals of a run by one plan: the only `Extraction` of `extract_together`, whose parameters it takes."""
    return extract_together([plan], volumes, **options)[0]


def extract_together(plans, volumes, *, device="cpu", nan_policy="zero", progress=None, chunk=None, n_threads=None):
    """Region signals of a run by several plans, in one pass over the run.

    Parameters
    ----------
    plans : sequence of Plan
        For the grid of `volumes`.
    volumes : Volumes
        Read once, in order; twice where a resampled, non-linear plan must know the run's range of values beforehand.
    device : str
        "cpu" or "cuda:N", from `backend.resolve_device`.
    nan_policy : {"zero", "omit"}
        Whether NaN and infinite voxels count as 0, or are left out.
    progress : callable, optional
        Called with the number of volumes done so far, from the calling thread.
    chunk : int, optional
        Volumes per chunk. If None, 16, or fewer where they would not fit in 48 MiB.
    n_threads : int, optional
        Worker threads on the CPU. If None, as many as the process may use cores. A GPU has one.

    Returns
    -------
    list of Extraction
        One per plan, with the same bits as if it were alone. All have the times of the whole.

    Raises
    ------
    ValueError
        If non-finite voxels can't be left out of a plan's statistic.
    """
    started = time.perf_counter()
    for plan in plans:
        _check_nan_policy(plan, nan_policy)
    clip = _range(volumes) if any(plan.resampling is not None and not plan.linear for plan in plans) else None
    with contextlib.ExitStack() as stack:
        if device == "cpu" and any(plan.uses_products for plan in plans):
            # Our threads share out the volumes; a product's bits must not depend on how BLAS would share it out.
            stack.enter_context(threadpool_limits(1, user_api="blas"))
        reducers = [_Reducer(plan, volumes, device, None if plan.linear else clip, nan_policy) for plan in plans]
        size = min(chunk or _chunk_size(volumes), volumes.n_volumes)
        n_threads = n_threads or (n_cores() if device == "cpu" else 1)
        seconds = _stream(reducers, volumes, size, n_threads, device, progress)
        signals = [reducer.result() for reducer in reducers]
    seconds["total"] = time.perf_counter() - started
    return [Extraction(s, reducer.non_finite, seconds) for s, reducer in zip(signals, reducers, strict=True)]


def _check_nan_policy(plan, nan_policy):
    if nan_policy not in ("zero", "omit"):
        msg = f"`nan_policy` must be 'zero' or 'omit', got {nan_policy!r}."
        raise ValueError(msg)
    if nan_policy == "omit" and (plan.resampling is not None or (plan.way == "staged" and plan.strategy not in LINEAR)):
        what = "resampled volumes" if plan.resampling is not None else f"the {plan.strategy} of smoothed volumes"
        msg = f"nan_policy='omit' isn't defined for {what}: use nan_policy='zero', or resampling_target='data'."
        raise ValueError(msg)


def _chunk_size(volumes):
    volume_bytes = max(volumes.grid.n_voxels * volumes.dtype.itemsize, 1)
    return int(min(max(_CHUNK_BYTES // volume_bytes, 1), _CHUNK_VOLUMES, max(volumes.n_volumes, 1)))


def n_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stream(reducers, volumes, size, n_threads, device, progress):
    """Read chunks in this thread, reduce them in others; at most `n_threads` + 1 are in memory."""
    seconds = {"read": 0.0, "reduce": 0.0}
    buffers = queue.SimpleQueue()
    in_memory = n_threads + 1
    shape = (size, volumes.grid.n_voxels)

    def take():
        try:
            return buffers.get_nowait()
        except queue.Empty:
            return np.empty(shape, volumes.dtype)

    def reduce(chunk, buffer):
        start = time.perf_counter()
        with backend.using(device):
            for reducer in reducers:
                reducer.add(chunk)
        if buffer is not None:
            buffers.put(buffer)
        return time.perf_counter() - start, len(chunk.data)

    pending = []
    done = 0
    with ThreadPoolExecutor(n_threads, "gpumask-reduce") as workers:
        chunks = volumes.chunks(size, lambda: taken.append(take()) or taken[-1])
        try:
            while True:
                start = time.perf_counter()
                taken = []
                chunk = next(chunks, None)
                seconds["read"] += time.perf_counter() - start
                if chunk is None:
                    break
                pending.append(workers.submit(reduce, chunk, taken[-1] if taken else None))
                while len(pending) >= in_memory or (pending and pending[0].done()):
                    done += _collect(pending, seconds, progress, done)
            while pending:
                done += _collect(pending, seconds, progress, done)
        finally:
            chunks.close()
            for future in pending:
                future.cancel()
    return seconds


def _collect(pending, seconds, progress, done):
    elapsed, n_volumes = pending.pop(0).result()
    seconds["reduce"] += elapsed
    if progress:
        progress(done + n_volumes)
    return n_volumes


class _Reducer:
    """Turns chunks into rows of the result; `add` may run in several threads at once."""

    def __init__(self, plan, volumes, device, clip, nan_policy):
        self.device = device
        with backend.using(device):
            self.plan = plan.like(backend.to_device(np.zeros(0), device))
        if device == "cpu" and plan.strategy in LINEAR:
            _ = plan.segments.blocks  # compiled here, lest every worker does
        self.grid, self.clip, self.nan_policy = volumes.grid, clip, nan_policy
        self.signals = np.empty((volumes.n_volumes, len(plan.counts)))
        self.non_finite = False
        self.overshoots = []  # (lowest, highest value, volumes, points, values) of each chunk

    def add(self, chunk):
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
            signals[~by_scaled] = _rescale(plan.strategy, self._reduce(stored), chunk, plan.segments)
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
            signals[by_scaled] = self._reduce(values)

    def _of_finite(self, values, finite):
        """The statistic of the finite voxels; NaN for a region without any."""
        strategy, segments = self.plan.strategy, self.plan.segments
        if strategy in LINEAR:
            sums = self._reduce(np.where(finite, values, 0.0))
            if strategy == "sum":
                return sums
            shares = self._reduce(finite.astype(np.float64))
            return np.divide(sums, shares, out=np.full_like(sums, np.nan), where=shares > 0)
        statistic = {"median": np.nanmedian, "minimum": np.nanmin, "maximum": np.nanmax, "variance": np.nanvar}
        statistic = statistic.get(strategy, np.nanstd)
        values = np.where(finite, values, np.nan)
        indices = backend.to_host(segments.indices)
        result = np.full((len(values), len(segments)), np.nan)
        for region, (start, stop) in enumerate(pairwise(segments.bounds)):
            block = values[:, indices[start:stop]]
            some = np.isfinite(block).any(axis=1)
            if some.any():
                result[some, region] = statistic(block[some], axis=1)
        return result

    def _reduce(self, data):
        return backend.to_host(self.plan.reduce(backend.to_device(data, self.device)))

    def _resampled(self, chunk):
        data = chunk.data if (chunk.slope, chunk.inter) == (1.0, 0.0) else chunk.scaled()
        outside = None
        if data.dtype.kind == "f" and not np.isfinite(data).all():
            self.non_finite = True
            data, outside = _fill_non_finite(data, self.grid, self.plan)
        points = self.plan.sample(backend.to_device(data, self.device))
        xp = backend.array_namespace(points)
        if outside is not None:
            points = xp.where(backend.like(outside, points), 0.0, points)
        if self.clip is not None:
            points = xp.clip(points, *self.clip)
        else:
            self._keep_overshoots(chunk.start, data, points)
        return backend.to_host(self.plan.reduce(points))

    def _keep_overshoots(self, start, data, points):
        """Remember the values outside this chunk's range: all that clipping to the run's range can change."""
        xp = backend.array_namespace(points)
        low, high = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
        volumes, entries = xp.nonzero((points < low) | (points > high))
        values = points[volumes, entries]
        volumes, entries, values = (backend.to_host(part) for part in (volumes, entries, values))
        self.overshoots.append((low, high, volumes + start, entries, values))

    def result(self):
        if self.overshoots:
            low = min(chunk[0] for chunk in self.overshoots)
            high = max(chunk[1] for chunk in self.overshoots)
            volumes, entries, values = (np.concatenate([c[k] for c in self.overshoots]) for k in (2, 3, 4))
            excess = values - np.clip(values, low, high)
            self.signals -= self._weighted(volumes, entries, excess)
        return self.signals

    def _weighted(self, volumes, entries, excess):
        segments = self.plan.segments
        indices, offsets = backend.to_host(segments.indices), backend.to_host(segments.offsets)
        weights = np.ones(len(indices)) if segments.weights is None else backend.to_host(segments.weights)
        if self.plan.strategy == "mean":
            totals = backend.to_host(segments.totals)
            weights = weights / np.repeat(totals, np.diff(offsets))
        n_points = int(max(indices.max(initial=-1), entries.max(initial=-1))) + 1
        by_region = scipy.sparse.csr_array((weights, indices, offsets), (len(offsets) - 1, n_points))
        by_volume = scipy.sparse.csr_array((excess, (volumes, entries)), (len(self.signals), n_points))
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
    return values + chunk.inter * (backend.to_host(segments.totals) if strategy == "sum" else 1.0)


def _range(volumes):
    """Smallest and largest finite value of a run, 0 included."""
    low = high = 0.0
    for chunk in volumes.chunks(_chunk_size(volumes)):
        data = chunk.data
        if data.dtype.kind == "f":
            data = np.where(np.isfinite(data), data, 0)
        ends = [float(data.min()) * chunk.slope + chunk.inter, float(data.max()) * chunk.slope + chunk.inter]
        low, high = min(low, *ends), max(high, *ends)
    return low, high


def _fill_non_finite(data, grid, plan):
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
