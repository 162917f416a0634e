"""Least squares with sparse maps: from weighted sums of a volume to the amplitudes of the maps, on the host.

The amplitudes z of K maps M (n_voxels x K) in a volume x minimize ``|M z - x|``, and ``|z|`` among the solutions:
``z = pinv(M) x``. With the singular value decomposition ``M = U S V'``, that is ``V S^-2 V' (M' x)``: K weighted sums
of the volume, then one K x K matrix.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy

from gpumask.kernels.segments import Segments

_WELL_CONDITIONED = 1e6  # condition of M'M up to which sums over the maps are used: they lose as many digits
_SURELY_FULL = 1e10  # condition of M'M up to which its eigenvalues show that no singular value counts as 0
_LARGEST_BASIS = 1 << 26  # weights: 0.8 GB


class Solution(NamedTuple):
    """How to get the amplitudes of maps from weighted sums over voxels.

    Attributes
    ----------
    matrix : ndarray of float64, shape (n_maps, n_maps)
        Amplitudes are ``matrix @ sums``.
    basis : Segments or None
        Weights of the sums, for ill-conditioned maps: vectors that span the same space as the maps, but whose singular
        values are all 1 (or 0). None: the maps themselves.
    singular_values : ndarray of float64, shape (rank,)
        Of the maps, descending, without those that count as 0.
    """

    matrix: np.ndarray
    basis: Segments | None
    singular_values: np.ndarray

    @property
    def condition(self) -> float:
        """Largest of the singular values divided by the smallest."""
        return float(self.singular_values[0] / self.singular_values[-1]) if len(self.singular_values) else 1.0


def least_squares(segments: Segments) -> Solution:
    """Solve for the amplitudes of maps, with the minimum norm where maps depend on each other linearly.

    Parameters
    ----------
    segments : Segments
        The maps: voxels and weights, on the host.

    Returns
    -------
    Solution

    Notes
    -----
    Singular values up to ``eps * max(n_voxels, n_maps)`` times the largest count as 0, as in `numpy.linalg.lstsq`
    (eps is float64's; voxels are those with a weight). They are taken from a QR decomposition of the maps, in blocks of
    voxels, unless M'M alone shows that none is that small: its eigenvalues are their squares, so they lose half the
    digits. The sums are over the maps if the condition of M'M is at most 1e6, which costs as many digits. Otherwise
    they are over an orthonormal basis, whose weights are dense: 12 bytes per voxel and map, if that is at most 0.8 GB.
    """
    used = np.flatnonzero(segments.counts)
    n_voxels = len(segments.blocks.voxels)
    gram = np.zeros((len(used), len(used)))
    for columns, part in _parts(segments, used):
        gram[np.ix_(columns, columns)] += part.T @ part
    squares = scipy.linalg.eigvalsh(gram)[::-1] if len(used) else np.zeros(0)
    lowest, highest = (squares[-1], squares[0]) if len(used) else (0.0, 0.0)
    has_basis = lowest * _WELL_CONDITIONED < highest and len(used) * n_voxels <= _LARGEST_BASIS
    if not has_basis and lowest * _SURELY_FULL > highest:
        inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(gram), np.eye(len(used)))
        return Solution(_spread(inverse, used, len(segments)), None, np.sqrt(squares))
    _, values, directions = scipy.linalg.svd(_triangle(_parts(segments, used), len(used)))
    kept = values > values.max(initial=0.0) * np.finfo(float).eps * max(n_voxels, len(used))
    values, directions = values[kept], directions[: len(values)][kept].T
    if not has_basis or (values[0] / values[-1]) ** 2 <= _WELL_CONDITIONED:
        inverse = (directions / values**2) @ directions.T
        return Solution(_spread(inverse, used, len(segments)), None, values)
    return _over_a_basis(segments, used, values, directions)


def _parts(segments: Segments, used: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of voxels: which of the used maps are in each, and their weights, shape (n_voxels, n_maps_in_it)."""
    blocks = segments.blocks
    for (voxel, row), (next_voxel, next_row) in zip(blocks.parts[:-1], blocks.parts[1:], strict=True):
        part = np.zeros((next_row - row, next_voxel - voxel))
        for values, (start, stop) in zip(part, blocks.spans[row:next_row], strict=True):
            values[blocks.columns[start:stop]] = 1.0 if blocks.weights is None else blocks.weights[start:stop]
        yield np.searchsorted(used, blocks.rows[row:next_row]), part.T


def _triangle(parts: Iterable[tuple[np.ndarray, np.ndarray]], n: int) -> np.ndarray:
    """R of the QR decomposition of a matrix of `n` columns, from blocks of its rows that have some of the columns."""
    waiting = [np.zeros((0, n))]
    for columns, part in parts:
        wide = np.zeros((min(part.shape), n))
        wide[:, columns] = _upper(part)
        waiting.append(wide)
        if sum(map(len, waiting)) >= 2 * n:
            waiting = [_upper(np.concatenate(waiting))]
    return _upper(np.concatenate(waiting))


def _upper(matrix):
    (triangle,) = scipy.linalg.qr(matrix, mode="r", check_finite=False)
    return triangle[: min(matrix.shape)]


def _spread(matrix, used, n):
    """Place a matrix of the used maps among zeros for the empty ones."""
    whole = np.zeros((n, n))
    whole[np.ix_(used, used)] = matrix
    return whole


def _over_a_basis(segments, used, values, directions):
    """Solve by sums over a basis.

    The left singular vectors M V S^-1 are orthonormal up to rounding, which the condition magnifies. A second
    decomposition makes them orthonormal to the last digit: Q, with M = Q T. The basis is V Q', so it has a row for each
    map.
    """
    every, scaled = np.arange(len(values)), directions / values
    triangle = _triangle(((every, part @ scaled[columns]) for columns, part in _parts(segments, used)), len(values))
    left, values, right = scipy.linalg.svd(triangle * values)  # T without V'
    blocks = segments.blocks
    rows = np.empty((len(used), len(blocks.voxels)))
    start = 0
    for columns, part in _parts(segments, used):
        orthonormal = scipy.linalg.solve_triangular(triangle, (part @ scaled[columns]).T, trans="T")
        rows[:, start : start + len(part)] = directions @ orthonormal
        start += len(part)
    counts = np.zeros(len(segments), np.int64)
    counts[used] = len(blocks.voxels)
    voxels = np.tile(blocks.voxels.astype(segments.indices.dtype), len(used))
    basis = Segments(voxels, np.concatenate([[0], np.cumsum(counts)]), rows.ravel())
    matrix = (directions @ right.T / values) @ left.T @ directions.T
    return Solution(_spread(matrix, used, len(segments)), basis, values)
