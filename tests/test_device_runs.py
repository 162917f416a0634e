"""Runs that lie on the GPU: the same numbers as from host memory, and no transfer of the run."""

import re
import sys
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pytest

import gpumask
from gpumask import backend, cuda_runtime, devices, dlpack
from gpumask.engine.stream import run_plans
from gpumask.images.errors import DimensionError, ImageError
from gpumask.images.volumes import Chunk, open_volumes

from .foreign import Foreign
from .runs import AFFINE, LABEL_AFFINES, SHAPE, extract, on, some_labels, some_plan, stored_run

N = 22
LABELS = {name: nib.Nifti1Image(some_labels().astype("i4"), affine) for name, affine in LABEL_AFFINES.items()}
MASK = nib.Nifti1Image((some_labels(3) > 0).astype("i1"), AFFINE)
MAPS = nib.Nifti1Image(np.random.default_rng(0).random((*SHAPE, 3)), AFFINE)
CONFOUNDS = np.random.default_rng(1).standard_normal((N, 2))
KEPT = np.delete(np.arange(N), [4, 5])

pytestmark = pytest.mark.gpu


def placed(gpu, stored, order="F"):
    """A CuPy array of these values: in an order, or as torch has images, with time first."""
    there = backend.to_device(stored, gpu)
    xp = backend.array_namespace(there)
    if order == "F":
        return xp.asfortranarray(there)
    if order == "C":
        return xp.ascontiguousarray(there)
    if order == "time first":
        return xp.ascontiguousarray(xp.moveaxis(there, -1, 0)).transpose(1, 2, 3, 0)
    return xp.repeat(there, 2, axis=0)[::2]  # a view with gaps


FORMS = {
    "image": lambda array: nib.Nifti1Image(array, AFFINE, dtype=array.dtype),
    "pair": lambda array: (array, AFFINE),
    "foreign pair": lambda array: (Foreign(array), AFFINE.tolist()),
    "pair with its affine there": lambda array: (array, backend.like(AFFINE, array)),
}
MASKERS = {
    "mean": lambda **o: gpumask.NiftiLabelsMasker(LABELS["same"], **o),
    "folded": lambda **o: gpumask.NiftiLabelsMasker(LABELS["same"], smoothing_fwhm=6, standardize="psc", **o),
    "median": lambda **o: gpumask.NiftiLabelsMasker(LABELS["same"], strategy="median", **o),
    "staged": lambda **o: gpumask.NiftiLabelsMasker(LABELS["same"], smoothing_fwhm=6, strategy="maximum", **o),
    "resampled": lambda **o: gpumask.NiftiLabelsMasker(LABELS["oblique"], resampling_target="labels", **o),
    "resampled median": lambda **o: gpumask.NiftiLabelsMasker(
        LABELS["parallel"], resampling_target="labels", strategy="median", **o
    ),
    "omit": lambda **o: gpumask.NiftiLabelsMasker(LABELS["same"], nan_policy="omit", **o),
    "maps": lambda **o: gpumask.NiftiMapsMasker(MAPS, **o),
    "spheres": lambda **o: gpumask.NiftiSpheresMasker([(1, 2, 3)], radius=8, mask_img=MASK, **o),
    "voxels": lambda **o: gpumask.NiftiMasker(MASK, smoothing_fwhm=5, detrend=True, **o),
    "high variance": lambda **o: gpumask.NiftiLabelsMasker(LABELS["same"], high_variance_confounds=True, **o),
}
every_masker = pytest.mark.parametrize("kind", MASKERS)
quiet = pytest.mark.filterwarnings("ignore:Resampling:UserWarning", "ignore:Non-finite:UserWarning")


def with_holes(stored):
    if stored.dtype.kind == "f":
        stored = stored.copy(order="F")
        stored[2, 3, 4, 5], stored[5, 5, 5, 9] = np.nan, np.inf
    return stored


