"""The connectivity matrices of a cohort: where they are, read one by one, and their mean over runs."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpumask.bids.names import alphanumeric, parse_output_name
from gpumask.cohort.stored import unit_key
from gpumask.connectivity import averaged, mean_over_runs
from gpumask.files import inside
from gpumask.inputs import read_bytes
from gpumask.tables import cells

LEAST_READ = 10
"""Matrices of a kind that are read, if there are as many, however large they are."""
MOST_BYTES = 2**29
"""Bytes of all matrices that are read: 8 s. Beyond, evenly spaced runs stand for all."""
LARGEST = 2**26
"""Bytes of a matrix that is read: 2500 regions, whose sums take 230 MB."""
_KINDS = 100  # of matrices


class Kind(NamedTuple):
    """Matrices that are comparable: those of one atlas, denoising, statistic, and hash of how they were made."""

    atlas: str
    denoising: str
    stat: str
    made: str


class Matrix(NamedTuple):
    """A run's matrix: its path in the output folder, its size in bytes, and the run's mean displacement (mm)."""

    path: str
    size: int
    displacement: float | None


class Group(NamedTuple):
    """Matrices of an atlas, denoising and statistic that were made in one way: the most frequent one.

    Attributes
    ----------
    kind : Kind
    matrices : list of Matrix
    n_others : int
        Matrices that were made in other ways.
    most_bytes : int
        Share of `MOST_BYTES`.
    """

    kind: Kind
    matrices: list[Matrix]
    n_others: int
    most_bytes: int

    @property
    def n_read(self) -> int:
        """How many matrices are read, evenly spaced; 0 if one is too large."""
        if self.largest > LARGEST:
            return 0
        return min(len(self.matrices), max(self.most_bytes // max(self.largest, 1), LEAST_READ))

    @property
    def largest(self) -> int:
        """Size of the largest matrix in bytes."""
        return max(matrix.size for matrix in self.matrices)

    @property
    def stem(self) -> str:
        """Beginning of the names of the group's files: ``group_atlas-<atlas>_stat-<stat>[_desc-<denoising>]``."""
        desc = alphanumeric(self.kind.denoising)
        return f"group_atlas-{self.kind.atlas}_stat-{self.kind.stat}{desc and f'_desc-{desc}'}"


