"""Images that are filled a part at a time: in memory, or in a file that appears when it is complete."""

import contextlib
import errno
import gzip
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from gpumask.files import appearing_together, check_folder, reserve
from gpumask.images.grid import Grid

_LONGEST = 2**15 - 1  # voxels along an axis, and volumes, in NIfTI-1


class ImageInParts:
    """An image that is being filled.

    Attributes
    ----------
    data : ndarray, shape (n_volumes, n_voxels)
        With x fastest; 0 where nothing has been written.
    """

    def __init__(
        self,
        data: np.ndarray,
        template: nib.spatialimages.SpatialImage,
        grid: Grid,
        path: Path | None = None,
        *,
        is_3d: bool = False,
    ) -> None:
        self.data, self._template, self._grid, self._path, self._is_3d = data, template, grid, path, is_3d

    def image(self) -> Any:
        """Return the image; from a file, which is complete after `image_in_parts`, without loading its values."""
        if self._path is not None:
            return nib.load(self._path)
        values = self.data.reshape(len(self.data), *self._grid.shape[::-1]).T
        header: Any = self._template.header.copy()
        for name in ("scl_slope", "scl_inter", "glmax"):
            with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):  # not in every format
                header[name] = 0.0
        kind = type(self._template)
        kind = nib.Nifti1Image if kind is nib.nifti1.Nifti1Pair else kind  # which can't be written to one file
        image = kind(values[..., 0] if self._is_3d else values, self._grid.affine, header)
        image.set_data_dtype(self.data.dtype)
        return image


def checked_out(out: Any) -> Path:
    """Return the path of an image to write, checked; call it before the work whose result is written there.

    Parameters
    ----------
    out : path
        NIfTI file, `.nii` or `.nii.gz`, in an existing folder.

    Raises
    ------
    TypeError
        If it isn't a path.
    ValueError
        If it has another extension.
    OSError
        If it is a folder, or its folder doesn't exist or can't be written to.
    """
    if not isinstance(out, str | os.PathLike):
        msg = f"`out` must be the path of a NIfTI file, .nii or .nii.gz, got {type(out).__name__}."
        raise TypeError(msg)
    path = Path(out).expanduser()
    if not path.name.endswith((".nii", ".nii.gz")):
        msg = f"`out` must be a NIfTI file, .nii or .nii.gz, got {path}."
        raise ValueError(msg)
    if path.is_dir():
        msg = f"`out` must be a file, but {path} is a folder. Choose another name."
        raise IsADirectoryError(msg)
    check_folder(path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        msg = f"{path} can't be written: you have no permission to write to {path.parent}. Choose another folder."
        raise PermissionError(msg)
    return path


@contextlib.contextmanager
def image_in_parts(
    template: nib.spatialimages.SpatialImage,
    grid: Grid,
    n_volumes: int,
    dtype: Any,
    out: str | os.PathLike | None = None,
    *,
    is_3d: bool = False,
) -> Iterator[ImageInParts]:
    """Begin an image, and complete it after the block.

    Parameters
    ----------
    template : nibabel image
        Its class and header are used.
    grid : Grid
    n_volumes : int
    dtype : numpy.dtype
        float32 or float64.
    out : path, optional
        NIfTI file, `.nii` or `.nii.gz`. It appears, or replaces an existing one, when it is complete. If None, the
        image is in memory.
    is_3d : bool
        Whether the image has no fourth axis.

    Yields
    ------
    ImageInParts

    Raises
    ------
    TypeError, ValueError, OSError
        As `checked_out`.
    OSError
        If the disk is full, or the file can't be written.
    """
    shape = (n_volumes, grid.n_voxels)
    if out is None:
        yield ImageInParts(np.zeros(shape, dtype), template, grid, is_3d=is_3d)
        return
    path = checked_out(out)
    is_compressed = path.name.endswith(".nii.gz")
    header = _nifti_header(template, grid, () if is_3d else (n_volumes,), dtype)
    with appearing_together([path]) as (part,):
        plain = part.with_name(f"{part.name}.nii") if is_compressed else part
        try:
            with plain.open("xb+") as file:
                header.write_to(file)
                start = int(header["vox_offset"])
                size = start + shape[0] * shape[1] * np.dtype(dtype).itemsize
                with _naming(path, size):
                    reserve(file, size)
                data = np.memmap(file, header.get_data_dtype(), "r+", start, shape)
                yield ImageInParts(data, template, grid, path, is_3d=is_3d)
                data.flush()
                os.fsync(file.fileno())
                if is_compressed:
                    file.seek(0)
                    with _naming(path, size):
                        _compress(file, part)
        finally:
            if is_compressed:
                plain.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path, size):
    """Name the file and its size where the disk is full: temporary files have names that nobody knows."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        again = " The compressed copy needs room next to it." if path.name.endswith(".gz") else ""
        msg = f"{path} takes {size} bytes, but {path.parent} has no room for them: {error.strerror}.{again} Free some."
        raise OSError(msg) from error


def _compress(file: BinaryIO, path: Path) -> None:
    with path.open("xb") as packed, gzip.GzipFile("", "wb", 1, packed, mtime=0) as stream:
        shutil.copyfileobj(file, stream, 2**20)


def _nifti_header(template, grid, fourth, dtype):
    given = template.header
    shape = (*grid.shape, *fourth)
    kind = nib.Nifti2Header if isinstance(given, nib.Nifti2Header) or max(shape) > _LONGEST else nib.Nifti1Header
    header = kind.from_header(given, check=False)
    header.extensions.clear()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    if not np.array_equal(header.get_best_affine(), grid.affine):
        code = int(header["sform_code"]) or int(header["qform_code"]) or 1
        header.set_sform(grid.affine, code)
        header.set_qform(grid.affine, code)
    header["magic"] = header.single_magic
    header.set_data_offset(header.single_vox_offset)
    return header
