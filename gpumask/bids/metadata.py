"""JSON metadata of runs by BIDS's inheritance principle, and the repetition time."""

import functools
import json
import math
import os
from collections.abc import Iterable, Set
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from gpumask.bids.content import absence
from gpumask.bids.names import image_stem, parse_name
from gpumask.bids.runs import Run

_PLAUSIBLE = 0.05, 60.0  # repetition times in s, from the fastest sequences to the sparsest
_CONTRADICTION = 100  # factor between two sources from which on one of them is wrong: milliseconds are 1000


class RepetitionTime(NamedTuple):
    """A repetition time and its source.

    Attributes
    ----------
    seconds : float or None
        None if it is unknown, or volumes aren't evenly spaced.
    source : str or None
        "given", "JSON" or "header".
    messages : tuple of str
        Warnings about sources that differ.
    """

    seconds: float | None
    source: str | None
    messages: tuple[str, ...] = ()


def repetition_time(run: Run, header_t_r: float | None, *, needed: bool = False) -> RepetitionTime:
    """Repetition time of a run: ``run.t_r``, else that of its JSON metadata, else that of its header.

    Sources that differ by more than 1 % are a warning. They are an error if they differ by a factor of 100 or more
    (milliseconds given as seconds), unless two of them agree and the third isn't used. A header isn't a source if the
    metadata have the times of volumes or slices, but no ``RepetitionTime``: BIDS writes them so for volumes that aren't
    evenly spaced.

    Parameters
    ----------
    run : Run
    header_t_r : float or None
        Repetition time in s in the image's header, if it has one.
    needed : bool
        Whether volumes are filtered over time, which needs evenly spaced ones.

    Returns
    -------
    RepetitionTime

    Raises
    ------
    ValueError
        If the metadata can't be read, their ``RepetitionTime`` isn't a positive number, sources contradict each other,
        or, if `needed`, there is none or the volumes aren't evenly spaced.
    FileNotFoundError
        If it is `needed`, and depends on metadata whose content isn't here.
    """
    metadata, messages = read_metadata(run), []
    if needed and run.t_r is None and metadata.absent:
        msg = (
            f"{metadata.absent[0]} {absence(metadata.absent[0])}, but filtering needs the repetition time. Get the "
            "file, or give the time: --t-r, or the column t_r of a list of runs."
        )
        raise FileNotFoundError(msg)
    sources = {} if run.t_r is None else {"given": (run.t_r, "given (--t-r)")}
    if (value := metadata.values.get("RepetitionTime")) is not None:
        path = metadata.origins["RepetitionTime"]
        try:
            sources["JSON"] = (positive_seconds(value, f"{path} has the RepetitionTime"), f"in {path}")
        except ValueError as error:
            if run.t_r is None:
                raise
            messages.append(f"{error}. The given one is used.")
    spacing, problem = _volume_times(metadata)
    if header_t_r and (problem is None or "JSON" in sources):
        sources["header"] = (header_t_r, f"in the header of {os.fspath(run.path)}")
    compared = sources if spacing is None else {**sources, "times": (spacing, f"by VolumeTiming in {problem.path}")}
    messages += _compared(compared) if sources else []
    if needed:
        _check_evenly_spaced(run, sources, spacing, problem)
    source, (seconds, where) = next(iter(sources.items()), (None, (None, "")))
    if seconds is not None and not _PLAUSIBLE[0] <= seconds <= _PLAUSIBLE[1]:
        message = f"The repetition time {where} is {seconds:g} s. Is it in other units?"
        if needed:
            msg = f"{message} Filtering needs it in seconds: correct it, or give it (--t-r, or t_r in a list of runs)."
            raise ValueError(msg)
        messages.append(message)
    return RepetitionTime(seconds, source, tuple(messages))


class _Uneven(NamedTuple):
    """Metadata without even spacing: the file, and what it has."""

    path: Path
    what: str


