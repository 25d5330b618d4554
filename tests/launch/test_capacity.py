"""A pod comes from the first zone that has one; what is not granted in time, or refused, is decided by its reason."""

from dataclasses import replace

import pytest
from simulated_cloud import World, job, world

from launch.cloud import capacity
from launch.cloud.capacity import CREATING_S, LISTED_S, bring_up, delete_dead, hopeless
from launch.cloud.pods import Pod
from launch.cloud.refusal import Scope, read_refusal
from launch.cloud.tpu_api import Error, FailedData, Node, QueuedResource, QueuedState, Tpu
from pod_job.config.load import load
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from tools.fakepod.cloud import CAPACITY, INVALID_ARGUMENT, PERMISSION, PERMISSION_DENIED, QUOTA

__all__ = ["world"]  # the fixture

A, B = "us-west4-a", "us-west4-b"


def config(world: World, *more: str) -> JobConfig:
    return load(job(world, *more))


@pytest.mark.parametrize("queued", ["true", "false"])
def test_the_next_zone_is_asked(world: World, queued: str) -> None:
    world.cloud.refuse(A, CAPACITY)
    lines: list[str] = []
    assert bring_up(config(world, f"cloud.queued={queued}"), lines.append).zone == B
    assert any(line.startswith(f"{A}: ") and "no more capacity" in line for line in lines)


def test_without_capacity_every_zone_is_named(world: World) -> None:
    for zone in (A, B):
        world.cloud.refuse(zone, CAPACITY, times=2)
    with pytest.raises(JobError, match=rf"{A}: .*no more capacity.*; {B}: .*no more capacity.*add zones"):
        bring_up(config(world), lambda _: None)
    assert world.cloud.created == [A, B] * 2


@pytest.mark.parametrize("queued", ["true", "false"])
def test_a_wrong_request_is_made_once(world: World, queued: str) -> None:
    world.cloud.refuse(A, "Runtime version x is not valid", code=INVALID_ARGUMENT)
    with pytest.raises(JobError, match=r"us-west4-a refuses extract-1: .*Runtime version x"):
        bring_up(config(world, f"cloud.queued={queued}"), lambda _: None)
    assert world.cloud.created == [A]


def test_a_zone_that_refuses_for_good_is_not_asked_again(world: World) -> None:
    world.cloud.refuse(A, CAPACITY)
    world.cloud.refuse(B, PERMISSION, times=9, code=PERMISSION_DENIED)
    assert bring_up(config(world), lambda _: None).zone == A
    assert world.cloud.created == [A, B, A]


def test_only_zones_that_refuse_for_good_end_it_at_once(world: World) -> None:
    for zone in (A, B):
        world.cloud.refuse(zone, PERMISSION, times=9, code=PERMISSION_DENIED)
    with pytest.raises(JobError, match=rf"{A}: .*does not have permission.*; {B}: "):
        bring_up(config(world, "cloud.rounds=9"), lambda _: None)
    assert world.cloud.created == [A, B]


@pytest.mark.parametrize(("grant_s", "create_s", "zone"), [(500, 30, B), (100, 1000, A)])
def test_the_wait_for_capacity_is_bounded_and_that_for_a_granted_node_is_not(
    world: World, grant_s: float, create_s: float, zone: str
) -> None:
    world.cloud.grant_s, world.cloud.create_s = grant_s, create_s
    world.stages["asking"] = lambda world: None
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if "not served within cloud.zone_wait_s=200" in line:
            world.cloud.grant_s = 0

    assert bring_up(config(world, "cloud.zone_wait_s=200"), log).zone == zone
    assert world.cloud.created == [A, B][: 1 + (zone == B)]
    assert len(world.cloud.queued) == 1


def queued(state: str, error: str | None = None) -> Pod:
    data = QueuedState(state, FailedData(Error(error)))
    return Pod("extract-1", A, None, QueuedResource("x/queuedResources/extract-1", data, Tpu([])))


def node(state: str) -> Pod:
    return Pod("extract-1", A, Node(name="x", state=state), None)


