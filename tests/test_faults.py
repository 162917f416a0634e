"""A GPU that fails: full, lost in the middle of a run, forked, misinstalled. The right result, or a clear error."""

import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest

from gpumask import NiftiLabelsMasker, backend, cuda_runtime, devices
from gpumask.backend import DeviceError
from gpumask.devices import cuda_status
from gpumask.engine.plan import Plan
from gpumask.engine.stream import run_plans
from gpumask.images.errors import ImageError
from gpumask.images.volumes import open_volumes
from gpumask.kernels import segments_cuda

from .runs import AFFINE, SHAPE, extract, on, some_labels, some_plan, stored_run, write

PLANS = {
    "direct": [("same", None, "mean")],
    "folded": [("same", 6.0, "sum")],
    "staged": [("same", 6.0, "median")],
    "parallel": [("parallel", None, "mean")],
    "several": [("same", None, "median"), ("parallel", None, "mean"), ("oblique", 6.0, "sum")],
}
every_plan = pytest.mark.parametrize("plans", PLANS)


@pytest.fixture
def run(gpu, tmp_path):
    """Extract a run of 6 volumes, as a list of signals."""
    path = write(tmp_path / "bold.nii.gz", stored_run("f4", 6), 1.5, -20.0)

    def extract_all(plans, chunk=4):
        compiled = [some_plan(*plan) for plan in PLANS[plans]]
        return [result.signals for result in run_plans(on(compiled, gpu), open_volumes(path), chunk=chunk)]

    return extract_all


# Memory of the device


class Allocator:
    """CuPy's allocator, but for the allocations chosen by `fails`, a function of number and size."""

    def __init__(self, fails):
        import cupy

        self.fails, self.count = fails, 0
        self.error, self.allocate = cupy.cuda.memory.OutOfMemoryError, cupy.cuda.get_allocator()

    def __call__(self, size):
        self.count += 1
        if self.fails(self.count, size):
            raise self.error(size, 0)
        return self.allocate(size)

    def __enter__(self):
        import cupy

        cupy.cuda.set_allocator(self)
        return self

    def __exit__(self, *_):
        import cupy

        cupy.cuda.set_allocator(self.allocate)


