"""Quality of a run in numbers: what censoring and cleaning took, how much it moved, and what its regions are like.

A record has them under "quality", an object by the name of the denoising ("" for one without a name)::

    {"": {"volumes": 156, "volumes_kept": 75, "removed_fd": 80, ..., "atlases": {"Toy": {"tsnr": 41.2, ...}}}}

Its keys are those of `OF_RUN`, and of `OF_ATLAS` under "atlases". `rows` joins them with the rest of a record, for the
table of the group and for the page. Numbers that can't be known are None.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpumask.bids.names import entity_columns
from gpumask.confounds.outliers import Outliers


@dataclass(frozen=True)
class Column:
    """A column of the table of the group, described as BIDS does.

    Attributes
    ----------
    name : str
        Also the key in records and in `rows`.
    long_name, description : str
    units : str
        Empty for numbers without.
    is_count : bool
        Whether its values are whole numbers.
    """

    name: str
    long_name: str
    description: str
    units: str = ""
    is_count: bool = False


_SEVERAL = "A volume with several reasons counts once for each: the counts may add up to more than were removed."
_FD = (
    "framewise displacement as in the confounds table, or of filtered motion parameters if --motion-filter was given "
    "(sidecars: ConfoundsOptions); the first volume has none."
)

OF_RUN = (
    Column("volumes", "Volumes", "Volumes of the image.", is_count=True),
    Column("volumes_kept", "Volumes kept", "Volumes that no reason removes.", is_count=True),
    Column(
        "removed_non_steady_state",
        "Removed, non-steady state",
        f"Removed volumes that fMRIPrep marks as non_steady_state_outlier. {_SEVERAL}",
        is_count=True,
    ),
    Column(
        "removed_dummy_scans",
        "Removed, dummy scans",
        "Volumes dropped as before the steady state: the first N with --dummy-scans N, else those that fMRIPrep marks. "
        f"{_SEVERAL}",
        is_count=True,
    ),
    Column(
        "removed_fd",
        "Removed, framewise displacement",
        f"Removed volumes whose framewise displacement exceeds the threshold. {_SEVERAL}",
        is_count=True,
    ),
    Column(
        "removed_dvars",
        "Removed, DVARS",
        f"Removed volumes whose standardized DVARS exceeds the threshold. {_SEVERAL}",
        is_count=True,
    ),
    Column(
        "removed_short_segment",
        "Removed, short segment",
        "Volumes that scrubbing removes for no other reason: their segment between removed volumes is short.",
        is_count=True,
    ),
    Column("fd_threshold", "FD threshold", "Volumes with a larger framewise displacement are removed.", "mm"),
    Column("fd_mean", "Mean FD", f"Mean over all volumes: {_FD}", "mm"),
    Column("fd_median", "Median FD", f"Median over all volumes: {_FD}", "mm"),
    Column("fd_max", "Maximum FD", f"Maximum over all volumes: {_FD}", "mm"),
    Column("fd_mean_kept", "Mean FD, kept", f"Mean over the kept volumes: {_FD}", "mm"),
    Column("fd_median_kept", "Median FD, kept", f"Median over the kept volumes: {_FD}", "mm"),
    Column("fd_max_kept", "Maximum FD, kept", f"Maximum over the kept volumes: {_FD}", "mm"),
    Column("minutes_kept", "Time kept", "Number of kept volumes times the repetition time.", "min"),
    Column("regressors", "Regressors", "Columns of confounds that were regressed out.", is_count=True),
    Column(
        "degrees_of_freedom",
        "Degrees of freedom",
        "Effective degrees of freedom of white noise that cleaning leaves (Satterthwaite's approximation).",
    ),
    Column(
        "degrees_of_freedom_share",
        "Share of degrees of freedom",
        "Degrees of freedom left, divided by the number of kept volumes.",
    ),
)
"""Numbers of a run and a denoising."""

OF_ATLAS = (
    Column("regions", "Regions", "Columns of the time series.", is_count=True),
    Column("regions_lost", "Regions lost", "Columns of the time series that are n/a throughout.", is_count=True),
    Column(
        "coverage_median",
        "Median coverage",
        "Median over the regions of the share of their voxels that the run and its mask cover. In an atlas of several "
        "images, voxels that belong to an earlier image count as not covered.",
    ),
    Column(
        "median_abs_r",
        "Median absolute correlation",
        "Median of |r| over all pairs of different regions, r being Pearson's correlation of their cleaned series over "
        "the kept volumes. Pairs without a correlation don't count.",
    ),
    Column(
        "tsnr",
        "Temporal signal-to-noise ratio",
        "Median over the regions of mean / standard deviation (divisor N) of a region's series before cleaning, over "
        "the volumes that the denoising keeps. The series are means of regions, smoothed if that was requested, so the "
        "ratio is larger than that of voxels. Constant and lost regions don't count.",
    ),
)
"""Numbers of an atlas in a run and a denoising. "regions" and "coverage_median" are the same for every denoising:
records have them under "atlases"."""

OF_RECORD = (
    Column("seconds", "Duration", "Wall-clock time from the run's start to its last file, for all denoisings.", "s"),
)

_LARGEST = 1e9  # of the numbers in a record


def quality_of(
    outliers: Outliers,
    *,
    t_r: float | None,
    n_regressors: int,
    degrees_of_freedom: float | None,
    atlases: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Quality of a run after one denoising.

    Parameters
    ----------
    outliers : Outliers
        Which volumes are removed, why, and how the run moved.
    t_r : float or None
        Repetition time in s.
    n_regressors : int
        Number of confounds that are regressed out.
    degrees_of_freedom : float or None
        See `gpumask.cleaner.Cleaner.degrees_of_freedom`.
    atlases : dict of dict
        Numbers of each atlas, from `atlas_quality`.

    Returns
    -------
    dict
        By the names in `OF_RUN`: numbers below 1e9, or None for those that aren't known or are larger; and "atlases".
    """
    kept, displacement = ~outliers.removed, outliers.displacement
    n_kept = int(np.count_nonzero(kept))
    counts = {f"removed_{name}": int(np.count_nonzero(of)) for name, of in outliers.reasons.items()}
    numbers = {"volumes": len(kept), "volumes_kept": n_kept, **counts, "fd_threshold": outliers.fd_threshold}
    for name, statistic in (("mean", np.mean), ("median", np.median), ("max", np.max)):
        numbers[f"fd_{name}"] = _of_known(statistic, displacement)
        numbers[f"fd_{name}_kept"] = _of_known(statistic, None if displacement is None else displacement[kept])
    numbers["minutes_kept"] = None if t_r is None else n_kept * t_r / 60
    numbers["regressors"] = n_regressors
    numbers["degrees_of_freedom"] = degrees_of_freedom
    numbers["degrees_of_freedom_share"] = None if degrees_of_freedom is None else degrees_of_freedom / n_kept
    return {**{column.name: _bounded(numbers[column.name]) for column in OF_RUN}, "atlases": dict(atlases)}


