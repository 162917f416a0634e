"""Gaussian smoothing against loops with explicit mirroring, and against SciPy."""

import re
import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from gpumask import backend
from gpumask.kernels import compiled
from gpumask.kernels.smoothing import (
    MAX_SIGMA,
    apply_along,
    apply_separable,
    fwhm_to_sigma,
    gaussian_smooth,
    multiplies_bands,
    smoothing_matrix,
)

from . import reference
from .helpers import needs_compiled

SIGMAS = [0, 0.1, 0.124, 0.126, 0.5, 1, 1.27, 2.9, 10]  # 0.124 at truncate=4 has radius 0, 0.126 has 1; 10 has 40


def smoothed(put, host, sigma, **keywords):
    volumes = put(host)
    result = gaussian_smooth(volumes, sigma, **keywords)
    assert result.dtype == backend.array_namespace(volumes).float64
    assert backend.device_of(result) == backend.device_of(volumes)
    assert result.shape == volumes.shape
    return backend.to_host(result)


@pytest.mark.parametrize("truncate", [1, 3.3, 4])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 30])
def test_matrix(n, sigma, truncate):
    """Axes of 1, 2, 3 and 7 voxels are mirrored many times over."""
    matrix = smoothing_matrix(n, sigma, truncate)
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=2e-16)
    np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-14)
    by_scipy = gaussian_filter1d(np.eye(n), sigma, axis=0, truncate=truncate, mode="reflect") if sigma else np.eye(n)
    np.testing.assert_allclose(matrix, by_scipy, rtol=0, atol=1e-15)
    for j in range(0, n, 5):
        line = [float(i == j) for i in range(n)]
        np.testing.assert_allclose(matrix[:, j], reference.smooth_line(line, sigma, truncate), rtol=0, atol=1e-15)


@pytest.mark.parametrize("sigma", [0, 0.124])
def test_kernels_of_one_voxel_are_the_identity(sigma):
    np.testing.assert_array_equal(smoothing_matrix(5, sigma), np.eye(5))


@pytest.mark.parametrize("sigma", [(1.2, 0.7, 2.0), (0, 1.1, 0), (5, 5, 5), (0, 0, 0)], ids=str)
def test_equals_the_definition(put, sigma):
    host = np.random.default_rng(0).normal(size=(2, 4, 3, 5))
    expected = [reference.smooth(volume, sigma) for volume in host]
    np.testing.assert_allclose(smoothed(put, host, sigma), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("sigma", [0, 0.3, 1.27, 4, 10])
def test_equals_scipy(put, sigma):
    host = np.random.default_rng(0).normal(size=(21, 12, 17)) * 1000
    for truncate in (2.5, 4):
        expected = gaussian_filter(host, sigma, truncate=truncate, mode="reflect")
        result = smoothed(put, host, [sigma] * 3, truncate=truncate)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("shape", "k"), [((6,), 1), ((3, 6), 1), ((3, 6), 2), ((2, 3, 4, 5), 2), ((2, 3, 4, 5), 0)])
def test_smooths_the_last_axes(put, shape, k):
    host = np.random.default_rng(0).normal(size=shape)
    sigma = [0.8, 1.9][:k]
    expected = gaussian_filter(host, [0.0] * (len(shape) - k) + sigma, mode="reflect")
    np.testing.assert_allclose(smoothed(put, host, sigma), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", ["?", "i2", "u8", "f4"])
def test_integers_are_smoothed_in_float64(put, dtype):
    host = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 1000, (7, 8)).astype(dtype)
    before = host.copy()
    host.flags.writeable = False
    expected = gaussian_filter(host.astype(np.float64), 1.5)
    np.testing.assert_allclose(smoothed(put, host, [1.5, 1.5]), expected, rtol=1e-14)
    np.testing.assert_array_equal(host, before)


def test_result_is_a_copy_even_where_nothing_is_smoothed(put):
    volumes = put(np.ones((3, 4)))
    gaussian_smooth(volumes, [0, 0])[0, 0] = 5
    assert float(volumes[0, 0]) == 1


def test_widest_gaussian_averages_and_needs_little_memory():
    tracemalloc.start()
    matrix = smoothing_matrix(100, MAX_SIGMA)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(matrix, 0.01, rtol=1e-4)
    assert peak < 5e6  # one row of the kernel, not one for each voxel: 100 times 80 001 weights


@pytest.mark.parametrize("sigma", [[1, 1, 1], [-0.1], [1, -1]])
def test_impossible_sigma(put, sigma):
    floats = [float(s) for s in sigma]
    expected = f"`sigma` must hold at most 2 numbers from 0 to 10000, one per axis to smooth, got {floats}."
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        gaussian_smooth(put(np.ones((3, 4))), sigma)


def test_fwhm():
    sigma = fwhm_to_sigma(6.0, (2, 3, 0.5))
    np.testing.assert_allclose(sigma, [6 / 2.3548200450309493 / size for size in (2, 3, 0.5)], rtol=1e-15)
    peak, half = 1.0, np.exp(-0.5 * (3.0 / (sigma[0] * 2)) ** 2)  # half a width of 6 mm from the centre
    assert half == pytest.approx(peak / 2, rel=1e-15)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_apply_along(put, axis):
    rng = np.random.default_rng(0)
    array, matrix = rng.normal(size=(3, 4, 5)), rng.normal(size=(2, (3, 4, 5)[axis]))
    expected = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
    result = apply_along(put(matrix), put(array), axis)
    np.testing.assert_allclose(backend.to_host(result), expected, rtol=1e-13)


