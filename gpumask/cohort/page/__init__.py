"""HTML page of a cohort: failures, coverage of the regions, timings and warnings; made from its files alone."""

import base64
import hashlib
import html
import importlib.resources
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpumask import __version__
from gpumask.cohort.matrices import Mean
from gpumask.cohort.page import citation, connectivity, coverage, methods, runs, sections
from gpumask.cohort.page.logs import Cohort, read_logs
from gpumask.files import replacing, write

# No page, image or script of another site; of scripts only this one, whatever else should ever be in the page.
_POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; script-src '{}'; base-uri 'none'"
_HEADING = re.compile("<h2 id='([a-z]+)'>([A-Za-z ]+)")


def read_cohort(out_dir: str | os.PathLike, noting: Callable[[dict[str, Any]], object] = lambda record: None) -> Cohort:
    """Read the logs and records of a cohort's output folder.

    Parameters
    ----------
    out_dir : str or path-like
    noting : callable, optional
        Gets the record of each run that has one, also of partly finished ones, in the order of their names.

    Raises
    ------
    FileNotFoundError
        If the folder, or ``logs`` in it, doesn't exist.
    """
    logs = Path(out_dir) / "logs"
    for folder in (logs.parent, logs):
        if not folder.is_dir():
            msg = f"No such folder: {folder}. Expected the output folder of a cohort."
            raise FileNotFoundError(msg)
    return read_logs(logs, noting)


def write_page(
    out_dir: str | os.PathLike,
    n_runs: int | None = None,
    cohort: Cohort | None = None,
    means: Sequence[Mean] = (),
    motion: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the page of a cohort's output folder, ``cohort.html``, and ``logs/CITATION.md``.

    The page is self-contained, but for the runs' figures, which are loaded when they are opened.

    The page appears whole or not at all. Log lines and records that aren't as gpumask writes them, such as truncated
    ones, are skipped and counted. Time and memory are linear in the size of the logs. Without matplotlib, it has no
    pictures.

    Parameters
    ----------
    out_dir : str or path-like
        Folder with ``logs/*.jsonl`` (a line per attempt), ``logs/*.json`` (a record per finished run) and the coverage
        tables that the records name.
    n_runs : int, optional
        Number of runs of the whole cohort. If None, the page doesn't show how many are left.
    cohort : Cohort, optional
        The folder's, if it has been read.
    means : sequence of Mean
        Mean matrices to show.
    motion : sequence of dict
        QC-FC of each kind of matrices, as `gpumask.cohort.qcfc.summary` returns it.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If the folder doesn't exist.
    """
    cohort, out_dir = cohort or read_cohort(out_dir), Path(out_dir)
    title = f"Cohort {html.escape(out_dir.resolve().name)}"
    now = html.escape(time.strftime("%Y-%m-%d %H:%M:%S %z"))
    body = (
        f"{sections.failures(cohort)}{runs.section(cohort)}{coverage.section(cohort, out_dir)}"
        f"{connectivity.section(means)}{connectivity.motion_section(motion)}{methods.section(cohort.methods)}"
        f"{sections.timings(cohort)}{sections.warnings(cohort)}"
    )
    links = " ".join(f"<a href='#{key}'>{heading}</a>" for key, heading in _HEADING.findall(body))
    script = _part("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY.format(f"sha256-{digest}")}">'
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{_part('style.css')}</style></head><body><h1>{title}</h1>"
        f"<p><small>{html.escape(str(out_dir.resolve()))}<br>{now}, gpumask {__version__}</small></p>"
        f"{sections.totals(cohort, n_runs)}<nav>{links}</nav>{body}<script>{script}</script></body></html>\n"
    )
    path = out_dir / "cohort.html"
    with replacing(path) as part:
        write(part, [page])
    if cohort.methods.processings:
        with replacing(out_dir / "logs" / "CITATION.md") as part:
            write(part, [citation.citation(cohort.methods)])
    return path


def _part(name):
    return importlib.resources.files(__package__).joinpath(name).read_text("utf-8")
