"""Text tables as people and programs write them: one reader for confounds, look-up tables and lists of runs."""

import contextlib
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import dropwhile, pairwise
from pathlib import Path

from gpumask.inputs import bounded, read_bytes, shortened

# With UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
_OTHER_KINDS = {
    "<": "XML or HTML",
    "{": "JSON",
    "version https://git-lfs": "a pointer of Git LFS (git lfs pull gets the file)",
    "/annex/objects/": "a pointer of git-annex (datalad get, or git annex get, gets the file)",
}
_OF_NO_TEXT = "\0\x1c\x1d\x1e\x1f"  # the last are separators, which are blanks to Python and not to others
_REMEDY = "Save it as tab-separated text in UTF-8."
MOST_BYTES = 1 << 27  # of text. 2500 volumes of 2000 columns with all their digits are 100 MB
# Of a few bytes, a row becomes 300 bytes of Python objects, and a cell 60.
_MOST_ROWS, _MOST_CELLS = 1 << 20, 1 << 23
_WIDEST = 1 << 16  # cells of a row; pandas takes 50 us and 1.5 kB for a column of any length
_LONGEST_CELL = 1 << 17  # characters; the csv module has the same limit
_PIECE = 1 << 20  # bytes that are decompressed at once


@dataclass(frozen=True)
class Rows:
    """Rows of a text table, which may differ in length.

    Attributes
    ----------
    path : Path
    cells : list of list of str
        Without quotes, blanks around them, and (blanks instead) line breaks and tabs in them.
    lines : list of int
        Number of each row's line in the file, from 1.
    """

    path: Path
    cells: list[list[str]]
    lines: list[int]


@dataclass(frozen=True)
class TextTable:
    """A text table whose rows have the same length.

    Attributes
    ----------
    path : Path
    names : list of str, or None
        Names of the columns; those without one are called "". None: there is no row of names.
    rows : list of list of str
    lines : list of int
        Number of each row's line in the file, from 1.
    """

    path: Path
    names: list[str] | None
    rows: list[list[str]]
    lines: list[int]

    @property
    def columns(self) -> list[list[str]]:
        """The cells by column."""
        if not self.rows:
            return [[] for _ in self.names or ()]
        return [list(column) for column in zip(*self.rows, strict=True)]


def read_text_table(
    path: Path, expected: str, has_names: Callable[[list[str]], bool], *, keep_empty_rows: bool = True
) -> TextTable:
    """Read a text table and check that all rows have the same cells.

    Columns that are empty throughout and have no name, as when rows or names end in a separator, are dropped. So are
    the names of rows that R writes: there, the row of names is one cell shorter than all others.

    Parameters
    ----------
    path, expected
        As `read_rows` takes them.
    has_names : callable
        Gets the first row; returns whether it has the columns' names.
    keep_empty_rows : bool
        Whether rows of nothing but empty cells count.

    Raises
    ------
    ValueError
        As `read_rows`, and if a row is longer or shorter than the first one; the message names file and line.
    OSError
        If the file can't be read.
    """
    table = read_rows(path, expected)
    names = table.cells[0] if has_names(table.cells[0]) else None
    body = list(zip(table.cells, table.lines, strict=True))[names is not None :]
    if not keep_empty_rows:
        body = [(row, line) for row, line in body if any(row)]
    rows, lines = [row for row, _ in body], [line for _, line in body]
    width = len(table.cells[0])
    with_text = {j for row in rows for j, cell in enumerate(row) if cell}
    filled = [j in with_text for j in range(max([width, *map(len, rows)]))]
    more = [j for j in range(width, len(filled)) if filled[j]]
    all_longer = all(len(row) > width and row[width] for row in rows)
    if more == [width] and names is not None and all_longer and _have_row_names(rows):
        rows = [row[1:] for row in rows]
        filled = filled[1:]
    elif more:
        k = next(k for k, row in enumerate(rows) if len(row) > more[0] and any(row[more[0] :]))
        raise ValueError(_ragged(path, lines[k], len(rows[k]), table, width))
    kept = [j for j in range(width) if filled[j] or (names is not None and names[j])]
    if not kept:
        msg = f"{path} is empty. Expected {expected}."
        raise ValueError(msg)
    for row, line in zip(rows, lines, strict=True):
        if len(row) <= kept[-1]:
            raise ValueError(_ragged(path, line, len(row), table, width))
    if len(kept) < width or len(filled) > width:
        rows = [[row[j] for j in kept] for row in rows]
    return TextTable(path, names and [names[j] for j in kept], rows, lines)


