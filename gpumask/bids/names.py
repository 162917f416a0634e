"""Names of BIDS and of other files: the only place that parses and builds them."""

import os
import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from gpumask.bids.runs import Run

_IMAGE_EXTENSION = re.compile(
    r"((\.(d(tseries|label|scalar)|p(tseries|conn|scalar))(?=\.nii))?\.(nii|img|hdr|mgh|mgz|mnc|head|brik|par|rec)"
    r"|(\.(func|label|shape|time))?\.gii)(\.(gz|bz2|zst))?$",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?P<entities>(?:[a-zA-Z]+-[a-zA-Z0-9+]+_)*)(?P<suffix>[a-zA-Z0-9]+)(?P<extension>(?:\..*)?)")
_OUTPUT = re.compile(r"(.+)_stat-([a-zA-Z0-9]+)(?:_desc-([a-zA-Z0-9]+))?_([a-zA-Z0-9]+)\.tsv")
_PAIR = re.compile(r"([a-zA-Z0-9]+)-([a-zA-Z0-9+]+)")
_OWNERS = re.compile(r"(sub-[a-zA-Z0-9]+)(?:_(ses-[a-zA-Z0-9]+))?(?=_|$)")
_OF_AN_ATLAS = re.compile(r"(?:^|_)(?:atlas|seg|scale|desc)-([a-zA-Z0-9+]+)")
_AFTER_ATLAS = ("res", "den", "label", "desc")  # in BIDS's order of entities
_SPACE = ("space", "cohort", "res", "den")
_NATIVE = "func"  # fMRIPrep's name for the space of images whose names have none
_NOT_OF_THE_RUN = {*_SPACE, "desc", "echo", "part", "hemi"}  # may differ between a run's image, mask and confounds
# Further entities of atlases, masks and statistics that say nothing about the run.
_NOT_IDENTIFYING = {*_NOT_OF_THE_RUN, "tpl", "label", "atlas", "seg", "scale", "stat", "from", "to", "mode"}
# Entities of which a name has at least one if it is BIDS, and not only looks so ("my-data.nii").
_IDENTIFYING = {
    *("sub", "ses", "sample", "task", "tracksys", "acq", "ce", "trc", "stain", "rec", "dir", "run", "mod", "flip"),
    *("inv", "mt", "proc", "split", "recording", "chunk"),
}
_ENTITY = re.compile(r"(?:^|_)([a-zA-Z]+)-([a-zA-Z0-9+]+)(?=_|\.|$)")
_COLUMNS = {"participant_id": "sub", "session": "ses", "task": "task", "run": "run", "space": "space"}
CONFOUNDS = {(suffix, "confounds", ".tsv") for suffix in ("timeseries", "regressors")}
"""Suffix, "desc" and extension of fMRIPrep's confounds tables."""


class BidsName(NamedTuple):
    """A parsed name.

    Attributes
    ----------
    entities : dict of str
        Labels by key, in the order of the name: ``{"sub": "01", "task": "rest"}``.
    suffix : str
        For example "bold".
    extension : str
        For example ".nii.gz"; may be empty.
    """

    entities: dict[str, str]
    suffix: str
    extension: str

    @property
    def of_run(self) -> dict[str, str]:
        """The entities that all files of a run share."""
        return {key: label for key, label in self.entities.items() if key not in _NOT_OF_THE_RUN}

    @property
    def space(self) -> str:
        """The space as in fMRIPrep's --output-spaces: "MNIPediatricAsym:cohort-1:res-2"; "func" without one."""
        further = (f"{key}-{self.entities[key]}" for key in _SPACE[1:] if key in self.entities)
        return ":".join((self.entities.get("space", _NATIVE), *further))


def space_entities(space: str) -> dict[str, str]:
    """Entities of a space as `BidsName.space` writes it; empty for "func"."""
    label, *further = space.split(":")
    own = {} if label in (_NATIVE, "") else {"space": label}
    return own | dict(part.split("-", 1) for part in further if "-" in part)


class OutputName(NamedTuple):
    """A parsed name of one of a run's tables, see `output_name`; `desc` may be empty."""

    run: str
    atlas: str
    stat: str
    desc: str
    suffix: str


