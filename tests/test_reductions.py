"""The reductions' contract on NumPy and CuPy, against loops over voxels; and the order of CUDA's sums, bit by bit."""

import math
import re

import numpy as np
import pytest

from gpumask import backend
from gpumask.kernels import median_cuda, scaling_cuda, segments_cuda
from gpumask.kernels import segments as kernel
from gpumask.kernels.segments import STRATEGIES, Segments

from . import reference

both = pytest.mark.parametrize("put", ["numpy", "cupy"], indirect=True)
on_gpu = pytest.mark.parametrize("put", ["cupy"], indirect=True)

N_VOXELS = 700
N_VOLUMES = 11  # a full group of volumes, and a part of one
PART = segments_cuda.PART
FLOATS = ["float32", "float64"]
POLICIES = ["keep", "zero", "omit"]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
every_policy = pytest.mark.parametrize("policy", POLICIES)


def some_regions(seed=0):
    """Voxels of overlapping regions: empty ones at the ends, one voxel, more entries than two parts hold.

    Nine regions and nine parts, so that not every warp of the last block has one.
    """
    rng = np.random.default_rng(seed)
    return [rng.integers(0, N_VOXELS, n) for n in (0, 5, 2 * PART + 77, 1, 0, 600, PART, 34, 0)]


def some_weights(regions, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.random(len(voxels)) + 0.1 for voxels in regions]


def compiled(regions, weights=None, dtype=np.int32):
    offsets = np.cumsum([0, *map(len, regions)])
    weights = None if weights is None else np.concatenate(weights)
    return Segments(np.concatenate(regions).astype(dtype), offsets, weights)


def some_volumes(dtype, n=N_VOLUMES, seed=2):
    dtype, rng = np.dtype(dtype), np.random.default_rng(seed)
    if dtype.kind == "f":
        return (rng.normal(size=(n, N_VOXELS)) * 10 + 3).astype(dtype)
    if dtype.kind == "b":
        return rng.random((n, N_VOXELS)) < 0.5
    low, high = max(np.iinfo(dtype).min, -(2**40)), min(np.iinfo(dtype).max, 2**40)
    return rng.integers(low, high, (n, N_VOXELS), endpoint=True).astype(dtype)


def with_non_finite(host, regions):
    """Some of every kind; in volume 3 the whole of region 7, in volume 5 none."""
    host = host.copy()
    rng = np.random.default_rng(3)
    for t, volume in enumerate(host):
        if t != 5:
            volume[rng.integers(0, N_VOXELS, 60)] = rng.choice([np.nan, np.inf, -np.inf], 60)
    host[3, regions[7]] = np.nan
    return host


def expected_signals(host, regions, strategy, *, weights=None, slope=1.0, inter=0.0, policy="keep"):
    """By the definitions, voxel by voxel."""
    weights = weights or [np.ones(len(voxels)) for voxels in regions]
    signals = np.empty((len(host), len(regions)))
    for t, volume in enumerate(host):
        for r, (voxels, of_region) in enumerate(zip(regions, weights, strict=True)):
            values = [slope * float(volume[v]) + inter for v in voxels]
            if policy == "zero":
                values = [value if math.isfinite(value) else 0.0 for value in values]
            pairs = [(v, w) for v, w in zip(values, of_region, strict=True) if policy == "keep" or math.isfinite(v)]
            signals[t, r] = reference.statistic(strategy, [v for v, _ in pairs], [w for _, w in pairs])
    return signals


def reduce(put, host, segments, strategy, **options):
    data = put(host)
    signals, found = kernel.reduce(data, segments.like(data), strategy, **options)
    xp = backend.array_namespace(data)
    assert (signals.dtype, signals.shape) == (xp.float64, (len(host), len(segments)))
    assert (found.dtype, found.shape) == (xp.bool, (len(host),))
    assert backend.device_of(signals) == backend.device_of(found) == backend.device_of(data)
    return backend.to_host(signals), backend.to_host(found)


def assert_close(signals, expected):
    size = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    np.testing.assert_allclose(signals, expected, rtol=1e-12, atol=1e-13 * size)


