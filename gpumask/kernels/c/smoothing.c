/* Products of volumes with one banded matrix per axis; called by smoothing.py only.

   A plane is multiplied along x and y as soon as it is read, and waits in a ring of as many planes as the z matrix
   reaches; what is added up then lies in the cache. Sums are taken in double, in the order of the columns and without
   fused multiply-adds, so the bits depend neither on the processor nor on the number of volumes in a call. */

#include "arrays.h"
#include "bands.h"

#define STEP 16 /* doubles per turn of the inner loops; rows are padded to a multiple of it */

#define CONVERT(TYPE)                                                                             \
    static void convert_##TYPE(const void *from, Py_ssize_t n, double *restrict to) {             \
        const TYPE *restrict values = from;                                                       \
        for (Py_ssize_t i = 0; i < n; i++) to[i] = (double)values[i];                             \
    }
FOR_ALL_TYPES(CONVERT)

typedef void (*Convert)(const void *, Py_ssize_t, double *);
#define ENTRY(TYPE) convert_##TYPE,
static const Convert converters[] = {FOR_ALL_TYPES(ENTRY)};

/* `sum_lines`: out[c] = sum of weights[k] * lines[k][c], for c < n.
   `sum_shifted`: out[c] = sum of weights[k * n + c] * line[c + k], for n a multiple of STEP. */
