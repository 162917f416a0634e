"""A stream of the stored volumes of everything that a user calls an image."""

import contextlib
import glob
import os
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from gpumask.images.decoding import require_decoder
from gpumask.images.errors import DimensionError, ImageError
from gpumask.images.grid import Grid
from gpumask.images.readers import stored


class Chunk(NamedTuple):
    """Consecutive volumes.

    Attributes
    ----------
    start : int
        Index of the first volume.
    data : numpy.ndarray, shape (k, n_voxels), C-contiguous
        Stored values, a volume a row with x fastest. May be a read-only view of a file or of the user's array.
    slope, inter : float
        The image's values are ``slope * data + inter``.
    """

    start: int
    data: np.ndarray
    slope: float
    inter: float

    def scaled(self):
        """The image's values as float64, in new memory: ndarray, shape (k, n_voxels)."""
        return _scaled(self, np.empty(self.data.shape))


class Volume(NamedTuple):
    """One loaded 3D image: `data`, shape (x, y, z) with scaled values; its `grid`, nibabel `header` and `name`."""

    data: np.ndarray
    grid: Grid
    header: nib.spatialimages.SpatialHeader
    name: str


def open_volumes(imgs):
    """Open an image, or a list of 3D images, as one stream of volumes; reads headers only.

    Parameters
    ----------
    imgs : str, path-like, nibabel.spatialimages.SpatialImage, or an iterable of these
        A 3D or 4D image in any format that nibabel reads; NIfTI, Analyze and MGH are read without it. ``~`` is
        expanded, and a pattern (``*``, ``?``, ``[]``) stands for the files that match it, sorted. The images of an
        iterable must be 3D (or 4D with one volume) and share a grid.

    Returns
    -------
    Volumes
        `imgs` itself if it is one already.

    Raises
    ------
    ImageError
        A ValueError: the file is broken, or not an image of real numbers.
    ValueError
        If a file isn't found, a pattern matches none, or the images of a list differ in their grids.
    DimensionError
        A TypeError: not 3D or 4D, or a list of 4D images.
    TypeError
        If it is no image at all.
    """
    if isinstance(imgs, Volumes):
        return imgs
    single = isinstance(imgs, (str, os.PathLike, nib.spatialimages.SpatialImage))
    if not single and (isinstance(imgs, np.ndarray) or not hasattr(imgs, "__iter__")):
        raise _not_an_image(imgs)
    items = _resolve(imgs) if single else [one for item in imgs for one in _resolve(item)]
    if not items:
        msg = "Cannot concatenate empty objects: the list of images is empty."
        raise TypeError(msg)
    return Volumes([_open(item) for item in items], is_list=not single or len(items) > 1)


def load_volume(img):
    """Load one 3D image, or a 4D one with a single volume, such as an atlas or a mask.

    Parameters
    ----------
    img : str, path-like or nibabel.spatialimages.SpatialImage

    Returns
    -------
    Volume
        Its data are a new array in Fortran order with scaled values and nibabel's dtype for them, in native byte order:
        the stored one, or float64 where the header scales.

    Raises
    ------
    DimensionError
        If it has several volumes.
    ImageError, ValueError, TypeError
        As `open_volumes`.
    """
    volumes = open_volumes(img)
    if volumes.n_volumes != 1:
        msg = (
            "Input data has incompatible dimensionality: Expected dimension is 3D and you provided a 4D image. "
            f"{volumes.name} has {volumes.n_volumes} volumes."
        )
        raise DimensionError(msg)
    (chunk,) = volumes.chunks(1)
    data = _scaled(chunk, np.empty(chunk.data.shape, volumes.loaded_dtype.newbyteorder("=")))
    return Volume(data.reshape(volumes.grid.shape, order="F"), volumes.grid, volumes.header, volumes.name)


