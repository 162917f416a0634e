"""One Parquet file of a whole cohort, made from its time series tables."""

import hashlib
import io
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpumask.bids.names import entity_columns, parse_output_name
from gpumask.cohort.stored import is_plain, read_record
from gpumask.files import created, inside, replacing
from gpumask.images.lookup import distinct_names
from gpumask.inputs import open_file, read_json
from gpumask.tables import cells

_KEYS = tuple(entity_columns(""))
_OWN = (*_KEYS, "repetition_time", "volume")
# Each column of each row group takes 50 bytes of the file's footer, which readers hold in memory: with a group per run,
# 2 GB for 40 000 runs of 1000 regions. Groups have whole runs, up to about as many values (64 MiB).
_GROUP = 2**23
_MOST_HEADER = 2**24  # bytes of a table's first line


@dataclass(frozen=True)
class _Table:
    """A run's time series, and what must be the same in all tables."""

    name: str
    path: Path
    configuration: str
    header: bytes  # hash


def write_store(out_dir: str | os.PathLike, path: str | os.PathLike) -> tuple[list[Path], list[str]]:
    """Write the time series of all finished runs to one Parquet file per atlas, statistic and denoising.

    A row is a volume. The columns are participant_id ("sub-01"), session, task, run, space and name (of the run; all
    categories in pandas, missing if the name lacks the entity), repetition_time (s), volume (its number in the run,
    from 0; volumes without a row in the tables are missing), and a float64 column per region, with exactly the tables'
    numbers; "n/a" is missing. Reserved names have the region's label in them, see `column_names`. Runs are sorted by
    name. Row groups have whole runs, up to about 64 MiB; their statistics let readers find a run without reading the
    others. The key "gpumask" has JSON metadata: atlas, statistic, denoising, and the common values of the runs'
    sidecars. Memory doesn't grow with the number of values.

    Runs that can't be read, or have another configuration or other regions than most, are refused.

    Parameters
    ----------
    out_dir : str or path-like
        Output folder of a cohort, with a record of each finished run in ``logs/<name>.json``.
    path : str or path-like
        File to write; an old one is replaced once the new one is whole. Several atlases, statistics or
        denoisings have a file each: ``cohort.parquet`` becomes
        ``cohort_atlas-<atlas>_stat-<statistic>[_desc-<denoising>].parquet``.

    Returns
    -------
    paths : list of Path
        The written files.
    refused : list of str
        A message for each table that isn't in them: its name and why.

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
    out_dir, path = Path(out_dir), Path(path)
    tables, refused = _tables(out_dir)
    if not tables:
        msg = f"{out_dir} has no finished runs: expected records in {out_dir / 'logs'}, and their tables."
        raise ValueError(msg)
    paths = []
    for (atlas, stat, desc), group in sorted(tables.items()):
        of_denoising = {"denoising": desc} if desc else {}
        name = f"{path.stem}_atlas-{atlas}_stat-{stat}{desc and f'_desc-{desc}'}{path.suffix}"
        own = path.with_name(name) if len(tables) > 1 else path
        refused += _write(own, group, {"atlas": atlas, "stat": stat, **of_denoising})
        paths.append(own)
    return paths, refused


def check_pyarrow() -> None:
    """Raise an ImportError that names the package to install, if pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        msg = "Missing package 'pyarrow' for Parquet files. Run: pip install 'gpumask[parquet]'"
        raise ImportError(msg) from None


def _tables(out_dir):
    """Tables of finished runs by atlas, statistic and denoising, and messages about unreadable ones."""
    tables, unreadable = defaultdict(list), []
    for record_path in sorted((out_dir / "logs").glob("*.json")):
        try:
            record = read_record(record_path)
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
            continue
        try:
            for output, size, made in ((o["path"], o["size"], o["made"]) for o in record["outputs"]):
                path = inside(out_dir, output)
                parsed = parse_output_name(path.name)
                if parsed and parsed.suffix == "timeseries":
                    if path.stat().st_size != size:
                        msg = f"expected {size} bytes by its record, found {path.stat().st_size}"
                        raise ValueError(msg)
                    with io.BufferedReader(open_file(path)) as file:
                        header = hashlib.sha256(file.readline(_MOST_HEADER)).digest()
                    table = _Table(parsed.run, path, made, header)
                    tables[parsed.atlas, parsed.stat, parsed.desc].append(table)
        except (OSError, ValueError) as error:
            unreadable.append(f"{record_path}: the run's outputs can't be read: {error}")
    return tables, unreadable


def _write(path, tables, metadata):
    import pyarrow.parquet as pq

    (configuration, header), _ = Counter((t.configuration, t.header) for t in tables).most_common(1)[0]
    fitting, refused = [], []
    for table in tables:
        if table.configuration != configuration:
            refused.append(f"{table.path}: its configuration is {table.configuration}, but most have {configuration}")
        elif table.header != header:
            refused.append(f"{table.path}: has other regions than most")
        else:
            fitting.append(table)
    regions = _regions(fitting[0].path)
    common = None
    with (
        replacing(path) as part,
        created(part) as file,
        pq.ParquetWriter(
            file, _schema(regions), compression="zstd", use_dictionary=list(_KEYS), write_statistics=list(_OWN)
        ) as writer,
    ):
        group, n_rows = [], 0
        for table in fitting:
            try:
                sidecar, volumes, values = _read(table, regions)
            except (OSError, ValueError) as error:
                refused.append(f"{table.path}: {error}")
                continue
            common = sidecar if common is None else {k: v for k, v in common.items() if sidecar.get(k, ...) == v}
            if group and (n_rows + len(volumes)) * len(regions) > _GROUP:
                writer.write_table(_row_group(group, regions), row_group_size=n_rows)
                group, n_rows = [], 0
            group.append((table.name, sidecar.get("RepetitionTime"), volumes, values))
            n_rows += len(volumes)
        if group:
            writer.write_table(_row_group(group, regions), row_group_size=max(n_rows, 1))
        writer.add_key_value_metadata({"gpumask": json.dumps({**metadata, "sidecar": common or {}})})
    return refused


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


def _regions(path):
    """Names of the columns of the regions in a table."""
    with io.BufferedReader(open_file(path)) as file:
        names = cells(file.readline(_MOST_HEADER).decode())
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


def _read(table, regions):
    """A run's sidecar, volume numbers, and values."""
    import pyarrow as pa
    from pyarrow import csv

    sidecar = _sidecar(table.path.with_suffix(".json"))
    block = min(max(table.path.stat().st_size, 1), 2**30)  # one block: a line can't be longer
    values = csv.read_csv(
        table.path,
        read_options=csv.ReadOptions(block_size=block, use_threads=False, column_names=regions, skip_rows=1),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(regions, pa.float64()), null_values=["n/a"]),
    )
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
    return pa.table([*columns, *pa.concat_tables(values).columns], schema=_schema(regions))
