"""Confounds and censoring from fMRIPrep's tables: by columns, or by nilearn's strategies."""

import contextlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumask.bids.content import check_content
from gpumask.bids.names import image_of_confounds
from gpumask.confounds.motion_filter import MotionFilter
from gpumask.confounds.sample_masks import AllVolumesRemovedError
from gpumask.confounds.tables import MOTION, ConfoundsTable, choose_columns, has_names, numeric_column
from gpumask.inputs import open_file, read_json
from gpumask.process import warn
from gpumask.text_tables import listed, read_text_table

if TYPE_CHECKING:
    import pandas as pd


def expanded(names: Iterable[str]) -> list[str]:
    """Names of columns, of their derivatives, and of the squares of both."""
    return [f"{name}{kind}" for name in names for kind in ("", "_derivative1", "_power2", "_derivative1_power2")]


_TISSUES = ("csf", "white_matter")
_STRATEGIES = {  # and the columns that each needs, next to those that +gsr and the JSON file of CompCor name
    "simple": [*expanded(MOTION), *_TISSUES],
    "scrubbing": [*expanded(MOTION), *expanded(_TISSUES), "framewise_displacement", "std_dvars"],
    "compcor": expanded(MOTION),
    "ica_aroma": list(_TISSUES),
}
_AROMA = "smoothAROMAnonaggr"
_NEEDS_NILEARN = "needs nilearn 0.13 or later: pip install 'gpumask[fmriprep]'"
_MEASURES = {
    "fd_threshold": ("framewise_displacement", "numbers in mm"),
    "std_dvars_threshold": ("std_dvars", "numbers"),
}


def fmriprep_confounds(
    run_path: str | os.PathLike,
    confounds: str | os.PathLike | ConfoundsTable,
    *,
    strategy: str | None = None,
    columns: Sequence[str] | None = None,
    fd_threshold: float | None = None,
    std_dvars_threshold: float | None = None,
    scrub: int | None = None,
    n_volumes: int | None = None,
    motion: ConfoundsTable | None = None,
) -> tuple["pd.DataFrame | None", np.ndarray | None]:
    """Confounds of a run and the volumes to keep, from fMRIPrep's table.

    Parameters
    ----------
    run_path : str or path-like
        The image; only "ica_aroma" uses its name.
    confounds : str, path-like or ConfoundsTable
        The table. A strategy needs fMRIPrep's name, ``*_desc-confounds_timeseries.tsv`` or ``_regressors``, and
        "compcor" the JSON file next to it.
    strategy : str, optional
        "simple", "scrubbing", "compcor" or "ica_aroma" with nilearn's defaults, see
        ``nilearn.interfaces.fmriprep.load_confounds_strategy``; append "+gsr" for the global signal. Needs nilearn.
    columns : sequence of str, optional
        Columns to use instead, with the wildcards * ? []: see `choose_columns`. NaN in their first row (derivatives) is
        replaced by the value below it, as in nilearn. Non-steady-state volumes are kept.
    fd_threshold : float, optional
        Volumes with a higher framewise displacement (mm) are censored, in addition to those that `strategy` censors.
    std_dvars_threshold : float, optional
        The same for the standardized DVARS.
    scrub : int, optional
        Fewer volumes in a row between censored ones are censored too, as by nilearn. With "scrubbing", nilearn gets
        this and both thresholds, and has its own defaults for those that are None.
    n_volumes : int, optional
        Volumes of the run. If None, the table's number of rows isn't checked.
    motion : ConfoundsTable, optional
        The same table with another framewise displacement to censor by, see `gpumask.confounds.motion_filter`.

    Returns
    -------
    confounds : DataFrame or None
        A row per volume. None without `strategy` and `columns`.
    sample_mask : ndarray of int or None
        Indices of the volumes to keep. None keeps all.

    Raises
    ------
    ValueError
        If `strategy` and `columns` are both given, or unknown; columns or files are missing; the table has another
        number of rows than `n_volumes`; rows have too many or too few cells; volumes are to be censored, but no
        displacement is known; or no volume is kept.
    ImportError
        If a strategy is given and nilearn isn't installed.
    """
    whole = ConfoundsTable.of(confounds)
    confounds_path = whole.path
    options: dict[str, Any] = {
        "fd_threshold": fd_threshold,
        "std_dvars_threshold": std_dvars_threshold,
        "scrub": scrub,
    }
    check_options(strategy=strategy, columns=columns, **options)
    given = {name: value for name, value in options.items() if value is not None}
    chosen = kept = None
    check_content(confounds_path)
    moves = np.empty(0, bool)
    if columns is not None or given or _is_scrubbing(strategy):
        table = _unambiguous(whole.frame, confounds_path)
        _check_length(table, confounds_path, run_path, n_volumes)
        n_volumes = len(table)
        if columns is not None:
            chosen = _first_row_filled(choose_columns(table, columns, confounds_path))
        if given or _is_scrubbing(strategy):
            measured = table if motion is None else motion.frame
            moves = _moves(measured, confounds_path, given if given.keys() - {"scrub"} else {"fd_threshold": np.inf})
    if strategy is not None:
        chosen, kept = _by_strategy(run_path, confounds_path, strategy, given)
        _check_length(chosen, confounds_path, run_path, n_volumes)
        n_volumes = len(chosen)
    if given and not _is_scrubbing(strategy):
        low = np.flatnonzero(_long_enough(~moves, scrub or 0))
        kept = low if kept is None else np.intersect1d(low, kept)
    if kept is not None and len(kept) == 0:
        msg = f"{confounds_path} censors all {n_volumes} volumes, as motion or non-steady state."
        raise AllVolumesRemovedError(msg)
    return chosen, None if kept is None or len(kept) == n_volumes else kept


