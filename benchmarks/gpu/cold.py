"""The first run of a new process, and with the arguments ATLAS RUN PARAMETERS that process.

It imports nothing before its clock starts.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(bench, parameters):
    """Seconds of a run in a new process, whose cache of kernels is empty, and again with a full one."""
    files = [str(path) for path in (bench.inputs.atlas(), bench.inputs.bold(40, suffix=".nii"))]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.cold", *files, json.dumps(parameters)]
    values = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "CUPY_CACHE_DIR": cache, "CUPY_CACHE_IN_MEMORY": "0"}
        for state in ("empty", "full"):
            started = time.perf_counter()
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], env=environment
            )
            total = time.perf_counter() - started
            if done.returncode:
                raise RuntimeError(f"the new process failed:\n{done.stderr}")
            seconds = {"process": total, **json.loads(done.stdout.splitlines()[-1])}
            values |= {f"{state} cache: {name}, s": value for name, value in seconds.items()}
    return values


def _run(atlas, run, parameters):
    """Seconds of each part of a first run in this process, and of a second run."""
    started, seconds = time.perf_counter(), {}

    def mark(name):
        nonlocal started
        now = time.perf_counter()
        seconds[name], started = now - started, now

    from gpumask import NiftiLabelsMasker, devices

    masker_class = NiftiLabelsMasker  # imported on its first use
    mark("import gpumask")
    device = devices.resolve_device("cuda")
    mark("import CuPy and probe")
    masker = masker_class(atlas, device=device, **parameters).fit()
    mark("fit")
    for name in ("first run", "next run"):
        masker.transform(run)
        mark(name)
    return seconds


if __name__ == "__main__":
    print(json.dumps(_run(*sys.argv[1:3], json.loads(sys.argv[3]))))