@both
@every_strategy
@pytest.mark.parametrize("dtype", [*scaling_cuda.C_TYPES, "float16"])
def test_scaled_values(put, dtype, strategy):
    host, regions = some_volumes(dtype), some_regions()
    signals, found = reduce(put, host, compiled(regions), strategy, slope=-0.37, inter=5.0)
    assert_close(signals, expected_signals(host, regions, strategy, slope=-0.37, inter=5.0))
    assert not found.any()


@both
@every_strategy
@every_policy
@pytest.mark.parametrize("dtype", FLOATS)
def test_non_finite_voxels(put, dtype, policy, strategy):
    regions = some_regions()
    host = with_non_finite(some_volumes(dtype), regions)
    signals, found = reduce(put, host, compiled(regions), strategy, slope=2.5, inter=-1.0, non_finite=policy)
    if policy == "keep":  # as NumPy's own kernels do it, which other tests compare with SciPy
        with np.errstate(invalid="ignore"):
            expected = STRATEGIES[strategy](2.5 * host.astype(np.float64) - 1.0, compiled(regions))
    else:
        expected = expected_signals(host, regions, strategy, slope=2.5, inter=-1.0, policy=policy)
    if policy == "omit":
        assert strategy == "sum" or np.isnan(expected[3, 7])
    assert_close(signals, expected)
    np.testing.assert_array_equal(found, np.arange(N_VOLUMES) != 5)


@both
@pytest.mark.parametrize("policy", ["zero", "omit"])
@every_strategy
@pytest.mark.parametrize("dtype", ["bool", "int16", "uint64"])
def test_policies_of_integers(put, dtype, strategy, policy):
    host, regions = some_volumes(dtype), some_regions()
    signals, found = reduce(put, host, compiled(regions), strategy, slope=0.5, non_finite=policy)
    assert_close(signals, expected_signals(host, regions, strategy, slope=0.5))
    assert not found.any()


@both
@every_policy
@pytest.mark.parametrize("strategy", ["sum", "mean"])
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_weights(put, dtype, strategy, policy):
    regions = some_regions()
    weights, host = some_weights(regions), some_volumes(dtype)
    if policy != "keep" and dtype != "int16":
        host = with_non_finite(host, regions)
    signals, _ = reduce(put, host, compiled(regions, weights), strategy, slope=3.0, inter=7.0, non_finite=policy)
    options = {"weights": weights, "slope": 3.0, "inter": 7.0, "policy": policy}
    assert_close(signals, expected_signals(host, regions, strategy, **options))


@both
@every_strategy
def test_overflow_of_the_scaling_is_not_finite(put, strategy):
    """What counts is the scaled value: 1e300 * 1e10 is infinite."""
    host = np.array([[1.0, 1e300, 3.0], [1.0, 2.0, 3.0]])
    segments = Segments(np.arange(3, dtype=np.int32), np.array([0, 3]))
    signals, found = reduce(put, host, segments, strategy, slope=1e10, non_finite="omit")
    expected = [reference.statistic(strategy, [1e10, 3e10]), reference.statistic(strategy, [1e10, 2e10, 3e10])]
    np.testing.assert_allclose(signals[:, 0], expected, rtol=1e-15)
    np.testing.assert_array_equal(found, [True, False])


@both
@every_strategy
def test_only_voxels_of_regions_are_judged(put, strategy):
    host = np.ones((2, 5))
    host[0, 0] = host[1, 2] = np.nan
    _, found = reduce(put, host, Segments(np.array([1, 2]), np.array([0, 0, 2])), strategy)
    np.testing.assert_array_equal(found, [False, True])


@both
@every_strategy
def test_zeros_of_either_sign(put, strategy):
    host = np.array([[-0.0, 0.0, -0.0, 1.0, -1.0]])
    segments = Segments(np.arange(5), np.array([0, 3, 5]))
    signals, _ = reduce(put, host, segments, strategy)
    np.testing.assert_array_equal(signals, expected_signals(host, [[0, 1, 2], [3, 4]], strategy))


