"""Confounds and censored volumes from fMRIPrep's tables: as nilearn chooses them, or by the names of columns."""

import json
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import nilearn.interfaces.fmriprep
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds, load_confounds_strategy
from nilearn.maskers import NiftiLabelsMasker as NilearnMasker

from gpumask import NiftiLabelsMasker
from gpumask.confounds.fmriprep import fmriprep_confounds
from gpumask.confounds.sample_masks import AllVolumesRemovedError
from gpumask.confounds.tables import confounds_matrix

STEM = "sub-01_task-rest_run-1"
IMAGE = f"{STEM}_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz"
STRATEGIES = ("simple", "scrubbing", "compcor")


def made_confounds(n=60, seed=0):
    """A table with all columns of fMRIPrep 25, and its JSON."""
    rng = np.random.default_rng(seed)
    columns = {}
    basis = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    for name in ["global_signal", "csf", "white_matter", "csf_wm", *basis]:
        values = rng.standard_normal(n).cumsum()
        derivative = np.append(np.nan, np.diff(values))
        columns |= {name: values, f"{name}_derivative1": derivative}
        columns |= {f"{name}_power2": values**2, f"{name}_derivative1_power2": derivative**2}
    columns["std_dvars"] = np.append(np.nan, 1 + 0.2 * rng.random(n - 1))
    columns["dvars"] = 20 * columns["std_dvars"]
    displacement = np.append(np.nan, 0.1 + 0.2 * rng.random(n - 1))
    displacement[[20, 23, 41]] = 0.9, 0.7, 0.51
    columns["framewise_displacement"] = displacement
    columns["rmsd"] = displacement / 2
    metadata = {}
    for prefix, masks in (("a_comp_cor", ("combined", "CSF", "WM")), ("t_comp_cor", (None,))):
        for k in range(3 * len(masks)):
            name = f"{prefix}_{k:02}"
            columns[name] = rng.standard_normal(n)
            method = {"Method": "aCompCor", "Mask": masks[k // 3]} if masks[0] else {"Method": "tCompCor"}
            metadata[name] = {**method, "Retained": True, "SingularValue": 9.0 - k, "VarianceExplained": 0.1}
    for k in range(4):
        columns[f"cosine{k:02}"] = np.cos(np.pi * (k + 1) * (np.arange(n) + 0.5) / n)
    for k in range(2):
        columns[f"non_steady_state_outlier{k:02}"] = (np.arange(n) == k).astype(float)
    columns["motion_outlier00"] = (np.arange(n) == 20).astype(float)
    return pd.DataFrame(columns), metadata


def write_confounds(folder, table, metadata=None, name=f"{STEM}_desc-confounds_timeseries.tsv"):
    path = folder / name
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    path.with_suffix(".json").write_text(json.dumps(metadata or {}), encoding="utf-8")
    return path


@pytest.fixture
def made(tmp_path):
    return write_confounds(tmp_path, *made_confounds())


def assert_same(ours, nilearns):
    (confounds, kept), (expected, expected_kept) = ours, nilearns
    pd.testing.assert_frame_equal(confounds, expected, check_exact=True)
    if expected_kept is None:
        assert kept is None
    else:
        np.testing.assert_array_equal(kept, expected_kept)
        assert kept.dtype.kind == "i"


# Strategies


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_of_made_confounds(made, strategy):
    expected = load_confounds_strategy(str(made.with_name(IMAGE)), strategy)
    n_columns = {"simple": 24 + 4 + 2, "scrubbing": 24 + 4 + 8, "compcor": 24 + 4 + 3}
    assert expected[0].shape == (60, n_columns[strategy])
    assert len(expected[1]) == (53 if strategy == "scrubbing" else 58)
    assert_same(fmriprep_confounds(made.with_name(IMAGE), made, strategy=strategy), expected)
    assert_same(
        fmriprep_confounds(made.with_name(IMAGE), made, strategy=f"{strategy}+gsr"),
        load_confounds_strategy(str(made.with_name(IMAGE)), strategy, global_signal="basic"),
    )


@pytest.mark.parametrize("strategy", ["simple", "scrubbing"])
def test_strategies_of_a_real_run(data, tmp_path, strategy):
    """Its table has motion, cosines and outliers, but no white matter and CSF: those are made."""
    real = data / "sub-02_task-oneback_run-1_desc-confounds_timeseries.tsv"
    table = pd.read_table(real)
    made, _ = made_confounds(len(table))
    table = table.join(made[[name for name in made if name.startswith(("csf", "white_matter")) and name not in table]])
    path = write_confounds(tmp_path, table, name=real.name)
    image = tmp_path / "sub-02_task-oneback_run-1_space-MNI152NLin6Asym_res-3_desc-preproc_bold.nii.gz"
    expected = load_confounds_strategy(str(image), strategy)
    assert (expected[1] is None) == (strategy == "simple")
    assert_same(fmriprep_confounds(image, path, strategy=strategy), expected)
    if strategy == "scrubbing":
        ours = fmriprep_confounds(image, path, strategy=strategy, fd_threshold=0.2)
        assert_same(ours, load_confounds_strategy(str(image), strategy, fd_threshold=0.2))
        assert len(ours[1]) < len(expected[1])


def test_columns_of_a_real_run(data):
    path = data / "sub-02_task-oneback_run-1_desc-confounds_timeseries.tsv"
    confounds, kept = fmriprep_confounds(IMAGE, path, columns=["trans_*", "rot_*", "cosine*"], fd_threshold=0.2)
    assert confounds.shape == (156, 24 + 3)
    expected, _ = load_confounds(
        str(path).replace("confounds_timeseries.tsv", "preproc_bold.nii.gz"), ("motion", "high_pass"), demean=False
    )
    pd.testing.assert_frame_equal(confounds[list(expected)], expected)
    displacement = pd.read_table(path)["framewise_displacement"]
    assert 0 < len(kept) < 156
    assert set(range(156)) - set(kept) == set(np.flatnonzero(displacement > 0.2))
    with pytest.raises(
        ValueError, match="has no column csf, white_matter, which the confounds strategy 'simple' needs"
    ):
        fmriprep_confounds(IMAGE, path, strategy="simple")


@pytest.mark.parametrize("strategy", ["simple", "compcor"])  # the tables are of 30 volumes: scrubbing leaves none
def test_strategies_of_the_real_tables_of_nilearn(tmp_path, strategy):
    tables = Path(nilearn.interfaces.fmriprep.__file__).parent / "data"
    for stem, suffix in (("test-v21", "timeseries"), ("test", "regressors")):
        path = tmp_path / f"sub-{stem.replace('-', '')}_desc-confounds_{suffix}.tsv"
        for extension in (".tsv", ".json"):
            source = tables / f"{stem}_desc-confounds_{suffix}{extension}"
            shutil.copy(source, path.with_suffix(extension))
        image = path.with_name(f"sub-{stem.replace('-', '')}_space-X_desc-preproc_bold.nii.gz")
        ours = fmriprep_confounds(image, path, strategy=strategy)
        assert_same(ours, load_confounds_strategy(str(image), strategy))
        assert np.isfinite(ours[0].to_numpy()).all()


def test_signals_equal_those_of_nilearns_masker(tmp_path, made):
    rng = np.random.default_rng(1)
    labels = nib.Nifti1Image(rng.integers(0, 5, (5, 4, 3)).astype(np.int16), np.diag([3.0, 3, 3, 1]))
    run = nib.Nifti1Image(rng.normal(500, 20, (5, 4, 3, 60)), labels.affine)
    image = tmp_path / IMAGE
    nib.save(run, image)
    for strategy in STRATEGIES:
        nilearns = load_confounds_strategy(str(image), strategy)
        ours = fmriprep_confounds(image, made, strategy=strategy)
        options = {"detrend": True, "high_pass": 0.01, "low_pass": 0.1, "t_r": 2.0, "standardize": "zscore_sample"}
        (expected, signals) = (
            masker(labels, **options).fit(image).transform(image, *chosen)
            for masker, chosen in ((NilearnMasker, nilearns), (NiftiLabelsMasker, ours))
        )
        np.testing.assert_allclose(signals, expected, rtol=1e-8, atol=1e-8)


def test_the_table_that_is_given_is_the_one_used(tmp_path):
    """Not the one that lies beside the image."""
    (tmp_path / "other").mkdir()
    near = write_confounds(tmp_path, *made_confounds(seed=0))
    far = write_confounds(tmp_path / "other", *made_confounds(seed=1), name="sub-9_desc-confounds_regressors.tsv")
    first, _ = fmriprep_confounds(tmp_path / IMAGE, near, strategy="compcor")
    second, _ = fmriprep_confounds(tmp_path / IMAGE, far, strategy="compcor")
    assert list(first) == list(second)
    assert not np.allclose(first, second)


def test_ica_aroma_needs_its_image(made):
    image = made.with_name(f"{STEM}_space-X_desc-smoothAROMAnonaggr_bold.nii.gz")
    assert_same(fmriprep_confounds(image, made, strategy="ica_aroma"), load_confounds_strategy(str(image), "ica_aroma"))
    with pytest.raises(ValueError) as caught:
        fmriprep_confounds(IMAGE, made, strategy="ica_aroma")
    assert str(caught.value) == (
        f"The confounds strategy 'ica_aroma' is for images *_desc-smoothAROMAnonaggr_bold.nii.gz, got {IMAGE}."
    )


@pytest.mark.parametrize(
    ("strategy", "name", "message"),
    [
        (
            "Simple",
            f"{STEM}_desc-confounds_timeseries.tsv",
            "Unknown confounds strategy 'Simple'. Expected one of simple, scrubbing, compcor, ica_aroma, or one "
            "followed by +gsr.",
        ),
        (
            "simple",
            "motion.txt",
            "The confounds strategy 'simple' needs a file sub-*_desc-confounds_timeseries.tsv, got {path}.",
        ),
    ],
)
def test_strategies_that_cant_be(tmp_path, strategy, name, message):
    path = write_confounds(tmp_path, *made_confounds(), name=name)
    with pytest.raises(ValueError) as caught:
        fmriprep_confounds(IMAGE, path, strategy=strategy)
    assert str(caught.value) == message.format(path=path)


def test_columns_that_a_strategy_misses(tmp_path):
    table, metadata = made_confounds()
    path = write_confounds(tmp_path, table.drop(columns=["csf", "rot_z_power2"]), metadata)
    with pytest.raises(ValueError) as caught:
        fmriprep_confounds(IMAGE, path, strategy="simple")
    assert str(caught.value) == (
        f"{path} has no column rot_z_power2, csf, which the confounds strategy 'simple' needs. "
        "Add it to the table, or choose a strategy or columns that the table has."
    )
    path = write_confounds(tmp_path, table[["framewise_displacement", "std_dvars"]], metadata)
    with pytest.raises(
        ValueError, match=r"no column trans_x, trans_x_derivative1, .* and 27 more, which .* 'scrubbing'"
    ):
        fmriprep_confounds(IMAGE, path, strategy="scrubbing")
    path = write_confounds(tmp_path, table, metadata)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"can't be used with the confounds strategy 'compcor'.*json"):
        fmriprep_confounds(IMAGE, path, strategy="compcor")


def test_without_nilearn(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.interfaces.fmriprep", None)
    with pytest.raises(ImportError) as caught:
        fmriprep_confounds(IMAGE, made, strategy="simple")
    assert str(caught.value) == (
        "The confounds strategy 'simple' needs nilearn 0.13 or later: pip install 'gpumask[fmriprep]'"
    )
    assert fmriprep_confounds(IMAGE, made, columns=["csf"])[0].shape == (60, 1)


# Columns


def test_columns_by_names_and_patterns(made):
    table = pd.read_table(made)
    columns = ["trans_?", "cosine*", "csf", "trans_x", "rot_[xy]"]
    confounds, kept = fmriprep_confounds(IMAGE, made, columns=columns)
    expected = [
        "trans_x",
        "trans_y",
        "trans_z",
        "cosine00",
        "cosine01",
        "cosine02",
        "cosine03",
        "csf",
        "rot_x",
        "rot_y",
    ]
    assert list(confounds) == expected
    assert kept is None
    pd.testing.assert_frame_equal(confounds, table[expected])


def test_nan_in_the_first_row_is_filled_as_by_nilearn(made):
    columns = ["csf", "csf_derivative1", "csf_derivative1_power2"]
    confounds, _ = fmriprep_confounds(IMAGE, made, columns=columns)
    table = pd.read_table(made)
    assert table.loc[0, columns].isna().tolist() == [False, True, True]
    expected = table[columns].copy()
    for column in columns[1:]:
        expected.loc[0, column] = expected.loc[1, column]
    pd.testing.assert_frame_equal(confounds, expected)
    nilearns, _ = load_confounds(str(made.with_name(IMAGE)), ("wm_csf",), wm_csf="full", demean=False)
    pd.testing.assert_frame_equal(confounds, nilearns[columns])
    assert confounds_matrix(confounds, 60).shape == (60, 3)


def test_nan_elsewhere_is_left_and_refused(tmp_path):
    table, metadata = made_confounds()
    table.loc[7, "csf"] = np.nan
    confounds, _ = fmriprep_confounds(IMAGE, write_confounds(tmp_path, table, metadata), columns=["csf"])
    with pytest.raises(ValueError, match=r"in column 'csf' \(volume 7\)"):
        confounds_matrix(confounds, 60)


def test_missing_columns_are_named_with_similar_ones(made):
    with pytest.raises(ValueError) as caught:
        fmriprep_confounds(IMAGE, made, columns=["trans_x", "whitematter", "cosin*z"])
    assert str(caught.value) == (
        f"{made} has no column whitematter, cosin*z. Its 63 columns include white_matter, white_matter_power2, "
        "white_matter_derivative1, cosine03, cosine02, cosine01."
    )


def test_columns_of_a_table_without_names(tmp_path):
    """As HCP's Movement_Regressors.txt is; columns are numbered."""
    np.savetxt(tmp_path / "Movement_Regressors.txt", np.arange(36.0).reshape(3, 12))
    confounds, _ = fmriprep_confounds(IMAGE, tmp_path / "Movement_Regressors.txt", columns=["0", "11"])
    np.testing.assert_array_equal(confounds, [[0, 11], [12, 23], [24, 35]])


# Framewise displacement


def test_fd_threshold(made):
    displacement = pd.read_table(made)["framewise_displacement"].to_numpy()
    expected = [i for i in range(60) if not displacement[i] > 0.5]
    assert len(expected) == 57
    assert expected[0] == 0  # whose displacement isn't known
    confounds, kept = fmriprep_confounds(IMAGE, made, fd_threshold=0.5)
    assert confounds is None
    np.testing.assert_array_equal(kept, expected)
    confounds, kept = fmriprep_confounds(IMAGE, made, columns=["csf"], fd_threshold=0.5)
    assert confounds.shape == (60, 1)
    np.testing.assert_array_equal(kept, expected)
    _, kept = fmriprep_confounds(IMAGE, made, strategy="simple", fd_threshold=0.5)
    np.testing.assert_array_equal(kept, expected[2:])  # the first two volumes aren't steady
    assert fmriprep_confounds(IMAGE, made, fd_threshold=0.9) == (None, None)
    assert fmriprep_confounds(IMAGE, made) == (None, None)


@pytest.mark.parametrize("strategy", ["scrubbing", "scrubbing+gsr"])
def test_fd_threshold_of_scrubbing_is_nilearns(made, strategy):
    options = {"global_signal": "basic"} if "gsr" in strategy else {}
    expected = load_confounds_strategy(str(made.with_name(IMAGE)), "scrubbing", fd_threshold=0.6, **options)
    assert_same(fmriprep_confounds(IMAGE, made, strategy=strategy, fd_threshold=0.6), expected)


def test_no_volume_is_left(tmp_path):
    table, metadata = made_confounds()
    path = write_confounds(tmp_path, table, metadata)
    message = f"{path} censors all 60 volumes, as motion or non-steady state."
    table["framewise_displacement"] = 3.0
    write_confounds(tmp_path, table, metadata)
    with pytest.raises(AllVolumesRemovedError) as caught:
        fmriprep_confounds(IMAGE, path, fd_threshold=0.5)
    assert str(caught.value) == message
    with (
        pytest.warns(RuntimeWarning, match="All volumes were marked as motion outliers"),
        pytest.raises(AllVolumesRemovedError) as caught,
    ):
        fmriprep_confounds(IMAGE, path, strategy="scrubbing")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"strategy": "simple", "columns": ("csf",)},
            "Expected a strategy or columns of the confounds, got both: 'simple' and ['csf'].",
        ),
        ({"fd_threshold": 0}, "fd_threshold must be a positive number of mm, got 0."),
        ({"fd_threshold": float("nan")}, "fd_threshold must be a positive number of mm, got nan."),
    ],
)
def test_options_that_cant_be(made, options, message):
    with pytest.raises(ValueError) as caught:
        fmriprep_confounds(IMAGE, made, **options)
    assert str(caught.value) == message


