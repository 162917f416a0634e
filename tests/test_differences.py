"""Where gpumask differs from nilearn 0.14.1: nilearn's answer and ours, side by side."""

import contextlib
import os
import pickle
import re
import warnings
from pathlib import Path

import nibabel as nib
import nilearn.maskers
import nilearn.signal
import numpy as np
import pandas as pd
import pytest
import scipy.interpolate
import scipy.ndimage
import sklearn

import gpumask.signal
from gpumask import NiftiLabelsMasker

from . import helpers

AFFINE = np.diag([2.0, 2, 3, 1])
N = 60
T_R = {"high_pass": 0.01, "low_pass": 0.1, "t_r": 2.0}


def image(data, affine=AFFINE):
    return helpers.image(data, affine)


def label_data(dtype="i2", ids=(1, 2, 5)):
    values = np.zeros((6, 6, 6), dtype)
    for k, i in enumerate(ids):
        values[2 * k : 2 * k + 2, 1:5, 1:5] = i
    return values


def values(n=N, seed=0):
    return np.random.default_rng(seed).normal(100, 5, (6, 6, 6, n))


def means(data, ids=(1, 2, 5)):
    return np.stack([data[label_data(ids=ids) == i].mean(axis=0) for i in ids], axis=-1)


def ours(**parameters):
    return NiftiLabelsMasker(**{"labels_img": image(label_data()), **parameters})


def theirs(**parameters):
    return nilearn.maskers.NiftiLabelsMasker(**{"labels_img": image(label_data()), "standardize": None, **parameters})


def without(region):
    return image((label_data() != region).astype("u1"))


pytestmark = pytest.mark.filterwarnings(
    "ignore:After applying mask", "ignore:In version 0.15.0", "ignore:Resampling .* at transform time"
)


# Wrong results


def test_b1_scrubbed_volumes_leak_or_return():
    """Frames c and N-1-c are censored: nilearn interpolates neither, and filters their spikes into the others."""
    data = np.random.default_rng(0).normal(size=(N, 3))
    spikes = data.copy()
    spikes[[20, N - 1 - 20]] += 1000
    keep = np.delete(np.arange(N), [20, N - 1 - 20])
    clean = {"sample_mask": keep, "detrend": False, "standardize": None, **T_R}
    theirs_clean, theirs_spiked = (nilearn.signal.clean(x, **clean) for x in (data, spikes))
    assert np.abs(theirs_spiked - theirs_clean).max() > 100
    ours_clean, ours_spiked = (gpumask.signal.clean(x, **clean) for x in (data, spikes))
    np.testing.assert_array_equal(ours_spiked, ours_clean)


def test_b1_boolean_sample_masks():
    """nilearn turns them into indices, and then inverts these."""
    data = np.random.default_rng(0).normal(size=(N, 3))
    keep = np.ones(N, bool)
    keep[[20, N - 1 - 20]] = False
    spikes = data + 1000 * ~keep[:, None]
    options = {"detrend": False, "standardize": None, **T_R}
    theirs_clean, theirs_spiked = (nilearn.signal.clean(x, sample_mask=keep, **options) for x in (data, spikes))
    assert np.abs(theirs_spiked - theirs_clean).max() > 100
    ours = gpumask.signal.clean(spikes, sample_mask=keep, **options)
    times = np.arange(N)
    interpolated = scipy.interpolate.CubicSpline(times[keep], data[keep])(times)
    np.testing.assert_allclose(ours, nilearn.signal.clean(interpolated, **options)[keep], atol=1e-9)


def test_b1_through_the_masker():
    data = values()
    data[..., [20, N - 1 - 20]] += 1000
    keep = np.delete(np.arange(N), [20, N - 1 - 20])
    options = {"detrend": True, **T_R}
    assert np.abs(theirs(**options).fit_transform(image(data), sample_mask=keep)).max() > 100
    assert np.abs(ours(**options).fit_transform(image(data), sample_mask=keep)).max() < 5


def test_b4_inverse_transform_with_masked_labels():
    """With three columns, of which the second is masked, nilearn paints region 5 with the second."""
    options = {"mask_img": without(2), "keep_masked_labels": True}
    for masker, painted in ((theirs(**options), 2.0), (ours(**options), 3.0)):
        with np.errstate(invalid="ignore"):
            masker.fit_transform(image(values()))
        volume = masker.inverse_transform(np.array([1.0, 2, 3])).get_fdata()
        assert set(volume[label_data() == 5]) == {painted}
        assert set(volume[label_data() == 1]) == {1.0}


