"""Spheres around seeds as regions."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np

from gpumask.engine.regions import RegionsOnGrid
from gpumask.images.grid import Grid
from gpumask.images.labels import resample_mask
from gpumask.kernels.segments import Segments

_LARGEST_RADIUS = 500  # mm, larger than any head
_COUNTED = 10**6  # voxels; counting takes 0.15 s, and from here on the volume is right to 1e-3
_CELL = 2 * math.sqrt(3)  # mm: points whose coordinates are equal once truncated are less than this apart


@dataclass(frozen=True, eq=False)
class SpheresOnGrid(RegionsOnGrid):
    """Spheres on the grid of a run.

    Attributes
    ----------
    spheres : SphereRegions
    """

    spheres: "SphereRegions"

    @property
    def stay_integers(self) -> bool:
        """True, as in nilearn: the signals of runs of small integers are then float32."""
        return True

    @cached_property
    def image(self) -> nib.Nifti1Image:
        """Number of each voxel's sphere, from 1, in int32. Where spheres overlap, the last one counts."""
        numbers = np.zeros(self.grid.n_voxels, np.int32)
        numbers[self.segments.indices] = np.repeat(self.ids + 1, self.segments.counts)
        return nib.Nifti1Image(numbers.reshape(self.grid.shape, order="F"), self.grid.affine)

    @cached_property
    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of voxels of each sphere if the grid had no borders, and how many of them are extracted.

        The number is computed from the volume where the box around a sphere has more than a million voxels.
        """
        spheres, affine = self.spheres, self.grid.affine
        voxels = []
        for number, (seed, radius) in enumerate(zip(spheres.coordinates, spheres.radii, strict=True)):
            low, high = _box(seed, radius or 0.0, affine)
            if radius and np.prod(high - low + 1) > _COUNTED:
                voxels.append(round(4 / 3 * math.pi * radius**3 / abs(np.linalg.det(affine[:3, :3]))))
                continue
            # Plane by plane, so that a large radius needs little memory.
            planes = (_indices((x, *low[1:]), (x, *high[1:])) for x in np.arange(low[0], high[0] + 1))
            within = sum(int(_within(seed, radius, plane, affine).sum()) for plane in planes)
            own = self.segments.indices[slice(*self.segments.bounds[number : number + 2])]
            own = np.stack(np.unravel_index(own, self.grid.shape, order="F")).astype(np.float64)
            voxels.append(within + int((~_within(seed, radius, own, affine)).sum()))
        return np.array(voxels, np.int64), self.segments.counts

    def painted(self, signals: np.ndarray) -> np.ndarray:
        """Paint signals into volumes: where spheres overlap, the mean of theirs.

        Parameters
        ----------
        signals : ndarray, shape (n_spheres,) or (n_volumes, n_spheres)

        Returns
        -------
        ndarray, shape (x, y, z) or (x, y, z, n_volumes), Fortran order
            In the signals' dtype; 0 outside the spheres.
        """
        segments, rows = self.segments, np.atleast_2d(signals)
        shares = 1 / np.maximum(np.bincount(segments.indices, minlength=self.grid.n_voxels), 1)
        volumes = np.zeros((len(rows), self.grid.n_voxels), signals.dtype)
        for volume, row in zip(volumes, rows, strict=True):
            values = np.repeat(row.astype(np.float64), segments.counts) * shares[segments.indices]
            volume[:] = np.bincount(segments.indices, values, minlength=self.grid.n_voxels)
        return volumes.T.reshape(self.grid.shape + signals.shape[:-1], order="F")


@dataclass(frozen=True, eq=False)
class SphereRegions:
    """Spheres around seeds, in mm.

    Attributes
    ----------
    coordinates : ndarray of float64, shape (n_spheres, 3)
        Seeds in mm, in the space of the runs.
    radii : sequence of (float or None), length n_spheres
        Radii in mm. None: the voxel nearest to the seed.
    allow_overlap : bool
        Whether spheres may share voxels.
    mask : ndarray of bool, shape (x, y, z), or None
        Voxels outside the mask belong to no sphere.
    mask_grid : Grid or None
        Grid of the mask.

    Raises
    ------
    ValueError
        If a coordinate isn't finite, or a radius isn't from 0 to 500 mm.
    """

    coordinates: np.ndarray
    radii: Sequence[float | None]
    allow_overlap: bool = False
    mask: np.ndarray | None = None
    mask_grid: Grid | None = None

    def __post_init__(self):
        for number, (seed, radius) in enumerate(zip(self.coordinates, self.radii, strict=True)):
            if not np.isfinite(seed).all():
                msg = f"Seed #{number} is {seed.tolist()}, expected finite coordinates in mm."
                raise ValueError(msg)
            if radius is not None and not 0 <= radius <= _LARGEST_RADIUS:
                msg = (
                    f"The radius of seed #{number} is {radius}, expected a number of mm from 0 to {_LARGEST_RADIUS}, "
                    "or None."
                )
                raise ValueError(msg)

    @cached_property
    def identity(self) -> str:
        """Hash of seeds, radii, mask and its grid."""
        digest = hashlib.blake2b(repr((self.radii, self.allow_overlap)).encode(), digest_size=16)
        digest.update(self.coordinates.tobytes())
        if self.mask is not None and self.mask_grid is not None:
            digest.update(repr(self.mask.shape).encode())
            digest.update(np.packbits(self.mask).tobytes())
            digest.update(self.mask_grid.affine.tobytes())
        return digest.hexdigest()

    @property
    def grid(self) -> None:
        """None: spheres are made on the grid of a run."""
        return

    def on(self, grid: Grid, target: str | None, keep: str) -> SpheresOnGrid:
        """Return the spheres on the grid of a run, to which the mask is resampled (nearest voxel).

        Parameters
        ----------
        grid : Grid
            Grid of the runs.
        target
            Unused: runs are never resampled.
        keep : {"found", "masked", "all"}
            With "all", spheres without a voxel have a column.

        Raises
        ------
        ValueError
            If a sphere (with "all": every sphere) has no voxel, if spheres overlap, or if the mask is empty.
        """
        mask = None
        if self.mask is not None and self.mask_grid is not None:
            mask = resample_mask(self.mask, self.mask_grid, grid)[0]
        parts = [_voxels(*sphere, grid, mask) for sphere in zip(self.coordinates, self.radii, strict=True)]
        counts = np.array([len(part) for part in parts])
        empty = np.flatnonzero(counts == 0)
        if len(empty) == len(parts) or (len(empty) and keep != "all"):
            where = grid.name if mask is None else f"{grid.name} inside the mask"
            msg = f"These spheres are empty: {empty}. No voxel of {where} is in them: check seeds, space and radius."
            raise ValueError(msg)
        indices = np.concatenate(parts)
        if not self.allow_overlap and (shared := np.bincount(indices) > 1).any():
            some = [number for number, part in enumerate(parts) if shared[part].any()]
            msg = (
                f"Overlap detected between spheres. The spheres {np.array(some)} share {int(shared.sum())} voxels of "
                f"{grid.name}. Use a smaller radius, or allow_overlap=True (--allow-overlap)."
            )
            raise ValueError(msg)
        segments = Segments(indices.astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))
        return SpheresOnGrid(grid, grid, segments, np.arange(len(parts)), (), [], self)


def _voxels(seed, radius, grid, mask):
    """The voxels of a sphere, flat in Fortran order, ascending.

    As in nilearn, these are the voxels within the radius, the voxel nearest to the seed, and the first voxel, in C
    order, whose coordinates in mm equal the seed's once both are truncated to whole numbers.
    """
    low, high = _box(seed, max(radius or 0.0, _CELL), grid.affine)
    shape = np.array(grid.shape)
    indices = _indices(np.clip(low, 0, shape), np.clip(high, -1, shape - 1))
    if mask is not None:
        indices = indices[:, mask[tuple(indices.astype(np.intp))]]
    within = _within(seed, radius, indices, grid.affine)
    truncated = np.trunc(_positions(indices, grid.affine)) == np.trunc(seed)[:, np.newaxis]
    within[np.flatnonzero(truncated.all(axis=0))[:1]] = True
    return np.sort(np.ravel_multi_index(indices[:, within].astype(np.intp), grid.shape, order="F"))


def _box(seed, reach, affine):
    """Lowest and highest indices along x, y and z of the voxels that are within `reach` mm of a seed, and some more."""
    inverse = np.linalg.inv(affine)
    middle = inverse[:3, :3] @ seed + inverse[:3, 3]
    half = reach * np.linalg.norm(inverse[:3, :3], axis=1) + 1e-3
    return np.floor(middle - half), np.ceil(middle + half)


def _indices(low, high):
    """Indices of the voxels of a box, in C order: float64, shape (3, n)."""
    axes = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)


def _within(seed, radius, indices, affine):
    """Whether voxels are within the radius, or nearest to the seed."""
    # The same operations as in nilearn, because their last bit decides about voxels at exactly the radius, and halfway
    # between voxels. Its search tree compares some distances themselves, and a mask of less than 12 voxels has no tree:
    # there, the last bit may still differ.
    nearest = np.round(np.dot(np.linalg.inv(affine), np.append(seed, 1.0)[:, np.newaxis])[:3])
    within = (indices == nearest).all(axis=0)
    if radius is not None:
        within |= ((_positions(indices, affine) - seed[:, np.newaxis]) ** 2).sum(axis=0) <= radius * radius
    return within


def _positions(indices, affine):
    """Coordinates of voxels in mm: float64, shape (3, n)."""
    n = indices.shape[1]
    columns = np.ones((max(n, 2), 4))  # the product with a single column would have other last bits
    columns[:n, :3] = indices.T
    return np.dot(affine, columns.T)[:3, :n]
