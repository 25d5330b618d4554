"""ActivationDataset: a run as an array of vectors with their provenance, and in shuffled batches for training."""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict, Unpack

import msgspec
import numpy as np
from jaxtyping import Int

from pod_job.errors import JobError
from pod_job.formats import rows_table
from pod_job.formats.quantized import Vectors, from_rows, is_eight_bit
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.reading.arrays import CONVERT, Kind
from pod_job.reading.epoch import BLOCK_ROWS, BUCKET_BLOCK_ROWS, Batches, Order, OrderOptions
from pod_job.reading.row_reader import READS_IN_FLIGHT, SelectedRows
from pod_job.reading.row_source import RowSource
from pod_job.reading.tap_rows import open_rows
from pod_job.run_folder import layout, metadata
from pod_job.run_folder.entries import read_rows
from pod_job.run_folder.metadata import Metadata
from pod_job.run_folder.tokenizer import Decode, read_decoder
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

LARGE_ROWS = 1 << 20
"""Rows for whose provenance memory is taken only after their vectors were seen to be there."""
TABLES_KEPT = 8
"""Rows tables kept in memory."""
FLOATS = ("bfloat16", "float16", "float32")
CHECKS = ("first", "never")


class ReadOptions(TypedDict, total=False):
    """Keywords of ActivationDataset that say how vectors are read."""

    dtype: str | None
    check: str


