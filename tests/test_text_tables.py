"""One reader for confounds, look-up tables and lists of runs: each form gives the same cells, or one error."""

import contextlib
import csv
import gzip
import io
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpumask.bids import read_manifest
from gpumask.confounds.fmriprep import fmriprep_confounds
from gpumask.confounds.tables import confounds_matrix, read_table
from gpumask.images.lookup import read_lookup_table
from gpumask.text_tables import listed, read_text_table

NAMES = ["csf", "white_matter", "global signal"]
VALUES = np.array([[1.5, -2.0, 0.1], [1 / 3, 3e-7, 1e90], [7.0, 0.0, -1e-308], [0.1 + 0.2, 12345.678901234567, 5.0]])
ROWS = [[repr(value) for value in row] for row in VALUES.tolist()]


def lines(rows, separator="\t", end="\n", last=""):
    return "".join(separator.join(row) + last + end for row in rows)


def r_table(separator, quoted):
    """As R's write.table makes it: the row of names lacks the one of the rows' names."""
    quote = '"{}"'.format if quoted else str
    names = [quote(name.replace(" ", "_")) for name in NAMES]
    return lines([names, *([quote(str(i)), *row] for i, row in enumerate(ROWS, 1))], separator)


def quoted(separator):
    file = io.StringIO()
    csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([NAMES, *ROWS])
    return file.getvalue()


