"""Sums of series, against their definition."""

import numpy as np
import pytest

from gpumask.kernels import compiled
from gpumask.kernels.segments import Segments
from gpumask.kernels.series import add_block, cut, extremes, reads_extremes
from tests.helpers import needs_compiled


def summed(data, segments, size):
    sums = np.zeros((len(segments), data.shape[1]))
    for number, entries in enumerate(cut(segments, size, len(data))):
        add_block(data[number * size : (number + 1) * size], entries, sums)
    return sums


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_definition(seed, is_compiled, monkeypatch):
    """Weights or not, any dtype, entries in any order, empty regions, regions that share series; same bits always."""
    if not is_compiled:
        monkeypatch.setattr(compiled, "extension", None)
    rng = np.random.default_rng(seed)
    n_series, n_times = int(rng.integers(1, 60)), int(rng.choice([1, 3, 17, 515, 1100]))
    dtype = rng.choice(["f4", ">f8", "i2", ">u2", "u1", "i8", "f2"])
    data = (rng.random((n_series, n_times)) * 200).astype(dtype)
    counts = rng.integers(0, n_series + 1, 7)
    indices = np.concatenate([rng.permutation(n_series)[:n] for n in counts])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    weights = rng.standard_normal(len(indices)) if rng.random() < 0.5 else None
    segments = Segments(indices, offsets, weights)
    expected = np.zeros((7, n_times))
    for region in range(7):
        own = np.arange(offsets[region], offsets[region + 1])
        for entry in own[np.argsort(indices[own])]:
            values = data[indices[entry]].astype(np.float64)
            expected[region] += values if weights is None else values * weights[entry]
    for size in (1, 7, 1000):
        assert summed(data, segments, size).tobytes() == expected.tobytes()


@needs_compiled
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"rows": [0, 5]},
            ValueError,
            "`rows` must lie within the 5 series of `data`, `regions` within the 3 of `sums`.",
        ),
        ({"rows": [-1, 0]}, ValueError, "`rows` must lie within the 5 series"),
        ({"regions": np.array([3], np.int32)}, ValueError, "`rows` must lie within the 5 series"),
        ({"offsets": [0, 3]}, ValueError, "`offsets` must start at 0, never decrease and end at 2"),
        ({"offsets": [0, 1, 2]}, ValueError, "`data` and `sums` must have the same time points"),
        ({"weights": np.ones(3)}, ValueError, "`data` and `sums` must have the same time points"),
        ({"sums": np.zeros((3, 3))}, ValueError, "`data` and `sums` must have the same time points"),
        ({"data": np.zeros((4, 5)).T}, ValueError, "The time points of `data` and `sums` must be contiguous."),
        ({"data": np.zeros((5, 4), complex)}, TypeError, "`data` must be of real numbers"),
        ({"sums": np.zeros((3, 4), np.float32)}, TypeError, "`sums` must be of float64"),
    ],
)
def test_wrong_arguments_of_the_compiled_loop(changes, error, message):
    given = {
        "data": np.zeros((5, 4)),
        "rows": [0, 1],
        "offsets": [0, 2],
        "regions": np.array([0], np.int32),
        "weights": None,
        "sums": np.zeros((3, 4)),
    } | changes
    given |= {name: np.array(given[name], np.int64) for name in ("rows", "offsets")}
    with pytest.raises(error) as caught:
        compiled.extension.add_series(*given.values())
    assert str(caught.value).startswith(message)


@needs_compiled
@pytest.mark.parametrize("strategy", ["minimum", "maximum"])
@pytest.mark.parametrize("seed", range(10))
def test_extremes(seed, strategy):
    """Any type; empty regions and such that share series; values that aren't finite; time points of a part."""
    rng = np.random.default_rng(seed)
    n_series, n_times = int(rng.integers(1, 60)), int(rng.choice([1, 3, 17, 515, 1100]))
    dtype = np.dtype(["f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"][seed])
    data = (rng.standard_normal((n_series, n_times)) * 100).astype("i8").astype(dtype)
    if dtype.kind == "f":
        for value in (np.nan, np.inf, -np.inf):
            data[rng.integers(0, n_series, 2), rng.integers(0, n_times, 2)] = value
    counts = rng.integers(0, n_series + 1, 7) * (np.arange(7) != 3)
    indices = np.concatenate([rng.permutation(n_series)[:n] for n in counts])
    segments = Segments(indices, np.concatenate([[0], np.cumsum(counts)]))
    out, odd = np.empty((7, n_times)), np.empty((7, n_times), np.uint8)
    assert reads_extremes(data)
    for span in (slice(0, n_times // 2), slice(n_times // 2, n_times)):
        extremes(strategy, data[:, span], segments, out[:, span], odd[:, span])
    of = {"minimum": np.min, "maximum": np.max}[strategy]
    for region, (start, stop) in enumerate(zip(segments.offsets[:-1], segments.offsets[1:], strict=True)):
        values = data[indices[start:stop]].astype(np.float64)
        finite = np.isfinite(values).all(axis=0)
        np.testing.assert_array_equal(odd[region], ~finite)
        expected = of(values, axis=0)[finite] if len(values) else np.full(n_times, np.nan)
        np.testing.assert_array_equal(out[region][finite], expected)


def test_types_whose_extremes_are_gathered(monkeypatch):
    assert not any(reads_extremes(np.zeros((2, 3), dtype)) for dtype in (">f4", ">i2", "f2", "g"))
    assert not reads_extremes(np.frombuffer(bytes(25), np.uint8)[1:].view("f4").reshape(2, 3))
    monkeypatch.setattr(compiled, "extension", None)
    assert not reads_extremes(np.zeros((2, 3), "f4"))


@needs_compiled
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": "median"}, ValueError, "`name` must be minimum or maximum, got median."),
        ({"rows": [0, 5]}, ValueError, "`rows` must lie within the 5 series of `data`."),
        ({"rows": [-1, 0]}, ValueError, "`rows` must lie within the 5 series"),
        ({"offsets": [0, 1, 3]}, ValueError, "`offsets` must start at 0, never decrease and end at 2"),
        ({"offsets": [0, 2]}, ValueError, "`data`, `out` and `odd` must have the same time points, and `offsets` one"),
        ({"out": np.zeros((2, 3))}, ValueError, "`data`, `out` and `odd` must have the same time points"),
        ({"odd": np.zeros((3, 4), np.uint8)}, ValueError, "`data`, `out` and `odd` must have the same time points"),
        ({"odd": np.zeros((4, 2), np.uint8).T}, ValueError, "The time points of `data`, `out` and `odd` must be cont"),
        ({"data": np.zeros((4, 5)).T}, ValueError, "The time points of `data`, `out` and `odd` must be contiguous."),
        ({"data": np.zeros((5, 4), complex)}, TypeError, "`data` must be of real numbers"),
        ({"odd": np.zeros((2, 4))}, TypeError, "`odd` must be of uint8"),
    ],
)
def test_wrong_arguments_of_the_compiled_extremes(changes, error, message):
    given = {
        "name": "minimum",
        "data": np.zeros((5, 4)),
        "rows": [0, 1],
        "offsets": [0, 1, 2],
        "out": np.zeros((2, 4)),
        "odd": np.zeros((2, 4), np.uint8),
    } | changes
    given |= {name: np.array(given[name], np.int64) for name in ("rows", "offsets")}
    with pytest.raises(error) as caught:
        compiled.extension.extremes_of_series(*given.values())
    assert str(caught.value).startswith(message)
