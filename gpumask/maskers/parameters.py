"""What the masker's parameters may be, and what they say about names and dtypes; errors as nilearn's."""

from pathlib import Path

import joblib
import numpy as np

from gpumask.kernels.segments import STRATEGIES

_INTEGER = int | np.integer
_NUMBER = float | np.floating | int | np.integer | None
_TYPES = {
    "background_label": float | np.floating | int | np.integer,
    "smoothing_fwhm": _NUMBER,
    "standardize_confounds": bool,
    "detrend": bool,
    "low_pass": _NUMBER,
    "high_pass": _NUMBER,
    "t_r": _NUMBER,
    "memory": joblib.Memory | str | Path | None,
    "memory_level": _INTEGER,
    "verbose": bool | int | np.integer,
    "keep_masked_labels": bool,
    "clean_args": dict | None,
    "min_coverage": _NUMBER,
    "keep_all_regions": bool,
    "n_jobs": _INTEGER,
}
_MAY_BE_BOOL = [name for name, types in _TYPES.items() if types is bool or name == "verbose"]
_CHOICES = {
    "standardize": ("zscore_sample", "zscore", "psc", True, False, None),
    "strategy": tuple(STRATEGIES),
    "resampling_target": ("labels", "data", None),
    "nan_policy": ("zero", "omit"),
}


def check_parameters(parameters):
    """Raise TypeError or ValueError for the first parameter that can't be used.

    Parameters
    ----------
    parameters : dict
        Of a masker, by name.
    """
    for name, value in parameters.items():
        if name in ("low_pass", "high_pass") and value is False:
            continue
        types = _TYPES.get(name)
        if types and (not isinstance(value, types) or (isinstance(value, bool) and name not in _MAY_BE_BOOL)):
            msg = f"'{name}' must be of type(s): '{types}'.\nGot: '{type(value).__name__}'"
            raise TypeError(msg)
        allowed = _CHOICES.get(name)
        if allowed and not any(value is a or (isinstance(value, str) and value == a) for a in allowed):
            msg = f"'{name}' must be one of {allowed}.\n'{value}' was provided."
            raise ValueError(msg)
    asked = parameters["dtype"]
    try:
        is_bool = asked_dtype(asked, np.dtype(float)) == np.dtype(bool)
    except TypeError as error:
        msg = f"'dtype' must be a NumPy dtype, 'auto' or None.\nGot: {asked!r}"
        raise TypeError(msg) from error
    if is_bool:
        msg = "'dtype' cannot be bool"
        raise TypeError(msg)
    fwhm, share = parameters["smoothing_fwhm"], parameters["min_coverage"]
    if fwhm is not None and not 0 <= fwhm < np.inf:
        msg = f"`smoothing_fwhm` must be a width in mm, 0 or more, got {fwhm}."
        raise ValueError(msg)
    if share is not None and not 0 <= share <= 1:
        msg = f"`min_coverage` must be a share of a region's voxels between 0 and 1, got {share}."
        raise ValueError(msg)


def checked_names(labels, lut):
    """The parameter `labels` as a list of names, or None; TypeError or ValueError if it can't be used."""
    if not labels:
        return None
    if lut is not None:
        msg = "Pass either labels or a lookup table (lut) to the masker, but not both."
        raise ValueError(msg)
    if not isinstance(labels, list):
        msg = f"'labels' must be a list. Got: {type(labels).__name__}"
        raise TypeError(msg)
    if not all(isinstance(name, str) for name in labels):
        types = {type(name).__name__ for name in labels}
        msg = f"All elements of 'labels' must be a string.\nGot a list of {types}"
        raise TypeError(msg)
    return labels


def asked_dtype(asked, source):
    """What the parameter `dtype` makes of data of the dtype `source`; None if it says nothing."""
    if isinstance(asked, str) and asked == "auto":
        return np.dtype(np.int32 if source.kind == "i" else np.float32)
    return None if asked is None else np.dtype(asked)


def signal_dtype(asked, loaded, *, smoothed, resampled):
    """The signals' dtype: what nilearn's chain of casts makes of a run's.

    Parameters
    ----------
    asked : dtype, "auto" or None
        The parameter `dtype`.
    loaded : numpy.dtype
        Of the run's values as nibabel loads them.
    smoothed, resampled : bool
        Whether nilearn would smooth or resample the volumes; either turns integers into floats.

    Returns
    -------
    numpy.dtype
    """
    dtype = np.dtype(loaded)
    if asked is not None:
        return asked_dtype(asked, dtype)
    if (resampled and dtype.kind == "i") or (smoothed and dtype.kind in "iu"):
        dtype = np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
    return np.dtype(np.float32 if dtype == np.float32 and dtype.isnative else np.float64)
