"""Several label images as one atlas: which voxel belongs to which region, ids, coverage; against a voxel-wise loop."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from gpumask.engine.combined_regions import CombinedRegions
from gpumask.engine.dense_regions import DenseLabelRegions
from gpumask.engine.regions import LabelRegions
from gpumask.extraction import extract, prepare
from gpumask.images.combined_atlas import CombinedAtlas
from gpumask.images.dense_atlas import load_dense_atlas
from gpumask.images.grid import Grid
from gpumask.images.labels import Atlas, load_atlas
from gpumask.images.runs import open_run
from gpumask.settings import Settings

from . import dense
from .helpers import image

AFFINE = np.diag([3.0, 3, 3, 1])
SHAPE = (9, 10, 8)
# Other grids: finer and shifted, coarser and turned. No voxel's centre lies halfway between two of another grid.
FINE = np.array([[1.713, 0, 0, -1.317], [0, 1.713, 0, 0.419], [0, 0, 2.111, 0.937], [0, 0, 0, 1]])
TURNED = np.array([[0.517, -3.419, 0, 25.317], [3.313, 0.431, 0.311, -1.129], [0.217, 0, 3.719, -0.713], [0, 0, 0, 1]])
SETTINGS = Settings(keep_all_regions=True)


def atlas(labels, affine=AFFINE, background=0, name="a"):
    labels = np.asarray(labels)
    return Atlas(labels, Grid(labels.shape, affine, name), background)


def boxes(shape, seed, ids, dtype="i2"):
    """A box for each id, at random places; later ones are over earlier ones."""
    rng, labels = np.random.default_rng(seed), np.zeros(shape, dtype)
    for label in ids:
        low = [rng.integers(0, n - 4) for n in shape]
        labels[tuple(slice(k, k + 4) for k in low)] = label
    return labels


def combined(*atlases, mask=None, mask_grid=None):
    parts = tuple(LabelRegions(replace(one, mask=mask, mask_grid=mask_grid), one) for one in atlases)
    return CombinedRegions(parts, CombinedAtlas(tuple(atlases)))


def run_of(shape=SHAPE, affine=AFFINE, n=12, dtype="i2"):
    return open_run(image(np.random.default_rng(5).integers(500, 900, (*shape, n)).astype(dtype), affine))


def values_of(volumes):
    """Values of a run: shape (x, y, z, n_volumes)."""
    chunks = [chunk.scaled().reshape(-1, volumes.grid.n_voxels) for chunk in volumes.chunks(5)]
    return np.concatenate(chunks).T.reshape(*volumes.grid.shape, -1, order="F")


def signals(volumes, regions, settings=SETTINGS, **more):
    prepared = prepare(volumes, regions, settings, **more)
    return extract([prepared], volumes)[0].signals, prepared.regions


def nearest(values, source, affine, index):
    """Value of the voxel nearest to a voxel of another grid; 0 outside the field of view."""
    at = np.linalg.solve(source, affine @ [*index, 1])[:3]
    if (at < -1e-6).any() or (at > np.array(values.shape) - 1 + 1e-6).any():
        return 0
    return values[tuple(np.floor(at + 0.5 - 1e-9).astype(int))]


def every(shape):
    return itertools.product(*map(range, shape))


def reference(parts, data, affine, mask=None):
    """Mean of each region, by part and label, and its coverage, with one voxel at a time."""
    inside = np.ones(data.shape[:3]) if mask is None else mask
    members, coverage = {}, {}
    for index in every(data.shape[:3]):
        for k, part in enumerate(parts):
            label = nearest(part.labels, part.grid.affine, affine, index)
            if label:
                if inside[index]:
                    members.setdefault((k, label), []).append(index)
                break
    for k, part in enumerate(parts):
        for index in every(part.labels.shape):
            if label := part.labels[index]:
                counts = coverage.setdefault((k, label), [0, 0])
                counts[0] += 1
                there = nearest(inside, affine, part.grid.affine, index)
                others = [nearest(one.labels, one.grid.affine, part.grid.affine, index) for one in parts[:k]]
                counts[1] += bool(there) and not any(others)
    means = {key: data[tuple(np.transpose(found))].astype(float).mean(axis=0) for key, found in members.items()}
    return means, {key: covered / n for key, (n, covered) in coverage.items()}


def three(same_grid=False):
    first = atlas(boxes(SHAPE, 0, [1, 2, 7]), name="one")
    second = atlas(boxes((14, 15, 10), 1, [1, 2, 3]), FINE, name="two")
    if same_grid:
        return first, atlas(boxes(SHAPE, 1, [2, 3, 9]), name="two"), atlas(boxes(SHAPE, 2, [40, 50]), name="three")
    return first, second, atlas(boxes((7, 8, 6), 2, [40, 50], "f4"), TURNED, name="three")


@pytest.mark.parametrize("same_grid", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0)])
def test_signals_and_coverage_equal_a_loop_over_voxels(same_grid, masked, order):
    parts = [three(same_grid)[k] for k in order]
    volumes = run_of()
    mask = None
    if masked:
        mask = np.zeros(SHAPE, bool)
        mask[1:-1, 1:, 2:] = True
    found, on_grid = signals(volumes, combined(*parts, mask=mask, mask_grid=volumes.grid if masked else None))
    data = values_of(volumes)
    means, coverage = reference(parts, data, AFFINE, mask)
    keys = [(k, label) for k, part in enumerate(parts) for label in np.unique(part.labels) if label]
    expected = np.column_stack([means.get(key, np.full(data.shape[-1], np.nan)) for key in keys])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(on_grid.covered_share, [coverage[key] for key in keys])
    assert len(set(on_grid.ids.tolist())) == len(keys)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "median"},
        {"strategy": "standard_deviation", "nan_policy": "omit"},
        {"smoothing_fwhm": 5},
        {"smoothing_fwhm": 5, "strategy": "maximum"},
    ],
    ids=str,
)
def test_regions_without_overlap_have_the_bits_of_their_part_alone(options):
    parts, volumes = three(), run_of()
    settings = replace(SETTINGS, **options)
    together, on_grid = signals(volumes, combined(*parts), settings)
    untouched = 0
    for k, part in enumerate(parts):
        alone, own = signals(volumes, LabelRegions(part, part), settings)
        begin = sum(len(np.unique(one.labels)) - 1 for one in parts[:k])
        columns = slice(begin, begin + len(own.ids))
        equal = on_grid.counts[columns] == own.counts
        untouched += equal.sum()
        np.testing.assert_array_equal(together[:, columns][:, equal], alone[:, equal])
        assert k > 0 or equal.all()
        whole = on_grid.coverage[1][columns] == own.coverage[1]
        assert np.array_equal(on_grid.covered_share[columns][whole], own.covered_share[whole])
    assert untouched >= 4
    assert untouched < len(on_grid.ids)  # some regions do overlap


def test_real_cortex_and_subcortex_have_the_bits_of_each_alone(data):
    volumes = open_run(data / "sub-02_task-oneback_run-1_bold.nii.gz")
    whole = load_atlas(data / "sub-02_space-bold_atlas-Schaefer100TianS1_dseg.nii.gz")
    split = np.sort(whole.values[whole.values != 0])[16]  # Tian's 16 regions come first
    cortex, subcortex = (
        replace(whole, labels=np.where(keep, whole.labels, 0)) for keep in (whole.labels >= split, whole.labels < split)
    )
    cleaned = Settings(keep_all_regions=True, detrend=True, standardize="zscore_sample", t_r=2.0, high_pass=0.01)
    regions = [combined(cortex, subcortex), LabelRegions(cortex, cortex), LabelRegions(subcortex, subcortex)]
    prepared = [prepare(volumes, one, settings) for settings in (SETTINGS, cleaned) for one in regions]
    raw, *others = [result.signals for result in extract(prepared, volumes)]
    raw_alone, clean, clean_alone = others[:2], others[2], others[3:]
    assert raw.shape == (156, 116)
    np.testing.assert_array_equal(raw, np.hstack(raw_alone))
    # BLAS may sum in another order for another number of columns.
    np.testing.assert_allclose(clean, np.hstack(clean_alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (([1, 2, 3], [4, 5]), [1, 2, 3, 4, 5]),
        (([11, 12], [4, 5]), [11, 12, 4, 5]),  # no clash: kept, also if they don't ascend
        (([1, 2, 9], [1, 2]), [1, 2, 9, 10, 11]),
        (([1, 2, 9], [9, 12]), [1, 2, 9, 18, 21]),
        (([1, 2], [2], [2, 4]), [1, 2, 4, 6, 8]),
        (([1, 2], [2], [4]), [1, 2, 4, 8]),  # with an id that isn't its label
        (([-3, 5], [-3, 7]), [-3, 5, 6, 16]),
        (([0.5, 2.25], [0.5]), [0.5, 2.25, 3.5]),
        (([1, 3000000000], [1]), [1, 3000000000, 3000000001]),
    ],
)
def test_ids_are_labels_unless_two_parts_share_one(labels, expected):
    parts = []
    for k, values in enumerate(labels):
        array = np.zeros((8, 4, 4), np.asarray(values).dtype)
        array[: len(values), k, k] = values
        parts.append(atlas(array))
    found = np.concatenate(CombinedAtlas(tuple(parts)).ids)
    assert found.tolist() == expected
    assert (found.dtype == np.int64) == all(isinstance(value, int) for value in expected)


def test_labels_beyond_2_to_53_are_refused():
    array = np.full((2, 2, 2), 2**60)
    array[0] = 0
    other = atlas(np.eye(2, dtype=int)[:, :, None], name="b")
    with pytest.raises(
        ValueError, match=re.escape(f"a has labels from {2**60} to {2**60}, expected none beyond 2**53.")
    ):
        CombinedAtlas((atlas(array), other))


def two(labels, others, **more):
    return CombinedAtlas((atlas(labels), atlas(others, name="b", **more)))


@pytest.mark.parametrize("dtype", [int, float])
def test_notes_count_the_overlap_and_say_what_is_left(dtype):
    labels = np.zeros((4, 4, 4), int)
    labels[:2] = 1
    others = np.zeros((4, 4, 4), dtype)
    others[1], others[2], others[1, 0, 0] = 1, 2, 3
    assert two(labels, others).notes == [
        "b has labels that a has too. Its regions have the ids 2 to 4: label + 1.",
        "16 of the 32 voxels with a label in b lie inside regions of a, which come first and keep them. Less than half "
        "is left of the labels 1, 3.",
    ]
    assert two(labels, np.roll(others, 1, axis=0) * 5).notes == []


def test_part_inside_others_is_refused():
    labels = np.ones((4, 4, 4), int)
    others = np.zeros((4, 4, 4), int)
    others[1:3, 1:3, 1:3] = 4
    msg = "Every region of b lies inside those of a, named before it. Name it first, or leave it out."
    with pytest.raises(ValueError, match=re.escape(msg)):
        two(labels, others)
    assert [ids.tolist() for ids in two(others, labels).ids] == [[4], [1]]


def test_only_regions_with_voxels_are_found_if_not_all_are_kept():
    labels = np.zeros(SHAPE, int)
    labels[:3] = 1
    others = np.zeros(SHAPE, int)
    others[2], others[3], others[4] = 4, 5, 6
    regions = combined(atlas(labels), atlas(others, name="b"))
    on_grid = regions.on(run_of().grid, "data", "found")
    assert on_grid.ids.tolist() == [1, 5, 6]
    msg = "b: these labels have no voxel outside regions of atlases named before it: 4."
    assert on_grid.notes == [(msg, UserWarning)]
    assert on_grid.explanation == ["80 voxels of b belong to regions of atlases named before it"]
    assert regions.on(run_of().grid, "data", "all").counts.tolist() == [240, 0, 80, 80]
    numbers = np.asarray(on_grid.image.dataobj)
    assert np.bincount(numbers.ravel()).tolist() == [320, 240, 80, 80]
    assert (numbers[3] == 2).all()


def test_notes_and_errors_of_parts_name_them():
    labels, thin = np.zeros(SHAPE, int), np.zeros((36, 10, 8), int)
    labels[:3], thin[24:], thin[17] = 1, 2, 3
    fine = atlas(thin, np.diag([0.75, 3, 3, 1]), name="sub.nii")
    on_grid = combined(atlas(labels), fine).on(run_of().grid, "data", "found")
    assert on_grid.ids.tolist() == [1, 2]
    [(note, _)] = on_grid.notes
    assert note.startswith(
        "sub.nii: After resampling the label image to the data image, the following labels were removed: "
    )
    mask = np.zeros(SHAPE, bool)
    mask[:5] = True
    for keep in ("found", "all"):
        with pytest.raises(ValueError, match=r"^sub\.nii: No label left after applying mask to the labels image\.$"):
            combined(atlas(labels), fine, mask=mask, mask_grid=run_of().grid).on(run_of().grid, "data", keep)
    away = AFFINE.copy()
    away[0, 3] = 500
    far = atlas(labels + 4, away)
    with pytest.raises(
        ValueError, match=r"^No label left after resampling the labels image\. a and in-memory image may lie in"
    ):
        combined(atlas(labels), far).on(run_of().grid, "data", "all")


def test_a_background_that_is_not_0_makes_no_region_outside_the_image():
    """Resampling fills the outside with 0, which would claim all of it."""
    first = np.full((4, 4, 4), 9)
    first[1:3, 1:3, 1:3] = 1
    second = np.zeros(SHAPE, int)
    second[6:8, 6:8, 5:7] = 2
    regions = combined(atlas(first, background=9), atlas(second, name="b"))
    assert regions.on(run_of().grid, "data", "found").ids.tolist() == [1, 2]
    assert regions.on(run_of().grid, "data", "all").counts.tolist() == [8, 8]


def test_parts_on_different_grids_cannot_be_what_runs_are_resampled_to():
    volumes, parts = run_of(), three()
    msg = (
        "one and two have different grids, so runs can't be resampled to both. Pass resampling_target='data', or "
        "resample one of them first."
    )
    with pytest.raises(ValueError, match=re.escape(msg)):
        combined(*parts).on(volumes.grid, "labels", "all")


def test_runs_are_resampled_to_parts_on_one_grid():
    volumes = run_of(affine=np.diag([2.9, 3.1, 3, 1]))
    parts, settings = three(same_grid=True), replace(SETTINGS, resampling_target="labels")
    together, on_grid = signals(volumes, combined(*parts), settings)
    assert on_grid.resampled == ("images",)
    alone, own = signals(volumes, LabelRegions(parts[0], parts[0]), settings)
    np.testing.assert_array_equal(together[:, : len(own.ids)], alone)


def test_identity_depends_on_order_labels_and_grids():
    one, two_, three_ = three()
    same = three()
    identities = [
        combined(one, two_).identity,
        combined(two_, one).identity,
        combined(one, three_).identity,
        combined(one, replace(two_, grid=Grid(two_.grid.shape, AFFINE, "two"))).identity,
        combined(one, two_, three_).identity,
    ]
    assert len(set(identities)) == len(identities)
    assert combined(*same[:2]).identity == identities[0]


def test_little_overlap_names_the_part():
    far = AFFINE.copy()
    far[0, 3] = 20
    regions = combined(atlas(boxes(SHAPE, 0, [1])), atlas(np.full((6, 5, 5), 2), far, name="b"))
    message = regions.on(run_of().grid, "data", "all").little_overlap("run")
    assert re.fullmatch(r"run covers only \d+% of the atlas b\. Are they in the same space\?", message)


@pytest.mark.parametrize("in_common", [True, False])
def test_dense_parts_equal_the_definition_without_what_the_first_has(in_common):
    rng = np.random.default_rng(3)
    axes = [dense.models(rng, share=0.9) for _ in range(3)]
    if not in_common:  # such as a cortex and a subcortex
        axes[0], axes[1] = dense.surface(range(0, 50, 2)), axes[1][~axes[1].surface_mask]
    labels = [rng.integers(0, 4, len(axis)) for axis in axes[:2]]
    data = rng.normal(100, 5, (6, len(axes[2])))
    parts = [load_dense_atlas(dense.labels_image(*one)) for one in zip(labels, axes[:2], strict=True)]
    run = open_run(dense.series_image(data, axes[2]))
    regions = CombinedRegions([DenseLabelRegions(part) for part in parts], CombinedAtlas(parts))
    found, on_grid = signals(run, regions)

    named_before = {key for key, label in zip(dense.identities(axes[0]), labels[0], strict=True) if label}
    left = np.array([key not in named_before for key in dense.identities(axes[1])]) * labels[1]
    (_, first, counts), (_, second, lesser) = (
        dense.by_definition(data, axes[2], *one) for one in ((labels[0], axes[0]), (left, axes[1]))
    )
    np.testing.assert_allclose(found, np.hstack([first, second]), rtol=1e-12)
    assert on_grid.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert on_grid.coverage[0].tolist() == [*counts[:, 0], *np.bincount(labels[1])[1:]]
    assert on_grid.coverage[1].tolist() == [*counts[:, 1], *lesser[:, 1]]
    assert any(on_grid.lost) == in_common
    assert any("grayordinates with a label" in note for note in regions.combined.notes) == in_common


def test_gpu_equals_cpu(gpu):
    parts, volumes = three(), run_of()
    on_cpu, _ = signals(volumes, combined(*parts))
    on_gpu, _ = signals(volumes, combined(*parts), device=gpu)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-10)