@quiet
@every_masker
@pytest.mark.parametrize("dtype", ["i2", "f8"])
def test_the_numbers_are_those_of_host_memory(gpu, kind, dtype):
    stored = with_holes(stored_run(dtype, N))
    options = {"dtype": "f8"}
    expected = MASKERS[kind](device=gpu, **options).fit().transform(FORMS["pair"](stored), CONFOUNDS, KEPT)
    on_cpu = MASKERS[kind](device="cpu", **options).fit().transform(FORMS["pair"](stored), CONFOUNDS, KEPT)
    masker = MASKERS[kind](**options).fit()
    for order in ("F", "C"):
        given = placed(gpu, stored, order)
        for form in ("image", "foreign pair"):
            signals = masker.transform(FORMS[form](given), CONFOUNDS, KEPT)
            np.testing.assert_array_equal(signals, expected)  # the same bits as of a run that is uploaded
            np.testing.assert_allclose(signals, on_cpu, rtol=1e-12, atol=1e-12 * np.nanmax(np.abs(on_cpu)))
        np.testing.assert_array_equal(given.get(), stored)
    assert masker.plan_.device == gpu
    assert masker.plan_.placement == "on the GPU: the run lies there"
    assert "on the GPU: the run lies there" in masker.explain()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ["F", "C", "time first", "gaps"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "u2", "i8", "u8", "f4"])
def test_every_dtype_order_and_form(gpu, dtype, order, form):
    stored = stored_run(dtype, 5)
    expected = gpumask.NiftiLabelsMasker(LABELS["same"], device="cpu").fit_transform((stored, AFFINE))
    masker = gpumask.NiftiLabelsMasker(LABELS["same"])
    signals = masker.fit_transform(FORMS[form](placed(gpu, stored, order)))
    np.testing.assert_allclose(signals, expected, rtol=1e-12 if expected.dtype == np.float64 else 1e-6)
    again = gpumask.NiftiLabelsMasker(LABELS["same"], device=gpu)
    np.testing.assert_array_equal(again.fit_transform(FORMS[form](placed(gpu, stored, order))), signals)


def test_a_3d_array_is_one_volume(gpu):
    stored = stored_run("f4", 1)[..., 0]
    expected = gpumask.NiftiLabelsMasker(LABELS["same"], device="cpu").fit_transform((stored, AFFINE))
    for order in (np.asfortranarray, np.ascontiguousarray):
        there = backend.to_device(order(stored), gpu)
        for given in ((there, AFFINE), [(there, AFFINE)]):
            signals = gpumask.NiftiLabelsMasker(LABELS["same"]).fit_transform(given)
            np.testing.assert_array_equal(np.squeeze(signals), expected)
        assert signals.shape == (1, len(expected))  # of a list


def test_several_maskers_and_runs(gpu):
    stored = stored_run("f4", N)
    run = (placed(gpu, stored, "C"), AFFINE)
    names = ("mean", "median", "voxels", "maps")
    maskers = [MASKERS[name]().fit() for name in names]
    for name, signals in zip(names, gpumask.transform_together(maskers, run), strict=True):
        np.testing.assert_array_equal(signals, MASKERS[name]().fit().transform(run))
    several = gpumask.MultiNiftiLabelsMasker(LABELS["same"])
    both = several.fit_transform([run, (placed(gpu, stored[..., :7]), AFFINE)])
    np.testing.assert_array_equal(both[0], maskers[0].transform(run))
    np.testing.assert_array_equal(both[1], both[0][:7])
    np.testing.assert_array_equal(several.transform(run), both[0])


@quiet
def test_images_and_maps_of_such_runs(gpu):
    stored = with_holes(stored_run("f8", N))
    host, there = (stored, AFFINE), (placed(gpu, stored, "C"), AFFINE)
    masker = gpumask.NiftiLabelsMasker(LABELS["same"], mask_img=MASK, detrend=True).fit()
    for function, options in (
        (lambda run, **o: gpumask.clean_img(run, confounds=CONFOUNDS, ensure_finite=True, **o).get_fdata(), ("auto",)),
        (lambda run, **o: gpumask.clean_img(run, mask_img=MASK, **o).get_fdata(), (gpu, "auto")),
        (lambda run, **o: gpumask.smooth_img(run, 5).get_fdata(), ("",)),
        (lambda run, **o: gpumask.correlation_maps(masker, run), ("",)),
    ):
        expected = function(host)
        for device in options:
            np.testing.assert_allclose(function(there, device=device), expected, rtol=1e-10, atol=1e-10)


