"""Devices: what is chosen, what is refused and with which words, and what is never imported."""

import ctypes
import importlib.machinery
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import types

import array_api_strict
import numpy as np
import pytest

from gpumask import backend, cuda_runtime, devices
from gpumask.backend import DeviceError
from gpumask.devices import CudaStatus, cuda_status, resolve_device

DRIVER = "Install an NVIDIA driver, then pip install 'gpumask[cuda13]' (driver 580 or newer) or 'gpumask[cuda12]' (525 "
DRIVER += "or newer)."


@pytest.fixture
def driver(monkeypatch):
    """Choose the CUDA version that the driver seems to support."""
    return lambda version: monkeypatch.setattr(devices, "driver_cuda_version", lambda: version)


@pytest.fixture
def packages(monkeypatch):
    """Choose the packages of CuPy that seem to be installed."""
    return lambda *names: monkeypatch.setattr(devices, "_installed_cupy", lambda: list(names))


class OutOfMemoryError(MemoryError):
    """As CuPy's."""

    __module__ = "cupy.cuda.memory"


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""

    __module__ = "cupy_backends.cuda.api.runtime"


class CompileError(Exception):
    """As CuPy's."""

    __module__ = "cupy.cuda.compiler"


class FakeCupy(types.ModuleType):
    """As much of CuPy as the probe needs: `count` devices, `error` where kernels are first compiled.

    `error` and `result` are those of the device `bad`, or of all.
    """

    def __init__(self, count=1, error=None, result=6, bad=None):
        super().__init__("cupy")
        self.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
        self.entered, self.result, self.error, self.bad = [], result, error, bad

        def device_count():
            if isinstance(count, Exception):
                raise count
            return count

        properties = lambda index: {"name": f"GPU {index}".encode()}  # noqa: E731
        runtime = types.SimpleNamespace(getDeviceCount=device_count, getDeviceProperties=properties)
        self.cuda = types.SimpleNamespace(runtime=runtime, Device=self.device)

    def device(self, index):
        import contextlib

        self.entered.append(index)
        return contextlib.nullcontext()

    def arange(self, n):
        is_bad = self.bad in (None, self.entered[-1])
        if self.error and is_bad:
            raise self.error
        return np.full(3, (self.result if is_bad else 6) / 3 - 1)


@pytest.fixture
def cupy(monkeypatch):
    def install(**keywords):
        monkeypatch.setitem(sys.modules, "cupy", FakeCupy(**keywords))
        return sys.modules["cupy"]

    return install


def test_finds_devices(cupy):
    fake = cupy(count=2)
    assert cuda_status(None) == CudaStatus(devices=("GPU 0", "GPU 1"))
    assert fake.entered == []


@pytest.mark.parametrize(
    ("version", "problem", "remedy"),
    [
        (None, "CuPy is not installed and no NVIDIA driver was found", DRIVER),
        (
            (11, 4),
            "CuPy is not installed and the NVIDIA driver is too old: it supports CUDA 11.4",
            "Update it to 525 or newer, then pip install 'gpumask[cuda12]'.",
        ),
        ((12, 2), "CuPy is not installed", "Run: pip install 'gpumask[cuda12]'."),
        ((13, 1), "CuPy is not installed", "Run: pip install 'gpumask[cuda13]'."),
        ((14, 0), "CuPy is not installed", "Run: pip install 'gpumask[cuda13]'."),
    ],
)
def test_without_cupy(monkeypatch, driver, version, problem, remedy):
    driver(version)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cupy" else find_spec(name))
    status = cuda_status()
    assert (status.devices, status.problem) == ((), problem)
    assert status.remedy.startswith(remedy)
    assert "pip install 'gpumask[cuda" in status.remedy


def broken_cupy(monkeypatch, folder):
    (folder / "cupy.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file\\nmore')")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(folder)


BROKEN = "ImportError: libcudart.so.12: cannot open shared object file"


@pytest.mark.parametrize(
    ("version", "installed", "problem", "remedy"),
    [
        (None, ["cupy-cuda12x"], "no NVIDIA driver was found", DRIVER),
        (
            (12, 2),
            ["cupy-cuda13x"],
            "cupy-cuda13x is built for CUDA 13, but the driver supports CUDA 12.2",
            "Run: pip uninstall -y cupy-cuda13x; then: pip install 'gpumask[cuda12]'.",
        ),
        ((12, 2), ["cupy-cuda12x"], f"CuPy can't be imported ({BROKEN})", "Run: pip install 'gpumask[cuda12]'."),
        (
            (13, 0),
            ["cupy-cuda12x", "cupy-cuda13x"],
            "2 packages of CuPy are installed and overwrite each other: cupy-cuda12x, cupy-cuda13x",
            "Run: pip uninstall -y cupy-cuda12x cupy-cuda13x; then: pip install 'gpumask[cuda13]'.",
        ),
    ],
)
def test_broken_cupy(monkeypatch, driver, packages, tmp_path, version, installed, problem, remedy):
    driver(version)
    packages(*installed)
    broken_cupy(monkeypatch, tmp_path)
    assert cuda_status() == CudaStatus(problem=problem, remedy=remedy)


