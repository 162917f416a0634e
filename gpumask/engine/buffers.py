"""Buffers that volumes pass through on their way to a GPU: page-locked ones on the host, and those on the device."""

import math
from concurrent.futures import Future
from typing import Any

import numpy as np

from gpumask import cuda_runtime


class PageLockedBuffer:
    """A page-locked buffer, which may be filled again after the event `copied`, once its chunk is `launched`."""

    launched: Future | None = None

    def __init__(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        size = math.prod(shape)
        self.memory = cuda_runtime.pinned_memory(size * dtype.itemsize)
        self.array = np.frombuffer(self.memory, dtype, size).reshape(shape)
        self.copied = cuda_runtime.new_event()


class DeviceBuffer:
    """A buffer on the device, which may be filled (again) after the event `reduced`.

    The pool may give it memory of an array that queued work of the reducing stream still uses, so the first filling
    waits for that work.
    """

    def __init__(self, xp: Any, shape: tuple[int, int], dtype: np.dtype, device: Any, reducing: Any) -> None:
        self.array = xp.empty(shape, dtype=dtype, device=device)
        self.reduced = cuda_runtime.new_event()
        self.reduced.record(reducing)
