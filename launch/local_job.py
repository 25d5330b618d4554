"""The job on a pod of this machine: hosts started and followed to their end, started again when they were lost."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from launch.cause import Cause, HostExit, first_cause, tail
from launch.host_commands import HostCommand, host_commands, new_attempt
from launch.local import LocalPod, coordinator_address, follow, stopped_by_signals
from launch.merging import completed
from launch.view import progress, summary
from launch.view.summary import Summary, TrainingSummary
from launch.view.timed_log import Log
from pod_job.commands.command_line import BAD_INPUT, DONE, FAILED
from pod_job.config.schema import JobConfig, PodKind
from pod_job.planning.task_index import ESTIMATED
from pod_job.planning.training import is_complete, look_at_prompts, read_job_inputs
from pod_job.run_folder.slices import report_folder
from pod_job.run_folder.status import EndKind, HostStatus, Phase, read_status
from pod_job.storage.folder import Folder
from pod_job.terminal import SafeConsole

LOGS = Path("runs/logs")
LINES_SHOWN = 15


class HostFailed(Exception):
    """A host ended with a failure: `cause` is the first of them, `log` what it printed."""

    def __init__(self, cause: Cause, log: Path) -> None:
        super().__init__(f"host {cause.host}: {cause.reason}")
        self.cause = cause
        self.log = log


def planned_commands(config: JobConfig, overrides: Sequence[str]) -> list[HostCommand]:
    """Returns the hosts' commands as `run` would start them now; on a local pod the coordinator's port is free."""
    coordinator = coordinator_address(config.pod.port) if config.pod.kind is PodKind.local else ""
    return host_commands(config, overrides, coordinator, new_attempt())


def run_here(config: JobConfig, overrides: Sequence[str], failures: int, as_json: bool) -> int:
    """Runs the job on this machine and prints its summary; returns the exit status.

    Hosts that were lost without a reason are started again, `failures` times at most.
    """
    screen = SafeConsole(stderr=True)
    lost = 0
    while True:
        try:
            job_summary = run_pod(config, overrides, screen)
            break
        except HostFailed as failure:
            report_failure(failure, screen)
            lost += 1
            if not failure.cause.lost or lost > failures:
                return BAD_INPUT if failure.cause.user_error else FAILED
            screen.print(f"starting again; {lost} of {failures} cloud.failures used", highlight=False)
    return show_summary(job_summary, as_json)


def show_summary(job_summary: Summary | TrainingSummary, as_json: bool) -> int:
    """Prints the summary; returns the exit status."""
    if as_json:
        print(summary.as_json(job_summary))
    else:
        summary.show(job_summary, SafeConsole())
    return DONE if job_summary.complete else FAILED


def run_pod(config: JobConfig, overrides: Sequence[str], screen: Console) -> Summary | TrainingSummary:
    """Runs the job on a local pod to its end, if it is not complete.

    Raises HostFailed, JobError or Stopped; no host outlives the call.
    """
    started = time.monotonic()
    inputs = read_job_inputs(config, reading=ESTIMATED)
    if (complete := summary_if_complete(config, inputs.folder, started, screen)) is not None:
        return complete
    look_at_prompts(inputs)
    attempt = new_attempt()
    logs = LOGS / attempt
    commands = host_commands(config, overrides, coordinator_address(config.pod.port), attempt)
    reports = report_folder(inputs.folder, config.pod.slice)
    try:
        statuses = watch_hosts(commands, reports, inputs.total_batches, attempt, logs, screen)
    except HostFailed as failure:
        if not (failure.cause.lost and completed(inputs, plain_log(screen))):
            raise
        report_failure(failure, screen)
        statuses = reported(reports, len(commands), attempt)
    return summary.summary_of(config, inputs.folder, statuses, time.monotonic() - started, logs)


def summary_if_complete(
    config: JobConfig, folder: Folder, began: float, screen: Console
) -> Summary | TrainingSummary | None:
    """Returns the summary of a run that is finished already, and says so; None where something is left to do."""
    if not is_complete(folder, config.mode):
        return None
    screen.print(f"{config.storage.run_dir} is already complete", highlight=False)
    return summary.summary_of(config, folder, [], time.monotonic() - began, f"{folder.url}/logs")


def watch_hosts(
    commands: Sequence[HostCommand], folder: Folder, batches: int, attempt: str, logs: Path, screen: Console
) -> list[HostStatus]:
    """Starts the hosts and shows their progress until all are done; returns their last statuses.

    Raises HostFailed, after the other hosts have been ended.
    """

    hosts = len(commands)
    with stopped_by_signals(), LocalPod(commands, logs) as pod, progress.Screen(screen) as bars:
        ended = follow(pod, lambda: bars.show(progress.bars(read_statuses(folder, hosts, attempt), batches)))
        if any(ended.values()):
            running = set(range(hosts)) - ended.keys()
            cause = first_cause(failed_hosts(ended, folder, attempt, pod.logs), running)
            raise HostFailed(cause, pod.logs[cause.host])
    final = reported(folder, hosts, attempt)
    if cause := stopped_host(final):
        raise HostFailed(cause, pod.logs[cause.host])
    return final


def read_statuses(folder: Folder, hosts: int, attempt: str) -> list[HostStatus | None]:
    """Returns the hosts' latest statuses in this attempt, None for a host that has not reported."""
    return [read_status(folder, host, attempt) for host in range(hosts)]


def reported(folder: Folder, hosts: int, attempt: str) -> list[HostStatus]:
    """Returns the latest statuses of the hosts that have reported in this attempt."""
    return [status for status in read_statuses(folder, hosts, attempt) if status is not None]


def plain_log(screen: Console) -> Log:
    """Returns what prints a line as it is."""
    return lambda line: screen.print(line, highlight=False, markup=False, soft_wrap=True)


def stopped_host(statuses: Sequence[HostStatus | None]) -> Cause | None:
    """Returns the first host that was asked to stop before the run was done; None where none was."""
    stopped = next((status for status in statuses if status is not None and status.phase is Phase.stopped), None)
    return stopped and Cause(stopped.host, f"was asked to stop ({stopped.error})", EndKind.stopped)


def failed_hosts(ended: Mapping[int, int], folder: Folder, attempt: str, logs: Sequence[Path]) -> list[HostExit]:
    """Returns the hosts that failed, in the order of `ended`, with their statuses and the ends of their logs."""
    return [
        HostExit(host, code, read_status(folder, host, attempt), tail(logs[host]))
        for host, code in ended.items()
        if code
    ]


def report_failure(failure: HostFailed, screen: Console, where: str = "") -> None:
    """Prints the first cause in one line; for a bug, the end of the host's log below it; then the log's path."""
    log = plain_log(screen)
    log(f"error: {where}{failure}")
    if not failure.cause.user_error:
        for line in tail(failure.log)[-LINES_SHOWN:]:
            log(f"  {line}")
    log(f"its log: {failure.log}")
