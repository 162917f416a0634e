"""Devices: which one a user requests, which GPUs there are, and why one can't be used."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from gpumask.backend import FORKED, DeviceError, check_process, first_line, is_of_cupy, is_out_of_memory, using


@dataclass(frozen=True)
class CudaStatus:
    """The GPUs of this machine, and why the one that was probed can't be used.

    Attributes
    ----------
    devices : tuple of str
        Names of the visible CUDA devices, in CuPy's order, usable or not. Empty if CUDA can't list them.
    problem : str
        Why the GPU can't be used; empty if it can.
    remedy : str
        How to fix the problem; empty without one.
    """

    devices: tuple[str, ...] = ()
    problem: str = ""
    remedy: str = ""


def driver_cuda_version() -> tuple[int, int] | None:
    """Return the CUDA version that the NVIDIA driver supports, as (major, minor), or None without a driver.

    The driver's own library reports it (``cuDriverGetVersion``), so neither CuPy nor a CUDA toolkit is needed.
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
    """Installation hint for a driver that supports CUDA `version`; None means no driver."""
    if version is None:
        return (
            "Install an NVIDIA driver, then pip install 'gpumask[cuda13]' (driver 580 or newer) "
            "or 'gpumask[cuda12]' (525 or newer)."
        )
    if version[0] < 12:
        return "Update it to 525 or newer, then pip install 'gpumask[cuda12]'."
    return f"Run: pip install 'gpumask[cuda{min(version[0], 13)}]'."


def _no_driver(version):
    """Why CuPy can't work with the driver; empty if it can."""
    if version is None:
        return "no NVIDIA driver was found"
    return f"the NVIDIA driver is too old: it supports CUDA {version[0]}.{version[1]}" if version[0] < 12 else ""


def _installed_cupy():
    """Installed CuPy packages, such as ["cupy-cuda13x"]. All of them install the same module."""
    found = []
    for name in ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            found.append(name)
    return found


def cuda_status(index: int | None = 0) -> CudaStatus:
    """List the GPUs, and probe one of them by computing on it.

    Finding a device isn't enough: a missing NVRTC or a full device shows only when a kernel is compiled and launched.
    The other GPUs are left alone: a context takes hundreds of MiB of a GPU's memory.

    Parameters
    ----------
    index : int or None
        Number of the device to probe. If None, none is.

    Returns
    -------
    CudaStatus
    """
    version = driver_cuda_version()
    if importlib.util.find_spec("cupy") is None:
        problem = " and ".join(filter(None, ("CuPy is not installed", _no_driver(version))))
        return CudaStatus(problem=problem, remedy=_install_line(version))
    names: list[str] = []
    try:
        check_process()
        import cupy

        runtime = cupy.cuda.runtime
        names += [runtime.getDeviceProperties(k)["name"].decode() for k in range(runtime.getDeviceCount())]
        if not names:
            return CudaStatus(problem=_no_device(), remedy=_CHECK_VISIBLE)
        if index is not None:
            if index >= len(names):
                found = ", ".join(f"cuda:{k} ({name})" for k, name in enumerate(names))
                problem = f"this machine has {len(names)} CUDA device(s): {found}"
                return CudaStatus(tuple(names), problem, "Choose one of these.")
            with using(f"cuda:{index}"):
                if int((cupy.arange(3) + 1).sum()) != 6:
                    problem = f"CUDA device {index} computes wrong results"
                    return CudaStatus(tuple(names), problem, "Check it with nvidia-smi, and update driver and CuPy.")
    except Exception as error:  # CuPy, the CUDA libraries and the loader of a broken wheel raise different classes
        return CudaStatus(tuple(names), *_diagnosis(error, version))
    return CudaStatus(tuple(names))


_STOP_OTHERS = "Stop other processes that use it: see nvidia-smi."
_CHECK_VISIBLE = "Check CUDA_VISIBLE_DEVICES and nvidia-smi."


def _no_device():
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "no CUDA device is visible" + (f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden is not None else "")


def _diagnosis(error, version):
    """Cause and remedy of an error from CuPy, on a machine whose driver supports CUDA `version`."""
    text, line = str(error), first_line(error)
    packages = _installed_cupy()
    built_for = max((int(name[9:11]) for name in packages if name != "cupy"), default=None)
    if isinstance(error, DeviceError) or "cudaErrorInitializationError" in text:
        return FORKED
    if "cudaErrorNoDevice" in text or "cudaErrorInvalidDevice" in text:
        return _no_device(), _CHECK_VISIBLE
    if is_out_of_memory(error):
        return f"the GPU is out of memory ({line})", _STOP_OTHERS
    if len(packages) > 1:
        remedy = f"Run: pip uninstall -y {' '.join(packages)}; then: {_install_line(version).removeprefix('Run: ')}"
        return f"{len(packages)} packages of CuPy are installed and overwrite each other: {', '.join(packages)}", remedy
    newer = any(name in text for name in ("cudaErrorInsufficientDriver", "UnsupportedPtx", "UNSUPPORTED_PTX"))
    if newer or isinstance(error, ImportError):
        if _no_driver(version):
            return _no_driver(version), _install_line(version)
        supported = f"the driver supports CUDA {version[0]}.{version[1]}"
        install = _install_line(version).removeprefix("Run: ")
        if built_for and built_for > version[0]:
            remedy = f"Run: pip uninstall -y {packages[0]}; then: pip install 'gpumask[cuda{version[0]}]'."
            return f"{packages[0]} is built for CUDA {built_for}, but {supported}", remedy
        if newer:
            return f"CuPy is built for a newer CUDA, but {supported}", f"Update the driver, or {install}"
    if "gpu-architecture" in text:
        return f"CuPy's compiler doesn't support this GPU ({line})", f"Update CuPy. {_install_line(version)}"
    if "nvrtc" in text.lower():
        return f"NVRTC, the CUDA runtime compiler, is missing ({line})", _install_line(version)
    if isinstance(error, OSError) and error.filename:  # CuPy creates the folder when it is imported
        remedy = "Set CUPY_CACHE_DIR to a writable folder, or CUPY_CACHE_IN_MEMORY=1."
        return f"CuPy can't write its kernel cache ({line})", remedy
    if "cupy" not in sys.modules:
        return f"CuPy can't be imported ({line})", _install_line(version)
    return f"CuPy fails ({line})", "Compare nvidia-smi with the output of: python -c 'import cupy; cupy.show_config()'"


