"""Functions that turn an image into an image of the same grid: temporal cleaning and smoothing of every voxel."""

import os
from numbers import Real
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from gpumask import backend, devices
from gpumask.choices import MAX_FWHM
from gpumask.cleaner import Cleaner
from gpumask.dlpack import has_dlpack
from gpumask.engine.steps import smoothing_matrices
from gpumask.images.errors import DimensionError
from gpumask.images.labels import load_mask
from gpumask.images.opening import ImageLike, is_single
from gpumask.images.parts import checked_out, image_in_parts
from gpumask.images.volumes import Chunk, Volumes, open_volumes
from gpumask.kernels.smoothing import apply_separable
from gpumask.process import in_threads, n_cores, one_blas_thread, warn

_AT_ONCE = 4  # volumes that are smoothed at once, in float64


def clean_img(
    imgs: Any,
    runs: Any = None,
    detrend: bool = True,
    standardize: str | bool | None = True,
    confounds: Any = None,
    low_pass: float | None = None,
    high_pass: float | None = None,
    t_r: float | None = None,
    ensure_finite: bool = False,
    mask_img: ImageLike | None = None,
    *,
    out: str | os.PathLike | None = None,
    device: str = "cpu",
    **kwargs: Any,
) -> nib.spatialimages.SpatialImage:
    """Clean the series of every voxel: censor, detrend, filter, remove confounds, standardize.

    Equals ``nilearn.image.clean_img`` (0.14.1).

    Parameters
    ----------
    imgs : run
        A 4D image, as for `NiftiLabelsMasker.transform`. A `.nii` file is mapped, and doesn't have to fit in memory. A
        compressed file is decoded once, in its stored dtype, into memory; or with `out`, if it takes more than half of
        the memory, into a temporary file next to `out`, with a warning.
    runs, detrend, standardize, confounds, low_pass, high_pass, t_r, ensure_finite
        See `gpumask.signal.clean`. Unlike there, `t_r` has no default: filtering needs it.
    mask_img : path or nibabel image, optional
        On the grid of `imgs`. Only voxels inside it are cleaned; others become 0. Non-finite values count as 0.
    out : path, optional
        File to write the result to, `.nii` or `.nii.gz`, a block of voxels at a time. It replaces an existing file when
        it is complete.
    device : {"cpu", "cuda", "cuda:N", "auto"}, default="cpu"
        Where blocks of voxels are cleaned. A run on a GPU needs "auto" or this GPU; only its result is downloaded.
    **kwargs
        Further options of `gpumask.signal.clean`, each with the prefix ``clean__``: ``clean__sample_mask=...``.

    Returns
    -------
    nibabel image
        4D, in float32 or float64 by the rules of `gpumask.signal.clean`. With `out`, the written file, not loaded.

    Raises
    ------
    ValueError
        If filtering lacks `t_r`, if the mask has another grid or is 4D, or for invalid options.
    TypeError
        For an unknown keyword, or an image with the wrong number of dimensions.
    ImageError, OSError
        If a file is missing, truncated or corrupt, or can't be written; or if a compressed file doesn't fit in memory,
        and there is no `out`.
    """
    if out is not None:
        checked_out(out)
    volumes = open_volumes(imgs)
    if volumes.is_3d:
        msg = (
            "Input data has incompatible dimensionality: Expected dimension is 4D and you provided a 3D image. "
            f"{volumes.name} has no series to clean."
        )
        raise DimensionError(msg)
    if (low_pass is not None or high_pass is not None) and t_r is None:
        zooms = volumes.template.header.get_zooms()
        hint = f"imgs header suggest it to be {zooms[3]}" if len(zooms) > 3 else ""
        msg = f"Repetition time (t_r) must be specified for filtering. You specified None. {hint}"
        raise ValueError(msg)
    options = {}
    for name, value in kwargs.items():
        if not name.startswith("clean__"):
            msg = f"clean_img() got an unexpected keyword argument '{name}'. Options of clean begin with 'clean__'."
            raise TypeError(msg)
        options[name.removeprefix("clean__")] = value
    cleaner = Cleaner(
        volumes.n_volumes,
        runs=runs,
        detrend=detrend,
        standardize=standardize,
        confounds=confounds,
        low_pass=low_pass,
        high_pass=high_pass,
        t_r=t_r,
        ensure_finite=ensure_finite or mask_img is not None,
        **options,
    )
    inside = None if mask_img is None else _inside(mask_img, volumes)
    dtype = volumes.loaded_dtype.newbyteorder("=")
    dtype = cleaner.result_dtype(np.dtype(np.float32) if inside is not None and dtype.kind != "f" else dtype)
    device = devices.resolve_device(device, volumes.device)
    where = backend.to_device(np.zeros(0), device)
    made = image_in_parts(volumes.template, volumes.grid, cleaner.n_kept, dtype, out)
    with made as result, devices.device_errors(device), backend.using(volumes.device):
        chunk = volumes.whole(None if out is None else Path(out).expanduser().absolute().parent)
        there = inside if inside is None or volumes.device == "cpu" else backend.like(inside, where)
        series = chunk.rows()  # on a GPU, a second copy of a run that isn't in Fortran order

        def read(block):
            part = series[:, block if there is None else there[block]]
            return Chunk(0, part, chunk.slope, chunk.inter).scaled(), None

        def put(block, cleaned):
            result.data[:, block if inside is None else inside[block]] = backend.to_host(cleaned)

        cleaner.in_blocks(volumes.grid.n_voxels if inside is None else len(inside), read, put, where)
    return result.image()


