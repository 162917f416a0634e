"""A stream of the stored volumes of an image: a file, files that match a pattern, an image in memory, or a list."""

import contextlib
import mmap
import tempfile
from collections.abc import Generator, Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from gpumask import backend, dlpack, process
from gpumask.files import reserve
from gpumask.images.errors import DimensionError, ImageError
from gpumask.images.grid import Grid
from gpumask.images.opening import ImageLike, opened, resolved
from gpumask.images.readers import Stored, Take


class Chunk(NamedTuple):
    """Consecutive volumes.

    Attributes
    ----------
    start : int
        Index of the first volume.
    data : numpy.ndarray, shape (k, n_voxels), C-contiguous
        Stored values, one volume per row with x fastest. May be a read-only view of a file or of the user's array.
        Of a run on a GPU: a CuPy view, shape (k, n_z, n_y, n_x), in any memory order; see `rows`.
    slope, inter : float
        The image's values are ``slope * data + inter``.
    """

    start: int
    data: backend.Array
    slope: float
    inter: float

    def rows(self, chosen: slice = slice(None)) -> backend.Array:
        """Return the stored values of some of the volumes where they lie: array, shape (k, n_voxels), C-contiguous.

        On a GPU this copies volumes that aren't in Fortran order, in the current stream. Such a copy is slow: each
        value lies in another 32-byte sector, so from C-ordered int16 it reads up to 16 times the bytes.
        """
        part = self.data[chosen]
        return part.reshape(len(part), -1)

    def scaled(self) -> backend.Array:
        """Return the image's values as float64, in new memory where they lie: array, shape (k, n_voxels)."""
        if backend.is_numpy(self.data):
            return _scaled(self, np.empty(self.data.shape))
        return self.rows().astype(np.float64)  # arrays on a GPU have no scale

    def scaled_on_host(self) -> np.ndarray:
        """Return the image's values as float64, in new memory on the host: ndarray, shape (k, n_voxels)."""
        with backend.using(dlpack.lies_on(self.data)):
            return backend.to_host(self.scaled())


class Volume(NamedTuple):
    """One loaded 3D image: `data`, shape (x, y, z) with scaled values, its `grid` and its `name`."""

    data: np.ndarray
    grid: Grid
    name: str


def open_volumes(imgs: "ImageLike | Iterable[ImageLike] | Volumes") -> "Volumes":
    """Open an image, or a list of 3D images, as one stream of volumes; reads headers only.

    Parameters
    ----------
    imgs : str, path-like, nibabel.spatialimages.SpatialImage, pair (array, affine), or an iterable of these
        A 3D or 4D image in any format that nibabel reads; the volumes of NIfTI, Analyze and MGH are read without
        nibabel. ``~`` is expanded, and a pattern (``*``, ``?``, ``[]``) stands for its matching files, sorted. The
        images of an iterable must be 3D (or 4D with one volume), share a grid, and lie in host memory or files. For
        pairs, which are tuples, see `gpumask.images.device_arrays.image_of`.

    Returns
    -------
    Volumes
        `imgs` itself if it is one already.

    Raises
    ------
    ImageError
        If a file is broken, or isn't an image of real numbers.
    ValueError
        If a file isn't found, a pattern has no match, or the images of a list differ in their grids.
    DimensionError
        If an image isn't 3D or 4D, or one in a list has several volumes.
    TypeError
        If `imgs` isn't an image, or is an empty list; or if an array can't be shared by DLPack.
    ImportError
        If a package is missing to decompress a file.
    DeviceError
        If an array lies on a GPU that CuPy can't use.
    """
    if isinstance(imgs, Volumes):
        return imgs
    items, is_list = resolved(imgs)
    return Volumes([opened(item) for item in items], is_list=is_list)


def load_volume(img: "ImageLike | Volumes") -> Volume:
    """Load a 3D image such as an atlas, or a 4D one with a single volume.

    Parameters
    ----------
    img : str, path-like, nibabel.spatialimages.SpatialImage or Volumes

    Returns
    -------
    Volume
        Its data are a new array in Fortran order. They have nibabel's dtype for scaled values, in native byte order:
        the stored dtype, or float64 if the header scales.

    Raises
    ------
    DimensionError
        If it has several volumes.
    ImageError, ValueError, TypeError
        As `open_volumes`.
    """
    volumes = open_volumes(img).downloaded()
    check_3d(volumes)
    (chunk,) = volumes.chunks(1)
    with volumes.memory_errors_named():
        data = _scaled(chunk, np.empty(chunk.data.shape, volumes.loaded_dtype.newbyteorder("=")))
    return Volume(data.reshape(volumes.grid.shape, order="F"), volumes.grid, volumes.name)


