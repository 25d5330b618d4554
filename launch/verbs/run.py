"""Runs the job; run again, it finishes what is missing.

On this machine it returns when the job has ended. On a TPU pod, which it creates if need be, it returns when all hosts
run, or with --follow when they have ended. The summary goes to stdout, progress and errors to stderr.
"""

import dataclasses
import json
import shlex
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from launch.cause import Cause, HostExit, first_cause, tail
from launch.cloud.job import finish, planned, start, until_end
from launch.host_commands import HostCommand, host_commands, new_attempt
from launch.job_config import config_to_start
from launch.local import LocalPod, coordinator_address, follow, stopped_by_signals
from launch.preflight import preflight_first
from launch.verbs.arguments import add_dry_run, add_follow, add_no_preflight
from launch.verbs.plan import planned_commands
from launch.view import progress, summary
from launch.view.summary import Summary
from launch.view.timed_log import timed_log
from pod_job.commands.command_line import BAD_INPUT, DONE, FAILED, Command, add_json, add_overrides
from pod_job.config.schema import JobConfig, PodKind
from pod_job.planning.inputs import read_inputs
from pod_job.run_folder.layout import METADATA
from pod_job.run_folder.status import EndKind, HostStatus, Phase, read_status
from pod_job.storage.folder import Folder

EXAMPLES = (
    "experiment=demo storage.run_dir=runs/first tasks.limit=8",
    "experiment=v5e64 storage.run_dir=gs://my-bucket/qwen 'cloud.zones=[us-west4-a]' --follow",
)
LOGS = Path("runs/logs")
LINES_SHOWN = 15


class HostFailed(Exception):
    """A host ended with a failure: `cause` is the first of them, `log` what it printed."""

    def __init__(self, cause: Cause, log: Path) -> None:
        super().__init__(f"host {cause.host}: {cause.reason}")
        self.cause = cause
        self.log = log


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    add_follow(parser)
    add_no_preflight(parser)
    add_dry_run(parser)
    add_json(parser, "the summary")


def run(options: Namespace) -> int:
    """Runs the job; returns DONE, or for a failed host BAD_INPUT where its input was at fault and FAILED where not.

    Raises JobError for input that fails before any host is started, and Stopped when a signal ended the run.
    """
    config = config_to_start(options.overrides)
    if config.pod.kind is PodKind.tpu:
        return run_in_cloud(config, options)
    return run_here(config, options, failures=0)


def run_in_cloud(config: JobConfig, options: Namespace) -> int:
    """Starts the job on its pod; with --follow stays until it ends."""
    if options.dry_run:
        print(*planned(config), sep="\n")
        return DONE
    began = time.monotonic()
    log = timed_log(began)
    if not options.no_preflight:
        preflight_first(options.overrides, log)
    started = start(config, options.overrides, log)
    if not options.follow:
        facts = {"pod": started.reach.name, "zone": started.reach.zone, "attempt": started.attempt}
        facts |= {"hosts": config.pod.hosts}
        print(json.dumps(facts) if options.json else next_steps(options.overrides))
        return DONE
    outcome = until_end(config, started, log, began)
    return finish(config, started, outcome, time.monotonic() - began, options.json)


def next_steps(overrides: Sequence[str]) -> str:
    """Returns full commands for the time while the job runs."""
    words = shlex.join(overrides)
    verbs = [("status", "how far it is"), ("logs", "what hosts log"), ("down", "delete the pod: until then it costs")]
    return "\n".join(f"pod-job {verb} {words}  # {purpose}" for verb, purpose in verbs)


def run_here(config: JobConfig, options: Namespace, failures: int) -> int:
    """Runs the job on this machine; starts hosts again that were lost without a reason, `failures` times at most."""
    overrides = options.overrides
    if options.dry_run:
        print(*planned_commands(config, overrides), sep="\n")
        return DONE
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
                return BAD_INPUT if failure.cause.user_error else FAILED
            screen.print(f"starting again; {lost} of {failures} cloud.failures used", highlight=False)
    if options.json:
        print(json.dumps(dataclasses.asdict(done), indent=2))
    else:
        summary.show(done, Console())
    return DONE if done.complete else FAILED


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
            running = set(range(len(commands))) - ended.keys()
            cause = first_cause(failures(ended, folder, attempt, pod.logs), running)
            raise HostFailed(cause, pod.logs[cause.host])
    last = [status for status in statuses() if status is not None]
    if asked := next((status for status in last if status.phase is Phase.stopped), None):
        cause = Cause(asked.host, f"was asked to stop ({asked.error})", EndKind.stopped)
        raise HostFailed(cause, pod.logs[asked.host])
    return last


def failures(ended: Mapping[int, int], folder: Folder, attempt: str, logs: Sequence[Path]) -> list[HostExit]:
    """Returns the hosts that failed, in the order of `ended`, with their statuses and the ends of their logs."""
    return [
        HostExit(host, code, read_status(folder, host, attempt), tail(logs[host]))
        for host, code in ended.items()
        if code
    ]


def report(failure: HostFailed, screen: Console) -> None:
    """The first cause in one line; for a bug, the end of the host's log below it; then where the whole log is."""
    screen.print(f"error: {failure}", highlight=False, markup=False, soft_wrap=True)
    if not failure.cause.user_error:
        for line in tail(failure.log)[-LINES_SHOWN:]:
            screen.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    screen.print(f"its log: {failure.log}", highlight=False, markup=False, soft_wrap=True)


COMMAND = Command("run", __doc__, EXAMPLES, add_arguments, run, "a bug or a lost host")
