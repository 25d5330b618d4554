"""Runs the job to its end, through preemptions; deletes the pod when the dataset is there or the job has failed.

A pod that was taken away, or has a machine that is bad or cannot be reached, is created again, and a job that lost
hosts is started again, as often as cloud.preemptions, cloud.bad_machines and cloud.failures allow. A host that reports
a bug or bad input ends the job: the next start would fail too. The verb keeps no state: interrupted, it says what stays
and what that costs; started again, it finds the pod, the job and the batches that are done. On this machine
(pod.kind=local) it starts lost hosts again. With pod.slices it does all of this for each slice, at the same time.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from launch import clock
from launch.cloud.calls import patiently
from launch.cloud.capacity import take_down
from launch.cloud.checks import check_before_paid
from launch.cloud.environment import send_environment
from launch.cloud.fleet import Fleet
from launch.cloud.job import finish, read_job, show_dataset
from launch.cloud.job_pods import pods_of
from launch.cloud.owner import owning
from launch.cloud.uploads import with_uploads
from launch.cloud.watching import Watching
from launch.dry_run import checked_commands
from launch.job_config import config_to_start
from launch.local_job import run_here
from launch.local_slices import run_slices_here
from launch.merging import completed
from launch.preflight import preflight_first
from launch.reference import send_reference
from launch.slices import has_slices
from launch.verbs.arguments import add_accept_identity, add_dry_run, add_no_preflight, start_overrides
from launch.view.timed_log import Log, timed_log
from pod_job.commands.command_line import DONE, Command, add_json, add_overrides
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import JobError

EXAMPLES = (
    "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run cloud.zones=us-west4-a,us-east5-b",
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
        print(*checked_commands(config, overrides), sep="\n")
        return DONE
    if config.pod.kind is PodKind.local:
        run_local = run_slices_here if has_slices(config) else run_here
        return run_local(config, overrides, config.cloud.failures, options.json)
    began = clock.monotonic()
    log = timed_log(began)
    check_before_paid(config, log)
    inputs = read_job(config)
    if patiently(lambda: completed(inputs, log), log):
        log(f"{config.storage.run_dir} is already complete")
        with owning(config, overrides, log):
            return after_deletion(
                config, log, lambda: show_dataset(config, inputs.folder, [], clock.monotonic() - began, options.json)
            )
    if not options.no_preflight:
        preflight_first(overrides, log)
    send_reference(inputs, overrides, log)
    send_environment(config, log)
    placed = with_uploads(config, overrides, log)
    with owning(config, overrides, log):
        try:
            watching = Fleet if has_slices(config) else Watching
            job, outcome = watching(placed.config, placed.overrides, inputs, log, began).run_to_the_end()
        except JobError as error:
            log(f"giving up: {error}")
            delete_pods(config, log)
            raise
        return after_deletion(
            config, log, lambda: finish(config, job, outcome, clock.monotonic() - began, options.json)
        )


def after_deletion(config: JobConfig, log: Log, show: Callable[[], int]) -> int:
    """Deletes the pods of the job, then shows how it ended; returns what `show` does.

    Raises:
        JobError: a pod could not be deleted, or a host not cleared; shown is how the job ended all the same.
    """
    try:
        delete_pods(config, log)
    except JobError:
        show()
        raise
    return show()


def delete_pods(config: JobConfig, log: Log) -> None:
    """Deletes the pods of the job, of all its slices. JobError for those that cannot be."""
    take_down(pods_of(config), config, log)


COMMAND = Command("watch", __doc__, EXAMPLES, add_arguments, watch, "a bug or a lost host")
