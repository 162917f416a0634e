"""GIFTI files of one surface: labels of its vertices, or a series, an array per time point or one for all.

They become what dense CIFTI-2 files are: values of brain models, here of one surface. A mesh isn't read.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import cifti2, gifti
from nibabel.gifti.parse_gifti_fast import GiftiImageParser

from gpumask.images.brain_models import BrainModels
from gpumask.images.cifti_headers import Header, check_label_keys, parse_header
from gpumask.images.errors import ImageError
from gpumask.images.opening import check_image_file
from gpumask.inputs import open_file
from gpumask.text_tables import listed

PATTERN = re.compile(r"\.gii(\.\w+)?$", re.IGNORECASE)
"""Matches names of GIFTI files, and of compressed ones, which are refused."""
_LABELS = "NIFTI_INTENT_LABEL"
_SERIES = tuple(f"NIFTI_INTENT_{name}" for name in ("TIME_SERIES", "NONE", "NORMAL", "ESTIMATE"))
_PRIMARY = "AnatomicalStructurePrimary"
_HEMISPHERE = re.compile(r"(?:^|_)hemi-([LR])(?=[_.])|(?:^|[._-])([lr])h(?=[._-])|\.([LR])(?=\.)")
_CORTEX = {"L": "CIFTI_STRUCTURE_CORTEX_LEFT", "R": "CIFTI_STRUCTURE_CORTEX_RIGHT"}
_AT_ONCE = 16  # arrays that are transposed together: a cache line of each vertex


def is_gifti(img: Any) -> bool:
    """Whether something is a GIFTI image, or has the name of one."""
    if isinstance(img, nib.GiftiImage):
        return True
    return isinstance(img, str | os.PathLike) and PATTERN.search(Path(img).name) is not None


def read_gifti(img: Any) -> tuple[Header, np.ndarray]:
    """Read labels or a series; nibabel's parser holds all arrays, and they are copied once.

    Parameters
    ----------
    img : str, path-like or nibabel.gifti.GiftiImage
        Values may be ASCII text or base64, compressed or not.

    Returns
    -------
    header : Header
        Of a CIFTI-2 file with the same content: one surface, with all of its vertices. Without a repetition time.
    values : ndarray, shape (n_vertices, n_arrays)

    Raises
    ------
    ImageError
        If the file is broken, compressed as a whole, refers to another file, or holds something else; its arrays have
        different numbers of vertices; labels have no table; or its hemisphere is unknown or contradictory.
    ValueError
        If it isn't found.
    """
    if isinstance(img, nib.GiftiImage):
        name = img.get_filename() or "in-memory image"
    else:
        name = str(Path(img).expanduser())
        img = _parse(Path(name))
    kind = _kind(img, name)
    values = _stacked([array.data for array in img.darrays], name)
    shape = _structure(img, name), *values.shape
    return replace(_labels_header(img, name, *shape) if kind == "labels" else _series_header(*shape), name=name), values


def _labels_header(img, name, structure, n_vertices, n_maps):
    names = [_meta(array).get("Name", "") for array in img.darrays]
    names = names if n_maps == len(names) else [""] * n_maps
    return _header(cifti2.LabelAxis(names, [_table(img, name)] * n_maps), structure, n_vertices)


@lru_cache(maxsize=8)
def _series_header(structure: str, n_vertices: int, n_times: int) -> Header:
    return _header(cifti2.SeriesAxis(0, 1, n_times), structure, n_vertices)


def _header(columns, structure, n_vertices):
    rows = cifti2.BrainModelAxis.from_surface(np.arange(n_vertices), n_vertices, structure)
    content = cifti2.Cifti2Header.from_axes((columns, rows)).to_xml()
    return replace(parse_header(content, "GIFTI"), t_r=None, is_gifti=True)


class _Parser(GiftiImageParser):
    """nibabel's parser, which would read files that a document names, from anywhere."""

    def StartElementHandler(self, name: str, attrs: dict[str, str]) -> None:  # noqa: N802 - nibabel's
        if name == "DataArray" and attrs.get("Encoding") == "ExternalFileBinary":
            msg = "values in another file (ExternalFileBinary)"
            raise ImageError(msg)
        super().StartElementHandler(name, attrs)

    def EndElementHandler(self, name: str) -> None:  # noqa: N802 - nibabel's, which only warns
        stated = getattr(self, "expected_numDA", None)
        if name == "GIFTI" and stated not in (None, self.img.numDA):
            msg = f"it has {self.img.numDA} arrays, but its NumberOfDataArrays is {stated}"
            raise ValueError(msg)
        super().EndElementHandler(name)


