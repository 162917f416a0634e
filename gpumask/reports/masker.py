"""HTML report of a masker: its atlas over a volume of the run, its regions, its parameters."""

import base64
import html
import os
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from scipy.ndimage import affine_transform

from gpumask.files import appearing_together, check_folder, write
from gpumask.images.grid import Grid
from gpumask.images.lookup import plain_label
from gpumask.images.volumes import open_volumes
from gpumask.reports.cuts import cuts_through_each, draw_cuts
from gpumask.reports.figures import new_figure, to_png
from gpumask.reports.parameters import parameter_words

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font-family:sans-serif;max-width:64em;margin:2em auto;padding:0 1em;overflow-wrap:anywhere}"
    "img{max-width:100%}.wide{overflow-x:auto}@media print{:root{color-scheme:light}}"
    "table{border-collapse:collapse;font-size:90%}"
    "td,th{border-bottom:1px solid #8884;padding:.2em .8em;text-align:left}"
    ".n{text-align:right}th,td.n{overflow-wrap:normal}td:not(.n){min-width:8em}"
    "pre{background:#8882;padding:1em;white-space:pre-wrap}"
    "@media print{h2{break-after:avoid}tr,img{break-inside:avoid}}"
)


_MOST_LOST = 50  # regions that are named


class Report:
    """An HTML page; notebooks display it.

    Attributes
    ----------
    html : str
    """

    def __init__(self, page: str) -> None:
        self.html = page

    def __str__(self):
        return self.html

    def _repr_html_(self):
        return f'<iframe srcdoc="{html.escape(self.html)}" width="100%" height="700" frameBorder="0"></iframe>'

    def save_as_html(self, path: str | os.PathLike) -> None:
        """Write the page to a file, which is replaced; FileNotFoundError if its folder doesn't exist."""
        check_folder(Path(path))
        with appearing_together([Path(path)]) as (part,):
            write(part, [self.html])

    def open_in_browser(self, file_name: str | os.PathLike | None = None) -> None:
        """Write the page to `file_name` (None: a temporary file) and open it."""
        if file_name is None:
            with NamedTemporaryFile("w", suffix=".html", delete=False, encoding="utf-8") as file:
                file.write(self.html)
            file_name = file.name
        else:
            self.save_as_html(file_name)
        webbrowser.open(Path(file_name).absolute().as_uri())


