"""The GPU benchmark runs from end to end, on a grid too small to say anything about speed."""

import json

import pytest

from benchmarks import gpu
from gpumask import backend
from gpumask.kernels.segments import STRATEGIES


@pytest.mark.parametrize("put", ["cupy"], indirect=True)
def test_runs_and_writes_a_report(put, tmp_path, capsys):
    gpu.main(["--tiny", "--out", str(tmp_path / "new" / "report.json")])
    report = json.loads((tmp_path / "new" / "report.json").read_text("utf-8"))
    assert report["tiny"] is True
    assert report["machine"]["gpu"] == backend.cuda_status().devices[0]
    assert {"driver", "cuda", "versions", "commit", "date", "l2_cache"} <= set(report["machine"])
    assert report["copy_bytes_per_second"] > 0
    timed = {one["kernel"].split(",")[0] for one in report["kernels"]}
    assert timed >= {*STRATEGIES, "folded 6 mm", "gaussian_smooth", "fft_filtfilt", "regress_out", "standardize"}
    assert all(one["seconds"] > 0 and one["cpu_seconds"] > 0 and one["bytes"] > 0 for one in report["kernels"])
    assert len(report["runs"]) == 2 * len(gpu.RUNS) * 4
    of_gpu = [one for one in report["runs"] if one["tool"] == "gpumask, GPU"]
    assert all({"reduce", "clean", "write", "total"} <= set(one["split"]) for one in of_gpu)
    printed = capsys.readouterr().out
    assert all(one["kernel"] in printed for one in report["kernels"])


@pytest.mark.parametrize("put", ["cupy"], indirect=True)
def test_times_nothing_that_is_wrong(put, tmp_path, monkeypatch):
    right = gpu.segments_cuda.reduce

    def wrong(*arguments, **options):
        signals, found = right(*arguments, **options)
        return signals * (1 + 1e-8), found

    monkeypatch.setattr(gpu.segments_cuda, "reduce", wrong)
    with pytest.raises(SystemExit, match=r"^mean, int16, 4 regions: GPU and NumPy differ by 1\.0e-08 of the largest"):
        gpu.main(["--tiny", "--out", str(tmp_path / "report.json")])
    assert not list(tmp_path.iterdir())


def test_refuses_without_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "cuda_status", lambda: backend.CudaStatus(problem="there is none", remedy="Buy one."))
    with pytest.raises(SystemExit, match=r"^benchmarks\.gpu needs a CUDA device: there is none\. Buy one\.$"):
        gpu.main(["--tiny", "--out", str(tmp_path / "report.json")])
