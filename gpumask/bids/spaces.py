"""The spaces of atlases, masks and runs, by their names."""

import functools
import os
import re
from pathlib import Path
from typing import NamedTuple

from gpumask.bids.names import identifying_entities, image_stem, parse_name

# Templates of TemplateFlow and BIDS. Each name of a template is a space of its own.
_TEMPLATES = (
    *("ICBM452AirSpace", "ICBM452Warp5Space", "IXI549Space", "MNI305", "MNIColin27", "MNI152Lin", "MNI152NLin6Asym"),
    *("MNI152NLin6Sym", "MNI152NLin2009aAsym", "MNI152NLin2009aSym", "MNI152NLin2009bAsym", "MNI152NLin2009bSym"),
    *("MNI152NLin2009cAsym", "MNI152NLin2009cSym", "MNIInfant", "MNIPediatricAsym", "NIHPD", "NKI", "OASIS30ANTs"),
    *(
        "PNC",
        "RESILIENT",
        "Talairach",
        "UNCInfant",
        "dhcpAsym",
        "dhcpSym",
        "dhcpVol",
        "fsLR",
        "fsaverage",
        "Fischer344",
    ),
    *("MouseIn", "NMT31Sym", "WHS"),
)
# Other names: of the template, or of a space of the subject. BIDS writes MNI152NLin6ASym, TemplateFlow MNI152NLin6Asym.
_ALIASES = {
    "MNI152NLin6": "MNI152NLin6Asym",
    "FSLMNI152": "MNI152NLin6Asym",
    "MNI152NLin2009c": "MNI152NLin2009cAsym",
    "MNI152NLin2009b": "MNI152NLin2009bAsym",
    "MNI152NLin2009a": "MNI152NLin2009aAsym",
    "MNIColin": "MNIColin27",
    "Colin27": "MNIColin27",
    "MNIPediatric": "MNIPediatricAsym",
    "OASIS30AntsOASISAnts": "OASIS30ANTs",
    "func": "bold",
    "boldref": "bold",
    "epi": "bold",
    "anat": "T1w",
    "T1": "T1w",
}
_NATIVE = ("bold", "T1w", "T2w")  # differ between subjects
_CANONICAL = {name.lower(): name for name in (*_TEMPLATES, *_NATIVE)}
_CANONICAL |= {alias.lower(): name for alias, name in _ALIASES.items()}
_WORDS = {name.lower() for name in _TEMPLATES if name.startswith("MNI152")}  # distinct enough without a key


class Space(NamedTuple):
    """What a file's name says about its space.

    Attributes
    ----------
    name : str
        By the table of aliases, or as it is written; with the cohort, if any: "MNIPediatricAsym:cohort-1".
    is_known : bool
        Whether it is in the table.
    subject : str or None
        Of a subject's own space.
    """

    name: str
    is_known: bool
    subject: str | None = None


def stated_space(path: str | os.PathLike) -> Space | None:
    """Space by a file's name; None if the name doesn't state one.

    It is the entity "tpl" or "space" with "cohort" ("MNIInfant+1" is cohort 1), or the one template whose whole name is
    a word of the file's name, as in ``Schaefer400_MNI152NLin2009cAsym_2mm.nii.gz``.
    """
    return _stated_space(Path(path).name)


@functools.lru_cache(4096)
def _stated_space(file_name):
    name = image_stem(file_name)
    labels = dict(re.findall(r"(?:^|_)(tpl|space|cohort)-([a-zA-Z0-9+]+)", name))
    label = labels.get("space", labels.get("tpl"))
    if label is None:
        words = {_CANONICAL[word] for word in re.split(r"[_.]", name.lower()) if word in _WORDS}
        return Space(words.pop(), is_known=True) if len(words) == 1 else None
    label, _, plus = label.partition("+")
    cohort = labels.get("cohort", plus)
    known = _CANONICAL.get(label.lower())
    subject = identifying_entities(file_name).get("sub") if known in _NATIVE else None
    return Space((known or label) + (f":cohort-{cohort}" if cohort else ""), known is not None, subject)


def space_contradiction(path: str | os.PathLike, run_path: str | os.PathLike) -> tuple[str, bool] | None:
    """Compare the space of an atlas or mask with a run's.

    Parameters
    ----------
    path, run_path : str or path-like

    Returns
    -------
    tuple of (str, bool), or None
        How they differ, and whether surely: not if one isn't in the table. None if they are the same, or a name doesn't
        state its space.
    """
    own, of_run = stated_space(path), stated_space(run_path)
    parsed = parse_name(Path(run_path).name)
    if of_run is None and parsed and parsed.suffix == "bold" and "sub" in parsed.entities and own and own.subject:
        of_run = Space("bold", is_known=True, subject=parsed.entities["sub"])  # without an entity it is the run's own
    if own is None or of_run is None:
        return None
    message = f"{os.fspath(path)} is in the space {own.name}, {os.fspath(run_path)} in {of_run.name}"
    name, cohort = _parts(own)
    run_space, run_cohort = _parts(of_run)
    if name.lower() != run_space.lower():
        return message, own.is_known and of_run.is_known
    if cohort and run_cohort and cohort != run_cohort:
        return message, True
    if own.subject and of_run.subject and own.subject != of_run.subject:
        return f"{message}, of another subject", True
    return None


def _parts(space):
    name, _, cohort = space.name.partition(":cohort-")
    return name, cohort.lstrip("0")
