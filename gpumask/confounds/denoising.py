"""Named ways to clean a run: presets of the literature, and files that describe others."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpumask.bids.names import alphanumeric
from gpumask.choices import OUTPUT_TYPES, STANDARDIZE, check_choice
from gpumask.confounds.fmriprep import check_options, expanded
from gpumask.confounds.tables import MOTION
from gpumask.inputs import read_json, read_toml, shortened
from gpumask.references import short_reference

_TISSUES = ("csf", "white_matter", "global_signal")


@dataclass(frozen=True)
class Preset:
    """A denoising of the literature.

    Attributes
    ----------
    confounds : dict
        Keywords of `gpumask.confounds.fmriprep.fmriprep_confounds`.
    removes : str
        In words.
    sources : tuple of str
        Keys of `gpumask.references.REFERENCES`.
    has_gsr : bool
        Whether the global signal is among the confounds already.
    """

    confounds: Mapping[str, Any]
    removes: str
    sources: tuple[str, ...]
    has_gsr: bool = False

    @property
    def source(self) -> str:
        """In words: "Friston 1996; Wang 2024"."""
        strategy = self.confounds.get("strategy")
        same = [f"{strategy} of nilearn's load_confounds_strategy"] if strategy else []
        return "; ".join([*map(short_reference, self.sources), *same])


PRESETS = {
    "9p": Preset(
        {"columns": [*MOTION, *_TISSUES]},
        "6 motion parameters, csf, white_matter, global_signal",
        ("ciric",),
        has_gsr=True,
    ),
    "24p": Preset(
        {"columns": expanded(MOTION)},
        "6 motion parameters, their derivatives, and the squares of these 12",
        ("friston", "satterthwaite", "ciric"),
    ),
    "36p": Preset(
        {"columns": expanded([*MOTION, *_TISSUES])},
        "the 9 of 9p, their derivatives, and the squares of these 18",
        ("satterthwaite", "ciric"),
        has_gsr=True,
    ),
    "simple": Preset(
        {"strategy": "simple"},
        "the 24 of 24p, csf, white_matter, cosines (high-pass)",
        ("friston", "satterthwaite", "wang"),
    ),
    "scrubbing": Preset(
        {"strategy": "scrubbing"},
        "the 24 of 24p, csf and white_matter expanded as in 36p, cosines; censors volumes with an FD above 0.5 mm or a "
        "standardized DVARS above 1.5, and segments of fewer than 5 volumes between them",
        ("friston", "satterthwaite", "power", "wang"),
    ),
    "acompcor50": Preset(
        {"strategy": "compcor"},
        "the 24 of 24p, the components that explain 50 % of the variance in csf and white matter combined, cosines",
        ("behzadi", "muschelli", "friston", "satterthwaite", "wang"),
    ),
}
"""Presets by name. Only those with cosines filter; filters, detrending and censoring can be added to all."""


def preset_confounds(name: str) -> dict[str, Any]:
    """Keywords of `gpumask.confounds.fmriprep.fmriprep_confounds` for a preset.

    Parameters
    ----------
    name : str
        One of `PRESETS`, or followed by "+gsr" to add the global signal.

    Raises
    ------
    ValueError
        If it is unknown, or has the global signal already.
    """
    plain = name.removesuffix("+gsr")
    preset = PRESETS.get(plain)
    if preset is None:
        msg = (
            f"Unknown preset {shortened(repr(name))}. Expected one of {', '.join(PRESETS)}, or one followed by "
            "+gsr; or a file that ends in .toml or .json."
        )
        raise ValueError(msg)
    if plain == name:
        return dict(preset.confounds)
    if preset.has_gsr:
        msg = f"The preset {plain} removes the global signal already. Expected {plain!r}, got {name!r}."
        raise ValueError(msg)
    if "strategy" in preset.confounds:
        return {"strategy": f"{preset.confounds['strategy']}+gsr"}
    return {"columns": [*preset.confounds["columns"], "global_signal"]}


def preset_of(confounds: Mapping[str, Any]) -> str | None:
    """Name of the preset whose confounds these are, as `preset_confounds` takes it; None if there isn't one.

    Parameters
    ----------
    confounds : mapping
        Keywords of `gpumask.confounds.fmriprep.fmriprep_confounds`, or what a record has for them, of any type. Those
        for censoring don't count.
    """
    names = [name for name, preset in PRESETS.items() for name in (name, f"{name}+gsr")[: 2 - preset.has_gsr]]
    return next((name for name in names if _chosen(preset_confounds(name)) == _chosen(confounds)), None)


def _chosen(confounds):
    """The strategy, and the columns in any order."""
    columns = confounds.get("columns")
    are_names = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    return confounds.get("strategy"), sorted(columns) if are_names else columns


@dataclass(frozen=True)
class Denoising:
    """A way to clean the signals of a run. A cohort may have several, for one read of the run.

    Attributes
    ----------
    name : str
        Label "desc" of its outputs. Empty: they have none.
    confounds : dict
        Keywords of `gpumask.confounds.fmriprep.fmriprep_confounds`, and "motion_filter", a text of
        `gpumask.confounds.motion_filter.MotionFilter.of`. Empty: confounds aren't used.
    settings : dict
        Those of the fields "detrend", "low_pass", "high_pass" (Hz) and "standardize" of `gpumask.settings.Settings`
        that differ from the cohort's.
    dummy_scans : "auto" or int
        Volumes to drop at the beginning; "auto": those that the confounds table marks as before the steady state.
    output_type : {"censored", "n/a", "interpolated"}
        What tables of signals have for dropped volumes, see `gpumask.confounds.censoring.Censoring.rows`.

    Raises
    ------
    ValueError
        If the name can't be a label, or options contradict each other.
    ImportError
        If `confounds` has a strategy and nilearn isn't installed.
    """

    name: str = ""
    confounds: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    dummy_scans: str | int = "auto"
    output_type: str = "censored"

    def __post_init__(self):
        if alphanumeric(self.name) != self.name:
            msg = f"The name of a denoising is part of file names: expected letters and digits, got {self.name!r}."
            raise ValueError(msg)
        check_choice("output_type", self.output_type, OUTPUT_TYPES)
        check_options(**self.confounds)

    @property
    def options(self) -> dict[str, Any]:
        """What decides the numbers next to the settings; for JSON."""
        named = {"denoising": self.name} if self.name else {}
        rows = {} if self.output_type == "censored" else {"output_type": self.output_type}
        return {"confounds": self.confounds, "dummy_scans": self.dummy_scans, **named, **rows}


def denoising_of(text: str, given: Mapping[str, Any]) -> Denoising:
    """Denoising of a command line's ``--denoise [NAME=]SPEC``.

    Parameters
    ----------
    text : str
        SPEC is a preset, see `preset_confounds`, or a file ``.toml`` or ``.json`` with some of the keys "preset" or
        "columns" (names of the confounds table's columns, with the wildcards * ? []), "fd_threshold" (mm),
        "std_dvars_threshold", "scrub" (volumes), "motion_filter" (see `gpumask.confounds.motion_filter`),
        "dummy_scans", "low_pass" and "high_pass" (Hz), "detrend",
        "standardize" and "output_type". NAME is by default the preset's letters and digits, or the file's stem.
    given : mapping
        Values of some of these keys that a file without them, or a preset, gets.

    Raises
    ------
    ValueError
        If the preset is unknown, or the file has an unknown key or an unusable value; the message names the file.
    OSError
        If the file can't be read.
    ImportError
        If nilearn is needed, and isn't installed.
    """
    name, _, spec = text.rpartition("=") if not os.path.lexists(text) else ("", "", text)
    is_file = Path(spec).suffix.lower() in (".toml", ".json")
    values = _read(spec) if is_file else {"preset": spec}
    try:
        for key, value in values.items():
            _check(key, value)
        if "preset" in values and "columns" in values:
            msg = "'preset' and 'columns' exclude each other: give one."
            raise ValueError(msg)
        values = {**given, **values}
        confounds = preset_confounds(values.pop("preset")) if "preset" in values else {}
        confounds |= {key: values.pop(key) for key in _OF_CONFOUNDS if key in values}
        settings = {key: values.pop(key) for key in _OF_SETTINGS if key in values}
        low, high = settings.get("low_pass"), settings.get("high_pass")
        if low and high and high >= low:
            msg = f"'high_pass' ({high:g} Hz) must be lower than 'low_pass' ({low:g} Hz)."
            raise ValueError(msg)
        name = name or alphanumeric(Path(spec).stem if is_file else spec)
        return Denoising(name, confounds, settings, **values)
    except ValueError as error:
        msg = f"{spec if is_file else '--denoise'}: {error}"
        raise ValueError(msg) from error


def _read(path):
    return read_json(path) if Path(path).suffix.lower() == ".json" else read_toml(path)


def _is_positive(value):
    return type(value) in (int, float) and 0 < value < float("inf")


def _is_count(value):
    return type(value) is int and value >= 0


def _are_names(value):
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)


_POSITIVE = (_is_positive, "a positive number")
_OF_CONFOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "columns": (_are_names, "a list of names"),
    "fd_threshold": _POSITIVE,
    "std_dvars_threshold": _POSITIVE,
    "scrub": (_is_count, "a number of volumes"),
    "motion_filter": (lambda value: isinstance(value, str), "a text such as notch:12-18"),
}
_OF_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "low_pass": _POSITIVE,
    "high_pass": _POSITIVE,
    "detrend": (lambda value: isinstance(value, bool), "true or false"),
    "standardize": (lambda value: value is False or value in STANDARDIZE, f"one of {', '.join(STANDARDIZE)}, or false"),
}
_OTHERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "preset": (lambda value: isinstance(value, str), "a name"),
    "dummy_scans": (lambda value: value == "auto" or _is_count(value), '"auto" or a number of volumes'),
    "output_type": (OUTPUT_TYPES.__contains__, f"one of {', '.join(OUTPUT_TYPES)}"),
}


def _check(key, value):
    rules = {**_OTHERS, **_OF_CONFOUNDS, **_OF_SETTINGS}
    if key not in rules:
        msg = f"Unknown key {shortened(repr(key))}. Expected some of {', '.join(rules)}."
        raise ValueError(msg)
    is_right, expected = rules[key]
    if not is_right(value):
        msg = f"{key!r} must be {expected}, got {shortened(repr(value))}."
        raise ValueError(msg)
