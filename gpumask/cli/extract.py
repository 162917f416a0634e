"""``gpumask extract`` and ``gpumask demo``."""

import argparse
import contextlib
import functools
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from gpumask.cli.output import USER_ERRORS, kept_volumes, refuse, show, show_details, show_messages, tell
from gpumask.cli.parser import parse
from gpumask.cli.usage import (
    atlases_of,
    check_confounds,
    check_devices,
    check_kinds,
    check_out,
    check_tables,
    denoisings_of,
    relmats_of,
    rows_of,
)
from gpumask.cli.values import check_cutoffs, check_file


def command(args: argparse.Namespace) -> int:
    """Extract runs; returns the exit status."""
    from gpumask.cli.progress import RunProgress

    progress = RunProgress(len(args.runs))
    with contextlib.ExitStack() as stack:
        try:
            records = _start(args, progress, stack)
        except USER_ERRORS as error:
            return refuse("extract", error)
        return _show(args, progress, records)


def _show(args, progress, records):
    failed = 0
    try:
        for record in records:
            progress.close()
            show_messages(record, record.run.path)
            failed += bool(record.error)
            tables = [output.path for output in record.outputs if output.path.endswith("_timeseries.tsv")]
            atlases = [atlas for atlas in record.atlases.values() for _ in record.quality]
            for table, atlas in zip(tables, atlases, strict=True):
                own = {name: of for name, of in record.quality.items() if not name or f"_desc-{name}_" in table}
                size = f"{kept_volumes(replace(record, quality=own), motion=False)} x {atlas['regions']} regions"
                show(args.out / table, size, f"{record.seconds['total']:.2f} s")
            show_details(record)
    finally:
        progress.close()
    return 1 if failed else 0


def _start(args, progress, stack):
    """Check what all runs have in common, and return an iterator that extracts them while `stack` is open."""
    atlases = atlases_of(args)
    check_file("--mask", args.mask)
    check_confounds(args)
    for option in ("confounds_columns", "confounds_strategy", "fd_threshold", "motion_filter", "denoise"):
        if getattr(args, option) not in (None, []) and not args.confounds:
            msg = f"--{option.replace('_', '-')}: requires --confounds (auto: the table next to each run)"
            raise ValueError(msg)
    find_tables = args.confounds == [Path("auto")]
    if args.confounds and not find_tables:
        if len(args.confounds) != len(args.runs):
            msg = f"--confounds: expected one table per run, got {len(args.confounds)} for {len(args.runs)} run(s)"
            raise ValueError(msg)
        check_tables(args.confounds)
        args.confounds = [_copied(path, stack) if path.is_fifo() else path for path in args.confounds]
    check_cutoffs(args)
    check_out("--out", args.out)

    from gpumask.bids.pairing import check_pairs, confounds_beside
    from gpumask.bids.runs import Run
    from gpumask.cohort.atlases import load
    from gpumask.cohort.configuration import Configuration, check_names, check_spaces
    from gpumask.cohort.grayordinates import check_runs
    from gpumask.cohort.record import failed
    from gpumask.cohort.writer import write_run
    from gpumask.process import collect_warnings

    confounds = {"strategy": args.confounds_strategy, "columns": args.confounds_columns}
    if args.confounds and args.confounds_strategy is None and args.confounds_columns is None:
        confounds["columns"] = ["*"]
    confounds |= {"fd_threshold": args.fd_threshold, "motion_filter": args.motion_filter}
    denoisings = denoisings_of(args)
    configuration = Configuration(
        atlases,
        args.out,
        {
            "smoothing_fwhm": args.smoothing_fwhm,
            "standardize": args.standardize,
            "detrend": args.detrend,
            "low_pass": args.low_pass,
            "high_pass": args.high_pass,
            "resampling_target": None if args.resampling_target == "none" else args.resampling_target,
            "strategy": args.strategy or "mean",
            "keep_all_regions": False,
            "min_coverage": None,
            "nan_policy": "zero",
        },
        {} if denoisings else {name: value for name, value in confounds.items() if value is not None},
        denoisings,
        mask=args.mask,
        device=args.device,
        coverage=False,
        relmats=relmats_of(args),
        outliers=False,
        cifti=args.cifti,
        overwrite=args.overwrite,
        **({} if denoisings else rows_of(args)),
        min_time=args.min_time,
        min_dof=args.min_dof,
        allow_space_mismatch=args.allow_space_mismatch,
        maps_strategy=args.maps_strategy or "least_squares",
    )
    check_kinds(args, configuration.atlases)
    here = [path for path in args.runs if os.path.exists(path)]  # noqa: PTH110 - the others fail by themselves
    for path in here:
        if configuration.images != "preproc" and f"_desc-{configuration.images}_" not in path.name:
            expected = f"expected images *_desc-{configuration.images}_bold"
            msg = f"--confounds-strategy {args.confounds_strategy}: {expected}, got {path}"
            raise ValueError(msg)
    tables = [None] * len(args.runs) if find_tables or not args.confounds else args.confounds
    faults = {}
    for k in [k for k, path in enumerate(args.runs) if find_tables and path in here]:
        try:
            tables[k] = confounds_beside(args.runs[k])
        except Exception as error:
            faults[k] = error
    runs = [Run(path, table, t_r=args.t_r) for path, table in zip(args.runs, tables, strict=True)]
    check_pairs(
        [replace(run, mask=args.mask) for run in runs],
        "Give tables in the order of the runs, or --confounds auto, and masks to their runs only.",
    )
    check_names(configuration, runs)
    check_runs(configuration.atlases, runs)
    check_spaces(configuration, runs)
    check_devices(args.device)
    with collect_warnings() as messages:
        notes = load(configuration).notes
    for message in (*messages, *notes):
        tell(f"{', '.join([*args.atlas, *args.seeds])}: warning: {message}", logging.WARNING)
    args.out.mkdir(parents=True, exist_ok=True)
    return (
        failed(run, faults[k]) if k in faults else write_run(configuration, run, functools.partial(progress, run))
        for k, run in enumerate(runs)
    )


def _copied(pipe, stack):
    """A copy of a table that comes through a pipe, and so can be read only once; it is removed with `stack`."""
    from gpumask.inputs import read_bytes
    from gpumask.text_tables import MOST_BYTES

    copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpumask-")), pipe.name)
    copy.write_bytes(read_bytes(pipe, most=MOST_BYTES, pipes=True))
    return copy


def demo(args: argparse.Namespace) -> int:
    """Extract nibabel's example run, and show the result; returns the exit status."""
    from gpumask.demo import example_run, write_atlas

    try:
        check_out("--out", args.out)
    except USER_ERRORS as error:
        return refuse("demo", error)
    run = example_run()
    atlas, lut = write_atlas(run, args.out)
    words = ["extract", str(run), "--atlas", str(atlas), "--lut", str(lut), "--detrend", "--standardize", "psc"]
    words += ["--out", str(args.out), "--overwrite"]
    print("gpumask", *words)
    code = command(parse(words))
    if code == 0:
        import pandas as pd

        table = args.out / "functional_atlas-boxes_stat-mean_timeseries.tsv"
        print(f"\nPercent signal change, the first volumes and regions of {table}:\n")
        print(pd.read_table(table).iloc[:5, :6].to_string(float_format="%.3f"))
    return code
