"""What hosts and the API say about a run that worries, judged: has it ended, how, and which host is to blame."""

import base64
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from launch.cause import EXCEPTION, Cause, Ended, first_cause
from launch.cloud.remote import Answer
from pod_job.run_folder.status import HostStatus, Phase

# From the first sign of trouble: jax ends the others within its heartbeat of 30 s after a host has died.
SETTLE_S = 60.0


class End(Enum):
    """How a run on a pod ended. `stopped`: it was asked to. `failed`: a host says why. `lost`: hosts died, hang or
    cannot be reached and none says why, so another start may do.
    """

    done = "done"
    stopped = "stopped"
    failed = "failed"
    lost = "lost"
    preempted = "preempted"


@dataclass(frozen=True)
class Outcome:
    """`cause` and the end of that host's log where a host is to blame; `node`: the node's state."""

    end: End
    cause: Cause | None = None
    lines: Sequence[str] = ()
    node: str = "READY"


def judge(
    statuses: Sequence[HostStatus | None],
    answers: Mapping[int, Answer],
    node: str,
    attempt: str,
    worried_s: float,
    stalled: bool,
) -> Outcome | None:
    """The outcome, or None while it is too early to tell.

    Args:
        answers: of the script `probe`, by host; empty when the hosts were not asked.
        worried_s: for how long something has seemed wrong.
        stalled: whether no host has made progress for too long.
    """
    ends = [host_end(host, status, answers.get(host), attempt) for host, status in enumerate(statuses)]
    ended = [end for end in ends if end is not None]
    cause = first_cause(ended) if ended else None
    guilty = next((one for one in ended if cause is not None and one.host == cause.host), None)
    if cause is not None and guilty is not None and guilty.words and not guilty.died_of_another:
        return Outcome(End.failed, cause, guilty.lines, node)
    if node != "READY":
        return Outcome(End.preempted, node=node)
    lines = guilty.lines if guilty is not None else ()
    # Without a guilty one among the ended, those that ended name a host that hangs.
    if cause is not None and (guilty is None or not guilty.died_of_another):
        return Outcome(End.lost, cause, lines)
    unreachable = [host for host in range(len(statuses)) if answers and host not in answers]
    if worried_s > SETTLE_S and unreachable:
        return Outcome(End.lost, Cause(unreachable[0], "cannot be reached over ssh", user_error=False))
    if cause is not None and (worried_s > SETTLE_S or len(ended) == len(statuses)):
        return Outcome(End.lost, cause, lines)
    if stalled:
        slowest = min(range(len(statuses)), key=lambda host: progress_of(statuses[host]))
        return Outcome(End.lost, Cause(slowest, "makes no progress, nor does any other host", user_error=False))
    return None


def host_end(host: int, status: HostStatus | None, answer: Answer | None, attempt: str) -> Ended | None:
    """How a host ended, if it did: from its answer, else from its status when that says `failed`."""
    error = status.error if status is not None and status.phase is not Phase.stopped else None
    arrived = status is not None and status.phase is not Phase.checking
    if answer is not None and answer.word == "EXITED" and answer.detail.split()[0] == attempt:
        _, code, *tail = answer.detail.split()
        lines = base64.b64decode("".join(tail)).decode(errors="replace").splitlines()
        signed = 128 - int(code) if int(code) > 128 else int(code)
        return Ended(host, signed, arrived, error, [line for line in lines if line.strip()]) if signed else None
    if answer is not None and answer.word in ("NONE", "EXITED"):
        return Ended(host, -signal.SIGKILL, arrived, None, [])  # the machine was restarted
    if error is not None:
        return Ended(host, 1 if EXCEPTION.match(error) else 2, arrived, error, [])
    return None


def progress_of(status: HostStatus | None) -> tuple[int, int]:
    return (-1, 0) if status is None else (list(Phase).index(status.phase), status.steps)
