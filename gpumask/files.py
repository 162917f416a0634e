"""Files that appear together or not at all, even if the process is killed or others write at the same time.

Others may have put links, pipes or folders at any name: temporary files are made anew, files with their final names are
replaced and never written through, and locks and logs aren't opened through links.
"""

import contextlib
import errno
import glob
import os
import stat
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import BinaryIO

_BUFFER = 1 << 18  # bytes. Lines of large tables fill Python's 8192: writing them would take 4 times as long


def _encoded(text):
    """Text in UTF-8; bytes of file names that aren't UTF-8 are escaped as in JSON."""
    return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def created(path: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing, which is synced to the disk after the block; FileExistsError if the name is taken.

    Links aren't followed.
    """
    with path.open("xb", buffering=_BUFFER) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, parts: Iterable[str | bytes]) -> None:
    """Write parts, of text or bytes, to a file that doesn't exist yet; see `created`."""
    with created(path) as file:
        file.writelines(_encoded(part) if isinstance(part, str) else part for part in parts)


def reserve(file: BinaryIO, size: int) -> None:
    """Make a file `size` bytes long, so that a full disk is an error now: writing to its mapping would end the process.

    Where the system can't reserve, the file is only made as long.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def check_folder(path: Path) -> None:
    """Raise FileNotFoundError, or NotADirectoryError, unless the folder of a file to write exists."""
    if not path.parent.is_dir():
        msg = f"{path} can't be written: {path.parent} isn't a folder. Make it first."
        raise (NotADirectoryError if path.parent.exists() else FileNotFoundError)(msg)


@contextlib.contextmanager
def appearing_together(
    paths: Sequence[Path], token: str | None = None, outdated: Sequence[Path] = ()
) -> Iterator[list[Path]]:
    """Paths to create instead of `paths`; they get those names after the block succeeds, the last one last.

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
        _remove(parts[-1])  # its folder may hold too many files to look for others
        for folder in {path.parent for path in paths[:-1]}:
            for left in folder.glob(f".gpumask-{glob.escape(token)}.*.part"):
                _remove(left)
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


def _remove(path):
    """Remove a temporary file that a killed process left."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _not_ours(path, error) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Path to create instead of `path`, which it replaces after the block succeeds; other writers wait.

    Its name is always the same, so the next process removes what a killed one left.
    """
    part = path.with_name(f".gpumask-{path.name}.part")
    with locked(path.with_name(f".gpumask-{path.name}.lock"), wait=True):
        _remove(part)
        try:
            yield part
            part.replace(path)
            _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


def _sync(folder):
    if os.name == "nt":  # folders can't be opened
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def locked(path: str | os.PathLike, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock inside the block; yields False if another process, or thread, has it.

    The lock of a process that dies is released. The file is removed with the lock.

    Parameters
    ----------
    path : str or path-like
        An empty file for the lock; created if missing.
    wait : bool
        Whether to wait for the lock, instead of yielding False.

    Raises
    ------
    OSError
        If the file can't be created, its name is a link's, a folder's or the like, or its file system has no locks.
    """
    import fcntl  # not on Windows

    while True:
        number = _opened(path, os.O_RDWR)
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
        return os.path.samestat(os.fstat(number), os.lstat(path))
    return False


def _opened(path, flags):
    """Descriptor of a regular file, created if missing; links aren't followed, pipes aren't waited for."""
    try:
        number = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise _not_ours(path, error) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise _not_ours(path, OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)))
    return number


_KINDS = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def _not_ours(path, error):
    """The error for a name of gpumask's own files that something else has; another error as it is."""
    try:
        mode = stat.S_IFMT(os.lstat(path).st_mode)
    except OSError:
        return error
    if mode == stat.S_IFREG:
        return error
    msg = f"{path} is a {_KINDS.get(mode, 'device')}, but gpumask keeps a file of its own under this name. Remove it."
    return FileExistsError(msg)


_appending = threading.Lock()


def append_line(path: str | os.PathLike, line: str) -> None:
    """Append a line, whole or not at all, to a file that only this process writes to.

    Raises
    ------
    OSError
        If it can't be written, or if the file is a link or another file's second name (a hard link).
    """
    data = _encoded(f"{line}\n")
    with _appending:
        number = _opened(path, os.O_WRONLY | os.O_APPEND)
        try:
            if (n_names := os.fstat(number).st_nlink) > 1:
                msg = f"{path} is a file with {n_names} names (hard links): a line would be added to all. Remove it."
                raise FileExistsError(msg)
            written = os.write(number, data)
            if written < len(data):
                os.ftruncate(number, os.fstat(number).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            os.close(number)


def inside(folder: Path, name: str | os.PathLike) -> Path:
    """Path of a file in a folder, or below it, that others have named.

    Parameters
    ----------
    folder : Path
        May be a link itself.
    name : str or path-like
        Relative to `folder`. Links below it must lead to a place below it too, except for the file's own link to
        git-annex's objects, which are often in a folder above.

    Raises
    ------
    ValueError
        If the file is elsewhere: the name is absolute, has "..", or is or passes a link out of the folder.
    """
    path, names = folder / name, PurePath(name).parts
    places = [folder.joinpath(*names[: k + 1]) for k in range(len(names))]
    is_below = bool(names) and not PurePath(name).is_absolute() and ".." not in names
    if is_below and any(place.is_symlink() for place in places):  # else it is below: resolving takes longer
        root = Path(os.path.realpath(folder))
        target = Path(os.path.realpath(path))
        if "/annex/objects/" in target.as_posix():
            target = Path(os.path.realpath(path.parent))
        is_below = target.is_relative_to(root)
    if not is_below:
        msg = f'{path} isn\'t in {folder}. Expected a name below that folder, without ".." or a link out of it.'
        raise ValueError(msg)
    return path


def make_folder(folder: Path, root: Path) -> None:
    """Make a folder, and those that it is in; ValueError if it isn't below the folder `root`, see `inside`."""
    if folder != root:
        inside(root, folder.relative_to(root))
    folder.mkdir(parents=True, exist_ok=True)
