"""Several denoisings of one read: each as if alone, added and changed one by one, on the page and in the store."""

import json
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import gpumask.settings
from gpumask import NiftiLabelsMasker, cli, extraction
from gpumask.bids import find_runs
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.page import write_page
from gpumask.cohort.record import is_done
from gpumask.cohort.stored import read_record
from gpumask.confounds import tables
from gpumask.confounds.denoising import PRESETS, Denoising
from gpumask.connectivity import correlations

from . import cohorts

SIX = (
    Denoising("a", {"columns": ["trans_*"]}),
    Denoising("b", {"columns": ["trans_*", "csf"]}, {"standardize": "zscore_sample"}),
    Denoising("c", {"columns": ["csf"], "fd_threshold": 0.35}, {"low_pass": 0.1, "high_pass": 0.01}),
    Denoising("d", {}, {"detrend": False}, dummy_scans=4),
    Denoising("e", {"columns": ["csf"], "fd_threshold": 0.3, "scrub": 2}, output_type="n/a"),
    Denoising("f", {"columns": ["cosine00"], "fd_threshold": 0.5}, {"standardize": "psc"}, 1, "interpolated"),
)
HARD = Denoising("hard", {"fd_threshold": 0.2})  # half of the volumes are above


@pytest.fixture
def runs(tmp_path):
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    cohorts.make_atlases(tmp_path)
    return find_runs(tmp_path / "d")[0]


def configured(folder, out, denoisings=SIX, **options):
    atlases = tuple(AtlasFile(folder / f"atlas-{name}_dseg.nii.gz") for name in ("Toy", "Fine"))
    options = {"min_time": 0, "device": "cpu", **options}
    return Configuration(atlases, folder / out, {"detrend": True}, denoisings=denoisings, **options)


def statuses(configuration, runs):
    records = list(run_cohort(configuration, runs))
    assert {record.error for record in records} == {""}
    return Counter(record.status for record in records)


def record_of(configuration, run):
    (record,) = run_cohort(configuration, [run])
    return record


def test_work_that_denoisings_and_atlases_share(tmp_path, runs, monkeypatch):
    """A run's confounds are parsed once, and its cleaning is prepared once for each denoising."""
    parsed, prepared = [], []

    class Counted(gpumask.settings.Cleaner):
        def __init__(self, *args, **options):
            prepared.append(options["high_pass"])
            super().__init__(*args, **options)

    read = tables.read_table
    monkeypatch.setattr(tables, "read_table", lambda path: parsed.append(path) or read(path))
    monkeypatch.setattr(gpumask.settings, "Cleaner", Counted)
    assert record_of(configured(tmp_path, "out"), runs[0]).error == ""
    assert parsed == [Path(runs[0].confounds)]
    assert len(prepared) == len(SIX)


def table_of(out, run, atlas, denoising, stat="mean", suffix="timeseries", extension=".tsv"):
    (path,) = (out / run.folder).glob(f"{run.name}_*atlas-{atlas}_stat-{stat}_desc-{denoising}_{suffix}{extension}")
    return path


# Numbers


def test_six_denoisings_are_as_six_cohorts(runs, tmp_path, monkeypatch):
    reduced, run_plans = [], extraction.run_plans

    def counted(plans, *args, **options):
        reduced.append(len(plans))
        return run_plans(plans, *args, **options)

    monkeypatch.setattr(extraction, "run_plans", counted)
    assert statuses(configured(tmp_path, "six"), runs) == {"done": 2}
    assert reduced == [2, 2]  # each atlas once
    alone = {}
    for denoising in SIX:
        assert statuses(configured(tmp_path, f"only {denoising.name}", (denoising,)), runs) == {"done": 2}
        alone |= cohorts.outputs(tmp_path / f"only {denoising.name}")
    six = cohorts.outputs(tmp_path / "six")
    assert six.keys() == alone.keys()
    assert len(six) == 2 + 2 * (2 * 3 + 1) * 6 * 2  # three tables for each atlas and one of outliers, with sidecars
    for name in six.keys() - {"dataset_description.json"}:  # which has a hash of them all
        assert six[name] == alone[name], name


