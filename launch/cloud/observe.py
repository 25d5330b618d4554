"""Follows a job on a pod in the cloud to its end.

In: the hosts' status files, the node's state and, where something seems wrong, the answers of all hosts over ssh.
Out: one `Outcome`.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from launch import clock
from launch.cause import Cause
from launch.cloud.calls import from_network
from launch.cloud.gcloud import Reach
from launch.cloud.limits import Limit
from launch.cloud.outcome import End, NodeView, Outcome, judge
from launch.cloud.pods import find_pods
from launch.cloud.remote import Answer, ask_briefly, script
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError, first_line
from pod_job.run_folder.slices import report_folder, slice_names
from pod_job.run_folder.status import EndKind, HostStatus, Phase, latest_start, read_status
from pod_job.storage.folder import Folder

POLL_S = 2.0
NODE_EVERY_S = 30.0  # between two looks at the node's state
WORRIED_EVERY_S = 5.0  # the same while something seems wrong
SILENT_S = 40.0  # hosts rewrite their status more often than that
PROBE_TIMEOUT_S = 45.0
ANSWER_LOG_BYTES = 2400  # of a log; an answer must stay below 4096 bytes to arrive in one piece
READERS = 16

STOPPING_S = 60.0  # from the limit of the run, at which hosts stop by themselves
PREEMPTION_S = 40.0  # from the notice until the node is gone
BLIND_S, BLIND_AGAIN_S = 600.0, 3600.0  # without a look at the job that succeeded
SHOW_AGAIN_S = 300.0  # the same reason
NO_CREDENTIALS = re.compile(
    r"auth login|reauth|invalid_grant|credential|unauthenticated|access token|\b401\b", re.IGNORECASE
)
LOG_IN = "log in, `gcloud auth login && gcloud auth application-default login`"

Statuses = Sequence[HostStatus | None]


@dataclass(frozen=True)
class RunningJob:
    """A job on a pod: how its hosts are reached, the folder in which they report, and the batches of its whole run.

    `complete`: whether the run is complete. `ends_at`: moment of clock.monotonic() at which the limit of the run is
    reached, if it has one. `stays`: what exists, its price and the command that deletes it, in one line.
    """

    reach: Reach
    hosts: int
    folder: Folder
    attempt: str
    batches: int
    complete: Callable[[], bool]
    limit: Limit | None = None
    ends_at: float = float("inf")
    stays: str = ""

    def statuses(self) -> list[HostStatus | None]:
        return read_all(self.folder, self.hosts, self.attempt)


def read_all(folder: Folder, hosts: int, attempt: str) -> list[HostStatus | None]:
    """Returns the hosts' latest statuses in this attempt, None for a host that has not reported."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda host: read_status(folder, host, attempt), range(hosts)))


def latest_statuses(folder: Folder, config: JobConfig) -> dict[str | None, list[HostStatus | None]]:
    """Returns slice -> the statuses of its latest start; None -> those of a run on one pod, or before any start."""
    statuses: dict[str | None, list[HostStatus | None]] = {}
    for name in slice_names(folder) or [None]:
        reports = report_folder(folder, name)
        latest = latest_start(reports, config.pod.hosts)
        statuses[name] = (
            [None] * config.pod.hosts if latest is None else read_all(reports, latest.hosts, latest.attempt)
        )
    return statuses


def follow(job: RunningJob, stall_s: float, show: Callable[[Statuses], None], log: Log) -> Outcome:
    """Returns when the attempt is done, has failed, has lost a host, its pod is no more, or a limit is reached.

    A network that is away for a while, or a laptop asleep, only delays it; so do credentials that expire, until they
    are renewed: what stays meanwhile, and costs, is said after BLIND_S.

    Args:
        stall_s: for how long no host may make progress.
        show: called with the statuses at each look.
    """
    liveness, sight = Liveness(job.hosts), Sight(job.stays)
    looked = worried_since = clock.monotonic()
    seen = NodeView("READY")
    while True:
        try:
            statuses = job.statuses()
            show(statuses)
            phases = {None if status is None else status.phase for status in statuses}
            if phases == {Phase.done}:
                return Outcome(End.done)
            if phases <= {Phase.done, Phase.stopped}:
                return stopped(job.reach, statuses)
            if job.limit is not None and clock.monotonic() > job.ends_at + STOPPING_S:
                return Outcome(End.limit, limit=job.limit.reason)
            liveness.update(statuses)
            failed = Phase.failed in phases
            stalled = liveness.without_progress_s() > stall_s
            worried = failed or stalled or liveness.silent_s() > SILENT_S
            now = clock.monotonic()
            worried_since = worried_since if worried else now
            if now - looked > (WORRIED_EVERY_S if worried else NODE_EVERY_S):
                looked = now
                node = node_view(job.reach)
                sight.clear()
                if node.sickness and node != seen:
                    log(f"{job.reach.name} is {node.sickness}; going on while its hosts do")
                seen = node
                answers = probe(job.reach) if worried and node.ready else {}
                if answers:  # hosts may have ended, and said why, since their statuses were read
                    statuses = job.statuses()
                outcome = judge(statuses, answers, node, job.attempt, now - worried_since, stalled)
                if outcome is not None:
                    return outcome
                if worried and job.complete():
                    return Outcome(End.done)  # what is wrong is at the exit of hosts
        except Exception as error:
            if not (isinstance(error, JobError) or from_network(error)):
                raise
            sight.lost(first_line(error), log)
        clock.sleep(POLL_S)


