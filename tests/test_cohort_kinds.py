"""Atlases of all kinds in the commands: label images, maps and seeds; alone, together and again."""

import json
import pickle
import re
import shlex
import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import NiftiMapsMasker, cli
from gpumask.bids import find_runs
from gpumask.cohort import atlases
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.images.maps import Maps, load_maps

from . import cohorts
from .helpers import save

SHAPE, SIZE = (9, 10, 8), 3.0
AFFINE = np.diag([SIZE, SIZE, SIZE, 1.0])
SEEDS = pd.DataFrame(
    {"x": [6.0, 15.4, 20.0], "y": [9.0, 12.0, 21.3], "z": [9.0, 12.0, 15.0], "name": ["a", "b", "Node"]}
)
COHORT = "d out participant --atlas atlas-Toy_dseg.nii.gz net=maps.nii.gz --seeds pts=seeds.tsv --radius 4"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory with two runs, a label image, overlapping maps (and finer ones) and seeds."""
    monkeypatch.chdir(tmp_path)
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    cohorts.make_atlases(tmp_path)
    rng = np.random.default_rng(1)
    weights = rng.uniform(0.1, 1, (*SHAPE, 3)).astype("f4")
    weights[:4, ..., 0] = weights[3:7, ..., 1] = weights[:6, ..., 2] = 0
    save(tmp_path / "maps.nii.gz", weights, AFFINE)
    pd.DataFrame({"index": [1, 2, 3], "name": ["v", "w", "v"]}).to_csv("maps.tsv", sep="\t", index=False)
    fine = np.kron(weights[..., :2], np.ones((2, 2, 2, 1), "f4"))
    save(tmp_path / "fine.nii.gz", fine, np.diag([1.5, 1.5, 1.5, 1.0]))
    SEEDS.to_csv("seeds.tsv", sep="\t", index=False)
    return tmp_path


def run(line):
    return cli.main([*shlex.split(line), "--device", "cpu"])


def bold(k=0):
    return sorted(map(str, cohorts.Path("d").rglob("*_bold.nii.gz")))[k]


def volumes(k=0):
    """The voxels of a run: shape (n_volumes, n_voxels), in C order."""
    data = np.asarray(nib.load(bold(k)).dataobj, dtype=float)
    return data.reshape(-1, data.shape[-1]).T


def weights():
    return np.asarray(nib.load("maps.nii.gz").dataobj, dtype=float).reshape(-1, 3)


def brain(k=0):
    return np.asarray(nib.load(bold(k).replace("preproc_bold", "brain_mask")).dataobj).astype(bool).ravel()


def table(name, out="out", k=0):
    """The table of a run whose name has a part, with n/a as NaN."""
    found = sorted(path for path in cohorts.Path(out).rglob(f"*{name}*.tsv") if not path.name.startswith("group_"))
    return pd.read_table(found[k], na_values="n/a")


def in_spheres(radius):
    """Voxels of the spheres, by their distances: bool, shape (n_seeds, n_voxels)."""
    at = np.indices(SHAPE).reshape(3, -1).T * SIZE
    seeds = SEEDS[["x", "y", "z"]].to_numpy()
    distances = np.linalg.norm(at[None] - seeds[:, None], axis=2)
    return (distances <= radius) | (distances == distances.min(axis=1, keepdims=True))


def test_extract_maps(capsys):
    assert run(f"extract {bold()} --atlas maps.nii.gz --out out") == 0
    found = table("_atlas-maps_stat-leastsquares_timeseries")
    expected = np.linalg.lstsq(weights(), volumes().T, rcond=None)[0].T
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-4)
    assert list(found) == ["v [0]", "w", "v [2]"]
    assert capsys.readouterr().err.splitlines() == [
        f"maps.nii.gz: warning: {cohorts.Path.cwd()}/maps.tsv has several regions called v. Their columns have the "
        "label too: 'v [0]'."
    ]
    sidecar = json.loads(next(cohorts.Path("out").rglob("*_timeseries.json")).read_text())
    assert (sidecar["MaskerParameters"]["kind"], sidecar["MaskerParameters"]["strategy"]) == ("maps", "least_squares")
    assert "background_label" not in sidecar["MaskerParameters"]
    condition = np.linalg.cond(weights())
    assert sidecar["Plan"][-1] == (
        f"least squares: one matrix after sums over the maps; rank 3 of 3, condition {condition:.2g}"
    )
    assert [(one["index"], one["name"]) for one in sidecar["Regions"]] == [(0, "v [0]"), (1, "w"), (2, "v [2]")]
    assert [one["voxels"] for one in sidecar["Regions"]] == (weights() != 0).sum(axis=0).tolist()


def test_extract_weighted_means_of_maps(folder, capsys):
    (folder / "maps.tsv").unlink()
    assert run(f"extract {bold()} --maps-strategy weighted_mean --atlas maps.nii.gz --out out") == 0
    found = table("_stat-weightedmean_timeseries")
    np.testing.assert_allclose(found.to_numpy(), volumes() @ weights() / weights().sum(axis=0), rtol=1e-6)
    assert list(found) == ["0", "1", "2"]
    assert capsys.readouterr().err == (
        f"maps.nii.gz: warning: {folder}/maps.nii.gz: no look-up table found: maps are named by their numbers, from "
        "0.\n"
    )


@pytest.mark.parametrize(("options", "radius"), [("", 0), ("--radius 4", 4), ("--radius 0", 0)])
def test_extract_seeds(options, radius):
    assert run(f"extract {bold()} --seeds seeds.tsv {options} --out out") == 0
    found = table("_atlas-seeds_stat-mean_timeseries")
    expected = [volumes()[:, voxels].mean(axis=1) for voxels in in_spheres(radius)]
    np.testing.assert_allclose(found.to_numpy(), np.transpose(expected), rtol=1e-6)
    assert list(found) == ["a", "b", "Node [2]"]


def test_radii_of_the_table_come_first(capsys):
    SEEDS.assign(radius=["5", "n/a", "0"]).to_csv("own.tsv", sep="\t", index=False)
    assert run(f"extract {bold()} --strategy median --seeds Own=own.tsv --radius 4 --out out") == 0
    spheres = [in_spheres(5)[0], in_spheres(4)[1], in_spheres(0)[2]]
    expected = [np.median(volumes()[:, voxels], axis=1) for voxels in spheres]
    np.testing.assert_allclose(table("_atlas-Own_stat-median").to_numpy(), np.transpose(expected), rtol=1e-6)


def test_overlapping_spheres_are_an_error_unless_allowed(capsys):
    line = f"extract {bold()} --seeds seeds.tsv --radius 9 --out out"
    assert run(line) == 1
    assert "Use a smaller radius, or allow_overlap=True (--allow-overlap)." in capsys.readouterr().err
    assert run(f"{line} --allow-overlap") == 0
    expected = [volumes()[:, voxels].mean(axis=1) for voxels in in_spheres(9)]
    np.testing.assert_allclose(table("_timeseries").to_numpy(), np.transpose(expected), rtol=1e-6)


def test_maps_of_another_grid_and_a_mask():
    mask = bold().replace("preproc_bold", "brain_mask")
    line = f"extract {bold()} --atlas fine.nii.gz --mask {mask} --smoothing-fwhm 4 --detrend --out"
    assert run(f"{line} data") == 0
    assert run(f"{line} labels --resampling-target labels") == 0
    for target in ("data", "labels"):
        masker = NiftiMapsMasker(
            "fine.nii.gz", mask, smoothing_fwhm=4, detrend=True, device="cpu", standardize_confounds=True,
            resampling_target=target.replace("labels", "maps"),
        )  # fmt: skip
        with warnings.catch_warnings(category=UserWarning, action="ignore"):  # that runs are resampled
            expected = masker.fit(bold()).transform(bold())
        np.testing.assert_allclose(table("_timeseries", target).to_numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_mixed_cohort(capsys):
    pytest.importorskip("pyarrow")
    pytest.importorskip("matplotlib")
    assert run(f"cohort {COHORT} --figures --store s.parquet --min-coverage 0") == 0
    for k in range(2):
        inside = brain(k)
        amplitudes = np.linalg.lstsq(weights()[inside], volumes(k)[:, inside].T, rcond=None)[0].T
        np.testing.assert_allclose(table("_atlas-net_stat-leastsquares", k=k).to_numpy(), amplitudes, rtol=1e-4)
        shares = weights()[inside].sum(axis=0) / weights().sum(axis=0)
        np.testing.assert_allclose(table("_atlas-net_stat-coverage", k=k)["coverage"], shares, rtol=1e-6)
        spheres = in_spheres(4)
        means = [volumes(k)[:, voxels & inside].mean(axis=1) for voxels in spheres]
        found = table("_atlas-pts_stat-mean", k=k)
        np.testing.assert_allclose(found.to_numpy(), np.transpose(means), rtol=1e-6)
        shares = (spheres & inside).sum(axis=1) / spheres.sum(axis=1)
        np.testing.assert_allclose(table("_atlas-pts_stat-coverage", k=k)["coverage"], shares, rtol=1e-6)
        relmat = table("_atlas-pts_stat-pearsoncorrelation", k=k).set_index("Node")
        assert list(relmat) == list(relmat.index) == ["a", "b", "Node [2]"]
        np.testing.assert_allclose(relmat.to_numpy(), np.corrcoef(means), rtol=1e-4, atol=1e-5)
    figures = sorted(path.name.split("_atlas-")[1] for path in cohorts.Path("out/figures").iterdir())
    expected = 2 * [f"{one}_timeseries.png" for one in ("Toy_stat-mean", "net_stat-leastsquares", "pts_stat-mean")]
    assert figures == sorted(expected)
    stores = {path.name: pd.read_parquet(path) for path in cohorts.Path().glob("*.parquet")}
    assert sorted(stores) == [
        *("s_atlas-Toy_stat-mean.parquet", "s_atlas-net_stat-leastsquares.parquet", "s_atlas-pts_stat-mean.parquet"),
    ]
    assert set(stores["s_atlas-pts_stat-mean.parquet"]) >= {"a", "b", "Node [2]"}
    page = cohorts.Path("out/cohort.html").read_text("utf-8")
    assert all(f"<h3>{name}</h3>" in page for name in ("Toy", "net", "pts"))


def test_mixed_equals_each_alone_and_again_is_skipped(capsys):
    assert run(f"cohort {COHORT} --run-id 1") == 0
    together = cohorts.outputs(cohorts.Path("out"))
    for options in ("--atlas atlas-Toy_dseg.nii.gz", "--seeds pts=seeds.tsv --radius 4", "--atlas net=maps.nii.gz"):
        assert run(f"cohort d alone participant {options} --run-id 1") == 0
    alone = cohorts.outputs(cohorts.Path("alone"))
    of_all = "dataset_description.json"  # has the hash of the last command
    assert {**together, of_all: b""} == {**alone, of_all: b""}
    capsys.readouterr()
    assert run(f"cohort {COHORT} --run-id 1") == 0
    assert "0 done, 1 skipped (done before)" in capsys.readouterr().out
    assert cohorts.outputs(cohorts.Path("out")) == together


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("--radius 5", "_atlas-pts_stat-mean_timeseries.tsv was made with radius 4.0, now 5.0"),
        ("", "_atlas-pts_stat-mean_timeseries.tsv was made with radius 4.0, now None"),
        (
            "--radius 4 --maps-strategy weighted_mean",
            "_atlas-net_stat-coverage_bold.tsv was made with strategy 'least_squares', now 'weighted_mean'",
        ),
        ("--radius 4 --strategy sum", "_atlas-Toy_stat-coverage_bold.tsv was made with strategy 'mean', now 'sum'"),
    ],
)
def test_changed_options_in_an_old_folder_are_2(capsys, change, difference):
    assert run(f"cohort {COHORT}") == 0
    capsys.readouterr()
    assert run(f"cohort {COHORT.replace('--radius 4', '')} {change}") == 2
    assert difference in capsys.readouterr().err


def test_other_kind_of_the_same_name_is_2(capsys):
    assert run("cohort d out participant --atlas one=atlas-Toy_dseg.nii.gz") == 0
    capsys.readouterr()
    assert run("cohort d out participant --seeds one=seeds.tsv") == 2
    changes = "another atlas, look-up table or mask; kind None, now 'seeds'; background_label 0, now None"
    assert f"_timeseries.tsv was made with {changes}. " in capsys.readouterr().err


def test_changed_seeds_redo_nothing_silently(folder, capsys):
    assert run(f"cohort {COHORT}") == 0
    SEEDS.assign(x=6.0).to_csv("seeds.tsv", sep="\t", index=False)
    assert run(f"cohort {COHORT}") == 2
    assert "was made with another atlas, look-up table or mask. " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["maps.nii.gz", "maps.tsv", "seeds.tsv"])
def test_file_that_changed_before_it_was_loaded(folder, name):
    files = AtlasFile("maps.nii.gz", name="net"), AtlasFile("seeds.tsv", name="pts", kind="seeds", radius=4.0)
    configuration = pickle.loads(pickle.dumps(Configuration(files, folder / "out", device="cpu")))
    assert [atlas.kind for atlas in configuration.atlases] == ["maps", "seeds"]
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(folder / name))} has changed since this command was started"
    ):
        atlases.load(configuration)


def test_lost_regions_have_a_column_of_na(folder):
    """A map outside the mask, one that is mostly cut off, and a seed outside the field of view."""
    data = np.zeros((*SHAPE, 3), "f4")
    data[2:5, 2:6, 2:6, 0] = 1
    data[:, :, 0, 1] = 1
    data[3:6, 3:6, :2, 2] = [1, 0.5]
    save(folder / "lost.nii.gz", data, AFFINE)
    pd.DataFrame({"x": [12.0, 900.0], "y": [12.0, 0], "z": [12.0, 0]}).to_csv("far.tsv", sep="\t", index=False)
    assert run("cohort d out participant --atlas lost.nii.gz --seeds far.tsv --no-relmat") == 0
    maps, seeds = table("_atlas-lost_stat-leastsquares"), table("_atlas-far_stat-mean")
    assert maps.isna().all().tolist() == [False, True, True]
    assert seeds.isna().all().to_dict() == {"seed0": False, "seed1": True}
    np.testing.assert_allclose(table("_atlas-lost_stat-coverage")["coverage"], [1, 0, 1 / 3], rtol=1e-6)
    whole = np.linalg.lstsq(data.reshape(-1, 3)[brain()], volumes()[:, brain()].T, rcond=None)[0]
    np.testing.assert_allclose(maps["0"], whole[0], rtol=1e-4)


def test_infinite_voxels_of_maps_count_as_0_and_of_seeds_are_excluded(folder):
    data = nib.load(bold()).get_fdata(dtype="f4")
    data[2, 3, 3] = np.inf  # in the sphere of seed a, and in maps
    save(folder / "run.nii.gz", data, AFFINE, cohorts.T_R)
    pd.DataFrame({"bold": ["run.nii.gz"]}).to_csv("list.tsv", sep="\t", index=False)
    assert run("cohort list.tsv out participant --atlas maps.nii.gz --seeds seeds.tsv --radius 4 --no-relmat") == 0
    values = data.reshape(-1, data.shape[-1]).T.astype(float)
    zeroed = np.where(np.isfinite(values), values, 0)
    expected = np.linalg.lstsq(weights(), zeroed.T, rcond=None)[0].T
    np.testing.assert_allclose(table("_stat-leastsquares").to_numpy(), expected, rtol=1e-4)
    sphere = values[:, in_spheres(4)[0] & np.isfinite(values).all(axis=0)]
    np.testing.assert_allclose(table("_stat-mean")["a"], sphere.mean(axis=1), rtol=1e-6)
    record = json.loads((folder / "out/logs/run.json").read_text())
    assert record["warnings"] == [
        "Non-finite values detected. These values will be replaced with zeros.",
        "NaN or infinite voxels were excluded from the regions' statistics.",
    ]


def test_maps_are_resampled_once_for_all_masks(folder, monkeypatch):
    grids, resampled = [], Maps.resampled

    def counted(self, grid, **options):
        grids.append(grid.shape)
        return resampled(self, grid, **options)

    monkeypatch.setattr(Maps, "resampled", counted)
    runs, _ = find_runs(folder / "d")
    configuration = Configuration((AtlasFile("fine.nii.gz"),), folder / "out", {"min_coverage": 0.0}, device="cpu")
    assert [record.status for record in run_cohort(configuration, runs)] == ["done"] * 2
    assert grids == [SHAPE]
    for one in runs:
        masker = NiftiMapsMasker("fine.nii.gz", one.mask, device="cpu").fit(one.path)
        name = cohorts.Path(one.path).name.split("_space")[0]
        expected = masker.transform(one.path)
        found = pd.read_table(next((folder / "out").rglob(f"{name}*_timeseries.tsv")))
        np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-6)


def test_figures_show_the_largest_map():
    maps = load_maps("maps.nii.gz")
    found = maps.largest()
    expected = np.where((weights() != 0).any(axis=1), weights().argmax(axis=1) + 1, 0)
    np.testing.assert_array_equal(found.ravel(), expected)
    negative = nib.Nifti1Image(np.array([[[[1.0, -2]], [[0, -0.5]], [[0, 0]]]]), np.eye(4))
    assert load_maps(negative).largest().ravel().tolist() == [2, 2, 0]


def test_voxels_of_ill_conditioned_maps_are_their_own(folder):
    """Their sums are over a dense basis, of which each vector has all voxels."""
    data = np.zeros((*SHAPE, 2), "f4")
    data[2:6, 2:6, 2:6] = np.random.default_rng(0).uniform(1, 2, (4, 4, 4, 1))
    data[2, 2, 2, 1] *= 1.01
    data[5, 5, 5, 0] = 0
    data[5, 5, 5, 1] = 1e-3
    save(folder / "twins.nii.gz", data, AFFINE)
    assert run(f"extract {bold()} --atlas twins.nii.gz --out out") == 0
    sidecar = json.loads(next(cohorts.Path("out").rglob("*_timeseries.json")).read_text())
    assert [one["voxels"] for one in sidecar["Regions"]] == [63, 64]


def test_dry_run(folder, capsys):
    (folder / "atlas-Toy_dseg.tsv").unlink()
    assert run(f"cohort {COHORT} --atlas fine.nii.gz --dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        f"atlas Toy: {folder}/atlas-Toy_dseg.nii.gz, names by labels",
        f"atlas net: {folder}/maps.nii.gz, names by {folder}/maps.tsv",
        f"atlas fine: {folder}/fine.nii.gz, names by numbers",
        f"atlas pts: {folder}/seeds.tsv, names by {folder}/seeds.tsv",
        "2 to do, 0 done, 0 unusable",
    ]
    assert not (folder / "out").exists()


@pytest.mark.parametrize("command", ["extract {bold}", "cohort d out participant"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--atlas maps.nii.gz --radius 4", "--radius: requires --seeds"),
        ("--atlas maps.nii.gz --allow-overlap", "--allow-overlap: requires --seeds"),
        ("--seeds seeds.tsv --radius=-1", "argument --radius: expected a positive number, got '-1'"),
        ("--seeds seeds.tsv --radius nan", "argument --radius: expected a positive number, got 'nan'"),
        ("--seeds no.tsv", "--seeds: no such file: no.tsv"),
        ("--seeds empty.tsv", "{folder}/empty.tsv is empty. Expected a table of seeds with the columns 'x', 'y' and"),
        ("--seeds head.tsv", "{folder}/head.tsv has no seed. Expected a table of seeds"),
        ("--seeds maps.tsv", "{folder}/maps.tsv has no column 'x', 'y', 'z'; it has ['index', 'name']. Expected"),
        ("--seeds seeds.tsv --lut maps.tsv", "--lut: expected one for each --atlas, got 1 for 0"),
        ("--seeds seeds.tsv --maps-strategy least_squares", "--maps-strategy: requires a 4D image of maps, got seeds"),
        ("--atlas maps.nii.gz --strategy mean", "--strategy: requires a label image, or --seeds, got maps"),
        (
            "--seeds own.tsv --radius 4",
            "{folder}/own.tsv has a radius for each seed, so radius=4 (--radius) has no use",
        ),
        ("--atlas seeds.tsv", "{folder}/seeds.tsv can't be read as an image"),
        ("--atlas maps.nii.gz --seeds maps=seeds.tsv", "Expected one atlas or more, each with a name of its own, got"),
        (
            "--atlas maps.nii.gz --lut two.tsv",
            "{folder}/two.tsv has 2 rows with a name, but {folder}/maps.nii.gz has 3 maps. Expected a row per map, in "
            "their order.",
        ),
        (
            "--atlas maps.nii.gz --lut unordered.tsv",
            "{folder}/unordered.tsv: the index 1 isn't larger than the one before. Expected rows in the maps' order.",
        ),
        (
            "--seeds space-MNI152NLin6Asym_seeds.tsv",
            "/space-MNI152NLin6Asym_seeds.tsv is in the space MNI152NLin6Asym, ",
        ),
    ],
)
def test_wrong_usage_is_2_and_writes_nothing(folder, capsys, command, options, message):
    (folder / "empty.tsv").write_text("")
    (folder / "head.tsv").write_text("x\ty\tz\n")
    (folder / "two.tsv").write_text("index\tname\n0\ta\n1\tb\n")
    (folder / "unordered.tsv").write_text("index\tname\n2\ta\n1\tb\n3\tc\n")
    SEEDS.assign(radius=5).to_csv("own.tsv", sep="\t", index=False)
    SEEDS.to_csv("space-MNI152NLin6Asym_seeds.tsv", sep="\t", index=False)
    before = sorted(folder.rglob("*"))
    assert run(f"{command.format(bold=bold())} {options}") == 2
    out, err = capsys.readouterr()
    assert message.format(folder=folder) in err
    assert out == ""
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seeds seeds.tsv --background-label 0", "--background-label: requires a label image, got seeds"),
        (
            "--atlas maps.nii.gz --seeds seeds.tsv --background-label 3",
            "--background-label: requires a label image, got maps and seeds",
        ),
        (
            "--seeds seeds.tsv --resampling-target labels",
            "Seeds ({folder}/seeds.tsv) need resampling_target='data' (--resampling-target), got 'labels'.",
        ),
    ],
)
def test_wrong_usage_of_extract_is_2(folder, capsys, options, message):
    assert run(f"extract {bold()} {options}") == 2
    assert capsys.readouterr().err == f"gpumask extract: error: {message.format(folder=folder)}\n"


def test_a_run_as_an_atlas_is_doubted(folder, capsys):
    save(folder / "timed.nii.gz", np.asarray(nib.load("maps.nii.gz").dataobj), AFFINE, t_r=2.0)
    assert run("cohort d out participant --atlas timed.nii.gz --dry-run") == 0
    doubt = "timed.nii.gz has a repetition time of 2 s in its header. Is it a run, and not the maps of an atlas?"
    assert doubt in capsys.readouterr().err
    assert run("cohort d out participant --atlas net=maps.nii.gz --dry-run") == 0
    assert "repetition time" not in capsys.readouterr().err


def test_image_of_one_volume_in_4d_is_labels(folder):
    labels = nib.load("atlas-Toy_dseg.nii.gz")
    nib.Nifti1Image(np.asarray(labels.dataobj)[..., None], AFFINE).to_filename("four.nii.gz")
    assert run(f"extract {bold()} --atlas four.nii.gz atlas-Toy_dseg.nii.gz --background-label 10 --out out") == 0
    np.testing.assert_array_equal(table("_atlas-four_").to_numpy(), table("_atlas-Toy_").to_numpy())


def test_options_before_the_runs():
    assert run(f"extract --atlas maps.nii.gz --seeds seeds.tsv {bold()}") == 0


def test_files_of_a_configuration_that_do_not_fit(folder):
    with pytest.raises(ValueError, match=r"seeds.tsv is a table of seeds, which has their names\. Expected no look-up"):
        AtlasFile("seeds.tsv", "maps.tsv", kind="seeds")
    with pytest.raises(ValueError, match=r"maps.nii.gz isn't a table of seeds\. Expected no radius, got 3\.0\.$"):
        AtlasFile("maps.nii.gz", radius=3.0)
    with pytest.raises(ValueError, match="'kind' must be one of"):
        AtlasFile("maps.nii.gz", kind="map")
    with pytest.raises(ValueError, match="'maps_strategy' must be one of"):
        Configuration((AtlasFile("maps.nii.gz"),), folder, maps_strategy="sum")
