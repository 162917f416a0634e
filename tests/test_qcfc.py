"""QC-FC against SciPy's correlation of each edge, with lost regions, unreadable matrices and few runs."""

import json
import re
import statistics

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gpumask.cohort import matrices as matrices_of_group
from gpumask.cohort.group import summarize
from gpumask.tables import table_lines

from . import cohorts

REGIONS = ["LH_Vis", '"quoted', "n/a", "d", "e"]


def write_run(out, k, matrix, displacement, *, names=REGIONS, made="m1", denoising=None, stat="pearsoncorrelation"):
    """Record and correlation matrix of a run, as `gpumask cohort` leaves them; returns the matrix's path."""
    name = f"sub-{k:02}_task-rest"
    path = out / f"{name}_atlas-A{f'_desc-{denoising}' * bool(denoising)}_stat-{stat}_relmat.tsv"
    path.write_text("".join(table_lines(["Node", *names], np.float32(matrix), names)))
    record = cohorts.record(name, [(path.name, path.stat().st_size, made)])
    record["quality"] = {denoising or "": record["quality"][""] | {"fd_mean": displacement}}
    if denoising:
        record["made"][made]["denoising"] = denoising
    (out / "logs").mkdir(exist_ok=True)
    (out / "logs" / f"{name}.json").write_text(json.dumps(record))
    return path


def made(n_runs, seed=0):
    """Matrices whose first edges follow the displacement, and the displacements."""
    rng = np.random.default_rng(seed)
    displacements = rng.uniform(0.05, 0.5, n_runs)
    matrices = []
    for displacement in displacements:
        matrix = np.eye(5)
        matrix[np.triu_indices(5, 1)] = rng.uniform(-0.5, 0.5, 10)
        matrix[0, 1] = displacement + rng.normal() * 0.01
        matrix[0, 2] = 0.5 - displacement + rng.normal() * 0.1
        matrices.append(np.float32(np.triu(matrix) + np.triu(matrix, 1).T))
    return matrices, displacements


def only_row(out):
    cohorts.write_tables(out)
    table = pd.read_table(out / "group_qcfc.tsv", na_values="n/a", keep_default_na=False)
    assert list(json.loads((out / "group_qcfc.json").read_text())) == list(table)
    (row,) = table.to_dict("records")
    return row


def expected(edges, displacements):
    """Numbers for edges, shape (n_runs, n_edges): by SciPy, and by the definition of Benjamini and Hochberg."""
    found = []
    for edge in edges.T:
        known = np.isfinite(edge)
        if known.sum() >= 10 and np.ptp(edge[known]) > 0:
            found.append(stats.pearsonr(edge[known], displacements[known]))
    p = np.sort([one.pvalue for one in found])
    passing = np.flatnonzero(p <= 0.05 * np.arange(1, len(p) + 1) / len(p))
    return {
        "edges": len(found),
        "median_abs_r": pytest.approx(np.median([abs(one.statistic) for one in found]), rel=1e-4),
        "share_significant": pytest.approx(np.mean(p < 0.05)),
        "share_significant_fdr": pytest.approx((passing.max(initial=-1) + 1) / len(p)),
    }


def upper(matrices):
    return np.array([matrix[np.triu_indices(5, 1)] for matrix in matrices], np.float64)


@pytest.mark.parametrize("n_runs", [10, 23])
def test_every_edge_against_scipy(tmp_path, n_runs):
    matrices, displacements = made(n_runs)
    for k, (matrix, displacement) in enumerate(zip(matrices, displacements, strict=True)):
        write_run(tmp_path, k, matrix, displacement)
    row = only_row(tmp_path)
    numbers = expected(upper(matrices), displacements)
    assert 0 < numbers["share_significant_fdr"].expected < 1
    assert {key: row[key] for key in numbers} == numbers
    assert (row["atlas"], row["stat"], row["runs"], row["runs_used"]) == ("A", "pearsoncorrelation", n_runs, n_runs)
    assert np.isnan([row["remark"], row["denoising"]]).all()


def test_regions_that_some_runs_or_all_have_lost(tmp_path):
    matrices, displacements = made(14)
    for k, matrix in enumerate(matrices):
        matrix[4] = matrix[:, 4] = np.nan  # lost in all
        if k < 3:  # also in the first run, which the sums are relative to
            matrix[3] = matrix[:, 3] = np.nan
        if k < 6:  # leaves 8 runs
            matrix[0, 2] = matrix[2, 0] = np.nan
        matrix[1, 2] = matrix[2, 1] = 0.25
        write_run(tmp_path, k, matrix, displacements[k])
    numbers = expected(upper(matrices), displacements)
    assert numbers["edges"] == 4
    row = only_row(tmp_path)
    assert {key: row[key] for key in numbers} == numbers


@pytest.mark.parametrize(
    ("n_runs", "same", "remark"),
    [(9, False, "9 runs, expected 10 or more."), (12, True, "No edge and mean FD that both differ between runs.")],
)
def test_without_numbers_it_says_why(tmp_path, n_runs, same, remark):
    matrices, displacements = made(n_runs)
    for k, matrix in enumerate(matrices):
        write_run(tmp_path, k, matrix, 0.25 if same else displacements[k])
    row = only_row(tmp_path)
    assert row["remark"] == remark
    assert row["runs"] == n_runs
    assert np.isnan([row[key] for key in ("edges", "median_abs_r", "share_significant", "share_significant_fdr")]).all()


