"""BIDS: the runs of a folder of derivatives, found by file names alone; names and metadata of what is made of them."""

import contextlib
import json
import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote

from gpumask import __version__
from gpumask.files import json_lines, replacing, write

_IMAGE_SUFFIX = re.compile(r"\.(nii|img|hdr|mgh|mgz|mnc|head|brik|par|rec)(\.(gz|bz2|zst))?$", re.IGNORECASE)
_BIDS_NAME = re.compile(r"(?P<entities>sub-[a-zA-Z0-9]+(_[a-zA-Z0-9]+-[a-zA-Z0-9+]+)*)_[a-zA-Z0-9]+")
_ATLAS_ENTITY = re.compile(r"(?:^|_)(?:atlas|seg|scale|desc)-([a-zA-Z0-9+]+)")  # what tells atlases apart
_AFTER_ATLAS = re.compile(r"_(?:res|den|label|desc)-|$")  # the entities that BIDS has behind "atlas" and "seg"

# What a run has in a folder `func`. All else there (surfaces, transforms, references, raw confounds) is passed over.
_FILE = re.compile(
    r"(?P<entities>(?:[a-zA-Z]+-[a-zA-Z0-9+]+_)+)"
    r"(?:(?P<image>bold|mask)\.nii(?:\.gz|\.zst)?|(?P<table>timeseries|regressors)\.tsv)"
)
_METADATA = re.compile(r"(?P<entities>(?:[a-zA-Z]+-[a-zA-Z0-9+]+_)*)bold\.json")
_SPACE = ("space", "cohort", "res", "den")
_NATIVE = "func"  # as fMRIPrep calls the space of images that don't name one
_NOT_OF_THE_RUN = {*_SPACE, "desc", "echo", "part"}  # in these a run's image, mask and confounds may differ
_STILL_TRUE = ("TaskName", "StartTime", "SliceTimingCorrected", "SpatialReference", "Resolution")  # of signals too
# Names that BIDS doesn't have yet: "stat", "timeseries" and "relmat" are in proposals to it, and XCP-D's meanwhile.
_IGNORED = ("*_stat-*", "*.html", "*.png", "*.parquet")
_NO_RUN = "has no preprocessed run"
_MANIFEST = ("bold", "confounds", "mask", "t_r", "name")


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


@dataclass
class _Files:
    """What there is of one run, in one folder; images and masks by their space."""

    folder: str  # below the root
    metadata: list  # folders, with their *bold.json, that the run may inherit from; the nearest first
    images: dict = field(default_factory=dict)
    masks: dict = field(default_factory=dict)
    confounds: list = field(default_factory=list)
    echoes: list = field(default_factory=list)


def find_runs(
    root, *, participants=(), sessions=(), tasks=(), runs=(), space=None, require_mask=True, require_confounds=False
):
    """Find the preprocessed runs in a folder of fMRIPrep derivatives.

    Every folder is listed once, and no file is opened or looked at: names tell everything. The image of a run is
    ``*_desc-preproc_bold.nii[.gz]`` in a folder ``sub-*/[ses-*/]func``. Beside it are its mask, ``*_desc-brain_mask``
    with the same space, cohort, res and den, and its confounds, ``*_desc-confounds_timeseries.tsv`` (``_regressors``
    before fMRIPrep 20.2). Its metadata is the nearest ``*_bold.json`` that has no entities but the image's. Images of
    single echoes are passed over.

    Parameters
    ----------
    root : str or path-like
        Folder with the folders ``sub-*``.
    participants, sessions, tasks, runs : sequence of str
        Labels to take, with or without "sub-", "ses-", "task-" and "run-". Empty takes all. Runs 1 and 01 are one.
    space : str, optional
        For example "MNI152NLin2009cAsym", with ":res-2" or ":cohort-1" behind it if there are several of that space.
        Images that name none are in "func". If None, the only one that there is.
    require_mask, require_confounds : bool
        Whether a run without is a problem. If there are several to choose from it always is one.

    Returns
    -------
    runs : list of Run
        Sorted by participant, session and name.
    problems : list of Problem
        Runs and folders that can't be taken.

    Raises
    ------
    ValueError
        If `root` has no preprocessed images, one of the labels isn't there, or the images are in several spaces of
        which `space` doesn't tell one. The message lists what there is.
    OSError
        If `root` can't be listed.
    """
    root = str(Path(root).absolute())
    scan = _Scan(root, {"sub": participants, "ses": sessions, "task": tasks, "run": runs})
    space = _choose_space(space, Counter(label for files in scan.files for label in files.images), root)
    found = []
    for files in scan.files:
        try:
            found.append(_assemble(root, files, space, require_mask, require_confounds))
        except ValueError as error:
            every = [name for names in files.images.values() for name in names] + files.echoes + files.confounds
            scan.problems.append(Problem(f"{root}/{files.folder}/{every[0]}", str(error)))
    return found, sorted(scan.problems, key=lambda problem: problem.path)


