"""Atlases of which each run has its own: numbers, one list of columns, what is made again, and options next to them."""

import gc
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.signal import clean

import gpumask.cohort.own_atlases as own_atlases_module
import gpumask.plans
from gpumask.bids import read_manifest
from gpumask.cli import main
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.own_atlases import own_atlases, with_columns
from gpumask.engine.regions import LabelRegions
from gpumask.process import n_cores

from . import cohorts, dense
from .helpers import save, slabs

SHAPE, AFFINE, N = (6, 5, 4), np.diag([3.0, 3.0, 3.0, 1.0]), 12
LABELS = ((3, 7), (7, 11), (3, 11))  # of the atlas of each run
ALL = (3, 7, 11)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three runs with an atlas each, and the list of them."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    lines = ["bold\tconfounds\tatlas_Own"]
    for k, labels in enumerate(LABELS, start=1):
        stem = f"sub-{k}_task-rest"
        save(folder / f"{stem}_bold.nii", rng.normal(100, 9, (*SHAPE, N)).astype("f4"), AFFINE, 2.0)
        save(folder / f"sub-{k}_seg.nii", slabs(labels), AFFINE)
        table = pd.DataFrame(rng.normal(size=(N, 2)), columns=["csf", "framewise_displacement"])
        table.to_csv(folder / f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False)
        lines.append(f"{stem}_bold.nii\t{stem}_desc-confounds_timeseries.tsv\tsub-{k}_seg.nii")
    (folder / "runs.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def listed(made, tmp_path):
    """The list, in a folder of its own."""
    return shutil.copytree(made, tmp_path / "made") / "runs.tsv"


def cohort(path, *options, out="out", summarized=False):
    """The command; by default as one of the parts of a cohort, after which no page is written."""
    part = [] if summarized else ["--shard", "1/1"]
    words = ["cohort", path, path.parent / out, "participant", "--device", "cpu", *part, *options]
    return main(list(map(str, words)))


def with_column(path, name, cells):
    """Add a column to a list of runs."""
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\t{cell}\n" for line, cell in zip(lines, (name, *cells), strict=True)))


def series(path, k, name="Own", out="out", end="stat-mean_timeseries.tsv"):
    return pd.read_table(next((path.parent / out).rglob(f"sub-{k}_*atlas-{name}_{end}")))


def statuses(path, out="out"):
    """The last outcome of each run."""
    return {line["name"][:5]: line["status"] for line in cohorts.log_lines(path.parent / out)}


def expected(path, k, labels, columns=ALL):
    """Mean over each label's voxels, by the definition; NaN for columns that the run lacks."""
    data = nib.load(path.parent / f"sub-{k}_task-rest_bold.nii").get_fdata()
    own = slabs(labels)
    return np.column_stack([data[own == c].mean(0) if (own == c).any() else np.full(N, np.nan) for c in columns])


# Numbers and columns


def test_each_run_has_its_own_atlas_and_all_have_the_same_columns(listed, capsys):
    assert cohort(listed) == 0
    for k, labels in enumerate(LABELS, start=1):
        table = series(listed, k)
        assert list(table) == ["3", "7", "11"]
        np.testing.assert_allclose(table, expected(listed, k, labels), rtol=1e-6)
        coverage = series(listed, k, end="stat-coverage_bold.tsv")
        assert coverage["coverage"].tolist() == [float(c in labels) for c in ALL]
        sidecar = json.loads(next((listed.parent / "out").rglob(f"sub-{k}_*stat-mean_timeseries.json")).read_text())
        assert any(source.endswith(f"sub-{k}_seg.nii") for source in sidecar["Sources"])
    assert (
        "warning: Own: 3 columns, one per label in the atlases of these 3 runs. Other runs may get other columns. A "
        "look-up table (--lut, or the column lut_Own in a list of runs) makes them the same.\n"
    ) in capsys.readouterr().err


def test_rows_of_a_given_table_are_the_columns(listed, capsys):
    with_column(listed, "lut_Own", ["names.tsv"] * 3)
    (listed.parent / "names.tsv").write_text("index\tname\n11\tC\n0\tUnknown\n3\tA\n40\tNowhere\n")
    assert cohort(listed) == 0
    for k, labels in enumerate(LABELS, start=1):
        table = series(listed, k)
        assert list(table) == ["A", "C", "Nowhere"]
        np.testing.assert_allclose(table, expected(listed, k, labels, (3, 11, 40)), rtol=1e-6)
    said = capsys.readouterr().err
    assert (
        f"sub-1_task-rest: warning: {listed.parent / 'sub-1_seg.nii'} has 1 label without a column: 7. The columns are "
        "the rows of the look-up table, or else the labels that the atlases had at the start.\n"
    ) in said
    assert "Other runs may get" not in said


def test_a_table_that_is_found_names_the_labels_that_occur(listed):
    rows = ["index\tname", "0\tUnknown", "3\tA", "7\tB", *(f"{n}\tR{n}" for n in range(100, 1400))]
    for k in (1, 2, 3):
        (listed.parent / f"sub-{k}_seg.tsv").write_text("\n".join(rows))
    assert cohort(listed) == 0
    assert list(series(listed, 1)) == ["A", "B", "unknown"]


def test_different_names_of_labels_that_occur_are_refused(listed, capsys):
    with_column(listed, "lut_Own", ["n0.tsv", "n1.tsv", "n2.tsv"])
    for k, name in enumerate("AAB"):
        (listed.parent / f"n{k}.tsv").write_text(f"index\tname\n0\tNone{k}\n3\t{name}\n7\tX\n{k + 20}\tY{k}\n")
    assert cohort(listed) == 2
    folder = listed.parent
    assert (
        f"{folder / 'n2.tsv'} calls the region 3 'B', but {folder / 'n0.tsv'} calls it 'A'. Expected the same names "
        "for all runs.\n"
    ) in capsys.readouterr().err


def test_two_own_atlases_next_to_one_of_all(listed):
    with_column(listed, "atlas_Other", ["sub-3_seg.nii", "sub-1_seg.nii", "sub-1_seg.nii"])
    assert cohort(listed, "--atlas", f"All={listed.parent / 'sub-2_seg.nii'}") == 0
    np.testing.assert_allclose(series(listed, 1), expected(listed, 1, LABELS[0]), rtol=1e-6)
    np.testing.assert_allclose(series(listed, 1, "Other"), expected(listed, 1, LABELS[2]), rtol=1e-6)
    np.testing.assert_allclose(series(listed, 1, "All"), expected(listed, 1, LABELS[1], (7, 11)), rtol=1e-6)


# What is made again


def test_only_the_run_whose_atlas_changed_is_made_again(listed):
    assert cohort(listed) == 0
    changed, touched = listed.parent / "sub-2_seg.nii", listed.parent / "sub-3_seg.nii"
    before = changed.stat()
    save(changed, slabs((11, 7)), AFFINE)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed.stat().st_size == before.st_size  # only the content shows it
    os.utime(touched, (1, 1))
    assert cohort(listed) == 0
    assert statuses(listed) == {"sub-1": "skipped", "sub-2": "done", "sub-3": "skipped"}
    np.testing.assert_allclose(series(listed, 2), expected(listed, 2, (11, 7)), rtol=1e-6)


def test_a_column_that_comes_or_goes_leaves_the_outputs_of_other_atlases(listed):
    """Nothing is made again, or removed; but an atlas that comes back with another content is."""
    both = [f"--atlas=All={listed.parent / 'sub-2_seg.nii'}", "--relmat", "pearson"]
    only_own = listed.read_text()
    with_column(listed, "atlas_Other", ["sub-3_seg.nii", "sub-1_seg.nii", "sub-1_seg.nii"])
    with_other = listed.read_text()

    def written():
        tables = (listed.parent / "out").rglob("sub-*_timeseries.tsv")
        return {path.name: path.stat().st_mtime_ns for path in tables}

    listed.write_text(only_own)
    assert cohort(listed, *both) == 0
    first = written()
    listed.write_text(with_other)
    assert cohort(listed, *both) == 0
    second = written()
    assert len(second) == len(first) + 3
    assert second.items() > first.items()

    listed.write_text("".join(line.rpartition("\t")[0] + "\n" for line in only_own.splitlines()))  # without any
    assert cohort(listed, *both) == 0
    assert statuses(listed) == {f"sub-{k}": "skipped" for k in (1, 2, 3)}
    listed.write_text(with_other)
    assert cohort(listed, *both) == 0
    assert written() == second

    listed.write_text(only_own)
    save(listed.parent / "sub-1_seg.nii", slabs((7, 3)), AFFINE)  # of sub-1, and the other atlas of the others
    assert cohort(listed, *both) == 0
    assert statuses(listed) == {"sub-1": "done", "sub-2": "skipped", "sub-3": "skipped"}
    np.testing.assert_allclose(series(listed, 1), expected(listed, 1, (7, 3)), rtol=1e-6)
    listed.write_text(with_other)
    assert cohort(listed, *both) == 0
    assert statuses(listed) == {f"sub-{k}": "done" for k in (1, 2, 3)}
    np.testing.assert_allclose(series(listed, 2, "Other"), expected(listed, 2, (7, 3)), rtol=1e-6)


def test_a_new_label_changes_the_columns_of_all_runs(listed, capsys):
    assert cohort(listed) == 0
    save(listed.parent / "sub-2_seg.nii", slabs((7, 12)), AFFINE)
    assert cohort(listed) == 2
    said = capsys.readouterr().err
    assert "timeseries.tsv was made with regions_of_all_runs '3 (SHA-256 " in said
    assert ", now '4 (SHA-256 " in said
    assert "So were outputs of 2 more runs. To replace them: --overwrite." in said
    assert cohort(listed, "--overwrite") == 0
    assert [list(series(listed, k)) for k in (1, 2, 3)] == [["3", "7", "11", "12"]] * 3


@pytest.mark.parametrize("what", ["missing", "truncated"])
def test_a_bad_atlas_fails_its_run_alone(listed, capsys, what):
    path = listed.parent / "sub-1_seg.nii"
    if what == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:400])
    assert cohort(listed) == 1
    assert statuses(listed)["sub-2"] == statuses(listed)["sub-3"] == "done"
    assert list(series(listed, 3)) == ["3", "7", "11"]
    (error,) = (line["error"] for line in cohorts.log_lines(listed.parent / "out") if line["status"] == "failed")
    assert str(path) in error
    assert ("Its labels have no column." in capsys.readouterr().err) == (what == "truncated")
    save(path, slabs(LABELS[0]), AFFINE)
    assert cohort(listed) == 0
    np.testing.assert_allclose(series(listed, 1), expected(listed, 1, LABELS[0]), rtol=1e-6)


