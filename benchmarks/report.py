"""Measurements as a Markdown table and as JSON, with the machine that they are from."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from threadpoolctl import threadpool_info

from benchmarks.measure import OURS, median_and_range, workloads_of
from gpumask.kernels import compiled

_PACKAGES = (
    *("gpumask", "nilearn", "numpy", "scipy", "nibabel", "scikit-learn", "joblib", "isal", "rapidgzip", "pandas"),
    *("antspyx", "SimpleITK", "scikit-image", "cupy-cuda12x", "cupy-cuda13x"),
)
_ENVIRONMENT = ("OMP_", "OPENBLAS_", "MKL_", "BLIS_", "NUMEXPR_", "GPUMASK_", "PYTHONOPTIMIZE", "MALLOC_")

COLUMNS = ("work", "step", "gpumask", "against", "takes", "ratio (range)", "target", "met")
COLUMNS += ("memory: gpumask", "against", "difference")
EXPLANATION = """\
Medians; in brackets the lowest and highest of the rounds. Ratios are of the same round: "5x as fast", or "1.1x its
time" where the target is a bound from above. Each measurement is a process of its own, the tools in turn; files are in
the system's cache. "first" is fit and transform with a new masker, "next" is transform of one more run with the same
one (where that takes less than 0.5 s, the median of up to five). "decoding" is decompressing the very file with isal
and nothing else. Memory is the peak above the imports. A tool's time "per volume" is of its first volumes only, and
its ratio by volume. The difference is relative to the region's largest signal, for z-scores absolute.
"""


def heading(about):
    """What precedes the tables: what they are of, and how to read them."""
    shape = " x ".join(map(str, about["grid"]))
    synthetic = [str(n) for n, source in about["atlases"].items() if source != "real"]
    notes = [
        f"{shape}, int16 and 200 volumes where nothing else is said; {about['rounds']} rounds; {about['cpu']}, "
        f"{about['cores']} cores; Python {about['python']}, NumPy {about['versions']['numpy']}, nilearn "
        f"{about['versions'].get('nilearn', 'not installed')}; commit {about['commit']}; {about['date']}.",
        f"Compiled kernels: {', '.join(about['compiled_kernels']) or '**none, their substitutes are measured**'}.",
        *([f"Atlases that are synthetic here: {', '.join(synthetic)} regions."] if synthetic else []),
        *(["Tiny inputs, all in one process: these are no results."] if about["tiny"] else []),
        "GPU: not measured here.",
    ]
    return "\n".join([*notes, "", EXPLANATION])


def head():
    """The head of a table."""
    return f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def machine():
    """What times depend on: processor, memory, threads, environment, compiled kernels, versions, commit and date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _field_of("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_kb": (_field_of("/proc/meminfo", "MemTotal") or "").removesuffix(" kB"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "thread_pools": [
            {key: pool.get(key) for key in ("user_api", "internal_api", "version", "num_threads", "architecture")}
            for pool in threadpool_info()
        ],
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT)},
        "compiled_kernels": _compiled_kernels(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _compiled_kernels():
    """Names of gpumask's compiled functions; without them, slower substitutes are measured."""
    return sorted(name for name in dir(compiled.extension) if name[0] != "_") if compiled.is_compiled else []


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _field_of(path, name):
    if not Path(path).exists():
        return None
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _commit():
    """The commit that is measured, with a "+" if files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def comparisons(measured):
    """The numbers behind the table: a dict per step and tool of a row."""
    row = measured.row
    volumes = {tool: workload.n_volumes for tool, workload in workloads_of(row).items()}
    for step, ours in measured.seconds[OURS].items():
        for tool in [tool for tool in row.against if tool in measured.seconds]:
            against, steps = row.against[tool], measured.seconds[tool]
            is_last = step == _last(measured.seconds[OURS])
            if against.of == "peak_mb" and not is_last:
                continue
            theirs = steps.get(step, steps[_last(steps)])
            fewer = volumes[tool] < volumes[OURS] and not against.floor
            mine, other = ours, [value * volumes[OURS] / volumes[tool] for value in theirs] if fewer else theirs
            if against.of == "peak_mb":
                mine, other = measured.peak_mb[OURS], measured.peak_mb[tool]
            pairs = zip(mine, other, strict=True)
            ratio = median_and_range([a / b if against.floor else b / a for a, b in pairs])
            target = against.target if is_last else None
            kept = ratio[0] <= (target or 0) if against.floor else ratio[0] >= (target or 0)
            yield {
                "step": step,
                "against": tool,
                "seconds": median_and_range(ours),
                "their_seconds": median_and_range(theirs),
                "per_volume": volumes[tool] if fewer else None,
                "of": "memory" if against.of == "peak_mb" else "time",
                "floor": against.floor,
                "ratio": ratio,
                "target": target,
                "met": None if target is None else kept,
            }


def limits(measured):
    """The row's absolute limits: dicts of what, its limit, its median, and whether it is met."""
    for what, limit in measured.row.limits.items():
        values = measured.peak_mb[OURS] if what == "peak_mb" else measured.seconds[OURS][what]
        value = median_and_range(values)[0]
        yield {"of": what, "limit": limit, "value": value, "met": value <= limit}


def _last(steps):
    """The step that targets apply to: where there are several, that of a masker that has its plan."""
    return list(steps)[-1]


def lines(measured):
    """The lines of a row in the Markdown table."""
    row = measured.row
    own = {"work": row.name, "memory": _mb(measured.peak_mb[OURS])}
    compared = list(comparisons(measured))
    for one in compared:
        tool, volumes = one["against"], one["per_volume"]
        takes = (
            f"{one['their_seconds'][0] / volumes * 1e3:.1f} ms per volume" if volumes else _time(one["their_seconds"])
        )
        middle, low, high = (f"{value:.{2 if one['floor'] else 1}f}" for value in one["ratio"])
        yield line(
            **own,
            step=one["step"],
            ours=_time(one["seconds"]),
            against=tool,
            takes=takes,
            ratio=f"{middle}x {'its ' + one['of'] if one['floor'] else 'as fast'} ({low}-{high})",
            target="-" if one["target"] is None else f"{'<=' if one['floor'] else '>='} {one['target']:g}x",
            met=one["met"],
            their_memory=_mb(measured.peak_mb[tool]),
            difference=f"{measured.differences[tool]:.0e}" if tool in measured.differences else "-",
        )
    if not compared:
        for step, values in measured.seconds[OURS].items():
            yield line(**own, step=step, ours=_time(median_and_range(values)))
    for one in limits(measured):
        unit = "MB" if one["of"] == "peak_mb" else "s"
        what = "memory" if unit == "MB" else one["of"]
        shown = f"{one['value']:.0f} MB" if unit == "MB" else _seconds(one["value"])
        yield line(work=row.name, step=what, ours=shown, target=f"<= {one['limit']} {unit}", met=one["met"])
    for tool, reason in measured.skipped.items():
        yield line(work=row.name, against=tool, takes=f"not run: {reason}")


def line(
    *,
    work,
    step="-",
    ours="-",
    against="-",
    takes="-",
    ratio="-",
    target="-",
    met=None,
    memory="-",
    their_memory="-",
    difference="-",
):
    """One line of the table."""
    met = {None: "-", True: "yes", False: "**no**"}[met]
    cells = (work, step, ours, against, takes, ratio, target, met, memory, their_memory, difference)
    return f"| {' | '.join(cells)} |"


def _seconds(value):
    return f"{value * 1e3:.0f} ms" if value < 0.1 else f"{value:.2f} s"


def _time(of):
    middle, low, high = of
    return f"{_seconds(middle)} ({_seconds(low)}-{_seconds(high)})"


def _mb(values):
    return "-" if None in values else f"{median_and_range(values)[0]:.0f} MB"


def as_json(measured):
    """A row's measurements, every one of them, with four digits."""
    return _short(
        {
            "group": measured.row.group,
            "work": measured.row.name,
            "volumes": {tool: workload.n_volumes for tool, workload in workloads_of(measured.row).items()},
            "seconds": measured.seconds,
            "peak_mb": measured.peak_mb,
            "differences": measured.differences,
            "skipped": measured.skipped,
            "targets": [
                *(one for one in comparisons(measured) if one["target"] is not None),
                *limits(measured),
            ],
        }
    )


def _short(value):
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_short(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
