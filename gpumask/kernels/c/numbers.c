/* Numbers of a table's text: what gpumask/tables.py reads without this file, an order of magnitude faster. */

#include "arrays.h"

#include <math.h>

#define LONGEST 64             /* characters of a number; a double's repr has at most 24 */
#define MOST_EXACT (1LL << 53) /* whole numbers up to here are doubles, as are powers of ten up to 1e22 */

#define MOST_DIGITS 1000000000000000000LL

static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* The number of a cell, by Python's own rules. Returns -1 with a ValueError if it isn't one. */
static int read_slowly(const char *cell, size_t length, double *number) {
    char text[LONGEST + 1];
    if (length == 0 || length > LONGEST || memchr(cell, 0, length)) {
        PyErr_Format(PyExc_ValueError, "a cell of %zd characters isn't a number", (Py_ssize_t)length);
        return -1;
    }
    memcpy(text, cell, length);
    text[length] = 0;
    *number = PyOS_string_to_double(text, NULL, NULL);
    return *number == -1.0 && PyErr_Occurred() ? -1 : 0;
}

/* The double nearest to whole / 10^places, where 2^53 <= whole < 10^18; 0 where the compiler can't divide so. */
static double divided(long long whole, int places) {
#ifdef __SIZEOF_INT128__
    if (places > 19) return 0;
    unsigned long long power = 1, rest;
    for (int k = 0; k < places; k++) power *= 10;
    const unsigned __int128 dividend = (unsigned __int128)whole << 68; /* so the quotient has 57 bits or more */
    unsigned __int128 quotient = dividend / power;
    rest = dividend % power != 0;
    int exponent = -68;
    for (; quotient >> 64; quotient >>= 1, exponent++) rest |= quotient & 1;
    return ldexp((double)((unsigned long long)quotient | rest), exponent);
#else
    return 0;
#endif
}

/* The number that begins at `cell`, before `end`; returns where it ends, or NULL if it has more than 17 digits, a large
   exponent, or is none. Its operations round once, so it is the nearest double. */
static const char *read_fast(const char *cell, const char *end, double *number) {
    long long whole = 0;
    int shift = 0, n_digits = 0;
    const int is_negative = cell < end && *cell == '-';
    cell += is_negative;
    for (; cell < end && *cell >= '0' && *cell <= '9' && whole < MOST_DIGITS / 10; cell++, n_digits++)
        whole = 10 * whole + (*cell - '0');
    if (cell < end && *cell == '.')
        for (cell++; cell < end && *cell >= '0' && *cell <= '9' && whole < MOST_DIGITS / 10; cell++, n_digits++, shift--)
            whole = 10 * whole + (*cell - '0');
    if (!n_digits) return NULL;
    if (cell < end && *cell == 'e') {
        int exponent = 0, n = 0, is_small = 0;
        cell++;
        if (cell < end && (*cell == '-' || *cell == '+')) is_small = *cell++ == '-';
        for (; cell < end && *cell >= '0' && *cell <= '9' && n < 3; cell++, n++) exponent = 10 * exponent + (*cell - '0');
        if (!n) return NULL;
        shift += is_small ? -exponent : exponent;
    }
    double size;
    if (whole < MOST_EXACT && shift >= -22 && shift <= 22)
        size = shift < 0 ? (double)whole / powers[-shift] : (double)whole * powers[shift];
    else if (shift >= 0 || whole < MOST_EXACT || (size = divided(whole, -shift)) == 0)
        return NULL;
    *number = is_negative ? -size : size;
    return cell;
}

/* Reads the lines of `text` to `rows`; the first cell of each is skipped if they are labelled. */
static int read_lines(const char *text, const char *end, double *rows, Py_ssize_t n_rows, Py_ssize_t n, int labelled) {
    for (Py_ssize_t k = 0; k < n_rows; k++) {
        const char *line_end = memchr(text, '\n', (size_t)(end - text));
        if (labelled && line_end) {
            text = memchr(text, '\t', (size_t)(line_end - text));
            text = text ? text + 1 : line_end;
        }
        for (Py_ssize_t j = 0; j < n && line_end; j++) {
            double *number = rows + k * n + j;
            const char *stop = read_fast(text, line_end, number);
            const int is_read = stop && (stop == line_end || *stop == '\t');
            if (!is_read) {
                stop = memchr(text, '\t', (size_t)(line_end - text));
                if (!stop) stop = line_end;
            }
            if ((stop == line_end) != (j == n - 1))
                line_end = NULL;
            else if (stop - text == 3 && memcmp(text, "n/a", 3) == 0)
                *number = NAN;
            else if (!is_read && read_slowly(text, (size_t)(stop - text), number) < 0)
                return -1;
            text = stop + 1;
        }
        if (!line_end) {
            PyErr_Format(PyExc_ValueError, "row %zd doesn't have %zd numbers", k + 1, n);
            return -1;
        }
    }
    if (text != end) {
        PyErr_Format(PyExc_ValueError, "text after row %zd", n_rows);
        return -1;
    }
    return 0;
}

PyObject *numbers(PyObject *module, PyObject *args) {
    (void)module;
    const Argument argument = {"rows", FLOAT64, 2, RESULT};
    PyObject *object;
    Py_buffer text, view = {0};
    int labelled;
    if (!PyArg_ParseTuple(args, "y*Op", &text, &object, &labelled)) return NULL;
    if (open_arrays(&object, &view, 1, &argument) == 0) {
        const char *begin = text.buf;
        read_lines(begin, begin + text.len, view.buf, view.shape[0], view.shape[1], labelled);
    }
    PyBuffer_Release(&text);
    return close_arrays(&view, 1);
}
