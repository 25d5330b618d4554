"""RowReader: rows of one tap as bytes, numbered through the files of all batches, by range or by number."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from pod_job.errors import JobError
from pod_job.reading.checked import Checks, FileRows
from pod_job.reading.row_source import RowSource
from pod_job.run_folder.entries import MISSING
from pod_job.storage.folder import Folder, not_as_stored

READS_IN_FLIGHT = 8
READ_ATTEMPTS = 2
"""Attempts at content that comes out wrong: what a network changes is right the second time."""
PART_ROWS = 65_536
MAPS_OPEN = 512
"""Memory maps kept open; the kernel allows a process about 65,000."""
LARGE_BYTES = 256 << 20
"""Memory that is taken for rows only after each of their files was seen to be as long as metadata.json says."""
GAP_BYTES = 64 << 10
"""Largest gap between rows of one file that are read at once; headers inside a joined file are smaller."""


class RowReader:
    """RowSource over files; row numbers run on from file to file. Safe to pickle and to use after a fork.

    Where there are `checks`, no row is given that is not what was stored.
    """

    def __init__(self, folder: Folder, files: Sequence[FileRows], row_bytes: int, checks: Checks | None = None) -> None:
        self.row_bytes = row_bytes
        self._folder = folder
        self._files = list(files)
        self._checks = checks
        self.starts = np.concatenate([[0], np.cumsum([file.rows for file in files], dtype=np.int64)]).astype(np.int64)
        self._maps: dict[str, np.ndarray] = {}
        # Copies out of the page cache slow each other down when there are more of them than cores.
        local = bool(files) and folder.local_path(files[0].name) is not None
        self.reads_in_flight = min(READS_IN_FLIGHT, os.cpu_count() or 1) if local else READS_IN_FLIGHT

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}

    def read(
        self, start: int, stop: int, out: UInt8[np.ndarray, "R bytes"] | None = None
    ) -> UInt8[np.ndarray, "R bytes"]:
        """Returns rows [start, stop), in `out` where given. JobError names a file that is missing or too short."""
        if out is None:
            if (stop - start) * self.row_bytes > LARGE_BYTES:
                self.check_present(start, stop)
            out = np.empty((stop - start, self.row_bytes), np.uint8)
        done = 0
        adjacent: list[_Piece] = []
        while start + done < stop:
            number = self.file_of(start + done)
            file, first = self._files[number], start + done - int(self.starts[number])
            count = min(file.rows - first, stop - start - done)
            piece = self._piece(file, file.offset + first * self.row_bytes, out[done : done + count].reshape(-1))
            if adjacent and not piece.follows(adjacent[-1]):
                self._read_pieces(adjacent)
                adjacent = []
            adjacent.append(piece)
            done += count
        self._read_pieces(adjacent)
        return out

    def gather(self, index: Int[np.ndarray, "R"]) -> UInt8[np.ndarray, "R bytes"]:
        """Returns the rows with these numbers, in this order; all must be in range."""
        if self._files and self._folder.local_path(self._files[0].name) is None:
            return self._gather_remote(index)
        numbers = np.searchsorted(self.starts, index, "right") - 1
        order = np.argsort(numbers, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(index) else []
        if len(groups) == 1:
            return self._take(int(numbers[0]), index)
        out = np.empty((len(index), self.row_bytes), np.uint8)
        for group in groups:
            out[group] = self._take(int(numbers[group[0]]), index[group])
        return out

    def check_present(self, start: int, stop: int) -> None:
        """Raises JobError, naming the file, where one that holds rows [start, stop) is missing or too short."""
        numbers = range(self.file_of(start), self.file_of(stop - 1) + 1) if start < stop else ()
        for file in (self._files[number] for number in numbers):
            last = file.offset + file.rows * self.row_bytes - 1
            try:
                present = not file.rows or self._folder.read(file.name, last, 1)
            except FileNotFoundError:
                raise self._missing(file) from None
            if not present:
                raise self._bad(file, f"ends before its {file.rows} rows do")

    def file_of(self, row: int) -> int:
        """Returns the number of the file that holds the row."""
        return int(np.searchsorted(self.starts, row, "right")) - 1

    def _gather_remote(self, index: np.ndarray) -> np.ndarray:
        # Consecutive rows are fetched with one request, and requests overlap.
        rows, places = np.unique(index, return_inverse=True)
        unique = np.empty((len(rows), self.row_bytes), np.uint8)
        breaks = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1, [len(rows)]])

        def fetch(first: int, stop: int) -> None:
            if first < stop:
                self.read(int(rows[first]), int(rows[stop - 1]) + 1, unique[first:stop])

        with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
            list(pool.map(fetch, breaks[:-1].tolist(), breaks[1:].tolist()))
        return unique[places]

    def _piece(self, file: FileRows, start: int, out: np.ndarray) -> "_Piece":
        span = start, start + out.nbytes
        return _Piece(file, start, out, span if self._checks is None else self._checks.widened(file, *span))

    def _read_pieces(self, pieces: Sequence["_Piece"]) -> None:
        """Fills adjacent pieces of one file with one read, which is repeated where it came out wrong."""
        if not pieces:
            return
        for _ in range(READ_ATTEMPTS):
            if all(self._hold(piece, segments) for piece, segments in self._read_once(pieces)):
                return
        raise not_as_stored(self._folder.url, pieces[0].file.name)

    def _hold(self, piece: "_Piece", segments: list[np.ndarray]) -> bool:
        return self._checks is None or self._checks.hold(piece.file, piece.span[0], segments)

    def _read_once(self, pieces: Sequence["_Piece"]) -> Iterator[tuple["_Piece", list[np.ndarray]]]:
        """Fills the pieces; yields each with the content of its span."""
        file, (start, stop) = pieces[0].file, (pieces[0].span[0], pieces[-1].span[1])
        # A piece by itself is filled in place, with what is read around it on either side.
        inner = pieces[0].out if len(pieces) == 1 else np.empty(stop - start, np.uint8)
        before = np.empty(pieces[0].start - start if len(pieces) == 1 else 0, np.uint8)
        segments = [before, inner, np.empty(stop - start - len(before) - len(inner), np.uint8)]
        try:
            # Not through a memory map: page faults would come one by one.
            filled = self._folder.read_into(file.name, start, *(segment.data for segment in segments))
        except FileNotFoundError:
            raise self._missing(file) from None
        if filled != stop - start:
            raise self._bad(file, f"ends {stop - start - filled} bytes too early")
        if len(pieces) == 1:
            yield pieces[0], segments
            return
        for piece in pieces:
            first, last = piece.span
            piece.out[:] = inner[piece.start - start : piece.stop - start]
            yield piece, [inner[first - start : last - start]]

    def _take(self, number: int, index: np.ndarray) -> np.ndarray:
        file, rows = self._files[number], index - self.starts[number]
        mapped, places = self._mapped(number), file.offset + rows * self.row_bytes
        if self._checks and not self._checks.hold_mapped(file, self._maps[file.name], places, self.row_bytes):
            raise not_as_stored(self._folder.url, file.name)
        return np.take(mapped, rows, axis=0)

    def _mapped(self, number: int) -> np.ndarray:
        """Returns the batch's rows [rows, row_bytes] on the memory map of their file."""
        file = self._files[number]
        raw = self._maps.get(file.name)
        if raw is None:
            raw = self._map(file)
            if len(self._maps) >= MAPS_OPEN:
                self._maps.pop(next(iter(self._maps)))
            self._maps[file.name] = raw
        return raw[file.offset : file.offset + file.rows * self.row_bytes].reshape(file.rows, self.row_bytes)

    def _map(self, file: FileRows) -> np.ndarray:
        path = self._folder.local_path(file.name)
        assert path is not None
        try:
            raw = np.asarray(np.memmap(path, np.uint8, "r"))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise self._missing(file) from None
        except OSError as error:
            raise self._bad(file, f"cannot be read ({error.strerror})") from None
        except ValueError:
            raise self._bad(file, "is empty") from None
        if len(raw) != file.size:
            raise self._bad(file, f"has {len(raw)} bytes, metadata.json says {file.size}")
        return raw

    def _missing(self, file: FileRows) -> JobError:
        return JobError(f"{self._folder.url}/{file.name}: is {MISSING}")

    def _bad(self, file: FileRows, reason: str) -> JobError:
        return JobError(f"{self._folder.url}/{file.name}: {reason}; copy it again, or run the job again")


