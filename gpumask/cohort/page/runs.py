"""Section of the page: a table of all runs, which can be searched and sorted, with their figures.

Without JavaScript it has the runs of which the least is left. All of them, tens of thousands, lie compressed in the
page; ``script.js`` makes their rows when they are looked for.
"""

import base64
import functools
import html
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import quote

from gpumask.cohort.page.logs import Cohort
from gpumask.cohort.page.markup import counted
from gpumask.cohort.page.pictures import histograms
from gpumask.cohort.page.processing import text_of
from gpumask.cohort.quality import OF_ATLAS, OF_RECORD, OF_RUN, Column
from gpumask.text_tables import listed

_ATLASES = 3  # most that have columns
_SHOWN = 100  # rows without JavaScript
_MOST_BYTES = 2**21  # of compressed rows: a third more in base64
_PER_BLOCK = 500  # rows between looks at the size
_PANELS = 5  # of kept volumes: with that of FD, a picture as wide as the page
_FIGURES = 50  # most figures of a run
_LONGEST = 200  # characters of a name
_SPARED = {"fd_threshold", "fd_median", "fd_median_kept", "fd_max_kept"}  # columns of the group's table only
_WARNINGS = Column("warnings", "Warnings", "Number of warnings; the section Warnings has their texts.", is_count=True)
_DIGITS = {"mm": 3, "min": 1, "s": 1}  # by units
_DIGITS_OF = {"degrees_of_freedom_share": 2, "degrees_of_freedom": 1, "tsnr": 1, "median_abs_r": 3}  # by beginnings


