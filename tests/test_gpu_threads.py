"""A GPU's run in threads: one reads, one submits. Same bits and errors as in one thread, and none is left behind."""

import _thread
import gc
import threading
import time

import nibabel as nib
import numpy as np
import pytest

from gpumask import backend, process
from gpumask.engine import filling, gpu_run
from gpumask.engine.stream import run_plans
from gpumask.images.errors import ImageError
from gpumask.images.volumes import Volumes, open_volumes

from .runs import AFFINE, extract, on, some_plan, stored_run, write

SOURCES = ["bold.nii", "bold.nii.gz", "memory", ">i2"]
every_source = pytest.mark.parametrize("source", SOURCES)


def opened(tmp_path, source, n=22):
    """Views of a file or an array, a decoded file, and values that are converted on the host."""
    if source == "memory":
        return open_volumes(nib.Nifti1Image(stored_run("f4", n), AFFINE))
    if source == ">i2":
        return open_volumes(write(tmp_path / "bold.nii.gz", stored_run(">i2", n)))
    return open_volumes(write(tmp_path / source, stored_run("f4", n)))


def threads():
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("gpumask"))


def around(monkeypatch, name, before):
    """Have `before` called, with their arguments, ahead of calls of a method of the run."""
    method = getattr(gpu_run.GpuRun, name)

    def called(*arguments):
        before(*arguments)
        return method(*arguments)

    monkeypatch.setattr(gpu_run.GpuRun, name, called)


@every_source
@pytest.mark.parametrize("slow", ["reading", "launching", "both in turn"])
def test_same_bits_and_order_whoever_is_slow(gpu, tmp_path, monkeypatch, source, slow):
    plans = on([some_plan(), some_plan("parallel"), some_plan("same", 6.0, "median")], gpu)
    expected = [result.signals for result in run_plans(plans, opened(tmp_path, source), chunk=22)]
    rng, launched, chunks = np.random.default_rng(0), [], Volumes.chunks

    def pause(who):
        if slow in (who, "both in turn"):
            time.sleep(0.02 if slow == who else rng.choice([0.0, 0.02]))

    def slow_chunks(volumes, *arguments):
        for chunk in chunks(volumes, *arguments):
            pause("reading")
            yield chunk

    def slow_launch(run, rows, chunk, buffer):
        launched.append((chunk.start + rows.start, rows.stop - rows.start))
        pause("launching")

    monkeypatch.setattr(Volumes, "chunks", slow_chunks)
    around(monkeypatch, "_upload_and_reduce", slow_launch)
    results = run_plans(plans, opened(tmp_path, source), chunk=4)
    for result, signals in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.signals, signals)
    assert launched == [(0, 4), (4, 4), (8, 4), (12, 4), (16, 4), (20, 2)]


@every_source
def test_reading_waits_for_launches_only_where_buffers_are_full(gpu, tmp_path, monkeypatch, source):
    """Two chunks are read while the first one is being submitted, and a third isn't."""
    read_on, seen = threading.Event(), []

    def wait(run, rows, chunk, buffer):
        seen.append(("launch", chunk.start, threading.current_thread().name))
        assert read_on.wait(10)

    def progress(done):
        seen.append(("read", done, threading.current_thread().name))
        if done == 8:
            time.sleep(0.05)
            assert len([what for what, *_ in seen if what == "launch"]) <= 1
            threading.Timer(0.1, read_on.set).start()
        assert done <= 8 or read_on.is_set()

    around(monkeypatch, "_upload_and_reduce", wait)
    extract(some_plan(), opened(tmp_path, source), device=gpu, chunk=4, progress=progress)
    here = threading.current_thread().name
    assert [(done, name) for what, done, name in seen if what == "read"] == [(n, here) for n in (4, 8, 12, 16, 20, 22)]
    assert {name for what, _, name in seen if what == "launch"} == {"gpumask-launch-cuda:0_0"}


@pytest.fixture
def several_fill(monkeypatch):
    """Threads that fill buffers, however few the cores and small the chunks."""
    monkeypatch.setattr(process, "n_cores", lambda: 8)
    monkeypatch.setattr(filling, "_PIECE", 1)


class BrokenError(Exception):
    """An error that no library has."""


@pytest.mark.parametrize("error", [BrokenError("a chunk"), MemoryError("of the host")], ids=repr)
@pytest.mark.parametrize("number", [1, 6])
@pytest.mark.parametrize("shared", [False, True])
@every_source
def test_errors_of_launching_come_out_as_they_are(gpu, tmp_path, monkeypatch, source, shared, number, error):
    """A MemoryError isn't taken for one of reading, which would name the image."""
    count = []

    def fail(*_):
        count.append(1)
        if len(count) == number:
            raise error

    around(monkeypatch, "_reduce", fail)
    plans = on([some_plan()], gpu) + (on([some_plan()], "cpu") if shared else [])
    with pytest.raises(type(error)) as caught:
        run_plans(plans, opened(tmp_path, source), chunk=4)
    assert caught.value is error
    assert error.__cause__ is None
    assert threads() == []


@pytest.mark.parametrize("shared", [False, True])
@every_source
def test_no_thread_is_left_after_success(gpu, tmp_path, several_fill, source, shared):
    during, plans = set(), on([some_plan()], gpu) + (on([some_plan()], "cpu") if shared else [])
    run_plans(plans, opened(tmp_path, source), chunk=4, progress=lambda _: during.update(threads()))
    assert "gpumask-launch-cuda:0_0" in during
    assert ("gpumask-fill_0" in during) == (shared or source != "bold.nii.gz")  # which is decoded into the buffers
    assert threads() == []


