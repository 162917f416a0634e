"""The estimator's contract: parameters, fitted attributes, caching, outputs; on small images, against plain NumPy."""

import inspect
import os
import pickle
import threading
import warnings
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpumask.images.volumes
from gpumask import NiftiLabelsMasker

from .helpers import AFFINE, blocks, image

IDS = [1, 2, 5, 9]
N = 40


def region_means(data, labels, ids=IDS):
    return np.stack([data[labels == i].mean(axis=0) for i in ids], axis=-1)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    data = rng.normal(100, 5, (6, 7, 8, N)) + np.linspace(0, 4, N)
    data.flags.writeable = False
    return data


@pytest.fixture
def run(data):
    return image(data)


@pytest.fixture
def atlas():
    return image(blocks())


@pytest.fixture
def masker(atlas):
    return NiftiLabelsMasker(atlas)


@pytest.fixture
def reads(monkeypatch):
    """Counter of the chunks that are read."""
    chunks, counts = gpumask.images.volumes.Volumes.chunks, []

    def counted(self, *args):
        for chunk in chunks(self, *args):
            counts.append(chunk.start)
            yield chunk

    monkeypatch.setattr(gpumask.images.volumes.Volumes, "chunks", counted)
    return counts


# The constructor and scikit-learn's protocol


def test_positional_order_is_that_of_nilearns_first_releases():
    parameters = inspect.signature(NiftiLabelsMasker).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    first = ["labels_img", "background_label", "mask_img", "smoothing_fwhm", "standardize", "detrend", "low_pass"]
    assert positional == [*first, "high_pass", "t_r", "resampling_target", "memory", "memory_level", "verbose"]


def test_keywords_and_defaults_are_nilearns():
    nilearn = pytest.importorskip("nilearn.maskers").NiftiLabelsMasker
    theirs = {p.name: p.default for p in inspect.signature(nilearn).parameters.values()}
    ours = {p.name: p.default for p in inspect.signature(NiftiLabelsMasker).parameters.values()}
    own = {"device": "auto", "output": "host", "min_coverage": None, "keep_all_regions": False, "nan_policy": "zero"}
    own |= {"label_map": None}
    assert ours == theirs | own


def test_get_set_clone(atlas):
    masker = NiftiLabelsMasker(atlas, smoothing_fwhm=4, device="cpu")
    assert masker.set_params(t_r=2.0, strategy="sum") is masker
    copy = clone(masker)
    assert copy.get_params() | {"labels_img": None} == masker.get_params() | {"labels_img": None}
    assert not hasattr(copy, "labels_img_")
    with pytest.raises(ValueError, match="Invalid parameter 'fwhm'"):
        masker.set_params(fwhm=3)


def test_tags_tell_nilearn_what_it_is(masker):
    tags = masker.__sklearn_tags__()
    assert tags.estimator_type == "masker"
    assert (tags.input_tags.niimg_like, tags.input_tags.surf_img) == (True, False)


@pytest.mark.parametrize("fitted", [None, "fit", "transform"])
def test_pickle(masker, run, fitted):
    if fitted:
        masker.fit(run)
    if fitted == "transform":
        masker.transform(run)
    copy = pickle.loads(pickle.dumps(masker))
    if not fitted:
        copy.fit(run)
    np.testing.assert_array_equal(copy.transform(run), masker.fit_transform(run))


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "get_feature_names_out"])
def test_not_fitted(masker, method):
    with pytest.raises(NotFittedError, match=r"This NiftiLabelsMasker instance is not fitted yet\. Call 'fit'"):
        getattr(masker, method)(None)
    for name in ("labels_", "region_ids_", "region_names_", "n_elements_"):
        with pytest.raises(NotFittedError):
            getattr(masker, name)


def test_defaults_are_quiet_and_are_the_means(masker, run, data, capsys):
    signals = masker.fit_transform(run)  # any warning is an error
    np.testing.assert_allclose(signals, region_means(data, blocks()), rtol=1e-13)
    assert signals.dtype == np.float64
    assert signals.flags.c_contiguous
    assert capsys.readouterr().out == ""


def test_pipeline(masker, run):
    scaled = make_pipeline(masker, StandardScaler()).fit_transform(run)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_set_output(masker, run, container):
    pytest.importorskip(container)
    plain = masker.fit_transform(run)
    table = masker.set_output(transform=container).fit_transform(run)
    assert list(table.columns) == ["1", "2", "5", "9"] == masker.get_feature_names_out()
    np.testing.assert_array_equal(table.to_numpy(), plain)
    inverse = masker.inverse_transform(table)
    np.testing.assert_array_equal(inverse.get_fdata(), masker.inverse_transform(plain).get_fdata())
    assert isinstance(masker.set_output(transform="default").transform(run), np.ndarray)


def test_pandas_output_of_a_3d_image(masker, data):
    with sklearn.config_context(transform_output="pandas"):
        table = masker.fit_transform(image(data[..., 0]))
    assert table.shape == (1, 4)


def test_set_params_after_fit_takes_effect(masker, run, data):
    masker.fit(run).transform(run)
    sums = masker.set_params(strategy="sum").transform(run)
    np.testing.assert_allclose(sums, region_means(data, blocks()) * 30)
    assert not np.allclose(masker.set_params(smoothing_fwhm=4).transform(run), sums)
    z = masker.set_params(strategy="mean", smoothing_fwhm=None, standardize="zscore_sample").transform(run)
    np.testing.assert_allclose(z.std(axis=0, ddof=1), 1)
    assert masker.set_params(dtype="f4").transform(run).dtype == np.float32


