"""Files as other programs write them: byte order marks, encodings, types of columns, capitals; and unusable ones."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pod_job.config.tasks import OnBroken, TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.samples import without_broken
from pod_job.prompts.sources import listing
from pod_job.prompts.tasks import read_tasks

BOM = b"\xef\xbb\xbf"
TWO_LINES = b'{"text": "a"}\n{"text": "b"}\n'


@pytest.fixture(params=["small", "large"], autouse=True)
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test reads the source whole, and by an index."""
    if request.param == "large":
        monkeypatch.setattr(listing, "SMALL_BYTES", -1)


def column(*values: Any, kind: pa.DataType | None = None) -> Callable[[Path], None]:
    """Returns what writes a Parquet file with one column."""
    return lambda path: pq.write_table(pa.table({"text": pa.array(values, kind)}), path)


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: [path.write_bytes(data), None][1]


def prompts(path: Path, **fields: Any) -> list[Any]:
    tasks = read_tasks(TasksConfig(path=str(path), **fields))
    loaded = tasks.samples.load(range(len(tasks.samples)))
    return [
        getattr(sample.prompt, "tolist", lambda prompt=sample.prompt: prompt)() for sample in without_broken(loaded)[0]
    ]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("bom.jsonl", content(BOM + TWO_LINES)),
        ("crlf.jsonl", content(TWO_LINES.replace(b"\n", b"\r\n"))),
        ("open.jsonl", content(TWO_LINES[:-1])),
        ("CAPS.JSONL.GZ", content(gzip.compress(TWO_LINES))),
        ("bom.csv", content(BOM + b"text,n\na,1\nb,2\n")),
        ("crlf.csv", content(b"text,n\r\na,1\r\nb,2\r\n")),
        ("tabs.tsv", content(b"text\tn\na\t1\nb\t2\n")),
        ("some.csv.gz", content(gzip.compress(b"text,n\na,1\nb,2\n"))),
        ("some.tsv.zst", content(pa.compress(b"text\tn\na\t1\nb\t2\n", codec="zstd", asbytes=True))),
        ("bytes.parquet", column(b"a", b"b")),
        ("views.parquet", column("a", "b", kind=pa.string_view())),
        ("large.parquet", column("a", "b", kind=pa.large_string())),
        ("dictionary.parquet", column("a", "b", kind=pa.dictionary(pa.int8(), pa.string()))),
    ],
)
def test_texts_are_what_was_written(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    assert prompts(tmp_path / name) == ["a", "b"]


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(BOM + b"a\nb\n")
    assert prompts(tmp_path / "a.txt") == ["a\nb\n"]
    assert prompts(tmp_path / "a.txt", format=TaskFormat.lines) == ["a", "b"]


def test_cells_of_a_csv_file_are_texts_whatever_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\n1,1\n2.5,2\nNA,3\n"a\nb",4\n')
    assert prompts(tmp_path / "a.csv") == ["1", "2.5", "NA", "a\nb"]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("latin.csv", content(b"text,n\na,1\ncaf\xe9,2\n")),
        ("latin.jsonl", content(b'{"text": "a"}\n{"text": "caf\xe9"}\n')),
        ("latin.parquet", column(b"a", b"caf\xe9")),
        ("null.parquet", column("a", None)),
    ],
)
def test_a_row_that_is_no_text_is_one_broken_row(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    assert prompts(tmp_path / name, on_broken=OnBroken.skip) == ["a"]
    with pytest.raises(JobError, match=rf"{name}, (row 1|line 2)") as refused:
        prompts(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_texts_of_several_types_are_one_source(tmp_path: Path) -> None:
    kinds = [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
    for number, kind in enumerate(kinds):
        column("a", kind=kind)(tmp_path / f"{number}.parquet")
    assert prompts(tmp_path) == ["a"] * len(kinds)


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("empty.arrow", content(b""), r"empty\.arrow cannot be read"),
        ("empty.parquet", content(b""), r"empty\.parquet cannot be read"),
        ("empty.csv", content(b""), r"empty\.csv cannot be read"),
        ("empty.jsonl", content(b""), r"empty\.jsonl is empty"),
        (
            "latin.csv",
            content(b"t\xe9xt,n\na,1\n"),
            r"latin\.csv cannot be read \(damaged, or not what its name says: 'utf",
        ),
        (
            "long.csv",
            content(b"text\na\n" + bytes(20 << 20) + b"\n"),
            r"a row is longer than 8 MiB; save the table as Parq",
        ),
        ("really.jsonl", content(gzip.compress(TWO_LINES)), r"it is compressed; let its name end in \.gz"),
        ("really.jsonl.gz", content(TWO_LINES), "it is not compressed by gzip, as its name says; name it by what it"),
        ("twice.csv", content(b"text,text\na,b\n"), r'twice\.csv has the column "text" more than once'),
        ("list.json", content(b'[{"text": "a"}]'), r"list\.json: must be a JSON object of tasks, not list; records of"),
        ("utf16.jsonl", content(TWO_LINES.decode().encode("utf-16")), r"utf16\.jsonl, line \d is not JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, name: str, write: Callable[[Path], None], says: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(JobError, match=says) as refused:
        prompts(tmp_path / name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_a_text_of_megabytes_is_one_sample(tmp_path: Path, kind: str) -> None:
    texts = ["a", "x" * (3 << 20), "b"]
    lines = "".join(f'{{"text": "{text}"}}\n' for text in texts).encode()
    plain = {"jsonl": lines, "jsonl.gz": gzip.compress(lines, 1), "csv": "\n".join(["text", *texts]).encode()}
    write = column(*texts) if kind == "parquet" else content(plain[kind])
    write(tmp_path / f"t.{kind}")
    assert prompts(tmp_path / f"t.{kind}") == texts


def test_an_empty_path_is_no_folder() -> None:
    with pytest.raises(JobError, match=r"tasks\.path is empty; give a file, a folder"):
        read_tasks(TasksConfig(path=""))
