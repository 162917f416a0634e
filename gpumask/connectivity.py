"""Connectivity of regions: symmetric matrices of their signals, and the tangent space of the matrices of a group.

Arrays in, arrays out. A region with NaN, or without variance, has NaN in its row and column. `tangent_space` is for
groups: its matrices are deviations from the group's mean.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpumask.choices import RELMATS, check_choice
from gpumask.process import one_blas_thread

CORRELATIONS = (RELMATS["pearson"], RELMATS["partial"])
"""Labels of the kinds whose mean is that of Fisher z."""

_CONSTANT = 1e-12  # a region with a smaller standard deviation, relative to its largest value, has rounding errors only
_SINGULAR = 1e-10  # the inverse of a matrix with a smaller ratio of eigenvalues may have no right digit in float32
_TOLERANCE = 1e-7  # of the geometric mean: norm of its gradient over the number of its elements
_MOST_STEPS = 100


class Connectivity(NamedTuple):
    """A matrix, and how it was made.

    Attributes
    ----------
    matrix : ndarray of float32, shape (n_regions, n_regions)
        Symmetric to the bit.
    facts : dict
        For its sidecar: "Estimator", and for a shrunk covariance its "Shrinkage" (0 to 1; None if there is none).
    """

    matrix: np.ndarray
    facts: dict[str, Any]


@one_blas_thread
def connectivity(signals: np.ndarray, kind: str = "pearson") -> Connectivity:
    """Connectivity of the columns.

    Parameters
    ----------
    signals : ndarray, shape (n_volumes, n_regions)
    kind : {"pearson", "partial", "covariance", "fisherz"}, default="pearson"
        "pearson": correlation. "fisherz": its inverse hyperbolic tangent; NaN where that is infinite: on the diagonal,
        and where the correlation is 1 or -1 in float32. "covariance": with the divisor n_volumes - 1, in the square of
        the signals' unit. "partial": partial correlation, each pair given all other regions, from the inverse of the
        covariance of z-scored signals, which is shrunk as Ledoit and Wolf (2004, 10.1016/S0047-259X(03)00096-4) do, by
        scikit-learn.

    Returns
    -------
    Connectivity
        All NaN for "partial" if even the shrunk covariance can't be inverted, as of two volumes.

    Raises
    ------
    ValueError
        For another kind.
    """
    check_choice("kind", kind, tuple(RELMATS))
    if kind == "pearson":
        return Connectivity(correlations(signals), {"Estimator": "Pearson correlation"})
    known, facts = _known(signals), {}
    some = np.asarray(signals[:, known], np.float64)
    if kind == "covariance":
        centred = some - some.mean(axis=0)
        matrix = centred.T @ centred / max(len(some) - 1, 1)
        facts["Estimator"] = "sample covariance, divisor volumes - 1"
    elif kind == "fisherz":
        r = _correlations(some)
        with np.errstate(divide="ignore"):
            matrix = np.where(np.abs(r.astype(np.float32)) < 1, np.arctanh(r), np.nan)
        np.fill_diagonal(matrix, np.nan)
        facts["Estimator"] = "inverse hyperbolic tangent of the Pearson correlation"
    else:
        matrix, shrinkage = _partial_correlations(some)
        facts = {"Estimator": "inverse of the Ledoit-Wolf covariance of z-scored signals", "Shrinkage": shrinkage}
    whole = np.full((len(known), len(known)), np.nan, np.float32)
    whole[np.ix_(known, known)] = np.triu(matrix) + np.triu(matrix, 1).T
    return Connectivity(whole, facts)


@one_blas_thread
def correlations(signals: np.ndarray) -> np.ndarray:
    """Pearson correlations of the columns; NaN for those with NaN or without variance.

    Parameters
    ----------
    signals : ndarray, shape (n_volumes, n_regions)

    Returns
    -------
    ndarray of float32, shape (n_regions, n_regions)
        Symmetric to the bit, with a diagonal of 1.
    """
    matrix = _correlations(signals).astype(np.float32)
    upper = np.triu(matrix, 1)
    diagonal = np.where(np.isnan(np.diagonal(matrix)), np.float32("nan"), np.float32(1))
    return upper + upper.T + np.diag(diagonal)


@one_blas_thread
def shrunk_covariance(signals: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Ledoit-Wolf covariance of z-scored columns, and its shrinkage; the divisor of both is the number of volumes.

    Parameters
    ----------
    signals : ndarray, shape (n_volumes, n_regions)

    Returns
    -------
    covariance : ndarray of float64, shape (n_regions, n_regions)
    shrinkage : float or None
        0 to 1. None if the covariance can't be inverted.

    Raises
    ------
    ValueError
        If a column has NaN or no variance, with the numbers of such columns.
    """
    from sklearn.covariance import ledoit_wolf

    if lost := np.flatnonzero(~_known(signals)).tolist():
        msg = f"columns without a number or without variance: {lost}"
        raise ValueError(msg)
    scores = np.asarray(signals, np.float64)
    scores = scores - scores.mean(axis=0)
    scores /= scores.std(axis=0)
    covariance, shrinkage = ledoit_wolf(scores, assume_centered=True)
    values = np.linalg.eigvalsh(covariance)
    return covariance, float(shrinkage) if values[0] > _SINGULAR * values[-1] else None


