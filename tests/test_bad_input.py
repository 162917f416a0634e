"""What the masker says of input it can't use: the class, and the whole message, with the file and the remedy."""

import gzip
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import NiftiLabelsMasker, backend, devices
from gpumask.confounds.sample_masks import AllVolumesRemovedError
from gpumask.images.errors import DimensionError, ImageError

from . import helpers

N = 40
AFFINE = np.diag([2.0, 2, 2, 1])
FAR = AFFINE + np.array([[0, 0, 0, 900.0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
LABELS = np.zeros((6, 6, 6), "i2")
LABELS[1:3, 1:3, 1:3], LABELS[3:5, 3:5, 3:5] = 1, 2
VALUES = np.random.default_rng(0).normal(10, 1, (6, 6, 6, N)).astype("f4")
NO_IMAGE = (
    "input should be a NiftiLike object or an iterable of NiftiLike object. Got: {}. Pass a path, a nibabel image"
)
NUMBER = "float | numpy.floating | int | numpy.integer"


def image(data, affine=AFFINE):
    return helpers.image(data, affine)


ATLAS = image(LABELS)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("good") / "run.nii"
    nib.save(image(VALUES), path)
    return path.read_bytes()


def error_of(run=None, confounds=None, sample_mask=None, **parameters):
    """The exception that a masker ends with."""
    masker = NiftiLabelsMasker(**{"labels_img": ATLAS, "device": "cpu", **parameters})
    with pytest.raises(Exception) as caught:
        masker.fit().transform(image(VALUES) if run is None else run, confounds=confounds, sample_mask=sample_mask)
    return type(caught.value), str(caught.value)


# Files


def with_bytes(good, start, value):
    return good[:start] + value + good[start + len(value) :]


TRUNCATED = "by shape and dtype in the header it should hold {} bytes, but it has {}. Copy or create the file again."
FILES = {
    "empty.nii.gz": (lambda good: b"", "{} is empty (0 bytes), expected an image file. Copy or create the file again."),
    "half.nii.gz": (
        lambda good: gzip.compress(good)[:-4000],
        "{} is truncated or corrupt: EOFError: Compressed file ended before the end-of-stream marker was reached. "
        "Copy or create the file again.",
    ),
    "half.nii": (
        lambda good: good[:20000],
        "{} is truncated or its header is wrong: " + TRUNCATED.format(34912, 20000),
    ),
    "long-header.nii": (
        lambda good: with_bytes(good, 48, np.int16(4000).tobytes()),
        "{} is truncated or its header is wrong: " + TRUNCATED.format(3456352, 34912),
    ),
    "long-header.nii.gz": (
        lambda good: gzip.compress(with_bytes(good, 48, np.int16(4000).tobytes())),
        "{} is truncated: it ends 6912 bytes before the end of a volume that its header promises. "
        "Copy or create the file again.",
    ),
    "text.nii": (lambda good: b"no image" * 100, "{} can't be read as an image: ImageFileError: "),
    "text.nii.gz": (lambda good: b"no image" * 100, "{} can't be read as an image: ImageFileError: "),
    "nan.nii": (
        lambda good: with_bytes(good, 280, np.float32(np.nan).tobytes()),
        "The affine of {} holds NaN or infinite values. Correct the image's header (sform or qform). Got:\n[[nan",
    ),
    "inf.nii": (
        lambda good: with_bytes(good, 280, np.float32(np.inf).tobytes()),
        "The affine of {} holds NaN or infinite values. Correct the image's header (sform or qform). Got:\n[[inf",
    ),
    "flat.nii": (
        lambda good: with_bytes(good, 312, bytes(16)),
        "The affine of {} is singular: its voxels have no volume. Correct the image's header (sform or qform). Got:",
    ),
}


@pytest.mark.parametrize("use", ["run", "labels_img", "mask_img"])
@pytest.mark.parametrize("name", FILES)
def test_broken_files(good, tmp_path, name, use):
    """In place of a run, of labels or of a mask."""
    spoil, message = FILES[name]
    path = tmp_path / name
    path.write_bytes(spoil(good))
    error, said = error_of(**{use: path})
    if use == "run":
        assert error is ImageError
        assert said.startswith(message.format(path))
    else:  # with as many volumes as its header says, it may be refused for these
        assert error in (ImageError, DimensionError)
        assert str(path) in said


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the garbage before the checksum is reached
def test_corrupt_gzip_never_yields_values(good, tmp_path):
    """Whatever byte of the body is changed, and wherever the file ends."""
    rng = np.random.default_rng(0)
    whole = gzip.compress(good)
    path = tmp_path / "run.nii.gz"
    for position in rng.integers(2000, len(whole) - 8, 25):
        path.write_bytes(with_bytes(whole, position, bytes([whole[position] ^ 0x5A])))
        error, said = error_of(path)
        assert error is ImageError
        assert said.startswith(f"{path} is truncated")
    for end in rng.integers(2000, len(whole) - 1, 25):
        path.write_bytes(whole[:end])
        assert error_of(path)[0] is ImageError


@pytest.mark.parametrize("use", ["run", "labels_img", "mask_img"])
def test_missing_files(tmp_path, use):
    missing, pattern = tmp_path / "missing.nii.gz", tmp_path / "missing-*.nii"
    assert error_of(**{use: missing}) == (ValueError, f"File not found: '{missing}'")
    assert error_of(**{use: str(pattern)}) == (
        ValueError,
        f"No files matching the entered niimg expression: '{pattern}'.",
    )
    assert error_of(**{use: tmp_path}) == (ImageError, f"{tmp_path} is a directory, expected an image file.")


@pytest.mark.parametrize("use", ["run", "labels_img", "mask_img"])
@pytest.mark.parametrize("value", [3, VALUES, object()])
def test_what_is_no_image(use, value):
    error, said = error_of(**{use: value})
    assert error is TypeError
    assert said.startswith(NO_IMAGE.format(type(value).__name__))


def test_no_labels_and_no_run():
    assert error_of(labels_img=None)[0] is TypeError
    with pytest.raises(TypeError, match=NO_IMAGE.format("NoneType")):
        NiftiLabelsMasker(ATLAS).fit().transform(None)


def test_dimensions(tmp_path):
    nib.save(image(np.zeros((6, 6, 6, 2, 2), "f4")), tmp_path / "5D.nii")
    start = "Input data has incompatible dimensionality: Expected dimension is "
    assert error_of(tmp_path / "5D.nii") == (
        DimensionError,
        f"{start}4D and you provided a 5D image. {tmp_path / '5D.nii'} has shape (6, 6, 6, 2, 2), "
        "expected (x, y, z) or (x, y, z, time).",
    )
    assert error_of([image(VALUES)] * 2) == (
        DimensionError,
        f"{start}4D and you provided a list of 4D images (5D). Image #0 (in-memory image) has {N} volumes: "
        "pass it alone.",
    )
    assert error_of(labels_img=image(VALUES)) == (
        DimensionError,
        f"{start}3D and you provided a 4D image. in-memory image has {N} volumes. If they are maps, "
        "use NiftiMapsMasker.",
    )
    assert issubclass(DimensionError, TypeError)


def test_lists():
    assert error_of([]) == (TypeError, "Cannot concatenate empty objects: the list of images is empty.")
    error, said = error_of([image(VALUES[..., 0]), image(VALUES[..., 0], AFFINE * 2)])
    assert error is ValueError
    assert said.startswith("Field of view of image #1 (in-memory image) is different from reference FOV")


def test_values_of_another_kind():
    assert error_of(image(VALUES.astype("c8"))) == (
        ImageError,
        "in-memory image holds values of type complex64, expected integers or real floats.",
    )


# Labels, masks, grids


@pytest.mark.filterwarnings("ignore:Resampling labels at transform time")
def test_no_label_left(tmp_path):
    nib.save(image(LABELS), tmp_path / "atlas.nii")
    assert error_of(labels_img=image(np.zeros((6, 6, 6), "u1"))) == (
        ValueError,
        "Image has no label. Every voxel of in-memory image is background (0).",
    )
    assert error_of(labels_img=image(np.full((6, 6, 6), 4, "u1")), background_label=4)[0] is ValueError
    assert error_of(mask_img=image((LABELS == 0).astype("u1"))) == (
        ValueError,
        "No label left after applying mask to the labels image.",
    )
    assert error_of(image(VALUES, FAR), labels_img=tmp_path / "atlas.nii") == (
        ValueError,
        f"No label left after resampling the labels image. {tmp_path / 'atlas.nii'} and in-memory image may lie in "
        "different spaces: compare their affines.",
    )


@pytest.mark.filterwarnings("ignore:Resampling mask at transform time")
def test_empty_masks(tmp_path):
    nib.save(image(np.zeros((6, 6, 6), "u1")), tmp_path / "mask.nii")
    nib.save(image(np.ones((6, 6, 6), "u1"), FAR), tmp_path / "far.nii")
    said = "The mask is invalid as it is empty: it masks all data. No voxel of {} is inside it."
    for name in ("mask.nii", "far.nii"):
        assert error_of(mask_img=tmp_path / name) == (ValueError, said.format(tmp_path / name))


def test_grids_that_differ():
    remedy = "\nPass resampling_target='data' or 'labels' to resample one to the other."
    shapes = "- labels and data do not have the same shape: (6, 6, 6) (in-memory image) and (5, 6, 6) (in-memory image)"
    assert error_of(image(VALUES[1:]), resampling_target=None) == (
        ValueError,
        f"Images have incompatible shapes.\n{shapes}{remedy}",
    )
    error, said = error_of(image(VALUES, FAR), resampling_target=None)
    assert error is ValueError
    assert said.startswith("Images have different affine matrices.\n- labels and data do not have the same affine.")
    assert said.endswith(remedy)
    lead = "Following field of view errors were detected:\n"
    with pytest.raises(ValueError, match=re.escape(lead + shapes + remedy)):
        NiftiLabelsMasker(ATLAS, resampling_target=None).fit(image(VALUES[1:]))
    error, said = error_of(mask_img=image(np.ones((5, 6, 6), "u1")), resampling_target=None)
    assert error is ValueError
    assert said.startswith(lead + "- labels and mask do not have the same shape: (6, 6, 6)")


# Confounds, sample masks, filters


def test_confounds(tmp_path):
    table = pd.DataFrame({"trans_x": np.zeros(N), "csf": np.arange(float(N))})
    table.loc[[0, 3], "csf"] = np.nan
    table.to_csv(tmp_path / "confounds.tsv", sep="\t", na_rep="n/a", index=False)
    table[1:].fillna(0).to_csv(tmp_path / "short.tsv", sep="\t", index=False)
    path, short = tmp_path / "confounds.tsv", tmp_path / "short.tsv"
    length = "Confound signal has an incorrect length. Signal length: 40; confound length: 39."
    finite = "Confounds must be finite numbers; NaN, infinite values or text are in column 'csf' (volume 0, 3)."
    remedy = (
        " fMRIPrep writes n/a in the first volumes of derivatives: fill them, leave these volumes out by "
        "`sample_mask`, or use nilearn.interfaces.fmriprep.load_confounds."
    )
    assert error_of(confounds=np.zeros((39, 2))) == (ValueError, length)
    assert error_of(confounds=short) == (ValueError, f"{length} File: {short}.")
    assert error_of(confounds=table) == (ValueError, finite + remedy)
    assert error_of(confounds=str(path)) == (ValueError, f"{finite} File: {path}.{remedy}")
    assert error_of(confounds=np.zeros((N, 2, 2))) == (
        ValueError,
        "confound array has an incorrect number of dimensions: 3",
    )
    assert error_of(confounds=3)[0] is TypeError
    error, said = error_of(confounds=tmp_path / "missing.tsv")
    assert error is FileNotFoundError
    assert str(tmp_path / "missing.tsv") in said


@pytest.mark.parametrize(
    ("sample_mask", "error", "message"),
    [
        (np.array([-1, 2]), ValueError, "sample_mask should not contain negative values."),
        (np.arange(N + 1), IndexError, "sample_mask 1 of 1 is has more timepoints than the current run"),
        (np.array([N]), IndexError, "sample_mask 1 of 1 contains invalid index [40]. The signal contains 40 time"),
        (np.zeros(0, int), AllVolumesRemovedError, "The size of the sample mask is 0. All volumes were marked"),
        (np.zeros(N, bool), AllVolumesRemovedError, "The size of the sample mask is 0. All volumes were marked"),
        (np.ones(N - 1, bool), IndexError, "sample_mask 1 of 1 is boolean and must hold one value per volume"),
        ("all", TypeError, "'sample_masks' must be of type(s):"),
    ],
)
def test_sample_masks(sample_mask, error, message):
    raised, said = error_of(sample_mask=sample_mask)
    assert raised is error
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"low_pass": 0.1}, "Repetition time (t_r) must be specified for butterworth filtering. Got: 't_r=None'"),
        ({"high_pass": 0.1, "t_r": 0}, "`t_r` must be a positive number of seconds, got 0."),
        (
            {"low_pass": 0.01, "high_pass": 0.1, "t_r": 2.0},
            "High pass cutoff frequency (0.1) is greater than or equal to low pass filter frequency (0.01). "
            "This case is not handled by this function.",
        ),
        (
            {"high_pass": 0.01, "clean_args": {"filter": "cosine"}},
            "Repetition time (t_r) and low cutoff frequency (high_pass) must be specified for cosine filtering. "
            "Got: 't_r=None' and 'high_pass=0.01'",
        ),
    ],
)
def test_filters(parameters, message):
    assert error_of(**parameters) == (ValueError, message)


