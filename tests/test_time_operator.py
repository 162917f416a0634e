"""Cleaning compiled to matrices over time, against the same cleaning step by step, which test_signal compares with
nilearn."""

import warnings

import numpy as np
import pytest

from gpumask import backend, process
from gpumask import cleaner as cleaner_module
from gpumask.cleaner import Cleaner
from gpumask.signal import clean

pytestmark = pytest.mark.filterwarnings("ignore:psc standardization strategy is meaningless")  # of the series of 0

MANY = cleaner_module._FEWEST  # series from which on a product may be used


def series(n_volumes, n_series, seed=0):
    """Random walks on means of 0 to 1e5; the last ones are constant, 0, and a trend."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_volumes, n_series)).cumsum(axis=0) + np.geomspace(1, 1e5, n_series) - 1
    x[:, -3:] = 1234.5, 0.0, 0.0
    x[:, -1] += 100 + 0.5 * np.arange(n_volumes)
    return x


def drawn_options(seed):
    """Random options of `Cleaner`, and the number of volumes."""
    rng = np.random.default_rng(seed)
    pick = lambda *options: options[rng.integers(len(options))]  # noqa: E731
    n = int(pick(84, 90, 131))
    in_runs = pick(False, False, True)
    runs = np.repeat([5, 2], [n // 2, n - n // 2]) if in_runs else None
    options = {
        "runs": runs,
        "detrend": pick(True, False),
        "standardize": pick("zscore_sample", "zscore", "psc", None),
        "filter": pick("butterworth", "butterworth", "cosine", False),
        "t_r": 2.0,
        "extrapolate": pick(True, False),
        "confounds": pick(None, rng.normal(size=(n, 4)) * [1, 100, 1e-3, 1] + [0, 5, 0, -30]),
    }
    options["standardize_confounds"] = pick(True, False) or not options["detrend"]  # neither is a warning
    if options["filter"]:
        options["high_pass"] = pick(0.01, 0.02)
    if options["filter"] == "butterworth":
        options["low_pass"] = pick(0.1, None)
    if pick(True, False):
        sizes = [n] if runs is None else [n - n // 2, n // 2]
        kept = [np.sort(rng.choice(size, size - 4, replace=False)) for size in sizes]
        options["sample_mask"] = kept if in_runs else kept[0]
    return n, options


def close_to(actual, expected, x):
    """Whether columns agree to 1e-10 of their largest value before cleaning, or of the result if that is larger."""
    scale = np.maximum(np.abs(x).max(axis=0), np.abs(expected).max(axis=0))
    return np.abs(actual - expected) <= 1e-10 * np.maximum(scale, 1e-3)


def unit(options, x, expected):
    """What the differences of standardized columns are compared with: they were divided by `expected`'s scale."""
    if options["standardize"] is None:
        return x
    plain = Cleaner(len(x), **{**options, "standardize": None})(x)
    deviation = plain.std(axis=0)
    noise = np.abs(x).max(axis=0) / np.where(deviation > 0, deviation, 1.0)
    return np.maximum(noise, 1.0)[None] * np.maximum(np.abs(expected).max(axis=0), 1.0)


@pytest.mark.parametrize("seed", range(60))
def test_product_equals_the_steps(seed):
    n, options = drawn_options(seed)
    cleaner, x = Cleaner(n, **options), series(n, 40, seed)
    expected = cleaner(x)
    assert cleaner.way(40) == "steps"
    actual = cleaner.operator(x)
    assert actual.shape == expected.shape == (cleaner.n_kept, 40)
    assert close_to(actual, expected, unit(options, x, expected)).all(), options


