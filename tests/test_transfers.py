"""What travels between host and device, and who waits, as the emulated GPU counts it."""

import sys

import numpy as np
import pytest

from gpumask import backend, cuda_runtime
from gpumask.engine import gpu_run
from gpumask.engine.plan import compile_plan
from gpumask.engine.staging import Staging
from gpumask.engine.stream import run_plans
from gpumask.images.grid import Grid
from gpumask.images.volumes import open_volumes
from gpumask.kernels.segments import Segments

from .runs import AFFINE, IDS, LABEL_AFFINES, SHAPE, extract, on, some_plan, stored_run, write

PLANS = {
    "direct": ("same", None, "mean"),
    "median": ("same", None, "median"),
    "variance": ("same", None, "variance"),
    "folded": ("same", 6.0, "sum"),
    "staged": ("same", 6.0, "maximum"),
    "parallel-median": ("parallel", None, "median"),
}
every_plan = pytest.mark.parametrize("plan", PLANS)


@pytest.fixture
def counted(gpu, monkeypatch):
    """Transfers, waits and uploaded arrays of each phase of the runs to come."""
    if "cpucuda" not in sys.modules:
        pytest.skip("only the emulated GPU counts")
    counters = sys.modules["cpucuda"].counters
    phases = {"allocate": [], "read": [], "results": [], "seconds": []}
    uploads, upload = [], cuda_runtime.upload

    def spy(name, method):
        def spied(*arguments):
            before = counters()
            try:
                return method(*arguments)
            finally:
                phases[name].append({key: counters()[key] - count for key, count in before.items()})

        return spied

    for name in phases:
        monkeypatch.setattr(gpu_run.GpuRun, name, spy(name, getattr(gpu_run.GpuRun, name)))
    monkeypatch.setattr(cuda_runtime, "upload", lambda *a: (uploads.append((a[0].dtype, a[0].nbytes)), upload(*a)))
    return phases, uploads


@every_plan
@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_each_chunk_travels_once_as_it_is_stored(gpu, tmp_path, counted, plan, name, dtype):
    phases, uploads = counted
    stored = stored_run(dtype, 22)
    extract(some_plan(*PLANS[plan]), open_volumes(write(tmp_path / name, stored, 0.5, 3.0)), device=gpu, chunk=4)
    (read,) = phases["read"]
    assert read["h2d"] == len(uploads) == 6
    assert {of for of, _ in uploads} == {stored.dtype}
    assert sum(n_bytes for _, n_bytes in uploads) == stored.nbytes


@every_plan
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_nothing_waits_but_for_buffers(gpu, tmp_path, counted, plan, dtype):
    phases, _ = counted
    path = write(tmp_path / "bold.nii.gz", stored_run(dtype, 22))
    extract(some_plan(*PLANS[plan]), open_volumes(path), device=gpu, chunk=4)
    (read,), (results,), (seconds,) = phases["read"], phases["results"], phases["seconds"]
    assert read["d2h"] == 0
    assert read["syncs"] == 6  # a buffer's event before each filling
    assert results["d2h"] == 1
    assert results["h2d"] == 0
    assert seconds["d2h"] == seconds["syncs"] == 0


def test_the_download_is_the_result(gpu, tmp_path, counted, monkeypatch):
    """Of all plans together, and a flag a volume and plan."""
    phases, _ = counted
    downloads, to_host = [], backend.to_host
    path = write(tmp_path / "bold.nii.gz", stored_run("f4", 22))
    names = ("direct", "median", "folded")
    plans = [some_plan(*PLANS[name]) for name in names]
    run_plans(on(plans, gpu), open_volumes(path))  # its parts are counted below
    monkeypatch.setattr(backend, "to_host", lambda array: (downloads.append(array.nbytes), to_host(array))[1])
    run_plans(on(plans, gpu), open_volumes(path))
    assert downloads[-1] == 22 * 8 * 3 * (len(IDS) + 1)
    assert [phase["d2h"] for phase in phases["results"]] == [1, 1]