def test_killed_and_resumed_by_processes_as_undisturbed(listed):
    words = ["cohort", str(listed), str(listed.parent / "killed"), "participant", "--device", "cpu"]
    kill = (
        "import os, sys, gpumask.cohort.writer as w; from gpumask.cli import main; n, appear = [], w.appearing_together"
        "\ndef last(*a, **k):\n    n.append(1)\n    os.kill(os.getpid(), 9) if len(n) > 1 else None\n"
        "    return appear(*a, **k)\nw.appearing_together = last; main(sys.argv[1:])"
    )
    first = subprocess.run([sys.executable, "-c", kill, *words, "--nthreads", "1"], capture_output=True, check=False)
    assert first.returncode == -signal.SIGKILL
    assert cohort(listed, "--nprocs", "2", out="killed") == 0
    assert sorted(statuses(listed, "killed").values()) == ["done", "done", "skipped"]
    assert cohort(listed) == 0
    assert cohorts.outputs(listed.parent / "killed") == cohorts.outputs(listed.parent / "out")


# Work


@pytest.fixture
def compiled(monkeypatch):
    """The plans that are compiled."""
    plans, compile_plan = [], gpumask.plans.compile_plan

    def counted(*args, **options):
        plans.append(compile_plan(*args, **options))
        return plans[-1]

    monkeypatch.setattr(gpumask.plans, "compile_plan", counted)
    return plans


