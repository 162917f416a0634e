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
import nibabel as nib
import numpy as np
import pandas as pd

from benchmarks.inputs import T_R, Inputs
from gpumask import NiftiLabelsMasker, backend
from gpumask.files import appearing_together, write
from gpumask.kernels import segments_cuda
from gpumask.kernels.cleaning import regress_out, standardize
from gpumask.kernels.filtering import butterworth_sos, fft_filtfilt
from gpumask.kernels.resampling import CubicResampling, resample_cubic
from gpumask.kernels.segments import STRATEGIES, Segments
from gpumask.kernels.smoothing import fwhm_to_sigma, gaussian_smooth, smoothing_matrix
from gpumask.kernels.weights import fold
from gpumask.tables import json_lines

RESULTS = Path(__file__).parent / "results"
DEVICE = "cuda:0"
REGIONS = 416
OTHER_REGIONS = (6272, 70262)
_NILEARN = 3e-5  # of the largest signal: nilearn smooths integers in float32
FWHM = 6.0  # mm
CLEANING = {"detrend": True, "low_pass": 0.1, "high_pass": 0.01, "t_r": T_R, "standardize": "zscore_sample"}
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


def reductions(inputs, chunks):
    """(name, volumes, segments, strategy) of the reductions."""
    run = nib.load(inputs.bold(max(chunks), suffix=".nii")).dataobj
    voxel_sizes = np.diag(inputs.affine)[:3]
    of = {n: flat(nib.load(inputs.atlas(n)).dataobj) for n in (REGIONS, *OTHER_REGIONS)}
    of = {n: Segments.from_labels(labels, np.unique(labels[labels > 0])) for n, labels in of.items()}
    usual = of[REGIONS]
    brain = Segments(np.sort(usual.indices), usual.offsets[[0, -1]])
    sigma = fwhm_to_sigma(FWHM, voxel_sizes)
    matrices = [smoothing_matrix(n, s) for n, s in list(zip(inputs.shape, sigma, strict=True))[::-1]]
    folded = Segments(*fold(usual.indices, usual.offsets, matrices))
    for chunk in chunks:
        whole = np.ascontiguousarray(np.asarray(run[..., : inputs.n_volumes(chunk)]).reshape(-1, order="F"))
        whole = whole.reshape(inputs.n_volumes(chunk), -1)
        for strategy in STRATEGIES:
            yield f"{strategy}, int16, {len(usual)} regions", whole, usual, strategy
        yield "mean, int16, the brain as one region", whole, brain, "mean"
        for n in OTHER_REGIONS:
            yield f"mean, int16, {len(of[n])} regions", whole, of[n], "mean"
        for dtype in ("float32", "float64"):
            yield f"mean, {dtype}, {len(usual)} regions", whole.astype(dtype), usual, "mean"
        yield f"folded {FWHM:g} mm, int16, {len(usual)} regions", whole, folded, "mean"


def flat(dataobj):
    """A volume's voxels, x fastest."""
    return np.asarray(dataobj).ravel(order="F")


def time_reductions(inputs, chunks, bandwidth, l2_cache, rounds):
    """A row for each reduction."""
    for name, host, segments, strategy in reductions(inputs, chunks):
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


