"""Mutated images, tables, records and options: the right numbers or one clear error, in bounded memory and time.

Each mutation is drawn from a seed and its number, and used in a forked process whose address space, processor time and
waiting are limited. 500 are drawn by default; ``GPUMASK_FUZZ=6000`` draws more, and ``GPUMASK_FUZZ_SEED`` others. What
must come of them is in `tests/fuzz`: of images and grayordinates, the means of what nibabel reads; of tables, a
regression; of records, the bytes of the untouched cohort; of all others, an error of a documented kind that names the
file. A fault is printed with its mutation and the command that repeats it alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
N = int(os.environ.get("GPUMASK_FUZZ", "500"))
SEED = os.environ.get("GPUMASK_FUZZ_SEED", "0")
SHARES = {"images": 0.44, "grayordinates": 0.1, "tables": 0.2, "records": 0.06, "options": 0.2}


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
@pytest.mark.parametrize("subject", SHARES)
def test_mutations(subject):
    n = max(round(N * SHARES[subject]), 1)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a process with threads can't be forked safely
    command = [sys.executable, "-m", "tests.fuzz", subject, str(n), SEED]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    faults = [f"{line['mutation']}\n{line['fault']}\n    {line['repeat']}" for line in lines if "fault" in line]
    assert not faults, f"{len(faults)} of {n} mutations:\n" + "\n\n".join(faults[:10])
    assert process.returncode == 0, process.stderr
    assert sum(lines[-1]["outcomes"].values()) == n
    print(lines[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_faults_are_found():
    """Of each kind: a crash, a hang, too much memory, another error or warning, a message that is no help."""
    command = [sys.executable, "-m", "tests.fuzz.harmful"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
