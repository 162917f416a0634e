"""Gaussian smoothing of volumes as three products with banded matrices, one per axis.

The boundary of ``scipy.ndimage`` 's mode "reflect" is part of each matrix, so the products equal
``scipy.ndimage.gaussian_filter`` in float64 on any array library. The matrices are symmetric, so averaging a smoothed
volume equals weighting the raw one by a smoothed region: the masker's fast path depends on it.
On NumPy, compiled sums over the bands alone take a quarter of BLAS's time on one core (6 mm on a 2 mm grid).
On CuPy, the lines of all volumes are correlated with the Gaussian itself, in one launch per axis.
"""

import math
from collections.abc import Sequence

import numpy as np

from gpumask import backend, cuda_runtime
from gpumask.dlpack import across_libraries
from gpumask.kernels import compiled

MAX_SIGMA = 10_000  # voxels: more than any image has, so a wider Gaussian averages whole lines
# Bands up to this share of a matrix's columns are multiplied alone.
_WIDEST_BAND = 0.5


def fwhm_to_sigma(fwhm: float | np.ndarray, voxel_sizes: Sequence[float] | np.ndarray) -> np.ndarray:
    """Standard deviations of the Gaussian in voxels: float64, shape (n_axes,).

    Parameters
    ----------
    fwhm : float, or ndarray of shape (n_axes,)
        Full width at half maximum, in mm.
    voxel_sizes : sequence of float, shape (n_axes,)
        In mm.
    """
    return fwhm / (np.sqrt(8 * np.log(2)) * np.asarray(voxel_sizes, float))


def gaussian_kernel(sigma: float, truncate: float = 4.0) -> np.ndarray:
    """Weights of a Gaussian around a voxel, on the host: float64, an odd number of them, with a sum of 1.

    Parameters
    ----------
    sigma : float
        Standard deviation, in voxels. 0 gives a single weight.
    truncate : float
        The kernel ends at this many standard deviations, rounded to whole voxels.

    Raises
    ------
    ValueError
        If `sigma` is negative, not finite or larger than `MAX_SIGMA`.
    """
    if not 0 <= sigma <= MAX_SIGMA:
        msg = f"`sigma` must be a number of voxels from 0 to {MAX_SIGMA}, got {sigma}."
        raise ValueError(msg)
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / (sigma or 1.0)) ** 2)
    return kernel / kernel.sum()


