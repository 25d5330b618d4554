"""A TPU VM knows its slice: from the variables that Google sets, or its metadata server; other machines are none."""

from collections.abc import Iterator

import pytest

from pod_job import environment
from pod_job.config.schema import PodKind
from pod_job.document.pod_flags import Pod, choose_pod
from pod_job.errors import JobError
from pod_job.host import tpu_slice
from pod_job.host.tpu_slice import TpuWorker, this_tpu_worker
from tools.fakepod.metadata import MetadataServer

NAMES = ",".join(f"host-{number}" for number in range(16))


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*tpu_slice.SIGNS, environment.HOST, "TPU_SKIP_MDS_QUERY"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
    monkeypatch.delenv(environment.HOST)
    monkeypatch.setattr(tpu_slice, "DEVICES", ())


@pytest.fixture
def metadata_server() -> Iterator[MetadataServer]:
    server = MetadataServer(["127.0.0.1"] * 16, worker=5)
    yield server
    server.close()


def test_the_variables_that_google_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", NAMES)
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-64")
    assert this_tpu_worker() == TpuWorker(3, 16, "v5litepod-64")
    assert choose_pod(["8,8"], None) == Pod(8, 8, PodKind.tpu, 16)
    assert choose_pod(["8", "8"], None).overrides()[-1] == "pod.devices_per_host=4"


def test_the_metadata_server(monkeypatch: pytest.MonkeyPatch, metadata_server: MetadataServer) -> None:
    monkeypatch.setenv("GCE_METADATA_IP", metadata_server.address)
    worker = this_tpu_worker()
    assert worker is not None
    assert (worker.index, worker.count) == (5, 16)
    assert choose_pod(["8,8"], None) == Pod(8, 8, PodKind.tpu, 16)
    assert environment.HOST in tpu_slice.os.environ
    assert tpu_slice.os.environ[environment.HOST] == "5"


@pytest.mark.parametrize(("name", "hosts"), [("v5litepod-64", 16), ("v5litepod-8", 1), ("v4-32", 4)])
def test_the_accelerator_type_alone_tells_the_workers(name: str, hosts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", name)
    chips = 16 if name == "v4-32" else int(name.partition("-")[2])
    assert choose_pod([f"{chips},1"], None).hosts == hosts


def test_another_machine_is_no_tpu_and_the_mesh_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "WARNING: could not determine TPU worker hostnames")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    assert this_tpu_worker() is None
    assert choose_pod(["2,1"], None) == Pod(2, 1, PodKind.local, 1)


def test_hosts_that_are_given_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", NAMES)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    assert choose_pod(["8,8"], 32) == Pod(8, 8, PodKind.local, 32)


@pytest.mark.parametrize(
    ("variables", "shape", "reason"),
    [
        ({"TPU_WORKER_HOSTNAMES": NAMES, "TPU_WORKER_ID": "16"}, "8,8", "TPU_WORKER_ID=16 is not a worker of this sl"),
        ({"TPU_WORKER_HOSTNAMES": NAMES, "TPU_WORKER_ID": "x"}, "8,8", "TPU_WORKER_ID=x is not a worker of this slic"),
        ({"TPU_ACCELERATOR_TYPE": "v5litepod-64"}, "8,4", "--mesh_shape is 32 devices, and this v5litepod-64 has 64"),
        ({"TPU_WORKER_HOSTNAMES": NAMES}, "3,3", "--mesh_shape is 9 devices, which 16 workers of this slice cannot"),
    ],
)
def test_what_does_not_fit_the_slice_is_refused(
    variables: dict[str, str], shape: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(JobError, match=reason):
        choose_pod([shape], None)
