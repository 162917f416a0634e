"""The ways in which a cohort's outputs were made, from its records, and their words.

Everything is from the records' descriptions of how outputs were made. Others may have written those: a value of another
type than gpumask's is shown as it is, and never interpreted.
"""

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gpumask.cohort.stored import unit_key
from gpumask.inputs import shortened
from gpumask.text_tables import listed

_Item = TypeVar("_Item")

MOST_SHOWN = 20
"""Ways of processing, and atlases of each, that are shown."""
_LONGEST = 300  # characters of a value
_STATISTICS = {
    "mean": "the mean",
    "sum": "the sum",
    "median": "the median",
    "minimum": "the minimum",
    "maximum": "the maximum",
    "standard_deviation": "the standard deviation",
    "variance": "the variance",
}
_STANDARDIZED = {
    "zscore_sample": "to zero mean and unit variance (sample standard deviation)",
    "zscore": "to zero mean and unit variance",
    "psc": "as percent signal change",
    True: "to zero mean and unit variance (sample standard deviation)",
}
OUTPUT_WORDS = {
    "n/a": "censored volumes are rows of n/a",
    "interpolated": "censored volumes are interpolated in the time series, and not used for correlations",
}
"""What tables of signals have for censored volumes, unless these are dropped."""
_COMMON = ("version", "elements", "denoising", "settings", "confounds", "dummy_scans", "output_type")  # of all atlases
_EXPANSIONS = {
    ("", "_derivative1"): "with its derivative",
    ("", "_power2"): "with its square",
    ("", "_derivative1", "_derivative1_power2", "_power2"): "with its derivative, and the squares of both",
}


@dataclass
class Processing:
    """One way in which outputs were made.

    Attributes
    ----------
    how : dict
        Description of the first output that was made so; see ``Configuration.described``.
    atlases : dict
        For each atlas how it was described, and its number of regions (None: unknown).
    made : dict of str
        For each atlas the hash of its description.
    runs : Counter
        Runs of each atlas.
    has_dummies : bool
        Whether volumes of a run were dropped as dummy scans.
    """

    how: dict[str, Any]
    atlases: dict[str, tuple[dict[str, Any], int | None]] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)
    has_dummies: bool = False


@dataclass
class Methods:
    """The ways in which a cohort's outputs were made; bounded, whatever the records say."""

    processings: dict[str, Processing] = field(default_factory=dict)
    n_more: int = 0  # outputs made in further ways

    def add(self, record: dict[str, Any]) -> None:
        """Add the descriptions of a record, as `gpumask.cohort.stored.read_record` returns it."""
        for made, how in record["made"].items():
            atlas, denoising = unit_key(how)
            if not atlas:
                continue
            common = [how.get(key) for key in _COMMON]
            key = self._key(json.dumps(common, sort_keys=True), atlas, made)
            if key not in self.processings and len(self.processings) >= MOST_SHOWN:
                self.n_more += 1
                continue
            processing = self.processings.setdefault(key, Processing(how))
            processing.has_dummies |= (record["quality"][denoising].get("removed_dummy_scans") or 0) > 0
            if atlas in processing.atlases or len(processing.atlases) < MOST_SHOWN:
                n_regions = record["atlases"][atlas].get("regions")
                processing.atlases.setdefault(atlas, (how, n_regions if type(n_regions) is int else None))
                processing.made[atlas] = made
                processing.runs[atlas] += 1

    def _key(self, common, atlas, made):
        """A key for what has these settings in common: another one if its atlas is another of the same name."""
        known = self.processings
        keys = (f"{common} {number}" for number in itertools.count())
        return next(key for key in keys if key not in known or known[key].made.get(atlas, made) == made)


def split_shared(lists: Sequence[Sequence[_Item]]) -> tuple[list[_Item], list[list[_Item]]]:
    """What all lists share, in the order of the first one, and each list without it."""
    shared = [item for item in lists[0] if all(item in other for other in lists[1:])]
    return shared, [[item for item in own if item not in shared] for own in lists]


def text_of(value: Any) -> str:
    """A value of a description, in a line."""
    if is_number(value):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shortened(" ".join(text.split()), _LONGEST)


def is_number(value: Any) -> bool:
    """Whether a value is a number of a usual size."""
    return type(value) in (int, float) and abs(value) < 1e9  # False for NaN


def is_of_each_run(how: dict[str, Any]) -> bool:
    """Whether each run has an image of its own of the atlas; see `gpumask.cohort.own_atlases`."""
    return "regions_of_all_runs" in how


def is_of_grayordinates(how: dict[str, Any]) -> bool:
    """Whether outputs were made from grayordinates, by a description of how they were made."""
    return how.get("elements") == "grayordinates"


def signal_words(how: dict[str, Any]) -> str:
    """What a signal is, in words."""
    strategy = text_of(how["settings"].get("strategy", "unknown"))
    if strategy in _STATISTICS:
        return f"{_STATISTICS[strategy]} of each region's {'grayordinates' if is_of_grayordinates(how) else 'voxels'}"
    return {
        "least_squares": "least-squares fit of the maps to each volume",
        "weighted_mean": "weighted mean by each map",
    }.get(strategy, strategy)


def standardized(settings: dict[str, Any]) -> str | None:
    """How signals are standardized, in words; None if they aren't."""
    value = settings.get("standardize")
    return _STANDARDIZED.get(value) if isinstance(value, str | bool) else None


def expanded(columns: list[Any]) -> str:
    """Columns of a confounds table in words: those of one signal together."""
    of_base = defaultdict(set)
    for column in map(text_of, columns):
        base = re.sub("(_derivative1)?(_power2)?$", "", column)
        of_base[base].add(column.removeprefix(base))
    bases_of = defaultdict(list)
    for base, endings in of_base.items():
        words = _EXPANSIONS.get(tuple(sorted(endings)))
        if words:
            bases_of[words].append(base)
        else:
            bases_of[""] += sorted(base + ending for ending in endings)
    parts = [f"{listed(bases, MOST_SHOWN)}{f' (each {words})' if words else ''}" for words, bases in bases_of.items()]
    return " and ".join(parts)
