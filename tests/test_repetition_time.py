"""Option, JSON metadata and header that say different things of the repetition time."""

import json
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from gpumask import cli
from gpumask.bids import Run, find_runs
from gpumask.bids.metadata import metadata_files, repetition_time

AFFINE = np.diag([3.0, 3, 3, 1])
NAME = "sub-01_task-rest_space-MNI152NLin6Asym"
T_R = 2.0  # of the data
FUNC = "d/sub-01/func"
IMAGE = f"{FUNC}/{NAME}_desc-preproc_bold.nii.gz"
BAND = "--low-pass 0.1 --high-pass 0.04"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FUNC).mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), "i2"), AFFINE), "a.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), "u1"), AFFINE), f"{FUNC}/{NAME}_desc-brain_mask.nii.gz")
    return tmp_path


def save(t_r=None, unit="sec", *, metadata=None):
    """A run with waves of 0.05 and 0.2 Hz, sampled every 2 s; what header and JSON say may be wrong."""
    times = np.arange(120) * T_R
    wave = 1000 + 10 * np.sin(2 * np.pi * 0.05 * times) + 10 * np.sin(2 * np.pi * 0.2 * times)
    image = nib.Nifti1Image(np.broadcast_to(wave, (4, 4, 4, 120)).astype("f4"), AFFINE)
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = t_r or 0
    nib.save(image, IMAGE)
    if metadata is not None:
        write(IMAGE.replace(".nii.gz", ".json"), metadata)


def write(path, metadata):
    Path(path).write_text(json.dumps(metadata))


def kept(table):
    """Amplitudes of the two waves that are left of 10."""
    spectrum = 2 * np.abs(np.fft.rfft(np.loadtxt(table, skiprows=1))) / 120
    frequencies = np.fft.rfftfreq(120, T_R)
    return [spectrum[np.argmin(np.abs(frequencies - frequency))] for frequency in (0.05, 0.2)]


def extract(folder, options=""):
    line = f"extract {IMAGE} --atlas a.nii.gz --out o --overwrite {options}"
    return cli.main(shlex.split(line)), folder / "o" / f"{NAME}_atlas-a_stat-mean_timeseries.tsv"


def cohort(folder, options=""):
    line = f"cohort d out participant --atlas a.nii.gz --min-coverage 0 --overwrite {options}"
    return cli.main(shlex.split(line)), folder / "out/sub-01/func" / f"{NAME}_atlas-a_stat-mean_timeseries.tsv"


both = pytest.mark.parametrize("command", [extract, cohort])


@both
def test_json_before_header(folder, capsys, command):
    """fMRIPrep's issue 3216. With the header's 1 s, 0.05 Hz would be filtered as 0.1 Hz."""
    save(1.0, metadata={"RepetitionTime": T_R})
    code, table = command(folder, BAND)
    assert code == 0
    in_band, out_of_band = kept(table)
    assert in_band > 9
    assert out_of_band < 0.1
    error = capsys.readouterr().err
    assert "Sources of the repetition time differ: 2 s in " in error
    assert f"{NAME}_desc-preproc_bold.json, 1 s in the header of " in error
    assert error.endswith("2 s is used.\n")
    assert json.loads(table.with_suffix(".json").read_text())["RepetitionTime"] == T_R


def test_option_before_json(folder, capsys):
    save(2.0, metadata={"RepetitionTime": 1.0})
    code, table = extract(folder, f"{BAND} --t-r 2")
    assert (code, kept(table)[0] > 9) == (0, True)
    assert "differ: 2 s given (--t-r), 1 s in " in capsys.readouterr().err


@both
def test_a_header_without_a_unit_is_no_source(folder, capsys, command):
    save(1.0, "unknown", metadata={"RepetitionTime": T_R})
    code, table = command(folder, BAND)
    assert (code, kept(table)[0] > 9) == (0, True)
    assert "repetition time" not in capsys.readouterr().err
    save(1.0, "unknown")
    (folder / IMAGE.replace(".nii.gz", ".json")).unlink()
    assert command(folder, BAND)[0] == 1
    assert "Filtering needs the repetition time, but neither" in capsys.readouterr().err


