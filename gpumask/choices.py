"""Names of the choices that users have, and the check of a parameter's type; imports nothing slow, for ``--help``."""

from typing import Any

STRATEGIES = ("mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation")
VOXEL = "voxel"  # of maskers of voxels: each region is one voxel, and its signal the voxel's value
MAPS_STRATEGIES = {"least_squares": "sum", "weighted_mean": "mean"}  # and the statistic that volumes are reduced to
LINEAR = ("mean", "sum")  # the strategies that are linear in the voxels
EXTREMES = ("minimum", "maximum")
STANDARDIZE = ("zscore_sample", "zscore", "psc")
TARGETS = ("labels", "data", None)
OUTPUT_TYPES = ("censored", "n/a", "interpolated")  # of censored volumes: no row, n/a, or interpolated
NAN_POLICIES = ("zero", "omit")
RELMATS = {  # kinds of connectivity, and their labels of the entity "stat" in file names
    "pearson": "pearsoncorrelation",
    "partial": "partialcorrelation",
    "covariance": "covariance",
    "fisherz": "fisherz",
}
OUTPUTS = ("host", "device")  # where results lie
MAX_FWHM = 1000  # mm: wider than any body part in a scanner


def check_type(name: str, value: Any, types: Any) -> None:
    """Raise TypeError, with nilearn's message, if a parameter has another type; bool doesn't count as a number."""
    members = getattr(types, "__args__", (types,))
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in members):
        msg = f"'{name}' must be of type(s): '{types}'.\nGot: '{type(value).__name__}'"
        raise TypeError(msg)


def check_choice(name: str, value: Any, allowed: tuple) -> None:
    """Raise ValueError, with nilearn's message, if a parameter isn't one of the allowed values."""
    if not any(value is a or (isinstance(value, str) and value == a) for a in allowed):
        msg = f"'{name}' must be one of {allowed}.\n'{value}' was provided."
        raise ValueError(msg)
