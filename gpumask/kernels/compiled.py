"""The compiled inner loops of the CPU, if a C compiler was found when gpumask was installed.

Without one, NumPy and SciPy replace them, several times slower; `gpumask info` reports which.
"""

import importlib
from typing import Any

import numpy as np

extension: Any
"""The extension module, with `blocks`, `fold`, `interpolate`, `multiply`, `statistics` and `sums`; or None."""
try:
    extension = importlib.import_module("gpumask.kernels._compiled")
except ImportError:
    extension = None

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
