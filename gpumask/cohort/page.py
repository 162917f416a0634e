"""HTML page of a cohort: failures, coverage of the regions, timings and warnings; made from its files alone."""

import heapq
import html
import io
import os
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np

from gpumask import __version__
from gpumask.bids.names import parse_output_name
from gpumask.cohort.record import left_of, unusable
from gpumask.cohort.stored import STAGES, read_attempt, read_attempts, read_record
from gpumask.files import inside, replacing, write
from gpumask.inputs import read_bytes
from gpumask.tables import cells

_LOW = 0.5  # less covered regions are "n/a" by default
_FAILURES, _GROUPS, _WORST = 300, 50, 10  # rows of tables
_PICTURE = (400, 600)  # most rows (regions) and columns (runs) of a coverage picture: those of a window
_ATLASES = 50  # most coverage pictures: each takes half a second
_KINDS = 10_000  # most different messages that are counted
_LARGEST_TABLE = 2**26  # bytes of a coverage table: a million regions
_ACCENT = "#3b82c4"  # legible on white and on black
_INK = "#123456"  # becomes the colour of the page's text
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
    cohort = _read_logs(out_dir / "logs")
    title = f"Cohort {html.escape(out_dir.resolve().name)}"
    now = html.escape(time.strftime("%Y-%m-%d %H:%M:%S %z"))
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p><small>{html.escape(str(out_dir.resolve()))}<br>{now}, gpumask {__version__}</small></p>"
        f"{_totals(cohort, n_runs)}{_failures(cohort)}{_left(cohort)}{_coverage(cohort, out_dir)}{_timings(cohort)}"
        f"{_warnings(cohort)}"
        "</body></html>\n"
    )
    path = out_dir / "cohort.html"
    with replacing(path) as part:
        write(part, [page])
    return path


# Logs


_FOLDER = re.compile("(sub-[^_]+(?:_ses-[^_]+)?)(?:_func)?")
_WORD = re.compile(r"\S+")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_SHORTEST = 1e-3  # s of a run that took any time


@dataclass
class _Attempt:
    """Last line about a run; its other values stay in the file, at `offset`."""

    status: str
    time: str
    file: Path
    offset: int
    listing: str = ""  # of what couldn't be used


@dataclass
class _Cohort:
    done: list = field(default_factory=list)  # names, sorted
    failed: dict = field(default_factory=dict)  # name: attempt
    taken: list = field(default_factory=list)
    lost: list = field(default_factory=list)  # logged as done, without a record
    skipped: int = 0  # finished runs whose last attempt found them finished
    unreadable: Counter = field(default_factory=Counter)  # by log file: lines or whole records
    configurations: Counter = field(default_factory=Counter)
    coverage: dict = field(default_factory=lambda: defaultdict(list))  # atlas: (name, relative path, size)
    seconds: dict = field(default_factory=lambda: defaultdict(list))  # stage: one number per run
    left: list = field(default_factory=list)  # (degrees of freedom, volumes kept, volumes, name), one per run
    rates: list = field(default_factory=list)  # volumes per second, one number per run
    warnings: Counter = field(default_factory=Counter)  # runs by message, without what differs between runs
    errors: Counter = field(default_factory=Counter)
    example: dict = field(default_factory=dict)  # a whole message by such a message


def _read_logs(logs):
    cohort = _Cohort()
    attempts, times_done = _last_attempts(logs, cohort.unreadable), {}
    _drop_usable(attempts, logs)
    for path in sorted(logs.glob("*.json")):
        try:
            record = read_record(path)
        except (OSError, ValueError):
            cohort.unreadable[path.name] += 1
            continue
        name = record["name"]
        last = attempts.pop(name, None)
        if last and last.status == "failed" and last.time > record["time"]:  # finished once, redone in vain
            attempts[name] = last
            continue
        cohort.done.append(name)
        times_done[name] = record["time"]
        cohort.skipped += last is not None and last.status == "skipped"
        cohort.configurations[record["configuration"]] += 1
        _count(cohort.warnings, cohort, record["warnings"], record)
        _add_seconds(cohort, record)
        for denoising, left in left_of(record).items():
            if left.degrees_of_freedom is not None:
                numbers = left.degrees_of_freedom, left.volumes_kept, record["volumes"]
                cohort.left.append((*numbers, f"{name} {denoising}".strip()))
        covered = set()  # of several denoisings, a run's coverage is the same
        for output in record["outputs"]:
            table = parse_output_name(Path(output["path"]).name)
            if table and (table.stat, table.suffix) == ("coverage", "bold") and table.atlas not in covered:
                covered.add(table.atlas)
                cohort.coverage[table.atlas].append((name, output["path"], output["size"]))
    _drop_folders(attempts, times_done)
    for name, attempt in sorted(attempts.items()):
        if attempt.status == "failed":
            line = _line(attempt, name)
            cohort.failed[name] = attempt
            _count(cohort.errors, cohort, [line["error"]], line)
            _count(cohort.warnings, cohort, line["warnings"], line)
        else:
            (cohort.taken if attempt.status == "taken" else cohort.lost).append(name)
    return cohort


