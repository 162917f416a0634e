"""Runs plans over a stream of volumes: one pass, a few chunks in memory, reading overlapped with reducing.

The calling thread reads (isal decompresses without the interpreter lock) chunks of stored volumes into buffers
from a small pool, and worker threads reduce them, or a GPU does (`engine.cuda`). A chunk's rows of the result depend
on nothing but its own volumes, so the result has the same bits for any chunk size and any number of threads.
"""

import contextlib
import os
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from gpumask import backend
from gpumask.engine import cuda
from gpumask.engine.plan import LINEAR
from gpumask.engine.reducers import Reducer

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
        the workers, with what they prepare: folding, cutting) and "total". On a GPU, "upload" and "reduce" are its own
        times, by its clock.
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
        Called with the number of volumes done so far (on a GPU: handed to it), from the calling thread.
    chunk : int, optional
        Volumes per chunk. If None, 16, or fewer where they would not fit in 48 MiB.
    n_threads : int, optional
        Worker threads on the CPU. If None, as many as the process may use cores. A GPU takes none.

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
    clips = [None if plan.linear else clip for plan in plans]
    size = min(chunk or _chunk_size(volumes), volumes.n_volumes)
    if device == "cpu":
        results, seconds = _stream(plans, volumes, clips, nan_policy, size, n_threads or n_cores(), progress)
    else:
        results, seconds = cuda.stream(
            plans, volumes, device=device, clips=clips, nan_policy=nan_policy, size=size, progress=progress
        )
    seconds["total"] = time.perf_counter() - started
    return [Extraction(signals, non_finite, seconds) for signals, non_finite in results]


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


def _stream(plans, volumes, clips, nan_policy, size, n_threads, progress):
    with contextlib.ExitStack() as stack:
        if any(plan.uses_products for plan in plans):
            stack.enter_context(backend.one_blas_thread())  # our own threads share out the volumes
        reducers = [Reducer(plan, volumes, clip, nan_policy) for plan, clip in zip(plans, clips, strict=True)]
        seconds = _share_out(reducers, volumes, size, n_threads, progress)
        return [(reducer.result(), reducer.non_finite) for reducer in reducers], seconds


def _share_out(reducers, volumes, size, n_threads, progress):
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

    def prepare(reducer):
        start = time.perf_counter()
        reducer.prepare()
        return time.perf_counter() - start

    def reduce(chunk, buffer):
        for preparation in prepared:
            preparation.result()
        start = time.perf_counter()
        for reducer in reducers:
            reducer.add(chunk)
        if buffer is not None:
            buffers.put(buffer)
        return time.perf_counter() - start, len(chunk.data)

    pending = []
    done = 0
    with ThreadPoolExecutor(n_threads, "gpumask-reduce") as workers:
        prepared = [workers.submit(prepare, reducer) for reducer in reducers]  # while the first chunk is read
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
            seconds["reduce"] += sum(preparation.result() for preparation in prepared)
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
