"""Cubic resampling against scipy.ndimage.affine_transform, volume by volume, and against nilearn."""

import warnings

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import resample_img
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from gpumask import backend
from gpumask.images.grid import Grid, voxel_mapping
from gpumask.kernels import compiled
from gpumask.kernels.resampling import CubicResampling, resample_cubic

from . import reference
from .helpers import needs_compiled

SOURCE, TARGET = (9, 7, 8), (6, 10, 7)
TURN = Rotation.from_euler("xyz", [7, -12, 20], degrees=True).as_matrix()
EXACT = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # axes permuted: not diagonal, though no coordinate is rounded

MAPPINGS = {
    "magnified": (np.array([0.6, 0.55, 0.9]), np.array([0.3, 0.2, 0.1])),
    "reduced": (np.array([1.5, 2.1, 1.9]), np.array([-0.5, 0.0, 0.25])),
    "mirrored": (np.array([-1.1, 0.8, -0.9]), np.array([7.7, 0.3, 7.0])),
    "shifted": (np.ones(3), np.array([2.0, -1.0, 0.5])),
    "identity": (np.ones(3), np.zeros(3)),
    "away": (np.ones(3), np.array([0.0, 100.0, 0.0])),
    "border": (np.array([1.6, 6 / 9, 7 / 6]), np.zeros(3)),  # coordinates up to n - 1, or an ulp off
    "mirrored-border": (np.array([-1.6, -6 / 9, -7 / 6]), np.array([8.0, 6.0, 7.0])),
    "oblique": (TURN * 0.8, np.array([1.0, 2.0, 1.5])),
    "oblique-mirrored": (TURN @ np.diag([-0.9, 1.1, 0.7]), np.array([7.0, 1.0, 0.5])),
    "sheared": (np.array([[1, 0.3, 0], [0, 1, 0], [0.1, 0, 1.2]]), np.array([-0.4, 0.1, 0.2])),
    "permuted": (EXACT, np.array([0.0, 0.0, 0.0])),
    "permuted-border": (EXACT @ np.diag([6 / 9, 7 / 6, 1.6]), np.zeros(3)),
}
mappings = pytest.mark.parametrize("mapping", MAPPINGS)


def some_volumes(shape=SOURCE, n=2, dtype="f8", seed=0):
    return (np.random.default_rng(seed).normal(size=(n, *shape)) * 100).astype(dtype)


def resampled(put, volumes, mapping, target, voxels):
    plan = CubicResampling.compile(*mapping, volumes.shape[1:], target, voxels)
    data = put(reference.flat(volumes))
    result = resample_cubic(data, plan.like(data))
    assert result.dtype == backend.array_namespace(data).float64
    assert backend.device_of(result) == backend.device_of(data)
    return backend.to_host(result)


@mappings
def test_equals_scipy(put, mapping):
    volumes, everything = some_volumes(), np.arange(np.prod(TARGET))
    expected = reference.flat(reference.resample(volumes, *MAPPINGS[mapping], TARGET))
    result = resampled(put, volumes, MAPPINGS[mapping], TARGET, everything)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(result == 0, expected == 0)


@pytest.mark.filterwarnings("ignore:Casting data from")
def test_borders_of_oblique_grids_shifted_by_whole_voxels(put):
    """Rounding decides whether border voxels lie inside: SciPy adds the offset first, and nilearn calls SciPy."""
    rng, target = np.random.default_rng(0), (9, 10, 8)
    for _ in range(30):
        source, shifted = np.eye(4), np.eye(4)
        source[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0] @ np.diag([2, 2.5, 3])
        source[:3, 3] = rng.standard_normal(3) * 20
        shifted[:3, 3] = rng.integers(-2, 3, 3)
        grid = Grid((6, 7, 5), source)
        volume = rng.random(grid.shape) + 10
        mapping = voxel_mapping(grid, Grid(target, source @ shifted))
        plan = CubicResampling.compile(*mapping, grid.shape, target, np.arange(np.prod(target)))
        data = put(reference.flat(volume[np.newaxis]))
        result = backend.to_host(resample_cubic(data, plan.like(data)))[0].reshape(target, order="F")
        theirs = resample_img(
            nib.Nifti1Image(volume, source), source @ shifted, target, interpolation="continuous", clip=False
        ).get_fdata()
        np.testing.assert_allclose(result, theirs, rtol=0, atol=1e-9)


