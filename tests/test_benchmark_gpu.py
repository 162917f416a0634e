"""The GPU benchmark runs from end to end, on a grid too small to say anything about speed."""

import importlib.util
import json
import os
import re
import sys
import time
import types

import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import decoding, kernels
from benchmarks.gpu.bench import Bench, DifferentResultsError, difference
from benchmarks.gpu.rows import PREDICTED, Row, all_rows
from benchmarks.gpu.timing import EMULATED, WAITS, Clock, Timed
from benchmarks.inputs import Inputs
from gpumask import backend, devices
from gpumask.kernels.segments import Segments, reduce

DEVICE_TIMES = ("device, ", "us/volume", "launching, ", "GB/s", "TFLOP/s", "share of", "GPU: upload", "GPU: reduce")


def read(path):
    return json.loads(path.read_text("utf-8"))


def run(tmp_path, *arguments):
    status = command.main([*arguments, "--out", str(tmp_path / "new" / "report.json")])
    return status, read(tmp_path / "new" / "report.json")


@pytest.fixture
def in_new_processes(monkeypatch, tmp_path):
    """The emulated GPU, if there is one, in the benchmark's processes too."""
    if "cpucuda" in sys.modules:
        (tmp_path / "sitecustomize.py").write_text("import cpucuda\ncpucuda.activate(nvrtc_check=False)\n")
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        monkeypatch.setenv("PYTHONPATH", path)


@pytest.mark.usefixtures("in_new_processes")
def test_every_row_is_measured(gpu, tmp_path, capsys):
    status, document = run(tmp_path, "--tiny", "--commit", "abc")
    assert [(row["row"], row["error"]) for row in document["rows"] if "error" in row] == []
    assert status == 0
    about, rows = document["about"], {row["row"]: row for row in document["rows"]}
    assert about["gpu"]["name"] == devices.cuda_status().devices[0]
    assert about["commit"] == "abc"
    assert about["tiny"] is True
    assert list(rows) == [row.name for row in all_rows()]
    emulated = "cpucuda" in sys.modules
    assert about["gpu"]["emulated"] == emulated
    for name, row in rows.items():
        of_device = {value for value in row["values"] if value.startswith(DEVICE_TIMES)}
        unmeasured = row.get("unmeasured", {})
        assert {value for value, number in row["values"].items() if number is None} == set(unmeasured), name
        assert set(unmeasured) - {"rapidgzip"} == (of_device if emulated else set()), name
        assert set(unmeasured.values()) <= {EMULATED, decoding.MISSING}, name
        assert all(number is True for value, number in row["values"].items() if value.endswith("same bits")), name
        assert row["values"].get("difference", 0) < 1e-5, name
    printed = capsys.readouterr().out
    for name, value in PREDICTED:
        if name != "decoding":  # it depends on the cores
            assert value in rows[name]["values"], name
    assert f"    {'device, us/volume':36} predicted 0.5 to 0.7 / " in printed
    assert f"    {'GB/s':36} predicted 3000 / " in printed


def test_results_are_compared_before_times(gpu, tmp_path, monkeypatch):
    def wrong(data, *arguments, **options):
        signals, found = reduce(data, *arguments, **options)
        return signals if backend.is_numpy(data) else signals * (1 + 1e-8), found

    monkeypatch.setattr(kernels, "reduce", wrong)
    status, document = run(tmp_path, "--tiny", "--only", "mean, int16, 416 regions, 16|brain as one region")
    assert status == 1
    errors = [row["error"] for row in document["rows"]]
    assert errors == ["mean: GPU and CPU differ by 1.0e-08 of the largest value (allowed: 1e-12)"] * 2


def test_missing_values_are_compared():
    on_cpu = np.array([1.0, np.nan, -2.0])
    assert difference("x", np.array([1.0, np.nan, -2.0 - 1e-12]), on_cpu) == pytest.approx(5e-13, rel=1e-3)
    with pytest.raises(DifferentResultsError, match=r"^x: NaN on the GPU, but not on the CPU, or the reverse$"):
        difference("x", np.array([np.nan, np.nan, -2.0]), on_cpu)
    with pytest.raises(DifferentResultsError, match=r"^x: GPU and CPU differ by 5\.0e-01 of the largest value"):
        difference("x", np.array([1.0, np.nan, -3.0]), on_cpu)


# The command, without a GPU


@pytest.fixture
def made_up(monkeypatch):
    """Set the rows: a function each, of which none needs a GPU."""

    def set_rows(**functions):
        rows = [Row(name, 5, function, needs_gpu=False) for name, function in functions.items()]
        monkeypatch.setattr(command, "all_rows", lambda: rows)

    monkeypatch.setattr(devices, "cuda_status", lambda: devices.CudaStatus(problem="there is none", remedy="Buy one."))
    return set_rows


