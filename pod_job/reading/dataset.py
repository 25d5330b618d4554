"""A run as an array of activation vectors with their provenance: indexing, and shuffled batches for training."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Int

from pod_job.errors import JobError
from pod_job.formats import rows_table
from pod_job.formats.quantized import Vectors, from_rows, is_eight_bit
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.reading.arrays import CONVERT, Kind
from pod_job.reading.epoch import BLOCK_ROWS, BUCKET_BLOCK_ROWS, Batches, Order
from pod_job.reading.row_reader import READS_IN_FLIGHT, KeptRows
from pod_job.reading.tap_rows import open_rows
from pod_job.run_folder import layout, metadata
from pod_job.run_folder.entries import read_rows
from pod_job.run_folder.metadata import Metadata
from pod_job.storage.open import open_folder

TABLES_KEPT = 8
FLOATS = ("bfloat16", "float16", "float32")


class ActivationDataset:
    """The vectors of one tap of a run, in a local folder or under `gs://`.

    `dataset[i]`, `dataset[a:b]` and `dataset[index_array]` give [D] or [R, D] in the stored dtype (bfloat16 as
    `ml_dtypes.bfloat16`); `dataset.rows(i)` says where they come from; `dataset.batches(...)` iterates for training.
    With `as_="torch"` it serves as a map-style dataset for torch's DataLoader.

    Vectors of eight bits are given in float32, any in the `dtype` that is asked for; `raw` has them as stored.

    `exclude` leaves out rows by their flags: `special` (tokens that are not part of the text), `sink` (attention sinks,
    whose norms dwarf all others), `nonfinite`; the rest is numbered anew, and all rows tables are read at once.

    `described` is what metadata.json would say of a run that is not finished (`pod_job.merge.gather`).

    `positions` is what the caller counts on (`last`, `all` or `generated`): a run that kept others is refused.

    Raises JobError where the run has no metadata.json yet, where that is damaged, or where it has no such layer.
    """

    def __init__(
        self,
        run_dir: str | Path,
        layer: int | str,
        as_: Kind = "numpy",
        exclude: Sequence[str] = (),
        described: Metadata | None = None,
        positions: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self.folder = open_folder(run_dir)
        self.metadata = metadata.read(self.folder) if described is None else described
        self.tap = _tap(self.metadata, layer, self.folder.url)
        self.as_: Kind = as_
        _check_positions(self.metadata, positions, self.folder.url)
        entries = [entry for entry in self.metadata.batches if entry.layer == self.tap]
        self.stored: np.dtype = DTYPE_OF[self.metadata.dtype]
        self.dtype = _float_dtype(dtype or ("float32" if is_eight_bit(self.stored) else self.metadata.dtype))
        width = self.metadata.widths.get(self.tap, 0)
        files = open_rows(self.folder, self.metadata, self.tap)
        self._starts = np.cumsum([0, *(entry.rows for entry in entries)], dtype=np.int64)
        self._tables: dict[int, rows_table.Rows] = {}
        self._reader = KeptRows(files, self._without(exclude)) if exclude else files
        self.shape = (len(self._reader), width)

    @property
    def statistics(self) -> dict[str, Any]:
        """Statistics of the tap over the whole run, as `pod_job.run_folder.statistics.summary` gives them."""
        return msgspec.to_builtins(self.metadata.statistics[self.tap])

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"ActivationDataset({self.folder.url!r}, {self.tap!r}): {self.shape[0]} x {self.shape[1]} {self.dtype}"

    def __getitem__(self, index: Any) -> Any:
        """One vector [D] for an int; [R, D] for a slice, a list or array of ints, or a boolean mask of all rows."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._present(self._reader.read(start, max(start, stop)))
            return self[np.arange(start, stop, step)]
        if isinstance(index, (int, np.integer)):
            return self[np.array([index])][0]
        return self._present(self._reader.gather(self._numbers(index)))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """What torch's DataLoader calls to fetch a whole batch at once."""
        return list(self[np.asarray(indices)])

    def raw(self, index: Any) -> Vectors:
        """Rows [R, D] as they are stored, for a slice, a list or array of ints, or a mask: an `EightBit` (`values`,
        `scales`) where these are of eight bits.
        """
        numbers = np.arange(*index.indices(len(self))) if isinstance(index, slice) else self._numbers(index)
        return from_rows(self._reader.gather(numbers), self.shape[1], self.stored)

    def rows(self, index: Any) -> dict[str, Any]:
        """Provenance of the rows: arrays `task_id`, `sample_idx`, `position`, `token_id`, and the flags `special`,
        `sink`, `nonfinite`; single values for an int.
        """
        if isinstance(index, (int, np.integer)):
            return {name: values[0] for name, values in self.rows(np.array([index])).items()}
        numbers = np.arange(*index.indices(len(self))) if isinstance(index, slice) else self._numbers(index)
        dtypes = {**dict.fromkeys(rows_table.COLUMNS, np.int32), **dict.fromkeys(rows_table.FLAGS, np.bool_)}
        found = {name: np.empty(len(numbers), dtype) for name, dtype in (dtypes | {"task_id": object}).items()}
        numbers, batches = self._places(numbers)
        for batch in np.unique(batches).tolist():
            places = np.flatnonzero(batches == batch)
            table = self._table(batch)
            for name, column in found.items():
                column[places] = getattr(table, name)[numbers[places] - self._starts[batch]]
        return found

    def batch_of(self, index: Any) -> Int[np.ndarray, "R"]:
        """The numbers of the batches that the rows were computed in."""
        numbers = np.array([entry.batch_id for entry in self.metadata.rows_files])
        return numbers[self._places(self._numbers(index))[1]]

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        shard: tuple[int, int] = (0, 1),
        buffer_rows: int = 65_536,
        block_rows: int | None = None,
        as_: Kind | None = None,
        with_index: bool = False,
        drop_last: bool = False,
    ) -> Batches:
        """One epoch of batches [batch_size, D], in an order that the seed and the epoch determine.

        Args:
            shard: (index, count) of this trainer process; together the processes get every row once.
            buffer_rows: rows shuffled together in memory; two buffers of this size are held.
            block_rows: neighbours that are read at once; 1,024 from a disk and 4,096 from a bucket where not given.
            drop_last: whole batches only, and the same number of them for every process: data-parallel trainers take
                equally many steps. Which few rows that leaves out changes with the epoch.
            with_index: yield (vectors, row numbers), so that `rows(...)` can tell where they are from.
        Returns:
            An iterator with `state_dict` and `load_state_dict`, which continue at the very next batch.
        """
        if block_rows is None:
            block_rows = BUCKET_BLOCK_ROWS if self.folder.local_path(layout.METADATA) is None else BLOCK_ROWS
        order = Order(len(self), batch_size, shuffle, seed, epoch, shard, buffer_rows, drop_last, block_rows)

        def present(raw: np.ndarray, numbers: np.ndarray) -> Any:
            vectors = self._present(raw, as_)
            return (vectors, numbers) if with_index else vectors

        return Batches(self._reader, order, present)

    def excluded(self) -> Iterator[np.ndarray]:
        """The vectors that `exclude` leaves out, [R, D] in the stored dtype, a part at a time."""
        if isinstance(self._reader, KeptRows):
            for raw in self._reader.left_out():
                yield self._present(raw, "numpy")

    def _numbers(self, index: Any) -> np.ndarray:
        numbers = np.asarray(index)
        if numbers.dtype == bool and numbers.shape == (len(self),):
            return np.flatnonzero(numbers)
        if numbers.ndim != 1 or not (np.issubdtype(numbers.dtype, np.integer) or not numbers.size):
            raise IndexError(
                f"index of {numbers.dtype} {list(numbers.shape)}: use ints, a slice, or a mask of all rows"
            )
        numbers = np.where(numbers < 0, numbers + len(self), numbers).astype(np.int64)
        if ((numbers < 0) | (numbers >= len(self))).any():
            raise IndexError(f"row out of range: the dataset has {len(self)} rows")
        return numbers

    def _places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows' numbers among all rows of the run, and which batch holds each, by its place in metadata.json."""
        if isinstance(self._reader, KeptRows):
            numbers = self._reader.kept[numbers]
        return numbers, np.searchsorted(self._starts, numbers, "right") - 1

    def _without(self, exclude: Sequence[str]) -> np.ndarray:
        """The numbers of the rows that have none of the flags."""
        if unknown := sorted(set(exclude) - set(rows_table.FLAGS)):
            raise JobError(f"exclude={unknown[0]}: not a flag of rows; use {', '.join(rows_table.FLAGS)}")

        def kept(batch: int) -> np.ndarray:
            table = read_rows(self.folder, self.metadata.rows_files[batch])
            return np.flatnonzero(~np.logical_or.reduce([getattr(table, name) for name in exclude]))

        with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
            found = list(pool.map(kept, range(len(self._starts) - 1)))
        numbers = [rows + start for rows, start in zip(found, self._starts, strict=False)]
        return np.concatenate(numbers) if numbers else np.zeros(0, np.int64)

    def _present(self, raw: np.ndarray, as_: Kind | None = None) -> Any:
        vectors = from_rows(raw, self.shape[1], self.stored)
        if vectors.dtype != self.dtype:
            vectors = np.asarray(vectors, np.float32).astype(self.dtype, copy=False)
        return CONVERT[as_ or self.as_](vectors)

    def _table(self, batch: int) -> rows_table.Rows:
        """The rows table of the batch, by its place in metadata.json; the last few are kept."""
        if batch not in self._tables:
            table = read_rows(self.folder, self.metadata.rows_files[batch])
            if len(self._tables) >= TABLES_KEPT:
                self._tables.pop(next(iter(self._tables)))
            self._tables[batch] = table
        return self._tables[batch]


