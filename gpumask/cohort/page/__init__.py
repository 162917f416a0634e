"""HTML page of a cohort: failures, coverage of the regions, timings and warnings; made from its files alone."""

import html
import os
import time
from pathlib import Path

from gpumask import __version__
from gpumask.cohort.page import coverage, sections
from gpumask.cohort.page.logs import read_logs
from gpumask.files import replacing, write

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;overflow-wrap:anywhere}"
    "h2{margin-top:2em;border-bottom:1px solid #8886}svg{max-width:100%;min-width:42em;height:auto}small{opacity:.75}"
    ".totals{display:flex;flex-wrap:wrap;gap:.8em;padding:0;list-style:none}"
    ".totals li{border:1px solid #8886;border-radius:.5em;padding:.4em 1em}.totals b{display:block;font-size:1.6em}"
    ".bad b{color:#d33}.wide{overflow-x:auto}.pair{display:flex;flex-wrap:wrap;gap:0 3em}.pair>*{flex:1 1 20em}"
    "table{border-collapse:collapse;font-size:90%;margin:1em 0}td,th{border-bottom:1px solid #8884;padding:.25em .8em;"
    "text-align:left;vertical-align:top;min-width:2em}td.n,th.n{text-align:right;white-space:nowrap;overflow-wrap:normal}"
    "div.run{min-width:11em}"
    "pre{background:#8882;padding:.8em;white-space:pre-wrap;font-size:90%}summary{cursor:pointer}"
)


def write_page(out_dir: str | os.PathLike, n_runs: int | None = None) -> Path:
    """Write the page of a cohort's output folder, ``cohort.html``; it is self-contained.

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

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If the folder doesn't exist.
    """
    out_dir = Path(out_dir)
    if not out_dir.is_dir():
        msg = f"No such folder: {out_dir}. Expected the output folder of a cohort."
        raise FileNotFoundError(msg)
    cohort = read_logs(out_dir / "logs")
    title = f"Cohort {html.escape(out_dir.resolve().name)}"
    now = html.escape(time.strftime("%Y-%m-%d %H:%M:%S %z"))
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p><small>{html.escape(str(out_dir.resolve()))}<br>{now}, gpumask {__version__}</small></p>"
        f"{sections.totals(cohort, n_runs)}{sections.failures(cohort)}{sections.left(cohort)}"
        f"{coverage.section(cohort, out_dir)}{sections.timings(cohort)}{sections.warnings(cohort)}"
        "</body></html>\n"
    )
    path = out_dir / "cohort.html"
    with replacing(path) as part:
        write(part, [page])
    return path
