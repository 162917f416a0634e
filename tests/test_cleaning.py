"""Each step of cleaning against loops over columns and against SciPy."""

import numpy as np
import pytest
from nilearn import signal as nilearn_signal
from nilearn.signal import create_cosine_drift
from scipy.interpolate import CubicSpline
from scipy.signal import detrend as scipy_detrend

from gpumask import backend
from gpumask.kernels import cleaning


def random_signals(n_volumes=40, n_signals=5, seed=0):
    rng = np.random.default_rng(seed)
    return 100 + rng.standard_normal((n_volumes, n_signals)) * 3 + np.arange(n_volumes)[:, None]


def assert_close(actual, expected, like, atol=1e-10):
    xp = backend.array_namespace(actual, like)
    assert backend.device_of(actual) == backend.device_of(like)
    assert actual.dtype == xp.float64
    np.testing.assert_allclose(backend.to_host(actual), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_volumes", [2, 3, 40, 301])
def test_detrend(put, n_volumes, dtype):
    host = random_signals(n_volumes).astype(dtype)
    host.flags.writeable = False
    signals = put(host)
    assert_close(cleaning.detrend(signals), scipy_detrend(host.astype(np.float64), axis=0), signals)
    np.testing.assert_array_equal(backend.to_host(signals), host)


def test_detrend_of_one_volume(put):
    signals = put(random_signals(1))
    expected = "^Detrending of 3D signal has been requested but would lead to zero values. Skipping.$"
    with pytest.warns(UserWarning, match=expected):
        assert_close(cleaning.detrend(signals), random_signals(1), signals)


def test_regress_out(put):
    host, confounds = random_signals(), random_signals(40, 3, seed=1)
    signals = put(host)
    basis = put(cleaning.orthonormal_basis(confounds))
    residuals = [y - confounds @ np.linalg.lstsq(confounds, y, rcond=None)[0] for y in host.T]
    assert_close(cleaning.regress_out(signals, basis), np.stack(residuals, axis=1), signals)


def test_orthonormal_basis_drops_dependent_columns():
    rng = np.random.default_rng(0)
    confounds = rng.standard_normal((30, 4))
    confounds = np.column_stack((confounds, confounds[:, 0] + confounds[:, 1], np.zeros(30)))
    basis = cleaning.orthonormal_basis(confounds)
    assert basis.shape == (30, 4)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-13)
    np.testing.assert_allclose(basis @ (basis.T @ confounds), confounds, atol=1e-12)


def test_orthonormal_basis_tolerance():
    one = np.zeros((4, 2))
    one[0, 0], one[1, 1] = 1, 99 * np.finfo(float).eps
    assert cleaning.orthonormal_basis(one).shape == (4, 1)
    one[1, 1] = 101 * np.finfo(float).eps
    assert cleaning.orthonormal_basis(one).shape == (4, 2)


def test_more_confounds_than_volumes_leave_nothing():
    host = random_signals(6)
    basis = cleaning.orthonormal_basis(np.random.default_rng(0).standard_normal((6, 9)))
    np.testing.assert_allclose(cleaning.regress_out(host, basis), 0, atol=1e-11)


@pytest.mark.parametrize(("method", "ddof"), [("zscore_sample", 1), ("zscore", 0)])
def test_zscore(put, method, ddof):
    host = random_signals()
    host[:, 2] = 7.25  # constant: becomes 0
    expected = [(y - y.mean()) / (y.std(ddof=ddof) or 1) for y in host.T]
    signals = put(host)
    assert_close(cleaning.standardize(signals, method), np.stack(expected, axis=1), signals)


def test_zscore_of_rounding_noise(put):
    """A standard deviation above the noise makes a signal, one up to it doesn't."""
    host = np.outer([1, -1, 1, -1], [1e-15, 1e-16, 3.0, 3.0])
    signals = put(host)
    unit = host[:, 2] / host[:, 2].std(ddof=1)
    zeros = np.zeros(4)
    assert_close(cleaning.standardize(signals, "zscore_sample"), np.column_stack((unit, zeros, unit, unit)), signals)
    given = cleaning.standardize(signals, "zscore_sample", noise=put(np.array([0, 0, 3.0, 4.0])))
    assert_close(given, np.column_stack((unit, unit, unit, zeros)), signals)


