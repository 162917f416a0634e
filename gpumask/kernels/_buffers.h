/* Arrays as arguments of the C functions. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* Buffers of a call's arrays. `itemsizes` are in bytes, 0 for any; an array that is None gets a NULL buffer;
   the last `n_results` are written to. */
static int open_buffers(PyObject *const *objects, Py_buffer *views, int count, const char *const *names,
                        const Py_ssize_t *itemsizes, int n_results) {
    for (int i = 0; i < count; i++) views[i].obj = NULL, views[i].buf = NULL;
    for (int i = 0; i < count; i++) {
        if (objects[i] == Py_None) continue;
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (i >= count - n_results ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(objects[i], &views[i], flags) < 0) return -1;
        if (itemsizes[i] && views[i].itemsize != itemsizes[i]) {
            PyErr_Format(PyExc_TypeError, "`%s` must have %zd bytes an item, got %zd.", names[i], itemsizes[i],
                         views[i].itemsize);
            return -1;
        }
    }
    return 0;
}

static PyObject *close_buffers(Py_buffer *views, int count) {
    for (int i = 0; i < count; i++)
        if (views[i].obj) PyBuffer_Release(&views[i]);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}
