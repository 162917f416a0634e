"""Where signals are kept until the end of a run: in float64, or in float32 as differences from one volume.

On a GPU, float32 signals of a mask's voxels take less memory than stored volumes of int16: a mask holds about a third
of a grid.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpumask import backend
from gpumask.backend import Array

_COMPARED = 2**24  # signals on a device that are compared at once


class Signals(NamedTuple):
    """Signals of one plan: ``values``, plus ``base`` if there is one.

    Attributes
    ----------
    values : array of float32 or float64, shape (n_volumes, n_regions)
        On the host, or on a device; see `Staging.on_device`.
    base : array of float64, shape (n_regions,), or None
        Added to all volumes.
    non_finite : bool
        Whether a voxel of a region is NaN or infinite.
    """

    values: Array
    base: Array | None
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
    on_device : bool
        Whether the signals of voxels that a GPU computes stay there, if its memory holds them. Without effect on the
        signals of regions, and on the CPU.
    """

    dtype: np.dtype | type = np.float64
    base_volume: int | None = None
    on_device: bool = False

    def staged(self, n_volumes: int, n_regions: int, like: Array | None = None) -> "Staged":
        """Allocate the memory for some signals: on the host, or on the device of the array `like`."""
        shape = n_volumes, n_regions
        if like is None:
            return Staged(np.empty(shape, self.dtype), self.base_volume)
        xp = backend.array_namespace(like)
        return Staged(xp.empty(shape, dtype=self.dtype, device=backend.device_of(like)), self.base_volume)


def blank_volumes(values: Array, base: Array | None) -> np.ndarray:
    """Volumes in which all signals, of `values` and `base` as in `Signals`, are 0: ndarray of int."""
    if not backend.is_numpy(values):
        return _blank_on_device(values, base)

    def is_blank(row, columns):
        return not (row[columns] + (0.0 if base is None else base[columns])).any()

    few, rest = slice(0, 64), slice(64, None)  # a few signals are enough for most volumes
    return np.array([k for k, row in enumerate(values) if is_blank(row, few) and is_blank(row, rest)], int)


def _blank_on_device(values, base):
    xp, step = backend.array_namespace(values), max(_COMPARED // max(values.shape[1], 1), 1)
    nothing = 0.0 if base is None else -base
    blank = [~xp.any(values[start : start + step] != nothing, axis=1) for start in range(0, len(values), step)]
    return np.flatnonzero(backend.to_host(xp.concat(blank)))


class Staged:
    """Signals that arrive in parts, from several threads.

    Parameters
    ----------
    values : array of float32 or float64, shape (n_volumes, n_regions)
        Memory for them, on the host or on a device.
    base_volume : int or None
        As in `Staging`.

    Attributes
    ----------
    values, base
        As in `Signals`.
    """

    base: Array | None = None

    def __init__(self, values: Array, base_volume: int | None = None) -> None:
        self.values, self.base_volume = values, base_volume

    @property
    def awaits_base(self) -> bool:
        """Whether the volume is still to come that differences are kept from. Until then, `put` parts in order."""
        return self.base_volume is not None and self.base is None

    def put(self, rows: slice, signals: Array) -> None:
        """Keep the signals of some volumes, float64; `signals` may be overwritten.

        The same part may be put again. Signals of a device are downloaded if the others are kept on the host.
        """
        if backend.is_numpy(self.values) and not backend.is_numpy(signals):
            signals = backend.to_host(signals)
        if self.base_volume is not None and self.awaits_base and self.base_volume < rows.stop:
            # Rounded: so values of 0 are still exact.
            base = signals[self.base_volume - rows.start].astype(self.values.dtype).astype(np.float64)
            self.values[: rows.start] -= base
            self.base = base
        if self.base is not None:
            signals -= self.base
        self.values[rows] = signals

    def move_to_host(self) -> None:
        """Download what is kept, and keep the rest on the host as well."""
        self.values = backend.to_host(self.values)
        self.base = None if self.base is None else backend.to_host(self.base)