def test_matrices_that_do_not_fit_are_counted_and_left_out(tmp_path):
    matrices, displacements = made(16)
    paths = [write_run(tmp_path, k, matrix, displacements[k]) for k, matrix in enumerate(matrices[:15])]
    write_run(tmp_path, 15, matrices[15], displacements[15], names=[*REGIONS[:4], "f"])
    paths[3].unlink()
    paths[5].write_text("x" * paths[5].stat().st_size)
    content = paths[7].read_text()
    paths[7].write_text(re.sub(r"\t1\.0\t[-.0-9]+", "\t1.0\tone", content, count=1))
    paths[9].write_text(content[:-3] + "\n\n\n")
    row = only_row(tmp_path)
    good = [k for k in range(15) if k not in (3, 5, 7, 9)]
    numbers = expected(upper(matrices)[good], displacements[good])
    assert {key: row[key] for key in numbers} == numbers
    assert row["remark"] == "5 matrices can't be used: group_unused.tsv says why."
    assert (row["runs"], row["runs_used"]) == (16, 11)
    for k in (0, 1):
        paths[k].unlink()
    row = only_row(tmp_path)
    assert row["remark"] == "9 runs, expected 10 or more. 7 matrices can't be used: group_unused.tsv says why."
    assert np.isnan(row["edges"])


def test_runs_without_displacement_or_made_in_another_way_do_not_count(tmp_path):
    matrices, displacements = made(14)
    for k, matrix in enumerate(matrices):
        known = None if k == 2 else displacements[k]
        write_run(tmp_path, k, matrix, known, made="m0" if k in (4, 5) else "m1")
    row = only_row(tmp_path)
    chosen = [k for k in range(14) if k not in (2, 4, 5)]
    numbers = expected(upper(matrices)[chosen], displacements[chosen])
    assert {key: row[key] for key in numbers} == numbers
    assert row["remark"] == "2 runs were made with other options and aren't used."


def test_evenly_spaced_runs_stand_for_many(tmp_path, monkeypatch):
    matrices, displacements = made(40)
    paths = [write_run(tmp_path, k, matrix, displacements[k]) for k, matrix in enumerate(matrices)]
    typical = statistics.median_high(path.stat().st_size for path in paths)
    monkeypatch.setattr(matrices_of_group, "MOST_BYTES", 14 * typical)
    row = only_row(tmp_path)
    chosen = [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39]
    numbers = expected(upper(matrices)[chosen], displacements[chosen])
    assert {key: row[key] for key in numbers} == numbers
    assert row["remark"] == ("A sample: 14 evenly spaced runs of 40, since reading all matrices would take too long.")
    assert (row["runs"], row["runs_used"]) == (40, 14)
    monkeypatch.setattr(matrices_of_group, "LARGEST", typical - 1)
    assert only_row(tmp_path)["remark"] == (
        f"Half of the matrices have {typical} bytes or more; at most {typical - 1} are read."
    )


def test_a_row_for_each_kind_of_matrix(tmp_path):
    matrices, displacements = made(30)
    kinds = [(None, "pearsoncorrelation"), ("x", "pearsoncorrelation"), (None, "covariance")]
    for k, matrix in enumerate(matrices):
        denoising, stat = kinds[k % 3]
        write_run(tmp_path, k, matrix, displacements[k], denoising=denoising, stat=stat, made=f"m{k % 3}")
    cohorts.write_tables(tmp_path)
    table = pd.read_table(tmp_path / "group_qcfc.tsv", keep_default_na=False)
    assert table[["denoising", "stat", "runs"]].to_numpy().tolist() == [
        ["n/a", "covariance", 10],
        ["n/a", "pearsoncorrelation", 10],
        ["x", "pearsoncorrelation", 10],
    ]
    numbers = expected(upper(matrices[1::3]), displacements[1::3])
    assert table["median_abs_r"].astype(float)[2] == numbers["median_abs_r"]


def test_the_page_shows_the_numbers(tmp_path):
    """Columns that no row has a value for, such as a remark, are left out."""
    matrices, displacements = made(30)
    for k, matrix in enumerate(matrices):
        write_run(tmp_path, k, matrix, displacements[k], denoising=("x", "y")[k < 11], made=f"m{k < 11}")
    page = summarize(tmp_path).paths[0].read_text("utf-8")
    section = page.partition("<h2 id='qcfc'>")[2].partition("<h2")[0]
    section = re.sub("</?span[^>]*>", "", section)
    rows = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", section)]
    numbers = [expected(upper(matrices)[of], displacements[of]) for of in (slice(11, None), slice(0, 11))]
    shares = ("share_significant", "share_significant_fdr")
    shown = [
        [f"A {name} pearsoncorrelation", *map(str, (n, n, one["edges"])), f"{one['median_abs_r'].expected:.3f}"]
        + [f"{one[key].expected * 100:.1f} %" for key in shares]
        for name, n, one in zip("xy", (19, 11), numbers, strict=True)
    ]
    assert rows[1:] == shown
    assert rows[0] == ["Matrices", "Runs", "Runs used", "Edges", "Median |r|", "p &lt; 0.05", "p &lt; 0.05, FDR"]
    assert "the nearer it is to chance, the less motion is left" in section
    assert "<a href='#qcfc'>Motion in connectivity</a>" in page


def test_the_page_says_why_there_are_no_numbers(tmp_path):
    for k, (matrix, displacement) in enumerate(zip(*made(9), strict=True)):
        write_run(tmp_path, k, matrix, displacement)
    page = summarize(tmp_path).paths[0].read_text("utf-8")
    cells = re.findall("<td[^>]*>(.*?)</td>", page.partition("<h2 id='qcfc'>")[2].partition("<h2")[0])
    assert cells == ["<span class='whole'>A pearsoncorrelation</span>", "9", "9", "9 runs, expected 10 or more."]
