"""Plans against smoothing every volume with SciPy and reducing it region by region."""

import pickle
import re
import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from gpumask import backend
from gpumask.choices import LINEAR
from gpumask.engine import plan as module
from gpumask.images.grid import Grid, voxel_mapping
from gpumask.kernels.segments import STRATEGIES
from gpumask.kernels.smoothing import smoothing_matrix
from gpumask.kernels.weights import fold

from . import reference
from .runs import compile_plan

SHAPE = (8, 9, 7)
AFFINE = np.array([[-3.0, 0, 0, 10], [0, 3.5, 0, -12], [0, 0, 4, -9], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
IDS = [4, 9, 2, 7, 1]  # unordered; 9 has no voxel
TURN = np.array([[0.98, -0.17, 0.06], [0.17, 0.985, 0], [-0.06, 0.01, 0.998]])


def moved(*scales, turn=None):
    affine = AFFINE.copy()
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ affine[:3, :3] @ np.diag(scales)
    affine[:3, 3] += [1, -2, 1.5]
    return affine


GRIDS = {
    "same": None,
    "parallel": Grid((10, 7, 8), moved(0.8, 1.2, 0.9)),
    "mirrored": Grid((10, 9, 8), moved(-0.8, 1.1, 1) + np.array([[0, 0, 0, -20], *[[0] * 4] * 3])),
    "oblique": Grid((9, 9, 8), moved(1, 1, 1, turn=TURN)),
}


def some_labels(where="everywhere"):
    """Single voxels, large and scattered regions; "corner" and "inside" keep the box away from borders."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 0, 4, 2, 7], SHAPE)
    if where != "everywhere":
        inside = np.zeros(SHAPE, bool)
        inside[(slice(5, None), slice(0, 3), slice(4, None)) if where == "corner" else (slice(3, 5),) * 3] = True
        labels = np.where(inside, labels, 0)
    labels[tuple(np.argwhere(labels == 4)[0])] = 1
    return labels


def some_volumes(grid, n=2, dtype="f8", seed=1):
    return (np.random.default_rng(seed).normal(size=(n, *grid.shape)) * 50 + 100).astype(dtype)


def expected_signals(volumes, labels, strategy, *, grid=None, mask=None, fwhm=None):
    volumes = volumes.astype(np.float64)
    if grid is not None:
        volumes = reference.resample(volumes, *voxel_mapping(grid, GRID), SHAPE)
    if fwhm:
        sigma = fwhm / (np.sqrt(8 * np.log(2)) * np.array([3.0, 3.5, 4.0]))
        volumes = np.stack([gaussian_filter(volume, sigma) for volume in volumes])
    labels = labels if mask is None else np.where(mask, labels, 0)
    return reference.region_signals(reference.flat(volumes), labels.ravel(order="F"), IDS, strategy)


def run(plan, volumes, put=np.asarray):
    data = put(reference.flat(volumes))
    there = plan.like(data)
    result = there.reduce(data).signals
    assert backend.device_of(result) == backend.device_of(data)
    return backend.to_host(result)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("grid", GRIDS)
def test_direct(put, strategy, grid):
    volumes, labels = some_volumes(GRIDS[grid] or GRID), some_labels()
    plan = compile_plan(labels, IDS, GRID, grid=GRIDS[grid], strategy=strategy)
    assert (plan.way, plan.resampling is None) == ("direct", grid == "same")
    expected = expected_signals(volumes, labels, strategy, grid=GRIDS[grid])
    np.testing.assert_allclose(run(plan, volumes, put), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("way", ["folded", "staged"])
@pytest.mark.parametrize("strategy", LINEAR)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("where", ["everywhere", "corner", "inside"])
def test_both_ways_of_smoothing(put, way, strategy, grid, where):
    volumes, labels = some_volumes(GRIDS[grid] or GRID), some_labels(where)
    plan = compile_plan(labels, IDS, GRID, grid=GRIDS[grid], strategy=strategy, smoothing_fwhm=5.0, way=way)
    assert plan.way == way
    assert plan.linear == (way == "folded")
    expected = expected_signals(volumes, labels, strategy, grid=GRIDS[grid], fwhm=5.0)
    np.testing.assert_allclose(run(plan, volumes, put), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in LINEAR])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("where", ["everywhere", "corner"])
def test_staged_strategies(put, strategy, grid, where):
    volumes, labels = some_volumes(GRIDS[grid] or GRID), some_labels(where)
    plan = compile_plan(labels, IDS, GRID, grid=GRIDS[grid], strategy=strategy, smoothing_fwhm=5.0)
    assert (plan.way, plan.linear, plan.uses_products) == ("staged", False, True)
    expected = expected_signals(volumes, labels, strategy, grid=GRIDS[grid], fwhm=5.0)
    np.testing.assert_allclose(run(plan, volumes, put), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fwhm", [0.0, None, 0.3, 2.0, 12.0, 60.0])
@pytest.mark.parametrize("way", ["folded", "staged"])
def test_widths(fwhm, way):
    """From a kernel of one voxel to one that is mirrored several times."""
    volumes, labels = some_volumes(GRID), some_labels("corner")
    plan = compile_plan(labels, IDS, GRID, smoothing_fwhm=fwhm, way=way)
    assert plan.way == (way if fwhm else "direct")
    expected = expected_signals(volumes, labels, "mean", fwhm=fwhm)
    np.testing.assert_allclose(run(plan, volumes), expected, rtol=1e-11)


@pytest.mark.parametrize("fwhm", [None, 5.0])
@pytest.mark.parametrize("strategy", ["mean", "sum", "median"])
@pytest.mark.parametrize("grid", ["same", "parallel", "oblique"])
def test_mask(put, strategy, fwhm, grid):
    """It takes voxels from the regions, and nothing from what smoothing sees."""
    mask = np.random.default_rng(7).random(SHAPE) < 0.5
    labels, volumes = some_labels(), some_volumes(GRIDS[grid] or GRID)
    plan = compile_plan(labels, IDS, GRID, grid=GRIDS[grid], mask=mask, smoothing_fwhm=fwhm, strategy=strategy)
    expected = expected_signals(volumes, labels, strategy, grid=GRIDS[grid], mask=mask, fwhm=fwhm)
    np.testing.assert_allclose(run(plan, volumes, put), expected, rtol=1e-10, atol=1e-10)
    assert plan.counts.tolist() == [int(np.sum(mask & (labels == i))) for i in IDS]


@pytest.mark.parametrize("ids", [[9], [9, 11], []], ids=str)
@pytest.mark.parametrize("grid", ["same", "parallel", "oblique"])
@pytest.mark.parametrize("fwhm", [None, 5.0])
@pytest.mark.parametrize("strategy", ["mean", "sum", "maximum", "median", "variance"])
def test_no_region_has_a_voxel(ids, grid, fwhm, strategy):
    volumes = some_volumes(GRIDS[grid] or GRID)
    plan = compile_plan(some_labels(), ids, GRID, grid=GRIDS[grid], smoothing_fwhm=fwhm, strategy=strategy)
    np.testing.assert_array_equal(run(plan, volumes), np.full((2, len(ids)), 0.0 if strategy == "sum" else np.nan))


def test_a_matching_grid_is_not_resampled():
    almost = Grid(SHAPE, AFFINE + 1e-6)
    assert compile_plan(some_labels(), IDS, GRID, grid=almost).resampling is None
    assert compile_plan(some_labels(), IDS, GRID, grid=almost).grid is almost


@pytest.mark.parametrize("layout", ["C", "F"])
def test_labels_of_any_memory_order_and_untouched(layout):
    labels = np.array(some_labels(), order=layout)
    labels.flags.writeable = False
    volumes = some_volumes(GRID)
    expected = expected_signals(volumes, labels, "mean")
    np.testing.assert_allclose(run(compile_plan(labels, IDS, GRID), volumes), expected, rtol=1e-13)


@pytest.mark.parametrize("fwhm", [2.0, 6.0, 40.0])
def test_folded_weights_sum_to_the_voxel_counts(fwhm):
    plan = compile_plan(some_labels(), IDS, GRID, smoothing_fwhm=fwhm, way="folded")
    np.testing.assert_allclose(plan.segments.totals, plan.counts, rtol=1e-13)
    assert plan.counts.tolist() == [int(np.sum(some_labels() == i)) for i in IDS]
    assert np.all(plan.segments.weights > 0)


def test_resampling_takes_no_more_points_than_the_plan_needs():
    labels = some_labels("inside")
    direct = compile_plan(labels, IDS, GRID, grid=GRIDS["oblique"])
    assert len(direct.resampling.points) == np.sum(labels > 0)
    staged = compile_plan(labels, IDS, GRID, grid=GRIDS["oblique"], smoothing_fwhm=1.5, strategy="median")
    assert np.sum(labels > 0) < len(staged.resampling.points) < labels.size


def test_staged_smooths_only_the_box_around_the_regions():
    plan = compile_plan(some_labels("corner"), IDS, GRID, smoothing_fwhm=2.0, strategy="median")
    assert plan.smoothing.box == (slice(3, 7), slice(0, 4), slice(4, 8))  # z, y, x; a radius of 1 voxel
    assert [m.shape for m in plan.smoothing.matrices] == [(3, 4), (3, 4), (3, 4)]


@pytest.mark.parametrize("fwhm", [3.0, 8.0])
def test_choice_between_folded_and_staged(fwhm):
    """Large regions are folded; many small ones, each blurred into many voxels, are staged: by the estimate."""
    shape = (24, 24, 24)
    grid = Grid(shape, np.diag([2.0, 2, 2, 1]))
    x, y, z = np.indices(shape)
    few = 1 + (x // 12) + 2 * (y // 12)
    many = 1 + x + shape[0] * (y + shape[1] * z)
    for labels, n, way in [(few, 4, "folded"), (many, many.size, "staged")]:
        plan = compile_plan(labels, np.arange(1, n + 1), grid, smoothing_fwhm=fwhm)
        assert plan.way == way
        assert min(plan.estimate, key=plan.estimate.get) == way
        assert set(plan.estimate) == {"folded", "staged"}


def test_estimates_the_number_of_weights():
    """From a sample of the regions."""
    x, y, z = np.indices((24, 24, 24)) // 3
    labels = 1 + x + 8 * (y + 8 * z)
    module_ids = np.arange(1, 513)
    grid = Grid(labels.shape, np.diag([2.0, 2, 2, 1]))
    segments = compile_plan(labels, module_ids, grid).segments
    matrices = [smoothing_matrix(24, 1.0)] * 3
    estimated, _ = module._expected_weights(segments, labels.shape, matrices)
    actual = len(fold(segments.indices, segments.offsets, matrices)[0])
    assert estimated == pytest.approx(actual, rel=0.2)


def test_too_many_weights_for_the_memory(monkeypatch):
    monkeypatch.setattr(module, "_NS_PER_WEIGHT", 0.0)
    monkeypatch.setattr(module, "_MAX_WEIGHTS", 100)
    assert compile_plan(some_labels(), IDS, GRID, smoothing_fwhm=5.0).way == "staged"


def test_explains_a_direct_plan():
    n = int(np.isin(some_labels(), IDS).sum())
    assert compile_plan(some_labels(), IDS, GRID, strategy="maximum").explain().splitlines() == [
        f"5 regions, {n} voxels of a 8 x 9 x 7 grid",
        "direct: maximum of the stored voxels",
    ]


def test_explains_a_folded_plan():
    plan = compile_plan(some_labels(), IDS, GRID, grid=GRIDS["parallel"], smoothing_fwhm=5.0, way="folded")
    lines = plan.explain().splitlines()
    assert lines[0].endswith("voxels of a 10 x 7 x 8 grid")
    assert lines[1] == "cubic resampling to the regions' grid, one matrix per axis"
    assert lines[2] == f"folded: smoothing folded into {len(plan.segments.indices):,} weights; no volume is smoothed"
    assert lines[3].startswith("expected per volume and core: staged ")
    assert " ms, folded " in lines[3]
    assert len(lines) == 4


def test_explains_a_staged_plan():
    plan = compile_plan(some_labels(), IDS, GRID, grid=GRIDS["oblique"], smoothing_fwhm=5.0, strategy="median")
    assert plan.explain().splitlines()[1:] == [
        "cubic resampling to the regions' grid, at the needed voxels only",
        "staged: each volume is smoothed, then median",
        "a median of smoothed voxels isn't linear in raw ones, so smoothing can't be folded",
    ]
    plan = compile_plan(some_labels(), IDS, GRID, smoothing_fwhm=5.0, strategy="sum", way="staged")
    lines = plan.explain().splitlines()
    assert lines[1] == "staged: each volume is smoothed, then sum"
    assert lines[2].startswith("expected per volume and core: staged ")


@pytest.mark.parametrize("strategy", ["mean", "median"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("fwhm", [None, 5.0])
def test_pickles(strategy, grid, fwhm):
    plan = compile_plan(some_labels(), IDS, GRID, grid=GRIDS[grid], smoothing_fwhm=fwhm, strategy=strategy)
    volumes = some_volumes(GRIDS[grid] or GRID)
    before = run(plan, volumes)
    copy = pickle.loads(pickle.dumps(plan))
    np.testing.assert_array_equal(run(copy, volumes), before)
    assert copy.explain() == plan.explain()


@pytest.mark.parametrize("strategy", ["mean", "median"])
@pytest.mark.parametrize("grid", ["same", "parallel", "oblique"])
def test_like_moves_every_array(put, strategy, grid):
    plan = compile_plan(some_labels(), IDS, GRID, grid=GRIDS[grid], smoothing_fwhm=5.0, strategy=strategy)
    array = put(np.zeros(1))
    there = plan.like(array)
    if backend.is_numpy(array):
        assert there is plan
        return
    moved = [there.segments.indices, there.segments.offsets, *(there.smoothing.matrices if there.smoothing else [])]
    if grid != "same":
        cubic = there.resampling.cubic
        moved += [*cubic.matrices, *(cubic.taps if grid == "oblique" else [cubic.points])]
    assert {type(part) for part in moved} == {type(array)}
    assert {str(backend.device_of(part)) for part in moved} == {str(backend.device_of(array))}
    assert there.explain() == plan.explain()


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("strategy", ["mean", "median", "variance"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("way", [None, "folded", "staged"])
def test_same_bits_for_any_number_of_volumes(put, strategy, grid, way):
    if way == "folded" and strategy not in LINEAR:
        way = None
    fwhm = 5.0 if way else None
    plan = compile_plan(some_labels(), IDS, GRID, grid=GRIDS[grid], smoothing_fwhm=fwhm, strategy=strategy, way=way)
    volumes = some_volumes(GRIDS[grid] or GRID, n=5, dtype="f4")
    whole = run(plan, volumes, put)
    for t in range(5):
        np.testing.assert_array_equal(run(plan, volumes[t : t + 1], put), whole[t : t + 1])


def test_absurdly_many_voxels_of_smoothing():
    small = Grid(SHAPE, np.diag([1e-5, 2e-5, 1e-5, 1]), "tiny.nii")
    message = (
        "`smoothing_fwhm` of 6 mm has a standard deviation of 2.55e+05 voxels of tiny.nii (voxel sizes "
        "[1.e-05 2.e-05 1.e-05] mm), expected at most 10000. Choose a smaller width, or correct the image's header."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compile_plan(some_labels(), IDS, small, smoothing_fwhm=6)


def test_memory_of_the_estimate_for_scattered_regions():
    """64 sampled regions, each of which reaches nearly every voxel: they aren't folded at once."""
    shape = (40, 40, 40)
    labels = np.random.default_rng(0).integers(1, 101, shape)
    tracemalloc.start()
    plan = compile_plan(labels, np.arange(1, 101), Grid(shape, np.diag([2.0, 2, 2, 1])), smoothing_fwhm=6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.way == "staged"
    assert plan.estimate["folded"] > 100 * 64_000 * 0.9 * 0.12e-6
    assert peak < 25e6  # 64 x 64 000 weights of 12 bytes are 49 MB


@pytest.mark.parametrize("done", ["smoothed", "resampled"])
def test_axes_whose_matrices_would_be_huge(done):
    """A file of 64 kB has 32 767 voxels in a line: a matrix of 8.6 GB."""
    long = Grid((1, 1, 32_767), np.eye(4), "line.nii")
    labels, grid = np.ones(long.shape, "i2"), Grid((2, 2, 2), np.diag([2.0, 2, 2, 1]), "run.nii")
    options = {"smoothing_fwhm": 4} if done == "smoothed" else {"grid": grid}
    message = (
        f"Volumes with an axis of more than 5000 voxels can't be {done}, but line.nii has the shape (1, 1, 32767). "
        "Correct its header, or skip smoothing and resampling."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compile_plan(labels, [1], long, **options)
    if done == "resampled":
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            compile_plan(np.ones(grid.shape, "i2"), [1], grid, grid=long)
    assert compile_plan(labels, [1], long).way == "direct"
