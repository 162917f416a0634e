"""Confounds and sample masks as users give them, turned into NumPy arrays; host only."""

import fnmatch
import gzip
import io
import numbers
import re
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from array_api_compat import is_array_api_obj

from gpumask import backend
from gpumask.kernels import cleaning


class AllVolumesRemovedError(ValueError):
    """A `sample_mask` keeps no volume."""


def confounds_matrix(confounds, n_volumes, used=None):
    """Gather a run's confounds as the columns of one matrix.

    Parameters
    ----------
    confounds : array, DataFrame, Series, path, sequence of numbers, list or tuple of these, or None
        Arrays have the shape (n_volumes,) or (n_volumes, n_columns); an array of any library, a pandas or polars table,
        or the path of a table in text, ``.gz`` or not: separated by tabs, commas, semicolons or blanks, with or without
        a line of names. "n/a" is NaN. A list of several are put side by side.
    n_volumes : int
        Number of rows that each of them must have.
    used : array-like of int, default=None
        Volumes whose values must be finite. None is all; censored volumes may hold NaN.

    Returns
    -------
    numpy.ndarray of float64, shape (n_volumes, n_columns), or None
        None if there are no confounds. Never a view of the argument.

    Raises
    ------
    TypeError
        If a confound is none of the above.
    ValueError
        If a confound can't be read, has another length or more than two dimensions, or holds values that aren't
        finite; the message names the file, the columns and the volumes.
    """
    if confounds is None:
        return None
    if not isinstance(confounds, (list, tuple)):
        if not _is_confound(confounds):
            msg = (
                "'confounds' must be of type(s): 'array, DataFrame, Series, str, Path, list, tuple'.\n"
                f"Got: '{type(confounds).__name__}'"
            )
            raise TypeError(msg)
        confounds = [confounds]
    elif _is_numbers(confounds):
        confounds = [confounds]
    if not confounds:
        return None
    return np.hstack([_checked_columns(confound, n_volumes, used) for confound in confounds])


def _is_numbers(values):
    return isinstance(values, (list, tuple)) and len(values) > 0 and all(isinstance(v, numbers.Real) for v in values)


def _is_confound(value):
    return isinstance(value, (str, Path)) or hasattr(value, "to_numpy") or is_array_api_obj(value)


def _checked_columns(confound, n_volumes, used):
    """Values of one confound, float64 of shape (n_volumes, n_columns)."""
    import pandas as pd

    path = None
    if isinstance(confound, (str, Path)):
        path = Path(confound).expanduser()
        table = read_table(path)
    elif _is_numbers(confound) or _is_confound(confound):
        values = _on_host(confound.to_numpy() if hasattr(confound, "to_numpy") else confound)
        if values.ndim not in (1, 2):
            msg = f"confound array has an incorrect number of dimensions: {values.ndim}"
            raise ValueError(msg)
        names = getattr(confound, "columns", None)
        table = pd.DataFrame(values, columns=None if names is None else list(names))
    else:
        msg = f"confound has an unhandled type: {type(confound)}"
        raise TypeError(msg)

    where = f" File: {path}." if path else ""
    if len(table) != n_volumes:
        msg = (
            "Confound signal has an incorrect length. "
            f"Signal length: {n_volumes}; confound length: {len(table)}.{where}"
        )
        raise ValueError(msg)
    values = table.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    checked = np.zeros(n_volumes, dtype=bool)
    checked[slice(None) if used is None else used] = True
    bad = ~np.isfinite(values) & checked[:, None]
    if bad.any():
        columns = [
            f"{table.columns[j]!r} (volume {_few(np.flatnonzero(bad[:, j]))})" for j in np.flatnonzero(bad.any(0))
        ]
        msg = (
            f"Confounds must be finite numbers; NaN, infinite values or text are in column {_few(columns)}.{where} "
            "fMRIPrep writes n/a in the first volumes of derivatives: fill them, leave these volumes out by "
            "`sample_mask`, or use nilearn.interfaces.fmriprep.load_confounds."
        )
        raise ValueError(msg)
    return values


def _few(items, most=5):
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def _on_host(array):
    return backend.to_host(array) if is_array_api_obj(array) else np.asarray(array)


