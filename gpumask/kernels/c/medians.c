/* Medians of series, whose time points are contiguous: bisection of LANES time points at once.

   Values become 32-bit integers of the same order. The bits of the k-th smallest are found from the highest to the
   lowest: one is set if no more than k values are below. That is a comparison per bit and value, but of a vector of values, and
   the bits that all values of a region share are skipped. -0 counts as 0. */

#include "arrays.h"

#include <math.h>
#include <stdlib.h>

#define LANES 16 /* a line of the cache in float */
#define HALF 8   /* a vector of AVX2 */
#define SIGN 0x80000000u
#define INFINITE 0x7f800000

typedef int32_t Keys __attribute__((vector_size(4 * HALF)));

static inline int32_t key_of(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); } /* and its inverse */

static inline double value_of(int type, int32_t key) {
    if (type != FLOAT32) return key;
    const int32_t bits = key_of(key);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Keys of n time points of some series, LANES for each series: the last one is repeated. `odd`: not finite. */
#define WHOLE(TYPE)                                                                                           \
    static void keys_##TYPE(const char *data, Py_ssize_t stride, const int64_t *restrict rows, Py_ssize_t count, int n, \
                            int32_t *restrict keys, uint8_t *restrict Py_UNUSED(odd)) {                       \
        for (Py_ssize_t e = 0; e < count; e++) {                                                              \
            const TYPE *restrict row = (const TYPE *)(data + rows[e] * stride);                               \
            for (int l = 0; l < LANES; l++) keys[e * LANES + l] = (int32_t)row[l < n ? l : n - 1];            \
        }                                                                                                     \
    }
WHOLE(int8_t)
WHOLE(uint8_t)
WHOLE(int16_t)
WHOLE(uint16_t)
WHOLE(int32_t)

static void keys_float(const char *data, Py_ssize_t stride, const int64_t *restrict rows, Py_ssize_t count, int n,
                       int32_t *restrict keys, uint8_t *restrict odd) {
    int32_t largest[LANES] = {0};
    for (Py_ssize_t e = 0; e < count; e++) {
        const float *restrict row = (const float *)(data + rows[e] * stride);
        float values[LANES];
        int32_t bits[LANES];
        if (n == LANES)
            memcpy(values, row, sizeof values);
        else
            for (int l = 0; l < LANES; l++) values[l] = row[l < n ? l : n - 1];
        for (int l = 0; l < LANES; l++) values[l] += 0.0f; /* -0 becomes 0 */
        memcpy(bits, values, sizeof bits);
        for (int l = 0; l < LANES; l++) {
            const int32_t size = bits[l] & 0x7fffffff;
            largest[l] = size > largest[l] ? size : largest[l];
            keys[e * LANES + l] = key_of(bits[l]);
        }
    }
    for (int l = 0; l < LANES; l++) odd[l] = largest[l] >= INFINITE;
}

/* The keys at the places k (`lower`) and k + 1 (`upper`) of each lane in ascending order, counted from 0. */
#define SELECT(NAME, TARGET)                                                                                  \
    TARGET static void NAME(const int32_t *keys, Py_ssize_t count, Py_ssize_t k, int32_t *lower, int32_t *upper) { \
        for (int half = 0; half < LANES; half += HALF) {                                                      \
            const Keys *rows = (const Keys *)(keys + half);                                                   \
            Keys low = rows[0], high = rows[0], limit, below, above;                                          \
            for (Py_ssize_t e = 1; e < count; e++) {                                                          \
                const Keys row = rows[e * (LANES / HALF)], is_lower = row < low, is_higher = row > high;      \
                low = (is_lower & row) | (~is_lower & low);                                                   \
                high = (is_higher & row) | (~is_higher & high);                                               \
            }                                                                                                 \
            uint32_t differ = 0, found[HALF];                                                                 \
            for (int l = 0; l < HALF; l++) differ |= (uint32_t)(low[l] ^ high[l]);                            \
            int bit = -1;                                                                                     \
            while (bit < 31 && differ >> (bit + 1)) bit++;                                                    \
            const uint32_t shared = bit < 31 ? ~0u << (bit + 1) : 0;                                          \
            for (int l = 0; l < HALF; l++) found[l] = ((uint32_t)low[l] ^ SIGN) & shared;                     \
            for (; bit >= 0; bit--) {                                                                         \
                for (int l = 0; l < HALF; l++) limit[l] = (int32_t)((found[l] | 1u << bit) ^ SIGN);           \
                below = (Keys){0};                                                                            \
                for (Py_ssize_t e = 0; e < count; e++) below -= rows[e * (LANES / HALF)] < limit;             \
                for (int l = 0; l < HALF; l++)                                                                \
                    if (below[l] <= k) found[l] |= 1u << bit;                                                 \
            }                                                                                                 \
            for (int l = 0; l < HALF; l++) limit[l] = (int32_t)(found[l] ^ SIGN);                             \
            below = (Keys){0};                                                                                \
            above = high;                                                                                     \
            for (Py_ssize_t e = 0; e < count; e++) {                                                          \
                const Keys row = rows[e * (LANES / HALF)], is_above = row > limit;                            \
                const Keys is_next = is_above & (row < above);                                                \
                below -= ~is_above;                                                                           \
                above = (is_next & row) | (~is_next & above);                                                 \
            }                                                                                                 \
            for (int l = 0; l < HALF; l++) {                                                                  \
                lower[half + l] = limit[l];                                                                   \
                upper[half + l] = below[l] > k + 1 ? limit[l] : above[l];                                     \
            }                                                                                                 \
        }                                                                                                     \
    }

