"""A cohort of runs: one run to its files, many runs, how they are spread, and how all that survives the night."""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import threading
import time
import traceback
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gpumask import __version__
from gpumask.bids import (
    Run,
    atlas_name,
    output_name,
    repetition_time,
    run_name,
    sidecar,
    write_dataset_description,
)
from gpumask.confounds import fmriprep_confounds, read_table
from gpumask.extract import collect_warnings, process_wide
from gpumask.images.volumes import open_volumes
from gpumask.masker import NiftiLabelsMasker, transform_together
from gpumask.outputs import appearing_together, append_line, json_lines, locked, table_lines, write
from gpumask.pipeline import n_cores
from gpumask.run_figures import run_figure, to_png

_DEFAULTS = {"keep_all_regions": True, "min_coverage": 0.5, "nan_policy": "omit"}
# Parameters of the masker that are of an atlas or a run, or don't decide the signals.
_ELSEWHERE = {
    *("labels_img", "lut", "labels", "mask_img", "t_r"),
    *("device", "memory", "memory_level", "verbose", "reports", "cmap"),
}


@dataclass(frozen=True)
class AtlasFile:
    """An atlas of a cohort.

    Attributes
    ----------
    path : str or path-like
        Label image.
    lut : str, path-like or None
        Look-up table with the columns "index" and "name". None: the file beside the image, see `lut_beside`.
    name : str or None
        Of the entity "atlas". None: by the name of the image.
    """

    path: str | os.PathLike
    lut: str | os.PathLike | None = None
    name: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "path", os.path.abspath(self.path))  # noqa: PTH100 - links are kept
        lut = self.lut or lut_beside(self.path)
        object.__setattr__(self, "lut", lut and os.path.abspath(lut))  # noqa: PTH100
        object.__setattr__(self, "name", self.name or atlas_name(self.path))


def lut_beside(path):
    """Look-up table beside a label image, or None: of the same name, or without "res-", as TemplateFlow has it."""
    path = Path(path)
    stem = path.name.removesuffix(".gz").rpartition(".")[0]
    without = "_".join(part for part in stem.split("_") if not part.startswith("res-"))
    candidates = (path.with_name(f"{name}.tsv") for name in (stem, without))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@dataclass(frozen=True)
class Work:
    """What is done to each run of a cohort; small, and can be pickled.

    Attributes
    ----------
    atlases : tuple of AtlasFile
        All are extracted in one pass over a run.
    out_dir : str or path-like
    parameters : dict
        Parameters of `NiftiLabelsMasker`. Here ``keep_all_regions`` is True, that all runs have the same columns,
        ``min_coverage`` 0.5 and ``nan_policy`` "omit", unless they say otherwise.
    confounds : dict
        Keywords of `gpumask.confounds.fmriprep_confounds`. Empty: confounds aren't used.
    device : str
        As `NiftiLabelsMasker` takes it; resolved where a run is processed.
    relmat, figures : bool
        Whether correlation matrices and figures are written too.
    overwrite : bool
        Whether runs that are done already are done again.
    configuration : str
        Hash of all that decides what is written: version, parameters, and the contents of the atlases' files.

    Raises
    ------
    ValueError
        If there is no atlas, or two have the same name.
    OSError
        If an atlas can't be read.
    """

    atlases: tuple[AtlasFile, ...]
    out_dir: str | os.PathLike
    parameters: dict = field(default_factory=dict)
    confounds: dict = field(default_factory=dict)
    device: str = "auto"
    relmat: bool = True
    figures: bool = False
    overwrite: bool = False
    configuration: str = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "out_dir", Path(os.path.abspath(self.out_dir)))  # noqa: PTH100 - workers are elsewhere
        names = [atlas.name for atlas in self.atlases]
        if len(set(names)) != len(names) or not names:
            msg = f"Expected one atlas or more, each with a name of its own, got {names}. Give NAME=PATH."
            raise ValueError(msg)
        contents = [
            (a.name, [hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in (a.path, a.lut) if p])
            for a in self.atlases
        ]
        options = self.masker_parameters, self.confounds, self.relmat, self.figures
        key = json.dumps([__version__, contents, *options], sort_keys=True, default=str)
        object.__setattr__(self, "configuration", hashlib.sha256(key.encode()).hexdigest()[:16])

    @property
    def masker_parameters(self):
        """All parameters that decide the signals, with the values that were not given."""
        parameters = NiftiLabelsMasker(**(_DEFAULTS | self.parameters)).get_params(deep=False)
        return {name: value for name, value in parameters.items() if name not in _ELSEWHERE}

    def maskers(self, mask=None):
        """Fitted maskers, one per atlas."""
        options = {**self.masker_parameters, "mask_img": mask, "device": self.device, "reports": False}
        return [NiftiLabelsMasker(a.path, lut=a.lut, **options).fit() for a in self.atlases]


