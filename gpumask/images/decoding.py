"""Sequential decompression of one file, straight into the caller's memory."""

import bz2
import contextlib
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib

from gpumask import process
from gpumask.images import gzip_decoders
from gpumask.images.errors import ImageError
from gpumask.images.gzip_decoders import ParallelGzip

# Largest possible ratio of decompressed to compressed bytes, to reject headers that promise more. Deflate: 258 bytes
# from 2 bits. Zstandard: a block of 128 KiB from 4 bytes. bzip2: 45 899 235 bytes from 32.
_MAX_RATIO = {".gz": 1032, ".mgz": 1032, ".zst": 1 << 15, ".bz2": 1_434_352}

_BLOCK = 1 << 17  # compressed bytes per read
_PIECE = 1 << 20  # decompressed bytes that are held apart from the caller's memory
_GZIP_MAGIC, _BZIP2_MAGIC = b"\x1f\x8b", b"BZh"
# A frame, or a frame to skip: 16 magic numbers.
_ZSTD_MAGIC = (b"\x28\xb5\x2f\xfd", *(bytes([i]) + b"\x2a\x4d\x18" for i in range(0x50, 0x60)))
_MAX_EXTENSIONS = 1 << 26  # bytes; those of NIfTI files hold texts, of some megabytes at most
_PADDING = 16  # No whole gzip member ends in more than 9 zero bytes, so 16 are padding.


def is_compressed(path: str | os.PathLike) -> bool:
    """Whether the file's suffix is that of a compressed file: .gz, .mgz, .zst or .bz2."""
    return _suffix(path) in _MAX_RATIO


def _suffix(path):
    return Path(path).suffix.lower()


def require_decoder(path: str | os.PathLike) -> None:
    """Raise ImportError if `path` or GPUMASK_DECODER needs a missing package, ValueError if the latter is unknown."""
    gzip_decoders.asked()
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


def check_extensions(path: str | os.PathLike) -> None:
    """Raise ImageError if the NIfTI header at `path` has more than 64 MiB of extensions.

    nibabel loads them together with the header. A file that isn't a NIfTI header, or is broken, passes.
    """
    with Decoder(path) as decoder:
        try:
            n_bytes = _extension_bytes(decoder)
        except ImageError:  # nibabel reports it
            return
    if n_bytes > _MAX_EXTENSIONS:
        msg = (
            f"The header of {path} is wrong: its extensions have {n_bytes} bytes or more, expected at most "
            f"{_MAX_EXTENSIONS}. Copy or create the file again, without extensions."
        )
        raise ImageError(msg)


_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}


def _extension_bytes(decoder):
    """Sum of the sizes of a NIfTI header's extensions as nibabel reads them, up to the first that exceeds the limit."""
    start = bytearray(4)
    decoder.fill(start)
    n_header = next((n for n in map(int.from_bytes, (start, start[::-1])) if n in _HEADERS), None)
    if n_header is None:
        return 0
    rest = bytearray(n_header)  # of the header, then four bytes, of which the first announces extensions
    decoder.fill(rest)
    block = bytes(start + rest)
    header, total = _HEADERS[n_header](block[:n_header], check=False), 0
    order = header.endianness  # which nibabel may guess from the number of dimensions
    is_single = header["magic"].item().startswith(b"n+")
    room = float(header["vox_offset"]) - len(block) if is_single else -1.0
    while block[n_header] and (room >= 16 or room < 0):  # if it is negative, nibabel reads to the end
        decoder.fill(start)
        (n_bytes,) = struct.unpack(order + "i", start)
        total += (
            n_bytes if n_bytes >= 8 else _MAX_EXTENSIONS + 1
        )  # below 8, the size of its own head, nibabel reads all
        if total > _MAX_EXTENSIONS:
            break
        decoder.skip(n_bytes - len(start))
        room -= n_bytes
    return total


