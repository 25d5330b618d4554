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
from jaxtyping import Int

from pod_job.errors import JobError
from pod_job.formats import rows_table, safetensors
from pod_job.formats.quantized import from_rows, row_bytes, to_rows
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch
from pod_job.run_folder.entries import read_rows, read_vectors
from pod_job.storage.folder import Folder

INTEGERS = ("sample_idx", "position", "token_id")
RECORDS = "records"


@dataclass(frozen=True)
class Record:
    """The layout of a record: `dtype` has one field per tap and per column; the task is a number."""

    dtype: np.dtype
    widths: dict[str, int]
    stored: np.dtype

    @classmethod
    def of(cls, described: dict[str, Any]) -> "Record":
        """The layout for a run with this metadata."""
        stored, widths = DTYPE_OF[described["dtype"]], {tap: described["widths"][tap] for tap in described["taps"]}
        # As plain bytes: a structured array cannot hold every dtype of ours.
        vectors = [(tap, np.uint8, (row_bytes(width, stored),)) for tap, width in widths.items()]
        integers = [(name, np.int32) for name in ("task", *INTEGERS)]
        flags = [(name, np.bool_) for name in rows_table.FLAGS]
        return cls(np.dtype(vectors + integers + flags), widths, stored)

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
    name = layout.piece_file(number)
    if out.stat(name) is not None:
        return
    entry = described["rows_files"][number]
    table = read_rows(source, entry)
    records = np.empty(len(table), record.dtype)
    names, records["task"] = np.unique(table.task_id, return_inverse=True)
    for column in (*INTEGERS, *rows_table.FLAGS):
        records[column] = getattr(table, column)
    for file in described["batches"]:
        if file["batch_id"] == entry["batch_id"]:
            records[file["layer"]] = to_rows(read_vectors(source, file))
    dealt = record.in_order(records, order).view(np.uint8).reshape(len(records), record.bytes)
    out.create(name, safetensors.write_parts({RECORDS: dealt}, {"tasks": json.dumps(names.tolist())}))


def open_piece(out: Folder, number: int) -> Piece:
    """JobError where the piece is damaged."""
    name = layout.piece_file(number)
    header = safetensors.read_header(lambda start, size: out.read(name, start, size), f"{out.url}/{name}")
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
    taps = {
        tap: from_rows(np.ascontiguousarray(records[tap]), width, record.stored) for tap, width in record.widths.items()
    }
    rows = rows_table.from_columns(columns, datetime.now(UTC).isoformat(timespec="seconds"))
    return Batch(number, len(records), rows, taps)