def _volume_times(metadata):
    """Even spacing in s of ``VolumeTiming``, or None; and what speaks against a repetition time, or None."""
    if "VolumeTiming" in metadata.values:
        path = metadata.origins["VolumeTiming"]
        try:
            times = [float(time) for time in metadata.values["VolumeTiming"]]
        except (TypeError, ValueError) as error:
            msg = f"{path} has the VolumeTiming {metadata.values['VolumeTiming']!r}: expected a list of seconds"
            raise ValueError(msg) from error
        steps = [after - before for before, after in pairwise(times)]
        if not steps:
            return None, _Uneven(path, "VolumeTiming of one volume")
        if min(steps) > 0 and not _differ(min(steps), max(steps)):
            return sum(steps) / len(steps), _Uneven(path, "VolumeTiming")
        return None, _Uneven(path, f"VolumeTiming with steps from {min(steps):g} to {max(steps):g} s")
    if "SliceTiming" in metadata.values and metadata.values.get("RepetitionTime") is None:
        return None, _Uneven(metadata.origins["SliceTiming"], "SliceTiming")
    return None, None


def _check_evenly_spaced(run, sources, spacing, problem):
    known = "given" in sources or "JSON" in sources
    if problem is not None and spacing is None and (problem.what != "SliceTiming" or not known):
        remedy = "If the volumes are evenly spaced, give the repetition time: --t-r."
        if problem.what != "SliceTiming":
            remedy = "Extract it without --low-pass and --high-pass."
        has = problem.what if known else f"{problem.what} but no RepetitionTime"
        msg = f"Filtering needs evenly spaced volumes, but {problem.path} has {has}. {remedy}"
        raise ValueError(msg)
    if spacing is not None and not known:
        msg = (
            f"Filtering needs the repetition time, but {problem.path} has VolumeTiming instead. Its volumes are "
            f"{spacing:g} s apart: give --t-r {spacing:g}, or the column t_r of a list of runs."
        )
        raise ValueError(msg)
    if not sources:
        msg = (
            f"Filtering needs the repetition time, but neither the metadata nor the header of {run.path} has one. "
            "Give it: --t-r, or the column t_r of a list of runs."
        )
        raise ValueError(msg)


def _compared(sources):
    """Warnings about sources that differ from the first, which is used; a ValueError if they contradict it."""
    (_, (used, _)), *others = sources.items()
    different = [source for source in others if _differ(used, source[1][0])]
    if not different:
        return []
    listed = ", ".join(f"{seconds:g} s {where}" for seconds, where in sources.values())
    factors = [max(used / other, other / used) for _, (other, _) in others]
    confirmed = len(different) < len(others)
    if max(factors) > _CONTRADICTION * (1 - 1e-9) and not confirmed:
        remedy = "Give the right one: --t-r, or the column t_r of a list of runs."
        if "given" in sources:
            remedy = "Repetition times are in seconds: correct --t-r (or the column t_r of a list of runs) or the file."
        msg = f"Sources of the repetition time contradict each other: {listed}. {remedy}"
        raise ValueError(msg)
    return [f"Sources of the repetition time differ: {listed}. {used:g} s is used."]


def _differ(one, other):
    return max(one, other) > 1.01 * min(one, other) * (1 + 1e-9)


def metadata_files(run: Run) -> list[Path]:
    """Files of a run's JSON metadata, the nearest first; values of nearer ones hold.

    They are ``run.sidecar`` and ``run.inherited``, else the JSON file next to the image and, for an image in
    ``sub-*/[ses-*/]func``, those that it inherits: see `applicable_metadata`.

    Raises
    ------
    ValueError
        If several files apply equally.
    OSError
        If a folder can't be listed.
    """
    if run.sidecar is not None:
        return [Path(run.sidecar), *map(Path, run.inherited)]
    stem = image_stem(run.path)
    try:
        folders = _data_set_folders(run.path, stem)
        found = applicable_metadata(stem, [(str(f), _metadata_names(f, f.stat().st_mtime_ns)) for f in folders])
    except ValueError as error:
        msg = f"{run.path} {error}"
        raise ValueError(msg) from error
    next_to_it = Path(run.path).with_name(f"{stem}.json")
    if next_to_it not in found and os.path.lexists(next_to_it):
        found.insert(0, next_to_it)
    return found


