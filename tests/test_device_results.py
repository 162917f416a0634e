"""Voxels that are cleaned on the GPU that computed them, and results that stay there."""

import re
import sys
import warnings
from dataclasses import replace
from functools import partial

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import gpumask
from gpumask import (
    MultiNiftiLabelsMasker,
    MultiNiftiMapsMasker,
    MultiNiftiMasker,
    NiftiLabelsMasker,
    NiftiMapsMasker,
    NiftiMasker,
    NiftiSpheresMasker,
    backend,
    blocks,
    cuda_runtime,
    transform_together,
)
from gpumask.backend import DeviceError
from gpumask.cleaner import Cleaner
from gpumask.engine import gpu_run
from gpumask.engine.staging import Staging, blank_volumes
from gpumask.engine.stream import run_plans
from gpumask.extraction import extract, prepare
from gpumask.images.volumes import open_volumes
from gpumask.settings import VoxelSettings

from .helpers import AFFINE, image
from .helpers import blocks as label_blocks

SHAPE, N = (6, 7, 8), 60
FAR = AFFINE + np.array([[0, 0, 0, 0.7], [0, 0, 0, -0.4], [0, 0, 0, 1.1], [0] * 4])
INSIDE = np.random.default_rng(3).random(SHAPE) < 0.6
MASK, LABELS = image(INSIDE.astype("u1")), image(label_blocks(shape=SHAPE))
MAPS = image(np.random.default_rng(4).random((*SHAPE, 3)))
CONFOUNDS = np.random.default_rng(5).normal(size=(N, 3))
KEPT = np.delete(np.arange(N), [0, 1, 17, 30])
CLEANINGS = {
    "none": {},
    "z-scores": {"detrend": True, "standardize": "zscore_sample", "low_pass": 0.1, "high_pass": 0.01, "t_r": 2.0},
    "psc": {"standardize": "psc"},
    "smoothed": {"detrend": True, "smoothing_fwhm": 5},
}
MASKERS = {
    "voxels": lambda **options: NiftiMasker(MASK, **options),
    "labels": lambda **options: NiftiLabelsMasker(LABELS, **options),
    "maps": lambda **options: NiftiMapsMasker(MAPS, **options),
    "spheres": lambda **options: NiftiSpheresMasker([(4, 0, 3), (0, 2, 0)], radius=5, allow_overlap=True, **options),
}
every_masker = pytest.mark.parametrize("kind", MASKERS)
needs_counts = pytest.mark.skipif("cpucuda" not in sys.modules, reason="only the emulated GPU counts")


def run(dtype="f4", affine=AFFINE, n=N):
    values = np.random.default_rng(0).normal(1000, 20, (*SHAPE, n)) + np.arange(n)
    return image(values.astype(dtype), affine)


def as_host(array):
    assert backend.is_cupy(array)
    return backend.to_host(array)


# Where results lie


@every_masker
@pytest.mark.parametrize("cleaning", CLEANINGS)
def test_the_device_holds_the_same_bits(gpu, kind, cleaning):
    there, host, cpu = (
        MASKERS[kind](device=device, output=output, **CLEANINGS[cleaning]).fit_transform(
            run("f8"), confounds=CONFOUNDS, sample_mask=KEPT
        )
        for device, output in ((gpu, "device"), (gpu, "host"), ("cpu", "device"))
    )
    assert type(host) is type(cpu) is np.ndarray
    np.testing.assert_array_equal(as_host(there), host)
    np.testing.assert_allclose(host, cpu, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["voxels", "labels"])
@pytest.mark.parametrize("asked", [None, "float64", "int32", "uint16", "float16", "auto"])
@pytest.mark.parametrize("stored", ["i2", "f8"])
def test_dtypes(gpu, kind, asked, stored):
    there, host = (
        MASKERS[kind](device=gpu, output=output, dtype=asked).fit_transform(run(stored, n=5))
        for output in ("device", "host")
    )
    assert there.dtype == host.dtype
    np.testing.assert_array_equal(as_host(there), host)