def smoothing_matrix(n: int, sigma: float, truncate: float = 4.0) -> np.ndarray:
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

    Raises
    ------
    ValueError
        If `sigma` is negative, not finite or larger than `MAX_SIGMA`.
    """
    kernel = gaussian_kernel(sigma, truncate)
    if sigma == 0 or n == 0:
        return np.eye(n)
    radius = len(kernel) // 2
    offsets = np.arange(-radius, radius + 1)
    # The mirrored line d c b a | a b c d | d c b a repeats after 2 n voxels, and so the kernel is summed up first.
    period = 2 * n
    kernel = np.bincount(offsets % period, kernel, period)
    weights = kernel[(np.arange(period) - np.arange(n)[:, None]) % period]
    return weights[:, :n] + weights[:, : n - 1 : -1]


@across_libraries
def gaussian_smooth(volumes: backend.Array, sigma: Sequence[float], truncate: float = 4.0) -> backend.Array:
    """Smooth volumes with a separable Gaussian.

    Parameters
    ----------
    volumes : array, shape (..., n_1, ..., n_k)
        Real, of any dtype. The last ``len(sigma)`` axes are smoothed.
    sigma : sequence of float, shape (k,)
        Standard deviation along each of these axes, in voxels; 0 leaves the axis as it is.
    truncate : float
        The kernel ends at this many standard deviations.

    Returns
    -------
    array of float64, of the shape, library and device of `volumes`

    Raises
    ------
    ValueError
        If `sigma` has more numbers than `volumes` axes, or one that is negative or larger than `MAX_SIGMA`.

    Notes
    -----
    Equals ``scipy.ndimage.gaussian_filter(mode="reflect")`` of float64 data along these axes, to rounding.
    """
    sigma = [float(s) for s in sigma]
    if len(sigma) > volumes.ndim or not all(0 <= s <= MAX_SIGMA for s in sigma):
        msg = (
            f"`sigma` must hold at most {volumes.ndim} numbers from 0 to {MAX_SIGMA}, one per axis to smooth, "
            f"got {sigma}."
        )
        raise ValueError(msg)
    axes = range(volumes.ndim - len(sigma), volumes.ndim)
    xp = backend.array_namespace(volumes)
    if backend.is_cupy(volumes):
        kernels = [backend.like(gaussian_kernel(s, truncate), volumes) for s in sigma]
        return correlate_axes(kernels, volumes, [slice(None)] * len(sigma))
    matrices = [smoothing_matrix(volumes.shape[axis], s, truncate) for axis, s in zip(axes, sigma, strict=True)]
    if len(axes) == 3 and backend.is_numpy(volumes) and multiplies_bands(matrices):
        stack = np.reshape(volumes, (math.prod(volumes.shape[:-3]), *volumes.shape[-3:]))
        return np.reshape(apply_separable(matrices, stack), volumes.shape)
    smooth = xp.astype(volumes, xp.float64)
    for axis, s, matrix in zip(axes, sigma, matrices, strict=True):
        if s > 0:
            smooth = apply_along(backend.like(matrix, smooth), smooth, axis)
    return smooth


def correlate_axes(kernels: Sequence[backend.Array], volumes: backend.Array, keep: Sequence[slice]) -> backend.Array:
    """Smooth CuPy volumes along their last axes, and keep a part of them.

    Parameters
    ----------
    kernels : sequence of arrays of float64, one per axis
        `gaussian_kernel` along each of the last axes, on the device of `volumes`.
    volumes : array, shape (..., n_1, ..., n_k)
        Of any real dtype.
    keep : sequence of slices, one per axis
        Voxels to return.

    Returns
    -------
    array of float64
        Each volume's bits don't depend on the others.
    """
    xp = backend.array_namespace(volumes)
    smooth = xp.astype(volumes, xp.float64)
    for axis, (kernel, kept) in enumerate(zip(kernels, keep, strict=True), volumes.ndim - len(kernels)):
        if len(kernel) > 1:
            along = (1,) * axis + (-1,) + (1,) * (volumes.ndim - axis - 1)
            smooth = cuda_runtime.correlate(smooth, xp.reshape(kernel, along), "reflect")
        smooth = smooth[(slice(None),) * axis + (kept,)]
    return xp.ascontiguousarray(smooth)


def apply_along(matrix: backend.Array, array: backend.Array, axis: int) -> backend.Array:
    """Multiply `matrix`, shape (m, n), with the lines of `array` along `axis` (of length n, then m)."""
    xp = backend.array_namespace(array)
    before, n, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    if not after:
        product = xp.matmul(xp.reshape(array, (math.prod(before), n)), matrix.T)
    else:
        product = xp.matmul(matrix, xp.reshape(array, (math.prod(before), n, math.prod(after))))
    return xp.reshape(product, (*before, matrix.shape[0], *after))


def apply_separable(matrices: Sequence[backend.Array], volumes: backend.Array) -> backend.Array:
    """Multiply volumes with one matrix along each of their axes.

    Parameters
    ----------
    matrices : sequence of three arrays of float64, shapes (m_z, n_z), (m_y, n_y), (m_x, n_x)
    volumes : array, shape (n_volumes, n_z, n_y, n_x)
        Of any real dtype.

    Returns
    -------
    array of float64, shape (n_volumes, m_z, m_y, m_x)
        Each volume's bits don't depend on the others.
    """
    if backend.is_numpy(volumes) and multiplies_bands(matrices):
        volumes = compiled.readable(volumes)
        if volumes.strides[3] != volumes.itemsize:
            volumes = np.ascontiguousarray(volumes)
        out = np.empty((len(volumes), *(len(matrix) for matrix in matrices)))
        compiled.extension.multiply(volumes, *(np.ascontiguousarray(matrix, np.float64) for matrix in matrices), out)
        return out
    xp = backend.array_namespace(volumes)
    return xp.stack([multiply_axes(matrices, volumes[index, ...]) for index in range(volumes.shape[0])], axis=0)


def multiply_axes(matrices: Sequence[backend.Array], volume: backend.Array) -> backend.Array:
    """Multiply one volume with a matrix along each of its axes, by the library's products; see `apply_separable`."""
    xp = backend.array_namespace(volume)
    product = xp.astype(volume, xp.float64, copy=False)
    # The axis that shrinks a volume most comes first.
    for axis in sorted(range(3), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1]):
        product = apply_along(matrices[axis], product, axis)
    return product


def multiplies_bands(matrices: Sequence[np.ndarray]) -> bool:
    """Whether `apply_separable` uses compiled sums over the bands of these matrices, on NumPy, instead of BLAS.

    The sums skip the zeros beyond the band, but take about twice as long per multiplication.
    """
    if compiled.extension is None:
        return False
    banded = sum(np.count_nonzero(matrix) / max(len(matrix), 1) for matrix in matrices)
    return banded <= _WIDEST_BAND * sum(matrix.shape[1] for matrix in matrices)
