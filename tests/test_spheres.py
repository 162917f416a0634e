"""The masker of spheres: voxels, coverage, errors, outputs; on small images, against loops over voxels."""

import inspect
import math
import pickle
import re

import nilearn.maskers
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gpumask import NiftiLabelsMasker, NiftiSpheresMasker, transform_together

from .helpers import AFFINE, blocks, image

SHAPE = (6, 7, 8)
SEEDS = [(4.0, -3.0, 3.0), (8.0, 4.5, 12.0), (6, -3, 3)]


@pytest.fixture(scope="module")
def data():
    data = np.random.default_rng(0).normal(100, 5, (*SHAPE, 20))
    data.flags.writeable = False
    return data


@pytest.fixture
def run(data):
    return image(data)


def voxels_of(seed, radius, shape=SHAPE, affine=AFFINE):
    """Voxels within the radius, as indices: a loop in plain Python. For seeds whose nearest voxel is within it too."""
    found = []
    for index in np.ndindex(shape):
        at = [sum(affine[k, m] * index[m] for m in range(3)) + affine[k, 3] for k in range(3)]
        if math.dist(at, seed) <= radius:
            found.append(index)
    return found


def means_of(data, members):
    return np.array([[np.mean([data[v][t] for v in voxels]) for voxels in members] for t in range(data.shape[3])])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_means_over_spheres(run, data, device):
    masker = NiftiSpheresMasker(SEEDS, radius=4.2, allow_overlap=True, device=device)
    members = [voxels_of(seed, 4.2) for seed in SEEDS]
    np.testing.assert_allclose(masker.fit_transform(run), means_of(data, members), rtol=1e-12)
    assert masker.plan_.counts.tolist() == [len(voxels) for voxels in members]
    assert len(set(members[0]) & set(members[2])) > 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("strategy", ["mean", "median", "standard_deviation"])
def test_smoothed_statistics_within_a_mask(run, strategy, device):
    """Spheres that don't overlap are regions of a label image."""
    mask = np.ones(SHAPE, "u1")
    mask[:, :, :3] = 0
    labels = np.zeros(SHAPE, "i2")
    for number, seed in enumerate(SEEDS[:2], start=1):
        for voxel in voxels_of(seed, 4.2):
            labels[voxel] = number
    settings = {"smoothing_fwhm": 5, "strategy": strategy, "detrend": True, "mask_img": image(mask), "device": device}
    spheres = NiftiSpheresMasker(SEEDS[:2], radius=4.2, **settings).fit_transform(run)
    of_labels = NiftiLabelsMasker(image(labels), **settings).fit_transform(run)
    np.testing.assert_array_equal(spheres, of_labels)


def test_no_radius_takes_the_nearest_voxel(run, data):
    seeds = (AFFINE[:3, :3] @ np.array([[1.4, 2, 3], [2, 0.6, 4], [5.4, 6.4, 6.6]]).T).T + AFFINE[:3, 3]
    expected = np.stack([data[1, 2, 3], data[2, 1, 4], data[5, 6, 7]], axis=1)
    np.testing.assert_array_equal(NiftiSpheresMasker(seeds).fit_transform(run), expected)


def test_voxel_of_equal_truncated_coordinates_belongs_to_the_sphere():
    """Voxels lie at -1.5, -0.6, 0.3, 1.2 ... mm: 0.3 is nearest to the seed at 0.7, and -0.6 the first that gives 0."""
    affine = np.diag([0.9, 1, 1, 1])
    affine[0, 3] = -1.5
    data = np.arange(12.0).reshape(12, 1, 1, 1)
    masker = NiftiSpheresMasker([(0.7, 0, 0)])
    np.testing.assert_array_equal(masker.fit_transform(image(data, affine)), [[1.5]])
    theirs = nilearn.maskers.NiftiSpheresMasker([(0.7, 0, 0)], standardize=None).fit_transform(image(data, affine))
    np.testing.assert_array_equal(theirs, [[1.5]])
    assert masker.coverage_.drop(columns="name").to_numpy().tolist() == [[0, 2, 2, 1]]


def test_parameters_have_nilearns_names_order_and_defaults():
    own = ["strategy", "labels", "device", "output", "min_coverage", "keep_all_regions", "nan_policy"]
    ours = inspect.signature(NiftiSpheresMasker).parameters
    theirs = inspect.signature(nilearn.maskers.NiftiSpheresMasker).parameters
    assert list(ours) == [*theirs, *own]
    assert {name: given.default for name, given in ours.items() if name not in own} == {
        name: given.default for name, given in theirs.items()
    }
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in own)


# Coverage


