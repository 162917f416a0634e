"""From opened volumes and regions to cleaned signals.

`prepare` checks all arguments and compiles the plan before a volume is read. `extract` reads a run once for any number
of prepared extractions.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumask import backend, cuda_runtime, devices
from gpumask.backend import Array
from gpumask.choices import VOXEL
from gpumask.cleaner import Cleaner
from gpumask.confounds.high_variance import high_variance_confounds
from gpumask.dtypes import signal_dtype, voxel_dtype
from gpumask.engine.plan import Plan
from gpumask.engine.regions import Regions, RegionsOnGrid
from gpumask.engine.series import run_series
from gpumask.engine.staging import Staging, blank_volumes
from gpumask.engine.stream import Extraction, run_plans
from gpumask.images.brain_models import BrainModels
from gpumask.images.errors import DimensionError
from gpumask.images.grayordinates import DenseImage
from gpumask.images.grid import Grid
from gpumask.images.runs import Run
from gpumask.plans import Plans, plan_key
from gpumask.process import versions, warn
from gpumask.settings import Settings, check_dense_settings

if TYPE_CHECKING:
    import joblib


@dataclass(frozen=True, eq=False)
class Prepared:
    """One extraction from a run, before the run is read.

    Attributes
    ----------
    settings : Settings
    regions : RegionsOnGrid
    plan : Plan
        On the device that it is run on.
    cleaner : Cleaner
    key : tuple
        Cache key: everything that the uncleaned signals depend on, except the run and the device. Empty without
        `memory`.
    memory : joblib.Memory or None
        Cache of the uncleaned signals.
    output : {"host", "device"} or None
        Where the result lies: "device" is that of the plan. If None, where it was computed: voxels on that device if
        its memory holds them.
    """

    settings: Settings
    regions: RegionsOnGrid
    plan: Plan
    cleaner: Cleaner
    key: tuple
    memory: "joblib.Memory | None" = None
    output: str | None = "host"


@dataclass(frozen=True, eq=False)
class Result:
    """Region signals of a run.

    Attributes
    ----------
    signals : array, shape (n_kept, n_regions)
        Cleaned; the dtype is that of `signal_dtype`. A NumPy array, or a CuPy array: see `Prepared.output`.
    non_finite : bool
        Whether a voxel of a region is NaN or infinite.
    blank : ndarray of int
        Volumes in which the signals of all regions are 0 before cleaning.
    seconds : dict
        `gpumask.engine.stream.Extraction.seconds` and "clean"; "total" includes the cleaning. "clean" includes the
        download of voxels that a GPU has cleaned.
    snr : ndarray of float64, shape (n_regions,), or None
        Temporal signal-to-noise ratio of the regions, see `temporal_snr`; None unless requested.
    """

    signals: Array
    non_finite: bool
    blank: np.ndarray
    seconds: dict[str, float]
    snr: np.ndarray | None = None


def prepare(
    volumes: Run,
    regions: Regions,
    settings: Settings,
    confounds: Any = None,
    sample_mask: Any = None,
    *,
    device: str = "cpu",
    output: str = "host",
    plans: Plans | None = None,
    memory: "joblib.Memory | None" = None,
    cleaner: Cleaner | None = None,
) -> Prepared:
    """Check the arguments, compile the plan and prepare the cleaning, before a volume is read.

    Parameters
    ----------
    volumes : Volumes or DenseImage
    regions : Regions
    settings : Settings
    confounds, sample_mask
        As `gpumask.signal.clean` takes them.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Where to extract the signals; "auto" depends on run and plan, see `gpumask.engine.plan.Plan.on`.
    output : {"host", "device"}
        Where the signals lie in the end; see `Prepared`.
    plans : Plans, optional
        Compiled plans of earlier runs. If None, the plan is compiled.
    memory : joblib.Memory, optional
        Cache of plans, signals and high-variance confounds on disk.
    cleaner : Cleaner, optional
        That of an earlier preparation, for the same run, cleaning, confounds and sample mask, and other regions.

    Raises
    ------
    TypeError, ValueError, IndexError
        If confounds, masks, settings or grids don't fit, or if a GPU can't hold the dtype that it is to leave there.
    DeviceError
        If a requested GPU is unusable.
    """
    check_kind(volumes, regions.grid)
    if isinstance(volumes, DenseImage):
        check_dense_settings(settings)
    if cleaner is None:
        if settings.high_variance_confounds:
            confounds = _with_high_variance(volumes, confounds, memory)
        cleaner = settings.cleaner(volumes.n_volumes, confounds, sample_mask)
    plans = plans or Plans()
    on_grid, plan = plans.get(regions, volumes.grid, settings, memory, device=device, data_on=volumes.device)
    for message, category in on_grid.notes:
        warn(message, category)
    key = plan_key(regions, volumes.grid, settings) if memory else ()
    prepared = Prepared(settings, on_grid, plan, cleaner, key, memory, output)
    if output == "device" and (dtype := _dtype(prepared, volumes)) != backend.device_dtype(dtype):
        msg = (
            f"dtype={settings.dtype!r} can't be held by a GPU: use a dtype of at most 64 bits in native byte order, or "
            "output='host'."
        )
        raise ValueError(msg)
    return prepared


def check_kind(run: Run, grid: Grid | BrainModels | None) -> None:
    """Raise ValueError if only one of a run and the regions on a grid (None: seeds) has grayordinates."""
    of_regions = isinstance(grid, BrainModels)
    if isinstance(run, DenseImage) != of_regions:
        others = "the regions are spheres in volumes" if grid is None else f"the regions of {grid.name} {grid.elements}"
        wanted = "a dense series (.dtseries.nii, .func.gii)" if of_regions else "an image of volumes"
        msg = f"{run.name} has {run.grid.elements}, {others}. Pass {wanted}, or regions of the run's kind."
        raise ValueError(msg)


def _with_high_variance(volumes, confounds, memory):
    if volumes.is_3d:
        msg = (
            "Input data has incompatible dimensionality: Expected dimension is 4D and you provided a 3D image. "
            f"{volumes.name} has no variance over time: set high_variance_confounds=False."
        )
        raise DimensionError(msg)
    if volumes.device != "cpu":  # as in `extract`
        memory = None
    compute = memory.cache(_high_variance_confounds, ignore=["volumes"]) if memory else _high_variance_confounds
    own = compute((versions(), volumes.identity()) if memory else None, volumes=volumes)
    several = isinstance(confounds, list | tuple) and not all(isinstance(c, Real) for c in confounds)
    return [own, *([] if confounds is None else confounds if several else [confounds])]


def _high_variance_confounds(key, *, volumes):
    """Confounds computed from the run; cached by `key`."""
    return high_variance_confounds(volumes)


def extract(
    prepared: Sequence[Prepared],
    volumes: Run,
    *,
    progress: Callable[[int], object] | None = None,
    n_threads: int | None = None,
    on_cleaning: Callable[[], object] | None = None,
    snr: bool = False,
) -> list[Result]:
    """Read a run once, and extract and clean its region signals.

    Parameters
    ----------
    prepared : sequence of Prepared
        For `volumes`, on any devices. If it is a single one, its `memory` is used for the signals, unless the run lies
        on a GPU: identifying it would need its bytes on the host.
    volumes : Volumes or DenseImage
    progress : callable, optional
        Called with the number of volumes done so far, in the calling thread. An exception from it ends the extraction.
    n_threads : int, optional
        Threads that reduce volumes on the CPU, in addition to the calling thread, which reads. If None, one per core.
        Results don't depend on it.
    on_cleaning : callable, optional
        Called after the last volume has been read, before cleaning.
    snr : bool, default=False
        Whether results of regions have their temporal signal-to-noise ratio, over the kept volumes.

    Returns
    -------
    list of Result
        One for each of `prepared`, bit for bit as if extracted alone. Those with the same plan are reduced once.

    Raises
    ------
    ImageError
        If the run is truncated or corrupt.
    DeviceError
        If the GPU fails or runs out of memory.
    ValueError
        If signals of an integer dtype would have to hold NaN, or are out of its range.
    """
    started = time.perf_counter()
    memory = prepared[0].memory if len(prepared) == 1 and volumes.device == "cpu" else None
    work = [(one.plan, _staging(one, volumes, on_device=memory is None)) for one in prepared]
    reductions = list(dict.fromkeys(work))  # extractions that only clean differently share one
    plans, stagings = [plan for plan, _ in reductions], [staging for _, staging in reductions]
    options: dict[str, Any] = {"progress": progress, "n_threads": n_threads, "stagings": stagings}
    if memory is not None:
        key = prepared[0].key, volumes.identity(), plans[0].device, *map(repr, stagings)
        extractions = memory.cache(_run, ignore=["plans", "volumes", "options"])(
            key, plans=plans, volumes=volumes, options=options
        )
    else:
        extractions = _run(None, plans=plans, volumes=volumes, options=options)
    if on_cleaning:
        on_cleaning()
    found = dict(zip(reductions, extractions, strict=True))
    return [
        _finished(one, found[own], volumes, started, keep=memory is not None or work.count(own) > 1, snr=snr)
        for one, own in zip(prepared, work, strict=True)
    ]


def _run(key, *, plans, volumes, options):
    """Extract signals; cached by `key`."""
    if isinstance(volumes, DenseImage):
        return run_series(plans, volumes, **{name: options[name] for name in ("progress", "n_threads")})
    return run_plans(plans, volumes, **options)


def _staging(prepared: Prepared, volumes: Run, *, on_device: bool) -> Staging:
    plan = prepared.plan
    if plan.strategy != VOXEL:
        return Staging()
    dtype = _dtype(prepared, volumes)
    if dtype != np.float32:
        return Staging(on_device=on_device)
    is_exact = plan.way == "direct" and plan.resampling is None and np.can_cast(volumes.loaded_dtype, np.float32)
    cleaner = prepared.cleaner
    return Staging(dtype, None if is_exact or cleaner.only_selects else cleaner.first_kept, on_device)


def _dtype(prepared: Prepared, volumes: Run) -> np.dtype:
    settings, plan = prepared.settings, prepared.plan
    as_smoothed = settings.smoothing_fwhm is not None or prepared.regions.stay_integers
    done = {"smoothed": as_smoothed, "resampled": plan.resampling is not None}
    if plan.strategy == VOXEL:
        return voxel_dtype(settings.dtype, volumes.loaded_dtype, **done)
    return signal_dtype(settings.dtype, volumes.loaded_dtype, maps=prepared.regions.maps_dtype, **done)


def _finished(prepared: Prepared, extraction: Extraction, volumes, started, *, keep, snr):
    """Clean the signals and convert them to their dtype."""
    settings, plan, signals = prepared.settings, prepared.plan, extraction.signals
    zeroed = extraction.non_finite and settings.nan_policy == "zero" and plan.strategy != VOXEL
    if zeroed and (settings.smoothing_fwhm is None or plan.resampling is not None):  # as nilearn does
        warn("Non-finite values detected. These values will be replaced with zeros.")
    counted = signals if plan.strategy == VOXEL else signals[:, plan.counts > 0]
    blank = blank_volumes(counted, extraction.base)
    cleaning, ratios, xp = time.perf_counter(), None, backend.array_namespace(signals)
    if plan.strategy == VOXEL:
        signals = xp.array(signals) if keep else signals  # from `memory`, they may be a mapped file
        with devices.device_errors(plan.device), backend.using(plan.device):
            signals = prepared.cleaner.in_place(signals, extraction.base, device=plan.device)
            if not backend.is_numpy(signals):
                # So that "clean" includes the GPU's time, and the next run may use this run's memory.
                cuda_runtime.current_stream().synchronize()
                signals = backend.to_host(signals) if prepared.output == "host" else signals
    else:
        signals = prepared.regions.combine(signals)
        if snr:
            kept = prepared.cleaner.kept[0]
            ratios = temporal_snr(signals if kept is None else signals[kept])
        signals = _of_regions(prepared, signals, keep=keep)
    done = time.perf_counter()
    seconds = {**extraction.seconds, "clean": done - cleaning, "total": done - started}
    device = "cpu" if prepared.output == "host" else plan.device
    with devices.device_errors(device), backend.using(device):
        signals = _converted(signals, _dtype(prepared, volumes), settings, volumes)
        if prepared.output == "device":
            signals = backend.to_device(signals, device)
    return Result(signals, extraction.non_finite, blank, seconds, ratios)


def _converted(signals, dtype, settings, volumes):
    """Signals in their dtype, on their device; ValueError if it can't hold them."""
    xp = backend.array_namespace(signals)
    if dtype.kind != "f" and bool(xp.any(xp.isnan(signals))):
        msg = f"dtype={settings.dtype!r} can't hold NaN, which marks regions without data. Use a float dtype."
        raise ValueError(msg)
    if dtype.kind in "iu" and signals.size:
        low, high = float(xp.min(signals)), float(xp.max(signals))
        if not np.iinfo(dtype).min <= np.trunc(low) <= np.trunc(high) <= np.iinfo(dtype).max:
            msg = (
                f"dtype={settings.dtype!r} can't hold the signals of {volumes.name}, which reach from {low:.6g} to "
                f"{high:.6g}. Use a float dtype."
            )
            raise ValueError(msg)
    return signals.astype(dtype, copy=False)


