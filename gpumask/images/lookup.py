"""Look-up tables: the names of an atlas's regions."""

import contextlib
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumask.process import warn

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "unknown"


def read_lookup_table(path: str | Path) -> dict[str, list]:
    """Read the columns of a look-up table from a file.

    Parameters
    ----------
    path : str or path-like
        Text separated by tabs, commas, semicolons, bars or blanks. The first line names the columns: "index", "name"
        (or "label") and any others.

    Returns
    -------
    dict of list
        Columns of numbers as int, or as float if not all are integers; other columns and names as str. Empty cells are
        NaN, except names.

    Raises
    ------
    ValueError
        If the file doesn't exist, isn't a table, lacks one of the two columns, or repeats an index.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"`lut` is {path}, but no such file exists. Expected a table with the columns 'index' and 'name'."
        raise ValueError(msg)
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    separator = next((s for s in "\t,;|" if lines and s in lines[0]), None)
    rows = [line.split() for line in lines] if separator is None else list(csv.reader(lines, delimiter=separator))
    names = [name.strip() for name in rows[0]] if rows else []
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            msg = f"{path}: row {number} has {len(row)} cells, expected {len(names)}, as in the header."
            raise ValueError(msg)
    columns = dict(zip(names, zip(*rows[1:], strict=True) if len(rows) > 1 else ([] for _ in names), strict=True))
    return checked_lookup_table({n: list(c) if n in _NAMES else _numbers(c) for n, c in columns.items()}, str(path))


_NAMES = ("name", "label")


def _numbers(cells):
    with contextlib.suppress(ValueError):
        return [int(cell) for cell in cells]
    cells = [cell if cell.strip() else np.nan for cell in cells]
    with contextlib.suppress(ValueError):
        return [float(cell) for cell in cells]
    return cells


def checked_lookup_table(columns: Any, name: str) -> Any:
    """Return the columns, with "label" renamed to "name"; ValueError if one is missing or an index repeats.

    Parameters
    ----------
    columns : dict of list, or DataFrame
    name : str
        Name of the table in messages.
    """
    if "name" not in columns and "label" in columns:
        renamed = {"label": "name"}
        if isinstance(columns, dict):
            columns = {renamed.get(column, column): cells for column, cells in columns.items()}
        else:
            columns = columns.rename(columns=renamed)
    lacking = [column for column in ("index", "name") if column not in columns]
    if lacking:
        msg = f"{name} must have the columns 'index' and 'name', but lacks {lacking}; it has {list(columns)}."
        raise ValueError(msg)
    if twice := [label for label, count in Counter(list(columns["index"])).items() if count > 1]:
        msg = f"{name} has several rows for {twice}. Each region's index must occur once."
        raise ValueError(msg)
    return columns


def region_names(ids: np.ndarray, lut: dict[str, list] | None) -> list[str]:
    """Return the names of regions: from the look-up table, "unknown" if missing there; without a table, their labels.

    Parameters
    ----------
    ids : ndarray, shape (n_regions,)
    lut : dict of list, or None
        See `read_lookup_table`.
    """
    if lut is None:
        return [str(number) for number in ids]  # float32 0.1 is "0.1"; converted to a Python float it isn't
    names = dict(zip(lut["index"], lut["name"], strict=True))
    return [str(names.get(label, UNKNOWN)) for label in ids.tolist()]


def lookup_table(
    values: np.ndarray,
    background: float,
    *,
    names: Sequence[str] | None = None,
    lut: "pd.DataFrame | str | Path | None" = None,
) -> "pd.DataFrame":
    """Return the table of an atlas's regions.

    Parameters
    ----------
    values : ndarray
        Labels that occur in the image, sorted, with or without the background.
    background : number
        Label to ignore; its row is named "Background".
    names : list of str, optional
        Names of the regions in ascending order of their labels, with or without the background's.
    lut : DataFrame or path, optional
        With the columns "index" and "name" (or "label"); a file as for `read_lookup_table`.

    Returns
    -------
    pandas.DataFrame
        Columns "index", "name" and the others of `lut`; one row for each of `values`, in ascending order. Regions
        without a name are called "unknown", or by their label if neither `names` nor `lut` is given.

    Raises
    ------
    ValueError
        If `lut` doesn't exist, isn't a table, lacks one of the columns, or repeats an index.
    TypeError
        If `lut` has another type.
    """
    import pandas as pd

    labels = values.tolist()
    if lut is not None:
        table = pd.DataFrame(_checked(lut))
    else:
        if names is None:
            named = region_names(values, None)
        else:
            named = ["Background" if name == "background" else name for name in names]
            if background in labels and "Background" not in named:
                named.insert(labels.index(background), "Background")
        if len(named) < len(labels):
            warn("Too many indices for the names. Padding 'names' with 'unknown'.")
            named += [UNKNOWN] * (len(labels) - len(named))
        if len(named) > len(labels):
            warn("Too many names for the indices. Dropping excess names values.")
            named = named[: len(labels)]
        table = pd.DataFrame({"index": labels, "name": named})
    table = table[table["index"].isin(labels)].copy()
    missing = sorted(set(labels) - set(table["index"]))
    if missing:
        rows = pd.DataFrame({"index": missing, "name": [UNKNOWN] * len(missing)})
        if "color" in table.columns:
            rows["color"] = ["FFFFFF" if label == background else np.nan for label in missing]
        table = pd.concat([table, rows], ignore_index=True)
    table.loc[table["index"] == background, "name"] = "Background"
    return table.sort_values("index", kind="stable").reset_index(drop=True)


def _checked(lut):
    if hasattr(lut, "columns"):
        return checked_lookup_table(lut, "`lut`").copy()
    if not isinstance(lut, str | Path):
        msg = f"`lut` must be a DataFrame, a path or None. Got: {type(lut).__name__}"
        raise TypeError(msg)
    return read_lookup_table(lut)
