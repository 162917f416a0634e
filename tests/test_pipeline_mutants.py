"""The checks of a GPU's runs turn red on faults that are easily made between the kernels: threads, buffers, plans.

Each mutant is one textual change of the package; see `tests.test_mutants` for those of the kernels.
"""

import importlib.util

import pytest

from .mutated import are_green

if importlib.util.find_spec("cpucuda") is None:
    pytest.skip("faults are run on the emulated GPU only, and it is not here", allow_module_level=True)

OPTIONS = "dict(nvrtc_check=False)"

# Which tests find the faults: quick ones, by the part of the package that they look at.
CHECKS = {
    "resampling": ["tests/test_resampling.py", "-k", "cupy and not test_short_axes and not test_equals_nilearn"],
    "smoothing": ["tests/test_smoothing.py", "-k", "cupy"],
    "totals": ["tests/test_segments.py", "-k", "cupy and weights"],
    "holes": ["tests/test_gpu_pipeline.py", "-k", "test_non_finite_voxels and (parallel or oblique)"],
    "box": ["tests/test_plan.py", "-k", "cupy and test_staged_strategies"],
    "counts": ["tests/test_transfers.py", "-k", "test_launches_copies_and_waits and f4"],
    "memory": [
        "tests/test_gpu_pipeline.py",
        "-k",
        "(memory or plans or room or page_locked) and not oblique and not parallel and not staged",
    ],
    "threads": ["tests/test_gpu_threads.py"],
    "order": ["tests/test_gpu_pipeline.py", "-k", "too_early or last_user or a_plan or threads"],
    "filling": ["tests/test_filling.py"],
}