def _last_attempts(logs, unreadable):
    attempts = {}
    for path in sorted(logs.glob("*.jsonl")):
        try:
            for offset, values in read_attempts(path):
                if values is None:
                    unreadable[path.name] += 1
                    continue
                name, status, since = (values[key] for key in ("name", "status", "time"))
                # "taken" means that another process has the run: its own line or record is more informative.
                known = attempts.get(name)
                if known is None or (status != "taken", since) >= (known.status != "taken", known.time):
                    attempts[name] = _Attempt(status, since, path, offset, values.get("listing", ""))
        except (OSError, ValueError):  # a folder or a pipe
            unreadable[path.name] += 1
    return attempts


def _drop_usable(attempts, logs):
    """Remove failures of what couldn't be used and isn't in a later listing."""
    listings = {key: (listing["time"], set(listing["names"])) for key, listing in unusable(logs).items()}
    for name, attempt in list(attempts.items()):
        listed, names = listings.get(attempt.listing, ("", ()))
        if attempt.status == "failed" and listed > attempt.time and name not in names:
            del attempts[name]


def _drop_folders(attempts, times_done):
    """Remove failures of folders without usable runs that have finished ones, by their names and times, since."""
    last_done = {}  # by the names of folders, as in `_FOLDER`
    for run, done in times_done.items():
        for folder in accumulate(run.split("_")[:2], "{}_{}".format):
            last_done[folder] = max(done, last_done.get(folder, ""))
    for name, attempt in list(attempts.items()):
        folder = _FOLDER.fullmatch(name) if attempt.listing else None
        if folder and last_done.get(folder[1], "") > attempt.time:
            del attempts[name]


def _line(attempt, name):
    """The line of an attempt, read again: those of all runs may not fit in memory."""
    missing = {"run": name, "name": name, "warnings": [], "error": "no message"}
    try:
        line = read_attempt(attempt.file, attempt.offset)
    except OSError:
        line = None
    return missing | (line or {"error": f"{attempt.file} has changed while it was read."})


def _count(counter, cohort, messages, values):
    """Count each message of a run once; messages are the same if they only differ in paths, names and numbers."""
    kinds = {}
    for message in messages:
        kind = message
        for own in (values["run"], values["name"]):
            kind = kind.replace(own, "<run>")
        kind = _WORD.sub(lambda word: "<path>" if word[0].count("/") > 1 else word[0], kind)
        kinds[_NUMBER.sub("N", kind)] = message
    for kind, message in kinds.items():
        if kind not in counter and len(counter) >= _KINDS:
            kind = message = "Other messages"
        counter[kind] += 1
        cohort.example.setdefault(kind, message)


def _add_seconds(cohort, record):
    for stage, value in record["seconds"].items():
        cohort.seconds[stage].append(value)
    if record["seconds"].get("total", 0) > _SHORTEST:
        cohort.rates.append(record["volumes"] / record["seconds"]["total"])


# Sections


