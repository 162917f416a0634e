"""Tables of a whole cohort, made from its records: the quality of every run, and how motion shows in connectivity."""

import heapq
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from gpumask.cohort.matrices import Group, Matrices, Mean, MeanSums, Reading
from gpumask.cohort.page import read_cohort, write_page
from gpumask.cohort.page.connectivity import MOST_PICTURES, MOST_REGIONS
from gpumask.cohort.parquet import Store
from gpumask.cohort.qcfc import COLUMNS as OF_COHORT
from gpumask.cohort.qcfc import MotionSums, summary
from gpumask.cohort.quality import OF_ATLAS, OF_RECORD, OF_RUN, Column, rows
from gpumask.cohort.recorded import Unused
from gpumask.cohort.tangent import TangentSpaces
from gpumask.connectivity import CORRELATIONS
from gpumask.files import replacing, write
from gpumask.tables import json_lines, table_lines, text_cell
from gpumask.text_tables import listed

_log = logging.getLogger(__name__)
_ENDS = ("_relmat.tsv", "_relmat.npy", "_relmat.json", "_runs.tsv", "_runs.json")
_ATLASES = 50  # most with columns of their own, so that a row has a bounded size
_KEYS = (
    Column("participant_id", "Participant", "Label of the participant, with sub-."),
    Column("session", "Session", "Label of the session."),
    Column("task", "Task", "Label of the task."),
    Column("run", "Run", "Label of the run."),
    Column("space", "Space", "Label of the space."),
    Column("name", "Name", "Beginning of the names of the run's files."),
    Column("denoising", "Denoising", "Name of the denoising; n/a for the only one."),
)


class GroupTables:
    """The tables of a cohort. Memory: a line of text per run, and the sums of one kind of matrices."""

    def __init__(self) -> None:
        self._matrices = Matrices()
        self._lines: list[tuple[str, dict[str, str]]] = []  # of a run, and of its atlases

    def add(self, record: dict[str, Any]) -> None:
        """Add a run with outputs, by its record as `gpumask.cohort.stored.read_record` returns it, in their order."""
        self._matrices.add(record)
        for row in rows([record]):
            own = _cells(row, (*_KEYS, *OF_RUN, *OF_RECORD))
            first = heapq.nsmallest(_ATLASES, row["atlases"])
            self._lines.append((own, {name: _cells(row["atlases"][name], OF_ATLAS) for name in first}))

    def write(self, out_dir: Path, unused: Unused) -> tuple[list[Path], list[Mean], list[dict[str, Any]]]:
        """Write the tables, and JSON files on their contents, to the cohort's output folder.

        ``group_quality.tsv`` has a row for each run and denoising with outputs, sorted by the names of the runs: see
        `gpumask.cohort.quality.rows`. Each atlas has columns of its own, ``tsnr_<atlas>``, since the first atlas's
        alone would hide what another one lost; at most 50 have them. ``group_qcfc.tsv`` has a row for each kind of
        connectivity matrices: see `gpumask.cohort.qcfc.summary`. Each kind has its mean over runs in
        ``group_atlas-<atlas>_stat-<stat>[_desc-<denoising>]_relmat.tsv``, and the number of runs of each edge in
        ``..._runs.tsv``. Matrices are read once, one by one; those that can't be used are noted in `unused`.

        Returns
        -------
        paths : list of Path
            The written tables.
        means : list of Mean
            The first mean matrices, small enough for pictures.
        motion : list of dict
            The rows of ``group_qcfc.tsv``.
        """
        paths, found = [self._write_quality(out_dir)], list[dict[str, Any]]()
        means: list[Mean] = []
        for group in self._matrices.groups():
            reading, motion, sums = Reading(out_dir, group, unused), MotionSums(), MeanSums(group.kind.stat)
            for edges in reading:
                motion.add(edges)
                sums.add(edges)
            remarks = reading.remarks()
            _log.debug("%s: %d of %d matrices used", group.stem, sums.n_used, len(group.matrices))
            found.append(summary(group, motion, remarks))
            if sums.n_used:
                mean = sums.mean(group, " ".join(remarks))
                paths.append(_write_mean(out_dir, group, mean))
                means += [mean.thinned(MOST_REGIONS)] * (len(means) < MOST_PICTURES)
        body = (_cells(row, OF_COHORT) + "\n" for row in found)
        paths.insert(1, _write(out_dir / "group_qcfc.tsv", OF_COHORT, body))
        return paths, means, found

    def _write_quality(self, out_dir):
        atlases = sorted({name for _, of_atlases in self._lines for name in of_atlases})[:_ATLASES]
        of_atlases = [
            replace(column, name=f"{column.name}_{name}", long_name=f"{column.long_name}, atlas {name}")
            for name in atlases
            for column in OF_ATLAS
        ]
        columns = [*_KEYS, *OF_RUN, *OF_RECORD, *of_atlases]
        missing = "\t".join(["n/a"] * len(OF_ATLAS))
        body = ("\t".join([own, *(of.get(name, missing) for name in atlases)]) + "\n" for own, of in self._lines)
        return _write(out_dir / "group_quality.tsv", columns, body)


