"""Faults between the job and its bucket: transient ones are retried, the others end with one line that says why."""

import functools
import json
import os
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from faulty_bucket import STALL_S, Proxy
from google.oauth2.credentials import Credentials
from sample_runs import BUCKET, batch, finished_run, identity, joined

from pod_job.checking.verify import verify
from pod_job.errors import JobError
from pod_job.extraction.writers import Writers
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch
from pod_job.run_folder.identity import claim
from pod_job.storage import gcs, gcs_upload
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

CONTENT = os.urandom(100_000)
LARGE = os.urandom(9 << 20)


@pytest.fixture
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """LARGE goes up in a session of three chunks."""
    monkeypatch.setattr(gcs_upload, "ONE_REQUEST_BYTES", 1 << 20)
    monkeypatch.setattr(gcs_upload, "UPLOAD_CHUNK_BYTES", 4 << 20)


def folder_of(proxy: Proxy) -> Folder:
    return open_folder(f"gs://{BUCKET}/run")


REFUSED = (400, 'Provided CRC32C "AAAAAA==" doesn\'t match calculated CRC32C "BBBBBB==".')


@pytest.mark.parametrize(
    "faults",
    [
        [503, 429],
        [500, 502, 504, 408],
        ["reset", "reset"],
        ["cut upload"],
        ["lost answer"],
        ["flip upload"],
        [REFUSED],
    ],
    ids=str,
)
def test_an_upload_survives(proxy: Proxy, faults: list) -> None:
    proxy.faults = list(faults)
    assert folder_of(proxy).create("x", [CONTENT]) == checksum([CONTENT])
    assert not proxy.faults
    assert folder_of(proxy).read("x") == CONTENT


@pytest.mark.parametrize(
    "faults",
    [
        ["none", 410],
        ["none", "none", 503],
        ["none", "none", "reset"],
        ["none", "none", "cut upload"],
        ["none", "none", "none", "lost answer"],
        [503, "none", "none", "none", 410],
    ],
    ids=str,
)
def test_an_upload_in_chunks_survives(proxy: Proxy, in_chunks: None, faults: list) -> None:
    proxy.faults = list(faults)
    assert folder_of(proxy).create("x", [LARGE[:4096], LARGE[4096:]]) == checksum([LARGE])
    assert not proxy.faults
    assert folder_of(proxy).read("x") == LARGE


@pytest.mark.parametrize("faults", [[500, 429], ["reset"], ["cut", "cut"], ["lost answer"], ["flip"]], ids=str)
def test_a_download_survives(proxy: Proxy, faults: list) -> None:
    folder = folder_of(proxy)
    folder.create("x", [CONTENT])
    proxy.faults = list(faults)
    assert folder.read("x") == CONTENT
    assert not proxy.faults
    part = bytearray(5000)
    proxy.faults = [fault for fault in faults if fault != "flip"]  # only a whole object has a checksum
    assert folder.read_into("x", 1000, memoryview(part)) == 5000
    assert part == CONTENT[1000:6000]
    assert not proxy.faults


def test_a_stall_is_not_waited_for(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "REQUEST_TIMEOUT_S", (1.0, 0.3))
    folder, began = folder_of(proxy), time.monotonic()
    proxy.faults = ["stall"]
    folder.create("x", [CONTENT])
    proxy.faults = ["stall"]
    assert folder.read("x") == CONTENT
    assert time.monotonic() - began < STALL_S


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (503, "no answer from .* within 0 s"),
        ("reset", "no answer from .* within 0 s"),
        (403, r"access refused \(403\); give the job's service account"),
        ("flip upload", "arrived damaged 3 times and was removed"),
    ],
)
def test_a_lasting_fault_ends_in_one_line(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, fault: str | int, reason: str
) -> None:
    monkeypatch.setattr(gcs, "RETRY_DEADLINE_S", 0.4)
    proxy.faults = [fault] * 1000
    if fault == "flip upload":
        proxy.faults = [fault, "none"] * 3  # it is removed again each time
    with pytest.raises(JobError, match=reason) as refused:
        folder_of(proxy).create("x", [CONTENT])
    assert "\n" not in str(refused.value)
    proxy.faults = []
    assert folder_of(proxy).stat("x") is None