def _unambiguous(table, path):
    """The table without an index that R or pandas wrote; ValueError if two columns have one name."""
    twice = [name for name in table if (of := re.fullmatch(r"(.+)\.[0-9]+", name)) and of[1] in table]
    if twice:  # pandas numbers them
        msg = f"{path} has several columns called {twice[0].rpartition('.')[0]}. Each name must be there once."
        raise ValueError(msg)
    first = table.columns[0]
    if first.startswith("Unnamed: "):
        numbers, n = table[first].tolist(), len(table)
        if numbers in (list(range(n)), list(range(1, n + 1))):
            warn(f"{path}: the first column has no name and counts the rows. It is ignored.")
            return table.drop(columns=first)
    return table


def check_options(
    *,
    strategy: str | None = None,
    columns: Sequence[str] | None = None,
    fd_threshold: float | None = None,
    std_dvars_threshold: float | None = None,
    scrub: int | None = None,
    motion_filter: str | None = None,
) -> None:
    """Check the options of `fmriprep_confounds` that don't depend on a run, and raise its errors.

    `motion_filter` is another one: see `gpumask.confounds.motion_filter`. "scrubbing" has none, as nilearn reads the
    framewise displacement from the file.
    """
    if motion_filter is not None:
        MotionFilter.of(motion_filter)
        if _is_scrubbing(strategy):
            msg = (
                f"motion_filter={motion_filter!r} doesn't go with the strategy {strategy!r}, which censors by the "
                "table's own framewise displacement. Use another strategy, with fd_threshold (--fd-threshold)."
            )
            raise ValueError(msg)
    if strategy is not None and columns is not None:
        msg = f"Expected a strategy or columns of the confounds, got both: {strategy!r} and {list(columns)}."
        raise ValueError(msg)
    if fd_threshold is not None and not fd_threshold > 0:
        msg = f"fd_threshold must be a positive number of mm, got {fd_threshold!r}."
        raise ValueError(msg)
    if std_dvars_threshold is not None and not std_dvars_threshold > 0:
        msg = f"std_dvars_threshold must be a positive number, got {std_dvars_threshold!r}."
        raise ValueError(msg)
    if scrub is not None and fd_threshold is None and std_dvars_threshold is None and not _is_scrubbing(strategy):
        msg = f"scrub={scrub} needs censored volumes: give fd_threshold or std_dvars_threshold too."
        raise ValueError(msg)
    if strategy is None:
        return
    if strategy.removesuffix("+gsr") not in _STRATEGIES:
        expected = f"Expected one of {', '.join(_STRATEGIES)}, or one followed by +gsr."
        msg = f"Unknown confounds strategy {strategy!r}. {expected}"
        raise ValueError(msg)
    if importlib.util.find_spec("nilearn") is None:
        msg = f"The confounds strategy {strategy!r} {_NEEDS_NILEARN}"
        raise ImportError(msg)


def censoring_thresholds(
    *,
    strategy: str | None = None,
    fd_threshold: float | None = None,
    std_dvars_threshold: float | None = None,
    **_: Any,
) -> dict[str, float | None]:
    """With which "fd_threshold" (mm) and "std_dvars_threshold" the options of `fmriprep_confounds` censor volumes."""
    given = {"fd_threshold": fd_threshold, "std_dvars_threshold": std_dvars_threshold}
    if not _is_scrubbing(strategy):
        return given
    from nilearn.interfaces.fmriprep.load_confounds_strategy import preset_strategies

    defaults = preset_strategies["scrubbing"]
    return {key: defaults[key] if value is None else value for key, value in given.items()}


def image_desc(strategy: str | None) -> str:
    """Label "desc" of the images that a strategy is for."""
    return _AROMA if strategy is not None and strategy.removesuffix("+gsr") == "ica_aroma" else "preproc"


def _check_length(table, path, run_path, n_volumes):
    if n_volumes is not None and len(table) != n_volumes:
        msg = f"{path} has {len(table)} rows, but {os.fspath(run_path)} has {n_volumes} volumes."
        raise ValueError(msg)


