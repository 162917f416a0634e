"""The quality of runs: every number against one worked out from the files by NumPy, for real and for made runs."""

import json
import re
import sys
import time
import tracemalloc
from itertools import groupby

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask.bids import find_runs
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.quality import OF_ATLAS, OF_RUN, atlas_quality, joined_qualities, quality_of, rows
from gpumask.cohort.stored import read_record
from gpumask.confounds.censoring import censor
from gpumask.confounds.fmriprep import censoring_thresholds
from gpumask.confounds.outliers import find_outliers
from gpumask.extraction import temporal_snr

from . import cohorts
from .helpers import save

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a cohort needs POSIX locks")

NAME = "sub-02_task-oneback_run-1"


def table_of(path):
    return pd.read_table(path, na_values="n/a", keep_default_na=False)


def motion(rng, n):
    """Displacement as of a run with a few movements, and standardized DVARS."""
    displacement = rng.uniform(0.02, 0.3, n)
    displacement[[9, 12, 40, 41, 60]] = 0.8, 0.9, 2.5, 0.7, 0.51
    displacement[0] = np.nan
    dvars = rng.uniform(0.8, 1.4, n)
    dvars[[12, 40, 70]] = 1.7, 3.0, 1.6
    return displacement, dvars


def scrubbed(displacement, dvars, steady, shortest=5):
    """Reasons of each volume, by the description of nilearn's scrubbing, as runs of kept volumes."""
    moving = np.nan_to_num(displacement) > 0.5
    jumping = dvars > 1.5
    short, position = np.zeros(len(moving), bool), 0
    for bad, volumes in groupby(moving | jumping):
        n = len(list(volumes))
        short[position : position + n] = not bad and n < shortest
        position += n
    removed = moving | jumping | short | ~steady
    return {
        "non_steady_state": ~steady,
        "framewise_displacement": moving,
        "std_dvars": jumping,
        "short_segment": removed & ~moving & ~jumping & steady,
        "kept": ~removed,
    }


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A slab of the real run and of its atlas, with made motion; outputs, signals and confounds."""
    from .conftest import DATA

    if not DATA.is_dir():
        pytest.skip(f"the real test data are not there: {DATA}")
    pytest.importorskip("nilearn")
    folder = tmp_path_factory.mktemp("real")
    func = folder / "d" / "sub-02" / "func"
    func.mkdir(parents=True)
    (folder / "d" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    img = nib.load(DATA / "sub-02_task-oneback_run-1_bold.nii.gz")
    labels = nib.load(DATA / "sub-02_space-bold_atlas-Schaefer100TianS1_dseg.nii.gz")
    mask = nib.load(DATA / "sub-02_space-bold_desc-brain_mask.nii.gz")
    part, n = np.s_[:, :, 14:20], 90
    volumes = np.asanyarray(img.dataobj)[part][..., :n].astype(np.float32)
    affine = img.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 14], [0, 0, 0, 1]])
    regions = np.asanyarray(labels.dataobj)[part].astype(np.int16)
    brain = np.asanyarray(mask.dataobj)[part].astype(np.uint8)
    brain[:30] = 0  # some regions are lost
    save(func / f"{NAME}_desc-preproc_bold.nii", volumes, affine, 2.0)
    save(func / f"{NAME}_desc-brain_mask.nii.gz", brain, affine)
    atlas = save(folder / "atlas-Slab_dseg.nii.gz", regions, affine)
    confounds = pd.read_table(DATA / "sub-02_task-oneback_run-1_desc-confounds_timeseries.tsv").iloc[:n]
    confounds = confounds[[name for name in confounds if "outlier" not in name]].copy()
    rng = np.random.default_rng(0)
    for name in ("csf", "white_matter"):
        values = rng.normal(size=n)
        for end, of in (("", values), ("_derivative1", np.gradient(values))):
            confounds[f"{name}{end}"], confounds[f"{name}{end}_power2"] = of, of**2
    displacement, dvars = motion(rng, n)
    confounds["framewise_displacement"], confounds["std_dvars"] = displacement, dvars
    confounds["non_steady_state_outlier00"] = np.eye(n)[0]
    confounds.to_csv(func / f"{NAME}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
    configuration = Configuration(
        (AtlasFile(atlas),),
        folder / "out",
        {"detrend": True},
        {"strategy": "scrubbing"},
        device="cpu",
        min_time=0,
    )
    runs, _ = find_runs(folder / "d")
    (record,) = run_cohort(configuration, runs)
    assert record.error == ""
    cohorts.write_tables(folder / "out")
    return folder / "out", record, (volumes, regions, brain), (displacement, dvars), runs[0]


def test_the_real_run_by_hand(real):
    out, record, (volumes, regions, brain), (displacement, dvars), run = real
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    (row,) = table_of(out / "group_quality.tsv").to_dict("records")
    n = len(displacement)
    reasons = scrubbed(displacement, dvars, np.arange(n) > 0)
    kept = reasons["kept"]
    confounds, sample_mask = load_confounds_strategy(f"{run.path}.gz", "scrubbing")
    assert sample_mask.tolist() == np.flatnonzero(kept).tolist()  # nilearn removes what is worked out here
    design = np.column_stack([np.ones(n), np.arange(n), confounds])[kept]
    n_left = kept.sum() - np.linalg.matrix_rank(design / np.abs(design).max(axis=0), tol=1e-9)
    ratios, covered, lost = [], [], 0
    for label in np.unique(regions[regions > 0]):
        share = brain[regions == label].mean()
        covered.append(share)
        lost += share < 0.5
        if share >= 0.5:
            series = volumes[(regions == label) & (brain > 0)].astype(float).mean(axis=0)[kept]
            ratios.append(series.mean() / np.sqrt(np.mean((series - series.mean()) ** 2)))
    signals = table_of(next(out.rglob("*_timeseries.tsv"))).dropna(axis=1, how="all").to_numpy()
    pairs = np.abs(np.corrcoef(signals.T)[np.triu_indices(signals.shape[1], 1)])
    assert 0 < lost < len(covered)
    known = displacement[1:]
    expected = {
        "participant_id": "sub-02",
        "task": "oneback",
        "run": 1,
        "name": NAME,
        "volumes": n,
        "volumes_kept": kept.sum(),
        "removed_non_steady_state": 1,
        "removed_dummy_scans": 1,
        "removed_fd": 5,
        "removed_dvars": 3,
        "removed_short_segment": 2,
        "fd_threshold": 0.5,
        "fd_mean": known.mean(),
        "fd_median": np.median(known),
        "fd_max": 2.5,
        "fd_mean_kept": displacement[kept].mean(),
        "fd_median_kept": np.median(displacement[kept]),
        "fd_max_kept": displacement[kept].max(),
        "minutes_kept": kept.sum() * 2.0 / 60,
        "regressors": confounds.shape[1],
        "degrees_of_freedom": n_left,
        "degrees_of_freedom_share": n_left / kept.sum(),
        "seconds": record.seconds["total"],
        "regions_Slab": len(covered),
        "regions_lost_Slab": lost,
        "coverage_median_Slab": np.median(covered),
        "median_abs_r_Slab": np.median(pairs),
        "tsnr_Slab": np.median(ratios),
    }
    assert {key for key, value in row.items() if value is None or value != value} == {"session", "space", "denoising"}
    for key, value in expected.items():
        assert row[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5)), key
    assert set(row) - set(expected) == {"session", "space", "denoising"}
    assert record.quality[""]["volumes_kept"] == kept.sum()


def test_outliers_of_the_real_run(real):
    out, _, _, (displacement, dvars), _ = real
    path = out / "sub-02" / "func" / f"{NAME}_outliers.tsv"
    table = pd.read_table(path)
    expected = scrubbed(displacement, dvars, np.arange(len(dvars)) > 0)
    expected["dummy_scans"] = expected["non_steady_state"]
    assert list(table) == [*list(expected)[:1], "dummy_scans", *list(expected)[1:-1]]
    for name, flags in expected.items():
        assert table[name].tolist() == flags.astype(int).tolist(), name
    described = json.loads(path.with_suffix(".json").read_text())
    assert all(described[name]["Levels"] == {"0": "no", "1": "yes"} for name in table)
    assert described["framewise_displacement"]["Threshold"] == 0.5
    assert described["std_dvars"]["Threshold"] == 1.5
    assert described["NumberOfVolumesKept"] == table["kept"].sum()
    assert [source.rpartition("/")[2] for source in described["Sources"]] == [
        f"{NAME}_desc-preproc_bold.nii",
        f"{NAME}_desc-confounds_timeseries.tsv",
    ]


# Reasons


def confounds_of(tmp_path, **columns):
    path = tmp_path / "sub-1_desc-confounds_timeseries.tsv"
    pd.DataFrame(columns).to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


def test_a_volume_with_several_reasons_counts_for_each(tmp_path):
    steady = np.eye(8)[0]
    path = confounds_of(
        tmp_path,
        framewise_displacement=[np.nan, 1, 0.1, 1, 0.1, 1, 0.5, 0.1],
        std_dvars=[9, 9, 1, 1, 9, 1, 1, 1],
        non_steady_state_outlier00=steady,
    )
    found = find_outliers(censor(path, 8, np.array([2, 3, 5, 6]), 2), path, fd_threshold=0.5, std_dvars_threshold=2)
    assert {name: np.flatnonzero(flags).tolist() for name, flags in found.reasons.items()} == {
        "non_steady_state": [0],
        "dummy_scans": [0, 1],
        "fd": [1],  # volumes 3 and 5 exceed the threshold, but are kept
        "dvars": [0, 1, 4],
        "short_segment": [7],
    }
    assert np.flatnonzero(found.removed).tolist() == [0, 1, 4, 7]
    numbers = quality_of(found, t_r=None, n_regressors=0, degrees_of_freedom=None, atlases={})
    assert [numbers[f"removed_{name}"] for name in found.reasons] == [1, 2, 1, 3, 1]
    assert (numbers["volumes"], numbers["volumes_kept"]) == (8, 4)
    assert numbers["fd_max"] == 1
    assert numbers["fd_mean_kept"] == pytest.approx((0.1 + 1 + 1 + 0.5) / 4)


def test_dummy_scans_by_fmriprep_are_a_non_steady_state_too(tmp_path):
    path = confounds_of(tmp_path, non_steady_state_outlier00=[1, 0, 0], non_steady_state_outlier01=[0, 1, 0])
    found = find_outliers(censor(path, 3), path)
    assert found.reasons["non_steady_state"].tolist() == [True, True, False]
    assert found.reasons["dummy_scans"].tolist() == [True, True, False]
    assert found.displacement is None
    none = find_outliers(censor(path, 3, dummy_scans=0), path)
    assert not np.any(list(none.reasons.values()))
    by_strategy = find_outliers(censor(path, 3, np.array([1, 2]), dummy_scans=0), path)
    assert np.flatnonzero(by_strategy.reasons["non_steady_state"]).tolist() == [0]
    assert not by_strategy.reasons["dummy_scans"].any()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"framewise_displacement": [0.1, 0.2]}, r"has 2 rows, but the run has 3 volumes: its motion is unknown\."),
        (
            {"framewise_displacement": [0.1, "much", 0.3]},
            r"framewise_displacement has the text 'much' for volume 1, expected numbers\. It isn't used\.",
        ),
    ],
)
def test_a_table_that_can_not_say_it_is_a_warning(tmp_path, columns, message):
    path = confounds_of(tmp_path, **columns)
    with pytest.warns(UserWarning, match=message):
        found = find_outliers(censor(None, 3, dummy_scans=1), path)
    assert found.displacement is None
    assert found.reasons["dummy_scans"].tolist() == [True, False, False]
    numbers = quality_of(found, t_r=2.0, n_regressors=0, degrees_of_freedom=2.0, atlases={})
    assert numbers["fd_mean"] is None is numbers["fd_max_kept"]
    assert numbers["minutes_kept"] == pytest.approx(4 / 60)


def test_thresholds_of_scrubbing_are_those_of_nilearn_unless_given():
    pytest.importorskip("nilearn")
    assert censoring_thresholds(strategy="scrubbing+gsr") == {"fd_threshold": 0.5, "std_dvars_threshold": 1.5}
    own = censoring_thresholds(strategy="scrubbing", fd_threshold=0.3)
    assert own == {"fd_threshold": 0.3, "std_dvars_threshold": 1.5}
    of_columns = censoring_thresholds(columns=["csf"], fd_threshold=0.3)
    assert of_columns == {"fd_threshold": 0.3, "std_dvars_threshold": None}
    both = {"fd_threshold": 0.3, "std_dvars_threshold": 2.0}
    assert censoring_thresholds(columns=["csf"], scrub=3, **both) == both
    assert censoring_thresholds(strategy="scrubbing", **both) == both


# Numbers of odd signals


@pytest.mark.parametrize("displacement", [[np.nan] * 4, [np.inf, np.nan, np.nan, np.nan], [1e10] * 4])
def test_numbers_that_no_record_can_hold_are_unknown(tmp_path, displacement):
    path = confounds_of(tmp_path, framewise_displacement=displacement)
    numbers = quality_of(
        find_outliers(censor(None, 4), path), t_r=1e12, n_regressors=0, degrees_of_freedom=None, atlases={}
    )
    assert {key for key, value in numbers.items() if value is None} == {
        *(f"fd_{statistic}{of}" for statistic in ("mean", "median", "max") for of in ("", "_kept")),
        *("fd_threshold", "minutes_kept", "degrees_of_freedom", "degrees_of_freedom_share"),
    }


def test_atlas_of_lost_and_constant_regions():
    rng = np.random.default_rng(0)
    raw = rng.normal(100, 2, (50, 5))
    raw[:, 1] = 7.1
    signals = raw - raw.mean(axis=0)
    signals[:, 3] = np.nan
    ratios = temporal_snr(raw)
    assert np.isnan(ratios[1])
    known = [raw[:, k].mean() / raw[:, k].std() for k in (0, 2, 4)]
    with np.errstate(invalid="ignore"):
        correlations = np.corrcoef(signals.T)
    pairs = [abs(np.corrcoef(raw[:, i], raw[:, j])[0, 1]) for i, j in ((0, 2), (0, 4), (2, 4))]
    assert atlas_quality(signals, correlations, ratios) == {
        "regions_lost": 1,
        "median_abs_r": pytest.approx(np.median(pairs)),
        "tsnr": pytest.approx(np.median(known)),
    }
    assert atlas_quality(signals[:, [3]], None, ratios[[3]]) == {
        "regions_lost": 1,
        "median_abs_r": None,
        "tsnr": None,
    }


# A cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    cohorts.make_cohort(folder / "d", 4, bad=False)
    cohorts.make_atlases(folder)
    return folder


def configured(folder, tmp_path, names=("Toy", "Fine"), **options):
    atlases = tuple(AtlasFile(folder / f"atlas-{name}_dseg.nii.gz") for name in names)
    options = {"confounds": {"fd_threshold": 0.38}, "min_time": 0, "device": "cpu", **options}
    return Configuration(atlases, tmp_path / "out", {"detrend": True}, **options)


def finish(configuration, folder):
    runs, _ = find_runs(folder / "d")
    records = list(run_cohort(configuration, runs))
    assert [record.error for record in records] == [""] * len(records)
    return [record.status for record in records]


def test_a_row_for_each_run(cohort, tmp_path):
    finish(configured(cohort, tmp_path), cohort)
    out = tmp_path / "out"
    means = [f"group_atlas-{name}_stat-pearsoncorrelation_relmat.tsv" for name in ("Fine", "Toy")]
    assert cohorts.write_tables(out) == [out / name for name in ("group_quality.tsv", "group_qcfc.tsv", *means)]
    table = table_of(out / "group_quality.tsv")
    assert table["name"].tolist() == sorted(path.stem for path in out.glob("logs/*.json"))
    described = json.loads((out / "group_quality.json").read_text())
    assert list(described) == list(table)
    assert all(entry["LongName"] and entry["Description"].endswith(".") for entry in described.values())
    assert described["fd_mean"]["Units"] == "mm"
    assert {f"{column.name}_{name}" for column in OF_ATLAS for name in ("Toy", "Fine")} <= set(table)
    for row in table.to_dict("records"):
        confounds = pd.read_table(next(cohort.rglob(f"{row['name'].split('_space')[0]}_*confounds*.tsv")))
        above = confounds["framewise_displacement"] > 0.38
        assert row["removed_fd"] == above.sum() > 0
        assert row["volumes_kept"] == 40 - above.sum()
        assert row["fd_mean_kept"] == pytest.approx(confounds["framewise_displacement"][~above].mean(), rel=1e-5)
        assert row["regressors"] == 0
        assert row["degrees_of_freedom"] == pytest.approx(row["volumes_kept"] - 2)
    assert not list(out.glob(".gpumask*"))


def test_an_atlas_that_is_added_joins_the_numbers_of_the_others(cohort, tmp_path):
    finish(configured(cohort, tmp_path, ["Toy"]), cohort)
    path = min((tmp_path / "out" / "logs").glob("*.json"))
    before = read_record(path)["quality"][""]
    outliers = min((tmp_path / "out").rglob("*_outliers.tsv"))
    written = outliers.stat().st_mtime_ns
    assert finish(configured(cohort, tmp_path), cohort) == ["done"] * 4
    after = read_record(path)["quality"][""]
    assert after["atlases"].keys() == {"Toy", "Fine"}
    assert after["atlases"]["Toy"] == before["atlases"]["Toy"]
    assert outliers.stat().st_mtime_ns == written
    both = {"a": before}, {"b": after}
    assert joined_qualities(*both, {("Fine", "a"), ("Fine", "b"), ("Toy", "a")}) == {
        "a": before,
        "b": {**after, "atlases": {"Fine": after["atlases"]["Fine"]}},
    }
    assert joined_qualities(*both, {("", "b")}) == {"b": {**after, "atlases": {}}}


def test_files_that_are_missing_or_cut_are_made_again(cohort, tmp_path):
    configuration = configured(cohort, tmp_path)
    finish(configuration, cohort)
    first, second = sorted((tmp_path / "out").rglob("*_outliers.tsv"))[:2]
    contents = cohorts.outputs(tmp_path / "out")
    second.with_suffix(".json").unlink()
    min((tmp_path / "out").rglob("*_timeseries.json")).unlink()
    assert sorted(finish(configuration, cohort)) == ["done", "done", "skipped", "skipped"]
    assert cohorts.outputs(tmp_path / "out") == contents
    first.unlink()
    second.write_bytes(second.read_bytes()[:-4])
    assert sorted(finish(configuration, cohort)) == ["done", "done", "skipped", "skipped"]
    assert cohorts.outputs(tmp_path / "out") == contents


def test_outliers_of_other_options_are_not_replaced(cohort, tmp_path):
    """Though the atlas is another one, whose outputs would be new."""
    finish(configured(cohort, tmp_path, ["Toy"]), cohort)
    other = configured(cohort, tmp_path, ["Fine"], confounds={"fd_threshold": 0.5})
    message = r"_outliers\.tsv was made with confounds fd_threshold 0\.38, now 0\.5\. "
    with pytest.raises(ValueError, match=message):
        finish(other, cohort)
    finish(configured(cohort, tmp_path, ["Fine"], confounds={"fd_threshold": 0.5}, overwrite=True), cohort)
    table = pd.read_table(min((tmp_path / "out").rglob("*_outliers.tsv")))
    assert table["framewise_displacement"].sum() == 1


def test_without_confounds_the_motion_is_known_and_without_a_table_it_is_not(tmp_path):
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    cohorts.make_atlases(tmp_path)
    next((tmp_path / "d").rglob("*run-2_desc-confounds*")).unlink()
    finish(configured(tmp_path, tmp_path, confounds={}), tmp_path)
    cohorts.write_tables(tmp_path / "out")
    known, unknown = table_of(tmp_path / "out" / "group_quality.tsv").to_dict("records")
    assert (known["volumes_kept"], unknown["volumes_kept"]) == (40, 40)
    assert known["fd_max"] == 0.9
    assert np.isnan([unknown["fd_max"], known["fd_threshold"]]).all()


# Records


def write_records(out, *records):
    (out / "logs").mkdir(parents=True, exist_ok=True)
    for record in records:
        (out / "logs" / f"{record['name']}.json").write_text(json.dumps(record))


def test_older_records_have_a_row_with_what_they_know(tmp_path):
    old = cohorts.record("sub-1_task-rest", seconds={"total": 3.25}) | {
        "volumes_kept": 90,
        "dummy_scans": 4,
        "degrees_of_freedom": 12.5,
    }
    del old["quality"]
    write_records(tmp_path, old, cohorts.record("x", atlases={"A": {"regions": "many", "coverage_median": 1e300}}))
    (tmp_path / "logs" / "bad.json").write_text("{")
    cohorts.write_tables(tmp_path)
    first, second = table_of(tmp_path / "group_quality.tsv").to_dict("records")
    assert {key: value for key, value in first.items() if value == value and value is not None} == {
        "participant_id": "sub-1",
        "task": "rest",
        "name": "sub-1_task-rest",
        "volumes": 100,
        "volumes_kept": 90,
        "removed_dummy_scans": 4,
        "degrees_of_freedom": 12.5,
        "seconds": 3.25,
        "regions_A": 3,
    }
    assert {key for key, value in second.items() if value == value and value is not None} == {
        *("name", "volumes", "volumes_kept", "removed_dummy_scans")
    }


def test_several_denoisings_have_a_row_each(tmp_path):
    whole = {column.name: 1 for column in OF_RUN}
    quality = {name: {**whole, "fd_mean": k, "atlases": {"A": {"tsnr": 10.0 * k}}} for k, name in enumerate("bac")}
    write_records(tmp_path, cohorts.record("sub-1", quality=quality))
    cohorts.write_tables(tmp_path)
    table = table_of(tmp_path / "group_quality.tsv")
    assert table[["denoising", "fd_mean", "tsnr_A", "regions_A"]].to_numpy().tolist() == [
        ["b", 0, 0, 3],
        ["a", 1, 10, 3],
        ["c", 2, 20, 3],
    ]


def test_names_with_tabs_and_of_many_atlases_make_no_other_table(tmp_path):
    atlases = {f"A{k:03}": {"regions": k} for k in range(200)}
    write_records(
        tmp_path, cohorts.record("a", atlases={"x\ty": {}, "\udce9": {}}), cohorts.record("b", atlases=atlases)
    )
    cohorts.write_tables(tmp_path)
    lines = (tmp_path / "group_quality.tsv").read_text().splitlines()
    assert len({line.count("\t") for line in lines}) == 1
    assert len(re.findall("regions_lost_", lines[0])) == 50


def test_no_records(tmp_path):
    (tmp_path / "logs").mkdir()
    for path in cohorts.write_tables(tmp_path):
        assert path.read_text().count("\n") == 1
        assert json.loads(path.with_suffix(".json").read_text()).keys() >= {"denoising"}
    assert list(rows([])) == []


def test_many_records_take_little_time_and_memory(tmp_path):
    """40 000 would take less than a minute, and less than 100 MB."""
    n = 2000
    quality = {"": {**{column.name: 123 for column in OF_RUN}, "atlases": {"A": {"tsnr": 41.123456}}}}
    write_records(tmp_path, *(cohorts.record(f"sub-{k:05}_task-rest", quality=quality) for k in range(n)))
    started = time.process_time()
    cohorts.write_tables(tmp_path)
    assert time.process_time() - started < n * 60 / 40_000
    assert (tmp_path / "group_quality.tsv").read_text().count("\n") == n + 1
    tracemalloc.start()
    cohorts.write_tables(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * 100e6 / 40_000
