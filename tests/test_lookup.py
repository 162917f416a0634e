"""Look-up tables in the forms that programs write, compared with the labels of the image."""

import re
import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.maskers import NiftiLabelsMasker as NilearnMasker

from gpumask import NiftiLabelsMasker
from gpumask.images.lookup import disagreement, read_lookup_table, region_names

AFFINE = np.diag([3.0, 3, 3, 1])
NAMES = ["NA", "None", "Left, front (a) 1/2"]
TABLE = {"index": [1, 2, 3], "name": NAMES}


def atlas_of(*values, dtype="i2"):
    labels = np.zeros((6, 5, 4), dtype)
    for k, value in enumerate(values):
        labels[:, :, k % 4][k // 4] = value
    return nib.Nifti1Image(labels, AFFINE, dtype=labels.dtype)


def run():
    return nib.Nifti1Image(np.random.default_rng(0).normal(size=(6, 5, 4, 3)), AFFINE)


FORMS = {
    "BIDS": "index\tname\n1\tNA\n2\tNone\n3\tLeft, front (a) 1/2\n",
    "more columns": "name\tcolor\tindex\nNA\t#ff0000\t1\nNone\t\t2\nLeft, front (a) 1/2\t#00ff00\t3\n",
    "label for name": "index\tlabel\n1\tNA\n2\tNone\n3\tLeft, front (a) 1/2\n",
    "quoted": '"index","name"\n1,NA\n2,None\n3,"Left, front (a) 1/2"\n',
    "quoted after a blank": 'index, name\n1, NA\n2, None\n3, "Left, front (a) 1/2"\n',
    "semicolons of Excel": "\ufeffindex;name;\r\n1;NA;\r\n2;None;\r\n3;Left, front (a) 1/2;\r\n;;\r\n",
    "rows end in a tab": "index\tname\n1\tNA\t\n2\tNone\t\n3\tLeft, front (a) 1/2\t\n",
    "pandas' index": ',index,name\n0,1,NA\n1,2,None\n2,3,"Left, front (a) 1/2"\n',
    "R": '"index"\t"name"\n"1"\t1\t"NA"\n"2"\t2\t"None"\n"3"\t3\t"Left, front (a) 1/2"\n',
    "comment rows": "# my atlas\nindex\tname\n# left\n1\tNA\n\n2\tNone\n# right\n3\tLeft, front (a) 1/2\n",
    "Schaefer": "1\tNA\t120\t18\t131\t0\n2\tNone\t120\t18\t132\t0\n3\tLeft, front (a) 1/2\t121\t18\t133\t0\n",
    "index and name alone": "1\tNA\n2\tNone\n3\tLeft, front (a) 1/2\n",
    "floats": "index\tname\n1.0\tNA\n2.0\tNone\n3.0\tLeft, front (a) 1/2\n",
    "not in order": "index\tname\n3\tLeft, front (a) 1/2\n1\tNA\n2\tNone\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
    path = tmp_path / "lut.tsv"
    path.write_bytes(FORMS[form].encode())
    assert region_names(np.array([1, 2, 3]), read_lookup_table(path)) == NAMES
    masker = NiftiLabelsMasker(atlas_of(1, 2, 3), lut=path)  # warnings are errors here
    masker.fit_transform(run())
    assert list(masker.region_names_.values()) == NAMES


def test_tables_of_freesurfer(tmp_path):
    """Blanks align the columns; the row of names is a comment, as are groups; there is an alpha, mostly 0."""
    path = tmp_path / "LUT.txt"
    path.write_text(
        "#$Id: FreeSurferColorLUT.txt $\n\n#No. Label Name:                            R   G   B   A\n\n"
        "0   Unknown                                 0   0   0   0\n"
        "2   Left-Cerebral-White-Matter              245 245 245 0\n"
        "3   Left-Cerebral-Cortex                    205 62  78  0\n\n# Below is the\n"
        "1001    ctx-lh-bankssts                     25  100 40  0\n"
    )
    assert read_lookup_table(path) == {
        "index": [0, 2, 3, 1001],
        "name": ["Unknown", "Left-Cerebral-White-Matter", "Left-Cerebral-Cortex", "ctx-lh-bankssts"],
    }
    masker = NiftiLabelsMasker(atlas_of(2, 3, 1001), lut=path).fit()
    assert list(masker.region_names_.values()) == read_lookup_table(path)["name"][1:]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 Precentral_L 2001\n2 Precentral_R 2002\n", ["Precentral_L", "Precentral_R"]),  # AAL
        ("1,Left,x\n2,Right,\n", ["Left", "Right"]),
        ('1 "Left one"\n2 "Right one"\n', ["Left one", "Right one"]),
        ("index   name\n1       Left one\n2       Right one\n", ["Left one", "Right one"]),
    ],
)
def test_other_tables(tmp_path, text, expected):
    path = tmp_path / "lut.txt"
    path.write_text(text)
    assert read_lookup_table(path)["name"] == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index\tname\n1\tA\textra\n2\tB\n", ", line 2: has 3 cells, expected 2, as in line 1 (index, name)."),
        ("index\tname\n1\n2\tB\n", ", line 2: has 1 cell, expected 2"),
        ("index,name\n1,A, left\n2,B\n", ", line 2: has 3 cells, expected 2"),
        ("index name\n1 A left\n2 B\n", ", line 2: has 3 cells, expected 2"),
        ("index\tname\none\tA\n", ", line 2: the index is 'one', expected a number"),
        ("index\tname\n1\tA\n\tB\n", ", line 3: the index is '', expected a number"),
        ("index\tname\n1_0\tA\n", ", line 2: the index is '1_0', expected a number"),
        ("1\t255\t0\t0\t1\t1\t1\tLabel 1\n", ", line 1: has no name after the index: 1, 255, 0, 0, 1"),  # ITK-SNAP
        ("1\n2\n", ", line 1: has no name after the index: 1."),
        ("A\nB\n", " must have the columns 'index' and 'name', but lacks ['index', 'name']; it has ['A']."),
        ("index\tname\tname\n1\tA\tB\n", " has several columns called name. Expected a look-up table"),
        ("index\tname\n1\tA\n01\tB\n", " has several rows for [1]. Each region's index must occur once."),
        ("1 A\n1 B\n", " has several rows for [1]."),
    ],
)
def test_unreadable_tables(tmp_path, text, words):
    path = tmp_path / "lut.tsv"
    path.write_text(text)
    for read in (read_lookup_table, lambda path: NiftiLabelsMasker(atlas_of(1), lut=path).fit()):
        with pytest.raises(ValueError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}{words}")


