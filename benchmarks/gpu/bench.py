"""What the rows share: inputs, the clock, the GPU's copies and ceilings, and how results are compared."""

import functools
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu.timing import Clock
from benchmarks.inputs import Inputs
from gpumask import backend

DEVICE = "cuda:0"
N_VOLUMES = 200
N_REGIONS = 416
FWHM = 6.0  # mm
_AGREE = {"d": 1e-12, "f": 1e-5}  # of the largest value: GPU and CPU round differently


class DifferentResultsError(Exception):
    """GPU and CPU differ by more than rounding: their times mean nothing."""


@dataclass(frozen=True)
class Bench:
    """Attributes: `inputs`; `rounds` of a kernel, and `run_rounds` of a whole run; the `clock`."""

    inputs: Inputs
    rounds: int
    run_rounds: int
    clock: Clock

    @functools.cached_property
    def l2_cache(self):
        """Bytes of the GPU's second-level cache."""
        import cupy

        return int(cupy.cuda.runtime.getDeviceProperties(0)["l2CacheSize"])

    @functools.cached_property
    def copy_bandwidth(self):
        """Bytes a second, read and written, of a copy within the GPU's memory; None on an emulated GPU."""
        n_bytes = (1 << 16) if self.inputs.tiny else 8 * self.l2_cache
        source, target = (backend.to_device(np.zeros(n_bytes, np.uint8), DEVICE) for _ in range(2))
        seconds = self.clock.time(lambda _: target.__setitem__(slice(None), source), rounds=self.rounds).device
        return seconds and 2 * n_bytes / seconds

    def rotated(self, host):
        """Copies of an array on the GPU, of more bytes together than its second-level cache holds twice."""
        count = 1 if self.clock.emulated else 2 + 2 * self.l2_cache // max(host.nbytes, 1)
        return [backend.to_device(host, DEVICE) for _ in range(min(count, 64))]

    def first_volumes(self, n_volumes):
        """Stored values of a run's first volumes, shape (n_volumes, n_voxels)."""
        import nibabel as nib

        n_volumes = self.inputs.n_volumes(n_volumes)
        stored = nib.load(self.inputs.bold(N_VOLUMES, suffix=".nii")).dataobj[..., :n_volumes]
        return np.ascontiguousarray(np.reshape(stored, (-1, n_volumes), order="F").T)


def difference(name, on_gpu, on_cpu):
    """Largest difference, as a share of the largest value on the CPU; an error if it is more than rounding."""
    if not np.array_equal(np.isnan(on_gpu), np.isnan(on_cpu)):
        raise DifferentResultsError(f"{name}: NaN on the GPU, but not on the CPU, or the reverse")
    allowed = _AGREE[on_cpu.dtype.char]
    found = float(np.nanmax(np.abs(on_gpu.astype(np.float64) - on_cpu)) / np.nanmax(np.abs(on_cpu)))
    if not found <= allowed:
        share = "of the largest value"
        raise DifferentResultsError(f"{name}: GPU and CPU differ by {found:.1e} {share} (allowed: {allowed:g})")
    return found
