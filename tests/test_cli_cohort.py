"""``gpumask cohort``: options, shards, output, exit codes, the progress bar."""

import io
import json
import logging
import os
import re
import shlex
import sys
import termios

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import cli
from gpumask.bids import Run, find_runs
from gpumask.cli.cohort import shard
from gpumask.cli.output import kept_volumes
from gpumask.cli.progress import CohortProgress
from gpumask.cohort.record import Record

from . import cohorts

ATLASES = "--atlas atlas-Toy_dseg.nii.gz --atlas Own=atlas-Fine_dseg.nii.gz"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory with six runs of three subjects, the first of them broken, and two atlases."""
    monkeypatch.chdir(tmp_path)
    for name in ("ID", "COUNT", "MIN", "STEP"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    cohorts.make_cohort(tmp_path / "d", 6, bad=False)
    cohorts.make_atlases(tmp_path)
    first = next((tmp_path / "d" / "sub-01").rglob("*run-1*_bold.nii.gz"))
    first.write_bytes(first.read_bytes()[:9000])
    return tmp_path


def run(line):
    return cli.main(shlex.split(f"cohort {line}"))


def names(out, pattern="*_timeseries.tsv"):
    return sorted(path.name for path in out.rglob(pattern))


def test_a_cohort_from_the_command_line(folder, capsys):
    assert run(f"d out participant {ATLASES}") == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    space = f"space-{cohorts.SPACE}"
    assert re.fullmatch(rf"sub-01_task-rest_run-2_{space}\t40 volumes, mean FD 0\.2\d mm\t\d+\.\d\d s", min(lines[:-6]))
    assert lines[-6:] == [
        "out/cohort.html",
        "out/group_quality.tsv",
        "out/group_qcfc.tsv",
        "out/group_atlas-Own_stat-pearsoncorrelation_relmat.tsv",
        "out/group_atlas-Toy_stat-pearsoncorrelation_relmat.tsv",
        "5 done, 1 failed",
    ]
    progress, error, remedy = err.splitlines()
    assert remedy == "Fix the failures, then repeat the command: it does only failed and new runs."
    assert progress == "0/6 runs [00:00<?]"
    assert error.startswith(f"sub-01_task-rest_run-1_{space}: error: {folder}/d/sub-01/func/sub-01_task-rest")
    assert len(names(folder / "out")) == 10
    assert {name.split("atlas-")[1].split("_")[0] for name in names(folder / "out")} == {"Toy", "Own"}
    assert json.loads((folder / "out" / "dataset_description.json").read_text())["GeneratedBy"][0]["Name"] == "gpumask"
    assert "sub-01_task-rest_run-1" in (folder / "out" / "cohort.html").read_text()
    assert run(f"d out participant {ATLASES}") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 done, 5 skipped (done before), 1 failed"


def test_all_done_is_0(folder, capsys):
    assert run("d out participant --participant-label 02 --atlas atlas-Toy_dseg.nii.gz") == 0
    assert capsys.readouterr().err == "0/2 runs [00:00<?]\n"


def test_options_reach_the_configuration(folder):
    line = (
        "d out participant --participant_label sub-02 --run-id 2 --task_id rest --space MNI152NLin2009cAsym "
        "--atlas atlas-Toy_dseg.nii.gz --lut atlas-Toy_dseg.tsv --strategy median --min_coverage 0.1 --detrend "
        "--low-pass 0.1 --high-pass 0.01 --standardize psc --confounds-columns 'trans_*' csf --fd-threshold 0.5 "
        "--min-time 0 --no-relmat --device cpu --nprocs 1"
    )
    assert run(line) == 0
    (table,) = names(folder / "out")
    assert table == f"sub-02_task-rest_run-2_space-{cohorts.SPACE}_atlas-Toy_stat-median_timeseries.tsv"
    metadata = json.loads(next((folder / "out").rglob(table.replace("tsv", "json"))).read_text())
    expected = {"strategy": "median", "min_coverage": 0.1, "detrend": True, "low_pass": 0.1, "high_pass": 0.01}
    assert {name: metadata["MaskerParameters"][name] for name in expected} == expected
    assert metadata["MaskerParameters"]["standardize"] == "psc"
    assert metadata["ConfoundsOptions"] == {"columns": ["trans_*", "csf"], "fd_threshold": 0.5}
    assert names(folder / "out", "*relmat*") == []


def test_smoothing_and_strategies_of_confounds_reach_the_configuration(folder, capsys):
    line = f"d out participant --participant-label 03 {ATLASES} --smoothing-fwhm 4 --confounds-strategy simple"
    assert run(line) == 1  # the made tables have too few columns for it
    assert capsys.readouterr().err.count("error: ") == 2
    line = f"d out participant --participant-label 03 {ATLASES} --smoothing-fwhm 4"
    assert run(line) == 0
    metadata = json.loads(next((folder / "out").rglob("*_timeseries.json")).read_text())
    assert metadata["MaskerParameters"]["smoothing_fwhm"] == 4


def test_a_manifest_lists_the_runs(folder, capsys):
    bold = next((folder / "d" / "sub-02").rglob("*run-1*_bold.nii.gz"))
    pd.DataFrame({"bold": [bold, folder / "no.nii"], "t_r": [2.0, 2.0], "name": ["mine", "other"]}).to_csv(
        "runs.tsv", sep="\t", index=False
    )
    assert run(f"runs.tsv out participant {ATLASES}") == 1
    assert names(folder / "out") == [f"mine_atlas-{name}_stat-mean_timeseries.tsv" for name in ("Own", "Toy")]
    assert run(f"runs.tsv out participant {ATLASES} --task-id rest") == 2
    assert "--task-id can't be used with a list of runs (runs.tsv): edit the list." in capsys.readouterr().err


def test_a_dry_run_writes_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    assert run(f"d out participant {ATLASES} --dry-run") == 0
    out = capsys.readouterr().out
    assert out.count("\tto do\t") == 6
    assert out.splitlines()[-1] == "6 to do, 0 done, 0 unusable"
    assert f"atlas Own: {folder}/atlas-Fine_dseg.nii.gz, names by {folder}/atlas-Fine_dseg.tsv" in out
    assert sorted(folder.rglob("*")) == before
    run(f"d out participant {ATLASES}")
    (folder / next(iter(find_runs("d")[0])).confounds).unlink()
    capsys.readouterr()
    assert run(f"d other participant {ATLASES} --dry-run --confounds-columns csf") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "5 to do, 0 done, 1 unusable"
    assert run(f"d out participant {ATLASES} --dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 to do, 5 done, 0 unusable"


def test_shards_part_the_runs(folder, capsys):
    parts = []
    for k in (1, 2, 3, 4):
        assert run(f"d out{k} participant {ATLASES} --shard {k}/4") in (0, 1)
        parts.append({name.split("_space")[0] for name in names(folder / f"out{k}")})
        assert not (folder / f"out{k}" / "cohort.html").exists()
    assert sum(map(len, parts)) == len(set().union(*parts)) == 5
    assert max(map(len, parts)) <= 2
    assert "After all shards have finished, summarize: gpumask cohort" in capsys.readouterr().err
    assert run("d out1 group") == 0
    means = [f"group_atlas-{name}_stat-pearsoncorrelation_relmat.tsv" for name in ("Own", "Toy")]
    written = ["cohort.html", "group_quality.tsv", "group_qcfc.tsv", *means]
    assert capsys.readouterr().out.splitlines() == [f"out1/{name}" for name in written]
    assert (folder / "out1" / "cohort.html").exists()


@pytest.mark.parametrize(
    ("text", "env", "expected"),
    [
        (None, {}, (0, 1)),
        ("1/3", {}, (0, 3)),
        ("3/3", {"ID": 1, "COUNT": 2}, (2, 3)),
        (None, {"ID": 0, "COUNT": 4, "MIN": 0, "STEP": 1}, (0, 4)),
        (None, {"ID": 4, "COUNT": 4, "MIN": 1, "STEP": 1}, (3, 4)),
        (None, {"ID": 20, "COUNT": 3, "MIN": 10, "STEP": 5}, (2, 3)),
        (None, {"ID": 1}, (0, 1)),
    ],
)
def test_which_shard(monkeypatch, text, env, expected):
    for name, value in env.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert shard(text) == expected


def test_an_array_task_says_that_it_is_a_shard(monkeypatch, capsys):
    for name, value in {"ID": 2, "COUNT": 3, "MIN": 1, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert run(f"d out participant {ATLASES}") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("2 done")
    assert err.startswith("shard 2/3, by SLURM_ARRAY_TASK_ID\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("d out participant", "--atlas or --seeds is missing: give one image or table of seeds, or more"),
        ("d out participant --atlas no.nii", "--atlas: no such file: no.nii"),
        ("d out participant --atlas X=no.nii", "--atlas: no such file: no.nii"),
        (f"d out participant {ATLASES} --lut atlas-Toy_dseg.tsv", "--lut: expected one for each --atlas, got 1 for 2"),
        (f"d out participant {ATLASES} --lut no.tsv --lut no.tsv", "--lut: no such file: no.tsv"),
        (f"d out participant {ATLASES} --atlas atlas-Toy_dseg.nii.gz", "Expected one atlas or more, each with a name"),
        (f"d out participant {ATLASES} --participant-label 77", "77"),
        (f"none out participant {ATLASES}", "FMRIPREP_DIR: no such folder, or list of runs: none"),
        (f"d out participant {ATLASES} --space MNI", "MNI"),
        (f"d out participant {ATLASES} --nprocs 0", "--nprocs: expected 1 or more, got 0"),
        (f"d out participant {ATLASES} --shard 3/2", "--shard: expected a shard from 1 to 2, got 3"),
        (f"d out participant {ATLASES} --shard 2", "--shard: expected I/N, such as 1/4, got '2'"),
        (f"d out participant {ATLASES} --min-coverage 2", "min_coverage"),
        (f"d out participant {ATLASES} --low-pass 0.1 --high-pass 0.2", "--high-pass (0.2 Hz) must be lower than"),
        ("d out participant --atlas d/dataset_description.json", "dataset_description.json can't be read as an image"),
        ("d none group", "none"),
    ],
)
def test_wrong_usage_is_2_and_writes_nothing(folder, capsys, line, message):
    before = sorted(folder.rglob("*"))
    assert run(line) == 2
    out, err = capsys.readouterr()
    assert re.search(rf"^gpumask cohort: error: .*{re.escape(message)}", err, re.MULTILINE)
    assert out == ""
    assert sorted(folder.rglob("*")) == before


def test_arguments_that_cannot_be_parsed_are_2(capsys):
    for line, message in (
        ("d", "the following arguments are required: OUT_DIR, level"),
        ("d out all --atlas a", "argument level: invalid choice: 'all'"),
        ("d out participant --nprocs x", "argument --nprocs: invalid int value: 'x'"),
        ("d out participant --over", "unrecognized arguments: --over"),
        ("d out participant --n-threads 2", "unrecognized arguments: --n-threads. Did you mean --nthreads?"),
    ):
        assert run(line) == 2
        assert message in capsys.readouterr().err


def test_every_option_is_in_the_help(capsys):
    assert run("--help") == 0
    out = capsys.readouterr().out
    for option in (
        *("participant-label", "session-id", "task-id", "run-id", "space", "atlas", "lut", "confounds-strategy"),
        *("confounds-columns", "fd-threshold", "smoothing-fwhm", "detrend", "low-pass", "high-pass", "standardize"),
        *("strategy", "min-coverage", "nprocs", "device", "dry-run", "overwrite", "shard", "dask-scheduler"),
        *("relmat", "no-relmat", "figures", "store", "tangent"),
    ):
        assert f"--{option}" in out


def test_an_error_that_ends_all_runs_is_1_with_what_was_done(folder, capsys, monkeypatch):
    (folder / "out" / "logs").mkdir(parents=True)

    def lost(configuration, runs, **options):
        yield Record(runs[0], "done", 40, seconds={"total": 1.0}, quality={"": left(40)})
        raise RuntimeError("all workers are lost")

    monkeypatch.setattr("gpumask.cohort.executors.run_cohort", lost)
    monkeypatch.setattr("gpumask.cohort.record.log_problems", lambda *args: None)
    assert run(f"d out participant {ATLASES}") == 1
    out, err = capsys.readouterr()
    assert err.startswith("0/6 runs [00:00<?]\ngpumask cohort: error: all workers are lost\n")
    assert out.splitlines()[-1] == "1 done, 0 failed, 5 left"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(f"d out participant {ATLASES}") == 1
    lines = [line for line in terminal.getvalue().split("\r") if line.strip()]
    bars = [line for line in lines if "/6 runs" in line and "error: " not in line]
    assert bars[0].startswith("0/6 runs |  ")
    assert re.match(r"6/6 runs, 1 failed, \d+ volumes/s \|#+\| \[\d\d:\d\d<00:00\]", bars[-1])
    assert any("error: " in line for line in lines)
    assert not terminal.getvalue().rpartition("\r")[0].rpartition("\r")[2].strip()  # removed at the end


def left(volumes_kept, dummy_scans=0, fd_mean=None):
    return {"volumes_kept": volumes_kept, "removed_dummy_scans": dummy_scans, "fd_mean": fd_mean}


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        ({"": left(75, 2, 0.2149)}, "75/156 volumes kept (2 dummy scans), mean FD 0.21 mm"),
        ({"": left(156)}, "156 volumes"),
        ({"a": left(75, 0, 0.2), "b": left(75, 0, 0.2)}, "75/156 volumes kept, mean FD 0.20 mm"),
        (
            {"a": left(156, 0, 0.2), "b": left(75, 2, 0.2), "c": left(156, 0, 0.2)},
            "a, c: 156 volumes; b: 75/156 volumes kept (2 dummy scans); mean FD 0.20 mm",
        ),
        ({"a": left(156), "b": left(75)}, "a: 156 volumes; b: 75/156 volumes kept"),
    ],
)
def test_kept_volumes(quality, words):
    record = Record(Run("a"), "done", 156, quality=quality)
    assert kept_volumes(record) == words
    assert kept_volumes(record, motion=False) == re.split(", mean|; mean", words)[0]


def test_time_left_counts_only_runs_that_take_time(monkeypatch):
    terminal, now = Terminal(), [100.0]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    progress = CohortProgress(1003)
    now[0] += 10
    progress.finish(Record(Run("a"), "skipped"))
    assert terminal.getvalue().split("\r")[-1].startswith("1/1003 runs, 0 failed, 0 volumes/s |")
    assert terminal.getvalue().endswith("[00:10<?]")
    progress(Run("b"), 0.5)
    now[0] += 10
    progress(Run("b"), 0.75)
    assert terminal.getvalue().endswith("[00:20<7:25:00]")  # 20 s for 0.75 runs, 1001.25 left
    progress.finish(Record(Run("b"), "done", 200))
    now[0] += 10
    progress.finish(Record(Run("c"), "failed"))
    assert terminal.getvalue().split("\r")[-1].startswith("3/1003 runs, 1 failed, 7 volumes/s |")
    assert terminal.getvalue().endswith("[00:30<4:10:00]")
    progress.close()


def test_lines_without_a_terminal(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    progress = CohortProgress(4)
    assert capsys.readouterr().err == "0/4 runs [00:00<?]\n"  # at once
    for share in (0.25, 0.5, 0.75):
        now[0] += 9
        progress(Run("a"), share)
    assert capsys.readouterr().err == ""  # 27 s
    now[0] += 9
    progress.finish(Record(Run("a"), "done", 200))
    assert capsys.readouterr().err == "1/4 runs, 0 failed, 6 volumes/s [00:36<01:48]\n"
    now[0] += 36
    progress(Run("b"), 0.5)
    assert capsys.readouterr().err == "1/4 runs, 0 failed, 6 volumes/s [01:12<02:00]\n"  # it moves within runs
    progress.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("columns", "start"), [(0, "0/4 runs [00:00<?]\r\n"), (60, "\r0/4 runs |      ")])
def test_a_terminal_without_a_size_gets_lines(monkeypatch, columns, start):
    """That of ``script`` without a terminal of its own: tqdm draws no bar there."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24 * (columns > 0), columns))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = CohortProgress(4)
        terminal.flush()
        assert os.read(master, 1000).decode().startswith(start)
        progress.close()
    os.close(master)


