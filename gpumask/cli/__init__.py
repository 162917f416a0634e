"""The command line. Nothing heavy is imported before a command needs it: ``--help`` and ``--version`` are quick."""

import argparse
import contextlib
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from gpumask import __version__

# As in gpumask.masker and gpumask.kernels.STRATEGIES, which take a second to import.
_STANDARDIZE = ("zscore_sample", "zscore", "psc")
_STRATEGIES = ("mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation")
_TARGETS = ("data", "labels", "none")
_CHOOSING = {
    "participants": "--participant-label",
    "sessions": "--session-id",
    "tasks": "--task-id",
    "runs": "--run-id",
    "space": "--space",
}
_USER_ERRORS = (OSError, ValueError, TypeError, ImportError, MemoryError, RuntimeError)


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        If None, the process's arguments.

    Returns
    -------
    int
        0: done. 1: some runs failed, the others are written. 2: wrong usage, no run was begun. 130: interrupted. 143:
        terminated.
    """
    try:
        words = sys.argv[1:] if argv is None else argv
        args = _parser().parse_args([re.sub("^--[a-z_]+", _hyphens, word) for word in words])
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

    _add_cohort(commands)

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


def _add_cohort(commands):
    cohort = commands.add_parser(
        "cohort",
        allow_abbrev=False,
        help="write the time series of all runs of a folder of fMRIPrep derivatives",
        description="Write time series, coverage and correlations of the regions of one or more atlases for all runs "
        "of a folder of fMRIPrep derivatives, as BIDS derivatives. Runs that are done are skipped: after an "
        "interruption, give the same command again. Bad runs are recorded in OUT_DIR/logs, and the rest goes on.",
        epilog="Exit status: 0 all done; 1 some runs failed, the others are written; 2 wrong usage, nothing was begun; "
        "130 or 143 interrupted. Options may be spelt with _ for -.",
    )
    cohort.set_defaults(command=_cohort)
    add = cohort.add_argument
    add(
        "source",
        metavar="FMRIPREP_DIR",
        type=Path,
        help="folder of fMRIPrep derivatives; or a TSV file that lists runs in the columns bold, and if need be "
        "confounds, mask, t_r and name",
    )
    add("out_dir", metavar="OUT_DIR", type=Path, help="folder to write to")
    add(
        "level",
        choices=("participant", "group"),
        help="participant: extract the runs. group: only sum up what is in OUT_DIR (page, and --store)",
    )
    chosen = cohort.add_argument_group("runs")
    for plural, option in list(_CHOOSING.items())[:-1]:
        chosen.add_argument(option, dest=plural, nargs="+", default=(), metavar="LABEL", help=f"only these {plural}")
    chosen.add_argument(
        "--space", help="space of the images, such as MNI152NLin2009cAsym (needed if there are several)"
    )
    chosen.add_argument(
        "--shard",
        metavar="I/N",
        help="only the I-th of N parts of the runs (1/N to N/N; default: by SLURM_ARRAY_TASK_ID and _COUNT, if set)",
    )
    chosen.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing")
    chosen.add_argument("--overwrite", action="store_true", help="do runs again that are done")

    made = cohort.add_argument_group("what is made of a run")
    add = made.add_argument
    add("--atlas", action="append", default=[], metavar="[NAME=]IMAGE", help="label image; may be given several times")
    add(
        "--lut",
        action="append",
        type=Path,
        metavar="TSV",
        help="look-up table with the columns index and name, one for each --atlas in their order (default: the TSV "
        "file of the same name beside the atlas)",
    )
    add("--strategy", choices=_STRATEGIES, default="mean", help="statistic of a region's voxels (default: mean)")
    add("--min-coverage", metavar="SHARE", type=float, default=0.5, help="regions covered less are n/a (default: 0.5)")
    add("--smoothing-fwhm", metavar="MM", type=_positive, help="smooth with a Gaussian of this full width, in mm")
    add("--detrend", action="store_true", help="remove mean and linear trend")
    add("--low-pass", metavar="HZ", type=_positive, help="remove higher frequencies (Butterworth)")
    add("--high-pass", metavar="HZ", type=_positive, help="remove lower frequencies (Butterworth)")
    add("--standardize", choices=_STANDARDIZE, help="z-score, or percent signal change (default: neither)")
    add(
        "--confounds-strategy",
        metavar="NAME",
        help="confounds by nilearn's load_confounds_strategy: simple, scrubbing, compcor, ica_aroma; with +gsr the "
        "global signal too",
    )
    add(
        "--confounds-columns",
        nargs="+",
        metavar="NAME",
        help="columns of the confounds to remove; * and ? are wildcards",
    )
    add("--fd-threshold", metavar="MM", type=_positive, help="leave out volumes with more framewise displacement")
    add("--no-relmat", action="store_true", help="write no correlation matrices")
    add("--figures", action="store_true", help="write figures of each run (needs matplotlib)")
    add("--store", metavar="FILE.parquet", type=Path, help="at the end, write all time series to one Parquet file too")

    spread = cohort.add_argument_group("how the work is spread")
    spread.add_argument(
        "--nprocs", metavar="N", type=int, default=1, help="processes (default: 1, with a thread for each core)"
    )
    spread.add_argument("--dask-scheduler", metavar="ADDRESS", help="let the workers of a Dask cluster do the runs")
    spread.add_argument(
        "--device", default="auto", help="auto (the default: a GPU if there is one), cpu, cuda or cuda:N"
    )


def _hyphens(option):
    """Options of BIDS Apps are known in both spellings."""
    return option[0].replace("_", "-")


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
    except _USER_ERRORS as error:
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
    from gpumask.maskers.labels import NiftiLabelsMasker

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


def _cohort(args):
    try:
        if args.store:  # not in the morning
            from gpumask.cohort.parquet import check_pyarrow

            check_pyarrow()
        if args.figures:
            from gpumask.reports.figures import new_figure

            new_figure((1, 1))
        if args.level == "group":
            return _sum_up(args)
        work, runs, problems = _plan_cohort(args)
        if args.dry_run:
            return _dry_run(work, runs, problems)
        with contextlib.ExitStack() as stack:
            spread = {"n_procs": args.nprocs}
            if args.dask_scheduler:
                from gpumask.cohort.executors import dask_executor

                spread["executor"], spread["in_flight"] = stack.enter_context(dask_executor(args.dask_scheduler))
            return _run_cohort(args, work, runs, problems, spread)
    except _USER_ERRORS as error:
        _tell(f"gpumask cohort: error: {error}")
        return 2


def _plan_cohort(args):
    """What is to be done to which runs, checked as far as it can be before any is read; and what can't be taken."""
    from gpumask.bids import find_runs, read_manifest
    from gpumask.cohort import AtlasFile, Work
    from gpumask.extract import collect_warnings

    if not args.atlas:
        msg = "--atlas is missing: give one label image or more"
        raise ValueError(msg)
    if args.lut and len(args.lut) != len(args.atlas):
        msg = f"--lut: expected one for each --atlas, got {len(args.lut)} for {len(args.atlas)}"
        raise ValueError(msg)
    if args.low_pass and args.high_pass and args.high_pass >= args.low_pass:
        msg = f"--high-pass ({args.high_pass} Hz) must be lower than --low-pass ({args.low_pass} Hz)"
        raise ValueError(msg)
    if args.nprocs < 1:
        msg = f"--nprocs: expected 1 or more, got {args.nprocs}"
        raise ValueError(msg)
    atlases = []
    for text, lut in zip(args.atlas, args.lut or [None] * len(args.atlas), strict=True):
        name, _, path = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        for option, file in (("--atlas", Path(path)), ("--lut", lut)):
            if file is not None and not file.is_file():
                msg = f"{option}: there is no such file: {file}"
                raise FileNotFoundError(msg)
        atlases.append(AtlasFile(path, lut, name or None))
    names = ("strategy", "min_coverage", "smoothing_fwhm", "detrend", "low_pass", "high_pass", "standardize")
    confounds = {"strategy": args.confounds_strategy, "columns": args.confounds_columns}
    confounds = {**confounds, "fd_threshold": args.fd_threshold}
    work = Work(
        tuple(atlases),
        args.out_dir,
        {name: getattr(args, name) for name in names} | {"standardize": args.standardize or False},
        {name: value for name, value in confounds.items() if value is not None},
        device=args.device,
        relmat=not args.no_relmat,
        figures=args.figures,
        overwrite=args.overwrite,
    )
    with collect_warnings() as messages:
        work.maskers()
    for message in messages:
        _tell(f"warning: {message}")
    if args.source.is_dir():
        chosen = {name: getattr(args, name) for name in _CHOOSING}
        runs, problems = find_runs(args.source, **chosen, require_confounds=bool(work.confounds))
    else:
        runs, problems = read_manifest(args.source)
        for name, option in _CHOOSING.items():
            if getattr(args, name):
                msg = f"{args.source} lists the runs: {option} can't choose among them. Make a shorter list."
                raise ValueError(msg)
    first, n_shards = _shard(args.shard)
    return work, runs[first::n_shards], problems[first::n_shards]


