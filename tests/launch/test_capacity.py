"""A pod comes from the first zone that has one; each zone that has none is named with its reason."""

import pytest

from launch.cloud import capacity
from launch.cloud.capacity import bring_up
from launch.cloud.pods import Pod
from launch.cloud.request import pod_name
from launch.cloud.tpu_api import Node
from launch.shell import Finished
from pod_job.config.load import load
from pod_job.errors import JobError

CONFIG = load(
    [
        *("experiment=v5e64", "storage.run_dir=gs://bucket/run", "cloud.rounds=1", "cloud.queued=false"),
        "cloud.zones=[us-west4-a,us-west4-b]",
    ]
)


@pytest.fixture
def full_zones(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Zones without capacity; every other one makes a pod at once. What is recorded goes nowhere."""
    full: set[str] = set()
    made: list[Pod] = []

    def call(argv: list[str]) -> Finished:
        (zone,) = [arg.removeprefix("--zone=") for arg in argv if arg.startswith("--zone=")]
        if zone in full:
            return Finished(1, "", "ERROR: no more capacity in the zone")
        name = f"projects/p/locations/{zone}/nodes/{pod_name(CONFIG)}"
        made.append(Pod(pod_name(CONFIG), zone, Node(name=name, state="READY"), None))
        return Finished(0, "", "")

    monkeypatch.setattr(capacity, "call", call)
    monkeypatch.setattr(capacity, "find_pods", lambda *_: made)
    monkeypatch.setattr(capacity, "note", lambda *_: None)
    return full


def test_the_next_zone_is_asked(full_zones: set[str]) -> None:
    full_zones.add("us-west4-a")
    lines: list[str] = []
    assert bring_up(CONFIG, lines.append).zone == "us-west4-b"
    assert any(line.startswith("us-west4-a: ") and "no more capacity" in line for line in lines)


def test_without_capacity_every_zone_is_named(full_zones: set[str]) -> None:
    full_zones |= {"us-west4-a", "us-west4-b"}
    with pytest.raises(JobError, match=r"us-west4-a: .*no more capacity.*; us-west4-b: .*no more capacity.*add zones"):
        bring_up(CONFIG, lambda _: None)
