"""Region statistics of volumes: sums, means, variances, extremes and medians over segments of voxels.

A segment is the list of voxels of one region, and optionally a weight for each. Segments are compiled once from a label
volume (`Segments.from_labels`) and reduce any number of volumes after that, without looking at a label again.

Every reduction takes ``data`` of shape (n_volumes, n_voxels), of any real dtype, and returns float64 of shape
(n_volumes, n_regions) in the library and on the device of ``data``. Sums are taken in float64 and in a fixed order, so
a volume's result has the same bits however many volumes are reduced with it.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from gpumask import backend, choices
from gpumask.backend import Array
from gpumask.dlpack import across_libraries, computable
from gpumask.kernels import compiled, segments_cuda, segments_numpy
from gpumask.kernels.weights import Blocks, check_entries, check_matrices, cut, fold


class Segments:
    """Voxels of each region, in compressed sparse row form.

    Parameters
    ----------
    indices : array of int, shape (n_entries,)
        Voxel of each entry, region after region.
    offsets : array of int, shape (n_regions + 1,)
        Region ``r`` holds the entries ``offsets[r]:offsets[r + 1]``; it may be empty.
    weights : array of float64 or float32, shape (n_entries,), or None
        Weight of each entry. If None, every weight is 1.

    Raises
    ------
    ValueError
        If the arrays don't fit together: offsets that don't start at 0, decrease or don't end at the number of
        entries, negative indices, or another number of weights.

    Notes
    -----
    Arrays on a device are checked for their shapes and dtypes at once, and for their values when the host needs these
    for the first time: checking alone would wait for the device. Don't modify the arrays afterwards.
    """

    indices: Array
    offsets: Array
    weights: Array | None
    _is_checked = True  # the values too

    def __init__(self, indices: Array, offsets: Array, weights: Array | None = None) -> None:
        self.indices, self.offsets, self.weights = indices, offsets, weights
        if backend.is_numpy(offsets):
            check_entries(indices, offsets, weights)
        else:
            check_entries(indices, offsets, weights, values=False)
            self._is_checked = False

    @classmethod
    def trusted(cls, indices: Array, offsets: Array, weights: Array | None = None) -> "Segments":
        """Make segments of arrays that fit together by construction: unlike `Segments`, this checks nothing."""
        segments = object.__new__(Segments)
        segments.indices, segments.offsets, segments.weights = indices, offsets, weights
        return segments

    @classmethod
    def from_labels(cls, labels: Array, ids: Sequence[float] | np.ndarray) -> "Segments":
        """Compile a flat label volume, on the host.

        Parameters
        ----------
        labels : array, shape (n_voxels,)
            Label of each voxel, integer or float. Downloaded from a GPU.
        ids : sequence of numbers, shape (n_regions,)
            Labels of the regions in the order of the output's columns. Voxels with any other label (the background,
            NaN) belong to no region; an id that no voxel has makes an empty segment.

        Returns
        -------
        Segments
            On the host; `like` moves it.

        Raises
        ------
        ValueError
            If an id repeats.
        """
        labels, ids = backend.to_host(computable(labels, "labels")).ravel(), np.asarray(ids)
        by_id = np.argsort(ids, kind="stable")
        sorted_ids = ids[by_id]
        if np.any(sorted_ids[1:] == sorted_ids[:-1]):
            msg = f"`ids` must not repeat, got {ids.tolist()}."
            raise ValueError(msg)
        if len(ids) == 0:
            return cls.trusted(np.zeros(0, np.int32), np.zeros(1, np.int64))
        position = np.minimum(np.searchsorted(sorted_ids, labels), len(ids) - 1)
        voxels = np.flatnonzero(sorted_ids[position] == labels)
        region = by_id[position[voxels]]
        order = np.argsort(region, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(region, minlength=len(ids)))])
        dtype = np.int32 if len(labels) < 2**31 else np.int64
        return cls.trusted(voxels[order].astype(dtype), offsets)

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    @cached_property
    def totals(self) -> Array:
        """Sum of the weights of each region (its voxel count without weights): float64, shape (n_regions,)."""
        totals = self.counts.astype(np.float64)
        if self.weights is not None and totals.any():
            full = np.flatnonzero(self.counts)  # `reduceat` can't handle empty segments
            starts = backend.to_host(self.offsets)[full]
            totals[full] = np.add.reduceat(backend.to_host(self.weights), starts, dtype=np.float64)
        return backend.like(totals, self.offsets)

    @cached_property
    def counts(self) -> np.ndarray:
        """Entries of each region, on the host: int64, shape (n_regions,)."""
        return np.diff(self._host_offsets).astype(np.int64, copy=False)

    @cached_property
    def bounds(self) -> list[int]:
        """Offsets as Python integers, for slicing."""
        return self._host_offsets.tolist()

    @cached_property
    def n_needed(self) -> int:
        """Voxels that volumes must have at least: 1 more than the highest index, 0 without entries."""
        if self.indices.shape[0] == 0:
            return 0
        return int(backend.array_namespace(self.indices).max(self.indices)) + 1

    @cached_property
    def blocks(self) -> Blocks:
        """The segments cut into blocks of voxels, on the host; made once."""
        return cut(self.indices, self.offsets, self.weights)

    @cached_property
    def voxels(self) -> np.ndarray:
        """Voxels that any region has, ascending, on the host: ndarray of int64."""
        indices = backend.to_host(self.indices)
        used = np.zeros(int(indices.max(initial=-1)) + 1, bool)
        used[indices] = True
        return np.flatnonzero(used)

    @cached_property
    def checked_blocks(self) -> Any:
        """The `blocks` as the compiled sums expect them; made once."""
        return compiled.extension.blocks(*self.blocks, len(self))

    @cached_property
    def layout(self) -> segments_cuda.Layout:
        """The segments as the CUDA kernels expect them, on the device of the segments."""
        return segments_cuda.lay_out(self)

    @property
    def _host_offsets(self):
        """Offsets on the host; segments that were made on a device are checked here, where it has to be waited for."""
        offsets = backend.to_host(self.offsets)
        if not self._is_checked:
            check_entries(self.indices, offsets)
            self._is_checked = True
        return offsets

    def prepare(self) -> None:
        """Make everything that sums on NumPy need, once: otherwise, several workers might make it at the same time."""
        _ = self.totals, self.n_needed, self.blocks if compiled.extension is None else self.checked_blocks

    def require_no_weights(self, statistic: str) -> None:
        """Raise ValueError if these segments have weights, which `statistic` (its name) can't use."""
        if self.weights is not None:
            msg = f"`segments` has weights, which a {statistic} can't use: compile without (Segments.from_labels)."
            raise ValueError(msg)

    def require_voxels(self, data: Array) -> None:
        """Raise ValueError if `data` isn't of shape (n_volumes, n_voxels) with at least `n_needed` voxels."""
        if data.ndim != 2 or data.shape[1] < self.n_needed:
            msg = (
                f"`data` must have the shape (n_volumes, n_voxels), with at least the {self.n_needed} voxels that "
                f"`segments` reaches, got {tuple(data.shape)}. Segments and volumes must be of one grid."
            )
            raise ValueError(msg)

    def like(self, array: Array) -> "Segments":
        """Return these segments in the library and on the device of `array` (themselves, if they are there already)."""
        array = computable(array, "array")
        if backend.is_numpy(array):
            return self
        parts = (self.indices, self.offsets, self.weights)
        moved = Segments.trusted(*(None if part is None else backend.like(part, array) for part in parts))
        if not self._is_checked:
            moved._is_checked = False
        if backend.is_numpy(self.indices):  # later, the arrays would have to be downloaded: weights are many MB
            moved.n_needed, moved.counts = self.n_needed, self.counts
            moved.totals = backend.like(self.totals, array)
        elif "n_needed" in vars(self):
            moved.n_needed = self.n_needed
        return moved

    def __getstate__(self) -> dict[str, Any]:
        state = {"indices": self.indices, "offsets": self.offsets, "weights": self.weights}
        return state if self._is_checked else {**state, "_is_checked": False}


