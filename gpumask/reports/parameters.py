"""Parameters of a masker in words: names of files, and shapes instead of addresses in memory."""

import os
import re
from collections.abc import Mapping
from typing import Any

from nibabel.filebasedimages import FileBasedImage

_LONGEST = 200  # characters


def parameter_words(value: Any) -> str:
    """A parameter's value in a line.

    Images are the name of their file, or "in-memory image of shape (x, y, z)"; arrays and tables their type and shape.
    What holds several values is shown with each of them so, in up to 200 characters.
    """
    words = _words(value)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."


def _words(value):
    if isinstance(value, FileBasedImage):
        shape = getattr(value, "shape", None)
        return value.get_filename() or (f"in-memory image of shape {shape}" if shape else "in-memory GIFTI image")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_words(one)}' for key, one in value.items())}}}"
    if type(value) in (list, tuple):
        several = ", ".join(map(_words, value[:_LONGEST]))  # more can't be shown
        return f"[{several}]" if isinstance(value, list) else f"({several}{',' * (len(value) == 1)})"
    if getattr(value, "shape", ()):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    return re.sub(r"^<(?:function )?(.+?)(?: object)? at 0x[0-9a-f]+>$", r"\1", repr(value))
