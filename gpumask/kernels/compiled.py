"""The compiled inner loops of the CPU; None where there was no C compiler when gpumask was installed.

NumPy and SciPy take their place then, several times as slow; `gpumask info` says so.
"""

import numpy as np

try:
    from gpumask.kernels import _resampling, _segments, _smoothing, _weights
except ImportError:
    _resampling = _segments = _smoothing = _weights = None

is_compiled = _segments is not None


def readable(array):
    """Return a NumPy array as the compiled functions can read it: itself, or a copy.

    An uncompressed file may be big-endian, or begin its volumes at an odd byte; a type that they don't know (float16,
    long double) is taken as float64.
    """
    if array.dtype.char not in "?bBhHiIlLqQfd":
        return array.astype(np.float64)
    return np.require(array, array.dtype.newbyteorder("="), ["ALIGNED"])
