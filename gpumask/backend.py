"""Array libraries: the namespace and the device of an array, copies to and from a device, and CuPy's errors.

Only this module, `gpumask.cuda_runtime` and `gpumask.devices` import CuPy, on the first use of a GPU.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import array_api_compat
import numpy as np

Array = Any  # an array of NumPy, CuPy or another array-API library

is_numpy = array_api_compat.is_numpy_array
is_cupy = array_api_compat.is_cupy_array
device_of = array_api_compat.device


def array_namespace(*arrays: Array) -> Any:
    """Return the namespace of arrays with the functions of the array-API standard: NumPy itself for its arrays.

    That of array_api_compat is for older NumPy, and takes 0.1 s to import, because it imports all of NumPy.
    """
    if all(type(array) in (np.ndarray, np.memmap) for array in arrays):
        return np
    return array_api_compat.array_namespace(*arrays)


class DeviceError(RuntimeError):
    """The requested device can't be used on this machine."""


FORKED = (
    "CUDA was in use before this process was forked, and can't be used in a forked process",
    "Start processes with multiprocessing.get_context('spawn'), or with joblib's default backend.",
)


_process: int | None = None  # id of the process that uses CUDA: forks of it can't


def check_process() -> None:
    """Raise DeviceError in a fork of a process that uses CUDA."""
    if _process not in (None, os.getpid()):
        raise DeviceError(". ".join(FORKED))


@contextlib.contextmanager
def using(device: str) -> Iterator[None]:
    """Make `device` ("cpu" or "cuda:N") the current device of this thread inside the block.

    Raises
    ------
    DeviceError
        In a fork of a process that uses CUDA.
    """
    if device == "cpu":
        yield
        return
    import cupy

    global _process
    check_process()
    with cupy.cuda.Device(int(device.partition(":")[2])):
        _process = os.getpid()
        yield


def is_of_cupy(error):
    """Whether the error's class is one of CuPy or of the CUDA libraries."""
    return type(error).__module__.partition(".")[0] in ("cupy", "cupy_backends", "cupyx", "cuda")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CuPy raised the error because memory is full: a GPU's, or page-locked memory of the host."""
    full = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "ALLOC_FAILED")
    return is_of_cupy(error) and (isinstance(error, MemoryError) or any(name in str(error) for name in full))


def first_line(error: BaseException) -> str:
    """Return an error's class and the first line of its text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def device_dtype(dtype: Any) -> np.dtype:
    """Return the dtype that holds values of `dtype` on a GPU: native byte order, float64 for more than 64 bits."""
    dtype = np.dtype(dtype)
    return np.dtype(np.float64) if dtype.itemsize > 8 else dtype.newbyteorder("=")


def to_device(array: np.ndarray, device: str) -> Array:
    """Copy a NumPy array to `device` ("cpu" or "cuda:N"), in `device_dtype`; "cpu" returns the array itself."""
    if device == "cpu":
        return array
    import cupy

    with using(device):
        return cupy.asarray(array.astype(device_dtype(array.dtype), copy=False))


def cupy_from_dlpack(array: Any, device: str) -> Array:
    """Return an array of another library on `device` ("cuda:N") as CuPy's, sharing its memory."""
    import cupy

    with using(device):
        return cupy.from_dlpack(array)


def to_host(array: Array) -> np.ndarray:
    """Return the array as a NumPy array: a NumPy array unchanged, a CuPy array as a copy (waits for the device).

    Arrays of other libraries are converted by DLPack, without a copy where possible.
    """
    if is_numpy(array):
        return array
    if is_cupy(array):
        return array.get()
    return np.from_dlpack(array)


def like(values: Any, array: Array) -> Array:
    """Convert `values` (a NumPy array or a nested list) to the library and device of `array`."""
    return array_namespace(array).asarray(values, device=device_of(array))
