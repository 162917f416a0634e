"""Options of all commands."""

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from gpumask import __version__
from gpumask.bids.content import check_content
from gpumask.choices import MAPS_STRATEGIES, MAX_FWHM, OUTPUT_TYPES, RELMATS, STANDARDIZE, STRATEGIES, TARGETS
from gpumask.cli.config import named_path, read_config
from gpumask.inputs import irregularity

_LEVELS = ("participant", "group")
CHOOSING = {
    "participants": "--participant-label",
    "sessions": "--session-id",
    "tasks": "--task-id",
    "runs": "--run-id",
    "space": "--space",
}


class _Given(argparse.Action):
    """Keep what an option is given. Lists may be given in parts; a second single value would replace the first."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self._is_given = False

    def __call__(self, parser, namespace, values, option_string=None):
        if self.nargs is None and isinstance(values, list):  # argparse makes an empty one of --option=--
            raise argparse.ArgumentError(self, "expected one argument")
        if self._is_given and option_string:
            if self.nargs is None:
                raise argparse.ArgumentError(self, "given twice, expected once")
            values = [*getattr(namespace, self.dest), *values]
        self._is_given = True
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A parser that suggests an option for an unknown one; each parses once."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        for action in (None, "store"):
            self.register("action", action, _Given)
        self.add_argument("--version", action="version", version=f"gpumask {__version__}")
        self.commands = {}

    def check_options(self, words: Sequence[str]) -> None:
        """Exit if a word looks like an option and isn't one; argparse would first miss required ones."""
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if (
                not re.match("--[a-zA-Z]|-[a-zA-Z]{2}", name)
                or name in self._option_string_actions
                or self._is_short(name)
            ):
                continue
            near = self._nearest(f"--{name.lstrip('-')}".lower())
            self.error(f"unrecognized arguments: {name}" + (f". Did you mean {near}?" if near else ""))

    @property
    def options(self) -> dict[str, argparse.Action]:
        """The options by name, without dashes in front, that may stand in a file."""
        named = [(action.option_strings[-1][2:], action) for action in self._actions if action.option_strings]
        return {name: action for name, action in named if name not in ("help", "version", "config")}

    def runs_first(self, words: list[str]) -> list[str]:
        """The words of ``extract`` with the runs of "--atlas IMAGE RUN ..." in front: such options have several values.

        The same for --seeds, --lut and "--confounds auto"; only if there are no other runs.
        """
        surplus: list[int] = []
        k = 0
        while k < len(words):
            action = self._option_string_actions.get(words[k])
            if action is None and not words[k].startswith("-"):
                return words  # a run
            stop = k + 1
            if action is not None and action.nargs == "+":
                while stop < len(words) and not words[stop].startswith("-"):
                    stop += 1
            elif action is not None and action.nargs is None:
                stop += 1
            if words[k] in ("--atlas", "--seeds", "--lut", "--label-map") or words[k : k + 2] == [
                "--confounds",
                "auto",
            ]:
                surplus += range(k + 2, stop)
            k = stop
        return [*(words[i] for i in surplus), *(word for i, word in enumerate(words) if i not in surplus)]

    def _is_short(self, name):
        return not name.startswith("--") and name[:2] in self._option_string_actions

    def _nearest(self, name):
        options = [option for option in self._option_string_actions if option.startswith("--")]
        longer = [option for option in options if option.startswith(name)]
        containing = [option for option in options if name.strip("-") in option]
        return next(iter([*longer, *get_close_matches(name, options, n=1), *containing]), None)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the words of a command line; SystemExit 2 if they can't be."""
    parser = build_parser()
    # BIDS Apps accept both spellings of options.
    words = [re.sub("^--[a-zA-Z_]+", lambda match: match[0].replace("_", "-"), word) for word in map(str, words)]
    command = parser.commands.get(words[0]) if words else None
    if command is not None:
        command.check_options(words[1:])
        if (path := _config_of(words[1:])) is not None:
            try:
                check_file("--config", path)
                command.set_defaults(**read_config(path, command.options))
            except (OSError, ValueError) as error:
                command.exit(2, f"{command.prog}: error: {error}\n")
        words = [words[0], *(_level_first if words[0] == "cohort" else command.runs_first)(words[1:])]
    return parser.parse_args(words)


