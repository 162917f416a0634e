"""``gpumask extract`` and ``gpumask demo``."""

import argparse
import functools
import os

from gpumask.cli.output import USER_ERRORS, tell
from gpumask.cli.parser import build_parser, check_cutoffs, check_file


def command(args: argparse.Namespace) -> int:
    """Extract runs; returns the exit status."""
    from gpumask.cli.progress import RunProgress

    progress = RunProgress(len(args.runs))
    try:
        records = _start(args, progress)
    except USER_ERRORS as error:
        tell(f"gpumask extract: error: {error}")
        return 2
    failed = 0
    try:
        for record in records:
            progress.close()
            for message in record.warnings:
                tell(f"{record.run.path}: warning: {message}")
            if record.error:
                failed += 1
                tell(f"{record.run.path}: error: {record.error}")
                continue
            (atlas,) = record.atlases.values()
            size = f"{record.n_volumes} volumes x {atlas['regions']} regions"
            print(args.out / record.outputs[0].path, size, f"{record.seconds['total']:.2f} s", sep="\t", flush=True)
    finally:
        progress.close()
    return 1 if failed else 0


def _start(args, progress):
    """Check what all runs have in common, and return an iterator that extracts them."""
    for option in ("atlas", "mask", "lut"):
        check_file(f"--{option}", getattr(args, option))
    if args.confounds and len(args.confounds) != len(args.runs):
        msg = f"--confounds: expected one table per run, got {len(args.confounds)} for {len(args.runs)} run(s)"
        raise ValueError(msg)
    if args.confounds_columns and not args.confounds:
        msg = "--confounds-columns: requires --confounds"
        raise ValueError(msg)
    check_cutoffs(args)

    from gpumask.bids.runs import Run
    from gpumask.cohort.configuration import AtlasFile, Configuration, check_names
    from gpumask.cohort.writer import load, write_run
    from gpumask.process import collect_warnings

    configuration = Configuration(
        (AtlasFile(args.atlas, args.lut, background=args.background_label, find_lut=False),),
        args.out,
        {
            "smoothing_fwhm": args.smoothing_fwhm,
            "standardize": args.standardize,
            "detrend": args.detrend,
            "low_pass": args.low_pass,
            "high_pass": args.high_pass,
            "resampling_target": None if args.resampling_target == "none" else args.resampling_target,
            "strategy": args.strategy,
            "keep_all_regions": False,
            "min_coverage": None,
            "nan_policy": "zero",
        },
        {"columns": args.confounds_columns or ["*"]} if args.confounds else {},
        mask=args.mask,
        device=args.device,
        coverage=False,
        relmat=False,
        overwrite=args.overwrite,
    )
    with collect_warnings() as messages:
        notes = load(configuration).notes
    for message in (*messages, *notes):
        tell(f"{args.atlas}: warning: {message}")
    tables = args.confounds or [None] * len(args.runs)
    runs = [Run(path, confounds, t_r=args.t_r) for path, confounds in zip(args.runs, tables, strict=True)]
    check_names(configuration, runs)
    args.out.mkdir(parents=True, exist_ok=True)
    if not os.access(args.out, os.W_OK | os.X_OK):
        msg = f"--out: no permission to write to {args.out}"
        raise PermissionError(msg)
    return (write_run(configuration, run, functools.partial(progress, run)) for run in runs)


def demo(args: argparse.Namespace) -> int:
    """Extract nibabel's example run, and show the result; returns the exit status."""
    from gpumask.demo import example_run, write_atlas

    run = example_run()
    atlas, lut = write_atlas(run, args.out)
    words = ["extract", run, "--atlas", atlas, "--lut", lut, "--detrend", "--standardize", "psc"]
    words = [*map(str, words), "--out", str(args.out), "--overwrite"]
    print("gpumask", *words)
    code = command(build_parser().parse_args(words))
    if code == 0:
        import pandas as pd

        table = args.out / "functional_atlas-boxes_stat-mean_timeseries.tsv"
        print(f"\nPercent signal change, the first volumes and regions of {table}:\n")
        print(pd.read_table(table).iloc[:5, :6].to_string(float_format="%.3f"))
    return code
