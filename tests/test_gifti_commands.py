"""GIFTI series in the commands: fMRIPrep's runs of a hemisphere are found with its atlas, or listed, or given."""

import json
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import cli
from gpumask.bids import find_runs
from gpumask.bids.names import run_name
from gpumask.signal import clean
from tests import dense, surfaces

N_TIMES, N_VERTICES, T_R = 150, 40, 2.0
RUNS = ("sub-01_task-rest_run-1", "sub-01_task-rest_run-2", "sub-02_task-rest_run-1")


def bold(k, side):
    return f"d/{RUNS[k][:6]}/func/{RUNS[k]}_hemi-{side}_space-fsaverage5_bold.func.gii"


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    """A current directory with derivatives of both hemispheres, volumes too; and values by run and hemisphere."""
    monkeypatch.chdir(tmp_path)
    rng, values, labels = np.random.default_rng(0), {}, {}
    for k, run in enumerate(RUNS):
        folder = Path(bold(k, "L")).parent
        folder.mkdir(parents=True, exist_ok=True)
        for side in "LR":
            values[k, side] = rng.normal(1000, 30, (N_TIMES, N_VERTICES)).astype("f4")
            path = surfaces.series(Path(bold(k, side)), values[k, side], side)
            path.with_name(path.name.replace(".func.gii", ".json")).write_text(json.dumps({"RepetitionTime": T_R}))
        folder.joinpath(f"{run}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz").touch()
        table = pd.DataFrame(rng.normal(size=(N_TIMES, 2)), columns=["csf", "trans_x"])
        table.to_csv(folder / f"{run}_desc-confounds_timeseries.tsv", sep="\t", index=False)
    for side in "LR":
        labels[side] = rng.integers(0, 4, N_VERTICES).astype("i4")
        surfaces.labels(Path(f"hemi-{side}_atlas-Toy.label.gii"), labels[side], side, {2: f"{side}_V1"})
    return values, labels


def run(line):
    return cli.main([*shlex.split(line), "--device", "cpu"])


def expected(made, k, side):
    values, labels = made
    confounds = pd.read_table(f"d/{RUNS[k][:6]}/func/{RUNS[k]}_desc-confounds_timeseries.tsv")[["csf"]]
    return clean(
        surfaces.by_definition(values[k, side], labels[side]), confounds=confounds, detrend=False, standardize=None
    )


def output(k, side, kind="timeseries.tsv"):
    return f"{RUNS[k][:6]}/func/{RUNS[k]}_hemi-{side}_space-fsaverage5_atlas-Toy{side}_stat-mean_{kind}"


def test_a_cohort_finds_the_runs_of_each_hemisphere(made):
    for side in "LR":
        line = f"cohort d out participant --atlas hemi-{side}_atlas-Toy.label.gii --confounds-columns csf --cifti"
        assert run(line) == 0
        for k in range(len(RUNS)):
            table = pd.read_table(Path("out", output(k, side)))
            assert table.columns.tolist() == ["Parcel 1", f"{side}_V1", "Parcel 3"]
            np.testing.assert_allclose(table, expected(made, k, side), rtol=1e-6)
    sidecar = json.loads(Path("out", output(0, "L", "timeseries.json")).read_text())
    assert sidecar["RepetitionTime"] == T_R
    assert [Path(source).name for source in sidecar["Sources"]] == [
        Path(bold(0, "L")).name, f"{RUNS[0]}_desc-confounds_timeseries.tsv", "hemi-L_atlas-Toy.label.gii"
    ]  # fmt: skip
    series = nib.load(Path("out", output(0, "R", "timeseries.ptseries.nii")))
    parcels = series.header.get_axis(1)
    assert parcels.name.tolist() == ["Parcel 1", "R_V1", "Parcel 3"]
    (vertices,) = parcels.vertices[1].values()
    np.testing.assert_array_equal(vertices, np.flatnonzero(made[1]["R"] == 2))
    group = pd.read_table("out/group_quality.tsv")
    assert sorted(group["name"]) == sorted(Path(output(k, s)).name.split("_atlas-")[0] for k in range(3) for s in "LR")


def test_a_list_of_runs(made):
    lines = [
        "bold\tconfounds",
        *(f"{bold(k, 'R')}\td/sub-01/func/{RUNS[k]}_desc-confounds_timeseries.tsv" for k in (0, 1)),
    ]
    Path("runs.tsv").write_text("\n".join([*lines, ""]))
    assert run("cohort runs.tsv out participant --atlas hemi-R_atlas-Toy.label.gii --confounds-columns csf") == 0
    for k in (0, 1):
        np.testing.assert_allclose(pd.read_table(Path("out", output(k, "R"))), expected(made, k, "R"), rtol=1e-6)


