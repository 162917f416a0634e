"""Atlases, look-up tables and masks that change while a cohort uses them: a run has what its record says, or fails."""

import gzip
import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from gpumask.bids import find_runs
from gpumask.cohort import atlases, kinds
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.writer import write_run
from gpumask.images.opening import image_files

from . import cohorts
from .helpers import save

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a cohort needs POSIX locks")


@pytest.fixture
def folder(tmp_path):
    """Four runs, an atlas, and a mask for all runs."""
    cohorts.make_cohort(tmp_path / "d", 4, bad=False)
    cohorts.make_atlases(tmp_path)
    shutil.copy(next((tmp_path / "d").rglob("*_desc-brain_mask.nii.gz")), tmp_path / "mask.nii.gz")
    return tmp_path


def configured(folder, out="out", image="atlas-Toy_dseg.nii.gz", **options):
    lut = folder / "atlas-Toy_dseg.tsv"
    return Configuration((AtlasFile(folder / image, lut, "Toy"),), folder / out, device="cpu", **options)


def runs_of(folder):
    return [replace(run, mask=None) for run in find_runs(folder / "d")[0]]


def swap_labels(path):
    """Exchange two regions of an atlas, as a new version may."""
    image = nib.load(path)
    labels = np.asarray(image.dataobj)
    save(path, np.select([labels == 10, labels == 20], [20, 10], labels).astype(np.int16), image.affine)


def swap_names(path):
    path.write_text(path.read_text().replace("Toy10", "Toy").replace("Toy20", "Toy10"))


def shrink(path):
    image = nib.load(path)
    mask = np.asarray(image.dataobj).copy()
    mask[:5] = 0
    save(path, mask, image.affine)


CHANGES = {"atlas-Toy_dseg.nii.gz": swap_labels, "atlas-Toy_dseg.tsv": swap_names, "mask.nii.gz": shrink}


def refusal(path, old):
    found, expected = (hashlib.sha256(content).hexdigest()[:16] for content in (path.read_bytes(), old))
    return (
        f"{path} has changed since this command was started: its SHA-256 is {found}..., expected {expected}.... "
        "Outputs are recorded with the old content, so nothing is extracted with the new one. Restore the file, or "
        "repeat the command to use it as it is now."
    )


@pytest.mark.parametrize(("name", "n_procs"), [*((name, 1) for name in CHANGES), ("atlas-Toy_dseg.nii.gz", 2)])
def test_file_that_changed_before_it_was_loaded_fails_every_run(folder, name, n_procs):
    path = folder / name
    configuration, old = configured(folder, mask=folder / "mask.nii.gz"), path.read_bytes()
    CHANGES[name](path)
    records = list(run_cohort(configuration, runs_of(folder), n_procs=n_procs))
    assert [(record.status, record.error) for record in records] == [("failed", refusal(path, old))] * 4
    assert not list((folder / "out").rglob("*_timeseries.*"))
    path.write_bytes(old)
    assert [record.status for record in run_cohort(configuration, runs_of(folder))] == ["done"] * 4


@pytest.mark.parametrize(("name", "n_procs"), [*((name, 1) for name in CHANGES), ("atlas-Toy_dseg.nii.gz", 2)])
def test_file_that_changes_meanwhile_gives_old_numbers_or_none(folder, name, n_procs):
    """Each run is either failed, or equal to the bytes to what an undisturbed cohort writes."""
    mask = folder / "mask.nii.gz"
    list(run_cohort(configured(folder, "undisturbed", mask=mask), runs_of(folder)))
    configuration = configured(folder, mask=mask)
    old = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    records = run_cohort(configuration, runs_of(folder), n_procs=n_procs, in_flight=1)
    statuses = [next(records).status]
    CHANGES[name](folder / name)
    statuses += [record.status for record in records]
    assert statuses[0] == "done"
    assert set(statuses) <= {"done", "failed"}
    written, expected = cohorts.outputs(folder / "out"), cohorts.outputs(folder / "undisturbed")
    tables = [path for path in written if path.endswith(".tsv")]
    assert len(tables) == 4 * statuses.count("done")  # signals, coverage, correlations, outliers
    assert {path: written[path] for path in tables} == {path: expected[path] for path in tables}
    for record in (folder / "out" / "logs").glob("sub-*.json"):
        of_atlas, of_run = json.loads(record.read_text())["made"].values()
        assert of_atlas["files"][str(folder / name)] == old
        assert not of_run["files"]


