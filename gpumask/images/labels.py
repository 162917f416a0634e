"""Atlases: label volumes and their masks."""

import contextlib
import math
import mmap
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gpumask import process
from gpumask.images.grid import Grid, resample_nearest
from gpumask.images.opening import ImageLike
from gpumask.images.volumes import check_3d, load_volume, open_volumes

_HUGE = 4 << 20  # bytes from which on NumPy requests huge pages


@dataclass(frozen=True, eq=False)
class Atlas:
    """A label volume on its grid, and its mask.

    Attributes
    ----------
    labels : ndarray, shape (x, y, z)
        Label of each voxel.
    grid : Grid
    background : number
        Label to ignore.
    mask : ndarray of bool, shape (x, y, z), or None
        Voxels outside the mask belong to no region. Until `with_mask_resampled`, its grid may differ from the labels'.
    mask_grid : Grid or None
    """

    labels: np.ndarray
    grid: Grid
    background: float = 0
    mask: np.ndarray | None = None
    mask_grid: Grid | None = None

    @cached_property
    def values(self) -> np.ndarray:
        """Finite labels that occur, including the background, sorted."""
        return unique_labels(self.labels)

    @property
    def masked_labels(self) -> np.ndarray:
        """The labels, with the background outside the mask, which must be on the same grid."""
        return self.labels if self.mask is None else np.where(self.mask, self.labels, self.background)

    def resampled(self, grid: Grid, warn: Callable[..., object] = process.warn) -> "Atlas":
        """Return the atlas with its labels on another grid (nearest voxel).

        Parameters
        ----------
        grid : Grid
        warn : callable
            Called with a message and a category if labels disappear.

        Raises
        ------
        ValueError
            If no label is left.
        """
        before, labels = self.values, resample_nearest(self.labels, self.grid, grid)
        after = unique_labels(labels)
        if len(after) <= 1:
            msg = (
                f"No label left after resampling the labels image. {self.grid.name} and {grid.name} may lie in "
                "different spaces: compare their affines."
            )
            raise ValueError(msg)
        lost = set(before.tolist()) - set(after.tolist())
        if lost:
            msg = (
                "After resampling the label image to the data image, "
                f"the following labels were removed: {lost}. "
                f"Label image only contains {len(after)} labels (including background)."
            )
            warn(msg, UserWarning)
        return replace(self, labels=labels, grid=replace(grid, name=self.grid.name))

    def with_mask_resampled(self, grid: Grid) -> "Atlas":
        """Return the atlas with its mask on another grid (nearest voxel); ValueError if the mask is empty there."""
        assert self.mask is not None
        assert self.mask_grid is not None
        mask, mask_grid = resample_mask(self.mask, self.mask_grid, grid)
        return replace(self, mask=mask, mask_grid=mask_grid)

    def share_inside(self, grid: Grid) -> float:
        """Return the share of the labelled voxels whose centres lie in the field of view of a grid."""
        corners = Grid((2, 2, 2), grid.affine @ _from_corners(grid.shape))
        ends = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(self.grid.shape)[:, None] - 1)
        there = np.linalg.solve(corners.affine, self.grid.affine @ np.vstack([ends, np.ones(8)]))
        if np.all((there >= 0) & (there <= 1)):  # saves looking at each voxel
            return 1.0
        labelled = self.labels != self.background
        inside = resample_nearest(np.ones(corners.shape, np.uint8), corners, self.grid).astype(bool)
        return int((labelled & inside).sum()) / max(int(labelled.sum()), 1)

    def check_mask(self) -> None:
        """Raise ValueError if no label but the background lies inside the mask."""
        if self.mask is not None and not np.any(self.labels[self.mask] != self.background):
            raise ValueError(_NO_LABEL_IN_MASK)

    def columns(self, *, keep_masked: bool, warn: Callable[..., object] = process.warn) -> np.ndarray:
        """Return the labels of the output's columns, in ascending order.

        Parameters
        ----------
        keep_masked : bool
            Whether labels that lie entirely outside the mask keep a column.
        warn : callable
            Called with a message and a category: about labels that the mask removes, or nilearn's FutureWarning about
            `keep_masked`.

        Returns
        -------
        ndarray, shape (n_regions,)

        Raises
        ------
        ValueError
            If no label is left.
        """
        before = self.values
        if keep_masked:
            msg = 'In version 0.15.0, "keep_masked_labels" parameter will be removed.'
            warn(msg, FutureWarning)
        after = before
        if self.mask is not None and not keep_masked:
            after = unique_labels(self.masked_labels)
            lost = set(before.tolist()) - set(after.tolist())
            if lost and len(after) == 1:
                raise ValueError(_NO_LABEL_IN_MASK)
            if lost:
                msg = (
                    "After applying mask to the labels image, the following labels were removed: "
                    f"{ {int(label) for label in lost} }. Out of {len(before)} labels, the masked labels image only "
                    f"contains {len(after)} labels (including background)."
                )
                warn(msg, UserWarning)
        return after[after != self.background]

    def painted(self, ids: Sequence[float] | np.ndarray, signals: np.ndarray, *, n_threads: int = 1) -> np.ndarray:
        """Paint region signals into volumes on the labels' grid: 0 outside the mask and outside the regions `ids`.

        Parameters
        ----------
        ids : sequence of numbers, ascending
            Label of each column of `signals`.
        signals : ndarray, shape (n_regions,) or (n_volumes, n_regions)
        n_threads : int
            Threads, each painting some of the volumes. Most of the time goes into the system's allocation of memory.

        Returns
        -------
        ndarray, shape (x, y, z) or (x, y, z, n_volumes), Fortran order
            In the signals' dtype.
        """
        atlas = self
        if self.mask_grid is not None and not self.mask_grid.matches(self.grid):
            atlas = self.with_mask_resampled(self.grid)
        labels, ids = atlas.masked_labels.ravel(order="F"), np.asarray(ids)
        voxels = np.arange(len(labels)) if 0 in ids else np.flatnonzero(labels)
        of_voxels = labels[voxels]
        column = np.minimum(np.searchsorted(ids, of_voxels), len(ids) - 1)
        known = ids[column] == of_voxels
        voxels, column = voxels[known], column[known]
        volumes = _zeros((*signals.shape[:-1], len(labels)), signals.dtype)

        def paint(volume, values):
            volume[voxels] = values[column]

        with ThreadPoolExecutor(n_threads) as threads:
            list(threads.map(paint, np.atleast_2d(volumes), np.atleast_2d(signals)))
        return volumes.T.reshape(self.grid.shape + signals.shape[:-1], order="F")


