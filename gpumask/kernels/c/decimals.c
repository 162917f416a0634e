/* The cells of a row of float32 numbers: what gpumask/tables.py writes without this file, an order of magnitude faster. */

#include "arrays.h"

#include <math.h>
#include <stdlib.h>

#define LONGEST 32 /* characters of a cell; a double's repr has at most 24 */

static const double powers[] = {1e0, 1e1, 1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,
                                1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19};

/* The fewest digits, from 6 to 9, that are read back as `single`: 0.<digits> x 10^*point. Returns 0 without any. */
static long long shortest(float single, int *point) {
    const double exact = single, size = fabs(exact);
    if (!(size > 1e-10 && size < 1e15)) return 0;
    const int exponent = (int)floor(log10(size));
    for (int n_digits = 6; n_digits < 10; n_digits++) {
        const int shift = n_digits - 1 - exponent;
        const double up = powers[shift > 0 ? shift : 0], down = powers[shift < 0 ? -shift : 0];
        const double whole = rint(size * up / down);
        if ((float)(whole * down / up) != (float)size) continue;
        *point = -shift;
        return (long long)whole;
    }
    return 0;
}

/* Writes a number of `shortest` as Python's repr; returns the end. */
static char *put(char *text, long long whole, int point) {
    char digits[LONGEST];
    int n = 0;
    for (; whole % 10 == 0; whole /= 10) point++;
    for (; whole; whole /= 10) digits[n++] = (char)('0' + whole % 10); /* the last digit first */
    point += n;
    if (point <= -4) { /* below 1e-4, and above 1e-11: the exponent has two digits */
        *text++ = digits[--n];
        if (n) *text++ = '.';
        while (n) *text++ = digits[--n];
        *text++ = 'e', *text++ = '-';
        *text++ = (char)('0' + (1 - point) / 10), *text++ = (char)('0' + (1 - point) % 10);
        return text;
    }
    if (point <= 0) *text++ = '0', *text++ = '.';
    for (int k = point; k < 0; k++) *text++ = '0';
    for (int k = 0; n; k++) {
        if (k == point && k) *text++ = '.';
        *text++ = digits[--n];
        if (!n)
            for (k++; k <= point; k++) {
                if (k == point) *text++ = '.';
                *text++ = '0';
            }
    }
    return text;
}

/* Writes a number that `shortest` has no digits for; returns the end, or NULL if an exception is set. */
static char *put_exactly(char *text, float single) {
    if (isnan(single)) return (char *)memcpy(text, "n/a", 3) + 3;
    PyObject *number = PyFloat_FromDouble(single), *repr = number ? PyObject_Repr(number) : NULL;
    PyObject *bytes = repr ? PyUnicode_AsASCIIString(repr) : NULL;
    const char *content = bytes ? PyBytes_AsString(bytes) : NULL;
    char *end = NULL;
    if (content && strlen(content) < LONGEST) end = (char *)memcpy(text, content, strlen(content)) + strlen(content);
    Py_XDECREF(bytes), Py_XDECREF(repr), Py_XDECREF(number);
    return end;
}

PyObject *decimals(PyObject *module, PyObject *args) {
    (void)module;
    const Argument argument = {"row", FLOAT32, 1, INPUT};
    PyObject *object, *line = NULL;
    Py_buffer view = {0};
    if (!PyArg_ParseTuple(args, "O", &object)) return NULL;
    if (open_arrays(&object, &view, 1, &argument) == 0) {
        const float *row = view.buf;
        const Py_ssize_t n = view.shape[0];
        char *text = PyMem_Malloc((size_t)n * (LONGEST + 2) + 1), *end = text;
        if (!text) PyErr_NoMemory();
        for (Py_ssize_t k = 0; k < n && end; k++) {
            int point;
            const long long whole = shortest(row[k], &point);
            if (k) *end++ = '\t';
            if (whole && row[k] < 0) *end++ = '-';
            end = whole ? put(end, whole, point) : put_exactly(end, row[k]);
        }
        if (text && end) line = PyUnicode_DecodeASCII(text, end - text, NULL);
        PyMem_Free(text);
    }
    Py_XDECREF(close_arrays(&view, 1));
    return line;
}
