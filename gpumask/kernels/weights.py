"""Compiling the weights of segments, on the host: smoothing folded into them, and their cut into blocks of voxels."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.sparse

from gpumask.kernels.compiled import _weights
from gpumask.kernels.smoothing import apply_separable

# Voxels gathered at a time on NumPy: with 16 volumes, one block of float64 (1 MiB) stays in the second-level cache.
BLOCK = 8192


class Blocks(NamedTuple):
    """Weights of segments in blocks of at most `BLOCK` voxels: the order in which NumPy's sums are taken.

    A block's rows are the regions that have entries in it, and its columns the voxels that any region uses.

    Attributes
    ----------
    parts : ndarray of int64, shape (n_blocks + 1, 3)
        First voxel, row and entry of each block.
    voxels : ndarray of int64
        Voxel of each column, ascending.
    rows : ndarray of int32
        Region of each row.
    starts : ndarray of int64, shape (n_rows + 1,)
        First entry of each row.
    columns : ndarray of int32, shape (n_entries,)
        Column of each entry, counted within its block.
    weights : ndarray of float64, shape (n_entries,), or None
    """

    parts: np.ndarray
    voxels: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    columns: np.ndarray
    weights: np.ndarray | None


def cut(indices, offsets, weights=None):
    """Cut the weights of segments into blocks.

    Parameters
    ----------
    indices, offsets, weights : ndarray
        As in `gpumask.kernels.segments.Segments`.

    Returns
    -------
    Blocks
    """
    used = np.zeros(int(indices.max(initial=-1)) + 1, bool)
    used[indices] = True
    voxels = np.flatnonzero(used)
    ranks = np.cumsum(used, dtype=np.int32) - 1
    n_blocks = -(-len(voxels) // BLOCK)
    parts = np.zeros((n_blocks + 1, 3), np.int64)
    parts[:, 0] = np.minimum(np.arange(n_blocks + 1) * BLOCK, len(voxels))
    if _weights is None or len(used) >= 2**31:
        return _cut_numpy(indices, offsets, weights, ranks, parts, voxels)
    columns = np.empty(len(indices), np.int32)
    dealt = None if weights is None else np.empty(len(indices))
    arrays = (np.ascontiguousarray(indices, np.int32), np.ascontiguousarray(offsets, np.int64), weights)
    rows, starts = _weights.cut(*arrays, ranks, parts, columns, dealt, BLOCK)
    return Blocks(parts, voxels, np.frombuffer(rows, np.int32), np.frombuffer(starts, np.int64), columns, dealt)


def _cut_numpy(indices, offsets, weights, ranks, parts, voxels):
    n_entries, n_blocks = len(indices), len(parts) - 1
    column = ranks[indices]
    # Entries by block, in their order: a transposition counts them, where a sort takes ten times as long.
    entries = (np.arange(n_entries, dtype=np.int32), column // BLOCK, np.arange(n_entries + 1, dtype=np.int32))
    by_block = scipy.sparse.csr_array(entries, (n_entries, n_blocks)).tocsc()
    order, bounds = by_block.data, by_block.indptr.astype(np.int64)
    region = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))[order]
    fresh = np.ones(n_entries, bool)  # whether an entry is the first of its row
    fresh[1:] = region[1:] != region[:-1]
    fresh[bounds[:-1]] = True
    starts = np.append(np.flatnonzero(fresh), n_entries)
    parts[:, 1], parts[:, 2] = np.searchsorted(starts, bounds), bounds
    columns = (column % BLOCK)[order]
    return Blocks(parts, voxels, region[starts[:-1]], starts, columns, None if weights is None else weights[order])


def fold(indices, offsets, matrices):
    """Smooth the indicator of each region.

    Parameters
    ----------
    indices, offsets : ndarray
        As in `gpumask.kernels.segments.Segments`, of volumes in C order.
    matrices : sequence of three ndarrays of float64, shape (n, n)
        `gpumask.kernels.smoothing.smoothing_matrix` along each axis of a volume: z, y, x. Symmetric.

    Returns
    -------
    indices, offsets, weights : ndarray
        Entries of the smoothed regions. The weights of a region sum to its number of voxels.
    """
    shape = [len(matrix) for matrix in matrices]
    if _weights is None or np.prod(shape, dtype=float) >= 2**31:
        return _fold_numpy(indices, offsets, matrices, shape)
    new_offsets = np.empty(len(offsets), np.int64)
    arrays = (np.ascontiguousarray(indices, np.int32), np.ascontiguousarray(offsets, np.int64))
    new_indices, weights = _weights.fold(*arrays, *matrices, new_offsets)
    return np.frombuffer(new_indices, np.int32), new_offsets, np.frombuffer(weights, np.float64)


def reach(matrix, lo, hi):
    """First and last + 1 of the rows that the columns lo:hi of a banded matrix touch."""
    rows = np.flatnonzero(matrix[:, lo:hi].any(axis=1))
    return rows[0], rows[-1] + 1


def _fold_numpy(indices, offsets, matrices, shape):
    regions = [_smooth_region(indices[start:stop], matrices, shape) for start, stop in pairwise(offsets.tolist())]
    new_offsets = np.concatenate([[0], np.cumsum([len(voxels) for voxels, _ in regions], dtype=np.int64)])
    voxels = np.concatenate([np.zeros(0, np.intp), *(voxels for voxels, _ in regions)]).astype(indices.dtype)
    return voxels, new_offsets, np.concatenate([np.zeros(0), *(weights for _, weights in regions)])


def _smooth_region(voxels, matrices, shape):
    """Voxels and weights of one region's smoothed indicator."""
    if not len(voxels):
        return np.zeros(0, np.intp), np.zeros(0)
    coordinates = np.unravel_index(voxels, shape)
    tight = [(c.min(), c.max() + 1) for c in coordinates]
    reached = [reach(matrix, lo, hi) for matrix, (lo, hi) in zip(matrices, tight, strict=True)]
    indicator = np.zeros([hi - lo for lo, hi in tight])
    indicator[tuple(c - lo for c, (lo, _) in zip(coordinates, tight, strict=True))] = 1.0
    cuts = [m[first:last, lo:hi] for m, (lo, hi), (first, last) in zip(matrices, tight, reached, strict=True)]
    (smooth,) = apply_separable(cuts, indicator[np.newaxis])
    inner = np.nonzero(smooth)
    voxels = np.ravel_multi_index([c + first for c, (first, _) in zip(inner, reached, strict=True)], shape)
    return voxels, smooth[inner]
