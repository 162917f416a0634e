"""Dense CIFTI-2 files: a value of each grayordinate for each time point, map of labels or map of scalars; and GIFTI.

The values of one grayordinate are contiguous in the file, so the reading goes over grayordinates: `DenseImage.rows`.
"""

import hashlib
import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from gpumask.images.cifti_headers import KINDS, XML_CODE, Header, header_of, parse_header
from gpumask.images.decoding import check_extensions, check_size
from gpumask.images.errors import ImageError
from gpumask.images.gifti import is_gifti, read_gifti
from gpumask.images.opening import check_image_file
from gpumask.images.readers import mapped_rows
from gpumask.inputs import irregularity, open_file

_NAMED_SO = re.compile(r"\.d(tseries|label|scalar)\.nii(\.\w+)?$", re.IGNORECASE)
_HEADER_BYTES = 540
_NIFTI_1_BYTES = 348
_MAGIC = b"n+2\0\r\n\x1a\n", b"n+2\0\0\0\0\0"  # the second half, if set, shows a transfer as text
_UNKNOWN = 3000  # intent of files that nibabel writes unless it is told one: the XML decides
_OF_CIFTI = range(3000, 3100)  # NIfTI intents
_INTENTS = nib.nifti1.intent_codes.value_set("code")
_BLOCK = 2**21  # values


