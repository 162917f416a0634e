"""Named denoisings: presets against nilearn and the formulas, files that describe others, what tables have for dropped
volumes."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds, load_confounds_strategy
from nilearn.interfaces.fmriprep.load_confounds_scrub import optimize_scrub
from scipy.interpolate import CubicSpline

from gpumask.confounds.censoring import censor
from gpumask.confounds.denoising import PRESETS, Denoising, denoising_of, preset_confounds
from gpumask.confounds.fmriprep import fmriprep_confounds

from .test_fmriprep_confounds import IMAGE, made_confounds, write_confounds

REAL = "sub-02_task-oneback_run-1_desc-confounds_timeseries.tsv"
AXES = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
OF_PRESETS = {  # what load_confounds is asked for
    "24p": {"strategy": ("motion",), "motion": "full"},
    "24p+gsr": {"strategy": ("motion", "global_signal"), "motion": "full", "global_signal": "basic"},
    "9p": {"strategy": ("motion", "wm_csf", "global_signal"), "motion": "basic", "wm_csf": "basic"},
    "36p": {
        "strategy": ("motion", "wm_csf", "global_signal"),
        "motion": "full",
        "wm_csf": "full",
        "global_signal": "full",
    },
}
N_COLUMNS = {"24p": 24, "24p+gsr": 25, "9p": 9, "36p": 36, "simple": 30, "scrubbing": 36, "acompcor50": 31}


@pytest.fixture
def made(tmp_path):
    return write_confounds(tmp_path, *made_confounds())


def loaded(path, preset):
    return fmriprep_confounds(path.with_name(IMAGE), path, **preset_confounds(preset))


def check_as_nilearn(path, preset, image):
    confounds, kept = loaded(path, preset)
    expected, _ = load_confounds(str(path.with_name(image)), demean=False, **OF_PRESETS[preset])
    assert kept is None
    assert sorted(confounds) == sorted(expected)
    assert len(confounds.columns) == N_COLUMNS[preset]
    for name in expected:
        np.testing.assert_array_equal(confounds[name], expected[name])
    return confounds


@pytest.mark.parametrize("preset", OF_PRESETS)
def test_columns_of_presets_are_nilearns(made, preset):
    check_as_nilearn(made, preset, IMAGE)


OF_STRATEGIES = ["simple", "scrubbing", "acompcor50", "simple+gsr", "scrubbing+gsr", "acompcor50+gsr"]


@pytest.mark.parametrize("preset", [*OF_PRESETS, *OF_STRATEGIES])
def test_each_column_that_a_preset_misses(tmp_path, preset):
    """It is named, with the file; and all others can be missing. Cosines are what the run's length asks for."""
    table, metadata = made_confounds()
    used = set(loaded(write_confounds(tmp_path, table, metadata), preset)[0])
    used |= {"framewise_displacement", "std_dvars"} if preset.startswith("scrub") else set()
    used = sorted(name for name in used if not name.startswith("cosine"))
    assert len(used) >= 9
    for name in table:
        path = write_confounds(tmp_path, table.drop(columns=name), metadata)
        if name not in used:
            loaded(path, preset)
            continue
        with pytest.raises(ValueError) as caught:
            loaded(path, preset)
        message = str(caught.value)
        assert message.startswith(f"{path} has no column {name}")
        if name != "framewise_displacement" and preset in OF_STRATEGIES:
            strategy = preset.replace("acompcor50", "compcor")
            assert message == (
                f"{path} has no column {name}, which the confounds strategy {strategy!r} needs. "
                "Add it to the table, or choose a strategy or columns that the table has."
            )


