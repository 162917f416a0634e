"""Maps: one weight per voxel and region, of probabilistic atlases and components; and their masks."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import scipy

from gpumask import process
from gpumask.images.grid import Grid, resample_nearest, voxel_mapping
from gpumask.images.labels import covered_part, resample_mask
from gpumask.images.opening import ImageLike
from gpumask.images.volumes import open_volumes

_NON_FINITE = "Non-finite values detected. These values will be replaced with zeros."
_NO_MAP_IN_MASK = "No map left after applying mask to the maps image."

_LARGEST = 1e100  # weight; least squares need its square

_Map = tuple[np.ndarray, np.ndarray]  # voxels and weights


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps on their grid, and their mask. Only weights that aren't 0 are kept.

    Attributes
    ----------
    voxels : ndarray of int32 or int64, shape (n_entries,)
        Voxel of each weight, flat in Fortran order, map after map; ascending within a map.
    offsets : ndarray of int64, shape (n_maps + 1,)
        Map ``k`` has the entries ``offsets[k]:offsets[k + 1]``.
    weights : ndarray of float32 or float64, shape (n_entries,)
        Finite. float64 if the image's values are.
    grid : Grid
    mask : ndarray of bool, shape (x, y, z), or None
        Voxels outside the mask belong to no region. Until `with_mask_resampled`, its grid may differ from the maps'.
    mask_grid : Grid or None
    """

    voxels: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray
    grid: Grid
    mask: np.ndarray | None = None
    mask_grid: Grid | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[_Map]:
        """Iterate over the maps: voxels and weights of each."""
        for start, stop in pairwise(self.offsets.tolist()):
            yield self.voxels[start:stop], self.weights[start:stop]

    @property
    def counts(self) -> np.ndarray:
        """Number of voxels of each map: int64, shape (n_maps,)."""
        return np.diff(self.offsets)

    @cached_property
    def identity(self) -> str:
        """Hash of maps, grid and mask."""
        digest = hashlib.blake2b(digest_size=16)
        mask_affine = None if self.mask_grid is None else self.mask_grid.affine
        arrays = self.voxels, self.offsets, self.weights, self.grid.affine, self.mask, mask_affine
        digest.update(repr(self.grid.shape).encode())
        for array in arrays:
            digest.update(repr(None if array is None else (array.dtype.str, array.shape)).encode())
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def resampled(self, grid: Grid, *, n_threads: int = 1) -> "Maps":
        """Return the maps on another grid (linear interpolation), without mask.

        Equals ``nilearn.image.resample_img(interpolation="linear")`` but for rounding, including the borders: voxels
        whose centre lies outside the outermost voxel centres of the maps become 0, and values are clipped to the range
        of all maps and 0.

        Parameters
        ----------
        grid : Grid
        n_threads : int
            Threads, each resampling some of the maps. Results don't depend on it.

        Raises
        ------
        ValueError
            If no map is left.
        """
        matrix, offset = voxel_mapping(self.grid, grid)
        # Whether a voxel lies outside is decided on the coordinates of the whole image, as their last bit may decide.
        inside = resample_nearest(np.ones(self.grid.shape, np.uint8), self.grid, grid)
        clip = min(self.weights.min(initial=0.0), 0.0), max(self.weights.max(initial=0.0), 0.0)
        one = partial(
            _resample, shape=self.grid.shape, target=grid.shape, inside=inside, matrix=matrix, offset=offset, clip=clip
        )
        resampled = _of(
            process.in_threads(one, self, n_threads), self.weights.dtype, replace(grid, name=self.grid.name)
        )
        if not len(resampled.voxels):
            msg = (
                f"No map left after resampling maps_img. {self.grid.name} and {grid.name} may lie in "
                "different spaces: compare their affines."
            )
            raise ValueError(msg)
        return resampled

    def with_mask_resampled(self, grid: Grid) -> "Maps":
        """Return the maps with their mask on another grid (nearest voxel); ValueError if the mask is empty there."""
        assert self.mask is not None
        assert self.mask_grid is not None
        mask, mask_grid = resample_mask(self.mask, self.mask_grid, grid)
        return replace(self, mask=mask, mask_grid=mask_grid)

    @cached_property
    def masked(self) -> "Maps":
        """The maps inside the mask, which must be on the same grid. ValueError if no map is left."""
        if self.mask is None:
            return self
        inside = self.mask.ravel(order="F")[self.voxels]
        if not inside.any():
            raise ValueError(_NO_MAP_IN_MASK)
        kept = np.concatenate([[0], np.cumsum(inside)])[self.offsets]
        return replace(self, voxels=self.voxels[inside], offsets=kept, weights=self.weights[inside])

    def chosen(self, ids: np.ndarray) -> "Maps":
        """Return some of the maps, by index."""
        if len(ids) == len(self):
            return self
        every = list(self)
        return _of((every[k] for k in ids), self.weights.dtype, self.grid)

    def overlap(self) -> bool:
        """Whether two maps have a positive weight at the same voxel; less than the rounding of 1 doesn't count."""
        positive = self.weights >= np.finfo(self.weights.dtype).eps
        return bool(np.bincount(self.voxels[positive], minlength=1).max(initial=0) > 1)

    def largest(self) -> np.ndarray:
        """Return the number, from 1, of the map with the largest weight (without sign) at each voxel; 0 without any.

        int32, shape (x, y, z), in Fortran order. Of equal weights, the last map's counts.
        """
        order = np.argsort(np.abs(self.weights), kind="stable")
        numbers = np.zeros(self.grid.n_voxels, np.int32)
        numbers[self.voxels[order]] = np.repeat(np.arange(1, len(self) + 1), self.counts)[order]
        return numbers.reshape(self.grid.shape, order="F")

    def dense(self) -> np.ndarray:
        """Return the weights as an array, shape (x, y, z, n_maps), in Fortran order."""
        volumes = np.zeros((len(self), self.grid.n_voxels), self.weights.dtype)
        for volume, (voxels, weights) in zip(volumes, self, strict=True):
            volume[voxels] = weights
        return volumes.T.reshape(*self.grid.shape, len(self), order="F")

    def painted(self, signals: np.ndarray) -> np.ndarray:
        """Return volumes in which each voxel is the sum of the signals, times its weights in the maps.

        Parameters
        ----------
        signals : ndarray, shape (n_maps,) or (n_volumes, n_maps)

        Returns
        -------
        ndarray, shape (x, y, z) or (x, y, z, n_volumes), Fortran order
            In the dtype of `signals`; 0 outside the mask.
        """
        volumes = np.zeros((*signals.shape[:-1], self.grid.n_voxels), signals.dtype)
        for volume, values in zip(np.atleast_2d(volumes), np.atleast_2d(signals), strict=True):
            each = np.repeat(values.astype(np.float64), self.counts)
            volume[:] = np.bincount(self.voxels, each * self.weights, len(volume))
        return volumes.T.reshape(self.grid.shape + signals.shape[:-1], order="F")


