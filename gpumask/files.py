"""Files that appear together or not at all, even if the process is killed or others write at the same time."""

import contextlib
import errno
import glob
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO


def _encoded(text):
    """Text in UTF-8; bytes of file names that aren't UTF-8 are escaped as in JSON."""
    return text.encode("utf-8", "backslashreplace")


def write(path: Path, parts: Iterable[str | bytes]) -> None:
    """Write parts, of text or bytes, to a file, and sync it to the disk."""
    with path.open("wb") as file:
        file.writelines(_encoded(part) if isinstance(part, str) else part for part in parts)
        file.flush()
        os.fsync(file.fileno())


def reserve(file: BinaryIO, size: int) -> None:
    """Make a file `size` bytes long, so that a full disk is an error now: writing to its mapping would end the process.

    Where the system can't reserve, the file is only made as long.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


@contextlib.contextmanager
def appearing_together(
    paths: Sequence[Path], token: str | None = None, outdated: Sequence[Path] = ()
) -> Iterator[list[Path]]:
    """Paths to write to instead of `paths`; they get those names after the block succeeds, the last one last.

    If the file of the last path exists, all do: an old one is removed before any other is replaced.

    Parameters
    ----------
    paths : sequence of Path
        Their folders must exist.
    token : str, optional
        Part of the temporary names, used by one process at a time: the next one removes what a killed one left. If
        None, temporary names are unique.
    outdated : sequence of Path
        Files that are removed before the others appear, unless they are among `paths`.
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
        for path in set(outdated) - set(paths):
            path.unlink(missing_ok=True)
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
def replacing(path: Path) -> Iterator[Path]:
    """Path to write to instead of `path`, which it replaces after the block succeeds; other writers wait.

    Its name is always the same, so the next process reuses what a killed one left.
    """
    import fcntl  # not on Windows

    part = path.with_name(f".gpumask-{path.name}.part")
    while True:
        with part.open("ab") as file:  # "wb" would empty what another process is writing
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), part):
                continue  # the last holder of the lock has renamed or removed it
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
    if os.name == "nt":  # folders can't be opened
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[bool]:
    """Hold a lock inside the block; yields False if another process, or thread, has it.

    The lock of a process that dies is released. The file is removed with the lock.

    Raises
    ------
    OSError
        If the file can't be created, or its file system has no locks.
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
                continue  # its last holder has removed it: nobody else sees this lock
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


def append_line(path: str | os.PathLike, line: str) -> None:
    """Append a line, whole or not at all, to a file that only this process writes to."""
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