def test_no_framewise_displacement(tmp_path):
    path = write_confounds(tmp_path, made_confounds()[0][["csf", "dvars"]])
    with pytest.raises(ValueError) as caught:
        fmriprep_confounds(IMAGE, path, fd_threshold=0.5)
    assert str(caught.value) == f"{path} has no column framewise_displacement. Its 2 columns include csf, dvars."


@pytest.mark.parametrize("options", [{"fd_threshold": 0.5}, {"strategy": "scrubbing"}, {"columns": ["csf"]}])
@pytest.mark.parametrize(
    ("displacement", "message"),
    [
        (np.nan, "the column framewise_displacement has no number, so no volume can be censored by it. Expected mm"),
        ("low", "the column framewise_displacement has the text 'low' for volume 0, expected numbers in mm."),
    ],
)
def test_displacement_that_says_nothing(tmp_path, options, displacement, message):
    table, metadata = made_confounds()
    path = write_confounds(tmp_path, table.assign(framewise_displacement=displacement), metadata)
    if "columns" in options:  # nobody asked for it
        assert fmriprep_confounds(IMAGE, path, **options)[1] is None
        return
    with pytest.raises(ValueError) as caught:
        fmriprep_confounds(IMAGE, path, **options)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_displacement_that_is_partly_missing(tmp_path):
    table, metadata = made_confounds()
    table.loc[[5, 20], "framewise_displacement"] = np.nan
    path = write_confounds(tmp_path, table, metadata)
    message = f"{path}: the column framewise_displacement has no number for volume 5, 20: kept, whatever the motion."
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        _, kept = fmriprep_confounds(IMAGE, path, fd_threshold=0.5)
    np.testing.assert_array_equal(kept, [i for i in range(60) if i not in (23, 41)])