def parse_name(name: str) -> BidsName | None:
    """Parse a file name; None if it isn't BIDS-like (entities, suffix, extension) or repeats an entity."""
    match = _NAME.fullmatch(name)
    pairs = [pair.split("-") for pair in match["entities"].split("_")[:-1]] if match else []
    entities = dict(pairs)
    if not match or len(entities) < len(pairs):
        return None
    return BidsName(entities, match["suffix"], match["extension"])


def labels_in(name: str) -> dict[str, str]:
    """Labels by key in a name that begins with a subject, even if the rest isn't BIDS-like; empty for other names."""
    return dict(part.split("-", 1) for part in name.split("_") if "-" in part) if name.startswith("sub-") else {}


def entity_columns(name: str) -> dict[str, str | None]:
    """What tables of a cohort say of a run by its name: "participant_id" ("sub-01"), "session", "task", "run", "space".

    None for the entities that the name lacks; "name" is the name itself, and the last key.
    """
    found = labels_in(name)
    labels = {column: found.get(key) for column, key in _COLUMNS.items()}
    return {**labels, "participant_id": f"sub-{found['sub']}" if found else None, "name": name}


def identifying_entities(name: str) -> dict[str, str]:
    """Entities by which a file's name says which run it belongs to; empty for names that aren't BIDS-like.

    All but those of the space, the description ("desc"), echo and part, and what an atlas or mask shows. Old and
    slightly wrong names are read too: ``sub-1_task-rest_bold_confounds.tsv``. Runs 1 and 01 are the same.
    """
    pairs = _ENTITY.findall(name)
    entities = {key: label_of(key, label) for key, label in pairs if key not in _NOT_IDENTIFYING}
    return entities if entities.keys() & _IDENTIFYING and len(dict(pairs)) == len(pairs) else {}


def join_entities(entities: Mapping[str, str]) -> str:
    """The beginning of a name: "sub-1_task-rest"."""
    return "_".join(f"{key}-{label}" for key, label in entities.items())


def folder_label(name: str, key: str) -> str | None:
    """Label of a folder such as "sub-01"; None if the folder isn't one of `key`."""
    match = re.fullmatch(f"{key}-([a-zA-Z0-9]+)", name)
    return match and match[1]


def label_of(key: str, text: object) -> str:
    """A label given with or without its key; "1" and "01" are the same run."""
    label = str(text).removeprefix(f"{key}-")
    return (label.lstrip("0") or "0") if key == "run" and label.isdecimal() else label


def image_stem(path: str | os.PathLike) -> str:
    """File name of an image without its extension."""
    return _IMAGE_EXTENSION.sub("", Path(path).name)


def sidecar_path(path: Path) -> Path:
    """JSON file that describes a table or an image; files of one name and several extensions share it."""
    return path.with_name(f"{image_stem(path) if path.suffix == '.nii' else path.stem}.json")


def run_name(run: Run) -> str:
    """Beginning of the names of a run's outputs.

    BIDS names keep their entities except "desc": ``sub-1_task-rest_desc-preproc_bold.nii.gz`` becomes
    ``sub-1_task-rest``. Other names only lose the extension.
    """
    if run.name is not None:
        return run.name
    stem = image_stem(run.path)
    return join_entities({key: label for key, label in _subject_entities(stem).items() if key != "desc"}) or stem


def run_folder(name: str) -> str:
    """Folder of a run's outputs by its name: "sub-1/ses-2/func"; empty for names without a subject."""
    owners = _OWNERS.match(name)
    return "/".join((*filter(None, owners.groups()), "func")) if owners else ""


def is_run_name(name: str) -> bool:
    """Whether files can be named so."""
    return bool(re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.+-]*", name))


def atlas_name(path: str | os.PathLike | None) -> str:
    """Label of an atlas, from its file name; "atlas" without one.

    It joins the labels of the entities "atlas", "seg", "scale" and "desc", or else all letters and digits of the name.
    """
    stem = image_stem(path or "atlas")
    return alphanumeric("".join(_OF_AN_ATLAS.findall(stem)) or stem) or "atlas"


