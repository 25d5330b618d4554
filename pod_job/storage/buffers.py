"""Page-aligned memory for direct writes, pooled."""

import math
import threading
import weakref
from collections.abc import Sequence

import numpy as np

PAGE = 4096
LEAST_BYTES = 1 << 20
"""Of a part that is worth it."""


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array like np.empty's whose memory begins on a page, as `write_all` needs it to pass the cache by."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE
    return raw[start : start + size].view(dtype).reshape(shape)


class Pool:
    """Arrays like `aligned_empty`'s in memory that is used again once nobody has it any more, from any thread.

    Touching a fresh page can cost as much as writing to it, and where nothing but arrays of about one size come and go,
    no more memory is taken than for those that are there at one time.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.RLock()  # the garbage collector may give memory back in the thread that is taking some

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        lease = _Lease(self._take(size))
        weakref.finalize(lease, self._give, lease.memory).atexit = False
        return np.asarray(lease)[:size].view(dtype).reshape(shape)

    def _take(self, size: int) -> np.ndarray:
        with self._lock:
            fitting = [memory for memory in self._free if len(memory) >= size]
            # Where none fits, one that is too small makes room for the new one.
            found = min(fitting or self._free, key=len, default=None)
            if found is not None:
                self._free = [memory for memory in self._free if memory is not found]
        return found if fitting and found is not None else aligned_empty((size + size // 8,), np.dtype(np.uint8))

    def _give(self, memory: np.ndarray) -> None:
        with self._lock:
            self._free.append(memory)


class _Lease:
    """What an array of a pool and all views of it keep alive; with it goes the right to the memory."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__
