"""Kinds of connectivity in a run's outputs: names, numbers against formulas, sidecars, and adding a kind later."""

import json

import numpy as np
import pandas as pd
import pytest
from nilearn.connectome import ConnectivityMeasure

from gpumask.bids import find_runs
from gpumask.cli import main
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.group import summarize
from gpumask.confounds.denoising import Denoising

from . import cohorts

STATS = ("covariance", "fisherz", "partialcorrelation", "pearsoncorrelation")
KINDS = ("pearson", "partial", "covariance", "fisherz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relmats")
    cohorts.make_cohort(folder / "d", 2, bad=False)
    cohorts.make_atlases(folder)
    return folder


def configured(folder, out, relmats=("pearson",), **options):
    atlases = tuple(AtlasFile(folder / f"atlas-{name}_dseg.nii.gz") for name in ("Toy", "Fine"))
    options = {"confounds": {"fd_threshold": 0.38}, **options}
    options |= {"min_time": 0, "device": "cpu", "relmats": relmats}
    return Configuration(atlases, out, {"detrend": True}, **options)


def statuses(configuration, folder):
    records = list(run_cohort(configuration, find_runs(folder / "d")[0]))
    assert [record.error for record in records] == [""] * len(records)
    return {record.status for record in records}


def states(out):
    """Inode and time of the last change of every output of a run."""
    found = {name: (out / name).stat() for name in cohorts.outputs(out) if name.startswith("sub-")}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in found.items()}


def matrix_of(path):
    return pd.read_table(path, index_col="Node")


def test_each_kind_against_its_formula(folder, tmp_path):
    assert statuses(configured(folder, tmp_path, KINDS), folder) == {"done"}
    tables = sorted(tmp_path.rglob("*_timeseries.tsv"))
    assert len(tables) == 4
    for path in tables:
        series = pd.read_table(path).dropna(axis=1)
        stem = path.name.removesuffix("_stat-mean_timeseries.tsv")
        found = {stat: matrix_of(path.with_name(f"{stem}_stat-{stat}_relmat.tsv")) for stat in STATS}
        lost = set(pd.read_table(path)) - set(series)
        assert lost
        for matrix in found.values():
            assert set(matrix) == set(series) | lost
            assert matrix.loc[list(lost)].isna().all(axis=None)
            assert matrix[list(lost)].isna().all(axis=None)
        known = {stat: matrix.loc[series.columns, series.columns].to_numpy() for stat, matrix in found.items()}
        r = series.corr().to_numpy()
        np.testing.assert_allclose(known["pearsoncorrelation"], r, atol=1e-6)
        np.testing.assert_allclose(known["covariance"], series.cov(), rtol=1e-4, atol=1e-4)
        others = ~np.eye(len(r), dtype=bool)
        np.testing.assert_allclose(known["fisherz"][others], np.arctanh(r[others]), atol=1e-5)
        assert np.isnan(np.diagonal(known["fisherz"])).all()
        scores = ((series - series.mean()) / series.std(ddof=0)).to_numpy()
        (partial,) = ConnectivityMeasure(kind="partial correlation", standardize=False).fit_transform([scores])
        np.testing.assert_allclose(known["partialcorrelation"], partial, atol=1e-5)
        sidecar = json.loads(path.with_name(f"{stem}_stat-partialcorrelation_relmat.json").read_text())
        assert sidecar["Estimator"] == "inverse of the Ledoit-Wolf covariance of z-scored signals"
        assert 0 < sidecar["Shrinkage"] <= 1
        assert sidecar["NumberOfVolumesKept"] == len(series) < sidecar["NumberOfVolumes"]


def test_a_kind_is_added_to_a_finished_folder_without_touching_the_rest(folder, tmp_path):
    out, both = tmp_path / "out", tmp_path / "both"
    assert statuses(configured(folder, out), folder) == {"done"}
    before = states(out)
    assert statuses(configured(folder, out), folder) == {"skipped"}
    assert statuses(configured(folder, out, ("pearson", "partial")), folder) == {"done"}
    after = states(out)
    assert {name: after[name] for name in before} == before
    added = after.keys() - before.keys()
    assert {name.partition("_stat-")[2] for name in added} == {
        f"partialcorrelation_relmat.{end}" for end in ("tsv", "json")
    }
    assert statuses(configured(folder, out, ("partial",)), folder) == {"skipped"}
    assert statuses(configured(folder, out), folder) == {"skipped"}
    statuses(configured(folder, both, ("partial", "pearson")), folder)
    at_once = {name: content for name, content in cohorts.outputs(both).items() if name.startswith("sub-")}
    assert at_once.items() <= cohorts.outputs(out).items()
    assert len(at_once) == len(after)


