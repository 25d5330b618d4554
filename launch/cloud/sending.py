"""Files of this machine on their way into a bucket: in pieces, side by side, each checked by its checksum.

A piece that arrived stays: an upload that was cut goes on with the next one. The object under a file's name is composed
of its pieces once all of them are there, and is whole or missing at every moment.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch import clock
from launch.view.progress import Bar
from pod_job.checkpoints.content import cached, crc32c, state_of
from pod_job.checkpoints.huggingface import map_ahead
from pod_job.errors import JobError
from pod_job.storage.checksums import Stored, checksum, joined
from pod_job.storage.folder import NameTaken
from pod_job.units import MB

if TYPE_CHECKING:
    from pod_job.storage.gcs import BucketFolder

PIECE_BYTES = 32 << 20
IN_FLIGHT = 8
"""Pieces that are on their way at the same time, and in memory."""
PARTS = "parts"

Show = Callable[[Sequence[Bar]], None]


@dataclass(frozen=True)
class LocalFile:
    """A file to be sent, as it was when its checksum was taken.

    Attributes:
        field: the setting that named it, for errors.
        name: its name within what is uploaded together.
    """

    field: str
    path: Path
    name: str
    stored: Stored
    state: tuple[int, int, int, int]

    def check(self) -> None:
        """Raises JobError where the file was changed since its checksum was taken."""
        try:
            same = state_of(self.path) == self.state
        except OSError:
            same = False
        if not same:
            raise self.changed()

    def changed(self) -> JobError:
        return JobError(
            f"{self.field}: {self.path} was changed while it was uploaded; start again once nobody writes to it"
        )


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file, and the name that they get: that of the file itself where they are all of it."""

    file: LocalFile
    start: int
    size: int
    name: str

    def read(self) -> memoryview:
        """Returns the bytes. JobError where the file has fewer now, or cannot be read."""
        data = memoryview(bytearray(self.size))
        try:
            with self.file.path.open("rb", buffering=0) as file:
                place = 0
                while place < self.size and (count := os.preadv(file.fileno(), [data[place:]], self.start + place)):
                    place += count
        except OSError as error:
            raise JobError(f"{self.file.field}: {self.file.path} cannot be read ({error.strerror})") from error
        if place < self.size:
            raise self.file.changed()
        return data


def local_file(field: str, path: Path, name: str) -> LocalFile:
    """Returns a file with its checksum, which is read from a cache where the file is as it was."""
    state = state_of(path)
    crc, _, size = cached(path, crc32c, field).removeprefix("crc32c:").removesuffix(" bytes").partition(" of ")
    return LocalFile(field, path, name, Stored(int(size), crc), state)


def send_files(folder: "BucketFolder", place: str, files: Sequence[LocalFile], show: Show) -> int:
    """Stores the files under `place`; returns how many bytes of them were not there before.

    Raises:
        JobError: a file was changed meanwhile, or the bucket cannot be written to.
    """
    present = folder.listing(f"{place}/")
    missing = [file for file in files if present.get(f"{place}/{file.name}") != file.stored]
    if missing:
        present |= folder.listing(f"{PARTS}/{place}/")
    total, done, began = sum(file.stored.size for file in missing), 0, clock.monotonic()
    pieces = [piece for file in missing for piece in pieces_of(file, place)]
    sent: dict[str, list[tuple[str, Stored]]] = {}
    for piece, stored in map_ahead(lambda piece: (piece, send_piece(folder, piece, present)), pieces, IN_FLIGHT):
        done += piece.size
        parts = sent.setdefault(piece.file.name, [])
        parts.append((piece.name, stored))
        if len(parts) == piece_count(piece.file.stored.size):
            finish(folder, piece.file, f"{place}/{piece.file.name}", sent.pop(piece.file.name))
        show([Bar("upload, MB", round(done / MB), round(total / MB), rate(done, total, clock.monotonic() - began))])
    for file in files:
        file.check()
    return total


def rate(done: int, total: int, seconds: float) -> str:
    """Returns the speed so far and the time left, for people."""
    per_s = done / max(seconds, 1e-3)
    left = f", {(total - done) / per_s:,.0f} s left" if done < total else ""
    return f"{per_s / MB:,.0f} MB/s{left}"


def piece_count(size: int) -> int:
    return max(1, -(-size // PIECE_BYTES))


def pieces_of(file: LocalFile, place: str) -> Iterator[Piece]:
    """Yields the pieces of a file in their order."""
    size = file.stored.size
    if size <= PIECE_BYTES:
        yield Piece(file, 0, size, f"{place}/{file.name}")
        return
    for number, start in enumerate(range(0, size, PIECE_BYTES)):
        yield Piece(file, start, min(PIECE_BYTES, size - start), f"{PARTS}/{place}/{file.name}/{number:06d}")


def send_piece(folder: "BucketFolder", piece: Piece, present: Mapping[str, Stored]) -> Stored:
    """Stores a piece unless it is there, and returns what it is."""
    data = piece.read()
    stored = checksum([data])
    if piece.size == piece.file.stored.size and stored != piece.file.stored:
        raise piece.file.changed()
    if present.get(piece.name) == stored:
        return stored
    try:
        return folder.create(piece.name, [data])
    except NameTaken:  # by a piece of another size, or of a content that the file no longer has
        folder.replace(piece.name, data)
        return stored


def finish(folder: "BucketFolder", file: LocalFile, name: str, parts: Sequence[tuple[str, Stored]]) -> None:
    """Makes the object of a file out of its pieces, and removes these. JobError where they are not the file."""
    if joined(stored for _, stored in parts) != file.stored:
        raise file.changed()
    if [part for part, _ in parts] == [name]:
        return
    try:
        folder.join(name, b"", parts)
    except FileNotFoundError:  # another upload of the same content has removed the pieces: then it is there
        if folder.stat(name) != file.stored:
            raise JobError(f"{folder.url}/{name}: its pieces were removed meanwhile; start again") from None
    list(map_ahead(folder.remove, [part for part, _ in parts]))
