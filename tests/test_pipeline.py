"""Whole runs through plans: stored values, scaling, non-finite voxels, clipping, chunks, threads, memory, failures."""

import threading
import time
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import resample_img
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_info, threadpool_limits

from gpumask.engine import plan as plans
from gpumask.engine import stream as pipeline
from gpumask.images.errors import ImageError
from gpumask.images.volumes import open_volumes
from gpumask.kernels.segments import STRATEGIES

from . import reference
from .runs import AFFINE, IDS, LABEL_AFFINES, N_VOLUMES, SHAPE, extract, some_labels, some_plan, stored_run, write

everywhere = pytest.mark.parametrize("strategy", STRATEGIES)
on_grids = pytest.mark.parametrize("labels_on", LABEL_AFFINES)


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request):
    if request.param != "cpu":
        request.getfixturevalue("gpu")
    return request.param


def scaled(stored, slope, inter):
    """Headers hold slope and intercept in float32."""
    return stored * float(np.float32(slope)) + float(np.float32(inter))


def statistics(values, strategy, *, labels_on="same", fwhm=None):
    """Slowly, as nilearn defines it, of float64 data (x, y, z, n) with NaN but nothing infinite."""
    if labels_on != "same":
        image = nib.Nifti1Image(values, AFFINE)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NaNs or infinite values are present", RuntimeWarning)
            warnings.filterwarnings("ignore", "invalid value encountered in divide", RuntimeWarning)
            warnings.filterwarnings("ignore", "Resampling binary images", UserWarning)
            resampled = resample_img(image, LABEL_AFFINES[labels_on], SHAPE, interpolation="continuous", clip=True)
        values = resampled.get_fdata()
    volumes = np.moveaxis(np.where(np.isfinite(values), values, 0), -1, 0)
    if fwhm:
        sigma = fwhm / (np.sqrt(8 * np.log(2)) * np.linalg.norm(LABEL_AFFINES[labels_on][:3, :3], axis=0))
        volumes = [gaussian_filter(volume, sigma) for volume in volumes]
    return reference.region_signals(reference.flat(volumes), some_labels().ravel(order="F"), IDS, strategy)


def assert_close(actual, expected, rtol=1e-10):
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-10)


# Scaling


@everywhere
@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (0.5, 0.0), (1.0, 10.0), (0.037, -4.5), (-0.3, 7.0)])
@pytest.mark.parametrize("fwhm", [None, 6.0])
def test_scaling(tmp_path, device, strategy, slope, inter, fwhm):
    stored = stored_run()
    volumes = open_volumes(write(tmp_path / "bold.nii", stored, slope, inter))
    result = extract(some_plan(fwhm=fwhm, strategy=strategy), volumes, device=device)
    assert_close(result.signals, statistics(scaled(stored, slope, inter), strategy, fwhm=fwhm))
    assert not result.non_finite


@everywhere
@pytest.mark.parametrize("labels_on", ["parallel", "oblique"])
def test_scaling_and_resampling(tmp_path, device, strategy, labels_on):
    stored = stored_run()
    volumes = open_volumes(write(tmp_path / "bold.nii", stored, -0.3, 7.0))
    result = extract(some_plan(labels_on, strategy=strategy), volumes, device=device)
    assert_close(result.signals, statistics(scaled(stored, -0.3, 7.0), strategy, labels_on=labels_on))


