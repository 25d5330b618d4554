"""Files get their names without replacing others, with hard links and without; refusals are one line."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pod_job.errors import JobError
from pod_job.storage import local_files
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import NameTaken
from pod_job.storage.open import open_folder


def refusing(number: int) -> Callable[..., None]:
    """Returns a call that fails as a file system refuses it."""

    def call(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def refusal(use: Callable[[], object]) -> str:
    """Returns the line of a JobError; empty where there is none."""
    try:
        use()
    except JobError as error:
        return str(error)
    return ""


NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK]


@pytest.mark.parametrize("number", NO_LINKS, ids=errno.errorcode.get)
def test_without_hard_links_content_is_created_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", refusing(number))
    folder = open_folder(tmp_path)
    folder.check_writable()

    def create(writer: int) -> bool:
        try:
            return folder.create("x", [bytes([writer % 2]) * 5000]) == folder.stat("x")
        except NameTaken:
            return False

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(16)))
    assert folder.read("x") == bytes([won.index(True) % 2]) * 5000
    assert [i % 2 for i, first in enumerate(won) if first] == [won.index(True) % 2] * 8
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_without_a_safe_way_to_a_name_nothing_is_written_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(local_files, "_RENAME_NOREPLACE", 1 << 20)  # which no kernel knows
    folder = open_folder(tmp_path)
    for use in (folder.check_writable, lambda: folder.create("x", [b"x"]), lambda: folder.join("x", b"x", [])):
        with pytest.raises(JobError, match=r"neither hard links nor renames .*; name a folder .*gs://") as refused:
            use()
        assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    assert folder.replace("x", b"replaced")  # which needs neither
    assert folder.read("x") == b"replaced"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO], ids=str)
@pytest.mark.parametrize(
    "effect", ["write", "fsync", "link", "replace", "open", "mkdir", "unlink", "preadv", "scandir"]
)
def test_what_a_file_system_refuses_is_one_line_and_leaves_nothing(tmp_path: Path, effect: str, number: int) -> None:
    folder = open_folder(tmp_path)
    folder.create("a/x", [b"before"])
    uses: list[Callable[[], object]] = [
        lambda: folder.create("b/y", [b"new"]),
        lambda: folder.join("c/z", b"head", [("a/x", checksum([b"before"]))]),
        lambda: folder.replace("a/x", b"after"),
        lambda: folder.remove("a/w"),
        lambda: folder.read("a/x"),
        lambda: folder.read_into("a/x", 0, memoryview(bytearray(6))),
        lambda: folder.stat("a/x"),
        lambda: folder.names("a/"),
        folder.check_writable,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, effect, refusing(number))
        refusals = [refused for use in uses if (refused := refusal(use))]
    assert refusals or effect == "mkdir"
    assert all("\n" not in line and str(tmp_path) in line for line in refusals)
    if effect != "unlink":
        assert not [path for path in tmp_path.rglob("*") if path.name.startswith((".", "probe"))]
    assert folder.read("a/x") in (b"before", b"after")


@pytest.mark.parametrize("name", ["x", "a/x"])
def test_a_folder_in_which_nothing_can_be_made_is_one_line(name: str) -> None:
    folder = open_folder("/proc")
    for use in (lambda: folder.create(name, [b"x"]), lambda: folder.replace(name, b"x")):
        assert refusal(use) == f"/proc/{name}: nothing can be made in its folder; name another one"


def test_a_folder_that_has_the_name_is_not_content(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.create("a/x", [b"x"])
    with pytest.raises(JobError, match="is a folder"):
        folder.create("a", [b"x"])


def test_content_whose_temporary_was_swept_is_stored_by_another_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = open_folder(tmp_path), os.link

    def swept(source: Path, target: Path) -> None:
        folder.sweep(0.0, lambda name: True)
        link(source, target)

    monkeypatch.setattr(os, "link", swept)
    with pytest.raises(JobError, match="was removed while it was being written"):
        folder.create("x", [b"x"])
    (tmp_path / "x").write_bytes(b"x")
    assert folder.create("x", [b"x"]) == checksum([b"x"])
    with pytest.raises(NameTaken):
        folder.create("x", [b"other"])
