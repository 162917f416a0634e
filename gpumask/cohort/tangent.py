"""Tangent-space connectivity of a cohort, from its time series: one vector per run, and the geometric mean."""

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpumask.bids.names import alphanumeric, parse_output_name
from gpumask.cohort.recorded import read_recorded
from gpumask.cohort.stored import is_plain, unit_key
from gpumask.connectivity import shrunk_covariance, tangent_space
from gpumask.files import created, inside, replacing, reserve, write
from gpumask.inputs import read_json
from gpumask.tables import cells, json_lines, read_numbers, table_lines

_LARGEST = 2**32  # bytes of a table that is read


class _Kind(NamedTuple):
    atlas: str
    denoising: str
    stat: str


class _Table(NamedTuple):
    name: str
    path: str
    size: int
    made: str


class TangentSpaces:
    """The time series of a cohort by atlas, denoising and statistic, and what is made of them."""

    def __init__(self) -> None:
        self._tables: dict[_Kind, list[_Table]] = defaultdict(list)

    def add(self, record: dict[str, Any]) -> None:
        """Note the time series of a record, as `gpumask.cohort.stored.read_record` returns it."""
        for output in record["outputs"]:
            named = parse_output_name(Path(output["path"]).name)
            if named and named.suffix == "timeseries":
                denoising = alphanumeric(unit_key(record["made"][output["made"]])[1])
                table = _Table(record["name"], output["path"], output["size"], output["made"])
                self._tables[_Kind(named.atlas, denoising, named.stat)].append(table)

    def write(self, out_dir: Path) -> tuple[list[Path], list[str]]:
        """Write the tangent space of each atlas and denoising.

        ``group_atlas-<atlas>_stat-tangent[_desc-<denoising>]_relmat.npy`` is a float32 array of shape (n_runs,
        n_regions (n_regions + 1) / 2), with rows as `gpumask.connectivity.vectorized` makes them, in the order of the
        runs that the JSON file lists. ``..._stat-geometricmean..._relmat.tsv`` is the mean. While they are made, the
        covariances of all runs lie in an unnamed file in the folder, 8 bytes times n_runs n_regions^2. The memory used
        doesn't grow with the number of runs.

        Returns
        -------
        paths : list of Path
        refused : list of str
            A message for each atlas and denoising without a tangent space.

        Raises
        ------
        OSError
            If a file can't be written, as when the disk is full.
        """
        paths, refused = [], []
        for kind, tables in sorted(self._tables.items()):
            try:
                paths += _write(out_dir, kind, tables)
            except ValueError as error:
                refused.append(f"{' '.join(filter(None, kind))}: {error}")
        return paths, refused


def _write(out_dir, kind, tables):
    n_runs = len(tables)
    if n_runs < 2:
        msg = f"{tables[0].path} is the only run. A tangent space needs 2 runs or more."
        raise ValueError(msg)
    if others := sum(table.made != tables[0].made for table in tables):
        msg = (
            f"{others} of {n_runs} runs were made with other options or of another atlas than {tables[0].path}. "
            "A tangent space needs the same for all: do them again (--overwrite)."
        )
        raise ValueError(msg)
    with tempfile.TemporaryFile(dir=out_dir) as scratch:
        covariances, regions, shrinkages = None, None, []
        for k, table in enumerate(tables):
            own, signals = _signals(out_dir, table)
            if regions is None:
                regions, shape = own, (n_runs, len(own), len(own))
                reserve(scratch, 8 * n_runs * max(len(own), 1) ** 2)
                covariances = np.memmap(scratch, np.float64, "r+", shape=shape)
            if own != regions:
                msg = f"{table.path} has other regions than {tables[0].path}. Do the runs again (--overwrite)."
                raise ValueError(msg)
            covariances[k], shrinkage = _covariance(table, signals, regions)
            shrinkages.append(round(shrinkage, 6))
        facts = {
            "Estimator": "Ledoit-Wolf covariance of z-scored signals",
            "ConfigurationHash": tables[0].made,
            "Regions": regions,
        }
        stem, desc = f"group_atlas-{kind.atlas}", kind.denoising and f"_desc-{kind.denoising}"
        rows, mean_path = (out_dir / f"{stem}_stat-{stat}{desc}_relmat.{end}" for stat, end in _FILES)
        n_edges = len(regions) * (len(regions) + 1) // 2
        with replacing(rows) as part, created(part) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (n_runs, n_edges)}
            np.lib.format.write_array_header_1_0(file, header)

            def store(_, row):
                file.write(row.astype("<f4").tobytes())

            mean = tangent_space(n_runs, covariances.__getitem__, store)
    vectors = {
        "Description": "Logarithm of each run's covariance, whitened by the geometric mean: deviations from it.",
        "Vectorization": "Lower triangle row by row, the diagonal divided by sqrt(2), as nilearn's sym_matrix_to_vec.",
        **facts,
        "Runs": [table.name for table in tables],
        "Shrinkage": shrinkages,
    }
    of_mean = {"Description": "Geometric mean of the runs' covariances.", **facts, "NumberOfRuns": n_runs}
    files: dict[Path, Iterable[str]] = {
        rows.with_suffix(".json"): json_lines(vectors),
        mean_path.with_suffix(".json"): json_lines(of_mean),
        mean_path: table_lines(["Node", *regions], mean, regions),
    }
    for path, lines in files.items():
        with replacing(path) as part:
            write(part, lines)
    return [rows, mean_path]


_FILES = (("tangent", "npy"), ("geometricmean", "tsv"))


def _covariance(table, signals, regions):
    try:
        covariance, shrinkage = shrunk_covariance(signals)
    except ValueError:
        usable = np.isfinite(signals).all(axis=0) & (np.ptp(signals, axis=0) > 0)
        lost = [region for region, is_usable in zip(regions, usable, strict=True) if not is_usable]
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        msg = (
            f"{table.path} has regions without signal: {', '.join(lost[:5])}{more}. A tangent space needs all regions "
            "in all runs: exclude the run, or use an atlas without these regions."
        )
        raise ValueError(msg) from None
    if shrinkage is None:
        msg = (
            f"{table.path}: the covariance of {len(regions)} regions over {len(signals)} volumes can't be inverted. "
            "Exclude the run."
        )
        raise ValueError(msg)
    return covariance, shrinkage


def _signals(out_dir, table):
    """Regions, and signals of the kept volumes; ValueError for another table than the record's."""
    path = inside(out_dir, table.path)
    try:
        header, body = read_recorded(out_dir, table.path, table.size, _LARGEST)
        sidecar = read_json(path.with_suffix(".json"))
        regions = cells(header.decode())
        signals = read_numbers(body, len(regions))
        if "OutputType" in sidecar:  # censored volumes have rows
            signals = np.delete(signals, sidecar["CensoredVolumes"], axis=0)
        is_right = len(signals) == sidecar["NumberOfVolumesKept"] and is_plain(sidecar)
    except (OSError, ValueError, LookupError, TypeError):
        is_right = False
    if not is_right:
        msg = f"{table.path}, or its sidecar, isn't the one that the run's record names. Do the run again."
        raise ValueError(msg)
    return regions, signals
