"""QC-FC: how the motion of runs shows in their connectivity (Ciric et al. 2017, 10.1016/j.neuroimage.2017.03.020)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpumask.bids.names import parse_output_name
from gpumask.cohort.quality import Column
from gpumask.cohort.stored import unit_key
from gpumask.files import inside
from gpumask.inputs import read_bytes

_LEAST_RUNS = 10  # with fewer, a correlation over runs says nothing
_LEVEL = 0.05
_MOST_BYTES = 2**30  # of all matrices that are read: 15 s. Beyond, evenly spaced runs stand for all
_LARGEST = 2**26  # bytes of a matrix: 2500 regions, whose sums take 150 MB
_KINDS = 100  # of matrices

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


class Kind(NamedTuple):
    """Matrices that are comparable: those of one atlas, denoising, statistic, and hash of how they were made."""

    atlas: str
    denoising: str
    stat: str
    made: str


class Matrix(NamedTuple):
    """A run's correlation matrix: its path in the output folder, its size in bytes, and the run's mean displacement."""

    path: str
    size: int
    displacement: float


class Matrices:
    """Where the correlation matrices of a cohort are, by their `Kind`."""

    def __init__(self) -> None:
        self.by_kind: dict[Kind, list[Matrix]] = defaultdict(list)

    def noting(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass records on, and note their matrices."""
        for record in records:
            for output in record["outputs"]:
                self._note(record, output)
            yield record

    def _note(self, record, output):
        table = parse_output_name(Path(output["path"]).name)
        if not table or table.suffix != "relmat":
            return
        atlas, denoising = unit_key(record["made"][output["made"]])
        displacement = record["quality"][denoising].get("fd_mean")
        kind = Kind(atlas, denoising, table.stat, output["made"])
        if displacement is not None and (kind in self.by_kind or len(self.by_kind) < _KINDS):
            self.by_kind[kind].append(Matrix(output["path"], output["size"], displacement))


def qc_fc(out_dir: Path, matrices: Matrices) -> Iterator[dict[str, Any]]:
    """Summaries of QC-FC.

    Matrices are read one by one; sums over runs are held for each edge. Of more than 1 GiB, those of evenly spaced
    runs are read.

    Parameters
    ----------
    out_dir : Path
    matrices : Matrices

    Yields
    ------
    dict
        By the names in `COLUMNS`; None for unknown numbers. One for each atlas, denoising and statistic: of matrices
        that were made in different ways, those made in the most frequent one.
    """
    groups: dict[tuple[str, str, str], list[list[Matrix]]] = defaultdict(list)
    for kind, found in sorted(matrices.by_kind.items()):
        groups[kind[:3]].append(found)
    for (atlas, denoising, stat), ways in groups.items():
        chosen = max(ways, key=len)
        row = _summary(out_dir, chosen, _MOST_BYTES // len(groups))
        if others := sum(map(len, ways)) - len(chosen):
            row["remark"] = f"{row['remark']} {others} runs were made with other options and aren't used.".strip()
        yield {"atlas": atlas, "denoising": denoising, "stat": stat, **row}


def _summary(out_dir: Path, matrices: list[Matrix], most_bytes: int) -> dict[str, Any]:
    unknown = dict.fromkeys(("edges", "median_abs_r", "share_significant", "share_significant_fdr"))
    n_runs = len(matrices)

    def without(n_used: int, remark: str) -> dict[str, Any]:
        return {"runs": n_runs, "runs_used": n_used, **unknown, "remark": remark}

    if n_runs < _LEAST_RUNS:
        return without(0, f"{n_runs} runs, expected {_LEAST_RUNS} or more.")
    largest = max(matrix.size for matrix in matrices)
    if largest > _LARGEST:
        return without(0, f"A matrix has {largest} bytes, more than the {_LARGEST} that are read.")
    n_read = min(n_runs, max(most_bytes // max(largest, 1), _LEAST_RUNS))
    sums, n_unusable = _Sums(), 0
    for k in np.linspace(0, n_runs - 1, n_read).round().astype(int):
        matrix = matrices[k]
        try:
            sums.add(*_edges(inside(out_dir, matrix.path), matrix.size), matrix.displacement)
        except (OSError, ValueError):
            n_unusable += 1
    remarks = [f"{n_unusable} matrices are unreadable or have other regions."] * (n_unusable > 0)
    remarks += [f"{n_read} evenly spaced runs stand for all."] * (n_read < n_runs)
    n_used = n_read - n_unusable
    if n_used < _LEAST_RUNS:
        return without(n_used, " ".join([f"{n_used} runs, expected {_LEAST_RUNS} or more.", *remarks]))
    r, counts = sums.correlations()
    if not r.size:
        return without(n_used, " ".join(["No edge and mean FD that both differ between runs.", *remarks]))
    return {"runs": n_runs, "runs_used": n_used, **_shares(r, counts), "remark": " ".join(remarks)}


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


def _edges(path: Path, size: int) -> tuple[bytes, np.ndarray]:
    """The first line of a matrix's table, and its values above the diagonal; ValueError for another table."""
    content = read_bytes(path, most=size)
    header, *lines = content.split(b"\n")
    n = header.count(b"\t")
    if len(content) != size or len(lines) != n + 1:
        raise ValueError(path)
    rows = [np.empty(0)]
    for k, line in enumerate(lines[:-1]):
        cells = line.replace(b"\tn/a", b"\tnan").split(b"\t")
        if len(cells) != n + 1:
            raise ValueError(path)
        rows.append(np.fromiter(map(float, cells[k + 2 :]), np.float64, n - 1 - k))
    return header, np.concatenate(rows)


class _Sums:
    """Sums over runs for the correlation of each edge with a number per run.

    They are of differences from the first run, so that small variances don't drown in rounding errors.
    """

    def __init__(self) -> None:
        self._header: bytes | None = None

    def add(self, header: bytes, edges: np.ndarray, x: float) -> None:
        """Add a run; ValueError if it has other regions than the first one."""
        known = np.isfinite(edges)
        if self._header is None:
            self._header, self._first_x = header, x
            self._first = np.where(known, edges, 0.0)
            self._n, self._x, self._xx, self._y, self._yy, self._xy = np.zeros((6, len(edges)))
        if header != self._header:
            msg = "other regions"
            raise ValueError(msg)
        x -= self._first_x
        y = np.where(known, edges - self._first, 0.0)
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
