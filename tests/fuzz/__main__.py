"""``python -m tests.fuzz SUBJECT N [SEED [FIRST]]``: draw N mutations of a subject's files.

Prints a JSON line for each fault, with the command that repeats it alone, and at the end one with the outcomes; exits
with 1 after a fault. A mutation depends only on subject, seed and number; numbers start at FIRST (0).
"""

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from .. import cohorts
from .bounded import bounded
from .grayordinates import Grayordinates
from .images import Images
from .options import Options
from .records import Records
from .tables import Tables
from .verdicts import run_cli

_SUBJECTS = {"images": Images, "grayordinates": Grayordinates, "tables": Tables, "records": Records, "options": Options}


def warm_up(folder):
    """Import, before the forks, what commands import when they need it."""
    cohorts.make_cohort(folder / "d", 2, bad=False)
    _, atlas = cohorts.make_atlases(folder)
    words = ["cohort", folder / "d", folder / "out", "participant", "--atlas", atlas, "--confounds-columns", "csf"]
    words += [
        "--high-pass",
        "0.01",
        "--smoothing-fwhm",
        "5",
        "--store",
        folder / "out" / "x.parquet",
        "--device",
        "cpu",
    ]
    assert run_cli(words)[0] == 0


def main(subject, n, seed=0, first=0):
    """Draw mutations and print what came of them; returns the exit status."""
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:2])  # each thread reserves memory
    n, seed, first = int(n), int(seed), int(first)
    outcomes, slowest, largest = Counter(), 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder) / "warm")
        os.chdir(folder)
        here = Path(folder) / "here"
        here.mkdir()
        drawn = _SUBJECTS[subject](here)
        for number in range(first, first + n):
            what, work = drawn.draw(np.random.default_rng([seed, number]))
            report = bounded(work)
            outcomes[report.outcome] += 1
            slowest, largest = max(slowest, report.seconds), max(largest, report.megabytes)
            if report.fault:
                repeat = f"python -m tests.fuzz {subject} 1 {seed} {number}"
                print(json.dumps({"mutation": what, "fault": report.fault, "repeat": repeat}), flush=True)
        os.chdir("/")
    figures = {"outcomes": dict(outcomes.most_common()), "slowest_s": round(slowest, 2), "largest_mb": round(largest)}
    print(json.dumps({"subject": subject, "mutations": n, **figures}))
    return 1 if outcomes["fault"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
