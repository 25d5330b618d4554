"""Checksums of a model's files, over all of their bytes: what tells two sets of weights apart. No jax.

A bucket and the hub know the checksum of each file. Files on this machine are read for it, once: the cache of the
Hugging Face libraries keeps the result until a file's size or a time of it changes. Every host does this for itself,
since hosts with disks of their own may hold different weights; they meet in run.json.
"""

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from pod_job.checkpoints.cache import cache_folder
from pod_job.checkpoints.huggingface import map_ahead
from pod_job.errors import JobError
from pod_job.storage.checksums import RunningChecksum, Stored, joined
from pod_job.storage.folder import Folder, Readable

log = logging.getLogger("pod_job")

SPAN_BYTES, PIECE_BYTES = 64 << 20, 4 << 20
"""Bytes of a file that one thread reads, and of one read; threads hide the latency of network disks."""
SETTLED_NS = 2_000_000_000
"""A file that was changed less long ago may change again without a change of its times: its checksum is not cached."""


@runtime_checkable
class KnowsChecksums(Protocol):
    """A place that has checksums of its own kind for its files."""

    def checksum(self, name: str) -> str:
        """Returns the checksum of a file, with its algorithm in front. FileNotFoundError where nothing has the name."""
        ...


class CachedChecksum(msgspec.Struct, frozen=True):
    """A file's checksum, and the state of the file in which it was computed."""

    state: tuple[int, int, int, int]
    checksum: str


def checksums(folder: Readable, names: Sequence[str]) -> dict[str, str]:
    """Returns the checksum of each file, with its algorithm in front, such as `crc32c:`.

    Raises:
        FileNotFoundError: nothing has one of the names.
        JobError: a file cannot be read, or is changed meanwhile.
    """
    started = time.monotonic()
    found = dict(zip(names, map_ahead(lambda name: checksum_of(folder, name), names, in_flight=8), strict=True))
    if (seconds := time.monotonic() - started) > 1:
        log.info("checksums of %d files of %s in %.1f s", len(found), folder.url, seconds)
    return found


def checksum_of(folder: Readable, name: str) -> str:
    """Returns the checksum of one file, as `checksums` does."""
    if isinstance(folder, KnowsChecksums):
        return folder.checksum(name)
    if (path := folder.local_path(name)) is not None:
        return cached(path, crc32c)
    if not isinstance(folder, Folder):
        raise TypeError(f"{folder.url} does not tell checksums")
    if (stored := folder.stat(name)) is None:
        raise FileNotFoundError(f"{folder.url}/{name}")
    return as_checksum(stored)


def as_checksum(stored: Stored) -> str:
    return f"crc32c:{stored.crc32c} of {stored.size} bytes"


def cached(path: Path, algorithm: Callable[[Path], str], field: str = "model.path") -> str:
    """Returns `algorithm(path)`, from the cache where the file is as it was when that was computed.

    `field`: the setting that named the file, for errors.
    """
    path = path.resolve()
    entry = cache_entry(path, algorithm.__name__)
    before = state_of(path)
    with contextlib.suppress(OSError, msgspec.DecodeError):
        known = msgspec.json.decode(entry.read_bytes(), type=CachedChecksum)
        if known.state == before:
            return known.checksum
    checked_at = time.time_ns()
    try:
        checksum = algorithm(path)
    except OSError as error:
        raise JobError(f"{field}: {path} cannot be read ({error.strerror})") from error
    if state_of(path) != before:
        raise JobError(f"{field}: {path} was changed while it was read; start again")
    if checked_at - max(before[2:]) > SETTLED_NS:
        # A home that cannot be written to costs time, never the run.
        with contextlib.suppress(OSError):
            temporary = entry.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(msgspec.json.encode(CachedChecksum(before, checksum)))
            os.replace(temporary, entry)
    return checksum


def cache_entry(path: Path, algorithm: str) -> Path:
    """Returns where the checksum of a file is cached."""
    try:
        folder = cache_folder("checksums")
    except (OSError, ValueError):
        folder = Path(os.devnull)  # in which no file can be made
    return folder / f"{hashlib.sha256(f'{algorithm} {path}'.encode()).hexdigest()}.json"


def state_of(path: Path) -> tuple[int, int, int, int]:
    """Returns inode, size and the times of the last changes: copying a file's mtime leaves a new ctime."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def crc32c(path: Path) -> str:
    """Returns the checksum that Cloud Storage has of the same content."""

    def span(start: int) -> Stored:
        running, buffer = RunningChecksum(), memoryview(bytearray(min(PIECE_BYTES, size - start)))
        with path.open("rb", buffering=0) as file:
            stop = min(start + SPAN_BYTES, size)
            while start < stop and (count := os.preadv(file.fileno(), [buffer[: stop - start]], start)):
                running.update(buffer[:count])
                start += count
        return running.stored

    size = path.stat().st_size
    return as_checksum(joined(map_ahead(span, range(0, size, SPAN_BYTES), in_flight=8)))


def sha256(path: Path) -> str:
    """Returns the checksum that the hub has of a large file with the same content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def git_sha1(path: Path) -> str:
    """Returns the checksum that the hub has of a file which it keeps in git itself."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return f"git-sha1:{digest.hexdigest()}"
