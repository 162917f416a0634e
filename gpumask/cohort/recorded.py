"""Files that records name, for the group step: read only if they are the recorded ones, else listed with the reason."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpumask.files import inside, replacing, write
from gpumask.inputs import read_bytes
from gpumask.tables import text_cell

_SAMPLE = 101  # files that say what most files are like


class Unused:
    """Files that the group step can't use, by their paths in the output folder; each with its first reason."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def add(self, path: str, reason: object) -> None:
        """Note a file; a reason that is an error of the system is named without the file."""
        reason = getattr(reason, "strerror", None) or reason
        self.reasons.setdefault(path, " ".join(str(reason).split()))

    def write(self, out_dir: Path) -> list[Path]:
        """Write ``group_unused.tsv``, a row per file, sorted by their names; without any, remove an earlier one."""
        path = out_dir / "group_unused.tsv"
        if not self.reasons:
            path.unlink(missing_ok=True)
            return []
        rows = (f"{text_cell(name)}\t{text_cell(reason)}\n" for name, reason in sorted(self.reasons.items()))
        with replacing(path) as part:
            write(part, ["file\treason\n", *rows])
        return [path]


def evenly(n: int, most: int) -> np.ndarray:
    """At most `most` evenly spaced numbers from 0 to n - 1."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(int)


def usual(files: Sequence[Any], read: Callable[[Any], Hashable]) -> Any:
    """What `read` returns for most of up to 101 evenly spaced files; None if it can't read any."""
    found: Counter[Hashable] = Counter()
    for k in evenly(len(files), _SAMPLE):
        try:
            found[read(files[k])] += 1
        except (OSError, ValueError):
            continue
    return found.most_common(1)[0][0] if found else None


def read_recorded(out_dir: Path, path: str, size: int, most: int) -> tuple[bytes, bytes]:
    """First line of a table, without its end, and the other lines.

    Parameters
    ----------
    out_dir : Path
    path : str
        Relative to the folder.
    size : int
        Bytes, by the run's record.
    most : int
        Bytes that are read at most.

    Raises
    ------
    ValueError
        If it has another size than recorded, more than `most` bytes, or is outside the folder.
    OSError
        If it can't be read.
    """
    if size > most:
        msg = f"has {size} bytes, more than the {most} that are read"
        raise ValueError(msg)
    content = read_bytes(inside(out_dir, path), most=most)
    if len(content) != size:
        msg = f"has {len(content)} bytes, {size} by the run's record"
        raise ValueError(msg)
    header, _, body = content.partition(b"\n")
    return header, body
