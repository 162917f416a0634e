"""Which confounds table and which mask belong to which run, by their names."""

import os
from collections.abc import Sequence
from pathlib import Path

from gpumask.bids.names import CONFOUNDS, identifying_entities, parse_name
from gpumask.bids.runs import Run

_MOST = 5  # pairs that a message lists


def matches(path: str | os.PathLike, run_path: str | os.PathLike) -> bool:
    """Whether a file may belong to a run: False only if their names contradict each other.

    The identifying entities of the file (see `gpumask.bids.names.identifying_entities`) must be a subset of the run's.
    A name without any fits every run. Subject and session may be those of the folder.
    """
    own, of_run = identifying_entities(Path(path).name), identifying_entities(Path(run_path).name)
    if own and of_run and not own.items() <= of_run.items():
        return False
    own, of_run = _owners(path) | own, _owners(run_path) | of_run
    return all(own[key] == of_run[key] for key in ("sub", "ses") if key in own and key in of_run)


def _owners(path):
    """Subject and session by the folders of a file."""
    owners = {}
    for folder in reversed(Path(os.path.abspath(path)).parts[:-1]):  # noqa: PTH100 - data sets are trees of links
        key, _, label = folder.partition("-")
        if key in ("sub", "ses") and label.isalnum() and key not in owners:
            owners[key] = label
    return owners


def check_pairs(runs: Sequence[Run], remedy: str) -> None:
    """Check that names don't contradict how runs are paired with confounds tables and masks.

    Each file's name must match its run's (see `matches`), and no table or mask of another run may match better, with
    more entities.

    Parameters
    ----------
    runs : sequence of Run
    remedy : str
        End of the message.

    Raises
    ------
    ValueError
        That names the wrong pairs.
    """
    wrong = []
    for kind in ("confounds", "mask"):
        pairs = [(getattr(run, kind), run.path) for run in runs if getattr(run, kind)]
        better = _Better(path for path, _ in pairs)
        for path, run_path in pairs:
            if not matches(path, run_path):
                wrong.append(f"{path} isn't of {run_path}")
            elif other := better.than(path, run_path):
                wrong.append(f"{path} isn't of {run_path}, but {other} is")
    if wrong:
        more = f" and {len(wrong) - _MOST} more" if len(wrong) > _MOST else ""
        msg = f"Wrong pairs, by their names: {'; '.join(wrong[:_MOST])}{more}. {remedy}"
        raise ValueError(msg)


class _Better:
    """Given files, by their identifying entities, so that looking for a better one doesn't try all."""

    def __init__(self, paths):
        self._by_entities = {}
        self._keys = set()
        for path in paths:
            entities = identifying_entities(Path(path).name)
            self._by_entities.setdefault(frozenset(entities.items()), []).append(path)
            self._keys.add(frozenset(entities))

    def than(self, path, run_path):
        """A file that matches a run with more entities than `path`; None if there is none."""
        n_own = len(identifying_entities(Path(path).name))
        of_run = identifying_entities(Path(run_path).name)
        for keys in sorted(self._keys, key=len, reverse=True):
            if not 0 < n_own < len(keys):
                return None
            if keys <= of_run.keys():
                found = self._by_entities.get(frozenset((key, of_run[key]) for key in keys), ())
                if other := next((other for other in found if matches(other, run_path)), None):
                    return other
        return None


def confounds_beside(run_path: str | os.PathLike) -> Path:
    """Find the confounds table of fMRIPrep in the folder of a run.

    It is the ``*_desc-confounds_timeseries.tsv`` (``_regressors`` before fMRIPrep 20.2) that matches the run's name,
    with the most entities.

    Raises
    ------
    ValueError
        If there is none, there are several, or the run's name isn't BIDS.
    OSError
        If the folder can't be listed.
    """
    folder = Path(run_path).parent
    of_run = identifying_entities(Path(run_path).name)
    if not of_run:
        msg = f"{run_path} isn't a BIDS name, so its confounds table can't be found: give it (--confounds TSV)"
        raise ValueError(msg)
    numbers = {}
    with os.scandir(folder) as entries:
        for name in sorted(entry.name for entry in entries):
            parsed = parse_name(name)
            if parsed and (parsed.suffix, parsed.entities.get("desc"), parsed.extension) in CONFOUNDS:
                own = identifying_entities(name)
                if own and own.items() <= of_run.items():
                    numbers[name] = len(own)
    most = max(numbers.values(), default=0)
    found = [name for name, number in numbers.items() if number == most]
    if len(found) != 1:
        what = f"{len(found)} confounds tables: {', '.join(found)}" if found else "no confounds table"
        entities = "_".join(f"{key}-{label}" for key, label in of_run.items())
        msg = f"{run_path} has {what} next to it, expected {entities}_desc-confounds_timeseries.tsv"
        raise ValueError(msg)
    return folder / found[0]