class Summary(NamedTuple):
    """What `summarize` made.

    Attributes
    ----------
    paths : list of Path
        The page, then the tables.
    refused : list of str
        A message for each tangent space that couldn't be made.
    unused : Unused
        Files that couldn't be used.
    """

    paths: list[Path]
    refused: list[str]
    unused: Unused


def summarize(out_dir: Path, n_runs: int | None = None, *, tangent: bool = False, store: Path | None = None) -> Summary:
    """Write the page and the tables of a cohort, reading each record once.

    Parameters
    ----------
    out_dir : Path
        Folder with the records of runs in ``logs``, also of partly finished ones. ``group_unused.tsv`` lists the
        records, and the tables that they name, that can't be used, with the reasons.
    n_runs : int, optional
        As of `gpumask.cohort.page.write_page`.
    tangent : bool, default=False
        Whether tangent spaces are written too, see `gpumask.cohort.tangent.TangentSpaces`. Without it, earlier ones are
        removed, as are means that aren't made again: they may be of other runs than the other tables.
    store : Path, optional
        Parquet file of all time series to write, see `gpumask.cohort.parquet.Store`.

    Raises
    ------
    FileNotFoundError
        If the folder doesn't exist.
    ValueError, ImportError, OSError
        As `gpumask.cohort.parquet.Store.write`, after everything else has been written.
    """
    tables, spaces, stored = GroupTables(), TangentSpaces(), Store()

    def note(record):
        tables.add(record)
        if tangent:
            spaces.add(record)
        if store:
            stored.add(record)

    cohort = read_cohort(out_dir, note)
    _log.debug("%s: %d records of finished runs", out_dir, len(cohort.done))
    paths, means, motion = tables.write(out_dir, cohort.unused)
    page = write_page(out_dir, n_runs, cohort, means, motion)
    of_spaces, refused = spaces.write(out_dir)
    _remove_earlier(out_dir, {*paths, *of_spaces})
    try:
        of_store = stored.write(out_dir, store, cohort.unused) if store else []
    finally:
        listed = cohort.unused.write(out_dir)
    return Summary([page, *paths, *of_spaces, *of_store, *listed], refused, cohort.unused)


def _remove_earlier(out_dir: Path, written: set[Path]) -> None:
    """Remove matrices of the group that an earlier summary wrote and this one doesn't, with a warning."""
    stems = {path.name.rpartition("_")[0] for path in written}
    found = [
        path
        for path in out_dir.glob("group_atlas-*_stat-*_*")
        if path.name.endswith(_ENDS) and path.name.rpartition("_")[0] not in stems
    ]
    for path in found:
        path.unlink(missing_ok=True)
    if matrices := sorted(path.name for path in found if path.name.endswith(("_relmat.tsv", "_relmat.npy"))):
        _log.warning(
            "Removed: %s. They are from an earlier summary and weren't redone (tangent spaces need --tangent).",
            listed(matrices),
        )


def _write_mean(out_dir: Path, group: Group, mean: Mean) -> Path:
    """Write a mean matrix, the number of runs of each edge, and a JSON file on each; returns the matrix's path."""
    is_correlation = group.kind.stat in CORRELATIONS
    facts = {
        "NumberOfRuns": mean.n_runs,
        "NumberOfRunsUsed": mean.n_used,
        "Remark": mean.remark or None,
        "ConfigurationHash": group.kind.made,
    }
    facts = {key: value for key, value in facts.items() if value is not None}
    how = "By Fisher's z: the hyperbolic tangent of the mean inverse hyperbolic tangent." if is_correlation else None
    tables = {
        "runs": (mean.counts, "Number of runs that the mean of each element is of.", None),
        "relmat": (mean.matrix, "Mean over runs of each element; n/a counts for none.", how),
    }
    for suffix, (values, *texts) in tables.items():
        path = out_dir / f"{group.stem}_{suffix}.tsv"
        content = {"Description": " ".join(filter(None, texts)), **facts}
        rows = table_lines(["Node", *mean.regions], values, mean.regions)
        for file, lines in ((path.with_suffix(".json"), json_lines(content)), (path, rows)):
            with replacing(file) as part:
                write(part, lines)
    return path


def _cells(row: Mapping[str, Any], columns: Iterable[Column]) -> str:
    return "\t".join(_cell(row[column.name]) for column in columns)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "n/a" if value in (None, "") else text_cell(value)


def _write(path: Path, columns: Iterable[Column], body: Iterable[str]) -> Path:
    """Write a table, and the JSON file that describes its columns."""
    described = {
        column.name: {"LongName": column.long_name, "Description": column.description}
        | ({"Units": column.units} if column.units else {})
        for column in columns
    }
    for file, lines in ((path.with_suffix(".json"), json_lines(described)), (path, chain([_header(columns)], body))):
        with replacing(file) as part:
            write(part, lines)
    return path


def _header(columns: Iterable[Column]) -> str:
    return "\t".join(text_cell(column.name) for column in columns) + "\n"
