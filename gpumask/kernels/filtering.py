"""Butterworth filtering of all columns at once, without recursion.

Arrays in, arrays out, of the same library and on the same device. Filters are designed on the host.
"""

import warnings

import numpy as np

from gpumask import backend
from gpumask.dlpack import across_libraries

_FFT_VALUES = 2**18  # transformed at a time: 2 MiB, and some copies; long runs would take 100 bytes per sample at once


def butterworth_sos(t_r, low_pass=None, high_pass=None, order=5):
    """Design a Butterworth filter by the cut-off rules of ``nilearn.signal.butterworth``.

    Parameters
    ----------
    t_r : float
        Repetition time, in seconds.
    low_pass, high_pass : float or None, default=None
        Cut-off frequencies, in Hz. Both make a band-pass filter. A cut-off at or above the Nyquist frequency is lowered
        to just below it and a negative one raised to just above zero, each with a warning.
    order : int, default=5
        Order of the filter (a band-pass filter has twice as many poles).

    Returns
    -------
    sos : numpy.ndarray of float64, shape (n_sections, 6), or None
        Second-order sections as SciPy defines them. None if there is nothing to filter: no cut-off was given, or both
        are the same after moving them into the valid range (warned).

    Raises
    ------
    ValueError
        If `high_pass` isn't below `low_pass`, or a cut-off is zero or NaN.
    """
    if low_pass is None and high_pass is None:
        return None
    if low_pass is not None and high_pass is not None and high_pass >= low_pass:
        msg = (
            f"High pass cutoff frequency ({high_pass}) is greater than or equal to low pass filter frequency "
            f"({low_pass}). This case is not handled by this function."
        )
        raise ValueError(msg)
    sampling_rate = 1.0 / t_r
    cutoffs = [
        _valid_cutoff(kind, frequency, sampling_rate * 0.5)
        for kind, frequency in (("high", high_pass), ("low", low_pass))
        if frequency is not None
    ]
    if len(cutoffs) == 2 and cutoffs[0] == cutoffs[1]:
        msg = (
            "Signals are returned unfiltered because band-pass critical frequencies are equal. "
            "Please check that inputs for sampling_rate, low_pass, and high_pass are valid."
        )
        warnings.warn(msg, stacklevel=2)
        return None
    from scipy.signal import butter  # takes longer to import than NumPy: only if it is needed

    kind = "band" if len(cutoffs) == 2 else "low" if high_pass is None else "high"
    return butter(order, cutoffs if kind == "band" else cutoffs[0], kind, output="sos", fs=sampling_rate)


def _valid_cutoff(kind, frequency, nyquist):
    if np.isnan(frequency):
        msg = f"The {kind} pass cutoff frequency must be a number of Hz, got nan."
        raise ValueError(msg)
    eps = np.finfo(np.float32).eps  # the filter is unstable at the very ends (scipy issue 6265)
    if frequency >= nyquist:
        frequency = nyquist - nyquist * 10 * eps
        msg = (
            f"The frequency specified for the {kind} pass filter is too high to be handled by a digital filter "
            f"(superior to Nyquist frequency). It has been lowered to {frequency} (Nyquist frequency)."
        )
        warnings.warn(msg, stacklevel=3)
    elif frequency < 0:
        frequency = nyquist * eps
        msg = (
            f"The frequency specified for the {kind} pass filter is too low to be handled by a digital filter "
            f"(must be non-negative). It has been set to eps: {frequency}."
        )
        warnings.warn(msg, stacklevel=3)
    return frequency


