"""The rows table: which sample, position and token each stored vector belongs to, one small Parquet file per batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int, Shaped

from pod_job.errors import JobError, first_line
from pod_job.formats.parquet_sizes import check_pages, read_footer

COLUMNS = ("task_id", "sample_idx", "position", "token_id")
FLAGS = ("special", "sink", "nonfinite")
"""Flags of a row: its token belongs to the tokenizer and not to the text (`prompts.special`); its norm is above ten
times the batch's median in a residual-stream tap, as at attention sinks; it has a NaN or an infinity in some tap."""

OPTIONAL: dict[str, type] = {
    "window": np.int32,
    "window_position": np.int32,
    "role": object,
    "logprob": np.float32,
    "entropy": np.float32,
}
"""Columns that only some runs have: the number of a long document's window, and the token's position in it as the model
reads it; the role of the chat's message that the token is of; the token's log probability, and the entropy of what the
model predicts after it."""
TEXTS = ["task_id", "role", "timestamp"]
COMPUTED = ("logprob", "entropy")
"""Columns by the model, which another mesh rounds differently."""
ENCODINGS: dict[type, str] = {np.int32: "DELTA_BINARY_PACKED", np.float32: "BYTE_STREAM_SPLIT"}
"""By the type of an optional column."""

FREE_BYTES, PER_ROW_OR_BYTE = 64 << 20, 64
"""Memory that a rows table may become: these bytes, and so many for each of its rows and for each byte of its file."""


@dataclass(frozen=True)
class Rows:
    """Row i describes vector i of every tap of the batch. `task_id` holds str, `timestamp` is ISO 8601.

    OPTIONAL columns are None where the run has none.
    """

    task_id: Shaped[np.ndarray, "R"]
    sample_idx: Int[np.ndarray, "R"]
    position: Int[np.ndarray, "R"]
    token_id: Int[np.ndarray, "R"]
    special: Bool[np.ndarray, "R"]
    sink: Bool[np.ndarray, "R"]
    nonfinite: Bool[np.ndarray, "R"]
    timestamp: str
    window: Int[np.ndarray, "R"] | None = None
    window_position: Int[np.ndarray, "R"] | None = None
    role: Shaped[np.ndarray, "R"] | None = None
    logprob: Float[np.ndarray, "R"] | None = None
    entropy: Float[np.ndarray, "R"] | None = None

    def __len__(self) -> int:
        return len(self.sample_idx)

    @property
    def optional(self) -> dict[str, np.ndarray]:
        """The OPTIONAL columns that are there."""
        return {name: column for name in OPTIONAL if (column := getattr(self, name)) is not None}

    def describes_same(self, other: "Rows") -> bool:
        """Returns True where the other names the same vectors in the same order, whenever it was made."""
        names = [name for name in (*COLUMNS, *OPTIONAL) if name not in COMPUTED]
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)


def to_parquet(rows: Rows) -> bytes:
    """Returns a Parquet file: task and sample run-length encoded, positions as differences, tokens compressed."""
    task_id = pa.array(rows.task_id, pa.string()).dictionary_encode()
    timestamp = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), [rows.timestamp])
    integers = {name: pa.array(getattr(rows, name), pa.int32()) for name in COLUMNS[1:]}
    flags = {name: pa.array(getattr(rows, name)) for name in FLAGS}
    optional = {name: pa.array(column) for name, column in rows.optional.items() if OPTIONAL[name] is not object}
    if rows.role is not None:
        optional["role"] = pa.array(rows.role, pa.string()).dictionary_encode()
    table = pa.table({"task_id": task_id, **integers, **flags, **optional, "timestamp": timestamp})
    file = BytesIO()
    pq.write_table(
        table,
        file,
        use_dictionary=cast(bool, TEXTS),  # the stubs know only one type for it
        column_encoding={
            "sample_idx": "DELTA_BINARY_PACKED",
            "position": "DELTA_BINARY_PACKED",
            "token_id": "BYTE_STREAM_SPLIT",
            **dict.fromkeys(FLAGS, "RLE"),
            **{name: ENCODINGS[OPTIONAL[name]] for name in optional if name not in TEXTS},
        },
        compression="zstd",
        write_statistics=False,
    )
    return file.getvalue()


def from_parquet(data: bytes, name: str = "rows table", rows: int | None = None) -> Rows:
    """Reads what `to_parquet` wrote; unknown columns are left alone.

    Nothing is decompressed before the footer and the pages' headers show that the table has `rows` rows, where that is
    known, and takes memory in proportion to them and to the file.

    Raises:
        JobError: the file (`name`) is damaged, or has another number of rows.
    """
    required = (*COLUMNS, *FLAGS, "timestamp")
    try:
        footer = read_footer(data)
        if rows is not None and footer.rows != rows:
            raise JobError(f"{name}: holds {footer.rows} rows, its record says {rows}; it is damaged")
        check_pages(data, footer, (*required, *OPTIONAL), FREE_BYTES + PER_ROW_OR_BYTE * (footer.rows + len(data)))
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            names = (*required, *(name for name in OPTIONAL if name in file.schema_arrow.names))
            _check_types(file.schema_arrow, names)
            table = file.read(columns=list(names))
        columns = {name: _values(table, name) for name in names}
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise JobError(f"{name}: not a rows table ({first_line(error)})") from error
    timestamps = columns.pop("timestamp")
    return Rows(**columns, timestamp=timestamps[0] if len(timestamps) else "")


def from_columns(columns: Mapping[str, Any], timestamp: str) -> Rows:
    """Returns rows of any sequences of equal length, flags where they are given; ValueError where lengths differ."""
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError("columns of a rows table differ in length")
    none = np.zeros(len(columns["task_id"]), bool)
    return Rows(
        task_id=np.asarray(columns["task_id"], object),
        sample_idx=np.asarray(columns["sample_idx"], np.int32),
        position=np.asarray(columns["position"], np.int32),
        token_id=np.asarray(columns["token_id"], np.int32),
        special=np.asarray(columns.get("special", none), bool),
        sink=np.asarray(columns.get("sink", none), bool),
        nonfinite=np.asarray(columns.get("nonfinite", none), bool),
        timestamp=timestamp,
        **{name: np.asarray(columns[name], dtype) for name, dtype in OPTIONAL.items() if name in columns},
    )


def _check_types(schema: pa.Schema, names: Sequence[str]) -> None:
    """Raises ValueError where a column is not of texts, whole numbers or flags, as it must be; KeyError without it."""
    for name in names:
        kind = schema.field(name).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if name in FLAGS:
            right = pa.types.is_boolean(values)
        elif name in COLUMNS[1:] or OPTIONAL.get(name) is np.int32:
            right = pa.types.is_integer(values)
        elif OPTIONAL.get(name) is np.float32:
            right = pa.types.is_float32(values)
        else:
            right = pa.types.is_string(values) or pa.types.is_large_string(values)
        if not right:
            raise ValueError(f"column {name} is of {str(kind)[:80]}")


def _values(table: pa.Table, column: str) -> np.ndarray:
    values = table.column(column).combine_chunks()
    if values.null_count:
        raise ValueError(f"column {column} has missing values")
    if not pa.types.is_dictionary(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False), object if column in TEXTS else None)
    # Few distinct strings, many rows: share one str object between rows.
    distinct = np.asarray(values.dictionary.to_pylist(), object)
    return distinct[values.indices.to_numpy(zero_copy_only=False)]