SELECT(select_portable, )
#ifdef __x86_64__
SELECT(select_avx2, __attribute__((target("avx2"))))
#endif

typedef void (*Select)(const int32_t *, Py_ssize_t, Py_ssize_t, int32_t *, int32_t *);
typedef void (*MakeKeys)(const char *, Py_ssize_t, const int64_t *, Py_ssize_t, int, int32_t *, uint8_t *);

static Select fastest(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) return select_avx2;
#endif
    return select_portable;
}

static MakeKeys keys_of(int type) {
    switch (type) {
    case INT8: return keys_int8_t;
    case UINT8: return keys_uint8_t;
    case INT16: return keys_int16_t;
    case UINT16: return keys_uint16_t;
    case INT32: return keys_int32_t;
    case FLOAT32: return keys_float;
    default: return NULL;
    }
}

/* medians_of_series(data, rows, offsets, out, odd): as extremes_of_series, of types of up to 32 bits except uint32 */
PyObject *medians_of_series(PyObject *Py_UNUSED(module), PyObject *args) {
    SeriesStatistic s;
    PyObject *objects[SERIES_ARRAYS];
    if (!PyArg_ParseTuple(args, "OOOOO", objects, objects + 1, objects + 2, objects + 3, objects + 4)) return NULL;
    if (open_series_statistic(objects, &s) < 0) return close_arrays(s.views, SERIES_ARRAYS);
    const MakeKeys make_keys = keys_of(s.type);
    const Select select = fastest();
    Py_ssize_t largest = 1;
    for (Py_ssize_t r = 0; r < s.n_regions; r++)
        if (s.offsets[r + 1] - s.offsets[r] > largest) largest = s.offsets[r + 1] - s.offsets[r];
    int32_t *keys = NULL;
    if (!make_keys)
        PyErr_SetString(PyExc_TypeError, "`data` must be of float32, or of integers that fit into int32.");
    else if (!(keys = aligned_alloc(64, (size_t)largest * LANES * sizeof(int32_t))))
        PyErr_NoMemory();
    if (!keys) return close_arrays(s.views, SERIES_ARRAYS);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t r = 0; r < s.n_regions; r++) {
        const Py_ssize_t count = s.offsets[r + 1] - s.offsets[r], k = (count - 1) / 2;
        double *out = (double *)((char *)s.out + r * s.out_stride);
        uint8_t *odd = s.odd + r * s.odd_stride;
        for (Py_ssize_t first = 0; first < s.n_times; first += LANES) {
            const int n = s.n_times - first < LANES ? (int)(s.n_times - first) : LANES;
            int32_t lower[LANES], upper[LANES];
            uint8_t is_odd[LANES] = {0};
            if (count) {
                make_keys(s.data + first * s.itemsize, s.stride, s.rows + s.offsets[r], count, n, keys, is_odd);
                select(keys, count, k, lower, upper);
            }
            for (int l = 0; l < n; l++) {
                const double low = count ? value_of(s.type, lower[l]) : NAN;
                out[first + l] = count && count % 2 == 0 ? (low + value_of(s.type, upper[l])) / 2 : low;
                odd[first + l] = is_odd[l];
            }
        }
    }
    Py_END_ALLOW_THREADS
    free(keys);
    return close_arrays(s.views, SERIES_ARRAYS);
}
