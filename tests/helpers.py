"""What several test files share: images, label volumes, and marks."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from gpumask.kernels import compiled

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2.5, 0, -8], [0, 0, 3, -6], [0, 0, 0, 1]])

needs_compiled = pytest.mark.skipif(compiled.extension is None, reason="gpumask was installed without a C compiler")


def image(data, affine=AFFINE):
    """A NIfTI image in memory, of the array's dtype."""
    data = np.asarray(data)
    return nib.Nifti1Image(data, affine, dtype=data.dtype)


def save(path, data, affine=None, t_r=None):
    """Write an image, with the repetition time in its header if there is one; return its path."""
    img = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    if t_r is not None:
        img.header.set_xyzt_units("mm", "sec")
        img.header["pixdim"][4] = t_r
    nib.save(img, path)
    return path


def blocks(ids=(1, 2, 5, 9), dtype="i2", shape=(6, 7, 8), *, wide=()):
    """Label volume: a block per region (wider for some ids), background between them."""
    labels = np.zeros(shape, dtype)
    for i, (x, y) in zip(ids, itertools.product((0, 3), (1, 4)), strict=False):
        labels[x : x + 2 + (i in wide), y : y + 3, 1:6] = i
    return labels


def slabs(labels, dtype="i2", shape=(6, 5, 4)):
    """Label volume: one slice of background along x, then a slab per label."""
    volume = np.zeros(shape, dtype)
    for part, label in zip(np.array_split(np.arange(1, shape[0]), len(labels)), labels, strict=True):
        volume[part] = label
    return volume
