"""One masker for a list of runs: of labels, maps and voxels."""

import contextlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from sklearn.utils.validation import check_is_fitted

from gpumask.images.device_arrays import device_of_image
from gpumask.images.opening import is_single
from gpumask.maskers.base import VolumesMasker
from gpumask.maskers.brain_masks import computed_mask, for_nilearn
from gpumask.maskers.labels import NiftiLabelsMasker
from gpumask.maskers.maps import NiftiMapsMasker
from gpumask.maskers.voxels import NiftiMasker
from gpumask.process import several_runs


class ManyRuns:
    """The methods that accept lists of runs.

    Kept apart: scikit-learn turns the output of a class's own `transform` into one table; here it is one per run.
    """

    n_jobs: int

    def fit(self, imgs: Any = None, y: None = None) -> Self:
        """Load regions and mask, and check the device.

        Parameters
        ----------
        imgs : run, or list of runs, optional
            As for `transform`. The first run is used, as in the `fit` of a masker of single runs.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        runs = _as_runs(imgs)
        return super().fit(runs[0] if isinstance(runs, list) and runs else runs)  # type: ignore[misc]

    def fit_transform(
        self, imgs: Any, y: None = None, confounds: list | None = None, sample_mask: list | None = None
    ) -> list[np.ndarray] | np.ndarray:
        """Fit to several runs and transform them; see `fit` and `transform`."""
        runs = _as_runs(imgs)
        return self.fit(runs).transform(runs, confounds=confounds, sample_mask=sample_mask)

    def transform(
        self, imgs: Any, confounds: list | None = None, sample_mask: list | None = None
    ) -> list[np.ndarray] | np.ndarray:
        """Extract and clean the region signals of several runs.

        Parameters
        ----------
        imgs : run, or list of runs
            Each as for `NiftiLabelsMasker.transform`; a tuple (array, affine) is one run.
        confounds, sample_mask : list or None, default=None
            One per run, each as for `NiftiLabelsMasker.transform`.

        Returns
        -------
        list of ndarray, shape (n_kept, n_regions) each
            In the order of the runs; a single array for a single run. Tables if `set_output` requests them, CuPy arrays
            with ``output="device"`` and a GPU.

        Raises
        ------
        TypeError
            If `confounds` or `sample_mask` isn't a list.
        ValueError
            If their lengths differ from the number of runs, or runs on a GPU would be copied to other processes.
        TypeError, ValueError, IndexError
            As `NiftiLabelsMasker.transform`.
        """
        check_is_fitted(self)
        for name, value in (("confounds", confounds), ("sample_mask", sample_mask)):
            if value is not None and not isinstance(value, list):
                msg = f"'{name}' must be a None or a list. Got {type(value).__name__}."
                raise TypeError(msg)
        runs = _as_runs(imgs)
        if not isinstance(runs, list):
            return super().transform(  # type: ignore[misc]
                runs, confounds and confounds[0], sample_mask and sample_mask[0]
            )
        return self.transform_imgs(runs, confounds, n_jobs=self.n_jobs, sample_mask=sample_mask)

    def transform_imgs(
        self,
        imgs_list: Sequence[Any],
        confounds: Sequence[Any] | None = None,
        n_jobs: int = 1,
        sample_mask: Sequence[Any] | None = None,
    ) -> list[np.ndarray]:
        """Transform a list of runs with `n_jobs` processes; otherwise as `transform`."""
        check_is_fitted(self)
        runs = list(imgs_list)
        if self.output == "device" and effective_n_jobs(n_jobs) > 1:  # type: ignore[attr-defined]
            msg = (
                f"output='device' needs one process, but n_jobs is {n_jobs}: processes can't share a GPU's arrays. Use "
                "n_jobs=1, or output='host'."
            )
            raise ValueError(msg)
        each = []
        for name, value in (("confounds", confounds), ("sample_mask", sample_mask)):
            if value is not None and len(value) != len(runs):
                msg = f"number of {name} ({len(value)}) unequal to number of images ({len(runs)})."
                raise ValueError(msg)
            each.append([None] * len(runs) if value is None else value)
        on_gpus = [(k, device) for k, run in enumerate(runs) if (device := device_of_image(run)) != "cpu"]
        if effective_n_jobs(n_jobs) > 1 and on_gpus:
            number, device = on_gpus[0]
            msg = (
                f"Run #{number} lies on {device}: with n_jobs={n_jobs} it would be copied through the host to another "
                "process. Use n_jobs=1."
            )
            raise ValueError(msg)
        one = delayed(VolumesMasker.transform)
        with several_runs if effective_n_jobs(n_jobs) > 1 else contextlib.nullcontext():
            return Parallel(n_jobs=n_jobs)(one(self, *of_run) for of_run in zip(runs, *each, strict=True))


class MultiNiftiLabelsMasker(ManyRuns, NiftiLabelsMasker):  # type: ignore[misc]  # lists in and out, as in nilearn
    """Extract the time series of an atlas's regions from several fMRI runs.

    A drop-in replacement for ``nilearn.maskers.MultiNiftiLabelsMasker`` (0.14.1).

    Parameters
    ----------
    labels_img, ..., label_map
        As in `NiftiLabelsMasker`.
    n_jobs : int, default=1
        Runs extracted at the same time, each in its own process (-1: one per core). A single run already uses all
        cores, so more than one only helps if memory and disk keep up.
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
        output="host",
        min_coverage=None,
        keep_all_regions=False,
        nan_policy="zero",
        label_map=None,
        n_jobs=1,
    ):
        super().__init__(
            labels_img,
            background_label,
            mask_img,
            smoothing_fwhm,
            standardize,
            detrend,
            low_pass,
            high_pass,
            t_r,
            resampling_target,
            memory,
            memory_level,
            verbose,
            labels=labels,
            lut=lut,
            standardize_confounds=standardize_confounds,
            high_variance_confounds=high_variance_confounds,
            dtype=dtype,
            strategy=strategy,
            keep_masked_labels=keep_masked_labels,
            reports=reports,
            cmap=cmap,
            clean_args=clean_args,
            device=device,
            output=output,
            min_coverage=min_coverage,
            keep_all_regions=keep_all_regions,
            nan_policy=nan_policy,
            label_map=label_map,
        )
        self.n_jobs = n_jobs


