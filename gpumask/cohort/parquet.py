"""One Parquet file of a whole cohort, made from its time series tables."""

import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpumask.bids.names import entity_columns, parse_output_name
from gpumask.cohort.recorded import Unused, read_recorded, usual
from gpumask.cohort.stored import is_plain
from gpumask.files import created, inside, replacing
from gpumask.images.lookup import distinct_names
from gpumask.inputs import open_file, read_json
from gpumask.tables import cells, read_numbers

_KEYS = tuple(entity_columns(""))
_OWN = (*_KEYS, "repetition_time", "volume")
# Each column of each row group takes 50 bytes of the file's footer, which readers hold in memory: with a group per run,
# 2 GB for 40 000 runs of 1000 regions. Groups have whole runs, up to about as many values (64 MiB).
_GROUP = 2**23
_MOST_HEADER = 2**24  # bytes of a table's first line
_LARGEST = 2**32  # bytes of a table


class _Table(NamedTuple):
    """A run's time series, as its record names it."""

    run: str
    path: str
    size: int
    made: str


class Store:
    """The time series of a cohort, by atlas, statistic and denoising, for Parquet files."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, str, str], list[_Table]] = defaultdict(list)

    def add(self, record: dict[str, Any]) -> None:
        """Note the time series of a record, as `gpumask.cohort.stored.read_record` returns it, in their order."""
        for output in record["outputs"]:
            name = output["path"].rpartition("/")[2]
            if name.endswith("_timeseries.tsv") and (parsed := parse_output_name(name)):
                table = _Table(parsed.run, output["path"], output["size"], output["made"])
                self._tables[parsed.atlas, parsed.stat, parsed.desc].append(table)

    def write(self, out_dir: Path, path: Path, unused: Unused) -> list[Path]:
        """Write the time series of all finished runs to one Parquet file per atlas, statistic and denoising.

        A row is a volume. The columns are participant_id ("sub-01"), session, task, run, space and name (of the run;
        all categories in pandas, missing if the name lacks the entity), repetition_time (s), volume (its number in the
        run, from 0; volumes without a row in the tables are missing), and a float64 column per region, with exactly the
        tables' numbers; "n/a" is missing. Reserved names have the region's label in them, see `column_names`. Runs are
        sorted by name. Row groups have whole runs, up to about 64 MiB; their statistics let readers find a run without
        reading the others. The key "gpumask" has JSON metadata: atlas, statistic, denoising, and the common values of
        the runs' sidecars. Memory doesn't grow with the number of values.

        Parameters
        ----------
        out_dir : Path
            Output folder of the cohort.
        path : Path
            File to write; an old one is replaced once the new one is whole. Several atlases, statistics or
            denoisings have a file each: ``cohort.parquet`` becomes
            ``cohort_atlas-<atlas>_stat-<statistic>[_desc-<denoising>].parquet``.
        unused : Unused
            Gets the tables that can't be read, or have another configuration or other regions than most.

        Returns
        -------
        list of Path
            The written files.

        Raises
        ------
        ImportError
            If pyarrow is missing.
        ValueError
            If no run is finished, or regions' names can't be columns.
        OSError
            If the file can't be written.
        """
        check_pyarrow()
        paths = []
        for (atlas, stat, desc), tables in sorted(self._tables.items()):
            of_denoising = {"denoising": desc} if desc else {}
            name = f"{path.stem}_atlas-{atlas}_stat-{stat}{desc and f'_desc-{desc}'}{path.suffix}"
            own = path.with_name(name) if len(self._tables) > 1 else path
            if _write(own, out_dir, tables, {"atlas": atlas, "stat": stat, **of_denoising}, unused):
                paths.append(own)
        if not paths:
            msg = f"{out_dir} has no finished runs: expected records in {out_dir / 'logs'}, and their tables."
            raise ValueError(msg)
        return paths


def check_pyarrow() -> None:
    """Raise an ImportError that names the package to install, if pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        msg = "Missing package 'pyarrow' for Parquet files. Run: pip install 'gpumask[parquet]'"
        raise ImportError(msg) from None


def _write(path, out_dir, tables, metadata, unused):
    """Write the file of tables, if one can be used; returns whether."""
    import pyarrow.parquet as pq

    made = Counter(table.made for table in tables).most_common(1)[0][0]
    for table in tables:
        if table.made != made:
            unused.add(table.path, f"was made with another configuration ({table.made}) than most ({made})")
    tables = [table for table in tables if table.made == made]
    header = usual(tables, lambda table: _header(out_dir, table))
    runs = _runs(out_dir, tables, header, unused)
    first = next(runs, None)
    if first is None:
        return False
    regions = _regions(out_dir / first[0].path, header)
    common = first[1]
    with (
        replacing(path) as part,
        created(part) as file,
        pq.ParquetWriter(
            file, _schema(regions), compression="zstd", use_dictionary=list(_KEYS), write_statistics=list(_OWN)
        ) as writer,
    ):
        group, n_rows = [], 0
        for table, sidecar, volumes, values in chain([first], runs):
            common = {k: v for k, v in common.items() if sidecar.get(k, ...) == v}
            if group and (n_rows + len(volumes)) * len(regions) > _GROUP:
                writer.write_table(_row_group(group, regions), row_group_size=n_rows)
                group, n_rows = [], 0
            group.append((table.run, sidecar.get("RepetitionTime"), volumes, values))
            n_rows += len(volumes)
        writer.write_table(_row_group(group, regions), row_group_size=max(n_rows, 1))
        writer.add_key_value_metadata({"gpumask": json.dumps({**metadata, "sidecar": common})})
    return True


