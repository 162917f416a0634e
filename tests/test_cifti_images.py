"""Files of parcels and grayordinates: what nibabel and Workbench read in them."""

import re
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from gpumask.images.cifti_images import TABLE, Parcels, dense_values
from gpumask.images.dense_atlas import load_dense_atlas
from tests import dense

IDS, NAMES = [3, 4, 17], ["V1 & <left>", "Ärea", "TE1a"]
workbench = pytest.mark.skipif(shutil.which("wb_command") is None, reason="needs connectome-workbench (Debian)")


@pytest.fixture(scope="module")
def made():
    """An atlas, and its labels and axis."""
    rng = np.random.default_rng(0)
    axis = dense.models(rng)
    labels = rng.choice([0, *IDS], len(axis))
    image = dense.labels_image(labels, axis, tables=[dense.table(IDS, dict(zip(IDS, NAMES, strict=True)))])
    return load_dense_atlas(image), labels, axis


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    """Each kind of image: its path and the values it was made of."""
    folder, rng = tmp_path_factory.mktemp("parcels"), np.random.default_rng(1)
    parcels = Parcels(made[0], IDS, NAMES)
    signals, coverage = rng.standard_normal((9, 3)), np.array([[1, 0.5, np.nan]])
    matrix = np.corrcoef(signals.T)
    images = {
        "ptseries": (parcels.series(signals, 0.72, 1.44), signals),
        "pconn": (parcels.connectivity(matrix), matrix),
        "pscalar": (parcels.scalars(coverage, ["coverage"]), coverage),
    }
    for kind, (image, _) in images.items():
        (folder / f"x.{kind}.nii").write_bytes(image.to_bytes())
    return {kind: (folder / f"x.{kind}.nii", values) for kind, (_, values) in images.items()}


@pytest.mark.parametrize("kind", ["ptseries", "pconn", "pscalar"])
def test_nibabel_reads_values_and_parcels(made, saved, kind):
    _, labels, axis = made
    path, values = saved[kind]
    image = nib.load(path)
    np.testing.assert_array_equal(image.get_fdata(), values.astype(np.float32))
    parcels = image.header.get_axis(1)
    assert list(parcels.name) == NAMES
    assert parcels.nvertices == {dense.LEFT: dense.N_VERTICES, dense.RIGHT: dense.N_VERTICES}
    assert parcels.volume_shape == dense.SHAPE
    np.testing.assert_allclose(parcels.affine, dense.AFFINE)
    identities = dense.identities(axis)
    for label, name in zip(IDS, NAMES, strict=True):
        ijk, vertices = parcels[name]
        found = {(structure, int(vertex)) for structure, some in vertices.items() for vertex in some}
        found |= {tuple(voxel) for voxel in ijk.tolist()}
        assert found == {identities[k] for k in np.flatnonzero(labels == label)}


def test_a_series_keeps_its_time(saved):
    axis = nib.load(saved["ptseries"][0]).header.get_axis(0)
    assert (axis.start, axis.step, axis.unit, axis.size) == (1.44, 0.72, "SECOND", 9)


@workbench
@pytest.mark.parametrize(
    ("kind", "what"), [("ptseries", "Parcel Series"), ("pconn", "Parcel"), ("pscalar", "Parcel Scalar")]
)
def test_workbench_reads_the_same(saved, kind, what, tmp_path):
    path, values = saved[kind]
    said = wb_command("-file-information", path)
    assert re.search(rf"^Type: +CIFTI - {what}$", said, re.MULTILINE)
    named = re.findall(r"Parcel \d+: +(.*)", said)
    assert named == NAMES * (2 if kind == "pconn" else 1)
    wb_command("-cifti-convert", "-to-text", path, tmp_path / "values.txt")
    read = np.loadtxt(tmp_path / "values.txt", ndmin=2).T
    np.testing.assert_allclose(read, values, rtol=1e-5)  # printed with six digits


@workbench
def test_workbench_imports_the_colours(made, saved, tmp_path):
    keys = Parcels(made[0], IDS, NAMES).scalars(np.array([IDS]), ["keys"])
    (tmp_path / "keys.pscalar.nii").write_bytes(keys.to_bytes())
    (tmp_path / "table.txt").write_text(nib.load(saved["pscalar"][0]).header.matrix.metadata[TABLE], encoding="utf-8")
    out = tmp_path / "x.plabel.nii"
    wb_command("-cifti-label-import", tmp_path / "keys.pscalar.nii", tmp_path / "table.txt", out)
    table = nib.load(out).header.get_axis(0).label[0]
    known = dense.table(IDS, dict(zip(IDS, NAMES, strict=True)))
    for label in IDS:
        assert table[label][0] == known[label][0]
        np.testing.assert_allclose(table[label][1], known[label][1], atol=0.5 / 255)


def wb_command(*arguments):
    """What Workbench prints."""
    command = ["wb_command", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["a", "b", "a"], ["a 3", "b", "a 17"]),
        (["", "b", "c"], ["3", "b", "c"]),
        (["a", "a", "a 3"], ["a 3", "a 4", "a 3 17"]),
    ],
)
def test_names_become_unique(made, names, unique):
    assert Parcels(made[0], IDS, names).names == unique


def test_an_atlas_of_vertices_only():
    axis = dense.surface(np.arange(6))
    atlas = load_dense_atlas(dense.labels_image(np.array([1, 1, 2, 2, 0, 0]), axis))
    image = Parcels(atlas, [1, 2, 9], ["a", "b", "not there"]).scalars([[1, 2, np.nan]], ["x"])
    parcels = nib.Cifti2Image.from_bytes(image.to_bytes()).header.get_axis(1)
    assert [len(parcels[name][1].get(dense.LEFT, ())) for name in parcels.name] == [2, 2, 0]
    assert parcels.volume_shape is None


def test_wrong_shapes_and_times(made):
    parcels = Parcels(made[0], IDS, NAMES)
    with pytest.raises(ValueError, match=r"^The signals of 3 parcels must have the shape \(5, 3\), got \(5, 4\)\.$"):
        parcels.series(np.zeros((5, 4)), 1.0)
    with pytest.raises(ValueError, match=r"^The matrix of 3 parcels must have the shape \(3, 3\), got \(3,\)\.$"):
        parcels.connectivity(np.zeros(3))
    with pytest.raises(ValueError, match=r"^The values of 3 parcels must have the shape \(1, 3\), got \(2, 3\)\.$"):
        parcels.scalars(np.zeros((2, 3)), ["one"])
    with pytest.raises(ValueError, match=r"^2 names of 3 parcels of in-memory image, expected one for each\.$"):
        Parcels(made[0], IDS, NAMES[:2])
    for t_r in (0, -1.0, np.nan, np.inf):
        with pytest.raises(
            ValueError, match=rf"^A CIFTI-2 series needs the seconds between its time points, above 0, got t_r={t_r}\.$"
        ):
            parcels.series(np.zeros((5, 3)), t_r)


@pytest.mark.parametrize("n_times", [None, 1, 4])
def test_values_of_grayordinates(made, n_times):
    atlas, _, axis = made
    values = np.random.default_rng(0).random((len(axis),) if n_times is None else (n_times, len(axis)))
    image = nib.Cifti2Image.from_bytes(dense_values(atlas, values, 2.0).to_bytes())
    np.testing.assert_array_equal(image.get_fdata(), np.atleast_2d(values))
    assert image.header.get_axis(1) == axis
    intent = "ConnDenseScalar" if n_times is None else "ConnDenseSeries"
    assert image.nifti_header.get_intent()[2] == intent