@both
@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 258, 511, 1024, 9000])
@pytest.mark.parametrize("kind", ["int16", "ties", "wide", "equal", "two", "apart"])
def test_medians_of_any_distribution(put, n, kind):
    """Around the 256 values that are ranked in shared memory, and the 8192 from which a block has more threads."""
    rng = np.random.default_rng(n)
    values = {
        "int16": rng.integers(-32768, 32768, n).astype("i2"),
        "ties": rng.integers(-3, 3, n).astype("f8"),
        "wide": np.exp(rng.uniform(-700, 700, n)) * rng.choice([-1, 1], n),
        "equal": np.full(n, -2.5, "f4"),
        "two": np.r_[np.full(n // 2, 1.0), np.full(n - n // 2, np.nextafter(1.0, 2.0))],
        "apart": np.r_[np.zeros(n // 2), np.ones(n - n // 2)],  # in the first and in the last of 256 bins
    }[kind]
    host = np.stack([values, rng.permutation(values)])
    signals, _ = reduce(put, host, Segments(np.arange(n, dtype=np.int32), np.array([0, n])), "median")
    np.testing.assert_array_equal(signals, np.median(host.astype("f8"), axis=1)[:, None])


@on_gpu
def test_more_threads_select_the_same_median(put, monkeypatch):
    regions = some_regions()
    host = with_non_finite(some_volumes("float32"), regions)
    few = reduce(put, host, compiled(regions), "median", non_finite="omit")[0]
    monkeypatch.setattr(median_cuda, "_MANY", 100)
    np.testing.assert_array_equal(reduce(put, host, compiled(regions), "median", non_finite="omit")[0], few)


@both
@every_strategy
@every_policy
def test_same_bits_for_any_chunk_and_on_repeat(put, policy, strategy):
    regions = some_regions()
    host, segments = with_non_finite(some_volumes("float32"), regions), compiled(regions)
    options = {"slope": 0.1, "inter": 3.3, "non_finite": policy}
    whole, found = reduce(put, host, segments, strategy, **options)
    np.testing.assert_array_equal(reduce(put, host, segments, strategy, **options)[0], whole)
    for size in (1, 3, 8):
        parts = [reduce(put, host[i : i + size], segments, strategy, **options) for i in range(0, N_VOLUMES, size)]
        np.testing.assert_array_equal(np.concatenate([signals for signals, _ in parts]), whole)
        np.testing.assert_array_equal(np.concatenate([some for _, some in parts]), found)


def tree(values):
    """Sum of 32 numbers as a warp adds them."""
    values = list(values)
    for distance in (16, 8, 4, 2, 1):
        values = [values[i] + values[i + distance] for i in range(distance)]
    return values[0]


def in_strides(values):
    lanes = [0.0] * 32
    for i, value in enumerate(values):
        lanes[i % 32] += value
    return tree(lanes)


@on_gpu
def test_order_of_a_sum(put):
    """Every bit of a sum, added in the order that the module promises."""
    regions = [np.arange(N_VOXELS), np.tile(np.arange(N_VOXELS), 40)]  # 28 000 entries are 55 parts, over 32 lanes
    host = some_volumes("float64", n=2) * np.geomspace(1e-9, 1e9, N_VOXELS)
    expected = [
        [
            in_strides([in_strides(volume[voxels[i : i + PART]]) for i in range(0, len(voxels), PART)])
            for voxels in regions
        ]
        for volume in host
    ]
    signals = reduce(put, host, compiled(regions), "sum")[0]
    np.testing.assert_array_equal(signals, expected)
    assert np.any(signals != np.array([[host[t][voxels].sum() for voxels in regions] for t in range(2)]))


@on_gpu
@every_strategy
def test_strides_over_volumes_that_a_grid_does_not_hold(put, strategy, monkeypatch):
    host, regions = some_volumes("int16", n=35), some_regions()
    whole = reduce(put, host, compiled(regions), strategy)[0]
    monkeypatch.setattr(scaling_cuda, "GRID_HEIGHT", 2)
    np.testing.assert_array_equal(reduce(put, host, compiled(regions), strategy)[0], whole)


@both
@every_strategy
def test_form_of_the_segments(put, strategy):
    """Strided indices, 32-bit offsets and 64-bit indices give the same."""
    host, regions = some_volumes("int16", n=2), some_regions()
    segments, data = compiled(regions), put(host)
    expected = kernel.reduce(data, segments.like(data), strategy)[0]
    strided = put(np.repeat(segments.indices, 2))[::2]
    other = Segments(strided, put(segments.offsets.astype(np.int32)))
    wide = Segments(put(segments.indices.astype(np.int64)), put(segments.offsets))
    for form in (other, wide):
        signals = kernel.reduce(data, form, strategy)[0]
        np.testing.assert_array_equal(backend.to_host(signals), backend.to_host(expected))


@both
def test_weights_of_float32(put):
    host, regions = some_volumes("int16", n=2), some_regions()
    weights = [w.astype(np.float32) for w in some_weights(regions)]
    signals, _ = reduce(put, host, compiled(regions, weights), "mean")
    assert_close(signals, expected_signals(host, regions, "mean", weights=[w.tolist() for w in weights]))


@both
@every_strategy
@pytest.mark.parametrize("form", ["every other volume", "every other voxel", "Fortran", "reversed"])
def test_form_of_the_volumes(put, form, strategy):
    regions = some_regions()
    host = some_volumes("int16", n=6)
    view = {
        "every other volume": lambda a: a[::2],
        "every other voxel": lambda a: a.repeat(2, axis=1)[:, ::2],
        "Fortran": lambda a: a.T.copy().T,
        "reversed": lambda a: a[::-1],
    }[form]
    data = view(put(host))
    segments = compiled(regions).like(data)
    before = backend.to_host(data).copy()
    signals = backend.to_host(kernel.reduce(data, segments, strategy)[0])
    np.testing.assert_array_equal(signals, reduce(put, view(host).copy(), compiled(regions), strategy)[0])
    np.testing.assert_array_equal(backend.to_host(data), before)


@both
@every_strategy
@pytest.mark.parametrize(("n_volumes", "n_regions"), [(0, 2), (2, 0), (2, 1)])
def test_nothing_to_reduce(put, n_volumes, n_regions, strategy):
    segments = Segments(np.zeros(0, np.int32), np.zeros(n_regions + 1, np.int64))
    signals, found = reduce(put, np.ones((n_volumes, 3)), segments, strategy)
    np.testing.assert_array_equal(signals, np.full((n_volumes, n_regions), 0.0 if strategy == "sum" else np.nan))
    assert not found.any()


@both
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"strategy": "mode"}, ValueError, "`strategy` must be one of ['mean', 'sum', 'median', 'minimum', "),
        ({"non_finite": "drop"}, ValueError, "`non_finite` must be one of ['keep', 'zero', 'omit'], got 'drop'."),
        ({"data": lambda data: backend.to_host(data).tolist()}, TypeError, "got builtins.list."),
        ({"data": lambda data: data[0]}, TypeError, "ndarray of int16, shape (700,)."),
        ({"data": lambda data: data * 1j}, TypeError, "ndarray of complex128, shape (2, 700)."),
    ],
    ids=["strategy", "policy", "list", "1-D", "complex"],
)
def test_bad_arguments(put, change, error, message):
    data = put(some_volumes("int16", n=2))
    arguments = {"data": data, "segments": compiled(some_regions()).like(data), "strategy": "mean"}
    arguments |= {k: v(data) if callable(v) else v for k, v in change.items()}
    with pytest.raises(error, match=re.escape(message)):
        kernel.reduce(**arguments)


@on_gpu
@pytest.mark.parametrize("elsewhere", ["data", "segments"])
def test_data_and_segments_on_different_devices(put, elsewhere):
    host, segments = some_volumes("int16", n=2), compiled(some_regions())
    data, segments = (host, segments.like(put(host))) if elsewhere == "data" else (put(host), segments)
    with pytest.raises(TypeError, match=r"^`segments` must be on the device of `data`: take `segments\.like"):
        kernel.reduce(data, segments, "mean")


@both
@pytest.mark.parametrize("strategy", ["median", "minimum", "maximum", "variance", "standard_deviation"])
def test_weights_where_there_are_none(put, strategy):
    regions = some_regions()
    expected = f"`segments` has weights, which a {strategy} can't use: compile without (Segments.from_labels)."
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        reduce(put, some_volumes("int16", n=2), compiled(regions, some_weights(regions)), strategy)