class Volumes:
    """The volumes of one image or of several 3D images, in order; made by `open_volumes`.

    Attributes
    ----------
    grid : Grid
    n_volumes : int
    is_3d : bool
        Whether a single 3D image was given: its result has no time axis.
    dtype : numpy.dtype
        Of the chunks, maybe in foreign byte order: the stored one, or float64 for a list of images that differ in
        dtype or scaling.
    loaded_dtype : numpy.dtype
        Of the values as nibabel and nilearn load them: float64 if the header scales, else `dtype`. For a list of
        images of several such dtypes it is float64, where nilearn casts all to the first image's (integers, maybe).
    name : str
        The path, or "in-memory image"; for messages.
    t_r : float or None
        Repetition time in s by the header; None for 3D images and where the header has none or no unit of time.
    header : nibabel header
        Of the first image; not to be modified.
    """

    def __init__(self, images, *, is_list):
        first = images[0]
        self._images = images
        if is_list:
            _check_list(images)
        self.grid = first.grid
        self.n_volumes = sum(image.n_volumes for image in images)
        self.is_3d = not is_list and first.ndim == 3
        self._alike = all(image.coding == first.coding for image in images)
        self.dtype = first.dtype if self._alike else np.dtype(np.float64)
        self.loaded_dtype = first.loaded_dtype if self._alike else np.dtype(np.float64)
        self.name = first.name if len(images) == 1 else f"{first.name} and {len(images) - 1} more"
        self.t_r = first.t_r
        self.header = first.header

    def identity(self):
        """Hashable value that stands for the data and grid in a cache key.

        Files count by path, size and modification time and aren't read; arrays in memory by their content.
        """
        return tuple(image.identity() for image in self._images)

    def chunks(self, n, take=None):
        """Read all volumes once, up to `n` at a time.

        Parameters
        ----------
        n : int
            Volumes a chunk; the last may have fewer.
        take : callable, optional
            Returns a C-contiguous array of shape (n, n_voxels) and `dtype` to fill and to hand on as a chunk's data. If
            None, a new array is made each time. Not called for data that need no copy: uncompressed files and arrays
            in Fortran order.

        Yields
        ------
        Chunk

        Raises
        ------
        ImageError
            If the file is truncated or corrupt; before its last chunk is yielded.
        """
        start = 0
        if len(self._images) == 1:
            image = self._images[0]
            with contextlib.closing(image.blocks(n, take)) as blocks:  # some Pythons leave it open
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


def _not_an_image(item):
    msg = (
        "input should be a NiftiLike object or an iterable of NiftiLike object. "
        f"Got: {type(item).__name__}. Pass a path, a nibabel image or a list of these."
    )
    return TypeError(msg)


def _resolve(item):
    """Turn an image, a path or a pattern into a list of images and existing paths."""
    if isinstance(item, nib.spatialimages.SpatialImage):
        return [item]
    if not isinstance(item, (str, os.PathLike)):
        raise _not_an_image(item)
    path = Path(item).expanduser()
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        msg = f"File not found: '{item}'"
        raise ValueError(msg)
    found = [Path(match) for match in sorted(glob.glob(str(path)))]  # noqa: PTH207 - `Path.glob` matches hidden files
    if not found:
        msg = f"No files matching the entered niimg expression: '{item}'."
        raise ValueError(msg)
    return found


def _open(item):
    if not isinstance(item, Path):
        return stored(item, item.get_filename() or "in-memory image")
    if item.is_dir():
        msg = f"{item} is a directory, expected an image file."
        raise ImageError(msg)
    if item.stat().st_size == 0:
        msg = f"{item} is empty (0 bytes), expected an image file. Copy or create the file again."
        raise ImageError(msg)
    require_decoder(item)
    try:
        img = nib.load(item)
    except Exception as error:  # nibabel and the decoders raise whatever they stumble over
        msg = f"{item} can't be read as an image: {type(error).__name__}: {error}. Expected NIfTI, Analyze or MGH."
        raise ImageError(msg) from error
    if not isinstance(img, nib.spatialimages.SpatialImage):
        msg = f"{item} is a {type(img).__name__}, expected an image of volumes (NIfTI, Analyze or MGH)."
        raise ImageError(msg)
    return stored(img, str(item))


def _check_list(images):
    first = images[0]
    for i, image in enumerate(images):
        if image.n_volumes != 1:
            msg = (
                "Input data has incompatible dimensionality: Expected dimension is 4D and you provided a list of 4D "
                f"images (5D). Image #{i} ({image.name}) has {image.n_volumes} volumes: pass it alone."
            )
            raise DimensionError(msg)
        if not image.grid.matches(first.grid):
            msg = (
                f"Field of view of image #{i} ({image.name}) is different from reference FOV ({first.name}).\n"
                f"Reference affine:\n{first.grid.affine!r}\nImage affine:\n{image.grid.affine!r}\n"
                f"Reference shape:\n{first.grid.shape!r}\nImage shape:\n{image.grid.shape!r}\n"
                "Resample the images to one grid first."
            )
            raise ValueError(msg)
