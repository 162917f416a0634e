"""Names of regions: the table that an atlas inherits, warnings, and labels that tell regions of one name apart."""

import html
import json
import random
import re
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask.bids import names as bids_names
from gpumask.bids.names import lookup_table_of, parse_output_name
from gpumask.cli import main
from gpumask.cohort.atlas_file import AtlasFile, lut_beside
from gpumask.cohort.parquet import column_names
from gpumask.tables import cells, table_lines

from .cohorts import make_atlases, make_cohort

# The table beside an atlas

IMAGE = "tpl-MNI152NLin2009cAsym_res-02_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.nii.gz"


@pytest.mark.parametrize(
    ("image", "names", "expected"),
    [
        (IMAGE, ["tpl-MNI152NLin2009cAsym_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.tsv"], 0),
        (IMAGE, ["atlas-Schaefer2018_dseg.tsv", "atlas-Schaefer2018_desc-400Parcels7Networks_dseg.tsv"], 1),
        (IMAGE, ["atlas-Schaefer2018_desc-800Parcels7Networks_dseg.tsv", "atlas-Schaefer2018_dseg.tsv"], 1),
        (IMAGE, [IMAGE.replace("nii.gz", "tsv"), "atlas-Schaefer2018_dseg.tsv"], 0),
        (IMAGE, ["atlas-Schaefer2018_probseg.tsv", "atlas-Schaefer2018_dseg.json", "atlas-Other_dseg.tsv"], None),
        (IMAGE, ["tpl-MNI152NLin2009cAsym_dseg.tsv", "dseg.tsv"], None),  # of tissues, not of this atlas
        ("atlas-4S156Parcels_space-MNI152NLin6Asym_res-01_dseg.nii.gz", ["atlas-4S156Parcels_dseg.tsv"], 0),
        ("atlas-4S156Parcels_space-MNI152NLin6Asym_res-01_dseg.nii", ["atlas-4S156Parcels_dseg.tsv"], 0),
        ("sub-01_desc-aseg_dseg.nii.gz", ["desc-aparcaseg_dseg.tsv", "desc-aseg_dseg.tsv"], 1),
        ("tpl-X_res-1_dseg.nii.gz", ["tpl-X_dseg.tsv"], 0),
        ("Schaefer 400.nii.gz", ["Schaefer 400.tsv", "dseg.tsv"], 0),
        ("Schaefer.400.nii.gz", ["Schaefer.400.tsv"], 0),
        ("aparc+aseg.mgz", ["aparc+aseg.tsv"], 0),
        ("Schaefer 400.nii.gz", ["dseg.tsv"], None),
    ],
)
def test_inheritance(image, names, expected):
    assert lookup_table_of(image, names) == (None if expected is None else names[expected])


