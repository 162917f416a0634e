"""What a process has loaded of an atlas: names and regions of labels or maps, of volumes or grayordinates, or seeds."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.own_atlases import OwnAtlas, load_file
from gpumask.engine.dense_regions import DenseLabelRegions, DenseMapRegions
from gpumask.engine.maps import MapRegions
from gpumask.engine.regions import LabelRegions, Regions
from gpumask.engine.spheres import SphereRegions
from gpumask.images.dense_atlas import DenseAtlas, load_dense_atlas, load_dense_maps
from gpumask.images.grayordinates import open_dense
from gpumask.images.grid import Grid
from gpumask.images.labels import load_atlas
from gpumask.images.lookup import UNKNOWN, disagreement, distinct_names, read_lookup_table, region_names
from gpumask.images.maps import load_maps
from gpumask.images.seeds import load_seeds
from gpumask.images.volumes import open_volumes
from gpumask.process import n_cores
from gpumask.text_tables import listed

_RESERVED = ["Node"]  # the name of a column
_KEPT_GRIDS = 2  # on which maps are kept; runs of a data set mostly share one


class LoadedAtlas(Protocol):
    """The interface of all kinds.

    Attributes
    ----------
    notes : list of str
        Messages about the names.
    kept_masks : int
        Masks for which a process keeps plans.
    """

    notes: list[str]
    kept_masks: int

    def names(self, ids: np.ndarray | None = None) -> tuple[list[float], list[str]]:
        """Label (or number) and column's name of each region, or of those of `ids`."""

    def within(self, mask: np.ndarray | None, mask_grid: Grid | None, grid: Grid | None) -> Regions:
        """The regions within a mask, for runs of a grid; without a grid, nothing is resampled to it in advance.

        Grayordinates have neither.
        """


def load_kind(file: AtlasFile, maps_strategy: str) -> LoadedAtlas:
    """Load an atlas of any kind.

    Raises
    ------
    ValueError, TypeError, OSError
        If a file is unusable, or image and look-up table don't fit.
    """
    if file.kind == "seeds":
        return _Seeds(file)
    if file.grayordinates:
        return _DenseMaps(file, maps_strategy) if file.kind == "maps" else _DenseLabels(file)
    return _Maps(file, maps_strategy) if file.kind == "maps" else _Labels(file)


class OwnLabels:
    """A run's own labels, with the columns of all runs."""

    kept_masks = 64

    def __init__(self, file: AtlasFile, own: OwnAtlas):
        self._columns = np.array([label for label, _ in own.columns])
        self._names = column_names(own)
        self._atlas = load_file(file)
        labels = [label for label in self._atlas.values.tolist() if label != file.background]
        others = [label for label in labels if label not in self._names]
        if len(others) == len(labels):
            msg = (
                f"{file.path} has no label that has a column. Its labels: {listed(map(str, others))}. Columns of the "
                f"atlas {own.name}: {listed(map(str, self._names))}. Give the table of this atlas."
            )
            raise ValueError(msg)
        without = f"{file.path} has {len(others)} label{'s' * (len(others) > 1)} without a column"
        rows = "The columns are the rows of the look-up table, or else the labels that the atlases had at the start."
        self.notes = [f"{without}: {listed(map(str, others))}. {rows}"] if others else []

    def names(self, ids=None):
        """See `LoadedAtlas`."""
        labels = (self._columns if ids is None else ids).tolist()
        return labels, [self._names[label] for label in labels]

    def within(self, mask, mask_grid, grid):
        """See `LoadedAtlas`."""
        if isinstance(self._atlas, DenseAtlas):
            return DenseLabelRegions(self._atlas, self._columns)
        masked = replace(self._atlas, mask=mask, mask_grid=mask_grid)
        return LabelRegions(masked, masked, self._columns)


def column_names(own: OwnAtlas) -> dict[float, str]:
    """Name of the column of each label."""
    labels, names = [label for label, _ in own.columns], [name for _, name in own.columns]
    return dict(zip(labels, distinct_names(names, labels, _RESERVED), strict=True))


class _Labels:
    kept_masks = 64

    def __init__(self, file):
        self._atlas = self._load(file)
        self._table = read_lookup_table(file.lut) if file.lut else self._own_table()
        values = self._atlas.values
        self._own = values[values != file.background]
        self.notes = _without_table(file, "regions are named by their labels") if self._table is None else []
        if self._table is not None:
            self.notes = [*self._disagreement(file), *_shared(file, *self._distinct(self._own))]

    def _load(self, file):
        return load_atlas(file.path, file.background)

    def _own_table(self):
        """Names that the image itself has, or None."""
        return

    def _disagreement(self, file):
        """Messages about image and table; ValueError if no row of the table matches a label."""
        values, table = self._atlas.values, self._table
        found = disagreement(values, file.background, table, image=str(file.path), table=_table_of(file))
        if found and found.nothing_matches:
            raise ValueError(found.message)
        notes = [found.message] if found else []
        rows = zip(table["index"], table["name"], strict=True)
        shifted = [n for n, name in rows if name.lower() == "background" and n in values]
        if wrong := [label for label in shifted if label != file.background]:
            notes.append(f"{_table_of(file)} calls label {wrong[0]} of {file.path} Background. Are its rows shifted?")
        return notes

    def _distinct(self, ids):
        names = region_names(ids, self._table)
        return names, distinct_names(names, ids.tolist(), _RESERVED)

    def names(self, ids=None):
        known = self._own if ids is None else np.union1d(self._own, ids)  # resampling may bring in 0 as a region
        names = dict(zip(known.tolist(), self._distinct(known)[1], strict=True))
        labels = self._own.tolist() if ids is None else ids.tolist()
        return labels, [names[label] for label in labels]

    def within(self, mask, mask_grid, grid):
        masked = replace(self._atlas, mask=mask, mask_grid=mask_grid)
        return LabelRegions(masked, masked)


