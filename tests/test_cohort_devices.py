"""GPUs that share the runs of a cohort."""

import importlib
import re
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpumask import backend, devices
from gpumask.bids.finding import find_runs
from gpumask.cli import main
from gpumask.cohort import executors, writer
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort

from . import cohorts

N_RUNS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort, and the outputs of the CPU."""
    folder = tmp_path_factory.mktemp("made")
    cohorts.make_cohort(folder / "d", N_RUNS, bad=False)
    cohorts.make_atlases(folder)
    runs, _ = find_runs(folder / "d")
    assert len(runs) == N_RUNS
    assert [r.error for r in run_cohort(configured(folder, "cpu", "cpu"), runs)] == [""] * N_RUNS
    return folder, runs, cohorts.outputs(folder / "cpu")


def configured(folder, out, device, **options):
    return Configuration((AtlasFile(folder / "atlas-Toy_dseg.nii.gz"),), folder / out, device=device, **options)


@pytest.fixture
def used(monkeypatch):
    """Devices of the runs, which the CPU computes in truth; three GPUs seem to be there."""
    used_devices, prepare = [], writer.prepare

    def on_cpu(*arguments, device, **options):
        used_devices.append(device)
        return prepare(*arguments, device="cpu", **options)

    monkeypatch.setattr(writer, "prepare", on_cpu)
    monkeypatch.setattr(devices, "cuda_status", lambda _: devices.CudaStatus(("H100", "H100", "H200")))
    return used_devices


@pytest.mark.parametrize(
    ("device", "each"),
    [
        ("cuda:0,cuda:2", {"cuda:0": 3, "cuda:2": 3}),
        ("cuda,cuda:1", {"cuda:0": 3, "cuda:1": 3}),
        ("cuda:all", {"cuda:0": 2, "cuda:1": 2, "cuda:2": 2}),
        ("cuda:1", {"cuda:1": 6}),
        ("auto", {"auto": 6}),
    ],
)
@pytest.mark.parametrize("executor", [None, "of the caller"])
def test_gpus_take_runs_in_turn(made, used, tmp_path, device, each, executor):
    folder, runs, files = made
    with ThreadPoolExecutor(2) as pool:
        records = list(run_cohort(configured(folder, tmp_path, device), runs, executor=executor and pool))
    assert [record.error for record in records] == [""] * N_RUNS
    assert {device: used.count(device) for device in used} == each
    assert cohorts.outputs(tmp_path) == files


ASK = """
import time
from gpumask.cohort import executors


def turn():
    time.sleep(0.5)  # so that the other processes take the next ones
    return executors._turn
"""


def test_each_process_has_one_gpu(tmp_path, monkeypatch):
    (tmp_path / "ask_turn.py").write_text(ASK)
    monkeypatch.syspath_prepend(tmp_path)
    ask = importlib.import_module("ask_turn").turn
    pool = executors._Processes(3, 6, None)
    try:
        for n in (3, 1):
            turns = [pool._executor.submit(ask) for _ in range(2 * n)]
            assert {turn.result() for turn in turns} == set(range(n))
            pool.restart(1)
    finally:
        pool.close()


def test_a_process_passes_its_number(made, used, tmp_path, monkeypatch):
    folder, runs, _ = made
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(executors, "_turn", 4)
    monkeypatch.setattr(executors, "_stop", types.SimpleNamespace(value=0))
    monkeypatch.setattr(executors, "_shares", [0.0])
    record = executors._process_in_worker(configured(folder, tmp_path, "cuda:all"), runs[0], 0)
    assert executors._shares == [1.0]
    assert (record.error, used) == ("", ["cuda:1"])


DIFFERENT = "Several devices must be different GPUs, such as 'cuda:0,cuda:1', got {!r}."


@pytest.mark.parametrize("several", ["cpu,cuda:0", "cuda:0,cuda:0", "cuda,cuda:0", "cuda:0,", "cuda:0, cuda:1", "a,b"])
def test_several_devices_are_different_gpus(several):
    with pytest.raises(ValueError, match=f"^{re.escape(DIFFERENT.format(several))}$"):
        devices.split_devices(several)


@pytest.mark.parametrize("device", ["gpu", "cuda:ALL", "", None, 0])
def test_a_single_device_is_checked(device):
    message = f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:N' with N a device number, got {device!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        devices.split_devices(device)


def test_all_of_no_gpus(monkeypatch):
    monkeypatch.setattr(devices, "cuda_status", lambda _: devices.CudaStatus(problem="none here", remedy="Buy one."))
    start = "device='cuda:all' was requested, but can't be used: none here. Buy one. Or use device='cpu'"
    with pytest.raises(backend.DeviceError, match=f"^{re.escape(start)}"):
        devices.split_devices("cuda:all")


def cohort_line(folder, out, *options):
    atlas = folder / "atlas-Toy_dseg.nii.gz"
    return [str(word) for word in ("cohort", folder / "d", out, "participant", "--atlas", atlas, *options)]


@pytest.mark.parametrize("device", ["cuda:0,cuda:1", "cuda:all"])
def test_the_command_checks_every_gpu_first(made, tmp_path, monkeypatch, capsys, device):
    """Another GPU that is broken is none of its business."""

    def status(index):
        return devices.CudaStatus(("H100",) * 2, *(("it is on fire", "Put it out.") if index == 1 else ()))

    monkeypatch.setattr(devices, "cuda_status", status)
    assert main(cohort_line(made[0], tmp_path / "out", "--device", device)) == 2
    message = "gpumask cohort: error: device='cuda:1' was requested, but can't be used: it is on fire. Put it out. "
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "out").exists()
    assert main(cohort_line(made[0], tmp_path / "out", "--device", "cuda:0", "--dry-run")) == 0


@pytest.mark.parametrize("device", ["cuda", "cuda:0,cuda:1", "cuda:all"])
def test_gpus_of_a_dask_cluster_are_not_probed_here(made, tmp_path, monkeypatch, device):
    monkeypatch.setattr(devices, "cuda_status", lambda _: pytest.fail("probed"))
    options = ("--device", device, "--dask-scheduler", "tcp://localhost:1", "--dry-run")
    assert main(cohort_line(made[0], tmp_path / "out", *options)) == 0


def test_extract_uses_one_device(made, tmp_path, capsys):
    run, atlas = made[1][0].path, made[0] / "atlas-Toy_dseg.nii.gz"
    words = ["extract", str(run), "--atlas", str(atlas), "--out", str(tmp_path), "--device", "cuda:0,cuda:1"]
    assert main(words) == 2
    message = "`device` must be 'auto', 'cpu', 'cuda' or 'cuda:N' with N a device number, got 'cuda:0,cuda:1'."
    assert capsys.readouterr().err == f"gpumask extract: error: {message}\n"


def test_all_gpus(gpu, made, tmp_path):
    folder, runs, files = made
    records = list(run_cohort(configured(folder, tmp_path, "cuda:all"), runs))
    assert [record.error for record in records] == [""] * N_RUNS
    ours = cohorts.outputs(tmp_path)
    assert ours.keys() == files.keys()
    sidecars = [content.decode() for name, content in ours.items() if name.endswith("timeseries.json")]
    assert len(sidecars) == N_RUNS
    assert all('"Device": "cuda"' in text and '"on the GPU: requested"' in text for text in sidecars)
