"""Whole runs, maps and cohorts: the GPU next to all cores of the CPU."""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu.bench import DEVICE, FWHM, N_VOLUMES, difference
from benchmarks.gpu.timing import EMULATED
from benchmarks.inputs import T_R
from gpumask import NiftiLabelsMasker, NiftiMasker, correlation_maps, process
from gpumask.bids import Run
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort

CLEANING = {"detrend": True, "low_pass": 0.1, "high_pass": 0.01, "t_r": T_R, "standardize": "zscore_sample"}
SUFFIXES = (".nii", ".nii.gz")
_COHORT = 48  # runs
_AFFINE = {"to labels, aligned": "shifted", "to labels, oblique": "oblique"}  # of the atlas
_TO_LABELS = {"resampling_target": "labels"}
WORKS = {
    "mean": {},
    f"{FWHM:g} mm + cleaning": {"smoothing_fwhm": FWHM, **CLEANING},
    "median": {"strategy": "median"},
    f"median {FWHM:g} mm": {"strategy": "median", "smoothing_fwhm": FWHM},
    **dict.fromkeys(_AFFINE, _TO_LABELS),
}


def make_inputs(bench):
    """The run that most rows read, compressed and not."""
    sizes = {suffix: bench.inputs.bold(N_VOLUMES, suffix=suffix).stat().st_size for suffix in SUFFIXES}
    return {f"{suffix}, MB": size / 1e6 for suffix, size in sizes.items()}


def labels(bench, work, suffix):
    """Signals of regions."""
    run, atlas = _run(bench, suffix), str(bench.inputs.atlas(affine=_AFFINE.get(work, "same")))
    table = str(bench.inputs.confounds(N_VOLUMES)) if "detrend" in WORKS[work] else None

    def on(device):
        masker = NiftiLabelsMasker(atlas, device=device, **WORKS[work]).fit()
        return lambda: (masker.transform(run, confounds=table), masker.seconds_)

    return _both(bench, on)


def voxels(bench, suffix):
    """The cleaned series of every voxel of the brain."""
    run, mask, table = _run(bench, suffix), str(bench.inputs.mask()), str(bench.inputs.confounds(N_VOLUMES))

    def on(device):
        masker = NiftiMasker(mask, device=device, **CLEANING).fit()
        return lambda: (masker.transform(run, confounds=table), masker.seconds_)

    return _both(bench, on)


def maps(bench, suffix):
    """Correlation maps of all regions."""
    run, mask, table = _run(bench, suffix), str(bench.inputs.mask()), str(bench.inputs.confounds(N_VOLUMES))

    def on(device):
        masker = NiftiLabelsMasker(str(bench.inputs.atlas()), device=device, **CLEANING).fit(run)
        return lambda: (correlation_maps(masker, run, table, mask_img=mask), {})

    return _both(bench, on)


def _run(bench, suffix):
    return str(bench.inputs.bold(N_VOLUMES, suffix=suffix))


def _both(bench, on):
    """Times on the GPU and on the CPU, and by how much their results differ."""
    values, results = {}, {}
    for device, name in ((DEVICE, "GPU"), ("cpu", "CPU")):
        work, times, splits, same = on(device), [], [], True
        for k in range(1 + bench.run_rounds):
            started = time.perf_counter()
            result, seconds = work()
            times.append(time.perf_counter() - started)
            splits.append(dict(seconds))
            same &= k == 0 or np.array_equal(result, results[name], equal_nan=True)
            results[name] = result
        values |= {f"{name}: first, s": times[0], f"{name}, s": statistics.median(times[1:])}
        for part in (part for part in splits[-1] if part != "total"):
            by_device = name == "GPU" and part in ("upload", "reduce")  # by events, the others by the host's clock
            median = None if by_device and bench.clock.emulated else statistics.median(s[part] for s in splits[1:])
            values[f"{name}: {part}, s"] = median
        values[f"{name}: same bits"] = bool(same)
    found = difference("signals", results["GPU"], results["CPU"])
    return {**values, "cores": process.n_cores(), "difference": found, "why": EMULATED}


def cohort(bench, work):
    """Runs a minute of a cohort of compressed runs, one thread per core; their files are links to a single one."""
    n_runs, bold = 2 if bench.inputs.tiny else _COHORT, bench.inputs.bold(N_VOLUMES)
    values = {}
    with tempfile.TemporaryDirectory(dir=bench.inputs.folder) as name:
        folder = Path(name)
        atlas = folder / "atlas-P416_dseg.nii.gz"
        shutil.copyfile(bench.inputs.atlas(affine=_AFFINE.get(work, "same")), atlas)
        paths = [folder / f"sub-{k:03}_task-rest_bold.nii.gz" for k in range(n_runs)]
        for path in paths:
            os.link(bold, path)
        parameters = {"min_coverage": None, "nan_policy": "zero", **WORKS[work]}
        signals = {}
        for device, name in ((DEVICE, "GPU"), ("cpu", "CPU")):
            out = folder / name
            configuration = Configuration((AtlasFile(atlas),), out, parameters, {}, device=device, relmats=())
            started = time.perf_counter()
            records = list(run_cohort(configuration, [Run(path, t_r=T_R) for path in paths]))
            values[f"{name}, runs/min"] = 60 * n_runs / (time.perf_counter() - started)
            if failed := [record.error for record in records if record.status != "done"]:
                raise RuntimeError(f"{len(failed)} of {n_runs} runs failed on the {name}: {failed[0]}")
            first = min(out.rglob("*_timeseries.tsv"))
            signals[name] = np.genfromtxt(first, skip_header=1, delimiter="\t", missing_values="n/a", dtype=np.float32)
    return {**values, "runs": n_runs, "difference": difference("signals", signals["GPU"], signals["CPU"])}
