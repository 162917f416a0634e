"""The stored volumes of one image, in order and in their stored dtype, from a file or from memory."""

import hashlib
import math
import mmap
from collections.abc import Callable, Generator, Hashable
from io import FileIO
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.brikhead import AFNIHeader
from nibabel.minc1 import MincImageArrayProxy
from nibabel.parrec import PARRECHeader

from gpumask import process
from gpumask.images.decoding import Decoder, check_size, is_compressed
from gpumask.images.errors import DimensionError, ImageError
from gpumask.images.grid import Grid
from gpumask.inputs import open_file

Take = Callable[[], np.ndarray]
Blocks = Generator[np.ndarray, None, None]

# A larger volume that would be compressed more than usual is decoded when the file is opened: masks, labels and buffers
# of its size are allocated before it is read.
_LARGE, _USUAL_RATIO = 1 << 28, 50  # bytes; decompressed by compressed

_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


def stored(img: nib.spatialimages.SpatialImage, name: str) -> "Stored":
    """Wrap a nibabel image in the reader for the place of its data: file, compressed file, memory or nibabel's proxy.

    Parameters
    ----------
    img : nibabel.spatialimages.SpatialImage
        3D or 4D.
    name : str
        Name of the image in messages.

    Returns
    -------
    Stored

    Raises
    ------
    DimensionError
        If the image isn't 3D or 4D.
    ImageError
        If it is empty, has no valid affine, isn't of real numbers, or its file is truncated.
    """
    dataobj = img.dataobj
    if not nib.is_proxy(dataobj):
        return _InMemory(img, name)
    if type(dataobj) is nib.arrayproxy.ArrayProxy and dataobj.order == "F" and not hasattr(dataobj.file_like, "read"):
        return (_Compressed if is_compressed(dataobj.file_like) else _Mapped)(img, name)
    return _Proxied(img, name)


def check_dimensions(shape: tuple[int, ...], name: str) -> None:
    """Raise DimensionError unless an image of this shape is 3D or 4D, and ImageError if it is empty."""
    if len(shape) not in (3, 4):
        msg = (
            "Input data has incompatible dimensionality: Expected dimension is 4D and you provided a "
            f"{len(shape)}D image. {name} has shape {shape}, expected (x, y, z) or (x, y, z, time)."
        )
        if len(shape) == 6 and shape[:4] == (1, 1, 1, 1):
            msg += " CIFTI-2 files have such shapes: pass the path of the decompressed file (.dtseries.nii)."
        raise DimensionError(msg)
    if min(shape) < 1:
        msg = f"The image is empty. {name} has shape {shape}; every dimension must be at least 1."
        raise ImageError(msg)


