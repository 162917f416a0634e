"""Data sets of DataLad and git-annex whose content was only partly fetched."""

import json
import shlex

import pytest

from gpumask import cli
from gpumask.bids.content import absence, check_content

from . import cohorts

LINK = "is a link whose content isn't here (datalad get)"


def drop(path):
    """Leave what git-annex leaves: a link to an object that isn't there."""
    path.unlink()
    path.symlink_to("../../.git/annex/objects/X/Y/MD5E-s1--abc/MD5E-s1--abc")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    cohorts.make_atlases(tmp_path)
    return tmp_path


def run(line):
    return cli.main(shlex.split(line))


def one(folder, pattern):
    return next((folder / "d").rglob(f"*run-1*{pattern}"))


COHORT = "cohort d out participant --atlas atlas-Toy_dseg.nii.gz --confounds-columns csf"


@pytest.mark.parametrize("pattern", ["preproc_bold.nii.gz", "brain_mask.nii.gz", "_timeseries.tsv"])
def test_a_run_without_content_fails_and_is_done_once_it_is_there(folder, capsys, pattern):
    path = one(folder, pattern)
    content = path.read_bytes()
    drop(path)
    assert run(COHORT) == 1
    assert f"{path} {LINK}" in capsys.readouterr().err
    path.unlink()
    path.write_bytes(content)
    assert run(COHORT) == 0
    assert "1 done, 1 skipped" in capsys.readouterr().out


def extract_line(folder):
    image, table = one(folder, "preproc_bold.nii.gz"), one(folder, "_timeseries.tsv")
    return f"extract {image} --confounds {table} --confounds-columns csf --atlas atlas-Toy_dseg.nii.gz --out o"


@pytest.mark.parametrize(
    ("pattern", "code"), [("preproc_bold.nii.gz", 1), ("_timeseries.tsv", 1), ("atlas", 2), ("mask", 2), ("lut", 2)]
)
def test_extract(folder, capsys, pattern, code):
    line, own = extract_line(folder), {"atlas": "atlas-Toy_dseg.nii.gz", "mask": "m.nii.gz", "lut": "l.tsv"}
    path = folder / own[pattern] if pattern in own else one(folder, pattern)
    path.touch()
    drop(path)
    line += f" --{pattern} {path.name}" if pattern in ("mask", "lut") else ""
    assert run(line) == code
    assert LINK in capsys.readouterr().err


def test_extract_finds_a_table_that_isnt_here(folder, capsys):
    path = one(folder, "_timeseries.tsv")
    drop(path)
    line = f"extract {one(folder, 'preproc_bold.nii.gz')} --confounds auto --atlas atlas-Toy_dseg.nii.gz --out o"
    assert run(line) == 1
    assert f"{path} {LINK}" in capsys.readouterr().err


def test_a_manifest(folder, capsys):
    image = one(folder, "preproc_bold.nii.gz")
    drop(image)
    (folder / "runs.tsv").write_text(f"bold\n{image}\n")
    assert run("cohort runs.tsv out participant --atlas atlas-Toy_dseg.nii.gz") == 1
    assert f"names a bold file that {LINK}: {image}" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["bold.json", "timeseries.json"])
def test_json_that_isnt_needed(folder, capsys, pattern):
    """The same tables as with it; its own facts lack in the sidecar."""
    path = one(folder, "preproc_bold.json")
    if pattern == "timeseries.json":
        path = one(folder, "_timeseries.tsv").with_suffix(".json")
        path.touch()
    assert run(f"{COHORT} --detrend") == 0
    before = {file.name: file.read_bytes() for file in (folder / "out" / "sub-01").rglob("*.tsv")}
    assert before
    drop(path)
    assert run(f"{COHORT} --detrend --overwrite") == run(extract_line(folder)) == 0
    assert capsys.readouterr().err == "0/2 runs [00:00<?]\n" * 2
    assert {file.name: file.read_bytes() for file in (folder / "out" / "sub-01").rglob("*.tsv")} == before


def test_json_that_filtering_needs(folder, capsys):
    path = one(folder, "preproc_bold.json")
    drop(path)
    band = "--low-pass 0.1"
    assert run(f"{COHORT} {band}") == run(f"{extract_line(folder)} {band}") == 1
    assert capsys.readouterr().err.count(f"{path} {LINK}, but filtering needs the repetition time") == 2
    assert run(f"{extract_line(folder)} {band} --t-r 2") == 0


def test_an_outer_json_isnt_read_in_its_place(folder, capsys):
    """What the nearer file says isn't known."""
    drop(one(folder, "preproc_bold.json"))
    (folder / "d" / "task-rest_bold.json").write_text(json.dumps({"RepetitionTime": 1.0}))
    assert run(f"{extract_line(folder)} --low-pass 0.1") == 1
    assert LINK in capsys.readouterr().err


def test_json_is_read_once_it_is_there(folder, capsys):
    path = one(folder, "preproc_bold.json")
    content = path.read_bytes()
    drop(path)
    assert run(COHORT) == 0
    path.unlink()
    path.write_bytes(content)
    assert run(COHORT) == 0
    assert "1 done, 1 skipped" in capsys.readouterr().out.splitlines()[-1]


def test_compcor_needs_the_json_of_the_table(folder, capsys):
    pytest.importorskip("nilearn")
    drop_path = one(folder, "_timeseries.tsv").with_suffix(".json")
    drop_path.touch()
    drop(drop_path)
    assert run("cohort d out participant --atlas atlas-Toy_dseg.nii.gz --confounds-strategy compcor") == 1
    assert f"{drop_path} {LINK}" in capsys.readouterr().err


def test_a_subject_s_folder_that_isnt_here(folder, capsys):
    """A subdataset that was linked, not cloned."""
    (folder / "d" / "sub-09").symlink_to("nowhere")
    assert run(COHORT) == 1
    assert f"sub-09: error: {LINK}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"/annex/objects/MD5E-s12345--0123456789abcdef.nii.gz\n", "is a git-annex pointer whose content isn't here"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a Git LFS pointer whose"),
        (b"", None),
        (b"csf\n1\n", None),
    ],
)
def test_pointers_of_unlocked_files(folder, capsys, content, expected):
    image = one(folder, "preproc_bold.nii.gz")
    image.write_bytes(content)
    reason = absence(image)
    assert reason is expected is None or reason.startswith(expected)
    assert run(extract_line(folder)) == 1
    if expected:
        assert f"{image} {expected}" in capsys.readouterr().err


def test_files_that_are_there_or_were_never(folder):
    check_content(None, one(folder, "bold.json"), folder / "no.nii", folder)
    (folder / "good").symlink_to(one(folder, "bold.json"))
    assert absence(folder / "good") is None