def test_installed_packages(monkeypatch):
    known = {"cupy-cuda12x": "14.1.1", "cupy-cuda13x": "14.2.0", "numpy": "2.4"}

    def version(name):
        if name in known:
            return known[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert devices._installed_cupy() == ["cupy-cuda12x", "cupy-cuda13x"]


MEMORY = "Stop other processes that use it: see nvidia-smi."
INSUFFICIENT = CUDARuntimeError(
    "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
)
PTX = CUDARuntimeError("cudaErrorUnsupportedPtxVersion: the provided PTX was compiled with an unsupported toolchain")
# What CuPy raises, on a driver of CUDA 12.2 (unless a version is given) with cupy-cuda12x: what the user reads.
ERRORS = {
    "no driver": (INSUFFICIENT, None, "no NVIDIA driver was found", DRIVER),
    "old driver": (
        INSUFFICIENT,
        (11, 4),
        "the NVIDIA driver is too old: it supports CUDA 11.4",
        "Update it to 525 or newer, then pip install 'gpumask[cuda12]'.",
    ),
    "driver": (
        INSUFFICIENT,
        (12, 2),
        "CuPy is built for a newer CUDA, but the driver supports CUDA 12.2",
        "Update the driver, or pip install 'gpumask[cuda12]'.",
    ),
    "ptx": (
        PTX,
        (12, 2),
        "CuPy is built for a newer CUDA, but the driver supports CUDA 12.2",
        "Update the driver, or pip install 'gpumask[cuda12]'.",
    ),
    "device": (
        CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"),
        (12, 2),
        "no CUDA device is visible",
        "Check CUDA_VISIBLE_DEVICES and nvidia-smi.",
    ),
    "full": (
        CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"),
        (12, 2),
        "the GPU is out of memory (CUDARuntimeError: cudaErrorMemoryAllocation: out of memory)",
        MEMORY,
    ),
    "pool": (
        OutOfMemoryError("Out of memory allocating 512 bytes (allocated so far: 0 bytes)."),
        (12, 2),
        "the GPU is out of memory (OutOfMemoryError: Out of memory allocating 512 bytes (allocated so far: 0 bytes).)",
        MEMORY,
    ),
    "nvrtc": (
        RuntimeError("CuPy failed to load libnvrtc.so.12: OSError: libnvrtc.so.12: cannot open shared object file"),
        (12, 2),
        "NVRTC, the CUDA runtime compiler, is missing (RuntimeError: CuPy failed to load libnvrtc.so.12: OSError: "
        "libnvrtc.so.12: cannot open shared object file)",
        "Run: pip install 'gpumask[cuda12]'.",
    ),
    "nvrtc-import": (
        ImportError("Failure finding 'libnvrtc.so'\nmany more lines"),
        (12, 2),
        "NVRTC, the CUDA runtime compiler, is missing (ImportError: Failure finding 'libnvrtc.so')",
        "Run: pip install 'gpumask[cuda12]'.",
    ),
    "architecture": (
        CompileError("nvrtc: error: invalid value for --gpu-architecture (-arch)"),
        (12, 2),
        "CuPy's compiler doesn't support this GPU (CompileError: nvrtc: error: invalid value for --gpu-architecture "
        "(-arch))",
        "Update CuPy. Run: pip install 'gpumask[cuda12]'.",
    ),
    "cache": (
        PermissionError(13, "Permission denied", "/home/me/.cupy/kernel_cache"),
        (12, 2),
        "CuPy can't write its kernel cache (PermissionError: [Errno 13] Permission denied: "
        "'/home/me/.cupy/kernel_cache')",
        "Set CUPY_CACHE_DIR to a writable folder, or CUPY_CACHE_IN_MEMORY=1.",
    ),
    "forked": (
        CUDARuntimeError("cudaErrorInitializationError: initialization error"),
        (12, 2),
        "CUDA was in use before this process was forked, and can't be used in a forked process",
        "Start processes with multiprocessing.get_context('spawn'), or with joblib's default backend.",
    ),
    "unknown": (
        ArithmeticError(),
        (12, 2),
        "CuPy fails (ArithmeticError)",
        "Compare nvidia-smi with the output of: python -c 'import cupy; cupy.show_config()'",
    ),
}


@pytest.mark.parametrize("where", ["count", "error"])
@pytest.mark.parametrize("kind", ERRORS)
def test_each_failure_has_its_remedy(cupy, driver, packages, monkeypatch, where, kind):
    error, version, problem, remedy = ERRORS[kind]
    driver(version)
    packages("cupy-cuda12x")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cupy(**{where: error})
    found = () if where == "count" else ("GPU 0",)
    assert cuda_status() == CudaStatus(found, problem, remedy)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(DeviceError) as caught:
        resolve_device("cuda:0")
    assert str(caught.value) == (
        f"device='cuda:0' was requested, but can't be used: {problem}. {remedy} "
        "Or use device='cpu', or 'auto' to let gpumask choose."
    )


@pytest.mark.parametrize("hidden", [None, "", "7"])
def test_no_device_is_visible(cupy, monkeypatch, hidden):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    cupy(count=0)
    assert cuda_status() == CudaStatus(
        problem="no CUDA device is visible" + ("" if hidden is None else f" (CUDA_VISIBLE_DEVICES='{hidden}')"),
        remedy="Check CUDA_VISIBLE_DEVICES and nvidia-smi.",
    )


def test_device_that_miscalculates(cupy):
    cupy(result=9)
    status = cuda_status()
    assert (status.devices, status.problem) == (("GPU 0",), "CUDA device 0 computes wrong results")
    assert status.remedy


@pytest.mark.parametrize(
    ("device", "resolved"),
    [("cpu", "cpu"), ("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")],
)
def test_resolves(cupy, device, resolved):
    """Only the device that is used is probed: each probe opens a context, which takes the GPU's memory."""
    fake = cupy(count=2)
    assert resolve_device(device) == resolved
    assert fake.entered == ([] if resolved == "cpu" else [int(resolved[-1])])


@pytest.mark.parametrize("failure", [{"result": 9}, {"error": OutOfMemoryError("Out of memory")}], ids=str)
def test_a_bad_gpu_does_not_hide_good_ones(cupy, failure):
    fake = cupy(count=3, bad=0, **failure)
    assert resolve_device("cuda:1") == "cuda:1"
    assert fake.entered == [1]
    assert resolve_device("auto") == "cuda:1"
    assert fake.entered == [1, 0, 1]
    with pytest.raises(DeviceError, match="device='cuda' was requested, but can't be used: "):
        resolve_device("cuda")


def test_the_cpu_is_not_asked_for_gpus(monkeypatch):
    monkeypatch.setattr(devices, "cuda_status", lambda *_: pytest.fail("probed"))
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize(
    "device",
    ["gpu", "CUDA", "cuda:", "cuda:-1", "cuda:01", "cuda:1 ", "cuda:1\n", " cpu", "", None, 0, b"cpu", ("cpu",)],
)
def test_refuses_other_values(monkeypatch, device):
    monkeypatch.setattr(devices, "cuda_status", lambda *_: pytest.fail("probed"))
    message = f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:N' with N a device number, got {device!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        resolve_device(device)


def test_refuses_a_device_that_is_not_there(cupy):
    cupy(count=2)
    message = "device='cuda:7' was requested, but can't be used: this machine has 2 CUDA device(s): cuda:0 (GPU 0), "
    message += "cuda:1 (GPU 1). Choose one of these. Or use device='cpu', or 'auto' to let gpumask choose."
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        resolve_device("cuda:7")


def test_this_machine():
    """Without a GPU, whatever the reason, "cuda" says why, and "auto" is the CPU."""
    status = cuda_status()
    if not status.problem:
        assert resolve_device("auto") == resolve_device("cuda") == "cuda:0"
        return
    assert status.problem
    assert status.remedy
    assert resolve_device("auto") == "cpu"
    with pytest.raises(DeviceError) as caught:
        resolve_device("cuda")
    assert status.problem in str(caught.value)
    assert status.remedy in str(caught.value)


# The driver


def library(version, status=0):
    def get(pointer):
        pointer._obj.value = version
        return status

    return types.SimpleNamespace(cuDriverGetVersion=get)


@pytest.mark.parametrize(
    ("reported", "status", "expected"),
    [(12040, 0, (12, 4)), (13000, 0, (13, 0)), (11080, 0, (11, 8)), (0, 0, None), (12040, 999, None)],
)
def test_driver_version(monkeypatch, reported, status, expected):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library(reported, status))
    assert devices.driver_cuda_version() == expected


