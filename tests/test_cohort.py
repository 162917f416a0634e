"""One run to its files and many runs: the numbers, the files, what is done again and what isn't."""

import json
import os
import re
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import NiftiLabelsMasker
from gpumask.bids import Problem, Run, find_runs
from gpumask.bids.names import labels_in, run_name
from gpumask.cohort import writer
from gpumask.cohort.atlas_file import AtlasFile, lut_beside
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.record import is_done, log_problems
from gpumask.cohort.writer import process, write_run
from gpumask.confounds.tables import read_table
from gpumask.connectivity import correlations
from gpumask.files import locked
from gpumask.process import collect_warnings

from . import cohorts

PARAMETERS = {"detrend": True, "low_pass": 0.1, "high_pass": 0.01, "standardize": "zscore_sample"}
CONFOUNDS = {"columns": ["trans_*", "csf"], "fd_threshold": 0.5}
RUN = "sub-01_task-rest_run-1_space-MNI152NLin2009cAsym"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """60 runs, five of them bad, and two atlases: folder, runs, problems."""
    folder = tmp_path_factory.mktemp("made")
    size = {"shape": (61, 73, 61)} if os.environ.get("GPUMASK_TEST_HEAVY") else {}  # of MNI152NLin6Asym, 3 mm
    cohorts.make_cohort(folder / "d", **size)
    cohorts.make_atlases(folder, **size)
    return folder, *find_runs(folder / "d", require_confounds=True)


@pytest.fixture
def small(tmp_path):
    """Two good runs."""
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    cohorts.make_atlases(tmp_path)
    return find_runs(tmp_path / "d")[0]


def configured(folder, out="out", **options):
    atlases = tuple(AtlasFile(folder / f"atlas-{name}_dseg.nii.gz") for name in ("Toy", "Fine"))
    options = {"parameters": PARAMETERS, "confounds": CONFOUNDS, "min_time": 0, "device": "cpu", **options}
    return Configuration(atlases, folder / out, **options)


def read(path):
    table = pd.read_table(path, dtype=str, keep_default_na=False).replace("n/a", "nan")
    return table.astype({name: float for name in table if name != "Node"})  # Python's, which reads to the last bit