def test_resampling_target_changed_after_fit(atlas, data):
    mask = image(np.ones((3, 4, 8), "u1"), AFFINE @ np.diag([2, 2, 1, 1]))
    masker = NiftiLabelsMasker(atlas, mask_img=mask).fit()
    signals = masker.set_params(resampling_target="labels").transform(image(data))
    expected = NiftiLabelsMasker(atlas, mask_img=mask, resampling_target="labels").fit_transform(image(data))
    np.testing.assert_array_equal(signals, expected)


def test_refit_resets_what_transform_left(masker, run):
    masker.fit_transform(run)
    after_transform = ("region_atlas_", "coverage_", "plan_", "seconds_")
    assert all(hasattr(masker, name) for name in after_transform)
    masker.fit()
    assert not any(hasattr(masker, name) for name in after_transform)
    other = image(blocks([3, 4]))
    assert masker.set_params(labels_img=other).fit_transform(run).shape == (N, 2)
    assert masker.labels_ == [0, 3, 4]


def test_fit_twice_is_fit_once(masker, run):
    first = masker.fit(run).transform(run)
    np.testing.assert_array_equal(masker.fit(run).transform(run), first)
    np.testing.assert_array_equal(masker.transform(run), first)


# Labels, names, background


@pytest.mark.filterwarnings("ignore:.* labels in in-memory image aren't whole numbers")
@pytest.mark.parametrize(
    ("ids", "dtype"),
    [
        (IDS, "u1"),
        (IDS, ">i4"),
        (IDS, "i8"),
        ([-7, -1, 3, 250], "i2"),
        ([1, 130, 200, 60000], "u2"),
        ([1, 2, 3, 3_000_000_000], "u4"),
        ([1.0, 2.0, 7.0, 1e10], "f8"),
        ([0.25, 1.5, 1.75, 2.0], "f4"),
    ],
)
def test_labels_of_any_kind(run, data, ids, dtype):
    labels = blocks(ids, dtype)
    masker = NiftiLabelsMasker(image(labels))
    np.testing.assert_allclose(masker.fit_transform(run), region_means(data, labels, ids), rtol=1e-13)
    assert masker.labels_ == sorted([0, *ids], key=lambda i: (i != 0, i))  # the background's first
    assert masker.region_ids_ == {"background": 0} | dict(enumerate(ids))
    assert masker.n_elements_ == 4
    assert masker.get_feature_names_out() == [str(labels.dtype.type(i)) for i in ids]
    atlas = masker.region_atlas_
    np.testing.assert_array_equal(np.asarray(atlas.dataobj), labels)
    np.testing.assert_array_equal(masker.labels_img_.dataobj, labels)
    painted = masker.inverse_transform(np.array([1.0, 2, 3, 4])).get_fdata()
    for k, i in enumerate(ids):
        np.testing.assert_array_equal(painted[labels == i], k + 1)


def test_integer_atlas_is_int32(masker, run):
    masker.fit_transform(run)
    assert masker.region_atlas_.get_data_dtype() == np.int32
    np.testing.assert_array_equal(masker.region_atlas_.affine, AFFINE)


@pytest.mark.parametrize(
    ("background", "ids", "names"),
    [
        (0, IDS, ["1", "2", "5", "9"]),
        (5, [0, 1, 2, 9], ["0", "1", "2", "9"]),
        (999, [0, *IDS], ["0", "1", "2", "5", "9"]),
    ],
)
def test_background_label(atlas, run, data, background, ids, names):
    masker = NiftiLabelsMasker(atlas, background_label=background)
    signals = masker.fit_transform(run)
    np.testing.assert_allclose(signals, region_means(data, blocks(), ids), rtol=1e-13)
    assert ("background" in masker.region_ids_) == (background != 999)
    assert masker.get_feature_names_out() == names
    assert list(masker.region_names_.values()) == names
    volume = masker.inverse_transform(signals[0]).get_fdata()
    assert not volume[blocks() == background].any()
    np.testing.assert_array_equal(volume[blocks() == ids[-1]], signals[0, -1])


@pytest.mark.parametrize(
    ("names", "expected", "warning"),
    [
        (["a", "b", "c", "d"], ["a", "b", "c", "d"], None),
        (["background", "a", "b", "c", "d"], ["a", "b", "c", "d"], None),
        (["Background", "a", "b", "c", "d"], ["a", "b", "c", "d"], None),
        (["a", "b"], ["a", "b", "unknown", "unknown"], "Too many indices for the names. Padding"),
        ([*"abcdef"], ["a", "b", "c", "d"], "Too many names for the indices. Dropping"),
        ([], ["1", "2", "5", "9"], None),
    ],
)
def test_names(atlas, run, names, expected, warning):
    masker, given = NiftiLabelsMasker(atlas, labels=names), list(names)
    with pytest.warns(UserWarning, match=warning) if warning else warnings.catch_warnings():
        masker.fit(run)
    assert masker.get_feature_names_out() == expected
    assert masker.lut_["name"].to_list() == ["Background", *expected]
    assert names == given


