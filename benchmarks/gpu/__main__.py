r"""What a GPU is worth to gpumask, the most important row first: kernels, whole runs, maps, cohorts, decoding.

    python -m benchmarks.gpu [--budget 540] [--out FILE] [--only REGEX] [--list] [--tiny]

The machine may lack a network and nilearn, and may stop commands after ten minutes: the JSON file is rewritten after
every row, and a row that wouldn't fit into the rest of the budget (in seconds) is skipped. Results on the GPU are
compared with the CPU's before they are timed; a difference beyond rounding is that row's error, and makes the exit
status 1.

"device" is the GPU's own time, "launching" the host's for the same work: kernels are queued behind one that spins, so
the gaps between launches don't count. "share of a copy" is the share of the bandwidth of a copy in the GPU's memory,
for the bytes that can't be avoided: of a volume, the sectors of 32 bytes that hold a voxel of a region. Values that
can't be measured are null, with the reason. On an emulated GPU that is all device time; other times mean nothing.

Before the benchmark, on a new machine, the tests that need a GPU (4 minutes in one process are expected):

    python -m pytest -m gpu -p no:cacheprovider

Memory errors, races and uninitialised reads, with NVIDIA's compute-sanitizer (its tools are memcheck, racecheck,
initcheck and synccheck; at 0.1.0, each took less than half a minute on an H100). Without `-p tests.no_pool`, CuPy's
pool hides what lies beyond an array:

    compute-sanitizer --tool memcheck --error-exitcode 9 \
        python -m pytest -q -p no:cacheprovider -p tests.no_pool -m gpu tests/test_reductions.py

Counters of the kernels, with Nsight Compute:

    ncu --set full -k regex:"reduce_parts|combine_parts|select_medians" -f -o kernels \
        python -m benchmarks.gpu --only "^kernel: " --rounds 1 --out kernels.json
    ncu --import kernels.ncu-rep --page raw --csv > kernels.csv
"""

import argparse
import math
import re
import sys
import tempfile
import time
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu.bench import DEVICE, Bench, DifferentResultsError
from benchmarks.gpu.document import Document, about
from benchmarks.gpu.rows import all_rows
from benchmarks.gpu.timing import Clock
from benchmarks.inputs import Inputs
from gpumask import backend, devices

RESULTS = Path(__file__).parents[1] / "results" / "gpu"


def main(argv=None):
    """Run the command line; return 0, 1 if a row failed, or 2 for a wrong usage."""
    options = _parser().parse_args(argv)
    rows = [row for row in all_rows() if re.search(options.only, row.name)]
    if not rows:
        return _refused(f"no row matches {options.only!r}; --list names them")
    if options.list:
        print("\n".join(f"{row.seconds:3.0f} s  {row.name}" for row in rows))
        return 0
    status = devices.cuda_status()
    if status.problem and any(row.needs_gpu for row in rows):
        needed = f"benchmarks.gpu needs a CUDA device: {status.problem}. {status.remedy}"
        return _refused(f"{needed} Decoding alone needs none: --only decoding")
    out = options.out or RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M}.json"
    if out.exists():
        return _refused(f"{out} exists, and may hold measurements: remove it, or give another name with --out")
    clock = Clock(emulated=devices.driver_cuda_version() is None)  # a GPU without NVIDIA's driver is emulated
    path = options.folder
    try:
        if options.folder:
            options.folder.mkdir(parents=True, exist_ok=True)
        path = out
        document = Document(out, about(options, emulated=clock.emulated))
    except OSError as error:
        return _refused(f"{path} can't be written: {error.strerror}")
    with tempfile.TemporaryDirectory() as temporary, backend.using("cpu" if status.problem else DEVICE):
        rounds = (1, 1) if options.tiny else (options.rounds, options.run_rounds)
        bench = Bench(Inputs(options.folder or temporary, tiny=options.tiny), *rounds, clock)
        failed = _measure(rows, bench, document, options)
    print(f"\nwritten: {out}")
    return int(failed)


def _refused(message):
    print(message, file=sys.stderr)
    return 2


def _parser():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--budget", type=_seconds, default=540, help="seconds that the rows may take together (default: %(default)s)")
    add("--out", type=Path, help="the new JSON file (default: one in benchmarks/results/gpu)")
    add(
        "--only",
        type=_pattern,
        metavar="REGEX",
        default="",
        help="rows in whose names this regular expression is found",
    )
    add("--list", action="store_true", help="name the rows, with the seconds that each takes at most, and stop")
    add("--rounds", type=_count, default=20, help="measurements of a kernel (default: %(default)s)")
    add(
        "--run-rounds", type=_count, default=3, help="measurements of a whole run, after a first (default: %(default)s)"
    )
    add("--folder", type=Path, help="where inputs are made and kept (default: a temporary folder)")
    add("--commit", help="what is measured, where that isn't a git repository")
    add("--tiny", action="store_true", help="tiny inputs, one round: shows that the benchmark works, times nothing")
    return parser


def _seconds(text):
    if not float(text) > 0:
        msg = f"must be more than 0, got {text}"
        raise argparse.ArgumentTypeError(msg)
    return float(text)


def _count(text):
    if not text.isdecimal() or int(text) < 1:
        msg = f"must be 1 or more, got {text}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _pattern(text):
    try:
        re.compile(text)
    except re.error as error:
        msg = f"isn't a regular expression: {error}"
        raise argparse.ArgumentTypeError(msg) from error
    return text


def _measure(rows, bench, document, options):
    """Measure the rows that fit the budget, and return whether one failed."""
    started, failed = time.perf_counter(), False
    for row in rows:
        left = options.budget - (time.perf_counter() - started)
        expected = 1 if options.tiny else row.seconds
        if expected > left:
            document.add(row, skipped=f"takes up to {expected:g} s, and {math.floor(left)} s of the budget are left")
            continue
        at_start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of grids that differ, mostly
                values = row.measure(bench)
        except Exception as error:
            failed = True
            is_ours = isinstance(error, DifferentResultsError)
            document.add(row, time.perf_counter() - at_start, error=str(error) if is_ours else traceback.format_exc())
        else:
            document.add(row, time.perf_counter() - at_start, values=values)
    return failed


if __name__ == "__main__":
    sys.exit(main())
