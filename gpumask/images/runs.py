"""A run of either kind: volumes, or grayordinates."""

from typing import Any

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
