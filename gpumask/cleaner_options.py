"""Checks of the options of `gpumask.signal.clean`, with nilearn's messages where nilearn raises an error."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpumask.process import warn

STANDARDIZE: dict[Any, str | None] = {
    "zscore_sample": "zscore_sample",
    "zscore": "zscore",
    "psc": "psc",
    True: "zscore_sample",
    False: None,
    None: None,
}


def check_option(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise ValueError unless an option has one of the allowed values."""
    if value not in allowed:
        msg = f"'{name}' must be one of {allowed}.\n'{value}' was provided."
        raise ValueError(msg)


def checked_filter(filter: Any, low_pass: float | None, high_pass: float | None, t_r: float | None) -> str | bool:
    """Return the filter that applies: "butterworth", "cosine" or False. ValueError if its options don't fit."""
    if filter not in ("butterworth", "cosine", False):
        msg = f"Filter method {filter} not implemented."
        raise ValueError(msg)
    if not filter:
        if low_pass is not None or high_pass is not None:
            msg = "No filter type selected but cutoff frequency provided.Will not perform filtering."
            warn(msg)
        return False
    if filter == "cosine" and (t_r is None or high_pass is None):
        msg = (
            "Repetition time (t_r) and low cutoff frequency (high_pass) must be specified for cosine filtering. "
            f"Got: '{t_r=}' and '{high_pass=}'"
        )
        raise ValueError(msg)
    if low_pass is None and high_pass is None:
        return False
    if t_r is None:
        msg = f"Repetition time (t_r) must be specified for butterworth filtering. Got: '{t_r=}'"
        raise ValueError(msg)
    if t_r <= 0:
        msg = f"`t_r` must be a positive number of seconds, got {t_r}."
        raise ValueError(msg)
    return filter


def butterworth_options(**kwargs: Any) -> tuple[Any, dict[str, Any], Any]:
    """Return order, padding and copy from ``butterworth__*`` keywords; TypeError for another keyword."""
    options: dict[str, Any] = {"order": 5, "padtype": "odd", "padlen": None, "copy": False}
    for key, value in kwargs.items():
        name = key.removeprefix("butterworth__")
        if name == key or name not in options:
            known = ", ".join(f"butterworth__{option}" for option in options)
            msg = f"clean() got an unexpected keyword argument '{key}'. Use its parameters or {known}."
            raise TypeError(msg)
        options[name] = value
    return options["order"], {"padtype": options["padtype"], "padlen": options["padlen"]}, options["copy"]


def rows_of_runs(runs: Any, n_volumes: int) -> list[np.ndarray]:
    """Return the indices of each run's volumes, runs sorted by their label; a single run for None.

    ValueError or TypeError if `runs` doesn't name the run of each volume.
    """
    if runs is None:
        return [np.arange(n_volumes)]
    runs = np.asarray(runs)
    if runs.ndim != 1:
        msg = f"`runs` must have one dimension, the run of each volume, got the shape {runs.shape}."
        raise ValueError(msg)
    if len(runs) != n_volumes:
        msg = f"The length of the run vector ({len(runs)}) does not match the length of the signals ({n_volumes})"
        raise ValueError(msg)
    if missing := [k for k, run in enumerate(runs.tolist()) if run is None or run != run]:
        msg = f"`runs` must name the run of each volume, but is missing (NaN or None) for the volumes {missing[:5]}."
        raise ValueError(msg)
    try:
        return [np.flatnonzero(runs == run) for run in np.unique(runs)]
    except TypeError as error:
        kinds = ", ".join(sorted({type(run).__name__ for run in runs.tolist()}))
        msg = f"`runs` must hold labels that can be sorted, all numbers or all texts, got {kinds}."
        raise TypeError(msg) from error
