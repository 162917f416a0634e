"""Tables of the READMEs, from result files: ``python -m benchmarks.summary`` writes them anew.

A line such as ``<!-- targets: 2026-11-26T0130_abc1234 2026-11-22T2231_14ac934 -->`` precedes each table. It names the
kind of table and its columns' files in `benchmarks/results`; of files joined by "+", which make one column, the last
one that has a row counts, and the last one names the column. A GPU's tables have one file, in `results/gpu`.
"""

import json
import re
import sys
from datetime import datetime
from pathlib import Path

from benchmarks import report
from benchmarks.measure import OURS, Measured, median_and_range
from benchmarks.rows import all_rows
from gpumask.files import appearing_together, write

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
SPEED = (
    "mean, .nii.gz",
    "6 mm + cleaning, .nii.gz",
    "5 atlases in one pass, .nii.gz",
    "6 mm + cleaning, .nii",
    "cubic resampling to the labels, oblique, .nii, 40 volumes",
)
# Work, what "auto" chooses, why, and the whole run that was measured (None: none was).
_RESAMPLING = "resampling takes longer than copying"
_DECODING = "decoding, on the CPU, takes nearly all the time"
_COPYING = "copying to the GPU takes longer than the CPU's work"
GPU = (
    ("voxels, cleaned; correlation maps", "GPU", "large filters and products", None),
    ("resampling to the labels, aligned, .nii", "GPU", _RESAMPLING, ("to labels, aligned", ".nii")),
    ("resampling to the labels, oblique, .nii", "GPU", _RESAMPLING, ("to labels, oblique", ".nii")),
    ("median, 6 mm, .nii", "GPU", "smoothing takes longer than copying", ("median 6 mm", ".nii")),
    ("mean, .nii.gz", "CPU", _DECODING, ("mean", ".nii.gz")),
    ("6 mm + cleaning, .nii.gz", "CPU", _DECODING, ("6 mm + cleaning", ".nii.gz")),
    ("6 mm + cleaning, .nii", "CPU", _COPYING, ("6 mm + cleaning", ".nii")),
    ("median, .nii", "CPU", _COPYING, ("median", ".nii")),
)
TABLE = re.compile(r"<!-- (\w+): (.+) -->\n(?:\|.*\n)*")


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


def speed(results):
    """The first page's rows: milliseconds a volume, once the plan is compiled."""
    yield from _head(["work", "nilearn", OURS, "speedup", "time / decoding", "memory, nilearn", "memory, gpumask"])
    for name in SPEED:
        measured = results.rows["targets", name]
        found, decoding = (_find(results, ("targets", name), "next", tool) for tool in ("nilearn", "decoding"))
        ours, theirs = _per_volume(measured, found)
        memory = [_memory(measured, "nilearn") if found["per_volume"] is None else "", _memory(measured, OURS)]
        share = f"{decoding['ratio'][0]:.2f}" if decoding else ""
        yield _line([name.removesuffix(", 40 volumes"), theirs, ours, _ratio(found), share, *memory])


def _per_volume(measured, found):
    """Milliseconds a volume of gpumask and of nilearn, which may have read fewer volumes."""
    times = found["seconds"][0], found["their_seconds"][0]
    volumes = measured.row.ours.n_volumes, measured.row.against["nilearn"].workload.n_volumes
    return [f"{time / n * 1e3:#.3g} ms".replace(". ", " ") for time, n in zip(times, volumes, strict=True)]


def gpu(document):
    """What a GPU is for: what "auto" chooses and why, and seconds of whole runs on it and on its machine's CPU."""
    n_cores = document["machine"][0]["cores"]
    yield from _head(["work, 200 volumes", '"auto"', "why", "GPU, 0.1.0", f"{n_cores} cores, 0.1.0"])
    for work, choice, why, key in GPU:
        times = [f"{one['s']:.2f} s" for one in _whole_runs(document)[key]] if key else ["not measured"] * 2
        yield _line([work, choice, why, *times])


def gpu_runs(document):
    """All whole runs, and where a GPU's time goes."""
    steps = ("read", "upload", "reduce", "clean")
    n_cores = document["machine"][0]["cores"]
    yield from _head(["work", "file", "GPU, first", "GPU", *steps, f"CPU, {n_cores} cores", "difference"])
    for key, (on_gpu, on_cpu) in _whole_runs(document).items():
        times = [f"{on_gpu[name]:.3f} s" for name in ("first", "s", "read")]
        times += [f"{on_gpu[name] * 1e3:.1f} ms" for name in steps[1:]]
        yield _line([*key, *times, f"{on_cpu['s']:.3f} s", f"{on_cpu['difference']:g}"])


def gpu_cohort(document):
    """Runs a minute of a cohort."""
    columns = {("cuda:0", 1): "GPU, 1 process", ("cuda:0", 4): "GPU, 4 processes", ("cpu", 1): "CPU, 1 process"}
    yield from _head(["work", *columns.values()])
    found = {}
    for one in document["cohort"]:
        found.setdefault(one["work"], {})[one["device"], one["processes"]] = one["runs/min"]
    for work, rates in found.items():
        yield _line([work, *(f"{rates[key]:.0f}" for key in columns)])


def decoding(document):
    """One compressed run, decoded by isal and by rapidgzip."""
    yield from _head(["decoder", "s", "CPU s", "memory", "time / isal"])
    values = next(row["values"] for row in document["rows"] if row["row"] == "decoding")
    for way in (name.removesuffix(": CPU s") for name in values if name.endswith(": CPU s")):
        ratio = values.get(f"{way}: time / isal")
        numbers = [f"{values[f'{way}: {unit}']:.2f}" for unit in ("s", "CPU s")]
        yield _line([way, *numbers, f"{values[f'{way}: memory, MB']:.0f} MB", f"{ratio:.2f}" if ratio else ""])


def _whole_runs(document):
    """Runs on the GPU and on the CPU, by work and file."""
    runs = {}
    for one in document["runs"]:
        runs.setdefault((one["work"], one["file"]), []).append(one)
    return runs


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
        if kind in _GPU_KINDS:
            lines = _GPU_KINDS[kind](json.loads((RESULTS / "gpu" / f"{files}.json").read_text()))
        else:
            lines = _KINDS[kind](*map(Results, files.split()))
        return "\n".join([f"<!-- {kind}: {files} -->", *lines, ""])

    return TABLE.sub(table, text)


_KINDS = {"speed": speed, "targets": targets, "growth": growth, "tools": tools}
_GPU_KINDS = {"gpu": gpu, "gpu_runs": gpu_runs, "gpu_cohort": gpu_cohort, "decoding": decoding}


def main():
    """Write the tables of all documents."""
    for path in DOCUMENTS:
        text = written(path.read_text("utf-8"))
        with appearing_together([path]) as (part,):
            write(part, [text])
    return 0


if __name__ == "__main__":
    sys.exit(main())
