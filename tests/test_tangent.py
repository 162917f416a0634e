"""Tangent space of a cohort against nilearn's ConnectivityMeasure; what is refused."""

import json
import shutil

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
from gpumask.cohort.stored import read_record
from gpumask.cohort.tangent import TangentSpaces
from gpumask.confounds.denoising import Denoising

from . import cohorts
from .helpers import save


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A cohort of four runs; motion has censored some volumes. Inner lies in the masks; Toy has a lost region."""
    folder = tmp_path_factory.mktemp("tangent")
    cohorts.make_cohort(folder / "d", 4, bad=False)
    cohorts.make_atlases(folder)
    labels = np.zeros((9, 10, 8), np.int16)
    labels[1:-1] = np.array([1, 1, 2, 2, 3, 4, 5])[:, None, None]
    save(folder / "atlas-Inner_dseg.nii.gz", labels, np.diag([3.0, 3, 3, 1]))
    atlases = tuple(AtlasFile(folder / f"atlas-{name}_dseg.nii.gz") for name in ("Toy", "Inner"))
    options = {"confounds": {"fd_threshold": 0.38}, "min_time": 0, "device": "cpu", "min_dof": 2}
    configuration = Configuration(atlases, folder / "out", {"detrend": True}, **options)
    assert all(not record.error for record in run_cohort(configuration, find_runs(folder / "d")[0]))
    return folder / "out"


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "out")


def frames(out, atlas="Inner"):
    return [pd.read_table(path) for path in sorted(out.rglob(f"*_atlas-{atlas}_*_timeseries.tsv"))]


def test_against_nilearn(out):
    paths, refused, _ = summarize(out, tangent=True)
    rows, mean = paths[-2:]
    assert rows == out / "group_atlas-Inner_stat-tangent_relmat.npy"
    assert mean == out / "group_atlas-Inner_stat-geometricmean_relmat.tsv"
    signals = [((table - table.mean()) / table.std(ddof=0)).to_numpy() for table in frames(out)]
    assert len({len(one) for one in signals}) > 1  # censored
    measure = ConnectivityMeasure(kind="tangent", standardize=False, vectorize=True)
    np.testing.assert_allclose(np.load(rows), measure.fit_transform(signals), rtol=1e-4, atol=1e-5)
    table = pd.read_table(mean, index_col="Node")
    np.testing.assert_allclose(table, measure.mean_, rtol=1e-5, atol=1e-7)
    assert list(table) == list(map(str, table.index)) == list(frames(out)[0])
    sidecar = json.loads(rows.with_suffix(".json").read_text())
    assert sidecar["Runs"] == sorted(path.stem for path in out.glob("logs/*.json"))
    assert len(sidecar["Shrinkage"]) == 4
    assert all(0 < shrinkage <= 1 for shrinkage in sidecar["Shrinkage"])
    (message,) = refused
    assert message.startswith("Toy mean: sub-01/func/sub-01_task-rest_run-1_")
    assert message.endswith(
        "has regions without signal: Toy10, Toy50, Toy99. A tangent space needs all regions in all runs: exclude the "
        "run, or use an atlas without these regions."
    )
    assert cohorts.left_over(out) == []


def written(out):
    """What `gpumask.cohort.group.summarize` writes of tangent spaces."""
    spaces = TangentSpaces()
    for path in sorted(out.glob("logs/*.json")):
        spaces.add(read_record(path))
    return spaces.write(out)


def test_rows_of_censored_volumes_do_not_count(out):
    written(out)
    rows = out / "group_atlas-Inner_stat-tangent_relmat.npy"
    expected = rows.read_bytes()
    path = min(out.rglob("*_atlas-Inner_*_timeseries.tsv"))
    sidecar = json.loads(path.with_suffix(".json").read_text())
    lines = path.read_text().splitlines(keepends=True)
    for volume in sidecar["CensoredVolumes"]:
        lines.insert(volume + 1, "\t".join(["0.25"] * 5) + "\n")
    path.write_text("".join(lines))
    path.with_suffix(".json").write_text(json.dumps({**sidecar, "OutputType": "interpolated"}))
    record_path = min(out.glob("logs/*.json"))
    record = json.loads(record_path.read_text())
    for output in record["outputs"]:
        if output["path"] == path.relative_to(out).as_posix():
            output["size"] = path.stat().st_size
    record_path.write_text(json.dumps(record))
    written(out)
    assert rows.read_bytes() == expected


def refusals(out):
    rows = out / "group_atlas-Inner_stat-tangent_relmat.npy"
    _, refused = written(out)
    assert not rows.exists()
    return {message.split(":")[0]: message for message in refused}["Inner mean"]


def test_one_run_is_refused(out):
    for path in sorted(out.glob("logs/*.json"))[1:]:
        path.unlink()
    assert refusals(out).endswith("_timeseries.tsv is the only run. A tangent space needs 2 runs or more.")


def test_runs_made_in_several_ways_are_refused(out):
    path = max(out.glob("logs/*.json"))
    content = path.read_text()
    (made,) = {one["made"] for one in json.loads(content)["outputs"] if "atlas-Inner" in one["path"]}
    path.write_text(content.replace(made, "0" * 16))
    assert "1 of 4 runs were made with other options or of another atlas than sub-01" in refusals(out)


@pytest.mark.parametrize("change", ["cut", "sidecar", "volumes", "missing"])
def test_another_table_than_the_records_is_refused(out, change):
    path = max(out.rglob("*_atlas-Inner_*_timeseries.tsv"))
    sidecar = path.with_suffix(".json")
    if change == "cut":
        path.write_text(path.read_text()[:-30])
    elif change == "sidecar":
        sidecar.write_text("[]")
    elif change == "volumes":
        sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "NumberOfVolumesKept": 5}))
    else:
        path.unlink()
    message = refusals(out)
    assert message.endswith("isn't the one that the run's record names. Do the run again.")
    assert path.name in message


def test_the_option(out, capsys):
    assert main(["cohort", str(out.parent), str(out), "group", "--tangent"]) == 1  # Toy's is refused
    printed, err = capsys.readouterr()
    assert f"{out}/group_atlas-Inner_stat-tangent_relmat.npy\n" in printed
    assert err.startswith("--tangent: refused: Toy mean: ")
    assert main(["cohort", str(out.parent), str(out), "group"]) == 0  # they may not be of these runs
    assert not list(out.glob("group_*tangent*"))
    assert not list(out.glob("group_*geometricmean*"))


def test_names_with_a_denoising(tmp_path):
    """As those of other matrices: the statistic, then the denoising."""
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    labels = np.zeros((9, 10, 8), np.int16)
    labels[2:-2] = np.array([1, 1, 2, 2, 3])[:, None, None]
    save(tmp_path / "atlas-Inner_dseg.nii.gz", labels, np.diag([3.0, 3, 3, 1]))
    denoisings = (Denoising("a", {"columns": ["csf"]}),)
    atlases = (AtlasFile(tmp_path / "atlas-Inner_dseg.nii.gz"),)
    configuration = Configuration(atlases, tmp_path / "out", denoisings=denoisings, min_time=0, device="cpu")
    assert all(not record.error for record in run_cohort(configuration, find_runs(tmp_path / "d")[0]))
    names = [path.name for path in summarize(tmp_path / "out", tangent=True).paths]
    stats = ("pearsoncorrelation", "tangent", "geometricmean")
    expected = [f"group_atlas-Inner_stat-{stat}_desc-a_relmat" for stat in stats]
    assert [name.partition(".")[0] for name in names[3:]] == expected