def smooth_img(imgs: Any, fwhm: Any, *, out: str | os.PathLike | None = None) -> Any:
    """Smooth images with a Gaussian.

    Equals ``nilearn.image.smooth_img`` (0.14.1) of volumes, in float64 until the result is rounded to its dtype.

    Parameters
    ----------
    imgs : image, 3D or 4D, or a list of these
        As for `NiftiLabelsMasker.transform`. An image on a GPU is smoothed there, and the result is downloaded.
    fwhm : float, sequence of three floats, or None
        Full width at half maximum in mm, of all axes or of each. None and 0 leave the values as they are; 0 warns.
        nilearn's "fast" is an error.
    out : path, optional
        For a single image: file to write the result to, `.nii` or `.nii.gz`, a few volumes at a time. It replaces an
        existing file when it is complete.

    Returns
    -------
    nibabel image, or a list of them for a list
        Non-finite values count as 0. float32 for float32 and for integers of less than 64 bits, else float64. With
        `out`, the written file, not loaded.

    Raises
    ------
    ValueError
        If `fwhm` is negative, above 1000 mm or of another length, if an axis of volumes to smooth has more than 5000
        voxels, or for `out` with a list.
    ImageError, OSError
        If a file is missing, truncated or corrupt, or can't be written.
    """
    if not (is_single(imgs) or isinstance(imgs, Volumes)) and hasattr(imgs, "__iter__") and not has_dlpack(imgs):
        if out is not None:
            msg = "`out` names one file, but `imgs` is a list: smooth the images one by one."
            raise ValueError(msg)
        return [smooth_img(one, fwhm) for one in imgs]
    widths = _widths(fwhm)
    if out is not None:
        checked_out(out)
    volumes = open_volumes(imgs)
    dtype = volumes.loaded_dtype.newbyteorder("=")
    if dtype != np.float32:
        small = dtype.kind in "iub" and dtype.itemsize < 8
        dtype = np.dtype(np.float32 if small else np.float64)
    matrices = smoothing_matrices(volumes.grid, widths, "fwhm") if any(widths) else []
    matrices = [backend.to_device(matrix, volumes.device) for matrix in matrices]
    shape = volumes.grid.shape[::-1]

    def smooth(chunk):
        with devices.device_errors(volumes.device), backend.using(volumes.device):
            scaled = chunk.scaled()
            scaled[~backend.array_namespace(scaled).isfinite(scaled)] = 0.0
            if matrices:
                scaled = apply_separable(matrices, scaled.reshape(len(scaled), *shape)).reshape(len(scaled), -1)
            result.data[chunk.start : chunk.start + len(scaled)] = backend.to_host(scaled)

    made = image_in_parts(volumes.template, volumes.grid, volumes.n_volumes, dtype, out, is_3d=volumes.is_3d)
    with made as result, one_blas_thread:
        for _ in in_threads(smooth, volumes.chunks(_AT_ONCE), n_cores() if volumes.device == "cpu" else 1):
            pass
    return result.image()


def _widths(fwhm):
    """FWHM along x, y and z, 0 for none; ValueError if these aren't widths."""
    if fwhm is None:
        return [0.0] * 3
    if not isinstance(fwhm, str):
        widths = [0.0 if width is None else width for width in np.ravel(np.asarray(fwhm, dtype=object)).tolist()]
        widths = widths * 3 if len(widths) == 1 else widths
        is_number = all(isinstance(w, Real) and not isinstance(w, bool) and 0 <= w <= MAX_FWHM for w in widths)
        if is_number and len(widths) == 3:
            if np.ndim(fwhm) == 0 and fwhm == 0:
                warn(
                    f"The parameter 'fwhm' for smoothing is specified as {fwhm}. "
                    "Setting it to None (no smoothing will be performed)"
                )
            return [float(width) for width in widths]
    msg = f"`fwhm` must be a width in mm, from 0 to {MAX_FWHM}, or three of them (x, y, z), or None, got {fwhm!r}."
    raise ValueError(msg)


def _inside(mask_img, volumes):
    mask, grid = load_mask(mask_img, several=False)
    if grid.shape != volumes.grid.shape:
        msg = f"Mask shape: {grid.shape}\n is different from img shape:{volumes.grid.shape}"
        raise ValueError(msg)
    if not grid.matches(volumes.grid):
        msg = f"Mask affine:\n{grid.affine}\n is different from img affine:\n{volumes.grid.affine}"
        raise ValueError(msg)
    return np.flatnonzero(mask.ravel(order="F"))
