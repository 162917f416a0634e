"""Steps of temporal cleaning: interpolate, detrend, regress out, standardize.

Arrays in, arrays out, of the same library and on the same device, in float64; time is the first axis and no argument is
modified. Small matrices that depend on no signal (drifts, spline weights, confound bases) are made on the host.
"""

import functools
import warnings

import numpy as np
import scipy

from gpumask import backend
from gpumask.dlpack import across_libraries

_BLOCK = 65536  # series in float64 at a time: all of 10^6 voxels at once would cost more than they do
_EPS = float(np.finfo(np.float64).eps)


@across_libraries
def detrend(signals):
    """Subtract from each signal its mean and its linear trend.

    Parameters
    ----------
    signals : array, shape (n_volumes, n_signals), real floating
        A single volume is returned unchanged, with a warning.

    Returns
    -------
    array of float64, shape (n_volumes, n_signals)
    """
    if signals.shape[0] == 1:
        _warn_single_volume("Detrending")
        return _as_float64(signals)[1]
    return _remove_trend(signals)


def _remove_trend(signals):
    xp, signals = _as_float64(signals)
    time = np.arange(signals.shape[0]) - (signals.shape[0] - 1) / 2
    time = backend.like(time / scipy.linalg.norm(time), signals)[:, None]
    signals = signals - xp.mean(signals, axis=0)
    return signals - time * (time.T @ signals)


@across_libraries
def regress_out(signals, basis):
    """Project the signals on the orthogonal complement of a basis (Friston et al. 1994).

    Parameters
    ----------
    signals : array, shape (n_volumes, n_signals), real floating
    basis : array of float64, shape (n_volumes, n_basis)
        Orthonormal columns, as from `orthonormal_basis`; same library and device as `signals`.

    Returns
    -------
    array of float64, shape (n_volumes, n_signals)

    Raises
    ------
    TypeError
        If `basis` lies elsewhere.
    """
    _, signals = _as_float64(signals)
    if backend.device_of(basis) != backend.device_of(signals):
        msg = "`basis` must be in the library and on the device of `signals`: make it of confounds that are."
        raise TypeError(msg)
    return signals - basis @ (basis.T @ signals)


@across_libraries
def orthonormal_basis(confounds):
    """Orthonormal basis of the confounds' span, by QR decomposition with column pivoting.

    Parameters
    ----------
    confounds : array, shape (n_volumes, n_confounds), finite
        Columns of comparable scale: what lies outside the span of the others by less than 100 float64 epsilons
        (nilearn's tolerance, absolute) is taken for rounding noise.

    Returns
    -------
    array of float64, shape (n_volumes, rank)
        Computed on the host: a rank is a shape, which the host has to know.
    """
    q, r, _ = scipy.linalg.qr(backend.to_host(confounds).astype(np.float64), mode="economic", pivoting=True)
    return backend.like(q[:, np.abs(np.diag(r)) > 100 * _EPS], confounds)