@pytest.mark.parametrize("form", ["frame", "tsv", "csv", "label"])
def test_look_up_table(atlas, run, form, tmp_path):
    table = pd.DataFrame({"index": [9, 2, 1, 77], "name": ["nine", "two", "one", "none"], "color": list("abcd")})
    lut = table.rename(columns={"name": "label"}) if form == "label" else table.copy()
    given = lut.copy()
    if form in ("tsv", "csv"):
        lut.to_csv(tmp_path / f"lut.{form}", sep={"tsv": "\t", "csv": ","}[form], index=False)
        lut = tmp_path / f"lut.{form}"
    masker = NiftiLabelsMasker(atlas, lut=lut)
    with pytest.warns(UserWarning, match=r"1 label without a row \(called 'unknown'\): 5; 1 row .* label: 77 \(none\)"):
        masker.fit(run)
    assert masker.get_feature_names_out() == ["one", "two", "unknown", "nine"]
    assert masker.lut_["name"].to_list() == ["Background", "one", "two", "unknown", "nine"]
    masker.transform(run)
    assert masker.get_feature_names_out() == ["one", "two", "unknown", "nine"]
    if isinstance(lut, pd.DataFrame):
        pd.testing.assert_frame_equal(lut, given)


def test_non_finite_labels_are_0(run, data):
    labels = blocks(dtype="f4")
    labels[0, 1, 1], labels[3, 1, 1] = np.nan, np.inf
    with pytest.warns(UserWarning, match="Non-finite values detected"):
        masker = NiftiLabelsMasker(image(labels)).fit()
    np.testing.assert_allclose(masker.transform(run), region_means(data, labels), rtol=1e-13)


# Masks


def without_region_2(dtype="u1"):
    mask = np.ones((6, 7, 8), dtype)
    mask[blocks() == 2] = 0
    mask[0, 1] = 0
    return mask


LOST = (
    r"After applying mask to the labels image, the following labels were removed: \{2\}\. Out of 5 labels, the masked"
)


@pytest.mark.parametrize("kind", ["u1", "f4", "values", "4D", "list", "NaN", "path"])
def test_mask(atlas, run, data, kind, tmp_path):
    mask = without_region_2()
    given = {
        "u1": mask,
        "f4": mask.astype("f4"),
        "values": mask * -2.5,
        "4D": np.stack([mask, np.ones_like(mask), mask], axis=-1),
        "NaN": np.where(mask == 1, 1.0, np.nan),
    }.get(kind, mask)
    img = image(given)
    if kind == "list":
        img = [img, image(np.ones_like(mask))]
    if kind == "path":
        nib.save(img, tmp_path / "mask.nii.gz")
        img = tmp_path / "mask.nii.gz"
    masker = NiftiLabelsMasker(atlas, mask_img=img)
    with pytest.warns(UserWarning, match="Non-finite") if kind == "NaN" else warnings.catch_warnings():
        masker.fit()
    with pytest.warns(UserWarning, match=LOST):
        signals = masker.transform(run)
    labels = blocks() * mask
    np.testing.assert_allclose(signals, region_means(data, labels, [1, 5, 9]), rtol=1e-13)
    assert masker.region_names_ == {0: "1", 1: "5", 2: "9"}
    assert masker.labels_ == [0, 1, 5, 9]
    np.testing.assert_array_equal(np.asarray(masker.region_atlas_.dataobj), labels)
    np.testing.assert_array_equal(np.asarray(masker.mask_img_.dataobj), mask)


def test_mask_warns_at_each_transform(atlas, run):
    masker = NiftiLabelsMasker(atlas, mask_img=image(without_region_2())).fit()
    for _ in range(2):
        with pytest.warns(UserWarning, match=LOST):
            masker.transform(run)


def test_keep_masked_labels(atlas, run, data):
    for strategy in ("mean", "minimum", "median", "variance"):
        masker = NiftiLabelsMasker(
            atlas, mask_img=image(without_region_2()), keep_masked_labels=True, strategy=strategy
        )
        with pytest.warns(FutureWarning, match='"keep_masked_labels" parameter will be removed'):
            signals = masker.fit_transform(run)
        assert signals.shape == (N, 4)
        assert not signals[:, 1].any()
        assert np.isfinite(signals).all()
        assert masker.get_feature_names_out() == ["1", "2", "5", "9"]
        volume = masker.inverse_transform([1.0, 2, 3, 4]).get_fdata()  # nilearn paints region 5 with column 2
        assert set(np.unique(volume)) == {0, 1, 3, 4}
        np.testing.assert_array_equal(volume[blocks() == 5], 3)


def test_inverse_before_transform_knows_the_columns(atlas):
    """The table lists the regions of the atlas; a mask that removes one does not shift the others."""
    masker = NiftiLabelsMasker(atlas, mask_img=image(without_region_2())).fit()
    volume = masker.inverse_transform([1.0, 2, 3, 4]).get_fdata()
    for i, value in ((1, 1), (5, 3), (9, 4)):
        inside = (blocks() == i) & (without_region_2() == 1)
        np.testing.assert_array_equal(volume[inside], value)
    assert not volume[without_region_2() == 0].any()


# Grids


SHIFTED = AFFINE.copy()
SHIFTED[:3, 3] += [0, 2.5, 3]


def resampled_labels():
    """`blocks` one voxel on in y and z."""
    labels = np.zeros((6, 7, 8), "i2")
    labels[:, :-1, :-1] = blocks()[:, 1:, 1:]
    return labels


