"""NiftiSpheresMasker: parameters, fitted attributes, and the inverse transform."""

import os
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from gpumask.engine.spheres import SphereRegions
from gpumask.maskers.base import VolumesMasker, mask_image
from gpumask.maskers.parameters import checked_names

_SEEDS = "Seeds must be a list of triplets of coordinates in native space.\n"


class NiftiSpheresMasker(VolumesMasker):
    """Extract the time series of spheres around seeds from fMRI runs.

    A drop-in replacement for ``nilearn.maskers.NiftiSpheresMasker`` (0.14.1) that reads each volume once, in its stored
    dtype, and never holds a run in memory. The voxels of a sphere are nilearn's: those within the radius, the voxel
    nearest to the seed, and the first voxel whose coordinates in mm equal the seed's once both are truncated to whole
    numbers. Only voxels at exactly the radius may differ, by the rounding of distances in nilearn's search tree.

    Parameters
    ----------
    seeds : list of triplets of numbers, or array of shape (n_spheres, 3)
        Coordinates in mm, in the space of the runs.
    radius : float or None, default=None
        Radius of the spheres in mm, at most 500. If None, the voxel nearest to each seed is extracted.
    mask_img : path, nibabel image, list of these or None, default=None
        Voxels that are 0 in the mask are ignored. The mask is resampled to the runs (nearest voxel). If None, there is
        no mask.
    allow_overlap : bool, default=False
        Whether spheres may share voxels; if not, it is an error if they do.
    smoothing_fwhm : float or None, default=None
        FWHM of the Gaussian smoothing kernel, in mm. If None, volumes aren't smoothed.
    standardize : {"zscore_sample", "zscore", "psc", True, False, None}, default=False
        As in `NiftiLabelsMasker`, like all parameters up to `clean_args`.
    standardize_confounds : bool, default=True
    high_variance_confounds : bool, default=False
    detrend : bool, default=False
    low_pass : float or None, default=None
    high_pass : float or None, default=None
    t_r : float or None, default=None
    dtype : dtype, "auto" or None, default=None
    memory : joblib.Memory, path or None, default=None
    memory_level : int, default=1
    verbose : int, default=0
    reports : bool, default=True
    clean_args : dict or None, default=None
    strategy : {"mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation"}, default="mean"
        Statistic over the voxels of a sphere.
    labels : list, array or Series of str, or None, default=None
        Names of the spheres, one per seed. If None, "niftispheresmasker0" and so on, as in nilearn.
    device : {"auto", "cpu", "cuda", "cuda:N"}, default="auto"
        As in `NiftiLabelsMasker`.
    output : {"host", "device"}, default="host"
        As in `NiftiLabelsMasker`.
    min_coverage : float or None, default=None
        Spheres with a smaller share of their voxels inside field of view and mask become NaN; see `coverage_`.
    keep_all_regions : bool, default=False
        Whether spheres without a voxel inside field of view and mask are NaN, instead of an error.
    nan_policy : {"zero", "omit"}, default="zero"
        "zero": NaN and infinite voxels count as 0, as in nilearn. "omit": they are excluded from a sphere's statistic.

    Attributes
    ----------
    clean_args_ : dict
    mask_img_ : nibabel.nifti1.Nifti1Image or None
        The mask, on its own grid.
    memory_ : joblib.Memory
    n_elements_ : int
        Number of spheres.
    seeds_ : list of list
        The seeds.

    Notes
    -----
    `transform` adds attributes that describe the last run: ``region_atlas_``, ``coverage_``, ``plan_`` and
    ``seconds_``; see `NiftiLabelsMasker`.
    """

    def __init__(
        self,
        seeds=None,
        radius=None,
        mask_img=None,
        allow_overlap=False,
        smoothing_fwhm=None,
        standardize=False,
        standardize_confounds=True,
        high_variance_confounds=False,
        detrend=False,
        low_pass=None,
        high_pass=None,
        t_r=None,
        dtype=None,
        memory=None,
        memory_level=1,
        verbose=0,
        reports=True,
        clean_args=None,
        *,
        strategy="mean",
        labels=None,
        device="auto",
        output="host",
        min_coverage=None,
        keep_all_regions=False,
        nan_policy="zero",
    ):
        self.seeds = seeds
        self.radius = radius
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
        self.memory = memory
        self.memory_level = memory_level
        self.verbose = verbose
        self.reports = reports
        self.clean_args = clean_args
        self.strategy = strategy
        self.labels = labels
        self.device = device
        self.output = output
        self.min_coverage = min_coverage
        self.keep_all_regions = keep_all_regions
        self.nan_policy = nan_policy

    def fit(self, imgs: Any = None, y: None = None) -> "NiftiSpheresMasker":
        """Check the seeds, load the mask, and check the device.

        Parameters
        ----------
        imgs : run, optional
            As for `transform`, for `generate_report`.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        self._begin_fit(imgs)
        mask, mask_grid = self._loaded_mask()
        self.mask_img_ = mask_image(mask, mask_grid)
        self.seeds_ = _checked_seeds(self.seeds)
        self.n_elements_ = len(self.seeds_)
        self._names = checked_names(self.labels, None)
        if self._names is not None and len(self._names) != self.n_elements_:
            msg = f"`labels` must have a name per seed: {self.n_elements_}, got {len(self._names)}."
            raise ValueError(msg)
        radii = (self.radius,) * self.n_elements_
        coordinates = np.array(self.seeds_, dtype=np.float64)
        self._fitted = SphereRegions(coordinates, radii, self.allow_overlap, mask, mask_grid)
        self._log("Finished fit", "fit")
        return self

    def inverse_transform(self, signals: Any) -> nib.Nifti1Image:
        """Paint signals into volumes on the grid of `mask_img_`.

        Parameters
        ----------
        signals : array-like or DataFrame, shape (n_spheres,) or (n_volumes, n_spheres)
            As `transform` returns them.

        Returns
        -------
        nibabel.nifti1.Nifti1Image
            3D or 4D; where spheres overlap, the mean of theirs, and 0 outside spheres and mask. Its dtype is `dtype` if
            that is set, else that of the signals. Booleans, and 64-bit integers that fit, become int32, with a warning.

        Raises
        ------
        ValueError
            Without a `mask_img`; if spheres are empty or overlap on its grid; if `signals` has the wrong shape, or NaN
            where no parameter lets `transform` return it.
        """
        signals = self._checked_signals(signals)
        if self.mask_img_ is None:
            msg = "Please provide mask_img at initialization to provide a reference for the inverse_transform."
            raise ValueError(msg)
        keep = "all" if self.keep_all_regions else "found"
        spheres = self._regions.on(self._regions.mask_grid, None, keep)
        data = spheres.painted(signals)
        return nib.Nifti1Image(data, spheres.grid.affine, dtype=data.dtype)

    def _region_parameters(self):
        return {"radii": (self.radius,) * self.n_elements_, "allow_overlap": self.allow_overlap}

    def generate_report(
        self, engine: str = "matplotlib", title: str | None = None, displayed_spheres: Any = "all"
    ) -> Any:
        """Create an HTML page with the spheres on a volume of the run, the parameters and a table of the spheres.

        Parameters
        ----------
        engine : "matplotlib"
            For compatibility with nilearn; only "matplotlib" is supported.
        title : str or None, default=None
            If None, the name of the class.
        displayed_spheres : "all", int, or list of int, default="all"
            Spheres in figure and table: all, the first ones, or those of these numbers, from 0.

        Returns
        -------
        gpumask.reports.masker.Report
            Notebooks display it; it has ``save_as_html(path)`` and ``open_in_browser()``.

        Raises
        ------
        ValueError
            If the masker has ``reports=False``, for another `engine`, or if a sphere doesn't exist.
        TypeError
            If `displayed_spheres` is something else.
        """
        self._check_report(engine)
        from gpumask.reports.spheres import spheres_report

        return spheres_report(self, getattr(self, "_report_run", None), title, displayed_spheres)

    @property
    def region_atlas_(self) -> nib.Nifti1Image:
        """Number of each voxel's sphere in the last run, from 1; of the last one where spheres overlap.

        AttributeError before `transform`.
        """
        return self._last_regions("region_atlas_").image

    @property
    def coverage_(self) -> pd.DataFrame:
        """How much of each sphere lies inside the last run's field of view and the mask, a row per sphere.

        A DataFrame with the columns "index" (from 0), "name", "voxels" (voxels of the sphere if the run's grid had no
        borders; computed from the volume where the box around a sphere has more than a million), "covered" (how many of
        these lie inside field of view and mask) and "fraction". AttributeError before `transform`.
        """
        return self._coverage()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns, for ``set_output``."""
        check_is_fitted(self)
        prefix = type(self).__name__.lower()
        names = self._names or [f"{prefix}{k}" for k in range(self.n_elements_)]
        return np.array(names, dtype=object)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_fitted")