class _Scan:
    """The listing of a data set: `files` of each run that is chosen, and `problems`."""

    def __init__(self, root, chosen):
        self.root = root
        self.chosen = {kind: {_label_of(kind, text) for text in labels} for kind, labels in chosen.items()}
        self.present = {kind: set() for kind in chosen}
        self.files, self.problems, self.has_images = [], [], False

        names = _listing(root)
        subjects = [name for name in names if re.fullmatch("sub-[a-zA-Z0-9]+", name)]
        if not subjects:
            inner = [f" Did you mean {root}/{name}?" for name in ("fmriprep", "derivatives") if name in names]
            msg = f"{root} has no folders sub-*: expected fMRIPrep's folder of derivatives.{''.join(inner[:1])}"
            raise ValueError(msg)
        self.present["sub"].update(name.removeprefix("sub-") for name in subjects)
        self.check_labels("sub")
        metadata = _metadata_files("", names)
        looked_at = [name for name in subjects if self.is_chosen("sub", name.removeprefix("sub-"))]
        for subject in looked_at:
            self.list_subject(subject, metadata)
        self.check_labels("ses")
        if not (self.has_images or self.files) and all(_NO_RUN in problem.reason for problem in self.problems):
            msg = (
                f"{root} has no *_desc-preproc_bold.nii.gz in sub-*/[ses-*/]func of {len(looked_at)} participant(s): "
                "expected the derivatives of fMRIPrep, not raw data."
            )
            raise ValueError(msg)
        for kind in ("task", "run"):
            self.check_labels(kind)

    def is_chosen(self, kind, label):
        return not self.chosen[kind] or label in self.chosen[kind]

    def check_labels(self, kind):
        missing, present = sorted(self.chosen[kind] - self.present[kind]), sorted(self.present[kind])
        if missing:
            near = get_close_matches(missing[0], present, n=5) or present[:5]
            there_are = f"Of the {len(present)} there: {', '.join(near)}." if present else "There is none at all."
            msg = f"{self.root} has no {', '.join(f'{kind}-{label}' for label in missing)}. {there_are}"
            raise ValueError(msg)

    def names_in(self, folder):
        try:
            return _listing(f"{self.root}/{folder}")
        except OSError as error:
            self.problems.append(Problem(f"{self.root}/{folder}", f"can't be listed: {error.strerror}"))
            return []

    def list_subject(self, subject, metadata):
        n_before = len(self.files) + len(self.problems)
        names = self.names_in(subject)
        metadata = [*_metadata_files(subject, names), *metadata]
        if "func" in names and not self.chosen["ses"]:
            self.list_run_files(f"{subject}/func", metadata)
        for session in names:
            if not re.fullmatch("ses-[a-zA-Z0-9]+", session):
                continue
            self.present["ses"].add(session.removeprefix("ses-"))
            if self.is_chosen("ses", session.removeprefix("ses-")):
                folder = f"{subject}/{session}"
                names = self.names_in(folder)
                if "func" in names:
                    self.list_run_files(f"{folder}/func", [*_metadata_files(folder, names), *metadata])
        some_only = any(self.chosen[kind] for kind in ("ses", "task", "run"))
        if n_before == len(self.files) + len(self.problems) and (self.chosen["sub"] or not some_only):
            reason = f"{_NO_RUN} of the sessions, tasks and runs to take" if some_only else _NO_RUN
            self.problems.append(Problem(f"{self.root}/{subject}", reason))

    def list_run_files(self, folder, metadata):
        names = self.names_in(folder)
        metadata = [*_metadata_files(folder, names), *metadata]
        owners = dict(part.split("-") for part in folder.split("/")[:-1])
        by_run = {}
        for name in names:
            match = _FILE.fullmatch(name)
            entities = match and _entities(match)
            if entities is None or owners.items() - entities.items():
                if re.search(r"_desc-preproc_bold\.nii(\.gz|\.zst)?$", name):
                    expected = "".join(f"{kind}-{label}_" for kind, label in owners.items())
                    reason = f"is no BIDS name of a file in {folder}: expected {expected}[task-<label>_...], each once"
                    self.problems.append(Problem(f"{self.root}/{folder}/{name}", reason))
                continue
            what = (match["image"] or match["table"], entities.get("desc"))
            space = _space_of(entities)
            key = tuple(pair for pair in entities.items() if pair[0] not in _NOT_OF_THE_RUN)
            if what == ("bold", "preproc"):
                self.has_images = True
                for kind in ("task", "run"):
                    if kind in entities:
                        self.present[kind].add(_label_of(kind, entities[kind]))
            number = _label_of("run", entities.get("run", ""))
            if not (self.is_chosen("task", entities.get("task", "")) and self.is_chosen("run", number)):
                continue
            files = by_run.setdefault(key, _Files(folder, metadata))
            if what == ("bold", "preproc"):
                (files.echoes if "echo" in entities else files.images.setdefault(space, [])).append(name)
            elif what == ("mask", "brain"):
                files.masks.setdefault(space, []).append(name)
            elif what in (("timeseries", "confounds"), ("regressors", "confounds")):
                files.confounds.append(name)
        self.files += [files for files in by_run.values() if files.images or files.echoes or files.confounds]