def test_short_runs_cannot_be_filtered():
    message = "20 volumes are left, but this filter needs 34 or more."
    assert error_of(image(VALUES[..., :20]), low_pass=0.1, high_pass=0.01, t_r=2.0) == (ValueError, message)


@pytest.mark.parametrize("module", ["gpumask", "nilearn.maskers"])
def test_cut_offs_beyond_nyquist_are_clipped(module):
    """With a warning, as by nilearn."""
    masker = pytest.importorskip(module).NiftiLabelsMasker(ATLAS, low_pass=0.6, t_r=1.0, standardize=None)
    with pytest.warns(UserWarning, match="The frequency specified for the low pass filter is too high"):
        signals = masker.fit_transform(image(VALUES))
    assert np.isfinite(signals).all()


# Devices


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:", "cuda:-1", 0, None])
def test_unknown_devices(device):
    expected = f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:N' with N a device number, got {device!r}."
    assert error_of(device=device) == (ValueError, expected)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_gpu_that_is_not_there(device, monkeypatch):
    status = devices.CudaStatus(problem="CuPy is not installed", remedy="pip install 'gpumask[cuda12]'")
    monkeypatch.setattr(devices, "cuda_status", lambda _: status)
    assert error_of(device=device) == (
        backend.DeviceError,
        f"device='{device}' was requested, but can't be used: CuPy is not installed. pip install "
        "'gpumask[cuda12]' Or use device='cpu', or 'auto' to let gpumask choose.",
    )
    assert NiftiLabelsMasker(ATLAS, device="auto").fit().device_ == "cpu"


