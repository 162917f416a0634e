"""Atlases, masks and look-up tables against nilearn's."""

import gc
import mmap
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.maskers import NiftiLabelsMasker

from gpumask.images import labels as module
from gpumask.images.errors import DimensionError
from gpumask.images.grid import Grid
from gpumask.images.labels import Atlas, load_atlas, load_mask, unique_labels
from gpumask.images.lookup import lookup_table

SHAPE = (4, 5, 6)
AFFINE = np.diag([3.0, 3, 3, 1])


def nifti(array, affine=AFFINE):
    return nib.Nifti1Image(array, affine, dtype=array.dtype)


def some_labels(values=(0, 1, 2, 5), dtype="i2"):
    labels = np.random.default_rng(0).choice(values, SHAPE)
    labels.flat[: len(values)] = values
    return labels.astype(dtype)


def atlas_of(labels, mask=None, background=0):
    grid = Grid(SHAPE, AFFINE, "atlas.nii")
    return Atlas(labels, grid, background, mask, None if mask is None else Grid(SHAPE, AFFINE, "mask.nii"))


def recorded(function, *args, **keywords):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = function(*args, **keywords)
    return result, [str(warning.message) for warning in record if warning.category is UserWarning]


# Labels


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">i2", ">f4"])
@pytest.mark.parametrize("spread", ["few", "negative", "wide"])
def test_unique_labels(dtype, spread):
    dtype = np.dtype(dtype)
    values = {"few": [0, 1, 3, 100], "negative": [-5, -1, 0, 7], "wide": [0, 1, 60_000, 2**31 - 1]}[spread]
    with np.errstate(over="ignore"):
        labels = np.random.default_rng(0).choice(values, (5, 6, 7)).astype(dtype)
    labels = np.where(np.isfinite(labels), labels, 0).astype(dtype)
    unique = unique_labels(labels)
    np.testing.assert_array_equal(unique, np.unique(labels))
    assert unique.dtype == dtype.newbyteorder("=")


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_unique_labels_at_the_ends_of_a_type(dtype):
    ends = np.iinfo(dtype)
    for labels in ([ends.min, 0, ends.max], [ends.max, ends.max - 1, ends.max - 5], [ends.min, ends.min + 3]):
        labels = np.array(labels, dtype)
        np.testing.assert_array_equal(unique_labels(labels), np.unique(labels))


@pytest.mark.parametrize(
    "values", [[0.5, 2.25, 0.5], [-0.0, 0.0, 1.0], [np.nan, 1, np.inf, -np.inf, 3], [1e300, 2.0], [1e300, 1e300]]
)
def test_unique_fractions(values):
    expected = np.unique(np.array(values)[np.isfinite(values)])
    np.testing.assert_array_equal(unique_labels(np.array(values)), expected)


@pytest.mark.parametrize("dtype", ["i2", ">i2", "u1", "u8", "f4", ">f8"])
@pytest.mark.parametrize("last", [7, 40, 7.5])
def test_unique_labels_of_many_voxels(dtype, last):
    """They are read in blocks: a label, or a fraction, may occur in the last one alone."""
    labels = np.random.default_rng(0).choice([3, 7, 90], 100_001).astype(dtype)
    labels[-1] = last
    labels = labels[:100_000].reshape(50, 50, 40) if last == 7 else labels[1:].reshape(50, 50, 40)
    np.testing.assert_array_equal(unique_labels(labels), np.unique(labels))


def test_unique_labels_of_nothing():
    assert unique_labels(np.array([np.nan, np.inf])).tolist() == []


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", ">i2", ">f4"])
def test_loads_labels(tmp_path, dtype):
    labels = some_labels(dtype=dtype)
    nib.save(nifti(labels), tmp_path / "atlas.nii.gz")
    for source in (tmp_path / "atlas.nii.gz", nifti(labels), nifti(labels[..., None])):
        atlas = load_atlas(source, 2)
        np.testing.assert_array_equal(atlas.labels, labels)
        assert atlas.labels.dtype == np.dtype(dtype).newbyteorder("=")
        assert (atlas.background, atlas.mask, atlas.grid.shape) == (2, None, SHAPE)
        assert atlas.values.tolist() == [0, 1, 2, 5]


def test_labels_that_are_not_finite():
    labels = some_labels(dtype="f4")
    labels[0, 0, :2] = np.nan, np.inf
    before = labels.copy()
    message = "^Non-finite values detected. These values will be replaced with zeros.$"
    with pytest.warns(UserWarning, match=message):
        atlas = load_atlas(nifti(labels))
    np.testing.assert_array_equal(atlas.labels, np.where(np.isfinite(before), before, 0))
    np.testing.assert_array_equal(labels, before)