def check_3d(volumes: "Volumes") -> None:
    """Raise DimensionError unless there is one volume."""
    if volumes.n_volumes != 1:
        msg = (
            "Input data has incompatible dimensionality: Expected dimension is 3D and you provided a 4D image. "
            f"{volumes.name} has {volumes.n_volumes} volumes. If they are maps, use NiftiMapsMasker."
        )
        raise DimensionError(msg)


class Volumes:
    """The volumes of one image or of several 3D images, in order; created by `open_volumes`.

    Attributes
    ----------
    grid : Grid
    n_volumes : int
    is_3d : bool
        Whether a single 3D image was given: its result has no time axis.
    dtype : numpy.dtype
        Dtype of the chunks, in any byte order: the stored dtype, or float64 for a list of images that differ in dtype
        or scaling.
    loaded_dtype : numpy.dtype
        Dtype of the values as nibabel and nilearn load them: float64 if the header scales, else `dtype`. For a list of
        images that differ in dtype or scaling it is float64, but nilearn casts all to the first image's dtype, which
        may be an integer.
    name : str
        The path, or "in-memory image"; for messages.
    step : float or None
        Difference of the values of neighbouring codes, for one image of scaled integers (0 if it isn't known);
        None for other images.
    t_r : float or None
        Repetition time in seconds from the header; None for 3D images, and if the header has none or no time unit.
    device : str
        Where the values lie: "cpu", also for files, or "cuda:N".
    """

    def __init__(self, images: Sequence[Stored], *, is_list: bool) -> None:
        first = images[0]
        self._images, self._is_list = images, is_list
        if is_list:
            _check_list(images)
        self.grid = first.grid
        self.n_volumes = sum(image.n_volumes for image in images)
        self.is_3d = not is_list and first.ndim == 3
        self._alike = all(image.coding == first.coding for image in images)
        self.dtype = first.dtype if self._alike else np.dtype(np.float64)
        self.loaded_dtype = first.loaded_dtype if self._alike else np.dtype(np.float64)
        self.name = first.name if len(images) == 1 else f"{first.name} and {len(images) - 1} more"
        self.step = first.step if len(images) == 1 else None
        self.t_r = first.t_r
        self.device = first.device

    def identity(self) -> tuple[Hashable, ...]:
        """Return a hashable value that identifies data and grid in a cache key.

        Files are identified by path, size and modification time, without reading them; arrays in memory by their
        content.

        Raises
        ------
        ImageError
            If they lie on a GPU.
        """
        return tuple(image.identity() for image in self._images)

    def chunks(self, n: int, take: Take | None = None) -> Generator[Chunk, None, None]:
        """Read all volumes once, up to `n` at a time.

        Parameters
        ----------
        n : int
            Volumes per chunk; the last chunk may have fewer.
        take : callable, optional
            Returns a C-contiguous array of shape (n, n_voxels) and `dtype`, which becomes a chunk's data. If None, a
            new array is allocated for each chunk. Not called for a single image whose data need no copy: uncompressed
            files, arrays in Fortran order, and arrays on a GPU.

        Yields
        ------
        Chunk

        Raises
        ------
        ImageError
            If the file is truncated or corrupt, before its last chunk is yielded; or if there isn't enough memory.
        """
        with self.memory_errors_named():
            yield from self._chunks(n, take)

    @contextlib.contextmanager
    def memory_errors_named(self) -> Generator[None, None, None]:
        """Turn a MemoryError into an ImageError that names the image and its size: headers may promise too much."""
        try:
            yield
        except MemoryError as error:
            n_bytes = self.grid.n_voxels * self.dtype.itemsize
            msg = (
                f"Not enough memory to read {self.name}: by its header, a volume of shape {self.grid.shape} and "
                f"type {self.dtype} has {n_bytes} bytes. If that is wrong, create the file again; else free memory."
            )
            raise ImageError(msg) from error

    def _chunks(self, n, take):
        start = 0
        if len(self._images) == 1:
            image = self._images[0]
            with contextlib.closing(image.blocks(n, take)) as blocks:  # some Python versions leave it open
                for block in blocks:
                    yield Chunk(start, block, image.slope, image.inter)
                    start += len(block)
            return
        slope, inter = (self._images[0].slope, self._images[0].inter) if self._alike else (1.0, 0.0)
        for start in range(0, self.n_volumes, n):
            images = self._images[start : start + n]
            rows = (take() if take else np.empty((n, self.grid.n_voxels), self.dtype))[: len(images)]
            for i, image in enumerate(images):
                self._read(image, rows[i : i + 1])
            yield Chunk(start, rows, slope, inter)

    def whole(self, scratch: Path | None = None) -> Chunk:
        """Return all volumes at once.

        An uncompressed file is mapped, and an array in Fortran order is used as it is. Otherwise, the volumes are
        read once and held in their stored dtype: in memory, or in a file that is mapped.

        Parameters
        ----------
        scratch : Path, optional
            Folder for this file, for volumes that need more than half of the available memory. It is removed with the
            last use of its data. If None, such volumes are refused.

        Raises
        ------
        ImageError, OSError
            If the file is truncated or corrupt, the volumes don't fit in memory and there is no `scratch`, or the
            scratch file can't be written.
        """
        shape = (self.n_volumes, self.grid.n_voxels)

        def take():
            size, available = shape[0] * shape[1] * self.dtype.itemsize, process.available_memory()
            if available is None or size <= available / 2:
                return np.empty(shape, self.dtype)
            takes, of = size / 2**30, available / 2**30
            needed = f"{self.name} takes {takes:.1f} GiB decoded, of {of:.1f} GiB available memory"
            if scratch is None:
                msg = f"{needed}. Decompress it to a file (.nii), which doesn't have to fit."
                raise ImageError(msg)
            process.warn(f"{needed}: it is decoded into a temporary file in {scratch}.")
            with tempfile.TemporaryFile(dir=scratch) as file:
                reserve(file, size)
                return np.frombuffer(mmap.mmap(file.fileno(), size), self.dtype).reshape(shape)

        with contextlib.closing(self.chunks(self.n_volumes, take)) as chunks:
            return next(chunks)

    def downloaded(self) -> "Volumes":
        """Return the volumes in host memory or files: themselves unless they lie on a GPU."""
        return self if self.device == "cpu" else Volumes([self._images[0].downloaded()], is_list=self._is_list)

    @property
    def template(self) -> nib.spatialimages.SpatialImage:
        """The first image, whose class and header serve for images made from these volumes."""
        return self._images[0].image

    def _read(self, image, row):
        with contextlib.closing(image.blocks(1, (lambda: row) if self._alike else None)) as blocks:
            for block in blocks:
                if not self._alike:
                    _scaled(Chunk(0, block, image.slope, image.inter), row)
                elif not np.may_share_memory(block, row):
                    row[:] = block