@dataclass(frozen=True)
class _Piece:
    """A range of a file, from byte `start` on, that is read into `out`, within the `span` that is read for it."""

    file: FileRows
    start: int
    out: np.ndarray
    span: tuple[int, int]

    @property
    def stop(self) -> int:
        return self.start + self.out.nbytes

    def follows(self, other: "_Piece") -> bool:
        """Returns whether one read serves both: they are in one file, at most GAP_BYTES apart."""
        return self.file.name == other.file.name and 0 <= self.span[0] - other.span[1] <= GAP_BYTES


class SelectedRows:
    """Selected rows of a source, renumbered from 0, at eight bytes of memory per row.

    `numbers` are their numbers in the source, ascending.
    """

    def __init__(self, reader: RowSource, numbers: Int[np.ndarray, "R"]) -> None:
        self.row_bytes, self.reads_in_flight = reader.row_bytes, reader.reads_in_flight
        self.numbers = numbers
        self._reader = reader

    def __len__(self) -> int:
        return len(self.numbers)

    def read(
        self, start: int, stop: int, out: UInt8[np.ndarray, "R bytes"] | None = None
    ) -> UInt8[np.ndarray, "R bytes"]:
        """Returns rows [start, stop), in `out` where given; reads the excluded rows between them, as they are few."""
        out = np.empty((stop - start, self.row_bytes), np.uint8) if out is None else out
        if start < stop:
            selected = self.numbers[start:stop]
            spanned = self._reader.read(int(selected[0]), int(selected[-1]) + 1)
            np.take(spanned, selected - selected[0], axis=0, out=out)
        return out

    def gather(self, index: Int[np.ndarray, "R"]) -> UInt8[np.ndarray, "R bytes"]:
        """Returns the rows with these numbers, in this order; all must be in range."""
        return self._reader.gather(self.numbers[index])

    def check_present(self, start: int, stop: int) -> None:
        """Checks the files of the rows, and of those between them. JobError as of the source."""
        if start < stop:
            self._reader.check_present(int(self.numbers[start]), int(self.numbers[stop - 1]) + 1)

    def left_out(self) -> Iterator[UInt8[np.ndarray, "R bytes"]]:
        """Yields the other rows of the source, ascending, at most PART_ROWS at a time."""
        others = np.setdiff1d(np.arange(len(self._reader)), self.numbers, assume_unique=True)
        for start in range(0, len(others), PART_ROWS):
            yield self._reader.gather(others[start : start + PART_ROWS])