def applicable_metadata(stem: str, folders: Iterable[tuple[str, Set[str]]]) -> list[Path]:
    """Files of the metadata that an image inherits, at most one per folder.

    Parameters
    ----------
    stem : str
        Name of the image without its extension.
    folders : iterable of (str, set of str)
        Folders, the nearest first, and the names in them. A file ``*bold.json`` applies if all its entities are the
        image's; of several in a folder, the one with the most.

    Returns
    -------
    list of Path
        In the order of the folders.

    Raises
    ------
    ValueError
        If several files apply equally; the message lacks the run.
    """
    image = parse_name(stem)
    found = []
    for folder, names in folders:
        if f"{stem}.json" in names:  # the usual case; trying all names takes the square of the number of runs
            found.append(Path(folder, f"{stem}.json"))
            continue
        numbers = {}
        for name in sorted(names):
            parsed = parse_name(name) if image and is_metadata(name) else None
            if image is None or parsed is None or parsed[1:] != ("bold", ".json"):
                continue
            if parsed.entities.items() <= image.entities.items():
                numbers[name] = len(parsed.entities)
        most = max(numbers.values(), default=0)
        if (nearest := only([name for name, number in numbers.items() if number == most], "metadata")) is not None:
            found.append(Path(folder, nearest))
    return found


def is_metadata(name: str) -> bool:
    """Whether a file may be the metadata of images."""
    return name.endswith("bold.json")


def only(names: list[str], what: str) -> str | None:
    """The one name of a list, or None if it is empty; a ValueError if there are several."""
    if len(names) > 1:
        msg = f"has {len(names)} candidates for its {what}, expected one: {', '.join(names)}"
        raise ValueError(msg)
    return names[0] if names else None


def _data_set_folders(path, stem):
    """Folders of an image's BIDS data set from ``func`` up to its root; empty if it isn't in one."""
    image = parse_name(stem)
    if not image or "sub" not in image.entities:
        return []
    folders = [Path(os.path.abspath(path)).parent]  # noqa: PTH100 - data sets are trees of links
    for name in ("func", *(f"{key}-{image.entities[key]}" for key in ("ses", "sub") if key in image.entities)):
        if folders[-1].name != name:
            return []
        folders.append(folders[-1].parent)
    return folders


@functools.lru_cache(64)
def _metadata_names(folder, _changed):
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries if is_metadata(entry.name))


class Metadata(NamedTuple):
    """JSON metadata of a run.

    Attributes
    ----------
    values : dict
        By key, each from the nearest file that has it.
    origins : dict of Path
        For each key, its file.
    absent : list of Path
        Files whose content isn't here: links and pointers of git-annex.
    """

    values: dict[str, Any]
    origins: dict[str, Path]
    absent: list[Path]


def read_metadata(run: Run) -> Metadata:
    """Read the files of `metadata_files`; a ValueError for one that isn't JSON."""
    values: dict[str, Any] = {}
    origins: dict[str, Path] = {}
    absent: list[Path] = []
    for path in reversed(metadata_files(run)):
        if absence(path):
            absent.insert(0, path)
            continue
        content = read_json(path)
        values |= content
        origins |= dict.fromkeys(content, path)
    return Metadata(values, origins, absent)


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object; a ValueError if it doesn't."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also of bytes that aren't UTF-8
        msg = f"{path} isn't JSON: {error}"
        raise ValueError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} holds a JSON {type(content).__name__}: expected an object"
        raise ValueError(msg)
    return content


def positive_seconds(value: Any, what: str) -> float:
    """A positive number of seconds; a ValueError, which begins with `what`, for everything else."""
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        msg = f"{what} {value!r}: expected a positive number of seconds"
        raise ValueError(msg)
    return seconds
