/* Compiling the weights of segments; called by weights.py only.

   `fold` smooths the indicator of each region, or its weights: three products with banded matrices in the box that they reach. A few
   stray voxels make this box as large as the volume, so lines of zeros are skipped, and the result grows by what is in
   the boxes. */

#include "arrays.h"
#include "bands.h"

/* A region that fills less than this part of its box is searched for lines of zeros; others lose time by it. */
enum { SPARSE = 16 };

typedef struct {
    Py_ssize_t lo[3], hi[3];       /* of the region */
    Py_ssize_t first[3], last[3];  /* of what its smoothing reaches */
} Box;

static Box box_of(const Axis *axes, const int32_t *voxels, Py_ssize_t n) {
    Box box;
    for (int a = 0; a < 3; a++) box.lo[a] = axes[a].n, box.hi[a] = 0;
    for (Py_ssize_t v = 0; v < n; v++) {
        const Py_ssize_t plane = voxels[v] / axes[2].n;
        const Py_ssize_t at[3] = {plane / axes[1].n, plane % axes[1].n, voxels[v] % axes[2].n};
        for (int a = 0; a < 3; a++) {
            if (at[a] < box.lo[a]) box.lo[a] = at[a];
            if (at[a] >= box.hi[a]) box.hi[a] = at[a] + 1;
        }
    }
    for (int a = 0; a < 3; a++) {
        box.first[a] = axes[a].n, box.last[a] = 0;
        for (Py_ssize_t i = box.lo[a]; i < box.hi[a]; i++) {
            if (axes[a].first[i] == axes[a].last[i]) continue;
            if (axes[a].first[i] < box.first[a]) box.first[a] = axes[a].first[i];
            if (axes[a].last[i] > box.last[a]) box.last[a] = axes[a].last[i];
        }
        if (box.first[a] > box.last[a]) box.first[a] = box.last[a]; /* rows of zeros only */
    }
    return box;
}

static size_t inner(const Box *b, int a) { return (size_t)(b->hi[a] - b->lo[a]); }
static size_t outer(const Box *b, int a) { return (size_t)(b->last[a] - b->first[a]); }

static size_t max_of(size_t a, size_t b) { return a > b ? a : b; }

/* Values of the largest of a region's partial products: a matrix that reaches less than the region shrinks them. */
static size_t room_of(const Box *b) {
    const size_t x = max_of(inner(b, 2), outer(b, 2)), y = max_of(inner(b, 1), outer(b, 1));
    return inner(b, 0) * y * x;
}

static int all_zero(const double *values, size_t n) {
    size_t i = 0;
    while (i < n && values[i] == 0) i++;
    return i == n;
}

/* Multiplies along one axis: `from`, shape (before, hi - lo, after), to `to`, shape (before, last - first, after). */
static void smooth(const Axis *axis, const Box *box, int a, size_t before, size_t after, int sparse,
                   const double *restrict from, double *restrict to) {
    const size_t n_from = inner(box, a), n_to = outer(box, a);
    memset(to, 0, before * n_to * after * sizeof(double));
    for (size_t b = 0; b < before; b++)
        for (size_t i = 0; i < n_from; i++) {
            const Py_ssize_t place = box->lo[a] + (Py_ssize_t)i;
            const double *source = from + (b * n_from + i) * after;
            if (sparse && all_zero(source, after)) continue;
            for (Py_ssize_t j = axis->first[place]; j < axis->last[place]; j++) {
                const double weight = axis->matrix[place * axis->n + j];
                double *target = to + (b * n_to + (size_t)(j - box->first[a])) * after;
                for (size_t c = 0; c < after; c++) target[c] += weight * source[c];
            }
        }
}

/* One smoothed region, shape (z, y, x) of the box, into `parts[1]`; `parts[0]` is scratch. Without weights: its
   indicator. */
