"""The bucket emulator meets the run folder's protocol, and says in one line why it cannot run."""

import base64
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import pytest
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from pod_job.errors import JobError
from tools import bucket as emulator
from tools.bucket import bucket_available, bucket_server

BUCKET = "activations-test"


def require_emulator() -> None:
    """Skips with the reason where the binary does not exist; fails in CI."""
    if reason := bucket_available():
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def open_bucket(url: str) -> storage.Bucket:
    client = storage.Client(
        project="local", credentials=AnonymousCredentials(), client_options=ClientOptions(api_endpoint=url)
    )
    return client.bucket(BUCKET)


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def refuses_connections(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) != 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[storage.Bucket, str]]:
    require_emulator()
    with bucket_server(tmp_path_factory.mktemp("bucket") / "root", BUCKET) as url:
        yield open_bucket(url), url


def test_a_create_only_upload_never_changes_what_is_there(served):
    bucket, _ = served
    bucket.blob("once").upload_from_string(b"first", if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        bucket.blob("once").upload_from_string(b"second", if_generation_match=0)
    assert bucket.blob("once").download_as_bytes() == b"first"


def test_exactly_one_of_many_writers_of_a_name_wins(served):
    bucket, _ = served

    def write(writer: int) -> bytes | None:
        content = b"%d" % writer * 1000
        try:
            bucket.blob("race").upload_from_string(content, if_generation_match=0)
        except PreconditionFailed:
            return None
        return content

    with ThreadPoolExecutor(8) as pool:
        won = [content for content in pool.map(write, range(16)) if content is not None]
    assert won == [bucket.blob("race").download_as_bytes()]


def test_objects_can_be_replaced_listed_read_by_range_and_have_their_checksum(served):
    bucket, _ = served
    for name in ("list/b", "list/a", "other"):
        bucket.blob(name).upload_from_string(b"old")
    bucket.blob("list/a").upload_from_string(b"0123456789")
    assert [blob.name for blob in bucket.list_blobs(prefix="list/")] == ["list/a", "list/b"]
    assert bucket.blob("list/a").download_as_bytes(start=2, end=4) == b"234"
    stored = bucket.get_blob("list/a")
    assert stored is not None
    assert stored.size == 10
    expected = google_crc32c.Checksum(b"0123456789").digest()
    assert stored.crc32c == base64.b64encode(expected).decode()


def test_a_resumable_upload_comes_back_to_this_server(served):
    bucket, _ = served
    content = os.urandom((8 << 20) + 1)  # above 8 MiB the client uploads in several requests
    bucket.blob("large").upload_from_string(content)
    assert bucket.blob("large").download_as_bytes() == content


def test_only_loopback_is_served(served):
    _, url = served
    assert not refuses_connections(port_of(url))
    # A server bound to all interfaces would answer on every address of 127.0.0.0/8.
    assert refuses_connections(port_of(url), "127.0.0.2")


def test_stored_objects_are_served_after_a_restart(tmp_path):
    require_emulator()
    before = dict(os.environ)
    with bucket_server(tmp_path / "root", BUCKET) as url:
        assert dict(os.environ) == before
        open_bucket(url).blob("kept/object").upload_from_string(b"still here")
    assert (tmp_path / "root" / BUCKET / "kept" / "object").read_bytes() == b"still here"
    # The same port at once, although the earlier server's connections still linger.
    with bucket_server(tmp_path / "root", BUCKET, port_of(url)) as again:
        assert again == url
        assert open_bucket(again).blob("kept/object").download_as_bytes() == b"still here"


def test_the_server_ends_with_the_context_also_when_that_fails(tmp_path):
    require_emulator()
    ports = []

    def fail_while_serving() -> None:
        with bucket_server(tmp_path / "root", BUCKET) as url:
            ports.append(port_of(url))
            raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        fail_while_serving()
    assert refuses_connections(ports[0])


def test_a_taken_port_a_bad_name_and_an_unwritable_root_get_one_line(served, tmp_path):
    _, url = served
    (tmp_path / "file").touch()
    refused = [
        (tmp_path / "root", BUCKET, port_of(url), rf"port={port_of(url)}: .*choose another"),
        (tmp_path / "root", "Not A Name", None, r"bucket=Not A Name: refused with 400"),
        (tmp_path / "file" / "root", BUCKET, None, r"root=.*choose another folder"),
    ]
    for root, name, port, message in refused:
        with pytest.raises(JobError, match=message) as error, bucket_server(root, name, port):
            pass
        assert "\n" not in str(error.value)


def test_without_the_binary_the_reason_is_given_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(emulator, "PACKAGE", "no-such-package-here")
    assert "no-such-package-here is not installed" in (bucket_available() or "")
    with pytest.raises(JobError, match="use a local folder"), bucket_server(tmp_path / "root", BUCKET):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_command_serves_until_sigterm(tmp_path):
    require_emulator()
    argv = [sys.executable, "-m", "tools.bucket", str(tmp_path / "root"), "--bucket", BUCKET]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent.parent) as command:
        assert command.stdout is not None
        url = command.stdout.readline().split()[0].removeprefix("STORAGE_EMULATOR_HOST=")
        with urllib.request.urlopen(f"{url}/storage/v1/b/{BUCKET}") as answer:
            assert answer.status == 200
        command.send_signal(signal.SIGTERM)
        assert command.wait(timeout=20) == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/storage/v1/b/{BUCKET}")