def _have_row_names(rows):
    """Whether all rows begin with names such as R's: different texts, or ascending whole numbers; no measured ones."""
    first = [row[0] for row in rows]
    if all(cell.isdecimal() for cell in first):  # float: int refuses numbers of more than 4300 digits
        return all(float(one) < float(other) for one, other in pairwise(first))
    return len(set(first)) == len(first) and not any(map(is_number, first))


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, maybe NaN or infinite; Python's 1_000 is none."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _ragged(path, line, n_cells, table, width):
    cells = "cell" if n_cells == 1 else "cells"
    like = f"{width}, as in line {table.lines[0]} ({listed(table.cells[0])})"
    return (
        f"{path}, line {line}: has {n_cells} {cells}, expected {like}. Cells that contain the separator need quotes, "
        "missing values a cell of their own (n/a)."
    )


def read_rows(path: Path, expected: str, separators: str = "\t,;| ") -> Rows:
    """Read the cells of a text table.

    The file is UTF-8, or has a byte-order mark of UTF-16 or UTF-32; it may be compressed (gzip). Lines that begin with
    # are comments. Cells may have double quotes; if these make no sense in any row, they are characters like others.

    A table may have 128 MiB (also after decompression), 2**20 lines, 2**23 cells, 2**16 of them in a row, and 2**17
    characters in a cell.

    Parameters
    ----------
    path : Path
        A file, or a pipe: see `gpumask.inputs.read_bytes`.
    expected : str
        What the file should be, for messages.
    separators : str
        The first of these that occurs in the first row separates the cells. A blank stands for any number of blanks or
        tabs, or if that doesn't give equal rows, for two or more blanks: columns that are aligned.

    Raises
    ------
    ValueError
        If the file isn't text, has another encoding, is empty or larger than that, or only some of its quotes make
        sense; the message names file and line.
    OSError
        If the file can't be read.
    """
    text = _text(path, expected)
    _check_number(path, text.count("\n") + text.count("\r"), _MOST_ROWS, "lines", expected)
    lines = re.split("\r\n|\r|\n", text)
    numbered = [(line, n) for n, line in enumerate(lines, start=1) if line.strip(" ") and not line.startswith("#")]
    numbered = list(dropwhile(lambda line_and_number: not line_and_number[0].strip(), numbered))
    if not numbered:
        msg = f"{path} is empty. Expected {expected}."
        raise ValueError(msg)
    first = numbered[0][0].strip(" ")
    if kind := next((kind for begin, kind in _OTHER_KINDS.items() if first.startswith(begin)), None):
        msg = f"{path}, line {numbered[0][1]}: is {kind}. Expected {expected}."
        raise ValueError(msg)
    lines, numbers = [line for line, _ in numbered], [number for _, number in numbered]
    separator = next((s for s in separators if s in first), None)
    _check_number(path, len(lines) + text.count(separator or "\t"), _MOST_CELLS, "cells", expected)
    if separator is None:
        lines = [line.strip() for line in lines]
        separator = "\t"
    elif separator == " ":
        aligned = [line.replace("\t", "  ").strip() for line in lines]
        cells, starts = _split(aligned, " ", path, numbers)
        if len(set(map(len, cells))) > 1:
            wide = [re.split(" {2,}", line) for line in aligned]
            if len(set(map(len, wide))) == 1 and len(wide[0]) > 1:
                cells, starts = wide, range(len(wide))
        return Rows(path, cells, [numbers[k] for k in starts])
    cells, starts = _split(lines, separator, path, numbers)
    return Rows(path, cells, [numbers[k] for k in starts])


