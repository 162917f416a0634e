"""Where NiftiMapsMasker differs from nilearn 0.14.1: nilearn's answer and ours, side by side."""

import warnings

import nilearn.maskers
import numpy as np
import pytest
import scipy.linalg

from gpumask import NiftiMapsMasker

from .helpers import AFFINE, image

SHAPE = (6, 7, 8)


def theirs(*args, **parameters):
    return nilearn.maskers.NiftiMapsMasker(*args, **{"standardize": None} | parameters)


def ours(*args, **parameters):
    return NiftiMapsMasker(*args, device="cpu", **parameters)


def some_maps(n_maps=3, seed=0):
    maps = np.random.default_rng(seed).random((*SHAPE, n_maps))
    maps[:3, ..., 0] = 0
    return maps


def some_run():
    return np.random.default_rng(1).normal(100, 20, (*SHAPE, 5))


def test_equal_maps():
    """SciPy's lstsq takes the rounding of their difference for a singular value, in some of many draws."""
    run, furthest = some_run().reshape(-1, 5), 0.0
    for seed in range(1000):
        maps = np.random.default_rng(seed).random((*SHAPE, 6)).reshape(-1, 6)
        maps[:, 0] = maps[:, 1]
        found = scipy.linalg.lstsq(maps, run)[0]
        if np.abs(found[0] - found[1]).max() > furthest:
            furthest, worst = np.abs(found[0] - found[1]).max(), maps
    assert furthest > 1e6
    signals = ours(image(worst.reshape(*SHAPE, 6))).fit_transform(image(some_run()))
    np.testing.assert_allclose(signals, np.linalg.lstsq(worst, run)[0].T, rtol=1e-9)
    np.testing.assert_allclose(signals[:, 0], signals[:, 1], rtol=1e-9)


def test_maps_that_a_mask_removed():
    """nilearn can't invert or name its own signals."""
    maps, run = image(some_maps()), image(some_run())
    mask = image((some_maps()[..., 0] == 0).astype("u1"))
    for masker_of in (theirs, ours):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the removed map
            signals = (masker := masker_of(maps, mask)).fit_transform(run)
            assert signals.shape == (5, 2)
            if masker_of is theirs:
                with pytest.raises(ValueError, match="wrong shape"):
                    masker.inverse_transform(signals)
                with pytest.raises(ValueError, match="Length mismatch"):
                    masker.set_output(transform="pandas").transform(run)
            else:
                assert masker.inverse_transform(signals).shape == (*SHAPE, 5)
                table = masker.set_output(transform="pandas").transform(run)
                assert list(table) == ["niftimapsmasker1", "niftimapsmasker2"]


def test_inverse_transform_with_a_mask_on_another_grid():
    affine = AFFINE.copy()
    affine[0, 3] += 0.1
    mask = image(np.ones(SHAPE, "u1"), affine)
    with pytest.raises(ValueError, match="different affine"):
        theirs(image(some_maps()), mask).fit().inverse_transform(np.ones((2, 3)))
    assert ours(image(some_maps()), mask).fit().inverse_transform(np.ones((2, 3))).shape == (*SHAPE, 2)


def test_negative_weights_without_overlap():
    """nilearn sets them to 0 in the user's image."""
    maps = some_maps(2)
    maps[..., 0][maps[..., 1] != 0] = -0.5
    run = some_run()
    expected = np.linalg.lstsq(maps.reshape(-1, 2), run.reshape(-1, 5))[0].T
    signals = theirs(image(maps.copy()), allow_overlap=False).fit_transform(image(run))
    assert np.abs(signals - expected).max() > 10
    np.testing.assert_allclose(ours(image(maps), allow_overlap=False).fit_transform(image(run)), expected, rtol=1e-9)


def test_float32_maps_and_run():
    """nilearn computes in float32."""
    maps, run = some_maps(6).astype("f4"), some_run().astype("f4")
    expected = np.linalg.lstsq(maps.reshape(-1, 6).astype(float), run.reshape(-1, 5).astype(float))[0].T
    rounded = expected.astype("f4")
    signals = theirs(image(maps)).fit_transform(image(run))
    assert signals.dtype == np.float32
    assert np.abs(signals - rounded).max() > 2 * np.spacing(np.abs(rounded).max())
    signals = ours(image(maps)).fit_transform(image(run))
    assert signals.dtype == np.float32
    np.testing.assert_array_max_ulp(signals, rounded, 1)


def test_keep_masked_maps():
    """nilearn announces that it will be removed."""
    mask = image((some_maps()[..., 0] == 0).astype("u1"))
    with pytest.warns(FutureWarning, match="keep_masked_maps"):
        signals = theirs(image(some_maps()), mask, keep_masked_maps=True).fit_transform(image(some_run()))
    np.testing.assert_allclose(
        ours(image(some_maps()), mask, keep_masked_maps=True).fit_transform(image(some_run())),
        signals,
        rtol=0,
        atol=1e-9,
    )