def processed(listed, atlases, of_all=()):
    """Process runs that share an image, with atlases of these labels, in this order, and atlases of all runs."""
    folder, lines = listed.parent, ["bold\tname\tatlas_Own"]
    for k, labels in enumerate(atlases):
        save(folder / f"atlas{k}.nii", slabs(labels), AFFINE)
        lines.append(f"sub-1_task-rest_bold.nii\tsub-{k}_task-rest\tatlas{k}.nii")
    listed.write_text("\n".join(lines) + "\n")
    runs, _ = read_manifest(listed)
    own = tuple(with_columns(atlas, runs)[0] for atlas in own_atlases(runs))
    records = list(run_cohort(Configuration((*of_all, *own), folder / "out", device="cpu"), runs, n_threads=1))
    assert {record.status for record in records} == {"done"}
    columns = sorted({label for labels in atlases for label in labels})
    for k, labels in enumerate(atlases):
        np.testing.assert_allclose(series(listed, k), expected(listed, 1, labels, columns), rtol=1e-6)


def test_plans_are_compiled_once_per_distinct_atlas(listed, compiled):
    processed(listed, [(4, 5), (5, 6), (4, 5), (5, 6), (4, 5)])
    assert len(compiled) == 2


def test_plans_of_many_atlases_are_not_all_kept(listed, compiled):
    many = [(3, 20 + k) for k in range(20)]
    processed(listed, [*many, many[-1], many[0]])
    assert len(compiled) == 21  # the last is kept, the first isn't


