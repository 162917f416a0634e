"""Files that are one atlas of a cohort together, such as those of a cortex and a subcortex."""

from dataclasses import dataclass, replace
from typing import Any

from gpumask.cohort.atlas_file import AtlasFile


@dataclass(frozen=True)
class CombinedAtlasFile:
    """Label images, or files of dense labels, whose regions are the columns of one atlas, part after part.

    Voxels with a label in several parts belong to the first: see `gpumask.images.combined_atlas.CombinedAtlas`.

    Attributes
    ----------
    parts : tuple of AtlasFile
        At least two. Their names aren't used.
    name : str
        As in `AtlasFile`. Empty: the names of the parts in one.

    Raises
    ------
    ValueError
        If parts are of different kinds, or seeds.
    """

    parts: tuple[AtlasFile, ...]
    name: str = ""
    kind = "labels"
    is_dense_labels = False  # CIFTI-2 outputs need the grayordinates of one file

    def __post_init__(self):
        object.__setattr__(self, "name", self.name or "".join(part.name for part in self.parts))
        self._check_kinds()
        dense = [part.path for part in self.parts if part.grayordinates]
        if dense and len(dense) < len(self.parts):
            other = next(part.path for part in self.parts if not part.grayordinates)
            msg = f"{self.origin}: {dense[0]} is of grayordinates, and {other} of volumes. Combine files of one kind."
            raise ValueError(msg)

    def _check_kinds(self):
        for part in self.parts:
            if part.kind not in ("", "labels"):
                msg = f"{part.path} has {part.kind}, but only label images can be combined. Give it as an atlas alone."
                raise ValueError(msg)

    @property
    def grayordinates(self) -> bool:
        """See `AtlasFile`."""
        return self.parts[0].grayordinates

    @property
    def images(self) -> tuple[str, ...]:
        """See `AtlasFile`."""
        return tuple(image for part in self.parts for image in part.images)

    @property
    def files(self) -> tuple[str, ...]:
        """See `AtlasFile`."""
        return tuple(dict.fromkeys(file for part in self.parts for file in part.files))

    @property
    def options(self) -> dict[str, Any]:
        """See `AtlasFile`; those of each part, in their order."""
        of_dense = {"elements": "grayordinates"} if self.grayordinates else {}
        return {"combined": [part.options for part in self.parts], **of_dense}

    @property
    def named_by(self) -> str:
        """See `AtlasFile`."""
        return ", ".join(part.named_by for part in self.parts)

    @property
    def origin(self) -> str:
        """See `AtlasFile`."""
        return " + ".join(self.images)

    def with_kind(self) -> "CombinedAtlasFile":
        """See `AtlasFile`; ValueError if a part has maps."""
        return replace(self, parts=tuple(part.with_kind() for part in self.parts))
