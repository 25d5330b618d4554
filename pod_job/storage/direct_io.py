"""Writes past the page cache (O_DIRECT): copying into the cache is most of the CPU time of writing a large file."""

import errno
import fcntl
import os
from collections.abc import Iterable

import numpy as np

from pod_job.storage.buffers import LEAST_BYTES, PAGE

_O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it


def write_all(descriptor: int, parts: Iterable[bytes | memoryview]) -> None:
    """Writes the parts one after the other from the beginning of a new file.

    Parts of LEAST_BYTES or more that begin on a page, in memory and in the file, bypass the page cache. Raises OSError
    as os.write does.
    """
    position = 0
    for part in parts:
        view = memoryview(part).cast("B")
        rest = view
        if _O_DIRECT and position % PAGE == 0 and len(view) >= LEAST_BYTES and _address(view) % PAGE == 0:
            pages = view[: len(view) // PAGE * PAGE]
            rest = view[_write_direct(descriptor, pages) :]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        position += len(view)


def _write_direct(descriptor: int, view: memoryview) -> int:
    """Returns how many of the bytes were written: fewer than all where the file system refuses direct writes."""
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
