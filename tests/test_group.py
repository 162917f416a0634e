"""The group step: mean matrices against NumPy, on the page too; and one pass over records and matrices."""

import html
import json
import statistics
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from gpumask.cohort import group, matrices
from gpumask.cohort.group import summarize
from gpumask.cohort.page import logs
from gpumask.cohort.quality import OF_RUN
from gpumask.cohort.recorded import Unused
from gpumask.tables import table_lines

from . import cohorts

REGIONS = ["LH_Vis", '"quoted', "n/a", "d"]


def write_run(out, k, matrix, *, fd=0.1, stat="pearsoncorrelation", names=REGIONS, made="m1", whole=False):
    """Record and matrix of a run, as `gpumask cohort` leaves them; returns the matrix's path."""
    name = f"sub-{k:05}_task-rest"
    path = out / f"{name}_atlas-A_stat-{stat}_relmat.tsv"
    path.write_text("".join(table_lines(["Node", *names], np.float32(matrix), names)))
    record = cohorts.record(name, [(path.name, path.stat().st_size, made)])
    numbers = {column.name: 12 for column in OF_RUN} if whole else {}
    record["quality"] = {"": {**record["quality"][""], **numbers, "fd_mean": fd, "atlases": {"A": {"tsnr": 41.123456}}}}
    (out / "logs").mkdir(exist_ok=True)
    (out / "logs" / f"{name}.json").write_text(json.dumps(record))
    return path


def correlation(rng, n=4):
    return np.float32(np.corrcoef(rng.normal(size=(n, 12))))


def written(out, stat="pearsoncorrelation"):
    """Mean matrix, numbers of runs, and sidecar."""
    stem = out / f"group_atlas-A_stat-{stat}"
    tables = []
    for suffix in ("relmat", "runs"):
        table = pd.read_table(f"{stem}_{suffix}.tsv", index_col="Node", keep_default_na=False, quoting=0)
        assert table.index.tolist() == table.columns.tolist() == REGIONS
        tables.append(table.replace("n/a", np.nan).to_numpy(float))
    return *tables, json.loads((out / f"{stem.name}_relmat.json").read_text())


def test_mean_of_correlations_is_by_fisher_z_of_what_runs_have(tmp_path):
    rng = np.random.default_rng(0)
    found = [correlation(rng) for _ in range(5)]
    found[0][1] = found[0][:, 1] = np.nan  # in the first run, whose regions count
    found[3][2] = found[3][:, 2] = np.nan
    for matrix in found:
        matrix[3] = matrix[:, 3] = np.nan
    found[4][0, 1] = found[4][1, 0] = 1  # whose z is infinite
    for k, matrix in enumerate(found):
        write_run(tmp_path, k, matrix, fd=None if k == 1 else 0.1)
    paths = summarize(tmp_path, 5).paths
    mean, counts, sidecar = written(tmp_path)
    assert paths[-1] == tmp_path / "group_atlas-A_stat-pearsoncorrelation_relmat.tsv"
    assert counts.tolist() == [[5, 3, 4, 0], [3, 4, 3, 0], [4, 3, 4, 0], [0, 0, 0, 0]]
    for i, j, runs in ((0, 1, (1, 2, 3)), (0, 2, (0, 1, 2, 4)), (1, 2, (1, 2, 4))):
        expected = np.tanh(np.mean([np.arctanh(np.float64(found[k][i, j])) for k in runs]))
        assert mean[i, j] == mean[j, i] == pytest.approx(expected, rel=1e-6)
    assert np.diagonal(mean)[:3].tolist() == [1, 1, 1]
    assert np.isnan(mean[3]).all()
    assert (sidecar["NumberOfRuns"], sidecar["NumberOfRunsUsed"]) == (5, 5)
    assert "Fisher's z" in sidecar["Description"]
    page = paths[0].read_text()
    assert "<h3>A pearsoncorrelation</h3><p>Mean over 5 runs, by Fisher z. 1 region without signal in all" in page
    assert "aria-label='mean over runs of A pearsoncorrelation'" in page


@pytest.mark.parametrize("stat", ["covariance", "fisherz", "partialcorrelation"])
def test_means_of_other_kinds(tmp_path, stat):
    rng = np.random.default_rng(1)
    found = [correlation(rng) for _ in range(3)]
    if stat == "covariance":
        found = [matrix * 250 for matrix in found]
    if stat == "fisherz":
        for matrix in found:
            np.fill_diagonal(matrix, np.nan)
    for k, matrix in enumerate(found):
        write_run(tmp_path, k, matrix, stat=stat)
    cohorts.write_tables(tmp_path)
    mean, counts, sidecar = written(tmp_path, stat)
    expected = np.mean(np.float64(found), axis=0)
    if stat == "partialcorrelation":
        z = np.mean([np.arctanh(np.float64(matrix) - np.eye(4)) for matrix in found], axis=0)
        expected = np.where(np.eye(4), 1, np.tanh(z))
    np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-7)
    assert counts.tolist() == np.where(np.isnan(expected), 0, 3).tolist()
    assert ("Fisher" in sidecar["Description"]) == (stat == "partialcorrelation")


