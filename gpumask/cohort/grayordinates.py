"""Which atlases and runs go together: those of grayordinates, or those of volumes; and options of volumes alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpumask.bids.runs import Run
from gpumask.images.cifti_headers import KINDS
from gpumask.images.gifti import is_gifti
from gpumask.images.grayordinates import is_dense, open_dense
from gpumask.settings import Settings, check_dense_settings, refuse_for_grayordinates
from gpumask.text_tables import listed

if TYPE_CHECKING:
    import os

    from gpumask.cohort.atlas_file import AtlasFile
    from gpumask.cohort.combined_atlas import CombinedAtlasFile
    from gpumask.cohort.own_atlases import OwnAtlas

_SIDES = {"CIFTI_STRUCTURE_CORTEX_LEFT": "L", "CIFTI_STRUCTURE_CORTEX_RIGHT": "R"}


def check_atlases(
    atlases: "Sequence[AtlasFile | CombinedAtlasFile | OwnAtlas]",
    settings: Settings,
    mask: "str | os.PathLike | None",
    images: str,
) -> None:
    """Check that atlases can be extracted together, and with these settings.

    Parameters
    ----------
    atlases : sequence of AtlasFile, CombinedAtlasFile or OwnAtlas
    settings : Settings
    mask : str, path-like or None
        Mask for runs without one.
    images : str
        Label "desc" of the images that the confounds are for.

    Raises
    ------
    ValueError
        If some are of grayordinates and others of volumes; or if those of grayordinates have a mask, or settings that
        have no meaning for them.
    """
    dense = [atlas.origin for atlas in atlases if atlas.grayordinates]
    others = [atlas.origin for atlas in atlases if not atlas.grayordinates]
    if not dense:
        return
    if others:
        msg = (
            f"A run has grayordinates or volumes, and these atlases are of both: of grayordinates {listed(dense)}; of "
            f"volumes {listed(others)}. Give two commands, one for each kind. They may share the output folder."
        )
        raise ValueError(msg)
    try:
        check_dense_settings(settings)
        if mask:
            refuse_for_grayordinates({"mask_img": str(mask)})
    except ValueError as error:
        msg = f"{dense[0]} is an atlas of grayordinates: {error}"
        raise ValueError(msg) from error
    if images != "preproc":
        msg = (
            f"{dense[0]} is an atlas of grayordinates, but fMRIPrep makes only volumes *_desc-{images}_bold. Choose "
            "another strategy for the confounds."
        )
        raise ValueError(msg)


def hemisphere_of(atlases: "Sequence[AtlasFile | CombinedAtlasFile | OwnAtlas]") -> str:
    """Return "L" or "R" if all atlases are GIFTI files of this hemisphere's cortex, and "" if none is GIFTI.

    Raises
    ------
    ValueError
        If only some are, or their structures differ or aren't a hemisphere's cortex.
    """
    files = [path for atlas in atlases for path in atlas.images]
    if not any(map(is_gifti, files)):
        return ""
    parts = {path: _structure(path) if is_gifti(path) else "CIFTI-2" for path in files}
    sides = {_SIDES.get(part) for part in parts.values()}
    if None in sides or len(sides) > 1:
        has = "; ".join(f"{path}: {part}" for path, part in parts.items())
        msg = (
            "Atlases of surfaces (.label.gii) must all be of the same hemisphere, to find its runs in a folder: "
            f"{has}. Give a command for each, or list the runs in a table."
        )
        raise ValueError(msg)
    (side,) = sides
    return str(side)


def _structure(path):
    return open_dense(path, tuple(KINDS)).grid.surfaces[0].structure


def check_runs(atlases: "Sequence[AtlasFile | CombinedAtlasFile | OwnAtlas]", runs: Sequence[Run]) -> None:
    """Check by names and headers that runs are of the atlases' kind.

    Raises
    ------
    ValueError
        If some aren't, or have grayordinates and a mask.
    """
    of_grayordinates = atlases[0].grayordinates
    others = [run.path for run in runs if is_dense(run.path) != of_grayordinates]
    paths = listed(atlas.origin for atlas in atlases)
    if others and of_grayordinates:
        msg = (
            f"Atlases of grayordinates ({paths}) don't apply to volumes: {listed(others)}. Give dense series "
            "(*.dtseries.nii), or atlases of volumes."
        )
        raise ValueError(msg)
    if others:
        msg = (
            f"Atlases of volumes ({paths}) don't apply to grayordinates: {listed(others)}. Give images of volumes, or "
            "atlases of grayordinates (*.dlabel.nii)."
        )
        raise ValueError(msg)
    if of_grayordinates and (masked := [run for run in runs if run.mask]):
        msg = (
            f"{masked[0].path} has grayordinates, to which no mask of volumes applies: {masked[0].mask}. Give the run "
            "without a mask."
        )
        raise ValueError(msg)
