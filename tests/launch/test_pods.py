"""Pods, from gcloud's JSON: a node and its queued resource become one pod, whatever else the API adds."""

import json
from collections.abc import Callable

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


EMPTY = "[]"
ODD = {
    "whole": (json.dumps([NODE]), True),
    "a warning before it": ("WARNING: the SDK is old [x]\n[update it]\n" + json.dumps([NODE], indent=2) + "\n", True),
    "a notice after it": (
        json.dumps([NODE], indent=2) + "\n\nUpdates are available: [gcloud components update]\n",
        True,
    ),
    "very long lines": (json.dumps([NODE | {"description": "x" * 1_000_000}]), True),
    "bytes that are no UTF-8": (json.dumps([NODE]).replace('"READY"', '"READY", "description": "\ufffd\ufffd"'), True),
    "a state that is not known here": (json.dumps([NODE | {"state": "MIGRATING"}]), True),
    "fields left out": (json.dumps([{"name": NODE["name"]}]), True),
    "nothing": ("", False),
    "cut short": (json.dumps([NODE])[:-20], False),
    "a page of a proxy": ("<html>\n<body>[502] Bad Gateway</body>\n</html>", False),
    "another type": ('{"error": {"code": 503}}', False),
    "null": ("null", False),
}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses of a clock that passes at once."""
    slept: list[float] = []
    monkeypatch.setattr("launch.clock.sleep", slept.append)
    monkeypatch.setattr("launch.clock.monotonic", lambda: sum(slept))
    return slept


@pytest.mark.parametrize("case", ODD)
def test_an_odd_answer_is_read_or_asked_again_and_never_taken_for_no_pods(
    case: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, readable = ODD[case]
    answers = iter([text, json.dumps([NODE])])
    monkeypatch.setattr(calls, "call", lambda argv, **_: Finished(0, next(answers) if "tpu-vm" in argv else EMPTY, ""))
    (pod,) = list_pods(None)
    assert pod.name == "extract-1"
    assert bool(pauses) is not readable


def test_an_answer_that_stays_unreadable_is_one_short_line_in_the_end(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "<html>" + "x" * 100_000
    monkeypatch.setattr(calls, "call", lambda argv, **_: Finished(0, page if "tpu-vm" in argv else EMPTY, ""))
    with pytest.raises(JobError) as error:
        list_pods(None)
    assert 800 < sum(pauses) < 1000
    assert len(str(error.value)) < 1500
    assert "\n" not in str(error.value)
    monkeypatch.setattr(calls, "call", lambda argv, **_: Finished(1, "", f"ERROR: (gcloud) HTTPError 404: {page}"))
    with pytest.raises(JobError, match=r"^gcloud cannot list TPUs: ERROR: \(gcloud\) HTTPError 404") as error:
        list_pods(None)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize("name", ["extract-1", "", "projects/p/locations/z", "//tpu/projects/p/locations/z/nodes/x/y"])
def test_a_name_of_another_form_is_named(gcloud_prints: Callable[..., None], name: str) -> None:
    gcloud_prints([NODE | {"name": name}], [])
    with pytest.raises(JobError, match="which is no name of a TPU"):
        list_pods(None)


@pytest.mark.parametrize("queued", [{}, {"tpu": {}}, {"tpu": {"nodeSpec": []}}, {"state": {}}])
def test_requests_of_other_programs_do_not_hide_ours(gcloud_prints: Callable[..., None], queued: object) -> None:
    gcloud_prints([NODE], [{"name": QUEUED["name"], **queued}])
    assert [pod.name for pod in list_pods(None)] == ["extract-1", "q-7"]


@pytest.mark.parametrize("state", ["READY", "CREATING", "REIMAGING", "REPAIRING", "MIGRATING", "UNKNOWN", "", "ready"])
def test_a_state_that_may_lead_to_ready_is_no_dead_pod(gcloud_prints: Callable[..., None], state: str) -> None:
    gcloud_prints([NODE | {"state": state}], [])
    (pod,) = list_pods(None)
    assert pod.ready or pod.coming


@pytest.mark.parametrize("state", ["PREEMPTED", "STOPPED", "STOPPING", "TERMINATED", "DELETING", "HIDDEN"])
def test_a_state_that_never_leads_to_ready_is_a_dead_pod(gcloud_prints: Callable[..., None], state: str) -> None:
    gcloud_prints([NODE | {"state": state}], [])
    (pod,) = list_pods(None)
    assert (pod.ready, pod.coming) == (False, False)
