"""Tables of strangers: what they claim is checked before memory is taken by it, and names are shown as one line."""

import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pod_job.config.tasks import OnBroken, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.samples import without_broken
from pod_job.prompts.sources import listing
from pod_job.prompts.tasks import read_tasks
from tools.fuzz.memory import data_bytes, limited_data

TEXTS = ["one", "two", "three"]


@pytest.fixture(params=["small", "large"], autouse=True)
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test reads the source whole, and by an index."""
    if request.param == "large":
        monkeypatch.setattr(listing, "SMALL_BYTES", -1)


def written(path: Path, texts: pa.Array, compression: str | None = None) -> Path:
    table = pa.table({"text": texts})
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return path


def prompts(path: Path) -> list[object]:
    samples = read_tasks(TasksConfig(path=str(path), on_broken=OnBroken.skip)).samples
    return [sample.prompt for sample in without_broken(samples.load(range(len(samples))))[0]]


def changed(path: Path, before: bytes, after: bytes) -> None:
    data = path.read_bytes()
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, after))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
@pytest.mark.parametrize("places", [(0, 3, 6, 2**30), (0, 2**31 - 1, 6, 11), (0, 6, 3, 11), (-5, 3, 6, 11)])
def test_offsets_that_lead_out_of_the_texts_are_refused(tmp_path: Path, kind: pa.DataType, places: list[int]) -> None:
    path = written(tmp_path / "a.arrow", pa.array(TEXTS, kind))
    assert prompts(path) == TEXTS
    form = "<4q" if kind == pa.large_string() else "<4i"
    changed(path, struct.pack(form, 0, 3, 6, 11), struct.pack(form, *places))
    with pytest.raises(JobError, match=r"a\.arrow cannot be read \(damaged") as refused:
        prompts(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("claim", [1 << 31, 1 << 45, (1 << 63) - 1])
def test_a_compressed_buffer_that_claims_to_be_large_is_refused(tmp_path: Path, claim: int) -> None:
    path = written(tmp_path / "a.arrow", pa.array(["x" * 999]), "zstd")
    assert prompts(path) == ["x" * 999]
    zstd = b"\x28\xb5\x2f\xfd"  # with which the compressed texts begin, behind their size
    changed(path, struct.pack("<q", 999) + zstd, struct.pack("<q", claim) + zstd)
    with limited_data(data_bytes() + (1 << 30)), pytest.raises(JobError, match=r"claims to expand to [\d,]{13,};"):
        prompts(path)


def test_a_batch_that_claims_to_be_longer_than_the_file_takes_no_memory(tmp_path: Path) -> None:
    path = written(tmp_path / "a.arrow", pa.array(TEXTS))
    length = path.read_bytes().index(struct.pack("<q", 32))  # 16 bytes of offsets, and 16 of texts
    for claim in (1 << 33, 1 << 45):
        data = bytearray(path.read_bytes())
        data[length : length + 8] = struct.pack("<q", claim)
        path.write_bytes(data)
        with limited_data(data_bytes() + (1 << 30)), pytest.raises(JobError, match="cannot be read"):
            prompts(path)


def test_a_text_that_is_not_utf_8_is_one_broken_row(tmp_path: Path) -> None:
    path = written(tmp_path / "a.arrow", pa.array(TEXTS))
    changed(path, b"two", b"t\xffo")
    assert prompts(path) == ["one", "three"]


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_a_name_of_a_column_that_is_not_utf_8_is_refused(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / f"a.{suffix}", pa.table({"text": TEXTS, "other": TEXTS})
    if suffix == "parquet":
        pq.write_table(table, path, store_schema=False)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    assert prompts(path) == TEXTS
    path.write_bytes(path.read_bytes().replace(b"other", b"oth\xffr"))
    with pytest.raises(JobError, match=rf"a\.{suffix} cannot be read \(damaged"):
        prompts(path)


def test_an_error_that_names_columns_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('"one\ntwo","\x1b[31m"\n1,2\n')
    with pytest.raises(JobError, match="has no column") as refused:
        prompts(path)
    assert not {"\n", "\x1b"} & set(str(refused.value))
