"""Every fault at every stage of `watch`: it goes on, deletes the pod, or says what stays, its price and a command.

On simulated time; test_rehearsal.py has some of them with the real gcloud and ssh. `python -m pytest
tests/launch/test_cloud_faults.py -m slow -s` tries all and prints the table.
"""

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from simulated_cloud import World, job, world
from simulated_hosts import HOSTS

from launch.__main__ import main
from pod_job.run_folder.layout import METADATA
from pod_job.run_folder.status import EndKind
from tools.fakepod.cloud import (
    CAPACITY,
    INTERNAL,
    INVALID_ARGUMENT,
    PERMISSION,
    PERMISSION_DENIED,
    QUOTA,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    ApiError,
    Dropped,
)

__all__ = ["world"]  # the fixture

STAGES = ("asking", "creating", "preparing", "starting", "running", "merging", "deleting")
HAS_NODE = STAGES[1:]
HAS_JOB = ("running", "merging")
FINISHED = ("merging", "deleting")
"""Stages at which all batches are committed: nothing is left that a pod is needed for."""
ZONE = "us-west4-a"
RATE = "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute' of service"


@dataclass(frozen=True)
class Fault:
    """A fault: what it does to the world, the stages at which it can happen, and how `watch` ends by it."""

    strike: Callable[[World], None]
    stages: tuple[str, ...] = STAGES
    status: int = 0
    new_pod: bool = False  # whether another pod has to be made for it, unless all is done


def interrupt(world: World) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def preempt(world: World) -> None:
    if world.node:
        world.cloud.preempt(world.node, suspending_s=40)


def end(code: int, kind: EndKind | None = None) -> Callable[[World], None]:
    return lambda world: world.machines[0].end(1, code, kind)


def silence(world: World) -> None:
    world.machines[0].hosts[1].silent = True


def answer_late(world: World) -> None:
    """ssh reaches a host 150 s later than the others, as where its machine boots slowly."""
    host, since = world.machines[0].hosts[1], world.clock.time
    host.silent = True

    def answer() -> None:
        host.silent = host.silent and world.clock.time < since + 150

    world.clock.ticks.append(answer)


def sicken(world: World) -> None:
    """The node is UNHEALTHY, and one of its hosts no longer answers."""
    world.cloud.set_health(str(world.node), "UNHEALTHY_MAINTENANCE")
    world.machines[0].hosts[1].silent = True


def fail_api(error: ApiError | Dropped, for_s: float = 60.0) -> Callable[[World], None]:
    return lambda world: world.cloud.fail_requests(error, for_s)


def lose_network(world: World) -> None:
    world.cloud.fail_requests(Dropped(), 60.0)
    world.unreachable_until = world.clock.time + 60.0


FAULTS = {
    "preemption": Fault(preempt, HAS_NODE, new_pod=True),
    "a worker never answers": Fault(silence, ("preparing", "starting", "running", "merging"), new_pod=True),
    "a worker answers 150 s late": Fault(answer_late, ("preparing",)),
    "API 503 for 60 s": Fault(fail_api(ApiError(UNAVAILABLE, "The service is currently unavailable."))),
    "API 500 for 60 s": Fault(fail_api(ApiError(INTERNAL, "Internal error encountered"))),
    "API 429 for 60 s": Fault(fail_api(ApiError(RESOURCE_EXHAUSTED, RATE))),
    "no network for 60 s": Fault(lose_network),
    "no capacity": Fault(lambda world: world.cloud.refuse(ZONE, CAPACITY), ("asking",), new_pod=True),
    "no quota": Fault(lambda world: world.cloud.refuse(ZONE, QUOTA), ("asking",), new_pod=True),
    "no permission": Fault(
        lambda world: world.cloud.refuse(ZONE, PERMISSION, code=PERMISSION_DENIED), ("asking",), new_pod=True
    ),
    "wrong request": Fault(
        lambda world: world.cloud.refuse(ZONE, "no such image", code=INVALID_ARGUMENT), ("asking",), status=2
    ),
    "deletion refused for 40 s": Fault(lambda world: world.cloud.refuse_deletion(str(world.node), 40), ("deleting",)),
    "bad chips in a host's log": Fault(end(1, EndKind.bad_machine), HAS_JOB, new_pod=True),
    "SIGSEGV": Fault(end(139), HAS_JOB, new_pod=True),
    "SIGKILL": Fault(end(137), HAS_JOB),
    "a user's traceback": Fault(end(1, EndKind.bug), HAS_JOB, status=1),
    "a user's error": Fault(end(2, EndKind.user_error), HAS_JOB, status=2),
    "UNHEALTHY": Fault(sicken, ("preparing", "starting", "running", "merging"), new_pod=True),
    "gcloud crashes": Fault(lambda world: setattr(world, "crashes", 2)),
    "gcloud hangs": Fault(lambda world: setattr(world, "hangs", 1)),
    "Ctrl-C": Fault(interrupt, status=130),
}
TABLE = [(stage, name) for name, fault in FAULTS.items() for stage in fault.stages]
FEW = TABLE[::10]


def struck(world: World, stage: str, name: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Runs `watch` with the fault at the stage, checks its end, and returns what it said last."""
    fault = FAULTS[name]
    began, struck_at = world.clock.time, []

    def strike(world: World) -> None:
        struck_at.append(world.clock.time)
        fault.strike(world)

    world.stages[stage] = strike
    status = main(["watch", *job(world), "--no-preflight"])
    printed = capfd.readouterr().err
    assert struck_at, f"{stage} was not reached\n{printed}"
    assert status == fault.status, printed
    if fault.status == 130:
        if world.empty:
            assert "stays" not in printed
        else:
            assert "pod-job down experiment=v5e64" in printed, printed
            assert "$7.38 an hour" in printed, printed
    else:
        assert world.empty, printed
    if fault.status == 0:
        assert world.folder.stat(METADATA) is not None
        assert world.creates == 1 + (fault.new_pod and stage not in FINISHED), printed
    assert world.clock.time - began < 1800, printed
    return printed.splitlines()[-1]


@pytest.mark.parametrize(("stage", "name"), FEW)
def test_a_tenth_of_the_table(world: World, stage: str, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    struck(world, stage, name, capfd)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name"), TABLE)
def test_every_fault_at_every_stage(world: World, stage: str, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    line = struck(world, stage, name, capfd)
    left = "nothing" if world.empty else ", ".join([*world.cloud.nodes, *world.cloud.queued])
    with capfd.disabled():
        print(
            f"\n| {stage} | {name} | {FAULTS[name].status} | {world.creates} | {world.clock.time:.0f} s | {left} |",
            line,
        )


def test_the_table_is_large_enough() -> None:
    assert len(TABLE) >= 40
    assert HOSTS == 2


def test_the_document_has_the_outcome_of_every_combination() -> None:
    (table,) = re.findall(r"^\| fault \|.*\n(?:\|.*\n)+", Path("docs/launching.md").read_text(), re.MULTILINE)
    head, _, *rows = [[cell.strip() for cell in line.strip("| ").split(" |")] for line in table.splitlines()]
    shown = {(stage, name): cell for name, *cells in rows for stage, cell in zip(head[1:], cells, strict=False) if cell}
    assert shown.keys() == set(TABLE)
    for (stage, name), cell in shown.items():
        fault = FAULTS[name]
        replaced = fault.new_pod and stage not in FINISHED
        ends = {0: {"another pod" if replaced else "goes on"}, 130: {"says what stays", "nothing is there"}}
        assert cell in ends.get(fault.status, {f"ends, {fault.status}"}), (stage, name)