# Parameters


@pytest.mark.parametrize(
    ("name", "types", "values"),
    [
        ("background_label", NUMBER, ["0", None, True, [0]]),
        ("smoothing_fwhm", f"{NUMBER} | None", ["fast", [4, 4, 4], (6,), True]),
        ("low_pass", f"{NUMBER} | None", ["0.1", [0.1], True]),
        ("high_pass", f"{NUMBER} | None", ["0.1", [0.1], True]),
        ("t_r", f"{NUMBER} | None", ["2", [2], True]),
        ("detrend", "<class 'bool'>", [1, None, "yes"]),
        ("standardize_confounds", "<class 'bool'>", [1, None, "yes"]),
        ("keep_masked_labels", "<class 'bool'>", [0, None, "no"]),
        ("memory", "joblib.memory.Memory | str | pathlib.Path | None", [3, True, ["cache"]]),
        ("memory_level", "int | numpy.integer", ["1", 1.5, True, None]),
        ("verbose", "bool | int | numpy.integer", ["1", 0.5, None]),
        ("clean_args", "dict | None", [3, "butterworth", ["filter"]]),
    ],
)
def test_types(name, types, values):
    for value in values:
        expected = f"'{name}' must be of type(s): '{types}'.\nGot: '{type(value).__name__}'"
        assert error_of(**{name: value}) == (TypeError, expected)


