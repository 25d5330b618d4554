"""A run folder keeps content as it was stored, once, whoever else writes, dies or loses the connection."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pod_job.errors import JobError
from pod_job.storage import gcs_upload
from pod_job.storage.checksums import Stored, checksum
from pod_job.storage.folder import Folder, NameTaken, exists
from pod_job.storage.open import open_folder


def test_created_content_never_changes(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    stored = folder.create("a/b", [b"hello", memoryview(b" world"), b""])
    assert stored == Stored(11, "yZRlqg==")  # the CRC-32C of "hello world", as Cloud Storage reports it
    assert folder.stat("a/b") == stored
    assert folder.create("a/b", [b"hello world"]) == stored
    with pytest.raises(NameTaken) as taken:
        folder.create("a/b", [b"HELLO WORLD"])
    assert taken.value.stored == stored
    assert folder.read("a/b") == b"hello world"


def test_read_returns_ranges(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    folder.create("x", [b"0123456789"])
    assert (folder.read("x", 2, 3), folder.read("x", 7), folder.read("x", 8, 9)) == (b"234", b"789", b"89")
    assert (folder.read("x", 10, 1), folder.read("x", 3, 0)) == (b"", b"")
    with pytest.raises(FileNotFoundError):
        folder.read("y")
    assert folder.stat("y") is None


def test_replace_and_names(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    assert folder.names("") == []
    for name in ("c/2", "c/10", "c/1", "cc/1", "d"):
        folder.create(name, [b"1"])
    folder.replace("d", b"22")
    folder.replace("e", b"333")
    assert (folder.read("d"), folder.read("e")) == (b"22", b"333")
    assert folder.names("c/") == ["c/1", "c/10", "c/2"]
    assert folder.names("c/1") == ["c/1", "c/10"]
    assert folder.names("") == ["c/1", "c/10", "c/2", "cc/1", "d", "e"]


def test_check_writable_leaves_nothing(new_folder: Callable[[], Folder], tmp_path: Path) -> None:
    folder = new_folder()
    folder.check_writable()
    assert folder.names("") == []
    open_folder(tmp_path / "a" / "b").check_writable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("one_request", [8 << 20, 32 << 20])
def test_large_content_arrives_complete(
    new_folder: Callable[[], Folder], monkeypatch: pytest.MonkeyPatch, one_request: int
) -> None:
    monkeypatch.setattr(gcs_upload, "ONE_REQUEST_BYTES", one_request)  # above it uploads go in chunks
    monkeypatch.setattr(gcs_upload, "UPLOAD_CHUNK_BYTES", 4 << 20)
    folder = new_folder()
    parts = [b"head" * 1024, memoryview(os.urandom(9 << 20))]
    stored = folder.create("large", parts)
    assert (stored, folder.read("large")) == (checksum(parts), b"".join(parts))


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        outcomes = pool.starmap(_create, [(str(tmp_path), n % 4) for n in range(16)], chunksize=1)
    content = open_folder(tmp_path).read("x")
    assert {stored for _, stored in outcomes} == {checksum([content])}
    assert {n % 4 for n, (won, _) in enumerate(outcomes) if won} == {content[0]}


def _create(url: str, writer: int) -> tuple[bool, Stored]:
    try:
        return True, open_folder(url).create("x", [bytes([writer]) * 10_000])
    except NameTaken as taken:
        return False, taken.stored


def test_a_writer_killed_before_the_link_leaves_no_name(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_before_link, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 9
    folder = open_folder(tmp_path)
    assert folder.names("") == []
    assert folder.create("x", [b"second"]).size == 6


def test_files_of_killed_writers_are_swept(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.create("c/x", [b"kept"])
    old, other, fresh = (
        tmp_path / "c" / f".{name}.{digit * 32}.tmp" for name, digit in (("x", "0"), ("y", "1"), ("x", "2"))
    )
    foreign = [tmp_path / "c" / name for name in (".x.tmp", ".x.old.tmp", "x.tmp", f"x.{'0' * 32}.tmp", "probe-1")]
    for path in (old, other, fresh, *foreign, probe := tmp_path / f"probe-{'0' * 32}"):
        path.write_bytes(b"half")
        os.utime(path, (0, time.time() - (10 if path == fresh else 601)))
    folder.sweep(600.0)
    assert (old.exists(), other.exists(), fresh.exists(), probe.exists()) == (False, False, True, False)
    folder.sweep(600.0, lambda name: name == "c/y")
    assert fresh.exists()
    folder.sweep(600.0, lambda name: name == "c/x")
    assert sorted((tmp_path / "c").iterdir()) == sorted([*foreign, tmp_path / "c" / "x"])


def _die_before_link(url: str) -> None:
    os.link = lambda *_: os._exit(9)  # type: ignore[assignment]
    open_folder(url).create("x", [b"first"])


@pytest.mark.parametrize("url", ["", "s3://bucket/x", "gs://", "gs://Bad_/x", "file:///x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(JobError, match=r"storage\.run_dir=.*must be"):
        open_folder(url)


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match=r"storage\.run_dir=.*cannot write there: Not a directory"):
        open_folder(tmp_path / "file" / "run").check_writable()


@pytest.mark.parametrize("name", ["activations", "activations/x/y"])
def test_a_directory_is_not_a_file(tmp_path: Path, name: str) -> None:
    folder = open_folder(tmp_path)
    folder.create("activations/x", [b"content"])
    assert folder.stat(name) is None
    with pytest.raises(FileNotFoundError):
        folder.read(name)


def test_whether_a_file_is_there_is_told_without_reading_it(new_folder: Callable[[], Folder], tmp_path: Path) -> None:
    folder = new_folder()
    folder.create("a/x", [b"x"])
    folder.create("a/empty", [b""])
    assert [exists(folder, name) for name in ("a/x", "a/empty", "a/y", "a")] == [True, True, False, False]
    (tmp_path / "huge").write_bytes(b"")
    os.truncate(tmp_path / "huge", 1 << 40)
    assert exists(open_folder(tmp_path), "huge")