def test_numbers_are_those_of_maskers(runs, tmp_path):
    """And those of an unnamed denoising with these options."""
    assert statuses(configured(tmp_path, "six"), runs[:1]) == {"done": 1}
    run = replace(runs[0], name=None)
    table = pd.read_table(run.confounds)
    for denoising in SIX[:4]:
        fd = denoising.confounds.get("fd_threshold", np.inf)
        patterns = [pattern.replace("*", ".*") for pattern in denoising.confounds.get("columns", ())]
        columns = [name for name in table if any(re.fullmatch(pattern, name) for pattern in patterns)]
        kept = np.flatnonzero(~(table["framewise_displacement"] > fd))
        kept = kept[kept >= (denoising.dummy_scans if denoising.dummy_scans != "auto" else 0)]
        masker = NiftiLabelsMasker(
            tmp_path / "atlas-Toy_dseg.nii.gz",
            mask_img=run.mask,
            t_r=cohorts.T_R,
            keep_all_regions=True,
            min_coverage=0.5,
            nan_policy="omit",
            **{"detrend": True, **denoising.settings},
        ).fit()
        expected = masker.transform(run.path, confounds=table[columns].bfill() if columns else None, sample_mask=kept)
        found = pd.read_table(table_of(tmp_path / "six", runs[0], "Toy", denoising.name)).to_numpy(np.float32)
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_one_without_a_name_has_the_old_names_and_keys(runs, tmp_path):
    options = {"confounds": {"columns": ["csf"]}, "dummy_scans": 2}
    unnamed = configured(tmp_path, "out", (), **options)
    assert statuses(unnamed, runs[:1]) == {"done": 1}
    assert not [name for name in cohorts.outputs(tmp_path / "out") if "desc-" in name]
    sidecar = json.loads(next((tmp_path / "out").rglob("*timeseries.json")).read_text())
    assert not sidecar.keys() & {"Denoising", "OutputType"}
    assert unnamed.made.keys() == {"Toy", "Fine", ""}
    described = unnamed.described(unnamed.units[0])
    assert not described.keys() & {"denoising", "output_type"}
    assert (described["confounds"], described["dummy_scans"]) == ({"columns": ["csf"]}, 2)
    assert statuses(configured(tmp_path, "out", SIX[:1]), runs[:1]) == {"done": 1}  # next to it
    assert statuses(unnamed, runs[:1]) == {"skipped": 1}
    record = read_record(tmp_path / "out" / "logs" / f"{runs[0].name}.json")
    assert record["quality"].keys() == {"", "a"}
    assert [record["quality"][name]["volumes_kept"] for name in ("", "a")] == [38, 40]


# Units


def test_an_added_denoising_is_extracted_alone(runs, tmp_path):
    assert statuses(configured(tmp_path, "out", SIX[:5]), runs) == {"done": 2}
    before = cohorts.outputs(tmp_path / "out")
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before}
    records = list(run_cohort(configured(tmp_path, "out"), runs))
    assert {output.path.partition("_desc-")[2][0] for record in records for output in record.outputs} == {"f"}
    assert {record.status for record in records} == {"done"}
    after = cohorts.outputs(tmp_path / "out")
    same = before.keys() - {"dataset_description.json"}
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in same} == {name: times[name] for name in same}
    assert len(after) - len(before) == 2 * (2 * 3 + 1) * 2
    for some in (SIX, SIX[:5], SIX[5:], SIX[::-1]):
        assert statuses(configured(tmp_path, "out", some), runs) == {"skipped": 2}
    assert statuses(configured(tmp_path, "whole"), runs) == {"done": 2}
    assert cohorts.outputs(tmp_path / "whole") == after
    record, whole = (read_record(tmp_path / out / "logs" / f"{runs[0].name}.json") for out in ("out", "whole"))
    for key in ("quality", "made", "configuration", "atlases"):
        assert record[key] == whole[key], key
    (
        tmp_path
        / "out"
        / next(name for name in after if re.search("run-1_.*_atlas-Toy_.*_desc-c_timeseries.tsv", name))
    ).unlink()
    first = record_of(configured(tmp_path, "out"), runs[0])
    assert {output.path.partition("_atlas-")[2][:3] for output in first.outputs} == {"Toy"}
    assert {output.path.partition("_desc-")[2][0] for output in first.outputs} == {"c"}
    assert cohorts.outputs(tmp_path / "out") == after


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confounds": {"columns": ["csf"]}}, r"confounds columns \['trans_\*'\], now \['csf'\]"),
        ({"confounds": {"columns": ["trans_*"], "fd_threshold": 0.4}}, "confounds fd_threshold None, now 0.4"),
        ({"settings": {"low_pass": 0.1}}, "low_pass None, now 0.1"),
        ({"dummy_scans": 3}, "dummy_scans 'auto', now 3"),
        ({"output_type": "n/a"}, "output_type None, now 'n/a'"),
    ],
)
def test_a_changed_denoising_is_refused(runs, tmp_path, change, message):
    assert statuses(configured(tmp_path, "out", SIX[:2]), runs) == {"done": 2}
    before = cohorts.outputs(tmp_path / "out")
    changed = (replace(SIX[0], **change), SIX[1])
    with pytest.raises(
        ValueError, match=rf"_desc-a_timeseries.tsv was made with {message}\. So were outputs of 1 more"
    ):
        statuses(configured(tmp_path, "out", changed), runs)
    assert cohorts.outputs(tmp_path / "out") == before
    assert statuses(configured(tmp_path, "out", changed, overwrite=True), runs) == {"done": 2}
    after = cohorts.outputs(tmp_path / "out")
    differ = {name for name in before if after[name] != before[name]} - {"dataset_description.json"}
    assert all("_desc-a_" in name for name in differ)
    of_outliers = "settings" not in change  # which volumes are removed depends on none of them
    assert sum(name.endswith(".json") for name in differ) == 2 * (2 * 3 + of_outliers)