def test_rows_without_a_name_are_no_rows(tmp_path):
    path = tmp_path / "lut.tsv"
    path.write_text("index\tname\tx\n1\tA\t1\n2\t\t2\n3\tn/a\t3\n")
    assert read_lookup_table(path) == {"index": [1], "name": ["A"], "x": [1]}


def test_reading_imports_no_pandas():
    import subprocess
    import sys

    code = "import sys, gpumask.images.lookup, gpumask.text_tables; print('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


# Image and table


def message_of(labels, index, background=0, names=None):
    columns = {"index": index, "name": names or [f"n{label}" for label in index]}
    found = disagreement(np.array(labels), background, columns, image="a.nii", table="l.tsv")
    return found and (found.nothing_matches, found.message)


@pytest.mark.parametrize(
    ("labels", "index", "background"),
    [
        ([0, 1, 2], [1, 2], 0),
        ([0, 1, 2], [0, 1, 2], 0),
        ([1, 2], [0, 1, 2], 0),
        ([0.0, 1.0, 2.0], [2, 1], 0),
        ([0, 1, 2], [1.0, 2.0], 0),
        ([-1, 0, 1], [0, 1], -1),
        ([0, 5, 7], [0, 7], 5),
    ],
)
def test_that_all_have_a_partner(labels, index, background):
    assert message_of(labels, index, background) is None


