"""One run and many: file names, what is in the files, and that they appear whole or not at all."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpumask import NiftiLabelsMasker, __version__, plans
from gpumask.bids.runs import Run
from gpumask.cohort import contents, writer
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration, check_names
from gpumask.cohort.writer import write_run
from gpumask.kernels import compiled
from gpumask.tables import shortest, table_lines

from .helpers import needs_compiled, save

PLAIN = {"keep_all_regions": False, "min_coverage": None, "nan_policy": "zero"}


def configuration(atlas, out, lut=None, columns=None, overwrite=False, **parameters):
    """As `gpumask extract` has it."""
    return Configuration(
        (AtlasFile(atlas, lut),),
        out,
        PLAIN | parameters,
        {"columns": columns} if columns else {},
        device="cpu",
        coverage=False,
        relmats=(),
        outliers=False,
        overwrite=overwrite,
    )


def extract_run(atlas, run, out, **options):
    return write_run(configuration(atlas, out, **options), run)


def table_of(record, out):
    return out / record.outputs[0].path


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


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_the_table_gives_back_the_same_numbers(tmp_path, atlas, volumes, out, dtype):
    data = (volumes / 7).astype(dtype)
    path = save(tmp_path / "run.nii.gz", data)
    record = extract_run(atlas, Run(path), out, standardize="psc")
    expected = NiftiLabelsMasker(atlas, standardize="psc", device="cpu").fit_transform(path)
    table = table_of(record, out)
    assert table.read_text().startswith("3\t7\t12\n")
    assert record.n_volumes == 30
    assert record.atlases == {"Toy3Regions": {"regions": 3}}
    assert np.array_equal(np.loadtxt(table, skiprows=1, dtype=expected.dtype), expected)
    digits = max(len(re.sub(r"\D|e.*", "", cell)) for cell in table.read_text().split()[3:])
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


def test_names_keep_to_their_column(tmp_path, out, atlas, run):
    lut = tmp_path / "lut.tsv"
    lut.write_text('index\tname\n3\t"Left\tA"\n7\tÜnder\n12\tc d\n', encoding="utf-8")
    lines = table_of(extract_run(atlas, Run(run), out, lut=lut), out).read_text(encoding="utf-8").split("\n")
    assert lines[0] == "Left A\tÜnder\tc d"
    assert lines[31:] == [""]


def test_a_3d_image_is_one_row(tmp_path, out, atlas, volumes):
    path = save(tmp_path / "contrast.nii", volumes[..., 0])
    record = extract_run(atlas, Run(path), out)
    assert record.n_volumes == 1
    assert len(pd.read_table(table_of(record, out))) == 1


def test_sidecar(tmp_path, out, atlas, run):
    table = pd.DataFrame({"a": np.arange(30.0) ** 2, "b": np.random.default_rng(1).normal(size=30)})
    table.to_csv(tmp_path / "c.tsv", sep="\t", index=False)
    (tmp_path / "lut.tsv").write_text("index\tname\n3\tx\n7\ty\n12\tz\n")
    options = {"lut": tmp_path / "lut.tsv", "columns": ["b"], "high_pass": 0.05}
    record = extract_run(atlas, Run(run, tmp_path / "c.tsv"), out, **options)
    assert record.error == ""
    sidecar = json.loads(table_of(record, out).with_suffix(".json").read_text(encoding="utf-8"))
    assert list(sidecar) == [
        *("RepetitionTime", "TaskName", "SoftwareFilters", "NuisanceParameters", "Sources", "ConfigurationHash"),
        *("RepetitionTimeSource", "NumberOfVolumes", "NumberOfVolumesKept", "DegreesOfFreedom", "ConfoundsOptions"),
        *("MaskerParameters", "Plan", "Device", "SoftwareVersions", "Regions"),
    ]
    assert (sidecar["RepetitionTime"], sidecar["RepetitionTimeSource"], sidecar["TaskName"]) == (2.0, "header", "rest")
    assert sidecar["SoftwareFilters"]["Butterworth"]["High-pass cutoff (Hz)"] == 0.05
    assert sidecar["NuisanceParameters"] == ["b"]
    assert sidecar["Sources"] == [path.as_uri() for path in (run, tmp_path / "c.tsv", atlas, tmp_path / "lut.tsv")]
    assert sidecar["ConfigurationHash"] == record.outputs[0].made
    assert (sidecar["NumberOfVolumes"], sidecar["Device"]) == (30, "cpu")
    masker = NiftiLabelsMasker(atlas, high_pass=0.05, t_r=2.0, device="cpu")
    expected = masker.fit_transform(run, confounds=table[["b"]])
    assert sidecar["Plan"] == masker.plan_.explain().splitlines()
    own = masker.get_params()
    assert sidecar["MaskerParameters"] == {name: own[name] for name in sidecar["MaskerParameters"]}
    assert {"python", "numpy", "scipy", "nibabel"} < sidecar["SoftwareVersions"].keys()
    assert sidecar["SoftwareVersions"]["gpumask"] == __version__
    assert sidecar["Regions"] == [
        {"index": 3, "name": "x", "voxels": 40},
        {"index": 7, "name": "y", "voxels": 40},
        {"index": 12, "name": "z", "voxels": 24},
    ]
    assert set(record.seconds) == {"read", "reduce", "clean", "write", "total"}
    assert np.array_equal(np.loadtxt(table_of(record, out), skiprows=1), expected)


def test_repetition_time(tmp_path, out, atlas, volumes):
    path = save(tmp_path / "r.nii", volumes)
    assert extract_run(atlas, Run(path), out, low_pass=0.1).error == (
        f"Filtering needs the repetition time, but neither the metadata nor the header of {path} has one. "
        "Give it: --t-r, or the column t_r of a list of runs."
    )
    plain = extract_run(atlas, Run(path), out)
    assert "RepetitionTimeSource" not in json.loads(table_of(plain, out).with_suffix(".json").read_text())
    given = extract_run(atlas, Run(path, t_r=1.5), out, low_pass=0.1, overwrite=True)
    sidecar = json.loads(table_of(given, out).with_suffix(".json").read_text())
    assert (sidecar["RepetitionTime"], sidecar["RepetitionTimeSource"]) == (1.5, "given")
    expected = NiftiLabelsMasker(atlas, low_pass=0.1, t_r=1.5, device="cpu").fit_transform(path)
    assert np.array_equal(np.loadtxt(table_of(given, out), skiprows=1), expected)


def test_missing_columns_name_the_file_and_what_is_similar(tmp_path, out, atlas, run):
    path = tmp_path / "c.tsv"
    pd.DataFrame(np.eye(30, 3), columns=["trans_x", "trans_y", "csf"]).to_csv(path, sep="\t", index=False)
    for columns, msg in (
        (["csf", "tran_x"], f"{path} has no column tran_x. Its 3 columns include trans_x, trans_y."),
        (["q", "w"], f"{path} has no column q, w. Its 3 columns include trans_x, trans_y, csf."),
    ):
        assert extract_run(atlas, Run(run, path), out, columns=columns).error == msg


@pytest.mark.parametrize("columns", [["b"], ["*"]])
def test_bad_confounds_are_found_before_the_run_is_read(tmp_path, out, atlas, run, monkeypatch, columns):
    (tmp_path / "c.tsv").write_text("a\tb\n" + "1\tn/a\n" * 30)
    monkeypatch.setattr(writer, "extract", None)
    error = extract_run(atlas, Run(run, tmp_path / "c.tsv"), out, columns=columns).error
    assert "in column 'b' (volume 0, 1, 2, 3, 4 and 25 more)" in error


def test_a_table_of_another_length_names_both_files(tmp_path, out, atlas, run):
    (tmp_path / "c.tsv").write_text("a\tb\n" + "1\t2\n" * 29)
    error = extract_run(atlas, Run(run, tmp_path / "c.tsv"), out, columns=["*"]).error
    assert error == f"{tmp_path / 'c.tsv'} has 29 rows, but {run} has 30 volumes."


def test_existing_files_are_left_alone(out, atlas, run):
    (out / f"{NAME}.json").write_text("mine")
    msg = f"{out / NAME}.json already exists. To replace it: overwrite=True (--overwrite)."
    assert extract_run(atlas, Run(run), out).error == msg
    assert [path.name for path in out.iterdir()] == [f"{NAME}.json"]
    assert extract_run(atlas, Run(run), out, overwrite=True).error == ""
    assert json.loads((out / f"{NAME}.json").read_text())["NumberOfVolumes"] == 30


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_files_that_fail_while_written(out, atlas, run, monkeypatch, failing, error):
    def fsync(number, calls=[]):  # noqa: B006
        calls.append(number)
        if len(calls) == failing:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            extract_run(atlas, Run(run), out)
    else:
        assert extract_run(atlas, Run(run), out).error == str(error)
    assert list(out.iterdir()) == []


def test_a_table_never_stands_beside_the_sidecar_of_an_older_one(out, atlas, run, monkeypatch):
    extract_run(atlas, Run(run), out)
    rename = Path.replace

    def killed(self, target):
        if Path(target).suffix == ".json":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        extract_run(atlas, Run(run), out, overwrite=True)
    assert [path.name for path in out.iterdir()] == [f"{NAME}.tsv"]


def test_files_have_the_usual_permissions(out, atlas, run):
    record = extract_run(atlas, Run(run), out)
    (out / "usual").touch()
    assert table_of(record, out).stat().st_mode == (out / "usual").stat().st_mode


def test_one_bad_run_does_not_stop_the_rest(tmp_path, out, atlas, run, volumes):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(run.read_bytes()[:2000])
    other = save(tmp_path / "other.nii", np.where(volumes == volumes[0, 0, 0, 0], np.nan, volumes))
    runs = [Run(path) for path in (run, broken, tmp_path / "no.nii", other)]
    records = [extract_run(atlas, run, out) for run in runs]
    assert [record.run for record in records] == runs
    assert [record.status for record in records] == ["done", "failed", "failed", "done"]
    assert str(broken) in records[1].error
    assert records[2].error == f"No such file: {tmp_path / 'no.nii'}"
    assert records[0].warnings == ()
    assert records[3].warnings == ("Non-finite values detected. These values will be replaced with zeros.",)
    assert records[1].outputs == ()
    assert len(list(out.iterdir())) == 4


@pytest.mark.parametrize("error", [MemoryError(), AttributeError()])
def test_an_error_without_text_is_called_by_its_type(out, atlas, run, monkeypatch, error):
    def extract(*args, **keywords):
        raise error

    monkeypatch.setattr(writer, "extract", extract)
    assert extract_run(atlas, Run(run), out).error == type(error).__name__


def test_two_runs_with_one_name_are_refused_at_once(tmp_path, atlas, out):
    runs = [Run(tmp_path / "a" / "sub-1_desc-x_bold.nii"), Run(tmp_path / "sub-1_desc-y_bold.nii")]
    path = out / "sub-1_atlas-Toy3Regions_stat-mean_timeseries.tsv"
    msg = f"{runs[0].path} and {runs[1].path} would both be written to {path}. Give them different names or folders."
    with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
        check_names(configuration(atlas, out), runs)
    with pytest.raises(ValueError, match="would both be written"):
        check_names(configuration(atlas, out), [runs[0], Run(runs[0].path)])


@pytest.mark.parametrize("target", ["data", "labels"])
def test_runs_on_other_grids_give_no_warning_and_share_a_plan(tmp_path, atlas, out, volumes, target, monkeypatch):
    affine = np.diag([1.1, 1.0, 1.0, 1.0])
    runs = [Run(save(tmp_path / f"{name}.nii", volumes, affine)) for name in "ab"]
    compiled, compile_plan = [], plans.compile_plan
    monkeypatch.setattr(plans, "compile_plan", lambda *a, **k: compiled.append(a) or compile_plan(*a, **k))
    records = [extract_run(atlas, run, out, resampling_target=target) for run in runs]
    assert [record.warnings for record in records] == [(), ()]
    assert [record.error for record in records] == ["", ""]
    assert len(compiled) == 1


def test_progress_begins_at_0_and_ends_at_all(out, atlas, run):
    calls = []
    write_run(configuration(atlas, out), Run(run), lambda *args: calls.append(args))
    assert calls[0] == (0, 30)
    assert calls[-1] == (30, 30)


def test_versions_name_every_cupy(monkeypatch):
    monkeypatch.setattr(contents.metadata, "packages_distributions", lambda: {"cupy": ["pandas", "joblib"]})
    contents.versions.cache_clear()
    assert list(contents.versions(cupy=True)) == ["python", "gpumask", "numpy", "scipy", "nibabel", "pandas", "joblib"]
    assert list(contents.versions()) == ["python", "gpumask", "numpy", "scipy", "nibabel"]
    contents.versions.cache_clear()


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


@needs_compiled
@pytest.mark.parametrize("single", [True, False])
def test_compiled_cells_are_pythons(single, monkeypatch):
    """For all kinds of numbers, also at and next to powers of ten and two, and half way between two decimals."""
    rng = np.random.default_rng(0)
    dtype, bits = (np.float32, np.uint32) if single else (np.float64, np.uint64)
    powers = np.concatenate([dtype(10.0) ** np.arange(-12, 18, dtype=dtype), dtype(2.0) ** np.arange(-40, 60)])
    near = [np.nextafter(powers.astype(dtype), dtype(end)) for end in (0, np.inf)]
    scaled = rng.normal(size=60_000) * 10.0 ** rng.uniform(-12, 17, 60_000)
    short = np.round(rng.uniform(-100, 100, 20_000), 2)
    halves = rng.integers(2**48, 2**50, 5_000) / 4
    odd = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3.4e38]
    with np.errstate(invalid="ignore"):  # signalling NaN
        any_bits = rng.integers(0, np.iinfo(bits).max, 60_000, dtype=bits).view(dtype)
        usual = [np.asarray(some, dtype) for some in (scaled, short, powers, *near, halves, odd)]
        values = np.concatenate([any_bits, *usual])
        values = np.concatenate([values, -values, np.arange(-20_000, 20_000, dtype=dtype)])
        rows = [
            values[None],
            values[:: len(values) // 50].reshape(-1, 1),
            np.zeros((2, 0), dtype),
            values[None, ::-3],
            values[None, :1000].astype(np.dtype(dtype).newbyteorder()),
        ]
        compiled_lines = [list(table_lines(["a"], row, ["x"] * len(row))) for row in rows]
        monkeypatch.setattr(compiled, "is_compiled", False)
        assert compiled_lines == [list(table_lines(["a"], row, ["x"] * len(row))) for row in rows]


@needs_compiled
@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (np.zeros(3, int), TypeError, "`row` must be of float32 or float64, got items of format 'l'."),
        (np.zeros(3, ">f8"), TypeError, "`row` must be of real numbers in native byte order, got items of format"),
        (np.zeros((3, 1), "f4"), TypeError, "`row` must have 1 dimensions, got 2."),
        (np.zeros(6, "f4")[::2], ValueError, "`row` must be an array in C order of numbers."),
        ([1.0], TypeError, "`row` must be an array of real numbers, got list."),
    ],
)
def test_rows_of_another_kind(row, error, message):
    with pytest.raises(error, match=re.escape(message)):
        compiled.extension.decimals(row)