def _listing(folder):
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def _metadata_files(folder, names):
    """A list of `folder` and its files of metadata, or nothing if it has none."""
    files = {name for name in names if name.endswith("bold.json")}
    return [(folder, files)] if files else []


def _entities(match):
    """Entities of a matched name as a dict; None if one is there twice."""
    pairs = [pair.split("-") for pair in match["entities"].split("_")[:-1]]
    entities = dict(pairs)
    return entities if len(entities) == len(pairs) else None


def _label_of(kind, text):
    label = str(text).removeprefix(f"{kind}-")
    return str(int(label)) if kind == "run" and label.isdecimal() else label


def _space_of(entities):
    """As fMRIPrep's --output-spaces has it: MNIPediatricAsym:cohort-1:res-2."""
    further = (f"{kind}-{entities[kind]}" for kind in _SPACE[1:] if kind in entities)
    return ":".join((entities.get("space", _NATIVE), *further))


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
        number = "no images" if not fitting else "images of several kinds"
        msg = f"There are {number} in space {space} in {root}. Images are in: {listed}."
        raise ValueError(msg)
    return next(iter(exact or fitting), space)


def _assemble(root, files, space, require_mask, require_confounds):
    """Run of the files; a ValueError says why they are none."""
    if space not in files.images:
        if files.images:
            reason = f"has no image in space {space}, only in {', '.join(sorted(files.images))}"
        elif files.echoes:
            reason = f"has images of single echoes only, none that combines them: {', '.join(files.echoes)}"
        else:
            reason = "there is no *_desc-preproc_bold.nii.gz to these confounds"
        raise ValueError(reason)
    image = _only(files.images[space], "image")
    stem = _IMAGE_SUFFIX.sub("", image)
    pairs = [pair for pair in stem.split("_")[:-1] if not pair.startswith("desc-")]
    name = "_".join(pairs)
    mask = _only(files.masks.get(space, []), "brain mask")
    if mask is None and require_mask:
        other = sorted(name for names in files.masks.values() for name in names)
        reason = f"has no brain mask: expected {name}_desc-brain_mask.nii.gz beside it"
        raise ValueError(f"{reason}, found only {', '.join(other)}" if other else reason)
    confounds = _only(files.confounds, "confounds")
    if confounds is None and require_confounds:
        of_run = "_".join(pair for pair in pairs if pair.split("-")[0] not in _NOT_OF_THE_RUN)
        reason = f"has no confounds: expected {of_run}_desc-confounds_timeseries.tsv beside it"
        raise ValueError(reason)
    folder = f"{root}/{files.folder}"
    return Run(
        path=f"{folder}/{image}",
        confounds=confounds and f"{folder}/{confounds}",
        mask=mask and f"{folder}/{mask}",
        sidecar=_inherited(root, stem, files.metadata),
        name=name,
        folder=files.folder,
        source=root,
    )


