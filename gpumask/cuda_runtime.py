"""Memory, streams, events and kernels of the current CUDA device."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpumask import backend
from gpumask.backend import Array


def for_threads(device: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return what makes contexts for other threads: `backend.using`, with the calling thread's allocator."""
    import cupy

    allocator = cupy.cuda.get_allocator()

    @contextlib.contextmanager
    def current() -> Iterator[None]:
        with backend.using(device), cupy.cuda.using_allocator(allocator):
            yield

    return current


def device_memory() -> tuple[int, int]:
    """Return the free bytes and all bytes of the current device.

    Unused memory of CuPy's pool counts as free. If the pool has a limit, at most its unused part is free.
    """
    import cupy

    pool = cupy.get_default_memory_pool()
    free, total = cupy.cuda.runtime.memGetInfo()
    free += pool.free_bytes()
    limit = pool.get_limit()
    return (min(free, limit - pool.used_bytes()) if limit else free), total


def uses_own_pool() -> bool:
    """Whether CuPy allocates from its own pool. `device_memory` doesn't count the unused memory of RMM's."""
    import cupy

    return getattr(cupy.cuda.get_allocator(), "__self__", None) is cupy.get_default_memory_pool()


def release_memory() -> None:
    """Free the unused memory of CuPy's pool on the current device."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()


_unused_pinned: list[Any] = []  # page-locked memory of finished runs
_pinned_lock = threading.Lock()


def pinned_memory(n_bytes: int) -> Any:
    """Return a page-locked buffer of at least `n_bytes`, which a GPU can copy from while the CPU continues.

    It is one that `reuse_pinned` got, if one is large enough: page-locking takes longer than filling. CuPy's pool isn't
    used, because it rounds 33 MiB up to 64.

    Raises
    ------
    DeviceError
        If the memory can't be allocated. Pageable memory won't do: copies from it block silently.
    """
    import cupy

    with _pinned_lock:
        for memory in _unused_pinned:
            if memory.size() >= n_bytes:
                _unused_pinned.remove(memory)
                return memory
        _unused_pinned.clear()
    try:
        return cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(max(n_bytes, 1)), 0)
    except Exception as error:
        if not backend.is_out_of_memory(error):
            raise
        msg = (
            f"{n_bytes / 2**20:.0f} MiB of page-locked host memory can't be allocated: "
            f"{backend.first_line(error)}. Free memory of the host, raise the limit on locked memory (ulimit -l), or "
            "use device='cpu'."
        )
        raise backend.DeviceError(msg) from error


def reuse_pinned(memory: Any) -> None:
    """Keep a buffer from `pinned_memory` for the next run. Nothing may use it any more."""
    with _pinned_lock:
        _unused_pinned.append(memory)


_streams = threading.local()


def stream(name: str) -> Any:
    """Return this thread's stream (a queue of copies and kernels) of that name on the current device.

    Streams are kept, because CuPy's pool reuses memory only within the stream that it was allocated in.
    """
    import cupy

    kept: dict[Any, Any] = vars(_streams)
    key = name, cupy.cuda.runtime.getDevice()
    if key not in kept:
        kept[key] = cupy.cuda.Stream(non_blocking=True)
    return kept[key]


def current_stream() -> Any:
    """Return the stream that this thread's CuPy functions use on the current device."""
    import cupy

    return cupy.cuda.get_current_stream()


def new_event() -> Any:
    """Return a CUDA event: recorded in a stream, it marks a position and its time."""
    import cupy

    return cupy.cuda.Event()


def seconds_between(first: Any, last: Any) -> float:
    """Return the seconds of device time between two completed events."""
    import cupy

    return cupy.cuda.get_elapsed_time(first, last) / 1000


def upload(source: np.ndarray, target: Array, stream: Any) -> None:
    """Queue a copy of `source` to `target` on the device.

    `source` must be page-locked, and mustn't be modified before the copy has finished.
    """
    target.set(source, stream=stream)


def await_current_stream(device: str) -> None:
    """Wait until the GPU has finished what this thread's current stream of `device` has queued."""
    import cupy

    with backend.using(device):
        cupy.cuda.get_current_stream().synchronize()


def correlate(array: Array, weights: Array, mode: str) -> Array:
    """Correlate a CuPy array with weights, in one launch.

    Parameters
    ----------
    array, weights : CuPy arrays of float64, of the same number of axes
        CuPy would sum an array of fewer bits in float32.
    mode : str
        Values beyond the borders, as in ``scipy.ndimage.correlate``.
    """
    from cupyx.scipy import ndimage

    with backend.device_of(array):  # not always the thread's current one
        return ndimage.correlate(array, weights, mode=mode)


def evaluate_spline(coefficients: Array, coordinates: Array, out: Array) -> None:
    """Evaluate a cubic spline at some points of a volume, into `out`; one launch on CuPy.

    Parameters
    ----------
    coefficients : CuPy array of float64, shape (n_z, n_y, n_x)
        From the prefilter of mode "mirror".
    coordinates : CuPy array of float64, shape (3, n_points)
        In voxels, inside the volume.
    out : CuPy array of float64, shape (n_points,)
    """
    from cupyx.scipy import ndimage

    with backend.device_of(coefficients):
        ndimage.map_coordinates(coefficients, coordinates, out, order=3, mode="mirror", prefilter=False)


@functools.lru_cache(maxsize=64)
def _cuda_kernel(source, name, options, device):
    import cupy

    module = cupy.RawModule(code=source, options=("--std=c++14", *options), name_expressions=(name,))
    return module.get_function(name)


def cuda_kernel(source: str, name: str, options: tuple[str, ...] = ()) -> Any:
    """Compile a templated CUDA kernel for the current device. Compiled kernels are cached.

    Parameters
    ----------
    source : str
        CUDA C++ text.
    name : str
        Name expression of the instance, such as ``"scale<float>"``.
    options : tuple of str
        Compiler options in addition to the language standard.

    Returns
    -------
    cupy.RawKernel
        Called as ``kernel(grid, block, arguments)``.
    """
    import cupy

    return _cuda_kernel(source, name, options, cupy.cuda.runtime.getDevice())
