"""Runs to extract, and runs that can't be."""

import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunAtlas:
    """A label image that belongs to one run.

    Attributes
    ----------
    name : str
        The same for all runs.
    path : str
    lut : str or None
        Look-up table. None: the one next to the image, if any.
    """

    name: str
    path: str
    lut: str | None = None


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
        Repetition time in s. None: see `gpumask.bids.metadata.repetition_time`.
    sidecar : str, path-like or None
        JSON metadata of the image. None: see `gpumask.bids.metadata.metadata_files`.
    inherited : tuple of str or path-like
        Further JSON metadata, which complete `sidecar`; the nearest first.
    name : str or None
        Beginning of its outputs' names. None: from the image's name, see `gpumask.bids.names.run_name`.
    folder : str
        Folder of its outputs, relative to the output folder, with "/".
    source : str, path-like or None
        Root of its BIDS data set, if any.
    atlases : tuple of RunAtlas
        Its own, next to those of the configuration.
    """

    path: str | os.PathLike
    confounds: str | os.PathLike | None = None
    mask: str | os.PathLike | None = None
    t_r: float | None = None
    sidecar: str | os.PathLike | None = None
    name: str | None = None
    folder: str = ""
    source: str | os.PathLike | None = None
    inherited: tuple[str | os.PathLike, ...] = ()
    atlases: tuple[RunAtlas, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A run, or a folder, that can't be used, and why.

    Attributes
    ----------
    path : str
    reason : str
    name : str or None
        Name that the run has once it can be used. None: from the path, see `gpumask.bids.names.run_name`.
    """

    path: str
    reason: str
    name: str | None = field(default=None, compare=False)