def test_plans_share_an_upload(gpu, tmp_path, counted):
    phases, uploads = counted
    plans = [some_plan(*PLANS[name]) for name in PLANS]
    run_plans(on(plans, gpu), open_volumes(write(tmp_path / "bold.nii.gz", stored_run(n=22))), chunk=4)
    assert phases["read"][0]["h2d"] == len(uploads) == 6


def maps(**options):
    """Three overlapping maps with weights, on the grid of the runs."""
    rng = np.random.default_rng(0)
    voxels = np.concatenate([np.sort(rng.choice(np.prod(SHAPE), 100, replace=False)) for _ in range(3)])
    segments = Segments(voxels.astype(np.int32), np.arange(4) * 100, rng.random(300))
    return compile_plan(segments, Grid(SHAPE, AFFINE), **options)


def spheres():
    """Two overlapping regions without weights."""
    voxels = np.concatenate([np.arange(200, 260), np.arange(240, 300)]).astype(np.int32)
    return compile_plan(Segments(voxels, np.array([0, 60, 120])), Grid(SHAPE, AFFINE))


def voxels(labels_on="same", **options):
    """100 voxels, each with a column."""
    segments = Segments(np.arange(150, 250, dtype=np.int32), np.arange(101))
    where, runs = Grid(SHAPE, LABEL_AFFINES[labels_on]), Grid(SHAPE, AFFINE)
    return compile_plan(segments, where, grid=runs, strategy="voxel", **options)


# Kind of plan: the plan, and its most launches per chunk and per volume, of int16 and of float32 volumes. Products by
# cuBLAS aren't among them.
LAUNCHES = {
    "mean": (lambda: some_plan(), (4, 0), (4, 0)),
    "median": (lambda: some_plan(strategy="median"), (3, 0), (3, 0)),
    "variance": (lambda: some_plan(strategy="variance"), (6, 0), (6, 0)),
    "folded": (lambda: some_plan("same", 6.0, way="folded"), (4, 0), (4, 0)),
    "staged": (lambda: some_plan("same", 6.0, way="staged"), (8, 0), (16, 0)),
    "staged median": (lambda: some_plan("same", 6.0, "median"), (7, 0), (15, 0)),
    "parallel": (lambda: some_plan("parallel"), (16, 5), (49, 5)),
    "parallel median": (lambda: some_plan("parallel", strategy="median"), (8, 5), (41, 5)),
    "parallel, folded": (lambda: some_plan("parallel", 6.0, way="folded"), (16, 5), (49, 5)),
    "oblique": (lambda: some_plan("oblique"), (17, 4), (50, 4)),
    "oblique variance": (lambda: some_plan("oblique", strategy="variance"), (12, 4), (45, 4)),
    "oblique, staged median": (lambda: some_plan("oblique", 6.0, "median"), (13, 4), (47, 4)),
    "maps": (lambda: maps(strategy="sum"), (4, 0), (4, 0)),
    "maps, folded": (lambda: maps(smoothing_fwhm=6.0, way="folded"), (4, 0), (4, 0)),
    "spheres": (spheres, (4, 0), (4, 0)),
    "voxels": (voxels, (8, 0), (9, 0)),
    "voxels, staged": (lambda: voxels(smoothing_fwhm=6.0), (11, 0), (17, 0)),
    "voxels, oblique": (lambda: voxels("oblique"), (16, 4.25), (49, 4.25)),
}


