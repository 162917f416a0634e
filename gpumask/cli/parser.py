"""Options of all commands."""

import argparse
from pathlib import Path

from gpumask import __version__
from gpumask.choices import STANDARDIZE, STRATEGIES, TARGETS

CHOOSING = {
    "participants": "--participant-label",
    "sessions": "--session-id",
    "tasks": "--task-id",
    "runs": "--run-id",
    "space": "--space",
}


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command line; ``command`` is the command's name."""
    parser = argparse.ArgumentParser("gpumask", description="Region time series from fMRI runs.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"gpumask {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    _add_extract(commands)
    _add_cohort(commands)
    demo = commands.add_parser(
        "demo",
        help="extract a small real run that comes with nibabel, and show the result",
        description="Extract a small real run that comes with nibabel, with an atlas cut from it; show the result.",
    )
    demo.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("gpumask-demo"), help="folder to write to (gpumask-demo)"
    )
    commands.add_parser("info", help="show versions, devices, and why a GPU can't be used")
    return parser


def _add_extract(commands):
    extract = commands.add_parser(
        "extract",
        allow_abbrev=False,
        help="write the time series of an atlas's regions, a TSV file per run",
        description="Write the time series of an atlas's regions: per run a TSV file (a column per region, a row per "
        "volume) and a JSON sidecar that describes how it was made.",
        epilog="A run sub-1_task-rest_desc-preproc_bold.nii.gz is written to sub-1_task-rest_atlas-<atlas>_stat-mean_"
        "timeseries.tsv. Exit status: 0 done; 1 some runs failed, the others are written; 2 wrong usage.",
    )
    add = extract.add_argument
    add("runs", nargs="+", metavar="RUN", type=Path, help="3D or 4D image (NIfTI, Analyze, MGH, ...)")
    add("--atlas", required=True, metavar="IMAGE", type=Path, help="label image: a number per region")
    add("--lut", metavar="TSV", type=Path, help="look-up table of the regions, with the columns index and name")
    add("--mask", metavar="IMAGE", type=Path, help="brain mask; voxels that are 0 are excluded")
    add("--background-label", metavar="N", type=number, default=0, help="label to ignore (default: 0)")
    add(
        "--resampling-target",
        choices=[target or "none" for target in TARGETS],
        default="data",
        help="resample atlas and mask to the run (data, the default), the run to the atlas (labels), or nothing",
    )
    _add_signals(add)
    add("--t-r", metavar="SECONDS", type=positive, help="repetition time (default: from the run's JSON, or its header)")
    add("--confounds", nargs="+", metavar="TSV", type=Path, help="confounds to remove: one table per run, in order")
    add("--confounds-columns", nargs="+", metavar="NAME", help="use these columns of the confounds (default: all)")
    _add_device(add)
    add("--out", metavar="DIR", type=Path, default=Path(), help="folder to write to (default: the current one)")
    add("--overwrite", action="store_true", help="replace existing files; without it, their runs fail")


def _add_cohort(commands):
    cohort = commands.add_parser(
        "cohort",
        allow_abbrev=False,
        help="write the time series of all runs in a folder of fMRIPrep derivatives",
        description="Write time series, coverage and correlations of the regions of one or more atlases for all runs "
        "in a folder of fMRIPrep derivatives, as BIDS derivatives. Finished runs are skipped: after an interruption, "
        "repeat the command. Failed runs are logged in OUT_DIR/logs; the others continue.",
        epilog="Exit status: 0 all done; 1 some runs failed, the others are written; 2 wrong usage, nothing started; "
        "130 or 143 interrupted. Options may use _ for -.",
    )
    add = cohort.add_argument
    add(
        "source",
        metavar="FMRIPREP_DIR",
        type=Path,
        help="folder of fMRIPrep derivatives; or a TSV file that lists runs in the columns bold, and optionally "
        "confounds, mask, t_r and name",
    )
    add("out_dir", metavar="OUT_DIR", type=Path, help="folder to write to")
    add(
        "level",
        choices=("participant", "group"),
        help="participant: extract the runs. group: only summarize OUT_DIR (page and --store)",
    )
    add = cohort.add_argument_group("runs").add_argument
    for plural, option in list(CHOOSING.items())[:-1]:
        add(option, dest=plural, nargs="+", default=(), metavar="LABEL", help=f"only these {plural}")
    add("--space", help="space of the images, such as MNI152NLin2009cAsym (needed if there are several)")
    add(
        "--shard",
        metavar="I/N",
        help="only the I-th of N parts of the runs (1/N to N/N; default: by SLURM_ARRAY_TASK_ID and _COUNT, if set)",
    )
    add("--dry-run", action="store_true", help="list the runs to do; write nothing")
    add("--overwrite", action="store_true", help="redo finished runs")

    add = cohort.add_argument_group("extraction and output").add_argument
    add("--atlas", action="append", default=[], metavar="[NAME=]IMAGE", help="label image; may be given several times")
    add(
        "--lut",
        action="append",
        type=Path,
        metavar="TSV",
        help="look-up table with the columns index and name, one per --atlas, in order (default: the same-named TSV "
        "file next to the atlas)",
    )
    add("--min-coverage", metavar="SHARE", type=float, default=0.5, help="less covered regions are n/a (default: 0.5)")
    _add_signals(add)
    add(
        "--confounds-strategy",
        metavar="NAME",
        help="nilearn load_confounds_strategy: simple, scrubbing, compcor, ica_aroma; append +gsr for the global "
        "signal",
    )
    add(
        "--confounds-columns",
        nargs="+",
        metavar="NAME",
        help="columns of the confounds to remove; * and ? are wildcards",
    )
    add("--fd-threshold", metavar="MM", type=positive, help="censor volumes with more framewise displacement")
    add("--no-relmat", action="store_true", help="write no correlation matrices")
    add("--figures", action="store_true", help="write figures of each run (needs matplotlib)")
    add("--store", metavar="FILE.parquet", type=Path, help="at the end, also write all time series to a Parquet file")

    add = cohort.add_argument_group("execution").add_argument
    add("--nprocs", metavar="N", type=int, default=1, help="processes (default: 1, with a thread for each core)")
    add("--dask-scheduler", metavar="ADDRESS", help="run on the workers of a Dask cluster")
    _add_device(add)


def _add_signals(add):
    add("--strategy", choices=STRATEGIES, default="mean", help="statistic of a region's voxels (default: mean)")
    add("--smoothing-fwhm", metavar="MM", type=positive, help="FWHM of the Gaussian smoothing kernel, in mm")
    add("--detrend", action="store_true", help="remove mean and linear trend")
    add("--low-pass", metavar="HZ", type=positive, help="remove higher frequencies (Butterworth)")
    add("--high-pass", metavar="HZ", type=positive, help="remove lower frequencies (Butterworth)")
    add("--standardize", choices=STANDARDIZE, help="z-score, or percent signal change (default: neither)")


def _add_device(add):
    add("--device", default="auto", help="auto (the default: a GPU if there is one), cpu, cuda or cuda:N")


def check_cutoffs(args: argparse.Namespace) -> None:
    """Raise a ValueError if the filter's band is empty."""
    if args.low_pass and args.high_pass and args.high_pass >= args.low_pass:
        msg = f"--high-pass ({args.high_pass} Hz) must be lower than --low-pass ({args.low_pass} Hz)"
        raise ValueError(msg)


def check_file(option: str, path: Path | None) -> None:
    """Raise a FileNotFoundError if an option's file doesn't exist."""
    if path is not None and not path.is_file():
        msg = f"{option}: no such file: {path}"
        raise FileNotFoundError(msg)


def number(text: str) -> int | float:
    """Integer or float, as it is written."""
    return float(text) if set(text) - set("+-0123456789") else int(text)


def positive(text: str) -> float:
    """Positive finite number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        msg = f"expected a positive number, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value