def _only(names, what):
    if len(names) > 1:
        msg = f"has {len(names)} candidates for its {what}, and must have one: {', '.join(names)}"
        raise ValueError(msg)
    return names[0] if names else None


def _inherited(root, stem, metadata):
    """Path of the metadata that apply to an image, by BIDS's principle of inheritance; None without."""
    entities = dict(pair.split("-") for pair in stem.split("_")[:-1])
    for folder, files in metadata:
        if f"{stem}.json" in files:  # the usual case; looking through all takes the square of the number of runs
            return f"{root}/{folder}/{stem}.json"
        numbers = {}
        for name in sorted(files):
            match = _METADATA.fullmatch(name)
            its = match and _entities(match)
            if its is not None and its.items() <= entities.items():
                numbers[name] = len(its)
        most = max(numbers.values(), default=0)
        if name := _only([name for name, n in numbers.items() if n == most], "metadata"):
            return "/".join(filter(None, (root, folder, name)))
    return None


def read_manifest(path):
    """Read a list of runs that aren't named as fMRIPrep names them, from a table with a line per run.

    Parameters
    ----------
    path : str or path-like
        Text, separated by tabs, the names of the columns above: "bold" with the images, and any of "confounds", "mask",
        "t_r" (s) and "name" (beginning of the outputs' names; else that of the image's file). Files are relative to the
        folder of the table; empty cells and "n/a" are none.

    Returns
    -------
    runs : list of Run
        In the order of the table.
    problems : list of Problem
        Lines that can't be taken: files that aren't there, names that aren't unique, ...

    Raises
    ------
    ValueError
        If the columns aren't those above.
    OSError
        If the table can't be read.
    """
    path = Path(path).absolute()
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    columns = [column.strip() for column in lines[0].split("\t")] if lines else []
    if "bold" not in columns or len(set(columns)) < len(columns) or set(columns) - set(_MANIFEST):
        msg = (
            f"{path} begins with the line {lines[0] if lines else ''!r}. Expected the names of the columns, separated "
            "by tabs, each once: bold, and any of confounds, mask, t_r, name."
        )
        raise ValueError(msg)
    runs, problems = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        row = {column: cell for column, cell in zip(columns, cells, strict=False) if cell not in ("", "n/a")}
        try:
            if len(cells) != len(columns):
                msg = f"has {len(cells)} cells, expected {len(columns)}"
                raise ValueError(msg)
            runs.append((number, _run_of_row(row, path.parent)))
        except ValueError as error:
            problems.append(Problem(row.get("bold", str(path)), f"line {number} of {path} {error}"))
    numbers = {}
    for number, run in runs:
        numbers.setdefault(run_name(run), []).append(str(number))
    for number, run in runs:
        if len(same := numbers[run_name(run)]) > 1:
            reason = f"would be written under the name {run_name(run)}, as would all of the lines {', '.join(same)}"
            problems.append(Problem(run.path, f"line {number} of {path} {reason}: give unique ones in the column name"))
    return [run for _, run in runs if len(numbers[run_name(run)]) == 1], problems


