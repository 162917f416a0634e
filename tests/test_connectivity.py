"""Connectivity against nilearn, scikit-learn and formulas; regions without signal, and few volumes."""

import numpy as np
import pytest
from nilearn.connectome import ConnectivityMeasure, vec_to_sym_matrix
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from threadpoolctl import threadpool_limits

from gpumask import connectivity as of
from gpumask.choices import RELMATS
from gpumask.connectivity import connectivity, shrunk_covariance, tangent_space


def signals_of(n_volumes=80, n_regions=12, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n_volumes, 3))
    mixed = common @ rng.normal(size=(3, n_regions)) + rng.normal(size=(n_volumes, n_regions))
    return np.float32(mixed * rng.uniform(0.1, 20, n_regions) + rng.uniform(-500, 900, n_regions))


def scores(signals):
    signals = np.float64(signals)
    return (signals - signals.mean(0)) / signals.std(0)


def nilearn(kind, signals, estimator=None):
    measure = ConnectivityMeasure(estimator or LedoitWolf(), kind=kind, standardize=False)
    return measure.fit_transform([np.float64(signals)])[0]


@pytest.mark.parametrize("n_volumes", [80, 9])
def test_kinds_against_nilearn(n_volumes):
    signals = signals_of(n_volumes)
    empirical = EmpiricalCovariance()
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(connectivity(signals).matrix, nilearn("correlation", signals, empirical), **close)
    partial = nilearn("partial correlation", scores(signals))
    np.testing.assert_allclose(connectivity(signals, "partial").matrix, partial, **close)
    covariance = nilearn("covariance", signals, empirical) * n_volumes / (n_volumes - 1)
    np.testing.assert_allclose(connectivity(signals, "covariance").matrix, covariance, rtol=1e-5, atol=1e-4)


def test_partial_correlation_by_its_definition():
    """Without shrinkage to speak of, it is the correlation of what regressing out the other regions leaves."""
    signals = signals_of(20_000, 4)
    found, facts = connectivity(signals, "partial")
    others = np.delete(scores(signals), [0, 2], axis=1)
    left = [x - others @ np.linalg.lstsq(others, x)[0] for x in scores(signals)[:, [0, 2]].T]
    assert found[0, 2] == pytest.approx(np.corrcoef(left)[0, 1], abs=2e-3)
    assert facts["Shrinkage"] == pytest.approx(LedoitWolf().fit(scores(signals)).shrinkage_, rel=1e-9)
    assert 0 < facts["Shrinkage"] < 1e-3


def test_partial_correlation_depends_on_no_unit():
    signals = signals_of()
    scaled = signals * np.float32(2.0) ** np.arange(-6, 6)
    np.testing.assert_array_equal(connectivity(signals, "partial").matrix, connectivity(scaled, "partial").matrix)


def test_fisher_z_is_the_formula_without_infinity():
    signals = signals_of()
    signals = np.column_stack([signals, signals[:, 0] * 2, -signals[:, 1]])
    z = connectivity(signals, "fisherz").matrix
    r = np.corrcoef(np.float64(signals), rowvar=False)
    infinite = np.eye(14, dtype=bool)
    infinite[[0, 12, 1, 13], [12, 0, 13, 1]] = True
    r = r[~infinite]
    np.testing.assert_allclose(z[~infinite], np.log((1 + r) / (1 - r)) / 2, rtol=2e-6, atol=1e-7)
    assert np.isnan(z[infinite]).all()


@pytest.mark.parametrize("kind", RELMATS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lost_and_constant_regions_are_nan_and_change_no_other(kind, dtype):
    signals = signals_of().astype(dtype)
    expected = connectivity(np.delete(signals, [2, 5, 11], axis=1), kind)
    signals[:, 2] = np.nan
    signals[:, 5] = 700.3
    signals[40, 11] = np.nan
    found, facts = connectivity(signals, kind)
    known = np.delete(np.arange(12), [2, 5, 11])
    np.testing.assert_allclose(found[np.ix_(known, known)], expected.matrix, rtol=1e-6)
    assert np.isnan(np.delete(found, known, axis=0)).all()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, found.T)
    assert facts.pop("Shrinkage", 0) == pytest.approx(expected.facts.pop("Shrinkage", 0), rel=1e-9)
    assert facts == expected.facts


