"""Names of runs, tables and masks that contradict how they are paired: refused; tables found next to their runs."""

import shlex

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import cli
from gpumask.bids import Run, read_manifest
from gpumask.bids.names import identifying_entities
from gpumask.bids.pairing import check_pairs, confounds_beside, matches

AFFINE = np.diag([3.0, 3, 3, 1])
N_VOLUMES = 40
SPACE = "space-MNI152NLin6Asym"


def bold(run):
    return f"{run}_{SPACE}_desc-preproc_bold.nii.gz"


def table(run):
    return f"{run}_desc-confounds_timeseries.tsv"


def make(folder, runs, seed=0):
    """Runs of one region with noise, and for each a table of one confound; the noise and the confound by run."""
    rng = np.random.default_rng(seed)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), "i2"), AFFINE), folder / "a.nii.gz")
    made = {}
    for run in runs:
        series, confound = rng.normal(1000, 20, N_VOLUMES), rng.normal(size=N_VOLUMES)
        data = np.broadcast_to(series, (4, 4, 4, N_VOLUMES)).astype("f8")
        nib.save(nib.Nifti1Image(data, AFFINE), folder / bold(run))
        pd.DataFrame({"csf": confound}).to_csv(folder / table(run), sep="\t", index=False)
        made[run] = series, confound
    return made


def without(series, confound):
    """Residuals of a line fit, by hand, with the mean that removing a centred confound leaves."""
    centred = confound - confound.mean()
    return series - centred * (centred @ series) / (centred @ centred)


def run(line):
    return cli.main(shlex.split(line))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result(out, name):
    return np.loadtxt(next(out.glob(f"{name}_{SPACE}_*_timeseries.tsv")), skiprows=1)


def test_shell_sorts_tables_otherwise_than_runs(folder, capsys):
    """fMRIPrep's issue 2365: ``*_bold`` lists run-2 first, ``*_timeseries`` the run without an entity."""
    make(folder, ["sub-01_task-rest", "sub-01_task-rest_run-2"])
    images = " ".join(sorted(path.name for path in folder.glob("*_bold.nii.gz")))
    tables = " ".join(sorted(path.name for path in folder.glob("*_timeseries.tsv")))
    assert run(f"extract {images} --confounds {tables} --atlas a.nii.gz --out o") == 2
    error = capsys.readouterr().err
    for wrong in ("sub-01_task-rest", "sub-01_task-rest_run-2"):
        assert table(wrong) in error
        assert bold(wrong) in error
    assert not (folder / "o").exists()


@pytest.mark.parametrize("how", ["auto", "in order"])
def test_each_run_is_cleaned_with_its_own_table(folder, how):
    made = make(folder, ["sub-01_task-rest", "sub-01_task-rest_run-2", "sub-01_task-rest_run-3"])
    names = sorted(made, reverse=True)
    tables = "auto" if how == "auto" else " ".join(map(table, names))
    assert run(f"extract {' '.join(map(bold, names))} --confounds {tables} --atlas a.nii.gz --out o") == 0
    for name, (series, confound) in made.items():
        np.testing.assert_allclose(
            result(folder / "o", name) - result(folder / "o", name).mean(),
            without(series, confound) - series.mean(),
            atol=1e-8,
        )


@pytest.mark.parametrize(
    ("file", "run_path", "expected"),
    [
        ("sub-01_task-rest_desc-confounds_timeseries.tsv", bold("sub-01_task-rest_run-2"), True),
        ("sub-01_task-rest_run-2_desc-confounds_timeseries.tsv", bold("sub-01_task-rest"), False),
        ("sub-01_task-rest_run-02_timeseries.tsv", bold("sub-01_task-rest_run-2"), True),
        ("sub-02_task-rest_timeseries.tsv", bold("sub-01_task-rest"), False),
        ("sub-01_ses-1_task-rest_timeseries.tsv", bold("sub-01_ses-2_task-rest"), False),
        ("sub-01_task-rest_acq-a_timeseries.tsv", bold("sub-01_task-rest_acq-b"), False),
        ("sub-01_task-rest_dir-AP_timeseries.tsv", bold("sub-01_task-rest_dir-PA"), False),
        ("sub-01_task-rest_space-T1w_res-2_desc-brain_mask.nii.gz", bold("sub-01_task-rest"), True),  # the space's rule
        ("sub-01_task-rest_echo-1_part-mag_desc-brain_mask.nii.gz", bold("sub-01_task-rest"), True),
        ("sub-01_label-GM_desc-brain_mask.nii.gz", bold("sub-01_task-rest"), True),
        ("tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz", bold("sub-01_task-rest"), True),
        ("sub-01_task-rest_run-1_bold_confounds.tsv", bold("sub-01_task-rest_run-2"), False),  # fMRIPrep 1.0
        ("sub-01_task-rest_run-1_bold_confounds.tsv", "sub-01_task-rest_run-1_bold_space-X_preproc.nii.gz", True),
        ("task-rest_run-1_confounds.tsv", bold("sub-01_task-rest_run-2"), False),
        ("confounds.tsv", bold("sub-01_task-rest"), True),
        ("my-table.tsv", "your-run.nii.gz", True),  # looks so, but isn't BIDS
        ("sub-01/func/confounds.tsv", "sub-02/func/bold.nii.gz", False),
        ("sub-01/ses-1/func/confounds.tsv", "sub-01/ses-2/func/bold.nii.gz", False),
        ("sub-01/func/confounds.tsv", f"sub-02/func/{bold('sub-02_task-rest')}", False),
        ("derivatives/sub-01/confounds.tsv", "raw/sub-01/func/bold.nii.gz", True),
        ("sub-lab/sub-01_task-rest_timeseries.tsv", f"/data/sub-01/func/{bold('sub-01_task-rest')}", True),
    ],
)
def test_matches(file, run_path, expected):
    assert matches(file, run_path) is expected


