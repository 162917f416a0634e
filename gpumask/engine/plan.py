"""Extraction plans: an atlas, a mask, a smoothing and an image grid, compiled into what is done to each volume.

Averaging is linear, and so is smoothing. Because the Gaussian with mirrored borders is a symmetric operator, the mean
of a smoothed volume over a region is the raw volume weighted by the smoothed region. A plan therefore *folds* the
smoothing into the weights, once, and no volume is ever smoothed. Where that is wrong (the median of a smoothed volume
is no weighting of the raw one) or dearer (tens of thousands of small regions, each blurred into thousands of voxels),
the plan is *staged*: it smooths volume by volume, only the box around the regions.
"""

import math
from itertools import pairwise

import numpy as np

from gpumask import backend
from gpumask.images.grid import voxel_mapping
from gpumask.kernels.resampling import CubicResampling, resample_cubic
from gpumask.kernels.segments import STRATEGIES, FoldedSegments, Segments
from gpumask.kernels.smoothing import apply_separable, fwhm_to_sigma, multiplies_bands, smoothing_matrix
from gpumask.kernels.weights import fold, reach

LINEAR = ("mean", "sum")

# Nanoseconds measured on one core of a Xeon with AVX-512 (banded products: of an EPYC with AVX2); only their ratio
# decides between folded and staged.
_NS_PER_WEIGHT = 0.12  # one weight times one of 16 volumes
_NS_PER_GATHER = 0.6  # one voxel read, converted and laid beside those of 15 other volumes
_NS_PER_MULTIPLY = 0.04  # one multiply-add of a dense float64 product by BLAS
_NS_PER_BANDED = 0.17  # one of a banded product
_MAX_WEIGHTS = 12_000_000  # 14 bytes each
_SAMPLED_REGIONS = 64
_SMOOTHED = 4  # volumes that are smoothed, and held in float64, at once