#define SUMS(WIDTH, TARGET)                                                                                     \
    typedef double vector_##WIDTH __attribute__((vector_size(WIDTH * 8), aligned(8)));                          \
    TARGET static void sum_lines_##WIDTH(double *restrict out, Py_ssize_t n, const double *const *lines,        \
                                         const double *restrict weights, Py_ssize_t count) {                    \
        Py_ssize_t c = 0;                                                                                       \
        for (; c + STEP <= n; c += STEP) {                                                                      \
            vector_##WIDTH total[STEP / WIDTH] = {{0}};                                                         \
            for (Py_ssize_t k = 0; k < count; k++) {                                                            \
                const vector_##WIDTH *values = (const vector_##WIDTH *)(lines[k] + c);                          \
                for (int v = 0; v < STEP / WIDTH; v++) total[v] += values[v] * weights[k];                      \
            }                                                                                                   \
            for (int v = 0; v < STEP / WIDTH; v++) ((vector_##WIDTH *)(out + c))[v] = total[v];                 \
        }                                                                                                       \
        for (; c < n; c++) {                                                                                    \
            double total = 0;                                                                                   \
            for (Py_ssize_t k = 0; k < count; k++) total += lines[k][c] * weights[k];                           \
            out[c] = total;                                                                                     \
        }                                                                                                       \
    }                                                                                                           \
    TARGET static void sum_shifted_##WIDTH(double *restrict out, Py_ssize_t n, const double *restrict line,     \
                                           const double *restrict weights, Py_ssize_t count) {                  \
        for (Py_ssize_t c = 0; c < n; c += STEP) {                                                              \
            vector_##WIDTH total[STEP / WIDTH] = {{0}};                                                         \
            for (Py_ssize_t k = 0; k < count; k++) {                                                            \
                const vector_##WIDTH *values = (const vector_##WIDTH *)(line + c + k);                          \
                const vector_##WIDTH *factors = (const vector_##WIDTH *)(weights + k * n + c);                  \
                for (int v = 0; v < STEP / WIDTH; v++) total[v] += values[v] * factors[v];                      \
            }                                                                                                   \
            for (int v = 0; v < STEP / WIDTH; v++) ((vector_##WIDTH *)(out + c))[v] = total[v];                 \
        }                                                                                                       \
    }

SUMS(2, )
#ifdef __x86_64__
SUMS(4, __attribute__((target("avx"))))
SUMS(8, __attribute__((target("avx512f"))))
#endif

typedef struct {
    void (*lines)(double *, Py_ssize_t, const double *const *, const double *, Py_ssize_t);
    void (*shifted)(double *, Py_ssize_t, const double *, const double *, Py_ssize_t);
} Sums;

static Sums widest(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return (Sums){sum_lines_8, sum_shifted_8};
    if (__builtin_cpu_supports("avx")) return (Sums){sum_lines_4, sum_shifted_4};
#endif
    return (Sums){sum_lines_2, sum_shifted_2};
}

/* The buffers of one call. */
typedef struct {
    Py_ssize_t width;        /* of a padded row of results along x */
    Py_ssize_t left, reach;  /* zeros before a line along x; diagonals of the x matrix */
    Py_ssize_t n_planes;     /* of the ring */
    Py_ssize_t plane_size;
    double *diagonals;       /* reach x width */
    double *line;            /* a row of values between zeros */
    double *rows;            /* a plane, multiplied along x */
    double *planes;          /* the ring: planes multiplied along x and y */
    const double **lines;
} Room;

static void clear(Room *room) {
    free(room->diagonals);
    free(room->line);
    free(room->rows);
    free(room->planes);
    free(room->lines);
}

static double *zeros(Py_ssize_t n) { return calloc((size_t)(n > 0 ? n : 1), sizeof(double)); }

static int furnish(Room *room, const Axis *z, const Axis *y, const Axis *x) {
    Py_ssize_t lowest = 0, highest = 0;
    for (Py_ssize_t i = 0; i < x->m; i++) {
        if (x->first[i] == x->last[i]) continue;
        if (x->first[i] - i < lowest) lowest = x->first[i] - i;
        if (x->last[i] - 1 - i > highest) highest = x->last[i] - 1 - i;
    }
    room->width = (x->m + STEP - 1) / STEP * STEP;
    room->left = -lowest;
    room->reach = highest - lowest + 1;
    /* The ring holds those of the planes read so far that any later row still reaches. */
    Py_ssize_t read = 0;
    for (Py_ssize_t j = 0; j < z->m; j++) {
        Py_ssize_t needed = z->n;
        for (Py_ssize_t later = j; later < z->m; later++)
            if (z->first[later] < z->last[later] && z->first[later] < needed) needed = z->first[later];
        if (z->last[j] > read) read = z->last[j];
        if (read - needed > room->n_planes) room->n_planes = read - needed;
    }
    room->plane_size = y->m * x->m + STEP; /* a padded row may end beyond the last one */
    room->diagonals = zeros(room->reach * room->width);
    room->line = zeros(room->left + (x->n > room->width ? x->n : room->width) + room->reach);
    room->rows = zeros(y->n * room->width);
    room->planes = zeros(room->n_planes * room->plane_size);
    room->lines = malloc((size_t)(y->n + z->n + 1) * sizeof(double *));
    if (!room->diagonals || !room->line || !room->rows || !room->planes || !room->lines) return -1;
    for (Py_ssize_t i = 0; i < x->m; i++)
        for (Py_ssize_t column = x->first[i]; column < x->last[i]; column++)
            room->diagonals[(column - i + room->left) * room->width + i] = x->matrix[i * x->n + column];
    return 0;
}

static void multiply_volume(const char *volume, const Py_ssize_t *strides, Convert convert, const Axis *z, const Axis *y,
                            const Axis *x, const Room *room, double *restrict out) {
    const Sums sums = widest();
    Py_ssize_t read = 0;
    for (Py_ssize_t j = 0; j < z->m; j++) {
        for (; read < z->last[j]; read++) {
            for (Py_ssize_t row = 0; row < y->n; row++) {
                convert(volume + read * strides[0] + row * strides[1], x->n, room->line + room->left);
                sums.shifted(room->rows + row * room->width, room->width, room->line, room->diagonals, room->reach);
            }
            double *plane = room->planes + read % room->n_planes * room->plane_size;
            for (Py_ssize_t i = 0; i < y->m; i++) {
                for (Py_ssize_t k = y->first[i]; k < y->last[i]; k++) room->lines[k] = room->rows + k * room->width;
                sums.lines(plane + i * x->m, room->width, room->lines + y->first[i], y->matrix + i * y->n + y->first[i],
                           y->last[i] - y->first[i]);
            }
        }
        for (Py_ssize_t k = z->first[j]; k < z->last[j]; k++)
            room->lines[k] = room->planes + k % room->n_planes * room->plane_size;
        sums.lines(out + j * y->m * x->m, y->m * x->m, room->lines + z->first[j], z->matrix + j * z->n + z->first[j],
                   z->last[j] - z->first[j]);
    }
}

/* multiply(volumes, matrix_z, matrix_y, matrix_x, out): volumes of shape (k, z, y, x), adjacent along x, of any real
   dtype; matrices of shape (m, n) each. */
PyObject *multiply(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { VOLUMES, Z, Y, X, OUT, N };
    static const Argument arguments[N] = {{"volumes", REAL, 4, STRIDED},
                                          {"matrix_z", FLOAT64, 2, INPUT},
                                          {"matrix_y", FLOAT64, 2, INPUT},
                                          {"matrix_x", FLOAT64, 2, INPUT},
                                          {"out", FLOAT64, 4, RESULT}};
    PyObject *objects[N];
    Py_buffer views[N], *volumes = &views[VOLUMES], *out = &views[OUT];
    Axis axes[3] = {{0}};
    Room room = {0};
    if (!PyArg_ParseTuple(args, "OOOOO", objects, objects + 1, objects + 2, objects + 3, objects + 4)) return NULL;
    if (open_arrays(objects, views, N, arguments) < 0) return close_arrays(views, N);
    int fits = out->shape[0] == volumes->shape[0] && (volumes->shape[3] <= 1 || volumes->strides[3] == volumes->itemsize);
    for (int a = 0; fits && a < 3; a++) {
        fits = views[Z + a].shape[0] == out->shape[1 + a] && views[Z + a].shape[1] == volumes->shape[1 + a];
        axes[a] = (Axis){.m = out->shape[1 + a], .n = volumes->shape[1 + a], .matrix = views[Z + a].buf};
    }
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "`volumes` must be adjacent along x, and fit the matrices and `out`.");
        return close_arrays(views, N);
    }
    const Convert convert = converters[type_of(volumes)];
    int failed = 0;
    Py_BEGIN_ALLOW_THREADS
    for (int a = 0; a < 3; a++) failed |= measure(&axes[a]) < 0;
    failed = failed || furnish(&room, &axes[0], &axes[1], &axes[2]) < 0;
    const Py_ssize_t size = out->shape[1] * out->shape[2] * out->shape[3];
    for (Py_ssize_t t = 0; !failed && t < volumes->shape[0]; t++)
        multiply_volume((const char *)volumes->buf + t * volumes->strides[0], volumes->strides + 1, convert,
                        &axes[0], &axes[1], &axes[2], &room, (double *)out->buf + t * size);
    clear(&room);
    for (int a = 0; a < 3; a++) free(axes[a].first);
    Py_END_ALLOW_THREADS
    if (failed) PyErr_NoMemory();
    return close_arrays(views, N);
}