def test_what_is_not_in_the_mean_is_said(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    found = [correlation(rng) for _ in range(30)]
    paths = [write_run(tmp_path, k, matrix) for k, matrix in enumerate(found[:28])]
    write_run(tmp_path, 28, found[28], made="m0")
    paths.append(write_run(tmp_path, 29, found[29], names=[*REGIONS[:3], "e"]))
    typical = statistics.median_high(path.stat().st_size for path in paths)
    monkeypatch.setattr(matrices, "MOST_BYTES", 15 * typical)
    paths[-2].unlink()  # which isn't in the sample
    page = summarize(tmp_path).paths[0].read_text()
    mean, _, sidecar = written(tmp_path)
    remark = "1 matrices can't be used: group_unused.tsv says why. "
    remark += "A sample: 15 evenly spaced runs of 29, since reading all matrices would take too long. "
    remark += "1 runs were made with other options and aren't used."
    assert sidecar["Remark"] == remark
    assert (sidecar["NumberOfRuns"], sidecar["NumberOfRunsUsed"]) == (29, 14)
    used = [np.arctanh(np.float64(found[k][0, 1])) for k in range(0, 28, 2)]
    assert mean[0, 1] == pytest.approx(np.tanh(np.mean(used)), rel=1e-6)
    assert f"Mean over 14 runs, by Fisher z. {html.escape(remark)}" in page
    name = "sub-00029_task-rest_atlas-A_stat-pearsoncorrelation_relmat.tsv"
    assert (tmp_path / "group_unused.tsv").read_text() == f"file\treason\n{name}\thas other regions than most\n"


def test_no_readable_matrix_makes_no_mean(tmp_path):
    write_run(tmp_path, 0, np.eye(4)).unlink()
    paths = summarize(tmp_path).paths
    assert [path.name for path in paths] == ["cohort.html", "group_quality.tsv", "group_qcfc.tsv", "group_unused.tsv"]
    assert "Mean connectivity" not in paths[0].read_text()


def test_an_outdated_list_of_unused_files_is_removed(tmp_path):
    path = write_run(tmp_path, 0, np.eye(4))
    content = path.read_text()
    path.unlink()
    listed = tmp_path / "group_unused.tsv"
    assert summarize(tmp_path).paths[-1] == listed
    assert listed.read_text() == f"file\treason\n{path.name}\tNo such file or directory\n"
    path.write_text(content)
    assert listed not in summarize(tmp_path).paths
    assert not listed.exists()


def test_matrices_of_an_earlier_summary_are_removed(tmp_path, caplog):
    """Those that aren't made again would be of other runs, or of other options, than the rest."""
    path = write_run(tmp_path, 0, np.eye(4))
    kept = {path.name for path in summarize(tmp_path).paths}
    names = ("stat-partialcorrelation_desc-a_relmat", "stat-partialcorrelation_desc-a_runs", "stat-tangent_relmat")
    for name in names:
        for end in ("tsv", "npy", "json"):
            (tmp_path / f"group_atlas-A_{name}.{end}").touch()
    others = {"group_atlas-A_stat-mine.tsv", "group_mine.tsv", "group_atlas-A_stat-tangent_relmat.png"}
    for name in others:
        (tmp_path / name).touch()
    assert {path.name for path in summarize(tmp_path).paths} == kept
    left = {path.name for path in tmp_path.glob("group_*") if path.suffix != ".json"}
    runs = "group_atlas-A_stat-pearsoncorrelation_runs.tsv"
    assert left == (kept | others | {runs, "group_atlas-A_stat-partialcorrelation_desc-a_runs.npy"}) - {"cohort.html"}
    assert not list(tmp_path.glob("group_atlas-A_stat-[!pm]*.json"))
    removed = [
        "group_atlas-A_stat-partialcorrelation_desc-a_relmat.npy",
        "group_atlas-A_stat-partialcorrelation_desc-a_relmat.tsv",
        "group_atlas-A_stat-tangent_relmat.npy",
        "group_atlas-A_stat-tangent_relmat.tsv",
    ]
    assert caplog.messages == [
        f"Removed: {', '.join(removed)}. They are from an earlier summary and weren't redone (tangent spaces need "
        "--tangent)."
    ]
    path.unlink()
    summarize(tmp_path)
    assert not list(tmp_path.glob("group_atlas-A_stat-pearson*"))


def test_records_and_matrices_are_read_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(logs, "read_record", lambda path, f=logs.read_record: (read.append(path), f(path))[1])
    reader = matrices.read_recorded
    monkeypatch.setattr(matrices, "read_recorded", lambda *of: (read.append(of[1]), reader(*of))[1])
    for k in range(12):
        write_run(tmp_path, k, np.eye(4), fd=0.1 * k)
    summarize(tmp_path)
    assert len(read) == len(set(read)) == 24


def test_a_picture_of_many_regions_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(group, "MOST_REGIONS", 3)
    names = [f"R{k}" for k in range(9)]
    write_run(tmp_path, 0, np.eye(9), names=names)
    page = summarize(tmp_path).paths[0].read_text()
    assert [name for name in names if f"<!-- {name} -->" in page] == ["R0", "R4", "R8"]


def test_many_records_take_little_time_and_memory(tmp_path):
    """40 000 would take less than a minute with the page, and less than 400 MB."""
    n = 400
    for k in range(n):
        write_run(tmp_path, k, np.eye(4), fd=0.1 * k, whole=True)
    pictures = 4  # s
    started = time.process_time()
    summarize(tmp_path)
    assert time.process_time() - started < pictures + n * 60 / 40_000
    tracemalloc.start()
    tables = group.GroupTables()
    cohort = logs.read_logs(tmp_path / "logs", tables.add)
    tables.write(tmp_path, Unused())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(cohort.done) == n
    assert peak < 2e6 + n * 400e6 / 40_000