# waited_s, granted_s -> the reach of the refusal, None where the pod may come.
WAITS = {
    "not listed yet": (None, LISTED_S - 1, None, None),
    "never listed": (None, LISTED_S + 1, None, Scope.now),
    "gone after it was granted": (None, 5, 1, Scope.now),
    "in the queue": (queued("WAITING_FOR_RESOURCES"), 899, None, None),
    "in the queue for too long": (queued("WAITING_FOR_RESOURCES"), 901, None, Scope.now),
    "granted late": (queued("PROVISIONING"), 5000, 100, None),
    "a node in the making": (node("CREATING"), 5000, 1000, None),
    "a node that is never made": (node("CREATING"), 5000, CREATING_S + 1, Scope.now),
    "ready, however late": (node("READY"), 9999, 9999, None),
    "preempted meanwhile": (node("PREEMPTED"), 10, 5, Scope.now),
    "failed for capacity": (queued("FAILED", CAPACITY), 1, None, Scope.now),
    "failed for good": (queued("FAILED", PERMISSION), 1, None, Scope.zone),
    "failed for a reason of its own": (queued("FAILED", "something else"), 1, None, Scope.zone),
    "failed as it is wrong": (queued("FAILED", "INVALID_ARGUMENT: no image"), 1, None, Scope.request),
}


@pytest.mark.parametrize("name", WAITS)
def test_how_long_a_pod_is_waited_for(name: str) -> None:
    pod, waited_s, granted_s, scope = WAITS[name]
    refusal = hopeless(pod, waited_s, granted_s, zone_wait_s=900)
    assert (refusal.scope if refusal else None) is scope


@pytest.mark.parametrize(
    ("reason", "scope"),
    [
        (f'ERROR: (gcloud.compute.tpus.tpu-vm.create) {{ "code": 8, "message": "{CAPACITY}" }}', Scope.now),
        (QUOTA, Scope.now),
        (f"PERMISSION_DENIED: {PERMISSION}", Scope.zone),
        ("Accelerator type v6e-64 is not available in zone us-west4-a", Scope.zone),
        ("PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on resource", Scope.request),
        ("INVALID_ARGUMENT: Runtime version x is not valid", Scope.request),
        ("argument --labels: Bad value", Scope.request),
    ],
)
def test_reach_of_a_refusal(reason: str, scope: Scope) -> None:
    assert read_refusal(reason).scope is scope


def test_a_dead_pod_is_deleted_before_another_is_made(world: World) -> None:
    first = bring_up(config(world), lambda _: None)
    world.cloud.preempt("extract-1", suspending_s=40)
    lines: list[str] = []
    second = bring_up(config(world), lines.append)
    assert second.created > first.created
    assert any("cannot be deleted now: " in line and "FAILED_PRECONDITION" in line for line in lines)
    assert len(world.cloud.nodes) == 1


def test_a_pod_that_cannot_be_deleted_is_named_and_the_others_are_deleted(world: World) -> None:
    from launch.cloud.capacity import take_down

    pod = bring_up(config(world), lambda _: None)
    other = replace(pod, zone=B)
    world.cloud.refuse_deletion("extract-1", 1e6)
    with pytest.raises(JobError, match=rf"^extract-1 in {A} could not be deleted: .*FAILED_PRECONDITION"):
        take_down([pod, other], config(world), lambda _: None)


def in_zone(zone: str, state: str) -> Pod:
    return Pod("extract-1", zone, Node(name=f"projects/p/locations/{zone}/nodes/extract-1", state=state), None)


@pytest.mark.parametrize(
    ("states", "kept", "deleted"),
    [
        (["READY", "CREATING"], A, [B]),
        (["CREATING", "READY"], B, [A]),
        (["CREATING", "MIGRATING"], A, [B]),
        (["PREEMPTED", "READY"], B, [A]),
        (["PREEMPTED", "STOPPED"], None, [A, B]),
        (["READY", "READY"], A, []),
    ],
)
def test_of_pods_in_two_zones_one_stays_and_a_second_that_is_ready_is_named(
    states: list[str], kept: str | None, deleted: list[str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    monkeypatch.setattr(capacity, "delete_and_record", lambda pod, config, log: gone.append(pod.zone))
    lines: list[str] = []
    pods = [in_zone(zone, state) for zone, state in zip((A, B), states, strict=True)]
    pod = delete_dead(pods, config(world), lines.append)
    assert (pod and pod.zone, gone) == (kept, deleted)
    assert any("is READY in us-west4-b too, and costs" in line for line in lines) == (states == ["READY", "READY"])
