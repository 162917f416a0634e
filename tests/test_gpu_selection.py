"""``pytest -m gpu`` selects what a real GPU is to be tested with: numbers, transfers, faults and the pipeline."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("test_reductions.py", "test_transfers.py", "test_faults.py", "test_gpu_pipeline.py", "test_pipeline.py")


def test_the_selection_is_skipped_with_the_reason_without_a_gpu():
    environment = {**os.environ, "GPUMASK_TEST_CUPY": "", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "250"}
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider"]
    command += [f"tests/{name}" for name in FILES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^tests/(\w+\.py)::(.+) ([A-Z]+) \((.*?)\)? +\[", done.stdout, re.MULTILINE)
    assert {status for _, _, status, _ in lines} == {"SKIPPED"}
    assert all(reason.startswith("needs a CUDA device: ") for *_, reason in lines)
    selected = {name: [test for file, test, *_ in lines if file == name] for name in FILES}
    assert all(selected.values())
    # Of the libraries and devices that a test has in turn, only the GPU's.
    assert not [test for _, test, *_ in lines if re.search(r"\[(numpy|strict|cpu)\b", test)]
    assert {"cupy"} == {re.search(r"numpy|strict|cupy", test)[0] for test in selected["test_reductions.py"]}
    summary = re.search(r"^skipped: (\d+) tests that need a CUDA device \((.+)\)$", done.stdout, re.MULTILINE)
    assert int(summary[1]) == len(lines) > 900
