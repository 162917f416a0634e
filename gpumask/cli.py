"""The command line. Nothing heavy is imported before a command needs it: ``--help`` and ``--version`` are quick."""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from gpumask import __version__

# As in gpumask.masker and gpumask.kernels.STRATEGIES, which take a second to import.
_STANDARDIZE = ("zscore_sample", "zscore", "psc")
_STRATEGIES = ("mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation")
_TARGETS = ("data", "labels", "none")


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        If None, the process's arguments.

    Returns
    -------
    int
        0: done. 1: some runs failed, the others are written. 2: wrong usage, no run was begun. 130: interrupted.
    """
    try:
        args = _parser().parse_args(argv)
        code = args.command(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse's way to end, for --help too
        return stop.code
    except KeyboardInterrupt:
        _tell("gpumask: interrupted")
        return 130
    except BrokenPipeError:  # who reads our output has left, as in `gpumask info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
        return 1


def _parser():
    parser = argparse.ArgumentParser("gpumask", description="Region time series from fMRI runs.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"gpumask {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    extract = commands.add_parser(
        "extract",
        allow_abbrev=False,
        help="write the time series of an atlas's regions, a TSV file per run",
        description="Write the time series of an atlas's regions: per run a TSV file (a column per region, a row per "
        "volume) and a JSON sidecar that says how it was made.",
        epilog="A run sub-1_task-rest_desc-preproc_bold.nii.gz is written to sub-1_task-rest_atlas-<atlas>_stat-mean_"
        "timeseries.tsv. Exit status: 0 done; 1 some runs failed, the others are written; 2 wrong usage.",
    )
    extract.set_defaults(command=_extract)
    add = extract.add_argument
    add("runs", nargs="+", metavar="RUN", type=Path, help="3D or 4D image (NIfTI, Analyze, MGH, ...)")
    add("--atlas", required=True, metavar="IMAGE", type=Path, help="label image: a number per region")
    add("--lut", metavar="TSV", type=Path, help="look-up table of the regions, with the columns index and name")
    add("--mask", metavar="IMAGE", type=Path, help="voxels that are 0 here belong to no region")
    add("--background-label", metavar="N", type=_number, default=0, help="label of no region (default: 0)")
    add("--strategy", choices=_STRATEGIES, default="mean", help="statistic of a region's voxels (default: mean)")
    add(
        "--resampling-target",
        choices=_TARGETS,
        default="data",
        help="resample atlas and mask to the run (data, the default), the run to the atlas (labels), or nothing",
    )
    add("--smoothing-fwhm", metavar="MM", type=_positive, help="smooth with a Gaussian of this full width, in mm")
    add("--detrend", action="store_true", help="remove mean and linear trend")
    add("--low-pass", metavar="HZ", type=_positive, help="remove higher frequencies (Butterworth)")
    add("--high-pass", metavar="HZ", type=_positive, help="remove lower frequencies (Butterworth)")
    add("--t-r", metavar="SECONDS", type=_positive, help="repetition time (default: by the run's header)")
    add("--confounds", nargs="+", metavar="TSV", type=Path, help="confounds to remove: one table per run, in order")
    add("--confounds-columns", nargs="+", metavar="NAME", help="use these columns of the confounds (default: all)")
    add("--standardize", choices=_STANDARDIZE, help="z-score, or percent signal change (default: neither)")
    add("--device", default="auto", help="auto (the default: a GPU if there is one), cpu, cuda or cuda:N")
    add("--out", metavar="DIR", type=Path, default=Path(), help="folder to write to (default: the current one)")
    add("--overwrite", action="store_true", help="replace existing files; without it, their runs fail")

    demo = commands.add_parser(
        "demo",
        help="extract a small real run that comes with nibabel, and show the result",
        description="Extract a small real run that comes with nibabel, with an atlas cut from it; show the result.",
    )
    demo.set_defaults(command=_demo)
    demo.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("gpumask-demo"), help="folder to write to (gpumask-demo)"
    )

    info = commands.add_parser("info", help="show versions, devices, and why a GPU can't be used")
    info.set_defaults(command=_info)
    return parser


def _number(text):
    return float(text) if set(text) - set("+-0123456789") else int(text)


def _positive(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        msg = f"expected a positive number, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _extract(args):
    bar = _Bar(len(args.runs))
    try:
        records = _start(args, bar)
    except (OSError, ValueError, TypeError, ImportError, MemoryError, RuntimeError) as error:
        _tell(f"gpumask extract: error: {error}")
        return 2
    failed = 0
    try:
        for record in records:
            bar.clear()
            for message in record.warnings:
                _tell(f"{record.run.path}: warning: {message}")
            if record.error:
                failed += 1
                _tell(f"{record.run.path}: error: {record.error}")
                continue
            size = "{} volumes x {} regions".format(*record.shape)
            print(record.path, size, f"{record.seconds['total']:.2f} s", sep="\t", flush=True)
    finally:
        bar.clear()
    return 1 if failed else 0


def _start(args, progress):
    """Check what all runs have in common, and return an iterator that extracts them."""
    for option in ("atlas", "mask", "lut"):
        path = getattr(args, option)
        if path is not None and not path.is_file():
            msg = f"--{option}: there is no such file: {path}"
            raise FileNotFoundError(msg)
    if args.confounds and len(args.confounds) != len(args.runs):
        msg = f"--confounds: expected one table per run, got {len(args.confounds)} for {len(args.runs)} run(s)"
        raise ValueError(msg)
    if args.confounds_columns and not args.confounds:
        msg = "--confounds-columns: there are no --confounds to take columns from"
        raise ValueError(msg)
    if args.low_pass and args.high_pass and args.high_pass >= args.low_pass:
        msg = f"--high-pass ({args.high_pass} Hz) must be lower than --low-pass ({args.low_pass} Hz)"
        raise ValueError(msg)

    from gpumask.extract import Run, collect_warnings, extract_runs
    from gpumask.masker import NiftiLabelsMasker

    masker = NiftiLabelsMasker(
        args.atlas,
        background_label=args.background_label,
        mask_img=args.mask,
        smoothing_fwhm=args.smoothing_fwhm,
        standardize=args.standardize,
        detrend=args.detrend,
        low_pass=args.low_pass,
        high_pass=args.high_pass,
        t_r=args.t_r,
        resampling_target=None if args.resampling_target == "none" else args.resampling_target,
        lut=args.lut,
        strategy=args.strategy,
        device=args.device,
    )
    with collect_warnings() as messages:
        masker.fit()
    for message in messages:
        _tell(f"{args.atlas}: warning: {message}")
    tables = args.confounds or [None] * len(args.runs)
    runs = [Run(path, confounds) for path, confounds in zip(args.runs, tables, strict=True)]
    records = extract_runs(
        masker,
        runs,
        args.out,
        confounds_columns=args.confounds_columns,
        overwrite=args.overwrite,
        progress=progress,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    if not os.access(args.out, os.W_OK | os.X_OK):
        msg = f"--out: no permission to write to {args.out}"
        raise PermissionError(msg)
    return records


def _demo(args):
    from gpumask.demo import example_run, write_atlas

    run = example_run()
    atlas, lut = write_atlas(run, args.out)
    words = ["extract", run, "--atlas", atlas, "--lut", lut, "--detrend", "--standardize", "psc"]
    words = [*map(str, words), "--out", str(args.out), "--overwrite"]
    print("gpumask", *words)
    code = main(words)
    if code == 0:
        import pandas as pd

        table = args.out / "functional_atlas-boxes_stat-mean_timeseries.tsv"
        print(f"\nPercent signal change, the first volumes and regions of {table}:\n")
        print(pd.read_table(table).iloc[:5, :6].to_string(float_format="%.3f"))
    return code


def _info(args):
    from importlib import metadata

    from gpumask import backend
    from gpumask.extract import versions
    from gpumask.images import decoding
    from gpumask.pipeline import n_cores

    facts = versions(cupy=True)
    for name in ("nilearn", "isal", "cupy"):
        if any(known.startswith(name) for known in facts):
            continue
        try:
            facts = {**facts, name: metadata.version(name)}
        except metadata.PackageNotFoundError:
            facts = {**facts, name: "not installed"}
    for name, version in facts.items():
        print(f"{name:14}{version}")
    driver, status = backend.driver_cuda_version(), backend.cuda_status()
    print(f"{'driver':14}" + (f"CUDA {driver[0]}.{driver[1]}" if driver else "no NVIDIA driver found"))
    for index, name in enumerate(status.devices):
        print(f"{f'cuda:{index}':14}{name}")
    if not status.devices:
        print(f"{'GPU':14}can't be used: {status.problem}")
    if status.remedy:
        print(f"{'remedy':14}{status.remedy}")
    slow = decoding.igzip.__name__ == "gzip"
    print(f"{'gzip decoder':14}" + ("zlib: pip install isal is 2 times as fast" if slow else "isal"))
    print(f"{'cores':14}{n_cores()}")
    return 0


def _tell(message):
    """One line to the user, whatever the message has."""
    print(" ".join(str(message).split()), file=sys.stderr, flush=True)


class _Bar:
    """How far a run is, in one line on the terminal; nothing where standard error is none."""

    def __init__(self, n_runs):
        self.n_runs, self.number, self.run = n_runs, 0, None
        self.shown = sys.stderr.isatty()
        self.width = 0

    def __call__(self, run, done, total):
        now = time.monotonic()
        if run is not self.run:
            self.run, self.number, self.started, self.drawn = run, self.number + 1, now, 0.0
        if not self.shown or (now - self.drawn < 0.1 and done < total):
            return
        self.drawn = now
        rate = done / max(now - self.started, 1e-9)
        left = "{}:{:02}".format(*divmod(round((total - done) / rate), 60)) if done else "-:--"
        head = f"{self.number}/{self.n_runs} {Path(run.path).name} "
        tail = (
            f" {done:{len(str(total))}}/{total} volumes {rate:4.0f}/s {left:>5} left"  # of one width: it stands still
        )
        room = shutil.get_terminal_size().columns - 1
        head = head[: max(room - len(tail) - 12, 0)]
        cells = min(max(room - len(head) - len(tail) - 2, 0), 30)
        filled = cells * done // max(total, 1)
        line = f"{head}[{'#' * filled:{cells}}]{tail}"[:room]
        self._draw(line.ljust(self.width))
        self.width = len(line)

    def clear(self):
        """Blank the line, so that other output can take its place."""
        if self.width:
            self._draw(" " * self.width + "\r")
            self.width = 0

    def _draw(self, line):
        sys.stderr.write("\r" + line)
        sys.stderr.flush()
