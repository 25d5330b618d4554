"""Tables: Parquet, Arrow and CSV files, of which only the columns that a sample needs are read."""

import io
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from jaxtyping import Int64

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError, first_line
from pod_job.prompts.sources.arrow_claims import check_claims
from pod_job.prompts.sources.blocks import BlockCache, Counted, FileReader, changed
from pod_job.prompts.sources.compressed import codec_of
from pod_job.prompts.sources.index import FileEntry, pack_marks, unpack_marks
from pod_job.prompts.sources.places import DataFile, RangedFile, crc32c_of, unreadable
from pod_job.prompts.sources.record import read_record
from pod_job.prompts.sources.sample import RECORD_FIELDS, BrokenTask, Sample
from pod_job.terminal import one_line

ROWS = 128
"""Rows of a Parquet file that are decoded at a time."""
BUFFER_BYTES = 1 << 20
LONGEST_ROW = 8 << 20
"""Bytes of a row of a CSV file at most: it is read so many at a time."""
ROW_GROUP_BYTES = 64 << 20
"""A larger row group is better read on than from its start again."""
TEXTS = tuple(
    getattr(pa.types, f"is_{name}")
    for name in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
)
"""Types of columns that hold texts; some writers leave out that bytes are text."""
AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


class TableReader(FileReader):
    """Rows of a table; a block is a record batch."""

    def __init__(
        self, file: DataFile, entry: FileEntry, cache: BlockCache, alone: bool, config: TasksConfig | None = None
    ) -> None:
        self.config = config or TasksConfig(path=entry.url)
        super().__init__(file, entry, cache, alone)

    @abstractmethod
    def read_schema(self) -> pa.Schema:
        """Returns the names and types of the columns as pyarrow reads them."""

    @abstractmethod
    def batches_of(self, raw: RangedFile) -> Iterator[pa.RecordBatch]:
        """Yields the rows of the file from the first on."""

    def schema(self) -> pa.Schema:
        """Returns the names and types of the columns. JobError where a name is not UTF-8."""
        with self.errors():
            schema = self.read_schema()
            _ = schema.names  # which are decoded now
            return schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        return self.batches_of(self.raw())

    def counted(self, marks: np.ndarray) -> Counted:
        """Returns the samples of marks whose first column is the first row of each part, the last their number."""
        checksum = self.entry.checksum or crc32c_of(self.file, self.entry.size)
        return Counted(int(marks[-1, 0]), pack_marks(marks), checksum)

    def columns(self) -> list[str]:
        """Returns the columns that a sample needs: others may hold what needs a package to be decoded."""
        names = (self.config.field, self.config.field.split(".")[0], *RECORD_FIELDS)
        return [name for name in self.schema().names if name in names]

    def rows_at_a_glance(self) -> int:
        raw = self.raw()
        with self.errors():
            batch = next(iter(self.batches_of(raw)), None)
        rows = 0 if batch is None else batch.num_rows
        return round(rows * self.entry.size / max(1, raw.tell()))

    def raw(self) -> RangedFile:
        return RangedFile(self.file, self.entry.size)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what pyarrow says to a damaged file into a JobError that names it."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, KeyError, EOFError) as error:
            state = self.file.state()
            if state is not None and (state.size, state.version) != (self.entry.size, self.entry.version):
                raise changed(self.entry.url) from error
            reason = f"damaged, or not what its name says: {first_line(error)}"
            if "straddles two block boundaries" in reason:
                reason = f"a row is longer than {LONGEST_ROW >> 20} MiB; save the table as Parquet"
            raise unreadable(self.entry.url, reason) from error

    def sample(self, block: pa.RecordBatch, index: int, row: int) -> Sample:
        where = f"{self.where}, row {row}"
        try:
            record = block.slice(index, 1).to_pylist()[0]
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise BrokenTask(f"{where} cannot be read ({first_line(error)})") from error
        return read_record(where, record, self.config.field, self.task_id(f"row_{row}"))

    def head(self, count: int) -> Iterator[Sample | BrokenTask]:
        with self.errors():
            numbered = ((batch, index) for batch in self.batches() for index in range(batch.num_rows))
            for row, (batch, index) in enumerate(islice(numbered, count)):
                yield self.read(batch, index, row)