def test_atlases_masks_and_maps_may_lie_there(gpu):
    def moved(img):
        return placed(gpu, np.asarray(img.dataobj), "C"), img.affine

    run = (stored_run("f4", 5), AFFINE)
    for make, *images in (
        (lambda labels, mask: gpumask.NiftiLabelsMasker(labels, mask_img=mask), LABELS["same"], MASK),
        (gpumask.NiftiMapsMasker, MAPS),
        (gpumask.NiftiMasker, MASK),
    ):
        expected = make(*images).set_params(device="cpu").fit_transform(run) if len(images) > 1 else None
        expected = make(*images).fit().transform(run) if expected is None else expected
        np.testing.assert_array_equal(make(*map(moved, images)).fit().transform(run), expected)


def test_reports_download_one_volume(gpu, sizes):
    pytest.importorskip("matplotlib")
    masker = gpumask.NiftiLabelsMasker(LABELS["same"])
    masker.fit_transform((placed(gpu, stored_run("f4", N), "C"), AFFINE))
    sizes.clear()
    page = str(masker.generate_report())
    assert sizes == [np.prod(SHAPE)]
    assert "the run lies there" in page


# Transfers


@pytest.fixture
def counters(gpu):
    if "cpucuda" not in sys.modules:
        pytest.skip("only the emulated GPU counts")
    return sys.modules["cpucuda"].counters


@pytest.fixture
def sizes(monkeypatch):
    """Sizes of all arrays that are copied to the host, and whether a page-locked buffer is used."""
    found, to_host = [], backend.to_host

    def spied(array):
        if backend.is_cupy(array):
            found.append(array.size)
        return to_host(array)

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(backend, "to_host", spied)
    monkeypatch.setattr(cuda_runtime, "upload", refuse)
    monkeypatch.setattr(cuda_runtime, "pinned_memory", refuse)
    return found


PLANS = {
    "direct": ("same", None, "mean"),
    "median": ("same", None, "median"),
    "folded": ("same", 6.0, "sum"),
    "staged": ("same", 6.0, "maximum"),
}


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("dtype", ["i2", "f4"])
@pytest.mark.parametrize("plan", PLANS)
def test_nothing_travels_but_the_result(gpu, counters, sizes, plan, dtype, order):
    """A run of 16 volumes needs as many copies and waits as one of 4."""
    counts, plan = [], some_plan(*PLANS[plan])
    runs = [placed(gpu, stored_run(dtype, n), order) for n in (4, 4, 16)]
    for run in runs:
        volumes = open_volumes((run, AFFINE))
        before = counters()
        signals = extract(plan, volumes, device=gpu, chunk=4).signals
        counts.append({name: counters()[name] - count for name, count in before.items()})
        assert sizes == [signals.size + len(signals)]  # and a flag for each volume
        sizes.clear()
    _, short, long = counts  # the first one uploads the plan
    assert short["h2d"] == long["h2d"] == 0
    assert short["d2h"] == long["d2h"] == 1
    assert short["syncs"] == long["syncs"]


@pytest.mark.parametrize("plan", PLANS)
def test_a_chunk_in_another_order_takes_one_launch_more(gpu, counters, plan):
    plan, launches = some_plan(*PLANS[plan]), {}
    for order in ("F", "F", "C", "time first"):  # the first one uploads the plan
        volumes = open_volumes((placed(gpu, stored_run("f4", 20), order), AFFINE))
        before = counters()["launches"]
        extract(plan, volumes, device=gpu, chunk=4)
        launches[order] = counters()["launches"] - before
    assert launches["C"] == launches["time first"] == launches["F"] + 5