def _totals(cohort, n_runs):
    done, failed = len(cohort.done), len(cohort.failed)
    tiles = [
        ("", done, "done"),
        ("bad" * bool(failed), failed, "failed"),
        ("", cohort.skipped, "of these skipped, as done before"),
    ]
    tiles[1:] = tiles[:0:-1]  # "of these" follows "done"
    if n_runs is not None:
        tiles.append(("", max(n_runs - done - failed, 0), "left"))
    elif cohort.lost:
        tiles.append(("", len(cohort.lost), "to be done again"))
    if cohort.taken:
        tiles.append(("", len(cohort.taken), "taken by another process"))
    parts = ["<ul class='totals'>"]
    parts += [f"<li class='{kind}'><b>{_number(count)}</b>{what}</li>" for kind, count, what in tiles]
    parts.append("</ul>")
    if cohort.lost:
        runs, first = _number(len(cohort.lost), "run"), html.escape(cohort.lost[0])
        parts.append(f"<p>Logged as done, but without a record: {runs} (first: {first}), to be done again.</p>")
    if cohort.unreadable:
        first = html.escape(next(iter(cohort.unreadable)))
        lines = _number(cohort.unreadable.total())
        parts.append(f"<p>Log lines and records skipped as unreadable: {lines} (first in logs/{first}).</p>")
    if len(cohort.configurations) > 1:
        kinds = ", ".join(f"{html.escape(k)} ({_number(n)})" for k, n in cohort.configurations.most_common(_GROUPS))
        parts.append(f"<p>The runs were done with {len(cohort.configurations)} configurations: {kinds}.</p>")
    return "".join(parts)


def _failures(cohort):
    if not cohort.failed:
        return "<h2>Failures</h2><p>None.</p>"
    rows = []
    for name, attempt in heapq.nsmallest(_FAILURES, cohort.failed.items(), key=lambda item: item[0]):
        line = _line(attempt, name)
        error = html.escape(line["error"].replace(line["run"], Path(line["run"]).name))  # the path is below
        rest = "\n".join(line[key] for key in ("run", "time", "traceback") if line.get(key))
        details = f"<details><summary>{error}</summary><pre>{html.escape(rest)}</pre></details>"
        rows.append((f"<div class='run'>{html.escape(name)}</div>", details))
    left = len(cohort.failed) - len(rows)
    more = f"<p>And {_number(left)} more, in logs/*.jsonl.</p>" if left else ""
    groups = ""
    if len(cohort.failed) > len(cohort.errors) > 1 or left:
        groups = _kinds(cohort.errors, cohort.example, "Error")
    return f"<h2>Failures: {_number(len(cohort.failed))}</h2>{groups}{_table(('Run', 'Error'), rows)}{more}"


def _warnings(cohort):
    table = _kinds(cohort.warnings, cohort.example, "Warning") if cohort.warnings else "<p>None.</p>"
    return f"<h2>Warnings</h2>{table}"


def _kinds(counter, example, heading):
    rows = []
    for kind, count in counter.most_common(_GROUPS):
        text = html.escape(example[kind] if count == 1 else kind)
        if count > 1 and example[kind] != kind:
            text += f"<br><small>as in: {html.escape(example[kind])}</small>"
        rows.append((_number(count), text))
    left = len(counter) - _GROUPS
    more = f"<p>And {_number(left)} rarer ones, in logs/*.jsonl.</p>" if left > 0 else ""
    return _table(("Runs", heading), rows, numeric=[0]) + more


def _table(headings, rows, numeric=()):
    """HTML table of cells in HTML; `numeric` columns are aligned to the right."""

    def line(tag, cells):
        return "".join(f"<{tag}{' class=n' * (k in numeric)}>{cell}</{tag}>" for k, cell in enumerate(cells))

    lines = [line("th", headings), *(line("td", row) for row in rows)]
    return f"<div class='wide'><table>{''.join(f'<tr>{cells}</tr>' for cells in lines)}</table></div>"


def _coverage(cohort, out_dir):
    parts = ["<h2>Coverage</h2>"]
    if not cohort.coverage:
        parts.append("<p>No coverage tables.</p>")
    for atlas, tables in heapq.nsmallest(_ATLASES, cohort.coverage.items()):
        parts.append(f"<h3>{html.escape(atlas)}</h3>{_read_coverage(tables, out_dir).html()}")
    if (left := len(cohort.coverage) - _ATLASES) > 0:
        parts.append(f"<p>And {_number(left, 'more atlas', 'more atlases')}, in tables *_stat-coverage_bold.tsv.</p>")
    return "".join(parts)