def test_tables_that_apply_equally(tmp_path):
    for name in ("atlas-A_res-1_dseg.tsv", "tpl-X_atlas-A_dseg.tsv", "tpl-X_atlas-A_res-1_dseg.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError) as error:
        lut_beside(tmp_path / "tpl-X_atlas-A_res-1_dseg.nii.gz")
    assert str(error.value) == (
        f"{tmp_path}: tpl-X_atlas-A_res-1_dseg.nii.gz has 2 candidates for its look-up table, expected one: "
        "atlas-A_res-1_dseg.tsv, tpl-X_atlas-A_dseg.tsv. Choose one: lut (--lut)."
    )


def test_tables_above_within_a_data_set(tmp_path):
    folder = tmp_path / "set" / "tpl-X" / "cohort-1"
    folder.mkdir(parents=True)
    image = folder / "tpl-X_atlas-A_dseg.nii.gz"
    (tmp_path / "atlas-A_dseg.tsv").touch()
    (tmp_path / "set" / "tpl-X_atlas-A_dseg.tsv").touch()
    assert lut_beside(image) is None  # it isn't known where a data set ends
    (tmp_path / "set" / "dataset_description.json").touch()
    assert lut_beside(image) == tmp_path / "set" / "tpl-X_atlas-A_dseg.tsv"
    (tmp_path / "set" / "tpl-X_atlas-A_dseg.tsv").unlink()
    assert lut_beside(image) is None
    (folder.parent / "atlas-A_dseg.tsv").touch()
    assert lut_beside(image) == folder.parent / "atlas-A_dseg.tsv"
    (folder / "atlas-A_dseg.tsv").touch()
    assert AtlasFile(image).lut == str(folder / "atlas-A_dseg.tsv")
    assert AtlasFile(image, find_lut=False).lut is None


# The command line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with two runs and atlases; the labels of the first are 10, 20, 30, 40, 50 and 99."""
    monkeypatch.chdir(tmp_path)
    make_cohort(tmp_path / "d", 2, bad=False)
    make_atlases(tmp_path)
    return tmp_path


def cohort(*options):
    atlas = [] if "--atlas" in options else ["--atlas", "atlas-Toy_dseg.nii.gz"]
    return main(["cohort", "d", "out", "participant", "--device", "cpu", *atlas, *options])


def write_table(names, index=(10, 20, 30, 40, 50, 99)):
    pd.DataFrame({"index": index, "name": names}).to_csv("atlas-Toy_dseg.tsv", sep="\t", index=False)


def test_consistent_names_are_quiet(folder, capsys):
    assert cohort("--dry-run", "--store", "s.parquet") == 0
    assert capsys.readouterr().err == ""


def test_names_that_stay_numbers(folder, capsys):
    (folder / "atlas-Toy_dseg.tsv").unlink()
    assert cohort("--dry-run") == 0
    assert capsys.readouterr().err == (
        f"warning: {folder}/atlas-Toy_dseg.nii.gz: no look-up table found: regions are named by their labels.\n"
    )


@pytest.mark.parametrize("command", ["cohort", "extract"])
def test_image_and_table_disagree(folder, capsys, command):
    write_table(["a", "b", "c", "x"], [10, 20, 30, 31])
    run = next((folder / "d").rglob("*_bold.nii.gz"))
    words = ["--atlas", "atlas-Toy_dseg.nii.gz", "--lut", "atlas-Toy_dseg.tsv", "--device", "cpu"]
    extract = ["extract", str(run), *words, "--out", "single"]
    assert (cohort("--no-relmat") if command == "cohort" else main(extract)) == 0
    lead = "" if command == "cohort" else "atlas-Toy_dseg.nii.gz: "
    err = capsys.readouterr().err.splitlines()
    assert [line for line in err if "doesn't fit" in line] == [
        f"{lead}warning: {folder}/atlas-Toy_dseg.tsv doesn't fit {folder}/atlas-Toy_dseg.nii.gz: 3 labels without a "
        "row (called 'unknown'): 40, 50, 99; 1 row without a label: 31 (x). Give the table of this atlas."
    ]
    table = next((folder / ("out" if command == "cohort" else "single")).rglob("*_timeseries.tsv"))
    assert table.read_text().splitlines()[0].split("\t") == ["a", "b", "c", *(f"unknown [{n}]" for n in (40, 50, 99))]


@pytest.mark.parametrize("command", ["cohort", "extract"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index\tname\n1\tA\n2\tB\n", "{lut} matches no label of {atlas}: 6 labels without a row"),
        ("index\tname\n10\tA\n20\n", "{lut}, line 3: has 1 cell, expected 2"),
        ("", "{lut} is empty."),
        ("<xml/>", "{lut}, line 1: is XML or HTML."),
        ("index\tname\n10\tA\n10\tB\n", "{lut} has several rows for [10]."),
    ],
)
def test_unusable_tables_exit_2(folder, capsys, command, text, words):
    lut = folder / "atlas-Toy_dseg.tsv"
    lut.write_text(text)
    run = next((folder / "d").rglob("*_bold.nii.gz"))
    options = ["--atlas", "atlas-Toy_dseg.nii.gz", "--lut", lut.name]
    before = sorted(folder.rglob("*"))
    assert (cohort() if command == "cohort" else main(["extract", str(run), *options])) == 2
    message = words.format(lut=lut, atlas=folder / "atlas-Toy_dseg.nii.gz")
    out, err = capsys.readouterr()
    assert err.startswith(f"gpumask {command}: error: {message}")
    assert (err.count("\n"), out, sorted(folder.rglob("*"))) == (1, "", before)


# Labels tell regions apart


@pytest.mark.parametrize(
    ("names", "ids", "expected"),
    [
        (["a", "b"], [1, 2], ["a", "b"]),
        (["a", "b", "a"], [1, 2, 7], ["a [1]", "b", "a [7]"]),
        (["run", "b"], [1, 2], ["run [1]", "b"]),
        (["a", "a"], [0.5, 1000001.0], ["a [0.5]", "a [1000001]"]),
        (["unknown"] * 3, [1, 2, 3], ["unknown [1]", "unknown [2]", "unknown [3]"]),
        (["a", "a", "a [1]"], [1, 2, 3], ["a [1] [1]", "a [2]", "a [1] [3]"]),
        (["a", "b"], None, ["a", "b"]),
    ],
)
def test_columns_of_regions(names, ids, expected):
    assert column_names(names, ids) == expected


@pytest.mark.parametrize(("names", "twice"), [(["b", "b"], "b"), (["run"], "run")])
def test_columns_that_stay_the_same(names, twice):
    with pytest.raises(ValueError, match=f"^columns of a Parquet file need different names, but {twice} would occur"):
        column_names(names, None)


def test_duplicates_are_stored(folder, capsys):
    pytest.importorskip("pyarrow")
    write_table(["Vis", "Vis", "run", "Mot", "Vis", "x"])
    assert cohort("--store", "s.parquet") == 0
    assert capsys.readouterr().err.splitlines()[:2] == [
        f"warning: {folder}/atlas-Toy_dseg.tsv has several regions called Vis. Their columns have the label too: "
        "'Vis [10]'.",
        "warning: Toy: run: reserved. Their columns in --store are 'run [30]' etc.",
    ]
    columns = ["Vis [10]", "Vis [20]", "run [30]", "Mot", "Vis [50]", "x"]
    frame = pd.read_parquet("s.parquet")
    assert list(frame)[-6:] == columns
    tables = sorted((folder / "out").rglob("*_timeseries.tsv"))
    assert len(tables) == 2
    for (_, part), table in zip(frame.groupby("name", observed=True), tables, strict=True):
        cells = [line.split("\t") for line in table.read_text().splitlines()[1:]]
        expected = np.array(cells, object).astype("U").astype(object)
        expected[expected == "n/a"] = "nan"
        np.testing.assert_array_equal(part[columns].to_numpy(), expected.astype(float))


def test_names_that_look_like_ours_are_stored(folder):
    pytest.importorskip("pyarrow")
    write_table(["a", "a", "a [10]", "b", "c", "d"])
    assert cohort("--store", "s.parquet") == 0
    assert list(pd.read_parquet("s.parquet"))[-6:] == ["a [10] [10]", "a [20]", "a [10] [30]", "b", "c", "d"]


def test_labels_stand_in_every_sidecar(folder):
    write_table(["same"] * 6)
    assert cohort() == 0
    sidecars = [
        path for path in (folder / "out").rglob("*.json") if "_stat-" in path.name and path.name.startswith("sub-")
    ]
    assert len(sidecars) == 2 * 3
    labels = np.asanyarray(nib.load("atlas-Toy_dseg.nii.gz").dataobj)
    for path in sidecars:
        regions = json.loads(path.read_text())["Regions"]
        assert [region["index"] for region in regions] == [label for label in np.unique(labels).tolist() if label]
        assert [region["name"] for region in regions] == [f"same [{region['index']}]" for region in regions]


# Names that readers of tables would change

ODD = ["NA", '"Area 4" (left)', "=cmd|' /C calc'!A0", "dup", "dup", '"']
COLUMNS = ["NA", '"Area 4" (left)', "=cmd|' /C calc'!A0", "dup [40]", "dup [50]", '"']


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (ODD, COLUMNS),
        (["nan", "null", "None", "N/A", "#NA", "1.5"], None),
        (
            ["", "n/a", "x", 'mid "quote"', "'single'", "#"],
            ["unknown [10]", "unknown [20]", "x", 'mid "quote"', "'single'", "#"],
        ),
        (["a\tb", "a b", "a\nb", "Node", '""', 'a"'], ["a b [10]", "a b [20]", "a b [30]", "Node [40]", '""', 'a"']),
        (["a\xa0b", "\u00e9", "-1", "@x", "+", "run"], None),
    ],
)
def test_columns_are_what_pandas_reads(folder, names, columns):
    """Tables by pandas' default reader; page, store and figures have the same names."""
    pytest.importorskip("pyarrow")
    write_table(names)
    expected = columns or names
    assert cohort("--store", "s.parquet") == 0
    tables = sorted((folder / "out").rglob("sub-*_atlas-*.tsv"))
    assert len(tables) == 2 * 3
    for table in tables:
        read = pd.read_csv(table, sep="\t", keep_default_na=False)
        kind = table.name.removesuffix(".tsv").rpartition("_")[2]
        if kind != "timeseries":
            assert read["Node"].tolist() == expected
        if kind != "bold":
            assert pd.read_csv(table, sep="\t").columns.tolist() == ["Node"] * (kind == "relmat") + expected
        index = json.loads(table.with_suffix(".json").read_text())["Regions"]
        assert [region["name"] for region in index] == expected
    page = (folder / "out" / "cohort.html").read_text()
    assert all(html.escape(name) in page for name in expected)
    assert "Skipped" not in page
    stored = [f"{name} [99]" if name == "run" else name for name in expected]
    assert list(pd.read_parquet("s.parquet"))[-6:] == stored


