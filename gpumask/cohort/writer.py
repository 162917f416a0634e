"""The one writer of a run: extracts its signals, and writes its files and record."""

import functools
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpumask.bids.content import check_content
from gpumask.bids.metadata import repetition_time
from gpumask.bids.names import run_name
from gpumask.bids.runs import Run
from gpumask.bids.spaces import space_contradiction, stated_space
from gpumask.cohort import contents
from gpumask.cohort.atlases import load
from gpumask.cohort.configuration import Configuration, check_spaces
from gpumask.cohort.quality import atlas_quality, joined_qualities, quality_of
from gpumask.cohort.record import (
    Output,
    Record,
    described,
    failed,
    has_run_outputs,
    identities,
    is_stale,
    kept,
    logged,
    record_path,
    recorded_outputs,
    unfinished,
)
from gpumask.cohort.stored import shortened_warnings
from gpumask.confounds.censoring import censor, check_kept_time
from gpumask.confounds.fmriprep import censoring_thresholds, fmriprep_confounds
from gpumask.confounds.outliers import find_outliers
from gpumask.confounds.tables import confounds_matrix
from gpumask.extraction import extract, prepare
from gpumask.files import appearing_together, locked, make_folder, write
from gpumask.images.volumes import open_volumes
from gpumask.inputs import check_file
from gpumask.process import collect_warnings, several_runs, warn
from gpumask.tables import json_lines

_LEAST_DOF = 2  # with fewer, at most a mean is left, and every correlation is 1 or -1
LOW_DOF_SHARE = 0.1  # of the kept volumes: with fewer degrees of freedom left, a run gets a warning


class _StoppedError(BaseException):
    """The cohort is being stopped; the run hasn't failed."""


def process(
    configuration: Configuration,
    run: Run,
    stop_asked: Callable[[], bool] | None = None,
    progress: Callable[[int, int], object] | None = None,
    turn: int = 0,
) -> Record:
    """Extract one run of a cohort and write its files; any process on any machine can do this.

    All files appear together or not at all. The run is locked meanwhile. Outputs depend only on the run and the
    configuration, to the bit. The record ``logs/<name>.json`` is written last. A run is finished if its record lists
    all outputs, made with this configuration from these inputs, and they exist in these sizes. Only unfinished atlases
    are extracted; the record keeps the outputs of others that were made from the same inputs. The attempt is logged as
    a line of ``logs/runs-<host>-<pid>.jsonl``.

    Parameters
    ----------
    configuration : Configuration
    run : Run
    stop_asked : callable, optional
        Called while the run is read; True abandons the run.
    progress : callable, optional
        Called with the number of volumes done and the total.
    turn : int, default=0
        Which of several devices to use: they are counted from 0, and again from the first one after the last.

    Returns
    -------
    Record
        Errors are recorded in it, not raised.
    """

    def report(done, total):
        if stop_asked and stop_asked():
            raise _StoppedError
        if progress:
            progress(done, total)

    try:
        with several_runs:
            record = _attempt(run, lambda messages: _process(configuration, run, report, turn, messages))
    except _StoppedError:
        return Record(run, "stopped")
    return logged(configuration, record)


def write_run(configuration: Configuration, run: Run, progress: Callable[[int, int], object] | None = None) -> Record:
    """Extract one run and write its files, without lock or record; see `process` for the parameters.

    All files appear together or not at all. Existing files are an error without ``configuration.overwrite``.
    """
    return _attempt(run, lambda _: _write_run(configuration, run, progress or (lambda done, total: None)))


def _attempt(run, work):
    with collect_warnings() as messages:
        try:
            record = work(messages)
        except Exception as error:
            record = failed(run, error)
    return replace(record, warnings=tuple(messages))


