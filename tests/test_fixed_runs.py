"""Runs that couldn't be used, and were fixed: they no longer stand on the cohort's page as failed."""

import re
import shlex

import nibabel as nib
import numpy as np
import pytest

from gpumask import cli

from . import cohorts

LINE = "cohort {} out participant --atlas atlas-Toy_dseg.nii.gz --confounds-columns csf"
MNI = f"space-{cohorts.SPACE}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Four runs of two subjects."""
    monkeypatch.chdir(tmp_path)
    for name in ("ID", "COUNT", "MIN", "STEP"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    cohorts.make_cohort(tmp_path / "d", 4, bad=False)
    cohorts.make_atlases(tmp_path)
    return tmp_path


def run(options="", source="d"):
    return cli.main(shlex.split(f"{LINE.format(source)} {options}"))


def page(folder):
    """Numbers of finished and failed runs, and the names of the latter."""
    cli.main(["cohort", "d", "out", "group"])
    text = (folder / "out" / "cohort.html").read_text("utf-8")
    numbers = {what: int(count) for count, what in re.findall(r"<b>(\d+)</b>(done|failed)<", text)}
    return numbers["done"], numbers["failed"], re.findall(r"<div class='run'>([^<]*)<", text)


def logged(folder):
    return {line["name"] for line in cohorts.log_lines(folder / "out") if line["status"] == "failed"}


@pytest.mark.parametrize(
    "pattern", ["_desc-brain_mask.nii.gz", "_desc-confounds_timeseries.tsv", "preproc_bold.nii.gz"]
)
@pytest.mark.parametrize("others", [(), ("T1w", "MNI152NLin6Asym")])
def test_a_file_that_was_missing(folder, pattern, others):
    """The images of other spaces, which sort before and after, don't name the run."""
    func = folder / "d" / "sub-01" / "func"
    for image in list(func.glob("*_desc-preproc_bold.nii.gz")):
        for space in others:
            (func / image.name.replace(cohorts.SPACE, space)).write_bytes(image.read_bytes())
    path = next(func.glob(f"*run-1*{pattern}" if "conf" in pattern else f"*run-1_{MNI}*{pattern}"))
    path.rename(folder / "kept")
    name = f"sub-01_task-rest_run-1_{MNI}"
    option = f"--space {cohorts.SPACE}" if others else ""
    assert run(option) == 1
    assert logged(folder) == {name}
    assert page(folder) == (3, 1, [name])
    (folder / "kept").rename(path)
    assert run(option) == 0
    assert page(folder) == (4, 0, [])


@pytest.mark.parametrize("option", ["", "--participant-label 03"])
def test_a_subject_without_runs(folder, option):
    (folder / "d" / "sub-03" / "func").mkdir(parents=True)
    assert run() == 1
    assert page(folder) == (4, 1, ["sub-03"])
    for path in (folder / "d" / "sub-02" / "func").iterdir():
        (folder / "d" / "sub-03" / "func" / path.name.replace("sub-02", "sub-03")).write_bytes(path.read_bytes())
    assert run(option) == 0
    assert page(folder) == (6, 0, [])


def test_a_subject_that_was_removed(folder):
    (folder / "d" / "sub-03").mkdir()
    assert run() == 1
    (folder / "d" / "sub-03").rmdir()
    assert run("--participant-label 01") == 0
    assert page(folder) == (4, 1, ["sub-03"])  # nobody has looked
    assert run() == 0
    assert page(folder) == (4, 0, [])


def test_a_name_that_was_none_of_bids(folder):
    func = folder / "d" / "sub-01" / "func"
    path = next(func.glob("*run-1*preproc_bold.nii.gz"))
    wrong = path.rename(func / path.name.replace("sub-01", "sub-1"))
    assert run() == 1
    assert page(folder)[:2] == (3, 2)  # the table lacks its image, too
    wrong.rename(path)
    assert run() == 0
    assert page(folder) == (4, 0, [])


def test_what_wasnt_fixed_stays(folder):
    masks = [next((folder / "d" / sub).rglob("*run-1*_mask.nii.gz")) for sub in ("sub-01", "sub-02")]
    for path in masks:
        path.rename(f"{path}.kept")
    assert run() == 1
    assert page(folder)[:2] == (2, 2)
    masks[0].with_name(f"{masks[0].name}.kept").rename(masks[0])
    assert run() == run("--participant-label 02") == 1
    assert page(folder) == (3, 1, [f"sub-02_task-rest_run-1_{MNI}"])


def test_a_new_problem_of_a_part_is_shown(folder):
    (folder / "d" / "sub-03").mkdir()
    assert run() == 1
    (folder / "d" / "sub-03").rmdir()
    assert run() == 0
    mask = next((folder / "d" / "sub-02").rglob("*run-1*_mask.nii.gz"))
    mask.unlink()
    assert run("--participant-label 02 --overwrite") == 1
    assert page(folder) == (3, 1, [f"sub-02_task-rest_run-1_{MNI}"])


def test_shards(folder):
    for name in ("sub-03", "sub-04", "sub-05"):
        (folder / "d" / name).mkdir()
    for k in (1, 2):
        assert run(f"--shard {k}/2") == 1
    assert page(folder) == (4, 3, ["sub-03", "sub-04", "sub-05"])
    (folder / "d" / "sub-04").rmdir()
    for k in (1, 2):
        run(f"--shard {k}/2")
        assert page(folder) == (4, 2, ["sub-03", "sub-05"])


def test_a_damaged_run(folder):
    path = next((folder / "d" / "sub-01").rglob("*run-1*_bold.nii.gz"))
    content = path.read_bytes()
    path.write_bytes(content[:5000])
    assert run() == 1
    path.write_bytes(content)
    assert run() == 0
    assert page(folder) == (4, 0, [])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("no.nii.gz\tt.tsv\tmine", "run.nii.gz\tt.tsv\tmine"),
        ("no.nii.gz\tt.tsv\tn/a", "run.nii.gz\tt.tsv\tn/a"),
        ("run.nii.gz\tt.tsv\tmine\nrun.nii.gz\tt.tsv\tmine", "run.nii.gz\tt.tsv\tmine\nrun.nii.gz\tt.tsv\tother"),
        ("run.nii.gz\tt.tsv", "run.nii.gz\tt.tsv\tn/a"),
        ("n/a\tt.tsv\tmine", "run.nii.gz\tt.tsv\tmine"),
    ],
)
def test_lines_of_a_manifest(folder, before, after):
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).normal(9, 1, (9, 10, 8, 40)), np.diag([3.0, 3, 3, 1])), "run.nii.gz"
    )
    (folder / "t.tsv").write_bytes(next((folder / "d").rglob("*.tsv")).read_bytes())
    for lines, code in ((before, 1), (after, 0)):
        (folder / "runs.tsv").write_text(f"bold\tconfounds\tname\n{lines}\n")
        assert run(source="runs.tsv") == code
    assert page(folder) == (len(after.splitlines()), 0, [])
