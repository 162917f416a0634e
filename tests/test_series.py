"""Sums of series, against their definition."""

import numpy as np
import pytest

from gpumask.kernels import compiled
from gpumask.kernels.segments import Segments
from gpumask.kernels.series import add_block, cut
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
