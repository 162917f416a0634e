/* Statistics of segments of voxels: the inner loops of the CPU.

   `sums` expects the weights cut into blocks of voxels (`Segments.blocks`), which `blocks` checks once. For each block, the stored values of LANES
   volumes are gathered, converted to double and laid side by side, so one vector instruction multiplies a weight with
   several volumes. A region's entries are added in their order, in double, without fused multiply-adds: the result has
   the bits of the same sums in scipy.sparse, which take four to seven times as long. The weights (10 bytes each) are read
   from memory once per LANES volumes.

   `statistics` gathers one region of one volume at a time, as double, and computes its variance, extremes or median. */

#include "arrays.h"

#include <math.h>
#include <stdlib.h>

#define LANES 16 /* or 8 or 4, where there are no more volumes */

typedef struct {
    Py_ssize_t n_regions, n_blocks;
    int64_t largest, n_needed; /* voxels of the largest block; the volumes must have this many */
    const int64_t *parts;      /* (n_blocks + 1) x 2: first voxel and row of each block */
    const int64_t *voxels;     /* voxel of each column, block after block */
    const int32_t *rows;       /* region of each row, block after block */
    const int64_t *spans;      /* first and last + 1 of each row's entries */
    const uint16_t *columns;   /* of each entry, within its block */
    const double *weights;     /* of each entry, or NULL */
    Py_buffer views[6];        /* keep the arrays alive */
} Blocks;

typedef struct {
    const char *data; /* volumes x voxels, stored dtype */
    Py_ssize_t n_volumes, n_voxels, itemsize;
    double *out; /* volumes x regions */
} Volumes;

/* One volume's values of a block's voxels go into every `lanes`-th slot: slots of missing volumes stay 0. */
#define GATHER_ALL(N)                                                                                         \
    for (Py_ssize_t v = 0; v < count; v++)                                                                    \
        for (int t = 0; t < N; t++) out[v * lanes + t] = (double)data[t * stride + voxels[v]];
#define GATHER(TYPE)                                                                                          \
    static void gather_##TYPE(const void *volumes, Py_ssize_t stride, int n, int lanes,                       \
                              const int64_t *restrict voxels, Py_ssize_t count, double *restrict out) {       \
        const TYPE *restrict data = volumes;                                                                  \
        if (n == LANES) {                                                                                     \
            GATHER_ALL(LANES)                                                                                 \
        } else if (n == LANES / 2) {                                                                          \
            GATHER_ALL(LANES / 2)                                                                             \
        } else {                                                                                              \
            GATHER_ALL(n)                                                                                     \
        }                                                                                                     \
    }                                                                                                         \
    static void pick_##TYPE(const void *volume, const int32_t *restrict voxels, Py_ssize_t count,             \
                            double *restrict out) {                                                           \
        const TYPE *restrict data = volume;                                                                   \
        for (Py_ssize_t v = 0; v < count; v++) out[v] = (double)data[voxels[v]];                              \
    }

FOR_ALL_TYPES(GATHER)

typedef struct {
    void (*gather)(const void *, Py_ssize_t, int, int, const int64_t *, Py_ssize_t, double *);
    void (*pick)(const void *, const int32_t *, Py_ssize_t, double *);
} Reader;

#define READER(TYPE) {gather_##TYPE, pick_##TYPE},
static const Reader readers[] = {FOR_ALL_TYPES(READER)};

/* Adds `rows` segments of one block to `sums` (regions x lanes). The accumulators of a vector's width stay in registers;
   vectors wider than the machine's would be spilled to memory at every addition, hence one copy per width. */
#define REDUCE(NAME, N_LANES, WIDTH, TARGET)                                                                  \
    typedef double NAME##_vector __attribute__((vector_size(WIDTH * 8), aligned(8)));                         \
    TARGET static void NAME(const double *restrict block, const double *restrict weights,                     \
                            const uint16_t *restrict columns, const int64_t *restrict spans,                  \
                            const int32_t *restrict rows, Py_ssize_t n_rows, double *restrict sums) {         \
        for (Py_ssize_t r = 0; r < n_rows; r++) {                                                             \
            NAME##_vector total[N_LANES / WIDTH] = {{0}};                                                     \
            if (weights)                                                                                      \
                for (int64_t e = spans[2 * r]; e < spans[2 * r + 1]; e++) {                                   \
                    const NAME##_vector *values = (const NAME##_vector *)(block + columns[e] * N_LANES);      \
                    for (int k = 0; k < N_LANES / WIDTH; k++) total[k] += values[k] * weights[e];             \
                }                                                                                             \
            else                                                                                              \
                for (int64_t e = spans[2 * r]; e < spans[2 * r + 1]; e++) {                                   \
                    const NAME##_vector *values = (const NAME##_vector *)(block + columns[e] * N_LANES);      \
                    for (int k = 0; k < N_LANES / WIDTH; k++) total[k] += values[k];                          \
                }                                                                                             \
            NAME##_vector *sum = (NAME##_vector *)(sums + (size_t)rows[r] * N_LANES);                         \
            for (int k = 0; k < N_LANES / WIDTH; k++) sum[k] += total[k];                                     \
        }                                                                                                     \
    }