@pytest.mark.parametrize("seed", range(60))
def test_means_apart_from_the_series(seed):
    n, options = drawn_options(seed)
    cleaner, x = Cleaner(n, **options), series(n, 40, seed)
    base = x[3].copy()
    expected = cleaner(x)
    assert close_to(cleaner.operator(x - base, base), expected, unit(options, x, expected)).all(), options


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_constant_series_are_exactly_0(seed):
    n, options = drawn_options(seed)
    if options["standardize"] in ("psc", None):
        options["standardize"] = "zscore"
    x = np.full((n, 5), 0.1) * [1, 7, 1e4, 1e-6, 0]
    for way in (Cleaner(n, **options), Cleaner(n, **options).operator):
        assert not way(x).any(), options
    base = x[0].copy()
    assert not Cleaner(n, **options).operator(x - base, base).any(), options


@pytest.mark.parametrize("n", [40, 1200])
def test_trends_that_detrending_explains_are_exactly_0(n):
    x = np.linspace(0, 1, n)[:, None] * np.array([1e4, 3.0, -1e-5]) + np.array([1e5, -2.0, 7e3])
    cleaner = Cleaner(n)
    assert not cleaner(x).any()
    assert not cleaner.operator(x).any()
    assert not cleaner.operator(x - x[0], x[0]).any()


@pytest.mark.parametrize("way", ["steps", "product"])
@pytest.mark.parametrize("seed", range(8))
def test_cleaned_in_place_in_blocks(seed, way, monkeypatch):
    n, options = drawn_options(seed)
    monkeypatch.setattr(cleaner_module, "_BLOCK_VALUES", 64 * n)
    monkeypatch.setattr(Cleaner, "way", lambda self, n_series: way)
    x = series(n, 200, seed)
    cleaner = Cleaner(n, **options)
    monkeypatch.undo()
    expected = cleaner(x)
    monkeypatch.setattr(cleaner_module, "_BLOCK_VALUES", 64 * n)
    monkeypatch.setattr(Cleaner, "way", lambda self, n_series: way)
    staged = x.copy()
    result = cleaner.in_place(staged)
    assert np.shares_memory(result, staged)
    assert close_to(result, expected, unit(options, x, expected)).all(), options
    base = x[0].copy()
    result = cleaner.in_place(x - base, base)
    assert close_to(result, expected, unit(options, x, expected)).all(), options


def test_float32_differences_of_a_large_mean():
    rng = np.random.default_rng(0)
    exact = 20_000 + rng.normal(size=(200, 64)).cumsum(axis=0)
    cleaner = Cleaner(200, t_r=2.0, low_pass=0.1, high_pass=0.01)
    expected = cleaner(exact)
    base = exact[0].copy()
    staged = (exact - base).astype(np.float32)
    assert np.abs(cleaner.in_place(staged, base) - expected).max() < 5e-6
    assert np.abs(cleaner.in_place(exact.astype(np.float32)) - expected).max() > 1e-4  # without differences


