"""Whole runs on a GPU: the same numbers as the host's, whatever the buffers, the streams and the memory do."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest

from gpumask import NiftiLabelsMasker, backend, cuda_runtime
from gpumask.engine import gpu_run, kept_plans
from gpumask.engine import stream as pipeline
from gpumask.engine.plan import Plan
from gpumask.engine.stream import run_plans
from gpumask.images.volumes import open_volumes

from .runs import AFFINE, IDS, N_VOLUMES, SHAPE, extract, on, some_labels, some_plan, stored_run, write

WAYS = {  # every way through the pipeline: (labels on, fwhm, strategy, is staged by force)
    "direct": ("same", None, "mean", False),
    "median": ("same", None, "median", False),
    "deviation": ("same", None, "standard_deviation", False),
    "folded": ("same", 6.0, "sum", False),
    "staged": ("same", 6.0, "mean", True),
    "staged-maximum": ("same", 6.0, "maximum", False),
    "parallel": ("parallel", None, "mean", False),
    "oblique": ("oblique", None, "sum", False),
    "parallel-folded": ("parallel", 6.0, "mean", False),
    "parallel-median": ("parallel", None, "median", False),
}
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def a_plan():
    def compile_plan(way, **options):
        labels_on, fwhm, strategy, staged = WAYS[way]
        plan = some_plan(labels_on, fwhm, strategy, way="staged" if staged else "folded", **options)
        assert (plan.way == "staged") == way.startswith("staged")
        return plan

    return compile_plan


def with_holes(stored, values=(np.nan, np.inf, -np.inf)):
    """Non-finite voxels here and there, and a volume without any."""
    rng = np.random.default_rng(3)
    holes = rng.random(stored.shape) < 0.05
    holes[..., 2] = False
    stored[holes] = rng.choice(values, int(holes.sum()))
    return stored


def assert_agree(on_gpu, on_cpu):
    assert on_gpu.signals.dtype == np.float64
    assert on_gpu.signals.flags.c_contiguous
    np.testing.assert_allclose(on_gpu.signals, on_cpu.signals, rtol=1e-10, atol=1e-10)
    assert on_gpu.non_finite == on_cpu.non_finite


# Numbers


@every_way
@pytest.mark.parametrize("dtype", ["i2", ">i2", "u1", "f4", ">f8"])
def test_agrees_with_the_cpu(gpu, tmp_path, a_plan, way, dtype):
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run(dtype), -1.7, 30.0))
    plan = a_plan(way)
    assert_agree(extract(plan, volumes, device=gpu, chunk=3), extract(plan, volumes))


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, bool])
def test_types_that_files_do_not_have(gpu, a_plan, dtype):
    """In memory they come up; a GPU knows nothing beyond 64 bits, and takes float64 instead."""
    image = nib.Nifti1Image(np.zeros((*SHAPE, 1), "f4"), AFFINE)
    image._dataobj = (stored_run("f8") % 3 > 1).astype(dtype)
    volumes = open_volumes(image)
    assert volumes.dtype == dtype
    for way in ("direct", "median", "staged"):
        assert_agree(extract(a_plan(way), volumes, device=gpu), extract(a_plan(way), volumes))


OMITTED = ["direct", "median", "deviation", "folded", "staged"]  # the others refuse it


@pytest.mark.parametrize(("way", "nan_policy"), [(way, "zero") for way in WAYS] + [(way, "omit") for way in OMITTED])
def test_non_finite_voxels(gpu, tmp_path, a_plan, way, nan_policy):
    plan = a_plan(way, nan_policy=nan_policy)
    volumes = open_volumes(write(tmp_path / "bold.nii", with_holes(stored_run("f4")), 1.5, -20.0))
    results = [extract(plan, volumes, device=device) for device in (gpu, "cpu")]
    assert results[0].non_finite
    assert_agree(*results)


@pytest.mark.parametrize("way", ["direct", "staged"])
def test_a_region_without_finite_voxels(gpu, a_plan, way):
    stored = stored_run("f4")
    stored[np.isin(some_labels(), IDS[0]), 1] = np.nan
    volumes = open_volumes(nib.Nifti1Image(stored, AFFINE))
    for nan_policy in ("zero", "omit"):
        plan = a_plan(way, nan_policy=nan_policy)
        assert_agree(extract(plan, volumes, device=gpu), extract(plan, volumes))


@pytest.mark.parametrize("source", ["file", "packed", "memory C", "memory F", "list", "unlike list"])
def test_every_source(gpu, tmp_path, a_plan, source):
    """Decoded, mapped, the user's own arrays, images one by one, and such that differ in how they are stored."""
    stored = stored_run("f4")
    volumes = {
        "file": lambda: write(tmp_path / "bold.nii", stored),
        "packed": lambda: write(tmp_path / "bold.nii.gz", stored),
        "memory C": lambda: nib.Nifti1Image(np.ascontiguousarray(stored), AFFINE),
        "memory F": lambda: nib.Nifti1Image(stored, AFFINE),
        "list": lambda: [nib.Nifti1Image(stored[..., t], AFFINE) for t in range(N_VOLUMES)],
        "unlike list": lambda: [
            nib.Nifti1Image(stored[..., t].astype("f8" if t % 2 else "f4"), AFFINE) for t in range(N_VOLUMES)
        ],
    }[source]()
    expected = extract(a_plan("direct"), open_volumes(nib.Nifti1Image(stored, AFFINE)), device=gpu).signals
    result = extract(a_plan("direct"), open_volumes(volumes), device=gpu, chunk=2)
    np.testing.assert_array_equal(result.signals, expected)


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_several_plans_in_one_pass(gpu, tmp_path, a_plan, dtype):
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run(dtype), 0.5, 3.0))
    together = [a_plan(way) for way in WAYS]
    for plan, result in zip(together, run_plans(on(together, gpu), volumes, chunk=3), strict=True):
        np.testing.assert_array_equal(result.signals, extract(plan, volumes, device=gpu).signals)
        assert_agree(result, extract(plan, volumes))


