"""Runs the job; run again, it finishes what is missing.

On this machine it returns when the job has ended. On a TPU pod, which it creates if need be, it returns when all hosts
run, or with --follow when they have ended. The summary goes to stdout, progress and errors to stderr.
"""

import json
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from launch import clock
from launch.cloud.calls import patiently
from launch.cloud.capacity import bring_up
from launch.cloud.checks import check_before_paid
from launch.cloud.environment import send_environment
from launch.cloud.fleet import start_slices
from launch.cloud.job import finish, limit_of, read_job, settled, show_dataset, start, until_end
from launch.cloud.observe import RunningJob
from launch.cloud.owner import line_of_what_stays, owning
from launch.cloud.uploads import with_uploads
from launch.dry_run import checked_commands
from launch.job_config import config_to_start
from launch.local_job import run_here
from launch.local_slices import run_slices_here
from launch.merging import completed
from launch.preflight import preflight_first
from launch.reference import send_reference
from launch.slices import has_slices
from launch.verbs.arguments import add_accept_identity, add_dry_run, add_follow, add_no_preflight, start_overrides
from launch.view.timed_log import timed_log
from pod_job.commands.command_line import DONE, Command, add_json, add_overrides
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import JobError

EXAMPLES = (
    "experiment=demo storage.run_dir=runs/first tasks.limit=8",
    "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run cloud.zones=us-west4-a --follow",
)


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    add_accept_identity(parser)
    add_follow(parser)
    add_no_preflight(parser)
    add_dry_run(parser)
    add_json(parser, "the summary")


def run(options: Namespace) -> int:
    """Runs the job; returns DONE, or for a failed host BAD_INPUT where its input was at fault and FAILED where not.

    Raises JobError for input that fails before any host is started, and Stopped when a signal ended the run.
    """
    overrides = start_overrides(options)
    config = config_to_start(overrides)
    if options.dry_run:
        print(*checked_commands(config, overrides), sep="\n")
        return DONE
    if config.pod.kind is PodKind.tpu:
        return run_in_cloud(config, overrides, options)
    run_local = run_slices_here if has_slices(config) else run_here
    return run_local(config, overrides, failures=0, as_json=options.json)


def run_in_cloud(config: JobConfig, overrides: Sequence[str], options: Namespace) -> int:
    """Starts the job on its pod; with --follow stays until it ends."""
    began = clock.monotonic()
    log = timed_log(began)
    if options.follow and has_slices(config):
        raise JobError(f"--follow: one run of pod.slices={config.pod.slices} is followed by `pod-job watch`")
    check_before_paid(config, log)
    inputs = read_job(config)
    if patiently(lambda: completed(inputs, log), log):
        log(f"{config.storage.run_dir} is already complete")
        return show_dataset(config, inputs.folder, [], clock.monotonic() - began, options.json)
    limit = limit_of(config, inputs.folder, None)
    if limit is not None and limit.reached:
        raise JobError(f"{limit.reason}; raise it to go on")
    if not options.no_preflight:
        preflight_first(overrides, log)
    send_reference(inputs, overrides, log)
    send_environment(config, log)
    placed = with_uploads(config, overrides, log)
    if has_slices(config):
        with owning(config, overrides, log):
            return show_started(start_slices(placed.config, placed.overrides, inputs, log), overrides, options.json)
    with owning(config, overrides, log):
        job = start(bring_up(config, log), placed.config, placed.overrides, inputs, log)
        outcome = settled(inputs, until_end(config, job, log, began), log) if options.follow else None
    if outcome is None:
        return show_started([job], overrides, options.json)
    if line := line_of_what_stays(config, overrides):
        log(line)
    return finish(config, job, outcome, clock.monotonic() - began, options.json)


def show_started(jobs: Sequence[RunningJob], overrides: Sequence[str], as_json: bool) -> int:
    """Prints where the job runs now, with --json a line for each pod, or what to do next; returns DONE."""
    for job in jobs if as_json else []:
        facts = {"pod": job.reach.name, "zone": job.reach.zone, "attempt": job.attempt, "hosts": job.hosts}
        print(json.dumps(facts))
    if not as_json:
        print(next_steps(overrides, any(job.reach.hosts for job in jobs)))
    return DONE


def next_steps(overrides: Sequence[str], own: bool) -> str:
    """Returns full commands for the time while the job runs. `own`: on hosts that the user has started."""
    down = "end the job, and clear the hosts" if own else "delete the pod: until then it costs"
    words = shlex.join(overrides)
    verbs = [("status", "how far it is"), ("logs", "what hosts log"), ("down", down)]
    return "\n".join(f"pod-job {verb} {words}  # {purpose}" for verb, purpose in verbs)


COMMAND = Command("run", __doc__, EXAMPLES, add_arguments, run, "a bug or a lost host")