def test_zscores_of_a_large_mean_are_centred(put):
    """A mean of 10^10 is known to 10^-6; what that leaves would project on the other signals' means."""
    host = 1e10 + np.random.default_rng(0).standard_normal((100, 3))
    assert abs(backend.to_host(cleaning.standardize(put(host), "zscore_sample")).mean(axis=0)).max() < 1e-14


def test_rounding_noise(put):
    signals = put(np.array([[1.0, -8.0, 0.0], [2.0, 4.0, 0.0]]))
    assert_close(cleaning.rounding_noise(signals), 100 * 2.0**-52 * np.array([2, 8, 0]), signals, atol=0)


def test_psc(put):
    host = random_signals() * np.array([1, -1, 1, 1, 1])
    expected = [100 * (y - y.mean()) / abs(y.mean()) for y in host.T]
    signals = put(host)
    assert_close(cleaning.standardize(signals, "psc"), np.stack(expected, axis=1), signals)


def test_psc_puts_removed_means_back(put):
    host = random_signals()
    centred = host - host.mean(axis=0)
    signals = put(centred)
    expected = 100 * centred / host.mean(axis=0)
    assert_close(cleaning.standardize(signals, "psc", original_mean=put(host.mean(axis=0))), expected, signals)


def test_psc_decides_once_for_all_signals():
    """The ratio of the means is one number: means of 1 stay as they are beside one of 100, and are put back without."""
    wave = np.tile([1.0, -1.0], 10)[:, None]
    signals = wave + np.array([[1.0, 100.0]])
    original = np.array([100.0, 100.0])
    together = cleaning.standardize(signals, "psc", original_mean=original)
    alone = cleaning.standardize(signals[:, :1], "psc", original_mean=original[:1])
    np.testing.assert_allclose(together[0], [100, 1])
    np.testing.assert_allclose(alone[0], [100 / 101])


@pytest.mark.parametrize(("original", "put_back"), [(9.9, False), (10.1, True)])
def test_psc_puts_means_back_below_a_tenth(original, put_back):
    signals = np.tile([2.0, 0.0], 10)[:, None]  # of mean 1
    result = cleaning.standardize(signals, "psc", original_mean=np.array([original]))
    np.testing.assert_allclose(result[0], 100 / (1 + original) if put_back else 100)


def test_psc_without_mean(put):
    host = np.column_stack((np.tile([1.0, -1.0], 10), np.arange(1.0, 21)))
    signals = put(host)
    expected = (
        "^psc standardization strategy is meaningless for features that have a mean of 0. "
        "These time series are set to 0.$"
    )
    with pytest.warns(UserWarning, match=expected):
        result = cleaning.standardize(signals, "psc")
    assert_close(result, np.column_stack((np.zeros(20), 100 * (host[:, 1] / 10.5 - 1))), signals)


@pytest.mark.parametrize("method", ["zscore_sample", "zscore", "psc"])
def test_standardize_one_volume(put, method):
    signals = put(random_signals(1))
    expected = "^Standardization of 3D signal has been requested but would lead to zero values. Skipping.$"
    with pytest.warns(UserWarning, match=expected):
        assert_close(cleaning.standardize(signals, method), random_signals(1), signals)


@pytest.mark.filterwarnings("ignore:Standardization of 3D signal")
@pytest.mark.parametrize(("left", "expected"), [(0.0, 10.0), (0.99, 10.99), (1.01, 1.01), (10.0, 10.0)])
def test_psc_puts_means_of_one_volume_back_below_a_tenth(put, left, expected):
    signals = put(np.array([[left, -left]]))
    result = cleaning.standardize(signals, "psc", original_mean=put(np.array([10.0, -10.0])))
    assert_close(result, np.array([[expected, -expected]]), signals)


def test_unknown_method():
    with pytest.raises(ValueError, match=r"^`method` must be 'zscore_sample', 'zscore' or 'psc', got 'robust'.$"):
        cleaning.standardize(np.zeros((3, 1)), "robust")


@pytest.mark.parametrize("extrapolate", [False, True])
@pytest.mark.parametrize("censored", [[5, 6, 20], [0, 39], [0, 1, 2, 10, 37], [], list(range(1, 38))])
def test_interpolate_censored(put, censored, extrapolate):
    host = random_signals()
    kept = np.setdiff1d(np.arange(40), censored)
    host[censored] = np.nan  # never read
    expected = np.stack([CubicSpline(kept, y[kept])(np.arange(40)) for y in host.T], axis=1)
    expected[kept] = host[kept]
    if not extrapolate:
        expected = expected[kept[0] : kept[-1] + 1]
    signals = put(host)
    scale = max(1.0, np.abs(expected).max())
    actual = cleaning.interpolate_censored(signals, kept, extrapolate=extrapolate)
    assert_close(actual, expected, signals, atol=1e-10 * scale)