def _config_of(words):
    """The file of --config, which is read before the other options."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", type=Path)
    try:
        return first.parse_known_args(words)[0].config
    except argparse.ArgumentError:  # which the whole parser reports
        return None


def _level_first(words):
    """The words of ``cohort`` with FMRIPREP_DIR OUT_DIR LEVEL in front, where no option takes them for its own."""
    for k in range(2, len(words)):
        if words[k] in _LEVELS and not any(word.startswith("-") for word in words[k - 2 : k]):
            return [*words[k - 2 : k + 1], *words[: k - 2], *words[k + 1 :]]
    return words


def build_parser() -> Parser:
    """Parser of the command line; ``command`` is the command's name."""
    parser = Parser("gpumask", description="Region time series from fMRI runs.", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    parser.commands = commands.choices
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
    info = commands.add_parser("info", help="show versions, devices, and why a GPU can't be used")
    info.add_argument("--denoise", action="store_true", help="show what each preset of --denoise removes instead")
    return parser


def options_of(command: str) -> dict[str, argparse.Action]:
    """The options of a command by name, without dashes in front, that may stand in a file."""
    return build_parser().commands[command].options


def _add_extract(commands):
    extract = commands.add_parser(
        "extract",
        allow_abbrev=False,
        help="write the time series of an atlas's regions, a TSV file per run",
        description="Write the time series of an atlas's regions: per run a TSV file (a column per region, a row per "
        "volume) and a JSON sidecar that describes how it was made. An atlas is a label image, maps, or seeds.",
        epilog="A run sub-1_task-rest_desc-preproc_bold.nii.gz is written to sub-1_task-rest_atlas-<atlas>_stat-mean_"
        "timeseries.tsv. Exit status: 0 done; 1 some runs failed, the others are written; 2 wrong usage.",
    )
    add = extract.add_argument
    add(
        "runs", nargs="+", metavar="RUN", type=Path, help="3D or 4D image (NIfTI, ...), or dense series (.dtseries.nii)"
    )
    add(
        "--atlas",
        nargs="+",
        default=[],
        metavar="[NAME=]IMAGE",
        type=named_path,
        help="label image (a number per region), or 4D image of maps; or for dense series, .dlabel.nii or "
        ".dscalar.nii; several are extracted together",
    )
    _add_label_map(add)
    _add_seeds(add)
    add(
        "--lut",
        nargs="+",
        metavar="TSV",
        type=Path,
        help="look-up table of the regions, with the columns index and name; one per --atlas, in order; for "
        "maps, with a row per map (default: the table next to the atlas, or inherited as in BIDS)",
    )
    add("--mask", metavar="IMAGE", type=Path, help="brain mask; voxels that are 0 are excluded")
    add("--background-label", metavar="N", type=number, help="label to ignore (default: 0)")
    add(
        "--resampling-target",
        choices=[target or "none" for target in TARGETS],
        default="data",
        help="resample atlas and mask to the run (data, the default), the run to the atlas (labels), or nothing",
    )
    _add_signals(add)
    add(
        "--t-r",
        metavar="SECONDS",
        type=positive,
        help="repetition time (default: from the run's JSON, else its header)",
    )
    add(
        "--confounds",
        nargs="+",
        metavar="TSV",
        type=Path,
        help="confounds to remove: one table per run, in order; or auto: fMRIPrep's table next to each run",
    )
    _add_confounds(add, "columns of the confounds to remove (default: all); * and ? are wildcards")
    _add_space_mismatch(add)
    _add_device(add)
    _add_cifti(add)
    _add_verbosity(extract)
    add("--out", metavar="DIR", type=Path, default=Path(), help="folder to write to (default: the current one)")
    _add_relmat(add, "default: none")
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
        choices=_LEVELS,
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
    add(
        "--bids-filter-file",
        metavar="JSON",
        type=Path,
        help='only runs of these entities, as fMRIPrep: {"bold": {"session": "01", "acquisition": null}}',
    )
    add("--dry-run", action="store_true", help="list the runs to do; write nothing")
    add("--overwrite", action="store_true", help="redo finished runs, and allow changed options")

    add = cohort.add_argument_group("extraction and output").add_argument
    add(
        "--atlas",
        nargs="+",
        default=[],
        metavar="[NAME=]IMAGE",
        type=named_path,
        help="label images, or 4D images of maps; all are extracted in one read, and --seeds with them. With "
        ".dlabel.nii or .dscalar.nii, fMRIPrep's *_bold.dtseries.nii are extracted instead of volumes",
    )
    _add_label_map(add)
    _add_seeds(add)
    add(
        "--lut",
        nargs="+",
        type=Path,
        metavar="TSV",
        help="look-up table with the columns index and name, one per --atlas, in order; for maps, with a row per "
        "map (default: the TSV file of the same name, or with fewer BIDS entities, next to the atlas or above it in "
        "its data set)",
    )
    add("--min-coverage", metavar="SHARE", type=float, default=0.5, help="less covered regions are n/a (default: 0.5)")
    _add_signals(add)
    _add_confounds(add, "columns of the confounds to remove; * and ? are wildcards")
    _add_space_mismatch(add)
    _add_relmat(add, "default: pearson")
    add("--no-relmat", action="store_true", help="write no connectivity matrices")
    _add_cifti(add)
    add("--figures", action="store_true", help="write figures of each run (needs matplotlib)")
    add("--store", metavar="FILE.parquet", type=Path, help="at the end, also write all time series to a Parquet file")
    add(
        "--tangent",
        action="store_true",
        help="at the end, also write the tangent-space connectivity of all runs (needs all regions in all runs)",
    )

    execution = cohort.add_argument_group(
        "execution", "No --work-dir: temporary files are next to the outputs, and removed."
    )
    add = execution.add_argument
    add("--nprocs", metavar="N", type=int, default=1, help="processes, with a run each at a time (default: 1)")
    add(
        "--nthreads",
        metavar="N",
        type=int,
        help="threads of the one process, with a run each at a time (default: as many as cores)",
    )
    add("--dask-scheduler", metavar="ADDRESS", help="run on the workers of a Dask cluster")
    _add_device(add, ", or several GPUs that share the runs: cuda:0,cuda:1 or cuda:all")
    add("--stop-on-first-crash", action="store_true", help="stop at the first run that fails; finished runs are kept")
    _add_verbosity(execution)
    add(
        "--config",
        metavar="FILE.toml",
        type=Path,
        help="file of options, as detrend = true; those of the command line win. OUT_DIR/logs/config.toml repeats the "
        "last command",
    )


def _add_signals(add):
    add("--strategy", choices=STRATEGIES, help="statistic of a region's voxels, except for maps (default: mean)")
    add(
        "--maps-strategy",
        choices=list(MAPS_STRATEGIES),
        help="signals of maps: the amplitudes that together fit each volume best (least_squares, the default), or the "
        "weighted mean of each map",
    )
    add("--smoothing-fwhm", metavar="MM", type=_width, help="FWHM of the Gaussian smoothing kernel, in mm")
    add("--detrend", action="store_true", help="remove mean and linear trend")
    add("--low-pass", metavar="HZ", type=positive, help="remove higher frequencies (Butterworth)")
    add("--high-pass", metavar="HZ", type=positive, help="remove lower frequencies (Butterworth)")
    add("--standardize", choices=STANDARDIZE, help="z-score, or percent signal change (default: neither)")


def _add_label_map(add):
    add(
        "--label-map",
        nargs="+",
        metavar="NAME|N",
        help="map of a .dlabel.nii that has several, by its name or its index from 0; one per --atlas, in order (n/a "
        "for other files)",
    )


def _add_cifti(add):
    add(
        "--cifti",
        action="store_true",
        help="write the results of .dlabel.nii as .ptseries.nii (and .pconn.nii, .pscalar.nii) too",
    )


def _add_seeds(add):
    add(
        "--seeds",
        nargs="+",
        default=[],
        metavar="[NAME=]TSV",
        type=named_path,
        help="table of seeds: the columns x, y, z (mm), and optionally name and radius (mm)",
    )
    add(
        "--radius",
        metavar="MM",
        type=_not_negative,
        help="radius of the spheres around seeds without one in their table (default: only the nearest voxel)",
    )
    add("--allow-overlap", action="store_true", help="allow spheres to share voxels")


def _add_confounds(add, columns):
    add(
        "--confounds-strategy",
        metavar="NAME",
        help="nilearn load_confounds_strategy: simple, scrubbing, compcor, ica_aroma; append +gsr for the global "
        "signal (needs nilearn: pip install 'gpumask[fmriprep]')",
    )
    add("--confounds-columns", nargs="+", metavar="NAME", help=columns)
    add(
        "--denoise",
        nargs="+",
        default=[],
        metavar="[NAME=]SPEC",
        type=named_path,
        help="denoisings to make from one read, each written with desc-NAME: presets (gpumask info --denoise lists "
        "them), or .toml or .json files; the other options count for those that don't say otherwise",
    )
    add("--fd-threshold", metavar="MM", type=positive, help="censor volumes with more framewise displacement")
    add(
        "--motion-filter",
        metavar="FILTER",
        help="filter respiration out of the motion parameters for framewise displacement: notch:12-18 (a band) or "
        "lowpass:6, in breaths per minute, as XCP-D's",
    )
    add(
        "--output-type",
        choices=OUTPUT_TYPES,
        default="censored",
        help="rows of dropped volumes in time series: none (censored, the default), n/a, or interpolated, where dummy "
        "scans are n/a",
    )
    add(
        "--dummy-scans",
        metavar="auto|N",
        type=_dummy_scans,
        default="auto",
        help="volumes to drop at the beginning (default: auto, non-steady-state volumes of the confounds table; 0 keeps"
        " all)",
    )
    add(
        "--min-time",
        metavar="SECONDS",
        type=_not_negative,
        default=240.0,
        help="refuse censored runs with less time left (default: 240; 0 accepts any)",
    )
    add(
        "--min-dof",
        metavar="N",
        type=_not_negative,
        help="refuse runs with fewer degrees of freedom after cleaning (default: 2, the fewest)",
    )


def _add_relmat(add, default):
    add(
        "--relmat",
        nargs="*",
        action="extend",
        choices=list(RELMATS),
        metavar="KIND",
        help=f"connectivity matrices to write: {', '.join(RELMATS)} (without a KIND: pearson; {default})",
    )


def _add_space_mismatch(add):
    add(
        "--allow-space-mismatch",
        action="store_true",
        help="only warn if an atlas or mask is in another space than a run, by their names",
    )


def _add_verbosity(container):
    add = container.add_mutually_exclusive_group().add_argument
    more = "show the stages and files of each run, and tracebacks"
    for short, name, what in (("-v", "verbose", more), ("-q", "quiet", "show errors only")):
        add(short, f"--{name}", dest="verbosity", action="store_const", const=name, help=what)


def _add_device(add, more=""):
    choices = "auto (the default: a GPU where it is expected to be faster), cpu, cuda, cuda:N"
    add("--device", default="auto", help=f"{choices}{more}")


def check_cutoffs(args: argparse.Namespace) -> None:
    """Raise a ValueError if the filter's band is empty."""
    if args.low_pass and args.high_pass and args.high_pass >= args.low_pass:
        msg = f"--high-pass ({args.high_pass} Hz) must be lower than --low-pass ({args.low_pass} Hz)"
        raise ValueError(msg)


def check_file(option: str, path: Path | None) -> None:
    """Raise a FileNotFoundError if an option's file doesn't exist, and a ValueError if it isn't a regular file."""
    check_content(path)
    if path is None:
        return
    if not path.exists():
        msg = f"{option}: no such file: {path}"
        raise FileNotFoundError(msg)
    if reason := irregularity(path):
        msg = f"{option}: {path} {reason}"
        raise ValueError(msg)


def number(text: str) -> int | float:
    """Integer or float, as it is written."""
    return float(text) if set(text) - set("+-0123456789") else int(text)


def _dummy_scans(text):
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    msg = f"expected auto or a number of volumes, got {text!r}"
    raise argparse.ArgumentTypeError(msg)


def _width(text):
    width = positive(text)
    if width > MAX_FWHM:
        msg = f"expected a width of at most {MAX_FWHM} mm, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return width


def _not_negative(text):
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)


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
