/* Sums and extremes of series: the inner loops of grayordinates, whose time points are contiguous.

   A region's series are added in their order, each time point by itself, in double and without fused multiply-adds: its
   bits depend neither on which series arrive together nor on which time points a thread has. TILE time points are summed
   at once, so their sums stay in the first-level cache, and ROWS series are added to them before they are stored again. */

#include "arrays.h"

#include <math.h>

#define TILE 512
#define ROWS 4

typedef struct {
    const char *data; /* series x time points, stored dtype */
    Py_ssize_t stride, n_times; /* stride in bytes */
    const int64_t *rows, *offsets; /* series of each entry; the entries of segment r are offsets[r] to offsets[r + 1] */
    const int32_t *regions; /* row of `sums` of each segment */
    const double *weights; /* of each entry, or NULL */
    Py_ssize_t n_segments;
    double *sums; /* or extremes: regions x time points */
    Py_ssize_t sums_stride; /* in bytes */
    uint8_t *odd; /* of extremes: where a value isn't finite */
    Py_ssize_t odd_stride;
} Work;

#define ROW(TYPE, k) (const TYPE *)(w->data + w->rows[e + k] * w->stride) + first
#define SERIES(TYPE, SUFFIX, TARGET)                                                                          \
    TARGET static void add_##TYPE##SUFFIX(const Work *w) {                                                    \
        for (Py_ssize_t first = 0; first < w->n_times; first += TILE) {                                       \
            const Py_ssize_t n = w->n_times - first < TILE ? w->n_times - first : TILE;                       \
            for (Py_ssize_t r = 0; r < w->n_segments; r++) {                                                  \
                double *restrict sums = (double *)((char *)w->sums + w->regions[r] * w->sums_stride) + first; \
                const int64_t end = w->offsets[r + 1];                                                        \
                int64_t e = w->offsets[r];                                                                    \
                if (w->weights) {                                                                             \
                    for (; e < end; e++) {                                                                    \
                        const TYPE *restrict row = ROW(TYPE, 0);                                              \
                        const double weight = w->weights[e];                                                  \
                        for (Py_ssize_t t = 0; t < n; t++) sums[t] += weight * (double)row[t];                \
                    }                                                                                         \
                    continue;                                                                                 \
                }                                                                                             \
                for (; e + ROWS <= end; e += ROWS) {                                                          \
                    const TYPE *restrict a = ROW(TYPE, 0), *restrict b = ROW(TYPE, 1);                        \
                    const TYPE *restrict c = ROW(TYPE, 2), *restrict d = ROW(TYPE, 3);                        \
                    for (Py_ssize_t t = 0; t < n; t++)                                                        \
                        sums[t] = (((sums[t] + (double)a[t]) + (double)b[t]) + (double)c[t]) + (double)d[t];  \
                }                                                                                             \
                for (; e < end; e++) {                                                                        \
                    const TYPE *restrict row = ROW(TYPE, 0);                                                  \
                    for (Py_ssize_t t = 0; t < n; t++) sums[t] += (double)row[t];                             \
                }                                                                                             \
            }                                                                                                 \
        }                                                                                                     \
    }

/* The value that is BEFORE all others, and whether one isn't finite, which makes `doubt` NaN; comparisons hide NaN. */
#define EXTREME(TYPE, NAME, BEFORE, TARGET)                                                                   \
    TARGET static void NAME##_##TYPE(const Work *w) {                                                         \
        for (Py_ssize_t first = 0; first < w->n_times; first += TILE) {                                       \
            const Py_ssize_t n = w->n_times - first < TILE ? w->n_times - first : TILE;                       \
            for (Py_ssize_t r = 0; r < w->n_segments; r++) {                                                  \
                double *restrict out = (double *)((char *)w->sums + r * w->sums_stride) + first;              \
                uint8_t *restrict odd = w->odd + r * w->odd_stride + first;                                   \
                TYPE best[TILE], doubt[TILE] = {0};                                                           \
                for (int64_t e = w->offsets[r]; e < w->offsets[r + 1]; e++) {                                 \
                    const TYPE *restrict row = ROW(TYPE, 0);                                                  \
                    if (e == w->offsets[r]) memcpy(best, row, (size_t)n * sizeof(TYPE));                      \
                    for (Py_ssize_t t = 0; t < n; t++) {                                                      \
                        best[t] = row[t] BEFORE best[t] ? row[t] : best[t];                                   \
                        doubt[t] += row[t] - row[t];                                                          \
                    }                                                                                         \
                }                                                                                             \
                const int is_empty = w->offsets[r] == w->offsets[r + 1];                                      \
                for (Py_ssize_t t = 0; t < n; t++) out[t] = is_empty ? NAN : (double)best[t];                 \
                for (Py_ssize_t t = 0; t < n; t++) odd[t] = doubt[t] != 0;                                    \
            }                                                                                                 \
        }                                                                                                     \
    }