class ParquetReader(TableReader):
    """A Parquet file: counted by its footer, read from the start of a row group on."""

    def open(self, raw: RangedFile | None = None) -> pq.ParquetFile:
        return pq.ParquetFile(raw or self.raw(), buffer_size=BUFFER_BYTES, pre_buffer=False)

    def read_schema(self) -> pa.Schema:
        return self.open().schema_arrow

    def count(self) -> Counted:
        with self.errors():
            footer = self.open().metadata
        rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        return self.counted(np.cumsum([0, *rows])[:, None].astype(np.int64))

    def block_starts(self) -> Int64[np.ndarray, " n"]:
        groups = unpack_marks(self.entry.marks)[:, 0]
        inside = [np.arange(start, stop, ROWS) for start, stop in pairwise(groups.tolist())]
        starts = np.concatenate([*inside, groups[-1:]]).astype(np.int64)
        self.groups = np.searchsorted(starts, groups)  # the first block of each group
        self.sequential = self.entry.size > ROW_GROUP_BYTES * max(1, len(groups) - 1)
        return starts

    def entry_block(self, block: int) -> int:
        return int(self.groups[np.searchsorted(self.groups, block, side="right") - 1])

    def stream(self, block: int, stop: int) -> Iterator[pa.RecordBatch]:
        group = int(np.searchsorted(self.groups, block, side="right")) - 1
        with self.errors():
            file = self.open()
            last = int(self.groups[group + 1])
            sizes = np.diff(self.starts[block : last + 1]).tolist()
            batches = file.iter_batches(ROWS, row_groups=[group], columns=self.columns())
            yield from cut(batches, sizes)

    def rows_at_a_glance(self) -> int:
        with self.errors():
            return self.open().metadata.num_rows

    def batches_of(self, raw: RangedFile) -> Iterator[pa.RecordBatch]:
        return self.open(raw).iter_batches(ROWS, columns=self.columns())


