"""NiftiMapsMasker: parameters, fitted attributes, and the inverse transform."""

from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from gpumask.choices import MAPS_STRATEGIES, check_choice
from gpumask.engine.dense_regions import DenseMapRegions
from gpumask.engine.maps import MapRegions, as_image
from gpumask.engine.regions import check_same_grids
from gpumask.extraction import check_kind
from gpumask.images.dense_atlas import load_dense_maps
from gpumask.images.grayordinates import is_dense
from gpumask.images.maps import load_maps
from gpumask.maskers.base import VolumesMasker, described, mask_image
from gpumask.settings import Settings, refuse_for_grayordinates


class NiftiMapsMasker(VolumesMasker):
    """Extract the time series of maps, which may overlap and have weights, from fMRI runs.

    A drop-in replacement for ``nilearn.maskers.NiftiMapsMasker`` (0.14.1), for probabilistic atlases and components.
    It reads each volume once, in its stored dtype, and never holds a run, or all maps as arrays, in memory.

    Parameters
    ----------
    maps_img : path, nibabel image or list of 3D images
        4D image: one map per region. Values that aren't finite count as 0. Or maps of grayordinates (.dscalar.nii,
        .dtseries.nii), for runs that are dense series (.dtseries.nii); see `NiftiLabelsMasker`.
    mask_img : path, nibabel image, list of these or None, default=None
        Voxels that are 0 in the mask are ignored. If None, there is no mask.
    allow_overlap : bool, default=True
        If False, maps with positive weights at the same voxel are an error.
    smoothing_fwhm : float or None, default=None
        FWHM of the Gaussian smoothing kernel, in mm. If None, volumes aren't smoothed.
    standardize : {"zscore_sample", "zscore", "psc", True, False, None}, default=False
        "zscore_sample" or True: mean 0 and sample variance (ddof=1) 1. "zscore": population variance 1. "psc": percent
        signal change. None or False: signals aren't standardized.
    standardize_confounds : bool, default=True
        Whether to z-score the confounds.
    high_variance_confounds : bool, default=False
        Whether to also remove five principal components of the 2 % most variable voxels. The run is then read three
        times.
    detrend : bool, default=False
        Whether to remove mean and linear trend.
    low_pass : float or None, default=None
        Low-pass cut-off frequency of the Butterworth filter, in Hz. None or False: no low-pass filter.
    high_pass : float or None, default=None
        High-pass cut-off frequency, likewise.
    t_r : float or None, default=None
        Repetition time, in seconds. Filtering needs it.
    dtype : dtype, "auto" or None, default=None
        Dtype of the signals. None: float32 or float64, by nilearn's rules (float64 if the maps' values are). "auto":
        int32 for unscaled signed integers, else float32.
    resampling_target : {"data", "mask", "maps", None}, default="data"
        "data": maps (linearly) and mask (nearest voxel) are resampled to the runs. "mask": maps and runs (cubic
        splines) are resampled to the mask. "maps": mask and runs are resampled to the maps. None: different grids are
        an error.
    keep_masked_maps : bool, default=False
        Whether maps that are 0 everywhere inside the mask keep a column, of zeros.
    memory : joblib.Memory, path or None, default=None
        Cache of resampled maps, least-squares solutions, compiled plans and extracted signals.
    memory_level : int, default=0
        0 with a `memory` means 1.
    verbose : int, default=0
        With 1 or more, each step, and the device and why it was chosen, are printed.
    reports : bool, default=True
        Whether to keep the run (its path, or the image itself) for `generate_report`.
    cmap : str or None, default="CMRmap_r"
        Matplotlib colour map of the maps in `generate_report`.
    clean_args : dict or None, default=None
        Further keyword arguments of `gpumask.signal.clean`.
    strategy : {"least_squares", "weighted_mean"}, default="least_squares"
        "least_squares": the amplitudes of all maps that together fit a volume best, with the minimum norm if several
        do; see `gpumask.kernels.least_squares.least_squares` for the rank. "weighted_mean": the mean over voxels,
        weighted by each map on its own; weights must not be negative.
    device : {"auto", "cpu", "cuda", "cuda:N"}, default="auto"
        Where volumes are reduced. "auto" selects the GPU that the run lies on, or the first usable one where it is
        expected to be faster (voxels, resampled volumes, statistics of smoothed ones), else the CPU; `explain`
        describes the choice. Requesting an unusable GPU, or another one than that of the run, is an error.
    output : {"host", "device"}, default="host"
        As in `NiftiLabelsMasker`.
    min_coverage : float or None, default=None
        Regions with a smaller share of their weights inside field of view and mask become NaN; see `coverage_`.

    Attributes
    ----------
    clean_args_ : dict
    mask_img_ : nibabel.nifti1.Nifti1Image or None
        Mask; resampled to the grid of `maps_img_`, if `fit` got a run or ``resampling_target="maps"``.
    memory_ : joblib.Memory

    Notes
    -----
    ``maps_img_`` is made on each request: the maps as a 4D image, resampled to the run that `fit` got, or to the mask,
    as `resampling_target` says. `transform` adds attributes that describe the last run, as in `NiftiLabelsMasker`:
    ``plan_``, ``seconds_`` and ``coverage_``.
    """

    _has_grayordinates = True

    def __init__(
        self,
        maps_img=None,
        mask_img=None,
        allow_overlap=True,
        smoothing_fwhm=None,
        standardize=False,
        standardize_confounds=True,
        high_variance_confounds=False,
        detrend=False,
        low_pass=None,
        high_pass=None,
        t_r=None,
        dtype=None,
        resampling_target="data",
        keep_masked_maps=False,
        memory=None,
        memory_level=0,
        verbose=0,
        reports=True,
        cmap="CMRmap_r",
        clean_args=None,
        *,
        strategy="least_squares",
        device="auto",
        output="host",
        min_coverage=None,
    ):
        self.maps_img = maps_img
        self.mask_img = mask_img
        self.allow_overlap = allow_overlap
        self.smoothing_fwhm = smoothing_fwhm
        self.standardize = standardize
        self.standardize_confounds = standardize_confounds
        self.high_variance_confounds = high_variance_confounds
        self.detrend = detrend
        self.low_pass = low_pass
        self.high_pass = high_pass
        self.t_r = t_r
        self.dtype = dtype
        self.resampling_target = resampling_target
        self.keep_masked_maps = keep_masked_maps
        self.memory = memory
        self.memory_level = memory_level
        self.verbose = verbose
        self.reports = reports
        self.cmap = cmap
        self.clean_args = clean_args
        self.strategy = strategy
        self.device = device
        self.output = output
        self.min_coverage = min_coverage

    def _settings(self) -> Settings:
        check_choice("resampling_target", self.resampling_target, ("mask", "maps", "data", None))
        check_choice("strategy", self.strategy, tuple(MAPS_STRATEGIES))
        to_regions = self.resampling_target in ("mask", "maps")
        own = {
            "strategy": MAPS_STRATEGIES[self.strategy],
            "resampling_target": "labels" if to_regions else self.resampling_target,
            "keep_masked_labels": self.keep_masked_maps,
        }
        return Settings.of(self.get_params(deep=False) | own)

    def fit(self, imgs: Any = None, y: None = None) -> "NiftiMapsMasker":
        """Load maps and mask, resample them, and check the device.

        Parameters
        ----------
        imgs : run, optional
            As for `transform`. With ``resampling_target="data"``, maps and mask are resampled to its grid.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        volumes = self._begin_fit(imgs)
        if is_dense(self.maps_img):
            return self._fit_grayordinates(volumes)
        if self.mask_img is None and self.resampling_target == "mask":
            msg = (
                "resampling_target has been set to 'mask' but no mask has been provided.\n"
                "Set resampling_target to something else or provide a mask."
            )
            raise ValueError(msg)
        mask, mask_grid = self._loaded_mask()
        self._log(f"Loading regions from {described(self.maps_img)}", "fit")
        given = replace(load_maps(self.maps_img), mask=mask, mask_grid=mask_grid)
        if volumes is not None:
            check_kind(volumes, given.grid)
        memory = self.memory_ if self.memory_.location is not None else None
        regions = MapRegions(given, given, self.strategy == "least_squares", self.allow_overlap, memory)
        if self.resampling_target is None:
            others = {"mask": mask_grid, "data": volumes and volumes.grid}
            check_same_grids("Following field of view errors were detected:", given.grid, "maps", **others)
        targets = {"data": volumes and volumes.grid, "mask": mask_grid, "maps": given.grid, None: None}
        target = targets[self.resampling_target]
        if target is not None and not given.grid.matches(target):
            self._log("Resampling regions", "fit")
            regions = replace(regions, maps=regions.resampled(target))
        if mask_grid is not None and target is not None:
            if not mask_grid.matches(target):
                self._log("Resampling mask", "fit")
                regions = replace(regions, maps=regions.maps.with_mask_resampled(target))
            _ = regions.maps.masked  # raises if no map is left
        self._fitted = regions
        self.mask_img_ = mask_image(regions.maps.mask, regions.maps.mask_grid)
        self._log("Finished fit", "fit")
        return self

    def _fit_grayordinates(self, run):
        refused = {
            "mask_img": self.mask_img is not None,
            "keep_masked_maps": self.keep_masked_maps,
            "resampling_target": self.resampling_target in ("mask", "maps"),
        }
        refuse_for_grayordinates({name: getattr(self, name) for name, given in refused.items() if given})
        self._log(f"Loading regions from {described(self.maps_img)}", "fit")
        maps = load_dense_maps(self.maps_img)
        if run is not None:
            check_kind(run, maps.grid)
        self._fitted = DenseMapRegions(maps, self.strategy == "least_squares", self.allow_overlap)
        self.mask_img_ = None
        self._log("Finished fit", "fit")
        return self

    def _region_parameters(self):
        return {"solves": self.strategy == "least_squares", "allow_overlap": self.allow_overlap}

    def inverse_transform(self, signals: Any) -> nib.Nifti1Image | nib.Cifti2Image | nib.GiftiImage:
        """Compute volumes, or grayordinates, from region signals: the sum of the maps, times their signals.

        Parameters
        ----------
        signals : array-like or DataFrame, shape (n_regions,) or (n_volumes, n_regions)
            One column per map, as `transform` returns them (before any `transform`: all maps).

        Returns
        -------
        nibabel.nifti1.Nifti1Image, nibabel.cifti2.Cifti2Image or nibabel.gifti.GiftiImage
            3D or 4D, on the grid of `maps_img_`; 0 outside the maps and the mask. Its dtype is `dtype` if that is set,
            else that of the signals. Booleans, and 64-bit integers that fit, become int32, with a warning. For maps of
            grayordinates, scalars or a series, as in `NiftiLabelsMasker.inverse_transform`.

        Raises
        ------
        ValueError
            If `signals` has the wrong shape, or NaN where `min_coverage` doesn't let `transform` return it.
        """
        signals = self._checked_signals(signals)
        maps = self._regions.maps
        if isinstance(self._regions, DenseMapRegions):
            return self._dense_image(maps, maps.painted(signals))
        if maps.mask_grid is not None and not maps.mask_grid.matches(maps.grid):
            maps = maps.with_mask_resampled(maps.grid)
        data = maps.masked.chosen(self._columns).painted(signals)
        return nib.Nifti1Image(data, maps.grid.affine, dtype=data.dtype)

    def generate_report(self, engine: str = "matplotlib", title: str | None = None, displayed_maps: Any = 10) -> Any:
        """Create an HTML page with maps on a volume of the run, the parameters and a table of the maps.

        Parameters
        ----------
        engine : "matplotlib"
            For compatibility with nilearn; only "matplotlib" is supported.
        title : str or None, default=None
            If None, the name of the class.
        displayed_maps : int, list or array of int, or "all", default=10
            Number of maps to draw, or their columns. Maps of grayordinates aren't drawn.

        Returns
        -------
        gpumask.reports.masker.Report
            Notebooks display it; it has ``save_as_html(path)`` and ``open_in_browser()``.

        Raises
        ------
        ValueError
            If the masker has ``reports=False``, for another `engine`, or for a column that there isn't.
        TypeError
            If `displayed_maps` has another type.
        """
        self._check_report(engine)
        if isinstance(self._regions, DenseMapRegions):
            return self._dense_report(title)
        from gpumask.reports.maps import maps_report

        on_grid = getattr(self, "_on_grid", None)
        maps = self._regions.maps if on_grid is None else on_grid.maps.masked.chosen(on_grid.ids)
        removed = [self._name(k) for k in range(len(self._regions.maps)) if k not in self._columns]
        return maps_report(self, maps, getattr(self, "_report_run", None), title, displayed_maps, removed)

    def explain(self) -> str:
        """Describe how signals were computed, and why; see `VolumesMasker.explain`."""
        return "\n".join([super().explain(), *self._last_regions("explain").explanation])

    @property
    def maps_img_(self) -> nib.Nifti1Image:
        """Maps as fitted, as a 4D image. Made on each request. AttributeError before `fit`."""
        if not hasattr(self, "_fitted"):
            msg = f"'{type(self).__name__}' object has no attribute 'maps_img_' before fit."
            raise AttributeError(msg)
        self._require_volumes("maps_img_")
        return as_image(self._regions.maps)

    @property
    def n_elements_(self) -> int:
        """Number of columns of the last `transform`; before any, number of maps."""
        check_is_fitted(self)
        return len(self._columns)

    @property
    def coverage_(self) -> pd.DataFrame:
        """How much of each map lies inside the last run's field of view and the mask, a row per column of signals.

        A DataFrame with the columns "index" (of the map), "name", "voxels" (with a weight, on the maps' own grid),
        "covered" (how many of these lie inside field of view and mask) and "fraction" (the share of the weights,
        without signs, that lies inside). AttributeError before `transform`.
        """
        return self._coverage()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns, for ``set_output``: the class's name and the map's index."""
        check_is_fitted(self)
        return np.array([self._name(k) for k in self._columns], dtype=object)

    def _name(self, k):
        return f"{type(self).__name__.lower()}{k}"

    @property
    def _columns(self):
        """Index of the map of each column."""
        on_grid = getattr(self, "_on_grid", None)
        return np.arange(len(self._regions.maps)) if on_grid is None else on_grid.ids

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_fitted")
