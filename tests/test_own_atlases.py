"""Atlases of which each run has its own: lists with such columns, fMRIPrep's segmentations, and what is made again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask.bids import find_runs, read_manifest
from gpumask.bids.segmentations import with_segmentation
from gpumask.cli import main
from gpumask.cohort import atlases
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.own_atlases import OwnAtlas, with_columns

from . import cohorts
from .helpers import save

SHAPE, AFFINE = (6, 5, 4), np.diag([3.0, 3.0, 3.0, 1.0])
LABELS = ((3, 7), (7, 11), (3, 11))  # of the atlas of each run


def labelled(labels):
    """A label image whose first halves along x have the first label, and so on."""
    volume = np.zeros(SHAPE, np.int16)
    for part, label in zip(np.array_split(np.arange(1, 6), len(labels)), labels, strict=True):
        volume[part] = label
    return volume


@pytest.fixture
def listed(tmp_path):
    """Three runs with an atlas each, and the list of them."""
    rng, lines = np.random.default_rng(0), ["bold\tatlas_Own"]
    for k, labels in enumerate(LABELS, start=1):
        save(tmp_path / f"sub-{k}_task-rest_bold.nii.gz", rng.normal(100, 9, (*SHAPE, 12)).astype("f4"), AFFINE, 2.0)
        save(tmp_path / f"sub-{k}_seg.nii.gz", labelled(labels), AFFINE)
        lines.append(f"sub-{k}_task-rest_bold.nii.gz\tsub-{k}_seg.nii.gz")
    path = tmp_path / "runs.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def cohort(path, *options, out="out", source=None):
    return main(
        ["cohort", str(source or path), str(path.parent / out), "participant", "--device", "cpu", *map(str, options)]
    )


def series(path, k, name="Own", out="out"):
    return pd.read_table(next((path.parent / out).rglob(f"sub-{k}_*atlas-{name}_stat-mean_timeseries.tsv")))


def statuses(out):
    return {line["name"][:5]: line["status"] for line in cohorts.log_lines(out)}


def expected(path, k, labels, columns):
    """Mean over each label's voxels, by the definition; NaN for columns that the run lacks."""
    data = nib.load(path.parent / f"sub-{k}_task-rest_bold.nii.gz").get_fdata()
    own = labelled(labels)
    return np.column_stack([data[own == c].mean(0) if (own == c).any() else np.full(12, np.nan) for c in columns])


def test_each_run_has_its_own_atlas_and_all_have_the_same_columns(listed, capsys):
    assert cohort(listed) == 0
    for k, labels in enumerate(LABELS, start=1):
        table = series(listed, k)
        assert list(table) == ["3", "7", "11"]
        np.testing.assert_allclose(table, expected(listed, k, labels, (3, 7, 11)), rtol=1e-6)
        coverage = pd.read_table(next((listed.parent / "out").rglob(f"sub-{k}_*coverage_bold.tsv")))
        assert coverage["coverage"].tolist() == [float(c in labels) for c in (3, 7, 11)]
        sidecar = next((listed.parent / "out").rglob(f"sub-{k}_*stat-mean_timeseries.json")).read_text()
        assert f"sub-{k}_seg.nii.gz" in sidecar
    assert (
        "warning: Own: 3 columns, one per label in the atlases of these 3 runs. Other runs may get others. A look-up "
        "table (--lut, or the column lut_Own in a list of runs) makes them the same." in capsys.readouterr().err
    )


def test_only_the_run_whose_atlas_changed_is_made_again(listed):
    assert cohort(listed) == 0
    save(listed.parent / "sub-2_seg.nii.gz", labelled((11, 7)), AFFINE)
    os.utime(listed.parent / "sub-2_seg.nii.gz", (1, 1))
    assert cohort(listed) == 0
    assert statuses(listed.parent / "out") == {"sub-1": "skipped", "sub-2": "done", "sub-3": "skipped"}
    np.testing.assert_allclose(series(listed, 2), expected(listed, 2, (11, 7), (3, 7, 11)), rtol=1e-6)


def test_a_new_label_changes_the_columns_of_all_runs_and_is_refused(listed, capsys):
    assert cohort(listed) == 0
    save(listed.parent / "sub-2_seg.nii.gz", labelled((7, 12)), AFFINE)
    assert cohort(listed) == 2
    assert "was made with regions " in capsys.readouterr().err
    assert cohort(listed, "--overwrite") == 0
    assert [list(series(listed, k)) for k in (1, 2, 3)] == [["3", "7", "11", "12"]] * 3


