"""Lists every pod that the launcher created, in all zones, and deletes those that will never run again.

A preempted node or a failed request costs nothing but uses up quota. Pods that live cost money; they are only listed,
since a job may run on them: `pod-job down` deletes them.
"""

import json
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from launch import clock
from launch.cloud.pods import MADE_BY, Pod, delete, delete_commands, list_pods
from launch.verbs.arguments import add_dry_run
from launch.view.timed_log import timed_log
from pod_job.commands.command_line import DONE, Command, add_json, add_overrides
from pod_job.config.load import load
from pod_job.terminal import SafeConsole

EXAMPLES = ("", "--project my-project --dry-run")
UNUSED = ("model.path=unused", "tasks.path=unused", "storage.run_dir=unused")
"""Fields that a configuration must have and that do not matter here."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--project", metavar="P", help="of Google Cloud; by default the one gcloud is set to")
    add_overrides(parser, "key=value; only cloud.project matters")
    add_dry_run(parser)
    add_json(parser, "the pods")


def gc(options: Namespace) -> int:
    project = options.project
    if project is None and options.overrides:
        project = load([*UNUSED, *options.overrides]).cloud.project
    pods = [pod for pod in list_pods(project) if MADE_BY.items() <= pod.labels.items()]
    dead = [pod for pod in pods if not (pod.ready or pod.coming)]
    if options.dry_run:
        commands = [command for pod in dead for command in delete_commands(pod, project)]
        print(*map(shlex.join, commands), sep="\n", end="\n" if commands else "")
        return DONE
    now = clock.now()
    if options.json:
        print(json.dumps([facts(pod, now, deleted=pod in dead) for pod in pods], indent=2))
    else:
        show(pods, now, SafeConsole())
    log = timed_log()
    for pod in dead:
        delete(pod, project, log)
        log(f"deleted {pod.name} in {pod.zone}, which was {pod.state}")
    return DONE


def facts(pod: Pod, now: float, deleted: bool) -> dict[str, str | float | bool]:
    return {
        "name": pod.name,
        "zone": pod.zone,
        "state": pod.state,
        "accelerator_type": pod.accelerator_type,
        "hours": round(pod.age_s(now) / 3600, 2),
        "deleted": deleted,
    }


def show(pods: Sequence[Pod], now: float, console: Console) -> None:
    table = Table("pod", "zone", "state", "type", "hours", box=None)
    for pod in pods:
        table.add_row(pod.name, pod.zone, pod.state, pod.accelerator_type, f"{pod.age_s(now) / 3600:.2f}")
    console.print(table if pods else "no pod of pod-job exists", highlight=False)


COMMAND = Command("gc", __doc__, EXAMPLES, add_arguments, gc)
