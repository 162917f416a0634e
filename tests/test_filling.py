"""Large arrays are copied by several threads: the same values, and threads only where they help."""

import contextlib
import threading

import numpy as np
import pytest

from gpumask import process
from gpumask.engine import filling

N_THREADS = 6


@pytest.fixture
def copied(monkeypatch):
    """Sizes of the copies, with the threads that made them, on a machine of several cores; all threads at once."""
    copies, copy = [], filling._copy

    def spied(target, source):
        copies.append((threading.current_thread().name, source.nbytes))
        copy(target, source)

    monkeypatch.setattr(process, "n_cores", lambda: 2 * N_THREADS)
    monkeypatch.setattr(filling, "_PIECE", 1000)
    monkeypatch.setattr(filling, "_copy", spied)
    return copies


@pytest.fixture
def filler(copied):
    filler = filling.Filler()
    yield filler
    filler.close()


@pytest.mark.parametrize("shape", [(1, 1), (1, 999), (3, 1000), (7, 1013), (16, 4096)])
@pytest.mark.parametrize(("of", "to"), [("u1", "u1"), ("<i2", "<i2"), (">i2", "<i2"), (">f8", "<f8"), ("g", "f8")])
def test_every_value_arrives(filler, copied, shape, of, to):
    source = (np.random.default_rng(0).normal(size=shape) * 50).astype(of)
    source.flags.writeable = False
    target = np.full((shape[0] + 1, shape[1]), 77, to)
    filler.fill(target[: shape[0]], source)
    np.testing.assert_array_equal(target[: shape[0]], source)
    assert (target[-1] == 77).all()
    assert len(copied) == min(max(source.nbytes // 1000, 1), N_THREADS)
    assert sum(size for _, size in copied) == source.nbytes


def test_all_threads_copy_at_once(filler, monkeypatch):
    meet = threading.Barrier(N_THREADS, timeout=10)
    monkeypatch.setattr(filling, "_copy", lambda target, source: meet.wait())
    filler.fill(np.empty(6000, "u1"), np.zeros(6000, "u1"))


def test_small_arrays_need_no_thread(filler, copied):
    filler.fill(np.empty(1999, "u1"), np.zeros(1999, "u1"))
    assert copied == [(threading.current_thread().name, 1999)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gpumask-fill")]


@pytest.mark.parametrize(
    ("busy", "n"), [("several runs", 64), ("worker process", 64), ("few cores", 1), ("few cores", 3)]
)
def test_one_thread_where_cores_are_few_or_busy(copied, monkeypatch, busy, n):
    if busy == "worker process":
        monkeypatch.setattr(process, "is_alone", lambda: False)
    if busy == "few cores":
        monkeypatch.setattr(process, "n_cores", lambda: n)
    with process.several_runs if busy == "several runs" else contextlib.nullcontext():
        filler = filling.Filler()
    filler.fill(np.empty(50_000, "u1"), np.zeros(50_000, "u1"))
    filler.close()
    assert copied == [(threading.current_thread().name, 50_000)]


def test_many_cores_are_not_all_used(copied, monkeypatch):
    monkeypatch.setattr(process, "n_cores", lambda: 64)
    filler = filling.Filler()
    filler.fill(np.empty(500_000, "u1"), np.zeros(500_000, "u1"))
    filler.close()
    assert len(copied) == filling._MOST_THREADS == 8


def test_close_ends_the_threads(filler):
    filler.fill(np.empty(6000, "u1"), np.zeros(6000, "u1"))
    assert [thread for thread in threading.enumerate() if thread.name.startswith("gpumask-fill")]
    filler.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gpumask-fill")]


def test_an_error_of_another_thread_comes_out(filler, monkeypatch):
    def copy(target, source):
        if threading.current_thread() is not threading.main_thread():
            msg = "no copy"
            raise OSError(msg)

    monkeypatch.setattr(filling, "_copy", copy)
    with pytest.raises(OSError, match=r"^no copy$"):
        filler.fill(np.empty(6000, "u1"), np.zeros(6000, "u1"))