@every_masker
def test_a_single_volume(gpu, kind):
    one = image(np.asarray(run().dataobj)[..., 0])
    there, host = (MASKERS[kind](device=gpu, output=output).fit_transform(one) for output in ("device", "host"))
    assert there.shape == host.shape == (host.size,)
    np.testing.assert_array_equal(as_host(there), host)


def test_resampled_voxels_are_clipped_on_the_device(gpu):
    values = np.random.default_rng(0).choice([-100.0, 30.0, 100.0], (*SHAPE, 40))  # which a spline overshoots
    signals = {}
    for dtype in ("f8", "f4"):  # the second as differences from the first volume, which is clipped as well
        options = {"dtype": dtype, "low_pass": 0.2, "t_r": 2.0}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="imgs are being resampled")
            there, cpu = (
                NiftiMasker(MASK, device=device, output="device", **options).fit_transform(image(values, FAR))
                for device in (gpu, "cpu")
            )
        signals[dtype] = as_host(there)
        np.testing.assert_allclose(signals[dtype], cpu, rtol=0, atol=1e-10 if dtype == "f8" else 1e-3)
    np.testing.assert_allclose(signals["f4"], signals["f8"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("sample_mask", [None, np.arange(7, N)])
@pytest.mark.parametrize("stored", ["f4", "i2"])
def test_float32_keeps_differences_from_a_volume(gpu, sample_mask, stored):
    """Means of 1e5 would leave 5 digits of float32."""
    img = image((np.asarray(run("f8").dataobj) * 20).astype(stored))
    options = {"detrend": True, "smoothing_fwhm": 4, "t_r": 2.0, "high_pass": 0.01, "dtype": "float32"}
    there = NiftiMasker(MASK, device=gpu, output="device", **options).fit_transform(img, sample_mask=sample_mask)
    exact = NiftiMasker(MASK, device="cpu", **{**options, "dtype": "float64"}).fit_transform(
        img, sample_mask=sample_mask
    )
    assert there.dtype == np.float32
    assert np.abs(as_host(there) - exact).max() < 1e-6 * np.abs(exact).max()


def test_several_maskers_in_one_pass(gpu):
    options = {"detrend": True, "standardize": "zscore_sample"}
    maskers = [
        make(device=device, output=output, **options).fit()
        for make in (MASKERS["voxels"], MASKERS["labels"])
        for device in (gpu, "cpu")
        for output in ("device", "host")
    ]
    for masker, signals in zip(maskers, transform_together(maskers, run()), strict=True):
        assert backend.is_cupy(signals) == (masker.device == gpu and masker.output == "device")
        np.testing.assert_array_equal(backend.to_host(signals), backend.to_host(masker.transform(run())))


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: MultiNiftiMasker(MASK, **options),
        lambda **options: MultiNiftiLabelsMasker(LABELS, **options),
        lambda **options: MultiNiftiMapsMasker(MAPS, **options),
    ],
)
def test_lists_of_runs(gpu, make):
    runs = [run(), run("i2")]
    there, host = (make(device=gpu, output=output, detrend=True) for output in ("device", "host"))
    for results in (there.fit_transform(runs), there.transform(runs), there.transform_imgs(runs)):
        for one, expected in zip(results, host.fit_transform(runs), strict=True):
            np.testing.assert_array_equal(as_host(one), expected)
    message = (
        "output='device' needs one process, but n_jobs is 2: processes can't share a GPU's arrays. Use n_jobs=1, or "
        "output='host'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        there.set_params(n_jobs=2).transform(runs)


@pytest.mark.parametrize("kind", ["voxels", "labels", "maps"])
def test_signals_of_a_device_become_an_image(gpu, kind):
    there, host = (MASKERS[kind](device=gpu, output=output).fit() for output in ("device", "host"))
    images = [masker.inverse_transform(masker.transform(run())) for masker in (there, host)]
    np.testing.assert_array_equal(*(img.get_fdata() for img in images))


@pytest.mark.parametrize("kind", ["voxels", "labels"])
def test_memory_caches_on_the_host(gpu, kind, tmp_path, monkeypatch):
    options = {"detrend": True, "device": gpu, "output": "device"}
    expected = as_host(MASKERS[kind](**options).fit_transform(run()))
    read, run_all = [], gpumask.extraction.run_plans
    monkeypatch.setattr(gpumask.extraction, "run_plans", lambda *a, **k: read.append(1) or run_all(*a, **k))
    for _ in range(2):
        there = MASKERS[kind](**options, memory=joblib.Memory(tmp_path, verbose=0)).fit_transform(run())
        np.testing.assert_allclose(as_host(there), expected, rtol=0, atol=1e-10 if kind == "labels" else 1e-4)
    assert read == [1]


def test_pipelines_and_clones_pass_it_on(gpu):
    masker = clone(MASKERS["voxels"](device=gpu, output="device"))
    doubled = make_pipeline(masker, FunctionTransformer(lambda x: 2 * x)).fit_transform(run())
    np.testing.assert_array_equal(as_host(doubled), 2 * as_host(masker.fit().transform(run())))


# On the CPU, and errors


@every_masker
def test_the_cpu_returns_numpy_arrays(kind):
    on_cpu, usual = (MASKERS[kind](device="cpu", output=output).fit() for output in ("device", "host"))
    result = on_cpu.transform(run())
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, usual.transform(run()))
    np.testing.assert_array_equal(transform_together([on_cpu], run())[0], result)


