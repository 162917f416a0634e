"""An array of a library that supports DLPack and, beyond it, next to nothing."""

import types


class Foreign:
    """Around an array of NumPy or CuPy."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, f"foreign.{array.dtype}"

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Known(Foreign):
    """Its library has a namespace of the array API, so results can be returned as its arrays."""

    def __array_namespace__(self, api_version=None):
        return types.SimpleNamespace(__name__="known", from_dlpack=Known)
