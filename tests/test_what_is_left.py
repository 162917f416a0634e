"""What is left of a run: dummy scans, a floor of kept time, degrees of freedom; and outputs made with other options."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import signal as scipy_signal

from gpumask import NiftiLabelsMasker
from gpumask.bids.runs import Run
from gpumask.cleaner import Cleaner
from gpumask.cli import main
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.writer import write_run
from gpumask.confounds.censoring import censor

T, T_R = 160, 2.0
AFFINE = np.diag([3.0, 3, 3, 1])


@pytest.fixture
def folder(tmp_path):
    """A run with four volumes before the steady state, its confounds, and an atlas of three regions."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 2)[:, None, None] * np.ones((8, 5, 4))
    nib.save(nib.Nifti1Image(labels.astype("i2"), AFFINE), tmp_path / "atlas-Toy_dseg.nii.gz")
    func = tmp_path / "d" / "sub-1" / "func"
    func.mkdir(parents=True)
    data = rng.normal(1000, 10, (8, 5, 4, T))
    data[..., :4] += np.array([900, 500, 200, 50])
    image = nib.Nifti1Image(data.astype("f4"), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = T_R
    nib.save(image, func / "sub-1_task-rest_desc-preproc_bold.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((8, 5, 4), "u1"), AFFINE), func / "sub-1_task-rest_desc-brain_mask.nii.gz")
    table = pd.DataFrame(rng.normal(size=(T, 30)), columns=[f"c{k}" for k in range(30)])
    for k in range(4):
        table[f"non_steady_state_outlier{k:02}"] = (np.arange(T) == k).astype(float)
    table["framewise_displacement"] = [np.nan, *np.where(np.arange(1, T) % 10 == 5, 0.9, 0.1)]
    table.to_csv(func / "sub-1_task-rest_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
    (tmp_path / "d" / "dataset_description.json").write_text('{"Name": "d", "BIDSVersion": "1.9.0"}')
    return tmp_path


def command(folder, *options, out="out"):
    words = ["cohort", folder / "d", folder / out, "participant", "--atlas", folder / "atlas-Toy_dseg.nii.gz"]
    return main([*map(str, words), "--device", "cpu", *map(str, options)])


def series(folder, out="out"):
    (path,) = (folder / out).rglob("*stat-mean_timeseries.tsv")
    return path, json.loads(path.with_suffix(".json").read_text())


# Dummy scans


@pytest.mark.parametrize(
    ("options", "dropped"),
    [((), [0, 1, 2, 3]), (("--dummy-scans", "0"), []), (("--dummy-scans", "7"), list(range(7)))],
)
def test_dummy_scans(folder, capsys, options, dropped):
    assert command(folder, *options) == 0
    path, sidecar = series(folder)
    run = folder / "d" / "sub-1" / "func" / "sub-1_task-rest_desc-preproc_bold.nii.gz"
    raw = NiftiLabelsMasker(folder / "atlas-Toy_dseg.nii.gz", device="cpu", dtype="f8").fit_transform(run)
    np.testing.assert_allclose(np.loadtxt(path, skiprows=1), np.delete(raw, dropped, axis=0), rtol=1e-6)
    assert sidecar.get("DummyScans", []) == sidecar.get("CensoredVolumes", []) == dropped
    assert (sidecar["NumberOfVolumes"], sidecar["NumberOfVolumesKept"]) == (T, T - len(dropped))
    words = f"{T - len(dropped)}/{T} volumes kept ({len(dropped)} dummy scans)" if dropped else f"{T} volumes"
    assert f"sub-1_task-rest\t{words}, mean FD 0.18 mm\t" in capsys.readouterr().out


def test_dummy_scans_inflate_correlations(folder):
    """As the issue of the kept volumes has it: with them every pair of regions correlates."""
    strength = {}
    for scans in ("auto", "0"):
        command(folder, "--dummy-scans", scans, out=scans)
        (path,) = (folder / scans / "sub-1").rglob("*_relmat.tsv")
        matrix = pd.read_table(path, index_col=0).to_numpy()
        strength[scans] = np.median(np.abs(matrix[np.triu_indices(3, 1)]))
    assert strength["0"] > 0.9
    assert strength["auto"] < 0.3


@pytest.mark.parametrize("wrong", ["-1", "two", "1.5"])
def test_wrong_dummy_scans(folder, capsys, wrong):
    assert command(folder, f"--dummy-scans={wrong}") == 2
    assert f"expected auto or a number of volumes, got '{wrong}'" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_nothing_is_left_by_dummy_scans():
    with pytest.raises(ValueError, match=r"^All 5 volumes are dropped: 5 dummy scans, 0 by motion\.$"):
        censor(None, 5, None, 9)


# Kept time


def test_kept_time(folder, capsys):
    # Of 160 volumes 4 are dummies, and 15, 25, ... 155 and 5 move: 16 of the others.
    assert command(folder, "--fd-threshold", "0.5", "--min-time", "281") == 1
    name = folder / "d" / "sub-1" / "func" / "sub-1_task-rest_desc-preproc_bold.nii.gz"
    assert (
        f"{name} keeps 140 of its 160 volumes, 280 s, less than the 281 s of --min-time. Exclude the run, censor less, "
        "or lower --min-time (0 accepts any)."
    ) in capsys.readouterr().err
    assert command(folder, "--fd-threshold", "0.5", "--min-time", "280") == 0
    assert "140/160 volumes kept (4 dummy scans)" in capsys.readouterr().out


def test_the_floor_is_xcp_ds_by_default_and_only_for_censored_runs(folder, capsys):
    assert command(folder, "--dummy-scans", "60") == 0  # 200 s are left, of a run that isn't censored for motion
    assert command(folder, "--dummy-scans", "60", "--fd-threshold", "0.5", out="b") == 1
    assert "less than the 240 s of --min-time" in capsys.readouterr().err
    assert command(folder, "--dummy-scans", "60", "--fd-threshold", "0.5", "--min-time", "0", out="c") == 0


def test_kept_time_without_a_repetition_time(folder, capsys):
    path = folder / "d" / "sub-1" / "func" / "sub-1_task-rest_desc-preproc_bold.nii.gz"
    image = nib.load(path)
    image = nib.Nifti1Image(image.get_fdata().astype("f4"), AFFINE)
    nib.save(image, path)
    assert command(folder, "--fd-threshold", "0.5") == 1
    assert "can't be told without a repetition time" in capsys.readouterr().err


# Degrees of freedom


def satterthwaite(linear_map):
    covariance = linear_map @ linear_map.T
    return np.trace(covariance) ** 2 / np.trace(covariance @ covariance)


def test_degrees_of_freedom_without_cleaning():
    assert Cleaner(50, detrend=False, standardize=None).degrees_of_freedom() == pytest.approx(50)
    kept = np.delete(np.arange(50), [3, 7, 49])
    assert Cleaner(50, detrend=False, standardize=None, sample_mask=kept).degrees_of_freedom() == pytest.approx(47)


@pytest.mark.parametrize("n_confounds", [1, 24, 47])
def test_degrees_of_freedom_of_a_projection(n_confounds):
    """Detrending takes two, and each confound one: the trace of the projection."""
    confounds = np.random.default_rng(0).normal(size=(50, n_confounds))
    cleaner = Cleaner(50, detrend=True, confounds=confounds, standardize="zscore_sample")
    assert cleaner.degrees_of_freedom() == pytest.approx(50 - 2 - n_confounds)


@pytest.mark.parametrize("censored", [(), (10, 11, 80)])
def test_degrees_of_freedom_of_a_filter(censored):
    """By SciPy's filter, volume by volume; about the share of the band, 0.09 of 0.25 Hz."""
    kept = np.delete(np.arange(200), list(censored))
    cleaner = Cleaner(200, detrend=False, low_pass=0.1, high_pass=0.01, t_r=2.0, sample_mask=kept if censored else None)
    sos = scipy_signal.butter(5, [0.01, 0.1], "bandpass", fs=0.5, output="sos")
    impulses = np.eye(200)
    if censored:
        from scipy.interpolate import CubicSpline

        impulses = CubicSpline(kept, np.eye(200)[kept])(np.arange(200))
    expected = satterthwaite(scipy_signal.sosfiltfilt(sos, impulses, axis=0)[kept])
    assert cleaner.degrees_of_freedom() == pytest.approx(expected, rel=1e-6)
    assert 0.2 * 200 < expected < 0.45 * 200


def test_no_degrees_of_freedom():
    confounds = np.random.default_rng(0).normal(size=(20, 40))
    assert Cleaner(20, detrend=True, confounds=confounds).degrees_of_freedom() < 1e-6


def test_degrees_of_freedom_of_runs():
    runs = np.repeat([0, 1], 30)
    assert Cleaner(60, runs=runs, detrend=True).degrees_of_freedom() == pytest.approx(56)


def test_a_run_without_degrees_of_freedom_is_refused(folder, capsys):
    assert command(folder, "--confounds-columns", "c*", "--detrend", "--dummy-scans", T - 30) == 1
    error = capsys.readouterr().err
    assert "Cleaning leaves 0.0 degrees of freedom of 30 volumes of" in error
    assert "fewer than 2. Remove fewer confounds, filter less, or exclude the run." in error


def test_few_degrees_of_freedom_are_a_warning(folder, capsys):
    assert command(folder, "--confounds-columns", "c*", "--detrend", "--dummy-scans", T - 34) == 0
    assert "Cleaning leaves 2.0 degrees of freedom of 34 volumes of" in capsys.readouterr().err
    _, sidecar = series(folder)
    assert sidecar["DegreesOfFreedom"] == 2.0
    (record,) = (folder / "out" / "logs").glob("*.json")
    assert json.loads(record.read_text())["quality"][""]["degrees_of_freedom"] == pytest.approx(2)
    page = (folder / "out" / "cohort.html").read_text()
    assert "34 of 160 volumes are kept; a median of 2 degrees of freedom is left per run." in page
    assert "<td>sub-1_task-rest</td><td class=text>done</td><td class=n>160</td><td class=n>34</td>" in page


def test_min_dof(folder, capsys):
    options = ("--confounds-columns", "c*", "--detrend", "--dummy-scans", "0")
    assert command(folder, *options, "--min-dof", "129") == 1  # of 160, 2 and 30 are taken
    assert "Cleaning leaves 128.0 degrees of freedom of 160 volumes" in capsys.readouterr().err
    assert command(folder, *options, "--min-dof", "128") == 0


def test_finished_runs_are_held_to_a_higher_floor(folder, capsys):
    """They don't count as done, and what was written of them goes."""
    options = ("--fd-threshold", "0.5", "--confounds-columns", "c*", "--detrend")
    assert command(folder, *options) == 0
    assert command(folder, *options, "--min-time", "280", "--min-dof", "100") == 0
    assert "1 skipped" in capsys.readouterr().out
    for more in (("--min-time", "281"), ("--min-dof", "120")):
        assert command(folder, *options, *more) == 1
        assert "1 failed" in capsys.readouterr().out
        assert not list((folder / "out" / "sub-1").rglob("*.tsv"))
        assert command(folder, *options) == 0


def test_a_run_whose_inputs_changed_leaves_nothing_if_it_fails(folder, capsys):
    assert command(folder, "--confounds-columns", "c1") == 0
    (path,) = (folder / "d").rglob("*_timeseries.tsv")
    pd.read_table(path).drop(columns="c1").to_csv(path, sep="\t", index=False, na_rep="n/a")
    assert command(folder, "--confounds-columns", "c1") == 1
    assert "has no column c1" in capsys.readouterr().err
    assert not list((folder / "out" / "sub-1").rglob("*.tsv"))


def test_the_mean_alone_is_no_degree_of_freedom(folder, capsys):
    """Confounds that are as many as volumes but one leave the mean, if that isn't removed."""
    assert command(folder, "--confounds-columns", "c*", "--dummy-scans", T - 31) == 1
    assert "Cleaning leaves 1.0 degrees of freedom of 31 volumes" in capsys.readouterr().err


def test_extract_has_the_same_rules(folder, capsys):
    func = folder / "d" / "sub-1" / "func"
    words = ["extract", func / "sub-1_task-rest_desc-preproc_bold.nii.gz", "--atlas", folder / "atlas-Toy_dseg.nii.gz"]
    words += ["--confounds", "auto", "--confounds-columns", "c1", "--out", folder / "e", "--device", "cpu"]
    assert main([*map(str, words)]) == 0
    assert "156/160 volumes kept (4 dummy scans) x 3 regions" in capsys.readouterr().out
    assert main([*map(str, words), "--overwrite", "--fd-threshold", "0.5", "--min-time", "300"]) == 1
    assert "less than the 300 s of --min-time" in capsys.readouterr().err


# Changed options in an old folder


def test_other_options_in_the_same_folder_are_refused(folder, capsys):
    assert command(folder, "--smoothing-fwhm", "6") == 0
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    path, _ = series(folder)
    for dry in ((), ("--dry-run",)):
        capsys.readouterr()
        assert command(folder, "--smoothing-fwhm", "4", "--detrend", *dry) == 2
        assert capsys.readouterr().err == (
            f"gpumask cohort: error: {path} was made with smoothing_fwhm 6.0, now 4.0; detrend False, now True. "
            "To replace them: --overwrite. To keep them: choose another output folder.\n"
        )
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()} == before
    assert command(folder, "--smoothing-fwhm", "4", "--detrend", "--overwrite") == 0
    assert series(folder)[1]["MaskerParameters"]["smoothing_fwhm"] == 4.0


def test_another_strategy_would_leave_files_that_do_not_belong_together(folder, capsys):
    assert command(folder) == 0
    assert command(folder, "--strategy", "median") == 2
    assert "strategy 'mean', now 'median'" in capsys.readouterr().err
    assert command(folder, "--strategy", "median", "--overwrite") == 0
    assert [path.name for path in (folder / "out").rglob("*_timeseries.tsv")] == [
        "sub-1_task-rest_atlas-Toy_stat-median_timeseries.tsv"
    ]


def test_another_atlas_of_the_same_name_is_refused(folder, capsys):
    assert command(folder) == 0
    labels = nib.load(folder / "atlas-Toy_dseg.nii.gz")
    nib.save(nib.Nifti1Image(labels.get_fdata()[::-1].astype("i2"), AFFINE), folder / "atlas-Toy_dseg.nii.gz")
    assert command(folder) == 2
    assert "was made with another atlas, look-up table or mask." in capsys.readouterr().err


@pytest.mark.parametrize("change", [("--confounds-columns", "c1"), ("--dummy-scans", "0"), ("--min-coverage", "0.2")])
def test_members_of_the_kind(folder, capsys, change):
    assert command(folder) == 0
    assert command(folder, *change) == 2
    assert ", now " in capsys.readouterr().err


def test_another_version_alone_is_done_again(folder, capsys):
    assert command(folder) == 0
    (path,) = (folder / "out" / "logs").glob("*.json")
    record = json.loads(path.read_text())
    old = list(record["made"])
    keys = {key: f"{k:016}" for k, key in enumerate(old)}
    record["made"] = {keys[key]: {**how, "version": "0.0.1"} for key, how in record["made"].items()}
    for output in record["outputs"]:
        output["made"] = keys[output["made"]]
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert command(folder) == 0
    assert "1 done" in capsys.readouterr().out
    assert list(json.loads(path.read_text())["made"]) == old


def test_another_atlas_is_an_addition(folder, capsys):
    assert command(folder) == 0
    path, _ = series(folder)
    stamp = path.stat().st_mtime_ns
    (folder / "atlas-More_dseg.nii.gz").write_bytes((folder / "atlas-Toy_dseg.nii.gz").read_bytes())
    assert command(folder, "--atlas", folder / "atlas-More_dseg.nii.gz") == 0
    assert path.stat().st_mtime_ns == stamp
    assert len(list((folder / "out").rglob("*_timeseries.tsv"))) == 2


def test_changed_inputs_remove_all_that_was_made_of_the_old_ones(folder):
    (folder / "atlas-More_dseg.nii.gz").write_bytes((folder / "atlas-Toy_dseg.nii.gz").read_bytes())
    assert command(folder, "--atlas", folder / "atlas-More_dseg.nii.gz") == 0
    run = folder / "d" / "sub-1" / "func" / "sub-1_task-rest_desc-preproc_bold.nii.gz"
    nib.save(nib.load(run), folder / "d" / "again.nii.gz")
    (folder / "d" / "again.nii.gz").replace(run)
    assert command(folder) == 0  # with one atlas
    assert {path.name for path in (folder / "out").rglob("*_timeseries.tsv")} == {
        "sub-1_task-rest_atlas-Toy_stat-mean_timeseries.tsv"
    }


def test_in_python_too(folder):
    func = folder / "d" / "sub-1" / "func"
    run = Run(func / "sub-1_task-rest_desc-preproc_bold.nii.gz", name="sub-1_task-rest")
    make = lambda **options: Configuration(  # noqa: E731
        (AtlasFile(folder / "atlas-Toy_dseg.nii.gz"),), folder / "out", device="cpu", **options
    )
    assert [record.status for record in run_cohort(make(), [run])] == ["done"]
    with pytest.raises(ValueError, match=re.escape("detrend False, now True. To replace them: --overwrite.")):
        run_cohort(make(parameters={"detrend": True}), [run])
    assert write_run(make(overwrite=True, parameters={"detrend": True}), run).status == "done"


# A night's findings


def test_names_that_are_one_label_in_files(folder, capsys):
    atlas = folder / "atlas-Toy_dseg.nii.gz"
    assert command(folder, "--atlas", f"a-b={atlas}", f"a_b={atlas}") == 2
    assert "got ['Toy', 'a-b', 'a_b'], in file names ['Toy', 'ab', 'ab']. Give NAME=PATH." in capsys.readouterr().err
    assert command(folder, "--atlas", f"..={atlas}") == 2


@pytest.mark.parametrize("dtype", ["i2", "f4"])
@pytest.mark.parametrize("which", ["all", "one"])
def test_volumes_of_zeros_are_errors(folder, capsys, dtype, which):
    path = folder / "d" / "sub-1" / "func" / "sub-1_task-rest_desc-preproc_bold.nii.gz"
    image = nib.load(path)
    data = image.get_fdata().astype(dtype)
    data[..., slice(None) if which == "all" else 9] = 0
    nib.save(nib.Nifti1Image(data, image.affine, image.header), path)
    assert command(folder) == 1
    volumes = "4, 5, 6, 7, 8 and 151 more" if which == "all" else "9"
    assert f"{path}: only NaN, infinite values and 0 in volume {volumes}." in capsys.readouterr().err


def test_two_confounds_of_one_name(folder, capsys):
    (path,) = (folder / "d").rglob("*_timeseries.tsv")
    path.write_text(path.read_text().replace("c1\t", "c0\t", 1))
    assert command(folder, "--confounds-columns", "c2") == 1
    assert f"{path} has several columns called c0. Each name must be there once." in capsys.readouterr().err


@pytest.mark.parametrize("first", [0, 1])
def test_an_index_is_no_confound(folder, capsys, first):
    (path,) = (folder / "d").rglob("*_timeseries.tsv")
    assert command(folder, "--confounds-columns", "*", "--dummy-scans", "0", out="plain") == 0
    table = pd.read_table(path)
    table.index += first
    table.to_csv(path, sep="\t", na_rep="n/a")
    assert command(folder, "--confounds-columns", "*", "--dummy-scans", "0", out="indexed") == 0
    assert f"{path}: the first column has no name and counts the rows. It is ignored." in capsys.readouterr().err
    assert series(folder, "plain")[0].read_bytes() == series(folder, "indexed")[0].read_bytes()


def test_an_implausible_repetition_time_is_no_filter(folder, capsys):
    path = folder / "d" / "sub-1" / "func" / "sub-1_task-rest_desc-preproc_bold.nii.gz"
    image = nib.load(path)
    image.header["pixdim"][4] = 2000
    nib.save(nib.Nifti1Image(image.get_fdata().astype("f4"), image.affine, image.header), path)
    assert command(folder, "--low-pass", "0.1") == 1
    assert "is 2000 s. Is it in other units? Filtering needs it in seconds" in capsys.readouterr().err
    assert command(folder) == 0
    assert "is 2000 s. Is it in other units?" in capsys.readouterr().err


def test_a_region_called_background(folder, capsys):
    (folder / "atlas-Toy_dseg.tsv").write_text("index\tname\n0\tBackground\n1\tBackground\n2\tA\n3\tB\n")
    assert command(folder) == 0
    assert "calls label 1 of " in capsys.readouterr().err


def test_a_group_is_no_dry_run(folder, capsys):
    assert main(["cohort", str(folder / "d"), str(folder / "out"), "group", "--dry-run"]) == 2
    assert "--dry-run lists the runs to do: it goes with participant" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_an_empty_list_of_runs(folder, capsys):
    (folder / "runs.tsv").write_text("bold\tmask\n")
    words = ["cohort", folder / "runs.tsv", folder / "out", "participant", "--atlas", folder / "atlas-Toy_dseg.nii.gz"]
    assert main([*map(str, words)]) == 2
    assert "lists no run: expected a line per run" in capsys.readouterr().err


def test_a_demo_into_a_file(folder, capsys):
    assert main(["demo", "--out", str(folder / "atlas-Toy_dseg.nii.gz")]) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err
