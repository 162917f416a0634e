"""Compiling the weights of segments, on the host: smoothing folded into them, and their cut into blocks of voxels."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gpumask.kernels.compiled import _weights
from gpumask.kernels.smoothing import apply_separable

# Voxels gathered at a time on NumPy: with 16 volumes, one block of float64 (512 KiB) stays in the second-level cache.
BLOCK = 4096


class Blocks(NamedTuple):
    """Segments seen in blocks of at most `BLOCK` voxels: the order in which NumPy's sums are taken.

    A block's columns are the voxels that any region uses, and its rows the regions that have entries in it. Entries
    stay where the segments have them.

    Attributes
    ----------
    parts : ndarray of int64, shape (n_blocks + 1, 2)
        First voxel and first row of each block.
    voxels : ndarray of int64
        Voxel of each column, ascending.
    rows : ndarray of int32, shape (n_rows,)
        Region of each row.
    spans : ndarray of int64, shape (n_rows, 2)
        First and last + 1 of each row's entries.
    columns : ndarray of uint16, shape (n_entries,)
        Column of each entry, counted within its block.
    weights : ndarray of float64, shape (n_entries,), or None
        Those of the segments, or a copy where these are unsorted or of another dtype.
    """

    parts: np.ndarray
    voxels: np.ndarray
    rows: np.ndarray
    spans: np.ndarray
    columns: np.ndarray
    weights: np.ndarray | None


def cut(indices, offsets, weights=None):
    """Cut segments into blocks of voxels.

    Parameters
    ----------
    indices, offsets, weights : ndarray
        As in `gpumask.kernels.segments.Segments`. A region whose voxels don't ascend is sorted first.

    Returns
    -------
    Blocks
    """
    n_entries, region_starts = len(indices), offsets[:-1][np.diff(offsets) > 0]
    weights = None if weights is None else np.ascontiguousarray(weights, np.float64)  # no copy of folded ones
    ascends = indices[1:] >= indices[:-1]
    ascends[region_starts[1:] - 1] = True
    if not ascends.all():
        order = np.lexsort((indices, np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))))
        indices, weights = indices[order], None if weights is None else weights[order]
    used = np.zeros(int(indices.max(initial=-1)) + 1, bool)
    used[indices] = True
    voxels = np.flatnonzero(used)
    n_blocks = -(-len(voxels) // BLOCK)
    ranks = np.cumsum(used, dtype=np.int32) - 1  # of each voxel among those used
    columns = (ranks % BLOCK).astype(np.uint16)[indices]
    blocks = (ranks // BLOCK).astype(np.uint16 if n_blocks < 1 << 16 else np.int32)[indices]
    is_first = np.ones(n_entries, bool)
    is_first[1:] = blocks[1:] != blocks[:-1]
    is_first[region_starts] = True
    firsts = np.flatnonzero(is_first)
    by_block = np.argsort(blocks[firsts], kind="stable")
    rows = (np.searchsorted(offsets, firsts, side="right") - 1).astype(np.int32)
    parts = np.minimum(np.arange(n_blocks + 1) * BLOCK, len(voxels)), np.zeros(n_blocks + 1, np.int64)
    parts[1][1:] = np.cumsum(np.bincount(blocks[firsts], minlength=n_blocks))
    edges = np.append(firsts, n_entries)
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    return Blocks(np.stack(parts, axis=1), voxels, rows[by_block], spans[by_block], columns, weights)


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
