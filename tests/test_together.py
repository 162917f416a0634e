"""Maskers of every kind on one run, which is read once."""

import warnings

import numpy as np
import pytest

import gpumask
from gpumask.images.volumes import open_volumes

from .helpers import AFFINE, blocks, image

SHAPE, N = (6, 7, 8), 50
RNG = np.random.default_rng(5)
LABELS = image(blocks(shape=SHAPE))
MAPS = image((RNG.random((*SHAPE, 3)) * (RNG.random((*SHAPE, 3)) < 0.4)).astype("f4"))
MASK = image((RNG.random(SHAPE) < 0.6).astype("u1"))
SEEDS = [(4.0, -3.0, 3.0), (8.0, 4.5, 12.0)]
CLEANED = {"detrend": True, "high_pass": 0.01, "t_r": 2.0, "standardize": "zscore_sample"}


def maskers(device="cpu"):
    return [
        gpumask.NiftiLabelsMasker(LABELS, smoothing_fwhm=5, device=device, **CLEANED),
        gpumask.NiftiMasker(MASK, smoothing_fwhm=4, device=device, **CLEANED),
        gpumask.NiftiMapsMasker(MAPS, device=device),
        gpumask.NiftiSpheresMasker(SEEDS, radius=4, allow_overlap=True, mask_img=MASK, device=device, detrend=True),
        gpumask.NiftiLabelsMasker(LABELS, strategy="median", device=device),
        gpumask.NiftiMasker(MASK, device=device),
        gpumask.NiftiMapsMasker(MAPS, strategy="weighted_mean", smoothing_fwhm=6, device=device, **CLEANED),
    ]


def run(dtype="i2"):
    return image(np.random.default_rng(0).normal(1000, 30, (*SHAPE, N)).astype(dtype))


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
def test_a_mix_of_maskers_gives_the_bits_of_each_alone(dtype):
    img, confounds = run(dtype), np.random.default_rng(1).standard_normal((N, 2))
    kept = np.delete(np.arange(N), [0, 7, 8])
    fitted = [masker.fit() for masker in maskers()]
    alone = [masker.transform(img, confounds=confounds, sample_mask=kept) for masker in fitted]
    together = gpumask.transform_together(fitted, img, confounds, kept)
    for masker, one, other in zip(fitted, alone, together, strict=True):
        assert one.dtype == other.dtype, masker
        np.testing.assert_array_equal(one, other)
        assert masker.explain()


def test_the_run_is_read_once(monkeypatch):
    volumes, read = open_volumes(run()), []
    chunks = volumes.chunks

    def counting(*arguments):
        for chunk in chunks(*arguments):
            read.extend(range(chunk.start, chunk.start + len(chunk.data)))
            yield chunk

    monkeypatch.setattr(volumes, "chunks", counting)
    gpumask.transform_together([masker.fit() for masker in maskers()], volumes)
    assert read == list(range(N))


def test_runs_of_another_grid_for_some():
    """Voxels and labels with the target "labels" resample the run; spheres and the others resample their regions."""
    affine = AFFINE @ np.diag([1.2, 1.1, 1, 1])
    img = image(np.random.default_rng(0).normal(1000, 30, (7, 7, 8, N)), affine)
    fitted = [masker.fit(img) for masker in maskers()[2:4]]
    fitted += [gpumask.NiftiLabelsMasker(LABELS, resampling_target="labels", device="cpu").fit()]
    fitted += [gpumask.NiftiMasker(MASK, device="cpu").fit()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about resampling at transform time
        alone = [masker.transform(img) for masker in fitted]
        together = gpumask.transform_together(fitted, img)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mix_of_maskers_on_a_gpu(gpu):
    on_gpu, on_cpu = (
        gpumask.transform_together([m.fit() for m in maskers(device)], run("f8")) for device in (gpu, "cpu")
    )
    for one, other in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * max(1, np.abs(other).max()))
