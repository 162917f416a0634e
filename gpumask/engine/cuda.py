"""Runs plans over a stream of volumes on a GPU: page-locked buffers, two streams, one download.

The calling thread decodes a chunk straight into a page-locked buffer while the GPU processes the previous chunk: one
stream copies the stored values to the device, another reduces them there. All plans share a chunk's copy. The thread
waits for the GPU only before it reuses a buffer, and signals and flags stay on the device until the end of the run;
those of voxels also after it, if `Staging.on_device` says so.
(Exceptions: resampled values outside their chunk's range are downloaded at once, to clip them to the run's range; and
signals of voxels that the device's memory doesn't hold.)
Plans and page-locked buffers are kept for the next run.
"""

import contextlib
import itertools
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gpumask import backend
from gpumask.choices import VOXEL
from gpumask.engine.overshoots import Overshoots
from gpumask.engine.plan import Plan
from gpumask.engine.staging import Signals, Staging
from gpumask.images.volumes import Chunk, Volumes

_BUFFERS = 2  # one is filled while the other is emptied, on the host and on the device
_WORKSPACE = 64  # bytes per voxel and point while volumes are scaled, filled, resampled and smoothed, in float64

# Plans on devices, for the next runs: the copies of each plan, by device. They are freed with the plan.
_kept: weakref.WeakKeyDictionary[Plan, dict[str, Plan]] = weakref.WeakKeyDictionary()
_keeping = threading.Lock()


def stream(
    plans: Sequence[Plan],
    volumes: Volumes,
    clips: Sequence[tuple[float, float] | None],
    stagings: Sequence[Staging],
    size: int,
    device: str,
    progress: Callable[[int], object] | None,
) -> tuple[list[Signals], dict[str, float]]:
    """Extract the region signals of several plans.

    Parameters
    ----------
    plans, volumes, clips, stagings
        As for `gpumask.engine.host.stream`.
    size : int
        Volumes in a buffer. If the device lacks memory, fewer are reduced at a time, with the same result.
    device : str
        "cuda:N".
    progress : callable or None
        Called with the number of volumes submitted to the GPU so far.

    Returns
    -------
    results : list of Signals
        As from `gpumask.engine.host.stream`.
    seconds : dict
        Wall-clock seconds in "read" (decoding into the buffers), and seconds of device time in "upload" and "reduce".

    Raises
    ------
    DeviceError
        If the device fails, or its memory or page-locked memory runs out.
    """
    with _allocated(plans, volumes, clips, stagings, size, device) as run:
        run.read(progress)
        return run.results(), run.seconds()


@contextlib.contextmanager
def receiver(
    plans: Sequence[Plan],
    volumes: Volumes,
    clips: Sequence[tuple[float, float] | None],
    stagings: Sequence[Staging],
    size: int,
    device: str,
) -> Iterator["Receiver"]:
    """Context in which a GPU reduces chunks that were read for other devices; parameters and errors as of `stream`."""
    with _allocated(plans, volumes, clips, stagings, size, device) as run:
        yield Receiver(run)


class Receiver:
    """The part of a run that a GPU reduces while other devices reduce the same chunks; from `receiver`."""

    def __init__(self, run: "_GpuRun") -> None:
        self._run = run

    def add(self, chunk: Chunk) -> None:
        """Copy a chunk and submit it to the GPU. All chunks of the run are added, in order."""
        with _at_work(self._run.device):
            self._run.copy(chunk)
            self._run.submit(chunk)

    def results(self) -> tuple[list[Signals], dict[str, float]]:
        """Return the signals, and the seconds of device time in "upload" and "reduce"."""
        with _at_work(self._run.device):
            results, seconds = self._run.results(), self._run.seconds()
        return results, {name: seconds[name] for name in ("upload", "reduce")}


@contextlib.contextmanager
def _at_work(device):
    with backend.device_errors(device), backend.using(device):
        yield


