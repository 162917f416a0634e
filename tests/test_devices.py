"""Which device a plan runs on, and why; runs that plans on several devices share."""

import nibabel as nib
import numpy as np
import pytest

import gpumask
from benchmarks import summary
from gpumask import backend, devices, extraction
from gpumask.engine import gpu_run
from gpumask.engine.plan import compile_plan
from gpumask.engine.stream import run_plans
from gpumask.images.grid import Grid
from gpumask.images.volumes import open_volumes
from gpumask.kernels.segments import Segments

from .helpers import AFFINE, blocks, image
from .runs import extract, on, some_plan, stored_run, write

SHAPE = (6, 7, 8)
LABELS, MASK = image(blocks(shape=SHAPE)), image(np.ones(SHAPE, "u1"))
# Grid of the labels, FWHM, statistic: the work for which a GPU is chosen.
WORK = {
    "mean": (("same", None, "mean"), ""),
    "median": (("same", None, "median"), ""),
    "folded": (("same", 6.0, "mean"), ""),
    "staged": (("same", 6.0, "median"), "smoothing"),
    "resampled": (("oblique", None, "sum"), "resampling"),
    "resampled and folded": (("parallel", 6.0, "mean"), "resampling"),
    "resampled and staged": (("parallel", 6.0, "maximum"), "resampling and smoothing"),
}


@pytest.fixture
def gpus(monkeypatch):
    """Choose the GPUs that there seem to be, and get the list of those that are probed."""

    def install(*names, problem=""):
        def status(index=0):
            if index is not None:
                probed.append(index)
            return devices.CudaStatus(names, problem if index is not None else "", "Buy one." * bool(problem))

        probed = []
        monkeypatch.setattr(devices, "cuda_status", status)
        monkeypatch.setattr(devices, "driver_cuda_version", lambda: (13, 1))
        return probed

    return install


def run(dtype="i2"):
    return image(np.random.default_rng(0).normal(1000, 30, (*SHAPE, 40)).astype(dtype))


@pytest.mark.parametrize("kind", WORK)
def test_auto_chooses_by_plan(gpus, kind):
    probed = gpus("H100", "A2")
    (options, work) = WORK[kind]
    plan = some_plan(*options, way="folded" if "folded" in kind else None)
    chosen = plan.on("auto")
    *lines, last = chosen.explain().splitlines()
    assert lines == plan.explain().splitlines()
    if work:
        assert (chosen.device, last) == ("cuda:0", f"on the GPU: {work} takes longer than copying a volume to it")
    else:
        expected = "on the CPU: reducing the run takes less time than copying it to a GPU"
        assert (chosen.device, last) == ("cpu", expected)
        assert probed == []


# The README's table of what a GPU is for: each work's plan.
TABLE = {
    "resampling to the labels, aligned, .nii": ("parallel", None, "mean"),
    "resampling to the labels, oblique, .nii": ("oblique", None, "mean"),
    "median, 6 mm, .nii": ("same", 6.0, "median"),
    "mean, .nii.gz": ("same", None, "mean"),
    "6 mm + cleaning, .nii.gz": ("same", 6.0, "mean"),
    "6 mm + cleaning, .nii": ("same", 6.0, "mean"),
    "median, .nii": ("same", None, "median"),
}


def test_the_readme_has_what_auto_chooses(gpus):
    gpus("H100")
    (voxels, choice, *_), *others = summary.GPU
    assert (voxels, choice) == ("voxels, cleaned; correlation maps", "GPU")  # see the next test
    chosen = {
        work: some_plan(*options, way="folded" if options[2] == "mean" and options[1] else None).on("auto").device
        for work, options in TABLE.items()
    }
    assert {work: {"GPU": "cuda:0", "CPU": "cpu"}[choice] for work, choice, *_ in others} == chosen


@pytest.mark.parametrize("fwhm", [None, 5.0])
def test_auto_chooses_a_gpu_for_voxels(gpus, fwhm):
    gpus("H100")
    segments, grid = Segments(np.arange(5, dtype="i4"), np.arange(6)), Grid(SHAPE, AFFINE)
    plan = compile_plan(segments, grid, smoothing_fwhm=fwhm, strategy="voxel").on("auto")
    assert plan.device == "cuda:0"
    reason = "computing and cleaning every voxel takes longer than copying a volume to it"
    assert plan.explain().splitlines()[-1] == f"on the GPU: {reason}"


@pytest.mark.parametrize("kind", WORK)
def test_a_requested_device_is_obeyed(gpus, kind):
    gpus("H100", "A2")
    plan = some_plan(*WORK[kind][0])
    on_gpu, on_cpu = plan.on("cuda:1"), plan.on("cpu")
    assert (on_gpu.device, on_cpu.device) == ("cuda:1", "cpu")
    assert on_gpu.explain().splitlines()[-1] == "on the GPU: requested"
    assert on_cpu.explain().splitlines()[-1] == "on the CPU: requested"


def test_auto_without_a_usable_gpu(gpus):
    gpus("H100", problem="it is on fire")
    plan = some_plan(*WORK["staged"][0])
    chosen = plan.on("auto")
    assert chosen.device == "cpu"
    assert chosen.explain().splitlines()[-1] == "on the CPU: no GPU can be used, see gpumask info"
    with pytest.raises(backend.DeviceError, match=r"^device='cuda' was requested, but can't be used: it is on fire\. "):
        plan.on("cuda")