def _scaled(chunk, out):
    if chunk.slope == 1.0:
        out[:] = chunk.data
    else:
        np.multiply(chunk.data, chunk.slope, out=out, dtype=out.dtype)
    if chunk.inter != 0.0:
        out += chunk.inter
    return out


def _check_list(images):
    first = images[0]
    for i, image in enumerate(images):
        if image.n_volumes != 1:
            msg = (
                "Input data has incompatible dimensionality: Expected dimension is 4D and you provided a list of 4D "
                f"images (5D). Image #{i} ({image.name}) has {image.n_volumes} volumes: pass it alone."
            )
            raise DimensionError(msg)
        if image.device != "cpu" and len(images) > 1:
            msg = (
                f"Image #{i} of the list lies on {image.device}: lists are read on the host. Stack the arrays along a "
                "fourth axis, and pass one pair (array, affine)."
            )
            raise ImageError(msg)
        if not image.grid.matches(first.grid):
            msg = (
                f"Field of view of image #{i} ({image.name}) is different from reference FOV ({first.name}).\n"
                f"Reference affine:\n{first.grid.affine!r}\nImage affine:\n{image.grid.affine!r}\n"
                f"Reference shape:\n{first.grid.shape!r}\nImage shape:\n{image.grid.shape!r}\n"
                "Resample the images to one grid first."
            )
            raise ValueError(msg)