def test_the_columns_are_those_of_the_look_up_table(listed, capsys):
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join([f"{lines[0]}\tlut_Own", *(f"{line}\tnames.tsv" for line in lines[1:])]))
    (listed.parent / "names.tsv").write_text("index\tname\n11\tC\n0\tUnknown\n3\tA\n40\tNowhere\n")
    assert cohort(listed) == 0
    for k, labels in enumerate(LABELS, start=1):
        table = series(listed, k)
        assert list(table) == ["A", "C", "Nowhere"]
        np.testing.assert_allclose(table, expected(listed, k, labels, (3, 11, 40)), rtol=1e-6)
    said = capsys.readouterr().err
    seg = listed.parent / "sub-1_seg.nii.gz"
    assert f"{seg} has 1 label without a row in the look-up table, which therefore have no column: 7." in said


def test_tables_that_name_a_region_differently_are_refused(listed, capsys):
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join([f"{lines[0]}\tlut_Own", *(f"{x}\tn{k}.tsv" for k, x in enumerate(lines[1:]))]))
    for k, name in enumerate("AAB"):
        (listed.parent / f"n{k}.tsv").write_text(f"index\tname\n3\t{name}\n7\tX\n{k + 20}\tY{k}\n")
    assert cohort(listed) == 2
    folder = listed.parent
    assert (
        f"{folder / 'n2.tsv'} calls the region 3 'B', but {folder / 'n0.tsv'} calls it 'A'. Expected the same names "
        "for all runs." in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("", "has no atlas_Own: expected a file, as in the other lines"),
        ("n/a", "has no atlas_Own: expected a file, as in the other lines"),
        ("gone.nii.gz", "names an atlas_Own file that isn't there: {folder}/gone.nii.gz"),
    ],
)
def test_a_line_without_its_atlas_is_a_problem_that_names_the_line(listed, cell, reason):
    listed.write_text(listed.read_text().replace("sub-2_seg.nii.gz", cell))
    runs, problems = read_manifest(listed)
    assert len(runs) == 2
    assert [problem.reason for problem in problems] == [f"line 3 of {listed} {reason.format(folder=listed.parent)}"]


def test_a_column_without_a_name_needs_one_name(listed):
    listed.write_text(listed.read_text().replace("atlas_Own", "atlas"))
    with pytest.raises(ValueError) as caught:
        read_manifest(listed)
    assert str(caught.value) == (
        f"{listed}: the atlases of line 3 are called sub2seg, and in line 2 sub1seg. Expected the same names in all "
        "lines, each once: call the column atlas_NAME instead of atlas."
    )


def test_a_table_without_an_atlas_is_refused(listed):
    listed.write_text(listed.read_text().replace("atlas_Own", "lut_Own"))
    with pytest.raises(ValueError, match="has the column lut_Own, but no column atlas_Own"):
        read_manifest(listed)


def test_an_unreadable_atlas_fails_its_run_alone(listed, capsys):
    path = listed.parent / "sub-1_seg.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    assert cohort(listed) == 1
    assert statuses(listed.parent / "out") == {"sub-1": "failed", "sub-2": "done", "sub-3": "done"}
    assert list(series(listed, 3)) == ["3", "7", "11"]
    assert "Its labels have no column." in capsys.readouterr().err


def test_plans_are_compiled_once_per_content_and_few_are_kept(listed, monkeypatch):
    runs, _ = read_manifest(listed)
    same = listed.parent / "sub-3_seg.nii.gz"
    same.write_bytes((listed.parent / "sub-1_seg.nii.gz").read_bytes())
    own, _ = with_columns(OwnAtlas("Own"), runs)
    loaded = atlases.load(Configuration((own,), listed.parent / "out", device="cpu"))
    first, second, third = (loaded.of_run(run)["Own"] for run in runs)
    assert third is first
    assert second is not first
    grid = first._atlas.grid
    of_first, of_third = (loaded.regions(None, grid, loaded.of_run(run))["Own"] for run in (runs[0], runs[2]))
    assert of_first is of_third
    monkeypatch.setattr(atlases, "_KEPT_OWN", 1)
    save(same, labelled((11, 3)), AFFINE)
    assert loaded.of_run(runs[2])["Own"] is not first
    assert loaded.of_run(runs[0])["Own"] is not first  # it was dropped