def atlas_quality(signals: np.ndarray, correlations: np.ndarray | None, snr: np.ndarray) -> dict[str, Any]:
    """Quality of the signals of an atlas.

    Parameters
    ----------
    signals : ndarray, shape (n_kept, n_regions)
        Cleaned.
    correlations : ndarray, shape (n_regions, n_regions), or None
        Of the signals; None if they aren't computed.
    snr : ndarray, shape (n_regions,)
        Temporal signal-to-noise ratio of each region before cleaning; NaN for those without.

    Returns
    -------
    dict
        The numbers of `OF_ATLAS` that differ between denoisings.
    """
    lost = ~np.isfinite(signals).any(axis=0)
    pairs = None if correlations is None else np.abs(correlations[np.triu_indices(len(correlations), 1)])
    return {
        "regions_lost": int(np.count_nonzero(lost)),
        "median_abs_r": _bounded(_of_known(np.median, pairs)),
        "tsnr": _bounded(_of_known(np.median, snr[~lost])),
    }


def joined_qualities(
    earlier: Mapping[str, Mapping[str, Any]],
    new: Mapping[str, Mapping[str, Any]],
    used: Collection[tuple[str, str]],
) -> dict[str, dict[str, Any]]:
    """Qualities of a run by denoising: new and earlier ones, of the `used` (names of) atlases and denoisings."""
    joined, names = {}, {denoising for _, denoising in used}
    for denoising in (name for name in dict.fromkeys([*earlier, *new]) if name in names):
        both = [one[denoising] for one in (earlier, new) if denoising in one]
        of_atlases = {
            atlas: numbers for one in both for atlas, numbers in one["atlases"].items() if (atlas, denoising) in used
        }
        joined[denoising] = {**both[-1], "atlases": of_atlases}
    return joined


def _of_known(statistic, values):
    """A statistic of the finite values as a number of Python; None if there are none."""
    known = np.empty(0) if values is None else values[np.isfinite(values)]
    return float(statistic(known)) if known.size else None


def _bounded(number):
    """A number that records accept, or None."""
    return number if number is not None and abs(number) < _LARGEST else None


def rows(records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of the table of quality, one per run and denoising.

    Parameters
    ----------
    records : iterable of dict
        As `gpumask.cohort.stored.read_record` returns them.

    Yields
    ------
    dict
        "name" of the run; "participant_id", "session", "task", "run" and "space" (None if its name lacks them);
        "denoising"; the names in `OF_RUN` and `OF_RECORD`; and "atlases", by atlas the names in `OF_ATLAS`. None for
        unknown numbers.
    """
    for record in records:
        for denoising, numbers in record["quality"].items():
            of_atlases = numbers["atlases"]
            yield {
                **entity_columns(record["name"]),
                "denoising": denoising,
                **{column.name: numbers.get(column.name) for column in OF_RUN},
                "seconds": record["seconds"].get("total"),
                "atlases": {
                    name: {key: _number(facts.get(key)) for key in ("regions", "coverage_median")}
                    | {"regions_lost": None, "median_abs_r": None, "tsnr": None}
                    | of_atlases.get(name, {})
                    for name, facts in record["atlases"].items()
                    if name in of_atlases or not of_atlases
                },
            }


def _number(value):
    """A number of a record's "atlases", which aren't checked when they are read."""
    return value if type(value) in (int, float) and abs(value) < _LARGEST else None
