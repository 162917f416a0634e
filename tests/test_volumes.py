"""The stream of volumes against nibabel's own reading, and what it says of broken input."""

import bz2
import gzip
import math
import os
import re
import struct
import threading
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import concat_imgs

from gpumask.images import decoding, gzip_decoders
from gpumask.images import readers as stored
from gpumask.images.errors import DimensionError, ImageError
from gpumask.images.labels import load_atlas, load_mask
from gpumask.images.volumes import load_volume, open_volumes

SHAPE = (4, 5, 6, 7)
AFFINE = np.array([[-2.0, 0.1, 0, 30], [0, 2.5, 0.2, -40], [0.1, 0, 3, -20], [0, 0, 0, 1]])


def values(shape=SHAPE, dtype="i2", seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, 100, shape).astype(dtype)


def nifti(array, affine=AFFINE, **keywords):
    image = nib.Nifti1Image(array, affine, dtype=array.dtype, **keywords)
    image.header.set_xyzt_units("mm", "sec")
    return image


def rows(array):
    """As (time, voxels) with x fastest."""
    return (
        np.asarray(array)
        .reshape((*array.shape[:3], -1))
        .reshape((-1, 1 if array.ndim == 3 else array.shape[3]), order="F")
        .T
    )


def read(stream, n=3, take=None):
    """All scaled values, gathered from chunks whose form is checked on the way."""
    parts, start = [], 0
    for chunk in stream.chunks(n, take):
        assert chunk.start == start
        assert chunk.data.dtype == stream.dtype
        assert chunk.data.flags.c_contiguous
        assert chunk.data.shape == (min(n, stream.n_volumes - start), stream.grid.n_voxels)
        start += len(chunk.data)
        if (chunk.slope, chunk.inter) == (1.0, 0.0):
            parts.append(chunk.data.astype(stream.loaded_dtype))
        else:
            parts.append(chunk.data.astype(stream.loaded_dtype) * chunk.slope + chunk.inter)
    assert start == stream.n_volumes
    return np.concatenate(parts)


def message(caught):
    return str(caught.value)


@pytest.fixture
def gz(tmp_path):
    nib.save(nifti(values()), tmp_path / "bold.nii.gz")
    return tmp_path / "bold.nii.gz"


# What can be read


@pytest.mark.parametrize("n", [1, 3, 100])
@pytest.mark.parametrize("endianness", "<>")
@pytest.mark.parametrize(
    ("suffix", "image_class", "header_class"),
    [
        (".nii", nib.Nifti1Image, nib.Nifti1Image.header_class),
        (".nii.gz", nib.Nifti1Image, nib.Nifti1Image.header_class),
        (".nii.zst", nib.Nifti1Image, nib.Nifti1Image.header_class),
        (".nii.bz2", nib.Nifti1Image, nib.Nifti1Image.header_class),
        (".NII.GZ", nib.Nifti1Image, nib.Nifti1Image.header_class),
        (".nii", nib.Nifti2Image, nib.Nifti2Image.header_class),
        (".nii.gz", nib.Nifti2Image, nib.Nifti2Image.header_class),
        (".img", nib.Nifti1Pair, nib.Nifti1Pair.header_class),
        (".img.gz", nib.Nifti1Pair, nib.Nifti1Pair.header_class),
        (".hdr", nib.Nifti2Pair, nib.Nifti2Pair.header_class),
        (".img", nib.Spm99AnalyzeImage, nib.Spm99AnalyzeImage.header_class),
    ],
)
def test_formats(tmp_path, suffix, image_class, header_class, endianness, n):
    if suffix.endswith("zst"):
        pytest.importorskip("backports.zstd")
    path = tmp_path / f"bold{suffix}"
    header = header_class(endianness=endianness)
    header.set_data_dtype("i2")
    image_class(values(), AFFINE, header).to_filename(path)
    check(path, n)
    assert open_volumes(path).dtype == np.dtype("i2").newbyteorder(endianness)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nibabel leaves MGH files open
@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_mgh(tmp_path, suffix, dtype):
    image = nib.MGHImage(values(dtype=dtype).astype(f">{dtype}"), AFFINE)
    image.header.set_zooms((2, 2.5, 3, 800))
    image.to_filename(tmp_path / f"bold{suffix}")
    check(tmp_path / f"bold{suffix}")
    assert open_volumes(tmp_path / f"bold{suffix}").t_r == 0.8


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("endianness", "<>")
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_dtypes(tmp_path, dtype, endianness, suffix):
    array = values(dtype=dtype)
    nifti(array, header=nib.Nifti1Header(endianness=endianness)).to_filename(tmp_path / f"bold{suffix}")
    check(tmp_path / f"bold{suffix}")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize(("slope", "inter"), [(0.0754, 3100.75), (3.0, 0.0), (1.0, -5.0), (0.0, 7.0)])
def test_scaling(tmp_path, slope, inter, dtype, suffix):
    path = tmp_path / f"bold{suffix}"
    nifti(values(dtype=dtype)).to_filename(path)
    raw = bytearray(gzip.decompress(path.read_bytes()) if suffix == ".nii.gz" else path.read_bytes())
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
    check(path)


def check(path, n=3):
    """Compare all that the stream says of a 4D file with nibabel."""
    image = nib.load(path)
    expected = np.asanyarray(image.dataobj)
    stream = open_volumes(str(path))
    assert stream.grid.shape == SHAPE[:3]
    np.testing.assert_array_equal(stream.grid.affine, image.affine)
    assert stream.n_volumes == SHAPE[3]
    assert not stream.is_3d
    assert stream.name == str(path)
    assert stream.dtype == image.dataobj.dtype
    assert stream.loaded_dtype == expected.dtype
    buffer = np.full((n, stream.grid.n_voxels), 99, stream.dtype)
    for take in (None, lambda: buffer):
        np.testing.assert_array_equal(read(stream, n, take), rows(expected))
    np.testing.assert_array_equal(read(open_volumes(image), n), rows(expected))
    first = load_volume(image.slicer[..., :1])
    assert first.data.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(first.data, expected[..., 0])


