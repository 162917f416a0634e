"""Outcomes of a cohort's runs, from its logs and records."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from gpumask.bids.names import parse_output_name
from gpumask.cohort.page.processing import Methods
from gpumask.cohort.quality import rows
from gpumask.cohort.record import unusable
from gpumask.cohort.recorded import Unused
from gpumask.cohort.stored import read_attempt, read_attempts, read_record, unit_key
from gpumask.inputs import shortened

_KINDS = 10_000  # most different messages that are counted
_FOLDER = re.compile("(sub-[^_]+(?:_ses-[^_]+)?)(?:_func)?")
_WORD = re.compile(r"\S+")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_ATLASES = 20  # most of a run in the table of runs
_LONGEST = 160  # characters of an error in the table of runs
_MOST_OVERLAPS, _LONGEST_OVERLAP = 10, 2000  # messages of an atlas, and characters of each
_SHORTEST = 1e-3  # s of a run that took any time


@dataclass
class Attempt:
    """Last line about a run; its other values stay in the file, at `offset`."""

    status: str
    time: str
    file: Path
    offset: int
    listing: str = ""  # of what couldn't be used
    error: str = ""  # beginning of the message


@dataclass
class Cohort:
    """Outcomes of all runs."""

    done: list = field(default_factory=list)  # names, sorted
    partial: list = field(default_factory=list)  # names, sorted: with a record, but the last attempt has failed
    failed: dict = field(default_factory=dict)  # name: attempt; with the partial ones
    taken: list = field(default_factory=list)
    lost: list = field(default_factory=list)  # logged as done, without a record
    skipped: int = 0  # finished runs whose last attempt found them finished
    unreadable: Counter = field(default_factory=Counter)  # by log file: lines or whole records
    unused: Unused = field(default_factory=Unused)
    configurations: Counter = field(default_factory=Counter)
    coverage: dict = field(default_factory=lambda: defaultdict(list))  # atlas: (name, relative path, size)
    overlaps: dict = field(default_factory=lambda: defaultdict(dict))  # atlas: its messages, as keys
    seconds: dict = field(default_factory=lambda: defaultdict(list))  # stage: one number per run
    runs: list = field(default_factory=list)  # of runs with a record, see `_quality`
    methods: Methods = field(default_factory=Methods)
    rates: list = field(default_factory=list)  # volumes per second, one number per run
    warnings: Counter = field(default_factory=Counter)  # runs by message, without what differs between runs
    errors: Counter = field(default_factory=Counter)
    example: dict = field(default_factory=dict)  # a whole message by such a message

    @property
    def n_recorded(self) -> int:
        """Number of runs with a record."""
        return len(self.done) + len(self.partial)


def read_logs(logs: Path, noting: Callable[[dict[str, Any]], object] = lambda record: None) -> Cohort:
    """Read the logs and records of a folder; memory grows with the runs, not with their messages.

    `noting` gets each record that is readable, in the order of their names.
    """
    cohort = Cohort()
    attempts, times_done = _last_attempts(logs, cohort.unreadable), {}
    _drop_usable(attempts, logs)
    for path in sorted(logs.glob("*.json")):
        try:
            record = read_record(path)
        except (OSError, ValueError) as error:
            cohort.unreadable[path.name] += 1
            cohort.unused.add(f"logs/{path.name}", str(error).removeprefix(f"{path} "))
            continue
        noting(record)
        name = record["name"]
        messages, last = record["warnings"], attempts.pop(name, None)
        if last and last.status == "failed" and last.time > record["time"]:  # a denoising, or a run redone in vain
            attempts[name] = last
            cohort.partial.append(name)
            messages = [*messages, *line_of(last, name)["warnings"]]
        else:
            cohort.done.append(name)
            cohort.skipped += last is not None and last.status == "skipped"
        times_done[name] = record["time"]
        cohort.configurations[record["configuration"]] += 1
        _count(cohort.warnings, cohort, messages, record)
        _add_seconds(cohort, record)
        cohort.methods.add(record)
        cohort.runs += _quality(record)
        _add_overlaps(cohort.overlaps, record["atlases"])
        covered = set()  # a run's coverage is the same for all denoisings
        for output in record["outputs"]:
            if not output["path"].endswith("_bold.tsv"):  # parsing takes longer
                continue
            table = parse_output_name(Path(output["path"]).name)
            if table and (table.stat, table.suffix) == ("coverage", "bold") and table.atlas not in covered:
                covered.add(table.atlas)
                cohort.coverage[table.atlas].append((name, output["path"], output["size"]))
    _drop_folders(attempts, times_done)
    for name, attempt in sorted(attempts.items()):
        if attempt.status == "failed":
            line = line_of(attempt, name)
            cohort.failed[name] = attempt
            attempt.error = _beginning(without_folder(line["error"].replace(line["run"], "…"), line["run"]))
            _count(cohort.errors, cohort, [line["error"]], line)
            if name not in times_done:  # otherwise counted with its record's
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
                    attempts[name] = Attempt(status, since, path, offset, values.get("listing", ""))
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


def line_of(attempt: Attempt, name: str) -> dict[str, Any]:
    """The line of an attempt, read again: those of all runs may not fit in memory."""
    missing = {"run": name, "name": name, "warnings": [], "error": "no message"}
    try:
        line = read_attempt(attempt.file, attempt.offset)
    except OSError:
        line = None
    return missing | (line or {"error": f"{attempt.file} has changed while it was read."})


def without_folder(message: str, run: str) -> str:
    """A message about a run without the run's folder, in which its confounds and its mask are too."""
    folder, _, _ = run.rpartition("/")
    return re.sub(rf"(?<![\w./-]){re.escape(folder)}/", "", message) if folder else message


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


def _quality(record):
    """Rows of the table of runs, one per denoising, with its figures."""
    figures = defaultdict(list)
    for output in record["outputs"]:
        if output["path"].endswith(".png"):
            _, denoising = unit_key(record["made"][output["made"]])
            figures[denoising].append(output["path"])
    for row in rows([record]):
        atlases, own = dict(islice(row["atlases"].items(), _ATLASES)), tuple(figures[row["denoising"]])
        yield {**row, "atlases": atlases, "warnings": len(record["warnings"]), "figures": own}


def _add_overlaps(overlaps, atlases):
    """Note the messages of combined atlases; a few, as they are the same for all runs with the same images."""
    for atlas, facts in atlases.items():
        messages = facts.get("overlaps")
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, str) and len(overlaps[atlas]) < _MOST_OVERLAPS:
                overlaps[atlas][shortened(message, _LONGEST_OVERLAP)] = None


def _beginning(message):
    message = " ".join(message[: 2 * _LONGEST].split())
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST - 1]}…"


def _add_seconds(cohort, record):
    for stage, value in record["seconds"].items():
        cohort.seconds[stage].append(value)
    if record["seconds"].get("total", 0) > _SHORTEST:
        cohort.rates.append(record["volumes"] / record["seconds"]["total"])
