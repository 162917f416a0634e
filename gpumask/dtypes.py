"""Dtypes of signals, by nilearn's rules."""

from typing import Any

import numpy as np


def asked_dtype(asked: Any, source: np.dtype) -> np.dtype | None:
    """Resolve the setting `dtype` for data of the dtype `source`; None if the setting is None."""
    if isinstance(asked, str) and asked == "auto":
        return np.dtype(np.int32 if source.kind == "i" else np.float32)
    return None if asked is None else np.dtype(asked)


def signal_dtype(
    asked: Any, loaded: np.dtype, *, smoothed: bool, resampled: bool, maps: np.dtype | None = None
) -> np.dtype:
    """Return the dtype of the signals, by nilearn's rules.

    Parameters
    ----------
    asked : dtype, "auto" or None
        The setting `dtype`.
    loaded : numpy.dtype
        Dtype of the run's values as nibabel loads them.
    smoothed, resampled : bool
        Whether nilearn would smooth or resample the volumes. Smoothing turns integers into floats, resampling only
        signed ones.
    maps : numpy.dtype, optional
        Dtype of maps, which nilearn computes with.
    """
    dtype = np.dtype(loaded)
    if (chosen := asked_dtype(asked, dtype)) is not None:
        return chosen
    if (resampled and dtype.kind == "i") or (smoothed and dtype.kind in "iu"):
        dtype = np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
    if maps is not None:
        dtype = np.result_type(dtype, maps)
    return np.dtype(np.float32 if dtype == np.float32 and dtype.isnative else np.float64)


def voxel_dtype(asked: Any, loaded: np.dtype, *, smoothed: bool, resampled: bool) -> np.dtype:
    """Return the dtype of voxels' signals, by nilearn's rules; parameters as of `signal_dtype`."""
    dtype = np.dtype(loaded)
    if (chosen := asked_dtype(asked, dtype)) is not None:
        return chosen
    if dtype.kind == "f":
        return np.dtype(np.float32 if dtype.newbyteorder("=") == np.float32 else np.float64)
    promoted = (smoothed and dtype.kind in "iu") or (resampled and dtype.kind == "i")
    return np.dtype(np.float64 if promoted and dtype.itemsize == 8 else np.float32)