def test_quiet_shows_errors_alone(folder, capsys, monkeypatch):
    assert run(f"d out participant {ATLASES} -q") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"sub-01_task-rest_run-1_\S+: error: .*\n", err)
    assert len(names(folder / "out")) == 10
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run(f"d out participant {ATLASES} --quiet --participant-label 02") == 0
    assert sys.stderr.getvalue() == ""
    assert run("d out participant --quiet") == 2
    assert sys.stderr.getvalue() == (
        "gpumask cohort: error: --atlas or --seeds is missing: give one image or table of seeds, or more\n"
    )


def test_loud_and_quiet_exclude_each_other(capsys):
    assert run(f"d out participant {ATLASES} -q -v") == 2
    assert "argument -v/--verbose: not allowed with argument -q/--quiet" in capsys.readouterr().err


def test_verbose_shows_what_the_library_logs(capsys, monkeypatch):
    def told(configuration, runs, **options):
        logging.getLogger("gpumask.cohort.executors").debug("a detail")
        logging.getLogger("other").debug("not ours")
        return iter(())

    monkeypatch.setattr("gpumask.cohort.executors.run_cohort", told)
    for option, shown in (("", False), ("-v", True)):
        assert run(f"d out participant {ATLASES} {option}") == 2  # nothing ran, so out/logs is missing
        assert ("\na detail\n" in (err := capsys.readouterr().err)) is shown
        assert "not ours" not in err


