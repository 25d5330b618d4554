"""Large writes past the page cache: copying into it is most of what writing a file costs a processor."""

import errno
import fcntl
import math
import os
import threading
import weakref
from collections.abc import Iterable, Sequence

import numpy as np

PAGE = 4096
LEAST_BYTES = 1 << 20
"""Of a part that is worth it."""
_O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it


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


def write_all(descriptor: int, parts: Iterable[bytes | memoryview]) -> None:
    """Write the parts one after the other from the beginning of a new file; OSError as os.write raises it."""
    position = 0
    for part in parts:
        view = memoryview(part).cast("B")
        rest = view
        if _O_DIRECT and position % PAGE == 0 and len(view) >= LEAST_BYTES and _address(view) % PAGE == 0:
            whole = len(view) // PAGE * PAGE
            rest = view[_write_direct(descriptor, view[:whole]) :]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        position += len(view)


def _write_direct(descriptor: int, view: memoryview) -> int:
    """How many of the bytes were written: none where the file system has no such writes, or has other rules."""
    written, flags = 0, fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _O_DIRECT)
        while written < len(view):
            written += os.write(descriptor, view[written:])
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return written


def _address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data
