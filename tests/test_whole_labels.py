"""Labels that aren't whole numbers: rounded if only a scale has moved them, else kept; with one warning."""

import json
import re
import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io

from gpumask import NiftiLabelsMasker
from gpumask.bids.runs import Run
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.images.labels import load_atlas, load_mask
from gpumask.images.lookup import disagreement, plain_label

from .helpers import image

SHAPE = (6, 7, 8)
AFFINE = np.diag([3.0, 3, 3, 1])


def some_labels(ids):
    """Whole labels as float64, each of which occurs."""
    labels = np.random.default_rng(0).choice(ids, SHAPE).astype(float)
    labels.flat[: len(ids)] = ids
    return labels


def save_scaled(path, codes, slope, inter):
    """Write codes under a header that scales them."""
    header = nib.Nifti1Header()
    header.set_data_dtype(codes.dtype)
    header.set_data_shape(codes.shape)
    header.set_sform(AFFINE, 1)
    header.set_slope_inter(slope, inter)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + bytes(4) + codes.tobytes(order="F"))
    return path


def loaded(source, background=0, load=load_atlas):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = load(source, background) if load is load_atlas else load(source)
    return result, [str(w.message) for w in record]


def assert_rounded(source, expected, n_moved=None):
    atlas, said = loaded(source)
    np.testing.assert_array_equal(atlas.labels, expected)
    assert atlas.labels.dtype == np.float64
    assert not np.signbit(atlas.labels[atlas.labels == 0]).any()
    n = len(np.unique(expected))
    moved = r"\d+" if n_moved is None else n_moved
    low, high = (f"{value:.0f}" for value in (expected.min(), expected.max()))
    assert len(said) == 1
    assert re.match(rf"{moved} of {n} labels in .+ aren't whole numbers \(", said[0])
    assert f"they are rounded to whole numbers from {low} to {high}." in said[0]


def assert_kept(source, expected, n_fractions, **options):
    atlas, said = loaded(source, **options)
    np.testing.assert_array_equal(atlas.labels, expected)
    n = len(np.unique(expected[np.isfinite(expected)]))
    (line,) = [line for line in said if "Non-finite" not in line]
    assert re.match(rf"{n_fractions} of {n} labels in .+ aren't whole numbers \(", line)
    assert "Each value is a region of its own" in line


