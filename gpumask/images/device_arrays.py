"""Images around arrays of any library: pairs (array, affine), and runs that lie on a GPU."""

from typing import Any, NoReturn

import nibabel as nib
import numpy as np

from gpumask import backend, cuda_runtime, dlpack
from gpumask.images.errors import ImageError
from gpumask.images.readers import Blocks, Stored, Take, check_dimensions, stored

_LARGEST_NIFTI1 = 2**15 - 1  # voxels along an axis


def is_pair(imgs: object) -> bool:
    """Whether `imgs` is a pair (array, affine), a tuple, and so one image instead of two."""
    return isinstance(imgs, tuple) and len(imgs) == 2 and dlpack.has_dlpack(imgs[0])


def image_of(pair: tuple[Any, Any]) -> nib.Nifti1Image:
    """Return a nibabel image around the array of a pair (array, affine), without a copy.

    Parameters
    ----------
    pair : tuple of two arrays
        An array of any library that supports DLPack, shape (x, y, z) or (x, y, z, t), of integers or of floats with
        32 bits or more; and its affine, array-like of shape (4, 4), from voxels to mm.

    Returns
    -------
    nibabel.nifti1.Nifti1Image
        Around an array of NumPy or, if it lies on a GPU, of CuPy.

    Raises
    ------
    TypeError
        If the array can't be shared by DLPack, or one of the two has an unsupported dtype.
    DimensionError, ImageError, ValueError
        If the array isn't 3D or 4D, is empty, or the affine has another shape.
    DeviceError
        If the array lies on a GPU that CuPy can't use.
    """
    array = dlpack.imported(pair[0], "array")
    if array.dtype.kind not in "iuf" or array.dtype.itemsize * (array.dtype.kind == "f") == 2:
        msg = (
            f"The array of (array, affine) holds values of type {array.dtype}, expected integers, or floats of 32 bits "
            "or more. Convert it first."
        )
        raise TypeError(msg)
    check_dimensions(array.shape, "The array of (array, affine)")
    kind = nib.Nifti1Image if max(array.shape) <= _LARGEST_NIFTI1 else nib.Nifti2Image
    return kind(array, _affine(pair[1]), dtype=array.dtype)


def _affine(given):
    host = backend.to_host(dlpack.imported(given, "affine")) if dlpack.has_dlpack(given) else np.asarray(given)
    if host.shape != (4, 4):
        msg = (
            f"The affine of (array, affine) has the shape {host.shape}, expected (4, 4). Several arrays are a list of "
            "pairs: [(array, affine), ...]."
        )
        raise ValueError(msg)
    if host.dtype.kind not in "iuf":
        msg = f"The affine of (array, affine) holds values of type {host.dtype}, expected real numbers."
        raise TypeError(msg)
    return host.astype(np.float64)


def device_of_image(imgs: object) -> str:
    """Return where the data of one image lie, "cpu" or "cuda:N", without opening it."""
    if is_pair(imgs):
        return dlpack.lies_on(imgs[0])  # type: ignore[index]
    if isinstance(imgs, nib.spatialimages.SpatialImage) and dlpack.has_dlpack(imgs.dataobj):
        return dlpack.lies_on(imgs.dataobj)
    return "cpu"


class OnDevice(Stored):
    """Volumes of an array on a GPU, of CuPy or another library, whose blocks are views of it on this GPU.

    What the thread's current stream had queued when the image was opened, filling the array for example, has finished
    then: runs are read in other streams.
    """

    def _bind(self, dataobj):
        array = dlpack.imported(dataobj, self.name)
        self.device = dlpack.lies_on(dataobj)
        cuda_runtime.await_current_stream(self.device)
        self._array = array[..., np.newaxis] if self.ndim == 3 else array
        self.dtype = self._array.dtype

    def identity(self) -> NoReturn:
        """Refuse: the bytes would be needed on the host."""
        msg = (
            f"{self.name} lies on {self.device}: to keep its signals in a cache, its bytes would have to be "
            "downloaded. Pass a copy in host memory, or use no cache."
        )
        raise ImageError(msg)

    def blocks(self, n: int, take: Take | None = None) -> Blocks:
        """Iterate over up to `n` volumes at a time, as views of shape (k, n_z, n_y, n_x) in any memory order."""
        for start in range(0, self.n_volumes, n):
            yield self._array[..., start : start + n].T

    def downloaded(self) -> Stored:
        """Return the image in host memory, where atlases and masks are compiled."""
        image, array = self.image, self._array.get(order="A").reshape(self.shape, order="A")
        return stored(type(image)(array, image.affine, image.header), self.name)