@pytest.mark.parametrize("name", ["functional.nii", "example4d.nii.gz", "test.mgz", "tiny.mnc", "example4d+orig.HEAD"])
def test_files_of_nibabel(name):
    path = Path(nib.__file__).parent / "tests" / "data" / name
    if not path.exists():
        pytest.skip("nibabel was installed without its test data")
    np.testing.assert_array_equal(read(open_volumes(path), 2), rows(np.asanyarray(nib.load(path).dataobj)))


def of_nibabel(name):
    path = Path(nib.__file__).parent / "tests" / "data" / name
    if not path.exists():
        pytest.skip("nibabel was installed without its test data")
    return path


def message_of_4d_minc(name, shape):
    return (
        f"{name} is a 4D MINC image of shape {shape}, expected (x, y, z, time). nibabel keeps the axes of MINC in the "
        "file's order, usually with time first. Convert it to NIfTI (mnc2nii)."
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [("minc1_4d.mnc", (2, 10, 20, 20)), ("minc2_4d.mnc", (2, 10, 20, 20)), ("minc2-4d-d.mnc", (5, 16, 16, 16))],
)
def test_4d_minc_is_refused(name, shape):
    """Its time is the first axis."""
    path = of_nibabel(name)
    if name.startswith("minc2"):
        pytest.importorskip("h5py")
    image = nib.load(path)
    # In a NIfTI image, nibabel keeps the order too.
    for source in (path, image, nib.Nifti1Image.from_image(image)):
        with pytest.raises(ImageError) as caught:
            open_volumes(source)
        assert str(caught.value) in [message_of_4d_minc(path, shape), message_of_4d_minc("in-memory image", shape)]
    for use in (load_volume, load_atlas, load_mask):
        with pytest.raises(ImageError, match="is a 4D MINC image"):
            use(path)


@pytest.mark.filterwarnings("ignore:Invalid spacing declaration")
@pytest.mark.parametrize("name", ["minc1_1_scale.mnc", "minc1-no-att.mnc", "minc2_1_scale.mnc", "small.mnc"])
def test_3d_minc_is_read(name):
    path = of_nibabel(name)
    if name in ("minc2_1_scale.mnc", "small.mnc"):
        pytest.importorskip("h5py")
    expected = np.asanyarray(nib.load(path).dataobj)
    stream = open_volumes(path)
    assert (stream.is_3d, stream.grid.shape) == (True, expected.shape)
    np.testing.assert_array_equal(read(stream), rows(expected))
    np.testing.assert_array_equal(read(open_volumes([path, path])), rows(np.stack([expected] * 2, axis=3)))


def test_4d_minc_in_memory_has_time_last():
    """As nilearn concatenates 3D MINC images."""
    path = of_nibabel("tiny.mnc")
    image = concat_imgs([nib.load(path)] * 3)
    assert isinstance(image, nib.Minc1Image)
    expected = np.stack([nib.load(path).get_fdata()] * 3, axis=3)
    np.testing.assert_allclose(read(open_volumes(image)), rows(expected), rtol=1e-6)


def test_afni_has_time_last():
    image = nib.load(of_nibabel("example4d+orig.HEAD"))
    assert image.header.info["TAXIS_NUMS"][0] == image.shape[3] == 3
    stored = np.fromfile(of_nibabel("example4d+orig.BRIK.gz"), "u1")
    stored = np.frombuffer(gzip.decompress(stored.tobytes()), "<i2" if image.dataobj.dtype.str[0] == "<" else ">i2")
    np.testing.assert_array_equal(read(open_volumes(image)), stored.reshape(3, -1))  # x fastest, time slowest


@pytest.fixture
def par_rec(tmp_path):
    """Writes a PAR/REC of 3 volumes of 9 slices with a changed header, and opens it."""
    images = []
    table = of_nibabel("phantom_EPI_asc_CLEAR_2_1.PAR").read_text()
    (tmp_path / "run.REC").write_bytes(of_nibabel("phantom_EPI_asc_CLEAR_2_1.REC").read_bytes())

    def write(change, header=lambda line: line):
        lines = []
        for line in table.splitlines():
            fields = line.split()
            is_slice = len(fields) > 40 and line[0] not in "#."
            lines.append(" ".join(change(fields)) if is_slice else header(line))
        (tmp_path / "run.PAR").write_text("\n".join(lines) + "\n")
        images.append(nib.load(tmp_path / "run.PAR"))
        return images[-1]

    yield write
    for image in images:
        image.dataobj.file_like.close()  # nibabel leaves it open


def test_par_rec_has_time_last(par_rec):
    image = par_rec(lambda fields: fields)
    path = Path(image.get_filename())
    slices = np.fromfile(path.with_suffix(".REC"), "<u2").reshape(27, 64, 64)
    first = [
        line.split()[:3]
        for line in path.with_suffix(".PAR").read_text().splitlines()
        if len(line.split()) > 40 and line[0] != "#"
    ]
    order = sorted(range(27), key=lambda i: (int(first[i][2]), int(first[i][0])))  # by dynamic scan, then by slice
    expected = slices[order].reshape(3, -1)
    np.testing.assert_allclose(read(open_volumes(image)), 1.29035 * expected)


