"""A batch is in the run folder once and whole, whoever wrote it, died writing it, or wrote it at the same time."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_runs import TAPS, WIDTH, batch, rewrite

from pod_job.errors import JobError
from pod_job.formats import rows_table, statistics
from pod_job.formats.checksummed_json import with_checksum
from pod_job.formats.safetensors import read_header, view_tensor
from pod_job.run_folder import layout
from pod_job.run_folder.commit import CommitRecord, TapFile, commit_batch, read_record
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
        (batch(1, 20, seed=1), "describes other rows than this run's batch 1"),
        (batch(1, 20, taps=TAPS[:1]), "describes other files than are there"),
    ]:
        with pytest.raises(JobError, match=reason):
            commit_batch(folder, other, host=0)


def test_a_damaged_file_is_not_adopted(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.create(layout.activations_file("layer_6", 1), [b"something else"])
    with pytest.raises(JobError, match=r"layer_6_batch_000001\.safetensors: not a usable safetensors file"):
        commit_batch(folder, batch(1, 5), host=0)


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