class Decoder:
    """Reads a compressed file once from start to end. A context manager that closes the file.

    Bytes after the last whole member (gzip's and bzip2's "trailing garbage", zero padding) are ignored with a warning,
    once the image is complete. A member that is damaged or truncated is an error.

    Parameters
    ----------
    path : str or path-like
        The suffix determines the format; others aren't compressed. All members of a multi-member file are read.
    n_bytes : int, optional
        Decoded bytes by the header, if all are read. Then gzip may be decoded with several cores. What that decoder
        rejects is decoded again with one, which decides: values, errors and warnings are the same.
    """

    def __init__(self, path: str | os.PathLike, *, n_bytes: int | None = None) -> None:
        self._path = path
        suffix = _suffix(path)
        self._file: Any
        if suffix == ".zst":
            self._file = _Members(path, _zstd(path).ZstdDecompressor, _ZSTD_MAGIC)
        elif suffix == ".bz2":
            self._file = _Members(path, bz2.BZ2Decompressor, (_BZIP2_MAGIC,))
        elif is_compressed(path):
            self._file = gzip_decoders.open_whole(path, n_bytes) if n_bytes else gzip_decoders.sequential().open(path)
        else:
            self._file = Path(path).open("rb")  # noqa: SIM115 - closed by `__exit__`
        self._of_gzip = suffix in (".gz", ".mgz")
        self._position = self._n_trailing = 0
        self._head: io.FileIO | None = None
        self._reader = _reader(self._file)

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._head is not None:  # igzip doesn't close a file object that it is given
            self._head.close()

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

    def skip(self, n_bytes: int, *, to: str = "starts") -> None:
        """Skip `n_bytes`, in pieces, to where the first volume starts (or ends); ImageError if the file is shorter."""
        if missing := self._discard(n_bytes)[0]:
            msg = (
                f"{self._path} is truncated or its header is wrong: it ends after {n_bytes - missing} bytes, but by "
                f"its header the first volume {to} at byte {n_bytes}. Copy or create the file again."
            )
            raise ImageError(msg)

    def _discard(self, n_bytes):
        """Read `n_bytes` into nowhere; return how many of them the file lacks, and the checksum of the others."""
        scratch, crc = memoryview(bytearray(min(n_bytes, _PIECE))), 0
        while n_bytes and (got := self._read(scratch[:n_bytes])):
            crc = gzip_decoders.crc32(scratch[:got], crc)
            n_bytes -= got
        return n_bytes, crc

    def finish(self) -> None:
        """Read to the end of the stream, where decoders detect truncation and verify the checksum.

        Warns if the file goes on after its last member. Less than 16 zero bytes after a gzip member go unnoticed.
        """
        rest = bytearray(1 << 16)
        while self._read(rest):
            pass
        n_trailing = self._n_trailing
        if not self._of_gzip:
            n_trailing = self._file.n_trailing
        elif not n_trailing and _ends_in_zeros(self._path):  # decoders skip them silently
            n_trailing = _n_trailing(self._path) or 0
        if n_trailing:
            plural = "bytes" if n_trailing > 1 else "byte"
            process.warn(
                f"{self._path} has {n_trailing} trailing {plural} after its compressed data. They are ignored: the "
                "image before them is complete. Copy or create the file again if that isn't expected."
            )

    def _read(self, target):
        try:
            got = self._reader.readinto(target)
        except Exception as error:  # each library raises its own classes
            if isinstance(self._file, ParallelGzip):
                self._without_threads(self._file.crc)
                return self._read(target)
            if self._of_gzip and not self._n_trailing and (n_trailing := _n_trailing(self._path)):
                # isal raises an error for trailing bytes before it hands out the last of the image's.
                self._without_last(n_trailing)
                return self._read(target)
            msg = (
                f"{self._path} is truncated or corrupt: {type(error).__name__}: {error}. Copy or create the file again."
            )
            raise ImageError(msg) from error
        self._position += got
        return got

    def _without_last(self, n_trailing):
        """Decode the file again without its trailing bytes, up to the current position."""
        self._n_trailing = n_trailing
        self._head = _Head(self._path, Path(self._path).stat().st_size - n_trailing)
        self._start_again(self._head)

    def _without_threads(self, crc):
        """Decode the file again with one core, up to the current position; `crc` is that of the bytes before it."""
        if self._start_again(self._path) != crc:
            self._discard(sys.maxsize)  # raises the error of a damaged file
            msg = (
                f"{self._path} was decoded to other bytes by rapidgzip than by {gzip_decoders.sequential().__name__}. "
                "Set GPUMASK_DECODER=isal, and report it."
            )
            raise ImageError(msg)

    def _start_again(self, file):
        self._file.close()
        self._file = gzip_decoders.sequential().open(file)
        self._reader = _reader(self._file)
        position, self._position = self._position, 0
        return self._discard(position)[1]


