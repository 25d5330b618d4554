"""A cloud on simulated time, at the border of the launcher: command lines of gcloud in, its answers out.

The cloud is the one that the real gcloud speaks to in rehearsals (tools.fakepod.cloud); its answers here are the texts
that gcloud 528 prints there. Hosts and their job are a timetable (simulated_hosts). Whole verbs run in milliseconds, so
that every fault can be tried at every stage.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.message import Message
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_runs import batch, identity
from simulated_hosts import BATCHES, MERGING_S, Clock, SimHosts

from launch import clock
from launch.cloud import api_time, calls
from launch.cloud.bundle import Bundle
from launch.cloud.remote import SCRIPTS
from launch.shell import Finished
from pod_job.config.generate import Mode
from pod_job.finishing import merge
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.identity import claim
from pod_job.run_folder.layout import METADATA, committed
from pod_job.storage.folder import Folder, NameTaken
from pod_job.storage.open import open_folder
from tools.fakepod.api import STATUS
from tools.fakepod.cloud import ApiError, Cloud, Dropped, Record

PER_BATCH = 8
CALL_S = 1.5  # a command of gcloud
CONNECT_S = 20.0  # until ssh gives up a host that does not answer
SCRIPT_NAMES = ("prepare", "secrets", "start", "stop", "probe", "versions")
DROPPED = "ERROR: gcloud crashed (ConnectionError): ('Connection aborted.', RemoteDisconnected('Remote end closed'))"


@dataclass
class World:
    """The simulated cloud, its clock, a run folder, and what was done.

    Attributes:
        calls: every command line of gcloud.
        stdins: what was sent to a command over stdin.
        starts: values of every start of the job.
        unprepared: host -> why it cannot be prepared.
        crashes: gcloud's next calls that crash; `hangs`: that give no answer.
        unreachable_until: moment until which ssh reaches no host.
        ahead_s: by how much the workstation's clock is ahead of that of the API and the hosts.
        stages: what happens when a stage is reached the first time.
    """

    folder: Folder
    clock: Clock = field(default_factory=Clock)
    lock: threading.RLock = field(default_factory=threading.RLock)
    calls: list[list[str]] = field(default_factory=list)
    stdins: list[bytes] = field(default_factory=list)
    starts: list[dict[str, str]] = field(default_factory=list)
    unprepared: dict[int, str] = field(default_factory=dict)
    crashes: int = 0
    hangs: int = 0
    unreachable_until: float = 0.0
    ahead_s: float = 0.0
    stages: dict[str, Callable[["World"], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cloud = Cloud("p", self.new_hosts, self.clock.monotonic, self.clock.sleep, self.clock.stamp)
        self.cloud.create_s = 30.0
        self.clock.ticks.append(self.tick)

    def new_hosts(self, node: Record) -> SimHosts:
        return SimHosts(self)

    @property
    def machines(self) -> list[SimHosts]:
        return [hosts for hosts in self.cloud.machines.values() if isinstance(hosts, SimHosts)]

    @property
    def node(self) -> str | None:
        """Last part of the name of the node, if there is one."""
        return next((name.rpartition("/")[2] for name in self.cloud.nodes), None)

    @property
    def creates(self) -> int:
        """Returns the number of pods that were asked for."""
        return len(self.cloud.created)

    @property
    def empty(self) -> bool:
        return not self.cloud.nodes and not self.cloud.queued

    def commit(self, number: int) -> None:
        claim(self.folder, identity(BATCHES * PER_BATCH))
        if number not in committed(self.folder):
            commit_batch(self.folder, batch(number, 3), host=0)

    def merge(self) -> None:
        if self.folder.stat(METADATA) is None:
            try:
                merge.merge(self.folder)
            except NameTaken:
                return

    def tick(self) -> None:
        for machines in self.machines:
            machines.tick()
        if any(node["state"] == "CREATING" for node in self.cloud.nodes.values()):
            self.reach_stage("creating")
        for machines in self.machines:
            if machines.running and self.clock.time - machines.began > MERGING_S:
                self.reach_stage("merging")
            elif machines.running and self.clock.time - machines.began > 60:
                self.reach_stage("running")

    def reach_stage(self, stage: str) -> None:
        if fault := self.stages.pop(stage, None):
            fault(self)

    def headers(self) -> Message:
        """Returns the headers of an answer of the API."""
        headers = Message()
        headers["Date"] = formatdate(self.clock.now(), usegmt=True)
        return headers

    # gcloud.

    def call(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = 900.0) -> Finished:
        """Answers a command line as gcloud does, one at a time."""
        with self.lock:
            return self._call(argv, stdin, timeout_s)

    def _call(self, argv: Sequence[str], stdin: bytes, timeout_s: float) -> Finished:
        self.calls.append(list(argv))
        self.stdins.append(stdin)
        verb = " ".join(argv[3:5])
        if "create" in verb:
            self.reach_stage("asking")
        elif "delete" in verb:
            self.reach_stage("deleting")
        self.clock.sleep(CALL_S)
        if self.crashes:
            self.crashes -= 1
            return Finished(1, "", "ERROR: gcloud crashed (AttributeError): 'NoneType' object has no attribute 'x'\n")
        if self.hangs:
            self.hangs -= 1
            self.clock.sleep(timeout_s)
            return Finished(-9, "", f"\nno answer within {timeout_s:g} s")
        if verb in ("tpu-vm ssh", "tpu-vm scp"):
            return self._on_hosts(argv, timeout_s)
        try:
            self.cloud.check_available({"create": "POST", "delete": "DELETE"}.get(argv[4], "GET"))
            return Finished(0, self._ask(argv), "")
        except Dropped:
            return Finished(1, "", DROPPED)
        except ApiError as error:
            return Finished(1, "", error_text(argv, error))

    def _ask(self, argv: Sequence[str]) -> str:
        kind, verb, flags = argv[3], argv[4], dict(re.findall(r"^--([a-z-]+)=(.*)$", "\n".join(argv), re.MULTILINE))
        parent = f"projects/p/locations/{flags['zone']}"
        if verb == "list":
            table = self.cloud.nodes if kind == "tpu-vm" else self.cloud.queued
            return json.dumps(self.cloud.list(table, parent))
        name = argv[5]
        labels = dict(pair.split("=") for pair in flags.get("labels", "").split(",") if pair)
        node = {"acceleratorType": flags.get("accelerator-type", ""), "labels": labels}
        if (kind, verb) == ("queued-resources", "create"):
            self.cloud.create_queued(parent, name, {"tpu": {"nodeSpec": [{"nodeId": flags["node-id"], "node": node}]}})
        elif (kind, verb) == ("tpu-vm", "create"):
            operation = self.cloud.create_node(parent, name, node)
            if "error" in operation:
                raise ApiError(
                    operation["error"]["code"], f'{{ "code": 8, "message": "{operation["error"]["message"]}" }}'
                )
        elif kind == "queued-resources":
            self.cloud.delete_queued(f"{parent}/queuedResources/{name}", force=True)
        else:
            self.cloud.delete_node(f"{parent}/nodes/{name}")
        return ""

    def _on_hosts(self, argv: Sequence[str], timeout_s: float) -> Finished:
        text = argv[-1]
        encoded = re.search(r"echo (\S+) \|", text)
        script = base64.b64decode(encoded[1]).decode() if encoded else ""
        name = next((name for name in SCRIPT_NAMES if script.endswith((SCRIPTS / f"{name}.sh").read_text())), "copy")
        self.reach_stage({"prepare": "preparing", "start": "starting"}.get(name, name))
        machines = next(iter(self.machines), None)
        if machines is None or not machines.up or self.clock.time < self.unreachable_until:
            self.clock.sleep(min(timeout_s, CONNECT_S))
            return Finished(255, "", "ssh: connect to host 10.0.0.1 port 22: Connection timed out")
        values = dict(re.findall(r"^([A-Z_]+)='?([^'\n]*)'?$", script, re.MULTILINE))
        silent = any(host.silent for host in machines.hosts)
        if silent:
            self.clock.sleep(min(timeout_s, CONNECT_S))
        out = machines.answer(name, values) if name != "copy" else ""
        return Finished(255 if silent else 0, out, "ssh: connect to host: timed out" if silent else "")


def error_text(argv: Sequence[str], error: ApiError) -> str:
    """Returns what gcloud 528 prints for an error of the API."""
    status, name = STATUS[error.code]
    command = ".".join(argv[:5])
    if status >= 500:
        return (
            f"ERROR: ({command}) HttpError accessing <http://x>: response: <{{'status': {status}}}>, content <{error}>"
        )
    return f"ERROR: ({command}) {name}: {error}"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty cloud, in which the launcher's verbs run; their inputs are read elsewhere."""
    world = World(open_folder(tmp_path / "run"))
    monkeypatch.setattr(calls, "call", world.call)
    for name in ("monotonic", "sleep"):
        monkeypatch.setattr(clock, name, getattr(world.clock, name))
    monkeypatch.setattr(clock, "now", lambda: world.clock.now() + world.ahead_s)
    monkeypatch.setattr(api_time, "headers_of_answer", world.headers)
    # Without a reference to be computed beforehand.
    config = SimpleNamespace(parity=SimpleNamespace(samples=0), mode=Mode.prefill)
    inputs = SimpleNamespace(folder=world.folder, total_batches=BATCHES, config=config)
    for module in ("launch.verbs.watch", "launch.verbs.run"):
        monkeypatch.setattr(f"{module}.read_job", lambda config: inputs)
    monkeypatch.setattr("launch.cloud.deploy.make_bundle", lambda tasks: Bundle("b" * 64, b"", "e"))
    monkeypatch.setattr("launch.cloud.observe.POLL_S", 4.0)
    return world


def job(world: World, *more: str) -> list[str]:
    """Returns overrides of a job on a pod of two hosts."""
    return [
        *("experiment=v5e64", f"storage.run_dir={world.folder.url}", f"cloud.shared_folders=[{world.folder.url}]"),
        *("pod.accelerator_type=v4-16", "pod.runtime_version=tpu-ubuntu2204-base", "pod.hosts=2", "mesh=4x2"),
        *("cloud.zones=[us-west4-a,us-west4-b]", "cloud.name=extract-1", "cloud.stall_s=200", "cloud.rounds=2", *more),
    ]
