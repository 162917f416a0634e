"""Checks of the parameters that maskers have beyond `gpumask.extraction.Settings`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from gpumask.choices import check_type

_INTEGER = int | np.integer
_TYPES = {
    "background_label": float | np.floating | int | np.integer,
    "memory": joblib.Memory | str | Path | None,
    "memory_level": _INTEGER,
    "verbose": bool | int | np.integer,
    "n_jobs": _INTEGER,
}


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise TypeError for the first of a masker's own parameters that has a wrong type."""
    for name, value in parameters.items():
        if name in _TYPES:
            check_type(name, value, _TYPES[name])


def checked_names(labels: Any, lut: Any) -> list[str] | None:
    """Return the parameter `labels` as a list of names, or None; TypeError or ValueError if it is invalid."""
    if not labels:
        return None
    if lut is not None:
        msg = "Pass either labels or a lookup table (lut) to the masker, but not both."
        raise ValueError(msg)
    if not isinstance(labels, list):
        msg = f"'labels' must be a list. Got: {type(labels).__name__}"
        raise TypeError(msg)
    if not all(isinstance(name, str) for name in labels):
        types = {type(name).__name__ for name in labels}
        msg = f"All elements of 'labels' must be a string.\nGot a list of {types}"
        raise TypeError(msg)
    return labels