@pytest.mark.parametrize("names", [ODD, ["nan", "null", "None", "N/A", "$x$", "1.5"]])
def test_figures_of_odd_names(folder, names):
    pytest.importorskip("matplotlib")
    write_table(names)
    assert cohort("--figures") == 0
    assert len(list((folder / "out" / "figures").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [("a\tb\n", ["a", "b"]), ('"""a"" b"\t""""\t""""""\ta"b\n', ['"a" b', '"', '""', 'a"b'])],
)
def test_cells_of_our_lines(line, expected):
    assert cells(line) == expected
    assert next(table_lines(expected, np.empty((0, len(expected))))) == line


# Names of outputs, and names of any length

OUTPUT = re.compile(
    r"(.+)_(?:atlas|seg)-([a-zA-Z0-9]+)((?:_[a-zA-Z0-9]+-[a-zA-Z0-9+]+)*)_stat-([a-zA-Z0-9]+)"
    r"(?:_desc-([a-zA-Z0-9]+))?_([a-zA-Z0-9]+)\.tsv"
)


def test_output_names_are_those_of_one_pattern():
    """The pattern takes the square of a name's length, so the parser does without."""
    rng = random.Random(0)
    parts = [
        "sub-1",
        "_",
        "_atlas-A",
        "_seg-B",
        "_res-2",
        "_stat-mean",
        "_desc-x",
        "_bold",
        ".tsv",
        "-",
        "+",
        "_atlas-A+",
        "",
    ]
    ends = [
        "_stat-mean_timeseries.tsv",
        "_stat-mean_desc-24p_timeseries.tsv",
        "_atlas-C_stat-mean_bold.tsv",
        "_bold.tsv",
    ]
    n_found = 0
    for _ in range(20_000):
        name = "".join(rng.choices(parts, k=rng.randint(1, 6))) + rng.choice(ends)
        expected = (match := OUTPUT.fullmatch(name)) and (
            match[1] + match[3],
            match[2],
            match[4],
            match[5] or "",
            match[6],
        )
        found = parse_output_name(name)
        assert (found and tuple(found)) == expected, name
        n_found += found is not None
    assert n_found > 1000


@pytest.mark.parametrize(
    "unit", ["a", "a-", "a-b_", "x_atlas-a", "_stat-a", "_a-b_stat-b", ".nii", "/", "1.", "sub-", "_"]
)
def test_long_names_take_linear_time(unit):
    name = (unit * 200_000)[:200_000]
    parsers = (bids_names.image_stem, bids_names.parse_name, bids_names.identifying_entities, parse_output_name)
    parsers += (bids_names.run_folder, bids_names.is_run_name, bids_names.atlas_name, bids_names.labels_in)
    for parser in parsers:
        begin = time.process_time()
        parser(name)
        parser(f"{name}_stat-mean_bold.tsv")
        assert time.process_time() - begin < 2, parser  # a quadratic one takes minutes
