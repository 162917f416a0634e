"""Confounds and sample masks as users give them."""

import gzip

import numpy as np
import pandas as pd
import pytest
from nilearn._utils.numpy_conversions import csv_to_array

from gpumask import backend
from gpumask.confounds.sample_masks import AllVolumesRemovedError, kept_volumes
from gpumask.confounds.tables import confounds_matrix, read_table

VALUES = np.array([[1.5, -2.0], [0.25, 3.0], [1e-3, 7.0]])


def as_polars(values):
    return pytest.importorskip("polars").DataFrame(values, schema=["a", "b"])


@pytest.mark.parametrize(
    ("make", "columns"),
    [
        (np.asarray, [0, 1]),
        (lambda v: v.astype(np.float32), [0, 1]),
        (lambda v: v[:, 0], [0]),
        (lambda v: pd.DataFrame(v, columns=["a", "b"]), [0, 1]),
        (lambda v: pd.DataFrame(v, columns=["a", "a"], index=[5, 6, 7]), [0, 1]),
        (lambda v: pd.DataFrame(v).astype("Float64"), [0, 1]),
        (lambda v: pd.DataFrame(v, dtype=object), [0, 1]),
        (lambda v: pd.Series(v[:, 1]), [1]),
        (as_polars, [0, 1]),
        (lambda v: as_polars(v)["b"], [1]),
        (lambda v: v[:, 1].tolist(), [1]),
        (lambda v: tuple(v[:, 1]), [1]),
        (lambda v: [v, v[:, 0], pd.DataFrame(v), v[:, 1].tolist()], [0, 1, 0, 0, 1, 1]),
        (lambda v: (v, pd.Series(v[:, 0])), [0, 1, 0]),
        (lambda v: v[:, :0], []),
    ],
)
def test_accepted(make, columns):
    VALUES.flags.writeable = False
    matrix = confounds_matrix(make(VALUES), 3)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, VALUES[:, columns], rtol=1e-7)
    matrix[...] = 0  # a copy: VALUES can't be written to


def test_accepts_arrays_of_other_libraries(put):
    np.testing.assert_array_equal(confounds_matrix(put(VALUES), 3), VALUES)


@pytest.mark.parametrize("nothing", [None, [], ()])
def test_none(nothing):
    assert confounds_matrix(nothing, 3) is None


@pytest.mark.parametrize("separator", ["\t", ",", ";", " "])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("columns", [["trans_x", "csf"], ["trans_x"]])
def test_tables_in_text(tmp_path, separator, header, columns):
    path = tmp_path / "confounds.tsv"
    frame = pd.DataFrame(VALUES[:, : len(columns)], columns=columns)
    frame.to_csv(path, sep=separator, header=header, index=False)
    for given in (path, str(path)):
        np.testing.assert_array_equal(confounds_matrix(given, 3), frame)
    if separator in "\t ":  # the ones that NumPy, and so nilearn, splits by itself
        theirs = csv_to_array(path, skip_header=int(header))
        np.testing.assert_array_equal(confounds_matrix(path, 3), theirs.reshape(3, -1))


def test_table_of_realignment_parameters(tmp_path):
    """Columns aligned by blanks, a comment, blank lines: SPM's rp_*.txt, FSL's .par, ``numpy.savetxt``."""
    path = tmp_path / "rp_bold.txt"
    path.write_text("# mm and rad\n  1.5e+00  -2.0\n  0.25      3.0\n\n  1.0e-03   7.0\n")
    np.testing.assert_array_equal(confounds_matrix(path, 3), VALUES)


def test_compressed_table_with_byte_order_mark(tmp_path):
    path = tmp_path / "confounds.tsv.gz"
    with gzip.open(path, "wt", encoding="utf-8-sig") as file:
        file.write("1.5\t-2.0\n0.25\t3.0\n0.001\t7.0\n")
    np.testing.assert_array_equal(confounds_matrix(path, 3), VALUES)


