"""MultiNiftiLabelsMasker: one masker for a list of runs."""

import os

from joblib import Parallel, delayed
from nibabel.spatialimages import SpatialImage
from sklearn.utils.validation import check_is_fitted

from gpumask.maskers.labels import NiftiLabelsMasker


class _ManyRuns:
    """The methods that take lists of runs.

    Apart from the masker: of what the class itself defines, scikit-learn makes one table, but here it is one per run.
    """

    def fit(self, imgs=None, y=None):
        """Load labels and mask, and choose the device.

        Parameters
        ----------
        imgs : run, or list of runs, optional
            Paths or nibabel images. The first one decides the grid, as in `NiftiLabelsMasker.fit`.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        runs = _as_runs(imgs)
        return super().fit(runs[0] if isinstance(runs, list) and runs else runs)

    def fit_transform(self, imgs, y=None, confounds=None, sample_mask=None):
        """Fit to several runs and transform them; see `fit` and `transform`."""
        runs = _as_runs(imgs)
        return self.fit(runs).transform(runs, confounds=confounds, sample_mask=sample_mask)

    def transform(self, imgs, confounds=None, sample_mask=None):
        """Extract and clean the region signals of several runs.

        Parameters
        ----------
        imgs : run, or list of runs
            Paths or nibabel images.
        confounds, sample_mask : list or None, default=None
            One per run, each as `NiftiLabelsMasker.transform` takes it.

        Returns
        -------
        list of ndarray, shape (n_volumes, n_regions) each
            In the order of the runs; a single array if a single run was given. Tables if `set_output` says so.

        Raises
        ------
        TypeError
            If `confounds` or `sample_mask` isn't a list.
        ValueError
            If there isn't one for each run, or as `NiftiLabelsMasker.transform`.
        """
        check_is_fitted(self)
        for name, value in (("confounds", confounds), ("sample_mask", sample_mask)):
            if value is not None and not isinstance(value, list):
                msg = f"'{name}' must be a None or a list. Got {type(value).__name__}."
                raise TypeError(msg)
        runs = _as_runs(imgs)
        if not isinstance(runs, list):
            return super().transform(runs, confounds and confounds[0], sample_mask and sample_mask[0])
        return self.transform_imgs(runs, confounds, self.n_jobs, sample_mask)

    def transform_imgs(self, imgs_list, confounds=None, n_jobs=1, sample_mask=None):
        """As `transform`, of a list of runs and with a number of jobs."""
        check_is_fitted(self)
        runs = list(imgs_list)
        each = []
        for name, value in (("confounds", confounds), ("sample_mask", sample_mask)):
            if value is not None and len(value) != len(runs):
                msg = f"number of {name} ({len(value)}) unequal to number of images ({len(runs)})."
                raise ValueError(msg)
            each.append([None] * len(runs) if value is None else value)
        one = delayed(_transform)
        return Parallel(n_jobs=n_jobs)(one(self, *of_run) for of_run in zip(runs, *each, strict=True))


class MultiNiftiLabelsMasker(_ManyRuns, NiftiLabelsMasker):
    """Extract the time series of an atlas's regions from several fMRI runs.

    A drop-in replacement for ``nilearn.maskers.MultiNiftiLabelsMasker`` (0.14.1).

    Parameters
    ----------
    labels_img, ..., nan_policy
        As in `NiftiLabelsMasker`.
    n_jobs : int, default=1
        Runs extracted at the same time, each in a process of its own (-1: as many as there are cores). A single run
        uses all cores already, so more than one pays where memory and disk keep up.
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
            min_coverage=min_coverage,
            keep_all_regions=keep_all_regions,
            nan_policy=nan_policy,
        )
        self.n_jobs = n_jobs


def _transform(masker, run, confounds, sample_mask):
    return NiftiLabelsMasker.transform(masker, run, confounds, sample_mask)


def _as_runs(imgs):
    """A list of runs, or a single run (or what is no image at all) as it is."""
    single = isinstance(imgs, (str, os.PathLike, SpatialImage)) or not hasattr(imgs, "__iter__")
    return imgs if single else list(imgs)
