"""Grayordinates in the commands: dense series by fMRIPrep's and HCP's names, with atlases that fit them or don't."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import NiftiLabelsMasker, NiftiMapsMasker, cli
from gpumask.bids.runs import Run
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.writer import write_run

from . import cohorts, dense

T_R, N = 2.0, 150
NAMES = ("sub-01_task-rest_run-1", "sub-01_task-rest_run-2", "sub-02_task-rest_run-1")
ATLAS = "atlas-Toy_dseg.dlabel.nii"
FILE = "sub-01/func/sub-01_task-rest_run-1_space-fsLR_atlas-Toy_den-91k_stat-{}"
COHORT = f"cohort d out participant --atlas {ATLAS}"


def bold(k=0):
    return f"d/{NAMES[k][:6]}/func/{NAMES[k]}_space-fsLR_den-91k_bold.dtseries.nii"


def confounds(k=0):
    return f"d/{NAMES[k][:6]}/func/{NAMES[k]}_desc-confounds_timeseries.tsv"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory with derivatives of three runs, and atlases: labels, two maps of labels, and weights."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    axis = dense.models(rng, share=0.9)
    atlas_axis = dense.models(np.random.default_rng(5), share=0.9)  # other grayordinates than the runs'
    for k in range(len(NAMES)):
        (tmp_path / bold(k)).parent.mkdir(parents=True, exist_ok=True)
        data = rng.normal(1000, 30, (N, len(axis))).astype("f4")
        dense.save(dense.series_image(data, axis, T_R), tmp_path / bold(k))
        sidecar = {"RepetitionTime": T_R, "TaskName": "rest", "Density": "91k"}
        (tmp_path / bold(k).replace(".dtseries.nii", ".json")).write_text(json.dumps(sidecar))
        table = pd.DataFrame(rng.normal(size=(N, 3)), columns=["trans_x", "csf", "cosine00"])
        table["framewise_displacement"] = [np.nan, *rng.uniform(0, 0.4, N - 1)]
        table.loc[[7, 20], "framewise_displacement"] = 0.9
        table.to_csv(confounds(k), sep="\t", index=False, na_rep="n/a")
    labels = rng.integers(0, 6, (2, len(atlas_axis)))
    tables = [dense.table(range(6), {2: "Vis_1", 3: "Vis_1"}), dense.table(range(6))]
    dense.save(dense.labels_image(labels[0], atlas_axis, ["a"], tables[:1]), tmp_path / ATLAS)
    dense.save(dense.labels_image(labels, atlas_axis, ["a", "Yeo 7"], tables), tmp_path / "two.dlabel.nii")
    weights = rng.uniform(0.1, 1, (3, len(atlas_axis))) * (rng.random((3, len(atlas_axis))) < 0.6)
    dense.save(dense.scalars_image(weights.astype("f4"), atlas_axis, ["v", "w", "v"]), tmp_path / "maps.dscalar.nii")
    return tmp_path


def values(image):
    """A copy, so that the file may be written again."""
    return np.asarray(image.dataobj).copy()


def run(line):
    return cli.main([*shlex.split(line), "--device", "cpu"])


def test_imports_only_what_it_needs(folder):
    """Each of these takes 0.02 to 0.3 s to import."""
    heavy = (
        *("scipy.linalg", "scipy.sparse", "scipy.ndimage", "scipy.signal", "numpy.f2py", "sklearn"),
        *("array_api_compat.numpy", "pandas", "joblib", "nilearn", "matplotlib"),
    )
    code = (
        "import sys, gpumask.cli; print(gpumask.cli.main(sys.argv[1:])); "
        f"print(sorted(set({heavy}) & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "extract", bold(), "--atlas", ATLAS, "--cifti", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" s\n0\n[]\n")


def table(name):
    return pd.read_table(f"out/{name}.tsv", na_values="n/a", keep_default_na=False)


def content(path):
    return {str(file): file.read_bytes() for file in sorted(Path(path).rglob("*.*")) if "logs" not in file.parts}


def labels_of(path=ATLAS, number=0):
    image = nib.load(path)
    return values(image)[number], image.header.get_axis(1)


def signals_by_definition(k=0, path=ATLAS, number=0):
    """Means of labels, shape (n_times, n_regions), and the share of each that the run has."""
    image = nib.load(bold(k))
    _, signals, counts = dense.by_definition(
        values(image), image.header.get_axis(1), *labels_of(path, number), nan_policy="omit"
    )
    return signals, counts[:, 1] / counts[:, 0]


def test_cohort(capsys):
    assert run(COHORT) == 0
    assert "3 done" in capsys.readouterr().out
    signals, shares = signals_by_definition()
    found = table(FILE.format("mean_timeseries"))
    assert list(found) == ["Parcel 1", "Vis_1 [2]", "Vis_1 [3]", "Parcel 4", "Parcel 5"]
    assert shares.min() >= 0.5
    np.testing.assert_allclose(found, signals, rtol=1e-6)
    coverage = table(FILE.format("coverage_bold"))
    assert coverage["Node"].tolist() == list(found)
    np.testing.assert_allclose(coverage["coverage"], shares, rtol=1e-6)
    assert (shares < 1).any()
    relmat = table(FILE.format("pearsoncorrelation_relmat"))
    np.testing.assert_allclose(relmat.iloc[:, 1:], np.corrcoef(signals.T), atol=1e-6)
    sidecar = json.loads(Path("out", FILE.format("mean_timeseries") + ".json").read_text())
    assert (sidecar["RepetitionTime"], sidecar["Density"], sidecar["TaskName"]) == (T_R, "91k", "rest")
    assert sidecar["MaskerParameters"]["label_map"] == 0
    labels = labels_of()[0]
    assert [set(region) for region in sidecar["Regions"]] == [{"index", "name", "grayordinates"}] * 5
    assert [region["index"] for region in sidecar["Regions"]] == [1, 2, 3, 4, 5]
    assert all(region["grayordinates"] <= (labels == region["index"]).sum() for region in sidecar["Regions"])
    quality = pd.read_table("out/group_quality.tsv", na_values="n/a").iloc[0]
    assert quality["volumes"] == N


def test_cleaning_censoring_and_confounds_are_those_of_the_masker():
    options = "--detrend --standardize zscore_sample --low-pass 0.1 --fd-threshold 0.5 --confounds-columns trans_x csf"
    assert run(f"{COHORT} {options}") == 0
    masker = NiftiLabelsMasker(ATLAS, detrend=True, standardize="zscore_sample", low_pass=0.1, t_r=T_R, reports=False)
    removed = pd.read_table(confounds(), na_values="n/a")[["trans_x", "csf"]]
    kept = np.setdiff1d(np.arange(N), [7, 20])
    expected = masker.fit_transform(bold(), confounds=removed, sample_mask=kept)
    np.testing.assert_allclose(table(FILE.format("mean_timeseries")), expected, rtol=1e-5, atol=1e-6)
    outliers = next(Path("out").rglob(f"{NAMES[0]}*outliers.tsv"))
    assert pd.read_table(outliers)["kept"].sum() == N - 2


def test_a_map_of_several_and_two_atlases_in_one_read(capsys):
    line = "cohort d out participant --atlas A=two.dlabel.nii B=two.dlabel.nii W=maps.dscalar.nii"
    assert run(f"{line} --label-map 0 'Yeo 7' n/a --maps-strategy weighted_mean") == 0
    for name, number in (("A", 0), ("B", 1)):
        expected, _ = signals_by_definition(path="two.dlabel.nii", number=number)
        np.testing.assert_allclose(table(FILE.format("mean_timeseries").replace("Toy", name)), expected, rtol=1e-6)
    found = table(FILE.format("weightedmean_timeseries").replace("Toy", "W"))
    masker = NiftiMapsMasker("maps.dscalar.nii", strategy="weighted_mean", reports=False)
    np.testing.assert_allclose(found, masker.fit_transform(bold()), rtol=1e-6)
    assert list(found) == ["v [0]", "w", "v [2]"]
    assert "maps.dscalar.nii has several regions called v" in capsys.readouterr().err


def test_a_lookup_table_names_the_columns():
    pd.DataFrame({"index": range(1, 6), "name": list("abcde")}).to_csv("names.tsv", sep="\t", index=False)
    pd.DataFrame({"index": range(1, 6), "name": list("vwxyz")}).to_csv("atlas-Toy_dseg.tsv", sep="\t", index=False)
    assert run(f"extract {bold()} --atlas {ATLAS} --out out --lut names.tsv") == 0
    name = "sub-01_task-rest_run-1_space-fsLR_atlas-Toy_den-91k_stat-mean_timeseries"
    assert list(table(name)) == list("abcde")
    assert run(f"extract {bold()} --atlas {ATLAS} --out out --overwrite") == 0
    assert "Parcel 1" in table(name)  # the file's own names, and not those of the table next to it


def test_extract_is_bit_for_bit_the_cohort():
    assert run(COHORT + " --confounds-columns csf --min-coverage 0") == 0
    assert run(f"extract {bold()} {bold(1)} --atlas {ATLAS} --confounds auto --confounds-columns csf --out ex") == 0
    for k in (0, 1):
        name = FILE.format("mean_timeseries").replace("run-1", f"run-{k + 1}") + ".tsv"
        of_extract = Path("ex", Path(name).name).read_bytes()
        assert of_extract == Path("out", name).read_bytes()


def test_resume_and_other_numbers_of_processes_give_the_same_bytes(capsys):
    assert run(COHORT + " --nprocs 2") == 0
    whole = content("out")
    next(Path("out").rglob(f"{NAMES[1]}*timeseries.tsv")).unlink()
    capsys.readouterr()
    assert run(COHORT) == 0
    assert "1 done, 2 skipped (done before)" in capsys.readouterr().out
    assert {name for name, data in content("out").items() if data != whole[name]} <= {
        "out/cohort.html",
        "out/group_quality.tsv",  # has durations
    }
    assert run(f"{COHORT} --label-map a") == 0  # the same map
    assert "0 done, 3 skipped" in capsys.readouterr().out


def test_another_map_under_the_same_name(capsys):
    line = "cohort d out participant --atlas Toy=two.dlabel.nii --label-map"
    assert run(f"{line} 0") == 0
    capsys.readouterr()
    assert run(f"{line} 'Yeo 7'") == 2
    assert "was made with label_map 0, now 1. So were outputs of 2 more runs" in capsys.readouterr().err


def test_dry_run(capsys):
    assert run(COHORT + " --dry-run") == 0
    shown = capsys.readouterr().out
    assert "3 to do, 0 done, 0 unusable" in shown
    assert bold() in shown
    assert not Path("out").exists()


def test_volumes_and_grayordinates_of_one_folder_share_an_output_folder(tmp_path):
    cohorts.make_cohort(tmp_path / "v", 2, bad=False)
    toy, _ = cohorts.make_atlases(tmp_path)
    for file in (tmp_path / "v").rglob("*_bold.nii.gz"):
        name = file.name.partition("_space-")[0]
        for of in (".dtseries.nii", ".json"):
            source = tmp_path / bold().replace(".dtseries.nii", of)
            (file.parent / f"{name}_space-fsLR_den-91k_bold{of}").write_bytes(source.read_bytes())
    assert run(f"cohort v out participant --atlas vol={toy} --min-time 0") == 0
    of_volumes = content("out")
    assert run(f"cohort v out participant --atlas {ATLAS}") == 0
    both = content("out")
    assert {name: both[name] for name in of_volumes if "func" in name} == {
        name: data for name, data in of_volumes.items() if "func" in name
    }
    assert sum("atlas-Toy_den-91k_stat-mean_timeseries.tsv" in name for name in both) == 2


def test_the_page_says_what_was_done():
    assert run(COHORT) == 0
    page = Path("out/cohort.html").read_text()
    assert "mean of each region&#x27;s grayordinates" in page
    assert "grayordinates of atlas and run are matched by vertex and voxel" in page
    assert "Regions of which a run has less than 50% of the grayordinates are missing values." in page
    assert "resampled to each run" not in page


def test_figures_have_no_cuts():
    pytest.importorskip("matplotlib")
    assert run(f"{COHORT} --figures") == 0
    figures = sorted(Path("out/figures").iterdir())
    assert len(figures) == 3
    assert figures[0].read_bytes()[16:24] == (1000).to_bytes(4, "big") + (1100).to_bytes(4, "big")


def test_parcels_for_workbench():
    line = f"{COHORT} T=two.dlabel.nii W=maps.dscalar.nii --label-map 0 1 n/a --fd-threshold 0.5 --dummy-scans 3"
    assert run(f"{line} --cifti --confounds-columns csf") == 0
    for name, number in (("Toy", 0), ("T", 1)):
        stem = FILE.format("").replace("Toy", name)
        series = nib.load(f"out/{stem}mean_timeseries.ptseries.nii")
        signals = table(f"{stem}mean_timeseries")
        np.testing.assert_allclose(values(series), signals, rtol=1e-6)
        time, parcels = (series.header.get_axis(k) for k in (0, 1))
        assert (time.start, time.step, time.unit, time.size) == (3 * T_R, T_R, "SECOND", N - 5)  # and two by motion
        assert list(parcels.name) == list(signals)
        labels, axis = labels_of("two.dlabel.nii", number) if number else labels_of()
        for k, own in enumerate(parcels.voxels):
            expected = {tuple(axis.voxel[i]) for i in np.flatnonzero(labels == k + 1) if axis.volume_mask[i]}
            assert set(map(tuple, own.tolist())) == expected
        matrix = nib.load(f"out/{stem}pearsoncorrelation_boldmap.pconn.nii")
        relmat = table(f"{stem}pearsoncorrelation_relmat").iloc[:, 1:]
        np.testing.assert_allclose(values(matrix), relmat, rtol=1e-6)
        coverage = nib.load(f"out/{stem}coverage_boldmap.pscalar.nii")
        np.testing.assert_allclose(values(coverage)[0], table(f"{stem}coverage_bold")["coverage"], rtol=1e-6)
        for boldmap, of in (("coverage_boldmap", "coverage_bold"), ("pearsoncorrelation_boldmap",) * 2):
            found = json.loads(Path(f"out/{stem}{boldmap}.json").read_text())
            of = of.replace("boldmap", "relmat")
            assert found == json.loads(Path(f"out/{stem}{of}.json").read_text())
    assert len([*Path("out").rglob("*.nii")]) == 3 * 2 * 3
    whole = content("out")
    next(Path("out").rglob(f"{NAMES[1]}*_atlas-T_*ptseries.nii")).unlink()
    assert run(f"{line} --cifti --confounds-columns csf") == 0
    assert {name: data for name, data in content("out").items() if ".nii" in name} == {
        name: data for name, data in whole.items() if ".nii" in name
    }


def test_several_denoisings_and_rows_of_dropped_volumes():
    Path("c.toml").write_text('columns = ["csf"]\nfd_threshold = 0.5\noutput_type = "n/a"\n')
    Path("x.toml").write_text('columns = ["trans_x"]\nfd_threshold = 0.5\ndetrend = true\n')
    assert run(f"{COHORT} --denoise kept=c.toml less=x.toml --cifti") == 0
    removed = pd.read_table(confounds(), na_values="n/a")
    kept = np.setdiff1d(np.arange(N), [7, 20])
    for name, column, detrend in (("kept", "csf", False), ("less", "trans_x", True)):
        masker = NiftiLabelsMasker(ATLAS, detrend=detrend, reports=False)
        expected = masker.fit_transform(bold(), confounds=removed[[column]], sample_mask=kept)
        stem = FILE.format(f"mean_desc-{name}_timeseries")
        found, series = table(stem), nib.load(f"out/{stem}.ptseries.nii")
        if name == "kept":
            assert found.index[found.isna().all(axis=1)].tolist() == [7, 20]
        np.testing.assert_allclose(found.dropna(), expected, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(values(series), found, rtol=1e-6)
        assert series.header.get_axis(0).start == 0


def test_added_parcels_for_workbench(capsys):
    assert run(COHORT) == 0
    assert run(f"{COHORT} --cifti --no-relmat") == 0
    assert "3 done" in capsys.readouterr().out
    assert {path.name.partition(".")[2] for path in Path("out").rglob("*.nii")} == {"ptseries.nii", "pscalar.nii"}


def test_parcels_of_extract(capsys):
    line = f"extract {bold()} --atlas {ATLAS} --cifti --out ex"
    assert run(line) == 0
    (path,) = Path("ex").glob("*.nii")
    assert path.name == Path(FILE.format("mean_timeseries.ptseries.nii")).name
    path.with_suffix("").with_suffix(".tsv").unlink()
    assert run(line) == 1
    assert "_timeseries.json already exists" in capsys.readouterr().err


def test_parcels_without_a_repetition_time(folder, capsys):
    image = nib.load(bold())
    image.header.matrix.get_index_map(0).series_unit = "HERTZ"
    dense.save(nib.Cifti2Image(values(image), image.header, image.nifti_header), folder / bold())
    (folder / bold().replace(".dtseries.nii", ".json")).unlink()
    assert run(f"{COHORT} --cifti") == 1
    assert f"{folder}/{bold()} has no repetition time, but .ptseries.nii needs one. Give it" in capsys.readouterr().err


def test_store():
    pytest.importorskip("pyarrow")
    assert run(f"{COHORT} --store out/all.parquet") == 0
    (path,) = Path("out").glob("all*.parquet")
    assert len(pd.read_parquet(path)) == 3 * N


# What doesn't go together


def refused(line, capsys):
    """The error of a command that nothing was started of, in --dry-run too."""
    assert run(line) == 2
    message = capsys.readouterr().err
    if line.startswith("cohort"):
        assert run(f"{line} --dry-run") == 2
        assert capsys.readouterr().err == message
    assert not Path("out").exists()
    return message.partition("error: ")[2].strip()


@pytest.fixture
def volume(tmp_path):
    """A run of volumes, and an atlas for it."""
    cohorts.make_cohort(tmp_path / "v", 1, bad=False)
    cohorts.make_atlases(tmp_path)
    return str(next((tmp_path / "v").rglob("*_bold.nii.gz")))


@pytest.mark.parametrize("command", ["cohort d out participant", f"extract {bold()} --out out"])
def test_atlases_of_both_kinds(command, volume, folder, capsys):
    (folder / "seeds.tsv").write_text("x\ty\tz\n1\t2\t3\n")
    assert refused(f"{command} --atlas atlas-Fine_dseg.nii.gz L={ATLAS} --seeds seeds.tsv", capsys) == (
        f"A run has grayordinates or volumes, and these atlases are of both: of grayordinates {folder / ATLAS}; of "
        f"volumes {folder}/atlas-Fine_dseg.nii.gz, {folder}/seeds.tsv. Give two commands, one for each kind. They may "
        "share the output folder."
    )


def test_runs_of_both_kinds(volume, folder, capsys):
    assert refused(f"extract {bold()} {volume} {bold(1)} --atlas {ATLAS} --out out", capsys) == (
        f"Atlases of grayordinates ({folder / ATLAS}) don't apply to volumes: {volume}. Give dense series "
        "(*.dtseries.nii), or atlases of volumes."
    )
    assert refused(f"extract {bold()} {volume} {bold(1)} --atlas atlas-Fine_dseg.nii.gz --out out", capsys) == (
        f"Atlases of volumes ({folder}/atlas-Fine_dseg.nii.gz) don't apply to grayordinates: {bold()}, {bold(1)}. Give "
        "images of volumes, or atlases of grayordinates (*.dlabel.nii)."
    )


def test_a_dense_file_under_the_name_of_a_volume(volume, folder, capsys):
    odd = (folder / bold()).rename(folder / "odd.nii")
    assert "don't apply to grayordinates: odd.nii" in refused(
        "extract odd.nii --atlas atlas-Fine_dseg.nii.gz --out out", capsys
    )
    (folder / ATLAS).rename(folder / "atlas.nii")
    assert run(f"extract {odd} --atlas atlas.nii --out out") == 0
    assert table("odd_atlas-atlas_stat-mean_timeseries").shape == (N, 5)


def test_a_folder_of_the_other_kind(volume, capsys):
    assert "v has no *_bold.dtseries.nii in sub-*" in refused(f"cohort v out participant --atlas {ATLAS}", capsys)
    message = refused("cohort d out participant --atlas atlas-Fine_dseg.nii.gz", capsys)
    assert "It has *_bold.dtseries.nii, for atlases of grayordinates (.dlabel.nii)." in message


def test_a_compressed_series(folder, capsys):
    import gzip

    path = folder / bold()
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert run(COHORT) == 1
    assert "bold.dtseries.nii.gz isn't a .nii file: CIFTI-2 files aren't compressed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--smoothing-fwhm 6", "smoothing_fwhm=6.0 has no meaning for grayordinates: smoothing needs the surfaces: "),
        ("--confounds-strategy ica_aroma", "but fMRIPrep makes only volumes *_desc-smoothAROMAnonaggr_bold. Choose"),
        ("--seeds s.tsv --cifti", "Give two commands, one for each kind."),
    ],
)
def test_options_without_meaning(options, message, folder, capsys):
    (folder / "s.tsv").write_text("x\ty\tz\n1\t2\t3\n")
    assert message in refused(f"{COHORT} {options}", capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--resampling-target labels", "resampling_target='labels' has no meaning for grayordinates"),
        (
            "--mask atlas-Fine_dseg.nii.gz",
            "mask_img='{folder}/atlas-Fine_dseg.nii.gz' has no meaning for grayordinates",
        ),
        ("--label-map a b", "--label-map: expected one for each --atlas, got 2 for 1"),
        ("--label-map b", f"{{folder}}/{ATLAS} has no map called 'b'. Its maps: 0 'a'."),
    ],
)
def test_options_of_extract_without_meaning(options, message, volume, folder, capsys):
    assert message.format(folder=folder) in refused(f"extract {bold()} --atlas {ATLAS} --out out {options}", capsys)


@pytest.mark.parametrize("atlas", ["atlas-Fine_dseg.nii.gz", "maps.dscalar.nii"])
def test_parcels_of_something_else(atlas, volume, folder, capsys):
    assert refused(f"extract {bold()} --atlas {atlas} --cifti --out out", capsys) == (
        f"CIFTI-2 files (--cifti) are made of dense labels (.dlabel.nii), got {folder / atlas}."
    )


def test_several_maps_without_a_choice(folder, capsys):
    assert refused("cohort d out participant --atlas two.dlabel.nii", capsys) == (
        f"{folder}/two.dlabel.nii has 2 maps: choose one with label_map (--label-map), by name or index. Its maps: "
        "0 'a', 1 'Yeo 7'."
    )


@pytest.mark.parametrize("atlas", ["atlas-Fine_dseg.nii.gz", "maps.dscalar.nii"])
def test_a_label_map_of_something_else(atlas, volume, folder, capsys):
    assert refused(f"extract {bold()} --atlas {atlas} --label-map 0 --out out", capsys) == (
        f"{folder / atlas} isn't a file of dense labels. Expected no label map, got 0."
    )


def test_from_python_a_run_of_the_other_kind_is_its_own_failure(volume, folder):
    configuration = Configuration((AtlasFile(ATLAS),), folder / "out")
    assert configuration.grayordinates
    record = write_run(configuration, Run(volume))
    assert record.status == "failed"
    assert "don't apply to volumes" in record.error


# HCP's layout, by a list of runs


def hcp(folder, lines, header="bold\tconfounds\tname"):
    results = folder / "100307/MNINonLinear/Results/rfMRI_REST1_LR"
    results.mkdir(parents=True)
    (folder / bold()).rename(results / "rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii")
    Path("runs.tsv").write_text("\n".join([header, *lines]) + "\n")
    return results / "rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii"


def test_hcp(folder):
    path = "100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii"
    found = hcp(folder, [f"{path}\t{confounds()}\tsub-100307_task-REST1_acq-LR_space-fsLR_den-91k"])
    assert run(f"cohort runs.tsv out participant --atlas {ATLAS} --confounds-columns csf") == 0
    name = "sub-100307/func/sub-100307_task-REST1_acq-LR_space-fsLR_atlas-Toy_den-91k_stat-mean_timeseries"
    masker = NiftiLabelsMasker(ATLAS, reports=False)
    removed = pd.read_table(confounds(), na_values="n/a")[["csf"]]
    np.testing.assert_allclose(table(name), masker.fit_transform(found, confounds=removed), rtol=1e-6)


def test_hcp_as_in_the_readme(folder):
    text = Path(__file__).parents[1].joinpath("README.md").read_text()
    (lines,) = (block for block in re.findall("(?:^    .*\n)+", text, re.MULTILINE) if "MNINonLinear" in block)
    assert lines.count("\n") == 6
    for session in ("rfMRI_REST1_LR", "tfMRI_WM_RL"):
        results = folder / "HCP/100307/MNINonLinear/Results" / session
        results.mkdir(parents=True)
        for name in ("Atlas_MSMAll_hp2000_clean", "Atlas_MSMAll", "Atlas"):
            shutil.copy(bold(), results / f"{session}_{name}.dtseries.nii")
    (folder / ATLAS).rename("Glasser.dlabel.nii")
    lines = lines.replace("gpumask cohort", f"{shlex.quote(sys.executable)} -m gpumask cohort --device cpu")
    subprocess.run(["sh", "-euc", lines.replace("OUT_DIR", "out")], check=True, capture_output=True)
    found = {path.name for path in Path("out/sub-100307/func").glob("*timeseries.tsv")}
    assert found == {
        f"sub-100307_task-{task}_space-fsLR_atlas-Glasser_den-91k_stat-mean_timeseries.tsv"
        for task in ("rfMRIREST1LR", "tfMRIWMRL")
    }


def test_hcps_motion(folder, capsys):
    """Movement_Regressors.txt has 12 columns without names: position in mm and degrees, and the derivatives."""
    results = "100307/MNINonLinear/Results/rfMRI_REST1_LR"
    name = "sub-100307_task-rfMRIREST1LR_space-fsLR_den-91k"
    found = hcp(
        folder,
        [f"{results}/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii\t{results}/Movement_Regressors.txt\t{name}"],
    )
    motion = np.cumsum(np.random.default_rng(3).normal(size=(N, 6)), axis=0) * 0.05
    motion = np.hstack([motion, np.diff(motion, axis=0, prepend=motion[:1])])
    text = "".join("".join(f"{x:10.6f} " for x in row) + "\n" for row in motion)
    Path(results, "Movement_Regressors.txt").write_text(text)
    assert run(f"cohort runs.tsv out participant --atlas {ATLAS} --confounds-columns *") == 0
    removed = np.array([line.split() for line in text.splitlines()], float)
    stem = "out/sub-100307/func/sub-100307_task-rfMRIREST1LR_space-fsLR_atlas-Toy_den-91k_stat-mean_timeseries"
    signals = NiftiLabelsMasker(ATLAS, reports=False).fit_transform(found, confounds=removed)
    np.testing.assert_allclose(pd.read_table(f"{stem}.tsv"), signals, rtol=1e-6)
    assert json.loads(Path(f"{stem}.json").read_text())["NuisanceParameters"] == [str(k) for k in range(12)]
    capsys.readouterr()
    assert run(f"extract {found} --atlas {ATLAS} --confounds {results}/Movement_Regressors.txt --out single") == 0
    (single,) = Path("single").glob("*timeseries.tsv")
    np.testing.assert_allclose(pd.read_table(single), signals, rtol=1e-6)
    # A row that is lost is noticed.
    Path(results, "Movement_Regressors.txt").write_text(text[text.index("\n") + 1 :])
    assert run(f"cohort runs.tsv other participant --atlas {ATLAS} --confounds-columns *") == 1
    assert f"Movement_Regressors.txt has {N - 1} rows, but {found} has {N} volumes." in capsys.readouterr().err


def test_hcp_without_a_name(folder):
    hcp(
        folder,
        ["100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii"],
        "bold",
    )
    assert run(f"cohort runs.tsv out participant --atlas {ATLAS}") == 0
    assert table("rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean_atlas-Toy_stat-mean_timeseries").shape == (N, 5)


def test_a_mask_in_the_list(volume, folder, capsys):
    mask = volume.replace("preproc_bold", "brain_mask")
    path = hcp(
        folder,
        [
            f"100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii\t{mask}\tx"
        ],
        "bold\tmask\tname",
    )
    assert refused(f"cohort runs.tsv out participant --atlas {ATLAS}", capsys) == (
        f"{path} has grayordinates, to which no mask of volumes applies: {mask}. Give the run without a mask."
    )


# Files that lie


def test_a_repetition_time_in_milliseconds_in_the_header(folder, capsys):
    image = nib.load(bold())
    data = values(image)
    dense.save(dense.series_image(data, image.header.get_axis(1), 2000.0), folder / bold())
    assert run(f"{COHORT} --low-pass 0.1") == 1
    sources = f"2 s in {folder}/{bold().replace('.dtseries.nii', '.json')}, 2000 s in the header of {folder}/{bold()}."
    assert f"Sources of the repetition time contradict each other: {sources}" in capsys.readouterr().err


def test_a_header_in_milliseconds_by_its_exponent_agrees(folder, capsys):
    path = folder / bold()
    before = path.read_bytes()
    image = nib.load(path)
    series = image.header.matrix.get_index_map(0)
    series.series_exponent, series.series_step = -3, 2000.0
    dense.save(nib.Cifti2Image(values(image), image.header, image.nifti_header), path)
    assert path.read_bytes() != before
    assert run(f"{COHORT} --low-pass 0.1") == 0
    assert "repetition time" not in capsys.readouterr().err


def test_a_header_in_hertz_isnt_a_source(folder, capsys):
    image = nib.load(bold())
    image.header.matrix.get_index_map(0).series_unit = "HERTZ"
    dense.save(nib.Cifti2Image(values(image), image.header, image.nifti_header), folder / bold())
    (folder / bold().replace(".dtseries.nii", ".json")).unlink()
    assert run(f"{COHORT} --low-pass 0.1") == 1
    assert f"neither the metadata nor the header of {folder}/{bold()} has one" in capsys.readouterr().err


def test_another_mesh(folder, capsys):
    axis = dense.surface([1, 2, 3, 4], n_vertices=99)
    dense.save(dense.labels_image([1, 1, 2, 2], axis), folder / ATLAS)
    assert run(COHORT) == 1
    message = capsys.readouterr().err
    assert message.count("have different meshes: the surface CIFTI_STRUCTURE_CORTEX_LEFT has 60 vertices in the") == 3
    assert f"{folder}/{bold()} and {folder}/{ATLAS} have different meshes" in message


def test_confounds_of_another_length(folder, capsys):
    pd.read_table(confounds())[:-1].to_csv(confounds(), sep="\t", index=False)
    assert run(f"{COHORT} --confounds-columns csf") == 1
    assert f"has {N - 1} rows, but {folder}/{bold()} has {N} volumes" in capsys.readouterr().err


def test_a_time_point_without_data(folder, capsys):
    image = nib.load(bold())
    data = values(image)
    data[5], data[6, :3], data[9] = np.nan, np.inf, 0
    dense.save(dense.series_image(data, image.header.get_axis(1), T_R), folder / bold())
    assert run(COHORT) == 1
    assert f"{folder}/{bold()}: only NaN, infinite values and 0 in volume 5, 9." in capsys.readouterr().err
    data[5], data[9] = data[4], data[4]
    dense.save(dense.series_image(data, image.header.get_axis(1), T_R), folder / bold())
    assert run(COHORT) == 0
    assert "NaN or infinite grayordinates were excluded" in capsys.readouterr().err
    np.testing.assert_allclose(table(FILE.format("mean_timeseries")), signals_by_definition()[0], rtol=1e-6)


def test_labels_without_a_row_or_a_name(folder, capsys):
    labels, axis = labels_of()
    tables = [{0: ("???", (1, 1, 1, 0)), 1: ("one", (1, 0, 0, 1)), 2: (" ", (1, 0, 0, 1)), 3: ("NA", (0, 1, 0, 1))}]
    dense.save(dense.labels_image(labels, axis, tables=tables), folder / ATLAS)
    assert run(COHORT) == 0
    assert list(table(FILE.format("mean_timeseries"))) == ["one", "unknown [2]", "NA", "unknown [4]", "unknown [5]"]
    assert f"The label table of {folder}/{ATLAS}" in capsys.readouterr().err
