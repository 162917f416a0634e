"""Atlases for which each run has its own image; all runs get the same columns."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from gpumask.bids.content import check_content
from gpumask.bids.runs import Run
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.images.dense_atlas import DenseAtlas, load_dense_atlas
from gpumask.images.grayordinates import is_dense
from gpumask.images.labels import Atlas, load_atlas
from gpumask.images.lookup import UNKNOWN, read_lookup_table
from gpumask.images.opening import image_hashes
from gpumask.inputs import sha256
from gpumask.process import collect_warnings, in_threads, n_cores
from gpumask.text_tables import listed

_UNREADABLE = (OSError, ValueError, TypeError)  # errors of images and headers


@dataclass(frozen=True)
class OwnAtlas:
    """An atlas of a cohort for which each run has its own image: see `Run.atlases`.

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
    def images(self) -> tuple[str, ...]:
        """See `AtlasFile`: none are those of all runs."""
        return ()

    @property
    def origin(self) -> str:
        """How messages call its files."""
        return f"{self.name}, a file of each run"

    @property
    def options(self) -> dict[str, Any]:
        """See `AtlasFile`."""
        digest = hashlib.sha256(json.dumps(self.columns).encode()).hexdigest()[:12]
        of_dense = {"elements": "grayordinates"} if self.grayordinates else {}
        regions = f"{len(self.columns)} (SHA-256 {digest}...)"
        return {"background_label": self.background, "regions_of_all_runs": regions, **of_dense}

    @property
    def named_by(self) -> str:
        """Where the names of the columns are from."""
        return f"the tables or labels of all runs ({len(self.columns)} columns)"

    def with_kind(self) -> "OwnAtlas":
        """See `AtlasFile`."""
        return self


def own_atlases(runs: Iterable[Run]) -> tuple[OwnAtlas, ...]:
    """The atlases of runs, which all have some of the same names; without columns, see `with_columns`."""
    first = next(iter(runs), None)
    return tuple(OwnAtlas(own.name, grayordinates=is_dense(first.path)) for own in first.atlases) if first else ()


def file_of(atlas: OwnAtlas, run: Run) -> AtlasFile:
    """A run's file of an atlas; ValueError if it has none, or labels of grayordinates for volumes or vice versa."""
    own = next((own for own in run.atlases if own.name == atlas.name), None)
    if own is None:
        msg = f"{run.path} has no atlas of its own called {atlas.name}."
        raise ValueError(msg)
    file = AtlasFile(own.path, own.lut, atlas.name, atlas.background, kind="labels")
    if file.grayordinates != atlas.grayordinates:
        found, expected = ("volumes", "grayordinates")[:: 1 if atlas.grayordinates else -1]
        msg = f"{file.path} has labels of {found}, but {run.path} has {expected}. Give an atlas of {expected}."
        raise ValueError(msg)
    return file


def load_file(file: AtlasFile) -> Atlas | DenseAtlas:
    """Load a run's file.

    Raises
    ------
    ValueError, OSError, TypeError
        If it is unusable, or has labels that aren't whole numbers: they would be columns of all runs.
    """
    atlas = (load_dense_atlas if file.grayordinates else load_atlas)(file.path, file.background)
    if others := [label for label in atlas.values.tolist() if label != int(label)]:
        msg = (
            f"{file.path} has {len(others)} labels that aren't whole numbers: {listed(map(str, others))}. Save labels "
            "as integers; if they were resampled, resample them again by nearest neighbour."
        )
        raise ValueError(msg)
    return atlas


