/* Cubic splines through volumes, evaluated at points; called by resampling.py only.

   The coefficients of the spline come from a recursive filter along each axis (Unser, Aldroubi & Eden 1993), with the
   volume mirrored about the centres of its outermost voxels, as scipy.ndimage has it. Without fused multiply-adds the
   bits depend neither on the processor nor on the number of volumes in a call. */

#include "arrays.h"

#include <stdlib.h>

#define POLE -0.26794919243112270647 /* sqrt(3) - 2 */
#define GAIN 6.0
#define LINES 8    /* along x, filtered at once: each waits for its own results only */
#define STRIP 256  /* adjacent voxels that are filtered along z at once, so that their columns stay in the cache */

#define CONVERT(TYPE)                                                                              \
    static void convert_##TYPE(const void *from, Py_ssize_t n, double factor, double *restrict to) { \
        const TYPE *restrict values = from;                                                        \
        for (Py_ssize_t i = 0; i < n; i++) to[i] = factor * (double)values[i];                     \
    }
FOR_ALL_TYPES(CONVERT)

typedef void (*Convert)(const void *, Py_ssize_t, double, double *);
#define ENTRY(TYPE) convert_##TYPE,
static const Convert converters[] = {FOR_ALL_TYPES(ENTRY)};

/* Weights of a line's values in the first result of the filter's forward pass. */
static double *first_weights(Py_ssize_t n) {
    double *weights = malloc((size_t)(n > 0 ? n : 1) * sizeof(double));
    if (!weights) return NULL;
    double power = 1; /* of the way there, and back from the mirror; not by pow(), whose last bit is the processor's */
    for (Py_ssize_t i = 0; i < n; i++, power *= POLE) weights[i] = power;
    for (Py_ssize_t i = n - 2; i > 0; i--, power *= POLE) weights[i] += power;
    for (Py_ssize_t i = 0; i < n; i++) weights[i] /= 1 - power;
    return weights;
}

/* Filters `width` lines at once: value i of line k lies at lines[i * step + k * apart]. Inlined, since the constants of
   a call decide how it is vectorised. */
static inline __attribute__((always_inline)) void filter(double *lines, Py_ssize_t n, Py_ssize_t step, Py_ssize_t width,
                                                         Py_ssize_t apart, const double *weights) {
    double start[STRIP];
    for (Py_ssize_t k = 0; k < width; k++) start[k] = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        for (Py_ssize_t k = 0; k < width; k++) start[k] += weights[i] * lines[i * step + k * apart];
    for (Py_ssize_t k = 0; k < width; k++) lines[k * apart] = start[k];
    for (Py_ssize_t i = 1; i < n; i++) {
        double *now = lines + i * step, *before = now - step;
        for (Py_ssize_t k = 0; k < width; k++) now[k * apart] += POLE * before[k * apart];
    }
    double *last = lines + (n - 1) * step;
    for (Py_ssize_t k = 0; k < width; k++)
        last[k * apart] = (POLE * last[k * apart - step] + last[k * apart]) * (POLE / (POLE * POLE - 1));
    for (Py_ssize_t i = n - 2; i >= 0; i--) {
        double *now = lines + i * step, *after = now + step;
        for (Py_ssize_t k = 0; k < width; k++) now[k * apart] = POLE * (after[k * apart] - now[k * apart]);
    }
}

typedef struct {
    Py_ssize_t n[3];    /* voxels along z, y, x */
    double *weights[3]; /* `first_weights` of each axis */
    double *values;     /* a volume's coefficients */
} Spline;

static void find_coefficients(const Spline *s, const char *volume, Convert convert, Py_ssize_t itemsize) {
    const Py_ssize_t nz = s->n[0], ny = s->n[1], nx = s->n[2], plane = ny * nx;
    double gain = 1;
    for (int a = 0; a < 3; a++) gain *= s->n[a] > 1 ? GAIN : 1; /* an axis of one voxel isn't filtered */
    for (Py_ssize_t z = 0; z < nz; z++) {
        double *values = s->values + z * plane;
        convert(volume + z * plane * itemsize, plane, gain, values);
        if (nx > 1) {
            Py_ssize_t y = 0;
            for (; y + LINES <= ny; y += LINES) filter(values + y * nx, nx, 1, LINES, nx, s->weights[2]);
            for (; y < ny; y++) filter(values + y * nx, nx, 1, 1, nx, s->weights[2]);
        }
        if (ny > 1)
            for (Py_ssize_t x = 0; x < nx; x += STRIP)
                filter(values + x, ny, nx, nx - x < STRIP ? nx - x : STRIP, 1, s->weights[1]);
    }
    if (nz > 1)
        for (Py_ssize_t i = 0; i < plane; i += STRIP)
            filter(s->values + i, nz, plane, plane - i < STRIP ? plane - i : STRIP, 1, s->weights[0]);
}