def test_psc_decides_once_for_all_blocks(monkeypatch):
    # Half of the series have means that confounds remove, and half have none: alone, the blocks would differ.
    n = 80
    x = np.random.default_rng(0).normal(size=(n, 128)) + 1
    x[:, 64:] += 1000
    confounds = np.ones((n, 1)) * np.linspace(1, 2, n)[:, None]
    options = {"detrend": False, "standardize": "psc", "confounds": confounds}
    cleaner = Cleaner(n, **options)
    expected = cleaner(x)
    blocks = np.hstack([Cleaner(n, **options)(x[:, :64]), Cleaner(n, **options)(x[:, 64:])])
    np.testing.assert_allclose(cleaner.operator(x), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(blocks, expected, rtol=0, atol=1e-9)
    removed = {"detrend": True, "standardize": "psc"}  # the means of all series, put back for all
    monkeypatch.setattr(cleaner_module, "_BLOCK_VALUES", 64 * n)
    x[:, :64] -= x[:, :64].mean(axis=0) - 1e-3
    whole = Cleaner(n, **removed)
    expected = whole(x)
    for way in ("steps", "product"):
        monkeypatch.setattr(Cleaner, "way", lambda self, n_series, way=way: way)
        np.testing.assert_allclose(whole.in_place(x.copy()), expected, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("n_cores", [1, 2, 5])
@pytest.mark.parametrize("standardize", ["zscore_sample", "psc"])
def test_bits_do_not_depend_on_cores(n_cores, standardize, monkeypatch):
    x = series(60, MANY + 100).astype(np.float32)
    cleaner = Cleaner(60, t_r=2.0, high_pass=0.01, standardize=standardize)
    monkeypatch.setattr(cleaner_module, "n_cores", lambda: 3)
    expected = cleaner.in_place(x.copy())
    monkeypatch.setattr(cleaner_module, "n_cores", lambda: n_cores)
    np.testing.assert_array_equal(cleaner.in_place(x.copy()), expected)


@pytest.mark.parametrize("confounds", [None, "some"])
def test_values_that_are_not_finite(confounds):
    n = 60
    confounds = None if confounds is None else np.random.default_rng(1).normal(size=(n, 2))
    x = series(n, MANY)
    x[5, 1], x[7, 2] = np.nan, np.inf
    cleaner = Cleaner(n, confounds=confounds, standardize=None)
    assert cleaner.way(MANY) == "product"
    is_finite = np.isfinite(cleaner(x)).all(axis=0)
    assert is_finite.sum() == MANY - 2
    assert not is_finite[1:3].any()
    zeroed = np.where(np.isfinite(x), x, 0.0)
    ensured = Cleaner(n, confounds=confounds, standardize=None, ensure_finite=True)
    np.testing.assert_array_equal(ensured(x), cleaner(zeroed))
    np.testing.assert_array_equal(ensured.in_place(x.copy()), cleaner(zeroed))


def test_values_to_interpolate_between_must_be_finite():
    n, kept = 60, np.delete(np.arange(60), [20, 21])
    x = series(n, MANY)
    x[20] = np.nan  # censored
    cleaner = Cleaner(n, t_r=2.0, low_pass=0.1, sample_mask=kept)
    assert cleaner.way(MANY) == "product"
    assert np.isfinite(cleaner(x)).all()
    x[30, 7] = np.inf
    message = "The signals hold NaN or infinite values and can't be interpolated: use ensure_finite=True."
    with pytest.raises(ValueError, match=message):
        cleaner(x)


@pytest.mark.parametrize("standardize", ["zscore_sample", "psc", None])
@pytest.mark.parametrize(("n_volumes", "kept"), [(1, None), (6, [3])])
def test_a_single_volume(n_volumes, kept, standardize):
    x = series(n_volumes, MANY)
    cleaner = Cleaner(n_volumes, standardize=standardize, sample_mask=kept)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = cleaner(x.copy())
        in_place = cleaner.in_place(x.copy())
    steps = {"Detrending"} | ({"Standardization"} if standardize else set())
    assert {str(w.message).split()[0] for w in told} == steps
    np.testing.assert_array_equal(result, x[[0] if kept is None else kept])
    np.testing.assert_array_equal(in_place, result)


def test_one_warning_for_all_blocks(put, monkeypatch):
    x = series(6, MANY)
    monkeypatch.setattr(cleaner_module, "_BLOCK_VALUES", 64 * 6)
    cleaner = Cleaner(6, sample_mask=[3], detrend=True, standardize=None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cleaner(put(x))
    assert [str(w.message).split()[0] for w in told] == ["Detrending"]


def test_estimate_and_explanation():
    plain = Cleaner(200, detrend=False, standardize=None)
    assert plain.explain(10) == "cleaning: no linear step"
    assert plain.way(10**6) == "steps"
    assert plain.only_selects
    banded = Cleaner(200, t_r=2.0, low_pass=0.1, high_pass=0.01)
    assert not banded.only_selects
    assert banded.way(MANY - 1) == "steps"
    assert banded.way(MANY) == "product"
    seconds = banded.estimate(10**5)
    assert seconds["product"] < seconds["steps"]
    assert banded.explain(10**5) == (
        "cleaning: 100,000 series by one product with a matrix of 200 x 200; expected on one core: "
        f"steps {seconds['steps']:.2g} s, product {seconds['product']:.2g} s"
    )
    assert "step by step (fewer than 4096 series always are); expected on one core: " in banded.explain(100)
    long = Cleaner(20_000, detrend=True, standardize=None)
    assert long.way(10**6) == "steps"  # a matrix of 20,000 x 20,000 costs more


@pytest.mark.parametrize("seed", range(6))
def test_on_a_gpu(seed, gpu):
    n, options = drawn_options(seed)
    x = series(n, 70, seed)
    cleaner = Cleaner(n, **options)
    expected = cleaner.operator(x)
    there = backend.to_device(x, gpu)
    result = backend.to_host(cleaner.operator.like(there)(there))
    assert close_to(result, expected, unit(options, x, expected)).all(), options


def test_in_place_on_a_gpu(gpu):
    x = series(60, MANY)
    cleaner = Cleaner(60, t_r=2.0, low_pass=0.1, standardize="psc")
    base = x[0].copy()
    staged = (x - base).astype(np.float32)
    expected = cleaner.in_place(staged.copy(), base)
    np.testing.assert_allclose(cleaner.in_place(staged, base, device=gpu), expected, rtol=1e-5, atol=1e-5)


def test_one_blas_thread_while_blocks_are_cleaned(monkeypatch):
    entered = []
    original = cleaner_module._in_threads

    def watched(function, blocks):
        entered.append(process.one_blas_thread._users)
        return original(function, blocks)

    monkeypatch.setattr(cleaner_module, "_in_threads", watched)
    Cleaner(60).in_place(series(60, MANY))
    assert entered == [1]


@pytest.mark.parametrize("n", [200, 1200])
def test_float32_products_are_as_close_as_documented(n, put):
    rng = np.random.default_rng(0)
    x = 10_000 + 60 * rng.standard_normal((n, 300)) + 2 * rng.standard_normal((n, 300)).cumsum(axis=0)
    confounds = np.hstack([rng.standard_normal((n, 12)), rng.standard_normal((n, 12)).cumsum(axis=0)])
    options = {"t_r": 2.0, "low_pass": 0.1, "high_pass": 0.01, "confounds": confounds}
    exact, single = (Cleaner(n, precision=p, **options).operator.like(put(x[:1])) for p in ("float64", "float32"))
    expected = backend.to_host(exact(put(x)))
    base = x[0].copy()
    for result in (single(put(x)), single(put(x - base), put(base))):
        assert 1e-7 < np.abs(backend.to_host(result) - expected).max() < 1e-5


@pytest.mark.parametrize("seed", range(0, 60, 4))
def test_float32_products_of_any_cleaning(seed):
    n, options = drawn_options(seed)
    x = series(n, 40, seed)
    expected = Cleaner(n, **options).operator(x)
    actual = Cleaner(n, precision="float32", **options).operator(x)
    scale = np.maximum(np.max(unit(options, x, expected), axis=0), np.abs(x).max(axis=0))
    assert (np.abs(actual - expected) <= 1e-5 * scale).all(), options
    assert not Cleaner(n, precision="float32", **options).operator(np.zeros((n, 3))).any()


@pytest.mark.parametrize("n", [40, 1200])
def test_float32_rounding_noise_is_not_scored(n):
    x = np.linspace(0, 1, n)[:, None] * np.array([1e4, 3.0, -1e-5]) + np.array([1e5, -2.0, 7e3])
    cleaner = Cleaner(n, precision="float32")
    assert not cleaner.operator(x).any()
    assert not cleaner.operator(x - x[0], x[0]).any()


def test_precision_concerns_products_only():
    x = series(60, 20)
    np.testing.assert_array_equal(Cleaner(60, precision="float32")(x), Cleaner(60)(x))
    message = r"^'precision' must be one of \('float64', 'float32'\)\.\n'float16' was provided\.$"
    with pytest.raises(ValueError, match=message):
        Cleaner(60, precision="float16")
    with pytest.raises(ValueError, match=message):
        clean(x, precision="float16")
