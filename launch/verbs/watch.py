"""Runs the job to its end, through preemptions; deletes the pod when the dataset is there or the job has failed.

A pod that was taken away, or has a machine that is bad or cannot be reached, is created again, and a job that lost
hosts is started again, as often as cloud.preemptions and cloud.failures allow. A host that reports a bug or bad input
ends the job: the next start would fail too. The verb keeps no state: interrupted and started again, it finds the pod,
the job and the batches that are done. On this machine (pod.kind=local) it starts lost hosts again.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from launch.cloud.capacity import take_down
from launch.cloud.job import finish, kill, planned, show_outcome, start, until_end
from launch.cloud.observe import RunningJob
from launch.cloud.outcome import End, Outcome, out_of_reach
from launch.cloud.pods import find_pods
from launch.cloud.remote import NoAnswer
from launch.cloud.request import pod_name, pod_spec
from launch.job_config import config_to_start
from launch.local_job import planned_commands, run_here
from launch.preflight import preflight_first
from launch.verbs.arguments import add_accept_identity, add_dry_run, add_no_preflight, start_overrides
from launch.view.timed_log import Log, timed_log
from pod_job.commands.command_line import DONE, Command, add_json, add_overrides
from pod_job.config.schema import JobConfig, PodKind
from pod_job.terminal import SafeConsole

EXAMPLES = (
    "experiment=v5e64 storage.run_dir=gs://my-bucket/qwen 'cloud.zones=[us-west4-a,us-east5-b]'",
    "experiment=demo storage.run_dir=runs/first",
)


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    add_accept_identity(parser)
    add_no_preflight(parser)
    add_dry_run(parser)
    add_json(parser, "the summary")


def watch(options: Namespace) -> int:
    overrides = start_overrides(options)
    config = config_to_start(overrides)
    if options.dry_run:
        print(*(planned(config) if config.pod.kind is PodKind.tpu else planned_commands(config, overrides)), sep="\n")
        return DONE
    if config.pod.kind is PodKind.local:
        return run_here(config, overrides, config.cloud.failures, options.json)
    pod_spec(config)
    began = time.monotonic()
    log = timed_log(began)
    if not options.no_preflight:
        preflight_first(overrides, log)
    lost = dict.fromkeys((End.preempted, End.lost), 0)
    budget = {End.preempted: config.cloud.preemptions, End.lost: config.cloud.failures}
    while True:
        started, outcome = run_once(config, overrides, log, began)
        if outcome.end not in lost:
            break
        lost[outcome.end] += 1
        log(f"{describe(outcome)}; {lost[outcome.end]} of {budget[outcome.end]} {BUDGETS[outcome.end]} used")
        if lost[outcome.end] > budget[outcome.end]:
            log(f"giving up: {BUDGETS[outcome.end]} is spent")
            break
        if outcome.end is End.lost:
            show_outcome(outcome, SafeConsole(stderr=True))
            # A host where the job cannot be ended is lost for the next start too.
            if outcome.needs_new_pod or started is None or not kill(started, log):
                delete_pods(config, log)
    delete_pods(config, log)
    return finish(config, started, outcome, time.monotonic() - began, options.json)


BUDGETS = {End.preempted: "cloud.preemptions", End.lost: "cloud.failures"}


def run_once(config: JobConfig, overrides: Sequence[str], log: Log, began: float) -> tuple[RunningJob | None, Outcome]:
    """Returns the job, None if ssh reaches some of its hosts only, and how it ended."""
    try:
        started = start(config, overrides, log)
    except NoAnswer as error:
        if not error.others_answered:
            raise
        return None, out_of_reach(error.silent[0])
    return started, until_end(config, started, log, began)


def describe(outcome: Outcome) -> str:
    if outcome.cause is not None:
        return f"host {outcome.cause.host} {outcome.cause.reason}"
    return f"the pod was taken away ({outcome.node})"


def delete_pods(config: JobConfig, log: Log) -> None:
    """Deletes the pods of the job, as a rule one."""
    take_down(find_pods(pod_name(config), config.cloud.project), config, log)


COMMAND = Command("watch", __doc__, EXAMPLES, add_arguments, watch, "a bug or a lost host")