def lookup_table_of(image: str, names: Iterable[str]) -> str | None:
    """Name of the look-up table of a label image, among the names in a folder, or None.

    Parameters
    ----------
    image : str
        File name of the image.
    names : iterable of str
        The TSV file of the image's name is its table. Else, by BIDS's inheritance principle, the one with the image's
        suffix and some of its entities, and the most of those that there are: ``atlas-A_dseg.tsv`` for
        ``tpl-T_atlas-A_res-2_dseg.nii.gz``. A table without "atlas" isn't one of an atlas.

    Raises
    ------
    ValueError
        If several have the most entities.
    """
    names = {name for name in names if name.endswith(".tsv")}
    for stem in (image_stem(image), image.removesuffix(".gz").rpartition(".")[0]):
        if f"{stem}.tsv" in names:
            return f"{stem}.tsv"
    of_image, numbers = parse_name(image), {}
    for name in sorted(names):
        parsed = parse_name(name)
        if (
            parsed
            and of_image
            and (parsed.suffix, parsed.extension) == (of_image.suffix, ".tsv")
            and parsed.entities.items() <= of_image.entities.items()
            and ("atlas" in parsed.entities) == ("atlas" in of_image.entities)
        ):
            numbers[name] = len(parsed.entities)
    best = [name for name, number in numbers.items() if number == max(numbers.values())]
    if len(best) > 1:
        msg = f"{image} has {len(best)} candidates for its look-up table, expected one: {', '.join(best)}"
        raise ValueError(msg)
    return best[0] if best else None


def image_of_confounds(name: str, desc: str) -> str | None:
    """Name of the image with the label `desc` that fMRIPrep's confounds table belongs to; None for other tables."""
    parsed = parse_name(name)
    if not parsed or (parsed.suffix, parsed.extension) not in (("timeseries", ".tsv"), ("regressors", ".tsv")):
        return None
    if list(parsed.entities.items())[-1:] != [("desc", "confounds")]:
        return None
    return f"{join_entities({**parsed.entities, 'desc': desc})}_bold.nii.gz"


def output_name(
    run: Run,
    atlas: str,
    stat: str,
    suffix: str = "timeseries",
    extension: str = ".tsv",
    *,
    desc: str = "",
    entity: str = "atlas",
) -> str:
    """File name of one of a run's outputs: ``<run>_atlas-<atlas>_stat-<stat>[_desc-<desc>]_<suffix><extension>``.

    In BIDS names the atlas precedes "res" and "den". `entity` "seg" gives the names of XCP-D 0.7 to 0.14.
    """
    name = run_name(run)
    entities = _subject_entities(f"{name}_{suffix}")
    before = list(takewhile(lambda key: key not in _AFTER_ATLAS, entities))
    after = {key: label for key, label in entities.items() if key not in before}
    name = join_entities({key: entities[key] for key in before}) or name
    of_run = (name, f"{entity}-{alphanumeric(atlas)}", join_entities(after))
    parts = (*of_run, f"stat-{alphanumeric(stat)}", desc and f"desc-{desc}", suffix)
    return "_".join(filter(None, parts)) + extension


def run_output_name(run: Run, suffix: str, *, desc: str = "", extension: str = ".tsv") -> str:
    """File name of an output that belongs to a run, not to an atlas: ``<run>[_desc-<desc>]_<suffix><extension>``."""
    return "_".join(filter(None, (run_name(run), desc and f"desc-{alphanumeric(desc)}", suffix))) + extension


def parse_output_name(name: str) -> OutputName | None:
    """Parse a name that `output_name` gave to a table; None for other names."""
    if match := _OUTPUT.fullmatch(name):
        parts = match[1].split("_")
        for k in range(len(parts) - 1, 0, -1):  # one pattern for all of a name takes the square of its length
            pair = _PAIR.fullmatch(parts[k])
            if pair is None:
                break
            if pair[1] in ("atlas", "seg") and pair[2].isalnum() and parts[:k] != [""]:
                run = "_".join(parts[:k] + parts[k + 1 :])
                return OutputName(run, pair[2], match[2], match[3] or "", match[4])
    return None


def _subject_entities(name):
    """Entities of a subject's BIDS name without an extension; empty for other names."""
    parsed = parse_name(name)
    return parsed.entities if parsed and not parsed.extension and next(iter(parsed.entities), "") == "sub" else {}


def alphanumeric(text: str) -> str:
    """A text as a label in a name: its letters and digits."""
    return re.sub("[^a-zA-Z0-9]", "", text)