def with_columns(
    atlas: OwnAtlas,
    runs: Iterable[Run],
    progress: Callable[[int, int], object] = lambda done, total: None,
    n_threads: int | None = None,
) -> tuple[OwnAtlas, list[str]]:
    """The atlas with the columns that all runs get.

    They are the rows of the look-up tables that the runs are given. Without these, they are the labels that occur in
    any image; tables that are found next to the images, or the label tables of grayordinates, name them. Files of the
    same content are read once; each thread has one or two images in memory.

    Parameters
    ----------
    atlas : OwnAtlas
    runs : iterable of Run
    progress : callable, optional
        Called with the number of runs whose image has been read, from 0, and of all runs; not if tables have the rows.
    n_threads : int, optional
        Threads that read images. If None, one per core.

    Returns
    -------
    atlas : OwnAtlas
    notes : list of str
        Where the columns are from; warnings about images that can't be read, whose runs will fail.

    Raises
    ------
    ValueError
        If only some runs are given a look-up table, tables name a label differently or aren't tables, or no label is
        left.
    """
    runs, notes = list(runs), list[str]()
    given = {run.path: own.lut for run in runs for own in run.atlases if own.name == atlas.name}
    tables = list(dict.fromkeys(os.path.abspath(lut) for lut in given.values() if lut))  # noqa: PTH100
    if tables and (without := [path for path, lut in given.items() if not lut]):
        msg = (
            f"{without[0]} has no look-up table for the atlas {atlas.name}, but other runs have {tables[0]}. Give one "
            "for all runs, or for none."
        )
        raise ValueError(msg)
    if tables:
        names = _joined(_rows_of_tables(tables), atlas.background)
    else:
        names = _names_of_labels(atlas, runs, notes, progress, n_threads or n_cores())
    if not names:
        msg = " ".join([f"No run has a label of the atlas {atlas.name}.", *notes[:1]])
        raise ValueError(msg)
    if not tables:
        of_runs = "the atlas of this run" if len(runs) == 1 else f"the atlases of these {len(runs)} runs"
        what = f"{len(names)} columns, one per label in {of_runs}"
        table = f"A look-up table (--lut, or the column lut_{atlas.name} in a list of runs)"
        notes.append(f"{what}. Other runs may get other columns. {table} makes them the same.")
    return replace(atlas, columns=tuple(sorted(names.items()))), list(dict.fromkeys(notes))


def _joined(named: Iterable[tuple[str, dict[float, str]]], background: float) -> dict[float, str]:
    """The name of each label by files, each with its path and names; ValueError if two name a label differently."""
    names: dict[float, tuple[str, str]] = {}
    for path, own in named:
        for label, name in own.items():
            before, other = names.setdefault(label, (name, path))
            if before != name and label != background:
                msg = (
                    f"{path} calls the region {label} {name!r}, but {other} calls it {before!r}. Expected the same "
                    "names for all runs."
                )
                raise ValueError(msg)
    return {label: name for label, (name, _) in names.items() if label != background}


def _rows_of_tables(paths: Iterable[str]) -> Iterator[tuple[str, dict[float, str]]]:
    by_content: dict[str, str] = {}
    for path in paths:
        by_content.setdefault(sha256(path), path)
    for path in by_content.values():
        table = read_lookup_table(path)
        yield path, dict(zip(table["index"], table["name"], strict=True))


def _names_of_labels(atlas, runs, notes, progress, n_threads):
    """Name of each label that occurs in an image; adds to `notes` why an image can't be read."""
    labels, failed, named, tables = set(), set(), [], {}
    hashed = in_threads(functools.partial(_hashed, atlas), runs, n_threads)
    progress(0, len(runs))
    # Results are in the order of the runs, so that messages don't depend on the threads.
    for number, (file, content, found) in enumerate(in_threads(_read_first, _marked(hashed), n_threads), start=1):
        progress(number, len(runs))
        if content and content in failed:
            found = _labels_in(file)  # for the message, which names the file
        if isinstance(found, Exception):
            failed.add(content)
            notes.append(f"{str(found).removesuffix('.')}. Its labels have no column.")
            continue
        if found:
            labels.update(found[0])
            named += [(os.fspath(file.path), found[1])] * bool(found[1])
        if file.lut:
            tables[os.fspath(file.lut)] = None
    named += [(path, {label: rows[label] for label in labels & rows.keys()}) for path, rows in _rows_of_tables(tables)]
    known = _joined(named, atlas.background)
    nameless = {label: UNKNOWN if known else str(int(label)) for label in labels if label != atlas.background}
    return {int(label): name for label, name in {**nameless, **known}.items()}


def _hashed(atlas, run):
    """A run's file, and the hashes of its content; or an error, and None."""
    try:
        file = file_of(atlas, run)
        check_content(file.path)
        return file, tuple(image_hashes(file.path).values())
    except _UNREADABLE as error:
        return error, None


def _marked(hashed):
    """Files and their hashes, each with whether it is the first file of its content."""
    seen = {None}  # an error
    for file, content in hashed:
        yield file, content, content not in seen
        seen.add(content)


def _read_first(marked):
    """A file, its hashes, and the `_labels_in` it, or its error; None for a content that another file has."""
    file, content, is_first = marked
    return file, content, file if content is None else _labels_in(file) if is_first else None


def _labels_in(file):
    """Labels of an image, and the names that it gives them; or an error."""
    try:
        with collect_warnings():  # each run has them
            image = load_file(file)
    except _UNREADABLE as error:
        return error
    table = image.named_table if isinstance(image, DenseAtlas) else {"index": (), "name": ()}
    return image.values.tolist(), dict(zip(table["index"], table["name"], strict=True))
