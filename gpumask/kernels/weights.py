"""Compiling the weights of segments, on the host: checking, folding the smoothing, and cutting into blocks."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gpumask import backend
from gpumask.kernels import compiled
from gpumask.kernels.smoothing import apply_separable

# Voxels gathered at a time on NumPy: with 16 volumes, one block of float64 (512 KiB) stays in the second-level cache.
BLOCK = 4096


class Blocks(NamedTuple):
    """Segments cut into blocks of at most `BLOCK` voxels: the order of the additions on NumPy.

    A block's columns are the voxels that any region uses, and its rows the regions that have entries in it. Entries
    keep the order of the segments. The arrays are read-only, except for `weights`.

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
        The weights of the segments, or a copy if they are unsorted or of another dtype.
    """

    parts: np.ndarray
    voxels: np.ndarray
    rows: np.ndarray
    spans: np.ndarray
    columns: np.ndarray
    weights: np.ndarray | None


def check_entries(
    indices: backend.Array, offsets: backend.Array, weights: backend.Array | None = None, *, values: bool = True
) -> None:
    """Raise ValueError, naming the array, if these aren't the arrays of segments.

    Parameters
    ----------
    indices, offsets, weights : array
        As in `gpumask.kernels.segments.Segments`, in any library.
    values : bool
        Whether to look at the values, too. If False, only shapes and dtypes are checked, so no device has to be
        waited for.
    """
    for name, array in (("indices", indices), ("offsets", offsets), ("weights", weights)):
        if not (hasattr(array, "dtype") and hasattr(array, "ndim")) and not (name == "weights" and array is None):
            msg = f"`{name}` must be an array, got {type(array).__name__}. Convert lists with numpy.asarray."
            raise ValueError(msg)
    for name, array in (("indices", indices), ("offsets", offsets)):
        if array.ndim != 1 or not _is_of(array, "signed integer", "unsigned integer"):
            got = f"{_name_of(array.dtype)} of shape {tuple(array.shape)}"
            msg = f"`{name}` must be integers of one dimension, got {got}."
            raise ValueError(msg)
    n_entries = indices.shape[0]
    if weights is not None and (
        tuple(weights.shape) != (n_entries,) or not _is_of(weights, "integral", "real floating")
    ):
        msg = (
            f"`weights` must be real numbers, one for each of the {n_entries} `indices`, "
            f"got {_name_of(weights.dtype)} of shape {tuple(weights.shape)}."
        )
        raise ValueError(msg)
    if offsets.shape[0] == 0:
        msg = "`offsets` must hold a start for each region and the end of the last, got nothing. No region: [0]."
        raise ValueError(msg)
    if not values:
        return
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(falls):
        before, after = offsets[falls[0]], offsets[falls[0] + 1]
        msg = f"`offsets` must never decrease, got {after} after {before}. An empty region repeats an offset."
        raise ValueError(msg)
    if offsets[0] != 0 or offsets[-1] != n_entries:
        msg = (
            f"`offsets` must start at 0 and end at {n_entries}, the length of `indices`, "
            f"got {offsets[0]} to {offsets[-1]}."
        )
        raise ValueError(msg)
    lowest = int(backend.array_namespace(indices).min(indices)) if n_entries else 0
    if lowest < 0:
        msg = f"`indices` must be voxels, counted from 0, got {lowest}. Leave out voxels that are in no region."
        raise ValueError(msg)


def _name_of(dtype):
    return str(dtype).rpartition(".")[2]  # without the library's name


def _is_of(array, *kinds):
    return backend.array_namespace(array).isdtype(array.dtype, kinds)


def cut(indices: np.ndarray, offsets: np.ndarray, weights: np.ndarray | None = None) -> Blocks:
    """Cut segments into blocks of voxels.

    Parameters
    ----------
    indices, offsets, weights : ndarray
        As in `gpumask.kernels.segments.Segments`. A region is sorted first if its voxels don't ascend.

    Returns
    -------
    Blocks

    Raises
    ------
    ValueError
        If these aren't the arrays of segments.
    """
    check_entries(indices, offsets, weights)
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
    arrays = np.stack(parts, axis=1), voxels, rows[by_block], spans[by_block], columns
    for array in arrays:
        array.flags.writeable = False  # the compiled sums rely on them once they are checked
    return Blocks(*arrays, weights)


def fold(
    indices: np.ndarray, offsets: np.ndarray, matrices: Sequence[np.ndarray], weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smooth the indicator of each region, or its weights.

    Parameters
    ----------
    indices, offsets : ndarray
        As in `gpumask.kernels.segments.Segments`, of volumes in C order.
    matrices : sequence of three ndarrays of float64, shape (n, n)
        `gpumask.kernels.smoothing.smoothing_matrix` along each axis of a volume: z, y, x. Symmetric.
    weights : ndarray, shape (n_entries,), optional
        As in `gpumask.kernels.segments.Segments`.

    Returns
    -------
    indices, offsets, weights : ndarray
        Entries of the smoothed regions. The weights of a region sum to its number of voxels, or to its `weights`.

    Raises
    ------
    ValueError
        If `indices` and `offsets` aren't those of segments within the volumes, or the matrices aren't symmetric.
    """
    matrices = check_matrices(matrices)
    shape = [len(matrix) for matrix in matrices]
    check_entries(indices, offsets, weights)
    n_voxels = math.prod(shape)
    if len(indices) and indices.max() >= n_voxels:
        msg = (
            f"`indices` must lie within the volumes of the matrices, shape {tuple(shape)}: below {n_voxels}, "
            f"got {indices.max()}."
        )
        raise ValueError(msg)
    if compiled.extension is None or n_voxels >= 2**31:
        return _fold_numpy(indices, offsets, matrices, shape, weights)
    new_offsets = np.empty(len(offsets), np.int64)
    arrays = (np.ascontiguousarray(indices, np.int32), np.ascontiguousarray(offsets, np.int64))
    given = None if weights is None else np.ascontiguousarray(weights, np.float64)
    new_indices, smoothed = compiled.extension.fold(*arrays, given, *matrices, new_offsets)
    return np.frombuffer(new_indices, np.int32), new_offsets, np.frombuffer(smoothed, np.float64)