def _parse(path: Path) -> nib.GiftiImage:
    if not path.exists():
        msg = f"File not found: '{path}'"
        raise ValueError(msg)
    check_image_file(path)
    if path.suffix.lower() != ".gii":
        msg = f"{path} isn't a .gii file. Decompress it (gunzip): GIFTI values are usually compressed already."
        raise ImageError(msg)
    parser = _Parser(mmap=False)
    try:
        with open_file(path) as file:
            parser.parse(fptr=file)
        if parser.img is None:
            msg = "it has no element GIFTI"
            raise ValueError(msg)
    except ImageError as error:
        msg = f"{path} has {error}, expected them in the file (wb_command -gifti-convert GZIP_BASE64_BINARY)."
        raise ImageError(msg) from None
    except Exception as error:  # nibabel, expat, zlib and NumPy raise many classes
        msg = f"{path} can't be read as GIFTI: {type(error).__name__}: {error}. Copy or create the file again."
        raise ImageError(msg) from error
    return parser.img


def _kind(img, name):
    """Whether the arrays are "labels" or a "series"."""
    intents = sorted({nib.nifti1.intent_codes.niistring[array.intent] for array in img.darrays})
    if intents == [_LABELS]:
        return "labels"
    if intents and set(intents) <= set(_SERIES):
        return "series"
    has = f"has arrays of {listed(intents)}" if intents else "has no arrays"
    msg = f"{name} {has}, expected only {_LABELS} (.label.gii), or those of a series (.func.gii): {listed(_SERIES)}."
    raise ImageError(msg)


def _stacked(arrays: Sequence[Any], name: str) -> np.ndarray:
    """Values as an array of shape (n_vertices, n_arrays); of the given ones, some may be None."""
    if any(array is None for array in arrays):
        msg = f"{name} has an array without values. Copy or create the file again."
        raise ImageError(msg)
    shapes = [np.shape(array) for array in arrays]
    if len(arrays) == 1 and len(shapes[0]) == 2:
        values = np.ascontiguousarray(arrays[0])
    elif all(len(shape) == 1 for shape in shapes) and len(set(shapes)) == 1:
        values = np.empty((shapes[0][0], len(arrays)), np.result_type(*(np.asarray(array) for array in arrays)))
        for start in range(0, len(arrays), _AT_ONCE):
            values[:, start : start + _AT_ONCE] = np.stack(arrays[start : start + _AT_ONCE], axis=1)
    else:
        msg = (
            f"{name} has arrays of the shapes {listed(sorted(set(shapes)))}, expected a value per vertex in each, or "
            "one array of (vertices, time points). Create the file again."
        )
        raise ImageError(msg)
    if not values.size:
        msg = f"The image is empty. {name} has {values.shape[1]} time points or maps of {len(values)} vertices."
        raise ImageError(msg)
    return values


def _meta(part: Any) -> dict[str, str]:
    return dict(part.meta or {})