def test_a_masker_probes_a_gpu_only_where_it_would_use_one(gpus, capsys):
    probed = gpus("H100")
    masker = gpumask.NiftiLabelsMasker(LABELS, verbose=1).fit()
    masker.transform(run())
    assert probed == []
    reason = "on the CPU: reducing the run takes less time than copying it to a GPU"
    assert masker.plan_.device == "cpu"
    assert reason in masker.explain().splitlines()
    assert f"Extracting region signals {reason}" in capsys.readouterr().out
    assert masker.device_ == "cuda:0"  # what it may use
    assert probed == [0]


def test_device_needs_a_fit():
    assert not hasattr(gpumask.NiftiLabelsMasker(LABELS), "device_")


def test_a_requested_gpu_is_checked_by_fit(gpus):
    gpus("H100", problem="it is on fire")
    gpumask.NiftiLabelsMasker(LABELS).fit()
    with pytest.raises(backend.DeviceError, match="it is on fire"):
        gpumask.NiftiLabelsMasker(LABELS, device="cuda").fit()


def test_a_plan_is_compiled_once_for_all_devices(gpus, monkeypatch):
    gpus("H100")
    monkeypatch.setattr(extraction, "run_plans", lambda *_, **__: pytest.fail("read"))
    masker, devices = gpumask.NiftiLabelsMasker(LABELS).fit(), ("cpu", "cuda", "auto", "cpu")
    plans = [masker.set_params(device=device).prepare(open_volumes(run())).plan for device in devices]
    assert [plan.device for plan in plans] == ["cpu", "cuda:0", "cpu", "cpu"]
    assert len({id(plan.segments) for plan in plans}) == 1
    assert plans[0] is plans[3]


# On a GPU, emulated or not


def test_auto_on_a_gpu(gpu):
    """Voxels and medians of smoothed volumes are computed there, and means here, from one read."""
    options = [{"detrend": True}, {"smoothing_fwhm": 5, "strategy": "median"}]
    maskers = [gpumask.NiftiLabelsMasker(LABELS, **each).fit() for each in options]
    maskers.append(gpumask.NiftiMasker(MASK, smoothing_fwhm=4, standardize="zscore_sample", detrend=True).fit())
    together = gpumask.transform_together(maskers, run())
    assert [masker.plan_.device for masker in maskers] == ["cpu", gpu, gpu]
    for masker, signals in zip(maskers, together, strict=True):
        np.testing.assert_array_equal(masker.transform(run()), signals)
        expected = masker.set_params(device="cpu").fit().transform(run())
        np.testing.assert_allclose(signals, expected, rtol=0, atol=1e-5 if signals.dtype == np.float32 else 1e-9)


def test_correlation_maps_use_both(gpu, monkeypatch):
    used, stream = [], extraction.run_plans
    monkeypatch.setattr(extraction, "run_plans", lambda plans, *a, **k: used.extend(plans) or stream(plans, *a, **k))
    masker = gpumask.NiftiLabelsMasker(LABELS, standardize="zscore_sample").fit()
    maps = gpumask.correlation_maps(masker, run(), mask_img=MASK)
    assert [plan.device for plan in used] == ["cpu", gpu]
    expected = gpumask.correlation_maps(masker.set_params(device="cpu"), run(), mask_img=MASK)
    np.testing.assert_allclose(maps, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["i2", ">i2", "f4"])
@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_devices_share_a_read(gpu, tmp_path, monkeypatch, dtype, name, chunk):
    plans = [some_plan(*options) for options, _ in WORK.values()]
    mixed = [on([plan], gpu if k % 2 else "cpu")[0] for k, plan in enumerate(plans)]
    volumes, read, seen = open_volumes(write(tmp_path / name, stored_run(dtype, 22), 0.5, 3.0)), [], []
    expected = [extract(plan, volumes, device=plan.device).signals for plan in mixed]
    chunks = volumes.chunks

    def counting(*arguments):
        for one in chunks(*arguments):
            read.extend(range(one.start, one.start + len(one.data)))
            yield one

    monkeypatch.setattr(volumes, "chunks", counting)
    results = run_plans(mixed, volumes, chunk=chunk, progress=seen.append)
    assert read == 2 * list(range(22))  # the range of resampled values, once, and the pass
    assert seen[-1] == 22
    assert results[0].seconds.keys() == {"read", "launch", "reduce", "upload", "total"}
    for result, signals in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.signals, signals)


@pytest.mark.parametrize("fails", ["read", "GPU", "progress"])
def test_failures_of_a_shared_read(gpu, tmp_path, monkeypatch, fails):
    """Whatever fails, the error comes out and the GPU is waited for."""
    plans = [*on([some_plan()], "cpu"), *on([some_plan("same", 6.0, "median")], gpu)]
    path = write(tmp_path / "bold.nii.gz", stored_run(n=22))
    if fails == "read":
        path.write_bytes(path.read_bytes()[:-2000])
    volumes, drained, drain = open_volumes(path), [], gpu_run.GpuRun.drain
    monkeypatch.setattr(gpu_run.GpuRun, "drain", lambda self: drained.append(self.device) or drain(self))
    if fails == "GPU":

        def submit(self, chunk, buffer):
            import cupy

            raise cupy.cuda.memory.OutOfMemoryError(512, 0)

        monkeypatch.setattr(gpu_run.GpuRun, "submit", submit)

    def progress(done):
        if fails == "progress":
            raise KeyboardInterrupt

    error = {"read": nib.filebasedimages.ImageFileError, "GPU": backend.DeviceError, "progress": KeyboardInterrupt}
    with pytest.raises((error[fails], ValueError) if fails == "read" else error[fails]):
        run_plans(plans, volumes, chunk=4, progress=progress)
    assert drained == [gpu]
