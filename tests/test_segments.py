"""Segment reductions against loops over voxels, on every array library."""

import pickle
import re

import numpy as np
import pytest
import scipy.ndimage

from gpumask import backend
from gpumask.kernels import compiled
from gpumask.kernels import segments_numpy as kernel
from gpumask.kernels.segments import STRATEGIES, Segments, segment_mean, segment_sum

from . import reference
from .helpers import needs_compiled

N_VOXELS = 97
IDS = [12, 3, 7, 99, 5, 1, 8]  # unordered; 12, 99 and 8 (the ends and the middle) have no voxel
DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
SWAPPED = [">i2", ">u2", ">i4", ">u4", ">i8", ">u8", ">f2", ">f4", ">f8"]

everywhere = pytest.mark.parametrize("strategy", STRATEGIES)


def some_labels(seed=0):
    """Regions 3, 7, 5 of many voxels and an even or odd number, 1 of a single one; 0 and 4 are nobody's."""
    labels = np.random.default_rng(seed).choice([0, 3, 4, 5, 7], N_VOXELS)
    labels[N_VOXELS // 2] = 1
    return labels


def some_volumes(dtype="f8", n=3, seed=1, n_voxels=N_VOXELS):
    dtype, rng = np.dtype(dtype), np.random.default_rng(seed)
    if dtype.kind == "f":
        return (rng.normal(size=(n, n_voxels)) * 10 + 30).astype(dtype)
    if dtype.kind == "b":
        return rng.random((n, n_voxels)) < 0.5
    low, high = max(np.iinfo(dtype).min, -(2**40)), min(np.iinfo(dtype).max, 2**40)
    return rng.integers(low, high, (n, n_voxels), endpoint=True).astype(dtype)


def reduce(strategy, put, host, segments):
    """On the library of `put`; the result's form is checked on the way."""
    data = put(host)
    result = STRATEGIES[strategy](data, segments.like(data))
    assert result.dtype == backend.array_namespace(data).float64
    assert backend.device_of(result) == backend.device_of(data)
    assert result.shape == (len(host), len(segments))
    return backend.to_host(result)


def by_scipy(strategy, volume, labels, ids):
    function = getattr(scipy.ndimage, {"sum": "sum_labels"}.get(strategy, strategy))
    with np.errstate(invalid="ignore"):  # its variance divides by the size of labels that nothing has
        return function(volume, labels, ids)


def is_strict(put):
    return type(put(np.zeros(1))).__module__.startswith("array_api_strict")


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_definition(put, dtype, strategy):
    if dtype == "f2" and is_strict(put):
        pytest.skip("array-api-strict has no float16")
    host, labels = some_volumes(dtype), some_labels()
    expected = reference.region_signals(host, labels, IDS, strategy)
    result = reduce(strategy, put, host, Segments.from_labels(labels, IDS))
    np.testing.assert_allclose(result, expected, rtol=1e-13, atol=0)


@everywhere
@pytest.mark.parametrize("dtype", SWAPPED)
def test_foreign_byte_order(dtype, strategy):
    host, segments = some_volumes(dtype), Segments.from_labels(some_labels(), IDS)
    native = host.astype(host.dtype.newbyteorder("="))
    np.testing.assert_array_equal(STRATEGIES[strategy](host, segments), STRATEGIES[strategy](native, segments))
    assert not host.dtype.isnative


@everywhere
def test_equals_scipy(put, strategy):
    host, labels = some_volumes(), some_labels()
    ids = [7, 1, 5, 3]
    expected = [by_scipy(strategy, volume, labels, ids) for volume in host]
    result = reduce(strategy, put, host, Segments.from_labels(labels, ids))
    np.testing.assert_allclose(result, expected, rtol=1e-13, atol=0)


@everywhere
@pytest.mark.parametrize("ids", [[12], [12, 99], []], ids=str)
def test_no_region_has_a_voxel(put, ids, strategy):
    result = reduce(strategy, put, some_volumes(), Segments.from_labels(some_labels(), ids))
    np.testing.assert_array_equal(result, np.full((3, len(ids)), 0.0 if strategy == "sum" else np.nan))


@everywhere
@pytest.mark.parametrize(("n_volumes", "n_voxels"), [(0, N_VOXELS), (1, 1), (2, 1)])
def test_smallest_volumes(put, n_volumes, n_voxels, strategy):
    host, labels = some_volumes(n=n_volumes, n_voxels=n_voxels), np.full(n_voxels, 4)
    expected = reference.region_signals(host, labels, [4, 9], strategy)
    np.testing.assert_allclose(reduce(strategy, put, host, Segments.from_labels(labels, [4, 9])), expected, rtol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 127, 128, 129, 256, 1000])
