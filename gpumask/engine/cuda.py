"""Runs plans over a stream of volumes on a GPU: page-locked buffers, two streams, one download.

The calling thread decodes a chunk straight into a page-locked buffer while another thread submits the previous chunk
and the GPU processes it: one stream copies the stored values to the device, another reduces them there. All plans share
a chunk's copy. The calling thread waits only for a free buffer, and signals and flags stay on the device until the end
of the run; those of voxels also after it, if `Staging.on_device` says so. (Exceptions, for which the submitting thread
waits: resampled values outside their chunk's range are downloaded at once, to clip them to the run's range; and signals
of voxels that the device's memory doesn't hold.)
Plans and page-locked buffers are kept for the next run. A run that lies on the GPU is reduced where it is, without
buffers, copies or waits.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from gpumask import backend, devices
from gpumask.engine import gpu_run
from gpumask.engine.plan import Plan
from gpumask.engine.staging import Signals, Staging
from gpumask.images.volumes import Chunk, Volumes


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
        Called with the number of volumes read so far, in the calling thread.

    Returns
    -------
    results : list of Signals
        As from `gpumask.engine.host.stream`.
    seconds : dict
        Wall-clock seconds in "read" (decoding into the buffers, or copying) and "launch" (submitting to the GPU, in a
        thread of its own), and seconds of device time in "upload" and "reduce".

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

    def __init__(self, run: "gpu_run.GpuRun") -> None:
        self._run = run

    def add(self, chunk: Chunk) -> None:
        """Copy a chunk, to be submitted to the GPU. All chunks of the run are added, in order."""
        with _at_work(self._run.device):
            buffer = self._run.take()
            self._run.copy(chunk, buffer)
            self._run.submit(chunk, buffer)

    def results(self) -> tuple[list[Signals], dict[str, float]]:
        """Return the signals, and the seconds in "launch", "upload" and "reduce" as from `stream`."""
        with _at_work(self._run.device):
            self._run.await_launches()
            results, seconds = self._run.results(), self._run.seconds()
        return results, {name: seconds[name] for name in ("launch", "upload", "reduce")}


@contextlib.contextmanager
def _at_work(device):
    with devices.device_errors(device), backend.using(device):
        yield


@contextlib.contextmanager
def _allocated(plans, volumes, clips, stagings, size, device):
    with _at_work(device):
        run = gpu_run.GpuRun(plans, volumes, clips, stagings, size, device)
        try:
            run.allocate()
            yield run
        finally:
            run.end_threads()
            run.drain()
            run.give_back()
