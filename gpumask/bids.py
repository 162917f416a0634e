"""BIDS: the runs of a folder of derivatives, found by file names alone; names and metadata of what is made of them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_IMAGE_SUFFIX = re.compile(r"\.(nii|img|hdr|mgh|mgz|mnc|head|brik|par|rec)(\.(gz|bz2|zst))?$", re.IGNORECASE)
_BIDS_NAME = re.compile(r"(?P<entities>sub-[a-zA-Z0-9]+(_[a-zA-Z0-9]+-[a-zA-Z0-9+]+)*)_[a-zA-Z0-9]+")
_ATLAS_ENTITY = re.compile(r"(?:^|_)(?:atlas|seg|scale|desc)-([a-zA-Z0-9+]+)")  # what tells atlases apart


@dataclass(frozen=True)
class Run:
    """A run to extract.

    Attributes
    ----------
    path : str or path-like
        4D image.
    confounds : str, path-like or None
        Table with a row per volume.
    mask : str, path-like or None
        Brain mask.
    t_r : float or None
        Repetition time in s. None: see `repetition_time`.
    sidecar : str, path-like or None
        JSON metadata of the image. None: the file beside the image, if there is one.
    name : str or None
        Beginning of its outputs' names. None: by the name of the image, see `run_name`.
    folder : str
        Folder of its outputs, below that of all outputs, with "/".
    source : str, path-like or None
        Root of the BIDS data set that it is part of, if any.
    """

    path: str | os.PathLike
    confounds: str | os.PathLike | None = None
    mask: str | os.PathLike | None = None
    t_r: float | None = None
    sidecar: str | os.PathLike | None = None
    name: str | None = None
    folder: str = ""
    source: str | os.PathLike | None = None


@dataclass(frozen=True)
class Problem:
    """A run, or a folder, that can't be taken, and why."""

    path: str
    reason: str


def find_runs(
    root,
    *,
    participants=(),
    sessions=(),
    tasks=(),
    runs=(),
    space=None,
    require_mask=True,
    require_confounds=False,
):
    """Find the preprocessed runs in a folder of fMRIPrep derivatives -> (list of Run, list of Problem)."""
    raise NotImplementedError


def read_manifest(path):
    """Read a TSV manifest -> (list of Run, list of Problem)."""
    raise NotImplementedError


def run_name(run):
    """Beginning of the names of a run's outputs.

    A BIDS name keeps its entities but "desc", which tells how volumes were made: ``sub-1_task-rest_desc-preproc_bold``
    becomes ``sub-1_task-rest``. Other names lose the extension only.
    """
    if run.name is not None:
        return run.name
    stem = _IMAGE_SUFFIX.sub("", Path(run.path).name)
    if bids := _BIDS_NAME.fullmatch(stem):
        return "_".join(part for part in bids["entities"].split("_") if not part.startswith("desc-"))
    return stem


def atlas_name(path):
    """Label of an atlas, from the name of its file; "atlas" without one.

    These are the values of the entities "atlas", "seg", "scale" and "desc", else all letters and digits of the name.
    """
    stem = _IMAGE_SUFFIX.sub("", Path(path or "atlas").name)
    return _label("".join(_ATLAS_ENTITY.findall(stem)) or stem) or "atlas"


def output_name(run, atlas, stat, suffix="timeseries", extension=".tsv", *, entity="atlas"):
    """File name of one of a run's outputs: ``<run>_atlas-<atlas>_stat-<stat>_<suffix><extension>``.

    `entity` "seg" is what XCP-D 0.7 to 0.14 wrote, and its readers expect.
    """
    return f"{run_name(run)}_{entity}-{_label(atlas)}_stat-{_label(stat)}_{suffix}{extension}"


def _label(text):
    return re.sub("[^a-zA-Z0-9]", "", text)


def repetition_time(run):
    """Repetition time in s: ``run.t_r``, else that of the JSON metadata, else None (then the image's header has it)."""
    raise NotImplementedError


def sidecar(
    run,
    *,
    t_r=None,
    confounds=(),
    low_pass=None,
    high_pass=None,
    atlas=None,
    lut=None,
    configuration=None,
    out_dir=None,
    **more,
):
    """JSON metadata (dict, BIDS keys) of a table made from a run; `more` is added as it is."""
    raise NotImplementedError


def write_dataset_description(out_dir, source=None, *, configuration=None):
    """Write ``dataset_description.json`` of the outputs (GeneratedBy, DatasetLinks, ConfigurationHash)."""
    raise NotImplementedError