@quiet
@every_masker
def test_no_masker_downloads_the_run(gpu, sizes, kind):
    stored = stored_run("f8", N)
    run = nib.Nifti1Image(placed(gpu, stored, "C"), AFFINE)
    masker = MASKERS[kind]().fit()
    signals = masker.transform(run)
    if kind == "voxels":  # the signals are most of the run
        assert sum(sizes) <= 3 * signals.size
    else:
        assert sum(sizes) < stored.size / 3


def test_opening_waits_for_the_current_stream(gpu, monkeypatch):
    """Other streams read the run; they don't wait for what fills it."""
    order, wait = [], cuda_runtime.await_current_stream
    monkeypatch.setattr(cuda_runtime, "await_current_stream", lambda device: (order.append(device), wait(device)))
    volumes = open_volumes((Foreign(placed(gpu, stored_run())), AFFINE))
    assert order == [gpu]
    extract(some_plan(), volumes, device=gpu)
    assert order == [gpu]


def test_streams_of_users_are_awaited(gpu):
    import cupy

    class Recorded(cupy.cuda.Stream):
        waits = 0

        def synchronize(self):
            type(self).waits += 1
            super().synchronize()

    with Recorded(non_blocking=True):
        open_volumes((placed(gpu, stored_run()), AFFINE))
    assert Recorded.waits == 1


@pytest.mark.parametrize("order", ["F", "C"])
def test_fewer_volumes_where_memory_is_short(gpu, order, monkeypatch):
    """Copies of volumes in C order take memory: the same bits with fewer at a time."""
    import cupy

    run = (placed(gpu, stored_run("f4", N), order), AFFINE)
    expected = extract(some_plan(), open_volumes(run), device=gpu).signals
    rows, taken = Chunk.rows, []

    def short(chunk, chosen=slice(None)):
        part = rows(chunk, chosen)
        if len(part) > 3:
            raise cupy.cuda.memory.OutOfMemoryError(1, 2, 3)
        taken.append(len(part))
        return part

    monkeypatch.setattr(Chunk, "rows", short)
    np.testing.assert_array_equal(extract(some_plan(), open_volumes(run), device=gpu).signals, expected)
    assert max(taken) in (2, 3)
    assert sum(taken) == N


# Caches


def test_memory_keeps_plans_but_not_signals(gpu, tmp_path, sizes):
    stored = stored_run("f4", N)
    first, other = ((placed(gpu, stored * factor), AFFINE) for factor in (1, 2))
    options = {"memory": joblib.Memory(tmp_path, verbose=0), "high_variance_confounds": True}
    plain = gpumask.NiftiLabelsMasker(LABELS["same"], high_variance_confounds=True).fit()
    kept = gpumask.NiftiLabelsMasker(LABELS["same"], **options).fit()
    for run in (first, other, first):
        np.testing.assert_array_equal(kept.transform(run), plain.transform(run))
    assert max(sizes) < stored.size / 3  # no bytes for a key
    folders = {path.parent.parent.name for path in Path(tmp_path).rglob("output.pkl")}
    assert folders == {"_compile"}


IDENTITY = (
    "in-memory image lies on cuda:0: to keep its signals in a cache, its bytes would have to be downloaded. Pass a "
    "copy in host memory, or use no cache."
)


def test_shelving_is_refused(gpu, tmp_path):
    masker = gpumask.NiftiMasker(MASK, memory=joblib.Memory(tmp_path, verbose=0)).fit()
    masker._shelving = True
    for call in (masker.transform, lambda run: open_volumes(run).identity()):
        with pytest.raises(ImageError, match=f"^{re.escape(IDENTITY)}$"):
            call((placed(gpu, stored_run()), AFFINE))


# Errors

LIES = "The run lies on {}, but device={!r} was requested. Use device={!r} or 'auto', or {}."
CPU = LIES.format("cuda:0", "cpu", "cuda:0", "pass a copy in host memory")


def test_a_plan_on_the_cpu_is_an_error(gpu):
    run = (placed(gpu, stored_run()), AFFINE)
    on_cpu = gpumask.NiftiLabelsMasker(LABELS["same"], mask_img=MASK, device="cpu").fit()
    auto = gpumask.NiftiLabelsMasker(LABELS["same"]).fit()
    for call in (
        on_cpu.transform,
        lambda run: gpumask.transform_together([auto, on_cpu], run),
        lambda run: gpumask.correlation_maps(on_cpu, run),
        gpumask.clean_img,
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(CPU)}$"):
            call(run)


