"""A host finds its place and the others from what the launcher, GKE, SkyPilot or a TPU VM tells it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pod_job import environment
from pod_job.config.schema import PodConfig, PodKind
from pod_job.errors import JobError
from pod_job.host import tpu_slice
from pod_job.host.host_end import restart_status
from pod_job.host.rendezvous import INDEXES, this_host
from pod_job.run_folder.status import EndKind
from tools.fakepod.world import free_port

LOCAL, TPU = PodConfig(hosts=2), PodConfig(kind=PodKind.tpu, hosts=2)
IPS = "10.0.0.5\n10.0.0.6\n"
TASK = "sky-managed-2026-11-27-04-30-00-123456_qwen_1-0"
OTHERS = (
    *(environment.COORDINATOR, environment.ATTEMPT, environment.JAX_COORDINATOR, environment.SKYPILOT_ADDRESSES),
    *(environment.SKYPILOT_TASK, *tpu_slice.SIGNS),
)

ENGINES: dict[str, tuple[PodConfig, dict[str, str], int, str | None]] = {
    "GKE's webhook on a TPU slice": (
        TPU,
        {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "q-0.q,q-1.q", "JOB_COMPLETION_INDEX": "1"},
        1,
        "q-0.q:8476",
    ),
    "its newer variable, with libtpu's ports": (
        PodConfig(kind=PodKind.tpu, hosts=2, port=9000),
        {"TPU_WORKER_ID": "0", "TPU_PROCESS_ADDRESSES": "q-0.q:8471,q-1.q:8471"},
        0,
        "q-0.q:9000",
    ),
    "a TPU VM, whose metadata server jax asks": (
        TPU,
        {"TPU_WORKER_ID": "1", "GCE_METADATA_IP": "127.0.0.1:1"},
        1,
        None,
    ),
    "the slice's order counts, not the engine's": (
        TPU,
        {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": IPS},
        1,
        "a:8476",
    ),
    "JobSet without a TPU": (
        LOCAL,
        {"JOB_COMPLETION_INDEX": "1", "JAX_COORDINATOR_ADDRESS": "q-slice-0-0.q:8476"},
        1,
        "q-slice-0-0.q:8476",
    ),
    "SkyPilot": (LOCAL, {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": IPS}, 1, "10.0.0.5:8476"),
    "the launcher's own come first": (
        LOCAL,
        {"POD_JOB_HOST": "0", "POD_JOB_COORDINATOR": "127.0.0.1:1", "JOB_COMPLETION_INDEX": "1"},
        0,
        "127.0.0.1:1",
    ),
    "one host needs nothing": (PodConfig(), {}, 0, None),
}


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*INDEXES, *OTHERS}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tpu_slice, "DEVICES", ())
    monkeypatch.setattr(tpu_slice, "attribute", lambda name: None)


@pytest.mark.parametrize("name", ENGINES)
def test_a_hosts_place_from_the_variables_of_its_engine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pod, variables, index, coordinator = ENGINES[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    host = this_host(pod)
    assert (host.index, host.coordinator) == (index, coordinator)
    assert host.local is (environment.COORDINATOR in variables)


def test_a_host_that_does_not_know_which_it_is_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobError, match=r"JOB_COMPLETION_INDEX, SKYPILOT_NODE_RANK is set, .* set POD_JOB_HOST$"):
        this_host(LOCAL)
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "2")
    with pytest.raises(JobError, match=r"^SKYPILOT_NODE_RANK=2 is not a host of this pod; use 0\.\.1"):
        this_host(LOCAL)


def test_a_recovered_task_of_skypilot_is_another_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "0")
    monkeypatch.setenv("SKYPILOT_TASK_ID", f"{TASK}/x y")
    attempts = []
    for addresses in (IPS, IPS, "10.0.0.7\n10.0.0.8"):
        monkeypatch.setenv("SKYPILOT_NODE_IPS", addresses)
        attempts.append(this_host(LOCAL).attempt)
    assert attempts[0] == attempts[1] != attempts[2]
    assert re.fullmatch(r"[A-Za-z0-9-]+", attempts[0])
    monkeypatch.setenv("POD_JOB_ATTEMPT", "a")
    assert this_host(LOCAL).attempt == "a"


@pytest.mark.parametrize("kind", [*EndKind, None])
def test_an_engine_starts_again_what_another_start_may_cure(
    kind: EndKind | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert restart_status(kind) is None
    monkeypatch.setenv("POD_JOB_RESTART_STATUS", "75")
    passes = kind in (EndKind.stopped, EndKind.lost_peer, EndKind.bad_machine)
    assert restart_status(kind) == (75 if passes else None)


HOST = """
import sys
from pod_job.config.schema import PodConfig, PodKind
from pod_job.host.rendezvous import start, this_host
host = this_host(PodConfig(kind=PodKind[sys.argv[1]], hosts=2, port=int(sys.argv[2])))
start(host)
import jax
from jax.experimental import multihost_utils
seen = multihost_utils.process_allgather(jax.numpy.array([host.index]))
print("met", jax.process_index() == host.index, jax.process_count(), sorted(seen.reshape(-1).tolist()))
"""


@pytest.mark.pod
def test_two_processes_meet_by_the_variables_of_each_engine() -> None:
    """Real processes; the interconnect is gloo on this machine's own address."""
    engines = {
        "tpu": lambda host, port: {"TPU_WORKER_ID": str(host), "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1"},
        "local": lambda host, port: {"JOB_COMPLETION_INDEX": str(host), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"},
        "sky": lambda host, port: {"SKYPILOT_NODE_RANK": str(host), "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1"},
    }
    env = {name: value for name, value in os.environ.items() if name not in {*INDEXES, *OTHERS}}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "TPU_SKIP_MDS_QUERY": "1"}
    processes = []
    for engine, variables in engines.items():
        port = free_port()
        command = [sys.executable, "-c", HOST, "tpu" if engine == "tpu" else "local", str(port)]
        processes += [
            subprocess.Popen(command, env=env | variables(host, port), stdout=subprocess.PIPE, text=True)
            for host in range(2)
        ]
    printed = [process.communicate(timeout=100)[0] for process in processes]
    assert [text.splitlines()[-1:] for text in printed] == [["met True 2 [0, 1]"]] * len(processes)