def test_labels_resampled_at_fit(atlas, data):
    run = image(data, SHIFTED)
    masker = NiftiLabelsMasker(atlas).fit(run)
    np.testing.assert_array_equal(np.asarray(masker.labels_img_.dataobj), resampled_labels())
    np.testing.assert_allclose(masker.transform(run), region_means(data, resampled_labels()), rtol=1e-13)


def test_labels_resampled_at_transform(atlas, data):
    run = image(data, SHIFTED)
    masker = NiftiLabelsMasker(atlas, mask_img=image(np.ones((6, 7, 8), "u1"))).fit()
    for _ in range(2):  # it is not kept
        with pytest.warns(UserWarning, match="make sure to pass") as record:
            signals = masker.transform(run)
        messages = sorted(str(w.message) for w in record)
        assert [m.split("...")[0] for m in messages] == [
            "Resampling labels at transform time",
            "Resampling mask at transform time",
        ]
        assert all("make sure to pass the images you want to transform to fit() first" in m for m in messages)
        np.testing.assert_allclose(signals, region_means(data, resampled_labels()), rtol=1e-13)
    np.testing.assert_array_equal(np.asarray(masker.labels_img_.dataobj), blocks())
    np.testing.assert_array_equal(np.asarray(masker.region_atlas_.dataobj), resampled_labels())


def test_background_that_resampling_brings_in(data):
    """An atlas without background, on a run that reaches beyond it."""
    labels = np.ones((6, 7, 8), "i2")
    labels[3:] = 2
    masker = NiftiLabelsMasker(image(labels)).fit(image(data, SHIFTED))
    assert masker.transform(image(data, SHIFTED)).shape == (N, 2)
    assert masker.region_ids_ == {"background": 0, 0: 1, 1: 2}
    assert masker.get_feature_names_out() == ["1", "2"]


def coarse(data):
    """A run whose voxels miss some regions: 4 times as large."""
    return image(data[::4, ::4, ::4], AFFINE @ np.diag([4, 4, 4, 1]))


def test_labels_that_vanish_at_transform(data):
    labels = blocks()
    labels[1, 1, 1] = 77
    masker = NiftiLabelsMasker(image(labels)).fit()
    assert masker.n_elements_ == 5
    with pytest.warns(UserWarning, match="labels") as record:
        signals = masker.transform(coarse(data))
    assert any("the following labels were removed" in str(w.message) for w in record)
    sampled = labels[::4, ::4, ::4]
    ids = np.unique(sampled)[1:].tolist()
    np.testing.assert_allclose(signals, region_means(data[::4, ::4, ::4], sampled, ids), rtol=1e-13)
    assert masker.labels_ == [0, *ids]
    volume = masker.inverse_transform(signals[0]).get_fdata()  # IndexError in nilearn
    for value, i in zip(signals[0], ids, strict=True):
        np.testing.assert_array_equal(volume[labels == i], value)
    assert set(np.unique(volume)) == {0, *signals[0]}


def test_inverse_with_a_mask_on_another_grid(atlas):
    mask = np.ones((3, 7, 8), "u1")
    mask[0] = 0  # x = 0 on the labels' grid
    masker = NiftiLabelsMasker(atlas, mask_img=image(mask, AFFINE @ np.diag([2, 1, 1, 1]))).fit()
    volume = masker.inverse_transform([1.0, 2, 3, 4]).get_fdata()
    assert not volume[0].any()
    assert volume[1, 1, 1] == 1
    assert volume[3, 1, 1] == 3


def test_data_resampled_to_labels(atlas, data):
    smooth = np.broadcast_to(np.arange(6.0)[:, None, None, None], (6, 7, 8, 2))
    finer = AFFINE @ np.diag([0.5, 1, 1, 1])
    labels = blocks().repeat(2, axis=0)
    masker = NiftiLabelsMasker(image(labels, finer), resampling_target="labels").fit()
    with pytest.warns(UserWarning, match="Resampling images at transform time"):
        signals = masker.transform(image(smooth))
    assert signals.shape == (2, 4)
    np.testing.assert_allclose(signals[:, 0], 0.75, atol=0.2)  # x = 0, 0.5, 1, 1.5
    masker.fit(image(smooth))  # at fit nothing is said, nor is the run's grid kept
    with pytest.warns(UserWarning, match="Resampling images at transform time"):
        masker.transform(image(smooth))


def test_resampling_target_none_takes_equal_grids(atlas, run, data):
    masker = NiftiLabelsMasker(atlas, mask_img=image(np.ones((6, 7, 8), "u1")), resampling_target=None)
    np.testing.assert_allclose(masker.fit_transform(run), region_means(data, blocks()), rtol=1e-13)
    almost = AFFINE + np.where(AFFINE == 10, 1e-6, 0)
    masker.transform(image(data, almost))


# Signals


@pytest.mark.parametrize(
    ("strategy", "function"),
    [
        ("mean", np.mean),
        ("sum", np.sum),
        ("median", np.median),
        ("minimum", np.min),
        ("maximum", np.max),
        ("variance", np.var),
        ("standard_deviation", np.std),
    ],
)
def test_strategies(atlas, run, data, strategy, function):
    signals = NiftiLabelsMasker(atlas, strategy=strategy).fit_transform(run)
    expected = np.stack([function(data[blocks() == i], axis=0) for i in IDS], axis=-1)
    np.testing.assert_allclose(signals, expected, rtol=1e-12)


