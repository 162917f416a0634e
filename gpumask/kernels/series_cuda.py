"""CUDA kernel of the sums of series, and its launch.

A thread has one time point of one region and adds its series in their order: neighbouring threads read neighbouring
time points, and no addition depends on what else is summed.
"""

from gpumask import backend, cuda_runtime
from gpumask.kernels import scaling_cuda

_THREADS = 128
_OPTIONS = ("--fmad=false",)  # the bits of the CPU
_SOURCE = r"""
template <typename T>
__global__ void add_series(const T* __restrict__ data, long long n_times, const long long* __restrict__ rows,
                           const long long* __restrict__ offsets, const int* __restrict__ regions,
                           const double* __restrict__ weights, long long n_segments, double* __restrict__ sums) {
    const long long time = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (time >= n_times) return;
    for (long long segment = blockIdx.y; segment < n_segments; segment += gridDim.y) {
        double* sum = sums + (long long)regions[segment] * n_times + time;
        double total = *sum;
        for (long long entry = offsets[segment]; entry < offsets[segment + 1]; entry++) {
            const double value = (double)data[rows[entry] * n_times + time];
            total += weights ? weights[entry] * value : value;
        }
        *sum = total;
    }
}
"""


def add_block(data, entries, sums):
    """Add the series of a block to the sums of their regions, on a GPU; see `gpumask.kernels.series.add_block`."""
    if not entries.regions.shape[0]:
        return
    xp = backend.array_namespace(data)
    with backend.device_of(data):  # not always the thread's current one
        if data.dtype.name not in scaling_cuda.C_TYPES:
            data = xp.astype(data, xp.float64)
        data = xp.ascontiguousarray(data)
        n_times, n_segments = data.shape[1], entries.regions.shape[0]
        name = f"add_series<{scaling_cuda.C_TYPES[data.dtype.name]}>"
        kernel = cuda_runtime.cuda_kernel(_SOURCE, name, _OPTIONS)
        weights = 0 if entries.weights is None else entries.weights
        arguments = (data, n_times, entries.rows, entries.offsets, entries.regions, weights, n_segments, sums)
        kernel((-(-n_times // _THREADS), min(n_segments, scaling_cuda.GRID_HEIGHT)), (_THREADS,), arguments)
