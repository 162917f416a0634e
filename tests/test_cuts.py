"""Cuts that show as many regions as possible, against a search of the array; spheres in the corners of a volume."""

import nibabel as nib
import numpy as np
import pytest

from gpumask import NiftiSpheresMasker
from gpumask.reports.cuts import cuts_through_each

from .test_report import image, is_coloured, picture

pytest.importorskip("matplotlib")
SHAPE = (30, 26, 22)
TURNED = np.array([[0, 0, -2.0, 40], [3, 0, 0, -9], [0, -2, 0, 30], [0, 0, 0, 1]])


def boxes(n, seed=0, size=3):
    """Boxes of some voxels at random places, which don't touch."""
    rng, labels, label = np.random.default_rng(seed), np.zeros(SHAPE, "i4"), 0
    while label < n:
        corner = rng.integers(1, np.array(SHAPE) - size - 1)
        box = tuple(slice(c, c + size) for c in corner)
        if not labels[tuple(slice(c - 1, c + size + 1) for c in corner)].any():
            label += 1
            labels[box] = 7 * label
    return labels


def shown(labels, affine, cuts):
    """Labels in any of the cuts of the array in RAS+."""
    data = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(labels, affine)).dataobj)
    return {label for cut in cuts for axis in range(3) for label in np.unique(np.take(data, cut[axis], axis)) if label}


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-2.0, 2, 3, 1]), TURNED], ids=["RAS", "LAS", "turned"])
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_each_region_is_in_a_cut(affine, n):
    labels = boxes(n)
    cuts, n_hidden = cuts_through_each(labels, affine, most=10)
    assert n_hidden == 0
    assert shown(labels, affine, cuts) == {7 * k for k in range(1, n + 1)}
    assert len(cuts) <= -(-n // 3)
    assert [len(set(of_axis)) for of_axis in cuts.T.tolist()] == [len(cuts)] * 3  # no cut twice


def test_regions_that_no_cut_shows_are_counted():
    labels = boxes(40)
    cuts, n_hidden = cuts_through_each(labels, np.eye(4), most=1)
    assert cuts.shape == (1, 3)
    assert 0 < n_hidden == 40 - len(shown(labels, np.eye(4), cuts))


def test_a_region_is_cut_through_its_middle():
    labels = np.zeros(SHAPE, "i2")
    ball = sum((axis - at) ** 2 for axis, at in zip(np.indices(SHAPE), (5, 20, 14), strict=True)) <= 9
    labels[ball] = 3
    assert cuts_through_each(labels, np.eye(4))[0].tolist() == [[5, 20, 14]]


def test_no_region():
    cuts, n_hidden = cuts_through_each(np.full(SHAPE, 4), np.eye(4), 4)
    assert (cuts.tolist(), n_hidden) == ([[15, 13, 11]], 0)


def test_spheres_in_the_corners_are_in_the_report():
    """Their middle has none of them."""
    run = image(np.random.default_rng(0).normal(100, 9, (*SHAPE, 4)).astype("f4"), np.diag([2.0, 2, 2, 1]))
    seeds = [(6, 6, 6), (50, 44, 36), (6, 44, 6)]
    masker = NiftiSpheresMasker(seeds, radius=5).fit(run)
    masker.transform(run)
    for displayed in ("all", [0], [1], [2]):
        assert is_coloured(picture(masker.generate_report(displayed_spheres=displayed))) > 0.005
    assert "Regions in none of these cuts" not in masker.generate_report().html
    diagonal = NiftiSpheresMasker([(2 * k,) * 3 for k in range(22)]).fit(run)  # each cut shows one; 18 are made
    diagonal.transform(run)
    assert "<p>Regions in none of these cuts: 4.</p>" in diagonal.generate_report().html