class FoldedSegments(Segments):
    """Segments with a smoothing folded into their weights, on the host.

    The folding is postponed to the first use, and done once: a worker does it while the first volumes are decoded.

    Parameters
    ----------
    segments : Segments
    matrices : sequence of three ndarrays
        Passed to `gpumask.kernels.weights.fold`.

    Raises
    ------
    ValueError
        If the matrices aren't three symmetric ones.
    """

    def __init__(self, segments: Segments, matrices: Sequence[np.ndarray]) -> None:
        self._given, self._matrices = segments, check_matrices(matrices)

    @cached_property
    def _folded(self):
        return fold(self._given.indices, self._given.offsets, self._matrices, self._given.weights)

    indices = property(lambda self: self._folded[0])
    offsets = property(lambda self: self._folded[1])
    weights = property(lambda self: self._folded[2])

    def __len__(self) -> int:
        return len(self._given)

    def __reduce__(self):
        return Segments.trusted, self._folded


def reduce(
    data: Array,
    segments: Segments,
    strategy: str,
    *,
    slope: float = 1.0,
    inter: float = 0.0,
    non_finite: str = "keep",
) -> tuple[Array, Array]:
    """Region statistics of scaled volumes: the one contract of the CPU and the GPU.

    Parameters
    ----------
    data : array, shape (n_volumes, n_voxels)
        Stored values of any real dtype, of NumPy or CuPy.
    segments : Segments
        In the library and on the device of `data`. Only "sum" and "mean" accept weights.
    strategy : str
        One of `gpumask.choices.STRATEGIES`; or "voxel", for segments of one voxel each: its value.
    slope, inter : float
        The statistic is that of ``slope * data + inter``, in float64.
    non_finite : {"keep", "zero", "omit"}
        Whether scaled values that are NaN or infinite follow IEEE arithmetic, count as 0, or are omitted together with
        their weights.

    Returns
    -------
    signals : array of float64, shape (n_volumes, n_regions)
        NaN for a region without any voxel that counts (for a mean: without weight); its sum is 0.
    found : array of bool, shape (n_volumes,)
        Whether a voxel of any region is NaN or infinite. Voxels outside all regions don't matter.

    Raises
    ------
    TypeError
        If `data` isn't such an array, or `segments` are elsewhere.
    ValueError
        For an unknown `strategy` or `non_finite`, for weights with a strategy that doesn't support them, and for
        volumes with less voxels than the segments reach.
    """
    strategies = (*choices.STRATEGIES, choices.VOXEL)
    for name, value, known in (("strategy", strategy, strategies), ("non_finite", non_finite, _NON_FINITE)):
        if value not in known:
            msg = f"`{name}` must be one of {list(known)}, got {value!r}."
            raise ValueError(msg)
    if not hasattr(data, "dtype") or data.ndim != 2 or not _is_real(data):
        kind = f"{type(data).__module__.partition('.')[0]}.{type(data).__name__}"
        got = f"{kind} of {data.dtype}, shape {data.shape}" if hasattr(data, "dtype") else kind
        msg = f"`data` must be an array of real numbers, of shape (n_volumes, n_voxels), got {got}."
        raise TypeError(msg)
    for part in (segments.indices, segments.offsets, segments.weights):
        if part is not None and backend.device_of(part) != backend.device_of(data):
            msg = "`segments` must be on the device of `data`: take `segments.like(data)`."
            raise TypeError(msg)
    segments.require_voxels(data)
    if strategy == choices.VOXEL:
        return _voxel_values(data, segments, slope, inter, non_finite)
    if strategy not in choices.LINEAR:
        segments.require_no_weights(strategy)
    if not (backend.is_numpy(data) or backend.is_cupy(data)):
        return _reduce_portable(data, segments, strategy, slope, inter, non_finite)
    half = segments_cuda if backend.is_cupy(data) else segments_numpy
    return half.reduce(data, segments, strategy, slope=slope, inter=inter, non_finite=non_finite)


