"""Rows of a file, read in blocks: each byte once, whether the format allows ranges or only reading on.

A reader streams blocks from where it can begin; blocks that pass are cached, so that neighbouring batches and threads
share them.
"""

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from pod_job.errors import JobError
from pod_job.prompts.sources.index import FileEntry
from pod_job.prompts.sources.places import FIELD, DataFile
from pod_job.prompts.sources.sample import BrokenTask, Sample

CACHE_BYTES = 64 << 20
"""Bytes of the blocks that are kept: more than those of a shuffle window."""


class BlockCache:
    """The blocks used last, of all files of a source; safe to share between threads."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._blocks: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> Any:
        """Returns a block; None where it is not kept."""
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def put(self, key: tuple[str, int], block: Any) -> None:
        with self._lock:
            if key in self._blocks:
                return
            self._blocks[key] = block
            self._bytes += size_of(block)
            while self._bytes > self._limit and len(self._blocks) > 1:
                self._bytes -= size_of(self._blocks.popitem(last=False)[1])


def size_of(block: Any) -> int:
    return len(block) if isinstance(block, bytes) else block.nbytes


class Counted:
    """Result of counting a file: what its entry of an index has; `checksum`: where all of it was read."""

    def __init__(self, samples: int, marks: bytes = b"", checksum: str | None = None, entries: bytes = b"") -> None:
        self.samples, self.marks, self.checksum, self.entries = samples, marks, checksum, entries


class FileReader(ABC):
    """Samples of one file. Subclasses say how its blocks are read.

    Attributes:
        starts: the first row of each block, and at the end the number of rows.
        sequential: reading on is cheap, jumping is not.
    """

    sequential = False

    def __init__(self, file: DataFile, entry: FileEntry, cache: BlockCache, alone: bool) -> None:
        """`alone`: no other file is in the source, so that a row's number names it."""
        self.file, self.entry, self.cache, self.alone = file, entry, cache, alone
        self.where = f"{FIELD}={entry.url}"
        self._stream: Iterator[Any] | None = None
        self._next = 0
        self._lock = threading.Lock()
        self.starts: Int64[np.ndarray, " n"] = self.block_starts() if entry.samples is not None else np.zeros(1, int)

    @abstractmethod
    def count(self) -> Counted:
        """Returns how many samples the file has. JobError where it cannot be read."""

    @abstractmethod
    def block_starts(self) -> Int64[np.ndarray, " n"]:
        """Returns `starts`, of the entry's marks."""

    @abstractmethod
    def stream(self, block: int, stop: int) -> Iterator[Any]:
        """Yields the blocks from `block` on, which is an `entry_block`; it may end at `stop`."""

    @abstractmethod
    def sample(self, block: Any, index: int, row: int) -> Sample:
        """Returns the sample at `index` of a block, which is `row` of the file. BrokenTask where it cannot be used."""

    @abstractmethod
    def head(self, count: int) -> Iterator[Sample | BrokenTask]:
        """Yields the first samples of the file, at most `count`, without an index."""

    def rows_at_a_glance(self) -> int:
        """Returns about how many samples the file has, without reading it."""
        return 1

    def entry_block(self, block: int) -> int:
        """Returns the last block up to `block` at which reading can begin."""
        return block

    def entry_row(self, row: int) -> int:
        """Returns the last row up to `row` at which reading can begin."""
        block = int(np.searchsorted(self.starts, row, side="right")) - 1
        return int(self.starts[self.entry_block(block)])

    def opened(self, block: Any) -> Any:
        """Returns a block in the form in which `sample` takes it."""
        return block

    def task_id(self, label: str) -> str:
        return label if self.alone else f"{self.entry.name}:{label}"

    def samples(self, rows: Sequence[int]) -> Iterator[Sample | BrokenTask]:
        """Yields the samples of ascending rows."""
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        blocks = self._blocks(np.unique(numbers).tolist())
        opened: tuple[int, Any] = (-1, None)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            if opened[0] != number:
                opened = number, self.opened(blocks[number])
            yield self.read(opened[1], row - int(self.starts[number]), row)

    def read(self, block: Any, index: int, row: int) -> Sample | BrokenTask:
        """Returns what `sample` does, or why there is none."""
        try:
            return self.sample(block, index, row)
        except BrokenTask as broken:
            return broken

    def _blocks(self, wanted: list[int]) -> dict[int, Any]:
        blocks = self._cached(wanted)
        if len(blocks) < len(wanted):
            with self._lock:
                blocks |= self._cached([number for number in wanted if number not in blocks])
                missing = [number for number in wanted if number not in blocks]
                for run in runs(missing):
                    blocks |= self._read_run(run)
        return blocks

    def _cached(self, wanted: Sequence[int]) -> dict[int, Any]:
        cached = ((number, self.cache.get((self.entry.url, number))) for number in wanted)
        return {number: block for number, block in cached if block is not None}

    def _read_run(self, run: range) -> dict[int, Any]:
        """Returns the blocks of a run; the stream of the last call goes on where it comes by there."""
        first, blocks = self.entry_block(run.start), {}
        if self._stream is None or not first <= self._next <= run.start:
            self._stream, self._next = self.stream(first, run.stop), first
        while self._next < run.stop:
            block = next(self._stream, None)
            if block is None:  # its part of the file ends here
                self._stream, self._next = self.stream(self._next, run.stop), self._next
                block = next(self._stream, None)
            if block is None:
                raise changed(self.entry.url)
            self.cache.put((self.entry.url, self._next), block)
            if self._next in run:
                blocks[self._next] = block
            self._next += 1
        return blocks


def runs(numbers: Sequence[int]) -> list[range]:
    """Returns ascending numbers as ranges without gaps."""
    ranges: list[range] = []
    for number in numbers:
        if ranges and ranges[-1].stop == number:
            ranges[-1] = range(ranges[-1].start, number + 1)
        else:
            ranges.append(range(number, number + 1))
    return ranges


def changed(what: str) -> JobError:
    """Returns the error for a file, or a sample, that is no longer as it was when it was counted."""
    return JobError(
        f"{FIELD}: {what} was changed after this start had read it; nothing of the change is stored: put it back, "
        "or use the new tasks with a storage.run_dir of their own, and start the job again"
    )
