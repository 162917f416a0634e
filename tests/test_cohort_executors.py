"""A cohort spread over threads, processes, any executor, and a Dask cluster: the same bytes everywhere."""

import contextlib
import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from gpumask.bids import find_runs
from gpumask.cohort import executors
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort

from . import cohorts

N_RUNS = 60 if os.environ.get("GPUMASK_TEST_HEAVY") else 12
OPTIONS = {"parameters": {"detrend": True, "smoothing_fwhm": 4.0}, "confounds": {"columns": ["trans_*"]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs, some of them bad, and the outputs of one thread."""
    folder = tmp_path_factory.mktemp("made")
    cohorts.make_cohort(folder / "d", N_RUNS)
    cohorts.make_atlases(folder)
    runs, _ = find_runs(folder / "d", require_confounds=True)
    records = list(run_cohort(configured(folder, "one"), runs, in_flight=1))
    return folder, runs, Counter(record.status for record in records), cohorts.outputs(folder / "one")


def configured(folder, out):
    atlases = tuple(AtlasFile(folder / f"atlas-{name}_dseg.nii.gz") for name in ("Toy", "Fine"))
    return Configuration(atlases, folder / out, device="cpu", **OPTIONS)


def test_the_cohort_has_good_and_bad_runs(made):
    _, _, statuses, files = made
    assert statuses == {"done": N_RUNS - 5, "failed": 4}
    assert len(files) == 14 * (N_RUNS - 5) + 2  # with dataset_description.json and .bidsignore


@pytest.mark.parametrize("options", [{}, {"n_procs": 2}, {"in_flight": 3}, {"n_threads": 1}], ids=str)
def test_threads_and_processes(made, options):
    check(made, f"by {options}", **options)


def test_n_threads_share_the_runs(made, monkeypatch):
    folder, runs, _, _ = made
    used = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, n, name):
            used.append(n)
            super().__init__(n, name)

    monkeypatch.setattr(executors, "ThreadPoolExecutor", Pool)
    for n, options in ((4, {"n_threads": 3}), (4, {}), (2, {"n_threads": 3}), (0, {})):
        list(run_cohort(configured(folder, f"{n} {options}"), runs[:n], **options))
    assert used == [3, min(executors.n_cores(), 4), 2, 1]  # no more than runs


def test_processes_report_from_within_runs(made, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_INTERVAL", 0.01)
    cohorts.make_cohort(tmp_path / "d", 3, bad=False, shape=(48, 48, 48), n_volumes=60)
    runs, _ = find_runs(tmp_path / "d")
    seen = {}
    atlases = (AtlasFile(made[0] / "atlas-Toy_dseg.nii.gz"),)
    configuration = Configuration(atlases, tmp_path / "out", device="cpu")
    for record in run_cohort(
        configuration, runs, n_procs=2, progress=lambda run, share: seen.setdefault(run, []).append(share)
    ):
        assert record.status == "done"
        seen.setdefault(record.run, []).append("finished")
    for run in runs:
        *shares, last = seen[run]  # nothing comes after the end
        assert last == "finished"
        assert shares == sorted(shares)
        assert all(0 < share <= 1 for share in shares)
    assert any(0 < share < 1 for shares in seen.values() for share in shares[:-1])


def test_an_executor_of_the_caller_is_left_open(made):
    with ThreadPoolExecutor(3) as pool:
        check(made, "threads of ours", executor=pool)
        assert pool.submit(int).result() == 0


def check(made, out, **options):
    folder, runs, statuses, files = made
    records = list(run_cohort(configured(folder, out), runs, **options))
    assert Counter(record.status for record in records) == statuses
    assert cohorts.outputs(folder / out) == files
    assert cohorts.left_over(folder / out) == []
    assert {record.run for record in records} == set(runs)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of a Dask scheduler with two workers, each a process on this machine, and these processes."""
    pytest.importorskip("distributed")
    address = f"tcp://127.0.0.1:{free_port()}"
    dask = [sys.executable, "-m", "dask"]
    common = ["--no-dashboard"]
    folder = tmp_path_factory.mktemp("dask")
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "dask.log").open("w"))

        def start(*words):
            process = subprocess.Popen([*dask, *words, *common], stdout=log, stderr=log, cwd=folder)
            stack.callback(process.wait, 100)
            stack.callback(process.terminate)
            return process

        scheduler = start("scheduler", "--host", address)
        worker = ["worker", address, "--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
        workers = [start(*worker, "--name", name) for name in "ab"]
        wait_for(lambda: (folder / "dask.log").read_text().count("Registered to:") == 2)
        yield address, scheduler, workers


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_dask_cluster(made, cluster):
    folder, _, statuses, files = made
    # In a process of its own: the client's threads and warnings stay out of this one.
    words = cohorts.command(folder, "--dask-scheduler", cluster[0], "--confounds-columns", "trans_*", out="by dask")
    done = subprocess.run(
        [*words, "--smoothing-fwhm", "4"], capture_output=True, text=True, check=False, env=without_warnings(words)
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == f"{statuses['done']} done, 5 failed"
    ours = cohorts.outputs(folder / "by dask")
    assert {name: data for name, data in ours.items() if name.endswith(".tsv")} == {
        name: data for name, data in files.items() if name.endswith(".tsv")
    }
    assert cohorts.left_over(folder / "by dask") == []
    pids = {path.stem.split("-")[-1] for path in (folder / "by dask" / "logs").glob("*.jsonl")}
    assert {str(worker.pid) for worker in cluster[2]} < pids


def without_warnings(words):
    words[words.index("error")] = "default"  # of Dask's own imports
    return os.environ


def test_a_dask_worker_that_is_killed_costs_nothing(made, cluster):
    folder, _, statuses, _ = made
    words = cohorts.command(folder, "--dask-scheduler", cluster[0], "--confounds-columns", "trans_*", out="killed")
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=without_warnings(words))
    wait_for(lambda: list((folder / "killed").glob("logs/sub*.json")))
    cluster[2][0].kill()
    assert driver.wait(120) == 1
    lines = cohorts.log_lines(folder / "killed")
    # A run may have failed twice: in the worker that was killed before it could say so, and in the other one.
    assert len({line["name"] for line in lines if line["status"] == "failed"}) == 5
    assert len(list((folder / "killed").glob("logs/sub*.json"))) == statuses["done"]


def test_no_scheduler_is_an_error(made, tmp_path):
    pytest.importorskip("distributed")
    code = (
        "import dask, sys; dask.config.set({'distributed.comm.timeouts.connect': '1s'}); "
        "from gpumask.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = cohorts.command(made[0], "--dask-scheduler", f"tcp://127.0.0.1:{free_port()}")[5:]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "gpumask cohort: error: Timed out" in done.stderr


DYING = """
import os, signal, time
from pathlib import Path
from gpumask.cohort import writer

ALIVE = writer.process
KILLS = Path(__file__).parent / "kills"


def process(configuration, run, place):
    if "sub-01" in str(run.path) and len(list(KILLS.iterdir())) < {times}:
        (KILLS / str(time.time_ns())).touch()
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
    return ALIVE(configuration, run)
"""


@pytest.mark.parametrize(("times", "lost"), [(1, 0), (99, 2)])
def test_a_worker_process_that_dies_costs_its_run_at_most(made, tmp_path, monkeypatch, times, lost):
    folder, runs, statuses, files = made
    (tmp_path / "kills").mkdir()
    (tmp_path / f"dying{times}.py").write_text(DYING.format(times=times))
    monkeypatch.syspath_prepend(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(executors, "_process_in_worker", importlib.import_module(f"dying{times}").process)
        records = list(run_cohort(configured(folder, f"dying {times}"), runs, n_procs=2))
    counts = Counter(record.status for record in records)
    # A run that another process had just done when the pool broke down is found to be done.
    assert counts["done"] + counts["skipped"] == statuses["done"] - lost
    assert counts["failed"] == 4 + lost
    errors = [record.error for record in records if "sub-01" in str(record.run.path)]
    assert [error.startswith("The process died twice during this run") for error in errors] == [lost > 0] * 2
    ours = cohorts.outputs(folder / f"dying {times}")
    assert ours.items() <= files.items()
    rest = list(run_cohort(configured(folder, f"dying {times}"), runs))
    assert Counter(record.status for record in rest)["skipped"] == statuses["done"] - lost
    assert cohorts.outputs(folder / f"dying {times}") == files
    assert cohorts.left_over(folder / f"dying {times}") == []


DYING_AT_START = """
import os, signal, time
from pathlib import Path
from gpumask.cohort import executors

ALIVE = executors._begin_worker
STARTS = Path(__file__).parent / "starts"


def begin(stop, shares):
    (STARTS / f"{{time.time_ns()}}-{{os.getpid()}}").touch()
    if len(list(STARTS.iterdir())) <= {times}:
        os.kill(os.getpid(), signal.SIGKILL)
    ALIVE(stop, shares)
"""


def dying_at_start(tmp_path, monkeypatch, times):
    """Let the first processes be killed while they start."""
    (tmp_path / "starts").mkdir()
    (tmp_path / f"dying_at_start{times}.py").write_text(DYING_AT_START.format(times=times))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(executors, "_begin_worker", importlib.import_module(f"dying_at_start{times}").begin)


def test_a_process_that_is_killed_at_its_start_costs_nothing(made, tmp_path, monkeypatch):
    folder, runs, statuses, files = made
    dying_at_start(tmp_path, monkeypatch, 1)
    records = list(run_cohort(configured(folder, "killed at start"), runs, n_procs=2))
    counts = Counter(record.status for record in records)
    assert counts["failed"] == statuses["failed"]
    assert counts["done"] + counts["skipped"] == statuses["done"]
    assert not any("died" in record.error for record in records)
    assert cohorts.outputs(folder / "killed at start") == files


def test_processes_that_are_killed_at_every_start_are_one_error(made, tmp_path, monkeypatch):
    folder, runs, *_ = made
    dying_at_start(tmp_path, monkeypatch, 99)
    with pytest.raises(RuntimeError) as raised:
        list(run_cohort(configured(folder, "always killed"), runs, n_procs=2))
    assert str(raised.value) == (
        "No process can be started: 3 times one was killed at its start by signal 9 (Killed), as the system does when "
        "memory is short. Use fewer processes (--nprocs)."
    )


def test_an_executor_whose_worker_dies_says_so(made):
    folder, runs, *_ = made
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(os._exit, 1)
        with pytest.raises(RuntimeError, match=r"accepts no more work|terminated abruptly"):
            list(run_cohort(configured(folder, "lost"), runs, executor=pool, in_flight=2))
        with pytest.raises(RuntimeError, match="terminated abruptly"):
            list(run_cohort(configured(folder, "lost"), runs, executor=pool))


def test_processes_that_cannot_start_are_one_error(made, tmp_path):
    folder = made[0]
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from gpumask.cohort.configuration import *; from gpumask.cohort.executors import run_cohort\n"
        "from gpumask.bids import find_runs\n"
        f"runs = find_runs({str(folder / 'd')!r})[0]\n"
        f"atlas = AtlasFile({str(folder / 'atlas-Toy_dseg.nii.gz')!r})\n"
        f"list(run_cohort(Configuration((atlas,), {str(tmp_path / 'o')!r}), runs, n_procs=2))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1
    # The processes' own complaints may come last.
    assert (
        "RuntimeError: No process can be started: one ended with exit status 1, for the reason above. A script must "
        'call this below `if __name__ == "__main__":`.\n'
    ) in done.stderr


CUTTING = """
import os
from gpumask.cohort import writer

ALIVE, EXTRACT = writer.process, writer.extract


def process(configuration, run, place):
    def extract(prepared, volumes, *args, **options):
        chunks = volumes.chunks

        def cut_after_the_first(*args):
            for chunk in chunks(*args):
                os.truncate(run.path, 1000)
                yield chunk

        if "sub-01" in str(run.path):
            volumes.chunks = cut_after_the_first
        return EXTRACT(prepared, volumes, *args, **options)

    writer.extract = extract
    return ALIVE(configuration, run)
"""


def test_a_mapped_file_that_is_cut_costs_its_run_at_most(tmp_path, monkeypatch):
    """Reading past the end of a mapped file kills the process (SIGBUS)."""
    cohorts.make_cohort(tmp_path / "d", 3, bad=False, suffix=".nii")
    cohorts.make_atlases(tmp_path)
    runs, _ = find_runs(tmp_path / "d", runs=["1"])
    (tmp_path / "cutting.py").write_text(CUTTING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(executors, "_process_in_worker", importlib.import_module("cutting").process)
    records = {record.run: record for record in run_cohort(configured(tmp_path, "out"), runs, n_procs=2)}
    assert records[runs[0]].status == "failed"
    assert records[runs[1]].status in ("done", "skipped")  # it may have been done just before
    assert "truncated" in records[runs[0]].error  # seen when the run was tried once more
    assert cohorts.left_over(tmp_path / "out") == []