@pytest.mark.parametrize(
    ("labels", "index", "nothing", "message"),
    [
        ([0, 1, 2], [1], False, "l.tsv doesn't fit a.nii: 1 label without a row (called 'unknown'): 2. Give the"),
        ([0, 1], [1, 9], False, "l.tsv has 1 row without a label in a.nii: 9 (n9)."),
        (
            range(21),
            range(11),
            False,
            "l.tsv doesn't fit a.nii: 10 labels without a row (called 'unknown'): 11, 12, 13, 14, 15 and 5 more. Give",
        ),
        (
            [0, 1, 2],
            [1, 7, 8],
            False,
            "l.tsv doesn't fit a.nii: 1 label without a row (called 'unknown'): 2; 2 rows without a label: 7 (n7), 8 "
            "(n8). Give",
        ),
        ([0, 1, 2], [11, 12], True, "l.tsv matches no label of a.nii: 2 labels without a row (called 'unkno"),
        ([0, 1, 2], [], True, "l.tsv matches no label of a.nii: 2 labels"),
        ([0, 1, 2], ["one", "two"], True, "l.tsv matches no label of a.nii: 2 labels"),
    ],
)
def test_disagreements(labels, index, nothing, message):
    found = message_of(list(labels), list(index))
    assert found[0] == nothing
    assert found[1].startswith(message)


@pytest.mark.parametrize(
    ("labels", "names", "hint"),
    [
        ([0, 1, 2, 3], ["A", "B", "C"], True),
        ([1, 2, 3], ["A", "B", "C"], True),
        ([0, 1, 2, 3], ["Background", "A", "B"], False),
        ([0, 1, 2, 3], ["Unknown", "A", "B"], False),
        ([0, 1, 2, 4], ["A", "B", "C"], False),
    ],
)
def test_an_index_that_starts_at_0(labels, names, hint):
    """templateflow#16: the names would be shifted by one. Not if row 0 is the background's."""
    _, message = message_of(labels, [0, 1, 2], names=names)
    assert ("The index seems to start at 0, the labels at 1: if so, add 1" in message) == hint


@pytest.mark.parametrize(
    ("index", "messages"),
    [
        ([1, 2, 3], []),
        ([0, 1, 2, 3], []),
        (["1", "2", "3"], []),
        ([" 1", "2.0", "03"], []),
        (np.array([1, 2, 3], object), []),
        ([1, 2], ["`lut` doesn't fit the label image: 1 label without a row (called 'unknown'): 3. Give the table"]),
        ([1, 2, 3, 4], ["`lut` has 1 row without a label in the label image: 4 (n3)."]),
        (["a", "b", "c"], ["`lut` matches no label of the label image: 3 labels without a row"]),
    ],
)
def test_the_masker_warns_and_goes_on_as_nilearn_does(index, messages):
    lut = pd.DataFrame({"index": index, "name": [f"n{k}" for k in range(len(index))]})
    before = lut.copy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        masker = NiftiLabelsMasker(atlas_of(1, 2, 3), lut=lut)
        signals = masker.fit_transform(run())
    assert [str(w.message)[: len(m)] for w, m in zip(caught, messages, strict=True)] == messages
    pd.testing.assert_frame_equal(lut, before)
    theirs = NilearnMasker(atlas_of(1, 2, 3), standardize=None).fit_transform(run())
    np.testing.assert_allclose(signals, theirs, rtol=1e-12)
    numbers = pd.to_numeric(lut["index"], errors="coerce").tolist()
    expected = [f"n{numbers.index(label)}" if label in numbers else "unknown" for label in (1, 2, 3)]
    assert list(masker.region_names_.values()) == expected


def test_texts_that_are_one_number():
    lut = pd.DataFrame({"index": ["1", "01"], "name": ["A", "B"]})
    with pytest.raises(ValueError, match=re.escape("`lut` has several rows for [1].")):
        NiftiLabelsMasker(atlas_of(1), lut=lut).fit()


# The masker's own names

POLARS = pytest.importorskip("polars", reason="a table library of its own")


@pytest.mark.parametrize(
    "make", [list, np.array, lambda v: np.array(v, object), pd.Series, pd.Index, POLARS.Series, pd.array]
)
@pytest.mark.parametrize("names", [["a", "b", "c"], ["Background", "a", "b", "c"]])
def test_names_in_arrays_and_series(make, names):
    masker = NiftiLabelsMasker(atlas_of(1, 2, 3), labels=make(names)).fit()
    assert masker.region_names_ == {0: "a", 1: "b", 2: "c"}
    assert masker.lut_["name"].tolist() == ["Background", "a", "b", "c"]
    assert all(type(name) is str for name in masker.region_names_.values())


