"""An output folder that others may write to: links, pipes and folders at names that gpumask is about to use."""

import json
import os
import platform
import re
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpumask import files
from gpumask.bids import find_runs
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.page import write_page
from gpumask.cohort.record import recorded_outputs
from gpumask.demo import example_run, write_atlas
from gpumask.reports.masker import Report

from . import cohorts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a cohort needs POSIX locks")
TEXT = "someone's thesis"


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_text(TEXT)
    return path


def plant(kind, path, victim):
    """Put something at a name, as a neighbour or another program may."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling link":
        path.symlink_to(victim.with_name("created"))
    elif kind == "hard link":
        path.hardlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "file":
        path.write_text("left by a killed process")
    elif kind == "socket":
        there = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)  # the name of a socket has at most 107 bytes
        try:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(path.name)
        finally:
            os.fchdir(there)
            os.close(there)
    else:
        path.mkdir()


def check_spared(victim):
    assert victim.read_text() == TEXT
    assert victim.stat().st_nlink <= 2
    assert not victim.with_name("created").exists()


REPLACED = ["link", "dangling link", "hard link", "pipe", "file", "socket"]
NAMES = {"link": "symbolic link", "dangling link": "symbolic link", "pipe": "pipe", "socket": "socket"}
NAMES["folder"] = "folder"


def refusal(path, kind):
    what = f"{path} is a {NAMES[kind]}, but gpumask keeps a file of its own under this name. Remove it."
    return f"^{re.escape(what)}$"


# Single files


@pytest.mark.parametrize("kind", REPLACED)
def test_temporary_and_final_names_are_made_anew(tmp_path, victim, kind):
    paths = [tmp_path / "out" / "table.tsv", tmp_path / "out" / "record.json"]
    for path in (*paths, *(tmp_path / "out" / f".gpumask-run.{k}.part" for k in range(3))):
        plant(kind, path, victim)
    with files.appearing_together(paths, "run") as parts:
        for part in parts:
            files.write(part, ["new"])
    check_spared(victim)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["record.json", "table.tsv"]
    assert [path.read_text() for path in paths if not path.is_symlink()] == ["new", "new"]


@pytest.mark.parametrize("kind", REPLACED)
def test_a_replaced_file_is_made_anew(tmp_path, victim, kind):
    path = tmp_path / "out" / "page.html"
    for name in ("page.html", ".gpumask-page.html.part"):
        plant(kind, path.with_name(name), victim)
    with files.replacing(path) as part:
        files.write(part, ["new"])
    check_spared(victim)
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert list(path.parent.iterdir()) == [path]


def test_folder_at_a_temporary_name_is_an_error(tmp_path, victim):
    path = tmp_path / "out" / "page.html"
    plant("folder", path.with_name(".gpumask-page.html.part"), victim)
    with pytest.raises(FileExistsError, match=refusal(path.with_name(".gpumask-page.html.part"), "folder")):
        files.replacing(path).__enter__()
    plant("folder", path.with_name(".gpumask-run.0.part"), victim)
    with pytest.raises(FileExistsError, match=refusal(path.with_name(".gpumask-run.0.part"), "folder")):
        files.appearing_together([path], "run").__enter__()


@pytest.mark.parametrize("kind", REPLACED)
def test_nothing_is_written_to_a_name_taken_meanwhile(tmp_path, victim, kind):
    path = tmp_path / "out" / "page.html"
    path.parent.mkdir()
    with files.replacing(path) as part:
        plant(kind, part, victim)
        with pytest.raises(FileExistsError, match=r"^\[Errno 17\] File exists: '.*/\.gpumask-page\.html\.part'$"):
            files.write(part, ["new"])
        part.unlink()
        files.write(part, ["new"])
    check_spared(victim)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", NAMES)
def test_lock_and_log_are_refused(tmp_path, victim, kind):
    path = tmp_path / "out" / "name"
    plant(kind, path, victim)
    with pytest.raises(FileExistsError, match=refusal(path, kind)):
        files.locked(path).__enter__()
    with pytest.raises(FileExistsError, match=refusal(path, kind)):
        files.append_line(path, "line")
    check_spared(victim)
    assert os.path.lexists(path)


def test_log_with_a_second_name_is_refused(tmp_path, victim):
    path = tmp_path / "log"
    plant("hard link", path, victim)
    message = f"{path} is a file with 2 names (hard links): a line would be added to all. Remove it."
    with pytest.raises(FileExistsError, match=f"^{re.escape(message)}$"):
        files.append_line(path, "line")
    check_spared(victim)


def test_lock_with_a_second_name_is_a_lock(tmp_path, victim):
    plant("hard link", tmp_path / "lock", victim)
    with files.locked(tmp_path / "lock") as mine:
        assert mine
    check_spared(victim)
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link"])
def test_inputs_of_the_demo_replace_what_is_there(tmp_path, victim, kind):
    out = tmp_path / "out"
    for name in ("atlas-boxes_dseg.nii.gz", "atlas-boxes_dseg.tsv"):
        plant(kind, out / name, victim)
    atlas, lut = write_atlas(example_run(), out)
    check_spared(victim)
    assert atlas.read_bytes()[:2] == b"\x1f\x8b"
    assert lut.read_text().startswith("index\tname\n1\tx0_y0_z0\n")


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link"])
def test_report_replaces_what_is_there(tmp_path, victim, kind):
    plant(kind, tmp_path / "out" / "report.html", victim)
    Report("<p>page</p>").save_as_html(tmp_path / "out" / "report.html")
    check_spared(victim)
    assert (tmp_path / "out" / "report.html").read_text() == "<p>page</p>"


# Cohorts


@pytest.fixture
def cohort(tmp_path):
    """A configuration and two runs."""
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    cohorts.make_atlases(tmp_path)
    configuration = Configuration((AtlasFile(tmp_path / "atlas-Toy_dseg.nii.gz"),), tmp_path / "out", device="cpu")
    return configuration, find_runs(tmp_path / "d")[0]


def done(configuration, runs):
    return sorted((record.status, record.error) for record in run_cohort(configuration, runs))


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link"])
def test_cohort_spares_every_file_that_links_point_to(cohort, victim, kind):
    configuration, runs = cohort
    out, name = configuration.out_dir, runs[0].name
    finals = [path for run in runs for path in configuration.outputs(run, configuration.units[0]).values()]
    for path in [*finals, *(path.with_suffix(".json") for path in finals)]:
        plant(kind, path, victim)
    plant(kind, out / "logs" / f".gpumask-{name}.0.part", victim)
    for k in range(8):
        plant(kind, out / runs[0].folder / f".gpumask-{name}.{k}.part", victim)
    for name in ("cohort.html", "dataset_description.json", ".bidsignore", "store.parquet"):
        plant(kind, out / f".gpumask-{name}.part", victim)
    for name in ("cohort.html", "store.parquet"):
        plant(kind, out / name, victim)
    assert done(configuration, runs) == [("done", ""), ("done", "")]
    write_page(out)
    cohorts.write_store(out, out / "store.parquet")
    assert victim.read_text() == TEXT
    assert victim.stat().st_nlink == 1
    assert not victim.with_name("created").exists()
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    assert cohorts.left_over(out) == []


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_lock_that_is_none_fails_its_run_alone(cohort, victim, kind):
    configuration, runs = cohort
    path = configuration.out_dir / "logs" / f".{runs[0].name}.lock"
    plant(kind, path, victim)
    error = f"{path} is a {NAMES[kind]}, but gpumask keeps a file of its own under this name. Remove it."
    assert done(configuration, runs) == [("done", ""), ("failed", error)]
    check_spared(victim)


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_log_that_is_none_is_reported(cohort, victim, kind):
    configuration, runs = cohort
    path = configuration.out_dir / "logs" / f"runs-{platform.node()}-{os.getpid()}.jsonl"
    plant(kind, path, victim)
    what = f"{path} is a {NAMES[kind]}, but gpumask keeps a file of its own under this name. Remove it."
    assert done(configuration, runs) == [("done", f"The log can't be written: {what}")] * 2
    check_spared(victim)


@pytest.mark.parametrize("name", ["logs", "sub-01", "sub-01/func"])
@pytest.mark.parametrize("there", [True, False])
def test_folder_that_leads_out_is_refused(cohort, tmp_path, name, there):
    configuration, runs = cohort
    out, elsewhere = configuration.out_dir, tmp_path / "elsewhere"
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(elsewhere)
    if there:
        elsewhere.mkdir()
    folder = out / "logs" if name == "logs" else out / runs[0].folder
    error = f'{folder} isn\'t in {out}. Expected a name below that folder, without ".." or a link out of it.'
    if name == "logs":
        with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
            done(configuration, runs)
    else:
        assert done(configuration, runs) == [("failed", error)] * 2
    assert not there or not list(elsewhere.iterdir())
    assert there or not elsewhere.exists()


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../victim", "sub-01/../../victim", "..", ".", "", "link", "folder/victim", "up/victim"],
)
def test_names_that_lead_out(tmp_path, victim, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(victim)
    (out / "folder").symlink_to(tmp_path)
    (out / "up").symlink_to("..")
    with pytest.raises(
        ValueError, match=r"isn't in .*\. Expected a name below that folder, without \"\.\.\" or a link"
    ):
        files.inside(out, name)


@pytest.mark.parametrize("name", ["table..tsv", "..a/b", "sub/table", "link", "folder/table", "annexed"])
def test_names_that_stay_inside(tmp_path, name):
    real, out = tmp_path / "data" / "real", tmp_path / "out"
    (real / "sub").mkdir(parents=True)
    out.symlink_to(real)  # the output folder itself may be a link
    (real / "link").symlink_to("sub/table")
    (real / "folder").symlink_to(real / "sub")
    (real / "annexed").symlink_to("../.git/annex/objects/x/y/MD5-s1--z")
    assert files.inside(out, name) == out / name


@pytest.mark.parametrize("way", ["absolute", "dots", "link"])
def test_record_does_not_point_elsewhere(cohort, tmp_path, way):
    """Page, store, and the removal of outdated outputs stay in the folder, whatever a record names."""
    configuration, runs = cohort
    out = configuration.out_dir
    assert done(configuration, runs) == [("done", ""), ("done", "")]
    secret = tmp_path / "secret" / runs[0].folder
    secret.mkdir(parents=True)
    record = out / "logs" / f"{runs[0].name}.json"
    content = json.loads(record.read_text())
    if way == "link":
        (out / "more").symlink_to(tmp_path / "secret")
    places = {"absolute": f"{tmp_path}/secret", "dots": "../secret", "link": "more"}
    for output in content["outputs"]:
        (tmp_path / "secret" / output["path"]).write_bytes((out / output["path"]).read_bytes())
        output["path"] = f"{places[way]}/{output['path']}"
    record.write_text(json.dumps(content))
    before = sorted((tmp_path / "secret").rglob("*"))

    assert recorded_outputs(configuration, runs[0]) == []
    page = write_page(out).read_text()
    if way == "link":
        assert f"Skipped, as unreadable or with other regions: 1 table (first: {runs[0].name})." in page
    else:  # no record of ours has such paths
        assert runs[0].name in page
        assert "unreadable" in page
    _, refused = cohorts.write_store(out, out / "store.parquet")
    assert len(refused) == 1
    if way == "link":
        assert 'Expected a name below that folder, without ".." or a link out of it.' in str(refused)
    else:
        assert "isn't the record of a run: has another 'outputs' than gpumask writes." in str(refused)
    os.utime(runs[0].path, (time.time(), np.floor(time.time()) + 5))  # outdated: recorded outputs would be removed
    assert done(configuration, runs)[0][0] == "done"
    assert sorted((tmp_path / "secret").rglob("*")) == before


def test_outputs_in_git_annex_are_read_and_replaced(cohort, tmp_path):
    """A folder of outputs within a DataLad data set: its files are links to objects above it."""
    configuration, runs = cohort
    out = configuration.out_dir
    done(configuration, runs)
    objects = tmp_path / ".git" / "annex" / "objects"
    objects.mkdir(parents=True)
    for k, path in enumerate([*out.rglob("*.tsv"), *out.rglob("*_timeseries.json")]):
        path.rename(objects / str(k))
        path.symlink_to(os.path.relpath(objects / str(k), path.parent))
    assert done(configuration, runs) == [("skipped", ""), ("skipped", "")]
    assert "Skipped, as unreadable" not in write_page(out).read_text()
    assert cohorts.write_store(out, out / "store.parquet")[1] == {}
    kept = {path: path.read_bytes() for path in objects.iterdir()}
    again = Configuration(configuration.atlases, out, {"detrend": True}, device="cpu", overwrite=True)
    assert done(again, runs) == [("done", ""), ("done", "")]
    assert {path: path.read_bytes() for path in objects.iterdir()} == kept
    assert not [path for path in out.rglob("*.tsv") if path.is_symlink()]
    assert Path(out, "cohort.html").is_file()