def test_a_denoising_that_cannot_be_used_leaves_the_others(runs, tmp_path):
    both = configured(tmp_path, "out", (SIX[1], HARD), min_time=60)
    record = record_of(both, runs[0])
    assert record.status == "failed"
    n_kept = 40 - int((pd.read_table(runs[0].confounds)["framewise_displacement"] > 0.2).sum())
    kept = f"{runs[0].path} keeps {n_kept} of its 40 volumes, {2 * n_kept} s, less than the 60 s of --min-time."
    assert record.error.startswith(f"hard: {kept} Exclude the run")
    assert not is_done(both, runs[0])
    assert is_done(configured(tmp_path, "out", SIX[1:2]), runs[0])
    before = cohorts.outputs(tmp_path / "out")
    assert len(before) == 2 + 14
    assert not [name for name in before if "_desc-hard_" in name]
    assert cohorts.log_lines(tmp_path / "out")[-1]["error"] == record.error
    again = record_of(both, runs[0])
    assert (again.status, again.error) == ("failed", record.error)
    assert again.outputs == ()
    assert cohorts.outputs(tmp_path / "out") == before
    assert record_of(replace(both, min_time=0), runs[0]).status == "done"
    assert len(cohorts.outputs(tmp_path / "out")) == 2 + 28


def test_no_usable_denoising(runs, tmp_path):
    none = Denoising("none", {"columns": ["white_matter", "rot_*"]})
    record = record_of(configured(tmp_path, "out", (none, HARD), min_time=60), runs[0])
    assert record.status == "failed"
    path = re.escape(str(runs[0].confounds))
    pattern = rf"none: {path} has no column white_matter, rot_\*\. Its 5 columns include .* hard: .* of --min-time\. .*"
    assert re.fullmatch(pattern, record.error)
    assert list((tmp_path / "out").rglob("*.tsv")) == []


def test_a_reason_is_given_once(runs, tmp_path):
    some = (replace(HARD, name="a"), Denoising("b", {"columns": ["rot_*"]}), replace(HARD, name="c"), SIX[3])
    error = record_of(configured(tmp_path, "out", some, min_time=60), runs[0]).error
    assert error.startswith(f"a, c: {runs[0].path} keeps ")
    assert [error.count(words) for words in ("--min-time. ", " b: ", "has no column")] == [1, 1, 1]


def test_warnings_name_the_denoisings_that_they_are_about(runs, tmp_path):
    twice = Denoising("twice", {"columns": ["cosine*", "csf"]}, {"high_pass": 0.01})
    message = (
        "Drifts are removed twice: by the Butterworth high-pass (0.01 Hz), and by the cosine columns among the "
        "confounds. Use one of them."
    )
    record = record_of(configured(tmp_path, "out", (*SIX[:3], twice, SIX[5])), runs[0])
    assert record.warnings == (f"twice: {message}",)
    unnamed = {"confounds": twice.confounds}
    alone = configured(tmp_path, "alone", (), **unnamed)
    record = record_of(replace(alone, parameters={"high_pass": 0.01}), runs[0])
    assert record.warnings == (message,)
    assert record_of(replace(alone, parameters={"low_pass": 0.1}, overwrite=True), runs[0]).warnings == ()


# Rows of dropped volumes


