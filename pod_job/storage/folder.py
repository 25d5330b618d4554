"""Folder: the storage protocol of run folders, the same for a local directory and a bucket.

A folder holds byte objects under relative names like `commits/batch_000001.json`. Content that `create` has stored is
durable and never changes.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from pod_job.errors import JobError
from pod_job.storage.checksums import Part, Stored

MOST_NAME_BYTES = 1000
"""Length of a name; Cloud Storage allows 1024 bytes together with the run folder's own prefix."""
MOST_WORD_BYTES = 250
"""Length of a part of a name between slashes; file systems allow 255 bytes."""
UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f\\]")


def is_name(name: str) -> bool:
    """Returns True for the name of an object inside a folder, whatever a file or a listing says.

    A name is words between single slashes, none of them `.` or `..`; it is not absolute and has no control character.
    """
    try:
        words = name.encode().split(b"/")
    except UnicodeEncodeError:  # half a surrogate pair, as JSON can spell it
        return False
    if sum(map(len, words)) + len(words) > MOST_NAME_BYTES or UNNAMEABLE.search(name):
        return False
    return all(word not in (b"", b".", b"..") and len(word) <= MOST_WORD_BYTES for word in words)


def check_name(name: str, url: str) -> str:
    """Returns the name. JobError unless it is the name of an object inside the folder `url`."""
    if not is_name(name):
        raise JobError(f"{name[:80]!a} is not a name inside {url}; the file that names it is damaged, copy it again")
    return name


class NameTaken(Exception):
    """Other content exists under the name given to `create` or `join`; it stays, and `stored` describes it.

    Its checksum is "" where the content is so much larger than what was to be stored that it was not read.
    """

    def __init__(self, name: str, stored: Stored) -> None:
        super().__init__(f"{name} exists already with other content ({stored.size} bytes, crc32c {stored.crc32c})")
        self.name = name
        self.stored = stored


def not_as_stored(url: str, name: str) -> JobError:
    """Returns the error for content that differs from its checksum."""
    return JobError(f"{url}/{name}: its content is not what was stored; copy it again, or run `pod-job verify {url}`")


@runtime_checkable  # so that tests can check annotations while they run
class Readable(Protocol):
    """A place to read objects from."""

    url: str

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """Returns `size` bytes from `start`, or all bytes up to the end; fewer where the content ends earlier.

        Raises:
            FileNotFoundError: nothing has the name.
        """
        ...

    def local_path(self, name: str) -> Path | None:
        """Returns the path at which the content can be memory-mapped; None where it is not on this machine.

        `.` names the folder itself.
        """
        ...


@runtime_checkable
class Folder(Readable, Protocol):
    """A place to keep a run; LocalFolder and BucketFolder implement it.

    Every method raises JobError for what the user has to fix: a full disk, missing credentials, a lost network; and for
    a name that is none inside the folder (`check_name`).
    """

    def create(self, name: str, parts: Sequence[Part]) -> Stored:
        """Stores the joined parts under a new name, all or nothing; equal content under the name counts as success.

        Raises:
            NameTaken: other content is under the name.
        """
        ...

    def join(self, name: str, head: bytes, sources: Sequence[tuple[str, Stored]]) -> Stored:
        """Stores `head` followed by the contents of `sources` under a new name, as `create` does.

        Args:
            sources: names, and the size and checksum that the content of each must have.
        Raises:
            NameTaken: other content is under the name.
            FileNotFoundError: a source is missing.
            JobError: a source is not as described.
        """
        ...

    def replace(self, name: str, data: Part) -> bool:
        """Stores `data` under the name, new or not; a reader sees the old or the new content, never a mixture.

        Returns False where another writer has replaced the content meanwhile: that content stays.
        """
        ...

    def read_into(self, name: str, start: int, *outs: memoryview) -> int:
        """Fills `outs`, one after the other, with bytes from `start` on; returns how many, fewer at the content's end.

        Raises:
            FileNotFoundError: nothing has the name.
        """
        ...

    def stat(self, name: str) -> Stored | None:
        """Returns size and checksum; None where nothing has the name. A local folder reads the file for it."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Returns every name that begins with the prefix, sorted. Slow on a large bucket: keep it off the hot path.

        Leaves out what `check_name` refuses, such as `a//b`: no folder here has stored it.
        """
        ...

    def remove(self, name: str) -> None:
        """Removes the content under the name, if there is any."""
        ...

    def sweep(self, idle_s: float, finished: Callable[[str], bool] = lambda name: False) -> None:
        """Removes only what killed writers left unfinished, once nobody has written to it for `idle_s` seconds.

        Args:
            finished: names that have their content; what was left on the way to them is removed at once.
        """
        ...

    def check_writable(self) -> None:
        """Creates and removes a probe. Raises JobError with the reason and the fix."""
        ...


def exists(folder: Readable, name: str) -> bool:
    """Returns whether something has the name; unlike `stat`, in no time for a file of any size."""
    try:
        folder.read(name, 0, 1)
    except FileNotFoundError:
        return False
    return True