@pytest.mark.parametrize("kind", RELMATS)
def test_without_any_region_left(kind):
    assert np.isnan(connectivity(np.full((30, 3), np.nan), kind).matrix).all()


@pytest.mark.parametrize("n_volumes", [1, 2])
def test_partial_correlation_of_too_few_volumes_is_nan(n_volumes):
    """Ledoit and Wolf's shrinkage of two volumes is 0, so their covariance has no inverse."""
    found, facts = connectivity(signals_of(n_volumes), "partial")
    assert np.isnan(found).all()
    assert facts["Shrinkage"] is None


def test_another_kind_is_an_error():
    with pytest.raises(ValueError, match=r"'kind' must be one of .*\n'tangent' was provided"):
        connectivity(signals_of(), "tangent")


def covariances(n_runs=6):
    return [shrunk_covariance(signals_of(60 + 5 * k, seed=k))[0] for k in range(n_runs)]


def test_tangent_against_nilearn():
    runs = [scores(signals_of(60 + 5 * k, seed=k)) for k in range(6)]
    measure = ConnectivityMeasure(LedoitWolf(), kind="tangent", standardize=False, vectorize=True)
    expected = measure.fit_transform(runs)
    found, matrices = {}, covariances()
    mean = tangent_space(6, matrices.__getitem__, found.__setitem__)
    np.testing.assert_allclose(mean, measure.mean_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose([found[k] for k in range(6)], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vec_to_sym_matrix(found[2]), vec_to_sym_matrix(expected[2]), rtol=1e-5, atol=1e-6)


def test_geometric_mean_of_matrices_that_commute():
    """Of diagonal matrices, it is the geometric mean of each element; the projections are logarithms."""
    diagonals = np.random.default_rng(0).uniform(0.01, 100, (5, 4))
    found = {}
    mean = tangent_space(5, lambda k: np.diag(diagonals[k]), found.__setitem__)
    middle = np.exp(np.log(diagonals).mean(0))
    np.testing.assert_allclose(np.diagonal(mean), middle, rtol=1e-6)
    np.testing.assert_allclose(np.diagonal(vec_to_sym_matrix(found[3])), np.log(diagonals[3] / middle), atol=1e-6)


def test_tangent_of_one_matrix_is_an_error():
    with pytest.raises(ValueError, match="needs 2 matrices or more, got 1"):
        tangent_space(1, lambda k: np.eye(2), lambda k, row: None)


def test_shrunk_covariance_names_lost_columns():
    signals = signals_of()
    signals[:, 3], signals[7, 1] = 5, np.nan
    with pytest.raises(ValueError, match=r"columns without a number or without variance: \[1, 3\]"):
        shrunk_covariance(signals)


def tangent(signals):
    covariances = [shrunk_covariance(part)[0] for part in np.split(signals, 2)]
    return tangent_space(2, covariances.__getitem__, lambda *_: None)


@pytest.mark.parametrize(
    "function",
    [tangent, lambda signals: shrunk_covariance(signals)[0], lambda signals: connectivity(signals, "partial").matrix],
    ids=["tangent", "shrunk covariance", "partial correlation"],
)
def test_same_bits_for_any_number_of_blas_threads(function):
    signals, found = signals_of(200, 379), []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, "blas"):
            found.append(function(signals))
    np.testing.assert_array_equal(*found)


def test_mean_of_correlations_is_by_fisher_z():
    values = np.array([[0.2, 0.9, np.nan], [0.4, 1.0, np.nan], [0.9, -0.3, np.nan]])
    z = of.averaged("pearsoncorrelation", values)
    counts = np.isfinite(z).sum(0)
    mean = of.mean_over_runs("pearsoncorrelation", np.nansum(z, 0), counts)
    assert counts.tolist() == [3, 2, 0]
    expected = [np.tanh(np.arctanh([0.2, 0.4, 0.9]).mean()), np.tanh(np.arctanh([0.9, -0.3]).mean()), np.nan]
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    assert of.mean_over_runs("covariance", of.averaged("covariance", np.array([6.0])), np.array([3])) == 2
