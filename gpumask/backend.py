"""Array libraries and devices: the only module that names NumPy and CuPy.

Kernels ask it for the namespace and the device of their arguments, the masker asks it which device to use, and the
pipeline moves arrays with it. CuPy is imported on first use of a GPU, never before.
"""

import contextlib
import ctypes
import functools
import importlib.util
import re
import sys
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

Array = Any  # an array of NumPy, CuPy or another array-API library

array_namespace = array_api_compat.array_namespace
is_numpy = array_api_compat.is_numpy_array
is_cupy = array_api_compat.is_cupy_array
device_of = array_api_compat.device


class DeviceError(RuntimeError):
    """The requested device can't be used on this machine."""


@dataclass(frozen=True)
class CudaStatus:
    """What CuPy can reach on this machine.

    Attributes
    ----------
    devices : tuple of str
        Names of the usable CUDA devices, in CuPy's order; empty if there is none.
    problem : str
        Why no CUDA device can be used; empty if there is one.
    remedy : str
        What to do about it; empty if there is nothing to mend.
    """

    devices: tuple[str, ...] = ()
    problem: str = ""
    remedy: str = ""


def driver_cuda_version():
    """CUDA version that the NVIDIA driver supports, as (major, minor), or None without a driver.

    Asks ``cuDriverGetVersion`` of the driver's own library, so it needs neither CuPy nor a CUDA toolkit.
    """
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        version = ctypes.c_int(0)
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
            return version.value // 1000, version.value % 1000 // 10
    return None


def _install_line(version):
    if version is None:
        return (
            "Install an NVIDIA driver, then pip install 'gpumask[cuda13]' (driver 580 or newer) "
            "or 'gpumask[cuda12]' (525 or newer)."
        )
    if version[0] < 12:
        return (
            f"The driver supports CUDA {version[0]}.{version[1]}: update it to 525 or newer, "
            "then pip install 'gpumask[cuda12]'."
        )
    return f"Run: pip install 'gpumask[cuda{min(version[0], 13)}]'."


def cuda_status():
    """Probe the GPUs by computing on each of them.

    A device count alone proves little: a missing NVRTC or a full device shows only when a kernel is compiled and
    launched, so one is.

    Returns
    -------
    CudaStatus
    """
    version = driver_cuda_version()
    if importlib.util.find_spec("cupy") is None:
        problem = "CuPy is not installed" + ("" if version else " and no NVIDIA driver was found")
        return CudaStatus(problem=problem, remedy=_install_line(version))
    try:
        import cupy
    except Exception as error:  # a broken wheel raises whatever its loader raises
        return CudaStatus(problem=f"CuPy can't be imported: {_first_line(error)}", remedy=_install_line(version))
    try:
        names = []
        for index in range(cupy.cuda.runtime.getDeviceCount()):
            with cupy.cuda.Device(index):
                if int((cupy.arange(3) + 1).sum()) != 6:
                    problem = f"CUDA device {index} computes wrong results"
                    return CudaStatus(problem=problem, remedy="Check it with nvidia-smi, and update driver and CuPy.")
            names.append(cupy.cuda.runtime.getDeviceProperties(index)["name"].decode())
    except Exception as error:  # CUDARuntimeError, ImportError (no NVRTC), OutOfMemoryError, OSError (kernel cache)
        return CudaStatus(problem=_first_line(error), remedy=_remedy(error, version))
    if not names:
        return CudaStatus(problem="no CUDA device is visible", remedy="Check CUDA_VISIBLE_DEVICES and nvidia-smi.")
    return CudaStatus(devices=tuple(names))