@pytest.mark.parametrize(("header", "n_warnings"), [(2.0, 0), (2.01, 0), (1.99, 0), (2.05, 1), (1.95, 1)])
def test_one_percent_is_no_difference(header, n_warnings):
    save(metadata={"RepetitionTime": 2.0})
    assert len(repetition_time(Run(IMAGE), header).messages) == n_warnings


CONTRADICTIONS = [
    (2000.0, 2.0, None),  # a header in ms that says "sec"
    (2.0, 2000.0, None),  # JSON in ms
    (0.002, 2.0, None),
    (200.0, 2.0, None),  # exactly 100
    (2.0, None, 2000.0),  # --t-r 2000
    (None, 2.0, 2000.0),
    (2.0, 2.0, 2000.0),
    (2000.0, None, 2.0),
]


@pytest.mark.parametrize(("header", "in_json", "given"), CONTRADICTIONS)
def test_a_factor_of_100_is_an_error(header, in_json, given):
    save(metadata={} if in_json is None else {"RepetitionTime": in_json})
    with pytest.raises(ValueError, match="Sources of the repetition time contradict each other: ") as caught:
        repetition_time(Run(IMAGE, t_r=given), header)
    for seconds in filter(None, (header, in_json, given)):
        assert f"{seconds:g} s " in str(caught.value)


@pytest.mark.parametrize(("header", "in_json"), [(2000.0, 2.0), (2.0, 2000.0)])
def test_the_option_settles_which_source_is_wrong(header, in_json):
    save(metadata={"RepetitionTime": in_json})
    found = repetition_time(Run(IMAGE, t_r=2.0), header)
    assert found[:2] == (2.0, "given")
    assert len(found.messages) == 1


@both
def test_a_contradiction_fails_the_run(folder, capsys, command):
    save(2000.0, metadata={"RepetitionTime": T_R})
    code, table = command(folder)
    assert code == 1
    assert not table.exists()
    assert "contradict each other: 2 s in " in capsys.readouterr().err


def test_milliseconds_given_for_seconds(folder, capsys):
    save(2.0)
    assert extract(folder, "--t-r 2000")[0] == 1
    assert "2000 s given (--t-r), 2 s in the header of" in capsys.readouterr().err


def test_an_unlikely_time_without_another_source_is_a_warning():
    save()
    [message] = repetition_time(Run(IMAGE), 2000.0).messages
    assert message == f"The repetition time in the header of {IMAGE} is 2000 s. Is it in other units?"
    assert repetition_time(Run(IMAGE), 0.72).messages == repetition_time(Run(IMAGE), 12.0).messages == ()


def test_a_bad_value_in_json_doesnt_matter_if_the_time_is_given():
    save(metadata={"RepetitionTime": 0})
    with pytest.raises(ValueError, match="has the RepetitionTime 0: expected a positive number"):
        repetition_time(Run(IMAGE), 2.0)
    found = repetition_time(Run(IMAGE, t_r=2.0), 2.0)
    assert found[:2] == (2.0, "given")
    assert found.messages[0].endswith("expected a positive number of seconds. The given one is used.")


# Inheritance


@pytest.mark.parametrize("nearest", [{}, {"SkullStripped": True}, {"RepetitionTime": 2.0}])
def test_a_nearer_file_completes_an_outer_one(folder, nearest):
    """BIDS: values of nearer files hold, others are inherited."""
    save(1.0, metadata=nearest)
    write("d/task-rest_bold.json", {"RepetitionTime": 2.0 if "RepetitionTime" not in nearest else 9.0, "TaskName": "r"})
    write("d/task-nback_bold.json", {"RepetitionTime": 7.0})
    write("d/sub-01/sub-01_bold.json", {"StartTime": 0.5})
    [run] = find_runs("d")[0]
    expected = [f"{FUNC}/{NAME}_desc-preproc_bold.json", "d/sub-01/sub-01_bold.json", "d/task-rest_bold.json"]
    assert [str(path) for path in metadata_files(run)] == [str(folder / path) for path in expected]
    assert metadata_files(Run(run.path)) == metadata_files(run)
    for one in (run, Run(IMAGE)):
        assert repetition_time(one, None)[:2] == (2.0, "JSON")
    for command in (extract, cohort):
        code, table = command(folder, BAND)
        assert (code, kept(table)[0] > 9) == (0, True)
        assert json.loads(table.with_suffix(".json").read_text())["StartTime"] == 0.5