class Matrices:
    """Where the matrices of a cohort are, by their `Kind`."""

    def __init__(self) -> None:
        self.by_kind: dict[Kind, list[Matrix]] = defaultdict(list)

    def add(self, record: dict[str, Any]) -> None:
        """Note the matrices of a record, as `gpumask.cohort.stored.read_record` returns it."""
        for output in record["outputs"]:
            if not output["path"].endswith("_relmat.tsv"):
                continue
            table = parse_output_name(Path(output["path"]).name)
            if not table or table.suffix != "relmat":
                continue
            _, denoising = unit_key(record["made"][output["made"]])
            displacement = record["quality"][denoising].get("fd_mean")
            kind = Kind(table.atlas, denoising, table.stat, output["made"])
            if kind in self.by_kind or len(self.by_kind) < _KINDS:
                self.by_kind[kind].append(Matrix(output["path"], output["size"], displacement))

    def groups(self) -> Iterator[Group]:
        """The groups, sorted; of each atlas, denoising and statistic one."""
        ways: dict[tuple[str, str, str], list[tuple[Kind, list[Matrix]]]] = defaultdict(list)
        for kind, found in sorted(self.by_kind.items(), key=lambda item: item[0]):
            ways[kind[:3]].append((kind, found))
        for of_one in ways.values():
            kind, chosen = max(of_one, key=lambda way: len(way[1]))
            n_all = sum(len(found) for _, found in of_one)
            yield Group(kind, chosen, n_all - len(chosen), MOST_BYTES // len(ways))


class Edges(NamedTuple):
    """A run's matrix, read: its regions, upper triangle with the diagonal (float64), and mean displacement."""

    regions: list[str]
    values: np.ndarray
    displacement: float | None


class Reading:
    """Read matrices of a group one after the other; those that are unreadable or have other regions are counted."""

    def __init__(self, out_dir: Path, group: Group) -> None:
        self._out_dir, self._group, self._header = out_dir, group, b""
        self._n_unusable = 0

    def __iter__(self) -> Iterator[Edges]:
        matrices = self._group.matrices
        for k in np.linspace(0, len(matrices) - 1, self._group.n_read).round().astype(int):
            matrix = matrices[k]
            try:
                header, values = read_edges(inside(self._out_dir, matrix.path), matrix.size)
                regions = cells(header.decode())[1:]
                self._header = self._header or header
                if header != self._header:
                    raise ValueError(matrix.path)
            except (OSError, ValueError):
                self._n_unusable += 1
                continue
            yield Edges(regions, values, matrix.displacement)

    def remarks(self) -> list[str]:
        """Which matrices weren't used so far."""
        group, n_read = self._group, self._group.n_read
        if not n_read:
            return [f"A matrix has {group.largest} bytes, more than the {LARGEST} that are read."]
        remarks = [f"{self._n_unusable} matrices are unreadable or have other regions."] * (self._n_unusable > 0)
        remarks += [f"{n_read} evenly spaced runs stand for all."] * (n_read < len(group.matrices))
        return remarks + [f"{group.n_others} runs were made with other options and aren't used."] * (group.n_others > 0)


def read_edges(path: Path, size: int) -> tuple[bytes, np.ndarray]:
    """The first line of a matrix's table, and its values from the diagonal on; ValueError for another table."""
    content = read_bytes(path, most=size)
    header, *lines = content.split(b"\n")
    n = header.count(b"\t")
    if len(content) != size or len(lines) != n + 1:
        raise ValueError(path)
    rows = [np.empty(0)]
    for k, line in enumerate(lines[:-1]):
        if line.count(b"\t") != n:
            raise ValueError(path)
        row = line.split(b"\t", k + 1)[-1].replace(b"n/a", b"nan").split(b"\t")
        rows.append(np.fromiter(map(float, row), np.float64, n - k))
    return header, np.concatenate(rows)


class Mean(NamedTuple):
    """Mean of a group's matrices over runs.

    Attributes
    ----------
    kind : Kind
    regions : list of str
    matrix : ndarray of float32, shape (n_regions, n_regions)
        NaN where no run has a number.
    counts : ndarray of int64, shape (n_regions, n_regions)
        Runs with a number.
    n_runs, n_used : int
        Runs that have such a matrix, and whose matrices were read.
    remark : str
        Which runs weren't used.
    """

    kind: Kind
    regions: list[str]
    matrix: np.ndarray
    counts: np.ndarray
    n_runs: int
    n_used: int
    remark: str

    def thinned(self, most: int) -> "Mean":
        """The same with at most `most` evenly spaced regions."""
        n = len(self.regions)
        if n <= most:
            return self
        chosen = np.linspace(0, n - 1, most).round().astype(int)
        parts = {"matrix": self.matrix[np.ix_(chosen, chosen)], "counts": self.counts[np.ix_(chosen, chosen)]}
        return self._replace(regions=[self.regions[k] for k in chosen], **parts)


class MeanSums:
    """Sums over runs for the mean of each edge: of Fisher z, for correlations."""

    def __init__(self, stat: str) -> None:
        self._stat, self.n_used = stat, 0

    def add(self, edges: Edges) -> None:
        """Add a run."""
        if not self.n_used:
            self.regions = edges.regions
            self._total, self._counts = np.zeros(len(edges.values)), np.zeros(len(edges.values), np.int64)
            self._diagonal = np.cumsum([0, *range(len(self.regions), 1, -1)])[: len(self.regions)]
        own = averaged(self._stat, edges.values)
        own[self._diagonal] = edges.values[self._diagonal]  # of correlations it is 1, whose z is infinite
        known = np.isfinite(own)
        self._total += np.where(known, own, 0)
        self._counts += known
        self.n_used += 1

    def mean(self, group: Group, remark: str) -> Mean:
        """The mean of the runs that were added: one or more."""
        n, values = len(self.regions), mean_over_runs(self._stat, self._total, self._counts)
        values[self._diagonal] = mean_over_runs("", self._total, self._counts)[self._diagonal]
        matrix, counts = (_symmetric(part, n) for part in (values.astype(np.float32), self._counts))
        return Mean(group.kind, self.regions, matrix, counts, len(group.matrices), self.n_used, remark)


def _symmetric(values, n):
    """The matrix of an upper triangle with the diagonal."""
    matrix = np.zeros((n, n), values.dtype)
    matrix[np.triu_indices(n)] = values
    return np.triu(matrix) + np.triu(matrix, 1).T