@pytest.mark.parametrize("nothing", [None, [], np.array([]), pd.Series([], dtype=object)])
def test_no_names(nothing):
    masker = NiftiLabelsMasker(atlas_of(4), labels=nothing, lut=pd.DataFrame({"index": [4], "name": ["A"]}))
    assert masker.fit().region_names_ == {0: "A"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a", "b"}, "'labels' must be a list. Got: set"),
        ("ab", "'labels' must be a list. Got: str"),
        (pd.DataFrame({"name": ["a"]}), "'labels' must be a list. Got: DataFrame of 2 dimensions"),
        (np.array([["a", "b"]]), "'labels' must be a list. Got: ndarray of 2 dimensions"),
        (np.array([1, 2]), "All elements of 'labels' must be a string.\nGot a list of {'int64'}"),
        (pd.Series(["a", np.nan], dtype=object), "All elements of 'labels' must be a string."),
    ],
)
def test_names_of_other_types(labels, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        NiftiLabelsMasker(atlas_of(1, 2), labels=labels).fit()


@pytest.mark.parametrize(
    "second", [["a", "b"], ("a", "b"), np.array(["a", "b"]), pd.Series(["a", "b"]), pd.DataFrame(TABLE)]
)
def test_names_in_nilearns_position(second):
    with pytest.raises(TypeError) as error:
        NiftiLabelsMasker(atlas_of(1, 2), second).fit()
    assert str(error.value) == (
        "'background_label' must be of type(s): 'float | numpy.floating | int | numpy.integer'.\n"
        f"Got: '{type(second).__name__}'\n"
        "It is the second positional argument. Pass names as labels=names, a table as lut=table."
    )


@pytest.mark.parametrize("label", [["", "n/a"], [None, np.nan], [pd.NA, "n/a"]], ids=str)
def test_rows_without_a_name(label):
    """pandas reads the names "NA", "nan" and "null" of a table as missing ones."""
    lut = pd.DataFrame({"index": [1, 2, 3], "name": [*label, "A"]})
    masker = NiftiLabelsMasker(atlas_of(1, 2, 3), lut=lut).set_output(transform="pandas")
    message = "`lut` doesn't fit the label image: 2 labels without a row (called 'unknown'): 1, 2. "
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}"):
        signals = masker.fit_transform(run())
    assert list(signals) == ["unknown", "unknown", "A"]
    assert masker.lut_["name"].to_list() == ["Background", "unknown", "unknown", "A"]


@pytest.mark.parametrize("name", [np.nan, None, "", "n/a", pd.NA], ids=str)
@pytest.mark.parametrize("form", ["DataFrame", "file"])
def test_no_row_has_a_name(tmp_path, name, form):
    lut = pd.DataFrame({"index": [1, 2, 3], "name": [name] * 3})
    if form == "file":
        lut.to_csv(tmp_path / "lut.tsv", sep="\t", index=False, na_rep="n/a")
        lut = tmp_path / "lut.tsv"
    masker = NiftiLabelsMasker(atlas_of(1, 2, 3), lut=lut)
    with pytest.warns(UserWarning, match=r"^`lut` matches no label of the label image: 3 labels without a row "):
        masker.fit(run())
    assert masker.transform(run()).shape == (3, 3)
    assert list(masker.region_names_.values()) == ["unknown"] * 3


@pytest.mark.parametrize("names", [[1, 2, 3], [1.5, 2.5, 3.5], [True, False, True]], ids=str)
def test_names_that_are_numbers_become_text(names):
    masker = NiftiLabelsMasker(atlas_of(1, 2, 3), lut=pd.DataFrame({"index": [1, 2, 3], "name": names}))
    assert masker.fit(run()).get_feature_names_out() == [str(name) for name in names]
    assert list(masker.set_output(transform="pandas").transform(run())) == [str(name) for name in names]


def test_names_of_a_list_stay_as_they_are():
    masker = NiftiLabelsMasker(atlas_of(1, 2, 3), labels=["", "n/a", "A"]).fit(run())
    masker.transform(run())
    assert list(masker.region_names_.values()) == ["", "n/a", "A"]
