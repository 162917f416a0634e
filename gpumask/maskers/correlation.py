"""Correlation of regions' signals with every voxel's."""

import os
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np

from gpumask import backend, devices, process
from gpumask.backend import Array
from gpumask.blocks import each_block
from gpumask.choices import OUTPUTS, check_choice
from gpumask.dtypes import voxel_dtype
from gpumask.engine.voxels import VoxelRegions
from gpumask.extraction import Prepared, extract
from gpumask.images.labels import load_mask
from gpumask.images.parts import checked_out, image_in_parts
from gpumask.images.volumes import open_volumes
from gpumask.maskers.base import VolumesMasker, check_masker
from gpumask.plans import Plans
from gpumask.settings import VoxelSettings

_BLOCK = 2048  # voxels whose correlations the CPU computes at a time


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
    output: str = "host",
) -> Array | nib.spatialimages.SpatialImage:
    """Correlate the signals of a masker's regions with the series of every voxel of a mask.

    The run is read once. Voxels are cleaned as the signals are: censored, detrended, filtered, and with the same
    confounds removed. Equal to the product of the z-scored signals of two maskers in nilearn, as in its examples of
    seed-based connectivity.

    Parameters
    ----------
    masker : masker of gpumask
        Fitted.
    imgs : run
        As for `NiftiLabelsMasker.transform`.
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
    output : {"host", "device"}, default="host"
        Where the array lies: "device" is that of the voxels' plan, as for the parameter of `NiftiLabelsMasker`. The
        masker's own doesn't matter.

    Returns
    -------
    array, shape (n_regions, n_voxels)
        Pearson's r. With a masker's `runs`, series are z-scored within each run first. float32 for runs of float32 or
        of integers, else float64. Voxels are in the C order of their indices, as `NiftiMasker` has them. 0 for series
        that are constant or explained by the confounds, NaN for regions without data. With `out`, a nibabel
        image of shape (x, y, z, n_regions) instead, with 0 outside the mask, whose values aren't loaded.

    Raises
    ------
    ValueError
        Without a mask, if fewer than two volumes are kept, or for `out` with ``output="device"``.
    MemoryError
        If the voxels' series and, without `out`, the maps don't fit in memory of the host.
    DeviceError
        If a GPU fails, or can't hold the maps that are to stay there.
    TypeError
        If `masker` isn't a masker of gpumask.
    OSError
        If `out` can't be written.
    TypeError, ValueError, IndexError
        As `NiftiLabelsMasker.transform`.

    Notes
    -----
    The voxels' series are held in memory, in float32 or float64: 4 or 8 bytes per kept volume and voxel of the mask. On
    a GPU, they stay in its memory, or on the host if it is too small, and the maps are products of blocks.
    """
    check_masker(masker)
    check_choice("output", output, OUTPUTS)
    if out is not None:
        if output == "device":
            msg = "`out` writes the maps to a file, so they can't stay on a device: use output='host'."
            raise ValueError(msg)
        checked_out(out)
    mask_img = getattr(masker, "mask_img_", None) if mask_img is None else mask_img
    if mask_img is None:
        msg = "correlation_maps needs a mask of the voxels to correlate with, but the masker has none. Pass mask_img."
        raise ValueError(msg)
    volumes = open_volumes(imgs)
    of_regions = masker.prepare(volumes, confounds, sample_mask)
    # Cleaning finds what is constant or explained by confounds; afterwards, its rounding noise would pass for a signal.
    cleaner = of_regions.cleaner.standardizing("zscore_sample")
    settings = replace(of_regions.settings, dtype=None)
    of_regions = replace(of_regions, settings=settings, cleaner=cleaner, memory=None, output="host")
    voxels = _of_voxels(of_regions, volumes, mask_img, smoothing_fwhm, masker.device)
    if voxels.cleaner.n_kept < 2:
        msg = f"A correlation needs at least 2 volumes, got {voxels.cleaner.n_kept} of {volumes.name}."
        raise ValueError(msg)
    device = voxels.plan.device
    _check_memory(of_regions, voxels, volumes, holds_maps=out is None and (device == "cpu" or output == "host"))
    signals, series = (one.signals for one in extract([of_regions, voxels], volumes))
    weights = (signals / _norms(signals)).T.astype(series.dtype)
    with devices.device_errors(device), backend.using(device):
        weights = backend.to_device(weights, device)
        if out is None:
            stay = weights if output == "device" else signals
            xp, shape = backend.array_namespace(stay), (len(weights), series.shape[1])
            maps = xp.empty(shape, dtype=series.dtype, device=backend.device_of(stay))
            _correlate(weights, series, maps, slice(None), fisher_z=fisher_z)
            return maps
        grid = voxels.regions.grid
        with image_in_parts(volumes.template, grid, len(weights), series.dtype, out) as result:
            _correlate(weights, series, result.data, voxels.plan.segments.indices, fisher_z=fisher_z)
    return result.image()


