"""A job asked to stop commits what it holds, says so, and goes on later where it ended."""

import io
import json
import signal
import time
from pathlib import Path

import pytest
from job_processes import finish, overrides, start

from pod_job.host.stop_request import StopRequest
from pod_job.run_folder import layout
from tools.fakepod.metadata import MetadataServer
from tools.tiny_model import write_tiny_model

PROMPTS = 1000


@pytest.mark.slow
@pytest.mark.pod
def test_sigterm_ends_a_pod_cleanly_and_the_rest_is_done_later(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", layers=4)
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"task_id": f"t{i}", "text": "1 2 3 " * 8}) + "\n" for i in range(PROMPTS)))
    run_dir = tmp_path / "run"
    changes = {"extract.save_every_n_samples": 2, "tasks.format": "jsonl", "tasks.path": tasks, "mesh.data": 2}
    changes["extract.seq_len"] = 64  # so that the prompts held back for packing are few of all
    arguments = overrides(model, run_dir, **changes)

    processes = start(arguments, 2, 1)
    while len(records(run_dir)) < 3:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    finish(processes)
    done = records(run_dir)
    assert 3 <= len(done) < PROMPTS // 2
    statuses = [json.loads((run_dir / layout.status_file(host)).read_text()) for host in range(2)]
    assert [status["phase"] for status in statuses] == ["stopped", "stopped"]
    assert [status["error"] for status in statuses] == ["SIGTERM", "SIGTERM"]
    assert not (run_dir / layout.METADATA).exists()
    assert sum(status["batches"] for status in statuses) == len(done)

    processes = start(arguments, 2, 1)
    finish(processes)
    assert json.loads((run_dir / layout.METADATA).read_text())["total_samples"] == PROMPTS
    assert {path: text for path, text in records(run_dir).items() if path in done} == done


def test_a_notice_of_preemption_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    server = MetadataServer(["127.0.0.1"], 0)
    try:
        monkeypatch.setenv("GCE_METADATA_IP", server.address)
        stop = StopRequest()
        stop.on_notice()
        time.sleep(0.2)  # for an answer, which is FALSE
        assert not stop
        server.preempted.set()
        deadline = time.monotonic() + 10
        while not stop and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.reason == "notice of preemption"
    finally:
        server.close()


@pytest.mark.parametrize("answer", [b"FALSE", b"", b"NONE", b"error"])
def test_only_true_is_a_preemption(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers FALSE when nothing has changed for a while, and whatever it likes when it is ill."""
    answers = iter([answer, answer, b"TRUE"])
    opened = []

    class Opener:
        def open(self, request: object, timeout: float) -> io.BytesIO:
            opened.append(stop.reason)
            return io.BytesIO(next(answers))

    monkeypatch.setattr("urllib.request.build_opener", lambda *_: Opener())
    stop = StopRequest()
    stop._wait_for_notice()
    assert opened == [None] * 3
    assert stop.reason == "notice of preemption"


def test_the_limit_of_the_cost_stops_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_JOB_LEFT_S", "0.05")
    monkeypatch.setenv("POD_JOB_LIMIT", "cloud.max_hours=2 is reached")
    stop = StopRequest()
    stop.on_limit()
    assert not stop
    deadline = time.monotonic() + 10
    while not stop and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stop.reason == "cloud.max_hours=2 is reached"


def records(run_dir: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in (run_dir / layout.COMMITS).glob("*.json")}
