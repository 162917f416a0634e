"""An atlas brought to a run's grid, and the plan compiled from it."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property

import nibabel as nib
import numpy as np
import pandas as pd

from gpumask.engine.plan import Plan
from gpumask.images.grid import Grid
from gpumask.images.labels import Atlas, covered_voxels, lookup_table

_AT_TRANSFORM_TIME = (
    "Resampling {} at transform time...\n"
    "To avoid this warning, make sure to pass the images you want to transform to fit() first, "
    "or directly use fit_transform()."
)


@dataclass(frozen=True, eq=False)
class Placement:
    """What is extracted from the runs of one grid.

    Attributes
    ----------
    given : Atlas
        As the user gave it.
    atlas : Atlas
        As it is applied.
    grid : Grid
        Of the runs.
    table : pandas.DataFrame
        Look-up table: the background's row, if there is one, then a row per column of the output.
    ids : ndarray, shape (n_regions,)
        Label of each column.
    plan : Plan
    key : str or None
        Hash of the labels and mask, for caching.
    notes : list of (message, category)
        Warnings about regions that were lost, to be given at each transform.
    """

    given: Atlas
    atlas: Atlas
    grid: Grid
    table: pd.DataFrame
    ids: np.ndarray
    plan: Plan
    key: str | None
    notes: list = field(default_factory=list)

    @cached_property
    def region_atlas(self):
        """The labels as they are applied, masked: an image of int32, or of their dtype where that can't hold them."""
        masked = self.atlas.masked_labels
        fits = masked.min() >= -(2**31) and masked.max() < 2**31
        if fits and np.array_equal(masked, masked.astype(np.int32)):
            masked = masked.astype(np.int32)
        return nib.Nifti1Image(masked, self.atlas.grid.affine, dtype=masked.dtype)

    @cached_property
    def coverage(self):
        """Voxels of each region that lie in the mask and the runs' field of view, in the atlas's own grid."""
        voxels, covered = covered_voxels(self.given, self.atlas, self.grid, self.ids)
        names = self.table["name"][self.table["index"].isin(self.ids)].to_list()
        columns = {"index": self.ids.tolist(), "name": names, "voxels": voxels, "covered": covered}
        return pd.DataFrame(columns).assign(fraction=covered / np.maximum(voxels, 1))


def place(atlas, given, grid, lut, *, target, keep_masked, keep_all, compile_plan):
    """Bring an atlas to the grid where it meets the runs, and compile the plan.

    Parameters
    ----------
    atlas, given : Atlas
        As fitted, and as the user gave it.
    grid : Grid
        Of the runs.
    lut : pandas.DataFrame
        Look-up table of the fitted atlas.
    target : {"data", "labels", None}
        What is resampled to what.
    keep_masked, keep_all : bool
        Whether regions that the mask covers, or that were lost in any way, keep a column.
    compile_plan : callable
        Takes atlas, ids and grid; returns a plan and the hash of atlas and ids, or None.

    Returns
    -------
    Placement
    """
    notes, has_background = [], atlas.background in atlas.values

    def warn(message, category=UserWarning, **_):
        if not keep_all:
            notes.append((message, category))

    there = grid if target == "data" else atlas.grid
    if not atlas.grid.matches(there):
        atlas = atlas.resampled(there, warn)
    if atlas.mask is not None and not atlas.mask_grid.matches(there):
        atlas = atlas.with_mask_resampled(there)
        atlas.check_mask()
    ids = given.values[given.values != given.background] if keep_all else None
    if ids is None:
        ids = atlas.columns(keep_masked=keep_masked, warn=warn)
    plan, key = compile_plan(atlas, ids, grid)
    wanted = ids.tolist()
    if has_background:
        wanted = [atlas.background, *wanted]
    table = lookup_table(np.array(wanted, dtype=ids.dtype), atlas.background, lut=lut)
    table = table.set_index("index").loc[wanted].reset_index()
    return Placement(given, atlas, grid, table, ids, plan, key, notes)


def meet(atlas, grid, target):
    """Say how an atlas and a run's grid come together at transform time: a warning, or ValueError if they don't."""
    if target == "data":
        for name, there in (("labels", atlas.grid), ("mask", atlas.mask_grid)):
            if there is not None and not there.matches(grid):
                warnings.warn(_AT_TRANSFORM_TIME.format(name), stacklevel=5)
    elif target is None:
        differ = "different affine matrices" if grid.shape == atlas.grid.shape else "incompatible shapes"
        check_same_grids(f"Images have {differ}.", atlas.grid, data=grid)
    elif not atlas.grid.matches(grid):
        msg = (
            "Resampling images at transform time...\nTo avoid this warning, make sure to resample the images "
            "you want to transform to the shape of the maps or set resampling_target to 'data'."
        )
        warnings.warn(msg, stacklevel=5)


def check_same_grids(lead, labels, **others):
    """Raise ValueError, beginning with `lead`, if a grid differs from that of the labels; says in what."""
    errors = []
    for name, grid in others.items():
        if grid is None or grid.matches(labels):
            continue
        if grid.shape != labels.shape:
            errors.append(
                f"- labels and {name} do not have the same shape: {labels.shape} ({labels.name}) "
                f"and {grid.shape} ({grid.name})"
            )
        if not np.allclose(grid.affine, labels.affine, rtol=1e-5, atol=1e-5):
            errors.append(
                f"- labels and {name} do not have the same affine.\n"
                f"labels affine ({labels.name}):\n{labels.affine}\n{name} affine ({grid.name}):\n{grid.affine}"
            )
    if errors:
        remedy = "Pass resampling_target='data' or 'labels' to resample one to the other."
        raise ValueError("\n".join([lead, *errors, remedy]))
