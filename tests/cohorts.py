"""Made cohorts: folders as fMRIPrep leaves them, with small runs, some of them bad; and what came of them."""

import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from gpumask.cohort.group import GroupTables
from gpumask.cohort.page.logs import read_logs
from gpumask.cohort.parquet import Store
from gpumask.cohort.recorded import Unused
from gpumask.cohort.stored import read_record

from .helpers import save

SPACE = "MNI152NLin2009cAsym"
BAD = ("truncated", "empty", "wrong-grid", "no-confounds", "nan-volume")
T_R = 2.0
COLUMNS = ("trans_x", "trans_x_derivative1", "csf", "cosine00")


def make_cohort(root, n_runs=60, *, bad=True, shape=(9, 10, 8), n_volumes=40, suffix=".nii.gz"):
    """Make a folder of derivatives, two runs per subject; return the numbers of the bad runs by what is bad in them."""
    rng = np.random.default_rng(0)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "made", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1"}]})
    )
    numbers = dict(zip(BAD, range(2, n_runs, max(n_runs // 5, 1)), strict=False)) if bad else {}
    kinds = {number: kind for kind, number in numbers.items()}
    mask = np.zeros(shape, np.uint8)
    mask[1:-1, 1:-1, 1:] = 1
    for k in range(n_runs):
        kind = kinds.get(k)
        func = root / f"sub-{k // 2 + 1:02}" / "func"
        func.mkdir(parents=True, exist_ok=True)
        run = f"sub-{k // 2 + 1:02}_task-rest_run-{k % 2 + 1}"
        stem = func / f"{run}_space-{SPACE}_desc"
        data = rng.integers(500, 900, (*shape, n_volumes)).astype(np.int16)
        if kind == "nan-volume":
            data = data.astype(np.float32)
            data[..., 5] = np.nan
        path = Path(f"{stem}-preproc_bold{suffix}")
        save(path, data, affine, T_R)
        if kind == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        if kind == "empty":
            path.write_bytes(b"")
        Path(f"{stem}-preproc_bold.json").write_text(json.dumps({"RepetitionTime": T_R, "TaskName": "rest"}))
        own = mask.copy()
        own[rng.integers(1, shape[0] - 1), 2, 2] = 0
        save(Path(f"{stem}-brain_mask.nii.gz"), own[:, :-1] if kind == "wrong-grid" else own, affine)
        table = pd.DataFrame(rng.normal(size=(n_volumes, len(COLUMNS))), columns=COLUMNS)
        table.loc[0, "trans_x_derivative1"] = np.nan
        table["framewise_displacement"] = [np.nan, *rng.uniform(0, 0.4, n_volumes - 1)]
        table.loc[7, "framewise_displacement"] = 0.9
        if kind != "no-confounds":
            table.to_csv(func / f"{run}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
    return numbers


def make_atlases(folder, shape=(9, 10, 8)):
    """Two atlases with look-up tables, on the runs' grid and on a finer one. A region of the first is in no mask."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, size, n in (("Toy", 3.0, 5), ("Fine", 1.5, 12)):
        fine = np.round(np.array(shape) * 3.0 / size).astype(int)
        labels = np.zeros(fine, np.int16)
        edges = np.linspace(0, fine[0], n + 1).round().astype(int)
        for index, (start, stop) in enumerate(pairwise(edges), start=1):
            labels[start:stop] = index * 10
        if name == "Toy":
            labels[:, :, 0] = 99  # where no mask is
        path = folder / f"atlas-{name}_dseg.nii.gz"
        save(path, labels, np.diag([size, size, size, 1.0]))
        index = np.unique(labels[labels > 0])
        names = [f"{name}{i}" for i in index]
        pd.DataFrame({"index": index, "name": names}).to_csv(folder / f"atlas-{name}_dseg.tsv", sep="\t", index=False)
        paths.append(path)
    return paths


def command(folder, *options, out="out"):
    """Words of a cohort's command line in a process of its own."""
    atlases = [f"--atlas={folder / f'atlas-{name}_dseg.nii.gz'}" for name in ("Toy", "Fine")]
    words = ["cohort", folder / "d", folder / out, "participant", *atlases, "--detrend", "--device", "cpu"]
    return [sys.executable, "-W", "error", "-m", "gpumask", *map(str, words), *map(str, options)]


def record(name, outputs=(), *, volumes_kept=100, degrees_of_freedom=None, **values):
    """The record of a finished run, as `gpumask cohort` writes it; outputs are (path, size, how it was made)."""
    left = {"volumes_kept": volumes_kept, "removed_dummy_scans": 0, "degrees_of_freedom": degrees_of_freedom}
    return {
        "time": "2026-11-22T10:00:00.000+00:00",
        "status": "done",
        "run": f"/data/{name}_desc-preproc_bold.nii.gz",
        "name": name,
        "volumes": 100,
        "repetition_time": 2.0,
        "seconds": {},
        "atlases": {"A": {"regions": 3}},
        "quality": {"": {"volumes": values.get("volumes", 100), **left, "atlases": {}}},
        "warnings": [],
        "error": "",
        "traceback": "",
        "configuration": "c1",
        "inputs": {},
        "outputs": [{"path": path, "size": size, "made": made} for path, size, made in outputs],
        "made": {made: {"atlas": "A", "files": {}, "settings": {}} for _, _, made in outputs},
        "host": "host",
        "pid": 1,
        **values,
    }


def outputs(out):
    """Bytes of all files of a cohort's output folder, by relative path; without logs and what is made of them."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.parent.name != "logs" and not path.name.startswith(("cohort.html", "group_"))
    }


def write_tables(out):
    """Write the tables of a cohort without its page."""
    tables = GroupTables()
    for path in sorted(out.glob("logs/*.json")):
        with contextlib.suppress(ValueError):
            tables.add(read_record(path))
    return tables.write(out, Unused())[0]


def write_store(out, path):
    """Write the Parquet files of a cohort; returns them, and what wasn't used, by path."""
    store = Store()
    unused = read_logs(out / "logs", store.add).unused
    return store.write(out, path, unused), unused.reasons


def log_lines(out):
    """All attempts at runs, of all processes, in the order of their times."""
    lines = [json.loads(line) for log in out.glob("logs/*.jsonl") for line in log.read_text("utf-8").splitlines()]
    return sorted(lines, key=lambda line: line["time"])


def left_over(out):
    """Temporary files and locks."""
    return [path for path in out.rglob("*") if path.name.endswith((".part", ".lock"))]


def check_whole(out, files, runs):
    """Everything is there, equal, and made once; nothing is left over."""
    assert outputs(out) == files
    assert left_over(out) == []
    done = Counter(line["name"] for line in log_lines(out) if line["status"] == "done")
    assert set(done.values()) == {1}
    assert done.keys() <= {path.stem for path in out.glob("logs/sub-*.json")} <= {run.name for run in runs}


# It is forked for each attempt: what an attempt imports, it needn't import again.
_FORKING = """
import os, pickle, sys
from gpumask.cohort.executors import run_cohort

configuration, runs = pickle.loads(bytes.fromhex(sys.stdin.readline()))
for _ in sys.stdin:
    pid = os.fork()
    if not pid:
        for record in run_cohort(configuration, runs):
            pass
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


def killed_at_random_moments(configuration, runs, n=30, longest=0.25):
    """Process a cohort in `n` processes one after the other, each killed within `longest` s, and in one that isn't.

    Returns how each ended: a signal, or 0.
    """
    rng, ends = random.Random(os.environ.get("GPUMASK_TEST_SEED", 0)), []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", _FORKING], **pipes) as forking:
        print(pickle.dumps((configuration, runs)).hex(), file=forking.stdin, flush=True)
        for k in range(n + 1):
            print(file=forking.stdin, flush=True)
            pid = int(forking.stdout.readline())
            if k < n:
                time.sleep(rng.uniform(0, longest))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ends.append(int(forking.stdout.readline()))
        forking.stdin.close()
    return ends
