"""Correlation of regions' signals with every voxel's."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpumask import process
from gpumask.choices import VOXEL
from gpumask.engine.voxels import VoxelRegions
from gpumask.extraction import Plans, Prepared, Settings, extract, voxel_dtype
from gpumask.images.labels import load_mask
from gpumask.images.parts import image_in_parts
from gpumask.images.volumes import open_volumes
from gpumask.kernels import cleaning
from gpumask.maskers.base import VolumesMasker

_BLOCK = 2048  # voxels whose correlations are computed at a time


def correlation_maps(
    masker: VolumesMasker,
    imgs: Any,
    confounds: Any = None,
    sample_mask: Any = None,
    *,
    mask_img: Any = None,
    smoothing_fwhm: float | str | None = "same",
    fisher_z: bool = False,
    out: str | os.PathLike | None = None,
) -> np.ndarray | nib.spatialimages.SpatialImage:
    """Correlate the signals of a masker's regions with the series of every voxel of a mask.

    The run is read once. Voxels are cleaned as the signals are: censored, detrended, filtered, and with the same
    confounds removed. Equal to the product of the z-scored signals of two maskers in nilearn, as in its examples of
    seed-based connectivity.

    Parameters
    ----------
    masker : masker of gpumask
        Fitted.
    imgs : path, nibabel image, list of 3D images or Volumes
        A run.
    confounds, sample_mask
        For signals and voxels; see `NiftiLabelsMasker.transform`.
    mask_img : path or nibabel image, default=None
        Voxels to correlate with. Runs on another grid are resampled to its grid for the voxels. If None, the masker's
        ``mask_img_``.
    smoothing_fwhm : float or None, default="same"
        FWHM of the smoothing of the voxels, in mm. "same": that of the masker.
    fisher_z : bool, default=False
        Whether to return Fisher's z, the inverse hyperbolic tangent of r, instead of r. It is infinite where r is 1.
    out : path, optional
        NIfTI file, `.nii` or `.nii.gz`, to write the maps to, one volume per region, instead of holding them.

    Returns
    -------
    ndarray, shape (n_regions, n_voxels)
        Pearson's r. float32 for runs of float32 or of integers, else float64. Voxels are in the C order of their
        indices, as `NiftiMasker` has them. 0 for constant series, NaN for regions without data. With `out`, a nibabel
        image of shape (x, y, z, n_regions) instead, with 0 outside the mask, whose values aren't loaded.

    Raises
    ------
    ValueError
        If there is no mask, or fewer than two volumes are kept.
    MemoryError
        If the maps don't fit in memory, and there is no `out`.
    TypeError, ValueError, IndexError
        As `NiftiLabelsMasker.transform`.

    Notes
    -----
    The voxels' series are held in memory, in float32 or float64: 4 or 8 bytes per kept volume and voxel of the mask.
    """
    check_is_fitted(masker)
    mask_img = getattr(masker, "mask_img_", None) if mask_img is None else mask_img
    if mask_img is None:
        msg = "`mask_img` says which voxels to correlate with, and the masker has no mask either: pass mask_img."
        raise ValueError(msg)
    volumes = open_volumes(imgs)
    of_regions = masker.prepare(volumes, confounds, sample_mask)
    of_regions = replace(of_regions, settings=replace(of_regions.settings, dtype=None), memory=None)
    voxels = _of_voxels(of_regions, volumes, mask_img, smoothing_fwhm, masker.device)
    if voxels.cleaner.n_kept < 2:
        msg = f"A correlation needs at least 2 volumes, got {voxels.cleaner.n_kept} of {volumes.name}."
        raise ValueError(msg)
    if out is None:
        _check_memory(of_regions, voxels, volumes)
    signals, series = (one.signals for one in extract([of_regions, voxels], volumes))
    noise = cleaning.rounding_noise(signals)
    signals = cleaning.standardize(signals, "zscore_sample", noise=noise)
    weights = (signals.T / (len(signals) - 1)).astype(series.dtype)
    if out is None:
        maps = np.empty((len(weights), series.shape[1]), series.dtype)
        _correlate(weights, series, maps, slice(None), fisher_z=fisher_z)
        return maps
    grid = voxels.regions.grid
    with image_in_parts(volumes.template, grid, len(weights), series.dtype, out) as result:
        _correlate(weights, series, result.data, voxels.plan.segments.indices, fisher_z=fisher_z)
    return result.image()


def _of_voxels(of_regions, volumes, mask_img, smoothing_fwhm, device):
    """The extraction of z-scored voxels, cleaned as the regions' signals are."""
    given = of_regions.settings
    settings = Settings(
        smoothing_fwhm=given.smoothing_fwhm if smoothing_fwhm == "same" else smoothing_fwhm,
        strategy=VOXEL,
        resampling_target="labels",
        standardize="zscore_sample",
    )
    on_grid, plan = Plans().get(VoxelRegions(*load_mask(mask_img)), volumes.grid, settings, device=device)
    return Prepared(settings, on_grid, plan, of_regions.cleaner.standardizing("zscore_sample"), ())


def _check_memory(of_regions, voxels, volumes):
    smoothed, resampled = voxels.settings.smoothing_fwhm is not None, voxels.plan.resampling is not None
    dtype = voxel_dtype(None, volumes.loaded_dtype, smoothed=smoothed, resampled=resampled)
    n_regions, n_voxels = len(of_regions.regions.ids), len(voxels.plan.counts)
    size, available = n_regions * n_voxels * dtype.itemsize, process.available_memory()
    if available is not None and size > available:
        msg = (
            f"The maps of {n_regions} regions and {n_voxels} voxels take {size / 2**30:.1f} GiB, of "
            f"{available / 2**30:.1f} GiB available memory. Write them to a file (out=), or take a smaller mask."
        )
        raise MemoryError(msg)


def _correlate(weights, series, maps, columns, *, fisher_z):
    """Write the correlations of each region with each voxel to `columns` of `maps`, which may be a mapped file."""

    def of_block(start):
        block = slice(start, start + _BLOCK)
        correlations = np.clip(weights @ series[:, block], -1.0, 1.0)
        if fisher_z:
            with np.errstate(divide="ignore"):
                correlations = np.arctanh(correlations)
        maps[:, block if isinstance(columns, slice) else columns[block]] = correlations

    with process.one_blas_thread, ThreadPoolExecutor(process.n_cores(), "gpumask-correlate") as workers:
        for done in [workers.submit(of_block, start) for start in range(0, series.shape[1], _BLOCK)]:
            done.result()
