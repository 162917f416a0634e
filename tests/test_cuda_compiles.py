"""NVRTC, the compiler that a GPU machine uses, takes every instance of the kernels. It needs no GPU and no driver."""

import importlib.util
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import gpumask
from benchmarks.gpu import timing
from gpumask import backend, cuda_runtime
from gpumask.choices import STRATEGIES
from gpumask.kernels import median_cuda, scaling_cuda, segments_cuda, series_cuda
from gpumask.kernels.segments import Segments

ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]  # Turing, Ampere, Ada, Hopper, Blackwell

TYPES = list(scaling_cuda.C_TYPES.values())
INDICES = ["int", "long long"]
STATISTICS = ["SUM", "VARIANCE", "MINIMUM", "MAXIMUM"]
POLICIES = list(scaling_cuda.NON_FINITE.values())
COMBINED = [name.upper() for name in segments_cuda._COLLECTED if name != "median"]

REDUCE = [f"reduce_parts<{', '.join(parts)}>" for parts in itertools.product(TYPES, INDICES, STATISTICS, POLICIES)]
COMBINE = [f"combine_parts<{', '.join(parts)}>" for parts in itertools.product(COMBINED, POLICIES)]
SELECT = [f"select_medians<{', '.join(parts)}>" for parts in itertools.product(TYPES, INDICES, POLICIES)]
SERIES = [f"add_series<{dtype}>" for dtype in TYPES]

MANY = median_cuda._MANY_THREADS

# Each type, each statistic, each policy, without every combination of them.
SOME_REDUCE = [name for name in REDUCE if ", int, SUM, KEEP" in name or "<float, int" in name]
SOME_SELECT = [name for name in SELECT if ", int, KEEP" in name or "<float, int" in name]


@pytest.fixture
def nvrtc():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:  # CuPy's loader raises ImportError or RuntimeError, as the toolkit is missing or partial
        pytest.skip(f"NVRTC can't be loaded (pip install nvidia-cuda-nvrtc nvidia-cuda-runtime): {error}")
    return nvrtc


def compile_kernels(nvrtc, source, options, names, target):
    """The compiler's log; `target` is "compute_90" for PTX, "sm_90" for machine code."""
    program = nvrtc.createProgram(source, "kernels.cu", [], [])
    for name in names:
        nvrtc.addNameExpression(program, name)
    options = [f"--gpu-architecture={target}", "--std=c++14", *options]
    if target.startswith("sm_"):
        options.append("--ptxas-options=-v")
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError as error:
        raise AssertionError(nvrtc.getProgramLog(program)) from error
    for name in names:
        assert nvrtc.getLoweredName(program, name)
    return nvrtc.getProgramLog(program)


@pytest.mark.parametrize(
    ("source", "options", "names"),
    [
        (segments_cuda._SOURCE, segments_cuda._OPTIONS, REDUCE),
        (segments_cuda._SOURCE, segments_cuda._OPTIONS, COMBINE),
        (median_cuda._SOURCE, (f"-DTHREADS={median_cuda._THREADS}",), SELECT),
        (series_cuda._SOURCE, series_cuda._OPTIONS, SERIES),
        (timing.SPIN, (), ["spin"]),
    ],
    ids=["reduce", "combine", "select", "series", "the benchmark's"],
)
def test_every_instance(nvrtc, source, options, names):
    assert "warning" not in compile_kernels(nvrtc, source, options, names, "compute_75")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("source", "options", "names", "n_threads"),
    [
        (segments_cuda._SOURCE, segments_cuda._OPTIONS, SOME_REDUCE + COMBINE, 32 * segments_cuda._WARPS),
        (median_cuda._SOURCE, (f"-DTHREADS={MANY}",), SOME_SELECT, MANY),
        (series_cuda._SOURCE, series_cuda._OPTIONS, SERIES, series_cuda._THREADS),
    ],
    ids=["segments", "median", "series"],
)
def test_registers_suffice(nvrtc, source, options, names, n_threads, architecture):
    """On every architecture, no kernel spills registers into memory, and a block's fit into a multiprocessor's."""
    if architecture not in nvrtc.getSupportedArchs():
        pytest.skip(f"NVRTC {nvrtc.getVersion()} doesn't know sm_{architecture}")
    log = compile_kernels(nvrtc, source, options, names, f"sm_{architecture}")
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    assert len(spilled) >= len(registers) == len(names)
    assert set(spilled) == {("0", "0")}
    assert max(registers) * n_threads <= 65_536


def test_finds_what_does_not_compile(nvrtc):
    source = segments_cuda._SOURCE.replace("share[k] += weight", "share[k] += wait", 1)
    with pytest.raises(AssertionError, match="wait"):
        compile_kernels(nvrtc, source, segments_cuda._OPTIONS, REDUCE[:1], "compute_75")


# Ways to compile a kernel: CuPy's classes, its decorators, and our own function, which is the only one that uses them.
WAYS = r"\b(RawModule|RawKernel|ElementwiseKernel|ReductionKernel|cupy\.fuse|rawkernel|cuda_kernel|_SOURCE)\b"


def test_no_other_kernel_is_compiled():
    """What is compiled above is all of the package's own CUDA code."""
    package = Path(gpumask.__file__).parent
    found = {}
    for path in package.rglob("*.py"):
        if ways := set(re.findall(WAYS, path.read_text("utf-8"))):
            found[path.relative_to(package).as_posix()] = ways
    kernels = {"cuda_kernel", "_SOURCE"}
    assert found == {
        "cuda_runtime.py": {"RawModule", "RawKernel", "cuda_kernel"},  # RawKernel: in the docstring
        "kernels/segments_cuda.py": kernels,
        "kernels/median_cuda.py": kernels,
        "kernels/series_cuda.py": kernels,
    }
    sources = segments_cuda._SOURCE + median_cuda._SOURCE + series_cuda._SOURCE
    names = ["reduce_parts", "combine_parts", "select_medians", "add_series"]
    assert re.findall(r"__global__ void (?:__launch_bounds__\(\w+\) )?(\w+)", sources) == names
    assert sources.count("__global__") == 4


def test_instances_that_run_are_those_compiled_above(gpu, monkeypatch):
    """Of every dtype, kind of index, statistic and policy; the launches make the names."""
    launched = set()
    monkeypatch.setattr(
        cuda_runtime, "cuda_kernel", lambda source, name, options: launched.add(name) or (lambda *_: None)
    )
    moved = [
        Segments(np.arange(4).astype(index), np.array([0, 4])).like(backend.to_device(np.zeros(0), gpu))
        for index in ("i4", "i8")
    ]
    for dtype in scaling_cuda.C_TYPES:
        data = backend.to_device(np.zeros((2, 4), dtype), gpu)
        for segments, strategy, policy in itertools.product(moved, STRATEGIES, scaling_cuda.NON_FINITE):
            segments_cuda.reduce(data, segments, strategy, non_finite=policy)
    assert launched == {*REDUCE, *COMBINE, *SELECT}
