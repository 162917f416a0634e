"""Base class of the maskers of volumes: scikit-learn's interface, and the steps from a run to its signals."""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import InputTags
from sklearn.utils._set_output import _get_output_config, _wrap_data_with_container
from sklearn.utils.validation import check_array, check_is_fitted

from gpumask import backend, devices, process
from gpumask.dlpack import has_dlpack, on_host
from gpumask.dtypes import asked_dtype
from gpumask.extraction import Prepared, Result, extract, prepare
from gpumask.images.brain_models import BrainModels
from gpumask.images.cifti_images import dense_values
from gpumask.images.device_arrays import device_of_image, is_pair
from gpumask.images.grayordinates import DenseImage
from gpumask.images.grid import Grid
from gpumask.images.labels import load_mask
from gpumask.images.runs import Run, open_run
from gpumask.images.volumes import open_volumes
from gpumask.maskers.parameters import check_parameters
from gpumask.plans import Plans
from gpumask.settings import Settings

_AT_TRANSFORM_TIME = (
    "Resampling {} at transform time...\n"
    "To avoid this warning, make sure to pass the images you want to transform to fit() first, "
    "or directly use fit_transform()."
)
_IMAGES_AT_TRANSFORM_TIME = (
    "Resampling images at transform time...\nTo avoid this warning, make sure to resample the images "
    "you want to transform to the shape of the maps or set resampling_target to 'data'."
)


_OF_REPORTS = ("_report_run", "_report_signals")


@dataclass
class _ImageTags(InputTags):
    """Input tags with nilearn's two additions."""

    niimg_like: bool = True
    surf_img: bool = False


