"""Find the runs in a folder of fMRIPrep derivatives by file names alone."""

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from gpumask.bids.content import absence
from gpumask.bids.filters import ABSENT, ANY
from gpumask.bids.metadata import applicable_metadata, is_metadata, only
from gpumask.bids.names import (
    CONFOUNDS,
    folder_label,
    image_stem,
    join_entities,
    label_of,
    parse_name,
    space_entities,
)
from gpumask.bids.runs import Problem, Run

_log = logging.getLogger(__name__)
_VOLUMES = (".nii", ".nii.gz", ".nii.zst")
_GRAYORDINATES = (".dtseries.nii", ".dtseries.nii.gz")  # compressed ones are refused when they are opened
_GIFTI = ".func.gii"
_NO_RUN = "has no preprocessed run"
_OPTIONS = {"sub": "participant-label", "ses": "session-id", "task": "task-id", "run": "run-id"}


_EXPECTED = {
    "preproc": "the derivatives of fMRIPrep, not raw data",
    "smoothAROMAnonaggr": "the derivatives of fMRIPrep before 23.1 with --use-aroma",
}


@dataclass(frozen=True)
class _Kind:
    """The kind of images to find: volumes with a label "desc"; or grayordinates, which fMRIPrep names without one.

    With a hemisphere ("L" or "R"), these are its GIFTI files.
    """

    desc: str
    is_dense: bool
    hemisphere: str = ""

    @property
    def pattern(self):
        """Names of the images, for messages."""
        if self.hemisphere:
            return f"*_hemi-{self.hemisphere}_*_bold{_GIFTI}"
        return "*_bold.dtseries.nii" if self.is_dense else f"*_desc-{self.desc}_bold.nii.gz"

    @property
    def expected(self):
        """What a folder should have been, for messages."""
        if self.hemisphere:
            return "the derivatives of fMRIPrep with a space of surfaces, for atlases of a hemisphere (.label.gii)"
        made = "the derivatives of fMRIPrep with --cifti-output, for atlases of grayordinates (.dlabel.nii)"
        return made if self.is_dense else _EXPECTED.get(self.desc, _EXPECTED["preproc"])

    @property
    def other(self):
        """The kind of images that may be there instead."""
        return _Kind("preproc", not self.is_dense)

    def is_image(self, name):
        """Whether a `BidsName` is that of an image to find."""
        desc, extension = name.entities.get("desc"), name.extension
        if name.suffix != "bold":
            return False
        if self.hemisphere:
            is_own = name.entities.get("hemi") == self.hemisphere and extension == _GIFTI
        else:
            is_own = extension in (_GRAYORDINATES if self.is_dense else _VOLUMES)
        return is_own and (desc == self.desc or (self.is_dense and desc is None))

    def of(self, name):
        """Kind of a run's file by its `BidsName`; None for others in `func` (transforms), which are skipped."""
        if self.is_image(name):
            return "image"
        suffix, desc, extension = name.suffix, name.entities.get("desc"), name.extension
        if not self.is_dense and (suffix, desc, extension in _VOLUMES) == ("mask", "brain", True):
            return "mask"
        return "confounds" if (suffix, desc, extension) in CONFOUNDS else None

    def is_named_so(self, name):
        """Whether a name that isn't BIDS seems to be that of an image."""
        images = r"\.dtseries\.nii(\.gz)?$" if self.is_dense else r"\.nii(\.gz|\.zst)?$"
        images = rf"{re.escape(_GIFTI)}$" if self.hemisphere else images
        return re.search(f"{'' if self.is_dense else f'_desc-{re.escape(self.desc)}'}_bold{images}", name)


@dataclass
class _Files:
    """A run's files in a folder; images and masks by their space."""

    folder: str  # relative to the root
    metadata: list  # folders whose metadata the run inherits, and the names of these; the nearest first
    images: dict = field(default_factory=dict)
    masks: dict = field(default_factory=dict)
    confounds: list = field(default_factory=list)
    echoes: list = field(default_factory=list)

    def use_only_echo(self):
        """Make the first echo the run's image if it has no other: some name single-echo data so."""
        parsed = {name: parse_name(name) for name in self.echoes}
        if not self.images and {label_of("run", one.entities["echo"]) for one in parsed.values()} == {"1"}:
            for name, one in parsed.items():
                self.images.setdefault(one.space, []).append(name)
            self.echoes = []