def test_no_driver(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert devices.driver_cuda_version() is None


# Moving arrays


@pytest.mark.parametrize("dtype", ["?", "i2", "f4", "f8", "u8"])
def test_there_and_back(put, dtype):
    host = np.arange(12).reshape(3, 4).astype(dtype)
    array = put(host)
    back = backend.to_host(array)
    assert isinstance(back, np.ndarray)
    assert back.dtype == host.dtype
    np.testing.assert_array_equal(back, host)
    moved = backend.like(host, array)
    assert type(moved) is type(array)
    assert backend.device_of(moved) == backend.device_of(array)


def test_namespace_of_numpy_is_numpy(tmp_path):
    """array_api_compat's takes 0.1 s to import."""
    mapped = np.memmap(tmp_path / "values", np.float32, "w+", shape=3)
    assert backend.array_namespace(np.zeros(2), mapped) is np
    foreign = array_api_strict.asarray([1.0])
    assert backend.array_namespace(foreign) is array_api_strict
    with pytest.raises(TypeError):
        backend.array_namespace(np.zeros(2), foreign)


def test_numpy_is_not_copied():
    host = np.zeros(3, ">i2")
    assert backend.to_host(host) is host
    assert backend.to_device(host, "cpu") is host


@pytest.mark.parametrize("dtype", [">i2", ">f4", ">f8", "<i2"])
def test_byte_order_on_a_gpu(gpu, dtype):
    host = np.arange(5).astype(dtype)
    there = backend.to_device(host, gpu)
    assert there.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(backend.to_host(there), host)


def test_kernels_are_compiled_once(gpu):
    source = "template <typename T> __global__ void twice(T* x) { x[threadIdx.x] *= 2; }"
    kernel = cuda_runtime.cuda_kernel(source, "twice<float>")
    assert cuda_runtime.cuda_kernel(source, "twice<float>") is kernel
    there = backend.to_device(np.arange(4, dtype="f4"), gpu)
    kernel((1,), (4,), (there,))
    np.testing.assert_array_equal(backend.to_host(there), [0, 2, 4, 6])


# What is imported


SCRIPT = """
import importlib, pkgutil, sys
import gpumask
assert "cupy" not in sys.modules and "scipy" not in sys.modules, "at import"
import nibabel as nib, numpy as np
for module in pkgutil.walk_packages(gpumask.__path__, "gpumask."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from gpumask.images.grid import Grid
from gpumask.images.volumes import open_volumes
from gpumask.engine.stream import run_plans
from gpumask.engine.plan import compile_plan
from gpumask.kernels.segments import Segments
labels = np.arange(60).reshape(3, 4, 5) % 4
image = nib.Nifti1Image(np.ones((3, 4, 5, 2), "f4"), np.eye(4))
for strategy in ("mean", "median"):
    for target in (np.eye(4), np.diag([0.9, 0.9, 0.9, 1])):
        segments = Segments.from_labels(labels.ravel(order="F"), [1, 2])
        plan = compile_plan(segments, Grid(labels.shape, target), grid=Grid(labels.shape, np.eye(4)),
                            smoothing_fwhm=2.0, strategy=strategy)
        run_plans([plan], open_volumes(image))
found = {name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends", "nilearn")}
assert not found, found
"""


def test_the_cpu_path_imports_neither_cupy_nor_nilearn():
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Page-locked memory


def test_page_locked_memory_is_as_large_as_requested(gpu, monkeypatch):
    """CuPy's pool rounds it up to a power of two."""
    monkeypatch.setattr(cuda_runtime, "_unused_pinned", [])
    assert cuda_runtime.pinned_memory(33 * 2**20).size() == 33 * 2**20


def test_page_locked_memory_is_used_again(gpu, monkeypatch):
    monkeypatch.setattr(cuda_runtime, "_unused_pinned", [])
    first = cuda_runtime.pinned_memory(5000)
    other = cuda_runtime.pinned_memory(5000)
    assert first.ptr != other.ptr
    cuda_runtime.reuse_pinned(first)
    assert cuda_runtime.pinned_memory(4000) is first
    assert cuda_runtime.pinned_memory(0).size() == 1  # nothing is left to be used again


def test_page_locked_memory_that_is_too_small_is_freed(gpu, monkeypatch):
    monkeypatch.setattr(cuda_runtime, "_unused_pinned", [])
    small = cuda_runtime.pinned_memory(5000)
    cuda_runtime.reuse_pinned(small)
    assert cuda_runtime.pinned_memory(5001).size() == 5001
    assert cuda_runtime._unused_pinned == []