def test_rows_of_each_output_type(runs, tmp_path):
    options = {"confounds": {"columns": ["csf"], "fd_threshold": 0.3}, "dummy_scans": 2}
    denoisings = tuple(
        Denoising(f"o{k}", **options, output_type=t) for k, t in enumerate(("censored", "n/a", "interpolated"))
    )
    configuration = configured(tmp_path, "out", denoisings)
    assert statuses(configuration, runs[:1]) == {"done": 1}
    displacement = pd.read_table(runs[0].confounds)["framewise_displacement"]
    kept = np.flatnonzero(~(displacement > 0.3) & (np.arange(40) >= 2))
    out, run = tmp_path / "out", runs[0]
    censored, missing, filled = (pd.read_table(table_of(out, run, "Fine", f"o{k}")) for k in range(3))
    assert (len(censored), len(missing), len(filled)) == (len(kept), 40, 40)
    for whole in (missing, filled):
        np.testing.assert_array_equal(whole.to_numpy()[kept], censored.to_numpy())
    assert missing.drop(kept).isna().all(axis=None)
    assert filled.iloc[:2].isna().all(axis=None)
    assert filled.iloc[2:, censored.notna().all().to_numpy()].notna().all(axis=None)
    matrices = [table_of(out, run, "Fine", f"o{k}", "pearsoncorrelation", "relmat").read_bytes() for k in range(3)]
    assert len(set(matrices)) == 1
    matrix = pd.read_table(table_of(out, run, "Fine", "o1", "pearsoncorrelation", "relmat"), index_col=0)
    np.testing.assert_allclose(matrix, correlations(censored.to_numpy()), rtol=0, atol=1e-6)
    for k, expected in enumerate((None, "n/a", "interpolated")):
        sidecar = json.loads(table_of(out, run, "Fine", f"o{k}", extension=".json").read_text())
        assert sidecar.get("OutputType") == expected
        assert sidecar["Denoising"] == f"o{k}"
        assert sidecar["CensoredVolumes"] == np.setdiff1d(np.arange(40), kept).tolist()
        assert sidecar["NumberOfVolumesKept"] == len(kept)


# Page and store


