"""Runs the job to its end, through preemptions; deletes the pod when the dataset is there or the job has failed.

A pod that was taken away, or has a machine that is bad or cannot be reached, is created again, and a job that lost
hosts is started again, as often as cloud.preemptions, cloud.bad_machines and cloud.failures allow. A host that reports
a bug or bad input ends the job: the next start would fail too. The verb keeps no state: interrupted, it says what stays
and what that costs; started again, it finds the pod, the job and the batches that are done. On this machine
(pod.kind=local) it starts lost hosts again.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from launch import clock
from launch.cloud.budgets import Step, budgets_of
from launch.cloud.calls import PATIENCE_S
from launch.cloud.capacity import bring_up, take_down
from launch.cloud.checks import check_before_paid
from launch.cloud.environment import send_environment
from launch.cloud.job import (
    complete,
    describe,
    finish,
    kill,
    limit_of,
    planned,
    read_job,
    show_dataset,
    show_outcome,
    start,
    until_end,
)
from launch.cloud.observe import RunningJob, node_view
from launch.cloud.outcome import End, Outcome, not_started
from launch.cloud.owner import owning
from launch.cloud.pods import Pod, find_pods
from launch.cloud.remote import NoAnswer, Refused
from launch.cloud.request import pod_name, reach
from launch.cloud.uploads import Placed, with_uploads
from launch.job_config import config_to_start
from launch.local_job import run_here
from launch.local_slices import planned_here, run_slices_here
from launch.preflight import preflight_first
from launch.reference import send_reference
from launch.slices import has_slices
from launch.verbs.arguments import add_accept_identity, add_dry_run, add_no_preflight, start_overrides
from launch.view.timed_log import Log, timed_log
from pod_job.commands.command_line import DONE, Command, add_json, add_overrides
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import JobError
from pod_job.planning.inputs import Inputs
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
        print(*(planned(config) if config.pod.kind is PodKind.tpu else planned_here(config, overrides)), sep="\n")
        return DONE
    if config.pod.kind is PodKind.local:
        run_local = run_slices_here if has_slices(config) else run_here
        return run_local(config, overrides, config.cloud.failures, options.json)
    began = clock.monotonic()
    log = timed_log(began)
    check_before_paid(config, log)
    inputs = read_job(config)
    if not complete(inputs) and not options.no_preflight:
        preflight_first(overrides, log)
    if not complete(inputs):
        send_reference(inputs, overrides, log)
        send_environment(config, log)
    placed = Placed(config, overrides) if complete(inputs) else with_uploads(config, overrides, log)
    with owning(config, overrides, log):
        if complete(inputs):
            log(f"{config.storage.run_dir} is already complete")
            delete_pods(config, log)
            return show_dataset(config, inputs.folder, [], clock.monotonic() - began, options.json)
        try:
            job, outcome = run_to_the_end(placed.config, placed.overrides, inputs, log, began)
        except JobError as error:
            log(f"giving up: {error}")
            delete_pods(config, log)
            raise
        delete_pods(config, log)
    return finish(config, job, outcome, clock.monotonic() - began, options.json)


def run_to_the_end(
    config: JobConfig, overrides: Sequence[str], inputs: Inputs, log: Log, began: float
) -> tuple[RunningJob | None, Outcome]:
    """Returns the last start, None where no job was started, and how it ended."""
    budgets, outcome = budgets_of(config.cloud), None
    while True:
        limit = limit_of(config, inputs.folder, None)
        if limit is not None and limit.reached:
            return None, Outcome(End.limit, limit=limit.reason)
        pod = bring_up(config, log)
        job, outcome = run_once(pod, config, overrides, inputs, log, outcome)
        if job is not None and outcome is None:
            outcome = until_end(config, job, log, began)
        assert outcome is not None
        budgets, step = budgets.after(outcome)
        if outcome.end is not End.done:
            log("; ".join(filter(None, [describe(outcome), budgets.line(outcome)])))
        if step is Step.end:
            return job, outcome
        if outcome.end is End.lost:
            show_outcome(outcome, SafeConsole(stderr=True))
        # A host where the job cannot be ended is lost for the next start too.
        unended = step is Step.same_pod and not kill(reach(config, pod.zone), config.pod.hosts, log)
        if unended or step is Step.new_pod:
            delete_pods(config, log)


def run_once(
    pod: Pod, config: JobConfig, overrides: Sequence[str], inputs: Inputs, log: Log, before: Outcome | None
) -> tuple[RunningJob | None, Outcome | None]:
    """Starts the job on a pod; returns it, or why hosts could not start it. `before`: how the start before it ended."""
    try:
        return start(pod, config, overrides, inputs, log), None
    except (NoAnswer, Refused) as error:
        return None, not_started(error, node_view(reach(config, pod.zone), PATIENCE_S), before)


def delete_pods(config: JobConfig, log: Log) -> None:
    """Deletes the pods of the job, as a rule one."""
    take_down(find_pods(pod_name(config), config.cloud.project), config, log)


COMMAND = Command("watch", __doc__, EXAMPLES, add_arguments, watch, "a bug or a lost host")
