"""What happens in a night: processes killed at any moment, full disks, files that go, signals, two drivers at once."""

import contextlib
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from gpumask import files as outputs
from gpumask.bids import find_runs
from gpumask.bids.runs import RunAtlas
from gpumask.cohort import writer
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.combined_atlas import CombinedAtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.own_atlases import OwnAtlas, with_columns
from gpumask.cohort.writer import process
from gpumask.confounds.denoising import Denoising

from . import cohorts
from .helpers import save

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a cohort needs POSIX locks")
HEAVY = bool(os.environ.get("GPUMASK_TEST_HEAVY"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs, some of them bad, and the outputs of an undisturbed cohort."""
    folder = tmp_path_factory.mktemp("made")
    cohorts.make_cohort(folder / "d", 60 if HEAVY else 30)
    cohorts.make_atlases(folder)
    runs, _ = find_runs(folder / "d")
    list(run_cohort(configured(folder, "undisturbed"), runs))
    return folder, runs, cohorts.outputs(folder / "undisturbed")


def configured(folder, out, atlases=None, **options):
    atlases = atlases or tuple(AtlasFile(folder / f"atlas-{name}_dseg.nii.gz") for name in ("Toy", "Fine"))
    return Configuration(atlases, folder / out, {"detrend": True}, device="cpu", **options)


@pytest.fixture
def few(tmp_path):
    """Four good runs."""
    cohorts.make_cohort(tmp_path / "d", 4, bad=False)
    cohorts.make_atlases(tmp_path)
    return find_runs(tmp_path / "d")[0]


def statuses(configuration, runs, **options):
    return Counter(record.status for record in run_cohort(configuration, runs, **options))


def with_own_atlases(folder, runs):
    """The runs with an atlas each, of three images, and the atlas of the cohort that they are."""
    toy = nib.load(folder / "atlas-Toy_dseg.nii.gz")
    labels = np.asarray(toy.dataobj)
    for lost in (10, 20, 30):
        save(folder / f"own-{lost}.nii.gz", np.where(labels == lost, 0, labels), toy.affine)
    paths = itertools.cycle(str(folder / f"own-{lost}.nii.gz") for lost in (10, 20, 30))
    runs = [replace(run, atlases=(RunAtlas("Own", next(paths)),)) for run in runs]
    own, _ = with_columns(OwnAtlas("Own"), runs)
    return runs, own


KINDS = {"one denoising": (), "two denoisings": ("csf", "cosine00"), "with atlases of runs": ("csf", "cosine00")}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(made, kind):
    folder, runs, files = made
    denoisings = tuple(Denoising(column, {"columns": [column]}) for column in KINDS[kind])
    wanted = partial(configured, folder, denoisings=denoisings)
    if "atlases" in kind:
        runs, own = with_own_atlases(folder, runs)
        toy, fine = (AtlasFile(folder / f"atlas-{name}_dseg.nii.gz") for name in ("Toy", "Fine"))
        wanted = partial(wanted, atlases=(toy, CombinedAtlasFile((toy, fine), "Both"), own))
    if denoisings:
        list(run_cohort(wanted(out=f"undisturbed {kind}"), runs))
        files = cohorts.outputs(folder / f"undisturbed {kind}")
        assert sum("_desc-csf_" in name for name in files) == sum("_desc-cosine00_" in name for name in files) > 100
        assert any("_atlas-Own_" in name for name in files) == ("atlases" in kind)
    configuration = wanted(out=f"killed {kind}")
    ends = cohorts.killed_at_random_moments(configuration, runs)
    assert ends.count(signal.SIGKILL) >= 10
    assert ends[-1] == 0
    cohorts.check_whole(configuration.out_dir, files, runs)


def test_a_killed_driver_takes_its_processes_along(made):
    folder, runs, files = made
    words = cohorts.command(folder, "--nprocs", "2", out="orphans")
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list((folder / "orphans").glob("logs/sub-*.json")))
    processes = descendants(driver.pid)  # not those of the logs alone: one may still be at its first run
    assert len(processes) >= 2
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(alive(pid) for pid in processes), 10)
    list(run_cohort(configured(folder, "orphans"), runs))
    cohorts.check_whole(folder / "orphans", files, runs)


def descendants(pid):
    """Processes that a process has started, and those that they have."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


SIGNALS = [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 2)]


@pytest.mark.parametrize(
    ("number", "code", "n_procs"),
    [*SIGNALS, *([(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 1)] if HEAVY else [])],
)
def test_signals_end_a_cohort_cleanly(made, number, code, n_procs):
    folder, runs, files = made
    out = f"{number.name} {n_procs}"
    words = cohorts.command(folder, "--nprocs", n_procs, out=out)
    driver = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0, bufsize=1
    )
    driver.stdout.readline()  # a run is done
    if number == signal.SIGINT:
        os.killpg(driver.pid, number)  # as a terminal does
    else:
        driver.send_signal(number)
    stdout, stderr = driver.communicate(timeout=60)
    assert driver.returncode == code, stderr
    last = stdout.splitlines()[-1]
    n_done = len(list((folder / out).glob("logs/sub-*.json")))
    assert 0 < n_done < len(runs) - 10
    assert last.endswith(" left")
    assert stderr.splitlines()[-1] == "gpumask cohort: interrupted. Repeat the command to continue."
    assert "Traceback" not in stderr
    assert cohorts.left_over(folder / out) == []
    assert statuses(configured(folder, out), runs)["skipped"] == n_done
    cohorts.check_whole(folder / out, files, runs)


