"""What the GPU and its bus allow at best."""

import time

import numpy as np

from benchmarks.gpu.timing import EMULATED, WAITS
from gpumask import cuda_runtime

_VOLUME = 97 * 115 * 97 * 2  # bytes
_CHUNK = 16 * _VOLUME


def copy(bench):
    """A copy within the GPU's memory, read and written."""
    bandwidth = bench.copy_bandwidth
    return {"GB/s": bandwidth and bandwidth / 1e9, "why": EMULATED if bench.clock.emulated else WAITS}


def upload(bench):
    """A copy from page-locked memory to the GPU, and how long page-locking takes."""
    import cupy

    n_bytes = (1 << 16) if bench.inputs.tiny else _CHUNK
    started = time.perf_counter()
    memory = cuda_runtime.pinned_memory(n_bytes)
    locked = time.perf_counter() - started
    host = np.frombuffer(memory, np.uint8, n_bytes)
    host[:] = 1
    target = cupy.zeros(n_bytes, np.uint8)
    timed = bench.clock.time(
        lambda _: cuda_runtime.upload(host, target, cupy.cuda.get_current_stream()), rounds=bench.rounds
    )
    per_second = timed.device and n_bytes / timed.device
    return {
        "GB/s": per_second and per_second / 1e9,
        "us/volume": per_second and _VOLUME / per_second * 1e6,
        "page-locking, ms": locked * 1e3,
        "why": timed.why,
    }


def product(bench):
    """A product of two square matrices of float64."""
    import cupy

    n = 64 if bench.inputs.tiny else 8192
    matrix = cupy.ones((n, n))
    timed = bench.clock.time(lambda _: matrix @ matrix, rounds=min(bench.rounds, 5))
    return {"TFLOP/s": timed.device and 2 * n**3 / timed.device / 1e12, "why": timed.why}