def load_maps(maps_img: ImageLike | Iterable[ImageLike]) -> Maps:
    """Load maps, one at a time.

    Parameters
    ----------
    maps_img : path, nibabel image, or list of 3D images
        4D, or 3D for a single map.

    Returns
    -------
    Maps
        Without a mask. Values that aren't finite become 0, with a warning. Integers and float32 become float32, other
        floats and scaled integers float64, as in nilearn.

    Raises
    ------
    ValueError
        If every value is 0, the largest weight isn't from 1e-100 to 1e100, or a file is missing or can't be read as an
        image.
    TypeError
        If `maps_img` isn't an image, or has the wrong number of dimensions.
    """
    volumes = open_volumes(maps_img).downloaded()
    loaded = volumes.loaded_dtype
    dtype = np.dtype(np.float64 if loaded.kind == "f" and loaded.itemsize > 4 else np.float32)
    sparse = process.in_threads(_sparse, volumes.chunks(1), process.n_cores())
    finite = True

    def noting() -> Iterator[_Map]:
        nonlocal finite
        for voxels, weights, is_finite in sparse:
            finite = finite and is_finite
            yield voxels, weights

    maps = _of(noting(), dtype, volumes.grid)
    if not finite:
        process.warn(_NON_FINITE)
    if not len(maps.voxels):
        msg = f"maps_img contains no map. Every voxel of {volumes.name} is 0."
        raise ValueError(msg)
    largest = float(np.abs(maps.weights).max())
    if not 1 / _LARGEST <= largest <= _LARGEST:
        msg = (
            f"The largest weight in {volumes.name} is {largest:.3g}, expected {1 / _LARGEST:g} to {_LARGEST:g}. Is it "
            "the right file? Else scale the maps."
        )
        raise ValueError(msg)
    return maps


