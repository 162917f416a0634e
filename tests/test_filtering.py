"""The Butterworth filter against SciPy, column by column, and against nilearn."""

import warnings

import numpy as np
import pytest
from nilearn.signal import butterworth
from scipy import signal as scipy_signal
from scipy.fft import next_fast_len

from gpumask import backend
from gpumask.kernels import filtering
from gpumask.kernels.filtering import butterworth_sos, fft_filtfilt

HIGH, LOW, BAND = (None, 0.008), (0.08, None), (0.09, 0.008)


def drifting(n_volumes, n_signals=3, seed=0):
    """Random walks around 1000: a large offset and a trend, which a filter must survive."""
    rng = np.random.default_rng(seed)
    return 1000 + rng.standard_normal((n_volumes, n_signals)).cumsum(axis=0) * rng.uniform(0.1, 10, n_signals)


def reference(signals, sos, **padding):
    columns = [scipy_signal.sosfiltfilt(sos, column, **padding) for column in np.asarray(signals, np.float64).T]
    return np.stack(columns, axis=1)


def assert_agree(actual, expected, signals, tolerance=1e-9):
    error = np.abs(backend.to_host(actual) - expected).max(axis=0)
    assert np.all(error <= tolerance * signals.std(axis=0)), error / signals.std(axis=0)


@pytest.mark.parametrize("cutoffs", [HIGH, LOW, BAND], ids=["high", "low", "band"])
@pytest.mark.parametrize(("n_volumes", "t_r"), [(34, 0.72), (61, 3.0), (200, 2.0), (500, 0.5)])
def test_equals_scipy(put, n_volumes, t_r, cutoffs):
    signals = drifting(n_volumes)
    sos = butterworth_sos(t_r, *cutoffs)
    assert_agree(fft_filtfilt(put(signals), sos), reference(signals, sos), signals)


@pytest.mark.parametrize("t_r", [0.5, 3.0])
@pytest.mark.parametrize("cutoffs", [HIGH, BAND, (None, 0.001)])
def test_equals_scipy_on_a_long_run(t_r, cutoffs):
    signals = drifting(2000)
    sos = butterworth_sos(t_r, *cutoffs)
    assert_agree(fft_filtfilt(signals, sos), reference(signals, sos), signals)


@pytest.mark.parametrize(
    "padding",
    [
        {"padtype": "even"},
        {"padtype": "constant", "padlen": 7},
        {"padtype": "odd", "padlen": 0},
        {"padtype": "odd", "padlen": 59},
        {"padtype": None},
        {"padtype": None, "padlen": 200},
    ],
)
def test_padding_equals_scipy(put, padding):
    signals = drifting(60)
    sos = butterworth_sos(2.0, *BAND)
    assert_agree(fft_filtfilt(put(signals), sos, **padding), reference(signals, sos, **padding), signals)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_default_padding_of_other_orders(order):
    signals = drifting(40)
    for cutoffs in (HIGH, LOW, BAND):
        sos = butterworth_sos(2.0, *cutoffs, order=order)
        assert_agree(fft_filtfilt(signals, sos), reference(signals, sos), signals)


def test_keeps_library_device_shape_and_input(put):
    host = drifting(50, 6).astype(np.float32)
    host.flags.writeable = False
    signals = put(host)
    sos = butterworth_sos(2.0, *BAND)
    filtered = fft_filtfilt(signals, sos)
    xp = backend.array_namespace(signals, filtered)
    assert backend.device_of(filtered) == backend.device_of(signals)
    assert filtered.dtype == xp.float64
    np.testing.assert_array_equal(backend.to_host(signals), host)
    cube = fft_filtfilt(xp.reshape(signals, (50, 2, 3)), sos)
    line = fft_filtfilt(signals[:, 4], sos)
    assert (cube.shape, line.shape) == ((50, 2, 3), (50,))
    np.testing.assert_allclose(backend.to_host(cube).reshape(50, 6), backend.to_host(filtered), atol=1e-10)
    np.testing.assert_allclose(backend.to_host(line), backend.to_host(filtered)[:, 4], atol=1e-10)


def test_columns_do_not_mix(put):
    signals = drifting(50)
    signals[20, 1] = np.nan
    sos = butterworth_sos(2.0, *HIGH)
    filtered = backend.to_host(fft_filtfilt(put(signals), sos))
    assert np.isnan(filtered[:, 1]).all()
    assert_agree(filtered[:, ::2], reference(signals[:, ::2], sos), signals[:, ::2])


def test_constant_signals(put):
    signals = put(np.full((50, 2), 7.3))
    np.testing.assert_allclose(backend.to_host(fft_filtfilt(signals, butterworth_sos(2.0, *LOW))), 7.3, rtol=1e-12)
    np.testing.assert_array_equal(backend.to_host(fft_filtfilt(signals, butterworth_sos(2.0, *BAND))), 0)


def test_no_signals():
    assert fft_filtfilt(np.empty((50, 0)), butterworth_sos(2.0, *BAND)).shape == (50, 0)


def test_too_short():
    with pytest.raises(ValueError, match=r"^33 volumes are left, but this filter needs 34 or more.$"):
        fft_filtfilt(np.zeros((33, 1)), butterworth_sos(2.0, *BAND))
    with pytest.raises(ValueError, match=r"^18 volumes are left, but this filter needs 19 or more.$"):
        fft_filtfilt(np.zeros((18, 1)), butterworth_sos(2.0, *HIGH))