@every_way
def test_same_bits_every_time(gpu, tmp_path, a_plan, way):
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", with_holes(stored_run("f4"))))
    plan = a_plan(way)
    expected = extract(plan, volumes, device=gpu).signals
    for chunk in (1, 2, 3, N_VOLUMES, None, None):
        np.testing.assert_array_equal(extract(plan, volumes, device=gpu, chunk=chunk).signals, expected)


def test_the_masker(gpu, tmp_path):
    """From file to cleaned signals, and where the time went."""
    path = write(tmp_path / "bold.nii.gz", stored_run(n=40))
    labels = nib.Nifti1Image(some_labels().astype("i2"), AFFINE)
    signals = {}
    for device in ("cpu", gpu):
        masker = NiftiLabelsMasker(labels, standardize="zscore_sample", detrend=True, device=device)
        signals[device] = masker.fit_transform(path)
    np.testing.assert_allclose(signals[gpu], signals["cpu"], rtol=1e-8, atol=1e-8)
    assert set(masker.seconds_) == {"read", "launch", "upload", "reduce", "clean", "total"}
    assert all(0 <= seconds < 60 for seconds in masker.seconds_.values())


# Order: copies and kernels run as late as streams and events allow


class LazyEvent:
    def __init__(self):
        self.mark = None

    def record(self, stream):
        self.mark = stream, len(stream.work)

    def synchronize(self):
        if self.mark:
            stream, n = self.mark
            stream.run(n)


class LazyStream:
    """Does nothing before somebody waits for it."""

    def __init__(self):
        self.work, self.done = [], 0

    def wait_event(self, event):
        stream_and_n = event.mark
        if stream_and_n:
            stream, n = stream_and_n
            self.work.append(lambda: stream.run(n))

    def run(self, n):
        while self.done < n:
            self.done += 1
            self.work[self.done - 1]()

    def synchronize(self):
        self.run(len(self.work))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def lazy(monkeypatch):
    """Streams that put everything off; call it to make the next run use them."""

    def install():
        streams = {"copy": LazyStream(), "reduce": LazyStream()}
        monkeypatch.setattr(cuda_runtime, "stream", streams.__getitem__)
        monkeypatch.setattr(cuda_runtime, "new_event", LazyEvent)
        monkeypatch.setattr(cuda_runtime, "seconds_between", lambda first, last: 0.0)
        copy, reduce = cuda_runtime.upload, gpu_run.GpuRun._reduce

        def put_off_copy(source, target, stream):
            def late():
                copy(source, target, None)
                target.device.synchronize()  # from page-locked memory, the copy itself doesn't wait

            stream.work.append(late)

        def put_off_reduce(run, *arguments):
            run.reducing.work.append(lambda: reduce(run, *arguments))

        monkeypatch.setattr(cuda_runtime, "upload", put_off_copy)
        monkeypatch.setattr(gpu_run.GpuRun, "_reduce", put_off_reduce)
        return streams

    return install


