"""Cuts through regions of volumes, over an image: where they are, and how they are drawn."""

from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import FigureBase

_SIDES = (("P", "A"), ("L", "R"), ("L", "R"))  # at the left and right of cuts across x, y and z, in RAS+


def draw_cuts(
    figure: "FigureBase",
    labels: np.ndarray,
    image: np.ndarray | None,
    affine: np.ndarray,
    *,
    background_label: float = 0,
    cmap: "str | Colormap" = "hsv",
    mask: np.ndarray | None = None,
    cuts: np.ndarray | None = None,
) -> None:
    """Draw cuts through regions, over an image. Left is left.

    Parameters
    ----------
    figure : matplotlib Figure or SubFigure
        Empty. Its background should be black.
    labels : ndarray, shape (x, y, z)
        A number per region.
    image : ndarray, shape (x, y, z), or None
        Image below the regions.
    affine : ndarray, shape (4, 4)
        From voxels to mm. The cuts are along the axes of the array, reoriented to be close to RAS+.
    background_label : number
        Label that isn't a region.
    cmap : str or matplotlib Colormap
    mask : ndarray, shape (x, y, z), optional
        Its outline is drawn.
    cuts : ndarray of int, shape (n_rows, 3), optional
        Where rows of cuts are, along each axis of the reoriented array; see `cuts_through_each`. If None, a row
        through the middle of the regions.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    labels, affine = np.asarray(labels), np.asarray(affine)
    shape = labels.shape if image is None else np.shape(image)
    if labels.ndim != 3 or shape != labels.shape:
        msg = f"Expected labels and image of the same 3D shape, got {labels.shape} and {shape}."
        raise ValueError(msg)
    turn = nib.orientations.io_orientation(affine)
    affine = affine @ nib.orientations.inv_ornt_aff(turn, labels.shape)
    labels = nib.orientations.apply_orientation(labels, turn)
    image = None if image is None else nib.orientations.apply_orientation(image, turn)
    mask = None if mask is None else nib.orientations.apply_orientation(np.asarray(mask) != 0, turn)
    if cuts is None:
        inside = np.argwhere(labels != background_label)
        cuts = np.array([inside.mean(axis=0).round() if len(inside) else np.array(labels.shape) // 2], int)
    # Neighbouring labels are often neighbouring regions: shuffling gives them different colours.
    order = np.random.default_rng(0).permutation(256)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    grid = figure.subplots(len(cuts), 3, squeeze=False)
    for (row, axis), axes in np.ndenumerate(grid):
        at = cuts[row]
        rest = [a for a in range(3) if a != axis]
        style = {"origin": "lower", "aspect": sizes[rest[1]] / sizes[rest[0]]}
        if image is not None:
            axes.imshow(np.take(image, at[axis], axis).T, cmap="gray", **style)
        cut = np.take(labels, at[axis], axis).T
        colours = np.ma.masked_where(cut == background_label, order[np.abs(cut).astype(int) % 256])
        axes.imshow(colours, cmap=cmap, vmin=0, vmax=255, alpha=0.6, interpolation="nearest", **style)
        if mask is not None:
            draw_outline(axes, np.take(mask, at[axis], axis).T)
        mark_sides(axes, axis)
        axes.set_title(f"{'xyz'[axis]} = {round((affine @ [*at, 1])[axis])} mm", color="white")
        axes.set_axis_off()


def cuts_through_each(
    labels: np.ndarray, affine: np.ndarray, background_label: float = 0, most: int = 6
) -> tuple[np.ndarray, int]:
    """Choose rows of cuts that show as many regions as possible, each near its largest section.

    Each cut is the one that shows most of the regions that those before it don't; without any left, another one.

    Parameters
    ----------
    labels, affine, background_label
        See `draw_cuts`.
    most : int
        Rows at most.

    Returns
    -------
    cuts : ndarray of int, shape (n_rows, 3)
        For `draw_cuts`.
    n_hidden : int
        Regions that no cut shows.
    """
    labels = nib.orientations.apply_orientation(np.asarray(labels), nib.orientations.io_orientation(affine))
    places = np.argwhere(labels != background_label)
    if not len(places):
        return np.array([labels.shape]) // 2, 0
    _, regions = np.unique(labels[tuple(places.T)], return_inverse=True)
    sections = [np.zeros((size, regions.max() + 1), int) for size in labels.shape]  # voxels of regions in cuts
    for own, at in zip(sections, places.T, strict=True):
        np.add.at(own, (at, regions), 1)
    shows = [2 * own >= own.max(axis=0) for own in sections]
    shown, cuts = np.zeros(regions.max() + 1, bool), list[list[int]]()
    while len(cuts) < most and not shown.all():
        row: list[int] = []
        for of_axis, own in zip(shows, sections, strict=True):
            new = np.count_nonzero(of_axis & ~shown, axis=1)
            others = ~np.isin(np.arange(len(own)), [earlier[len(row)] for earlier in cuts])
            best = np.lexsort((own.sum(axis=1), np.count_nonzero(of_axis, axis=1), others, new))[-1]
            row.append(int(best))
            shown |= of_axis[best]
        cuts.append(row)
    return np.array(cuts), int(np.count_nonzero(~shown))


def draw_outline(axes: Any, mask: np.ndarray) -> None:
    """Draw the outline of a cut through a mask, if there is one."""
    if np.ptp(mask := mask.astype(float)):
        axes.contour(mask, levels=[0.5], colors="white", linewidths=1)


def mark_sides(axes: Any, axis: int) -> None:
    """Name the sides of a cut of a volume in RAS+, across `axis`: L and R, or P and A."""
    for side, at in zip(_SIDES[axis], (0.01, 0.99), strict=True):
        place = {"transform": axes.transAxes, "ha": "left" if at < 0.5 else "right", "va": "top"}
        axes.text(at, 0.98, side, color="white", fontsize=9, fontweight="bold", **place)
