"""Cubic spline resampling of volumes onto the voxels of another grid.

Equals ``scipy.ndimage.affine_transform(order=3, mode="constant", cval=0)`` in float64. Between grids with parallel
axes, prefilter and interpolation are one matrix per axis. Between oblique grids only the prefilter is a matrix per axis
(recursive in the compiled code), and the spline is evaluated at the requested voxels only: on CuPy by its own kernel.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy

from gpumask import backend, cuda_runtime
from gpumask.dlpack import across_libraries, computable
from gpumask.kernels import compiled
from gpumask.kernels.smoothing import multiply_axes


class CubicResampling:
    """Resampling of volumes of one grid at chosen voxels of another; compiled on the host by `compile`.

    Parameters
    ----------
    shape : tuple of int, shape (3,)
        Shape of the source volumes, slowest axis first (z, y, x for NIfTI's order).
    matrices : sequence of arrays of float64, one per axis of `shape`
        Applied along the axes. (m, n) for parallel grids, the (n, n) prefilter for oblique ones.
    points : array of int, shape (n_points,), or None
        For parallel grids: the requested voxels in the flat product of `matrices`.
    coordinates : array of float64, shape (3, n_points), or None
        For oblique grids on NumPy and CuPy: the points in source voxels. Compiled code, SciPy or CuPy evaluates the
        spline there. On CuPy, points outside the source are at 0.
    inside : array of bool, shape (n_points,), or None
        For oblique grids on CuPy: whether each point lies in the source.
    taps : tuple of two arrays of shape (3, 4, n_points), or None
        For oblique grids in any other library: voxel index along each axis, and weight, of each point's four spline
        coefficients. A point outside the source has weights 0.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        matrices: Sequence[backend.Array],
        points: backend.Array | None = None,
        coordinates: Any = None,
        inside: backend.Array | None = None,
        taps: tuple[backend.Array, backend.Array] | None = None,
    ) -> None:
        self.shape = shape
        self.matrices = matrices
        self.points = points
        self.coordinates = coordinates
        self.inside = inside
        self.taps = taps

    @classmethod
    def compile(
        cls,
        matrix: np.ndarray,
        offset: np.ndarray,
        source_shape: tuple[int, ...],
        target_shape: tuple[int, ...],
        voxels: np.ndarray,
    ) -> "CubicResampling":
        """Compile the resampling, on the host.

        Parameters
        ----------
        matrix : ndarray, shape (3,) or (3, 3)
            Source voxel of target voxel ``k``: ``matrix @ k + offset``; for a diagonal of shape (3,),
            ``matrix * (k + offset / matrix)``, as in ``scipy.ndimage.affine_transform``.
        offset : ndarray, shape (3,)
        source_shape, target_shape : tuple of int, shape (3,)
            In the order of `matrix` (x, y, z).
        voxels : ndarray of int, shape (n_points,)
            Requested voxels of the target, flat in Fortran order (x fastest).
        """
        wanted = np.array(np.unravel_index(voxels, target_shape, order="F"))
        shape = tuple(source_shape[::-1])
        if np.ndim(matrix) == 1:
            first, last = (
                (wanted.min(axis=1), wanted.max(axis=1) + 1) if wanted.size else (np.zeros(3, int), np.ones(3, int))
            )
            matrices = [
                _interpolation_matrix(n, m, a, b)[lo:hi]
                for n, m, a, b, lo, hi in zip(source_shape, target_shape, matrix, offset, first, last, strict=True)
            ]
            points = np.ravel_multi_index(wanted - first[:, None], last - first, order="F")
            return cls(shape, matrices[::-1], points=points)
        # In the order of SciPy's own sum (since 1.16 the offset comes first): a point that rounding moves across the
        # border of the source changes from the border's value to 0.
        coordinates = np.tile(offset[:, None], wanted.shape[1])
        for column in range(3):
            coordinates += matrix[:, column, None] * wanted[column]
        coordinates = coordinates[::-1]
        matrices = [scipy.ndimage.spline_filter1d(np.eye(n), 3, axis=0, mode="mirror") for n in shape]
        return cls(shape, matrices, coordinates=np.ascontiguousarray(coordinates))

    def like(self, array: backend.Array) -> "CubicResampling":
        """Return this resampling in the library and on the device of `array` (itself, if it is there already)."""
        array = computable(array, "array")
        if backend.is_numpy(array):
            return self
        matrices = [backend.like(matrix, array) for matrix in self.matrices]
        if self.points is not None:
            return CubicResampling(self.shape, matrices, points=backend.like(self.points, array))
        if backend.is_cupy(array):
            inside = _is_inside(self.coordinates, self.shape) if self.inside is None else self.inside
            coordinates = self.coordinates * inside  # elsewhere, CuPy would read other memory for those far outside
            moved = [backend.like(part, array) for part in (coordinates, inside)]
            return CubicResampling(self.shape, matrices, coordinates=moved[0], inside=moved[1])
        indices, weights = self.taps or spline_taps(self.coordinates, self.shape)
        return CubicResampling(self.shape, matrices, taps=(backend.like(indices, array), backend.like(weights, array)))


