/* Weighted sums of segments over blocks of voxels: the inner loop of every mean and sum on the CPU.

   Python gives the weights cut into blocks of voxels (segments.py, `Segments.blocks`). For each block, the stored values
   of LANES volumes are gathered, converted to double and laid side by side, so that one vector instruction multiplies a
   weight with several volumes. A region's entries are added in their order, in double, without fused multiply-adds: the
   result has the bits of the same sums in scipy.sparse, which take four to seven times as long.
   What remains is bound by memory: the weights (12 bytes each) are read once per LANES volumes. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16

typedef struct {
    const char *data;         /* volumes x voxels, stored dtype */
    Py_ssize_t n_volumes, n_voxels, n_regions, n_blocks, largest;
    const int64_t *parts;     /* (n_blocks + 1) x 3: first voxel, row and entry of each block */
    const int64_t *voxels;    /* voxel of each column, block after block */
    const int32_t *rows;      /* region of each row, block after block */
    const int64_t *starts;    /* first entry of each row; one more at the end */
    const int32_t *columns;   /* of each entry, within its block */
    const double *weights;    /* of each entry, or NULL */
    double *out;              /* volumes x regions */
} Problem;

/* One volume's values of a block's voxels go into every LANES-th place: slots of absent volumes stay 0. */
#define GATHER(TYPE)                                                                                          \
    static void gather_##TYPE(const void *volumes, Py_ssize_t stride, int n, const int64_t *restrict voxels,   \
                              Py_ssize_t count, double *restrict out) {                                       \
        const TYPE *restrict data = volumes;                                                                  \
        if (n == LANES)                                                                                       \
            for (Py_ssize_t v = 0; v < count; v++)                                                            \
                for (int t = 0; t < LANES; t++) out[v * LANES + t] = (double)data[t * stride + voxels[v]];    \
        else                                                                                                  \
            for (Py_ssize_t v = 0; v < count; v++)                                                            \
                for (int t = 0; t < n; t++) out[v * LANES + t] = (double)data[t * stride + voxels[v]];        \
    }

GATHER(int8_t)
GATHER(uint8_t)
GATHER(int16_t)
GATHER(uint16_t)
GATHER(int32_t)
GATHER(uint32_t)
GATHER(int64_t)
GATHER(uint64_t)
GATHER(float)
GATHER(double)

typedef void (*Gather)(const void *, Py_ssize_t, int, const int64_t *, Py_ssize_t, double *);

/* Adds `rows` segments of one block to `sums` (regions x LANES). The accumulators of a vector's width stay in registers;
   vectors wider than the machine's would be spilled to memory at every addition, hence one copy per width. */
#define REDUCE(NAME, WIDTH, TARGET)                                                                           \
    typedef double NAME##_vector __attribute__((vector_size(WIDTH * 8), aligned(8)));                         \
    TARGET static void NAME(const double *restrict block, const double *restrict weights,                     \
                            const int32_t *restrict columns, const int64_t *restrict starts,                  \
                            const int32_t *restrict rows, Py_ssize_t n_rows, double *restrict sums) {         \
        for (Py_ssize_t r = 0; r < n_rows; r++) {                                                             \
            NAME##_vector total[LANES / WIDTH] = {{0}};                                                       \
            if (weights)                                                                                      \
                for (int64_t e = starts[r]; e < starts[r + 1]; e++) {                                         \
                    const NAME##_vector *values = (const NAME##_vector *)(block + (size_t)columns[e] * LANES); \
                    for (int k = 0; k < LANES / WIDTH; k++) total[k] += values[k] * weights[e];               \
                }                                                                                             \
            else                                                                                              \
                for (int64_t e = starts[r]; e < starts[r + 1]; e++) {                                         \
                    const NAME##_vector *values = (const NAME##_vector *)(block + (size_t)columns[e] * LANES); \
                    for (int k = 0; k < LANES / WIDTH; k++) total[k] += values[k];                            \
                }                                                                                             \
            NAME##_vector *sum = (NAME##_vector *)(sums + (size_t)rows[r] * LANES);                           \
            for (int k = 0; k < LANES / WIDTH; k++) sum[k] += total[k];                                       \
        }                                                                                                     \
    }

REDUCE(reduce_2, 2, )
#ifdef __x86_64__
REDUCE(reduce_4, 4, __attribute__((target("avx"))))
REDUCE(reduce_8, 8, __attribute__((target("avx512f"))))
#endif

typedef void (*Reduce)(const double *, const double *, const int32_t *, const int64_t *, const int32_t *, Py_ssize_t,
                       double *);

static Reduce widest(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return reduce_8;
    if (__builtin_cpu_supports("avx")) return reduce_4;
#endif
    return reduce_2;
}