@pytest.mark.parametrize(
    ("column", "label", "maximum"),
    [(1, "echo number", "echoes"), (3, "cardiac phase number", "cardiac phases"), (4, "image_type_mr", None)],
)
def test_par_rec_of_another_fourth_axis_warns(par_rec, column, label, maximum):
    def change(fields):
        fields[column], fields[2] = fields[2], "1"
        return fields

    def header(line):
        if "Max. number of dynamics" in line:
            return line.replace(":   3", ":   1")
        return line.replace(":   1", ":   3") if maximum and f"Max. number of {maximum}" in line else line

    image = par_rec(change, header)
    with pytest.warns(UserWarning, match="The fourth axis") as record:
        stream = open_volumes(image)
    assert [str(w.message) for w in record] == [
        f"The fourth axis of {image.get_filename()} isn't time alone: its 3 volumes have 3 values of '{label}'. "
        "Convert it to one NIfTI image per series (dcm2niix)."
    ]
    np.testing.assert_array_equal(read(stream), rows(np.asanyarray(image.dataobj)))


def test_real_runs(data):
    for path in sorted(data.glob("*_bold.nii.gz")):
        stream, image = open_volumes(path), nib.load(path)
        expected = image.dataobj.get_unscaled()
        assert (stream.n_volumes, stream.t_r, stream.loaded_dtype) == (156, 2.0, np.float64)
        for chunk in stream.chunks(50):
            assert (chunk.slope, chunk.inter) == (image.dataobj.slope, image.dataobj.inter)
            np.testing.assert_array_equal(chunk.data, rows(expected[..., chunk.start : chunk.start + 50]))


def test_single_volumes(tmp_path):
    for shape, is_3d in [((4, 5, 6), True), ((4, 5, 6, 1), False)]:
        array = values(shape)
        nib.save(nifti(array), tmp_path / "one.nii.gz")
        for image in (tmp_path / "one.nii.gz", nifti(array)):
            stream = open_volumes(image)
            assert (stream.is_3d, stream.n_volumes) == (is_3d, 1)
            np.testing.assert_array_equal(read(stream), rows(array))
            volume = load_volume(image)
            np.testing.assert_array_equal(volume.data, array.reshape(4, 5, 6))
            np.testing.assert_allclose(volume.grid.affine, AFFINE, rtol=1e-7)
            assert volume.data.flags.f_contiguous
            assert not np.shares_memory(volume.data, array)
            volume.data[:] = 0
        assert array.any()


