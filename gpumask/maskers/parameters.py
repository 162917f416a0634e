"""Checks of the parameters that maskers have beyond `gpumask.settings.Settings`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from gpumask.choices import OUTPUTS, check_choice, check_type

_INTEGER = int | np.integer
_TYPES = {
    "background_label": float | np.floating | int | np.integer,
    "radius": float | np.floating | int | np.integer | None,
    "allow_overlap": bool,
    "memory": joblib.Memory | str | Path | None,
    "memory_level": _INTEGER,
    "verbose": bool | int | np.integer,
    "n_jobs": _INTEGER,
    "keep_masked_maps": bool,
    "target_affine": np.ndarray | list | tuple | None,
    "target_shape": tuple | list | np.ndarray | None,
    "mask_args": dict | None,
}


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for the first of a masker's own parameters that has a wrong type or value."""
    if "output" in parameters:
        check_choice("output", parameters["output"], OUTPUTS)
    for name, value in parameters.items():
        if name not in _TYPES:
            continue
        try:
            check_type(name, value, _TYPES[name])
        except TypeError as error:
            if name != "background_label" or not _are_names(value):
                raise
            # nilearn's second position has names, its third a table.
            msg = f"{error}\nIt is the second positional argument. Pass names as labels=names, a table as lut=table."
            raise TypeError(msg) from None


def _are_names(value):
    """Whether a value is a look-up table, or holds texts."""
    if hasattr(value, "columns"):
        return True
    return hasattr(value, "__iter__") and not isinstance(value, str) and any(isinstance(name, str) for name in value)


def checked_names(labels: Any, lut: Any) -> list[str] | None:
    """Return the parameter `labels` as a list of names, or None; TypeError or ValueError if it is invalid."""
    if hasattr(labels, "ndim") or hasattr(labels, "to_list"):  # arrays; Series of polars
        if getattr(labels, "ndim", 1) != 1:
            msg = f"'labels' must be a list. Got: {type(labels).__name__} of {labels.ndim} dimensions"
            raise TypeError(msg)
        labels = list(labels)
    if labels is None or (hasattr(labels, "__len__") and len(labels) == 0):
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
    return [str(name) for name in labels]