@pytest.mark.parametrize("dtype", ["i1", "u1", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4", ">f8"])
@pytest.mark.parametrize("strategy", ["mean", "median", "maximum", "variance"])
def test_stored_types(tmp_path, device, dtype, strategy):
    stored = stored_run(dtype)
    volumes = open_volumes(write(tmp_path / "bold.nii", stored))
    result = extract(some_plan(strategy=strategy), volumes, device=device)
    assert_close(result.signals, statistics(stored.astype(np.float64), strategy))


# Chunks and threads


def holed(stored):
    """With non-finite voxels in two volumes: whatever they change must not depend on who shares their chunk."""
    stored[2, 2, 2, 2], stored[4, 4, 4, 5] = np.nan, np.inf
    return stored


RUNS = {"i2": (stored_run("i2"), 0.037, -4.5), "f4-holed": (holed(stored_run("f4")), -0.037, 4.5)}


@everywhere
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("labels_on", ["same", "oblique"])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("fwhm", [None, 6.0])
def test_same_bits_for_any_chunk_and_thread_count(tmp_path, device, run, labels_on, fwhm, strategy):
    stored, slope, inter = RUNS[run]
    plan = some_plan(labels_on, fwhm, strategy)
    packed = open_volumes(write(tmp_path / "bold.nii.gz", stored, slope, inter))
    plain = open_volumes(write(tmp_path / "bold.nii", stored, slope, inter))
    expected = extract(plan, packed, device=device, chunk=16, n_threads=1).signals
    for volumes, chunk, n_threads in [(packed, 3, 5), (packed, 1, 2), (packed, 100, 2), (plain, 3, 2), (plain, 16, 1)]:
        result = extract(plan, volumes, device=device, chunk=chunk, n_threads=n_threads)
        np.testing.assert_array_equal(result.signals, expected)
        assert result.non_finite == (run == "f4-holed")


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("fwhm", [None, 6.0])
@pytest.mark.parametrize("strategy", ["mean", "variance"])
@on_grids
def test_same_bits_from_every_source(tmp_path, labels_on, fwhm, strategy):
    """File, compressed file, images in memory in both orders, and a list of images."""
    stored, plan = stored_run("f4"), some_plan(labels_on, fwhm, strategy)
    sources = [write(tmp_path / name, stored) for name in ("bold.nii", "bold.nii.gz")]
    sources += [nib.Nifti1Image(np.array(stored, order=order), AFFINE) for order in "FC"]
    sources.append([nib.Nifti1Image(stored[..., t], AFFINE) for t in range(N_VOLUMES)])
    results = [extract(plan, open_volumes(source), chunk=2).signals for source in sources]
    for result in results:
        np.testing.assert_array_equal(result, results[0])


@everywhere
@on_grids
def test_gpu_equals_cpu(tmp_path, device, labels_on, strategy):
    if device == "cpu":
        pytest.skip("it is the other side of the comparison")
    stored = stored_run("f4")
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored, 1.7, 3.0))
    for fwhm in (None, 6.0):
        plan = some_plan(labels_on, fwhm, strategy)
        assert_close(extract(plan, volumes, device=device).signals, extract(plan, volumes).signals)


def test_three_dimensional_image():
    stored = stored_run("f4", 1)[..., 0]
    result = extract(some_plan(), open_volumes(nib.Nifti1Image(stored, AFFINE)))
    assert_close(result.signals, statistics(stored[..., None].astype(np.float64), "mean"))


def test_default_chunks_are_bounded(monkeypatch):
    volumes = open_volumes(nib.Nifti1Image(stored_run("f8", 40), AFFINE))
    assert pipeline._chunk_size(volumes) == 16
    monkeypatch.setattr(pipeline, "_CHUNK_BYTES", 5 * volumes.grid.n_voxels * 8 + 1)
    assert pipeline._chunk_size(volumes) == 5
    monkeypatch.setattr(pipeline, "_CHUNK_BYTES", 1)
    assert pipeline._chunk_size(volumes) == 1
    assert pipeline._chunk_size(open_volumes(nib.Nifti1Image(stored_run("f8", 3), AFFINE))) == 1


# Non-finite voxels


def broken_run(dtype="f4"):
    """NaN and infinities, alone and in clusters, at a border, in regions and outside."""
    stored = stored_run(dtype)
    stored[0, 0, 0, 0] = stored[3, 3, 3, 1] = np.nan  # region 1 is the single voxel (3, 3, 3)
    stored[1:5, 2:6, 1:5, 2] = np.nan
    stored[2, 5, 3, 4] = stored[2, 6, 3, 4] = np.inf
    stored[5, 5, 5, 4] = -np.inf
    return stored


@everywhere
@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (1.0, 1000.0), (-2.0, -1000.0)])
@pytest.mark.parametrize("fwhm", [None, 6.0])
def test_non_finite_voxels_count_as_zero(tmp_path, device, strategy, slope, inter, fwhm):
    """0 in the scaled data, not in the stored ones, and without a warning on the way."""
    stored = broken_run()
    volumes = open_volumes(write(tmp_path / "bold.nii", stored, slope, inter))
    result = extract(some_plan(fwhm=fwhm, strategy=strategy), volumes, device=device)
    assert_close(result.signals, statistics(stored.astype(np.float64) * slope + inter, strategy, fwhm=fwhm))
    assert result.non_finite


@everywhere
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_run_of_nothing_finite(strategy, value):
    volumes = open_volumes(nib.Nifti1Image(np.full((*SHAPE, 3), value, np.float32), AFFINE))
    result = extract(some_plan(strategy=strategy), volumes)
    expected = np.zeros((3, len(IDS)))
    expected[:, IDS.index(9)] = 0 if strategy == "sum" else np.nan
    np.testing.assert_array_equal(result.signals, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("labels_on", ["parallel", "oblique"])
@pytest.mark.parametrize("fwhm", [None, 6.0])
@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (-2.0, 1000.0)])
def test_resampling_of_non_finite_voxels(tmp_path, device, strategy, labels_on, fwhm, slope, inter):
    """As nilearn: extrapolated, resampled, and 0 where the nearest voxel was none. (An infinite one ends its clip.)"""
    stored = broken_run("f8")
    stored[~np.isfinite(stored)] = np.nan
    volumes = open_volumes(write(tmp_path / "bold.nii", stored, slope, inter))
    result = extract(some_plan(labels_on, fwhm, strategy), volumes, device=device)
    expected = statistics(stored * slope + inter, strategy, labels_on=labels_on, fwhm=fwhm)
    assert_close(result.signals, expected)
    assert result.non_finite