def _structure(img, name):
    """Name in CIFTI-2 of the structure that the metadata name, or else the file's name; both must agree."""
    stated = _only(name, (meta[_PRIMARY] for meta in map(_meta, [img, *img.darrays]) if meta.get(_PRIMARY)))
    found = {side.upper() for groups in _HEMISPHERE.findall(Path(name).name) for side in groups if side}
    by_name = _CORTEX[found.pop()] if len(found) == 1 else None
    if stated is None and by_name is None:
        msg = (
            f"{name} doesn't state its hemisphere: it has no {_PRIMARY}, nor hemi-L or hemi-R in its name. Set it: "
            "wb_command -set-structure FILE CORTEX_LEFT."
        )
        raise ImageError(msg)
    if stated is None:
        return by_name
    try:
        structure = cifti2.BrainModelAxis.to_cifti_brain_structure_name(stated)
    except (ValueError, IndexError) as error:
        msg = f"{name} has the {_PRIMARY} {stated!r}, expected one such as CortexLeft (wb_command -set-structure)."
        raise ImageError(msg) from error
    if by_name not in (None, structure):
        msg = (
            f"{name} contradicts itself: its {_PRIMARY} is {stated}, but by its name it is {by_name}. Correct one of "
            "them (wb_command -set-structure)."
        )
        raise ImageError(msg)
    return structure


def _only(name: str, structures: Iterable[str]) -> str | None:
    """The structure that all metadata name; None without any."""
    stated = sorted(set(structures))
    if len(stated) > 1:
        msg = f"{name} contradicts itself: its {_PRIMARY} is {' and '.join(stated)}. Create the file again."
        raise ImageError(msg)
    return stated[0] if stated else None


def _table(img, name):
    """Label table as nibabel's LabelAxis has it."""
    labels = img.labeltable.labels if img.labeltable else []
    if not labels:
        msg = f"{name} has no label table. Create the file again (wb_command -metric-label-import)."
        raise ImageError(msg)
    check_label_keys([label.key for label in labels], name)
    return {label.key: (label.label or "", _colour(label)) for label in labels}


def _colour(label):
    """Red, green, blue and alpha from 0 to 1; 1 where the table has none, and the nearest of others."""
    shares = (label.red, label.green, label.blue, label.alpha)
    return tuple(1.0 if share is None or share != share else min(max(float(share), 0.0), 1.0) for share in shares)


def surface_values(models: BrainModels, values: np.ndarray) -> gifti.GiftiImage:
    """Return values of all vertices of one surface as an image.

    Parameters
    ----------
    models : BrainModels
        One surface, with all of its vertices.
    values : ndarray, shape (n_vertices,) or (n_times, n_vertices)
        An array of the image for each time point. GIFTI has 32-bit floats and 32-bit or unsigned 8-bit integers only,
        so others become 32-bit floats.
    """
    dtype = values.dtype if values.dtype in (np.int32, np.uint8) else np.dtype(np.float32)
    intent = "NIFTI_INTENT_NONE" if values.ndim == 1 else "NIFTI_INTENT_TIME_SERIES"
    arrays = [gifti.GiftiDataArray(row.astype(dtype), intent, dtype) for row in np.atleast_2d(values)]
    return gifti.GiftiImage(darrays=arrays, meta=_of_structure(models))


def surface_labels(models: BrainModels, labels: np.ndarray, name: str, table: dict[int, Any]) -> gifti.GiftiImage:
    """Return labels of all vertices of one surface as an image.

    Parameters
    ----------
    models : BrainModels
        One surface, with all of its vertices.
    labels : ndarray of int, shape (n_vertices,)
    name : str
        Of the map.
    table : dict
        nibabel's `Cifti2Label` of each label.
    """
    rows = gifti.GiftiLabelTable()
    for key, label in table.items():
        rows.labels.append(gifti.GiftiLabel(key, label.red, label.green, label.blue, label.alpha))
        rows.labels[-1].label = label.label
    meta = gifti.GiftiMetaData({"Name": name})
    array = gifti.GiftiDataArray(labels.astype(np.int32), _LABELS, np.dtype(np.int32), meta=meta)
    return gifti.GiftiImage(darrays=[array], labeltable=rows, meta=_of_structure(models))


def _of_structure(models):
    words = models.surfaces[0].structure.removeprefix("CIFTI_STRUCTURE_").split("_")
    return gifti.GiftiMetaData({_PRIMARY: "".join(word.capitalize() for word in words)})
