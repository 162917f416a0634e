"""Tables of seeds: what is read, and the messages about what can't be."""

import re

import numpy as np
import pytest

from gpumask.images.seeds import load_seeds

EXPECTED = "Expected a table of seeds with the columns 'x', 'y' and 'z' (mm), and optionally 'name' and 'radius' (mm)."


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "seeds.tsv"
        path.write_text(text)
        return path

    return write


def test_coordinates_alone(write):
    seeds = load_seeds(write("x\ty\tz\n-3\t50.5\t1e1\n0\t-52\t26\n"))
    assert seeds.names == ["seed0", "seed1"]
    assert seeds.radii == [None, None]
    assert seeds.coordinates.dtype == np.float64
    np.testing.assert_array_equal(seeds.coordinates, [[-3, 50.5, 10], [0, -52, 26]])


def test_names_and_radii_in_any_order(write):
    seeds = load_seeds(
        str(write("Label,Radius,network,Z,Y,X\nPCC,8,DMN,26,-52,0\nmPFC,n/a,DMN,1,50,-3\nV1,,x,0,0,0\n"))
    )
    assert seeds.names == ["PCC", "mPFC", "V1"]
    assert seeds.radii == [8.0, None, None]
    np.testing.assert_array_equal(seeds.coordinates, [[0, -52, 26], [-3, 50, 1], [0, 0, 0]])


def test_name_goes_before_label(write):
    assert load_seeds(write("x y z label name\n1 2 3 7 a\n")).names == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t2\t3\n4\t5\t6\n", f", line 1: has numbers instead of column names. {EXPECTED}"),
        ("x\ty\n1\t2\n", f" has no column 'z'; it has ['x', 'y']. {EXPECTED}"),
        ("x\ty\tz\tX\n1\t2\t3\t4\n", f" has several columns called 'x'. {EXPECTED}"),
        ("x\ty\tz\n", f" has no seed. {EXPECTED}"),
        ("x\ty\tz\n1\t2\t3\n1\tn/a\t3\n", ", line 3: y is 'n/a', expected a number of mm."),
        ("x\ty\tz\n1\t2\tinf\n", ", line 2: z is 'inf', expected a number of mm."),
        ("x\ty\tz\tradius\n1\t2\t3\t-1\n", ", line 2: radius is '-1', expected a number of mm, 0 or more, or n/a."),
        ("x\ty\tz\tradius\n1\t2\t3\t8mm\n", ", line 2: radius is '8mm', expected a number of mm, 0 or more, or n/a."),
        ("x\ty\tz\tname\n1\t2\t3\ta\n1\t2\t3\t\n", ", line 3: the seed has no name. Name all seeds, or drop the "
         "column of names."),
        ("x\ty\tz\tname\n1\t2\t3\ta\n4\t5\t6\tb\n7\t8\t9\ta\n", ": the name 'a' occurs in the lines 2, 4. Each seed "
         "needs its own name."),
    ],
)  # fmt: skip
def test_tables_that_are_not_seeds(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}{message}')}$"):
        load_seeds(path)


def test_missing_file(tmp_path):
    path = tmp_path / "none.tsv"
    with pytest.raises(ValueError, match=f"^{re.escape(f'No such file: {path}. {EXPECTED}')}$"):
        load_seeds(path)