def test_identifying_entities_of_other_names_are_none():
    assert identifying_entities("my-run_bold.nii.gz") == {}
    assert identifying_entities("sub-01_task-a_task-b_bold.nii.gz") == {}


def test_a_less_specific_table_is_wrong_only_if_a_better_one_was_given():
    runs = [Run(bold("sub-1_task-x_run-1"), table("sub-1_task-x")), Run(bold("sub-1_task-x_run-2"), "own.tsv")]
    check_pairs(runs, "")
    runs = [runs[0], Run(bold("sub-1_task-x_run-2"), table("sub-1_task-x_run-1"))]
    with pytest.raises(ValueError, match=rf"{table('sub-1_task-x')} isn't of .*, but {table('sub-1_task-x_run-1')} is"):
        check_pairs(runs, "")


@pytest.mark.parametrize("kind", ["confounds", "mask"])
def test_manifests(folder, capsys, kind):
    runs = ["sub-01_task-rest_run-1", "sub-01_task-rest_run-2"]
    make(folder, runs)
    names = {"confounds": table, "mask": lambda name: f"{name}_desc-brain_mask.nii.gz"}[kind]
    for name in runs:
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), "u1"), AFFINE), f"{name}_desc-brain_mask.nii.gz")
    swapped = pd.DataFrame({"bold": map(bold, runs), kind: map(names, runs[::-1])})
    swapped.to_csv("runs.tsv", sep="\t", index=False)
    with pytest.raises(ValueError, match=f"{names(runs[1])} isn't of .*{bold(runs[0])}"):
        read_manifest("runs.tsv")
    for option in ("", "--dry-run"):
        assert run(f"cohort runs.tsv out participant --atlas a.nii.gz {option}") == 2
        assert f"{names(runs[1])} isn't of" in capsys.readouterr().err
        assert not (folder / "out").exists()
    swapped[kind] = list(map(names, runs))
    swapped.to_csv("runs.tsv", sep="\t", index=False)
    assert run("cohort runs.tsv out participant --atlas a.nii.gz") == 0


def test_a_mask_of_another_subject(folder, capsys):
    make(folder, ["sub-01_task-rest", "sub-02_task-rest"])
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), "u1"), AFFINE), "sub-01_task-rest_desc-brain_mask.nii.gz")
    line = "--atlas a.nii.gz --mask sub-01_task-rest_desc-brain_mask.nii.gz --out o"
    assert run(f"extract {bold('sub-01_task-rest')} {line}") == 0
    assert run(f"extract {bold('sub-01_task-rest')} {bold('sub-02_task-rest')} {line} --overwrite") == 2
    assert "sub-01_task-rest_desc-brain_mask.nii.gz isn't of sub-02_task-rest" in capsys.readouterr().err


# --confounds auto


def test_the_most_specific_table_is_found(folder):
    make(folder, ["sub-01_task-rest", "sub-01_task-rest_run-2", "sub-01_task-restful"])
    for name in ("sub-01_task-rest", "sub-01_task-rest_run-2"):
        assert confounds_beside(folder / bold(name)) == folder / table(name)
    (folder / table("sub-01_task-rest_run-2")).unlink()
    assert confounds_beside(folder / bold("sub-01_task-rest_run-2")) == folder / table("sub-01_task-rest")
    (folder / table("sub-01_task-rest")).rename("sub-01_task-rest_desc-confounds_regressors.tsv")
    found = confounds_beside(folder / "sub-01_task-rest_echo-1_bold.nii.gz")
    assert found.name == "sub-01_task-rest_desc-confounds_regressors.tsv"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (bold("sub-02_task-rest"), "has no confounds table next to it, expected sub-02_task-rest_desc-confounds_"),
        ("other.nii.gz", "isn't a BIDS name, so its confounds table can't be found: give it"),
        (bold("sub-01_task-rest"), "has 2 confounds tables: sub-01_task-rest_desc-confounds_regressors.tsv, sub-01"),
    ],
)
def test_a_table_that_isnt_found(folder, capsys, name, message):
    make(folder, ["sub-01_task-rest"])
    (folder / "sub-01_task-rest_desc-confounds_regressors.tsv").touch()
    nib.save(nib.load(bold("sub-01_task-rest")), name)
    assert run(f"extract {name} --atlas a.nii.gz --confounds auto --out o") == 1
    assert f"{name} {message}" in capsys.readouterr().err
    assert list((folder / "o").iterdir()) == []