def _run_of_row(row, folder):
    if "bold" not in row:
        msg = "has no bold image"
        raise ValueError(msg)
    files = {column: folder / row[column] for column in ("bold", "confounds", "mask") if column in row}
    for column, file in files.items():
        if not file.is_file():
            msg = f"names a {column} file that isn't there: {file}"
            raise ValueError(msg)
    name, t_r = row.get("name"), row.get("t_r")
    if name and not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.+-]*", name):
        msg = f"has the name {name!r}: expected letters, digits, and _ - + . between them"
        raise ValueError(msg)
    t_r = t_r and _seconds(t_r, "has the t_r")
    run = Run(
        **{"path" if column == "bold" else column: str(file) for column, file in files.items()}, t_r=t_r, name=name
    )
    owners = re.match(r"(sub-[a-zA-Z0-9]+)(?:_(ses-[a-zA-Z0-9]+))?(?=_|$)", run_name(run))
    return replace(run, folder="/".join((*filter(None, owners.groups()), "func"))) if owners else run


def _seconds(value, what):
    with contextlib.suppress(TypeError, ValueError):
        if not isinstance(value, bool) and 0 < float(value) < math.inf:
            return float(value)
    msg = f"{what} {value!r}: expected a positive number of seconds"
    raise ValueError(msg)


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

    In a BIDS name the atlas is put where BIDS has it, which is before "res" and "den". `entity` "seg" gives the names
    that XCP-D wrote from 0.7 to 0.14.
    """
    name = run_name(run)
    at = _AFTER_ATLAS.search(name).start() if _BIDS_NAME.fullmatch(f"{name}_{suffix}") else len(name)
    return f"{name[:at]}_{entity}-{_label(atlas)}{name[at:]}_stat-{_label(stat)}_{suffix}{extension}"


def _label(text):
    return re.sub("[^a-zA-Z0-9]", "", text)


def repetition_time(run):
    """Repetition time of a run in s: ``run.t_r``, else that of its JSON metadata, else None (then its header has it).

    Raises
    ------
    ValueError
        If the metadata can't be read, or holds no positive number.
    """
    if run.t_r is not None:
        return run.t_r
    path, metadata = _metadata(run)
    value = metadata.get("RepetitionTime")
    return None if value is None else _seconds(value, f"{path} has the RepetitionTime")


def metadata_file(run):
    """Path of the run's JSON metadata, or None: what it names, or what lies beside its image."""
    if run.sidecar is not None:
        return Path(run.sidecar)
    beside = Path(_IMAGE_SUFFIX.sub("", os.fspath(run.path)) + ".json")
    return beside if beside.is_file() else None


def _metadata(run):
    path = metadata_file(run)
    return path, {} if path is None else _read_json(path)


def _read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # what isn't UTF-8 is one too
        msg = f"{path} is no JSON: {error}"
        raise ValueError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} holds a JSON {type(content).__name__}: expected an object"
        raise ValueError(msg)
    return content


