"""One run and many: file names, what is in the files, and that they appear whole or not at all."""

import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import NiftiLabelsMasker, __version__, extract
from gpumask.extract import Run, extract_run, extract_runs, output_path
from gpumask.tables import shortest, table_lines


def save(path, data, affine=None, t_r=None):
    img = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    if t_r is not None:
        img.header.set_xyzt_units("mm", "sec")
        img.header["pixdim"][4] = t_r
    nib.save(img, path)
    return path


@pytest.fixture
def atlas(tmp_path):
    labels = np.zeros((6, 5, 4), np.int16)
    labels[:2], labels[2:4], labels[4:, :3] = 3, 7, 12
    return save(tmp_path / "atlas-Toy_desc-3Regions_dseg.nii.gz", labels)


@pytest.fixture
def volumes():
    return np.random.default_rng(0).integers(100, 900, (6, 5, 4, 30)).astype(np.int16)


@pytest.fixture
def run(tmp_path, volumes):
    return save(tmp_path / "sub-1_task-rest_desc-preproc_bold.nii.gz", volumes, t_r=2.0)


@pytest.fixture
def out(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    return path


NAME = "sub-1_task-rest_atlas-Toy3Regions_stat-mean_timeseries"


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("sub-1_task-rest_desc-preproc_bold.nii.gz", "sub-1_task-rest_atlas-A_stat-mean"),
        ("x/sub-1_ses-b_run-2_space-MNI_res-2_desc-x_bold.nii", "sub-1_ses-b_run-2_space-MNI_atlas-A_res-2_stat-mean"),
        ("sub-1_bold.nii.zst", "sub-1_atlas-A_stat-mean"),
        ("sub-1.nii.gz", "sub-1_atlas-A_stat-mean"),
        ("my.run.v2.nii.gz", "my.run.v2_atlas-A_stat-mean"),
        ("sub-1_desc-a b_bold.mgz", "sub-1_desc-a b_bold_atlas-A_stat-mean"),
        ("rest.hdr", "rest_atlas-A_stat-mean"),
    ],
)
def test_names_of_runs(run, expected):
    assert output_path(NiftiLabelsMasker("A.nii"), Run(run), "o") == Path("o", f"{expected}_timeseries.tsv")


@pytest.mark.parametrize(
    ("atlas", "expected"),
    [
        ("Schaefer2018_100Parcels_S1.nii.gz", "Schaefer2018100ParcelsS1"),
        ("sub-02_space-bold_atlas-Schaefer400TianS4_dseg.nii.gz", "Schaefer400TianS4"),
        ("tpl-MNI_res-02_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.nii.gz", "Schaefer2018400Parcels7Networks"),
        ("desc-aseg_dseg.nii.gz", "aseg"),
        ("__.nii", "atlas"),
    ],
)
def test_names_of_atlases(atlas, expected):
    path = output_path(NiftiLabelsMasker(atlas, strategy="standard_deviation"), Run("r.nii"))
    assert path.name == f"r_atlas-{expected}_stat-standarddeviation_timeseries.tsv"


def test_an_atlas_in_memory_is_called_atlas():
    image = nib.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4))
    assert output_path(NiftiLabelsMasker(image), Run("r.nii")).name == "r_atlas-atlas_stat-mean_timeseries.tsv"


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_the_table_gives_back_the_same_numbers(tmp_path, atlas, volumes, out, dtype):
    data = (volumes / 7).astype(dtype)
    path = save(tmp_path / "run.nii.gz", data)
    record = extract_run(NiftiLabelsMasker(atlas, standardize="psc").fit(), Run(path), out)
    expected = NiftiLabelsMasker(atlas, standardize="psc").fit_transform(path)
    assert record.path.read_text().startswith("3\t7\t12\n")
    assert record.shape == expected.shape == (30, 3)
    assert np.array_equal(np.loadtxt(record.path, skiprows=1, dtype=expected.dtype), expected)
    digits = max(len(re.sub(r"\D|e.*", "", cell)) for cell in record.path.read_text().split()[3:])
    assert digits <= (10 if dtype == np.float32 else 18)


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", ">f8", "g", "i2", "u8"])
def test_tables_of_every_dtype(dtype):
    rows = np.array([[0.1, -2.5, 9012.34], [3, 4, 5]]).astype(dtype)
    rows = np.abs(rows) if dtype == "u8" else rows
    _, *lines = table_lines(["a", "b", "c"], rows)
    np.testing.assert_array_equal([[rows.dtype.type(cell) for cell in line.split()] for line in lines], rows)
    assert max(map(len, lines)) < (30 if rows.dtype.char in "ef" else 60)
    if rows.dtype.kind == "f":
        assert list(table_lines(["a"], np.array([[np.nan]], dtype))) == ["a\n", "n/a\n"]


