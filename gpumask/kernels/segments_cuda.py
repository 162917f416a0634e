"""CUDA kernels of the region statistics, and their launch.

The stored values are read once, in the dtype that they have, and scaled in registers; what is not finite is kept,
counted as 0 or left out on the way. Regions are cut into parts of `PART` entries. A warp takes a part of `VOLUMES`
volumes at a time, so that an index and a weight are read once for all of these; the parts' partial results meet in a
second kernel, a warp for each region and volume. Every addition has its place: lanes take entries in strides, their
sums meet in a tree of shuffles, parts follow one another likewise. There are no atomic additions of floating-point
numbers, and a volume's sums do not depend on the volumes beside it.
"""

from typing import NamedTuple

import numpy as np

from gpumask import backend, cuda_runtime
from gpumask.kernels import median_cuda, scaling_cuda

_WARP = 32
_WARPS = 4  # in a block; they share nothing, a block only carries them
_VOLUMES = 8  # of a warp: 8 (with shares 16) accumulators in double precision stay in registers
PART = 512  # entries of a warp: 16 loads a lane, against which the tree of 5 shuffles weighs little

_SOURCE = (
    scaling_cuda.SOURCE
    + r"""
enum { SUM, MEAN, VARIANCE, STANDARD_DEVIATION, MINIMUM, MAXIMUM };

template <int STATISTIC>
__device__ double combine(double a, double b) {
    if (STATISTIC == MINIMUM) return (b < a || b != b) ? b : a;  // as NumPy's minimum, NaN wins
    if (STATISTIC == MAXIMUM) return (b > a || b != b) ? b : a;
    return a + b;
}

template <int STATISTIC>
__device__ double neutral() {
    return STATISTIC == MINIMUM ? 1.0 / 0.0 : STATISTIC == MAXIMUM ? -1.0 / 0.0 : 0.0;
}

template <int STATISTIC>
__device__ double over_lanes(double value) {  // valid in lane 0
    for (int distance = 16; distance > 0; distance /= 2)
        value = combine<STATISTIC>(value, __shfl_down_sync(0xffffffffu, value, distance));
    return value;
}

// STATISTIC: SUM, MINIMUM, MAXIMUM, or VARIANCE for the sum of squared differences from `centers`.
template <typename T, typename I, int STATISTIC, int POLICY>
__global__ void reduce_parts(const T* __restrict__ data, long long n_volumes, long long n_voxels,
                             const I* __restrict__ indices, const double* __restrict__ weights,
                             const long long* __restrict__ offsets, const int* __restrict__ region_of_part,
                             const long long* __restrict__ first_part, long long n_parts, long long n_regions,
                             const double* __restrict__ centers, double slope, double inter,
                             double* __restrict__ partials, double* __restrict__ shares,
                             unsigned int* __restrict__ found) {
    const int lane = threadIdx.x % 32;
    const long long part = (long long)blockIdx.x * WARPS + threadIdx.x / 32;
    if (part >= n_parts) return;  // the whole warp does
    const long long region = region_of_part[part];
    const long long start = offsets[region] + (part - first_part[region]) * PART;
    const long long stop = start + PART < offsets[region + 1] ? start + PART : offsets[region + 1];
    for (long long volume = (long long)blockIdx.y * VOLUMES; volume < n_volumes;
         volume += (long long)gridDim.y * VOLUMES) {
        const T* values[VOLUMES];
        double result[VOLUMES], share[VOLUMES], center[VOLUMES];
        bool some[VOLUMES];
#pragma unroll
        for (int k = 0; k < VOLUMES; k++) {
            const long long v = volume + k < n_volumes ? volume + k : n_volumes - 1;  // the last one again: no branch
            values[k] = data + v * n_voxels;
            result[k] = neutral<STATISTIC>();
            share[k] = 0.0;
            some[k] = false;
            if (STATISTIC == VARIANCE) center[k] = centers[v * n_regions + region];
        }
        long long entry = start + lane;
        long long next = entry < stop ? indices[entry] : 0;
#pragma unroll 2
        for (; entry < stop; entry += 32) {
            const long long voxel = next;
            if (entry + 32 < stop) next = indices[entry + 32];  // on its way while these voxels are
            const double weight = weights ? weights[entry] : 1.0;
#pragma unroll
            for (int k = 0; k < VOLUMES; k++) {
                double value = scaled(values[k][voxel], slope, inter);
                const bool finite = is_finite(value);
                some[k] |= !finite;
                if (POLICY == ZERO && !finite) value = 0.0;
                if (STATISTIC == VARIANCE) value = (value - center[k]) * (value - center[k]);
                if (STATISTIC == SUM) value *= weight;
                if (POLICY == OMIT && !finite) value = neutral<STATISTIC>();
                if (POLICY == OMIT && finite) share[k] += weight;
                result[k] = combine<STATISTIC>(result[k], value);
            }
        }
#pragma unroll
        for (int k = 0; k < VOLUMES; k++) {
            const double total = over_lanes<STATISTIC>(result[k]);
            const double counted = POLICY == OMIT ? over_lanes<SUM>(share[k]) : 0.0;
            const bool any = __any_sync(0xffffffffu, some[k]);
            if (lane == 0 && volume + k < n_volumes) {
                partials[(volume + k) * n_parts + part] = total;
                if (POLICY == OMIT) shares[(volume + k) * n_parts + part] = counted;
                if (any) atomicOr(&found[volume + k], 1u);
            }
        }
    }
}

template <int STATISTIC, int POLICY>
__global__ void combine_parts(const double* __restrict__ partials, const double* __restrict__ shares,
                              const double* __restrict__ totals, const long long* __restrict__ first_part,
                              long long n_parts, long long n_volumes, long long n_regions,
                              double* __restrict__ signals) {
    const int lane = threadIdx.x % 32;
    const long long region = (long long)blockIdx.x * WARPS + threadIdx.x / 32;
    if (region >= n_regions) return;  // the whole warp does
    for (long long volume = blockIdx.y; volume < n_volumes; volume += gridDim.y) {
        double result = neutral<STATISTIC>(), share = 0.0;
        for (long long part = first_part[region] + lane; part < first_part[region + 1]; part += 32) {
            result = combine<STATISTIC>(result, partials[volume * n_parts + part]);
            if (POLICY == OMIT) share += shares[volume * n_parts + part];
        }
        result = over_lanes<STATISTIC>(result);
        share = POLICY == OMIT ? over_lanes<SUM>(share) : totals[region];
        if (STATISTIC == MEAN || STATISTIC == VARIANCE || STATISTIC == STANDARD_DEVIATION) result /= share;
        if (STATISTIC == STANDARD_DEVIATION) result = sqrt(result);
        if (STATISTIC != SUM && share == 0.0) result = 0.0 / 0.0;
        if (lane == 0) signals[volume * n_regions + region] = result;
    }
}
"""
)