def find_runs(
    root: str | os.PathLike,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    tasks: Sequence[str] = (),
    runs: Sequence[str] = (),
    filters: Mapping[str, Collection[str]] | None = None,
    space: str | None = None,
    require_mask: bool = True,
    require_confounds: bool = False,
    desc: str = "preproc",
    grayordinates: bool = False,
    hemisphere: str = "",
) -> tuple[list[Run], list[Problem]]:
    """Find the preprocessed runs in a folder of fMRIPrep derivatives.

    Every folder is listed once, and no file is opened or stat'ed: names suffice. A run's image is
    ``*_desc-preproc_bold.nii[.gz]`` in a folder ``sub-*/[ses-*/]func``. Next to it are its mask, ``*_desc-brain_mask``
    with the same space, cohort, res and den, and its confounds, ``*_desc-confounds_timeseries.tsv`` (``_regressors``
    before fMRIPrep 20.2). Its metadata are the ``*_bold.json`` whose entities all are the image's, one per folder.
    Single-echo images are skipped, unless the first echo is the only image of a run. Grayordinates are in
    ``*_space-fsLR_den-91k_bold.dtseries.nii``, with the same confounds and no mask.

    Parameters
    ----------
    root : str or path-like
        Folder with the folders ``sub-*``.
    participants, sessions, tasks, runs : sequence of str
        Labels to use, with or without "sub-", "ses-", "task-" and "run-"; all if empty. Runs 1 and 01 are the same.
    filters : mapping, optional
        Labels to use of any entities that a run's files share, by key: ``{"acq": {"fast"}}``; "" stands for names
        without the entity, and "*" for those with it. See `gpumask.bids.filters.read_filters`.
    space : str, optional
        For example "MNI152NLin2009cAsym", followed by ":res-2" or ":cohort-1" if the space has several. Images whose
        names have none are in "func". If None, the only space.
    require_mask, require_confounds : bool
        Whether a run without one is a problem. Having several candidates always is.
    desc : str
        Label "desc" of the images: "smoothAROMAnonaggr" finds those that ICA-AROMA has denoised. Names of grayordinates
        may lack it.
    grayordinates : bool
        Whether to find dense series, and not volumes: CIFTI-2 files unless there is a `hemisphere`.
    hemisphere : {"L", "R", ""}
        Hemisphere whose GIFTI files (``*_hemi-L_space-fsaverage5_bold.func.gii``) are the dense series to find.

    Returns
    -------
    runs : list of Run
        Sorted by participant, session and name.
    problems : list of Problem
        Runs and folders that can't be used.

    Raises
    ------
    ValueError
        If `root` has no preprocessed images, a label doesn't exist, no run has all labels, or `space` fits no or
        several spaces of the images; the message lists the existing ones. If `filters` and another parameter choose by
        the same entity.
    OSError
        If `root` can't be listed.
    """
    root = str(Path(root).absolute())
    kind = _Kind(desc, grayordinates, hemisphere)
    chosen: dict[str, Collection[str]] = {"sub": participants, "ses": sessions, "task": tasks, "run": runs}
    for key, labels in (filters or {}).items():
        if chosen.get(key):
            msg = f"{key} is chosen twice, by a filter (--bids-filter-file) and by --{_OPTIONS[key]}. Give one."
            raise ValueError(msg)
        chosen[key] = labels
    scan = _Scan(root, chosen, kind)
    space = _choose_space(space, Counter(label for files in scan.files for label in files.images), root)
    found = []
    for files in scan.files:
        try:
            found.append(_assemble(root, files, space, require_mask and not grayordinates, require_confounds, kind))
        except ValueError as error:
            of_space = files.images.get(space, [])
            names = [*of_space, *(name for names in files.images.values() for name in names)]
            names += [*files.echoes, *files.confounds]
            parsed = parse_name(names[0])
            of_run = {**(parsed.of_run if parsed else {}), **space_entities(space or "")}
            name = _name_of_outputs(of_space[0]) if of_space else join_entities(of_run)
            scan.problems.append(Problem(f"{root}/{files.folder}/{names[0]}", str(error), name))
    _log.debug("%s: %d runs in space %s, %d unusable", root, len(found), space, len(scan.problems))
    return found, sorted(scan.problems, key=lambda problem: problem.path)


