"""Runs plans over a stream of volumes on a GPU: page-locked buffers, two streams, one download.

The calling thread decodes a chunk straight into a page-locked buffer while the GPU works on the one before: one stream
copies the stored values to the device, another reduces them there. All plans share a chunk's copy. The thread waits for
the GPU only to use a buffer again, and signals and flags stay on the device until the run is over. (Clipping resampled
values to the run's range is the exception: what lies outside of a chunk's is fetched at once.)
"""

import contextlib
import itertools
import time

import numpy as np

from gpumask import backend
from gpumask.engine.reducers import Overshoots
from gpumask.images.grid import resample_nearest
from gpumask.kernels import segments_cuda

_BUFFERS = 2  # one is filled while the other is emptied, on the host as on the device
_WORKSPACE = 48  # bytes per voxel while a volume is scaled, filled in and resampled or smoothed, in float64


def stream(plans, volumes, *, device, clips, nan_policy, size, progress):
    """Region signals of a run by several plans.

    Parameters
    ----------
    plans : sequence of Plan
    volumes : Volumes
        Read once, in order.
    device : str
        "cuda:N".
    clips : sequence of tuples of two floats, or None
        What each plan's resampled values are clipped to. If None, to the range of the run.
    nan_policy : {"zero", "omit"}
    size : int
        Volumes in a buffer. They are reduced fewer at a time, with the same result, where the device lacks memory.
    progress : callable or None
        Called with the number of volumes handed to the GPU so far.

    Returns
    -------
    results : list of (ndarray of float64 with shape (n_volumes, n_regions), bool)
        Signals of each plan, and whether non-finite voxels were among its regions'.
    seconds : dict
        "read", decoding into the buffers, in wall-clock time; "upload" and "reduce" in the device's.

    Raises
    ------
    DeviceError
        If the device, its memory or page-locked memory fails.
    """
    with backend.device_errors(device), backend.using(device):
        run = _Run(plans, volumes, device, clips, nan_policy, size)
        try:
            run.allocate()
            run.read(progress)
            return run.results(), run.seconds()
        finally:
            run.drain()


class _Pinned:
    """A page-locked buffer; `copied` is the event after which it may be filled again."""

    def __init__(self, shape, dtype):
        self.array = backend.pinned_empty(shape, dtype)
        self.copied = backend.new_event()


class _OnDevice:
    """A buffer on the device; `reduced` is the event after which it may be filled (again).

    Its memory may be that of an array which the reducing stream still works on: filling it has to wait for that, too.
    """

    def __init__(self, xp, shape, dtype, device, reducing):
        self.array = xp.empty(shape, dtype=dtype, device=device)
        self.reduced = backend.new_event()
        self.reduced.record(reducing)


