"""``gpumask cohort``."""

import argparse
import contextlib
import logging
import os
import re
import shlex
import signal
from dataclasses import replace

from gpumask import __version__
from gpumask.bids.content import check_content
from gpumask.cli.config import lines_of
from gpumask.cli.options import CHOOSING
from gpumask.cli.output import USER_ERRORS, kept_volumes, refuse, show, show_details, show_messages, tell
from gpumask.cli.parser import options_of
from gpumask.cli.usage import (
    atlases_of,
    check_confounds,
    check_dask,
    check_devices,
    check_kinds,
    check_out,
    check_store,
    check_workers,
    denoisings_of,
    relmats_of,
    rows_of,
    segmentations_of,
)
from gpumask.cli.values import check_cutoffs, check_file


def command(args: argparse.Namespace) -> int:
    """Process a cohort; returns the exit status."""
    try:
        check_out("OUT_DIR", args.out_dir, args.source)
        check_store(args.store, args.out_dir)
        if args.level == "group":
            if args.dry_run:
                msg = "--dry-run lists the runs to do: it goes with participant"
                raise ValueError(msg)
            return _summarize(args)
        configuration, runs, problems, listing = _plan_cohort(args)
        if args.dry_run:
            return _dry_run(configuration, runs, problems)
        with contextlib.ExitStack() as stack:
            spread = {"n_procs": args.nprocs, "n_threads": args.nthreads}
            if args.dask_scheduler:
                from gpumask.cohort.executors import dask_executor

                spread["executor"], spread["in_flight"] = stack.enter_context(dask_executor(args.dask_scheduler))
            return _run_cohort(args, configuration, runs, problems, listing, spread)
    except USER_ERRORS as error:
        return refuse("cohort", error)


def _plan_cohort(args):
    """The configuration, its runs, problems of others and their listing; checked as far as possible before reading."""
    from gpumask.bids import find_runs, read_manifest
    from gpumask.bids.filters import read_filters
    from gpumask.bids.segmentations import with_segmentation
    from gpumask.bids.sidecars import check_dataset_description
    from gpumask.cohort.atlases import load
    from gpumask.cohort.configuration import Configuration, check_names, check_spaces
    from gpumask.cohort.grayordinates import check_runs, hemisphere_of
    from gpumask.cohort.own_atlases import OwnAtlas, own_atlases
    from gpumask.cohort.record import Listing, check_unchanged
    from gpumask.process import collect_warnings

    check_confounds(args)
    check_cutoffs(args)
    check_dask(args.dask_scheduler)
    check_devices(args.device, several=True, here=not args.dask_scheduler)
    check_workers(args)
    check_file("--bids-filter-file", args.bids_filter_file)
    if args.figures:
        from gpumask.reports.figures import new_figure

        new_figure((1, 1))
    first, n_shards = shard(args.shard)
    chosen = {name: getattr(args, name) for name in CHOOSING}
    if not args.source.exists():
        check_content(args.source)
        msg = f"FMRIPREP_DIR: no such folder, or list of runs: {args.source}"
        raise FileNotFoundError(msg)
    is_folder = args.source.is_dir()
    filters = read_filters(args.bids_filter_file) if args.bids_filter_file else {}
    choosing = [option for name, option in CHOOSING.items() if chosen[name]]
    choosing += ["--bids-filter-file"] if args.bids_filter_file else []
    if choosing and not is_folder:
        msg = f"{choosing[0]} can't be used with a list of runs ({args.source}): edit the list."
        raise ValueError(msg)
    names = ("min_coverage", "smoothing_fwhm", "detrend", "low_pass", "high_pass", "standardize")
    confounds = {"strategy": args.confounds_strategy, "columns": args.confounds_columns}
    confounds = {**confounds, "fd_threshold": args.fd_threshold, "motion_filter": args.motion_filter}
    denoisings = denoisings_of(args)
    segmentations = segmentations_of(args)
    runs, problems = ([], []) if is_folder else read_manifest(args.source)
    if problems and not runs and not args.atlas and not args.seeds:  # or else they are logged, as failed runs
        msg = f"no run of {args.source} can be used: {problems[0].reason}"
        raise ValueError(msg)
    own = tuple(map(OwnAtlas, segmentations)) if is_folder else own_atlases(runs)
    configuration = Configuration(
        (*atlases_of(args, own), *own),
        args.out_dir,
        {name: getattr(args, name) for name in names}
        | {"strategy": args.strategy or "mean", "standardize": args.standardize or False},
        {} if denoisings else {name: value for name, value in confounds.items() if value is not None},
        denoisings,
        device=args.device,
        relmats=relmats_of(args),
        figures=args.figures,
        cifti=args.cifti,
        overwrite=args.overwrite,
        **({} if denoisings else rows_of(args)),
        min_time=args.min_time,
        min_dof=args.min_dof,
        allow_space_mismatch=args.allow_space_mismatch,
        maps_strategy=args.maps_strategy or "least_squares",
    )
    check_kinds(args, configuration.atlases)
    check_dataset_description(args.out_dir, args.source if is_folder else None)
    if is_folder:
        wanted = {"require_confounds": configuration.needs_confounds, "desc": configuration.images}
        wanted["grayordinates"] = configuration.grayordinates
        wanted["hemisphere"] = hemisphere_of(configuration.atlases)
        runs, problems = find_runs(args.source, **chosen, filters=filters, **wanted)
        for name, (desc, lut) in segmentations.items():
            runs, without = with_segmentation(runs, args.source, desc, name, lut)
            problems = sorted([*problems, *without], key=lambda problem: problem.path)
    else:
        check_runs(configuration.atlases, runs)
    if own and runs:
        configuration = _with_columns(configuration, runs, args.nthreads)
    check_names(configuration, runs)
    check_unchanged(configuration, runs)
    messages = check_spaces(configuration, runs)
    if args.dry_run:  # otherwise they are each run's
        for message in messages:
            tell(f"warning: {message}", logging.WARNING)
    with collect_warnings() as messages:
        loaded = load(configuration)
    for message in (*messages, *loaded.notes, *(_renamed(loaded, configuration) if args.store else ())):
        tell(f"warning: {message}", logging.WARNING)
    of_some = any(chosen[name] for name in CHOOSING if name != "space") or filters
    listing = Listing(f"{args.source.resolve()} {args.space or ''}".strip(), None if of_some else problems)
    return configuration, runs[first::n_shards], problems[first::n_shards], listing