@everywhere
def test_region_sizes(put, n, strategy):
    """Around the size of a CUDA block, and medians of odd and even counts."""
    host = some_volumes(n=2, n_voxels=n + 3)
    labels = np.r_[0, np.full(n, 2), 0, 0]
    expected = reference.region_signals(host, labels, [2], strategy)
    result = reduce(strategy, put, host, Segments.from_labels(labels, [2]))
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (np.array([-2, 5, -2, 0, 7, 5, 5], "i2"), [5, -2, 7]),
        (np.array([1.5, -3.25, 0, 1.5, np.nan, np.inf, -3.25]), [1.5, -3.25]),
        (np.array([1, 2, 1, 0, 2, 2, 1], ">f4"), [2, 1]),
        (np.array([1, 2, 1, 0, 2, 2, 1], ">i2"), np.array([2, 1], ">i8")),
        (np.array([1, 2, 1, 0, 2, 2, 1], "u1"), [2.0, 1.0, 300, -1, 0.5]),
        (np.array([True, False] * 4)[:7], [1]),
        (np.array([2**53, 2**53 + 1, 1, 1, 1, 1, 1]), [2**53 + 1, 1]),
    ],
    ids=["negative", "float", "swapped-float", "swapped-int", "float-ids", "bool", "large"],
)
def test_kinds_of_labels(labels, ids):
    host = some_volumes(n_voxels=7)
    expected = reference.region_signals(host, labels, ids, "sum")
    np.testing.assert_allclose(segment_sum(host, Segments.from_labels(labels, ids)), expected, rtol=1e-14)


