"""Configuration of a cohort: which outputs each run gets, and hashes of how they are made."""

import functools
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gpumask import __version__
from gpumask.bids.names import alphanumeric, output_name, run_name, run_output_name
from gpumask.bids.runs import Run
from gpumask.bids.spaces import Space, space_contradiction, stated_space
from gpumask.choices import LINEAR, MAPS_STRATEGIES, RELMATS, check_choice
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.combined_atlas import CombinedAtlasFile
from gpumask.cohort.grayordinates import check_atlases
from gpumask.cohort.own_atlases import OwnAtlas
from gpumask.cohort.parcellated import parcellated_paths
from gpumask.confounds.denoising import Denoising
from gpumask.confounds.fmriprep import image_desc
from gpumask.images.opening import image_hashes
from gpumask.inputs import sha256
from gpumask.settings import Settings

_DEFAULTS = {"keep_all_regions": True, "min_coverage": 0.5, "nan_policy": "omit"}


@dataclass(frozen=True)
class Unit:
    """What a run has outputs of its own for: an atlas and a denoising, or a denoising alone."""

    atlas: AtlasFile | CombinedAtlasFile | OwnAtlas | None
    denoising: Denoising

    @property
    def key(self) -> tuple[str, str]:
        """The names of both; that of the atlas is empty without one."""
        return self.atlas.name if self.atlas else "", self.denoising.name

    @property
    def name(self) -> str:
        """The names of both, in one text."""
        return " ".join(filter(None, self.key))