def test_home_and_patterns(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arrays = [values((4, 5, 6), seed=i) for i in range(3)]
    for i, array in enumerate(arrays):
        nib.save(nifti(array), tmp_path / f"beta_{i}.nii")
    stream = open_volumes("~/beta_?.nii")
    assert stream.name == f"{tmp_path}/beta_0.nii and 2 more"
    np.testing.assert_array_equal(read(stream), rows(np.stack(arrays, 3)))
    assert open_volumes(tmp_path / "*_1.nii").is_3d
    nib.save(nifti(values()), tmp_path / "run[1].nii")  # an existing file is no pattern
    assert open_volumes(tmp_path / "run[1].nii").n_volumes == 7


def test_multi_member_gzip(tmp_path):
    nib.save(nifti(values()), tmp_path / "bold.nii")
    raw = (tmp_path / "bold.nii").read_bytes()
    members = [gzip.compress(raw[i : i + 400]) for i in range(0, len(raw), 400)]
    (tmp_path / "bold.nii.gz").write_bytes(b"".join(members))
    np.testing.assert_array_equal(read(open_volumes(tmp_path / "bold.nii.gz")), rows(values()))


def test_without_isal(gz, monkeypatch):
    monkeypatch.setenv("GPUMASK_DECODER", "zlib")
    np.testing.assert_array_equal(read(open_volumes(gz)), rows(values()))
    gz.write_bytes(gz.read_bytes()[:-4])
    with pytest.raises(ImageError, match="truncated or corrupt: EOFError"):
        read(open_volumes(gz))


@pytest.mark.parametrize(
    ("unit", "zoom", "expected"),
    [
        ("sec", 0.8, 0.8),
        ("msec", 2000, 2.0),
        ("usec", 720000, 0.72),
        ("unknown", 2, None),
        ("sec", 0, None),
        ("hz", 2, None),
    ],
)
def test_repetition_time(unit, zoom, expected):
    image = nib.Nifti1Image(values(), AFFINE)
    image.header.set_zooms((2, 2, 2, zoom))
    image.header.set_xyzt_units("mm", unit)
    assert open_volumes(image).t_r == (expected if expected is None else pytest.approx(expected, rel=1e-15))
    assert open_volumes(nifti(values((4, 5, 6)))).t_r is None
    assert open_volumes(nib.AnalyzeImage(values(), AFFINE)).t_r is None


# Arrays in memory


LAYOUTS = {
    "F": np.asfortranarray,
    "C": np.ascontiguousarray,
    "time first": lambda a: np.ascontiguousarray(np.moveaxis(a, 3, 0)).transpose(1, 2, 3, 0),
    "every other": lambda a: np.repeat(np.asfortranarray(a), 2, axis=3)[..., ::2],
    "mirrored": lambda a: np.asfortranarray(a[::-1])[::-1],
    "big-endian": lambda a: np.asfortranarray(a.astype(a.dtype.newbyteorder(">"))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [SHAPE, (70, 3, 2, 5), (4, 5, 6)])
def test_memory_layouts(layout, shape):
    if layout in ("time first", "every other") and len(shape) == 3:
        pytest.skip("needs a time axis")
    array = LAYOUTS[layout](values(shape, "f4"))
    array.flags.writeable = False
    stream = open_volumes(nib.Nifti1Image(array, AFFINE))
    assert stream.name == "in-memory image"
    np.testing.assert_array_equal(read(stream), rows(array))
    for chunk in stream.chunks(3):
        assert np.shares_memory(chunk.data, array) == array.flags.f_contiguous
        assert chunk.data.flags.writeable != array.flags.f_contiguous


def test_user_arrays_are_safe():
    array = np.asfortranarray(values())
    for chunk in open_volumes(nifti(array)).chunks(3):
        with pytest.raises(ValueError, match="read-only"):
            chunk.data[:] = 0
    array[0, 0, 0, 0] = 1  # still the user's to write


def test_other_image_classes():
    for image_class in (nib.spatialimages.SpatialImage, nib.MGHImage, nib.AnalyzeImage, nib.Nifti2Image):
        np.testing.assert_array_equal(read(open_volumes(image_class(values(), AFFINE))), rows(values()))


def test_image_of_an_open_stream():
    image = nib.Nifti1Image.from_bytes(nifti(values()).to_bytes())
    np.testing.assert_array_equal(read(open_volumes(image)), rows(values()))
    np.testing.assert_array_equal(load_volume(image.slicer[..., 2:3]).data, values()[..., 2])
    image = nib.Nifti1Image.from_bytes(nifti(values((4, 5, 6))).to_bytes())
    np.testing.assert_array_equal(read(open_volumes(image)), rows(values((4, 5, 6))))


# Lists


@pytest.mark.parametrize("kind", ["paths", "compressed", "images", "generator", "tuple"])
def test_lists(tmp_path, kind):
    arrays = [values((4, 5, 6), seed=i) for i in range(7)]
    images = [nifti(array) for array in arrays]
    for i, image in enumerate(images):
        nib.save(image, tmp_path / f"{i}.nii")
        nib.save(image, tmp_path / f"{i}.nii.gz")
    paths = [tmp_path / f"{i}.nii" for i in range(7)]
    imgs = {
        "paths": paths,
        "compressed": [str(path) + ".gz" for path in paths],
        "images": images,
        "generator": (image for image in images),
        "tuple": (paths[0], *images[1:]),
    }[kind]
    stream = open_volumes(imgs)
    assert (stream.n_volumes, stream.is_3d, stream.dtype, stream.loaded_dtype) == (7, False, np.int16, np.int16)
    buffer = np.empty((3, stream.grid.n_voxels), np.int16)
    for n, take in [(1, None), (3, lambda: buffer), (100, None)]:
        np.testing.assert_array_equal(read(stream, n, take), rows(np.stack(arrays, 3)))


def test_list_of_one_is_4d():
    stream = open_volumes([nifti(values((4, 5, 6)))])
    assert (stream.is_3d, stream.n_volumes) == (False, 1)
    assert open_volumes([nifti(values((4, 5, 6, 1)))] * 2).n_volumes == 2


@pytest.mark.parametrize(
    ("dtypes", "slopes", "dtype", "loaded"),
    [
        (("i2", "i2"), (1, 1), "i2", "i2"),
        (("f4", "f4"), (1, 1), "f4", "f4"),
        (("i2", "i2"), (3, 3), "i2", "f8"),
        (("i2", "i2"), (3, 4), "f8", "f8"),
        (("i2", "u1"), (3, 4), "f8", "f8"),
    ],
)
def test_scaled_lists_are_as_nilearn_concatenates_them(tmp_path, dtypes, slopes, dtype, loaded):
    paths = [tmp_path / f"{i}.nii.gz" for i in range(2)]
    for path, kind, slope in zip(paths, dtypes, slopes, strict=True):
        image = nifti(values((4, 5, 6), kind) * np.float32(slope) if slope != 1 else values((4, 5, 6), kind))
        image.header.set_data_dtype(kind)
        image.header.set_slope_inter(slope, 0)
        nib.save(image, path)
    expected = np.asanyarray(concat_imgs([str(path) for path in paths], dtype=None).dataobj)
    stream = open_volumes(paths)
    assert (stream.dtype, stream.loaded_dtype, expected.dtype) == (dtype, loaded, loaded)
    np.testing.assert_array_equal(read(stream), rows(expected))


def test_mixed_lists_are_not_truncated():
    arrays = values((4, 5, 6)), values((4, 5, 6), "f4")
    stream = open_volumes([nifti(array) for array in arrays])
    assert (stream.dtype, stream.loaded_dtype) == (np.float64, np.float64)
    np.testing.assert_array_equal(read(stream), rows(np.stack(arrays, 3).astype(float)))


# One pass, a few chunks of memory


def test_compressed_files_are_read_once(gz, monkeypatch):
    opened, n_bytes = [], []
    original_open, original_read = gzip_decoders.igzip.open, decoding.Decoder._read
    monkeypatch.setattr(gzip_decoders.igzip, "open", lambda path: opened.append(path) or original_open(path))

    def counting(self, target):
        n_bytes.append(original_read(self, target))
        return n_bytes[-1]

    monkeypatch.setattr(decoding.Decoder, "_read", counting)
    stream = open_volumes(gz)
    assert sum(n_bytes) == 352  # the header, and no extension
    opened.clear(), n_bytes.clear()
    read(stream, 3)
    assert opened == [str(gz)]
    assert sum(n_bytes) == 352 + np.prod(SHAPE) * 2


def test_buffers_are_reused(gz):
    stream, taken = open_volumes(gz), []
    pool = [np.empty((3, stream.grid.n_voxels), stream.dtype) for _ in range(2)]

    def take():
        taken.append(pool[len(taken) % 2])
        return taken[-1]

    for chunk, buffer in zip(stream.chunks(3, take), taken, strict=False):
        assert np.shares_memory(chunk.data, buffer)
    assert len(taken) == 3


def test_uncompressed_files_are_views(tmp_path):
    nib.save(nifti(values()), tmp_path / "bold.nii")

    def take():
        pytest.fail("no buffer is needed")

    chunks = list(open_volumes(tmp_path / "bold.nii").chunks(3, take))
    np.testing.assert_array_equal(np.concatenate([chunk.data for chunk in chunks]), rows(values()))  # still open
    assert not any(chunk.data.flags.writeable or chunk.data.flags.owndata for chunk in chunks)


@pytest.mark.parametrize("kind", ["gz", "nii", "C", "list"])
def test_memory_is_a_few_chunks(tmp_path, kind):
    def peak(n_volumes):
        array = np.zeros((32, 32, 32, n_volumes), "i2")
        image = nifti(array)
        if kind in ("gz", "nii"):
            image.to_filename(tmp_path / f"{n_volumes}.{kind.replace('gz', 'nii.gz')}")
            image = tmp_path / f"{n_volumes}.{kind.replace('gz', 'nii.gz')}"
        elif kind == "list":
            image = [nifti(array[..., i]) for i in range(n_volumes)]
        stream = open_volumes(image)
        tracemalloc.start()
        for _ in stream.chunks(2):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(8), peak(64)
    assert many < few + 50_000
    assert few < 5 * 2 * 32**3 * 2 + 600_000


def test_in_a_background_thread(gz):
    results = []
    thread = threading.Thread(target=lambda: results.append(read(open_volumes(gz))))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(results[0], rows(values()))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2"])
def test_closing_early_closes_the_file(tmp_path, suffix, monkeypatch):
    nib.save(nifti(values()), tmp_path / f"bold{suffix}")
    decoders = []

    class Recorded(decoding.Decoder):
        def __init__(self, path, **keywords):
            super().__init__(path, **keywords)
            decoders.append(self)

    monkeypatch.setattr(stored, "Decoder", Recorded)
    chunks = open_volumes(tmp_path / f"bold{suffix}").chunks(2)
    next(chunks)
    assert not any(decoder._file.closed for decoder in decoders)
    chunks.close()  # an open file would be a ResourceWarning, which is an error here
    assert all(decoder._file.closed for decoder in decoders)
    assert len(decoders) == (suffix != ".nii")


def test_identity(tmp_path, gz):
    same = open_volumes(gz).identity()
    assert open_volumes(str(gz)).identity() == same == open_volumes(nib.load(gz)).identity()
    hash(same)
    moved = nib.load(gz)
    moved = open_volumes(nib.Nifti1Image(moved.dataobj, moved.affine + np.diag([1, 1, 1, 0]), moved.header)).identity()
    assert moved != same
    assert moved[0][2] == same[0][2]  # the file isn't read for it
    gz.touch()
    assert open_volumes(gz).identity() != same

    in_memory = open_volumes(nifti(np.asfortranarray(values()))).identity()
    hash(in_memory)
    assert in_memory == open_volumes(nifti(np.ascontiguousarray(values()))).identity()
    assert in_memory != open_volumes(nifti(values(seed=1))).identity()
    assert in_memory != open_volumes(nifti(values(), AFFINE + np.diag([1, 1, 1, 0]))).identity()
    assert in_memory != open_volumes(nifti(values().astype("u2"))).identity()
    changed = nib.load(gz)
    changed = nib.Nifti1Image(
        np.asanyarray(changed.dataobj) + 1, changed.affine, changed.header, changed.extra, changed.file_map
    )
    assert open_volumes(changed).identity() != open_volumes(gz).identity()

    nib.Nifti1Pair(values(), AFFINE).to_filename(tmp_path / "pair.img")
    ((_, _, files),) = open_volumes(tmp_path / "pair.img").identity()
    assert [Path(file).name for file, _, _ in files] == ["pair.hdr", "pair.img"]
    assert len(open_volumes([nifti(values((4, 5, 6)))] * 2).identity()) == 2


# What can't be read


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (np.zeros((2, 2, 2)), "ndarray"),
        (None, "NoneType"),
        (3, "int"),
        ([None], "NoneType"),
        ([np.zeros((2, 2, 2)), np.eye(4)], "ndarray"),
    ],
)
def test_not_an_image(bad, got):
    for opener in (open_volumes, load_volume):
        with pytest.raises(TypeError) as caught:
            opener(bad)
        assert message(caught) == (
            "input should be a NiftiLike object or an iterable of NiftiLike object. "
            f"Got: {got}. Pass a path, a nibabel image or a list of these."
            + " An array needs its affine: pass the tuple (array, affine)."
            * (got == "ndarray")
        )


