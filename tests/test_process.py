"""The number of cores that this process may use."""

import os

import pytest

from gpumask import process


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, []),
        ("0::/\n", {"cpu.max": "350000 100000\n"}, [3.5]),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "800000 100000"}, [2, 8]),
        ("0::/not/here\n", {"cpu.max": "50000 100000"}, [0.5]),
        ("4:cpu,acct:/x\n", {"cpu,acct/x/cpu.cfs_quota_us": "300000", "cpu,acct/x/cpu.cfs_period_us": "100000"}, [3]),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("1:cpuset:/\n", {"cpuset/cpu.max": "1 1"}, []),
    ],
)  # fmt: skip
def test_limits_of_control_groups(tmp_path, groups, files, limits):
    for name, content in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(content)
    (tmp_path / "cgroup").write_text(groups)
    assert list(process._cpu_limits(tmp_path / "cgroup", tmp_path / "root")) == limits
    assert list(process._cpu_limits(tmp_path / "missing", tmp_path)) == []


@pytest.mark.parametrize(("limits", "expected"), [([], 4), ([2.5, 8], 3), ([0.1], 1), ([64], 4)])
def test_cores(monkeypatch, limits, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(process, "_cpu_limits", lambda *_: limits)
    assert process.n_cores() == expected