def test_b4_inverse_transform_after_fit_alone():
    for masker, painted in ((theirs(mask_img=without(2)), 2.0), (ours(mask_img=without(2)), 3.0)):
        volume = masker.fit().inverse_transform(np.array([1.0, 2, 3])).get_fdata()
        assert set(volume[label_data() == 5]) == {painted}


@pytest.mark.filterwarnings("ignore:After resampling the label image")
def test_b5_inverse_transform_after_labels_vanished():
    labels = label_data()
    labels[1, 1, 1] = 77  # lost by voxels of twice the size
    run = image(values()[::2, ::2, ::2], AFFINE @ np.diag([2, 2, 2, 1]))
    masker = theirs(labels_img=image(labels)).fit()
    with pytest.raises(IndexError):
        masker.inverse_transform(masker.transform(run))
    masker = ours(labels_img=image(labels)).fit()
    signals = masker.transform(run)
    volume = masker.inverse_transform(signals[0]).get_fdata()
    assert set(volume[labels == 5]) == {signals[0, -1]}
    assert set(volume[labels == 77]) == {0.0}


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_b7_unsigned_data_resampled(dtype):
    ramp = np.broadcast_to(np.arange(6)[:, None, None, None] * 10, (6, 6, 6, 2))
    half = AFFINE.copy()
    half[0, 3] = 0.74
    labels = image(label_data(), half)
    options = {"labels_img": labels, "resampling_target": "labels", "strategy": "minimum"}
    rounded = theirs(**options).fit().transform(image(ramp.astype(dtype)))
    np.testing.assert_array_equal(rounded, np.round(rounded))
    exact = theirs(**options).fit().transform(image(ramp.astype("f8")))
    assert np.abs(exact - np.round(exact)).max() > 0.2
    np.testing.assert_allclose(ours(**options).fit().transform(image(ramp.astype(dtype))), exact, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.* labels in in-memory image aren't whole numbers")
def test_b9_float_labels_in_region_atlas():
    labels = image(label_data("f4", (0.5, 1.5, 1.75)))
    for masker, found in ((theirs(labels_img=labels), {0, 1}), (ours(labels_img=labels), {0, 0.5, 1.5, 1.75})):
        masker.fit_transform(image(values()))
        assert set(np.unique(masker.region_atlas_.dataobj).tolist()) == found


def saved_as_int16(path, data):
    """From float64, so that nibabel scales them."""
    img = image(data.astype("f8"))
    img.set_data_dtype("i2")
    nib.save(img, path)
    return path


def test_labels_moved_by_a_scale(tmp_path):
    """1.00003 has no row in the look-up table."""
    whole = label_data()
    whole[0, 0] = -1
    path = saved_as_int16(tmp_path / "atlas.nii", whole)
    lut = pd.DataFrame({"index": [-1, 1, 2, 5], "name": list("zabc")})
    masker = theirs(labels_img=path, lut=lut)
    masker.fit_transform(image(values()))
    assert not set(masker.labels_) & {1, 2, 5}
    assert not set("abc") & set(masker.region_names_.values())
    masker = ours(labels_img=path, lut=lut)
    with pytest.warns(UserWarning, match="The scale of the file has moved them; they are rounded"):
        signals = masker.fit_transform(image(values()))
    assert masker.labels_ == [0, -1, 1, 2, 5]
    assert list(masker.region_names_.values()) == list("zabc")
    np.testing.assert_array_equal(np.asarray(masker.region_atlas_.dataobj), whole)
    np.testing.assert_allclose(signals[:, 1:], means(values()))


def test_masks_moved_by_a_scale(tmp_path):
    """Every voxel is inside nilearn's."""
    mask = (label_data() == 2).astype(float)
    mask[0, 0, 0], mask[2, 1, 1] = -1, 6
    path = saved_as_int16(tmp_path / "mask.nii", mask)
    options = {"mask_img": path}
    assert theirs(**options).fit_transform(image(values())).shape == (N, 3)
    with pytest.warns(UserWarning, match="has no 0: the scale of the file has moved it"):
        signals = ours(**options).fit_transform(image(values()))
    np.testing.assert_allclose(signals, means(values(), ids=(1, 2, 5))[:, 1:2])


def test_integers_that_cannot_hold_the_signals():
    run = image(np.full((*values().shape[:3], N), 200.0, "f4"))
    assert np.unique(theirs(dtype="int8").fit_transform(run)).tolist() == [200 - 256]
    with pytest.raises(ValueError, match=r"^dtype='int8' can't hold the signals of in-memory image, which reach from"):
        ours(dtype="int8").fit_transform(run)


def test_labels_that_are_not_whole():
    labels = image(label_data("f4", (1, 2.5, 5)))
    warned = theirs(labels_img=labels)  # a warning would be an error
    expected = warned.fit_transform(image(values()))
    masker = ours(labels_img=labels)
    with pytest.warns(UserWarning, match=r"1 of 4 labels in in-memory image aren't whole numbers \(2\.5\)"):
        signals = masker.fit_transform(image(values()))
    assert masker.labels_ == warned.labels_ == [0, 1, 2.5, 5]
    np.testing.assert_allclose(signals, expected)


def test_atlases_elsewhere():
    """nilearn has three answers, by the direction and the grid that is resampled; with an overlap, one."""
    run, affine = image(values()), AFFINE.copy()
    affine[0, 3] = -500
    there = image(label_data(), affine)
    assert not theirs(labels_img=there, resampling_target="labels").fit().transform(run).any()
    with pytest.raises(ValueError, match=r"^in-memory image doesn't overlap with the regions of in-memory image: "):
        ours(labels_img=there, resampling_target="labels").fit().transform(run)
    affine[0, 3] = -8
    there = image(label_data(), affine)
    expected = theirs(labels_img=there, resampling_target="labels").fit().transform(run)
    masker = ours(labels_img=there, resampling_target="labels").fit()
    with pytest.warns(
        UserWarning, match=r"^in-memory image covers only 33% of the atlas in-memory image\. Are they in"
    ):
        np.testing.assert_allclose(masker.transform(run), expected)


# Mutated inputs


def test_b2_sample_mask_is_written_to():
    keep = np.arange(5, N, dtype=np.int32)
    given = keep.copy()
    nilearn.signal.clean(np.random.default_rng(0).normal(size=(N, 2)), sample_mask=given, **T_R)
    np.testing.assert_array_equal(given, keep - 5)
    given = keep.copy()
    gpumask.signal.clean(np.random.default_rng(0).normal(size=(N, 2)), sample_mask=given, **T_R)
    np.testing.assert_array_equal(given, keep)


def test_b6_non_finite_voxels_are_overwritten():
    data = values()
    data[0, 1, 1, 3] = np.nan
    for masker, is_nan in ((theirs(), False), (ours(), True)):
        given = data.copy()
        with pytest.warns(UserWarning, match="Non-finite values detected"):
            masker.fit_transform(image(given))
        assert np.isnan(given[0, 1, 1, 3]) == is_nan
    data.flags.writeable = False
    masker = theirs().fit()
    with (
        pytest.warns(UserWarning, match="Non-finite"),
        pytest.raises(ValueError, match="assignment destination is read-only"),
    ):
        masker.transform(image(data))
    with pytest.warns(UserWarning, match="Non-finite values detected"):
        ours().fit_transform(image(data))


def test_b8_list_of_names_is_written_to():
    for masker_of, left in ((theirs, "Background"), (ours, "background")):
        names = ["background", "a", "b", "c"]
        masker_of(labels=names).fit()
        assert names[0] == left


# Errors where there is an answer


def test_b3_auto_dtype_of_scaled_files(tmp_path):
    img = nib.Nifti1Image(values(5), AFFINE)
    img.set_data_dtype("i2")
    nib.save(img, tmp_path / "run.nii")
    with pytest.raises(AttributeError, match="has no attribute 'kind'"):
        theirs(dtype="auto").fit_transform(tmp_path / "run.nii")
    signals = ours(dtype="auto").fit_transform(tmp_path / "run.nii")
    assert signals.dtype == np.float32
    np.testing.assert_allclose(signals, means(values(5)), atol=0.01)


def test_b10_mask_that_leaves_region_0():
    """The background is 5, and the mask lies in region 0: nilearn takes that for nothing."""
    inside = label_data() == 0
    options = {"background_label": 5, "mask_img": image(inside.astype("u1"))}
    with pytest.raises(ValueError, match="No label left after applying mask"):
        theirs(**options).fit_transform(image(values()))
    signals = ours(**options).fit_transform(image(values()))
    np.testing.assert_allclose(signals[:, 0], values()[inside].mean(axis=0))


def test_b11_formats_and_containers():
    data = values(5).astype("f4")
    with pytest.raises(TypeError, match="Cannot slice image objects"):
        theirs().fit_transform(nib.MGHImage(data, AFFINE))
    np.testing.assert_allclose(ours().fit_transform(nib.MGHImage(data, AFFINE)), means(data), rtol=1e-6)
    volumes = [image(data[..., t]) for t in range(5)]
    with pytest.raises(TypeError, match="Cannot concatenate empty objects"):
        theirs().fit().transform(volume for volume in volumes)
    np.testing.assert_allclose(ours().fit().transform(volume for volume in volumes), means(data), rtol=1e-6)
    with sklearn.config_context(transform_output="pandas"):
        with pytest.raises(ValueError, match="Length mismatch"):
            theirs().fit_transform(volumes[0])
        assert ours().fit_transform(volumes[0]).shape == (1, 3)


def test_b12_affines_between_two_tolerances():
    """nilearn neither resamples nor accepts a run whose origin differs by 5e-4 mm in 90."""
    affine, almost = AFFINE.copy(), AFFINE.copy()
    affine[0, 3], almost[0, 3] = -90, -90 + 5e-4
    labels = image(label_data(), affine)
    with pytest.raises(ValueError, match="Images have different affine matrices"):
        theirs(labels_img=labels).fit_transform(image(values(), almost))
    np.testing.assert_allclose(ours(labels_img=labels).fit_transform(image(values(), almost)), means(values()))


def test_b13_confounds_and_sample_masks_of_more_types():
    confound = np.random.default_rng(1).normal(size=N)
    expected = theirs().fit_transform(image(values()), confounds=confound)
    polars = pytest.importorskip("polars").DataFrame({"a": confound})
    for confounds in (pd.Series(confound), confound.tolist(), tuple(confound), polars):
        with pytest.raises(TypeError):
            theirs().fit_transform(image(values()), confounds=confounds)
        np.testing.assert_allclose(ours().fit_transform(image(values()), confounds=confounds), expected, atol=1e-9)
    keep = [1, 4, 5]
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        theirs().fit_transform(image(values()), sample_mask=keep)
    np.testing.assert_allclose(ours().fit_transform(image(values()), sample_mask=keep), means(values())[keep])


def test_b13_standardize_of_1():
    masker = theirs(standardize=1).fit()
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="'standardize' must be one of"):
        masker.transform(image(values()))
    with pytest.raises(ValueError, match="'standardize' must be one of"):
        ours(standardize=1).fit()