def stop_in_progress(monkeypatch):
    def progress(done):
        if done > 8:
            raise KeyboardInterrupt

    return progress


def interrupt_while_waiting(monkeypatch):
    def interrupt(run, rows, chunk, buffer):
        if chunk.start == 4:
            time.sleep(0.1)  # until the reading thread waits for a buffer
            _thread.interrupt_main()
            time.sleep(0.1)

    around(monkeypatch, "_upload_and_reduce", interrupt)


def fail_at(name):
    def fail(monkeypatch):
        def broken(*_):
            raise BrokenError

        around(monkeypatch, name, broken)

    return fail


def lose_the_device(monkeypatch):
    def lost(*_):
        import cupy

        raise cupy.cuda.runtime.CUDARuntimeError(719)

    around(monkeypatch, "_reduce", lost)


def fill_the_device(monkeypatch):
    def full(*_):
        import cupy

        raise cupy.cuda.memory.OutOfMemoryError(512, 0)

    around(monkeypatch, "_reduce", full)


def truncate(monkeypatch):
    chunks = Volumes.chunks

    def cut(volumes, *arguments):
        for chunk in chunks(volumes, *arguments):
            if chunk.start == 12:
                raise ImageError
            yield chunk

    monkeypatch.setattr(Volumes, "chunks", cut)


WAYS_OUT = {
    "progress": (stop_in_progress, KeyboardInterrupt),
    "Ctrl-C": (interrupt_while_waiting, KeyboardInterrupt),
    "allocating": (fail_at("_allocate"), BrokenError),
    "copying": (fail_at("copy"), BrokenError),
    "submitting": (fail_at("submit"), BrokenError),
    "results": (fail_at("results"), BrokenError),
    "lost": (lose_the_device, backend.DeviceError),
    "full": (fill_the_device, backend.DeviceError),
    "reading": (truncate, ImageError),
}


@pytest.mark.parametrize("way", WAYS_OUT)
@pytest.mark.parametrize("shared", [False, True])
def test_no_thread_is_left_on_any_way_out(gpu, tmp_path, monkeypatch, several_fill, way, shared):
    plans = on([some_plan()], gpu) + (on([some_plan()], "cpu") if shared else [])
    make, error = WAYS_OUT[way]
    with monkeypatch.context() as patch:
        progress = make(patch)
        with pytest.raises(error):
            run_plans(plans, opened(tmp_path, "bold.nii"), chunk=4, progress=progress)
    assert threads() == []
    expected = extract(some_plan(), opened(tmp_path, "bold.nii")).signals
    np.testing.assert_allclose(run_plans(plans, opened(tmp_path, "bold.nii"))[0].signals, expected, rtol=1e-10)


def test_nothing_is_submitted_after_the_end(gpu, tmp_path, monkeypatch):
    """The chunk being submitted is finished; the next one, which waits, is dropped."""
    launched, begun = [], threading.Event()

    def slow(run, rows, chunk, buffer):
        launched.append(chunk.start)
        begun.set()
        time.sleep(0.1)

    def progress(done):
        if done == 8:
            assert begun.wait(10)
            raise BrokenError

    around(monkeypatch, "_upload_and_reduce", slow)
    with pytest.raises(BrokenError):
        extract(some_plan(), opened(tmp_path, "memory"), device=gpu, chunk=4, progress=progress)
    assert launched == [0]


def test_an_error_of_launching_holds_no_memory(gpu, tmp_path, monkeypatch):
    """Its frames have the run's arrays: they go with the error, not with the next collection of garbage."""
    import cupy

    pool, volumes, plan = cupy.get_default_memory_pool(), opened(tmp_path, "memory"), some_plan()
    extract(plan, volumes, device=gpu, chunk=4)
    fail_at("_reduce")(monkeypatch)
    gc.collect()  # what earlier tests left
    before = pool.used_bytes()
    gc.disable()
    try:
        with pytest.raises(BrokenError) as caught:
            extract(plan, volumes, device=gpu, chunk=4)
        assert pool.used_bytes() > before
        del caught
        assert pool.used_bytes() == before
    finally:
        gc.enable()


def test_launching_uses_the_callers_allocator(gpu, tmp_path):
    """`cupy.cuda.using_allocator` is for one thread."""
    import cupy

    callers, others = set(), cupy.cuda.get_allocator()

    def allocate(size):
        callers.add(threading.current_thread().name)
        return others(size)

    with cupy.cuda.using_allocator(allocate):
        extract(some_plan(), opened(tmp_path, "memory"), device=gpu, chunk=4)
    assert callers == {threading.current_thread().name, "gpumask-launch-cuda:0_0"}


def test_seconds_tell_reading_from_launching(gpu, tmp_path, monkeypatch):
    """A pause in either thread is counted once, in its own."""
    around(monkeypatch, "_upload_and_reduce", lambda *_: time.sleep(0.05))
    seconds = extract(some_plan(), opened(tmp_path, "bold.nii.gz"), device=gpu, chunk=4).seconds
    assert seconds["launch"] >= 6 * 0.05
    assert seconds["read"] < 6 * 0.05
    assert seconds["total"] >= seconds["launch"]
