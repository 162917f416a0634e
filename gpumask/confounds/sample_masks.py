"""Sample masks: the volumes of a run to keep."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpumask.dlpack import has_dlpack, on_host


class AllVolumesRemovedError(ValueError):
    """A `sample_mask` keeps no volume."""


def kept_volumes(sample_mask: Any, run_lengths: Sequence[int]) -> list[np.ndarray | None]:
    """Indices of the volumes to keep, from a user's `sample_mask`.

    Parameters
    ----------
    sample_mask : array-like of int or bool, list or tuple of these, or None
        For one run, its mask or a list with it; for several runs, a list of one mask per run. None keeps all.
    run_lengths : sequence of int
        Number of volumes of each run.

    Returns
    -------
    list of numpy.ndarray of int64 or None
        Per run its indices, in the given order, in an array of its own; None if all volumes are kept.

    Raises
    ------
    TypeError
        If `sample_mask` isn't array-like, or doesn't hold integers or booleans.
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
    if isinstance(sample_mask, str) or not (hasattr(sample_mask, "__len__") or has_dlpack(sample_mask)):
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
        None if mask is None else _indices(on_host(mask, "sample_mask"), length, f"{i} of {n_runs}")
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
    with np.errstate(invalid="ignore"):  # NaN and what int64 can't hold become other numbers
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
