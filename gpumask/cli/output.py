"""Messages to the user, and the errors that are shown as messages.

All goes through the logger "gpumask": errors, warnings, notes (INFO), and with --verbose details (DEBUG). Results, on
standard output, are shown at INFO too.
"""

import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpumask.cohort.record import Record

USER_ERRORS = (OSError, ValueError, TypeError, ImportError, MemoryError, RuntimeError)
LEVELS = {"quiet": logging.ERROR, "verbose": logging.DEBUG}
"""What is shown by the options of these names; INFO without."""

_log = logging.getLogger("gpumask")


class _StandardError(logging.Handler):
    """Writes messages as they are to standard error, also while a bar is shown."""

    paused: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext  # `gpumask.cli.progress` replaces it

    def emit(self, record: logging.LogRecord) -> None:
        with self.paused():
            print(record.getMessage(), file=sys.stderr, flush=True)


output = _StandardError()


@contextlib.contextmanager
def configured(level: int) -> Iterator[None]:
    """Show messages from a level on inside the block."""
    before = _log.level
    _log.setLevel(level)
    _log.addHandler(output)
    try:
        yield
    finally:
        _log.removeHandler(output)
        _log.setLevel(before)


def tell(message: object, level: int = logging.INFO) -> None:
    """Write a message to standard error, as one line."""
    _log.log(level, "%s", " ".join(str(message).split()))


def shows_results() -> bool:
    """Whether results and progress are shown: not with --quiet."""
    return _log.isEnabledFor(logging.WARNING)


def show(*cells: object) -> None:
    """Write cells to standard output, as one line with tabs; characters that its encoding lacks are escaped."""
    if not shows_results():
        return
    line, encoding = "\t".join(map(str, cells)), sys.stdout.encoding or "utf-8"
    with output.paused():
        print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def kept_volumes(record: "Record", *, motion: bool = True) -> str:
    """How many volumes of a run were kept, and its motion: "75/156 volumes kept (2 dummy scans), mean FD 0.21 mm".

    If denoisings kept different ones: "a, c: 156 volumes; b: 75/156 volumes kept; mean FD 0.21 mm".
    """
    names: dict[str, list[str]] = {}
    for name, numbers in record.quality.items():
        n_dummies, n_kept = numbers["removed_dummy_scans"], numbers["volumes_kept"]
        dummies = f" ({n_dummies} dummy scans)" if n_dummies else ""
        of_all = f"{n_kept}/{record.n_volumes} volumes kept{dummies}"
        kept = f"{record.n_volumes} volumes" if n_kept == record.n_volumes else of_all
        names.setdefault(kept, []).append(name)
    parts = [f"{', '.join(own)}: {kept}" if len(names) > 1 else kept for kept, own in names.items()]
    displacement = next((numbers["fd_mean"] for numbers in record.quality.values()), None)  # of all volumes
    parts += [f"mean FD {displacement:.2f} mm"] if motion and displacement is not None else []
    return ("; " if len(names) > 1 else ", ").join(parts)


def show_messages(record: "Record", name: str) -> None:
    """Write a run's warnings and error with its remedy, and with --verbose its traceback, to standard error."""
    from gpumask.cohort.remedies import remedy

    for message in record.warnings:
        tell(f"{name}: warning: {message}", logging.WARNING)
    if record.error:
        error, words = record.error, remedy(record.error)
        tell(f"{name}: error: {error.rstrip('.')}. {words}" if words else f"{name}: error: {error}", logging.ERROR)
    if record.traceback:
        _log.debug("%s", record.traceback.rstrip("\n"))


def show_details(record: "Record") -> None:
    """With --verbose, write the stages and files of a finished run to standard error."""
    if record.status != "done":
        return
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in record.seconds.items() if name != "total")
    tell(f"{record.run.path}: {stages}", logging.DEBUG)
    for name, facts in record.atlases.items():
        found = ", ".join(f"{key} {fact}" for key, fact in facts.items())
        tell(f"{record.run.path}: atlas {name}: {found}", logging.DEBUG)
    for written in record.outputs:
        tell(f"{record.run.path}: wrote {written.path} ({written.size} bytes)", logging.DEBUG)


def refuse(command: str, error: Exception) -> int:
    """Write why a command isn't started, and return its exit status."""
    _log.debug("%s", "".join(traceback.format_exception(error)).rstrip("\n"))
    tell(f"gpumask {command}: error: {error if str(error) else type(error).__name__}", logging.ERROR)
    return 2
