"""Checksums of a model's files are over all of their bytes, equal wherever they lie, and computed once."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_runs import folders

from pod_job.checkpoints import content
from pod_job.checkpoints.content import checksums, git_sha1
from pod_job.checkpoints.hub import CachedSnapshot
from pod_job.errors import JobError
from pod_job.storage.open import open_folder

DATA = bytes(range(256)) * 5000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was last changed long ago, and an empty cache."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(content, "cache_folder", lambda _: tmp_path / "cache")
    monkeypatch.setattr(content, "SETTLED_NS", -1)
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read whole so far."""
    paths: list[Path] = []
    compute = content.crc32c

    def crc32c(path: Path) -> str:
        paths.append(path)
        return compute(path)

    monkeypatch.setattr(content, "crc32c", crc32c)
    return paths


def checksum(path: Path) -> str:
    return checksums(open_folder(path.parent), [path.name])[path.name]


@pytest.mark.parametrize("size", [0, 1, 1000, 4096, 3 * 4096 + 5])
def test_a_file_read_in_spans_has_the_checksum_that_a_bucket_gives_it(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "SPAN_BYTES", 4096)
    monkeypatch.setattr(content, "PIECE_BYTES", 1000)
    path = tmp_path / "file"
    path.write_bytes(DATA[:size])
    stored = open_folder(tmp_path).stat("file")
    assert stored is not None
    assert content.crc32c(path) == f"crc32c:{stored.crc32c} of {size} bytes"


def test_a_bucket_s_checksums_are_those_of_the_same_files_here(
    file: Path, tmp_path: Path, require: Callable[[bool, str], None]
) -> None:
    with folders("bucket", tmp_path, require) as make:
        folder = make()
        folder.create(file.name, [DATA])
        assert checksums(folder, [file.name]) == {file.name: checksum(file)}
        with pytest.raises(FileNotFoundError):
            checksums(folder, ["other"])


def test_a_file_is_read_once_until_it_changes(file: Path, computed: list[Path]) -> None:
    first = checksum(file)
    assert checksum(file) == first
    assert len(computed) == 1
    times = file.stat()
    file.write_bytes(DATA[:-1] + b"x")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert checksum(file) != first
    assert len(computed) == 2


def test_a_file_that_was_just_changed_is_not_cached(
    file: Path, computed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be changed again within the resolution of its times."""
    monkeypatch.setattr(content, "SETTLED_NS", 3600 * 10**9)
    assert checksum(file) == checksum(file)
    assert len(computed) == 2


@pytest.mark.parametrize("damage", ["unwritable", "garbage", "no folder"])
def test_a_cache_that_cannot_be_used_costs_time_only(
    file: Path, tmp_path: Path, computed: list[Path], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_folder(_: str) -> Path:
        raise ValueError("Corrupted assets folder")  # as cached_assets_path of the hub's library

    first = checksum(file)
    for entry in (tmp_path / "cache").glob("*.json"):
        entry.write_text('{"state": 5')
    if damage == "unwritable":
        (tmp_path / "cache").rename(tmp_path / "moved")
        (tmp_path / "cache").write_text("a file where the folder should be")
    elif damage == "no folder":
        monkeypatch.setattr(content, "cache_folder", no_folder)
    assert checksum(file) == first
    assert len(computed) == 2


def test_a_file_that_changes_while_it_is_read_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crc32c(path: Path) -> str:
        time.sleep(0.02)
        path.write_bytes(DATA[:7])
        return "crc32c:"

    monkeypatch.setattr(content, "crc32c", crc32c)
    with pytest.raises(JobError, match=r"model\.safetensors was changed while it was read; start again"):
        checksum(file)


def test_a_model_in_the_hub_s_cache_has_the_checksums_of_the_hub(file: Path, tmp_path: Path) -> None:
    large, small = hashlib.sha256(DATA).hexdigest(), git_sha1(file).removeprefix("git-sha1:")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name, checksum_of_hub in (("large", large), ("small", small)):
        (tmp_path / checksum_of_hub).write_bytes(DATA)
        (snapshot / name).symlink_to(tmp_path / checksum_of_hub)
    folder = CachedSnapshot(str(snapshot), follow_links=True)
    assert checksums(folder, ["large", "small"]) == {"large": f"sha256:{large}", "small": f"git-sha1:{small}"}
    (tmp_path / large).write_bytes(b"changed")
    assert checksums(folder, ["large"]) == {"large": f"sha256:{hashlib.sha256(b'changed').hexdigest()}"}
    # As `git hash-object` prints it for a file that holds "hello\n".
    (tmp_path / "hello").write_text("hello\n")
    assert git_sha1(tmp_path / "hello") == "git-sha1:ce013625030ba8dba906f756967f9e9ca394464a"