_CUDA = re.compile(r"cuda(?::(0|[1-9][0-9]*))?")


def resolve_device(device: str, data_on: str = "cpu") -> str:
    """Resolve a user's `device`. A requested GPU is never replaced by another device, and no other GPU is probed.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:N"}
        "auto" selects the first usable GPU, else the CPU. "cuda" means "cuda:0".
    data_on : str
        Device of the run. One on a GPU is computed there, and "auto" selects this GPU; no run is moved silently.

    Returns
    -------
    str
        "cpu" or "cuda:N".

    Raises
    ------
    ValueError
        For any other value, or if the run lies on another GPU, or on a GPU and the CPU is requested.
    DeviceError
        If a requested CUDA device is unusable; the message states cause and remedy.
    """
    check_device(device)
    if data_on != "cpu":
        return _where_data_lie(device, data_on)
    if device == "auto":
        return _first_usable()
    cuda = _CUDA.fullmatch(device)
    if not cuda:
        return "cpu"
    index = int(cuda[1] or 0)
    _check_usable(device, cuda_status(index))
    return f"cuda:{index}"


def _where_data_lie(device, data_on):
    if device not in ("auto", data_on) and (device, data_on) != ("cuda", "cuda:0"):
        other = "pass a copy in host memory" if device == "cpu" else f"copy the run to {device} first"
        msg = (
            f"The run lies on {data_on}, but device={device!r} was requested. Use device={data_on!r} or 'auto', or "
            f"{other}."
        )
        raise ValueError(msg)
    return data_on


def _check_usable(device, status):
    if status.problem:
        msg = (
            f"device={device!r} was requested, but can't be used: {status.problem}. {status.remedy} "
            "Or use device='cpu', or 'auto' to let gpumask choose."
        )
        raise DeviceError(msg)


def split_devices(devices: str) -> tuple[str, ...]:
    """Split the devices that share the runs of a cohort; no GPU is probed.

    Parameters
    ----------
    devices : str
        What `resolve_device` accepts, several GPUs separated by commas, or "cuda:all" for all visible ones.

    Returns
    -------
    tuple of str
        Each for `resolve_device`.

    Raises
    ------
    ValueError
        If a device is unknown, or several aren't different GPUs.
    DeviceError
        If all GPUs are requested and none is visible.
    """
    if devices == "cuda:all":
        status = cuda_status(None)
        _check_usable(devices, status)
        return tuple(f"cuda:{index}" for index in range(len(status.devices)))
    if not isinstance(devices, str) or "," not in devices:
        check_device(devices)
        return (devices,)
    numbered = tuple("cuda:0" if device == "cuda" else device for device in devices.split(","))
    if not all(map(_CUDA.fullmatch, numbered)) or len(set(numbered)) < len(numbered):
        msg = f"Several devices must be different GPUs, such as 'cuda:0,cuda:1', got {devices!r}."
        raise ValueError(msg)
    return numbered


def check_device(device: str) -> None:
    """Raise ValueError if `device` isn't one that `resolve_device` accepts; nothing is probed."""
    if not (isinstance(device, str) and (device in ("auto", "cpu") or _CUDA.fullmatch(device))):
        msg = f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:N' with N a device number, got {device!r}."
        raise ValueError(msg)


def _first_usable():
    if "cupy" not in sys.modules and driver_cuda_version() is None:
        return "cpu"  # importing CuPy only to find no driver takes 0.15 s
    for index in range(len(cuda_status(None).devices)):
        if not cuda_status(index).problem:
            return f"cuda:{index}"
    return "cpu"


@contextlib.contextmanager
def device_errors(device: str) -> Iterator[None]:
    """Convert errors of CuPy inside the block (a lost GPU, full memory, a missing library) to `DeviceError`."""
    try:
        yield
    except Exception as error:
        failed = "failed"
        if isinstance(error, ImportError):  # CuPy loads a CUDA library when it first needs it
            remedy = _install_line(driver_cuda_version())
        elif is_out_of_memory(error):
            failed, remedy = "is out of memory", _STOP_OTHERS
        elif is_of_cupy(error):
            remedy = "Check it with nvidia-smi, and start a new process: this one can't use the GPU again."
        else:
            raise
        msg = f"{device} {failed}: {first_line(error)}. {remedy} Or use device='cpu'."
        raise DeviceError(msg) from error
