"""fMRIPrep's own segmentations of each run as the atlas: ``--atlas derivatives:desc-aparcaseg`` and ``desc-aseg``."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpumask.bids import find_runs
from gpumask.bids.segmentations import with_segmentation
from gpumask.cli import main

from . import cohorts
from .helpers import save, slabs

SHAPE, AFFINE, N = (6, 5, 4), np.diag([3.0, 3.0, 3.0, 1.0]), 12
LABELS = {"sub-1/anat/sub-1": (17, 1001), "sub-2/func/sub-2_task-rest_space-T1w": (17, 2001)}
NAMES = {17: "Left-Hippocampus", 1001: "ctx-lh-bankssts", 2001: "ctx-rh-bankssts"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """fMRIPrep's folder of runs in T1w: one with its segmentation in anat, one next to its own, one without.

    The table is FreeSurfer's whole one, as fMRIPrep's.
    """
    root, rng = tmp_path_factory.mktemp("made") / "d", np.random.default_rng(1)
    root.mkdir()
    description = {"Name": "made", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1"}]}
    (root / "dataset_description.json").write_text(json.dumps(description))
    rows = {0: "Unknown", **NAMES, **{n: f"wm_{n}" for n in range(13100, 14176)}}
    table = pd.DataFrame({"index": rows.keys(), "name": rows.values(), "color": "#000000"})
    for desc in ("aparcaseg", "aseg"):
        table.to_csv(root / f"desc-{desc}_dseg.tsv", sep="\t", index=False)
    for k in (1, 2, 3):
        func = root / f"sub-{k}" / "func"
        func.mkdir(parents=True)
        (root / f"sub-{k}" / "anat").mkdir()
        stem = f"sub-{k}_task-rest_space-T1w"
        save(func / f"{stem}_desc-preproc_bold.nii", rng.normal(9, 1, (*SHAPE, N)).astype("f4"), AFFINE, 2.0)
        save(func / f"{stem}_desc-brain_mask.nii", np.ones(SHAPE, np.uint8), AFFINE)
    for stem, labels in LABELS.items():
        for desc in ("aparcaseg", "aseg"):
            save(root / f"{stem}_desc-{desc}_dseg.nii", slabs(labels[: 1 + (desc == "aparcaseg")]), AFFINE)
    save(root / "sub-2/anat/sub-2_desc-aparcaseg_dseg.nii", slabs((9, 9)), AFFINE)  # not the nearest
    return root


@pytest.fixture
def derived(made, tmp_path):
    return shutil.copytree(made, tmp_path / "d")


def cohort(root, *options, part=("--shard", "1/1")):
    words = ["cohort", root, root.parent / "out", "participant", "--device", "cpu", *part, *options]
    return main(list(map(str, words)))


def series(root, k, name="aparcaseg"):
    return pd.read_table(next((root.parent / "out").rglob(f"sub-{k}_*_atlas-{name}_stat-mean_timeseries.tsv")))


def test_each_run_gets_the_segmentation_of_its_space(derived, capsys):
    assert cohort(derived, "--atlas", "derivatives:desc-aparcaseg", "Aseg=derivatives:desc-aseg") == 1
    for k, labels in enumerate(LABELS.values(), start=1):
        table = series(derived, k)
        assert list(table) == list(NAMES.values())  # those that a run has, of more than a thousand rows
        assert table.columns[table.notna().all()].tolist() == [NAMES[label] for label in labels]
        assert list(series(derived, k, "Aseg")) == ["Left-Hippocampus"]
    (error,) = (line["error"] for line in cohorts.log_lines(derived.parent / "out") if line["status"] == "failed")
    assert error == (
        "has no segmentation desc-aparcaseg in its space: looked for "
        "sub-3/func/sub-3_task-rest_space-T1w_desc-aparcaseg_dseg.nii.gz, "
        "sub-3/func/sub-3_task-rest_space-T1w_desc-aparcaseg_dseg.nii, "
        "sub-3/anat/sub-3_desc-aparcaseg_dseg.nii.gz, sub-3/anat/sub-3_desc-aparcaseg_dseg.nii"
    )
    assert "warning: aparcaseg: 3 columns, one per label in the atlases of these 2 runs." in capsys.readouterr().err


def test_a_given_table_chooses_the_columns(derived):
    table = derived.parent / "some.tsv"
    table.write_text("index\tname\n1001\tLeft\n2001\tRight\n2035\tInsula\n")
    assert cohort(derived, "--atlas", "derivatives:desc-aparcaseg", "--lut", table) == 1
    assert list(series(derived, 2)) == ["Left", "Right", "Insula"]


def test_the_written_configuration_repeats_the_command(derived, tmp_path, monkeypatch):
    assert cohort(derived, "--atlas", "derivatives:desc-aparcaseg", "B=derivatives:desc-aseg") == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = (tmp_path / "out" / "logs" / "config.toml").read_text().splitlines()
    assert 'atlas = ["derivatives:desc-aparcaseg", "B=derivatives:desc-aseg"]' in config
    words = shlex.split(config[1].removeprefix("# "))
    assert main([*words[1:], "--shard", "1/1"]) == 1
    outcomes = [line["status"] for line in cohorts.log_lines(tmp_path / "out")]
    assert outcomes.count("skipped") == outcomes.count("done") == 2


def test_a_file_of_that_name_is_that_file(derived, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(derived / "sub-2/func/sub-2_task-rest_space-T1w_desc-aseg_dseg.nii", "derivatives:desc-aseg.nii")
    assert cohort(derived, "--atlas", "A=derivatives:desc-aseg.nii") == 0
    assert list(series(derived, 3, "A")) == ["17"]


def test_no_run_has_one(derived, capsys):
    for path in derived.rglob("*_dseg.nii"):
        path.unlink()
    store = derived.parent / "out" / "all.parquet"
    assert cohort(derived, "--atlas", "derivatives:desc-aseg", "--store", store, part=()) == 1
    said = capsys.readouterr()
    assert said.err.count("has no segmentation desc-aseg in its space") == 3
    assert "3 failed" in said.out


def test_dry_run(derived, capsys):
    assert cohort(derived, "--atlas", "derivatives:desc-aparcaseg", "--dry-run") == 1
    assert (
        "atlas aparcaseg: aparcaseg, a file of each run, names by the tables or labels of all runs (3 columns)"
        in capsys.readouterr().out
    )


def test_runs_in_another_space_do_not_use_the_segmentation_of_the_t1w_image(derived):
    for path in derived.rglob("*space-T1w*"):
        path.rename(path.with_name(path.name.replace("space-T1w", "space-MNI152NLin6Asym")))
    runs, problems = with_segmentation(find_runs(derived)[0], derived, "aparcaseg", "Own")
    assert [Path(run.atlases[0].path).parent.name for run in runs] == ["func"]
    assert len(problems) == 2


def test_sessions_have_a_folder_anat_of_their_own_or_share_the_subjects(derived):
    for session in ("a", "b"):
        func = derived / "sub-1" / f"ses-{session}" / "func"
        func.mkdir(parents=True)
        for path in (derived / "sub-1/func").glob("*space-T1w*"):
            shutil.copy(path, func / path.name.replace("sub-1_", f"sub-1_ses-{session}_"))
    own = derived / "sub-1/ses-b/anat/sub-1_ses-b_desc-aparcaseg_dseg.nii"
    own.parent.mkdir()
    shutil.copy(derived / "sub-1/anat/sub-1_desc-aparcaseg_dseg.nii", own)
    runs, _ = with_segmentation(find_runs(derived, sessions=["a", "b"])[0], derived, "aparcaseg", "Own")
    assert [run.atlases[0].path for run in runs] == [
        str(derived / "sub-1/anat/sub-1_desc-aparcaseg_dseg.nii"),
        str(own),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--atlas derivatives:desc-brain",
            "--atlas: expected derivatives:desc- followed by aparcaseg or aseg, got derivatives:desc-brain",
        ),
        (
            "--atlas A=derivatives:aseg",
            "expected derivatives:desc- followed by aparcaseg or aseg, got A=derivatives:aseg",
        ),
        (
            "--atlas derivatives:desc-aseg derivatives:desc-aseg",
            "--atlas: several are called aseg. Give NAME=derivatives:desc-aseg",
        ),
        (
            "--atlas derivatives:desc-aseg --label-map 0",
            "--label-map: derivatives:desc-aseg is of volumes. Expected n/a, got 0",
        ),
        ("--atlas derivatives:desc-aseg --lut a.tsv b.tsv", "--lut: expected one for each --atlas, got 2 for 1"),
        ("--atlas derivatives:desc-aseg --lut gone.tsv", "--lut: no such file: gone.tsv"),
    ],
)
def test_wrong_options(derived, capsys, options, message):
    assert cohort(derived, *options.split()) == 2
    assert message in capsys.readouterr().err


def test_a_list_of_runs_has_no_derivatives(derived, capsys):
    path = derived.parent / "runs.tsv"
    path.write_text("bold\nd/sub-1/func/sub-1_task-rest_space-T1w_desc-preproc_bold.nii\n")
    words = ["cohort", str(path), str(derived.parent / "out"), "participant", "--atlas", "derivatives:desc-aseg"]
    assert main(words) == 2
    assert (
        "--atlas derivatives:desc-aseg requires a folder of derivatives. For a list of runs, add the column atlas_NAME"
    ) in capsys.readouterr().err


def test_content_that_is_not_here_fails_its_run_alone(derived, capsys):
    path = derived / "sub-2/func/sub-2_task-rest_space-T1w_desc-aparcaseg_dseg.nii"
    path.unlink()
    path.symlink_to("../../.git/annex/objects/aa/bb/MD5E-s4--cc.nii/MD5E-s4--cc.nii")
    assert cohort(derived, "--atlas", "derivatives:desc-aparcaseg") == 1
    errors = {line["name"][:5]: line["error"] for line in cohorts.log_lines(derived.parent / "out")}
    assert "datalad get" in errors["sub-2"]
    assert str(path) in errors["sub-2"]
    assert not errors["sub-1"]
    assert list(series(derived, 1)) == ["Left-Hippocampus", "ctx-lh-bankssts"]
    assert f"warning: aparcaseg: {errors['sub-2']}. Its labels have no column.\n" in capsys.readouterr().err
