"""The bytes of one compressed file, in order and straight into the caller's memory."""

import bz2
import gzip
from pathlib import Path

from gpumask.images.errors import ImageError

try:
    from isal import igzip
except ImportError:  # no wheel for this platform: zlib takes about 2.5 times as long
    igzip = gzip

# The most bytes that one compressed byte can stand for, to refuse headers that promise more. Deflate: 258 bytes in 2
# bits. Zstandard: a block of 128 KiB in 4 bytes. bzip2: 45 899 235 bytes in 32.
_MAX_RATIO = {".gz": 1032, ".mgz": 1032, ".zst": 1 << 15, ".bz2": 1_434_352}


def is_compressed(path):
    """Whether the file's name says that it is compressed (.gz, .mgz, .zst or .bz2)."""
    return _suffix(path) in _MAX_RATIO


def _suffix(path):
    return Path(path).suffix.lower()


def require_decoder(path):
    """Raise ImportError where a package is missing to read `path`."""
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


def check_size(path, expected):
    """Raise ImageError if the file at `path` can't hold `expected` bytes; decodes and allocates nothing."""
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        msg = f"{path} can't be read: {error.strerror}. The image's header refers to it."
        raise ImageError(msg) from error
    if size * _MAX_RATIO.get(_suffix(path), 1) < expected:
        how = "can at most decompress to" if is_compressed(path) else "has"
        available = size * _MAX_RATIO.get(_suffix(path), 1)
        msg = (
            f"{path} is truncated or its header is wrong: by shape and dtype in the header it should hold {expected} "
            f"bytes, but it {how} {available}. Copy or create the file again."
        )
        raise ImageError(msg)


class Decoder:
    """Reads a compressed file once from start to end; a context manager that closes it.

    Parameters
    ----------
    path : str or path-like
        The suffix decides the format; multi-member files are read through to their last member.
    """

    def __init__(self, path):
        self._path = path
        suffix = _suffix(path)
        if suffix == ".zst":
            self._file = _zstd(path).ZstdFile(path)
        else:
            self._file = (bz2 if suffix == ".bz2" else igzip).open(path)
        # GzipFile and IGzipFile have no `readinto` of their own: theirs reads bytes and copies them (10 % of the time).
        # Their buffered reader hands large requests to the decoder, which writes into the caller's memory.
        self._reader = getattr(self._file, "_buffer", self._file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def fill(self, array):
        """Fill the C-contiguous `array` with the next bytes; ImageError if the file ends before or is corrupt."""
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

    def skip(self, n_bytes):
        """Pass over the next `n_bytes`."""
        self.fill(bytearray(n_bytes))

    def finish(self):
        """Read to the end of the stream, where decoders check for truncation and the checksum."""
        rest = bytearray(1 << 16)
        while self._read(rest):
            pass

    def _read(self, target):
        try:
            return self._reader.readinto(target)
        except Exception as error:  # each library raises classes of its own
            msg = (
                f"{self._path} is truncated or corrupt: {type(error).__name__}: {error}. Copy or create the file again."
            )
            raise ImageError(msg) from error
