"""Results have the same bits however many threads BLAS may use: products and decompositions have one."""

import nibabel as nib
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from gpumask import NiftiMasker
from gpumask.choices import RELMATS
from gpumask.cleaner import Cleaner
from gpumask.confounds.high_variance import high_variance_confounds
from gpumask.connectivity import connectivity, shrunk_covariance, tangent_space
from gpumask.images.volumes import open_volumes
from gpumask.signal import clean

OPTIONS = {"low_pass": 0.1, "high_pass": 0.01, "t_r": 2.0}


def series(n_volumes, n_series, seed=0):
    return np.random.default_rng(seed).standard_normal((n_volumes, n_series))


def run():
    values = series(20**3, 300).reshape(20, 20, 20, 300)
    return nib.Nifti1Image((1000 + 10 * values).astype(np.float32), np.eye(4))


def of_voxels():
    mask = nib.Nifti1Image(np.ones((20, 20, 20), np.uint8), np.eye(4))
    return NiftiMasker(mask, detrend=True, **OPTIONS).fit().transform(run(), confounds=series(300, 24))


def of_tangent_space():
    projections = []
    with threadpool_limits(1, user_api="blas"):
        covariances = [np.cov(series(400, 100, seed).T) for seed in range(3)]
    mean = tangent_space(3, covariances.__getitem__, lambda _, vector: projections.append(vector))
    return np.concatenate([mean.ravel(), *projections])


RESULTS = {
    "cleaned signals": lambda: clean(series(1200, 416), confounds=series(1200, 24, 1), **OPTIONS),
    "cleaned voxels": of_voxels,
    "degrees of freedom": lambda: Cleaner(300, confounds=series(300, 24), **OPTIONS).degrees_of_freedom(),
    "high-variance confounds": lambda: high_variance_confounds(open_volumes(run())),
    "shrunk covariance": lambda: shrunk_covariance(series(200, 100))[0],
    "tangent space": of_tangent_space,
    **{kind: lambda kind=kind: connectivity(series(200, 100), kind).matrix for kind in RELMATS},
}


@pytest.mark.parametrize("name", RESULTS)
def test_bits_do_not_depend_on_the_threads_of_blas(name):
    results = []
    for n_threads in (1, 2, 3):
        with threadpool_limits(n_threads, user_api="blas"):
            results.append(np.asarray(RESULTS[name]()).tobytes())
    assert results[0] == results[1] == results[2]