def test_standardize_and_detrend(atlas, run, data):
    raw = region_means(data, blocks())
    get = lambda **parameters: NiftiLabelsMasker(atlas, **parameters).fit_transform(run)  # noqa: E731
    centred = raw - raw.mean(axis=0)
    np.testing.assert_allclose(get(standardize="zscore_sample"), centred / raw.std(axis=0, ddof=1), atol=1e-10)
    np.testing.assert_allclose(get(standardize="zscore"), centred / raw.std(axis=0), atol=1e-10)
    np.testing.assert_allclose(get(standardize="psc"), 100 * centred / raw.mean(axis=0), atol=1e-10)
    np.testing.assert_array_equal(get(standardize=True), get(standardize="zscore_sample"))
    np.testing.assert_array_equal(get(standardize=False), get(standardize=None))
    time = np.arange(N) - (N - 1) / 2
    line = time[:, None] * (time @ centred) / (time @ time)
    np.testing.assert_allclose(get(detrend=True), centred - line, atol=1e-10)


def test_filters(atlas, run):
    get = lambda **parameters: NiftiLabelsMasker(atlas, **parameters).fit_transform(run)  # noqa: E731
    plain = get()
    np.testing.assert_array_equal(get(low_pass=False, high_pass=False, t_r=None), plain)  # old code passes False
    np.testing.assert_array_equal(get(low_pass=False, high_pass=0.05, t_r=2.0), get(high_pass=0.05, t_r=2.0))
    assert not np.allclose(get(high_pass=0.05, t_r=2.0), get(high_pass=0.05, t_r=1.0))
    cosine = get(high_pass=0.01, t_r=2.0, clean_args={"filter": "cosine"})
    assert not np.allclose(cosine, get(high_pass=0.01, t_r=2.0))


def test_confounds_in_any_form(masker, run, tmp_path):
    confounds = np.random.default_rng(1).normal(size=(N, 3))
    frame = pd.DataFrame(confounds, columns=list("abc"))
    frame.to_csv(tmp_path / "confounds.tsv", sep="\t", index=False)
    masker.fit(run)
    expected = masker.transform(run, confounds=confounds)
    assert not np.allclose(expected, masker.transform(run))
    path = tmp_path / "confounds.tsv"
    for given in (frame, path, str(path), [confounds[:, :1], frame[["b", "c"]]], [path], confounds.astype("f8")):
        np.testing.assert_allclose(masker.transform(run, confounds=given), expected, atol=1e-9)
    np.testing.assert_allclose(masker.fit_transform(run, None, confounds), expected, atol=1e-9)
    raw = masker.set_params(standardize_confounds=False, detrend=True).transform(run, confounds=confounds)
    assert not np.allclose(raw, expected)


def test_high_variance_confounds(masker, run):
    confounds = np.random.default_rng(1).normal(size=(N, 2))
    masker.set_params(high_variance_confounds=True).fit(run)
    alone, together = masker.transform(run), masker.transform(run, confounds=confounds)
    assert not np.allclose(alone, together)
    for given in ([confounds], (confounds[:, 0], confounds[:, 1]), pd.DataFrame(confounds)):
        np.testing.assert_allclose(masker.transform(run, confounds=given), together, atol=1e-9)
    one = masker.transform(run, confounds=confounds[:, 0])
    np.testing.assert_allclose(masker.transform(run, confounds=confounds[:, 0].tolist()), one, atol=1e-9)


def test_sample_mask(masker, run, data):
    keep = np.array([0, 1, 5, 6, 30])
    expected = region_means(data, blocks())[keep]
    flags = np.isin(np.arange(N), keep)
    for given in (keep, flags, keep.tolist(), [keep], flags.tolist()):
        np.testing.assert_allclose(masker.fit_transform(run, sample_mask=given), expected, rtol=1e-13)
    table = masker.set_output(transform="pandas").transform(run, sample_mask=keep)
    assert table.index.tolist() == list(range(5))


@pytest.mark.parametrize(
    ("stored", "fwhm", "dtype", "expected"),
    [
        ("f8", None, None, "f8"),
        ("f4", None, None, "f4"),
        (">f4", None, None, "f8"),
        ("i2", None, None, "f8"),
        ("i2", 4, None, "f4"),
        ("i8", 4, None, "f8"),
        ("u1", None, None, "f8"),
        ("i2", None, "auto", "i4"),
        ("u1", None, "auto", "f4"),
        ("f8", None, "auto", "f4"),
        ("f8", None, "f4", "f4"),
        ("f4", None, np.float64, "f8"),
        ("f8", None, np.dtype("i2"), "i2"),
    ],
)
def test_dtype(atlas, data, stored, fwhm, dtype, expected):
    run = image(data[..., :3].astype(stored))
    signals = NiftiLabelsMasker(atlas, smoothing_fwhm=fwhm, dtype=dtype).fit_transform(run)
    assert signals.dtype == expected


def test_auto_dtype_of_a_scaled_image(atlas, data, tmp_path):
    run = image(data[..., :3].astype("i2"))
    nib.save(run, tmp_path / "run.nii")
    content = bytearray((tmp_path / "run.nii").read_bytes())
    content[112:116] = np.float32(0.5).tobytes()  # scl_slope
    (tmp_path / "run.nii").write_bytes(content)
    signals = NiftiLabelsMasker(atlas, dtype="auto").fit_transform(tmp_path / "run.nii")  # AttributeError in nilearn
    assert signals.dtype == np.float32
    np.testing.assert_allclose(signals, region_means(data[..., :3].astype("i2") * 0.5, blocks()), rtol=1e-6)