REDUCE(reduce_16_by_2, 16, 2, )
REDUCE(reduce_8_by_2, 8, 2, )
REDUCE(reduce_4_by_2, 4, 2, )
#ifdef __x86_64__
REDUCE(reduce_16_by_4, 16, 4, __attribute__((target("avx"))))
REDUCE(reduce_8_by_4, 8, 4, __attribute__((target("avx"))))
REDUCE(reduce_4_by_4, 4, 4, __attribute__((target("avx"))))
REDUCE(reduce_16_by_8, 16, 8, __attribute__((target("avx512f"))))
REDUCE(reduce_8_by_8, 8, 8, __attribute__((target("avx512f"))))
#endif

typedef void (*Reduce)(const double *, const double *, const uint16_t *, const int64_t *, const int32_t *, Py_ssize_t,
                       double *);

static Reduce widest(int lanes) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (lanes > 4 && __builtin_cpu_supports("avx512f")) return lanes == 16 ? reduce_16_by_8 : reduce_8_by_8;
    if (__builtin_cpu_supports("avx")) return lanes == 16 ? reduce_16_by_4 : lanes == 8 ? reduce_8_by_4 : reduce_4_by_4;
#endif
    return lanes == 16 ? reduce_16_by_2 : lanes == 8 ? reduce_8_by_2 : reduce_4_by_2;
}

static int add_up(const Blocks *b, const Volumes *v, Reader reader) {
    const int lanes = v->n_volumes <= 4 ? 4 : v->n_volumes <= 8 ? 8 : LANES;
    const Reduce reduce = widest(lanes);
    double *block = aligned_alloc(64, (size_t)(b->largest > 0 ? b->largest : 1) * LANES * sizeof(double));
    double *sums = aligned_alloc(64, (size_t)(b->n_regions > 0 ? b->n_regions : 1) * LANES * sizeof(double));
    if (!block || !sums) {
        free(block);
        free(sums);
        return -1;
    }
    for (Py_ssize_t first = 0; first < v->n_volumes; first += lanes) {
        const int n = v->n_volumes - first < lanes ? (int)(v->n_volumes - first) : lanes;
        const char *volumes = v->data + (size_t)first * (size_t)v->n_voxels * (size_t)v->itemsize;
        memset(sums, 0, (size_t)(b->n_regions * lanes) * sizeof(double));
        if (n < lanes) memset(block, 0, (size_t)(b->largest * lanes) * sizeof(double));
        for (Py_ssize_t k = 0; k < b->n_blocks; k++) {
            const int64_t *part = b->parts + 2 * k;
            reader.gather(volumes, v->n_voxels, n, lanes, b->voxels + part[0], part[2] - part[0], block);
            reduce(block, b->weights, b->columns, b->spans + 2 * part[1], b->rows + part[1], part[3] - part[1], sums);
        }
        for (int t = 0; t < n; t++)
            for (Py_ssize_t r = 0; r < b->n_regions; r++) v->out[(first + t) * b->n_regions + r] = sums[r * lanes + t];
    }
    free(block);
    free(sums);
    return 0;
}

/* The statistics of one region's values. They may reorder `values`; `spare` has room for twice as many. */

#define PARALLEL 8 /* independent partial results, so that additions needn't wait for each other; in a fixed order */

static double total(const double *restrict values, Py_ssize_t n) {
    double parts[PARALLEL] = {0};
    Py_ssize_t i = 0;
    for (; i + PARALLEL <= n; i += PARALLEL)
        for (int k = 0; k < PARALLEL; k++) parts[k] += values[i + k];
    for (int k = 0; i < n; i++, k++) parts[k] += values[i];
    return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
}

static double variance(double *restrict values, Py_ssize_t n, double *Py_UNUSED(spare)) {
    const double mean = total(values, n) / (double)n;
    for (Py_ssize_t i = 0; i < n; i++) values[i] = (values[i] - mean) * (values[i] - mean);
    return total(values, n) / (double)n;
}

