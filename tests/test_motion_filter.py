"""Framewise displacement without respiration, against a recursion written out here, and in a cohort."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from gpumask import cli
from gpumask.bids import find_runs
from gpumask.cohort.configuration import AtlasFile, Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.confounds.denoising import Denoising, denoising_of
from gpumask.confounds.motion_filter import MotionFilter, framewise_displacement, with_filtered_displacement
from gpumask.confounds.tables import MOTION, ConfoundsTable

from . import cohorts

REAL = "sub-02_task-oneback_run-1_desc-confounds_timeseries.tsv"


def notch(low, high, rate):
    """Coefficients of a notch filter, from the bilinear transform of its analog one."""
    angle, width = np.pi * (low + high) / rate, np.tan(np.pi * (high - low) / rate)
    gain = 1 / (1 + width)
    return gain * np.array([1, -2 * np.cos(angle), 1]), np.array([1, -2 * gain * np.cos(angle), 2 * gain - 1])


def lowpass(cutoff, rate):
    """The same for a Butterworth filter of order 2."""
    k = np.tan(np.pi * cutoff / rate)
    norm = 1 / (1 + np.sqrt(2) * k + k**2)
    return norm * k**2 * np.array([1, 2, 1]), np.array([1, 2 * norm * (k**2 - 1), norm * (1 - np.sqrt(2) * k + k**2)])


def recursion(b, a, values):
    """The filter's output for values before which the first one has been there for ever."""
    values, before = np.append(np.full(5000, values[0]), values), [values[0]] * 2
    out = np.array(before)
    for k in range(2, len(values)):
        new = b @ values[[k, k - 1, k - 2]] - a[1:] @ out[[-1, -2]]
        out = np.append(out[-6000:], new)
    return out[5000:] if len(out) == len(values) else out[-(len(values) - 5000) :]


def both_ways(b, a, values):
    """Forwards and backwards, with the first and last value repeated around the run."""
    n = len(values)
    padded = np.pad(values, n - 1, mode="edge")
    return recursion(b, a, recursion(b, a, padded)[::-1])[::-1][n - 1 : 2 * n - 1]


@pytest.mark.parametrize(
    ("text", "coefficients"),
    [("notch:12-18", notch(12, 18, 75)), ("lowpass:6", lowpass(6, 75)), ("lowpass:30.5", lowpass(30.5, 75))],
)
def test_filters_are_their_recursions(text, coefficients):
    """Once forwards and once backwards, which makes order 4 of 2."""
    values = np.random.default_rng(0).normal(size=(30, 2)).cumsum(axis=0)
    expected = np.column_stack([both_ways(*coefficients, column) for column in values.T])
    filtered = MotionFilter.of(text)(values, 0.8)
    np.testing.assert_allclose(filtered, expected, atol=1e-9 * np.abs(expected).max())


def test_respiration_is_removed_and_slow_motion_stays():
    seconds = 0.8 * np.arange(600)
    drift, breaths = np.sin(2 * np.pi * seconds / 120), np.sin(2 * np.pi * 15 / 60 * seconds)
    for text in ("notch:12-18", "lowpass:6"):
        filtered = MotionFilter.of(text)((drift + breaths)[:, None], 0.8)[:, 0]
        assert np.abs(filtered - drift)[50:-50].max() < 0.05


def test_displacement_is_fmripreps(data):
    table = pd.read_table(data / REAL)
    displacement = framewise_displacement(table[list(MOTION)].to_numpy())
    assert np.isnan(displacement[0])
    np.testing.assert_allclose(displacement[1:], table["framewise_displacement"][1:], atol=1e-4)


def test_displacement_by_hand():
    parameters = np.array([[0, 0, 0, 0, 0, 0], [1, -2, 3, 0.01, 0, -0.02], [1, -2, 3, 0.01, 0, -0.02]])
    np.testing.assert_allclose(framewise_displacement(parameters), [np.nan, 1 + 2 + 3 + 0.5 + 1, 0])


