"""Compiled weights: smoothed indicators against scipy's Gaussian, blocks against a count by hand, C against NumPy."""

import pickle
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import scipy.ndimage

from gpumask.kernels import compiled
from gpumask.kernels import segments as segments_module
from gpumask.kernels import weights as module
from gpumask.kernels.segments import FoldedSegments, Segments
from gpumask.kernels.smoothing import smoothing_matrix
from gpumask.kernels.weights import cut, fold

from .helpers import needs_compiled

SHAPE = (9, 11, 13)  # z, y, x
SIGMA = (0.8, 1.7, 1.2)
IDS = [3, 9, 1, 7]  # of which 9 has no voxel


def some_labels():
    """Regions at corners, across the whole volume, in pieces, and of one voxel."""
    labels = np.random.default_rng(0).choice([0, 0, 1, 3], SHAPE)
    labels[:, :, :3] = 0
    labels[0, 0, 0] = labels[8, 10, 12] = 3
    labels[4, 5, 6] = 7
    return labels


def some_segments():
    return Segments.from_labels(some_labels().ravel(), IDS)


def matrices(sigma=SIGMA):
    return [smoothing_matrix(n, s) for n, s in zip(SHAPE, sigma, strict=True)]


def test_folded_segments_are_folded_when_needed(monkeypatch):
    given, calls = some_segments(), []
    monkeypatch.setattr(segments_module, "fold", lambda *args: calls.append(args) or fold(*args))
    segments = FoldedSegments(given, matrices())
    assert len(segments) == len(IDS)
    assert calls == []
    expected = fold(given.indices, given.offsets, matrices())
    for copy in (segments, pickle.loads(pickle.dumps(segments))):
        for part, of_fold in zip((copy.indices, copy.offsets, copy.weights), expected, strict=True):
            np.testing.assert_array_equal(part, of_fold)
    assert type(copy) is Segments
    assert len(calls) == 1


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("sigma", [SIGMA, (0.0, 0.0, 0.0), (0.0, 2.0, 0.3), (9.0, 9.0, 9.0)])
def test_fold_is_the_smoothed_indicator(sigma):
    segments = some_segments()
    indices, offsets, weights = fold(segments.indices, segments.offsets, matrices(sigma))
    assert indices.dtype == np.int32
    for region, label in enumerate(IDS):
        entries = slice(offsets[region], offsets[region + 1])
        volume = np.zeros(SHAPE)
        np.add.at(volume.reshape(-1), indices[entries], weights[entries])
        indicator = (some_labels() == label).astype(float)
        np.testing.assert_allclose(volume, scipy.ndimage.gaussian_filter(indicator, sigma), rtol=1e-12, atol=1e-17)
        assert (np.diff(indices[entries]) > 0).all()
        assert (weights[entries] > 0).all()
    assert offsets[1] == offsets[2]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("sigma", [SIGMA, (0.0, 2.0, 0.3)])
def test_fold_smooths_weights(sigma):
    segments, rng = some_segments(), np.random.default_rng(4)
    given = rng.normal(size=len(segments.indices))
    indices, offsets, weights = fold(segments.indices, segments.offsets, matrices(sigma), given)
    for region, (start, stop) in enumerate(pairwise(segments.bounds)):
        entries = slice(offsets[region], offsets[region + 1])
        volume, expected = np.zeros(SHAPE), np.zeros(SHAPE)
        np.add.at(volume.reshape(-1), indices[entries], weights[entries])
        expected.reshape(-1)[segments.indices[start:stop]] = given[start:stop]
        np.testing.assert_allclose(volume, scipy.ndimage.gaussian_filter(expected, sigma), rtol=1e-11, atol=1e-15)


@pytest.mark.usefixtures("either")
def test_memory_of_folding_regions_with_stray_voxels():
    """20 blocks of 27 voxels, each with a voxel in two corners: a box of 64 000 voxels, 1300 of which are reached."""
    shape, sigma = (40, 40, 40), 0.5
    labels = np.zeros(shape, "i2")
    for k in range(20):
        labels[8 + 4 * (k // 5) :, 8 + 4 * (k % 5) :, 20:][:3, :3, :3] = k + 1
        labels[0, k, 0] = labels[-1, k, -1] = k + 1
    segments = Segments.from_labels(labels.ravel(), np.arange(1, 21))
    assert segments.counts.tolist() == [29] * 20
    each = [smoothing_matrix(n, sigma) for n in shape]
    tracemalloc.start()
    indices, offsets, weights = fold(segments.indices, segments.offsets, each)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # the boxes would be 15 MB
    for region in (0, 7, 19):
        entries = slice(offsets[region], offsets[region + 1])
        volume = np.zeros(shape)
        volume.ravel()[indices[entries]] = weights[entries]
        expected = scipy.ndimage.gaussian_filter((labels == region + 1).astype(float), sigma)
        np.testing.assert_allclose(volume, expected, rtol=1e-12, atol=1e-17)
        np.testing.assert_array_equal(indices[entries], np.flatnonzero(expected))


@needs_compiled
def test_fold_has_the_entries_of_numpys(monkeypatch):
    segments = some_segments()
    by_c = fold(segments.indices, segments.offsets, matrices())
    monkeypatch.setattr(compiled, "extension", None)
    expected = fold(segments.indices, segments.offsets, matrices())
    for ours, numpys in zip(by_c[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(ours, numpys)
    np.testing.assert_allclose(by_c[2], expected[2], rtol=1e-13)


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_cut_keeps_every_entry_in_order(weighted, shuffled, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 50)
    indices, offsets, weights = fold(some_segments().indices, some_segments().offsets, matrices())
    given, weights_given = indices.copy(), weights.copy()
    if shuffled:
        order = np.arange(len(indices))
        for start, stop in pairwise(offsets):
            np.random.default_rng(0).shuffle(order[start:stop])
        given, weights_given = indices[order], weights[order]
    blocks = cut(given, offsets, weights_given if weighted else None)
    assert (blocks.weights is weights_given) == (weighted and not shuffled)
    used = np.unique(indices)
    np.testing.assert_array_equal(blocks.voxels, used)
    entries = {region: [] for region in range(len(IDS))}
    assert len(blocks.rows) == len(blocks.spans) == blocks.parts[-1, 1]
    for (voxel, row), (next_voxel, next_row) in pairwise(blocks.parts):
        assert next_voxel - voxel == 50 or next_voxel == len(used)
        for r in range(row, next_row):
            assert blocks.spans[r, 0] < blocks.spans[r, 1]
            for e in range(*blocks.spans[r]):
                entries[blocks.rows[r]].append((used[voxel + blocks.columns[e]], blocks.weights[e] if weighted else 1))
    for region, (start, stop) in enumerate(pairwise(offsets)):
        expected = zip(indices[start:stop], weights[start:stop] if weighted else np.ones(stop - start), strict=True)
        assert entries[region] == list(expected)
    assert (blocks.weights is not None) == weighted


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("n_regions", [0, 2])
def test_no_entries(n_regions):
    offsets = np.zeros(n_regions + 1, np.int64)
    blocks = cut(np.zeros(0, np.int32), offsets)
    assert blocks.parts.tolist() == [[0, 0]]
    assert len(blocks.voxels) == len(blocks.rows) == len(blocks.columns) == 0
    indices, new_offsets, weights = fold(np.zeros(0, np.int32), offsets, matrices())
    assert len(indices) == len(weights) == 0
    assert new_offsets.tolist() == offsets.tolist()