@one_blas_thread
def tangent_space(
    n_matrices: int, covariance: Callable[[int], np.ndarray], store: Callable[[int, np.ndarray], object]
) -> np.ndarray:
    """Project covariances to the tangent space at their geometric mean (Varoquaux 2010, 10.1007/978-3-642-15705-9_25).

    The mean is that of Fletcher and Joshi (2007, 10.1016/j.sigpro.2005.12.018), as in nilearn's ``ConnectivityMeasure``
    of the kind "tangent". One matrix is held at a time; each is asked for in every step, of which there are 5 to 30.

    Parameters
    ----------
    n_matrices : int
    covariance : callable
        Returns the matrix of a number: ndarray of float64, shape (n_regions, n_regions), symmetric positive definite.
    store : callable
        Gets the number of each matrix, in order, and its projection as `vectorized` makes it.

    Returns
    -------
    ndarray of float64, shape (n_regions, n_regions)
        The geometric mean.

    Raises
    ------
    ValueError
        If there are fewer than two matrices, or the mean doesn't converge.
    """
    if n_matrices < 2:
        msg = f"A tangent space needs 2 matrices or more, got {n_matrices}"
        raise ValueError(msg)
    mean = sum(covariance(k) for k in range(n_matrices)) / n_matrices
    step, least = 1.0, np.inf
    for _ in range(_MOST_STEPS):
        root, whitening = _of_eigenvalues(mean, np.sqrt), _of_eigenvalues(mean, lambda values: 1 / np.sqrt(values))
        gradient = sum(_logarithm(covariance(k), whitening) for k in range(n_matrices)) / n_matrices
        norm = float(np.linalg.norm(gradient))
        mean = root @ _of_eigenvalues(gradient * step, np.exp) @ root
        mean = (mean + mean.T) / 2
        if norm > least:
            step, norm = step / 2, least
        least = norm
        if norm < _TOLERANCE * mean.size:
            break
    else:
        msg = f"The geometric mean of {n_matrices} matrices hasn't converged in {_MOST_STEPS} steps"
        raise ValueError(msg)
    whitening = _of_eigenvalues(mean, lambda values: 1 / np.sqrt(values))
    for k in range(n_matrices):
        store(k, vectorized(_logarithm(covariance(k), whitening)))
    return mean


def vectorized(matrix: np.ndarray) -> np.ndarray:
    """Lower triangle of a symmetric matrix, row by row, with its diagonal divided by sqrt(2).

    It is nilearn's ``sym_matrix_to_vec``: ``vec_to_sym_matrix`` restores the matrix.

    Parameters
    ----------
    matrix : ndarray, shape (n, n)

    Returns
    -------
    ndarray, shape (n (n + 1) / 2,)
    """
    scaled = matrix / np.where(np.eye(len(matrix), dtype=bool), np.sqrt(2), 1)
    return scaled[np.tril_indices(len(matrix))]


def mean_over_runs(stat: str, total: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of matrices over runs, from sums of what `averaged` makes of them.

    Parameters
    ----------
    stat : str
        Label of the matrices' kind.
    total : ndarray of float64
    counts : ndarray
        Runs with a number, for each element.

    Returns
    -------
    ndarray of float64
        NaN where no run has a number.
    """
    mean = np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
    return np.tanh(mean) if stat in CORRELATIONS else mean


def averaged(stat: str, values: np.ndarray) -> np.ndarray:
    """What is averaged over runs: Fisher z of correlations, NaN for 1 and -1, whose z is infinite; else a copy.

    Parameters
    ----------
    stat : str
        Label of the matrices' kind.
    values : ndarray of float64

    Returns
    -------
    ndarray of float64
    """
    if stat not in CORRELATIONS:
        return values.copy()
    return np.arctanh(np.where(np.abs(values) < 1, values, np.nan))


def _known(signals):
    """Which columns have numbers and a variance."""
    return np.isfinite(_norms(signals)[1])


def _norms(signals):
    """Centred columns and their norms; NaN for columns without variance."""
    centred = signals - signals.mean(axis=0, dtype=np.float64)
    norms = np.sqrt((centred**2).sum(axis=0))
    return centred, np.where(norms > _CONSTANT * np.abs(signals).max(axis=0, initial=0), norms, np.nan)


def _correlations(signals):
    """Pearson correlations as float64."""
    centred, norms = _norms(signals)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = centred / norms
    return np.clip(unit.T @ unit, -1, 1)


def _partial_correlations(signals):
    n_regions = signals.shape[1]
    if not n_regions:
        return np.empty((0, 0)), None
    covariance, shrinkage = shrunk_covariance(signals)
    if shrinkage is None:
        return np.full((n_regions, n_regions), np.nan), None
    precision = np.linalg.inv(covariance)
    scale = np.sqrt(np.diagonal(precision))
    partial = np.clip(-precision / np.outer(scale, scale), -1, 1)
    np.fill_diagonal(partial, 1)
    return partial, shrinkage


def _of_eigenvalues(matrix, function):
    """A symmetric matrix with a function of its eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * function(values)) @ vectors.T


def _logarithm(covariance, whitening):
    return _of_eigenvalues(whitening @ covariance @ whitening, np.log)
