"""NiftiMasker: parameters, fitted attributes, and the inverse transform."""

from typing import Any

import nibabel as nib
import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin

from gpumask import process
from gpumask.engine.voxels import VoxelRegions
from gpumask.images.grid import Grid, resample_nearest, target_grid
from gpumask.images.volumes import Volumes
from gpumask.maskers.base import VolumesMasker, mask_image
from gpumask.maskers.brain_masks import computed_mask, for_nilearn
from gpumask.settings import VoxelSettings


class NiftiMasker(ClassNamePrefixFeaturesOutMixin, VolumesMasker):
    """Extract the time series of a mask's voxels from fMRI runs.

    A drop-in replacement for ``nilearn.maskers.NiftiMasker`` (0.14.1) that reads each volume once, in its stored dtype,
    writes the voxels straight into the result, and cleans them there by one matrix product over time.

    Parameters
    ----------
    mask_img : path, nibabel image, list of these or None, default=None
        Voxels that aren't 0 are extracted. Runs on other grids are resampled to the mask's (cubic splines). If None,
        `fit` computes a mask from its images.
    runs : array-like, shape (n_volumes,), or None, default=None
        Run of each volume. Runs are cleaned separately and concatenated, sorted by their label.
    smoothing_fwhm : float or None, default=None
        FWHM of the Gaussian smoothing kernel, in mm. If None, volumes aren't smoothed.
    standardize : {"zscore_sample", "zscore", "psc", True, False, None}, default=False
        "zscore_sample" or True: mean 0 and sample variance (ddof=1) 1. "zscore": population variance 1. "psc": percent
        signal change. None or False: signals aren't standardized.
    standardize_confounds : bool, default=True
        Whether to z-score the confounds.
    detrend : bool, default=False
        Whether to remove mean and linear trend.
    high_variance_confounds : bool, default=False
        Whether to also remove five principal components of the 2 % most variable voxels. The run is then read three
        times.
    low_pass : float or None, default=None
        Low-pass cut-off frequency of the Butterworth filter, in Hz. None or False: no low-pass filter.
    high_pass : float or None, default=None
        High-pass cut-off frequency, likewise.
    t_r : float or None, default=None
        Repetition time, in seconds. Filtering needs it.
    target_affine : array-like, shape (3, 3) or (4, 4), or None, default=None
        Affine to resample mask (nearest voxel) and runs to. A 3 x 3 matrix has no origin: the grid starts at the corner
        of the mask image.
    target_shape : sequence of 3 int or None, default=None
        Shape of the grid of `target_affine`, which must be 4 x 4. If None, the grid ends at the corner of the mask
        image.
    mask_strategy : {"background", "epi", "whole-brain-template", "gm-template", "wm-template"}, default="background"
        How `fit` computes a mask if there is no `mask_img`, with nilearn (``pip install 'gpumask[nilearn]'``).
    mask_args : dict or None, default=None
        Further arguments of nilearn's function for the mask.
    dtype : dtype, "auto" or None, default=None
        Dtype of the signals. None: float32 or float64, by nilearn's rules. "auto": int32 for unscaled signed integers,
        else float32.
    memory : joblib.Memory, path or None, default=None
        Cache of compiled plans and extracted signals. Runs on disk are identified by path, size and modification time.
    memory_level : int, default=1
        0 with a `memory` means 1.
    verbose : int, default=0
        With 1 or more, each step, and the device and why it was chosen, are printed.
    reports : bool, default=True
        Whether to keep the run (its path, or the image itself) for `generate_report`.
    cmap : str, default="gray"
        For compatibility with nilearn; `generate_report` draws the run in gray.
    clean_args : dict or None, default=None
        Further keyword arguments of `gpumask.signal.clean`.
    device : {"auto", "cpu", "cuda", "cuda:N"}, default="auto"
        Where volumes and signals are computed. "auto": on the GPU that the run lies on, or the first usable one if
        there is one, else on the CPU. Requesting an unusable GPU, or another one than that of the run, is an error.
    output : {"host", "device"}, default="host"
        As in `NiftiLabelsMasker`.

    Attributes
    ----------
    affine_ : ndarray of float64, shape (4, 4)
        Affine of `mask_img_`.
    clean_args_ : dict
    mask_img_ : nibabel.nifti1.Nifti1Image
        The mask, of 0 and 1, on the grid of the results.
    memory_ : joblib.Memory
    n_elements_ : int
        Number of voxels in the mask.

    Notes
    -----
    `transform` returns the voxels in the C order of their indices x, y, z. It adds attributes that describe the last
    run: ``plan_``, how each volume was reduced; and ``seconds_``, the wall-clock seconds of "read", "reduce" (summed
    over threads), "clean" and "total". ``explain()`` describes both.

    If the attribute ``_shelving`` is True, as nilearn has it, signals are kept in `memory`, and `transform` returns
    joblib's reference to them, whose ``get()`` loads them.
    """

    def __init__(
        self,
        mask_img=None,
        runs=None,
        smoothing_fwhm=None,
        standardize=False,
        standardize_confounds=True,
        detrend=False,
        high_variance_confounds=False,
        low_pass=None,
        high_pass=None,
        t_r=None,
        target_affine=None,
        target_shape=None,
        mask_strategy="background",
        mask_args=None,
        dtype=None,
        memory=None,
        memory_level=1,
        verbose=0,
        reports=True,
        cmap="gray",
        clean_args=None,
        *,
        device="auto",
        output="host",
    ):
        self.mask_img = mask_img
        self.runs = runs
        self.smoothing_fwhm = smoothing_fwhm
        self.standardize = standardize
        self.standardize_confounds = standardize_confounds
        self.detrend = detrend
        self.high_variance_confounds = high_variance_confounds
        self.low_pass = low_pass
        self.high_pass = high_pass
        self.t_r = t_r
        self.target_affine = target_affine
        self.target_shape = target_shape
        self.mask_strategy = mask_strategy
        self.mask_args = mask_args
        self.dtype = dtype
        self.memory = memory
        self.memory_level = memory_level
        self.verbose = verbose
        self.reports = reports
        self.cmap = cmap
        self.clean_args = clean_args
        self.device = device
        self.output = output

    def _settings(self):
        return VoxelSettings.of(self.get_params(deep=False))

    def fit(self, imgs: Any = None, y: None = None) -> "NiftiMasker":
        """Load the mask, or compute it, and check the device.

        Parameters
        ----------
        imgs : run, optional
            As for `transform`, to compute the mask from if there is no `mask_img`; not on a GPU then.
        y : None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there is neither a mask nor a run, the mask is empty, or a parameter is invalid.
        TypeError
            If a parameter has the wrong type.
        ImportError
            If the mask must be computed and nilearn is missing.
        """
        if self.mask_img is not None and imgs is not None:
            msg = (
                f"[{type(self).__name__}.fit] Generation of a mask has been requested (imgs != None) while a mask was "
                "given at masker creation. Given mask will be used."
            )
            process.warn(msg, RuntimeWarning)
        return self._fit(imgs)

    def fit_transform(self, imgs: Any, y: None = None, confounds: Any = None, sample_mask: Any = None) -> np.ndarray:
        """Fit the masker, with the mask of `imgs` if there is no `mask_img`, and transform them; see `transform`."""
        return self._fit(imgs).transform(imgs, confounds=confounds, sample_mask=sample_mask)

    def _fit(self, imgs):
        self._begin_fit(imgs)
        if self.target_shape is not None and self.target_affine is None:
            msg = "If target_shape is specified, target_affine should be specified too."
            raise ValueError(msg)
        if self.mask_img is not None:
            mask, grid = self._loaded_mask()
        elif imgs is None:
            msg = f"Parameter 'imgs' must be provided to {type(self).__name__}.fit() if no mask is passed to mask_img."
            raise ValueError(msg)
        else:
            self._log("Computing mask", "fit")
            computed = self._compute_mask(imgs)
            mask, grid = np.asarray(computed.dataobj) != 0, Grid(computed.shape, computed.affine, "computed mask")
        self._log("Resampling mask", "fit")
        if self.target_affine is not None:
            target = target_grid(grid, self.target_affine, self.target_shape, grid.name)
            mask, grid = resample_nearest(mask, grid, target), target
        self.n_elements_ = int(np.count_nonzero(mask))
        if not self.n_elements_ and not self._allows_empty_mask:
            msg = f"The mask is invalid as it is empty: it masks all data. No voxel of {grid.name} is inside it."
            raise ValueError(msg)
        self._fitted = VoxelRegions(mask, grid)
        self.mask_img_ = mask_image(mask, grid)
        self.affine_ = grid.affine
        self._log("Finished fit", "fit")
        return self

    _allows_empty_mask = False

    def _compute_mask(self, imgs):
        if isinstance(imgs, Volumes):
            msg = "A mask can't be computed from Volumes: pass the path or image to fit(), or a mask as mask_img."
            raise TypeError(msg)
        return computed_mask(for_nilearn(imgs), self.mask_strategy, self.mask_args, verbose=self.verbose)

    def _extracted(self, prepared, volumes, progress, started):
        if not getattr(self, "_shelving", False):
            return super()._extracted(prepared, volumes, progress, started)
        if self.output == "device":
            msg = "_shelving keeps signals on disk, so they can't stay on a device: use output='host'."
            raise ValueError(msg)
        self._forget_run()  # which shelved signals don't replace
        run = volumes.identity(), volumes.is_3d
        key = prepared.key, run, prepared.plan.device, prepared.settings.dtype, prepared.cleaner
        compute = self.memory_.cache(_computed, ignore=["compute"])
        extract = super()._extracted
        return compute.call_and_shelve(key, compute=lambda: extract(prepared, volumes, progress, started))

    def _of_resampled(self, name):
        return (
            "imgs are being resampled to the mask_img resolution. This process is memory intensive. You might want to "
            "provide a target_affine that is equal to the affine of the imgs or resample the mask beforehand to save "
            "memory and computation time."
        )

    def inverse_transform(self, signals: Any) -> nib.Nifti1Image:
        """Put the signals of voxels into volumes.

        Parameters
        ----------
        signals : array-like or DataFrame, shape (n_voxels,) or (n_volumes, n_voxels)
            One column per voxel of `mask_img_`, as `transform` returns them.

        Returns
        -------
        nibabel.nifti1.Nifti1Image
            3D or 4D, on the grid of `mask_img_`; 0 outside the mask. Its dtype is `dtype` if that is set, else that of
            the signals. Booleans, and 64-bit integers that fit, become int32, with a warning.

        Raises
        ------
        ValueError
            If `signals` has the wrong shape.
        """
        signals = self._checked_signals(signals, finite=False)
        regions = self._regions
        indices = regions.on(regions.grid, None, "all").segments.indices
        data = np.zeros((regions.grid.n_voxels, *signals.shape[:-1]), signals.dtype, order="F")
        data[indices] = signals.T
        data = data.reshape((*regions.grid.shape, *signals.shape[:-1]), order="F")
        return nib.Nifti1Image(data, regions.grid.affine, dtype=data.dtype)

    def _nilearn_parameters(self):
        return {"mask_img": self.mask_img_}  # also one that was computed from a run

    def _report(self, title):
        from gpumask.reports.masker import regions_figure, report_page

        figure = regions_figure(self.mask_img_, getattr(self, "_report_run", None))
        share = self.n_elements_ / self._regions.mask.size
        return report_page(self, title, figure, "", f"Voxels: {self.n_elements_:,} ({share:.1%} of the image)")

    def __sklearn_is_fitted__(self):
        return hasattr(self, "mask_img_")


def _computed(key, *, compute):
    """Compute signals; kept by `key`."""
    return compute()