class Row(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    name, denoising, outcome : str
        Outcome: "done", "failed: " and the beginning of an error, or "partly done: " and that of the last attempt.
    numbers : dict
        By the names of columns; None if unknown.
    figures : tuple of str
        Paths, relative to the page.
    """

    name: str
    denoising: str
    outcome: str
    numbers: dict[str, Any]
    figures: tuple[str, ...]


def section(cohort: Cohort) -> str:
    """Table of all runs, with distributions of what is left of them."""
    (atlases, n_more), failed = _atlases(cohort), cohort.failed
    rows = [
        Row(row["name"], row["denoising"], outcome, row | _of_atlases(row["atlases"], atlases), row["figures"])
        for row in cohort.runs
        for outcome in [f"partly done: {failed[row['name']].error}" if row["name"] in failed else "done"]
    ]
    sums = _left(rows) + _distributions(rows)
    recorded = {row.name for row in rows}
    rows += [Row(name, "", f"failed: {failed[name].error}", {}, ()) for name in failed if name not in recorded]
    if not rows:
        return ""
    rows.sort(key=_least_first)
    columns = [column for column in _columns(atlases) if any(row.numbers.get(column.name) for row in rows)]
    named, pictured = (any(getattr(row, part) for row in rows) for part in ("denoising", "figures"))
    heads = [("", "Run", "Name of the run."), *[("figures", "Figures", "Opened with a click.")] * pictured]
    heads += [("text", "Denoising", "Name of the denoising.")] * named
    heads += [("text", "Outcome", "done; or why the last attempt failed: partly done, if outputs exist.")]
    heads += [("n", html.escape(_label(column)), column.description) for column in columns]
    headings = "".join(
        f"<th class='{kind}' title='{html.escape(meaning)}'>{label}</th>" for kind, label, meaning in heads
    )
    packed, n_packed = _packed([_digits(column) for column in columns], (_plain(row, columns, named) for row in rows))
    body = "".join(_html(_plain(row, columns, named), columns, pictured) for row in rows[:_SHOWN])
    order = "Failed and partly done runs are first, then those with the smallest share of kept volumes."
    shown = f"The first {counted(_SHOWN)} of {counted(len(rows), 'row')}. {order}" if len(rows) > _SHOWN else order
    lost = f" These are the first {counted(n_packed)} of {counted(len(rows), 'row')}." if n_packed < len(rows) else ""
    return (
        f"<h2 id='runs'>Runs</h2>{sums}"
        "<p class='tools' hidden><label>Search <input type='search' placeholder='sub-01 rest'></label> "
        f"<output></output>{lost}</p><p id='part'>{shown}</p>"
        f"<div class='wide'><table id='all'><thead><tr>{headings}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
        "<p class='tools' hidden><button type='button'>More rows</button></p>"
        f"<script type='text/plain' id='rows'>{packed}</script>"
        f"<p><small>{f'{counted(n_more)} more atlases have no columns here. ' if n_more else ''}"
        "<a href='./group_quality.tsv'>group_quality.tsv</a> has the numbers of all runs with outputs and of all "
        "atlases, <a href='./group_quality.json'>group_quality.json</a> their meanings.</small></p>"
    )


def _columns(atlases):
    """Columns of numbers; those of an atlas have its name, if there are several."""
    of_atlases = [
        replace(
            column,
            name=f"{column.name}_{atlas}",
            long_name=f"{column.long_name}, {atlas}" if len(atlases) > 1 else column.long_name,
            description=f"{column.description} Of the atlas {atlas}.",
        )
        for atlas in atlases
        for column in OF_ATLAS
    ]
    return [column for column in (*OF_RUN, *of_atlases, _WARNINGS, *OF_RECORD) if column.name not in _SPARED]


def _of_atlases(numbers, atlases):
    """Numbers of the atlases by the names of their columns."""
    return {f"{name}_{atlas}": value for atlas in atlases for name, value in numbers.get(atlas, {}).items()}


def _atlases(cohort):
    """The atlases of most runs, and how many more there are."""
    counts = Counter(atlas for row in cohort.runs for atlas in row["atlases"])
    found = sorted(counts, key=lambda atlas: (-counts[atlas], atlas))
    return sorted(found[:_ATLASES]), len(found[_ATLASES:])


def _label(column):
    return f"{column.long_name}, {column.units}" if column.units else column.long_name


@functools.cache
def _digits(column: Column) -> int:
    known = next((digits for name, digits in _DIGITS_OF.items() if column.name.startswith(name)), 2)
    return 0 if column.is_count else _DIGITS.get(column.units, known)


def _left(rows):
    """What censoring and cleaning leave of the runs, in a sentence for each denoising."""
    parts = []
    for denoising in sorted({row.denoising for row in rows}):
        numbers = [row.numbers for row in rows if row.denoising == denoising]
        freedom = sorted(one["degrees_of_freedom"] for one in numbers if one.get("degrees_of_freedom") is not None)
        if freedom:
            n_kept, n_volumes = (sum(one[key] for one in numbers) for key in ("volumes_kept", "volumes"))
            half = (freedom[(len(freedom) - 1) // 2] + freedom[len(freedom) // 2]) / 2
            parts.append(
                f"<p>{html.escape(f'{denoising}: ' if denoising else '')}{counted(n_kept)} of {counted(n_volumes)} "
                f"volumes are kept; a median of {round(half, 1):g} degrees of freedom is left per run.</p>"
            )
    return "".join(parts)


def _distributions(rows):
    """Pictures of distributions over runs: kept volumes, of each denoising that differs in them, and mean FD."""
    kept: dict[str, dict[str, int]] = defaultdict(dict)
    displacement: dict[str, float] = {}  # the same for all denoisings
    for row in rows:
        kept[row.denoising][row.name] = row.numbers["volumes_kept"]
        if row.numbers.get("fd_mean") is not None:
            displacement.setdefault(row.name, row.numbers["fd_mean"])
    alike = defaultdict(list)
    for denoising, of_runs in sorted(kept.items()):
        alike[tuple(of_runs.items())].append(denoising)
    panels: list[tuple[str, Sequence[float]]] = []
    for of_runs, denoisings in islice(alike.items(), _PANELS):
        named = f"\n{text_of(listed(denoisings))}" if len(alike) > 1 else ""
        panels.append((f"volumes kept{named}", [n_kept for _, n_kept in of_runs]))
    if displacement:
        panels.append(("mean FD, mm", list(displacement.values())))
    more = f"<p>And {counted(len(alike) - _PANELS, 'more denoising')}.</p>" if len(alike) > _PANELS else ""
    return histograms(panels, max(2, 8 / len(panels))) + more if panels else ""


def _least_first(row):
    volumes = row.numbers.get("volumes")
    share = row.numbers["volumes_kept"] / volumes if volumes else 0.0
    return row.outcome == "done", share, row.name, row.denoising


def _plain(row: Row, columns: Sequence[Column], named: bool) -> list[Any]:
    """A row as JSON: texts, numbers, addresses of figures."""
    values = [row.numbers.get(column.name) for column in columns]
    digits = map(_digits, columns)
    rounded = [value if value is None else round(value, n or None) for value, n in zip(values, digits, strict=True)]
    texts = [row.name, *[row.denoising] * named, row.outcome]
    return [list(map(_short, texts)), rounded, [_address(path) for path in row.figures[:_FIGURES]]]


def _short(text):
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _address(path):
    """Address of a file relative to the page; never that of another site, nor a script."""
    return "./" + quote(path, errors="surrogatepass")


def _packed(digits: Sequence[int], rows: Iterable[Any]) -> tuple[str, int]:
    """Digits and rows as compressed lines of JSON, in base64, and the number of rows: as many as fit."""
    packer, parts, number = zlib.compressobj(), [], 0

    def add(content):
        line = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        parts.append(packer.compress((line + "\n").encode("utf-8", "backslashreplace")))

    add(digits)
    for row in rows:
        add(row)
        number += 1
        if number % _PER_BLOCK == 0:
            parts[:] = [b"".join([*parts, packer.flush(zlib.Z_SYNC_FLUSH)])]
            if len(parts[0]) > _MOST_BYTES:
                break
    return base64.b64encode(b"".join([*parts, packer.flush()])).decode(), number


def _html(plain, columns, pictured):
    (name, *texts), numbers, figures = plain
    cells = [f"<td>{html.escape(name)}</td>", *[f"<td class=figures>{_figures(figures)}</td>"] * pictured]
    cells += [f"<td class=text>{html.escape(text)}</td>" for text in texts]
    cells += [
        f"<td class=n>{'n/a' if value is None else f'{value:.{_digits(column)}f}'}</td>"
        for value, column in zip(numbers, columns, strict=True)
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _figures(addresses):
    """Links to figures; ``script.js`` shows them in the page. Without it, a browser would load all pictures at once."""
    return " ".join(f"<a href='{html.escape(address)}'>{k}</a>" for k, address in enumerate(addresses, start=1))