def _header(out_dir, table):
    with io.BufferedReader(open_file(inside(out_dir, table.path))) as file:
        return file.readline(_MOST_HEADER).removesuffix(b"\n")


def _runs(out_dir, tables, header, unused):
    """Each table that can be used, its sidecar, volume numbers, and values."""
    for table in tables:
        try:
            read = _read(out_dir, table, header)
        except (OSError, ValueError) as error:
            unused.add(table.path, error)
            continue
        yield table, *read


def column_names(names: Sequence[str], ids: Sequence[float] | None) -> list[str]:
    """Names of the regions' columns: where several have the same, or a reserved one, with the label: "Left [3]".

    Parameters
    ----------
    names : sequence of str
    ids : sequence of numbers, or None
        Labels of the regions. None: unknown, so that names can't be changed.

    Raises
    ------
    ValueError
        If columns still have the same name.
    """
    names = names if ids is None else distinct_names(names, ids, _OWN)
    counts = Counter([*_OWN, *names])
    if twice := [name for name, count in counts.items() if count > 1]:
        msg = (
            f"columns of a Parquet file need different names, but {', '.join(twice[:5])} would occur twice. Rename "
            f"the regions in the look-up table; {', '.join(_OWN)} are reserved."
        )
        raise ValueError(msg)
    return list(names)


def _regions(path, header):
    """Names of the columns of the regions in tables of this first line; `path` is one of them."""
    names = cells(header.decode())
    try:
        ids = [float(region["index"]) for region in read_json(path.with_suffix(".json"))["Regions"]]
        ids = ids if len(set(ids)) == len(ids) == len(names) and all(map(math.isfinite, ids)) else None
    except (OSError, ValueError, LookupError, TypeError):
        ids = None
    try:
        return column_names(names, ids)
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from None


def _schema(regions):
    import pyarrow as pa

    keys = [(key, pa.dictionary(pa.int32(), pa.string())) for key in _KEYS]
    own = [("repetition_time", pa.float64()), ("volume", pa.int32())]
    return pa.schema([*keys, *own, *((region, pa.float64()) for region in regions)])


def _read(out_dir, table, expected):
    """A run's sidecar, volume numbers, and values."""
    header, body = read_recorded(out_dir, table.path, table.size, _LARGEST)
    if header != expected:
        msg = "has other regions than most"
        raise ValueError(msg)
    values = read_numbers(body, header.count(b"\t") + 1)
    sidecar = _sidecar(inside(out_dir, table.path).with_suffix(".json"))
    n_volumes, censored = sidecar.get("NumberOfVolumes", len(values)), sidecar.get("CensoredVolumes", [])
    censored = [] if "OutputType" in sidecar else censored  # they have rows
    if n_volumes - len(censored) != len(values):
        msg = f"has {len(values)} rows, but its sidecar has {n_volumes} volumes, {len(censored)} of them censored"
        raise ValueError(msg)
    return sidecar, np.setdiff1d(np.arange(n_volumes, dtype=np.int32), censored), values


def _sidecar(path):
    """A table's sidecar; ValueError unless the values that are used here are as gpumask writes them."""
    sidecar = read_json(path)
    n_volumes, censored = sidecar.get("NumberOfVolumes", 0), sidecar.get("CensoredVolumes", [])
    is_ours = (
        type(n_volumes) is int
        and isinstance(censored, list)
        and all(type(volume) is int and 0 <= volume < n_volumes for volume in censored)
        and len(set(censored)) == len(censored)
        and type(sidecar.get("RepetitionTime")) in (int, float, type(None))
        and is_plain(sidecar)
    )
    if not is_ours:
        msg = f"{path} isn't the sidecar of a table that gpumask wrote: do the run again (--overwrite)"
        raise ValueError(msg)
    return sidecar


def _row_group(runs, regions):
    import pyarrow as pa

    names, times, volumes, values = zip(*runs, strict=True)
    rows = pa.array(np.repeat(np.arange(len(runs)), [len(v) for v in volumes]))

    def repeated(cells, kind):
        return pa.array(cells, kind).take(rows)

    keys = [entity_columns(name) for name in names]
    columns = [repeated([key[column] for key in keys], pa.string()).dictionary_encode() for column in _KEYS]
    columns += [repeated(times, pa.float64()), pa.array(np.concatenate(volumes))]
    by_region = np.ascontiguousarray(np.concatenate(values).T)
    columns += [pa.array(of_one, from_pandas=True) for of_one in by_region]  # NaN is missing
    return pa.table(columns, schema=_schema(regions))
