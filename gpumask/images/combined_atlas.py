"""Several label images as one atlas: ids of all regions, and voxels (or grayordinates) that several images label."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpumask.images.dense_atlas import DenseAtlas
from gpumask.images.grid import resample_nearest
from gpumask.images.labels import Atlas, label_counts
from gpumask.images.lookup import plain_label
from gpumask.text_tables import listed

_LARGEST = 2**53  # up to which float64 has all whole numbers


@dataclass(frozen=True, eq=False)
class CombinedAtlas:
    """Label images, in order of precedence.

    A voxel that several images label belongs to the region of the first of them. The images may have different grids.

    Attributes
    ----------
    parts : sequence of Atlas, or of DenseAtlas

    Raises
    ------
    ValueError
        If labels are beyond 2**53, no voxel is left of a part, or meshes of grayordinates differ.
    """

    parts: Sequence[Atlas | DenseAtlas]

    def __post_init__(self):
        for part, labels in zip(self.parts, self.labels, strict=True):
            if max(abs(float(label)) for label in (labels[0], labels[-1])) > _LARGEST:
                msg = f"{part.grid.name} has labels from {labels[0]} to {labels[-1]}, expected none beyond 2**53."
                raise ValueError(msg)
        for k, (part, claimed) in enumerate(zip(self.parts, self.claimed, strict=True)):
            if claimed.all(where=part.labels != part.background):
                msg = (
                    f"Every region of {part.grid.name} lies inside those of {_earlier(self.parts[:k])}, named before "
                    "it. Name it first, or leave it out."
                )
                raise ValueError(msg)

    @cached_property
    def labels(self) -> tuple[np.ndarray, ...]:
        """Labels of each part's regions, ascending."""
        return tuple(part.values[part.values != part.background] for part in self.parts)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """What is added to each part's labels to make ids that differ from those of all other parts.

        It is 0, unless an earlier part's region has the id already. Then it is the largest id so far, and 1 - n more
        if the part's labels begin below 1, with n.
        """
        offsets, used = [], np.zeros(0)
        for labels in self.labels:
            offset = 0
            if np.isin(labels, used).any():
                offset = int(np.floor(used.max())) + max(0, 1 - int(np.floor(labels[0])))
            offsets.append(offset)
            used = np.concatenate([used, numbered(labels, offset)])
        return tuple(offsets)

    @cached_property
    def ids(self) -> tuple[np.ndarray, ...]:
        """Ids of each part's regions, in the order of `labels`."""
        return tuple(numbered(labels, offset) for labels, offset in zip(self.labels, self.offsets, strict=True))

    @cached_property
    def claimed(self) -> tuple[np.ndarray, ...]:
        """Voxels of each part, on its own grid, that a part named before labels too: arrays of bool."""
        return tuple(
            np.logical_or.reduce(
                [_labelled(before, part.grid) for before in self.parts[:k]] or [np.zeros_like(part.labels, bool)]
            )
            for k, part in enumerate(self.parts)
        )

    def check_one_grid(self) -> None:
        """Raise ValueError if the grids of parts differ, so that runs can't be resampled to all of them."""
        first: Any = self.parts[0].grid
        for grid in (part.grid for part in self.parts[1:]):
            if not first.matches(grid):
                msg = (
                    f"{first.name} and {grid.name} have different grids, so runs can't be resampled to both. Pass "
                    "resampling_target='data', or resample one of them first."
                )
                raise ValueError(msg)

    @property
    def notes(self) -> list[str]:
        """Messages about ids that aren't labels, and `overlaps`."""
        notes = []
        for k, (part, labels, offset) in enumerate(zip(self.parts, self.labels, self.offsets, strict=True)):
            if offset:
                ids = numbered(labels, offset)
                shared = f"{part.grid.name} has labels that {_earlier(self.parts[:k])} has too"
                notes.append(f"{shared}. Its regions have the ids {ids[0]} to {ids[-1]}: label + {offset}.")
        return [*notes, *self.overlaps]

    @cached_property
    def overlaps(self) -> list[str]:
        """A message for each part that loses voxels to earlier ones: counted on its grid."""
        notes = []
        for k, (part, labels, claimed) in enumerate(zip(self.parts, self.labels, self.claimed, strict=True)):
            labelled = part.labels != part.background
            if not (n := int((labelled & claimed).sum())):
                continue
            voxels, left = (label_counts(part.labels[of], labels) for of in (labelled, labelled & ~claimed))
            few = labels[2 * left < voxels].tolist()
            few_left = f" Less than half is left of the labels {listed(map(plain_label, few))}." if few else ""
            notes.append(
                f"{n} of the {int(labelled.sum())} {part.grid.elements} with a label in {part.grid.name} lie inside "
                f"regions of {_earlier(self.parts[:k])}, which come first and keep them.{few_left}"
            )
        return notes


def numbered(labels: np.ndarray, offset: int) -> np.ndarray:
    """Ids of labels: int64, or float64 if labels aren't whole."""
    whole = labels.astype(np.int64)
    return (whole if np.array_equal(whole, labels) else labels.astype(np.float64)) + offset


def _labelled(atlas, grid):
    """Where an atlas has a label, on a grid of its kind."""
    labelled = atlas.labels != atlas.background
    if isinstance(atlas, Atlas):
        return resample_nearest(labelled.view(np.uint8), atlas.grid, grid).view(bool)
    place = grid.positions_in(atlas.grid)
    return (place >= 0) & labelled[place]


def _earlier(parts):
    return listed(part.grid.name for part in parts)