def _shard(text):
    """Index of the shard, from 0, and their number."""
    if text is None:
        env = {name: os.environ.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN", "STEP")}
        if env["ID"] is None or env["COUNT"] is None:
            return 0, 1
        index = (int(env["ID"]) - int(env["MIN"] or 0)) // int(env["STEP"] or 1)
        number, count = index + 1, int(env["COUNT"])
        where = "SLURM_ARRAY_TASK_ID"
        _tell(f"shard {number}/{count}, by SLURM_ARRAY_TASK_ID")
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


def _dry_run(work, runs, problems):
    from gpumask.bids.names import run_name
    from gpumask.cohort import is_done

    n_done = 0
    for run in runs:
        done = is_done(work, run)
        n_done += done
        print(run_name(run), "done" if done else "to do", run.path, sep="\t")
    for problem in problems:
        _tell(f"{problem.path}: {problem.reason}")
    for atlas in work.atlases:
        print(f"atlas {atlas.name}: {atlas.path}, names by {atlas.lut or 'labels'}")
    print(f"{len(runs) - n_done} to do, {n_done} done, {len(problems)} can't be taken")
    return 1 if problems else 0


class _TerminatedError(BaseException):
    """SIGTERM."""


def _terminate(*_):
    raise _TerminatedError


def _run_cohort(args, work, runs, problems, spread):
    from gpumask.bids.names import run_name
    from gpumask.cohort import log_problems
    from gpumask.cohort.executors import run_cohort

    counts = {"done": 0, "skipped": 0, "failed": len(problems), "taken": 0}
    bar, code = _CohortBar(len(runs)), 0
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        records = run_cohort(work, runs, **spread)
        log_problems(work, problems)
        for problem in problems:
            _tell(f"{problem.path}: error: {problem.reason}")
        try:
            with contextlib.closing(records):
                for record in records:
                    counts[record.status] += 1
                    bar.clear()
                    _tell_record(record, run_name(record.run))
                    bar.add(record)
        except _USER_ERRORS as error:  # all workers are lost, say; those of single runs are in their records
            _tell(f"gpumask cohort: error: {error}")
            code = 1
    except KeyboardInterrupt:
        code = 130
    except _TerminatedError:
        code = 143
    finally:
        signal.signal(signal.SIGTERM, before)
        bar.clear()
    left = len(runs) + len(problems) - sum(counts.values())
    if code:
        _tell("gpumask cohort: interrupted. Give the same command again to go on.")
    elif args.shard or "SLURM_ARRAY_TASK_COUNT" in os.environ:
        _tell("When all shards are through, sum up: gpumask cohort FMRIPREP_DIR OUT_DIR group")
    else:
        try:
            code = _sum_up(args, len(runs) + len(problems))
        except _USER_ERRORS as error:
            _tell(f"gpumask cohort: error: the runs could not be summed up: {error}")
            code = 1
    words = {"skipped": "skipped (done before)", "taken": "taken (another process is at them)"}
    print(", ".join([*(f"{n} {words.get(name, name)}" for name, n in counts.items()), f"{left} left"]), flush=True)
    return code or (1 if counts["failed"] else 0)


def _tell_record(record, name):
    for message in record.warnings:
        _tell(f"{name}: warning: {message}")
    if record.error:
        _tell(f"{name}: error: {record.error}")
    elif record.status == "done":
        print(name, f"{record.n_volumes} volumes", f"{record.seconds['total']:.2f} s", sep="\t", flush=True)


def _sum_up(args, n_runs=None):
    """Write what is made from all outputs; 1 if a run that is done could not be stored."""
    from gpumask.cohort.page import write_page

    print(write_page(args.out_dir, n_runs))
    if not args.store:
        return 0
    from gpumask.cohort.parquet import write_store

    paths, refused = write_store(args.out_dir, args.store)
    for path in paths:
        print(path)
    for message in refused:
        _tell(f"--store: left out: {message}")
    return 1 if refused else 0


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
    from gpumask.kernels import compiled
    from gpumask.process import n_cores

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
    slower = "NumPy's and SciPy's, several times as slow: install gpumask where there is a C compiler"
    print(f"{'kernels':14}" + ("compiled" if compiled.is_compiled else slower))
    slow = decoding.igzip.__name__ == "gzip"
    print(f"{'gzip decoder':14}" + ("zlib: pip install isal is 2 times as fast" if slow else "isal"))
    print(f"{'cores':14}{n_cores()}")
    return 0


def _tell(message):
    """One line to the user, whatever the message has."""
    print(" ".join(str(message).split()), file=sys.stderr, flush=True)


class _Line:
    """A line on the terminal that is drawn again and again; nothing where standard error is none."""

    def __init__(self):
        self.shown = sys.stderr.isatty()
        self.width = 0

    def draw(self, head, share, tail):
        """Show a bar of the share that is done, between head and tail."""
        room = shutil.get_terminal_size().columns - 1
        head = head[: max(room - len(tail) - 12, 0)]
        cells = min(max(room - len(head) - len(tail) - 2, 0), 30)
        line = f"{head}[{'#' * int(cells * share):{cells}}]{tail}"[:room]
        self._write("\r" + line.ljust(self.width))
        self.width = len(line)

    def clear(self):
        """Blank the line, so that other output can take its place."""
        if self.width:
            self._write("\r" + " " * self.width + "\r")
            self.width = 0

    def _write(self, text):
        sys.stderr.write(text)
        sys.stderr.flush()


class _Bar(_Line):
    """How far a run is."""

    def __init__(self, n_runs):
        super().__init__()
        self.n_runs, self.number, self.run = n_runs, 0, None

    def __call__(self, run, done, total):
        now = time.monotonic()
        if run is not self.run:
            self.run, self.number, self.started, self.drawn = run, self.number + 1, now, 0.0
        if not self.shown or (now - self.drawn < 0.1 and done < total):
            return
        self.drawn = now
        rate = done / max(now - self.started, 1e-9)
        left = _clock((total - done) / rate) if done else "-:--"
        # Of one width: it stands still.
        tail = f" {done:{len(str(total))}}/{total} volumes {rate:4.0f}/s {left:>5} left"
        self.draw(f"{self.number}/{self.n_runs} {Path(run.path).name} ", done / max(total, 1), tail)


class _CohortBar(_Line):
    """How far a cohort is."""

    def __init__(self, n_runs):
        super().__init__()
        self.n_runs, self.n_passed, self.n_worked, self.n_failed, self.n_volumes = n_runs, 0, 0, 0, 0
        self.started = time.monotonic()

    def add(self, record):
        """Count a run that is through."""
        self.n_passed += 1
        self.n_worked += record.status in ("done", "failed")
        self.n_failed += record.status == "failed"
        self.n_volumes += record.n_volumes
        if not self.shown:
            return
        elapsed = max(time.monotonic() - self.started, 1e-9)
        left = _clock(elapsed / self.n_worked * (self.n_runs - self.n_passed)) if self.n_worked else "-:--"
        speed = f"{self.n_volumes / elapsed:.0f} volumes/s"
        tail = f" {self.n_passed}/{self.n_runs} runs {speed} {left:>5} left {self.n_failed} failed"
        self.draw("", self.n_passed / max(self.n_runs, 1), tail)


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
