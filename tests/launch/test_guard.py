"""The guard in start.sh deletes its pod at the limit: a real bash, against the simulated API and metadata server."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.cloud.deploy import Start
from launch.cloud.limits import Limit
from launch.cloud.remote import Answer, command, read_answers, script
from launch.shell import Finished
from tools.fakepod.api import api_handler
from tools.fakepod.cloud import PERMISSION_DENIED, ApiError, Cloud, Dropped, Record
from tools.fakepod.metadata import MetadataServer
from tools.fakepod.world import served

PARENT = "projects/p/locations/us-west4-a"
RUN = "gs://b/r"
NODE = {"acceleratorType": "v4-8", "labels": {}}
JOBS = {"ends": "exit 0", "hangs": "trap '' TERM; while :; do sleep 0.1; done"}


class NoMachines:
    """Hosts of a node that nobody needs."""

    def __init__(self, node: Record) -> None:
        self.addresses = ["127.0.0.1"]

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def announce_preemption(self) -> None:
        pass

    def host_keys(self) -> list[str]:
        return []


class GuardedHost:
    """One host of a pod, with its home, its metadata server and the API; its job is a program that ends or hangs."""

    def __init__(self, root: Path, port: int, cloud: Cloud) -> None:
        self.home, self.cloud, self.api_log = root / "home", cloud, root / "api.log"
        self.home.mkdir()
        (self.home / ".pod_job/bundles/b").mkdir(parents=True)
        self.metadata = MetadataServer(["127.0.0.1"], 0)
        self.env = {
            **{"HOME": str(self.home), "PATH": os.environ["PATH"], "GCE_METADATA_IP": self.metadata.address},
            **{"CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"http://127.0.0.1:{port}/"},
            **{"POD_JOB_GRACE_S": "0.3", "POD_JOB_AGAIN_S": "0.2"},
        }
        for name, text in JOBS.items():
            program = root / name
            program.write_text(f"#!/bin/bash\n{text}\n")
            program.chmod(0o755)
        self.programs = root

    def start(
        self, attempt: str, left_s: float | None, job: str = "ends", pod: str = "nodes/pod-x", run: str = RUN
    ) -> Answer:
        """Runs start.sh as the launcher does."""
        limit = None if left_s is None else Limit(left_s, "cloud.max_hours=2 is reached")
        values = Start(attempt, f"{PARENT}/{pod}", limit).values
        values |= {"BUNDLE": "b", "PYTHON": str(self.programs / job), "ENVIRONMENT": "", "RUN": run}
        return self.run("start", values | {"JOB": ["x=1"]})

    def run(self, name: str, values: dict[str, str | list[str]], worker: int | None = None) -> Answer:
        text = command(script(name, values), worker)
        done = subprocess.run(["bash", "-c", text], env=self.env, capture_output=True, text=True, timeout=60)
        (answer,) = read_answers([Finished(done.returncode, done.stdout, done.stderr)]).values()
        return answer

    @property
    def log(self) -> str:
        path = self.home / ".pod_job/guard.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.log}"
            time.sleep(0.05)

    def close(self) -> None:
        self.run("stop", {"SIGNAL": "KILL", "RUN": RUN})
        guard = self.home / ".pod_job/guard"
        if guard.exists() and Path(f"/proc/{guard.read_text().strip()}").exists():
            os.killpg(int(guard.read_text()), signal.SIGKILL)
        self.metadata.close()


@pytest.fixture
def host(tmp_path: Path, require: Callable[[bool, str], None]) -> Iterator[GuardedHost]:
    require(all(map(shutil.which, ("bash", "curl", "flock", "setsid"))), "bash, curl, flock and setsid")
    cloud = Cloud("p", NoMachines)
    with served(api_handler(cloud, "user:key", tmp_path / "api.log")) as port:
        host = GuardedHost(tmp_path, port, cloud)
        yield host
        host.close()


def queue(cloud: Cloud) -> None:
    cloud.create_queued(PARENT, "pod-x", {"tpu": {"nodeSpec": [{"nodeId": "pod-x", "node": NODE}]}})


@pytest.mark.parametrize("job", JOBS)
def test_the_pod_is_deleted_at_the_limit_whether_its_job_has_ended_or_hangs(host: GuardedHost, job: str) -> None:
    queue(host.cloud)
    began = time.monotonic()
    assert host.start("a1", 1.0, job, "queuedResources/pod-x").word == "LAUNCHED"
    host.wait_for(lambda: not host.cloud.queued, "the request is not deleted")
    assert not host.cloud.nodes  # the node with its request
    assert time.monotonic() - began >= 1.0
    host.wait_for(lambda: "is deleted" in host.log, "the guard does not end")
    assert host.log.startswith("cloud.max_hours=2 is reached: deleting projects/p/locations/us-west4-a/queuedRes")
    assert "force=true" in host.api_log.read_text()


@pytest.mark.parametrize("error", [ApiError(PERMISSION_DENIED, "tpu.nodes.delete denied"), Dropped()])
def test_a_deletion_that_is_refused_or_gets_no_answer_is_tried_until_it_is_done(
    host: GuardedHost, error: ApiError | Dropped
) -> None:
    host.cloud.create_node(PARENT, "pod-x", NODE)
    host.cloud.fail_requests(error, 600, "DELETE")
    host.start("a1", 1.0)
    host.wait_for(
        lambda: host.log.count("cannot be deleted from here now, and costs until it is") >= 2, "no word of it"
    )
    assert host.cloud.nodes
    if isinstance(error, ApiError):
        assert "HTTP status 403" in host.log
        assert "tpu.nodes.delete denied" in host.log
    host.cloud.outages.clear()
    host.wait_for(lambda: not host.cloud.nodes, "the node is not deleted")


def test_another_start_takes_the_guards_place(host: GuardedHost) -> None:
    host.cloud.create_node(PARENT, "pod-x", NODE)
    host.start("a1", 600.0)
    host.wait_for((host.home / ".pod_job/guard").exists, "no guard")
    first = int((host.home / ".pod_job/guard").read_text())
    host.start("a2", 1.0)
    assert not Path(f"/proc/{first}").exists() or "sleep" not in Path(f"/proc/{first}/cmdline").read_text()
    host.wait_for(lambda: not host.cloud.nodes, "the second limit does not count")


def test_without_a_limit_there_is_no_guard_any_more(host: GuardedHost) -> None:
    host.cloud.create_node(PARENT, "pod-x", NODE)
    host.start("a1", 1.5)
    host.start("a2", None)
    time.sleep(2.0)
    assert host.cloud.nodes
    assert not (host.home / ".pod_job/guard").exists()


def test_the_job_of_another_run_is_neither_taken_for_this_ones_nor_ended(host: GuardedHost) -> None:
    assert host.start("a1", None, "hangs").word == "LAUNCHED"
    other = "gs://b/other"
    answer = host.start("b1", None, run=other)
    assert (answer.word, answer.detail.startswith(f"the job of {RUN} runs here")) == ("FAILED", True)
    assert host.run("stop", {"SIGNAL": "KILL", "RUN": other}).word == "NOT_RUNNING"
    assert host.run("clear", {"LEAVING_S": "0", "RUN": other}).word == "FAILED"
    assert host.start("a2", None) == Answer(0, "ALREADY_RUNNING", "a1")
    assert host.run("stop", {"SIGNAL": "KILL", "RUN": RUN}).word == "KILLED"
    assert host.run("clear", {"LEAVING_S": "0", "RUN": other}).word == "CLEARED"  # nothing runs any more


def test_of_many_hosts_one_deletes_and_the_others_are_content(host: GuardedHost) -> None:
    host.start("a1", 1.0)  # another host was first: the pod is gone
    host.wait_for(lambda: "is deleted" in host.log, "the guard does not end")
    assert "cannot" not in host.log


@pytest.mark.parametrize("job", JOBS)
def test_clearing_a_host_ends_its_job_and_leaves_nothing(host: GuardedHost, job: str) -> None:
    assert host.start("a1", None, job).word == "LAUNCHED"
    pid = int((host.home / ".pod_job/attempts/a1/pid").read_text())
    (host.home / ".pod_job-sent.tar.gz").touch()
    assert host.run("clear", {"LEAVING_S": "0" if job == "hangs" else "20", "RUN": RUN}, worker=5) == Answer(
        5, "CLEARED", ""
    )
    assert list(host.home.iterdir()) == []
    host.wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the job goes on")
    assert host.run("clear", {"LEAVING_S": "0", "RUN": RUN}, worker=5).word == "CLEARED"  # again, with nothing there
