"""Order of a run's samples: which of the source's documents they are, from a seed and a few numbers.

`tasks.sample` takes one document, drawn by the seed, of every stretch of 1/sample documents. `tasks.shuffle` permutes
extents (runs of neighbouring documents; of files that can only be read on, whole files), and then the documents within
each window of a fixed number of them. So a document moves anywhere, and its new neighbours come from as many extents as
a window holds; a host that computes a window's batches reads its extents once.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64, UInt64

from pod_job.prompts.sources.splitmix import STEP, splitmix64

WINDOW_BYTES = 32 << 20
"""Bytes of the documents of a window, about; it is held in memory."""
SMALLEST_WINDOW, LARGEST_WINDOW = 1 << 10, 1 << 16
EXTENTS = 32
"""Extents of a window."""


@dataclass(frozen=True)
class OrderRules:
    """Rules that the order follows from.

    Attributes:
        rows: documents of the source; `file_starts` are the first rows of its files, in their order.
        row_bytes: bytes of a document, on average.
        sample, shuffle: as TasksConfig has them.
        whole_files: files are only read on, so extents are whole files.
    """

    rows: int
    file_starts: tuple[int, ...]
    row_bytes: float
    sample: float | None
    shuffle: int | None
    whole_files: bool

    @property
    def window(self) -> int:
        """Documents of a window: a power of two."""
        wanted = WINDOW_BYTES / max(1.0, self.row_bytes)
        return 1 << int(np.clip(np.log2(max(wanted, 1)), np.log2(SMALLEST_WINDOW), np.log2(LARGEST_WINDOW)))


class Order:
    """Rows of a source's documents by the index of the sample."""

    def __init__(self, rules: OrderRules) -> None:
        self.rules = rules
        fraction = rules.sample or 1.0
        self.samples = max(1, int(rules.rows * fraction)) if rules.rows else 0
        self._seed = rules.shuffle or 0
        if rules.shuffle is not None:
            self._extents = extents(self)
            sizes = np.diff(self._extents)
            self._permuted = np.random.default_rng([self._seed, 0]).permutation(len(sizes))
            self._starts = np.concatenate([[0], np.cumsum(sizes[self._permuted])]).astype(np.int64)
        self._window = lru_cache(4)(self._window_permutation)

    def rows(self, indices: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Returns the row of each sample."""
        indices = np.asarray(indices, np.int64)
        return self.sampled(self.shuffled(indices) if self.rules.shuffle is not None else indices)

    def sampled(self, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Returns the rows that `tasks.sample` takes, by their numbers; they ascend."""
        if self.rules.sample is None or self.samples == self.rules.rows:
            return numbers
        low, high = (self._bound(numbers + step) for step in (0, 1))
        return low + (self._draws(numbers) % (high - low).astype(np.uint64)).astype(np.int64)

    def _draws(self, numbers: Int64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
        with np.errstate(over="ignore"):
            return splitmix64(numbers.astype(np.uint64) + np.uint64(self._seed) * STEP)

    def _bound(self, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        rows, samples = self.rules.rows, self.samples
        return numbers * (rows // samples) + numbers * (rows % samples) // samples

    def shuffled(self, indices: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        window = self.rules.window
        places = np.empty_like(indices)
        numbers = indices // window
        for number in np.unique(numbers).tolist():
            inside = numbers == number
            places[inside] = number * window + self._window(number)[indices[inside] - number * window]
        extent = np.searchsorted(self._starts, places, side="right") - 1
        return self._extents[self._permuted[extent]] + places - self._starts[extent]

    def _window_permutation(self, number: int) -> Int64[np.ndarray, " n"]:
        size = min(self.rules.window, self.samples - number * self.rules.window)
        return np.random.default_rng([self._seed, 1, number]).permutation(size)


def extents(order: Order) -> Int64[np.ndarray, " n"]:
    """Returns the first numbers of the extents, and at the end the number of samples."""
    rules = order.rules
    if not rules.whole_files:
        step = max(1, rules.window // EXTENTS)
        return np.append(np.arange(0, order.samples, step), order.samples).astype(np.int64)
    starts = [first_from(order, row) for row in rules.file_starts]
    return np.unique(np.array([0, *starts, order.samples], np.int64))


def first_from(order: Order, row: int) -> int:
    """Returns the number of the first sampled row from `row` on."""
    low, high = 0, order.samples
    while low < high:
        middle = (low + high) // 2
        if int(order.sampled(np.array([middle]))[0]) < row:
            low = middle + 1
        else:
            high = middle
    return low
