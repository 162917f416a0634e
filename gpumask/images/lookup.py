"""Look-up tables: the names of an atlas's regions."""

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumask.inputs import check_file, shortened
from gpumask.process import warn
from gpumask.text_tables import listed, read_text_table

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "unknown"


def read_lookup_table(path: str | Path) -> dict[str, list]:
    """Read the columns of a look-up table from a file.

    Parameters
    ----------
    path : str or path-like
        Text separated by tabs, commas, semicolons, bars or blanks; see `gpumask.text_tables`. The first line names the
        columns: "index", "name" (or "label") and any others. Without such a line, the first two columns are index and
        name, and others are ignored, as in FreeSurfer's tables ("4 Left-Lateral-Ventricle 120 18 134 0").

    Returns
    -------
    dict of list
        Columns of numbers as int, or as float if not all are integers; other columns and names as str. Empty cells are
        NaN. Rows whose name is empty or "n/a" are skipped.

    Raises
    ------
    ValueError
        If the file doesn't exist, isn't a table, lacks one of the two columns, has an index that isn't a number, or
        repeats an index; the message names the file.
    """
    path = Path(path)
    if not path.exists():
        msg = f"`lut` is {path}, but no such file exists. Expected a table with the columns 'index' and 'name'."
        raise ValueError(msg)
    check_file(path)  # it is read several times, so a pipe won't do
    table = read_text_table(path, _EXPECTED, _has_names, keep_empty_rows=False)
    if table.names is None:
        columns = _nameless_columns(table)
    else:
        if twice := [name for name, count in Counter(table.names).items() if count > 1]:
            msg = f"{path} has several columns called {listed(twice)}. Expected {_EXPECTED}."
            raise ValueError(msg)
        columns = checked_columns(dict(zip(table.names, table.columns, strict=True)), str(path))
    for cell, line in zip(columns["index"], table.lines, strict=True):
        if not _is_number(cell):
            expected = "expected a number: a region's label in the image"
            msg = f"{path}, line {line}: the index is {shortened(repr(cell))}, {expected}."
            raise ValueError(msg)
    named = [name not in _NAMELESS for name in columns["name"]]
    columns = {name: list(compress(cells, named)) for name, cells in columns.items()}
    columns = {name: cells if name in _NAMES else _numbers(cells) for name, cells in columns.items()}
    _check_unique(columns["index"], str(path))
    return columns


_NAMELESS = ("", "n/a")
_EXPECTED = "a look-up table with the columns 'index' and 'name'"
_NAMES = ("name", "label")


def _has_names(first_row):
    return "index" in first_row or not _is_number(first_row[0])


def _nameless_columns(table):
    columns = table.columns
    if len(columns) < 2 or any(map(_is_number, columns[1])):
        row = next((row for row in table.rows if len(row) < 2 or _is_number(row[1])), table.rows[0])
        msg = (
            f"{table.path}, line {table.lines[table.rows.index(row)]}: has no name after the index: {listed(row)}. "
            f"Expected {_EXPECTED}; without a row of names, index and name are the first two."
        )
        raise ValueError(msg)
    return {"index": columns[0], "name": columns[1]}


def _is_number(cell):
    with contextlib.suppress(ValueError):
        return math.isfinite(float(cell)) and "_" not in cell  # Python's 1_000
    return False


def _numbers(cells):
    with contextlib.suppress(ValueError):
        return [int(cell) for cell in cells]
    numbers = [cell if cell.strip() else np.nan for cell in cells]
    with contextlib.suppress(ValueError):
        return [float(cell) for cell in numbers]
    return numbers


def checked_lookup_table(table: "pd.DataFrame") -> "pd.DataFrame":
    """A copy with "name" for "label", names as text and numbers for an index of text.

    Rows without a name are skipped. pandas makes such rows of the name "NA" too, when it reads a table.

    Raises
    ------
    ValueError
        As `read_lookup_table`.
    """
    table = checked_columns(table, "`lut`").copy()
    table = table[(table["name"].notna() & ~table["name"].isin(_NAMELESS)).to_numpy()]
    table["name"] = np.array([str(name) for name in table["name"]], dtype=object)
    index = table["index"].to_list()
    if any(isinstance(label, str) for label in index):
        cells = [str(label).strip() for label in index]
        if all(map(_is_number, cells)):
            table["index"] = _numbers(cells)
    _check_unique(table["index"], "`lut`")
    return table


def checked_columns(columns: Any, name: str) -> Any:
    """The columns (a dict or a DataFrame) with "name" for "label"; ValueError if one is missing."""
    if "name" not in columns and "label" in columns:
        renamed = {"label": "name"}
        if isinstance(columns, dict):
            columns = {renamed.get(column, column): cells for column, cells in columns.items()}
        else:
            columns = columns.rename(columns=renamed)
    lacking = [column for column in ("index", "name") if column not in columns]
    if lacking:
        has = shortened(repr(list(columns)), 200)
        msg = f"{name} must have the columns 'index' and 'name', but lacks {lacking}; it has {has}."
        raise ValueError(msg)
    return columns


def _check_unique(index, name):
    if twice := [label for label, count in Counter(list(index)).items() if count > 1]:
        msg = f"{name} has several rows for {shortened(repr(twice), 200)}. Each region's index must occur once."
        raise ValueError(msg)


