"""HTML report of a masker of spheres."""

import html
from typing import Any

import nibabel as nib
import numpy as np

from gpumask.reports.cuts import mark_sides
from gpumask.reports.figures import new_figure
from gpumask.reports.masker import Report, as_picture, regions_figure, report_page


def spheres_report(
    masker: Any, run: Any = None, title: str | None = None, displayed_spheres: str | int | list[int] = "all"
) -> Report:
    """Make the report of a fitted masker of spheres.

    Parameters
    ----------
    masker : NiftiSpheresMasker
        Fitted. After a `transform`, the report shows the voxels of the spheres; before, the seeds.
    run : path, nibabel image or list of 3D images, optional
        Shown below the spheres.
    title : str, optional
        If None, the class's name.
    displayed_spheres : "all", int, or list of int
        Spheres to show: all, the first ones, or those of these numbers.

    Returns
    -------
    Report

    Raises
    ------
    ImportError
        If matplotlib is missing.
    TypeError, ValueError
        If `displayed_spheres` is something else, or a sphere doesn't exist.
    """
    shown = _numbers(displayed_spheres, masker.n_elements_)
    seeds = np.array(masker.seeds_, dtype=float)
    done = hasattr(masker, "plan_")
    if done:
        image = masker.region_atlas_
        data = np.asanyarray(image.dataobj)
        spheres = nib.Nifti1Image(np.where(np.isin(data - 1, shown), data, 0), image.affine)
        figure = regions_figure(spheres, run, mask=masker.mask_img_, shows_each=True)
    else:
        figure = _seeds_figure(seeds[shown])
    names, radius = masker.get_feature_names_out(), "" if masker.radius is None else masker.radius
    rows = "".join(
        f"<tr><td class=n>{k}</td><td>{html.escape(str(names[k]))}</td>"
        + "".join(f"<td class=n>{at:g}</td>" for at in seeds[k])
        + f"<td class=n>{radius}</td><td class=n>{masker.plan_.counts[k] if done else ''}</td></tr>"
        for k in shown
    )
    heads = "".join(
        f"<th{'' if head == 'name' else ' class=n'}>{head}</th>"
        for head in ("sphere", "name", "x", "y", "z", "radius (mm)", "voxels")
    )
    return report_page(masker, title, figure, f"<div class='wide'><table><tr>{heads}</tr>{rows}</table></div>")


def _numbers(displayed, n):
    """The numbers of the spheres to show."""
    if isinstance(displayed, str) and displayed == "all":
        return list(range(n))
    if isinstance(displayed, int | np.integer) and not isinstance(displayed, bool):
        return list(range(min(displayed, n)))
    numbers = list(displayed) if isinstance(displayed, list | np.ndarray) else [None]
    if not all(isinstance(number, int | np.integer) for number in numbers):
        msg = f"`displayed_spheres` must be 'all', a number of spheres or a list of their numbers, got {displayed!r}."
        raise TypeError(msg)
    if unknown := [number for number in numbers if not 0 <= number < n]:
        msg = f"`displayed_spheres` has {unknown}, but the masker's spheres are 0 to {n - 1}."
        raise ValueError(msg)
    return numbers


def _seeds_figure(seeds):
    """PNG (base64) of the seeds, projected along each axis; in the colours of cuts, which are black on any page."""
    figure = new_figure((12, 4), facecolor="black")
    for axis, (axes, (across, up)) in enumerate(zip(figure.subplots(1, 3), ((1, 2), (0, 2), (0, 1)), strict=True)):
        # The first and the last colour of "hsv" are the same.
        axes.scatter(seeds[:, across], seeds[:, up], c=np.arange(len(seeds)), cmap="hsv", vmin=0, vmax=len(seeds))
        axes.set(aspect="equal", adjustable="datalim", facecolor="black")
        for name, set_label in ((across, axes.set_xlabel), (up, axes.set_ylabel)):
            set_label(f"{'xyz'[name]} (mm)", color="white")
        axes.tick_params(colors="white")
        axes.spines[:].set_color("white")
        mark_sides(axes, axis)
    return as_picture(figure)