@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
@pytest.mark.parametrize("way", ["direct", "staged", "parallel-median"])
def test_no_buffer_is_used_too_early(gpu, tmp_path, a_plan, lazy, name, way):
    volumes = open_volumes(write(tmp_path / name, stored_run("f4", 20)))
    plan = a_plan(way)
    expected = extract(plan, volumes).signals
    streams = lazy()
    for chunk in (1, 3, 20):
        result = extract(plan, volumes, device=gpu, chunk=chunk).signals
        np.testing.assert_allclose(result, expected, rtol=1e-10)
    assert all(stream.done == len(stream.work) > 20 for stream in streams.values())


MISTAKES = {
    # A page-locked buffer is filled again before its copy is over.
    "refilled": lambda patch: patch.setattr(LazyEvent, "synchronize", lambda self: None),
    # The copying stream overwrites what the reducing one has not read yet, or this reads what has not come.
    "no waiting": lambda patch: patch.setattr(LazyStream, "wait_event", lambda self, event: None),
    # The result is fetched before it is there.
    "fetched": lambda patch: patch.setattr(LazyStream, "synchronize", lambda self: None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_laziness_shows_mistakes(gpu, tmp_path, a_plan, lazy, monkeypatch, mistake):
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run("f4", 20)))
    plan = a_plan("direct")
    expected = extract(plan, volumes).signals
    lazy()
    MISTAKES[mistake](monkeypatch)
    result = extract(plan, volumes, device=gpu, chunk=1).signals
    assert not np.allclose(result, expected, rtol=1e-10)


def test_a_new_device_buffer_waits_for_its_memorys_last_user(gpu, tmp_path, a_plan, lazy, monkeypatch):
    """The pool may hand it memory that kernels in the reducing stream still read."""
    streams = lazy()
    order, allocate = [], gpu_run.GpuRun._allocate

    def leave_work(run):
        allocate(run)
        run.reducing.work.append(lambda: order.append("last user"))

    put_off = cuda_runtime.upload

    def upload(source, target, stream):
        stream.work.append(lambda: order.append("copy"))
        put_off(source, target, stream)

    monkeypatch.setattr(gpu_run.GpuRun, "_allocate", leave_work)
    monkeypatch.setattr(cuda_runtime, "upload", upload)
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run(n=4)))
    extract(a_plan("direct"), volumes, device=gpu, chunk=1)
    assert order == ["last user"] + ["copy"] * 4
    assert streams["copy"].done > 4


# Which device, which threads


class Spy:
    """Devices 0 and 1, both in truth the first, and which of them is the current one of each thread."""

    def __init__(self, monkeypatch):
        import cupy

        self.current, self.allocations = threading.local(), []
        device, allocate = cupy.cuda.Device, cupy.cuda.get_allocator()

        @contextmanager
        def enter(index):
            before = vars(self.current).get("index", 0)
            if not isinstance(index, device):  # an array's own device is in truth the first
                self.current.index = index
            try:
                with device(0):
                    yield
            finally:
                self.current.index = before

        def spied(size):
            self.allocations.append((threading.current_thread(), vars(self.current).get("index", 0)))
            return allocate(size)

        monkeypatch.setattr(cupy.cuda, "Device", enter)
        cupy.cuda.set_allocator(spied)
        self.restore = lambda: cupy.cuda.set_allocator(allocate)


@pytest.fixture
def spy(gpu, monkeypatch):
    spy = Spy(monkeypatch)
    yield spy
    spy.restore()


@every_way
def test_a_second_device_is_used_throughout(spy, tmp_path, a_plan, way):
    plan = a_plan(way)
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", with_holes(stored_run("f4"))))
    expected = extract(plan, volumes, device="cuda:0").signals
    assert {index for _, index in spy.allocations} == {0}
    spy.allocations.clear()
    np.testing.assert_array_equal(extract(plan, volumes, device="cuda:1", chunk=2).signals, expected)
    assert spy.allocations
    assert {index for _, index in spy.allocations} == {1}