def test_good_runs_equal_single_runs_bit_for_bit_and_bad_ones_are_recorded(made):
    folder, runs, problems = made
    configuration = configured(folder)
    assert [problem.reason.split(":")[0] for problem in problems] == ["has no confounds"]
    records = list(run_cohort(configuration, runs))
    assert Counter(record.status for record in records) == {"done": 55, "failed": 4}
    columns = set()
    for record in records:
        if record.status == "failed":
            continue
        run = record.run
        table = read_table(Path(run.confounds))
        kept = np.flatnonzero(~(table["framewise_displacement"] > 0.5))
        confounds = table[["trans_x", "trans_x_derivative1", "csf"]].bfill()
        for name in ("Toy", "Fine"):
            atlas = folder / f"atlas-{name}_dseg.nii.gz"
            masker = NiftiLabelsMasker(
                atlas,
                lut=folder / f"atlas-{name}_dseg.tsv",
                mask_img=run.mask,
                t_r=2.0,
                min_coverage=0.5,
                keep_all_regions=True,
                **PARAMETERS,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = masker.fit().transform(run.path, confounds=confounds, sample_mask=kept)
            stem = folder / "out" / run.folder / f"{run.name}_atlas-{name}"
            written = read(f"{stem}_stat-mean_timeseries.tsv")
            assert np.array_equal(written.to_numpy(), expected, equal_nan=True)
            columns.add(tuple(written))
            coverage = read(f"{stem}_stat-coverage_bold.tsv")
            assert list(coverage) == ["Node", "coverage"]
            assert list(coverage["Node"]) == list(written)
            assert np.array_equal(coverage["coverage"].astype(np.float32), masker.coverage_["fraction"].astype("f4"))
            matrix = read(f"{stem}_stat-pearsoncorrelation_relmat.tsv").set_index("Node")
            assert list(matrix.index) == list(matrix) == list(written)
            np.testing.assert_allclose(matrix, pd.DataFrame(expected).corr(), atol=1e-6)
    assert sorted(map(len, columns)) == [6, 12]
    assert cohorts.left_over(folder / "out") == []
    expected = {
        "truncated": "truncated or corrupt",
        "empty": "is empty (0 bytes)",
        "wrong-grid": "has another grid than",
        "nan-volume": "only NaN, infinite values and 0 in volume 5.",
    }
    errors = [record.error for record in records if record.status == "failed"]
    assert [[word in error for error in errors].count(True) for word in expected.values()] == [1] * 4
    lines = [line for line in cohorts.log_lines(folder / "out") if line["status"] == "failed"]
    assert sorted(line["error"] for line in lines) == sorted(errors)
    assert all("Traceback" in line["traceback"] and line["name"] == line["run"].split("/")[-1][:48] for line in lines)


def test_files_of_a_run(small, tmp_path):
    configuration = configured(tmp_path)
    record = process_in(configuration, small[0])
    assert record.status == "done"
    assert record.n_volumes == 40
    assert record.seconds.keys() == {"read", "reduce", "clean", "write", "total"}
    tables = ("stat-coverage_bold", "stat-mean_timeseries", "stat-pearsoncorrelation_relmat")
    stem = f"sub-01/func/{RUN}_atlas"
    names = {f"{stem}-{a}_{table}.{end}" for a in ("Toy", "Fine") for table in tables for end in ("tsv", "json")}
    names |= {f"sub-01/func/{RUN}_outliers.{end}" for end in ("tsv", "json")}
    assert cohorts.outputs(tmp_path / "out").keys() == names
    metadata = json.loads((tmp_path / "out" / f"{stem}-Toy_stat-mean_timeseries.json").read_text())
    assert metadata["RepetitionTime"] == 2.0
    assert metadata["NuisanceParameters"] == ["trans_x", "trans_x_derivative1", "csf"]
    assert metadata["SoftwareFilters"]["Butterworth"]["Low-pass cutoff (Hz)"] == 0.1
    assert metadata["CensoredVolumes"] == [7]
    assert metadata["NumberOfVolumes"] == 40
    assert metadata["ConfigurationHash"] == configuration.made["Toy"]
    assert metadata["MaskerParameters"]["min_coverage"] == 0.5
    assert f"bids:preprocessed:sub-01/func/{RUN}_desc-preproc_bold.nii.gz" in metadata["Sources"]
    relmat = json.loads((tmp_path / "out" / f"{stem}-Toy_stat-pearsoncorrelation_relmat.json").read_text())
    assert relmat["Sources"] == [f"bids::{stem}-Toy_stat-mean_timeseries.tsv"]

    done = json.loads((tmp_path / "out" / "logs" / f"{RUN}.json").read_text())
    assert done["status"] == "done"
    assert done["run"] == str(small[0].path)
    assert {output["path"]: output["size"] for output in done["outputs"]} == {
        name: (tmp_path / "out" / name).stat().st_size for name in names
    }
    assert {(labels_in(output["path"]).get("atlas", ""), output["made"]) for output in done["outputs"]} == set(
        configuration.made.items()
    )
    assert done["configuration"] == configuration.hash
    assert done["made"] == json.loads(
        json.dumps({configuration.made[unit.name]: configuration.described(unit) for unit in configuration.units})
    )
    assert set(done["inputs"]) == {str(path) for path in (small[0].path, small[0].mask, small[0].confounds)} | {
        str(small[0].path).replace(".nii.gz", ".json")
    }
    assert done["atlases"].keys() == {"Toy", "Fine"}
    assert done["atlases"]["Toy"]["regions"] == 6
    (line,) = cohorts.log_lines(tmp_path / "out")
    assert line.keys() < done.keys()
    assert (line["status"], line["name"], line["volumes"]) == ("done", RUN, 40)


def process_in(configuration, run):
    (configuration.out_dir / "logs").mkdir(parents=True, exist_ok=True)
    return process(configuration, run)


def test_options_decide_what_is_written(small, tmp_path):
    configuration = configured(tmp_path, parameters={"strategy": "standard_deviation"}, confounds={}, relmats=())
    assert process_in(configuration, small[0]).error == ""
    names = {name.split("_atlas-")[1] for name in cohorts.outputs(tmp_path / "out") if re.search("_atlas.*tsv$", name)}
    ends = ("stat-standarddeviation_timeseries.tsv", "stat-coverage_bold.tsv")
    assert names == {f"{atlas}_{end}" for atlas in ("Toy", "Fine") for end in ends}


def statuses(configuration, runs, **options):
    return Counter(record.status for record in run_cohort(configuration, runs, **options))


def test_what_is_done_is_skipped_and_what_has_changed_is_done_again(small, tmp_path):
    configuration = configured(tmp_path)
    assert statuses(configuration, small) == {"done": 2}
    before = cohorts.outputs(tmp_path / "out")
    assert statuses(configuration, small) == {"skipped": 2}
    assert [line["status"] for line in cohorts.log_lines(tmp_path / "out")] == ["done"] * 2 + ["skipped"] * 2
    assert is_done(configuration, small[0])
    assert not is_done(configured(tmp_path, confounds={}), small[0])
    for file in (small[0].path, small[0].confounds, small[0].mask, small[0].sidecar):
        state = Path(file).stat()
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        assert not is_done(configuration, small[0])
        assert statuses(configuration, small) == {"done": 1, "skipped": 1}
    table = tmp_path / "out" / f"sub-01/func/{RUN}_atlas-Toy_stat-mean_timeseries.tsv"
    table.write_text("cut")
    assert statuses(configuration, small) == {"done": 1, "skipped": 1}
    table.unlink()
    assert statuses(configuration, small) == {"done": 1, "skipped": 1}
    (tmp_path / "out" / "logs" / f"{RUN}.json").write_text('{"status": "do')
    assert statuses(configuration, small) == {"done": 1, "skipped": 1}
    assert statuses(configured(tmp_path, overwrite=True), small) == {"done": 2}
    assert cohorts.outputs(tmp_path / "out") == before
    assert statuses(configured(tmp_path, relmats=()), small) == {"skipped": 2}  # all its outputs are there
    assert statuses(configured(tmp_path, "few", relmats=()), small) == {"done": 2}
    assert statuses(configured(tmp_path, "few"), small) == {"done": 2}
    assert {name for name in cohorts.outputs(tmp_path / "few") if name.endswith(".tsv")} == {
        name for name in before if name.endswith(".tsv")
    }


def with_times(out):
    """Bytes and modification times of a cohort's outputs."""
    return {name: (data, (out / name).stat().st_mtime_ns) for name, data in cohorts.outputs(out).items()}


def record_of(out):
    return json.loads((out / "logs" / f"{RUN}.json").read_text())


def test_another_atlas_is_extracted_alone(small, tmp_path, monkeypatch):
    img = nib.load(small[0].path)
    data = img.get_fdata(dtype=np.float32)
    data[4, 4, 4, 3] = np.nan  # a warning that must outlive the second attempt
    nib.save(nib.Nifti1Image(data, img.affine, img.header, dtype=np.float32), small[0].path)
    both = configured(tmp_path)
    toy, fine = (replace(both, atlases=(atlas,)) for atlas in both.atlases)
    assert statuses(toy, small) == {"done": 2}
    before = with_times(tmp_path / "out")
    del before["dataset_description.json"]  # has the configuration
    extracted, extract = [], writer.extract

    def counted(prepared, *args, **options):
        extracted.append(len(prepared))
        return extract(prepared, *args, **options)

    monkeypatch.setattr(writer, "extract", counted)
    records = list(run_cohort(both, small))
    assert [record.status for record in records] == ["done"] * 2
    assert extracted == [1, 1]
    assert {name for record in records for name in record.atlases} == {"Fine"}
    assert all("_atlas-Fine_" in output.path for record in records for output in record.outputs)
    after = with_times(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert {name.replace("-Toy_", "-Fine_") for name in before if "-Toy_" in name} <= after.keys()

    record = record_of(tmp_path / "out")
    assert len(record["outputs"]) == 14
    assert record["quality"][""]["atlases"].keys() == {"Toy", "Fine"}
    assert {(labels_in(output["path"]).get("atlas", ""), output["made"]) for output in record["outputs"]} == set(
        both.made.items()
    )
    assert record["made"].keys() == set(both.made.values())
    assert {key: how["atlas"] for key, how in record["made"].items()} == {key: name for name, key in both.made.items()}
    assert record["atlases"].keys() == {"Toy", "Fine"}
    assert record["warnings"] == ["NaN or infinite voxels were excluded from the regions' statistics."]
    assert record["configuration"] == both.hash
    for configuration in (toy, fine, both):
        assert statuses(configuration, small) == {"skipped": 2}
    assert statuses(replace(both, out_dir=tmp_path / "whole"), small) == {"done": 2}
    whole = cohorts.outputs(tmp_path / "whole")
    assert whole == cohorts.outputs(tmp_path / "out")


def test_an_atlas_whose_table_changes_is_refused_and_overwritten(small, tmp_path):
    both = configured(tmp_path)
    assert statuses(both, small[:1]) == {"done": 1}
    lut = tmp_path / "atlas-Fine_dseg.tsv"
    lut.write_text(lut.read_text().replace("Fine10\n", "Fine11\n"))
    changed = configured(tmp_path)
    assert changed.made["Toy"] == both.made["Toy"]
    with pytest.raises(ValueError, match=r"atlas-Fine.* was made with another atlas, look-up table or mask\. "):
        statuses(changed, small[:1])
    before = cohorts.outputs(tmp_path / "out")
    assert statuses(configured(tmp_path, overwrite=True), small[:1]) == {"done": 1}
    after = cohorts.outputs(tmp_path / "out")
    assert {name for name in before if "_atlas-" in name and after[name] != before[name]} == {
        name for name in before if "_atlas-Fine_" in name
    }
    assert record_of(tmp_path / "out")["made"].keys() == set(changed.made.values())


def test_a_run_whose_inputs_changed_is_done_again_whole(small, tmp_path):
    both = configured(tmp_path)
    toy = replace(both, atlases=both.atlases[:1])
    assert statuses(both, small) == {"done": 2}
    img = nib.load(small[0].path)
    cohorts.save(small[0].path, np.asanyarray(img.dataobj) + np.int16(7), img.affine, cohorts.T_R)
    before = with_times(tmp_path / "out")
    assert statuses(toy, small) == {"done": 1, "skipped": 1}
    assert record_of(tmp_path / "out")["made"].keys() == set(
        toy.made.values()
    )  # the other atlas's outputs are outdated
    assert statuses(both, small) == {"done": 1, "skipped": 1}
    after = with_times(tmp_path / "out")
    assert {name for name in before if after[name][1] != before[name][1]} == {
        "dataset_description.json",
        *(name for name in before if name.split("/")[-1].startswith(RUN)),
    }
    assert record_of(tmp_path / "out")["made"].keys() == set(both.made.values())
    os.utime(small[0].path)
    before = with_times(tmp_path / "out")
    assert statuses(both, small) == {"done": 1, "skipped": 1}
    assert all(with_times(tmp_path / "out")[name][1] > before[name][1] for name in before if RUN in name)


def test_extract_and_cohort_write_the_same_bytes(small, tmp_path):
    """With the repetition time of the JSON, where the header has another."""
    run = small[0]
    img = nib.load(run.path)
    cohorts.save(run.path, np.asanyarray(img.dataobj), img.affine, t_r=1.0)
    configuration = configured(tmp_path)
    assert process_in(configuration, run).error == ""
    alone = replace(configuration, out_dir=tmp_path / "alone")
    assert write_run(alone, run).error == ""
    assert cohorts.outputs(tmp_path / "alone") == cohorts.outputs(tmp_path / "out")
    for name in ("Toy", "Fine"):
        path = tmp_path / "alone" / run.folder / f"{RUN}_atlas-{name}_stat-mean_timeseries.json"
        metadata = json.loads(path.read_text())
        assert (metadata["RepetitionTime"], metadata["RepetitionTimeSource"]) == (2.0, "JSON")


def test_progress_is_reported_from_within_runs(small, tmp_path):
    calls = []

    def progress(run, share):
        calls.append((run, share, threading.current_thread().name.partition("_")[0]))

    assert [record.status for record in run_cohort(configured(tmp_path), small, progress=progress)] == ["done"] * 2
    assert {thread for _, _, thread in calls} == {"gpumask-run"}
    for run in small:
        shares = [share for other, share, _ in calls if other == run]
        assert shares[0] == 0
        assert shares[-1] == 1
        assert shares == sorted(shares)
        assert any(0 < share < 1 for share in shares)
    calls.clear()
    assert statuses(configured(tmp_path), small, progress=progress) == {"skipped": 2}
    assert calls == []


def test_runs_of_a_manifest_whose_repetition_time_changes_are_done_again(small, tmp_path):
    configuration, run = (
        configured(tmp_path),
        replace(small[0], sidecar=None),
    )  # the JSON beside the image is found anyway
    assert statuses(configuration, [run]) == {"done": 1}
    assert is_done(configuration, run)
    beside = Path(str(run.path).replace(".nii.gz", ".json"))
    beside.write_text(beside.read_text() + " ")
    assert not is_done(configuration, run)
    given = replace(run, t_r=1.5)
    assert statuses(configuration, [given]) == {"done": 1}
    assert is_done(configuration, given)
    assert not is_done(configuration, replace(run, t_r=1.6))


def test_the_configuration_is_all_that_decides_what_is_written(tmp_path):
    cohorts.make_atlases(tmp_path)
    first = configured(tmp_path).hash
    assert configured(tmp_path, "elsewhere", overwrite=True).hash == first
    others = [
        configured(tmp_path, parameters={}),
        configured(tmp_path, confounds={}),
        configured(tmp_path, relmats=()),
        configured(tmp_path, parameters={**PARAMETERS, "nan_policy": "zero"}),
    ]
    lut = tmp_path / "atlas-Toy_dseg.tsv"
    lut.write_text(lut.read_text().replace("Toy10", "Toy11"))
    others.append(configured(tmp_path))
    assert len({first, *(other.hash for other in others)}) == 6


def test_atlases_need_names_of_their_own(tmp_path):
    cohorts.make_atlases(tmp_path)
    atlas = AtlasFile(tmp_path / "atlas-Toy_dseg.nii.gz")
    msg = r"^Expected one atlas or more, each with a name of its own, got \['Toy', 'Toy'\]\. Give NAME=PATH\.$"
    with pytest.raises(ValueError, match=msg):
        Configuration((atlas, atlas), tmp_path)
    with pytest.raises(ValueError, match="Expected one atlas or more"):
        Configuration((), tmp_path)
    assert AtlasFile(atlas.path, name="Other").name == "Other"


def test_look_up_tables_beside_atlases(tmp_path):
    for name in ("a_dseg.tsv", "tpl-M_atlas-S_dseg.tsv"):
        (tmp_path / name).touch()
    for name, expected in (
        ("a_dseg.nii.gz", "a_dseg.tsv"),
        ("a_dseg.nii", "a_dseg.tsv"),
        ("tpl-M_res-02_atlas-S_dseg.nii.gz", "tpl-M_atlas-S_dseg.tsv"),
        ("b_dseg.nii.gz", None),
    ):
        assert lut_beside(tmp_path / name) == (expected and tmp_path / expected)


def test_median_of_smoothed_volumes(small, tmp_path):
    """It doesn't support "omit": non-finite voxels count as 0, as in nilearn."""
    parameters = {"strategy": "median", "smoothing_fwhm": 5.0}
    configuration = configured(tmp_path, parameters=parameters, confounds={})
    assert configuration.settings.nan_policy == "zero"
    assert configured(tmp_path, parameters={"smoothing_fwhm": 5.0}).settings.nan_policy == "omit"
    asked = configured(tmp_path, parameters={**parameters, "nan_policy": "omit"})
    assert asked.settings.nan_policy == "omit"
    assert process_in(configuration, small[0]).error == ""


def test_two_runs_of_one_name_are_refused_before_anything_is_written(small, tmp_path):
    twin = Run(tmp_path / "other.nii", name=RUN)
    msg = f"{small[0].path} and {twin.path} would both be written as {RUN}. Give them different names."
    with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
        run_cohort(configured(tmp_path), [small[0], twin])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (
            {},
            {"confounds": {"columns": ["csf"]}, "parameters": {}},
            "{path} has no confounds table, but confounds were requested.",
        ),
        (
            {},
            {"confounds": {}},
            "Filtering needs the repetition time, but neither the metadata nor the header of {path}",
        ),
        ({"path": "none.nii"}, {"confounds": {}}, "none.nii"),
        ({"path": "3d.nii"}, {"confounds": {}}, "3d.nii is a 3D image, expected a run: a 4D image."),
    ],
)
def test_errors_of_a_run(tmp_path, run, options, message):
    cohorts.make_atlases(tmp_path)
    data = np.random.default_rng(0).integers(0, 99, (9, 10, 8, 30)).astype(np.int16)
    cohorts.save(tmp_path / "r.nii", data, np.diag([3.0, 3, 3, 1]))
    cohorts.save(tmp_path / "3d.nii", data[..., 0], np.diag([3.0, 3, 3, 1]))
    run = Run(tmp_path / run.get("path", "r.nii"))
    record = process_in(configured(tmp_path, **options), run)
    assert record.status == "failed"
    assert message.format(path=run.path) in record.error
    assert record.traceback.startswith("Traceback")
    assert cohorts.outputs(tmp_path / "out") == {}
    assert cohorts.left_over(tmp_path / "out") == []