def _read_coverage(tables, out_dir):
    """Read an atlas's coverage tables one after the other; memory doesn't grow with regions times runs."""
    names, coverage, bad = [name for name, _, _ in tables], None, []
    for index, (name, path, size) in enumerate(tables):
        try:
            nodes, values = _coverage_table(inside(out_dir, path), size)
        except (OSError, ValueError):
            bad.append(name)
            continue
        if coverage is None:
            coverage = _Coverage(names, nodes, bad)
        if nodes != coverage.nodes:
            bad.append(name)
        else:
            coverage.add(index, values)
    return coverage or _Coverage(names, [], bad)


def _coverage_table(path, size):
    """Regions and their coverage; ValueError for a table other than the record's, of `size` bytes."""
    content = read_bytes(path, most=min(size, _LARGEST_TABLE))
    header, _, body = content.decode("utf-8").partition("\n")
    found = cells(body.removesuffix("\n").replace("\n", "\t")) if body else []
    nodes, shares = found[0::2], found[1::2]
    if len(content) != size or header.split("\t") != ["Node", "coverage"] or len(nodes) != len(shares):
        raise ValueError(path)
    values = np.array([float("nan" if share == "n/a" else share) for share in shares])
    if np.any((values < 0) | (values > 1)):
        raise ValueError(path)
    return nodes, values


