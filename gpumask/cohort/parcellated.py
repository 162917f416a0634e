"""CIFTI-2 files of a run's parcels, for Workbench: what its tables hold, with the parcels' positions and colours."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpumask.engine.dense_regions import DenseLabelsOnRun
from gpumask.engine.regions import RegionsOnGrid
from gpumask.images.cifti_images import Parcels

TABLES = {"ptseries": "timeseries", "pscalar": "coverage", "pconn": "pearson"}
"""Kinds of files, and the kind of table with the same numbers."""
_ENDS = {"ptseries": "timeseries.ptseries.nii", "pscalar": "boldmap.pscalar.nii", "pconn": "boldmap.pconn.nii"}


def parcellated_paths(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Paths of the files to write next to a unit's tables, by kind; named as by XCP-D."""
    of = {kind: paths[table] for kind, table in TABLES.items() if table in paths}
    return {kind: path.with_name(f"{path.name.rpartition('_')[0]}_{_ENDS[kind]}") for kind, path in of.items()}


def parcellated(
    paths: Mapping[str, Path],
    regions: RegionsOnGrid,
    names: list[str],
    rows: np.ndarray,
    matrix: np.ndarray | None,
    described: Mapping[str, Any],
) -> dict[Path, list[bytes]]:
    """Contents of the CIFTI-2 files among a run's outputs, by path.

    Parameters
    ----------
    paths : dict of Path
        Outputs by kind.
    regions : RegionsOnGrid
        Labels of grayordinates.
    names : list of str
    rows : ndarray, shape (n_rows, n_regions)
        Signals. The file describes them as evenly spaced, also where volumes were censored.
    matrix : ndarray, shape (n_regions, n_regions), or None
        Correlations.
    described : dict
        Sidecar of the signals, with a repetition time.
    """
    wanted = {kind: paths[kind] for kind in TABLES if kind in paths}
    if not wanted or not isinstance(regions, DenseLabelsOnRun):
        return {}
    dropped = set(described["CensoredVolumes"] or ()) if len(rows) < described["NumberOfVolumes"] else set()
    first = next(volume for volume in range(described["NumberOfVolumes"]) if volume not in dropped)
    t_r, parcels = described["RepetitionTime"], _parcels(regions, tuple(names))
    files = {wanted["ptseries"]: parcels.series(rows, t_r, first * t_r)}
    if "pscalar" in wanted:
        files[wanted["pscalar"]] = parcels.scalars(regions.covered_share[np.newaxis], ["coverage"])
    if "pconn" in wanted and matrix is not None:
        files[wanted["pconn"]] = parcels.connectivity(matrix)
    return {path: [image.to_bytes()] for path, image in files.items()}


@functools.lru_cache(maxsize=8)  # a study's runs share them, and 91,282 numbers as text take 20 ms
def _parcels(regions: DenseLabelsOnRun, names: tuple[str, ...]) -> Parcels:
    return Parcels(regions.atlas, regions.ids.tolist(), names)