static int solve(const Problem *p, Gather gather, Py_ssize_t itemsize) {
    const Reduce reduce = widest();
    double *block = aligned_alloc(64, (size_t)(p->largest > 0 ? p->largest : 1) * LANES * sizeof(double));
    double *sums = aligned_alloc(64, (size_t)(p->n_regions > 0 ? p->n_regions : 1) * LANES * sizeof(double));
    if (!block || !sums) {
        free(block);
        free(sums);
        return -1;
    }
    for (Py_ssize_t first = 0; first < p->n_volumes; first += LANES) {
        const int n = p->n_volumes - first < LANES ? (int)(p->n_volumes - first) : LANES;
        const char *volumes = p->data + (size_t)first * (size_t)p->n_voxels * (size_t)itemsize;
        memset(sums, 0, (size_t)p->n_regions * LANES * sizeof(double));
        if (n < LANES) memset(block, 0, (size_t)p->largest * LANES * sizeof(double));
        for (Py_ssize_t b = 0; b < p->n_blocks; b++) {
            const int64_t *part = p->parts + 3 * b;
            gather(volumes, p->n_voxels, n, p->voxels + part[0], part[3] - part[0], block);
            reduce(block, p->weights, p->columns, p->starts + part[1], p->rows + part[1], part[4] - part[1], sums);
        }
        for (int t = 0; t < n; t++)
            for (Py_ssize_t r = 0; r < p->n_regions; r++) p->out[(first + t) * p->n_regions + r] = sums[r * LANES + t];
    }
    free(block);
    free(sums);
    return 0;
}

static Gather gather_of(const char *format, Py_ssize_t itemsize) {
    const char native = PY_LITTLE_ENDIAN ? '<' : '>';
    if (*format == '@' || *format == '=' || *format == native) format++;
    if (strlen(format) != 1) return NULL; /* a foreign byte order, or no number */
    if (strchr("bhilq", *format)) {
        if (itemsize == 1) return gather_int8_t;
        if (itemsize == 2) return gather_int16_t;
        if (itemsize == 4) return gather_int32_t;
        if (itemsize == 8) return gather_int64_t;
    }
    if (strchr("?BHILQ", *format)) {
        if (itemsize == 1) return gather_uint8_t;
        if (itemsize == 2) return gather_uint16_t;
        if (itemsize == 4) return gather_uint32_t;
        if (itemsize == 8) return gather_uint64_t;
    }
    if (*format == 'f') return gather_float;
    if (*format == 'd') return gather_double;
    return NULL;
}

/* sums(data, parts, voxels, rows, starts, columns, weights, out): see segments.py, the only caller. */
static PyObject *sums(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { DATA, PARTS, VOXELS, ROWS, STARTS, COLUMNS, WEIGHTS, OUT, N };
    static const char *const names[N] = {"data", "parts", "voxels", "rows", "starts", "columns", "weights", "out"};
    static const Py_ssize_t itemsizes[N] = {0, 8, 8, 4, 8, 4, 8, 8};
    PyObject *objects[N];
    Py_buffer views[N];
    int got = 0, failed = 1;
    if (!PyArg_ParseTuple(args, "OOOOOOOO", objects, objects + 1, objects + 2, objects + 3, objects + 4, objects + 5,
                          objects + 6, objects + 7))
        return NULL;
    for (; got < N; got++) {
        views[got].obj = NULL;
        views[got].buf = NULL;
        if (got == WEIGHTS && objects[got] == Py_None) continue;
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (got == OUT ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(objects[got], &views[got], flags) < 0) goto done;
        if (itemsizes[got] && views[got].itemsize != itemsizes[got]) {
            PyErr_Format(PyExc_TypeError, "`%s` must have %zd bytes an item, got %zd.", names[got], itemsizes[got],
                         views[got].itemsize);
            got++;
            goto done;
        }
    }
    const Gather gather = gather_of(views[DATA].format, views[DATA].itemsize);
    if (!gather || views[DATA].ndim != 2 || views[OUT].ndim != 2 || views[OUT].shape[0] != views[DATA].shape[0]) {
        PyErr_SetString(PyExc_TypeError, "`data` and `out` must be two-dimensional, of real numbers in native order.");
        goto done;
    }
    Problem problem = {.data = views[DATA].buf,
                       .n_volumes = views[DATA].shape[0],
                       .n_voxels = views[DATA].shape[1],
                       .n_regions = views[OUT].shape[1],
                       .n_blocks = views[PARTS].len / 24 - 1,
                       .parts = views[PARTS].buf,
                       .voxels = views[VOXELS].buf,
                       .rows = views[ROWS].buf,
                       .starts = views[STARTS].buf,
                       .columns = views[COLUMNS].buf,
                       .weights = views[WEIGHTS].buf,
                       .out = views[OUT].buf};
    const Py_ssize_t n_used = views[VOXELS].len / 8; /* in ascending order */
    if (n_used && (problem.voxels[0] < 0 || problem.voxels[n_used - 1] >= problem.n_voxels)) {
        PyErr_Format(PyExc_IndexError, "The segments reach to voxel %lld, and `data` has %zd voxels a volume.",
                     (long long)problem.voxels[n_used - 1], problem.n_voxels);
        goto done;
    }
    for (Py_ssize_t b = 0; b < problem.n_blocks; b++) {
        const Py_ssize_t count = problem.parts[3 * b + 3] - problem.parts[3 * b];
        if (count > problem.largest) problem.largest = count;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = solve(&problem, gather, views[DATA].itemsize);
    Py_END_ALLOW_THREADS
    if (status < 0)
        PyErr_NoMemory();
    else
        failed = 0;
done:
    while (got--)
        if (views[got].obj) PyBuffer_Release(&views[got]);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"sums", sums, METH_VARARGS, "Add segments of volumes up, in blocks of voxels."},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_segments", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__segments(void) { return PyModuleDef_Init(&definition); }