@pytest.mark.parametrize(
    "text", ["notch", "notch:12", "notch:18-12", "notch:12-12", "notch:0-5", "lowpass:6-8", "lowpass:", "lowpass:-6"]
)
@pytest.mark.parametrize("more", ["", "x"])
def test_filters_that_can_not_be(text, more):
    message = (
        "motion_filter must be notch:LOW-HIGH or lowpass:HIGH in breaths per minute, such as notch:12-18, got "
        f"{text + more!r}."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Denoising("a", {"motion_filter": text + more})


def test_infinite_and_unknown_filters():
    for text in ("lowpass:inf", "lowpass:nan", "highpass:6", "lp:6", ""):
        with pytest.raises(ValueError, match=r"^motion_filter must be notch:LOW-HIGH or lowpass:HIGH"):
            MotionFilter.of(text)


@pytest.mark.parametrize(("text", "t_r", "least"), [("notch:12-18", 2.0, "1.67"), ("lowpass:15", 2.0, "2")])
def test_bands_beyond_the_nyquist_frequency(text, t_r, least):
    message = (
        f"The motion filter {text} needs a repetition time below {least} s: with 2 s, motion is only known up to 15 "
        "breaths per minute. Lower its band, or leave it out."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MotionFilter.of(text)(np.zeros((9, 6)), t_r)


def test_tables_without_what_it_needs(tmp_path):
    path = tmp_path / "x.tsv"
    table = pd.DataFrame(np.ones((5, 6)), columns=MOTION)
    table.iloc[[2, 4], 1] = np.nan
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    with pytest.raises(ValueError, match="motion parameters aren't known for volume 2, 4, so they can't be filtered"):
        with_filtered_displacement(ConfoundsTable(path), "lowpass:6", 2.0)
    with pytest.raises(ValueError, match=r"lowpass:6 needs a repetition time. Give it \(--t-r\)\.$"):
        with_filtered_displacement(ConfoundsTable(path), "lowpass:6", None)
    table[["trans_x", "rot_z"]].to_csv(path, sep="\t", index=False)
    with pytest.raises(ValueError, match="has no column trans_y, trans_z, rot_x, rot_y"):
        with_filtered_displacement(ConfoundsTable(path), "lowpass:6", 2.0)


def test_scrubbing_censors_by_the_file():
    pytest.importorskip("nilearn")
    message = "motion_filter='lowpass:6' doesn't go with the strategy 'scrubbing+gsr', which censors by the table's own"
    with pytest.raises(ValueError, match=re.escape(message)):
        Denoising("a", {"strategy": "scrubbing+gsr", "motion_filter": "lowpass:6"})


def test_files_and_options_of_denoisings(tmp_path):
    (tmp_path / "a.toml").write_text('preset = "24p"\nfd_threshold = 0.3\nmotion_filter = "notch:12-18"\n')
    assert denoising_of(str(tmp_path / "a.toml"), {}).confounds["motion_filter"] == "notch:12-18"
    assert denoising_of("24p", {"motion_filter": "lowpass:6"}).confounds["motion_filter"] == "lowpass:6"
    (tmp_path / "b.toml").write_text("motion_filter = 6\n")
    with pytest.raises(ValueError, match=r"b.toml: 'motion_filter' must be a text such as notch:12-18, got 6\."):
        denoising_of(str(tmp_path / "b.toml"), {})


def test_columns_that_are_removed_are_those_of_the_file(tmp_path):
    """Also the framewise displacement; and a table without one doesn't get one more column."""
    cohorts.make_cohort(tmp_path / "d", 1, bad=False)
    (atlas, _) = cohorts.make_atlases(tmp_path)
    (run,), _ = find_runs(tmp_path / "d")
    rng, table = np.random.default_rng(0), pd.read_table(run.confounds)
    table[list(MOTION)] = rng.standard_normal((40, 6)).cumsum(axis=0)
    for name in ("with", "without"):
        table = table.drop(columns="framewise_displacement") if name == "without" else table
        table.to_csv(run.confounds, sep="\t", index=False, na_rep="n/a")
        denoisings = tuple(
            Denoising(key, {"columns": ["f*", "trans_x"] if name == "with" else ["*"], **more})
            for key, more in (("raw", {}), ("calm", {"motion_filter": "lowpass:6"}))
        )
        configuration = Configuration(
            (AtlasFile(atlas),), tmp_path / name, denoisings=denoisings, device="cpu", min_time=0
        )
        (record,) = run_cohort(configuration, [run])
        assert record.error == ""
        raw, calm = (configuration.outputs(run, unit)["timeseries"] for unit in configuration.units if unit.atlas)
        assert calm.read_bytes() == raw.read_bytes()


def test_a_cohort(tmp_path, capsys):
    """FD counts and censors after the filter; the parameters that are removed aren't filtered."""
    cohorts.make_cohort(tmp_path / "d", 1, bad=False)
    (atlas, _) = cohorts.make_atlases(tmp_path)
    (run,), _ = find_runs(tmp_path / "d")
    table = pd.read_table(run.confounds)
    seconds = cohorts.T_R * np.arange(40)
    parameters = np.zeros((40, 6))
    parameters[:, 1] = 0.3 * np.sin(2 * np.pi * 12 / 60 * seconds)  # breaths
    parameters[20:, 0] = 2.0  # a jump
    table[list(MOTION)] = parameters
    table["framewise_displacement"] = framewise_displacement(parameters)
    table.to_csv(run.confounds, sep="\t", index=False, na_rep="n/a")
    b, a = lowpass(6, 60 / cohorts.T_R)
    filtered = np.column_stack([both_ways(b, a, column) for column in parameters.T])
    expected = np.append(np.nan, np.abs(np.diff(filtered, axis=0)) @ [1, 1, 1, 50, 50, 50])
    spec = {"columns": ["trans_y"], "fd_threshold": 0.25}
    denoisings = (Denoising("raw", spec), Denoising("calm", {**spec, "motion_filter": "lowpass:6"}))
    configuration = Configuration(
        (AtlasFile(atlas),), tmp_path / "out", denoisings=denoisings, device="cpu", min_time=0
    )
    (record,) = run_cohort(configuration, [run])
    assert record.error == ""
    raw, calm = record.quality["raw"], record.quality["calm"]
    assert raw["fd_mean"] == pytest.approx(np.nanmean(table["framewise_displacement"]))
    assert calm["fd_mean"] == pytest.approx(np.nanmean(expected), rel=1e-6)
    assert (raw["removed_fd"], calm["removed_fd"]) == (
        np.sum(table["framewise_displacement"] > 0.25),
        np.sum(expected > 0.25),
    )
    assert 0 < calm["removed_fd"] < raw["removed_fd"]
    described = {
        (unit.key, kind): json.loads(path.with_suffix(".json").read_text())
        for unit in configuration.units
        for kind, path in configuration.outputs(run, unit).items()
    }
    assert described[("Toy", "calm"), "timeseries"]["ConfoundsOptions"]["motion_filter"] == "lowpass:6"
    of_calm, of_raw = (described[("", name), "outliers"]["framewise_displacement"] for name in ("calm", "raw"))
    assert of_calm["MotionFilter"] == "lowpass:6 breaths per minute"
    assert "MotionFilter" not in of_raw
    calmed = with_filtered_displacement(ConfoundsTable(run.confounds), "lowpass:6", cohorts.T_R).frame
    pd.testing.assert_frame_equal(calmed[[*MOTION, "csf"]], table[[*MOTION, "csf"]])
    options = ["--atlas", f"Toy={atlas}", "--min-time", "0", "--device", "cpu", "--fd-threshold", "0.25"]
    command = ["cohort", str(tmp_path / "d"), str(tmp_path / "o"), "participant", *options]
    assert cli.main([*command, "--motion-filter", "lowpass:6"]) == 0
    text = (tmp_path / "o" / "logs" / "CITATION.md").read_text()
    words = r"A low-pass filter kept up to 6 breaths per minute of the motion parameters \[\d\] before framewise"
    assert re.search(words, text)
    assert "Gratton C" in text
    page = (tmp_path / "o" / "cohort.html").read_text()
    assert "above 0.25 mm; motion parameters filtered (lowpass:6 breaths per minute)" in page
    capsys.readouterr()
    assert cli.main([*command, "--motion-filter", "lowpass"]) == 2
    assert "motion_filter must be notch:LOW-HIGH or lowpass:HIGH" in capsys.readouterr().err