def _process(configuration, run, progress, turn, messages):
    todo = configuration.atlases if configuration.overwrite else unfinished(configuration, run)
    if not todo:
        return Record(run, "skipped")
    last = record_path(configuration, run)
    with locked(last.with_name(f".{run_name(run)}.lock")) as mine:
        if not mine:
            return Record(run, "taken")
        todo = configuration.atlases if configuration.overwrite else unfinished(configuration, run)
        if not todo:  # finished meanwhile
            return Record(run, "skipped")
        started, inputs = time.perf_counter(), identities(run)
        if is_stale(configuration, run):  # it is done again whole, and nothing wrong stays if that fails
            todo = configuration.atlases
            for path in (*recorded_outputs(configuration, run), last):  # the record last, as it names the others
                path.unlink(missing_ok=True)
        earlier = kept(configuration, run)
        old = recorded_outputs(configuration, run, of_all=False) if configuration.overwrite else []
        keeps = not configuration.overwrite and has_run_outputs(configuration, run)
        files, record = _extract(configuration, run, todo, progress, n_threads=1, turn=turn)
        files = {path: (atlas, lines) for path, (atlas, lines) in files.items() if atlas or not keeps}
        if identities(run) != inputs:
            msg = f"{run.path}, or a file that goes with it, was changed while it was read. Run it again."
            raise OSError(msg)

        record = replace(record, warnings=tuple(messages))
        made = {configuration.made[atlas.name]: configuration.described(atlas) for atlas in todo}
        if configuration.outliers:
            made[configuration.made[""]] = configuration.described_run()

        def content(record):
            whole = {"configuration": configuration.hash, "inputs": inputs, **_with_earlier(record, made, earlier)}
            return json_lines({**described(record), **whole, "host": platform.node(), "pid": os.getpid()})

        return _write(configuration, files, record, started, run_name(run), last, content, old)


def _with_earlier(record, made, earlier):
    """The part of a record about its files: its own, and earlier ones that weren't replaced."""
    new = {output.path for output in record.outputs}
    outputs = [*(output for output in earlier.outputs if output.path not in new), *record.outputs]
    used = {output.made for output in outputs}
    made = {key: how for key, how in {**earlier.made, **made}.items() if key in used}
    named = {how["atlas"] for how in made.values()}
    still_used = len(outputs) > len(record.outputs)
    return {
        "outputs": [vars(output) for output in outputs],
        "made": made,
        "atlases": {name: found for name, found in {**earlier.atlases, **record.atlases}.items() if name in named},
        "quality": joined_qualities(earlier.quality, record.quality, named),
        "warnings": shortened_warnings(dict.fromkeys([*(earlier.warnings if still_used else ()), *record.warnings])),
    }


def _write_run(configuration, run, progress):
    started = time.perf_counter()
    units = [*(configuration.outputs(run, atlas) for atlas in configuration.atlases), configuration.run_outputs(run)]
    tables = [path for paths in units for path in paths.values()]
    for path in (path for table in tables for path in (table, table.with_suffix(".json"))):
        if os.path.lexists(path) and not configuration.overwrite:  # also a link of git-annex without content
            msg = f"{path} already exists. To replace it: overwrite=True (--overwrite)."
            raise FileExistsError(msg)
    check_content(run.path)
    if not Path(run.path).exists():  # a pattern would be read as one run of all its files
        msg = f"No such file: {run.path}"
        raise FileNotFoundError(msg)
    files, record = _extract(configuration, run, configuration.atlases, progress, n_threads=None, turn=0)
    return _write(configuration, files, record, started)


def _write(configuration, files, record, started, token=None, last=None, content=None, old=()):
    """Write files by path, each with its atlas and lines; then `last`, whose content is made from the record."""
    for folder in {path.parent for path in files}:
        make_folder(folder, configuration.out_dir)
    paths = [*files, *([last] if last else [])]
    with appearing_together(paths, token, old) as parts:
        writing = time.perf_counter()
        for part, (_, lines) in zip(parts, files.values(), strict=False):
            write(part, lines)
        now = time.perf_counter()
        seconds = {**record.seconds, "write": now - writing, "total": now - started}
        outputs = tuple(
            Output(path.relative_to(configuration.out_dir).as_posix(), part.stat().st_size, configuration.made[atlas])
            for part, (path, (atlas, _)) in zip(parts, files.items(), strict=False)
        )
        record = replace(record, seconds=seconds, outputs=outputs)
        if last:
            write(parts[-1], content(record))
    return record