def labels_report(masker: Any, run: Any = None, title: str | None = None) -> Report:
    """Make the report of a fitted labels masker.

    Parameters
    ----------
    masker : NiftiLabelsMasker
        Fitted. After a `transform`, the report describes it.
    run : path, nibabel image or list of 3D images, optional
        Shown below the regions.
    title : str, optional
        If None, the class's name.

    Returns
    -------
    Report

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    labels = getattr(masker, "region_atlas_", masker.labels_img_)
    figure = regions_figure(
        labels, run, background_label=masker.background_label, cmap=masker.cmap or "hsv", mask=masker.mask_img_
    )
    return report_page(masker, title, figure, _regions(masker, labels))


def report_page(
    masker: Any,
    title: str | None,
    above: str,
    regions: str,
    heading: str = "",
    *,
    removed: Sequence[str] = (),
    lost_because: str = "too little is inside the field of view and the mask",
) -> Report:
    """Make the page that the reports of all maskers share.

    Parameters
    ----------
    masker : a masker of gpumask
        Fitted. After a `transform`, the page describes it.
    title : str or None
        If None, the class's name.
    above : str
        HTML above the regions, such as a picture of them (`as_picture`).
    regions : str
        Table of the regions: HTML.
    heading : str
        Of the regions; their number if it is empty.
    removed : sequence of str
        Regions without a column that the masker's own tables don't name.
    lost_because : str
        Why regions are lost, if any are.
    """
    title = html.escape(str(title or type(masker).__name__))
    parameters = "".join(
        f"<tr><th>{name}</th><td>{html.escape(parameter_words(value))}</td></tr>"
        for name, value in masker.get_params(deep=False).items()
    )
    done = ""
    if hasattr(masker, "plan_"):
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in masker.seconds_.items())
        done = f"<h2>Last run</h2><pre>{html.escape(masker.plan_.explain())}\n{seconds}</pre>"
    lost = [*removed, *_lost(masker)]
    if lost:
        more = f" and {len(lost) - _MOST_LOST} more" if len(lost) > _MOST_LOST else ""
        names = html.escape(", ".join(lost[:_MOST_LOST]))
        done += f"<p>Lost, as {lost_because}: {names}{more}.</p>"
    return Report(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{title}</h1>{above}"
        f"{done}<h2>{heading or f'Regions: {masker.n_elements_}'}</h2>{regions}"
        f"<h2>Parameters</h2><div class='wide'><table>{parameters}</table></div></body></html>"
    )


def _lost(masker):
    """Names of the regions that the last run lacks: without a column, or with one of NaN."""
    if not hasattr(masker, "coverage_"):  # before a run, or voxels
        return []
    table, least = masker.coverage_, masker.min_coverage or 0
    lost = [str(name) for name in table["name"][(table["fraction"] == 0) | (table["fraction"] < least)]]
    if hasattr(masker, "lut_"):
        gone = ~masker.lut_["index"].isin([*masker.labels_, masker.background_label])
        lost = [*(str(name) for name in masker.lut_["name"][gone]), *lost]
    return lost


def _regions(masker, labels):
    ids, counts = np.unique(np.asanyarray(labels.dataobj), return_counts=True)
    voxels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    size = abs(np.linalg.det(labels.affine[:3, :3]))
    regions = [label for key, label in masker.region_ids_.items() if key != "background"]
    rows = "".join(
        f"<tr><td class=n>{plain_label(label)}</td><td>{html.escape(str(name))}</td>"
        f"<td class=n>{voxels.get(label, 0)}</td><td class=n>{voxels.get(label, 0) * size:.0f}</td></tr>"
        for label, name in zip(regions, masker.region_names_.values(), strict=True)
    )
    heads = "<tr><th class=n>label</th><th>name</th><th class=n>voxels</th><th class=n>mm<sup>3</sup></th></tr>"
    return f"<div class='wide'><table>{heads}{rows}</table></div>"


def regions_figure(
    labels: Any,
    run: Any = None,
    *,
    background_label: float = 0,
    cmap: str = "hsv",
    mask: Any = None,
    shows_each: bool = False,
) -> str:
    """Draw three cuts through the middle of the regions, over the run's first volume if it has their grid.

    Parameters
    ----------
    labels : nibabel image
        A number per region.
    run : path, nibabel image or list of 3D images, optional
    background_label : number
    cmap : str
    mask : nibabel image, optional
        Its outline is drawn; on another grid, by the nearest voxels.
    shows_each : bool
        Whether cuts are chosen through as many regions as possible instead; the number of the others is below them.

    Returns
    -------
    str
        HTML.
    """
    data, under, cuts, below = np.asanyarray(labels.dataobj), None, None, ""
    if shows_each:
        cuts, n_hidden = cuts_through_each(data, labels.affine, background_label)
        below = f"<p>Regions in none of these cuts: {n_hidden}.</p>" if n_hidden else ""
    figure = new_figure((12, 4 * (1 if cuts is None else len(cuts))), facecolor="black")
    if run is not None:
        volumes = open_volumes(run)
        chunk = next(volumes.chunks(1))
        if volumes.grid.matches(Grid(labels.shape, labels.affine)):
            under = chunk.scaled_on_host().reshape(volumes.grid.shape, order="F")
    outline = mask_on(mask, labels)
    draw_cuts(figure, data, under, labels.affine, background_label=background_label, cmap=cmap, mask=outline, cuts=cuts)
    return as_picture(figure) + below


def mask_on(mask: Any, grid: Any) -> np.ndarray | None:
    """Values (0 and 1) of a mask image, or None, on the grid of an image or a `Grid`, by the nearest voxels."""
    if mask is None:
        return None
    data = (np.asanyarray(mask.dataobj) != 0).astype(np.uint8)
    if data.shape == grid.shape and np.allclose(mask.affine, grid.affine):
        return data
    to_mask = np.linalg.inv(mask.affine) @ grid.affine
    return affine_transform(data, to_mask, output_shape=grid.shape, order=0)


def as_picture(figure: Any, description: str = "regions on a volume") -> str:
    """Return a figure as an HTML element, a PNG image; `description` is for those who don't see it."""
    content = base64.b64encode(to_png(figure, dpi=80)).decode()
    return f"<img alt='{description}' src='data:image/png;base64,{content}'>"
