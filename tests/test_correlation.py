"""correlation_maps: against two of nilearn's maskers and a product, and a correlation of each voxel by itself."""

import re
import warnings

import nibabel as nib
import numpy as np
import pytest
from nilearn.maskers import NiftiLabelsMasker as TheirLabels
from nilearn.maskers import NiftiMasker as TheirVoxels

import gpumask
from gpumask import process

from .helpers import AFFINE, image

SHAPE, N = (8, 9, 10), 80
LABELS = image(np.random.default_rng(1).integers(0, 5, SHAPE).astype("i2"))
INSIDE = np.random.default_rng(2).random(SHAPE) < 0.7
MASK = image(INSIDE.astype("i1"))
CONFOUNDS = np.random.default_rng(3).standard_normal((N, 4))
CLEANINGS = {
    "raw": {},
    "cleaned": {"detrend": True, "low_pass": 0.1, "high_pass": 0.01, "t_r": 2.0, "smoothing_fwhm": 5},
    "psc": {"standardize": "psc", "detrend": True},
}


def run(dtype="f8", shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((*shape, N)) * 50 + 1000 + 20 * rng.standard_normal(N)
    return image(data.astype(dtype))


def nilearns(options, img, sample_mask=None, *, fwhm=None):
    cleaned = {**options, "standardize": "zscore_sample"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keywords = {"confounds": CONFOUNDS, "sample_mask": sample_mask}
        regions = TheirLabels(LABELS, **cleaned).fit(img).transform(img, **keywords)
        if fwhm:
            cleaned["smoothing_fwhm"] = fwhm
        voxels = TheirVoxels(MASK, **cleaned).fit().transform(img, **keywords)
    return regions.T @ voxels / (len(voxels) - 1)


@pytest.mark.parametrize("cleaning", CLEANINGS)
@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
def test_two_maskers_of_nilearn_and_a_product(cleaning, dtype):
    img, options = run(dtype), CLEANINGS[cleaning]
    masker = gpumask.NiftiLabelsMasker(LABELS, **options).fit(img)
    maps = gpumask.correlation_maps(masker, img, CONFOUNDS, mask_img=MASK)
    assert maps.dtype == (np.float64 if dtype == "f8" else np.float32)
    np.testing.assert_allclose(maps, nilearns(options, img), rtol=0, atol=1e-10 if dtype == "f8" else 1e-5)


def test_censored_volumes_and_another_smoothing():
    img, kept, options = run(), np.arange(3, 75), {"detrend": True}
    masker = gpumask.NiftiLabelsMasker(LABELS, **options).fit(img)
    maps = gpumask.correlation_maps(masker, img, CONFOUNDS, kept, mask_img=MASK, smoothing_fwhm=4)
    np.testing.assert_allclose(maps, nilearns(options, img, kept, fwhm=4), rtol=0, atol=1e-10)


def test_each_voxel_by_itself():
    img = run()
    data, labels = np.asarray(img.dataobj), np.asarray(LABELS.dataobj)
    data[0, 0, 0], data[1, 1, 1] = 7.0, data[labels == 2].mean(axis=0)  # constant, and equal to a region but for itself
    mask = image(np.ones(SHAPE, "i1"))
    masker = gpumask.NiftiLabelsMasker(LABELS).fit(img)
    signals, maps = masker.transform(img), gpumask.correlation_maps(masker, img, mask_img=mask)
    for voxel, at in enumerate(np.ndindex(SHAPE)):
        with np.errstate(invalid="ignore"):
            expected = [np.corrcoef(signal, data[at])[0, 1] for signal in signals.T]
        np.testing.assert_allclose(maps[:, voxel], np.nan_to_num(expected), rtol=0, atol=1e-12)
    z = gpumask.correlation_maps(masker, img, mask_img=mask, fisher_z=True)
    np.testing.assert_allclose(z, np.arctanh(maps), rtol=1e-12)


@pytest.mark.parametrize("standardize", [None, "zscore", "psc"])
def test_regions_explained_by_the_confounds_correlate_with_nothing(standardize):
    data, labels = np.array(run().dataobj), np.asarray(LABELS.dataobj)
    data[labels == 2] = 1000 + 30 * CONFOUNDS[:, 0]
    img = image(data)
    masker = gpumask.NiftiLabelsMasker(LABELS, detrend=True, standardize=standardize).fit(img)
    maps = gpumask.correlation_maps(masker, img, CONFOUNDS, mask_img=MASK)
    assert not maps[1].any()
    assert (np.abs(maps[[0, 2, 3]]).max(axis=1) > 0.5).all()


@pytest.mark.parametrize("standardize", [None, "zscore", "psc"])
def test_runs_of_a_masker_are_scored_one_by_one(standardize):
    data, runs = np.array(run().dataobj), np.repeat([0, 1, 2], [20, 25, 35])
    data += 500 * runs  # a difference between runs is no correlation
    seed = np.zeros(SHAPE, "i1")
    seed[2, 3, 4] = 1
    masker = gpumask.NiftiMasker(image(seed), runs=runs, standardize=standardize).fit()
    (maps,) = gpumask.correlation_maps(masker, image(data), mask_img=MASK)
    scored = [data[..., runs == k] - data[..., runs == k].mean(axis=-1, keepdims=True) for k in range(3)]
    scored = np.concatenate([one / one.std(axis=-1, ddof=1, keepdims=True) for one in scored], axis=-1)
    expected = [np.corrcoef(scored[2, 3, 4], series)[0, 1] for series in scored[INSIDE]]
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-12)


def test_itself_correlates_perfectly():
    labels = np.zeros(SHAPE, "i2")
    labels[2, 2, 2] = 1
    masker = gpumask.NiftiLabelsMasker(image(labels), mask_img=MASK).fit()
    at = np.ravel_multi_index((2, 2, 2), SHAPE)
    maps = gpumask.correlation_maps(masker, run(), mask_img=image(np.ones(SHAPE, "i1")), fisher_z=True)
    assert np.tanh(maps[0, at]) == pytest.approx(1)
    assert (np.abs(np.tanh(np.delete(maps[0], at))) < 0.9).all()


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
@pytest.mark.parametrize("out", ["maps.nii", "maps.nii.gz"])
def test_files(tmp_path, name, out):
    nib.save(run("i2"), tmp_path / name)
    masker = gpumask.NiftiLabelsMasker(LABELS, mask_img=MASK, detrend=True).fit()
    maps = gpumask.correlation_maps(masker, tmp_path / name)  # the voxels of the masker's mask
    written = gpumask.correlation_maps(masker, tmp_path / name, out=tmp_path / out)
    values = np.asanyarray(written.dataobj)
    assert (values.shape, values.dtype) == ((*SHAPE, 4), np.float32)
    np.testing.assert_array_equal(values[INSIDE].T, maps)
    assert not values[~INSIDE].any()
    np.testing.assert_allclose(written.affine, AFFINE)


def test_a_mask_of_another_grid():
    img, affine = run(), AFFINE @ np.diag([1.5, 1.5, 1.5, 1])
    mask = image(np.ones((5, 5, 5), "i1"), affine)
    masker = gpumask.NiftiLabelsMasker(LABELS).fit(img)
    maps = gpumask.correlation_maps(masker, img, mask_img=mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        voxels = TheirVoxels(mask, standardize="zscore_sample").fit().transform(img)
        regions = TheirLabels(LABELS, standardize="zscore_sample").fit(img).transform(img)
    np.testing.assert_allclose(maps, regions.T @ voxels / (N - 1), rtol=0, atol=1e-10)


def test_the_run_is_read_once(monkeypatch):
    masker = gpumask.NiftiLabelsMasker(LABELS, mask_img=MASK, detrend=True).fit()
    volumes, read = gpumask.images.volumes.open_volumes(run("i2")), []
    chunks = volumes.chunks

    def counting(*arguments):
        for chunk in chunks(*arguments):
            read.extend(range(chunk.start, chunk.start + len(chunk.data)))
            yield chunk

    monkeypatch.setattr(volumes, "chunks", counting)
    gpumask.correlation_maps(masker, volumes)
    assert read == list(range(N))


def test_errors(tmp_path, monkeypatch):
    masker = gpumask.NiftiLabelsMasker(LABELS, device="cpu").fit()
    message = "correlation_maps needs a mask of the voxels to correlate with, but the masker has none. Pass mask_img."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        gpumask.correlation_maps(masker, run())
    with pytest.raises(ValueError, match=r"^A correlation needs at least 2 volumes, got 1 of in-memory image\.$"):
        gpumask.correlation_maps(masker, run(), sample_mask=[3], mask_img=MASK)
    for other, kind in [(3, "builtins.int"), (run(), "nibabel.nifti1.Nifti1Image"), (TheirVoxels(MASK).fit(), None)]:
        kind = kind or "nilearn.maskers.nifti_masker.NiftiMasker"
        message = f"Expected a masker of gpumask, such as gpumask.NiftiLabelsMasker, got {kind}."
        for call in (gpumask.correlation_maps, lambda one, img: gpumask.transform_together([masker, one], img)):
            with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
                call(other, run())
    message = "`maskers` must be a list of maskers, got a NiftiLabelsMasker. Pass [masker], or use transform."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        gpumask.transform_together(masker, run())
    monkeypatch.setattr(process, "available_memory", lambda: 1000)
    lead, remedy = f"{INSIDE.sum()} voxels, with {N} volumes", "take 0.0 GiB, of 0.0 GiB available memory. Use a"
    message = f"{lead} and 4 maps, {remedy} smaller mask, or write the maps to a file (out=)."
    with pytest.raises(MemoryError, match=f"^{re.escape(message)}$"):
        gpumask.correlation_maps(masker, run(), mask_img=MASK)
    with pytest.raises(MemoryError, match=f"^{re.escape(f'{lead}, {remedy} smaller mask.')}$"):
        gpumask.correlation_maps(masker, run(), mask_img=MASK, out=tmp_path / "maps.nii")
    assert not list(tmp_path.iterdir())


def test_on_a_gpu(gpu):
    img, options = run(), CLEANINGS["cleaned"]
    on_gpu, on_cpu = (
        gpumask.correlation_maps(
            gpumask.NiftiLabelsMasker(LABELS, device=device, **options).fit(img), img, CONFOUNDS, mask_img=MASK
        )
        for device in (gpu, "cpu")
    )
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=1e-10)
