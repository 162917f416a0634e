"""Arrays of any library that supports DLPack: where they lie, and their exchange with NumPy and CuPy without copies."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import array_api_compat
import numpy as np

from gpumask import backend, devices
from gpumask.backend import Array

_F = TypeVar("_F", bound=Callable[..., Any])

# DLDeviceType of the DLPack standard; managed memory and page-locked host memory can be read like the others.
_HOST, _CUDA = {1, 3}, {2, 13}
_REAL = "biuf"  # kinds of NumPy's dtypes


def has_dlpack(value: object) -> bool:
    """Whether an object is an array that supports DLPack: one of NumPy, CuPy, JAX, PyTorch or another library."""
    return hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__")


def lies_on(array: Array) -> str:
    """Return the device of an array that supports DLPack: "cpu" or "cuda:N".

    Raises
    ------
    TypeError
        If it is neither the host nor a CUDA device.
    """
    kind, index = (int(part) for part in array.__dlpack_device__())
    if kind in _HOST:
        return "cpu"
    if kind not in _CUDA:
        msg = (
            f"A {kind_of(array)} lies on a device of DLPack's type {kind}, expected the host (1) or a CUDA device "
            "(2). Copy it to the host first."
        )
        raise TypeError(msg)
    return f"cuda:{index}"


def imported(array: Any, name: str) -> Array:
    """Return an array of any library as NumPy's, or as CuPy's if it lies on a GPU, without a copy.

    Parameters
    ----------
    array : array that supports DLPack
        What its library has queued on the current stream is waited for by that stream.
    name : str
        Name of the array in messages.

    Returns
    -------
    numpy.ndarray or cupy.ndarray
        It shares its memory with `array`, and may be read-only.

    Raises
    ------
    TypeError
        If it isn't such an array, has a mask, isn't of real numbers, or can't be shared: bfloat16, for example, or a
        tensor of PyTorch that requires its gradient.
    DeviceError
        If it lies on a GPU that CuPy can't use.
    """
    if not has_dlpack(array) or isinstance(array, np.ma.MaskedArray | np.matrix):
        msg = (
            f"`{name}` must be an array of NumPy, CuPy or another library that supports DLPack, got a "
            f"{kind_of(array)}. {_remedy(array, name)}"
        )
        raise TypeError(msg)
    if not (backend.is_numpy(array) or backend.is_cupy(array)):
        array = _shared(array, name)
    if array.dtype.kind not in _REAL:
        msg = f"`{name}` must be an array of real numbers, got {array.dtype}. Convert it first."
        raise TypeError(msg)
    return array


def on_host(array: Any, name: str) -> np.ndarray:
    """Return an array of any library, or anything array-like, as a NumPy array; `name` is that in messages."""
    if backend.is_numpy(array) or not has_dlpack(array):
        return np.asarray(array)
    return backend.to_host(imported(array, name))


def _shared(array, name):
    device = lies_on(array)
    try:
        return np.from_dlpack(array) if device == "cpu" else _on_gpu(array, device)
    except backend.DeviceError:
        raise
    except Exception as error:  # each library raises its own classes
        dtype = f" of {array.dtype}" if hasattr(array, "dtype") else ""
        msg = (
            f"`{name}`, a {kind_of(array)}{dtype}, can't be shared by DLPack: {type(error).__name__}: {error}. "
            "Convert it to float32 or another type of NumPy, or pass a copy (of PyTorch: array.detach())."
        )
        raise TypeError(msg) from error


def _on_gpu(array, device):
    """The array as CuPy's; DeviceError if CuPy can't use its GPU."""
    try:
        return backend.cupy_from_dlpack(array, device)
    except Exception as error:
        status = devices.cuda_status(int(device.partition(":")[2]))
        if not status.problem:
            raise  # the array is the problem
        msg = f"An array lies on {device}, but CuPy can't use this GPU: {status.problem}. {status.remedy}"
        raise backend.DeviceError(msg) from error


def kind_of(value: object) -> str:
    """Return the name of an object's class for messages, such as "pandas.DataFrame" or "list"."""
    package, name = type(value).__module__.partition(".")[0], type(value).__qualname__
    return name if package == "builtins" else f"{package}.{name}"


def _remedy(value, name):
    if isinstance(value, np.ma.MaskedArray):
        return f"Its mask would be ignored: pass {name}.filled(...)."
    if isinstance(value, list | tuple | np.matrix):
        return f"Pass numpy.asarray({name})."
    for method in ("to_numpy", "toarray", "compute"):  # of tables, sparse matrices, dask
        if hasattr(value, method):
            return f"Pass {name}.{method}()."
    return "Convert it to an array."


def _is_computed_on(array):
    """Whether the kernels compute with an array as it is: one of NumPy, CuPy or a library of the array API."""
    if isinstance(array, np.ma.MaskedArray | np.matrix):
        return False
    if backend.is_numpy(array) or backend.is_cupy(array):
        return array.dtype.kind in _REAL
    computes = hasattr(array, "__array_namespace__") and hasattr(array, "__setitem__") and has_dlpack(array)
    return computes and array_api_compat.is_writeable_array(array)  # arrays of JAX aren't


def computable(array: Any, name: str) -> Array:
    """Return an array that the kernels can compute with: `array` itself, or what `imported` makes of it."""
    return array if _is_computed_on(array) else imported(array, name)


def across_libraries(function: _F) -> _F:
    """Let a kernel accept arrays of any library that supports DLPack, and return arrays of that library.

    The kernel computes with NumPy or CuPy where the library is another one; arrays are shared, not copied. The first
    argument decides about the result. Without a namespace of the array API that has ``from_dlpack``, the result stays
    one of NumPy or CuPy.

    Parameters
    ----------
    function : callable
        Its first argument is an array.

    Returns
    -------
    callable
        It raises TypeError, as `imported`, if the first argument isn't an array.
    """
    signature = inspect.signature(function)
    first = next(iter(signature.parameters))

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # whose error names the function
        given = bound.arguments[first]
        arrays = {name: value for name, value in bound.arguments.items() if name == first or has_dlpack(value)}
        bound.arguments |= {name: computable(value, name) for name, value in arrays.items()}
        result = function(*bound.args, **bound.kwargs)
        return result if bound.arguments[first] is given else _returned(result, given)

    return cast("_F", wrapper)


def _returned(result, given):
    try:
        namespace = array_api_compat.array_namespace(given)
    except TypeError:  # none that array_api_compat supports
        return result
    if not hasattr(namespace, "from_dlpack"):
        return result
    return namespace.from_dlpack(array_api_compat.array_namespace(result).ascontiguousarray(result))  # JAX needs that
