"""Framewise displacement without respiration: the motion parameters are filtered before it is computed."""

from dataclasses import dataclass

import numpy as np

from gpumask.confounds.tables import MOTION, ConfoundsTable, choose_columns, numeric_column
from gpumask.text_tables import listed

HEAD_RADIUS = 50.0
"""Radius in mm of the sphere on which rotations are displacements (Power 2012, fMRIPrep)."""
_N_CUTOFFS = {"notch": 2, "lowpass": 1}


@dataclass(frozen=True)
class MotionFilter:
    """A filter of motion parameters, as XCP-D's of its default order: 2 forwards, and 2 backwards.

    Attributes
    ----------
    kind : {"notch", "lowpass"}
        "notch" removes a band (Fair 2020); "lowpass" is a Butterworth filter (Gratton 2020). Fair's code and XCP-D
        applied the notch twice as often until 2025 and 2024, an error (PennLINC/xcp_d #1300).
    cutoffs : tuple of float
        In breaths per minute, ascending: the ends of the band, or the highest frequency that is kept.
    """

    kind: str
    cutoffs: tuple[float, ...]

    @classmethod
    def of(cls, text: str) -> "MotionFilter":
        """The filter of a text ``notch:LOW-HIGH`` or ``lowpass:HIGH``; ValueError for others."""
        kind, _, band = str(text).partition(":")
        try:
            cutoffs = tuple(map(float, band.split("-")))
        except ValueError:
            cutoffs = ()
        if (
            len(cutoffs) != _N_CUTOFFS.get(kind)
            or not 0 < cutoffs[0] <= cutoffs[-1] < float("inf")
            or (len(set(cutoffs)) < len(cutoffs))
        ):
            msg = (
                "motion_filter must be notch:LOW-HIGH or lowpass:HIGH in breaths per minute, such as notch:12-18, got "
                f"{text!r}."
            )
            raise ValueError(msg)
        return cls(kind, cutoffs)

    def __str__(self):
        return f"{self.kind}:{'-'.join(f'{cutoff:g}' for cutoff in self.cutoffs)}"

    def __call__(self, parameters: np.ndarray, t_r: float) -> np.ndarray:
        """Filter parameters, of shape (n_volumes, n_parameters), sampled every `t_r` seconds.

        Raises
        ------
        ValueError
            If a cut-off isn't below the Nyquist frequency. (XCP-D folds it.)
        """
        from scipy import signal  # takes 0.3 s

        rate = 60 / t_r  # volumes per minute
        if self.cutoffs[-1] >= rate / 2:
            msg = (
                f"The motion filter {self} needs a repetition time below {30 / self.cutoffs[-1]:.3g} s: with {t_r:g} s,"
                f" motion is only known up to {rate / 2:g} breaths per minute. Lower its band, or leave it out."
            )
            raise ValueError(msg)
        if self.kind == "notch":
            low, high = self.cutoffs
            centre = (low + high) / 2
            coefficients = signal.iirnotch(centre, centre / (high - low), fs=rate)
        else:
            coefficients = signal.butter(2, self.cutoffs[0], fs=rate)
        return signal.filtfilt(*coefficients, parameters, axis=0, padtype="constant", padlen=len(parameters) - 1)


def framewise_displacement(parameters: np.ndarray) -> np.ndarray:
    """Framewise displacement in mm (Power 2012).

    Parameters
    ----------
    parameters : ndarray, shape (n_volumes, 6)
        Translations in mm, then rotations in radians.

    Returns
    -------
    ndarray of float64, shape (n_volumes,)
        NaN for the first volume.
    """
    steps = np.abs(np.diff(parameters, axis=0))
    return np.append(np.nan, steps[:, :3].sum(axis=1) + HEAD_RADIUS * steps[:, 3:].sum(axis=1))


def with_filtered_displacement(table: ConfoundsTable, motion_filter: str, t_r: float | None) -> ConfoundsTable:
    """The table with another framewise displacement: of its motion parameters, filtered. The parameters stay.

    Parameters
    ----------
    table : ConfoundsTable
    motion_filter : str
        See `MotionFilter.of`.
    t_r : float or None
        Repetition time in s.

    Raises
    ------
    ValueError
        If the repetition time is missing or too long for the filter, or parameters are missing or aren't numbers.
    """
    if t_r is None:
        msg = f"{table.path}: the motion filter {motion_filter} needs a repetition time. Give it (--t-r)."
        raise ValueError(msg)
    known = choose_columns(table.frame, MOTION, table.path)
    parameters = np.column_stack([numeric_column(known, name, table.path, "numbers") for name in MOTION])
    if len(bad := np.flatnonzero(~np.isfinite(parameters).all(axis=1))):
        msg = (
            f"{table.path}: motion parameters aren't known for volume {listed(bad)}, so they can't be filtered. Use "
            "another table, or no motion filter."
        )
        raise ValueError(msg)
    filtered = MotionFilter.of(motion_filter)(parameters, t_r)
    return table.replacing(framewise_displacement=framewise_displacement(filtered))
