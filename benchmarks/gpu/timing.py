"""Seconds on the GPU and on the host, apart."""

import itertools
import statistics
import time
from typing import NamedTuple

from gpumask import cuda_runtime

# Busy for so many nanoseconds of the GPU's own clock, whatever its frequency. On one thread: it takes no bandwidth.
SPIN = r"""
extern "C" __global__ void spin(unsigned long long nanoseconds) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < nanoseconds);
}
"""
_WARM_UP = 3  # calls that compile and fill caches
_LONGEST_SPIN = 0.2  # s
EMULATED = "the GPU is emulated: it computes while the host launches, at the host's speed"
WAITS = "the host waits for the GPU between its launches, so they can't be queued first"


class Timed(NamedTuple):
    """Median seconds on the `device`, and of the `host` to launch that; None where `why` they can't be told."""

    device: float | None
    host: float | None
    why: str = ""


class Clock:
    """Times work on the current GPU.

    Events around a Python call would measure launching, which takes longer than most kernels. So the GPU first gets a
    kernel that spins until everything is launched, and the events lie behind that.

    Parameters
    ----------
    emulated : bool
        Whether nothing can be timed, because the GPU is emulated; then each piece of work is done once, as a test.
    """

    def __init__(self, *, emulated):
        self.emulated = emulated

    def time(self, work, variants=(None,), rounds=20):
        """Time ``work(variant)``, the variants taken in turn.

        Returns
        -------
        Timed
        """
        variants = itertools.cycle(variants)
        if self.emulated:
            work(next(variants))
            return Timed(None, None, EMULATED)
        import cupy

        cupy.cuda.Device().synchronize()  # what other streams make may be used
        spin, stream = cupy.RawKernel(SPIN, "spin"), cupy.cuda.Stream(non_blocking=True)
        device, host, lead = [], [], 1e-3
        with stream:
            for _ in range(_WARM_UP):
                work(next(variants))
            while len(device) < rounds:
                begin, end = cupy.cuda.Event(), cupy.cuda.Event()
                stream.synchronize()
                spin((1,), (1,), (int(lead * 1e9),))
                begin.record()
                started = time.perf_counter()
                work(next(variants))
                launched = time.perf_counter() - started
                end.record()
                is_queued = not begin.done  # the GPU still spins: no launch was late
                end.synchronize()
                if is_queued:
                    device.append(cuda_runtime.seconds_between(begin, end))
                    host.append(launched)
                elif lead >= _LONGEST_SPIN:
                    return Timed(None, None, WAITS)
                else:
                    lead = min(2 * max(lead, launched), _LONGEST_SPIN)
        return Timed(statistics.median(device), statistics.median(host))


def seconds_on_host(work, rounds):
    """Median seconds of ``work()`` on the clock, after one call that isn't counted."""
    work()
    measured = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        measured.append(time.perf_counter() - started)
    return statistics.median(measured)