def cut(batches: Iterator[pa.RecordBatch], sizes: list[int]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of the batches as batches of these sizes."""
    held: list[pa.RecordBatch] = []
    for size in sizes:
        while sum(batch.num_rows for batch in held) < size and (batch := next(batches, None)) is not None:
            held.append(batch)
        joined = held[0] if len(held) == 1 else pa.concat_batches(held)
        yield joined.slice(0, size)
        held = [joined.slice(size)] if joined.num_rows > size else []


class ArrowReader(TableReader):
    """An Arrow file, in the format of streams, as `datasets` saves them, or with a footer: its batches are blocks."""

    def source(self, raw: RangedFile | None = None) -> pa.NativeFile:
        raw = raw or self.raw()
        if self.file.read(0, 6) == b"ARROW1":
            raw.seek(8)  # behind the magic, what follows is a stream
        return pa.PythonFile(BoundedReader(raw, BUFFER_BYTES), "r")

    def read_batch(self, message: pa.Message, schema: pa.Schema) -> pa.RecordBatch:
        """Returns the rows of a message. JobError for one that claims too much; ArrowInvalid for a damaged one."""
        check_claims(message, self.entry.url)
        batch = pa.ipc.read_record_batch(message, schema)
        for column in batch.columns:  # whose offsets may lead anywhere
            # A text that is not UTF-8 is one broken row.
            (column.view(AS_BYTES[column.type]) if column.type in AS_BYTES else column).validate(full=True)
        return batch

    def messages(self, source: pa.NativeFile) -> Iterator[pa.Message]:
        """Yields the record batches that follow the schema. JobError for others."""
        while message := next_message(source):
            if message.type != "record batch":
                raise unreadable(self.entry.url, "it has dictionaries; save it without, as Parquet")
            yield message

    def read_schema(self) -> pa.Schema:
        return pa.ipc.read_schema(pa.ipc.read_message(self.source()))

    def rows_at_a_glance(self) -> int:
        with self.errors():
            source = self.source()
            schema = pa.ipc.read_schema(pa.ipc.read_message(source))
            start = source.tell()
            rows = self.read_batch(pa.ipc.read_message(source), schema).num_rows
            return round(rows * (self.entry.size - start) / max(1, source.tell() - start))

    def count(self) -> Counted:
        marks, rows = [], 0
        with self.errors():
            source = self.source()
            schema = pa.ipc.read_schema(pa.ipc.read_message(source))
            place = source.tell()
            for message in self.messages(source):
                marks.append((rows, place))
                rows += self.read_batch(message, schema).num_rows
                place = source.tell()
            marks.append((rows, place))
        return self.counted(np.array(marks, np.int64))

    def block_starts(self) -> Int64[np.ndarray, " n"]:
        marks = unpack_marks(self.entry.marks, 2)
        self.offsets = marks[:, 1]
        return marks[:, 0]

    def stream(self, block: int, stop: int) -> Iterator[pa.RecordBatch]:
        with self.errors():
            schema = self.schema()
            names = self.columns()
            for number in range(block, stop):
                start, end = self.offsets[number : number + 2].tolist()
                message = pa.ipc.read_message(pa.py_buffer(self.file.read(start, end - start)))
                yield self.read_batch(message, schema).select(names)

    def batches_of(self, raw: RangedFile) -> Iterator[pa.RecordBatch]:
        names, source = self.columns(), self.source(raw)
        schema = pa.ipc.read_schema(pa.ipc.read_message(source))
        for message in self.messages(source):
            yield self.read_batch(message, schema).select(names)


class BoundedReader(io.BufferedReader):
    """A reader that is asked for as many bytes as a file claims to have, and allocates as many as it has."""

    def __init__(self, raw: RangedFile, buffer_bytes: int) -> None:
        super().__init__(raw, buffer_bytes)
        self.file_bytes = raw.size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.file_bytes - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def next_message(source: pa.NativeFile) -> pa.Message | None:
    """Returns the next message of an Arrow stream; None at its end."""
    try:
        return pa.ipc.read_message(source)
    except EOFError:
        return None


class CsvReader(TableReader):
    """A CSV file, or with tabs in place of commas a TSV file, read from its start on, decompressed."""

    sequential = True

    def parsed(self, raw: RangedFile | None = None) -> pyarrow.csv.CSVStreamingReader:
        raw, codec = raw or self.raw(), codec_of(self.entry.url)
        options = pyarrow.csv.ReadOptions(block_size=LONGEST_ROW, use_threads=False)
        delimiter = "\t" if ".tsv" in self.entry.url.lower().rpartition("/")[2] else ","
        parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        # "2" is a text, too; and one that is not UTF-8 is a broken row, and not the end of the file.
        convert = pyarrow.csv.ConvertOptions(column_types={self.config.field: pa.binary()})
        if codec is None:
            return pyarrow.csv.open_csv(raw, options, parse, convert)
        buffered = pa.PythonFile(io.BufferedReader(raw, BUFFER_BYTES), "r")
        return pyarrow.csv.open_csv(pa.CompressedInputStream(buffered, codec), options, parse, convert)

    def read_schema(self) -> pa.Schema:
        return self.parsed().schema

    def count(self) -> Counted:
        with self.errors():
            rows = [batch.num_rows for batch in self.parsed()]
        return self.counted(np.cumsum([0, *rows])[:, None].astype(np.int64))

    def block_starts(self) -> Int64[np.ndarray, " n"]:
        return unpack_marks(self.entry.marks)[:, 0]

    def entry_block(self, block: int) -> int:
        return 0

    def stream(self, block: int, stop: int) -> Iterator[pa.RecordBatch]:
        with self.errors():
            yield from cut(self.batches(), np.diff(self.starts).tolist())

    def batches_of(self, raw: RangedFile) -> Iterator[pa.RecordBatch]:
        names = self.columns()
        for batch in self.parsed(raw):
            yield batch.select(names)


def check_schemas(schemas: dict[str, pa.Schema], field: str) -> None:
    """Raises JobError that names the first file without the column of `field`, or with another type there."""
    first: tuple[str, Any] | None = None
    for url, schema in schemas.items():
        name = field if field in schema.names else field.split(".")[0]
        if name not in schema.names:
            columns = one_line(", ".join(schema.names[:20]))
            raise JobError(f'tasks.field={field}: {url} has no column "{name}"; it has {columns}')
        for read in {name, *RECORD_FIELDS} & set(schema.names):
            if schema.names.count(read) > 1:
                raise JobError(f'tasks.path: {url} has the column "{read}" more than once; rename the others')
        kind = schema.field(name).type
        if first is None:
            first = url, kind
        elif family(kind) != family(first[1]):
            raise JobError(f'tasks.path: column "{name}" is {kind} in {url}, but {first[1]} in {first[0]}; use one')


def family(kind: pa.DataType) -> str:
    """Returns which prompts a column holds: texts, lists of token ids, chats."""
    if pa.types.is_dictionary(kind):
        return family(kind.value_type)
    if any(of_kind(kind) for of_kind in TEXTS):
        return "text"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "ids" if pa.types.is_integer(kind.value_type) else "list"
    return "struct" if pa.types.is_struct(kind) else str(kind)