class Stored:
    """Volumes of one image.

    Attributes
    ----------
    name : str
    ndim : int
        3 or 4.
    n_volumes : int
        1 for a 3D image.
    n_voxels : int
        Of a volume.
    grid : Grid
    dtype : numpy.dtype
        Dtype of the stored values, in their byte order.
    device : str
        Where the values lie: "cpu", also for files, or "cuda:N".
    slope, inter : float
        Scaled values are ``slope * stored + inter``.
    header : nibabel header
    image : nibabel.spatialimages.SpatialImage
    """

    dtype: np.dtype
    device = "cpu"

    def __init__(self, img: nib.spatialimages.SpatialImage, name: str) -> None:
        self.name = name
        self.shape = tuple(int(n) for n in img.shape)  # those of MGH are int32, and their product overflows
        self.ndim = len(self.shape)
        check_dimensions(self.shape, name)
        if img.affine is None:
            msg = f"{name} has no affine: expected a 4 x 4 matrix from voxels to mm."
            raise ImageError(msg)
        self.n_volumes = self.shape[3] if self.ndim == 4 else 1
        x, y, z = self.shape[:3]
        self.n_voxels = x * y * z
        self.header = img.header
        self.slope, self.inter = 1.0, 0.0
        self.image = img
        self._bind(img.dataobj)
        self.grid = Grid((x, y, z), img.affine, name)  # after the size: MGH computes positions from the shape
        if self.dtype.kind not in "biuf":
            msg = f"{name} holds values of type {self.dtype}, expected integers or real floats."
            raise ImageError(msg)

    def _bind(self, dataobj):
        """Set `dtype`, and the other attributes that describe how the values are stored."""
        raise NotImplementedError

    @property
    def coding(self) -> tuple[np.dtype, float, float]:
        """Dtype, slope and intercept. Images with equal ones can share a buffer."""
        return self.dtype, self.slope, self.inter

    @property
    def loaded_dtype(self) -> np.dtype:
        """The dtype of ``np.asanyarray(img.dataobj)``."""
        scaled = (self.slope, self.inter) != (1.0, 0.0)
        return np.result_type(self.dtype, np.float64) if scaled else self.dtype

    @property
    def step(self) -> float | None:
        """Difference of the values of neighbouring codes; None if the values aren't scaled integers.

        0 if the values are scaled integers, by factors that only nibabel's private attributes hold.
        """
        scaled = (self.slope, self.inter) != (1.0, 0.0)
        return abs(self.slope) if scaled and self.dtype.kind in "iu" else None

    @property
    def t_r(self) -> float | None:
        """Repetition time in seconds from the header, or None."""
        zooms = self.header.get_zooms()
        if len(zooms) < 4:
            return None
        try:
            unit = "msec" if isinstance(self.header, nib.freesurfer.MGHImage.header_class) else self._time_unit()
        except (AttributeError, KeyError):  # a format without units, or a code that NIfTI doesn't define
            return None
        # Through the shortest decimal, so that float32 0.8 becomes 0.8 and not 0.800000011920929.
        t_r = float(str(zooms[3])) * _SECONDS.get(unit, 0)
        return t_r if 0 < t_r < np.inf else None

    def _time_unit(self):
        return self.header.get_xyzt_units()[1]

    def identity(self) -> Hashable:
        """Return a hashable value that changes with the image's values or its grid."""
        files = [Path(file).resolve() for file in sorted(self._files()) if Path(file).exists()]
        data = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files) or self._digest()
        return self.shape, self.grid.affine.tobytes(), data

    def _files(self):
        return {holder.filename for holder in self.image.file_map.values() if holder.filename}

    def _digest(self):
        digest = hashlib.blake2b(self.dtype.str.encode(), digest_size=16)
        for block in self.blocks(16):
            digest.update(block.view(np.uint8))
        return digest.hexdigest()

    def blocks(self, n: int, take: Take | None = None) -> Blocks:
        """Iterate over up to `n` volumes at a time, as arrays of shape (k, n_voxels) with x fastest.

        `take` returns the array to fill, where one is needed; see `gpumask.images.volumes.Volumes.chunks`.
        """
        raise NotImplementedError

    def downloaded(self) -> "Stored":
        """Return the image in host memory: itself unless it lies on a GPU."""
        return self

    def _buffer(self, n, take):
        return take() if take else np.empty((min(n, self.n_volumes), self.n_voxels), self.dtype)


def mapped_rows(file: FileIO, path: str, dtype: np.dtype, start: int, shape: tuple[int, int]) -> np.ndarray:
    """Map rows of an uncompressed file, in a mapping of their own.

    Parameters
    ----------
    file : FileIO
        Of `open_file`. It may be closed afterwards.
    path : str
        Its path, for messages.
    dtype : numpy.dtype
    start : int
        First byte.
    shape : tuple of 2 int
        Rows and columns.

    Returns
    -------
    ndarray of `dtype` and `shape`
        Read-only view of the file.

    Raises
    ------
    ImageError
        If the file is too short: it may have been truncated since it was opened.
    """
    n_values = shape[0] * shape[1]
    check_size(path, start + n_values * dtype.itemsize)
    lead = start % mmap.ALLOCATIONGRANULARITY
    length = lead + n_values * dtype.itemsize
    mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start - lead)
    return np.frombuffer(mapped, dtype, n_values, lead).reshape(shape)


class _OnFile(Stored):
    def _bind(self, dataobj):
        self.dtype, self.slope, self.inter = dataobj.dtype, float(dataobj.slope), float(dataobj.inter)
        self._path, self._offset = dataobj.file_like, int(dataobj.offset)
        if self._offset < 0:
            msg = (
                f"The header of {self.name} is wrong: by its vox_offset the values start at byte {self._offset} of "
                f"{self._path}, expected 0 or more. Copy or create the file again."
            )
            raise ImageError(msg)
        self._volume_bytes = self.n_voxels * self.dtype.itemsize
        check_size(self._path, self._offset + self.n_volumes * self._volume_bytes)

    def _files(self):
        return super()._files() | {self._path}


class _Mapped(_OnFile):
    """An uncompressed file: blocks are views of it, without a copy. Each block has its own mapping."""

    def blocks(self, n: int, take: Take | None = None) -> Blocks:
        with open_file(self._path) as file:
            for start in range(0, self.n_volumes, n):
                shape = min(n, self.n_volumes - start), self.n_voxels
                yield mapped_rows(file, self._path, self.dtype, self._offset + start * self._volume_bytes, shape)


