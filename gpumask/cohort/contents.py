"""What the files of a run hold: tables, their sidecars, and a figure."""

import functools
import platform
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np

from gpumask.bids.metadata import RepetitionTime
from gpumask.bids.names import sidecar_path
from gpumask.bids.runs import Run
from gpumask.bids.sidecars import sidecar, uri
from gpumask.cohort.cleanings import Cleaning
from gpumask.cohort.configuration import AtlasFile, Configuration, Unit
from gpumask.cohort.parcellated import TABLES, parcellated
from gpumask.confounds.censoring import Censoring
from gpumask.confounds.outliers import REASONS, Outliers
from gpumask.connectivity import connectivity
from gpumask.extraction import Prepared, Result
from gpumask.process import warn
from gpumask.tables import json_lines, table_lines


def tables(
    configuration: Configuration,
    run: Run,
    unit: Unit,
    atlas: AtlasFile,
    one: Prepared,
    result: Result,
    matrix: np.ndarray | None,
    names: list[str],
    censoring: Censoring,
    described: Callable[..., dict[str, Any]],
) -> dict[Path, Any]:
    """Lines of the tables of an atlas's unit and of their sidecars, by path; `matrix` has Pearson's correlations.

    It may be None if the configuration has no matrices.
    """
    paths = configuration.outputs(run, unit)
    regions = list(zip(one.regions.ids.tolist(), names, one.regions.counts.tolist(), strict=True))
    of_each = one.regions.grid.elements
    index = [{"index": int(i) if i == int(i) else i, "name": n, of_each: count} for i, n, count in regions]
    rows = censoring.rows(result.signals, unit.denoising.output_type)
    made = [(paths["timeseries"], table_lines(names, rows), described(Regions=index))]
    if "coverage" in paths:
        shares = one.regions.covered_share[:, None].astype(np.float32)
        mask = run.mask or configuration.mask
        sources = [path for path in (run.path, mask, atlas.path, atlas.lut) if path]
        lines = table_lines(["Node", "coverage"], shares, names)
        made.append((paths["coverage"], lines, described(sources=sources, Regions=index)))
    for kind in configuration.relmats:
        found, facts = (cast("np.ndarray", matrix), {}) if kind == "pearson" else connectivity(result.signals, kind)
        if facts.get("Shrinkage", 0) is None and not np.isnan(result.signals).all():
            warn(f"{len(result.signals)} volumes of {run.path} are too few for partial correlations, which are n/a.")
        own = described(sources=[paths["timeseries"]], Regions=index, **facts)
        made.append((paths[kind], table_lines(["Node", *names], found, names), own))
    files = {}
    for path, lines, content in made:
        files[path] = lines
        files[path.with_suffix(".json")] = json_lines(content)
    images = parcellated(paths, one.regions, names, rows, matrix, made[0][2])
    content_of = {path: content for path, _, content in made}
    for kind, path in paths.items():
        if kind in TABLES:
            files[sidecar_path(path)] = json_lines(content_of[paths[TABLES[kind]]])
    return files | images


def metadata_of(
    configuration: Configuration,
    run: Run,
    unit: Unit,
    atlas: AtlasFile,
    t_r: RepetitionTime,
    cleaning: Cleaning,
    one: Prepared,
    **more: Any,
) -> dict[str, Any]:
    """Sidecar of a table of an atlas's unit: what decides its numbers, and nothing that differs between attempts."""
    settings, denoising = configuration.described_settings(unit), unit.denoising
    censoring, freedom, output_type = cleaning.censoring, cleaning.degrees_of_freedom, denoising.output_type
    return sidecar(
        replace(run, mask=run.mask or configuration.mask),
        t_r=t_r.seconds,
        confounds=() if cleaning.confounds is None else list(cleaning.confounds),
        low_pass=settings["low_pass"],
        high_pass=settings["high_pass"],
        atlas=atlas.path,
        lut=atlas.lut,
        configuration=configuration.made[unit.name],
        out_dir=configuration.out_dir,
        RepetitionTimeSource=t_r.source,
        NumberOfVolumes=censoring.n_volumes,
        NumberOfVolumesKept=censoring.n_kept,
        CensoredVolumes=None if censoring.kept is None else censoring.dropped.tolist(),
        OutputType=None if output_type == "censored" else output_type,
        DummyScans=censoring.dummy_scans.tolist() or None,
        DegreesOfFreedom=freedom and round(freedom, 2),
        Denoising=denoising.name or None,
        ConfoundsOptions=denoising.confounds or None,
        MaskerParameters={**atlas.options, **settings},
        Plan=[*one.plan.explain().splitlines(), *one.regions.explanation],
        Device=one.plan.device.partition(":")[0],
        SoftwareVersions=versions(cupy=one.plan.device != "cpu"),
        **more,
    )