def _norms(series):
    """Norm of each column, 1 for constant ones. It depends on the number of runs, which are z-scored separately."""
    xp = backend.array_namespace(series)
    norms = xp.sqrt(xp.einsum("ij,ij->j", series, series))
    return xp.where(norms == 0, 1.0, norms).astype(series.dtype)


def _of_voxels(of_regions, volumes, mask_img, smoothing_fwhm, device):
    """The extraction of z-scored voxels, cleaned as the regions' signals are."""
    given = of_regions.settings
    settings = VoxelSettings(
        smoothing_fwhm=given.smoothing_fwhm if smoothing_fwhm == "same" else smoothing_fwhm,
        standardize="zscore_sample",
    )
    regions = VoxelRegions(*load_mask(mask_img, several=False))
    on_grid, plan = Plans().get(regions, volumes.grid, settings, device=device, data_on=volumes.device)
    return Prepared(settings, on_grid, plan, of_regions.cleaner, (), output=None)


def _check_memory(of_regions, voxels, volumes, *, holds_maps):
    """Raise MemoryError if the voxels' series, unless a GPU computes them, and maybe the maps don't fit in memory."""
    smoothed, resampled = voxels.settings.smoothing_fwhm is not None, voxels.plan.resampling is not None
    dtype = voxel_dtype(None, volumes.loaded_dtype, smoothed=smoothed, resampled=resampled)
    n_regions, n_voxels = len(of_regions.regions.ids), len(voxels.plan.counts)
    n_volumes = volumes.n_volumes if voxels.plan.device == "cpu" else 0
    size, available = (n_volumes + n_regions * holds_maps) * n_voxels * dtype.itemsize, process.available_memory()
    if available is not None and size > available:
        held = [f"{n_volumes} volumes"] * (n_volumes > 0) + [f"{n_regions} maps"] * holds_maps
        msg = (
            f"{n_voxels} voxels, with {' and '.join(held)}, take "
            f"{size / 2**30:.1f} GiB, of {available / 2**30:.1f} GiB available memory. Use a smaller mask"
            f"{', or write the maps to a file (out=)' * holds_maps}."
        )
        raise MemoryError(msg)


def _correlate(weights, series, maps, columns, *, fisher_z):
    """Write the correlations of each region with each voxel to `columns` of `maps`, which may be a mapped file.

    They are computed where the weights are.
    """
    xp = backend.array_namespace(weights)

    def of_block(block):
        of_voxels = backend.like(series[:, block], weights)
        correlations = (weights @ of_voxels / _norms(of_voxels)).clip(-1.0, 1.0)
        if fisher_z:
            with np.errstate(divide="ignore"):
                correlations = xp.atanh(correlations)
        if not backend.is_cupy(maps):
            correlations = backend.to_host(correlations)
        maps[:, block if isinstance(columns, slice) else columns[block]] = correlations

    n_volumes, n_voxels = series.shape
    if backend.is_cupy(weights):
        of_column = 3 * (n_volumes + len(weights)) * series.dtype.itemsize  # with copies that the products make
        each_block(of_block, n_voxels, of_column, weights)
        return
    blocks = [slice(start, start + _BLOCK) for start in range(0, n_voxels, _BLOCK)]
    with process.one_blas_thread:
        for _ in process.in_threads(of_block, blocks, process.n_cores()):
            pass