IDS = {
    "few": np.arange(7),
    "negative": np.arange(-1, 7),
    "no background": np.arange(1, 9),
    "FreeSurfer": [0, 2, 41, 1001, 1035, 2001, 2035],
    "Destrieux": [0, 11101, 11175, 12101, 12175],
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4"])
@pytest.mark.parametrize("ids", IDS)
def test_labels_saved_from_float_by_nibabel(tmp_path, ids, dtype, suffix):
    """nibabel scales floats to the range of an integer dtype."""
    labels = some_labels(IDS[ids])
    img = nib.Nifti1Image(labels, AFFINE)
    img.set_data_dtype(dtype)
    path = tmp_path / f"atlas{suffix}"
    nib.save(img, path)
    values, slope = np.asarray(nib.load(path).dataobj), nib.load(path).dataobj.slope
    if np.array_equal(values, labels):
        atlas, said = loaded(path)
        np.testing.assert_array_equal(atlas.labels, labels)
        assert not said
    elif slope < 1:
        assert_rounded(path, labels)
    else:  # 256 codes for numbers up to 12175: which number a code stands for is lost
        assert_kept(path, values, np.sum(np.unique(values) % 1 != 0))
    # An image from a file is read from that file, and in a NIfTI pair or NIfTI-2 it is the same.
    for source in (nib.load(path), nib.Nifti2Image.from_image(nib.load(path))):
        np.testing.assert_array_equal(loaded(source)[0].labels, loaded(path)[0].labels)


@pytest.mark.parametrize("inter", [0.0, 0.01, -1.0, 1 / 3])
@pytest.mark.parametrize("single", [False, True])
def test_labels_in_8_255_steps(tmp_path, single, inter):
    """As programs that compute in float32 or float64 code them; the background moves by the intercept."""
    labels = some_labels(np.arange(8))
    dtype = np.float32 if single else np.float64
    slope = dtype(8 / 255)
    codes = np.rint((labels.astype(dtype) - dtype(inter)) / slope).astype("u1" if inter != 1 / 3 else "i2")
    path = save_scaled(tmp_path / "atlas.nii", codes, slope, inter)
    moved = np.sum(np.unique(np.asarray(nib.load(path).dataobj)) % 1 != 0)
    assert moved >= 6
    assert_rounded(path, labels, moved)


def test_exactly_half_a_step_is_rounded(tmp_path):
    """0.1, 1.1 and 2.1 in steps of 0.2; in float32, 2.1 is a little farther from 2 than half a step."""
    codes = some_labels((0, 5, 10)).astype("u1")
    path = save_scaled(tmp_path / "atlas.nii", codes, 0.2, 0.1)
    values = np.asarray(nib.load(path).dataobj)
    assert np.abs(values - np.rint(values)).max() > np.float32(0.2) / 2
    assert_rounded(path, codes / 5, 3)


@pytest.mark.parametrize(
    ("codes", "slope", "inter", "why"),
    [
        ((0, 1, 2), 0.5, 0.25, "0.75 and 1.25 fall on 1"),
        ((0, 6, 11), 0.2, 0.06, "0.06 and 2.26: 2.26 is farther than 0.1 from 2"),
        ((0, 1, 2), 2.5, 0.0, "2.5 is as near to 2 as to 3"),
        ((0, 1, 2), 1.0, 0.3, "no scale, an intercept alone"),
        ((1, 2, 5), 7.98, 0.0, "256 codes for FreeSurfer's numbers"),
    ],
)
def test_other_scaled_labels_are_kept(tmp_path, codes, slope, inter, why):
    stored = some_labels(codes).astype("u1")
    path = save_scaled(tmp_path / "atlas.nii", stored, slope, inter)
    values = np.asarray(nib.load(path).dataobj)
    assert_kept(path, values, np.sum(np.unique(values) % 1 != 0))


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4"])
@pytest.mark.parametrize(
    ("ids", "n_fractions"),
    [((0, 0.37), 1), ((0, 1, 3.00004), 1), ((0, 0.03, 1.9), 2), ((0.5, 1, 2), 1), ((0, 0.5, 1), 1)],
)
def test_floats_without_a_scale_are_kept(tmp_path, ids, n_fractions, dtype):
    labels = some_labels(ids).astype(dtype)
    nib.save(image(labels, AFFINE), tmp_path / "atlas.nii")
    for source in (image(labels, AFFINE), tmp_path / "atlas.nii"):
        assert_kept(source, labels, n_fractions)
        assert loaded(source)[0].labels.dtype == np.dtype(dtype).newbyteorder("=")


def test_scaled_floats_are_kept(tmp_path):
    """Their codes have no step."""
    path = save_scaled(tmp_path / "atlas.nii", some_labels((0, 2.2, 4)).astype("f4"), 0.5, 0.0)
    assert_kept(path, np.asarray(nib.load(path).dataobj), 1)


def test_interpolated_labels_are_counted():
    labels = np.zeros(SHAPE)
    labels[2:4], labels[4:] = 1, 5
    middle = (labels[1:] + labels[:-1]) / 2
    middle[0, 0, 0] = np.nan
    atlas, said = loaded(image(middle, AFFINE))
    np.testing.assert_array_equal(atlas.labels, np.nan_to_num(middle))
    assert said[0].startswith("1 of 5 labels in in-memory image aren't whole numbers (0.5).")
    assert said[1].startswith("Non-finite values detected")


@pytest.mark.parametrize("dtype", ["i2", "f2", "f4", "f8", ">f4", "u1"])
def test_whole_labels_are_silent(tmp_path, dtype):
    labels = some_labels((0, 1, 2, 300) if dtype != "u1" else (0, 1, 2)).astype(dtype)
    labels[labels == 0] = -0.0 if labels.dtype.kind == "f" else 0
    sources = [nib.MGHImage(labels.astype("f4"), AFFINE) if dtype == "f2" else image(labels, AFFINE)]
    if dtype != "f2":
        nib.save(sources[0], tmp_path / "atlas.nii.gz")
        sources.append(tmp_path / "atlas.nii.gz")
    for source in sources:
        atlas, said = loaded(source)
        assert not said
        expected = labels.astype(labels.dtype.newbyteorder("=")) if dtype != "f2" else labels.astype("f4")
        assert atlas.labels.dtype == expected.dtype
        assert atlas.labels.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("codes", "slope", "inter"), [((0, 1, 5), 2.0, 0.0), ((0, 1, 5), 1.0, -3.0), ((0, 2), 0.5, 0)])
