"""The rows, the most important first, and what was predicted of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu import ceilings, cold, decoding, kernels, runs
from benchmarks.gpu.bench import FWHM, N_REGIONS, N_VOLUMES
from gpumask.choices import STRATEGIES


@dataclass(frozen=True)
class Row:
    """What is measured together.

    Attributes
    ----------
    name : str
    seconds : float
        What it takes at most, as expected of an H100 with 16 cores; a row is skipped if less of the budget is left.
    measure : callable
        Takes a `Bench`, and returns the values by name, each with its unit: numbers, or None where nothing can be
        measured, "why" says why.
    needs_gpu : bool
    """

    name: str
    seconds: float
    measure: Callable
    needs_gpu: bool = True


def all_rows():
    """The rows in order of importance."""
    rows = [
        Row("copy on the device", 3, ceilings.copy),
        Row("page-locked upload", 3, ceilings.upload),
        Row("cold start: mean", 15, partial(cold.start, parameters={})),
        # The rows after this one read these files.
        Row(f"inputs: {N_VOLUMES} volumes", 60, runs.make_inputs, needs_gpu=False),
    ]
    # "auto" sends these works to the GPU.
    for suffix in runs.SUFFIXES:
        rows += [
            Row(f"voxels, cleaned, {suffix}", 30, partial(runs.voxels, suffix=suffix)),
            Row(f"correlation maps, {suffix}", 40, partial(runs.maps, suffix=suffix)),
        ]
    for suffix in runs.SUFFIXES:
        seconds = 8 if suffix == ".nii" else 15
        rows += [
            Row(f"run: {work}, {suffix}", seconds, partial(runs.labels, work=work, suffix=suffix))
            for work in reversed(runs.WORKS)  # as "auto" does, resampling and staged smoothing come first
        ]
    rows += [Row(f"step: {name}", 3, partial(kernels.step, name=name)) for name in kernels.STEPS]
    rows += [_reduction(*one) for one in _REDUCTIONS]
    rows += [
        Row("decoding", 30, decoding.decoding, needs_gpu=False),
        *(Row(f"cohort: {work}", 35, partial(runs.cohort, work=work)) for work in _COHORTS),
    ]
    staged = {"strategy": "median", "smoothing_fwhm": FWHM}
    return [
        *rows,
        Row(f"cold start: median {FWHM:g} mm", 15, partial(cold.start, parameters=staged)),
        Row("product of float64 matrices", 3, ceilings.product),
    ]


_COHORTS = ("mean", "to labels, oblique", f"median {FWHM:g} mm", f"{FWHM:g} mm + cleaning")
# 16 volumes are a chunk of a run.
_REDUCTIONS = [
    *((strategy, "int16", N_REGIONS, 16) for strategy in ("mean", "median")),
    ("mean", "int16", "folded", 16),
    *((strategy, "int16", N_REGIONS, 64) for strategy in ("mean", "median")),
    ("mean", "int16", "folded", 64),
    *(("mean", dtype, N_REGIONS, 16) for dtype in ("float32", "float64")),
    *(("mean", "int16", regions, 16) for regions in (6272, 70262, "brain")),
    *((strategy, "int16", N_REGIONS, 16) for strategy in STRATEGIES if strategy not in ("mean", "median")),
]


def _reduction(strategy, dtype, regions, n_volumes):
    what = f"{regions} regions" if isinstance(regions, int) else "the brain as one region"
    if regions == "folded":
        what = f"{FWHM:g} mm folded, {N_REGIONS} regions"
    name = f"kernel: {strategy}, {dtype}, {what}, {n_volumes} volumes"
    measure = partial(kernels.reduction, strategy=strategy, dtype=dtype, regions=regions, n_volumes=n_volumes)
    return Row(name, 4, measure)


# (row, value): range, predicted for an H100 and 16 cores. Most were written down before f6e87dd (version 0.1.0) was
# measured; its report in benchmarks/results/gpu compares them, and the refuted ones are left as they were. Those below
# the line are about version 0.2.0, derived from what f6e87dd's kernels took; nothing has tested them yet.
PREDICTED = {
    ("copy on the device", "GB/s"): (3000, 3000),
    ("page-locked upload", "GB/s"): (50, 55),
    ("page-locked upload", "us/volume"): (40, 43),
    ("cold start: mean", "empty cache: process, s"): (2, 3),
    ("cold start: mean", "full cache: process, s"): (1, 1.5),
    ("kernel: mean, int16, 416 regions, 16 volumes", "device, us/volume"): (0.5, 0.7),
    ("kernel: mean, int16, 416 regions, 16 volumes", "launching, us/volume"): (5, 7),
    ("kernel: mean, int16, 416 regions, 64 volumes", "device, us/volume"): (0.25, 0.4),
    ("kernel: mean, int16, 6 mm folded, 416 regions, 16 volumes", "device, us/volume"): (2.5, 4.5),
    ("kernel: median, int16, 416 regions, 16 volumes", "device, us/volume"): (2, 4),
    ("run: mean, .nii.gz", "GPU, s"): (0.85, 0.95),
    ("run: mean, .nii", "GPU, s"): (0.06, 0.1),
    ("run: mean, .nii", "CPU, s"): (0.01, 0.03),
    ("decoding", "rapidgzip, threads: 16: s"): (0.15, 0.25),
    ("decoding", "isal: s"): (0.83, 0.83),
    # ---
    ("step: smoothing 6 mm, one volume", "launching, us"): (20, 60),
    ("step: resampling, oblique, one volume", "launching, us"): (60, 200),
    ("step: resampling, oblique, one volume", "device, us"): (200, 600),
    ("run: to labels, oblique, .nii", "GPU, s"): (0.12, 0.25),
}
