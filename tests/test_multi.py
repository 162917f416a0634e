"""MultiNiftiLabelsMasker against nilearn's: lists of runs in, lists of arrays out."""

import inspect
import pickle
import warnings

import nibabel as nib
import nilearn.maskers
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gpumask import MultiNiftiLabelsMasker, NiftiLabelsMasker, transform_together

AFFINE = np.diag([2.0, 2, 3, 1])
N = 30
CLASSES = (MultiNiftiLabelsMasker, nilearn.maskers.MultiNiftiLabelsMasker)
RNG = np.random.default_rng(0)
CONFOUNDS = RNG.normal(size=(3, N, 2))


def volumes(n=N, seed=0, shape=(6, 6, 6), affine=AFFINE):
    data = np.random.default_rng(seed).normal(100, 5, shape + ((n,) if n else ()))
    return nib.Nifti1Image(data, affine)


def labels():
    values = np.zeros((6, 6, 6), "i2")
    values[:3], values[3:5], values[5, :2] = 1, 4, 7
    return nib.Nifti1Image(values, AFFINE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for k in range(3):
        nib.save(volumes(seed=k), folder / f"run-{k}.nii.gz")
    return [folder / f"run-{k}.nii.gz" for k in range(3)]


def both(imgs, *, fit=True, parameters=None, **of_runs):
    """By gpumask and by nilearn."""
    results = []
    for masker_class in CLASSES:
        masker = masker_class(labels(), **{"standardize": None, **(parameters or {})})
        if fit:
            results.append(masker.fit_transform(imgs, **of_runs))
        else:
            results.append(masker.fit().transform(imgs, **of_runs))
    return results


def assert_equal_lists(ours, theirs):
    assert type(ours) is type(theirs)
    ours, theirs = (x if isinstance(x, list) else [x] for x in (ours, theirs))
    for one, other in zip(ours, theirs, strict=True):
        assert (type(one), one.dtype) == (type(other), other.dtype)
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize(
    "make",
    [
        lambda runs: runs,
        lambda runs: [str(run) for run in runs],
        lambda runs: [nib.load(run) for run in runs],
        lambda runs: [runs[0], nib.load(runs[1])],
        lambda runs: runs[:1],
        lambda runs: runs[0],
        lambda runs: str(runs[0]),
        lambda runs: nib.load(runs[0]),
        lambda runs: volumes(1),
        lambda runs: volumes(None),
        lambda runs: [volumes(None), volumes(None, 1)],
        lambda runs: [[volumes(None), volumes(None, 1)], [volumes(None, 2)]],
        lambda runs: [volumes(5), volumes(9)],
    ],
)
@pytest.mark.parametrize("fit", [True, False])
def test_forms_of_runs(runs, make, fit):
    assert_equal_lists(*both(make(runs), fit=fit))


OF_RUNS = {
    "confounds": {"confounds": list(CONFOUNDS)},
    "not for all": {"confounds": [None, CONFOUNDS[0], None]},
    "of any kind": {"confounds": [[CONFOUNDS[0], CONFOUNDS[1]], pd.DataFrame(CONFOUNDS[0]), [CONFOUNDS[0]]]},
    "sample_mask": {"sample_mask": [np.arange(10), None, np.arange(N) > 3]},
    "both": {"confounds": list(CONFOUNDS), "sample_mask": [np.delete(np.arange(N), k) for k in (3, 5, 8)]},
}


@pytest.mark.parametrize("of_runs", OF_RUNS)
@pytest.mark.parametrize(
    "parameters", [{}, {"detrend": True, "standardize": "psc"}, {"smoothing_fwhm": 5, "high_variance_confounds": True}]
)
def test_confounds_and_sample_masks(runs, of_runs, parameters):
    if parameters.get("high_variance_confounds") and of_runs == "of any kind":
        parameters = {"smoothing_fwhm": 5}  # with both, nilearn fails: see test_high_variance.py
    arguments = {name: list(value) for name, value in OF_RUNS[of_runs].items()}
    theirs = {name: list(value) for name, value in arguments.items()}  # nilearn writes to it
    ours = MultiNiftiLabelsMasker(labels(), **parameters).fit_transform(runs, **arguments)
    for name, value in arguments.items():
        assert all(a is b for a, b in zip(value, OF_RUNS[of_runs][name], strict=True))
    nilearns = CLASSES[1](labels(), **{"standardize": None, **parameters}).fit_transform(runs, **theirs)
    assert_equal_lists(ours, nilearns)


def test_first_of_a_list_is_for_a_single_run(runs):
    assert_equal_lists(*both(runs[0], confounds=list(CONFOUNDS), sample_mask=[np.arange(4, 20)]))


@pytest.mark.parametrize("parameters", [{}, {"detrend": True, "standardize": "zscore_sample"}])
def test_each_run_as_by_the_single_masker(runs, parameters):
    expected = [NiftiLabelsMasker(labels(), **parameters).fit_transform(run) for run in runs]
    for imgs in (runs, tuple(runs), iter(runs)):
        masker = MultiNiftiLabelsMasker(labels(), **parameters)
        assert_equal_lists(masker.fit_transform(imgs), expected)
    assert_equal_lists(masker.transform(run for run in runs), expected)
    assert_equal_lists(masker.transform_imgs(runs), expected)
    assert_equal_lists(masker.transform_single_imgs(runs[1]), expected[1])
    assert_equal_lists(transform_together([masker], runs[0]), expected[:1])
    assert masker.transform([]) == []


@pytest.mark.parametrize(
    ("of_runs", "error"),
    [
        ({"confounds": tuple(CONFOUNDS)}, TypeError),
        ({"confounds": CONFOUNDS[0]}, TypeError),
        ({"confounds": list(CONFOUNDS)[:2]}, ValueError),
        ({"confounds": []}, ValueError),
        ({"sample_mask": np.arange(10)}, TypeError),
        ({"sample_mask": [np.arange(10)]}, ValueError),
        ({"sample_mask": "all"}, TypeError),
    ],
)
def test_same_errors_of_what_comes_with_the_runs(runs, of_runs, error):
    messages = []
    for masker_class in CLASSES:
        with pytest.raises(error) as raised:
            masker_class(labels(), standardize=None).fit_transform(runs, **of_runs)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("n_jobs", ["2", None, 1.5, True])
def test_same_errors_of_n_jobs(n_jobs):
    messages = []
    for masker_class in CLASSES:
        try:
            masker_class(labels(), n_jobs=n_jobs).fit()
        except TypeError as error:
            messages.append(str(error))
    assert len(messages) == 2 or n_jobs is True  # nilearn takes it for 1
    assert messages[0] == messages[-1]


@pytest.mark.parametrize("imgs", [1, [1, 2], np.zeros((3, 3, 3, 3)), ["nope.nii"], "nope.nii", []])
@pytest.mark.parametrize("method", ["fit", "fit_transform"])
def test_same_classes_of_errors_of_what_is_no_run(imgs, method):
    raised = []
    for masker_class in CLASSES:
        with pytest.raises(Exception, match=r".") as error:
            getattr(masker_class(labels(), standardize=None), method)(imgs)
        raised.append((type(error.value).__name__, str(error.value)[:60]))
    if isinstance(imgs, list) and imgs != ["nope.nii"]:
        assert raised[0][0] == "TypeError"  # nilearn: "list index out of range"; "Got: list"
        assert raised[0][1].startswith(("Cannot concatenate empty", "input should be a NiftiLike"))
    else:
        assert raised[0] == raised[1]


def test_not_fitted(runs):
    for method in ("transform", "transform_imgs", "transform_single_imgs"):
        with pytest.raises(NotFittedError, match=r"This MultiNiftiLabelsMasker instance is not fitted yet\. Call"):
            getattr(MultiNiftiLabelsMasker(labels()), method)(runs)


def test_jobs(runs):
    masker = MultiNiftiLabelsMasker(labels(), detrend=True, n_jobs=2).fit(runs)
    for imgs in (runs, [nib.load(run) for run in runs]):
        signals = masker.transform(imgs, confounds=list(CONFOUNDS))
        expected = clone(masker).set_params(n_jobs=1).fit_transform(imgs, confounds=list(CONFOUNDS))
        for one, other in zip(signals, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="Confound signal has an incorrect length"):
        masker.transform(runs, confounds=[CONFOUNDS[0], CONFOUNDS[1][:7], None])


@pytest.mark.parametrize("memory", [False, True])
def test_warnings_point_at_the_caller(tmp_path, memory):
    """And not at joblib, which calls the masker for each run, and for what it caches."""
    run = nib.Nifti1Image(np.full((6, 6, 6, 3), np.nan), AFFINE)
    masker = MultiNiftiLabelsMasker(labels(), memory=tmp_path if memory else None)
    with pytest.warns(UserWarning, match="^Non-finite values detected") as caught:
        masker.fit_transform([run])
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_set_output_makes_a_table_of_each_run(runs, container):
    """nilearn's list holds arrays nevertheless; of a single run it makes a table."""
    pytest.importorskip(container)
    plain = MultiNiftiLabelsMasker(labels()).fit_transform(runs)
    ours, theirs = (c(labels(), standardize=None).set_output(transform=container) for c in CLASSES)
    for masker in (ours, theirs):
        assert list(masker.fit_transform(runs[0]).columns) == ["1", "4", "7"]
    assert all(isinstance(signals, np.ndarray) for signals in theirs.fit_transform(runs))
    for table, expected in zip(ours.fit_transform(runs), plain, strict=True):
        assert list(table.columns) == ["1", "4", "7"]
        np.testing.assert_array_equal(table.to_numpy(), expected)
    assert ours.transform([volumes(None)])[0].shape == (1, 3)


def test_runs_on_several_grids(runs):
    """nilearn has them be of one grid; here each is taken as it is, with the warning of the single masker."""
    other = volumes(7, 5, (7, 6, 6))
    with pytest.raises(ValueError, match="Field of view of image #1 is different from reference FOV"):
        nilearn.maskers.MultiNiftiLabelsMasker(labels(), standardize=None).fit_transform([volumes(5), other])
    masker = MultiNiftiLabelsMasker(labels())
    with pytest.warns(UserWarning, match="Resampling labels at transform time"):
        first, second = masker.fit_transform([volumes(5), other])
    assert (first.shape, second.shape) == ((5, 3), (7, 3))
    np.testing.assert_array_equal(second, NiftiLabelsMasker(labels()).fit_transform(other))


def test_lost_regions(runs):
    mask = np.ones((6, 6, 6), "u1")
    mask[3:5] = 0
    mask = nib.Nifti1Image(mask, AFFINE)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        assert_equal_lists(*both(runs, parameters={"mask_img": mask}))
    lost = [w for w in record if "following labels were removed: {4}" in str(w.message)]
    assert len(lost) >= 2 * 3
    signals = MultiNiftiLabelsMasker(labels(), mask_img=mask, keep_all_regions=True).fit_transform(runs)
    assert [np.isnan(one).all(axis=0).tolist() for one in signals] == [[False, True, False]] * 3


def test_parameters():
    ours, theirs = (
        {p.name: p.default for p in inspect.signature(c).parameters.values()} for c in (*CLASSES[:1], NiftiLabelsMasker)
    )
    assert ours == theirs | {"n_jobs": 1}
    nilearns = {p.name: p.default for p in inspect.signature(CLASSES[1]).parameters.values()}
    assert {**nilearns, "cmap": None}.items() <= ours.items()  # the colours of the report are our own
    masker = MultiNiftiLabelsMasker(labels(), strategy="sum", n_jobs=2, min_coverage=0.5)
    assert masker.get_params()["n_jobs"] == 2
    copy = clone(masker)
    assert {**copy.get_params(), "labels_img": 0} == {**masker.get_params(), "labels_img": 0}
    assert type(copy) is MultiNiftiLabelsMasker


@pytest.mark.parametrize("when", ["before", "fit", "transform"])
def test_pickle(runs, when):
    masker = MultiNiftiLabelsMasker(labels())
    if when != "before":
        masker.fit(runs)
    if when == "transform":
        masker.transform(runs)
    copy = pickle.loads(pickle.dumps(masker))
    signals = copy.fit_transform(runs) if when == "before" else copy.transform(runs)
    assert_equal_lists(signals, masker.fit_transform(runs))


def test_inverse_transform(runs):
    signals = [masker_class(labels(), standardize=None).fit(runs).transform(runs)[0] for masker_class in CLASSES]
    images = [c(labels()).fit(runs).inverse_transform(s) for c, s in zip(CLASSES, signals, strict=True)]
    np.testing.assert_allclose(images[0].get_fdata(), images[1].get_fdata())
