"""How a run has ended, from what hosts and the API say: only what has no reason of its own may be tried again."""

import base64

import pytest

from launch.cloud.outcome import SETTLE_S, End, Outcome, judge
from launch.cloud.remote import Answer
from pod_job.run_folder.status import HostStatus, Phase

ATTEMPT = "20250101T000000Z-abcdef"
RUNNING = ("RUNNING", ATTEMPT)
LOST_PEER = "RuntimeError: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]"
UNHEALTHY = "tasks are unhealthy (stopped sending heartbeats):\n/job:jax_worker/replica:0/task:1"


def ended(code: int, log: str = "", attempt: str = ATTEMPT) -> tuple[str, str]:
    return "EXITED", f"{attempt} {code} {base64.b64encode(log.encode()).decode()}"


def speaks(host: int, phase: Phase = Phase.extracting, error: str | None = None, steps: int = 5) -> HostStatus:
    return HostStatus(host=host, attempt=ATTEMPT, phase=phase, steps=steps, error=error)


def judged(
    answers: list[tuple[str, str] | None],
    statuses: list[HostStatus] | None = None,
    node: str = "READY",
    worried_s: float = 10,
    stalled: bool = False,
) -> Outcome | None:
    heard = {host: Answer(host, *answer) for host, answer in enumerate(answers) if answer is not None}
    said = statuses or [speaks(host) for host in range(len(answers))]
    return judge(said, heard, node, ATTEMPT, worried_s, stalled)


CASES = {
    "all run": ([RUNNING, RUNNING], {}, None, None),
    "a traceback": ([RUNNING, ended(1, "Traceback\nValueError: bad")], {}, End.failed, 1),
    "a traceback while the pod goes": ([RUNNING, ended(1, "ValueError: bad")], {"node": "PREEMPTED"}, End.failed, 1),
    "the pod goes": ([RUNNING, ended(137)], {"node": "PREEMPTED"}, End.preempted, None),
    "the pod is gone": ([None, None], {"node": "GONE"}, End.preempted, None),
    "killed": ([ended(1, LOST_PEER), ended(137)], {}, End.lost, 1),
    "died of another that is not seen yet": ([ended(1, LOST_PEER), RUNNING], {}, None, None),
    "the same for long": ([ended(1, LOST_PEER), RUNNING], {"worried_s": SETTLE_S + 1}, End.lost, 0),
    "hung": ([ended(134, UNHEALTHY), RUNNING], {}, End.lost, 1),
    "restarted machine": ([RUNNING, ("NONE", "")], {}, End.lost, 1),
    "another attempt ended there": ([RUNNING, ended(0, attempt="earlier")], {}, End.lost, 1),
    "unreachable": ([RUNNING, None], {"worried_s": SETTLE_S + 1}, End.lost, 1),
    "unreachable for a moment": ([RUNNING, None], {}, None, None),
    "no progress": ([RUNNING, RUNNING], {"stalled": True}, End.lost, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_outcomes(name: str) -> None:
    answers, more, end, blamed = CASES[name]
    outcome = judged(answers, **more)
    assert (outcome.end if outcome else None) == end
    assert (outcome.cause.host if outcome and outcome.cause else None) == blamed


def test_a_user_error_is_told_from_a_bug_by_status_alone() -> None:
    failed = speaks(1, Phase.failed, "tasks.path=x does not exist; give a tasks file")
    outcome = judged([RUNNING, None], [speaks(0), failed])
    assert outcome is not None
    assert outcome.cause is not None
    assert (outcome.end, outcome.cause.user_error) == (End.failed, True)
    bug = judged([RUNNING, None], [speaks(0), speaks(1, Phase.failed, "KeyError: 'x'")])
    assert bug is not None
    assert bug.cause is not None
    assert (bug.end, bug.cause.user_error) == (End.failed, False)


def test_the_last_lines_are_those_of_the_host_to_blame() -> None:
    outcome = judged([ended(1, LOST_PEER), ended(1, "one\nValueError: bad")])
    assert outcome is not None
    assert outcome.lines == ["one", "ValueError: bad"]
