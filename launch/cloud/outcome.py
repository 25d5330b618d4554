"""Outcome of a run on a pod, judged on what hosts and the API report: whether it ended, how, and who is to blame."""

import base64
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from launch.cause import SIGNALS, Cause, HostExit, first_cause
from launch.cloud.pods import DEAD
from launch.cloud.remote import Answer, NoAnswer, Refused
from pod_job.run_folder.status import EndKind, HostStatus, Phase

# From the first sign of trouble: jax ends the others within its heartbeat of 30 s after a host has died.
SETTLE_S = 60.0
# From the first silence of hosts on a READY pod, none of which can be reached either.
UNREACHED_S = 600.0
UNREACHED = "cannot be reached over ssh"
OPEN_SSH = "a firewall must let port 22 in (docs/launching.md, Networks)"
NO_KEY = re.compile(r"Permission denied \(publickey", re.IGNORECASE)
# Errors of ssh that are of the names or keys that the user gave, so that waiting does not help.
WRONG_SSH = re.compile(
    r"Permission denied|Host key verification failed|Could not resolve hostname|REMOTE HOST IDENTIFICATION",
    re.IGNORECASE,
)


class End(Enum):
    """How a run on a pod ended.

    `stopped`: it was asked to. `failed`: a host reports a bug or a user's error, which the next start would meet too.
    `lost`: hosts died, hang, cannot be reached or have a bad machine, so another start may do. `limit`: it has cost
    what it may.
    """

    done = "done"
    stopped = "stopped"
    failed = "failed"
    lost = "lost"
    preempted = "preempted"
    limit = "limit"


@dataclass(frozen=True)
class NodeView:
    """State of a pod's node, GONE where the API lists none, and its health where that is bad."""

    state: str
    sickness: str = ""

    @property
    def ready(self) -> bool:
        return self.state == "READY"


@dataclass(frozen=True)
class Outcome:
    """`cause` and the end of that host's log where a host is to blame; `node`: the node's state.

    `limit`: the limit that was reached, for that end alone. `unreached`: no host answers, so that nothing can be said
    about any of them.
    """

    end: End
    cause: Cause | None = None
    lines: Sequence[str] = ()
    node: NodeView = NodeView("READY")
    limit: str = ""
    unreached: bool = False

    @property
    def needs_new_pod(self) -> bool:
        """Returns whether a machine is bad or out of reach: the next start on this pod would end as this one."""
        bad = self.cause is not None and self.cause.bad_machine
        return self.end is End.lost and not self.unreached and (bad or bool(self.node.sickness))


def judge(
    statuses: Sequence[HostStatus | None],
    answers: Mapping[int, Answer],
    node: NodeView,
    attempt: str,
    worried_s: float,
    stalled: bool,
) -> Outcome | None:
    """Returns the outcome, or None while it is too early to tell.

    Args:
        answers: of the script `probe`, by host; empty when the hosts of a pod that is not READY were not asked.
        worried_s: for how long something has seemed wrong.
        stalled: whether no host has made progress for too long.
    """
    all_exits = [host_exit(host, status, answers.get(host), attempt) for host, status in enumerate(statuses)]
    exits = [exit for exit in all_exits if exit is not None]
    cause, lines = None, ()
    if exits:
        cause = first_cause(exits, running_hosts(statuses, all_exits))
        lines = next((exit.lines for exit in exits if exit.host == cause.host), ())
    if cause is not None and not cause.lost:
        return Outcome(End.failed, cause, lines, node)
    # A list may lack a pod that answers, and a state may be none that is known here.
    if not node.ready and ((node.state in DEAD and node.state != "GONE") or worried_s > 0):
        return Outcome(End.preempted, node=node)
    if cause is not None and cause.certain:
        return Outcome(End.lost, cause, lines, node)
    unreachable = [host for host in range(len(statuses)) if answers and host not in answers]
    if worried_s > SETTLE_S and unreachable:
        return out_of_reach(unreachable[0])
    if cause is not None and (worried_s > SETTLE_S or len(exits) == len(statuses)):
        return Outcome(End.lost, cause, lines, node)
    if worried_s > UNREACHED_S and not answers:
        return Outcome(
            End.lost,
            Cause(0, f"{UNREACHED} for {worried_s:.0f} s, nor can any other host", EndKind.bad_machine),
            node=node,
        )
    if stalled:
        slowest = min(range(len(statuses)), key=lambda host: progress_of(statuses[host]))
        return Outcome(End.lost, Cause(slowest, "makes no progress, nor does any other host"), node=node)
    return None