def test_two_drivers_at_once(made):
    folder, runs, files = made
    words = cohorts.command(folder, out="two")
    drivers = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [driver.communicate(timeout=100) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [1, 1], ends
    counts = [dict(reversed(part.split(" ", 1)) for part in out.splitlines()[-1].split(", ")) for out, _ in ends]
    n_good = sum(int(count["done"]) for count in counts)
    assert n_good == len(list((folder / "two").glob("logs/sub-*.json")))
    assert min(int(count["done"]) for count in counts) > 0
    cohorts.check_whole(folder / "two", files, runs)


def test_two_threads_at_one_run(few, tmp_path, monkeypatch):
    configuration = configured(tmp_path, "o")
    (tmp_path / "o" / "logs").mkdir(parents=True)
    inner = []
    extract = writer.extract

    def extract_while_another_tries(*args, **options):
        inner.append(process(configuration, few[0]))
        return extract(*args, **options)

    monkeypatch.setattr(writer, "extract", extract_while_another_tries)
    assert process(configuration, few[0]).status == "done"
    assert inner[0].status == "taken"
    assert inner[0].error == ""
    assert [line["status"] for line in cohorts.log_lines(tmp_path / "o")] == ["taken", "done"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(few, tmp_path, small_disk):
    configuration = configured(tmp_path, small_disk / "o")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(390 * 1024))
    records = list(run_cohort(configuration, few, in_flight=1))
    counts = Counter(record.status for record in records)
    assert counts["failed"] > 0
    assert all("No space left on device" in record.error for record in records if record.status == "failed")
    assert cohorts.left_over(small_disk) == []
    filler.unlink()
    rest = Counter(record.status for record in run_cohort(configuration, few, in_flight=1))
    assert rest == {"skipped": counts["done"], "done": counts["failed"]}
    list(run_cohort(configured(tmp_path, "large"), few))
    cohorts.check_whole(small_disk / "o", cohorts.outputs(tmp_path / "large"), few)


def test_a_limit_on_the_size_of_files(few, tmp_path):
    code = (
        "import resource, signal, sys; from gpumask.cli import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); sys.exit(main(sys.argv[1:]))"
    )
    words = cohorts.command(tmp_path)[5:]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "4 failed" in done.stdout.splitlines()[-1]
    assert done.stderr.count("error: [Errno 27] File too large") >= 4
    assert cohorts.left_over(tmp_path / "out") == []
    assert statuses(configured(tmp_path, "out"), few) == {"done": 4}


@pytest.mark.parametrize("failing", [1, 2, 7, 12, 13, 14])  # 14 is that of the folder
def test_a_disk_that_fills_while_files_are_written(few, tmp_path, monkeypatch, failing):
    calls, fsync = [], os.fsync

    def full(number):
        calls.append(number)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(number)

    configuration = configured(tmp_path, "o")
    (tmp_path / "o" / "logs").mkdir(parents=True)
    monkeypatch.setattr(outputs.os, "fsync", full)
    record = process(configuration, few[0])
    assert record.error == f"[Errno {errno.ENOSPC}] No space left on device"
    assert not (tmp_path / "o" / "logs" / f"{few[0].name}.json").exists()
    assert cohorts.left_over(tmp_path / "o") == []
    assert process(configuration, few[0]).status == "done"


def test_a_log_that_cannot_be_written_is_told(few, tmp_path, monkeypatch):
    configuration = configured(tmp_path, "o")
    (tmp_path / "o" / "logs").mkdir(parents=True)
    process(configuration, few[0])
    with monkeypatch.context() as patched:
        patched.setattr(outputs.os, "write", lambda number, data: 0)
        record = process(configuration, few[1])
    assert record.status == "done"
    assert record.error.startswith("The log can't be written: [Errno 28] No space left on device")


def test_a_line_that_does_not_fit_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "log"
    outputs.append_line(path, "first")
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(outputs.os, "write", lambda number, data: write(number, data[:4]))
        with pytest.raises(OSError, match="No space left on device"):
            outputs.append_line(path, "second")
    outputs.append_line(path, "third")
    assert path.read_text() == "first\nthird\n"


def test_a_folder_that_cannot_be_written_to(few, tmp_path):
    words = cohorts.command(tmp_path, out="o")
    (tmp_path / "o").touch()  # no folder can be made there, even by root, who may write to read-only ones
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("o is a file, expected a folder")
    assert done.stdout == ""


@pytest.mark.skipif(os.name != "nt" and os.geteuid() != 0, reason="chattr needs root")
def test_a_read_only_folder(few, tmp_path):
    configuration = configured(tmp_path, "o")
    assert statuses(configuration, few[:1]) == {"done": 1}
    command = ["chattr", "+i", tmp_path / "o", tmp_path / "o" / "logs", tmp_path / "o" / "sub-01" / "func"]
    if shutil.which("chattr") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable folders")
    before = cohorts.outputs(tmp_path / "o")
    try:
        done = subprocess.run(cohorts.command(tmp_path, out="o"), capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert f"OUT_DIR: no permission to write to {tmp_path / 'o'}" in done.stderr
        assert cohorts.outputs(tmp_path / "o") == before
    finally:
        subprocess.run([command[0], "-i", *command[2:]], check=True)
    assert statuses(configuration, few) == {"skipped": 1, "done": 3}


def test_a_folder_that_becomes_read_only(few, tmp_path, monkeypatch):
    configuration = configured(tmp_path, "o")
    make = Path.mkdir

    def mkdir(self, *args, **keywords):
        if self.name == "func":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return make(self, *args, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", mkdir)
        records = list(run_cohort(configuration, few))
    assert {record.error.split("'")[0] for record in records} == {"[Errno 30] Read-only file system: "}
    assert statuses(configuration, few) == {"done": 4}


def test_a_file_that_disappears_while_it_is_read(few, tmp_path, monkeypatch):
    configuration = configured(tmp_path, "o")
    extract = writer.extract

    def lose(prepared, volumes, *args, **keywords):
        results = extract(prepared, volumes, *args, **keywords)
        if volumes.name == str(few[0].path):
            Path(few[0].path).unlink()
        if volumes.name == str(few[1].path):
            os.utime(few[1].path)
        return results

    monkeypatch.setattr(writer, "extract", lose)
    errors = {record.run: record.error for record in run_cohort(configuration, few)}
    assert errors[few[0]] == f"[Errno 2] No such file or directory: '{few[0].path}'"
    assert errors[few[1]] == (
        f"{few[1].path}, or a file that goes with it, was changed while it was read. Run it again."
    )
    assert [errors[run] for run in few[2:]] == ["", ""]
    names = {path.split("/")[-1].split("_atlas")[0] for path in cohorts.outputs(tmp_path / "o")}
    names = {name.split("_outliers")[0] for name in names}
    assert names == {few[2].name, few[3].name, "dataset_description.json", ".bidsignore"}


def test_a_file_that_is_cut_while_it_is_read(few, tmp_path, monkeypatch):
    run = few[0]
    size = Path(run.path).stat().st_size
    open_volumes = writer.open_volumes

    def cut(path):
        volumes = open_volumes(path)
        if path == run.path:
            os.truncate(path, size // 2)
        return volumes

    monkeypatch.setattr(writer, "open_run", cut)
    records = {record.run: record for record in run_cohort(configured(tmp_path, "o"), few)}
    assert "truncated or corrupt" in records[run].error
    assert Counter(record.status for record in records.values()) == {"failed": 1, "done": 3}


def test_what_killed_processes_left_is_removed(few, tmp_path):
    configuration = configured(tmp_path, "o")
    logs, func = tmp_path / "o" / "logs", tmp_path / "o" / few[0].folder
    logs.mkdir(parents=True)
    func.mkdir(parents=True)
    for k in (0, 3, 99):
        (func / f".gpumask-{few[0].name}.{k}.part").write_text("half a file")
    other = func / f".gpumask-{few[0].name}_run-2.1.part"  # of a run whose name begins likewise
    other.touch()
    (logs / f".{few[0].name}.lock").touch()
    (logs / ".gone.lock").touch()
    with outputs.locked(logs / ".busy.lock"):
        assert statuses(configuration, few) == {"done": 4}
        assert {path.name for path in cohorts.left_over(tmp_path / "o")} == {other.name, ".busy.lock"}


def test_a_bug_is_one_failed_run_with_its_traceback(few, tmp_path, monkeypatch):
    extract = writer.extract

    def buggy(prepared, volumes, *args, **options):
        if volumes.name == str(few[0].path):
            raise AttributeError("what a bug")
        return extract(prepared, volumes, *args, **options)

    monkeypatch.setattr(writer, "extract", buggy)
    assert statuses(configured(tmp_path, "o"), few) == {"failed": 1, "done": 3}
    (line,) = (line for line in cohorts.log_lines(tmp_path / "o") if line["status"] == "failed")
    assert line["error"] == "what a bug"
    assert line["traceback"].splitlines()[-1] == "AttributeError: what a bug"
    assert "in buggy" in line["traceback"]


def test_an_old_record_never_vouches_for_new_files(few, tmp_path, monkeypatch):
    """Killed between the renames: the record of the earlier configuration is gone by then."""
    (tmp_path / "o" / "logs").mkdir(parents=True)
    assert process(configured(tmp_path, "o"), few[0]).status == "done"
    replace = Path.replace

    def killed(self, target):
        if Path(target).name.endswith("relmat.tsv"):
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            process(configured(tmp_path, "o", confounds={"columns": ["csf"]}), few[0])
    assert list((tmp_path / "o" / "logs").glob("*.json")) == []
    assert statuses(configured(tmp_path, "o"), few[:1]) == {"done": 1}
