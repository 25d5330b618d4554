"""Odd answers of Cloud Storage: what was sent is stored once, or the user reads one line; nothing stays behind."""

import os
import time
from collections.abc import Iterator

import pytest
from sample_runs import TAPS, finished_run
from strict_bucket import BUCKET, StrictBucket, strict_bucket

from pod_job.errors import JobError
from pod_job.finishing.compact import compact
from pod_job.run_folder import layout
from pod_job.storage import gcs, gcs_errors, gcs_upload
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder, NameTaken
from pod_job.storage.open import open_folder

URL = f"gs://{BUCKET}/run"
SMALL = os.urandom(1000)
LARGE = os.urandom((5 << 18) + 77)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[StrictBucket, Folder]]:
    """The strict server. LARGE goes up in three chunks, requests are retried at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcs_errors, "FIRST_WAIT_S", 0.002)
        patch.setattr(gcs, "RETRY_DEADLINE_S", 20.0)
        patch.setattr(gcs_upload, "ONE_REQUEST_BYTES", 1 << 18)
        patch.setattr(gcs_upload, "UPLOAD_CHUNK_BYTES", 2 << 18)
        with strict_bucket(patch.setenv) as server:
            yield server, open_folder(URL)


@pytest.fixture
def server(served: tuple[StrictBucket, Folder]) -> StrictBucket:
    """The server without faults and objects."""
    served[0].reset()
    return served[0]


@pytest.fixture
def folder(served: tuple[StrictBucket, Folder]) -> Folder:
    return served[1]


ODD = [408, 429, 500, 503, "reset", "lost", "cut", "garbage"]


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("fault", ODD)
def test_one_odd_answer_to_an_upload_in_chunks_changes_nothing(
    server: StrictBucket, folder: Folder, fault: int | str, at: int
) -> None:
    server.faults = ["none"] * at + [fault]
    assert folder.create("x", [LARGE[:1000], LARGE[1000:]]) == checksum([LARGE])
    assert server.faults == []
    assert server.objects["run/x"].content == LARGE


@pytest.mark.parametrize("kept", [0, 1, QUARTER := 1 << 18, (2 << 18) - 1])
@pytest.mark.parametrize("then", ["none", "lost", "cut", 503])
def test_a_chunk_kept_in_part_is_continued_there(server: StrictBucket, folder: Folder, kept: int, then: str) -> None:
    server.faults = ["none", f"keep {kept}", then]
    folder.create("x", [LARGE])
    assert server.objects["run/x"].content == LARGE


@pytest.mark.parametrize("times", [1, 3, 9])
@pytest.mark.parametrize("fault", ["forget", 404, 410])
def test_forgotten_sessions_are_begun_again(server: StrictBucket, folder: Folder, fault: int | str, times: int) -> None:
    server.faults = ["none", fault] * times
    folder.create("x", [LARGE])
    assert server.objects["run/x"].content == LARGE


@pytest.mark.parametrize("fault", [*ODD[:-3], "forget", 404, 410, 400, 418, "garbage", "keep 0"])
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_odd_answers_without_end_are_one_line(
    server: StrictBucket, folder: Folder, fault: int | str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "RETRY_DEADLINE_S", 0.1)
    server.faults = ["none", *[fault] * 200] if content is LARGE else [fault] * 200
    if content is SMALL and fault in ("forget", "keep 0"):
        return  # faults of sessions
    if content is LARGE and fault in (404, 410, "forget"):
        server.faults = ["none", fault] * 100
    with pytest.raises(JobError) as refused:
        folder.create("x", [content])
    assert "\n" not in str(refused.value)
    if content is LARGE:
        assert "does not exist" not in str(refused.value)


@pytest.mark.parametrize("fault", ODD)
@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("use", ["check_writable", "replace", "stat", "remove", "names", "read", "join"])
def test_every_operation_survives_one_odd_answer(
    server: StrictBucket, folder: Folder, use: str, fault: int | str, at: int
) -> None:
    for name in "abcd":
        folder.create(f"s/{name}", [name.encode()])
    server.faults = ["none"] * at + [fault]
    stored = checksum([b"a"])
    uses = {
        "check_writable": lambda: folder.check_writable(),
        "replace": lambda: folder.replace("s/a", b"new"),
        "stat": lambda: folder.stat("s/a"),
        "remove": lambda: folder.remove("s/a"),
        "names": lambda: folder.names("s/"),
        "read": lambda: folder.read("s/a"),
        "join": lambda: folder.join("j", b"head", [("s/a", stored), ("s/b", checksum([b"b"]))]),
    }
    result = uses[use]()
    server.faults = []
    names = [name.removeprefix("run/") for name in sorted(server.objects)]
    expected = ["s/a", "s/b", "s/c", "s/d"]
    match use:
        case "replace":
            assert result is True
            assert server.objects["run/s/a"].content == b"new"
        case "stat":
            assert result == stored
        case "names":
            assert result == expected
        case "read":
            assert result == b"a"
        case "join":
            assert server.objects["run/j"].content == b"headab"
            expected = ["j", *expected]
        case "remove":
            expected = expected[1:]
    assert names == expected


def test_an_object_without_bytes_has_no_size(server: StrictBucket, folder: Folder) -> None:
    assert folder.create("x", [b""]) == folder.create("x", []) == folder.stat("x") == checksum([])
    assert folder.read("x") == folder.read("x", 3, 4) == b""
    with pytest.raises(NameTaken):
        folder.create("x", [b"something"])


@pytest.mark.parametrize("fault", ["shift", "short", "long", "unranged", "cut", "garbage"])
@pytest.mark.parametrize("span", [(10, 90), (1, None), (900, 400)], ids=str)
def test_a_range_is_the_one_asked_for(
    server: StrictBucket, folder: Folder, fault: str, span: tuple[int, int | None]
) -> None:
    start, size = span
    expected = SMALL[start:] if size is None else SMALL[start : start + size]
    folder.create("x", [SMALL])
    server.faults = [fault] * 2
    assert folder.read("x", start, size) == expected
    assert server.faults == []
    server.faults = [fault]
    out = bytearray(200)
    assert folder.read_into("x", 5, memoryview(out)) == 200
    assert out == SMALL[5:205]


def test_a_range_of_all_bytes_is_held_against_the_checksum(server: StrictBucket, folder: Folder) -> None:
    folder.create("x", [SMALL])
    server.faults = ["flip"]
    out = bytearray(2000)
    assert folder.read_into("x", 0, memoryview(out)) == 1000
    assert out[:1000] == SMALL
    assert server.faults == []


def test_a_stalled_replace_never_lands_over_a_later_one(server: StrictBucket, folder: Folder) -> None:
    folder.replace("m", b"first")
    server.faults = ["none", "hold"]
    assert folder.replace("m", b"second")  # sent again, as the first request gets no answer
    assert folder.replace("m", b"third")
    assert server.release() == [412]
    assert server.objects["run/m"].content == b"third"


def test_a_replace_that_was_overtaken_leaves_the_later_content(server: StrictBucket, folder: Folder) -> None:
    folder.replace("m", b"first")
    first = server.objects["run/m"]
    server.store("run/m", b"later", None, None)
    later, server.objects["run/m"] = server.objects["run/m"], first

    media = gcs.MediaClient.describe

    def describe(client: gcs.MediaClient, name: str) -> object:
        described = media(client, name)
        server.objects["run/m"] = later
        return described

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcs.MediaClient, "describe", describe)
        assert folder.replace("m", b"second") is False
    assert server.objects["run/m"].content == b"later"


def test_what_a_killed_check_left_is_swept_and_nothing_else(server: StrictBucket, folder: Folder) -> None:
    foreign = ["run/probe-1", "run/joining/mine/part", "run/probe-" + "g" * 32, "run/x.tmp", f"run/a/probe-{'0' * 32}"]
    ours = [f"run/probe-{'0' * 32}", f"run/joining/{'1' * 32}/head", f"run/joining/activations/x/{'2' * 32}/7"]
    for name in (*foreign, *ours):
        server.store(name, b"x", None, None)
    folder.sweep(600.0)
    assert len(server.objects) == len(foreign) + len(ours)
    for existing in server.objects.values():
        existing.updated = time.time() - 700
    folder.sweep(600.0)
    assert sorted(server.objects) == sorted(foreign)


def test_a_compaction_that_is_repeated_at_once_leaves_one_copy(
    server: StrictBucket, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_upload, "ONE_REQUEST_BYTES", 1 << 20)
    finished_run(folder, [6, 9], TAPS[:1])
    before = {name: existing for name, existing in server.objects.items() if "/joining/" not in name}
    requests = 1
    while True:
        server.objects.clear()
        server.objects.update(before)
        server.faults = ["none"] * requests + [403] * 10_000  # the process can do nothing more
        try:
            compact(open_folder(URL))
        except JobError:
            server.faults = []
        if not server.faults:
            compact(open_folder(URL))
            assert not [name for name in server.objects if "/joining/" in name], requests
            assert len([name for name in folder.names(layout.ACTIVATIONS) if name != layout.METADATA]) == 2
            requests += 4
        else:
            break
    assert requests > 30
    server.faults = []
