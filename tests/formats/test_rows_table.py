"""A rows table survives a round trip, stays small, and is refused when damaged."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pod_job.errors import JobError
from pod_job.formats.rows_table import COLUMNS, FLAGS, Rows, from_columns, from_parquet, to_parquet

TIME = "2025-01-15T10:30:00+00:00"
_INT32 = st.integers(-(2**31), 2**31 - 1)


def _rows(count: int) -> Rows:
    """Rows as positions=all makes them: prompts of a few hundred tokens, words by Zipf's law."""
    rng = np.random.default_rng(0)
    sample = np.arange(count) // 391
    tasks = [f"task_{number:08x}" for number in sample]
    tokens = rng.zipf(1.2, count) % 49_152
    columns = {"task_id": tasks, "sample_idx": sample, "position": np.arange(count) % 391, "token_id": tokens}
    return from_columns(columns, TIME)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), _INT32, _INT32, _INT32)))
def test_round_trip(table: list[tuple[str, int, int, int]]) -> None:
    rows = from_columns({name: [line[place] for line in table] for place, name in enumerate(COLUMNS)}, TIME)
    read = from_parquet(to_parquet(rows))
    assert read.describes_same(rows)
    assert len(read) == len(table)
    assert not table or read.timestamp == TIME


def test_it_takes_a_tenth_of_a_percent_of_the_vectors() -> None:
    rows = _rows(100_000)
    assert len(to_parquet(rows)) < 0.0015 * len(rows) * 896 * 2


def test_unknown_columns_are_left_alone() -> None:
    table = pq.read_table(pa.BufferReader(to_parquet(_rows(500)))).append_column("flags", pa.array([1] * 500))
    file = io.BytesIO()
    pq.write_table(table, file)
    assert from_parquet(file.getvalue()).describes_same(_rows(500))


def test_any_reader_of_parquet_sees_plain_columns() -> None:
    table = pq.read_table(pa.BufferReader(to_parquet(_rows(3))))
    assert table.column_names == [*COLUMNS, *FLAGS, "timestamp"]
    assert table.column("timestamp").to_pylist() == [TIME] * 3


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        from_columns({"task_id": ["a"], "sample_idx": [1, 2], "position": [1], "token_id": [1]}, TIME)


def test_damage_is_named() -> None:
    data = to_parquet(_rows(500))
    without = io.BytesIO()
    pq.write_table(pq.read_table(pa.BufferReader(data)).drop_columns(["position"]), without)
    for bad in (b"", b"PAR1", data[:-20], data[100:], without.getvalue()):
        with pytest.raises(JobError, match="rows_batch_000001: not a rows table"):
            from_parquet(bad, "rows_batch_000001")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=5))
def test_fuzzed_tables_are_refused_or_well_formed(changes: list[tuple[int, int]]) -> None:
    data = bytearray(to_parquet(_rows(500)))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        rows = from_parquet(bytes(data))
    except JobError:
        return
    assert len(rows.task_id) == len(rows.token_id) == len(rows.position) == len(rows)
