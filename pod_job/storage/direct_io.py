"""Large writes past the page cache: copying into it is most of what writing a file costs a processor."""

import errno
import fcntl
import os
from collections.abc import Iterable

import numpy as np

from pod_job.storage.buffers import LEAST_BYTES, PAGE

_O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it


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