@dataclass(frozen=True)
class Record:
    """What came of a run.

    Attributes
    ----------
    run : Run
    status : str
        "done", "failed", "skipped" (it was done before), "taken" (another process is at it) or "stopped".
    n_volumes : int
        Of the image.
    seconds : dict
        Wall-clock seconds: "read" (the disk and decompressing), "reduce", "clean", "write" and "total".
    atlases : dict
        For each atlas its number of "regions" and their median coverage, "coverage_median".
    warnings : tuple of str
    error, traceback : str
        Why nothing was written; empty if it was.
    """

    run: Run
    status: str
    n_volumes: int = 0
    seconds: dict = field(default_factory=dict)
    atlases: dict = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: str = ""
    traceback: str = ""


class _StoppedError(BaseException):
    """The cohort is being stopped; no error of the run."""


def process(work, run, stop_asked=None):
    """Extract one run and write its files: the whole task, which any process on any machine can do.

    All files appear together or not at all. Nobody else works at the run meanwhile. What is written depends on nothing
    but the run and the configuration, to the bit. The last file is ``logs/<name>.json``; a run is done if that is
    there, with the same configuration and inputs, and with all outputs in their sizes. A line about the attempt is
    added to ``logs/runs-<host>-<pid>.jsonl``.

    Parameters
    ----------
    work : Work
    run : Run
    stop_asked : callable, optional
        Asked while the run is read; if it says True, the run is dropped.

    Returns
    -------
    Record
        Errors are in it, they aren't raised.
    """
    with collect_warnings() as messages:
        try:
            record = _process(work, run, stop_asked or _stop_asked, messages)
        except _StoppedError:
            return Record(run, "stopped")
        except Exception as error:
            record = _failed(run, error, messages)
    return _logged(work, record)


def _stop_asked():
    """Whether this worker process was asked to stop; replaced in those that `run_cohort` starts."""
    return False


def _failed(run, error, messages=()):
    text = "".join(traceback.format_exception(error))
    return Record(run, "failed", warnings=_told(messages), error=str(error) or type(error).__name__, traceback=text)


def _told(messages):
    """What of the warnings concerns users: that runs lie on other grids than the atlas is as it should be."""
    return tuple(text for text in messages if not text.startswith("Resampling "))