@across_libraries
def standardize(signals, method, *, original_mean=None, noise=_EPS, put_back=None):
    """Standardize each signal over time.

    Parameters
    ----------
    signals : array, shape (n_volumes, n_signals), real floating
        A single volume is returned unchanged, with a warning.
    method : {"zscore_sample", "zscore", "psc"}
        "zscore_sample" divides the centred signals by their sample standard deviation (ddof=1), "zscore" by that of the
        population (ddof=0). "psc" is the percent change from the mean; a signal of mean 0 becomes 0, with a warning.
    original_mean : array of float64, shape (n_signals,), default=None
        Mean signals before cleaning, for "psc". Where cleaning has removed the means they are put back first. As in
        ``nilearn.signal.clean`` this is decided once for all signals, where the mean of the absolute means has
        fallen below a tenth: a signal's result can depend on which others are given along with it.
        A single volume isn't standardized, but its means are put back if confounds explain it completely.
    put_back : bool, default=None
        Whether the means are put back. If None, these signals decide.
    noise : float or array of float64, shape (n_signals,), default=2.2e-16
        Standard deviations up to this are taken for rounding noise: z-scores of these signals are 0.

    Returns
    -------
    array of float64, shape (n_volumes, n_signals)

    Raises
    ------
    ValueError
        If `method` is none of the three.
    """
    if method not in ("zscore_sample", "zscore", "psc"):
        msg = f"`method` must be 'zscore_sample', 'zscore' or 'psc', got {method!r}."
        raise ValueError(msg)
    xp, signals = _as_float64(signals)
    mean = xp.mean(signals, axis=0)
    if method == "psc" and original_mean is not None and put_back is None:
        put_back = bool(xp.mean(xp.abs(mean)) < 0.1 * xp.mean(xp.abs(original_mean)))  # synchronises
    if method == "psc" and original_mean is not None and put_back:
        signals = signals + original_mean
        mean = xp.mean(signals, axis=0)
    if signals.shape[0] == 1:
        _warn_single_volume("Standardization")
        return signals
    if method != "psc":
        signals = signals - mean
        signals = signals - xp.mean(signals, axis=0)  # what rounding left of a large mean
        std = xp.std(signals, axis=0, correction=1 if method == "zscore_sample" else 0)
        return signals / xp.where(std <= noise, xp.full_like(std, xp.inf), std)

    scale = xp.abs(mean)
    no_mean = scale < _EPS
    signals = 100 * ((signals - mean) / xp.where(no_mean, xp.ones_like(scale), scale))
    if not bool(xp.any(no_mean)):  # synchronises
        return signals
    msg = (
        "psc standardization strategy is meaningless for features that have a mean of 0. "
        "These time series are set to 0."
    )
    warnings.warn(msg, stacklevel=3)
    return xp.where(no_mean, xp.zeros_like(signals), signals)


def rounding_noise(signals):
    """Standard deviation that rounding alone can leave in each signal when all of it is removed.

    Parameters
    ----------
    signals : array, shape (n_volumes, n_signals), real floating
        The signals before detrending, filtering and regression.

    Returns
    -------
    array of float64, shape (n_signals,)
        100 float64 epsilons of the largest absolute value.
    """
    xp, signals = _as_float64(signals)
    return 100 * _EPS * xp.max(xp.abs(signals), axis=0)


@across_libraries
def interpolate_censored(signals, kept, *, extrapolate=False):
    """Replace the censored volumes by a cubic spline through the kept ones.

    Parameters
    ----------
    signals : array, shape (n_volumes, n_signals), real floating
        Only the kept volumes are read.
    kept : numpy.ndarray of int, shape (n_kept,)
        Indices of the kept volumes, strictly increasing, on the host.
    extrapolate : bool, default=False
        Whether volumes before the first and after the last kept one are extrapolated; if not, they are dropped.

    Returns
    -------
    array of float64, shape (n_volumes or kept[-1] - kept[0] + 1, n_signals)
        The spline has not-a-knot ends, as ``scipy.interpolate.CubicSpline``, which this equals.

    Raises
    ------
    ValueError
        If fewer than two volumes are kept, if `kept` isn't strictly increasing, or if a kept value isn't finite.
    """
    xp, signals = _as_float64(signals)
    if kept.size < 2:
        msg = f"At least 2 volumes must be kept to interpolate the censored ones, got {kept.size}."
        raise ValueError(msg)
    if np.any(np.diff(kept) <= 0):
        msg = "The indices of the kept volumes must be strictly increasing to interpolate the censored ones."
        raise ValueError(msg)
    values = xp.take(signals, backend.like(kept, signals), axis=0)
    require_finite(values)
    wanted = np.arange(signals.shape[0]) if extrapolate else np.arange(kept[0], kept[-1] + 1)
    censored = np.setdiff1d(wanted, kept)
    if censored.size == 0:
        return values
    interpolated = backend.like(_spline_weights(tuple(kept), tuple(censored)), signals) @ values
    order = np.argsort(np.concatenate((kept, censored)))
    return xp.take(xp.concat((values, interpolated)), backend.like(order, signals), axis=0)


def require_finite(values):
    """Raise ValueError if kept volumes, between which others are interpolated, hold NaN or infinite values."""
    xp = backend.array_namespace(values)
    if not bool(xp.all(xp.isfinite(values))):  # synchronises
        msg = "The signals hold NaN or infinite values and can't be interpolated: use ensure_finite=True."
        raise ValueError(msg)