class ActivationDataset:
    """Vectors of one tap of a run, in a local folder or under `gs://`.

    `dataset[i]`, `dataset[a:b]` and `dataset[index_array]` return [D] or [R, D] in the stored dtype (bfloat16 as
    `ml_dtypes.bfloat16`), vectors of eight bits in float32; `dataset.rows(i)` returns their provenance;
    `dataset.batches(...)` iterates for training. With `as_="torch"` it is a map-style dataset for torch's DataLoader.

    Args:
        layer: number of a layer, or name of a tap.
        as_: arrays to return: `numpy`, `torch` or `jax`.
        exclude: flags of rows to leave out: `special` (tokens that are not part of the text), `sink` (attention sinks,
            whose norms dwarf all others), `nonfinite`. The others are renumbered; all rows tables are read at once.
        positions: positions that the caller expects, as in metadata.json: `last`, `all`, `every=8`, ...
        dtype: `bfloat16`, `float16` or `float32`, to convert to; `raw` returns vectors as stored.
        check: `first`: every byte is held against its file's checksum before it is returned; of rows by number, when
            it is needed for the first time. `never` trusts disk and network.
    Raises:
        JobError: the run has no metadata.json, or a damaged one; it has no such tap, or stores other positions.
    """

    def __init__(
        self,
        run_dir: str | Path,
        layer: int | str,
        as_: Kind = "numpy",
        exclude: str | Sequence[str] = (),
        positions: str | None = None,
        **options: Unpack[ReadOptions],
    ) -> None:
        folder = open_folder(run_dir)
        self._open(folder, metadata.read(folder), layer, options)
        self.as_ = as_
        _check_positions(self.metadata, positions, folder.url)
        if exclude:
            flags = [exclude] if isinstance(exclude, str) else exclude
            self._reader = SelectedRows(self._reader, self._without(flags))
            self.shape = (len(self._reader), self.shape[1])

    @classmethod
    def from_metadata(cls, folder: Folder, described: Metadata, layer: int | str) -> "ActivationDataset":
        """Returns the dataset of a run that has no metadata.json, or an old one; `described` is its present content."""
        dataset = cls.__new__(cls)
        dataset._open(folder, described, layer, {})
        return dataset

    def _open(self, folder: Folder, described: Metadata, layer: int | str, options: ReadOptions) -> None:
        dtype, check = options.get("dtype"), options.get("check", CHECKS[0])
        if check not in CHECKS:
            raise JobError(f"check={check}: not a way to check what is read; use {', '.join(CHECKS)}")
        self.folder, self.metadata = folder, described
        self.tap = _tap(described, layer, folder.url)
        self.as_: Kind = "numpy"
        entries = [entry for entry in self.metadata.batches if entry.layer == self.tap]
        self.stored: np.dtype = DTYPE_OF[self.metadata.dtype]
        self.dtype = _float_dtype(dtype or ("float32" if is_eight_bit(self.stored) else self.metadata.dtype))
        width = self.metadata.widths.get(self.tap, 0)
        self._starts = np.cumsum([0, *(entry.rows for entry in entries)], dtype=np.int64)
        self._tables: dict[int, rows_table.Rows] = {}
        self._stored_rows: RowSource = open_rows(folder, described, self.tap, check == CHECKS[0])
        self._reader = self._stored_rows
        self.shape = (len(self._reader), width)

    @property
    def statistics(self) -> dict[str, Any]:
        """Statistics of the tap over the whole run, as in metadata.json: `mean`, `variance`, `scale` and others."""
        return msgspec.to_builtins(self.metadata.statistics[self.tap])

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"ActivationDataset({self.folder.url!r}, {self.tap!r}): {self.shape[0]} x {self.shape[1]} {self.dtype}"

    def __getitem__(self, index: Any) -> Any:
        """Returns [D] for an int; [R, D] for a slice, a list or array of ints, or a boolean mask of all rows."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._present(self._reader.read(start, max(start, stop)))
            return self[self._span(index)]
        if isinstance(index, (int, np.integer)):
            return self[np.array([index])][0]
        return self._present(self._reader.gather(self._numbers(index)))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Returns the vectors of a batch; torch's DataLoader calls it."""
        return list(self[np.asarray(indices)])

    def raw(self, index: Any) -> Vectors:
        """Returns rows [R, D] as stored, for a slice, a list or array of ints, or a mask.

        Rows of eight bits are an `EightBit`, with `values` and `scales`.
        """
        numbers = self._span(index) if isinstance(index, slice) else self._numbers(index)
        return from_rows(self._reader.gather(numbers), self.shape[1], self.stored)

    def rows(self, index: Any) -> dict[str, Any]:
        """Returns the provenance of rows; arrays, or single values for an int.

        Keys: `task_id`, `sample_idx`, `position`, `token_id`, the flags `special`, `sink`, `nonfinite`, and those of
        `rows_table.OPTIONAL` that the run has.
        """
        if isinstance(index, (int, np.integer)):
            return {name: values[0] for name, values in self.rows(np.array([index])).items()}
        numbers = self._span(index) if isinstance(index, slice) else self._numbers(index)
        dtypes = {**dict.fromkeys(rows_table.COLUMNS, np.int32), **dict.fromkeys(rows_table.FLAGS, np.bool_)}
        numbers, batches = self._places(numbers)
        used = np.unique(batches).tolist()
        if used:  # all tables of a run have the same columns
            dtypes |= {name: rows_table.OPTIONAL[name] for name in self._table(used[0]).optional}
        columns = {name: np.empty(len(numbers), dtype) for name, dtype in (dtypes | {"task_id": object}).items()}
        for batch in used:
            places = np.flatnonzero(batches == batch)
            table = self._table(batch)
            for name, column in columns.items():
                if (values := getattr(table, name)) is None:
                    file = self.metadata.rows_files[batch].file
                    raise JobError(f"{self.folder.url}: {file} has no column {name}, which others have; it is damaged")
                column[places] = values[numbers[places] - self._starts[batch]]
        return columns

    def tokens(self, index: Any) -> Any:
        """Returns the text of the token of each row, by the tokenizer that the run keeps; for an int one string.

        Raises:
            JobError: the run has no tokenizer.
        """
        ids = self.rows(index)["token_id"]
        if isinstance(index, (int, np.integer)):
            return self._decode([int(ids)])
        return [self._decode([token_id]) for token_id in ids.tolist()]

    @functools.cached_property
    def _decode(self) -> Decode:
        return read_decoder(self.folder)

    def batch_of(self, index: Any) -> Int[np.ndarray, "R"]:
        """Returns the numbers of the batches that the rows were computed in."""
        numbers = np.array([entry.batch_id for entry in self.metadata.rows_files])
        return numbers[self._places(self._numbers(index))[1]]

    def batches(
        self,
        batch_size: int,
        *,
        as_: Kind | None = None,
        with_index: bool = False,
        **order: Unpack[OrderOptions],
    ) -> Batches:
        """Returns one epoch of batches [batch_size, D], in an order that the seed and the epoch determine.

        Args:
            as_: arrays to return, where not those of the dataset.
            with_index: yield (vectors, row numbers), for `rows(...)`.
            shuffle: True; False for the order of the files.
            seed, epoch: 0; every pair of them has another order.
            shard: (index, count) of this trainer process, (0, 1); together the processes get every row once.
            buffer_rows: rows shuffled together in memory, 65,536; two buffers of this size are held.
            block_rows: consecutive rows read at once, 1,024 from a disk and 4,096 from a bucket.
            drop_last: False; True for full batches only, and the same number of them for every process, so that
                data-parallel trainers take equally many steps. The few rows left out change with the epoch.
        Returns:
            An iterator; its `state_dict` and `load_state_dict` continue at the next batch.
        Raises:
            JobError: a keyword is out of range.
        """
        bucket = self.folder.local_path(layout.METADATA) is None
        order = {"block_rows": BUCKET_BLOCK_ROWS if bucket else BLOCK_ROWS, **order}

        def present(raw: np.ndarray, numbers: np.ndarray) -> Any:
            vectors = self._present(raw, as_)
            return (vectors, numbers) if with_index else vectors

        return Batches(self._reader, Order(len(self), batch_size, **order), present)

    def excluded(self) -> Iterator[np.ndarray]:
        """Yields the vectors that `exclude` leaves out, [R, D] in the stored dtype, a part at a time."""
        if isinstance(self._reader, SelectedRows):
            for raw in self._reader.left_out():
                yield self._present(raw, "numpy")

    def _span(self, index: slice) -> np.ndarray:
        """Returns the numbers of a slice; many only where the files that hold them are there. JobError as `read`."""
        start, stop, step = index.indices(len(self))
        if len(range(start, stop, step)) > LARGE_ROWS:
            self._reader.check_present(0, len(self))
        return np.arange(start, stop, step)

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
        """Returns the rows' numbers among all rows of the run, and their batches by place in metadata.json."""
        if isinstance(self._reader, SelectedRows):
            numbers = self._reader.numbers[numbers]
        return numbers, np.searchsorted(self._starts, numbers, "right") - 1

    def _without(self, exclude: Sequence[str]) -> np.ndarray:
        """Returns the numbers of the rows that have none of the flags."""
        if unknown := sorted(set(exclude) - set(rows_table.FLAGS)):
            raise JobError(f"exclude={unknown[0]}: not a flag of rows; use {', '.join(rows_table.FLAGS)}")

        def unflagged_rows(batch: int) -> np.ndarray:
            table = self._read_table(batch)
            return np.flatnonzero(~np.logical_or.reduce([getattr(table, name) for name in exclude]))

        with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
            by_batch = list(pool.map(unflagged_rows, range(len(self._starts) - 1)))
        numbers = [rows + start for rows, start in zip(by_batch, self._starts, strict=False)]
        return np.concatenate(numbers) if numbers else np.zeros(0, np.int64)

    def _present(self, raw: np.ndarray, as_: Kind | None = None) -> Any:
        vectors = from_rows(raw, self.shape[1], self.stored)
        if vectors.dtype != self.dtype:
            vectors = np.asarray(vectors, np.float32).astype(self.dtype, copy=False)
        kind = as_ or self.as_
        if kind not in CONVERT:
            raise JobError(f"as_={kind}: not a kind of arrays; use {', '.join(CONVERT)}")
        return CONVERT[kind](vectors)

    def _table(self, batch: int) -> rows_table.Rows:
        """Returns the rows table of the batch at this place in metadata.json; keeps TABLES_KEPT of them."""
        if batch not in self._tables:
            table = self._read_table(batch)
            if len(self._tables) >= TABLES_KEPT:
                self._tables.pop(next(iter(self._tables)))
            self._tables[batch] = table
        return self._tables[batch]

    def _read_table(self, batch: int) -> rows_table.Rows:
        entry, start = self.metadata.rows_files[batch], int(self._starts[batch])
        if entry.rows > LARGE_ROWS:  # which a table of some kilobytes can hold
            self._stored_rows.check_present(start, start + entry.rows)
        return read_rows(self.folder, entry)