def test_interpolate_long_run():
    """More knots than one block of the weights' computation."""
    rng = np.random.default_rng(0)
    host = rng.standard_normal((700, 2))
    kept = np.sort(rng.permutation(700)[:600])
    expected = CubicSpline(kept, host[kept])(np.arange(kept[0], kept[-1] + 1))
    np.testing.assert_allclose(cleaning.interpolate_censored(host, kept), expected, rtol=0, atol=1e-11)


def test_interpolation_refuses(put):
    signals = put(random_signals())
    with pytest.raises(ValueError, match=r"^At least 2 volumes must be kept to interpolate the censored ones, got 1.$"):
        cleaning.interpolate_censored(signals, np.array([3]))
    expected = "^The indices of the kept volumes must be strictly increasing to interpolate the censored ones.$"
    for kept in ([3, 2, 5], [2, 3, 3]):
        with pytest.raises(ValueError, match=expected):
            cleaning.interpolate_censored(signals, np.array(kept))
    host = random_signals()
    host[4, 1] = np.inf
    expected = "^The signals hold NaN or infinite values and can't be interpolated: use ensure_finite=True.$"
    with pytest.raises(ValueError, match=expected):
        cleaning.interpolate_censored(put(host), np.arange(3, 9))


@pytest.mark.parametrize(
    ("n_volumes", "t_r", "high_pass"), [(200, 2.0, 0.01), (156, 0.72, 0.008), (97, 1.37, 0.1), (10, 2.0, 0.01)]
)
def test_cosine_drifts(n_volumes, t_r, high_pass):
    drifts = cleaning.cosine_drifts(n_volumes, t_r, high_pass)
    np.testing.assert_allclose(
        drifts, create_cosine_drift(high_pass, np.arange(n_volumes) * t_r)[:, :-1], rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(drifts.T @ drifts, np.eye(drifts.shape[1]), atol=1e-12)


def test_number_of_drifts_equals_nilearn():
    """Where the cut-off meets a drift's frequency rounding decides: so it does at 400 volumes."""
    for n_volumes in (2, 199, 200, 201, 399, 400, 401):
        ours = cleaning.cosine_drifts(n_volumes, 0.7, 0.05).shape[1]
        assert ours == create_cosine_drift(0.05, np.arange(n_volumes) * 0.7).shape[1] - 1


def test_saturating_drifts():
    expected = (
        "^High-pass filter will span all accessible frequencies and saturate the design matrix. "
        "You may want to reduce the high_pass value.The provided value is 0.25 Hz$"
    )
    with pytest.warns(UserWarning, match=expected):
        assert cleaning.cosine_drifts(10, 2.0, 0.25).shape == (10, 9)


def test_drifts_of_one_volume():
    assert cleaning.cosine_drifts(1, 2.0, 0.01).shape == (1, 0)


@pytest.mark.parametrize("detrend", [True, False])
def test_high_variance_confounds(put, detrend):
    rng = np.random.default_rng(0)
    series = rng.standard_normal((30, 400)) * rng.uniform(0.5, 5, 400) + 3
    ours = cleaning.high_variance_confounds(put(series), n_confounds=3, percentile=5, detrend=detrend)
    theirs = nilearn_signal.high_variance_confounds(series.copy(), n_confounds=3, percentile=5, detrend=detrend)
    ours = backend.to_host(ours)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours * np.sign((ours * theirs).sum(axis=0)), theirs, rtol=0, atol=1e-9)


def test_high_variance_confounds_of_integers_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    series = rng.integers(-300, 300, (30, 1000)).astype(np.int16)
    whole = cleaning.high_variance_confounds(series)
    monkeypatch.setattr(cleaning, "_BLOCK", 64)
    np.testing.assert_array_equal(cleaning.high_variance_confounds(series), whole)
    theirs = nilearn_signal.high_variance_confounds(series.astype(float))
    np.testing.assert_allclose(np.abs((whole * theirs).sum(axis=0)), 1, atol=1e-9)