def _reader(file):
    # GzipFile and IGzipFile inherit a `readinto` that reads bytes and copies them (10 % of the time). Their buffered
    # reader passes large requests on to the decoder, which writes into the caller's memory.
    return getattr(file, "_buffer", file)


class _Members:
    """Decoded bytes of a file of bzip2 streams or Zstandard frames. The standard library's readers hide what follows.

    Attributes
    ----------
    n_trailing : int
        At the end: bytes after the last member.
    """

    def __init__(self, path: str | os.PathLike, new: Callable[[], Any], magic: tuple[bytes, ...]) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._new, self._magic = new, magic
        self._decompressor, self._pending = new(), b""
        self._ended, self.n_trailing = False, 0

    def readinto(self, target: memoryview) -> int:
        while not self._ended:
            if self._decompressor.eof:
                self._start_next()
                continue
            block = b""
            if self._decompressor.needs_input:
                block, self._pending = self._pending or self._file.read(_BLOCK), b""
                if not block:
                    msg = "Compressed file ended before the end-of-stream marker was reached"
                    raise EOFError(msg)
            if data := self._decompressor.decompress(block, min(len(target), _PIECE)):
                target[: len(data)] = data
                return len(data)
        return 0

    def _start_next(self):
        rest = self._decompressor.unused_data
        while len(rest) < len(self._magic[0]) and (more := self._file.read(_BLOCK)):
            rest += more
        if rest.startswith(self._magic):
            self._decompressor, self._pending = self._new(), rest
        else:
            self._ended, self.n_trailing = True, len(rest) + os.fstat(self._file.fileno()).st_size - self._file.tell()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed


class _Head(io.FileIO):
    """The first `n_bytes` of a file."""

    def __init__(self, path, n_bytes):
        super().__init__(path)
        self._n_bytes = n_bytes

    def read(self, size=-1):
        left = max(self._n_bytes - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))

    def readinto(self, target):
        left = max(self._n_bytes - self.tell(), 0)
        return super().readinto(memoryview(target).cast("B")[:left])


def _ends_in_zeros(path):
    with Path(path).open("rb", buffering=0) as file:
        with contextlib.suppress(OSError):  # shorter than that
            file.seek(-_PADDING, os.SEEK_END)
        return not any(file.read())


def _n_trailing(path):
    """Count the bytes after the last gzip member; None if there are none, or a member is damaged or truncated.

    Decodes the whole file with zlib, which verifies checksums and lengths: only for files that isal or gzip reject.
    """
    end = 0
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while end < size:
            file.seek(end)
            if file.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:
                return size - end if end else None
            file.seek(end)
            decompressor = zlib.decompressobj(wbits=31)
            while not decompressor.eof:
                block = decompressor.unconsumed_tail or file.read(_BLOCK)
                if not block:
                    return None
                try:
                    decompressor.decompress(block, 1 << 20)
                except zlib.error:
                    return None
            end = file.tell() - len(decompressor.unused_data)
    return None