def _moves(table, path, thresholds):
    """Whether each volume is above one of the thresholds; not where a measure is NaN, as for the first volume."""
    above = np.zeros(len(table), bool)
    for name, threshold in thresholds.items():
        if name in _MEASURES:
            above |= _measured(table, path, *_MEASURES[name]) > threshold
    return above


def _measured(table, path, column, expected):
    """A measure of motion: float64, NaN for the first volume, which has none."""
    values = numeric_column(choose_columns(table, [column], path), column, path, expected)
    unknown = np.flatnonzero(np.isnan(values))
    if len(unknown) == len(values):
        msg = (
            f"{path}: the column {column} has no number, so no volume can be censored by it. "
            f"Expected {expected.removeprefix('numbers in ')} per volume. Use another table, or no threshold."
        )
        raise ValueError(msg)
    if (later := unknown[unknown > 0]).size:
        warn(f"{path}: the column {column} has no number for volume {listed(later)}: kept, whatever the motion.")
    return values


def _long_enough(is_kept, scrub):
    """Drop segments of fewer than `scrub` kept volumes between censored ones; nothing without a censored one."""
    if is_kept.all():
        return is_kept
    starts = np.flatnonzero(np.diff(is_kept, prepend=~is_kept[0]))
    lengths = np.diff(starts, append=len(is_kept))
    return is_kept & np.repeat(lengths >= scrub, lengths)


def _is_scrubbing(strategy):
    return strategy is not None and strategy.removesuffix("+gsr") == "scrubbing"


def _by_strategy(run_path, confounds_path, strategy, given):
    try:
        from nilearn.interfaces.fmriprep import load_confounds_strategy
    except ImportError as error:
        msg = f"The confounds strategy {strategy!r} {_NEEDS_NILEARN}"
        raise ImportError(msg) from error
    name = strategy.removesuffix("+gsr")
    # nilearn derives the table's name from an image's, which it never opens: this name leads to the given table.
    image = image_of_confounds(confounds_path.name, _AROMA if name == "ica_aroma" else "preproc")
    if image is None:
        expected = "sub-*_desc-confounds_timeseries.tsv"
        msg = f"The confounds strategy {strategy!r} needs a file {expected}, got {confounds_path}."
        raise ValueError(msg)
    if name == "ica_aroma" and f"_desc-{_AROMA}_" not in Path(run_path).name:
        msg = f"The confounds strategy 'ica_aroma' is for images *_desc-{_AROMA}_bold.nii.gz, got {run_path}."
        raise ValueError(msg)
    options: dict[str, Any] = {"global_signal": "basic"} if strategy.endswith("+gsr") else {}
    if _is_scrubbing(strategy):
        options |= given
    metadata = confounds_path.with_suffix(".json")
    if name == "compcor":
        check_content(metadata)
    described = read_json(metadata) if metadata.exists() else {}  # nilearn reads it for every strategy
    there = None
    try:
        with _as_nilearn_reads(confounds_path) as (path, there):
            return load_confounds_strategy(str(path.with_name(image)), name, **options)
    except (ValueError, KeyError) as error:  # the latter if some columns of a kind are missing, but not all
        needed = [*_STRATEGIES[name], *(_components(described) if name == "compcor" else ())]
        needed += ["global_signal"] if options.get("global_signal") else []
        if missing := [column for column in needed if column not in (there or needed)]:
            msg = (
                f"{confounds_path} has no column {listed(missing)}, which the confounds strategy {strategy!r} needs. "
                "Add it to the table, or choose a strategy or columns that the table has."
            )
            raise ValueError(msg) from error
        msg = f"{confounds_path} can't be used with the confounds strategy {strategy!r}: {error.args[0]}"
        raise ValueError(msg) from error


def _components(described):
    """Columns that a JSON file describes as components of CompCor, of both tissues combined."""
    facts = described.items() if isinstance(described, dict) else ()
    return [name for name, about in facts if isinstance(about, dict) and about.get("Mask") == "combined"]


@contextlib.contextmanager
def _as_nilearn_reads(path):
    """Path of a table as its name says (the file, or a copy if it is written in another way), and its columns' names.

    nilearn takes pandas' defaults, which shift the columns of a table whose rows end with a tab.
    """
    table = read_text_table(path, "fMRIPrep's table of confounds", has_names)
    rows = [table.names, *table.rows] if table.names else table.rows
    text = "".join("\t".join(row) + "\n" for row in rows).encode()
    with open_file(path) as file:
        is_written_so = file.read(2 * len(text) + 1).replace(b"\r\n", b"\n") == text
    if is_written_so:
        yield path, table.names
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_bytes(text)
        if (metadata := path.with_suffix(".json")).exists():
            shutil.copyfile(metadata, copy.with_suffix(".json"))
        yield copy, table.names


def _first_row_filled(table):
    """Fill NaN in the first row, where derivatives have no value, from the second row."""
    table = table.copy()
    if len(table) > 1:
        unknown = table.iloc[0].isna().to_numpy()
        table.iloc[0, unknown] = table.iloc[1, unknown]
    return table