def test_nan_is_na_and_names_keep_to_their_column(tmp_path, out, atlas, run, monkeypatch):
    lut = pd.DataFrame({"index": [3, 7, 12], "name": ["Left\tA", "Ünder", "c d"]})
    masker = NiftiLabelsMasker(atlas, lut=lut).fit()
    monkeypatch.setattr(masker, "transform_single_imgs", with_nan(masker.transform_single_imgs))
    lines = extract_run(masker, Run(run), out).path.read_text(encoding="utf-8").split("\n")
    assert lines[0] == "Left A\tÜnder\tc d"
    assert lines[1].split("\t")[1:] == ["n/a", "inf"]
    assert lines[31:] == [""]


def with_nan(transform):
    def transformed(*args, **keywords):
        signals = transform(*args, **keywords)
        signals[0, 1:] = np.nan, np.inf
        return signals

    return transformed


def test_a_3d_image_is_one_row(tmp_path, out, atlas, volumes):
    path = save(tmp_path / "contrast.nii", volumes[..., 0])
    record = extract_run(NiftiLabelsMasker(atlas).fit(), Run(path), out)
    assert record.shape == (1, 3)
    assert len(pd.read_table(record.path)) == 1


def test_sidecar(tmp_path, out, atlas, run, volumes):
    table = pd.DataFrame({"a": np.arange(30.0) ** 2, "b": np.random.default_rng(1).normal(size=30)})
    table.to_csv(tmp_path / "c.tsv", sep="\t", index=False)
    masker = NiftiLabelsMasker(
        atlas, lut=pd.DataFrame({"index": [3, 7, 12], "name": ["x", "y", "z"]}), high_pass=0.05, device="cpu"
    )
    record = extract_run(masker.fit(), Run(run, tmp_path / "c.tsv"), out, confounds_columns=["b"])
    sidecar = json.loads(record.path.with_suffix(".json").read_text(encoding="utf-8"))
    assert list(sidecar) == [
        *("run", "atlas", "confounds", "confounds_columns", "volumes", "t_r", "t_r_from", "device", "plan"),
        *("parameters", "seconds", "versions", "regions"),
    ]
    assert sidecar["run"] == str(run)
    assert sidecar["atlas"] == sidecar["parameters"]["labels_img"] == str(atlas)
    assert sidecar["confounds"] == str(tmp_path / "c.tsv")
    assert sidecar["confounds_columns"] == ["b"]
    assert (sidecar["volumes"], sidecar["t_r"], sidecar["t_r_from"], sidecar["device"]) == (30, 2.0, "header", "cpu")
    assert sidecar["plan"] == masker.plan_.explain().splitlines()
    assert sidecar["parameters"].keys() == masker.get_params().keys()
    assert sidecar["parameters"]["high_pass"] == 0.05
    assert sidecar["parameters"]["lut"] == "DataFrame"
    assert sidecar["seconds"].keys() == {*masker.seconds_, "write"}
    assert sidecar["seconds"] == record.seconds
    assert {"python", "numpy", "scipy", "nibabel"} < sidecar["versions"].keys()
    assert sidecar["versions"]["gpumask"] == __version__
    assert sidecar["regions"] == [
        {"index": 3, "name": "x", "voxels": 40},
        {"index": 7, "name": "y", "voxels": 40},
        {"index": 12, "name": "z", "voxels": 24},
    ]
    assert masker.t_r is None
    expected = NiftiLabelsMasker(atlas, high_pass=0.05, t_r=2.0).fit_transform(run, confounds=table[["b"]])
    assert np.array_equal(np.loadtxt(record.path, skiprows=1), expected)


def test_repetition_time(tmp_path, out, atlas, volumes):
    path = save(tmp_path / "r.nii", volumes)
    filtering = NiftiLabelsMasker(atlas, low_pass=0.1).fit()
    msg = f"Filtering needs the repetition time, and the header of {path} has none. Give t_r (--t-r)."
    with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
        extract_run(filtering, Run(path), out)
    plain = extract_run(NiftiLabelsMasker(atlas).fit(), Run(path), out)
    assert json.loads(plain.path.with_suffix(".json").read_text())["t_r_from"] is None
    given = extract_run(NiftiLabelsMasker(atlas, low_pass=0.1, t_r=1.5).fit(), Run(path), out, overwrite=True)
    sidecar = json.loads(given.path.with_suffix(".json").read_text())
    assert (sidecar["t_r"], sidecar["t_r_from"]) == (1.5, "given")


