/* Statistics of segments of voxels: the inner loops of the CPU. segments.py is the only caller.

   `sums` takes the weights cut into blocks of voxels (`Segments.blocks`). For each block, the stored values of LANES
   volumes are gathered, converted to double and laid side by side, so that one vector instruction multiplies a weight
   with several volumes. A region's entries are added in their order, in double, without fused multiply-adds: the result
   has the bits of the same sums in scipy.sparse, which take four to seven times as long. The weights
   (10 bytes each) are read from memory once per LANES volumes.

   `statistics` gathers one region of one volume at a time, as double, and takes its variance, extremes or median. */

#include "_buffers.h"

#include <math.h>
#include <stdlib.h>

#define LANES 16 /* or 8 or 4, where there are no more volumes */

typedef struct {
    const char *data;         /* volumes x voxels, stored dtype */
    Py_ssize_t n_volumes, n_voxels, n_regions, n_blocks, largest;
    const int64_t *parts;     /* (n_blocks + 1) x 2: first voxel and row of each block */
    const int64_t *voxels;    /* voxel of each column, block after block */
    const int32_t *rows;      /* region of each row, block after block */
    const int64_t *spans;     /* first and last + 1 of each row's entries */
    const uint16_t *columns;  /* of each entry, within its block */
    const double *weights;    /* of each entry, or NULL */
    double *out;              /* volumes x regions */
} Problem;

/* One volume's values of a block's voxels go into every `lanes`-th place: slots of absent volumes stay 0. */
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

/* How to read items of a buffer; NULL functions for what is no real number in native byte order. */
static Reader reader_of(const Py_buffer *view) {
    const int type = type_of(view->format, view->itemsize);
    return type < 0 ? (Reader){NULL, NULL} : readers[type];
}

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

static int add_up(const Problem *p, Reader reader, Py_ssize_t itemsize) {
    const int lanes = p->n_volumes <= 4 ? 4 : p->n_volumes <= 8 ? 8 : LANES;
    const Reduce reduce = widest(lanes);
    double *block = aligned_alloc(64, (size_t)(p->largest > 0 ? p->largest : 1) * LANES * sizeof(double));
    double *sums = aligned_alloc(64, (size_t)(p->n_regions > 0 ? p->n_regions : 1) * LANES * sizeof(double));
    if (!block || !sums) {
        free(block);
        free(sums);
        return -1;
    }
    for (Py_ssize_t first = 0; first < p->n_volumes; first += lanes) {
        const int n = p->n_volumes - first < lanes ? (int)(p->n_volumes - first) : lanes;
        const char *volumes = p->data + (size_t)first * (size_t)p->n_voxels * (size_t)itemsize;
        memset(sums, 0, (size_t)(p->n_regions * lanes) * sizeof(double));
        if (n < lanes) memset(block, 0, (size_t)(p->largest * lanes) * sizeof(double));
        for (Py_ssize_t b = 0; b < p->n_blocks; b++) {
            const int64_t *part = p->parts + 2 * b;
            reader.gather(volumes, p->n_voxels, n, lanes, p->voxels + part[0], part[2] - part[0], block);
            reduce(block, p->weights, p->columns, p->spans + 2 * part[1], p->rows + part[1], part[3] - part[1], sums);
        }
        for (int t = 0; t < n; t++)
            for (Py_ssize_t r = 0; r < p->n_regions; r++) p->out[(first + t) * p->n_regions + r] = sums[r * lanes + t];
    }
    free(block);
    free(sums);
    return 0;
}

/* The statistics of one region's values. They may reorder `values`; `spare` has twice as much room. */

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

/* Where any is NaN, so is the result. */
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
   a bin is an increasing function of the value, so that rounding can't confuse the order. */
