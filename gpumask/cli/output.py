"""Messages to the user, and the errors that are shown as messages."""

import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpumask.cohort.record import Record

USER_ERRORS = (OSError, ValueError, TypeError, ImportError, MemoryError, RuntimeError)


def tell(message: object) -> None:
    """Write a message to standard error, as one line."""
    print(" ".join(str(message).split()), file=sys.stderr, flush=True)


def show(*cells: object) -> None:
    """Write cells to standard output, as one line with tabs; characters that its encoding lacks are escaped."""
    line, encoding = "\t".join(map(str, cells)), sys.stdout.encoding or "utf-8"
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


def show_details(record: "Record") -> None:
    """Write the traceback of a failed run, or the stages and files of a finished one, to standard error."""
    if record.traceback:
        print(record.traceback, end="", file=sys.stderr, flush=True)
    if record.status == "done":
        stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in record.seconds.items() if name != "total")
        tell(f"{record.run.path}: {stages}")
        for name, facts in record.atlases.items():
            tell(f"{record.run.path}: atlas {name}: " + ", ".join(f"{key} {fact}" for key, fact in facts.items()))
        for output in record.outputs:
            tell(f"{record.run.path}: wrote {output.path} ({output.size} bytes)")


def refuse(command: str, error: Exception, verbose: int) -> int:
    """Write why a command isn't started, and return its exit status."""
    if verbose:
        traceback.print_exception(error)
    tell(f"gpumask {command}: error: {error if str(error) else type(error).__name__}")
    return 2
