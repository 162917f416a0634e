"""Streams volumes through plans on the CPU: one thread reads, others reduce."""

import contextlib
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpumask.engine.overshoots import Overshoots
from gpumask.engine.plan import Plan
from gpumask.engine.staging import Signals, Staging
from gpumask.images.volumes import Chunk, Volumes
from gpumask.process import one_blas_thread


def stream(
    plans: Sequence[Plan],
    volumes: Volumes,
    clips: Sequence[tuple[float, float] | None],
    stagings: Sequence[Staging],
    size: int,
    n_threads: int,
    progress: Callable[[int], object] | None,
    also: Sequence[Callable[[Chunk], object]] = (),
) -> tuple[list[Signals], dict[str, float]]:
    """Extract the region signals of several plans.

    Parameters
    ----------
    plans : sequence of Plan
    volumes : Volumes
        Read once, in order.
    clips : sequence of tuples of two floats, or None
        Range that each plan's resampled values are clipped to. If None, the range of the run, afterwards.
    stagings : sequence of Staging
        How each plan's signals are kept.
    size : int
        Volumes in a chunk. At most `n_threads` + 1 chunks are in memory.
    n_threads : int
        Threads that reduce, in addition to the calling thread, which reads.
    progress : callable or None
        Called with the number of volumes done so far.
    also : sequence of callable
        Called with each chunk, in order, by the calling thread; they mustn't keep the chunk's data.

    Returns
    -------
    results : list of Signals
        Of each plan.
    seconds : dict
        Wall-clock seconds in "read" and, summed over the threads, "reduce".
    """
    outputs = [_Output(*each, volumes) for each in zip(plans, clips, stagings, strict=True)]
    # The worker threads already use all cores.
    with one_blas_thread if any(plan.uses_products for plan in plans) else contextlib.nullcontext():
        seconds = _share_out(outputs, volumes, size, n_threads, progress, also)
        return [output.result() for output in outputs], seconds


class _Output:
    """The signals of one plan; `add` may run in several threads at once."""

    def __init__(self, plan, clip, staging, volumes):
        self.plan, self.clip = plan, clip
        self.may_be_missing = volumes.dtype.kind == "f"
        self.staged = staging.staged(volumes.n_volumes, len(plan.counts))
        self.found = np.zeros(volumes.n_volumes, bool)
        self.overshoots = Overshoots(plan)

    def prepare(self):
        """Prepare the plan, and return the seconds it took."""
        start = time.perf_counter()
        self.plan.prepare(may_be_missing=self.may_be_missing)
        return time.perf_counter() - start

    def add(self, chunk):
        """Reduce a `Chunk` of the run, in any order."""
        rows = slice(chunk.start, chunk.start + len(chunk.data))
        reduced = self.plan.reduce(chunk.data, chunk.slope, chunk.inter, self.clip)
        self.staged.put(rows, reduced.signals)
        self.found[rows] = reduced.found
        if reduced.overshoot is not None:
            self.overshoots.add(reduced.overshoot._replace(volumes=reduced.overshoot.volumes + chunk.start))

    def result(self):
        self.overshoots.clip(self.staged)
        return Signals(self.staged.values, self.staged.base, bool(self.found.any()))


def _share_out(outputs, volumes, size, n_threads, progress, also):
    seconds = {"read": 0.0, "reduce": 0.0}
    free_buffers = queue.SimpleQueue()
    shape = (size, volumes.grid.n_voxels)
    filled = None

    def next_buffer():
        nonlocal filled
        try:
            filled = free_buffers.get_nowait()
        except queue.Empty:
            filled = np.empty(shape, volumes.dtype)
        return filled

    def reduce(chunk, buffer):
        for preparation in preparations:
            preparation.result()
        start = time.perf_counter()
        for output in outputs:
            output.add(chunk)
        if buffer is not None:
            free_buffers.put(buffer)
        return time.perf_counter() - start, len(chunk.data)

    pending, done = [], 0
    with ThreadPoolExecutor(n_threads, "gpumask-reduce") as workers:
        preparations = [workers.submit(output.prepare) for output in outputs]  # while the first chunk is read
        chunks = volumes.chunks(size, next_buffer)
        try:
            while True:
                start, filled = time.perf_counter(), None
                chunk = next(chunks, None)
                seconds["read"] += time.perf_counter() - start
                if chunk is None:
                    break
                pending.append(workers.submit(reduce, chunk, filled))
                for add in also:  # nothing else writes to the buffer until the next chunk is read
                    add(chunk)
                if any(output.staged.awaits_base for output in outputs):
                    pending[-1].result()
                while len(pending) > n_threads or (pending and pending[0].done()):
                    done += _collect(pending, seconds, progress, done)
            while pending:
                done += _collect(pending, seconds, progress, done)
            seconds["reduce"] += sum(preparation.result() for preparation in preparations)
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
