"""The checks of the CUDA kernels turn red on faults that are known to be easily made.

Each mutant is one textual change of the package. The same checks run on it and on the package as it is, in processes
of their own, since a kernel that leaves its arrays behind ends the process.
"""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from .mutated import are_green, outcome

if importlib.util.find_spec("cpucuda") is None:
    pytest.skip("faults are run on the emulated GPU only, and it is not here", allow_module_level=True)

# Parts of test_reductions.py that are quick to compile, and run on every mutant of the module.
CHECKS = {
    "kernels.segments_cuda": "test_non_finite_voxels and float32"
    " and (omit-mean or omit-variance or omit-minimum or zero-sum)",
    "kernels.median_cuda": "(test_non_finite_voxels and float32 and (omit-median or keep-median))"
    " or (test_medians_of_any_distribution and (ties-258 or two-257 or apart-257 or wide-1024))",
}

# The emulator's options: every array ends where memory does and begins as NaN, and threads run in either order.
FORWARD = "dict(nvrtc_check=False, pool=False, strict_barriers=True)"
BACKWARD = "dict(nvrtc_check=False, pool=False, strict_barriers=True, hide_device_memory=True, reverse=True)"


def checks_are_green(module, options, mutant=()):
    return are_green(["tests/test_reductions.py", "-k", CHECKS[module]], options, mutant and [module, *mutant])


def sanitizer():
    library = subprocess.run(["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("g++ has no ThreadSanitizer here")
    return {
        "LD_PRELOAD": library,
        "TSAN_OPTIONS": "report_signal_unsafe=0:exitcode=66",
        "CPUCUDA_CXXFLAGS": "-O1 -g -fsanitize=thread -w",
    }


def on_cpu(check, mutant=None, **environment):
    return outcome(["-m", "tests.on_cpu", check], mutant, **environment)


SEGMENTS = [
    ("no bounds check on parts", "if (part >= n_parts) return;", ""),
    ("no bounds check on volumes read", "volume + k < n_volumes ? volume + k : n_volumes - 1", "volume + k"),
    ("no bounds check on volumes written", "if (lane == 0 && volume + k < n_volumes) {", "if (lane == 0) {"),
    ("offsets off by one", "start = offsets[region] +", "start = offsets[region] + 1 +"),
    ("last entry forgotten", "for (; entry < stop; entry", "for (; entry < stop - 1; entry"),
    ("next entry beyond the region", "if (entry + 32 < stop) next", "next"),
    ("last region forgotten", "if (region >= n_regions) return;", "if (region >= n_regions - 1) return;"),
    ("last part forgotten", "part < first_part[region + 1]; part", "part < first_part[region + 1] - 1; part"),
    ("half a warp forgotten", "int distance = 16;", "int distance = 8;"),
    ("float32 accumulators", "double result[VOLUMES], share", "float result[VOLUMES]; double share"),
    ("squares about 0", "(value - center[k]) * (value - center[k])", "value * value"),
    ("flags forgotten", "if (any) atomicOr(&found[volume + k], 1u);", ""),
    ("zero policy forgotten", "if (POLICY == ZERO && !finite) value = 0.0;", ""),
    ("shares forgotten", "if (POLICY == OMIT && finite) share[k] += weight;", "share[k] += weight;"),
    ("a host array slipped in", "segments.totals, layout.first", "backend.to_host(segments.totals), layout.first"),
]
MEDIAN = [
    ("wrong middle", "(n - 1) / 2", "n / 2"),
    ("NaN sorts first", "NAN_KEY = ~0ULL", "NAN_KEY = 0ULL"),
    ("negative numbers in the wrong order", "bits >> 63 ? ~bits : bits", "bits >> 63 ? bits : bits"),
    ("one bin too few", "while (rank >= before + bins[b])", "while (rank > before + bins[b])"),
    ("bins not cleared", "bins[b] = 0;", ";"),
    ("lower end of a bin forgotten", "low += (Key)bin << shift;", ""),
    (
        "first clearing unawaited",
        "n_counted = n_gathered = n_upto = 0;\n        }\n        __syncthreads();",
        "n_counted = n_gathered = n_upto = 0;\n        }",
    ),
    ("upper middle always the same", "n % 2 == 1 || n_upto > n / 2", "true"),
]
EVERY = [("kernels.segments_cuda", *mutant) for mutant in SEGMENTS] + [
    ("kernels.median_cuda", *mutant) for mutant in MEDIAN
]

# Faults that one order of threads may hide: the sanitizer watches all of them.
UNAWAITED = [
    (
        "counts",
        "if (some) atomicOr(&found[volume], 1u);\n        __syncthreads();",
        "if (some) atomicOr(&found[volume], 1u);",
    ),
    ("clearing", "bins[b] = 0;\n            __syncthreads();", "bins[b] = 0;"),
    ("histogram", "            __syncthreads();\n            if (thread < 32)", "            if (thread < 32)"),
    ("bin", "&bin, &rank_in_bin);\n            __syncthreads();", "&bin, &rank_in_bin);"),
    ("next turn", "            __syncthreads();  // the next turn clears the bins\n", ""),
    ("gathering", "] = key;\n            });\n            __syncthreads();", "] = key;\n            });"),
]
WRAPPED = [
    ("kernels.segments_cuda", "data + v * n_voxels", "data + (int)v * (int)n_voxels"),
    ("kernels.median_cuda", "{data + volume * n_voxels,", "{data + (int)volume * (int)n_voxels,"),
]


@pytest.mark.parametrize("options", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("module", CHECKS)
def test_without_a_fault(module, options):
    assert checks_are_green(module, options)


@pytest.mark.parametrize(("module", "name", "before", "after"), EVERY, ids=[name for _, name, *_ in EVERY])
def test_finds(module, name, before, after):
    assert not all(checks_are_green(module, options, (before, after)) for options in (FORWARD, BACKWARD))


def test_no_races():
    status, output = on_cpu("races", **sanitizer())
    assert status == 0, output


@pytest.mark.parametrize(("name", "before", "after"), UNAWAITED, ids=[name for name, *_ in UNAWAITED])
def test_finds_a_race(name, before, after):
    status, output = on_cpu("races", ("kernels.median_cuda", before, after), **sanitizer())
    assert status == 66, output
    assert "data race" in output


def test_no_overflow():
    status, output = on_cpu("overflow")
    assert status == 0, output


@pytest.mark.parametrize("mutant", WRAPPED, ids=[module for module, *_ in WRAPPED])
def test_finds_an_overflow(mutant):
    status, output = on_cpu("overflow", mutant)
    assert status < 0 or (status == 1 and "not equal" in output), output