class VolumesMasker(TransformerMixin, BaseEstimator):
    """Base class of the maskers of volumes.

    A subclass has the name of nilearn's masker. It defines a constructor; `fit`, which calls `_begin_fit` and sets
    `_fitted` (a `gpumask.engine.regions.Regions`); `n_elements_`; and `_report` or `generate_report`. It may redefine
    `_region_parameters`, `_settings`, `_extracted`, `_of_resampled` and `_nilearn_parameters`.
    """

    _has_grayordinates = False
    """Whether there are such regions of grayordinates."""

    def _settings(self) -> Settings:
        """Return the settings of the extraction, checked."""
        return Settings.of(self.get_params(deep=False))

    def _begin_fit(self, imgs):
        """Check parameters and device, choose the memory, and return the opened run, or None."""
        parameters = self.get_params(deep=False)
        check_parameters(parameters)
        self._settings()
        volumes = None
        if imgs is not None:
            self._log(f"Loading data from {described(imgs)}", "fit")
            volumes = open_run(imgs) if self._has_grayordinates else open_volumes(imgs)
        self._forget_run()
        self._plans = Plans()
        self._report_run = imgs if self.reports else None
        self.clean_args_ = {} if self.clean_args is None else self.clean_args
        self.memory_ = self._make_memory()
        if self.device != "auto":  # then the plan decides whether a GPU is needed, and so probed
            devices.resolve_device(self.device)
        return volumes

    @property
    def device_(self) -> str:
        """The device that may be used, "cpu" or "cuda:N"; ``plan_.device`` is the one that was."""
        check_is_fitted(self)
        return devices.resolve_device(self.device)

    def _forget_run(self):
        for name in {"plan_", "seconds_", "_on_grid", "_cleaning", "_lut_", "_run_t_r", *_OF_REPORTS} & set(vars(self)):
            delattr(self, name)

    def transform(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> np.ndarray:
        """Extract and clean the region signals of a run.

        Parameters
        ----------
        imgs : run
            - a path, 3D or 4D. A pattern (``*``) stands for its matching files, sorted.
            - a nibabel image, around an array of NumPy or CuPy.
            - a pair (array, affine), a tuple: of shape (x, y, z) or (x, y, z, t), of NumPy, CuPy, PyTorch, JAX or
              another library that supports DLPack, of integers or floats of 32 bits or more; and (4, 4), to mm.
            - a list of 3D images in files or host memory: these are its volumes.
            - a dense series (`.dtseries.nii`, `.func.gii`), a path, a nibabel `Cifti2Image` or `GiftiImage`, for
              regions of grayordinates.
            - what `gpumask.images.volumes.open_volumes` or `gpumask.images.grayordinates.open_dense` returns.

            Arrays aren't copied, except on a GPU a few volumes at a time where they aren't in Fortran order. A run on
            a GPU is reduced there (``device="auto"`` or that GPU), and only signals leave it. It isn't kept in
            `memory`, which would need its bytes.
        confounds : array, DataFrame, Series, path to a table, or list of these, default=None
            Nuisance signals to remove, one row per volume; see `gpumask.confounds.tables.confounds_matrix`.
        sample_mask : array-like of int or bool, default=None
            Volumes to keep, as indices or as one boolean per volume; see `gpumask.signal.clean`.

        Returns
        -------
        ndarray, shape (n_kept, n_regions)
            One column per region: remaining labels in ascending order; maps and seeds in their order; voxels in the C
            order of their indices. Of shape (n_regions,) for a 3D image. A CuPy array with ``output="device"`` and a
            GPU.

        Raises
        ------
        ValueError
            If a file is missing or broken, a value is out of range, no region is left, grids don't fit, or the run
            lies on a GPU and `device` is another one.
        TypeError
            If a parameter or an array has the wrong type, or an image the wrong number of dimensions.
        IndexError
            If `sample_mask` doesn't fit the run.
        """
        check_is_fitted(self)
        return self.transform_single_imgs(imgs, confounds, sample_mask)

    def fit_transform(self, imgs: Any, y: None = None, confounds: Any = None, sample_mask: Any = None) -> np.ndarray:
        """Fit the masker to a run and transform the run; see `fit` and `transform`."""
        return self.fit(imgs).transform(imgs, confounds=confounds, sample_mask=sample_mask)

    def transform_single_imgs(
        self,
        imgs: Any,
        confounds: Any = None,
        sample_mask: Any = None,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Transform a run as `transform` does; `progress` is called with the number of volumes done so far."""
        check_is_fitted(self)
        started = time.perf_counter()
        self._log(f"Loading data from {described(imgs)}", "transform")
        volumes = open_run(imgs)
        self._report_run = imgs if self.reports else None
        return self._extracted(self.prepare(volumes, confounds, sample_mask), volumes, progress, started)

    def _extracted(self, prepared, volumes, progress, started):
        """Extract and clean the signals of a prepared run; `started` is when its work began."""
        log_cleaning = lambda: self._log("Cleaning extracted signals", "transform")  # noqa: E731
        (result,) = extract([prepared], volumes, progress=progress, on_cleaning=log_cleaning)
        result.seconds["total"] = time.perf_counter() - started
        return self.finish(prepared, result, volumes)

    def prepare(self, volumes: Run, confounds: Any = None, sample_mask: Any = None) -> Prepared:
        """Check the arguments and compile the plan, before a volume is read; see `gpumask.extraction.prepare`."""
        parameters = self.get_params(deep=False)
        check_parameters(parameters)
        memory = self.memory_ if self.memory_.location is not None else None
        settings = self._settings()
        if self.output == "device" and (table := _get_output_config("transform", self)["dense"]) != "default":
            msg = (
                f"output='device' leaves an array, but set_output(transform={table!r}) requests a table. Use "
                "set_output(transform='default'), or output='host'."
            )
            raise ValueError(msg)
        arguments = volumes, self._regions, settings, confounds, sample_mask
        where = {"device": self.device, "output": self.output}
        prepared = prepare(*arguments, **where, plans=self._plans, memory=memory)
        for name in prepared.regions.resampled:
            process.warn(self._of_resampled(name))
        if message := prepared.regions.little_overlap(volumes.name):
            process.warn(message)
        if prepared.plan.resampling is not None:
            self._log("Resampling images", "transform")
        if self.smoothing_fwhm is not None:
            self._log("Smoothing images", "transform")
            if self.smoothing_fwhm == 0:
                msg = (
                    f"The parameter 'fwhm' for smoothing is specified as {self.smoothing_fwhm}. "
                    "Setting it to None (no smoothing will be performed)"
                )
                process.warn(msg)
        self._log(f"Extracting region signals {prepared.plan.placement}", "transform")
        return prepared

    def _of_resampled(self, name):
        """Return the warning that "images", or something of the masker's, are resampled."""
        return _IMAGES_AT_TRANSFORM_TIME if name == "images" else _AT_TRANSFORM_TIME.format(name)

    def finish(self, prepared: Prepared, result: Result, volumes: Run) -> np.ndarray:
        """Set the attributes that describe the run, and return the signals in their final shape."""
        self.plan_, self.seconds_, self._on_grid = prepared.plan, result.seconds, prepared.regions
        self._run_t_r = volumes.t_r if isinstance(volumes, DenseImage) else None
        if self.reports and isinstance(volumes, DenseImage):
            self._report_signals = backend.to_host(result.signals).copy()
        self._cleaning = prepared.cleaner.explain(result.signals.shape[1])
        shares = ", ".join(f"{step} {seconds:.3f} s" for step, seconds in self.seconds_.items())
        self._log(f"{volumes.n_volumes} volumes: {shares} (reading and reducing overlap)", "transform")
        if volumes.is_3d and _get_output_config("transform", self)["dense"] == "default":
            return result.signals.squeeze()
        return result.signals

    def explain(self) -> str:
        """Describe how the volumes and the signals of the last run were computed, and why, in a few lines.

        AttributeError before `transform`.
        """
        self._last_regions("explain")
        return f"{self.plan_.explain()}\n{self._cleaning}"

    def to_nilearn(self) -> Any:
        """Return nilearn's masker of the same parameters, for nilearn's estimators, which accept no other class.

        Returns
        -------
        nilearn.maskers.NiftiLabelsMasker or another class of nilearn
            That of this masker's name, fitted without a run. `standardize` is None or "zscore_sample" instead of False
            or True, about which nilearn warns.

        Raises
        ------
        ImportError
            If nilearn isn't installed.
        ValueError
            If a parameter, other than `device`, has a value that nilearn doesn't support; or for grayordinates: the
            surface maskers of nilearn need coordinates of vertices, which CIFTI-2 files lack, and support no voxels.
        """
        check_is_fitted(self)
        self._require_volumes("to_nilearn")
        try:
            from nilearn import maskers
        except ImportError as error:
            msg = "to_nilearn needs nilearn: pip install 'gpumask[nilearn]'"
            raise ImportError(msg) from error
        masker_class = next(getattr(maskers, c.__name__) for c in type(self).__mro__ if hasattr(maskers, c.__name__))
        parameters = self.get_params(deep=False)
        supported = set(masker_class().get_params())
        defaults = {name: given.default for name, given in inspect.signature(type(self)).parameters.items()}
        own = [name for name in defaults if name not in {*supported, "device"}]
        lacking = [name for name in own if repr(parameters[name]) != repr(defaults[name])]  # arrays have no one ==
        lacking += ["standardize"] * (parameters["standardize"] == "zscore")
        if lacking:
            values = ", ".join(f"{name}={parameters[name]!r}" for name in lacking)
            msg = f"nilearn's {masker_class.__name__} doesn't support {values}. Use the default to convert this masker."
            raise ValueError(msg)
        chosen = {name: value for name, value in parameters.items() if name in supported} | self._nilearn_parameters()
        chosen["standardize"] = {False: None, True: "zscore_sample"}.get(self.standardize, self.standardize)
        return masker_class(**chosen).fit()

    def _nilearn_parameters(self):
        """Parameters that nilearn needs in another form."""
        return {}

    def generate_report(self, engine: str = "matplotlib", title: str | None = None) -> Any:
        """Create an HTML page with the regions on a volume of the run, and the parameters.

        For grayordinates, the page has signals, brain models and a table of the regions instead of a picture.

        Parameters
        ----------
        engine : "matplotlib"
            For compatibility with nilearn; only "matplotlib" is supported.
        title : str or None, default=None
            If None, the name of the class.

        Returns
        -------
        gpumask.reports.masker.Report
            Notebooks display it; it has ``save_as_html(path)`` and ``open_in_browser()``.

        Raises
        ------
        ValueError
            If the masker has ``reports=False``, or for another `engine`.
        """
        self._check_report(engine)
        return self._report(title)

    @property
    def _regions(self):
        """The fitted regions, with the present values of parameters that may be set after `fit`."""
        changes = self._region_parameters()
        if any(getattr(self._fitted, name) != value for name, value in changes.items()):
            self._fitted = replace(self._fitted, **changes)
        return self._fitted

    def _region_parameters(self):
        """Fields of `_fitted` that parameters determine at each use."""
        return {}

    @property
    def _n_features_out(self):
        return self.n_elements_

    def _loaded_mask(self):
        """Return the mask and its grid, or two None."""
        if self.mask_img is None:
            return None, None
        self._log(f"Loading mask from {described(self.mask_img)}", "fit")
        return load_mask(self.mask_img)

    def _coverage(self):
        """Table of how much of each region of the last run lies inside field of view and mask."""
        regions = self._last_regions("coverage_")
        voxels, covered = regions.coverage
        names = self.get_feature_names_out()
        columns = {"index": regions.ids.tolist(), "name": names, "voxels": voxels, "covered": covered}
        return pd.DataFrame(columns).assign(fraction=regions.covered_share)

    def _last_regions(self, name):
        if not hasattr(self, "_on_grid"):
            msg = f"'{type(self).__name__}' object has no attribute '{name}' before transform."
            raise AttributeError(msg)
        return self._on_grid

    def _checked_signals(self, signals, *, finite=True):
        """Return what `inverse_transform` got as an array of one or two dimensions, in the dtype of the image.

        Unless `finite` is False, infinite values are an error, and so is NaN where `transform` can't return it.
        """
        check_is_fitted(self)
        self._log("Computing image from signals", "inverse_transform")
        if has_dlpack(signals):
            signals = on_host(signals, "signals")
        if hasattr(signals, "to_numpy"):
            signals = signals.to_numpy()
            signals = signals[0] if len(signals) == 1 else signals
        finite = "allow-nan" if finite and self._settings().can_return_nan else finite
        signals = check_array(np.atleast_1d(signals), ensure_2d=False, ensure_all_finite=finite)
        expected = (*signals.shape[:-1], self.n_elements_)
        if signals.ndim > 2 or signals.shape != expected:
            msg = f"Input to 'inverse_transform' has wrong shape.\nExpected {expected}.\nGot {signals.shape}."
            raise ValueError(msg)
        if signals.dtype == bool:
            dtype = self.dtype if self.dtype is not None else np.int32
            process.warn(f"Casting boolean input to {dtype}")
            signals = signals.astype(np.int32)
        signals = signals.astype(asked_dtype(self.dtype, signals.dtype) or signals.dtype, copy=False)
        if signals.dtype in (np.int64, np.uint64) and np.array_equal(signals.astype(np.int32), signals):
            msg = "64-bit integers are rare in NIfTI files, so the data has been converted to int32."
            process.warn(msg)
            signals = signals.astype(np.int32)
        return signals

    def _dense_image(self, regions, values):
        """Values of the grayordinates of an atlas or maps as an image."""
        return dense_values(regions, values, self.t_r or getattr(self, "_run_t_r", None) or 1.0)

    def _dense_report(self, title):
        """Return the report of a masker of grayordinates."""
        from gpumask.reports.grayordinates import dense_report

        regions = self._regions
        on_grid = getattr(self, "_on_grid", None) or regions.on(regions.grid, None, "all")
        return dense_report(self, regions.grid, on_grid, getattr(self, "_report_signals", None), title)

    def _require_volumes(self, method):
        grid = self._fitted.grid
        if isinstance(grid, BrainModels):
            msg = f"{method} doesn't support grayordinates, which {grid.name} has. Use regions of volumes for it."
            raise ValueError(msg)

    def _check_report(self, engine):
        """Raise an error unless the masker is fitted and can make a report."""
        check_is_fitted(self)
        if not self.reports:
            msg = "generate_report needs reports=True, but the masker has reports=False."
            raise ValueError(msg)
        if engine != "matplotlib":
            msg = f"`engine` must be 'matplotlib', got {engine!r}."
            raise ValueError(msg)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.estimator_type, tags.input_tags = "masker", _ImageTags()
        return tags

    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name not in _OF_REPORTS}

    def _make_memory(self):
        memory = self.memory
        if memory is not None and self.memory_level == 0:
            msg = "memory_level is currently set to 0 but a Memory object has been provided. Setting memory_level to 1."
            process.warn(msg)
        if isinstance(memory, joblib.Memory):
            return memory
        folder = None if memory is None else Path(memory).expanduser()
        if folder is not None and folder.exists() and not folder.is_dir():
            msg = f"`memory` must be a folder, but {folder} is a file. Choose another name."
            raise NotADirectoryError(msg)
        return joblib.Memory(None if folder is None else str(folder), verbose=0)

    def _log(self, message, method):
        if self.verbose:
            print(f"[{type(self).__name__}.{method}] {message}")


def check_masker(masker: Any) -> None:
    """Raise TypeError for anything else than a masker of gpumask, and scikit-learn's NotFittedError before `fit`."""
    if not isinstance(masker, VolumesMasker):
        kind = f"{type(masker).__module__}.{type(masker).__qualname__}"
        msg = f"Expected a masker of gpumask, such as gpumask.NiftiLabelsMasker, got {kind}."
        raise TypeError(msg)
    check_is_fitted(masker)


def wrapped(masker: VolumesMasker, signals: np.ndarray, imgs: Any) -> Any:
    """Convert signals to the container chosen by ``masker.set_output``; `transform` does so by itself."""
    return _wrap_data_with_container("transform", signals, imgs, masker)


def mask_image(mask: np.ndarray | None, grid: Grid | None) -> nib.Nifti1Image | None:
    """Return a mask as an int8 image; None without one."""
    return None if mask is None or grid is None else nib.Nifti1Image(mask.astype(np.int8), grid.affine)


def described(imgs: Any) -> str:
    """Return the name of some images in log lines."""
    if isinstance(imgs, (str, Path)):
        return f"'{imgs}'"
    if is_pair(imgs):
        return f"an array on {device_of_image(imgs)}"
    if isinstance(imgs, (list, tuple)):
        return f"{len(imgs)} images"
    return repr(imgs)