@dataclass(frozen=True)
class Configuration:
    """Which outputs each run gets, and how they are made; small, and can be pickled.

    Attributes
    ----------
    atlases : tuple of AtlasFile, CombinedAtlasFile or OwnAtlas
        All are extracted in one pass over a run. Each has its kind.
    out_dir : Path
    parameters : dict
        Fields of `gpumask.settings.Settings`. Here ``keep_all_regions`` is True, so all runs have the same columns,
        ``min_coverage`` 0.5 and ``nan_policy`` "omit", unless they say otherwise. (Smoothed volumes support "omit" only
        for mean and sum; other statistics default to "zero".) Maps have a strategy of their own, and always "zero".
    confounds : dict
        Keywords of `gpumask.confounds.fmriprep.fmriprep_confounds`. Empty: confounds aren't used.
    denoisings : tuple of Denoising
        Each with a name; all are made from one read. Their settings precede those of `parameters`. If none are given,
        one without a name is made from `confounds`, `dummy_scans` and `output_type`.
    mask : str, path-like or None
        Mask for runs without one.
    device : str
        As `gpumask.NiftiLabelsMasker` accepts it, or several GPUs that share the runs: "cuda:0,cuda:1", or "cuda:all".
        Resolved where a run is processed.
    coverage, figures, outliers : bool
        Whether tables of coverage, figures and tables of removed volumes are written too.
    relmats : tuple of str
        Kinds of connectivity matrices to write, see `gpumask.connectivity.connectivity`.
    cifti : bool
        Whether signals of dense labels, coverage and correlations are written as CIFTI-2 too.
    overwrite : bool
        Whether finished runs are processed again.
    dummy_scans : "auto" or int
        Volumes to drop at the beginning; "auto": those that the confounds table marks as before the steady state.
    output_type : {"censored", "n/a", "interpolated"}
        As of `gpumask.confounds.denoising.Denoising`.
    min_time : float
        Runs that censoring for motion leaves less of, in s, are errors. 0: none are.
    min_dof : float or None
        Runs that cleaning leaves fewer degrees of freedom are errors.
    allow_space_mismatch : bool
        Whether an atlas or mask whose name states another space than a run's is a warning and not an error.
    maps_strategy : {"least_squares", "weighted_mean"}
        As `gpumask.NiftiMapsMasker` accepts it.
    settings : Settings
        Made from `parameters`; those of a unit are `settings_of` it.
    units : tuple of Unit
        Each atlas with each denoising; then, if `outliers`, each denoising alone.
    files : dict of dict
        SHA-256 of each file that an atlas, look-up table or mask consists of, by the path of the atlas etc. and by that
        of the file. Whoever loads one checks that it still has this hash.
    made : dict of str
        For each unit, by its name, a hash of everything that decides its outputs: version, settings, confounds,
        contents of files.
    hash : str
        Hash of everything that decides the contents of the output folder.

    Raises
    ------
    TypeError, ValueError
        If a parameter is unusable, atlases are missing or share a name, or denoisings do, or contradict `confounds`.
    ImportError
        If `confounds` has a strategy and nilearn isn't installed.
    OSError
        If an atlas can't be read.
    """

    atlases: tuple[AtlasFile | CombinedAtlasFile | OwnAtlas, ...]
    out_dir: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    confounds: dict[str, Any] = field(default_factory=dict)
    denoisings: tuple[Denoising, ...] = ()
    mask: str | os.PathLike | None = None
    device: str = "auto"
    coverage: bool = True
    relmats: tuple[str, ...] = ("pearson",)
    figures: bool = False
    cifti: bool = False
    outliers: bool = True
    overwrite: bool = False
    dummy_scans: str | int = "auto"
    output_type: str = "censored"
    min_time: float = 240.0
    min_dof: float | None = None
    allow_space_mismatch: bool = False
    maps_strategy: str = "least_squares"
    settings: Settings = field(init=False)
    units: tuple[Unit, ...] = field(init=False)
    files: dict[str, dict[str, str]] = field(init=False)
    made: dict[str, str] = field(init=False)
    hash: str = field(init=False)

    def __post_init__(self):
        def fix(name, value):
            object.__setattr__(self, name, value)

        denoisings = _checked(self.denoisings, self.confounds, self.dummy_scans, self.output_type)
        for kind in self.relmats:
            check_choice("relmats", kind, tuple(RELMATS))
        fix("relmats", tuple(kind for kind in RELMATS if kind in self.relmats))
        check_choice("maps_strategy", self.maps_strategy, tuple(MAPS_STRATEGIES))
        fix("out_dir", Path(os.path.abspath(self.out_dir)))  # noqa: PTH100 - workers are elsewhere
        fix("mask", self.mask and os.path.abspath(self.mask))  # noqa: PTH100
        names = [atlas.name for atlas in self.atlases]
        labels = [alphanumeric(name) for name in names]
        if len(set(labels)) != len(labels) or not all(labels) or not names:
            of_files = f", in file names {labels}" if labels != names else ""
            msg = f"Expected one atlas or more, each with a name of its own, got {names}{of_files}. Give NAME=PATH."
            raise ValueError(msg)
        smoothed = self.parameters.get("smoothing_fwhm") and self.parameters.get("strategy", "mean") not in LINEAR
        fix("settings", Settings(**(_DEFAULTS | ({"nan_policy": "zero"} if smoothed else {}) | self.parameters)))
        given = [atlas for atlas in self.atlases if not isinstance(atlas, OwnAtlas)]
        images = [*(image for atlas in given for image in atlas.images), *([self.mask] if self.mask else [])]
        files = {path: image_hashes(path) for path in map(os.fspath, images)}
        tables = [file for atlas in given for file in atlas.files if file not in files]
        fix("files", files | {table: {table: sha256(table)} for table in tables})
        fix("atlases", tuple(atlas.with_kind() for atlas in self.atlases))
        combined = [atlas.origin for atlas in given if isinstance(atlas, CombinedAtlasFile)]
        if self.cifti and combined:
            msg = (
                f"CIFTI-2 files (--cifti) can't be made of a combined atlas: {combined[0]}. Give its images as "
                "separate atlases, or drop --cifti."
            )
            raise ValueError(msg)
        if self.cifti and not any(atlas.is_dense_labels for atlas in self.atlases):
            msg = f"CIFTI-2 files (--cifti) are made of dense labels (.dlabel.nii), got {self.atlases[0].origin}."
            raise ValueError(msg)
        seeds, target = [atlas.origin for atlas in given if atlas.kind == "seeds"], self.settings.resampling_target
        if seeds and target != "data":
            msg = f"Seeds ({seeds[0]}) need resampling_target='data' (--resampling-target), got {target!r}."
            raise ValueError(msg)
        units = [Unit(atlas, denoising) for atlas in self.atlases for denoising in denoisings]
        fix("units", (*units, *(Unit(None, denoising) for denoising in denoisings if self.outliers)))
        check_atlases(self.atlases, self.settings, self.mask, self.images)
        fix("made", {unit.name: _hash(self.described(unit)) for unit in self.units})
        more = [kind for kind in self.relmats if kind != "pearson"]  # the hash without them is that of older versions
        more += ["cifti"] * self.cifti
        fix("hash", _hash([*self.made.values(), self.coverage, "pearson" in self.relmats, self.figures, *more]))

    @property
    def grayordinates(self) -> bool:
        """Whether the atlases, and so the runs, are of grayordinates."""
        return self.atlases[0].grayordinates

    @property
    def images(self) -> str:
        """Label "desc" of the images that the confounds are for."""
        return _images(self.units[0].denoising)

    @property
    def needs_confounds(self) -> bool:
        """Whether a run without a confounds table can't be cleaned."""
        return any(unit.denoising.confounds for unit in self.units)

    def settings_of(self, unit: Unit) -> Settings:
        """The settings with which a unit is extracted and cleaned."""
        settings = replace(self.settings, **unit.denoising.settings)
        if unit.atlas is None or unit.atlas.kind != "maps":
            return settings
        return replace(settings, strategy=MAPS_STRATEGIES[self.maps_strategy], nan_policy="zero")

    def needs_t_r(self, unit: Unit) -> bool:
        """Whether a unit can't be made without a repetition time: signals or motion are filtered."""
        return self.settings_of(unit).filters or "motion_filter" in unit.denoising.confounds

    def strategy_of(self, atlas: AtlasFile | CombinedAtlasFile | OwnAtlas) -> str:
        """What the signals of an atlas are, by the parameter ``strategy`` of its masker."""
        return self.maps_strategy if atlas.kind == "maps" else self.settings.strategy

    def described_settings(self, unit: Unit) -> dict[str, Any]:
        """The settings that decide a unit's outputs: without the repetition time, as each run has its own."""
        if unit.atlas is None:  # which volumes are removed depends on none
            return {}
        settings = asdict(self.settings_of(unit)) | {"strategy": self.strategy_of(unit.atlas)}
        return {name: value for name, value in settings.items() if name not in ("t_r", "runs")}  # never several runs

    def described(self, unit: Unit) -> dict[str, Any]:
        """How the outputs of a unit are made; for JSON."""
        atlas = unit.atlas
        own = () if atlas is None or isinstance(atlas, OwnAtlas) else atlas.files
        paths = [*own, *([os.fspath(self.mask)] if atlas and self.mask else [])]
        parts = atlas.parts if isinstance(atlas, CombinedAtlasFile) else ()
        return {
            "version": __version__,
            "atlas": unit.key[0],
            **(atlas.options if atlas else {}),
            "files": self._hashes(paths),
            **({"parts": [self._hashes(part.files) for part in parts]} if parts else {}),
            "settings": self.described_settings(unit),
            **unit.denoising.options,
        }

    def _hashes(self, paths):
        return {file: digest for path in paths for file, digest in self.files[path].items()}

    def outputs(self, run: Run, unit: Unit) -> dict[str, Path]:
        """Paths of a run's outputs for a unit.

        For an atlas "timeseries", the kinds of `relmats`, and if wanted "coverage" and "figure"; without one
        "outliers".
        """
        folder, desc = self.out_dir / run.folder, unit.denoising.name
        if unit.atlas is None:
            return {"outliers": folder / run_output_name(run, "outliers", desc=desc)}
        stat = self.strategy_of(unit.atlas)
        named = functools.partial(output_name, run, unit.atlas.name, desc=desc)
        paths = {"timeseries": folder / named(stat)}
        if self.coverage:
            paths["coverage"] = folder / named("coverage", "bold")
        for kind in self.relmats:
            paths[kind] = folder / named(RELMATS[kind], "relmat")
        if self.figures:
            paths["figure"] = self.out_dir / "figures" / named(stat, extension=".png")
        if self.cifti and unit.atlas.is_dense_labels:
            paths |= parcellated_paths(paths)
        return paths


