"""Tables of a whole cohort, made from its records: the quality of every run, and how motion shows in connectivity."""

import contextlib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from gpumask.cohort.qcfc import COLUMNS as OF_COHORT
from gpumask.cohort.qcfc import Matrices, qc_fc
from gpumask.cohort.quality import OF_ATLAS, OF_RECORD, OF_RUN, Column, rows
from gpumask.cohort.stored import read_record
from gpumask.files import replacing, write
from gpumask.tables import json_lines, text_cell

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


def write_tables(out_dir: Path) -> list[Path]:
    """Write ``group_quality.tsv`` and ``group_qcfc.tsv`` of a cohort's output folder, and JSON files on their columns.

    The first has a row for each finished run and denoising, sorted by the names of the runs: see
    `gpumask.cohort.quality.rows`. Each atlas has columns of its own, ``tsnr_<atlas>``, since the first atlas's alone
    would hide what another one lost; at most 50 have them. The second has a row for each kind of correlation matrix:
    see `gpumask.cohort.qcfc.qc_fc`. Memory: a line of text per run. Unreadable records are skipped; the page counts
    them.

    Parameters
    ----------
    out_dir : Path

    Returns
    -------
    list of Path
        The written tables.
    """
    matrices = Matrices()
    lines: list[tuple[str, dict[str, str]]] = []  # of a run, and of its atlases
    for row in rows(matrices.noting(_records(out_dir / "logs"))):
        own = _cells(row, (*_KEYS, *OF_RUN, *OF_RECORD))
        first = heapq.nsmallest(_ATLASES, row["atlases"])
        lines.append((own, {name: _cells(row["atlases"][name], OF_ATLAS) for name in first}))
    atlases = sorted({name for _, of_atlases in lines for name in of_atlases})[:_ATLASES]
    of_atlases = [
        replace(column, name=f"{column.name}_{name}", long_name=f"{column.long_name}, atlas {name}")
        for name in atlases
        for column in OF_ATLAS
    ]
    columns = [*_KEYS, *OF_RUN, *OF_RECORD, *of_atlases]
    missing = "\t".join(["n/a"] * len(OF_ATLAS))
    body = ("\t".join([own, *(of.get(name, missing) for name in atlases)]) + "\n" for own, of in lines)
    found = (_cells(row, OF_COHORT) + "\n" for row in qc_fc(out_dir, matrices))
    return [
        _write(out_dir / "group_quality.tsv", columns, body),
        _write(out_dir / "group_qcfc.tsv", OF_COHORT, found),
    ]


def _records(logs: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(logs.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            yield read_record(path)


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
