"""Vectors of a finished run as rows to train on: in an order that depends on the run and a seed only, on no mesh.

Blocks of consecutive rows are permuted, each pass over the run in another way. A place in that order names one row, so
that every host reads its own part of each step and a start goes on at any step.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Shaped

from pod_job.formats.quantized import from_rows, is_eight_bit
from pod_job.formats.rows_table import FLAGS
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.planning.training import SourceRun
from pod_job.reading.epoch import BLOCK_ROWS, BUCKET_BLOCK_ROWS
from pod_job.reading.tap_rows import open_rows
from pod_job.run_folder import layout
from pod_job.run_folder.entries import read_rows


class RunOrder:
    """Order of the rows of a run over all passes: place p is row p % rows of the permuted blocks of pass p // rows."""

    def __init__(self, rows: int, block_rows: int, seed: int) -> None:
        self.rows, self.block_rows, self.seed = rows, block_rows, seed
        self._epoch = -1
        self._blocks = self._starts = np.zeros(0, np.int64)

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yields the ranges of rows, as first and last + 1, that the places [start, stop) are, in their order."""
        while start < stop:
            epoch, place = divmod(start, self.rows)
            self._permute(epoch)
            at = int(np.searchsorted(self._starts, place, "right")) - 1
            first = int(self._blocks[at]) * self.block_rows + place - int(self._starts[at])
            count = min(int(self._starts[at + 1]) - place, stop - start)
            yield first, first + count
            start += count

    def _permute(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        count = -(-self.rows // self.block_rows)
        self._epoch, self._blocks = epoch, np.random.default_rng([self.seed, epoch]).permutation(count)
        sizes = np.minimum(self.block_rows, self.rows - self._blocks * self.block_rows)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])


class RunRows:
    """Reads vectors of several taps of a run by their places in a RunOrder, once for all SAEs."""

    def __init__(self, source: SourceRun, taps: Sequence[str], seed: int) -> None:
        described, bucket = source.metadata, source.folder.local_path(layout.METADATA) is None
        self.source, self.stored = source, DTYPE_OF[described.dtype]
        self.order = RunOrder(described.rows, BUCKET_BLOCK_ROWS if bucket else BLOCK_ROWS, seed)
        self.readers = {tap: open_rows(source.folder, described, tap) for tap in taps}
        self.pool = ThreadPoolExecutor(max(reader.reads_in_flight for reader in self.readers.values()))
        self.starts = np.cumsum([0, *(entry.rows for entry in described.rows_files)], dtype=np.int64)
        self._usable: dict[int, np.ndarray] = {}

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the rows: as stored, of eight bits bfloat16, of float16, whose range is small, float32."""
        if is_eight_bit(self.stored):
            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(np.float32) if self.stored == np.float16 else self.stored

    def read(self, start: int, stop: int) -> tuple[dict[str, Shaped[np.ndarray, "N _"]], Bool[np.ndarray, "N"]]:
        """Returns the vectors [N, width] of each tap at places [start, stop), and which rows may be trained on.

        Rows of special tokens, of attention sinks and with values that are not finite may not.
        """
        spans = list(self.order.spans(start, stop))
        vectors = {tap: np.empty((stop - start, reader_width(self, tap)), self.dtype) for tap in self.readers}
        valid, reads, at = np.empty(stop - start, bool), [], 0
        for first, last in spans:
            places = slice(at, at + last - first)
            reads += [
                self.pool.submit(self._read_span, tap, (first, last), out[places]) for tap, out in vectors.items()
            ]
            reads.append(self.pool.submit(self._flag_span, (first, last), valid[places]))
            at = places.stop
        for read in reads:
            read.result()
        return vectors, valid

    def _read_span(self, tap: str, span: tuple[int, int], out: np.ndarray) -> None:
        raw = self.readers[tap].read(*span)
        values = from_rows(raw, out.shape[1], self.stored)
        out[:] = values if values.dtype == out.dtype else np.asarray(values, np.float32).astype(out.dtype)

    def _flag_span(self, span: tuple[int, int], out: np.ndarray) -> None:
        first, last = span
        while first < last:
            batch = int(np.searchsorted(self.starts, first, "right")) - 1
            start = int(self.starts[batch])
            stop = min(last, int(self.starts[batch + 1]))
            out[first - span[0] : stop - span[0]] = self._usable_rows(batch)[first - start : stop - start]
            first = stop

    def _usable_rows(self, batch: int) -> Bool[np.ndarray, "R"]:
        """Returns which rows of a batch may be trained on; the tables are read once and kept as one bit per row."""
        rows = int(self.starts[batch + 1] - self.starts[batch])
        if batch not in self._usable:
            table = read_rows(self.source.folder, self.source.metadata.rows_files[batch])
            flagged = np.logical_or.reduce([getattr(table, name) for name in FLAGS])
            self._usable[batch] = np.packbits(~flagged)
        return np.unpackbits(self._usable[batch], count=rows).astype(bool)


def reader_width(rows: RunRows, tap: str) -> int:
    """Returns the size of a vector of the tap."""
    return rows.source.metadata.widths[tap]


def host_places(step: int, batch_rows: int, feeder: int, feeders: int) -> tuple[int, int]:
    """Returns the places [start, stop) of a step that a feeder reads, of which every one reads as many."""
    part = batch_rows // feeders
    start = step * batch_rows + feeder * part
    return start, start + part