def test_page_and_store_have_a_part_per_denoising(runs, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    assert statuses(configured(tmp_path, "out"), runs) == {"done": 2}
    page = write_page(out).read_text("utf-8")
    for denoising in SIX:
        for run in runs:
            cells = (f"<td>{run.name}</td>", f"<td class=text>{denoising.name}</td>", "<td class=text>done</td>")
            assert page.count("".join(cells)) == 1
        assert page.count(f"<h3>Denoising {denoising.name}: 2 runs</h3>") == 1
    assert page.count("<td>Butterworth, 0.01 to 0.1 Hz</td>") == 1
    assert page.count("<h3>Toy</h3>") == page.count("<h3>Fine</h3>") == 1
    assert page.count("5 regions, 2 runs") + page.count("6 regions, 2 runs") == 1

    paths, refused = cohorts.write_store(out, tmp_path / "c.parquet")
    assert refused == {}
    names = {f"c_atlas-{atlas}_stat-mean_desc-{d.name}.parquet" for atlas in ("Toy", "Fine") for d in SIX}
    assert {path.name for path in paths} == names
    for denoising in SIX:
        path = tmp_path / f"c_atlas-Fine_stat-mean_desc-{denoising.name}.parquet"
        stored = pq.read_table(path)
        metadata = json.loads(pq.read_metadata(path).metadata[b"gpumask"])
        assert metadata["denoising"] == metadata["sidecar"]["Denoising"] == denoising.name
        stored = stored.to_pandas()
        stored = stored[stored["name"] == runs[0].name]
        expected = pd.read_table(table_of(out, runs[0], "Fine", denoising.name))
        np.testing.assert_array_equal(stored[list(expected)].to_numpy(), expected.to_numpy())
        if denoising.output_type != "censored":
            assert stored["volume"].tolist() == list(range(40))
        else:
            censored = json.loads(table_of(out, runs[0], "Fine", denoising.name, extension=".json").read_text())
            assert stored["volume"].tolist() == np.setdiff1d(range(40), censored.get("CensoredVolumes", [])).tolist()


def test_quality_and_outliers_of_each_denoising(runs, tmp_path):
    out = tmp_path / "out"
    configuration = configured(tmp_path, "out")
    assert statuses(configuration, runs) == {"done": 2}
    cohorts.write_tables(out)
    quality, qcfc = (pd.read_table(out / f"group_{name}.tsv", na_values="n/a") for name in ("quality", "qcfc"))
    assert quality[["name", "denoising"]].to_numpy().tolist() == [[run.name, one.name] for run in runs for one in SIX]
    assert sorted(qcfc[["atlas", "denoising"]].to_numpy().tolist()) == sorted(
        [atlas, one.name] for atlas in ("Toy", "Fine") for one in SIX
    )
    for run in runs:
        displacement = pd.read_table(run.confounds)["framewise_displacement"].to_numpy()
        for denoising in SIX:
            above = displacement > denoising.confounds.get("fd_threshold", np.inf)
            dummies = np.arange(40) < (0 if denoising.dummy_scans == "auto" else denoising.dummy_scans)
            removed = pd.read_table(out / run.folder / f"{run.name}_desc-{denoising.name}_outliers.tsv")
            assert removed["framewise_displacement"].tolist() == above.astype(int).tolist()
            assert removed["dummy_scans"].tolist() == dummies.astype(int).tolist()
            (row,) = quality[(quality["name"] == run.name) & (quality["denoising"] == denoising.name)].to_dict(
                "records"
            )
            assert row["removed_fd"] == above.sum()
            assert row["removed_dummy_scans"] == dummies.sum()
            signals = pd.read_table(table_of(out, run, "Fine", denoising.name)).dropna(how="all")
            if denoising.output_type != "interpolated":
                assert row["volumes_kept"] == removed["kept"].sum() == len(signals)
            assert row["fd_mean"] == pytest.approx(np.nanmean(displacement), rel=1e-5)
            assert row["fd_mean_kept"] == pytest.approx(np.nanmean(displacement[removed["kept"] == 1]), rel=1e-5)
            matrix = pd.read_table(
                table_of(out, run, "Fine", denoising.name, "pearsoncorrelation", "relmat"), index_col=0
            )
            pairs = np.abs(matrix.to_numpy()[np.triu_indices(len(matrix), 1)])
            assert row["median_abs_r_Fine"] == pytest.approx(np.nanmedian(pairs), rel=1e-5)
    before = cohorts.outputs(out)
    (out / runs[0].folder / f"{runs[0].name}_desc-c_outliers.json").unlink()
    assert statuses(configuration, runs) == {"done": 1, "skipped": 1}
    assert cohorts.outputs(out) == before
    (out / runs[0].folder / f"{runs[0].name}_desc-c_outliers.tsv").unlink()
    record = record_of(configuration, runs[0])
    assert all("_desc-c_" in output.path for output in record.outputs)
    assert cohorts.outputs(out) == before


# Configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"denoisings": (SIX[0], SIX[0])},
            r"Expected denoisings with a name of their own, got \['a', 'a'\]\. Give NAME",
        ),
        ({"denoisings": (SIX[0], replace(SIX[1], name="A"))}, r"a name of their own, got \['a', 'A'\]"),
        ({"denoisings": (SIX[0], Denoising())}, r"a name of their own, got \['a', ''\]"),
        ({"confounds": {"columns": ["csf"]}}, "Denoisings have confounds, dummy_scans and output_type of their own"),
        ({"dummy_scans": 3}, "Denoisings have confounds, dummy_scans and output_type of their own"),
        (
            {"denoisings": (SIX[0], Denoising("aroma", {"strategy": "ica_aroma"}))},
            "Denoisings of one read need the same images, got some for preproc and others for smoothAROMAnonaggr",
        ),
        ({"denoisings": (Denoising("a", settings={"low_pass": "x"}),)}, "'low_pass' must be of type"),
    ],
)
def test_denoisings_that_do_not_go_together(runs, tmp_path, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        configured(tmp_path, "out", **{"denoisings": SIX, **options})


# Command line


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text('columns = ["csf"]\nhigh_pass = 0.01\noutput_type = "n/a"\n')
    (tmp_path / "two.json").write_text('{"columns": ["trans_*"], "fd_threshold": 0.5, "dummy_scans": 1}')


COHORT = "cohort d out participant --atlas atlas-Toy_dseg.nii.gz --device cpu --min-time 0"


def test_command_line(runs, tmp_path, files, capsys):
    line = f"{COHORT} --denoise B=own.toml two.json --low-pass 0.1 --fd-threshold 0.35 --detrend"
    assert cli.main(shlex.split(line)) == 0
    out, err = capsys.readouterr()
    assert err == "0/2 runs [00:00<?]\n"
    above = (pd.read_table(runs[0].confounds)["framewise_displacement"] > 0.35).sum()
    assert re.search(
        rf"^{runs[0].name}\tB: {40 - above}/40 volumes kept; two: 38/40 volumes kept \(1 dummy scans\); "
        r"mean FD 0\.\d\d mm\t",
        out,
        re.M,
    )
    own, two = (
        json.loads(table_of(tmp_path / "out", runs[0], "Toy", name, extension=".json").read_text())
        for name in ("B", "two")
    )
    assert own["ConfoundsOptions"] == {"columns": ["csf"], "fd_threshold": 0.35}
    assert two["ConfoundsOptions"] == {"columns": ["trans_*"], "fd_threshold": 0.5}
    assert own["SoftwareFilters"]["Butterworth"]["High-pass cutoff (Hz)"] == 0.01
    assert "High-pass cutoff (Hz)" not in two["SoftwareFilters"]["Butterworth"]
    assert own["MaskerParameters"]["low_pass"] == two["MaskerParameters"]["low_pass"] == 0.1
    assert own["OutputType"] == "n/a"
    assert two["DummyScans"] == [0]
    assert cli.main(shlex.split(line)) == 0
    assert "0 done, 2 skipped" in capsys.readouterr().out


def test_extract_with_denoisings(runs, tmp_path, files, capsys):
    line = f"extract {runs[0].path} --atlas A=atlas-Toy_dseg.nii.gz F=atlas-Fine_dseg.nii.gz --confounds auto --out o"
    assert cli.main(shlex.split(f"{line} --denoise own.toml two.json --min-time 0")) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [re.search("_atlas-(.).*_desc-(...)_", name).groups() for name, _, _ in lines] == [
        *(("A", "own"), ("A", "two"), ("F", "own"), ("F", "two"))
    ]
    assert lines[0][1].startswith("40 volumes x")
    assert lines[3][1] == "38/40 volumes kept (1 dummy scans) x 9 regions"
    assert cli.main(shlex.split(line.replace("--confounds auto", "--denoise own.toml"))) == 2
    assert "--denoise: requires --confounds" in capsys.readouterr().err
    assert cli.main(shlex.split(f"{line} --confounds-columns csf --output-type n/a --dummy-scans 3")) == 0
    assert (
        pd.read_table(next((tmp_path / "o").glob("*stat-mean_timeseries.tsv"))).isna().all(axis=1).tolist()
        == [True] * 3 + [False] * 37
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--denoise 12p",
            "--denoise: Unknown preset '12p'. Expected one of 9p, 24p, 36p, simple, scrubbing, acompcor50",
        ),
        ("--denoise none.toml", "none.toml"),
        ("--denoise 24p 24p", "Expected denoisings with a name of their own, got ['24p', '24p']."),
        ("--denoise 24p --confounds-columns csf", "--confounds-columns and --denoise exclude each other"),
        ("--denoise 24p --confounds-strategy simple", "--confounds-strategy and --denoise exclude each other"),
        (
            "--denoise own.toml --low-pass 0.005",
            "own.toml: 'high_pass' (0.01 Hz) must be lower than 'low_pass' (0.005 Hz)",
        ),
    ],
)
@pytest.mark.parametrize("dry", ["", " --dry-run"])
def test_wrong_usage_exits_2(runs, tmp_path, files, capsys, options, message, dry):
    assert cli.main(shlex.split(f"{COHORT} {options}{dry}")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info_lists_the_presets(capsys):
    assert cli.main(["info", "--denoise"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(PRESETS)
    assert lines[2] == (
        "24p         6 motion parameters, their derivatives, and the squares of these 12; 24p+gsr: global_signal too"
    )
    assert all(re.search("(Ciric|Wang) 20", line) for line in lines[1::2])


def test_interpolated_times_are_those_of_all_volumes(runs, tmp_path):
    """A run without a repetition time has the times of its volumes: as many as rows."""
    path = Path(runs[0].path)
    image = nib.load(path)
    image.header.set_xyzt_units("mm", "unknown")
    nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header).to_filename(path)
    times = [float(t) for t in np.arange(40) * 2.0]
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps({"VolumeTiming": times}))
    denoisings = (Denoising("a", dummy_scans=3), Denoising("b", dummy_scans=3, output_type="n/a"))
    record = record_of(configured(tmp_path, "out", denoisings), runs[0])
    assert record.error == ""
    for name, expected in (("a", times[3:]), ("b", times)):
        sidecar = json.loads(table_of(tmp_path / "out", runs[0], "Toy", name, extension=".json").read_text())
        assert sidecar.get("VolumeTiming") == expected