def test_scaled_whole_labels_are_silent(tmp_path, codes, slope, inter):
    stored = some_labels(codes).astype("i2")
    atlas, said = loaded(save_scaled(tmp_path / "atlas.nii", stored, slope, inter))
    assert not said
    np.testing.assert_array_equal(atlas.labels, slope * stored + inter)


def test_infinite_labels_are_no_fractions():
    labels = some_labels((0, 1, 2))
    labels[0, 0, :3] = np.nan, np.inf, -np.inf
    atlas, said = loaded(image(labels, AFFINE))
    assert [line[:10] for line in said] == ["Non-finite"]
    assert np.unique(atlas.labels).tolist() == [0, 1, 2]


def test_background_of_a_moved_value_keeps_the_labels(tmp_path):
    """Its user has read the file's values."""
    labels = some_labels(np.arange(8))
    codes = np.rint((labels - 0.01) / (8 / 255)).astype("u1")
    path = save_scaled(tmp_path / "atlas.nii", codes, 8 / 255, 0.01)
    values = np.asarray(nib.load(path).dataobj)
    background = float(values.min())
    assert background != 0
    assert_kept(path, values, 8, background=background)
    with pytest.warns(UserWarning, match="aren't whole"):
        assert len(NiftiLabelsMasker(path, background_label=background).fit().labels_) == 8


def test_only_background_after_rounding(tmp_path):
    path = save_scaled(tmp_path / "atlas.nii", np.full(SHAPE, 3, "u1"), 0.01, -0.028)
    with pytest.warns(UserWarning, match="rounded"), pytest.raises(ValueError, match="Image has no label"):
        load_atlas(path)


# Formats that nibabel scales


def save_minc(path, labels, n_levels):
    """Write MINC 1 as its tools do: every slice scaled to the whole range of its dtype."""
    file = scipy.io.netcdf_file(path, "w")
    for name, n in zip(("zspace", "yspace", "xspace"), labels.shape, strict=True):
        file.createDimension(name, n)
        axis = file.createVariable(name, "i", ())
        axis.spacing, axis.step, axis.start = b"regular__", 3.0, 0.0
    stored = file.createVariable("image", "h", ("zspace", "yspace", "xspace"))
    stored.signtype, stored.valid_range = b"signed__", np.array([0.0, n_levels])
    ends = {}
    for name, end in (("image-min", np.min), ("image-max", np.max)):
        variable = file.createVariable(name, "d", ("zspace",))
        variable[:] = ends[name] = end(labels, axis=(1, 2))
    low, high = (ends[name][:, None, None] for name in ("image-min", "image-max"))
    stored[:] = np.rint((labels - low) / np.where(high > low, high - low, 1) * n_levels).astype("i2")
    file.close()


def test_minc_labels_moved_by_rounding(tmp_path):
    """Their scale isn't public, so only rounding is mended."""
    labels = some_labels((0, 1, 2, 3, 7))
    save_minc(tmp_path / "atlas.mnc", labels, 2940)
    values = np.asarray(nib.load(tmp_path / "atlas.mnc").dataobj)
    assert 0 < np.abs(values - labels).max() < 1e-12
    assert_rounded(tmp_path / "atlas.mnc", labels)
    save_minc(tmp_path / "coarse.mnc", labels, 255)
    values = np.asarray(nib.load(tmp_path / "coarse.mnc").dataobj)
    assert_kept(tmp_path / "coarse.mnc", values, np.sum(np.unique(values) % 1 != 0))