def _extract(configuration, run, atlases, progress, *, n_threads, turn):
    """Files of a run by path, each with its atlas and its lines (or bytes), and the run's record."""
    loaded = load(configuration)
    check_content(run.path, run.confounds, run.mask)
    if run.confounds:
        check_file(run.confounds)  # it is read several times, so a pipe won't do
    for message in check_spaces(configuration, [run]):
        warn(message)
    volumes = open_volumes(run.path)
    if volumes.is_3d and configuration.relmat:
        msg = f"{run.path} is a 3D image, expected a run: a 4D image."
        raise ValueError(msg)
    if run.mask and not (grid := open_volumes(run.mask).grid).matches(volumes.grid):
        msg = (
            f"The mask {run.mask} has another grid than {run.path}: shapes {grid.shape} and {volumes.grid.shape}, or "
            "different affines. Use the mask of the same space and resolution."
        )
        raise ValueError(msg)
    confounds, sample_mask = _confounds(configuration, run, volumes)
    censoring = censor(run.confounds, volumes.n_volumes, sample_mask, configuration.dummy_scans)
    thresholds = censoring_thresholds(**configuration.confounds)
    outliers = find_outliers(censoring, run.confounds, dummy_scans=configuration.dummy_scans, **thresholds)
    kept = censoring.kept
    _check_confounds(run, confounds, volumes, kept)
    t_r = repetition_time(run, volumes.t_r, needed=configuration.settings.filters)
    for message in t_r.messages:
        warn(message)
    settings = {atlas.name: replace(configuration.settings_of(atlas), t_r=t_r.seconds) for atlas in atlases}
    check_kept_time(censoring, t_r.seconds, configuration.min_time, os.fspath(run.path))
    report = functools.partial(_report, progress, volumes.n_volumes)
    report(0)
    regions = loaded.regions(run.mask or configuration.mask, volumes.grid)
    prepared = [
        prepare(
            *(volumes, regions[atlas.name], settings[atlas.name], confounds, kept),
            device=loaded.device(turn),
            plans=loaded.plans,
        )
        for atlas in atlases
    ]
    for atlas, one in zip(atlases, prepared, strict=True):
        if not _same_space(atlas, run) and (message := one.regions.little_overlap(os.fspath(run.path))):
            warn(message)
    freedom = _degrees_of_freedom(configuration, run, prepared[0], censoring)
    try:
        results = extract(prepared, volumes, progress=report, n_threads=n_threads, snr=True)
    except ValueError:
        _check_volumes(volumes, kept)  # has a clearer message if volumes are empty
        raise
    if any(result.non_finite or len(result.blank) for result in results):
        _check_volumes(volumes, kept)
    omitting = [result for one, result in zip(prepared, results, strict=True) if one.settings.nan_policy == "omit"]
    if any(result.non_finite for result in omitting):
        warn("NaN or infinite voxels were excluded from the regions' statistics.")
    mean = _mean(volumes, report) if configuration.figures else None
    files, summary, of_atlases = {}, {}, {}
    for atlas, one, result in zip(atlases, prepared, results, strict=True):
        _, names = loaded.atlases[atlas.name].names(one.regions.ids)
        described = functools.partial(
            contents.metadata_of, configuration, run, atlas, t_r, confounds, censoring, freedom, one
        )
        needs_matrix = configuration.relmat or configuration.figures
        matrix = contents.correlations(result.signals) if needs_matrix else None
        tables = contents.tables(configuration, run, atlas, one, result, matrix, names, described)
        if configuration.figures:
            path = configuration.outputs(run, atlas)["figure"]
            limit = outliers.fd_threshold
            figure = contents.figure(run, path.name, atlas, one, result, matrix, names, mean, t_r.seconds, kept, limit)
            tables[path] = [figure]
        files |= {path: (atlas.name, lines) for path, lines in tables.items()}
        summary[atlas.name] = {"regions": len(names)}
        of_atlases[atlas.name] = atlas_quality(result.signals, matrix, result.snr)
        if configuration.coverage:
            summary[atlas.name]["coverage_median"] = float(np.median(one.regions.covered_share))
    if configuration.outliers:
        path = configuration.run_outputs(run)["outliers"]
        files |= {path: ("", lines) for path, lines in contents.outliers(configuration, run, path, outliers).items()}
    seconds = {name: results[0].seconds[name] for name in ("read", "reduce")}
    seconds["clean"] = sum(result.seconds["clean"] for result in results)
    numbers = {"n_kept": censoring.n_kept, "n_dummy_scans": len(censoring.dummy_scans)}
    numbers |= {"degrees_of_freedom": freedom, "t_r": t_r.seconds}
    quality = quality_of(
        outliers,
        t_r=t_r.seconds,
        n_regressors=0 if confounds is None else confounds.shape[1],
        degrees_of_freedom=freedom,
        atlases=of_atlases,
    )
    numbers |= {"seconds": seconds, "atlases": summary, "quality": {"": quality}}
    return files, Record(run, "done", volumes.n_volumes, **numbers)