class _Scan:
    """The listing of a data set: `files` of each chosen run, and `problems`."""

    def __init__(self, root, chosen, kind):
        self.root, self.kind = root, kind
        self.chosen = {key: {label_of(key, text) for text in labels} for key, labels in chosen.items()}
        self.present = {key: set() for key in chosen}
        self.of_names = [key for key in chosen if key not in ("sub", "ses")]  # the others are those of folders
        self.files, self.problems, self.has_images, self.has_others = [], [], False, False

        names = _listing(root)
        subjects = {name: label for name in names if (label := folder_label(name, "sub"))}
        if not subjects:
            inner = [f"Did you mean {root}/{name}?" for name in ("fmriprep", "derivatives") if name in names]
            other = "For another layout, such as HCP's, list the runs in a TSV file (column bold)."
            msg = f"{root} has no folders sub-*: expected fMRIPrep's folder of derivatives. {[*inner, other][0]}"
            raise ValueError(msg)
        self.present["sub"].update(subjects.values())
        self.check_labels("sub")
        listed = [name for name, label in subjects.items() if self.is_chosen("sub", label)]
        metadata = self.metadata_in("", names)
        for subject in listed:
            self.list_subject(subject, metadata)
        self.check_labels("ses")
        nothing = not self.files and all(_NO_RUN in problem.reason for problem in self.problems)
        if not self.has_images and (nothing or self.has_others or kind.desc != "preproc"):
            msg = (
                f"{root} has no {kind.pattern} in sub-*/[ses-*/]func of {len(listed)} participant(s): expected "
                f"{kind.expected}."
            )
            if self.has_others:
                what = "atlases of volumes" if kind.is_dense else "atlases of grayordinates (.dlabel.nii)"
                msg += f" It has {kind.other.pattern}, for {what}."
            raise ValueError(msg)
        for key in self.of_names:
            self.check_labels(key)
        if not self.files and not self.problems:
            chosen = "; ".join(
                f"{key} {', '.join(label or 'absent' for label in sorted(labels))}"
                for key, labels in self.chosen.items()
                if labels
            )
            msg = f"{root} has no preprocessed run of all that is chosen: {chosen}."
            raise ValueError(msg)

    def is_chosen(self, key, label):
        chosen = self.chosen[key]
        return not chosen or label in chosen or (ANY in chosen and label != ABSENT)

    def check_labels(self, key):
        missing, present = sorted(self.chosen[key] - self.present[key] - {ABSENT, ANY}), sorted(self.present[key])
        if missing:
            near = get_close_matches(missing[0], present, n=5) or present[:5]
            existing = f"Of the {len(present)} there: {', '.join(near)}." if present else "There is none at all."
            msg = f"{self.root} has no {', '.join(f'{key}-{label}' for label in missing)}. {existing}"
            raise ValueError(msg)

    def names_in(self, folder):
        try:
            return _listing(f"{self.root}/{folder}")
        except OSError as error:
            reason = absence(f"{self.root}/{folder}") or f"can't be listed: {error.strerror}"
            self.problems.append(Problem(f"{self.root}/{folder}", reason, folder.replace("/", "_")))
            return []

    def metadata_in(self, folder, names):
        """A list of the folder and its metadata files, empty if it has none."""
        files = {name for name in names if is_metadata(name)}
        return [(f"{self.root}/{folder}", files)] if files else []

    def list_subject(self, subject, metadata):
        n_before = len(self.files) + len(self.problems)
        names = self.names_in(subject)
        metadata = [*self.metadata_in(subject, names), *metadata]
        if "func" in names and self.is_chosen("ses", ABSENT):
            self.list_run_files(f"{subject}/func", metadata)
        for session in names:
            if (label := folder_label(session, "ses")) is None:
                continue
            self.present["ses"].add(label)
            if self.is_chosen("ses", label):
                folder = f"{subject}/{session}"
                names = self.names_in(folder)
                if "func" in names:
                    self.list_run_files(f"{folder}/func", [*self.metadata_in(folder, names), *metadata])
        some_only = any(self.chosen[key] for key in ("ses", *self.of_names))
        if n_before == len(self.files) + len(self.problems) and (self.chosen["sub"] or not some_only):
            reason = f"{_NO_RUN} of those chosen" if some_only else _NO_RUN
            self.problems.append(Problem(f"{self.root}/{subject}", reason, subject))

    def list_run_files(self, folder, metadata):
        names = self.names_in(folder)
        metadata = [*self.metadata_in(folder, names), *metadata]
        owners = parse_name(folder.replace("/", "_")).entities
        by_run = {}
        for name in names:
            parsed = parse_name(name)
            if parsed is None or owners.items() - parsed.entities.items():
                if self.kind.is_named_so(name):
                    expected = f"{join_entities(owners)}_[task-<label>_...], each once"
                    reason = f"isn't a BIDS name for {folder}: expected {expected}"
                    self.problems.append(Problem(f"{self.root}/{folder}/{name}", reason))
                continue
            entities = parsed.entities
            kind = self.kind.of(parsed)
            self.has_others = self.has_others or self.kind.other.is_image(parsed)
            if kind is None:
                continue
            if kind == "image":
                self.has_images = True
                for key in self.of_names:
                    if key in entities:
                        self.present[key].add(label_of(key, entities[key]))
            if not all(self.is_chosen(key, label_of(key, entities.get(key, ABSENT))) for key in self.of_names):
                continue
            files = by_run.setdefault(tuple(parsed.of_run.items()), _Files(folder, metadata))
            if kind == "confounds":
                files.confounds.append(name)
            elif kind == "mask":
                files.masks.setdefault(parsed.space, []).append(name)
            else:
                (files.echoes if "echo" in entities else files.images.setdefault(parsed.space, [])).append(name)
        for files in by_run.values():
            files.use_only_echo()
        self.files += [files for files in by_run.values() if files.images or files.echoes or files.confounds]