def test_nan_voxels_are_left_out_and_told(small, tmp_path):
    run = small[0]
    img = nib.load(run.path)
    data = img.get_fdata(dtype=np.float32)
    data[4, 4, 4, 3] = np.nan
    nib.save(nib.Nifti1Image(data, img.affine, img.header, dtype=np.float32), run.path)
    record = process_in(configured(tmp_path, parameters={}, confounds={}), run)
    assert record.status == "done"
    assert record.warnings == ("NaN or infinite voxels were excluded from the regions' statistics.",)
    zeros = configured(tmp_path, "zeros", parameters={"nan_policy": "zero"}, confounds={})
    record = process_in(zeros, run)
    assert record.warnings == ("Non-finite values detected. These values will be replaced with zeros.",)


def test_warnings_of_threads_are_told_apart():
    barrier = threading.Barrier(4)

    def warn(k):
        with collect_warnings() as messages:
            for _ in range(50):
                warnings.warn(f"of {k}", stacklevel=1)
                if k % 2:
                    with collect_warnings():
                        warnings.warn("inside", stacklevel=1)
            barrier.wait(10)
        return messages

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(warn, range(4))) == [[f"of {k}"] for k in range(4)]
    with pytest.warns(UserWarning, match="afterwards"):
        warnings.warn("afterwards", stacklevel=1)