WITH_NAMES = {
    "plain": lines([NAMES, *ROWS]),
    "no newline at the end": lines([NAMES, *ROWS]).rstrip("\n"),
    "CRLF": lines([NAMES, *ROWS], end="\r\n"),
    "CR, as of an old Mac": lines([NAMES, *ROWS], end="\r"),
    "commas": lines([NAMES, *ROWS], ","),
    "commas and blanks": lines([NAMES, *ROWS], ", "),
    "semicolons": lines([NAMES, *ROWS], ";"),
    "bars": lines([NAMES, *ROWS], " | "),
    "rows end in a tab": lines([NAMES]) + lines(ROWS, last="\t"),
    "rows end in two tabs": lines([NAMES]) + lines(ROWS, last="\t\t"),
    "one row ends in a tab": lines([NAMES, *ROWS[:2]]) + lines(ROWS[2:3], last="\t") + lines(ROWS[3:]),
    "the names end in a tab": lines([NAMES], last="\t") + lines(ROWS),
    "all end in a tab": lines([NAMES, *ROWS], last="\t"),
    "all end in a comma": lines([NAMES, *ROWS], ",", last=","),
    "all begin with a tab": lines([["", *row] for row in [NAMES, *ROWS]]),
    "an empty column within": lines([[*row[:1], "", *row[1:]] for row in [NAMES, *ROWS]]),
    "R, with tabs": r_table("\t", False),
    "R, quoted, with blanks": r_table(" ", True),
    "R, rows end in a tab": r_table("\t", False).replace("\n", "\t\n").replace("\t\n", "\n", 1),
    "names of rows": lines([NAMES, *([f"volume{i}", *row] for i, row in enumerate(ROWS))]),
    "quoted, with commas": quoted(","),
    "quoted, with tabs": quoted("\t"),
    "comments": "# made by x\n" + lines([NAMES, ROWS[0]]) + "# y\ta\tb\tc\n\n" + lines(ROWS[1:]) + "#\n",
    "empty lines": "\n\n" + lines([NAMES]) + "  \n" + lines(ROWS) + "\n\n",
    "tabs before the names": "\t\t\n" + lines([NAMES, *ROWS]),
    "aligned by blanks": "".join("".join(f"{cell:30s}" for cell in row) + "\n" for row in [NAMES, *ROWS]),
    "aligned to the right": "".join("".join(f"{cell:>30s}" for cell in row) + "\n" for row in [NAMES, *ROWS]),
    "a lone quote": lines([NAMES, *ROWS]).replace("global signal", 'global "signal'),
    "a comma in a name": lines([NAMES, *ROWS]).replace("global signal", "global, signal"),
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


def write(folder, text, name="table.tsv", encoding="utf-8"):
    path = folder / name
    mark = "\ufeff" if encoding.endswith(("-le", "-be")) else ""
    path.write_bytes((mark + text).encode(encoding))
    return path


@pytest.mark.parametrize("form", WITH_NAMES)
def test_columns_keep_their_names(tmp_path, form):
    path = write(tmp_path, WITH_NAMES[form])
    table = read_table(path)
    assert list(table)[:2] == NAMES[:2]
    assert table.shape == VALUES.shape
    np.testing.assert_array_equal(table.to_numpy(), VALUES)
    confounds, _ = fmriprep_confounds("x.nii", path, columns=["csf"])
    np.testing.assert_array_equal(confounds_matrix(confounds, 4)[:, 0], VALUES[:, 0])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_encodings(tmp_path, encoding, packed):
    path = write(tmp_path, lines([["csf", "Übersprechen"], ["1.5", "2"]]), encoding=encoding)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    table = read_table(path)
    assert (list(table), table.to_numpy().tolist()) == (["csf", "Übersprechen"], [[1.5, 2.0]])


@pytest.mark.parametrize("separator", ["\t", ",", ";", " ", "   "])
@pytest.mark.parametrize("last", ["", "end"])
def test_without_names(tmp_path, separator, last):
    path = write(tmp_path, lines(ROWS, separator, last=separator if last else ""))
    np.testing.assert_array_equal(confounds_matrix(path, 4), VALUES)


def test_missing_values_and_empty_rows(tmp_path):
    """A row of empty cells is a volume, whose values are missing: rows stay in their places."""
    path = write(tmp_path, "a\tb\tc\n1\t\tn/a\n\t\t\n3\tNA\tNaN\n4\tNone\t6\n")
    expected = [[1, np.nan, np.nan], [np.nan] * 3, [3, np.nan, np.nan], [4, np.nan, 6]]
    np.testing.assert_array_equal(read_table(path).to_numpy(float), expected)


def test_column_without_a_value_has_a_name(tmp_path):
    """It isn't dropped, so that asking for it is an error about its values."""
    table = read_table(write(tmp_path, "a\tb\n1\t\n2\t\n"))
    assert list(table) == ["a", "b"]
    assert table["b"].isna().all()


def test_repeated_and_missing_names_are_told_apart(tmp_path):
    assert list(read_table(write(tmp_path, "a\t\ta\n1\t2\t3\n"))) == ["a", "Unnamed: 1", "a.1"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a\tb\n1\t2\n3\t4\t5\n", 3, "has 3 cells, expected 2, as in line 1 (a, b)."),
        ("# x\n\na\tb\n1\t2\n3\t4\t5\n6\t7\n", 5, "has 3 cells, expected 2, as in line 3 (a, b)."),
        ("a\tb\tc\n1\t2\t3\n3\t4\n", 3, "has 2 cells, expected 3, as in line 1 (a, b, c)."),
        ("a\tb\tc\n1\t2\n3\t4\n", 2, "has 2 cells, expected 3"),
        ("1,2\n3,4,5\n", 2, "has 3 cells, expected 2, as in line 1 (1, 2)."),
        ("1 2 3\n4 5\n", 2, "has 2 cells, expected 3"),
        ("a\tb\n1.5\t2\t3\n2.5\t3\t4\n", 2, "has 3 cells, expected 2"),  # measured values aren't names of rows
        ("a\tb\n3\t2\t3\n1\t3\t4\n", 2, "has 3 cells, expected 2"),
        ("a\tb\nx\t2\t3\nx\t3\t4\n", 2, "has 3 cells, expected 2"),
        ("a\tb\n1\t2\t\n3\t4\t\n5\t6\tnote\n", 4, "has 3 cells, expected 2"),
        ("a\tb\n1\t2\t3\t4\n2\t3\t4\t5\n", 2, "has 4 cells, expected 2"),
        ('a,b\n"1,2\n3,4\n5,6,7\n', 4, "has 3 cells, expected 2"),
    ],
)
def test_ragged_rows_are_named(tmp_path, text, line, words):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}, line {line}: {words}")
    assert "need quotes" in str(error.value)


def test_lines_are_counted_through_quoted_breaks(tmp_path):
    path = write(tmp_path, 'a,b\n"1\n\n2",3\n# no\n4,5,6\n')
    with pytest.raises(ValueError, match=r"line 6: has 3 cells"):
        read_text_table(path, "x", lambda row: True)
    rows = read_text_table(write(tmp_path, 'a,b\n"left\nside",3\n'), "x", lambda row: True).rows
    assert rows == [["left side", "3"]]


