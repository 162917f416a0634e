"""Options of `gpumask extract` and `gpumask cohort`."""

from pathlib import Path
from typing import Any

from gpumask.choices import MAPS_STRATEGIES, OUTPUT_TYPES, RELMATS, STANDARDIZE, STRATEGIES, TARGETS
from gpumask.cli.paths import joined_paths, named_path
from gpumask.cli.values import dummy_scans, not_negative, number, positive, width

LEVELS = ("participant", "group")
CHOOSING = {
    "participants": "--participant-label",
    "sessions": "--session-id",
    "tasks": "--task-id",
    "runs": "--run-id",
    "space": "--space",
}


def add_extract(commands: Any) -> None:
    """Add the command to the subparsers."""
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
        "runs",
        nargs="+",
        metavar="RUN",
        type=Path,
        help="3D or 4D image (NIfTI, ...), or dense series (.dtseries.nii, .func.gii)",
    )
    add(
        "--atlas",
        nargs="+",
        default=[],
        metavar="[NAME=]IMAGE",
        type=joined_paths,
        help="label image (a number per region), or 4D image of maps; or for dense series, .dlabel.nii, "
        ".label.gii or .dscalar.nii; several are extracted together. NAME=IMAGE+IMAGE combines label images into one "
        "atlas: voxels with a label in several belong to the first",
    )
    _add_label_map(add)
    _add_seeds(add)
    add(
        "--lut",
        nargs="+",
        metavar="TSV",
        type=joined_paths,
        help="look-up table of the regions, with the columns index and name; one per --atlas, in order (TSV+TSV for "
        "IMAGE+IMAGE); for maps, with a row per map (default, or n/a: the table next to the atlas, or inherited as in "
        "BIDS)",
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
    _add_config(add)


def add_cohort(commands: Any) -> None:
    """Add the command to the subparsers."""
    cohort = commands.add_parser(
        "cohort",
        allow_abbrev=False,
        help="write the time series of all runs in a folder of fMRIPrep derivatives",
        description="Write time series, coverage and correlations of the regions of one or more atlases for all runs "
        "in a folder of fMRIPrep derivatives, as BIDS derivatives. Finished runs are skipped: after an interruption, "
        "repeat the command. Failed runs are logged in OUT_DIR/logs; the others continue.",
        epilog="Exit status: 0 all done; 1 some runs failed or group files couldn't be made, the others are written; 2 "
        "wrong usage, nothing started; 130 or 143 interrupted. Options may use _ for -.",
    )
    add = cohort.add_argument
    add(
        "source",
        metavar="FMRIPREP_DIR",
        type=Path,
        help="folder of fMRIPrep derivatives; or a TSV file that lists runs in the columns bold, and optionally "
        "confounds, mask, t_r, name, and for each run's own atlas, atlas and lut (or atlas_NAME and lut_NAME)",
    )
    add("out_dir", metavar="OUT_DIR", type=Path, help="folder to write to")
    add(
        "level",
        choices=LEVELS,
        help="participant: extract the runs. group: only summarize OUT_DIR (page, tables, --store, --tangent)",
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
        help='only runs with these entities, in fMRIPrep\'s format: {"bold": {"session": "01", "acquisition": null}}',
    )
    add("--dry-run", action="store_true", help="list the runs to do; write nothing")
    add("--overwrite", action="store_true", help="redo finished runs, and allow changed options")

    add = cohort.add_argument_group("extraction and output").add_argument
    add(
        "--atlas",
        nargs="+",
        default=[],
        metavar="[NAME=]IMAGE",
        type=joined_paths,
        help="label images, or 4D images of maps; all are extracted in one read, along with --seeds. "
        "NAME=IMAGE+IMAGE combines label images into one atlas: voxels with a label in several belong to the first. "
        "derivatives:desc-aparcaseg or derivatives:desc-aseg is each run's own segmentation by fMRIPrep. With "
        ".dlabel.nii or .dscalar.nii, fMRIPrep's *_bold.dtseries.nii are extracted instead of volumes; with a "
        "hemisphere's .label.gii, its *_hemi-L_*_bold.func.gii",
    )
    _add_label_map(add)
    _add_seeds(add)
    add(
        "--lut",
        nargs="+",
        type=joined_paths,
        metavar="TSV",
        help="look-up table with the columns index and name, one per --atlas, in order (TSV+TSV for IMAGE+IMAGE); for "
        "maps, with a row per map (default, or n/a: the TSV file of the same name, or with fewer BIDS entities, next "
        "to the atlas or above it in its data set)",
    )
    add("--min-coverage", metavar="SHARE", type=float, default=0.5, help="less covered regions are n/a (default: 0.5)")
    _add_signals(add)
    _add_confounds(add, "columns of the confounds to remove; * and ? are wildcards")
    _add_space_mismatch(add)
    _add_relmat(add, "default: pearson")
    add("--no-relmat", action="store_true", help="write no connectivity matrices")
    _add_cifti(add)
    add("--figures", action="store_true", help="write figures of each run (needs matplotlib)")
    add(
        "--store",
        metavar="FILE.parquet",
        type=Path,
        help="at the end, also write all time series to Parquet: one file per atlas and denoising",
    )
    add(
        "--tangent",
        action="store_true",
        help="at the end, also write the tangent-space connectivity of all runs (needs all regions in all runs)",
    )

    execution = cohort.add_argument_group(
        "execution", "No --work-dir is needed: temporary files are next to the outputs, and are removed."
    )
    add = execution.add_argument
    add("--nprocs", metavar="N", type=int, default=1, help="processes, each with one run at a time (default: 1)")
    add(
        "--nthreads",
        metavar="N",
        type=int,
        help="threads of the single process, each with one run at a time (default: one per core)",
    )
    add("--dask-scheduler", metavar="ADDRESS", help="run on the workers of a Dask cluster")
    _add_device(add, ", or several GPUs that share the runs: cuda:0,cuda:1 or cuda:all")
    add("--stop-on-first-crash", action="store_true", help="stop at the first run that fails; finished runs are kept")
    _add_verbosity(execution)
    _add_config(add, ". OUT_DIR/logs/config.toml repeats the last command")


def _add_signals(add):
    add("--strategy", choices=STRATEGIES, help="statistic of a region's voxels, except for maps (default: mean)")
    add(
        "--maps-strategy",
        choices=list(MAPS_STRATEGIES),
        help="signals of maps: the amplitudes that together fit each volume best (least_squares, the default), or the "
        "weighted mean of each map",
    )
    add("--smoothing-fwhm", metavar="MM", type=width, help="FWHM of the Gaussian smoothing kernel, in mm")
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
        "for other files; MAP+MAP for IMAGE+IMAGE)",
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
        type=not_negative,
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
        "them), or .toml or .json files; the other options apply to those that don't set their own",
    )
    add("--fd-threshold", metavar="MM", type=positive, help="censor volumes with more framewise displacement")
    add(
        "--motion-filter",
        metavar="FILTER",
        help="filter respiration out of the motion parameters for framewise displacement: notch:12-18 (a band) or "
        "lowpass:6, in breaths per minute, as in XCP-D",
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
        type=dummy_scans,
        default="auto",
        help="volumes to drop at the beginning (default: auto, non-steady-state volumes of the confounds table; 0 keeps"
        " all)",
    )
    add(
        "--min-time",
        metavar="SECONDS",
        type=not_negative,
        default=240.0,
        help="refuse censored runs with less time left (default: 240; 0 accepts any)",
    )
    add(
        "--min-dof",
        metavar="N",
        type=not_negative,
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
        help="only warn if file names say that an atlas or mask is in another space than a run",
    )


def _add_verbosity(container):
    add = container.add_mutually_exclusive_group().add_argument
    more = "show the stages and files of each run, and tracebacks"
    for short, name, what in (("-v", "verbose", more), ("-q", "quiet", "show errors only")):
        add(short, f"--{name}", dest="verbosity", action="store_const", const=name, help=what)


def _add_config(add, more=""):
    what = "file of options, such as detrend = true; the command line wins"
    add("--config", metavar="FILE.toml", type=Path, help=f"{what}{more}")


def _add_device(add, more=""):
    choices = "auto (the default: a GPU where it is expected to be faster), cpu, cuda, cuda:N"
    add("--device", default="auto", help=f"{choices}{more}")