def test_coverage_counts_voxels_beyond_the_borders_and_outside_the_mask(run):
    mask = np.ones(SHAPE, "u1")
    mask[0] = 0
    corner = AFFINE[:3, 3]
    seeds = [corner, SEEDS[0]]
    masker = NiftiSpheresMasker(seeds, radius=4.2, mask_img=image(mask)).fit()
    masker.transform(run)
    whole = np.diag([-2.0, 2.5, 3, 1])  # a grid large enough for a whole sphere around its voxel (5, 5, 5)
    n = len(voxels_of(whole[:3, :3] @ [5, 5, 5], 4.2, (11, 11, 11), whole))
    covered = [sum(index[0] > 0 for index in voxels_of(seed, 4.2)) for seed in seeds]
    expected = pd.DataFrame(
        {
            "index": [0, 1],
            "name": ["niftispheresmasker0", "niftispheresmasker1"],
            "voxels": [n, n],
            "covered": covered,
            "fraction": np.array(covered) / n,
        }
    )
    pd.testing.assert_frame_equal(masker.coverage_, expected)
    assert 0 < covered[0] < covered[1] == n


def test_min_coverage_and_keep_all_regions_mark_spheres_with_nan(run, data):
    seeds = [SEEDS[0], AFFINE[:3, 3], (500.0, 0, 0), (1e300, 0, -1e300)]
    masker = NiftiSpheresMasker(seeds, radius=4.2, min_coverage=0.9, keep_all_regions=True, standardize="psc")
    signals = masker.fit_transform(run)
    assert np.isnan(signals).all(axis=0).tolist() == [False, True, True, True]
    alone = NiftiSpheresMasker(seeds[:1], radius=4.2, standardize="psc").fit_transform(run)
    np.testing.assert_array_equal(signals[:, :1], alone)
    assert masker.coverage_["covered"].tolist()[2:] == [0, 0]


def test_nan_policy(data):
    holed = data.copy()
    holed[voxels_of(SEEDS[0], 4.2)[0]] = np.nan
    zero = NiftiSpheresMasker(SEEDS[:1], radius=4.2)
    with pytest.warns(UserWarning, match=r"^Non-finite values detected\. These values will be replaced with zeros\.$"):
        signals = zero.fit_transform(image(holed))
    members = voxels_of(SEEDS[0], 4.2)
    np.testing.assert_allclose(signals, means_of(np.nan_to_num(holed), [members]), rtol=1e-12)
    omit = NiftiSpheresMasker(SEEDS[:1], radius=4.2, nan_policy="omit").fit_transform(image(holed))
    np.testing.assert_allclose(omit, means_of(holed, [members[1:]]), rtol=1e-12)


# Errors


def test_empty_spheres(run):
    seeds = [(500.0, 0, 0), SEEDS[0], (0, 0, -500)]
    masker = NiftiSpheresMasker(seeds, radius=3).fit(run)
    msg = "These spheres are empty: [0 2]. No voxel of in-memory image is in them: check seeds, space and radius."
    with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
        masker.transform(run)
    mask = np.zeros(SHAPE, "u1")
    mask[0, 0, 0] = 1
    msg = msg.replace("[0 2]", "[0]").replace("image is", "image inside the mask is")
    with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
        NiftiSpheresMasker([SEEDS[0]], mask_img=image(mask)).fit_transform(run)
    all_empty = NiftiSpheresMasker([(500, 0, 0)], keep_all_regions=True)
    with pytest.raises(ValueError, match=r"^These spheres are empty: \[0\]\. No voxel of in-memory image is in them"):
        all_empty.fit_transform(run)


def test_overlapping_spheres(run):
    shared = len(set(voxels_of(SEEDS[0], 4.2)) & set(voxels_of(SEEDS[2], 4.2)))
    msg = (
        f"Overlap detected between spheres. The spheres [0 2] share {shared} voxels of in-memory image. Use a smaller "
        "radius, or allow_overlap=True (--allow-overlap)."
    )
    masker = NiftiSpheresMasker(SEEDS, radius=4.2).fit()
    with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
        masker.transform(run)
    assert masker.set_params(allow_overlap=True).transform(run).shape == (20, 3)
    twice = NiftiSpheresMasker([SEEDS[0], SEEDS[0]], radius=1)
    with pytest.raises(ValueError, match=r"^Overlap detected between spheres\. The spheres \[0 1\] share 1 voxels"):
        twice.fit_transform(run)