def test_nothing_but_background():
    message = "Image has no label. Every voxel of in-memory image is background (7)."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_atlas(nifti(np.full(SHAPE, 7, "i2")), 7)


def test_several_volumes_of_labels():
    with pytest.raises(DimensionError, match="Expected dimension is 3D and you provided a 4D image"):
        load_atlas(nifti(np.ones((*SHAPE, 2), "i2")))


# Masks


def masks():
    rng = np.random.default_rng(1)
    holed = rng.normal(size=SHAPE)
    holed[0, 0, :3] = np.nan, np.inf, 0
    yield "bool-like", (rng.random(SHAPE) < 0.5).astype("u1")
    yield "signed", rng.integers(-1, 2, SHAPE).astype("i2")
    yield "small", (rng.random(SHAPE) * 0.1).astype("f4")
    yield "volumes", rng.integers(0, 2, (*SHAPE, 3)).astype("u1")
    yield "holed", holed


@pytest.mark.parametrize("mask", [pytest.param(mask, id=name) for name, mask in masks()])
def test_loads_masks(mask):
    (loaded, grid), messages = recorded(load_mask, nifti(mask))
    finite = np.where(np.isfinite(mask), mask, 0)
    expected = finite.reshape((*SHAPE, -1)).astype(bool).all(axis=-1)
    np.testing.assert_array_equal(loaded, expected)
    assert (loaded.dtype, grid.shape) == (bool, SHAPE)
    assert bool(messages) == (not np.isfinite(mask).all())


def test_list_of_masks():
    parts = np.random.default_rng(1).integers(0, 2, (*SHAPE, 3)).astype("u1")
    loaded, _ = load_mask([nifti(parts[..., k]) for k in range(3)])
    np.testing.assert_array_equal(loaded, parts.all(axis=-1))


@pytest.mark.parametrize(
    ("stored", "slope", "inter"), [([0, 1, 2], 0.5, -0.5), ([0, 1, 2], 2.0, 0.0), ([5, 6, 7], 1, -6)]
)
def test_scaled_masks(tmp_path, stored, slope, inter):
    """A stored value other than 0 can be 0, and the other way round."""
    stored = np.random.default_rng(1).choice(stored, SHAPE).astype("i2")
    image = nifti(stored)
    nib.save(image, tmp_path / "mask.nii")
    content = bytearray((tmp_path / "mask.nii").read_bytes())
    content[112:120] = np.array([slope, inter], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "mask.nii").write_bytes(content)
    loaded, _ = load_mask(tmp_path / "mask.nii")
    np.testing.assert_array_equal(loaded, stored * slope + inter != 0)


def test_empty_mask():
    message = "The mask is invalid as it is empty: it masks all data. No voxel of in-memory image is inside it."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_mask(nifti(np.zeros(SHAPE, "u1")))


def test_mask_that_misses_the_target():
    mask = np.ones(SHAPE, bool)
    away = AFFINE.copy()
    away[0, 3] = 1000
    with pytest.raises(ValueError, match=r"No voxel of mask\.nii is inside it"):
        atlas_of(some_labels(), mask).with_mask_resampled(Grid(SHAPE, away))


def test_mask_on_another_grid():
    half = Grid((8, 10, 12), np.diag([1.5, 1.5, 1.5, 1]))
    mask = np.random.default_rng(0).random(SHAPE) < 0.5
    resampled = atlas_of(some_labels(), mask).with_mask_resampled(half)
    assert (resampled.mask.shape, resampled.mask_grid.name) == (half.shape, "mask.nii")
    np.testing.assert_array_equal(resampled.mask[:8:2, :10:2, :12:2], mask)


@pytest.mark.parametrize("background", [0, 2])
def test_masked_labels(background):
    mask = np.random.default_rng(0).random(SHAPE) < 0.5
    atlas = atlas_of(some_labels(), mask, background)
    np.testing.assert_array_equal(atlas.masked_labels, np.where(mask, atlas.labels, background))
    assert atlas_of(some_labels()).masked_labels is not None


def test_mask_without_a_label():
    labels = some_labels()
    atlas_of(labels, labels == 5).check_mask()
    for check in (
        atlas_of(labels, labels == 0).check_mask,
        lambda: atlas_of(labels, labels == 0).columns(keep_masked=False),
    ):
        with pytest.raises(ValueError, match=r"^No label left after applying mask to the labels image\.$"):
            check()


