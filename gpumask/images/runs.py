"""A run of either kind: volumes, or grayordinates."""

from typing import Any

import numpy as np

from gpumask.images.grayordinates import DenseImage, is_dense, open_dense
from gpumask.images.volumes import Volumes, open_volumes

Run = Volumes | DenseImage
"""Both have `grid`, `n_volumes`, `is_3d`, `dtype`, `loaded_dtype`, `t_r`, `name` and `identity()`."""


def open_run(imgs: Any) -> Run:
    """Open a run: a dense CIFTI-2 series, or anything that `gpumask.images.volumes.open_volumes` opens.

    Raises
    ------
    ImageError, ValueError, TypeError, ImportError
        As `open_dense` and `open_volumes`.
    """
    return open_dense(imgs) if is_dense(imgs) else open_volumes(imgs)


def blank_volumes(run: Run) -> np.ndarray:
    """Find the volumes or time points in which all values are NaN, infinite or 0; reads the whole run.

    Returns
    -------
    ndarray of int
        Their indices.
    """
    if not isinstance(run, DenseImage):
        blank = [chunk.start + np.flatnonzero(~_is_something(chunk.scaled()).any(axis=1)) for chunk in run.chunks(8)]
        return np.concatenate(blank)
    some = np.zeros(run.n_volumes, bool)
    for part in run.blocks():
        some |= _is_something(run.scaled(part)).any(axis=0)
    return np.flatnonzero(~some)


def _is_something(values):
    return np.isfinite(values) & (values != 0)