class _Compressed(_OnFile):
    """A compressed file, decoded into the arrays that `take` returns."""

    def _bind(self, dataobj):
        super()._bind(dataobj)
        end = self._offset + self._volume_bytes
        if end > _LARGE and end > _USUAL_RATIO * Path(self._path).stat().st_size:
            with Decoder(self._path) as decoder:
                decoder.skip(end, to="ends")

    def blocks(self, n: int, take: Take | None = None) -> Blocks:
        with Decoder(self._path, n_bytes=self._offset + self.n_volumes * self._volume_bytes) as decoder:
            decoder.skip(self._offset)
            for start in range(0, self.n_volumes, n):
                block = self._buffer(n, take)[: self.n_volumes - start]
                decoder.fill(block.view(np.uint8))
                if start + n >= self.n_volumes:
                    decoder.finish()
                yield block


class _InMemory(Stored):
    """An array in memory: blocks are views if its volumes are in Fortran order, else copies."""

    def _bind(self, dataobj):
        self._array = np.asarray(dataobj)
        if self.ndim == 3:
            self._array = self._array[..., np.newaxis]
        self.dtype = self._array.dtype

    def _files(self):
        return set()  # the array may differ from the file that it was loaded from

    def blocks(self, n: int, take: Take | None = None) -> Blocks:
        for start in range(0, self.n_volumes, n):
            part = self._array[..., start : start + n]
            if part.flags.f_contiguous:
                block = part.T.reshape(part.shape[3], -1)
                block.flags.writeable = False
            else:
                block = self._buffer(n, take)[: part.shape[3]]
                copy_volumes(part, block)
            yield block


class _Proxied(Stored):
    """Formats that only nibabel can read (MINC, AFNI, PAR/REC) and open streams; nibabel scales the values."""

    def _bind(self, dataobj):
        if self.ndim == 4:
            self._check_fourth_axis(dataobj)
        file = getattr(dataobj, "file_like", None)
        if isinstance(file, str):  # nibabel allocates what the header promises
            stored_dtype = self.header.get_data_dtype()
            check_size(file, getattr(dataobj, "offset", 0) + math.prod(self.shape) * stored_dtype.itemsize)
        self.dtype = self._load(0, 1).dtype

    def _check_fourth_axis(self, dataobj):
        """Refuse 4D MINC, whose axes nibabel leaves in any order; warn where volumes of a PAR/REC aren't repetitions.

        nibabel puts the spatial axes of all other formats first. The sub-bricks of AFNI are the volumes of NIfTI.
        """
        if isinstance(dataobj, MincImageArrayProxy):
            msg = (
                f"{self.name} is a 4D MINC image of shape {self.shape}, expected (x, y, z, time). nibabel keeps the "
                "axes of MINC in the file's order, usually with time first. Convert it to NIfTI (mnc2nii)."
            )
            raise ImageError(msg)
        if isinstance(self.header, PARRECHeader):
            labels = self.header.get_volume_labels()
            other = [f"{len(set(found.tolist()))} values of '{label}'" for label, found in labels.items()]
            if other and set(labels) != {"dynamic scan number"}:
                process.warn(
                    f"The fourth axis of {self.name} isn't time alone: its {self.n_volumes} volumes have "
                    f"{' and '.join(other)}. Convert it to one NIfTI image per series (dcm2niix)."
                )

    @property
    def step(self) -> float | None:
        """As of other images; the factor of one AFNI volume is public."""
        if self.dtype.kind != "f" or self.header.get_data_dtype().kind not in "iu":
            return None
        factors = self.header.get_data_scaling() if isinstance(self.header, AFNIHeader) else None
        return 0.0 if factors is None else float(np.max(np.abs(factors)))

    def _load(self, start, stop):
        dataobj = self.image.dataobj
        try:
            part = np.asanyarray(dataobj[..., start:stop] if self.ndim == 4 else dataobj)
        except MemoryError:
            raise
        except Exception as error:  # nibabel's formats raise many classes, and few name the file
            msg = f"{self.name} can't be read: {type(error).__name__}: {error}. Copy or create the file again."
            raise ImageError(msg) from error
        return part.reshape((*self.shape[:3], -1))

    def blocks(self, n: int, take: Take | None = None) -> Blocks:
        for start in range(0, self.n_volumes, n):
            part = self._load(start, start + n)
            block = self._buffer(n, take)[: part.shape[3]]
            copy_volumes(part, block)
            yield block


def copy_volumes(volumes: np.ndarray, rows: np.ndarray) -> None:
    """Copy `volumes`, shape (x, y, z, k) in any memory order, to `rows`, shape (k, x * y * z) with x fastest."""
    n_x, n_y, n_z, k = volumes.shape
    target = rows.reshape(k, n_z, n_y, n_x)
    # Reading and writing have opposite strides. Blocks that fit in the cache are 2 to 3 times as fast as one assignment
    # for arrays in C order (4 ns per voxel).
    for x in range(0, n_x, 32):
        for y in range(n_y):
            target[:, :, y, x : x + 32] = volumes[x : x + 32, y].transpose(2, 1, 0)
