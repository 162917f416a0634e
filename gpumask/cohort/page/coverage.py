"""Section of the page: coverage of the regions, a picture per atlas."""

import heapq
import html
from pathlib import Path

import numpy as np

from gpumask.cohort.page.logs import Cohort
from gpumask.cohort.page.markup import counted, html_table
from gpumask.cohort.page.pictures import heat_map
from gpumask.cohort.recorded import read_recorded, usual
from gpumask.tables import cells, read_numbers

_LOW = 0.5  # less covered regions are "n/a" by default
_PICTURE = (400, 600)  # most rows (regions) and columns (runs) of a picture: those of a window
_ATLASES = 50  # most pictures: each takes half a second
_WORST = 10  # rows of tables
_LARGEST_TABLE = 2**26  # bytes of a coverage table: a million regions


def section(cohort: Cohort, out_dir: Path) -> str:
    """Section about coverage."""
    parts = ["<h2 id='coverage'>Coverage</h2>"]
    if not cohort.coverage:
        parts.append("<p>No coverage tables.</p>")
    for atlas, tables in heapq.nsmallest(_ATLASES, cohort.coverage.items()):
        overlaps = "".join(f"<p>{html.escape(message)}</p>" for message in cohort.overlaps.get(atlas, ()))
        coverage = _read_coverage(tables, out_dir, cohort.unused).html()
        parts.append(f"<h3>{html.escape(atlas)}</h3>{overlaps}{coverage}")
    if (left := len(cohort.coverage) - _ATLASES) > 0:
        parts.append(f"<p>And {counted(left, 'more atlas', 'more atlases')}, in tables *_stat-coverage_bold.tsv.</p>")
    return "".join(parts)


def _read_coverage(tables, out_dir, unused):
    """Read an atlas's coverage tables one after the other; memory doesn't grow with regions times runs.

    Those that can't be used, as with other regions than most, are noted in `unused`.
    """
    names, bad = [name for name, _, _ in tables], []
    expected = usual(tables, lambda table: _coverage_table(out_dir, *table[1:])[0])
    found = _Coverage(names, cells(expected.decode().replace("\n", "\t")) if expected else [], bad)
    for index, (name, path, size) in enumerate(tables):
        try:
            nodes, values = _coverage_table(out_dir, path, size)
            if nodes != expected:
                msg = "has other regions than most"
                raise ValueError(msg)
        except (OSError, ValueError) as error:
            bad.append(name)
            unused.add(path, error)
            continue
        found.add(index, values)
    return found


def _coverage_table(out_dir, path, size):
    """Regions, one a line, and their coverage; ValueError for a table other than the record's, of `size` bytes."""
    header, body = read_recorded(out_dir, path, size, _LARGEST_TABLE)
    values = read_numbers(body, 1, labelled=True)[:, 0]
    if header != b"Node\tcoverage" or np.any((values < 0) | (values > 1)):
        msg = "isn't a table of coverage from 0 to 1"
        raise ValueError(msg)
    return b"\n".join(line.partition(b"\t")[0] for line in body.split(b"\n")[:-1]), values


class _Coverage:
    """Coverage of an atlas's regions over runs: means of blocks of regions x runs, and sums per region and per run."""

    def __init__(self, names, nodes, bad):
        self.names, self.nodes, self.bad = names, nodes, bad
        self.rows = np.unique(np.linspace(0, len(nodes), _PICTURE[0], endpoint=False, dtype=int)) if nodes else []
        shape = len(self.rows), min(_PICTURE[1], len(names))
        self.sums, self.counts = np.zeros(shape), np.zeros(shape)
        self.region_sums, self.region_counts = np.zeros(len(nodes)), np.zeros(len(nodes), int)
        self.region_low = np.zeros(len(nodes), int)
        self.run_mean, self.run_low = np.full(len(names), np.nan), np.zeros(len(names), int)

    def add(self, index, values):
        known = ~np.isnan(values)
        low = ~(values >= _LOW)
        self.run_low[index] = np.count_nonzero(low)
        self.region_low += low
        values = np.where(known, values, 0.0)
        if known.any():
            self.run_mean[index] = values.sum() / np.count_nonzero(known)
        self.region_sums += values
        self.region_counts += known
        if len(self.rows):
            column = index * self.sums.shape[1] // len(self.names)
            self.sums[:, column] += np.add.reduceat(values, self.rows)
            self.counts[:, column] += np.add.reduceat(known, self.rows, dtype=int)

    def html(self):
        n_regions, n_runs = len(self.nodes), len(self.names) - len(self.bad)
        parts = [f"<p>{counted(n_regions, 'region')}, {counted(n_runs, 'run')}."]
        if self.bad:
            parts.append(f" Skipped, as unreadable or with other regions: {counted(len(self.bad), 'table')} "
                         f"(first: {html.escape(self.bad[0])}).")  # fmt: skip
        if self.region_counts.sum() == 0:
            return "".join([*parts, "</p>"])
        per_run, per_region = -(-len(self.names) // self.sums.shape[1]), -(-n_regions // len(self.rows))
        with np.errstate(invalid="ignore"):
            picture = self.sums / self.counts
            means = self.region_sums / self.region_counts
        mean = self.region_sums.sum() / self.region_counts.sum()
        parts.append(f" Mean coverage {mean:.3f}. In the picture, columns are runs in the order of their names, and ")
        parts.append("rows are regions in the order of the table")
        if per_run * per_region > 1:
            size = f"{counted(per_region, 'region')} of {counted(per_run, 'run')}"
            parts.append(f"; a pixel is the mean of up to {size}")
        parts.append(".</p>")
        parts.append(heat_map(picture, self.names, self.nodes))
        regions = np.lexsort((means, -self.region_low))[:_WORST]
        runs = np.lexsort((self.run_mean, -self.run_low))[:_WORST]
        parts.append("<div class='pair'>")
        parts.append(_worst("Region", f"Runs below {_LOW}", self.nodes, means, self.region_low, regions))
        parts.append(_worst("Run", f"Regions below {_LOW}", self.names, self.run_mean, self.run_low, runs))
        parts.append("</div>")
        return "".join(parts)


def _worst(what, low, names, means, counts, chosen):
    rows = [(html.escape(names[i]), f"{means[i]:.3f}", counted(counts[i])) for i in chosen]
    return html_table((f"{what}, least covered first", "Mean", low), rows, numeric=(1, 2))
