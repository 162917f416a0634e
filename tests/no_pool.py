"""pytest plugin, ``-p tests.no_pool``: each CuPy array is an allocation of its own, whose end a sanitizer sees."""

import cupy

cupy.cuda.set_allocator(None)
