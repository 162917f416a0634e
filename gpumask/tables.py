"""Tables and JSON as lines of text."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from gpumask.kernels import compiled


def table_lines(names: Iterable[str], rows: np.ndarray, index: Sequence[str] | None = None) -> Iterator[str]:
    """Lines of a TSV file. Numbers have enough digits to be read back exactly in their dtype; NaN is "n/a".

    In texts, tabs and line breaks become blanks. Those that begin with a quote are quoted; `cells` reads them.

    Parameters
    ----------
    names : iterable of str
        Names of the columns; with `index`, the first is its name.
    rows : ndarray of real numbers, shape (n_rows, n_columns)
    index : sequence of str, optional
        First cell of each row.

    Yields
    ------
    str
    """
    yield "\t".join(map(text_cell, names)) + "\n"
    singles, others = rows.dtype.char == "f", rows.dtype.char not in "fdbBhHiIlLqQ"
    decimals = getattr(compiled.extension, "decimals", None) if compiled.is_compiled else None
    for k, row in enumerate(rows):
        if decimals and rows.dtype.char in "fd":
            line = decimals(np.ascontiguousarray(row, rows.dtype.newbyteorder("=")))
        else:
            # Python finds the shortest digits of doubles in a tenth of NumPy's time for singles.
            cells = row.astype("U") if others else map(repr, (shortest(row) if singles else row).tolist())
            line = "\t".join(cells).replace("nan", "n/a")
        yield f"{line}\n" if index is None else f"{text_cell(index[k])}\t{line}\n"


def read_numbers(body: bytes, n_columns: int, *, labelled: bool = False) -> np.ndarray:
    """Numbers of a table that `table_lines` has written, exactly as they were.

    Parameters
    ----------
    body : bytes
        Its lines but the first.
    n_columns : int
    labelled : bool
        Whether each line has a text in front of its numbers, which is skipped.

    Returns
    -------
    ndarray of float64, shape (n_rows, n_columns)
        NaN for "n/a".

    Raises
    ------
    ValueError
        If a line has another number of cells, or a cell that isn't a number.
    """
    n_rows = body.count(b"\n")
    if n_columns < 1 or 2 * n_rows * n_columns > len(body):  # a cell has a character, and one after it
        msg = f"{len(body)} bytes can't be {n_rows} rows of {n_columns} numbers"
        raise ValueError(msg)
    if compiled.is_compiled:
        rows = np.empty((n_rows, n_columns))
        compiled.extension.numbers(body, rows, labelled)
        return rows
    *lines, end = body.split(b"\n")
    parts = [line.split(b"\t")[labelled:] for line in lines]
    cells = [cell for part in parts for cell in part]
    if end or any(len(part) != n_columns for part in parts) or b"".join(cells).translate(None, _OF_NUMBERS):
        msg = f"rows of other than {n_columns} numbers"
        raise ValueError(msg)
    return np.array([_NUMBERS.get(cell) or float(cell) for cell in cells], np.float64).reshape(n_rows, n_columns)


_NUMBERS = {b"n/a": np.nan}
_OF_NUMBERS = b"0123456789+-.eE/nainf"  # of which float accepts more than C does: blanks, "1_0"


def shortest(singles: np.ndarray) -> np.ndarray:
    """Doubles whose shortest decimals are those of float32 numbers.

    Parameters
    ----------
    singles : ndarray of float32

    Returns
    -------
    ndarray of float64
        Rounded to the fewest digits, from 6 to 9, that are read back as the same float32. Numbers outside 1e-10 to 1e15
        are unchanged: exact as well, but with more digits than needed.
    """
    exact = singles.astype(np.float64)
    size = np.abs(exact)
    decimals = exact.copy()
    left = np.flatnonzero((size > 1e-10) & (size < 1e15))
    exponents = np.floor(np.log10(size[left])).astype(int)
    for n_digits in (6, 7, 8, 9):
        # A whole number times or over a power of ten that is exact in a double: the double nearest to the decimal.
        shift = n_digits - 1 - exponents
        up, down = 10.0 ** np.maximum(shift, 0), 10.0 ** np.maximum(-shift, 0)
        rounded = np.rint(exact[left] * up / down) * down / up
        found = rounded.astype(np.float32) == singles[left]
        decimals[left[found]] = rounded[found]
        left, exponents = left[~found], exponents[~found]
    return decimals


def text_cell(text: object) -> str:
    """A text as a cell of a TSV file, see `table_lines`."""
    text = re.sub("[\t\r\n]", " ", str(text))  # BIDS has no quotes around a tab
    # Readers such as pandas would take a quote at the beginning for that of a whole cell, and not find its end.
    return '"{}"'.format(text.replace('"', '""')) if text.startswith('"') else text


def cells(line: str) -> list[str]:
    """Cells of a line that `table_lines` has written, as they were before."""
    found = line.removesuffix("\n").split("\t")
    return [cell[1:-1].replace('""', '"') if cell.startswith('"') else cell for cell in found]


def json_lines(content: object, default: Callable | None = None) -> Iterator[str]:
    """Lines of a JSON file."""
    yield json.dumps(content, indent=2, ensure_ascii=False, default=default)
    yield "\n"
