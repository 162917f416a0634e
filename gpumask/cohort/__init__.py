"""A run of a cohort: what is made of it, its files, when it is done, and the record of it."""

import functools
import hashlib
import json
import os
import platform
import threading
import time
import traceback
import warnings
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gpumask import __version__
from gpumask.bids.metadata import metadata_file, repetition_time
from gpumask.bids.names import atlas_name, lookup_table_names, output_name, run_name
from gpumask.bids.runs import Run
from gpumask.bids.sidecars import sidecar
from gpumask.choices import LINEAR
from gpumask.confounds.fmriprep import fmriprep_confounds
from gpumask.confounds.tables import read_table
from gpumask.extract import collect_warnings
from gpumask.files import appearing_together, append_line, locked, write
from gpumask.images.volumes import open_volumes
from gpumask.maskers.labels import NiftiLabelsMasker, transform_together
from gpumask.reports.figures import run_figure, to_png
from gpumask.tables import json_lines, table_lines

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
    candidates = (path.with_name(name) for name in lookup_table_names(path))
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
        ``min_coverage`` 0.5 and ``nan_policy`` "omit", unless they say otherwise. (Statistics of smoothed volumes other
        than means and sums know no "omit": for these it is "zero".)
    confounds : dict
        Keywords of `gpumask.confounds.fmriprep.fmriprep_confounds`. Empty: confounds aren't used.
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
        smoothed = self.parameters.get("smoothing_fwhm") and self.parameters.get("strategy", "mean") not in LINEAR
        defaults = _DEFAULTS | ({"nan_policy": "zero"} if smoothed else {})
        parameters = NiftiLabelsMasker(**(defaults | self.parameters)).get_params(deep=False)
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
            record = _process(work, run, stop_asked, messages)
        except _StoppedError:
            return Record(run, "stopped")
        except Exception as error:
            record = failed(run, error, messages)
    return logged(work, record)


def failed(run, error, messages=()):
    """The record of a run that raised `error`."""
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


def logged(work, record):
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
        logged(work, Record(Run(problem.path), "failed", error=problem.reason))


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
    """Size and modification time (ns) of each file that a run's outputs are made from, and the `t_r` it was given."""
    files = [run.path, run.confounds, run.mask, metadata_file(run)]
    if run.confounds and (described := Path(run.confounds).with_suffix(".json")).exists():
        files.append(described)
    states = {os.path.abspath(file): os.stat(file) for file in files if file}  # noqa: PTH100, PTH116
    given = {} if run.t_r is None else {"t_r": run.t_r}
    return {path: [state.st_size, state.st_mtime_ns] for path, state in states.items()} | given


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
    t_r = repetition_time(run, volumes.t_r).seconds
    maskers = _maskers(work, run.mask)
    filtered = any(maskers[0].get_params()[name] for name in ("low_pass", "high_pass"))
    if t_r is None and filtered:
        msg = f"Filtering needs the repetition time, and neither metadata nor header of {run.path} have one."
        raise ValueError(msg)

    def progress(_):
        if stop_asked and stop_asked():
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
