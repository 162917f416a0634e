"""The XML of dense CIFTI-2 files: their kind, columns and brain models.

Brain models are parsed here: nibabel takes 0.2 s for 91,282 grayordinates. The rest is small, and nibabel's.
"""

import contextlib
import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from xml.etree import ElementTree

import nibabel as nib
from nibabel.cifti2.parse_cifti2 import Cifti2Extension

from gpumask.images.brain_models import BrainModels, parse_brain_models
from gpumask.images.errors import ImageError
from gpumask.text_tables import listed


class Kind(NamedTuple):
    """A kind of dense files: how messages call it, extensions, NIfTI intent, and type of its columns in the XML."""

    noun: str
    extension: str
    of_gifti: str
    intent: int
    columns: str

    @property
    def extensions(self) -> str:
        """Of CIFTI-2 and GIFTI."""
        return f"{self.extension}, {self.of_gifti}"


KINDS = {
    "series": Kind("dense series", ".dtseries.nii", ".func.gii", 3002, "CIFTI_INDEX_TYPE_SERIES"),
    "labels": Kind("dense labels", ".dlabel.nii", ".label.gii", 3007, "CIFTI_INDEX_TYPE_LABELS"),
    "scalars": Kind("dense scalars", ".dscalar.nii", ".func.gii", 3006, "CIFTI_INDEX_TYPE_SCALARS"),
}
XML_CODE = 32  # of the NIfTI extension that holds the XML
_N_PARSED = 8  # brain models that are kept, of about 2 MB each
_MODELS = "CIFTI_INDEX_TYPE_BRAIN_MODELS"


@dataclass(frozen=True, eq=False)
class Header:
    """A parsed header. Its brain models are shared by all files with equal ones: don't change them.

    Attributes
    ----------
    name : str
        Name of the file in messages.
    kind : str
        Key of `KINDS`.
    models : BrainModels
    columns : nibabel.cifti2.Cifti2MatrixIndicesMap
        Of time points or maps.
    names : list of str
        Of the maps; empty for a series.
    n_columns : int
        Time points or maps.
    t_r : float or None
        Seconds between time points; None if they aren't in seconds.
    is_gifti : bool
        Whether the file is GIFTI, of the same content.
    """

    name: str
    kind: str
    models: BrainModels
    columns: Any
    names: list[str]
    n_columns: int
    t_r: float | None
    _content: bytes
    is_gifti: bool = False

    @cached_property
    def xml(self) -> nib.Cifti2Header:
        """The whole header, for other files of these grayordinates; don't change it. Takes nibabel 0.2 s."""
        return _xml(self._content, self.name)


def check_label_keys(keys: Sequence[int], name: str) -> None:
    """Raise ImageError if the label table of a file, called `name` in the message, has several rows of a label."""
    if twice := sorted(key for key, n in Counter(keys).items() if n > 1):
        msg = f"The label table of {name} has several rows of a label: {listed(twice)}. Create the file again."
        raise ImageError(msg)


_parsed: dict[bytes, BrainModels] = {}
_lock = threading.Lock()
_START = re.compile(rb"<MatrixIndicesMap\b[^>]*CIFTI_INDEX_TYPE_BRAIN_MODELS[^>]*>")
_END = b"</MatrixIndicesMap>"


def header_of(image: nib.Cifti2Image, name: str) -> Header:
    """Return the header of an image in memory; parameters and errors as of `parse_header`."""
    with _parsing(name):
        content = image.header.to_xml()
    return parse_header(content, name)


def parse_header(content: bytes, name: str) -> Header:
    """Parse the XML of a file, and equal brain models only once.

    The headers of a study's runs differ in their metadata and time points, but seldom in their brain models.

    Parameters
    ----------
    content : bytes
    name : str
        Name of the file in messages.

    Raises
    ------
    ImageError
        If it can't be parsed, has brain models that are wrong, or isn't of a dense file.
    """
    with _parsing(name):
        text, rest = _split(content)
    xml = _xml(rest, name)
    with _parsing(name):
        columns, rows = (xml.matrix.get_index_map(dimension) for dimension in (0, 1))
    kind = next((key for key, known in KINDS.items() if known.columns == columns.indices_map_to_data_type), None)
    if kind is None or rows.indices_map_to_data_type != _MODELS:
        msg = (
            f"{name} maps {columns.indices_map_to_data_type} to {rows.indices_map_to_data_type}, expected series, "
            "labels or scalars of brain models (.dtseries.nii, .dlabel.nii, .dscalar.nii)."
        )
        raise ImageError(msg)
    with _parsing(name):
        models = _models(text, name)
        if kind == "series":
            step = float(columns.series_step) * 10.0 ** int(columns.series_exponent or 0)
            t_r = step if columns.series_unit == "SECOND" and 0 < step < float("inf") else None
            return Header(name, kind, models, columns, [], int(columns.number_of_series_points), t_r, content)
        names = [str(one.map_name or "") for one in columns.named_maps]
        for table in ElementTree.fromstring(rest).iter("LabelTable"):  # of a repeated label, nibabel keeps the last
            check_label_keys([int(label.get("Key", "")) for label in table.iter("Label")], name)
    return Header(name, kind, models, columns, names, len(names), None, content)


def _split(content: bytes) -> tuple[bytes, bytes]:
    """The map of brain models, and the rest, where it is left empty; if it isn't the only one, all is the rest."""
    found = list(_START.finditer(content))
    if len(found) == 1 and not _is_quoted(content[: found[0].start()]):
        (start, after), stop = found[0].span(), content.find(_END, found[0].end())
        if stop >= 0:
            return content[start : stop + len(_END)], content[:after] + content[stop:]
    root = ElementTree.fromstring(content)
    maps = [one for one in root.iter("MatrixIndicesMap") if one.get("IndicesMapToDataType") == _MODELS]
    if len(maps) != 1:
        return b"", content
    text = ElementTree.tostring(maps[0])
    for child in list(maps[0]):
        maps[0].remove(child)
    return text, ElementTree.tostring(root)


def _is_quoted(before):
    """Whether a CDATA section or a comment is open at the end of a text."""
    pairs = (b"<![CDATA[", b"]]>"), (b"<!--", b"-->")
    return any(before.rfind(start) > before.rfind(stop) for start, stop in pairs)


def _models(text: bytes, name: str) -> BrainModels:
    digest = hashlib.blake2b(text, digest_size=16).digest()
    with _lock:  # waiting threads would parse the same
        if (models := _parsed.pop(digest, None)) is None:
            models = parse_brain_models(ElementTree.fromstring(text), name)
        while len(_parsed) >= _N_PARSED:
            _parsed.pop(next(iter(_parsed)))
        _parsed[digest] = models  # the latest used is the last to go
    return models


def _xml(content: bytes, name: str) -> nib.Cifti2Header:
    with _parsing(name):
        return Cifti2Extension.from_bytes(content).get_object()


@contextlib.contextmanager
def _parsing(name: str) -> Iterator[None]:
    """Convert errors in the block to an ImageError: nibabel and expat raise many classes, and leave attributes None."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        msg = (
            f"The CIFTI-2 header of {name} can't be parsed: {type(error).__name__}: {error}. Copy or create the file "
            "again."
        )
        raise ImageError(msg) from error
