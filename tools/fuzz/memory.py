"""A limit on the memory that a trial may take, lifted when it ends."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


def data_bytes() -> int:
    """Returns the bytes of data of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


@contextmanager
def limited_data(most: int) -> Iterator[None]:
    """Makes allocations fail beyond this many bytes: as a MemoryError, which no reader should come to."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
