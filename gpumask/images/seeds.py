"""Tables of seeds: coordinates in mm, names and radii."""

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpumask.text_tables import is_number, listed, read_text_table

_EXPECTED = "a table of seeds with the columns 'x', 'y' and 'z' (mm), and optionally 'name' and 'radius' (mm)"
_AXES = ("x", "y", "z")
_MISSING = ("", "n/a")


class Seeds(NamedTuple):
    """Seeds of a table, in its order.

    Attributes
    ----------
    names : list of str
        Without a column of names: "seed0", "seed1", ...
    coordinates : ndarray of float64, shape (n_seeds, 3)
        In mm.
    radii : list of (float or None)
        In mm. None where the table has none.
    """

    names: list[str]
    coordinates: np.ndarray
    radii: list[float | None]


def load_seeds(path: str | Path) -> Seeds:
    """Read a table of seeds.

    Parameters
    ----------
    path : str or path-like
        Text separated by tabs, commas, semicolons, bars or blanks; see `gpumask.text_tables`. The first line names the
        columns: "x", "y", "z", and optionally "name" (or "label") and "radius"; case is ignored, and so are other
        columns. Empty cells and "n/a" in "radius" are allowed.

    Returns
    -------
    Seeds

    Raises
    ------
    ValueError
        If the file doesn't exist or isn't a table, a column is missing or occurs twice, a coordinate or radius isn't a
        number, or a name is missing or repeated; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"No such file: {path}. Expected {_EXPECTED}."
        raise ValueError(msg)
    table = read_text_table(path, _EXPECTED, lambda first: not all(map(is_number, first)), keep_empty_rows=False)
    if table.names is None:
        msg = f"{path}, line {table.lines[0]}: has numbers instead of column names. Expected {_EXPECTED}."
        raise ValueError(msg)
    names = [name.lower() for name in table.names]
    names = ["name" if name == "label" and "name" not in names else name for name in names]
    columns = dict(zip(names, table.columns, strict=True))
    if lacking := [axis for axis in _AXES if axis not in columns]:
        msg = f"{path} has no column {listed(map(repr, lacking))}; it has {table.names}. Expected {_EXPECTED}."
        raise ValueError(msg)
    if twice := [name for name in (*_AXES, "name", "radius") if names.count(name) > 1]:
        msg = f"{path} has several columns called {listed(map(repr, twice))}. Expected {_EXPECTED}."
        raise ValueError(msg)
    if not table.rows:
        msg = f"{path} has no seed. Expected {_EXPECTED}."
        raise ValueError(msg)

    def numbers(column):
        for cell, line in zip(columns[column], table.lines, strict=True):
            if column == "radius" and cell in _MISSING:
                yield None
                continue
            number = float(cell) if is_number(cell) else math.nan
            if not math.isfinite(number) or (column == "radius" and number < 0):
                kind = "a number of mm" if column != "radius" else "a number of mm, 0 or more, or n/a"
                msg = f"{path}, line {line}: {column} is {cell!r}, expected {kind}."
                raise ValueError(msg)
            yield number

    coordinates = np.array([list(numbers(axis)) for axis in _AXES]).T
    radii = list(numbers("radius")) if "radius" in columns else [None] * len(table.rows)
    return Seeds(_names(columns.get("name"), table), np.ascontiguousarray(coordinates), radii)


def _names(cells, table):
    if cells is None:
        return [f"seed{k}" for k in range(len(table.rows))]
    repeated = {name for name, count in Counter(cells).items() if count > 1}
    for name, line in zip(cells, table.lines, strict=True):
        if name in _MISSING:
            msg = f"{table.path}, line {line}: the seed has no name. Name all seeds, or drop the column of names."
            raise ValueError(msg)
        if name in repeated:
            lines = [at for cell, at in zip(cells, table.lines, strict=True) if cell == name]
            msg = f"{table.path}: the name {name!r} occurs in the lines {listed(lines)}. Each seed needs its own name."
            raise ValueError(msg)
    return cells