def test_an_atlas_of_all_runs_is_compiled_once_next_to_own_ones(listed, compiled):
    processed(listed, [(3, 20 + k) for k in range(12)], [AtlasFile(listed.parent / "sub-2_seg.nii", name="All")])
    assert len(compiled) == 12 + 1


def test_few_atlases_are_in_memory(listed):
    processed(listed, [(3, 20 + k) for k in range(20)])
    gc.collect()
    kept = [one for one in gc.get_objects() if isinstance(one, LabelRegions) and 3 in one.atlas.values]
    assert len(kept) <= 8 + n_cores()  # and the last one of each thread


# Options and outputs next to them


def test_page_tables_store_and_denoisings(listed):
    out = listed.parent / "out"
    (listed.parent / "csf.toml").write_text('columns = ["csf"]\n')
    (listed.parent / "none.toml").write_text("")
    options = ("--denoise", f"csf={listed.parent / 'csf.toml'}", f"none={listed.parent / 'none.toml'}")
    assert cohort(listed, "--store", out / "all.parquet", *options, summarized=True) == 0
    page = (out / "cohort.html").read_text()
    assert "labels, 3 columns: an image of each run" in page
    assert "Regions are those of the atlas Own (3 columns, each run&#x27;s own image)." in page
    quality = pd.read_table(out / "group_quality.tsv")
    assert quality["regions_lost_Own"].tolist() == [1] * 6
    values = [expected(listed, k, labels) for k, labels in enumerate(LABELS, start=1)]
    mean = pd.read_table(out / "group_atlas-Own_stat-pearsoncorrelation_desc-none_relmat.tsv", index_col=0)
    np.testing.assert_allclose(mean.loc[3, "7"], np.corrcoef(values[0].T)[0, 1], rtol=1e-5)  # in the first run alone
    stored = pd.read_parquet(out / "all_atlas-Own_stat-mean_desc-csf.parquet")
    removed = pd.read_table(listed.parent / "sub-1_task-rest_desc-confounds_timeseries.tsv")[["csf"]]
    cleaned = clean(values[0][:, :2], detrend=False, standardize=None, confounds=removed)
    np.testing.assert_allclose(stored[["3", "7"]][:N], cleaned, rtol=1e-5)
    assert stored["11"][:N].isna().all()


def test_the_written_configuration_repeats_the_command_from_anywhere(listed, monkeypatch, capsys):
    monkeypatch.chdir(listed.parent)
    assert cohort(Path("runs.tsv")) == 0
    (listed.parent / "elsewhere").mkdir()
    monkeypatch.chdir(listed.parent / "elsewhere")
    config = listed.parent / "out" / "logs" / "config.toml"
    words = shlex.split(config.read_text().splitlines()[1].removeprefix("# "))
    assert main([*words[1:], "--shard", "1/1"]) == 0
    assert set(statuses(listed).values()) == {"skipped"}