def test_a_lock_keeps_others_out_and_is_removed(tmp_path):
    path = tmp_path / "lock"
    with locked(path) as first:
        assert first
        with locked(path) as second:
            assert not second
    assert not path.exists()
    with locked(path) as again:
        assert again


def test_many_threads_at_one_lock(tmp_path):
    inside, most = [], []

    def take(k):
        for _ in range(200):
            with locked(tmp_path / "lock") as mine:
                if mine:
                    inside.append(k)
                    most.append(len(inside))
                    inside.remove(k)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take, range(4)))
    assert set(most) == {1}


def test_problems_are_logged_as_failures(tmp_path):
    cohorts.make_atlases(tmp_path)
    configuration = configured(tmp_path)
    (tmp_path / "out" / "logs").mkdir(parents=True)
    log_problems(configuration, [Problem("/d/sub-1_task-rest_desc-preproc_bold.nii.gz", "has no mask")])
    (line,) = cohorts.log_lines(tmp_path / "out")
    assert (line["status"], line["name"], line["error"]) == ("failed", "sub-1_task-rest", "has no mask")


def test_correlations():
    signals = np.random.default_rng(0).normal(5, 1, (50, 4))
    signals[:, 2] = 0.1
    signals[:, 3] = np.nan
    matrix = correlations(signals)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix[:2, :2], np.corrcoef(signals[:, :2].T), atol=1e-7)
    assert np.isnan(matrix[2:]).all()
    assert np.isnan(matrix[:, 2:]).all()
    assert np.array_equal(matrix, matrix.T, equal_nan=True)
    assert matrix[0, 0] == 1