def sidecar(
    run,
    *,
    t_r=None,
    confounds=(),
    low_pass=None,
    high_pass=None,
    atlas=None,
    lut=None,
    sources=None,
    configuration=None,
    out_dir=None,
    **more,
):
    """JSON metadata of a table made from a run.

    Parameters
    ----------
    run : Run
    t_r : float, optional
        Repetition time in s that was used.
    confounds : sequence of str
        Names of the confounds that were removed.
    low_pass, high_pass : float, optional
        Cut-offs in Hz of the Butterworth filter.
    atlas, lut : str or path-like, optional
    sources : sequence of str or path-like, optional
        Files that the table was made from. If None: the run's image, mask and confounds, `atlas` and `lut`.
    configuration : str, optional
        Hash of all parameters.
    out_dir : str or path-like, optional
        Root of the outputs; files in it are given relative to it.
    **more
        Further keys, added as they are.

    Returns
    -------
    dict
        With the keys that BIDS (SoftwareFilters, Sources, ...) and XCP-D (NuisanceParameters, ConfigurationHash) use.
        Files in ``run.source`` have the URI ``bids:preprocessed:<path>``, see `write_dataset_description`.
    """
    _, metadata = _metadata(run)
    name = _BIDS_NAME.fullmatch(f"{run_name(run)}_x")
    task = re.search("_task-([a-zA-Z0-9+]+)", name["entities"]) if name else None
    cutoffs = {"High-pass cutoff (Hz)": high_pass, "Low-pass cutoff (Hz)": low_pass}
    cutoffs = {key: value for key, value in cutoffs.items() if value is not None}
    if sources is None:
        sources = [path for path in (run.path, run.mask, run.confounds, atlas, lut) if path is not None]
    content = {
        "RepetitionTime": t_r,
        "TaskName": task and task[1],
        **{key: metadata[key] for key in _STILL_TRUE if key in metadata},
        "SoftwareFilters": {"Butterworth": {**cutoffs, "Order": 5, "Passes": 2}} if cutoffs else "n/a",
        "NuisanceParameters": list(confounds),
        "Sources": [_uri(path, run.source, out_dir) for path in sources],
        "ConfigurationHash": configuration,
        **more,
    }
    return {key: value for key, value in content.items() if value is not None}


def _uri(path, source, out_dir):
    """BIDS URI of a file in one of the two data sets, else its URI in the file system."""
    path = Path(path).absolute()
    for name, root in (("", out_dir), ("preprocessed", source)):
        if root is not None and path.is_relative_to(root := Path(root).absolute()):
            return f"bids:{name}:{quote(path.relative_to(root).as_posix(), safe='/+')}"
    return path.as_uri()


def write_dataset_description(out_dir, source=None, *, configuration=None):
    """Write ``dataset_description.json`` of a folder of outputs; any number of processes may do so at once.

    If the folder has no ``.bidsignore`` yet, that is written too. It tells BIDS's validator of the names that BIDS
    doesn't have.

    Parameters
    ----------
    out_dir : str or path-like
        The folder, which must exist.
    source : str or path-like, optional
        Root of the data set that the runs are from. It becomes the link "preprocessed", and what it is generated by is
        put behind gpumask.
    configuration : str, optional
        Hash of all parameters. Those of the cohort that was begun last stay; sidecars have their own.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If the folder is another program's, or its outputs are from another `source`, or a description is no JSON.
    OSError
        If it can't be written.
    """
    path = Path(out_dir, "dataset_description.json")
    source = source and Path(source).absolute()
    of_source = source / "dataset_description.json" if source else None
    before = _generators(_read_json(of_source)) if source and of_source.is_file() else []
    content = {
        "Name": "gpumask: region time series",
        "BIDSVersion": "1.11.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "gpumask", "Version": __version__}, *before],
        "DatasetLinks": {"preprocessed": source.as_uri()} if source else {},
        "ConfigurationHash": configuration,
    }
    with replacing(path) as part:
        if path.is_file():
            there = _read_json(path)
            if [generator.get("Name") for generator in _generators(there)][:1] != ["gpumask"]:
                msg = f"{path} describes a data set that gpumask didn't make. Choose another folder for the outputs."
                raise ValueError(msg)
            links = there.get("DatasetLinks", {})
            if {**links, **content["DatasetLinks"]} != {**content["DatasetLinks"], **links}:
                msg = (
                    f"{path.parent} has outputs of {links['preprocessed']}, and now those of "
                    f"{content['DatasetLinks']['preprocessed']} were to be added. Choose another folder for them."
                )
                raise ValueError(msg)
            content["DatasetLinks"] |= links
        write(part, json_lines({k: v for k, v in content.items() if v not in (None, {})}))
    ignored = path.with_name(".bidsignore")
    if not ignored.exists():
        with replacing(ignored) as part:
            write(part, [f"{pattern}\n" for pattern in _IGNORED])
    return path


def _generators(description):
    """What a data set was generated by, the latest first; before BIDS 1.4 that was one "PipelineDescription"."""
    return description.get("GeneratedBy") or [
        description[key] for key in ("PipelineDescription",) if key in description
    ]
