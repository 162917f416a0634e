"""How each denoising of a configuration cleans a run, decided before the run is read."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpumask.bids.runs import Run
from gpumask.cohort.configuration import Configuration, Unit
from gpumask.confounds.censoring import Censoring, censor, check_kept_time
from gpumask.confounds.fmriprep import censoring_thresholds, fmriprep_confounds
from gpumask.confounds.motion_filter import with_filtered_displacement
from gpumask.confounds.outliers import Outliers, find_outliers
from gpumask.confounds.tables import ConfoundsTable, confounds_matrix
from gpumask.extraction import Prepared
from gpumask.images.volumes import Volumes
from gpumask.process import collect_warnings, warn

if TYPE_CHECKING:
    import pandas as pd

_LEAST_DOF = 2  # with fewer, at most a mean is left, and every correlation is 1 or -1
LOW_DOF_SHARE = 0.1  # of the kept volumes: with fewer degrees of freedom left, a run gets a warning


@dataclass(frozen=True, eq=False)
class Cleaning:
    """A denoising of one run.

    Attributes
    ----------
    confounds : DataFrame or None
    censoring : Censoring
    outliers : Outliers
        Why `censoring` drops volumes.
    prepared : dict of Prepared
        By the names of the units.
    degrees_of_freedom : float or None
        What is left, see `gpumask.cleaner.Cleaner.degrees_of_freedom`; None for a single volume.
    """

    confounds: "pd.DataFrame | None"
    censoring: Censoring
    outliers: Outliers
    prepared: dict[str, Prepared]
    degrees_of_freedom: float | None

    @property
    def n_regressors(self) -> int:
        """Number of confounds that are regressed out."""
        return 0 if self.confounds is None else self.confounds.shape[1]


def cleanings_of(
    configuration: Configuration,
    run: Run,
    volumes: Volumes,
    units: Iterable[Unit],
    t_r: float | None,
    prepare: Callable[..., Prepared],
) -> tuple[dict[str, Cleaning], dict[str, Exception]]:
    """Prepare some units of a run, denoising by denoising.

    Parameters
    ----------
    configuration : Configuration
    run : Run
    volumes : Volumes
    units : iterable of Unit
        With an atlas.
    t_r : float or None
        Repetition time in s.
    prepare : callable
        Gets a unit, its settings, confounds, the volumes to keep and, if there is one of the same denoising, a
        `cleaner`; see `gpumask.extraction.prepare`.

    Returns
    -------
    cleanings : dict of Cleaning
        By the names of the denoisings.
    refusals : dict of Exception
        Why other denoisings can't be used for the run.

    Raises
    ------
    ValueError
        If none can be.
    """
    by_denoising: dict[str, list[Unit]] = {}
    for unit in units:
        by_denoising.setdefault(unit.denoising.name, []).append(unit)
    table = ConfoundsTable.of(run.confounds) if run.confounds else None
    cleanings: dict[str, Cleaning] = {}
    refusals: dict[str, Exception] = {}
    messages: dict[str, list[str]] = {}
    for name, own in by_denoising.items():
        with collect_warnings() as messages[name]:
            try:
                cleanings[name] = _cleaning(configuration, run, table, volumes, own, t_r, prepare)
            except ValueError as error:
                refusals[name] = error
    for message in dict.fromkeys(message for some in messages.values() for message in some):
        names = [name for name, some in messages.items() if message in some]
        warn(message if len(names) == len(messages) else f"{', '.join(names)}: {message}")
    if not cleanings:
        first = next(iter(refusals.values()))
        if len({str(error) for error in refusals.values()}) == 1 and (len(refusals) > 1 or "" in refusals):
            raise first
        raise ValueError(reasons(refusals)) from first
    return cleanings, refusals


def reasons(refusals: dict[str, Exception]) -> str:
    """Why denoisings can't be used for a run, each reason with their names."""
    names: dict[str, list[str]] = {}
    for name, error in refusals.items():
        names.setdefault(str(error), []).append(name)
    return " ".join(f"{', '.join(own)}: {error}" for error, own in names.items())


def _cleaning(configuration, run, table, volumes, units: Sequence[Unit], t_r, prepare):
    """The cleaning of units of the same denoising."""
    denoising = units[0].denoising
    motion = table
    if table is not None and (motion_filter := denoising.confounds.get("motion_filter")):
        motion = with_filtered_displacement(table, motion_filter, t_r)
    confounds, sample_mask = _confounds(run, table, motion, volumes, denoising)
    censoring = censor(table, volumes.n_volumes, sample_mask, denoising.dummy_scans)
    _check_confounds(run, confounds, volumes, censoring.kept)
    check_kept_time(censoring, t_r, configuration.min_time, str(run.path))
    settings = [replace(configuration.settings_of(unit), t_r=t_r) for unit in units]
    if settings[0].high_pass and confounds is not None and any(str(name).startswith("cosine") for name in confounds):
        warn(
            f"Drifts are removed twice: by the Butterworth high-pass ({settings[0].high_pass:g} Hz), and by the cosine "
            "columns among the confounds. Use one of them."
        )
    prepared: dict[str, Prepared] = {}
    cleaner = None
    for unit, own in zip(units, settings, strict=True):  # they differ in space alone
        prepared[unit.name] = prepare(unit, own, confounds, censoring.kept, cleaner=cleaner)
        cleaner = prepared[unit.name].cleaner
    freedom = _degrees_of_freedom(configuration, run, prepared[units[0].name], censoring)
    outliers = find_outliers(censoring, motion, **censoring_thresholds(**denoising.confounds))
    return Cleaning(confounds, censoring, outliers, prepared, freedom)


def _confounds(run, table, motion, volumes, denoising):
    if not denoising.confounds:
        return None, None
    if table is None:
        msg = f"{run.path} has no confounds table, but confounds were requested."
        raise ValueError(msg)
    options = {name: value for name, value in denoising.confounds.items() if name != "motion_filter"}
    return fmriprep_confounds(run.path, table, **options, n_volumes=volumes.n_volumes, motion=motion)


def _check_confounds(run, confounds, volumes, kept):
    try:
        confounds_matrix(confounds, volumes.n_volumes, kept)
    except ValueError as error:
        msg = f"{run.confounds}: {error}"
        raise ValueError(msg) from error


def _degrees_of_freedom(configuration, run, one, censoring):
    """What cleaning leaves; ValueError if that is too little for any statistic."""
    if censoring.n_volumes == 1:
        return None
    freedom, n_kept = one.cleaner.degrees_of_freedom(), censoring.n_kept
    left = f"cleaning leaves {freedom:.1f} degrees of freedom of {n_kept} volumes of {run.path}"
    remedy = "Remove fewer confounds, filter less, or exclude the run."
    least = max(configuration.min_dof or 0, _LEAST_DOF)
    if freedom < least - 1e-6:  # rounding: a projection's are whole
        expected = f"--min-dof {least:g}" if configuration.min_dof == least else f"{least:g}"
        msg = f"{left[0].upper()}{left[1:]}, fewer than {expected}. {remedy}"
        raise ValueError(msg)
    if freedom < LOW_DOF_SHARE * n_kept:
        warn(f"{left[0].upper()}{left[1:]}, less than {LOW_DOF_SHARE:.0%}: correlations are unreliable. {remedy}")
    return freedom
