"""The connectivity matrices of a cohort: where they are, read one by one, and their mean over runs."""

import functools
import io
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpumask.bids.names import alphanumeric, parse_output_name
from gpumask.cohort.recorded import Unused, evenly, read_recorded, usual
from gpumask.cohort.stored import unit_key
from gpumask.connectivity import averaged, mean_over_runs
from gpumask.files import inside
from gpumask.inputs import open_file
from gpumask.tables import cells, read_numbers

LEAST_READ = 10
"""Matrices of a kind that are read, if there are as many, however large they are."""
MOST_BYTES = 5 * 2**30
"""Bytes of all matrices that are read, in 20 s: 40 000 of 100 regions. Beyond, evenly spaced runs stand for all."""
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
        """How many matrices are read, evenly spaced; 0 if they are too large."""
        if self.typical > LARGEST:
            return 0
        return min(len(self.matrices), max(self.most_bytes // max(self.typical, 1), LEAST_READ))

    @property
    def typical(self) -> int:
        """Median size of the matrices in bytes."""
        return statistics.median_high(matrix.size for matrix in self.matrices)

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
    """Read matrices of a group one after the other; those that can't be used are counted, and noted in `unused`.

    They must have the regions that most have.
    """

    def __init__(self, out_dir: Path, group: Group, unused: Unused) -> None:
        self._out_dir, self._group, self._unused = out_dir, group, unused
        self._n_unusable = 0

    def __iter__(self) -> Iterator[Edges]:
        matrices, n_read = self._group.matrices, self._group.n_read
        expected = usual(matrices, self._header) if n_read else None
        for k in evenly(len(matrices), n_read):
            matrix = matrices[k]
            try:
                header, body = read_recorded(self._out_dir, matrix.path, matrix.size, LARGEST)
                if header != expected:
                    msg = "has other regions than most"
                    raise ValueError(msg)
                edges = Edges(cells(header.decode())[1:], edges_of(header, body), matrix.displacement)
            except (OSError, ValueError) as error:
                self._n_unusable += 1
                self._unused.add(matrix.path, error)
                continue
            yield edges

    def _header(self, matrix):
        with io.BufferedReader(open_file(inside(self._out_dir, matrix.path))) as file:
            return file.readline(LARGEST).removesuffix(b"\n")

    def remarks(self) -> list[str]:
        """Which matrices weren't used so far."""
        group, n_read = self._group, self._group.n_read
        if not n_read:
            return [f"Half of the matrices have {group.typical} bytes or more; at most {LARGEST} are read."]
        remarks = [f"{self._n_unusable} matrices can't be used: group_unused.tsv says why."] * (self._n_unusable > 0)
        if n_read < len(group.matrices):
            of_all = f"{n_read} evenly spaced runs of {len(group.matrices)}"
            remarks.append(f"A sample: {of_all}, since reading all matrices would take too long.")
        return remarks + [f"{group.n_others} runs were made with other options and aren't used."] * (group.n_others > 0)


def edges_of(header: bytes, body: bytes) -> np.ndarray:
    """Upper triangle with the diagonal, row by row, of a matrix's table; ValueError for another table."""
    n = header.count(b"\t")
    matrix = read_numbers(body, n, labelled=True)
    rows = [line.partition(b"\t")[0] for line in body.split(b"\n")[:-1]]
    if rows != header.split(b"\t")[1:] or not np.array_equal(matrix.view(np.int64), matrix.T.view(np.int64)):
        msg = "isn't a symmetric matrix with the same names of rows and columns"
        raise ValueError(msg)
    if np.isnan(matrix).all():
        msg = "has no numbers"
        raise ValueError(msg)
    return matrix.ravel()[_upper(n)]


@functools.lru_cache(1)
def _upper(n):
    return np.flatnonzero(np.tri(n, dtype=bool).T)


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