class _Coverage:
    """Coverage of an atlas's regions over runs: means of blocks of regions x runs, and sums per region and per run."""

    def __init__(self, names, nodes, bad):
        self.names, self.nodes, self.bad = names, nodes, bad
        self.rows = np.unique(np.linspace(0, len(nodes), _PICTURE[0], endpoint=False, dtype=int)) if nodes else []
        shape = len(self.rows), min(_PICTURE[1], len(names))
        self.sums, self.counts = np.zeros(shape), np.zeros(shape)
        self.region_sums, self.region_counts = np.zeros(len(nodes)), np.zeros(len(nodes), int)
        self.region_low = np.zeros(len(nodes), int)
        self.run_mean, self.run_low = np.full(len(names), np.nan), np.zeros(len(names), int)

    def add(self, index, values):
        known = ~np.isnan(values)
        low = ~(values >= _LOW)
        self.run_low[index] = np.count_nonzero(low)
        self.region_low += low
        values = np.where(known, values, 0.0)
        if known.any():
            self.run_mean[index] = values.sum() / np.count_nonzero(known)
        self.region_sums += values
        self.region_counts += known
        if len(self.rows):
            column = index * self.sums.shape[1] // len(self.names)
            self.sums[:, column] += np.add.reduceat(values, self.rows)
            self.counts[:, column] += np.add.reduceat(known, self.rows, dtype=int)

    def html(self):
        n_regions, n_runs = len(self.nodes), len(self.names) - len(self.bad)
        parts = [f"<p>{_number(n_regions, 'region')}, {_number(n_runs, 'run')}."]
        if self.bad:
            parts.append(f" Skipped, as unreadable or with other regions: {_number(len(self.bad), 'table')} "
                         f"(first: {html.escape(self.bad[0])}).")  # fmt: skip
        if self.region_counts.sum() == 0:
            return "".join([*parts, "</p>"])
        per_run, per_region = -(-len(self.names) // self.sums.shape[1]), -(-n_regions // len(self.rows))
        with np.errstate(invalid="ignore"):
            picture = self.sums / self.counts
            means = self.region_sums / self.region_counts
        mean = self.region_sums.sum() / self.region_counts.sum()
        parts.append(f" Mean coverage {mean:.3f}. In the picture, columns are runs in the order of their names, and ")
        parts.append("rows are regions in the order of the table")
        if per_run * per_region > 1:
            size = f"{_number(per_region, 'region')} of {_number(per_run, 'run')}"
            parts.append(f"; a pixel is the mean of up to {size}")
        parts.append(".</p>")
        parts.append(_heat_map(picture, self.names, self.nodes))
        regions = np.lexsort((means, -self.region_low))[:_WORST]
        runs = np.lexsort((self.run_mean, -self.run_low))[:_WORST]
        parts.append("<div class='pair'>")
        parts.append(_worst("Region", f"Runs below {_LOW}", self.nodes, means, self.region_low, regions))
        parts.append(_worst("Run", f"Regions below {_LOW}", self.names, self.run_mean, self.run_low, runs))
        parts.append("</div>")
        return "".join(parts)


def _worst(what, low, names, means, counts, chosen):
    rows = [(html.escape(names[i]), f"{means[i]:.3f}", _number(counts[i])) for i in chosen]
    return _table((f"{what}, least covered first", "Mean", low), rows, numeric=(1, 2))


def _left(cohort):
    """What censoring and cleaning leave of the runs, the runs with the least first."""
    if not cohort.left:
        return ""
    worst = sorted(cohort.left)[:_WORST]
    n_kept, n_volumes = (sum(column) for column in list(zip(*cohort.left, strict=True))[1:3])
    freedom = float(np.median([run[0] for run in cohort.left]))
    rows = [(html.escape(name), f"{dof:.1f}", f"{kept:g}", f"{volumes:g}") for dof, kept, volumes, name in worst]
    return (
        f"<h2>Volumes and degrees of freedom left</h2><p>{_number(n_kept)} of {_number(n_volumes)} volumes are kept; a "
        f"median of {freedom:.1f} degrees of freedom is left of a run. The runs with the fewest:</p>"
        + _table(("Run", "Degrees of freedom", "Volumes kept", "Volumes"), rows, numeric=(1, 2, 3))
    )


def _timings(cohort):
    stages = [stage for stage in STAGES if stage in cohort.seconds]
    if not stages:
        return "<h2>Timings</h2><p>No finished runs.</p>"
    rows, panels = [], []
    for label, values in [*((f"{s}, s", cohort.seconds[s]) for s in stages), ("volumes per second", cohort.rates)]:
        if not values:
            continue
        panels.append((label, values))
        rows.append((html.escape(label), *(f"{x:.3g}" for x in (*np.percentile(values, (5, 50, 95)), max(values)))))
    return (
        f"<h2>Timings</h2><p>Of {_number(len(cohort.done), 'run')}. Stages overlap; reduce is summed over threads.</p>"
        + _histograms(panels)
        + _table(("", "5 %", "median", "95 %", "largest"), rows, numeric=range(1, 5))
    )


def _number(count, noun="", plural=""):
    """Count with spaces between thousands, and a noun in the singular or plural."""
    number = f"{count:,}".replace(",", "\u202f")
    return f"{number} {noun if count == 1 else plural or f'{noun}s'}" if noun else number


# Pictures


def _heat_map(picture, names, nodes):
    def draw(figure):
        axes = figure.subplots()
        image = axes.imshow(
            picture, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="none",
            extent=(0, len(names), len(nodes), 0),
        )  # fmt: skip
        _tick(axes.xaxis, [name.partition("_")[0] for name in names], 6)
        _tick(axes.yaxis, nodes, 25)
        bar = figure.colorbar(image, label="coverage", pad=0.01)
        for part in (axes, bar.ax):
            _ink(part)

    return _svg(draw, (11, 5.5), "coverage of regions (rows) in runs (columns)")


def _tick(axis, names, n_ticks):
    chosen = sorted({int((i + 0.5) * len(names) / n_ticks) for i in range(n_ticks)})
    axis.set_ticks([i + 0.5 for i in chosen], [_short(names[i]) for i in chosen])


def _short(name, length=28):
    name = name.replace("$", r"\$")  # no formulas
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _histograms(panels):
    def draw(figure):
        for axes, (label, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            values = np.float64(np.float32(values))  # there are no bins between doubles next to each other
            axes.hist(values, bins=min(30, max(5, len(values) // 3)), color=_ACCENT)
            axes.set_xlabel(label)
            axes.spines[["top", "right"]].set_visible(False)
            _ink(axes)
            axes.locator_params(nbins=3)
        figure.axes[0].set_ylabel("runs")

    return _svg(draw, (2 * len(panels), 2), "distribution over runs of " + ", ".join(label for label, _ in panels))


def _ink(axes):
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)


def _svg(draw, size, label):
    """Picture as inline SVG, in the colour of the page's text; without matplotlib, a hint."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "<p>For a picture here: pip install 'gpumask[report]', and rewrite the page.</p>"
    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    draw(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = svg.replace("<svg", f"<svg role='img' aria-label='{html.escape(label)}'", 1)
    return f"<div class='wide'>{svg}</div>"
