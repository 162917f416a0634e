"""Many runs of a cohort, spread over threads, processes or any executor; and what happens when one of these dies."""

import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool

from gpumask.bids.names import run_name
from gpumask.bids.sidecars import write_dataset_description
from gpumask.cohort import Record, failed, is_done, logged, process
from gpumask.extract import process_wide
from gpumask.files import locked
from gpumask.process import n_cores


def run_cohort(work, runs, *, n_procs=1, executor=None, in_flight=None):
    """Process many runs; one that fails doesn't stop the rest.

    Leaving the iterator early (``close``, an exception, Ctrl-C) drops the runs at work within a few volumes, and
    returns when all is quiet. Runs that are done already are skipped.

    Parameters
    ----------
    work : Work
    runs : iterable of Run
    n_procs : int, default=1
        Processes. With 1, threads of this process share out the runs, one per core. With more, new processes do, each
        one run at a time. A process that is killed is replaced, and its run tried once more, alone.
    executor : concurrent.futures.Executor, optional
        What processes the runs instead, such as ``client.get_executor(pure=False)`` of dask.distributed. Only paths and
        records travel through it. It is not shut down.
    in_flight : int, optional
        Most runs that are submitted at a time. If None, two per thread or process; 64 for an `executor`.

    Returns
    -------
    iterator of Record
        Each as soon as the run is finished.

    Raises
    ------
    ValueError
        If two runs would be written to the same files.
    OSError
        If the output folder can't be written to.
    RuntimeError
        If no process can be started.
    """
    runs = list(runs)
    by_name = {}
    for run in runs:
        other = by_name.setdefault(run_name(run), run)
        if other is not run:
            msg = f"{other.path} and {run.path} would both be written as {run_name(run)}. Give them different names."
            raise ValueError(msg)
    out = work.out_dir
    (out / "logs").mkdir(parents=True, exist_ok=True)
    _remove_left_locks(out / "logs")
    source = next((run.source for run in runs if run.source), None)
    write_dataset_description(out, source, configuration=work.configuration)
    if executor is not None:
        return _spread(work, runs, _Given(executor), in_flight or 64)
    n_workers = n_procs if n_procs > 1 else n_cores()
    pool = _Processes(n_procs) if n_procs > 1 else _Threads(min(n_workers, in_flight or n_workers))
    return _spread(work, runs, pool, in_flight or 2 * n_workers)


def _remove_left_locks(logs):
    """Remove the locks that killed processes have left; without a process they lock nothing."""
    for path in logs.glob(".*.lock"):
        with locked(path):
            pass


def _spread(work, runs, pool, in_flight):
    """Submit runs to a pool, and yield their records."""
    waiting = {}

    def finished():
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        if any(_broken(future) for future in done):
            done, _ = wait(waiting)  # all end with the pool
        suspects = []
        for future in done:
            run = waiting.pop(future)
            if _broken(future):
                suspects.append(run)
                continue
            try:
                record = future.result()
            except Exception as error:  # of the executor: a worker was lost, nothing was logged
                record = logged(work, failed(run, error))
            yield record
        if suspects:  # any of them may be why a process died: each has one try alone
            pool.restart()
            for suspect in suspects:
                yield _alone(work, suspect, pool)

    with process_wide:
        try:
            for run in runs:
                if not work.overwrite and is_done(work, run):  # spares the way through the executor
                    yield logged(work, Record(run, "skipped"))
                    continue
                while len(waiting) >= in_flight:
                    yield from finished()
                waiting[pool.submit(work, run)] = run
            while waiting:
                yield from finished()
        finally:
            for future in waiting:
                future.cancel()
            pool.close()


def _broken(future):
    return not future.cancelled() and isinstance(future.exception(), BrokenProcessPool)


def _alone(work, run, pool):
    try:
        return pool.submit(work, run).result()
    except BrokenProcessPool:
        pool.restart()
        msg = "The process died twice while it worked at this run: killed, out of memory, or a crash."
        return logged(work, Record(run, "failed", error=msg))


class _Given:
    """An executor that belongs to the caller."""

    def __init__(self, executor):
        self._executor = executor

    def submit(self, work, run):
        return self._executor.submit(process, work, run)

    def restart(self):
        """Say that the caller must."""
        msg = "The executor has lost a process and takes no more work. Runs that are done stay so: begin again."
        raise RuntimeError(msg)

    def close(self):
        """Leave it running."""


class _Threads:
    """Threads of this process: decompression and sums run outside of the interpreter's lock."""

    def __init__(self, n):
        self._stop = threading.Event()
        self._executor = ThreadPoolExecutor(n, "gpumask-run")

    def submit(self, work, run):
        return self._executor.submit(process, work, run, self._stop.is_set)

    def close(self):
        self._stop.set()
        self._executor.shutdown()


class _Processes:
    """New processes, each one run at a time."""

    def __init__(self, n):
        self._n, self._context = n, multiprocessing.get_context("spawn")
        self._stop = self._context.RawValue("b", 0)  # no lock that a killed process could keep
        self._start()

    def _start(self):
        self._executor = ProcessPoolExecutor(self._n, self._context, _begin_worker, (self._stop,))
        signals = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # for new processes, until they can ignore them
        try:
            begun = [self._executor.submit(os.getpid) for _ in range(self._n)]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            next(as_completed(begun)).result()
        except BrokenProcessPool as error:
            msg = 'No process can be started. A script must call this below `if __name__ == "__main__":`.'
            raise RuntimeError(msg) from error

    def restart(self):
        """Replace processes of which one has died."""
        self._executor.shutdown()
        self._start()

    def submit(self, work, run):
        try:
            return self._executor.submit(_process_in_worker, work, run)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
            return future

    def close(self):
        self._stop.value = 1
        self._executor.shutdown()


_stop = None  # of a worker process: not 0 once it is to stop


def _process_in_worker(work, run):
    return process(work, run, lambda: bool(_stop.value))


def _begin_worker(stop):
    """Make this worker process stop when asked to by its parent, and only then, and end with it."""
    global _stop
    _stop = stop
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a terminal or job: the parent decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)  # the parent was killed; nobody would ever give this process work, or end it


@contextlib.contextmanager
def dask_executor(address):
    """Executor of a dask.distributed cluster, and a number of runs that keeps its workers busy.

    Raises
    ------
    ImportError
        If dask.distributed isn't installed.
    OSError
        If there is no scheduler at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        msg = "A Dask scheduler needs the package distributed: pip install 'gpumask[dask]'."
        raise ImportError(msg) from error
    with Client(address, set_as_default=False) as client:
        # A result depends on the files too, not only on the arguments: each task is a new one ("pure" ones aren't).
        yield client.get_executor(pure=False), max(2 * sum(client.nthreads().values()), 64)
