"""Sections of the page: mean connectivity over runs, a picture per kind of matrices; and how motion shows in it."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from gpumask.cohort.matrices import Mean
from gpumask.cohort.page.markup import counted, html_table
from gpumask.cohort.page.pictures import matrix_picture
from gpumask.connectivity import CORRELATIONS

MOST_PICTURES = 12
"""Kinds of matrices that have pictures."""
MOST_REGIONS = 400
"""Rows of a picture."""

_HEAD = "<h2 id='connectivity'>Mean connectivity</h2><p>Grey: no run has a number.</p>"
_MOTION = (
    "<h2 id='qcfc'>Motion in connectivity</h2><p>QC-FC is the correlation, over runs, of an edge with the mean "
    "framewise displacement: the nearer it is to chance, the less motion is left in the connectivity. By chance, the "
    "median of |r| is about 0.67 / √(runs used − 1), and 5 % of the edges have p &lt; 0.05 (FDR: corrected for the "
    "false discovery rate). <a href='./group_qcfc.json'>group_qcfc.json</a> defines the columns of "
    "<a href='./group_qcfc.tsv'>group_qcfc.tsv</a>.</p>"
)
_HEADINGS = {
    "runs": "Runs", "runs_used": "Runs used", "edges": "Edges", "median_abs_r": "Median |r|",
    "share_significant": "p &lt; 0.05", "share_significant_fdr": "p &lt; 0.05, FDR", "remark": "Remark",
}  # fmt: skip
"""Of columns of ``group_qcfc.tsv``."""


def section(means: Sequence[Mean]) -> str:
    """Section about mean connectivity; empty without any."""
    return f"{_HEAD}{''.join(map(_one, means))}" if means else ""


def _one(mean):
    kind = mean.kind
    title = _title(kind.atlas, kind.denoising, kind.stat)
    how = ", by Fisher z" if kind.stat in CORRELATIONS else ""
    used = f"Mean over {counted(mean.n_used, 'run')}{how}. {mean.remark}".rstrip()
    lost = sum(not count for count in mean.counts.diagonal()) if kind.stat in CORRELATIONS else 0
    used += f" {counted(lost, 'region')} without signal in all of them." if lost else ""
    picture = matrix_picture(mean.matrix, mean.regions, f"mean over runs of {title}")
    return f"<h3>{html.escape(title)}</h3><p>{html.escape(used)}</p>{picture}"


def motion_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """Section about motion in the matrices, by rows as of `gpumask.cohort.qcfc.summary`; empty without any."""
    if not rows:
        return ""
    names = [name for name in _HEADINGS if any(row[name] not in (None, "") for row in rows)]
    cells = (
        [f"<span class='whole'>{html.escape(_title(row['atlas'], row['denoising'], row['stat']))}</span>"]
        + [html.escape(_cell(row[name], name)) for name in names]
        for row in rows
    )
    numeric = [k for k, name in enumerate(names, start=1) if name != "remark"]
    return _MOTION + html_table(["Matrices", *(_HEADINGS[name] for name in names)], cells, numeric)


def _title(*kind):
    """Atlas, denoising and statistic of matrices, as far as they have them."""
    return " ".join(filter(None, kind))


def _cell(value, name):
    if value in (None, ""):
        return "" if name == "remark" else "n/a"
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if name.startswith("share_") else f"{value:.3f}"
    return value if isinstance(value, str) else counted(value)
