"""Runs of a cohort, spread over threads, processes or any executor; recovers from processes that die."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess

from gpumask.bids.runs import Run
from gpumask.bids.sidecars import check_dataset_description, write_dataset_description
from gpumask.cohort.configuration import Configuration, check_names, check_spaces
from gpumask.cohort.record import Record, check_unchanged, failed, is_done, logged
from gpumask.cohort.writer import process
from gpumask.files import locked, make_folder
from gpumask.process import every_warning, n_cores, one_blas_thread

_log = logging.getLogger(__name__)
_INTERVAL = 0.5  # s between two looks at how far processes are
_STARTS = 3  # times that processes are started while one is killed before any works


def run_cohort(
    configuration: Configuration,
    runs: Iterable[Run],
    *,
    n_procs: int = 1,
    n_threads: int | None = None,
    executor: Executor | None = None,
    in_flight: int | None = None,
    progress: Callable[[Run, float], object] | None = None,
) -> Iterator[Record]:
    """Process many runs; one that fails doesn't stop the rest.

    Leaving the iterator early (``close``, an exception, Ctrl-C) abandons running runs within a few volumes (those of an
    `executor` go on), and returns when the others have ended. Finished runs are skipped.

    Parameters
    ----------
    configuration : Configuration
    runs : iterable of Run
    n_procs : int, default=1
        Processes. With 1, threads of this process share the runs. With more, new processes do, each with one run at a
        time. A killed process is replaced, and its run is retried once, alone. If the
        configuration has several GPUs, threads use them in turn, run by run, and each process uses one of them.
    n_threads : int, optional
        Threads that share the runs if there is one process. If None, one per core.
    executor : concurrent.futures.Executor, optional
        Processes the runs instead, such as ``client.get_executor(pure=False)`` of dask.distributed. Only paths and
        records are sent through it. It isn't shut down.
    in_flight : int, optional
        Maximum number of runs submitted at a time. If None, two per thread or process; 64 for an `executor`.
    progress : callable, optional
        Called with a run and the share of its volumes that are done: from the thread that reads it, or for processes
        twice a second. An `executor` doesn't call it.

    Returns
    -------
    iterator of Record
        Each as soon as the run is finished.

    Raises
    ------
    ValueError
        If two runs would be written to the same files, an atlas is in another space than a run, outputs of the same
        names were made with other options, or the output folder is another program's.
    OSError
        If the output folder can't be written to.
    RuntimeError
        If processes can't be started.
    """
    runs = list(runs)
    check_names(configuration, runs)
    check_spaces(configuration, runs)
    check_unchanged(configuration, runs)
    out = configuration.out_dir
    source = next((run.source for run in runs if run.source), None)
    check_dataset_description(out, source)  # before anything is written to another program's folder
    make_folder(out / "logs", out)
    _remove_left_locks(out / "logs")
    write_dataset_description(out, source, configuration=configuration.hash)
    if executor is not None:
        _log.debug("%d runs, on an executor: %r", len(runs), executor)
        return _spread(configuration, runs, _CallersExecutor(executor), in_flight or 64)
    n_workers = min(n_procs if n_procs > 1 else n_threads or n_cores(), max(len(runs), 1))
    in_flight = in_flight or 2 * n_workers
    _log.debug("%d runs, in %d %s", len(runs), n_workers, "processes" if n_procs > 1 else "threads")
    pool = _Processes(n_workers, in_flight, progress) if n_procs > 1 else _Threads(min(n_workers, in_flight), progress)
    return _spread(configuration, runs, pool, in_flight)


def _remove_left_locks(logs):
    """Remove lock files left by killed processes; their locks are gone already."""
    for path in logs.glob(".*.lock"):
        with contextlib.suppress(FileExistsError), locked(path):  # not our file: its run fails, and names it
            pass


def _spread(configuration, runs, pool, in_flight):
    """Submit runs to a pool, and yield their records."""
    waiting = {}

    def finished():
        while not (done := wait(waiting, pool.interval, FIRST_COMPLETED).done):
            pool.report()
        if any(_broken(future) for future in done):
            done, _ = wait(waiting)  # all futures end with the pool
        suspects = []
        for future in done:
            run = waiting.pop(future)
            if _broken(future):
                suspects.append(run)
                continue
            try:
                record = future.result()
            except Exception as error:  # the executor lost a worker; nothing was logged
                record = logged(configuration, failed(run, error))
            yield record
        if suspects:  # any of them may have killed the process: retry each alone
            _log.warning("A process died. The runs in work then (%d) are retried, each alone.", len(suspects))
            pool.restart(1)
            for suspect in suspects:
                yield _alone(configuration, suspect, pool)
            pool.restart()

    with one_blas_thread, every_warning:
        try:
            for run in runs:
                if not configuration.overwrite and is_done(configuration, run):  # saves submitting it
                    yield logged(configuration, Record(run, "skipped"))
                    continue
                while len(waiting) >= in_flight:
                    yield from finished()
                waiting[pool.submit(configuration, run)] = run
            while waiting:
                yield from finished()
        finally:
            for future in waiting:
                future.cancel()
            pool.close()


def _broken(future):
    return not future.cancelled() and isinstance(future.exception(), BrokenProcessPool)


def _alone(configuration, run, pool):
    try:
        return pool.submit(configuration, run).result()
    except BrokenProcessPool:
        pool.restart(1)
        msg = "The process died twice during this run: killed, out of memory or crashed."
        return logged(configuration, Record(run, "failed", error=msg))


class _CallersExecutor:
    """An executor that belongs to the caller."""

    interval = None

    def __init__(self, executor):
        self._executor, self._turns = executor, itertools.count()

    def submit(self, configuration, run):
        return self._executor.submit(process, configuration, run, None, None, next(self._turns))

    def restart(self, _n=None):
        """Raise: the caller must."""
        msg = "The executor lost a process and accepts no more work. Start again: finished runs are kept."
        raise RuntimeError(msg)

    def close(self):
        """Leave it running."""


class _Threads:
    """Threads of this process: decompression and sums release the GIL."""

    interval = None  # threads report by themselves

    def __init__(self, n, progress):
        self._stop, self._progress, self._turns = threading.Event(), progress, itertools.count()
        self._executor = ThreadPoolExecutor(n, "gpumask-run")

    def submit(self, configuration, run):
        share = self._progress and (lambda done, total: self._progress(run, done / max(total, 1)))
        return self._executor.submit(process, configuration, run, self._stop.is_set, share, next(self._turns))

    def close(self):
        self._stop.set()
        self._executor.shutdown()


class _Context(SpawnContext):
    """Starts new processes, numbered by their names, and keeps them: an executor doesn't report how they ended."""

    def __init__(self):
        super().__init__()
        self.started = []

    def Process(self, *args, **keywords):  # noqa: N802 - called so by the executor
        process = SpawnProcess(*args, **keywords)
        process.name = f"gpumask-{len(self.started)}"
        self.started.append(process)
        return process


