"""Masks computed from runs, by nilearn's own functions."""

import inspect
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import nibabel as nib

from gpumask import process
from gpumask.images.device_arrays import device_of_image, image_of, is_pair
from gpumask.images.errors import ImageError
from gpumask.maskers.base import described

_TEMPLATES = {"whole-brain-template": "whole-brain", "gm-template": "gm", "wm-template": "wm"}
_CHOSEN_BY_US = ("memory", "verbose", "mask_type")


def computed_mask(
    imgs: Any, strategy: str, mask_args: Mapping[str, Any] | None, *, verbose: int = 0, **for_several: Any
) -> nib.Nifti1Image:
    """Compute a mask as nilearn does.

    Parameters
    ----------
    imgs : path, nibabel image, or list of these
        Passed to nilearn's function.
    strategy : {"background", "epi", "whole-brain-template", "gm-template", "wm-template"}
    mask_args : dict or None
        Further arguments of nilearn's function. A warning lists those that it doesn't have.
    verbose : int
        Passed to nilearn's function.
    **for_several
        With any, `imgs` is a list of runs, for nilearn's ``compute_multi_*``. Those that aren't None and that the
        function has are passed to it.

    Returns
    -------
    nibabel.nifti1.Nifti1Image
        3D, of 0 and 1.

    Raises
    ------
    ImportError
        If nilearn is missing.
    ValueError
        If the strategy is unknown, or nilearn finds no mask.
    ImageError
        If nilearn can't read the images.
    """
    if strategy == "template" and for_several:
        process.warn("Masking strategy 'template' is deprecated. Please use 'whole-brain-template' instead.")
        strategy = "whole-brain-template"
    if strategy not in ("background", "epi", *_TEMPLATES):
        msg = (
            f"Unknown value of mask_strategy '{strategy}'. Acceptable values are 'background', 'epi', "
            "'whole-brain-template', 'gm-template', and 'wm-template'."
        )
        raise ValueError(msg)
    compute = _function(strategy, multi=bool(for_several))
    known = set(inspect.signature(compute).parameters).difference(_CHOSEN_BY_US)
    given = {name: value for name, value in for_several.items() if name in known and value is not None}
    own = dict(mask_args or {})
    if skipped := [name for name in own if name not in known]:
        process.warn(f"The following arguments are not supported by the masking strategy '{strategy}': {skipped}")
    given |= {name: value for name, value in own.items() if name in known}
    try:
        return compute(imgs, verbose=max(0, int(verbose) - 1), **given)
    except (EOFError, OSError, zlib.error) as error:  # nibabel's, which name no file
        msg = f"No mask can be computed from {described(imgs)}: {type(error).__name__}: {error}. Create the file again."
        raise ImageError(msg) from error


def for_nilearn(imgs: Any) -> Any:
    """Return a run, or a list, as nilearn accepts it: pairs as nibabel images; TypeError for a run on a GPU."""
    if isinstance(imgs, list):
        return [for_nilearn(one) for one in imgs]
    if (device := device_of_image(imgs)) != "cpu":
        msg = f"The run lies on {device}, but masks are computed on the host: pass a mask as mask_img."
        raise TypeError(msg)
    return image_of(imgs) if is_pair(imgs) else imgs


def _function(strategy: str, *, multi: bool) -> Callable[..., nib.Nifti1Image]:
    if find_spec("nilearn") is None:
        msg = (
            f"mask_strategy='{strategy}' computes the mask from the images with nilearn, which isn't installed. "
            "Install it (pip install 'gpumask[nilearn]'), or pass a mask as mask_img."
        )
        raise ImportError(msg)
    from nilearn import masking  # slow to import

    prefix = "compute_multi_" if multi else "compute_"
    if strategy in _TEMPLATES:
        return partial(getattr(masking, f"{prefix}brain_mask"), mask_type=_TEMPLATES[strategy])
    return getattr(masking, f"{prefix}{strategy}_mask")
