"""Arrays of other libraries: pairs (array, affine) as runs, and kernels that return what they are given."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import gpumask
from gpumask import backend, devices, dlpack, kernels, signal
from gpumask.images.errors import DimensionError, ImageError
from gpumask.images.volumes import open_volumes
from gpumask.kernels import Segments

from .foreign import Foreign, Known
from .runs import AFFINE, SHAPE, some_labels, stored_run

LABELS = nib.Nifti1Image(some_labels().astype("i4"), AFFINE)
N = 12
RUN = stored_run("f4", N)

ORDERS = {
    "Fortran": np.asfortranarray,
    "C": np.ascontiguousarray,
    "time first": lambda array: np.ascontiguousarray(np.moveaxis(array, 3, 0)).transpose(1, 2, 3, 0),
    "every second": lambda array: np.repeat(np.repeat(array, 2, axis=0), 2, axis=3)[::2, :, :, ::2],
}


def masker(**options):
    return gpumask.NiftiLabelsMasker(LABELS, device="cpu", **options)


# Pairs


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [lambda array: array, Foreign], ids=["NumPy", "foreign"])
@pytest.mark.parametrize("dtype", ["i1", "u1", ">i2", "i8", "u4", "f4", "f8"])
def test_a_pair_is_a_run(dtype, kind, order):
    stored = stored_run(dtype, N)
    if kind is Foreign and not stored.dtype.isnative:
        stored = stored.astype(stored.dtype.newbyteorder("="))
    given = ORDERS[order](stored)
    before = given.copy()
    expected = masker(detrend=True).fit_transform(nib.Nifti1Image(stored, AFFINE, dtype=stored.dtype))
    np.testing.assert_array_equal(masker(detrend=True).fit_transform((kind(given), AFFINE)), expected)
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("kind", [lambda array: array, Foreign], ids=["NumPy", "foreign"])
def test_arrays_in_fortran_order_are_not_copied(kind):
    volumes = open_volumes((kind(RUN), AFFINE))
    assert all(np.shares_memory(chunk.data, RUN) for chunk in volumes.chunks(5))
    assert (volumes.device, volumes.t_r, volumes.name) == ("cpu", None, "in-memory image")


def test_read_only_arrays_are_read():
    frozen = RUN.copy(order="F")
    frozen.flags.writeable = False
    for array in (frozen, Foreign(frozen)):
        np.testing.assert_array_equal(masker().fit_transform((array, AFFINE)), masker().fit_transform((RUN, AFFINE)))


@pytest.mark.parametrize(
    "convert", [np.array, np.ndarray.tolist, Foreign, np.float32, lambda a: Foreign(a.astype("i8"))]
)
def test_affines(convert):
    whole = np.rint(AFFINE)
    np.testing.assert_array_equal(open_volumes((RUN, convert(whole))).grid.affine, whole)


def test_a_3d_pair_is_one_volume():
    one = masker().fit_transform((RUN[..., 0], AFFINE))
    np.testing.assert_array_equal(one, masker().fit_transform((RUN, AFFINE))[0])


def test_lists_of_3d_pairs_are_volumes_and_lists_of_pairs_are_runs():
    expected = masker().fit_transform((RUN, AFFINE))
    np.testing.assert_array_equal(
        masker().fit_transform([(volume, AFFINE) for volume in np.moveaxis(RUN, 3, 0)]), expected
    )
    several = gpumask.MultiNiftiLabelsMasker(LABELS, device="cpu")
    for runs in ([(RUN, AFFINE), (RUN[..., :5], AFFINE)], ((RUN, AFFINE), (RUN[..., :5], AFFINE))):
        full, part = several.fit_transform(runs)
        np.testing.assert_array_equal(full, expected)
        np.testing.assert_array_equal(part, expected[:5])
    np.testing.assert_array_equal(several.fit_transform((RUN, AFFINE)), expected)  # one pair: one run


def test_two_images_in_a_tuple_are_still_a_list():
    images = tuple(nib.Nifti1Image(RUN[..., k], AFFINE) for k in range(2))
    np.testing.assert_array_equal(masker().fit_transform(images), masker().fit_transform((RUN[..., :2], AFFINE)))


def test_pairs_everywhere():
    """Masks, atlases, maps, every masker and function get the same from a pair as from an image."""
    img, pair = nib.Nifti1Image(RUN, AFFINE), (Foreign(RUN), AFFINE)
    mask = (np.ascontiguousarray(some_labels() > 0).astype("i1"), AFFINE)
    weights = np.random.default_rng(0).random((*SHAPE, 3))
    maskers = [
        lambda: gpumask.NiftiLabelsMasker((some_labels(), AFFINE), mask_img=mask, device="cpu"),
        lambda: gpumask.NiftiMapsMasker((Foreign(weights), AFFINE), device="cpu"),
        lambda: gpumask.NiftiSpheresMasker([(1, 2, 3)], radius=6, mask_img=mask, device="cpu"),
        lambda: gpumask.NiftiMasker(mask, high_variance_confounds=True, device="cpu"),
    ]
    for make in maskers:
        np.testing.assert_array_equal(make().fit().transform(pair), make().fit().transform(img))
    fitted = maskers[0]().fit()
    for function in (
        lambda run: gpumask.transform_together([fitted, fitted], run)[1],
        lambda run: gpumask.correlation_maps(fitted, run),
        lambda run: gpumask.clean_img(run).get_fdata(),
        lambda run: gpumask.smooth_img(run, 5).get_fdata(),
        lambda run: gpumask.smooth_img([run, run], 5)[1].get_fdata(),
    ):
        np.testing.assert_array_equal(function(pair), function(img))


@pytest.mark.parametrize("put", [Foreign, Known])
def test_images_are_painted_with_arrays_of_any_library(put):
    fitted = masker().fit()
    signals = fitted.transform((RUN, AFFINE))
    for given in (signals, signals[0]):
        expected, actual = fitted.inverse_transform(given), fitted.inverse_transform(put(given))
        np.testing.assert_array_equal(actual.get_fdata(), expected.get_fdata())
        assert actual.get_data_dtype() == expected.get_data_dtype()


def test_masks_are_computed_from_pairs():
    pytest.importorskip("nilearn")
    data = np.zeros((20, 20, 20, 3), "f4")
    data[5:15, 5:15, 5:15] = 100 + np.arange(3)
    volumes = list(np.moveaxis(data, 3, 0))
    for make, of in (
        (gpumask.NiftiMasker, lambda placed: placed(data)),
        (gpumask.NiftiMasker, lambda placed: [placed(volume) for volume in volumes]),
        (gpumask.MultiNiftiMasker, lambda placed: [placed(data), placed(data)]),
    ):
        images = make(device="cpu").fit(of(lambda array: nib.Nifti1Image(array, AFFINE)))
        pairs = make(device="cpu").fit(of(lambda array: (Foreign(array), AFFINE)))
        np.testing.assert_array_equal(pairs.mask_img_.get_fdata(), images.mask_img_.get_fdata())
        assert 0 < pairs.n_elements_ < 8000


def test_logs_name_pairs(capsys):
    masker(verbose=1).fit_transform((RUN, AFFINE))
    assert "Loading data from an array on cpu\n" in capsys.readouterr().out


class Elsewhere(Foreign):
    def __dlpack_device__(self):
        return 8, 0  # Metal


class Unsupported(Foreign):
    def __dlpack__(self, **options):
        raise BufferError("Can't export tensors that require gradient")


REAL = "`array` must be an array of real numbers, got {}. Convert it first."
BITS = (
    "The array of (array, affine) holds values of type {}, expected integers, or floats of 32 bits or more. "
    "Convert it first."
)
SHAPED = (
    "Input data has incompatible dimensionality: Expected dimension is 4D and you provided a {}D image. The array of "
    "(array, affine) has shape {}, expected (x, y, z) or (x, y, z, time)."
)
AFFINED = (
    "The affine of (array, affine) has the shape {}, expected (4, 4). Several arrays are a list of pairs: "
    "[(array, affine), ...]."
)
WRONG = {
    "complex": ((RUN.astype("c8"), AFFINE), TypeError, REAL.format("complex64")),
    "objects": ((RUN.astype(object), AFFINE), TypeError, REAL.format("object")),
    "bool": ((RUN > 0, AFFINE), TypeError, BITS.format("bool")),
    "half": ((RUN.astype("f2"), AFFINE), TypeError, BITS.format("float16")),
    "2D": ((RUN[0, 0], AFFINE), DimensionError, SHAPED.format(2, (7, N))),
    "5D": ((RUN[..., None], AFFINE), DimensionError, SHAPED.format(5, (*SHAPE, N, 1))),
    "0D": ((RUN[0, 0, 0, 0, ...], AFFINE), DimensionError, SHAPED.format(0, ())),
    "empty": (
        (RUN[..., :0], AFFINE),
        ImageError,
        "The image is empty. The array of (array, affine) has shape (8, 9, 7, 0); every dimension must be at least 1.",
    ),
    "3 x 4": ((RUN, AFFINE[:3]), ValueError, AFFINED.format((3, 4))),
    "two arrays": ((RUN, RUN), ValueError, AFFINED.format((*SHAPE, N))),
    "no affine": ((RUN, None), ValueError, AFFINED.format(())),
    "text": (
        (RUN, AFFINE.astype(str)),
        TypeError,
        "`affine` must be an array of real numbers, got <U32. Convert it first.",
    ),
    "list of text": (
        (RUN, AFFINE.astype(str).tolist()),
        TypeError,
        "The affine of (array, affine) holds values of type <U5, expected real numbers.",
    ),
    "masked": (
        (np.ma.masked_less(RUN, 0), AFFINE),
        TypeError,
        "`array` must be an array of NumPy, CuPy or another library that supports DLPack, got a numpy.MaskedArray. Its "
        "mask would be ignored: pass array.filled(...).",
    ),
    "another device": (
        (Elsewhere(RUN), AFFINE),
        TypeError,
        "A tests.Elsewhere lies on a device of DLPack's type 8, expected the host (1) or a CUDA device (2). Copy it to "
        "the host first.",
    ),
    "not shared": (
        (Unsupported(RUN), AFFINE),
        TypeError,
        "`array`, a tests.Unsupported of foreign.float32, can't be shared by DLPack: BufferError: Can't export tensors "
        "that require gradient. Convert it to float32 or another type of NumPy, or pass a copy (of PyTorch: "
        "array.detach()).",
    ),
    "alone": (
        Foreign(RUN),
        TypeError,
        "input should be a NiftiLike object or an iterable of NiftiLike object. Got: Foreign. Pass a path, a nibabel "
        "image or a list of these. An array needs its affine: pass the tuple (array, affine).",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_of_pairs(wrong):
    given, error, message = WRONG[wrong]
    for call in (masker().fit().transform, lambda run: gpumask.transform_together([masker().fit()], run)):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call(given)


def test_a_gpu_without_cupy(monkeypatch):
    class OnGpu(Foreign):
        def __dlpack_device__(self):
            return 2, 3

    missing = Path("no such library")
    status = devices.CudaStatus(problem="CuPy is not installed", remedy="Install it.")
    monkeypatch.setattr(devices, "cuda_status", lambda index: status if index == 3 else None)
    monkeypatch.setattr(backend, "using", lambda device: missing.open())
    message = "An array lies on cuda:3, but CuPy can't use this GPU: CuPy is not installed. Install it."
    with pytest.raises(backend.DeviceError, match=f"^{re.escape(message)}$"):
        open_volumes((OnGpu(RUN), AFFINE))


# Kernels

X = np.random.default_rng(0).normal(size=(40, 6)) + 5
SEGMENTS = Segments.from_labels(np.array([1, 1, 2, 2, 0, 3]), [1, 2, 3])


def beside(x, values):
    """A NumPy array, on the GPU if `x` lies there."""
    array = getattr(x, "array", x)
    return backend.like(values, array) if backend.is_cupy(array) else values


KERNELS = {
    "clean": lambda x: signal.clean(x, low_pass=0.1, t_r=2.0, confounds=pd.DataFrame(X[:, :2] ** 2)),
    "detrend": kernels.detrend,
    "regress_out": lambda x: kernels.regress_out(x, beside(x, kernels.orthonormal_basis(X[:, :2]))),
    "orthonormal_basis": kernels.orthonormal_basis,
    "standardize": lambda x: kernels.standardize(x, "psc"),
    "interpolate_censored": lambda x: kernels.interpolate_censored(x, np.arange(0, 40, 2)),
    "high_variance_confounds": lambda x: kernels.high_variance_confounds(x, percentile=60),
    "fft_filtfilt": lambda x: kernels.fft_filtfilt(x, kernels.butterworth_sos(2.0, 0.1)),
    "gaussian_smooth": lambda x: kernels.gaussian_smooth(x, [1.0]),
    **{
        f"segment_{name}": lambda x, statistic=statistic: statistic(x, SEGMENTS.like(x))
        for name, statistic in kernels.STRATEGIES.items()
    },
}
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


@pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def put(request):
    """NumPy and CuPy: an array-API library computes by itself."""
    if request.param == "numpy":
        return np.array
    gpu = request.getfixturevalue("gpu")
    return lambda values: backend.to_device(np.array(values), gpu)


@every_kernel
def test_kernels_return_the_library_that_they_get(kernel, put):
    given, function = put(X), KERNELS[kernel]
    expected = function(given)
    assert type(expected) is type(given)
    known, foreign = function(Known(given)), function(Foreign(given))
    assert type(known) is Known
    assert type(foreign) is type(given)  # a library without a namespace
    for result in (known.array, foreign):
        np.testing.assert_array_equal(backend.to_host(result), backend.to_host(expected))
    np.testing.assert_array_equal(backend.to_host(given), X)
    atol = 1e-9 if kernel in ("clean", "fft_filtfilt") else 1e-12
    if kernel != "high_variance_confounds":  # of arbitrary sign
        np.testing.assert_allclose(backend.to_host(expected), function(X), rtol=1e-12, atol=atol)


def test_other_arguments_of_other_libraries(put):
    basis = kernels.orthonormal_basis(X[:, :2])
    expected = kernels.regress_out(X, basis)
    given = put(X)
    for signals, columns in ((given, Foreign(put(basis))), (Known(given), Known(put(basis)))):
        result = kernels.regress_out(signals, basis=columns)
        host = backend.to_host(result.array if isinstance(result, Known) else result)
        np.testing.assert_allclose(host, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(backend.to_host(kernels.detrend(signals=given)), kernels.detrend(X), rtol=0, atol=1e-12)


def test_a_basis_elsewhere_is_an_error(gpu):
    basis = kernels.orthonormal_basis(X[:, :2])
    message = "^`basis` must be in the library and on the device of `signals`: make it of confounds that are.$"
    for signals, columns in ((X, backend.to_device(basis, gpu)), (backend.to_device(X, gpu), basis)):
        with pytest.raises(TypeError, match=message):
            kernels.regress_out(signals, columns)


def test_confounds_and_masks_of_any_library(put):
    confounds, kept = X[:, :2] ** 2, np.arange(3, 40)
    expected = signal.clean(X, confounds=confounds, sample_mask=kept)
    for convert in (lambda a: a, put, lambda a: Foreign(put(a)), lambda a: Foreign(a.copy())):
        result = signal.clean(put(X), confounds=convert(confounds), sample_mask=convert(kept))
        np.testing.assert_allclose(backend.to_host(result), expected, rtol=0, atol=1e-10)


def test_labels_are_downloaded(put):
    labels = np.array([1, 1, 2, 2, 0, 3])
    for given in (put(labels), Foreign(put(labels))):
        segments = Segments.from_labels(given, [1, 2, 3])
        np.testing.assert_array_equal(segments.indices, SEGMENTS.indices)


def test_jax():
    jnp = pytest.importorskip("jax.numpy")
    for kernel, function in KERNELS.items():
        result = function(jnp.asarray(X))
        assert isinstance(result, jnp.ndarray), kernel
        expected = function(np.asarray(jnp.asarray(X)))
        np.testing.assert_allclose(np.asarray(result), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(TypeError, match=r"^`signals`, a jaxlib\.\w+ of bfloat16, can't be shared by DLPack: "):
        kernels.detrend(jnp.asarray(X, jnp.bfloat16))
    run = jnp.asarray(RUN)
    for given in ((run, AFFINE), nib.Nifti1Image(run, AFFINE)):
        np.testing.assert_array_equal(masker().fit_transform(given), masker().fit_transform((RUN, AFFINE)))


KIND = "`{0}` must be an array of NumPy, CuPy or another library that supports DLPack, got a {1}. "
HALF_SUPPORTED = {
    "list": (X.tolist(), KIND.format("{0}", "list") + "Pass numpy.asarray({0})."),
    "DataFrame": (pd.DataFrame(X), KIND.format("{0}", "pandas.DataFrame") + "Pass {0}.to_numpy()."),
    "Series": (pd.Series(X[0]), KIND.format("{0}", "pandas.Series") + "Pass {0}.to_numpy()."),
    "masked": (
        np.ma.masked_greater(X, 5),
        KIND.format("{0}", "numpy.MaskedArray") + "Its mask would be ignored: pass {0}.filled(...).",
    ),
    "matrix": (X.view(np.matrix), KIND.format("{0}", "numpy.matrix") + "Pass numpy.asarray({0})."),
    "sparse": (scipy.sparse.csr_array(X), KIND.format("{0}", "scipy.csr_array") + "Pass {0}.toarray()."),
    "None": (None, KIND.format("{0}", "NoneType") + "Convert it to an array."),
    "text": ("signals", KIND.format("{0}", "str") + "Convert it to an array."),
    "complex": (X + 0j, "`{0}` must be an array of real numbers, got complex128. Convert it first."),
    "objects": (X.astype(object), "`{0}` must be an array of real numbers, got object. Convert it first."),
}


@every_kernel
@pytest.mark.parametrize("kind", HALF_SUPPORTED)
def test_half_supported_arrays_are_errors(kernel, kind):
    given, message = HALF_SUPPORTED[kind]
    if (kernel, kind) == ("clean", "list"):
        np.testing.assert_array_equal(KERNELS[kernel](given), KERNELS[kernel](X))  # as documented
        return
    names = {"orthonormal_basis": "confounds", "high_variance_confounds": "series", "gaussian_smooth": "volumes"}
    name = "array" if kernel.startswith("segment_") else names.get(kernel, "signals")  # `SEGMENTS.like` comes first
    with pytest.raises(TypeError, match=f"^{re.escape(message.format(name))}$"):
        KERNELS[kernel](given)
    if kernel.startswith("segment_"):
        with pytest.raises(TypeError, match=f"^{re.escape(message.format('data'))}$"):
            kernels.STRATEGIES[kernel.removeprefix("segment_")](given, SEGMENTS)


@pytest.mark.parametrize("kind", HALF_SUPPORTED)
def test_half_supported_labels_are_errors(kind):
    given, message = HALF_SUPPORTED[kind]
    if kind == "complex":
        given = given.ravel()
    with pytest.raises(TypeError, match=f"^{re.escape(message.format('labels'))}$"):
        Segments.from_labels(given, [1, 2])


def test_missing_arguments_are_named():
    with pytest.raises(TypeError, match=r"^regress_out\(\) missing 1 required positional argument: 'basis'$"):
        kernels.regress_out(X)
    assert kernels.detrend.__name__ == "detrend"
    assert dlpack.kind_of(X) == "numpy.ndarray"