def test_devices_share_a_read(spy, tmp_path, a_plan):
    """Each plan's arrays are on its device, with and without plans of the CPU."""
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", with_holes(stored_run("f4"))))
    compiled = [a_plan("direct"), a_plan("staged"), a_plan("parallel-median")]
    expected = [extract(plan, volumes, device="cuda:0").signals for plan in compiled]
    for devices in (["cuda:1", "cpu", "cuda:0"], ["cuda:1", "cuda:0", "cuda:1"]):
        spy.allocations.clear()
        plans = [on([plan], device)[0] for plan, device in zip(compiled, devices, strict=True)]
        results = run_plans(plans, volumes, chunk=2)
        assert {index for _, index in spy.allocations} == {0, 1}
        for device, result, signals in zip(devices, results, expected, strict=True):
            close = {"rtol": 1e-10} if device == "cpu" else {"rtol": 0}
            np.testing.assert_allclose(result.signals, signals, **close)


def test_threads_use_devices_of_their_own(spy, tmp_path, a_plan):
    volumes = [write(tmp_path / f"{seed}.nii.gz", stored_run(n=12, seed=seed)) for seed in range(4)]
    expected = [extract(a_plan("direct"), open_volumes(path)).signals for path in volumes]
    ready = threading.Barrier(4)

    def one(index):
        ready.wait()
        plan = some_plan()
        result = extract(plan, open_volumes(volumes[index]), device=f"cuda:{index % 2}", chunk=1).signals
        return threading.current_thread(), result

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(one, range(4)))
    for index, (thread, result) in enumerate(results):
        np.testing.assert_allclose(result, expected[index], rtol=1e-10)
        assert {device for owner, device in spy.allocations if owner == thread} == {index % 2}
    launching = {(owner.name, device) for owner, device in spy.allocations if "launch" in owner.name}
    assert launching == {("gpumask-launch-cuda:0_0", 0), ("gpumask-launch-cuda:1_0", 1)}


# Memory


def test_buffers_follow_the_free_memory(gpu, tmp_path, a_plan, monkeypatch):
    """Fewer volumes at a time where little is free, and the same bits; at most as many as without a GPU."""
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run("f4", 40)))
    volume_bytes = 4 * np.prod(SHAPE)
    plan = a_plan("direct")
    expected = extract(plan, volumes, device=gpu).signals
    upload = cuda_runtime.upload
    for free, at_once in [(0, 1), (7 * volume_bytes, 3), (2**40, pipeline._chunk_size(volumes))]:
        sizes = []
        monkeypatch.setattr(cuda_runtime, "device_memory", lambda free=free: (free, 2**40))
        monkeypatch.setattr(cuda_runtime, "upload", lambda *a, sizes=sizes: (sizes.append(len(a[0])), upload(*a)))
        np.testing.assert_array_equal(extract(plan, volumes, device=gpu).signals, expected)
        assert max(sizes) == at_once
        assert sum(sizes) == 40


def test_buffers_leave_room_for_work_in_float64(gpu, tmp_path, a_plan, monkeypatch):
    """A chunk is scaled, resampled and smoothed at once."""
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run("f4", 10)))
    n_voxels, oblique = np.prod(SHAPE), a_plan("oblique")
    n_points = len(oblique.resampling.points)
    free = 3 * n_voxels * (2 * 4 + 64)
    monkeypatch.setattr(cuda_runtime, "device_memory", lambda: (free, 2**40))
    upload, sizes = cuda_runtime.upload, []
    monkeypatch.setattr(cuda_runtime, "upload", lambda *a: (sizes.append(len(a[0])), upload(*a)))
    of_oblique = free // (n_voxels * (2 * 4 + 64) + n_points * 64)
    for plan, at_once in ((a_plan("direct"), 10), (a_plan("staged"), 3), (oblique, of_oblique)):
        sizes.clear()
        assert_agree(extract(plan, volumes, device=gpu), extract(plan, volumes))
        assert max(sizes) == at_once


def test_another_allocator_may_hold_all_memory(gpu, tmp_path, a_plan, monkeypatch):
    """As RMM's pool does: little of the device is free then, but much of the pool."""
    import cupy

    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run("f4", 40)))
    plan, sizes, upload, pool = a_plan("direct"), [], cuda_runtime.upload, cupy.cuda.MemoryPool()
    expected = extract(plan, volumes, device=gpu).signals
    monkeypatch.setattr(cuda_runtime, "upload", lambda *a: (sizes.append(len(a[0])), upload(*a)))
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (2**10, 2**36))
    before = cupy.cuda.get_allocator()
    cuda_runtime.release_memory()
    try:
        cupy.cuda.set_allocator(pool.malloc)
        np.testing.assert_array_equal(extract(plan, volumes, device=gpu).signals, expected)
    finally:
        cupy.cuda.set_allocator(before)
    assert max(sizes) == pipeline._chunk_size(volumes)
    assert pool.total_bytes() > 0