def test_a_changed_outer_file_redoes_the_run(folder, capsys):
    save(metadata={})
    write("d/task-rest_bold.json", {"RepetitionTime": 2.0})
    line = "cohort d out participant --atlas a.nii.gz"
    assert cli.main(shlex.split(line)) == cli.main(shlex.split(line)) == 0
    assert "0 done, 1 skipped" in capsys.readouterr().out
    write("d/task-rest_bold.json", {"RepetitionTime": 2.25})
    assert cli.main(shlex.split(line)) == 0
    assert "1 done, 0 failed" in capsys.readouterr().out


# Volumes that aren't evenly spaced

UNEVEN = np.cumsum(np.tile([1.0, 1, 1, 7], 30)).tolist()
EVEN = (np.arange(120) * 2.0).tolist()


@both
@pytest.mark.parametrize(
    "metadata",
    [
        {"VolumeTiming": UNEVEN, "SliceTiming": [0]},
        {"VolumeTiming": UNEVEN},
        {"VolumeTiming": EVEN},  # without a repetition time
        {"SliceTiming": [0, 0.5]},
        {"VolumeTiming": UNEVEN, "RepetitionTime": 2.0},
        {"VolumeTiming": EVEN[::-1], "RepetitionTime": 2.0},
    ],
)
def test_filtering_is_refused(folder, capsys, command, metadata):
    """fMRIPrep's issues 2193 and 2322. The header's time, of 1 s, isn't a source."""
    save(1.0, metadata=metadata)
    code, table = command(folder, BAND)
    assert (code, table.exists()) == (1, False)
    error = capsys.readouterr().err
    assert "Filtering needs " in error
    assert f"{NAME}_desc-preproc_bold.json has " in error
    for one in ("--low-pass 0.1", "--high-pass 0.01"):
        assert command(folder, one)[0] == 1


@both
def test_times_of_volumes_are_passed_on(folder, command):
    save(1.0, metadata={"VolumeTiming": UNEVEN})
    code, table = command(folder)
    metadata = json.loads(table.with_suffix(".json").read_text())
    assert (code, metadata["VolumeTiming"], "RepetitionTime" in metadata) == (0, UNEVEN, False)


@pytest.mark.parametrize(
    ("metadata", "accepted"),
    [
        ({"VolumeTiming": EVEN}, True),
        ({"SliceTiming": [0, 0.5]}, True),
        ({"VolumeTiming": EVEN, "RepetitionTime": 2.0}, True),
        ({"VolumeTiming": UNEVEN}, False),
    ],
)
def test_filtering_with_a_given_time(folder, metadata, accepted):
    save(1.0, "unknown", metadata=metadata)
    code, table = extract(folder, f"{BAND} --t-r 2")
    assert code == (0 if accepted else 1)
    if accepted:
        assert kept(table)[0] > 9


def test_even_times_are_compared():
    save(metadata={"VolumeTiming": EVEN, "RepetitionTime": 3.0})
    [message] = repetition_time(Run(IMAGE), None).messages
    assert "3 s in " in message
    assert "2 s by VolumeTiming in " in message
    save(metadata={"VolumeTiming": [time * 1000 for time in EVEN], "RepetitionTime": 2.0})
    with pytest.raises(ValueError, match="contradict"):
        repetition_time(Run(IMAGE), None)


def test_times_that_arent_a_list():
    save(metadata={"VolumeTiming": "2 s"})
    with pytest.raises(ValueError, match="has the VolumeTiming '2 s': expected a list of seconds"):
        repetition_time(Run(IMAGE), None)