@pytest.mark.parametrize("spread", ["--nthreads 1", "--nprocs 2"])
def test_the_first_failed_run_stops_the_rest(folder, capsys, spread):
    assert run(f"d out participant {ATLASES} --stop-on-first-crash {spread}") == 1
    out, err = capsys.readouterr()
    assert "gpumask cohort: stopped at the first failed run (--stop-on-first-crash). Repeat the command to con" in err
    counts = re.fullmatch(r"(\d) done, 1 failed, (\d) left", out.splitlines()[-1])
    n_done, n_left = map(int, counts.groups())
    assert n_done + n_left == 5
    assert n_left >= 1
    assert len(names(folder / "out")) >= 2 * n_done
    assert cohorts.left_over(folder / "out") == []
    assert run(f"d out participant {ATLASES} --stop-on-first-crash --participant-label 02 03") == 0
    assert len(names(folder / "out")) in (8, 10)  # the other run of the first subject may have been done before


def test_an_unusable_run_stops_all_at_once(folder, capsys):
    next((folder / "d" / "sub-03").rglob("*run-1*confounds*.tsv")).unlink()
    assert run(f"d out participant {ATLASES} --confounds-columns csf --stop-on-first-crash --nprocs 2") == 1
    out, err = capsys.readouterr()
    assert "has no confounds: expected sub-03_task-rest_run-1_desc-confounds_timeseries.tsv next to it" in err
    assert "stopped at the first failed run" in err
    assert out.splitlines()[-1] == "0 done, 1 failed, 5 left"


