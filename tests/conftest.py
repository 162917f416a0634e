"""Array libraries for the kernel tests, and the real data if they are there.

Every kernel test has the fixture ``put``: a function that turns a NumPy array into an array of the library under test,
on a device other than NumPy's if the library has one. Tests on CuPy are deselected if it can't compute (on a GPU, or an
emulated one); with ``GPUMASK_TEST_CUPY=require`` they fail instead.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from gpumask import backend
from gpumask.kernels import compiled, smoothing

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


REQUIRED = os.environ.get("GPUMASK_TEST_CUPY") == "require"
DESELECTED = pytest.StashKey[str]()


def needs_gpu(item):
    of_put = item.callspec.params.get("put") if hasattr(item, "callspec") else None
    return of_put == "cupy" or "gpu" in item.fixturenames or item.get_closest_marker("gpu") is not None


def pytest_collection_modifyitems(config, items):
    reasons = []
    if not REQUIRED and importlib.util.find_spec("cupy") is None:
        reasons.append(("CuPy", lambda item: "nvrtc" in item.fixturenames))
    if not REQUIRED and backend.cuda_status().problem:
        reasons.append(("a CUDA device", needs_gpu))
    told = []
    for missing, needed in reasons:
        without = [item for item in items if needed(item)]
        items[:] = [item for item in items if not needed(item)]
        config.hook.pytest_deselected(items=without)
        if without:
            told.append(f"{len(without)} tests that need {missing}")
    if told:
        config.stash[DESELECTED] = f"deselected: {', '.join(told)} ({backend.cuda_status().problem})"


def pytest_report_collectionfinish(config):
    return config.stash.get(DESELECTED, [])


@pytest.fixture(params=["numpy", "strict", pytest.param("cupy", marks=pytest.mark.gpu)])
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
    if status.problem:
        if REQUIRED:
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
    """How volumes are multiplied with matrices on NumPy: no band is narrow on grids as small as the tests'."""
    monkeypatch.setattr(smoothing, "_WIDEST_BAND", {"BLAS": 0.0, "bands": 1.0}[request.param])


@pytest.fixture(params=["compiled", "numpy"])
def either(request, monkeypatch):
    """Run a test with the compiled kernels, and with NumPy's."""
    if request.param == "numpy":
        monkeypatch.setattr(compiled, "extension", None)
    elif compiled.extension is None:
        pytest.skip("gpumask was installed without a C compiler")
