"""A run folder keeps what it was given, once, whoever else writes, dies or loses the connection."""

import gc
import http.client
import json
import multiprocessing
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sample_runs import BUCKET, folders

from pod_job import gcs
from pod_job.errors import JobError
from pod_job.storage import Folder, NameTaken, Stored, checksum, open_folder


@pytest.fixture(scope="module", params=["local", "bucket"])
def new_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, require: Callable
) -> Iterator[Callable[[], Folder]]:
    with folders(request.param, tmp_path_factory.mktemp("storage"), require) as opened:
        yield opened


def test_created_content_is_kept(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    stored = folder.create("a/b", [b"hello", memoryview(b" world"), b""])
    assert stored == Stored(11, "yZRlqg==")  # the CRC-32C of "hello world", as Cloud Storage reports it
    assert folder.stat("a/b") == stored
    assert folder.create("a/b", [b"hello world"]) == stored
    with pytest.raises(NameTaken) as taken:
        folder.create("a/b", [b"HELLO WORLD"])
    assert taken.value.stored == stored
    assert folder.read("a/b") == b"hello world"


def test_read_gives_ranges(new_folder: Callable[[], Folder]) -> None:
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


def test_check_writable_leaves_nothing(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    folder.check_writable()
    assert folder.names("") == []


@pytest.mark.parametrize("one_request", [8 << 20, 32 << 20])
def test_large_content_arrives_whole(
    new_folder: Callable[[], Folder], monkeypatch: pytest.MonkeyPatch, one_request: int
) -> None:
    monkeypatch.setattr(gcs, "ONE_REQUEST_BYTES", one_request)  # above it uploads go in chunks
    monkeypatch.setattr(gcs, "UPLOAD_CHUNK_BYTES", 4 << 20)
    folder = new_folder()
    parts = [b"head" * 1024, memoryview(os.urandom(9 << 20))]
    stored = folder.create("large", parts)
    assert (stored, folder.read("large")) == (checksum(parts), b"".join(parts))


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        outcomes = pool.starmap(_create, [(str(tmp_path), n % 4) for n in range(16)], chunksize=1)
    content = open_folder(tmp_path).read("x")
    assert {stored for _, stored in outcomes} == {checksum([content])}
    assert {who for won, who in ((won, n % 4) for n, (won, _) in enumerate(outcomes)) if won} == {content[0]}


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


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.create("c/x", [b"kept"])
    old, fresh = (tmp_path / "c" / f".x.{age}.tmp" for age in ("old", "fresh"))
    old.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(old, (0, time.time() - 601))
    folder.sweep(600.0)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [fresh.name, "x"]


def _die_before_link(url: str) -> None:
    os.link = lambda *_: os._exit(9)  # type: ignore[assignment]
    open_folder(url).create("x", [b"first"])


@pytest.mark.parametrize("url", ["", "s3://bucket/x", "gs://", "gs://Bad_/x", "file:///x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(JobError, match=r"storage\.run_dir=.*must be"):
        open_folder(url)


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match=r"storage\.run_dir=.*cannot write there \(Not a directory\)"):
        open_folder(tmp_path / "file" / "run").check_writable()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(JobError, match="not a name inside"):
        open_folder(tmp_path).read(name)


# What a network does: a proxy before the emulator, with a list of faults to apply to the next requests.


class _Proxy(ThreadingHTTPServer):
    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.upstream = upstream.removeprefix("http://")
        self.faults: list[str | int] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        pass  # a client that hangs up is part of the game


class _Forward(BaseHTTPRequestHandler):
    server: _Proxy
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        # The library also asks for the bucket's own metadata, in the background; faults are for objects.
        of_object = not re.search(r"/b/[^/?]+(\?|$)", self.path)
        fault = self.server.faults.pop(0) if of_object and self.server.faults else "none"
        if isinstance(fault, int):
            self._answer(fault, [], b"{}")
            return
        upstream = http.client.HTTPConnection(self.server.upstream)
        upstream.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Host"})
        answer = upstream.getresponse()
        content = answer.read().replace(self.server.upstream.encode(), self.server.url.removeprefix("http://").encode())
        upstream.close()
        if fault == "lost answer":
            self.close_connection = True
            return
        headers = [
            (k, v.replace(self.server.upstream, self.server.url.removeprefix("http://")))
            for k, v in answer.getheaders()
        ]
        self._answer(answer.status, headers, content)

    do_GET = do_POST = do_PUT = do_DELETE = _forward

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        for key, value in headers:
            if key.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(tmp_path: Path, require: Callable, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Proxy]:
    with folders("bucket", tmp_path, require), _Proxy(os.environ["STORAGE_EMULATOR_HOST"]) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    # The library leaves the connection of a failed download to the garbage collector, which warns whoever is on.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


def test_a_lost_acknowledgement_is_success(proxy: _Proxy) -> None:
    folder = open_folder(f"gs://{BUCKET}/run")
    proxy.faults = ["lost answer"]
    assert folder.create("x", [b"content"]) == checksum([b"content"])
    assert not proxy.faults
    assert folder.read("x") == b"content"


def test_passing_errors_are_waited_out(proxy: _Proxy) -> None:
    folder = open_folder(f"gs://{BUCKET}/run")
    proxy.faults = [503, 429]
    folder.create("x", [b"content"])
    proxy.faults = [500]
    assert folder.read("x") == b"content"


def test_a_lost_upload_session_is_begun_again(proxy: _Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "ONE_REQUEST_BYTES", 8 << 20)
    folder = open_folder(f"gs://{BUCKET}/run")
    proxy.faults = ["none", 410]
    data = os.urandom(9 << 20)
    assert folder.create("x", [data]) == folder.stat("x") == checksum([data])
    assert not proxy.faults


def test_a_refused_bucket_is_one_line(proxy: _Proxy) -> None:
    proxy.faults = [403]
    with pytest.raises(JobError, match=r"access refused \(403\); give the job's service account"):
        open_folder(f"gs://{BUCKET}/run").check_writable()


def test_a_missing_bucket_is_one_line(proxy: _Proxy) -> None:
    with pytest.raises(JobError, match="bucket no-such-bucket does not exist"):
        open_folder("gs://no-such-bucket/run").check_writable()


def test_an_unreachable_endpoint_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr(gcs, "CHECK_DEADLINE_S", 0.5)
    with pytest.raises(JobError, match=r"no answer from http://127\.0\.0\.1:9 within 0 s"):
        open_folder(f"gs://{BUCKET}/run").check_writable()


def test_missing_credentials_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    (tmp_path / "key.json").write_text(json.dumps({"type": "unheard of"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(JobError, match="no usable Google credentials"):
        open_folder(f"gs://{BUCKET}/run").check_writable()