def test_b14_is_as_in_nilearn():
    """Percent signal change puts the means back for all signals or for none."""
    signals = means(values()) - [100, 0, 0]
    for clean in (nilearn.signal.clean, gpumask.signal.clean):
        alone = clean(signals[:, :1], detrend=False, standardize="psc")
        together = clean(signals, detrend=False, standardize="psc")
        np.testing.assert_allclose(together[:, :1], alone, rtol=1e-6)
        detrended = clean(signals - signals.mean(axis=0) + [0.01, 5, 5], detrend=True, standardize="psc")
        assert np.isfinite(detrended).all()
    np.testing.assert_allclose(*(c(signals, standardize="psc") for c in (nilearn.signal.clean, gpumask.signal.clean)))


@pytest.mark.parametrize("put", [np.array, pd.Series, pd.Index])
def test_names_in_other_containers(put):
    names = put(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"The truth value of .* is ambiguous"):
        theirs(labels=names).fit()
    masker = ours(labels=names)
    masker.fit_transform(image(values()))
    assert list(masker.region_names_.values()) == ["a", "b", "c"]


def test_names_by_position():
    assert nilearn.maskers.NiftiLabelsMasker(image(label_data()), ["a", "b", "c"]).labels == ["a", "b", "c"]
    with pytest.raises(TypeError, match="Pass names as labels=names"):
        NiftiLabelsMasker(image(label_data()), ["a", "b", "c"]).fit()


