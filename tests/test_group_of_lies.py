"""The group step of a folder half of whose files aren't what the records say: no wrong number, each file named once."""

import json

import numpy as np
import pandas as pd
import pytest

from gpumask.cli import main

from . import cohorts

pytest.importorskip("pyarrow")
N_RUNS = 40
EDGES = "group_atlas-Toy_stat-pearsoncorrelation_relmat"


def ragged(path):
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, second.rstrip("\n").replace(second[-2], "\t", 1) + "\n", *rest]))


def with_other_regions(path):
    """One region less; the record has the new size."""
    table = pd.read_table(path, index_col=0, keep_default_na=False).iloc[:-1]
    table = table[list(table.index)] if len(table.columns) > 1 else table
    path.write_text(table.to_csv(sep="\t"))


def without_numbers(path):
    table = pd.read_table(path, index_col=0)
    table[:] = np.nan
    path.write_text(table.to_csv(sep="\t", na_rep="n/a"))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_symmetry(path):
    *lines, last = path.read_text().splitlines(keepends=True)
    node, _, rest = last.split("\t", 2)
    path.write_text("".join([*lines, "\t".join([node, "0.125", rest])]))


LIES = {  # the kind of file, what is done to it, whether its record has its new size
    "record": ("record", cut, False),
    "empty record": ("record", lambda path: path.write_text(""), False),
    "no coverage": ("coverage", lambda path: path.unlink(), False),
    "ragged coverage": ("coverage", ragged, True),
    "coverage of others": ("coverage", with_other_regions, True),
    "cut matrix": ("relmat", cut, False),
    "matrix of others": ("relmat", with_other_regions, True),
    "matrix of nothing": ("relmat", without_numbers, True),
    "matrix of two halves": ("relmat", without_symmetry, True),
    "cut series": ("timeseries", cut, True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cohort; each second run lies, the first one among them."""
    folder = tmp_path_factory.mktemp("lies")
    cohorts.make_cohort(folder / "d", N_RUNS, bad=False)
    cohorts.make_atlases(folder)
    words = ["cohort", folder / "d", folder / "out", "participant", "--atlas", folder / "atlas-Toy_dseg.nii.gz"]
    assert main([str(word) for word in [*words, "--device", "cpu", "--quiet"]]) == 0
    return folder


def lie(out):
    """Falsify a file of each second run; returns its path by kind of file."""
    lies = {}
    for k, record in enumerate(sorted((out / "logs").glob("*.json"))[::2]):
        kind, change, is_recorded = list(LIES.values())[k % len(LIES)]
        content = json.loads(record.read_text())
        name = {"coverage": "coverage_bold", "relmat": "relmat", "timeseries": "timeseries"}.get(kind)
        (output,) = [one for one in content["outputs"] if name and one["path"].endswith(f"{name}.tsv")] or [None]
        path = record if output is None else out / output["path"]
        change(path)
        if is_recorded:
            output["size"] = path.stat().st_size
            record.write_text(json.dumps(content))
        lies.setdefault(kind, []).append(path)
    return lies


def test_half_of_the_files_lie(folder, capsys):
    out = folder / "out"
    lies = lie(out)
    words = ["cohort", str(folder / "d"), str(out), "group", "--store", str(folder / "all.parquet")]
    assert main(words) == 1
    stderr = capsys.readouterr().err
    listed = pd.read_table(out / "group_unused.tsv")
    false = sorted(path.relative_to(out).as_posix() for paths in lies.values() for path in paths)
    assert listed["file"].tolist() == false
    assert set(listed["reason"][listed["file"].str.endswith("coverage_bold.tsv")]) == {
        *("No such file or directory", "row 1 doesn't have 1 numbers", "has other regions than most")
    }
    assert stderr.count("\n") == 1
    assert f"Unusable files: {N_RUNS // 2}, listed in {out}/group_unused.tsv. The first: " in stderr

    lost = {path.stem for path in lies["record"]}

    def read(kind, **options):
        """The true tables of a kind whose records are true."""
        paths = set(out.rglob(f"sub-*{kind}.tsv")) - set(lies[kind.partition("_")[0]])
        used = [
            path for path in sorted(paths) if path.name.replace("_atlas-Toy", "").partition("_stat-")[0] not in lost
        ]
        return [pd.read_table(path, **options) for path in used]

    matrices = [table.to_numpy() for table in read("relmat", index_col=0)]
    assert len(matrices) == N_RUNS - len(lies["record"]) - len(lies["relmat"])
    mean = pd.read_table(out / f"{EDGES}.tsv", index_col=0).to_numpy()
    others = ~np.eye(len(mean), dtype=bool)
    z = np.arctanh([matrix[others] for matrix in matrices])
    known = np.isfinite(z).sum(axis=0)
    expected = np.tanh(np.divide(np.nansum(z, axis=0), known, out=np.full(len(known), np.nan), where=known > 0))
    np.testing.assert_allclose(mean[others], expected, rtol=1e-6)
    assert json.loads((out / f"{EDGES}.json").read_text())["NumberOfRunsUsed"] == len(matrices)

    series = read("timeseries")
    stored = pd.read_parquet(folder / "all.parquet")
    assert len(series) == N_RUNS - len(lies["record"]) - len(lies["timeseries"])
    np.testing.assert_array_equal(stored[list(series[0])].to_numpy(), np.concatenate(series))

    coverage = read("coverage_bold", index_col=0)
    assert len(coverage) == N_RUNS - len(lies["record"]) - len(lies["coverage"])
    page = (out / "cohort.html").read_text()
    assert (
        f"6 regions, {len(coverage)} runs. Skipped, as unreadable or with other regions: {len(lies['coverage'])} tables"
        in page
    )
    assert f"Mean coverage {np.nanmean(np.concatenate(coverage)):.3f}." in page
    assert len(pd.read_table(out / "group_quality.tsv")) == N_RUNS - len(lies["record"])
