"""The cohort benchmark runs, compares before it times, and reports what it measured."""

import json
import os

import pytest

from benchmarks import cohort


def test_tiny(tmp_path, capsys):
    cohort.main(
        [
            *("--tiny", "--runs", "2", "--volumes", "80", "--rounds", "1", "--procs", "2"),
            *("--folder", str(tmp_path / "f"), "--json", str(tmp_path / "report.json")),
        ]
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["seconds"].keys() == {"gpumask 2", "nilearn 2", "gpumask, 6 denoisings 2"}
    assert report["difference"] < 1e-9
    ours, theirs, several = (report["seconds"][f"{way} 2"][0] for way in cohort.WAYS)
    one, _, six = (report["cpu_seconds"][f"{way} 2"][0] for way in cohort.WAYS)
    assert 0.5 < one < 2 * os.cpu_count() * ours  # imports alone take that; workers are counted
    last = capsys.readouterr().out.splitlines()[-1]
    speeds = f"{120 / ours:.1f} | {120 / theirs:.1f} | {theirs / ours:.1f}x"
    assert last == f"| 2 | {speeds} | {several / ours:.2f} | {six / one:.2f} |"


@pytest.mark.parametrize(("change", "message"), [(1.001, "results differ by"), (None, "tables of")])
def test_results_are_compared(tmp_path, change, message):
    for way in ("gpumask", "nilearn"):
        (tmp_path / way / "sub").mkdir(parents=True)
    name = "x_timeseries.tsv"
    (tmp_path / "gpumask" / "sub" / name).write_text("a\tb\n1.0\t2.0\n")
    (tmp_path / "nilearn" / name).write_text("a\tb\n1.0\t2.0\n")
    assert cohort.compare(tmp_path) == 0
    (tmp_path / "nilearn" / name).write_text(f"a\tb\n1.0\t{2 * change}\n" if change else "a\n1.0\n")
    with pytest.raises(SystemExit, match=message):
        cohort.compare(tmp_path)
