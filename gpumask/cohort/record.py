"""Outcomes of runs: the record of a finished run and how its outputs were made, and the log of attempts."""

import contextlib
import json
import os
import platform
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpumask.bids.content import check_content
from gpumask.bids.metadata import metadata_files
from gpumask.bids.names import run_name, sidecar_path
from gpumask.bids.runs import Problem, Run
from gpumask.cohort.configuration import Configuration, Unit
from gpumask.cohort.quality import joined_qualities
from gpumask.cohort.stored import (
    read_listings,
    read_record,
    shortened_message,
    shortened_path,
    shortened_traceback,
    shortened_warnings,
    unit_key,
)
from gpumask.files import append_line, inside, replacing, write
from gpumask.images.opening import image_hashes
from gpumask.inputs import shortened
from gpumask.tables import json_lines

_LONGEST_VALUE = 120  # characters of an option's value in a message; a preset has 36 columns


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
    """Outcome of a run. Long messages lose their middles.

    Attributes
    ----------
    run : Run
    status : str
        "done", "failed", "skipped" (finished before), "taken" (locked by another process) or "stopped".
    n_volumes : int
        Of the image.
    t_r : float or None
        Repetition time in s.
    seconds : dict
        Wall-clock seconds: "read" (the disk and decompressing), "reduce", "clean", "write" and "total".
    atlases : dict
        For each atlas its number of "regions"; if coverage is written, its median, "coverage_median"; and messages
        about "overlaps" of the images that it is combined from, if there are any.
    quality : dict
        What each denoising leaves of the run, and how the run moved, by the name of the denoising ("" for one without
        a name): see `gpumask.cohort.quality.quality_of`.
    outputs : tuple of Output
    warnings : tuple of str
    error, traceback : str
        Reason of a failure; otherwise empty.
    """

    run: Run
    status: str
    n_volumes: int = 0
    t_r: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    atlases: dict[str, dict[str, Any]] = field(default_factory=dict)
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: tuple[Output, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""
    traceback: str = ""

    def __post_init__(self):
        object.__setattr__(self, "warnings", shortened_warnings(self.warnings))
        object.__setattr__(self, "error", shortened_message(self.error))
        object.__setattr__(self, "traceback", shortened_traceback(self.traceback))


def failed(run: Run, error: BaseException, warnings: Iterable[str] = ()) -> Record:
    """The record of a run that raised `error`."""
    text = "".join(traceback.format_exception(error))
    return Record(run, "failed", warnings=tuple(warnings), error=str(error) or type(error).__name__, traceback=text)


def record_path(configuration: Configuration, run: Run) -> Path:
    """File of a run's record; it is written last, when the run is finished."""
    return configuration.out_dir / "logs" / f"{run_name(run)}.json"


def identities(run: Run) -> dict[str, Any]:
    """Size and modification time (ns) of each of a run's input files, and its `t_r` if one was given.

    "atlases" has the SHA-256 of the files of each of its own atlases, by name. Of look-up tables the configuration has
    what decides the outputs.
    """
    files = [file for file in (run.path, run.confounds, run.mask) if file]
    described = [*metadata_files(run), *([Path(run.confounds).with_suffix(".json")] if run.confounds else [])]
    identities = {os.path.abspath(file): _identity(file) for file in files}  # noqa: PTH100
    for file in described:
        with contextlib.suppress(FileNotFoundError):  # also of a link whose content isn't here
            identities[os.path.abspath(file)] = _identity(file)  # noqa: PTH100
    atlases = {}
    for atlas in run.atlases:
        check_content(atlas.path)
        atlases[atlas.name] = image_hashes(os.path.abspath(atlas.path))  # noqa: PTH100
    return identities | ({"atlases": atlases} if atlases else {}) | ({} if run.t_r is None else {"t_r": run.t_r})


def _identity(file):
    try:
        state = os.stat(file)  # noqa: PTH116
    except FileNotFoundError:
        check_content(file)  # which knows better why
        raise
    return [state.st_size, state.st_mtime_ns]


def _recorded(configuration, run):
    """The record of a run's last success and its outputs; empty if there is none."""
    try:
        record = read_record(record_path(configuration, run))
        outputs = [Output(one["path"], one["size"], one["made"]) for one in record["outputs"]]
        for output in outputs:
            inside(configuration.out_dir, output.path)
    except (OSError, ValueError):
        return {}, []
    return record, outputs


def recorded_outputs(configuration: Configuration, run: Run, *, of_all: bool = True) -> list[Path]:
    """Outputs that a run's record names: all, or those of the configuration's units."""
    record, outputs = _recorded(configuration, run)
    ours = {unit.key for unit in configuration.units}
    made = {key: unit_key(how) for key, how in record.get("made", {}).items()}
    return [configuration.out_dir / output.path for output in outputs if of_all or made[output.made] in ours]


def is_stale(configuration: Configuration, run: Run) -> bool:
    """Whether a run's record was made from other inputs, or of a run that has less left than is now required."""
    record, _ = _recorded(configuration, run)
    return bool(record) and (not _has_inputs(record, run) or _falls_short(configuration, record))


def _has_inputs(record, run):
    """Whether a record was made from a run's inputs; own atlases that only one of them has don't count."""
    old, new = dict(record["inputs"]), identities(run)
    before, now = (inputs.pop("atlases", {}) for inputs in (old, new))
    return old == new and all(before[name] == now[name] for name in before.keys() & now.keys())


def _falls_short(configuration, record):
    """Whether ``min_time`` or ``min_dof`` refuses a run by the numbers of its record."""
    ours = {unit.denoising.name for unit in configuration.units}
    for numbers in (numbers for name, numbers in record["quality"].items() if name in ours):
        n_kept, freedom = numbers["volumes_kept"], numbers.get("degrees_of_freedom")
        is_censored = n_kept + (numbers.get("removed_dummy_scans") or 0) < record["volumes"]
        is_short = is_censored and n_kept * (record["repetition_time"] or 0) < configuration.min_time
        if is_short or (freedom is not None and freedom < (configuration.min_dof or 0) - 1e-6):
            return True
    return False


def check_unchanged(configuration: Configuration, runs: Iterable[Run]) -> None:
    """Raise ValueError if outputs of the same names exist that were made with other options or another atlas.

    Outputs that differ only in gpumask's version are made again. With ``configuration.overwrite`` nothing is checked.
    """
    if configuration.overwrite:
        return
    found = [difference for run in runs if (difference := _difference(configuration, run))]
    if found:
        n_more = len(found) - 1
        more = f" So were outputs of {n_more} more run{'s' * (n_more > 1)}." if n_more else ""
        msg = f"{found[0]}.{more} To replace them: --overwrite. To keep them: choose another output folder."
        raise ValueError(msg)


def _difference(configuration, run):
    record, outputs = _recorded(configuration, run)
    for unit in configuration.units:
        new = json.loads(json.dumps(configuration.described(unit), default=str))
        paths = configuration.outputs(run, unit).values()
        ours = {path.relative_to(configuration.out_dir).as_posix() for path in paths}
        for output in outputs:
            if output.path not in ours or output.made == configuration.made[unit.name]:
                continue
            if not (configuration.out_dir / output.path).exists():
                continue
            if changes := _changes(record["made"][output.made], new):
                return f"{configuration.out_dir / output.path} was made with {shortened_message('; '.join(changes))}"
    return None


def _changes(old, new):
    """What differs between two descriptions of outputs, in words; nothing for the version."""
    olds, news = _options(old), _options(new)
    is_other = list(old["files"].values()) != list(new["files"].values())
    return (["another atlas, look-up table or mask"] if is_other else []) + [
        "{} {}, now {}".format(name, *_shown(olds.get(name), news.get(name)))
        for name in dict.fromkeys([*olds, *news])
        if olds.get(name) != news.get(name)
    ]


def _options(how):
    """Options of a description of outputs, by their names in messages."""
    of_atlas = ("kind", "radius", "background_label", "regions_of_all_runs", "label_map", "combined")
    of_confounds = {f"confounds {name}": value for name, value in how.get("confounds", {}).items()}
    return {key: how.get(key) for key in (*of_atlas, "dummy_scans", "output_type")} | of_confounds | how["settings"]


def _shown(old, new):
    """Two values for a message, without their middles if those are long and the rest differs."""
    whole = repr(old), repr(new)
    short = shortened(whole[0], _LONGEST_VALUE), shortened(whole[1], _LONGEST_VALUE)
    return whole if short[0] == short[1] else short


@dataclass(frozen=True)
class Kept:
    """Results of an earlier attempt at a run that are still valid; empty if there are none.

    Attributes
    ----------
    outputs : tuple of Output
        Existing files of the recorded sizes.
    missing : frozenset of str
        Paths of recorded outputs that don't exist, or have other sizes.
    made : dict of str
        How the outputs were made, by ``Output.made``.
    atlases, quality : dict
        As in `Record`.
    warnings : tuple of str
    own : dict
        "atlases" of the `identities` that the outputs were made from.
    """

    outputs: tuple[Output, ...] = ()
    missing: frozenset[str] = frozenset()
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    atlases: dict[str, dict[str, Any]] = field(default_factory=dict)
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    own: dict[str, dict[str, str]] = field(default_factory=dict)


def kept(configuration: Configuration, run: Run) -> Kept:
    """Read a run's record, if it was made from the same inputs, and look for its outputs."""
    record, outputs = _recorded(configuration, run)
    try:
        if not record or not _has_inputs(record, run) or _falls_short(configuration, record):
            return Kept()
    except Exception:  # a fault of the run's files shows when it is processed
        return Kept()
    recorded = {output.path for output in outputs}
    outputs = tuple(o for o in outputs if _size(configuration.out_dir / o.path) == o.size)
    missing = frozenset(recorded - {output.path for output in outputs})
    made = {output.made: record["made"][output.made] for output in outputs}
    used = set(map(unit_key, made.values()))
    named = {atlas for atlas, _ in used}
    atlases, own = (
        {name: facts for name, facts in of_all.items() if name in named}
        for of_all in (record["atlases"], record["inputs"].get("atlases", {}))
    )
    quality = joined_qualities(record["quality"], {}, used)
    return Kept(outputs, missing, made, atlases, quality, tuple(record["warnings"]) if outputs else (), own)


def _size(path):
    try:
        return path.stat().st_size
    except OSError:
        return None


def unfinished(configuration: Configuration, run: Run) -> list[Unit]:
    """Units for which a run's outputs, or their sidecars, are missing, outdated, or made with another configuration.

    If those of a denoising alone are, all of that denoising: it knows which volumes are removed once it is prepared.
    """
    found = kept(configuration, run)
    there = {(output.path, output.made) for output in found.outputs}

    def is_there(path, unit):
        name, sidecar = (p.relative_to(configuration.out_dir).as_posix() for p in (path, sidecar_path(path)))
        return (name, configuration.made[unit.name]) in there and sidecar not in found.missing

    wanted = ((unit, configuration.outputs(run, unit).values()) for unit in configuration.units)
    missing = {unit.key for unit, paths in wanted if not all(is_there(path, unit) for path in paths)}
    whole = {denoising for atlas, denoising in missing if not atlas}
    return [unit for unit in configuration.units if unit.key in missing or unit.denoising.name in whole]


def is_done(configuration: Configuration, run: Run) -> bool:
    """Whether a run is finished: all its outputs exist, made with this configuration from these inputs."""
    return not unfinished(configuration, run)


def _now():
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def described(record: Record) -> dict[str, Any]:
    """A record as a JSON object, for logs: without its quality, which would be most of a line."""
    names = ("seconds", "atlases", "warnings", "error", "traceback")
    return {
        "time": _now(),
        "status": record.status,
        "run": shortened_path(os.fspath(record.run.path)),
        "name": shortened_path(run_name(record.run)),
        "volumes": record.n_volumes,
        "repetition_time": record.t_r,
        **{name: getattr(record, name) for name in names},
    }


def logged(configuration: Configuration, record: Record, **more: object) -> Record:
    """Add a record, and further facts, to this process's log; if that fails, the record's error says so too."""
    line = json.dumps({**described(record), **more}, ensure_ascii=False)
    try:
        append_line(configuration.out_dir / "logs" / f"runs-{platform.node()}-{os.getpid()}.jsonl", line)
    except OSError as error:
        return replace(record, error=f"{record.error} The log can't be written: {error}".strip())
    return record


@dataclass(frozen=True)
class Listing:
    """Everything that can't be used in a data set, so that what was fixed can be told from what wasn't looked at.

    Attributes
    ----------
    key : str
        The data set, and how it was listed.
    problems : list of Problem or None
        None if only a part of the data set was listed.
    """

    key: str
    problems: list[Problem] | None


def log_problems(configuration: Configuration, problems: Iterable[Problem], listing: Listing | None = None) -> None:
    """Add unusable runs to the log, as failed, under the names that they will have once they can be used.

    The names of a whole `listing` are kept in ``logs/unusable``: earlier problems that aren't in it are no longer ones.
    """
    logs = configuration.out_dir / "logs"
    known = unusable(logs)
    if listing and listing.problems is not None and (listing.problems or listing.key in known):
        names = [run_name(_run_of(problem)) for problem in listing.problems]
        known[listing.key] = {"time": _now(), "names": names}
        with replacing(logs / "unusable") as part:
            write(part, json_lines(known))
    more = {"listing": listing.key} if listing else {}
    for problem in problems:
        logged(configuration, Record(_run_of(problem), "failed", error=problem.reason), **more)


def unusable(logs: Path) -> dict[str, dict[str, Any]]:
    """The last whole listings by key: their "time" and the "names" of what couldn't be used; see `log_problems`."""
    try:
        return read_listings(logs / "unusable")
    except (OSError, ValueError):
        return {}


def _run_of(problem):
    return Run(shortened_path(problem.path), name=problem.name and shortened_path(problem.name))
