"""Confounds as users give them, as NumPy arrays; tables and their columns. Host only."""

import csv
import fnmatch
import io
import numbers
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpumask.dlpack import has_dlpack, on_host
from gpumask.inputs import shortened
from gpumask.text_tables import is_number, listed, read_text_table

if TYPE_CHECKING:
    import pandas as pd

MOTION = tuple(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz")
"""Columns of the six motion parameters: translations in mm, rotations in radians."""
_LONG_INTEGER = re.compile("[+-]?[0-9]{19,}")  # becomes uint64, a Python integer or text in pandas
_MOST = 1e100  # the sum of the squares of larger values may overflow
_EXPECTED = "a table of confounds with a column per signal and a row per volume"


def confounds_matrix(confounds: object, n_volumes: int, used: Sequence[int] | None = None) -> np.ndarray | None:
    """Gather a run's confounds as the columns of one matrix.

    Parameters
    ----------
    confounds : array, DataFrame, Series, path, sequence of numbers, list or tuple of these, or None
        Arrays of any library, of shape (n_volumes,) or (n_volumes, n_columns); pandas or polars tables; or paths of
        text tables, ``.gz`` or not, separated by tabs, commas, semicolons or blanks, with or without a header. "n/a" is
        NaN. The columns of several are joined.
    n_volumes : int
        Number of rows that each must have.
    used : array-like of int, default=None
        Volumes whose values must be finite; censored volumes may hold NaN. None is all.

    Returns
    -------
    numpy.ndarray of float64, shape (n_volumes, n_columns), or None
        None without confounds. Never a view of the argument.

    Raises
    ------
    TypeError
        If a confound has another type.
    ValueError
        If a confound can't be read, has another length, more than two dimensions, or values that aren't finite or are
        beyond 1e100; the message names the file, the columns and the volumes.
    """
    if confounds is None:
        return None
    if not isinstance(confounds, (list, tuple)):
        if not _is_confound(confounds):
            msg = (
                "'confounds' must be of type(s): 'array, DataFrame, Series, str, Path, list, tuple'.\n"
                f"Got: '{type(confounds).__name__}'"
            )
            raise TypeError(msg)
        confounds = [confounds]
    elif _is_numbers(confounds):
        confounds = [confounds]
    if not confounds:
        return None
    return np.hstack([_checked_columns(confound, n_volumes, used) for confound in confounds])


def _is_numbers(values):
    return isinstance(values, (list, tuple)) and len(values) > 0 and all(isinstance(v, numbers.Real) for v in values)


def _is_confound(value):
    return isinstance(value, (str, Path)) or hasattr(value, "to_numpy") or has_dlpack(value)


def _checked_columns(confound, n_volumes, used):
    """Values of one confound, float64 of shape (n_volumes, n_columns)."""
    import pandas as pd

    path = None
    if isinstance(confound, (str, Path)):
        path = Path(confound).expanduser()
        table = read_table(path)
    elif _is_numbers(confound) or _is_confound(confound):
        values = on_host(confound.to_numpy() if hasattr(confound, "to_numpy") else confound, "confounds")
        if values.ndim not in (1, 2):
            msg = f"confound array has an incorrect number of dimensions: {values.ndim}"
            raise ValueError(msg)
        names = getattr(confound, "columns", None)
        table = pd.DataFrame(values, columns=None if names is None else list(names))
    else:
        msg = f"confound has an unhandled type: {type(confound)}"
        raise TypeError(msg)

    where = f" File: {path}." if path else ""
    if len(table) != n_volumes:
        msg = (
            "Confound signal has an incorrect length. "
            f"Signal length: {n_volumes}; confound length: {len(table)}.{where}"
        )
        raise ValueError(msg)
    if all(isinstance(dtype, np.dtype) and dtype.kind in "iuf" for dtype in table.dtypes):
        values = table.to_numpy(np.float64)
    else:  # takes 0.1 ms a column
        values = table.apply(_as_floats).to_numpy(np.float64, na_value=np.nan)
    checked = np.zeros(n_volumes, dtype=bool)
    checked[slice(None) if used is None else used] = True
    bad = ~np.isfinite(values) & checked[:, None]
    if bad.any():
        msg = (
            "Confounds must be finite numbers; NaN, infinite values or text are in column "
            f"{_places(table, bad)}.{where} "
            "fMRIPrep writes n/a in the first volumes of derivatives: fill them, leave these volumes out by "
            "`sample_mask`, or use nilearn.interfaces.fmriprep.load_confounds."
        )
        raise ValueError(msg)
    if (large := (np.abs(values) > _MOST) & checked[:, None]).any():
        msg = f"Confounds must lie within {_MOST:g}, but larger values are in column {_places(table, large)}.{where}"
        raise ValueError(msg)
    return values


def _as_floats(column):
    """A column's numbers; NaN for text, and infinity for integers that float64 can't hold."""
    import pandas as pd

    if column.dtype == object:
        column = column.map(lambda value: np.inf if isinstance(value, int) and abs(value) >= 1 << 1023 else value)
    return pd.to_numeric(column, errors="coerce")


def _places(table, found):
    """Columns and volumes where `found` is True."""
    columns = np.flatnonzero(found.any(0))
    names = table.columns.tolist()  # numbers of Python, if there are no names
    return listed(f"{names[j]!r} (volume {listed(np.flatnonzero(found[:, j]))})" for j in columns)


def read_table(path: Path) -> "pd.DataFrame":
    """Read a text table, see `confounds_matrix` and `gpumask.text_tables`; without names, its columns are numbered.

    Its types are pandas': numbers, exactly; "n/a" and the like are NaN; text. Integers that int64 can't hold are
    floats, which may be infinite.
    """
    table = read_text_table(path, _EXPECTED, has_names)
    parsed = _parsed(table)
    odd = [j for j, dtype in enumerate(parsed.dtypes) if dtype.kind not in "bif"]
    long = [(row, j) for row in table.rows for j in odd if _LONG_INTEGER.fullmatch(row[j])]
    if not long:
        return parsed
    for row, j in long:
        row[j] += "."
    return _parsed(table)


def _parsed(table):
    import pandas as pd

    rows = table.rows if table.names is None else [table.names, *table.rows]
    # The default can be off by a last bit before pandas 3.1, which deprecates the choice.
    exact = {"float_precision": "round_trip"} if pd.__version__ < "3.1" else {}
    return pd.read_csv(
        io.StringIO("".join("\x1f".join(row) + "\n" for row in rows)),
        sep="\x1f",
        header=None if table.names is None else 0,
        quoting=csv.QUOTE_NONE,
        index_col=False,
        skip_blank_lines=False,
        **exact,
    )


@dataclass(frozen=True, eq=False)
class ConfoundsTable:
    """fMRIPrep's table of confounds of a run, which is read once: when it is first needed.

    Attributes
    ----------
    path : Path
    """

    path: Path

    @classmethod
    def of(cls, confounds: "str | os.PathLike | ConfoundsTable") -> "ConfoundsTable":
        """The table of a file; a table as it is."""
        return confounds if isinstance(confounds, ConfoundsTable) else cls(Path(confounds))

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """What `read_table` returns, with texts as names of the columns; not to be changed."""
        return read_table(self.path).rename(columns=str)

    def replacing(self, **columns: np.ndarray) -> "ConfoundsTable":
        """The same table with other values in some columns."""
        other = ConfoundsTable(self.path)
        vars(other)["frame"] = self.frame.assign(**columns)
        return other


def has_names(first_row: Sequence[str]) -> bool:
    """Whether the first row of confounds has the columns' names. pandas writes an empty one above an index.

    Whole numbers can be names. Other numbers are values, also after an empty first cell or a text such as "1.#IND":
    else the first volume's values would be lost.
    """
    first, *others = first_row
    if is_number(first) or first.lower() in ("n/a", "na"):
        return False
    return not any(is_number(cell) and not cell.isdecimal() for cell in others)


def numeric_column(table: "pd.DataFrame", name: str, path: str | os.PathLike, expected: str) -> np.ndarray:
    """Values of a column of a table, float64 of shape (n_volumes,); NaN where it has none.

    Raises
    ------
    ValueError
        If it has text; the message names the file, the column and the volume, and what is `expected`.
    """
    import pandas as pd

    values = pd.to_numeric(table[name], errors="coerce")
    if (texts := np.flatnonzero(values.isna() & table[name].notna())).size:
        text = shortened(repr(table[name].iloc[texts[0]]))
        msg = f"{path}: the column {name} has the text {text} for volume {texts[0]}, expected {expected}."
        raise ValueError(msg)
    return values.to_numpy(np.float64)


def choose_columns(table: "pd.DataFrame", columns: Sequence[str], path: str | os.PathLike) -> "pd.DataFrame":
    """Select columns of a table by names or patterns.

    Parameters
    ----------
    table : DataFrame
    columns : sequence of str
        Names, with the wildcards * ? [] of `fnmatch`.
    path : str or path-like
        File of the table, for the message.

    Returns
    -------
    DataFrame
        In the order of `columns`, a pattern's in the order of the table; each once.

    Raises
    ------
    ValueError
        If a name or pattern matches nothing; the message lists similar names.
    """
    chosen: dict[str, None] = {}
    missing: list[str] = []
    for pattern in columns:
        fitting = [pattern] if pattern in table else [name for name in table if fnmatch.fnmatchcase(name, pattern)]
        chosen |= dict.fromkeys(fitting)
        missing += [] if fitting else [pattern]
    if missing:
        known = [match for name in missing for match in get_close_matches(name, table)] or list(table)[:5]
        msg = f"{path} has no column {', '.join(missing)}. Its {table.shape[1]} columns include {', '.join(known)}."
        raise ValueError(msg)
    return table[list(chosen)]
