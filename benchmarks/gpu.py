"""The GPU: every kernel beside a copy of the device's memory, then whole runs beside the CPU and nilearn.

    python -m benchmarks.gpu [--rounds 20] [--volumes 200] [--jobs 8] [--folder DIR] [--out FILE] [--tiny]

Results are compared with NumPy's before anything is timed. Kernels are timed by events on the device, after a warm-up,
as medians; inputs rotate through more memory than the second-level cache holds. "share" is the bytes that a kernel
can't avoid moving, divided by its time and by the bandwidth of a copy measured in the same process. Whole runs are
timed on the clock, with the times that the masker itself keeps. nilearn uses one core for a run; a row of its own
has its time per run where `--jobs` runs go side by side. Sizes at which the GPU is slower stay in the table.
A JSON file with the GPU, driver, versions and commit is written to benchmarks/results.

What an H100 SXM allows, on paper: 3.35 TB/s of memory, 34 TFLOP/s in float64 (67 on tensor cores), 3.7 T conversions
of an integer to float64 a second (16 per clock of each of 132 multiprocessors at 1.755 GHz), 64 GB/s over PCIe 5.
One volume of 97 x 115 x 97 int16 (2.2 MB), 400 regions over 235 000 voxels, 8 volumes per index read:

    upload              2.2 MB over PCIe                                              34 us
    mean, sum           0.47 MB of voxels + 0.12 MB of indices = 0.18 us; 0.7 MFLOP = 0.02 us; conversions 0.06 us
    variance            the same twice                                               0.35 us
    median              the same in about four passes, the later ones from cache      0.7 us
    6 mm folded         2.2 MB of voxels + 3.0 M x 12 B / 8 = 6.7 MB = 2.0 us; 9 MFLOP = 0.3 us; conversions 0.8 us
    6 mm staged         0.67 GFLOP of products = 20 us (10 us on tensor cores); 52 MB between them = 16 us

So memory bounds the reductions, and PCIe bounds a run that is not compressed. Decompression takes some milliseconds a
volume on one core: a hundred times the upload, and a thousand times any reduction.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from benchmarks import inputs
from gpumask import NiftiLabelsMasker, backend
from gpumask.kernels import segments_cuda
from gpumask.kernels.cleaning import regress_out, standardize
from gpumask.kernels.filtering import butterworth_sos, fft_filtfilt
from gpumask.kernels.resampling import CubicResampling, resample_cubic
from gpumask.kernels.segments import STRATEGIES, Segments
from gpumask.kernels.smoothing import fwhm_to_sigma, gaussian_smooth, smoothing_matrix
from gpumask.plan import fold_smoothing

RESULTS = Path(__file__).parent / "results"
DEVICE = "cuda:0"
TINY = (9, 10, 8)
FWHM = 6.0  # mm
CLEANING = {"detrend": True, "low_pass": 0.1, "high_pass": 0.01, "t_r": inputs.T_R, "standardize": "zscore_sample"}
RUNS = {
    "mean": {"standardize": None},
    "median": {"standardize": None, "strategy": "median"},
    "6 mm + cleaning": {"smoothing_fwhm": FWHM, **CLEANING},
}


def machine():
    """What the numbers belong to."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    versions = {}
    for package in ("gpumask", "cupy-cuda12x", "cupy-cuda13x", "numpy", "scipy", "nilearn", "isal"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "gpu": properties["name"].decode(),
        "gpu_memory": int(properties["totalGlobalMem"]),
        "l2_cache": int(properties["l2CacheSize"]),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "cuda": cupy.cuda.runtime.runtimeGetVersion(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": done.stdout.strip() or "unknown",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def seconds_on_device(work, variants, rounds):
    """Median seconds of ``work(variant)`` between two events, the variants taken in turn."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    measured = []
    for k, variant in zip(range(-3, rounds), itertools.cycle(variants)):  # three to compile and warm up
        begin.record()
        work(variant)
        end.record()
        end.synchronize()
        if k >= 0:
            measured.append(cupy.cuda.get_elapsed_time(begin, end) * 1e-3)
    return statistics.median(measured)


def seconds_on_host(work, rounds):
    """Median seconds of ``work()`` on the clock, after one call that isn't counted."""
    work()
    measured = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        measured.append(time.perf_counter() - start)
    return statistics.median(measured)


def rotated(host, l2_cache):
    """Copies of an array on the device, of more bytes together than the second-level cache holds twice."""
    count = 2 + 2 * l2_cache // max(host.nbytes, 1)
    return [backend.to_device(host, DEVICE) for _ in range(min(count, 64))]


def copy_bandwidth(l2_cache, rounds):
    """Bytes a second, read and written, of a copy from device memory to device memory."""
    values = rotated(np.zeros(max(8 * l2_cache, 1 << 16), np.uint8), 0)
    target = values.pop()
    return 2 * target.nbytes / seconds_on_device(lambda source: target.__setitem__(slice(None), source), values, rounds)


def check(name, result, expected):
    """Compare with NumPy's result; SystemExit beyond the contract between CPU and GPU."""
    scale = np.nanmax(np.abs(expected))
    if not np.allclose(backend.to_host(result), expected, rtol=1e-10, atol=1e-10 * scale, equal_nan=True):
        worst = np.nanmax(np.abs(backend.to_host(result) - expected)) / scale
        raise SystemExit(f"{name}: GPU and NumPy differ by {worst:.1e} of the largest value; nothing was timed.")


def reductions(sizes):
    """(name, volumes, segments, strategy) of the reductions."""
    labels = {n: inputs.parcellation(n).ravel(order="F") for n in sizes["regions"]}
    shape = inputs.SHAPE[::-1]
    sigma = fwhm_to_sigma(FWHM, np.full(3, 2.0))
    middle = sizes["regions"][-1]
    for n_volumes in sizes["chunks"]:
        whole = np.stack([v.ravel(order="F") for v in inputs.volumes(n_volumes, "int16")])
        of = {n: Segments.from_labels(labels[n], range(1, n + 1)) for n in labels}
        for strategy in STRATEGIES:
            yield f"{strategy}, int16, {middle} regions", whole, of[middle], strategy
        for n in sizes["regions"][:-1]:
            yield f"mean, int16, {n} regions", whole, of[n], "mean"
        for dtype in ("float32", "float64"):
            yield f"mean, {dtype}, {middle} regions", whole.astype(dtype), of[middle], "mean"
        matrices = [smoothing_matrix(n, s) for n, s in zip(shape, sigma, strict=True)]
        yield f"folded {FWHM:g} mm, int16, {middle} regions", whole, fold_smoothing(of[middle], shape, matrices), "mean"


def time_reductions(sizes, bandwidth, l2_cache, rounds):
    """A row for each reduction."""
    for name, host, segments, strategy in reductions(sizes):
        expected = STRATEGIES[strategy](0.5 * host.astype(np.float64) + 3.0, segments)
        variants = rotated(host, l2_cache)
        on_device = segments.like(variants[0])

        def work(data, on_device=on_device, strategy=strategy):
            return segments_cuda.reduce(data, on_device, strategy, slope=0.5, inter=3.0, non_finite="zero")[0]

        check(name, work(variants[0]), expected)
        seconds = seconds_on_device(work, variants, rounds)
        n_entries, n_read = len(segments.indices), len(np.unique(segments.indices))
        groups = -(-len(host) // segments_cuda._VOLUMES)
        entry_bytes = segments.indices.itemsize + (8 if segments.weights is not None else 0)
        n_bytes = len(host) * n_read * host.itemsize + groups * n_entries * entry_bytes + expected.nbytes
        cpu = seconds_on_host(lambda host=host, s=segments, f=STRATEGIES[strategy]: f(host, s), max(rounds // 5, 1))
        yield row(name, len(host), seconds, cpu, n_bytes, bandwidth)


def time_others(sizes, bandwidth, rounds):
    """A row for each step that is made of array operations; bytes are those of its input and output."""
    rng = np.random.default_rng(0)
    volume = rng.normal(size=inputs.SHAPE[::-1])
    signals = np.cumsum(rng.normal(size=(sizes["volumes"], sizes["regions"][-1])), axis=0)
    basis = np.linalg.qr(rng.normal(size=(sizes["volumes"], min(24, sizes["volumes"] // 2))))[0]
    sos = butterworth_sos(inputs.T_R, 0.1, 0.01)
    sigma = fwhm_to_sigma(FWHM, np.full(3, 2.0))
    flat, wanted = volume.reshape(1, -1), np.flatnonzero(inputs.brain().ravel(order="F"))
    shear = np.eye(3) + 0.02 * np.ones((3, 3))
    aligned, oblique = (
        CubicResampling.compile(matrix, np.full(3, 0.25), inputs.SHAPE, inputs.SHAPE, wanted)
        for matrix in (np.full(3, 0.95), shear)
    )
    for_device = {id(grid): grid.like(backend.to_device(flat, DEVICE)) for grid in (aligned, oblique)}

    def resample(data, grid):
        return resample_cubic(data, grid if backend.is_numpy(data) else for_device[id(grid)])

    steps = {
        f"gaussian_smooth, {FWHM:g} mm, float64": (volume, lambda v: gaussian_smooth(v, sigma)),
        "resample_cubic, aligned axes": (flat, lambda v: resample(v, aligned)),
        "resample_cubic, oblique": (flat, lambda v: resample(v, oblique)),
        "fft_filtfilt": (signals, lambda s: fft_filtfilt(s, sos)),
        "regress_out, 24 columns": (signals, lambda s: regress_out(s, backend.like(basis, s))),
        "standardize": (signals, lambda s: standardize(s, "zscore_sample")),
    }
    for name, (host, step) in steps.items():
        data, expected = backend.to_device(host, DEVICE), step(host)
        check(name, step(data), expected)
        seconds = seconds_on_device(step, [data], rounds)
        cpu = seconds_on_host(lambda host=host, step=step: step(host), max(rounds // 5, 1))
        n_volumes = len(signals) if host is signals else 1
        yield row(name, n_volumes, seconds, cpu, host.nbytes + expected.nbytes, bandwidth)


def row(name, n_volumes, seconds, cpu, n_bytes, bandwidth):
    """One line of the kernels' table."""
    share = n_bytes / seconds / bandwidth if seconds and bandwidth else None
    values = {"seconds": seconds, "cpu_seconds": cpu, "bytes": n_bytes, "share_of_copy": share}
    return {"kernel": name, "volumes": n_volumes, **values}


def whole_runs(sizes, folder, rounds, jobs):
    """A row for each kind of run, file format and tool: the median of `rounds` runs after a first one."""
    atlas = str(inputs.atlas(folder, sizes["regions"][-1]))
    table = str(inputs.confounds(folder, sizes["volumes"], min(24, sizes["volumes"] // 4)))
    for suffix, (work, parameters) in itertools.product((".nii", ".nii.gz"), RUNS.items()):
        run = str(inputs.bold(folder, sizes["volumes"], suffix=suffix))
        confounds = table if "detrend" in parameters else None
        results = {}
        for tool, device in (("gpumask, GPU", DEVICE), ("gpumask, CPU", "cpu"), ("nilearn", None), ("jobs", None)):
            n_jobs = jobs if tool == "jobs" else 1
            if device is None:
                measured = of_nilearn(atlas, parameters, run, confounds, rounds, n_jobs)
            else:
                measured = of_gpumask(atlas, {**parameters, "device": device}, run, confounds, rounds)
            signals = measured.pop("signals")
            results.setdefault("first", signals)
            if device is None or device == "cpu":
                close_enough(f"{work}, {suffix}, {tool}", results["first"], signals, 1e-10 if device else 1e-5)
            name = f"nilearn, {n_jobs} runs at once" if tool == "jobs" else tool
            yield {"work": work, "file": suffix, "tool": name, **measured}


def close_enough(name, signals, expected, tolerance):
    """SystemExit if signals of the GPU differ by more than `tolerance` of the largest."""
    difference = float(np.nanmax(np.abs(signals - expected)) / np.nanmax(np.abs(expected)))
    if not difference < tolerance:
        raise SystemExit(f"{name}: the GPU's signals differ by {difference:.1e} of the largest.")


def of_gpumask(atlas, parameters, run, confounds, rounds):
    """Median seconds of a run, and how they are split; writing a table of the signals is part of them."""
    masker = NiftiLabelsMasker(atlas, **parameters).fit()
    measured = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(1 + rounds):
            start = time.perf_counter()
            signals = masker.transform(run, confounds=confounds)
            between = time.perf_counter()
            pd.DataFrame(signals).to_csv(Path(folder) / "signals.tsv", sep="\t", index=False)
            end = time.perf_counter()
            measured.append({**masker.seconds_, "write": end - between, "total": end - start})
    split = {name: statistics.median(one[name] for one in measured[1:]) for name in measured[0]}
    return {"seconds": split["total"], "split": split, "signals": signals}


def of_nilearn(atlas, parameters, run, confounds, rounds, n_jobs):
    """Median seconds per run with `n_jobs` runs side by side."""
    jobs = [joblib.delayed(one_of_nilearn)(atlas, parameters, run, confounds) for _ in range(n_jobs)]
    measured = []
    with joblib.Parallel(n_jobs) as parallel:
        for _ in range(1 + rounds):
            start = time.perf_counter()
            signals = parallel(jobs)[0]
            measured.append((time.perf_counter() - start) / n_jobs)
    return {"seconds": statistics.median(measured[1:]), "signals": signals}


def one_of_nilearn(atlas, parameters, run, confounds):
    """Signals of one run by nilearn, in whatever process this is."""
    from nilearn.maskers import NiftiLabelsMasker as Theirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Theirs(atlas, **parameters).fit_transform(run, confounds=confounds)


def tables(report):
    """The report as Markdown."""
    copy = report["copy_bytes_per_second"] / 1e9
    yield f"{report['machine']['gpu']}; a copy moves {copy:.0f} GB/s\n"
    yield "| kernel | volumes | us per volume | share of a copy | CPU, us per volume | times faster |"
    yield "|---|---|---|---|---|---|"
    for one in report["kernels"]:
        gpu, cpu = (one[key] / one["volumes"] * 1e6 for key in ("seconds", "cpu_seconds"))
        share = "-" if one["share_of_copy"] is None else f"{one['share_of_copy']:.0%}"
        faster = f"{cpu / gpu:.2f}" if gpu else "-"
        yield f"| {one['kernel']} | {one['volumes']} | {gpu:.2f} | {share} | {cpu:.1f} | {faster} |"
    yield "\n| run | file | tool | seconds | split |"
    yield "|---|---|---|---|---|"
    for one in report["runs"]:
        split = ", ".join(f"{name} {value:.3f}" for name, value in one.get("split", {}).items() if name != "total")
        yield f"| {one['work']} | {one['file']} | {one['tool']} | {one['seconds']:.3f} | {split or '-'} |"


def main(argv=None):
    """Check, time, print the tables and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each kernel (default: 20)")
    parser.add_argument("--volumes", type=int, default=200, help="length of the run (default: 200)")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="runs of nilearn at once")
    parser.add_argument("--folder", type=Path, help="where inputs are made and kept (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="the report (default: benchmarks/results/gpu-DATE.json)")
    parser.add_argument(
        "--tiny", action="store_true", help="a small grid and few rounds: whether it runs, not how fast"
    )
    options = parser.parse_args(argv)
    status = backend.cuda_status()
    if not status.devices:
        raise SystemExit(f"benchmarks.gpu needs a CUDA device: {status.problem}. {status.remedy}")
    sizes = {"volumes": options.volumes, "regions": (1, 10_000, 400), "chunks": (8, 64)}
    rounds, run_rounds = options.rounds, 3
    if options.tiny:
        inputs.SHAPE = TINY
        sizes, rounds, run_rounds = {"volumes": 40, "regions": (1, 5), "chunks": (9,)}, 1, 1
    with tempfile.TemporaryDirectory() as temporary, backend.using(DEVICE):
        folder = Path(temporary) if options.tiny or not options.folder else options.folder
        folder.mkdir(exist_ok=True, parents=True)
        report = {"machine": machine(), "tiny": options.tiny, "volumes": sizes["volumes"], "grid": inputs.SHAPE}
        l2_cache = report["machine"]["l2_cache"]
        bandwidth = report["copy_bytes_per_second"] = copy_bandwidth(l2_cache, rounds)
        reduced = time_reductions(sizes, bandwidth, l2_cache, rounds)
        report["kernels"] = [*reduced, *time_others(sizes, bandwidth, rounds)]
        report["runs"] = list(whole_runs(sizes, folder, run_rounds, options.jobs))
    print("\n".join(tables(report)))
    out = options.out or RESULTS / f"gpu-{report['machine']['date'].replace(':', '')}.json"
    out.parent.mkdir(exist_ok=True, parents=True)
    out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(f"\nwritten: {out}")


if __name__ == "__main__":
    main()