def _tap(metadata: Metadata, layer: int | str, url: str) -> str:
    tap = layer if isinstance(layer, str) else f"layer_{layer}"
    if tap not in metadata.taps:
        raise JobError(layer_not_found(layer, url, metadata.taps))
    return tap


def _check_positions(metadata: Metadata, wanted: str | None, url: str) -> None:
    stored = metadata.provenance.positions
    if wanted not in (None, stored):
        raise JobError(
            f"Activations shape mismatch: positions={wanted}, but {url} kept {stored}: {metadata.rows} rows of "
            f"{metadata.total_samples} samples; extract with extract.positions={wanted} into a storage.run_dir of "
            "its own, or choose rows by dataset.rows(...)['position']"
        )


def layer_not_found(layer: int | str, url: str, taps: Sequence[str]) -> str:
    """Returns the error for a missing tap: the taps of the run, and how to get another one."""
    wanted = f"extract.layers=[{layer}]" if str(layer).isdecimal() else f"extract.taps=[{layer}]"
    return (
        f"Layer not found in activations: layer={layer}; {url} has {', '.join(taps)}; for another, "
        f"run the job with {wanted} and a storage.run_dir of its own"
    )


def _float_dtype(name: str) -> np.dtype:
    if name not in FLOATS:
        raise JobError(f"dtype={name}: not one that vectors are read in; use {', '.join(FLOATS)}")
    return DTYPE_OF[name]