@across_libraries
def resample_cubic(data: backend.Array, resampling: CubicResampling) -> backend.Array:
    """Resample volumes at the compiled voxels.

    Parameters
    ----------
    data : array, shape (n_volumes, n_voxels)
        Volumes of the source grid, flat in Fortran order, real and finite.
    resampling : CubicResampling
        In the library and on the device of `data`.

    Returns
    -------
    array of float64, shape (n_volumes, n_points)
        0 at points outside the source. Not clipped to the range of the source: a cubic spline overshoots.

    Raises
    ------
    ValueError
        If `data` doesn't have the voxels of the source grid.
    """
    if data.ndim != 2 or data.shape[1] != math.prod(resampling.shape):
        msg = (
            f"`data` must have the shape (n_volumes, {math.prod(resampling.shape)}) of volumes of the compiled source "
            f"grid, got {tuple(data.shape)}."
        )
        raise ValueError(msg)
    if resampling.coordinates is not None and compiled.extension is not None and backend.is_numpy(data):
        out = np.empty((data.shape[0], resampling.coordinates.shape[1]))
        stack = np.ascontiguousarray(compiled.readable(data)).reshape(data.shape[0], *resampling.shape)
        compiled.extension.interpolate(stack, resampling.coordinates, out)
        return out
    xp = backend.array_namespace(data)
    n_volumes, inside, volumes = data.shape[0], resampling.inside, []
    sampled: Any = None
    if inside is not None:
        sampled = xp.empty((n_volumes, inside.shape[0]), dtype=xp.float64, device=backend.device_of(data))
    # One volume at a time: a product's shape does not depend on the chunk, so neither do its bits.
    for index in range(n_volumes):
        volume = multiply_axes(resampling.matrices, xp.reshape(data[index, :], resampling.shape))
        if resampling.points is not None:
            volumes.append(xp.take(xp.reshape(volume, (-1,)), resampling.points))
        elif sampled is not None:
            cuda_runtime.evaluate_spline(volume, resampling.coordinates, sampled[index, :])
        elif resampling.taps is not None:
            volumes.append(_evaluate(xp, volume, *resampling.taps))
        else:
            volumes.append(scipy.ndimage.map_coordinates(volume, resampling.coordinates, order=3, prefilter=False))
    return xp.stack(volumes, axis=0) if sampled is None else xp.where(inside, sampled, 0.0)


def _is_inside(coordinates, shape):
    return ((coordinates >= 0) & (coordinates <= np.array(shape)[:, None] - 1)).all(axis=0)


def _interpolation_matrix(n, m, scale, shift):
    """Matrix (m, n) that resamples a line of n voxels at ``scale * (k + shift / scale)``, zero outside of it."""
    columns = np.eye(n)
    return scipy.ndimage.affine_transform(columns, [scale, 1.0], [shift, 0.0], output_shape=(m, n), order=3)


def spline_taps(coordinates: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and weights of the cubic spline at each point, on the host.

    Parameters
    ----------
    coordinates : ndarray of float64, shape (3, n_points)
        In voxels of the source.
    shape : tuple of int, shape (3,)

    Returns
    -------
    indices : ndarray of int64, shape (3, 4, n_points)
        Voxels along each axis; beyond the border they are mirrored about the centre of the outermost voxel.
    weights : ndarray of float64, shape (3, 4, n_points)
        Cubic B-spline; 0 for points outside the source.
    """
    upper, inside = np.array(shape)[:, None] - 1, _is_inside(coordinates, shape)
    first = np.floor(coordinates)
    t = coordinates - first
    indices = first[:, None].astype(np.int64) + np.arange(-1, 3)[:, None]
    period = np.maximum(2 * upper[:, None], 1)
    indices %= period
    indices = np.minimum(indices, period - indices) * (upper[:, None] > 0)
    weights = np.stack(
        [(1 - t) ** 3 / 6, 2 / 3 - t**2 * (2 - t) / 2, 2 / 3 - (1 - t) ** 2 * (1 + t) / 2, t**3 / 6], axis=1
    )
    return indices, weights * inside


def _evaluate(xp, coefficients, indices, weights):
    ny, nx = coefficients.shape[1:]
    flat = xp.reshape(coefficients, (-1,))
    values = xp.zeros(weights.shape[2], dtype=xp.float64, device=backend.device_of(coefficients))
    for k in range(4):
        for j in range(4):
            row = (indices[0, k, :] * ny + indices[1, j, :]) * nx
            weight = weights[0, k, :] * weights[1, j, :]
            for i in range(4):
                values = values + weight * weights[2, i, :] * xp.take(flat, row + indices[2, i, :])
    return values