@pytest.mark.parametrize("inherited", [False, True])
def test_extract_and_cohort_filter_with_the_same_repetition_time(folder, inherited):
    """The JSON's, where the header has another: fMRIPrep's issue 3216."""
    run_name = f"sub-02_task-rest_run-1_space-{cohorts.SPACE}"
    image = folder / "d" / "sub-02" / "func" / f"{run_name}_desc-preproc_bold.nii.gz"
    data = nib.load(image)
    cohorts.save(image, np.asanyarray(data.dataobj), data.affine, t_r=1.0)
    if inherited:
        image.with_name(f"{run_name}_desc-preproc_bold.json").rename(folder / "d" / "task-rest_bold.json")
    mask = next(image.parent.glob(f"{run_name}_desc-brain_mask.nii.gz"))
    labels = np.zeros(data.shape[:3], np.int16)
    labels[2:4, 3:], labels[5:7, 3:, 4:] = 1, 2
    cohorts.save("atlas-Seen_dseg.nii.gz", labels, data.affine)  # all regions are in the mask
    pd.DataFrame({"index": [1, 2], "name": ["a", "b"]}).to_csv("atlas-Seen_dseg.tsv", sep="\t", index=False)
    tables = {}
    for atlas in ("Toy", "Seen"):
        options = f"--atlas atlas-{atlas}_dseg.nii.gz --low-pass 0.1 --high-pass 0.04 --detrend --standardize psc"
        assert run(f"d {atlas} participant --participant-label 02 --run-id 1 --min-coverage 0 {options}") == 0
        words = f"extract {image} --mask {mask} --lut atlas-{atlas}_dseg.tsv --out single {options}"
        assert cli.main(shlex.split(words)) == 0
        table = f"{run_name}_atlas-{atlas}_stat-mean_timeseries.tsv"
        tables[atlas] = next((folder / atlas).rglob(table)), folder / "single" / table
    of_cohort, of_extract = tables["Seen"]
    assert of_cohort.read_bytes() == of_extract.read_bytes()
    of_cohort, of_extract = map(pd.read_table, tables["Toy"])  # a cohort keeps the column of a region in no mask
    pd.testing.assert_frame_equal(of_cohort.dropna(axis=1, how="all"), of_extract, check_exact=True)
    sidecar = json.loads(tables["Toy"][1].with_suffix(".json").read_text())
    assert (sidecar["RepetitionTime"], sidecar["RepetitionTimeSource"]) == (2.0, "JSON")