class Plan:
    """What is done to each volume; compiled by `compile_plan`.

    Attributes
    ----------
    grid : Grid
        Of the volumes that the plan takes.
    strategy : str
        A key of `gpumask.kernels.STRATEGIES`.
    way : {"direct", "folded", "staged"}
        Without smoothing, with smoothing in the weights, with smoothing volume by volume.
    segments : Segments
        The regions' entries into whatever the steps before deliver: voxels of `grid`, resampled points or the box. Of a
        folded plan they may be still to be folded.
    counts : ndarray of int64, shape (n_regions,)
        Voxels of each region.
    resampling : CubicResampling or None
        From `grid` to `label_grid`, at the voxels `points` (flat in Fortran order).
    box : tuple of slices or None
        Staged: what is cut out of a volume (z, y, x) before smoothing.
    matrices : sequence of arrays or None
        Staged: smoothing along z, y, x from the cut-out to the regions' bounding box.
    estimate : dict
        Milliseconds per volume and core expected of each way considered.
    """

    def __init__(
        self,
        grid,
        strategy,
        way,
        segments,
        counts,
        estimate,
        *,
        resampling=None,
        label_grid=None,
        points=None,
        shape=None,
        box=None,
        matrices=None,
    ):
        self.grid = grid
        self.strategy = strategy
        self.way = way
        self.segments = segments
        self.counts = counts
        self.resampling = resampling
        self.label_grid = label_grid
        self.points = points
        self.shape = shape
        self.box = box
        self.matrices = matrices
        self.estimate = estimate

    @property
    def linear(self):
        """Whether the result is a weighting of the voxels, so that parts of it may be corrected afterwards."""
        return self.strategy in LINEAR and self.way != "staged"

    @property
    def uses_products(self):
        """Whether volumes go through matrix products (BLAS; on the CPU, those with narrow bands don't)."""
        return self.resampling is not None or self.way == "staged"

    def like(self, array):
        """Return this plan with its arrays in the library and on the device of `array`."""
        if backend.is_numpy(array):
            return self
        return Plan(
            self.grid,
            self.strategy,
            self.way,
            self.segments.like(array),
            self.counts,
            self.estimate,
            resampling=self.resampling and self.resampling.like(array),
            label_grid=self.label_grid,
            points=self.points,
            shape=self.shape,
            box=self.box,
            matrices=self.matrices and [backend.like(matrix, array) for matrix in self.matrices],
        )

    def sample(self, data):
        """Volumes at the points that `reduce` takes: resampled, or as they are.

        Parameters
        ----------
        data : array, shape (n_volumes, n_voxels)
            Volumes of `grid`, flat in Fortran order, of any real dtype.

        Returns
        -------
        array, shape (n_volumes, n_points)
        """
        return data if self.resampling is None else resample_cubic(data, self.resampling)

    def reduce(self, points):
        """Region signals of sampled volumes.

        Parameters
        ----------
        points : array, shape (n_volumes, n_points)

        Returns
        -------
        array of float64, shape (n_volumes, n_regions)
        """
        statistic = STRATEGIES[self.strategy]
        if self.way != "staged":
            return statistic(points, self.segments)
        n_volumes = points.shape[0]
        bounds = pairwise([*range(0, n_volumes, _SMOOTHED), n_volumes])
        parts = [statistic(self._smooth(points[start:stop, :]), self.segments) for start, stop in bounds]
        return backend.array_namespace(points).concat(parts)

    def _smooth(self, points):
        xp = backend.array_namespace(points)
        volumes = xp.reshape(points, (points.shape[0], *self.shape))[(slice(None), *self.box)]
        return xp.reshape(apply_separable(self.matrices, volumes), (points.shape[0], -1))

    def explain(self):
        """What is done to each volume and why, in a few lines for the user."""
        x, y, z = self.grid.shape
        lines = [f"{len(self.counts)} regions, {int(self.counts.sum()):,} voxels of a {x} x {y} x {z} grid"]
        if self.resampling is not None:
            how = "one matrix per axis" if self.resampling.points is not None else "at the needed voxels only"
            lines.append(f"cubic resampling to the labels' grid, {how}")
        done = {
            "direct": f"{self.strategy} of the stored voxels",
            "folded": f"smoothing folded into {self.segments.indices.shape[0]:,} weights; no volume is smoothed",
            "staged": f"each volume is smoothed, then {self.strategy}",
        }
        lines.append(f"{self.way}: {done[self.way]}")
        if self.way == "staged" and self.strategy not in LINEAR:
            lines.append(
                f"a {self.strategy} of smoothed voxels is no weighting of raw ones, so smoothing can't be folded"
            )
        if len(self.estimate) > 1:
            costs = ", ".join(f"{way} {ms:.2g} ms" for way, ms in self.estimate.items())
            lines.append(f"expected per volume and core: {costs}")
        return "\n".join(lines)


def compile_plan(labels, ids, label_grid, *, grid=None, mask=None, smoothing_fwhm=None, strategy="mean"):
    """Compile an extraction plan, on the host.

    Parameters
    ----------
    labels : ndarray, shape (x, y, z)
        Label volume.
    ids : sequence of numbers
        Labels of the regions, in the order of the columns. One that has no voxel is an empty region.
    label_grid : Grid
        Grid of `labels`.
    grid : Grid, optional
        Grid of the volumes. If None or matching `label_grid`, they are taken as they are; otherwise they are resampled
        to `label_grid` with cubic splines.
    mask : ndarray of bool, shape (x, y, z), optional
        Voxels outside of it belong to no region.
    smoothing_fwhm : float, optional
        In mm, on `label_grid`.
    strategy : str
        A key of `gpumask.kernels.STRATEGIES`.

    Returns
    -------
    Plan
    """
    flat = np.asarray(labels).ravel(order="F")
    if mask is not None:
        inside = np.flatnonzero(np.asarray(mask).ravel(order="F"))
        segments = Segments.from_labels(flat[inside], ids)
        segments = Segments(inside[segments.indices].astype(segments.indices.dtype), segments.offsets)
    else:
        segments = Segments.from_labels(flat, ids)
    counts, shape = segments.counts, label_grid.shape[::-1]
    parts = {}
    if smoothing_fwhm:
        matrices = [smoothing_matrix(n, s) for n, s in _line_smoothing(label_grid, smoothing_fwhm)]
        staged = _Staged(segments, shape, matrices)
        estimate = {"staged": staged.cost_ms}
        way = "staged"
        if strategy in LINEAR:
            n_weights, n_voxels = _expected_weights(segments, shape, matrices)
            estimate["folded"] = float(n_weights * _NS_PER_WEIGHT + n_voxels * _NS_PER_GATHER) * 1e-6
            if n_weights <= _MAX_WEIGHTS and estimate["folded"] <= estimate["staged"]:
                way = "folded"
        if way == "folded":
            segments = FoldedSegments(segments, matrices)
        else:
            segments, parts = staged.segments, {"shape": shape, "box": staged.box, "matrices": staged.matrices}
    else:
        way, estimate = "direct", {"direct": len(segments.indices) * (_NS_PER_WEIGHT + _NS_PER_GATHER) * 1e-6}
    if grid is None or grid.matches(label_grid):
        return Plan(grid or label_grid, strategy, way, segments, counts, estimate, **parts)
    return _resampled(grid, label_grid, strategy, way, segments, counts, estimate, parts)