def check_matrices(matrices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what `fold` takes as matrices, in C order; ValueError if they aren't three symmetric ones."""
    expected = "`matrices` must be three real, finite, symmetric matrices, for z, y and x (see smoothing_matrix)"
    if matrices is None or len(matrices) != 3:
        msg = f"{expected}, got {'None' if matrices is None else len(matrices)}."
        raise ValueError(msg)
    checked = []
    for axis, matrix in zip("zyx", matrices, strict=True):
        matrix = np.asarray(matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype.kind not in "biuf":
            msg = f"{expected}, got {matrix.dtype} of shape {matrix.shape} for {axis}."
            raise ValueError(msg)
        matrix = np.ascontiguousarray(matrix, np.float64)
        if not (np.isfinite(matrix).all() and np.allclose(matrix, matrix.T, rtol=0, atol=1e-12)):
            msg = f"{expected}, got one that is not finite or not symmetric for {axis}."
            raise ValueError(msg)
        checked.append(matrix)
    return checked


def reach(matrix: np.ndarray, lo: int, hi: int) -> tuple[int, int]:
    """First and last + 1 of the rows that the columns lo:hi of a banded matrix touch."""
    rows = np.flatnonzero(matrix[:, lo:hi].any(axis=1))
    return rows[0], rows[-1] + 1


def _fold_numpy(indices, offsets, matrices, shape, weights):
    weights = np.ones(len(indices)) if weights is None else weights
    parts = [slice(start, stop) for start, stop in pairwise(offsets.tolist())]
    regions = [_smooth_region(indices[part], weights[part], matrices, shape) for part in parts]
    new_offsets = np.concatenate([[0], np.cumsum([len(voxels) for voxels, _ in regions], dtype=np.int64)])
    voxels = np.concatenate([np.zeros(0, np.intp), *(voxels for voxels, _ in regions)]).astype(indices.dtype)
    return voxels, new_offsets, np.concatenate([np.zeros(0), *(weights for _, weights in regions)])


def _smooth_region(voxels, weights, matrices, shape):
    """Voxels and weights of one smoothed region."""
    if not len(voxels):
        return np.zeros(0, np.intp), np.zeros(0)
    coordinates = np.unravel_index(voxels, shape)
    tight = [(c.min(), c.max() + 1) for c in coordinates]
    reached = [reach(matrix, lo, hi) for matrix, (lo, hi) in zip(matrices, tight, strict=True)]
    region = np.zeros([hi - lo for lo, hi in tight])
    region[tuple(c - lo for c, (lo, _) in zip(coordinates, tight, strict=True))] = weights
    cuts = [m[first:last, lo:hi] for m, (lo, hi), (first, last) in zip(matrices, tight, reached, strict=True)]
    (smooth,) = apply_separable(cuts, region[np.newaxis])
    inner = np.nonzero(smooth)
    voxels = np.ravel_multi_index([c + first for c, (first, _) in zip(inner, reached, strict=True)], shape)
    return voxels, smooth[inner]
