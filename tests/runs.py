"""Small runs and plans for the tests of the pipelines."""

import gzip
import weakref
from dataclasses import replace

import nibabel as nib
import numpy as np

from gpumask.engine import plan as plans
from gpumask.engine.stream import run_plans
from gpumask.images.grid import Grid
from gpumask.kernels.segments import Segments

SHAPE = (8, 9, 7)
AFFINE = np.array([[-3.0, 0, 0, 10], [0, 3.5, 0, -12], [0, 0, 4, -9], [0, 0, 0, 1]])
LABEL_AFFINES = {
    "same": AFFINE,
    "parallel": AFFINE @ np.diag([0.8, 0.9, 0.75, 1]) + np.array([[0, 0, 0, -2], [0, 0, 0, 1], [0] * 4, [0] * 4]),
    "oblique": AFFINE
    @ np.array([[0.98, -0.17, 0.06, 0.5], [0.17, 0.98, 0, -0.3], [-0.06, 0.01, 1, 0.6], [0, 0, 0, 1]]),
}
IDS = [4, 9, 2, 7, 1]  # unordered; 9 has no voxel
N_VOLUMES = 7


def stored_run(dtype="i2", n=N_VOLUMES, seed=0):
    """Stored values, shape (x, y, z, n), growing over time."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(*SHAPE, n)) * 20 + 60 + np.arange(n)
    return np.asfortranarray(values.clip(0, 120) if np.dtype(dtype).kind in "ub" else values).astype(dtype)


def write(path, stored, slope=1.0, inter=0.0, affine=AFFINE):
    """A NIfTI file of exactly these bytes: nibabel would choose a scaling of its own."""
    header = nib.Nifti1Header(endianness=">" if stored.dtype.str.startswith(">") else "<")
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    header.set_sform(affine, 1)
    header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), 2.0))
    header.set_slope_inter(slope, inter)
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4) + stored.tobytes(order="F")
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def some_labels(seed=0):
    labels = np.random.default_rng(seed).choice([0, 0, 4, 2, 7], SHAPE)
    labels[3, 3, 3] = 1
    return labels


def compile_plan(labels, ids, label_grid, *, mask=None, **options):
    """A plan of the regions of a label volume; 0 is the background."""
    labels = np.asarray(labels) if mask is None else np.where(mask, labels, 0)
    return plans.compile_plan(Segments.from_labels(labels.ravel(order="F"), ids), label_grid, **options)


def some_plan(labels_on="same", fwhm=None, strategy="mean", **options):
    label_grid, grid = Grid(SHAPE, LABEL_AFFINES[labels_on]), Grid(SHAPE, AFFINE)
    return compile_plan(some_labels(), IDS, label_grid, grid=grid, smoothing_fwhm=fwhm, strategy=strategy, **options)


_on_devices = weakref.WeakKeyDictionary()


def on(plans, device):
    """Plans on a device, which isn't probed; the same objects each time, as from `Plan.on`."""
    for plan in plans:
        if device not in (there := _on_devices.setdefault(plan, {})):
            there[device] = replace(plan, device=device)
    return [_on_devices[plan][device] for plan in plans]


def extract(plan, volumes, device="cpu", **options):
    """Signals of a run by a single plan."""
    return run_plans(on([plan], device), volumes, **options)[0]
