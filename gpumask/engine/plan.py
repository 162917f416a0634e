"""Extraction plans: regions, smoothing and image grid, compiled into the steps for each volume.

Averaging is linear, and so is smoothing. Because the Gaussian with mirrored borders is a symmetric operator, the mean
of a smoothed volume over a region is the raw volume weighted by the smoothed region. A plan therefore *folds* the
smoothing into the weights, once, and no volume is ever smoothed. Where folding is invalid (the median of a smoothed
volume isn't linear in the raw one) or slower (tens of thousands of small regions, each smoothed into thousands of
voxels), the plan is *staged*: it smooths each volume, but only the box around the regions.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from gpumask import backend, devices
from gpumask.backend import Array
from gpumask.choices import LINEAR, NAN_POLICIES, VOXEL
from gpumask.engine.overshoots import Overshoot
from gpumask.engine.steps import Resampling, Smoothing, check_axes, few_at_a_time, smoothing_matrices
from gpumask.images.brain_models import BrainModels
from gpumask.images.grid import Grid
from gpumask.kernels.segments import FoldedSegments, Segments, reduce
from gpumask.kernels.smoothing import fwhm_to_sigma, gaussian_kernel
from gpumask.kernels.weights import fold

# Nanoseconds on one core of a Xeon with AVX-512 (banded products: of an EPYC with AVX2). Only their ratios matter: they
# decide between folded and staged.
_NS_PER_WEIGHT = 0.12  # one weight times one of 16 volumes
_NS_PER_GATHER = 0.6  # one voxel read, converted and stored next to those of 15 other volumes
_NS_PER_MULTIPLY = 0.04  # one multiply-add of a dense float64 product by BLAS
_NS_PER_BANDED = 0.17  # one multiply-add of a banded product
_MAX_WEIGHTS = 12_000_000  # 14 bytes each
_SAMPLED_REGIONS = 64
_SAMPLES = 8  # that these regions are divided into
_SMOOTHED = 4  # volumes that are smoothed at once on the CPU, in float64


class Reduced(NamedTuple):
    """Signals of some volumes.

    Attributes
    ----------
    signals : array of float64, shape (n_volumes, n_regions)
    found : array of bool, shape (n_volumes,)
        Whether a voxel that enters a region's statistic is NaN or infinite.
    overshoot : Overshoot or None
        Resampled values that clipping to the run's range may change; `Overshoot.volumes` are counted from the first of
        these volumes.
    """

    signals: Array
    found: Array
    overshoot: Overshoot | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps for each volume; compiled by `compile_plan`.

    Attributes
    ----------
    grid : Grid or BrainModels
        Of the run that the plan reduces.
    strategy : str
        One of `gpumask.choices.STRATEGIES`, or "voxel".
    nan_policy : {"zero", "omit"}
        Whether NaN and infinite voxels count as 0, or are omitted.
    segments : Segments
        The regions' entries into the result of the preceding steps: voxels of `grid`, resampled points or smoothed
        voxels. If `folded`, their weights include the smoothing, and may be folded only on first use.
    counts : ndarray of int64, shape (n_regions,)
        Voxels of each region.
    folded : bool
        Whether the smoothing is folded into the weights.
    resampling : Resampling or None
        First step.
    smoothing : Smoothing or None
        Second step.
    estimate : dict
        Expected milliseconds per volume and core, for each way that was considered.
    device : str
        Where volumes are reduced: "cpu" or "cuda:N"; chosen by `on`.
    reason : str
        Why there; empty before a choice.
    """

    grid: Grid | BrainModels
    strategy: str
    nan_policy: str
    segments: Segments
    counts: np.ndarray
    folded: bool = False
    resampling: Resampling | None = None
    smoothing: Smoothing | None = None
    estimate: dict = field(default_factory=dict)
    device: str = "cpu"
    reason: str = ""

    @property
    def way(self) -> str:
        """How volumes are smoothed: "direct" (not), "folded" (in the weights) or "staged" (volume by volume)."""
        return "staged" if self.smoothing else "folded" if self.folded else "direct"

    @property
    def linear(self) -> bool:
        """Whether signals are weighted sums of resampled voxels, so clipping can be corrected in the signals."""
        return self.strategy in (*LINEAR, VOXEL) and self.smoothing is None

    @property
    def uses_products(self) -> bool:
        """Whether volumes are multiplied with matrices: by BLAS, or on the CPU over narrow bands only."""
        return self.resampling is not None or self.smoothing is not None

    def on(self, device: str, data_on: str = "cpu") -> "Plan":
        """Return this plan for a device.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda", "cuda:N"}
            "auto" is the GPU that the run lies on, or the first usable one if the plan is expected to be faster there,
            else the CPU. Only in the second case, GPUs are probed. The table under "GPU" in the README says what was
            measured.
        data_on : str
            Device of the run: "cpu" or "cuda:N".

        Raises
        ------
        ValueError, DeviceError
            As `gpumask.devices.resolve_device`.
        """
        if device != "auto" or data_on != "cpu":
            reason = "the run lies there" if device == "auto" else "requested"
            return replace(self, device=devices.resolve_device(device, data_on), reason=reason)
        if not (work := self._work_for_gpu):
            return replace(self, device="cpu", reason="reducing the run takes less time than copying it to a GPU")
        if (found := devices.resolve_device("auto")) == "cpu":
            return replace(self, device="cpu", reason="no GPU can be used, see gpumask info")
        return replace(self, device=found, reason=f"{work} takes longer than copying a volume to it")

    @property
    def placement(self) -> str:
        """The kind of device and why it was chosen, in words, without its number: sidecars don't depend on that."""
        return f"on the {'CPU' if self.device == 'cpu' else 'GPU'}: {self.reason}"

    @property
    def _work_for_gpu(self):
        """What a GPU is expected to be faster at, by measurements (README); empty if nothing is."""
        if self.strategy == VOXEL:
            return "computing and cleaning every voxel"
        done = ["resampling"] * (self.resampling is not None) + ["smoothing"] * (self.smoothing is not None)
        return " and ".join(done)

    def like(self, array: Array) -> "Plan":
        """Return this plan with its arrays in the library and on the device of `array`."""
        if backend.is_numpy(array):
            return self
        return replace(
            self,
            segments=self.segments.like(array),
            resampling=self.resampling and self.resampling.like(array),
            smoothing=self.smoothing and self.smoothing.like(array),
        )

    def prepare(self, *, may_be_missing: bool) -> None:
        """Compute the values that every `reduce` needs and keep them; on a GPU, this waits for the device.

        Parameters
        ----------
        may_be_missing : bool
            Whether volumes may hold NaN or infinite values.
        """
        if backend.is_cupy(self.segments.indices):
            if self.strategy != VOXEL:
                _ = self.segments.layout, self.segments.totals
            if may_be_missing:
                _ = self.resampling and (self.resampling.nearest, self.resampling.faces)
                _ = self.smoothing and self.smoothing.voxels
        elif self.strategy in LINEAR:
            self.segments.prepare()

    def reduce(
        self, data: Array, slope: float = 1.0, inter: float = 0.0, clip: tuple[float, float] | None = None
    ) -> Reduced:
        """Compute the region signals of stored volumes.

        Parameters
        ----------
        data : array, shape (n_volumes, n_voxels)
            Stored values of any real dtype, in the library and on the device of the plan.
        slope, inter : float
            The volumes' values are ``slope * data + inter``.
        clip : tuple of two floats, optional
            Range that resampled values are clipped to. If None, they aren't clipped: see `Reduced.overshoot`.

        Returns
        -------
        Reduced
            A volume's row is bit-identical whichever other volumes are in `data`.
        """
        if self.resampling is not None:
            return self._resampled(data, slope, inter, clip)
        if self.smoothing is not None:
            return Reduced(*self._staged(data, slope, inter))
        policy = self.nan_policy if _may_be_missing(data) else "keep"
        return Reduced(*reduce(data, self.segments, self.strategy, slope=slope, inter=inter, non_finite=policy))

    def _statistic(self, points, slope=1.0, inter=0.0):
        """Signals of finite volumes, which are smoothed a few at a time if the plan smooths."""
        if self.smoothing is None:
            return reduce(points, self.segments, self.strategy, slope=slope, inter=inter)[0]
        smoothed = (self.smoothing.apply(points[rows, :]) for rows in few_at_a_time(points, _SMOOTHED))
        parts = [reduce(some, self.segments, self.strategy, slope=slope, inter=inter)[0] for some in smoothed]
        return parts[0] if len(parts) == 1 else backend.array_namespace(points).concat(parts)

    def _staged(self, data, slope, inter):
        if not _may_be_missing(data):
            return self._statistic(data, slope, inter), _falses(data)
        if not backend.is_numpy(data):  # looking at the values first would wait for the device
            return self._staged_of_finite(data, slope, inter)
        holed = ~np.isfinite(data).all(axis=1)
        if not holed.any():
            return self._statistic(data, slope, inter), _falses(data)
        signals, found = np.empty((len(data), len(self.counts))), np.zeros(len(data), bool)
        if not holed.all():
            signals[~holed] = self._statistic(data[~holed], slope, inter)
        signals[holed], found[holed] = self._staged_of_finite(data[holed], slope, inter)
        return signals, found

    def _staged_of_finite(self, data, slope, inter):
        xp = backend.array_namespace(data)
        values = xp.astype(data, xp.float64) * slope + inter
        finite = xp.isfinite(values)
        found = xp.any(~xp.take(finite, self.smoothing.voxels, axis=1), axis=1)
        signals = self._statistic(xp.where(finite, values, 0.0))
        if self.nan_policy == "omit" and self.strategy == "mean":
            shares = self._statistic(xp.astype(finite, xp.float64))
            signals = xp.where(shares > 0, signals / xp.where(shares > 0, shares, 1.0), xp.nan)
        return signals, found

    def _resampled(self, data, slope, inter, clip):
        xp = backend.array_namespace(data)
        values = data if (slope, inter) == (1.0, 0.0) else xp.astype(data, xp.float64) * slope + inter
        if _may_be_missing(data):
            points, found, sources = self._sampled_of_finite(values)
        else:
            points, found, sources = self.resampling.apply(values), _falses(values), [values]
        if clip is not None:
            # `clip` would wait for the device.
            return Reduced(self._statistic(xp.minimum(xp.maximum(points, clip[0]), clip[1])), found)
        low, high = 0.0, 0.0  # the range always includes 0
        for source in sources:
            low, high = xp.minimum(xp.min(source), low), xp.maximum(xp.max(source), high)
        volumes, entries = xp.nonzero((points < low) | (points > high))  # waits for the device
        outside = [backend.to_host(part) for part in (volumes, entries, points[volumes, entries])]
        return Reduced(self._statistic(points), found, Overshoot(float(low), float(high), *outside))

    def _sampled_of_finite(self, values):
        """Resampled points, whether a region has a hole, and arrays of the volumes with holes filled."""
        xp = backend.array_namespace(values)
        missing = ~xp.isfinite(values)
        if not backend.is_numpy(values):
            points, holes, filled = self.resampling.apply_to_finite(xp.astype(values, xp.float64), missing)
            return points, self._enter(holes), [filled]
        holed = missing.any(axis=1)
        if not holed.any():
            return self.resampling.apply(values), holed, [values]
        points, found = np.empty((len(values), len(self.resampling.points))), holed.copy()
        points[holed], holes, filled = self.resampling.apply_to_finite(values[holed].astype(float), missing[holed])
        found[holed] = self._enter(holes)
        if holed.all():
            return points, found, [filled]
        whole = values[~holed]
        points[~holed] = self.resampling.apply(whole)
        return points, found, [filled, whole]

    def _enter(self, holes):
        """Whether a hole enters a region's statistic, for each volume."""
        xp = backend.array_namespace(holes)
        if self.smoothing is not None:
            holes = xp.take(holes, self.smoothing.voxels, axis=1)
        return xp.any(holes, axis=1)

    def explain(self) -> str:
        """Describe the steps for each volume, and why they were chosen, in a few lines."""
        regions = "" if self.strategy == VOXEL else f"{len(self.counts)} regions, "
        lines = [f"{regions}{int(self.counts.sum()):,} {self.grid.elements} of {self.grid.description}"]
        if self.resampling is not None:
            how = "one matrix per axis" if self.resampling.cubic.points is not None else "at the needed voxels only"
            lines.append(f"cubic resampling to the regions' grid, {how}")
        if self.way == "direct":
            what = "value" if self.strategy == VOXEL else self.strategy
            lines.append(f"direct: {what} of the stored {self.grid.elements}")
        elif self.way == "folded":
            n_weights = self.segments.indices.shape[0]
            lines.append(f"folded: smoothing folded into {n_weights:,} weights; no volume is smoothed")
        else:
            then = "its voxels are taken" if self.strategy == VOXEL else self.strategy
            lines.append(f"staged: each volume is smoothed, then {then}")
            if self.strategy not in (*LINEAR, VOXEL):
                what = f"a {self.strategy} of smoothed voxels isn't linear in raw ones"
                lines.append(f"{what}, so smoothing can't be folded")
        if len(self.estimate) > 1:
            costs = ", ".join(f"{way} {ms:.2g} ms" for way, ms in self.estimate.items())
            lines.append(f"expected per volume and core: {costs}")
        if self.reason:
            lines.append(self.placement)
        return "\n".join(lines)


