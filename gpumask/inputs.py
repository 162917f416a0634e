"""Bounded reading of files that users or programs name: no devices, a stated size at most, a deadline for pipes."""

import hashlib
import json
import os
import select
import stat
import time
from collections.abc import Iterator
from io import FileIO
from typing import Any

MOST_JSON = 1 << 24  # bytes; parsed, it can take 20 times as much memory
_PATIENCE = 10.0  # seconds that a pipe may be silent
_PIECE = 1 << 20  # bytes per read: memory follows what is there, and not what a file claims
_LONGEST_INTEGER = 300  # digits; float64 holds it
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def irregularity(path: str | os.PathLike, *, pipes: bool = False) -> str | None:
    """Why a path can't be read as a file: "is a device, expected a regular file". None if it can, or doesn't exist.

    Parameters
    ----------
    path : str or path-like
        Links are followed.
    pipes : bool
        Whether a pipe is accepted.
    """
    try:
        state = os.stat(path)  # noqa: PTH116
    except OSError:  # its reason shows when the file is opened
        return None
    return _irregularity(state.st_mode, pipes)


def _irregularity(mode, pipes):
    if stat.S_ISREG(mode) or (pipes and stat.S_ISFIFO(mode)):
        return None
    return f"is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, expected a regular file{' or a pipe' * pipes}"


def check_file(path: str | os.PathLike, *, pipes: bool = False) -> None:
    """Raise ValueError for a folder, device or socket, and unless `pipes`, for a pipe; see `irregularity`."""
    if reason := irregularity(path, pipes=pipes):
        raise ValueError(_refused(path, reason))


def _refused(path, reason):
    return f"{os.fspath(path)} {reason}. Give the path of one."


def open_file(path: str | os.PathLike, *, pipes: bool = False) -> FileIO:
    """Open a file for reading, unbuffered; opening it neither waits for a pipe's writer nor starts a device.

    Parameters
    ----------
    path, pipes
        As `irregularity`. A pipe is opened without blocking: `FileIO.read` returns None while its writer is silent, and
        b"" while it has none.

    Raises
    ------
    ValueError
        If it is neither a regular file nor an allowed pipe.
    OSError
        If it can't be opened.
    """
    check_file(path, pipes=pipes)  # before it is opened: that alone rewinds a tape
    file = FileIO(os.fspath(path), opener=_without_waiting)
    if reason := _irregularity(os.fstat(file.fileno()).st_mode, pipes):  # replaced since
        file.close()
        raise ValueError(_refused(path, reason))
    return file


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal digits; ValueError if it isn't a regular one."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_waiting(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _pieces(file: FileIO) -> Iterator[bytes]:
    """Read a file of `open_file` to its end; a TimeoutError if a pipe is silent for 10 s, also before it has a writer.

    A signal handler that raises ends the wait.
    """
    if not stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
        while piece := file.read(_PIECE):
            yield piece
        return
    deadline, has_begun = time.monotonic() + _PATIENCE, False
    while True:
        piece = file.read(_PIECE)  # None: its writer is silent. b"": it has no writer
        if piece:
            yield piece
            deadline, has_begun = time.monotonic() + _PATIENCE, True
            continue
        if piece is not None and has_begun:
            return
        if (left := deadline - time.monotonic()) <= 0:
            who = "its writer was silent" if piece is None else "no writer came"
            msg = f"{os.fspath(file.name)} is a pipe, and {who} for {_PATIENCE:g} s. Write to it, or give a file."
            raise TimeoutError(msg)
        if piece is None:
            writing = select.poll()  # unlike select, of any number of open files
            writing.register(file, select.POLLIN)
            writing.poll(1000 * left)
        else:
            time.sleep(min(left, 0.02))  # no system call waits for a writer on every platform


def bounded(content: Iterator[bytes], path: str | os.PathLike, most: int) -> bytes:
    """Join pieces of a file's content; ValueError as soon as they are more than `most` bytes."""
    whole = bytearray()
    for piece in content:
        whole += piece
        if len(whole) > most:
            raise ValueError(_too_large(path, most))
    return bytes(whole)


def _too_large(path, most):
    return f"{os.fspath(path)} has more than {most} bytes, the most that are read of such a file. Is it the right one?"


def read_bytes(path: str | os.PathLike, *, most: int, pipes: bool = False) -> bytes:
    """Read a whole file.

    Parameters
    ----------
    path : str or path-like
    most : int
        Bytes that it may have.
    pipes : bool
        Whether it may be a pipe, such as ``<(command)`` of a shell.

    Raises
    ------
    ValueError
        If it has more than `most` bytes, or is neither a regular file nor an allowed pipe.
    TimeoutError
        If a pipe is silent for 10 s.
    OSError
        If it can't be read.
    """
    with open_file(path, pipes=pipes) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(_too_large(path, most))
        return bounded(_pieces(file), path, most)


def read_json(path: str | os.PathLike, *, most: int = MOST_JSON) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Integers of more than 300 digits become floats, which may be infinite.

    Parameters
    ----------
    path : str or path-like
        A regular file of UTF-8 text, with or without a byte-order mark.
    most : int
        Bytes that it may have; 16 MiB by default.

    Raises
    ------
    ValueError
        If it isn't that, is nested too deeply, or one of its objects has two values for a key; the message names the
        file, and the line or the key.
    OSError
        If it can't be read.
    """
    return parse_json(read_bytes(path, most=most), path)


def parse_json(content: bytes, path: str | os.PathLike) -> dict[str, Any]:
    """Parse a JSON object as `read_json`; `path` is for messages."""
    path = os.fspath(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        msg = f"{path} isn't JSON: line {line} has the byte 0x{content[error.start]:02x}, expected UTF-8. Save it so."
        raise ValueError(msg) from error
    try:
        parsed = json.loads(text, parse_int=_integer, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        msg = f"{path} isn't JSON that can be read: its brackets are nested too deeply. Create the file again."
        raise ValueError(msg) from error
    except _RepeatedKeyError as error:
        msg = f"{path} has two values for the key {shortened(repr(error.args[0]))}. Keep one."
        raise ValueError(msg) from error
    except ValueError as error:
        msg = f"{path} isn't JSON: {error}"
        raise ValueError(msg) from error
    if not isinstance(parsed, dict):
        msg = f"{path} holds a JSON {type(parsed).__name__}: expected an object"
        raise ValueError(msg)
    return parsed


def read_toml(path: str | os.PathLike) -> dict[str, Any]:
    """Read a TOML file of 16 MiB at most; ValueError, which names the file, if it isn't one."""
    import tomllib

    try:
        return tomllib.loads(read_bytes(path, most=MOST_JSON).decode("utf-8-sig"))
    except RecursionError as error:
        msg = f"{os.fspath(path)} isn't TOML that can be read: its brackets are nested too deeply."
        raise ValueError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{os.fspath(path)} isn't TOML: {error}. Expected lines such as high_pass = 0.01."
        raise ValueError(msg) from error


class _RepeatedKeyError(ValueError):
    """The key is its argument."""


def _without_repeats(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise _RepeatedKeyError(key)
    return found


def _integer(text):
    return int(text) if len(text) <= _LONGEST_INTEGER else float(text)


def shortened(text: str, most: int = 60) -> str:
    """A text of a file, for messages; a long one without its middle."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"