def test_the_file_is_complete_after_every_row(tmp_path, made_up):
    out, seen = tmp_path / "report.json", []

    def first(bench):
        seen.append(read(out)["rows"])
        return {"s": 1.5, "us": None, "why": "it is too short"}

    def second(bench):
        seen.append(read(out)["rows"])
        raise KeyboardInterrupt

    made_up(first=first, second=second)
    with pytest.raises(KeyboardInterrupt):
        command.main(["--out", str(out), "--folder", str(tmp_path)])
    assert seen[0] == []
    (row,) = seen[1]
    assert row.pop("seconds") < 5
    assert row == {"row": "first", "values": {"s": 1.5, "us": None}, "unmeasured": {"us": "it is too short"}}
    assert read(out)["rows"] == seen[1] or read(out)["rows"][0]["row"] == "first"


def test_a_row_that_fails_does_not_end_the_others(tmp_path, made_up, capsys):
    def fails(bench):
        raise OSError("no disk")

    made_up(fails=fails, works=lambda bench: {"n": 3})
    status, document = run(tmp_path, "--folder", str(tmp_path))
    assert status == 1
    failed, works = document["rows"]
    assert failed["error"].endswith('    raise OSError("no disk")\nOSError: no disk\n')
    assert works["values"] == {"n": 3}
    assert "    error: OSError: no disk\n" in capsys.readouterr().out


def test_a_row_that_would_not_fit_the_budget_is_skipped(tmp_path, made_up, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(command.time, "perf_counter", lambda: now[0])

    def slow(bench):
        now[0] += 6
        return {"n": 1}

    made_up(one=slow, two=slow, three=slow)
    status, document = run(tmp_path, "--folder", str(tmp_path), "--budget", "11")
    assert status == 0
    assert [row.get("values", row.get("skipped")) for row in document["rows"]] == [
        {"n": 1},
        {"n": 1},  # 5 s expected, 5 left
        "takes up to 5 s, and -1 s of the budget are left",
    ]
    assert "    skipped: takes up to 5 s, and -1 s of the budget are left\n" in capsys.readouterr().out


def test_refuses_without_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(devices, "cuda_status", lambda: devices.CudaStatus(problem="there is none", remedy="Buy one."))
    assert command.main(["--tiny", "--out", str(tmp_path / "report.json")]) == 2
    assert capsys.readouterr().err == (
        "benchmarks.gpu needs a CUDA device: there is none. Buy one. Decoding alone needs none: --only decoding\n"
    )
    assert not list(tmp_path.iterdir())


def test_lists_and_chooses_rows(capsys):
    assert command.main(["--list", "--only", "^decod|copy"]) == 0
    assert capsys.readouterr().out == "  3 s  copy on the device\n 30 s  decoding\n"
    assert command.main(["--only", "warp drive"]) == 2
    assert capsys.readouterr().err == "no row matches 'warp drive'; --list names them\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "("], "argument --only: isn't a regular expression: missing ), unterminated subpattern"),
        (["--budget", "-5"], "argument --budget: must be more than 0, got -5"),
        (["--budget", "nan"], "argument --budget: must be more than 0, got nan"),
        (["--rounds", "0"], "argument --rounds: must be 1 or more, got 0"),
        (["--run-rounds", "0"], "argument --run-rounds: must be 1 or more, got 0"),
        (["--rounds", "2.5"], "argument --rounds: must be 1 or more, got 2.5"),
    ],
)
def test_wrong_options_are_named(tmp_path, made_up, capsys, arguments, message):
    made_up(one=lambda bench: {"n": 1})
    with pytest.raises(SystemExit, match=r"^2$"):
        command.main([*arguments, "--out", str(tmp_path / "report.json")])
    assert f"error: {message}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_earlier_report_is_not_replaced(tmp_path, made_up, capsys):
    made_up(one=lambda bench: {"n": 1})
    out = tmp_path / "report.json"
    assert command.main(["--out", str(out)]) == 0
    measured = out.read_bytes()
    capsys.readouterr()
    assert command.main(["--out", str(out)]) == 2
    expected = f"{out} exists, and may hold measurements: remove it, or give another name with --out\n"
    assert capsys.readouterr().err == expected
    assert out.read_bytes() == measured


@pytest.mark.parametrize("option", ["--out", "--folder"])
def test_what_can_not_be_written_is_found_first(tmp_path, made_up, capsys, option):
    made_up(one=lambda bench: pytest.fail("measured"))
    (tmp_path / "file").touch()
    options = {"--out": tmp_path / "report.json", option: tmp_path / "file" / "new" / "report.json"}
    assert command.main([str(part) for pair in options.items() for part in pair]) == 2
    assert re.fullmatch(rf"{re.escape(str(options[option]))} can't be written: .+\n", capsys.readouterr().err)


