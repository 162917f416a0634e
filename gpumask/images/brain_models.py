"""Brain models: what the grayordinates of a CIFTI-2 file are, and how those of two files correspond."""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar
from xml.etree.ElementTree import Element

import numpy as np
from nibabel.cifti2 import CIFTI_BRAIN_STRUCTURES

from gpumask.images.errors import ImageError
from gpumask.images.grid import Grid

_DIGITS = re.compile(r"[0-9 \t\r\n]*")
_SURFACE, _VOXELS = "CIFTI_MODEL_TYPE_SURFACE", "CIFTI_MODEL_TYPE_VOXELS"


@dataclass(frozen=True, eq=False)
class Surface:
    """The vertices of one structure's mesh that have a grayordinate.

    Attributes
    ----------
    structure : str
        Name in CIFTI, such as "CIFTI_STRUCTURE_CORTEX_LEFT".
    n_vertices : int
        Vertices of the whole mesh.
    start : int
        First grayordinate.
    vertices : ndarray of int64
        Vertex of each grayordinate from `start` on.
    """

    structure: str
    n_vertices: int
    start: int
    vertices: np.ndarray


@dataclass(frozen=True, eq=False)
class BrainModels:
    """The grayordinates of a file: vertices of surfaces, and voxels. The counterpart of a volume's `Grid`.

    Attributes
    ----------
    elements : str
        What has a position, for messages.
    n_grayordinates : int
    surfaces : tuple of Surface
    positions : ndarray of int64, shape (n,)
        Grayordinates that are voxels.
    voxels : ndarray of int64, shape (n, 3)
        Their indices in `volume`.
    volume : Grid or None
        Grid of the voxels, in mm; None without voxels.
    key : str
        Hash of all of this. Grayordinates of files with equal keys correspond one by one.
    name : str
        Name of the file in messages.
    """

    elements: ClassVar[str] = "grayordinates"

    n_grayordinates: int
    surfaces: tuple[Surface, ...]
    positions: np.ndarray
    voxels: np.ndarray
    volume: Grid | None
    key: str
    name: str = field(default="image", repr=False)

    @property
    def description(self) -> str:
        """How many grayordinates there are, in words."""
        return f"{self.n_grayordinates:,}"

    def matches(self, other: "BrainModels") -> bool:
        """Whether the grayordinates are the same, in the same order."""
        return self.key == other.key

    def positions_in(self, other: "BrainModels") -> np.ndarray:
        """Find the grayordinates of another file: by structure and vertex number, and by the indices of voxels.

        Parameters
        ----------
        other : BrainModels

        Returns
        -------
        ndarray of int64, shape (n_grayordinates,)
            Position in `other` of each grayordinate, -1 where it has none. Voxels of another structure count as the
            same voxels.

        Raises
        ------
        ValueError
            If a structure has another mesh there, or the voxels have another grid.
        """
        if self.matches(other):
            return np.arange(self.n_grayordinates)
        found = np.full(self.n_grayordinates, -1, np.int64)
        theirs = {surface.structure: surface for surface in other.surfaces}
        for surface in self.surfaces:
            if (there := theirs.get(surface.structure)) is None:
                continue
            if there.n_vertices != surface.n_vertices:
                msg = (
                    f"{self.name} and {other.name} have different meshes: the surface {surface.structure} has "
                    f"{surface.n_vertices} vertices in the first file, and {there.n_vertices} in the second. Resample "
                    "one of them (wb_command -cifti-resample, or for GIFTI -metric-resample, -label-resample)."
                )
                raise ValueError(msg)
            own = slice(surface.start, surface.start + len(surface.vertices))
            found[own] = _places(surface.vertices, there.vertices, there.start + np.arange(len(there.vertices)))
        if self.volume is not None and other.volume is not None:
            if not self.volume.matches(other.volume):
                msg = (
                    f"{self.name} and {other.name} have their voxels on different grids: shapes {self.volume.shape} "
                    f"and {other.volume.shape}, affines\n{self.volume.affine}\nand\n{other.volume.affine}\nResample "
                    "one of them (wb_command -cifti-resample)."
                )
                raise ValueError(msg)
            flat, there_flat = (np.ravel_multi_index(models.voxels.T, self.volume.shape) for models in (self, other))
            found[self.positions] = _places(flat, there_flat, other.positions)
        return found

    @property
    def contents(self) -> str:
        """Surfaces and the number of voxels, in words."""
        parts = [f"{surface.structure} of {surface.n_vertices} vertices" for surface in self.surfaces]
        return ", ".join(parts + [f"{len(self.positions)} voxels"] * bool(len(self.positions)))


def _places(numbers, theirs, positions):
    """Position of each of `numbers` whose equal is in `theirs`; -1 of the others. Both are unique, in any order."""
    order = np.argsort(theirs)
    nearest = order[np.minimum(np.searchsorted(theirs, numbers, sorter=order), len(order) - 1)]
    return np.where(theirs[nearest] == numbers, positions[nearest], -1)