def _from_corners(shape):
    """Affine from the indices 0 and 1 along each axis to the outer faces of the first and the last voxel."""
    affine = np.diag([*shape, 1.0])
    affine[:3, 3] = -0.5
    return affine


def _zeros(shape, dtype):
    """Zeros whose pages take memory only once they are written to.

    For large arrays NumPy requests huge pages (2 MiB), and a single voxel of a region fills a whole one: volumes took
    2.3 times the memory, and on a virtual machine up to 4 times the time.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if n_bytes >= _HUGE and hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # no huge pages, or too little memory: NumPy's error states the size
            pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages.madvise(mmap.MADV_NOHUGEPAGE)
            return np.frombuffer(pages, dtype).reshape(shape)
    return np.zeros(shape, dtype)


def covered_voxels(
    given: Atlas, placed: Atlas, grid: Grid, ids: np.ndarray, claimed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Count the voxels of each region, and those inside the run's field of view and the mask.

    Parameters
    ----------
    given : Atlas
        On its own grid, where voxels are counted.
    placed : Atlas
        As applied to the run: its mask, if any, is the one that counts.
    grid : Grid
        Field of view of the run.
    ids : ndarray, shape (n_regions,)
    claimed : ndarray of bool, shape `given.grid.shape`, optional
        Voxels that count as outside, as they belong to regions of another atlas.

    Returns
    -------
    voxels, covered : ndarray of int64, shape (n_regions,)
    """
    inside = covered_part(given.grid, grid, placed.mask, placed.mask_grid)
    if claimed is not None:
        inside &= ~claimed
    return label_counts(given.labels, ids), label_counts(given.labels[inside], ids)