def temporal_snr(signals: np.ndarray) -> np.ndarray:
    """Mean over standard deviation (divisor N) of each series; NaN for constant ones and those with NaN.

    Parameters
    ----------
    signals : ndarray, shape (n_volumes, n_series)

    Returns
    -------
    ndarray of float64, shape (n_series,)
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        means, deviations = signals.mean(axis=0, dtype=np.float64), signals.std(axis=0, dtype=np.float64)
        return np.where(deviations > 1e-12 * np.abs(means), means / deviations, np.nan)  # else rounding noise


def _of_regions(prepared, signals, *, keep):
    """Clean the signals of regions; NaN marks those without data."""
    settings = prepared.settings
    lost = prepared.plan.counts == 0
    if not settings.keep_all_regions:  # an empty column is then one that `keep_masked_labels` keeps: zeros
        signals = np.where(lost, 0.0, signals) if lost.any() else signals
        lost = np.zeros_like(lost)
    if settings.min_coverage is not None:
        lost = lost | (prepared.regions.covered_share < settings.min_coverage)
    return _cleaned(signals, lost, prepared.cleaner, copy=keep)  # signals from `memory` may be a mapped file


def _cleaned(signals, lost, cleaner, *, copy):
    """Clean the signals; those of `lost` regions become NaN.

    Non-finite signals are cleaned apart from the others: "psc" makes one decision for all signals that it gets.
    """
    finite = np.isfinite(signals).all(axis=0) & ~lost
    if finite.all():
        return cleaner(signals, copy=copy)
    result = np.full((cleaner.n_kept, len(lost)), np.nan)
    for columns in (finite, ~finite & ~lost):
        if columns.any():
            # In C order, as without the other columns: the bits depend on the memory order.
            result[:, columns] = cleaner(np.ascontiguousarray(signals[:, columns]))
    return result
