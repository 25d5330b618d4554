"""Work that hosts share before they are joined: each piece is done by one of them, and its result kept in the folder.

No host waits for another that is lost: whoever has done its own pieces does those that do not come. Results are JSON
objects with a checksum, create-only and equal whoever made them, so that nothing is wrong when two do the same. What is
damaged is made again.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pod_job.errors import JobError
from pod_job.formats.checksummed_json import read_checksummed, with_checksum
from pod_job.storage.folder import Folder, NameTaken

POLL_S = 0.5
REPORT_EVERY_S = 30.0

log = logging.getLogger("pod_job")


@dataclass(frozen=True)
class Share:
    """This host's share of the pieces: every `hosts`-th, from `host` on."""

    host: int = 0
    hosts: int = 1


@dataclass(frozen=True)
class Piece:
    """A piece of work: the name of its result, what makes it, and how long it may take another host."""

    name: str
    make: Callable[[], bytes]
    patience_s: float


def share_work(
    folder: Folder,
    pieces: Sequence[Piece],
    share: Share,
    enough: Callable[[Mapping[int, bytes]], bool] = lambda results: False,
) -> dict[int, bytes]:
    """Returns the results of the pieces by their numbers: of all, or of as many as are `enough`.

    Raises:
        JobError: a piece that cannot be done.
    """
    results: dict[int, bytes] = {}
    progress = reported = time.monotonic()
    while True:
        before = len(results)
        collect(folder, pieces, results)
        if len(results) == len(pieces) or enough(results):
            return results
        now = time.monotonic()
        if len(results) > before:
            progress = now
        if now - reported > REPORT_EVERY_S:
            reported = now
            log.info("%d of %d parts are counted", len(results), len(pieces))
        missing = [number for number in range(len(pieces)) if number not in results]
        own = next((number for number in missing if number % share.hosts == share.host), None)
        if own is None and now - progress > pieces[missing[0]].patience_s:
            own = missing[share.host % len(missing)]
        if own is None:
            time.sleep(POLL_S)
            continue
        results[own] = done(folder, pieces[own])
        progress = time.monotonic()


def collect(folder: Folder, pieces: Sequence[Piece], results: dict[int, bytes]) -> None:
    """Adds the results that are in the folder to `results`; a damaged one does not count."""
    prefix = pieces[0].name.rpartition("/")[0] if pieces else ""
    names = set(folder.names(f"{prefix}/"))
    for number, piece in enumerate(pieces):
        if number not in results and piece.name in names and (result := kept(folder, piece.name)) is not None:
            results[number] = result


def kept(folder: Folder, name: str) -> bytes | None:
    """Returns a result that the folder has; None where it has none, or a damaged one."""
    try:
        return read_checksummed(folder.read(name), f"{folder.url}/{name}")
    except (FileNotFoundError, JobError):
        return None


def done(folder: Folder, piece: Piece) -> bytes:
    """Returns the result of a piece, which is in the folder then."""
    result = piece.make()
    keep(folder, piece.name, result)
    return result


def keep(folder: Folder, name: str, result: bytes) -> None:
    """Stores a result; one that is there is equal, as every host makes the same, or damaged and gives way."""
    try:
        folder.create(name, [with_checksum(result)])
    except NameTaken:
        if kept(folder, name) is None:
            log.warning("%s/%s: was damaged; it is counted again", folder.url, name)
            folder.replace(name, with_checksum(result))
