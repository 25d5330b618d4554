"""The protocol of a run folder's storage, local or in a bucket."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from pod_job.errors import JobError
from pod_job.storage.checksums import Part, Stored


class NameTaken(Exception):
    """`create` found other content under the name; that content stays, and `stored` describes it."""

    def __init__(self, name: str, stored: Stored) -> None:
        super().__init__(f"{name} exists already with other content ({stored.size} bytes, crc32c {stored.crc32c})")
        self.name = name
        self.stored = stored


def not_as_stored(url: str, name: str) -> JobError:
    return JobError(f"{url}/{name}: its content is not what was stored; copy it again, or run `pod-job verify`")


@runtime_checkable  # so that tests can check annotations while they run
class Readable(Protocol):
    """A place that is only read from."""

    url: str

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """`size` bytes from `start`, or up to the end; fewer where the content ends. FileNotFoundError if missing."""
        ...

    def local_path(self, name: str) -> Path | None:
        """Where the content can be memory-mapped, or None where it is not on this machine."""
        ...


@runtime_checkable
class Folder(Readable, Protocol):
    """What the job needs of a place to keep a run; LocalFolder and BucketFolder have it."""

    def create(self, name: str, parts: Sequence[Part]) -> Stored:
        """Store the joined parts under a new name, all or nothing. Equal content already there counts as success.

        Raises NameTaken where other content is there.
        """
        ...

    def join(self, name: str, head: bytes, sources: Sequence[tuple[str, Stored]]) -> Stored:
        """`create` with `head` and then what is kept under the names of `sources`, each of which must be as said there.

        What is there already is left alone. FileNotFoundError where a source is missing, JobError where one is not
        what it should be.
        """
        ...

    def replace(self, name: str, data: Part) -> Stored:
        """Store under the name whether or not it exists; a reader sees the old or the new content, never a mixture."""
        ...

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        """Fill `out` with bytes from `start` on; returns how many, fewer where the content ends. As `read`."""
        ...

    def stat(self, name: str) -> Stored | None:
        """Size and checksum, or None where nothing has the name. Locally this reads the file."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Every name that begins with the prefix, sorted. Slow on a large bucket: keep it off the hot path."""
        ...

    def remove(self, name: str) -> None:
        """Remove what is kept under the name, if anything is."""
        ...

    def sweep(self, idle_s: float) -> None:
        """Remove what killed writers have left unfinished, once nobody has written to it for so long."""
        ...

    def check_writable(self) -> None:
        """Create and remove a probe. Raises JobError saying what is wrong and what to do."""
        ...
