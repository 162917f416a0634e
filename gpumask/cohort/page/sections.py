"""Sections of the page about outcomes: totals, failures, warnings, timings."""

import heapq
import html

import numpy as np

from gpumask.cohort.page.logs import Cohort, line_of, without_folder
from gpumask.cohort.page.markup import counted, html_table
from gpumask.cohort.page.pictures import histograms
from gpumask.cohort.remedies import remedy
from gpumask.cohort.stored import STAGES

_FAILURES, _GROUPS = 300, 50  # rows of tables


def totals(cohort: Cohort, n_runs: int | None) -> str:
    """Numbers of runs by outcome."""
    done, failed = len(cohort.done), len(cohort.failed)
    tiles = [("", done, "done")]
    if cohort.skipped:
        tiles.append(("", cohort.skipped, "of these skipped, as done before"))
    tiles.append(("bad" * bool(failed), failed, "failed"))
    if cohort.partial:
        tiles.append(("", len(cohort.partial), "of these partly done"))
    if n_runs is not None and n_runs > done + failed:
        tiles.append(("", n_runs - done - failed, "left"))
    elif cohort.lost:
        tiles.append(("", len(cohort.lost), "to be done again"))
    if cohort.taken:
        tiles.append(("", len(cohort.taken), "taken by another process"))
    parts = ["<ul class='totals'>"]
    parts += [f"<li class='{kind}'><b>{counted(count)}</b>{what}</li>" for kind, count, what in tiles]
    parts.append("</ul>")
    if cohort.lost:
        runs, first = counted(len(cohort.lost), "run"), html.escape(cohort.lost[0])
        parts.append(f"<p>Logged as done, but without a record: {runs} (first: {first}), to be done again.</p>")
    if cohort.unreadable:
        first = html.escape(next(iter(cohort.unreadable)))
        lines = counted(cohort.unreadable.total())
        parts.append(f"<p>Log lines and records skipped as unreadable: {lines} (first in logs/{first}).</p>")
    if len(cohort.configurations) > 1:
        kinds = ", ".join(f"{html.escape(k)} ({counted(n)})" for k, n in cohort.configurations.most_common(_GROUPS))
        parts.append(f"<p>The runs were done with {len(cohort.configurations)} configurations: {kinds}.</p>")
    return "".join(parts)


def failures(cohort: Cohort) -> str:
    """Failed runs, and their errors by kind."""
    if not cohort.failed:
        return "<h2 id='failures'>Failures</h2><p>None.</p>"
    rows, partial = [], set(cohort.partial)
    for name, attempt in heapq.nsmallest(_FAILURES, cohort.failed.items(), key=lambda item: item[0]):
        line = line_of(attempt, name)
        error = html.escape(without_folder(line["error"], line["run"]))  # the path is below
        rest = "\n".join(line[key] for key in ("run", "time", "traceback") if line.get(key))
        details = f"<details><summary>{error}</summary><pre>{html.escape(rest)}</pre></details>{_remedy(line['error'])}"
        state = "<br><small>partly done</small>" if name in partial else ""
        rows.append((f"<div class='run'>{html.escape(name)}{state}</div>", details))
    left = len(cohort.failed) - len(rows)
    more = f"<p>And {counted(left)} more, in logs/*.jsonl.</p>" if left else ""
    heading = f"<h2 id='failures'>Failures: {counted(len(cohort.failed))}</h2>"
    if partial:
        heading += (
            f"<p>{counted(len(partial))} of them {'is' if len(partial) == 1 else 'are'} partly done: outputs of other "
            "denoisings, or of an earlier attempt, exist. The sections below have their numbers.</p>"
        )
    heading += "<p>Fix them, then repeat the command: it does only failed and new runs.</p>"
    runs = f"{html_table(('Run', 'Error'), rows)}{more}"
    if len(cohort.failed) > len(cohort.errors) > 1 or left:
        groups = _kinds(cohort.errors, cohort.example, "Error", remedied=True)
        return f"{heading}{groups}<details><summary>By run</summary>{runs}</details>"
    return f"{heading}{runs}"


def _remedy(error):
    words = remedy(error)
    return f"<div class='remedy'>{html.escape(words)}</div>" if words else ""


def warnings(cohort: Cohort) -> str:
    """Warnings by kind."""
    rows = _kinds(cohort.warnings, cohort.example, "Warning") if cohort.warnings else "<p>None.</p>"
    return f"<h2 id='warnings'>Warnings</h2>{rows}"


def _kinds(counter, example, heading, *, remedied=False):
    rows = []
    for kind, count in counter.most_common(_GROUPS):
        text = html.escape(example[kind] if count == 1 else kind)
        if count > 1 and example[kind] != kind:
            text += f"<br><small>as in: {html.escape(example[kind])}</small>"
        rows.append((counted(count), text + (_remedy(example[kind]) if remedied else "")))
    left = len(counter) - _GROUPS
    more = f"<p>And {counted(left)} rarer ones, in logs/*.jsonl.</p>" if left > 0 else ""
    return html_table(("Runs", heading), rows, numeric=[0]) + more


def timings(cohort: Cohort) -> str:
    """Seconds of the stages."""
    stages = [stage for stage in STAGES if stage in cohort.seconds]
    if not stages:
        return "<h2 id='timings'>Timings</h2><p>No finished runs.</p>"
    rows, panels = [], []
    for label, values in [*((f"{s}, s", cohort.seconds[s]) for s in stages), ("volumes per second", cohort.rates)]:
        if not values:
            continue
        panels.append((label, values))
        rows.append((html.escape(label), *(f"{x:.3g}" for x in (*np.percentile(values, (5, 50, 95)), max(values)))))
    return (
        f"<h2 id='timings'>Timings</h2><p>Of {counted(cohort.n_recorded, 'run')}. Stages overlap; reduce is summed "
        "over threads.</p>"
        + histograms(panels)
        + html_table(("", "5 %", "median", "95 %", "largest"), rows, numeric=range(1, 5))
    )
