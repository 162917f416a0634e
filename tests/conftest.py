"""Backends for the kernel tests, and the real data where they are found.

Every kernel test takes ``put``: a function that turns a NumPy array into an array of the library under test, on a
device that is not NumPy's where the library has one. CuPy takes part where it can compute (a GPU, or an emulation of
one); ``GPUMASK_TEST_CUPY=require`` makes its absence an error instead of a skip.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from gpumask import backend
from gpumask.kernels import smoothing

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(params=["numpy", "strict", "cupy"])
def put(request):
    if request.param == "numpy":
        return np.asarray
    if request.param == "strict":
        strict = pytest.importorskip("array_api_strict")
        return lambda values: strict.asarray(np.asarray(values), device=strict.Device("device1"))
    gpu = request.getfixturevalue("gpu")
    return lambda values: backend.to_device(np.asarray(values), gpu)


@pytest.fixture
def gpu():
    """The first CUDA device that CuPy can compute on."""
    status = backend.cuda_status()
    if not status.devices:
        if os.environ.get("GPUMASK_TEST_CUPY") == "require":
            pytest.fail(f"GPUMASK_TEST_CUPY=require, but {status.problem}")
        pytest.skip(f"no usable CUDA device: {status.problem}")
    return "cuda:0"


@pytest.fixture(scope="session")
def data():
    """Folder with a whole real BOLD run, its confounds and real atlases."""
    if not DATA.is_dir():
        pytest.skip(f"the real test data are not there: {DATA}")
    return DATA


@pytest.fixture(params=["BLAS", "bands"])
def products(request, monkeypatch):
    """On NumPy, how volumes are multiplied with matrices: on grids as small as the tests', no band is narrow."""
    monkeypatch.setattr(smoothing, "_WIDEST_BAND", {"BLAS": 0.0, "bands": 1.0}[request.param])
