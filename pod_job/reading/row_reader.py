"""Rows of one tap, numbered through the files of all batches, as raw bytes: ranges at full speed, or any selection."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int, UInt8

from pod_job.errors import JobError
from pod_job.reading.joined_rows import RowSource
from pod_job.storage import Folder

READS_IN_FLIGHT = 8
PART_ROWS = 65_536
MAPS_OPEN = 512
"""Memory maps kept; the kernel allows a process about 65,000."""


@dataclass(frozen=True)
class FileRows:
    """One tap file: its name in the run folder, its rows, where their bytes begin, and its whole size in bytes."""

    name: str
    rows: int
    offset: int
    size: int


class RowReader:
    """Reads rows of `row_bytes` bytes. Row numbers run on from file to file. Safe to pickle and to use after a fork."""

    def __init__(self, folder: Folder, files: Sequence[FileRows], row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self._folder = folder
        self._files = list(files)
        self.starts = np.concatenate([[0], np.cumsum([file.rows for file in files], dtype=np.int64)]).astype(np.int64)
        self._maps: dict[int, np.ndarray] = {}
        # More copies out of the page cache than cores only hinder each other.
        local = bool(files) and folder.local_path(files[0].name) is not None
        self.reads_in_flight = min(READS_IN_FLIGHT, os.cpu_count() or 1) if local else READS_IN_FLIGHT

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}

    def read(
        self, start: int, stop: int, out: UInt8[np.ndarray, "R bytes"] | None = None
    ) -> UInt8[np.ndarray, "R bytes"]:
        """Rows [start, stop), in `out` where given. JobError naming the file that is missing or too short."""
        if out is None:
            out = np.empty((stop - start, self.row_bytes), np.uint8)
        done = 0
        while start + done < stop:
            number = self.file_of(start + done)
            first = start + done - int(self.starts[number])
            count = min(self._files[number].rows - first, stop - start - done)
            self._read_from(self._files[number], first, out[done : done + count])
            done += count
        return out

    def gather(self, index: Int[np.ndarray, "R"]) -> UInt8[np.ndarray, "R bytes"]:
        """The rows with these numbers, in this order; all must be in range."""
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

    def file_of(self, row: int) -> int:
        """The number of the file that holds the row."""
        return int(np.searchsorted(self.starts, row, "right")) - 1

    def _gather_remote(self, index: np.ndarray) -> np.ndarray:
        # Neighbours are fetched with one request, and requests overlap.
        rows, places = np.unique(index, return_inverse=True)
        found = np.empty((len(rows), self.row_bytes), np.uint8)
        breaks = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1, [len(rows)]])
        runs = [(int(a), int(b)) for a, b in pairwise(breaks) if a < b]
        with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
            list(
                pool.map(lambda run: self.read(int(rows[run[0]]), int(rows[run[1] - 1]) + 1, found[slice(*run)]), runs)
            )
        return found[places]

    def _read_from(self, file: FileRows, first: int, out: np.ndarray) -> None:
        try:
            # Not through a map: page faults would come one by one.
            got = self._folder.read_into(file.name, file.offset + first * self.row_bytes, out.reshape(-1).data)
        except FileNotFoundError:
            raise self._bad(file, "is missing") from None
        if got != out.nbytes:
            raise self._bad(file, f"ends {out.nbytes - got} bytes too early")

    def _take(self, number: int, index: np.ndarray) -> np.ndarray:
        return np.take(self._mapped(number), index - self.starts[number], axis=0)

    def _mapped(self, number: int) -> np.ndarray:
        """The file's rows [rows, row_bytes] on its memory map."""
        found = self._maps.get(number)
        if found is None:
            file = self._files[number]
            found = self._map(file)
            if len(self._maps) >= MAPS_OPEN:
                self._maps.pop(next(iter(self._maps)))
            self._maps[number] = found
        return found

    def _map(self, file: FileRows) -> np.ndarray:
        path = self._folder.local_path(file.name)
        assert path is not None
        try:
            raw = np.asarray(np.memmap(path, np.uint8, "r"))
        except FileNotFoundError:
            raise self._bad(file, "is missing") from None
        except ValueError:
            raise self._bad(file, "is empty") from None
        if len(raw) != file.size:
            raise self._bad(file, f"has {len(raw)} bytes, metadata.json says {file.size}")
        return raw[file.offset : file.offset + file.rows * self.row_bytes].reshape(file.rows, self.row_bytes)

    def _bad(self, file: FileRows, reason: str) -> JobError:
        return JobError(f"{self._folder.url}/{file.name}: {reason}; copy it again or make the run anew")


class KeptRows:
    """Some rows of a source, renumbered from 0: `kept` are their numbers there, ascending. Eight bytes a row."""

    def __init__(self, reader: RowSource, kept: Int[np.ndarray, "R"]) -> None:
        self.row_bytes, self.reads_in_flight = reader.row_bytes, reader.reads_in_flight
        self.kept = kept
        self._reader = reader

    def __len__(self) -> int:
        return len(self.kept)

    def read(
        self, start: int, stop: int, out: UInt8[np.ndarray, "R bytes"] | None = None
    ) -> UInt8[np.ndarray, "R bytes"]:
        """Rows [start, stop), in `out` where given; what lies between them is read, too, for it is little."""
        out = np.empty((stop - start, self.row_bytes), np.uint8) if out is None else out
        if start < stop:
            numbers = self.kept[start:stop]
            around = self._reader.read(int(numbers[0]), int(numbers[-1]) + 1)
            np.take(around, numbers - numbers[0], axis=0, out=out)
        return out

    def gather(self, index: Int[np.ndarray, "R"]) -> UInt8[np.ndarray, "R bytes"]:
        """The rows with these numbers, in this order; all must be in range."""
        return self._reader.gather(self.kept[index])

    def left_out(self) -> Iterator[UInt8[np.ndarray, "R bytes"]]:
        """The other rows of the reader, ascending, at most PART_ROWS at a time."""
        others = np.setdiff1d(np.arange(len(self._reader)), self.kept, assume_unique=True)
        for start in range(0, len(others), PART_ROWS):
            yield self._reader.gather(others[start : start + PART_ROWS])