def test_segments_list_the_voxels_in_the_order_of_the_ids():
    segments = Segments.from_labels(np.array([7, 3, 0, 7, 5, 3]), [5, 4, 7, 3])
    assert segments.indices.tolist() == [4, 0, 3, 1, 5]
    assert segments.offsets.tolist() == segments.bounds == [0, 1, 1, 3, 5]
    assert segments.counts.tolist() == segments.totals.tolist() == [1, 0, 2, 2]
    assert len(segments) == 4
    assert (segments.indices.dtype, segments.offsets.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("ids", [[3, 7, 3], [1.0, 1], np.array([5, 5])])
def test_repeated_ids(ids):
    expected = f"`ids` must not repeat, got {np.asarray(ids).tolist()}."
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Segments.from_labels(some_labels(), ids)


def weighted(seed=3):
    """Regions that overlap, of differing lengths, one of them empty; some weights are negative."""
    rng = np.random.default_rng(seed)
    voxels = [rng.choice(N_VOXELS, k, replace=False) for k in (5, 0, 40, 90, 1)]
    weights = [rng.random(len(v)) + 0.1 - (np.arange(len(v)) == 3) for v in voxels]
    offsets = np.r_[0, np.cumsum([len(v) for v in voxels])]
    return voxels, weights, Segments(np.concatenate(voxels), offsets, np.concatenate(weights))


@pytest.mark.parametrize("strategy", ["sum", "mean"])
@pytest.mark.parametrize("dtype", ["?", "i2", "u8", "f4", "f8"])
def test_weights(put, dtype, strategy):
    voxels, weights, segments = weighted()
    host = some_volumes(dtype)
    result = reduce(strategy, put, host, segments)
    expected = reference.weighted_signals(host, voxels, [w.tolist() for w in weights], strategy)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("strategy", ["sum", "mean"])
def test_weights_of_float32(put, strategy):
    voxels, weights, segments = weighted()
    weights = [w.astype(np.float32) for w in weights]
    segments = Segments(segments.indices, segments.offsets, np.concatenate(weights))
    host = some_volumes("i2")
    expected = reference.weighted_signals(host, voxels, [w.tolist() for w in weights], strategy)
    np.testing.assert_allclose(reduce(strategy, put, host, segments), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("strategy", ["median", "minimum", "maximum", "variance", "standard_deviation"])
def test_weights_where_there_are_none(put, strategy):
    expected = f"`segments` has weights, which a {strategy} can't use: compile without (Segments.from_labels)."
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        reduce(strategy, put, some_volumes(), weighted()[2])


@pytest.mark.parametrize("strategy", ["mean", "sum", "minimum", "maximum", "variance", "standard_deviation"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_nan_stays_in_its_region_and_volume(put, dtype, strategy):
    labels, host = some_labels(), some_volumes(dtype)
    clean = reference.region_signals(host, labels, IDS, strategy)
    host[1, np.flatnonzero(labels == 7)[2]] = np.nan
    expected = clean.copy()
    expected[1, IDS.index(7)] = np.nan
    result = reduce(strategy, put, host, Segments.from_labels(labels, IDS))
    np.testing.assert_allclose(result, expected, rtol=1e-13)


def test_nan_sorts_last_in_a_median(put):
    """As scipy.ndimage.median."""
    host, labels = some_volumes(n_voxels=9), np.r_[1, 1, 1, 1, 2, 2, 2, 2, 2]
    host[0, [1, 5, 6]] = host[1, :4] = np.nan
    expected = [scipy.ndimage.median(volume, labels, [1, 2]) for volume in host]
    np.testing.assert_array_equal(reduce("median", put, host, Segments.from_labels(labels, [1, 2])), expected)


@everywhere
def test_infinite_voxels_warn_of_nothing(put, strategy):
    """What is infinite or NaN follows IEEE arithmetic; warnings (errors in these tests) would be about nothing."""
    if is_strict(put):
        pytest.skip("array-api-strict computes with NumPy, which warns")
    host = some_volumes(n=2, n_voxels=4)
    host[0, 0], host[1, :2] = np.inf, [np.inf, -np.inf]
    result = reduce(strategy, put, host, Segments.from_labels(np.array([1, 1, 2, 2]), [1, 2]))
    np.testing.assert_array_equal(np.isfinite(result[:, 1]), [True, True])
    expected = {"minimum": [host[0, 1], -np.inf], "maximum": [np.inf, np.inf], "mean": [np.inf, np.nan]}
    expected |= {"sum": expected["mean"], "median": expected["mean"]}
    np.testing.assert_array_equal(result[:, 0], expected.get(strategy, [np.nan, np.nan]))


def test_infinite_voxels_in_different_blocks():
    host = np.ones((1, 3 * kernel.BLOCK))
    host[0, 0], host[0, -1] = np.inf, -np.inf
    segments = Segments.from_labels(np.full(host.shape[1], 6), [6])
    for strategy in STRATEGIES:
        STRATEGIES[strategy](host, segments)
    assert np.isnan(segment_sum(host, segments))


@everywhere
def test_read_only_input_is_left_alone(put, strategy):
    host = some_volumes("i2")
    before = host.copy()
    host.flags.writeable = False
    reduce(strategy, put, host, Segments.from_labels(some_labels(), IDS))
    np.testing.assert_array_equal(host, before)
    data = put(host)
    STRATEGIES[strategy](data, Segments.from_labels(some_labels(), IDS).like(data))
    np.testing.assert_array_equal(backend.to_host(data), before)


@everywhere
@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
def test_same_bits_for_any_number_of_volumes(put, dtype, strategy):
    host, segments = some_volumes(dtype, n=33), Segments.from_labels(some_labels(), IDS)
    whole = reduce(strategy, put, host, segments)
    for size in (1, 2, 7, 16):
        parts = [reduce(strategy, put, host[i : i + size], segments) for i in range(0, 33, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("strategy", ["sum", "mean"])
def test_same_bits_with_weights(put, strategy):
    host, segments = some_volumes("f4", n=33), weighted()[2]
    whole = reduce(strategy, put, host, segments)
    for t in range(33):
        np.testing.assert_array_equal(reduce(strategy, put, host[t : t + 1], segments), whole[t : t + 1])


@everywhere
def test_more_voxels_than_one_block(put, strategy):
    """Regions that begin, end and lie across the borders of the blocks that sums are gathered in."""
    n = 18_000
    labels = np.arange(n) // 5000 + 1
    labels[::7] = 0
    labels[::1001] = 50
    host = some_volumes(n=2, n_voxels=n)
    ids = [50, 1, 2, 3, 77, 4]
    expected = np.array([by_scipy(strategy, volume, labels, ids) for volume in host])
    expected[:, ids.index(77)] = 0.0 if strategy == "sum" else np.nan
    segments = Segments.from_labels(labels, ids)
    assert len(segments.blocks.parts) > 3
    np.testing.assert_allclose(reduce(strategy, put, host, segments), expected, rtol=1e-12)


def weighted_segments(n_voxels):
    """Regions with random voxels and weights in all blocks, one of them empty."""
    rng = np.random.default_rng(0)
    voxels = [rng.choice(n_voxels, k, replace=False) for k in (15_000, 0, 700, 1, 9_000)]
    offsets = np.r_[0, np.cumsum([len(v) for v in voxels])]
    return Segments(np.concatenate(voxels), offsets, np.concatenate([rng.random(len(v)) for v in voxels]))


@needs_compiled
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("n_volumes", [0, 1, 4, 5, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_compiled_sums_have_the_bits_of_scipys(dtype, n_volumes, weighted, monkeypatch):
    n_voxels = 18_000
    segments = weighted_segments(n_voxels)
    if not weighted:
        segments = Segments(segments.indices, segments.offsets)
    data = some_volumes(dtype, n=n_volumes, n_voxels=n_voxels)
    by_c = segment_sum(data, segments)
    monkeypatch.setattr(compiled, "extension", None)
    np.testing.assert_array_equal(by_c, segment_sum(data, segments))


def awkward_values(rng, n):
    """Values that a selection by bins may stumble over: ties, outliers, ranges that overflow, denormals, non-finite."""
    return [
        rng.normal(size=n),
        rng.integers(0, 4, n) * 1.0,
        np.full(n, -3.5),
        10.0 ** rng.uniform(-300, 300, n) * rng.choice([-1, 1], n),
        np.where(rng.random(n) < 0.5, -1.7e308, 1.7e308),
        rng.integers(0, 50, n) * 5e-324,
        np.r_[1e9, rng.normal(size=n - 1)],
        np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
        rng.choice([-np.inf, np.inf, 0.0], n),
        np.nextafter(1.0, 2.0) + np.sort(rng.normal(size=n)) * 1e-16,
    ]


@needs_compiled
@pytest.mark.parametrize("strategy", ["median", "minimum", "maximum", "variance"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 24, 25, 26, 300, 3001])
def test_compiled_statistics_are_numpys(strategy, size, monkeypatch):
    rng = np.random.default_rng(size)
    data = np.concatenate([np.array(awkward_values(rng, 2 * size)), some_volumes("i2", n=2, n_voxels=2 * size)])
    if strategy == "variance":
        data = data[[0, 1, 2, 6, 7, 8, -1]]  # the squares of the others overflow, or are nothing but rounding
    labels = rng.permutation(2 * size) % 2 + 1
    segments = Segments.from_labels(labels, [2, 9, 1])
    with np.errstate(over="ignore", invalid="ignore"):
        by_c = STRATEGIES[strategy](data, segments)
        monkeypatch.setattr(compiled, "extension", None)
        expected = STRATEGIES[strategy](data, segments)
    assert np.isnan(by_c[:, 1]).all()
    if strategy == "variance":  # another order of additions
        np.testing.assert_allclose(by_c, expected, rtol=1e-12)
    else:
        np.testing.assert_array_equal(by_c, expected)


@pytest.mark.parametrize("how", ["foreign order", "odd address", "columns", "float16"])
def test_sums_of_unusual_arrays(how):
    n_voxels = kernel.BLOCK + 1000
    segments, data = (
        Segments.from_labels(np.arange(n_voxels) % 7, [1, 3, 6]),
        some_volumes("i2", n=3, n_voxels=n_voxels),
    )
    unusual = {
        "foreign order": lambda: data.astype(data.dtype.newbyteorder()),
        "odd address": lambda: np.frombuffer(b"0" + data.tobytes(), np.uint8)[1:].view("i2").reshape(data.shape),
        "columns": lambda: np.asfortranarray(data),
        "float16": lambda: data.astype("f2"),
    }[how]()
    np.testing.assert_array_equal(segment_sum(unusual, segments), segment_sum(unusual.astype("f8"), segments))


@pytest.mark.parametrize("strategy", ["sum", "mean"])
def test_weights_in_more_than_one_block(put, strategy):
    n = 18_000
    segments = weighted_segments(n)
    voxels, weights = (np.split(part, segments.offsets[1:-1]) for part in (segments.indices, segments.weights))
    host = some_volumes("f4", n=2, n_voxels=n)
    assert len(segments.blocks.parts) > 3
    expected = reference.weighted_signals(host, voxels, [w.tolist() for w in weights], strategy)
    np.testing.assert_allclose(reduce(strategy, put, host, segments), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("strategy", ["variance", "standard_deviation"])
def test_variance_of_large_values(put, dtype, strategy):
    """mean 1e6, standard deviation 1e-2: a mean of squares less a squared mean would be noise."""
    host = (1e6 + 1e-2 * np.random.default_rng(0).normal(size=(2, 5000))).astype(dtype)
    labels = np.arange(5000) % 2
    expected = reference.region_signals(host, labels, [0, 1], strategy)
    result = reduce(strategy, put, host, Segments.from_labels(labels, [0, 1]))
    np.testing.assert_allclose(result, expected, rtol=1e-5)  # the rounding of a mean in float64, squared, is 1e-6 of it


def test_sums_are_taken_in_float64(put):
    host = np.full((1, 1 << 16), 0.1, np.float32)
    result = reduce("sum", put, host, Segments.from_labels(np.ones(1 << 16), [1]))
    np.testing.assert_allclose(result, float(np.float32(0.1)) * (1 << 16), rtol=1e-14)
    integers = np.full((1, 1 << 10), np.iinfo(np.int16).max, np.int16)
    assert reduce("sum", put, integers, Segments.from_labels(np.ones(1 << 10), [1])) == 32767 * 1024


def test_strided_volumes(put):
    host, segments = some_volumes(n=6), Segments.from_labels(some_labels(), IDS)
    data = put(host)
    every_other = segment_mean(data[::2, :], segments.like(data))
    np.testing.assert_array_equal(backend.to_host(every_other), reduce("mean", put, host[::2], segments))


def test_long_indices(put):
    segments = Segments.from_labels(some_labels(), IDS)
    wide = Segments(segments.indices.astype(np.int64), segments.offsets)
    host = some_volumes()
    for strategy in STRATEGIES:
        np.testing.assert_array_equal(reduce(strategy, put, host, wide), reduce(strategy, put, host, segments))


def test_more_volumes_than_a_grid_of_blocks_is_high(put):
    """CUDA: the second dimension of a grid ends at 65 535."""
    host = np.arange(2 * 65_537, dtype=np.int32).reshape(-1, 2)
    result = reduce("sum", put, host, Segments.from_labels(np.array([1, 2]), [2]))
    np.testing.assert_array_equal(result[:, 0], host[:, 1])


def test_pickles(put):
    data = put(some_volumes())
    segments = weighted()[2]
    mean = backend.to_host(segment_mean(data, segments.like(data)))  # caches what need not travel
    copy = pickle.loads(pickle.dumps(segments))
    assert set(vars(copy)) == {"indices", "offsets", "weights"}
    np.testing.assert_array_equal(backend.to_host(segment_mean(data, copy.like(data))), mean)


def test_like_numpy_is_itself():
    segments = weighted()[2]
    assert segments.like(np.zeros(1)) is segments
