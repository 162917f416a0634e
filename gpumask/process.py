"""State that a process has one of: BLAS threads and warning filters, with their users counted; and its cores."""

import contextlib
import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager


class Counted:
    """A process-wide state that the first user sets and the last one restores, whatever their order.

    Parameters
    ----------
    make : callable
        Returns a context manager that sets the state while it is entered.
    """

    def __init__(self, make: Callable[[], AbstractContextManager]):
        self._make, self._lock, self._users, self._undo = make, threading.Lock(), 0, None

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


@functools.cache
def _blas_libraries():
    import scipy.linalg  # noqa: F401 - loads a BLAS of its own, which the search of the next line has to find
    from threadpoolctl import ThreadpoolController

    # A search through all loaded libraries: 3 to 10 ms.
    return ThreadpoolController().select(user_api="blas").lib_controllers


@contextlib.contextmanager
def _one_blas_thread():
    before = [library.get_num_threads() for library in _blas_libraries()]
    _set_blas_threads([1] * len(before))
    try:
        yield
    finally:
        _set_blas_threads(before)


def _set_blas_threads(numbers):
    for library, number in zip(_blas_libraries(), numbers, strict=True):
        # From 3.8 on, threadpoolctl ignores all threads but the first that set a number, until that one has ended:
        # whoever is last here must be able to, and so must a user's limit around us.
        release = getattr(library, "clear_controlling_thread", lambda **_: None)
        release(force=True)
        library.set_num_threads(number)
        release(force=True)


one_blas_thread = Counted(_one_blas_thread)
"""Context in which BLAS has one thread, so the bits of a product don't depend on the number of cores."""

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
"""Context in which no warning is suppressed because it was shown before; `collect_warnings` needs it."""


def _show_warning(elsewhere, message, *args, **keywords):
    """Keep a warning of a thread that collects them."""
    if (messages := getattr(_messages, "of_thread", None)) is None:
        elsewhere(message, *args, **keywords)
    elif str(message) not in messages:
        messages.append(str(message))


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Yield a list that gets each different message that this thread warns of in the block; none are shown."""
    messages, outer = [], getattr(_messages, "of_thread", None)
    with every_warning:
        _messages.of_thread = messages
        try:
            yield messages
        finally:
            _messages.of_thread = outer


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, as from the line outside of gpumask (and of the libraries that call it back) that led here."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("gpumask", "sklearn"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
