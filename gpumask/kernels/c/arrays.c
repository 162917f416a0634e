#include "arrays.h"

static const char *const type_names[] = {"int8",  "uint8",  "int16",   "uint16",  "int32", "uint32",
                                         "int64", "uint64", "float32", "float64", "",      "real numbers"};

int type_of(const Py_buffer *view) {
    const char *format = view->format ? view->format : "B", native = PY_LITTLE_ENDIAN ? '<' : '>';
    if (*format == '@' || *format == '=' || *format == native) format++;
    if (strlen(format) != 1) return -1;
    if (*format == 'f') return view->itemsize == 4 ? FLOAT32 : -1;
    if (*format == 'd') return view->itemsize == 8 ? FLOAT64 : -1;
    const int is_unsigned = strchr("?BHILQN", *format) != NULL;
    if (!is_unsigned && !strchr("bhilqn", *format)) return -1;
    switch (view->itemsize) {
    case 1: return INT8 + is_unsigned;
    case 2: return INT16 + is_unsigned;
    case 4: return INT32 + is_unsigned;
    case 8: return INT64 + is_unsigned;
    default: return -1;
    }
}

static int open_array(PyObject *object, Py_buffer *view, const Argument *argument) {
    const char *expected = type_names[argument->type];
    if (object == Py_None && argument->flags & OPTIONAL) return 0;
    if (!PyObject_CheckBuffer(object)) {
        PyObject *kind = PyType_GetName(Py_TYPE(object));
        if (kind) PyErr_Format(PyExc_TypeError, "`%s` must be an array of %s, got %U.", argument->name, expected, kind);
        Py_XDECREF(kind);
        return -1;
    }
    const int layout = argument->flags & STRIDED ? PyBUF_STRIDES : PyBUF_C_CONTIGUOUS;
    if (PyObject_GetBuffer(object, view, layout | PyBUF_FORMAT | (argument->flags & RESULT ? PyBUF_WRITABLE : 0)) < 0) {
        view->obj = NULL;
        if (PyErr_ExceptionMatches(PyExc_MemoryError)) return -1;
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "`%s` must be an array%s%s.", argument->name,
                     argument->flags & STRIDED ? "" : " in C order",
                     argument->flags & RESULT ? " that can be written to" : " of numbers");
        return -1;
    }
    const int type = type_of(view);
    if (type < 0 || (argument->type != REAL && argument->type != type)) {
        PyErr_Format(PyExc_TypeError, "`%s` must be of %s in native byte order, got items of format '%s'.",
                     argument->name, expected, view->format ? view->format : "B");
        return -1;
    }
    if (view->ndim != argument->ndim) {
        PyErr_Format(PyExc_TypeError, "`%s` must have %d dimensions, got %d.", argument->name, argument->ndim, view->ndim);
        return -1;
    }
    int aligned = view->len == 0 || (uintptr_t)view->buf % (size_t)view->itemsize == 0;
    for (int axis = 0; view->strides && axis < view->ndim; axis++)
        aligned &= view->shape[axis] <= 1 || view->strides[axis] % view->itemsize == 0;
    if (!aligned) {
        PyErr_Format(PyExc_ValueError, "`%s` must have its items at multiples of their size.", argument->name);
        return -1;
    }
    return 0;
}

int open_arrays(PyObject *const *objects, Py_buffer *views, int count, const Argument *arguments) {
    for (int i = 0; i < count; i++) views[i] = (Py_buffer){0};
    for (int i = 0; i < count; i++)
        if (open_array(objects[i], &views[i], &arguments[i]) < 0) return -1;
    return 0;
}

PyObject *close_arrays(Py_buffer *views, int count) {
    for (int i = 0; i < count; i++)
        if (views[i].obj) PyBuffer_Release(&views[i]);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

int check_offsets(const int64_t *offsets, Py_ssize_t n_offsets, Py_ssize_t n_entries) {
    int ascend = n_offsets > 0 && offsets[0] == 0 && offsets[n_offsets - 1] == n_entries;
    for (Py_ssize_t r = 1; r < n_offsets; r++) ascend &= offsets[r] >= offsets[r - 1];
    if (ascend) return 0;
    PyErr_Format(PyExc_ValueError, "`offsets` must start at 0, never decrease and end at %zd, the length of `indices`.",
                 n_entries);
    return -1;
}
