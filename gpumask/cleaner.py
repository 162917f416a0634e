"""The cleaning of runs, prepared before their signals exist: step by step, or compiled to one matrix product."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any

import numpy as np

from gpumask import backend
from gpumask.backend import Array
from gpumask.blocks import each_block
from gpumask.choices import check_type
from gpumask.cleaner_options import STANDARDIZE, butterworth_options, check_option, checked_filter, rows_of_runs
from gpumask.confounds.sample_masks import kept_volumes
from gpumask.confounds.tables import confounds_matrix
from gpumask.kernels import cleaning, filtering
from gpumask.process import collect_warnings, n_cores, one_linalg_thread, warn
from gpumask.time_operator import RunMap, TimeOperator, puts_back

# Nanoseconds on one core of a Xeon with AVX-512, per volume and series. Only their ratios matter: they decide between
# the cleaning's steps and one matrix product. A GPU gets the same choice. An H100's ratio of filter to product is 25
# times as large, but that would change the choice for runs of more than 4,700 volumes only, with matrices of 180 MB.
_NS_FILTER = 95.0
_NS_DETREND = 7.0
_NS_REGRESSOR = 0.1
_NS_MULTIPLY = 0.02
# Fewer series, such as those of regions, are always cleaned step by step: their bits don't depend on how many they are.
_FEWEST = 4096
_BLOCK_VALUES = 2**17  # series cleaned at a time: 1 MiB in float64, with temporary arrays in the second-level cache
_BYTES_ON_GPU = 96  # per value of the series cleaned at a time: a dozen arrays of float64

_SCALAR = float | np.floating | int | np.integer | None


class Cleaner:
    """The cleaning of one run (or of several), prepared before the signals exist: filter, confounds, censored volumes.

    Invalid confounds and filters are found here, before a volume is read.

    Parameters
    ----------
    n_volumes : int
        Rows of the signals.
    **options
        As for `clean`, with its defaults.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `clean`.
    """

    def __init__(
        self,
        n_volumes: int,
        *,
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
    ) -> None:
        check_type("detrend", detrend, bool)
        check_type("standardize_confounds", standardize_confounds, bool)
        for name, value in (("low_pass", low_pass), ("high_pass", high_pass), ("t_r", t_r)):
            check_type(name, value, _SCALAR)
        check_option("standardize", standardize, tuple(STANDARDIZE))
        if confounds is not None and not detrend and not standardize_confounds:
            msg = (
                "When confounds are provided, one must perform detrend and/or standardize confounds. "
                f"You provided detrend={detrend}, standardize_confounds={standardize_confounds}. "
                "If confounds were not standardized or demeaned before passing to signal.clean signal "
                "will not be correctly cleaned. "
            )
            warn(msg)
        self.filter = checked_filter(filter, low_pass, high_pass, t_r)
        order, self.padding, copy = butterworth_options(**kwargs)
        self.detrend, self.standardize, self.extrapolate = detrend, STANDARDIZE[standardize], extrapolate
        self.in_runs = runs is not None
        self.run_rows = rows_of_runs(runs, n_volumes)
        self.kept = kept_volumes(sample_mask, [rows.size for rows in self.run_rows])
        kept_rows = [rows if kept is None else rows[kept] for rows, kept in zip(self.run_rows, self.kept, strict=True)]
        used: Any = np.concatenate(kept_rows)
        confounds = confounds_matrix(confounds, n_volumes, used)
        check_option("ensure_finite", ensure_finite, [True, False])
        self.ensure_finite = ensure_finite
        check_option("precision", precision, ("float64", "float32"))
        self.precision = precision
        butterworth = self.filter == "butterworth"
        self.sos = filtering.butterworth_sos(t_r, low_pass, high_pass, order) if butterworth else None
        self.widens = copy and self.sos is not None
        if self.filter == "cosine" and low_pass is not None:
            warn("low_pass is not implemented for filter='cosine'")
        self.bases = []
        for rows, kept in zip(self.run_rows, self.kept, strict=True):
            of_run = None if confounds is None else confounds[rows]
            if self.filter == "cosine":
                of_run = _with_drifts(of_run, cleaning.cosine_drifts(len(rows), t_r, high_pass))
            self.bases.append(self._basis(of_run, kept, standardize_confounds))

    def __call__(self, signals: Array, *, copy: bool = True) -> Array:
        """Clean signals.

        Parameters
        ----------
        signals : array, shape (n_volumes, n_signals), real
        copy : bool
            Whether to return a copy even if no step applies. If False, `signals` itself may be returned.

        Returns
        -------
        array, shape (n_kept, n_signals)
            As `clean`.
        """
        xp = backend.array_namespace(signals)
        dtype = self.result_dtype(signals.dtype, xp)
        if self.way(signals.shape[1]) == "product":
            out = xp.empty((self.n_kept, signals.shape[1]), dtype=dtype, device=backend.device_of(signals))

            def put(block, cleaned):
                out[:, block] = xp.astype(cleaned, dtype)

            self.in_blocks(signals.shape[1], lambda block: (signals[:, block], None), put, signals)
            return out
        with self._one_thread:
            cleaned = self._by_steps(self._finite(xp.astype(signals, xp.float64, copy=False)))
        is_ready = backend.is_numpy(cleaned) and cleaned.dtype == dtype and cleaned.flags.c_contiguous
        if is_ready and not (copy and cleaned is signals):
            return cleaned
        out = xp.empty(cleaned.shape, dtype=dtype, device=backend.device_of(signals))
        out[...] = xp.astype(cleaned, dtype, copy=False)  # C order, which a NumPy cast wouldn't make
        return out

    def result_dtype(self, dtype: Any, xp: Any = np) -> Any:
        """Return the dtype of cleaned signals, as nilearn's: that of array library `xp` for signals of its `dtype`.

        float32 for float32, booleans and integers of less than 64 bits, else float64; always float64 if filtered with
        ``butterworth__copy=True``.
        """
        if xp.isdtype(dtype, "real floating"):
            single = dtype == xp.float32
        else:
            single = xp.isdtype(dtype, "bool") or xp.iinfo(dtype).bits < 64
        return xp.float32 if single and not self.widens else xp.float64

    def degrees_of_freedom(self) -> float:
        """Effective degrees of freedom that cleaning leaves of white noise, before standardizing.

        Cleaning is a linear map A of the volumes. With S = A A', they are (tr S)^2 / tr(S^2): the number of volumes if
        nothing is done, fewer by one for each confound, and about the share of the spectrum that a filter passes
        (Satterthwaite's approximation, as Worsley and Friston 1995 apply it to time series).
        """
        if not self.changes:
            return float(self.n_kept)
        traces, squares = 0.0, 0.0
        with self._one_thread:
            for map_ in self.operator.maps:
                covariance = map_.matrix @ map_.matrix.T
                traces += np.trace(covariance)
                squares += np.sum(covariance**2)
        n_volumes = sum(len(rows) for rows in self.run_rows)
        # What is left of a variance of 1 per volume is rounding noise.
        return float(traces**2 / squares) if traces > 1e-10 * n_volumes else 0.0

    @cached_property
    def operator(self) -> TimeOperator:
        """The cleaning as matrices over time, on the host; compiled once."""
        maps = []
        for rows, kept, basis in zip(self.run_rows, self.kept, self.bases, strict=True):
            matrix, level, _ = self._prepared(np.eye(len(rows)), kept)
            if basis is not None:
                matrix = cleaning.regress_out(matrix, basis)
            volumes = rows if self.in_runs or kept is not None else None
            if kept is not None:
                matrix, level, volumes = matrix[:, kept], level[kept], rows[kept]
            interpolates = kept is not None and self.filter == "butterworth"
            removes = self.detrend and len(level) > 1
            single = self.precision == "float32"
            maps.append(RunMap(volumes, np.ascontiguousarray(matrix), level, removes, interpolates, single))
        return TimeOperator(maps, self.standardize)

    def estimate(self, n_series: int) -> dict[str, float]:
        """Expected seconds on one core for cleaning `n_series` series, before standardizing, for each way.

        "steps": one step after another, the filter by FFT. "product": one matrix product, and the steps for the matrix.
        """
        per_series = products = 0.0
        for rows, kept, basis in zip(self.run_rows, self.kept, self.bases, strict=True):
            n, n_regressors = len(rows), 0 if basis is None else basis.shape[1]
            of_sample = _NS_FILTER * (self.sos is not None) + _NS_DETREND * self.detrend + _NS_REGRESSOR * n_regressors
            per_series += n * of_sample
            products += n * (n if kept is None else len(kept)) * _NS_MULTIPLY
        n_volumes = sum(map(len, self.run_rows))
        return {"steps": 1e-9 * n_series * per_series, "product": 1e-9 * (n_volumes * per_series + n_series * products)}

    def way(self, n_series: int) -> str:
        """How `n_series` series are cleaned: by "steps", or by one matrix "product" if that is expected to pay."""
        seconds = self.estimate(n_series)
        return "product" if n_series >= _FEWEST and seconds["product"] < seconds["steps"] else "steps"

    def explain(self, n_series: int) -> str:
        """Describe how `n_series` series are cleaned, and why, in a line."""
        seconds = self.estimate(n_series)
        if not seconds["steps"]:
            return "cleaning: no linear step"
        costs = ", ".join(f"{way} {one:.2g} s" for way, one in seconds.items())
        n_volumes = sum(map(len, self.run_rows))
        way = self.way(n_series)
        how = "step by step" if way == "steps" else f"by one product with a matrix of {self.n_kept} x {n_volumes}"
        few = f" (fewer than {_FEWEST} series always are)" if n_series < _FEWEST else ""
        return f"cleaning: {n_series:,} series {how}{few}; expected on one core: {costs}"

    def standardizing(self, method: str | None) -> "Cleaner":
        """Return the same cleaning with another standardization."""
        other = object.__new__(type(self))
        vars(other).update(vars(self) | {"standardize": STANDARDIZE[method]})
        vars(other).pop("operator", None)
        return other

    @property
    def only_selects(self) -> bool:
        """Whether cleaning does no more than drop volumes."""
        return not self.changes and self.standardize is None

    @property
    def changes(self) -> bool:
        """Whether cleaning changes volumes before they are standardized."""
        return self.detrend or self.sos is not None or any(basis is not None for basis in self.bases)

    @property
    def _one_thread(self):
        """Context of its products, so their bits don't depend on the number of cores."""
        return one_linalg_thread if self.changes else nullcontext()

    @property
    def first_kept(self) -> int:
        """The first volume of the series that is kept."""
        kept = zip(self.run_rows, self.kept, strict=True)
        return int(min((rows if of_run is None else rows[of_run]).min() for rows, of_run in kept))

    @property
    def n_kept(self) -> int:
        """Volumes of the result."""
        return sum(len(rows if kept is None else kept) for rows, kept in zip(self.run_rows, self.kept, strict=True))

    def in_place(self, staged: Array, base: Array | None = None, *, device: str = "cpu") -> Array:
        """Clean many series in blocks, in their own memory.

        Parameters
        ----------
        staged : array of float32 or float64, shape (n_volumes, n_series), C-contiguous
            Overwritten. Series on a device are cleaned there; nothing is copied to the host.
        base : array of float64, shape (n_series,), optional
            Added to all volumes. float32 holds the differences from a first volume to more digits than the values.
        device : str
            Where blocks of series on the host are cleaned: "cpu" or "cuda:N".

        Returns
        -------
        array, shape (n_kept, n_series)
            The first rows of `staged`. The bits don't depend on the number of cores.
        """
        out, is_there = staged[: self.n_kept], not backend.is_numpy(staged)

        def read(block):
            return staged[:, block], None if base is None else base[block]

        def put(block, cleaned):
            out[:, block] = cleaned if is_there else backend.to_host(cleaned)

        self.in_blocks(staged.shape[1], read, put, staged if is_there else backend.to_device(np.zeros(0), device))
        return out

    def in_blocks(
        self,
        n_series: int,
        read: Callable[[slice], tuple[Array, Array | None]],
        put: Callable[[slice, Array], object],
        where: Array,
    ) -> None:
        """Clean many series, a block at a time; on the CPU, in several threads.

        Parameters
        ----------
        n_series : int
        read : callable
            Returns the series of a slice, of any real dtype and of shape (n_volumes, n), and their base or None:
            float64 of shape (n,), to be added to all volumes. Called twice for each block if "psc" has to decide first.
        put : callable
            Gets the slice and its cleaned series: float64 of shape (n_kept, n).
        where : array
            Blocks are cleaned in its library and on its device. The bits don't depend on the number of cores. On a GPU,
            blocks are larger, and as small as its free memory requires; only then the last bits may depend on that.
        """
        n_volumes = sum(map(len, self.run_rows))
        by_product = self.way(n_series) == "product"
        with self._one_thread:
            operator = self.operator.like(where) if by_product or self.standardize == "psc" else None

        def values(block):
            x, base = read(block)
            x = backend.like(x, where)
            xp = backend.array_namespace(x)
            return self._finite(xp.astype(x, xp.float64)), None if base is None else backend.like(base, where)

        def sizes(block):
            return operator.mean_sizes(*values(block))

        def clean(block):
            x, base = values(block)
            if by_product:
                cleaned = operator(x, base, put_back)
            else:
                cleaned = self._by_steps(x if base is None else x + base, put_back)
            put(block, cleaned)

        def each(function):
            if backend.is_cupy(where):
                return _warned(each_block(partial(_collected, function), n_series, _BYTES_ON_GPU * n_volumes, where))
            step = n_series if n_volumes == 1 else max(_BLOCK_VALUES // n_volumes, 64)
            blocks = [slice(start, min(start + step, n_series)) for start in range(0, n_series, step)]
            return (_in_threads if backend.is_numpy(where) else _in_turn)(function, blocks)

        put_back = None
        with self._one_thread:
            if self.standardize == "psc":
                put_back = puts_back(each(sizes))
            each(clean)

    def _finite(self, x):
        if not self.ensure_finite:
            return x
        xp = backend.array_namespace(x)
        return xp.where(xp.isfinite(x), x, xp.zeros_like(x))

    def _by_steps(self, x, put_back=None):
        put_back = put_back or [None] * len(self.bases)
        cleaned = [
            self._clean_run(_rows(x, rows) if self.in_runs else x, kept, basis, back)
            for rows, kept, basis, back in zip(self.run_rows, self.kept, self.bases, put_back, strict=True)
        ]
        return cleaned[0] if len(cleaned) == 1 else backend.array_namespace(x).concat(cleaned)

    def _clean_run(self, signals, kept, basis, put_back=None):
        signals, mean, noise = self._prepared(signals, kept, with_levels=self.standardize is not None)
        if basis is not None:
            signals = cleaning.regress_out(signals, backend.like(basis, signals))
        if self.standardize is None:
            return signals
        return cleaning.standardize(signals, self.standardize, original_mean=mean, noise=noise, put_back=put_back)

    def _prepared(self, x, kept, *, with_levels=True):
        """Censor, detrend and filter `x`; also return its mean and rounding noise after censoring, or None."""
        butterworth = self.filter == "butterworth"
        if kept is not None:
            x = cleaning.interpolate_censored(x, kept, extrapolate=self.extrapolate) if butterworth else _rows(x, kept)
        mean = noise = None
        if with_levels:
            mean, noise = backend.array_namespace(x).mean(x, axis=0), cleaning.rounding_noise(x)
        if self.detrend:
            x = cleaning.detrend(x)
        if self.sos is not None:
            x = filtering.fft_filtfilt(x, self.sos, **self.padding)
        if kept is not None and butterworth:
            x = _rows(x, kept if self.extrapolate else kept - kept[0])
        return x, mean, noise

    def _basis(self, confounds, kept, standardized):
        """Orthonormal basis of one run's confounds, censored, detrended and filtered as the signals; on the host."""
        if confounds is None or not confounds.shape[1]:
            return None
        return self._orthonormal(confounds, kept, standardized)

    @one_linalg_thread
    def _orthonormal(self, confounds, kept, standardized):
        confounds, _, noise = self._prepared(confounds, kept)
        if standardized:
            confounds = cleaning.standardize(confounds, "zscore_sample", noise=noise)
        else:
            largest = np.max(np.abs(confounds), axis=0)
            confounds = confounds / np.where(largest <= noise, np.inf, largest)
        return cleaning.orthonormal_basis(confounds)


def _in_turn(function, blocks):
    """Results of a function for each block, in order; distinct warnings are issued once."""
    return _warned([_collected(function, block) for block in blocks])


def _in_threads(function, blocks):
    """The same, computed by several threads; this one warns."""
    if len(blocks) == 1:
        return _in_turn(function, blocks)
    with ThreadPoolExecutor(n_cores(), "gpumask-clean") as workers:
        return _warned(list(workers.map(partial(_collected, function), blocks)))


def _collected(function, block):
    with collect_warnings() as messages:
        return function(block), messages


def _warned(results):
    for message in dict.fromkeys(message for _, messages in results for message in messages):
        warn(message)
    return [result for result, _ in results]


def _rows(x, indices):
    return backend.array_namespace(x).take(x, backend.like(indices, x), axis=0)


def _with_drifts(confounds, drifts):
    if drifts.shape[1] == 0:
        msg = (
            "Cosine filter was not created. The time series might be too short or the high pass filter is not "
            "suitable for the data."
        )
        warn(msg)
        return confounds
    if confounds is None or confounds.shape[1] == 0:
        return drifts
    with np.errstate(invalid="ignore", divide="ignore"):  # constant confounds correlate with nothing
        correlations = np.corrcoef(drifts.T, confounds.T)[: drifts.shape[1], drifts.shape[1] :]
    if np.any(correlations > 0.9):
        msg = "Cosine filter(s) exist in user supplied confounds.Use user supplied regressors only."
        warn(msg)
        return confounds
    return np.hstack((confounds, drifts))