@mappings
@pytest.mark.parametrize("voxels", ["some", "one", "none"])
def test_wanted_voxels(put, mapping, voxels):
    volumes, rng = some_volumes(), np.random.default_rng(5)
    size = {"some": 40, "one": 1, "none": 0}[voxels]
    wanted = rng.permutation(np.prod(TARGET))[:size]  # not in order
    expected = reference.flat(reference.resample(volumes, *MAPPINGS[mapping], TARGET))[:, wanted]
    result = resampled(put, volumes, MAPPINGS[mapping], TARGET, wanted)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mapping", ["magnified", "mirrored", "oblique", "permuted", "border"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_short_axes(put, mapping, axis, n):
    shape = tuple(n if a == axis else size for a, size in enumerate(SOURCE))
    matrix, offset = MAPPINGS[mapping]
    for shift in (0.0, offset):  # the plane of one voxel is hit by the first
        volumes = some_volumes(shape)
        expected = reference.flat(reference.resample(volumes, matrix, np.zeros(3) + shift, TARGET))
        result = resampled(put, volumes, (matrix, np.zeros(3) + shift), TARGET, np.arange(np.prod(TARGET)))
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("oblique", [False, True])
def test_an_ulp_decides_at_the_border(put, oblique):
    """SciPy takes the last voxel's value at n - 1, and 0 at the next number; and likewise at 0."""
    volumes = some_volumes((5, 5, 5), 1)
    matrix = EXACT if oblique else np.ones(3)
    for edge, step in [(0.0, -np.inf), (0.0, np.inf), (4.0, np.inf), (4.0, -np.inf)]:
        for offset in (edge, np.nextafter(edge, step)):
            shift = np.full(3, offset)
            expected = reference.flat(reference.resample(volumes, matrix, shift, (1, 1, 1)))
            result = resampled(put, volumes, (matrix, shift), (1, 1, 1), np.arange(1))
            np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)
            assert (result == 0) == (offset < 0 or offset > 4)


@pytest.mark.parametrize("far", [1e3, 1e12, -1e12])
def test_points_far_outside_of_an_oblique_grid(put, far):
    """They are 0, and the points inside what they are without them: no index wraps around."""
    volumes, (matrix, offset) = some_volumes(), MAPPINGS["oblique"]
    stretched = matrix * np.array([1.0, 1.0, far])  # all planes but the first are far away
    expected = reference.flat(reference.resample(volumes, stretched, offset, TARGET))
    result = resampled(put, volumes, (stretched, offset), TARGET, np.arange(np.prod(TARGET)))
    n_inside = np.prod(TARGET[:2])
    assert np.count_nonzero(result[:, :n_inside]) > 20
    assert not result[:, n_inside:].any()
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


def test_cupy_gets_no_point_outside(gpu):
    """Far outside, its index overflows, and it would read memory before the volume."""
    matrix, offset = MAPPINGS["oblique"]
    plan = CubicResampling.compile(matrix * 1e6, offset, SOURCE, TARGET, np.arange(np.prod(TARGET)))
    assert np.abs(plan.coordinates).max() > 1e6
    coordinates = backend.to_host(plan.like(backend.to_device(np.zeros(1), gpu)).coordinates)
    assert coordinates.shape == plan.coordinates.shape
    assert (coordinates >= 0).all()
    assert (coordinates.max(axis=1) <= np.array(plan.shape) - 1).all()


def test_moving_twice_changes_nothing(put):
    volumes, everything = some_volumes(), np.arange(np.prod(TARGET))
    data = put(reference.flat(volumes))
    for mapping in (MAPPINGS["shifted"], MAPPINGS["oblique"]):
        once = CubicResampling.compile(*mapping, volumes.shape[1:], TARGET, everything).like(data)
        results = [backend.to_host(resample_cubic(data, plan)) for plan in (once, once.like(data))]
        np.testing.assert_array_equal(*results)
        assert not results[0].all()  # some points lie outside


@pytest.mark.parametrize("dtype", ["?", "i2", "u1", "f4"])
def test_dtypes(put, dtype):
    volumes = some_volumes().clip(0, 200).astype(dtype)
    for mapping in (MAPPINGS["magnified"], MAPPINGS["oblique"]):
        expected = reference.flat(reference.resample(volumes, *mapping, TARGET))
        result = resampled(put, volumes, mapping, TARGET, np.arange(np.prod(TARGET)))
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [">i2", ">f4"])
def test_foreign_byte_order(dtype):
    volumes = some_volumes().astype(dtype)
    native = volumes.astype(volumes.dtype.newbyteorder("="))
    for mapping in (MAPPINGS["magnified"], MAPPINGS["oblique"]):
        swapped, expected = (resampled(np.asarray, v, mapping, TARGET, np.arange(50)) for v in (volumes, native))
        np.testing.assert_array_equal(swapped, expected)


