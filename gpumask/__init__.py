"""Time series of regions from fMRI runs: nilearn's maskers, compiled once, streamed once, on CPU or GPU."""

from importlib import import_module, metadata

__version__ = metadata.version("gpumask")
__all__ = [
    "MultiNiftiLabelsMasker",
    "MultiNiftiMapsMasker",
    "MultiNiftiMasker",
    "NiftiLabelsMasker",
    "NiftiMapsMasker",
    "NiftiMasker",
    "NiftiSpheresMasker",
    "__version__",
    "clean_img",
    "correlation_maps",
    "kernels",
    "signal",
    "smooth_img",
    "transform_together",
]

_LAZY = {
    "MultiNiftiLabelsMasker": "gpumask.maskers.multi",
    "MultiNiftiMapsMasker": "gpumask.maskers.multi",
    "MultiNiftiMasker": "gpumask.maskers.multi",
    "NiftiLabelsMasker": "gpumask.maskers.labels",
    "NiftiMapsMasker": "gpumask.maskers.maps",
    "NiftiMasker": "gpumask.maskers.voxels",
    "NiftiSpheresMasker": "gpumask.maskers.spheres",
    "clean_img": "gpumask.image_to_image",
    "correlation_maps": "gpumask.maskers.correlation",
    "smooth_img": "gpumask.image_to_image",
    "transform_together": "gpumask.maskers.together",
}
_MODULES = ("kernels", "signal")


def __getattr__(name):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _MODULES:
        return import_module(f"gpumask.{name}")
    msg = f"module 'gpumask' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__():
    return __all__
