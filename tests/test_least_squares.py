"""Least squares with sparse maps, against NumPy's lstsq of the dense matrix."""

import numpy as np
import pytest

from gpumask.kernels import weights as weights_module
from gpumask.kernels.least_squares import least_squares
from gpumask.kernels.segments import Segments, segment_sum


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of voxels, although the tests' maps are small."""
    monkeypatch.setattr(weights_module, "BLOCK", 100)


def segments_of(matrix):
    columns = [np.flatnonzero(column) for column in matrix.T]
    offsets = np.cumsum([0, *map(len, columns)])
    weights = np.concatenate([column[voxels] for column, voxels in zip(matrix.T, columns, strict=True)])
    return Segments(np.concatenate(columns).astype(np.int32), offsets, weights)


def maps(kind, n_voxels=700, n_maps=9):
    rng = np.random.default_rng(3)
    matrix = rng.random((n_voxels, n_maps)) * (rng.random((n_voxels, n_maps)) < 0.3)
    if kind == "equal":
        matrix[:, 3] = matrix[:, 5]
    elif kind == "a sum of others":
        matrix[:, 0] = matrix[:, 1] + matrix[:, 2] - 3 * matrix[:, 7]
    elif kind == "empty":
        matrix[:, [0, 4]] = 0
    elif kind == "nearly equal":
        matrix[:, 3] = matrix[:, 5] + 1e-6 * matrix[:, 6] * rng.random(n_voxels)
    elif kind == "small":
        matrix[:, 3] *= 1e-7
    elif kind == "nearly equal, and an empty one":
        matrix[:, 3] = matrix[:, 5] + 1e-5 * matrix[:, 6] * rng.random(n_voxels)
        matrix[:, 8] = 0
    elif kind == "more maps than voxels":
        matrix = rng.random((7, n_maps))
    elif kind == "none":
        matrix[:] = 0
    return matrix


def amplitudes(solution, segments, volumes):
    return segment_sum(volumes, solution.basis or segments) @ solution.matrix.T


@pytest.mark.parametrize(
    ("kind", "rank"),
    [("plain", 9), ("equal", 8), ("a sum of others", 8), ("empty", 7), ("more maps than voxels", 7), ("none", 0)],
)
def test_equals_lstsq(kind, rank):
    matrix = maps(kind)
    volumes = np.random.default_rng(0).normal(100, 20, (4, len(matrix)))
    segments = segments_of(matrix)
    solution = least_squares(segments)
    expected, _, their_rank, _ = np.linalg.lstsq(matrix, volumes.T)
    assert len(solution.singular_values) == their_rank == rank
    found = amplitudes(solution, segments, volumes)
    np.testing.assert_allclose(found, expected.T, rtol=0, atol=1e-12 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("kind", ["nearly equal", "small", "nearly equal, and an empty one"])
def test_ill_conditioned_maps_lose_no_more_digits_than_their_condition(kind):
    matrix = maps(kind)
    segments = segments_of(matrix)
    solution = least_squares(segments)
    assert solution.basis is not None
    assert solution.condition == pytest.approx(condition_of(matrix), rel=1e-9)
    truth = np.random.default_rng(1).normal(size=(3, matrix.shape[1])) * matrix.any(axis=0)
    found = amplitudes(solution, segments, truth @ matrix.T)
    # Rounding grows by the condition of the maps; with sums over the maps, it would by that of M'M, its square.
    np.testing.assert_allclose(found, truth, rtol=0, atol=20 * solution.condition * np.finfo(float).eps)


def condition_of(matrix):
    values = np.linalg.svd(matrix[:, matrix.any(axis=0)], compute_uv=False)
    return values[0] / values[-1]


def test_order_of_voxels_does_not_matter():
    matrix = maps("plain")
    segments = segments_of(matrix)
    order = np.concatenate([np.arange(*segments.bounds[k : k + 2])[::-1] for k in range(len(segments))])
    turned = Segments(segments.indices[order], segments.offsets, segments.weights[order])
    np.testing.assert_array_equal(least_squares(turned).matrix, least_squares(segments).matrix)


@pytest.mark.parametrize(("kind", "rank"), [("nearly equal", 9), ("equal", 8)])
def test_maps_without_room_for_a_basis(kind, rank, monkeypatch):
    monkeypatch.setattr("gpumask.kernels.least_squares._LARGEST_BASIS", 1000)
    matrix = maps(kind)
    segments = segments_of(matrix)
    solution = least_squares(segments)
    assert solution.basis is None
    assert len(solution.singular_values) == rank
    volumes = np.random.default_rng(0).normal(100, 20, (4, len(matrix)))
    expected = np.linalg.lstsq(matrix, volumes.T)[0].T
    atol = 10 * solution.condition**2 * np.finfo(float).eps * np.abs(expected).max()
    np.testing.assert_allclose(amplitudes(solution, segments, volumes), expected, rtol=0, atol=atol)