@pytest.mark.parametrize("sizes", [(6, 2, 4), (1, 1, 1), (2, 8, 5)])
def test_apply_separable(put, sizes):
    """Whatever the order in which the axes are taken."""
    rng = np.random.default_rng(0)
    volumes = rng.normal(size=(2, 3, 4, 5))
    matrices = [rng.normal(size=(m, n)) for m, n in zip(sizes, (3, 4, 5), strict=True)]
    expected = np.einsum("tzyx,az,by,cx->tabc", volumes, *matrices)
    result = apply_separable([put(matrix) for matrix in matrices], put(volumes))
    np.testing.assert_allclose(backend.to_host(result), expected, rtol=0, atol=1e-12)


def banded(rng, m, n, below, above):
    """Matrix with entries from `below` under to `above` over a diagonal that runs from corner to corner."""
    matrix = np.zeros((m, n))
    for i in range(m):
        middle = round(i * (n - 1) / max(m - 1, 1))
        columns = slice(max(middle - below, 0), max(middle + above + 1, 0))
        matrix[i, columns] = rng.normal(size=matrix[i, columns].shape)
    return matrix


@needs_compiled
@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(20, 17, 33), (9, 40, 16), (33, 2, 5)])
def test_compiled_products_of_bands(dtype, shape):
    """Square, cut and stretched bands, one-sided ones, and rows without any entry."""
    rng = np.random.default_rng(0)
    host = rng.integers(0, 2 if dtype == "?" else 100, (3, *shape)).astype(dtype)
    for rows, below, above in [(shape, 2, 2), ([max(n - 4, 1) for n in shape], 1, 3), ([n + 5 for n in shape], 0, 1)]:
        matrices = [banded(rng, m, n, below, above) for m, n in zip(rows, shape, strict=True)]
        for matrix in matrices:
            matrix[len(matrix) // 2] = 0.0
        expected = np.einsum("tzyx,az,by,cx->tabc", host.astype(np.float64), *matrices, optimize=True)
        products = np.full(expected.shape, np.nan)
        compiled.extension.multiply(host, *matrices, products)
        np.testing.assert_allclose(products, expected, rtol=1e-12, atol=1e-10)


@needs_compiled
@pytest.mark.parametrize("sigma", [(1.2, 0.9, 1.5), (0.5, 2.0, 0.0)])
def test_compiled_or_by_blas(monkeypatch, sigma):
    """Bands alone where they are narrow; the same values, each volume's bits its own."""
    volumes = np.random.default_rng(0).normal(size=(3, 30, 26, 40)) * 100
    matrices = [smoothing_matrix(n, s) for n, s in zip(volumes.shape[1:], sigma, strict=True)]
    assert multiplies_bands(matrices)
    assert not multiplies_bands([smoothing_matrix(n, 6.0) for n in volumes.shape[1:]])
    by_c = apply_separable(matrices, volumes)
    np.testing.assert_array_equal(apply_separable(matrices, volumes[1:2])[0], by_c[1])
    np.testing.assert_array_equal(gaussian_smooth(volumes, sigma), by_c)
    monkeypatch.setattr(compiled, "extension", None)
    assert not multiplies_bands(matrices)
    np.testing.assert_allclose(apply_separable(matrices, volumes), by_c, rtol=0, atol=1e-11)
    np.testing.assert_allclose(gaussian_smooth(volumes, sigma), by_c, rtol=0, atol=1e-11)


@needs_compiled
@pytest.mark.parametrize("how", ["box", "foreign order", "odd address", "reversed", "every other", "float16"])
def test_compiled_products_of_unusual_arrays(how):
    values = np.random.default_rng(0).integers(0, 1000, (2, 20, 24, 28)).astype("i2")
    volumes = {
        "box": lambda: values[:, 2:17, 3:22, 4:25],
        "foreign order": lambda: values.astype(values.dtype.newbyteorder()),
        "odd address": lambda: np.frombuffer(b"0" + values.tobytes(), np.uint8)[1:].view("i2").reshape(values.shape),
        "reversed": lambda: values[:, ::-1, ::-1, ::-1],
        "every other": lambda: values[..., ::2],
        "float16": lambda: values.astype("f2"),
    }[how]()
    matrices = [smoothing_matrix(n, 1.0) for n in volumes.shape[1:]]
    assert multiplies_bands(matrices)
    plain = np.ascontiguousarray(volumes.astype(np.float64))
    np.testing.assert_array_equal(apply_separable(matrices, volumes), apply_separable(matrices, plain))


@needs_compiled
def test_a_voxel_that_is_not_finite_stays_within_the_kernel():
    volume = np.zeros((1, 30, 30, 30))
    volume[0, 15, 15, 15] = np.inf
    reached = ~np.isfinite(gaussian_smooth(volume, [1.0] * 3))
    assert np.argwhere(reached).min(axis=0).tolist() == [0, 11, 11, 11]
    assert reached.sum() == 9**3
