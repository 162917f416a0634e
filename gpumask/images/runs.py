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


_BLOCK = 2**21  # values that are looked at together


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
    n, step = run.grid.n_grayordinates, max(_BLOCK // run.n_volumes, 1)
    for start in range(0, n, step):
        stored = run.rows(start, min(start + step, n))
        some |= _is_something(stored.astype(np.float64) * run.slope + run.inter).any(axis=0)
    return np.flatnonzero(~some)


def _is_something(values):
    return np.isfinite(values) & (values != 0)