def test_leaving_early_drops_what_is_at_work(made, tmp_path):
    folder, runs, _ = made
    configuration = configured(folder, tmp_path / "early")
    records = run_cohort(configuration, runs)
    first = next(records)
    records.close()
    assert first.status in ("done", "failed")
    n_threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("gpumask")]
    assert n_threads == []
    assert cohorts.left_over(tmp_path / "early") == []
    assert len(cohorts.log_lines(tmp_path / "early")) < len(runs) / 2


def test_real_run(data, tmp_path):
    bold = data / "sub-02_task-oneback_run-1_bold.nii.gz"
    confounds = data / "sub-02_task-oneback_run-1_desc-confounds_timeseries.tsv"
    names = ("Schaefer100TianS1", "Schaefer400TianS4")
    atlases = [data / f"sub-02_space-bold_atlas-{name}_dseg.nii.gz" for name in names]
    mask = data / "sub-02_space-bold_desc-brain_mask.nii.gz"
    parameters = {**PARAMETERS, "smoothing_fwhm": 5.0}
    columns = ["trans_*", "rot_*", "global_signal"]
    configuration = Configuration(
        tuple(map(AtlasFile, atlases)), tmp_path, parameters, {"columns": columns}, device="cpu"
    )
    run = Run(bold, confounds, mask)
    (record,) = run_cohort(configuration, [run])
    assert record.error == ""
    table = pd.read_table(confounds)
    chosen = [[c for c in table if re.match(pattern, c)] for pattern in ("trans_", "rot_", "global_signal$")]
    table = table[[column for group in chosen for column in group]].bfill()  # in this order: it decides the last bits
    for atlas, name in zip(atlases, names, strict=True):
        masker = NiftiLabelsMasker(atlas, mask_img=mask, t_r=2.0, min_coverage=0.5, keep_all_regions=True, **parameters)
        expected = masker.fit().transform(bold, confounds=table)
        written = read(tmp_path / f"{run_name(run)}_atlas-{name}_stat-mean_timeseries.tsv")
        assert np.array_equal(written, expected, equal_nan=True)