def label_counts(labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Count how often each of `ids` occurs among labels: int64, shape (n_regions,)."""
    found, counts = np.unique(labels, return_counts=True)
    numbers = dict(zip(found.tolist(), counts.tolist(), strict=True))
    return np.array([numbers.get(label, 0) for label in ids.tolist()], dtype=np.int64)


def covered_part(grid: Grid, view: Grid, mask: np.ndarray | None = None, mask_grid: Grid | None = None) -> np.ndarray:
    """Find the voxels of a grid inside a field of view and a mask (nearest voxel).

    Parameters
    ----------
    grid, view : Grid
        The grid, and the field of view.
    mask : ndarray of bool, shape (x, y, z), optional
    mask_grid : Grid, optional

    Returns
    -------
    ndarray of bool, shape `grid.shape`
    """
    inside = np.ones(grid.shape, bool)
    covers = [(np.ones(view.shape, np.uint8), view)]
    if mask is not None and mask_grid is not None:
        covers.append((mask.view(np.uint8), mask_grid))
    for cover, there in covers:
        inside &= resample_nearest(cover, there, grid).astype(bool)
    return inside


def resample_mask(mask: np.ndarray, source: Grid, target: Grid) -> tuple[np.ndarray, Grid]:
    """Resample a mask to another grid (nearest voxel): mask and grid; ValueError if the mask is empty there."""
    resampled = resample_nearest(mask.view(np.uint8), source, target).astype(bool)
    _check_mask(resampled, source.name)
    return resampled, replace(target, name=source.name)


_NON_FINITE = "Non-finite values detected. These values will be replaced with zeros."
_BLOCK = 1 << 15  # voxels whose labels, in int64, fit into a core's cache
_NO_LABEL_IN_MASK = "No label left after applying mask to the labels image."


def unique_labels(labels: np.ndarray) -> np.ndarray:
    """Return the sorted distinct finite values of a label volume, in its dtype and native byte order.

    Whole numbers in a small range are marked, block by block: in a tenth of the time of the sort that others need.
    """
    flat = labels.ravel(order="K")
    flat = flat.astype(flat.dtype.newbyteorder("="), copy=False)
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)] if not np.isfinite(flat).all() else flat
    if flat.size and flat.dtype.kind != "b":
        low, high = flat.min(), flat.max()
        if float(high) - float(low) < 1 << 20 and max(-float(low), float(high)) < 1 << 53:
            present = np.zeros(int(high) - int(low) + 1, bool)
            for start in range(0, flat.size, _BLOCK):
                block = flat[start : start + _BLOCK]
                whole = block.astype(np.int64)
                if flat.dtype.kind == "f" and not np.array_equal(whole, block):
                    break
                present[whole - int(low)] = True
            else:
                return (np.flatnonzero(present) + int(low)).astype(flat.dtype)
    return np.unique(flat)


def load_atlas(labels_img: ImageLike, background: float = 0) -> Atlas:
    """Load a label image.

    Parameters
    ----------
    labels_img : path or nibabel image
        3D, or 4D with one volume.
    background : number
        Label to ignore.

    Returns
    -------
    Atlas
        Without a mask. Non-finite labels become 0, with a warning.
        Labels that a scale has moved (3.00004) are rounded to whole numbers, with a warning, if every one lies within
        half a step of the scale of a whole number of its own. Other labels that aren't whole are kept, with a warning.

    Raises
    ------
    ValueError
        If the image only has the background, or the file is missing or can't be read as an image.
    TypeError
        If `labels_img` isn't an image, or has several volumes.
    """
    volumes = open_volumes(labels_img).downloaded()
    volume = load_volume(volumes)
    labels = volume.data
    if labels.dtype.kind == "f":
        labels = _whole_labels(labels, volumes.step, background, volume.name)
    if np.all(labels == background):
        msg = f"Image has no label. Every voxel of {volume.name} is background ({background})."
        raise ValueError(msg)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        process.warn(_NON_FINITE)
        labels = np.where(np.isfinite(labels), labels, 0)
    return Atlas(labels, volume.grid, background)


def _whole_labels(labels, step, background, name):
    """Round labels that only a scale can have moved from whole numbers; warn if some aren't whole."""
    with np.errstate(invalid="ignore"):  # of infinite labels
        if np.all((labels == np.rint(labels)) | ~np.isfinite(labels)):
            return labels
    values = unique_labels(labels).astype(np.float64)
    whole = np.rint(values) + 0.0  # no -0
    fractions = values[values != whole]
    some = ", ".join(map(repr, fractions[:3].tolist())) + (", ..." if len(fractions) > 3 else "")
    are = f"{len(fractions)} of {len(values)} labels in {name} aren't whole numbers ({some})."
    moved = _moved_by_scale(values, step)
    # A background that isn't whole is a value of the file: its user has dealt with them as they are.
    if moved and len(np.unique(whole)) == len(whole) and float(background).is_integer():
        process.warn(
            f"{are} The scale of the file has moved them; they are rounded to whole numbers from "
            f"{whole[0]:.0f} to {whole[-1]:.0f}. Save labels as integers without a scale."
        )
        return np.rint(labels) + 0.0
    process.warn(
        f"{are} Each value is a region of its own, and a look-up table of whole numbers has no names for them. Save "
        "labels as integers without a scale; if they were resampled, resample them again by nearest neighbour."
    )
    return labels


def _moved_by_scale(values, step):
    """Whether rounding to codes that differ by `step` explains that `values` aren't whole numbers.

    Half a step is the most that it moves a value; computing with a slope and an intercept in float32 adds its rounding.
    Where both reach 0.5, any value would do.
    """
    if step is None:
        return False
    most = step / 2 + 2 * np.finfo(np.float32).eps * np.max(np.abs(values))
    return most < 0.5 and bool(np.all(np.abs(values - np.rint(values)) <= most))


def load_mask(mask_img: ImageLike | Iterable[ImageLike], *, several: bool = True) -> tuple[np.ndarray, Grid]:
    """Load a mask: True where every volume of the image is finite and not 0.

    In an image of scaled integers without a 0, the value that stands for it is taken for 0, with a warning.

    Parameters
    ----------
    mask_img : path, nibabel image, or list of these
        3D or 4D.
    several : bool
        Whether it may have several volumes.

    Returns
    -------
    mask : ndarray of bool, shape (x, y, z)
    grid : Grid

    Raises
    ------
    ValueError
        If the mask is empty, or a file is missing or can't be read as an image.
    TypeError
        If `mask_img` isn't an image, or has the wrong number of dimensions.
    """
    volumes = open_volumes(mask_img).downloaded()
    if not several:
        check_3d(volumes)
    mask = np.ones(volumes.grid.n_voxels, bool)
    finite = True
    for chunk in volumes.chunks(1):
        values = chunk.data[0] if chunk.inter == 0 else chunk.slope * chunk.data[0] + chunk.inter
        if chunk.inter != 0 and chunk.data.dtype.kind in "iu" and not (values == 0).any():
            values = _with_zero(values, abs(chunk.slope), volumes.name)
        if values.dtype.kind == "f":
            finite = finite and bool(np.isfinite(values).all())
            values = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
        mask &= values.astype(bool)
    if not finite:
        process.warn(_NON_FINITE)
    _check_mask(mask, volumes.name)
    return mask.reshape(volumes.grid.shape, order="F"), volumes.grid


def _with_zero(values, step, name):
    """Set the values of the code next to 0 to 0, with a warning, in a scaled mask that has no 0."""
    moved = np.abs(values) <= step / 2 + 2 * np.finfo(np.float32).eps * np.max(np.abs(values))
    if not moved.any():
        return values
    process.warn(
        f"The mask {name} has no 0: the scale of the file has moved it to {float(values[moved][0])!r}. These "
        "voxels are outside the mask. Save masks as integers without a scale."
    )
    return np.where(moved, 0, values)


def _check_mask(mask, name):
    if not mask.any():
        msg = f"The mask is invalid as it is empty: it masks all data. No voxel of {name} is inside it."
        raise ValueError(msg)
