"""Sizes of a Parquet file, from its footer and the headers of its pages, before any page is decompressed.

A page's header says how large the page becomes, and pyarrow takes that memory at once: a few kilobytes can become
gigabytes. Some footers even end the process inside pyarrow's own metadata objects, so the structs are read here.
The numbers of fields are those of https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pod_job.formats.thrift import Struct, read_struct

MAGIC = b"PAR1"
MOST_FOOTER_BYTES = 1 << 20
DATA_PAGES, DICTIONARY_PAGE = (5, 8), 7
"""Fields of a page header by the kind of the page; field 1 of what they hold is the number of values."""
LENGTH_BYTES = 4
"""Least size of a value in a dictionary of texts: its length."""


@dataclass(frozen=True)
class Chunk:
    """A column's values in one row group: bytes [start, stop) of the file."""

    column: str
    values: int
    start: int
    stop: int


@dataclass(frozen=True)
class Footer:
    """The number of rows that a file claims, and where its columns lie."""

    rows: int
    chunks: list[Chunk]


def read_footer(data: bytes) -> Footer:
    """Returns the footer of a file. ValueError where it contradicts itself, or a column lies outside the file."""
    if len(data) < 12 or data[:4] != MAGIC or data[-4:] != MAGIC:
        raise ValueError("it does not begin and end as a Parquet file does")
    length = int.from_bytes(data[-8:-4], "little")
    if length > min(len(data) - 12, MOST_FOOTER_BYTES):
        raise ValueError(f"its footer would be {length} bytes long")
    footer, _ = read_struct(data[len(data) - 8 - length : len(data) - 8])
    rows, groups = _integer(footer, 3), _list(footer, 4)
    counts = [_integer(group, 3) for group in groups]
    if rows != sum(counts):
        raise ValueError(f"its row groups have {sum(counts)} rows, its footer says {rows}")
    pairs = zip(groups, counts, strict=True)
    return Footer(rows, [_chunk(column, count) for group, count in pairs for column in _list(group, 1)])


def check_pages(data: bytes, footer: Footer, columns: Sequence[str], most_bytes: int) -> None:
    """Raises ValueError where the pages of these columns contradict the footer, or become larger than `most_bytes`."""
    total = 0
    for chunk in footer.chunks:
        if chunk.column in columns and chunk.values:
            total += _chunk_bytes(data, chunk)
            if total > most_bytes:
                raise ValueError(f"its columns become {total} bytes, more than {most_bytes}")


def _chunk(column: Any, rows: int) -> Chunk:
    described = column.get(3)
    path = [word.decode("utf-8", "replace") for word in _list(described, 3, bytes)]
    name, values = ".".join(path), _integer(described, 5)
    if values != rows and len(path) == 1:
        raise ValueError(f"{name} has {values} values for {rows} rows")
    start = _integer(described, 9)
    if described.get(11):
        start = min(start, _integer(described, 11))
    return Chunk(name, values, start, start + _integer(described, 7))


def _chunk_bytes(data: bytes, chunk: Chunk) -> int:
    """Returns the bytes that a chunk's pages become."""
    if chunk.stop > len(data):
        raise ValueError(f"{chunk.column} lies outside the file")
    total = values = 0
    for header in _pages(data, chunk):
        size = _integer(header, 2)
        total += size
        if dictionary := header.get(DICTIONARY_PAGE):
            if (count := _integer(dictionary, 1)) * LENGTH_BYTES > size:
                raise ValueError(f"{chunk.column} has a dictionary of {count} values in {size} bytes")
            continue
        count = _integer(next((header[kind] for kind in DATA_PAGES if kind in header), {}), 1)
        values += count
        if not count:
            raise ValueError(f"{chunk.column} has a page without values")
    if values != chunk.values:
        raise ValueError(f"{chunk.column} has {values} values, its footer says {chunk.values}")
    return total


def _pages(data: bytes, chunk: Chunk) -> Iterator[Struct]:
    """Yields the headers of the chunk's pages."""
    at = chunk.start
    while at < chunk.stop:
        header, at = read_struct(data, at)
        yield header
        at += _integer(header, 3)
    if at != chunk.stop:
        raise ValueError(f"a page lies outside {chunk.column}")


def _integer(struct: Any, field: int) -> int:
    value = struct.get(field) if isinstance(struct, dict) else None
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"a size or a count is {value!r:.20}")
    return value


def _list(struct: Any, field: int, kind: type = dict) -> list[Any]:
    values = struct.get(field) if isinstance(struct, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError("a list of columns or row groups is missing")
    return values
