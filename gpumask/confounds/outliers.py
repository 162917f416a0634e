"""Why volumes of a run are removed, volume by volume, and how much the run moved."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpumask.confounds.censoring import Censoring, non_steady_volumes
from gpumask.confounds.tables import ConfoundsTable, numeric_column
from gpumask.process import warn

_FD, _DVARS = "framewise_displacement", "std_dvars"
REASONS = {
    "non_steady_state": ("non_steady_state", "removed because fMRIPrep marks it as non_steady_state_outlier"),
    "dummy_scans": (
        "dummy_scans",
        "removed as before the steady state: one of the first N, or fMRIPrep marks it",
    ),
    "fd": (_FD, "removed because its framewise displacement exceeds the threshold"),
    "dvars": (_DVARS, "removed because its standardized DVARS exceeds the threshold"),
    "short_segment": ("short_segment", "removed for no other reason: it is in a short segment between removed ones"),
}
"""Why volumes are removed: the column of a table of outliers, and its description."""


@dataclass(frozen=True, eq=False)
class Outliers:
    """The volumes of a run that are removed, and why.

    Attributes
    ----------
    removed : ndarray of bool, shape (n_volumes,)
    reasons : dict of ndarray of bool, shape (n_volumes,)
        By the names in `REASONS`; a removed volume has one or more.
    displacement : ndarray of float64, shape (n_volumes,), or None
        Framewise displacement in mm, NaN where the table has none. None without such a column.
    fd_threshold, std_dvars_threshold : float or None
        Volumes with more are removed; None: none are.
    """

    removed: np.ndarray
    reasons: dict[str, np.ndarray]
    displacement: np.ndarray | None
    fd_threshold: float | None = None
    std_dvars_threshold: float | None = None


def find_outliers(
    censoring: Censoring,
    confounds: str | os.PathLike | ConfoundsTable | None,
    *,
    fd_threshold: float | None = None,
    std_dvars_threshold: float | None = None,
) -> Outliers:
    """Find out why volumes are removed.

    A table that can't say it, since it has another number of rows or text instead of numbers, is a warning here: if it
    decides which volumes are kept, it was an error before.

    Parameters
    ----------
    censoring : Censoring
    confounds : str, path-like, ConfoundsTable or None
        fMRIPrep's table.
    fd_threshold, std_dvars_threshold : float, optional
        With which `censoring` was made.
    """
    n_volumes = censoring.n_volumes
    motion, marked = _columns(None if confounds is None else ConfoundsTable.of(confounds), n_volumes)
    removed = _mask(n_volumes, censoring.dropped)
    reasons = {
        "non_steady_state": removed & marked,
        "dummy_scans": _mask(n_volumes, censoring.dummy_scans),
        "fd": removed & _exceeds(motion.get(_FD), fd_threshold, n_volumes),
        "dvars": removed & _exceeds(motion.get(_DVARS), std_dvars_threshold, n_volumes),
    }
    reasons["short_segment"] = removed & ~np.any(list(reasons.values()), axis=0)
    return Outliers(removed, reasons, motion.get(_FD), fd_threshold, std_dvars_threshold)


def _mask(n_volumes: int, volumes: Sequence[int] | np.ndarray) -> np.ndarray:
    mask = np.zeros(n_volumes, bool)
    mask[volumes] = True
    return mask


def _exceeds(values, threshold, n_volumes):
    return np.zeros(n_volumes, bool) if values is None or threshold is None else values > threshold


def _columns(table, n_volumes):
    """Columns of motion by name, and the mask of the non-steady-state volumes."""
    unknown = {}, np.zeros(n_volumes, bool)
    if table is None:
        return unknown
    if len(table.frame) != n_volumes:
        warn(f"{table.path} has {len(table.frame)} rows, but the run has {n_volumes} volumes: its motion is unknown.")
        return unknown
    motion = {}
    for name in (_FD, _DVARS):
        try:
            if name in table.frame:
                motion[name] = numeric_column(table.frame, name, table.path, "numbers")
        except ValueError as error:
            warn(f"{error} It isn't used.")
    return motion, _mask(n_volumes, non_steady_volumes(table))