def test_images_without_a_time_axis(atlas, data):
    volume = image(data[..., 0])
    masker = NiftiLabelsMasker(atlas)
    expected = region_means(data, blocks())[0]
    np.testing.assert_allclose(masker.fit_transform(volume), expected, rtol=1e-13)  # (n_regions,)
    np.testing.assert_allclose(masker.fit_transform(image(data[..., :1])), expected[None], rtol=1e-13)
    np.testing.assert_allclose(masker.fit_transform([volume]), expected[None], rtol=1e-13)
    one = NiftiLabelsMasker(image((blocks() == 1).astype("u1")))
    assert one.fit_transform(volume).shape == ()
    assert one.fit_transform(image(data)).shape == (N, 1)


def test_lists_and_patterns_of_3d_images(atlas, data, tmp_path):
    images = [image(data[..., t]) for t in range(4)]
    masker = NiftiLabelsMasker(atlas)
    expected = region_means(data, blocks())[:4]
    np.testing.assert_allclose(masker.fit_transform(images), expected, rtol=1e-13)
    np.testing.assert_allclose(masker.fit_transform(tuple(images)), expected, rtol=1e-13)
    for t, img in enumerate(images):
        nib.save(img, tmp_path / f"volume-{t}.nii.gz")
    np.testing.assert_allclose(masker.fit_transform(str(tmp_path / "volume-*.nii.gz")), expected, rtol=1e-13)


def test_non_finite_voxels_are_0(atlas, data):
    spoilt = data[..., :3].copy()
    spoilt[0, 1, 1, 0], spoilt[3, 4, 2, 1] = np.nan, -np.inf
    with pytest.warns(UserWarning, match="Non-finite values detected"):
        signals = NiftiLabelsMasker(atlas).fit_transform(image(spoilt))
    np.testing.assert_allclose(signals, region_means(np.where(np.isfinite(spoilt), spoilt, 0), blocks()), rtol=1e-13)
    NiftiLabelsMasker(atlas, smoothing_fwhm=4).fit_transform(image(spoilt))  # as in nilearn, smoothing is silent


def test_smoothing_by_0(masker, run, data):
    masker.set_params(smoothing_fwhm=0).fit(run)
    for _ in range(2):
        with pytest.warns(UserWarning, match="The parameter 'fwhm' for smoothing is specified as 0"):
            signals = masker.transform(run)
    np.testing.assert_allclose(signals, region_means(data, blocks()), rtol=1e-13)


def test_smoothing_takes_the_runs_voxel_sizes(atlas, data, tmp_path):
    """Affines that match within their rounding may differ in the voxel size: nilearn smooths by the run's."""
    affine = AFFINE * (1 + 4e-6)
    ours = NiftiLabelsMasker(atlas, smoothing_fwhm=5).fit_transform(image(data, affine))
    expected = NiftiLabelsMasker(image(blocks(), affine), smoothing_fwhm=5).fit_transform(image(data, affine))
    np.testing.assert_array_equal(ours, expected)


def test_plan_seconds_device(masker, run):
    masker.set_params(device="cpu", smoothing_fwhm=5).fit_transform(run)
    assert masker.device_ == masker.plan_.device == "cpu"
    assert masker.plan_.counts.tolist() == [30] * 4
    assert "4 regions" in masker.plan_.explain()
    assert masker.seconds_.keys() == {"read", "reduce", "clean", "total"}
    assert all(seconds >= 0 for seconds in masker.seconds_.values())


# inverse_transform


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "i4", "u1"])
def test_inverse_keeps_dtype(masker, dtype):
    masker.fit()
    values = np.arange(12).reshape(3, 4).astype(dtype)
    volumes = masker.inverse_transform(values)
    assert volumes.shape == (6, 7, 8, 3)
    assert volumes.get_data_dtype() == np.asarray(volumes.dataobj).dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volumes.affine, AFFINE)
    for k, i in enumerate(IDS):
        np.testing.assert_array_equal(
            np.asarray(volumes.dataobj)[blocks() == i], np.broadcast_to(values[:, k], (30, 3))
        )
    assert not volumes.get_fdata()[blocks() == 0].any()
    assert masker.inverse_transform(values[0]).shape == (6, 7, 8)


@pytest.mark.parametrize(
    ("given", "dtype", "expected"),
    [("f8", "f4", "f4"), ("f8", "auto", "f4"), ("i2", "auto", "i4"), ("f4", "i2", "i2"), ("i4", np.float64, "f8")],
)
def test_inverse_casts_to_dtype(masker, given, dtype, expected):
    volume = masker.set_params(dtype=dtype).fit().inverse_transform(np.ones(4, given))
    assert volume.get_data_dtype() == expected


def test_inverse_of_64_bit_integers(masker):
    with pytest.warns(UserWarning, match="data has been converted to int32"):
        volume = masker.fit().inverse_transform(np.arange(4))
    assert volume.get_data_dtype() == np.int32
    assert masker.inverse_transform(np.arange(4) + 2**40).get_data_dtype() == np.int64


def test_inverse_of_booleans(masker):
    with pytest.warns(UserWarning, match="Casting boolean input to <class 'numpy.int32'>"):
        volume = masker.fit().inverse_transform(np.array([True, False, True, True]))
    assert volume.get_data_dtype() == np.int32
    assert volume.get_fdata().sum() == 90


