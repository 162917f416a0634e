"""The README's tables, from result files: ``python -m benchmarks.summary`` writes them anew.

A line such as ``<!-- targets: 2026-11-26T0130_abc1234 2026-11-22T2231_14ac934 -->`` precedes each table. It names the
kind of table and its columns' files in `benchmarks/results`; of files joined by "+", which make one column, the last
one that has a row counts, and the last one names the column.
"""

import json
import re
import sys
from datetime import datetime
from pathlib import Path

from benchmarks import report
from benchmarks.measure import OURS, Measured, median_and_range
from benchmarks.rows import all_rows

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
_TABLE = re.compile(r"<!-- (targets|growth|tools): (.+) -->\n(?:\|.*\n)*")


class Results:
    """What files hold: `rows`, a `Measured` by (group, name), and `name`, the machine and when."""

    def __init__(self, stems):
        documents = [json.loads((RESULTS / f"{stem}.json").read_text()) for stem in stems.split("+")]
        known = {(row.group, row.name): row for row in all_rows()}
        self.rows = {}
        for one in (one for document in documents for one in document["rows"]):
            key = one["group"], one["work"]
            if key in known and "seconds" in one:
                measures = (one[name] for name in ("seconds", "peak_mb", "differences", "skipped"))
                self.rows[key] = Measured(known[key], *measures)
        about = documents[-1]["about"]
        cpu = about["cpu"].replace("(R)", "").replace(" Processor", "")
        self.name = f"{cpu}, {datetime.fromisoformat(about['date']):%d %b %H:%M}"


def targets(first, *more):
    """What has a target, and what the first run of a masker takes."""
    columns = ["work", "", "against", *(one.name for one in (first, *more)), "target", "memory", "nilearn's"]
    yield from _head(columns)
    for key, measured in _of(first, "targets"):
        theirs = _memory(measured, "nilearn")
        for one in report.comparisons(measured):
            if one["target"] is None and one["against"] not in ("nilearn", "decoding"):
                continue
            same = [_find(other, key, one["step"], one["against"]) for other in more]
            ratios = [_ratio(found) if found else "" for found in (one, *same)]
            target = ""
            if one["target"] is not None:
                target = f"≤ {one['target']:g}" if one["floor"] else f"≥ {one['target']:g}x"
            memory = (_memory(measured, OURS), theirs if one["against"] == "nilearn" else "")
            yield _line([key[1], one["step"], one["against"], *ratios, target, *memory])
        for limit in report.limits(measured):
            if limit["of"] != "peak_mb":
                others = [_limit(other.rows.get(key), limit["of"]) for other in more]
                times = [f"{value * 1e3:.0f} ms" if value else "" for value in (limit["value"], *others)]
                yield _line([key[1], limit["of"], "", *times, f"≤ {limit['limit']:g} s", "", ""])


def growth(first, *more):
    """What costs more with more of something: milliseconds a volume, once the plan is compiled."""
    again = [f"ratio, {one.name}" for one in more]
    yield from _head(
        ["growth", "work", OURS, "nilearn", "ratio", *again, "of decoding", "memory", "nilearn's"],
    )
    for key, measured in _of(first):
        if key[0] in ("targets", "other tools"):
            continue
        step = list(measured.seconds[OURS])[-1]
        found = _find(first, key, step, "nilearn")
        others = [_find(other, key, step, "nilearn") for other in more]
        decoding = _find(first, key, step, "decoding")
        ours, theirs = found["seconds"][0], found["their_seconds"][0]
        yield _line(
            [
                key[0].removeprefix("growth "),
                key[1],
                f"{ours / measured.row.ours.n_volumes * 1e3:.2f} ms",
                f"{theirs / measured.row.against['nilearn'].workload.n_volumes * 1e3:.1f} ms",
                *(_ratio(one) if one else "" for one in (found, *others)),
                f"{decoding['ratio'][0]:.2f}" if decoding else "",
                _memory(measured, OURS),
                _memory(measured, "nilearn"),
            ]
        )


def tools(first, *more):
    """Other tools."""
    yield from _head(["tool", *(f"gpumask is, {one.name}" for one in (first, *more)), "memory"])
    for key, measured in _of(first, "other tools"):
        step = list(measured.seconds[OURS])[-1]
        for tool in list(measured.seconds)[1:]:
            found = [_find(one, key, step, tool) for one in (first, *more)]
            yield _line([tool, *(f"{_ratio(one)} as fast" if one else "" for one in found), _memory(measured, tool)])


def _of(results, group=None):
    return [(key, measured) for key, measured in results.rows.items() if group in (None, key[0])]


def _find(results, key, step, tool):
    """One comparison, or None."""
    measured = results.rows.get(key)
    found = report.comparisons(measured) if measured else ()
    return next((one for one in found if (one["step"], one["against"]) == (step, tool)), None)


def _limit(measured, of):
    return next((one["value"] for one in report.limits(measured) if one["of"] == of), None) if measured else None


def _ratio(one):
    if one["floor"]:
        return "{:.2f} ({:.2f}-{:.2f})".format(*one["ratio"])
    digits = 0 if one["ratio"][0] >= 20 else 1
    middle, low, high = (f"{value:.{digits}f}" for value in one["ratio"])
    return f"{middle}x ({low}-{high})"


def _memory(measured, tool):
    values = measured.peak_mb.get(tool, [None])
    return "" if None in values else f"{median_and_range(values)[0]:.0f} MB"


def _head(columns):
    return [_line(columns), f"|{'---|' * len(columns)}"]


def _line(cells):
    return f"| {' | '.join(cells)} |"


def written(text):
    """`text` with its tables as the result files have them."""

    def table(match):
        kind, files = match.groups()
        lines = {"targets": targets, "growth": growth, "tools": tools}[kind](*map(Results, files.split()))
        return "\n".join([f"<!-- {kind}: {files} -->", *lines, ""])

    return _TABLE.sub(table, text)


def main():
    """Write the README's tables."""
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
