"""The verbs `up` and `down`: a pod that is READY, in the first zone that has one; and no pod any more."""

import json
import shlex
from collections.abc import Sequence

from launch.cloud import gcloud
from launch.cloud.capacity import bring_up, take_down
from launch.cloud.pods import Pod, delete_commands, find_pods
from launch.cloud.request import pod_name, pod_spec
from launch.options import Options
from launch.preflight import preflight_first
from launch.view.timed_log import timed_log
from pod_job.config.load import load


def up(overrides: Sequence[str], options: Options) -> int:
    """Creates the pod, or finds it, and waits until it is READY; prints name, zone and addresses."""
    config = load(overrides)
    spec = pod_spec(config)
    if options.dry_run:
        create = gcloud.create_queued if config.cloud.queued else gcloud.create_node
        print(*(shlex.join(create(spec, zone, config.cloud.project)) for zone in config.cloud.zones), sep="\n")
        return 0
    log = timed_log()
    preflight_first(overrides, options, log)
    pod = bring_up(config, log)
    show(pod, options.as_json)
    return 0


def down(overrides: Sequence[str], options: Options) -> int:
    """Deletes the pod in every zone where there is one; none is fine too."""
    config = load(overrides)
    pods = find_pods(pod_name(config), config.cloud.project)
    if options.dry_run:
        commands = [command for pod in pods for command in delete_commands(pod, config.cloud.project)]
        print(*map(shlex.join, commands), sep="\n", end="\n" if commands else "")
        return 0
    take_down(pods, config, timed_log())
    if options.as_json:
        print(json.dumps([{"name": pod.name, "zone": pod.zone} for pod in pods]))
    return 0


def show(pod: Pod, as_json: bool) -> None:
    addresses = [endpoint["ipAddress"] for endpoint in (pod.node or {}).get("networkEndpoints", [])]
    facts = {"name": pod.name, "zone": pod.zone, "state": pod.state, "workers": pod.workers, "addresses": addresses}
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        print(f"{pod.name} in {pod.zone}: {pod.state}, {pod.workers} workers")
