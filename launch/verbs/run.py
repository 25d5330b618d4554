"""The verb `run`: the whole job on a local pod, watched until the dataset is there or its first failure is known."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from launch.cause import Cause, Ended, first_cause, tail
from launch.cloud.job import run_in_cloud
from launch.host_commands import HostCommand, host_commands, new_attempt
from launch.local import LocalPod, coordinator_address, follow, stopped_by_signals
from launch.options import Options
from launch.verbs.plan import planned_commands
from launch.view import progress, summary
from launch.view.summary import Summary
from pod_job.config.load import load
from pod_job.config.schema import JobConfig, PodKind
from pod_job.host.status import HostStatus, Phase, read_status
from pod_job.planning.inputs import read_inputs
from pod_job.run_folder.layout import METADATA
from pod_job.storage.folder import Folder

LOGS = Path("runs/logs")
LINES_SHOWN = 15


class HostFailed(Exception):
    """A host ended with a failure: `cause` is the first of them, `log` what it printed."""

    def __init__(self, cause: Cause, log: Path) -> None:
        super().__init__(f"host {cause.host}: {cause.reason}")
        self.cause = cause
        self.log = log


def run(overrides: Sequence[str], options: Options) -> int:
    """Runs the job, on this machine or, for pod.kind=tpu, on a pod in the cloud; the summary goes to stdout, progress
    and errors to stderr.

    Returns 0, or for a failed host 2 where the user can mend it (a JobError on the host) and 1 where not. Raises
    JobError for input that fails before any host is started, and Stopped when a signal ended the run.
    """
    config = load(overrides)
    if config.pod.kind is PodKind.tpu:
        return run_in_cloud(config, overrides, options)
    return run_here(config, overrides, options, failures=0)


def run_here(config: JobConfig, overrides: Sequence[str], options: Options, failures: int) -> int:
    """The same on this machine; hosts that were lost and left no reason are started again, `failures` times at most."""
    if options.dry_run:
        print(*planned_commands(config, overrides), sep="\n")
        return 0
    screen = Console(stderr=True)
    lost = 0
    while True:
        try:
            done = run_pod(config, overrides, screen)
            break
        except HostFailed as failure:
            report(failure, screen)
            lost += 1
            if not failure.cause.lost or lost > failures:
                return 2 if failure.cause.user_error else 1
            screen.print(f"starting again; {lost} of {failures} cloud.failures used", highlight=False)
    if options.as_json:
        print(json.dumps(dataclasses.asdict(done), indent=2))
    else:
        summary.show(done, Console())
    return 0 if done.complete else 1


def run_pod(config: JobConfig, overrides: Sequence[str], screen: Console) -> Summary:
    """Runs the job on a local pod to its end. Raises HostFailed, JobError or Stopped; no host outlives the call."""
    started = time.monotonic()
    inputs = read_inputs(config)
    attempt = new_attempt()
    logs = LOGS / attempt
    commands = host_commands(config, overrides, coordinator_address(config.pod.port), attempt)
    statuses = watch(commands, inputs.folder, inputs.total_batches, attempt, logs, screen)
    metadata = json.loads(inputs.folder.read(METADATA))
    return summary.summarise(config, metadata, statuses, time.monotonic() - started, logs)


def watch(
    commands: Sequence[HostCommand], folder: Folder, batches: int, attempt: str, logs: Path, screen: Console
) -> list[HostStatus]:
    """Starts the hosts and shows their progress until all are done; returns their last statuses.

    Raises HostFailed, after the other hosts have been ended.
    """

    def statuses() -> list[HostStatus | None]:
        return [read_status(folder, host, attempt) for host in range(len(commands))]

    with stopped_by_signals(), LocalPod(commands, logs) as pod, progress.Screen(screen) as shown:
        ended = follow(pod, lambda: shown.show(progress.bars(statuses(), batches)))
        if any(ended.values()):
            cause = first_cause(failures(ended, folder, attempt, pod.logs))
            raise HostFailed(cause, pod.logs[cause.host])
    last = [status for status in statuses() if status is not None]
    if asked := next((status for status in last if status.phase is Phase.stopped), None):
        raise HostFailed(
            Cause(asked.host, f"was asked to stop ({asked.error})", user_error=False), pod.logs[asked.host]
        )
    return last


def failures(ended: Mapping[int, int], folder: Folder, attempt: str, logs: Sequence[Path]) -> list[Ended]:
    """The hosts that failed, in the order of `ended`, with what each said."""
    found = []
    for host, code in ended.items():
        if code:
            status = read_status(folder, host, attempt)
            error = status.error if status else None
            arrived = status is not None and status.phase is not Phase.checking
            found.append(Ended(host, code, arrived, error, tail(logs[host])))
    return found


def report(failure: HostFailed, screen: Console) -> None:
    """The first cause in one line; for a bug, the end of the host's log below it; then where the whole log is."""
    screen.print(f"error: {failure}", highlight=False, markup=False, soft_wrap=True)
    if not failure.cause.user_error:
        for line in tail(failure.log)[-LINES_SHOWN:]:
            screen.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    screen.print(f"its log: {failure.log}", highlight=False, markup=False, soft_wrap=True)
