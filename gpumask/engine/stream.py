"""Runs plans over a stream of volumes: one pass, a few chunks in memory, reading overlapped with reducing.

The calling thread reads chunks of stored volumes (isal decompresses without the interpreter lock), while worker threads
(`engine.host`), a GPU (`engine.cuda`) or both reduce them, each for its own plans. A volume's row of the result depends
only on that volume, so the result is bit-identical for any chunk size and any number of threads.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpumask import backend
from gpumask.backend import Array
from gpumask.choices import VOXEL
from gpumask.engine import cuda, host
from gpumask.engine.plan import Plan
from gpumask.engine.staging import Staging
from gpumask.images.volumes import Volumes
from gpumask.process import n_cores

# A product with 16 volumes reads each weight once for all of them; more volumes only cost memory.
_CHUNK_VOLUMES = 16
_CHUNK_BYTES = 48 * 2**20
# The values of all voxels take memory in float64 for each core, and nothing is shared between volumes. On a GPU, more
# volumes spare launches.
_CHUNK_OF_VOXELS = 1
_CHUNK_WITH_VOXELS = 4


@dataclass
class Extraction:
    """Region signals of one run, and the seconds they took.

    Attributes
    ----------
    signals : array of float64 (with another `Staging`, of its dtype), shape (n_volumes, n_regions)
        Before any cleaning. On the host, or on a device if `Staging.on_device` says so.
    base : array of float64, shape (n_regions,), or None
        To be added to the signals of all volumes.
    non_finite : bool
        Whether a voxel of a region is NaN or infinite.
    seconds : dict
        Wall-clock seconds in "read" (the calling thread, waiting for the disk or decompressing), "reduce" (summed over
        the workers, including their preparation: folding, cutting) and "total". On a GPU, its own clock measures
        "upload" and "reduce", and "launch" is the time of the thread that submits work to it. Several devices are
        summed.
    """

    signals: Array
    base: Array | None = None
    non_finite: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


def run_plans(
    plans: Sequence[Plan],
    volumes: Volumes,
    *,
    stagings: Sequence[Staging] | None = None,
    progress: Callable[[int], object] | None = None,
    chunk: int | None = None,
    n_threads: int | None = None,
) -> list[Extraction]:
    """Extract the region signals of several plans in one pass over a run.

    Parameters
    ----------
    plans : sequence of Plan
        For the grid of `volumes`. Each is run on its device.
    volumes : Volumes
        Read once, in order; read twice if a resampled, non-linear plan needs the run's range of values beforehand.
    stagings : sequence of Staging, optional
        How each plan's signals are kept. If None, in float64.
    progress : callable, optional
        Called with the number of volumes done so far (on a GPU: read for it), in the calling thread.
    chunk : int, optional
        Volumes per chunk. If None, at most 16 that fit in 48 MiB.
    n_threads : int, optional
        Worker threads on the CPU. If None, one per core that the process may use. Unused on a GPU.

    Returns
    -------
    list of Extraction
        One per plan, bit for bit as if it ran alone. The seconds are those of the whole pass.
    """
    started = time.perf_counter()
    clip = _range(volumes) if any(plan.resampling is not None and not plan.linear for plan in plans) else None
    clips = [None if plan.linear else clip for plan in plans]
    stagings = stagings or [Staging()] * len(plans)
    size = min(chunk or _chunk_size(volumes, plans), volumes.n_volumes)
    devices = sorted({"cpu"} if not plans else {plan.device for plan in plans})

    def of(device: str) -> tuple[list[Plan], Volumes, list[tuple[float, float] | None], list[Staging]]:
        chosen = [k for k, plan in enumerate(plans) if plan.device == device]
        return [plans[k] for k in chosen], volumes, [clips[k] for k in chosen], [stagings[k] for k in chosen]

    results = {}
    if len(devices) == 1 and devices != ["cpu"]:  # decoded straight into page-locked buffers
        results[devices[0]], seconds = cuda.stream(*of(devices[0]), size, devices[0], progress)
    else:
        with contextlib.ExitStack() as stack:
            gpus = [device for device in devices if device != "cpu"]
            receivers = {gpu: stack.enter_context(cuda.receiver(*of(gpu), size, gpu)) for gpu in gpus}
            also = [receiver.add for receiver in receivers.values()]
            results["cpu"], seconds = host.stream(*of("cpu"), size, n_threads or n_cores(), progress, also)
            for gpu, receiver in receivers.items():
                results[gpu], more = receiver.results()
                seconds = seconds | {name: seconds.get(name, 0.0) + value for name, value in more.items()}
    seconds["total"] = time.perf_counter() - started
    in_order = {device: iter(of_device) for device, of_device in results.items()}
    return [Extraction(*next(in_order[plan.device]), seconds) for plan in plans]


def _chunk_size(volumes, plans=()):
    volume_bytes = max(volumes.grid.n_voxels * volumes.dtype.itemsize, 1)
    of_voxels = {plan.strategy == VOXEL for plan in plans if plan.device == "cpu"}
    most = _CHUNK_OF_VOXELS if of_voxels == {True} else _CHUNK_WITH_VOXELS if True in of_voxels else _CHUNK_VOLUMES
    return int(min(max(_CHUNK_BYTES // volume_bytes, 1), most, max(volumes.n_volumes, 1)))


def _range(volumes):
    """Range of 0 and the finite values of a run."""
    low = high = 0.0
    for chunk in volumes.chunks(_chunk_size(volumes)):  # on a GPU, each waits for it
        data, xp = chunk.data, backend.array_namespace(chunk.data)
        if data.dtype.kind == "f":
            data = xp.where(xp.isfinite(data), data, 0)
        ends = [float(data.min()) * chunk.slope + chunk.inter, float(data.max()) * chunk.slope + chunk.inter]
        low, high = min(low, *ends), max(high, *ends)
    return low, high