def test_overwriting_with_fewer_kinds_forgets_the_others(folder, tmp_path):
    assert statuses(configured(folder, tmp_path, KINDS), folder) == {"done"}
    assert statuses(configured(folder, tmp_path, overwrite=True), folder) == {"done"}
    records = [json.loads(path.read_text()) for path in tmp_path.glob("logs/*.json")]
    named = {output["path"] for record in records for output in record["outputs"]}
    tables = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("sub-*/**/*.tsv")}
    assert {name for name in named if name.endswith(".tsv")} == tables
    assert {path.split("_stat-")[1] for path in tables if path.endswith("_relmat.tsv")} == {
        "pearsoncorrelation_relmat.tsv"
    }
    assert summarize(tmp_path).unused.reasons == {}


def test_each_denoising_has_its_matrices_and_means(folder, tmp_path):
    denoisings = tuple(Denoising(name, {"columns": [name]}) for name in ("csf", "cosine00"))
    configuration = configured(folder, tmp_path, ("partial",), denoisings=denoisings, confounds={})
    assert statuses(configuration, folder) == {"done"}
    assert len(list(tmp_path.rglob("sub-*_stat-partialcorrelation_desc-csf_relmat.tsv"))) == 4
    missing = min(tmp_path.rglob("sub-*_atlas-Toy_*_desc-csf_relmat.tsv"))
    content = missing.read_bytes()
    missing.unlink()
    before = states(tmp_path)
    assert statuses(configuration, folder) == {"done", "skipped"}
    assert missing.read_bytes() == content
    assert before.items() <= states(tmp_path).items()
    paths = summarize(tmp_path).paths
    assert [path.name for path in paths[3:]] == [
        f"group_atlas-{atlas}_stat-partialcorrelation_desc-{desc}_relmat.tsv"
        for atlas in ("Fine", "Toy")
        for desc in ("cosine00", "csf")
    ]
    own = [matrix_of(path) for path in sorted(tmp_path.rglob("sub-*_atlas-Fine_*_desc-csf_relmat.tsv"))]
    others = ~np.eye(len(own[0]), dtype=bool)
    z = np.mean([np.arctanh(matrix.to_numpy()[others]) for matrix in own], axis=0)
    mean = matrix_of(tmp_path / "group_atlas-Fine_stat-partialcorrelation_desc-csf_relmat.tsv").to_numpy()
    np.testing.assert_allclose(mean[others], np.tanh(z), rtol=1e-5, atol=1e-6)
    assert "<h3>Fine csf partialcorrelation</h3>" in paths[0].read_text()


def test_the_default_hash_is_that_without_kinds(folder, tmp_path):
    hashes = {configured(folder, tmp_path, kinds).hash for kinds in ((), ("pearson",), ("partial",), KINDS)}
    assert len(hashes) == 4
    assert configured(folder, tmp_path, KINDS).hash == configured(folder, tmp_path, KINDS[::-1]).hash


def test_another_kind_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match="'relmats' must be one of"):
        configured(folder, tmp_path, ("tangent",))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["--relmat"], ["pearsoncorrelation"]),
        (["--relmat", "partial", "covariance"], ["covariance", "partialcorrelation"]),
        (["--relmat", "fisherz", "--relmat", "pearson"], ["fisherz", "pearsoncorrelation"]),
    ],
)
def test_the_option_of_extract(folder, tmp_path, words, expected):
    run = min((folder / "d").rglob("*_bold.nii.gz"))
    atlas = folder / "atlas-Fine_dseg.nii.gz"
    assert main(["extract", str(run), "--atlas", str(atlas), "--out", str(tmp_path), "--device", "cpu", *words]) == 0
    found = [path.name.partition("_stat-")[2].removesuffix("_relmat.tsv") for path in tmp_path.glob("*_relmat.tsv")]
    assert sorted(found) == expected


def test_the_option_of_cohort(folder, tmp_path, capsys):
    words = ["cohort", str(folder / "d"), str(tmp_path), "participant", "--dry-run", "--device", "cpu"]
    words += ["--atlas", str(folder / "atlas-Fine_dseg.nii.gz")]
    assert main([*words, "--relmat", "tangent"]) == 2
    assert "argument --relmat: invalid choice: 'tangent'" in capsys.readouterr().err
    assert main([*words, "--relmat", "partial", "--no-relmat"]) == 2
    assert "--no-relmat contradicts --relmat: drop one of them" in capsys.readouterr().err
    assert main([*words, "--relmat", "partial"]) == 0
