"""JSON metadata of runs by BIDS's inheritance principle, and the repetition time."""

import functools
import json
import math
import os
from collections.abc import Iterable, Set
from pathlib import Path
from typing import NamedTuple

from gpumask.bids.names import image_stem, parse_name
from gpumask.bids.runs import Run


class RepetitionTime(NamedTuple):
    """A repetition time and its source.

    Attributes
    ----------
    seconds : float or None
        None if it is unknown.
    source : str or None
        "given", "JSON" or "header".
    """

    seconds: float | None
    source: str | None


def repetition_time(run: Run, header_t_r: float | None) -> RepetitionTime:
    """Repetition time of a run: ``run.t_r``, else that of its JSON metadata, else that of its header.

    Parameters
    ----------
    run : Run
    header_t_r : float or None
        Repetition time in s in the image's header, if it has one.

    Returns
    -------
    RepetitionTime

    Raises
    ------
    ValueError
        If the metadata can't be read, or their ``RepetitionTime`` isn't a positive number.
    """
    if run.t_r is not None:
        return RepetitionTime(run.t_r, "given")
    path, metadata = read_metadata(run)
    value = metadata.get("RepetitionTime")
    if value is not None:
        return RepetitionTime(positive_seconds(value, f"{path} has the RepetitionTime"), "JSON")
    return RepetitionTime(header_t_r, "header" if header_t_r else None)


def metadata_file(run: Run) -> Path | None:
    """File of a run's JSON metadata, or None.

    It is ``run.sidecar``, else the JSON file next to the image, else, for an image in ``sub-*/[ses-*/]func``, the one
    that the image inherits: see `nearest_metadata`.

    Raises
    ------
    ValueError
        If several files apply equally.
    OSError
        If a folder can't be listed.
    """
    if run.sidecar is not None:
        return Path(run.sidecar)
    stem = image_stem(run.path)
    next_to_it = Path(run.path).with_name(f"{stem}.json")
    if next_to_it.is_file():
        return next_to_it
    try:
        folders = _data_set_folders(run.path, stem)
        return nearest_metadata(stem, [(str(f), _metadata_names(f, f.stat().st_mtime_ns)) for f in folders])
    except ValueError as error:
        msg = f"{run.path} {error}"
        raise ValueError(msg) from error


def nearest_metadata(stem: str, folders: Iterable[tuple[str, Set[str]]]) -> Path | None:
    """File of the metadata that an image inherits, or None.

    Parameters
    ----------
    stem : str
        Name of the image without its extension.
    folders : iterable of (str, set of str)
        Folders, the nearest first, and the names in them. The first with a file ``*bold.json`` whose entities all are
        the image's decides, and in it the file with the most entities.

    Raises
    ------
    ValueError
        If several files apply equally; the message lacks the run.
    """
    image = parse_name(stem)
    for folder, names in folders:
        if f"{stem}.json" in names:  # the usual case; trying all names takes the square of the number of runs
            return Path(folder, f"{stem}.json")
        numbers = {}
        for name in sorted(names):
            parsed = parse_name(name) if image and is_metadata(name) else None
            if parsed and parsed[1:] == ("bold", ".json") and parsed.entities.items() <= image.entities.items():
                numbers[name] = len(parsed.entities)
        most = max(numbers.values(), default=0)
        if name := only([name for name, number in numbers.items() if number == most], "metadata"):
            return Path(folder, name)
    return None


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


def read_metadata(run: Run) -> tuple[Path | None, dict]:
    """`metadata_file` of a run, and its content; None and {} without one."""
    path = metadata_file(run)
    return path, {} if path is None else read_json(path)


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object; a ValueError if it doesn't."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also of bytes that aren't UTF-8
        msg = f"{path} isn't JSON: {error}"
        raise ValueError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} holds a JSON {type(content).__name__}: expected an object"
        raise ValueError(msg)
    return content


def positive_seconds(value: object, what: str) -> float:
    """A positive number of seconds; a ValueError, which begins with `what`, for everything else."""
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        msg = f"{what} {value!r}: expected a positive number of seconds"
        raise ValueError(msg)
    return seconds