def _with_columns(configuration, runs, n_threads):
    """The configuration with the columns of the atlases of which each run has its own."""
    from gpumask.cli.progress import CountProgress
    from gpumask.cohort.own_atlases import OwnAtlas, with_columns

    atlases = []
    for atlas in configuration.atlases:
        if not isinstance(atlas, OwnAtlas):
            atlases.append(atlas)
            continue
        with CountProgress(f"images of the atlas {atlas.name}") as progress:
            made, notes = with_columns(atlas, runs, progress, n_threads)
        atlases.append(made)
        for note in notes:
            tell(f"warning: {atlas.name}: {note}", logging.WARNING)
    return replace(configuration, atlases=tuple(atlases))


def _renamed(loaded, configuration):
    """Messages about regions that --store will rename."""
    from gpumask.cohort.kinds import column_names as column_names_of
    from gpumask.cohort.own_atlases import OwnAtlas
    from gpumask.cohort.parquet import column_names
    from gpumask.text_tables import listed

    for atlas in configuration.atlases:
        if isinstance(atlas, OwnAtlas):
            ids, names = list(named := column_names_of(atlas)), list(named.values())
        else:
            ids, names = loaded.atlases[atlas.name].names()
        changed = [(name, new) for name, new in zip(names, column_names(names, ids), strict=True) if name != new]
        if changed:
            shown = listed(dict.fromkeys(name for name, _ in changed))
            yield f"{atlas.name}: {shown}: reserved. Their columns in --store are {changed[0][1]!r} etc."


