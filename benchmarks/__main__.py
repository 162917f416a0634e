"""One command for all benchmarks: ``python -m benchmarks``; see ``--help``."""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.inputs import REAL_FILES, Inputs
from benchmarks.measure import DifferentResultsError, measure_row, save_result, time_steps, workloads_of
from benchmarks.rows import all_rows
from gpumask.files import appearing_together, write

RESULTS = Path(__file__).parent / "results"
_BYTES = {False: 6e9, True: 25e9}  # of all inputs, without and with --full


def main(argv=None):
    """Run the command line; return 0, or 1 if results differ from another tool's."""
    options = _parser().parse_args(argv)
    if options.measure:
        print(json.dumps(_measure_one(options)))
        return 0
    if options.rounds is not None and options.rounds < 1:
        print(f"--rounds must be at least 1, got {options.rounds}", file=sys.stderr)
        return 2
    rows = [row for row in all_rows() if _is_chosen(row, options)]
    if not rows:
        print(f"no row matches {options.only!r}; --list names them", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{row.group}: {row.name}" for row in rows))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Inputs(options.folder or temporary, tiny=options.tiny)
        if not options.tiny:
            inputs.check_disk(_BYTES[options.full])
        return _run(rows, inputs, options)


def _parser():
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Time gpumask against nilearn and others in one run, and compare their results. Writes a "
        "Markdown table (also printed) and a JSON file.",
    )
    add = parser.add_argument
    add("--folder", type=Path, help="where inputs are made and kept, up to 6 GB (default: a temporary folder)")
    add("--results", type=Path, default=RESULTS, help="where the table and the JSON are written (default: %(default)s)")
    add("--rounds", type=int, help="measurements of each tool (default: 5; --quick 3; --tiny 1)")
    add("--only", metavar="PATTERN", default="", help="rows whose 'group: name' this regular expression is found in")
    add("--quick", action="store_true", help="a few of the rows, 3 rounds")
    add("--full", action="store_true", help="runs of 1200 volumes too; inputs take up to 25 GB")
    add(
        "--tiny", action="store_true", help="tiny inputs, in one process: shows that the benchmark works, times nothing"
    )
    add("--list", action="store_true", help="name the rows and stop")
    add("--measure", nargs=4, metavar=("GROUP", "NAME", "TOOL", "SAVE"), help=argparse.SUPPRESS)
    return parser


def _is_chosen(row, options):
    if (row.full and not options.full) or (options.quick and not row.quick):
        return False
    return re.search(options.only, f"{row.group}: {row.name}") is not None


def _measure_one(options):
    """Measure one workload in this process: what the process of a measurement does."""
    group, name, tool, save = options.measure
    (row,) = (row for row in all_rows() if (row.group, row.name) == (group, name))
    seconds, peak_mb, result = time_steps(workloads_of(row)[tool], Inputs(options.folder, tiny=options.tiny))
    if save:
        save_result(Path(save), result)
    return seconds, peak_mb


def _run(rows, inputs, options):
    rounds = options.rounds or (1 if options.tiny else 3 if options.quick else 5)
    command = None
    if not options.tiny:
        command = [sys.executable, "-m", "benchmarks", "--folder", str(inputs.folder), "--measure"]
    about = report.machine() | {"grid": inputs.shape, "rounds": rounds, "tiny": options.tiny}
    about["atlases"] = {n: inputs.source_of_atlas(n) for n in REAL_FILES}
    stem = f"{about['date'][:16].replace(':', '')}_{(about['commit'] or 'unknown').removesuffix('+')}"
    document, table = {"about": about, "rows": []}, []
    _say(table, report.heading(about))
    group, agreed = None, True
    for row in rows:
        if row.group != group:
            group = row.group
            _say(table, f"\n### {group.capitalize()}\n\n{report.head()}")
        try:
            measured = measure_row(row, inputs, rounds, command=command)
        except DifferentResultsError as error:
            agreed = False
            document["rows"].append({"group": row.group, "work": row.name, "error": str(error)})
            _say(table, report.line(work=row.name, takes=f"**{error}**; not timed"))
        else:
            document["rows"].append(report.as_json(measured))
            _say(table, "\n".join(report.lines(measured)))
        _write(options.results / stem, document, table)  # after every row, as the next one may fail
    print(f"\nwritten: {options.results / stem}.json and .md", file=sys.stderr)
    return 0 if agreed else 1


def _say(table, text):
    table.append(text)
    print(text, flush=True)


def _write(path, document, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    # A line per row: short, and readable where it differs.
    rows = ",\n".join(json.dumps(row) for row in document["rows"])
    text = f'{{"about": {json.dumps(document["about"], indent=1)},\n"rows": [\n{rows}\n]}}\n'
    with appearing_together([path.with_suffix(".json"), path.with_suffix(".md")]) as parts:
        write(parts[0], [text])
        write(parts[1], ["\n".join(table), "\n"])


if __name__ == "__main__":
    sys.exit(main())
