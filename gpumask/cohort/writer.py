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
from gpumask.bids.names import run_name, sidecar_path
from gpumask.bids.runs import Run
from gpumask.bids.spaces import space_contradiction, stated_space
from gpumask.cohort import contents
from gpumask.cohort.atlases import load
from gpumask.cohort.cleanings import cleanings_of, reasons
from gpumask.cohort.configuration import Configuration, check_spaces
from gpumask.cohort.grayordinates import check_runs
from gpumask.cohort.own_atlases import OwnAtlas, file_of
from gpumask.cohort.quality import atlas_quality, joined_qualities, quality_of
from gpumask.cohort.record import (
    Output,
    Record,
    described,
    failed,
    identities,
    is_stale,
    kept,
    logged,
    record_path,
    recorded_outputs,
    unfinished,
)
from gpumask.cohort.stored import shortened_warnings, unit_key
from gpumask.connectivity import correlations
from gpumask.extraction import extract, prepare
from gpumask.files import appearing_together, locked, make_folder, write
from gpumask.images.runs import blank_volumes, open_run
from gpumask.images.volumes import open_volumes
from gpumask.inputs import check_file
from gpumask.process import collect_warnings, several_runs, warn
from gpumask.tables import json_lines


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
    all outputs, made with this configuration from these inputs, and they exist in these sizes. Only unfinished units
    are extracted; the record keeps the outputs of others that were made from the same inputs. If some denoisings can't
    be used for the run, it has failed, but the outputs of the others are written. The attempt is logged as a line of
    ``logs/runs-<host>-<pid>.jsonl``.

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
    todo = configuration.units if configuration.overwrite else unfinished(configuration, run)
    if not todo:
        return Record(run, "skipped")
    last = record_path(configuration, run)
    with locked(last.with_name(f".{run_name(run)}.lock")) as mine:
        if not mine:
            return Record(run, "taken")
        todo = configuration.units if configuration.overwrite else unfinished(configuration, run)
        if not todo:  # finished meanwhile
            return Record(run, "skipped")
        started, inputs = time.perf_counter(), identities(run)
        if is_stale(configuration, run):  # it is done again whole, and nothing wrong stays if that fails
            todo = configuration.units
            for path in (*recorded_outputs(configuration, run), last):  # the record last, as it names the others
                path.unlink(missing_ok=True)
        earlier = kept(configuration, run)
        old = recorded_outputs(configuration, run, of_all=False) if configuration.overwrite else []
        left = (output for output in earlier.outputs if configuration.out_dir / output.path not in old)
        earlier = replace(earlier, outputs=tuple(left))
        files, record, refusals = _extract(configuration, run, todo, progress, n_threads=1, turn=turn)
        if identities(run) != inputs:
            msg = f"{run.path}, or a file that goes with it, was changed while it was read. Run it again."
            raise OSError(msg)

        if not configuration.overwrite:  # those that are there stay untouched
            there = {(configuration.out_dir / output.path, output.made) for output in earlier.outputs}
            files = {path: own for path, own in files.items() if (path, configuration.made[own[0]]) not in there}
        record = replace(record, warnings=tuple(messages))
        made = {configuration.made[unit.name]: configuration.described(unit) for unit in todo}

        def content(record):
            own = {**earlier.own, **inputs.get("atlases", {})}
            of_all = inputs | ({"atlases": own} if own else {})
            whole = {"configuration": configuration.hash, "inputs": of_all, **_with_earlier(record, made, earlier)}
            return json_lines({**described(record), **whole, "host": platform.node(), "pid": os.getpid()})

        return _refusing(_write(configuration, files, record, started, run_name(run), last, content, old), refusals)


def _refusing(record, refusals):
    """The record of a run that some denoisings can't be used for, by the reasons; unchanged without any."""
    return replace(record, status="failed", error=reasons(refusals)) if refusals else record


