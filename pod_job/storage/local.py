"""LocalFolder: a run folder on this machine's file system."""

import contextlib
import errno
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from pod_job.errors import JobError
from pod_job.storage.checksums import Part, RunningChecksum, Stored, checksum, joined
from pod_job.storage.folder import NameTaken, check_name, is_name, not_as_stored
from pod_job.storage.local_files import (
    TEMPORARY,
    expanded,
    give_name,
    name_new,
    reason_of,
    sync_directory,
    user_errors,
    write_temporary,
)

MOST_TIMES, SPARE_BYTES = 8, 64 << 20
"""A file that is in the way of a new one is read if it has at most so many times the bytes of that, and these."""
PIECE_BYTES = 1 << 20
"""Bytes in memory at a time while a file is copied or its checksum computed."""


class LocalFolder:
    """A Folder on a local disk or a shared mount.

    Links in it are followed only to what lies in it, and nothing but regular files is opened: a stranger may have made
    the folder.

    Args:
        field: the setting that named this place, for errors.
        follow_links: follow links out of the folder too, as in the cache of the Hugging Face hub.
    """

    def __init__(self, url: str, field: str = "storage.run_dir", follow_links: bool = False) -> None:
        self.root = expanded(url).absolute()
        self.url = str(self.root)
        self.field = field
        self.follow_links = follow_links

    def create(self, name: str, parts: Sequence[Part]) -> Stored:
        with user_errors(f"{self.url}/{name}"):
            return self._create(name, parts, checksum(parts))

    def join(self, name: str, head: bytes, sources: Sequence[tuple[str, Stored]]) -> Stored:
        wanted = joined([checksum([head]), *(stored for _, stored in sources)])
        existing = self.stat(name)
        if existing is None:
            with user_errors(f"{self.url}/{name}"):
                return self._create(name, self._contents(head, sources), wanted)
        if existing != wanted:
            raise NameTaken(name, existing)
        return wanted

    def replace(self, name: str, data: Part) -> bool:
        with user_errors(f"{self.url}/{name}"):
            path = self._new_path(name)
            give_name(write_temporary(path, [data]), path, os.replace)
            sync_directory(path.parent)
        return True

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        with user_errors(f"{self.url}/{name}"), self._open(name) as file:
            # A size may come out of a damaged file: memory is taken for no more than the file has.
            available = max(0, os.fstat(file.fileno()).st_size - start)
            file.seek(start)
            try:
                return file.read(-1 if size is None else min(size, available))
            except MemoryError:
                wanted = available if size is None else min(size, available)
                raise JobError(
                    f"{self.url}/{name}: its {wanted:,} bytes do not fit into memory; copy it again"
                ) from None

    def read_into(self, name: str, start: int, *outs: memoryview) -> int:
        filled, rest = 0, [out for out in outs if len(out)]
        with user_errors(f"{self.url}/{name}"), self._open(name, buffering=0) as file:
            while rest and (count := os.preadv(file.fileno(), rest, start + filled)):
                filled += count
                while rest and count >= len(rest[0]):
                    count -= len(rest.pop(0))
                if rest:
                    rest[0] = rest[0][count:]
        return filled

    def stat(self, name: str) -> Stored | None:
        try:
            with user_errors(f"{self.url}/{name}"):
                return checksum(self._pieces(name))
        except FileNotFoundError:
            return None

    def names(self, prefix: str) -> list[str]:
        parent = prefix.rpartition("/")[0]
        top = self._inside(self.root / check_name(parent, self.url)) if parent else self.root
        return sorted(name for name in _files_below(top, f"{parent}/" if parent else "") if name.startswith(prefix))

    def remove(self, name: str) -> None:
        with user_errors(f"{self.url}/{name}"):
            self._new_path(name).unlink(missing_ok=True)

    def sweep(self, idle_s: float, finished: Callable[[str], bool] = lambda name: False) -> None:
        for name, entry in _entries_below(self.root, "", strict=False):
            if (temporary := TEMPORARY.fullmatch(entry.name)) is None:
                continue
            name, path = name.removesuffix(entry.name) + (temporary["name"] or ""), Path(entry.path)
            # Its writer is alive and renamed it, or another host sweeps; or the folder may only be read.
            with contextlib.suppress(OSError):
                if finished(name) or time.time() - path.stat().st_mtime > idle_s:
                    path.unlink()

    def local_path(self, name: str) -> Path | None:
        if name == ".":
            return self.root
        path = self._path(name)
        with user_errors(f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._check_regular(name, path.stat().st_mode)
        return path

    def check_writable(self) -> None:
        nearest = self.root  # that exists: the folder itself is made by what is written into it
        while not os.path.lexists(nearest):
            nearest = nearest.parent
        path = nearest / f"probe-{uuid.uuid4().hex}"
        try:
            try:
                give_name(write_temporary(path, [b"probe"]), path, name_new)
            finally:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise JobError(f"{self.field}={self.url}: cannot write there: {reason_of(error)}") from error

    def _path(self, name: str) -> Path:
        """Returns where the name's content lies, with links followed. JobError where that is outside the folder."""
        return self._inside(self.root / check_name(name, self.url))

    def _new_path(self, name: str) -> Path:
        """Returns where to put content under the name: a link that has the name is replaced, not followed."""
        path = self.root / check_name(name, self.url)
        return self._inside(path.parent) / path.name

    def _inside(self, path: Path) -> Path:
        if self.follow_links:
            return path
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(os.path.realpath(self.root)):
            raise JobError(f"{path}: is a link, or below one, that leads out of {self.url}; put what it names there")
        return real

    def _open(self, name: str, buffering: int = -1) -> IO[bytes]:
        # Not blocking: a pipe in the folder must not keep its reader waiting.
        no_link = 0 if self.follow_links else os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | no_link)
        except NotADirectoryError as error:
            raise FileNotFoundError(f"{self.url}/{name}: no file has this name") from error  # as in a bucket
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ELOOP):  # a socket, a device without a driver, a link made just now
                raise JobError(f"{self.url}/{name}: is not a regular file; replace it by one") from error
            raise
        try:
            self._check_regular(name, os.fstat(descriptor).st_mode)
        except BaseException:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb", buffering)

    def _check_regular(self, name: str, mode: int) -> None:
        """Raises FileNotFoundError for a folder, as in a bucket, and JobError for anything but a regular file."""
        if stat.S_ISDIR(mode):
            raise FileNotFoundError(f"{self.url}/{name}: no file has this name")
        if not stat.S_ISREG(mode):
            raise JobError(f"{self.url}/{name}: is not a regular file; replace it by one")

    def _pieces(self, name: str) -> Iterator[bytes]:
        with self._open(name, buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def _contents(self, head: bytes, sources: Sequence[tuple[str, Stored]]) -> Iterator[bytes]:
        """Yields `head` and the sources in pieces. Raises JobError after a source that is not as described."""
        yield head
        for name, expected in sources:
            running = RunningChecksum()
            for piece in self._pieces(name):
                yield piece
                running.update(piece)
                if running.stored.size > expected.size:
                    break
            if running.stored != expected:
                raise not_as_stored(self.url, name)

    def _create(self, name: str, parts: Iterable[Part], stored: Stored) -> Stored:
        path = self._new_path(name)
        temporary = write_temporary(path, parts)
        try:
            give_name(temporary, path, name_new)
        except (FileExistsError, FileNotFoundError) as error:
            size = path.lstat().st_size if path.exists() else 0
            if size > MOST_TIMES * stored.size + SPARE_BYTES:  # it may be sparse, and of any size
                raise NameTaken(name, Stored(size, "")) from None
            existing = self.stat(name)
            if existing is None:
                raise JobError(f"{path}: is a folder, or was removed while it was being written; remove it") from error
            if existing != stored:
                raise NameTaken(name, existing) from None
        sync_directory(path.parent)
        return stored


def _files_below(directory: Path, base: str) -> Iterator[str]:
    """Yields `base` and the path below the directory of all that can be opened there, without hidden files.

    Links to files count, where there is a file; links to folders are not followed.
    """
    for name, entry in _entries_below(directory, base):
        if not entry.name.startswith(".") and is_name(name) and (not entry.is_symlink() or _leads_to_file(entry)):
            yield name


def _entries_below(directory: Path, base: str, strict: bool = True) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yields all below the directory that is no folder, with `base` and its path; no folder too deep for a name.

    Raises:
        JobError: where `strict`, a folder that cannot be read.
    """
    folders = [(os.fspath(directory), base)]
    while folders:
        path, above = folders.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        yield above + entry.name, entry
                    elif is_name(above + entry.name):
                        folders.append((entry.path, f"{above}{entry.name}/"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if strict:
                raise JobError(f"{path}: {reason_of(error)}") from error


def _leads_to_file(link: os.DirEntry) -> bool:
    """Returns False for a link to a folder or to nothing; True for any other, which whoever reads it may refuse."""
    try:
        return not link.is_dir() and bool(link.stat())
    except FileNotFoundError:
        return False
    except OSError:
        return True
