"""CUDA source of the segment reductions, and its launch.

One thread block reduces one region of one volume. Every thread takes the region's entries in strides of the block's
size and the partial results meet in a fixed tree, so the order of summation is the same on every run: no atomics.
The stored dtype is read as it is and converted in registers, so int16 volumes cost two bytes a voxel.
"""

from gpumask import backend

_THREADS = 128

_SOURCE = r"""
enum { SUM, SQUARES, MINIMUM, MAXIMUM };

template <int STATISTIC>
__device__ double combine(double a, double b) {
    if (STATISTIC == MINIMUM) return (b < a || b != b) ? b : a;  // as NumPy's minimum, NaN wins
    if (STATISTIC == MAXIMUM) return (b > a || b != b) ? b : a;
    return a + b;
}

template <typename T, typename I, int STATISTIC>
__global__ void segment_reduce(const T* __restrict__ data, long long n_voxels, const I* __restrict__ indices,
                               const long long* __restrict__ offsets, const double* __restrict__ weights,
                               const double* __restrict__ centers, long long n_volumes, double* __restrict__ out) {
    __shared__ double partial[THREADS];
    const long long n_regions = gridDim.x;
    const long long region = blockIdx.x, thread = threadIdx.x;
    const long long start = offsets[region], stop = offsets[region + 1];
    for (long long volume = blockIdx.y; volume < n_volumes; volume += gridDim.y) {
        const T* values = data + volume * n_voxels;
        const double center = STATISTIC == SQUARES ? centers[volume * n_regions + region] : 0.0;
        double result = STATISTIC == MINIMUM ? 1.0 / 0.0 : STATISTIC == MAXIMUM ? -1.0 / 0.0 : 0.0;
        for (long long entry = start + thread; entry < stop; entry += THREADS) {
            double value = (double)values[indices[entry]];
            if (STATISTIC == SQUARES) value = (value - center) * (value - center);
            if (STATISTIC == SUM && weights) value *= weights[entry];
            result = combine<STATISTIC>(result, value);
        }
        partial[thread] = result;
        __syncthreads();
        for (int half = THREADS / 2; half > 0; half /= 2) {
            if (thread < half) partial[thread] = combine<STATISTIC>(partial[thread], partial[thread + half]);
            __syncthreads();
        }
        if (thread == 0) out[volume * n_regions + region] = partial[0];
        __syncthreads();  // the next volume writes `partial` again
    }
}
"""

_STATISTICS = {"sum": "SUM", "squares": "SQUARES", "minimum": "MINIMUM", "maximum": "MAXIMUM"}
_C_TYPES = {
    "bool": "bool",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
    "float32": "float",
    "float64": "double",
}


def reduce(data, segments, statistic, centers=None):
    """Reduce CuPy volumes over the segments.

    Parameters
    ----------
    data : cupy.ndarray, shape (n_volumes, n_voxels)
        Of any real dtype that C has.
    segments : Segments
        On the device of `data`.
    statistic : {"sum", "squares", "minimum", "maximum"}
        "squares" sums the squared differences from `centers`.
    centers : cupy.ndarray of float64, shape (n_volumes, n_regions), optional
        Only for "squares".

    Returns
    -------
    cupy.ndarray of float64, shape (n_volumes, n_regions)
    """
    xp = backend.array_namespace(data)
    device = backend.device_of(data)
    with device:  # not always the thread's current one
        out = xp.empty((data.shape[0], len(segments)), dtype=xp.float64, device=device)
        if out.size == 0:
            return out
        if data.dtype.name not in _C_TYPES:
            data = xp.astype(data, xp.float64)  # float16 has no plain C type
        indices, offsets = segments.indices, xp.astype(segments.offsets, xp.int64, copy=False)
        types = f"{_C_TYPES[data.dtype.name]}, {_C_TYPES[indices.dtype.name]}, {_STATISTICS[statistic]}"
        kernel = backend.cuda_kernel(_SOURCE, f"segment_reduce<{types}>", (f"-DTHREADS={_THREADS}",))
        data = xp.ascontiguousarray(data)
        arguments = (data, data.shape[1], indices, offsets, segments.weights, centers, data.shape[0], out)
        # The y dimension of a grid ends at 65 535; the kernel strides over volumes beyond it.
        grid = (len(segments), min(data.shape[0], 65535))
        kernel(grid, (_THREADS,), tuple(0 if argument is None else argument for argument in arguments))
    return out
