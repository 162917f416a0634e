"""The steps of a plan before the reduction: resampling and smoothing, on any array library and device."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import scipy

from gpumask import backend, cuda_runtime
from gpumask.backend import Array
from gpumask.images.grid import Grid, resample_nearest, voxel_mapping
from gpumask.kernels.resampling import CubicResampling, resample_cubic
from gpumask.kernels.segments import Segments
from gpumask.kernels.smoothing import (
    MAX_SIGMA,
    apply_separable,
    correlate_axes,
    fwhm_to_sigma,
    multiplies_bands,
    smoothing_matrix,
)
from gpumask.kernels.weights import reach

_MAX_AXIS = 5000  # voxels: smoothing and resampling have matrices of this size squared


def smoothing_matrices(grid: Grid, fwhm: float | Sequence[float], name: str = "smoothing_fwhm") -> list[np.ndarray]:
    """Matrices that smooth volumes along z, y and x; see `gpumask.kernels.smoothing.smoothing_matrix`.

    Parameters
    ----------
    grid : Grid
    fwhm : float or sequence of three floats
        Full width at half maximum in mm, of all axes or of x, y and z.
    name : str
        Name of the user's parameter, for errors.

    Raises
    ------
    ValueError
        If an axis has more than 5000 voxels, or the Gaussian is wider than `gpumask.kernels.smoothing.MAX_SIGMA`.
    """
    check_axes("smoothed", grid)
    widths = np.broadcast_to(fwhm, 3)
    sigmas = fwhm_to_sigma(widths, grid.voxel_sizes)
    if sigmas.max() > MAX_SIGMA:
        msg = (
            f"`{name}` of {widths[sigmas.argmax()]:g} mm has a standard deviation of {sigmas.max():.3g} voxels of "
            f"{grid.name} (voxel sizes {grid.voxel_sizes} mm), expected at most {MAX_SIGMA}. "
            "Choose a smaller width, or correct the image's header."
        )
        raise ValueError(msg)
    return [smoothing_matrix(n, sigma) for n, sigma in zip(grid.shape, sigmas, strict=True)][::-1]


def check_axes(done: str, *grids: Grid) -> None:
    """Raise ValueError if an axis of a grid is too long for volumes to be "smoothed" or "resampled"."""
    for grid in grids:
        if max(grid.shape) > _MAX_AXIS:
            msg = (
                f"Volumes with an axis of more than {_MAX_AXIS} voxels can't be {done}, but {grid.name} has the shape "
                f"{grid.shape}. Correct its header, or skip smoothing and resampling."
            )
            raise ValueError(msg)


@dataclass(frozen=True, eq=False)
class Resampling:
    """Cubic resampling of the runs to the regions' grid, at the needed voxels only.

    Attributes
    ----------
    source, target : Grid
        Grids of the runs and of the regions.
    points : ndarray of int, shape (n_points,)
        Needed voxels of `target`, flat in Fortran order; on the host.
    cubic : CubicResampling
    """

    source: Grid
    target: Grid
    points: np.ndarray
    cubic: CubicResampling

    @classmethod
    def compile(cls, source: Grid, target: Grid, points: np.ndarray) -> "Resampling":
        """Compile the resampling, on the host."""
        matrix, offset = voxel_mapping(source, target)
        return cls(source, target, points, CubicResampling.compile(matrix, offset, source.shape, target.shape, points))

    def like(self, array: Array) -> "Resampling":
        """Return this step with its arrays in the library and on the device of `array`."""
        return replace(self, cubic=self.cubic.like(array))

    @cached_property
    def nearest(self):
        """Source voxel nearest to each point, counted from 1; 0 outside the source. In the library of the step."""
        numbers = np.arange(1, self.source.n_voxels + 1).reshape(self.source.shape, order="F")
        nearest = resample_nearest(numbers, self.source, self.target).ravel(order="F")[self.points]
        return backend.like(nearest, self.cubic.matrices[0])

    @cached_property
    def faces(self):
        """Weights for the sum over the six faces of a voxel, shape (1, 3, 3, 3), in the library of the step."""
        weights = scipy.ndimage.generate_binary_structure(3, 1).astype(np.float64)
        weights[1, 1, 1] = 0.0
        return backend.like(weights[np.newaxis], self.cubic.matrices[0])

    def apply(self, values: Array) -> Array:
        """Resample finite volumes: array of float64, shape (n_volumes, n_points)."""
        return resample_cubic(values, self.cubic)

    def apply_to_finite(self, values: Array, missing: Array) -> tuple[Array, Array, Array]:
        """Resample volumes with missing voxels, as nilearn does.

        A missing voxel is filled with the mean of its finite face neighbours. Missing voxels next to filled ones are
        filled in a second step, and the others become 0. Points whose nearest source voxel is missing are 0.

        Parameters
        ----------
        values : array of float64, shape (n_volumes, n_voxels)
        missing : array of bool, of the same shape

        Returns
        -------
        points : array of float64, shape (n_volumes, n_points)
        holes : array of bool, of the same shape
            Whether a point's nearest voxel is missing.
        filled : array of float64, shape (n_volumes, n_voxels)
            The volumes without missing voxels.
        """
        xp = backend.array_namespace(values)
        shape = self.source.shape[::-1]
        neighbours = _sum_of_neighbours
        if backend.is_cupy(values):  # one launch instead of 13
            neighbours = partial(cuda_runtime.correlate, weights=self.faces, mode="constant")
        few = few_at_a_time(values, 1)
        filled = xp.concat([_filled(values[rows, :], missing[rows, :], shape, neighbours) for rows in few])
        holes = xp.take(missing, xp.maximum(self.nearest - 1, 0), axis=1) & (self.nearest > 0)
        return xp.where(holes, 0.0, self.apply(filled)), holes, filled


def few_at_a_time(data: Array, n_on_host: int) -> Iterable[slice]:
    """Slices of volumes to convert to float64 at once; on a GPU all of them, because its chunks leave room for that."""
    n = n_on_host if backend.is_numpy(data) else max(data.shape[0], 1)
    return [slice(start, stop) for start, stop in pairwise([*range(0, data.shape[0], n), data.shape[0]])]


def _filled(volumes, missing, shape, neighbours):
    xp = backend.array_namespace(volumes)
    known = xp.reshape(~missing, (-1, *shape))
    filled = xp.where(known, xp.reshape(volumes, known.shape), 0.0)
    for _ in range(2):
        count, total = neighbours(xp.astype(known, xp.float64)), neighbours(filled)
        shell = ~known & (count > 0)
        filled = xp.where(shell, total / xp.maximum(count, 1.0), filled)
        known = known | shell
    return xp.reshape(filled, volumes.shape)


def _sum_of_neighbours(volumes):
    """Sum over the six faces of each voxel, 0 beyond the border; shape (n_volumes, z, y, x)."""
    total = backend.array_namespace(volumes).zeros_like(volumes)
    for axis in range(1, 4):
        low, high = ([slice(None)] * 4 for _ in range(2))
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        total[tuple(high)] += volumes[tuple(low)]
        total[tuple(low)] += volumes[tuple(high)]
    return total


@dataclass(frozen=True, eq=False)
class Smoothing:
    """Gaussian smoothing of the box around the regions.

    Attributes
    ----------
    shape : tuple of int
        Shape of the volumes before smoothing: z, y, x.
    box : tuple of slices
        The part of a volume that reaches the regions; the rest is cut off before smoothing.
    inner : tuple of slices
        The regions' bounding box in that part.
    matrices : list of arrays
        Smoothing along z, y, x, from the box to the regions' bounding box; on the host if `kernels` are CuPy's.
    kernels : list of arrays
        The Gaussian along z, y, x, which CuPy uses instead of `matrices`.
    entries : ndarray of int
        The regions' entries into the result of `apply`, on the host.
    """

    shape: tuple[int, ...]
    box: tuple[slice, ...]
    inner: tuple[slice, ...]
    matrices: list
    kernels: list
    entries: np.ndarray

    @classmethod
    def compile(
        cls,
        segments: Segments,
        shape: tuple[int, ...],
        matrices: list[np.ndarray],
        kernels: list[np.ndarray],
    ) -> tuple["Smoothing", Segments]:
        """Compile the smoothing of the box around some segments, on the host.

        Parameters
        ----------
        segments : Segments
            Entries into whole volumes.
        shape : tuple of int
            Shape of whole volumes: z, y, x.
        matrices : list of ndarray
            `gpumask.kernels.smoothing.smoothing_matrix` along each axis.
        kernels : list of ndarray
            `gpumask.kernels.smoothing.gaussian_kernel` along each axis.

        Returns
        -------
        Smoothing
        Segments
            The same regions, with entries into the result of `apply`.
        """
        coordinates = np.array(np.unravel_index(segments.indices, shape))
        tight = [(c.min(), c.max() + 1) if len(c) else (0, 1) for c in coordinates]
        reached = [reach(matrix, lo, hi) for matrix, (lo, hi) in zip(matrices, tight, strict=True)]
        box = tuple(slice(first, last) for first, last in reached)
        matrices = [
            np.ascontiguousarray(matrix[lo:hi, first:last])
            for matrix, (lo, hi), (first, last) in zip(matrices, tight, reached, strict=True)
        ]
        inner = tuple(slice(lo - cut.start, hi - cut.start) for (lo, hi), cut in zip(tight, box, strict=True))
        sizes = [hi - lo for lo, hi in tight]
        entries = np.ravel_multi_index(coordinates - np.array([lo for lo, _ in tight])[:, None], sizes)
        entries = entries.astype(segments.indices.dtype)
        smoothing = cls(shape, box, inner, matrices, kernels, entries)
        return smoothing, Segments(entries, segments.offsets, segments.weights)

    def cropped(self) -> tuple["Smoothing", np.ndarray]:
        """Return the same smoothing for volumes already cut to the box, and the box's voxels in whole volumes."""
        box = np.arange(math.prod(self.shape)).reshape(self.shape)[self.box]
        return replace(self, shape=box.shape, box=(slice(None),) * 3), box.ravel()

    def like(self, array: Array) -> "Smoothing":
        """Return this step with its arrays in the library and on the device of `array`."""
        if backend.is_numpy(array):
            return self
        kernels = [backend.like(kernel, array) for kernel in self.kernels]
        if backend.is_cupy(array):
            return replace(self, kernels=kernels)
        return replace(self, matrices=[backend.like(matrix, array) for matrix in self.matrices], kernels=kernels)

    @cached_property
    def voxels(self):
        """Voxels of a volume that affect any region: array of int64, in the library of the step."""
        matrices = [backend.to_host(matrix) for matrix in self.matrices]
        inside = np.zeros([len(matrix) for matrix in matrices])
        inside.ravel()[self.entries] = 1.0
        (reaching,) = apply_separable([np.ascontiguousarray(matrix.T) for matrix in matrices], inside[np.newaxis])
        starts = [cut.indices(n)[0] for cut, n in zip(self.box, self.shape, strict=True)]
        at = [c + start for c, start in zip(np.nonzero(reaching), starts, strict=True)]
        return backend.like(np.ravel_multi_index(at, self.shape), self.kernels[0])

    def apply(self, points: Array) -> Array:
        """Smooth volumes of any real dtype, shape (n_volumes, n_voxels): float64, shape (n_volumes, n_smoothed)."""
        xp = backend.array_namespace(points)
        volumes = xp.reshape(points, (points.shape[0], *self.shape))[(slice(None), *self.box)]
        if backend.is_cupy(points):
            smoothed = correlate_axes(self.kernels, volumes, self.inner)
        else:
            smoothed = apply_separable(self.matrices, volumes)
        return xp.reshape(smoothed, (points.shape[0], -1))

    @property
    def multiplies_bands(self) -> bool:
        """Whether the CPU multiplies only the bands of the matrices, instead of using BLAS."""
        return multiplies_bands(self.matrices)

    @property
    def multiplications(self) -> float:
        """Number of multiplications per volume on the CPU."""
        bands = self.multiplies_bands
        points, total = float(math.prod(matrix.shape[1] for matrix in self.matrices)), 0.0
        for matrix in reversed(self.matrices):
            points *= len(matrix) / matrix.shape[1]  # each product shrinks the box
            total += points * (np.count_nonzero(matrix) / len(matrix) if bands else matrix.shape[1])
        return total
