"""Prepared extractions: what is kept between runs, under which key; and state that a process has one of."""

import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import gpumask
from gpumask import NiftiLabelsMasker, devices, extraction, plans, process, transform_together
from gpumask.images.volumes import open_volumes

from . import helpers

AFFINE = np.diag([2.0, 2, 3, 1])


def image(data, affine=AFFINE):
    return helpers.image(data, affine)


def moved(by):
    affine = AFFINE.copy()
    affine[:3, 3] = by
    return affine


def blocks(fill=2):
    labels = np.zeros((8, 8, 8), "i2")
    labels[1:4], labels[4:7] = 1, fill
    return labels


def volumes(seed=0, affine=AFFINE, n=30):
    return image(np.random.default_rng(seed).normal(100, 10, (12, 12, 12, n)).astype("f4"), affine)


MASK = np.ones((8, 8, 8), "u1")
LESS = MASK.copy()
LESS[:3, :3] = 0
FIRST = {"labels_img": image(blocks()), "imgs": volumes(), "resampling_target": "labels", "mask_img": image(MASK)}
# Each decides some bit of the signals or of the plan.
CHANGES = {
    "labels": {"labels_img": image(blocks(3))},
    "labels' place": {"labels_img": image(blocks(), moved(4))},
    "labels' voxel size": {"labels_img": image(blocks(), np.diag([1.5, 2, 3, 1]))},
    "labels' dtype": {"labels_img": image(blocks().astype("f4"))},
    "background": {"background_label": 2},
    "mask": {"mask_img": image(LESS)},
    "no mask": {"mask_img": None},
    "run": {"imgs": volumes(1)},
    "run's place": {"imgs": volumes(affine=moved(2))},
    "run's length": {"imgs": volumes(n=31)},
    "strategy": {"strategy": "sum"},
    "smoothing": {"smoothing_fwhm": 4.0},
    "target": {"resampling_target": "data"},
    "keep_all_regions": {"keep_all_regions": True},
    "keep_masked_labels": {"keep_masked_labels": True},
    "nan_policy": {"nan_policy": "omit", "resampling_target": "data"},
}


def quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


def extract(memory, imgs, **parameters):
    return quietly(lambda: NiftiLabelsMasker(memory=memory, device="cpu", **parameters).fit().transform(imgs))


@pytest.fixture
def work(monkeypatch):
    """What is done, in order: "compile" and "read"."""
    done = []
    for module, name, what in ((plans, "compile_plan", "compile"), (extraction, "run_plans", "read")):
        function = getattr(module, name)
        recorded = lambda *a, function=function, what=what, **k: done.append(what) or function(*a, **k)  # noqa: E731
        monkeypatch.setattr(module, name, recorded)
    return done


@pytest.mark.parametrize("change", CHANGES)
def test_memory_misses_what_decides_the_bits(tmp_path, work, change):
    second = FIRST | CHANGES[change]
    expected = extract(None, **second)
    extract(tmp_path, **FIRST)
    work.clear()
    np.testing.assert_array_equal(extract(tmp_path, **second), expected)
    assert "read" in work
    work.clear()
    np.testing.assert_array_equal(extract(tmp_path, **second), expected)
    assert work == []


@pytest.mark.parametrize("module", ["gpumask", "numpy", "scipy"])
def test_memory_misses_another_version(tmp_path, work, monkeypatch, module):
    expected = extract(tmp_path, **FIRST)
    if module == "gpumask":
        monkeypatch.setattr("gpumask.__version__", "0.0.1")
    else:
        monkeypatch.setattr(f"{module}.__version__", "9.9")
    work.clear()
    np.testing.assert_array_equal(extract(tmp_path, **FIRST), expected)
    assert work == ["compile", "read"]


