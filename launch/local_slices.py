"""Several slices on this machine: each a pod of processes with a cluster of its own, on one run folder."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from rich.console import Console

from launch.cause import first_cause
from launch.host_commands import HostCommand, host_commands, new_attempt
from launch.local import POLL_S, SETTLE_S, LocalPod, coordinator_address, say_what_follows, stopped_by_signals
from launch.local_job import (
    LOGS,
    HostFailed,
    failed_hosts,
    plain_log,
    planned_commands,
    report_failure,
    show_summary,
    stopped_host,
    summary_if_complete,
)
from launch.merging import completed
from launch.slices import Next, SliceJob, after_loss, has_slices, slice_jobs
from launch.view import progress, summary
from pod_job.commands.command_line import BAD_INPUT, FAILED
from pod_job.config.schema import JobConfig
from pod_job.planning.inputs import Inputs, read_inputs
from pod_job.planning.prompt_survey import survey_run
from pod_job.planning.task_index import ESTIMATED
from pod_job.run_folder.layout import committed
from pod_job.run_folder.metadata import read_any
from pod_job.run_folder.slices import report_folder
from pod_job.run_folder.status import HostStatus, read_status
from pod_job.storage.folder import Folder
from pod_job.terminal import SafeConsole


@dataclass
class LocalSlice:
    """A slice while it runs. `done`: it has ended with the run; `past`: batches of its earlier starts."""

    job: SliceJob
    reports: Folder
    attempt: str = ""
    pod: LocalPod | None = None
    ended: dict[int, int] = field(default_factory=dict)
    settled_at: float | None = None
    past: int = 0
    done: bool = False

    def start(self) -> None:
        """Starts its hosts."""
        self.past += sum(status.batches for status in self.statuses() if status is not None)
        self.attempt, self.ended, self.settled_at = new_attempt(), {}, None
        self.pod = LocalPod(commands_of(self.job, self.attempt), LOGS / self.attempt)
        self.pod.__enter__()

    def end(self) -> None:
        """Ends its hosts, if any run."""
        if self.pod is not None:
            self.pod.end()
            self.pod = None

    def statuses(self) -> list[HostStatus | None]:
        """Returns the statuses of its hosts in this start."""
        hosts = range(self.job.config.pod.hosts)
        return [read_status(self.reports, host, self.attempt) if self.attempt else None for host in hosts]

    def failure(self) -> HostFailed | None:
        """Returns why it has ended before the run, and None while it runs or when it is done; then no host runs."""
        if self.pod is None:
            return None
        self.ended |= self.pod.exits()
        now = time.monotonic()
        if self.settled_at is None and any(self.ended.values()):
            self.settled_at = now + SETTLE_S
        if len(self.ended) < self.job.config.pod.hosts and (self.settled_at is None or now < self.settled_at):
            return None
        logs = self.pod.logs
        if any(self.ended.values()):
            running = set(range(len(logs))) - self.ended.keys()
            cause = first_cause(failed_hosts(self.ended, self.reports, self.attempt, logs), running)
        else:
            cause = stopped_host(self.statuses())
        self.end()
        self.done = cause is None
        return None if cause is None else HostFailed(cause, logs[cause.host])


def commands_of(job: SliceJob, attempt: str) -> list[HostCommand]:
    return host_commands(job.config, job.overrides, coordinator_address(job.config.pod.port), attempt)


def planned_here(config: JobConfig, overrides: Sequence[str]) -> list[HostCommand]:
    """Returns the hosts' commands as `run` would start them on this machine now, of all slices."""
    if not has_slices(config):
        return planned_commands(config, overrides)
    return [command for job in slice_jobs(config, overrides) for command in commands_of(job, new_attempt())]


def run_slices_here(config: JobConfig, overrides: Sequence[str], failures: int, as_json: bool) -> int:
    """Runs the slices on this machine and prints the summary; returns the exit status.

    A slice that is lost is started again, `failures` times in all; without it the others go on and take its batches.
    """
    screen, began = SafeConsole(stderr=True), time.monotonic()
    inputs = read_inputs(config, reading=ESTIMATED)
    if (complete := summary_if_complete(config, inputs.folder, began, screen)) is not None:
        return show_summary(complete, as_json)
    survey_run(inputs)
    slices = [LocalSlice(job, report_folder(inputs.folder, job.name)) for job in slice_jobs(config, overrides)]
    failure = follow_slices(slices, inputs, failures, screen)
    metadata = read_any(inputs.folder) if any(one.done for one in slices) else None
    if metadata is None or failure is not None:
        return BAD_INPUT if failure is not None and failure.cause.user_error else FAILED
    statuses = [status for one in slices for status in one.statuses() if status is not None]
    job_summary = summary.summarise(config, metadata, statuses, time.monotonic() - began, LOGS)
    return show_summary(job_summary, as_json)


def follow_slices(slices: Sequence[LocalSlice], inputs: Inputs, failures: int, screen: Console) -> HostFailed | None:
    """Starts all slices and follows them until none runs; returns what ended the run before it was complete, if so."""
    before, lost = len(committed(inputs.folder)), 0
    with ExitStack() as pods, stopped_by_signals(), progress.Screen(screen) as bars:
        for one in slices:
            pods.callback(one.end)
        pods.push(say_what_follows)
        for one in slices:
            one.start()
        while any(one.pod is not None for one in slices):
            for one in slices:
                failure = one.failure()
                if failure is None:
                    continue
                report_failure(failure, screen, f"slice {one.job.name}, ")
                if failure.cause.lost and completed(inputs, plain_log(screen)):
                    one.done = True
                    continue
                lost += not failure.cause.asked
                step = after_loss(failure.cause.lost, failure.cause.asked, lost, failures)
                if step is Next.end:
                    return failure
                if step is Next.restart:
                    screen.print(f"starting it again; {lost} of {failures} cloud.failures used", highlight=False)
                    one.start()
            statuses = [status for one in slices for status in one.statuses()]
            bars.show(progress.slice_bars(statuses, inputs.total_batches, before + sum(one.past for one in slices)))
            time.sleep(POLL_S)
    return None