def test_look_up_tables_of_more_forms(tmp_path):
    masker = theirs(lut=pd.DataFrame({"index": ["1", "2", "5"], "name": ["a", "b", "c"]}))
    masker.fit_transform(image(values()))
    assert set(masker.region_names_.values()) == {"unknown"}
    with pytest.raises(AssertionError):
        theirs(lut=pd.DataFrame({"index": [1, 2, 5], "label": ["a", "b", "c"]})).fit()
    tables = [pd.DataFrame({"index": ["1", "2", "5"], "label": ["a", "b", "c"]})]
    texts = [
        "1 a 9 9 9 0\n2 b 9 9 9 0\n5 c 9 9 9 0\n",
        "\ufeffindex,name\n1,a\n2,b\n5,c\n",
        "index|name\n1|a\n2|b\n5|c\n",
    ]
    for k, text in enumerate(texts):
        path = tmp_path / f"{k}.tsv"
        path.write_text(text, "utf-8")
        with pytest.raises(KeyError, match="index"):
            theirs(lut=path).fit()
        tables.append(path)
    for lut in tables:
        masker = ours(lut=lut)
        masker.fit_transform(image(values()))
        assert list(masker.region_names_.values()) == ["a", "b", "c"]


# Less noise, and earlier


def test_no_future_warnings():
    with pytest.warns(FutureWarning, match="boolean values for 'standardize' will be deprecated"):
        nilearn.maskers.NiftiLabelsMasker(image(label_data())).fit_transform(image(values()))
    NiftiLabelsMasker(image(label_data())).fit_transform(image(values()))  # a warning would be an error


