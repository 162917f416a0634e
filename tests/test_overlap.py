"""Atlases and runs that lie elsewhere in space: an error; that barely overlap: a warning with the share."""

import functools
import itertools
import re
import warnings

import nibabel as nib
import numpy as np
import pytest
from nilearn.maskers import NiftiLabelsMasker as NilearnMasker

from gpumask import (
    MultiNiftiLabelsMasker,
    NiftiLabelsMasker,
    NiftiMapsMasker,
    NiftiMasker,
    correlation_maps,
    transform_together,
)
from gpumask.bids.runs import Run
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.writer import write_run
from gpumask.images.grid import Grid
from gpumask.images.labels import Atlas

from .helpers import save

SHAPE, SIZE, N = (10, 8, 6), 3.0, 12
STRAIGHT = np.eye(3)
TURNED = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])


def at(*mm, turn=STRAIGHT, size=SIZE):
    affine = np.eye(4)
    affine[:3, :3] = turn * size
    affine[:3, 3] = mm
    return affine


def labels_of(shape=SHAPE):
    labels = np.zeros(shape, "i2")
    labels[: shape[0] // 2], labels[shape[0] // 2 :] = 1, 2
    return labels


@pytest.fixture
def folder(tmp_path):
    run = np.random.default_rng(0).normal(100, 5, (*SHAPE, N)).astype("f4")
    save(tmp_path / "sub-01_task-rest_bold.nii", run, at(0, 0, 0), 2.0)
    return tmp_path


def files(folder, affine, labels=None):
    run = folder / "sub-01_task-rest_bold.nii"
    return run, save(folder / "far.nii", labels_of() if labels is None else labels, affine)


def no_overlap(run, atlas):
    return (
        f"{run} doesn't overlap with the regions of {atlas}: resampled to their grid, it is 0 in all of them. They may "
        "lie in different spaces: compare their affines."
    )


def nothing_left(run, atlas):
    return (
        f"No label left after resampling the labels image. {atlas} and {run} may lie in different spaces: compare "
        "their affines."
    )


ERRORS = {"labels": no_overlap, "data": nothing_left}
FAR = [(500, 0, 0), (-500, 0, 0), (0, 500, 0), (0, -500, 0), (0, 0, 40), (0, 0, -40), (30, 0, 0), (-30, 0, 0)]


@pytest.mark.parametrize("target", ERRORS)
@pytest.mark.parametrize("turn", [STRAIGHT, TURNED], ids=["parallel", "oblique"])
def test_masker_refuses_an_atlas_elsewhere(folder, target, turn):
    for mm in [mm for mm in FAR if turn is not TURNED or max(map(abs, mm)) == 500]:
        run, atlas = files(folder, at(*mm, turn=turn))
        error = f"^{re.escape(ERRORS[target](run, atlas))}$"
        options = {"resampling_target": target, "smoothing_fwhm": 4.0}
        masker = NiftiLabelsMasker(atlas, **options).fit()
        for keep, imgs in [({}, run), ({"keep_all_regions": True}, run), ({"keep_masked_labels": False}, run)]:
            with pytest.raises(ValueError, match=error):
                NiftiLabelsMasker(atlas, **options, **keep).fit().transform(imgs)
        with pytest.raises(ValueError, match=error):
            NiftiLabelsMasker(atlas, **options).fit_transform(run)
        with pytest.raises(ValueError, match=error):
            transform_together([masker], run)
        with pytest.raises(ValueError, match=error):
            MultiNiftiLabelsMasker(atlas, **options).fit().transform([run])


@pytest.mark.parametrize("target", ERRORS)
@pytest.mark.parametrize("mm", [(500, 0, 0), (-500, 0, 0)], ids=str)
def test_commands_refuse_an_atlas_elsewhere(folder, target, mm):
    run, atlas = files(folder, at(*mm))
    for parameters in ({"keep_all_regions": False, "min_coverage": None}, {}):
        parameters = {"resampling_target": target, "nan_policy": "zero", **parameters}
        configuration = Configuration((AtlasFile(atlas),), folder / "out", parameters, device="cpu")
        records = [write_run(configuration, Run(run)), *run_cohort(configuration, [Run(run)])]
        assert [(record.status, record.error) for record in records] == [("failed", ERRORS[target](run, atlas))] * 2
    assert not list((folder / "out").rglob("*.tsv"))


def test_only_background_overlaps(folder):
    """Both fields of view overlap, but no region lies in the run's."""
    labels = np.zeros(SHAPE, "i2")
    labels[7:, :4], labels[7:, 4:] = 1, 2
    for target, error in ERRORS.items():
        run, atlas = files(folder, at(15, 0, 0), labels)  # regions begin at 36 mm, the run ends at 27
        with pytest.raises(ValueError, match=f"^{re.escape(error(run, atlas))}$"):
            NiftiLabelsMasker(atlas, resampling_target=target).fit().transform(run)


def test_mask_that_no_region_reaches(folder):
    """All regions keep a column, but nothing would be in any of them."""
    run, atlas = files(folder, at(0, 0, 0), np.where(np.arange(10)[:, None, None] < 5, labels_of(), 0))
    mask = np.zeros(SHAPE, "u1")
    mask[6:] = 1
    masker = NiftiLabelsMasker(atlas, mask_img=nib.Nifti1Image(mask, at(0, 0, 0)), keep_all_regions=True)
    with pytest.raises(ValueError, match=r"^No label left after applying mask to the labels image\.$"):
        masker.fit().transform(run)


def caught(function, *args):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*args)
    return result, [str(one.message) for one in caught if "covers only" in str(one.message)]