def test_a_damaged_upload_that_is_gone_already_is_sent_again(proxy: Proxy) -> None:
    folder_of(proxy).create("x", [b"before"])
    proxy.faults = ["none", "flip upload", "lost answer"]
    assert folder_of(proxy).replace("x", CONTENT)
    assert proxy.faults == []
    assert folder_of(proxy).read("x") == CONTENT


def expired(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Returns a folder whose credentials must be renewed at the proxy before any request passes."""
    credentials = Credentials(
        "stale", refresh_token="r", token_uri=f"{proxy.url}/token", client_id="c", client_secret="s"
    )
    monkeypatch.setattr(gcs.storage, "Client", functools.partial(gcs.storage.Client, credentials=credentials))
    proxy.token = "fresh"
    return folder_of(proxy)


def test_expired_credentials_are_renewed(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = expired(proxy, monkeypatch)
    proxy.token_faults = [503]  # the token server fails, too
    assert folder.create("x", [CONTENT]) == folder.stat("x")
    proxy.token = "fresher"
    assert folder.read("x") == CONTENT


def test_credentials_that_are_revoked_are_one_line(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = expired(proxy, monkeypatch)
    proxy.token_faults = [400] * 1000
    with pytest.raises(JobError, match="no usable Google credentials"):
        folder.create("x", [CONTENT])


def test_credentials_that_are_never_accepted_are_one_line(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "RETRY_DEADLINE_S", 0.4)
    folder = expired(proxy, monkeypatch)
    proxy.faults = [401] * 1000
    with pytest.raises(JobError, match=r"access refused \(401\)"):
        folder.create("x", [CONTENT])


def test_a_whole_run_through_a_bad_network(proxy: Proxy) -> None:
    rng = np.random.default_rng(0)
    kinds: list = [*["none"] * 8, 503, 429, "reset", "cut upload", "lost answer", "cut", "flip upload"]
    proxy.faults = [kinds[number] for number in rng.integers(0, len(kinds), 200)]
    batches = finished_run(folder_of(proxy), [20, 33])
    dataset = ActivationDataset(folder_of(proxy).url, layer=6)
    np.testing.assert_array_equal(dataset[:], joined(batches, "layer_6"))
    assert len(proxy.faults) < 190
    proxy.faults = []
    assert verify(folder_of(proxy).url).sound


def test_a_slow_bucket_makes_the_job_wait(proxy: Proxy) -> None:
    folder, threads, most = folder_of(proxy), 2, 0
    alive: list[weakref.ref[Batch]] = []
    claim(folder, identity(8 * 12))
    proxy.delay_s = 0.02
    with Writers(threads, folder, 0, lambda record: None) as writers:
        for number in range(1, 13):
            current = batch(number, 10)
            alive.append(weakref.ref(current))
            most = max(most, sum(reference() is not None for reference in alive))
            writers.commit(current)
            del current
        writers.finish()
    assert len(folder.names(layout.COMMITS)) == 12
    assert most <= threads + 2  # those being written, the one that waits, the one under assembly


def test_a_refused_bucket_is_one_line(proxy: Proxy) -> None:
    proxy.faults = [403]
    with pytest.raises(JobError, match=r"access refused \(403\); give the job's service account"):
        folder_of(proxy).check_writable()


def test_a_missing_bucket_is_one_line(proxy: Proxy) -> None:
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
    folder = open_folder(f"gs://{BUCKET}/run")
    for use in (folder.check_writable, lambda: folder.read("x"), lambda: folder.stat("x"), lambda: folder.names("")):
        with pytest.raises(JobError, match="no usable Google credentials"):
            use()