def _tap(metadata: Metadata, layer: int | str, url: str) -> str:
    tap = layer if isinstance(layer, str) else f"layer_{layer}"
    if tap not in metadata.taps:
        raise JobError(layer_not_found(layer, url, metadata.taps))
    return tap


def _check_positions(metadata: Metadata, wanted: str | None, url: str) -> None:
    kept = metadata.provenance.positions if wanted is not None else None
    if kept != wanted:
        raise JobError(
            f"Activations shape mismatch: positions={wanted}, but {url} kept {kept}: {metadata.rows} rows of "
            f"{metadata.total_samples} samples; extract with extract.positions={wanted} into a storage.run_dir of "
            "its own, or choose rows by dataset.rows(...)['position']"
        )


def layer_not_found(layer: int | str, url: str, taps: Sequence[str]) -> str:
    """What there is, and how to get what there is not: a run's taps are fixed when it starts."""
    wanted = f"extract.layers=[{layer}]" if str(layer).isdecimal() else f"extract.taps=[{layer}]"
    return (
        f"Layer not found in activations: layer={layer}; {url} has {', '.join(taps)}; for another, "
        f"run the job with {wanted} and a storage.run_dir of its own"
    )


def _float_dtype(name: str) -> np.dtype:
    if name not in FLOATS:
        raise JobError(f"dtype={name}: not one that vectors are read in; use {', '.join(FLOATS)}")
    return DTYPE_OF[name]
