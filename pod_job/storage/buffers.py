"""Page-aligned arrays for direct writes, and a pool that uses their memory again."""

import math
import threading
import weakref
from collections.abc import Sequence

import numpy as np

PAGE = 4096
LEAST_BYTES = 1 << 20
"""Size from which a part is worth a direct write."""


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Returns an uninitialized array whose memory begins on a page, as direct writes need it."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE
    return raw[start : start + size].view(dtype).reshape(shape)


class Pool:
    """Page-aligned arrays whose memory is used again once the array and all views of it are gone, from any thread.

    Touching a fresh page can cost as much as writing to it. Where arrays of about one size come and go, the pool takes
    no more memory than the arrays that exist at one time.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.RLock()  # the garbage collector may give memory back in the thread that is taking some

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Returns an uninitialized array whose memory begins on a page."""
        size = math.prod(shape) * dtype.itemsize
        lease = _Lease(self._take(size))
        weakref.finalize(lease, self._give, lease.memory).atexit = False
        return np.asarray(lease)[:size].view(dtype).reshape(shape)

    def _take(self, size: int) -> np.ndarray:
        with self._lock:
            fitting = [memory for memory in self._free if len(memory) >= size]
            # Where none fits, one that is too small makes room for the new one.
            taken = min(fitting or self._free, key=len, default=None)
            if taken is not None:
                self._free = [memory for memory in self._free if memory is not taken]
        return taken if fitting and taken is not None else aligned_empty((size + size // 8,), np.dtype(np.uint8))

    def _give(self, memory: np.ndarray) -> None:
        with self._lock:
            self._free.append(memory)


class _Lease:
    """Owner of a pool's memory that an array and all views of it keep alive; its end returns the memory to the pool."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__
