"""Atlases of grayordinates: labels of `.dlabel.nii` or `.label.gii` files, and maps of dense scalars or series."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpumask import process
from gpumask.images.brain_models import BrainModels
from gpumask.images.cifti_headers import Header
from gpumask.images.errors import ImageError
from gpumask.images.grayordinates import DenseImage, open_dense
from gpumask.text_tables import listed

_LARGEST = 2**31  # a label is a 32-bit integer in CIFTI-2


@dataclass(frozen=True, eq=False)
class DenseAtlas:
    """One map of labels.

    Attributes
    ----------
    labels : ndarray of int64, shape (n_grayordinates,)
    grid : BrainModels
    background : number
        Label to ignore.
    table : dict
        "index", "name" and "color" (#rrggbb) of each label in the file's table, which may have more than the map.
    number : int
        Of the map in the file.
    header : Header
        Of the file.
    """

    labels: np.ndarray
    grid: BrainModels
    background: float
    table: dict[str, list]
    number: int
    header: Header

    @property
    def values(self) -> np.ndarray:
        """Labels that occur, including the background, sorted."""
        return self.counted[0]

    @cached_property
    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """`values`, and the number of grayordinates of each."""
        return np.unique(self.labels, return_counts=True)

    @property
    def named_table(self) -> dict[str, list]:
        """The rows of `table` whose label occurs, and that have a name."""
        found = set(self.values.tolist())
        rows = [k for k, label in enumerate(self.table["index"]) if label in found and self.table["name"][k].strip()]
        return {column: [cells[k] for k in rows] for column, cells in self.table.items()}

    def painted(self, ids: Sequence[int], signals: np.ndarray) -> np.ndarray:
        """Give each grayordinate the signal of its region, and 0 to those of no region in `ids`.

        Parameters
        ----------
        ids : sequence of int, ascending
            Label of each column of `signals`.
        signals : ndarray, shape (n_regions,) or (n_times, n_regions)

        Returns
        -------
        ndarray, shape (n_grayordinates,) or (n_times, n_grayordinates), Fortran order
            In the signals' dtype.
        """
        known = np.asarray(ids)
        column = np.minimum(np.searchsorted(known, self.labels), len(known) - 1)
        column[known[column] != self.labels] = len(known)  # a column of zeros
        series = np.concatenate([signals.T, np.zeros_like(signals.T[:1])])
        return series[column].T


def load_dense_atlas(labels_img: Any, background: float = 0, label_map: str | int | None = None) -> DenseAtlas:
    """Load a map of labels.

    Parameters
    ----------
    labels_img : path, nibabel.cifti2.Cifti2Image, nibabel.gifti.GiftiImage or DenseImage
        Dense labels.
    background : number
        Label to ignore.
    label_map : str or int, optional
        Name or index, from 0, of the map. If None, the file must have one map.

    Raises
    ------
    ImageError
        If the file isn't one of dense labels, is broken, has no label table, or labels that aren't whole numbers.
    ValueError
        If the file has several maps and none is chosen, the chosen one doesn't exist, or all is background.
    TypeError
        If `label_map` has another type.
    """
    image = open_dense(labels_img, ("labels",))
    number = map_number(image, label_map)
    named_map = list(image.header.columns.named_maps)[number]
    if not named_map.label_table:
        msg = f"{_of(image, number)} has no label table. Create the file again (wb_command -cifti-label-import)."
        raise ImageError(msg)
    values = image.column(number)
    if (n := int(np.isnan(values).sum())) > 0:
        msg = f"{_of(image, number)} has NaN as the label of {n} grayordinates, expected a whole number."
        raise ImageError(msg)
    whole = (values == np.rint(values)) & (np.abs(values) < _LARGEST)
    if not whole.all():
        some = listed(np.unique(values[~whole]).tolist())
        msg = f"{_of(image, number)} has labels that aren't whole numbers of 32 bits: {some}. Save the labels again."
        raise ImageError(msg)
    labels = values.astype(np.int64)
    if (labels == background).all():
        msg = f"Image has no label. Every grayordinate of {_of(image, number)} is background ({background})."
        raise ValueError(msg)
    entries = sorted(named_map.label_table.values(), key=lambda entry: entry.key)
    table: dict[str, list] = {
        "index": [int(entry.key) for entry in entries],
        "name": [str(entry.label or "") for entry in entries],
        "color": ["#" + "".join(map(_hexadecimal, (entry.red, entry.green, entry.blue))) for entry in entries],
    }
    return DenseAtlas(labels, image.grid, background, table, number, image.header)


def _hexadecimal(share):
    return f"{round(255 * min(max(float(share or 0), 0.0), 1.0)):02x}"


def _of(image, number):
    names = image.header.names
    return image.name if len(names) == 1 else f"The map {names[number]!r} of {image.name}"


def map_number(image: DenseImage, label_map: str | int | None) -> int:
    """Index of a map by its name or index; None stands for the only one. Errors as of `load_dense_atlas`."""
    names = image.header.names
    if label_map is None:
        if len(names) > 1:
            how = "choose one with label_map (--label-map), by name or index"
            msg = f"{image.name} has {len(names)} maps: {how}. {_maps(names)}"
            raise ValueError(msg)
        return 0
    if isinstance(label_map, str):
        if names.count(label_map) != 1:
            has = "no map" if label_map not in names else "several maps"
            msg = f"{image.name} has {has} called {label_map!r}. {_maps(names)}"
            raise ValueError(msg)
        return names.index(label_map)
    if isinstance(label_map, bool) or not isinstance(label_map, int | np.integer):
        msg = f"`label_map` must be a map's name or index, or None. Got: {type(label_map).__name__}"
        raise TypeError(msg)
    if not 0 <= label_map < len(names):
        msg = f"{image.name} has no map {label_map}. {_maps(names)}"
        raise ValueError(msg)
    return int(label_map)


def _maps(names):
    return "Its maps: " + ", ".join(f"{k} {name!r}" for k, name in enumerate(names)) + "."


@dataclass(frozen=True, eq=False)
class DenseMaps:
    """Maps of weights.

    Attributes
    ----------
    weights : ndarray of float64, shape (n_maps, n_grayordinates)
        Finite.
    grid : BrainModels
    names : list of str
        Of the maps; their numbers if the file has none.
    header : Header
        Of the file.
    """

    weights: np.ndarray
    grid: BrainModels
    names: list[str]
    header: Header

    def __len__(self) -> int:
        return len(self.weights)

    def painted(self, signals: np.ndarray) -> np.ndarray:
        """Return the sum of the maps, times their signals, in the signals' dtype; shapes as of `DenseAtlas.painted`."""
        with process.one_blas_thread:
            return (self.weights.T @ signals.T.astype(np.float64)).astype(signals.dtype).T


def load_dense_maps(maps_img: Any) -> DenseMaps:
    """Load maps of weights.

    Parameters
    ----------
    maps_img : path, nibabel.cifti2.Cifti2Image, nibabel.gifti.GiftiImage or DenseImage
        Dense scalars, or a dense series. Values that aren't finite count as 0, with a warning.

    Raises
    ------
    ImageError
        If the file is of another kind, or broken.
    ValueError
        If a map is 0 everywhere.
    """
    image = open_dense(maps_img, ("scalars", "series"))
    weights = np.empty((image.n_volumes, image.grid.n_grayordinates))
    weights[:] = image.rows(0, image.grid.n_grayordinates).T
    weights *= image.slope
    weights += image.inter
    finite = np.isfinite(weights)
    if not finite.all():
        process.warn(f"{image.name} has weights that aren't finite. They are replaced with zeros.")
        weights[~finite] = 0.0
    if empty := np.flatnonzero(~weights.any(axis=1)).tolist():
        msg = f"{image.name} has maps that are 0 everywhere: {listed(empty)}. Remove them."
        raise ValueError(msg)
    names = image.header.names or [str(k) for k in range(len(weights))]
    return DenseMaps(weights, image.grid, names, image.header)