def parse_brain_models(element: Element, name: str) -> BrainModels:
    """Parse and check the brain models of a CIFTI-2 header.

    Parameters
    ----------
    element : xml.etree.ElementTree.Element
        The MatrixIndicesMap of brain models.
    name : str
        Name of the file in messages.

    Raises
    ------
    ImageError
        If the models leave or share a grayordinate, or have vertices or voxels that don't exist, or twice the same.
    KeyError, ValueError
        If an attribute is missing, or isn't a number.
    """
    models = sorted(element.findall("BrainModel"), key=lambda model: int(model.attrib["IndexOffset"]))
    volume = _grid(_only(element, "Volume", name), name)
    surfaces: list[Surface] = []
    positions, voxels, end = [], [], 0
    for model in models:
        structure, kind = model.attrib["BrainStructure"], model.attrib["ModelType"]
        start, count = int(model.attrib["IndexOffset"]), int(model.attrib["IndexCount"])
        if structure not in CIFTI_BRAIN_STRUCTURES:
            raise _error(name, f"{structure!r} isn't a structure of CIFTI-2")
        if start != end or count < 1:
            raise _error(
                name, f"{structure} has the grayordinates from {start} to {start + count - 1}, expected from {end} on"
            )
        end += count
        if kind == _SURFACE:
            vertices = _integers(_only(model, "VertexIndices", name), (-1,))
            n = int(model.attrib["SurfaceNumberOfVertices"])
            _check_count(name, structure, "vertices", count, vertices)
            if any(surface.structure == structure for surface in surfaces):
                raise _error(name, f"{structure} has two surfaces")
            if vertices.min() < 0 or vertices.max() >= n:
                what = f"{structure} has the vertex {vertices.max()} of a mesh of {n}, expected from 0 to {n - 1}"
                raise _error(name, what if vertices.min() >= 0 else f"{structure} has the vertex {vertices.min()}")
            if not _are_unique(vertices):
                raise _error(name, f"{structure} has a vertex twice")
            surfaces.append(Surface(structure, n, start, vertices))
        elif kind == _VOXELS:
            some = _integers(_only(model, "VoxelIndicesIJK", name), (-1, 3))
            _check_count(name, structure, "voxels", count, some)
            if volume is None:
                raise _error(name, f"{structure} has voxels, but the header has no volume for them")
            if some.min() < 0 or (some >= volume.shape).any():
                raise _error(name, f"{structure} has voxels outside the volume of shape {volume.shape}")
            positions.append(np.arange(start, end))
            voxels.append(some)
        else:
            raise _error(name, f"{structure} has the model type {kind!r}, expected surface or voxels")
    if not models:
        raise _error(name, "there are none")
    at = np.concatenate([np.zeros(0, np.int64), *positions])
    ijk = np.concatenate([np.zeros((0, 3), np.int64), *voxels])
    if volume is not None and len(ijk) and not _are_unique(np.ravel_multi_index(ijk.T, volume.shape)):
        raise _error(name, "a voxel occurs twice")
    volume = volume if len(ijk) else None
    return BrainModels(end, tuple(surfaces), at, ijk, volume, _key(surfaces, at, ijk, volume), name)


def _error(name: str, what: str) -> ImageError:
    return ImageError(f"The brain models of {name} are wrong: {what}. Copy or create the file again.")


def _only(parent: Element, tag: str, name: str) -> Element | None:
    found = parent.findall(tag)
    if len(found) > 1:
        raise _error(name, f"{parent.get('BrainStructure', 'the header')} has {len(found)} elements {tag}")
    return found[0] if found else None


def _check_count(name, structure, what, count, found):
    if len(found) != count:
        raise _error(name, f"{structure} has {len(found)} {what}, but by its index count {count}")


def _are_unique(numbers):
    return bool(np.diff(np.sort(numbers)).all())


def _integers(element: Element | None, shape: Sequence[int]) -> np.ndarray:
    text = "" if element is None else (element.text or "").strip()
    if _DIGITS.fullmatch(text):  # int64 clips larger numbers; later checks refuse those
        return np.fromstring(text, np.int64, sep=" ").reshape(shape)
    return np.array(list(map(int, text.split())), np.int64).reshape(shape)  # ten times slower


def _grid(volume: Element | None, name: str) -> Grid | None:
    if volume is None:
        return None
    space = _only(volume, "TransformationMatrixVoxelIndicesIJKtoXYZ", name)
    shape = tuple(int(n) for n in volume.attrib["VolumeDimensions"].split(","))
    if space is None or len(shape) != 3 or not 0 < math.prod(map(float, shape)) < 2**31:
        raise _error(name, f"the volume has the shape {shape} and {'no' if space is None else 'an'} affine")
    affine = np.array((space.text or "").split(), np.float64).reshape(4, 4)
    affine[:3] *= 10.0 ** (3 + int(space.attrib["MeterExponent"]))  # mm
    return Grid(shape, affine, name)


def _key(surfaces, positions, voxels, volume):
    digest = hashlib.blake2b(digest_size=16)
    for surface in surfaces:
        digest.update(repr((surface.structure, surface.n_vertices, surface.start, len(surface.vertices))).encode())
        digest.update(surface.vertices.tobytes())
    digest.update(positions.tobytes() + voxels.tobytes())
    if volume is not None:
        digest.update(repr(volume.shape).encode() + volume.affine.tobytes())
    return digest.hexdigest()