def _checked(denoisings, confounds, dummy_scans, output_type):
    """The denoisings, or the one without a name; ValueError if they don't go together."""
    unnamed = Denoising("", confounds, {}, dummy_scans, output_type)
    if not denoisings:
        return (unnamed,)
    if unnamed != Denoising():
        msg = "Denoisings have confounds, dummy_scans and output_type of their own: expected none next to them."
        raise ValueError(msg)
    names = [denoising.name for denoising in denoisings]
    if len({name.casefold() for name in names}) != len(names) or not all(names):
        msg = f"Expected denoisings with a name of their own, got {names}. Give NAME=SPEC (--denoise)."
        raise ValueError(msg)
    if len(images := {_images(denoising) for denoising in denoisings}) > 1:
        msg = f"Denoisings of one read need the same images, got some for {' and others for '.join(sorted(images))}."
        raise ValueError(msg)
    return denoisings


def _images(denoising):
    return image_desc(denoising.confounds.get("strategy"))


def _hash(content):
    if isinstance(content, dict):  # only contents of files count, not their paths
        content = {**content, "files": list(content["files"].values())}
        if "parts" in content:
            content["parts"] = [list(part.values()) for part in content["parts"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_names(configuration: Configuration, runs: list[Run]) -> None:
    """Raise ValueError if two runs have the same name: their records, or all their files, would be the same."""
    by_name: dict[str, Run] = {}
    for run in runs:
        name = run_name(run)
        other = by_name.setdefault(name, run)
        if other is run:
            continue
        paths = [configuration.outputs(one, configuration.units[0])["timeseries"] for one in (other, run)]
        if paths[0] == paths[1]:
            what, fix = f"to {paths[0]}", "Give them different names or folders."
        else:
            what, fix = f"as {name}", "Give them different names."
        msg = f"{other.path} and {run.path} would both be written {what}. {fix}"
        raise ValueError(msg)


def check_spaces(configuration: Configuration, runs: list[Run]) -> list[str]:
    """Compare the spaces that the names of atlases and masks state with those of runs.

    Returns
    -------
    list of str
        Warnings, each difference once.

    Raises
    ------
    ValueError
        If spaces differ surely, and that isn't allowed; see `gpumask.bids.spaces`.
    """
    messages: dict[tuple[str | os.PathLike, Space | None], str] = {}
    for run in runs:
        given = [atlas for atlas in configuration.atlases if not isinstance(atlas, OwnAtlas)]
        images = [image for atlas in given for image in atlas.images]
        files = [*images, *(atlas.path for atlas in run.atlases), run.mask or configuration.mask]
        for path in [file for file in files if file]:
            if (found := space_contradiction(path, run.path)) is None:
                continue
            message, is_sure = found
            if is_sure and not configuration.allow_space_mismatch:
                msg = f"{message}. Give the one of the run's space, or --allow-space-mismatch if the names are wrong."
                raise ValueError(msg)
            messages.setdefault((path, stated_space(run.path)), f"{message}." if is_sure else f"{message}: the same?")
    return list(messages.values())