@functools.lru_cache(maxsize=2)  # a run's signals and confounds share them; 0.1 s at 1000 volumes
def _spline_weights(knots, times, block=256):
    """Matrix (n_times, n_knots) that takes values at the knots to their cubic spline at `times`."""
    from scipy.interpolate import CubicSpline  # slow to import: only if volumes are censored

    weights = np.empty((len(times), len(knots)))
    for start in range(0, len(knots), block):  # a spline has 4 coefficients per knot and column: bounds the memory
        columns = np.eye(len(knots), min(block, len(knots) - start), -start)
        weights[:, start : start + block] = CubicSpline(knots, columns)(times)
    return weights


def cosine_drifts(n_volumes, t_r, high_pass):
    """Slow cosines (DCT-II without the constant) that model drifts below a cut-off frequency.

    Parameters
    ----------
    n_volumes : int
    t_r : float
        Repetition time, in seconds.
    high_pass : float
        Cut-off frequency, in Hz. From the Nyquist frequency on, the drifts span everything (warned).

    Returns
    -------
    numpy.ndarray of float64, shape (n_volumes, n_drifts)
        Orthonormal columns with ``n_drifts = min(n_volumes - 1, floor(2 n_volumes t_r high_pass))``, as in nilearn.
    """
    # nilearn takes the mean interval between volumes; its rounding can decide over the last column.
    interval = (n_volumes - 1) * t_r / (n_volumes - 1) if n_volumes > 1 else t_r
    if high_pass * interval >= 0.5:
        msg = (
            "High-pass filter will span all accessible frequencies and saturate the design matrix. "
            f"You may want to reduce the high_pass value.The provided value is {high_pass} Hz"
        )
        warnings.warn(msg, stacklevel=2)
    n_drifts = min(n_volumes - 1, int(np.floor(2 * n_volumes * high_pass * interval)))
    angles = np.pi / n_volumes * (np.arange(n_volumes)[:, None] + 0.5) * np.arange(1, n_drifts + 1)
    return np.sqrt(2.0 / n_volumes) * np.cos(angles)


@across_libraries
def high_variance_confounds(series, n_confounds=5, percentile=2.0, detrend=True):
    """Principal components of the series that vary most (CompCor, Behzadi et al. 2007).

    Parameters
    ----------
    series : array, shape (n_volumes, n_series), real floating or integer
        Usually all voxels of a run.
    n_confounds : int, default=5
        Number of components.
    percentile : float, default=2.0
        Percentage of the series, those of the largest mean square, that enter the decomposition.
    detrend : bool, default=True
        Whether mean and linear trend are removed first.

    Returns
    -------
    array of float64, shape (n_volumes, n_confounds)
        Orthonormal columns by decreasing variance, of arbitrary sign; otherwise as nilearn's.
    """
    xp = backend.array_namespace(series)
    prepared = _remove_trend if detrend else lambda block: _as_float64(block)[1]
    n_series = series.shape[1]
    mean_squares = [
        backend.to_host(xp.mean(prepared(series[:, start : min(start + _BLOCK, n_series)]) ** 2, axis=0))
        for start in range(0, n_series, _BLOCK)
    ]
    mean_squares = np.concatenate(mean_squares)
    chosen = np.flatnonzero(mean_squares > np.nanpercentile(mean_squares, 100.0 - percentile))
    return principal_components(prepared(xp.take(series, backend.like(chosen, series), axis=1)), n_confounds)


def principal_components(series, n_components):
    """Orthonormal time courses that explain most of the series: float64, shape (n_volumes, n_components).

    Parameters
    ----------
    series : array of float64, shape (n_volumes, n_series)
    n_components : int
    """
    xp = backend.array_namespace(series)
    _, components = xp.linalg.eigh(series @ series.T / series.shape[0])
    return xp.flip(components, axis=1)[:, :n_components]


def _as_float64(signals):
    xp = backend.array_namespace(signals)
    return xp, xp.astype(signals, xp.float64, copy=False)


def _warn_single_volume(step):
    msg = f"{step} of 3D signal has been requested but would lead to zero values. Skipping."
    warnings.warn(msg, stacklevel=4)
