"""NiftiLabelsMasker: the parameters, the fitted attributes and the choice of the device; no arithmetic."""

import time
import warnings
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import InputTags
from sklearn.utils._set_output import _get_output_config, _wrap_data_with_container
from sklearn.utils.validation import check_array, check_is_fitted

from gpumask import backend
from gpumask.confounds.high_variance import high_variance_confounds
from gpumask.engine.plan import compile_plan
from gpumask.engine.regions import check_same_grids, meet, place
from gpumask.engine.stream import extract_together, n_cores
from gpumask.images.errors import DimensionError
from gpumask.images.labels import load_atlas, load_mask, lookup_table
from gpumask.images.volumes import open_volumes
from gpumask.maskers.parameters import asked_dtype, check_parameters, checked_names, signal_dtype
from gpumask.signal import Cleaner

_KEPT_PLACEMENTS = 4  # grids (and settings) whose plans a masker keeps


@dataclass
class _ImageTags(InputTags):
    """Input tags with nilearn's two additions."""

    niimg_like: bool = True
    surf_img: bool = False


class NiftiLabelsMasker(TransformerMixin, BaseEstimator):
    """Extract the time series of an atlas's regions from fMRI runs.

    A drop-in replacement for ``nilearn.maskers.NiftiLabelsMasker`` (0.14.1) that reads each volume once, in its stored
    dtype, and never holds a run in memory. The positional order is that of nilearn's first releases; nilearn's later
    parameters are keywords.

    Parameters
    ----------
    labels_img : path or nibabel image
        3D label image: a number per region.
    background_label : int or float, default=0
        Label of the voxels of no region.
    mask_img : path, nibabel image, list of these or None, default=None
        Voxels outside of it (0 there) belong to no region. If None, there is no mask.
    smoothing_fwhm : float or None, default=None
        Full width at half maximum of a Gaussian, in mm, that the volumes are smoothed with. If None, they aren't.
    standardize : {"zscore_sample", "zscore", "psc", True, False, None}, default=False
        "zscore_sample" or True: mean 0 and sample variance (ddof=1) 1. "zscore": population variance 1. "psc": percent
        signal change. None or False: as it is.
    detrend : bool, default=False
        Whether to remove mean and linear trend.
    low_pass : float or None, default=None
        Upper cut-off frequency of a Butterworth filter, in Hz. None or False: no such cut-off.
    high_pass : float or None, default=None
        Lower cut-off frequency, likewise.
    t_r : float or None, default=None
        Repetition time, in seconds; needed for filtering.
    resampling_target : {"data", "labels", None}, default="data"
        "data": labels and mask are resampled to the runs (nearest voxel). "labels": mask (nearest) and runs (cubic
        splines) to the labels. None: nothing is, and different grids are an error.
    memory : joblib.Memory, path or None, default=None
        Where to keep compiled plans and extracted signals. Runs on disk count by path, size and modification time.
    memory_level : int, default=1
        With 0 and a `memory`, it is 1.
    verbose : int, default=0
        With 1 or more, each step is printed, and the device that is used.
    labels : list of str or None, default=None
        Names of the regions, in ascending order of their labels. Not together with `lut`.
    lut : DataFrame, path or None, default=None
        Look-up table of the regions with the columns "index" and "name".
    standardize_confounds : bool, default=True
        Whether to z-score the confounds.
    high_variance_confounds : bool, default=False
        Whether to also remove five principal components of the 2 % of the voxels that vary most. Their run is then read
        three times.
    dtype : dtype, "auto" or None, default=None
        Of the signals. If None, float32 or float64 by nilearn's rules; "auto": int32 for unscaled signed integers,
        else float32.
    strategy : {"mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation"}, default="mean"
        Statistic of a region's voxels.
    keep_masked_labels : bool, default=False
        Whether regions that the mask covers entirely keep a column, of zeros.
    reports : bool, default=True
        Whether to remember the run (its path, or the image itself) for `generate_report`.
    cmap : str or None, default=None
        Matplotlib colour map of the regions in `generate_report`. If None, "hsv".
    clean_args : dict or None, default=None
        More keywords for `gpumask.signal.clean`.
    device : {"auto", "cpu", "cuda", "cuda:N"}, default="auto"
        Where volumes are reduced. "auto" takes a GPU if one can compute, else the CPU. A GPU that is asked for and
        can't be used is an error.
    min_coverage : float or None, default=None
        Regions of which a smaller share of voxels lies in the field of view and the mask become columns of NaN; see
        `coverage_`.
    keep_all_regions : bool, default=False
        Whether every label of `labels_img` has a column, of NaN where mask, resampling or field of view left nothing of
        it: the same columns for every run.
    nan_policy : {"zero", "omit"}, default="zero"
        Whether NaN and infinite voxels count as 0, as in nilearn, or are left out of a region's statistic.

    Attributes
    ----------
    clean_args_ : dict
    device_ : str
        "cpu" or "cuda:N": what is used.
    labels_img_ : nibabel.nifti1.Nifti1Image
        Labels, resampled to the runs if `fit` was given any.
    lut_ : pandas.DataFrame
        A row per label of the image, in ascending order, the background's among them.
    mask_img_ : nibabel.nifti1.Nifti1Image or None
    memory_ : joblib.Memory

    Notes
    -----
    `transform` adds attributes that describe the last run: ``region_atlas_``, the labels as they were applied to it;
    ``plan_``, what was done to each volume (``plan_.explain()`` says why, ``plan_.counts`` has the voxels of each
    region); and ``seconds_``, the wall-clock seconds of "read", "reduce" (summed over threads), "clean" and "total"; on
    a GPU, "upload" and "reduce" by its own clock.
    """

    def __init__(
        self,
        labels_img=None,
        background_label=0,
        mask_img=None,
        smoothing_fwhm=None,
        standardize=False,
        detrend=False,
        low_pass=None,
        high_pass=None,
        t_r=None,
        resampling_target="data",
        memory=None,
        memory_level=1,
        verbose=0,
        *,
        labels=None,
        lut=None,
        standardize_confounds=True,
        high_variance_confounds=False,
        dtype=None,
        strategy="mean",
        keep_masked_labels=False,
        reports=True,
        cmap=None,
        clean_args=None,
        device="auto",
        min_coverage=None,
        keep_all_regions=False,
        nan_policy="zero",
    ):
        self.labels_img = labels_img
        self.background_label = background_label
        self.mask_img = mask_img
        self.smoothing_fwhm = smoothing_fwhm
        self.standardize = standardize
        self.detrend = detrend
        self.low_pass = low_pass
        self.high_pass = high_pass
        self.t_r = t_r
        self.resampling_target = resampling_target
        self.memory = memory
        self.memory_level = memory_level
        self.verbose = verbose
        self.labels = labels
        self.lut = lut
        self.standardize_confounds = standardize_confounds
        self.high_variance_confounds = high_variance_confounds
        self.dtype = dtype
        self.strategy = strategy
        self.keep_masked_labels = keep_masked_labels
        self.reports = reports
        self.cmap = cmap
        self.clean_args = clean_args
        self.device = device
        self.min_coverage = min_coverage
        self.keep_all_regions = keep_all_regions
        self.nan_policy = nan_policy

    def fit(self, imgs=None, y=None):
        """Load labels and mask, and choose the device.

        Parameters
        ----------
        imgs : path, nibabel image or list of 3D images, optional
            A run. With ``resampling_target="data"``, labels and mask are resampled to its grid.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        check_parameters(self.get_params(deep=False))
        volumes = None
        if imgs is not None:
            self._log(f"Loading data from {_describe(imgs)}", "fit")
            volumes = open_volumes(imgs)
        for name in ("plan_", "seconds_", "non_finite_", "_lut_", "_placement"):
            self.__dict__.pop(name, None)
        self._placements = {}
        self._report_run = imgs if self.reports else None
        self.clean_args_ = {} if self.clean_args is None else self.clean_args
        self.memory_ = self._make_memory()
        self.device_ = backend.resolve_device(self.device)
        self._log(f"Using device {self.device_}", "fit")
        mask, mask_grid = None, None
        if self.mask_img is not None:
            self._log(f"Loading mask from {_describe(self.mask_img)}", "fit")
            mask, mask_grid = load_mask(self.mask_img)
        self._log(f"Loading regions from {_describe(self.labels_img)}", "fit")
        atlas = replace(load_atlas(self.labels_img, self.background_label), mask=mask, mask_grid=mask_grid)
        self._given = atlas
        self.lut_ = lookup_table(
            atlas.values, self.background_label, names=checked_names(self.labels, self.lut), lut=self.lut
        )

        if self.resampling_target is None:
            others = {"mask": mask_grid, "data": volumes and volumes.grid}
            check_same_grids("Following field of view errors were detected:", atlas.grid, **others)
        target = None
        if self.resampling_target == "data" and volumes is not None:
            target = volumes.grid
            if not atlas.grid.matches(target):
                self._log("Resampling regions", "fit")
                atlas = atlas.resampled(target, _ignore if self.keep_all_regions else warnings.warn)
        elif self.resampling_target == "labels":
            target = atlas.grid
        if mask is not None and target is not None:
            if not mask_grid.matches(target):
                self._log("Resampling mask", "fit")
                atlas = atlas.with_mask_resampled(target)
            atlas.check_mask()
        self._atlas = atlas
        self.labels_img_ = nib.Nifti1Image(atlas.labels, atlas.grid.affine, dtype=atlas.labels.dtype)
        self.mask_img_ = None
        if mask is not None:
            self.mask_img_ = nib.Nifti1Image(atlas.mask.astype(np.int8), atlas.mask_grid.affine)
        self._log("Finished fit", "fit")
        return self

    def transform(self, imgs, confounds=None, sample_mask=None):
        """Extract and clean the region signals of a run.

        Parameters
        ----------
        imgs : path, nibabel image or list of 3D images
            A run.
        confounds : array, DataFrame, Series, path to a table, or list of these, default=None
            Nuisance signals to remove, a row per volume; see `gpumask.confounds.tables.confounds_matrix`.
        sample_mask : array-like of int or bool, default=None
            Volumes to keep, as indices or as a boolean per volume; see `gpumask.signal.clean`.

        Returns
        -------
        ndarray, shape (n_volumes, n_regions)
            A column per label that is left, in ascending order of the labels. Of shape (n_regions,) for a 3D image.

        Raises
        ------
        ValueError
            If a file is missing or broken, a parameter is out of range, or grids don't fit.
        """
        check_is_fitted(self)
        return self.transform_single_imgs(imgs, confounds, sample_mask)

    def fit_transform(self, imgs, y=None, confounds=None, sample_mask=None):
        """Fit to a run and transform it; see `fit` and `transform`."""
        return self.fit(imgs).transform(imgs, confounds=confounds, sample_mask=sample_mask)

    def transform_single_imgs(self, imgs, confounds=None, sample_mask=None, progress=None):
        """As `transform`, reporting the volumes done to `progress` (a callable taking their number)."""
        check_is_fitted(self)
        started = time.perf_counter()
        self._log(f"Loading data from {_describe(imgs)}", "transform")
        volumes = open_volumes(imgs)
        self._report_run = imgs if self.reports else None
        placement, cleaner = self._prepare(volumes, confounds, sample_mask)
        key = (volumes.identity(), placement.key, self._settings(volumes.grid)) if self._caches else None
        extraction = self._cached(_extract, ["plan", "volumes", "progress"])(
            key, self.device_, self.nan_policy, plan=placement.plan, volumes=volumes, progress=progress
        )
        return self._finish(extraction, placement, cleaner, volumes, started)

    def _prepare(self, volumes, confounds, sample_mask):
        """All that can be known, and be wrong, before a volume is read: what to extract, and how to clean it."""
        check_parameters(self.get_params(deep=False))
        if self.high_variance_confounds:
            confounds = self._with_high_variance(volumes, confounds)
        cleaner = self._cleaner(volumes.n_volumes, confounds, sample_mask)
        placement = self._place(volumes.grid)
        if placement.plan.resampling is not None:
            self._log("Resampling images", "transform")
        if self.smoothing_fwhm is not None:
            self._log("Smoothing images", "transform")
            if self.smoothing_fwhm == 0:
                msg = (
                    f"The parameter 'fwhm' for smoothing is specified as {self.smoothing_fwhm}. "
                    "Setting it to None (no smoothing will be performed)"
                )
                warnings.warn(msg, stacklevel=5)
        self._log("Extracting region signals", "transform")
        return placement, cleaner

    def _finish(self, extraction, placement, cleaner, volumes, started):
        """Clean the signals, and give them their shape and dtype."""
        plan, signals = placement.plan, extraction.signals
        zeroed = extraction.non_finite and self.nan_policy == "zero"
        if zeroed and (self.smoothing_fwhm is None or plan.resampling is not None):  # as nilearn does
            msg = "Non-finite values detected. These values will be replaced with zeros."
            warnings.warn(msg, UserWarning, stacklevel=4)
        lost = plan.counts == 0
        if not self.keep_all_regions:  # what has a column without a voxel is there by `keep_masked_labels`
            signals = np.where(lost, 0.0, signals) if lost.any() else signals
            lost = np.zeros_like(lost)
        if self.min_coverage is not None:
            lost = lost | (placement.coverage["fraction"].to_numpy() < self.min_coverage)
        self._log("Cleaning extracted signals", "transform")
        cleaning = time.perf_counter()
        with backend.one_blas_thread():
            signals = _cleaned(signals, lost, cleaner, copy=self._caches)  # what `memory` holds may be a mapped file
        done = time.perf_counter()
        self.seconds_ = {**extraction.seconds, "clean": done - cleaning, "total": done - started}
        self.non_finite_ = extraction.non_finite
        shares = ", ".join(f"{step} {seconds:.3f} s" for step, seconds in self.seconds_.items())
        self._log(f"{volumes.n_volumes} volumes: {shares} (reading and reducing overlap)", "transform")
        if volumes.is_3d and _get_output_config("transform", self)["dense"] == "default":
            signals = signals.squeeze()
        smoothed, resampled = self.smoothing_fwhm is not None, plan.resampling is not None
        dtype = signal_dtype(self.dtype, volumes.loaded_dtype, smoothed=smoothed, resampled=resampled)
        if dtype.kind != "f" and np.isnan(signals).any():
            msg = f"NaN marks the regions without data, and dtype={self.dtype!r} can't hold it: use a float dtype."
            raise ValueError(msg)
        return signals.astype(dtype, copy=False)

    def _with_high_variance(self, volumes, confounds):
        if volumes.is_3d:
            msg = (
                "Input data has incompatible dimensionality: Expected dimension is 4D and you provided a 3D image. "
                f"{volumes.name} has no variance over time: set high_variance_confounds=False."
            )
            raise DimensionError(msg)
        key = volumes.identity() if self._caches else None
        own = self._cached(_high_variance_confounds, ["volumes"])(key, volumes=volumes)
        several = isinstance(confounds, list | tuple) and not all(isinstance(c, Real) for c in confounds)
        return [own, *([] if confounds is None else confounds if several else [confounds])]

    def inverse_transform(self, signals):
        """Paint region signals into volumes.

        Parameters
        ----------
        signals : array-like or DataFrame, shape (n_regions,) or (n_volumes, n_regions)
            A column per region, as `transform` returns them (before any transform: per region of `lut_`).

        Returns
        -------
        nibabel.nifti1.Nifti1Image
            3D or 4D, on the grid of `labels_img_`; 0 outside the regions and the mask. Of `dtype` if that is set, else
            of the signals' dtype.
        """
        check_is_fitted(self)
        self._log("Computing image from signals", "inverse_transform")
        if hasattr(signals, "to_numpy"):
            signals = signals.to_numpy()
            signals = signals[0] if len(signals) == 1 else signals
        marks = self.keep_all_regions or self.min_coverage is not None or self.nan_policy == "omit"
        finite = "allow-nan" if marks else True
        signals = check_array(np.atleast_1d(signals), ensure_2d=False, ensure_all_finite=finite)
        expected = (*signals.shape[:-1], self.n_elements_)
        if signals.ndim > 2 or signals.shape != expected:
            msg = f"Input to 'inverse_transform' has wrong shape.\nExpected {expected}.\nGot {signals.shape}."
            raise ValueError(msg)
        if signals.dtype == bool:
            dtype = self.dtype if self.dtype is not None else np.int32
            warnings.warn(f"Casting boolean input to {dtype}", stacklevel=2)
            signals = signals.astype(np.int32)
        signals = signals.astype(asked_dtype(self.dtype, signals.dtype) or signals.dtype, copy=False)
        if signals.dtype in (np.int64, np.uint64) and np.array_equal(signals.astype(np.int32), signals):
            msg = "64-bit integers are rare in NIfTI files, so the data has been converted to int32."
            warnings.warn(msg, stacklevel=2)
            signals = signals.astype(np.int32)
        ids = [label for key, label in self.region_ids_.items() if key != "background"]
        data = self._atlas.painted(ids, signals, n_threads=n_cores())
        return nib.Nifti1Image(data, self._atlas.grid.affine, dtype=data.dtype)

    def generate_report(self, engine="matplotlib", title=None):
        """Make an HTML page with the regions on a volume of the run, the parameters and a table of the regions.

        Parameters
        ----------
        engine : "matplotlib"
            Accepted for nilearn's sake; there is no other.
        title : str or None, default=None
            If None, the class's name.

        Returns
        -------
        gpumask.reports.masker.Report
            Shown by notebooks; has ``save_as_html(path)`` and ``open_in_browser()``.
        """
        check_is_fitted(self)
        if not self.reports:
            msg = "No report can be made: the masker has reports=False."
            raise ValueError(msg)
        if engine != "matplotlib":
            msg = f"`engine` must be 'matplotlib', got {engine!r}."
            raise ValueError(msg)
        from gpumask.reports.masker import masker_report

        return masker_report(self, title)

    @property
    def n_elements_(self):
        """Number of regions: the columns of the last `transform`, or before any, the regions of `lut_`."""
        return len(self.region_names_)

    @property
    def region_atlas_(self):
        """The labels as they were applied to the last run, masked; there is none before `transform`."""
        return self._last_placement("region_atlas_").region_atlas

    @property
    def coverage_(self):
        """Of the last run's columns: how much of each region lies in the field of view and in the mask.

        A DataFrame with the columns "index", "name", "voxels" (of the atlas, in its own grid), "covered" (of these, by
        the run and the mask) and "fraction". There is none before `transform`.
        """
        return self._last_placement("coverage_").coverage.copy()

    def _last_placement(self, name):
        if not hasattr(self, "_placement"):
            msg = f"'{type(self).__name__}' object has no attribute '{name}' before transform."
            raise AttributeError(msg)
        return self._placement

    @property
    def labels_(self):
        """Labels of the regions, and of the background if it occurs."""
        check_is_fitted(self)
        return self._columns["index"].to_list()

    @property
    def region_ids_(self):
        """Label of each column, and of "background" if it occurs."""
        labels = self.labels_
        ids = {"background": self.background_label} if self.background_label in labels else {}
        return ids | dict(enumerate(label for label in labels if label != self.background_label))

    @property
    def region_names_(self):
        """Name of each column."""
        check_is_fitted(self)
        table = self._columns
        return dict(enumerate(table["name"][table["index"] != self.background_label]))

    def get_feature_names_out(self, input_features=None):
        """Names of the columns, for ``set_output``."""
        return list(self.region_names_.values())

    @property
    def _n_features_out(self):
        return self.n_elements_

    @property
    def _columns(self):
        return getattr(self, "_lut_", self.lut_)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "labels_img_") and hasattr(self, "lut_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.estimator_type, tags.input_tags = "masker", _ImageTags()
        return tags

    def __getstate__(self):
        state = super().__getstate__()
        state = {name: value for name, value in state.items() if name != "_report_run"}
        return state | {"_placements": {}} if "_placements" in state else state

    def _place(self, grid):
        """What is extracted from runs on `grid`; compiled once and kept for the next run."""
        meet(self._atlas, grid, self.resampling_target)
        settings = self._settings(grid)
        placement = self._placements.get(settings)
        if placement is None:
            placement = place(
                self._atlas,
                self._given,
                grid,
                self.lut_,
                target=self.resampling_target,
                keep_masked=self.keep_masked_labels,
                keep_all=self.keep_all_regions,
                compile_plan=self._compile_plan,
            )
            while len(self._placements) >= _KEPT_PLACEMENTS:
                self._placements.pop(next(iter(self._placements)))
            self._placements[settings] = placement
        for message, category in placement.notes:
            warnings.warn(message, category, stacklevel=5)
        self._placement, self.plan_, self._lut_ = placement, placement.plan, placement.table
        return placement

    def _compile_plan(self, atlas, ids, grid):
        key = joblib.hash((atlas.labels, atlas.mask, ids)) if self._caches else None
        fwhm = self.smoothing_fwhm or None
        compiled = self._cached(_compile_plan, ["atlas", "ids", "grid"])(
            key, self._settings(grid), fwhm, self.strategy, atlas=atlas, ids=ids, grid=grid
        )
        return compiled, key

    def _settings(self, grid):
        return (
            grid.shape,
            grid.affine.tobytes(),
            self.smoothing_fwhm,
            self.strategy,
            self.resampling_target,
            self.keep_masked_labels,
            self.keep_all_regions,
            self.nan_policy,
        )

    def _cleaner(self, n_volumes, confounds, sample_mask):
        """What cleans the signals; made first, so that wrong confounds or cut-offs show before a volume is read."""
        with backend.one_blas_thread():
            return Cleaner(
                n_volumes,
                detrend=self.detrend,
                standardize=self.standardize,
                standardize_confounds=self.standardize_confounds,
                t_r=self.t_r,
                low_pass=None if self.low_pass is False else self.low_pass,
                high_pass=None if self.high_pass is False else self.high_pass,
                confounds=confounds,
                sample_mask=sample_mask,
                **self.clean_args_,
            )

    @property
    def _caches(self):
        return self.memory_.location is not None

    def _cached(self, function, ignore):
        return self.memory_.cache(function, ignore=ignore) if self._caches else function

    def _make_memory(self):
        memory = self.memory
        if memory is not None and self.memory_level == 0:
            msg = "memory_level is currently set to 0 but a Memory object has been provided. Setting memory_level to 1."
            warnings.warn(msg, stacklevel=3)
        if isinstance(memory, joblib.Memory):
            return memory
        return joblib.Memory(None if memory is None else str(Path(memory).expanduser()), verbose=0)

    def _log(self, message, method):
        if self.verbose:
            print(f"[{type(self).__name__}.{method}] {message}")


def _cleaned(signals, lost, cleaner, *, copy):
    """Signals cleaned, those of `lost` regions NaN; "psc" looks at all at once, so that NaN must not be among them."""
    finite = np.isfinite(signals).all(axis=0) & ~lost
    if finite.all():
        return cleaner(signals, copy=copy)
    (kept,) = cleaner.kept
    result = np.full((len(signals) if kept is None else len(kept), len(lost)), np.nan)
    for columns in (finite, ~finite & ~lost):
        if columns.any():
            # In the order that the signals have without the others: it decides the bits.
            result[:, columns] = cleaner(np.ascontiguousarray(signals[:, columns]))
    return result


def _compile_plan(key, settings, fwhm, strategy, *, atlas, ids, grid):
    """Compile a plan; cached by everything before the star."""
    # Of two grids that match, the run's decides the voxel sizes that it is smoothed by.
    label_grid = grid if atlas.grid.matches(grid) else atlas.grid
    return compile_plan(
        atlas.labels, ids, label_grid, grid=grid, mask=atlas.mask, smoothing_fwhm=fwhm, strategy=strategy
    )


def _high_variance_confounds(key, *, volumes):
    """Confounds from a run itself; cached by its identity (`key`)."""
    return high_variance_confounds(volumes)


def _extract(key, device, nan_policy, *, plan, volumes, progress):
    """Extract signals; cached by run, atlas and settings (`key`), by device and policy."""
    return extract_together([plan], volumes, device=device, nan_policy=nan_policy, progress=progress)[0]


def _ignore(*_, **__):
    """In the place of ``warnings.warn``."""


def _describe(imgs):
    if isinstance(imgs, (str, Path)):
        return f"'{imgs}'"
    if isinstance(imgs, (list, tuple)):
        return f"{len(imgs)} images"
    return repr(imgs)


def transform_together(maskers, imgs, confounds=None, sample_mask=None, *, n_threads=None, progress=None):
    """Extract the signals of several atlases from one run, reading it once.

    The maskers may differ in everything but the device and `nan_policy`: atlas, mask, strategy, smoothing, cleaning.
    Decompressing a run takes longer than reducing it, so that five atlases take little longer than one.

    Parameters
    ----------
    maskers : sequence of NiftiLabelsMasker
        Fitted.
    imgs : path, nibabel image or list of 3D images
        A run.
    confounds, sample_mask
        For all maskers, as `NiftiLabelsMasker.transform` takes them.
    n_threads : int, optional
        Threads that reduce volumes on the CPU, beside the calling one, which reads. If None, one per core. The bits
        don't depend on it.
    progress : callable, optional
        Called with the number of volumes done, from the calling thread; what it raises ends the extraction.

    Returns
    -------
    list of ndarray
        For each masker what its `transform` would return, with the same bits. `memory` holds compiled plans, but
        signals aren't looked for in it.

    Raises
    ------
    ValueError
        If the maskers differ in device or `nan_policy`, or as `NiftiLabelsMasker.transform`.
    """
    for masker in maskers:
        check_is_fitted(masker)
    shared = {(masker.device_, masker.nan_policy) for masker in maskers}
    if len(shared) != 1:
        msg = f"`maskers` must be at least one, and share device and nan_policy, got {sorted(shared)}."
        raise ValueError(msg)
    started = time.perf_counter()
    device, nan_policy = shared.pop()
    volumes = open_volumes(imgs)
    prepared = [masker._prepare(volumes, confounds, sample_mask) for masker in maskers]
    plans = [placement.plan for placement, _ in prepared]
    extractions = extract_together(
        plans, volumes, device=device, nan_policy=nan_policy, progress=progress, n_threads=n_threads
    )
    return [
        _wrap_data_with_container(
            "transform", masker._finish(extraction, placement, cleaner, volumes, started), imgs, masker
        )
        for masker, extraction, (placement, cleaner) in zip(maskers, extractions, prepared, strict=True)
    ]