def test_names_that_are_no_text_and_relative_folders(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / os.fsdecode(b"bad\xff_name.nii.gz")
    try:
        Path(small[0].path).rename(path)
    except OSError:
        pytest.skip("this file system takes no such names")
    atlases = (AtlasFile("atlas-Toy_dseg.nii.gz"),)
    configuration = Configuration(atlases, "out", device="cpu")
    runs = [Run(path, name="bad"), Run(tmp_path / os.fsdecode(b"none\xff.nii"), name="none")]
    assert configuration.out_dir == tmp_path / "out"
    assert {record.run: record.status for record in run_cohort(configuration, runs)} == {
        runs[0]: "done",
        runs[1]: "failed",
    }
    assert is_done(configuration, runs[0])
    assert {line["run"] for line in cohorts.log_lines(tmp_path / "out")} == {str(run.path) for run in runs}


def test_a_record_that_cannot_be_looked_at_fails_its_run_alone(small, tmp_path, monkeypatch):
    opened = os.open

    def denied(path, *args, **keywords):
        if Path(path).name == f"{RUN}.json" and Path(path).parent.name == "logs":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **keywords)

    configuration = configured(tmp_path)
    assert statuses(configuration, small) == {"done": 2}
    monkeypatch.setattr(os, "open", denied)
    assert statuses(configuration, small) == {"done": 1, "skipped": 1}


def test_a_gpu(small, tmp_path, gpu):
    configuration = configured(tmp_path, device=gpu)
    assert statuses(configuration, small) == {"done": 2}
    expected = process_in(configured(tmp_path, "cpu"), small[0])
    assert expected.status == "done"
    for name in ("Toy", "Fine"):
        ours, theirs = (
            read(tmp_path / out / f"sub-01/func/{RUN}_atlas-{name}_stat-mean_timeseries.tsv") for out in ("out", "cpu")
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
