"""Principal components of the most variable voxels, as confounds."""

import numpy as np

from gpumask import backend, devices
from gpumask.images.volumes import Volumes
from gpumask.kernels import cleaning


def high_variance_confounds(
    volumes: Volumes, n_confounds: int = 5, percentile: float = 2.0, detrend: bool = True
) -> np.ndarray:
    """Principal components of a run's most variable voxels; equals ``nilearn.image.high_variance_confounds``.

    The run is read twice: for each voxel's mean square, then for the series of the chosen voxels, which alone are held
    in memory. A run on a GPU isn't downloaded, only its mean squares and these series.

    Parameters
    ----------
    volumes : Volumes
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
    n = volumes.n_volumes
    time = (np.arange(n) - (n - 1) / 2).tolist()
    first = None
    with np.errstate(invalid="ignore"), devices.device_errors(volumes.device), backend.using(volumes.device):
        # Non-finite voxels are never chosen.
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
        squares = backend.to_host(squares)
        chosen = np.flatnonzero(squares > np.nanpercentile(squares, 100.0 - percentile))
        series, there = np.empty((n, len(chosen))), backend.to_device(chosen, volumes.device)
        for chunk in volumes.chunks(8):
            rows = series[chunk.start : chunk.start + len(chunk.data)]
            rows[:] = backend.to_host(chunk.rows()[:, there])
            rows *= chunk.slope
            rows += chunk.inter
    return cleaning.principal_components(cleaning.detrend(series) if detrend else series, n_confounds)
