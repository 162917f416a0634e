/* The cells of a row of floating-point numbers: what gpumask/tables.py writes without this file, 10 times as fast. */

#include "arrays.h"

#ifdef __SIZEOF_INT128__ /* 32-bit processors, and some compilers, don't have it */

#include <math.h>
#include <stdlib.h>

#define LONGEST 32 /* characters of a cell; a double's repr has at most 24 */

__extension__ typedef unsigned __int128 Wide;

#define FIVE(n) ((n) < 0 ? 1 : fives[n])
static const uint64_t fives[] = {
    1, 5, 25, 125, 625, 3125, 15625, 78125, 390625, 1953125, 9765625, 48828125, 244140625, 1220703125, 6103515625,
    30517578125, 152587890625, 762939453125, 3814697265625, 19073486328125, 95367431640625, 476837158203125,
    2384185791015625, 11920928955078125, 59604644775390625, 298023223876953125, 1490116119384765625
};

/* The fewest digits that are read back as `number`, of `precision` bits, and of these the nearest to it: a whole number,
   to be multiplied by 10^*point. Returns 0 for numbers that it can't do.

   The numbers that are read back as m x 2^e reach half way to its neighbours. With n decimal places, as few as leave a
   whole number among them for certain, at most one multiple of ten is. 128 bits hold all of it exactly: a double of
   1e-10 needs 5^26. After Giulietti, The Schubfach way to render doubles, 2020. */
static long long shortest(double number, int precision, int *point) {
    const double size = fabs(number);
    if (!(size > 1e-10 && size < 1e15)) return 0;
    int e;
    const uint64_t m = (uint64_t)ldexp(frexp(size, &e), precision);
    e -= precision;
    const int is_power = m == (uint64_t)1 << (precision - 1); /* of two: the one below is at half the distance */
    const int places = -30103 * e + 12494 * is_power;         /* n in 1e-5: log10(2), log10(4 / 3) */
    const int n = (places + (places > 0 ? 99999 : 0)) / 100000, twos = e + n;
    const Wide half = (Wide)FIVE(n) << (twos > 0 ? twos + 1 : 1), unit = (Wide)FIVE(-n) << (twos < 0 ? 2 - twos : 2);
    const Wide middle = 2 * m * half, low = middle - (is_power ? half / 2 : half), high = middle + half;
    const uint64_t below = (uint64_t)(n < 0 ? middle / unit : middle >> (twos < 0 ? 2 - twos : 2));
    const int inner = m % 2; /* the ends themselves are read as the neighbour, if that is even */
    *point = -n;
    for (uint64_t tens = below / 10 * 10; tens <= below + 10; tens += 10)
        if (tens * unit >= low + inner && tens * unit <= high - inner) return (long long)tens;
    const Wide rest = 2 * (middle - below * unit);
    const uint64_t nearest = below + (rest > unit || (rest == unit && below % 2)), other = 2 * below + 1 - nearest;
    return (long long)(nearest * unit >= low + inner && nearest * unit <= high - inner ? nearest : other);
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
static char *put_exactly(char *text, double value) {
    if (isnan(value)) return (char *)memcpy(text, "n/a", 3) + 3;
    PyObject *number = PyFloat_FromDouble(value), *repr = number ? PyObject_Repr(number) : NULL;
    PyObject *bytes = repr ? PyUnicode_AsASCIIString(repr) : NULL;
    const char *content = bytes ? PyBytes_AsString(bytes) : NULL;
    char *end = NULL;
    if (content && strlen(content) < LONGEST) end = (char *)memcpy(text, content, strlen(content)) + strlen(content);
    Py_XDECREF(bytes), Py_XDECREF(repr), Py_XDECREF(number);
    return end;
}

PyObject *decimals(PyObject *module, PyObject *args) {
    (void)module;
    const Argument argument = {"row", REAL, 1, INPUT};
    PyObject *object, *line = NULL;
    Py_buffer view = {0};
    if (!PyArg_ParseTuple(args, "O", &object)) return NULL;
    if (open_arrays(&object, &view, 1, &argument) == 0) {
        const int type = type_of(&view), is_double = type == FLOAT64;
        const Py_ssize_t n = view.shape[0];
        char *text = PyMem_Malloc((size_t)n * (LONGEST + 2) + 1), *end = text;
        if (!text) PyErr_NoMemory();
        if (!is_double && type != FLOAT32) {
            PyErr_Format(PyExc_TypeError, "`row` must be of float32 or float64, got items of format '%s'.",
                         view.format ? view.format : "B");
            end = NULL;
        }
        for (Py_ssize_t k = 0; k < n && end; k++) {
            const double number = is_double ? ((const double *)view.buf)[k] : ((const float *)view.buf)[k];
            int point;
            const long long whole = shortest(number, is_double ? 53 : 24, &point);
            if (k) *end++ = '\t';
            if (whole && number < 0) *end++ = '-';
            end = whole ? put(end, whole, point) : put_exactly(end, number);
        }
        if (text && end) line = PyUnicode_DecodeASCII(text, end - text, NULL);
        PyMem_Free(text);
    }
    Py_XDECREF(close_arrays(&view, 1));
    return line;
}

#endif
