"""Lists of runs with atlases, as a stranger writes them: one clear error, or a right table."""

import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask.cli import main

from . import cohorts, dense
from .helpers import save, slabs

SHAPE, AFFINE, N = (6, 5, 4), np.diag([3.0, 3.0, 3.0, 1.0]), 12
FIRST = "bold\tatlas_Own"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for k, labels in enumerate(((3, 7), (7, 11)), start=1):
        save(folder / f"sub-{k}_bold.nii", rng.normal(100, 9, (*SHAPE, N)).astype("f4"), AFFINE, 2.0)
        save(folder / f"sub-{k}_seg.nii", slabs(labels), AFFINE)
    (folder / "lut.tsv").write_text("index\tname\n3\tA\n7\tB\n11\tC\n")
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "made"))
    return tmp_path / "made"


def cohort(folder, lines, *options):
    """The exit status of the command for a list of runs of these lines."""
    (folder / "runs.tsv").write_text("\n".join(lines) + "\n")
    words = ["cohort", folder / "runs.tsv", folder / "out", "participant", "--device", "cpu", "--shard", "1/1"]
    return main(list(map(str, [*words, *options])))


def rows(first=FIRST, *more):
    """Lines for both runs, each with the cells `more` after its atlas."""
    return [first, *("\t".join([f"sub-{k}_bold.nii", f"sub-{k}_seg.nii", *more]) for k in (1, 2))]


def series(folder, k, name="Own"):
    return pd.read_table(next((folder / "out").rglob(f"sub-{k}_*atlas-{name}_*timeseries.tsv")))


def failures(folder):
    """Errors of failed runs by the beginning of their names."""
    return {line["name"][:5]: line["error"] for line in cohorts.log_lines(folder / "out") if line["status"] == "failed"}


def refusal(folder, lines, capsys, *options):
    """The message of a command that starts nothing."""
    assert cohort(folder, lines, *options) == 2
    assert not (folder / "out").exists()
    return capsys.readouterr().err.splitlines()[-1].removeprefix("gpumask cohort: error: ")


# The whole list is refused


@pytest.mark.parametrize("column", ["atlases", "Atlas_Own", "atlas_my-own", "atlas_", "atlas Own", "lut_"])
def test_an_unknown_column(folder, capsys, column):
    first = f"bold\t{column}"
    assert refusal(folder, rows(first), capsys) == (
        f"{folder / 'runs.tsv'} begins with the line {first!r}. Expected the names of the columns, "
        "separated by tabs, each once: bold, and any of confounds, mask, t_r, name, atlas, lut, atlas_NAME, lut_NAME."
    )


@pytest.mark.parametrize(("first", "lut"), [("bold\tlut_Own", "lut_Own"), ("bold\tatlas_B\tlut", "lut")])
def test_a_table_for_no_atlas(folder, capsys, first, lut):
    message = refusal(folder, rows(first, "lut.tsv"), capsys)
    assert message == f"{folder / 'runs.tsv'} has the column {lut}, but no column {lut.replace('lut', 'atlas')}."


def test_a_column_without_a_name_needs_one_name(folder, capsys):
    assert refusal(folder, rows("bold\tatlas"), capsys) == (
        f"{folder / 'runs.tsv'}: the atlases of line 3 are called sub2seg, and in line 2 sub1seg. Expected the same "
        "names in all lines, each once: call the column atlas_NAME instead of atlas."
    )


def test_a_name_of_an_atlas_of_all(folder, capsys):
    message = refusal(folder, rows(), capsys, "--atlas", "Own=sub-1_seg.nii")
    assert message == "Expected one atlas or more, each with a name of its own, got ['Own', 'Own']. Give NAME=PATH."


@pytest.mark.parametrize("cell", ["", "n/a", "gone.nii"])
def test_no_line_has_an_atlas(folder, capsys, cell):
    reason = (
        f"names an atlas_Own file that isn't there: {folder / cell}"
        if cell == "gone.nii"
        else ("has no atlas_Own: expected a file, as in the other lines")
    )
    assert refusal(folder, [FIRST, *(f"sub-{k}_bold.nii\t{cell}" for k in (1, 2))], capsys) == (
        f"no run of {folder / 'runs.tsv'} can be used: line 2 of {folder / 'runs.tsv'} {reason}"
    )


def test_something_else_as_the_table(folder, capsys):
    message = refusal(folder, rows(f"{FIRST}\tlut_Own", "sub-1_bold.nii"), capsys)
    assert message == (
        f"{folder / 'sub-1_bold.nii'}, line 1: the byte 0x80 isn't UTF-8, perhaps Latin-1. Expected a look-up table "
        "with the columns 'index' and 'name'. Save it as tab-separated text in UTF-8."
    )


def test_an_atlas_of_a_space_that_its_name_contradicts(folder, capsys):
    for name in ("sub-2_space-T1w_bold.nii", "sub-2_space-MNI152NLin6Asym_seg.nii"):
        shutil.copy(f"sub-2_{name[-8:]}" if "bold" in name else "sub-2_seg.nii", name)
    lines = [*rows()[:2], "sub-2_space-T1w_bold.nii\tsub-2_space-MNI152NLin6Asym_seg.nii"]
    assert refusal(folder, lines, capsys) == (
        f"{folder / 'sub-2_space-MNI152NLin6Asym_seg.nii'} is in the space MNI152NLin6Asym, "
        f"{folder / 'sub-2_space-T1w_bold.nii'} in T1w. Give the one of the run's space, or --allow-space-mismatch if "
        "the names are wrong."
    )


# One run fails