@pytest.mark.parametrize("seed", range(12))
def test_rows_of_numbers_are_never_names(tmp_path, seed):
    """As written by awk (HCP's Movement_Regressors.txt: "%10.6f " for each), MATLAB, FSL, SPM or NumPy."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(6, rng.integers(2, 13))) * 10.0 ** rng.integers(-8, 3)
    values[0, rng.random(values.shape[1]) < 0.4] = 0  # the derivatives of the first volume
    form, before, between, after = [
        ("%10.6f", "", " ", " "), ("%.8g", "  ", "  ", "  "), ("% 16.7e", "", "", ""), ("%g", "\t", "\t", ""),
        ("%.6f", "", "\t", "\t"), ("%.18e", "", " ", ""), ("%+.3f", " ", ",", ""), ("%.4f", "", " \t", " "),
    ][seed % 8]  # fmt: skip
    lines = [before + between.join(form % x for x in row) + after for row in values]
    path = tmp_path / "Movement_Regressors.txt"
    path.write_text(("\r\n" if seed % 2 else "\n").join([*lines, ""]))
    expected = [[float(form % x) for x in row] for row in values]
    np.testing.assert_array_equal(confounds_matrix(path, 6), expected)
    assert read_table(path).columns.tolist() == list(range(values.shape[1]))


@pytest.mark.parametrize("text", ["-1.#IND", "********", "x", "1e"])
@pytest.mark.parametrize("separator", [" ", "\t"])
def test_a_first_row_with_a_broken_number_is_no_header(tmp_path, text, separator):
    path = tmp_path / "motion.txt"
    path.write_text(f"{text}{separator}0.25{separator}1.5\n0.5{separator}0.5{separator}0.5\n")
    with pytest.raises(ValueError) as error:
        confounds_matrix(path, 2)
    assert f"NaN, infinite values or text are in column 0 (volume 0). File: {path}." in str(error.value)


def test_whole_numbers_can_be_names(tmp_path):
    for index in (True, False):
        pd.DataFrame(VALUES, columns=["a", "7"]).to_csv(tmp_path / "a.tsv", sep="\t", index=index)
        assert read_table(tmp_path / "a.tsv").columns.tolist()[-2:] == ["a", "7"]
    pd.DataFrame(VALUES).to_csv(tmp_path / "a.tsv", sep="\t")  # an index, and the names 0 and 1
    assert read_table(tmp_path / "a.tsv").shape == (3, 3)


def test_first_row_of_values_is_no_header(tmp_path):
    path = tmp_path / "confounds.tsv"
    path.write_text("n/a\t1\n2\t3\n")
    np.testing.assert_array_equal(confounds_matrix(path, 2, used=[1])[1], [2, 3])


def test_values_that_are_not_finite_are_named(tmp_path):
    path = tmp_path / "sub-01_desc-confounds_timeseries.tsv"
    path.write_text("csf\tframewise_displacement\tdvars\n1\tn/a\tn/a\n2\t0.1\t0.2\n3\t0.1\tinf\n")
    with pytest.raises(ValueError) as error:
        confounds_matrix(path, 3)
    assert str(error.value) == (
        "Confounds must be finite numbers; NaN, infinite values or text are in column 'framewise_displacement' "
        f"(volume 0), 'dvars' (volume 0, 2). File: {path}. fMRIPrep writes n/a in the first volumes of derivatives: "
        "fill them, leave these volumes out by `sample_mask`, or use nilearn.interfaces.fmriprep.load_confounds."
    )


@pytest.mark.filterwarnings("error")
def test_values_whose_squares_overflow_are_named(tmp_path):
    path = tmp_path / "confounds.tsv"
    path.write_text("csf\twhite_matter\n1\t2\n2\t-1e300\n3\t1e99\n")
    with pytest.raises(ValueError) as caught:
        confounds_matrix(path, 3)
    assert str(caught.value) == (
        f"Confounds must lie within 1e+100, but larger values are in column 'white_matter' (volume 1). File: {path}."
    )
    assert confounds_matrix(path, 3, [0, 2]).shape == (3, 2)  # the volume is censored


def test_many_values_that_are_not_finite():
    with pytest.raises(ValueError, match=r"are in column 0 \(volume 0, 1, 2, 3, 4 and 25 more\)\. fMRIPrep"):
        confounds_matrix(np.full(30, np.nan), 30)
    with pytest.raises(ValueError, match=r"4 \(volume 0\) and 2 more\. fMRIPrep"):
        confounds_matrix(np.full((1, 7), np.nan), 1)


def test_censored_volumes_may_hold_nan():
    values = np.array([[np.nan, 1.0], [2.0, 3.0], [4.0, np.nan]])
    np.testing.assert_array_equal(confounds_matrix(values, 3, used=[1]), values)
    with pytest.raises(ValueError, match=r"are in column 1 \(volume 2\)\."):
        confounds_matrix(values, 3, used=[1, 2])


def test_text_among_the_values(tmp_path):
    path = tmp_path / "confounds.csv"
    path.write_text("a,b\n1,2\nmissing,4\n")
    with pytest.raises(ValueError, match=r"are in column 'a' \(volume 1\)\. File: "):
        confounds_matrix(path, 2)


def test_wrong_length(tmp_path):
    expected = "^Confound signal has an incorrect length. Signal length: 4; confound length: 3.$"
    for confounds in (VALUES, VALUES[:, 0], pd.DataFrame(VALUES), [VALUES], VALUES[:, 0].tolist()):
        with pytest.raises(ValueError, match=expected):
            confounds_matrix(confounds, 4)
    path = tmp_path / "confounds.csv"
    pd.DataFrame(VALUES).to_csv(path, header=False, index=False)
    with pytest.raises(ValueError) as error:
        confounds_matrix(path, 4)
    assert str(error.value) == (
        f"Confound signal has an incorrect length. Signal length: 4; confound length: 3. File: {path}."
    )


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tsv"):
        confounds_matrix(tmp_path / "nowhere.tsv", 3)
    empty = tmp_path / "empty.tsv"
    empty.write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.tsv is empty\. Expected a table of confounds"):
        confounds_matrix(empty, 3)
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("1,2\n3,4,5\n")
    with pytest.raises(ValueError, match=r"ragged\.csv, line 2: has 3 cells, expected 2, as in line 1 \(1, 2\)\."):
        confounds_matrix(ragged, 2)


def test_wrong_types():
    expected = "^'confounds' must be of type\\(s\\): 'array, DataFrame, Series, str, Path, list, tuple'.\\nGot: 'int'$"
    with pytest.raises(TypeError, match=expected):
        confounds_matrix(1, 3)
    with pytest.raises(TypeError, match=r"^confound has an unhandled type: <class 'NoneType'>$"):
        confounds_matrix([VALUES, None], 3)
    with pytest.raises(ValueError, match=r"^confound array has an incorrect number of dimensions: 3$"):
        confounds_matrix(np.zeros((3, 1, 1)), 3)


@pytest.mark.parametrize(
    "mask",
    [
        np.array([0, 2, 3]),
        np.array([0, 2, 3], dtype=np.uint8),
        np.array([0.0, 2.0, 3.0]),
        np.array([True, False, True, True]),
        [0, 2, 3],
        (0, 2, 3),
        [True, False, True, True],
        [np.array([0, 2, 3])],
        ([0, 2, 3],),
        [[True, False, True, True]],
        pd.Series([0, 2, 3]),
        range(0, 4, 2),
    ],
)
def test_one_sample_mask(mask):
    (kept,) = kept_volumes(mask, [4])
    assert kept.dtype == np.int64
    np.testing.assert_array_equal(kept, [0, 2] if isinstance(mask, range) else [0, 2, 3])


def test_sample_masks_of_other_libraries(put):
    np.testing.assert_array_equal(kept_volumes(put(np.array([0, 2])), [4])[0], [0, 2])


def test_sample_mask_is_no_view():
    mask = np.array([1, 3])
    mask.flags.writeable = False
    kept_volumes(mask, [4])[0][0] = 0
    assert mask[0] == 1


def test_sample_masks_of_runs():
    first, second, third = kept_volumes([[1, 2], None, np.array([True, False])], [3, 5, 2])
    np.testing.assert_array_equal(first, [1, 2])
    assert second is None
    np.testing.assert_array_equal(third, [0])
    assert kept_volumes(None, [3, 5]) == [None, None]
    np.testing.assert_array_equal(kept_volumes([3, 1, 1], [4])[0], [3, 1, 1])  # order and repeats are the user's


@pytest.mark.parametrize(
    ("mask", "lengths", "error", "message"),
    [
        ([-1, 2], [4], ValueError, "sample_mask should not contain negative values."),
        (
            [0, 1, 2, 3, 3],
            [4],
            IndexError,
            "sample_mask 1 of 1 is has more timepoints than the current run ;sample_mask contains 5 index but the run "
            "has 4 timepoints.",
        ),
        (
            [[0], [5]],
            [4, 4],
            IndexError,
            "sample_mask 2 of 2 contains invalid index [5]. The signal contains 4 time points.",
        ),
        ([0, 4], [4], IndexError, "sample_mask 1 of 1 contains invalid index [4]. The signal contains 4 time points."),
        ([[0], [1]], [4], ValueError, "Number of sample_mask (2) not matching number of runs (1)."),
        ([0, 1], [4, 4], ValueError, "Number of sample_mask (1) not matching number of runs (2)."),
        (
            [True, False, True],
            [4],
            IndexError,
            "sample_mask 1 of 1 is boolean and must hold one value per volume: the run has 4 volumes, "
            "sample_mask 3 values.",
        ),
        ([0.5, 1.0], [4], TypeError, "sample_mask 1 of 1 must hold integers or booleans, got float64."),
        ([["a", "b"]], [4], TypeError, "sample_mask 1 of 1 must hold integers or booleans, got <U1."),
        (np.zeros((2, 2), int), [4], ValueError, "sample_mask 1 of 1 must have one dimension, got 2."),
        (
            3,
            [4],
            TypeError,
            "'sample_masks' must be of type(s): '<class 'list'>, <class 'tuple'>, <class 'numpy.ndarray'>'.\n"
            "Got: 'int'",
        ),
    ],
)
def test_unusable_sample_masks(mask, lengths, error, message):
    with pytest.raises(error) as raised:
        kept_volumes(mask, lengths)
    assert str(raised.value) == message
    assert type(raised.value) is error


@pytest.mark.parametrize("mask", [[], [[]], np.zeros(4, bool), np.array([], int)])
def test_sample_mask_that_keeps_nothing(mask):
    expected = "^The size of the sample mask is 0. All volumes were marked as motion outliers can not proceed. $"
    with pytest.raises(AllVolumesRemovedError, match=expected):
        kept_volumes(mask, [4])


def test_real_confounds(data):
    """fMRIPrep's own table: whole with the first volume censored, refused by name with it."""
    path = next(data.glob("*_desc-confounds_timeseries.tsv"))
    frame = pd.read_csv(path, sep="\t")
    np.testing.assert_array_equal(confounds_matrix(path, len(frame), used=range(1, len(frame))), frame)
    if frame.isna().iloc[0].any():
        with pytest.raises(ValueError, match="framewise_displacement"):
            confounds_matrix(path, len(frame))
    assert backend.is_numpy(confounds_matrix(path, len(frame), used=[len(frame) - 1]))
