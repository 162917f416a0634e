"""Records, log lines and listings, read back from the folder of logs: only those in the form that gpumask writes.

Others may write to an output folder, and every later command reads its old files. Sizes, types and ranges are checked
here, so users of these functions don't have to.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gpumask.cohort.quality import OF_ATLAS, OF_RUN
from gpumask.inputs import open_file, parse_json, read_json, shortened

STAGES = ("read", "reduce", "clean", "write", "total")
"""Keys of a record's "seconds"."""
STATUSES = ("done", "failed", "skipped", "taken", "stopped")
"""Outcomes of an attempt."""

_MOST_BYTES = 2**22  # of a record, or of a log line
_MOST_OF_LISTINGS = 2**26  # 40 000 unusable runs take 4 MB
_LONGEST_PATH = 4096
_LONGEST_MESSAGE = 2000
_LONGEST_TRACEBACK = 20_000
_MOST_WARNINGS = 100
_DEEPEST = 8  # levels of lists and objects in a description
_LARGEST = 1e9  # number, of volumes or seconds, so sums, ratios and pictures can be made
_LARGEST_FILE = 1e15  # bytes
_LONGEST_NAME = 255  # of a file, which names of denoisings are a part of
_MOST_DENOISINGS = 1000


# Lengths


def shortened_message(text: str) -> str:
    """A message, without its middle if it is long."""
    return shortened(text, _LONGEST_MESSAGE)


def shortened_path(path: str) -> str:
    """A path, or the name of a run, without its middle if it is longer than any file's."""
    return shortened(path, _LONGEST_PATH)


def shortened_traceback(text: str) -> str:
    """A traceback without its middle, if it is long: the call and the error are at its ends."""
    return shortened(text, _LONGEST_TRACEBACK)


def shortened_warnings(messages: Iterable[str]) -> tuple[str, ...]:
    """Warnings without the middles of long ones, and the number of those beyond the first hundred."""
    messages = tuple(map(shortened_message, messages))
    if len(messages) <= _MOST_WARNINGS:
        return messages
    shown = messages[: _MOST_WARNINGS - 1]
    return (*shown, f"{len(messages) - len(shown)} more warnings.")


# Forms


def is_plain(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether a JSON value has at most `depth` levels of lists and objects, so comparing and writing it is safe."""
    level = [value]
    for _ in range(depth):
        containers = (one.values() if type(one) is dict else one for one in level if type(one) in (dict, list))
        level = [one for container in containers for one in container]
    return not any(type(one) in (dict, list) for one in level)


def _is_text(most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and len(value) <= most


def _is_count(value):
    return type(value) is int and 0 <= value < _LARGEST


def _is_number(value):
    return type(value) in (int, float) and 0 <= value < _LARGEST  # False for NaN


def _is_signed(value):
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def _is_number_or_none(value):
    return value is None or _is_number(value)


def _is_time(value):
    return isinstance(value, str) and bool(_TIME.fullmatch(value))


def _is_called(value):
    return _is_text(_LONGEST_PATH)(value) and value != ""


def _is_encodable(text):
    """Whether a text can be in a picture and in a Parquet file: those of file names that aren't UTF-8 can't."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _are_seconds(value):
    return isinstance(value, dict) and value.keys() <= set(STAGES) and all(map(_is_number, value.values()))


def _are_warnings(value):
    return isinstance(value, list) and len(value) <= _MOST_WARNINGS and all(map(_is_text(_LONGEST_MESSAGE), value))


def _are_atlases(value):
    return isinstance(value, dict) and all(isinstance(one, dict) and is_plain(one) for one in value.values())


def _are_qualities(value):
    return isinstance(value, dict) and len(value) <= _MOST_DENOISINGS and all(map(_is_quality, value, value.values()))


def _is_quality(denoising, numbers):
    atlases = numbers.get("atlases") if isinstance(numbers, dict) else None
    return (
        isinstance(atlases, dict)
        and _is_text(_LONGEST_NAME)(denoising)
        and _is_encodable(denoising)
        and all(_is_count(numbers.get(key)) for key in ("volumes", "volumes_kept"))
        and _are_numbers({key: value for key, value in numbers.items() if key != "atlases"}, _OF_RUN)
        and all(isinstance(one, dict) and _are_numbers(one, _OF_ATLAS) for one in atlases.values())
    )


def _are_numbers(numbers, columns):
    """Whether numbers, by name, are those of the columns, or None."""
    return numbers.keys() <= columns.keys() and all(
        value is None or _is_count(value) or (not columns[name].is_count and _is_signed(value))
        for name, value in numbers.items()
    )


def _are_descriptions(value):
    return isinstance(value, dict) and all(
        isinstance(how, dict)
        and "atlas" in how
        and all(isinstance(name, str) for name in unit_key(how))
        and all(isinstance(how.get(key), dict) for key in ("files", "settings"))
        and isinstance(how.get("confounds", {}), dict)
        and is_plain(how)
        for how in value.values()
    )


def _are_outputs(value):
    return (
        isinstance(value, list)
        and all(isinstance(one, dict) and _is_output(one) for one in value)
        and len({one["path"] for one in value}) == len(value)
    )


def _is_output(one):
    path = one.get("path")
    return (
        _is_called(path)
        and "\0" not in path
        and _is_encodable(path)
        and not path.startswith("/")
        and ".." not in path.split("/")
        and type(one.get("size")) is int
        and 0 <= one["size"] < _LARGEST_FILE
        and _is_text(64)(one.get("made"))
    )


_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}\+00:00")
_NAMED = {"time": _is_time, "status": STATUSES.__contains__, "run": _is_called, "name": _is_called}
# What records had instead of "quality" before 0.3, and its names there.
_EARLIER = {"volumes_kept": _is_count, "dummy_scans": _is_count, "degrees_of_freedom": _is_number_or_none}
_EARLIER_NAMES = {key: key for key in ("volumes", *_EARLIER)} | {"dummy_scans": "removed_dummy_scans"}
_RESULTS = {
    "volumes": _is_count,
    "repetition_time": _is_number_or_none,
    "seconds": _are_seconds,
    "atlases": _are_atlases,
    "warnings": _are_warnings,
    "error": _is_text(_LONGEST_MESSAGE),
    "traceback": _is_text(_LONGEST_TRACEBACK),
}
_FILES = {
    "name": lambda value: _is_called(value) and _is_encodable(value),
    "configuration": _is_text(64),
    "inputs": lambda value: isinstance(value, dict) and is_plain(value) and isinstance(value.get("atlases", {}), dict),
    "outputs": _are_outputs,
    "made": _are_descriptions,
}
_OF_RUN, _OF_ATLAS = ({column.name: column for column in columns} for columns in (OF_RUN, OF_ATLAS))
_LISTING = {"time": _is_time, "names": lambda value: isinstance(value, list) and all(map(_is_called, value))}


