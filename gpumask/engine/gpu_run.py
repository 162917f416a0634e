"""A run on a GPU: its buffers, its threads, its two streams, and what it does when memory runs out."""

import contextlib
import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpumask import backend, cuda_runtime
from gpumask.choices import VOXEL
from gpumask.engine import kept_plans
from gpumask.engine.buffers import DeviceBuffer, PageLockedBuffer
from gpumask.engine.filling import Filler
from gpumask.engine.overshoots import Overshoots
from gpumask.engine.staging import Signals

_BUFFERS = 2  # one is filled while the other is emptied, on the host and on the device
_WORKSPACE = 64  # bytes per voxel and point while volumes are scaled, filled, resampled and smoothed, in float64


class GpuRun:
    """A run on a GPU: `allocate`, `read`, then `results` and `seconds`.

    Parameters are those of `gpumask.engine.cuda.stream`. Instead of `read`, `take`, `copy` and `submit` may be called
    for each chunk, and then `await_launches`. At the end, even after an error, come `end_threads`, `drain` and
    `give_back`.
    """

    def __init__(self, plans, volumes, clips, stagings, size, device):
        self.plans, self.volumes, self.clips, self.device = plans, volumes, clips, device
        self.stagings = stagings
        # Signals of voxels, for each plan that computes them: on the device, unless its memory is too small.
        self.staged = {k: None for k, plan in enumerate(plans) if plan.strategy == VOXEL}
        self.holds_voxels = bool(self.staged)
        self.dtype = backend.device_dtype(volumes.dtype)
        self.size = self.step = size  # volumes in a page-locked buffer, and in one on the device
        self.copying, self.reducing = cuda_runtime.stream("copy"), cuda_runtime.stream("reduce")
        self.there = self.pinned = self.on_device = None
        self.buffers = []
        self.filler = Filler()
        self.launching = ThreadPoolExecutor(1, f"gpumask-launch-{device}")
        self.in_thread = cuda_runtime.for_threads(device)
        self.read_seconds = self.launch_seconds = 0.0
        self.overshoots = [Overshoots(plan) for plan in plans]
        self.events = []  # start and end of each upload, start and end of each reduction

    def allocate(self):
        """Allocate everything that lasts for the run: plans and results on the device, page-locked buffers."""
        while self.there is None:
            try:
                self._stage()
                with self.reducing:
                    self._allocate()
            except Exception as error:
                if not backend.is_out_of_memory(error):
                    raise
                problem = str(error).rstrip(".")
            else:
                return
            self._make_room(problem)

    def _stage(self):
        """Allocate the signals of voxels. They may outlive the run, so in the caller's stream, which uses them then."""
        like = backend.to_device(np.zeros(0), self.device) if self.holds_voxels else None
        for k, staged in self.staged.items():
            if staged is None:
                shape = self.volumes.n_volumes, len(self.plans[k].counts)
                self.staged[k] = self.stagings[k].staged(*shape, like)
        if self.holds_voxels:  # work queued there may still use the memory that the pool gave
            allocated = cuda_runtime.new_event()
            allocated.record(cuda_runtime.current_stream())
            self.reducing.wait_event(allocated)

    def _allocate(self):
        prototype = backend.to_device(np.zeros(0), self.device)
        self.xp, self.device_of = backend.array_namespace(prototype), backend.device_of(prototype)
        may_be_missing = self.volumes.dtype.kind == "f"
        there = [kept_plans.moved(plan, self.device, prototype, may_be_missing) for plan in self.plans]
        n_volumes = self.volumes.n_volumes
        columns = [0 if k in self.staged else len(plan.counts) for k, plan in enumerate(self.plans)]
        shapes = [(n_volumes, n) for n in columns] + [(len(self.plans), n_volumes)]
        bounds = np.cumsum([0] + [math.prod(shape) for shape in shapes])
        # Signals of regions, of all plans, then flags: one array, so that one copy downloads them.
        self.out = self.xp.empty(int(bounds[-1]), dtype=self.xp.float64, device=self.device_of)
        self.parts = list(zip(itertools.pairwise(bounds.tolist()), shapes, strict=True))
        *self.signals, self.flags = self._parts(self.out)
        self.flags[...] = 0.0
        if self._affordable() < self.step:
            kept_plans.forget()
        self.step = min(self.step, self._affordable())
        shape = (self.size, self.volumes.grid.n_voxels)
        for _ in range(_BUFFERS if self.volumes.device == "cpu" else 0):
            self.buffers.append(PageLockedBuffer(shape, self.dtype))
        self.pinned = itertools.cycle(self.buffers)
        self.there = there

    def _parts(self, flat):
        return [flat[start:stop].reshape(shape) for (start, stop), shape in self.parts]

    def _affordable(self):
        """Volumes that fit in a buffer on the device, given its free memory, if that is known."""
        if not cuda_runtime.uses_own_pool():
            return self.step
        n_voxels = self.volumes.grid.n_voxels
        free, _ = cuda_runtime.device_memory()
        work = [
            n_voxels + (0 if plan.resampling is None else len(plan.resampling.points))
            for plan in self.plans
            if plan.uses_products
        ]
        per_volume = _BUFFERS * n_voxels * self.dtype.itemsize + _WORKSPACE * max(work, default=0)
        return max(free // per_volume, 1)

    def _make_room(self, problem):
        """Free what can be freed, and halve the volumes on the device; `problem` is the memory error's message.

        Signals of voxels leave the device last: each chunk's are then downloaded at once.
        """
        self.drain()
        self.on_device = None
        kept_plans.forget()
        if self.step == 1 and self.holds_voxels:
            self.holds_voxels, self.step = False, self.size
            for staged in filter(None, self.staged.values()):
                staged.move_to_host()
            cuda_runtime.release_memory()
            return
        cuda_runtime.release_memory()
        if self.step == 1:
            free, total = (n / 2**20 for n in cuda_runtime.device_memory())
            volume = self.volumes.grid.n_voxels * self.dtype.itemsize / 2**20
            msg = (
                f"{self.device} is out of memory, with a single volume of {volume:.1f} MiB at a time: {problem}. "
                f"{free:.0f} of its {total:.0f} MiB are free. Stop other processes that use it (see nvidia-smi), "
                "or use device='cpu'."
            )
            raise backend.DeviceError(msg)
        self.step //= 2

    def read(self, progress):
        """Read all volumes and have them submitted to the GPU."""
        if self.volumes.device != "cpu":
            self._read_there(progress)
            return
        n_volumes, shape = self.volumes.n_volumes, (self.size, self.volumes.grid.n_voxels)
        # Values that the GPU can't store (foreign byte order, 128 bits) pass through an ordinary buffer.
        ordinary = None if self.volumes.dtype == self.dtype else np.empty(shape, self.volumes.dtype)
        is_filled = False

        def next_buffer():
            nonlocal is_filled
            is_filled = ordinary is None
            return buffer.array if ordinary is None else ordinary

        with contextlib.closing(self.volumes.chunks(self.size, next_buffer)) as chunks:
            for _ in range(0, n_volumes, self.size):
                buffer, is_filled = self.take(), False
                start = time.perf_counter()
                chunk = next(chunks)
                if not is_filled:  # a view of a file or of the user's array
                    self.copy(chunk, buffer)
                self.read_seconds += time.perf_counter() - start
                self.submit(chunk, buffer)
                if progress:
                    progress(chunk.start + len(chunk.data))
        self.await_launches()

    def take(self):
        """Wait until the next page-locked buffer may be filled, and return it; raises errors of launching."""
        buffer = next(self.pinned)
        if buffer.launched is not None:
            buffer.launched.result()
        buffer.copied.synchronize()
        return buffer

    def copy(self, chunk, buffer):
        """Copy a chunk to a page-locked buffer."""
        self.filler.fill(buffer.array[: len(chunk.data)], chunk.data)

    def submit(self, chunk, buffer):
        """Have the launching thread submit a chunk that lies in a page-locked buffer."""
        buffer.launched = self.launching.submit(
            self._launch, lambda rows: self._upload_and_reduce(rows, chunk, buffer), len(chunk.data)
        )

    def await_launches(self):
        """Wait until all chunks are submitted to the GPU; raises errors of launching."""
        for buffer in itertools.islice(self.pinned, len(self.buffers)):  # the oldest chunk first
            if buffer.launched is not None:
                buffer.launched.result()

    def _read_there(self, progress):
        with contextlib.closing(self.volumes.chunks(self.size)) as chunks:
            for chunk in chunks:
                self._launch(lambda rows, chunk=chunk: self._reduce_there(rows, chunk), len(chunk.data))
                if progress:
                    progress(chunk.start + len(chunk.data))

    def _launch(self, reduce, n):
        """Call `reduce` for all of `n` volumes, for fewer at a time if memory runs out."""
        start, done = time.perf_counter(), 0
        with self.in_thread():
            while done < n:
                k = min(self.step, n - done)
                try:
                    with self.reducing:
                        reduce(slice(done, done + k))
                except Exception as error:
                    if not backend.is_out_of_memory(error):
                        raise
                    problem = str(error).rstrip(".")  # not the error itself: its frames hold arrays
                else:
                    done += k
                    continue
                self._make_room(problem)
        self.launch_seconds += time.perf_counter() - start

    def _upload_and_reduce(self, rows, chunk, buffer):
        stored = buffer.array[rows]
        if self.on_device is None:
            shape = (self.step, stored.shape[1])
            buffers = [DeviceBuffer(self.xp, shape, self.dtype, self.device_of, self.reducing) for _ in range(_BUFFERS)]
            self.on_device = itertools.cycle(buffers)
        target = next(self.on_device)
        data = target.array[: len(stored)]
        started, copied, reducing, reduced = events = [cuda_runtime.new_event() for _ in range(4)]
        self.copying.wait_event(target.reduced)
        started.record(self.copying)
        cuda_runtime.upload(stored, data, self.copying)
        copied.record(self.copying)
        buffer.copied = copied
        self.reducing.wait_event(copied)
        reducing.record(self.reducing)
        self._reduce(data, chunk.start + rows.start, chunk.slope, chunk.inter)
        reduced.record(self.reducing)
        target.reduced = reduced
        self.events.append(events)

    def _reduce_there(self, rows, chunk):
        reducing, reduced = cuda_runtime.new_event(), cuda_runtime.new_event()
        reducing.record(self.reducing)
        self._reduce(chunk.rows(rows), chunk.start + rows.start, chunk.slope, chunk.inter)
        reduced.record(self.reducing)
        self.events.append([reducing, reducing, reducing, reduced])  # no upload

    def _reduce(self, data, start, slope, inter):
        rows, overshoots = slice(start, start + len(data)), []
        for k, (plan, clip, flags) in enumerate(zip(self.there, self.clips, self.flags, strict=True)):
            signals, flags[rows], overshoot = plan.reduce(data, slope, inter, clip)
            if k in self.staged:
                self.staged[k].put(rows, signals)
            else:
                self.signals[k][rows] = signals
            overshoots.append(overshoot)
        # Only after all plans: if memory runs out before, these volumes are reduced again.
        for kept, overshoot in zip(self.overshoots, overshoots, strict=True):
            if overshoot is not None:
                kept.add(overshoot._replace(volumes=overshoot.volumes + start))

    def results(self):
        """Download the signals of each plan, other than those of voxels that stay on the device."""
        self.reducing.synchronize()
        results = []
        with self.reducing:
            *signals, flags = self._parts(backend.to_host(self.out))
            for k, (of_plan, found) in enumerate(zip(signals, flags, strict=True)):
                staged = self.staged.get(k)
                if staged is None:
                    staged = self.stagings[k].staged(*of_plan.shape)
                    staged.put(slice(0, len(of_plan)), of_plan)
                self.overshoots[k].clip(staged)
                if k in self.staged and not self.stagings[k].on_device:
                    staged.move_to_host()
                results.append(Signals(staged.values, staged.base, bool(found.any())))
        self.reducing.synchronize()  # the caller's stream uses the results next
        return results

    def seconds(self):
        """Return the seconds in "read", "launch", "upload" and "reduce", as from `gpumask.engine.cuda.stream`."""
        uploads = sum(cuda_runtime.seconds_between(started, copied) for started, copied, _, _ in self.events)
        reductions = sum(cuda_runtime.seconds_between(reducing, reduced) for _, _, reducing, reduced in self.events)
        return {"read": self.read_seconds, "launch": self.launch_seconds, "upload": uploads, "reduce": reductions}

    def end_threads(self):
        """End the threads that submit and copy, after what they are doing."""
        self.launching.shutdown(cancel_futures=True)
        self.filler.close()
        for buffer in self.buffers:  # an error of launching has frames that hold this run, and arrays on the device
            buffer.launched = None

    def drain(self):
        """Wait until the GPU no longer uses any buffer, even if its work failed."""
        for queue in (self.copying, self.reducing):
            with contextlib.suppress(Exception):  # an error of queued work, which was raised before
                queue.synchronize()

    def give_back(self):
        """Keep the page-locked buffers for the next run, once the GPU no longer uses them."""
        for buffer in self.buffers:
            cuda_runtime.reuse_pinned(buffer.memory)
