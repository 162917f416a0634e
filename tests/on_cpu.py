"""The CUDA kernels as C++ programs of the CPU, without CuPy: for what needs a checker around the process, or no memory.

``python -m tests.on_cpu races`` (under ThreadSanitizer) or ``overflow``; exits with 1 if the results are wrong. Needs
cpucuda, whose `compile_host` turns CUDA C++ into a shared library.
"""

import ctypes
import mmap
import sys
import tempfile

import cpucuda
import numpy as np

from gpumask.kernels import median_cuda, segments_cuda
from gpumask.kernels.segments import Segments

from . import mutated  # noqa: F401  (applies the fault that the environment names)


def run(source, options, name, grid, n_threads, arguments):
    """Run one kernel instance over NumPy arrays, integers (as long long) and floats (as double)."""
    library, symbols = cpucuda.compile_host(source, options, (name,))
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        loaded = ctypes.CDLL(file.name)
    kinds = {int: ctypes.c_longlong, float: ctypes.c_double}
    values = [
        ctypes.c_void_p(a.ctypes.data)
        if isinstance(a, np.ndarray)
        else kinds[type(a)](a)
        if a is not None
        else ctypes.c_void_p()
        for a in arguments
    ]
    pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
    flags = ctypes.c_int.in_dll(loaded, "cpucuda_sync").value
    shape = (ctypes.c_uint * 7)(*grid, 1, n_threads, 1, 1, flags)
    assert getattr(loaded, f"cpucuda_run_{symbols[name]}")(shape, ctypes.c_size_t(0), pointers) == 0


def reduce(data, segments, strategy, type_name, policy="KEEP"):
    """As `segments_cuda.reduce`, with the launches written out."""
    (n_volumes, n_voxels), n_regions = data.shape, len(segments)
    signals, found = np.empty((n_volumes, n_regions)), np.zeros(n_volumes, np.uint32)
    if strategy == "median":
        name = f"select_medians<{type_name}, int, {policy}>"
        arguments = (data, n_volumes, n_voxels, segments.indices, segments.offsets, n_regions, 1.0, 0.0, signals, found)
        run(median_cuda._SOURCE, ("-DTHREADS=128",), name, (n_regions, 1), 128, arguments)
        return signals
    layout = segments_cuda.lay_out(segments)
    n_parts, warps = len(layout.region), segments_cuda._WARPS
    partials, shares = np.empty((n_volumes, n_parts)), np.empty((n_volumes, n_parts))
    arguments = (data, n_volumes, n_voxels, *layout, n_parts, n_regions, None, 1.0, 0.0, partials, shares, found)
    grid = (-(-n_parts // warps), -(-n_volumes // segments_cuda._VOLUMES))
    source, options = segments_cuda._SOURCE, segments_cuda._OPTIONS
    run(source, options, f"reduce_parts<{type_name}, int, SUM, {policy}>", grid, 32 * warps, arguments)
    arguments = (partials, shares, segments.totals, layout.first, n_parts, n_volumes, n_regions, signals)
    grid = (-(-n_regions // warps), 1)  # one block strides over the volumes
    run(source, options, f"combine_parts<MEAN, {policy}>", grid, 32 * warps, arguments)
    return signals


def races():
    """Kernels on two volumes and regions of several parts, some voxels of which are not finite."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(2, 700)).astype("f4")
    data[:, ::50] = np.nan
    regions = [rng.integers(0, 700, n) for n in (1100, 1, 300)]
    offsets = np.cumsum([0, *map(len, regions)])
    segments = Segments(np.concatenate(regions).astype("i4"), offsets)
    for strategy, by_numpy in (("mean", np.nanmean), ("median", np.nanmedian)):
        expected = [[by_numpy(volume[voxels].astype("f8")) for voxels in regions] for volume in data]
        np.testing.assert_allclose(reduce(data, segments, strategy, "float", "OMIT"), expected, rtol=1e-12)


def overflow():
    """More values than an int counts, in pages that are never touched but for the last."""
    n_volumes, n_voxels = 3, 1 << 30
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    data = np.frombuffer(mmap.mmap(-1, n_volumes * n_voxels, flags=private), "i1").reshape(n_volumes, n_voxels)
    data[-1, -1] = 7
    segments = Segments(np.array([n_voxels - 1], "i4"), np.array([0, 1]))
    for strategy in ("mean", "median"):
        np.testing.assert_array_equal(reduce(data, segments, strategy, "signed char"), [[0], [0], [7]])


if __name__ == "__main__":
    {"races": races, "overflow": overflow}[sys.argv[1]]()