@pytest.mark.parametrize("dtype", ["i2", "f4"])
@pytest.mark.parametrize("kind", LAUNCHES)
def test_launches_copies_and_waits(gpu, tmp_path, counted, kind, dtype):
    """Of 8 volumes in chunks of 4 and of 8, scaled: their difference is what a chunk costs."""
    phases, _ = counted
    make, *most = LAUNCHES[kind]
    plan = make()
    volumes = open_volumes(write(tmp_path / "bold.nii.gz", stored_run(dtype, 8), 0.5, 3.0))
    for chunk in (4, 8):
        extract(plan, volumes, device=gpu, chunk=chunk)
    two, one = phases["read"]
    per_chunk = two["launches"] - one["launches"]
    per_volume = (one["launches"] - per_chunk) / 8
    per_chunk_allowed, per_volume_allowed = most[dtype == "f4"]
    assert per_chunk <= per_chunk_allowed
    assert per_volume <= per_volume_allowed
    # What is clipped to the run's range is fetched: how many values there are, and the chunk's range.
    fetched = 3 * (plan.resampling is not None and plan.linear)
    for read, n_chunks in ((two, 2), (one, 1)):
        assert read["h2d"] == n_chunks
        assert read["d2h"] == n_chunks * fetched
        assert read["syncs"] == n_chunks * (1 + fetched)
    first, again = phases["allocate"]
    assert first["d2h"] == again["d2h"] == 0
    assert again["h2d"] == 0  # the plan is there already


@pytest.mark.parametrize("base_volume", [None, 0, 6])
def test_voxels_that_stay_on_the_device(gpu, tmp_path, counted, base_volume):
    """Only flags come down. As differences from a volume, a chunk takes two launches more, and that volume three."""
    phases, _ = counted
    volumes = open_volumes(write(tmp_path / "bold.nii", stored_run("i2", 8), 0.5, 3.0))
    plan, staging = voxels(), Staging(np.float32, base_volume, on_device=True)
    for chunk in (8, 4, 2):
        result = extract(plan, volumes, device=gpu, chunk=chunk, stagings=[staging])
        assert backend.is_cupy(result.signals)
    launches = [read["launches"] for read in phases["read"]]
    assert launches[0] <= 8 + 2 + 3
    assert launches[2] - launches[1] <= 2 * (8 + 2)
    for read, results, n_chunks in zip(phases["read"], phases["results"], (1, 2, 4), strict=True):
        assert read["h2d"] == n_chunks
        assert read["d2h"] == 0
        assert read["syncs"] == n_chunks
        assert results["d2h"] == 1
        assert results["h2d"] == 0
    assert [phase["h2d"] for phase in phases["allocate"][1:]] == [0, 0]


def test_voxels_that_do_not_stay_come_down_in_one_copy(gpu, tmp_path, counted):
    phases, _ = counted
    volumes = open_volumes(write(tmp_path / "bold.nii", stored_run("i2", 8)))
    extract(voxels(), volumes, device=gpu, chunk=4)
    assert phases["results"][0]["d2h"] == 2  # flags as well


def test_preparation_does_not_depend_on_the_length(gpu, tmp_path, counted):
    phases, _ = counted
    for n in (4, 40):
        path = write(tmp_path / f"{n}.nii.gz", stored_run(n=n))
        extract(some_plan(*PLANS["folded"]), open_volumes(path), device=gpu, chunk=4)
    first, second = ({key: phase[key] for key in ("h2d", "d2h", "syncs")} for phase in phases["allocate"])
    assert first == second


@pytest.mark.parametrize("strategy", ["mean", "sum"])
def test_clipping_waits_once_a_chunk(gpu, tmp_path, counted, strategy):
    """The one exception: values outside a chunk's range are fetched at once."""
    phases, uploads = counted
    path = write(tmp_path / "bold.nii.gz", stored_run("f4", 22))
    extract(some_plan("parallel", None, strategy), open_volumes(path), device=gpu, chunk=4)
    assert phases["read"][0]["h2d"] == len(uploads) == 6
    assert 0 < phases["read"][0]["d2h"] <= 6 * 6
    assert phases["results"][0]["d2h"] == 1


def test_big_endian_values_are_turned_on_the_host(gpu, tmp_path, counted):
    _, uploads = counted
    path = write(tmp_path / "bold.nii.gz", stored_run(">i2", 5))
    extract(some_plan(), open_volumes(path), device=gpu)
    assert uploads == [(np.dtype("=i2"), 5 * 2 * np.prod(SHAPE))]