def test_what_to_do_about_failed_runs_is_said_here_and_on_the_page(folder, capsys):
    """The same words, once each; also for messages that say it themselves."""
    tables = sorted((folder / "d").rglob("*_desc-confounds_timeseries.tsv"))
    tables[1].write_text(tables[1].read_text().rpartition("\n")[0].rpartition("\n")[0] + "\n")
    pd.read_table(tables[2]).drop(columns="csf").to_csv(tables[2], sep="\t", index=False)
    pd.read_table(tables[3]).assign(framewise_displacement=9.0).to_csv(tables[3], sep="\t", index=False)
    assert run("d out participant --atlas atlas-Toy_dseg.nii.gz --confounds-columns csf --fd-threshold 2 --min-time 0")
    err = capsys.readouterr().err
    page = (folder / "out" / "cohort.html").read_text().partition("<h2 id='failures'>")[2].partition("<h2")[0]
    for start, remedy in {
        "has 39 rows, but ": "has 40 volumes. Give the confounds of this run: a row per volume of the image.",
        "has no column csf. ": "framewise_displacement. Request columns that the tables of all runs have, or leave the "
        "run out.",
        "censors all 40 volumes": "steady state. Leave the run out, or censor less.",
        "is truncated or corrupt": "reached. Copy or create the file again.",
    }.items():
        (line,) = (line for line in err.splitlines() if start in line)
        assert line.endswith(remedy)
        assert remedy.partition(". ")[2] in page
    assert page.count("class='remedy'") == 3
    assert err.endswith("Fix the failures, then repeat the command: it does only failed and new runs.\n")