@pytest.mark.parametrize("preset", OF_PRESETS)
def test_columns_of_presets_of_a_real_run(data, tmp_path, preset):
    table = pd.read_table(data / REAL)
    others, _ = made_confounds(len(table))
    path = write_confounds(tmp_path, table.join(others[[name for name in others if name not in table]]), name=REAL)
    image = REAL.replace("_desc-confounds_timeseries.tsv", "_desc-preproc_bold.nii.gz")
    confounds = check_as_nilearn(path, preset, image)
    for axis in AXES if preset != "9p" else ():  # the formulas; the table has 10 digits
        values = table[axis].to_numpy()
        derivative = np.diff(values, prepend=np.nan)
        derivative[0] = derivative[1]
        for name, expected in {
            "power2": values**2,
            "derivative1": derivative,
            "derivative1_power2": derivative**2,
        }.items():
            np.testing.assert_allclose(confounds[f"{axis}_{name}"], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gsr", ["", "+gsr"])
@pytest.mark.parametrize("preset", ["simple", "scrubbing", "acompcor50"])
def test_presets_that_are_nilearns_strategies(made, preset, gsr):
    confounds, kept = loaded(made, preset + gsr)
    strategy = {"acompcor50": "compcor"}.get(preset, preset)
    more = {"global_signal": "basic"} if gsr else {}
    expected, expected_kept = load_confounds_strategy(str(made.with_name(IMAGE)), strategy, **more)
    pd.testing.assert_frame_equal(confounds, expected)
    np.testing.assert_array_equal(kept, expected_kept)
    if not gsr:
        assert len([name for name in confounds if not name.startswith("cosine")]) == N_COLUMNS[preset] - 4


def test_every_preset_is_tested():
    assert PRESETS.keys() == {name.removesuffix("+gsr") for name in N_COLUMNS}


def test_missing_columns_are_named(made):
    table = pd.read_table(made).drop(columns=["csf_power2", "white_matter"])
    path = write_confounds(made.parent, table)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} has no column csf_power2, white_matter\. Its \d+"):
        loaded(path, "36p")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} has no column white_matter\."):
        loaded(path, "9p")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "12p",
            "Unknown preset '12p'. Expected one of 9p, 24p, 36p, simple, scrubbing, acompcor50, or one followed by "
            "+gsr; or a file that ends in .toml or .json.",
        ),
        ("36p+gsr", "The preset 36p removes the global signal already. Expected '36p', got '36p+gsr'."),
        ("9p+gsr", "The preset 9p removes the global signal already."),
        ("24p+csf", "Unknown preset '24p+csf'."),
        ("", "Unknown preset ''."),
    ],
)
def test_unknown_presets(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        preset_confounds(name)
    with pytest.raises(ValueError, match=re.escape(f"--denoise: {message}")):
        denoising_of(f"A={name}", {})


# Censoring


@pytest.mark.parametrize("scrub", [0, 1, 2, 5, 20])
def test_short_segments_go_as_in_nilearn(tmp_path, scrub):
    rng = np.random.default_rng(scrub)
    for trial in range(20):
        table, _ = made_confounds(60, trial)
        table["framewise_displacement"] = np.append(np.nan, rng.uniform(0, 0.55, 59))
        table["std_dvars"] = np.append(np.nan, rng.uniform(1, 1.52, 59))
        path = write_confounds(tmp_path, table)
        above = (table["framewise_displacement"] > 0.5) | (table["std_dvars"] > 1.5)
        expected = np.setdiff1d(np.arange(60), optimize_scrub(np.flatnonzero(above), 60, scrub))
        options = {"fd_threshold": 0.5, "std_dvars_threshold": 1.5, "scrub": scrub}
        if not len(expected):
            with pytest.raises(ValueError, match="censors all 60 volumes"):
                fmriprep_confounds(IMAGE, path, **options)
            continue
        _, kept = fmriprep_confounds(IMAGE, path, **options)
        np.testing.assert_array_equal(kept, expected)


def test_thresholds_reach_nilearns_scrubbing(made):
    options = {"fd_threshold": 0.25, "std_dvars_threshold": 1.15, "scrub": 2}
    _, kept = fmriprep_confounds(made.with_name(IMAGE), made, strategy="scrubbing", **options)
    _, expected = load_confounds_strategy(str(made.with_name(IMAGE)), "scrubbing", **options)
    np.testing.assert_array_equal(kept, expected)
    assert len(kept) < 30


def test_few_columns_suffice_for_dvars(made):
    path = write_confounds(made.parent, pd.read_table(made)[["std_dvars", "csf"]])
    above = pd.read_table(made)["std_dvars"] > 1.1
    _, kept = fmriprep_confounds(IMAGE, path, std_dvars_threshold=1.1)
    np.testing.assert_array_equal(kept, np.flatnonzero(~above))
    with pytest.raises(ValueError, match="has no column framewise_displacement"):
        fmriprep_confounds(IMAGE, path, std_dvars_threshold=1.1, fd_threshold=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std_dvars_threshold": 0}, "std_dvars_threshold must be a positive number, got 0."),
        ({"scrub": 3}, "scrub=3 needs censored volumes: give fd_threshold or std_dvars_threshold too."),
    ],
)
def test_unusable_censoring(made, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fmriprep_confounds(IMAGE, made, **options)


# Rows of tables


@pytest.fixture
def censoring():
    """Of 12 volumes, the first two are dummy scans, and 2, 6, 7 and 11 moved."""
    return censor(None, 12, np.array([0, 1, 3, 4, 5, 8, 9, 10]), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_dropped_volumes(censoring, dtype):
    kept = [3, 4, 5, 8, 9, 10]
    signals = np.random.default_rng(0).normal(size=(6, 3)).astype(dtype)
    signals[:, 1] = np.nan
    assert censoring.rows(signals, "censored") is signals
    missing = censoring.rows(signals, "n/a")
    assert missing.dtype == dtype
    np.testing.assert_array_equal(missing[kept], signals)
    assert np.isnan(missing[[0, 1, 2, 6, 7, 11]]).all()

    filled = censoring.rows(signals, "interpolated")
    assert filled.dtype == dtype
    np.testing.assert_array_equal(filled[kept], signals)
    assert np.isnan(filled[:2]).all()
    assert np.isnan(filled[:, 1]).all()
    for column in (0, 2):
        np.testing.assert_array_equal(filled[[2, 11], column], signals[[0, -1], column])
        spline = CubicSpline(kept, signals[:, column].astype(float))
        np.testing.assert_allclose(filled[6:8, column], spline([6, 7]), rtol=1e-5 if dtype == np.float32 else 1e-12)


def test_rows_if_no_volume_moved(censoring):
    signals = np.ones((10, 2))
    dummies = censor(None, 12, None, 2)
    for output_type in ("n/a", "interpolated"):
        rows = dummies.rows(signals, output_type)
        assert np.isnan(rows[:2]).all()
        assert (rows[2:] == 1).all()
        assert censor(None, 10).rows(signals, output_type) is signals


def test_one_kept_volume_is_repeated():
    rows = censor(None, 4, np.array([2]), 0).rows(np.array([[5.0]]), "interpolated")
    np.testing.assert_array_equal(rows, np.full((4, 1), 5.0))


# Files


TOML = """\
preset = "24p"
fd_threshold = 0.3
std_dvars_threshold = 1.4
scrub = 4
dummy_scans = 3
low_pass = 0.1
high_pass = 0.01
detrend = true
standardize = "psc"
output_type = "n/a"
"""


def test_files_say_all_of_it(tmp_path):
    (tmp_path / "my-own.toml").write_text(TOML)
    expected = Denoising(
        "myown",
        {**preset_confounds("24p"), "fd_threshold": 0.3, "std_dvars_threshold": 1.4, "scrub": 4},
        {"low_pass": 0.1, "high_pass": 0.01, "detrend": True, "standardize": "psc"},
        3,
        "n/a",
    )
    assert denoising_of(str(tmp_path / "my-own.toml"), {}) == expected
    values = dict(line.split(" = ") for line in TOML.splitlines())
    (tmp_path / "x.json").write_text(json.dumps({key: json.loads(value) for key, value in values.items()}))
    assert denoising_of(f"myown={tmp_path / 'x.json'}", {}) == expected


def test_names_and_given_options(tmp_path):
    given = {"fd_threshold": 0.2, "low_pass": 0.08, "dummy_scans": 4}
    preset = denoising_of("acompcor50+gsr", given)
    assert preset == Denoising("acompcor50gsr", {"strategy": "compcor+gsr", "fd_threshold": 0.2}, {"low_pass": 0.08}, 4)
    (tmp_path / "b.toml").write_text('columns = ["csf", "trans_*"]\nfd_threshold = 0.4\nstandardize = false\n')
    own = denoising_of(f"B={tmp_path / 'b.toml'}", given)
    confounds = {"columns": ["csf", "trans_*"], "fd_threshold": 0.4}
    assert own == Denoising("B", confounds, {"low_pass": 0.08, "standardize": False}, 4)
    (tmp_path / "empty.toml").write_text("")
    assert denoising_of(str(tmp_path / "empty.toml"), {}) == Denoising("empty")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colums = ['csf']", "Unknown key 'colums'. Expected some of preset, dummy_scans, output_type, columns, "),
        ("columns = 'csf'", "'columns' must be a list of names, got 'csf'."),
        ("columns = []", "'columns' must be a list of names, got []."),
        ("columns = ['csf', 3]", "'columns' must be a list of names, got ['csf', 3]."),
        ("columns = ['csf']\npreset = '9p'", "'preset' and 'columns' exclude each other: give one."),
        ("preset = 'p9'", "Unknown preset 'p9'."),
        ("preset = 9", "'preset' must be a name, got 9."),
        ("fd_threshold = 0", "'fd_threshold' must be a positive number, got 0."),
        ("fd_threshold = nan", "'fd_threshold' must be a positive number, got nan."),
        ("fd_threshold = true", "'fd_threshold' must be a positive number, got True."),
        ("std_dvars_threshold = '1'", "'std_dvars_threshold' must be a positive number, got '1'."),
        ("scrub = 1.5", "'scrub' must be a number of volumes, got 1.5."),
        ("scrub = 5", "scrub=5 needs censored volumes: give fd_threshold or std_dvars_threshold too."),
        ("dummy_scans = -1", "'dummy_scans' must be \"auto\" or a number of volumes, got -1."),
        ("high_pass = inf", "'high_pass' must be a positive number, got inf."),
        ("high_pass = 0.1\nlow_pass = 0.1", "'high_pass' (0.1 Hz) must be lower than 'low_pass' (0.1 Hz)."),
        ("detrend = 1", "'detrend' must be true or false, got 1."),
        ("standardize = 0", "'standardize' must be one of zscore_sample, zscore, psc, or false, got 0."),
        ("standardize = ['psc']", "'standardize' must be one of zscore_sample, zscore, psc, or false, got ['psc']."),
        ("output_type = 'na'", "'output_type' must be one of censored, n/a, interpolated, got 'na'."),
    ],
)
def test_unusable_files(tmp_path, text, message):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{re.escape(f'{path}: {message}')}"):
        denoising_of(str(path), {})


def test_files_that_are_not_toml_or_json(tmp_path):
    for name, content, message in (
        ("a.toml", b"fd = ", "isn't TOML: Invalid value"),
        ("b.TOML", b"\xff", "isn't TOML: 'utf-8' codec"),
        ("c.json", b"[]", "expected an object"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(message)) as raised:
            denoising_of(str(path), {})
        assert str(path) in str(raised.value)
    with pytest.raises(FileNotFoundError):
        denoising_of(str(tmp_path / "none.toml"), {})


@pytest.mark.parametrize("name", ["a b", "a-b", "a_b", "ä", "../a"])
def test_names_are_labels(name):
    with pytest.raises(ValueError, match=r"is part of file names: expected letters and digits, got "):
        denoising_of(f"{name}=24p", {})
