"""Temporal cleaning of region signals, equal to ``nilearn.signal.clean`` (0.14.1), on any array library and device."""

from typing import Any

import numpy as np

from gpumask.backend import Array
from gpumask.cleaner import Cleaner
from gpumask.dlpack import across_libraries


def clean(
    signals: Array,
    runs: Any = None,
    detrend: bool = True,
    standardize: str | bool | None = "zscore_sample",
    sample_mask: Any = None,
    confounds: Any = None,
    standardize_confounds: bool = True,
    filter: str | bool = "butterworth",
    low_pass: float | None = None,
    high_pass: float | None = None,
    t_r: float | None = 2.5,
    ensure_finite: bool = False,
    extrapolate: bool = False,
    precision: str = "float64",
    **kwargs: Any,
) -> Array:
    """Clean signals: censor, detrend, filter, remove confounds, standardize; in this order.

    Confounds are detrended and filtered like the signals, so removing them doesn't bring back filtered frequencies
    (Lindquist et al. 2019). The Butterworth filter needs even sampling: censored volumes are first replaced by a cubic
    spline, and removed after filtering. Without a Butterworth filter, they are removed at the start.

    Parameters
    ----------
    signals : array, shape (n_volumes, n_signals), real
        An array of NumPy, CuPy or another library that supports DLPack, or a list. Computed in float64 on its device;
        not modified.
    runs : array-like, shape (n_volumes,), default=None
        Run of each volume. Runs are cleaned separately and concatenated, sorted by their label.
    detrend : bool, default=True
        Whether to remove mean and linear trend.
    standardize : {"zscore_sample", "zscore", "psc", True, False, None}, default="zscore_sample"
        See `gpumask.kernels.cleaning.standardize`. True means "zscore_sample".
    sample_mask : array-like of int or bool, or list of these, default=None
        Volumes to keep, as indices or as one boolean per volume. With `runs`, a list of one mask per run.
    confounds : array, DataFrame, Series, path, sequence of numbers, or list of these, default=None
        Nuisance signals with `n_volumes` rows; see `gpumask.confounds.tables.confounds_matrix`.
    standardize_confounds : bool, default=True
        Whether to z-score the confounds. If False, they are only scaled; constant ones then remove the signals' mean,
        unless `detrend` did.
    filter : {"butterworth", "cosine", False}, default="butterworth"
        "butterworth" filters if there is a cut-off frequency. "cosine" adds slow cosines to the confounds, and ignores
        `low_pass` with a warning.
    low_pass, high_pass : float or None, default=None
        Cut-off frequencies, in Hz.
    t_r : float or None, default=2.5
        Repetition time, in seconds.
    ensure_finite : bool, default=False
        Whether to replace NaN and infinite values of the signals by 0.
    extrapolate : bool, default=False
        Whether the Butterworth filter gets extrapolated values for censored volumes at both ends of a run. If False,
        these volumes are excluded from filtering.
    precision : {"float64", "float32"}, default="float64"
        Precision of the matrix product that cleans many series, such as voxels; all other steps are in float64.
        "float32" is for GPUs that multiply float64 at 1/64 of that speed, as consumer cards do (server cards: 1/2).
        Z-scores then differ by up to 1e-5 (measured: 4e-6 for 200 volumes, 8e-6 for 1200, with a band-pass and 24
        confounds; rounding the data alone to float32: 4e-7), and series of which cleaning leaves less than 1e-5
        become 0.
    **kwargs
        ``butterworth__order``, ``butterworth__padtype``, ``butterworth__padlen`` and ``butterworth__copy``.

    Returns
    -------
    array, shape (n_kept, n_signals)
        In the library and on the device of `signals` (see `gpumask.kernels`). float32 for float32, booleans and
        integers of less than 64 bits, else float64; always float64 if filtered with ``butterworth__copy=True``.

    Raises
    ------
    TypeError, ValueError, IndexError
        For invalid options, confounds or masks, with nilearn's messages where nilearn raises an error; and for signals
        that aren't an array, such as a table or a masked array.

    Notes
    -----
    The results differ where nilearn 0.14.1 is wrong:

    - With a Butterworth filter and `sample_mask`, nilearn interpolates other volumes than the censored ones (it inverts
      the indices bitwise, ``volumes[~sample_mask]``). Censored values can leak into their neighbours, and wrong volumes
      can be returned. Here exactly the censored volumes are interpolated.
    - Signals that are constant, or fully explained by the confounds, get z-scores of 0, and confounds that are constant
      or a pure trend are ignored. nilearn scales their rounding noise to unit variance.
    - nilearn can modify the caller's `sample_mask`; here no argument is modified.
    - nilearn rejects lists of indices, Series, tuples, lists of numbers and polars frames; here they are accepted.
    - With `runs`, nilearn ignores `standardize_confounds`, `extrapolate` and ``butterworth__*``, and `sample_mask`
      requires runs labelled 0, 1, ...; here all of them work.
    - Unknown keywords are errors, and there is no FutureWarning about `standardize`.

    As in nilearn, "psc" decides once for all signals whether their means are put back: see
    `gpumask.kernels.cleaning.standardize`. It does so for a single volume too, which confounds alone would turn into 0
    and which isn't standardized.
    """
    if isinstance(signals, list | tuple):
        signals = np.asarray(signals)
    return _clean(
        signals,
        runs=runs,
        detrend=detrend,
        standardize=standardize,
        sample_mask=sample_mask,
        confounds=confounds,
        standardize_confounds=standardize_confounds,
        filter=filter,
        low_pass=low_pass,
        high_pass=high_pass,
        t_r=t_r,
        ensure_finite=ensure_finite,
        extrapolate=extrapolate,
        precision=precision,
        **kwargs,
    )


@across_libraries
def _clean(signals, **options):
    if signals.ndim != 2:
        msg = f"`signals` must have two dimensions, (n_volumes, n_signals), got the shape {tuple(signals.shape)}."
        raise ValueError(msg)
    return Cleaner(signals.shape[0], **options)(signals)
