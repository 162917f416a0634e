"""One bad run never stops a batch: whatever it raises is its record, and the runs after it are done."""

import csv
import importlib
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from gpumask.bids import find_runs
from gpumask.cli import main
from gpumask.cohort import executors, writer
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort

from . import cohorts
from .helpers import save

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a cohort needs POSIX locks")

ERRORS = (
    *(OverflowError("too large"), EOFError("cut"), csv.Error("field larger than field limit"), zlib.error("Error -3")),
    *(MemoryError(), RecursionError("maximum recursion depth exceeded"), struct.error("unpack"), KeyError("key")),
    *(AssertionError(), StopIteration("over"), UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid")),
)
ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)
every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
RAISING = """
from gpumask.cohort import writer

ALIVE, EXTRACT = writer.process, writer.extract


def process(configuration, run, place):
    def extract(prepared, volumes, *args, **options):
        if "sub-01_task-rest_run-1" in str(run.path):
            raise EOFError("cut")
        return EXTRACT(prepared, volumes, *args, **options)

    writer.extract = extract
    return ALIVE(configuration, run)
"""


@pytest.fixture
def runs(tmp_path):
    """Four good runs."""
    cohorts.make_cohort(tmp_path / "d", 4, bad=False)
    cohorts.make_atlases(tmp_path)
    return find_runs(tmp_path / "d")[0]


def raise_in_the_first(monkeypatch, error):
    extract = writer.extract

    def failing(prepared, volumes, *args, **options):
        if "sub-01_task-rest_run-1" in str(volumes.name):
            raise error
        return extract(prepared, volumes, *args, **options)

    monkeypatch.setattr(writer, "extract", failing)


def configured(folder):
    return Configuration((AtlasFile(folder / "atlas-Toy_dseg.nii.gz"),), folder / "out", device="cpu")


def extract(folder, paths, *options):
    words = ["extract", *paths, "--atlas", folder / "atlas-Toy_dseg.nii.gz", "--out", folder / "out", *options]
    return main([str(word) for word in words])


@every_error
def test_extract(runs, tmp_path, monkeypatch, capsys, error):
    raise_in_the_first(monkeypatch, error)
    assert extract(tmp_path, [run.path for run in runs]) == 1
    out, err = capsys.readouterr()
    memory = "MemoryError. Give the job more memory, or have fewer runs at a time (cohort: --nprocs, --nthreads)."
    text = str(error) or (memory if type(error) is MemoryError else type(error).__name__)
    assert [line for line in err.splitlines() if ": error: " in line] == [f"{runs[0].path}: error: {text}"]
    assert len(out.splitlines()) == 3


@every_error
def test_a_cohort(runs, tmp_path, monkeypatch, error):
    raise_in_the_first(monkeypatch, error)
    records = {record.run: record for record in run_cohort(configured(tmp_path), runs)}
    assert [records[run].status for run in runs] == ["failed", "done", "done", "done"]
    assert records[runs[0]].error == (str(error) or type(error).__name__)
    assert type(error).__name__ in records[runs[0]].traceback


def test_worker_processes(runs, tmp_path, monkeypatch):
    (tmp_path / "raising.py").write_text(RAISING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(executors, "_process_in_worker", importlib.import_module("raising").process)
    records = {record.run: record for record in run_cohort(configured(tmp_path), runs, n_procs=2)}
    assert [records[run].status for run in runs] == ["failed", "done", "done", "done"]
    assert records[runs[0]].error == "cut"


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_process_is_no_failure(runs, tmp_path, monkeypatch, end):
    raise_in_the_first(monkeypatch, end())
    with pytest.raises(end):
        list(run_cohort(configured(tmp_path), runs))
    assert not any("failed" in line["status"] for line in cohorts.log_lines(tmp_path / "out"))


def test_a_fault_while_looking_for_what_is_done(runs, tmp_path, monkeypatch):
    """Not only the work on a run, but also the look whether it is done, which comes first."""
    from gpumask.cohort import record

    identities = record.identities

    def failing(run):
        if run is runs[0]:
            raise OverflowError("too large")
        return identities(run)

    list(run_cohort(configured(tmp_path), runs))
    for module in (record, writer):
        monkeypatch.setattr(module, "identities", failing)
    records = {record.run: record for record in run_cohort(configured(tmp_path), runs)}
    assert [records[run].status for run in runs] == ["failed", "skipped", "skipped", "skipped"]
    assert records[runs[0]].error == "too large"


def test_extract_of_a_run_without_a_table_next_to_it(runs, tmp_path, capsys):
    lonely = save(tmp_path / "sub-9_task-rest_bold.nii.gz", np.ones((9, 10, 8, 5)))
    other = save(tmp_path / "other.nii.gz", np.ones((9, 10, 8, 5)))
    assert extract(tmp_path, [lonely, other, runs[0].path], "--confounds", "auto") == 1
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if ": error: " in line] == [
        f"{lonely}: error: {lonely} has no confounds table next to it, expected "
        "sub-9_task-rest_desc-confounds_timeseries.tsv",
        f"{other}: error: {other} isn't a BIDS name, so its confounds table can't be found: give it (--confounds TSV)",
    ]
    assert [Path(line.partition("\t")[0]).name for line in out.splitlines()] == [
        "sub-01_task-rest_run-1_space-MNI152NLin2009cAsym_atlas-Toy_stat-mean_timeseries.tsv"
    ]


def test_extract_of_a_path_that_cannot_be_looked_at(runs, tmp_path, capsys):
    long = tmp_path / ("x" * 300 + ".nii")
    assert extract(tmp_path, [long, runs[0].path]) == 1
    out, err = capsys.readouterr()
    assert f"{long}: error: " in err
    assert "File name too long" in err
    assert len(out.splitlines()) == 1


def test_a_name_that_the_terminal_cannot_show(runs, tmp_path):
    named = os.fsencode(tmp_path / "caf") + b"\xe9.nii.gz"
    os.link(runs[0].path, named)
    words = [sys.executable, "-m", "gpumask", "extract", named, runs[1].path, "--device", "cpu"]
    words += ["--atlas", tmp_path / "atlas-Toy_dseg.nii.gz", "--out", tmp_path / "out"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(words, capture_output=True, check=False, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.decode().splitlines()
    assert first.startswith(f"{tmp_path}/out/caf\\udce9_atlas-Toy_stat-mean_timeseries.tsv\t40 volumes x 6 regions\t")
    assert second.startswith(f"{tmp_path}/out/sub-01_task-rest_run-2")