@pytest.mark.parametrize("target", ["data", "labels"])
@pytest.mark.parametrize(
    ("planes", "share"),
    [(0, None), (1, None), (5, None), (6, "40%"), (9, "10%"), (-5, None), (-6, "40%"), (-9, "10%")],
)
def test_partial_overlap_has_nilearn_s_numbers(folder, planes, share, target):
    """A share of planes of 10 is outside; half is a field of view as acquired, less is worth a word."""
    run, atlas = files(folder, at(SIZE * planes, 0, 0))
    signals, messages = caught(NiftiLabelsMasker(atlas, resampling_target=target).fit().transform, run)
    assert messages == [f"{run} covers only {share} of the atlas {atlas}. Are they in the same space?"] * bool(share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = NilearnMasker(atlas, resampling_target=target, standardize=None).fit().transform(run)
    np.testing.assert_allclose(signals, expected, rtol=1e-6)
    assert np.abs(expected).max() > 15


@pytest.mark.parametrize("target", ["data", "labels"])
def test_commands_warn_once(folder, target):
    run, atlas = files(folder, at(SIZE * 7, 0, 0))
    message = f"{run} covers only 30% of the atlas {atlas}. Are they in the same space?"
    for parameters in ({"keep_all_regions": False, "min_coverage": None}, {}):
        parameters = {"resampling_target": target, "nan_policy": "zero", **parameters}
        configuration = Configuration((AtlasFile(atlas),), folder / str(len(parameters)), parameters, device="cpu")
        record = write_run(configuration, Run(run))
        assert (record.status, record.error) == ("done", "")
        assert list(record.warnings).count(message) == 1


def test_less_than_a_percent_and_each_run_by_its_name(folder):
    """The plan is made for the first run of a grid, and the message is about each."""
    labels = np.zeros((200, 8, 6), "i2")
    labels[:100], labels[100:] = 1, 2
    run, atlas = files(folder, at(-SIZE * 199, 0, 0), labels)
    other = folder / "other.nii"
    other.write_bytes(run.read_bytes())
    masker = NiftiLabelsMasker(atlas, resampling_target="labels").fit()
    for path in (run, other):
        _, messages = caught(masker.transform, path)
        assert messages == [f"{path} covers only less than 1% of the atlas {atlas}. Are they in the same space?"]


@pytest.mark.parametrize("turn", [STRAIGHT, TURNED], ids=["parallel", "oblique"])
@pytest.mark.parametrize("n_slices", [1, 6])
def test_share_is_that_of_a_count_of_voxels(turn, n_slices):
    """Voxels whose centre lies within the outer faces of the run's, one by one; a run may have a single slice."""
    labels = np.random.default_rng(1).integers(0, 3, (7, 6, 5))
    own = Grid(labels.shape, at(4, 2, -1, size=2.6))
    run = Grid((5, 6, n_slices), at(1, -2, 0.4, turn=turn))
    inside = 0
    for voxel in itertools.product(*map(range, labels.shape)):
        there = np.linalg.inv(run.affine) @ own.affine @ [*voxel, 1]
        within = all(-0.5 <= c <= n - 0.5 for c, n in zip(there[:3], run.shape, strict=True))
        inside += bool(labels[voxel]) and within
    assert 0 < inside < np.count_nonzero(labels)
    assert Atlas(labels, own).share_inside(run) == inside / np.count_nonzero(labels)


def test_share_of_an_atlas_without_background():
    """Every 50th voxel of it has the same x: a sample of voxels saw all or nothing inside."""
    shape = (50, 100, 100)
    grid, run = Grid(shape, np.eye(4)), Grid(shape, at(30, 0, 0, size=1.0))
    assert Atlas(np.ones(shape, "i2"), grid).share_inside(run) == 0.4


def test_single_slice_is_extracted(folder):
    """Its field of view has no thickness between centres of voxels, but labels are put on its grid."""
    whole, atlas = files(folder, at(0, 0, 0.4))
    run = save(folder / "slice.nii", nib.load(whole).get_fdata()[:, :, 2:3].astype("f4"), at(0, 0, 6))
    signals, messages = caught(functools.partial(NiftiLabelsMasker(atlas).fit().transform, run))
    assert signals.shape == (N, 2)
    assert messages == [f"{run} covers only 17% of the atlas {atlas}. Are they in the same space?"]


def maps_of(shape=SHAPE):
    return np.stack([labels_of(shape) == 1, labels_of(shape) == 2], axis=-1).astype("f4")


KINDS = {  # regions that runs are resampled to, and what messages call them
    "maps": (lambda path: NiftiMapsMasker(path, resampling_target="maps"), "the maps", maps_of),
    "weighted": (
        lambda path: NiftiMapsMasker(path, resampling_target="maps", strategy="weighted_mean"),
        "the maps",
        maps_of,
    ),
    "voxels": (NiftiMasker, "the mask", labels_of),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turn", [STRAIGHT, TURNED], ids=["parallel", "oblique"])
@pytest.mark.parametrize("mm", [(500, 0, 0), (0, 0, -400)], ids=str)
def test_maps_and_masks_elsewhere_are_refused(folder, kind, turn, mm):
    make, _, data = KINDS[kind]
    run, path = files(folder, at(*mm, turn=turn), data())
    masker = make(path).fit()
    for extract in (masker.transform, lambda run: transform_together([masker], run)):
        with pytest.raises(ValueError, match=f"^{re.escape(no_overlap(run, path))}$"):
            extract(run)


def test_correlation_with_a_mask_elsewhere_is_refused(folder):
    run, mask = files(folder, at(500, 0, 0))
    out = folder / "r.nii"
    masker = NiftiMapsMasker(save(folder / "maps.nii", maps_of(), at(0, 0, 0))).fit()
    with pytest.raises(ValueError, match=f"^{re.escape(no_overlap(run, mask))}$"):
        correlation_maps(masker, run, mask_img=mask, out=out)
    assert not out.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_little_overlap_of_maps_and_masks_is_a_warning(folder, kind):
    """18 mm of the run's 30 lie before the regions' first voxel, so they share the first 4 of 10 planes."""
    make, what, data = KINDS[kind]
    run, path = files(folder, at(18, 0, 0), data())
    told = f"^{re.escape(f'{run} covers only 40% of {what} {path}. Are they in the same space?')}$"
    with pytest.warns(UserWarning, match=told), pytest.warns(UserWarning, match="resampl"):
        signals = make(path).fit().transform(run)
    assert (signals != 0).any()
    run, path = files(folder, at(15, 0, 0), data())  # half
    with pytest.warns(UserWarning, match="resampl") as warned:
        make(path).fit().transform(run)
    assert len(warned) == 1