@pytest.mark.parametrize("empty", [[], (), iter([])])
def test_empty_list(empty):
    with pytest.raises(TypeError, match=r"^Cannot concatenate empty objects: the list of images is empty\.$"):
        open_volumes(empty)


def test_missing(tmp_path):
    with pytest.raises(ValueError, match=r"^File not found: '~/nowhere/no\.nii'$"):
        open_volumes("~/nowhere/no.nii")
    with pytest.raises(ValueError, match=r"^No files matching the entered niimg expression: 'nowhere/\*\.nii'\.$"):
        open_volumes("nowhere/*.nii")
    with pytest.raises(ImageError) as caught:
        open_volumes(tmp_path)
    assert message(caught) == f"{tmp_path} is a directory, expected an image file."
    nib.Nifti1Pair(values(), AFFINE).to_filename(tmp_path / "pair.img")
    (tmp_path / "pair.img").unlink()
    with pytest.raises(ImageError) as caught:
        open_volumes(tmp_path / "pair.hdr")
    assert message(caught) == (
        f"{tmp_path}/pair.img can't be read: No such file or directory. The image's header refers to it."
    )


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "a.nii.zst", "a.img", "a.mgz", "a.png", "a.nii.bz2", "a.txt", "a"]
)
def test_not_an_image_file(tmp_path, name):
    path = tmp_path / name
    path.touch()
    with pytest.raises(ImageError) as caught:
        open_volumes(path)
    assert message(caught) == f"{path} is empty (0 bytes), expected an image file. Copy or create the file again."
    for content in (b"\x89PNG\r\n\x1a\n", b"hello\n" * 1000, gzip.compress(b"hello" * 1000)):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=re.escape(f"{path} can't be read as an image: ")) as caught:
            open_volumes(path)
        assert message(caught).endswith("Expected NIfTI, Analyze or MGH.")


def test_not_an_image_of_volumes(tmp_path):
    nib.GiftiImage().to_filename(tmp_path / "a.gii")
    with pytest.raises(ImageError) as caught:
        open_volumes(tmp_path / "a.gii")
    assert message(caught).startswith(f"{tmp_path}/a.gii is a GiftiImage, expected an image of volumes (NIfTI, ")


