/* Arrays as arguments of the C functions, checked before anything is read. */

#ifndef GPUMASK_ARRAYS_H
#define GPUMASK_ARRAYS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* The types of stored values that are read without a copy; `Type` has them in this order. */
#define FOR_ALL_TYPES(DO)                                                                                    \
    DO(int8_t) DO(uint8_t) DO(int16_t) DO(uint16_t) DO(int32_t) DO(uint32_t) DO(int64_t) DO(uint64_t) DO(float) \
        DO(double)

typedef enum { INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64, UINT64, FLOAT32, FLOAT64, N_TYPES, REAL } Type;

/* What a function accepts for one of its arguments. */
typedef struct {
    const char *name;
    int type; /* a `Type`; REAL for any of them */
    int ndim;
    enum { INPUT = 0, RESULT = 1, STRIDED = 2, OPTIONAL = 4 } flags; /* results are written to; None is a NULL buffer */
} Argument;

/* Opens the buffer of each argument, C-contiguous unless STRIDED. Returns -1 with a TypeError (not an array of this type
   and number of dimensions) or a ValueError (not contiguous, aligned or writable). To be closed in either case. */
int open_arrays(PyObject *const *objects, Py_buffer *views, int count, const Argument *arguments);

/* Returns None, or NULL if an exception is set. */
PyObject *close_arrays(Py_buffer *views, int count);

/* Place of a buffer's type in FOR_ALL_TYPES; -1 if it isn't a real number in native byte order. */
int type_of(const Py_buffer *view);

/* 0 if offsets start at 0, never decrease and end at `n_entries`; otherwise -1 with a ValueError. */
int check_offsets(const int64_t *offsets, Py_ssize_t n_offsets, Py_ssize_t n_entries);

PyObject *add_series(PyObject *module, PyObject *args);
PyObject *blocks(PyObject *module, PyObject *args);
PyObject *decimals(PyObject *module, PyObject *args);
PyObject *extremes_of_series(PyObject *module, PyObject *args);
PyObject *fold(PyObject *module, PyObject *args);
PyObject *interpolate(PyObject *module, PyObject *args);
PyObject *multiply(PyObject *module, PyObject *args);
PyObject *numbers(PyObject *module, PyObject *args);
PyObject *statistics(PyObject *module, PyObject *args);
PyObject *sums(PyObject *module, PyObject *args);

#endif