/* NaN if any value is. */
static void range_of(const double *restrict values, Py_ssize_t n, double *lowest, double *highest) {
    double low[PARALLEL], high[PARALLEL];
    int unordered = 0;
    for (int k = 0; k < PARALLEL; k++) low[k] = high[k] = values[0];
    Py_ssize_t i = 0;
    for (; i + PARALLEL <= n; i += PARALLEL)
        for (int k = 0; k < PARALLEL; k++) {
            const double value = values[i + k];
            low[k] = value < low[k] ? value : low[k];
            high[k] = value > high[k] ? value : high[k];
            unordered |= value != value;
        }
    for (int k = 0; i < n; i++, k++) {
        low[k] = values[i] < low[k] ? values[i] : low[k];
        high[k] = values[i] > high[k] ? values[i] : high[k];
        unordered |= values[i] != values[i];
    }
    for (int k = 1; k < PARALLEL; k++) {
        low[0] = low[k] < low[0] ? low[k] : low[0];
        high[0] = high[k] > high[0] ? high[k] : high[0];
    }
    *lowest = unordered ? NAN : low[0];
    *highest = unordered ? NAN : high[0];
}

static double minimum(double *restrict values, Py_ssize_t n, double *Py_UNUSED(spare)) {
    double low, high;
    range_of(values, n, &low, &high);
    return low;
}

static double maximum(double *restrict values, Py_ssize_t n, double *Py_UNUSED(spare)) {
    double low, high;
    range_of(values, n, &low, &high);
    return high;
}

static int ascending(const void *left, const void *right) { /* NaN last, as NumPy sorts */
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b) + (a != a) - (b != b);
}

#define BINS 256
#define FEW 24

static void sort_few(double *values, Py_ssize_t n) {
    for (Py_ssize_t i = 1; i < n; i++) {
        const double value = values[i];
        Py_ssize_t j = i;
        for (; j > 0 && values[j - 1] > value; j--) values[j] = values[j - 1];
        values[j] = value;
    }
}

/* The k-th smallest of n finite values. Counts them in bins between their extremes and goes on with the k-th one's bin:
   a bin is an increasing function of the value, so rounding can't confuse the order. */
static double select_finite(double *values, Py_ssize_t n, Py_ssize_t k, double low, double high, uint8_t *bins) {
    while (n > FEW && n <= UINT32_MAX && low < high) {
        const double scale = (BINS - 1) / (high - low);
        uint32_t counts[BINS] = {0};
        if (!isfinite(scale) || scale == 0) break; /* the range is denormal, or overflows */
        for (Py_ssize_t i = 0; i < n; i++) bins[i] = (uint8_t)(int)((values[i] - low) * scale);
        for (Py_ssize_t i = 0; i < n; i++) counts[bins[i]]++;
        int bin = 0;
        for (; k >= (Py_ssize_t)counts[bin]; bin++) k -= counts[bin];
        Py_ssize_t kept = 0;
        for (Py_ssize_t i = 0; i < n; i++) {
            values[kept] = values[i];
            kept += bins[i] == bin;
        }
        n = kept;
        range_of(values, n, &low, &high);
    }
    if (low == high) return low;
    if (n <= FEW)
        sort_few(values, n);
    else
        qsort(values, (size_t)n, sizeof(double), ascending);
    return values[k];
}

static double median(double *restrict values, Py_ssize_t n, double *spare) {
    const Py_ssize_t k = (n - 1) / 2;
    double low, high, upper;
    range_of(values, n, &low, &high);
    if (!isfinite(low) || !isfinite(high)) {
        qsort(values, (size_t)n, sizeof(double), ascending);
        return (values[k] + values[n / 2]) / 2;
    }
    memcpy(spare, values, (size_t)n * sizeof(double));
    const double lower = select_finite(spare, n, k, low, high, (uint8_t *)(spare + n));
    if (n % 2) return lower;
    Py_ssize_t not_above = 0;
    upper = high;
    for (Py_ssize_t i = 0; i < n; i++) {
        not_above += values[i] <= lower;
        upper = values[i] > lower && values[i] < upper ? values[i] : upper;
    }
    return (lower + (not_above > k + 1 ? lower : upper)) / 2;
}

typedef double (*Statistic)(double *restrict, Py_ssize_t, double *);

static Statistic statistic_of(const char *name) {
    if (strcmp(name, "variance") == 0) return variance;
    if (strcmp(name, "minimum") == 0) return minimum;
    if (strcmp(name, "maximum") == 0) return maximum;
    if (strcmp(name, "median") == 0) return median;
    return NULL;
}

