"""Principal components of the most variable voxels or grayordinates, as confounds."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpumask import backend, devices
from gpumask.images.grayordinates import DenseImage
from gpumask.images.runs import Run
from gpumask.images.volumes import Volumes
from gpumask.kernels import cleaning
from gpumask.process import in_threads, n_cores, one_linalg_thread


@one_linalg_thread  # the bits don't depend on the number of cores
def high_variance_confounds(
    run: Run, n_confounds: int = 5, percentile: float = 2.0, detrend: bool = True
) -> np.ndarray:
    """Principal components of a run's most variable voxels; equals ``nilearn.image.high_variance_confounds``.

    The run is read twice: for each voxel's mean square, then for the series of the chosen voxels, which alone are held
    in memory. A run on a GPU isn't downloaded, only its mean squares and these series.

    Parameters
    ----------
    run : Volumes or DenseImage
        The voxels of a dense series are its grayordinates.
    n_confounds : int, default=5
        Number of components.
    percentile : float, default=2.0
        Percentage of the voxels to use.
    detrend : bool, default=True
        Whether to remove mean and linear trend first.

    Returns
    -------
    ndarray of float64, shape (n_volumes, n_confounds)
        Orthonormal columns, of arbitrary sign.
    """
    find: Callable[..., Any] = _in_grayordinates if isinstance(run, DenseImage) else _in_volumes
    series = find(run, percentile, detrend)
    return cleaning.principal_components(cleaning.detrend(series) if detrend else series, n_confounds)


def _largest(squares, percentile):
    """Indices of the largest squares; those that aren't finite are never chosen."""
    squares = np.where(np.isfinite(squares), squares, np.nan)
    return np.flatnonzero(squares > np.nanpercentile(squares, 100.0 - percentile))


def _in_grayordinates(run: DenseImage, percentile: float, detrend: bool) -> np.ndarray:
    """Return the chosen series, shape (n_volumes, n_chosen)."""

    def squares(part):
        with np.errstate(invalid="ignore", over="ignore"):
            series = run.scaled(part).T
            return np.mean((cleaning.detrend(series) if detrend else series) ** 2, axis=0)

    chosen = _largest(np.concatenate(list(in_threads(squares, run.blocks(), n_cores()))), percentile)
    series = np.empty((run.n_volumes, len(chosen)))
    for part in run.blocks():
        own = slice(*np.searchsorted(chosen, [part.start, part.stop]))
        stored = run.rows(part.start, part.stop)[chosen[own] - part.start]
        series[:, own] = (stored.astype(np.float64) * run.slope + run.inter).T
    return series


def _in_volumes(volumes: Volumes, percentile: float, detrend: bool) -> np.ndarray:
    """Return the chosen series, shape (n_volumes, n_chosen)."""
    n = volumes.n_volumes
    time = (np.arange(n) - (n - 1) / 2).tolist()
    first = None
    with np.errstate(invalid="ignore"), devices.device_errors(volumes.device), backend.using(volumes.device):
        sums, squares, slopes = (backend.to_device(np.zeros(volumes.grid.n_voxels), volumes.device) for _ in range(3))
        for chunk in volumes.chunks(8):
            for k, values in enumerate(chunk.scaled(), start=chunk.start):
                if first is None:
                    first = values.copy()
                values -= first  # differences are small: the squares below don't lose digits to the mean
                sums += values
                slopes += time[k] * values
                values *= values
                squares += values
        if detrend:
            squares -= sums**2 / n + slopes**2 / max(sum(t**2 for t in time), 1)
        elif first is not None:
            squares += 2 * first * sums + n * first**2
        chosen = _largest(backend.to_host(squares), percentile)
        series, there = np.empty((n, len(chosen))), backend.to_device(chosen, volumes.device)
        for chunk in volumes.chunks(8):
            rows = series[chunk.start : chunk.start + len(chunk.data)]
            rows[:] = backend.to_host(chunk.rows()[:, there])
            rows *= chunk.slope
            rows += chunk.inter
    return series
