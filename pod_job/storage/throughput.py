"""Rates at which this machine writes objects into a folder and reads them, by the code that runs use."""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pod_job.storage.folder import Folder

OBJECT_BYTES = 64 << 20
"""Size of an object, about that of a batch of one tap."""
HEAD_BYTES = 16


@dataclass(frozen=True)
class Bounds:
    """Bounds of a measurement: objects of `object_bytes`, `objects` at most, none begun after `seconds`."""

    objects: int = 32
    seconds: float = 10.0
    object_bytes: int = OBJECT_BYTES


@dataclass(frozen=True)
class Throughput:
    """Bytes that were written, and the rates in bytes per second."""

    bytes: int
    write_bytes_s: float
    read_bytes_s: float


def measure(folder: Folder, place: str, threads: int, bounds: Bounds) -> Throughput:
    """Writes objects under the prefix `place`, reads them, and removes everything there.

    Args:
        place: prefix that nobody else uses; what an interrupted measurement left there is removed first.
        threads: objects that are written or read at the same time.
    """
    block = os.urandom(bounds.object_bytes - HEAD_BYTES)  # no two objects are equal, nor can any be compressed
    written: list[str] = []

    def write(name: str) -> None:
        folder.create(name, [os.urandom(HEAD_BYTES), block])
        written.append(name)

    def read(name: str) -> None:
        folder.read(name)

    with ThreadPoolExecutor(threads) as pool:
        remove(folder, folder.names(place), pool)
        try:
            names = [f"{place}object_{number:04d}" for number in range(bounds.objects)]
            write_s, done = timed(write, names, pool, threads, bounds.seconds)
            read_s, done_again = timed(read, written, pool, threads, bounds.seconds)
        finally:
            remove(folder, folder.names(place), pool)
    size = bounds.object_bytes
    return Throughput(done * size, done * size / write_s, done_again * size / read_s)


def timed(
    action: Callable[[str], None], names: Iterable[str], pool: ThreadPoolExecutor, threads: int, seconds: float
) -> tuple[float, int]:
    """Does `action` for the names on `threads` threads until the time is over; returns the seconds and how many.

    Every thread does it once at least, while there are names.
    """
    began = time.perf_counter()
    left = iter(list(names))  # of a list: `next` of it is safe between threads

    def work() -> int:
        done = 0
        while done == 0 or time.perf_counter() - began < seconds:
            name = next(left, None)
            if name is None:
                break
            action(name)
            done += 1
        return done

    done = sum(future.result() for future in [pool.submit(work) for _ in range(threads)])
    return time.perf_counter() - began, done


def remove(folder: Folder, names: Iterable[str], pool: ThreadPoolExecutor) -> None:
    list(pool.map(folder.remove, names))