def _may_be_missing(data):
    return backend.array_namespace(data).isdtype(data.dtype, "real floating")


def _falses(data):
    xp = backend.array_namespace(data)
    return xp.zeros(data.shape[0], dtype=xp.bool, device=backend.device_of(data))


def compile_plan(
    segments: Segments,
    region_grid: Grid | BrainModels,
    *,
    grid: Grid | None = None,
    smoothing_fwhm: float | None = None,
    strategy: str = "mean",
    nan_policy: str = "zero",
    way: str | None = None,
) -> Plan:
    """Compile an extraction plan, on the host.

    Parameters
    ----------
    segments : Segments
        Voxels of each region, flat in Fortran order on `region_grid`.
    region_grid : Grid or BrainModels
        Grayordinates are neither smoothed nor resampled.
    grid : Grid, optional
        Grid of the volumes. If it is given and differs from `region_grid`, volumes are resampled to `region_grid` with
        cubic splines.
    smoothing_fwhm : float, optional
        FWHM of the Gaussian kernel, in mm.
    strategy : str
        One of `gpumask.choices.STRATEGIES`, or "voxel": each segment has one voxel, whose value is the signal.
    nan_policy : {"zero", "omit"}
        Whether NaN and infinite voxels count as 0, or are omitted.
    way : {"folded", "staged"}, optional
        How to smooth. If None, the expected faster way. Strategies other than "mean" and "sum" are always staged.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If an axis has more than 5000 voxels and volumes are smoothed or resampled, if the Gaussian is wider than
        `gpumask.kernels.smoothing.MAX_SIGMA`, or if `nan_policy` is unknown, or "omit" with resampling or a smoothed
        statistic other than mean and sum.
    """
    counts, folded = segments.counts, False
    smoothing: Smoothing | None = None
    estimate: dict[str, float] = {}
    if smoothing_fwhm:
        assert isinstance(region_grid, Grid)
        matrices = smoothing_matrices(region_grid, smoothing_fwhm)
        shape = region_grid.shape[::-1]
        kernels = [gaussian_kernel(s) for s in fwhm_to_sigma(smoothing_fwhm, region_grid.voxel_sizes)[::-1]]
        smoothing, smoothed = Smoothing.compile(segments, shape, matrices, kernels)
        ns = smoothing.multiplications * (_NS_PER_BANDED if smoothing.multiplies_bands else _NS_PER_MULTIPLY)
        estimate["staged"] = float(ns + len(segments.indices) * _NS_PER_GATHER) * 1e-6
        if strategy in LINEAR:
            n_weights, n_voxels = _expected_weights(segments, shape, matrices)
            estimate["folded"] = float(n_weights * _NS_PER_WEIGHT + n_voxels * _NS_PER_GATHER) * 1e-6
            pays = n_weights <= _MAX_WEIGHTS and estimate["folded"] <= estimate["staged"]
            folded = way == "folded" or (way is None and pays)
        segments, smoothing = (FoldedSegments(segments, matrices), None) if folded else (smoothed, smoothing)
    else:
        estimate["direct"] = len(segments.indices) * (_NS_PER_WEIGHT + _NS_PER_GATHER) * 1e-6
    resampling = None
    if grid is not None and isinstance(region_grid, Grid) and not grid.matches(region_grid):
        if smoothing is not None:
            smoothing, points = smoothing.cropped()
        else:  # only at the points that the regions use
            points, entries = np.unique(segments.indices, return_inverse=True)
            segments = Segments(entries.astype(np.int32), segments.offsets, segments.weights)
        check_axes("resampled", grid, region_grid)
        resampling = Resampling.compile(grid, region_grid, points)
    plan = Plan(grid or region_grid, strategy, nan_policy, segments, counts, folded, resampling, smoothing, estimate)
    _check_nan_policy(plan)
    return plan


