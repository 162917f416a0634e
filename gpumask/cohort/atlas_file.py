"""A file that is the atlas of a cohort: its name, look-up table and kind."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpumask.bids.names import atlas_name, lookup_table_of
from gpumask.choices import check_choice
from gpumask.images.dense_atlas import map_number
from gpumask.images.grayordinates import KINDS as DENSE_KINDS
from gpumask.images.grayordinates import is_dense, open_dense
from gpumask.images.volumes import open_volumes

KINDS = ("labels", "maps", "seeds")
"""What an atlas can be: labels or maps, of volumes or of grayordinates, or a table of seeds."""


@dataclass(frozen=True)
class AtlasFile:
    """An atlas of a cohort.

    Attributes
    ----------
    path : str or path-like
        Label image, 4D image of maps, or table of seeds; or dense labels or maps of grayordinates (.dlabel.nii,
        .dscalar.nii, .dtseries.nii).
    lut : str, path-like or None
        Look-up table of an image, with the columns "index" and "name". None: the one that `lut_beside` finds, and for
        grayordinates the names in the file.
    name : str
        Label of the entity "atlas". Empty or None: from the name of the file.
    background : int or float
        Of a label image: label of the voxels outside all regions.
    find_lut : bool
        Whether a look-up table is looked for next to the image.
    kind : {"", "labels", "maps", "seeds"}
        Empty: that of an image, by its header. A `Configuration` replaces it by "maps", for an image of several
        volumes, or "labels".
    radius : float or None
        Of seeds: radius in mm of the spheres for which the table has none. None: the voxel nearest to the seed.
    allow_overlap : bool
        Of seeds: whether spheres may share voxels.
    label_map : str, int or None
        Of dense labels: name, or index from 0, of the map. None: the file must have one map. A `Configuration`
        replaces it by the index.
    grayordinates : bool
        Whether the atlas is of grayordinates, by the name or the header of its file.

    Raises
    ------
    ValueError
        If seeds have a look-up table, something else has a radius, or anything but dense labels has a label map.
    """

    path: str | os.PathLike
    lut: str | os.PathLike | None = None
    name: str = ""
    background: float = 0
    find_lut: bool = True
    kind: str = ""
    radius: float | None = None
    allow_overlap: bool = False
    label_map: str | int | None = None
    grayordinates: bool = field(init=False)

    def __post_init__(self):
        check_choice("kind", self.kind, ("", *KINDS))
        if self.kind == "seeds" and self.lut:
            msg = f"{self.path} is a table of seeds, which has their names. Expected no look-up table, got {self.lut}."
            raise ValueError(msg)
        if self.kind != "seeds" and self.radius is not None:
            msg = f"{self.path} isn't a table of seeds. Expected no radius, got {self.radius}."
            raise ValueError(msg)
        object.__setattr__(self, "path", os.path.abspath(self.path))  # noqa: PTH100 - links are kept
        object.__setattr__(self, "grayordinates", self.kind != "seeds" and is_dense(self.path))
        names_itself = self.kind == "seeds" or self.grayordinates
        lut = self.lut or (lut_beside(self.path) if self.find_lut and not names_itself else None)
        object.__setattr__(self, "lut", lut and os.path.abspath(lut))  # noqa: PTH100
        image = Path(self.path).with_suffix("") if self.kind == "seeds" else self.path  # atlas_name expects an image
        object.__setattr__(self, "name", self.name or atlas_name(image))

    @property
    def is_dense_labels(self) -> bool:
        """Whether it has labels of grayordinates."""
        return self.grayordinates and self.kind == "labels"

    @property
    def options(self) -> dict[str, Any]:
        """What decides the numbers next to the contents of the files; for JSON."""
        if self.kind == "seeds":
            return {"kind": self.kind, "radius": self.radius}
        of_dense = {"elements": "grayordinates"} if self.grayordinates else {}
        if self.kind == "maps":
            return {"kind": self.kind, **of_dense}
        number = {"label_map": self.label_map} if self.grayordinates else {}
        return {"background_label": self.background, **number, **of_dense}

    @property
    def named_by(self) -> str:
        """Where the names of the columns are from."""
        itself = self.kind == "seeds" or self.grayordinates
        return os.fspath(self.lut or (self.path if itself else {"maps": "numbers"}.get(self.kind, "labels")))

    @property
    def origin(self) -> str:
        """How messages call its file."""
        return os.fspath(self.path)

    def with_kind(self) -> "AtlasFile":
        """The same with its kind, and the index of its label map, from the header; errors as of `load_dense_atlas`."""
        if self.grayordinates and (image := open_dense(self.path, tuple(DENSE_KINDS))).header.kind == "labels":
            return replace(self, kind="labels", label_map=map_number(image, self.label_map))
        if self.label_map is not None:
            msg = f"{self.path} isn't a file of dense labels. Expected no label map, got {self.label_map!r}."
            raise ValueError(msg)
        if self.grayordinates:
            return replace(self, kind="maps")
        return self if self.kind else replace(self, kind="maps" if open_volumes(self.path).n_volumes > 1 else "labels")


def lut_beside(path: str | os.PathLike) -> Path | None:
    """Look-up table of a label image, or None: see `gpumask.bids.names.lookup_table_of`.

    It is in the image's folder, or else in the nearest one above that has it, up to the root of a BIDS data set.

    Raises
    ------
    ValueError
        If several tables apply equally.
    """
    folder = Path(os.path.abspath(path)).parent  # noqa: PTH100 - data sets are trees of links
    above = [folder, *folder.parents]
    root = next((k for k, place in enumerate(above) if (place / "dataset_description.json").is_file()), 0)
    for place in above[: root + 1]:
        try:
            if name := lookup_table_of(Path(path).name, os.listdir(place)):  # noqa: PTH208 - names alone
                return place / name
        except ValueError as error:
            msg = f"{place}: {error}. Choose one: lut (--lut)."
            raise ValueError(msg) from error
    return None
