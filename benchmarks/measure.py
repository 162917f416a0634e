"""One measurement in a process of its own, and a row's measurements: rounds in turn, equal results in the first."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

OURS = "gpumask"
_CALLS, _SHORT = 5, 0.5  # of a step of 40 ms, one call alone may be off by half


class DifferentResultsError(Exception):
    """Another tool's result is not gpumask's."""


@dataclass
class Measured:
    """What the rounds of one row gave.

    Attributes
    ----------
    row : Row
    seconds : dict
        By tool and step: a list of seconds, one per round.
    peak_mb : dict
        By tool: a list of MB above what the imports took.
    differences : dict
        By tool: largest difference of its result, in the measure of the row's tolerance.
    skipped : dict
        By tool: why it wasn't run.
    """

    row: object
    seconds: dict = field(default_factory=dict)
    peak_mb: dict = field(default_factory=dict)
    differences: dict = field(default_factory=dict)
    skipped: dict = field(default_factory=dict)


def workloads_of(row):
    """All workloads of a row, by tool; gpumask's first."""
    return {OURS: row.ours} | {tool: one.workload for tool, one in row.against.items()}


def time_steps(workload, inputs):
    """Prepare a workload, call its steps, and time them.

    Returns
    -------
    seconds : dict
        Wall-clock seconds of each step; of a short "next", the median of a few calls.
    peak_mb : float or None
        Peak of resident memory above what was resident after preparing (imports among it); None if the work is done in
        other processes.
    result : list of ndarray or None
        Of the last step.
    """
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        steps = workload.steps(inputs, Path(scratch))
        seconds, result = {}, None
        resident, _ = memory_mb()
        for name, step in steps.items():
            calls = []
            while not calls or (name == "next" and len(calls) < _CALLS and sum(calls) < _SHORT):
                result = None  # of the step before; its memory is none of this step's
                start = time.perf_counter()
                result = step()
                calls.append(time.perf_counter() - start)
            seconds[name] = statistics.median(calls)
        _, peak = memory_mb()
    return seconds, max(peak - resident, 0.0) if workload.in_process else None, result


def memory_mb():
    """Resident memory of this process, and its peak, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its peak survives exec, so that it may be that of the process that started this one.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return tuple(int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return peak, peak


def measure_row(row, inputs, rounds, *, command=None):
    """Time a row's tools in turn, comparing their results before the second round.

    Parameters
    ----------
    row : Row
    inputs : Inputs
    rounds : int
        Measurements of each tool, at least 1.
    command : list of str, optional
        Starts the process of a measurement; it takes the row's group and name, the tool, and where to save the result.
        If None, everything is measured in this process: times and memory then mean little.

    Returns
    -------
    Measured

    Raises
    ------
    DifferentResultsError
        If a tool's result isn't gpumask's within the row's tolerance.
    """
    measured, tools = Measured(row), {}
    for tool, workload in workloads_of(row).items():
        if reason := workload.missing():
            measured.skipped[tool] = reason
        else:
            tools[tool] = workload

    def once(tool, save=None):
        if command is None:
            seconds, peak_mb, result = time_steps(tools[tool], inputs)
            if save:
                save_result(save, result)
            return seconds, peak_mb
        return _in_a_process([*command, row.group, row.name, tool, str(save or "")])

    with tempfile.TemporaryDirectory() as folder:
        first = {tool: once(tool, Path(folder, str(k))) for k, tool in enumerate(tools)}
        ours, *others = (load_result(Path(folder, str(k))) for k in range(len(tools)))
        for tool, theirs in zip(list(tools)[1:], others, strict=True):
            if theirs:
                measured.differences[tool] = compare(row, tool, ours, theirs)
    turns = [list(tools)[:: 1 if k % 2 == 0 else -1] for k in range(1, rounds)]
    for one in [first, *({tool: once(tool) for tool in turn} for turn in turns)]:
        for tool, (seconds, peak_mb) in one.items():
            measured.peak_mb.setdefault(tool, []).append(peak_mb)
            for step, value in seconds.items():
                measured.seconds.setdefault(tool, {}).setdefault(step, []).append(value)
    return measured


def _in_a_process(command):
    root = Path(__file__).parents[1]  # where `python -m benchmarks` finds itself
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode:
        msg = f"{' '.join(command)} failed:\n{done.stderr}"
        raise RuntimeError(msg)
    return json.loads(done.stdout.splitlines()[-1])


def save_result(path, result):
    """Save a list of arrays, or nothing."""
    path.mkdir()
    for k, array in enumerate(result or []):
        np.save(path / f"{k:03}.npy", array)


def load_result(path):
    """The list of arrays at `path`, which aren't read before they are used; empty if there was no result."""
    return [np.load(file, mmap_mode="r") for file in sorted(path.iterdir())]


def compare(row, tool, ours, theirs):
    """Largest difference between two results; DifferentResultsError beyond the tolerance.

    Where the other tool was given fewer volumes, these are compared.
    """
    if len(ours) != len(theirs):
        msg = f"{row.name}: {len(ours)} results, {tool} has {len(theirs)}"
        raise DifferentResultsError(msg)
    largest = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        fewer = workloads_of(row)[tool].n_volumes < row.ours.n_volumes
        mine = mine[: len(other)] if fewer else mine
        if mine.shape != other.shape:
            msg = f"{row.name}: shape {mine.shape}, {tool} has {other.shape}"
            raise DifferentResultsError(msg)
        scale = 1.0
        if not row.absolute:
            scale = np.abs(other).max(axis=0)
            scale = np.where(scale > 0, scale, 1.0)
        difference = float((np.abs(mine.astype(np.float64) - other) / scale).max())
        if not difference <= row.tolerance:
            msg = f"{row.name}: results differ by {difference:.1e} from {tool}'s, at most {row.tolerance:.0e} expected"
            raise DifferentResultsError(msg)
        largest = max(largest, difference)
    return largest


def median_and_range(values):
    """(median, lowest, highest)."""
    return statistics.median(values), min(values), max(values)
