"""The checks of ``clean``: warnings and errors are those of ``nilearn.signal.clean``, or say what is wrong."""

import warnings

import nilearn.signal
import numpy as np
import pytest

from gpumask.signal import clean

SIGNALS = np.random.default_rng(0).standard_normal((50, 4)) * [0, 1, 2, 3] + [0, 10, 20, 30]
CONFOUNDS = np.random.default_rng(1).standard_normal((50, 3))


def messages(function, *args, **options):
    """The messages of the UserWarnings: not of nilearn's FutureWarnings and divisions by 0."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        function(*args, **options)
    return {str(w.message) for w in record if w.category is UserWarning}


@pytest.mark.parametrize(
    "options",
    [
        {"filter": "cosine", "high_pass": 1e-4},
        {"filter": "cosine", "high_pass": 0.25},
        {"filter": "cosine", "high_pass": 0.01, "low_pass": 0.1},
        {"filter": False, "high_pass": 0.01},
        {"confounds": CONFOUNDS, "detrend": False, "standardize_confounds": False},
        {"low_pass": 0.3},
        {"low_pass": 0.4, "high_pass": 0.3},
        {"standardize": "psc"},
    ],
)
def test_same_warnings(options):
    theirs = messages(nilearn.signal.clean, SIGNALS.copy(), **options)
    assert theirs
    assert messages(clean, SIGNALS, **options) == theirs


@pytest.mark.parametrize(
    "options",
    [
        {"detrend": 1},
        {"standardize_confounds": "yes"},
        {"high_pass": "0.01"},
        {"low_pass": True},
        {"t_r": [2.0]},
        {"ensure_finite": 3},
        {"filter": "boxcar"},
        {"filter": None},
        {"filter": "cosine"},
        {"filter": "cosine", "high_pass": 0.01, "t_r": None},
        {"low_pass": 0.1, "t_r": None},
        {"low_pass": 0.01, "high_pass": 0.1},
        {"high_pass": 0.0},
        {"low_pass": 0.1, "butterworth__padtype": "zero"},
        {"confounds": CONFOUNDS[:49]},
        {"confounds": np.zeros((50, 1, 1))},
        {"sample_mask": 3},
        {"sample_mask": np.array([-1, 3])},
        {"sample_mask": [np.arange(3), np.arange(3)]},
        {"sample_mask": np.arange(60) // 2},
        {"sample_mask": np.array([3, 60])},
        {"runs": np.zeros(49)},
    ],
    ids=lambda options: "-".join(options),
)
def test_same_errors(options):
    with pytest.raises(Exception) as theirs:
        nilearn.signal.clean(SIGNALS.copy(), **options)
    with pytest.raises(type(theirs.value)) as ours:
        clean(SIGNALS.copy(), **options)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"standardize": "robust"},
            ValueError,
            "'standardize' must be one of ('zscore_sample', 'zscore', 'psc', True, False, None).\n"
            "'robust' was provided.",
        ),
        ({"low_pass": 0.1, "t_r": 0}, ValueError, "`t_r` must be a positive number of seconds, got 0."),
        (
            {"higpass": 0.01},
            TypeError,
            "clean() got an unexpected keyword argument 'higpass'. Use its parameters or butterworth__order, "
            "butterworth__padtype, butterworth__padlen, butterworth__copy.",
        ),
        (
            {"low_pass": 0.1, "butterworth__padlen": 50},  # nilearn passes SciPy's on: "greater than padlen"
            ValueError,
            "50 volumes are left, but this filter needs 51 or more.",
        ),
        (
            {"sample_mask": [3, 2, 1], "low_pass": 0.1},
            ValueError,
            "The indices of the kept volumes must be strictly increasing to interpolate the censored ones.",
        ),
    ],
)
def test_own_errors(options, error, message):
    with pytest.raises(error) as raised:
        clean(SIGNALS.copy(), **options)
    assert str(raised.value) == message


def test_signals_must_be_a_matrix():
    expected = r"^`signals` must have two dimensions, \(n_volumes, n_signals\), got the shape \(50,\)\.$"
    with pytest.raises(ValueError, match=expected):
        clean(SIGNALS[:, 0])


def test_no_future_warning():
    for standardize in (True, False, "zscore", None):
        clean(SIGNALS, standardize=standardize)  # warnings are errors
