"""Regions of several label images, or dense ones, as one atlas; voxels of several belong to the first image."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from gpumask.engine.dense_regions import DenseLabelRegions, DenseLabelsOnRun
from gpumask.engine.regions import LabelRegions, LabelsOnGrid, RegionsOnGrid
from gpumask.images.combined_atlas import CombinedAtlas, numbered
from gpumask.images.lookup import plain_label
from gpumask.kernels.segments import Segments
from gpumask.text_tables import listed


@dataclass(frozen=True, eq=False)
class CombinedOnGrid(RegionsOnGrid):
    """The regions of all parts on the grid of the runs.

    Attributes
    ----------
    combined : CombinedAtlas
    parts : tuple of LabelsOnGrid or DenseLabelsOnRun
        Each part as it is without the others.
    labels : tuple of ndarray
        Of each part, the labels of the regions that have a column.
    lost : tuple of int
        Of each part, number of voxels on `grid` that belong to parts named before.
    """

    combined: CombinedAtlas
    parts: tuple[LabelsOnGrid | DenseLabelsOnRun, ...]
    labels: tuple[np.ndarray, ...]
    lost: tuple[int, ...]

    @property
    def explanation(self) -> list[str]:
        """How many voxels parts lost to others; see `RegionsOnGrid.explanation`."""
        names = [part.grid.name for part in self.combined.parts]
        lost = [(name, n) for name, n in zip(names, self.lost, strict=True) if n]
        return [f"{n} {self.grid.elements} of {name} belong to regions of atlases named before it" for name, n in lost]

    @property
    def overlaps(self) -> list[str]:
        """See `RegionsOnGrid`."""
        return self.combined.overlaps

    @property
    def origins(self) -> list[dict[str, Any]]:
        """The image of each region ("atlas"), by the name of its file, and its label there ("label")."""
        names = [Path(part.grid.name).name for part in self.combined.parts]
        return [
            {"atlas": name, "label": plain_label(label)}
            for name, labels in zip(names, self.labels, strict=True)
            for label in labels.tolist()
        ]

    @cached_property
    def image(self) -> nib.Nifti1Image:
        """The number of its column, from 1, in each region's voxels: int32. Not for grayordinates."""
        numbers = np.zeros(self.grid.n_voxels, np.int32)
        numbers[self.segments.indices] = np.repeat(np.arange(1, len(self.ids) + 1, dtype=np.int32), self.counts)
        return nib.Nifti1Image(numbers.reshape(self.grid.shape, order="F"), self.grid.affine)

    @cached_property
    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """See `RegionsOnGrid`. Voxels are counted on each part's own grid, and those of other parts aren't covered."""
        each = zip(self.parts, self.combined.claimed, self.labels, strict=True)
        voxels, covered = zip(*(part.coverage_without(*of_part) for part, *of_part in each), strict=True)
        return np.concatenate(voxels), np.concatenate(covered)

    @property
    def extent(self) -> tuple[float, str]:
        """See `RegionsOnGrid`. The part with the smallest share decides."""
        return min(part.extent for part in self.parts)


@dataclass(frozen=True, eq=False)
class CombinedRegions:
    """The regions of several label images. See `gpumask.engine.regions.Regions`.

    Each image is put on a run's grid as it is without the others; then voxels of several belong to the first one. The
    signals of a region that no other overlaps are therefore, bit for bit, those of its image alone.

    Attributes
    ----------
    parts : tuple of LabelRegions, or of DenseLabelRegions
    combined : CombinedAtlas
        Of the parts' atlases.
    """

    parts: Sequence[LabelRegions | DenseLabelRegions]
    combined: CombinedAtlas

    @property
    def grid(self) -> Any:
        """Grid of the first part."""
        return self.parts[0].grid

    @cached_property
    def identity(self) -> str:
        """Hash of everything that defines the regions."""
        return hashlib.blake2b("".join(part.identity for part in self.parts).encode(), digest_size=16).hexdigest()

    def on(self, grid: Any, target: str | None, keep: str) -> CombinedOnGrid:
        """Return the regions on the grid on which the runs are reduced.

        Parameters
        ----------
        grid : Grid or BrainModels
            Grid of the runs.
        target : {"data", "labels", None}
            As of the parts' `on`. With "labels" all parts must have the same grid, as a run is resampled once.
        keep : {"found", "masked", "all"}
            As of the parts' `on`. Regions whose voxels all belong to other parts aren't "found".

        Raises
        ------
        ValueError
            As of the parts' `on`; or if runs would be resampled to different grids.
        """
        if target == "labels":
            self.combined.check_one_grid()
        names = [atlas.grid.name for atlas in self.combined.parts]
        parts = [_placed(part, name, grid, target, keep) for part, name in zip(self.parts, names, strict=True)]
        notes = [
            (f"{name}: {note}", kind) for name, part in zip(names, parts, strict=True) for note, kind in part.notes
        ]
        taken = np.zeros(max(part.segments.n_needed for part in parts), bool)
        all_labels, ids, indices, counts, lost = [], [], [], [], []
        known = zip(names, parts, self.combined.labels, self.combined.offsets, strict=True)
        for name, part, labels, offset in known:
            voxels, region = part.segments.indices, np.repeat(np.arange(len(part.ids)), part.counts)
            # Where the background isn't 0, resampling makes a region of the 0 outside the image.
            columns = np.isin(part.ids, labels)
            free = ~taken[voxels]
            lost.append(int((~free & columns[region]).sum()))
            n_left = np.bincount(region[free], minlength=len(part.ids))
            if keep == "found" and (emptied := columns & (n_left == 0)).any():
                what = f"{name}: these labels have no voxel outside regions of atlases named before it"
                notes.append((f"{what}: {listed(map(plain_label, part.ids[emptied].tolist()))}.", UserWarning))
                columns &= ~emptied
            kept = free & columns[region]
            taken[voxels[kept]] = True
            all_labels.append(part.ids[columns])
            ids.append(numbered(part.ids[columns], offset))
            indices.append(voxels[kept])
            counts.append(n_left[columns])
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        return CombinedOnGrid(
            grid,
            parts[0].grid,
            Segments(np.concatenate(indices), offsets),
            np.concatenate(ids),
            tuple(dict.fromkeys(name for part in parts for name in part.resampled)),
            notes,
            self.combined,
            tuple(parts),
            tuple(all_labels),
            tuple(lost),
        )


def _placed(part, name, *options):
    """A part on the grid; its errors name it."""
    try:
        return part.on(*options)
    except ValueError as error:
        if name in str(error):
            raise
        msg = f"{name}: {error}"
        raise ValueError(msg) from error