def outliers(configuration: Configuration, run: Run, unit: Unit, found: Outliers) -> dict[Path, Any]:
    """Lines of the table of the volumes that a denoising removes, and of its sidecar, by path.

    A row is a volume. Each reason has a column of 0 and 1, as XCP-D's; "kept" is 1 for those that no reason removes.
    """
    columns = {column: found.reasons[reason] for reason, (column, _) in REASONS.items()} | {"kept": ~found.removed}
    meanings = {**dict(REASONS.values()), "kept": "kept: no reason removes it"}
    described: dict[str, dict[str, Any]] = {
        column: {"Description": f"Whether the volume is {meaning}.", "Levels": {"0": "no", "1": "yes"}}
        for column, meaning in meanings.items()
    }
    for column, threshold in (("framewise_displacement", found.fd_threshold), ("std_dvars", found.std_dvars_threshold)):
        if threshold is not None:
            described[column]["Threshold"] = threshold
    if (motion_filter := unit.denoising.confounds.get("motion_filter")) is not None:
        described["framewise_displacement"]["MotionFilter"] = f"{motion_filter} breaths per minute"
    sources = [file for file in (run.path, run.confounds) if file]
    content = {
        **described,
        "NumberOfVolumes": len(found.removed),
        "NumberOfVolumesKept": int(np.count_nonzero(~found.removed)),
        "Sources": [uri(file, run.source, configuration.out_dir) for file in sources],
        "ConfigurationHash": configuration.made[unit.name],
        **({"Denoising": unit.denoising.name} if unit.denoising.name else {}),
    }
    path = configuration.outputs(run, unit)["outliers"]
    lines = table_lines(columns, np.column_stack(list(columns.values())).astype(np.int8))
    return {path: lines, path.with_suffix(".json"): json_lines(content)}


def figure(
    name: str,
    atlas: AtlasFile,
    one: Prepared,
    result: Result,
    matrix: np.ndarray,
    names: list[str],
    mean: np.ndarray | None,
    t_r: float | None,
    displacement: np.ndarray | None,
    kept: np.ndarray | None,
    fd_threshold: float | None,
) -> bytes:
    """Figure of an atlas's signals (PNG), their correlations (`matrix`), and the run's framewise displacement.

    Below the regions it shows the run's `mean` volume, shape (x, y, z); without one, it doesn't show regions.
    """
    from gpumask.reports.figures import run_figure, to_png

    labels = None if mean is None else one.regions.parcels
    drawn = run_figure(
        result.signals,
        matrix,
        None if labels is None else np.asanyarray(labels.dataobj),
        mean,
        None if labels is None else labels.affine,
        background_label=atlas.options.get("background_label", 0),
        title=name.removesuffix(".png"),
        names=names,
        t_r=t_r,
        displacement=displacement,
        kept=kept,
        fd_threshold=fd_threshold,
    )
    return to_png(drawn)


@functools.cache
def versions(*, cupy: bool = False) -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers; CuPy's if requested."""
    # One module, many distributions: cupy-cuda12x, cupy-cuda13x, ... Several at once are a broken installation.
    cupys = metadata.packages_distributions().get("cupy", []) if cupy else []
    names = ("gpumask", "numpy", "scipy", "nibabel", *cupys)
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}