typedef double two __attribute__((vector_size(16), aligned(8)));

/* The four coefficients along an axis that determine a point's value, and their weights; `at` >= 0. */
static void taps_of(double at, Py_ssize_t n, Py_ssize_t *places, double *weights) {
    const Py_ssize_t below = (Py_ssize_t)at, period = n > 1 ? 2 * (n - 1) : 1;
    const double t = at - (double)below;
    for (int k = 0; k < 4; k++) places[k] = below - 1 + k;
    if (below < 1 || below + 2 >= n)
        for (int k = 0; k < 4; k++) {
            const Py_ssize_t place = (places[k] + period) % period;
            places[k] = n > 1 ? (place < n ? place : period - place) : 0;
        }
    weights[0] = (1 - t) * (1 - t) * (1 - t) / 6;
    weights[1] = 2.0 / 3 - t * t * (2 - t) / 2;
    weights[2] = 2.0 / 3 - (1 - t) * (1 - t) * (1 + t) / 2;
    weights[3] = t * t * t / 6;
}

static double evaluate(const Spline *s, const double *at) {
    Py_ssize_t places[3][4];
    double weights[3][4];
    for (int a = 0; a < 3; a++) {
        if (!(at[a] >= 0 && at[a] <= (double)(s->n[a] - 1))) return 0;
        taps_of(at[a], s->n[a], places[a], weights[a]);
    }
    const int adjacent = places[2][3] - places[2][0] == 3 && places[2][1] - places[2][0] == 1;
    two lower = {0}, upper = {0};
    for (int j = 0; j < 4; j++)
        for (int k = 0; k < 4; k++) {
            const double *row = s->values + (places[0][j] * s->n[1] + places[1][k]) * s->n[2];
            const double weight = weights[0][j] * weights[1][k];
            if (adjacent) {
                lower += *(const two *)(row + places[2][0]) * weight;
                upper += *(const two *)(row + places[2][2]) * weight;
            } else {
                lower += (two){row[places[2][0]], row[places[2][1]]} * weight;
                upper += (two){row[places[2][2]], row[places[2][3]]} * weight;
            }
        }
    return (lower[0] * weights[2][0] + lower[1] * weights[2][1]) + (upper[0] * weights[2][2] + upper[1] * weights[2][3]);
}

/* interpolate(volumes, coordinates, out): volumes of shape (k, z, y, x), of any real dtype; coordinates (3, n) in voxels
   along z, y, x; out (k, n), 0 at points outside. */
PyObject *interpolate(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { VOLUMES, COORDINATES, OUT, N };
    static const Argument arguments[N] = {
        {"volumes", REAL, 4, INPUT}, {"coordinates", FLOAT64, 2, INPUT}, {"out", FLOAT64, 2, RESULT}};
    PyObject *objects[N];
    Py_buffer views[N], *volumes = &views[VOLUMES], *out = &views[OUT];
    if (!PyArg_ParseTuple(args, "OOO", objects, objects + 1, objects + 2)) return NULL;
    if (open_arrays(objects, views, N, arguments) < 0) return close_arrays(views, N);
    if (views[COORDINATES].shape[0] != 3 || out->shape[1] != views[COORDINATES].shape[1] ||
        out->shape[0] != volumes->shape[0]) {
        PyErr_SetString(PyExc_ValueError,
                        "`volumes` must have the shape (k, z, y, x), `coordinates` (3, n) and `out` (k, n).");
        return close_arrays(views, N);
    }
    const Convert convert = converters[type_of(volumes)];
    const double *coordinates = views[COORDINATES].buf;
    const Py_ssize_t n_points = out->shape[1];
    Spline spline = {.n = {volumes->shape[1], volumes->shape[2], volumes->shape[3]}};
    const Py_ssize_t size = spline.n[0] * spline.n[1] * spline.n[2];
    int failed;
    Py_BEGIN_ALLOW_THREADS
    spline.values = malloc((size_t)(size > 0 ? size : 1) * sizeof(double));
    failed = !spline.values;
    for (int a = 0; a < 3; a++) failed |= !(spline.weights[a] = first_weights(spline.n[a]));
    for (Py_ssize_t t = 0; !failed && t < volumes->shape[0]; t++) {
        find_coefficients(&spline, (const char *)volumes->buf + t * size * volumes->itemsize, convert,
                          volumes->itemsize);
        for (Py_ssize_t i = 0; i < n_points; i++) {
            const double at[3] = {coordinates[i], coordinates[n_points + i], coordinates[2 * n_points + i]};
            ((double *)out->buf)[t * n_points + i] = evaluate(&spline, at);
        }
    }
    for (int a = 0; a < 3; a++) free(spline.weights[a]);
    free(spline.values);
    Py_END_ALLOW_THREADS
    if (failed) PyErr_NoMemory();
    return close_arrays(views, N);
}