# Tables in other forms


def in_other_forms(text):
    rows = text.splitlines()
    yield "rows end in a tab", "\n".join([rows[0], *(f"{row}\t" for row in rows[1:])])
    yield "all end in a tab", "\t\n".join([*rows, ""])
    yield "comments", "\n".join(["# fMRIPrep", *rows[:9], "# half", *rows[9:], ""])
    yield "R", "\n".join([rows[0], *(f"{i}\t{row}" for i, row in enumerate(rows[1:], start=1))])
    yield "quoted", "\n".join("\t".join(f'"{cell}"' for cell in row.split("\t")) for row in rows)
    yield "commas", text.replace("\t", ",")
    yield "BOM and CRLF", "\ufeff" + text.replace("\n", "\r\n")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_of_tables_in_other_forms(made, strategy):
    """The columns that nilearn gets from the table as fMRIPrep writes it, and the message of a ragged one."""
    expected = load_confounds_strategy(str(made.with_name(IMAGE)), strategy)
    text = made.read_text()
    for form, other in in_other_forms(text):
        made.write_bytes(other.encode())
        assert_same(fmriprep_confounds(made.with_name(IMAGE), made, strategy=strategy), expected)
        columns, _ = fmriprep_confounds(IMAGE, made, columns=["csf"])
        np.testing.assert_array_equal(columns["csf"], made_confounds()[0]["csf"], err_msg=form)
    made.write_text(text + "1\t2\n")
    with pytest.raises(ValueError, match=r"confounds_timeseries\.tsv, line 62: has 2 cells, expected 63, as in line 1"):
        fmriprep_confounds(IMAGE, made, strategy=strategy)
