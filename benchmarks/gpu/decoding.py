"""Decoding of one compressed run: isal with one core, rapidgzip with 1 to all. It needs no GPU."""

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.bench import N_VOLUMES
from benchmarks.measure import memory_mb
from gpumask import process

MISSING = "rapidgzip isn't installed. Run: pip install 'gpumask[fast]'"
_BUFFER = 1 << 20


def decoding(bench):
    """Seconds, CPU seconds and memory of each decoder, each measurement in a new process, in turns."""
    path, n_cores = bench.inputs.bold(N_VOLUMES), process.n_cores()
    n_bytes = bench.inputs.bold(N_VOLUMES, suffix=".nii").stat().st_size
    threads = sorted({n for n in (1, 2, 4, 8, 16) if n <= n_cores} | {n_cores})
    ways, missing = {"isal": ("isal", 1)}, {}
    if importlib.util.find_spec("rapidgzip") is None:
        missing = {"rapidgzip": None, "why": MISSING}
    else:
        ways |= {f"rapidgzip, threads: {n}": ("rapidgzip", n) for n in threads}
    measured = {way: [] for way in ways}
    for k in range(bench.run_rounds):
        for way in list(ways)[:: 1 if k % 2 == 0 else -1]:
            measured[way].append(_one(*ways[way], path, n_bytes))
    values = {"cores": n_cores, "decoded, MB": n_bytes / 1e6, "compressed, MB": path.stat().st_size / 1e6}
    for way, results in measured.items():
        for name in ("s", "CPU s", "memory, MB"):
            values[f"{way}: {name}"] = statistics.median(one[name] for one in results)
        if way != "isal":
            pairs = zip(results, measured["isal"], strict=True)
            values[f"{way}: time / isal"] = statistics.median(one["s"] / other["s"] for one, other in pairs)
    return values | missing


def _one(name, threads, path, n_bytes):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.decoding", name, str(threads), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    if result["bytes"] != n_bytes:
        raise RuntimeError(f"{name} decoded {result['bytes']} bytes, expected {n_bytes}")
    return result


def _decode(name, threads, path):
    """What decoding the file takes in this process; memory is above that of the imports."""
    from isal import igzip

    if name == "rapidgzip":
        import rapidgzip
    buffer, n_bytes, (resident, _) = bytearray(_BUFFER), 0, memory_mb()
    started, cpu = time.perf_counter(), time.process_time()
    file = igzip.open(path) if name == "isal" else rapidgzip.open(path, parallelization=int(threads))
    try:
        while got := file.readinto(buffer):
            n_bytes += got
    finally:
        file.close()
    values = {"s": time.perf_counter() - started, "CPU s": time.process_time() - cpu}
    return {**values, "memory, MB": memory_mb()[1] - resident, "bytes": n_bytes}


if __name__ == "__main__":
    print(json.dumps(_decode(*sys.argv[1:])))
