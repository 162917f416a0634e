"""The benchmark of the group step makes runs whose files are all there, and reports what it measured."""

import json
import re

import pandas as pd
import pytest

from benchmarks import group


def test_tiny(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    words = "--runs 24 --regions 6 --denoisings 2 --volumes 20 --store --folder"
    group.main([*words.split(), str(tmp_path / "f")])
    expected = r"24 runs of 2 denoisings and 6 regions: [\d.]+ s, [\d.]+ s of CPU, \d+ MB, page [\d.]+ MB\n"
    assert re.fullmatch(expected, capsys.readouterr().out)
    out = tmp_path / "f" / "out"
    assert not (out / "group_unused.tsv").exists()
    assert len(pd.read_table(out / "group_quality.tsv")) == 48
    for stat in ("d0", "d1"):
        sidecar = out / f"group_atlas-Made_stat-pearsoncorrelation_desc-{stat}_relmat.json"
        assert json.loads(sidecar.read_text())["NumberOfRunsUsed"] == 24
        assert pd.read_parquet(out / f"all_atlas-Made_stat-mean_desc-{stat}.parquet")["name"].nunique() == 24
    assert "6 regions, 24 runs. Mean coverage" in (out / "cohort.html").read_text()