def _resampled(grid, label_grid, strategy, way, segments, counts, estimate, parts):
    """The plan with a resampling in front, at no more points than it needs."""
    if way == "staged":
        wanted = np.arange(label_grid.n_voxels).reshape(parts["shape"])[parts["box"]].ravel()
        shape = tuple(len(range(*cut.indices(n))) for cut, n in zip(parts["box"], parts["shape"], strict=True))
        parts = {**parts, "shape": shape, "box": (slice(None),) * 3}
    else:
        wanted, entries = np.unique(segments.indices, return_inverse=True)
        segments = Segments(entries.astype(np.int32), segments.offsets, segments.weights)
    matrix, offset = voxel_mapping(grid, label_grid)
    resampling = CubicResampling.compile(matrix, offset, grid.shape, label_grid.shape, wanted)
    parts = {**parts, "resampling": resampling, "label_grid": label_grid, "points": wanted}
    return Plan(grid, strategy, way, segments, counts, estimate, **parts)


def _line_smoothing(grid, fwhm):
    """(n_voxels, sigma) along z, y, x."""
    return list(zip(grid.shape, fwhm_to_sigma(fwhm, grid.voxel_sizes), strict=True))[::-1]


class _Staged:
    """Smoothing of the box around the regions: its cut-out, its matrices, and the regions' entries into it."""

    def __init__(self, segments, shape, matrices):
        coordinates = np.array(np.unravel_index(segments.indices, shape))
        tight = [(c.min(), c.max() + 1) if len(c) else (0, 1) for c in coordinates]
        reached = [reach(matrix, lo, hi) for matrix, (lo, hi) in zip(matrices, tight, strict=True)]
        self.box = tuple(slice(first, last) for first, last in reached)
        self.matrices = [
            np.ascontiguousarray(matrix[lo:hi, first:last])
            for matrix, (lo, hi), (first, last) in zip(matrices, tight, reached, strict=True)
        ]
        inner = [hi - lo for lo, hi in tight]
        start = np.array([lo for lo, _ in tight])
        entries = np.ravel_multi_index(coordinates - start[:, None], inner)
        self.segments = Segments(entries.astype(segments.indices.dtype), segments.offsets)
        bands = multiplies_bands(self.matrices)
        points, multiplications = math.prod(last - first for first, last in reached), 0
        for matrix in reversed(self.matrices):
            points *= len(matrix) / matrix.shape[1]  # each product shrinks the box
            multiplications += points * (np.count_nonzero(matrix) / len(matrix) if bands else matrix.shape[1])
        ns = multiplications * (_NS_PER_BANDED if bands else _NS_PER_MULTIPLY) + len(entries) * _NS_PER_GATHER
        self.cost_ms = float(ns) * 1e-6


def _expected_weights(segments, shape, matrices):
    """Expected number of folded weights and of voxels with any, from a sample of the regions."""
    full = np.flatnonzero(segments.counts)
    sample = full[np.linspace(0, len(full) - 1, min(_SAMPLED_REGIONS, len(full))).astype(int)]
    some = [segments.indices[slice(*segments.bounds[region : region + 2])] for region in sample]
    offsets = np.cumsum([0, *map(len, some)])
    _, _, weights = fold(np.concatenate([segments.indices[:0], *some]), offsets, matrices)
    n_weights = len(weights) / max(len(sample), 1) * len(full)
    return n_weights, min(n_weights, np.prod(shape, dtype=float))
