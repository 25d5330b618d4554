"""Checks of the rows that are read: every byte is held against the checksum of its file before anybody gets it.

Reads are widened to marks of the file, between which content can be checked by itself. Cloud Storage has no checksum of
a part of an object, and a disk none at all.
"""

import threading
from dataclasses import dataclass

import numpy as np

from pod_job.errors import JobError
from pod_job.run_folder.commit import read_record
from pod_job.storage.checksums import MARK_BYTES, WHOLE_BYTES, extended, marked, marks_of_text, number_of
from pod_job.storage.folder import Folder, not_as_stored

PIECE_BYTES = 2 << 20
"""Size of the reads of a file whose marks were not recorded."""


@dataclass(frozen=True)
class FileRows:
    """A batch's rows: the name of their file in the run folder, and in bytes their offset in it and its size.

    Attributes:
        batch: number of the batch.
        tap: the tap's name.
        start: first byte of the batch's own file in it, which a compaction may have joined with others.
        own_size: bytes of the batch's own file.
        crc32c: of the batch's own file.
    """

    name: str
    rows: int
    offset: int
    size: int
    batch: int
    tap: str
    start: int
    own_size: int
    crc32c: str


class Checks:
    """The marks of files, of which some were read; safe to share between threads and readers, and to pickle."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._reset()

    def _reset(self) -> None:
        self._marks: dict[tuple[str, int], np.ndarray] = {}
        self._checked: dict[tuple[str, int], np.ndarray] = {}
        self._locks: dict[tuple[str, int], threading.Lock] = {}

    def __getstate__(self) -> Folder:
        return self._folder

    def __setstate__(self, folder: Folder) -> None:
        self.__init__(folder)

    def widened(self, file: FileRows, start: int, stop: int) -> tuple[int, int]:
        """Returns the bytes of the file to read so that those from `start` to `stop` can be checked."""
        if start == stop:
            return start, stop
        step, end = _step(file), file.start + file.own_size
        first, last = (start - file.start) // step, (stop - 1 - file.start) // step
        return file.start + first * step, max(stop, min(end, file.start + (last + 1) * step))

    def hold(self, file: FileRows, start: int, pieces: list[np.ndarray]) -> bool:
        """Returns whether the pieces, from byte `start` of the file on, are what was stored there.

        They must begin and end at marks, as `widened` gives them.
        """
        size = sum(piece.nbytes for piece in pieces)
        if not size:
            return True
        table, first = self._table(file), (start - file.start) // _step(file)
        last = first - (-size // _step(file)) - 1
        before = int(table[first - 1]) if first else 0
        return last < len(table) and extended(before, pieces) == int(table[last])

    def hold_mapped(self, file: FileRows, raw: np.ndarray, starts: np.ndarray, size: int) -> bool:
        """Returns whether blocks of `raw`, the mapped file, that have items of `size` bytes at `starts` are sound.

        A block is checked when it is needed for the first time.
        """
        step, table = _step(file), self._table(file)
        checked = self._checked.setdefault((file.name, file.start), np.zeros(len(table), bool))
        first, last = (starts - file.start) // step, (starts + (size - 1) - file.start) // step
        needed = np.zeros(len(table), bool)
        for beyond in range(int((last - first).max(initial=0)) + 1):
            needed[np.minimum(first + beyond, last)] = True
        for block in np.flatnonzero(needed & ~checked).tolist():
            begin, end = file.start + block * step, file.start + min((block + 1) * step, file.own_size)
            if not self.hold(file, begin, [raw[begin:end]]):
                return False
            checked[block] = True
        return True

    def _table(self, file: FileRows) -> np.ndarray:
        """Returns the marks of a file, from its commit record, or where that has none from one pass over the file.

        Raises:
            JobError: the marks contradict the file's checksum.
        """
        key = file.name, file.start
        if (table := self._marks.get(key)) is not None:
            return table
        try:
            expected = np.array([number_of(file.crc32c)], np.uint32)
        except ValueError:
            raise not_as_stored(self._folder.url, file.name) from None
        if file.own_size <= WHOLE_BYTES:
            return self._marks.setdefault(key, expected)
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._marks:
                table = self._recorded(file)
                table = self._measured(file) if table is None or table[-1] != expected[0] else table
                if table[-1] != expected[0]:
                    raise not_as_stored(self._folder.url, file.name)
                self._marks[key] = table
        return self._marks[key]

    def _recorded(self, file: FileRows) -> np.ndarray | None:
        """Returns the marks in the commit record; None where it has none, or is gone."""
        try:
            record = read_record(self._folder, file.batch)
        except JobError:
            return None
        text = next((stored.marks for stored in record.files if stored.tap == file.tap), "")
        table = marks_of_text(text)
        return table if len(table) == -(-file.own_size // MARK_BYTES) else None

    def _measured(self, file: FileRows) -> np.ndarray:
        end = file.start + file.own_size
        places = range(file.start, end, PIECE_BYTES)
        try:
            return marked(self._folder.read(file.name, place, min(PIECE_BYTES, end - place)) for place in places)[1]
        except FileNotFoundError:
            return np.zeros(1, np.uint32)  # whoever reads it now says that it is missing


def _step(file: FileRows) -> int:
    return MARK_BYTES if file.own_size > WHOLE_BYTES else file.own_size
