/* Banded matrices that multiply along an axis of volumes. */

#ifndef GPUMASK_BANDS_H
#define GPUMASK_BANDS_H

#include <Python.h>
#include <stdlib.h>

typedef struct {
    Py_ssize_t m, n;          /* rows (results) and columns (values) */
    const double *matrix;
    Py_ssize_t *first, *last; /* first and last + 1 of the columns that each row reaches; equal for a row of zeros */
} Axis;

static int measure(Axis *axis) {
    axis->first = malloc(2 * (size_t)axis->m * sizeof(Py_ssize_t) + 1);
    if (!axis->first) return -1;
    axis->last = axis->first + axis->m;
    for (Py_ssize_t i = 0; i < axis->m; i++) {
        const double *row = axis->matrix + i * axis->n;
        Py_ssize_t first = 0, last = axis->n;
        while (first < last && row[first] == 0) first++;
        while (last > first && row[last - 1] == 0) last--;
        axis->first[i] = first < last ? first : 0;
        axis->last[i] = first < last ? last : 0;
    }
    return 0;
}

#endif
