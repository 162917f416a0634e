"""Tables as text, and files that appear together or not at all, whatever kills the process and whoever else writes."""

import contextlib
import errno
import glob
import json
import os
import re
import threading
import uuid
from pathlib import Path

import numpy as np


def table_lines(names, rows, index=None):
    """Lines of a TSV file. Each number has as many digits as give back the same number; NaN is "n/a".

    Parameters
    ----------
    names : iterable of str
        Names of the columns; the first is the index's, if there is one.
    rows : ndarray of real numbers, shape (n_rows, n_columns)
    index : sequence of str, optional
        First cell of each row.

    Yields
    ------
    str
    """
    yield "\t".join(map(_cell, names)) + "\n"
    singles, others = rows.dtype.char == "f", rows.dtype.char not in "fdbBhHiIlLqQ"
    for k, row in enumerate(rows):
        # Python finds the shortest digits of doubles in a tenth of NumPy's time for singles.
        cells = row.astype("U") if others else map(repr, (shortest(row) if singles else row).tolist())
        line = "\t".join("n/a" if cell == "nan" else cell for cell in cells)
        yield f"{line}\n" if index is None else f"{_cell(index[k])}\t{line}\n"


def shortest(singles):
    """Doubles whose shortest decimals are those of float32 numbers.

    Parameters
    ----------
    singles : ndarray of float32

    Returns
    -------
    ndarray of float64
        Rounded to the fewest digits, from 6 to 9, that give back the number. Beyond 1e-10 to 1e15 it is returned as it
        is: its decimal gives it back too, but has more digits than it needs.
    """
    exact = singles.astype(np.float64)
    size = np.abs(exact)
    decimals = exact.copy()
    left = np.flatnonzero((size > 1e-10) & (size < 1e15))
    exponents = np.floor(np.log10(size[left])).astype(int)
    for n_digits in (6, 7, 8, 9):
        # A whole number times or over a power of ten that a double holds exactly: the double next to the decimal.
        shift = n_digits - 1 - exponents
        up, down = 10.0 ** np.maximum(shift, 0), 10.0 ** np.maximum(-shift, 0)
        rounded = np.rint(exact[left] * up / down) * down / up
        found = rounded.astype(np.float32) == singles[left]
        decimals[left[found]] = rounded[found]
        left, exponents = left[~found], exponents[~found]
    return decimals


def _cell(text):
    return re.sub(r"\s", " ", str(text))  # BIDS knows no quotes around a tab


def json_lines(content, default=None):
    """Lines of a JSON file."""
    yield json.dumps(content, indent=2, ensure_ascii=False, default=default)
    yield "\n"


def _encoded(text):
    """Text in UTF-8; bytes of file names that are none are escaped as JSON has it."""
    return text.encode("utf-8", "backslashreplace")


def write(path, parts):
    """Write parts, of text or bytes, to a file, and wait until the disk has it."""
    with path.open("wb") as file:
        file.writelines(_encoded(part) if isinstance(part, str) else part for part in parts)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def appearing_together(paths, token=None):
    """Paths to write to instead of `paths`; they get those names once the block has succeeded, the last one last.

    The file of the last path tells that all are there: an old one is removed before any other is replaced.

    Parameters
    ----------
    paths : sequence of Path
        Their folders exist.
    token : str, optional
        Part of the temporary names, if only one process at a time writes by it: what an attempt that was killed has
        left is removed by the next one. If None, temporary names are unique.
    """
    names = [f".gpumask-{token or uuid.uuid4().hex}.{k}.part" for k in reversed(range(len(paths)))]
    parts = [path.with_name(name) for path, name in zip(paths, names, strict=True)]
    if token:
        for folder in {path.parent for path in paths[:-1]}:
            for left in folder.glob(f".gpumask-{glob.escape(token)}.*.part"):
                left.unlink()
    try:
        yield parts
        paths[-1].unlink(missing_ok=True)
        for part, path in zip(parts[:-1], paths[:-1], strict=True):
            part.replace(path)
        for folder in {path.parent for path in paths[:-1]}:
            _sync(folder)  # else a power cut could keep the last name and lose the others
        parts[-1].replace(paths[-1])
        _sync(paths[-1].parent)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path):
    """Path to write to instead of `path`, whose place it takes once the block has succeeded; others wait meanwhile.

    Its name is always the same, so that the next process takes over what a killed one has left.
    """
    import fcntl  # not on Windows

    part = path.with_name(f".gpumask-{path.name}.part")
    while True:
        with part.open("ab") as file:  # "wb" would empty what another process is writing
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), part):
                continue  # who had the lock has put it into place, or removed it
            try:
                yield part
                os.fsync(file.fileno())
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        _sync(path.parent)
        return


def _sync(folder):
    if os.name == "nt":  # where folders can't be opened
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def locked(path):
    """Hold a lock inside the block; yields False if another process, or thread, has it.

    The kernel frees the lock of a process that dies. The file is removed with the lock.

    Raises
    ------
    OSError
        If the file can't be made, or its file system has no locks.
    """
    import fcntl  # not on Windows

    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if not _is_at(number, path):
                continue  # its last holder has removed it: this lock keeps nobody out
            try:
                yield True
            finally:
                Path(path).unlink(missing_ok=True)
            return
        finally:
            os.close(number)


def _is_at(number, path):
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(number), os.stat(path))  # noqa: PTH116
    return False


_appending = threading.Lock()


def append_line(path, line):
    """Add a line to a file that only this process writes to; it is there whole or not at all."""
    data = _encoded(f"{line}\n")
    with _appending:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            written = os.write(number, data)
            if written < len(data):
                os.ftruncate(number, os.fstat(number).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            os.close(number)