def _first_line(error):
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _remedy(error, version):
    text = str(error)
    if "cudaErrorInsufficientDriver" in text:
        return _install_line(version)
    if "cudaErrorNoDevice" in text:
        return "Check CUDA_VISIBLE_DEVICES and nvidia-smi."
    if "nvrtc" in text.lower():
        return f"The CUDA runtime compiler is missing. {_install_line(version)}"
    if isinstance(error, MemoryError) or "cudaErrorMemoryAllocation" in text:  # CuPy's OutOfMemoryError is the first
        return "Another process holds the GPU's memory: see nvidia-smi."
    if isinstance(error, OSError):
        return "CuPy can't write its kernel cache: set CUPY_CACHE_DIR to a writable folder or CUPY_CACHE_IN_MEMORY=1."
    return "See `gpumask info`."


def resolve_device(device):
    """Turn a user's ``device`` into the one that is used, and never into another.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:N"}
        "auto" takes the first CUDA device that can compute, else the CPU. "cuda" is "cuda:0".

    Returns
    -------
    str
        "cpu" or "cuda:N".

    Raises
    ------
    ValueError
        For any other value.
    DeviceError
        If a CUDA device was asked for and can't be used; the message names cause and remedy.
    """
    if device == "cpu":
        return "cpu"
    cuda = re.fullmatch(r"cuda(?::(0|[1-9][0-9]*))?", device) if isinstance(device, str) else None
    if device != "auto" and not cuda:
        msg = f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:N' with N a device number, got {device!r}."
        raise ValueError(msg)
    if device == "auto" and "cupy" not in sys.modules and driver_cuda_version() is None:
        return "cpu"  # importing CuPy to learn that there is no driver takes 0.15 s
    status = cuda_status()
    if device == "auto":
        return "cuda:0" if status.devices else "cpu"
    if not status.devices:
        msg = (
            f"device={device!r} was requested, but no GPU can be used: {status.problem}. {status.remedy} "
            "Or use device='cpu', or 'auto' to let gpumask choose."
        )
        raise DeviceError(msg)
    index = int(cuda[1] or 0)
    if index >= len(status.devices):
        found = ", ".join(f"cuda:{i} ({name})" for i, name in enumerate(status.devices))
        msg = f"device={device!r} was requested, but this machine has {len(status.devices)} CUDA device(s): {found}."
        raise DeviceError(msg)
    return f"cuda:{index}"


@contextlib.contextmanager
def using(device):
    """Make `device` ("cpu" or "cuda:N") the current device of this thread inside the block."""
    if device == "cpu":
        yield
        return
    import cupy

    with cupy.cuda.Device(int(device.partition(":")[2])):
        yield


def to_device(array, device):
    """Copy a NumPy array to `device` ("cpu" or "cuda:N"), keeping its dtype; a no-op for "cpu".

    A big-endian array arrives in native byte order, which is all that a GPU knows.
    """
    if device == "cpu":
        return array
    import cupy

    with using(device):
        return cupy.asarray(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))


def to_host(array):
    """The array as a NumPy array: itself if it is one, else a copy (on a GPU this waits for the device)."""
    if is_numpy(array):
        return array
    if is_cupy(array):
        return array.get()
    return np.from_dlpack(array)


def like(values, array):
    """`values` (a NumPy array or a nested list) as an array of the library and on the device of `array`."""
    return array_namespace(array).asarray(values, device=device_of(array))


@functools.lru_cache(maxsize=64)
def _cuda_kernel(source, name, options, device):
    import cupy

    module = cupy.RawModule(code=source, options=("--std=c++14", *options), name_expressions=(name,))
    return module.get_function(name)


def cuda_kernel(source, name, options=()):
    """Compile a templated CUDA kernel for the current device, once.

    Parameters
    ----------
    source : str
        CUDA C++ text.
    name : str
        Name expression of the instance, such as ``"scale<float>"``.
    options : tuple of str
        Compiler options beside the language standard.

    Returns
    -------
    cupy.RawKernel
        Called as ``kernel(grid, block, arguments)``.
    """
    import cupy

    return _cuda_kernel(source, name, options, cupy.cuda.runtime.getDevice())
