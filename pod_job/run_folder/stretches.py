"""What lies between the two passes of a shuffle: a batch's rows in the order of the parts that they go to.

A row is one record of fixed size, all taps' vectors and its provenance side by side, so that a stretch of rows is one
read; task names stand once per piece, in its header.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from pod_job.errors import JobError
from pod_job.run_folder import rows as rows_table
from pod_job.run_folder import rundir, tensorfile
from pod_job.run_folder.commit import TENSOR, Batch
from pod_job.run_folder.tensorfile import DTYPE_OF
from pod_job.storage import Folder

INTEGERS = ("sample_idx", "position", "token_id")
RECORDS = "records"


@dataclass(frozen=True)
class Record:
    """The layout of a record: `dtype` has one field per tap and per column; the task is a number."""

    dtype: np.dtype
    taps: tuple[str, ...]
    stored: np.dtype

    @classmethod
    def of(cls, described: dict[str, Any]) -> "Record":
        """The layout for a run with this metadata."""
        stored = DTYPE_OF[described["dtype"]]
        # As plain bytes: a structured array cannot hold every dtype of ours.
        vectors = [(tap, np.uint8, (described["widths"][tap] * stored.itemsize,)) for tap in described["taps"]]
        integers = [(name, np.int32) for name in ("task", *INTEGERS)]
        flags = [(name, np.bool_) for name in rows_table.FLAGS]
        return cls(np.dtype(vectors + integers + flags), tuple(described["taps"]), stored)

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize

    def in_order(self, records: np.ndarray, order: Int[np.ndarray, "R"]) -> np.ndarray:
        """The records in this order; as rows of bytes, which NumPy moves many times faster than records."""
        return np.take(records.view(np.uint8).reshape(-1, self.bytes), order, axis=0).view(self.dtype)[:, 0]


@dataclass(frozen=True)
class Piece:
    """A piece in the folder: where its records begin, and the names of their tasks."""

    name: str
    offset: int
    tasks: tuple[str, ...]


def write_piece(
    source: Folder, out: Folder, described: dict[str, Any], record: Record, number: int, order: Int[np.ndarray, "R"]
) -> None:
    """Write the rows of the run's `number`-th batch (from 0) in this order, unless that is done."""
    name = rundir.piece_file(number)
    if out.stat(name) is not None:
        return
    entry = described["rows_files"][number]
    table = rows_table.from_parquet(source.read(rundir.ACTIVATIONS + entry["file"]), entry["file"])
    records = np.empty(len(table), record.dtype)
    names, records["task"] = np.unique(table.task_id, return_inverse=True)
    for column in (*INTEGERS, *rows_table.FLAGS):
        records[column] = getattr(table, column)
    for file in described["batches"]:
        if file["batch_id"] == entry["batch_id"]:
            records[file["layer"]] = _vectors(source, file)
    dealt = record.in_order(records, order).view(np.uint8).reshape(len(records), record.bytes)
    out.create(name, tensorfile.write_parts({RECORDS: dealt}, {"tasks": json.dumps(names.tolist())}))


def open_piece(out: Folder, number: int) -> Piece:
    """JobError where the piece is damaged."""
    name = rundir.piece_file(number)
    header = tensorfile.read_header(lambda start, size: out.read(name, start, size), f"{out.url}/{name}")
    return Piece(name, header.data_start, tuple(json.loads(header.metadata["tasks"])))


def read_stretch(out: Folder, record: Record, piece: Piece, start: int, count: int) -> tuple[np.ndarray, list[str]]:
    """Records [start, start + count) of the piece, and the name of each one's task."""
    data = out.read(piece.name, piece.offset + start * record.bytes, count * record.bytes)
    if len(data) != count * record.bytes:
        raise JobError(f"{out.url}/{piece.name}: ends too early; remove it and shuffle again")
    records = np.frombuffer(data, record.dtype)
    return records, [piece.tasks[task] for task in records["task"].tolist()]


def to_batch(record: Record, number: int, records: np.ndarray, tasks: Sequence[str], order: np.ndarray) -> Batch:
    """The records in this order as batch `number`."""
    records = record.in_order(records, order)
    columns = {name: records[name] for name in (*INTEGERS, *rows_table.FLAGS)}
    columns["task_id"] = np.array(tasks, object)[order]
    taps = {tap: np.ascontiguousarray(records[tap]).view(record.stored) for tap in record.taps}
    rows = rows_table.from_columns(columns, datetime.now(UTC).isoformat(timespec="seconds"))
    return Batch(number, len(records), rows, taps)


def _vectors(source: Folder, file: dict[str, Any]) -> UInt8[np.ndarray, "R bytes"]:
    name = rundir.ACTIVATIONS + file["file"]
    try:
        data = source.read(name)
    except FileNotFoundError:
        raise JobError(f"{source.url}/{name}: missing; copy the run again") from None
    header = tensorfile.read_header(lambda start, size: data[start : start + size], f"{source.url}/{name}", len(data))
    spec = header.tensors.get(TENSOR)
    if spec is None or spec.shape[0] != file["rows"]:
        raise JobError(f"{source.url}/{name}: does not hold the {file['rows']} rows that metadata.json says")
    return np.frombuffer(data, np.uint8)[spec.start : spec.stop].reshape(file["rows"], -1)
