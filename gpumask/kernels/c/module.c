/* The compiled inner loops of the CPU: the extension module gpumask.kernels._compiled. */

#include "arrays.h"

static PyMethodDef methods[] = {
    {"add_series", add_series, METH_VARARGS, "Add series to the sums of their segments."},
    {"blocks", blocks, METH_VARARGS, "Check blocks of voxels, for `sums`."},
#ifdef __SIZEOF_INT128__
    {"decimals", decimals, METH_VARARGS, "Cells of a row of numbers, with tabs between them."},
#endif
    {"extremes_of_series", extremes_of_series, METH_VARARGS, "Minimum or maximum of segments of series."},
    {"fold", fold, METH_VARARGS, "Smooth the indicators of segments."},
    {"interpolate", interpolate, METH_VARARGS, "Evaluate the cubic splines of volumes at points."},
    {"multiply", multiply, METH_VARARGS, "Multiply volumes with a banded matrix per axis."},
    {"numbers", numbers, METH_VARARGS, "Read the numbers of a table's lines."},
    {"statistics", statistics, METH_VARARGS, "Compute a statistic of segments of volumes."},
    {"sums", sums, METH_VARARGS, "Sum segments of volumes, in blocks of voxels."},
    {NULL, NULL, 0, NULL},
};
static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* no state but the arguments; otherwise importing it turns the GIL on */
#endif
    {0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", NULL, 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&definition); }