static int check_volumes(const Py_buffer *data, const Py_buffer *out) {
    if (out->shape[0] == data->shape[0]) return 0;
    PyErr_Format(PyExc_ValueError, "`out` must have a row for each of the %zd volumes of `data`, got %zd.",
                 data->shape[0], out->shape[0]);
    return -1;
}

/* Whether the blocks' arrays fit together; measures `largest` and `n_needed`. */
static int measure_blocks(Blocks *b) {
    enum { PARTS, VOXELS, ROWS, SPANS, COLUMNS, WEIGHTS };
    const Py_buffer *views = b->views;
    const Py_ssize_t n_voxels = views[VOXELS].shape[0], n_rows = views[ROWS].shape[0];
    const Py_ssize_t n_entries = views[COLUMNS].shape[0];
    if (b->n_regions < 0 || b->n_blocks < 0 || views[PARTS].shape[1] != 2 || views[SPANS].shape[1] != 2) return -1;
    if (views[SPANS].shape[0] != n_rows || (b->weights && views[WEIGHTS].shape[0] != n_entries)) return -1;
    const int64_t *end = b->parts + 2 * b->n_blocks;
    if (b->parts[0] != 0 || b->parts[1] != 0 || end[0] != n_voxels || end[1] != n_rows) return -1;
    for (Py_ssize_t k = 0; k < b->n_blocks; k++) {
        const int64_t *part = b->parts + 2 * k;
        if (part[2] < part[0] || part[3] < part[1] || part[2] > n_voxels || part[3] > n_rows) return -1;
        const int64_t size = part[2] - part[0];
        if (size > b->largest) b->largest = size;
        for (int64_t row = part[1]; row < part[3]; row++) {
            const int64_t first = b->spans[2 * row], last = b->spans[2 * row + 1];
            if (b->rows[row] < 0 || b->rows[row] >= b->n_regions) return -1;
            if (first < 0 || last < first || last > n_entries) return -1;
            uint16_t highest = 0;
            for (int64_t e = first; e < last; e++) highest = b->columns[e] > highest ? b->columns[e] : highest;
            if (first < last && highest >= size) return -1;
        }
    }
    for (Py_ssize_t v = 0; v < n_voxels; v++) {
        if (b->voxels[v] < 0 || b->voxels[v] >= PY_SSIZE_T_MAX) return -1;
        if (b->voxels[v] >= b->n_needed) b->n_needed = b->voxels[v] + 1;
    }
    return 0;
}

#define CAPSULE "gpumask.kernels._compiled.blocks"

static void free_blocks(PyObject *capsule) {
    Blocks *b = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!b) return;
    for (int i = 0; i < 6; i++)
        if (b->views[i].obj) PyBuffer_Release(&b->views[i]);
    free(b);
}

/* blocks(parts, voxels, rows, spans, columns, weights, n_regions) -> what `sums` takes; it keeps the arrays, which must
   not change any more */
PyObject *blocks(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { PARTS, VOXELS, ROWS, SPANS, COLUMNS, WEIGHTS, N };
    static const Argument arguments[N] = {{"parts", INT64, 2, INPUT}, {"voxels", INT64, 1, INPUT},
                                          {"rows", INT32, 1, INPUT},  {"spans", INT64, 2, INPUT},
                                          {"columns", UINT16, 1, INPUT}, {"weights", FLOAT64, 1, OPTIONAL}};
    PyObject *objects[N];
    Blocks *b = calloc(1, sizeof(Blocks));
    if (!b) return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(b, CAPSULE, free_blocks);
    if (!capsule) {
        free(b);
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OOOOOOn", objects, objects + 1, objects + 2, objects + 3, objects + 4, objects + 5,
                          &b->n_regions) ||
        open_arrays(objects, b->views, N, arguments) < 0)
        goto failed;
    b->n_blocks = b->views[PARTS].shape[0] - 1;
    b->parts = b->views[PARTS].buf;
    b->voxels = b->views[VOXELS].buf;
    b->rows = b->views[ROWS].buf;
    b->spans = b->views[SPANS].buf;
    b->columns = b->views[COLUMNS].buf;
    b->weights = b->views[WEIGHTS].buf;
    if (measure_blocks(b) == 0) return capsule;
    PyErr_SetString(PyExc_ValueError, "`parts`, `voxels`, `rows`, `spans`, `columns` and `weights` don't fit together: "
                                      "use those of `Segments.blocks`.");
failed:
    Py_DECREF(capsule);
    return NULL;
}

