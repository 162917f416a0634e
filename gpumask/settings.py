"""Settings of an extraction: how signals are extracted and cleaned, and which of them grayordinates have."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from gpumask.choices import MAX_FWHM, NAN_POLICIES, STANDARDIZE, STRATEGIES, TARGETS, VOXEL, check_choice, check_type
from gpumask.cleaner import Cleaner
from gpumask.dtypes import asked_dtype

_REAL = float | np.floating | int | np.integer
_TYPES = {
    "smoothing_fwhm": _REAL | None,
    "standardize_confounds": bool,
    "detrend": bool,
    "low_pass": _REAL | None,
    "high_pass": _REAL | None,
    "t_r": _REAL | None,
    "keep_masked_labels": bool,
    "clean_args": dict | None,
    "min_coverage": _REAL | None,
    "keep_all_regions": bool,
}
_CHOICES = {
    "standardize": (*STANDARDIZE, True, False, None),
    "strategy": STRATEGIES,
    "resampling_target": TARGETS,
    "nan_policy": NAN_POLICIES,
}


@dataclass(frozen=True)
class Settings:
    """How signals are extracted and cleaned. `gpumask.NiftiLabelsMasker` documents them; `NiftiMasker`, `runs`.

    Raises
    ------
    TypeError, ValueError
        For the first parameter with a wrong type or value; with nilearn's message where nilearn has the parameter.
    """

    smoothing_fwhm: float | None = None
    strategy: str = "mean"
    resampling_target: str | None = "data"
    keep_masked_labels: bool = False
    keep_all_regions: bool = False
    min_coverage: float | None = None
    nan_policy: str = "zero"
    dtype: Any = None
    high_variance_confounds: bool = False
    standardize: str | bool | None = False
    standardize_confounds: bool = True
    detrend: bool = False
    low_pass: float | bool | None = None
    high_pass: float | bool | None = None
    t_r: float | None = None
    clean_args: Mapping[str, Any] | None = None
    runs: Any = None

    def __post_init__(self):
        for name in (setting.name for setting in fields(self) if setting.init):
            value = getattr(self, name)
            if name in _TYPES and not (name in ("low_pass", "high_pass") and value is False):
                check_type(name, value, _TYPES[name])
            if name in _CHOICES:
                check_choice(name, value, _CHOICES[name])
        try:
            is_bool = asked_dtype(self.dtype, np.dtype(float)) == np.dtype(bool)
        except TypeError as error:
            msg = f"'dtype' must be a NumPy dtype, 'auto' or None.\nGot: {self.dtype!r}"
            raise TypeError(msg) from error
        if is_bool:
            msg = "'dtype' cannot be bool"
            raise TypeError(msg)
        if self.smoothing_fwhm is not None and not 0 <= self.smoothing_fwhm <= MAX_FWHM:
            msg = f"`smoothing_fwhm` must be a width in mm from 0 to {MAX_FWHM}, got {self.smoothing_fwhm}."
            raise ValueError(msg)
        if self.min_coverage is not None and not 0 <= self.min_coverage <= 1:
            msg = f"`min_coverage` must be a share of a region's voxels between 0 and 1, got {self.min_coverage}."
            raise ValueError(msg)

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Settings":
        """Choose the settings among the parameters of a masker."""
        return cls(**{setting.name: parameters[setting.name] for setting in fields(cls) if setting.name in parameters})

    @property
    def filters(self) -> bool:
        """Whether a cut-off frequency is set. Filtering needs `t_r`."""
        return any(cutoff not in (None, False) for cutoff in (self.low_pass, self.high_pass))

    @property
    def can_return_nan(self) -> bool:
        """Whether signals are NaN where there are no data, or few."""
        return self.keep_all_regions or self.min_coverage is not None or self.nan_policy == "omit"

    @property
    def in_space(self) -> dict[str, Any]:
        """The settings that a plan depends on. Apart from them it depends only on the regions and the grid."""
        keep = "all" if self.keep_all_regions else "masked" if self.keep_masked_labels else "found"
        own = ("smoothing_fwhm", "strategy", "nan_policy")
        return {"target": self.resampling_target, "keep": keep} | {name: getattr(self, name) for name in own}

    def cleaner(self, n_volumes: int, confounds: Any = None, sample_mask: Any = None) -> Cleaner:
        """Prepare the cleaning of a run; raises the errors of `gpumask.cleaner.Cleaner`."""
        runs = {} if self.runs is None else {"runs": self.runs}  # which `clean_args` may have instead
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
            **runs,
            **(self.clean_args or {}),
        )


@dataclass(frozen=True)
class VoxelSettings(Settings):
    """Settings for the voxels of a mask: their values, with runs resampled to the mask."""

    strategy: str = field(default=VOXEL, init=False)
    resampling_target: str | None = field(default="labels", init=False)


def check_dense_settings(settings: Settings) -> None:
    """Raise ValueError for a setting that has no meaning for grayordinates."""
    meaningless = {
        "smoothing_fwhm": settings.smoothing_fwhm,  # 0 is none
        "resampling_target": settings.resampling_target not in ("data", None),
        "keep_masked_labels": settings.keep_masked_labels,
    }
    refuse_for_grayordinates({name: getattr(settings, name) for name, given in meaningless.items() if given})


_WHY_NOT = {
    "smoothing_fwhm": "smoothing needs the surfaces: wb_command -cifti-smoothing has them",
    "resampling_target": "they are matched by vertex and voxel, not resampled: use 'data', or None for equal ones",
    "keep_masked_labels": "they have no mask",
    "keep_masked_maps": "they have no mask",
    "mask_img": "a mask of volumes doesn't apply to them: set labels outside it to the background",
}


def refuse_for_grayordinates(given: Mapping[str, Any]) -> None:
    """Raise ValueError, with the reason, for the first parameter that has no meaning for grayordinates."""
    for name, value in given.items():
        msg = f"{name}={value!r} has no meaning for grayordinates: {_WHY_NOT[name]}."
        raise ValueError(msg)
