"""Region time series from fMRI runs: nilearn's NiftiLabelsMasker, compiled once, streamed once, on CPU or GPU."""

from importlib import import_module, metadata

__version__ = metadata.version("gpumask")
__all__ = [
    "MultiNiftiLabelsMasker",
    "MultiNiftiMapsMasker",
    "NiftiLabelsMasker",
    "NiftiMapsMasker",
    "__version__",
    "kernels",
    "signal",
    "transform_together",
]

_LAZY = {
    "MultiNiftiLabelsMasker": "gpumask.maskers.multi",
    "MultiNiftiMapsMasker": "gpumask.maskers.multi",
    "NiftiLabelsMasker": "gpumask.maskers.labels",
    "NiftiMapsMasker": "gpumask.maskers.maps",
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
