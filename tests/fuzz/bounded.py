"""Work in a forked process of bounded memory and time. Linux only: elsewhere address space isn't limited."""

import json
import os
import resource
import signal
import time
import warnings
from pathlib import Path
from typing import NamedTuple

from .verdicts import FaultError, check_warnings, shown

CPU_SECONDS = 10  # most mutations take 0.02, the largest tables 2
SECONDS = 60  # of waiting, on a busy machine too
MEGABYTES = 400  # of address space beyond the parent's, of which two threads reserve 144


class Report(NamedTuple):
    """A word for the outcome, the fault or "", seconds, and resident MB beyond the parent's."""

    outcome: str
    fault: str
    seconds: float
    megabytes: float


def bounded(work):
    """Run `work` in a process of its own; it returns the outcome, or raises FaultError. Returns a Report.

    The parent must have a single thread.
    """
    read, write = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.write(write, json.dumps(_reported(work)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - start
    if not said:
        return Report("fault", f"ended by signal {os.WTERMSIG(status)}", seconds, 0.0)
    outcome, fault, megabytes = json.loads(said)
    return Report(outcome, fault, seconds, megabytes)


def _reported(work):
    before = _megabytes("VmRSS")
    limit = int((_megabytes("VmSize") + MEGABYTES) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    signal.alarm(SECONDS)
    outcome, fault = "fault", ""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcome = work()
        check_warnings(caught)
    except FaultError as error:
        outcome, fault = "fault", str(error)
    except BaseException as error:
        fault = shown(error)
    return outcome, fault, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def _megabytes(name):
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024
