"""JSON files that describe the outputs: a sidecar per table, and the description of the data set."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpumask import __version__
from gpumask.bids.metadata import read_metadata
from gpumask.bids.names import labels_in, run_name
from gpumask.bids.runs import Run
from gpumask.files import replacing, write
from gpumask.inputs import read_json, shortened
from gpumask.tables import json_lines

_OF_SIGNALS_TOO = ("TaskName", "StartTime", "SliceTimingCorrected", "SpatialReference", "Resolution", "Density")
# Names that BIDS lacks: "stat", "timeseries" and "relmat" are proposals to it, which XCP-D uses already.
_IGNORED = ("*_stat-*", "*_outliers.*", "group_*", "*.html", "*.png", "*.parquet")


def sidecar(
    run: Run,
    *,
    t_r: float | None = None,
    confounds: Sequence[str] = (),
    low_pass: float | None = None,
    high_pass: float | None = None,
    atlas: Sequence[str | os.PathLike] = (),
    sources: Sequence[str | os.PathLike] | None = None,
    configuration: str | None = None,
    out_dir: str | os.PathLike | None = None,
    **more: Any,
) -> dict:
    """JSON metadata of a table made from a run.

    Parameters
    ----------
    run : Run
    t_r : float, optional
        Repetition time used, in s. Without one, the run's ``VolumeTiming`` is passed on, without those of
        volumes that have no row.
    confounds : sequence of str
        Names of the confounds that were removed.
    low_pass, high_pass : float, optional
        Cut-offs in Hz of the Butterworth filter.
    atlas : sequence of str or path-like
        Its files, such as image and look-up table.
    sources : sequence of str or path-like, optional
        Files that the table was made from. If None: the run's image, mask and confounds, and `atlas`.
    configuration : str, optional
        Hash of all parameters.
    out_dir : str or path-like, optional
        Root of the outputs; files in it are given relative to it.
    **more
        Further keys, added unchanged.

    Returns
    -------
    dict
        With the keys of BIDS (SoftwareFilters, Sources, ...) and XCP-D (NuisanceParameters, ConfigurationHash). Files
        in ``run.source`` have the URI ``bids:preprocessed:<path>``, see `write_dataset_description`.
    """
    metadata = read_metadata(run).values
    cutoffs = {"High-pass cutoff (Hz)": high_pass, "Low-pass cutoff (Hz)": low_pass}
    cutoffs = {key: value for key, value in cutoffs.items() if value is not None}
    if sources is None:
        sources = [path for path in (run.path, run.mask, run.confounds, *atlas) if path is not None]
    times = metadata.get("VolumeTiming") if t_r is None else None
    if isinstance(times, list):
        censored = set(more.get("CensoredVolumes") or ()) if more.get("OutputType") is None else ()
        times = [time for volume, time in enumerate(times) if volume not in censored]
    content = {
        "RepetitionTime": t_r,
        "VolumeTiming": times,
        "TaskName": labels_in(run_name(run)).get("task"),
        **{key: metadata[key] for key in _OF_SIGNALS_TOO if key in metadata},
        "SoftwareFilters": {"Butterworth": {**cutoffs, "Order": 5, "Passes": 2}} if cutoffs else "n/a",
        "NuisanceParameters": list(confounds),
        "Sources": [uri(path, run.source, out_dir) for path in sources],
        "ConfigurationHash": configuration,
        **more,
    }
    return {key: value for key, value in content.items() if value is not None}


def uri(path: str | os.PathLike, source: str | os.PathLike | None, out_dir: str | os.PathLike | None) -> str:
    """BIDS URI of a file in one of the two data sets, else its URI in the file system."""
    path = Path(path).absolute()
    for name, root in (("", out_dir), ("preprocessed", source)):
        if root is not None and path.is_relative_to(root := Path(root).absolute()):
            return f"bids:{name}:{quote(path.relative_to(root).as_posix(), safe='/+')}"
    return path.as_uri()


def write_dataset_description(
    out_dir: str | os.PathLike, source: str | os.PathLike | None = None, *, configuration: str | None = None
) -> Path:
    """Write ``dataset_description.json`` of an output folder; processes may do so concurrently.

    A missing ``.bidsignore`` is written too, so that BIDS's validator skips names that BIDS doesn't have.

    Parameters
    ----------
    out_dir : str or path-like
        An existing folder.
    source : str or path-like, optional
        Root of the runs' data set. It becomes the link "preprocessed", and its generators are listed after gpumask.
    configuration : str, optional
        Hash of all parameters of the cohort that was started last; sidecars have their own.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If the folder is another program's, its outputs are from another `source`, or a description isn't JSON.
    OSError
        If it can't be written.
    """
    path = Path(out_dir, "dataset_description.json")
    root = Path(source).absolute() if source else None
    of_root = root / "dataset_description.json" if root else None
    generators = _generators(of_root) if of_root and of_root.is_file() else []
    content: dict[str, Any] = {
        "Name": "gpumask: region time series",
        "BIDSVersion": "1.11.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "gpumask", "Version": __version__}, *generators],
        "DatasetLinks": {"preprocessed": root.as_uri()} if root else {},
        "ConfigurationHash": configuration,
    }
    with replacing(path) as part:
        content["DatasetLinks"] |= check_dataset_description(out_dir, root)
        write(part, json_lines({key: value for key, value in content.items() if value not in (None, {})}))
    ignored = path.with_name(".bidsignore")
    if not ignored.exists():
        with replacing(ignored) as part:
            write(part, [f"{pattern}\n" for pattern in _IGNORED])
    return path


def check_dataset_description(out_dir: str | os.PathLike, source: str | os.PathLike | None = None) -> dict[str, str]:
    """Check that an output folder is gpumask's, and has outputs of no other data set.

    Returns
    -------
    dict of str
        The folder's ``DatasetLinks``; empty if it has no description.

    Raises
    ------
    ValueError
        If it isn't, or the description isn't JSON.
    """
    path = Path(out_dir, "dataset_description.json")
    if not path.is_file():
        return {}
    if [generator.get("Name") for generator in _generators(path)][:1] != ["gpumask"]:
        msg = f"{path} describes a data set that gpumask didn't make. Choose another folder for the outputs."
        raise ValueError(msg)
    links = read_json(path).get("DatasetLinks", {})
    if not isinstance(links, dict):
        msg = f"{path} has the DatasetLinks {shortened(repr(links))}: expected an object"
        raise ValueError(msg)
    new = {"preprocessed": Path(source).absolute().as_uri()} if source else {}
    if {**links, **new} != {**new, **links}:
        msg = (
            f"{path.parent} has outputs of {links['preprocessed']}, and now those of {new['preprocessed']} were to be "
            "added. Choose another folder for them."
        )
        raise ValueError(msg)
    return links


def _generators(path):
    """A data set's generators by its description, the latest first; before BIDS 1.4, one "PipelineDescription"."""
    description = read_json(path)
    key = "GeneratedBy" if description.get("GeneratedBy") else "PipelineDescription"
    found = description.get(key, [])
    generators = [found] if key == "PipelineDescription" and key in description else found
    if not (isinstance(generators, list) and all(isinstance(generator, dict) for generator in generators)):
        expected = "a list of objects" if key == "GeneratedBy" else "an object"
        msg = f"{path} has the {key} {shortened(repr(found))}: expected {expected}"
        raise ValueError(msg)
    return generators