def test_another_gpu_is_an_error(gpu, monkeypatch):
    run = (placed(gpu, stored_run()), AFFINE)
    monkeypatch.setattr(dlpack, "lies_on", lambda array: "cuda:1" if backend.is_cupy(array) else "cpu")
    monkeypatch.setattr(cuda_runtime, "await_current_stream", lambda device: None)
    for device in ("cuda", "cuda:0"):
        message = LIES.format("cuda:1", device, "cuda:1", f"copy the run to {device} first")
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            gpumask.NiftiLabelsMasker(LABELS["same"], device=device).fit().transform(run)


@pytest.mark.parametrize(("device", "data_on"), [("auto", "cuda:1"), ("cuda:1", "cuda:1"), ("cuda", "cuda:0")])
def test_the_device_of_the_run_is_chosen(device, data_on):
    assert devices.resolve_device(device, data_on) == data_on


def test_the_same_masker_serves_runs_on_host_and_gpu(gpu):
    """The choice isn't remembered for runs elsewhere."""
    masker, stored = gpumask.NiftiLabelsMasker(LABELS["same"]).fit(), stored_run()
    for run, device in (
        ((stored, AFFINE), "cpu"),
        ((placed(gpu, stored), AFFINE), gpu),
        ((stored, AFFINE), "cpu"),
    ):
        masker.transform(run)
        assert masker.plan_.device == device


def test_processes_are_refused(gpu):
    stored = stored_run()
    masker = gpumask.MultiNiftiLabelsMasker(LABELS["same"], n_jobs=2).fit()
    message = (
        "Run #1 lies on cuda:0: with n_jobs=2 it would be copied through the host to another process. Use n_jobs=1."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        masker.transform([(stored, AFFINE), nib.Nifti1Image(placed(gpu, stored), AFFINE)])


def test_lists_and_computed_masks_are_refused(gpu):
    run = placed(gpu, stored_run())
    listed = (
        "Image #0 of the list lies on cuda:0: lists are read on the host. Stack the arrays along a fourth axis, and "
        "pass one pair (array, affine)."
    )
    with pytest.raises(ImageError, match=f"^{re.escape(listed)}$"):
        open_volumes([(run[..., 0], AFFINE), (run[..., 1], AFFINE)])
    runs = "Expected dimension is 4D and you provided a list of 4D images (5D). Image #0 (in-memory image) has "
    with pytest.raises(DimensionError, match=re.escape(runs)):
        open_volumes([(run, AFFINE), (run, AFFINE)])
    computed = "The run lies on cuda:0, but masks are computed on the host: pass a mask as mask_img."
    for masker, given in ((gpumask.NiftiMasker(), (run, AFFINE)), (gpumask.MultiNiftiMasker(), [(run, AFFINE)])):
        with pytest.raises(TypeError, match=f"^{re.escape(computed)}$"):
            masker.fit(given)


def test_plans_of_the_cpu_do_not_read_it(gpu):
    """`run_plans` alone: an error, not a download."""
    volumes = open_volumes((placed(gpu, stored_run()), AFFINE))
    with pytest.raises(TypeError):
        run_plans(on([some_plan()], "cpu"), volumes)


def test_wrong_arrays_on_the_gpu(gpu):
    run = placed(gpu, stored_run("f4"))
    for given, message in (
        ((run.astype("c8"), AFFINE), "`array` must be an array of real numbers, got complex64. Convert it first."),
        ((run.astype("f2"), AFFINE), "The array of (array, affine) holds values of type float16, "),
        ((run > 0, AFFINE), "The array of (array, affine) holds values of type bool, "),
        (
            nib.Nifti1Image(run.astype("c8"), AFFINE),
            "`in-memory image` must be an array of real numbers, got complex64.",
        ),
        (run, "input should be a NiftiLike object or an iterable of NiftiLike object. Got: ndarray. "),
    ):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
            open_volumes(given)
