"""CUDA kernel of the region medians, and its launch.

A thread block selects the middle of one region of one volume, without sorting or copying the region. Values become
64-bit integers in the same order. A histogram of the integers that are still possible tells in which of 256 equal
intervals the middle one lies, which is then divided again, until the integers left fit into shared memory and are
ranked there. Counts and minima of integers are the same in any order, so atomics on them leave no trace in the result.
"""

from gpumask import cuda_runtime
from gpumask.kernels import scaling_cuda

_THREADS, _MANY_THREADS = 128, 512
_MANY = 8192  # entries of the largest region, from which a block has more threads; the result is the same

_SOURCE = (
    scaling_cuda.SOURCE
    + r"""
typedef unsigned long long Key;
const Key NAN_KEY = ~0ULL;  // above all others: NaN sorts last, as in NumPy
const int BINS = 256, CAPACITY = 256;

__device__ Key key_of(double value) {
    if (value != value) return NAN_KEY;
    const Key bits = (Key)__double_as_longlong(value + 0.0);  // -0 becomes 0
    return bits >> 63 ? ~bits : bits | 1ULL << 63;
}

__device__ double value_of(Key key) {
    if (key == NAN_KEY) return 0.0 / 0.0;
    return __longlong_as_double((long long)(key >> 63 ? key & ~(1ULL << 63) : ~key));
}

template <typename T, typename I, int POLICY>
struct Region {
    const T* values;
    const I* indices;
    long long start, stop;
    double slope, inter;

    // Calls visit(key, whether the scaled value is finite) for this thread's share of the entries that count.
    template <typename Visit>
    __device__ void each(Visit visit) const {
        for (long long entry = start + threadIdx.x; entry < stop; entry += THREADS) {
            double value = scaled(values[indices[entry]], slope, inter);
            const bool finite = is_finite(value);
            if (POLICY == ZERO && !finite) value = 0.0;
            visit(key_of(value), finite);
        }
    }
};

// In the first warp: the bin that holds `rank`, and the rank inside that bin, from the counts of 256 bins.
__device__ void find_bin(const unsigned int* bins, unsigned int rank, unsigned int* bin, unsigned int* rank_in_bin) {
    const int lane = threadIdx.x;
    unsigned int own = 0;
    for (int b = 0; b < BINS / 32; b++) own += bins[lane * (BINS / 32) + b];
    unsigned int upto = own;
    for (int distance = 1; distance < 32; distance *= 2) {
        const unsigned int other = __shfl_up_sync(0xffffffffu, upto, distance);
        if (lane >= distance) upto += other;
    }
    unsigned int before = upto - own;
    if (rank < before || rank >= upto) return;
    int b = lane * (BINS / 32);
    while (rank >= before + bins[b]) before += bins[b++];
    *bin = b;
    *rank_in_bin = rank - before;
}

template <typename T, typename I, int POLICY>
__global__ void select_medians(const T* __restrict__ data, long long n_volumes, long long n_voxels,
                               const I* __restrict__ indices, const long long* __restrict__ offsets,
                               long long n_regions, double slope, double inter, double* __restrict__ signals,
                               unsigned int* __restrict__ found) {
    __shared__ Key lowest, highest, middle, above;
    __shared__ unsigned int n_counted, n_gathered, n_upto, bin, rank_in_bin;
    __shared__ unsigned int bins[BINS];
    __shared__ Key gathered[CAPACITY];
    const unsigned int thread = threadIdx.x;
    const long long r = blockIdx.x;
    for (long long volume = blockIdx.y; volume < n_volumes; volume += gridDim.y) {
        const Region<T, I, POLICY> region = {data + volume * n_voxels, indices, offsets[r], offsets[r + 1],
                                             slope, inter};
        if (thread == 0) {
            lowest = above = ~0ULL;
            highest = 0;
            n_counted = n_gathered = n_upto = 0;
        }
        __syncthreads();

        Key own_lowest = ~0ULL, own_highest = 0;
        unsigned int own_counted = 0;
        bool some = false;
        region.each([&](Key key, bool finite) {
            some |= !finite;
            if (POLICY == OMIT && !finite) return;
            own_lowest = key < own_lowest ? key : own_lowest;
            own_highest = key > own_highest ? key : own_highest;
            own_counted++;
        });
        atomicMin(&lowest, own_lowest);
        atomicMax(&highest, own_highest);
        atomicAdd(&n_counted, own_counted);
        if (some) atomicOr(&found[volume], 1u);
        __syncthreads();

        // The middle is among `left` keys from `low` to `high`, and has this rank there.
        const unsigned int n = n_counted;
        Key low = lowest, high = highest;
        unsigned int left = n, rank = n ? (n - 1) / 2 : 0;
        while (left > CAPACITY && low < high) {
            for (int b = thread; b < BINS; b += THREADS) bins[b] = 0;
            __syncthreads();
            const int width = 64 - __clzll((long long)(high - low)), shift = width > 8 ? width - 8 : 0;
            region.each([&](Key key, bool finite) {
                if (POLICY == OMIT && !finite) return;
                if (key >= low && key <= high) atomicAdd(&bins[(key - low) >> shift], 1u);
            });
            __syncthreads();
            if (thread < 32) find_bin(bins, rank, &bin, &rank_in_bin);
            __syncthreads();
            rank = rank_in_bin;
            left = bins[bin];
            low += (Key)bin << shift;
            const Key last = low + ((1ULL << shift) - 1);
            high = last < high ? last : high;
            __syncthreads();  // the next turn clears the bins
        }
        if (low == high) {
            if (thread == 0) middle = low;
        } else if (n) {
            region.each([&](Key key, bool finite) {
                if (POLICY == OMIT && !finite) return;
                if (key >= low && key <= high) gathered[atomicAdd(&n_gathered, 1u)] = key;
            });
            __syncthreads();
            for (unsigned int i = thread; i < left; i += THREADS) {
                const Key key = gathered[i];
                unsigned int smaller = 0;  // of equal keys, the one gathered first
                for (unsigned int j = 0; j < left; j++) smaller += gathered[j] < key || (gathered[j] == key && j < i);
                if (smaller == rank) middle = key;
            }
        }
        __syncthreads();

        if (n && n % 2 == 0) {  // the other middle: the same again, or the smallest above
            const Key key_below = middle;
            Key own_above = ~0ULL;
            unsigned int own_upto = 0;
            region.each([&](Key key, bool finite) {
                if (POLICY == OMIT && !finite) return;
                if (key <= key_below)
                    own_upto++;
                else if (key < own_above)
                    own_above = key;
            });
            atomicMin(&above, own_above);
            atomicAdd(&n_upto, own_upto);
        }
        __syncthreads();
        if (thread == 0) {
            const bool same = n % 2 == 1 || n_upto > n / 2;
            const double one = value_of(middle), other = same ? one : value_of(above);
            signals[volume * n_regions + r] = n ? (one + other) / 2 : 0.0 / 0.0;
        }
    }
}
"""
)


def medians(data, segments, slope, inter, non_finite, signals, found):
    """Write the medians of scaled volumes to `signals`, and to `found` (uint32) where something was not finite.

    See `segments_cuda.reduce`, which calls this with everything checked, for the parameters.
    """
    n_volumes, n_regions = signals.shape
    n_threads = _MANY_THREADS if segments.counts.max() > _MANY else _THREADS
    kernel = cuda_runtime.cuda_kernel(
        _SOURCE,
        f"select_medians<{scaling_cuda.types(data, segments)}, {scaling_cuda.NON_FINITE[non_finite]}>",
        (f"-DTHREADS={n_threads}",),
    )
    indices, offsets = segments.layout.indices, segments.layout.offsets
    arguments = (data, n_volumes, data.shape[1], indices, offsets, n_regions, slope, inter)
    kernel((n_regions, min(n_volumes, scaling_cuda.GRID_HEIGHT)), (n_threads,), (*arguments, signals, found))
