"""fMRIPrep's own segmentations of each run: FreeSurfer's, as ``*_desc-aparcaseg_dseg`` and ``*_desc-aseg_dseg``."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpumask.bids.names import join_entities, parse_name
from gpumask.bids.runs import Problem, Run, RunAtlas

SEGMENTATIONS = ("aparcaseg", "aseg")


def with_segmentation(
    runs: Sequence[Run], root: str | os.PathLike, desc: str, name: str, lut: str | os.PathLike | None = None
) -> tuple[list[Run], list[Problem]]:
    """Give each run its segmentation in its own space.

    It is ``*_desc-<desc>_dseg.nii[.gz]``: next to the run with the run's entities, or, for runs in the space T1w, in
    the folder ``anat`` of the session or the subject, where the name has no space.

    Parameters
    ----------
    runs : sequence of Run
    root : str or path-like
        Folder of the derivatives.
    desc : {"aparcaseg", "aseg"}
    name : str
        Name of the atlas.
    lut : str, path-like or None
        Look-up table of all.

    Returns
    -------
    runs : list of Run
    problems : list of Problem
        Runs without one; the reason lists the files that were looked for.
    """
    own_lut = str(Path(lut).absolute()) if lut else None
    found, problems = [], []
    for run in runs:
        wanted = _candidates(run, Path(root).absolute(), desc)
        path = next((path for path in wanted if os.path.lexists(path)), None)
        if path is None:
            looked_for = ", ".join(path.relative_to(Path(root).absolute()).as_posix() for path in wanted)
            reason = f"has no segmentation desc-{desc} in its space: looked for {looked_for}"
            problems.append(Problem(os.fspath(run.path), reason, run.name))
        else:
            found.append(replace(run, atlases=(*run.atlases, RunAtlas(name, str(path), own_lut))))
    return found, problems


def _candidates(run, root, desc):
    parsed, folder = parse_name(Path(run.path).name), Path(run.path).parent
    entities = {key: label for key, label in parsed.entities.items() if key not in ("desc", "echo", "part")}
    stems = [folder / join_entities(entities)]
    if entities.get("space") == "T1w":
        session, subject = f"_ses-{entities['ses']}" if "ses" in entities else "", f"sub-{entities['sub']}"
        if session:
            stems.append(folder.parent / "anat" / f"{subject}{session}")
        stems.append(root / subject / "anat" / subject)
    return [Path(f"{stem}_desc-{desc}_dseg{end}") for stem in stems for end in (".nii.gz", ".nii")]