def test_truncated_plain_file(tmp_path):
    path = tmp_path / "bold.nii"
    nib.save(nifti(values()), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError) as caught:
        open_volumes(path)
    assert message(caught) == (
        f"{path} is truncated or its header is wrong: by shape and dtype in the header it should hold 2032 bytes, but "
        "it has 1932. Copy or create the file again."
    )


def test_plain_file_that_is_cut_while_it_is_read(tmp_path):
    path = tmp_path / "bold.nii"
    nib.save(nifti(values()), path)
    chunks = open_volumes(path).chunks(1)
    next(chunks)
    size = path.stat().st_size
    os.truncate(path, size - 100)
    with pytest.raises(
        ImageError, match=f"^{re.escape(str(path))} is truncated or its header is wrong: .* it has {size - 100}"
    ):
        list(chunks)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii.zst", ".nii.bz2", ".mgz"])
@pytest.mark.parametrize("n", [1, 3, 100])
def test_truncated_or_corrupt_stream(tmp_path, suffix, n):
    if suffix == ".nii.zst":
        pytest.importorskip("backports.zstd")
    path = tmp_path / f"bold{suffix}"
    array = values((16, 16, 16, 7))
    (nib.MGHImage(array.astype(">i2"), AFFINE) if suffix == ".mgz" else nifti(array)).to_filename(path)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:-6], whole[: len(whole) // 2], whole[:-8] + b"\0\0\0\0" + whole[-4:]):
        path.write_bytes(broken)
        # nibabel meets the damage first where it must decode all of the file to have its header.
        found = f"{re.escape(str(path))} (is truncated or corrupt|can't be read as an image): "
        with pytest.raises(ImageError, match=found if suffix != ".nii.gz" else "bold.nii.gz is truncated or corrupt: "):
            read(open_volumes(path), n)
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 20] = bytes(20)
    path.write_bytes(damaged)
    with pytest.raises(ImageError, match=re.escape(str(path))):
        read(open_volumes(path), n)


def test_no_chunk_hides_a_bad_checksum(gz):
    """The last chunk isn't handed out before the checksum was found right."""
    whole = gz.read_bytes()
    gz.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    chunks, got = open_volumes(gz).chunks(3), []
    with pytest.raises(ImageError, match="CRC"):
        got.extend(chunk.start for chunk in chunks)
    assert 6 not in got
    nib.save(nifti(values((16, 16, 16))), gz)
    whole = gz.read_bytes()
    gz.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    with pytest.raises(ImageError, match="CRC"):
        load_volume(gz)


def test_stream_ends_before_the_header_says(tmp_path):
    nib.save(nifti(values()), tmp_path / "bold.nii")
    path = tmp_path / "bold.nii.gz"
    path.write_bytes(gzip.compress((tmp_path / "bold.nii").read_bytes()[:-100]))
    with pytest.raises(ImageError) as caught:
        read(open_volumes(path))
    assert message(caught) == (
        f"{path} is truncated: it ends 100 bytes before the end of a volume that its header promises. "
        "Copy or create the file again."
    )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_header_that_promises_too_much(tmp_path, suffix):
    nib.save(nifti(values()), tmp_path / "bold.nii")
    raw = bytearray((tmp_path / "bold.nii").read_bytes())
    raw[42:50] = np.array([30000, 30000, 30000, 10], "<i2").tobytes()
    path = tmp_path / f"huge{suffix}"
    path.write_bytes(raw if suffix == ".nii" else gzip.compress(raw))
    tracemalloc.start()
    with pytest.raises(ImageError, match=re.escape(f"{path} is truncated or its header is wrong")):
        open_volumes(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def with_offset(raw, offset):
    header = bytearray(raw)
    struct.pack_into("<f", header, 108, offset)
    return bytes(header)


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda raw: zstd().compress(raw)}


