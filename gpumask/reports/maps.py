"""HTML report of a masker of maps: each map over a volume of the run, the parameters, and a table of the maps."""

import html
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np

from gpumask.images.maps import Maps
from gpumask.images.volumes import open_volumes
from gpumask.reports.cuts import draw_outline, mark_sides
from gpumask.reports.figures import new_figure
from gpumask.reports.masker import Report, as_picture, mask_on, report_page


def maps_report(
    masker: Any,
    maps: Maps,
    run: Any = None,
    title: str | None = None,
    displayed: Any = 10,
    removed: Sequence[str] = (),
) -> Report:
    """Make the report of a fitted masker of maps.

    Parameters
    ----------
    masker : NiftiMapsMasker
        Fitted. After a `transform`, the report describes it.
    maps : Maps
        One per column.
    run : path, nibabel image or list of 3D images, optional
        Its first volume is shown below the maps, if it has their grid.
    title : str, optional
        If None, the class's name.
    displayed : int, list or array of int, or "all"
        Number of maps to draw, or their columns.
    removed : sequence of str
        Names of the maps without a column.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If `displayed` has another type, or a column that there isn't.
    ImportError
        If matplotlib is missing.
    """
    columns = _columns(displayed, len(maps))
    images = _under(run, maps), mask_on(masker.mask_img_, maps.grid)
    figure = _figure(maps, columns, list(masker.get_feature_names_out()), *images, masker.cmap)
    size = abs(np.linalg.det(maps.grid.affine[:3, :3]))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=n>{len(voxels)}</td><td class=n>{len(voxels) * size:.0f}</td>"
        f"<td class=n>{weights.min(initial=0):.3g}</td><td class=n>{weights.max(initial=0):.3g}</td></tr>"
        for name, (voxels, weights) in zip(masker.get_feature_names_out(), maps, strict=True)
    )
    heads = ("voxels", "mm<sup>3</sup>", "lowest", "highest weight")
    head = f"<tr><th>name</th>{''.join(f'<th class=n>{one}</th>' for one in heads)}</tr>"
    table = f"<div class='wide'><table>{head}{rows}</table></div>"
    return report_page(masker, title, as_picture(figure), table, removed=removed)


def _columns(displayed, n):
    if isinstance(displayed, str) and displayed == "all":
        return list(range(n))
    if isinstance(displayed, (int, np.integer)) and not isinstance(displayed, bool) and displayed >= 0:
        return list(range(min(displayed, n)))
    columns = np.asarray(displayed)
    if isinstance(displayed, (str, bool)) or columns.ndim != 1 or (columns.size and columns.dtype.kind not in "iu"):
        msg = (
            "Parameter 'displayed_maps' of ``generate_report()`` should be either 'all' or a positive 'int', or a "
            f"list/array of ints. You provided a {type(displayed).__name__}: {displayed!r}."
        )
        raise TypeError(msg)
    lacking = [k for k in columns.tolist() if not 0 <= k < n]
    if lacking:
        msg = f"'displayed_maps' must be columns from 0 to {n - 1}, got {lacking}."
        raise ValueError(msg)
    return columns.tolist()


def _under(run, maps):
    """First volume of a run on the grid of the maps, or None."""
    if run is None:
        return None
    volumes = open_volumes(run)
    if not volumes.grid.matches(maps.grid):
        return None
    return next(volumes.chunks(1)).scaled_on_host().reshape(volumes.grid.shape, order="F")


def _figure(maps, columns, names, under, mask, cmap):
    """Figure of three cuts through the largest weight of each map, a row per map."""
    figure = new_figure((12, 4 * max(len(columns), 1)), facecolor="black")
    turn = nib.orientations.io_orientation(maps.grid.affine)
    affine = maps.grid.affine @ nib.orientations.inv_ornt_aff(turn, maps.grid.shape)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    under, mask = (
        None if image is None else nib.orientations.apply_orientation(image, turn) for image in (under, mask)
    )
    rows = figure.subplots(max(len(columns), 1), 3, squeeze=False)
    for axes in rows.flat:
        axes.set_axis_off()
    for row, column in zip(rows, columns, strict=False):
        data = maps.chosen(np.array([column])).dense()[..., 0]
        data = nib.orientations.apply_orientation(data, turn)
        peak = np.unravel_index(np.argmax(np.abs(data)), data.shape)
        limit = float(np.abs(data).max()) or 1.0
        for axis, axes in enumerate(row):
            rest = [a for a in range(3) if a != axis]
            style = {"origin": "lower", "aspect": sizes[rest[1]] / sizes[rest[0]]}
            if under is not None:
                axes.imshow(np.take(under, peak[axis], axis).T, cmap="gray", **style)
            cut = np.take(data, peak[axis], axis).T
            lowest = -limit if data.min() < 0 else 0.0
            axes.imshow(np.ma.masked_equal(cut, 0), cmap=cmap, vmin=lowest, vmax=limit, alpha=0.7, **style)
            if mask is not None:
                draw_outline(axes, np.take(mask, peak[axis], axis).T)
            mark_sides(axes, axis)
            where = f"{'xyz'[axis]} = {round((affine @ [*peak, 1])[axis])} mm"
            axes.set_title(f"{names[column]}, {where}" if axis == 0 else where, color="white")
    return figure