#define ALL(TYPE, SUFFIX, TARGET)                                                                             \
    SERIES(TYPE, SUFFIX, TARGET) EXTREME(TYPE, minimum##SUFFIX, <, TARGET) EXTREME(TYPE, maximum##SUFFIX, >, TARGET)
#define PORTABLE(TYPE) ALL(TYPE, , )
FOR_ALL_TYPES(PORTABLE)

typedef void (*Loop)(const Work *);
typedef struct {
    Loop add, minimum, maximum;
} Loops;

#define LOOPS(TYPE) {add_##TYPE, minimum_##TYPE, maximum_##TYPE},
static const Loops portable[] = {FOR_ALL_TYPES(LOOPS)};
#ifdef __x86_64__
#define AVX2(TYPE) ALL(TYPE, _avx2, __attribute__((target("avx2"))))
FOR_ALL_TYPES(AVX2)
#define AVX2_LOOPS(TYPE) {add_##TYPE##_avx2, minimum_avx2_##TYPE, maximum_avx2_##TYPE},
static const Loops avx2[] = {FOR_ALL_TYPES(AVX2_LOOPS)};
#endif

static const Loops *fastest(int type) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) return &avx2[type];
#endif
    return &portable[type];
}

/* Whether every entry has a series, and every segment a region. */
static int is_within(const Work *w, Py_ssize_t n_series, Py_ssize_t n_regions, Py_ssize_t n_entries) {
    int within = 1;
    for (Py_ssize_t e = 0; e < n_entries; e++) within &= w->rows[e] >= 0 && w->rows[e] < n_series;
    for (Py_ssize_t r = 0; w->regions && r < w->n_segments; r++)
        within &= w->regions[r] >= 0 && w->regions[r] < n_regions;
    return within;
}

/* add_series(data, rows, offsets, regions, weights, sums) */
PyObject *add_series(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { DATA, ROWS_OF, OFFSETS, REGIONS, WEIGHTS, SUMS, N };
    static const Argument arguments[N] = {{"data", REAL, 2, STRIDED},        {"rows", INT64, 1, INPUT},
                                          {"offsets", INT64, 1, INPUT},      {"regions", INT32, 1, INPUT},
                                          {"weights", FLOAT64, 1, OPTIONAL}, {"sums", FLOAT64, 2, STRIDED | RESULT}};
    PyObject *objects[N];
    Py_buffer views[N];
    if (!PyArg_ParseTuple(args, "OOOOOO", objects, objects + 1, objects + 2, objects + 3, objects + 4, objects + 5))
        return NULL;
    if (open_arrays(objects, views, N, arguments) < 0) return close_arrays(views, N);
    const Py_buffer *data = &views[DATA], *sums = &views[SUMS];
    const Work work = {data->buf,          data->strides[0],   data->shape[1],      views[ROWS_OF].buf,
                       views[OFFSETS].buf, views[REGIONS].buf, views[WEIGHTS].buf, views[REGIONS].shape[0],
                       sums->buf,          sums->strides[0],   NULL,                 0};
    const Py_ssize_t n_entries = views[ROWS_OF].shape[0];
    if (data->shape[1] != sums->shape[1] || views[OFFSETS].shape[0] != work.n_segments + 1 ||
        (work.weights && views[WEIGHTS].shape[0] != n_entries)) {
        PyErr_SetString(PyExc_ValueError, "`data` and `sums` must have the same time points, `offsets` one item more than "
                                          "`regions`, and `weights` as many as `rows`.");
        return close_arrays(views, N);
    }
    if (work.n_times > 1 && (data->strides[1] != data->itemsize || sums->strides[1] != sums->itemsize)) {
        PyErr_SetString(PyExc_ValueError, "The time points of `data` and `sums` must be contiguous.");
        return close_arrays(views, N);
    }
    if (check_offsets(work.offsets, work.n_segments + 1, n_entries) < 0) return close_arrays(views, N);
    if (!is_within(&work, data->shape[0], sums->shape[0], n_entries)) {
        PyErr_Format(PyExc_ValueError, "`rows` must lie within the %zd series of `data`, `regions` within the %zd of `sums`.",
                     data->shape[0], sums->shape[0]);
        return close_arrays(views, N);
    }
    const Loop add = fastest(type_of(data))->add;
    Py_BEGIN_ALLOW_THREADS
    add(&work);
    Py_END_ALLOW_THREADS
    return close_arrays(views, N);
}

