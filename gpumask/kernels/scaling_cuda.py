"""How the CUDA kernels read stored values: in the dtype that they have, scaled to float64 in registers."""

# CUDA C++ types of the dtypes that the kernels read directly. float16 has no plain C type; big-endian data become
# native on their way to a device.
C_TYPES = {
    "bool": "bool",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
    "float32": "float",
    "float64": "double",
}

# What becomes of scaled values that are not finite, as the kernels' POLICY.
NON_FINITE = {"keep": "KEEP", "zero": "ZERO", "omit": "OMIT"}

GRID_HEIGHT = 65_535  # blocks in the second dimension of a grid at most; kernels stride over volumes beyond it

SOURCE = r"""
// One rounding, and the same one wherever a compiler might choose to fuse.
template <typename T>
__device__ double scaled(T stored, double slope, double inter) { return fma(slope, (double)stored, inter); }

enum { KEEP, ZERO, OMIT };

__device__ bool is_finite(double value) {  // in integers: a comparison in double precision is slow on many GPUs
    return (__double_as_longlong(value) & 0x7ff0000000000000LL) != 0x7ff0000000000000LL;
}
"""


def types(data, segments):
    """Template arguments of a kernel that reads `data` at the entries of `segments`."""
    return f"{C_TYPES[data.dtype.name]}, {C_TYPES[segments.indices.dtype.name]}"
