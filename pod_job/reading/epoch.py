"""One pass over numbered rows in shuffled batches: a pure order, and an iterator that reads ahead along it.

The rows are cut into blocks; the blocks are permuted and assigned to the trainer's processes; each process reads its
blocks a window at a time and permutes the rows of the window. Every read is large, and the order is a function of the
settings alone, so that any batch can be found without reading those before it.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Int

from pod_job.errors import JobError
from pod_job.reading.row_source import RowSource

BLOCK_ROWS = 1024
BUCKET_BLOCK_ROWS = 4096
"""Larger than a disk's, as a request to a bucket takes as long as reading a megabyte."""


class OrderOptions(TypedDict, total=False):
    """Keywords of `ActivationDataset.batches` that make its Order."""

    shuffle: bool
    seed: int
    epoch: int
    shard: tuple[int, int]
    buffer_rows: int
    drop_last: bool
    block_rows: int


@dataclass(frozen=True)
class Order:
    """Order of all rows in one epoch, for process `shard[0]` of `shard[1]`.

    Numbers of blocks per process differ by one at most, so numbers of batches may differ by a few; with `drop_last`
    every process gets as many full batches as the one with the fewest rows.

    Raises:
        JobError: a shard that is not an (index, count), or a size below 1.
    """

    rows: int
    batch_size: int
    shuffle: bool = True
    seed: int = 0
    epoch: int = 0
    shard: tuple[int, int] = (0, 1)
    buffer_rows: int = 65_536
    drop_last: bool = False
    block_rows: int = BLOCK_ROWS

    def __post_init__(self) -> None:
        index, count = self.shard
        if not 0 <= index < count:
            raise JobError(f"shard={self.shard}: must be (index, count) with 0 <= index < count")
        for name in ("batch_size", "buffer_rows", "block_rows"):
            if getattr(self, name) < 1:
                raise JobError(f"{name}={getattr(self, name)}: must be at least 1")

    @cached_property
    def blocks(self) -> Int[np.ndarray, "blocks"]:
        """Numbers of this process's blocks, in the order of reading."""
        return self._every_block[self.shard[0] :: self.shard[1]]

    @cached_property
    def _every_block(self) -> Int[np.ndarray, "all_blocks"]:
        count = -(-self.rows // self.block_rows)
        return np.random.default_rng([self.seed, self.epoch]).permutation(count) if self.shuffle else np.arange(count)

    def _rows_of(self, blocks: Int[np.ndarray, "_"]) -> int:
        return int(np.minimum(self.block_rows, self.rows - blocks * self.block_rows).sum())

    @cached_property
    def windows(self) -> list[Int[np.ndarray, "_"]]:
        """Numbers of this process's blocks, cut into the groups that are in memory together."""
        size = max(1, self.buffer_rows // self.block_rows)
        return [self.blocks[start : start + size] for start in range(0, len(self.blocks), size)]

    @cached_property
    def starts(self) -> Int[np.ndarray, "windows_and_one"]:
        """Places in this process's order at which the windows begin; the last entry is its number of rows."""
        return np.cumsum([0, *map(self._rows_of, self.windows)])

    @property
    def batches(self) -> int:
        """Number of batches of this process."""
        if not self.drop_last:
            return -(-int(self.starts[-1]) // self.batch_size)
        count = self.shard[1]
        return min(self._rows_of(self._every_block[index::count]) for index in range(count)) // self.batch_size

    def permutation(self, window: int) -> Int[np.ndarray, "rows"]:
        """Returns the order of the rows of a window, as indices into the window."""
        size = int(self.starts[window + 1] - self.starts[window])
        if not self.shuffle:
            return np.arange(size)
        return np.random.default_rng([self.seed, self.epoch, self.shard[0], window]).permutation(size)


@dataclass(frozen=True)
class _Window:
    """A window being read: `buffer` is filled when all `reads` are done; `rows` are the row numbers in it."""

    buffer: np.ndarray
    rows: np.ndarray
    permutation: np.ndarray
    reads: list[Future]


class Batches:
    """Iterator over the batches of an Order that reads one window ahead; `len` is the number of all its batches.

    It takes the memory of two windows of `buffer_rows` rows.
    """

    def __init__(self, reader: RowSource, order: Order, present: Callable[[np.ndarray, np.ndarray], Any]) -> None:
        self.order = order
        self._reader = reader
        self._present = present
        self._delivered = 0
        self._forget()

    def __len__(self) -> int:
        return self.order.batches

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Any:
        if self._delivered >= self.order.batches:
            self._forget()
            raise StopIteration
        place = self._delivered * self.order.batch_size
        stop = min(place + self.order.batch_size, int(self.order.starts[-1]))
        vectors, rows = [], []
        while place < stop:
            number = int(np.searchsorted(self.order.starts, place, "right")) - 1
            window, start = self._window(number), int(self.order.starts[number])
            chosen = window.permutation[place - start : stop - start]
            vectors.append(np.take(window.buffer, chosen, axis=0))
            rows.append(window.rows[chosen])
            place += len(chosen)
        self._delivered += 1
        joined = (vectors[0], rows[0]) if len(rows) == 1 else (np.concatenate(vectors), np.concatenate(rows))
        return self._present(*joined)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position as JSON values; `load_state_dict` continues with the next batch."""
        return {**asdict(self.order), "shard": list(self.order.shard), "delivered": self._delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at the position of `state`, in its epoch.

        Raises:
            JobError: the state was saved with other settings, so that its order has other rows.
        """
        order = replace(self.order, epoch=state["epoch"])
        settings = {**asdict(order), "shard": list(order.shard)}
        if differing := [key for key in settings if state.get(key) != settings[key]]:
            shown = "; ".join(f"{key} was {state.get(key)}, is {settings[key]}" for key in differing)
            raise JobError(f"the state is of another order: {shown}; use the settings it was saved with")
        self.order, self._delivered = order, state["delivered"]
        self._forget()

    def _forget(self) -> None:
        """Drops the windows read ahead, and their buffers: a read still in flight may write into them."""
        self._pool: ThreadPoolExecutor | None = None
        self._windows: dict[int, _Window] = {}
        self._spare: list[np.ndarray] = []

    def _window(self, number: int) -> _Window:
        """Returns the filled window, and begins to read the next one."""
        for passed in [opened for opened in self._windows if opened < number]:
            self._spare.append(self._windows.pop(passed).buffer)
        for needed in (number, number + 1):
            if needed not in self._windows and needed < len(self.order.windows):
                self._windows[needed] = self._begin(needed)
        window = self._windows[number]
        for read in window.reads:
            read.result()
        window.reads.clear()
        return window

    def _begin(self, number: int) -> _Window:
        self._pool = self._pool or ThreadPoolExecutor(self._reader.reads_in_flight)
        most = int(np.diff(self.order.starts).max())
        buffer = self._spare.pop() if self._spare else np.empty((most, self._reader.row_bytes), np.uint8)
        reads, rows, filled = [], [], 0
        for block in self.order.windows[number].tolist():
            first = block * self.order.block_rows
            last = min(first + self.order.block_rows, self.order.rows)
            reads.append(self._pool.submit(self._reader.read, first, last, buffer[filled : filled + last - first]))
            rows.append(np.arange(first, last))
            filled += last - first
        return _Window(buffer, np.concatenate(rows), self.order.permutation(number), reads)
