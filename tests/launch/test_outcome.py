"""Outcome of a run, from what hosts and the API report: only what is nobody's mistake may be tried again."""

import base64
from dataclasses import dataclass, field
from typing import Any

import pytest

from launch.cloud.outcome import SETTLE_S, UNREACHED_S, End, NodeView, Outcome, judge
from launch.cloud.remote import Answer
from pod_job.run_folder.status import EndKind, HostStatus, Phase

ATTEMPT = "20250101T000000Z-abcdef"
RUNNING = ("RUNNING", ATTEMPT)
USER, BUG, PEER, MACHINE = EndKind.user_error, EndKind.bug, EndKind.lost_peer, EndKind.bad_machine
LATER = {"worried_s": SETTLE_S + 1}


def exited(code: int, log: str = "", attempt: str = ATTEMPT) -> tuple[str, str]:
    return "EXITED", f"{attempt} {code} {base64.b64encode(log.encode()).decode()}"


@dataclass(frozen=True)
class Case:
    """Answers and ends of the hosts in their order, None where there is none; the outcome that they make.

    `mute`: the hosts without a status; `merging`: those with no batch left to compute.
    """

    answers: list[tuple[str, str] | None]
    end: End | None
    blamed: int | None = None
    ends: list[EndKind | None] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    mute: tuple[int, ...] = ()
    merging: tuple[int, ...] = ()


CASES = {
    "all run": Case([RUNNING, RUNNING], None),
    "a bug": Case([RUNNING, exited(1)], End.failed, 1, [None, BUG]),
    "a bug before there is a status": Case(
        [RUNNING, exited(1, "Traceback\nValueError: bad")], End.failed, 1, mute=(1,)
    ),
    "a bug while the pod goes": Case([RUNNING, exited(1)], End.failed, 1, [None, BUG], {"node": "PREEMPTED"}),
    "a user error, by status alone": Case([RUNNING, None], End.failed, 1, [None, USER]),
    "a bug, by status alone": Case([RUNNING, None], End.failed, 1, [None, BUG]),
    "a user error, by exit code alone": Case([RUNNING, exited(2, "error: no")], End.failed, 1, mute=(1,)),
    "a stale status, exit 1, and a bad machine": Case([exited(1, "x"), exited(1)], End.lost, 1, [None, MACHINE]),
    "a stale status, exit 2, and a bad machine": Case([exited(2, "x"), exited(1)], End.lost, 1, [None, MACHINE]),
    "a stale status, exit 1, and a lost peer": Case([exited(1, "x"), exited(1)], End.lost, 1, [None, PEER]),
    "a stale status, exit 2, and a lost peer": Case([exited(2, "x"), exited(1)], End.lost, 1, [None, PEER]),
    "a stale status alone": Case([RUNNING, exited(1, "x")], None),
    "a stale status for long": Case([RUNNING, exited(2, "x")], End.lost, 1, more=LATER),
    "a bad machine": Case([RUNNING, exited(1)], End.lost, 1, [None, MACHINE]),
    "a bad machine, and its peers left": Case([exited(1), exited(1)], End.lost, 1, [PEER, MACHINE]),
    "a bad machine while the pod goes": Case(
        [RUNNING, exited(1)], End.preempted, None, [None, MACHINE], {"node": "PREEMPTED"}
    ),
    "the pod goes": Case([RUNNING, exited(137)], End.preempted, None, more={"node": "PREEMPTED"}),
    "the pod is gone": Case([None, None], End.preempted, None, more={"node": "GONE"}),
    "absent from a list while its hosts report": Case(
        [RUNNING, RUNNING], None, None, more={"node": "GONE", "worried_s": 0}
    ),
    "SIGSEGV": Case([exited(1), exited(139)], End.lost, 1, [PEER, None]),
    "SIGBUS": Case([exited(1), exited(135)], End.lost, 1, [PEER, None]),
    "killed": Case([exited(1), exited(137)], End.lost, 1, [PEER, None]),
    "died of another that is not seen yet": Case([exited(1), RUNNING], None, None, [PEER, None]),
    "the same for long": Case([exited(1), RUNNING], End.lost, 0, [PEER, None], LATER),
    "hung": Case([exited(134), RUNNING], End.lost, 1),
    "hung, and jax has not aborted all yet": Case([exited(134), RUNNING, RUNNING], None),
    "restarted machine": Case([RUNNING, ("NONE", "")], End.lost, 1),
    "another attempt ended there": Case([RUNNING, exited(0, attempt="earlier")], End.lost, 1),
    "unreachable": Case([RUNNING, None], End.lost, 1, more=LATER),
    "no host reached, nor heard of, for minutes": Case([None, None], End.lost, 0, more={"worried_s": UNREACHED_S + 1}),
    "no host reached for a moment": Case([None, None], None, more={"worried_s": UNREACHED_S - 1}),
    "unreachable for a moment": Case([RUNNING, None], None),
    "a state that is not known here, while hosts are heard": Case(
        [RUNNING, RUNNING], None, more={"node": "MIGRATING", "worried_s": 0}
    ),
    "a state that is not known here, and silence": Case([RUNNING, None], End.preempted, more={"node": "MIGRATING"}),
    "preempted, though hosts are still heard": Case(
        [RUNNING, RUNNING], End.preempted, more={"node": "PREEMPTED", "worried_s": 0}
    ),
    "no progress": Case([RUNNING, RUNNING], End.lost, 0, more={"stalled": True}),
    "SIGSEGV at its exit, and the others still write": Case([RUNNING, exited(139)], None, merging=(1,)),
    "killed at its exit, and the others still write": Case([RUNNING, exited(137)], None, merging=(0, 1)),
    "SIGSEGV at its exit, and the others hang": Case([RUNNING, exited(139)], End.lost, 1, more=LATER, merging=(1,)),
    "SIGSEGV at its exit, and the others ended of it": Case(
        [exited(1), exited(139)], End.lost, 1, [PEER, None], merging=(1,)
    ),
    "a bug while merging": Case([RUNNING, exited(1)], End.failed, 1, [None, BUG], merging=(0,)),
    "asked to stop, and one still ends": Case([exited(0), RUNNING], None, None, [EndKind.stopped, None]),
}