def test_inverse_of_tables(masker):
    polars = pytest.importorskip("polars")
    values = np.arange(8.0).reshape(2, 4)
    expected = masker.fit().inverse_transform(values).get_fdata()
    for table in (pd.DataFrame(values), polars.from_numpy(values), values.tolist()):
        np.testing.assert_array_equal(masker.inverse_transform(table).get_fdata(), expected)
    for row in (pd.DataFrame(values[:1]), polars.from_numpy(values[:1]), pd.Series(values[0])):
        np.testing.assert_array_equal(masker.inverse_transform(row).get_fdata(), expected[..., 0])


def test_inverse_of_a_table_with_one_column():
    masker = NiftiLabelsMasker(image((blocks() == 1).astype("u1"))).fit()
    assert masker.inverse_transform(pd.DataFrame([[1.0], [2.0]])).shape == (6, 7, 8, 2)
    assert masker.inverse_transform(pd.DataFrame([[1.0]])).shape == (6, 7, 8)


def test_round_trip(masker, run):
    signals = masker.fit_transform(run)
    np.testing.assert_allclose(masker.fit_transform(masker.inverse_transform(signals)), signals, rtol=1e-13)


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        (np.ones(3), r"wrong shape.\nExpected (4,).\nGot (3,)."),
        (np.ones((2, 5)), r"wrong shape.\nExpected (2, 4).\nGot (2, 5)."),
        (np.array([1, np.nan, 1, 1]), "Input contains NaN."),
    ],
)
def test_inverse_of_wrong_signals(masker, signals, message):
    with pytest.raises(ValueError) as error:
        masker.fit().inverse_transform(signals)
    assert message.encode().decode("unicode_escape") in str(error.value)


# Memory


def cached(atlas, folder, **parameters):
    return NiftiLabelsMasker(atlas, memory=folder, device="cpu", **parameters)


@pytest.mark.parametrize("kind", ["path", "str", "Memory", "mmap"])
def test_memory_reads_nothing_twice(atlas, run, data, kind, tmp_path, reads):
    memory = {
        "path": tmp_path / "cache",
        "str": str(tmp_path / "cache"),
        "Memory": joblib.Memory(tmp_path / "cache", verbose=0),
        "mmap": joblib.Memory(tmp_path / "cache", verbose=0, mmap_mode="r"),
    }[kind]
    nib.save(run, tmp_path / "run.nii.gz")
    masker = cached(atlas, memory).fit()
    reads.clear()
    first = masker.transform(tmp_path / "run.nii.gz")
    assert reads
    reads.clear()
    np.testing.assert_array_equal(masker.transform(tmp_path / "run.nii.gz"), first)
    assert reads == []
    other = cached(image(blocks()), memory).fit()  # an equal atlas in another process or object
    reads.clear()
    np.testing.assert_array_equal(other.transform(tmp_path / "run.nii.gz"), first)
    assert reads == []
    masker.inverse_transform(first).to_filename(tmp_path / "volumes.nii")
    first[:] = 0  # the result is the caller's own
    np.testing.assert_allclose(masker.transform(tmp_path / "run.nii.gz"), region_means(data, blocks()), rtol=1e-13)


def test_memory_of_arrays(atlas, data, tmp_path, reads):
    masker = cached(atlas, tmp_path / "cache").fit()
    reads.clear()
    first = masker.transform(image(data))
    assert reads
    reads.clear()
    np.testing.assert_array_equal(masker.transform(image(data.copy())), first)
    assert reads == []
    assert not np.array_equal(masker.transform(image(data + 1)), first)
    assert reads