class _DenseLabels(_Labels):
    def _load(self, file):
        return load_dense_atlas(file.path, file.background, file.label_map)

    def _own_table(self):
        return self._atlas.named_table

    def within(self, mask, mask_grid, grid):
        return DenseLabelRegions(self._atlas)


class _Numbered:
    """Regions numbered from 0, with a list of names."""

    def __init__(self, names):
        self._given = names
        self._names = distinct_names(names, range(len(names)), _RESERVED)

    def names(self, ids=None):
        numbers = list(range(len(self._names))) if ids is None else ids.tolist()
        return numbers, [self._names[number] for number in numbers]


class _Maps(_Numbered):
    kept_masks = 2  # plans have all weights: hundreds of MB

    def __init__(self, file, strategy):
        volumes = open_volumes(file.path)
        self._maps, self._solves, self._resampled = load_maps(volumes), strategy == "least_squares", []
        super().__init__(_names_of_maps(file, len(self._maps)) if file.lut else list(map(str, range(len(self._maps)))))
        without = _without_table(file, "maps are named by their numbers, from 0")
        self.notes = _shared(file, self._given, self._names) if file.lut else without
        self.notes += _timed(file, volumes.t_r)

    def within(self, mask, mask_grid, grid):
        of_mask = {"mask": mask, "mask_grid": mask_grid}
        return MapRegions(replace(self._on(grid), **of_mask), replace(self._maps, **of_mask), self._solves)

    def _on(self, grid):
        """The maps on the grid of runs, which are kept: resampling takes seconds, and each run may have a mask."""
        if grid is None:
            return self._maps
        for maps in (self._maps, *self._resampled):
            if maps.grid.matches(grid):
                return maps
        maps = self._maps.resampled(grid, n_threads=n_cores())
        self._resampled = [maps, *self._resampled][:_KEPT_GRIDS]
        return maps


class _DenseMaps(_Numbered):
    kept_masks = 2  # as of _Maps

    def __init__(self, file, strategy):
        image = open_dense(file.path, ("scalars", "series"))
        maps = load_dense_maps(image)
        super().__init__(_names_of_maps(file, len(maps)) if file.lut else maps.names)
        self._regions = DenseMapRegions(maps, strategy == "least_squares")
        self.notes = [*_shared(file, self._given, self._names), *_timed(file, image.t_r)]

    def within(self, mask, mask_grid, grid):
        return self._regions


class _Seeds(_Numbered):
    kept_masks = 64

    def __init__(self, file):
        seeds = load_seeds(file.path)
        if file.radius is not None and None not in seeds.radii:
            msg = f"{file.path} has a radius for each seed, so radius={file.radius:g} (--radius) has no use: drop one."
            raise ValueError(msg)
        super().__init__(seeds.names)
        radii = [file.radius if radius is None else radius for radius in seeds.radii]
        self._spheres, self.notes = SphereRegions(seeds.coordinates, radii, file.allow_overlap), []

    def within(self, mask, mask_grid, grid):
        return replace(self._spheres, mask=mask, mask_grid=mask_grid)


def _names_of_maps(file, n):
    """Names of maps by their table; ValueError unless its rows are those of the maps, in their order."""
    table = read_lookup_table(file.lut)
    if len(table["index"]) != n:
        msg = (
            f"{file.lut} has {len(table['index'])} rows with a name, but {file.path} has {n} maps. Expected a row per "
            "map, in their order."
        )
        raise ValueError(msg)
    if wrong := [after for before, after in pairwise(table["index"]) if after <= before]:
        msg = f"{file.lut}: the index {wrong[0]} isn't larger than the one before. Expected rows in the maps' order."
        raise ValueError(msg)
    return table["name"]


def _timed(file, t_r):
    """Message about a repetition time in the header of maps."""
    if t_r is None:
        return []
    timed = f"{file.path} has a repetition time of {t_r:g} s in its header"
    return [f"{timed}. Is it a run, and not the maps of an atlas?"]


def _table_of(file):
    """Where names are from, for messages: a look-up table, or the file of grayordinates."""
    return str(file.lut or f"The label table of {file.path}")


def _without_table(file, consequence):
    return [f"{file.path}: no look-up table found: {consequence}."] * file.find_lut


def _shared(file, names, distinct):
    """Message about regions that share a name, which their columns therefore aren't called."""
    counts = Counter(names)
    shared = [name for name, count in counts.items() if count > 1 and name != UNKNOWN]
    if not shared:
        return []
    what = f"{file.lut or file.path} has several regions called {listed(shared)}"
    return [f"{what}. Their columns have the label too: '{distinct[names.index(shared[0])]}'."]
