"""``gpumask extract``: the signals of runs and how they were made, a table and a sidecar each."""

import contextlib
import functools
import os
import threading
import time
import warnings
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from platform import python_version

import numpy as np

from gpumask.bids.metadata import repetition_time
from gpumask.bids.names import atlas_name, output_name
from gpumask.bids.runs import Run
from gpumask.confounds.tables import choose_columns, confounds_matrix, read_table
from gpumask.files import appearing_together, write
from gpumask.images.volumes import open_volumes
from gpumask.process import one_blas_thread
from gpumask.tables import json_lines, table_lines

# What broken files, full disks, unusable devices and wrong parameters raise. All else is a bug, and stops everything.
RUN_ERRORS = (OSError, ValueError, TypeError, ImportError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class Record:
    """What came of a run.

    Attributes
    ----------
    run : Run
    path : Path
        Table of the region signals; its sidecar has the suffix ``.json``.
    shape : tuple of int
        Volumes and regions: rows and columns of the table.
    seconds : dict
        Wall-clock seconds, as ``NiftiLabelsMasker.seconds_``, with "write"; "total" is of everything.
    warnings : tuple of str
    error : str
        Why nothing was written; empty if it was.
    """

    run: Run
    path: Path
    shape: tuple[int, ...] = ()
    seconds: dict = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: str = ""


def output_path(masker, run, out_dir="."):
    """Path of a run's table of region signals, see `gpumask.bids.names.output_name`."""
    return Path(out_dir) / output_name(run, atlas_name(_file_name(masker.labels_img)), masker.strategy)


def extract_run(masker, run, out_dir=".", *, confounds_columns=None, overwrite=False, progress=None):
    """Extract one run and write its signals as a TSV file, with a JSON sidecar.

    The table has the regions' names as its header and a row per volume. Each number has as many digits as give back the
    same number in its dtype; NaN is "n/a". Both files appear whole or not at all, the sidecar last.

    Parameters
    ----------
    masker : NiftiLabelsMasker
        Fitted, without a run for all: labels are resampled to each run's grid, and compiled once per grid. Its ``t_r``
        is that of runs without one.
    run : Run
    out_dir : str or path-like
    confounds_columns : sequence of str, optional
        Columns of the run's confounds to use. If None, all.
    overwrite : bool
        Whether to replace files of an earlier extraction.
    progress : callable, optional
        Called with the number of volumes done and of all volumes.

    Returns
    -------
    Record

    Raises
    ------
    OSError, ValueError, TypeError
        If there is a table or sidecar without `overwrite`, or as ``masker.transform``.
    """
    started = time.perf_counter()
    table = output_path(masker, run, out_dir)
    sidecar = table.with_suffix(".json")
    for path in (table, sidecar):
        if path.exists() and not overwrite:
            msg = f"{path} exists already, and was left as it is. To replace it: overwrite=True (--overwrite)."
            raise FileExistsError(msg)
    if not Path(run.path).exists():  # a pattern would be read as one run of all its files
        msg = f"There is no such file: {run.path}"
        raise FileNotFoundError(msg)
    volumes = open_volumes(run.path)
    progress = progress or (lambda done, n_volumes: None)
    progress(0, volumes.n_volumes)
    confounds = _read_confounds(run.confounds, confounds_columns, volumes.n_volumes)
    with _repetition_time(masker, run, volumes) as t_r_from, warnings.catch_warnings():
        # Runs may lie on any grid: that labels are resampled here and not in `fit` is intended.
        warnings.filterwarnings("ignore", r"Resampling (labels|mask|images) at transform time")
        signals = masker.transform_single_imgs(
            run.path, confounds, progress=lambda done: progress(done, volumes.n_volumes)
        )
        parameters = masker.get_params(deep=False)
    signals = signals.reshape(-1, masker.n_elements_)  # those of a 3D image have one dimension

    Path(out_dir).mkdir(parents=True, exist_ok=True)
    with appearing_together([table, sidecar]) as (table_part, sidecar_part):
        writing = time.perf_counter()
        write(table_part, table_lines(masker.region_names_.values(), signals))
        done = time.perf_counter()
        seconds = {**masker.seconds_, "write": done - writing, "total": done - started}
        provenance = {
            "run": Path(run.path).absolute(),
            "atlas": _file_name(masker.labels_img),
            "confounds": run.confounds and Path(run.confounds).absolute(),
            "confounds_columns": confounds_columns and list(confounds_columns),
            "volumes": volumes.n_volumes,
            "t_r": parameters["t_r"],
            "t_r_from": t_r_from,
            "device": masker.device_,
            "plan": masker.plan_.explain().splitlines(),
            "parameters": parameters,
            "seconds": seconds,
            "versions": versions(cupy=masker.device_ != "cpu"),
            "regions": _regions(masker),
        }
        write(sidecar_part, json_lines(provenance, _as_json))
    return Record(run, table, signals.shape, seconds)


def extract_runs(masker, runs, out_dir=".", *, progress=None, **options):
    """Extract many runs, one after the other; one that fails doesn't stop the rest.

    Two runs that would be written to the same file are a ValueError, before any is read.

    Parameters
    ----------
    masker : NiftiLabelsMasker
        Fitted; see `extract_run`.
    runs : iterable of Run
    out_dir : str or path-like
    progress : callable, optional
        Called with the run, its number of volumes done and of all its volumes.
    **options
        More keywords of `extract_run`.

    Returns
    -------
    iterator of Record
        In the order of `runs`, each as soon as it is finished. Warnings and errors of a run are in its record.
    """
    by_path = {}
    for run in runs:
        path = output_path(masker, run, out_dir)
        if path in by_path:
            msg = f"{by_path[path].path} and {run.path} would both be written to {path}. Write them to two folders."
            raise ValueError(msg)
        by_path[path] = run
    return (
        _attempt(masker, run, path, out_dir, progress and functools.partial(progress, run), options)
        for path, run in by_path.items()
    )


def _attempt(masker, run, path, out_dir, progress, options):
    with collect_warnings() as messages:
        try:
            record = extract_run(masker, run, out_dir, progress=progress, **options)
        except RUN_ERRORS as error:
            record = Record(run, path, error=str(error) or type(error).__name__)
    return replace(record, warnings=tuple(messages))


class _ProcessWide:
    """State that a process has only one of, as runs need it, while a run is at work in any thread."""

    def __init__(self):
        self._lock, self._users, self._undo = threading.Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if not self._users:
                self._undo = contextlib.ExitStack()
                # One thread's limit must not end while another thread still computes: bits could depend on that.
                self._undo.enter_context(one_blas_thread)
                self._undo.enter_context(warnings.catch_warnings())
                warnings.simplefilter("always")
                for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                    warnings.simplefilter("ignore", category)  # for developers, as Python's default has it
                warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
            self._users += 1

    def __exit__(self, *_):
        with self._lock:
            self._users -= 1
            if not self._users:
                self._undo.close()


process_wide = _ProcessWide()
_messages = threading.local()


def _show_warning(elsewhere, message, *args, **keywords):
    """Keep a warning of a thread that collects them."""
    if (messages := getattr(_messages, "of_thread", None)) is None:
        elsewhere(message, *args, **keywords)
    elif str(message) not in messages:
        messages.append(str(message))


@contextlib.contextmanager
def collect_warnings():
    """List that gets the different messages of the block's warnings in this thread; none are shown."""
    messages, outer = [], getattr(_messages, "of_thread", None)
    with process_wide:
        _messages.of_thread = messages
        try:
            yield messages
        finally:
            _messages.of_thread = outer


@functools.cache
def versions(*, cupy=False):
    """Versions of Python and of the packages that the numbers come from; of CuPy too if asked for."""
    # One module, many distributions: cupy-cuda12x, cupy-cuda13x, ... Several at once are a broken installation.
    cupys = metadata.packages_distributions().get("cupy", []) if cupy else []
    names = ("gpumask", "numpy", "scipy", "nibabel", *cupys)
    return {"python": python_version()} | {name: metadata.version(name) for name in names}


def _file_name(image):
    """Absolute path of an image; None if it was made in memory. Links are kept: data sets manage files by them."""
    path = image.get_filename() if hasattr(image, "get_filename") else image
    return path and str(Path(path).absolute())


@contextlib.contextmanager
def _repetition_time(masker, run, volumes):
    """Set the masker's `t_r` to the run's inside the block; yields its source."""
    given = masker.t_r
    t_r = repetition_time(run if run.t_r or given is None else replace(run, t_r=given), volumes.t_r)
    if t_r.seconds is None and (masker.low_pass or masker.high_pass):
        msg = f"Filtering needs the repetition time, and the header of {volumes.name} has none. Give t_r (--t-r)."
        raise ValueError(msg)
    masker.t_r = t_r.seconds
    try:
        yield t_r.source
    finally:
        masker.t_r = given


def _read_confounds(path, columns, n_volumes):
    """The chosen columns, checked before the run is read, which takes much longer; None without confounds."""
    if path is None or columns is None:
        return confounds_matrix(path, n_volumes)
    table = read_table(Path(path)).rename(columns=str)
    return confounds_matrix(choose_columns(table, columns, path), n_volumes)


def _regions(masker):
    ids = [label for column, label in masker.region_ids_.items() if column != "background"]
    parts = zip(ids, masker.region_names_.values(), masker.plan_.counts.tolist(), strict=True)
    return [{"index": int(i) if i == int(i) else float(i), "name": n, "voxels": voxels} for i, n, voxels in parts]


def _as_json(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike) or hasattr(value, "get_filename"):
        return _file_name(value)
    return getattr(value, "__name__", type(value).__name__)
