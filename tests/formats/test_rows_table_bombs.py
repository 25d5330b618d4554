"""Rows tables that claim, or expand to, more than they hold are refused by their counts, before they take memory."""

import io
import random
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pod_job.errors import JobError
from pod_job.formats.rows_table import from_columns, from_parquet, to_parquet
from pod_job.formats.thrift import read_struct

ROWS = 20
NUMBERS = ("sample_idx", "position", "token_id")
TABLE = to_parquet(from_columns({"task_id": ["a", "b"] * 10, **dict.fromkeys(NUMBERS, range(ROWS))}, "t"))


def rewritten(rows: int = ROWS, **columns: object) -> bytes:
    """Returns a table of constant columns, of a few kilobytes whatever its rows, with these instead."""
    numbers = dict.fromkeys(NUMBERS, np.zeros(rows, np.int32))
    flags = dict.fromkeys(("special", "sink", "nonfinite"), np.zeros(rows, bool))
    texts = dict.fromkeys(("task_id", "timestamp"), repeated("x", rows))
    file = io.BytesIO()
    pq.write_table(pa.table({**numbers, **flags, **texts, **columns}), file, compression="zstd")
    return file.getvalue()


def repeated(text: str, rows: int = ROWS) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [text])


def test_a_sound_table_written_by_others_is_read() -> None:
    assert len(from_parquet(rewritten(), "f", ROWS)) == ROWS


BOMBS = {
    "millions of rows": (lambda: rewritten(3_000_000), "holds 3000000 rows, its record says 20"),
    "a text of 100 MB": (lambda: rewritten(task_id=repeated("x" * 100_000_000)), "its columns become 100000"),
    "lists": (lambda: rewritten(task_id=pa.array([["x"]] * ROWS)), "column task_id is of list"),
    "texts for numbers": (lambda: rewritten(position=pa.array(["x"] * ROWS)), "column position is of string"),
    "numbers for texts": (lambda: rewritten(task_id=pa.array([1] * ROWS)), "column task_id is of int64"),
    "no rows": (lambda: rewritten(0), "holds 0 rows, its record says 20"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_table_larger_than_it_may_be_is_refused_first(bomb: str) -> None:
    make, reason = BOMBS[bomb]
    data = make()
    assert len(data) < 200_000
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    with pytest.raises(JobError, match=reason) as refused:
        from_parquet(data, "rows_batch_000001.parquet", ROWS)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(refused.value)
    assert most < 16 << 20
    assert pa.total_allocated_bytes() <= before


def test_a_page_that_claims_gigabytes_is_refused() -> None:
    """The size in a page's header is a claim of its own, which the footer does not repeat."""
    claim = b"\x15\x04\x15" + b"\xfe\xff\xff\xff\x0f"  # the kind of the page, and 2 GiB less one byte
    data = bytearray(TABLE)
    assert data[4:7] == b"\x15\x04\x15"
    data[4 : 4 + len(claim)] = claim
    with pytest.raises(JobError, match="not a rows table"):
        from_parquet(bytes(data))


@pytest.mark.parametrize("seed", range(2))
def test_no_footer_ends_the_process(seed: int) -> None:
    """Some footers end a process inside pyarrow's metadata objects: C++ exceptions that nobody catches."""
    rng, size = random.Random(seed), int.from_bytes(TABLE[-8:-4], "little")
    for _ in range(60):
        data = bytearray(TABLE)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(len(data) - 8 - size, len(data) - 8)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        try:
            from_parquet(bytes(data), "f", ROWS)
        except JobError:
            continue


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x19",  # a list without its length
        b"\x19\xf5\xff\xff\xff\xff\x7f\x00",  # a list of 34 billion numbers
        b"\x18\xff\xff\xff\xff\x7f\x00",  # a text of 34 billion bytes
        b"\x1c" * 1000,  # structs in structs
        b"\x15" + b"\xff" * 20,  # a number without an end
        b"\x1f\x00",  # a type that there is not
    ],
)
def test_a_struct_that_claims_more_than_is_there_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
        read_struct(data)
