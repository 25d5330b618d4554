"""A batch is in the run folder once and whole, whoever wrote it, died writing it, or wrote it at the same time."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_runs import TAPS, WIDTH, batch, rewrite

from pod_job.errors import JobError
from pod_job.formats import rows_table, statistics
from pod_job.formats.checksummed_json import with_checksum
from pod_job.formats.safetensors import read_header, view_tensor, write_parts
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, CommitRecord, TapFile, commit_batch, read_record
from pod_job.run_folder.layout import committed
from pod_job.storage.checksums import Stored
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


def _vectors(folder: Folder, file: TapFile) -> np.ndarray:
    data = folder.read(file.file)
    header = read_header(lambda start, size: data[start : start + size], file.file, len(data))
    assert header.data_start == file.offset
    return view_tensor(np.frombuffer(data, np.uint8), header.tensors["activations"])


def _assert_true(folder: Folder, record: CommitRecord) -> None:
    """Every statement of the record holds for the files that are there."""
    assert record == read_record(folder, record.batch)
    for file in (*record.files, record.rows_file):
        assert folder.stat(file.file) == Stored(file.size, file.crc32c)
        assert file.rows == record.rows
    for file in record.files:
        vectors = _vectors(folder, file)
        assert (file.dtype, file.shape) == (str(vectors.dtype), list(vectors.shape))
        assert file.statistics == statistics.to_record(statistics.compute(vectors))
    assert len(rows_table.from_parquet(folder.read(record.rows_file.file))) == record.rows


def test_a_batch_is_what_its_record_says(new_folder: Callable[[], Folder]) -> None:
    folder, made = new_folder(), batch(7, 30)
    record = commit_batch(folder, made, host=3)
    _assert_true(folder, record)
    assert (record.batch, record.n_samples, record.rows, record.host) == (7, 8, 30, 3)
    assert [file.tap for file in record.files] == list(TAPS)
    for file in record.files:
        np.testing.assert_array_equal(_vectors(folder, file), made.taps[file.tap])
        assert file.offset % 4096 == 0
    assert committed(folder) == {7}


def test_a_second_writer_adopts_what_is_there(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    first = commit_batch(folder, batch(1, 20), host=0)
    second = commit_batch(folder, batch(1, 20, noise=1e-2, time="2026-01-01T00:00:00+00:00"), host=1)
    assert second == first
    _assert_true(folder, first)


def test_a_batch_without_rows_is_done(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    record = commit_batch(folder, batch(1, 0), host=0)
    _assert_true(folder, record)
    assert record.files[0].shape == [0, WIDTH]
    assert commit_batch(folder, batch(1, 0), host=1) == record


def test_files_of_another_run_are_refused(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    commit_batch(folder, batch(1, 20), host=0)
    commit_batch(folder, batch(1, 20), host=0)
    for other, reason in [
        (batch(1, 21), r"holds bfloat16 \[20, 16\], this run makes bfloat16 \[21, 16\]"),
        (batch(1, 20, dtype=np.float16), "holds bfloat16 .* this run makes float16"),
        (batch(1, 20, seed=1), "its rows are .* off those that this run makes"),
        (other_rows(batch(1, 20)), "describes other rows than this run's batch 1"),
        (batch(1, 20, taps=TAPS[:1]), "describes other files than are there"),
    ]:
        with pytest.raises(JobError, match=reason):
            commit_batch(folder, other, host=0)


def other_rows(made: Batch) -> Batch:
    """Returns the batch with the same vectors, of other tokens."""
    return replace(made, rows=replace(made.rows, token_id=made.rows.token_id + 1))


def places(size: int) -> list[int]:
    """Returns places of a file: its ends, and some between them."""
    return [0, size - 1, *range(7, size, max(1, size // 5))]


FILES = [*(layout.activations_file(tap, 1) for tap in TAPS), layout.rows_file(1)]
DAMAGES: dict[str, Callable[[bytes], list[bytes]]] = {
    "a bit flipped": lambda data: [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in places(len(data))],
    "cut": lambda data: [data[:at] for at in places(len(data))],
    "longer": lambda data: [data + b"\0"],
    "zeros": lambda data: [bytes(len(data))],
    "another file": lambda data: [b"something else"],
}


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_without_its_record_is_made_again(tmp_path: Path, name: str, kind: str) -> None:
    commit_batch(open_folder(tmp_path), batch(1, 20), host=0)
    whole = {name: (tmp_path / name).read_bytes() for name in FILES}
    for damaged in DAMAGES[kind](whole[name]):
        (tmp_path / layout.commit_file(1)).unlink()
        (tmp_path / name).write_bytes(damaged)
        folder = open_folder(tmp_path)
        _assert_true(folder, commit_batch(folder, batch(1, 20), host=1))
        assert {name: (tmp_path / name).read_bytes() for name in FILES} == whole


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_of_a_terabyte_without_a_record_is_refused_and_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 1 << 40)
    with pytest.raises(JobError, match=r"is larger than \d+ bytes, where this run's has \d+; remove it"):
        commit_batch(open_folder(tmp_path), batch(1, 20), host=0)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_committed_batch_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    commit_batch(open_folder(tmp_path), batch(1, 20), host=0)
    data = (tmp_path / name).read_bytes()
    damaged = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(JobError, match="is damaged, and batch 1 is committed"):
        commit_batch(open_folder(tmp_path), batch(1, 20), host=1)
    assert (tmp_path / name).read_bytes() == damaged


@pytest.mark.parametrize("change", [lambda data: data, lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]])
def test_a_file_of_a_version_without_checksums_in_it_is_made_again(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    made, name = batch(1, 20), layout.activations_file(TAPS[0], 1)
    old = b"".join(write_parts({"activations": made.taps[TAPS[0]]}, {"format": "2", "tap": TAPS[0], "batch": "1"}))
    folder = open_folder(tmp_path)
    folder.create(name, [change(old)])
    _assert_true(folder, commit_batch(folder, made, host=0))
    np.testing.assert_array_equal(_vectors(folder, read_record(folder, 1).files[0]), made.taps[TAPS[0]])


def test_writers_at_the_same_time_leave_one_batch(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(commit_batch, folder, batch(1, 20, noise=host / 100), host) for host in range(4)]
    records = [job.result() for job in jobs]
    assert all(record == records[0] for record in records)
    _assert_true(folder, records[0])


@pytest.mark.parametrize("after", range(2 * (len(TAPS) + 2)))
def test_a_batch_survives_a_writer_killed_at_any_step(tmp_path: Path, after: int) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the eight children share one import
    process = context.Process(target=_die_at, args=(str(tmp_path), after))
    process.start()
    process.join()
    assert process.exitcode == 9
    folder = open_folder(tmp_path)
    died_committed = committed(folder) == {1}
    assert died_committed == (after == 2 * (len(TAPS) + 2) - 1)
    record = commit_batch(folder, batch(1, 20, noise=1e-2, time="2026-01-01T00:00:00+00:00"), host=1)
    _assert_true(folder, record)
    assert record.host == (0 if died_committed else 1)


def _die_at(url: str, after: int) -> None:
    """Commit a batch as host 0 and die just before (even) or just after (odd) the name of a file appears."""
    link, left = os.link, [after]

    def dying(*names: Any) -> None:
        if left[0] == 0:
            os._exit(9)
        link(*names)
        if left[0] == 1:
            os._exit(9)
        left[0] -= 2

    os.link = dying  # type: ignore[assignment]
    commit_batch(open_folder(url), batch(1, 20), host=0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged: it does not end with its crc32c"),
        (b'{"format": 2, "batch": 1}', "damaged: it does not end with its crc32c"),
        (with_checksum(b"{]}"), "JSON is malformed"),
        (with_checksum(b'{"format": 3, "batch": 1}'), "format 3, this version reads 2"),
        (with_checksum(b'{"batch": 1, "new": 1, "format": 3}'), "format 3, this version reads 2"),
        (with_checksum(b'{"format": "2", "batch": 1}'), "format '2', this version reads 2"),
        (with_checksum(b'{"format": 2, "batch": 1}'), "n_samples is missing; the file is damaged"),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    folder = open_folder(tmp_path)
    folder.create(layout.commit_file(1), [content])
    with pytest.raises(JobError, match=rf"batch_000001\.json: {reason}"):
        read_record(folder, 1)


def test_a_record_with_a_damaged_file_entry_is_named(tmp_path: Path) -> None:
    commit_batch(open_folder(tmp_path), batch(1, 5), host=0)
    rewrite(tmp_path / layout.commit_file(1), lambda record: record["files"][1].update(size="big"))
    with pytest.raises(JobError, match=r"batch_000001\.json: files\[1\]\.size: expected `int`, got `str`"):
        read_record(open_folder(tmp_path), 1)


def test_any_single_altered_character_of_a_record_is_refused(tmp_path: Path) -> None:
    commit_batch(open_folder(tmp_path), batch(1, 5), host=0)
    path = tmp_path / layout.commit_file(1)
    content = path.read_bytes()
    for at, byte in enumerate(content):
        other = b"0123456789"[(byte - 47) % 10] if chr(byte).isdigit() else byte ^ 1
        path.write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
        with pytest.raises(JobError, match=r"batch_000001\.json: damaged"):
            read_record(open_folder(tmp_path), 1)