def test_afni_labels_with_a_factor(tmp_path):
    labels = some_labels((0, 1, 2, 3, 7))
    factor = 7 / 250
    (tmp_path / "atlas+orig.HEAD").write_text(afni_header(labels.shape, factor))
    np.rint(labels / factor).astype("<i2").ravel(order="F").tofile(tmp_path / "atlas+orig.BRIK")
    values = np.asarray(nib.load(tmp_path / "atlas+orig.HEAD").dataobj)
    assert 0.001 < np.abs(values[..., 0] - labels).max() <= factor / 2
    assert_rounded(tmp_path / "atlas+orig.HEAD", labels)


def afni_header(shape, factor):
    text = ""
    for kind, name, values in (
        ("string", "TYPESTRING", "3DIM_HEAD_ANAT"),
        ("string", "IDCODE_STRING", "none"),
        ("string", "BYTEORDER_STRING", "LSB_FIRST"),
        ("integer", "SCENE_DATA", [0, 0, 0, -999, -999, -999, -999, -999]),
        ("integer", "DATASET_RANK", [3, 1, 0, 0, 0, 0, 0, 0]),
        ("integer", "DATASET_DIMENSIONS", [*shape, 0, 0]),
        ("integer", "ORIENT_SPECIFIC", [0, 3, 4]),
        ("float", "ORIGIN", [0.0, 0.0, 0.0]),
        ("float", "DELTA", [3.0, 3.0, 3.0]),
        ("float", "IJK_TO_DICOM_REAL", [3.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0]),
        ("integer", "BRICK_TYPES", [1]),
        ("float", "BRICK_FLOAT_FACS", [factor]),
    ):
        if kind == "string":
            text += f"\ntype = string-attribute\nname = {name}\ncount = {len(values) + 1}\n'{values}~\n"
        else:
            text += f"\ntype = {kind}-attribute\nname = {name}\ncount = {len(values)}\n {' '.join(map(str, values))}\n"
    return text


# Maskers and masks


def test_masker_names_and_signals(tmp_path):
    """Equal to those of the same atlas saved as integers, with one warning that points here."""
    labels = some_labels(np.arange(-1, 7))
    img = nib.Nifti1Image(labels, AFFINE)
    img.set_data_dtype(np.int16)
    nib.save(img, tmp_path / "scaled.nii.gz")
    nib.save(image(labels.astype("i2"), AFFINE), tmp_path / "whole.nii.gz")
    lut = pd.DataFrame({"index": [-1, *range(1, 7)], "name": list("zabcdef")})
    run = image(np.random.default_rng(0).normal(100, 5, (*SHAPE, 5)), AFFINE)
    scaled, whole = (NiftiLabelsMasker(tmp_path / f"{name}.nii.gz", lut=lut) for name in ("scaled", "whole"))
    with pytest.warns(UserWarning, match="8 labels .* aren't whole") as record:
        signals = scaled.fit_transform(run)
    assert [warning.filename for warning in record] == [__file__]
    np.testing.assert_array_equal(signals, whole.fit_transform(run))
    assert scaled.labels_ == whole.labels_ == [0, -1, *range(1, 7)]
    assert scaled.region_names_ == whole.region_names_
    np.testing.assert_allclose(signals[:, 0], np.asarray(run.dataobj)[labels == -1].mean(axis=0))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4"])
@pytest.mark.parametrize("inter", [0.003, 0.5])
def test_masks_whose_zero_moved(tmp_path, inter, dtype):
    mask = some_labels((0, 1))
    info = np.iinfo(dtype)
    slope = np.float32(1.0 / 250)
    inter = np.float32(inter + (0.001 if inter == 0.5 else -0.002))
    codes = np.rint((mask - float(inter)) / float(slope))
    if codes.min() < info.min:
        pytest.skip("the dtype has no negative codes")
    path = save_scaled(tmp_path / "mask.nii", codes.astype(dtype), slope, inter)
    values = np.asarray(nib.load(path).dataobj)
    assert (values != 0).all()
    (inside, _), said = loaded(path, load=load_mask)
    np.testing.assert_array_equal(inside, mask == 1)
    assert len(said) == 1
    assert said[0].startswith(
        f"The mask {path} has no 0: the scale of the file has moved it to {float(values.min())!r}."
    )