# Check, module, name, before, after.
MUTANTS = [
    # One kernel evaluates the spline of an oblique grid.
    ("resampling", "cuda_runtime", "a linear spline", "coordinates, out, order=3", "coordinates, out, order=1"),
    ("resampling", "cuda_runtime", "filtered twice", "prefilter=False)", "prefilter=True)"),
    ("resampling", "cuda_runtime", "borders of a spline", 'mode="mirror", prefilter', 'mode="nearest", prefilter'),
    (
        "resampling",
        "kernels.resampling",
        "points outside reach CuPy",
        "coordinates = self.coordinates * inside",
        "coordinates = self.coordinates",
    ),
    ("resampling", "kernels.resampling", "points outside have values", "xp.where(inside, sampled, 0.0)", "sampled"),
    (
        "resampling",
        "kernels.resampling",
        "moved points become inside",
        "_is_inside(self.coordinates, self.shape) if self.inside is None else self.inside",
        "_is_inside(self.coordinates, self.shape)",
    ),
    ("resampling", "kernels.resampling", "the first plane is outside", "((coordinates >= 0)", "((coordinates > 0)"),
    ("resampling", "kernels.resampling", "the last plane is outside", "(coordinates <= np", "(coordinates < np"),
    ("resampling", "kernels.resampling", "one volume for all", "sampled[index, :])", "sampled[0, :])"),
    # One launch per axis smooths a chunk.
    (
        "smoothing",
        "kernels.smoothing",
        "integers stay integers",
        "smooth = xp.astype(volumes, xp.float64)\n    for axis, (kernel",
        "smooth = volumes\n    for axis, (kernel",
    ),
    ("smoothing", "kernels.smoothing", "other borders", 'along), "reflect")', 'along), "mirror")'),
    (
        "smoothing",
        "kernels.smoothing",
        "the first axis",
        "(1,) * axis + (-1,) + (1,) * (",
        "(-1,) + (1,) * axis + (1,) * (",
    ),
    ("box", "engine.steps", "all of the box", "volumes, self.inner)", "volumes, [slice(None)] * 3)"),
    ("holes", "engine.steps", "values beyond the border", 'mode="constant")', 'mode="wrap")'),
    (
        "holes",
        "engine.steps",
        "neighbours of edges",
        "generate_binary_structure(3, 1)",
        "generate_binary_structure(3, 2)",
    ),
    (
        "counts",
        "engine.steps",
        "volume by volume",
        "n = n_on_host if backend.is_numpy(data) else max(data.shape[0], 1)",
        "n = n_on_host",
    ),
    ("counts", "engine.steps", "neighbours in many launches", "if backend.is_cupy(values):", "if False:"),
    ("counts", "kernels.resampling", "a spline in many launches", "if backend.is_cupy(array):", "if False:"),
    # Totals are made on the host.
    ("totals", "kernels.segments", "totals in float32", "starts, dtype=np.float64)", "starts)"),
    (
        "totals",
        "kernels.segments",
        "totals of empty regions",
        "full = np.flatnonzero(self.counts)",
        "full = np.arange(len(self))",
    ),
    (
        "totals",
        "kernels.segments",
        "totals without weights",
        "moved.totals = backend.like(self.totals, array)",
        "moved.totals = backend.like(self.counts.astype(float), array)",
    ),
    ("counts", "kernels.segments", "weights downloaded", "moved.totals = backend.like(self.totals, array)", "pass"),
    (
        "counts",
        "kernels.segments",
        "indices looked through",
        "moved.n_needed, moved.counts = self.n_needed, self.counts",
        "pass",
    ),
    # Plans and buffers are kept for the next run.
    ("memory", "engine.kept_plans", "plans moved each time", "_kept.get(plan, {}).pop(device, None) or plan", "plan"),
    ("memory", "engine.kept_plans", "plans kept for ever", "weakref.WeakKeyDictionary()", "{}"),
    (
        "counts",
        "engine.kept_plans",
        "nothing prepared",
        "there.prepare(may_be_missing=may_be_missing)",
        "pass",
    ),
    (
        "memory",
        "engine.gpu_run",
        "plans left on a full device",
        "if self._affordable() < self.step:\n            kept_plans.forget()",
        "if False: pass",
    ),
    ("memory", "engine.gpu_run", "as many volumes as ever", "min(self.step, self._affordable())", "self.step"),
    ("memory", "engine.gpu_run", "no room for products", "if plan.uses_products\n", "if False\n"),
    (
        "memory",
        "engine.gpu_run",
        "no room for points",
        "(0 if plan.resampling is None else len(plan.resampling.points))",
        "0",
    ),
    ("memory", "cuda_runtime", "another pool's memory", "is cupy.get_default_memory_pool()", "is not None"),
    ("memory", "cuda_runtime", "a buffer for two", "_unused_pinned.remove(memory)", "pass"),
    ("memory", "cuda_runtime", "buffers given away", "_unused_pinned.append(memory)", "pass"),
    # One thread reads, another one submits.
    (
        "threads",
        "engine.gpu_run",
        "a buffer filled before its chunk is submitted",
        "        if buffer.launched is not None:\n            buffer.launched.result()\n        buffer.copied",
        "        buffer.copied",
    ),
    ("order", "engine.gpu_run", "a buffer filled before its copy is over", "        buffer.copied.synchronize()\n", ""),
    (
        "threads",
        "engine.gpu_run",
        "launches unawaited",
        "                    progress(chunk.start + len(chunk.data))\n        self.await_launches()",
        "                    progress(chunk.start + len(chunk.data))",
    ),
    ("threads", "engine.cuda", "launches of a shared read unawaited", "            self._run.await_launches()\n", ""),
    (
        "threads",
        "engine.gpu_run",
        "some launches unawaited",
        "islice(self.pinned, len(self.buffers))",
        "islice(self.pinned, 1)",
    ),
    ("threads", "engine.gpu_run", "two threads submit", "ThreadPoolExecutor(1, ", "ThreadPoolExecutor(2, "),
    (
        "threads",
        "engine.gpu_run",
        "submitted by the reading thread",
        "self.launching.submit(\n            self._launch, lambda rows",
        "self._launch(\n            lambda rows",
    ),
    ("threads", "engine.gpu_run", "one buffer", "_BUFFERS = 2", "_BUFFERS = 1"),
    (
        "threads",
        "engine.gpu_run",
        "waiting chunks are submitted at the end",
        "self.launching.shutdown(cancel_futures=True)",
        "self.launching.shutdown()",
    ),
    (
        "threads",
        "engine.gpu_run",
        "the submitting thread unawaited",
        "self.launching.shutdown(cancel_futures=True)",
        "self.launching.shutdown(wait=False, cancel_futures=True)",
    ),
    (
        "threads",
        "engine.gpu_run",
        "the submitting thread left",
        "        self.launching.shutdown(cancel_futures=True)\n",
        "",
    ),
    ("threads", "engine.gpu_run", "copying threads left", "        self.filler.close()\n", ""),
    ("threads", "engine.gpu_run", "errors keep arrays", "            buffer.launched = None\n", "            pass\n"),
    ("threads", "engine.gpu_run", "launching counts as reading", "self.launch_seconds += ", "self.read_seconds += "),
    ("threads", "engine.gpu_run", "converted values not copied", "is_filled = ordinary is None", "is_filled = True"),
    (
        "threads",
        "engine.gpu_run",
        "views not copied",
        "buffer, is_filled = self.take(), False",
        "buffer, is_filled = self.take(), True",
    ),
    ("order", "engine.gpu_run", "a device of the thread's own", "with self.in_thread():", "if True:"),
    (
        "order",
        "cuda_runtime",
        "the first device",
        "with backend.using(device), cupy.cuda.using_allocator(allocator):",
        "with cupy.cuda.using_allocator(allocator):",
    ),
    (
        "threads",
        "cuda_runtime",
        "an allocator of the thread's own",
        "with backend.using(device), cupy.cuda.using_allocator(allocator):",
        "with backend.using(device):",
    ),
    ("order", "engine.gpu_run", "copied to early", "        self.copying.wait_event(target.reduced)\n", ""),
    ("order", "engine.gpu_run", "reduced too early", "        self.reducing.wait_event(copied)\n", ""),
    ("order", "engine.gpu_run", "an old buffer's event", "        target.reduced = reduced\n", ""),
    ("order", "engine.gpu_run", "an old copy's event", "        buffer.copied = copied\n", ""),
    ("order", "engine.buffers", "a new buffer's memory in use", "        self.reduced.record(reducing)\n", ""),
    # Several threads copy.
    ("filling", "engine.filling", "last part forgotten", "for part in range(n + 1)]", "for part in range(n)]"),
    ("filling", "engine.filling", "first part forgotten", "        _copy(*first)\n", ""),
    ("filling", "engine.filling", "copies unawaited", "            copy.result()\n", "            pass\n"),
    ("filling", "engine.filling", "threads in cohorts", " if process.is_alone() else 1", ""),
    ("filling", "engine.filling", "threads for little", "source.nbytes // _PIECE", "source.nbytes"),
]


@pytest.mark.parametrize("check", CHECKS)
def test_without_a_fault(check):
    assert are_green(CHECKS[check], OPTIONS)


@pytest.mark.parametrize(
    ("check", "module", "name", "before", "after"), MUTANTS, ids=[name for _, _, name, *_ in MUTANTS]
)
def test_finds(check, module, name, before, after):
    assert not are_green(CHECKS[check], OPTIONS, [module, before, after])