def bad(folder, what):
    """Make the second run's atlas bad; return how its error begins."""
    path, far = folder / "sub-2_seg.nii", AFFINE + np.array([[0, 0, 0, 500.0], *[[0] * 4] * 3])
    if what == "elsewhere":
        save(path, slabs((7, 11)), far)
        return "No label left after resampling the labels image."
    if what == "fractions":
        save(path, slabs((1.5, 3, 2.25), "f4"), AFFINE)
        return (
            f"{path} has 2 labels that aren't whole numbers: 1.5, 2.25. Save labels as integers; if they were "
            "resampled, resample them again by nearest neighbour."
        )
    if what == "maps":
        save(path, np.stack([slabs((7, 11))] * 3, axis=-1), AFFINE)
        return "Input data has incompatible dimensionality: Expected dimension is 3D and you provided a 4D image."
    if what == "empty":
        save(path, slabs((0,)), AFFINE)
        return f"Image has no label. Every voxel of {path} is background (0)."
    if what == "folder":
        path.unlink()
        path.mkdir()
        return (
            f"line 3 of {folder / 'runs.tsv'} names an atlas_Own file that is a folder, expected a regular file: {path}"
        )
    path.write_text("index,name\n")
    return f"{path}"


@pytest.mark.parametrize("what", ["elsewhere", "fractions", "maps", "empty", "folder", "text"])
def test_a_bad_atlas_fails_its_run_alone(folder, capsys, what):
    message = bad(folder, what)
    assert cohort(folder, rows()) == 1
    assert failures(folder).keys() == {"sub-2"}
    assert failures(folder)["sub-2"].startswith(message)
    assert str(folder / "sub-2_seg.nii") in failures(folder)["sub-2"]
    assert list(series(folder, 1))[:2] == ["3", "7"]
    assert "1.5" not in list(series(folder, 1))


def test_labels_that_no_row_names(folder, capsys):
    (folder / "lut.tsv").write_text("index\tname\n3\tA\n")
    assert cohort(folder, rows(f"{FIRST}\tlut_Own", "lut.tsv")) == 1
    message = (
        f"No label of {folder / 'sub-2_seg.nii'} has a column. Its labels: 7, 11. Columns of the atlas Own: 3. Give "
        "the look-up table of these labels."
    )
    assert failures(folder) == {"sub-2": message}


def test_a_missing_table(folder):
    lines = [f"{FIRST}\tlut_Own", "sub-1_bold.nii\tsub-1_seg.nii\tlut.tsv", "sub-2_bold.nii\tsub-2_seg.nii\tn/a"]
    assert cohort(folder, lines) == 1
    reason = f"line 3 of {folder / 'runs.tsv'} has no lut_Own: expected a file, as in the other lines"
    assert failures(folder) == {"sub-2": reason}


def test_dense_labels_for_a_run_of_volumes(folder):
    axis = dense.models(np.random.default_rng(0))
    dense.save(dense.labels_image(np.ones(len(axis)), axis), folder / "b.dlabel.nii")
    assert cohort(folder, [*rows()[:2], "sub-2_bold.nii\tb.dlabel.nii"]) == 1
    path, run = folder / "b.dlabel.nii", folder / "sub-2_bold.nii"
    assert failures(folder) == {
        "sub-2": f"{path} has labels of grayordinates, but {run} has volumes. Give an atlas of volumes."
    }


# Right tables


def test_paths_are_relative_to_the_list_and_atlases_may_be_shared(folder, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    absolute = folder / "sub-1_seg.nii"
    assert cohort(folder, [FIRST, "sub-1_bold.nii\t../made/sub-1_seg.nii", f"sub-2_bold.nii\t{absolute}"]) == 0
    data = nib.load(folder / "sub-2_bold.nii").get_fdata()
    means = [data[slabs((3, 7)) == label].mean(0) for label in (3, 7)]
    np.testing.assert_allclose(series(folder, 2), np.transpose(means), rtol=1e-6)


def test_whole_numbers_as_floats_and_other_types_have_the_same_columns(folder):
    save(folder / "sub-1_seg.nii", slabs((3, 7), "f8"), AFFINE)
    save(folder / "sub-2_seg.nii", slabs((7, 200), "u1"), AFFINE)
    assert cohort(folder, rows()) == 0
    assert list(series(folder, 1)) == list(series(folder, 2)) == ["3", "7", "200"]


def test_a_column_without_a_name_takes_that_of_the_files(folder):
    for k in (1, 2):
        (folder / f"sub-{k}_seg.nii").rename(folder / f"sub-{k}_desc-aparcaseg_dseg.nii")
    lines = ["bold\tatlas\tlut", *(f"sub-{k}_bold.nii\tsub-{k}_desc-aparcaseg_dseg.nii\tlut.tsv" for k in (1, 2))]
    assert cohort(folder, lines) == 0
    assert list(series(folder, 2, "aparcaseg")) == ["A", "B", "C"]


def test_thousands_of_labels(folder):
    rng = np.random.default_rng(0)
    shape = (20, 20, 10)
    drawn = [rng.permutation(np.arange(1, 6001))[:4000].astype(np.int32).reshape(shape) for _ in (1, 2)]
    for k, labels in enumerate(drawn, start=1):
        save(folder / f"sub-{k}_seg.nii", labels, AFFINE)
        save(folder / f"sub-{k}_bold.nii", rng.normal(100, 9, (*shape, 3)).astype("f4"), AFFINE, 2.0)
    assert cohort(folder, rows(), "--no-relmat") == 0
    union = np.union1d(*drawn)
    for k, labels in enumerate(drawn, start=1):
        table = series(folder, k)
        assert list(table) == list(map(str, union))
        values = np.full((3, len(union)), np.nan)
        data = nib.load(folder / f"sub-{k}_bold.nii").get_fdata()
        values[:, np.searchsorted(union, labels.ravel())] = data.reshape(-1, 3).T
        np.testing.assert_allclose(table, values, rtol=1e-6)