class _Run:
    """A run on its way through a GPU: `allocate`, `read`, then `results` and `seconds`; `drain` in any case."""

    def __init__(self, plans, volumes, device, clips, nan_policy, size):
        self.plans, self.volumes, self.device = plans, volumes, device
        self.clips, self.nan_policy = clips, nan_policy
        self.dtype = backend.device_dtype(volumes.dtype)
        self.size = self.step = size  # volumes in a page-locked buffer, and in one on the device
        self.copying, self.reducing = backend.stream("copy"), backend.stream("reduce")
        self.reducers = self.pinned = self.on_device = self.filled = None
        self.read_seconds = self.waited = 0.0
        self.events = []  # start and end of each upload, start and end of each reduction

    def allocate(self):
        """Everything that lasts for the run: plans and results on the device, page-locked buffers."""
        while self.reducers is None:
            try:
                with self.reducing:
                    self._allocate()
            except Exception as error:
                if not backend.is_out_of_memory(error):
                    raise
                problem = str(error).rstrip(".")
            else:
                return
            self._make_room(problem)

    def _allocate(self):
        prototype = backend.to_device(np.zeros(0), self.device)
        self.xp, self.device_of = backend.array_namespace(prototype), backend.device_of(prototype)
        reducers = [
            _Reducer(plan, self.volumes, clip, self.nan_policy, prototype)
            for plan, clip in zip(self.plans, self.clips, strict=True)
        ]
        n_volumes = self.volumes.n_volumes
        shapes = [(n_volumes, len(plan.counts)) for plan in self.plans] + [(len(self.plans), n_volumes)]
        bounds = np.cumsum([0] + [rows * columns for rows, columns in shapes])
        # Signals of all plans, then flags: one array, so that one copy brings them to the host.
        self.out = self.xp.empty(int(bounds[-1]), dtype=self.xp.float64, device=self.device_of)
        self.parts = list(zip(itertools.pairwise(bounds.tolist()), shapes, strict=True))
        *self.signals, self.flags = self._parts(self.out)
        self.flags[...] = 0.0
        self.step = min(self.step, self._affordable())
        shape = (self.size, self.volumes.grid.n_voxels)
        self.pinned = itertools.cycle([_Pinned(shape, self.dtype) for _ in range(_BUFFERS)])
        self.reducers = reducers

    def _parts(self, flat):
        return [flat[start:stop].reshape(shape) for (start, stop), shape in self.parts]

    def _affordable(self):
        """Volumes that a buffer on the device can hold, by the memory that is free now."""
        n_voxels = self.volumes.grid.n_voxels
        free, _ = backend.device_memory()
        free -= _WORKSPACE * n_voxels * any(plan.uses_products for plan in self.plans)
        points = sum(plan.resampling is not None and 8 * len(plan.points) for plan in self.plans)
        per_volume = _BUFFERS * n_voxels * self.dtype.itemsize + 3 * points
        return max(free // per_volume, 1)

    def _make_room(self, problem):
        """After `problem`: free what can be freed, and let half as many volumes on the device."""
        self.drain()
        self.on_device = None
        backend.release_memory()
        if self.step == 1:
            free, total = (n / 2**20 for n in backend.device_memory())
            volume = self.volumes.grid.n_voxels * self.dtype.itemsize / 2**20
            msg = (
                f"{self.device} is out of memory, with a single volume of {volume:.1f} MiB at a time: {problem}. "
                f"Of its {total:.0f} MiB, {free:.0f} are free. Stop other processes that use it (see nvidia-smi), "
                "or use device='cpu'."
            )
            raise backend.DeviceError(msg)
        self.step //= 2

    def read(self, progress):
        """Read all volumes and hand them to the GPU."""
        # Other values than the GPU takes (in foreign byte order, of 128 bits) pass through an ordinary buffer.
        take, shape = self._take, (self.size, self.volumes.grid.n_voxels)
        if self.volumes.dtype != self.dtype:
            ordinary = np.empty(shape, self.volumes.dtype)
            take = lambda: ordinary  # noqa: E731
        with contextlib.closing(self.volumes.chunks(self.size, take)) as chunks:
            while True:
                start, self.filled, self.waited = time.perf_counter(), None, 0.0
                chunk = next(chunks, None)
                if chunk is not None and self.filled is None:  # a view of a file or of the user's array
                    np.copyto(self._take()[: len(chunk.data)], chunk.data, casting="same_kind")
                self.read_seconds += time.perf_counter() - start - self.waited
                if chunk is None:
                    return
                self._hand_over(chunk)
                if progress:
                    progress(chunk.start + len(chunk.data))

    def _take(self):
        """The next page-locked buffer, to be filled."""
        start = time.perf_counter()
        self.filled = next(self.pinned)
        self.filled.copied.synchronize()
        self.waited += time.perf_counter() - start
        return self.filled.array

    def _hand_over(self, chunk):
        done, n = 0, len(chunk.data)
        while done < n:
            k = min(self.step, n - done)
            try:
                with self.reducing:
                    self._upload_and_reduce(slice(done, done + k), chunk)
            except Exception as error:
                if not backend.is_out_of_memory(error):
                    raise
                problem = str(error).rstrip(".")  # and not the error: its frames hold arrays
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
        rows = slice(start, start + len(data))
        overshoots = [
            reducer.reduce(data, slope, inter, signals[rows], flags[rows])
            for reducer, signals, flags in zip(self.reducers, self.signals, self.flags, strict=True)
        ]
        for reducer, found in zip(self.reducers, overshoots, strict=True):
            if found:
                low, high, volumes, entries, values = found
                reducer.overshoots.add(float(low), float(high), volumes + start, entries, values)

    def results(self):
        """Signals of each plan, and whether non-finite voxels were met: the one download."""
        self.reducing.synchronize()
        with self.reducing:
            *signals, flags = self._parts(backend.to_host(self.out))
        for of_plan, reducer in zip(signals, self.reducers, strict=True):
            reducer.overshoots.clip(of_plan)
        return [(of_plan, bool(found.any())) for of_plan, found in zip(signals, flags, strict=True)]

    def seconds(self):
        uploads = sum(backend.seconds_between(started, copied) for started, copied, _, _ in self.events)
        reductions = sum(backend.seconds_between(reducing, reduced) for _, _, reducing, reduced in self.events)
        return {"read": self.read_seconds, "upload": uploads, "reduce": reductions}

    def drain(self):
        """Wait until the GPU touches no buffer any more, whatever became of its work."""
        for queue in (self.copying, self.reducing):
            with contextlib.suppress(Exception):  # of work that failed; the error was raised where it was met
                queue.synchronize()


class _Reducer:
    """Turns stored volumes on the device into signals and flags there, without waiting for them."""

    def __init__(self, plan, volumes, clip, nan_policy, prototype):
        self.plan, self.clip, self.nan_policy = plan.like(prototype), clip, nan_policy
        self.shape = volumes.grid.shape[::-1]
        self.may_be_missing = volumes.dtype.kind == "f"
        self.overshoots = Overshoots(plan)
        _ = self.plan.segments.layout, self.plan.segments.totals  # made here: to make them is to wait for the device
        if plan.resampling is not None and self.may_be_missing:
            # The nearest source voxel of each point, counted from 1; 0 outside.
            numbers = np.arange(1, volumes.grid.n_voxels + 1).reshape(volumes.grid.shape, order="F")
            nearest = resample_nearest(numbers, volumes.grid, plan.label_grid).ravel(order="F")[plan.points]
            self.nearest = backend.like(nearest, prototype)

    def reduce(self, data, slope, inter, signals, flags):
        """Write the signals of stored volumes, shape (k, n_regions), and their flags, shape (k,).

        Returns what clipping to the run's range may change, for `Overshoots.add` (None if nothing): the volumes that
        were reduced may have to be reduced again, so it is not added here.
        """
        plan = self.plan
        if plan.resampling is not None:
            return self._resampled(data, slope, inter, signals, flags)
        if plan.way == "staged":
            for index in range(len(data)):
                signals[index], flags[index] = self._smoothed(_scaled(data, index, slope, inter))
            return None
        policy = self.nan_policy if self.may_be_missing else "keep"
        signals[:], flags[:] = segments_cuda.reduce(
            data, plan.segments, plan.strategy, slope=slope, inter=inter, non_finite=policy
        )
        return None

    def _smoothed(self, volume):
        plan, xp = self.plan, backend.array_namespace(volume)
        if not self.may_be_missing:
            return plan.reduce(volume)[0], False
        finite = xp.isfinite(volume)
        signals = plan.reduce(xp.where(finite, volume, 0.0))
        if self.nan_policy == "omit" and plan.strategy == "mean":
            shares = plan.reduce(xp.astype(finite, xp.float64))
            signals = xp.where(shares > 0, signals / shares, xp.nan)
        return signals[0], xp.any(~finite)

    def _resampled(self, data, slope, inter, signals, flags):
        plan, xp = self.plan, backend.array_namespace(data)
        points, lows, highs = [], [], []
        for index in range(len(data)):
            volume = _scaled(data, index, slope, inter)
            if self.may_be_missing:
                missing = ~xp.isfinite(volume)
                flags[index] = xp.any(missing)
                volume = _filled(volume, missing, self.shape)
                holes = xp.take(missing[0], xp.maximum(self.nearest - 1, 0)) & (self.nearest > 0)
                points.append(xp.where(holes, 0.0, plan.sample(volume)))
            else:
                points.append(plan.sample(volume))
            lows.append(xp.min(volume))
            highs.append(xp.max(volume))
        points = xp.concat(points)
        if self.clip is not None:
            low, high = self.clip
            signals[:] = plan.reduce(xp.minimum(xp.maximum(points, low), high))  # `clip` waits for the device
            return None
        signals[:] = plan.reduce(points)
        low, high = xp.minimum(xp.min(xp.stack(lows)), 0.0), xp.maximum(xp.max(xp.stack(highs)), 0.0)
        volumes, entries = xp.nonzero((points < low) | (points > high))  # synchronises
        return [backend.to_host(part) for part in (low, high, volumes, entries, points[volumes, entries])]


def _scaled(data, index, slope, inter):
    """A volume's values in float64, shape (1, n_voxels).

    One at a time is enough for what follows: in float64, a chunk takes several times the memory of its stored values.
    """
    xp = backend.array_namespace(data)
    return xp.astype(data[index : index + 1], xp.float64) * slope + inter


def _filled(volume, missing, shape):
    """The volume, shape (1, n_voxels), with its `missing` voxels replaced as `reducers.fill_non_finite` does it."""
    xp = backend.array_namespace(volume)
    known = ~xp.reshape(missing, shape)
    volume = xp.where(known, xp.reshape(volume, shape), 0.0)
    for _ in range(2):
        count, total = _sum_of_neighbours(xp, xp.astype(known, xp.float64)), _sum_of_neighbours(xp, volume)
        shell = ~known & (count > 0)
        volume = xp.where(shell, total / count, volume)
        known = known | shell
    return xp.reshape(volume, (1, -1))


def _sum_of_neighbours(xp, volume):
    """Sum over the six faces of each voxel, 0 beyond the border; shape (z, y, x)."""
    padded, total = xp.pad(volume, 1), 0.0
    for axis, n in enumerate(volume.shape):
        for shift in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(shift, shift + n)
            total = total + padded[tuple(window)]
    return total
