"""A run folder as named byte objects: a local directory here, a Cloud Storage prefix in `pod_job.gcs`.

Names are relative, like `commits/batch_000001.json`. What `create` has stored is durable and never changes again.
"""

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import google_crc32c

from pod_job.errors import JobError
from pod_job.storage.checksums import Part, Stored, as_text, checksum, joined
from pod_job.storage.direct_io import write_all
from pod_job.storage.folder import NameTaken, not_as_stored

MOST_NAME_LENGTH = 250
"""Of the parts of a name; file systems have 255."""
COPIED_BYTES = 1 << 20
"""In memory at a time while files are joined."""


class LocalFolder:
    """A run folder on this machine's file system (or a shared mount that has hard links)."""

    def __init__(self, url: str, field: str = "storage.run_dir") -> None:
        self.root = Path(url).expanduser().absolute()
        self.url = str(self.root)
        self.field = field

    def create(self, name: str, parts: Sequence[Part]) -> Stored:
        stored = checksum(parts)
        return self._give_name(self._write_temporary(self._path(name), parts), name, stored)

    def join(self, name: str, head: bytes, sources: Sequence[tuple[str, Stored]]) -> Stored:
        whole, there = joined([checksum([head]), *(stored for _, stored in sources)]), self.stat(name)
        if there is None:
            return self._give_name(self._write_temporary(self._path(name), self._contents(head, sources)), name, whole)
        if there != whole:
            raise NameTaken(name, there)
        return whole

    def replace(self, name: str, data: Part) -> Stored:
        path = self._path(name)
        os.replace(self._write_temporary(path, [data]), path)
        _sync_directory(path.parent)
        return checksum([data])

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        with self._open(name) as file:
            # A size may come out of a damaged file: memory is taken for no more than there is.
            rest = max(0, os.fstat(file.fileno()).st_size - start)
            file.seek(start)
            return file.read(-1 if size is None else min(size, rest))

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        got = 0
        with self._open(name, buffering=0) as file:
            while count := os.preadv(file.fileno(), [out[got:]], start + got):
                got += count
        return got

    def stat(self, name: str) -> Stored | None:
        size, crc = 0, 0
        try:
            with self._open(name) as file:
                while chunk := file.read(1 << 20):
                    crc = google_crc32c.extend(crc, chunk)
                    size += len(chunk)
        except FileNotFoundError:
            return None
        return Stored(size, as_text(crc))

    def names(self, prefix: str) -> list[str]:
        top = self.root / prefix.rpartition("/")[0]
        found = []
        for directory, _, files in os.walk(top):
            relative = Path(directory).relative_to(self.root).as_posix()
            base = "" if relative == "." else f"{relative}/"
            found += [base + file for file in files if not file.startswith(".")]
        return sorted(name for name in found if name.startswith(prefix))

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def sweep(self, idle_s: float) -> None:
        for path in self.root.rglob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # its writer is alive after all, or another sweeps too
                if time.time() - path.stat().st_mtime > idle_s:
                    path.unlink()

    def local_path(self, name: str) -> Path | None:
        return self._path(name)

    def check_writable(self) -> None:
        probe = f"probe-{uuid.uuid4().hex}"
        try:
            self.create(probe, [b"probe"])
            self._path(probe).unlink()
        except OSError as error:
            advice = "; its file system must allow hard links" if error.errno in _NO_LINKS else ""
            raise JobError(
                f"{self.field}={self.url}: cannot write there ({error.strerror}){advice}; "
                "name a folder you may write to"
            ) from error

    def _path(self, name: str) -> Path:
        # Names also come out of metadata files that anybody may have written.
        words = name.split("/")
        if name.startswith("/") or ".." in words or "\0" in name or max(map(len, words)) > MOST_NAME_LENGTH:
            raise JobError(f"{name[:80]!r} is not a name inside {self.url}")
        return self.root / name

    def _open(self, name: str, buffering: int = -1) -> IO[bytes]:
        try:
            return open(self._path(name), "rb", buffering)
        except (IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(f"{self.url}/{name}: no file has this name") from error  # as in a bucket

    def _contents(self, head: bytes, sources: Sequence[tuple[str, Stored]]) -> Iterator[bytes]:
        """What is joined, in pieces; JobError after a source that is not what it should be."""
        yield head
        for name, expected in sources:
            size, crc = 0, 0
            with self._open(name, buffering=0) as file:
                while piece := file.read(COPIED_BYTES):
                    yield piece
                    size, crc = size + len(piece), google_crc32c.extend(crc, piece)
            if Stored(size, as_text(crc)) != expected:
                raise not_as_stored(self.url, name)

    def _give_name(self, temporary: Path, name: str, stored: Stored) -> Stored:
        path = self._path(name)
        try:
            os.link(temporary, path)  # unlike rename, a link never replaces what is there
        except FileExistsError:
            there = self.stat(name)
            if there is not None and there != stored:
                raise NameTaken(name, there) from None
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
        return stored

    def _write_temporary(self, path: Path, parts: Iterable[Part]) -> Path:
        """The parts in a synced file beside `path`; its leading dot hides it from `names` should we die here."""
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
    """Make the directory's entries survive a power cut; a file's own fsync does not cover its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
