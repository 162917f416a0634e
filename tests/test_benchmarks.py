"""The benchmark command on tiny inputs: it runs, it compares before it times, and it writes what it measured."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from benchmarks import __main__ as command_line
from benchmarks import summary
from benchmarks.__main__ import main
from benchmarks.inputs import REAL_FILES, Inputs
from benchmarks.measure import DifferentResultsError, Measured, compare, measure_row, time_steps
from benchmarks.report import comparisons, limits, lines
from benchmarks.rows import Against, Row, all_rows
from benchmarks.workloads import Workload


class Given(Workload):
    """A workload with a known result."""

    def __init__(self, *result, n_volumes=3, missing=""):
        self.result, self.n_volumes, self.why = [np.array(one) for one in result], n_volumes, missing

    def missing(self):
        return self.why

    def steps(self, inputs, scratch):
        assert list(scratch.iterdir()) == []
        return {"first": lambda: None, "next": lambda: self.result}


SIGNALS = [[1.0, 200.0], [2.0, 100.0], [3.0, -400.0]]


def row(theirs=None, **options):
    return Row("work", "group", Given(SIGNALS), {"other": Against(theirs or Given(SIGNALS))}, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("inputs")


def test_every_row_runs(tmp_path, folder):
    """On tiny inputs; but not those that only start Python, which takes seconds."""
    slow = "import|--help"
    options = ["--tiny", "--folder", str(folder), "--results", str(tmp_path), "--only", f"^(?!.*({slow}))"]
    assert main(options) == 0
    (path,) = tmp_path.glob("*.json")
    document, table = json.loads(path.read_text()), path.with_suffix(".md").read_text()
    expected = [row.name for row in all_rows() if not row.full and not re.search(slow, row.name)]
    assert [one["work"] for one in document["rows"]] == expected
    for one in document["rows"]:
        assert f"| {one['work']} |" in table
        times = [value for steps in one["seconds"].values() for values in steps.values() for value in values]
        assert min(times) > 0
        assert set(one["seconds"]) | set(one["skipped"]) == set(one["volumes"])
        if "nilearn" in one["seconds"]:
            assert one["differences"]["nilearn"] <= 3e-5
    assert {"commit", "cpu", "cores", "date", "versions", "environment", "thread_pools"} <= set(document["about"])


def test_measurements_in_their_own_processes(folder):
    (row,) = (row for row in all_rows() if (row.group, row.name) == ("targets", "mean, .nii"))
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--folder", str(folder), "--measure"]
    measured = measure_row(row, Inputs(folder, tiny=True), 1, command=command)
    assert measured.differences["nilearn"] <= row.tolerance
    assert list(measured.seconds) == ["gpumask", "nilearn"]
    assert all(set(steps) == {"first", "next"} for steps in measured.seconds.values())
    assert all(peak > 0 for peaks in measured.peak_mb.values() for peak in peaks)


def test_a_process_that_fails_is_an_error(folder):
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(RuntimeError, match="no such thing"):
        measure_row(row(), None, 1, command=command)


def test_rows_have_names_of_their_own():
    names = [(row.group, row.name) for row in all_rows()]
    assert len(set(names)) == len(names)


def test_no_row_chosen(capsys):
    assert main(["--only", "nothing of that name"]) == 2
    assert "no row matches 'nothing of that name'" in capsys.readouterr().err


def test_quick_is_a_part(capsys):
    lists = []
    for options in (["--quick"], [], ["--full"]):
        assert main(["--list", *options]) == 0
        lists.append(set(capsys.readouterr().out.splitlines()))
    assert lists[0] < lists[1] < lists[2]


# Comparing


def test_equal_results_are_timed_in_turn():
    order = []

    class Noted(Given):
        def steps(self, inputs, scratch):
            order.append(self)
            return super().steps(inputs, scratch)

    ours, theirs = Noted(SIGNALS), Noted(SIGNALS)
    measured = measure_row(Row("work", "group", ours, {"other": Against(theirs)}), None, 3)
    assert order == [ours, theirs, theirs, ours, ours, theirs]
    assert {len(values) for steps in measured.seconds.values() for values in steps.values()} == {3}
    assert measured.differences == {"other": 0.0}


def test_a_short_next_step_is_the_median_of_several_calls(tmp_path, monkeypatch):
    durations = {"first": [0.3], "next": [0.04, 0.09, 0.03, 0.04, 0.05]}
    now, expected = [0.0], {"first": 0.3, "next": 0.04}

    class Timed(Workload):
        def steps(self, inputs, scratch):
            return {name: (lambda left=list(values): self.spend(left.pop(0))) for name, values in durations.items()}

        def spend(self, seconds):
            now[0] += seconds
            return [np.zeros(1)]

    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now[0])
    seconds, _, result = time_steps(Timed(), Inputs(tmp_path))
    assert seconds == pytest.approx(expected)
    assert len(result) == 1
    durations["next"], expected["next"] = [0.6], 0.6
    assert time_steps(Timed(), Inputs(tmp_path))[0] == pytest.approx(expected)


@pytest.mark.parametrize(("change", "difference"), [(1e-7, 2.5e-10), (3.2e-4, 8e-7)])
def test_differences_are_relative_to_the_regions_scale(change, difference):
    theirs = np.array(SIGNALS)
    theirs[0, 1] += change
    assert compare(row(), "other", [np.array(SIGNALS)], [theirs]) == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize(("absolute", "change"), [(False, 5e-4), (True, 2e-5)])
def test_different_results_are_not_timed(absolute, change):
    theirs = np.array(SIGNALS)
    theirs[0, 1] += change
    options = {"absolute": True, "tolerance": 1e-5} if absolute else {}
    with pytest.raises(DifferentResultsError, match=r"^work: results differ by .* from other's, at most .* expected$"):
        measure_row(row(Given(theirs), **options), None, 1)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_differs(broken):
    theirs = np.array(SIGNALS)
    theirs[2, 0] = broken
    with np.errstate(invalid="ignore"), pytest.raises(DifferentResultsError):
        compare(row(), "other", [np.array(SIGNALS)], [theirs])


def test_other_shapes_differ():
    with pytest.raises(DifferentResultsError, match=r"shape \(3, 2\), other has \(2, 2\)"):
        measure_row(row(Given(SIGNALS[:2])), None, 1)
    with pytest.raises(DifferentResultsError, match="1 results, other has 2"):
        measure_row(row(Given(SIGNALS, SIGNALS)), None, 1)


def test_first_volumes_are_compared():
    measured = measure_row(row(Given(SIGNALS[:2], n_volumes=2)), None, 1)
    assert measured.differences == {"other": 0.0}


def test_a_row_that_differs_fails_the_command(tmp_path, monkeypatch, capsys):
    rows = [row(Given(np.array(SIGNALS) + 1)), Row("another", "group", Given(SIGNALS))]
    monkeypatch.setattr(command_line, "all_rows", lambda: rows)
    assert main(["--tiny", "--folder", str(tmp_path), "--results", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("*.json")
    differing, fine = json.loads(path.read_text())["rows"]
    assert "results differ" in differing["error"]
    assert "seconds" not in differing
    assert fine["seconds"]["gpumask"]["next"]
    assert "results differ" in capsys.readouterr().out


def test_missing_tools_are_skipped_with_their_reason():
    measured = measure_row(row(Given(missing="it is not installed")), None, 1)
    assert measured.skipped == {"other": "it is not installed"}
    assert [line for line in lines(measured) if "not run: it is not installed" in line]
    assert list(comparisons(measured)) == []


# Judging


def timed(against, ours, theirs, n_volumes=3, peaks=(1.0, 2.0), limits=None):
    one = Against(Given(n_volumes=n_volumes), **against)
    return Measured(
        Row("work", "group", Given(), {"other": one}, limits or {}),
        {"gpumask": {"first": [9.0] * len(ours), "next": ours}, "other": {"next": theirs}},
        {"gpumask": [peaks[0]] * len(ours), "other": [peaks[1]] * len(ours)},
    )


@pytest.mark.parametrize(
    ("against", "theirs", "n_volumes", "ratio", "met"),
    [
        ({"target": 4}, [4.0, 8.0, 60.0], 3, (4.0, 4.0, 20.0), True),
        ({"target": 4.1}, [4.0, 8.0, 60.0], 3, (4.0, 4.0, 20.0), False),
        ({"target": 12}, [4.0, 8.0, 60.0], 1, (12.0, 12.0, 60.0), True),  # by volume
        ({"target": 0.25, "floor": True}, [4.0, 8.0, 60.0], 3, (0.25, 0.05, 0.25), True),
        ({"target": 0.24, "floor": True}, [4.0, 8.0, 60.0], 3, (0.25, 0.05, 0.25), False),
        ({}, [4.0, 8.0, 60.0], 3, (4.0, 4.0, 20.0), None),
        ({"target": 0.5, "floor": True, "of": "peak_mb"}, [4.0, 8.0, 60.0], 3, (0.5, 0.5, 0.5), True),
    ],
)
def test_targets_are_of_the_median_ratio_of_rounds(against, theirs, n_volumes, ratio, met):
    measured = timed(against, [1.0, 2.0, 3.0], theirs, n_volumes)
    *first, last = comparisons(measured)
    assert last["step"] == "next"
    assert last["ratio"] == pytest.approx(ratio)
    assert last["met"] is met
    assert all(one["met"] is None for one in first)  # targets are of the last step
    assert ("**no**" in "".join(lines(measured))) is (met is False)


@pytest.mark.parametrize(("limit", "met"), [({"peak_mb": 1}, True), ({"peak_mb": 0.5}, False), ({"next": 2}, True)])
def test_limits_are_of_the_median(limit, met):
    measured = timed({}, [1.0, 2.0, 30.0], [1.0, 1.0, 1.0], limits=limit)
    assert [one["met"] for one in limits(measured)] == [met]
    assert f"| {'yes' if met else '**no**'} |" in "\n".join(lines(measured))


# Inputs


def test_inputs_are_made_once(tmp_path):
    inputs = Inputs(tmp_path, tiny=True)
    path = inputs.bold(20, suffix=".nii")
    before = path.stat().st_mtime_ns
    assert inputs.bold(20, suffix=".nii") == path
    assert path.stat().st_mtime_ns == before
    assert not list(inputs.folder.glob("part-*"))


def test_the_first_volumes_are_those_of_the_whole_run(tmp_path):
    inputs = Inputs(tmp_path, tiny=True)
    whole, first = (nib.load(inputs.bold(20, "float32", ".nii", first)) for first in (None, 6))
    assert (whole.shape[3], first.shape[3]) == (10, 3)
    np.testing.assert_array_equal(first.get_fdata(), whole.get_fdata()[..., :3])
    np.testing.assert_array_equal(first.affine, whole.affine)


def test_too_small_a_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OSError, match="use another --folder"):
        main(["--folder", str(tmp_path), "--only", "mean, .nii"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_regions", REAL_FILES)
def test_real_atlases_keep_their_regions(tmp_path, data, n_regions):
    """Brought to the benchmark's grid; `data` skips where they aren't."""
    labels = np.asanyarray(nib.load(Inputs(tmp_path).atlas(n_regions)).dataobj)
    assert len(np.unique(labels)) == n_regions + 1


KINDS = (["speed", "gpu"], ["targets", "growth", "tools", "gpu_runs", "gpu_cohort", "decoding"])


@pytest.mark.parametrize(("path", "kinds"), list(zip(summary.DOCUMENTS, KINDS, strict=True)), ids=["first page", "all"])
def test_readmes_have_the_tables_of_the_result_files(path, kinds):
    text = path.read_text("utf-8")
    tables = summary.TABLE.findall(text)
    assert [kind for kind, _ in tables] == kinds
    assert summary.written(text) == text
    emptied = summary.TABLE.sub(lambda match: match.group().partition("\n")[0] + "\n", text)
    assert "\n|" not in emptied
    assert summary.written(emptied) == text