def test_the_most_important_rows_fit_the_budget():
    rows = all_rows()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {name for name, _ in PREDICTED} <= set(names)
    up_to_runs = max(k for k, name in enumerate(names) if name.startswith("run: "))
    assert sum(row.seconds for row in rows[: up_to_runs + 1]) < 400  # of 540


def test_decoding(tmp_path):
    if importlib.util.find_spec("rapidgzip") is None:
        pytest.skip("rapidgzip is not installed")
    status, document = run(tmp_path, "--tiny", "--only", "^decoding", "--folder", str(tmp_path))
    assert status == 0
    (row,) = document["rows"]
    values = row["values"]
    assert values["decoded, MB"] == (25 * 29 * 25 * 100 * 2 + 352) / 1e6
    for way in ("isal", "rapidgzip, threads: 1", f"rapidgzip, threads: {values['cores']}"):
        assert values[f"{way}: s"] > 0
        assert values[f"{way}: CPU s"] > 0
        assert values[f"{way}: memory, MB"] > 0
    ratio = values["rapidgzip, threads: 1: s"] / values["isal: s"]
    assert values["rapidgzip, threads: 1: time / isal"] == pytest.approx(ratio)


def test_decoding_without_rapidgzip(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding.importlib.util, "find_spec", lambda name: None)
    values = decoding.decoding(Bench(Inputs(tmp_path, tiny=True), 1, 1, Clock(emulated=True)))
    assert values["isal: s"] > 0
    assert values["rapidgzip"] is None
    assert values["why"] == "rapidgzip isn't installed. Run: pip install 'gpumask[fast]'"


# What is counted


def test_moved_bytes():
    """Voxels 0 and 1 share a sector of 16 int16 values; 16 and 40 lie in others."""
    segments = Segments(np.array([0, 1, 16, 40], np.int32), np.array([0, 3, 4]))
    assert kernels.moved_bytes(segments, 2, n_volumes=5) == 5 * (3 * 32 + 2 * 8) + 4 * 4
    assert kernels.moved_bytes(segments, 8, n_volumes=1) == 3 * 32 + 2 * 8 + 4 * 4
    weighted = Segments(segments.indices, segments.offsets, np.ones(4))
    assert kernels.moved_bytes(weighted, 2, n_volumes=1) == 3 * 32 + 2 * 8 + 4 * (4 + 8)


class FakeGpu:
    """A queue that takes as long as it is told to; events have the time at which the queue reaches them."""

    def __init__(self):
        self.busy_until, gpu = 0.0, self

        class Event:
            def record(self):
                self.at = max(gpu.busy_until, time.perf_counter())

            @property
            def done(self):
                return time.perf_counter() >= self.at

            def synchronize(self):
                gpu.wait(self.at)

        class Stream:
            def __init__(self, non_blocking):
                assert non_blocking

            def __enter__(self): ...

            def __exit__(self, *_): ...

            def synchronize(self):
                gpu.wait(gpu.busy_until)

        device = types.SimpleNamespace(synchronize=lambda: None)
        cuda = types.SimpleNamespace(
            Event=Event, Stream=Stream, Device=lambda: device, get_elapsed_time=lambda a, b: (b.at - a.at) * 1e3
        )
        spin = lambda grid, block, arguments: self.queue(arguments[0] * 1e-9)  # noqa: E731
        self.cupy = types.SimpleNamespace(cuda=cuda, RawKernel=lambda source, name: spin)

    def queue(self, seconds):
        self.busy_until = max(self.busy_until, time.perf_counter()) + seconds

    @staticmethod
    def wait(until):
        time.sleep(max(until - time.perf_counter(), 0))


def test_gaps_between_launches_do_not_count(monkeypatch):
    gpu = FakeGpu()
    monkeypatch.setitem(sys.modules, "cupy", gpu.cupy)

    def work(variant):
        for _ in range(2):
            time.sleep(0.004)
            gpu.queue(0.001)

    device, host, why = Clock(emulated=False).time(work, rounds=3)
    assert device == pytest.approx(0.002, rel=1e-6)  # not 0.009
    assert 0.008 <= host < 0.1
    assert why == ""


def test_work_that_waits_for_the_gpu_is_not_timed(monkeypatch):
    gpu = FakeGpu()
    monkeypatch.setitem(sys.modules, "cupy", gpu.cupy)
    assert Clock(emulated=False).time(lambda variant: gpu.wait(gpu.busy_until)) == Timed(None, None, WAITS)


def test_an_emulated_gpu_is_not_timed():
    done = []
    assert Clock(emulated=True).time(done.append, "ab") == Timed(None, None, EMULATED)
    assert done == ["a"]