def test_unknown_padding():
    expected = r"^Unknown value 'zero' given to padtype. padtype must be 'even', 'odd', 'constant', or None.$"
    with pytest.raises(ValueError, match=expected):
        fft_filtfilt(np.zeros((40, 1)), butterworth_sos(2.0, *HIGH), padtype="zero")


@pytest.mark.parametrize("cutoffs", [HIGH, LOW, BAND])
def test_design_equals_nilearn(cutoffs):
    signals = drifting(80)
    low_pass, high_pass = cutoffs
    expected = butterworth(signals.copy(), 1 / 1.37, low_pass=low_pass, high_pass=high_pass, order=3)
    assert_agree(fft_filtfilt(signals, butterworth_sos(1.37, *cutoffs, order=3)), expected, signals)


@pytest.mark.parametrize(("low_pass", "high_pass", "kind"), [(np.nan, None, "low"), (0.1, np.nan, "high")])
def test_nan_is_no_cutoff(low_pass, high_pass, kind):
    with pytest.raises(ValueError) as caught:
        butterworth_sos(2.0, low_pass, high_pass)
    assert str(caught.value) == f"The {kind} pass cutoff frequency must be a number of Hz, got nan."


def test_design_without_cutoff():
    assert butterworth_sos(2.0) is None


@pytest.mark.filterwarnings("ignore:Casting complex values to real")  # by SciPy 1.16, for a negative cut-off
@pytest.mark.parametrize("cutoffs", [(0.3, None), (0.3, 0.01), (None, 0.25), (-0.1, None), (0.1, -0.1)])
def test_cutoffs_out_of_range_warn_as_nilearn(cutoffs):
    """At the Nyquist frequency or beyond, or negative: the same warning, the same filter."""
    signals = drifting(60)
    low_pass, high_pass = cutoffs
    with pytest.warns(UserWarning, match="The frequency specified") as theirs:
        expected = butterworth(signals.copy(), 0.5, low_pass=low_pass, high_pass=high_pass)
    with pytest.warns(UserWarning, match="The frequency specified") as ours:
        sos = butterworth_sos(2.0, *cutoffs)
    assert [str(w.message) for w in ours] == [str(w.message) for w in theirs]
    if -0.1 not in cutoffs:  # a cut-off of 1e-7 of the Nyquist frequency leaves no stable digits to compare
        assert_agree(fft_filtfilt(signals, sos), expected, signals)


def test_equal_cutoffs_are_no_filter():
    signals = drifting(60)
    with warnings.catch_warnings(record=True) as theirs:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(butterworth(signals.copy(), 0.5, 0.4, 0.3), signals)
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        assert butterworth_sos(2.0, 0.4, 0.3) is None
    assert [str(w.message) for w in ours] == [str(w.message) for w in theirs]
    assert len(ours) == 3


@pytest.mark.parametrize(("low_pass", "high_pass"), [(0.01, 0.1), (0.1, 0.1)])
def test_crossed_cutoffs(low_pass, high_pass):
    expected = (
        f"High pass cutoff frequency ({high_pass}) is greater than or equal to low pass filter frequency ({low_pass}). "
        "This case is not handled by this function."
    )
    with pytest.raises(ValueError) as ours:
        butterworth_sos(2.0, low_pass, high_pass)
    assert str(ours.value) == expected


def test_zero_cutoff():
    with pytest.raises(ValueError, match="critical frequencies must be greater than 0"):
        butterworth_sos(2.0, None, 0.0)


def test_the_length_of_the_fft_is_even():
    """Of odd lengths cuFFT lets columns leak into each other; only a real GPU can show it."""
    for n in range(1, 4000):
        length = filtering.fft_length(n)
        assert length % 2 == 0
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        assert rest == 1
        fast = next_fast_len(n, real=True)
        assert length == fast if fast % 2 == 0 else fast < length < 1.2 * fast + 2


@pytest.mark.parametrize("n_volumes", [60, 115, 120, 150, 200, 265, 300, 480, 515, 540, 850, 900, 940])
@pytest.mark.parametrize(
    "cutoffs", [{"low_pass": 0.1}, {"high_pass": 0.01}, {"low_pass": 0.1, "high_pass": 0.01}], ids=str
)
def test_a_column_does_not_depend_on_its_neighbours(put, n_volumes, cutoffs):
    sos = butterworth_sos(2.0, **({"low_pass": None, "high_pass": None} | cutoffs))
    signals = np.random.default_rng(0).normal(size=(n_volumes, 5))
    signals[:, 1], signals[:, 3] = 0.0, 1e-10 * signals[:, 3]
    filtered = backend.to_host(fft_filtfilt(put(signals), sos))
    assert not filtered[:, 1].any()
    alone = backend.to_host(fft_filtfilt(put(signals[:, 3:4].copy()), sos))
    np.testing.assert_array_equal(filtered[:, 3:4], alone)


def test_columns_are_filtered_in_blocks_with_the_same_bits(put, monkeypatch):
    sos = butterworth_sos(2.0, low_pass=0.1, high_pass=0.01)
    signals = put(np.random.default_rng(0).normal(size=(120, 7)))
    whole = backend.to_host(fft_filtfilt(signals, sos))
    for values in (1, 1200):  # a column at a time, and three with a rest of one
        monkeypatch.setattr(filtering, "_FFT_VALUES", values)
        np.testing.assert_array_equal(backend.to_host(fft_filtfilt(signals, sos)), whole)
