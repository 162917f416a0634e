"""Section of the page: mean connectivity over runs, a picture per kind of matrices."""

import html
from collections.abc import Sequence

from gpumask.cohort.matrices import Mean
from gpumask.cohort.page.markup import counted
from gpumask.cohort.page.pictures import matrix_picture
from gpumask.connectivity import CORRELATIONS

MOST_PICTURES = 12
"""Kinds of matrices that have pictures."""
MOST_REGIONS = 400
"""Rows of a picture."""

_HEAD = (
    "<h2 id='connectivity'>Mean connectivity</h2><p>Grey: no run has a number. How motion shows in the matrices "
    "(QC-FC): <a href='./group_qcfc.tsv'>group_qcfc.tsv</a>.</p>"
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
