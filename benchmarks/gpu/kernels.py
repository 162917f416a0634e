"""The statistics of regions, and the steps around them, alone: a call on the GPU next to one on the CPU.

On the CPU, a call has one thread, except for what BLAS does.
"""

import functools

import nibabel as nib
import numpy as np

from benchmarks.gpu.bench import DEVICE, FWHM, N_REGIONS, N_VOLUMES, difference
from benchmarks.gpu.timing import seconds_on_host
from benchmarks.inputs import T_R
from gpumask import backend
from gpumask.kernels.cleaning import regress_out, standardize
from gpumask.kernels.filtering import butterworth_sos, fft_filtfilt
from gpumask.kernels.resampling import CubicResampling, resample_cubic
from gpumask.kernels.segments import Segments, reduce
from gpumask.kernels.smoothing import fwhm_to_sigma, gaussian_smooth, smoothing_matrix
from gpumask.kernels.weights import fold

_SECTOR = 32  # bytes that memory moves at a time
_SCALED = {"slope": 0.5, "inter": 3.0}


def moved_bytes(segments, itemsize, n_volumes):
    """Bytes that a perfect kernel moves: a volume's sectors that hold a voxel, indices and weights once, and results.

    Parameters
    ----------
    segments : Segments
    itemsize : int
        Bytes of a stored voxel.
    n_volumes : int

    Returns
    -------
    int
    """
    sectors = len(np.unique(segments.indices.astype(np.int64) * itemsize // _SECTOR))
    entry = segments.indices.itemsize + (0 if segments.weights is None else segments.weights.itemsize)
    return n_volumes * (sectors * _SECTOR + 8 * len(segments)) + len(segments.indices) * entry


def reduction(bench, strategy, dtype, regions, n_volumes):
    """One statistic of `n_volumes` volumes of a dtype, in a single call."""
    host = bench.first_volumes(n_volumes).astype(dtype)
    segments = _segments(bench.inputs, regions)
    on_cpu, _ = reduce(host, segments, strategy, **_SCALED)
    variants = bench.rotated(host)
    on_device = segments.like(variants[0])

    def work(data):
        return reduce(data, on_device, strategy, **_SCALED)[0]

    first, again = (backend.to_host(work(variants[0])) for _ in range(2))
    found = difference(strategy, first, on_cpu)
    timed = bench.clock.time(work, variants, bench.rounds)
    cpu = seconds_on_host(lambda: reduce(host, segments, strategy, **_SCALED), max(bench.rounds // 5, 1))
    n_bytes = moved_bytes(segments, host.itemsize, len(host))
    per_second = timed.device and n_bytes / timed.device
    return {
        **_per(len(host), timed, cpu, "us/volume"),
        "GB/s of sectors": per_second and per_second / 1e9,
        "share of a copy": per_second and per_second / bench.copy_bandwidth,
        "difference": found,
        "same bits": bool(np.array_equal(first, again, equal_nan=True)),
        "why": timed.why,
    }


def _segments(inputs, regions):
    """The regions of an atlas; "brain": all of them as one; "folded": with the weights of smoothing."""
    labels = np.asarray(nib.load(inputs.atlas(regions if isinstance(regions, int) else N_REGIONS)).dataobj)
    labels = labels.ravel(order="F")
    if regions == "brain":
        return Segments.from_labels((labels > 0).astype(np.int32), [1])
    segments = Segments.from_labels(labels, np.unique(labels[labels > 0]))
    if regions == "folded":
        sigma = fwhm_to_sigma(FWHM, np.diag(inputs.affine)[:3])
        matrices = [smoothing_matrix(n, s) for n, s in list(zip(inputs.shape, sigma, strict=True))[::-1]]
        return Segments(*fold(segments.indices, segments.offsets, matrices))
    return segments


def _per(n, timed, cpu, unit):
    values = {"device": timed.device, "launching": timed.host, "CPU": cpu}
    return {f"{name}, {unit}": seconds and seconds / n * 1e6 for name, seconds in values.items()}


def step(bench, name):
    """Smoothing or resampling of one volume, or a step of cleaning the signals of a run."""
    data, on_cpu, on_gpu = _STEPS[name](bench.inputs)
    there = backend.to_device(data, DEVICE)
    work = on_gpu(there)
    expected = on_cpu(data)
    first, again = (backend.to_host(work(there)) for _ in range(2))
    found = difference(name, first, expected)
    timed = bench.clock.time(work, [there], bench.rounds)
    cpu = seconds_on_host(lambda: on_cpu(data), max(bench.rounds // 5, 1))
    same = bool(np.array_equal(first, again))
    return {**_per(1, timed, cpu, "us"), "difference": found, "same bits": same, "why": timed.why}


# Each returns the data, the step on the CPU, and what makes the step on the GPU from the data there.


def _smoothing(inputs):
    sigma = fwhm_to_sigma(FWHM, np.diag(inputs.affine)[:3])[::-1]
    smooth = lambda volume: gaussian_smooth(volume, sigma)  # noqa: E731
    return np.random.default_rng(0).normal(size=inputs.shape[::-1]), smooth, lambda there: smooth


def _resampling(matrix):
    def step_of(inputs):
        volume = np.random.default_rng(0).normal(size=(1, np.prod(inputs.shape)))
        wanted = np.flatnonzero(np.asarray(nib.load(inputs.atlas(N_REGIONS)).dataobj).ravel(order="F"))
        grid = CubicResampling.compile(matrix, np.full(3, 0.25), inputs.shape, inputs.shape, wanted)

        def on_gpu(there):
            moved = grid.like(there)
            return lambda data: resample_cubic(data, moved)

        return volume, lambda data: resample_cubic(data, grid), on_gpu

    return step_of


def _cleaning(step_of_signals):
    def step_of(inputs):
        rng = np.random.default_rng(0)
        signals = np.cumsum(rng.normal(size=(inputs.n_volumes(N_VOLUMES), N_REGIONS)), axis=0)
        clean = step_of_signals(rng, len(signals))
        return signals, clean, lambda there: clean

    return step_of


def _band_pass(rng, n_volumes):
    sos = butterworth_sos(T_R, 0.1, 0.01)
    return lambda signals: fft_filtfilt(signals, sos)


def _confounds(rng, n_volumes):
    basis = np.linalg.qr(rng.normal(size=(n_volumes, min(24, n_volumes // 2))))[0]
    there = functools.cache(lambda device: backend.to_device(basis, device))  # copying it would wait for the GPU
    return lambda signals: regress_out(signals, basis if backend.is_numpy(signals) else there(DEVICE))


def _z_scores(rng, n_volumes):
    return lambda signals: standardize(signals, "zscore_sample")


_STEPS = {
    f"smoothing {FWHM:g} mm, one volume": _smoothing,
    "resampling, aligned axes, one volume": _resampling(np.full(3, 0.95)),
    "resampling, oblique, one volume": _resampling(np.eye(3) + 0.02 * np.ones((3, 3))),
    f"band-pass, {N_REGIONS} signals": _cleaning(_band_pass),
    f"24 confounds, {N_REGIONS} signals": _cleaning(_confounds),
    f"z-scores, {N_REGIONS} signals": _cleaning(_z_scores),
}
STEPS = tuple(_STEPS)
