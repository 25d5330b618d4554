"""Places where task files lie: a disk, a bucket, the Hugging Face hub; listed, and read in ranges."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

from pod_job.errors import JobError
from pod_job.storage.checksums import RunningChecksum
from pod_job.storage.folder import Folder, Readable
from pod_job.storage.local_files import expanded, reason_of

FIELD = "tasks.path"
HUB = "hf://datasets/"
PIECE_BYTES = 4 << 20
OPEN_FOLDERS = 64


@dataclass(frozen=True)
class FileState:
    """Size of a file, and what changes whenever its content does: its time on a disk, elsewhere its checksum."""

    size: int
    version: str


@dataclass(frozen=True)
class Listed:
    """A file as a listing has it; `checksum` is None where only reading it tells."""

    url: str
    state: FileState
    checksum: str | None = None


@runtime_checkable
class DataFile(Protocol):
    """A file that can be read in ranges, from any thread."""

    url: str

    def read(self, start: int, size: int) -> bytes:
        """Returns `size` bytes from `start`, fewer where the file ends. JobError that names a file it cannot read."""
        ...

    def state(self) -> FileState | None:
        """Returns the file's present state; None where there is no such file."""
        ...


class LocalFile:
    """A file of this machine."""

    def __init__(self, url: str) -> None:
        self.url, self.path = url, expanded(url)

    def read(self, start: int, size: int) -> bytes:
        try:
            with open(self.path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, start)
        except OSError as error:
            raise unreadable(self.url, reason_of(error)) from error

    def state(self) -> FileState | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return FileState(status.st_size, str(status.st_mtime_ns)) if stat.S_ISREG(status.st_mode) else None


class FolderFile:
    """A file of a folder that is not on this machine's disks."""

    def __init__(self, url: str, folder: Readable, name: str) -> None:
        self.url, self.folder, self.name = url, folder, name

    def read(self, start: int, size: int) -> bytes:
        try:
            return self.folder.read(self.name, start, size)
        except FileNotFoundError:
            raise unreadable(self.url, "nothing has this name") from None


class StoredFile(FolderFile):
    """A file in a bucket."""

    folder: Folder

    def __init__(self, url: str) -> None:
        folder, _, name = url.rpartition("/")
        super().__init__(url, bucket_folder(folder), name)

    def read(self, start: int, size: int) -> bytes:
        with naming(self.url, self.folder):
            return super().read(start, size)

    def state(self) -> FileState | None:
        with naming(self.url, self.folder):
            stored = self.folder.stat(self.name)
        return None if stored is None else FileState(stored.size, stored.crc32c)


class HubFile(FolderFile):
    """A file of a dataset on the hub at one commit, which never changes."""

    def __init__(self, url: str) -> None:
        repo, commit, name = hub_parts(url)
        super().__init__(url, hub_folder(repo, commit), name)

    def state(self) -> FileState | None:
        return None


def open_file(url: str) -> DataFile:
    """Returns the file at a path, or at a URL that `listing` gave."""
    return StoredFile(url) if url.startswith("gs://") else HubFile(url) if url.startswith(HUB) else LocalFile(url)


@contextmanager
def naming(url: str, folder: Readable) -> Iterator[None]:
    """Makes an error that names a folder name the file, or what was to be listed in it."""
    try:
        yield
    except JobError as error:
        raise JobError(f"{FIELD}={url}{str(error).removeprefix(f'{FIELD}={folder.url}')}") from error


def unreadable(url: str, reason: str) -> JobError:
    return JobError(f"{FIELD}={url} cannot be read ({reason})")


@lru_cache(OPEN_FOLDERS)
def bucket_folder(url: str) -> Folder:
    """Returns the folder of a bucket, which keeps its connections."""
    # Imported here, as google.cloud takes a second to import and other sources never need it.
    from pod_job.storage.gcs import BucketFolder

    return BucketFolder(url, FIELD)


@lru_cache(OPEN_FOLDERS)
def hub_folder(repo: str, commit: str) -> Readable:
    """Returns a dataset of the hub at a commit."""
    from pod_job.checkpoints.hub import HubFolder

    return HubFolder(repo, commit, FIELD, "dataset")


def hub_parts(url: str) -> tuple[str, str, str]:
    """Returns repository, revision ("" where there is none) and path of `hf://datasets/OWNER/NAME[@REVISION]/PATH`.

    The slashes of a revision are written as %2F, as in `refs%2Fconvert%2Fparquet`.
    """
    words = url.removeprefix(HUB).split("/")
    if len(words) < 2 or not all(words[:2]):
        raise JobError(f"{FIELD}={url} names no dataset; write {HUB}OWNER/NAME[@REVISION]/PATH")
    name, _, revision = words[1].partition("@")
    return f"{words[0]}/{name}", revision.replace("%2F", "/"), "/".join(words[2:])


class RangedFile(io.RawIOBase):
    """A DataFile as a seekable Python file; `taken` counts the bytes that were read."""

    def __init__(self, file: DataFile, size: int) -> None:
        self.file, self.size, self.place = file, size, 0
        self.taken = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + {0: 0, 1: self.place, 2: self.size}[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self.place)
        data = self.file.read(self.place, left if size is None or size < 0 else min(size, left))
        self.place += len(data)
        self.taken += len(data)
        return data

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def crc32c_of(file: DataFile, size: int) -> str:
    """Returns the checksum of a whole file, read in pieces."""
    running, place = RunningChecksum(), 0
    while place < size and (piece := file.read(place, min(PIECE_BYTES, size - place))):
        running.update(piece)
        place += len(piece)
    return f"crc32c:{running.stored.crc32c}"