@every_masker
@pytest.mark.parametrize("output", ["cuda", "cpu", "Device", None, True, ["device"]])
def test_other_outputs(kind, output):
    message = f"'output' must be one of ('host', 'device').\n'{output}' was provided."
    masker = MASKERS[kind](output=output)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        masker.fit()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MASKERS[kind]().fit().set_params(output=output).transform(run())


@every_masker
@pytest.mark.parametrize("table", ["pandas", "polars"])
def test_no_tables(kind, table):
    masker = MASKERS[kind](device="cpu", output="device").fit()
    if table == "polars":
        pytest.importorskip("polars")
    masker.set_output(transform=table)
    message = (
        f"output='device' leaves an array, but set_output(transform='{table}') requests a table. Use "
        "set_output(transform='default'), or output='host'."
    )
    for call in (masker.transform, lambda img: transform_together([masker], img)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(run())
    assert masker.set_output(transform="default").transform(run()).shape[0] == N


@every_masker
@pytest.mark.parametrize("dtype", [">f4", ">i2", np.longdouble, np.clongdouble])
def test_dtypes_that_no_gpu_has(kind, dtype):
    message = (
        f"dtype={dtype!r} can't be held by a GPU: use a dtype of at most 64 bits in native byte order, or "
        "output='host'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MASKERS[kind](device="cpu", output="device", dtype=dtype).fit_transform(run())
    assert MASKERS[kind](device="cpu", dtype=dtype).fit_transform(run()).dtype == np.dtype(dtype)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_dtypes_that_do_not_hold_the_signals(device):
    message = "dtype='uint8' can't hold the signals of in-memory image, which reach from "
    masker = NiftiMasker(MASK, device=device, output="device", dtype="uint8").fit()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        masker.transform(run())


def test_no_shelving(tmp_path):
    masker = NiftiMasker(MASK, device="cpu", output="device", memory=joblib.Memory(tmp_path, verbose=0)).fit()
    masker._shelving = True
    message = "_shelving keeps signals on disk, so they can't stay on a device: use output='host'."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        masker.transform(run())


# What travels


@pytest.fixture
def copies():
    """Call it with a function: how many copies and waits the function makes, as the emulated GPU counts them."""
    counters = sys.modules["cpucuda"].counters

    def of(function):
        before = counters()
        function()
        return {name: counters()[name] - before[name] for name in ("h2d", "d2h", "syncs")}

    return of


# Downloads of a run of voxels: the probe of a new plan's device, flags, which volumes are blank; and the result.
PROBE, FLAGS, BLANK, RESULT = 1, 1, 1, 1


@needs_counts
@pytest.mark.parametrize("cleaning", ["none", "z-scores", "smoothed"])
@pytest.mark.parametrize("of_block", [None, 40_000])
def test_voxels_come_down_once_or_not_at_all(gpu, copies, monkeypatch, cleaning, of_block):
    img = run()
    if of_block:
        monkeypatch.setattr(blocks, "_MOST", of_block)  # several blocks are cleaned
    host, there = (
        NiftiMasker(MASK, device=gpu, output=output, **CLEANINGS[cleaning]).fit() for output in ("host", "device")
    )
    for masker in (host, there):  # their plans are on the device from here on
        masker.transform(img)
    counted = [copies(partial(masker.transform, img)) for masker in (host, there, host)]
    assert [count["d2h"] for count in counted] == [FLAGS + BLANK + RESULT, FLAGS + BLANK, FLAGS + BLANK + RESULT]
    if not of_block:  # chunks, and what cleaning step by step needs for each block: drifts, the filter
        assert counted[0]["h2d"] - -(-N // 16) == {"none": 0, "z-scores": 2, "smoothed": 1}[cleaning]


@needs_counts
def test_blocks_of_a_product_are_neither_copied_nor_awaited(gpu, copies, monkeypatch):
    monkeypatch.setattr(Cleaner, "way", lambda self, n_series: "product")
    cleaner = Cleaner(N, detrend=True, t_r=2.0, high_pass=0.01, confounds=CONFOUNDS)
    x = np.random.default_rng(0).normal(size=(N, 300)) + 1000
    base, expected = x[0].copy(), cleaner.operator(x)
    counted = []
    for most in (10**9, 96 * N * 100, 96 * N * 10):  # blocks of 300, 100 and 10 series
        monkeypatch.setattr(blocks, "_MOST", most)
        staged, of_base = backend.to_device(x - base, gpu), backend.to_device(base, gpu)
        counted.append(copies(partial(cleaner.in_place, staged, of_base)))
        np.testing.assert_allclose(backend.to_host(staged), expected, rtol=1e-9, atol=1e-9)
    assert counted == [{"h2d": 2, "d2h": 0, "syncs": counted[0]["syncs"]}] * 3  # the operator's matrix and mean
    assert counted[0]["syncs"] <= 2


@needs_counts
def test_signals_of_regions_go_down_and_up_once(gpu, copies):
    img = run()
    host, there = (NiftiLabelsMasker(LABELS, device=gpu, output=o, detrend=True).fit() for o in ("host", "device"))
    for masker in (host, there):
        masker.transform(img)
    down, up = (copies(partial(masker.transform, img)) for masker in (host, there))
    assert down["d2h"] == up["d2h"] == 1
    assert up["h2d"] == down["h2d"] + 1


@needs_counts
def test_correlation_maps_come_down_in_blocks_or_not_at_all(gpu, copies, monkeypatch):
    masker = NiftiLabelsMasker(LABELS, device=gpu, detrend=True, mask_img=MASK).fit()
    n_voxels, of_column = int(INSIDE.sum()), 3 * (N + 4) * 4
    correlate = lambda output: gpumask.correlation_maps(masker, run(), output=output)  # noqa: E731
    correlate("host")
    for n_blocks in (1, 4):
        monkeypatch.setattr(blocks, "_MOST", of_column * -(-n_voxels // n_blocks))
        down, stays = (copies(partial(correlate, output)) for output in ("host", "device"))
        assert stays["d2h"] == PROBE + FLAGS + BLANK  # the flags with the signals of the regions
        assert down["d2h"] == stays["d2h"] + n_blocks


# The device's memory


class Counting:
    """An allocator like RMM's, of which CuPy can't tell what is free; it refuses what `refuses` says."""

    def __init__(self, refuses=lambda size, used: False):
        import cupy

        self.pool, self.refuses, self.largest, self.refused = cupy.cuda.MemoryPool(), refuses, 0, 0
        self.error = cupy.cuda.memory.OutOfMemoryError

    def __call__(self, size):
        if self.refuses(size, self.pool.used_bytes()):
            self.refused += 1
            raise self.error(size, 0)
        memory = self.pool.malloc(size)
        self.largest = max(self.largest, self.pool.used_bytes())
        return memory

    def used(self):
        import cupy

        return cupy.cuda.using_allocator(self)


@pytest.mark.parametrize("way", ["steps", "product"])
@pytest.mark.parametrize("cleaning", ["z-scores", "psc"])
def test_blocks_shrink_until_they_fit(gpu, monkeypatch, way, cleaning):
    monkeypatch.setattr(Cleaner, "way", lambda self, n_series: way)
    options = {name: value for name, value in CLEANINGS[cleaning].items() if name != "smoothing_fwhm"}
    cleaner = Cleaner(N, confounds=CONFOUNDS, **{"detrend": False, **options})
    x = np.random.default_rng(0).normal(size=(N, 300)) + 1000
    expected = cleaner.in_place(x.copy())
    staged = backend.to_device(x, gpu)
    allocator = Counting(lambda size, used: size > 8 * N * 80)  # no array of more than 80 series
    with allocator.used():
        cleaner.in_place(staged)
    assert allocator.refused >= 2
    np.testing.assert_allclose(backend.to_host(staged), expected, rtol=1e-9, atol=1e-9)


def test_blocks_fit_free_memory_from_the_start(gpu, monkeypatch):
    sizes = []
    monkeypatch.setattr(cuda_runtime, "device_memory", lambda: (1000, 10**9))
    like = backend.to_device(np.zeros(0), gpu)
    for own, step in ((True, 10), (False, 25)):
        monkeypatch.setattr(cuda_runtime, "uses_own_pool", lambda own=own: own)
        assert blocks.each_block(lambda block: sizes.append(block) or block.start, 25, 100, like) == list(
            range(0, 25, step)
        )
    assert sizes == [slice(0, 10), slice(10, 20), slice(20, 25), slice(0, 25)]


def test_a_single_column_that_does_not_fit(gpu):
    import cupy

    tried = []

    def full(block):
        tried.append(block)
        raise cupy.cuda.memory.OutOfMemoryError(512, 0)

    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        blocks.each_block(full, 9, 10**8, backend.to_device(np.zeros(0), gpu))
    assert [block.stop for block in tried] == [5, 2, 1]

    def wrong(block):
        raise ValueError("another problem")

    with pytest.raises(ValueError, match=r"^another problem$"):
        blocks.each_block(wrong, 9, 1, backend.to_device(np.zeros(0), gpu))


def voxels_of(img, gpu, **options):
    volumes, settings = open_volumes(img), VoxelSettings(detrend=True, standardize="zscore_sample", **options)
    regions = NiftiMasker(MASK, device="cpu").fit()._regions
    return prepare(volumes, regions, settings, CONFOUNDS, device=gpu), volumes


@pytest.mark.parametrize("fwhm", [None, 5])
@pytest.mark.parametrize("stored", ["f4", "f8"])
def test_signals_that_do_not_fit_are_kept_on_the_host(gpu, fwhm, stored):
    prepared, volumes = voxels_of(run(stored), gpu, smoothing_fwhm=fwhm)
    (expected,) = extract([prepared], volumes)
    n_bytes = N * int(INSIDE.sum()) * np.dtype(stored).itemsize
    for refuses in (
        lambda size, used: size >= n_bytes,  # never
        lambda size, used: used > n_bytes + 20_000,  # not what reducing a volume needs besides: after some time
    ):
        allocator = Counting(refuses)
        with allocator.used():
            (result,) = extract([prepared], volumes)
        assert allocator.refused
        atol = 1e-10 if stored == "f8" else 1e-5
        np.testing.assert_allclose(result.signals, expected.signals, rtol=0, atol=atol)
    (on_device,) = extract([replace(prepared, output="device")], volumes)
    np.testing.assert_array_equal(as_host(on_device.signals), expected.signals)


@pytest.mark.parametrize("number", [1, 3, 9, 20])
def test_memory_that_runs_out_in_the_middle(gpu, number):
    """Reducing fails once, at one volume at a time: what was kept on the device so far is moved."""
    import cupy

    prepared, volumes = voxels_of(run("f4"), gpu, smoothing_fwhm=5)
    reduce, calls = type(prepared.plan).reduce, []
    (expected,) = extract([prepared], volumes)

    def failing(plan, data, *arguments):
        calls.append(len(data))
        if number <= len(calls) < number + 5:
            raise cupy.cuda.memory.OutOfMemoryError(512, 0)
        return reduce(plan, data, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(prepared.plan), "reduce", failing)
        (result,) = extract([replace(prepared, output=None)], volumes)
    if number <= 4:
        assert type(result.signals) is np.ndarray
        assert 1 in calls  # halved until a volume at a time
        assert calls[-1] > 1  # and no longer, once there is room
    np.testing.assert_allclose(backend.to_host(result.signals), expected.signals, rtol=0, atol=1e-5)


def test_no_memory_at_all_is_an_error(gpu):
    prepared, volumes = voxels_of(run("f4"), gpu)
    (expected,) = extract([prepared], volumes)
    with (
        Counting(lambda size, used: True).used(),
        pytest.raises(DeviceError, match=r"^cuda:0 is out of memory, with a single volume of 0\.0 MiB at a time: "),
    ):
        extract([prepared], volumes)
    np.testing.assert_array_equal(extract([prepared], volumes)[0].signals, expected.signals)


def test_a_result_that_does_not_fit_is_an_error(gpu):
    prepared, volumes = voxels_of(run("f4"), gpu)
    n_bytes = 4 * N * int(INSIDE.sum())
    message = (
        r"^cuda:0 is out of memory: OutOfMemoryError: .*\. Stop other processes that use it: see nvidia-smi\. Or use"
    )
    with Counting(lambda size, used: size >= n_bytes).used(), pytest.raises(DeviceError, match=message):
        extract([replace(prepared, output="device")], volumes)


@pytest.mark.parametrize("fisher_z", [False, True])
def test_correlation_maps_of_voxels_that_do_not_fit(gpu, fisher_z):
    masker = NiftiLabelsMasker(LABELS, mask_img=MASK, detrend=True)
    scored = {"detrend": True, "standardize": "zscore_sample", "device": "cpu"}
    regions = NiftiLabelsMasker(LABELS, mask_img=MASK, **scored).fit_transform(run("f8"))
    expected = regions.T @ NiftiMasker(MASK, **scored).fit_transform(run("f8")) / (N - 1)
    expected = np.arctanh(expected) if fisher_z else expected
    n_bytes = 8 * N * int(INSIDE.sum())
    allocator = Counting(lambda size, used: size >= n_bytes)
    with allocator.used():
        maps = gpumask.correlation_maps(masker.set_params(device=gpu).fit(), run("f8"), fisher_z=fisher_z)
    assert allocator.refused
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-10)


def test_less_memory_than_float64_of_all_signals(gpu):
    """float32 signals take half of what they took, and cleaning little besides."""
    prepared, volumes = voxels_of(run("f4"), gpu, smoothing_fwhm=None)
    extract([prepared], volumes)
    allocator = Counting()
    with pytest.MonkeyPatch.context() as patch, allocator.used():
        patch.setattr(blocks, "_MOST", 96 * N * 4)  # four series at a time
        patch.setattr(gpu_run, "_BUFFERS", 1)
        run_plans([prepared.plan], volumes, stagings=[Staging(np.float32, None, on_device=True)], chunk=1)
    n_bytes = N * int(INSIDE.sum())
    assert 4 * n_bytes < allocator.largest < 6 * n_bytes


# Order, and precision


def test_signals_of_voxels_wait_for_the_callers_stream(gpu, monkeypatch):
    """The pool may hand them memory that kernels in the caller's stream still use; and it uses them afterwards."""
    order, stream, reduce = [], cuda_runtime.stream, gpu_run.GpuRun._reduce

    class Marked:
        def __init__(self, event):
            self.event = event

        def record(self, stream=None):
            self.of = stream
            self.event.record(stream)

        def __getattr__(self, name):
            return getattr(self.event, name)

    class Watched:
        def __init__(self, of):
            self.of = of

        def wait_event(self, event):
            order.append("wait" if getattr(event, "of", None) == cuda_runtime.current_stream() else "other")
            self.of.wait_event(getattr(event, "event", event))

        def synchronize(self):
            order.append("synchronize")
            self.of.synchronize()

        def __enter__(self):
            self.of.__enter__()

        def __exit__(self, *error):
            self.of.__exit__(*error)

        def __getattr__(self, name):
            return getattr(self.of, name)

    masker = NiftiMasker(MASK, device=gpu, output="device").fit()
    expected = as_host(masker.transform(run()))
    new_event = cuda_runtime.new_event
    monkeypatch.setattr(cuda_runtime, "new_event", lambda: Marked(new_event()))
    monkeypatch.setattr(cuda_runtime, "upload", lambda source, target, stream: target.set(source))
    monkeypatch.setattr(cuda_runtime, "seconds_between", lambda first, last: 0.0)
    monkeypatch.setattr(gpu_run.GpuRun, "_reduce", lambda *a: (order.append("reduce"), reduce(*a)))
    monkeypatch.setattr(cuda_runtime, "stream", lambda name: Watched(stream(name)))
    np.testing.assert_array_equal(as_host(masker.transform(run())), expected)
    assert "wait" in order[: order.index("reduce")]
    assert "synchronize" in order[len(order) - order[::-1].index("reduce") :]


@pytest.mark.parametrize(
    ("options", "most"), [({"detrend": True, "standardize": "zscore_sample", "high_pass": 0.01}, 1e-5), ({}, 1e-3)]
)
def test_float32_products_on_request(gpu, monkeypatch, options, most):
    monkeypatch.setattr(Cleaner, "way", lambda self, n_series: "product")
    options = {"low_pass": 0.1, "t_r": 2.0, **options}
    img = image(np.asarray(run("f8").dataobj) + 1e6)
    exact, single = (
        as_host(NiftiMasker(MASK, device=gpu, output="device", clean_args=given, **options).fit_transform(img))
        for given in (None, {"precision": "float32"})
    )
    assert exact.dtype == single.dtype == np.float64
    assert 1e-8 < np.abs(single - exact).max() < most


# Kept signals


@pytest.mark.parametrize("base", [False, True])
def test_blank_volumes_are_the_same(gpu, base):
    rng = np.random.default_rng(0)
    of_base = rng.normal(size=300).astype("f4").astype("f8") if base else None
    values = rng.normal(size=(9, 300)).astype("f4")
    values[[2, 5]] = -of_base if base else 0.0
    values[5, 200], values[7] = np.nan, 0.0
    expected = blank_volumes(values, of_base)
    assert expected.tolist() == ([2] if base else [2, 7])
    there = backend.to_device(values, gpu), None if of_base is None else backend.to_device(of_base, gpu)
    for at_once in (2**24, 700):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gpumask.engine.staging._COMPARED", at_once)
            np.testing.assert_array_equal(blank_volumes(*there), expected)


@pytest.mark.parametrize("base_volume", [None, 0, 3, 7])
def test_parts_may_be_put_again(gpu, base_volume):
    signals = np.random.default_rng(0).normal(1000, 1, (8, 5))
    staging = Staging(np.float32, base_volume)
    here, there = staging.staged(8, 5), staging.staged(8, 5, backend.to_device(np.zeros(0), gpu))
    for rows in (slice(0, 2), slice(2, 5), slice(2, 3), slice(3, 5), slice(5, 8)):
        here.put(rows, signals[rows].copy())
        there.put(rows, backend.to_device(signals[rows], gpu))
    there.move_to_host()
    np.testing.assert_array_equal(there.values, here.values)
    if base_volume is not None:
        np.testing.assert_array_equal(there.base, here.base)
        assert np.abs(here.values + here.base - signals)[base_volume:].max() < 1e-6
        assert np.abs(here.values + here.base - signals).max() < 1e-3  # rounded before there was a base