def _process(work, run, stop_asked, messages):
    started = time.perf_counter()
    out, name = work.out_dir, run_name(run)
    logs = out / "logs"
    if not work.overwrite and is_done(work, run):
        return Record(run, "skipped")
    with locked(logs / f".{name}.lock") as mine:
        if not mine:
            return Record(run, "taken")
        if not work.overwrite and is_done(work, run):  # by now
            return Record(run, "skipped")
        inputs = _identities(run)
        files, record = _extract(work, run, stop_asked)
        if _identities(run) != inputs:
            msg = f"{run.path}, or a file that goes with it, was changed while it was read. Run it again."
            raise OSError(msg)
        paths = list(files)
        for folder in {path.parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
        with appearing_together([*paths, logs / f"{name}.json"], name) as parts:
            writing = time.perf_counter()
            for part, lines in zip(parts, files.values(), strict=False):
                write(part, lines)
            now = time.perf_counter()
            seconds = {**record.seconds, "write": now - writing, "total": now - started}
            record = replace(record, seconds=seconds, warnings=_told(messages))
            sizes = [part.stat().st_size for part in parts[:-1]]
            content = {
                **_described(record),
                "configuration": work.configuration,
                "inputs": inputs,
                "outputs": [[path.relative_to(out).as_posix(), size] for path, size in zip(paths, sizes, strict=True)],
                "host": platform.node(),
                "pid": os.getpid(),
            }
            write(parts[-1], json_lines(content))
    return record


def _described(record):
    """A record as logs have it."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "status": record.status,
        "run": os.fspath(record.run.path),
        "name": run_name(record.run),
        "volumes": record.n_volumes,
        **{name: getattr(record, name) for name in ("seconds", "atlases", "warnings", "error", "traceback")},
    }


def _logged(work, record):
    """Add a record to this process's log; if that fails, its error says so too."""
    line = json.dumps(_described(record), ensure_ascii=False)
    try:
        append_line(work.out_dir / "logs" / f"runs-{platform.node()}-{os.getpid()}.jsonl", line)
    except OSError as error:
        return replace(record, error=f"{record.error} The log can't be written: {error}".strip())
    return record


def log_problems(work, problems):
    """Add runs that can't be taken (of `gpumask.bids.Problem`) to the log, as failed."""
    for problem in problems:
        _logged(work, Record(Run(problem.path), "failed", error=problem.reason))


def is_done(work, run):
    """Whether a run has been done, with this configuration and from these inputs, and all outputs are there."""
    out = work.out_dir
    try:
        record = json.loads((out / "logs" / f"{run_name(run)}.json").read_text("utf-8"))
        return (
            record["status"] == "done"
            and record["configuration"] == work.configuration
            and record["inputs"] == _identities(run)
            and all((out / path).stat().st_size == size for path, size in record["outputs"])
        )
    except (OSError, ValueError, KeyError, TypeError):  # what is wrong shows when the run is processed
        return False


def _identities(run):
    """Size and modification time (ns) of each file that the outputs of a run are made from."""
    files = [run.path, run.confounds, run.mask, run.sidecar]
    if run.confounds and (described := Path(run.confounds).with_suffix(".json")).exists():
        files.append(described)
    states = {os.path.abspath(file): os.stat(file) for file in files if file}  # noqa: PTH100, PTH116
    return {path: [state.st_size, state.st_mtime_ns] for path, state in states.items()}


def _extract(work, run, stop_asked):
    """All files of a run, as lines (or bytes) by path, and its record."""
    volumes = open_volumes(run.path)
    if volumes.is_3d:
        msg = f"{run.path} is a 3D image, expected a run: a 4D image."
        raise ValueError(msg)
    if run.mask and not (grid := open_volumes(run.mask).grid).matches(volumes.grid):
        msg = (
            f"The mask {run.mask} has another grid than {run.path}: shapes {grid.shape} and {volumes.grid.shape}, or "
            "other affines. Give the mask of the same space and resolution."
        )
        raise ValueError(msg)
    confounds = kept = None
    if work.confounds:
        if not run.confounds:
            msg = f"There is no table of confounds for {run.path}, and confounds were asked for."
            raise ValueError(msg)
        confounds, kept = fmriprep_confounds(run.path, run.confounds, **work.confounds)
    t_r = repetition_time(run) or volumes.t_r
    maskers = _maskers(work, run.mask)
    filtered = any(maskers[0].get_params()[name] for name in ("low_pass", "high_pass"))
    if t_r is None and filtered:
        msg = f"Filtering needs the repetition time, and neither metadata nor header of {run.path} have one."
        raise ValueError(msg)

    def progress(_):
        if stop_asked():
            raise _StoppedError

    progress(0)
    for masker in maskers:
        masker.t_r = t_r
    try:
        # One thread per run reduces: a cohort has as many runs at work as there are cores.
        signals = transform_together(maskers, run.path, confounds, kept, n_threads=1, progress=progress)
    except ValueError:
        _check_volumes(volumes, kept)  # which knows better what is wrong, if that is it
        raise
    if any(masker.non_finite_ for masker in maskers):
        _check_volumes(volumes, kept)
        if maskers[0].nan_policy == "omit":
            warnings.warn("NaN or infinite voxels were left out of the regions' statistics.", stacklevel=2)
    files, summary = {}, {}
    folder = work.out_dir / run.folder
    mean = _mean(volumes, progress) if work.figures else None
    for atlas, masker, values in zip(work.atlases, maskers, signals, strict=True):
        coverage = masker.coverage_["fraction"].to_numpy()
        names = list(masker.region_names_.values())
        metadata = functools.partial(_metadata, work, run, atlas, t_r, confounds, kept, volumes)
        series = output_name(run, atlas.name, masker.strategy)
        shares = coverage[:, None].astype(np.float32)
        tables = [
            (series, table_lines(names, values), None),
            (
                output_name(run, atlas.name, "coverage", "bold"),
                table_lines(["Node", "coverage"], shares, names),
                [path for path in (run.path, run.mask, atlas.path, atlas.lut) if path],
            ),
        ]
        if work.relmat:
            name = output_name(run, atlas.name, "pearsoncorrelation", "relmat")
            lines = table_lines(["Node", *names], correlations(values), names)
            tables.append((name, lines, [folder / series]))
        for name, lines, sources in tables:
            files[folder / name] = lines
            files[folder / f"{name.removesuffix('.tsv')}.json"] = json_lines(metadata(sources))
        if work.figures:
            name = output_name(run, atlas.name, masker.strategy, extension=".png")
            files[work.out_dir / "figures" / name] = [_figure(run, name, masker, values, mean, t_r, kept)]
        summary[atlas.name] = {"regions": len(names), "coverage_median": float(np.median(coverage))}
    seconds = {name: maskers[0].seconds_[name] for name in ("read", "reduce")}
    seconds["clean"] = sum(masker.seconds_["clean"] for masker in maskers)
    return files, Record(run, "done", volumes.n_volumes, seconds, summary)


def _mean(volumes, progress):
    """Mean of all volumes, which takes reading the run once more: ndarray, shape (x, y, z)."""
    total = 0.0
    for chunk in volumes.chunks(8):
        total = total + chunk.scaled().sum(axis=0)
        progress(chunk.start)
    return (total / volumes.n_volumes).reshape(volumes.grid.shape, order="F")


def _figure(run, name, masker, values, mean, t_r, kept):
    confounds = read_table(Path(run.confounds)) if run.confounds else {}
    labels = masker.region_atlas_
    figure = run_figure(
        values,
        correlations(values),
        np.asanyarray(labels.dataobj),
        mean,
        labels.affine,
        background_label=masker.background_label,
        title=name.removesuffix(".png"),
        names=list(masker.region_names_.values()),
        t_r=t_r,
        displacement=confounds.get("framewise_displacement"),
        kept=kept,
    )
    return to_png(figure)


def _metadata(work, run, atlas, t_r, confounds, kept, volumes, sources):
    parameters = work.masker_parameters
    return sidecar(
        run,
        t_r=t_r,
        confounds=() if confounds is None else list(confounds),
        low_pass=parameters["low_pass"],
        high_pass=parameters["high_pass"],
        atlas=atlas.path,
        lut=atlas.lut,
        sources=sources,
        configuration=work.configuration,
        out_dir=work.out_dir,
        NumberOfVolumes=volumes.n_volumes,
        CensoredVolumes=None if kept is None else np.setdiff1d(np.arange(volumes.n_volumes), kept).tolist(),
        ConfoundsOptions=work.confounds or None,
        MaskerParameters=parameters,
    )


def correlations(signals):
    """Pearson correlations of the columns; NaN for those with NaN or without variance.

    Parameters
    ----------
    signals : ndarray, shape (n_volumes, n_regions)

    Returns
    -------
    ndarray of float32, shape (n_regions, n_regions)
        Symmetric to the bit, with a diagonal of 1.
    """
    centred = signals - signals.mean(axis=0, dtype=np.float64)
    norms = np.sqrt((centred**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = centred / np.where(norms > 1e-12 * np.abs(signals).max(axis=0, initial=0), norms, np.nan)
    matrix = np.clip(unit.T @ unit, -1, 1).astype(np.float32)
    upper = np.triu(matrix, 1)
    diagonal = np.where(np.isnan(np.diagonal(matrix)), np.float32("nan"), np.float32(1))
    return upper + upper.T + np.diag(diagonal)


_fitted = threading.local()  # `transform` changes a masker: each thread has its own


def _maskers(work, mask):
    """Maskers of this thread, with the plans of its earlier runs if these had the same mask."""
    key = work.configuration, work.device, mask and (os.fspath(mask), os.stat(mask).st_mtime_ns)  # noqa: PTH116
    if getattr(_fitted, "key", None) != key:
        _fitted.maskers, _fitted.key = work.maskers(mask), key
    return _fitted.maskers


def _check_volumes(volumes, kept):
    """Raise ValueError if a volume that is used has nothing but NaN, infinite values and 0; reads the run again."""
    if volumes.dtype.kind != "f":
        return
    empty = []
    for chunk in volumes.chunks(8):
        some = (np.isfinite(chunk.data) & (chunk.data != 0)).any(axis=1)
        empty += (chunk.start + np.flatnonzero(~some)).tolist()
    empty = [str(volume) for volume in empty if kept is None or volume in kept]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        msg = f"{volumes.name}: nothing but NaN, infinite values and 0 is in volume {', '.join(empty[:5])}{more}."
        raise ValueError(msg)


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
                record = _logged(work, _failed(run, error))
            yield record
        if suspects:  # any of them may be why a process died: each has one try alone
            pool.restart()
            for suspect in suspects:
                yield _alone(work, suspect, pool)

    with process_wide:
        try:
            for run in runs:
                if not work.overwrite and is_done(work, run):  # spares the way through the executor
                    yield _logged(work, Record(run, "skipped"))
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
        return _logged(work, Record(run, "failed", error=msg))


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
            return self._executor.submit(process, work, run)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
            return future

    def close(self):
        self._stop.value = 1
        self._executor.shutdown()


def _begin_worker(stop):
    """Make this worker process stop when asked to by its parent, and only then, and end with it."""
    global _stop_asked

    def _stop_asked():
        return bool(stop.value)

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