def test_masks_saved_from_float_by_nibabel(tmp_path):
    mask = some_labels((-1, 0, 6))
    img = nib.Nifti1Image(mask, AFFINE)
    img.set_data_dtype(np.int16)
    nib.save(img, tmp_path / "mask.nii.gz")
    assert (np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj) != 0).all()
    (inside, _), said = loaded(tmp_path / "mask.nii.gz", load=load_mask)
    np.testing.assert_array_equal(inside, mask != 0)
    assert len(said) == 1
    (inside, _), said = loaded([tmp_path / "mask.nii.gz"] * 2, load=load_mask)
    np.testing.assert_array_equal(inside, mask != 0)
    run = image(np.random.default_rng(0).normal(100, 5, (*SHAPE, 5)), AFFINE)
    ones = image(np.ones(SHAPE, "i2"), AFFINE)
    with pytest.warns(UserWarning, match="has no 0"):
        signals = NiftiLabelsMasker(ones, mask_img=tmp_path / "mask.nii.gz").fit_transform(run)
    np.testing.assert_allclose(signals[:, 0], np.asarray(run.dataobj)[mask != 0].mean(axis=0))


@pytest.mark.parametrize(
    ("codes", "slope", "inter"), [((0, 1, 9), 0.1, 0.0), ((8, 12, 16), 0.125, -1.0), ((0, 9), 0.1, 0.3)]
)
def test_other_scaled_masks_are_silent(tmp_path, codes, slope, inter):
    """With a 0, or without anything near it: a probability of one step is inside."""
    stored = some_labels(codes).astype("i2")
    path = save_scaled(tmp_path / "mask.nii", stored, slope, inter)
    (inside, _), said = loaded(path, load=load_mask)
    np.testing.assert_array_equal(inside, np.asarray(nib.load(path).dataobj) != 0)
    assert not said


# Names of regions without a table


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
def test_whole_labels_name_columns_of_a_cohort_without_a_fraction(tmp_path, dtype):
    """In tables, sidecars and on the page; the maskers' names are nilearn's."""
    labels = some_labels([0, 3, 96]).astype(dtype)
    nib.save(image(labels, AFFINE), tmp_path / "atlas-A_dseg.nii")
    data = np.random.default_rng(0).normal(100, 1, (*SHAPE, 20)).astype("f4")
    bold = image(data, AFFINE)
    bold.header.set_xyzt_units("mm", "sec")
    bold.header["pixdim"][4] = 2
    nib.save(bold, tmp_path / "sub-1_desc-preproc_bold.nii")
    out, atlas = tmp_path / "out", tmp_path / "atlas-A_dseg.nii"
    configuration = Configuration((AtlasFile(atlas),), out, {}, dummy_scans=0, device="cpu", min_time=0)
    (record,) = run_cohort(configuration, [Run(tmp_path / "sub-1_desc-preproc_bold.nii")])
    assert record.error == ""
    (table,) = out.rglob("*_timeseries.tsv")
    assert table.read_text().splitlines()[0] == "3\t96"
    regions = json.loads(table.with_suffix(".json").read_text())["Regions"]
    assert [(region["index"], region["name"]) for region in regions] == [(3, "3"), (96, "96")]
    assert list(pd.read_table(next(out.rglob("*_stat-coverage_bold.tsv")), dtype=str)["Node"]) == ["3", "96"]
    masker = NiftiLabelsMasker(atlas).fit()
    assert list(masker.region_names_.values()) == [str(np.dtype(dtype).type(label)) for label in (3, 96)]


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (np.float32(96), "96"),
        (np.float64(-3), "-3"),
        (2e9, "2000000000"),
        (-0.0, "0"),
        (np.float32(0.1), "0.1"),
        (1.5, "1.5"),
        (np.int16(4), "4"),
        (np.nan, "nan"),
        (np.inf, "inf"),
        ("a", "a"),
    ],
)
def test_labels_as_they_are_shown(label, shown):
    assert str(plain_label(label)) == shown


def test_messages_about_labels_have_no_fractions():
    found = disagreement(np.float32([0, 1, 2, 2.5]), 0, {"index": [0.0, 5.0, 1.0], "name": ["Background", "a", "b"]})
    assert found.message == (
        "`lut` doesn't fit the label image: 2 labels without a row (called 'unknown'): 2, 2.5; 1 row without a label: "
        "5 (a). Give the table of this atlas."
    )