def test_free_memory_counts_the_pool_and_its_limit(gpu):
    import cupy

    pool = cupy.get_default_memory_pool()
    with backend.using(gpu), cupy.cuda.using_allocator(pool.malloc):
        cuda_runtime.release_memory()
        free, total = cuda_runtime.device_memory()
        array = cupy.zeros(2**20)
        assert cuda_runtime.device_memory()[0] <= free - array.nbytes
        del array
        assert pool.free_bytes() >= 2**23
        assert cuda_runtime.device_memory() == (free, total)
        try:
            pool.set_limit(size=pool.used_bytes() + 2**24)
            assert cuda_runtime.device_memory() == (2**24, total)
        finally:
            pool.set_limit(size=0)


@every_way
def test_device_memory_does_not_grow_with_the_run(gpu, tmp_path, a_plan, way):
    import cupy

    pool, peaks = cupy.get_default_memory_pool(), []
    plan = a_plan(way)
    result_bytes = 8 * (len(IDS) + 1)
    for n in (16, 160):
        volumes = open_volumes(write(tmp_path / f"{n}.nii.gz", stored_run("f4", n)))
        pool.free_all_blocks()
        before = pool.total_bytes()
        extract(plan, volumes, device=gpu, chunk=4)
        peaks.append(pool.total_bytes() - before - n * result_bytes)
    volume_bytes = 4 * np.prod(SHAPE)
    assert peaks[1] - peaks[0] < 2 * volume_bytes  # of 144 volumes more


def test_memory_is_used_again_by_the_next_run(gpu, tmp_path, a_plan):
    import cupy

    pool = cupy.get_default_memory_pool()
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run("f4", 16)))
    totals = []
    for _ in range(4):
        extract(a_plan("direct"), volumes, device=gpu, chunk=4)
        totals.append(pool.total_bytes())
    assert totals == totals[:1] * 4


@pytest.fixture
def moved(monkeypatch):
    """Plans that are moved to a device from now on."""
    plans, like = [], Plan.like
    monkeypatch.setattr(Plan, "like", lambda plan, array: (plans.append(plan), like(plan, array))[1])
    return plans


@every_way
def test_plans_stay_on_the_device(gpu, tmp_path, a_plan, moved, way):
    """Integers first: of floats, more is prepared."""
    plan = a_plan(way)
    for stored in (stored_run("i2"), with_holes(stored_run("f4")), stored_run("i2", seed=1)):
        volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored))
        assert_agree(extract(plan, volumes, device=gpu), extract(plan, volumes))
    assert moved == on([plan], gpu)


def test_threads_share_a_plan(gpu, tmp_path, a_plan, moved):
    plan = a_plan("folded")
    (there,) = on([plan], gpu)
    paths = [write(tmp_path / f"{seed}.nii.gz", stored_run(n=12, seed=seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda path: extract(plan, open_volumes(path), device=gpu, chunk=2), paths))
    assert moved == [there]
    for path, result in zip(paths, results, strict=True):
        assert_agree(result, extract(plan, open_volumes(path)))


def test_plans_leave_the_device_with_the_plan(gpu, tmp_path, a_plan):
    import cupy

    pool = cupy.get_default_memory_pool()
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run()))
    kept_plans.forget()
    before = pool.used_bytes()
    plan = a_plan("folded")
    extract(plan, volumes, device=gpu)
    assert pool.used_bytes() > before
    del plan
    assert pool.used_bytes() == before


def test_plans_leave_a_device_that_is_short_of_memory(gpu, tmp_path, a_plan, monkeypatch):
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run()))
    plan, other = a_plan("folded"), a_plan("direct")
    extract(plan, volumes, device=gpu)
    monkeypatch.setattr(cuda_runtime, "device_memory", lambda: (0, 2**40))
    assert_agree(extract(other, volumes, device=gpu), extract(other, volumes))
    assert not kept_plans._kept


def test_page_locked_buffers_serve_the_next_run(gpu, tmp_path, a_plan, monkeypatch):
    monkeypatch.setattr(cuda_runtime, "_unused_pinned", [])
    volumes = [open_volumes(write(tmp_path / f"{n}.nii.gz", stored_run(n=n))) for n in (12, 5)]
    for source in volumes:
        assert_agree(extract(a_plan("direct"), source, device=gpu), extract(a_plan("direct"), source))
        assert [memory.size() for memory in cuda_runtime._unused_pinned] == [2 * 12 * np.prod(SHAPE)] * 2
