"""Runs listed in a table, for data that aren't named as fMRIPrep names them."""

import os
import re
from dataclasses import replace
from pathlib import Path

from gpumask.bids.content import absence
from gpumask.bids.metadata import positive_seconds
from gpumask.bids.names import atlas_name, is_run_name, run_folder, run_name
from gpumask.bids.pairing import check_pairs
from gpumask.bids.runs import Problem, Run, RunAtlas
from gpumask.inputs import irregularity, shortened
from gpumask.text_tables import listed, read_rows

_COLUMNS = ("bold", "confounds", "mask", "t_r", "name")
_ATLAS = re.compile("(atlas|lut)(?:_([a-zA-Z0-9]+))?")


def read_manifest(path: str | os.PathLike) -> tuple[list[Run], list[Problem]]:
    """Read a table with a line per run.

    Parameters
    ----------
    path : str or path-like
        Tab-separated text (see `gpumask.text_tables`). The first line names the columns: "bold" (images), and any of
        "confounds", "mask", "t_r" (s) and "name" (beginning of the outputs' names; default: from the image's). Files
        are relative to the table's folder; empty cells and "n/a" are missing. "atlas" is a label image of each run's
        own, called by its file name, and "lut" its look-up table; several are "atlas_NAME" and "lut_NAME". Their cells
        can't be missing.

    Returns
    -------
    runs : list of Run
        In the order of the table.
    problems : list of Problem
        Lines that can't be used: missing files, duplicate names, ...

    Raises
    ------
    ValueError
        If the file isn't text, the columns aren't those above, or names contradict how images, tables and masks are
        paired.
    OSError
        If the table can't be read.
    """
    path = Path(path).absolute()
    table = read_rows(path, "a list of runs, with the column bold", separators="\t")
    columns, *rows = map(_without_empty_end, table.cells)
    if "bold" not in columns or len(set(columns)) < len(columns) or not all(map(_is_known, columns)):
        first = shortened(repr("\t".join(table.cells[0])), 200)
        msg = (
            f"{path} begins with the line {first}. Expected the names of the columns, separated by tabs, each once: "
            "bold, and any of confounds, mask, t_r, name, atlas, lut, atlas_NAME, lut_NAME."
        )
        raise ValueError(msg)
    own = [column for column in columns if _ATLAS.fullmatch(column)]
    if alone := [name for name in own if name.startswith("lut") and name.replace("lut", "atlas", 1) not in own]:
        msg = f"{path} has the column {alone[0]}, but no column {alone[0].replace('lut', 'atlas', 1)}."
        raise ValueError(msg)
    runs, problems = [], []
    for number, cells, all_cells in zip(table.lines[1:], rows, table.cells[1:], strict=True):
        if not cells:
            continue
        row = {column: cell for column, cell in zip(columns, cells, strict=False) if cell not in ("", "n/a")}
        try:
            if not len(cells) <= len(columns) <= len(all_cells):
                msg = f"has {len(all_cells)} cells, expected {len(columns)}"
                raise ValueError(msg)
            runs.append((number, _run_of_row(row, path.parent, own)))
        except ValueError as error:
            problems.append(Problem(row.get("bold", str(path)), f"line {number} of {path} {error}", row.get("name")))
    if not runs and not problems:
        msg = f"{path} lists no run: expected a line per run below the names of the columns."
        raise ValueError(msg)
    check_pairs([run for _, run in runs], f"Correct {path}: a line's files belong together.")
    _check_atlas_names(path, runs)
    numbers: dict[str, list[str]] = {}
    for number, run in runs:
        numbers.setdefault(run_name(run), []).append(str(number))
    same = {name: listed(lines) for name, lines in numbers.items() if len(lines) > 1}
    for number, run in runs:
        if (name := run_name(run)) in same:
            reason = f"would be written under the name {name}, as would all of the lines {same[name]}"
            reason = f"line {number} of {path} {reason}: give unique ones in the column name"
            problems.append(Problem(run.path, reason, run.name))
    return [run for _, run in runs if run_name(run) not in same], problems


def _is_known(column):
    return column in _COLUMNS or bool(_ATLAS.fullmatch(column))


def _check_atlas_names(path, runs):
    """Raise ValueError unless the column "atlas" has the same name in all lines, and none shares it."""
    for number, run in runs:
        names = [atlas.name for atlas in run.atlases]
        first = [atlas.name for atlas in runs[0][1].atlases]
        if names != first or len({name.casefold() for name in names}) < len(names):
            others = "" if names == first else f", and in line {runs[0][0]} {listed(first)}"
            msg = (
                f"{path}: the atlases of line {number} are called {listed(names)}{others}. Expected the same names in "
                "all lines, each once: call the column atlas_NAME instead of atlas."
            )
            raise ValueError(msg)


def _without_empty_end(cells):
    """The cells up to the last one that isn't empty: some programs end each row with a tab."""
    return cells[: next((k for k in range(len(cells), 0, -1) if cells[k - 1]), 0)]


def _run_of_row(row, folder, own):
    if "bold" not in row:
        msg = "has no bold image"
        raise ValueError(msg)
    if missing := [column for column in own if column not in row]:
        msg = f"has no {missing[0]}: expected a file, as in the other lines"
        raise ValueError(msg)
    files = {column: folder / row[column] for column in ("bold", "confounds", "mask", *own) if column in row}
    for column, file in files.items():
        if not os.path.isfile(file):  # noqa: PTH113 - False for names that are too long
            reason = absence(file) or irregularity(file) or "isn't there"
            msg = f"names {'an' if column.startswith('a') else 'a'} {column} file that {reason}: {file}"
            raise ValueError(msg)
    name, t_r = row.get("name"), row.get("t_r")
    if name and not is_run_name(name):
        msg = f"has the name {shortened(repr(name), 200)}: expected letters, digits, and _ - + . between them"
        raise ValueError(msg)
    t_r = t_r and positive_seconds(t_r, "has the t_r")
    files = {column: str(file) for column, file in files.items()}
    atlases = []
    for column in (column for column in own if column.startswith("atlas")):
        image, lut = files.pop(column), files.pop(column.replace("atlas", "lut", 1), None)
        atlases.append(RunAtlas(_ATLAS.fullmatch(column)[2] or atlas_name(image), image, lut))
    run = Run(files.pop("bold"), **files, t_r=t_r, name=name, atlases=tuple(atlases))
    return replace(run, folder=run_folder(run_name(run)))
