"""The compiled inner loops of the CPU, if they were built when gpumask was installed.

Without them, NumPy and SciPy replace them, several times slower; `gpumask info` reports which, and why.
"""

import importlib
from typing import Any

import numpy as np

extension: Any = None
"""The extension module (its functions: c/module.c), or None."""
problem: ImportError | None = None
"""Why it is None."""
try:
    extension = importlib.import_module("gpumask.kernels._compiled")
except ImportError as error:
    problem = error

is_compiled = extension is not None

_REAL = "?bBhHiIlLqQfd"  # the compiled functions read these types as they are


def readable(array: np.ndarray) -> np.ndarray:
    """Return a NumPy array in a form that the compiled functions can read: itself, or a copy.

    Uncompressed files may be big-endian, or start their volumes at an odd byte. Real types that C lacks (float16,
    long double) are converted to float64.

    Raises
    ------
    TypeError
        If the array isn't of real numbers.
    """
    if array.dtype.char in _REAL:
        return np.require(array, array.dtype.newbyteorder("="), ["ALIGNED"])
    if array.dtype.kind not in "biuf":
        msg = f"Volumes must be of real numbers, got an array of {array.dtype}."
        raise TypeError(msg)
    return array.astype(np.float64)