def covered_maps(given: Maps, placed: Maps, view: Grid, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the voxels of some maps, and those inside the run's field of view and the mask.

    Parameters
    ----------
    given : Maps
        On their own grid, where voxels are counted.
    placed : Maps
        As applied to the run: its mask, if any, is the one that counts.
    view : Grid
        Field of view of the run.
    ids : ndarray of int, shape (n_regions,)

    Returns
    -------
    voxels, covered : ndarray of int64, shape (n_regions,)
    share : ndarray of float64, shape (n_regions,)
        Of the weights, without their signs, those inside.
    """
    inside = covered_part(given.grid, view, placed.mask, placed.mask_grid).ravel(order="F")
    counts, shares = np.zeros((2, len(given)), np.int64), np.zeros(len(given))
    for k, (voxels, weights) in enumerate(given):
        within, sizes = inside[voxels], np.abs(weights.astype(np.float64))
        counts[:, k] = len(voxels), np.count_nonzero(within)
        shares[k] = sizes[within].sum() / sizes.sum() if len(voxels) else 0.0
    return counts[0, ids], counts[1, ids], shares[ids]


def _of(maps: Iterable[_Map], dtype: np.dtype, grid: Grid) -> Maps:
    index = np.int32 if grid.n_voxels < 2**31 else np.int64
    each = [(voxels.astype(index, copy=False), weights.astype(dtype, copy=False)) for voxels, weights in maps]
    offsets = np.concatenate([[0], np.cumsum([len(voxels) for voxels, _ in each], dtype=np.int64)])
    voxels = np.concatenate([np.zeros(0, index), *(voxels for voxels, _ in each)])
    return Maps(voxels, offsets, np.concatenate([np.zeros(0, dtype), *(weights for _, weights in each)]), grid)


def _sparse(chunk):
    """Voxels and weights of a map, and whether all its values are finite."""
    values = chunk.data[0] if (chunk.slope, chunk.inter) == (1.0, 0.0) else chunk.scaled()[0]
    voxels = np.flatnonzero(values != 0)  # of booleans, in a tenth of the time
    weights = values[voxels]
    finite = np.isfinite(weights) if weights.dtype.kind == "f" else np.ones(len(weights), bool)
    return voxels[finite].astype(np.int32 if len(values) < 2**31 else np.int64), weights[finite], finite.all()


def _resample(one: _Map, *, shape, target, inside, matrix, offset, clip) -> _Map:
    """Resample a map: the box around its voxels, to the box of the target that this reaches."""
    voxels, weights = one
    nothing = voxels[:0], weights[:0]
    if not len(voxels):
        return nothing
    coordinates = np.array(np.unravel_index(voxels, shape, order="F"))
    first, last = coordinates.min(axis=1) - 1, coordinates.max(axis=1) + 1  # with the zeros around the map
    box = np.zeros(last - first + 1, weights.dtype)
    box[tuple(coordinates - first[:, np.newaxis])] = weights
    square = np.diag(matrix) if matrix.ndim == 1 else matrix
    corners = np.stack(np.meshgrid(*zip(first, last, strict=True), indexing="ij"), axis=-1).reshape(-1, 3)
    reached = np.linalg.solve(square, (corners - offset).T)
    low = np.maximum(np.floor(reached.min(axis=1)).astype(int), 0)
    high = np.minimum(np.ceil(reached.max(axis=1)).astype(int) + 1, target)
    if np.any(low >= high):
        return nothing
    resampled = np.empty(high - low, weights.dtype)
    scipy.ndimage.affine_transform(box, matrix, offset + square @ low - first, resampled.shape, resampled, order=1)
    there = tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))
    resampled *= inside[there]
    resampled = resampled.clip(*clip).ravel(order="F")
    found = np.flatnonzero(resampled != 0)
    at = np.array(np.unravel_index(found, high - low, order="F")) + low[:, np.newaxis]
    strides = np.array([1, target[0], math.prod(target[:2])])
    return strides @ at, resampled[found]
