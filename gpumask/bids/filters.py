"""The files with which fMRIPrep and others choose runs: ``--bids-filter-file``."""

import os
from typing import Any

from gpumask.bids.names import label_of
from gpumask.inputs import read_json, shortened

ABSENT, ANY = "", "*"
"""Labels that stand for no entity in a name, and for any."""

# pybids' names of the entities that a run's files share, and their keys in file names.
_ENTITIES = {
    "subject": "sub",
    "session": "ses",
    "sample": "sample",
    "task": "task",
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "direction": "dir",
    "run": "run",
    "recording": "recording",
}
_KEYS = {**_ENTITIES, **{key: key for key in _ENTITIES.values()}}
_CONSTANT = {"datatype": "func", "suffix": "bold"}  # files for fMRIPrep often have them
_OTHER_IMAGES = ("t1w", "t2w", "flair", "fmap", "sbref", "roi", "pet", "asl", "dwi")  # which aren't read here


def read_filters(path: str | os.PathLike) -> dict[str, set[str]]:
    """Read a filter file of fMRIPrep.

    Parameters
    ----------
    path : str or path-like
        JSON: ``{"bold": {"session": "01", "task": ["rest", "nback"], "acquisition": null}}``. Entities have pybids'
        names or BIDS's keys. A value is a label (a number for runs), null for names without the entity, "*" for names
        with it, or a list of these. "datatype" and "suffix" may be "func" and "bold". Filters of other images (t1w,
        fmap, ...) are ignored.

    Returns
    -------
    dict of set of str
        Labels by key, as `gpumask.bids.find_runs` accepts them: `ABSENT` for null, and `ANY`.

    Raises
    ------
    ValueError
        If it isn't such a file; the message names the file and the wrong part.
    OSError
        If it can't be read.
    """
    filters = read_json(path)
    if unknown := [name for name in filters if name not in ("bold", *_OTHER_IMAGES)]:
        others = ", ".join(_OTHER_IMAGES)
        msg = f"{path} has filters of {shortened(repr(unknown[0]))}, expected 'bold', or images to ignore ({others})."
        raise ValueError(msg)
    if not isinstance(filters.get("bold"), dict):
        found = f"got {shortened(repr(filters['bold']))}" if "bold" in filters else "but it is missing"
        msg = f'{path}: expected {{"bold": {{"session": "01", "task": ["rest"]}}}}, or other entities, {found}.'
        raise ValueError(msg)
    chosen: dict[str, set[str]] = {}
    for name, value in filters["bold"].items():
        where = f"{path}: 'bold': {shortened(repr(name))}"
        if name in _CONSTANT:
            if value != _CONSTANT[name]:
                msg = f"{where} is {shortened(repr(value))}, expected {_CONSTANT[name]!r}: others aren't read."
                raise ValueError(msg)
            continue
        if name not in _KEYS:
            other = " Choose the space with --space." if name in ("space", "res", "resolution", "cohort", "den") else ""
            msg = f"{where} isn't an entity of runs. Expected any of {', '.join(_ENTITIES)}.{other}"
            raise ValueError(msg)
        key = _KEYS[name]
        if key in chosen:
            msg = f"{where} is given twice, as {key!r} too. Keep one."
            raise ValueError(msg)
        chosen[key] = {_label(key, one, where) for one in (value if isinstance(value, list) else [value])}
        if not chosen[key]:
            msg = f"{where} is an empty list, which no run has. Expected labels; to choose all, leave it out."
            raise ValueError(msg)
    return chosen


def _label(key: str, value: Any, where: str) -> str:
    """A label as `gpumask.bids.names.label_of` makes it."""
    if value is None:
        return ABSENT
    is_number = key == "run" and type(value) is int and value >= 0
    if not is_number and not (isinstance(value, str) and value):
        msg = f"{where} has the value {shortened(repr(value))}, expected a label in quotes, null, or a list of these."
        raise ValueError(msg)
    return label_of(key, value)
