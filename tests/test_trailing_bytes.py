"""Compressed files that go on after their last member: a warning if the image is complete, else an error."""

import bz2
import gzip
import re
import warnings

import nibabel as nib
import nilearn.maskers
import numpy as np
import pytest

from gpumask import NiftiLabelsMasker
from gpumask.images.errors import ImageError
from gpumask.images.volumes import open_volumes

from .helpers import image

N = 40
LABELS = np.zeros((6, 6, 6), "i2")
LABELS[1:3, 1:3, 1:3], LABELS[3:5, 3:5, 3:5] = 1, 2
VALUES = np.random.default_rng(0).normal(10, 1, (6, 6, 6, N)).astype("f4")
EXPECTED_ROWS = VALUES.reshape(-1, N, order="F").T
ATLAS = image(LABELS)
SUFFIXES = {"bz2": "bz2", "zstd": "zst"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("good") / "run.nii"
    nib.save(image(VALUES), path)
    return path.read_bytes()


def with_bytes(good, position, value):
    """`good` with one byte combined with `value` by XOR."""
    position %= len(good)
    return good[:position] + bytes([good[position] ^ value]) + good[position + 1 :]


@pytest.fixture(params=["isal", "rapidgzip", "zlib", "bz2", "zstd"])
def compressed(request, good, tmp_path, monkeypatch):
    """Path of a run to write, its compressed bytes, and what decodes it."""
    compress = gzip.compress
    if request.param == "bz2":
        compress = bz2.compress
    elif request.param == "zstd":
        compress = pytest.importorskip("backports.zstd").compress
    else:
        monkeypatch.setenv("GPUMASK_DECODER", request.param)
    return tmp_path / f"run.nii.{SUFFIXES.get(request.param, 'gz')}", compress, request.param


def trailing_warning(path, n):
    plural = "bytes" if n > 1 else "byte"
    return f"{path} has {n} trailing {plural} after its compressed data. They are ignored: the image before them is"


def read_recorded(path, n=7):
    """The run's values, and the warnings while they were read."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        chunks = [chunk.scaled() for chunk in open_volumes(path).chunks(n)]
    return np.concatenate(chunks), [str(w.message) for w in record]


@pytest.mark.parametrize("n", [1, 7, N])
@pytest.mark.parametrize(
    "extra",
    [b"g", b"gar", b"garbage!", b"garbage " * 5000, bytes(5) + b"garbage", b"\r\n", bytes(512), bytes(200_000)],
    ids=lambda extra: f"{extra[:3]!r}...{len(extra)}",
)
def test_trailing_bytes_warn(good, compressed, extra, n):
    """gzip and bzip2 say "trailing garbage ignored", and nilearn reads gzip."""
    path, compress, _ = compressed
    path.write_bytes(compress(good) + extra)
    signals, said = read_recorded(path, n)
    np.testing.assert_array_equal(signals, EXPECTED_ROWS)
    assert len(said) == 1
    assert said[0].startswith(trailing_warning(path, len(extra)))


def test_a_few_zeros_after_gzip_are_silent(good, tmp_path):
    path = tmp_path / "run.nii.gz"
    path.write_bytes(gzip.compress(good) + bytes(7))
    signals, said = read_recorded(path)
    np.testing.assert_array_equal(signals, EXPECTED_ROWS)
    assert not said


def test_no_warning_without_trailing_bytes(good, compressed):
    """One member, several, with an empty one at the end as bgzip writes it, and other bytes after the image's."""
    path, compress, _ = compressed
    for content in (
        compress(good),
        compress(good[:20000]) + compress(good[20000:]),
        compress(good) + compress(b""),
        compress(good) + compress(b"something else"),
        compress(good + bytes(10)),
    ):
        path.write_bytes(content)
        signals, said = read_recorded(path)
        np.testing.assert_array_equal(signals, EXPECTED_ROWS)
        assert not said


def test_trailing_bytes_after_several_members(good, compressed):
    path, compress, _ = compressed
    path.write_bytes(compress(good[:20000]) + compress(good[20000:]) + b"garbage")
    signals, said = read_recorded(path)
    np.testing.assert_array_equal(signals, EXPECTED_ROWS)
    assert [line.startswith(trailing_warning(path, 7)) for line in said] == [True]


def damaged(good, compress, kind):
    whole = compress(good)
    yield "cut, then garbage", whole[:-30] + b"garbage" * 20
    yield "cut, then zeros", whole[: len(whole) // 2] + bytes(len(whole))  # a download into reserved space
    yield "cut at the end, then zeros", whole[:-30] + bytes(100)
    yield "image ends in garbage", compress(good[:20000]) + b"garbage" * 100
    yield "image ends in zeros", compress(good[:20000]) + bytes(1000)
    yield "second member cut", compress(good[:20000]) + compress(good[20000:])[:-20]
    yield "garbage alone", b"garbage" * 1000
    if kind in ("isal", "rapidgzip", "zlib"):
        yield "checksum", with_bytes(whole, -8, 1) + b"garbage" * 5
        yield "length", with_bytes(whole, -4, 1) + b"garbage" * 5
        yield "checksum, then zeros", with_bytes(whole, -8, 1) + bytes(99)
        yield "checksum of the first member", with_bytes(whole, -8, 1) + whole + b"garbage"
        yield "no checksum", whole[:-8]
        yield "last member cut", whole + whole[:-20]
        yield "checksum of a member after the image", whole + with_bytes(whole, -8, 1)
    if kind == "bz2":
        yield "checksum", with_bytes(whole, -3, 8) + b"garbage" * 5
        yield "last member cut", whole + whole[:-20]
    if kind == "zstd":
        checked = zstd_with_checksum(good)
        yield "checksum", with_bytes(checked, -1, 1) + b"garbage" * 5
        yield "last member cut", whole + whole[:-20]


def zstd_with_checksum(content):
    from backports import zstd

    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the garbage before the checksum is reached
def test_damage_before_trailing_bytes_is_an_error(good, compressed):
    path, compress, kind = compressed
    for what, content in damaged(good, compress, kind):
        path.write_bytes(content)
        with pytest.raises(ImageError) as caught:
            for _ in open_volumes(path).chunks(7):
                pass
        assert str(path) in str(caught.value), what


def test_trailing_bytes_of_labels_and_masks(tmp_path):
    for use, array in (("labels_img", LABELS), ("mask_img", np.ones_like(LABELS))):
        path = tmp_path / f"{use}.nii.gz"
        nib.save(image(array.astype("f4")), path)  # below 1024 bytes, nibabel itself fails
        path.write_bytes(path.read_bytes() + b"garbage")
        masker = NiftiLabelsMasker(**{"labels_img": ATLAS, use: path})
        with pytest.warns(UserWarning, match=re.escape(trailing_warning(path, 7))) as record:
            masker.fit()
        assert record[0].filename == __file__


def test_trailing_bytes_of_a_run(good, tmp_path):
    path = tmp_path / "run.nii.gz"
    path.write_bytes(gzip.compress(good) + b"garbage")
    expected = NiftiLabelsMasker(ATLAS).fit_transform(image(VALUES))
    with pytest.warns(UserWarning, match=re.escape(trailing_warning(path, 7))) as record:
        np.testing.assert_allclose(NiftiLabelsMasker(ATLAS).fit_transform(path), expected)
    assert len(record) == 1
    theirs = nilearn.maskers.NiftiLabelsMasker(ATLAS, standardize=None).fit_transform(path)
    np.testing.assert_allclose(theirs, expected)