# Names of the background in FreeSurfer's tables, in nilearn's and in BIDS's, in lower case.
_NO_REGION = {"background", "unknown", "???", "none", "air", "clear label"}


@dataclass(frozen=True)
class Disagreement:
    """Labels without a row in the look-up table, and rows without a label.

    Attributes
    ----------
    nothing_matches : bool
        Whether no region has a row.
    message : str
    """

    nothing_matches: bool
    message: str


def disagreement(
    values: np.ndarray, background: float, columns: Any, *, image: str = "the label image", table: str = "`lut`"
) -> Disagreement | None:
    """Compare the labels of an image with the rows of a look-up table; None if each has a partner.

    Parameters
    ----------
    values : ndarray
        Labels that occur in the image. The background needs no row, and its row no label.
    background : number
    columns : dict of list, or DataFrame
        See `read_lookup_table`.
    image, table : str
        What the message calls them.
    """
    names = dict(zip(columns["index"], columns["name"], strict=True))
    labels = [plain_label(label) for label in values.tolist() if label != background]
    nameless = [label for label in labels if label not in names]
    others = set(labels)
    unused = [plain_label(label) for label in names if label not in others and label != background]
    if not nameless and not unused:
        return None
    rows = listed(f"{label} ({names[label]})" for label in unused)
    if not nameless:
        return Disagreement(False, f"{table} has {_counted(unused, 'row')} without a label in {image}: {rows}.")
    nothing = len(nameless) == len(labels)
    lead = f"{table} matches no label of {image}" if nothing else f"{table} doesn't fit {image}"
    what = f"{_counted(nameless, 'label')} without a row (called {UNKNOWN!r}): {listed(nameless)}"
    if unused:
        what = f"{what}; {_counted(unused, 'row')} without a label: {rows}"
    hint = "Give the table of this atlas."
    shifted = str(names.get(background, UNKNOWN)).lower() not in _NO_REGION
    if shifted and all(label - 1 in names for label in labels):
        hint = f"The index seems to start at {background}, the labels at {labels[0]}: if so, add 1 to the index."
    return Disagreement(nothing, f"{lead}: {what}. {hint}")


def _counted(items, what):
    return f"{len(items)} {what}{'s' * (len(items) != 1)}"


def region_names(ids: np.ndarray, lut: dict[str, list] | None) -> list[str]:
    """Return the names of regions: from the look-up table, "unknown" if missing there; without a table, their labels.

    Whole labels of an image of floats are "96", and not "96.0" as the maskers have it to equal nilearn's.

    Parameters
    ----------
    ids : ndarray, shape (n_regions,)
    lut : dict of list, or None
        See `read_lookup_table`.
    """
    if lut is None:
        return [str(plain_label(label)) for label in ids]  # float32 0.1 is "0.1"; converted to a Python float it isn't
    names = dict(zip(lut["index"], lut["name"], strict=True))
    return [str(names.get(label, UNKNOWN)) for label in ids.tolist()]


def plain_label(label: Any) -> Any:
    """A label as it is shown and written: 96 for 96.0, from an image of floats; others as they are."""
    return int(label) if isinstance(label, float | np.floating) and float(label).is_integer() else label


def distinct_names(names: Sequence[str], ids: Sequence[float], reserved: Sequence[str] = ()) -> list[str]:
    """Return the names with the label where several regions share one, or where it is reserved: "Left [3]".

    Parameters
    ----------
    names : sequence of str
    ids : sequence of numbers
        Labels of the regions, each once.
    reserved : sequence of str
    """
    labels = list(map(plain_label, ids))
    distinct, counts = list(names), Counter([*reserved, *names])
    while any(counts[name] > 1 for name in distinct):  # "A [1]" may be another region's name
        distinct = [f"{n} [{label}]" if counts[n] > 1 else n for n, label in zip(distinct, labels, strict=True)]
        counts = Counter([*reserved, *distinct])
    return distinct


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
        table = loaded_lookup_table(lut)
    else:
        if names is None:
            named = [str(label) for label in values]  # as nilearn's: "96.0" in an image of floats
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
    return rows_of(table, values, background)


def rows_of(table: "pd.DataFrame", values: np.ndarray, background: float) -> "pd.DataFrame":
    """The row of each label in a checked table, as `lookup_table` returns them; regions without one are "unknown"."""
    import pandas as pd

    labels = values.tolist()
    table = table[table["index"].isin(labels)].copy()
    missing = sorted(set(labels) - set(table["index"]))
    if missing:
        rows = pd.DataFrame({"index": missing, "name": [UNKNOWN] * len(missing)})
        if "color" in table.columns:
            rows["color"] = ["FFFFFF" if label == background else np.nan for label in missing]
        table = pd.concat([table, rows], ignore_index=True)
    table.loc[table["index"] == background, "name"] = "Background"
    return table.sort_values("index", kind="stable").reset_index(drop=True)


def loaded_lookup_table(lut: "pd.DataFrame | str | Path") -> "pd.DataFrame":
    """A look-up table that `lookup_table` accepts, checked; TypeError or ValueError for others."""
    import pandas as pd

    if hasattr(lut, "columns"):
        return checked_lookup_table(lut)
    if not isinstance(lut, str | Path):
        msg = f"`lut` must be a DataFrame, a path or None. Got: {type(lut).__name__}"
        raise TypeError(msg)
    return pd.DataFrame(read_lookup_table(lut))