def time_others(inputs, n_volumes, bandwidth, rounds):
    """A row for each step that is made of array operations; bytes are those of its input and output."""
    rng = np.random.default_rng(0)
    volume = rng.normal(size=inputs.shape[::-1])
    signals = np.cumsum(rng.normal(size=(inputs.n_volumes(n_volumes), REGIONS)), axis=0)
    basis = np.linalg.qr(rng.normal(size=(len(signals), min(24, len(signals) // 2))))[0]
    sos = butterworth_sos(T_R, 0.1, 0.01)
    sigma = fwhm_to_sigma(FWHM, np.diag(inputs.affine)[:3])[::-1]
    row_of_voxels, wanted = volume.reshape(1, -1), np.flatnonzero(flat(nib.load(inputs.atlas(REGIONS)).dataobj))
    shear = np.eye(3) + 0.02 * np.ones((3, 3))
    aligned, oblique = (
        CubicResampling.compile(matrix, np.full(3, 0.25), inputs.shape, inputs.shape, wanted)
        for matrix in (np.full(3, 0.95), shear)
    )
    for_device = {id(grid): grid.like(backend.to_device(row_of_voxels, DEVICE)) for grid in (aligned, oblique)}

    def resample(data, grid):
        return resample_cubic(data, grid if backend.is_numpy(data) else for_device[id(grid)])

    steps = {
        f"gaussian_smooth, {FWHM:g} mm, float64": (volume, lambda v: gaussian_smooth(v, sigma)),
        "resample_cubic, aligned axes": (row_of_voxels, lambda v: resample(v, aligned)),
        "resample_cubic, oblique": (row_of_voxels, lambda v: resample(v, oblique)),
        "fft_filtfilt": (signals, lambda s: fft_filtfilt(s, sos)),
        "regress_out, 24 columns": (signals, lambda s: regress_out(s, backend.like(basis, s))),
        "standardize": (signals, lambda s: standardize(s, "zscore_sample")),
    }
    for name, (host, step) in steps.items():
        data, expected = backend.to_device(host, DEVICE), step(host)
        check(name, step(data), expected)
        seconds = seconds_on_device(step, [data], rounds)
        cpu = seconds_on_host(lambda host=host, step=step: step(host), max(rounds // 5, 1))
        yield row(name, len(signals) if host is signals else 1, seconds, cpu, host.nbytes + expected.nbytes, bandwidth)


def row(name, n_volumes, seconds, cpu, n_bytes, bandwidth):
    """One line of the kernels' table."""
    share = n_bytes / seconds / bandwidth if seconds and bandwidth else None
    values = {"seconds": seconds, "cpu_seconds": cpu, "bytes": n_bytes, "share_of_copy": share}
    return {"kernel": name, "volumes": n_volumes, **values}


def whole_runs(inputs, n_volumes, rounds, jobs):
    """A row for each kind of run, file format and tool: the median of `rounds` runs after a first one."""
    atlas, table = str(inputs.atlas(REGIONS)), str(inputs.confounds(n_volumes))
    for suffix, (work, parameters) in itertools.product((".nii", ".nii.gz"), RUNS.items()):
        run = str(inputs.bold(n_volumes, suffix=suffix))
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
                close_enough(f"{work}, {suffix}, {tool}", results["first"], signals, 1e-10 if device else _NILEARN)
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
    if status.problem:
        raise SystemExit(f"benchmarks.gpu needs a CUDA device: {status.problem}. {status.remedy}")
    n_volumes, chunks, rounds, run_rounds = options.volumes, (8, 64), options.rounds, 3
    if options.tiny:
        n_volumes, chunks, rounds, run_rounds = 80, (18,), 1, 1
    with tempfile.TemporaryDirectory() as temporary, backend.using(DEVICE):
        inputs = Inputs(options.folder or temporary, tiny=options.tiny)
        report = {"machine": machine(), "tiny": options.tiny, "grid": inputs.shape}
        report["volumes"] = inputs.n_volumes(n_volumes)
        l2_cache = report["machine"]["l2_cache"]
        bandwidth = report["copy_bytes_per_second"] = copy_bandwidth(l2_cache, rounds)
        reduced = time_reductions(inputs, chunks, bandwidth, l2_cache, rounds)
        report["kernels"] = [*reduced, *time_others(inputs, n_volumes, bandwidth, rounds)]
        report["runs"] = list(whole_runs(inputs, n_volumes, run_rounds, options.jobs))
    print("\n".join(tables(report)))
    out = options.out or RESULTS / f"gpu-{report['machine']['date'].replace(':', '')}.json"
    out.parent.mkdir(exist_ok=True, parents=True)
    with appearing_together([out]) as (part,):
        write(part, json_lines(report))
    print(f"\nwritten: {out}")


if __name__ == "__main__":
    main()
