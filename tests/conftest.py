"""Array libraries for the kernel tests, and the real data if they are there.

Every kernel test has the fixture ``put``: a function that turns a NumPy array into an array of the library under test,
on a device other than NumPy's if the library has one. Every test that needs a GPU (or an emulated one) has the marker
``gpu``. Without a usable one, these tests are deselected, or skipped under ``-m gpu``; with
``GPUMASK_TEST_CUPY=require`` they fail.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from gpumask import backend, devices
from gpumask.kernels import compiled, smoothing

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


REQUIRED = os.environ.get("GPUMASK_TEST_CUPY") == "require"
LEFT_OUT = pytest.StashKey[str]()


def needs_gpu(item):
    of_put = item.callspec.params.get("put") if hasattr(item, "callspec") else None
    return of_put == "cupy" or "gpu" in item.fixturenames or item.get_closest_marker("gpu") is not None


@pytest.hookimpl(tryfirst=True)  # before `-m gpu` selects
def pytest_collection_modifyitems(config, items):
    for item in filter(needs_gpu, items):
        item.add_marker("gpu")
    reasons = []
    if not REQUIRED and importlib.util.find_spec("cupy") is None:
        reasons.append(("CuPy", lambda item: "nvrtc" in item.fixturenames))
    if not REQUIRED and devices.cuda_status().problem:
        reasons.append(("a CUDA device", needs_gpu))
    told, problem = [], devices.cuda_status().problem
    are_requested = bool(config.option.markexpr)
    for missing, needed in reasons:
        without = [item for item in items if needed(item)]
        if are_requested:
            for item in without:
                item.add_marker(pytest.mark.skip(f"needs {missing}: {problem}"))
        else:
            items[:] = [item for item in items if not needed(item)]
            config.hook.pytest_deselected(items=without)
        if without:
            told.append(f"{len(without)} tests that need {missing}")
    if told:
        config.stash[LEFT_OUT] = f"{'skipped' if are_requested else 'deselected'}: {', '.join(told)} ({problem})"


def pytest_report_collectionfinish(config):
    return config.stash.get(LEFT_OUT, [])


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
    status = devices.cuda_status()
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
