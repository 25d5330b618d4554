"""The first cause of a failed run, from kinds of end, exit codes and statuses: no word of the job's is read."""

import itertools
import signal

import pytest

from launch.cause import Cause, HostExit, first_cause
from pod_job.run_folder.status import EndKind, HostStatus, Phase

USER, BUG, PEER, MACHINE = EndKind.user_error, EndKind.bug, EndKind.lost_peer, EndKind.bad_machine
ABORT, KILL = -signal.SIGABRT, -signal.SIGKILL


def status(host: int, end: EndKind | None = None, blamed: int | None = None, arrived: bool = True) -> HostStatus:
    phase = Phase.failed if end else Phase.extracting if arrived else Phase.checking
    error = f"error of host {host}" if end else None
    return HostStatus(host=host, attempt="a", phase=phase, error=error, end=end, blamed_host=blamed)


def reports(host: int, end: EndKind, code: int | None = 1, blamed: int | None = None) -> HostExit:
    return HostExit(host, 2 if end is USER else code, status(host, end, blamed))


def silent(host: int, code: int, *lines: str, arrived: bool = True) -> HostExit:
    return HostExit(host, code, status(host, arrived=arrived), lines)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(
    ("guilty", "kind"),
    [
        (reports(3, USER), USER),
        (reports(3, BUG), BUG),
        (reports(3, MACHINE), MACHINE),
        (silent(3, KILL), None),
        (silent(3, 5), None),
        (HostExit(3, 2, None, ["error: pod.port=1 is taken"]), USER),
        (HostExit(3, 1, None, ["Traceback", "KeyError: 'a'"]), BUG),
    ],
)
def test_who_did_not_end_because_of_another_is_the_cause_in_any_order(
    guilty: HostExit, kind: EndKind | None, order: tuple[int, ...]
) -> None:
    hosts = [guilty, reports(0, PEER, blamed=3), silent(1, ABORT)]
    cause = first_cause([hosts[index] for index in order])
    assert (cause.host, cause.kind, cause.certain) == (3, kind, True)
    assert cause.reason == guilty.reason


@pytest.mark.parametrize("kind", [BUG, MACHINE])
def test_a_user_error_comes_before_other_ends_and_else_the_earliest(kind: EndKind) -> None:
    assert first_cause([reports(0, kind), reports(1, USER)]) == Cause(1, "error of host 1", USER)
    assert first_cause([reports(0, kind), reports(1, BUG)]).host == 0


PEERS = {
    "they blame one that has not ended": ([reports(0, PEER, blamed=1)], (1,), 1, False),
    "one of them ended first": ([reports(0, PEER, blamed=2), reports(2, PEER)], (), 2, False),
    "jax aborted all but one": ([silent(0, ABORT), silent(2, 134), silent(3, ABORT)], (1,), 1, True),
    "jax aborted one, and its peers followed": ([silent(2, ABORT), reports(0, PEER, blamed=2)], (1,), 1, True),
    "jax aborted one, and several run": ([silent(0, ABORT)], (1, 2), 0, False),
    "jax aborted all": ([silent(0, ABORT), silent(1, ABORT)], (), 0, False),
    "an exception of jax, and one runs": ([reports(0, PEER)], (1,), 0, False),
}


@pytest.mark.parametrize("name", PEERS)
def test_when_all_ended_because_of_another(name: str) -> None:
    exits, running, host, certain = PEERS[name]
    cause = first_cause(exits, running)
    assert (cause.host, cause.kind, cause.certain) == (host, PEER, certain)
    assert cause.reason.startswith("stopped answering") == (host == 1 and certain)


@pytest.mark.parametrize(
    ("kind", "lost", "bad_machine", "user_error"),
    [
        (USER, False, False, True),
        (BUG, False, False, False),
        (EndKind.stopped, False, False, False),
        (PEER, True, False, False),
        (MACHINE, True, True, False),
        (None, True, False, False),
    ],
)
def test_what_may_be_tried_again(kind: EndKind | None, lost: bool, bad_machine: bool, user_error: bool) -> None:
    cause = Cause(0, "reason", kind)
    assert (cause.lost, cause.bad_machine, cause.user_error) == (lost, bad_machine, user_error)


@pytest.mark.parametrize(
    ("exit", "reason"),
    [
        (HostExit(0, 1, None, ["Traceback (most recent call last):", "  x", "KeyError: 'a'"]), "KeyError: 'a'"),
        (HostExit(0, 2, None, ["error: pod.port=1 is taken"]), "pod.port=1 is taken"),
        (HostExit(0, 1, status(0, BUG), ["KeyError: 'a'"]), "error of host 0"),
        (silent(0, -signal.SIGSEGV), "ended by SIGSEGV"),
        (silent(0, KILL, arrived=False), "ended by SIGKILL before it arrived, perhaps for want of memory"),
        (HostExit(0, KILL), "ended by SIGKILL before it arrived, perhaps for want of memory"),
        (silent(0, 5), "ended with exit code 5 and no message"),
        (HostExit(0, -127), "ended with exit code -127 before it arrived and no message"),
        (
            HostExit(
                0, 1, None, ["  x", "a.b.XlaRuntimeError: INTERNAL: no", "*** Check failure ***", "F0 x.cc:1] Error: y"]
            ),
            "a.b.XlaRuntimeError: INTERNAL: no",
        ),
        (HostExit(0, 1, None, ["KeyError: 'a'", "ValueError", "terminate called"]), "ValueError"),
        (HostExit(0, 2, None, ["error: pod.port=1 is taken", "W0 y.cc:2] closed"]), "pod.port=1 is taken"),
        (HostExit(0, 1, None, ["one", "two"]), "two"),
    ],
)
def test_reason(exit: HostExit, reason: str) -> None:
    assert exit.reason == reason


def test_a_failure_that_version_0_1_0_reported_is_told_by_its_exit_code() -> None:
    old = HostStatus(host=0, attempt="a", phase=Phase.failed, error="host 1 failed: heartbeat of another task")
    assert [HostExit(0, code, old).kind for code in (2, 1, None)] == [USER, BUG, BUG]
