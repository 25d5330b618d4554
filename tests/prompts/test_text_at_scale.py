"""Large sources: indexed, read in blocks, ordered by a seed; whatever the format, the same documents."""

import bz2
import gzip
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pod_job.config.tasks import OnBroken, TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.samples import without_broken
from pod_job.prompts.sources import compressed, lines, listing
from pod_job.prompts.sources import estimate as estimates
from pod_job.prompts.sources.documents import sequential_sizes
from pod_job.prompts.sources.estimate import estimate
from pod_job.prompts.sources.index import pack_marks, unpack_marks
from pod_job.prompts.sources.lines import scan_lines
from pod_job.prompts.sources.listing import list_source
from pod_job.prompts.sources.order import Order, OrderRules
from pod_job.prompts.sources.sample import BrokenTask, Sample
from pod_job.prompts.tasks import Tasks, estimated_tasks, read_tasks

ROWS = 1000


@pytest.fixture(autouse=True)
def every_source_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SMALL_BYTES", -1)


def records(count: int = ROWS, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"document {number} " + "x" * (number % 37)} for number in range(start, start + count)]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=300)


def write_arrow(path: Path, rows: list[dict[str, Any]], footer: bool = False) -> None:
    table = pa.Table.from_pylist(rows)
    make = pa.ipc.new_file if footer else pa.ipc.new_stream
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=70)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "t.jsonl": lambda path, rows: path.write_bytes(json_lines(rows)),
    "crlf.jsonl": lambda path, rows: path.write_bytes(json_lines(rows).replace(b"\n", b"\r\n")),
    "t.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(json_lines(rows))),
    "members.jsonl.gz": lambda path, rows: path.write_bytes(
        gzip.compress(json_lines(rows[:99])) + gzip.compress(json_lines(rows[99:]))
    ),
    "t.jsonl.zst": lambda path, rows: path.write_bytes(zstd(json_lines(rows))),
    "t.ndjson.bz2": lambda path, rows: path.write_bytes(bz2.compress(json_lines(rows))),
    "t.parquet": write_parquet,
    "stream.arrow": write_arrow,
    "file.arrow": lambda path, rows: write_arrow(path, rows, footer=True),
    "t.csv": lambda path, rows: pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path),
}


def read(path: Any, **fields: Any) -> Tasks:
    return read_tasks(TasksConfig(path=path if isinstance(path, list) else str(path), **fields))


def texts(tasks: Tasks, indices: Any = None) -> list[Any]:
    loaded = tasks.samples.load(range(len(tasks.samples)) if indices is None else indices)
    return [sample.prompt for sample in without_broken(loaded)[0]]


