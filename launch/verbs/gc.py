"""The verb `gc`: what this project left in the cloud and what it costs; what is dead is deleted."""

import json
import shlex
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from launch.cloud.pods import MADE_BY, Pod, delete, delete_commands, list_pods
from launch.options import Options
from launch.view.timed_log import timed_log
from pod_job.config.load import load


def gc(overrides: Sequence[str], options: Options) -> int:
    """Lists every pod that the launcher created, in all zones, and deletes those that will never run again.

    A preempted node or a failed request costs nothing but eats quota. Living pods cost money; they are only listed,
    since a job may run on them: `down` deletes them.
    """
    config = load(overrides)
    pods = [pod for pod in list_pods(config.cloud.project) if MADE_BY.items() <= pod.labels.items()]
    dead = [pod for pod in pods if not (pod.ready or pod.coming)]
    if options.dry_run:
        commands = [command for pod in dead for command in delete_commands(pod, config.cloud.project)]
        print(*map(shlex.join, commands), sep="\n", end="\n" if commands else "")
        return 0
    now = time.time()
    if options.as_json:
        print(json.dumps([facts(pod, now, deleted=pod in dead) for pod in pods], indent=2))
    else:
        show(pods, now, Console())
    log = timed_log()
    for pod in dead:
        delete(pod, config.cloud.project)
        log(f"deleted {pod.name} in {pod.zone}, which was {pod.state}")
    return 0


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
    console.print(table if pods else "nothing of ours is in the cloud", highlight=False)
