"""clean_img and smooth_img: against nilearn's, against slow references, in memory and to files."""

import errno
import gzip
import os
import re
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest
from nilearn import image as nilearn_image
from scipy import ndimage

import gpumask
from gpumask import process
from gpumask.images.errors import DimensionError, ImageError

from .helpers import AFFINE, image

SHAPE, N = (6, 7, 8), 60
KINDS = ("memory", "run.nii", "run.nii.gz")


def run(dtype="i2", seed=0):
    data = np.random.default_rng(seed).normal(1000, 50, (*SHAPE, N)).astype(dtype)
    img = nib.Nifti1Image(data, AFFINE, dtype=data.dtype)
    img.header.set_zooms((2, 2.5, 3, 1.5))
    return img


def placed(img, kind, tmp_path):
    if kind == "memory":
        return img
    nib.save(img, tmp_path / kind)
    return tmp_path / kind


def values(img):
    return np.asanyarray(img.dataobj)


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


CONFOUNDS = np.random.default_rng(9).standard_normal((N, 3))
MASK = image((np.random.default_rng(8).random(SHAPE) < 0.5).astype("i1"))
CLEANINGS = {
    "all": {"confounds": CONFOUNDS, "low_pass": 0.1, "high_pass": 0.01, "t_r": 1.5, "standardize": "zscore_sample"},
    "detrended": {"standardize": None},
    "psc": {"standardize": "psc", "mask_img": MASK, "high_pass": 0.01, "t_r": 1.5},
    "censored": {"standardize": "zscore_sample", "clean__sample_mask": np.arange(4, 55), "confounds": CONFOUNDS},
    "runs": {"standardize": "zscore_sample", "runs": np.repeat([1, 2], N // 2)},
}


@pytest.mark.parametrize("cleaning", CLEANINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["i2", "f4", "f8", "i8"])
def test_clean_img_equals_nilearns(tmp_path, dtype, kind, cleaning):
    given = placed(run(dtype), kind, tmp_path)
    theirs = quietly(nilearn_image.clean_img, given, ensure_finite=True, **CLEANINGS[cleaning])
    ours = gpumask.clean_img(given, ensure_finite=True, **CLEANINGS[cleaning])
    assert (ours.shape, values(ours).dtype) == (theirs.shape, values(theirs).dtype)
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    single = values(ours).dtype == np.float32
    scale = {"detrended": 1000, "psc": 100}.get(cleaning, 1)  # largest value before cleaning; of the mean, in percent
    np.testing.assert_allclose(values(ours), values(theirs), rtol=0, atol=(2e-5 if single else 1e-9) * scale)


def test_clean_img_of_each_voxel():
    img = run("f8")
    cleaned = values(gpumask.clean_img(img, confounds=CONFOUNDS, standardize="zscore_sample"))
    trend = np.column_stack([np.ones(N), np.arange(N), CONFOUNDS])
    for x, y, z in np.ndindex(SHAPE):
        series = values(img)[x, y, z]
        left = series - trend @ np.linalg.lstsq(trend, series)[0]
        np.testing.assert_allclose(cleaned[x, y, z], left / left.std(ddof=1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_what_is_returned_without_them(tmp_path, kind, name):
    given, out = placed(run(), kind, tmp_path), tmp_path / "new" / name
    out.parent.mkdir()
    out.write_text("an older file")
    written = gpumask.clean_img(given, standardize=None, out=out)
    assert nib.is_proxy(written.dataobj)
    assert [path.name for path in out.parent.iterdir()] == [name]
    plain = gpumask.clean_img(given, standardize=None)
    np.testing.assert_array_equal(values(written), values(plain))
    assert (written.header["sform_code"], written.header.get_zooms()) == (2, (2.0, 2.5, 3.0, 1.5))
    smoothed = gpumask.smooth_img(given, 5, out=out)
    np.testing.assert_array_equal(values(smoothed), values(gpumask.smooth_img(given, 5)))
    one = gpumask.smooth_img(image(values(run())[..., 0]), 5, out=out)
    assert one.shape == SHAPE


def test_a_failure_leaves_the_older_file(tmp_path):
    nib.save(run(), tmp_path / "run.nii.gz")
    broken, out = tmp_path / "run.nii.gz", tmp_path / "out.nii"
    broken.write_bytes(broken.read_bytes()[:-200])
    out.write_text("an older file")
    for function in (gpumask.clean_img, lambda *a, **k: gpumask.smooth_img(*a, 5, **k)):
        with pytest.raises(ImageError, match=re.escape(str(broken))):
            function(broken, out=out)
        assert out.read_text() == "an older file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.nii", "run.nii.gz"]


@pytest.mark.parametrize("fwhm", [None, 4, 5.5, (4, None, 2), [3.0, 3.0, 6.0]])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8", "i8"])
def test_smooth_img_equals_nilearns(tmp_path, dtype, kind, fwhm):
    given = placed(run(dtype), kind, tmp_path)
    theirs, ours = nilearn_image.smooth_img(given, fwhm), gpumask.smooth_img(given, fwhm)
    assert (ours.shape, values(ours).dtype) == (theirs.shape, values(theirs).dtype)
    np.testing.assert_allclose(values(ours), values(theirs), rtol=1e-6 if values(ours).dtype == "f4" else 1e-12)


@pytest.mark.parametrize("name", ["run.nii", "run.mgz"])
def test_big_endian_float32_stays_float32(tmp_path, name):
    """It became float64, which MGH can't hold."""
    header = nib.Nifti1Header(endianness=">")
    kinds = {
        "run.nii": lambda data: nib.Nifti1Image(data, AFFINE, header),
        "run.mgz": lambda data: nib.MGHImage(data, AFFINE),
    }
    nib.save(kinds[name](values(run("f4")).astype(">f4")), tmp_path / name)
    for made, expected in [
        (gpumask.smooth_img(tmp_path / name, 4), nilearn_image.smooth_img(tmp_path / name, 4)),
        (
            gpumask.clean_img(tmp_path / name, standardize="zscore_sample"),
            nilearn_image.clean_img(tmp_path / name, standardize="zscore_sample"),
        ),
    ]:
        assert made.get_data_dtype() == expected.get_data_dtype() == np.dtype(">f4")
        np.testing.assert_allclose(values(made), values(expected), rtol=1e-4, atol=1e-4)


def test_smooth_img_in_float64():
    img = run("f8")
    values(img)[1, 2, 3, 4] = np.nan
    values(img)[0, 0, 0, 5] = np.inf
    finite = np.where(np.isfinite(values(img)), values(img), 0)
    sigma = [6 / np.sqrt(8 * np.log(2)) / size for size in (2, 2.5, 3)]
    expected = np.stack([ndimage.gaussian_filter(finite[..., t], sigma) for t in range(N)], axis=-1)
    np.testing.assert_allclose(values(gpumask.smooth_img(img, 6)), expected, rtol=1e-12)
    assert [one.shape for one in gpumask.smooth_img([img, image(finite[..., 0])], 6)] == [(*SHAPE, N), SHAPE]


def test_a_width_of_0_warns():
    with pytest.warns(UserWarning, match=r"^The parameter 'fwhm' for smoothing is specified as 0\.0\. Setting it to"):
        smoothed = gpumask.smooth_img(run(), 0.0)
    np.testing.assert_array_equal(values(smoothed), values(run()))


@pytest.mark.parametrize("fwhm", [-1, 1001, np.inf, np.nan, True, "fast", (1, 2), [[1, 2, 3], [1, 2, 3]]])
def test_impossible_widths(fwhm):
    message = f"`fwhm` must be a width in mm, from 0 to 1000, or three of them (x, y, z), or None, got {fwhm!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        gpumask.smooth_img(run(), fwhm)


def test_widths_as_numbers_of_numpy():
    expected = values(gpumask.smooth_img(run(), (4, 2, 0)))
    np.testing.assert_array_equal(values(gpumask.smooth_img(run(), [np.float32(4), np.int64(2), None])), expected)


def test_axes_whose_smoothing_matrices_would_be_huge():
    line = image(np.ones((1, 1, 32_000, 2), "u1"))
    message = (
        "Volumes with an axis of more than 5000 voxels can't be smoothed, but in-memory image has the shape "
        "(1, 1, 32000). Correct its header, or skip smoothing and resampling."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        gpumask.smooth_img(line, 4)
    tracemalloc.start()
    gpumask.smooth_img(line, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e7  # a matrix of 32 000 x 32 000 takes 8 GB


def test_voxels_too_small_for_a_gaussian():
    tiny = nib.Nifti1Image(np.ones((2, 3, 4), "u1"), np.diag([1e-5, 2e-5, 1e-5, 1]))
    message = (
        "`fwhm` of 6 mm has a standard deviation of 2.55e+05 voxels of in-memory image (voxel sizes "
        "[1.e-05 2.e-05 1.e-05] mm), expected at most 10000. Choose a smaller width, or correct the image's header."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        gpumask.smooth_img(tiny, 6)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.array, lambda width: [np.int8(width)] * 3])
def test_widths_of_numpys_types(kind):
    np.testing.assert_array_equal(values(gpumask.smooth_img(run(), kind(4))), values(gpumask.smooth_img(run(), 4)))


def test_a_compressed_run_that_does_not_fit(tmp_path, monkeypatch):
    nib.save(run(), tmp_path / "run.nii.gz")
    nib.save(run(), tmp_path / "run.nii")
    expected = values(gpumask.clean_img(tmp_path / "run.nii"))
    monkeypatch.setattr(process, "available_memory", lambda: 40_000)
    np.testing.assert_array_equal(values(gpumask.clean_img(tmp_path / "run.nii")), expected)
    size = f"{tmp_path / 'run.nii.gz'} takes 0.0 GiB decoded, of 0.0 GiB available memory"
    message = f"{size}. Decompress it to a file (.nii), which doesn't have to fit."
    with pytest.raises(ImageError, match=f"^{re.escape(message)}$"):
        gpumask.clean_img(tmp_path / "run.nii.gz")
    message = f"{size}: it is decoded into a temporary file in {tmp_path}."
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        written = gpumask.clean_img(tmp_path / "run.nii.gz", out=tmp_path / "out.nii")
    np.testing.assert_array_equal(values(written), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.nii", "run.nii", "run.nii.gz"]


def test_a_compressed_run_and_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(process, "available_memory", lambda: 40_000)
    nib.save(run(), tmp_path / "run.nii.gz")
    with pytest.warns(UserWarning, match=f" a temporary file in {re.escape(str(tmp_path))}\\.$"):
        gpumask.clean_img(tmp_path / "run.nii.gz", out="~/out.nii")
    assert (tmp_path / "out.nii").is_file()


def test_the_memory_that_is_available_is_a_number_of_bytes():
    assert process.available_memory() is None or 2**20 < process.available_memory() < 2**50


ERRORS = [
    ({"low_pass": 0.1}, ValueError, "Repetition time (t_r) must be specified for filtering. You specified None. imgs"),
    ({"sample_mask": [1]}, TypeError, "clean_img() got an unexpected keyword argument 'sample_mask'. Options of clean"),
    ({"clean__order": 3}, TypeError, "clean() got an unexpected keyword argument 'order'."),
    ({"mask_img": image(np.ones((6, 7, 9), "i1"))}, ValueError, "Mask shape: (6, 7, 9)\n is different from img shape:"),
    ({"mask_img": image(np.ones(SHAPE, "i1"), np.eye(4))}, ValueError, "Mask affine:\n"),
    (
        {"mask_img": image(np.ones((*SHAPE, 2), "i1"))},
        DimensionError,
        "Input data has incompatible dimensionality: Expected dimension is 3D and you provided a 4D image.",
    ),
    ({"runs": [np.nan] + [1] * (N - 1)}, ValueError, "`runs` must name the run of each volume, but is missing"),
]


def functions(out):
    """Calls that write an image, whose run can't be read: `out` is checked first."""
    masker = gpumask.NiftiMasker(MASK).fit()
    return {
        "clean_img": lambda: gpumask.clean_img("missing.nii", out=out),
        "smooth_img": lambda: gpumask.smooth_img("missing.nii", 4, out=out),
        "correlation_maps": lambda: gpumask.correlation_maps(masker, "missing.nii", out=out),
    }


@pytest.mark.parametrize("function", functions(None))
def test_out_is_checked_before_the_run_is_read(tmp_path, function, monkeypatch):
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "file").touch()
    missing, below = tmp_path / "missing" / "out.nii", tmp_path / "file" / "out.nii"
    for out, kind, message in [
        (3, TypeError, "`out` must be the path of a NIfTI file, .nii or .nii.gz, got int."),
        ("run.img", ValueError, "`out` must be a NIfTI file, .nii or .nii.gz, got run.img."),
        ("", ValueError, "`out` must be a NIfTI file, .nii or .nii.gz, got .."),
        (
            tmp_path / "folder.nii",
            IsADirectoryError,
            f"`out` must be a file, but {tmp_path / 'folder.nii'} is a folder. Choose another name.",
        ),
        (missing, FileNotFoundError, f"{missing} can't be written: {missing.parent} isn't a folder. Make it first."),
        (below, NotADirectoryError, f"{below} can't be written: {below.parent} isn't a folder. Make it first."),
    ]:
        with pytest.raises(kind, match=f"^{re.escape(message)}$"):
            functions(out)[function]()
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root
    out = tmp_path / "out.nii"
    message = f"{out} can't be written: you have no permission to write to {tmp_path}. Choose another folder."
    with pytest.raises(PermissionError, match=f"^{re.escape(message)}$"):
        functions(out)[function]()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.nii"]


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
@pytest.mark.parametrize("failing", ["reserve", "_compress"])
def test_a_full_disk_is_named(tmp_path, name, failing, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "_compress" and name == "out.nii":
        return
    monkeypatch.setattr(f"gpumask.images.parts.{failing}", full)
    out, size = tmp_path / name, 352 + values(run()).size * 4
    again = " The compressed copy needs room next to it." if name == "out.nii.gz" else ""
    message = f"{out} takes {size} bytes, but {tmp_path} has no room for them: {os.strerror(errno.ENOSPC)}.{again}"
    with pytest.raises(OSError, match=f"^{re.escape(message)} Free some\\.$"):
        gpumask.smooth_img(run(), 4, out=out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "kind", "message"), ERRORS)
def test_wrong_options_of_clean_img(options, kind, message):
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        gpumask.clean_img(run(), **options)


def test_other_errors(tmp_path):
    with pytest.raises(DimensionError, match=r"in-memory image has no series to clean\.$"):
        gpumask.clean_img(image(values(run())[..., 0]))
    with pytest.raises(ValueError, match="`out` names one file, but `imgs` is a list"):
        gpumask.smooth_img([run()], 4, out=tmp_path / "out.nii")


def test_the_written_file_is_the_same_each_time(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        gpumask.smooth_img(run(), 4, out=tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[344:348] == b"n+1\0"


def test_clean_img_on_a_gpu(gpu):
    options = CLEANINGS["all"] | {"standardize": "psc", "mask_img": CLEANINGS["psc"]["mask_img"]}
    on_gpu, on_cpu = (gpumask.clean_img(run("f8"), device=device, **options) for device in (gpu, "cpu"))
    np.testing.assert_allclose(values(on_gpu), values(on_cpu), rtol=0, atol=1e-10)