@contextlib.contextmanager
def _allocated(plans, volumes, clips, stagings, size, device):
    with _at_work(device):
        run = _GpuRun(plans, volumes, clips, stagings, size, device)
        try:
            run.allocate()
            yield run
        finally:
            run.drain()
            run.give_back()


def _forget_plans():
    """Free the memory of plans that no run uses at the moment."""
    with _keeping:
        _kept.clear()


class _Pinned:
    """A page-locked buffer, which may be filled again after the event `copied`."""

    def __init__(self, shape, dtype):
        size = math.prod(shape)
        self.memory = backend.pinned_memory(size * dtype.itemsize)
        self.array = np.frombuffer(self.memory, dtype, size).reshape(shape)
        self.copied = backend.new_event()


class _OnDevice:
    """A buffer on the device, which may be filled (again) after the event `reduced`.

    The pool may give it memory of an array that queued work of the reducing stream still uses, so the first filling
    waits for that work.
    """

    def __init__(self, xp, shape, dtype, device, reducing):
        self.array = xp.empty(shape, dtype=dtype, device=device)
        self.reduced = backend.new_event()
        self.reduced.record(reducing)


class _GpuRun:
    """A run on a GPU: `allocate`, `read`, then `results` and `seconds`; `drain` and `give_back` even after an error.

    Instead of `read`, `copy` and `submit` may be called for each chunk.
    """

    def __init__(self, plans, volumes, clips, stagings, size, device):
        self.plans, self.volumes, self.clips, self.device = plans, volumes, clips, device
        self.stagings = stagings
        # Signals of voxels, for each plan that computes them: on the device, unless its memory is too small.
        self.staged = {k: None for k, plan in enumerate(plans) if plan.strategy == VOXEL}
        self.holds_voxels = bool(self.staged)
        self.dtype = backend.device_dtype(volumes.dtype)
        self.size = self.step = size  # volumes in a page-locked buffer, and in one on the device
        self.copying, self.reducing = backend.stream("copy"), backend.stream("reduce")
        self.there = self.pinned = self.on_device = self.filled = None
        self.buffers = []
        self.read_seconds = self.waited = 0.0
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
            allocated = backend.new_event()
            allocated.record(backend.current_stream())
            self.reducing.wait_event(allocated)

    def _allocate(self):
        prototype = backend.to_device(np.zeros(0), self.device)
        self.xp, self.device_of = backend.array_namespace(prototype), backend.device_of(prototype)
        there = [self._moved(plan, prototype) for plan in self.plans]
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
            _forget_plans()
        self.step = min(self.step, self._affordable())
        shape = (self.size, self.volumes.grid.n_voxels)
        for _ in range(_BUFFERS):
            self.buffers.append(_Pinned(shape, self.dtype))
        self.pinned = itertools.cycle(self.buffers)
        self.there = there

    def _moved(self, plan, prototype):
        """The plan on the device, prepared: made by this run, or kept from an earlier one."""
        with _keeping:
            moved = _kept.get(plan, {}).pop(self.device, None) or plan.like(prototype)
            moved.prepare(may_be_missing=self.volumes.dtype.kind == "f")
            self.reducing.synchronize()  # streams of other threads will use it
            _kept.setdefault(plan, {})[self.device] = moved
        return moved

    def _parts(self, flat):
        return [flat[start:stop].reshape(shape) for (start, stop), shape in self.parts]

    def _affordable(self):
        """Volumes that fit in a buffer on the device, given its free memory, if that is known."""
        if not backend.uses_own_pool():
            return self.step
        n_voxels = self.volumes.grid.n_voxels
        free, _ = backend.device_memory()
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
        _forget_plans()
        if self.step == 1 and self.holds_voxels:
            self.holds_voxels, self.step = False, self.size
            for staged in filter(None, self.staged.values()):
                staged.move_to_host()
            backend.release_memory()
            return
        backend.release_memory()
        if self.step == 1:
            free, total = (n / 2**20 for n in backend.device_memory())
            volume = self.volumes.grid.n_voxels * self.dtype.itemsize / 2**20
            msg = (
                f"{self.device} is out of memory, with a single volume of {volume:.1f} MiB at a time: {problem}. "
                f"{free:.0f} of its {total:.0f} MiB are free. Stop other processes that use it (see nvidia-smi), "
                "or use device='cpu'."
            )
            raise backend.DeviceError(msg)
        self.step //= 2

    def read(self, progress):
        """Read all volumes and submit them to the GPU."""
        # Values that the GPU can't store (foreign byte order, 128 bits) pass through an ordinary buffer.
        take, shape = self._take, (self.size, self.volumes.grid.n_voxels)
        if self.volumes.dtype != self.dtype:
            ordinary = np.empty(shape, self.volumes.dtype)
            take = lambda: ordinary  # noqa: E731
        with contextlib.closing(self.volumes.chunks(self.size, take)) as chunks:
            while True:
                start, self.filled, self.waited = time.perf_counter(), None, 0.0
                chunk = next(chunks, None)
                if chunk is not None and self.filled is None:  # a view of a file or of the user's array
                    self.copy(chunk)
                self.read_seconds += time.perf_counter() - start - self.waited
                if chunk is None:
                    return
                self.submit(chunk)
                if progress:
                    progress(chunk.start + len(chunk.data))

    def copy(self, chunk):
        """Copy a chunk to the next page-locked buffer."""
        np.copyto(self._take()[: len(chunk.data)], chunk.data, casting="same_kind")

    def _take(self):
        """Wait until the next page-locked buffer may be filled, and return it."""
        start = time.perf_counter()
        self.filled = next(self.pinned)
        self.filled.copied.synchronize()
        self.waited += time.perf_counter() - start
        return self.filled.array

    def submit(self, chunk):
        """Submit a chunk that lies in the page-locked buffer."""
        done, n = 0, len(chunk.data)
        while done < n:
            k = min(self.step, n - done)
            try:
                with self.reducing:
                    self._upload_and_reduce(slice(done, done + k), chunk)
            except Exception as error:
                if not backend.is_out_of_memory(error):
                    raise
                problem = str(error).rstrip(".")  # not the error itself: its frames hold arrays
            else:
                done += k
                continue
            self._make_room(problem)

    def _upload_and_reduce(self, rows, chunk):
        stored = self.filled.array[rows]
        if self.on_device is None:
            shape = (self.step, stored.shape[1])
            buffers = [_OnDevice(self.xp, shape, self.dtype, self.device_of, self.reducing) for _ in range(_BUFFERS)]
            self.on_device = itertools.cycle(buffers)
        buffer = next(self.on_device)
        data = buffer.array[: len(stored)]
        started, copied, reducing, reduced = events = [backend.new_event() for _ in range(4)]
        self.copying.wait_event(buffer.reduced)
        started.record(self.copying)
        backend.upload(stored, data, self.copying)
        copied.record(self.copying)
        self.filled.copied = copied
        self.reducing.wait_event(copied)
        reducing.record(self.reducing)
        self._reduce(data, chunk.start + rows.start, chunk.slope, chunk.inter)
        reduced.record(self.reducing)
        buffer.reduced = reduced
        self.events.append(events)

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
        self.reducing.synchronize()  # the caller's stream goes on with them
        return results

    def seconds(self):
        uploads = sum(backend.seconds_between(started, copied) for started, copied, _, _ in self.events)
        reductions = sum(backend.seconds_between(reducing, reduced) for _, _, reducing, reduced in self.events)
        return {"read": self.read_seconds, "upload": uploads, "reduce": reductions}

    def drain(self):
        """Wait until the GPU no longer uses any buffer, even if its work failed."""
        for queue in (self.copying, self.reducing):
            with contextlib.suppress(Exception):  # an error of queued work, which was raised before
                queue.synchronize()

    def give_back(self):
        """Keep the page-locked buffers for the next run, once the GPU no longer uses them."""
        for buffer in self.buffers:
            backend.reuse_pinned(buffer.memory)
