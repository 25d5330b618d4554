"""Deletes the pods of a run in every zone where there is one; none is fine too.

On hosts of pod.hosts_file, which stay, it ends the job and removes all that the launcher keeps there.
"""

import json
import shlex
from argparse import ArgumentParser, Namespace

from launch.cloud.capacity import take_down
from launch.cloud.own_hosts import clear, not_cleared, reaches
from launch.cloud.pods import delete_commands
from launch.cloud.remote import planned_ssh
from launch.job_config import pods_of_run
from launch.verbs.arguments import add_dry_run, add_run
from launch.view.timed_log import timed_log
from pod_job.commands.command_line import DONE, FAILED, Command, add_json
from pod_job.config.schema import JobConfig, PodKind

EXAMPLES = (
    "gs://my-bucket/run",
    "gs://my-bucket/run --dry-run",
    "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run",
)


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_dry_run(parser)
    add_json(parser, "the pods that were deleted")


def down(options: Namespace) -> int:
    config, pods = pods_of_run(options.overrides)
    if config.pod.hosts_file is not None:
        return clear_hosts(config, options)
    if options.dry_run:
        commands = [command for pod in pods for command in delete_commands(pod, config.cloud.project)]
        print(*map(shlex.join, commands), sep="\n", end="\n" if commands else "")
        return DONE
    log = timed_log()
    if config.pod.kind is PodKind.tpu:
        take_down(pods, config, log)
    else:
        log(f"pod.kind={config.pod.kind.value} has no pod in the cloud; there is nothing to delete")
    if options.json:
        print(json.dumps([{"name": pod.name, "zone": pod.zone} for pod in pods]))
    return DONE


def clear_hosts(config: JobConfig, options: Namespace) -> int:
    """Clears the hosts of pod.hosts_file; returns FAILED where one was not cleared."""
    ways = reaches(config)
    if options.dry_run:
        print(*(command for way in ways for command in planned_ssh(way, "clear")), sep="\n")
        return DONE
    log = timed_log()
    uncleared = clear(config, log, leaving_s=0)
    if options.json:
        print(
            json.dumps(
                [{"host": str(host), "cleared": str(host) not in uncleared} for way in ways for host in way.hosts]
            )
        )
    if uncleared:
        log(not_cleared(config, uncleared))
    return FAILED if uncleared else DONE


COMMAND = Command("down", __doc__, EXAMPLES, add_arguments, down, "a host that was not cleared")