def _check_nan_policy(plan):
    if plan.nan_policy not in NAN_POLICIES:
        msg = f"`nan_policy` must be 'zero' or 'omit', got {plan.nan_policy!r}."
        raise ValueError(msg)
    if plan.nan_policy == "omit" and (plan.resampling or (plan.smoothing and plan.strategy not in LINEAR)):
        if plan.resampling:
            what, other = "resampled volumes", "resampling_target='data'"
        else:
            what, other = f"the {plan.strategy} of smoothed volumes", "strategy='mean'"
        msg = f"nan_policy='omit' isn't defined for {what}: use nan_policy='zero', or {other}."
        raise ValueError(msg)


def _expected_weights(segments, shape, matrices):
    """Expected number of folded weights, and of voxels with a weight, from a sample of the regions."""
    full = np.flatnonzero(segments.counts)
    sample = full[np.linspace(0, len(full) - 1, min(_SAMPLED_REGIONS, len(full))).astype(int)]
    n_folded = n_sampled = 0
    for k in range(_SAMPLES):  # one after another: scattered regions have a weight in every voxel
        some = [segments.indices[slice(*segments.bounds[region : region + 2])] for region in sample[k::_SAMPLES]]
        offsets = np.cumsum([0, *map(len, some)])
        _, _, weights = fold(np.concatenate([segments.indices[:0], *some]), offsets, matrices)
        n_folded, n_sampled = n_folded + len(weights), n_sampled + len(some)
        if n_folded > _MAX_WEIGHTS:
            break
    n_weights = n_folded / max(n_sampled, 1) * len(full)
    return n_weights, min(n_weights, np.prod(shape, dtype=float))
