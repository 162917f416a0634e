"""Options that name several files in one text."""

from pathlib import Path

import pytest

from gpumask.cli.paths import absolute_paths, joined_paths, named_path, split_name, split_paths


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a+b").mkdir()
    for name in ("a", "b", "c.nii", "x=y", "a+c.nii", "a+b/c.nii", "d=1+c.nii"):
        Path(name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "name", "paths"),
    [
        ("c.nii", "", ["c.nii"]),
        ("N=c.nii", "N", ["c.nii"]),
        ("N=a+b", "N", ["a+b"]),  # the longest name that exists
        ("N=b+a", "N", ["b", "a"]),
        ("b+a+c.nii", "", ["b", "a+c.nii"]),
        ("N=a+b/c.nii+a+b/c.nii", "N", ["a+b/c.nii", "a+b/c.nii"]),
        ("x=y", "", ["x=y"]),
        ("x=y+b", "", ["x=y", "b"]),
        ("N=x=y+b", "N", ["x=y", "b"]),
        ("N=b+x=y", "N", ["b", "x=y"]),
        ("d=1+c.nii", "", ["d=1+c.nii"]),
        ("a+n/a", "", ["a", "n/a"]),
        ("n/a", "", ["n/a"]),
        ("N=no.nii", "N", ["no.nii"]),
        ("N=b+no.nii", "N", ["b", "no.nii"]),
        ("b+", "", ["b", ""]),
        ("", "", [""]),
    ],
)
def test_name_and_paths(text, name, paths):
    assert split_paths(text) == (name, paths)


def test_absolute_paths_are_split_again_as_before(folder):
    for text in ("c.nii", "N=b+a", "N=a+b/c.nii+x=y", "n/a", "a+c.nii+b", "b+n/a"):
        name, paths = split_paths(text)
        expected = [path if path == "n/a" else str(folder / path) for path in paths]
        assert split_paths(absolute_paths(text, joined_paths)) == (name, expected)


def test_named_paths_have_no_plus(folder):
    """Such as specifications of denoising: 24p+gsr."""
    assert absolute_paths("N=b+a", named_path) == "N=b+a"
    assert absolute_paths("N=x=y", named_path) == "N=x=y"
    assert absolute_paths("x=y", named_path) == str(folder / "x=y")
    assert absolute_paths("N=b", named_path) == f"N={folder}/b"
    assert split_name("N=b") == ("N", "b")
