"""Status, timeline and pod records: what a host wrote is read back, by every version; damage never stops a reader."""

import json
import logging
import tracemalloc
from pathlib import Path

import pytest

from pod_job.errors import JobError
from pod_job.run_folder.layout import pod_file, status_file, timeline_file
from pod_job.run_folder.pods import read_pods
from pod_job.run_folder.status import (
    EndKind,
    HostStatus,
    Phase,
    latest_attempt,
    read_status,
    waited_share,
    write_status,
)
from pod_job.run_folder.timeline import COUNTERS, Timeline, read_timelines, write_timeline
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

OLD_RUN = Path(__file__).parent.parent / "data/old_runs/bfloat16"
FAILED = HostStatus(
    host=0, attempt="b", phase=Phase.failed, steps=3, error="host 2 failed: x", end=EndKind.lost_peer, blamed_host=2
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_folder(tmp_path)


def test_a_status_comes_back_as_it_was_and_only_for_its_attempt(folder: Folder) -> None:
    write_status(folder, FAILED)
    status = read_status(folder, 0, "b")
    assert status is not None
    assert status.updated > 0
    assert (status.phase, status.steps, status.end, status.blamed_host) == (Phase.failed, 3, EndKind.lost_peer, 2)
    assert read_status(folder, 0, "a") is None
    assert read_status(folder, 1, "b") is None


def test_the_latest_attempt_is_the_newest_of_all_hosts(folder: Folder) -> None:
    assert latest_attempt(folder, 3) is None
    for host, attempt in enumerate(("a", "c", "b")):
        write_status(folder, HostStatus(host=host, attempt=attempt, phase=Phase.arrived))
    assert latest_attempt(folder, 3) == "c"


def test_records_of_the_earlier_version_are_read() -> None:
    run = open_folder(OLD_RUN)
    attempt = latest_attempt(run, 1)
    assert attempt == "20261126T090000Z-0a1b2c"
    status = read_status(run, 0, attempt)
    assert status is not None
    assert (status.phase, status.rows, status.end, status.blamed_host) == (Phase.done, 41, None, None)
    assert waited_share([status]) is None  # it recorded no waiting
    (timeline,) = read_timelines(run)
    assert (timeline.device, timeline.points[-1][1 + COUNTERS.index("rows")]) == ("cpu", 41)
    assert [(pod.zone, pod.ended is None) for pod in read_pods(run)] == [("us-west4-a", False), ("us-east1-c", True)]


def changed(**fields: object) -> bytes:
    return json.dumps({"host": 0, "attempt": "b", "phase": "done"} | fields).encode()


@pytest.mark.parametrize(
    "content", [b"garbage{", b"[]", b"", b"\xff", b"[" * 100_000, changed(phase="on fire"), changed(steps="3")]
)
def test_a_damaged_status_counts_as_not_reported_and_is_named_once(
    folder: Folder, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_status(folder, HostStatus(host=1, attempt="b", phase=Phase.arrived))
    folder.replace(status_file(0), content)
    with caplog.at_level(logging.WARNING, "pod_job"):
        for _ in range(3):
            assert read_status(folder, 0, "b") is None
            assert latest_attempt(folder, 2) == "b"
    (record,) = caplog.records
    assert f"{folder.url}/status/host_00.json: " in record.getMessage()


def test_a_damaged_timeline_is_left_out(folder: Folder) -> None:
    timeline = Timeline(host=0, attempt="a")
    timeline.enter(Phase.weights, 10.0)
    timeline.add_point(HostStatus(host=0, attempt="a", phase=Phase.weights, rows=7), 11.0)
    write_timeline(folder, timeline)
    (whole,) = read_timelines(folder)
    assert whole == timeline
    record = json.loads(folder.read(timeline_file("a", 0)))
    for host, damage in enumerate(({"points": [[1.0, 2]]}, {"points": []}, {"phases": []}), 1):
        folder.replace(timeline_file("a", host), json.dumps(record | {"host": host} | damage).encode())
    assert list(read_timelines(folder)) == [timeline]


def test_a_status_of_gigabytes_counts_as_not_reported(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    write_status(folder, HostStatus(host=0, attempt="b", phase=Phase.arrived))
    with open(f"{folder.url}/{status_file(0)}", "r+b") as file:
        file.truncate(1 << 33)
    tracemalloc.start()
    with caplog.at_level(logging.WARNING, "pod_job"):
        assert read_status(folder, 0, "b") is None
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 16 << 20
    assert "host_00.json: is larger than 1 MiB, which no such file is" in caplog.text
    assert latest_attempt(folder, 1) is None


@pytest.mark.parametrize("time", [float("nan"), float("inf"), float("-inf")])
def test_a_pod_of_no_time_is_refused_and_such_a_timeline_left_out(folder: Folder, time: float) -> None:
    pod = {"name": "n", "zone": "z", "accelerator_type": "v5e", "capacity": "spot", "created": 1.0}
    for key in ("created", "ended"):
        folder.replace(pod_file("1_z_n", "created"), json.dumps(pod | {key: time}).encode())
        with pytest.raises(JobError, match=r"1_z_n_created\.json: a time is not finite"):
            read_pods(folder)
    timeline = {"host": 0, "attempt": "a", "phases": {"weights": 1.0}, "points": [[1.0, *[0] * len(COUNTERS)]]}
    for damage in ({"phases": {"weights": time}}, {"points": [[time, *[0] * len(COUNTERS)]]}):
        folder.replace(timeline_file("a", 0), json.dumps(timeline | damage).encode())
        assert list(read_timelines(folder)) == []
    folder.replace(timeline_file("a", 0), json.dumps(timeline).encode())
    assert len(list(read_timelines(folder))) == 1