_NON_FINITE = ("keep", "zero", "omit")


@across_libraries
def segment_sum(data: Array, segments: Segments) -> Array:
    """Sum each region's voxels, times their weights.

    Parameters
    ----------
    data : array, shape (n_volumes, n_voxels)
        Volumes, of any real dtype.
    segments : Segments
        In the library and on the device of `data`.

    Returns
    -------
    array of float64, shape (n_volumes, n_regions)
        0 for an empty region.

    Notes
    -----
    Equals ``scipy.ndimage.sum_labels`` on each volume.
    """
    return _statistic(data, segments, "sum")


@across_libraries
def segment_mean(data: Array, segments: Segments) -> Array:
    """Average each region's voxels, by their weights.

    Returns the `segment_sum` divided by the sum of the weights; NaN for an empty region. With the smoothed indicator
    of each region as weights, this is the mean of the smoothed volume over the region.
    See `segment_sum` for the parameters. Equals ``scipy.ndimage.mean``.
    """
    return _statistic(data, segments, "mean")


@across_libraries
def segment_variance(data: Array, segments: Segments) -> Array:
    """Population variance (divided by n, not n - 1) of each region's voxels; NaN for an empty region.

    The squares are taken of the differences from the region's mean, in a second pass over the gathered voxels.
    See `segment_sum` for the parameters; weights are not supported. Equals ``scipy.ndimage.variance``.
    """
    return _statistic(data, segments, "variance")


@across_libraries
def segment_standard_deviation(data: Array, segments: Segments) -> Array:
    """Square root of `segment_variance`. Equals ``scipy.ndimage.standard_deviation``."""
    return _statistic(data, segments, "standard_deviation")


@across_libraries
def segment_minimum(data: Array, segments: Segments) -> Array:
    """Smallest value of each region; NaN for an empty region. See `segment_variance` for the parameters.

    Equals ``scipy.ndimage.minimum`` (integers beyond 2**53 are rounded to float64).
    """
    return _statistic(data, segments, "minimum")


@across_libraries
def segment_maximum(data: Array, segments: Segments) -> Array:
    """Largest value of each region; NaN for an empty region. See `segment_variance` for the parameters.

    Equals ``scipy.ndimage.maximum`` (integers beyond 2**53 are rounded to float64).
    """
    return _statistic(data, segments, "maximum")