def test_non_finite_voxels_of_no_region():
    data = values()
    data[0, 0, 0, 0] = np.nan
    with pytest.warns(UserWarning, match="Non-finite values detected"):
        expected = theirs().fit_transform(image(data.copy()))
    np.testing.assert_allclose(ours().fit_transform(image(data)), expected)


def test_lists_of_images_of_several_dtypes():
    """nilearn casts all to the first one's dtype."""
    data = values(2) + 0.25
    volumes = [image(np.round(data[..., 0]).astype("i2")), image(data[..., 1])]
    expected = means(np.stack([np.round(data[..., 0]), data[..., 1]], axis=-1))
    cut = means(np.stack([np.round(data[..., 0]), data[..., 1].astype("i2")], axis=-1))
    np.testing.assert_allclose(theirs().fit_transform(volumes), cut)
    np.testing.assert_allclose(ours().fit_transform(volumes), expected)


def test_unknown_clean_args():
    theirs(clean_args={"fitler": "cosine"}).fit_transform(image(values()))
    with pytest.raises(TypeError, match="unexpected keyword argument 'fitler'"):
        ours(clean_args={"fitler": "cosine"}).fit_transform(image(values()))


@pytest.mark.parametrize(
    ("confounds", "parameters", "message"),
    [
        (np.ones((N - 1, 2)), {}, "Confound signal has an incorrect length"),
        (np.full((N, 2), np.nan), {}, "NaN"),
        (None, {"high_pass": 0.01}, r"Repetition time \(t_r\) must be specified"),
        (None, {"high_pass": 0.1, "low_pass": 0.05, "t_r": 2.0}, "[Hh]igh pass cutoff frequency"),
    ],
)
def test_errors_before_the_run_is_read(monkeypatch, confounds, parameters, message):
    done, mean = [], scipy.ndimage.mean
    monkeypatch.setattr(scipy.ndimage, "mean", lambda *args, **kwargs: done.append(1) or mean(*args, **kwargs))
    monkeypatch.setattr("gpumask.extraction.run_plans", lambda *_, **__: pytest.fail("it was read"))
    for masker in (theirs(**parameters), ours(**parameters)):
        with pytest.raises(ValueError, match=message):
            masker.fit_transform(image(values()), confounds=confounds)
    assert len(done) == N  # by nilearn


def test_few_volumes_for_a_filter():
    data = np.random.default_rng(0).normal(size=(N, 3))
    for clean, message in (
        (nilearn.signal.clean, "must be greater than padlen, which is 33"),
        (gpumask.signal.clean, "^20 volumes are left, but this filter needs 34 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            clean(data[:20], **T_R)
    keep = np.arange(20)
    spikes = data.copy()
    spikes[20:] += 1000
    one, other = (nilearn.signal.clean(x, sample_mask=keep, standardize=None, **T_R) for x in (data, spikes))
    assert one.shape == (20, 3)
    assert np.abs(one - other).max() > 10
    with pytest.raises(ValueError, match=r"^20 volumes are left, but this filter needs 34 or more\.$"):
        gpumask.signal.clean(data, sample_mask=keep, standardize=None, **T_R)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([1, 2], r"1 label without a row \(called 'unknown'\): 5"),
        ([1, 2, 5, 9], r"`lut` has 1 row without a label in the label image: 9 \(d\)"),
        ([0, 1, 4], "The index seems to start at 0, the labels at 1"),
        ([11, 12], "`lut` matches no label of the label image"),
    ],
)
def test_look_up_tables_that_disagree(index, message):
    lut = pd.DataFrame({"index": index, "name": list("abcd")[: len(index)]})
    silent, masker = theirs(lut=lut), ours(lut=lut)
    silent.fit_transform(image(values()))
    with pytest.warns(UserWarning, match=message):
        masker.fit_transform(image(values()))
    assert masker.region_names_ == silent.region_names_


def test_bytes_after_compressed_data(tmp_path):
    path = tmp_path / "run.nii.gz"
    nib.save(image(values(5).astype("f4")), path)
    path.write_bytes(path.read_bytes() + b"garbage")
    expected = theirs().fit_transform(path)
    with pytest.warns(UserWarning, match="7 trailing bytes after its compressed data"):
        signals = ours().fit_transform(path)
    np.testing.assert_allclose(signals, expected, rtol=1e-6)


def test_columns_of_nan_in_confounds_are_named():
    confounds = pd.DataFrame({"trans_x": np.zeros(N), "trans_x_derivative1": [np.nan, *np.ones(N - 1)]})
    with pytest.raises(ValueError, match=r"^array must not contain infs or NaNs$"):
        theirs().fit_transform(image(values()), confounds=confounds)
    with pytest.raises(ValueError, match=r"'trans_x_derivative1' \(volume 0\)"):
        ours().fit_transform(image(values()), confounds=confounds)