@pytest.mark.parametrize("name", ["atlas-Toy_dseg.nii.gz", "atlas-Toy_dseg.tsv"])
def test_another_process_started_later_refuses_it(folder, name):
    """As a worker that replaces a killed one, or a machine that reads a copy that is synchronized late."""
    configuration, old = configured(folder), (folder / name).read_bytes()
    atlases.load(configuration)
    CHANGES[name](folder / name)
    with pytest.raises(ValueError, match=f"^{re.escape(refusal(folder / name, old))}$"):
        atlases.LoadedAtlases(configuration)


@pytest.mark.parametrize("name", CHANGES)
def test_extract_refuses_it(folder, name):
    configuration, old = configured(folder, mask=folder / "mask.nii.gz"), (folder / name).read_bytes()
    CHANGES[name](folder / name)
    record = write_run(configuration, runs_of(folder)[0])
    assert (record.status, record.error) == ("failed", refusal(folder / name, old))


def test_file_that_was_removed(folder):
    configuration = configured(folder)
    (folder / "atlas-Toy_dseg.tsv").unlink()
    record = write_run(configuration, runs_of(folder)[0])
    assert record.error == f"[Errno 2] No such file or directory: '{folder / 'atlas-Toy_dseg.tsv'}'"


@pytest.mark.parametrize("way", ["written to", "replaced", "replaced and restored"])
def test_file_that_changes_while_it_is_read(folder, monkeypatch, way):
    configuration, path = configured(folder), folder / "atlas-Toy_dseg.nii.gz"
    load_atlas = kinds.load_atlas

    def disturbed(*args):
        if way == "written to":
            swap_labels(path)
            return load_atlas(*args)
        path.rename(folder / "kept")
        shutil.copy(folder / "kept", path)
        swap_labels(path)
        loaded = load_atlas(*args)
        if way == "replaced and restored":
            (folder / "kept").replace(path)
        return loaded

    monkeypatch.setattr(kinds, "load_atlas", disturbed)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(path))} has changed .*: it was written to while it was read"
    ):
        atlases.load(configuration)


@pytest.mark.parametrize("pair", [nib.Nifti1Pair, nib.Spm2AnalyzeImage], ids=lambda pair: pair.__name__)
@pytest.mark.parametrize("suffix", [".hdr", ".img", ".mat"])
def test_every_file_of_a_pair_counts(folder, pair, suffix):
    image = nib.load(folder / "atlas-Toy_dseg.nii.gz")
    pair(np.asarray(image.dataobj), image.affine).to_filename(folder / "atlas-Toy_dseg.img")
    path = folder / f"atlas-Toy_dseg{suffix}"
    if not path.exists():
        pytest.skip("the format has no such file")
    configuration = configured(folder, image="atlas-Toy_dseg.img")
    atlases.load(configuration)
    old = path.read_bytes()
    path.write_bytes(old[:-9] + bytes([old[-9] ^ 1]) + old[-8:])  # of a matrix, no element of the last row
    assert configured(folder, image="atlas-Toy_dseg.img").hash != configuration.hash
    with pytest.raises(ValueError, match=f"^{re.escape(refusal(path, old))}$"):
        atlases.LoadedAtlases(configuration)


def test_files_of_an_image(folder):
    path = folder / "atlas-Toy_dseg.nii.gz"
    assert image_files(path) == [str(path)]
    (folder / "plain.nii").write_bytes(gzip.decompress(path.read_bytes()))
    assert image_files(folder / "plain.nii") == [str(folder / "plain.nii")]
    assert image_files(folder / "atlas-Toy_dseg.tsv") == [str(folder / "atlas-Toy_dseg.tsv")]
    assert image_files(folder / "absent.nii") == [str(folder / "absent.nii")]


def test_equal_files_elsewhere_are_named_as_they_are(folder):
    """A process that has loaded an atlas names the path of the next configuration, though all contents are equal."""
    shutil.copy(folder / "atlas-Toy_dseg.nii.gz", folder / "copy.nii.gz")
    first = configured(folder)
    second = configured(folder, image="copy.nii.gz")
    assert first.hash == second.hash
    made = [atlases.load(configuration).atlases["Toy"].within(None, None, None) for configuration in (first, second)]
    grids = [regions.grid.name for regions in made]
    assert grids == [os.fspath(folder / "atlas-Toy_dseg.nii.gz"), os.fspath(folder / "copy.nii.gz")]