def test_columns():
    labels = some_labels((0, 1, 2, 5, 9))
    assert atlas_of(labels).columns(keep_masked=False).tolist() == [1, 2, 5, 9]
    assert atlas_of(labels, background=5).columns(keep_masked=False).tolist() == [0, 1, 2, 9]
    assert atlas_of(labels, background=77).columns(keep_masked=False).tolist() == [0, 1, 2, 5, 9]
    masked = atlas_of(labels, ~np.isin(labels, [2, 9]))
    message = (
        f"After applying mask to the labels image, the following labels were removed: { {2, 9} }. Out of 5 labels, the "
        "masked labels image only contains 3 labels (including background)."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        assert masked.columns(keep_masked=False).tolist() == [1, 5]
    with pytest.warns(FutureWarning, match='^In version 0.15.0, "keep_masked_labels" parameter will be removed.$'):
        assert masked.columns(keep_masked=True).tolist() == [1, 2, 5, 9]


def test_labels_on_another_grid():
    labels = np.zeros(SHAPE, "i2")
    labels[:2], labels[2:] = 1, 3
    labels[3, 4, 5] = 8
    coarse = Grid((2, 3, 3), np.diag([6.0, 6, 6, 1]))
    with pytest.warns(UserWarning, match=r"labels were removed: \{8\}. Label image only contains 2 labels"):
        resampled = atlas_of(labels).resampled(coarse)
    np.testing.assert_array_equal(resampled.labels, labels[::2, ::2, ::2])
    assert (resampled.grid.shape, resampled.grid.name) == (coarse.shape, "atlas.nii")
    away = np.diag([6.0, 6, 6, 1])
    away[0, 3] = 1000
    with pytest.raises(
        ValueError, match=r"^No label left after resampling the labels image\. atlas\.nii and bold\.nii may"
    ):
        atlas_of(labels).resampled(Grid((2, 3, 3), away, "bold.nii"))


def test_paints_signals():
    labels = some_labels((0, 1, 2, 5, 9))
    mask = np.random.default_rng(0).random(SHAPE) < 0.5
    ids, signals = [1, 5, 9], np.arange(6.0, dtype="f4").reshape(2, 3) + 1
    for atlas, inside in [(atlas_of(labels), np.ones(SHAPE, bool)), (atlas_of(labels, mask), mask)]:
        volumes = atlas.painted(ids, signals)
        assert (volumes.shape, volumes.dtype) == ((*SHAPE, 2), np.float32)
        for index in np.ndindex(SHAPE):
            known = inside[index] and labels[index] in ids
            expected = signals[:, ids.index(labels[index])] if known else [0, 0]
            np.testing.assert_array_equal(volumes[index], expected)
        np.testing.assert_array_equal(atlas.painted(ids, signals[0]), volumes[..., 0])
        np.testing.assert_array_equal(atlas.painted(ids, signals, n_threads=3), volumes)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_paints_into_large_arrays(monkeypatch, dtype):
    """As into small ones; they can be written to, and outlive what made them."""
    labels, signals = some_labels((0, 1, 2)), np.arange(20).reshape(10, 2).astype(dtype)
    expected = atlas_of(labels).painted([1, 2], signals)
    monkeypatch.setattr(module, "_HUGE", 1)
    volumes = atlas_of(labels).painted([1, 2], signals, n_threads=2)
    gc.collect()
    assert (volumes.dtype, volumes.flags.f_contiguous, volumes.flags.writeable) == (np.dtype(dtype), True, True)
    np.testing.assert_array_equal(volumes, expected)
    volumes += 1
    np.testing.assert_array_equal(volumes, expected + 1)
    assert module._zeros((0, 5), "f8").shape == (0, 5)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's count of resident pages")
def test_zeros_take_memory_where_they_are_written_to():
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE  # noqa: E731
    before = resident()
    zeros = module._zeros((32, 1 << 20), "f8")
    zeros[:, :: 1 << 18] = 1.0  # a voxel in 2 MiB: with huge pages, all 256 MiB
    assert zeros.sum() == 128
    assert resident() - before < 16 << 20


# Look-up tables


def theirs(labels, background, names, lut):
    masker = NiftiLabelsMasker(nifti(labels), background_label=background, labels=names, lut=lut, standardize=None)
    return masker.fit().lut_


def assert_same_table(labels, background=0, names=None, lut=None):
    (expected, their_warnings) = recorded(theirs, labels, background, names and list(names), lut)
    table, our_warnings = recorded(lookup_table, unique_labels(labels), background, names=names, lut=lut)
    assert our_warnings == their_warnings
    pd.testing.assert_frame_equal(table[expected.columns], expected, check_dtype=False)
    return table


KINDS = {
    "int": some_labels(),
    "big-endian": some_labels(dtype=">i2"),
    "float": some_labels(dtype="f4"),
    "fractions": some_labels((0, 0.1, 2.5, 5), dtype="f4"),
    "negative": some_labels((-3, 0, 2, 5)),
    "no-background": some_labels((1, 2, 3, 5)),
}


@pytest.mark.parametrize("background", [0, 2, 77])
@pytest.mark.parametrize("labels", KINDS)
def test_table_without_names(labels, background):
    assert_same_table(KINDS[labels], background)


@pytest.mark.parametrize("background", [0, 2, 77])
@pytest.mark.parametrize("labels", ["int", "float", "negative", "no-background"])
@pytest.mark.parametrize("names", ["abc", "abcd", "ab", "abcde", "abcdefg"])
@pytest.mark.parametrize("named", [None, "Background"])
def test_table_of_names(labels, background, names, named):
    """As many as regions, fewer or more, with the background's or without."""
    assert_same_table(KINDS[labels], background, names=[named, *names] if named else list(names))


def test_names_are_left_alone():
    names = ["a", "b"]
    with pytest.warns(UserWarning, match="Too many indices"):
        lookup_table(np.array([0, 1, 2, 5]), 0, names=names)
    assert names == ["a", "b"]


LUTS = {
    "full": {"index": [0, 1, 2, 5], "name": ["Background", "a", "b", "c"]},
    "unsorted": {"name": ["c", "a", "Background", "b"], "index": [5, 1, 0, 2]},
    "no-background": {"index": [1, 2, 5], "name": ["a", "b", "c"]},
    "misnamed": {"index": [0, 1, 2, 5], "name": ["air", "a", "b", "c"]},
    "more": {"index": [0, 1, 2, 3, 4, 5], "name": list("uvwxyz")},
    "fewer": {"index": [0, 5], "name": ["Background", "c"]},
    "other": {"index": [10, 11], "name": ["a", "b"]},
    "colours": {"index": [1, 2, 5], "name": ["a", "b", "c"], "color": ["FF0000", "00FF00", "0000FF"]},
    "floats": {"index": [0.0, 1.0, 2.0, 5.0], "name": ["Background", "a", "b", "c"]},
}


@pytest.mark.parametrize("background", [0, 2, 77])
@pytest.mark.parametrize("labels", ["int", "float", "no-background"])
@pytest.mark.parametrize("lut", LUTS)
def test_table_from_a_table(tmp_path, labels, background, lut):
    lut = pd.DataFrame(LUTS[lut])
    before = lut.copy()
    table = assert_same_table(KINDS[labels], background, lut=lut)
    pd.testing.assert_frame_equal(lut, before)
    for suffix, separator in [("tsv", "\t"), ("csv", ",")]:
        lut.to_csv(tmp_path / f"lut.{suffix}", sep=separator, index=False)
        pd.testing.assert_frame_equal(
            lookup_table(unique_labels(KINDS[labels]), background, lut=tmp_path / f"lut.{suffix}"), table
        )


def test_table_with_a_label_column():
    lut = pd.DataFrame({"index": [0, 1], "label": ["Background", "a"]})
    assert lookup_table(np.array([0, 1]), 0, lut=lut)["name"].tolist() == ["Background", "a"]
    assert list(lut.columns) == ["index", "label"]


def test_table_that_lacks_a_column(tmp_path):
    lut = pd.DataFrame({"number": [0, 1], "name": ["Background", "a"]})
    message = "`lut` must have the columns 'index' and 'name', but lacks ['index']; it has ['number', 'name']."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lookup_table(np.array([0, 1]), 0, lut=lut)
    path = tmp_path / "lut.tsv"
    lut.to_csv(path, sep="\t", index=False)
    with pytest.raises(ValueError, match=f"^{re.escape(message.replace('`lut`', str(path)))}$"):
        lookup_table(np.array([0, 1]), 0, lut=path)


def test_table_that_is_not_there(tmp_path):
    path = tmp_path / "none.tsv"
    message = f"`lut` is {path}, but no such file exists. Expected a table with the columns 'index' and 'name'."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lookup_table(np.array([0, 1]), 0, lut=path)