def test_constant_signals():
    """nilearn scales rounding noise to variance 1."""
    data = np.full((6, 6, 6, N), 0.1)
    options = {"detrend": True, "standardize": "zscore_sample"}
    assert not ours(**options).fit_transform(image(data)).any()
    noise = np.full((N, 1), 0.1) + np.linspace(0, 1, N)[:, None]  # a line: detrending leaves rounding noise
    scaled = nilearn.signal.clean(1e6 * noise)
    assert scaled.std() > 0.5
    assert not gpumask.signal.clean(1e6 * noise).any()


def test_standardize_zscore_is_still_there():
    with pytest.raises(ValueError, match="'standardize' must be one of"):
        theirs(standardize="zscore").fit()
    z = ours(standardize="zscore").fit_transform(image(values()))
    np.testing.assert_allclose(z.std(axis=0), 1)


@pytest.mark.parametrize("fitted", [False, True])
def test_no_report(fitted):
    """nilearn makes an empty one, and warns."""
    masker = theirs(reports=not fitted)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        report = (masker.fit() if fitted else masker).generate_report()
    assert any("report" in str(w.message).lower() for w in record)
    assert "</section>" in str(report)
    masker = ours(reports=not fitted)
    with pytest.raises(ValueError, match=r"needs reports=True|not fitted yet"):  # NotFittedError is a ValueError
        (masker.fit() if fitted else masker).generate_report()


def test_look_up_table_that_repeats_an_index():
    """nilearn's names shift against the columns."""
    lut = pd.DataFrame({"index": [1, 1, 2, 5], "name": ["one", "uno", "two", "five"]})
    masker = theirs(lut=lut)
    assert masker.fit_transform(image(values())).shape == (N, 3)
    assert list(masker.region_names_.values()) != ["one", "two", "five"]
    with pytest.raises(ValueError, match=r"has several rows for \[1\]"):
        ours(lut=lut).fit()


def test_cached_signals_of_a_changed_file(tmp_path):
    """nilearn's cache knows a file by its name."""
    run = tmp_path / "run.nii"
    for masker_of, factor in ((theirs, 1), (ours, 2)):
        nib.save(image(values()), run)
        masker = masker_of(memory=str(tmp_path / masker_of.__name__)).fit()
        first = masker.transform(str(run))
        nib.save(image(np.repeat(values() * 2, 2, axis=-1)[..., :N]), run)
        expected = np.repeat(means(values()) * 2, 2, axis=0)[:N] if factor == 2 else first
        np.testing.assert_allclose(masker.transform(str(run)), expected)


@pytest.mark.parametrize("call", ["default", "pandas then default"])
def test_3d_images_after_set_output_default(call):
    volume = image(values()[..., 0])
    for masker, shape in ((theirs(), (1, 3)), (ours(), (3,))):
        if call != "default":
            masker.set_output(transform="pandas")
        assert masker.set_output(transform="default").fit_transform(volume).shape == shape


# Rounding, ranges and types


def test_infinite_voxels_and_clipping():
    """A spline overshoots at the edges of a block; nilearn takes the range from the values with their infinity."""
    data = np.zeros((6, 6, 6, 2))
    data[2:4, 2:4, 2:4] = 100
    half = AFFINE.copy()
    half[:3, 3] = 0.74, 0.5, 0.9
    resampled = scipy.ndimage.affine_transform(data[..., 0], np.ones(3), np.linalg.inv(AFFINE)[:3, :3] @ half[:3, 3])
    resampled = np.repeat(resampled[..., np.newaxis], 2, axis=-1)
    clipped = means(np.clip(resampled, 0, 100))
    assert np.abs(clipped - means(resampled)).max() > 0.1
    options = {"labels_img": image(label_data(), half), "resampling_target": "labels"}
    for spoilt, of_theirs in ((0, clipped), (np.nan, clipped), (np.inf, means(np.maximum(resampled, 0)))):
        data[0, 0, 0] = spoilt
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the voxel
            of_both = [masker(**options).fit().transform(image(data)) for masker in (theirs, ours)]
        np.testing.assert_allclose(of_both[0], of_theirs, atol=1e-9)
        np.testing.assert_allclose(of_both[1], clipped, atol=1e-9)