@pytest.mark.parametrize("name", WRITERS)
def test_any_document_is_found_in_any_order(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PIECE_BYTES", 5000)
    rows = records()
    WRITERS[name](tmp_path / name, rows)
    tasks = read(tmp_path / name)
    assert texts(tasks) == [row["text"] for row in rows]
    chosen = np.random.default_rng(0).permutation(ROWS)[:50].tolist()
    tasks.samples.documents.forget()
    assert texts(tasks, chosen) == [rows[number]["text"] for number in chosen]
    assert [str(tasks.samples[number]) for number in (0, ROWS - 1)] == [
        f"task {kind}, sample 0"
        for kind in (("line_1", f"line_{ROWS}") if "json" in name else ("row_0", f"row_{ROWS - 1}"))
    ]


def gzip_members(data: bytes, ends: list[int]) -> bytes:
    """Returns a gzip file whose members end at these places of the content, which need not be line ends."""
    return b"".join(gzip.compress(data[start:stop]) for start, stop in pairwise([0, *ends, len(data)]))


@pytest.mark.parametrize("seed", range(4))
def test_a_gzip_file_is_entered_at_its_members(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members end anywhere, as `bgzip` cuts them; some are empty, as its last one is; zeros may follow."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(lines, "ENTRY_BYTES", int(rng.integers(1, 400)))
    for name in ("PIECE_BYTES", "FED_BYTES"):
        monkeypatch.setattr(compressed, name, int(rng.integers(1, 3000)))
    rows = records()
    data = b"\n \n" + json_lines(rows)
    ends = np.sort(rng.integers(0, len(data), 60)).tolist()
    (tmp_path / "t.jsonl.gz").write_bytes(gzip_members(data, [*ends, len(data)]) + bytes(int(rng.integers(0, 5000))))
    tasks = read(tmp_path / "t.jsonl.gz")
    [entry] = tasks.samples.documents.index.files
    assert len(unpack_marks(entry.entries, 2)) > 5
    assert sum(sequential_sizes("jsonl", [entry])) == entry.size
    for start in rng.permutation(ROWS - 10)[:20].tolist():
        tasks.samples.documents.forget()
        assert texts(tasks, range(start, start + 10)) == [row["text"] for row in rows[start : start + 10]]
    assert tasks.samples[0].task_id == "line_3"


@pytest.mark.parametrize("damage", ["cut", "cut in a header", "flipped", "followed by text"])
def test_a_damaged_member_is_named_with_its_file(tmp_path: Path, damage: str) -> None:
    data = gzip_members(json_lines(records(50)), [700, 900])
    ends = {"cut": data[:-9], "cut in a header": data + data[:5], "followed by text": data + b"text"}
    flipped = data[:90] + bytes([data[90] ^ 255]) + data[91:]
    (tmp_path / "t.jsonl.gz").write_bytes(ends.get(damage, flipped))
    with pytest.raises(JobError, match=r"t\.jsonl\.gz cannot be read \(cut short or damaged: .*; copy it again\)$"):
        texts(read(tmp_path / "t.jsonl.gz"))


@pytest.mark.parametrize("codec", ["gz", "zst", "bz2"])
def test_a_compressed_file_may_begin_with_blank_lines(tmp_path: Path, codec: str) -> None:
    data = b"\n\n  \n" + json_lines(records(200))
    path = tmp_path / f"t.jsonl.{codec}"
    path.write_bytes({"gz": gzip.compress, "zst": zstd, "bz2": bz2.compress}[codec](data))
    assert texts(read(path)) == [row["text"] for row in records(200)]


@pytest.mark.parametrize("length", [10, 1000, 30_000])
def test_marks_are_as_many_as_a_host_needs_to_read_its_part(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MARKS_IN_MEMORY", 500)
    count = 3_000_000 // length
    data = (b"x" * (length - 1) + b"\n") * count
    rows, marks = scan_lines("x", iter([data[i : i + 100_000] for i in range(0, len(data), 100_000)]))
    blocks = len(marks) - 1
    assert rows == count
    assert lines.lines_of_block(rows, blocks) == max(
        1, min(lines.MOST_LINES, 1 << (max(1, (16 << 10) // length)).bit_length() - 1)
    )
    assert (np.diff(marks[:-1, 0]) == length * lines.lines_of_block(rows, blocks)).all()


def test_an_index_of_before_has_a_mark_every_64_lines() -> None:
    for rows in (0, 1, 64, 65, 1000, 12_345):
        blocks = -(-rows // 64)
        step = lines.lines_of_block(rows, blocks)
        assert -(-rows // step) == blocks
        assert step == 64 or rows <= step


def test_blank_lines_are_no_samples_but_have_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [json.dumps(row) for row in records(200)]
    blanks = ["", " ", "\t\r", " " * 70]
    path.write_text("\n\n" + "".join(f"{row}\n{blanks[i % 4]}\n" for i, row in enumerate(rows)) + '{"text": "last"}')
    tasks = read(path)
    assert len(tasks.samples) == 201
    assert [tasks.samples[i].task_id for i in (0, 1, 150, 200)] == ["line_3", "line_5", "line_303", "line_403"]


@given(st.lists(st.sampled_from([b"", b" ", b"a", b'{"x": 1}', b"\r", b"y" * 50]), max_size=300), st.integers(1, 64))
def test_lines_are_counted_whatever_the_pieces(parts: list[bytes], size: int) -> None:
    data = b"\n".join(parts)
    rows, marks = scan_lines("x", iter([data[i : i + size] for i in range(0, len(data), size)]))
    filled = [number for number, line in enumerate(data.split(b"\n")) if line.strip()]
    assert rows == len(filled)
    assert marks[:-1, 1].tolist() == filled[:: lines.lines_of_block(rows, len(marks) - 1)]
    for offset, number in marks[:-1].tolist():
        assert data[:offset].count(b"\n") == number
    assert unpack_marks(pack_marks(marks), 2).tolist() == marks.tolist()


def test_files_of_a_folder_a_glob_and_a_list_are_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("b/2.jsonl", "a.jsonl", "b/1.jsonl")):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(json_lines(records(3, 10 * number)))
    (tmp_path / "d" / "README.md").write_text("no")
    (tmp_path / "d" / ".hidden").mkdir()
    (tmp_path / "d" / ".hidden" / "x.jsonl").write_text("no")
    folder = read("d")
    assert [sample.task_id for sample in folder.samples][:4] == [
        *(f"a.jsonl:line_{i}" for i in (1, 2, 3)),
        "b/1.jsonl:line_1",
    ]
    assert texts(folder) == [row["text"] for start in (10, 20, 0) for row in records(3, start)]
    for same in ("d/**/*.jsonl", "./d", ["d/a.jsonl", "d/b"], str(tmp_path / "d")):
        assert texts(read(same)) == texts(folder)
        assert read(same).fingerprint == folder.fingerprint
    assert len(read("d/b/[1].jsonl").samples) == 3
    assert len(read(["d/a.jsonl", "d/b/*"]).samples) == 9


def test_a_nested_field_is_read(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hello"}]
    rows = [{"conversation": {"messages": chat}, "a.b": "flat", "id": number} for number in range(3)]
    (tmp_path / "t.jsonl").write_bytes(json_lines(rows))
    write_parquet(tmp_path / "t.parquet", rows)
    for name in ("t.jsonl", "t.parquet"):
        assert texts(read(tmp_path / name, field="conversation.messages")) == [chat] * 3
        assert texts(read(tmp_path / name, field="a.b")) == ["flat"] * 3
    with pytest.raises(JobError, match=r'must be an object with the field "conversation\.text"'):
        texts(read(tmp_path / "t.jsonl", field="conversation.text"))


def test_flat_arrays_are_cut_into_samples(tmp_path: Path) -> None:
    ids = np.arange(1000, dtype=np.uint16)
    ids.tofile(tmp_path / "t.bin")
    np.save(tmp_path / "t.npy", ids)
    np.savez(tmp_path / "t.npz", tokens=ids.reshape(10, 100))
    for name, fields in (("t.bin", {"dtype": "uint16", "row_tokens": 300}), ("t.npy", {"row_tokens": 300})):
        tasks = read(tmp_path / name, **fields)
        assert [prompt.tolist() for prompt in texts(tasks)] == [ids[i : i + 300].tolist() for i in range(0, 1000, 300)]
    assert [
        prompt.tolist()
        for prompt in texts(
            read(tmp_path / "t.npz"),
        )
    ] == ids.reshape(10, 100).tolist()
    with pytest.raises(JobError, match=r"t\.bin: a \.bin file does not tell what is in it; give tasks\.dtype"):
        read(tmp_path / "t.bin")
    with pytest.raises(JobError, match=r"tokens is uint16 \[1000\]; .* or tasks\.row_tokens=1024"):
        read(tmp_path / "t.npy")


def test_a_text_may_be_a_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress("one\r\n\ntwo\nthr\u00e9e".encode()))
    assert texts(read(tmp_path / "t.txt.gz", format=TaskFormat.lines)) == ["one", "two", "thr\u00e9e"]
    assert texts(read(tmp_path / "t.txt.gz")) == ["one\n\ntwo\nthr\u00e9e"]


def test_a_broken_document_has_its_place_in_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(json_lines(records(3)) + b"{\n" + json_lines([{"text": ""}, {"text": "a", "task_id": "line_1"}]))
    tasks = read(path, on_broken=OnBroken.skip)
    loaded = tasks.samples.load(range(6))
    kinds = [item.reason.value if isinstance(item, BrokenTask) else "" for item in loaded]
    assert kinds == ["", "", "", "broken", "blank", "repeated"]
    refusing = read(path)
    assert len(refusing.samples.load(range(3))) == 3
    with pytest.raises(JobError, match=r"t\.jsonl, line 4 is not JSON .*tasks\.on_broken=skip"):
        refusing.samples.load(range(3, 6))


@pytest.mark.parametrize("whole_files", [False, True])
@pytest.mark.parametrize("sample", [None, 0.3, 0.01])
@pytest.mark.parametrize("shuffle", [None, 5])
def test_the_order_takes_each_document_once(shuffle: int | None, sample: float | None, whole_files: bool) -> None:
    rows = 100_003
    starts = tuple(range(0, rows, 7001))
    rules = OrderRules(rows, starts, 20_000.0, sample, shuffle, whole_files)
    order = Order(rules)
    chosen = order.rows(np.arange(order.samples))
    assert order.samples == int(rows * (sample or 1))
    assert len(np.unique(chosen)) == order.samples
    assert 0 <= chosen.min() <= chosen.max() < rows
    np.testing.assert_array_equal(Order(rules).rows(np.arange(500, 700)), chosen[500:700])
    if shuffle is None:
        assert (np.diff(chosen) > 0).all()
    else:
        other = Order(OrderRules(rows, starts, 20_000.0, sample, shuffle + 1, whole_files))
        assert (other.rows(np.arange(200)) != chosen[:200]).any()
        files = chosen // 7001
        if whole_files:
            assert (np.diff(files[:: rules.window]) < 0).any() or order.samples < 3 * rules.window
        else:  # the documents of a window come from all over the source
            assert len(np.unique(files[: rules.window])) > 8
    if sample is not None:
        step = rows / order.samples
        assert np.abs(np.sort(chosen) - np.arange(order.samples) * step).max() <= step + 1


def test_limit_and_sample_select_documents(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(json_lines(records()))
    tenth = read(tmp_path / "t.jsonl", sample=0.1)
    assert len(tenth.samples) == 100
    assert len(read(tmp_path / "t.jsonl", sample=0.1, limit=7).samples) == 7
    shuffled = read(tmp_path / "t.jsonl", shuffle=3)
    assert sorted(texts(shuffled)) == sorted(row["text"] for row in records())
    assert texts(shuffled) != [row["text"] for row in records()]
    assert len({read(tmp_path / "t.jsonl", **f).fingerprint for f in ({}, {"shuffle": 1}, {"sample": 0.1})}) == 3


def test_a_budget_of_tokens_is_exact(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(json_lines(records()))
    config = TasksConfig(path=str(tmp_path / "t.jsonl"), max_tokens=5000)
    tasks = read_tasks(config, count_tokens=lambda sample: len(sample.prompt))
    lengths = np.cumsum([len(row["text"]) for row in records()])
    assert len(tasks.samples) == np.searchsorted(lengths, 5000, side="right")


@pytest.mark.parametrize(
    ("names", "path", "says"),
    [
        (["a.parquet", "b.parquet", "c.other.parquet"], "d", 'c.other.parquet has no column "text"; it has other'),
        (
            ["a.parquet", "b.ids.parquet"],
            "d",
            r'column "text" is list<.*int64> in .*b.ids.parquet, but string in .*a.p',
        ),
        (["a.jsonl", "b.parquet"], "d", r"has files of several kinds, .*b\.parquet and .*a\.jsonl; name those of one"),
        (["a.jsonl"], "d/*.parquet", r"d/\*\.parquet matches no file"),
        (["a.jsonl"], "d/none.jsonl", r"none\.jsonl does not exist"),
        (["t-00000-of-00003.jsonl", "t-00002-of-00003.jsonl"], "d", "shard .*t-00001-of-00003.jsonl is missing"),
        (["t-00000-of-00002.parquet"], "d/*.parquet", "shard .*t-00001-of-00002.parquet is missing"),
        (["cut.jsonl.gz"], "d", r"cut\.jsonl\.gz cannot be read \(cut short or damaged"),
        (["cut.jsonl.zst"], "d", r"cut\.jsonl\.zst cannot be read \(cut short or damaged"),
        (["cut.parquet"], "d", r"cut\.parquet cannot be read \(damaged"),
        (["cut.arrow"], "d", r"cut\.arrow cannot be read \(damaged"),
        (["cut.npy"], "d", r"cut\.npy cannot be read \(tokens is .* but the file ends before"),
        (["a.xyz"], "d/a.xyz", r"a\.xyz: its name does not tell what it is; set tasks\.format"),
        (["a.xyz"], "d", "has no file that can be read"),
    ],
)
def test_bad_input_is_one_line_that_names_the_file(tmp_path: Path, names: list[str], path: str, says: str) -> None:
    (tmp_path / "d").mkdir()
    for name in names:
        file = tmp_path / "d" / name
        rows: list[dict[str, Any]] = records(20)
        if ".other." in name:
            rows = [{"other": "x"}]
        if ".ids." in name:
            rows = [{"text": [1, 2]}]
        if name.endswith(".npy"):
            np.save(file, np.ones((40, 40), np.int64))
        else:
            suffix = name.partition(".")[2].removeprefix("other.").removeprefix("ids.")
            known = {"parquet": "t.parquet", "arrow": "stream.arrow"}
            WRITERS.get(known.get(suffix, f"t.{suffix}"), lambda path, rows: path.write_text("?"))(file, rows)
        if name.startswith("cut"):
            os.truncate(file, file.stat().st_size * 2 // 3)
    with pytest.raises(JobError, match=says) as refused:
        texts(read(tmp_path / path))
    assert "\n" not in str(refused.value)


def test_a_part_of_the_shards_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "t-00000-of-00002.jsonl").write_bytes(json_lines(records(2)))
    assert len(read(f"{tmp_path}/t-0000[0]-of-00002.jsonl").samples) == 2


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet", "stream.arrow"])
def test_a_large_source_is_estimated_by_a_few_looks(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "PLACE_BYTES", 4000)
    for number in range(20):
        WRITERS[name](tmp_path / f"{number}_{name}", records(500, 500 * number))
    config = TasksConfig(path=str(tmp_path))
    estimated = estimate(list_source(config), config)
    assert estimated.samples == pytest.approx(10_000, rel=max(0.1, 2 * estimated.error))
    assert estimated.error < 0.3
    assert isinstance(estimated.drawn[0], Sample)
    assert [item.prompt for item in estimated.drawn[:3] if isinstance(item, Sample)] == [
        row["text"] for row in records(3)
    ]


@pytest.mark.parametrize(("name", "members"), [("t.jsonl.gz", False), ("members.jsonl.gz", True), ("t.jsonl", False)])
def test_an_estimate_sees_whether_files_can_be_entered(tmp_path: Path, name: str, members: bool) -> None:
    for number in range(3):
        WRITERS[name](tmp_path / f"{number}_{name}", records())
    config = TasksConfig(path=str(tmp_path))
    listed = list_source(config)
    estimated = estimate(listed, config)
    assert estimated.members is members
    tasks = estimated_tasks(listed, config, estimated, None)
    assert len(tasks.sequential) == (3 if name == "t.jsonl.gz" else 0)


def test_documents_of_an_estimate_have_places_for_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "PLACE_BYTES", 2000)
    path = tmp_path / "t.jsonl"
    path.write_bytes(json_lines(records()))
    config = TasksConfig(path=str(path))
    drawn = [item for item in estimate(list_source(config), config).drawn if isinstance(item, Sample)]
    placed = [sample for sample in drawn if sample.task_id.startswith("byte_")]
    assert len(placed) > 100
    for sample in placed:
        line = path.read_bytes()[int(sample.task_id.removeprefix("byte_")) :].partition(b"\n")[0]
        assert json.loads(line)["text"] == sample.prompt


@pytest.mark.parametrize("name", ["t.jsonl", "t.txt", "t.parquet"])
def test_a_text_too_long_for_any_tokenizer_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pod_job.prompts.sources.sample.LONGEST_TEXT", 100)
    rows = [{"text": "x" * size} for size in (100, 101)]
    if name == "t.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(json_lines(rows) if name == "t.jsonl" else rows[1]["text"].encode())
    with pytest.raises(JobError, match=r"has a text of 101 characters; at most 100 are tokenized: cut it"):
        texts(read(tmp_path / name))