static void smooth_region(const Axis *axes, const Box *box, const int32_t *voxels, const double *weights, Py_ssize_t n,
                          double **parts) {
    const size_t z = inner(box, 0), y = inner(box, 1), x = inner(box, 2);
    const int sparse = (size_t)n < z * y * x / SPARSE;
    memset(parts[0], 0, z * y * x * sizeof(double));
    for (Py_ssize_t v = 0; v < n; v++) {
        const Py_ssize_t plane = voxels[v] / axes[2].n;
        const size_t at[3] = {(size_t)(plane / axes[1].n - box->lo[0]), (size_t)(plane % axes[1].n - box->lo[1]),
                              (size_t)(voxels[v] % axes[2].n - box->lo[2])};
        parts[0][(at[0] * y + at[1]) * x + at[2]] = weights ? weights[v] : 1;
    }
    smooth(&axes[2], box, 2, z * y, 1, sparse, parts[0], parts[1]);
    smooth(&axes[1], box, 1, z, outer(box, 2), sparse, parts[1], parts[0]);
    smooth(&axes[0], box, 0, 1, outer(box, 1) * outer(box, 2), sparse, parts[0], parts[1]);
}

/* Gives both bytearrays room for `needed` entries, and half as many again if they had less before. */
static int grow(PyObject *indices, PyObject *weights, size_t needed, size_t *capacity) {
    if (needed <= *capacity) return 0;
    if (needed > PY_SSIZE_T_MAX / (2 * sizeof(double))) {
        PyErr_NoMemory();
        return -1;
    }
    *capacity = *capacity ? needed + needed / 2 : needed;
    if (PyByteArray_Resize(indices, (Py_ssize_t)(*capacity * sizeof(int32_t))) < 0) return -1;
    return PyByteArray_Resize(weights, (Py_ssize_t)(*capacity * sizeof(double)));
}

/* fold(indices, offsets, weights or None, matrix_z, matrix_y, matrix_x, new_offsets) -> (new indices, new weights),
   as bytearrays */
