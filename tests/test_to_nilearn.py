"""Maskers converted to nilearn's: the same parameters, the same signals."""

import re
import sys

import nilearn.maskers
import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from gpumask import MultiNiftiLabelsMasker, NiftiLabelsMasker, NiftiMasker, NiftiSpheresMasker

from .helpers import blocks, image

SEEDS = [(4.0, -3.0, 3.0), (8.0, 4.5, 12.0)]
CLEANING = {
    "smoothing_fwhm": 4,
    "detrend": True,
    "high_pass": 0.01,
    "t_r": 2.0,
    "mask_img": image(np.ones((6, 7, 8), "u1")),
}


@pytest.fixture
def run():
    return image(np.random.default_rng(0).normal(100, 5, (6, 7, 8, 60)))


@pytest.mark.parametrize("standardize", [False, True, None, "psc"])
@pytest.mark.parametrize(
    "masker",
    [
        NiftiLabelsMasker(image(blocks()), background_label=5, strategy="median", **CLEANING),
        NiftiSpheresMasker(SEEDS, radius=4, allow_overlap=True, **CLEANING),
    ],
    ids=lambda masker: type(masker).__name__,
)
def test_converted_maskers_give_the_same_signals(masker, standardize, run):
    masker.set_params(standardize=standardize, device="cpu").fit(run)
    theirs = masker.to_nilearn()
    assert type(theirs) is getattr(nilearn.maskers, type(masker).__name__)
    np.testing.assert_allclose(theirs.transform(run), masker.transform(run), rtol=0, atol=1e-9)
    assert theirs.standardize == {True: "zscore_sample", False: None}.get(standardize, standardize)
    ours = masker.get_params(deep=False)
    for name, value in theirs.get_params(deep=False).items():
        assert name == "standardize" or value is ours[name], name


def test_names_and_look_up_tables_are_converted(run):
    lut = pd.DataFrame({"index": ["0", "1", "2", "5", "9"], "label": ["Background", *"abcd"]})
    for given in ({"lut": lut}, {"labels": np.array(["a", "b", "c", "d"])}):
        ours = NiftiLabelsMasker(image(blocks()), **given).fit()
        assert ours.to_nilearn().fit(run).region_names_ == ours.region_names_ == dict(enumerate("abcd"))


def test_subclasses_and_several_runs(run):
    class Mine(NiftiSpheresMasker):
        pass

    assert type(Mine(SEEDS).fit().to_nilearn()) is nilearn.maskers.NiftiSpheresMasker
    several = MultiNiftiLabelsMasker(image(blocks())).fit()
    assert type(several.to_nilearn()) is nilearn.maskers.MultiNiftiLabelsMasker


@pytest.mark.parametrize(
    ("masker", "values"),
    [
        (
            NiftiSpheresMasker(SEEDS, strategy="sum", nan_policy="omit", labels=["a", "b"]),
            "NiftiSpheresMasker doesn't support strategy='sum', labels=['a', 'b'], nan_policy='omit'",
        ),
        (
            NiftiLabelsMasker(image(blocks()), min_coverage=0.5, standardize="zscore"),
            "NiftiLabelsMasker doesn't support min_coverage=0.5, standardize='zscore'",
        ),
    ],
)
def test_parameters_that_nilearn_lacks(masker, values):
    msg = f"nilearn's {values}. Use the default to convert this masker."
    with pytest.raises(ValueError, match=f"^{re.escape(msg)}$"):
        masker.fit().to_nilearn()


def test_unfitted_masker():
    with pytest.raises(NotFittedError):
        NiftiSpheresMasker(SEEDS).to_nilearn()


def test_without_nilearn(monkeypatch):
    masker = NiftiSpheresMasker(SEEDS).fit()
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ImportError, match=r"^to_nilearn needs nilearn: pip install 'gpumask\[nilearn\]'$"):
        masker.to_nilearn()


@pytest.mark.parametrize("mask", ["given", "computed"])
def test_a_first_level_model_of_voxels(mask, run):
    """nilearn's estimators accept its own maskers only."""
    from nilearn.glm.first_level import FirstLevelModel

    inside = np.zeros((6, 7, 8), "u1")
    inside[1:5, 1:6, 1:7] = 1
    data = np.asarray(run.dataobj) * inside[..., np.newaxis]
    run = image(data)
    masker = NiftiMasker(image(inside) if mask == "given" else None, device="cpu")
    masker.fit(None if mask == "given" else run)
    design = pd.DataFrame({"task": np.tile([0.0, 1.0], 30), "constant": 1.0})
    model = FirstLevelModel(mask_img=masker.to_nilearn(), signal_scaling=False, noise_model="ols")
    effects = model.fit(run, design_matrices=design).compute_contrast("task", output_type="effect_size")
    signals = masker.transform(run)
    expected = signals[1::2].mean(axis=0) - signals[::2].mean(axis=0)
    chosen = np.asarray(masker.mask_img_.dataobj) > 0
    np.testing.assert_allclose(np.asarray(effects.dataobj)[chosen], expected, rtol=0, atol=1e-6)