def _with_earlier(record, made, earlier):
    """The part of a record about its files: its own, and earlier ones that weren't replaced."""
    new = {output.path for output in record.outputs}
    outputs = [*(output for output in earlier.outputs if output.path not in new), *record.outputs]
    used = {output.made for output in outputs}
    made = {key: how for key, how in {**earlier.made, **made}.items() if key in used}
    units = set(map(unit_key, made.values()))
    named = {atlas for atlas, _ in units}
    still_used = len(outputs) > len(record.outputs)
    return {
        "outputs": [vars(output) for output in outputs],
        "made": made,
        "atlases": {name: found for name, found in {**earlier.atlases, **record.atlases}.items() if name in named},
        "quality": joined_qualities(earlier.quality, record.quality, units),
        "warnings": shortened_warnings(dict.fromkeys([*(earlier.warnings if still_used else ()), *record.warnings])),
    }


def _write_run(configuration, run, progress):
    started = time.perf_counter()
    tables = [path for unit in configuration.units for path in configuration.outputs(run, unit).values()]
    for path in (path for table in tables for path in (table, sidecar_path(table))):
        if os.path.lexists(path) and not configuration.overwrite:  # also a link of git-annex without content
            msg = f"{path} already exists. To replace it: overwrite=True (--overwrite)."
            raise FileExistsError(msg)
    check_content(run.path)
    if not Path(run.path).exists():  # a pattern would be read as one run of all its files
        msg = f"No such file: {run.path}"
        raise FileNotFoundError(msg)
    files, record, refusals = _extract(configuration, run, configuration.units, progress, n_threads=None, turn=0)
    return _refusing(_write(configuration, files, record, started), refusals)


def _write(configuration, files, record, started, token=None, last=None, content=None, old=()):
    """Write files by path, each with its unit and lines; then `last`, whose content is made from the record."""
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
            Output(path.relative_to(configuration.out_dir).as_posix(), part.stat().st_size, configuration.made[unit])
            for part, (path, (unit, _)) in zip(parts, files.items(), strict=False)
        )
        record = replace(record, seconds=seconds, outputs=outputs)
        if last:
            write(parts[-1], content(record))
    return record