def test_each_run_has_its_own_dense_labels(tmp_path):
    rng, lines = np.random.default_rng(0), ["bold\tatlas_Own"]
    axis, keys, data = dense.models(rng, share=0.9), ((1, 2), (2, 5), (1, 5)), {}
    for k, own in enumerate(keys, start=1):
        bold, atlas = f"sub-{k}_task-rest_bold.dtseries.nii", f"sub-{k}.dlabel.nii"
        data[k] = rng.normal(1000, 30, (N, len(axis))).astype("f4"), rng.choice([0, *own], len(axis))
        dense.save(dense.series_image(data[k][0], axis, 2.0), tmp_path / bold)
        dense.save(dense.labels_image(data[k][1], axis, ["a"], [dense.table((1, 2, 5, 9))]), tmp_path / atlas)
        lines.append(f"{bold}\t{atlas}")
    (tmp_path / "runs.tsv").write_text("\n".join(lines) + "\n")
    assert cohort(tmp_path / "runs.tsv", "--cifti") == 0
    for k, own in enumerate(keys, start=1):
        table = series(tmp_path / "runs.tsv", k)
        assert list(table) == ["Parcel 1", "Parcel 2", "Parcel 5"]
        _, means, _ = dense.by_definition(data[k][0], axis, data[k][1], axis, nan_policy="omit")
        np.testing.assert_allclose(table[[f"Parcel {key}" for key in own]], means, rtol=1e-6)
        coverage = series(tmp_path / "runs.tsv", k, end="stat-coverage_bold.tsv")
        assert coverage["coverage"].tolist() == [float(key in own) for key in (1, 2, 5)]
        assert table.columns[table.isna().all()].tolist() == [f"Parcel {key}" for key in {1, 2, 5} - set(own)]
        parcels = nib.load(next((tmp_path / "out").rglob(f"sub-{k}_*.ptseries.nii")))
        assert parcels.header.get_axis(1).name.tolist() == list(table)
        np.testing.assert_allclose(parcels.get_fdata(), table, rtol=1e-6)


# Reading the images of all runs


def test_messages_and_names_do_not_depend_on_which_image_is_read_first(listed, monkeypatch):
    """The first of several errors, and of files with the same content, is that of the first run."""
    folder = listed.parent
    for k in (1, 3):
        (folder / f"sub-{k}_seg.nii").write_bytes(b"no image")
    runs, _ = read_manifest(listed)
    (atlas,) = own_atlases(runs)
    read, seen = own_atlases_module.load_file, []

    def late(file):
        time.sleep(0.1 * ("sub-1" in str(file.path)))
        seen.append(Path(file.path).name)
        return read(file)

    monkeypatch.setattr(own_atlases_module, "load_file", late)
    progress = []
    made, notes = with_columns(atlas, runs, lambda *done: progress.append(done), 3)
    assert [label for label, _ in made.columns] == [7, 11]
    assert [re.search(r"sub-\d_seg\.nii", note)[0] for note in notes[:-1]] == ["sub-1_seg.nii", "sub-3_seg.nii"]
    assert all(note.endswith(" Its labels have no column.") for note in notes[:-1])
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert sorted(seen) == [f"sub-{k}_seg.nii" for k in (1, 2, 3)]


def test_several_images_that_are_not_there(listed):
    runs, _ = read_manifest(listed)
    (atlas,) = own_atlases(runs)
    for k in (1, 3):
        (listed.parent / f"sub-{k}_seg.nii").unlink()
    made, notes = with_columns(atlas, runs)
    assert [label for label, _ in made.columns] == [7, 11]
    for k, note in zip((1, 3), notes[:-1], strict=True):
        path = listed.parent / f"sub-{k}_seg.nii"
        assert note == f"[Errno 2] No such file or directory: '{path}'. Its labels have no column."


def test_images_of_the_same_content_are_read_once(listed, monkeypatch):
    for k in (2, 3):
        shutil.copy(listed.parent / "sub-1_seg.nii", listed.parent / f"sub-{k}_seg.nii")
    runs, _ = read_manifest(listed)
    read, seen = own_atlases_module.load_file, []
    monkeypatch.setattr(own_atlases_module, "load_file", lambda file: (seen.append(file.path), read(file))[1])
    made, _ = with_columns(own_atlases(runs)[0], runs, n_threads=3)
    assert [Path(path).name for path in seen] == ["sub-1_seg.nii"]
    assert [label for label, _ in made.columns] == [3, 7]


def test_progress_is_shown_while_images_are_read(listed, capsys):
    assert cohort(listed) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "0/3 images of the atlas Own [00:00<?]"
    assert lines.index("0/3 runs [00:00<?]") > 0
    with_column(listed, "lut_Own", ["names.tsv"] * 3)
    (listed.parent / "names.tsv").write_text("index\tname\n3\tA\n7\tB\n")
    assert cohort(listed, out="other") == 0
    assert "images of the atlas" not in capsys.readouterr().err
    assert cohort(listed, "--quiet", out="other") == 0
    assert capsys.readouterr().err == ""
