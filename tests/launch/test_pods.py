"""Pods, from gcloud's JSON: a node and its queued resource become one pod, whatever else the API adds."""

import json

import pytest

from launch.cloud import calls, pods
from launch.cloud.pods import list_pods
from launch.shell import Finished
from pod_job.errors import JobError

NODE = {
    "name": "projects/p/locations/us-west4-a/nodes/extract-1",
    "state": "READY",
    "acceleratorType": "v5litepod-64",
    "createTime": "2026-11-26T10:00:00.123456789Z",
    "labels": {"made-by": "pod-job"},
    "networkEndpoints": [{"ipAddress": "10.0.0.1", "port": 8470, "accessConfig": {}}, {"ipAddress": "10.0.0.2"}],
    "schedulingConfig": {"preemptible": True},
}
QUEUED = {
    "name": "projects/p/locations/us-west4-b/queuedResources/q-7",
    "state": {"state": "FAILED", "failedData": {"error": {"code": 8, "message": "no more capacity"}}},
    "tpu": {"nodeSpec": [{"nodeId": "extract-2", "node": {"acceleratorType": "v5litepod-16", "labels": {"a": "b"}}}]},
}


@pytest.fixture
def gcloud_prints(monkeypatch: pytest.MonkeyPatch):
    def prints(nodes: object, queued: object) -> None:
        answer = lambda argv: nodes if "tpu-vm" in argv else queued  # noqa: E731
        monkeypatch.setattr(calls, "call", lambda argv, **_: Finished(0, json.dumps(answer(argv)), ""))

    return prints


def test_a_node_and_a_queued_resource_are_read(gcloud_prints) -> None:
    gcloud_prints([NODE], [QUEUED])
    node, queued = list_pods(None)
    assert (node.name, node.zone, node.state, node.ready) == ("extract-1", "us-west4-a", "READY", True)
    assert (node.workers, node.addresses, node.labels) == (2, ["10.0.0.1", "10.0.0.2"], {"made-by": "pod-job"})
    assert node.created == pytest.approx(1795687200.1, abs=0.1)
    assert (queued.name, queued.zone, queued.state, queued.error) == (
        "extract-2",
        "us-west4-b",
        "FAILED",
        "no more capacity",
    )
    assert (queued.accelerator_type, queued.labels, queued.workers) == ("v5litepod-16", {"a": "b"}, 0)
    assert pods.delete_commands(queued, None)[0][5] == "q-7"


def test_a_queued_resource_and_its_node_are_one_pod(gcloud_prints) -> None:
    own = QUEUED | {"name": QUEUED["name"].replace("us-west4-b", "us-west4-a"), "state": {"state": "ACTIVE"}}
    gcloud_prints([NODE], [own | {"tpu": {"nodeSpec": [{"nodeId": "extract-1"}]}}])
    (pod,) = list_pods(None)
    assert (pod.state, pod.queued_state, pod.accelerator_type) == ("READY", "ACTIVE", "v5litepod-64")


def test_an_answer_of_another_form_is_named(gcloud_prints) -> None:
    gcloud_prints([NODE | {"state": 7}], [])
    with pytest.raises(JobError, match=r"tpu-vm list: items\[0\]\.state: expected `str`, got `int`"):
        list_pods(None)