/* sums(data, blocks, out) */
PyObject *sums(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { DATA, OUT, N };
    static const Argument arguments[N] = {{"data", REAL, 2, INPUT}, {"out", FLOAT64, 2, RESULT}};
    PyObject *objects[N], *capsule;
    Py_buffer views[N];
    if (!PyArg_ParseTuple(args, "OOO", objects, &capsule, objects + 1)) return NULL;
    if (!PyCapsule_IsValid(capsule, CAPSULE)) {
        PyErr_SetString(PyExc_TypeError, "`blocks` must be what `blocks` returned.");
        return NULL;
    }
    const Blocks *b = PyCapsule_GetPointer(capsule, CAPSULE);
    if (open_arrays(objects, views, N, arguments) < 0) return close_arrays(views, N);
    const Volumes volumes = {views[DATA].buf, views[DATA].shape[0], views[DATA].shape[1], views[DATA].itemsize,
                             views[OUT].buf};
    if (check_volumes(&views[DATA], &views[OUT]) < 0) return close_arrays(views, N);
    if (views[OUT].shape[1] != b->n_regions || volumes.n_voxels < b->n_needed) {
        PyErr_Format(PyExc_ValueError, "`data` must have at least %lld voxels and `out` %zd regions, got %zd and %zd.",
                     (long long)b->n_needed, b->n_regions, volumes.n_voxels, views[OUT].shape[1]);
        return close_arrays(views, N);
    }
    const Reader reader = readers[type_of(&views[DATA])];
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = add_up(b, &volumes, reader);
    Py_END_ALLOW_THREADS
    if (status < 0) PyErr_NoMemory();
    return close_arrays(views, N);
}

/* statistics(name, data, indices, offsets, out); NaN for an empty region */
PyObject *statistics(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { DATA, INDICES, OFFSETS, OUT, N };
    static const Argument arguments[N] = {
        {"data", REAL, 2, INPUT}, {"indices", INT32, 1, INPUT}, {"offsets", INT64, 1, INPUT}, {"out", FLOAT64, 2, RESULT}};
    const char *name;
    PyObject *objects[N];
    Py_buffer views[N];
    if (!PyArg_ParseTuple(args, "sOOOO", &name, objects, objects + 1, objects + 2, objects + 3)) return NULL;
    if (open_arrays(objects, views, N, arguments) < 0) return close_arrays(views, N);
    const Reader reader = readers[type_of(&views[DATA])];
    const Statistic statistic = statistic_of(name);
    const Py_ssize_t n_voxels = views[DATA].shape[1], n_regions = views[OUT].shape[1];
    const Py_ssize_t n_entries = views[INDICES].shape[0];
    const int32_t *indices = views[INDICES].buf;
    const int64_t *offsets = views[OFFSETS].buf;
    if (!statistic) PyErr_Format(PyExc_ValueError, "`name` must be variance, minimum, maximum or median, got %s.", name);
    if (!statistic || check_volumes(&views[DATA], &views[OUT]) < 0) return close_arrays(views, N);
    if (views[OFFSETS].shape[0] != n_regions + 1) {
        PyErr_Format(PyExc_ValueError, "`offsets` must have one item more than the %zd regions of `out`, got %zd items.",
                     n_regions, views[OFFSETS].shape[0]);
        return close_arrays(views, N);
    }
    if (check_offsets(offsets, n_regions + 1, n_entries) < 0) return close_arrays(views, N);
    int32_t first = 0, last = -1;
    int64_t largest = 1;
    for (Py_ssize_t e = 0; e < n_entries; e++) {
        if (indices[e] < first) first = indices[e];
        if (indices[e] > last) last = indices[e];
    }
    if (first < 0 || last >= n_voxels) {
        PyErr_Format(PyExc_ValueError, "`indices` must lie within the %zd voxels of `data`, got %d to %d.", n_voxels,
                     (int)first, (int)last);
        return close_arrays(views, N);
    }
    for (Py_ssize_t r = 0; r < n_regions; r++)
        if (offsets[r + 1] - offsets[r] > largest) largest = offsets[r + 1] - offsets[r];
    double *values = malloc(3 * (size_t)largest * sizeof(double)), *out = views[OUT].buf;
    if (!values) {
        PyErr_NoMemory();
        return close_arrays(views, N);
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t t = 0; t < views[DATA].shape[0]; t++) {
        const char *volume = (const char *)views[DATA].buf + (size_t)t * (size_t)n_voxels * (size_t)views[DATA].itemsize;
        for (Py_ssize_t r = 0; r < n_regions; r++) {
            const Py_ssize_t count = offsets[r + 1] - offsets[r];
            reader.pick(volume, indices + offsets[r], count, values);
            out[t * n_regions + r] = count ? statistic(values, count, values + largest) : NAN;
        }
    }
    Py_END_ALLOW_THREADS
    free(values);
    return close_arrays(views, N);
}