NO_TABLES = {
    "nothing": (b"", "is empty."),
    "blank lines": (b"\n  \n\t\t\n", "is empty."),
    "comments alone": (b"# index\tname\n", "is empty."),
    "empty quotes": (b'""\n', "is empty."),
    "a byte-order mark alone": (b"\xef\xbb\xbf", "is empty."),
    "Latin-1": ("index\tname\n1\tÁrea\n".encode("latin-1"), ", line 2: the byte 0xc1 isn't UTF-8, perhaps Latin-1."),
    "UTF-16 without a mark": ("index\tname\n".encode("utf-16-le"), ", line 1: has a zero byte"),
    "a separator of units": (b"index\tname\n1\tA\n2\tB\x1fC\n", ", line 3: has the control character '\\x1f'."),
    "half of UTF-16": ("index\tname\n1\tA".encode("utf-16")[:-1], "isn't UTF-16"),
    "an image": (b"\x5c\x01\x00\x00" + bytes(344), ", line 1: has a zero byte"),
    "a spreadsheet": (b"PK\x03\x04\x14\x00\x06\x00", ", line 1: has a zero byte"),
    "XML": (b'<?xml version="1.0"?>\n<atlas/>\n', ", line 1: is XML or HTML."),
    "HTML": (b"\n<!DOCTYPE html>\n", ", line 2: is XML or HTML."),
    "JSON": (b'{"1": "A"}\n', ", line 1: is JSON."),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "is a pointer of Git LFS"),
    "git-annex": (b"/annex/objects/MD5E-s3--12.tsv\n", "is a pointer of git-annex"),
    "cut gzip": (gzip.compress(b"index\tname\n1\tA\n" * 50)[:-9], "is truncated or corrupt"),
    "corrupt gzip": (gzip.compress(b"index\tname\n1\tA\n" * 50)[:20] + b"\x07" * 20, "is truncated or corrupt"),
}
READERS = {"confounds": (read_table, "confounds"), "look-up table": (read_lookup_table, "look-up table")}
READERS["list of runs"] = (read_manifest, "list of runs")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NO_TABLES)
def test_what_is_no_table_is_one_error(tmp_path, kind, reader):
    content, words = NO_TABLES[kind]
    path = tmp_path / "table.tsv"
    path.write_bytes(content)
    read, expected = READERS[reader]
    if (kind, reader) == ("empty quotes", "list of runs"):
        words = "begins with the line ''"
    with pytest.raises(ValueError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert words in message
    assert "Expected" in message
    assert expected in message or "bold" in message


def test_the_real_table_is_as_pandas_reads_it(data):
    path = next(data.glob("*_desc-confounds_timeseries.tsv"))
    frame = pd.read_csv(path, sep="\t", float_precision=None if pd.__version__ >= "3.1" else "round_trip")
    pd.testing.assert_frame_equal(read_table(path), frame, check_exact=True)


# Lists of runs


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("last", ["", "\t"])
def test_lists_of_runs(tmp_path, end, encoding, last):
    for name in ("ä, b.nii", "NA.nii"):
        (tmp_path / name).touch()
    text = lines([["bold", "t_r"]], end=end)
    text += lines([["ä, b.nii", "2"], ["# not yet.nii", "2"], ['"NA.nii"', ""]], end=end, last=last)
    runs, problems = read_manifest(write(tmp_path, text, encoding=encoding))
    assert [(Path(run.path).name, run.t_r) for run in runs] == [("ä, b.nii", 2.0), ("NA.nii", None)]
    assert problems == []


def test_list_of_one_column(tmp_path):
    (tmp_path / "a b, c;d.nii").touch()
    runs, problems = read_manifest(write(tmp_path, "bold\na b, c;d.nii\n\nb c.nii\n"))
    assert [Path(run.path).name for run in runs] == ["a b, c;d.nii"]
    assert [problem.reason.split(": ")[0] for problem in problems] == [
        f"line 4 of {tmp_path / 'table.tsv'} names a bold file that isn't there"
    ]


def test_rows_of_a_list_that_are_too_long(tmp_path):
    (tmp_path / "a.nii").touch()
    _, problems = read_manifest(write(tmp_path, "bold\tt_r\na.nii\t2\tx\n"))
    assert [problem.reason for problem in problems] == [f"line 2 of {tmp_path / 'table.tsv'} has 3 cells, expected 2"]


def test_few_items_are_listed():
    assert listed([1, 2, 3]) == "1, 2, 3"
    assert listed(range(9), 2) == "0, 1 and 7 more"


@pytest.mark.parametrize(
    "text",
    [
        "a\tb\n" + "1\t2\n" * 20_000 + "1\t2" + "\t" * 20_000 + "\n",
        "a b\n" + " " * 200_000 + "x\n" + "1 2\n" * 1000,
        'a\tb\n"' + 'x"' * 100_000 + "\n",
        'a\tb\n"' + "x\n" * 100_000,
        "\n" * 200_000 + "a\tb\n1\t2",
        "|" * 200_000 + "\n",
        "a  b\tc \n" * 20_000,
    ],
    ids=["a long row", "blanks", "quotes", "an open quote", "empty lines", "separators", "aligned"],
)
def test_hostile_tables_take_linear_time(tmp_path, text):
    path = tmp_path / "t.tsv"
    path.write_text(text)
    begin = time.process_time()
    with contextlib.suppress(ValueError):
        read_text_table(path, "a table", lambda row: True)
    assert time.process_time() - begin < 2  # rows times columns took 14 s