PyObject *fold(PyObject *Py_UNUSED(module), PyObject *args) {
    enum { INDICES, OFFSETS, WEIGHTS, Z, Y, X, NEW_OFFSETS, N };
    static const Argument arguments[N] = {
        {"indices", INT32, 1, INPUT},    {"offsets", INT64, 1, INPUT},    {"weights", FLOAT64, 1, OPTIONAL},
        {"matrix_z", FLOAT64, 2, INPUT}, {"matrix_y", FLOAT64, 2, INPUT}, {"matrix_x", FLOAT64, 2, INPUT},
        {"new_offsets", INT64, 1, RESULT}};
    PyObject *objects[N], *new_indices = NULL, *weights = NULL, *result = NULL;
    Py_buffer views[N];
    Axis axes[3] = {{0}};
    Box *boxes = NULL;
    double *room = NULL;
    if (!PyArg_ParseTuple(args, "OOOOOOO", objects, objects + 1, objects + 2, objects + 3, objects + 4, objects + 5,
                          objects + 6))
        return NULL;
    if (open_arrays(objects, views, N, arguments) < 0) return close_arrays(views, N);
    const int32_t *indices = views[INDICES].buf;
    const int64_t *offsets = views[OFFSETS].buf;
    const double *given = views[WEIGHTS].buf;
    const Py_ssize_t n_entries = views[INDICES].shape[0], n_regions = views[OFFSETS].shape[0] - 1;
    Py_ssize_t n_voxels = 1;
    if (check_offsets(offsets, n_regions + 1, n_entries) < 0) goto done;
    if (given && views[WEIGHTS].shape[0] != n_entries) {
        PyErr_SetString(PyExc_ValueError, "`weights` must be as long as `indices`.");
        goto done;
    }
    if (views[NEW_OFFSETS].shape[0] != n_regions + 1) {
        PyErr_SetString(PyExc_ValueError, "`new_offsets` must be as long as `offsets`.");
        goto done;
    }
    for (int a = 0; a < 3; a++) {
        axes[a].m = axes[a].n = views[Z + a].shape[0];
        axes[a].matrix = views[Z + a].buf;
        if (views[Z + a].shape[1] != axes[a].n || axes[a].n > INT32_MAX || n_voxels * axes[a].n > INT32_MAX) {
            PyErr_SetString(PyExc_ValueError, "The matrices must be square, for volumes of less than 2**31 voxels.");
            goto done;
        }
        n_voxels *= axes[a].n;
        if (measure(&axes[a]) < 0) goto no_memory;
    }
    for (Py_ssize_t e = 0; e < n_entries; e++)
        if (indices[e] < 0 || indices[e] >= n_voxels) {
            PyErr_Format(PyExc_ValueError, "`indices` must be voxels of volumes of %zd voxels, got %d.", n_voxels,
                         (int)indices[e]);
            goto done;
        }
    boxes = malloc((size_t)(n_regions + 1) * sizeof(Box));
    if (!boxes) goto no_memory;
    size_t largest = 1, bound = 1, filled = 0, capacity = 0;
    for (Py_ssize_t r = 0; r < n_regions; r++) {
        const Py_ssize_t count = offsets[r + 1] - offsets[r];
        if (!count) continue;
        boxes[r] = box_of(axes, indices + offsets[r], count);
        const size_t size = outer(&boxes[r], 0) * outer(&boxes[r], 1) * outer(&boxes[r], 2);
        largest = max_of(largest, max_of(size, room_of(&boxes[r])));
        bound += size;
    }
    room = malloc(2 * largest * sizeof(double));
    new_indices = PyByteArray_FromStringAndSize(NULL, 0);
    weights = PyByteArray_FromStringAndSize(NULL, 0);
    if (!room) goto no_memory;
    if (!new_indices || !weights) goto done;
    /* Compact regions reach less than this many voxels for each of theirs. */
    const size_t usual = 16 * (size_t)n_entries;
    if (grow(new_indices, weights, bound < usual ? bound : usual, &capacity) < 0) goto done;
    int64_t *new_offsets = views[NEW_OFFSETS].buf;
    double *parts[2] = {room, room + largest};
    int failed = 0;
    Py_BEGIN_ALLOW_THREADS
    new_offsets[0] = 0;
    for (Py_ssize_t r = 0; r < n_regions && !failed; r++) {
        const Py_ssize_t count = offsets[r + 1] - offsets[r];
        if (count) {
            const Box *box = &boxes[r];
            smooth_region(axes, box, indices + offsets[r], given ? given + offsets[r] : NULL, count, parts);
            const double *value = parts[1];
            const size_t size = outer(box, 0) * outer(box, 1) * outer(box, 2);
            if (filled + size >= capacity) { /* count them, and one more: the loop writes behind the last entry */
                size_t more = 1;
                for (size_t i = 0; i < size; i++) more += value[i] != 0;
                Py_BLOCK_THREADS
                failed = grow(new_indices, weights, filled + more, &capacity);
                Py_UNBLOCK_THREADS
                if (failed) break;
            }
            int32_t *voxel = (int32_t *)PyByteArray_AsString(new_indices);
            double *weight = (double *)PyByteArray_AsString(weights);
            for (Py_ssize_t z = box->first[0]; z < box->last[0]; z++)
                for (Py_ssize_t y = box->first[1]; y < box->last[1]; y++) {
                    const Py_ssize_t line = (z * axes[1].n + y) * axes[2].n;
                    for (Py_ssize_t x = box->first[2]; x < box->last[2]; x++, value++) {
                        voxel[filled] = (int32_t)(line + x);
                        weight[filled] = *value;
                        filled += *value != 0;
                    }
                }
        }
        new_offsets[r + 1] = (int64_t)filled;
    }
    Py_END_ALLOW_THREADS
    if (!failed && PyByteArray_Resize(new_indices, (Py_ssize_t)(filled * sizeof(int32_t))) == 0 &&
        PyByteArray_Resize(weights, (Py_ssize_t)(filled * sizeof(double))) == 0)
        result = PyTuple_Pack(2, new_indices, weights);
    goto done;
no_memory:
    PyErr_NoMemory();
done:
    for (int a = 0; a < 3; a++) free(axes[a].first);
    free(boxes);
    free(room);
    Py_XDECREF(new_indices);
    Py_XDECREF(weights);
    Py_XDECREF(close_arrays(views, N));
    return result;
}