@across_libraries
def segment_median(data: Array, segments: Segments) -> Array:
    """Median of each region: the mean of its two middle values; NaN for an empty region.

    See `segment_variance` for the parameters. Equals ``scipy.ndimage.median`` of float64 volumes.
    """
    return _statistic(data, segments, "median")


STRATEGIES: dict[str, Callable[[Array, Segments], Array]] = {
    name: globals()[f"segment_{name}"] for name in choices.STRATEGIES
}


def _statistic(data, segments, strategy):
    segments.require_voxels(data)
    if strategy not in choices.LINEAR:
        segments.require_no_weights(strategy)
    if backend.is_numpy(data):
        return segments_numpy.statistic(data, segments, strategy)
    if backend.is_cupy(data):
        return segments_cuda.reduce(data, segments, strategy)[0]
    return _portable(data, segments, strategy)


def _portable(data, segments, strategy):
    """Region after region, in standard array-API calls: works with any library, slowly."""
    xp = backend.array_namespace(data)
    if strategy == "standard_deviation":
        return xp.sqrt(_portable(data, segments, "variance"))
    gathered = xp.astype(xp.take(data, segments.indices, axis=1), xp.float64)
    nothing = xp.full(data.shape[0], xp.nan, dtype=xp.float64, device=backend.device_of(data))
    columns = []
    for start, stop in pairwise(segments.bounds):
        block, n = gathered[:, start:stop], stop - start
        if strategy in choices.LINEAR:
            weights = 1.0 if segments.weights is None else segments.weights[start:stop]
            columns.append(xp.sum(block * weights, axis=1))
        else:
            columns.append(_UNWEIGHTED[strategy](xp, block, n) if n else nothing)
    if not columns:
        return xp.zeros((data.shape[0], 0), dtype=xp.float64, device=backend.device_of(data))
    values = xp.stack(columns, axis=1)
    if strategy != "mean":
        return values
    empty = segments.totals == 0
    return xp.where(empty, xp.nan, values / xp.where(empty, 1.0, segments.totals))


def _is_real(data):
    return backend.array_namespace(data).isdtype(data.dtype, ("bool", "integral", "real floating"))


def _voxel_values(data, segments, slope, inter, non_finite):
    if segments.indices.shape[0] != len(segments):
        msg = f"A voxel's value needs segments of one voxel each, got {segments.indices.shape[0]} in {len(segments)}."
        raise ValueError(msg)
    xp = backend.array_namespace(data)
    values = xp.astype(_taken(data, segments.indices), xp.float64, copy=False)
    if (slope, inter) != (1.0, 0.0):
        values *= slope
        values += inter
    elif not xp.isdtype(data.dtype, "real floating"):
        return values, xp.zeros(data.shape[0], dtype=xp.bool, device=backend.device_of(data))
    finite = xp.isfinite(values)
    found = ~xp.all(finite, axis=1)
    if non_finite != "keep" and not (backend.is_numpy(data) and not found.any()):  # on a GPU, looking would wait for it
        values = xp.where(finite, values, xp.nan if non_finite == "omit" else 0.0)
    return values, found


def _taken(data, indices):
    """Columns of `data`, in new memory."""
    xp = backend.array_namespace(data)
    if not (backend.is_numpy(data) and data.dtype.isnative):
        return xp.take(data, indices, axis=1)
    taken = np.empty((len(data), len(indices)), data.dtype)
    for volume, out in zip(data, taken, strict=True):
        np.take(volume, indices, out=out, mode="clip")  # nothing is clipped; another mode would buffer `out`
    return taken


def _reduce_portable(data, segments, strategy, slope, inter, non_finite):
    xp = backend.array_namespace(data)
    values = xp.astype(data, xp.float64) * slope + inter
    finite = xp.isfinite(values)
    found = xp.any(~xp.take(finite, backend.like(segments.voxels, data), axis=1), axis=1)
    if non_finite == "omit" and strategy not in choices.LINEAR:
        msg = f"non_finite='omit' isn't available for a {strategy} of {xp.__name__} arrays: use NumPy or CuPy."
        raise ValueError(msg)
    if non_finite != "keep":
        values = xp.where(finite, values, 0.0)
    signals = _portable(values, segments, strategy)
    if non_finite == "omit" and strategy == "mean":
        signals = signals / _portable(xp.astype(finite, xp.float64), segments, strategy)
    return signals, found


def _variance(xp, block, n):
    mean = xp.sum(block, axis=1, keepdims=True) / n
    return xp.sum((block - mean) ** 2, axis=1) / n


def _median(xp, block, n):
    ordered = xp.sort(block, axis=1)
    return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2


_UNWEIGHTED = {
    "variance": _variance,
    "median": _median,
    "minimum": lambda xp, block, n: xp.min(block, axis=1),
    "maximum": lambda xp, block, n: xp.max(block, axis=1),
}
