"""The README: its commands and scripts run as they are written, and what it points to exists."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gpumask
from gpumask.bids.names import lookup_table_of
from gpumask.cli import main

from . import cohorts

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "benchmarks/README.md", "tests/DIFFERENCES.md", ".github/CONTRIBUTING.md"]
DOCUMENTS += [".github/CHANGELOG.md"]
README = (ROOT / "README.md").read_text("utf-8")


def commands(name):
    """The words of the indented lines that start with `name`, in order."""
    indented = re.findall(rf"^    ({name} [^\\\n]*(?:\\\n[^\\\n]*)*)$", README, re.M)
    return [shlex.split(text.replace("\\\n", " ")) for text in indented]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the README names, in the working directory."""
    monkeypatch.chdir(tmp_path)
    affine, rng = np.diag([3.0, 3.0, 3.0, 1.0]), np.random.default_rng(0)
    labels = np.repeat(np.arange(4, dtype=np.int16), 180).reshape(8, 9, 10)
    for name in ("atlas.nii.gz", "schaefer.nii.gz", "aal.nii.gz", "atlas-Schaefer400_dseg.nii.gz"):
        cohorts.save(tmp_path / name, labels.transpose(1, 2, 0), affine)
    names = pd.DataFrame({"index": [1, 2, 3], "name": ["a", "b", "c"]})
    for name in ("schaefer.tsv", "atlas-Schaefer400_dseg.tsv"):
        names.to_csv(tmp_path / name, sep="\t", index=False)
    cohorts.make_cohort(tmp_path / "FMRIPREP_DIR", 2, bad=False)
    sources = ["csf", "white_matter", *(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz")]
    kinds = ["", "_derivative1", "_power2", "_derivative1_power2"]
    columns = [f"{source}{kind}" for source in sources for kind in kinds] + ["cosine00"]
    for path in tmp_path.glob("FMRIPREP_DIR/*/func/*.tsv"):
        table = pd.DataFrame(rng.normal(size=(40, len(columns))), columns=columns)
        table.loc[0, [name for name in columns if "derivative1" in name]] = np.nan
        table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    run = next(tmp_path.glob("FMRIPREP_DIR/*/func/*_bold.nii.gz"))
    for name in ("bold.nii.gz", "sub-01_task-rest_bold.nii.gz"):
        (tmp_path / name).write_bytes(run.read_bytes())
    pd.DataFrame(rng.normal(size=(40, 2)), columns=["x", "y"]).to_csv("confounds.tsv", sep="\t", index=False)
    return tmp_path


def test_one_line_is_the_test_command():
    """The expression is that of .ci/run."""
    (line,) = re.findall(r"^    (python3 -m venv .*pytest)$", README, re.M)
    assert line.endswith(".venv/bin/python -m pytest")
    assert len(re.findall(r"^    python3 -m venv .* && \.venv/bin/gpumask demo$", README, re.M)) == 1


def test_scripts_run(folder):
    namespace = {}
    for script in re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S):
        exec(compile(script, "README.md", "exec"), namespace)
    assert namespace["signals"].shape == namespace["medians"].shape == (40, 3)
    assert list(namespace["robust"].coverage_["covered"]) == [180, 180, 180]


def test_extract_runs(folder, monkeypatch):
    ((program, *words),) = commands("gpumask extract")
    assert program == "gpumask"
    monkeypatch.chdir(folder / "FMRIPREP_DIR")
    (folder / "FMRIPREP_DIR" / "atlas.nii.gz").write_bytes((folder / "atlas.nii.gz").read_bytes())
    words = [path for word in words for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    assert main(words) == 0
    assert len(list(Path("timeseries").glob("*_timeseries.tsv"))) == len(list(Path("timeseries").glob("*.json"))) == 2


def test_what_both_commands_check(folder, capsys):
    """What the README says of defaults: dummy scans, kept time, changed options."""
    table, image = re.search(r"`(\S+\.tsv)` for `(\S+\.nii\.gz)`", README).groups()
    assert lookup_table_of(image, [table]) == table
    for path in folder.glob("FMRIPREP_DIR/*/func/*.tsv"):
        confounds = pd.read_table(path)
        confounds["non_steady_state_outlier00"] = [1, *([0] * 39)]
        confounds["framewise_displacement"] = [np.nan, *([0.1] * 38), 9]
        confounds.to_csv(path, sep="\t", index=False, na_rep="n/a")
    runs = sorted(map(str, folder.glob("FMRIPREP_DIR/*/func/*_bold.nii.gz")))
    words = ["extract", *runs, "--atlas", "atlas.nii.gz", "--confounds", "auto", "--confounds-columns", "csf"]
    assert main([*words, "--out", "a"]) == 0
    assert main([*words, "--out", "b", "--dummy-scans", "0"]) == 0
    assert main([*words, "--out", "c", "--fd-threshold", "0.5"]) == 1
    assert "less than the 240 s of --min-time" in capsys.readouterr().err
    assert main([*words, "--out", "c", "--fd-threshold", "0.5", "--min-time", "0"]) == 0
    kept = {out: [len(pd.read_table(path)) for path in Path(out).glob("*_timeseries.tsv")] for out in "abc"}
    assert kept == {"a": [39, 39], "b": [40, 40], "c": [38, 38]}
    words = ["cohort", "FMRIPREP_DIR", "OUT_DIR", "participant", "--atlas", "atlas-Schaefer400_dseg.nii.gz"]
    assert main(words) == 0
    assert main([*words, "--standardize", "psc"]) == 2
    assert main([*words, "--standardize", "psc", "--overwrite"]) == 0


def test_cohort_runs(folder, capsys):
    pytest.importorskip("nilearn")
    (_, *words), *_ = commands("gpumask cohort")
    assert main(words) == 0
    group = re.search(r"`gpumask (cohort FMRIPREP_DIR OUT_DIR group)`", README).group(1)
    assert main(group.split()) == 0
    assert main(words) == 0
    assert "0 done, 2 skipped" in capsys.readouterr().out
    (run,) = folder.glob("OUT_DIR/sub-01/func/*run-1*_timeseries.tsv")
    assert list(pd.read_table(run).columns) == ["a", "b", "c"]
    assert (folder / "OUT_DIR" / "cohort.html").is_file()


def test_options_exist(capsys):
    text = ""
    for command in ("extract", "cohort"):
        assert main([command, "--help"]) == 0
        text += capsys.readouterr().out
    named = set(re.findall(r"`(--[a-z-]+)", README))
    assert len(named) >= 8
    assert named <= set(re.findall(r"--[a-z-]+", text)) | {"--help"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    path = ROOT / name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
        assert (path.parent / link).exists(), link


def test_every_folder_is_named():
    folders = {path.parent.name for path in Path(gpumask.__file__).parent.glob("*/__init__.py")}
    assert folders <= set(re.findall(r"`([a-z]+)/`", README))


def test_modules_that_are_named_exist():
    """In the README and the changelog's new names."""
    root = Path(gpumask.__file__).parents[1]
    moved = re.findall(r"to\s+`(gpumask[.a-z]+)`", (ROOT / ".github" / "CHANGELOG.md").read_text("utf-8"))
    assert len(moved) >= 6
    for name in moved:
        assert (root / f"{name.replace('.', '/')}.py").is_file(), name
    for name in re.findall(r"`([a-z]+\.py)`", README):
        assert (root / "gpumask" / name).is_file(), name
    from gpumask.cohort.executors import run_cohort

    assert "`gpumask.cohort.executors.run_cohort`" in README
    assert callable(run_cohort)