def fft_length(n: int) -> int:
    """Smallest even length for a fast FFT of `n` or more samples.

    For odd lengths cuFFT transforms two rows as one, and they leak into each other. On an H100, a column of zeros next
    to noise came out as 5e-17, which standardizing turned into a z-score.
    """
    from scipy.fft import next_fast_len

    return 2 * next_fast_len((n + 1) // 2, real=True)


@across_libraries
def fft_filtfilt(signals, sos, *, padtype="odd", padlen=None):
    """Filter forward and backward along time: ``scipy.signal.sosfiltfilt(sos, signals, axis=0)`` by FFT.

    A recursive filter that starts in the steady state of the first sample x[0] answers with
    ``h * (x - x[0]) + g x[0]``: h its impulse response, g its gain for a constant. A signal of n samples sees only the
    first n samples of h, so the convolution is exact even where h is far from decayed; nothing is truncated.

    Parameters
    ----------
    signals : array, shape (n_volumes, ...), real floating
        Time along the first axis. Not modified.
    sos : numpy.ndarray, shape (n_sections, 6)
        Second-order sections on the host, as from `butterworth_sos` or SciPy.
    padtype : {"odd", "even", "constant", None}, default="odd"
        How the signals are extended at both ends.
    padlen : int or None, default=None
        Volumes of the extension. None takes SciPy's default, 33 for a band-pass filter of order 5 and 18 for a high- or
        low-pass filter.

    Returns
    -------
    array of float64, shape (n_volumes, ...)
        Agrees with SciPy within 1e-9 of a signal's standard deviation.

    Raises
    ------
    ValueError
        If `padtype` is unknown or the signals aren't longer than `padlen`.
    """
    from scipy.signal import sosfilt

    xp = backend.array_namespace(signals)
    n_volumes = signals.shape[0]
    n_pad = _pad_length(sos, n_volumes, padtype, padlen)
    n = n_volumes + 2 * n_pad
    n_fft = fft_length(2 * n - 1)  # no wrap-around into the first n samples
    impulse_response = sosfilt(sos, np.eye(1, n)[0])
    transfer = backend.like(np.fft.rfft(impulse_response, n_fft), signals)
    gain = float(np.prod(sos[:, :3].sum(axis=1) / sos[:, 3:].sum(axis=1)))
    columns = xp.reshape(signals, (n_volumes, -1))
    filtered = xp.empty(columns.shape, dtype=xp.float64, device=backend.device_of(signals))
    step = max(_FFT_VALUES // n_fft, 1)
    for first_column in range(0, columns.shape[1], step):
        block = slice(first_column, min(first_column + step, columns.shape[1]))
        x = _extended_rows(xp, columns[:, block], n_pad, padtype)
        for response, first in ((transfer, 0), (xp.conj(transfer), n - 1)):  # forward, then backward in time
            start = x[:, first : first + 1]
            spectrum = xp.fft.rfft(x - start, n=n_fft, axis=1)
            spectrum *= response
            x = xp.fft.irfft(spectrum, n=n_fft, axis=1)[:, :n] + gain * start
        filtered[:, block] = x[:, n_pad : n_pad + n_volumes].T
    return xp.reshape(filtered, signals.shape)


def _pad_length(sos, n_volumes, padtype, padlen):
    if padtype not in ("odd", "even", "constant", None):
        msg = f"Unknown value '{padtype}' given to padtype. padtype must be 'even', 'odd', 'constant', or None."
        raise ValueError(msg)
    if padtype is None:
        n_pad = 0
    elif padlen is None:
        n_taps = 2 * len(sos) + 1 - min((sos[:, 2] == 0).sum(), (sos[:, 5] == 0).sum())
        n_pad = 3 * int(n_taps)
    else:
        n_pad = max(padlen, 0)
    if n_volumes <= n_pad:
        msg = f"{n_volumes} volumes are left, but this filter needs {n_pad + 1} or more."
        raise ValueError(msg)
    return n_pad


def _extended_rows(xp, signals, n_pad, padtype):
    """The signals as rows of adjacent samples, with `n_pad` more at both ends.

    FFTs along the last axis are up to 1.5x faster on a CPU. The rows are filled in since a transposed or concatenated
    array can keep the memory order of the columns.
    """
    n_volumes, n_signals = signals.shape
    shape = (n_signals, n_volumes + 2 * n_pad)
    x = xp.empty(shape, dtype=xp.float64, device=backend.device_of(signals))
    x[:, n_pad : n_pad + n_volumes] = xp.astype(signals, xp.float64, copy=False).T
    if n_pad:
        first, last = x[:, n_pad : n_pad + 1], x[:, -n_pad - 1 : -n_pad]
        head = xp.flip(x[:, n_pad + 1 : 2 * n_pad + 1], axis=1)
        tail = xp.flip(x[:, -2 * n_pad - 1 : -n_pad - 1], axis=1)
        if padtype == "constant":
            head, tail = first, last
        elif padtype == "odd":
            head, tail = 2 * first - head, 2 * last - tail
        x[:, :n_pad], x[:, -n_pad:] = head, tail
    return x
