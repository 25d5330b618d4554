"""Spill files between the two passes of a shuffle: a batch's rows in the order of the parts that they go to.

A row is one item of fixed size, all taps' vectors and its provenance side by side, so that a segment (the rows of one
batch that go to one part) is one read; task names stand once per spill file, in its header.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from pod_job.errors import JobError
from pod_job.formats import rows_table, safetensors
from pod_job.formats.json_text import parse_json
from pod_job.formats.quantized import from_rows, row_bytes, to_rows
from pod_job.formats.records import now
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch
from pod_job.run_folder.entries import read_rows, read_vectors
from pod_job.run_folder.metadata import Metadata
from pod_job.storage.folder import Folder

INTEGERS = ("sample_idx", "position", "token_id")
TENSOR = "records"
"""The name of the tensor in a spill file."""


ROLE = np.dtype("S64")
"""A role in a spill file, in UTF-8."""


def encoded_roles(table: rows_table.Rows, name: str) -> np.ndarray:
    """Returns the roles of rows as bytes. JobError where the table has none, or one that is too long."""
    roles = [] if table.role is None else [role.encode() for role in table.role]
    if len(roles) != len(table) or max(map(len, roles), default=0) > ROLE.itemsize:
        raise JobError(f"{name}: its column role is missing or has more than {ROLE.itemsize} bytes; it is damaged")
    return np.array(roles, ROLE)


@dataclass(frozen=True)
class RowLayout:
    """The layout of a row in a spill file: `dtype` has one field per tap and per column; the task is a number.

    `columns` are those but the task: integers, flags, and what else the run's rows have.
    """

    dtype: np.dtype
    widths: dict[str, int]
    stored: np.dtype
    columns: tuple[str, ...]

    @classmethod
    def of(cls, metadata: Metadata, optional: Sequence[str] = ()) -> "RowLayout":
        """Returns the layout for a run with this metadata, whose rows have these `optional` columns."""
        stored, widths = DTYPE_OF[metadata.dtype], {tap: metadata.widths[tap] for tap in metadata.taps}
        # As plain bytes: a structured array cannot hold every dtype of a run.
        vectors = [(tap, np.uint8, (row_bytes(width, stored),)) for tap, width in widths.items()]
        integers = [(name, np.int32) for name in ("task", *INTEGERS)]
        flags = [(name, np.bool_) for name in rows_table.FLAGS]
        others = [(name, ROLE if name == "role" else rows_table.OPTIONAL[name]) for name in optional]
        columns = (*INTEGERS, *rows_table.FLAGS, *optional)
        return cls(np.dtype(vectors + integers + flags + others), widths, stored, columns)

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize

    def in_order(self, rows: np.ndarray, order: Int[np.ndarray, "R"]) -> np.ndarray:
        """Returns the rows in this order; as bytes, which NumPy moves many times faster than structured items."""
        return np.take(rows.view(np.uint8).reshape(-1, self.bytes), order, axis=0).view(self.dtype)[:, 0]


@dataclass(frozen=True)
class SpillFile:
    """A spill file: its name in the folder, the byte at which its rows begin, and the names of their tasks."""

    name: str
    offset: int
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Segment:
    """Rows [start, start + rows) of a spill file."""

    spill: SpillFile
    start: int
    rows: int


@dataclass(frozen=True)
class Spill:
    """The spill files of a shuffle from one run folder to another."""

    source: Folder
    out: Folder
    metadata: Metadata
    layout: RowLayout

    def write(self, number: int, order: Int[np.ndarray, "R"]) -> None:
        """Writes the rows of the run's `number`-th batch (from 0) in this order, unless that is done."""
        name = layout.spill_file(number)
        if self.out.stat(name) is not None:
            return
        entry = self.metadata.rows_files[number]
        files = [file for file in self.metadata.batches if file.batch_id == entry.batch_id]
        vectors = {file.layer: to_rows(read_vectors(self.source, file)) for file in files}
        table = read_rows(self.source, entry)
        rows = np.empty(len(table), self.layout.dtype)
        tasks, rows["task"] = np.unique(table.task_id, return_inverse=True)
        for column in self.layout.columns:
            rows[column] = getattr(table, column) if column != "role" else encoded_roles(table, entry.file)
        while vectors:
            tap, values = vectors.popitem()
            rows[tap] = values
        ordered = self.layout.in_order(rows, order).view(np.uint8).reshape(len(rows), self.layout.bytes)
        self.out.create(name, safetensors.write_parts({TENSOR: ordered}, {"tasks": json.dumps(tasks.tolist())}))

    def open(self, number: int) -> SpillFile:
        """Reads the header of a spill file. JobError where the file is damaged."""
        name = layout.spill_file(number)
        where = f"{self.out.url}/{name}"
        header = safetensors.read_header(lambda start, size: self.out.read(name, start, size), where)
        try:
            tasks = parse_json(header.metadata.get("tasks", ""))
        except ValueError as error:
            raise JobError(f"{where}: its tasks are damaged ({error}); remove it and shuffle again") from error
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise JobError(f"{where}: its tasks are not a list of names; remove it and shuffle again")
        return SpillFile(name, header.data_start, tuple(tasks))

    def read(self, segment: Segment) -> tuple[np.ndarray, list[str]]:
        """Returns the segment's rows, and the name of each one's task. JobError where the file is cut."""
        spill, size = segment.spill, segment.rows * self.layout.bytes
        data = self.out.read(spill.name, spill.offset + segment.start * self.layout.bytes, size)
        if len(data) != size:
            raise JobError(f"{self.out.url}/{spill.name}: ends too early; remove it and shuffle again")
        rows = np.frombuffer(data, self.layout.dtype)
        return rows, [spill.tasks[task] for task in rows["task"].tolist()]

    def to_batch(self, number: int, rows: np.ndarray, tasks: Sequence[str], order: Int[np.ndarray, "R"]) -> Batch:
        """Returns the rows in this order as batch `number`."""
        rows = self.layout.in_order(rows, order)
        columns = {name: rows[name] for name in self.layout.columns}
        if "role" in columns:
            columns["role"] = np.array([role.decode() for role in columns["role"].tolist()], object)
        columns["task_id"] = np.array(tasks, object)[order]
        taps = {
            tap: from_rows(np.ascontiguousarray(rows[tap]), width, self.layout.stored)
            for tap, width in self.layout.widths.items()
        }
        return Batch(number, len(rows), rows_table.from_columns(columns, now()), taps)