@pytest.mark.parametrize(
    ("name", "choices", "values"),
    [
        ("standardize", ("zscore_sample", "zscore", "psc", True, False, None), ["z", 1, 0, 1.0, ["psc"]]),
        (
            "strategy",
            ("mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation"),
            ["mode", "voxel", None, np.mean],
        ),
        ("resampling_target", ("labels", "data", None), ["mask", False]),
    ],
)
def test_choices(name, choices, values):
    for value in values:
        expected = f"'{name}' must be one of {choices}.\n'{value}' was provided."
        assert error_of(**{name: value}) == (ValueError, expected)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"smoothing_fwhm": -1}, ValueError, "`smoothing_fwhm` must be a width in mm from 0 to 1000, got -1."),
        ({"smoothing_fwhm": np.nan}, ValueError, "`smoothing_fwhm` must be a width in mm from 0 to 1000, got nan."),
        ({"smoothing_fwhm": np.inf}, ValueError, "`smoothing_fwhm` must be a width in mm from 0 to 1000, got inf."),
        (
            {"smoothing_fwhm": 1e8},
            ValueError,
            "`smoothing_fwhm` must be a width in mm from 0 to 1000, got 100000000.0.",
        ),
        ({"dtype": bool}, TypeError, "'dtype' cannot be bool"),
        ({"dtype": "bool"}, TypeError, "'dtype' cannot be bool"),
        ({"dtype": "float33"}, TypeError, "'dtype' must be a NumPy dtype, 'auto' or None.\nGot: 'float33'"),
        ({"dtype": 3}, TypeError, "'dtype' must be a NumPy dtype, 'auto' or None.\nGot: 3"),
        ({"labels": ("a", "b")}, TypeError, "'labels' must be a list. Got: tuple"),
        ({"labels": [1, 1]}, TypeError, "All elements of 'labels' must be a string.\nGot a list of {'int'}"),
        (
            {"labels": ["a"], "lut": "lut.tsv"},
            ValueError,
            "Pass either labels or a lookup table (lut) to the masker, but not both.",
        ),
        ({"lut": 3}, TypeError, "`lut` must be a DataFrame, a path or None. Got: int"),
        (
            {"lut": "missing.tsv"},
            ValueError,
            "`lut` is missing.tsv, but no such file exists. Expected a table with the columns 'index' and 'name'.",
        ),
        (
            {"lut": pd.DataFrame({"index": [1], "colour": ["red"]})},
            ValueError,
            "`lut` must have the columns 'index' and 'name', but lacks ['name']; it has ['index', 'colour'].",
        ),
        (
            {"lut": pd.DataFrame({"index": [1, 2, 1], "name": list("abc")})},
            ValueError,
            "`lut` has several rows for [1]. Each region's index must occur once.",
        ),
        (
            {"clean_args": {"fliter": "cosine"}},
            TypeError,
            "clean() got an unexpected keyword argument 'fliter'. Use its parameters or butterworth__order, "
            "butterworth__padtype, butterworth__padlen, butterworth__copy.",
        ),
        (
            {"clean_args": {"detrend": True}},
            TypeError,
            "gpumask.cleaner.Cleaner() got multiple values for keyword argument 'detrend'",
        ),
    ],
)
def test_values(parameters, error, message):
    assert error_of(**parameters) == (error, message)


def test_high_variance_confounds_of_a_volume():
    """They would explain it in full."""
    error, said = error_of(image(VALUES[..., 0]), high_variance_confounds=True)
    assert error is DimensionError
    assert said.endswith("in-memory image has no variance over time: set high_variance_confounds=False.")