@every_plan
def test_any_allocation_may_fail_once(run, plans):
    expected = run(plans)
    with Allocator(lambda count, size: False) as allocator:
        run(plans)
    numbers = range(1, allocator.count + 1)
    assert len(numbers) > 5
    for number in [*numbers[:15], *numbers[15 :: max(len(numbers) // 8, 1)]]:  # later ones are much alike
        with Allocator(lambda count, size, number=number: count == number) as allocator:
            result = run(plans)
        assert allocator.count > number  # it failed, and things went on
        for signals, right in zip(result, expected, strict=True):
            np.testing.assert_array_equal(signals, right)


FULL = (
    r"^cuda:0 is out of memory, with a single volume of \d+\.\d MiB at a time: Out of memory allocating [\d,]+ bytes "
    r"\(allocated so far: 0 bytes\)\. \d+ of its \d+ MiB are free\. Stop other processes that use it \(see "
    r"nvidia-smi\), or use device='cpu'\.$"
)


@every_plan
def test_any_allocation_may_fail_for_good(run, plans):
    with Allocator(lambda count, size: False) as allocator:
        expected = run(plans)
    for number in {1, 2, 5, allocator.count // 2, allocator.count}:
        with Allocator(lambda count, size, number=number: count >= number), pytest.raises(DeviceError, match=FULL):
            run(plans)
    np.testing.assert_array_equal(run(plans)[0], expected[0])  # nothing is left behind


def test_less_at_a_time(run, monkeypatch):
    """Where a buffer of more than one volume can't be had, one at a time gives the same bits."""
    expected, sizes, upload = run("direct"), [], cuda_runtime.upload
    monkeypatch.setattr(cuda_runtime, "upload", lambda *a: (sizes.append(len(a[0])), upload(*a)))
    volume_bytes = stored_run("f4", 1).nbytes
    at_fault = []

    def fails(count, size):
        at_fault.append(volume_bytes < size <= 4 * volume_bytes and size % volume_bytes == 0)
        return at_fault[-1]

    with Allocator(fails):
        result = run("direct")
    assert sum(at_fault) == 2  # buffers for four volumes and for two
    assert sizes == [1] * 6
    np.testing.assert_array_equal(result[0], expected[0])


def test_what_is_clipped_is_clipped_once(gpu, monkeypatch):
    """The first plan has found values outside the range when memory runs out for the second: both begin again."""
    import cupy

    values = np.random.default_rng(0).choice([-100.0, 30.0, 100.0], (*SHAPE, 6))  # which a spline overshoots
    volumes = open_volumes(nib.Nifti1Image(values, AFFINE))
    plans = [some_plan("parallel"), some_plan()]
    reduce, failed = Plan.reduce, []

    def fail_once(plan, *arguments):
        if plan.resampling is None and not failed:
            failed.append(True)
            raise cupy.cuda.memory.OutOfMemoryError(512, 0)
        return reduce(plan, *arguments)

    monkeypatch.setattr(Plan, "reduce", fail_once)
    for result, plan in zip(run_plans(on(plans, gpu), volumes, chunk=4), plans, strict=True):
        np.testing.assert_allclose(result.signals, extract(plan, volumes).signals, rtol=1e-10)
    assert failed


def test_a_pool_that_is_too_small(gpu, tmp_path, monkeypatch):
    """CuPy's own error, and CuPy's own memory that is given back before the next attempt."""
    import cupy

    volumes = open_volumes(write(tmp_path / "bold.nii", stored_run("f8", 200)))
    expected = extract(some_plan(), volumes, device=gpu).signals
    sizes, upload = [], cuda_runtime.upload
    monkeypatch.setattr(cuda_runtime, "upload", lambda *a: (sizes.append(len(a[0])), upload(*a)))
    for limit, most in [(400_000, 16), (70_000, 4)]:
        pool = cupy.cuda.MemoryPool()
        pool.set_limit(size=limit)
        with cupy.cuda.using_allocator(pool.malloc):
            np.testing.assert_array_equal(extract(some_plan(), volumes, device=gpu).signals, expected)
        assert sum(sizes) == 200
        assert max(sizes) == most
        sizes.clear()
    pool = cupy.cuda.MemoryPool()
    pool.set_limit(size=4_000)
    with (
        cupy.cuda.using_allocator(pool.malloc),
        pytest.raises(
            DeviceError, match=r"^cuda:0 is out of memory, with a single volume of 0\.0 MiB at a time: Out of "
        ),
    ):
        extract(some_plan(), volumes, device=gpu)


def test_memory_for_cuda_itself(gpu, run, monkeypatch):
    """Streams, events and libraries take memory of their own, outside of CuPy's pool."""
    import cupy

    def full(name):
        raise cupy.cuda.runtime.CUDARuntimeError(2)

    monkeypatch.setattr(cuda_runtime, "stream", full)
    message = (
        "cuda:0 is out of memory: CUDARuntimeError: cudaErrorMemoryAllocation: out of memory. Stop other processes "
        "that use it: see nvidia-smi. Or use device='cpu'."
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        run("direct")


# Page-locked memory


@pytest.mark.parametrize("number", [1, 2])
def test_page_locked_memory_that_can_not_be_had(gpu, run, number):
    import cupy

    expected, count, allocate = run("direct"), [], cupy.cuda.PinnedMemory

    def fail(size):
        count.append(size)
        if len(count) == number:
            raise cupy.cuda.runtime.CUDARuntimeError(2)
        return allocate(size)

    message = (
        "0 MiB of page-locked host memory can't be allocated: CUDARuntimeError: cudaErrorMemoryAllocation: out of "
        "memory. Free memory of the host, raise the limit on locked memory (ulimit -l), or use device='cpu'."
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy.cuda, "PinnedMemory", fail)
        patch.setattr(cuda_runtime, "_unused_pinned", [])
        with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
            run("direct")
    assert len(count) == number
    np.testing.assert_array_equal(run("direct")[0], expected[0])


def test_any_page_locked_allocation_may_fail(gpu, run):
    """By CuPy, for the plans: it warns and copies another way."""
    import cupy

    expected, allocate = run("several"), cupy.get_default_pinned_memory_pool().malloc
    outcomes, count, number = [], [0], 0

    def fail(size):
        count[0] += 1
        if count[0] == number:
            raise cupy.cuda.runtime.CUDARuntimeError(2)
        return allocate(size)

    while count[0] >= number:
        count[0], number = 0, number + 1
        cupy.cuda.set_pinned_memory_allocator(fail)
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                result = run("several")
            outcomes += [warning.category.__name__ for warning in told if "pinned" in str(warning.message)]
            for signals, right in zip(result, expected, strict=True):
                np.testing.assert_array_equal(signals, right)
        finally:
            cupy.cuda.set_pinned_memory_allocator(allocate)
    assert outcomes == ["PerformanceWarning"] * (number - 1)
    assert number > 10


# A device that is lost


class Lost:
    """From the chosen moment on, everything that is asked of the device ends in CUDA's error."""

    def __init__(self, monkeypatch, moment, number):
        import cupy

        self.calls, self.lost, self.moment, self.number = 0, False, moment, number
        self.error = cupy.cuda.runtime.CUDARuntimeError
        stream, event = cuda_runtime.stream, cuda_runtime.new_event
        kernel, upload = cuda_runtime.cuda_kernel, cuda_runtime.upload
        copy = self.failing("copy", lambda source, target, stream: upload(source, target, stream.real))
        monkeypatch.setattr(cuda_runtime, "upload", copy)
        monkeypatch.setattr(backend, "to_host", self.failing("download", backend.to_host))
        monkeypatch.setattr(segments_cuda, "reduce", self.failing("launch", segments_cuda.reduce))
        monkeypatch.setattr(cuda_runtime, "cuda_kernel", lambda *a: self.failing("kernel", kernel(*a)))
        monkeypatch.setattr(cuda_runtime, "new_event", lambda: Failing(self, event()))
        monkeypatch.setattr(cuda_runtime, "stream", lambda name: Failing(self, stream(name)))
        monkeypatch.setattr(cuda_runtime, "seconds_between", self.failing("time", lambda first, last: 0.0))

    def failing(self, moment, function):
        def call(*arguments, **keywords):
            self.calls += moment == self.moment
            self.lost |= self.calls == self.number and moment == self.moment
            if self.lost:
                raise self.error(719)
            return function(*arguments, **keywords)

        return call


class Failing:
    """A stream or an event of a device that can be lost."""

    def __init__(self, device, real):
        self.real = real
        self.synchronize = device.failing(type(real).__name__ + " wait", real.synchronize)
        if hasattr(real, "wait_event"):
            self.wait_event = device.failing("order", lambda event: real.wait_event(event.real))
        else:
            self.record = device.failing("record", lambda stream: real.record(stream.real))

    def __enter__(self):
        self.real.__enter__()
        return self

    def __exit__(self, *details):
        return self.real.__exit__(*details)


MOMENTS = ["copy", "download", "launch", "kernel", "Stream wait", "Event wait", "order", "record", "time"]


@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_lost_device(gpu, tmp_path, moment, which):
    import cupy

    volumes, plan = open_volumes(write(tmp_path / "bold.nii.gz", stored_run(n=12))), some_plan()
    expected = extract(plan, volumes, device=gpu, chunk=2).signals
    with pytest.MonkeyPatch.context() as patch:
        device = Lost(patch, moment, 0)
        np.testing.assert_array_equal(extract(plan, volumes, device=gpu, chunk=2).signals, expected)
    assert device.calls >= 2 or moment == "download"
    message = (
        "cuda:0 failed: CUDARuntimeError: cudaErrorLaunchFailure: unspecified launch failure. Check it with "
        "nvidia-smi, and start a new process: this one can't use the GPU again. Or use device='cpu'."
    )
    with pytest.MonkeyPatch.context() as patch:
        Lost(patch, moment, 1 if which == "first" else device.calls)
        if (moment, which) == ("Stream wait", "last"):  # when the result is on the host
            np.testing.assert_array_equal(extract(plan, volumes, device=gpu, chunk=2).signals, expected)
        else:
            with pytest.raises(DeviceError, match=f"^{re.escape(message)}$") as caught:
                extract(plan, volumes, device=gpu, chunk=2)
            assert isinstance(caught.value.__cause__, cupy.cuda.runtime.CUDARuntimeError)
    np.testing.assert_array_equal(extract(plan, volumes, device=gpu, chunk=2).signals, expected)


def test_a_missing_library(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "driver_cuda_version", lambda: (13, 1))

    def missing(*arguments):
        msg = "libcublas.so.13: cannot open shared object file: No such file or directory"
        raise ImportError(msg)

    plan = some_plan()
    monkeypatch.setattr(segments_cuda, "reduce", lambda *a, **k: missing())
    message = (
        "cuda:0 failed: ImportError: libcublas.so.13: cannot open shared object file: No such file or directory. "
        "Run: pip install 'gpumask[cuda13]'. Or use device='cpu'."
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        extract(plan, open_volumes(nib.Nifti1Image(stored_run("f4"), AFFINE)), device=gpu)


def test_other_errors_stay_what_they_are(gpu, tmp_path):
    """A broken file is no fault of the GPU, and what the caller raises is the caller's."""
    path = write(tmp_path / "bold.nii.gz", stored_run(n=40))
    volumes, content = open_volumes(path), path.read_bytes()

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(some_plan(), volumes, device=gpu, chunk=1, progress=stop)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"bold\.nii\.gz is truncated"):
        extract(some_plan(), open_volumes(path), device=gpu, chunk=1)


# Threads and processes


def test_two_maskers_in_two_threads(gpu, tmp_path):
    labels = nib.Nifti1Image(some_labels().astype("i2"), AFFINE)
    paths = [write(tmp_path / f"{seed}.nii.gz", stored_run(n=30, seed=seed)) for seed in range(2)]

    def signals(index, device=gpu):
        masker = NiftiLabelsMasker(labels, strategy=("mean", "median")[index], device=device)
        return [masker.fit_transform(paths[index]) for _ in range(3)]

    with ThreadPoolExecutor(2) as threads:
        for index, results in enumerate(threads.map(signals, range(2))):
            expected = signals(index, "cpu")[0]
            for result in results:
                np.testing.assert_allclose(result, expected, rtol=1e-10)


# The first lines stand for the machine: an emulated GPU is one in each process.
PROCESS = """
import sys
if {emulated}:
    import cpucuda
    cpucuda.activate(nvrtc_check=False)
import multiprocessing, warnings
import nibabel as nib, numpy as np
import cupy
from gpumask import NiftiLabelsMasker, backend, cuda_runtime, devices
from gpumask.engine import cuda as pipeline_cuda

labels = nib.Nifti1Image(np.arange(60).reshape(3, 4, 5).astype("i2") % 4, np.eye(4))
run = nib.Nifti1Image(np.random.default_rng(0).normal(size=(3, 4, 5, 6)), np.eye(4))
def signals(device):
    return NiftiLabelsMasker(labels, device=device).fit_transform(run)

def attempt(what, queue):
    try:
        queue.put(what())
    except Exception as error:
        queue.put(f"{{type(error).__name__}}: {{error}}")

def in_a_fork(what):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=attempt, args=(what, queue))
    process.start()
    result = queue.get(timeout=60)
    process.join(60)
    return result

if __name__ == "__main__":
    {body}
"""


def in_a_process(body, **environment):
    script = PROCESS.format(emulated="cpucuda" in sys.modules, body=body.replace("\n", "\n    "))
    environment = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORKED = (
    "CUDA was in use before this process was forked, and can't be used in a forked process. Start processes with "
    "multiprocessing.get_context('spawn'), or with joblib's default backend."
)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
def test_a_fork_before_cuda_is_used(gpu):
    body = (
        "result = in_a_fork(lambda: signals('cuda'))\n"
        "np.testing.assert_allclose(result, signals('cpu'), rtol=1e-10)\n"
        "print('equal')"
    )
    assert in_a_process(body) == "equal\n"


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
def test_a_fork_after_cuda_was_used(gpu):
    """Neither a new masker nor a fitted one computes there."""
    body = (
        "masker = NiftiLabelsMasker(labels, device='cuda').fit()\n"
        "masker.transform(run)\n"
        "print(in_a_fork(lambda: signals('cuda')))\n"
        "print(in_a_fork(lambda: masker.transform(run)))"
    )
    asked, fitted = in_a_process(body).splitlines()
    assert asked == (
        f"DeviceError: device='cuda' was requested, but can't be used: {FORKED} Or use device='cpu', or 'auto' "
        "to let gpumask choose."
    )
    assert fitted == f"DeviceError: {FORKED}"


# A warm start


def test_a_second_process_compiles_nothing(gpu, tmp_path):
    """Before 14.2.0, CuPy's cache on disk missed modules whose kernels have names."""
    body = (
        "from cupy.cuda import compiler\n"
        "compiled, compile = [], compiler._NVRTCProgram.compile\n"
        "compiler._NVRTCProgram.compile = lambda self, *a, **k: compiled.append(self.name) or compile(self, *a, **k)\n"
        "signals('cuda')\n"
        "print(sum(name != 'default_program' for name in compiled))"  # the one for an empty file
    )
    cache = {"CUPY_CACHE_DIR": str(tmp_path), "CUPY_CACHE_IN_MEMORY": "0"}
    first, second = (int(in_a_process(body, **cache)) for _ in range(2))
    assert first > 1  # the probe's, and ours
    assert second == 0


# Diagnosis, of CuPy's own errors


ASK = """from gpumask.cli import main
main(['info'])
try:
    signals('cuda')
except backend.DeviceError as error:
    print(error)"""
CACHE = "Set CUPY_CACHE_DIR to a writable folder, or CUPY_CACHE_IN_MEMORY=1."


def assert_tells_of_the_cache(out):
    problem = r"CuPy can't write its kernel cache \(NotADirectoryError: .*cache.*'\)"
    assert re.search(f"^(GPU|cuda:0) +(.*, )?can't be used: {problem}\nremedy +{re.escape(CACHE)}$", out, re.MULTILINE)
    asked = f"^device='cuda' was requested, but can't be used: {problem}. {re.escape(CACHE)} "
    assert re.search(asked, out, re.MULTILINE)


def test_a_kernel_cache_that_can_not_be_written(gpu, tmp_path):
    """CuPy finds it, but can't add to it."""
    cache = tmp_path / "cache"
    body = f"import pathlib, shutil\nshutil.rmtree({str(cache)!r})\npathlib.Path({str(cache)!r}).touch()\n{ASK}"
    assert_tells_of_the_cache(in_a_process(body, CUPY_CACHE_DIR=str(cache), CUPY_CACHE_IN_MEMORY="0"))


def test_a_kernel_cache_that_can_not_be_made(tmp_path):
    """CuPy can't even be imported then, GPU or not."""
    if not importlib.util.find_spec("cupy"):
        pytest.skip("CuPy is not installed")
    (tmp_path / "file").touch()
    environment = {**os.environ, "CUPY_CACHE_DIR": str(tmp_path / "file" / "cache"), "CUPY_CACHE_IN_MEMORY": "0"}
    code = f"from gpumask import devices\nsignals = devices.resolve_device\n{ASK}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert_tells_of_the_cache(done.stdout)


CODES = {  # CUDA's numbers
    2: "the GPU is out of memory (",
    3: "CUDA was in use before this process was forked",
    35: "CuPy is built for a newer CUDA, but the driver supports CUDA 13.1",
    100: "no CUDA device is visible",
    222: "CuPy is built for a newer CUDA, but the driver supports CUDA 13.1",
    999: "CuPy fails (CUDARuntimeError: cudaErrorUnknown",
}


@pytest.mark.parametrize("code", CODES)
def test_what_cuda_reports(monkeypatch, code):
    cupy = pytest.importorskip("cupy")

    def report():
        raise cupy.cuda.runtime.CUDARuntimeError(code)

    monkeypatch.setattr(devices, "driver_cuda_version", lambda: (13, 1))
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", report)
    status = cuda_status()
    assert status.devices == ()
    assert status.problem.startswith(CODES[code])
    assert status.remedy
    with pytest.raises(DeviceError, match=re.escape(f"can't be used: {status.problem}. {status.remedy} ")):
        devices.resolve_device("cuda")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (lambda cupy: cupy.cuda.memory.OutOfMemoryError(512, 0), "the GPU is out of memory (OutOfMemoryError: "),
        (
            lambda cupy: RuntimeError("CuPy failed to load libnvrtc.so.13: OSError: cannot open shared object file"),
            "NVRTC, the CUDA runtime compiler, is missing (RuntimeError: ",
        ),
    ],
    ids=["memory", "nvrtc"],
)
def test_a_device_that_is_there_but_can_not_compute(gpu, monkeypatch, error, problem):
    import cupy

    def fail(*arguments, **keywords):
        raise error(cupy)

    monkeypatch.setattr(cupy, "arange", fail)
    status = cuda_status()
    assert status.problem.startswith(problem)
    with pytest.raises(DeviceError, match=re.escape(f"{status.problem}. {status.remedy} ")):
        devices.resolve_device("cuda:0")
