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
# Parts of test_device_results.py, for the modules that keep, clean and correlate signals on the device.
OF_RESULTS = "tests/test_device_results.py"
CHECKS_OF_RESULTS = {
    "engine.staging": "put_again or blank_volumes",
    "engine.overshoots": "clipped_on_the_device",
    "engine.gpu_run": "are_kept and f4 or in_the_middle or callers_stream or once_or_not and None",
    "blocks": "blocks_shrink or fit_free_memory or single_column",
    "cleaner": "neither_copied_nor_awaited or blocks_shrink",
    "extraction": "same_bits and (voxels or labels) and (psc or smoothed) or does_not_fit or shelving",
    "maskers.correlation": "correlation_maps",
    "time_operator": "float32_products",
}

# The emulator's options: every array ends where memory does and begins as NaN, and threads run in either order.
FORWARD = "dict(nvrtc_check=False, pool=False, strict_barriers=True)"
BACKWARD = "dict(nvrtc_check=False, pool=False, strict_barriers=True, hide_device_memory=True, reverse=True)"


def checks_are_green(module, options, mutant=(), *, of="tests/test_reductions.py"):
    selected = (CHECKS_OF_RESULTS if of == OF_RESULTS else CHECKS)[module]
    return are_green([of, "-k", selected], options, mutant and [module, *mutant])


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

# Of what keeps, cleans and correlates signals on the device.
RESULTS = [
    ("engine.staging", "volumes before the base", "self.values[: rows.start] -= base", "pass"),
    ("engine.staging", "differences forgotten", "            signals -= self.base", "            pass"),
    ("engine.staging", "blank without the base", "nothing = 0.0 if base is None else -base", "nothing = 0.0"),
    ("engine.staging", "base left on the device", "self.base = None if", "_ = None if"),
    ("engine.overshoots", "base not moved", "            base[moved] = to\n", ""),
    ("engine.overshoots", "others not moved", "values[:, moved] += base[moved] - to", "pass"),
    ("engine.gpu_run", "nothing leaves the device", "if self.step == 1 and self.holds_voxels:", "if False:"),
    ("engine.gpu_run", "one volume for ever", "self.step = False, self.size", "_ = False, self.size"),
    ("engine.gpu_run", "what is kept isn't moved", "in filter(None, self.staged.values())", "in ()"),
    ("engine.gpu_run", "the caller's stream unawaited", "self.reducing.wait_event(allocated)", "pass"),
    ("engine.gpu_run", "all downloaded", "if k in self.staged and not self.stagings[k].on_device:", "if True:"),
    ("blocks", "blocks don't shrink", "step //= 2", "raise MemoryError"),
    ("blocks", "a failed block left out", "step //= 2", "start, step = stop, step // 2"),
    ("blocks", "the allocator's memory ignored", "if cuda_runtime.uses_own_pool()", "if True"),
    ("cleaner", "by way of the host", "= cleaned if is_there", "= cleaned.get() if is_there"),
    ("extraction", "left on the host", "signals = backend.to_device(signals, device)", "pass"),
    ("maskers.correlation", "maps by way of the host", "if not backend.is_cupy(maps):", "if True:"),
    ("maskers.correlation", "not divided", "weights @ of_voxels / _norms(of_voxels)", "weights @ of_voxels"),
    ("time_operator", "first volume forgotten", "base = first if base is None else base + first", ""),
    ("time_operator", "no differences", "xp.astype(x - first, xp.float32)", "xp.astype(x, xp.float32)"),
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


@pytest.mark.parametrize("module", CHECKS_OF_RESULTS)
def test_results_without_a_fault(module):
    assert checks_are_green(module, BACKWARD, of=OF_RESULTS)


@pytest.mark.parametrize(("module", "name", "before", "after"), RESULTS, ids=[name for _, name, *_ in RESULTS])
def test_finds_in_results(module, name, before, after):
    assert not checks_are_green(module, BACKWARD, (before, after), of=OF_RESULTS)


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
