"""NiftiLabelsMasker: parameters, fitted attributes, and the inverse transform."""

from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from gpumask import process
from gpumask.engine.dense_regions import DenseLabelRegions
from gpumask.engine.regions import LabelRegions, check_same_grids
from gpumask.extraction import Prepared, Result, check_kind
from gpumask.images.cifti_images import dense_labels
from gpumask.images.dense_atlas import load_dense_atlas
from gpumask.images.grayordinates import is_dense
from gpumask.images.labels import load_atlas
from gpumask.images.lookup import disagreement, loaded_lookup_table, lookup_table, rows_of
from gpumask.images.runs import Run
from gpumask.maskers.base import VolumesMasker, described, mask_image
from gpumask.maskers.parameters import checked_names
from gpumask.settings import refuse_for_grayordinates


class NiftiLabelsMasker(VolumesMasker):
    """Extract the time series of an atlas's regions from fMRI runs.

    A drop-in replacement for ``nilearn.maskers.NiftiLabelsMasker`` (0.14.1) that reads each volume once, in its stored
    dtype, and never holds a run in memory. Positional parameters have the order of nilearn's first releases; the others
    are keywords.

    Parameters
    ----------
    labels_img : path or nibabel image
        3D label image: one number per region. Or dense labels of grayordinates (.dlabel.nii, .label.gii); see the
        notes.
    background_label : int or float, default=0
        Label to ignore.
    mask_img : path, nibabel image, list of these or None, default=None
        Voxels that are 0 in the mask are ignored. If None, there is no mask.
    smoothing_fwhm : float or None, default=None
        FWHM of the Gaussian smoothing kernel, in mm, at most 1000. If None, volumes aren't smoothed.
    standardize : {"zscore_sample", "zscore", "psc", True, False, None}, default=False
        "zscore_sample" or True: mean 0 and sample variance (ddof=1) 1. "zscore": population variance 1. "psc": percent
        signal change. None or False: signals aren't standardized.
    detrend : bool, default=False
        Whether to remove mean and linear trend.
    low_pass : float or None, default=None
        Low-pass cut-off frequency of the Butterworth filter, in Hz. None or False: no low-pass filter.
    high_pass : float or None, default=None
        High-pass cut-off frequency, likewise.
    t_r : float or None, default=None
        Repetition time, in seconds. Filtering needs it.
    resampling_target : {"data", "labels", None}, default="data"
        "data": labels and mask are resampled to the runs (nearest voxel). "labels": mask (nearest voxel) and runs
        (cubic splines) are resampled to the labels. None: different grids are an error.
    memory : joblib.Memory, path or None, default=None
        Cache of compiled plans and extracted signals. Runs on disk are identified by path, size and modification time.
        joblib unpickles the files in its folder: whoever can write there can run code as you.
    memory_level : int, default=1
        0 with a `memory` means 1.
    verbose : int, default=0
        With 1 or more, each step, and the device and why it was chosen, are printed.
    labels : list, array or Series of str, or None, default=None
        Names of the regions, in ascending order of their labels. Can't be combined with `lut`.
    lut : DataFrame, path or None, default=None
        Look-up table of the regions, with the columns "index" and "name"; files as
        `gpumask.images.lookup.read_lookup_table` reads them. A warning lists labels without a row, whose regions are
        called "unknown", and rows without a label.
    standardize_confounds : bool, default=True
        Whether to z-score the confounds.
    high_variance_confounds : bool, default=False
        Whether to also remove five principal components of the 2 % most variable voxels. The run is then read three
        times.
    dtype : dtype, "auto" or None, default=None
        Dtype of the signals. None: float32 or float64, by nilearn's rules. "auto": int32 for unscaled signed integers,
        else float32.
    strategy : {"mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation"}, default="mean"
        Statistic over the voxels of a region.
    keep_masked_labels : bool, default=False
        Whether regions that lie entirely outside the mask keep a column, of zeros.
    reports : bool, default=True
        Whether to keep the run (its path, or the image itself) for `generate_report`.
    cmap : str or None, default=None
        Matplotlib colour map of the regions in `generate_report`. If None, "hsv".
    clean_args : dict or None, default=None
        Further keyword arguments of `gpumask.signal.clean`.
    device : {"auto", "cpu", "cuda", "cuda:N"}, default="auto"
        Where volumes are reduced. "auto" selects the GPU that the run lies on, or the first usable one where it is
        expected to be faster (voxels, resampled volumes, statistics of smoothed ones), else the CPU; `explain`
        describes the choice. Requesting an unusable GPU, or another one than that of the run, is an error.
    output : {"host", "device"}, default="host"
        Where `transform` leaves its result. "device": on the device of the plan (``plan_.device``), a CuPy array on a
        GPU, and a NumPy array on the CPU, so the same code runs with and without a GPU; ``device="cuda"`` requires one.
        Values and dtype are those of "host", bit for bit. Not with tables (`set_output`), nor with several processes.
        A GPU cleans voxels; signals of regions are few, so they are cleaned on the CPU and copied back.
    min_coverage : float or None, default=None
        Regions with a smaller share of their voxels inside field of view and mask become NaN; see `coverage_`.
    keep_all_regions : bool, default=False
        Whether every label of `labels_img` has a column, NaN if mask, resampling or field of view left nothing of it,
        so all runs have the same columns.
    nan_policy : {"zero", "omit"}, default="zero"
        "zero": NaN and infinite voxels count as 0, as in nilearn. "omit": they are excluded from a region's statistic.
    label_map : str, int or None, default=None
        Name, or index from 0, of the map of dense labels. If None, the file must have one map.

    Attributes
    ----------
    clean_args_ : dict
    labels_img_ : nibabel.nifti1.Nifti1Image
        Labels; resampled to the run if `fit` got one and ``resampling_target="data"``.
    lut_ : pandas.DataFrame
        One row per label of `labels_img` (including the background, if present), in ascending order.
    mask_img_ : nibabel.nifti1.Nifti1Image or None
        Mask; resampled to the grid of `labels_img_` if `fit` got a run or ``resampling_target="labels"``.
    memory_ : joblib.Memory

    Notes
    -----
    With dense labels (CIFTI-2, .dlabel.nii), runs are dense series (.dtseries.nii). Grayordinates are matched by
    structure and vertex number, and by the indices of voxels; those that a run lacks count in ``coverage_``. Names and
    colours come from the file's label table unless `labels` or `lut` is given. `labels_img_` and ``region_atlas_`` are
    then CIFTI-2 images. GIFTI files (.label.gii, .func.gii) are grayordinates of one surface: metadata or names state
    the hemisphere, and images that are returned are GIFTI. `mask_img`, `smoothing_fwhm`, `keep_masked_labels` and
    ``resampling_target="labels"`` have no meaning there, and are errors. One class serves both kinds because all else
    is the same: cleaning, censoring, coverage, output; only the files change, so code for volumes needs no change.

    `transform` adds attributes that describe the last run: ``region_atlas_``, the labels that were applied; ``plan_``,
    how each volume was reduced (``plan_.explain()`` describes it, ``plan_.device`` says where, "cpu" or "cuda:N", and
    ``plan_.counts`` has the voxels of each region); and
    ``seconds_``, the wall-clock seconds of "read", "reduce" (summed over threads), "clean" and "total". On a GPU, its
    own clock measures "upload" and "reduce", and "launch" is the time of the thread that submits work to it.
    ``device_`` is the device that may be used, "cpu" or "cuda:N".
    """

    _has_grayordinates = True

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
        self.output = output
        self.min_coverage = min_coverage
        self.keep_all_regions = keep_all_regions
        self.nan_policy = nan_policy
        self.label_map = label_map

    def fit(self, imgs: Any = None, y: None = None) -> "NiftiLabelsMasker":
        """Load labels and mask, and check the device.

        Parameters
        ----------
        imgs : run, optional
            As for `transform`. With ``resampling_target="data"``, labels and mask are resampled to its grid.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        volumes = self._begin_fit(imgs)
        if is_dense(self.labels_img):
            return self._fit_grayordinates(volumes)
        if self.label_map is not None:
            msg = f"label_map={self.label_map!r} is for dense labels (.dlabel.nii), but `labels_img` has one volume."
            raise ValueError(msg)
        mask, mask_grid = self._loaded_mask()
        self._log(f"Loading regions from {described(self.labels_img)}", "fit")
        given = atlas = replace(load_atlas(self.labels_img, self.background_label), mask=mask, mask_grid=mask_grid)
        if volumes is not None:
            check_kind(volumes, atlas.grid)
        names = checked_names(self.labels, self.lut)
        lut = None if self.lut is None else loaded_lookup_table(self.lut)
        if lut is not None and (found := disagreement(atlas.values, self.background_label, lut)):
            process.warn(found.message)
        self.lut_ = lookup_table(atlas.values, self.background_label, names=names, lut=lut)

        if self.resampling_target is None:
            others = {"mask": mask_grid, "data": volumes and volumes.grid}
            check_same_grids("Following field of view errors were detected:", atlas.grid, **others)
        target = None
        if self.resampling_target == "data" and volumes is not None:
            target = volumes.grid
            if not atlas.grid.matches(target):
                self._log("Resampling regions", "fit")
                atlas = atlas.resampled(target, _ignore if self.keep_all_regions else process.warn)
        elif self.resampling_target == "labels":
            target = atlas.grid
        if mask_grid is not None and target is not None:
            if not mask_grid.matches(target):
                self._log("Resampling mask", "fit")
                atlas = atlas.with_mask_resampled(target)
            atlas.check_mask()
        self._fitted = LabelRegions(atlas, given)
        self.labels_img_ = nib.Nifti1Image(atlas.labels, atlas.grid.affine, dtype=atlas.labels.dtype)
        self.mask_img_ = mask_image(atlas.mask, atlas.mask_grid)
        self._log("Finished fit", "fit")
        return self

    def _fit_grayordinates(self, run):
        if self.mask_img is not None:
            refuse_for_grayordinates({"mask_img": self.mask_img})
        self._log(f"Loading regions from {described(self.labels_img)}", "fit")
        atlas = load_dense_atlas(self.labels_img, self.background_label, self.label_map)
        if run is not None:
            check_kind(run, atlas.grid)
        names = checked_names(self.labels, self.lut)
        given = self.lut is not None
        table = loaded_lookup_table(self.lut) if given else pd.DataFrame(atlas.named_table)
        found = (
            None
            if names
            else disagreement(
                atlas.values,
                self.background_label,
                table,
                table="`lut`" if given else f"The label table of {atlas.grid.name}",
            )
        )
        if found is not None:
            process.warn(found.message)
        self.lut_ = lookup_table(atlas.values, self.background_label, names=names, lut=None if names else table)
        self._fitted = DenseLabelRegions(atlas)
        self.labels_img_, self.mask_img_ = dense_labels(atlas, atlas.labels), None
        self._log("Finished fit", "fit")
        return self

    def inverse_transform(self, signals: Any) -> nib.Nifti1Image | nib.Cifti2Image | nib.GiftiImage:
        """Paint region signals into volumes, or grayordinates.

        Parameters
        ----------
        signals : array-like or DataFrame, shape (n_regions,) or (n_volumes, n_regions)
            One column per region, as `transform` returns them (before any `transform`: per region of `lut_`).

        Returns
        -------
        nibabel.nifti1.Nifti1Image, nibabel.cifti2.Cifti2Image or nibabel.gifti.GiftiImage
            3D or 4D, on the grid of `labels_img_`; 0 outside the regions and the mask. Its dtype is `dtype` if that is
            set, else that of the signals. Booleans, and 64-bit integers that fit, become int32, with a warning. For
            dense labels, scalars (.dscalar.nii) or a series (.dtseries.nii) of the grayordinates of `labels_img_`; the
            rows are `t_r` seconds apart, else as those of the last run, else 1 second. For GIFTI labels, an array per
            row.

        Raises
        ------
        ValueError
            If `signals` has the wrong shape, or NaN where no parameter lets `transform` return it.
        """
        signals = self._checked_signals(signals)
        ids = [label for key, label in self.region_ids_.items() if key != "background"]
        if isinstance(self._regions, DenseLabelRegions):
            return self._dense_image(self._regions.atlas, self._regions.atlas.painted(ids, signals))
        data = self._regions.atlas.painted(ids, signals, n_threads=process.n_cores())
        return nib.Nifti1Image(data, self._regions.grid.affine, dtype=data.dtype)

    def _report(self, title):
        if isinstance(self._regions, DenseLabelRegions):
            return self._dense_report(title)
        from gpumask.reports.masker import labels_report

        return labels_report(self, getattr(self, "_report_run", None), title)

    def _nilearn_parameters(self):
        return {"labels": checked_names(self.labels, self.lut), "lut": None if self.lut is None else self.lut_}

    @property
    def n_elements_(self) -> int:
        """Number of columns of the last `transform`; before any, the number of regions of `lut_`."""
        return len(self.region_names_)

    @property
    def region_atlas_(self) -> nib.Nifti1Image:
        """The labels that were applied to the last run, masked. AttributeError before `transform`."""
        return self._last_regions("region_atlas_").image

    @property
    def coverage_(self) -> pd.DataFrame:
        """How much of each region lies inside the last run's field of view and the mask, a row per column of signals.

        A DataFrame with the columns "index", "name", "voxels" (voxels of the region on the atlas's own grid), "covered"
        (how many of these lie inside field of view and mask) and "fraction". AttributeError before `transform`.
        """
        return self._coverage()

    @property
    def labels_(self) -> list:
        """Labels of the regions, and of the background if present."""
        check_is_fitted(self)
        return self._columns["index"].to_list()

    @property
    def region_ids_(self) -> dict:
        """Label of each column, and of "background" if present."""
        labels = self.labels_
        ids = {"background": self.background_label} if self.background_label in labels else {}
        return ids | dict(enumerate(label for label in labels if label != self.background_label))

    @property
    def region_names_(self) -> dict[int, str]:
        """Name of each column."""
        check_is_fitted(self)
        table = self._columns
        return dict(enumerate(table["name"][table["index"] != self.background_label]))

    def get_feature_names_out(self, input_features: Any = None) -> list[str]:
        """Return the names of the columns, for ``set_output``."""
        return list(self.region_names_.values())

    def finish(self, prepared: Prepared, result: Result, volumes: Run) -> np.ndarray:
        """Also keep the rows of `lut_` for the columns and the background; see `VolumesMasker.finish`."""
        if getattr(self, "_on_grid", None) is not prepared.regions:
            atlas, ids = self._regions.atlas, prepared.regions.ids
            wanted = ids.tolist()
            if atlas.background in atlas.values:
                wanted = [atlas.background, *wanted]
            table = rows_of(self.lut_, np.array(wanted, dtype=ids.dtype), atlas.background)
            self._lut_ = table.set_index("index").loc[wanted].reset_index()
        return super().finish(prepared, result, volumes)

    @property
    def _columns(self):
        return getattr(self, "_lut_", self.lut_)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "labels_img_") and hasattr(self, "lut_")


def _ignore(*_, **__):
    """Replace `process.warn` where all regions keep their column."""