@pytest.mark.parametrize("strategy", ["mean", "sum", "median", "minimum"])
@pytest.mark.parametrize("labels_on", ["parallel", "oblique"])
def test_infinite_voxels_are_resampled_as_missing_ones(strategy, labels_on):
    runs = [broken_run("f8"), broken_run("f8")]
    runs[1][~np.isfinite(runs[1])] = np.nan
    plan = some_plan(labels_on, strategy=strategy)
    with_inf, with_nan = (extract(plan, open_volumes(nib.Nifti1Image(run, AFFINE))).signals for run in runs)
    np.testing.assert_array_equal(with_inf, with_nan)


# Clipping to the range of the run


def edges(low, high, n=6, seed=0):
    """Noise of two values, which a spline overshoots everywhere, from `low` (its amplitude) to `high` over time."""
    signs = np.random.default_rng(seed).choice([-1.0, 0.3, 1.0], (*SHAPE, n))
    return signs * np.linspace(low, high, n)


CLIPPED = {
    "rising": edges(10, 100),
    "falling": edges(100, 10),
    "constant": edges(100, 100),
    "positive": edges(10, 100) + 200,
    "negative": -edges(10, 100) - 200,
}


@pytest.mark.parametrize("run", CLIPPED)
@pytest.mark.parametrize("labels_on", ["parallel", "oblique"])
@everywhere
def test_clips_to_the_range_of_the_whole_run(device, run, labels_on, strategy):
    volumes = open_volumes(nib.Nifti1Image(CLIPPED[run], AFFINE))
    expected = statistics(CLIPPED[run], strategy, labels_on=labels_on)
    for chunk in (1, 2, 16):
        result = extract(some_plan(labels_on, strategy=strategy), volumes, device=device, chunk=chunk)
        assert_close(result.signals, expected)


@pytest.mark.parametrize("run", ["rising", "positive"])
@pytest.mark.parametrize("strategy", ["mean", "sum", "median"])
@pytest.mark.parametrize("way", ["folded", "staged"])
def test_clips_before_smoothing(monkeypatch, device, run, strategy, way):
    monkeypatch.setattr(plans, "_NS_PER_WEIGHT", 1e9 if way == "staged" else 0.0)
    volumes = open_volumes(nib.Nifti1Image(CLIPPED[run], AFFINE))
    for labels_on in ("parallel", "oblique"):
        plan = some_plan(labels_on, 6.0, strategy)
        assert plan.way == ("staged" if strategy == "median" else way)
        expected = statistics(CLIPPED[run], strategy, labels_on=labels_on, fwhm=6.0)
        for chunk in (1, 16):
            assert_close(extract(plan, volumes, device=device, chunk=chunk).signals, expected)


@pytest.mark.parametrize("strategy", ["mean", "median"])
@pytest.mark.parametrize("labels_on", ["parallel", "oblique"])
@pytest.mark.parametrize("fwhm", [None, 6.0])
def test_clips_and_fills(device, strategy, labels_on, fwhm):
    """Where a missing voxel makes the result 0, there is no overshoot to take back."""
    values = edges(10, 100)
    values[np.random.default_rng(5).random(values.shape) < 0.2] = np.nan
    volumes = open_volumes(nib.Nifti1Image(values, AFFINE))
    expected = statistics(values, strategy, labels_on=labels_on, fwhm=fwhm)
    for chunk in (1, 16):
        plan = some_plan(labels_on, fwhm, strategy)
        assert_close(extract(plan, volumes, device=device, chunk=chunk).signals, expected)


def test_the_clip_matters():
    """Else the tests above would show nothing."""
    values = CLIPPED["constant"]
    unclipped = resample_img(nib.Nifti1Image(values, AFFINE), LABEL_AFFINES["parallel"], SHAPE, clip=False).get_fdata()
    unclipped = reference.flat(np.moveaxis(unclipped, -1, 0))
    means = reference.region_signals(unclipped, some_labels().ravel(order="F"), IDS, "mean")
    assert np.nanmax(np.abs(means - statistics(values, "mean", labels_on="parallel"))) > 0.1