LEAD = "Seeds must be a list of triplets of coordinates in native space.\n"


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (None, f"{LEAD}Given seed list is of type: <class 'NoneType'>"),
        ([1, 2], f"{LEAD}Seed #0 is not a valid triplet of coordinates. It is of type int."),
        ([(1, 2, 3), (1, 2)], f"{LEAD}Seed #1 is of length 2 instead of 3."),
        ([("1", 2, 3)], f"{LEAD}Seed #0 is ['1', 2, 3], expected three numbers in mm."),
        (["abc"], f"{LEAD}Seed #0 is ['a', 'b', 'c'], expected three numbers in mm."),
        ([], f"{LEAD}The list is empty: pass at least one seed."),
        ("seeds.tsv", f"{LEAD}Given seed list is of type: <class 'str'>"),
        (pd.DataFrame({"x": [1], "y": [2], "z": [3]}), f"{LEAD}Given seed list is of type: {pd.DataFrame}"),
        ([(1, 2, 3), (1, np.nan, 3)], "Seed #1 is [1.0, nan, 3.0], expected finite coordinates in mm."),
    ],
)
def test_wrong_seeds(seeds, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NiftiSpheresMasker(seeds).fit()


@pytest.mark.parametrize("radius", [150.0, 400.0])
def test_coverage_of_huge_spheres_is_computed_from_their_volume(run, radius):
    """Counting voxels would never end. Of 150 mm, nilearn's search tree would find these."""
    masker = NiftiSpheresMasker(SEEDS[:1], radius=radius).fit()
    masker.transform(run)
    voxels, covered = masker.coverage_.loc[0, ["voxels", "covered"]]
    assert covered == math.prod(SHAPE)
    np.testing.assert_allclose(voxels, 4 / 3 * np.pi * radius**3 / (2 * 2.5 * 3), rtol=1e-6)
    if radius == 150:
        x, y, z = np.ogrid[-80:81, -70:71, -60:61]
        np.testing.assert_allclose(voxels, ((2 * x) ** 2 + (2.5 * y) ** 2 + (3 * z) ** 2 <= 150**2).sum(), rtol=1e-3)


@pytest.mark.parametrize("radius", [-1, np.nan, 501.0, 1e5, np.inf])
def test_wrong_radius(radius):
    msg = f"The radius of seed #0 is {radius}, expected a number of mm from 0 to 500, or None."
    with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
        NiftiSpheresMasker(SEEDS, radius).fit()


@pytest.mark.parametrize(("name", "value"), [("radius", "5"), ("radius", True), ("allow_overlap", 1)])
def test_wrong_types(name, value):
    with pytest.raises(TypeError, match=f"^'{name}' must be of type"):
        NiftiSpheresMasker(SEEDS, **{name: value}).fit()


def test_names_must_fit_the_seeds():
    with pytest.raises(ValueError, match=r"^`labels` must have a name per seed: 3, got 2\.$"):
        NiftiSpheresMasker(SEEDS, labels=["a", "b"]).fit()


def test_mask_without_voxel_on_the_grid_of_the_run(run):
    elsewhere = AFFINE.copy()
    elsewhere[:3, 3] += 1000
    masker = NiftiSpheresMasker(SEEDS, mask_img=image(np.ones(SHAPE, "u1"), elsewhere)).fit()
    with pytest.raises(ValueError, match=r"^The mask is invalid as it is empty: it masks all data\. No voxel of "):
        masker.transform(run)


# Inverse transform


def test_inverse_transform_paints_the_mean_of_overlapping_spheres(run):
    mask = np.ones(SHAPE, "u1")
    mask[:, :, 4:] = 0
    masker = NiftiSpheresMasker(SEEDS, radius=4.2, allow_overlap=True, mask_img=image(mask)).fit()
    signals = np.array([[1.0, 2, 4], [-3, 5, 0.5]])
    with pytest.raises(ValueError, match=r"^These spheres are empty: \[1\]"):
        masker.inverse_transform(signals)
    painted = masker.set_params(keep_all_regions=True).inverse_transform(signals)
    expected = np.zeros((*SHAPE, 2))
    members = [[v for v in voxels_of(seed, 4.2) if mask[v]] for seed in SEEDS]
    for voxel in {voxel for voxels in members for voxel in voxels}:
        own = [k for k, voxels in enumerate(members) if voxel in voxels]
        expected[voxel] = signals[:, own].mean(axis=1)
    np.testing.assert_allclose(painted.get_fdata(), expected, rtol=1e-15)
    np.testing.assert_array_equal(painted.affine, AFFINE)
    one = masker.inverse_transform(signals[0].astype("f4"))
    assert (one.shape, one.get_data_dtype()) == (SHAPE, np.float32)


def test_inverse_transform_needs_a_mask(run):
    masker = NiftiSpheresMasker(SEEDS).fit(run)
    msg = "Please provide mask_img at initialization to provide a reference for the inverse_transform."
    with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
        masker.inverse_transform([1.0, 2, 3])


# scikit-learn's manners


def test_names_and_set_output(run):
    masker = NiftiSpheresMasker(SEEDS).fit()
    assert masker.get_feature_names_out().tolist() == [f"niftispheresmasker{k}" for k in range(3)]
    named = NiftiSpheresMasker(SEEDS, labels=["pcc", "mpfc", "ipl"]).set_output(transform="pandas")
    assert named.fit_transform(run).columns.tolist() == ["pcc", "mpfc", "ipl"]


def test_pickled_and_cloned_maskers(run):
    masker = NiftiSpheresMasker(SEEDS, radius=4.2, allow_overlap=True, mask_img=image(np.ones(SHAPE, "u1")))
    signals = masker.fit_transform(run)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(masker)).transform(run), signals)
    np.testing.assert_array_equal(clone(masker).fit_transform(run), signals)
    assert masker.seeds_ == [list(seed) for seed in SEEDS]
    assert masker.n_elements_ == 3
    with pytest.raises(NotFittedError):
        clone(masker).transform(run)


