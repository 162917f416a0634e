"""Principal components of the most variable voxels, as confounds."""

import numpy as np

from gpumask.images.volumes import Volumes
from gpumask.kernels import cleaning


def high_variance_confounds(
    volumes: Volumes, n_confounds: int = 5, percentile: float = 2.0, detrend: bool = True
) -> np.ndarray:
    """Principal components of a run's most variable voxels; equals ``nilearn.image.high_variance_confounds``.

    The run is read twice: for each voxel's mean square, then for the series of the chosen voxels, which alone are held
    in memory.

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
    time = np.arange(n) - (n - 1) / 2
    first = None
    sums, squares, slopes = np.zeros((3, volumes.grid.n_voxels))
    with np.errstate(invalid="ignore"):  # non-finite voxels are never chosen
        for chunk in volumes.chunks(8):
            for k, values in enumerate(chunk.scaled(), start=chunk.start):
                if first is None:
                    first = values.copy()
                values -= first  # differences are small: the squares below don't lose digits to the mean
                sums += values
                slopes += time[k] * values
                squares += np.square(values, out=values)
        if detrend:
            squares -= sums**2 / n + slopes**2 / max(float(time @ time), 1)
        elif first is not None:
            squares += 2 * first * sums + n * first**2
        chosen = np.flatnonzero(squares > np.nanpercentile(squares, 100.0 - percentile))
    series = np.empty((n, len(chosen)))
    for chunk in volumes.chunks(8):
        rows = series[chunk.start : chunk.start + len(chunk.data)]
        rows[:] = np.take(chunk.data, chosen, axis=1)
        rows *= chunk.slope
        rows += chunk.inter
    return cleaning.principal_components(cleaning.detrend(series) if detrend else series, n_confounds)
