"""`inverse_transform` of grayordinates: signals back on the vertices and voxels of the atlas."""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from gpumask import NiftiLabelsMasker, NiftiMapsMasker
from tests import dense

N_TIMES = 6


@pytest.fixture
def made(tmp_path):
    """A series and an atlas of other grayordinates; its labels and axis."""
    rng = np.random.default_rng(2)
    axis, atlas_axis = dense.models(rng), dense.models(rng)
    labels = rng.choice([0, 2, 5, 900], len(atlas_axis))
    data = rng.standard_normal((N_TIMES, len(axis))).astype(np.float32)
    run = dense.save(dense.series_image(data, axis, t_r=0.8), tmp_path / "run.dtseries.nii")
    return run, dense.save(dense.labels_image(labels, atlas_axis), tmp_path / "a.dlabel.nii"), labels, atlas_axis


def by_definition(labels, signals, ids):
    painted = np.zeros((len(signals), len(labels)))
    for column, label in enumerate(ids):
        for k in np.flatnonzero(labels == label):
            painted[:, k] = signals[:, column]
    return painted


@pytest.mark.parametrize("background", [0, 5])
def test_a_series_of_labels(made, tmp_path, background):
    run, atlas, labels, axis = made
    masker = NiftiLabelsMasker(atlas, background_label=background)
    signals = masker.fit_transform(run)
    image = masker.inverse_transform(signals)
    path = dense.save(image, tmp_path / "out.dtseries.nii")
    known = by_definition(labels, signals, [label for label in (0, 2, 5, 900) if label != background])
    read = nib.load(path)
    np.testing.assert_array_equal(read.get_fdata(), known)
    assert read.get_data_dtype() == np.float32
    assert read.header.get_axis(1) == axis
    assert (read.header.get_axis(0).step, read.header.get_axis(0).unit) == (0.8, "SECOND")
    again = NiftiLabelsMasker(atlas, background_label=background).fit_transform(path)
    np.testing.assert_allclose(again, signals, rtol=1e-6)


@pytest.mark.parametrize(("t_r", "step"), [(None, 1.0), (2.5, 2.5)])
def test_before_any_run_the_time_step_is_the_parameter_or_a_second(made, t_r, step):
    _, atlas, labels, _ = made
    masker = NiftiLabelsMasker(atlas, t_r=t_r).fit()
    image = masker.inverse_transform(np.arange(6, dtype=np.int32).reshape(2, 3))
    assert image.header.get_axis(0).step == step
    known = by_definition(labels, np.arange(6).reshape(2, 3), (2, 5, 900))
    np.testing.assert_array_equal(image.get_fdata(), known)


def test_a_row_becomes_scalars(made, tmp_path):
    _, atlas, labels, axis = made
    image = NiftiLabelsMasker(atlas).fit().inverse_transform(np.array([1.5, -2.0, 4.0]))
    read = nib.load(dense.save(image, tmp_path / "out.dscalar.nii"))
    np.testing.assert_array_equal(read.get_fdata(), by_definition(labels, np.array([[1.5, -2, 4]]), (2, 5, 900)))
    assert read.nifti_header.get_intent()[2] == "ConnDenseScalar"
    assert read.header.get_axis(1) == axis


def test_a_lost_region_becomes_zero(made):
    run, vertices = made[0], np.arange(dense.N_VERTICES)
    axis = nib.load(run).header.get_axis(1)
    lost = int(np.setdiff1d(vertices, axis.vertex[axis.name == dense.LEFT])[0])
    labels = np.where(vertices == lost, 8, 6)
    masker = NiftiLabelsMasker(dense.labels_image(labels, dense.surface(vertices)))
    with pytest.warns(UserWarning, match="has no grayordinate of 1 of 2 labels"):
        signals = masker.fit_transform(run)
    painted = masker.inverse_transform(signals).get_fdata()
    np.testing.assert_array_equal(painted[:, lost], 0)
    np.testing.assert_array_equal(np.delete(painted, lost, axis=1), np.repeat(signals, len(vertices) - 1, axis=1))


def test_maps_are_summed_times_their_signals(made, tmp_path):
    run, _, _, axis = made
    weights = np.random.default_rng(4).random((3, len(axis)))
    maps = dense.save(dense.scalars_image(weights, axis), tmp_path / "maps.dscalar.nii")
    masker = NiftiMapsMasker(maps, dtype="f8")
    signals = masker.fit_transform(run)
    image = masker.inverse_transform(signals)
    np.testing.assert_allclose(image.get_fdata(), signals @ weights, rtol=1e-12, atol=1e-12)
    assert image.header.get_axis(0).step == 0.8
    scalars = masker.inverse_transform(signals[0])
    np.testing.assert_allclose(scalars.get_fdata()[0], signals[0] @ weights, rtol=1e-12, atol=1e-12)


def test_wrong_shapes_are_refused(made):
    masker = NiftiLabelsMasker(made[1]).fit()
    with pytest.raises(ValueError, match=r"^Input to 'inverse_transform' has wrong shape\.\nExpected \(4, 3\)\."):
        masker.inverse_transform(np.zeros((4, 2)))


@pytest.mark.skipif(shutil.which("wb_command") is None, reason="needs connectome-workbench (Debian)")
def test_workbench_opens_both(made, tmp_path):
    run, atlas, *_ = made
    masker = NiftiLabelsMasker(atlas)
    signals = masker.fit_transform(run)
    for rows, kind, what in ((signals, "dtseries", "Dense Data Series"), (signals[0], "dscalar", "Dense Scalar")):
        path = dense.save(masker.inverse_transform(rows), tmp_path / f"out.{kind}.nii")
        done = subprocess.run(["wb_command", "-file-information", path], check=True, capture_output=True, text=True)
        assert f"CIFTI - {what}\n" in done.stdout
