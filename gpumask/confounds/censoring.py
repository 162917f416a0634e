"""Which volumes of a run are kept: dummy scans, motion, and how much has to be left."""

import os
import re
from dataclasses import dataclass

import numpy as np

from gpumask.confounds.sample_masks import AllVolumesRemovedError
from gpumask.confounds.tables import ConfoundsTable, numeric_column
from gpumask.kernels.cleaning import interpolate_censored

_NON_STEADY = re.compile(r"non_steady_state_outlier[0-9]*")


@dataclass(frozen=True)
class Censoring:
    """The volumes of a run that are kept, and why others aren't.

    Attributes
    ----------
    n_volumes : int
    dummy_scans : ndarray of int
        Volumes that are dropped since the scanner wasn't in a steady state.
    motion : ndarray of int
        Further volumes that are censored: by framewise displacement or a strategy.
    """

    n_volumes: int
    dummy_scans: np.ndarray
    motion: np.ndarray

    @property
    def dropped(self) -> np.ndarray:
        """Indices of all volumes that aren't kept."""
        return np.union1d(self.dummy_scans, self.motion).astype(int)

    @property
    def kept(self) -> np.ndarray | None:
        """Indices of the volumes that are kept; None if all are."""
        return np.setdiff1d(np.arange(self.n_volumes), self.dropped) if len(self.dropped) else None

    @property
    def n_kept(self) -> int:
        """Number of volumes that are kept."""
        return self.n_volumes if self.kept is None else len(self.kept)

    def rows(self, signals: np.ndarray, output_type: str) -> np.ndarray:
        """Rows of a table of cleaned signals.

        Parameters
        ----------
        signals : ndarray, shape (n_kept, n_signals)
            NaN in whole columns only.
        output_type : {"censored", "n/a", "interpolated"}
            "censored": the kept volumes alone. "n/a": all volumes, NaN where they were dropped. "interpolated": all
            volumes, those dropped for motion from a cubic spline through the kept ones, and before the first and after
            the last kept one, from that one, as in XCP-D; dummy scans are NaN.

        Returns
        -------
        ndarray of the same dtype, shape (n_kept, n_signals) or (n_volumes, n_signals)
        """
        kept = self.kept
        if kept is None or output_type == "censored":
            return signals
        whole = np.full((self.n_volumes, signals.shape[1]), np.nan, signals.dtype)
        whole[kept] = signals
        if output_type == "n/a" or not len(self.motion):
            return whole
        known = np.isfinite(signals).all(axis=0)
        filled = interpolate_censored(whole[:, known], kept) if len(kept) > 1 else signals[:, known]
        whole[:, known] = np.pad(filled, ((kept[0], self.n_volumes - 1 - kept[-1]), (0, 0)), mode="edge")
        whole[self.dummy_scans] = np.nan
        return whole


def censor(
    confounds: str | os.PathLike | ConfoundsTable | None,
    n_volumes: int,
    sample_mask: np.ndarray | None = None,
    dummy_scans: str | int = "auto",
) -> Censoring:
    """Combine a sample mask with the dummy scans of a run.

    Parameters
    ----------
    confounds : str, path-like, ConfoundsTable or None
        fMRIPrep's table, whose columns ``non_steady_state_outlier*`` name the volumes before the steady state.
    n_volumes : int
    sample_mask : ndarray of int or None
        Volumes that are kept otherwise. None keeps all.
    dummy_scans : "auto" or int
        "auto": the volumes that the table names. A number: so many at the beginning; 0 drops none.

    Raises
    ------
    AllVolumesRemovedError
        A ValueError, if no volume is left.
    """
    if dummy_scans == "auto":
        dropped = non_steady_volumes(confounds) if confounds else np.zeros(0, int)
    else:
        dropped = np.arange(min(int(dummy_scans), n_volumes))
    kept = np.arange(n_volumes) if sample_mask is None else np.asarray(sample_mask)
    censoring = Censoring(n_volumes, dropped, np.setdiff1d(np.arange(n_volumes), np.union1d(kept, dropped)))
    if censoring.n_kept == 0:
        msg = f"All {n_volumes} volumes are dropped: {len(dropped)} dummy scans, {len(censoring.motion)} by motion."
        raise AllVolumesRemovedError(msg)
    return censoring


def non_steady_volumes(confounds: str | os.PathLike | ConfoundsTable) -> np.ndarray:
    """Volumes that fMRIPrep's table marks as before the steady state: ndarray of int."""
    table = ConfoundsTable.of(confounds)
    marks = [column for column in table.frame if _NON_STEADY.fullmatch(column)]
    is_marked = [numeric_column(table.frame, column, table.path, "0 or 1") == 1 for column in marks]
    return np.flatnonzero(np.any(is_marked, axis=0)) if marks else np.zeros(0, int)


def check_kept_time(censoring: Censoring, t_r: float | None, min_time: float, name: str) -> None:
    """Raise ValueError if censoring for motion leaves less than `min_time` seconds of a run (`name` in the message).

    The floor is that of XCP-D's ``--min-time``. Dummy scans alone are no reason: they say nothing of motion.
    """
    if not len(censoring.motion) or not min_time:
        return
    kept = f"{name} keeps {censoring.n_kept} of its {censoring.n_volumes} volumes"
    if t_r is None:
        msg = (
            f"{kept}, and whether that is the {min_time:g} s of --min-time can't be told without a repetition time. "
            "Give it (extract --t-r, or the column t_r of a list of runs), or --min-time 0."
        )
        raise ValueError(msg)
    if censoring.n_kept * t_r < min_time:
        msg = (
            f"{kept}, {censoring.n_kept * t_r:g} s, less than the {min_time:g} s of --min-time. Exclude the run, "
            "censor less, or lower --min-time (0 accepts any)."
        )
        raise ValueError(msg)
