"""The libraries that decode gzip: which one decodes a run, and rapidgzip, which uses several cores for one file."""

import contextlib
import functools
import gzip
import os
import struct
import weakref
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from gpumask import process

try:
    from isal import igzip
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this platform: zlib takes about 2.5 times as long
    igzip, crc32 = gzip, zlib.crc32  # type: ignore[misc]

_VARIABLE = "GPUMASK_DECODER"
_INSTALL = {"isal": "pip install isal", "rapidgzip": "pip install 'gpumask[fast]'"}
_LEAST_CORES = 4  # with 2, rapidgzip takes about as long as isal, and 1.5 times the CPU time
_LEAST_BYTES = 1 << 24  # compressed: isal decodes them in about 0.1 s, and rapidgzip splits them into 4 pieces
# Each thread holds about two decoded pieces of 4 MiB: more memory than that is for isal, which is fast with such data.
_LARGEST_RATIO = 6  # of decoded to compressed bytes
_MOST_THREADS = 16
_FOOTER = struct.Struct("<II")  # of a gzip member: checksum and length modulo 2^32


class Choice(NamedTuple):
    """The decoder of a run: its `name` ("isal", "rapidgzip" or "zlib"), and the `reason` to show."""

    name: str
    reason: str


def asked() -> str | None:
    """Return the decoder that GPUMASK_DECODER asks for, if it does.

    Raises
    ------
    ValueError, ImportError
        If it is unknown, or isn't installed.
    """
    name = os.environ.get(_VARIABLE)
    if name and name not in ("isal", "rapidgzip", "zlib"):
        msg = f"{_VARIABLE}={name}: expected isal, rapidgzip or zlib. Correct or unset it."
        raise ValueError(msg)
    if (name == "isal" and igzip is gzip) or (name == "rapidgzip" and _rapidgzip() is None):
        msg = f"{_VARIABLE}={name}: this package isn't installed. Run: {_INSTALL[name]}, or unset it."
        raise ImportError(msg)
    return name or None


def choose() -> Choice:
    """Choose what decodes a run's gzip file: GPUMASK_DECODER, else rapidgzip for a single run on 4 cores or more.

    Where runs are processed next to each other, isal stays: it takes less CPU time, and they use the cores.

    Raises
    ------
    ValueError, ImportError
        If GPUMASK_DECODER is unknown, or isn't installed.
    """
    if forced := asked():
        return Choice(forced, f"by {_VARIABLE}")
    cores, name = process.n_cores(), "zlib" if igzip is gzip else "isal"
    if cores >= _LEAST_CORES and _rapidgzip() is not None:
        if process.is_alone():
            return Choice("rapidgzip", f"{_n_threads()} threads for a single run; {name} where several run at a time")
        return Choice(name, "several runs at a time")
    if name == "zlib":
        return Choice(name, f"twice as fast: {_INSTALL['isal']}")
    if cores >= _LEAST_CORES:
        return Choice(name, f"a single run is faster on {cores} cores with rapidgzip: {_INSTALL['rapidgzip']}")
    return Choice(name, f"rapidgzip is for {_LEAST_CORES} cores or more, this process may use {cores}")


def sequential() -> ModuleType:
    """Return the module whose `open` decodes with one core: `isal.igzip`, or `gzip` by choice or if isal is missing."""
    return gzip if asked() == "zlib" else igzip


def open_whole(path: str | os.PathLike, n_bytes: int) -> Any:
    """Open a gzip file of which all `n_bytes` are read, with the decoder that `choose` names.

    Files below 16 MiB, those with more than 6 decoded bytes for a compressed one (memory), and those that are read next
    to another one, are left to `sequential`, unless GPUMASK_DECODER asks for rapidgzip.
    """
    size = Path(path).stat().st_size
    fits = size >= _LEAST_BYTES and n_bytes <= _LARGEST_RATIO * size and not ParallelGzip.in_use()
    if (fits or asked()) and choose().name == "rapidgzip":
        return ParallelGzip(path)
    return sequential().open(path)


def _n_threads():
    return min(process.n_cores(), _MOST_THREADS)


@functools.cache
def _rapidgzip():
    with contextlib.suppress(ImportError):
        import rapidgzip

        return rapidgzip
    return None


class ParallelGzip:
    """A gzip file that rapidgzip decodes with several threads, once from start to end.

    rapidgzip may reject a good file (bytes after the last member), or stop early at a truncated member without an
    error. So at the end, checksum and length of all decoded bytes are compared with the file's last 8 bytes. `readinto`
    raises any exception if they differ, which they also do in files of several members: a sequential decoder must
    decide.

    Attributes
    ----------
    crc : int
        Checksum of all bytes that `readinto` returned.
    """

    _latest: "weakref.finalize | None" = None

    def __init__(self, path: str | os.PathLike) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._file.seek(max(os.fstat(self._file.fileno()).st_size - _FOOTER.size, 0))
        self._footer = self._file.read()
        self._file.seek(0)
        self._decoder: Any = None
        self._n_bytes = self.crc = 0
        # A decoder that isn't closed when the interpreter ends aborts the process. This is called then, if not before.
        self._close = ParallelGzip._latest = weakref.finalize(self, self._file.close)

    @classmethod
    def in_use(cls) -> bool:
        """Whether the last such file of this process is still open."""
        return cls._latest is not None and cls._latest.alive

    def readinto(self, target: memoryview) -> int:
        """Fill the start of `target` with the next bytes; return their number, 0 at the end."""
        if self._decoder is None:
            self._start()
        got = self._decoder.readinto(target)
        self.crc = crc32(target[:got], self.crc)
        self._n_bytes += got
        if not got and self._footer != _FOOTER.pack(self.crc, self._n_bytes % (1 << 32)):
            msg = "The file doesn't end in checksum and length of its decoded bytes"
            raise EOFError(msg)
        return got

    def _start(self):
        self._decoder = _rapidgzip().RapidgzipFile(self._file.fileno(), parallelization=_n_threads())
        self._close.detach()
        self._close = ParallelGzip._latest = weakref.finalize(self, _close_both, self._decoder, self._file)

    def close(self) -> None:
        """Stop the threads, and close the file."""
        self._close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._file.closed


def _close_both(decoder, file):
    decoder.close()
    file.close()
