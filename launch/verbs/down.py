"""Deletes the pod of a run in every zone where there is one; none is fine too."""

import json
import shlex
from argparse import ArgumentParser, Namespace

from launch.cloud.capacity import take_down
from launch.cloud.pods import delete_commands, find_pods
from launch.cloud.request import pod_name
from launch.job_config import config_of_run
from launch.verbs.arguments import add_dry_run, add_run
from launch.view.timed_log import timed_log
from pod_job.commands.command_line import DONE, Command, add_json

EXAMPLES = (
    "gs://my-bucket/qwen",
    "gs://my-bucket/qwen --dry-run",
    "experiment=v5e64 storage.run_dir=gs://my-bucket/qwen",
)


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_dry_run(parser)
    add_json(parser, "the pods that were deleted")


def down(options: Namespace) -> int:
    config = config_of_run(options.overrides)
    pods = find_pods(pod_name(config), config.cloud.project)
    if options.dry_run:
        commands = [command for pod in pods for command in delete_commands(pod, config.cloud.project)]
        print(*map(shlex.join, commands), sep="\n", end="\n" if commands else "")
        return DONE
    take_down(pods, config, timed_log())
    if options.json:
        print(json.dumps([{"name": pod.name, "zone": pod.zone} for pod in pods]))
    return DONE


COMMAND = Command("down", __doc__, EXAMPLES, add_arguments, down)