def zstd():
    return pytest.importorskip("backports.zstd")


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("pair", [False, True])
def test_offset_behind_the_end_is_skipped_to_in_pieces(tmp_path, suffix, pair):
    """A small file holds 2**22 bytes of zeros, and the header places the first volume behind them."""
    img = nifti(values())
    (nib.Nifti1Pair(values(), AFFINE) if pair else img).to_filename(tmp_path / ("bold.img" if pair else "bold.nii"))
    name, rest = ("bold.hdr", b"") if pair else ("bold.nii", bytes(2**22))
    raw = with_offset((tmp_path / name).read_bytes(), 2.0**24) + rest
    (tmp_path / (name + suffix)).write_bytes(COMPRESS[suffix](raw))
    path = tmp_path / f"bold.{'img' if pair else 'nii'}{suffix}"
    if pair:
        path.write_bytes(COMPRESS[suffix](bytes(2**22)))
        n_bytes = 2**22
    else:
        n_bytes = len(raw)
    with path.open("ab") as file:  # so that the file could hold 2**24 bytes
        file.write(COMPRESS[suffix](np.random.default_rng(0).bytes(2**15)))
    n_bytes += 2**15
    stream = open_volumes(path)
    tracemalloc.start()
    with pytest.raises(ImageError) as caught:
        read(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message(caught) == (
        f"{path} is truncated or its header is wrong: it ends after {n_bytes} bytes, but by its header the first "
        f"volume starts at byte {2**24}. Copy or create the file again."
    )
    assert peak < 5e6


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
@pytest.mark.parametrize("cls", [nib.Nifti1Pair, nib.AnalyzeImage, nib.Spm99AnalyzeImage])
@pytest.mark.parametrize("offset", [-16.0, -1e30])
def test_negative_offset_of_a_pair(tmp_path, cls, suffix, offset):
    cls(values(), AFFINE).to_filename(tmp_path / "bold.img")
    header, data = (tmp_path / name for name in ("bold.hdr", "bold.img"))
    header.write_bytes(with_offset(header.read_bytes(), offset))
    (tmp_path / "bold.mat").unlink(missing_ok=True)
    if suffix:
        for path in (header, data):
            Path(f"{path}{suffix}").write_bytes(COMPRESS[suffix](path.read_bytes()))
            path.unlink()
    path = f"{data}{suffix}"
    with pytest.raises(ImageError) as caught:
        open_volumes(path)
    assert message(caught) == (
        f"The header of {path} is wrong: by its vox_offset the values start at byte {int(np.float32(offset))} of "
        f"{path}, expected 0 or more. Copy or create the file again."
    )


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(("cls", "order"), [(nib.Nifti1Image, "<"), (nib.Nifti2Image, "<"), (nib.Nifti1Pair, ">")])
def test_extensions_larger_than_any_are_refused_unread(tmp_path, suffix, cls, order):
    """nibabel would load them: a few kilobytes of bzip2 hold 2 GB."""
    size = 2**26 + 16
    pair = cls is nib.Nifti1Pair
    image = cls(values(), AFFINE, cls.header_class(endianness=order))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"before"))
    image.to_filename(tmp_path / ("bold.img" if pair else "bold.nii"))
    path = tmp_path / ("bold.hdr" if pair else "bold.nii")
    raw = bytearray(path.read_bytes())
    n_header = struct.unpack_from(order + "i", raw)[0]
    end = n_header + 4 + struct.unpack_from(order + "i", raw, n_header + 4)[0]
    if not pair:
        at, kind = (108, "f") if n_header == 348 else (168, "q")
        struct.pack_into(order + kind, raw, at, end + 2 * size)
    raw = bytes(raw[:end]) + struct.pack(order + "ii", size, 6)
    whole, told = Path(f"{path}{suffix}"), tmp_path / f"bold.{'img' if pair else 'nii'}{suffix}"
    told.write_bytes(COMPRESS[suffix](bytes(1000)))
    whole.write_bytes(COMPRESS[suffix](raw))
    with pytest.raises(ImageError) as caught:
        open_volumes(told)
    assert message(caught) == (
        f"The header of {whole} is wrong: its extensions have {end - n_header - 4 + size} bytes or more, expected at "
        "most 67108864. Copy or create the file again, without extensions."
    )


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("at", "value"),
    [
        (544, b"\0\0\0\0"),  # an extension of 0 bytes: nibabel reads to the end of the file
        (544, b"\0\0\0\x40"),  # of 1 GB
        (16, struct.pack("<q", 64)),  # 64 dimensions: nibabel takes the header for a big-endian one
        (168, bytes(8)),  # values that begin in the header: nibabel takes all that follows for extensions
    ],
)
def test_extensions_are_measured_as_nibabel_reads_them(tmp_path, suffix, at, value):
    image = nib.Nifti2Image(np.full(SHAPE, 2**14, "i2"), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a" * 1000))
    image.to_filename(tmp_path / "bold.nii")
    raw = bytearray((tmp_path / "bold.nii").read_bytes())
    raw[at : at + len(value)] = value
    path = tmp_path / f"bold.nii{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    with pytest.raises(ImageError, match=re.escape(f"The header of {path} is wrong: its extensions have ")):
        open_volumes(path)


def test_extensions_of_usual_size(tmp_path):
    """What looks like one behind the last of them belongs to the values."""
    array = np.full(SHAPE, 2**14, "i2")
    image = nifti(array)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a" * 1000))
    image.to_filename(tmp_path / "bold.nii.gz")
    np.testing.assert_array_equal(read(open_volumes(tmp_path / "bold.nii.gz")), rows(array))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nibabel leaves it open
@pytest.mark.parametrize("dims", [(2**31 - 1, 5, 6, 7), (2**16, 2**16, 6, 7)])
def test_shape_that_overflows_the_header_types(tmp_path, dims):
    nib.MGHImage(values(), AFFINE).to_filename(tmp_path / "bold.mgh")
    path = tmp_path / "bold.mgh"
    raw = bytearray(path.read_bytes())
    struct.pack_into(">4i", raw, 4, *dims)
    path.write_bytes(raw)
    with pytest.raises(ImageError) as caught:
        open_volumes(path)
    assert message(caught) == (
        f"{path} is truncated or its header is wrong: by shape and dtype in the header it should hold "
        f"{284 + 2 * math.prod(dims)} bytes, but it has {len(raw)}. Copy or create the file again."
    )


@pytest.mark.parametrize("damage", ["shape", "cut", "missing"])
def test_broken_afni_file(tmp_path, damage):
    for name in ("scaled+tlrc.HEAD", "scaled+tlrc.BRIK"):
        (tmp_path / name).write_bytes((Path(nib.__file__).parent / "tests" / "data" / name).read_bytes())
    head, brik = tmp_path / "scaled+tlrc.HEAD", tmp_path / "scaled+tlrc.BRIK"
    n_bytes, size = 47 * 54 * 43 * 2, brik.stat().st_size
    if damage == "shape":
        head.write_text(head.read_text().replace(" 47 54 43 0 0", " 47000 54000 43 0 0"))
        n_bytes *= 10**6
    elif damage == "cut":
        size = 1000
        os.truncate(brik, size)
    else:
        brik.unlink()
    with pytest.raises(ImageError) as caught:
        open_volumes(head)
    promised = "is truncated or its header is wrong: by shape and dtype in the header it should hold"
    assert message(caught) == (
        f"{brik} can't be read: No such file or directory. The image's header refers to it."
        if damage == "missing"
        else f"{brik} {promised} {n_bytes} bytes, but it has {size}. Copy or create the file again."
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nibabel leaves it open
def test_cut_par_rec_file(tmp_path):
    for name in ("phantom_EPI_asc_CLEAR_2_1.PAR", "phantom_EPI_asc_CLEAR_2_1.REC"):
        (tmp_path / name).write_bytes((Path(nib.__file__).parent / "tests" / "data" / name).read_bytes()[:100_000])
    path = tmp_path / "phantom_EPI_asc_CLEAR_2_1.PAR"
    with pytest.raises(ImageError, match=f"^{re.escape(str(path.with_suffix('')))}.* (is truncated|can't be read)"):
        read(open_volumes(path))


def test_large_volume_that_is_not_there_is_found_on_opening(tmp_path):
    """Otherwise labels are resampled to its grid before it is read."""
    header = nib.Nifti1Header()
    header.set_data_dtype("u1")
    header.set_data_shape((700, 700, 600))
    header.set_sform(AFFINE, 1)
    path = tmp_path / "bold.nii.bz2"
    raw = with_offset(header.binaryblock[:344] + b"n+1\0" + bytes(4), 352.0) + np.random.default_rng(0).bytes(1000)
    path.write_bytes(bz2.compress(raw))
    with pytest.raises(ImageError) as caught:
        open_volumes(path)
    assert message(caught) == (
        f"{path} is truncated or its header is wrong: it ends after 1352 bytes, but by its header the first volume "
        "ends at byte 294000352. Copy or create the file again."
    )


def test_volumes_that_do_not_fit_in_memory(tmp_path, monkeypatch):
    """A megabyte of bzip2 may promise a volume of a terabyte."""
    nib.save(nifti(values()), tmp_path / "bold.nii.gz")
    stream = open_volumes(tmp_path / "bold.nii.gz")

    def take():
        raise MemoryError

    with pytest.raises(ImageError) as caught:
        read(stream, take=take)
    assert message(caught) == (
        f"Not enough memory to read {tmp_path}/bold.nii.gz: by its header, a volume of shape (4, 5, 6) and type int16 "
        "has 240 bytes. If that is wrong, create the file again; else free memory."
    )


def test_missing_zstd(tmp_path, monkeypatch):
    for name in ("backports", "compression"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    path = tmp_path / "bold.nii.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(ImportError) as caught:
        open_volumes(path)
    assert message(caught) == f"Missing package 'backports.zstd' to read {path}. Run: pip install 'gpumask[zstd]'"


def test_dimensions():
    begin = "Input data has incompatible dimensionality: "
    with pytest.raises(DimensionError) as caught:
        open_volumes(nifti(values((2, 2, 2, 2, 2))))
    assert message(caught) == (
        f"{begin}Expected dimension is 4D and you provided a 5D image. in-memory image has shape (2, 2, 2, 2, 2), "
        "expected (x, y, z) or (x, y, z, time)."
    )
    with pytest.raises(DimensionError) as caught:
        open_volumes([nifti(values())] * 2)
    assert message(caught) == (
        f"{begin}Expected dimension is 4D and you provided a list of 4D images (5D). Image #0 (in-memory image) has 7 "
        "volumes: pass it alone."
    )
    with pytest.raises(DimensionError) as caught:
        load_volume(nifti(values()))
    assert message(caught) == (
        f"{begin}Expected dimension is 3D and you provided a 4D image. in-memory image has 7 volumes. If they are "
        "maps, use NiftiMapsMasker."
    )
    assert issubclass(DimensionError, TypeError)
    with pytest.raises(ImageError) as caught:
        open_volumes(nifti(np.zeros((2, 0, 2))))
    assert message(caught) == (
        "The image is empty. in-memory image has shape (2, 0, 2); every dimension must be at least 1."
    )


def test_lists_of_different_grids(tmp_path):
    nib.save(nifti(values((4, 5, 6))), tmp_path / "a.nii")
    nib.save(nifti(values((4, 5, 7))), tmp_path / "b.nii")
    with pytest.raises(ValueError, match="is different from reference FOV") as caught:
        open_volumes([tmp_path / "a.nii", tmp_path / "b.nii"])
    assert message(caught).startswith(
        f"Field of view of image #1 ({tmp_path}/b.nii) is different from reference FOV ({tmp_path}/a.nii).\n"
    )
    with pytest.raises(ValueError, match="is different from reference FOV"):
        open_volumes([tmp_path / "a.nii", nifti(values((4, 5, 6)), AFFINE + np.diag([0.01, 0.01, 0.01, 0]))])


@pytest.mark.parametrize(("bad", "problem"), [(np.nan, "holds NaN"), (np.inf, "holds NaN"), (0, "is singular")])
def test_unusable_affine(tmp_path, bad, problem):
    path = tmp_path / "bold.nii"
    nib.save(nifti(values()), path)
    raw = bytearray(path.read_bytes())
    raw[280:296] = np.full(4, bad, "<f4").tobytes()  # srow_x
    path.write_bytes(raw)
    with pytest.raises(ImageError, match=re.escape(f"The affine of {path} {problem}")):
        open_volumes(path)
    with pytest.raises(ImageError, match="in-memory image has no affine"):
        open_volumes(nib.spatialimages.SpatialImage(values(), None))


def test_infinite_header_of_mgh_is_one_error(tmp_path):
    """nibabel computes the affine while it loads the header, and NumPy would warn."""
    path = tmp_path / "bold.mgz"
    nib.save(nib.MGHImage(values(), AFFINE), path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[30:34] = np.array(np.inf, ">f4").tobytes()  # voxel size along x
    path.write_bytes(gzip.compress(raw))
    with pytest.raises(ImageError, match=re.escape(f"The affine of {path} holds NaN or infinite values.")):
        open_volumes(path)


@pytest.mark.parametrize("dtype", ["c8", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_unusable_dtype(tmp_path, dtype):
    path = tmp_path / "bold.nii.gz"
    nib.Nifti1Image(np.zeros(SHAPE, dtype), AFFINE).to_filename(path)
    with pytest.raises(ImageError) as caught:
        open_volumes(path)
    assert message(caught) == f"{path} holds values of type {np.dtype(dtype)}, expected integers or real floats."
