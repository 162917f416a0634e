"""Process-wide state: BLAS threads and warning filters, with their users counted; cores, threads, versions."""

import contextlib
import functools
import math
import multiprocessing
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


class Counted(contextlib.ContextDecorator):
    """A process-wide state: the first user sets it, and the last user restores the former one, in any order.

    Parameters
    ----------
    make : callable
        Returns a context manager that sets the state while it is entered.
    """

    def __init__(self, make: Callable[[], AbstractContextManager]):
        self._make, self._lock, self._users = make, threading.Lock(), 0

    def __enter__(self):
        with self._lock:
            if not self._users:
                self._undo = contextlib.ExitStack()
                self._undo.enter_context(self._make())
            self._users += 1

    def __exit__(self, *_):
        with self._lock:
            self._users -= 1
            if not self._users:
                self._undo.close()

    @property
    def in_use(self) -> bool:
        """Whether there are users."""
        return self._users > 0


def _loaded_blas():
    from threadpoolctl import ThreadpoolController

    # Searching all loaded libraries takes 3 to 10 ms.
    return ThreadpoolController().select(user_api="blas").lib_controllers


@functools.cache
def _numpy_blas():
    """The libraries that are loaded at the first call."""
    import numpy as np  # noqa: F401 - loads its BLAS

    return _loaded_blas()


@functools.cache
def _scipy_blas():
    """The libraries that SciPy adds to these: wheels of both have their own."""
    known = {library.filepath for library in _numpy_blas()}
    import scipy.linalg  # noqa: F401 - loads its BLAS

    return [library for library in _loaded_blas() if library.filepath not in known]


@contextlib.contextmanager
def _one_thread(libraries):
    before = [library.get_num_threads() for library in libraries]
    _set_threads(libraries, [1] * len(before))
    try:
        yield
    finally:
        _set_threads(libraries, before)


def _set_threads(libraries, numbers):
    for library, number in zip(libraries, numbers, strict=True):
        # From 3.8 on, threadpoolctl ignores all threads but the first one that sets a number, until that thread ends.
        # Here, any thread may be the last one, and a user may have set a limit around this call.
        release = getattr(library, "clear_controlling_thread", lambda **_: None)
        release(force=True)
        library.set_num_threads(number)
        release(force=True)


one_blas_thread = Counted(lambda: _one_thread(_numpy_blas()))
"""Context in which NumPy's BLAS has one thread, so the bits of a product don't depend on the number of cores."""


@contextlib.contextmanager
def _one_linalg_thread():
    with one_blas_thread, _one_thread(_scipy_blas()):
        yield


one_linalg_thread = Counted(_one_linalg_thread)
"""The same for SciPy's BLAS too. To import ``scipy.linalg`` takes 0.2 s, so only its users enter this one."""

several_runs = Counted(contextlib.nullcontext)
"""Context of runs that are processed next to others, which have work for the other cores."""

_messages = threading.local()


@contextlib.contextmanager
def _every_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # for developers, as Python's default has it
        warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
        yield


every_warning = Counted(_every_warning)
"""Context in which repeated warnings are issued again; `collect_warnings` needs it."""


def _show_warning(elsewhere, message, *args, **keywords):
    """Keep the warning if this thread collects warnings, otherwise show it."""
    if (messages := getattr(_messages, "of_thread", None)) is None:
        elsewhere(message, *args, **keywords)
    elif str(message) not in messages:
        messages.append(str(message))


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Yield a list that collects the distinct warnings of this thread inside the block, instead of showing them."""
    messages: list[str] = []
    outer = getattr(_messages, "of_thread", None)
    with every_warning:
        _messages.of_thread = messages
        try:
            yield messages
        finally:
            _messages.of_thread = outer


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, pointing at the innermost caller outside gpumask and scikit-learn (which wraps `transform`)."""
    frame, level = sys._getframe().f_back, 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("gpumask", "sklearn"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def available_memory() -> int | None:
    """Return the bytes of memory that this process may still use, or None where Linux doesn't say."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")  # of a container; its files exist there with cgroup v2
        limit, used = (group / "memory.max").read_text("ascii"), (group / "memory.current").read_text("ascii")
        limits.append(max(int(limit) - int(used), 0))
    except (OSError, ValueError, IndexError):  # "max": the group has no limit
        pass
    return min(limits, default=None)


def n_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and the limits of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([cores, *map(math.ceil, _cpu_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))]), 1)


def _cpu_limits(groups, root):
    """Yield the CPU limits, in cores, of this process's control groups and those around them, version 2 and 1."""
    try:
        lines = groups.read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root, ("cpu.max",)
        elif "cpu" in controllers.split(","):
            base, names = root / controllers, ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        folder = base / path.lstrip("/")  # in a container it may not exist: there, its own group is the root
        for inner in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
                quota, period = map(int, " ".join((inner / name).read_text("ascii") for name in names).split())
                if quota > 0 and period > 0:  # -1: no limit
                    yield quota / period
            if inner == base:
                break


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], n_threads: int) -> Iterator[Any]:
    """Map a function over items in threads, in order; no more than `n_threads` + 1 items are drawn ahead.

    Draw all results: the function runs for the first items only until then.
    """
    waiting: deque = deque()
    with ThreadPoolExecutor(n_threads, "gpumask") as threads:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def is_alone() -> bool:
    """Whether this process has one run at a time, and isn't the worker of another one."""
    return not several_runs.in_use and multiprocessing.parent_process() is None


def versions() -> tuple[str, str, str]:
    """Return the versions that results in a cache depend on: of gpumask, NumPy and SciPy."""
    import numpy as np
    import scipy

    from gpumask import __version__

    return __version__, np.__version__, scipy.__version__