def test_extract(made, capsys):
    line = f"extract {bold(1, 'L')} --atlas hemi-L_atlas-Toy.label.gii --confounds auto --confounds-columns csf --out o"
    assert run(line) == 0
    np.testing.assert_allclose(pd.read_table(Path("o", Path(output(1, "L")).name)), expected(made, 1, "L"), rtol=1e-6)
    assert run(f"extract {bold(1, 'R')} --atlas hemi-L_atlas-Toy.label.gii --out o") == 1
    said = capsys.readouterr().err
    assert "have no grayordinate in common: CIFTI_STRUCTURE_CORTEX_RIGHT of 40 vertices in the first file" in said


def test_finding():
    runs, problems = find_runs("d", grayordinates=True, hemisphere="R", require_confounds=True)
    assert problems == []
    assert [run_name(one) for one in runs] == [f"{name}_hemi-R_space-fsaverage5" for name in RUNS]
    assert [(one.mask, Path(one.sidecar).name) for one in runs] == [
        (None, Path(bold(k, "R")).name.replace(".func.gii", ".json")) for k in range(len(RUNS))
    ]
    for folder in Path("d").glob("*/func"):  # as fMRIPrep before 21
        for path in folder.glob("*hemi-R_space-fsaverage5_bold*"):
            path.rename(path.with_name(path.name.replace("hemi-R_space-fsaverage5", "space-fsaverage5_hemi-R")))
    assert len(find_runs("d", grayordinates=True, hemisphere="R")[0]) == len(RUNS)
    for path in Path("d").glob("*/func/*hemi-L*fsaverage5_bold.func.gii"):
        path.with_name(path.name.replace("fsaverage5", "fsaverage6")).touch()
    with pytest.raises(ValueError, match=r"are in several spaces: fsaverage5 \(3 runs\), fsaverage6 \(3 runs\)\."):
        find_runs("d", grayordinates=True, hemisphere="L")
    assert len(find_runs("d", grayordinates=True, hemisphere="L", space="fsaverage6")[0]) == len(RUNS)


def refused(line, capsys):
    assert run(line) == 2
    return capsys.readouterr().err


def test_nothing_to_find(capsys):
    for path in Path("d").glob("*/func/*hemi-L*"):
        path.unlink()
    assert (
        "has no *_hemi-L_*_bold.func.gii in sub-*/[ses-*/]func of 2 participant(s): expected the derivatives of "
        "fMRIPrep with a space of surfaces, for atlases of a hemisphere (.label.gii). It has "
        "*_desc-preproc_bold.nii.gz, for atlases of volumes."
    ) in refused("cohort d out participant --atlas hemi-L_atlas-Toy.label.gii", capsys)


def test_atlases_of_both_hemispheres(capsys):
    left, right = (Path(f"hemi-{side}_atlas-Toy.label.gii").absolute() for side in "LR")
    assert (
        "Atlases of surfaces (.label.gii) must all be of the same hemisphere, to find its runs in a folder: "
        f"{left}: CIFTI_STRUCTURE_CORTEX_LEFT; {right}: CIFTI_STRUCTURE_CORTEX_RIGHT. Give a command for each, or list "
        "the runs in a table."
    ) in refused(f"cohort d out participant --atlas L={left} R={right}", capsys)
    both = dense.save(dense.labels_image([0, 1], dense.surface([0, 1])), Path("atlas-Both.dlabel.nii").absolute())
    assert f"folder: {both}: CIFTI-2; {left}: CIFTI_STRUCTURE_CORTEX_LEFT. Give" in refused(
        f"cohort d out participant --atlas {both} {left}", capsys
    )


def test_volumes_and_surfaces_cannot_be_mixed(capsys):
    said = refused(
        f"extract {bold(0, 'L')} --atlas d/sub-01/func/{RUNS[0]}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz",
        capsys,
    )
    assert "don't apply to grayordinates" in said or "is empty" in said
    Path("runs.tsv").write_text(f"bold\n{next(Path('d').glob('*/func/*.nii.gz'))}\n")
    said = refused("cohort runs.tsv out participant --atlas hemi-L_atlas-Toy.label.gii", capsys)
    assert "Atlases of grayordinates (" in said
    assert "don't apply to volumes: " in said