@pytest.mark.parametrize("kind", ["constant", "trend"])
def test_confounds_that_are_constant_or_a_trend(kind):
    """Centring or detrending leaves rounding noise of them, which nilearn scales to variance 1 and removes."""
    rng, time = np.random.default_rng(0), np.arange(20.0)
    data, noise = rng.normal(100, 5, (20, 3)), rng.normal(size=20)
    confounds = np.stack([np.full(20, 1e6 / 3) if kind == "constant" else time / 3 + 0.7, noise], axis=1)
    options = {"detrend": kind == "trend", "standardize": None}
    expected = nilearn.signal.clean(data, confounds=noise[:, np.newaxis], **options)
    assert np.abs(nilearn.signal.clean(data, confounds=confounds, **options) - expected).max() > 0.05
    np.testing.assert_allclose(gpumask.signal.clean(data, confounds=confounds, **options), expected, atol=1e-9)


@pytest.mark.parametrize("copy", [False, True])
def test_dtype_after_a_filter_that_copies(copy):
    run = image(values().astype("f4"))
    options = {**T_R, "clean_args": {"butterworth__copy": copy}}
    assert theirs(**options).fit_transform(run).dtype == (np.float64 if copy else np.float32)
    assert ours(**options).fit_transform(run).dtype == np.float32


