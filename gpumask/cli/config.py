"""Options in a TOML file, ``--config FILE.toml``, instead of on the command line."""

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gpumask.cli.paths import absolute_paths, joined_paths, named_path
from gpumask.inputs import read_toml, shortened

_NOT_KEPT = ("shard", "dry-run")  # of a part of the runs, or of none: the file is to repeat the whole command


def read_config(path: str | os.PathLike, options: Mapping[str, argparse.Action]) -> dict[str, Any]:
    """Read options from a file.

    Parameters
    ----------
    path : str or path-like
        TOML. Keys are the names of options, with - or _; flags are true or false, and options of several values are
        lists. Paths are relative to the current folder, as on the command line.
    options : mapping
        The options by name, without dashes in front.

    Returns
    -------
    dict
        Values by the options' ``dest``, as the parser makes them of the command line.

    Raises
    ------
    ValueError
        If it isn't TOML, or has an unknown key or a wrong value; the message names the file and the key.
    OSError
        If it can't be read.
    """
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for key, value in read_toml(path).items():
        name = key.replace("_", "-")
        action = options.get(name)
        if action is None:
            near = get_close_matches(name.lower(), options, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = f"{path}: unknown key {shortened(repr(key))}.{hint} Expected options: {', '.join(options)}."
            raise ValueError(msg)
        try:
            converted = _converted(action, value)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            msg = f"{path}: {key} = {shortened(_shown(value))}: {error}"
            raise ValueError(msg) from error
        if value is False and action.dest in values:  # "quiet = false" next to "verbose = true"
            continue
        if action.dest in given:
            msg = f"{path}: {given[action.dest]} and {key} exclude each other. Keep one."
            raise ValueError(msg)
        values[action.dest] = converted
        if value is not False:
            given[action.dest] = key
    return values


def _converted(action, value):
    """The value of an option as its parser would make it; ValueError, TypeError or ArgumentTypeError if it is none."""
    if action.nargs == 0:  # a flag
        if not isinstance(value, bool):
            msg = "expected true or false"
            raise ValueError(msg)
        return action.const if value else action.default
    if action.nargs is None:
        return _one(action, value)
    if value == [] or isinstance(value, dict):
        msg = "expected a list of one or more"
        raise ValueError(msg)
    return [_one(action, one) for one in (value if isinstance(value, list) else [value])]


def _one(action, value):
    if action.type in (None, Path, named_path, joined_paths):
        if not isinstance(value, str):
            msg = "expected text in quotes"
            raise ValueError(msg)
        if "\0" in value:
            msg = "expected text without the character NUL"
            raise ValueError(msg)
        if action.choices is not None and value not in action.choices:
            msg = f"expected one of {', '.join(action.choices)}"
            raise ValueError(msg)
        return (action.type or str)(value)
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        msg = "expected a number"
        raise ValueError(msg)
    try:
        converted = action.type(str(value))
    except ValueError as error:  # int's and float's own say less
        msg = f"expected {'a whole number' if action.type is int else 'a number'}"
        raise ValueError(msg) from error
    if isinstance(value, str) and not isinstance(converted, str):
        msg = "expected a number, without quotes"
        raise ValueError(msg)
    return converted


def lines_of(
    args: argparse.Namespace, options: Mapping[str, argparse.Action], comments: Iterable[str]
) -> Iterator[str]:
    """Lines of a file that repeats a command from any folder: all its options, of which defaults too.

    Paths are absolute. What chooses a part of the runs for this process alone isn't kept.

    Parameters
    ----------
    args : argparse.Namespace
    options : mapping
        As `read_config`.
    comments : iterable of str
        Lines in front.
    """
    yield from (f"# {_one_line(comment)}\n" for comment in comments)
    for name, action in options.items():
        value = getattr(args, action.dest)
        if action.nargs == 0:
            value = value == action.const
        if name not in _NOT_KEPT and value is not None and value not in ([], ()):
            yield f"{name} = {_shown(_absolute(action, value))}\n"


def _absolute(action, value):
    if isinstance(value, list | tuple):
        return [_absolute(action, one) for one in value]
    if isinstance(value, Path):
        return os.path.abspath(value)  # noqa: PTH100 - links are kept
    return absolute_paths(value, action.type) if action.type in (named_path, joined_paths) else value


def _one_line(text):
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _shown(value):
    """A value in TOML."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which TOML forbids, unlike JSON
    return json.dumps(value) if isinstance(value, bool) else str(value)