class DenseImage:
    """An opened dense file; created by `open_dense`. The counterpart of `Volumes`.

    Attributes
    ----------
    header : Header
    grid : BrainModels
    n_volumes : int
        Time points or maps.
    is_3d : bool
        False.
    dtype : numpy.dtype
        Dtype of the stored values, in their byte order.
    slope, inter : float
        Values are ``slope * stored + inter``.
    name : str
    device : str
        Where the values lie: "cpu".
    """

    is_3d = False
    device = "cpu"

    def __init__(
        self,
        name: str,
        header: Header,
        values: "_OnDisk | np.ndarray",
        dtype: np.dtype,
        slope: float = 1.0,
        inter: float = 0.0,
    ) -> None:
        self.name, self.header, self._values = name, header, values
        self.dtype, self.slope, self.inter = dtype, slope, inter
        self.grid = replace(header.models, name=name)
        self.n_volumes, self.t_r = header.n_columns, header.t_r
        if dtype.kind not in "biuf":
            msg = f"{name} holds values of type {dtype}, expected integers or real floats."
            raise ImageError(msg)

    @property
    def loaded_dtype(self) -> np.dtype:
        """Dtype of the values as nibabel loads them: float64 if the header scales, else `dtype`."""
        scaled = (self.slope, self.inter) != (1.0, 0.0)
        return np.result_type(self.dtype, np.float64) if scaled else self.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the stored values of some grayordinates.

        Parameters
        ----------
        start, stop : int
            First grayordinate, and the one after the last.

        Returns
        -------
        ndarray of `dtype`, shape (stop - start, n_volumes)
            View of the file, which is mapped, or of the user's array. Not to be written to.

        Raises
        ------
        ImageError
            If the file has been truncated since it was opened.
        """
        if isinstance(self._values, np.ndarray):
            return self._values[start:stop]
        with open_file(self._values.path) as file:
            first = self._values.offset + start * self.n_volumes * self.dtype.itemsize
            return mapped_rows(file, self._values.path, self.dtype, first, (stop - start, self.n_volumes))

    def blocks(self) -> list[slice]:
        """Parts of the grayordinates of about two million values each, in order."""
        n, step = self.grid.n_grayordinates, max(_BLOCK // self.n_volumes, 1)
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]

    def scaled(self, part: slice) -> np.ndarray:
        """Return the values of some grayordinates: ndarray of float64, shape (n, n_volumes)."""
        return self.rows(part.start, part.stop).astype(np.float64) * self.slope + self.inter

    def column(self, number: int) -> np.ndarray:
        """Return one map, scaled: ndarray of float64, shape (n_grayordinates,)."""
        stored = self.rows(0, self.grid.n_grayordinates)[:, number]
        return stored.astype(np.float64) * self.slope + self.inter

    def identity(self) -> tuple[Hashable, ...]:
        """Return a hashable value that identifies values and grayordinates in a cache key; see `Volumes.identity`."""
        if isinstance(self._values, np.ndarray):
            data: tuple[Hashable, ...] = (hashlib.blake2b(self._values.tobytes(), digest_size=16).hexdigest(),)
        else:
            file = Path(self._values.path).resolve()
            data = str(file), file.stat().st_size, file.stat().st_mtime_ns
        return self.grid.key, self.n_volumes, self.dtype.str, self.slope, self.inter, *data


@dataclass(frozen=True)
class _OnDisk:
    path: str
    offset: int


def is_dense(img: Any) -> bool:
    """Whether something is a dense CIFTI-2 or GIFTI image, or the path of one, by its NIfTI intent or its name."""
    if isinstance(img, (DenseImage, nib.Cifti2Image)) or is_gifti(img):
        return True
    if not isinstance(img, (str, os.PathLike)):
        return False
    path = Path(img).expanduser()
    if _NAMED_SO.search(path.name):
        return True
    try:
        if path.suffix.lower() != ".nii" or not path.exists() or irregularity(path):
            return False
        with open_file(path) as file:
            block = file.read(_HEADER_BYTES) or b""
    except OSError:  # whoever opens the image reports it
        return False
    if len(block) < _HEADER_BYTES or _HEADER_BYTES not in (int.from_bytes(block[:4], o) for o in ("little", "big")):
        return False
    return int(nib.Nifti2Header(block, check=False)["intent_code"]) in _OF_CIFTI


def open_dense(img: Any, kinds: Sequence[str] = ("series",)) -> DenseImage:
    """Open a dense CIFTI-2 file, reading its headers only; or a GIFTI file, which is read as a whole.

    Parameters
    ----------
    img : str, path-like, nibabel.cifti2.Cifti2Image, nibabel.gifti.GiftiImage or DenseImage
        Files aren't compressed as a whole.
    kinds : sequence of str
        Keys of `KINDS` that are expected.

    Raises
    ------
    ImageError
        If the file is broken, compressed or of another kind, or its XML contradicts its matrix.
    ValueError
        If it isn't found.
    """
    if isinstance(img, DenseImage):
        image = img
    elif is_gifti(img):
        header, values = read_gifti(img)
        image = DenseImage(header.name, header, values, values.dtype)
    elif not isinstance(img, nib.Cifti2Image):
        image = _open(Path(img).expanduser())
    elif nib.is_proxy(img.dataobj) and (path := img.get_filename()):
        image = _open(Path(path))
    else:
        name = img.get_filename() or "in-memory image"
        values = np.asarray(img.dataobj)
        image = DenseImage(name, _fitting(header_of(img, name), values.shape, name), values.T, values.dtype)
    if image.header.kind not in kinds:
        expected = " or ".join(f"{KINDS[key].noun} ({KINDS[key].extensions})" for key in kinds)
        found = KINDS[image.header.kind]
        msg = f"{image.name} holds {found.noun} ({found.extensions}), expected {expected}."
        raise ImageError(msg)
    return image


def _open(path: Path) -> DenseImage:
    name = str(path)
    if not path.exists():
        patterns = ". Patterns stand for lists of volumes: pass the path of one file." if has_magic(name) else ""
        msg = f"File not found: '{name}'{patterns}"
        raise ValueError(msg)
    check_image_file(path)
    if not name.lower().endswith(".nii"):
        msg = (
            f"{name} isn't a .nii file: CIFTI-2 files aren't compressed, because their grayordinates are read where "
            "they lie. Decompress it (gunzip), or save it with the extension .nii."
        )
        raise ImageError(msg)
    _check_start(path)
    check_extensions(path)
    try:
        with open_file(path) as file:
            nifti = nib.Nifti2Header.from_fileobj(file, check=False)
            dtype = nifti.get_data_dtype()
            slope, inter = nifti.get_slope_inter()
            offset = int(nifti.get_data_offset())
    except Exception as error:  # nibabel raises many classes
        msg = f"{name} can't be read as CIFTI-2: {type(error).__name__}: {error}. Copy or create the file again."
        raise ImageError(msg) from error
    intent = int(nifti["intent_code"])
    kind = next((known for known in KINDS.values() if known.intent == intent), None)
    if kind is None and intent != _UNKNOWN:
        known = ", ".join(f"{kind.intent} ({kind.extension})" for kind in KINDS.values())
        found = f"{intent} ({nib.nifti1.intent_codes.niistring[intent]})" if intent in _INTENTS else intent
        msg = f"{name} has the NIfTI intent {found}, expected one of dense CIFTI-2 files: {known}. Pass a dense file."
        raise ImageError(msg)
    extension = next((one for one in nifti.extensions if one.get_code() == XML_CODE), None)
    if extension is None:
        msg = f"{name} has no CIFTI-2 header (NIfTI extension {XML_CODE}). Copy or create the file again."
        raise ImageError(msg)
    header = parse_header(extension.content, name)
    if kind not in (None, KINDS[header.kind]):
        msg = (
            f"{name} contradicts itself: by its NIfTI intent ({intent}) it holds {kind.noun}, by its XML "
            f"{KINDS[header.kind].noun}. Create the file again."
        )
        raise ImageError(msg)
    shape = tuple(int(n) for n in nifti.get_data_shape())
    if len(shape) != 6 or shape[:4] != (1, 1, 1, 1):
        msg = f"{name} has the shape {shape}, expected (1, 1, 1, 1, {KINDS[header.kind].noun}, grayordinates)."
        raise ImageError(msg)
    _fitting(header, shape[4:], name)
    check_size(path, offset + shape[4] * shape[5] * dtype.itemsize)
    factors = (1.0 if slope is None else float(slope)), (0.0 if inter is None else float(inter))
    return DenseImage(name, header, _OnDisk(name, offset), dtype, *factors)


def _check_start(path):
    """Raise ImageError unless a NIfTI-2 header starts the file; nibabel would read the size of extensions anywhere."""
    with open_file(path) as file:
        start = file.read(12) or b""
    size, magic = start[:4], start[4:]
    sizes = [int.from_bytes(size, order) for order in ("little", "big")]
    if _NIFTI_1_BYTES in sizes:
        msg = f"{path} has volumes by its header (NIfTI-1), but its name is that of CIFTI-2. Pass a dense file."
        raise ImageError(msg)
    if _HEADER_BYTES not in sizes or magic not in _MAGIC:
        msg = f"{path} doesn't start with a NIfTI-2 header, expected a CIFTI-2 file. Copy or create the file again."
        raise ImageError(msg)


def _fitting(header: Header, shape: tuple[int, ...], name: str) -> Header:
    """Return the header; ImageError unless its XML describes a matrix of this shape."""
    expected = header.n_columns, header.models.n_grayordinates
    if shape != expected:
        msg = (
            f"{name} contradicts itself: its matrix has the shape {shape}, its XML describes {expected} (time "
            "points or maps, grayordinates). Create the file again."
        )
        raise ImageError(msg)
    if min(expected) < 1:
        msg = f"The image is empty. {name} has {expected[0]} time points or maps of {expected[1]} grayordinates."
        raise ImageError(msg)
    return header