def _check(content, required, optional):
    """Raise ValueError unless an object has the required keys, and these and the optional ones have right values."""
    if not isinstance(content, dict):
        msg = f"holds a JSON {type(content).__name__}: expected an object"
        raise ValueError(msg)
    if missing := [key for key in required if key not in content]:
        msg = f"lacks {missing[0]!r}"
        raise ValueError(msg)
    for key, is_right in {**required, **optional}.items():
        if key in content and not is_right(content[key]):
            msg = f"has another {key!r} than gpumask writes"
            raise ValueError(msg)


def unit_key(how: dict[str, Any]) -> tuple[str, str]:
    """Names of the atlas and the denoising in a description of "made"; each is "" without one."""
    return how["atlas"], how.get("denoising", "")


# Files


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a finished run.

    Parameters
    ----------
    path : Path
        ``logs/<name>.json``.

    Returns
    -------
    dict
        As `gpumask.cohort.record` and `gpumask.cohort.writer` write it: strings have bounded lengths, numbers are
        finite, outputs are relative paths and name one of the descriptions in "made".

    Raises
    ------
    ValueError
        If it isn't a record that gpumask has written.
    OSError
        If the file can't be read.
    """
    try:
        record = read_json(path, most=_MOST_BYTES)
        _check(record, {**_NAMED, **_RESULTS, **_FILES}, {"quality": _are_qualities, **_EARLIER})
        if "quality" not in record:
            _check(record, _EARLIER, {})
            numbers = {name: record[key] for key, name in _EARLIER_NAMES.items()}
            record["quality"] = {"": {**numbers, "atlases": {}}}
        if record["status"] != "done":
            msg = f"has the status {record['status']!r}, expected 'done'"
            raise ValueError(msg)
        if f"{record['name']}.json" != path.name:
            msg = f"has the name {record['name']!r}, expected {path.name.removesuffix('.json')!r}"
            raise ValueError(msg)
        if any(output["made"] not in record["made"] for output in record["outputs"]):
            msg = "has an output without a description in 'made'"
            raise ValueError(msg)
        if any(how["atlas"] not in ("", *record["atlases"]) for how in record["made"].values()):
            msg = "has a description of another atlas than those in 'atlases'"
            raise ValueError(msg)
        if any(unit_key(how)[1] not in record["quality"] for how in record["made"].values()):
            msg = "has a description of another denoising than those in 'quality'"
            raise ValueError(msg)
    except ValueError as error:
        why = str(error).removeprefix(f"{path} ")
        why = why if why.endswith((".", "?")) else f"{why}."
        msg = f"{path} isn't the record of a run: {why} The next cohort command does the run again."
        raise ValueError(msg) from error
    return record


def read_attempts(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Read the lines of a log one by one.

    Parameters
    ----------
    path : Path
        ``logs/*.jsonl``.

    Yields
    ------
    offset : int
        Of the line in the file, in bytes.
    attempt : dict or None
        With "time", "status", "run" and "name"; everything else that gpumask writes is right if it is there. None: the
        line isn't one that gpumask has written.

    Raises
    ------
    OSError
        If the file can't be read.
    """
    offset = 0
    with io.BufferedReader(open_file(path)) as file:
        while line := file.readline(_MOST_BYTES + 1):
            yield offset, _attempt(line, path)
            offset += len(line)
            while not line.endswith(b"\n") and (line := file.readline(_MOST_BYTES)):  # the rest of a line too long
                offset += len(line)


def read_attempt(path: Path, offset: int) -> dict[str, Any] | None:
    """Read the line of a log that begins at `offset`, see `read_attempts`."""
    with io.BufferedReader(open_file(path)) as file:
        file.seek(offset)
        return _attempt(file.readline(_MOST_BYTES + 1), path)


def _attempt(line, path):
    if len(line) > _MOST_BYTES:
        return None
    try:
        attempt = parse_json(line, path)
        _check(attempt, _NAMED, {**_RESULTS, "listing": _is_text(2 * _LONGEST_PATH)})
    except ValueError:
        return None
    return attempt


def read_listings(path: Path) -> dict[str, dict[str, Any]]:
    """Read ``logs/unusable``: by data set the "time" of its listing and the "names" of what couldn't be used.

    Raises
    ------
    ValueError
        If gpumask hasn't written it.
    OSError
        If the file can't be read.
    """
    try:
        listings = read_json(path, most=_MOST_OF_LISTINGS)
        for listing in listings.values():
            _check(listing, _LISTING, {})
    except ValueError as error:
        why = str(error).removeprefix(f"{path} ")
        msg = f"{path} isn't a list of unusable runs: {why}"
        raise ValueError(msg) from error
    return listings
