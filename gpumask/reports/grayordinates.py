"""HTML report of a masker of grayordinates: signals, brain models and regions. Drawing these would need surfaces."""

import html
from typing import Any

import numpy as np

from gpumask.images.brain_models import BrainModels
from gpumask.reports.figures import draw_carpet, new_figure
from gpumask.reports.masker import Report, as_picture, report_page

_NO_PICTURE = "<p>The regions aren't drawn: that needs surfaces, which these files lack (wb_view shows both).</p>"
_LOST = "the run has too few of their grayordinates"


def dense_report(
    masker: Any, models: BrainModels, regions: Any, signals: np.ndarray | None = None, title: str | None = None
) -> Report:
    """Make the report of a fitted masker of labels or maps of grayordinates.

    Parameters
    ----------
    masker : NiftiLabelsMasker or NiftiMapsMasker
        Fitted. After a `transform`, the report describes it.
    models : BrainModels
        Of the labels or maps.
    regions : gpumask.engine.regions.RegionsOnGrid
        Of the last run; before any, on `models`.
    signals : ndarray, shape (n_kept, n_regions), optional
        Of the last run. Drawn if there are several time points.
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
    above = _NO_PICTURE
    if signals is not None and len(signals) > 1:
        figure = new_figure((12, 4))
        draw_carpet(figure, signals)
        above += as_picture(figure, "signals of the regions")
    has_run = hasattr(masker, "plan_")
    above += f"<h2>Brain models</h2>{_models(models, regions.run_grid if has_run else None)}"
    return report_page(masker, title, above, _regions(masker, regions, has_run), lost_because=_LOST)


def _models(models, run):
    """Table of the surfaces and voxels of an atlas, and how many of their grayordinates a run has."""
    parts = [
        (one.structure, f"surface of {one.n_vertices:,} vertices", slice(one.start, one.start + len(one.vertices)))
        for one in models.surfaces
    ]
    if models.volume is not None:
        grid = " x ".join(map(str, models.volume.shape))
        parts.append(("voxels", f"in a volume of {grid}", models.positions))
    present = None if run is None else models.positions_in(run) >= 0
    rows = [
        (name, kind, f"{len(np.arange(models.n_grayordinates)[own]):,}")
        + (() if present is None else (f"{present[own].sum():,}",))
        for name, kind, own in parts
    ]
    return _table(("structure", "kind", "grayordinates", "in the run"), rows, n_texts=2)


def _regions(masker, regions, has_run):
    """Table of the regions, and how much of each the last run has."""
    counts, covered = regions.coverage
    names = [str(name) for name in masker.get_feature_names_out()]
    columns = [regions.ids.tolist(), names, counts.tolist()]
    if has_run:
        columns += [covered.tolist(), [f"{share:.1%}" for share in regions.covered_share]]
    rows = list(zip(*columns, strict=True))
    return _table(("label", "name", "grayordinates", "in the run", "share"), rows)


def _table(heads, rows, n_texts=0):
    """HTML of a table; all columns have numbers, except the first `n_texts` and names."""
    width = len(rows[0])
    head = "".join(f"<th>{name}</th>" for name in heads[:width])
    cells = [
        "".join(
            f"<td>{html.escape(str(cell))}</td>"
            if k < n_texts or heads[k] == "name"
            else f"<td class=n>{html.escape(str(cell))}</td>"
            for k, cell in enumerate(row)
        )
        for row in rows
    ]
    return f"<div class='wide'><table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table></div>"