def _checked_seeds(seeds):
    """The seeds as a list of lists of three numbers; nilearn's ValueError if they aren't triplets."""
    is_table = isinstance(seeds, (str, os.PathLike)) or hasattr(seeds, "columns")  # whose items are no seeds
    if is_table or not hasattr(seeds, "__iter__"):
        msg = f"{_SEEDS}Given seed list is of type: {type(seeds)}"
        raise ValueError(msg)
    checked = []
    for number, seed in enumerate(seeds):
        if not hasattr(seed, "__len__"):
            msg = f"{_SEEDS}Seed #{number} is not a valid triplet of coordinates. It is of type {type(seed).__name__}."
            raise ValueError(msg)
        triplet = seed.tolist() if isinstance(seed, np.ndarray) else list(seed)
        if len(triplet) != 3:
            msg = f"{_SEEDS}Seed #{number} is of length {len(triplet)} instead of 3."
            raise ValueError(msg)
        if not all(isinstance(at, float | int | np.floating | np.integer) for at in triplet):
            msg = f"{_SEEDS}Seed #{number} is {triplet}, expected three numbers in mm."
            raise ValueError(msg)
        checked.append(triplet)
    if not checked:
        msg = f"{_SEEDS}The list is empty: pass at least one seed."
        raise ValueError(msg)
    return checked