_OPTIONS = (f"-DWARPS={_WARPS}", f"-DVOLUMES={_VOLUMES}", f"-DPART={PART}")
# What the first kernel collects for each statistic; a median is selected by a kernel of its own.
_COLLECTED = {
    "mean": "SUM",
    "sum": "SUM",
    "median": None,
    "minimum": "MINIMUM",
    "maximum": "MAXIMUM",
    "variance": "VARIANCE",
    "standard_deviation": "VARIANCE",
}


class Layout(NamedTuple):
    """Segments as the kernels take them: contiguous, of these dtypes, and cut into parts of at most `PART` entries.

    Attributes
    ----------
    indices : array of int, shape (n_entries,)
    weights : array of float64, shape (n_entries,), or None
    offsets : array of int64, shape (n_regions + 1,)
    region : array of int32, shape (n_parts,)
        Region of each part.
    first : array of int64, shape (n_regions + 1,)
        Region ``r`` has the parts ``first[r]:first[r + 1]``; none if it is empty.
    """

    indices: backend.Array
    weights: backend.Array | None
    offsets: backend.Array
    region: backend.Array
    first: backend.Array


def lay_out(segments):
    """The `Layout` of segments, on their device."""
    xp = backend.array_namespace(segments.offsets)
    n_parts = -(-segments.counts // PART)
    region = np.repeat(np.arange(len(n_parts), dtype=np.int32), n_parts)
    first = np.concatenate([[0], np.cumsum(n_parts, dtype=np.int64)])
    weights = segments.weights
    return Layout(
        xp.ascontiguousarray(segments.indices),
        None if weights is None else xp.ascontiguousarray(weights, dtype=xp.float64),
        xp.ascontiguousarray(segments.offsets, dtype=xp.int64),
        backend.like(region, segments.offsets),
        backend.like(first, segments.offsets),
    )


def reduce(data, segments, strategy, *, slope=1.0, inter=0.0, non_finite="keep"):
    """Region statistics of scaled CuPy volumes; see `gpumask.kernels.segments.reduce`.

    Takes one pass over the stored values, two for a variance. They are read as they are where they are C-contiguous and
    of a dtype that C has; others (strided, float16) are copied first.
    """
    xp = backend.array_namespace(data)
    device = backend.device_of(data)
    slope, inter = float(slope), float(inter)
    with device:  # not always the thread's current one
        if data.dtype.name not in scaling_cuda.C_TYPES:
            data = xp.astype(data, xp.float64)
        data = xp.ascontiguousarray(data)
        shape = (data.shape[0], len(segments))
        signals = xp.empty(shape, dtype=xp.float64, device=device)
        found = xp.zeros(data.shape[0], dtype=xp.uint32, device=device)
        if signals.size:
            run = (data, segments, slope, inter, non_finite)
            if strategy == "median":
                median_cuda.medians(*run, signals, found)
            else:
                centers = xp.empty_like(signals) if _COLLECTED[strategy] == "VARIANCE" else None
                if centers is not None:
                    _launch(*run, "mean", None, centers, found)
                _launch(*run, strategy, centers, signals, found)
        return signals, xp.astype(found, xp.bool)


def _launch(data, segments, slope, inter, non_finite, strategy, centers, signals, found):
    xp = backend.array_namespace(data)
    device = backend.device_of(data)
    n_volumes, n_regions = signals.shape
    layout, policy = segments.layout, scaling_cuda.NON_FINITE[non_finite]
    n_parts = layout.region.shape[0]
    partials = xp.empty((n_volumes, n_parts), dtype=xp.float64, device=device)
    shares = xp.empty_like(partials) if non_finite == "omit" else None
    block = (_WARPS * _WARP,)
    if n_parts:
        types = scaling_cuda.types(data, segments)
        kernel = cuda_runtime.cuda_kernel(_SOURCE, f"reduce_parts<{types}, {_COLLECTED[strategy]}, {policy}>", _OPTIONS)
        arguments = (data, n_volumes, data.shape[1], *layout, n_parts, n_regions)
        arguments += (centers, slope, inter, partials, shares, found)
        grid = (-(-n_parts // _WARPS), min(-(-n_volumes // _VOLUMES), scaling_cuda.GRID_HEIGHT))
        kernel(grid, block, _pointers(arguments))
    kernel = cuda_runtime.cuda_kernel(_SOURCE, f"combine_parts<{strategy.upper()}, {policy}>", _OPTIONS)
    arguments = (partials, shares, segments.totals, layout.first, n_parts, n_volumes, n_regions, signals)
    kernel((-(-n_regions // _WARPS), min(n_volumes, scaling_cuda.GRID_HEIGHT)), block, _pointers(arguments))


def _pointers(arguments):
    return tuple(0 if argument is None else argument for argument in arguments)