def out_of_reach(host: int) -> Outcome:
    """Returns the outcome of a host that ssh cannot reach while it reaches others."""
    return Outcome(End.lost, Cause(host, UNREACHED, EndKind.bad_machine))


def not_started(error: NoAnswer | Refused, node: NodeView, before: Outcome | None = None) -> Outcome:
    """Returns the outcome of a start that hosts did not answer or could not do.

    Args:
        before: the outcome of the start before this one: no host of a READY pod reached twice is a pod to replace.
    """
    if not node.ready:
        return Outcome(End.preempted, node=node)
    if isinstance(error, Refused):
        if error.by_all:
            return Outcome(End.failed, Cause(error.host, error.detail, EndKind.user_error), node=node)
        kind = EndKind.lost_peer if error.earlier else EndKind.bad_machine
        return Outcome(End.lost, Cause(error.host, error.detail, kind), node=node)
    host = error.silent[0]
    if error.by_hand and WRONG_SSH.search(error.reason):
        fix = f"`{error.by_hand}` must work on this machine without a question"
        return Outcome(End.failed, Cause(host, f"{error.reason}: {fix}", EndKind.user_error), node=node)
    if error.others_answered:
        return replace(out_of_reach(host), node=node)
    if NO_KEY.search(error.reason):
        fix = "gcloud's key is not accepted there; see `pod-job doctor`, and your role roles/compute.osAdminLogin"
        return Outcome(End.failed, Cause(host, f"{error.reason}: {fix}", EndKind.user_error), node=node)
    again = before is not None and before.unreached
    fix = f"see whether `{error.by_hand}` works" if error.by_hand else OPEN_SSH
    reason = f"{UNREACHED}{' again' if again else ''}, nor can any other host: {error.reason}; {fix}"
    return Outcome(
        End.lost, Cause(host, reason, EndKind.bad_machine if again else None), node=node, unreached=not again
    )


def running_hosts(statuses: Sequence[HostStatus | None], exits: Sequence[HostExit | None]) -> list[int]:
    """Returns the hosts that neither failed nor report that they have ended."""
    return [
        host
        for host, (status, exit) in enumerate(zip(statuses, exits, strict=True))
        if exit is None and not (status is not None and status.phase.ended)
    ]


def host_exit(host: int, status: HostStatus | None, answer: Answer | None, attempt: str) -> HostExit | None:
    """Returns how a host failed, if it did: by its answer, else by its status."""
    if status is not None and status.phase is Phase.stopped:
        return None
    if answer is not None and answer.word == "EXITED" and answer.detail.split()[0] == attempt:
        _, code, *log = answer.detail.split()
        lines = base64.b64decode("".join(log)).decode(errors="replace").splitlines()
        signed = 128 - int(code) if int(code) - 128 in SIGNALS else int(code)
        return HostExit(host, signed, status, [line for line in lines if line.strip()]) if signed else None
    if answer is not None and answer.word in ("NONE", "EXITED"):
        return HostExit(host, -signal.SIGKILL, status)  # the machine was restarted
    if status is not None and status.phase is Phase.failed:
        return HostExit(host, None, status)
    return None


def progress_of(status: HostStatus | None) -> tuple[int, int]:
    return (-1, 0) if status is None else (list(Phase).index(status.phase), status.steps)