def _extract(configuration, run, units, progress, *, n_threads, turn):
    """Files of a run by path, each with its unit's name and its lines (or bytes); its record; denoisings it lacks."""
    loaded = load(configuration)
    check_content(run.path, run.confounds, run.mask)
    if run.confounds:
        check_file(run.confounds)  # it is read several times, so a pipe won't do
    for message in check_spaces(configuration, [run]):
        warn(message)
    check_runs(configuration.atlases, [run])
    volumes = open_run(run.path)
    if volumes.is_3d and configuration.relmats:
        msg = f"{run.path} is a 3D image, expected a run: a 4D image."
        raise ValueError(msg)
    if run.mask and not (grid := open_volumes(run.mask).grid).matches(volumes.grid):
        msg = (
            f"The mask {run.mask} has another grid than {run.path}: shapes {grid.shape} and {volumes.grid.shape}, or "
            "different affines. Use the mask of the same space and resolution."
        )
        raise ValueError(msg)
    t_r = repetition_time(run, volumes.t_r, needed=any(configuration.needs_t_r(unit) for unit in units))
    for message in t_r.messages:
        warn(message)
    if configuration.cifti and t_r.seconds is None:
        msg = (
            f"{run.path} has no repetition time, but .ptseries.nii needs one. Give it (--t-r, or the column t_r of a "
            "list of runs), or leave out --cifti."
        )
        raise ValueError(msg)
    report = functools.partial(_report, progress, volumes.n_volumes)
    report(0)
    atlases = loaded.of_run(run)
    for message in (note for name in atlases if name not in loaded.atlases for note in atlases[name].notes):
        warn(message)
    regions = loaded.regions(run.mask or configuration.mask, volumes.grid, atlases)
    place = functools.partial(prepare, volumes, device=loaded.device(turn), plans=loaded.plans)
    cleanings, refusals = cleanings_of(
        *(configuration, run, volumes, [unit for unit in units if unit.atlas], t_r.seconds),
        lambda unit, *options, **more: place(regions[unit.atlas.name], *options, **more),
    )
    units = [unit for unit in units if unit.denoising.name in cleanings]
    of_signals = [unit for unit in units if unit.atlas]
    prepared = [cleanings[unit.denoising.name].prepared[unit.name] for unit in of_signals]
    by_atlas = {unit.atlas: one for unit, one in zip(of_signals, prepared, strict=True)}
    for atlas, one in ((_file_of(atlas, run), one) for atlas, one in by_atlas.items()):
        if not _same_space(atlas, run) and (message := one.regions.little_overlap(os.fspath(run.path))):
            warn(message)
    try:
        results = extract(prepared, volumes, progress=report, n_threads=n_threads, snr=True)
    except ValueError:
        _check_volumes(volumes, cleanings)  # has a clearer message if volumes are empty
        raise
    if any(result.non_finite or len(result.blank) for result in results):
        _check_volumes(volumes, cleanings)
    omitting = [result for one, result in zip(prepared, results, strict=True) if one.settings.nan_policy == "omit"]
    if any(result.non_finite for result in omitting):
        warn(f"NaN or infinite {volumes.grid.elements} were excluded from the regions' statistics.")
    mean = _mean(volumes, report) if configuration.figures and not configuration.grayordinates else None
    files, summary, of_atlases = {}, {}, {name: {} for name in cleanings}
    for unit, one, result in zip(of_signals, prepared, results, strict=True):
        atlas, cleaning = _file_of(unit.atlas, run), cleanings[unit.denoising.name]
        _, names = atlases[atlas.name].names(one.regions.ids)
        described = functools.partial(contents.metadata_of, configuration, run, unit, atlas, t_r, cleaning, one)
        matrix = correlations(result.signals) if configuration.relmats or configuration.figures else None
        signals = one, result, matrix, names
        tables = contents.tables(configuration, run, unit, atlas, *signals, cleaning.censoring, described)
        if configuration.figures:
            path, outliers = configuration.outputs(run, unit)["figure"], cleaning.outliers
            of_run = mean, t_r.seconds, outliers.displacement, cleaning.censoring.kept, outliers.fd_threshold
            tables[path] = [contents.figure(path.name, atlas, *signals, *of_run)]
        files |= {path: (unit.name, lines) for path, lines in tables.items()}
        summary[atlas.name] = {"regions": len(names)}
        if one.regions.overlaps:
            summary[atlas.name]["overlaps"] = one.regions.overlaps
        if configuration.coverage:
            summary[atlas.name]["coverage_median"] = float(np.median(one.regions.covered_share))
        of_atlases[unit.denoising.name][atlas.name] = atlas_quality(result.signals, matrix, result.snr)
    for unit in (unit for unit in units if unit.atlas is None):
        found = contents.outliers(configuration, run, unit, cleanings[unit.denoising.name].outliers)
        files |= {path: (unit.name, lines) for path, lines in found.items()}
    quality = {
        name: quality_of(
            cleaning.outliers,
            t_r=t_r.seconds,
            n_regressors=cleaning.n_regressors,
            degrees_of_freedom=cleaning.degrees_of_freedom,
            atlases=of_atlases[name],
        )
        for name, cleaning in cleanings.items()
    }
    seconds = {name: results[0].seconds[name] for name in ("read", "reduce")}
    seconds["clean"] = sum(result.seconds["clean"] for result in results)
    record = Record(run, "done", volumes.n_volumes, t_r.seconds, seconds, summary, quality)
    return files, record, refusals


def _file_of(atlas, run):
    return file_of(atlas, run) if isinstance(atlas, OwnAtlas) else atlas


def _same_space(atlas, run):
    """Whether names state one space: then a small overlap is that of a slab, or of a brain that is cut off."""
    return stated_space(run.path) and all(
        stated_space(image) and not space_contradiction(image, run.path) for image in atlas.images
    )


def _report(progress, n_volumes, done):
    progress(done, n_volumes)


def _mean(volumes, progress):
    """Mean of all volumes, shape (x, y, z); reads the run once more."""
    total = 0.0
    for chunk in volumes.chunks(8):
        total = total + chunk.scaled().sum(axis=0)
        progress(chunk.start)
    return (total / volumes.n_volumes).reshape(volumes.grid.shape, order="F")


def _check_volumes(volumes, cleanings):
    """Raise ValueError if a volume that a denoising keeps has only NaN, infinite values and 0; reads the run again."""
    dropped = set.intersection(*(set(cleaning.censoring.dropped.tolist()) for cleaning in cleanings.values()))
    empty = [str(volume) for volume in blank_volumes(volumes).tolist() if volume not in dropped]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        msg = f"{volumes.name}: only NaN, infinite values and 0 in volume {', '.join(empty[:5])}{more}."
        raise ValueError(msg)
