"""LocalFolder: a run folder on this machine's file system."""

import contextlib
import errno
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from pod_job.errors import JobError
from pod_job.storage.checksums import Part, RunningChecksum, Stored, checksum, joined
from pod_job.storage.direct_io import write_all
from pod_job.storage.folder import NameTaken, check_name, is_name, not_as_stored

PIECE_BYTES = 1 << 20
"""Bytes in memory at a time while a file is copied or its checksum computed."""


_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.tmp|probe-[0-9a-f]{32}")
"""Names of files that are being written, and of those that a check makes; of a killed process they are swept."""


class LocalFolder:
    """A Folder on a file system with hard links: a local disk or a shared mount.

    Links in it are followed only to what lies in it, and nothing but regular files is opened: a stranger may have made
    the folder.

    Args:
        field: the setting that named this place, for errors.
        follow_links: follow links out of the folder too, as in the cache of the Hugging Face hub.
    """

    def __init__(self, url: str, field: str = "storage.run_dir", follow_links: bool = False) -> None:
        self.root = Path(url).expanduser().absolute()
        self.url = str(self.root)
        self.field = field
        self.follow_links = follow_links

    def create(self, name: str, parts: Sequence[Part]) -> Stored:
        stored = checksum(parts)
        return self._give_name(self._write_temporary(self._new_path(name), parts), name, stored)

    def join(self, name: str, head: bytes, sources: Sequence[tuple[str, Stored]]) -> Stored:
        wanted = joined([checksum([head]), *(stored for _, stored in sources)])
        existing = self.stat(name)
        if existing is None:
            temporary = self._write_temporary(self._new_path(name), self._contents(head, sources))
            return self._give_name(temporary, name, wanted)
        if existing != wanted:
            raise NameTaken(name, existing)
        return wanted

    def replace(self, name: str, data: Part) -> bool:
        path = self._new_path(name)
        os.replace(self._write_temporary(path, [data]), path)
        _sync_directory(path.parent)
        return True

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        with self._open(name) as file:
            # A size may come out of a damaged file: memory is taken for no more than the file has.
            available = max(0, os.fstat(file.fileno()).st_size - start)
            file.seek(start)
            return file.read(-1 if size is None else min(size, available))

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        filled = 0
        with self._open(name, buffering=0) as file:
            while count := os.preadv(file.fileno(), [out[filled:]], start + filled):
                filled += count
        return filled

    def stat(self, name: str) -> Stored | None:
        try:
            return checksum(self._pieces(name))
        except FileNotFoundError:
            return None

    def names(self, prefix: str) -> list[str]:
        parent = prefix.rpartition("/")[0]
        top = self._inside(self.root / check_name(parent, self.url)) if parent else self.root
        names = []
        for directory, _, files in os.walk(top):
            relative = Path(directory).relative_to(top).as_posix()
            base = "/".join(word for word in (parent, relative) if word not in ("", "."))
            base = f"{base}/" if base else ""
            names += [base + file for file in files if not file.startswith(".")]
        return sorted(name for name in names if name.startswith(prefix) and is_name(name))

    def remove(self, name: str) -> None:
        self._new_path(name).unlink(missing_ok=True)

    def sweep(self, idle_s: float, made_for: Callable[[str], bool] | None = None) -> None:
        for path in self.root.rglob("*"):
            temporary = _TEMPORARY.fullmatch(path.name)
            name = path.parent.relative_to(self.root).joinpath(temporary["name"] or "").as_posix() if temporary else ""
            if temporary is None or (made_for is not None and not made_for(name)):
                continue
            with contextlib.suppress(FileNotFoundError):  # its writer is alive and renamed it, or another host sweeps
                if time.time() - path.stat().st_mtime >= idle_s:
                    path.unlink()

    def local_path(self, name: str) -> Path | None:
        if name == ".":
            return self.root
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError):
            self._check_regular(name, path.stat().st_mode)
        return path

    def check_writable(self) -> None:
        probe = f"probe-{uuid.uuid4().hex}"
        try:
            self.create(probe, [b"probe"])
            self._new_path(probe).unlink()
        except OSError as error:
            links = "; its file system must allow hard links" if error.errno in _NO_LINKS else ""
            raise JobError(
                f"{self.field}={self.url}: cannot write there ({error.strerror}){links}; name a folder you may write to"
            ) from error

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
            if running.stored != expected:
                raise not_as_stored(self.url, name)

    def _give_name(self, temporary: Path, name: str, stored: Stored) -> Stored:
        path = self._new_path(name)
        try:
            os.link(temporary, path)  # unlike rename, a link never replaces a file
        except FileExistsError:
            existing = self.stat(name)
            if existing is not None and existing != stored:
                raise NameTaken(name, existing) from None
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
        return stored

    def _write_temporary(self, path: Path, parts: Iterable[Part]) -> Path:
        """Writes the parts to a synced file beside `path`; its leading dot hides it from `names` should we die here."""
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sync_directory(path.parent.parent)
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "xb", buffering=0) as file:
                write_all(file.fileno(), parts)
                os.fsync(file.fileno())
        except (OSError, JobError) as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise JobError(f"{path}: no space left; free some and start the job again") from error
            raise
        return temporary


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)


def _sync_directory(path: Path) -> None:
    """Makes the directory's entries survive a power cut; a file's own fsync does not cover its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