class _Processes:
    """New processes, each with one run at a time.

    Parameters
    ----------
    n : int
    in_flight : int
        Runs that are submitted at a time.
    progress : callable or None
    """

    def __init__(self, n, in_flight, progress):
        self._n, self._progress = n, progress
        self.interval = progress and _INTERVAL
        # Without locks, which a killed process could keep.
        self._stop = SpawnContext().RawValue("b", 0)
        self._shares = SpawnContext().RawArray("d", in_flight)
        self._places = {}
        self._start(n)

    def _start(self, n):
        """Start processes until one works, anew if one is killed before."""
        for left in reversed(range(_STARTS)):
            context = _Context()
            self._executor = ProcessPoolExecutor(n, context, _begin_worker, (self._stop, self._shares))
            try:
                with _signals_blocked():
                    started = [self._executor.submit(os.getpid) for _ in range(n)]
                next(as_completed(started)).result()
                return
            except BrokenProcessPool as error:
                self._executor.shutdown()  # waits until all have ended
                codes = [process.exitcode for process in context.started if process.exitcode]
                killed = [-code for code in codes if code < 0 and code != -signal.SIGTERM]  # which the executor sends
                if left and killed:
                    continue
                raise RuntimeError(_killed(killed[0]) if killed else _unable(codes)) from error

    def restart(self, n=None):
        """Replace all processes after one has died, by `n` or as many as before."""
        self._executor.shutdown()
        self._start(n or self._n)

    def submit(self, configuration, run):
        self._places = {place: old for place, old in self._places.items() if not old[1].done()}
        place = next(place for place in range(len(self._shares)) if place not in self._places)
        self._shares[place] = 0
        try:
            future = self._executor.submit(_process_in_worker, configuration, run, place)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        self._places[place] = run, future
        return future

    def report(self):
        """Tell how far the runs in work are."""
        for place, (run, future) in self._places.items():
            if (share := self._shares[place]) and not future.done():
                self._progress(run, share)

    def close(self):
        self._stop.value = 1
        self._executor.shutdown()


@contextlib.contextmanager
def _signals_blocked():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # new processes inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _killed(number):
    return (
        f"No process can be started: {_STARTS} times one was killed at its start by signal {number} "
        f"({signal.strsignal(number)}), as the system does when memory is short. Use fewer processes (--nprocs)."
    )


def _unable(codes):
    ended = f": one ended with exit status {codes[0]}, for the reason above" if codes else ""
    return f'No process can be started{ended}. A script must call this below `if __name__ == "__main__":`.'


_stop = None  # in a worker process: nonzero when it must stop
_shares = None  # of the volumes of the runs in work that are done
_turn = 0  # its number: one device for all its runs, since each process takes memory on each GPU that it uses


def _process_in_worker(configuration, run, place):
    def report(done, total):
        _shares[place] = done / max(total, 1)

    return process(configuration, run, lambda: bool(_stop.value), report, _turn)


def _begin_worker(stop, shares):
    """Make this worker process stop only at its parent's request, and end with its parent."""
    global _stop, _shares, _turn
    _stop, _shares, _turn = stop, shares, int(multiprocessing.current_process().name.rpartition("-")[2])
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal or job sends them to all processes: the parent decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)  # the parent was killed; nothing else would end this process


@contextlib.contextmanager
def dask_executor(address):
    """Executor of a dask.distributed cluster, and the number of runs to submit that keeps its workers busy.

    Raises
    ------
    ImportError
        If dask.distributed isn't installed.
    OSError
        If the address has no scheduler.
    """
    try:
        from distributed import Client
    except ImportError as error:
        msg = "A Dask scheduler needs the package distributed: pip install 'gpumask[dask]'."
        raise ImportError(msg) from error
    with Client(address, set_as_default=False) as client:
        # Results depend on files too, not only on the arguments. So each task must run: Dask would reuse "pure" ones.
        yield client.get_executor(pure=False), max(2 * sum(client.nthreads().values()), 64)