def test_memory_misses_another_device(tmp_path, monkeypatch):
    used, run_plans = [], extraction.run_plans

    def on_cpu(plans, *arguments, **options):
        used.append(plans[0].device)
        return run_plans([replace(plan, device="cpu") for plan in plans], *arguments, **options)

    monkeypatch.setattr(extraction, "run_plans", on_cpu)
    monkeypatch.setattr(devices, "resolve_device", lambda device, data_on="cpu": device)
    masker = NiftiLabelsMasker(image(blocks()), memory=tmp_path, device="cpu").fit()
    for device in ("cpu", "cuda:0", "cpu", "cuda:0", "cuda:1"):
        masker.set_params(device=device)
        quietly(masker.transform, volumes())
    assert used == ["cpu", "cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    "change",
    [
        {"standardize": "zscore"},
        {"detrend": True},
        {"low_pass": 0.1, "t_r": 2.0},
        {"min_coverage": 0.5},
        {"dtype": "f8"},
    ],
    ids=str,
)
def test_cleaning_reads_nothing_again(tmp_path, work, change):
    extract(tmp_path, **FIRST)
    work.clear()
    signals = extract(tmp_path, **FIRST, **change)
    assert work == []
    np.testing.assert_array_equal(signals, extract(None, **FIRST, **change))


def test_an_opened_run(tmp_path):
    nib.save(volumes(), tmp_path / "bold.nii.gz")
    opened = open_volumes(tmp_path / "bold.nii.gz")
    assert open_volumes(opened) is opened
    masker = NiftiLabelsMasker(image(blocks(), moved(2)))
    expected = masker.fit_transform(tmp_path / "bold.nii.gz")
    np.testing.assert_array_equal(masker.fit_transform(opened), expected)
    np.testing.assert_array_equal(transform_together([masker], opened)[0], expected)


# The process


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


LATE = """
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from gpumask import process
def threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
with threadpool_limits(2, user_api="blas"):
    with process.one_blas_thread:
        assert threads() == {1}
        with process.one_linalg_thread:  # loads SciPy's BLAS
            assert threads() == {1}
        with process.one_linalg_thread:
            assert threads() == {1}
    assert 1 not in threads()
    process.one_linalg_thread.__enter__()
    process.one_blas_thread.__enter__()
    assert threads() == {1}
    process.one_linalg_thread.__exit__()
    process.one_blas_thread.__exit__()
    assert 1 not in threads()
"""


def test_blas_of_scipy_that_is_loaded_late():
    """NumPy's BLAS is limited without loading SciPy's, which is limited as soon as it is loaded."""
    subprocess.run([sys.executable, "-c", LATE], check=True)


def test_blas_threads_come_back_after_threads_that_overlap():
    import scipy.linalg  # noqa: F401 - its BLAS counts too

    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
        seen = []

        def first():
            with process.one_blas_thread:
                first_is_in.set()
                second_is_in.wait()
            first_is_out.set()

        def second():
            first_is_in.wait()
            with process.one_blas_thread:
                second_is_in.set()
                first_is_out.wait()
                seen.append(blas_threads())

        with ThreadPoolExecutor(2) as threads:
            for future in [threads.submit(first), threads.submit(second)]:
                future.result()
        assert set(seen[0]) == {1}
        assert blas_threads() == before


def test_blas_threads_come_back_after_maskers_in_threads():
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()

        def work(seed):
            masker = NiftiLabelsMasker(image(blocks()), detrend=True, smoothing_fwhm=4, strategy="median")
            return masker.fit().transform(volumes(seed, n=40))

        with ThreadPoolExecutor(4) as threads:
            quietly(lambda: list(threads.map(work, range(12))))  # the filters are the process's, not a thread's
        assert blas_threads() == before


def test_warning_filters_come_back_after_threads_that_overlap():
    before, barrier = list(warnings.filters), threading.Barrier(3)

    def work(k):
        with process.collect_warnings() as messages:
            barrier.wait()
            for _ in range(2):
                process.warn(f"from {k}")
            barrier.wait()
        return messages

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(work, range(3))) == [["from 0"], ["from 1"], ["from 2"]]
    assert list(warnings.filters) == before


def test_a_warning_points_at_the_first_line_outside_the_package(tmp_path):
    masker = NiftiLabelsMasker(image(blocks()), device="cpu").fit()
    calls = [lambda: masker.transform(volumes()), lambda: transform_together([masker], volumes())]
    calls.append(lambda: NiftiLabelsMasker(image(blocks()), memory=tmp_path, memory_level=0).fit(volumes()))
    calls.append(lambda: gpumask.signal.clean(np.ones((9, 2)), filter=False, low_pass=0.1))
    for call in calls:
        with pytest.warns(UserWarning, match=r"Resampling|memory_level|cutoff") as caught:
            call()
        assert {warning.filename for warning in caught} == {__file__}