def shard(text: str | None) -> tuple[int, int]:
    """Index of the shard, from 0, and the number of shards; `text` is "I/N", or None for SLURM's array."""
    if text is None:
        env = {name: os.environ.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN", "STEP")}
        if env["ID"] is None or env["COUNT"] is None:
            return 0, 1
        index = (int(env["ID"]) - int(env["MIN"] or 0)) // int(env["STEP"] or 1)
        number, count = index + 1, int(env["COUNT"])
        where = "SLURM_ARRAY_TASK_ID"
        tell(f"shard {number}/{count}, by SLURM_ARRAY_TASK_ID")
    else:
        if not re.fullmatch("[0-9]+/[0-9]+", text):
            msg = f"--shard: expected I/N, such as 1/4, got {text!r}"
            raise ValueError(msg)
        number, count = map(int, text.split("/"))
        where = "--shard"
    if not 1 <= number <= count:
        msg = f"{where}: expected a shard from 1 to {count}, got {number}"
        raise ValueError(msg)
    return number - 1, count


def _dry_run(configuration, runs, problems):
    from gpumask.bids.names import run_name
    from gpumask.cohort.record import is_done

    n_done = 0
    for run in runs:
        done = is_done(configuration, run)
        n_done += done
        show(run_name(run), "done" if done else "to do", run.path)
    for problem in problems:
        tell(f"{problem.path}: {problem.reason}", logging.ERROR)
    for atlas in configuration.atlases:
        show(f"atlas {atlas.name}: {atlas.origin}, names by {atlas.named_by}")
    show(f"{len(runs) - n_done} to do, {n_done} done, {len(problems)} unusable")
    return 1 if problems else 0


class _TerminatedError(BaseException):
    """SIGTERM."""


def _terminate(*_):
    raise _TerminatedError


def _run_cohort(args, configuration, runs, problems, listing, spread):
    from gpumask.bids.names import run_name
    from gpumask.cli.progress import CohortProgress
    from gpumask.cohort.executors import run_cohort
    from gpumask.cohort.record import log_problems, record_path

    counts, n_partly = {"done": 0, "skipped": 0, "failed": len(problems), "taken": 0}, 0
    progress, code, stopped = CohortProgress(len(runs)), 0, False
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        stopped = args.stop_on_first_crash and bool(problems)
        records = run_cohort(configuration, [] if stopped else runs, progress=progress, **spread)
        log_problems(configuration, problems, listing)
        _write_config(args)
        for problem in problems:
            tell(f"{problem.path}: error: {problem.reason}", logging.ERROR)
        try:
            with contextlib.closing(records):
                for record in records:
                    counts[record.status] += 1
                    n_partly += record.status == "failed" and record_path(configuration, record.run).exists()
                    progress.finish(record)
                    name = run_name(record.run)
                    show_messages(record, name)
                    if record.status == "done":
                        show(name, kept_volumes(record), f"{record.seconds['total']:.2f} s")
                    show_details(record)
                    if stopped := args.stop_on_first_crash and record.status == "failed":
                        break
        except USER_ERRORS as error:  # such as the loss of all workers; errors of single runs are in their records
            progress.close()
            tell(f"gpumask cohort: error: {error}", logging.ERROR)
            code = 1
    except KeyboardInterrupt:
        code = 130
    except _TerminatedError:
        code = 143
    finally:
        signal.signal(signal.SIGTERM, before)
        progress.close()
    counts["left"] = len(runs) + len(problems) - sum(counts.values())
    if stopped and not code:
        tell("gpumask cohort: stopped at the first failed run (--stop-on-first-crash). Repeat the command to continue.")
    if code:
        tell("gpumask cohort: interrupted. Repeat the command to continue.")
    elif args.shard or "SLURM_ARRAY_TASK_COUNT" in os.environ:
        tell("After all shards have finished, summarize: gpumask cohort FMRIPREP_DIR OUT_DIR group")
    else:
        try:
            code = _summarize(args, len(runs) + len(problems))
        except USER_ERRORS as error:
            tell(f"gpumask cohort: error: the runs could not be summarized: {error}", logging.ERROR)
            code = 1
    if counts["failed"] and not code and not stopped:
        tell("Fix the failures, then repeat the command: it does only failed and new runs.")
    words = {"skipped": "skipped (done before)", "taken": "taken (by another process)"}
    words |= {"failed": f"failed ({n_partly} partly done)"} if n_partly else {}
    show(", ".join(f"{n} {words.get(name, name)}" for name, n in counts.items() if n or name in ("done", "failed")))
    return code or (1 if counts["failed"] else 0)


def _write_config(args):
    """Write the options to ``logs/config.toml``; the last command's are kept."""
    from gpumask.files import replacing, write

    path = args.out_dir / "logs" / "config.toml"
    places = [os.path.abspath(place) for place in (args.source, args.out_dir, path)]  # noqa: PTH100 - links are kept
    command = shlex.join(["gpumask", "cohort", *places[:2], args.level, "--config", places[2]])
    with replacing(path) as part:
        about = f"Options of the last command (gpumask {__version__}). To repeat it:"
        write(part, lines_of(args, options_of("cohort"), (about, command)))


def _summarize(args, n_runs=None):
    """Write the page, the group's tables and the store; returns 1 if something could not be made or used."""
    from gpumask.cohort.group import summarize

    summary = summarize(args.out_dir, n_runs, tangent=args.tangent, store=args.store)
    for path in summary.paths:
        show(path)
    for message in summary.refused:
        tell(f"--tangent: refused: {message}", logging.ERROR)
    if reasons := summary.unused.reasons:
        path, reason = next(iter(reasons.items()))
        table = args.out_dir / "group_unused.tsv"
        remedy = "To redo a run's file, delete it and repeat the participant command."
        first = f"The first: {path}: {reason.removesuffix('.')}."
        tell(f"Unusable files: {len(reasons)}, listed in {table}. {first} {remedy}", logging.ERROR)
    return 1 if summary.refused or reasons else 0
