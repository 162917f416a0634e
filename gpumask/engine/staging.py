"""Where signals are kept until the end of a run: in float64, or in float32 as differences from one volume."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Signals(NamedTuple):
    """Signals of one plan: ``values``, plus ``base`` if there is one.

    Attributes
    ----------
    values : ndarray of float32 or float64, shape (n_volumes, n_regions)
    base : ndarray of float64, shape (n_regions,), or None
        Added to all volumes.
    non_finite : bool
        Whether a voxel of a region is NaN or infinite.
    """

    values: np.ndarray
    base: np.ndarray | None
    non_finite: bool


@dataclass(frozen=True)
class Staging:
    """How signals are kept.

    Attributes
    ----------
    dtype : numpy.dtype
        float32 or float64. Values of other dtypes are converted after cleaning.
    base_volume : int or None
        Volume to keep the differences from: against a large mean, float32 holds those to more digits than the values.
        It should be like the others, not one that is censored.
    """

    dtype: np.dtype | type = np.float64
    base_volume: int | None = None

    def staged(self, n_volumes: int, n_regions: int) -> "Staged":
        """Allocate the memory for some signals."""
        return Staged(self, n_volumes, n_regions)


def blank_volumes(values: np.ndarray, base: np.ndarray | None) -> np.ndarray:
    """Volumes in which all signals, of `values` and `base` as in `Signals`, are 0: ndarray of int."""

    def is_blank(row, columns):
        return not (row[columns] + (0.0 if base is None else base[columns])).any()

    few, rest = slice(0, 64), slice(64, None)  # a few signals are enough for most volumes
    return np.array([k for k, row in enumerate(values) if is_blank(row, few) and is_blank(row, rest)], int)


class Staged:
    """Signals that arrive in parts, from several threads.

    Attributes
    ----------
    values, base
        As in `Signals`.
    """

    base: np.ndarray | None = None

    def __init__(self, staging: Staging, n_volumes: int, n_regions: int) -> None:
        self.values = np.empty((n_volumes, n_regions), staging.dtype)
        self.base_volume = staging.base_volume

    @property
    def awaits_base(self) -> bool:
        """Whether the volume is still to come that differences are kept from. Until then, `put` parts in order."""
        return self.base_volume is not None and self.base is None

    def put(self, rows: slice, signals: np.ndarray) -> None:
        """Keep the signals of some volumes, float64; `signals` may be overwritten."""
        if self.base_volume is not None and self.awaits_base and self.base_volume < rows.stop:
            # Rounded: so values of 0 are still exact.
            self.base = signals[self.base_volume - rows.start].astype(self.values.dtype).astype(np.float64)
            self.values[: rows.start] -= self.base
        if self.base is not None:
            signals -= self.base
        self.values[rows] = signals