# Memory, failures, progress


@pytest.mark.parametrize("labels_on", ["same", "parallel"])
@pytest.mark.parametrize("strategy", ["mean", "median"])
def test_memory_does_not_grow_with_the_run(tmp_path, labels_on, strategy):
    plan, peaks = some_plan(labels_on, strategy=strategy), []
    volume_bytes = 2 * np.prod(SHAPE)
    for n in (64, 640):
        volumes = open_volumes(write(tmp_path / f"{n}.nii.gz", stored_run(n=n)))
        extract(plan, volumes, n_threads=1)
        tracemalloc.start()
        extract(plan, volumes, n_threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1] - n * len(IDS) * 8)
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 100 * volume_bytes  # of 576 volumes more


def reducers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("gpumask-reduce")]


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("at", [1, 4])
def test_failure_of_a_reducer(tmp_path, monkeypatch, n_threads, at):
    """It surfaces as it is, ends the reading, and leaves no thread behind."""
    plan, calls = some_plan(), []
    reduce = plans.Plan.reduce

    def fail(plan, data, *options):
        calls.append(len(data))
        if len(calls) >= at:
            msg = f"call {len(calls)}"
            raise ArithmeticError(msg)
        return reduce(plan, data, *options)

    monkeypatch.setattr(plans.Plan, "reduce", fail)
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run(n=60)))
    with pytest.raises(ArithmeticError, match=r"^call \d+$") as caught:
        extract(plan, volumes, chunk=1, n_threads=n_threads)
    assert caught.value.__context__ is None
    assert len(calls) < at + 2 * (n_threads + 1)
    assert reducers() == []


@pytest.mark.parametrize("strategy", ["mean", "median"])
@on_grids
def test_failure_of_the_decoder(tmp_path, labels_on, strategy):
    path = write(tmp_path / "bold.nii.gz", stored_run(n=40))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"bold\.nii\.gz is truncated"):
        extract(some_plan(labels_on, strategy=strategy), open_volumes(path), chunk=1, n_threads=3)
    assert reducers() == []


def test_failure_of_the_callback():
    def progress(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(some_plan(), open_volumes(nib.Nifti1Image(stored_run(), AFFINE)), progress=progress, chunk=1)
    assert reducers() == []


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("strategy", ["mean", "median"])
@on_grids
def test_progress(tmp_path, chunk, labels_on, strategy):
    seen = []
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run()))
    plan = some_plan(labels_on, strategy=strategy)
    extract(plan, volumes, chunk=chunk, progress=lambda done: seen.append((done, threading.current_thread())))
    counts = [done for done, _ in seen]
    assert counts == [*range(chunk, N_VOLUMES, chunk), N_VOLUMES]
    assert {thread for _, thread in seen} == {threading.current_thread()}


def test_seconds(tmp_path):
    result = extract(some_plan(), open_volumes(write(tmp_path / "bold.nii", stored_run())))
    assert set(result.seconds) == {"read", "reduce", "total"}
    assert all(0 <= value < 60 for value in result.seconds.values())
    assert result.seconds["read"] <= result.seconds["total"]
    assert reducers() == []


def test_preparing_is_part_of_reducing(monkeypatch):
    monkeypatch.setattr(plans.Plan, "prepare", lambda self, **_: time.sleep(0.2))
    result = extract(some_plan(), open_volumes(nib.Nifti1Image(stored_run(), AFFINE)))
    assert result.seconds["reduce"] >= 0.2


@everywhere
@pytest.mark.parametrize("layout", ["C", "F"])
@on_grids
def test_users_arrays_are_left_alone(device, strategy, layout, labels_on):
    values = np.array(broken_run(), order=layout)
    image, before = nib.Nifti1Image(values, AFFINE), values.copy()
    extract(some_plan(labels_on, 6.0, strategy), open_volumes(image), device=device)
    extract(some_plan(labels_on, None, strategy), open_volumes(image), device=device)
    np.testing.assert_array_equal(values, before)
    assert values.flags.writeable


def test_blas_threads_are_borrowed(monkeypatch):
    """One thread each while our own share out the volumes, and as many as before afterwards."""
    seen, plan = [], some_plan("parallel", 6.0)

    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    def reduce(*arguments, reduce=plans.Plan.reduce):
        seen.extend(blas())
        return reduce(*arguments)

    monkeypatch.setattr(plans.Plan, "reduce", reduce)
    with threadpool_limits(2, user_api="blas"):
        before = blas()
        extract(plan, open_volumes(nib.Nifti1Image(stored_run(), AFFINE)))
        assert blas() == before
    assert set(seen) <= {1}
    assert bool(seen) == bool(before)