def _same_space(atlas, run):
    """Whether names state one space: then a small overlap is that of a slab, or of a brain that is cut off."""
    return stated_space(atlas.path) and stated_space(run.path) and not space_contradiction(atlas.path, run.path)


def _report(progress, n_volumes, done):
    progress(done, n_volumes)


def _confounds(configuration, run, volumes):
    if not configuration.confounds:
        return None, None
    if not run.confounds:
        msg = f"{run.path} has no confounds table, but confounds were requested."
        raise ValueError(msg)
    table = run.confounds
    return fmriprep_confounds(run.path, table, **configuration.confounds, n_volumes=volumes.n_volumes)


def _check_confounds(run, confounds, volumes, kept):
    try:
        confounds_matrix(confounds, volumes.n_volumes, kept)
    except ValueError as error:
        msg = f"{run.confounds}: {error}"
        raise ValueError(msg) from error


def _degrees_of_freedom(configuration, run, one, censoring):
    """What cleaning leaves; ValueError if that is too little for any statistic."""
    if censoring.n_volumes == 1:
        return None
    freedom, n_kept = one.cleaner.degrees_of_freedom(), censoring.n_kept
    left = f"cleaning leaves {freedom:.1f} degrees of freedom of {n_kept} volumes of {run.path}"
    remedy = "Remove fewer confounds, filter less, or exclude the run."
    least = max(configuration.min_dof or 0, _LEAST_DOF)
    if freedom < least - 1e-6:  # rounding: a projection's are whole
        expected = f"--min-dof {least:g}" if configuration.min_dof == least else f"{least:g}"
        msg = f"{left[0].upper()}{left[1:]}, fewer than {expected}. {remedy}"
        raise ValueError(msg)
    if freedom < LOW_DOF_SHARE * n_kept:
        warn(f"{left[0].upper()}{left[1:]}, less than {LOW_DOF_SHARE:.0%}: correlations are unreliable. {remedy}")
    return freedom


def _mean(volumes, progress):
    """Mean of all volumes, shape (x, y, z); reads the run once more."""
    total = 0.0
    for chunk in volumes.chunks(8):
        total = total + chunk.scaled().sum(axis=0)
        progress(chunk.start)
    return (total / volumes.n_volumes).reshape(volumes.grid.shape, order="F")


def _check_volumes(volumes, kept):
    """Raise ValueError if a kept volume of a run has only NaN, infinite values and 0; reads the run again."""
    empty = []
    for chunk in volumes.chunks(8):
        values = chunk.scaled()
        some = (np.isfinite(values) & (values != 0)).any(axis=1)
        empty += (chunk.start + np.flatnonzero(~some)).tolist()
    empty = [str(volume) for volume in empty if kept is None or volume in kept]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        msg = f"{volumes.name}: only NaN, infinite values and 0 in volume {', '.join(empty[:5])}{more}."
        raise ValueError(msg)
