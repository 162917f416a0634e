/* Arrays as arguments of the C functions. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* The types of stored values that are read without a copy. */
#define FOR_ALL_TYPES(DO)                                                                                    \
    DO(int8_t) DO(uint8_t) DO(int16_t) DO(uint16_t) DO(int32_t) DO(uint32_t) DO(int64_t) DO(uint64_t) DO(float) \
        DO(double)

/* Place of a buffer's type among FOR_ALL_TYPES; -1 for what is no real number in native byte order. */
static inline int type_of(const char *format, Py_ssize_t itemsize) {
    const char native = PY_LITTLE_ENDIAN ? '<' : '>';
    if (*format == '@' || *format == '=' || *format == native) format++;
    if (strlen(format) != 1) return -1;
    if (*format == 'f') return 8;
    if (*format == 'd') return 9;
    const int is_unsigned = strchr("?BHILQ", *format) != NULL;
    if (!is_unsigned && !strchr("bhilq", *format)) return -1;
    return is_unsigned + (itemsize == 1 ? 0 : itemsize == 2 ? 2 : itemsize == 4 ? 4 : 6);
}

/* Buffers of a call's arrays, C-contiguous but for the first `n_strided`. `itemsizes` are in bytes, 0 for any; an array
   that is None gets a NULL buffer; the last `n_results` are written to. */
static int open_buffers(PyObject *const *objects, Py_buffer *views, int count, const char *const *names,
                        const Py_ssize_t *itemsizes, int n_results, int n_strided) {
    for (int i = 0; i < count; i++) views[i].obj = NULL, views[i].buf = NULL;
    for (int i = 0; i < count; i++) {
        if (objects[i] == Py_None) continue;
        const int layout = i < n_strided ? PyBUF_STRIDES : PyBUF_C_CONTIGUOUS;
        const int flags = layout | PyBUF_FORMAT | (i >= count - n_results ? PyBUF_WRITABLE : 0);
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