def _check_number(path, n, most, what, expected):
    if n > most:
        msg = f"{path} has {n} {what}, more than the {most} that are read of a table. Expected {expected}."
        raise ValueError(msg)


def _split(
    lines: Sequence[str], separator: str, path: Path, numbers: Sequence[int]
) -> tuple[list[list[str]], Sequence[int]]:
    """Cells of each row, and the index of its first line; `numbers` are those of the lines in the file."""
    rows: list[list[str]] = []
    starts = [0]
    quoted = [k for k, line in enumerate(lines) if '"' in line]
    try:
        for row, n_read in _unquoted(lines, separator) if quoted else ():
            rows.append([re.sub("[\t\n]", " ", cell) for cell in row])
            starts.append(n_read)
    except csv.Error as error:
        if any(_has_quoted_cell(lines[k], separator) for k in quoted):
            msg = (
                f"{path}, line {numbers[starts[-1]]}: the quotes of {shortened(repr(lines[starts[-1]]))} make no sense "
                f"({error}), but other lines have quoted cells. Close the quote, or double those within a cell."
            )
            raise ValueError(msg) from error
        quoted = []
    if not quoted:
        rows = [line.split(None if separator == " " else separator) for line in lines]
        starts = list(range(len(lines)))
    has_long = max(map(len, lines)) > _LONGEST_CELL  # else no cell is: csv checks quoted ones of several lines
    for row, start in zip(rows, starts, strict=False):
        problem = None
        if len(row) > _WIDEST:
            problem = f"{len(row)} cells, more than the {_WIDEST} that are read of a row"
        elif has_long and (longest := max(map(len, row), default=0)) > _LONGEST_CELL:
            problem = f"a cell of {longest} characters, more than the {_LONGEST_CELL} of any number or name"
        if problem:
            msg = f"{path}, line {numbers[start]}: has {problem}. Is a quote not closed, or the separator another one?"
            raise ValueError(msg)
    if any(" " in line or "\xa0" in line for line in lines):
        rows = [[cell.strip() for cell in row] for row in rows]
    return rows, starts[: len(rows)]


def _unquoted(lines, separator):
    """Cells of each row without their quotes, and how many lines have been read; csv.Error where quotes are wrong."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, skipinitialspace=True, strict=True)
    return ((row, reader.line_num) for row in reader)


def _has_quoted_cell(line, separator):
    """Whether a line makes sense without the others, and has quotes around a cell."""
    with contextlib.suppress(csv.Error):
        return any("".join(row).count('"') < line.count('"') for row, _ in _unquoted([line], separator))
    return False


def _text(path, expected):
    content = read_bytes(path, most=MOST_BYTES, pipes=True)
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(content)) as file:
                content = bounded(iter(lambda: file.read(_PIECE), b""), path, MOST_BYTES)
        except (EOFError, OSError, zlib.error) as error:
            msg = f"{path} is truncated or corrupt: {error}. Expected {expected}. Copy or create the file again."
            raise ValueError(msg) from error
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte, encoding = content[error.start], encoding.removesuffix("-sig").upper()
        what = f"the byte 0x{byte:02x} isn't {encoding}, perhaps Latin-1"
        msg = f"{path}, line {line}: {what}. Expected {expected}. {_REMEDY}"
        raise ValueError(msg) from error
    if found := next((character for character in _OF_NO_TEXT if character in text), None):
        line = text.count("\n", 0, text.index(found)) + 1
        what = "a zero byte, as binary files and UTF-16 have" if found == "\0" else f"the control character {found!r}"
        msg = f"{path}, line {line}: has {what}. Expected {expected}. {_REMEDY}"
        raise ValueError(msg)
    return text


def listed(items: Iterable[object], most: int = 5) -> str:
    """The first items, and how many more there are: "1, 2, 3, 4, 5 and 7 more"."""
    words = [shortened(str(item), 200) for item in items]
    shown = ", ".join(words[:most])
    return shown if len(words) <= most else f"{shown} and {len(words) - most} more"