def test_a_masker_without_parameter_t_r_keeps_it_so_after_an_error(tmp_path, out, atlas, run):
    masker = NiftiLabelsMasker(atlas, low_pass=0.1, smoothing_fwhm="wide")
    masker.labels_img_ = masker.lut_ = None
    with pytest.raises(TypeError, match="smoothing_fwhm"):
        extract_run(masker, Run(run), out)
    assert masker.t_r is None


def test_missing_columns_name_the_file_and_what_is_similar(tmp_path, out, atlas, run):
    path = tmp_path / "c.tsv"
    pd.DataFrame(np.eye(30, 3), columns=["trans_x", "trans_y", "csf"]).to_csv(path, sep="\t", index=False)
    for columns, msg in (
        (["csf", "tran_x"], f"{path} has no column tran_x. Its 3 columns include trans_x, trans_y."),
        (["q", "w"], f"{path} has no column q, w. Its 3 columns include trans_x, trans_y, csf."),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
            extract_run(NiftiLabelsMasker(atlas).fit(), Run(run, path), out, confounds_columns=columns)


def test_bad_confounds_are_found_before_the_run_is_read(tmp_path, out, atlas, run, monkeypatch):
    (tmp_path / "c.tsv").write_text("a\tb\n" + "1\tn/a\n" * 30)
    masker = NiftiLabelsMasker(atlas).fit()
    monkeypatch.setattr(masker, "transform_single_imgs", None)
    with pytest.raises(ValueError, match=r"in column 'b' \(volume 0, 1, 2, 3, 4 and 25 more\)"):
        extract_run(masker, Run(run, tmp_path / "c.tsv"), out, confounds_columns=["b"])


def test_existing_files_are_left_alone(out, atlas, run):
    masker = NiftiLabelsMasker(atlas).fit()
    (out / f"{NAME}.json").write_text("mine")
    msg = f"{out / NAME}.json exists already, and was left as it is. To replace it: overwrite=True (--overwrite)."
    with pytest.raises(FileExistsError, match=f"^{re.escape(msg)}$"):
        extract_run(masker, Run(run), out)
    assert [path.name for path in out.iterdir()] == [f"{NAME}.json"]
    extract_run(masker, Run(run), out, overwrite=True)
    assert json.loads((out / f"{NAME}.json").read_text())["volumes"] == 30


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_files_that_fail_while_written(out, atlas, run, monkeypatch, failing, error):
    def fsync(number, calls=[]):  # noqa: B006
        calls.append(number)
        if len(calls) == failing:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(type(error)):
        extract_run(NiftiLabelsMasker(atlas).fit(), Run(run), out)
    assert list(out.iterdir()) == []


def test_a_table_never_stands_beside_the_sidecar_of_an_older_one(out, atlas, run, monkeypatch):
    masker = NiftiLabelsMasker(atlas).fit()
    extract_run(masker, Run(run), out)
    rename = Path.replace

    def killed(self, target):
        if Path(target).suffix == ".json":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        extract_run(masker, Run(run), out, overwrite=True)
    assert [path.name for path in out.iterdir()] == [f"{NAME}.tsv"]


def test_files_have_the_usual_permissions(out, atlas, run):
    record = extract_run(NiftiLabelsMasker(atlas).fit(), Run(run), out)
    (out / "usual").touch()
    assert record.path.stat().st_mode == (out / "usual").stat().st_mode


def test_one_bad_run_does_not_stop_the_rest(tmp_path, out, atlas, run, volumes):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(run.read_bytes()[:2000])
    other = save(tmp_path / "other.nii", np.where(volumes == volumes[0, 0, 0, 0], np.nan, volumes))
    runs = [Run(path) for path in (run, broken, tmp_path / "no.nii", other)]
    records = list(extract_runs(NiftiLabelsMasker(atlas).fit(), iter(runs), out))
    assert [record.run for record in records] == runs
    assert [bool(record.error) for record in records] == [False, True, True, False]
    assert str(broken) in records[1].error
    assert records[2].error == f"There is no such file: {tmp_path / 'no.nii'}"
    assert records[0].warnings == ()
    assert records[3].warnings == ("Non-finite values detected. These values will be replaced with zeros.",)
    assert records[1].shape == ()
    assert [record.path.exists() for record in records] == [True, False, False, True]
    assert len(list(out.iterdir())) == 4


def test_an_error_without_text_is_called_by_its_type(out, atlas, run, monkeypatch):
    def transform(*args, **keywords):
        raise MemoryError

    masker = NiftiLabelsMasker(atlas).fit()
    monkeypatch.setattr(masker, "transform_single_imgs", transform)
    assert [record.error for record in extract_runs(masker, [Run(run)], out)] == ["MemoryError"]


def test_a_bug_is_not_swallowed(out, atlas, run, monkeypatch):
    masker = NiftiLabelsMasker(atlas).fit()
    monkeypatch.setattr(masker, "transform_single_imgs", lambda *args, **keywords: None)
    with pytest.raises(AttributeError):
        list(extract_runs(masker, [Run(run)], out))


def test_two_runs_with_one_name_are_refused_at_once(tmp_path, atlas, out):
    runs = [Run(tmp_path / "a" / "sub-1_desc-x_bold.nii"), Run(tmp_path / "sub-1_desc-y_bold.nii")]
    path = out / "sub-1_atlas-Toy3Regions_stat-mean_timeseries.tsv"
    msg = f"{runs[0].path} and {runs[1].path} would both be written to {path}. Write them to two folders."
    with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
        extract_runs(NiftiLabelsMasker(atlas).fit(), runs, out)
    with pytest.raises(ValueError, match="would both be written"):
        extract_runs(NiftiLabelsMasker(atlas).fit(), runs[:1] * 2, out)


@pytest.mark.parametrize("target", ["data", "labels"])
def test_runs_on_other_grids_give_no_warning_and_share_a_plan(tmp_path, atlas, out, volumes, target, monkeypatch):
    affine = np.diag([1.1, 1.0, 1.0, 1.0])
    runs = [Run(save(tmp_path / f"{name}.nii", volumes, affine)) for name in "ab"]
    masker = NiftiLabelsMasker(atlas, resampling_target=target, mask_img=atlas).fit()
    plans = []
    compiled = masker._compile_plan
    monkeypatch.setattr(masker, "_compile_plan", lambda *args: plans.append(args) or compiled(*args))
    records = list(extract_runs(masker, runs, out))
    assert [record.warnings for record in records] == [(), ()]
    assert [record.error for record in records] == ["", ""]
    assert len(plans) == 1


def test_progress_begins_at_0_and_ends_at_all(out, atlas, run):
    calls = []
    the_run = Run(run)
    list(extract_runs(NiftiLabelsMasker(atlas).fit(), [the_run], out, progress=lambda *args: calls.append(args)))
    assert calls[0] == (the_run, 0, 30)
    assert calls[-1] == (the_run, 30, 30)


def test_versions_name_every_cupy(monkeypatch):
    monkeypatch.setattr(extract.metadata, "packages_distributions", lambda: {"cupy": ["pandas", "joblib"]})
    extract.versions.cache_clear()
    assert list(extract.versions(cupy=True)) == ["python", "gpumask", "numpy", "scipy", "nibabel", "pandas", "joblib"]
    assert list(extract.versions()) == ["python", "gpumask", "numpy", "scipy", "nibabel"]
    extract.versions.cache_clear()


def test_singles_have_the_fewest_digits():
    """Those that NumPy's own search finds, which takes ten times as long; beyond a range more, of the same number."""
    rng = np.random.default_rng(0)
    usual = rng.normal(size=20_000) * 10.0 ** rng.integers(-9, 14, 20_000)
    usual = np.concatenate(
        [usual, rng.integers(-(10**7), 10**7, 5_000), [0.0, -0.0, 0.1, 1.0, 16777216, 1e-9, 123456789]]
    )
    usual = usual.astype(np.float32)
    usual = usual[(np.abs(usual) > 1e-10) | (usual == 0)]
    np.testing.assert_array_equal(shortest(usual), usual.astype("U").astype(np.float64))
    rare = np.array([1e-45, -1.2e-38, 1e-11, 1e16, 3.4e38, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(shortest(rare), rare.astype(np.float64))
    lines = list(table_lines(["a", "b", "c"], np.array([[0.1, np.nan, 9012.345]], np.float32)))
    assert lines == ["a\tb\tc\n", "0.1\tn/a\t9012.345\n"]
