"""Columns of large arrays, a block at a time, as many as a GPU's memory holds."""

from collections.abc import Callable
from typing import TypeVar

from gpumask import backend, cuda_runtime
from gpumask.backend import Array

_MOST = 512 * 2**20  # bytes per block. Larger ones aren't faster, and this size doesn't depend on the GPU

_T = TypeVar("_T")


def each_block(function: Callable[[slice], _T], n_columns: int, bytes_per_column: int, where: Array) -> list[_T]:
    """Call a function for blocks of columns that a GPU processes one after another.

    Parameters
    ----------
    function : callable
        Gets a slice of columns. It may be called again, for fewer of them, after an error for lack of memory.
    n_columns : int
    bytes_per_column : int
        Of the arrays that a block makes on the device.
    where : CuPy array
        On the device.

    Returns
    -------
    list
        What `function` returned for each block, in order.

    Raises
    ------
    Exception
        From `function`; that for lack of memory if there isn't enough for a single column.
    """
    results: list[_T] = []
    with backend.device_of(where):
        most = min(_MOST, cuda_runtime.device_memory()[0]) if cuda_runtime.uses_own_pool() else _MOST
        start, step = 0, max(most // max(bytes_per_column, 1), 1)
        while start < n_columns:
            stop = min(start + step, n_columns)
            try:
                results.append(function(slice(start, stop)))
            except Exception as error:
                if step == 1 or not backend.is_out_of_memory(error):
                    raise
            else:
                start = stop
                continue
            step //= 2  # not in the except block: the error's frames hold arrays
            cuda_runtime.release_memory()
    return results