def outcome_of(case: Case) -> Outcome | None:
    ends = case.ends or [None] * len(case.answers)
    phases = {None: Phase.extracting, EndKind.stopped: Phase.stopped}
    statuses = [
        HostStatus(
            host=host,
            attempt=ATTEMPT,
            phase=Phase.merging if host in case.merging else phases.get(end, Phase.failed),
            steps=5,
            error=f"error of host {host}" if end else None,
            end=end,
        )
        if host not in case.mute
        else None
        for host, end in enumerate(ends)
    ]
    answers = {host: Answer(host, *answer) for host, answer in enumerate(case.answers) if answer is not None}
    settings = {"node": "READY", "worried_s": 10, "stalled": False} | case.more
    settings["node"] = NodeView(settings["node"], settings.pop("sickness", ""))
    return judge(statuses, answers, attempt=ATTEMPT, **settings)


@pytest.mark.parametrize("name", CASES)
def test_outcomes(name: str) -> None:
    case = CASES[name]
    outcome = outcome_of(case)
    assert (outcome.end if outcome else None) == case.end
    assert (outcome.cause.host if outcome and outcome.cause else None) == case.blamed


@pytest.mark.parametrize("kind", list(EndKind))
def test_only_a_user_error_is_one_and_only_a_bad_machine_needs_another_pod(kind: EndKind) -> None:
    outcome = outcome_of(Case([RUNNING, exited(1)], None, ends=[None, kind], more=LATER))
    assert bool(outcome and outcome.cause and outcome.cause.user_error) == (kind is USER)
    assert bool(outcome and outcome.needs_new_pod) == (kind is MACHINE)


@pytest.mark.parametrize("code", [135, 139])
def test_memory_that_fails_at_the_exit_of_a_host_is_no_reason_for_another_pod(code: int) -> None:
    for merging in ((), (1,)):
        outcome = outcome_of(Case([RUNNING, exited(code)], End.lost, more=LATER, merging=merging))
        assert outcome is not None
        assert outcome.needs_new_pod is not bool(merging)


def test_an_exit_code_beyond_the_signals_is_shown_as_it_is() -> None:
    outcome = outcome_of(Case([RUNNING, exited(255)], None))
    assert outcome is not None
    assert outcome.cause is not None
    assert outcome.cause.reason == "ended with exit code 255 and no message"


def test_a_host_out_of_reach_needs_another_pod() -> None:
    outcome = outcome_of(CASES["unreachable"])
    assert outcome is not None
    assert outcome.needs_new_pod


def test_the_last_lines_are_those_of_the_host_to_blame() -> None:
    case = Case([exited(1, "other"), exited(1, "one\n\nValueError: bad")], End.failed, ends=[PEER, BUG])
    outcome = outcome_of(case)
    assert outcome is not None
    assert outcome.lines == ["one", "ValueError: bad"]
