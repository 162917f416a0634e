"""The README's cohort commands, as its lines say, on a real run; they need ../shared/data."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask.cli import main

from .conftest import DATA

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
SECTION = re.search(r"^## Cohorts: gpumask cohort\n(.*?)^## ", README, re.M | re.S)[1]
IMAGE = DATA / "sub-02_task-oneback_run-1_space-MNI152NLin6Asym_res-3_desc-preproc_bold.nii.gz"
ATLAS = DATA / "atlases" / "Schaefer2018_400Parcels_7Networks_order_Tian_Subcortex_S4_3T_MNI152NLin2009cAsym_2mm.nii.gz"
STEM = "sub-02_task-oneback_run-1"
COMPONENTS = [f"a_comp_cor_{k:02}" for k in range(4)]

for needed in ("nilearn", "pyarrow", "matplotlib"):
    pytest.importorskip(needed)
pytestmark = pytest.mark.skipif(not (IMAGE.is_file() and ATLAS.is_file()), reason=f"no real run in {DATA}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of the README's names: two subjects with the run, its table with made signals of tissues, and an atlas."""
    folder, rng = tmp_path_factory.mktemp("readme"), np.random.default_rng(0)
    shutil.copyfile(ATLAS, folder / "atlas-Schaefer400_dseg.nii.gz")
    confounds = pd.read_table(DATA / f"{STEM}_desc-confounds_timeseries.tsv")
    kinds = ("", "_derivative1", "_power2", "_derivative1_power2")
    made = [*COMPONENTS, *(f"{name}{kind}" for name in ("csf", "white_matter") for kind in kinds)]
    own = pd.DataFrame(rng.normal(size=(len(confounds), len(made))), columns=made)
    confounds = pd.concat([confounds.drop(columns=made, errors="ignore"), own], axis=1)
    described = {"Method": "aCompCor", "Mask": "combined", "Retained": True}
    described = {name: {**described, "CumulativeVarianceExplained": (k + 1) / 5} for k, name in enumerate(COMPONENTS)}
    image = nib.load(IMAGE)
    mean = np.asarray(image.dataobj[..., :10]).mean(axis=3)
    mask = nib.Nifti1Image((mean > np.percentile(mean, 70)).astype(np.uint8), image.affine)
    for subject in ("sub-01", "sub-02"):
        func = folder / "FMRIPREP_DIR" / subject / "func"
        func.mkdir(parents=True)
        stem = f"{func}/{STEM.replace('sub-02', subject)}"
        shutil.copyfile(IMAGE, f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz")
        mask.to_filename(f"{stem}_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz")
        confounds.to_csv(f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
        Path(f"{stem}_desc-confounds_timeseries.json").write_text(json.dumps(described))
    (folder / "own.toml").write_text('columns = ["csf", "trans_*"]\nfd_threshold = 0.3\nhigh_pass = 0.01\n')
    return folder


@pytest.fixture
def gpumask(folder, capsys, monkeypatch):
    """Runs a line of a shell in the folder; returns the lines that it prints. It must succeed."""
    monkeypatch.chdir(folder)

    def run(line):
        name, *words = shlex.split(line)
        assert name == "gpumask"
        capsys.readouterr()
        assert main(words) == 0, capsys.readouterr().err
        return capsys.readouterr().out.splitlines()

    return run


def command():
    """The first command: the one with all its options."""
    return re.search(r"^    (gpumask cohort [^\\\n]*(?:\\\n[^\\\n]*)*)$", SECTION, re.M)[1]


def quoted(start):
    """What stands between backticks and begins so."""
    (found,) = set(re.findall(rf"`({re.escape(start)}[^`]*)`", SECTION))
    return found


def installed(folder, line):
    """What a line prints in a shell where the program of this environment is the first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", line], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_command_its_repetition_and_the_group(folder, gpumask):
    assert installed(folder, command())[-1].startswith("2 done, 0 failed")
    out = folder / "OUT_DIR"
    for subject in ("sub-01", "sub-02"):
        name = f"{STEM.replace('sub-02', subject)}_space-MNI152NLin2009cAsym_atlas-Schaefer400"
        table = pd.read_table(out / subject / "func" / f"{name}_stat-mean_timeseries.tsv")
        assert table.shape == (156, 454)
        np.testing.assert_allclose(table.std().dropna(), 1, rtol=1e-5)
        relmat = pd.read_table(out / subject / "func" / f"{name}_stat-pearsoncorrelation_relmat.tsv", index_col=0)
        np.testing.assert_allclose(relmat, table.corr(), atol=2e-6)
        assert (out / subject / "func" / f"{name}_stat-coverage_bold.tsv").is_file()
        assert (out / "logs" / f"{name.partition('_atlas')[0]}.json").is_file()  # as "Resume" says
    assert list(out.glob("logs/runs-*-*.jsonl"))
    assert gpumask(command().replace("\\\n", " "))[-1].startswith("0 done, 2 skipped")  # "Resume: repeat the command"
    assert gpumask(command().replace("\\\n", " ") + " --dry-run")[-1] == "0 to do, 2 done, 0 unusable"
    (out / "cohort.html").unlink()
    assert "OUT_DIR/cohort.html" in gpumask(quoted("gpumask cohort FMRIPREP_DIR OUT_DIR group"))


def test_denoisings_figures_and_the_store(folder, gpumask):
    denoise, store = quoted("--denoise "), quoted("--store ")
    names = [word.partition("=")[0].replace("+", "") for word in shlex.split(denoise)[1:]]
    words = command().replace("OUT_DIR", "denoised").partition("--standardize")[0].replace("\\\n", " ")
    assert gpumask(f"{words} {denoise} --figures {store} --participant-label 01")[-1].startswith("1 done")
    for name in names:
        assert len(list((folder / "denoised").rglob(f"*_desc-{name}_timeseries.tsv"))) == 1
        (stored,) = folder.glob(f"FILE*_desc-{name}.parquet")
        assert pd.read_parquet(stored)["name"].nunique() == 1
    assert list((folder / "denoised").rglob("*.png"))
    assert gpumask(quoted("gpumask info --denoise"))


def test_options_in_a_file_and_parts_of_the_runs(folder, gpumask):
    config = quoted("--config ")
    lines = ['atlas = ["atlas-Schaefer400_dseg.nii.gz"]', quoted("detrend")]
    (folder / config.split()[1]).write_text("\n".join(lines))
    cohort = "gpumask cohort FMRIPREP_DIR parts"
    shard = quoted("--shard ").replace("n", "2")
    for part in "12":
        options = f"{config} {shard.replace('i', part)} {quoted('--nprocs N').replace('N', part)}"
        assert gpumask(f"{cohort} participant {options}")[-1].startswith("1 done")
    assert "parts/cohort.html" in gpumask(f"{cohort} group")
    written = quoted("OUT_DIR/logs/config.toml").replace("OUT_DIR", "parts")
    again = gpumask(f"{cohort} participant --config {written}")
    assert again[-1].startswith("0 done, 2 skipped")