@pytest.mark.filterwarnings("ignore:Data array used to create", "ignore:Casting data from")
@pytest.mark.parametrize("dtype", ["i8", "u8"])
@pytest.mark.parametrize("form", ["3D", "list"])
@pytest.mark.parametrize("what", ["smoothed", "resampled"])
def test_volumes_of_64_bit_integers(dtype, form, what):
    data = values(2).astype(dtype)
    volumes, floats = (
        [nib.Nifti1Image(data[..., k].astype(d), AFFINE, dtype=d) for k in range(2)] for d in (dtype, "f8")
    )
    half = AFFINE.copy()
    half[0, 3] = 0.74
    labels = image(label_data(), half if what == "resampled" else AFFINE)
    options = {"smoothing_fwhm": 4} if what == "smoothed" else {"resampling_target": "labels"}
    run, of_floats = (volumes, floats) if form == "list" else (volumes[0], floats[0])
    of_both = [masker(labels_img=labels, **options).fit().transform(run) for masker in (theirs, ours)]
    assert [signals.dtype for signals in of_both] == [np.float32, np.float64]
    exact = theirs(labels_img=labels, **options).fit().transform(of_floats)
    np.testing.assert_allclose(of_both[1], exact, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_one_volume_with_cosines():
    options = {"high_pass": 0.01, "t_r": 2.0, "clean_args": {"filter": "cosine"}}
    with pytest.raises(ValueError, match="cannot convert float NaN to integer"):
        theirs(**options).fit_transform(image(values(1)))
    with pytest.warns(UserWarning, match="^Cosine filter was not created"):
        signals = ours(**options).fit_transform(image(values(1)))
    np.testing.assert_allclose(signals, means(values(1)))


@pytest.mark.filterwarnings("ignore:Non-finite values detected")
@pytest.mark.parametrize("background", [0, 9])
def test_labels_that_are_nan(background):
    """As in nilearn: NaN is 0, which is a region if the background isn't 0."""
    labels = label_data("f4")
    data, there = values(), labels == 0
    labels[0, 0, 0] = np.nan
    expected = means(data)
    if background:
        expected = np.concatenate([data[there].mean(axis=0)[:, np.newaxis], expected], axis=1)
    for masker in (theirs, ours):
        signals = masker(labels_img=image(labels), background_label=background).fit_transform(image(data))
        np.testing.assert_allclose(signals, expected)


def test_memory_unpickles_what_is_in_its_folder(tmp_path):
    """As in nilearn: whoever writes to the folder runs code here."""
    nib.save(image(values()), tmp_path / "run.nii")

    class Planted:
        def __init__(self, folder):
            self.folder = str(folder)

        def __reduce__(self):
            return os.mkdir, (self.folder,)

    for masker in (theirs, ours):
        memory, made = tmp_path / masker.__name__, tmp_path / f"made by {masker.__name__}"
        masker(memory=str(memory)).fit().transform(str(tmp_path / "run.nii"))
        for file in memory.rglob("output.pkl"):
            file.write_bytes(pickle.dumps(Planted(made)))
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            masker(memory=str(memory)).fit().transform(str(tmp_path / "run.nii"))
        assert made.is_dir()


# Spheres


SPHERE = (4.0, 4.0, 6.0)


def both_spheres(run, seeds=(SPHERE,), **parameters):
    """Maskers of spheres, ours and nilearn's, and their signals."""
    maskers = (
        gpumask.NiftiSpheresMasker(list(seeds), **parameters),
        nilearn.maskers.NiftiSpheresMasker(list(seeds), **{"standardize": None, **parameters}),
    )
    return [(masker, masker.fit_transform(run)) for masker in maskers]


def test_spheres_of_integer_runs():
    """The seed's voxel (2, 2, 2) and its four neighbours in x and y, at 2 mm."""
    data = values(3).astype("i2")
    sphere = data[[2, 1, 3, 2, 2], [2, 2, 2, 1, 3], 2]
    (_, ours_signals), (_, theirs_signals) = both_spheres(image(data), radius=2)
    assert ours_signals.dtype == theirs_signals.dtype == np.float32
    np.testing.assert_allclose(ours_signals[:, 0], sphere.mean(axis=0), rtol=1e-7)
    np.testing.assert_array_equal(theirs_signals[:, 0], sphere.mean(axis=0).astype(int))
    mask = image(np.ones((6, 6, 6), "u1"))
    (_, ours_masked), (_, theirs_masked) = both_spheres(image(data), radius=2, mask_img=mask)
    np.testing.assert_array_equal(ours_masked, ours_signals)
    np.testing.assert_array_equal(theirs_masked, theirs_signals)


def test_inverse_transform_of_a_sphere_with_the_nearest_voxel_alone():
    """nilearn compares lists with tuples, and doesn't find the nearest voxel."""
    seed, mask = (5.2, 4.0, 6.0), image(np.ones((6, 6, 6), "u1"))
    (own, signals), (other, _) = both_spheres(image(values(3)), [seed], mask_img=mask)
    painted = own.inverse_transform(signals).get_fdata()
    np.testing.assert_array_equal(painted[3, 2, 2], signals[:, 0])
    assert np.count_nonzero(painted) == 3
    with pytest.raises(ValueError, match=r"^These spheres are empty: \[0\]$"):
        other.inverse_transform(signals)


def test_spheres_in_a_mask_of_few_voxels():
    data, mask = values(3), np.zeros((6, 6, 6), "u1")
    mask[2, 2, :3] = 1
    given = {"seeds": [SPHERE], "mask_img": image(mask)}
    np.testing.assert_array_equal(gpumask.NiftiSpheresMasker(**given).fit_transform(image(data))[:, 0], data[2, 2, 2])
    with pytest.raises(TypeError, match="must be real number, not NoneType"):
        nilearn.maskers.NiftiSpheresMasker(**given, standardize=None).fit_transform(image(data))


@pytest.mark.parametrize("mask", [np.ones((6, 6, 6, 2), "u1"), np.arange(216, dtype="u1").reshape(6, 6, 6)])
def test_masks_of_spheres(mask):
    given = {"seeds": [SPHERE], "mask_img": image(mask)}
    data = values(3)
    np.testing.assert_array_equal(gpumask.NiftiSpheresMasker(**given).fit_transform(image(data))[:, 0], data[2, 2, 2])
    masker = nilearn.maskers.NiftiSpheresMasker(**given, standardize=None).fit()
    with pytest.raises((TypeError, ValueError)):
        masker.transform(image(data))


def test_infinite_voxels_in_spheres():
    data = values(3)
    data[2, 2, 2, 1] = np.inf
    with pytest.warns(UserWarning, match="^Non-finite values detected"):
        signals = gpumask.NiftiSpheresMasker([SPHERE]).fit_transform(image(data))
    np.testing.assert_array_equal(signals[:, 0], np.where(np.isinf(data[2, 2, 2]), 0, data[2, 2, 2]))
    theirs_signals = nilearn.maskers.NiftiSpheresMasker([SPHERE], standardize=None).fit_transform(image(data))
    assert theirs_signals[1, 0] == np.inf


def test_spheres_in_big_endian_runs():
    (_, ours_signals), (_, theirs_signals) = both_spheres(image(values(3).astype(">f4")))
    assert (ours_signals.dtype, theirs_signals.dtype) == (np.float64, ">f4")


def test_seeds_that_are_not_finite():
    seeds = [(1.0, 2.0, np.nan)]
    with pytest.raises(ValueError, match=r"^Seed #0 is \[1\.0, 2\.0, nan\], expected finite coordinates in mm\.$"):
        gpumask.NiftiSpheresMasker(seeds).fit()
    masker = nilearn.maskers.NiftiSpheresMasker(seeds, standardize=None).fit()
    with pytest.raises(Exception, match=r"NaN|invalid value"):
        masker.transform(image(values(3)))


def test_table_names_every_test():
    table = Path(__file__).with_name("DIFFERENCES.md").read_text("utf-8")
    rows = re.findall(r"^\|.*\|$", table, re.M)
    named = {name for row in rows for name in re.findall("`(.+?)`", row.split("|")[-2])}
    files = {name for name in named if name.endswith(".py")}
    assert all(Path(__file__).with_name(name).is_file() for name in files)
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert named - files == here - {"table_names_every_test"}
