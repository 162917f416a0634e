"""Outcomes of runs: the record of a finished run and how its outputs were made, and the log of attempts."""

import json
import os
import platform
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpumask.bids.metadata import metadata_file
from gpumask.bids.names import run_name
from gpumask.bids.runs import Problem, Run
from gpumask.cohort.configuration import AtlasFile, Configuration
from gpumask.files import append_line


@dataclass(frozen=True)
class Output:
    """A file made from a run.

    Attributes
    ----------
    path : str
        Relative to the output folder, with "/".
    size : int
        In bytes.
    made : str
        Hash of how it was made, from ``Configuration.made``.
    """

    path: str
    size: int
    made: str


@dataclass(frozen=True)
class Record:
    """Outcome of a run.

    Attributes
    ----------
    run : Run
    status : str
        "done", "failed", "skipped" (finished before), "taken" (locked by another process) or "stopped".
    n_volumes : int
        Of the image.
    seconds : dict
        Wall-clock seconds: "read" (the disk and decompressing), "reduce", "clean", "write" and "total".
    atlases : dict
        For each atlas its number of "regions" and, if coverage is written, its median, "coverage_median".
    outputs : tuple of Output
    warnings : tuple of str
    error, traceback : str
        Reason of a failure; otherwise empty.
    """

    run: Run
    status: str
    n_volumes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    atlases: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: tuple[Output, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""
    traceback: str = ""


def failed(run: Run, error: BaseException, warnings: Iterable[str] = ()) -> Record:
    """The record of a run that raised `error`."""
    text = "".join(traceback.format_exception(error))
    return Record(run, "failed", warnings=tuple(warnings), error=str(error) or type(error).__name__, traceback=text)


def record_path(configuration: Configuration, run: Run) -> Path:
    """File of a run's record; it is written last, when the run is finished."""
    return configuration.out_dir / "logs" / f"{run_name(run)}.json"


def identities(run: Run) -> dict[str, Any]:
    """Size and modification time (ns) of each of a run's input files, and its `t_r` if one was given."""
    files = [run.path, run.confounds, run.mask, metadata_file(run)]
    if run.confounds and (described := Path(run.confounds).with_suffix(".json")).exists():
        files.append(described)
    states = {os.path.abspath(file): os.stat(file) for file in files if file}  # noqa: PTH100, PTH116
    given = {} if run.t_r is None else {"t_r": run.t_r}
    return {path: [state.st_size, state.st_mtime_ns] for path, state in states.items()} | given


@dataclass(frozen=True)
class Kept:
    """Results of an earlier attempt at a run that are still valid; empty if there are none.

    Attributes
    ----------
    outputs : tuple of Output
        Existing files of the recorded sizes.
    made : dict of str
        How the outputs were made, by ``Output.made``.
    atlases : dict
        As in `Record`.
    warnings : tuple of str
    """

    outputs: tuple[Output, ...] = ()
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    atlases: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def kept(configuration: Configuration, run: Run) -> Kept:
    """Read a run's record, if it was made from the same inputs, and look for its outputs."""
    try:
        record = json.loads(record_path(configuration, run).read_text("utf-8"))
        if record["status"] != "done" or record["inputs"] != identities(run):
            return Kept()
        outputs = [Output(str(o["path"]), int(o["size"]), str(o["made"])) for o in record["outputs"]]
        outputs = tuple(o for o in outputs if _size(configuration.out_dir / o.path) == o.size)
        made = {output.made: dict(record["made"][output.made]) for output in outputs}
        atlases = {str(how["atlas"]): dict(record["atlases"][how["atlas"]]) for how in made.values()}
        return Kept(outputs, made, atlases, tuple(map(str, record["warnings"])) if outputs else ())
    except (OSError, ValueError, KeyError, TypeError):  # an error of the run's files shows when it is processed
        return Kept()


def _size(path):
    try:
        return path.stat().st_size
    except OSError:
        return None


def unfinished(configuration: Configuration, run: Run) -> list[AtlasFile]:
    """Atlases for which a run's outputs are missing, outdated, or made with another configuration."""
    there = {(output.path, output.made) for output in kept(configuration, run).outputs}

    def is_there(path, atlas):
        return (path.relative_to(configuration.out_dir).as_posix(), configuration.made[atlas.name]) in there

    wanted = ((atlas, configuration.outputs(run, atlas).values()) for atlas in configuration.atlases)
    return [atlas for atlas, paths in wanted if not all(is_there(path, atlas) for path in paths)]


def is_done(configuration: Configuration, run: Run) -> bool:
    """Whether a run is finished: all its outputs exist, made with this configuration from these inputs."""
    return not unfinished(configuration, run)


def described(record: Record) -> dict[str, Any]:
    """A record as a JSON object, for logs."""
    names = ("seconds", "atlases", "warnings", "error", "traceback")
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "status": record.status,
        "run": os.fspath(record.run.path),
        "name": run_name(record.run),
        "volumes": record.n_volumes,
        **{name: getattr(record, name) for name in names},
    }


def logged(configuration: Configuration, record: Record) -> Record:
    """Add a record to this process's log; if that fails, the record's error says so too."""
    line = json.dumps(described(record), ensure_ascii=False)
    try:
        append_line(configuration.out_dir / "logs" / f"runs-{platform.node()}-{os.getpid()}.jsonl", line)
    except OSError as error:
        return replace(record, error=f"{record.error} The log can't be written: {error}".strip())
    return record


def log_problems(configuration: Configuration, problems: Iterable[Problem]) -> None:
    """Add unusable runs to the log, as failed."""
    for problem in problems:
        logged(configuration, Record(Run(problem.path), "failed", error=problem.reason))