def read_table(path):
    """A table of text as a DataFrame; its columns are numbered if it has no line of names."""
    import pandas as pd

    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
        lines = [line for line in file.read().splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        msg = f"The confounds file {path} is empty."
        raise ValueError(msg)
    separator = next((s for s in "\t,;" if s in lines[0]), r"\s+")
    first = re.split(separator, lines[0].strip(" "))[0].strip(" '\"")  # blank above an index that pandas wrote
    try:
        return pd.read_csv(io.StringIO("\n".join(lines)), sep=separator, header=None if _is_value(first) else 0)
    except ValueError as error:  # pandas' ParserError is one
        msg = f"Could not read the confounds file {path}: {error}"
        raise ValueError(msg) from error


def _is_value(cell):
    try:
        float(cell)
    except ValueError:
        return cell.lower() in ("n/a", "na")
    return True


def kept_volumes(sample_mask, run_lengths):
    """Turn a user's `sample_mask` into indices of the volumes to keep.

    Parameters
    ----------
    sample_mask : array-like of int or bool, list or tuple of these, or None
        For one run, its mask or a list of this one mask; for several runs a list of one mask per run. None keeps all.
    run_lengths : sequence of int
        Number of volumes of each run.

    Returns
    -------
    list of numpy.ndarray of int64 or None
        Per run the indices, in the given order, in arrays of their own; None where all volumes are kept.

    Raises
    ------
    TypeError
        If `sample_mask` is no array-like, or no integers or booleans.
    AllVolumesRemovedError
        If a mask keeps nothing.
    ValueError
        If there isn't one mask per run, or an index is negative.
    IndexError
        If a mask is longer than its run or boolean and shorter, or an index is too large.
    """
    n_runs = len(run_lengths)
    if sample_mask is None:
        return [None] * n_runs
    if isinstance(sample_mask, str) or not (hasattr(sample_mask, "__len__") or is_array_api_obj(sample_mask)):
        msg = (
            f"'sample_masks' must be of type(s): '{list}, {tuple}, {np.ndarray}'.\nGot: '{type(sample_mask).__name__}'"
        )
        raise TypeError(msg)
    one_mask = not isinstance(sample_mask, (list, tuple)) or all(
        isinstance(item, (numbers.Real, np.bool_)) for item in sample_mask
    )
    masks = [sample_mask] if one_mask else sample_mask
    if len(masks) != n_runs:
        msg = f"Number of sample_mask ({len(masks)}) not matching number of runs ({n_runs})."
        raise ValueError(msg)
    return [
        None if mask is None else _indices(_on_host(mask), length, f"{i} of {n_runs}")
        for i, (mask, length) in enumerate(zip(masks, run_lengths, strict=True), start=1)
    ]


def _indices(mask, n_volumes, run):
    if mask.ndim != 1:
        msg = f"sample_mask {run} must have one dimension, got {mask.ndim}."
        raise ValueError(msg)
    if mask.dtype == bool:
        if mask.size != n_volumes:
            msg = (
                f"sample_mask {run} is boolean and must hold one value per volume: the run has {n_volumes} volumes, "
                f"sample_mask {mask.size} values."
            )
            raise IndexError(msg)
        mask = np.flatnonzero(mask)
    if mask.size == 0:
        msg = "The size of the sample mask is 0. All volumes were marked as motion outliers can not proceed. "
        raise AllVolumesRemovedError(msg)
    indices = mask.astype(np.int64) if mask.dtype.kind in "iuf" else None
    if indices is None or np.any(indices != mask):
        msg = f"sample_mask {run} must hold integers or booleans, got {mask.dtype}."
        raise TypeError(msg)
    if indices.min() < 0:
        msg = "sample_mask should not contain negative values."
        raise ValueError(msg)
    if indices.size > n_volumes:
        msg = (
            f"sample_mask {run} is has more timepoints than the current run ;sample_mask contains {indices.size} index "
            f"but the run has {n_volumes} timepoints."
        )
        raise IndexError(msg)
    invalid = indices[indices >= n_volumes]
    if invalid.size:
        msg = f"sample_mask {run} contains invalid index {invalid}. The signal contains {n_volumes} time points."
        raise IndexError(msg)
    return indices


def fmriprep_confounds(run_path, confounds_path, *, strategy=None, columns=None, fd_threshold=None):
    """Confounds of a run and the volumes to keep, from the table that fMRIPrep wrote.

    Parameters
    ----------
    run_path : str or path-like
        The image; only its name matters, and only to "ica_aroma".
    confounds_path : str or path-like
        The table. A strategy needs fMRIPrep's name, ``*_desc-confounds_timeseries.tsv`` or ``_regressors``, and
        "compcor" the JSON file beside it.
    strategy : str, optional
        "simple", "scrubbing", "compcor" or "ica_aroma" with nilearn's defaults, see
        ``nilearn.interfaces.fmriprep.load_confounds_strategy``; with the global signal if "+gsr" is behind it. Needs
        nilearn.
    columns : sequence of str, optional
        Columns to use instead, with the wildcards * ? []: see `choose_columns`. A NaN in their first row, as
        derivatives have it, is replaced by the value below it, as nilearn does. Volumes that aren't steady are not left
        out.
    fd_threshold : float, optional
        Volumes with a higher framewise displacement (mm) are left out, besides those that `strategy` leaves out. To
        "scrubbing" it is nilearn's parameter, so that short segments between them are left out too.

    Returns
    -------
    confounds : DataFrame or None
        A row per volume. None without `strategy` and `columns`.
    sample_mask : ndarray of int or None
        Indices of the volumes to keep. None keeps all.

    Raises
    ------
    ValueError
        If `strategy` and `columns` are both given, or unknown; columns or files are missing; or no volume is kept.
    ImportError
        If a strategy is given and nilearn isn't installed.
    """
    confounds_path = Path(confounds_path)
    if strategy is not None and columns is not None:
        msg = f"Expected a strategy or columns of the confounds, got both: {strategy!r} and {list(columns)}."
        raise ValueError(msg)
    if fd_threshold is not None and not fd_threshold > 0:
        msg = f"fd_threshold must be a positive number of mm, got {fd_threshold!r}."
        raise ValueError(msg)
    confounds = kept = None
    if strategy is not None:
        confounds, kept = _by_strategy(run_path, confounds_path, strategy, fd_threshold)
        n_volumes = len(confounds)
    if columns is not None or (fd_threshold is not None and not _is_scrubbing(strategy)):
        table = read_table(confounds_path).rename(columns=str)
        n_volumes = len(table)
        if columns is not None:
            confounds = _first_row_filled(choose_columns(table, columns, confounds_path))
        if fd_threshold is not None:
            displacement = choose_columns(table, ["framewise_displacement"], confounds_path).iloc[:, 0]
            low = np.flatnonzero(~(displacement.to_numpy(np.float64) > fd_threshold))  # the first volume has none: NaN
            kept = low if kept is None else np.intersect1d(low, kept)
    if kept is not None and len(kept) == 0:
        msg = f"{confounds_path} leaves none of the {n_volumes} volumes: all count as moving, or as not yet steady."
        raise AllVolumesRemovedError(msg)
    return confounds, None if kept is None or len(kept) == n_volumes else kept


def _is_scrubbing(strategy):
    return strategy is not None and strategy.removesuffix("+gsr") == "scrubbing"


def _by_strategy(run_path, confounds_path, strategy, fd_threshold):
    try:
        from nilearn.interfaces.fmriprep import load_confounds_strategy
    except ImportError as error:
        msg = f"The confounds strategy {strategy!r} needs nilearn 0.13 or later: pip install 'gpumask[fmriprep]'"
        raise ImportError(msg) from error
    known = ("simple", "scrubbing", "compcor", "ica_aroma")
    name = strategy.removesuffix("+gsr")
    if name not in known:
        msg = (
            f"Unknown confounds strategy {strategy!r}. Expected one of {', '.join(known)}, or one with +gsr behind it."
        )
        raise ValueError(msg)
    match = re.fullmatch("((?:[^_-]+-[^_-]+_)+)desc-confounds_(?:timeseries|regressors)[.]tsv", confounds_path.name)
    if not match:
        expected = "sub-*_desc-confounds_timeseries.tsv"
        msg = f"The confounds strategy {strategy!r} needs a file {expected}, got {confounds_path}."
        raise ValueError(msg)
    aroma = "smoothAROMAnonaggr"
    if name == "ica_aroma" and f"_desc-{aroma}_" not in Path(run_path).name:
        msg = f"The confounds strategy 'ica_aroma' is for images *_desc-{aroma}_bold.nii.gz, got {run_path}."
        raise ValueError(msg)
    # nilearn takes an image, which it never opens, and looks for the confounds of its name: this one finds the given.
    image = confounds_path.with_name(f"{match[1]}desc-{aroma if name == 'ica_aroma' else 'preproc'}_bold.nii.gz")
    options = {"global_signal": "basic"} if strategy.endswith("+gsr") else {}
    if fd_threshold is not None and _is_scrubbing(strategy):
        options["fd_threshold"] = fd_threshold
    try:
        return load_confounds_strategy(str(image), name, **options)
    except (ValueError, KeyError) as error:  # the latter where nilearn misses some columns of a kind, but not all
        msg = f"{confounds_path} can't be used with the confounds strategy {strategy!r}: {error.args[0]}"
        raise ValueError(msg) from error


def choose_columns(table, columns, path):
    """Columns of a table by their names or patterns of names.

    Parameters
    ----------
    table : DataFrame
    columns : sequence of str
        Names, in which the wildcards * ? [] stand for any characters, one, and one of some.
    path : str or path-like
        File of the table, for the message.

    Returns
    -------
    DataFrame
        In the order of `columns`, those of a pattern in the order of the table; each once.

    Raises
    ------
    ValueError
        If a name or pattern fits none; the message has similar ones.
    """
    chosen, missing = {}, []
    for pattern in columns:
        fitting = [pattern] if pattern in table else [name for name in table if fnmatch.fnmatchcase(name, pattern)]
        chosen |= dict.fromkeys(fitting)
        missing += [] if fitting else [pattern]
    if missing:
        known = [match for name in missing for match in get_close_matches(name, table)] or list(table)[:5]
        msg = f"{path} has no column {', '.join(missing)}. Its {table.shape[1]} columns include {', '.join(known)}."
        raise ValueError(msg)
    return table[list(chosen)]


def _first_row_filled(table):
    """With the values of the second row where the first has NaN: a derivative has no first value."""
    table = table.copy()
    if len(table) > 1:
        unknown = table.iloc[0].isna().to_numpy()
        table.iloc[0, unknown] = table.iloc[1, unknown]
    return table


def high_variance_confounds(volumes, n_confounds=5, percentile=2.0, detrend=True):
    """Principal components of the voxels of a run that vary most; equals ``nilearn.image.high_variance_confounds``.

    The run is read twice: for each voxel's mean square, then for the series of the chosen ones. Only these are held in
    memory.

    Parameters
    ----------
    volumes : Volumes
    n_confounds : int, default=5
        Number of components.
    percentile : float, default=2.0
        Percentage of the voxels that enter.
    detrend : bool, default=True
        Whether mean and linear trend are removed first.

    Returns
    -------
    ndarray of float64, shape (n_volumes, n_confounds)
        Orthonormal columns, of arbitrary sign.
    """
    n = volumes.n_volumes
    time = np.arange(n) - (n - 1) / 2
    first = None
    sums, squares, slopes = np.zeros((3, volumes.grid.n_voxels))
    with np.errstate(invalid="ignore"):  # voxels that aren't finite are never chosen
        for chunk in volumes.chunks(8):
            for k, values in enumerate(chunk.scaled(), start=chunk.start):
                if first is None:
                    first = values.copy()
                values -= first  # what is left is small: the squares below lose no digits to the mean
                sums += values
                slopes += time[k] * values
                squares += np.square(values, out=values)
        if detrend:
            squares -= sums**2 / n + slopes**2 / max(time @ time, 1)
        else:
            squares += 2 * first * sums + n * first**2
        chosen = np.flatnonzero(squares > np.nanpercentile(squares, 100.0 - percentile))
    series = np.empty((n, len(chosen)))
    for chunk in volumes.chunks(8):
        rows = series[chunk.start : chunk.start + len(chunk.data)]
        rows[:] = np.take(chunk.data, chosen, axis=1)
        rows *= chunk.slope
        rows += chunk.inter
    return cleaning.principal_components(cleaning.detrend(series) if detrend else series, n_confounds)