def stopped(reach: Reach, statuses: Statuses) -> Outcome:
    """Returns the outcome of hosts that were asked to stop: by a preemption, if the node goes now, else by a person."""
    deadline = clock.monotonic() + PREEMPTION_S
    while (node := node_view(reach)).ready and clock.monotonic() < deadline:
        clock.sleep(POLL_S)
    host, reason = next((status.host, status.error) for status in statuses if status is not None and status.error)
    cause = Cause(host, f"was asked to stop ({reason})", EndKind.stopped)
    return Outcome(End.stopped, cause) if node.ready else Outcome(End.preempted, node=node)


def node_view(reach: Reach, patience_s: float = 0.0) -> NodeView:
    """Returns the state of the pod in its zone; READY of the user's own hosts. JobError: no answer for `patience_s`."""
    if reach.hosts:
        return NodeView("READY")
    pod = next((pod for pod in find_pods(reach.name, reach.project, patience_s) if pod.zone == reach.zone), None)
    return NodeView("GONE") if pod is None else NodeView(pod.state, pod.health if pod.unhealthy else "")


def probe(reach: Reach) -> dict[int, Answer]:
    """Returns the answers to `probe.sh` of the hosts that can be reached over ssh."""
    return ask_briefly(reach, script("probe", {"TAIL": str(ANSWER_LOG_BYTES)}), PROBE_TIMEOUT_S)


class Sight:
    """Times without a look at the job that succeeded; says what goes on costing, and how to log in again."""

    def __init__(self, stays: str) -> None:
        self.stays = stays
        self.clear()

    def clear(self) -> None:
        """Takes note of a look that succeeded."""
        self.since = clock.monotonic()
        self.shown, self.shown_at = "", float("-inf")
        self.due = self.since + BLIND_S

    def lost(self, reason: str, log: Log) -> None:
        """Logs a look that failed: a reason when it is new, and what stays after BLIND_S and from time to time."""
        now = clock.monotonic()
        if reason != self.shown or now - self.shown_at > SHOW_AGAIN_S:
            self.shown, self.shown_at = reason, now
            log(f"{reason}; looking again")
        if now >= self.due:
            self.due = now + BLIND_AGAIN_S
            fix = LOG_IN if NO_CREDENTIALS.search(reason) else "see to this machine's network"
            unseen = f"not seen for {(now - self.since) / 60:.0f} minutes ({reason[:120]})"
            log(f"{unseen}: {self.stays}; or {fix}: it goes on")


class Liveness:
    """Times without news of the hosts, by this machine's clock alone: the hosts' clocks may differ."""

    def __init__(self, hosts: int) -> None:
        now = clock.monotonic()
        self.updated = [0.0] * hosts
        self.heard = [now] * hosts
        self.progress: list[tuple[Phase, int, int] | None] = []
        self.progressed = now

    def update(self, statuses: Statuses) -> None:
        """Takes in the statuses of now; a host that has ended counts as heard."""
        now = clock.monotonic()
        for host, status in enumerate(statuses):
            if status is not None and (status.updated != self.updated[host] or status.phase.ended):
                self.updated[host], self.heard[host] = status.updated, now
        progress = [(status.phase, status.steps, status.batches) if status else None for status in statuses]
        if progress != self.progress:
            self.progress, self.progressed = progress, now

    def silent_s(self) -> float:
        """Returns the seconds since the host was heard that has been silent longest."""
        return clock.monotonic() - min(self.heard)

    def without_progress_s(self) -> float:
        """Returns the seconds since any host entered a phase, made a step or committed a batch."""
        return clock.monotonic() - self.progressed