class MultiNiftiMapsMasker(ManyRuns, NiftiMapsMasker):  # type: ignore[misc]  # lists in and out, as in nilearn
    """Extract the time series of maps from several fMRI runs.

    A drop-in replacement for ``nilearn.maskers.MultiNiftiMapsMasker`` (0.14.1).

    Parameters
    ----------
    maps_img, ..., min_coverage
        As in `NiftiMapsMasker`.
    n_jobs : int, default=1
        As in `MultiNiftiLabelsMasker`.
    """

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
        n_jobs=1,
        clean_args=None,
        *,
        strategy="least_squares",
        device="auto",
        output="host",
        min_coverage=None,
    ):
        super().__init__(
            maps_img,
            mask_img,
            allow_overlap,
            smoothing_fwhm,
            standardize,
            standardize_confounds,
            high_variance_confounds,
            detrend,
            low_pass,
            high_pass,
            t_r,
            dtype,
            resampling_target,
            keep_masked_maps,
            memory,
            memory_level,
            verbose,
            reports,
            cmap,
            clean_args,
            strategy=strategy,
            device=device,
            output=output,
            min_coverage=min_coverage,
        )
        self.n_jobs = n_jobs


class _ManyMaskedRuns(ManyRuns):
    """The methods of a masker of voxels that accept lists of runs."""

    _allows_empty_mask = True  # as nilearn: only `transform` refuses it

    def fit(self, imgs: Any = None, y: None = None) -> Self:
        """Load the mask, or compute it from several runs, and check the device.

        Parameters
        ----------
        imgs : run, or list of runs, optional
            As for `transform`, to compute the mask from if there is no `mask_img`.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        return super(ManyRuns, self).fit(_as_runs(imgs))  # type: ignore[misc]

    def fit_transform(
        self, imgs: Any, y: None = None, confounds: list | None = None, sample_mask: list | None = None
    ) -> list[np.ndarray] | np.ndarray:
        """Fit to several runs and transform them; see `fit` and `transform`."""
        runs = _as_runs(imgs)
        return self._fit(runs).transform(runs, confounds=confounds, sample_mask=sample_mask)  # type: ignore[attr-defined]

    def transform_imgs(  # type: ignore[override]
        self,
        imgs_list: Sequence[Any],
        confounds: Sequence[Any] | None = None,
        sample_mask: Sequence[Any] | None = None,
        copy: bool = True,
        n_jobs: int = 1,
    ) -> list[np.ndarray]:
        """Transform a list of runs with `n_jobs` processes; `copy` is ignored, as results never share memory."""
        return super().transform_imgs(imgs_list, confounds, n_jobs, sample_mask)

    def _begin_fit(self, imgs):
        super()._begin_fit(imgs[0] if isinstance(imgs, list) and imgs else imgs)

    def _compute_mask(self, imgs):
        runs = imgs if isinstance(imgs, list) else [imgs]
        names = ("n_jobs", "target_shape", "target_affine")
        for_several = {name: getattr(self, name) for name in names}
        return computed_mask(for_nilearn(runs), self.mask_strategy, self.mask_args, verbose=self.verbose, **for_several)


class MultiNiftiMasker(_ManyMaskedRuns, NiftiMasker):  # type: ignore[misc]  # lists in and out, as in nilearn
    """Extract the time series of a mask's voxels from several fMRI runs.

    A drop-in replacement for ``nilearn.maskers.MultiNiftiMasker`` (0.14.1).

    Parameters
    ----------
    mask_img, ..., output
        As in `NiftiMasker`. Without `mask_img`, the mask is computed from all runs that `fit` gets, by nilearn's
        functions for several runs.
    n_jobs : int, default=1
        Runs extracted at the same time, each in its own process (-1: one per core). A single run already uses all
        cores, so more than one only helps if memory and disk keep up.
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
        memory_level=0,
        n_jobs=1,
        verbose=0,
        reports=True,
        cmap="gray",
        clean_args=None,
        *,
        device="auto",
        output="host",
    ):
        super().__init__(
            mask_img,
            runs,
            smoothing_fwhm,
            standardize,
            standardize_confounds,
            detrend,
            high_variance_confounds,
            low_pass,
            high_pass,
            t_r,
            target_affine,
            target_shape,
            mask_strategy,
            mask_args,
            dtype,
            memory,
            memory_level,
            verbose,
            reports,
            cmap,
            clean_args,
            device=device,
            output=output,
        )
        self.n_jobs = n_jobs


def _as_runs(imgs):
    """Return a list of runs as a list, and anything else (a single run, or no image at all) unchanged."""
    return imgs if is_single(imgs) or not hasattr(imgs, "__iter__") else list(imgs)
