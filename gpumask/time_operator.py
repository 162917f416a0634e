"""Cleaning compiled to matrices over time.

Without standardizing, cleaning is a linear map of a series: censoring, interpolating, detrending, filtering and the
removal of confounds. For many series, such as those of all voxels, one matrix product takes a tenth of the time of
these steps. Standardizing follows column by column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gpumask import backend
from gpumask.backend import Array
from gpumask.kernels import cleaning

_NOISE_IN_FLOAT32 = 100 * float(np.finfo(np.float32).eps)  # of a series' range, as `cleaning.rounding_noise` in float64


@dataclass(frozen=True, eq=False)
class RunMap:
    """The cleaning of one run, before standardizing: ``matrix @ series[volumes]``.

    Attributes
    ----------
    volumes : ndarray of int, shape (n_used,), or None
        Volumes that are read. None: all of them, in order.
    matrix : array of float64, shape (n_kept, n_used)
    level : array of float64, shape (n_used,)
        Weights of the mean after censoring and interpolating, before detrending. They sum to 1.
    removes_constants : bool
        Whether a constant series becomes exactly 0.
    is_interpolated : bool
        Whether censored volumes are interpolated, which needs finite values.
    in_float32 : bool
        Whether the product is computed in float32, of the differences from the first volume; the rest never is.
    """

    volumes: np.ndarray | None
    matrix: Array
    level: Array
    removes_constants: bool
    is_interpolated: bool
    in_float32: bool = False

    @cached_property
    def response(self) -> Array:
        """Result for a constant series of 1: array of float64, shape (n_kept,)."""
        xp = backend.array_namespace(self.matrix)
        response = xp.sum(self.matrix, axis=1)
        return xp.zeros_like(response) if self.removes_constants else response

    @cached_property
    def centred(self) -> "RunMap":
        """The same map with the mean of its result subtracted."""
        xp = backend.array_namespace(self.matrix)
        return replace(self, matrix=self.matrix - xp.mean(self.matrix, axis=0))

    def like(self, array: Array) -> "RunMap":
        """Return this map in the library and on the device of `array`."""
        return replace(self, matrix=backend.like(self.matrix, array), level=backend.like(self.level, array))

    def used(self, x: Array) -> Array:
        """The rows of `x` that are read; ValueError if values to interpolate between aren't finite."""
        xp = backend.array_namespace(x)
        x = x if self.volumes is None else xp.take(x, backend.like(self.volumes, x), axis=0)
        if self.is_interpolated:
            cleaning.require_finite(x)
        return x

    def apply(self, x: Array, base: Array | None) -> Array:
        """Clean the used rows of ``x + base``: float64, shape (n_kept, n_series)."""
        if self.in_float32:
            xp, first = backend.array_namespace(x), x[0, :]
            differences = xp.astype(x - first, xp.float32)
            cleaned = xp.astype(xp.astype(self.matrix, xp.float32) @ differences, xp.float64)
            base = first if base is None else base + first
        else:
            cleaned = self.matrix @ x
        if base is not None and not self.removes_constants:
            cleaned += self.response[:, None] * base
        return cleaned


class TimeOperator:
    """The cleaning of a series of runs, compiled; made by `gpumask.cleaner.Cleaner.operator`.

    Parameters
    ----------
    maps : sequence of RunMap
        One per run. The results follow one another.
    standardize : {"zscore_sample", "zscore", "psc", None}
    """

    def __init__(self, maps: Sequence[RunMap], standardize: str | None) -> None:
        self.maps, self.standardize = list(maps), standardize

    def like(self, array: Array) -> "TimeOperator":
        """Return this operator in the library and on the device of `array`."""
        return self if backend.is_numpy(array) else TimeOperator([m.like(array) for m in self.maps], self.standardize)

    def __call__(self, x: Array, base: Array | None = None, put_back: Sequence[bool] | None = None) -> Array:
        """Clean series.

        Parameters
        ----------
        x : array of float64, shape (n_volumes, n_series)
            In the library and on the device of the operator.
        base : array of float64, shape (n_series,), optional
            Added to all volumes; exact for large means that `x` couldn't hold.
        put_back : sequence of bool, optional
            For "psc", whether the means are put back, for each run: see `puts_back`. If None, these series decide.

        Returns
        -------
        array of float64, shape (n_kept, n_series)
        """
        if self.standardize == "psc" and put_back is None:
            put_back = puts_back([self.mean_sizes(x, base)])
        cleaned = [
            self._cleaned(one, one.used(x), base, bool(put_back and put_back[k])) for k, one in enumerate(self.maps)
        ]
        return cleaned[0] if len(cleaned) == 1 else backend.array_namespace(x).concat(cleaned)

    def _cleaned(self, one, x, base, put_back):
        xp = backend.array_namespace(x)
        if self.standardize is None:
            return one.apply(x, base)
        if self.standardize == "psc" or one.matrix.shape[0] == 1:
            cleaned = one.apply(x, base)
            if put_back:
                cleaned += one.level @ x + (0.0 if base is None else base)
            return cleaning.standardize(cleaned, self.standardize)
        cleaned = one.centred.apply(x, base)
        low, high = xp.min(x, axis=0), xp.max(x, axis=0)
        span = high - low
        if base is not None:
            low, high = low + base, high + base
        noise = cleaning.rounding_noise(xp.stack([low, high]))
        if one.in_float32:
            noise = xp.maximum(noise, _NOISE_IN_FLOAT32 * span)
        n = cleaned.shape[0] - (self.standardize == "zscore_sample")
        std = xp.sqrt(xp.sum(cleaned * cleaned, axis=0) / n)
        cleaned /= xp.where(std <= noise, xp.full_like(std, xp.inf), std)
        return cleaned

    def mean_sizes(self, x: Array, base: Array | None = None) -> np.ndarray:
        """Sums over the series of the absolute means, for "psc": float64, shape (n_runs, 2).

        Of each run, first after cleaning, then before (censored and interpolated).
        """
        sizes = np.empty((len(self.maps), 2))
        for of_run, one in zip(sizes, self.maps, strict=True):
            xp, used = backend.array_namespace(x), one.used(x)
            after, before = xp.mean(one.matrix, axis=0) @ used, one.level @ used
            if base is not None:
                after, before = after + xp.mean(one.response) * base, before + base
            of_run[:] = float(xp.sum(xp.abs(after))), float(xp.sum(xp.abs(before)))
        return sizes


def puts_back(sizes: Sequence[np.ndarray]) -> list[bool]:
    """Whether "psc" puts the means back, for each run, given the `TimeOperator.mean_sizes` of blocks of its series."""
    return [bool(after < 0.1 * before) for after, before in np.sum(sizes, axis=0)]
