"""Numbers of tables are read exactly, and other texts are refused; with the compiled reader and without."""

import random

import numpy as np
import pytest

from gpumask.kernels import compiled
from gpumask.tables import read_numbers, table_lines

from .helpers import needs_compiled


@pytest.fixture(params=[pytest.param(True, marks=needs_compiled), False], ids=["compiled", "python"])
def reader(request, monkeypatch):
    monkeypatch.setattr(compiled, "is_compiled", request.param)


def text(*cells):
    return "".join(f"{cell}\n" for cell in cells).encode()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_table_lines_writes_is_read_back(reader, dtype):
    """Numbers of any bits: subnormal ones, infinite ones, NaN."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), (60, 50), dtype=f"u{dtype[1]}").view(dtype)
    bits[np.isnan(bits)] = np.nan  # signalling ones are warned about
    values = np.concatenate([bits, rng.normal(size=(60, 50)).astype(dtype), np.zeros((1, 50), dtype)])
    values[0, :3] = np.nan, np.inf, -np.inf
    names = [f"r{k}" for k in range(50)]
    for index in (None, [f"row {k}" for k in range(len(values))]):
        _, *lines = table_lines(names if index is None else ["", *names], values, index)
        found = read_numbers("".join(lines).encode(), 50, labelled=index is not None)
        np.testing.assert_array_equal(found.astype(dtype), values)
        assert found.dtype == np.float64


def test_any_decimal_becomes_the_nearest_double(reader):
    """Against Python's float, bit for bit: up to 19 digits, exponents, and numbers halfway between two doubles."""
    draw = random.Random(0)
    cells = []
    for _ in range(4000):
        digits = "".join(draw.choices("0123456789", k=draw.randint(1, 19)))
        point = draw.randint(0, len(digits))
        exponent = draw.choice(["", "", f"e{draw.randint(-30, 30)}", f"e+{draw.randint(0, 400)}"])
        cells.append(f"{draw.choice(['', '-'])}{digits[:point]}.{digits[point:]}{exponent}")
    for _ in range(2000):
        odd = draw.randrange(2**53 + 1, 2**54, 2)  # halfway between two doubles
        cells += [str(odd), f"{5 * odd}e-1", f"{str(5 * odd)[:-9]}.{str(5 * odd)[-9:]}", f"0.{odd}"]
    cells += ["0", "-0.0", "1e22", "1e23", "9007199254740993", "123456789012345678", "1e-22", "5e-324", "1e400"]
    found = read_numbers(text(*cells), 1)[:, 0]
    expected = np.array([float(cell) for cell in cells])
    np.testing.assert_array_equal(found.view(np.uint64), expected.view(np.uint64))


@pytest.mark.parametrize(
    "cell",
    ["", "x", "1x", "1.2.3", "1e", "1e+", "-", "1_0", " 1", "1 ", "1,5", "n/a ", "N/A", "0x10", "1\0", "\u0661"],
)
def test_cells_that_are_no_numbers(reader, cell):
    for content in (text(cell), text(f"1\t{cell}"), text(f"{cell}\t1")):
        with pytest.raises(ValueError):
            read_numbers(content, content.count(b"\t") + 1)


@pytest.mark.parametrize(
    ("body", "n_columns", "labelled"),
    [
        (b"1\t2\n3\n", 2, False),
        (b"1\t2\n3\t4\t5\n", 2, False),
        (b"1\t2\n3\t4", 2, False),
        (b"1\t2\n\n", 2, False),
        (b"1\n\n\n\n", 1, False),
        (b"a\t1\nb\n", 1, True),
        (b"a\nb\t1\n", 1, True),
        (b"a\t1\t2\n", 1, True),
        (b"1\t2\r\n", 2, False),
        (b"\n" * 50, 10**12, False),
        (b"1\n", 0, False),
    ],
)
def test_other_shapes(reader, body, n_columns, labelled):
    with pytest.raises(ValueError):
        read_numbers(body, n_columns, labelled=labelled)


def test_no_rows(reader):
    assert read_numbers(b"", 3).shape == (0, 3)


def test_labels_are_skipped(reader):
    body = 'n/a\t1\tn/a\n"a b"\t-2\t0.5\n\t3\t4\nü\t5\t6\n'.encode()
    np.testing.assert_array_equal(read_numbers(body, 2, labelled=True), [[1, np.nan], [-2, 0.5], [3, 4], [5, 6]])