/* extremes_of_series(name, data, rows, offsets, out, odd): NaN for an empty region; where `odd` is 1, `out` means nothing */
PyObject *extremes_of_series(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { DATA, ROWS_OF, OFFSETS, OUT, ODD, N };
    static const Argument arguments[N] = {{"data", REAL, 2, STRIDED},
                                          {"rows", INT64, 1, INPUT},
                                          {"offsets", INT64, 1, INPUT},
                                          {"out", FLOAT64, 2, STRIDED | RESULT},
                                          {"odd", UINT8, 2, STRIDED | RESULT}};
    const char *name;
    PyObject *objects[N];
    Py_buffer views[N];
    if (!PyArg_ParseTuple(args, "sOOOOO", &name, objects, objects + 1, objects + 2, objects + 3, objects + 4)) return NULL;
    if (open_arrays(objects, views, N, arguments) < 0) return close_arrays(views, N);
    const Py_buffer *data = &views[DATA], *out = &views[OUT], *odd = &views[ODD];
    const Work work = {data->buf, data->strides[0], data->shape[1], views[ROWS_OF].buf, views[OFFSETS].buf, NULL, NULL,
                       out->shape[0], out->buf, out->strides[0], odd->buf, odd->strides[0]};
    const Py_ssize_t n_entries = views[ROWS_OF].shape[0];
    const Loops *loops = fastest(type_of(data));
    const Loop loop = strcmp(name, "minimum") == 0 ? loops->minimum : strcmp(name, "maximum") == 0 ? loops->maximum : NULL;
    if (!loop) {
        PyErr_Format(PyExc_ValueError, "`name` must be minimum or maximum, got %s.", name);
        return close_arrays(views, N);
    }
    if (data->shape[1] != out->shape[1] || odd->shape[0] != out->shape[0] || odd->shape[1] != out->shape[1] ||
        views[OFFSETS].shape[0] != work.n_segments + 1) {
        PyErr_SetString(PyExc_ValueError, "`data`, `out` and `odd` must have the same time points, and `offsets` one item "
                                          "more than `out` and `odd` have regions.");
        return close_arrays(views, N);
    }
    if (work.n_times > 1 && (data->strides[1] != data->itemsize || out->strides[1] != out->itemsize || odd->strides[1] != 1)) {
        PyErr_SetString(PyExc_ValueError, "The time points of `data`, `out` and `odd` must be contiguous.");
        return close_arrays(views, N);
    }
    if (check_offsets(work.offsets, work.n_segments + 1, n_entries) < 0) return close_arrays(views, N);
    if (!is_within(&work, data->shape[0], 0, n_entries)) {
        PyErr_Format(PyExc_ValueError, "`rows` must lie within the %zd series of `data`.", data->shape[0]);
        return close_arrays(views, N);
    }
    Py_BEGIN_ALLOW_THREADS
    loop(&work);
    Py_END_ALLOW_THREADS
    return close_arrays(views, N);
}
