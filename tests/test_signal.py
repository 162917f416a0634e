"""``clean`` against ``nilearn.signal.clean`` over its options, and where nilearn is wrong against the definition."""

import itertools
import warnings

import nilearn.signal
import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import CubicSpline

from gpumask import backend
from gpumask.kernels.cleaning import cosine_drifts
from gpumask.signal import clean


def bold(n_volumes, n_signals=6, seed=0, dtype=np.float64):
    """Signals around 100 with trends, common noise; the last is 0, as outside the field of view."""
    rng = np.random.default_rng(seed)
    signals = rng.standard_normal((n_volumes, n_signals)) + rng.standard_normal((n_volumes, 1))
    signals += 100 + np.linspace(-3, 3, n_volumes)[:, None] * rng.standard_normal(n_signals)
    signals[:, -1] = 0
    return signals.astype(dtype)


def motion(n_volumes, n_confounds=4, seed=1):
    rng = np.random.default_rng(seed)
    confounds = rng.standard_normal((n_volumes, n_confounds)) + rng.standard_normal(n_confounds) * 10
    return confounds * 10.0 ** rng.integers(-3, 4, n_confounds)


def outcome(function, *args, **options):
    """Result, and the messages of the warnings; not of nilearn's FutureWarnings and divisions by 0."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = function(*args, **options)
    return result, {str(w.message) for w in record if w.category is UserWarning}


def assert_equals_nilearn(signals, put=np.asarray, atol=1e-9, **options):
    expected, their_warnings = outcome(nilearn.signal.clean, signals.astype(np.float64), **options)
    cleaned, our_warnings = outcome(clean, put(signals), **options)
    cleaned = backend.to_host(cleaned)
    assert our_warnings == their_warnings
    assert cleaned.dtype == (np.float32 if signals.dtype == np.float32 else np.float64)
    np.testing.assert_allclose(cleaned, expected, rtol=0, atol=atol)
    return cleaned


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("standardize", ["zscore_sample", "psc", None])
@pytest.mark.parametrize(
    "cutoffs",
    [
        {},
        {"high_pass": 0.01, "low_pass": 0.1},
        {"low_pass": 0.08},
        {"high_pass": 0.008, "t_r": 0.72},
        {"filter": "cosine", "high_pass": 0.01},
        {"filter": False},
    ],
    ids=["default", "band", "low", "high", "cosine", "off"],
)
def test_grid(put, cutoffs, standardize, dtype):
    """Every filter with every standardization; detrending and confounds in all combinations, lengths by turns."""
    lengths = itertools.cycle([75, 34, 120])
    for detrend, confounds, standardize_confounds in itertools.product([True, False], [True, False], [True, False]):
        n_volumes = next(lengths)
        options = {"detrend": detrend, "standardize": standardize, "standardize_confounds": standardize_confounds}
        if confounds:
            options["confounds"] = motion(n_volumes)
        atol = 1e-9 if dtype == np.float64 else 1e-5 if standardize else 1e-4  # float32 results of size 100
        assert_equals_nilearn(bold(n_volumes, dtype=dtype), put, atol, **options, **cutoffs)


@pytest.mark.parametrize("seed", range(40))
def test_random_options(seed):
    rng = np.random.default_rng(seed)
    n_volumes = int(rng.choice([2, 3, 5, 20, 40, 100, 300]))
    filters = [{}, {"filter": "cosine", "high_pass": 0.03}, {"filter": False}]
    if n_volumes > 33:
        filters += [{"high_pass": 0.01}, {"low_pass": 0.15, "high_pass": 0.02, "butterworth__padtype": "even"}]
        filters += [{"low_pass": 0.1, "butterworth__order": 3}, {"high_pass": 0.01, "butterworth__padlen": 3}]
    options = dict(filters[rng.integers(len(filters))])
    options["detrend"] = bool(rng.integers(2))
    options["standardize"] = [True, False, "zscore_sample", "psc"][rng.integers(4)]
    options["t_r"] = float(rng.choice([0.8, 2.0]))
    if rng.integers(2):
        options["confounds"] = motion(n_volumes, min(3, n_volumes - 1), seed)
        options["standardize_confounds"] = bool(rng.integers(2))
    if n_volumes > 5 and options.get("filter") in (False, "cosine"):
        options["sample_mask"] = rng.permutation(n_volumes)[: n_volumes * 3 // 4]
    assert_equals_nilearn(bold(n_volumes, seed=seed), **options)


@pytest.mark.parametrize("high_pass", [None, 0.01])
def test_one_volume(high_pass):
    for standardize in ("zscore_sample", "psc", None):
        assert_equals_nilearn(bold(1), standardize=standardize)
    if high_pass:
        with pytest.warns(UserWarning, match="Cosine filter was not created"):
            cleaned = clean(bold(1), filter="cosine", high_pass=high_pass, detrend=False, standardize=None)
        np.testing.assert_array_equal(cleaned, bold(1))


@pytest.mark.parametrize("detrend", [True, False])
@pytest.mark.parametrize("given", ["one volume", "one kept", "one run of one volume"])
def test_psc_of_one_volume_keeps_its_values(put, given, detrend):
    """Confounds explain a single volume completely; "psc" puts its values back, as in nilearn. z-scores are 0."""
    confounds, n = motion(20), 1 if given == "one volume" else 20
    options = {"confounds": confounds[:n], "detrend": detrend, "standardize": "psc"}
    if given == "one kept":
        options["sample_mask"] = np.array([3])
    if given == "one run of one volume":
        options["runs"] = (np.arange(20) == 1).astype(int)
    signals = bold(n)
    cleaned = assert_equals_nilearn(signals, put, **options)
    row, of_volume = {"one volume": (0, 0), "one kept": (0, 3), "one run of one volume": (19, 1)}[given]
    np.testing.assert_allclose(cleaned[row], signals[of_volume])
    for standardize in ("zscore_sample", None):
        cleaned = assert_equals_nilearn(signals, put, **{**options, "standardize": standardize})
        np.testing.assert_allclose(cleaned[row], 0, atol=1e-10)


@pytest.mark.parametrize("confounds", [None, np.zeros((1, 2)), np.zeros((1, 0)), np.full((1, 1), 7.0)])
def test_psc_of_one_volume_with_few_confounds(confounds):
    np.testing.assert_allclose(assert_equals_nilearn(bold(1), confounds=confounds, standardize="psc"), bold(1))


def test_zscore_of_the_population():
    cleaned = clean(bold(50), standardize="zscore", confounds=motion(50))
    np.testing.assert_allclose(cleaned[:, :-1].var(axis=0), 1, rtol=1e-12)
    sample = clean(bold(50), confounds=motion(50))
    np.testing.assert_allclose(cleaned, sample * np.sqrt(50 / 49), atol=1e-12)


def test_runs(put):
    runs = np.repeat(["b", "a"], [60, 40])
    signals, confounds = bold(100), motion(100)
    for options in ({}, {"high_pass": 0.01}, {"filter": "cosine", "high_pass": 0.01}):
        assert_equals_nilearn(signals, put, runs=runs, confounds=confounds, **options)


def test_runs_take_all_options():
    """nilearn ignores these options for runs, and supports sample masks only for runs labelled 0, 1, ..."""
    runs = np.repeat([3, 7], [60, 40])
    signals, confounds = bold(100), motion(100)
    masks = [np.delete(np.arange(60), [0, 20]), np.delete(np.arange(40), [5, 39])]
    options = {
        "standardize_confounds": False,
        "extrapolate": True,
        "butterworth__padlen": 5,
        "high_pass": 0.01,
        "standardize": None,
    }
    expected = [
        clean(signals[runs == run], confounds=confounds[runs == run], sample_mask=mask, **options)
        for run, mask in zip([3, 7], masks, strict=True)
    ]
    cleaned = clean(signals, runs=runs, confounds=confounds, sample_mask=masks, **options)
    np.testing.assert_array_equal(cleaned, np.vstack(expected))
    assert np.abs(cleaned - clean(signals, runs=runs, sample_mask=masks, high_pass=0.01, standardize=None)).max() > 0.01


def test_runs_of_another_length():
    expected = r"^The length of the run vector \(3\) does not match the length of the signals \(50\)$"
    for function in (clean, nilearn.signal.clean):
        with pytest.raises(ValueError, match=expected):
            function(bold(50), runs=[0, 0, 1])


def cleaned_by_definition(signals, kept, confounds=None, extrapolate=False, **cutoffs):
    """Interpolate, clean the whole by nilearn, then censor: what scrubbing with a filter should give."""

    def prepared(values):
        values = values.copy()
        censored = np.setdiff1d(np.arange(len(values)), kept)
        values[censored] = CubicSpline(kept, values[kept])(censored)
        rows = slice(None) if extrapolate else slice(kept[0], kept[-1] + 1)
        filtered = nilearn.signal.clean(values[rows], standardize=None, **cutoffs)
        return filtered[kept if extrapolate else kept - kept[0]]

    cleaned = prepared(signals)
    if confounds is not None:
        confounds = prepared(confounds)
        confounds = confounds / confounds.std(axis=0) - confounds.mean(axis=0) / confounds.std(axis=0)
        cleaned = cleaned - confounds @ np.linalg.lstsq(confounds, cleaned, rcond=None)[0]
    return cleaned


@pytest.mark.parametrize("extrapolate", [False, True])
@pytest.mark.parametrize("censored", [[20, 21], [0, 1, 40], [10, 69], [0, 1, 2, 77, 78, 79], list(range(0, 80, 7))])
def test_scrubbing_with_a_filter(put, censored, extrapolate):
    kept = np.setdiff1d(np.arange(80), censored)
    signals, confounds = bold(80), motion(80)
    expected = cleaned_by_definition(signals, kept, confounds, extrapolate, high_pass=0.01, low_pass=0.1)
    signals[censored] += 1000
    confounds[censored] -= 500
    boolean = np.isin(np.arange(80), kept)
    for mask in (kept, boolean, [kept], list(kept)):
        cleaned = clean(
            put(signals),
            sample_mask=mask,
            confounds=confounds,
            high_pass=0.01,
            low_pass=0.1,
            standardize=None,
            extrapolate=extrapolate,
        )
        np.testing.assert_allclose(backend.to_host(cleaned), expected, rtol=0, atol=1e-8)


def test_scrubbing_equals_nilearn_where_it_is_right():
    """nilearn interpolates volume c only if volume T-1-c is kept: without such pairs the results are the same."""
    signals, confounds = bold(80), motion(80)
    for censored in ([20, 21], [0, 1, 40, 75]):
        kept = np.setdiff1d(np.arange(80), censored)
        for standardize in ("zscore_sample", "psc", None):
            options = {"confounds": confounds, "high_pass": 0.01, "standardize": standardize}
            assert_equals_nilearn(signals, sample_mask=kept, **options)


def test_scrubbing_where_nilearn_is_wrong():
    """Two spikes, placed symmetrically and censored: nilearn leaves them in and filters them into their neighbours."""
    signals = bold(80)[:, :1]
    kept = np.setdiff1d(np.arange(80), [10, 69])
    expected = cleaned_by_definition(signals, kept, high_pass=0.01)
    signals[[10, 69]] += 1000
    options = {"sample_mask": kept, "high_pass": 0.01, "standardize": None}
    assert np.abs(clean(signals, **options) - expected).max() < 1e-9
    assert np.abs(nilearn.signal.clean(signals, **options) - expected).max() > 30


def test_censored_ends_where_nilearn_is_wrong():
    """Spikes at both ends, censored: nilearn returns the spikes themselves, in place of the volumes kept."""
    signals = bold(80)[:, :1]
    signals[[0, 1, 78, 79]] += 1000
    options = {"sample_mask": np.arange(2, 78), "high_pass": 0.01, "standardize": None}
    assert np.abs(clean(signals, **options)).max() < 10
    assert np.abs(nilearn.signal.clean(signals, **options)).max() > 500


@pytest.mark.parametrize("options", [{"high_pass": 0.01}, {"filter": "cosine", "high_pass": 0.01}, {}])
def test_arguments_are_not_modified(put, options):
    """nilearn shifts an int32 `sample_mask` in place; read-only arguments must do."""
    signals, confounds, mask = bold(60, dtype=np.float32), motion(60), np.arange(3, 57, dtype=np.int32)
    signals[5, 2] = np.nan
    given = [put(signals), confounds, mask]
    for array in (signals, confounds, mask):
        array.flags.writeable = False
    cleaned = clean(given[0], confounds=confounds, sample_mask=mask, ensure_finite=True, **options)
    assert cleaned.shape == (54, 6)
    np.testing.assert_array_equal(backend.to_host(given[0]), signals)
    writeable = np.arange(3, 57, dtype=np.int32)
    nilearn.signal.clean(bold(60), sample_mask=writeable, high_pass=0.01)
    assert writeable[0] == 0


def test_library_device_and_order(put):
    signals = put(bold(60, dtype=np.float32))
    for options in ({}, {"high_pass": 0.01}, {"sample_mask": [1, 2, 3]}, {"standardize": None, "high_pass": 0.01}):
        cleaned = clean(signals, **options)
        xp = backend.array_namespace(signals, cleaned)
        assert cleaned.dtype == xp.float32
        assert backend.device_of(cleaned) == backend.device_of(signals)
        assert not backend.is_numpy(cleaned) or (cleaned.flags.c_contiguous and cleaned is not signals)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8", "int32", "int64", "uint64", "bool"])
@pytest.mark.parametrize("options", [{}, {"low_pass": 0.1}, {"low_pass": 0.1, "butterworth__copy": True}])
def test_dtypes(dtype, options):
    signals = np.random.default_rng(0).integers(0, 2, (40, 3)).astype(dtype)
    expected = nilearn.signal.clean(signals, **options)
    cleaned = clean(signals, **options)
    assert cleaned.dtype == expected.dtype
    np.testing.assert_allclose(cleaned, expected, rtol=0, atol=1e-9 if dtype.endswith("64") else 1e-4)


@pytest.mark.parametrize("options", [{}, {"detrend": False}, {"low_pass": 0.1, "detrend": False}, {"high_pass": 0.01}])
def test_what_is_explained_in_full_is_zero(put, options):
    """Constant signals and copies of a confound; nilearn can return unit variance of rounding noise."""
    signals, confounds = bold(60), motion(60)
    signals[:, 0], signals[:, 1] = 1000.1, confounds[:, 2] * 3 - 7
    cleaned = backend.to_host(clean(put(signals), confounds=confounds, **options))
    np.testing.assert_array_equal(cleaned[:, :2], 0)
    np.testing.assert_allclose(cleaned[:, 2:-1].std(axis=0, ddof=1), 1)
    if not options:
        assert nilearn.signal.clean(signals, confounds=confounds)[:, 1].std() > 0.9


@pytest.mark.parametrize("standardize_confounds", [True, False])
def test_confounds_that_detrending_removes(standardize_confounds):
    """nilearn scales the rounding noise that is left of a trend to unit variance and takes it for a confound."""
    trend = np.linspace(0.1, 7.7, 60)
    options = {"standardize": None, "standardize_confounds": standardize_confounds}
    np.testing.assert_allclose(clean(bold(60), confounds=trend, **options), clean(bold(60), **options), atol=1e-12)


def test_integer_confounds_keep_their_digits():
    """nilearn casts them to float32."""
    confounds = np.arange(60, dtype=np.int32) ** 4
    expected = nilearn.signal.clean(bold(60), confounds=confounds.astype(np.float64))
    np.testing.assert_allclose(clean(bold(60), confounds=confounds), expected, rtol=0, atol=1e-9)


def test_values_that_are_not_finite(put):
    signals = bold(50)
    signals[[3, 7, 9], [0, 1, 1]] = np.nan, np.inf, -np.inf
    for options in ({}, {"high_pass": 0.01}, {"standardize": "psc", "detrend": False}):
        assert_equals_nilearn(signals, put, ensure_finite=True, **options)
    cleaned = backend.to_host(clean(put(np.where(np.isinf(signals), np.nan, signals)), high_pass=0.01))
    assert np.isnan(cleaned[:, :2]).all()
    assert np.isfinite(cleaned[:, 2:]).all()
    with pytest.raises(ValueError, match="use ensure_finite=True"):
        clean(put(signals), sample_mask=np.arange(2, 48), high_pass=0.01)


def test_confounds_as_file_and_table(tmp_path):
    frame = pd.DataFrame(motion(50), columns=list("abcd"))
    path = tmp_path / "confounds.tsv"
    frame.to_csv(path, sep="\t", index=False)
    expected = nilearn.signal.clean(bold(50), confounds=frame.to_numpy(), high_pass=0.01)
    for confounds in (path, str(path), frame, [frame[["a", "b"]], path], [frame["a"], frame[["b", "c", "d"]]]):
        np.testing.assert_allclose(clean(bold(50), confounds=confounds, high_pass=0.01), expected, atol=1e-9)


def test_confounds_without_columns_and_constant_ones():
    np.testing.assert_array_equal(clean(bold(50), confounds=motion(50)[:, :0]), clean(bold(50)))
    confounds = np.column_stack((motion(50), np.ones(50)))
    for options in ({}, {"filter": "cosine", "high_pass": 0.01}, {"standardize_confounds": False, "detrend": False}):
        assert_equals_nilearn(bold(50), confounds=confounds, standardize="psc", **options)


def test_nan_in_censored_confounds():
    """The first volume of fMRIPrep's derivatives is n/a: it may be censored, and must not be used."""
    confounds = motion(50)
    confounds[0, 1] = np.nan
    for options in ({"high_pass": 0.01}, {"filter": "cosine", "high_pass": 0.01}, {}):
        expected = clean(bold(50), confounds=np.nan_to_num(confounds), sample_mask=np.arange(1, 50), **options)
        cleaned = clean(bold(50), confounds=confounds, sample_mask=np.arange(1, 50), **options)
        np.testing.assert_allclose(cleaned, expected, atol=1e-9)
        with pytest.raises(ValueError, match=r"are in column 1 \(volume 0\)"):
            clean(bold(50), confounds=confounds, **options)


@pytest.mark.parametrize("correlation", [0.89, 0.91, -0.95, 1])
def test_user_supplied_cosines(correlation):
    """One that correlates with a drift by more than 0.9 makes the filter stand back, with a warning."""
    drifts = cosine_drifts(100, 2.5, 0.01)
    other = drifts[:, 2] * np.sqrt(1 - correlation**2)
    confounds = np.column_stack((motion(100), 3 * (correlation * drifts[:, 1] + other)))
    assert_equals_nilearn(bold(100), confounds=confounds, filter="cosine", high_pass=0.01)


def test_no_signals():
    assert clean(np.empty((50, 0)), high_pass=0.01, confounds=motion(50), sample_mask=np.arange(40)).shape == (40, 0)


@pytest.mark.filterwarnings("ignore:Detrending of 3D signal", "ignore:Standardization of 3D signal")
@pytest.mark.parametrize("n_volumes", [1, 50])
@pytest.mark.parametrize("options", [{"detrend": False, "standardize": None}, {"detrend": True}], ids=str)
def test_result_is_never_the_users_array(n_volumes, options):
    signals = np.random.default_rng(0).normal(size=(n_volumes, 3))
    assert not np.shares_memory(clean(signals, **options), signals)
