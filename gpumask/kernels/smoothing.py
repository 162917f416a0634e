"""Gaussian smoothing of volumes as three products with banded matrices, one per axis.

The boundary of ``scipy.ndimage`` 's mode "reflect" is part of each matrix, so the products equal
``scipy.ndimage.gaussian_filter`` in float64 on any array library, and the matrices show what the fast path of the
masker rests on: they are symmetric, so averaging a smoothed volume equals weighting the raw one by a smoothed region.
"""

import numpy as np

from gpumask import backend


def fwhm_to_sigma(fwhm, voxel_sizes):
    """Standard deviations of the Gaussian in voxels: float64, shape (n_axes,).

    Parameters
    ----------
    fwhm : float
        Full width at half maximum, in mm.
    voxel_sizes : sequence of float, shape (n_axes,)
        In mm.
    """
    return fwhm / (np.sqrt(8 * np.log(2)) * np.asarray(voxel_sizes, float))


def smoothing_matrix(n, sigma, truncate=4.0):
    """Matrix that smooths a line of voxels, on the host.

    Parameters
    ----------
    n : int
        Voxels in the line.
    sigma : float
        Standard deviation of the Gaussian, in voxels. 0 gives the identity.
    truncate : float
        The kernel ends at this many standard deviations, rounded to whole voxels.

    Returns
    -------
    ndarray of float64, shape (n, n)
        Symmetric; every row and column sums to 1. Column ``j`` is ``scipy.ndimage.gaussian_filter1d`` (mode "reflect")
        of a line that is 1 at ``j`` and 0 elsewhere.
    """
    if sigma <= 0:
        return np.eye(n)
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    source = (np.arange(n)[:, None] + offsets) % (2 * n)
    source = np.minimum(source, 2 * n - 1 - source)  # d c b a | a b c d | d c b a, however far it reaches
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], source), kernel)
    return matrix


def gaussian_smooth(volumes, sigma, truncate=4.0):
    """Smooth volumes with a separable Gaussian.

    Parameters
    ----------
    volumes : array, shape (..., n_1, ..., n_k)
        Real, of any dtype. The last ``len(sigma)`` axes are smoothed.
    sigma : sequence of float, shape (k,)
        Standard deviation along each of these axes, in voxels; 0 leaves the axis alone.
    truncate : float
        The kernel ends at this many standard deviations.

    Returns
    -------
    array of float64, of the shape, library and device of `volumes`

    Notes
    -----
    Equals ``scipy.ndimage.gaussian_filter(mode="reflect")`` of float64 data along these axes, to rounding.
    """
    sigma = [float(s) for s in sigma]
    if len(sigma) > volumes.ndim or min(sigma, default=0) < 0:
        msg = f"`sigma` must hold at most {volumes.ndim} non-negative numbers, one per axis to smooth, got {sigma}."
        raise ValueError(msg)
    xp = backend.array_namespace(volumes)
    smooth = xp.astype(volumes, xp.float64)
    for axis, s in enumerate(sigma, start=volumes.ndim - len(sigma)):
        if s > 0:
            matrix = backend.like(smoothing_matrix(volumes.shape[axis], s, truncate), smooth)
            smooth = apply_along(matrix, smooth, axis)
    return smooth


def apply_along(matrix, array, axis):
    """Multiply `matrix`, shape (m, n), with the lines of `array` along `axis` (of length n, then m)."""
    xp = backend.array_namespace(array)
    before, n, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    if not after:
        product = xp.matmul(xp.reshape(array, (-1, n)), matrix.T)
    else:
        lines = 1
        for length in after:
            lines *= length
        product = xp.matmul(matrix, xp.reshape(array, (-1, n, lines)))
    return xp.reshape(product, (*before, matrix.shape[0], *after))


def apply_separable(matrices, volume):
    """Multiply one matrix along each of the last axes of `volume`, the one that shrinks it most first."""
    first = volume.ndim - len(matrices)
    for axis in sorted(range(len(matrices)), key=lambda a: matrices[a].shape[0] / matrices[a].shape[1]):
        volume = apply_along(matrices[axis], volume, first + axis)
    return volume