def test_radius_changed_after_fit_takes_effect(run):
    masker = NiftiSpheresMasker(SEEDS[:2], radius=4.2).fit()
    masker.transform(run)
    expected = NiftiSpheresMasker(SEEDS[:2]).fit_transform(run)
    np.testing.assert_array_equal(masker.set_params(radius=None).transform(run), expected)


def test_cached_signals_depend_on_seeds_radius_and_mask(run, tmp_path):
    mask = np.ones(SHAPE, "u1")
    mask[2:4] = 0
    near = [(seed[0] + 2, *seed[1:]) for seed in SEEDS[:2]]
    parameters = [
        {"seeds": SEEDS[:2], "radius": 4.2},
        {"seeds": near, "radius": 4.2},
        {"seeds": SEEDS[:2], "radius": 3.2},
        {"seeds": SEEDS[:2], "radius": 4.2, "mask_img": image(mask)},
    ]
    expected = [NiftiSpheresMasker(**given).fit_transform(run) for given in parameters]
    for _ in range(2):
        for given, signals in zip(parameters, expected, strict=True):
            cached = NiftiSpheresMasker(**given, memory=tmp_path).fit_transform(run)
            np.testing.assert_array_equal(cached, signals)
    assert len({signals.tobytes() for signals in expected}) == 4


def test_spheres_and_labels_from_one_read(run):
    spheres = NiftiSpheresMasker(SEEDS, radius=4.2, allow_overlap=True, smoothing_fwhm=4).fit()
    labels = NiftiLabelsMasker(image(blocks())).fit()
    for together, alone in zip(transform_together([spheres, labels], run), (spheres, labels), strict=True):
        np.testing.assert_array_equal(together, alone.transform(run))


def test_3d_images(data):
    signals = NiftiSpheresMasker(SEEDS).fit_transform(image(data))
    np.testing.assert_array_equal(NiftiSpheresMasker(SEEDS).fit_transform(image(data[..., 0])), signals[0])


def test_default_masker_is_quiet(run):
    assert NiftiSpheresMasker(SEEDS).fit_transform(run).shape == (20, 3)  # warnings are errors here


# Reports


def test_report_before_and_after_transform(run):
    pytest.importorskip("matplotlib")
    masker = NiftiSpheresMasker(SEEDS, radius=4.2, allow_overlap=True, labels=["pcc", "<b>", "ipl"]).fit(run)
    seeds = str(masker.generate_report())
    row = "<tr><td class=n>1</td><td>&lt;b&gt;</td><td class=n>8</td><td class=n>4.5</td><td class=n>12</td>"
    assert f"{row}<td class=n>4.2</td><td class=n></td></tr>" in seeds
    masker.transform(run)
    spheres = str(masker.generate_report())
    assert f"{row}<td class=n>4.2</td><td class=n>{masker.plan_.counts[1]}</td></tr>" in spheres
    picture = re.compile("base64,([^']+)")
    assert picture.search(seeds)[1] != picture.search(spheres)[1]
    one = str(masker.generate_report(displayed_spheres=[1]))
    assert row in one
    assert "pcc</td>" not in one
    assert "pcc</td>" in str(masker.generate_report(displayed_spheres=1))


@pytest.mark.parametrize(
    ("displayed", "error", "message"),
    [
        ("none", TypeError, "must be 'all', a number of spheres or a list of their numbers, got 'none'."),
        ([0, 3], ValueError, "has [3], but the masker's spheres are 0 to 2."),
    ],
)
def test_report_of_spheres_that_do_not_exist(displayed, error, message):
    masker = NiftiSpheresMasker(SEEDS).fit()
    with pytest.raises(error, match=f"^{re.escape(f'`displayed_spheres` {message}')}$"):
        masker.generate_report(displayed_spheres=displayed)
