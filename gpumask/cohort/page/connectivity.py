"""Sections of the page: mean connectivity over runs, a picture per kind of matrices; and how motion shows in it."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from gpumask.cohort.matrices import Mean
from gpumask.cohort.page.markup import counted, html_table
from gpumask.cohort.page.pictures import matrix_picture
from gpumask.cohort.qcfc import COLUMNS
from gpumask.connectivity import CORRELATIONS

MOST_PICTURES = 12
"""Kinds of matrices that have pictures."""
MOST_REGIONS = 400
"""Rows of a picture."""

_HEAD = "<h2 id='connectivity'>Mean connectivity</h2><p>Grey: no run has a number.</p>"
_MOTION = (
    "<h2 id='qcfc'>Motion in connectivity</h2><p>QC-FC is the correlation, over runs, of an edge with the mean "
    "framewise displacement: the nearer it is to chance, the less motion is left in the connectivity. By chance, the "
    "median of |r| is about 0.67 / √(runs used − 1), and 5 % of the edges are significant before correction. "
    "<a href='./group_qcfc.json'>group_qcfc.json</a> defines the columns of "
    "<a href='./group_qcfc.tsv'>group_qcfc.tsv</a>.</p>"
)


def section(means: Sequence[Mean]) -> str:
    """Section about mean connectivity; empty without any."""
    return f"{_HEAD}{''.join(map(_one, means))}" if means else ""


def _one(mean):
    kind = mean.kind
    title = " ".join(filter(None, (kind.atlas, kind.denoising, kind.stat)))
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
    columns = [column for column in COLUMNS if any(row[column.name] not in (None, "") for row in rows)]
    texts = ("atlas", "denoising", "stat", "remark")
    numeric = [k for k, column in enumerate(columns) if column.name not in texts]
    cells = ([html.escape(_cell(row[column.name], column.name)) for column in columns] for row in rows)
    return _MOTION + html_table([html.escape(column.long_name) for column in columns], cells, numeric)


def _cell(value, name):
    if value in (None, ""):
        return "" if name == "remark" else "n/a"
    if isinstance(value, float):
        return f"{value:.1%}" if name.startswith("share_") else f"{value:.3f}"
    return value if isinstance(value, str) else counted(value)