def _listing(folder):
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def _choose_space(space, numbers, root):
    listed = ", ".join(f"{label} ({n} run{'s' * (n > 1)})" for label, n in sorted(numbers.items()))
    if space is None:
        if len(numbers) > 1:
            msg = f"The images in {root} are in several spaces: {listed}. Choose one: space (--space)."
            raise ValueError(msg)
        return next(iter(numbers), None)
    wanted = re.split("[:_]", space.removeprefix("space-"))
    fitting = [label for label in numbers if set(wanted) <= set(parts := label.split(":")) and parts[0] == wanted[0]]
    exact = [label for label in fitting if len(label.split(":")) == len(wanted)]
    if numbers and len(exact or fitting) != 1:
        number = "images of several kinds" if fitting else "no images"
        msg = f"{root} has {number} in space {space}. Its images are in: {listed}."
        raise ValueError(msg)
    return next(iter(exact or fitting), ":".join(wanted))


def _name_of_outputs(image):
    return join_entities({key: label for key, label in parse_name(image).entities.items() if key != "desc"})


def _assemble(root, files, space, require_mask, require_confounds, kind):
    """Run of the files; a ValueError if they aren't one."""
    if space not in files.images:
        if files.images:
            reason = f"has no image in space {space}, only in {', '.join(sorted(files.images))}"
        elif files.echoes:
            reason = f"has only single-echo images, no combined one: {', '.join(files.echoes)}"
        else:
            reason = f"has no matching {kind.pattern}"
        raise ValueError(reason)
    image = only(files.images[space], "image")
    name = _name_of_outputs(image)
    mask = only(files.masks.get(space, []), "brain mask")
    if mask is None and require_mask:
        other = sorted(name for names in files.masks.values() for name in names)
        reason = f"has no brain mask: expected {name}_desc-brain_mask.nii.gz next to it"
        raise ValueError(f"{reason}, found only {', '.join(other)}" if other else reason)
    confounds = only(files.confounds, "confounds")
    if confounds is None and require_confounds:
        expected = f"{join_entities(parse_name(image).of_run)}_desc-confounds_timeseries.tsv"
        reason = f"has no confounds: expected {expected} next to it"
        raise ValueError(reason)
    folder = f"{root}/{files.folder}"
    metadata = [str(path) for path in applicable_metadata(image_stem(image), files.metadata)]
    return Run(
        path=f"{folder}/{image}",
        confounds=confounds and f"{folder}/{confounds}",
        mask=mask and f"{folder}/{mask}",
        sidecar=metadata[0] if metadata else None,
        name=name,
        folder=files.folder,
        source=root,
        inherited=tuple(metadata[1:]),
    )