static double select_finite(double *values, Py_ssize_t n, Py_ssize_t k, double low, double high, uint8_t *bins) {
    while (n > FEW && low < high) {
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

static int check_volumes(const Py_buffer *data, const Py_buffer *out, Reader reader) {
    if (reader.pick && data->ndim == 2 && out->ndim == 2 && out->shape[0] == data->shape[0]) return 0;
    PyErr_SetString(PyExc_TypeError, "`data` and `out` must be two-dimensional, of real numbers in native order.");
    return -1;
}

static int check_reach(int64_t first, int64_t last, Py_ssize_t n_voxels) {
    if (first >= 0 && last < n_voxels) return 0;
    PyErr_Format(PyExc_IndexError, "The segments reach to voxel %lld, and `data` has %zd voxels a volume.",
                 (long long)last, n_voxels);
    return -1;
}

/* sums(data, parts, voxels, rows, spans, columns, weights, out) */
static PyObject *sums(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { DATA, PARTS, VOXELS, ROWS, SPANS, COLUMNS, WEIGHTS, OUT, N };
    static const char *const names[N] = {"data", "parts", "voxels", "rows", "spans", "columns", "weights", "out"};
    static const Py_ssize_t itemsizes[N] = {0, 8, 8, 4, 8, 2, 8, 8};
    PyObject *objects[N];
    Py_buffer views[N];
    if (!PyArg_ParseTuple(args, "OOOOOOOO", objects, objects + 1, objects + 2, objects + 3, objects + 4, objects + 5,
                          objects + 6, objects + 7))
        return NULL;
    if (open_buffers(objects, views, N, names, itemsizes, 1, 0) < 0) return close_buffers(views, N);
    const Reader reader = reader_of(&views[DATA]);
    if (check_volumes(&views[DATA], &views[OUT], reader) < 0) return close_buffers(views, N);
    Problem problem = {.data = views[DATA].buf,
                       .n_volumes = views[DATA].shape[0],
                       .n_voxels = views[DATA].shape[1],
                       .n_regions = views[OUT].shape[1],
                       .n_blocks = views[PARTS].len / 16 - 1,
                       .parts = views[PARTS].buf,
                       .voxels = views[VOXELS].buf,
                       .rows = views[ROWS].buf,
                       .spans = views[SPANS].buf,
                       .columns = views[COLUMNS].buf,
                       .weights = views[WEIGHTS].buf,
                       .out = views[OUT].buf};
    const Py_ssize_t n_used = views[VOXELS].len / 8; /* in ascending order */
    if (n_used && check_reach(problem.voxels[0], problem.voxels[n_used - 1], problem.n_voxels) < 0)
        return close_buffers(views, N);
    for (Py_ssize_t b = 0; b < problem.n_blocks; b++) {
        const Py_ssize_t count = problem.parts[2 * b + 2] - problem.parts[2 * b];
        if (count > problem.largest) problem.largest = count;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = add_up(&problem, reader, views[DATA].itemsize);
    Py_END_ALLOW_THREADS
    if (status < 0) PyErr_NoMemory();
    return close_buffers(views, N);
}

/* statistics(name, data, indices, offsets, out); NaN for an empty region */
static PyObject *statistics(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { DATA, INDICES, OFFSETS, OUT, N };
    static const char *const names[N] = {"data", "indices", "offsets", "out"};
    static const Py_ssize_t itemsizes[N] = {0, 4, 8, 8};
    const char *name;
    PyObject *objects[N];
    Py_buffer views[N];
    if (!PyArg_ParseTuple(args, "sOOOO", &name, objects, objects + 1, objects + 2, objects + 3)) return NULL;
    if (open_buffers(objects, views, N, names, itemsizes, 1, 0) < 0) return close_buffers(views, N);
    const Reader reader = reader_of(&views[DATA]);
    if (check_volumes(&views[DATA], &views[OUT], reader) < 0) return close_buffers(views, N);
    const Statistic statistic = statistic_of(name);
    const Py_ssize_t n_voxels = views[DATA].shape[1], n_regions = views[OUT].shape[1];
    const int32_t *indices = views[INDICES].buf;
    const int64_t *offsets = views[OFFSETS].buf;
    if (!statistic || views[OFFSETS].len / 8 != n_regions + 1 || offsets[n_regions] > views[INDICES].len / 4) {
        PyErr_Format(PyExc_ValueError, "No `%s`, or `offsets` that don't fit `out` and `indices`.", name);
        return close_buffers(views, N);
    }
    int32_t first = 0, last = -1;
    int64_t largest = 1;
    for (int64_t e = 0; e < offsets[n_regions]; e++) {
        if (indices[e] < first) first = indices[e];
        if (indices[e] > last) last = indices[e];
    }
    if (check_reach(first, last, n_voxels) < 0) return close_buffers(views, N);
    for (Py_ssize_t r = 0; r < n_regions; r++)
        if (offsets[r + 1] - offsets[r] > largest) largest = offsets[r + 1] - offsets[r];
    double *values = malloc(3 * (size_t)largest * sizeof(double)), *out = views[OUT].buf;
    if (!values) {
        PyErr_NoMemory();
        return close_buffers(views, N);
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
    return close_buffers(views, N);
}

static PyMethodDef methods[] = {{"sums", sums, METH_VARARGS, "Add segments of volumes up, in blocks of voxels."},
                                {"statistics", statistics, METH_VARARGS, "Take a statistic of segments of volumes."},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_segments", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__segments(void) { return PyModuleDef_Init(&definition); }