@pytest.mark.parametrize("mapping", ["magnified", "oblique"])
def test_same_bits_for_any_number_of_volumes(put, mapping):
    volumes, voxels = some_volumes(n=5, dtype="f4"), np.arange(0, np.prod(TARGET), 3)
    whole = resampled(put, volumes, MAPPINGS[mapping], TARGET, voxels)
    parts = [resampled(put, volumes[t : t + 1], MAPPINGS[mapping], TARGET, voxels) for t in range(5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def grids():
    """Pairs as they occur: 3 mm functional data and a 2 mm atlas, mirrored, oblique as scanned."""
    mni = np.array([[-2.0, 0, 0, 20], [0, 2, 0, -26], [0, 0, 2, -20], [0, 0, 0, 1]])
    straight = np.array([[3.0, 0, 0, -20.5], [0, 3, 0, -25], [0, 0, 3, -18], [0, 0, 0, 1]])
    ras = np.diag([2.0, 2, 2, 1])
    ras[:3, 3] = [-20, -26, -20]
    scanned = straight.copy()
    scanned[:3, :3] = TURN @ np.diag([3, 3, 3.6])
    return {
        "mirrored": (straight, mni),
        "same-voxels-mirrored": (ras, mni),
        "oblique": (scanned, mni),
        "to-oblique": (ras, scanned),
        "finer": (mni, mni @ np.diag([0.5, 0.5, 0.5, 1])),
    }


@pytest.mark.parametrize("pair", grids())
@pytest.mark.parametrize("dtype", ["f8", "f4", "i2"])
def test_equals_nilearn(pair, dtype):
    affine, target_affine = grids()[pair]
    source, target = Grid((13, 15, 12), affine), Grid((18, 20, 17), target_affine)
    volumes = some_volumes(source.shape, dtype=dtype)
    image = nib.Nifti1Image(np.moveaxis(volumes, 0, -1), affine, dtype=volumes.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Casting data from int16 to float32")
        theirs = resample_img(image, target.affine, target.shape, interpolation="continuous", clip=False)
    result = resampled(np.asarray, volumes, voxel_mapping(source, target), target.shape, np.arange(target.n_voxels))
    expected = reference.flat(np.moveaxis(theirs.get_fdata(), -1, 0))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10 if dtype == "f8" else 3e-5)
    np.testing.assert_array_equal(result == 0, expected == 0)
    assert np.mean(result != 0) > 0.05


def test_overshoots(put):
    """The result isn't clipped: a cubic spline leaves the range of its data."""
    volumes = np.zeros((1, 9, 9, 9))
    volumes[0, 4, 4, 4] = 1
    mapping = (np.full(3, 0.5), np.zeros(3))
    result = resampled(put, volumes, mapping, (17, 17, 17), np.arange(17**3))
    assert result.min() < -0.05
    expected = affine_transform(volumes[0], *mapping, (17, 17, 17), order=3).ravel(order="F")
    np.testing.assert_allclose(result[0], expected, rtol=0, atol=1e-12)


@needs_compiled
@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(9, 7, 8), (1, 5, 3), (2, 1, 20), (4, 300, 2), (1, 1, 1)])
def test_compiled_or_by_scipy(monkeypatch, shape, dtype):
    """Points inside, on voxels, on the border and beyond it; axes of one and two voxels, and longer than a strip."""
    rng = np.random.default_rng(0)
    mapping = (np.eye(3) + 0.2 * rng.normal(size=(3, 3)), rng.normal(size=3))
    plan = CubicResampling.compile(*mapping, shape, TARGET, np.arange(np.prod(TARGET)))
    last = np.array(plan.shape)[:, None] - 1.0
    corners = np.array(np.meshgrid(*[[0.0, 0.5, 1.0, np.nextafter(1, 2), -1e-300]] * 3)).reshape(3, -1) * last
    plan.coordinates = np.ascontiguousarray(np.hstack([plan.coordinates, rng.random((3, 50)) * last, corners]))
    data = reference.flat(rng.integers(0, 2 if dtype == "?" else 100, (3, *shape)).astype(dtype))
    by_c = resample_cubic(data, plan)
    np.testing.assert_array_equal(resample_cubic(data[1:2], plan), by_c[1:2])
    monkeypatch.setattr(compiled, "extension", None)
    expected = resample_cubic(data, plan)
    np.testing.assert_allclose(by_c, expected, rtol=0, atol=1e-11)
    outside = ((plan.coordinates < 0) | (plan.coordinates > last)).any(axis=0)
    assert outside.any()
    assert not by_c[:, outside].any()


@needs_compiled
@pytest.mark.parametrize("how", ["foreign order", "odd address", "columns", "float16"])
def test_compiled_splines_of_unusual_arrays(how):
    values = reference.flat(some_volumes(dtype="i2"))
    unusual = {
        "foreign order": lambda: values.astype(values.dtype.newbyteorder()),
        "odd address": lambda: np.frombuffer(b"0" + values.tobytes(), np.uint8)[1:].view("i2").reshape(values.shape),
        "columns": lambda: np.asfortranarray(values),
        "float16": lambda: values.astype("f2"),
    }[how]()
    plan = CubicResampling.compile(*MAPPINGS["oblique"], SOURCE, TARGET, np.arange(np.prod(TARGET)))
    np.testing.assert_array_equal(resample_cubic(unusual, plan), resample_cubic(unusual.astype("f8"), plan))
