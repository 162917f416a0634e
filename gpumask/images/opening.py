"""What a user passes as an image, or as a list of them: found by its name or pattern, checked and opened."""

import contextlib
import glob
import os
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from gpumask import dlpack
from gpumask.images.decoding import check_extensions, require_decoder
from gpumask.images.device_arrays import OnDevice, device_of_image, image_of, is_pair
from gpumask.images.errors import ImageError
from gpumask.images.readers import Stored, stored
from gpumask.inputs import irregularity, sha256

ImageLike = str | os.PathLike | nib.spatialimages.SpatialImage | tuple[Any, Any]


def is_single(imgs: object) -> bool:
    """Whether `imgs` is one image (a path, a nibabel image or a pair), and not a list of them."""
    return isinstance(imgs, (str, os.PathLike, nib.spatialimages.SpatialImage)) or is_pair(imgs)


def resolved(imgs: Any) -> tuple[list[Any], bool]:
    """Return the nibabel images and the existing paths that `imgs` stands for, and whether they are a list.

    Raises
    ------
    ValueError
        If a file isn't found, or a pattern has no match.
    TypeError
        If `imgs` isn't an image, or is an empty list; or if an array can't be shared by DLPack.
    ImageError
        If it is a nibabel image of grayordinates.
    """
    single = is_single(imgs)
    if not single and (dlpack.has_dlpack(imgs) or not hasattr(imgs, "__iter__")):
        raise _not_an_image(imgs)
    given: Any = [imgs] if single else imgs
    items = [one for item in given for one in _resolve(item)]
    if not items:
        msg = "Cannot concatenate empty objects: the list of images is empty."
        raise TypeError(msg)
    return items, not single or len(items) > 1


def image_files(path: str | os.PathLike) -> list[str]:
    """Files that an image consists of, by their names: its own first, and others that exist, such as a pair's header.

    None is opened. Where formats share a name, the files of all of them are listed.
    """
    others = set()
    for kind in nib.imageclasses.all_image_classes:
        if len(kind.files_types) > 1:
            with contextlib.suppress(nib.filebasedimages.ImageFileError):  # not of this kind, by its name
                files = kind.filespec_to_file_map(path).values()
                others |= {os.fspath(file.filename) for file in files if file.filename}
    return [os.fspath(path), *sorted(file for file in others - {os.fspath(path)} if os.path.exists(file))]  # noqa: PTH110


def image_hashes(path: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of each of `image_files`; errors as of `sha256`."""
    return {file: sha256(file) for file in image_files(path)}


def _not_an_image(item):
    if isinstance(item, (nib.Cifti2Image, nib.GiftiImage)):
        return _not_of_volumes(item, item.get_filename() or "in-memory image")
    msg = (
        "input should be a NiftiLike object or an iterable of NiftiLike object. "
        f"Got: {type(item).__name__}. Pass a path, a nibabel image or a list of these."
    )
    if dlpack.has_dlpack(item):
        msg += " An array needs its affine: pass the tuple (array, affine)."
    return TypeError(msg)


def _not_of_volumes(img, name):
    of_cifti = isinstance(img, nib.Cifti2Image)
    what = "holds grayordinates (CIFTI-2)" if of_cifti else f"is a {type(img).__name__}"
    msg = f"{name} {what}, expected an image of volumes (NIfTI, Analyze or MGH)."
    if of_cifti or isinstance(img, nib.GiftiImage):
        msg += " Only maskers of labels and of maps read grayordinates, one file at a time."
    return ImageError(msg)


def _resolve(item):
    """Resolve an image, a path or a pattern to a list of images and existing paths."""
    if is_pair(item):
        return [image_of(item)]
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


def opened(item: Any) -> Stored:
    """Open one of the images or paths from `resolved`, reading its header only; ImageError if it is broken."""
    if not isinstance(item, Path):
        read = stored if device_of_image(item) == "cpu" else OnDevice
        return read(item, item.get_filename() or "in-memory image")
    check_image_file(item)
    require_decoder(item)
    check_extensions(header if (header := _header_of(item)).is_file() else item)
    try:
        with np.errstate(all="ignore"):  # of infinite values in the header, which `Grid` refuses
            img = nib.load(item)
    except Exception as error:  # nibabel and the decoders raise many classes
        msg = f"{item} can't be read as an image: {type(error).__name__}: {error}. Expected NIfTI, Analyze or MGH."
        raise ImageError(msg) from error
    if not isinstance(img, nib.spatialimages.SpatialImage):
        raise _not_of_volumes(img, str(item))
    return stored(img, str(item))


def check_image_file(path: Path) -> None:
    """Raise ImageError for a folder, device or pipe, and for an empty file."""
    if path.is_dir():
        msg = f"{path} is a directory, expected an image file."
        raise ImageError(msg)
    for file in image_files(path):
        if reason := irregularity(file):
            msg = f"{file} {reason}: an image is read more than once. Save it in a file."
            raise ImageError(msg)
    if path.stat().st_size == 0:
        msg = f"{path} is empty (0 bytes), expected an image file. Copy or create the file again."
        raise ImageError(msg)


def _header_of(item):
    """The header's file of an image like run.img or run.img.gz; `item` itself for others."""
    return item.with_name(re.sub(r"\.img(\.\w+)?$", r".hdr\1", item.name))