def test_memory_notices_changed_files(atlas, data, tmp_path, reads):
    path = tmp_path / "run.nii"
    nib.save(image(data), path)
    masker = cached(atlas, tmp_path / "cache").fit()
    first = masker.transform(path)
    stat = path.stat()
    nib.save(image(data * 2), path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    np.testing.assert_allclose(masker.transform(path), 2 * first, rtol=1e-13)
    nib.save(image(data[..., :5]), path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert masker.transform(path).shape == (5, 4)


@pytest.mark.parametrize(
    ("parameter", "value", "read_again"),
    [
        ("labels_img", image(blocks([1, 2, 5, 8])), True),
        ("labels_img", image(blocks()[::-1].copy()), True),
        ("background_label", 5, True),
        ("mask_img", image(without_region_2()), True),
        ("smoothing_fwhm", 4, True),
        ("strategy", "median", True),
        ("labels", ["a", "b", "c", "d"], False),
        ("standardize", "psc", False),
        ("detrend", True, False),
        ("dtype", "f4", False),
        ("verbose", 1, False),
        ("reports", False, False),
        ("cmap", "gray", False),
        ("memory_level", 2, False),
    ],
)
@pytest.mark.filterwarnings("ignore:After applying mask")
def test_what_the_memory_depends_on(atlas, run, tmp_path, reads, parameter, value, read_again):
    """Everything that changes the extracted signals, and nothing else: cleaning is computed each time."""
    nib.save(run, tmp_path / "run.nii")
    cached(atlas, tmp_path / "cache").fit().transform(tmp_path / "run.nii")
    masker = cached(atlas, tmp_path / "cache").set_params(**{parameter: value}).fit()
    reads.clear()
    signals = masker.transform(tmp_path / "run.nii")
    assert bool(reads) == read_again
    np.testing.assert_array_equal(signals, masker.set_params(memory=None).fit().transform(tmp_path / "run.nii"))


def test_memory_level_0(atlas, tmp_path):
    with pytest.warns(UserWarning, match="memory_level is currently set to 0 but a Memory object has been provided"):
        cached(atlas, tmp_path, memory_level=0).fit()


# Messages


def test_verbose(atlas, data, capsys, tmp_path):
    run = image(data, SHIFTED)
    nib.save(run, tmp_path / "run.nii")
    masker = NiftiLabelsMasker(
        atlas, mask_img=image(np.ones((6, 7, 8), "u1")), smoothing_fwhm=4, verbose=1, device="cpu"
    )
    signals = masker.fit_transform(tmp_path / "run.nii")
    masker.inverse_transform(signals)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("[NiftiLabelsMasker.") for line in lines)
    steps = [line.partition("] ")[2] for line in lines]
    path = f"'{tmp_path / 'run.nii'}'"
    expected = [f"Loading data from {path}", "Loading mask from ", "Loading regions from "]
    expected += ["Resampling regions", "Resampling mask", "Finished fit", f"Loading data from {path}"]
    expected += ["Smoothing images", "Extracting region signals on the CPU: requested", "Cleaning extracted signals"]
    expected += [f"{data.shape[3]} volumes: read ", "Computing image from signals"]
    assert len(steps) == len(expected)
    assert all(step.startswith(start) for step, start in zip(steps, expected, strict=True))


# Side effects


def test_nothing_of_the_users_is_written_to(data):
    spoilt = data[..., :12].copy()
    spoilt[0, 1, 1, 0] = np.nan
    labels, mask = blocks(dtype="f4"), np.where(without_region_2() == 1, 1.0, np.nan)
    labels[5, 6, 7] = np.nan
    rng = np.random.default_rng(0)
    confounds, sample_mask = rng.normal(size=(12, 2)), np.array([2, 3, 5, 6, 7, 8, 9, 10], np.int32)
    frame = pd.DataFrame(rng.normal(size=(12, 2)), columns=["a", "b"])
    names, clean_args = ["background", "a", "b", "c", "d"], {"filter": "butterworth"}
    arrays = [spoilt, labels, mask, confounds, sample_mask]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    masker = NiftiLabelsMasker(
        image(labels), mask_img=image(mask), labels=names, clean_args=clean_args, detrend=True, standardize="psc"
    )
    given, table = [confounds, frame], frame.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        signals = masker.fit_transform(image(spoilt), confounds=given, sample_mask=sample_mask)
        masker.set_params(smoothing_fwhm=4, resampling_target="labels").fit_transform(image(spoilt, SHIFTED))
        masker.set_params(smoothing_fwhm=None).fit_transform(image(spoilt, SHIFTED))
    signals.flags.writeable = False
    masker.inverse_transform(np.zeros(masker.n_elements_))
    for array, original in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, original)
    pd.testing.assert_frame_equal(frame, table)
    assert names == ["background", "a", "b", "c", "d"]
    assert clean_args == {"filter": "butterworth"}
    assert len(given) == 2


def test_fitted_images_are_copies(atlas, run):
    masker = NiftiLabelsMasker(atlas).fit(run)
    assert not np.shares_memory(np.asarray(masker.labels_img_.dataobj), np.asarray(atlas.dataobj))


@pytest.mark.filterwarnings("ignore:Resampling labels at transform")
def test_threads_share_a_fitted_masker(atlas, data):
    """Each with runs of its own grid, so that the plans are not each other's."""
    masker = NiftiLabelsMasker(atlas).fit()
    runs = {0: image(data), 1: image(data, SHIFTED)}
    expected = {k: masker.transform(run) for k, run in runs.items()}
    wrong = []

    def work(k):
        signals = [masker.transform(runs[k]) for _ in range(15)]
        wrong.extend(k for one in signals if not np.array_equal(one, expected[k]))

    threads = [threading.Thread(target=work, args=(k % 2,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_transform_relies_on_no_attribute_that_another_thread_may_set(atlas, run, data):
    class Shared(NiftiLabelsMasker):
        plan_ = property(lambda self: pytest.fail("of another thread"), lambda self, value: None)

    np.testing.assert_allclose(Shared(atlas).fit_transform(run), region_means(data, blocks()), rtol=1e-13)


def test_progress(masker, run):
    done = []
    masker.fit(run).transform_single_imgs(run, progress=done.append)
    assert done[-1] == N
    assert done == sorted(done)


def test_file_forms(masker, run, data, tmp_path, monkeypatch):
    expected = masker.fit_transform(run)
    for name in ("run.nii", "run.nii.gz"):
        nib.save(run, tmp_path / name)
        for form in (str, Path):
            np.testing.assert_allclose(masker.fit_transform(form(tmp_path / name)), expected, rtol=1e-13)
        np.testing.assert_allclose(masker.fit_transform(nib.load(tmp_path / name)), expected, rtol=1e-13)
    monkeypatch.setenv("HOME", str(tmp_path))
    np.testing.assert_allclose(masker.fit_transform("~/run.nii"), expected, rtol=1e-13)
    mgh = nib.MGHImage(data.astype("f4"), AFFINE)  # nilearn fails after all its work
    np.testing.assert_allclose(masker.fit_transform(mgh), expected, rtol=1e-6)
