"""Atlases of which each run has a label image of its own: one list of columns for all runs."""

import os
from collections.abc import Iterable

from gpumask.bids.runs import Run
from gpumask.cohort.configuration import AtlasFile, OwnAtlas, sha256
from gpumask.images.labels import load_atlas
from gpumask.images.lookup import read_lookup_table
from gpumask.process import collect_warnings


def file_of(atlas: OwnAtlas, run: Run) -> AtlasFile:
    """A run's file of an atlas; ValueError if it has none."""
    for own in run.atlases:
        if own.name == atlas.name:
            return AtlasFile(own.path, own.lut, atlas.name, atlas.background, kind="labels")
    msg = f"{run.path} has no atlas of its own called {atlas.name}."
    raise ValueError(msg)


def with_columns(atlas: OwnAtlas, runs: Iterable[Run]) -> tuple[OwnAtlas, list[str]]:
    """The atlas with the columns that all runs get: the rows of the look-up tables, or else all labels of the images.

    Files of the same content are read once; one image at a time is in memory.

    Returns
    -------
    atlas : OwnAtlas
    notes : list of str
        Where the columns are from; warnings about images that can't be read, whose runs will fail.

    Raises
    ------
    ValueError
        If only some runs have a look-up table, tables name a label differently or aren't tables, or no label is left.
    """
    files = [file_of(atlas, run) for run in runs]
    tables = list(dict.fromkeys(os.fspath(file.lut) for file in files if file.lut))
    if tables and (without := [file.path for file in files if not file.lut]):
        msg = f"{without[0]} has no look-up table, but other runs have one: {tables[0]}. Give all one."
        raise ValueError(msg)
    names, notes = _names_of_tables(tables, atlas.background) if tables else _labels_of_images(files, atlas.background)
    if not names:
        msg = f"No run has a label of the atlas {atlas.name}."
        raise ValueError(msg)
    return OwnAtlas(atlas.name, atlas.background, tuple(sorted(names.items()))), notes


def _names_of_tables(tables, background):
    names: dict[float, tuple[str, str]] = {}
    seen = set()
    for path in tables:
        if (digest := sha256(path)) in seen:
            continue
        seen.add(digest)
        table = read_lookup_table(path)
        for label, name in zip(table["index"], table["name"], strict=True):
            before, other = names.setdefault(label, (name, path))
            if before != name and label != background:
                msg = (
                    f"{path} calls the region {label} {name!r}, but {other} calls it {before!r}. Expected the same "
                    "names for all runs."
                )
                raise ValueError(msg)
    return {label: name for label, (name, _) in names.items() if label != background}, []


def _labels_of_images(files, background):
    values, notes = {}, []
    for path in dict.fromkeys(file.path for file in files):
        try:
            if (digest := sha256(path)) not in values:
                with collect_warnings():  # each run has them
                    labels = load_atlas(path, background).values
                values[digest] = labels[labels != background].tolist()
        except (OSError, ValueError, TypeError) as error:
            notes.append(f"{error} Its labels have no column.")
    labels = {label for some in values.values() for label in some}
    notes.append(
        f"{len(labels)} columns, named by labels: all those of the {len(values)} atlases of runs, which have no "
        "look-up table."
    )
    return {label: str(int(label) if label == int(label) else label) for label in labels}, notes
