"""Several label images as one atlas in the commands: --atlas NAME=IMAGE+IMAGE."""

import html
import json
import pickle
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import cli
from gpumask.cohort import atlases, writer
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.combined_atlas import CombinedAtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.grayordinates import hemisphere_of
from gpumask.images.labels import load_atlas

from . import cohorts, dense, surfaces
from .helpers import save
from .test_combined_regions import AFFINE, FINE, SHAPE, boxes, reference

ROWS = {"cortex": {1: "Vis", 2: "Mot", 7: "Node"}, "sub": {1: "Tha", 2: "Vis", 3: "Cau"}}
COHORT = "cohort d out participant --atlas both=cortex.nii.gz+sub.nii.gz --min-coverage 0"
NAMES = ["Vis [1]", "Mot", "Node [7]", "Tha", "Vis [9]", "Cau"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory with two runs, and two label images with tables, on different grids, which overlap."""
    monkeypatch.chdir(tmp_path)
    cohorts.make_cohort(tmp_path / "d", 2, bad=False, n_volumes=20)
    images = {"cortex": (boxes(SHAPE, 0, [1, 2, 7]), AFFINE), "sub": (boxes((14, 15, 10), 1, [1, 2, 3], "f4"), FINE)}
    for name, image in images.items():
        save(tmp_path / f"{name}.nii.gz", *image)
        write_table(name)
    return tmp_path


def write_table(name, rows=None):
    rows = rows or ROWS[name]
    table = pd.DataFrame({"index": list(rows), "name": list(rows.values())})
    table.to_csv(f"{name}.tsv", sep="\t", index=False)


def run(line):
    return cli.main([*shlex.split(line), "--device", "cpu"])


@pytest.fixture
def refused(capsys, monkeypatch):
    """Run a command that must exit 2 before an image is read; returns its message."""

    def refuse(line):
        monkeypatch.setattr(writer, "open_run", lambda path: pytest.fail(f"{path} was read"))
        assert run(line) == 2
        [message] = re.findall("error: (.*)", capsys.readouterr().err)
        return message

    return refuse


def table(name, out="out", **keywords):
    found = sorted(path for path in Path(out).rglob(f"*{name}*.tsv") if not path.name.startswith("group_"))
    return pd.read_table(found[0], na_values="n/a", **keywords)


def sidecar(name, out="out"):
    return json.loads(sorted(Path(out).rglob(f"*{name}*.json"))[0].read_text())


def bold():
    return sorted(map(str, Path("d").rglob("*_bold.nii.gz")))[0]


def test_outputs_equal_a_loop_over_voxels(folder, capsys):
    assert run(f"{COHORT} --store s.parquet --figures") == 0
    err = capsys.readouterr().err
    parts = [load_atlas(f"{name}.nii.gz") for name in ("cortex", "sub")]
    data = np.asarray(nib.load(bold()).dataobj, dtype=float)
    mask = np.asarray(nib.load(bold().replace("preproc_bold", "brain_mask")).dataobj).astype(bool)
    means, coverage = reference(parts, data, AFFINE, mask)
    keys = [(k, label) for k, name in enumerate(ROWS) for label in ROWS[name]]

    signals = table("stat-mean_timeseries")
    assert list(signals) == NAMES
    expected = np.column_stack([means.get(key, np.full(data.shape[-1], np.nan)) for key in keys])
    np.testing.assert_allclose(signals, expected, rtol=1e-6)
    shares = table("stat-coverage", index_col="Node")["coverage"]
    assert list(shares.index) == NAMES
    np.testing.assert_allclose(shares, [coverage[key] for key in keys], rtol=1e-6)
    matrix = table("pearsoncorrelation_relmat", index_col="Node")
    np.testing.assert_allclose(matrix, np.corrcoef(expected.T), atol=1e-6)

    content = sidecar("stat-mean_timeseries")
    regions = content["Regions"]
    assert [region["name"] for region in regions] == NAMES
    assert [region["index"] for region in regions] == [1, 2, 7, 8, 9, 10]
    assert [(region["atlas"], region["label"]) for region in regions] == [
        (f"{name}.nii.gz", label) for name in ROWS for label in ROWS[name]
    ]
    assert {type(region["label"]) for region in regions} == {int}
    assert [Path(source).name for source in content["Sources"][-4:]] == [
        "cortex.nii.gz", "cortex.tsv", "sub.nii.gz", "sub.tsv",
    ]  # fmt: skip
    plan = content["Plan"][-1]
    assert re.fullmatch(rf"\d+ voxels of {folder}/sub\.nii\.gz belong to regions of atlases named before it", plan)

    of_file = f"{folder}/sub.nii.gz"
    ids = f"{of_file} has labels that {folder}/cortex.nii.gz has too. Its regions have the ids 8 to 10: label + 7."
    assert ids in err
    overlap = rf"(\d+) of the (\d+) voxels with a label in {of_file} lie inside regions of {folder}/cortex"
    lost, total = map(int, re.search(overlap, err).groups())
    labels = np.asarray(nib.load("sub.nii.gz").dataobj)
    unmasked = reference(parts, data, AFFINE)[1]
    left = sum(unmasked[1, label] * (labels == label).sum() for label in (1, 2, 3))
    assert total == np.count_nonzero(labels)
    assert lost >= total - round(left) > 0  # some of the voxels may lie outside the runs
    page = Path("out/cohort.html").read_text()
    assert html.escape(re.search(overlap, err)[0]) in page.partition("<h2 id='coverage'>")[2].partition("<h2")[0]
    assert f"{folder}/cortex.nii.gz + {folder}/sub.nii.gz has several regions called Vis. Their columns have the" in err
    assert list(pd.read_parquet("s.parquet")).count("Tha") == 1


@pytest.mark.parametrize("cleaning", ["", "--detrend --standardize psc"])
def test_regions_without_overlap_have_the_numbers_of_their_part_alone(cleaning):
    for out, image in (("both", "cortex.nii.gz+sub.nii.gz"), ("cortex", "cortex.nii.gz"), ("sub", "sub.nii.gz")):
        assert run(f"extract {bold()} --atlas {image} --out {out} {cleaning}") == 0
    whole, regions, n_equal = table("_timeseries", "both"), sidecar("_timeseries", "both")["Regions"], 0
    for name in ROWS:
        alone, own = table("_timeseries", name), sidecar("_timeseries", name)["Regions"]
        for region, before in zip((r for r in regions if r["atlas"] == f"{name}.nii.gz"), own, strict=True):
            signals, expected = whole[region["name"]], alone[before["name"]]
            if region["voxels"] == before["voxels"]:
                n_equal += 1
                # Cleaning multiplies matrices: BLAS may sum in another order for another number of columns.
                np.testing.assert_allclose(
                    signals, expected, rtol=1e-12 if cleaning else 0, atol=1e-12 * bool(cleaning)
                )
            else:
                assert not np.allclose(signals, expected)
    assert 3 < n_equal < 6


def test_page_and_paragraph_name_the_images():
    assert run(COHORT) == 0
    words = "cortex.nii.gz + sub.nii.gz as one atlas, where voxels that several label belong to the first"
    assert f"Regions are those of the atlas both (6 columns, {words})." in Path("out/logs/CITATION.md").read_text()
    assert f"labels of {words}, 6 columns: cortex.nii.gz (SHA-256 " in Path("out/cohort.html").read_text()


def test_config_repeats_the_command_from_anywhere(tmp_path, monkeypatch, capsys):
    assert run(f"{COHORT} --lut cortex.tsv+n/a --shard 1/1") == 0
    before = cohorts.outputs(Path("out"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(f"cohort {tmp_path}/d {tmp_path}/out participant --config ../out/logs/config.toml --shard 1/1") == 0
    assert "2 skipped (done before)" in capsys.readouterr().out
    assert cohorts.outputs(Path("../out")) == before


def test_dry_run_lists_the_images(folder, capsys):
    assert run(f"{COHORT} --dry-run") == 0
    at = f"{folder}/cortex"
    line = f"atlas both: {at}.nii.gz + {folder}/sub.nii.gz, names by {at}.tsv, {folder}/sub.tsv"
    assert line in capsys.readouterr().out


def test_configurations_can_be_sent_to_workers():
    parts = tuple(AtlasFile(f"{name}.nii.gz") for name in ROWS)
    configuration = Configuration((CombinedAtlasFile(parts),), "out")
    sent = pickle.loads(pickle.dumps(configuration))
    assert sent == configuration
    assert atlases.load(sent) is atlases.load(configuration)


def made(*names, **options):
    parts = [AtlasFile(name, **options) for name in names]
    return Configuration((CombinedAtlasFile(tuple(parts), "both"),), "out").made["both"]


def test_hash_is_of_the_content_and_order_of_all_parts():
    of_all = [made("cortex.nii.gz", "sub.nii.gz"), made("sub.nii.gz", "cortex.nii.gz")]
    for name in ROWS:
        Path(f"{name}.nii.gz").rename(f"moved-{name}.nii.gz")
        Path(f"{name}.tsv").rename(f"moved-{name}.tsv")
    moved = ("moved-cortex.nii.gz", "moved-sub.nii.gz")
    assert made(*moved) == of_all[0]  # paths don't count
    # The same files, but one more region is named.
    of_all += [made(*moved, lut="moved-cortex.tsv"), made(*moved, find_lut=False), made(*moved, background=2)]
    parts = AtlasFile(moved[0], "moved-cortex.tsv"), AtlasFile(moved[1], find_lut=False)
    of_all.append(Configuration((CombinedAtlasFile(parts, "both"),), "out").made["both"])
    write_table("moved-sub", ROWS["sub"] | {3: "Put"})
    of_all.append(made(*moved))
    save("moved-sub.nii.gz", boxes((14, 15, 10), 4, [1, 2, 3]), FINE)
    of_all.append(made(*moved))
    assert len(set(of_all)) == len(of_all)


def test_a_changed_part_makes_its_outputs_again(capsys):
    line = f"{COHORT} --atlas other=cortex.nii.gz --shard 1/1"  # without a page
    assert run(line) == 0
    before = cohorts.outputs(Path("out"))
    assert run(line) == 0
    assert "2 skipped (done before)" in capsys.readouterr().out
    save("sub.nii.gz", boxes((14, 15, 10), 4, [1, 2, 3]), FINE)
    assert run(line) == 2
    assert "was made with another atlas, look-up table or mask" in capsys.readouterr().err
    assert run(f"{line} --overwrite") == 0
    after = cohorts.outputs(Path("out"))
    changed = {name for name in before if before[name] != after[name]}
    assert {name for name in before if "_atlas-both_" in name and name.endswith("timeseries.tsv")} <= changed
    assert not any("_atlas-other_" in name for name in changed)


def test_a_part_changed_meanwhile_is_an_error():
    parts = tuple(AtlasFile(f"{name}.nii.gz") for name in ROWS)
    configuration = Configuration((CombinedAtlasFile(parts, "both"),), "out")
    write_table("sub", {1: "x", 2: "y", 3: "z"})
    with pytest.raises(ValueError, match=r"sub\.tsv has changed since this command was started"):
        atlases.load(configuration)


def test_parts_without_tables_are_named_by_ids(capsys):
    Path("sub.tsv").unlink()
    assert run("extract " + bold() + " --atlas cortex.nii.gz+sub.nii.gz --out x") == 0
    assert [*table("_timeseries", "x")][3:] == ["8", "9", "10"]
    assert "_atlas-cortexsub_" in next(Path("x").rglob("*.tsv")).name
    assert "sub.nii.gz: no look-up table found: regions are named by their ids." in capsys.readouterr().err


def test_extract_resamples_runs_to_parts_on_one_grid(refused):
    line = f"extract {bold()} --resampling-target labels --out x --atlas b=cortex.nii.gz+"
    assert re.fullmatch(
        r"\S+/cortex\.nii\.gz and \S+/sub\.nii\.gz have different grids, so runs can't be resampled to both\. Pass "
        r"resampling_target='data', or resample one of them first\.",
        refused(line + "sub.nii.gz"),
    )


def test_three_parts_and_another_atlas_in_one_read():
    save("third.nii.gz", boxes(SHAPE, 2, [40, 50]), AFFINE)
    assert run(COHORT.replace("sub.nii.gz", "third.nii.gz+sub.nii.gz cortex.nii.gz --shard 1/1")) == 0
    assert [*table("atlas-both_stat-mean")] == ["Vis [1]", "Mot", "Node [7]", "40", "50", "Tha", "Vis [52]", "Cau"]
    assert [*table("atlas-cortex_stat-mean")] == ["Vis", "Mot", "Node [7]"]
    same = table("atlas-cortex_stat-mean", dtype=str).to_numpy()
    assert (table("atlas-both_stat-mean", dtype=str).to_numpy()[:, :3] == same).all()


def test_little_overlap_of_one_part_is_said_unless_all_state_the_space(capsys):
    space = "tpl-MNI152NLin2009cAsym_atlas-{}_dseg.nii.gz".format
    away = AFFINE.copy()
    away[0, 3] = 18
    save(space("A"), boxes(SHAPE, 0, [1]), AFFINE)
    for name in (space("B"), "b.nii.gz"):
        save(name, np.full((9, 5, 5), 2, "i2"), away)
        assert run(f"extract {bold()} --atlas {space('A')}+{name} --out x --overwrite") == 0
        is_said = f"covers only 33% of the atlas {Path(name).absolute()}. Are they" in capsys.readouterr().err
        assert is_said == (name == "b.nii.gz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("cortex.nii.gz+no.nii.gz", "--atlas: no such file: no.nii.gz (in cortex.nii.gz+no.nii.gz)"),
        ("n=cortex.nii.gz+", "--atlas: expected an image before and after each +, got n=cortex.nii.gz+"),
        (
            "b=cortex.nii.gz+sub.nii.gz --lut sub.tsv",
            "--lut: expected one for each of the 2 images of b=cortex.nii.gz+sub.nii.gz, joined by +; got 1",
        ),
        ("cortex.nii.gz --lut cortex.tsv+sub.tsv", "--lut: expected one for cortex.nii.gz; got 2"),
        (
            "b=cortex.nii.gz+sub.nii.gz --label-map a+b+c",
            "--label-map: expected one for each of the 2 images of b=cortex.nii.gz+sub.nii.gz, joined by +; got 3",
        ),
        (
            "b=cortex.nii.gz+sub.nii.gz --label-map n/a+1",
            "{at}/sub.nii.gz isn't a file of dense labels. Expected no label map, got 1.",
        ),
        (
            "b=cortex.nii.gz+derivatives:desc-aseg",
            "--atlas: segmentations of each run (derivatives:) can't be combined with others, got "
            "b=cortex.nii.gz+derivatives:desc-aseg",
        ),
        (
            "cortex.nii.gz+maps.nii.gz",
            "{at}/maps.nii.gz has maps, but only label images can be combined. Give it as an atlas alone.",
        ),
        (
            "cortex.nii.gz+labels.dlabel.nii",
            "{at}/cortex.nii.gz + {at}/labels.dlabel.nii: {at}/labels.dlabel.nii is of grayordinates, and "
            "{at}/cortex.nii.gz of volumes. Combine files of one kind.",
        ),
        (
            "b=cortex.nii.gz+cortex.nii.gz",
            "Every region of {at}/cortex.nii.gz lies inside those of {at}/cortex.nii.gz, named before it. Name it "
            "first, or leave it out.",
        ),
        (
            "labels.dlabel.nii+labels.dlabel.nii --cifti",
            "CIFTI-2 files (--cifti) can't be made of a combined atlas: {at}/labels.dlabel.nii + {at}/labels.dlabel.nii"
            ". Give its images as separate atlases, or drop --cifti.",
        ),
        (
            "b=cortex.nii.gz+tpl-OASIS30ANTs_atlas-A_dseg.nii.gz",
            "{at}/tpl-OASIS30ANTs_atlas-A_dseg.nii.gz is in the space OASIS30ANTs",
        ),
    ],
)
def test_unusable_parts_exit_2(folder, refused, options, message):
    save(folder / "maps.nii.gz", np.ones((*SHAPE, 2), "f4"), AFFINE)
    save(folder / "tpl-OASIS30ANTs_atlas-A_dseg.nii.gz", boxes(SHAPE, 7, [1]), AFFINE)
    axis = dense.models()
    dense.save(dense.labels_image(np.arange(len(axis)) % 3, axis), folder / "labels.dlabel.nii")
    found = refused(f"cohort d out participant --atlas {options}")
    assert found.startswith(message.format(at=folder)) if "tpl-" in options else found == message.format(at=folder)
    assert not Path("out").exists()


def test_seeds_are_no_part(refused):
    Path("s.tsv").write_text("x\ty\tz\n1\t2\t3\n")
    assert refused("cohort d out participant --seeds s.tsv+s.tsv") == "--seeds: no such file: s.tsv+s.tsv"
    with pytest.raises(ValueError, match=r"s\.tsv has seeds, but only label images can be combined"):
        CombinedAtlasFile((AtlasFile("cortex.nii.gz"), AtlasFile("s.tsv", kind="seeds")))


def test_dense_labels_are_combined(folder, capsys):
    """A cortex and a subcortex, which have no grayordinate in common; the second of two maps."""
    axis, rng = dense.models(), np.random.default_rng(3)
    halves = [axis[axis.surface_mask], axis[~axis.surface_mask]]
    labels = [rng.integers(0, 3, (2, len(half))) for half in halves]
    tables = [dense.table(range(3), {1: name}) for name in ("Vis", "Tha")]
    for name, own, half, names in zip(("c", "s"), labels, halves, tables, strict=True):
        dense.save(dense.labels_image(own, half, ["a", "b"], [names, names]), folder / f"{name}.dlabel.nii")
    data = rng.normal(1000, 30, (20, len(axis))).astype("f4")
    dense.save(dense.series_image(data, axis, 2.0), folder / "run.dtseries.nii")
    assert run("extract run.dtseries.nii --atlas both=c.dlabel.nii+s.dlabel.nii --label-map a+1 --out x") == 0
    signals = table("_timeseries", "x")
    assert [*signals] == ["Vis", "Parcel 2 [2]", "Tha", "Parcel 2 [4]"]
    expected = [
        dense.by_definition(data, axis, own[number], half)[1]
        for number, own, half in zip((0, 1), labels, halves, strict=True)
    ]
    np.testing.assert_allclose(signals, np.hstack(expected), rtol=1e-6)
    assert run("extract run.dtseries.nii --atlas both=c.dlabel.nii+s.dlabel.nii --label-map a+2 --out y") == 2
    assert "s.dlabel.nii" in capsys.readouterr().err


def test_surface_labels_of_a_hemisphere_are_combined(folder):
    rng = np.random.default_rng(1)
    values, labels = rng.normal(1000, 30, (20, 40)).astype("f4"), np.repeat([[1, 2, 0, 0], [0, 1, 1, 3]], 10, axis=1)
    surfaces.series(folder / "run.func.gii", values, "L")
    for name, own in zip("ab", labels.astype("i4"), strict=True):
        surfaces.labels(folder / f"{name}.label.gii", own, "L", {1: name})
    surfaces.labels(folder / "r.label.gii", labels[0].astype("i4"), "R", {1: "r"})
    assert run("extract run.func.gii --atlas both=a.label.gii+b.label.gii --out x") == 0
    signals = table("_timeseries", "x")
    assert [*signals][::2] == ["a", "b"]
    np.testing.assert_allclose(signals, values.reshape(20, 4, 10).mean(axis=2), rtol=1e-6)
    parts = [CombinedAtlasFile(tuple(AtlasFile(f"{name}.label.gii") for name in names)) for names in ("ab", "ar")]
    assert hemisphere_of(parts[:1]) == "L"
    with pytest.raises(ValueError, match="must all be of the same hemisphere, to find its runs in a folder"):
        hemisphere_of(parts[1:])