@pytest.fixture
def derived(tmp_path):
    """fMRIPrep's folder: a run in T1w with its segmentation in `anat`, one next to its own, and one without."""
    root, rng = tmp_path / "d", np.random.default_rng(1)
    root.mkdir()
    description = {"Name": "made", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1"}]}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "desc-aparcaseg_dseg.tsv").write_text("index\tname\tcolor\n0\tUnknown\t#0\n3\tA\t#1\n7\tB\t#2\n11\tC\t#3\n")
    for k in (1, 2, 3):
        func = root / f"sub-{k}" / "func"
        func.mkdir(parents=True)
        (root / f"sub-{k}" / "anat").mkdir()
        stem = f"sub-{k}_task-rest_space-T1w"
        save(func / f"{stem}_desc-preproc_bold.nii.gz", rng.normal(9, 1, (*SHAPE, 12)).astype("f4"), AFFINE, 2.0)
        save(func / f"{stem}_desc-brain_mask.nii.gz", np.ones(SHAPE, np.uint8), AFFINE)
    save(root / "sub-1" / "anat" / "sub-1_desc-aparcaseg_dseg.nii.gz", labelled(LABELS[0]), AFFINE)
    save(root / "sub-2/func/sub-2_task-rest_space-T1w_desc-aparcaseg_dseg.nii.gz", labelled(LABELS[1]), AFFINE)
    save(root / "sub-2" / "anat" / "sub-2_desc-aparcaseg_dseg.nii.gz", labelled((3, 3)), AFFINE)  # not the nearest
    return root


def test_segmentations_of_fmriprep(derived, capsys):
    assert cohort(derived, "--atlas", "derivatives:desc-aparcaseg") == 1
    for k in (1, 2):
        table = series(derived, k, "aparcaseg")
        assert list(table) == ["A", "B", "C"]
        assert table.columns[table.notna().all()].tolist() == [{3: "A", 7: "B", 11: "C"}[x] for x in LABELS[k - 1]]
    assert (
        "has no segmentation desc-aparcaseg in its space: looked for "
        "sub-3/func/sub-3_task-rest_space-T1w_desc-aparcaseg_dseg.nii.gz, "
        "sub-3/func/sub-3_task-rest_space-T1w_desc-aparcaseg_dseg.nii, "
        "sub-3/anat/sub-3_desc-aparcaseg_dseg.nii.gz, sub-3/anat/sub-3_desc-aparcaseg_dseg.nii"
    ) in capsys.readouterr().err


def test_runs_in_another_space_do_not_use_the_segmentation_of_the_t1w_image(derived):
    for path in derived.rglob("*space-T1w*"):
        path.rename(path.with_name(path.name.replace("space-T1w", "space-MNI152NLin6Asym")))
    runs, problems = with_segmentation(find_runs(derived)[0], derived, "aparcaseg", "Own")
    assert [Path(run.atlases[0].path).parent.name for run in runs] == ["func"]
    assert len(problems) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["derivatives:desc-brain"],
            "expected derivatives:desc- followed by aparcaseg or aseg",
        ),
        (["derivatives:desc-aseg", "derivatives:desc-aseg"], "--atlas: several are called aseg. Give NAME="),
    ],
)
def test_wrong_segmentations(derived, capsys, words, message):
    assert cohort(derived, "--atlas", *words) == 2
    assert message in capsys.readouterr().err


def test_a_killed_cohort_ends_as_an_undisturbed_one(listed):
    words = [sys.executable, "-W", "error", "-m", "gpumask", "cohort", str(listed), str(listed.parent / "killed")]
    words += ["participant", "--device", "cpu"]
    kill = (
        "import os, sys, gpumask.cohort.writer as w; from gpumask.cli import main; write = w._write; n = []\n"
        "def last(*a, **k):\n    n.append(1)\n    os.kill(os.getpid(), 9) if len(n) > 1 else None\n"
        "    return write(*a, **k)\nw._write = last; main(sys.argv[1:])"
    )
    first = subprocess.run([sys.executable, "-c", kill, *words[5:]], capture_output=True, check=False)
    assert first.returncode == -signal.SIGKILL
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    assert cohort(listed) == 0
    assert cohorts.outputs(listed.parent / "killed") == cohorts.outputs(listed.parent / "out")
