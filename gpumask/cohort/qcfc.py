"""QC-FC: how the motion of runs shows in their connectivity (Ciric et al. 2017, 10.1016/j.neuroimage.2017.03.020)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpumask.cohort.matrices import Edges, Group
from gpumask.cohort.quality import Column

_LEAST_RUNS = 10  # with fewer, a correlation over runs says nothing
_LEVEL = 0.05

COLUMNS = (
    Column("atlas", "Atlas", "Label of the atlas."),
    Column("denoising", "Denoising", "Name of the denoising; n/a for the only one."),
    Column("stat", "Statistic", "Kind of the matrices (the entity stat in their names)."),
    Column("runs", "Runs", "Runs with such a matrix and a mean framewise displacement.", is_count=True),
    Column("runs_used", "Runs used", "Runs whose matrices were read for this row.", is_count=True),
    Column(
        "edges",
        "Edges",
        f"Pairs of different regions with a number in {_LEAST_RUNS} runs or more, and not the same in all.",
        is_count=True,
    ),
    Column(
        "median_abs_r",
        "Median absolute QC-FC correlation",
        "QC-FC is Pearson's correlation, over runs, of an edge with the mean framewise displacement of all volumes. "
        "This is the median over the edges of its absolute value.",
    ),
    Column(
        "share_significant",
        "Share of significant edges",
        f"Share of the edges with p < {_LEVEL} (two-sided t test, uncorrected). It takes runs as independent, which "
        "those of one participant aren't.",
    ),
    Column(
        "share_significant_fdr",
        "Share of significant edges, corrected",
        f"Share of the edges with p < {_LEVEL} after the correction of Benjamini and Hochberg for the false discovery "
        "rate.",
    ),
    Column("remark", "Remark", "Why there are no numbers, or which runs weren't used."),
)
"""Columns of the table."""


def summary(group: Group, motion: "MotionSums", remarks: Sequence[str]) -> dict[str, Any]:
    """QC-FC of a group of matrices in numbers, by the names in `COLUMNS`; None for unknown numbers.

    Parameters
    ----------
    group : Group
    motion : MotionSums
        To which the matrices that were read have been added.
    remarks : sequence of str
        Which weren't used.
    """
    n_runs, n_used = sum(matrix.displacement is not None for matrix in group.matrices), motion.n_used
    numbers: dict[str, Any] = dict.fromkeys(("edges", "median_abs_r", "share_significant", "share_significant_fdr"))
    own = []
    if n_used < _LEAST_RUNS and group.n_read:
        own = [f"{n_used} runs, expected {_LEAST_RUNS} or more."]
    elif n_used:
        r, counts = motion.correlations()
        if r.size:
            numbers = _shares(r, counts)
        else:
            own = ["No edge and mean FD that both differ between runs."]
    kind = group.kind
    named = {"atlas": kind.atlas, "denoising": kind.denoising, "stat": kind.stat, "runs": n_runs, "runs_used": n_used}
    return {**named, **numbers, "remark": " ".join([*own, *remarks])}


def _shares(r: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Numbers of the table for the correlations of edges, each over a number of runs."""
    from scipy import special, stats

    with np.errstate(divide="ignore"):
        t = np.abs(r) * np.sqrt((counts - 2) / (1 - r**2))
    p = 2 * special.stdtr(counts - 2, -t)
    return {
        "edges": len(r),
        "median_abs_r": float(np.median(np.abs(r))),
        "share_significant": float(np.mean(p < _LEVEL)),
        "share_significant_fdr": float(np.mean(stats.false_discovery_control(p) < _LEVEL)),
    }


class MotionSums:
    """Sums over runs for the correlation of each edge with the mean displacement.

    They are of differences from the first run, so that small variances don't drown in rounding errors.
    """

    def __init__(self) -> None:
        self.n_used = 0

    def add(self, edges: Edges) -> None:
        """Add a run, if its mean displacement is known."""
        if edges.displacement is None:
            return
        n = len(edges.regions)
        own = np.delete(edges.values, np.cumsum([0, *range(n, 1, -1)])[:n])  # without the diagonal
        known, x = np.isfinite(own), edges.displacement
        if not self.n_used:
            self._first_x = x
            self._first = np.where(known, own, 0.0)
            self._n, self._x, self._xx, self._y, self._yy, self._xy = np.zeros((6, len(own)))
        self.n_used += 1
        x -= self._first_x
        y = np.where(known, own - self._first, 0.0)
        self._n += known
        self._x += x * known
        self._xx += x**2 * known
        self._y += y
        self._yy += y**2
        self._xy += x * y

    def correlations(self) -> tuple[np.ndarray, np.ndarray]:
        """Correlations of the edges that have one, and the number of runs of each."""
        chosen = self._n >= _LEAST_RUNS
        n, x, xx, y, yy, xy = (of[chosen] for of in (self._n, self._x, self._xx, self._y, self._yy, self._xy))
        of_x, of_y = xx - x**2 / n, yy - y**2 / n
        differ = (of_x > 1e-12 * xx) & (of_y > 1e-12 * yy)
        both = (xy - x * y / n)[differ] / np.sqrt((of_x * of_y)[differ])
        return np.clip(both, -1, 1), n[differ]
