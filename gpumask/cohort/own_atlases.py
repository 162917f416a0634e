"""Atlases of which each run has an image of its own: one list of columns for all runs."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpumask.bids.runs import Run
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.images.dense_atlas import DenseAtlas, load_dense_atlas
from gpumask.images.grayordinates import is_dense
from gpumask.images.labels import Atlas, load_atlas
from gpumask.images.lookup import read_lookup_table
from gpumask.images.opening import image_hashes
from gpumask.inputs import sha256
from gpumask.process import collect_warnings


@dataclass(frozen=True)
class OwnAtlas:
    """An atlas of a cohort of which each run has an image of its own: see `Run.atlases`.

    Its files are inputs of the runs and not part of the configuration: if one changes, that run alone is made again.

    Attributes
    ----------
    name : str
        As in `AtlasFile`.
    background : int or float
    grayordinates : bool
        Whether the images are dense labels (.dlabel.nii), and not label images of volumes.
    columns : tuple of (number, str)
        Label and name of each region, by label: the columns of every run. See `with_columns`.
    """

    name: str
    background: float = 0
    grayordinates: bool = False
    columns: tuple[tuple[float, str], ...] = ()
    kind = "labels"

    @property
    def is_dense_labels(self) -> bool:
        """See `AtlasFile`."""
        return self.grayordinates

    @property
    def origin(self) -> str:
        """How messages call its files."""
        return f"{self.name} (a file of each run)"

    @property
    def options(self) -> dict[str, Any]:
        """See `AtlasFile`."""
        regions = hashlib.sha256(json.dumps(self.columns).encode()).hexdigest()[:16]
        of_dense = {"elements": "grayordinates"} if self.grayordinates else {}
        return {"background_label": self.background, "regions": regions, **of_dense}

    @property
    def named_by(self) -> str:
        """Where the names of the columns are from."""
        return f"{len(self.columns)} regions of all runs"

    def with_kind(self) -> "OwnAtlas":
        """See `AtlasFile`."""
        return self


def own_atlases(runs: Iterable[Run]) -> tuple[OwnAtlas, ...]:
    """The atlases of runs, which all have some of the same names; without columns, see `with_columns`."""
    first = next(iter(runs), None)
    return tuple(OwnAtlas(own.name, grayordinates=is_dense(own.path)) for own in (first.atlases if first else ()))


def file_of(atlas: OwnAtlas, run: Run) -> AtlasFile:
    """A run's file of an atlas; ValueError if it has none, or one of another kind than the other runs."""
    own = next((own for own in run.atlases if own.name == atlas.name), None)
    if own is None:
        msg = f"{run.path} has no atlas of its own called {atlas.name}."
        raise ValueError(msg)
    file = AtlasFile(own.path, own.lut, atlas.name, atlas.background, kind="labels")
    if file.grayordinates != atlas.grayordinates:
        kinds = ("a label image of volumes", "dense labels (.dlabel.nii)")
        msg = f"{file.path} isn't {kinds[atlas.grayordinates]}, expected the same kind of file for all runs."
        raise ValueError(msg)
    return file


def load_file(file: AtlasFile) -> Atlas | DenseAtlas:
    """Load a run's file."""
    return (load_dense_atlas if file.grayordinates else load_atlas)(file.path, file.background)


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
    files, notes = [], []
    for run in runs:
        try:
            files.append(file_of(atlas, run))
        except ValueError as error:
            notes.append(f"{error} Its labels have no column.")
    tables = list(dict.fromkeys(os.fspath(file.lut) for file in files if file.lut))
    if tables and (without := [file.path for file in files if not file.lut]):
        msg = f"{without[0]} has no look-up table, but other runs have one: {tables[0]}. Give all one."
        raise ValueError(msg)
    names = _joined(_rows_of_tables(tables) if tables else _labels_of_images(files, notes), atlas.background)
    if not names:
        msg = " ".join([f"No run has a label of the atlas {atlas.name}.", *notes[:1]])
        raise ValueError(msg)
    if not tables:
        what = f"{len(names)} columns, one per label in the atlases of these {len(files)} runs"
        table = f"A look-up table (--lut, or the column lut_{atlas.name} in a list of runs)"
        notes.append(f"{what}. Other runs may get others. {table} makes them the same.")
    return replace(atlas, columns=tuple(sorted(names.items()))), notes


def _joined(named: Iterable[tuple[str, Mapping[float, str]]], background: float) -> dict[float, str]:
    """The name of each label by files, each with its path and names; ValueError if two name a label differently."""
    names: dict[float, tuple[str, str]] = {}
    for path, own in named:
        for label, name in own.items():
            if label == background:
                continue
            before, other = names.setdefault(label, (name, path))
            if before != name:
                msg = (
                    f"{path} calls the region {label} {name!r}, but {other} calls it {before!r}. Expected the same "
                    "names for all runs."
                )
                raise ValueError(msg)
    return {label: name for label, (name, _) in names.items()}


def _rows_of_tables(paths: Iterable[str]) -> Iterator[tuple[str, dict[float, str]]]:
    by_content: dict[str, str] = {}
    for path in paths:
        by_content.setdefault(sha256(path), path)
    for path in by_content.values():
        table = read_lookup_table(path)
        yield path, dict(zip(table["index"], table["name"], strict=True))


def _labels_of_images(files: Iterable[AtlasFile], notes: list[str]) -> Iterator[tuple[str, dict[float, str]]]:
    """Names of the labels that occur in each image: grayordinates have them; a volume's are the labels."""
    seen = set()
    for file in {file.path: file for file in files}.values():
        try:
            content = tuple(image_hashes(file.path).values())
            if content in seen:
                continue
            with collect_warnings():  # each run has them
                atlas = load_file(file)
        except (OSError, ValueError, TypeError) as error:
            notes.append(f"{error} Its labels have no column.")
            continue
        seen.add(content)
        table = atlas.named_table if isinstance(atlas, DenseAtlas) else {"index": [], "name": []}
        given = dict(zip(table["index"], table["name"], strict=True))
        labels = (int(label) if label == int(label) else label for label in atlas.values.tolist())
        yield os.fspath(file.path), {label: given.get(label, str(label)) for label in labels}
