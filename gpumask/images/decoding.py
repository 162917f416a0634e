"""Sequential decompression of one file, straight into the caller's memory."""

import bz2
import gzip
import os
from pathlib import Path
from typing import Any

from gpumask.images.errors import ImageError

try:
    from isal import igzip
except ImportError:  # no wheel for this platform: zlib takes about 2.5 times as long
    igzip = gzip  # type: ignore[misc]

# Largest possible ratio of decompressed to compressed bytes, to reject headers that promise more. Deflate: 258 bytes
# from 2 bits. Zstandard: a block of 128 KiB from 4 bytes. bzip2: 45 899 235 bytes from 32.
_MAX_RATIO = {".gz": 1032, ".mgz": 1032, ".zst": 1 << 15, ".bz2": 1_434_352}


def is_compressed(path: str | os.PathLike) -> bool:
    """Whether the file's suffix is that of a compressed file: .gz, .mgz, .zst or .bz2."""
    return _suffix(path) in _MAX_RATIO


def _suffix(path):
    return Path(path).suffix.lower()


def require_decoder(path: str | os.PathLike) -> None:
    """Raise ImportError if reading `path` needs a package that isn't installed."""
    if _suffix(path) == ".zst":
        _zstd(path)


def _zstd(path):
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            msg = f"Missing package 'backports.zstd' to read {path}. Run: pip install 'gpumask[zstd]'"
            raise ImportError(msg) from None
    return zstd


def check_size(path: str | os.PathLike, expected: int) -> None:
    """Raise ImageError if the file at `path` can't hold `expected` bytes; nothing is read or allocated."""
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        msg = f"{path} can't be read: {error.strerror}. The image's header refers to it."
        raise ImageError(msg) from error
    available = size * _MAX_RATIO.get(_suffix(path), 1)
    if available < expected:
        how = "can at most decompress to" if is_compressed(path) else "has"
        msg = (
            f"{path} is truncated or its header is wrong: by shape and dtype in the header it should hold {expected} "
            f"bytes, but it {how} {available}. Copy or create the file again."
        )
        raise ImageError(msg)


class Decoder:
    """Reads a compressed file once from start to end. A context manager that closes the file.

    Parameters
    ----------
    path : str or path-like
        The suffix determines the format. All members of a multi-member file are read.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = path
        suffix = _suffix(path)
        self._file: Any
        if suffix == ".zst":
            self._file = _zstd(path).ZstdFile(path)
        else:
            self._file = (bz2 if suffix == ".bz2" else igzip).open(path)
        # GzipFile and IGzipFile inherit a `readinto` that reads bytes and copies them (10 % of the time). Their
        # buffered reader passes large requests on to the decoder, which writes into the caller's memory.
        self._reader = getattr(self._file, "_buffer", self._file)

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fill(self, array: Any) -> None:
        """Fill the C-contiguous `array` with the next bytes; ImageError if the file is too short or corrupt."""
        target = memoryview(array).cast("B")
        n = 0
        while n < len(target):
            got = self._read(target[n:])
            if not got:
                msg = (
                    f"{self._path} is truncated: it ends {len(target) - n} bytes before the end of a volume that its "
                    "header promises. Copy or create the file again."
                )
                raise ImageError(msg)
            n += got

    def skip(self, n_bytes: int) -> None:
        """Skip the next `n_bytes`."""
        self.fill(bytearray(n_bytes))

    def finish(self) -> None:
        """Read to the end of the stream, where decoders detect truncation and verify the checksum."""
        rest = bytearray(1 << 16)
        while self._read(rest):
            pass

    def _read(self, target):
        try:
            return self._reader.readinto(target)
        except Exception as error:  # each library raises its own classes
            msg = (
                f"{self._path} is truncated or corrupt: {type(error).__name__}: {error}. Copy or create the file again."
            )
            raise ImageError(msg) from error
