"""Creates the pod in the first zone that has one, or finds it, and waits until it is READY.

Prints its name, zone, state and number of workers, with --json also the workers' addresses.
"""

import json
import shlex
from argparse import ArgumentParser, Namespace

from launch.cloud import gcloud
from launch.cloud.capacity import bring_up
from launch.cloud.checks import check_before_paid
from launch.cloud.owner import owning
from launch.cloud.pods import Pod
from launch.cloud.request import pod_spec
from launch.job_config import config_to_start
from launch.preflight import preflight_first
from launch.slices import has_slices
from launch.verbs.arguments import add_dry_run, add_no_preflight
from launch.view.timed_log import timed_log
from pod_job.commands.command_line import DONE, Command, add_json, add_overrides
from pod_job.errors import JobError

EXAMPLES = (
    "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run cloud.zones=us-west4-a,us-east5-b",
    "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run cloud.zones=us-west4-a --dry-run",
)


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    add_no_preflight(parser)
    add_dry_run(parser)
    add_json(parser, "the pod")


def up(options: Namespace) -> int:
    config = config_to_start(options.overrides)
    if config.pod.hosts_file is not None:
        raise JobError(f"pod.hosts_file={config.pod.hosts_file}: its hosts are there already; use run or watch")
    spec = pod_spec(config)
    if has_slices(config):
        raise JobError(
            f"pod.slices={config.pod.slices}: `up` makes one pod; use run or watch, or give pod.slice=NAME too"
        )
    if options.dry_run:
        create = gcloud.create_queued if config.cloud.queued else gcloud.create_node
        print(*(shlex.join(create(spec, zone, config.cloud.project)) for zone in config.cloud.zones), sep="\n")
        return DONE
    log = timed_log()
    check_before_paid(config, log)
    if not options.no_preflight:
        preflight_first(options.overrides, log)
    with owning(config, options.overrides, log):
        pod = bring_up(config, log)
    show(pod, options.json)
    return DONE


def show(pod: Pod, as_json: bool) -> None:
    facts = {"name": pod.name, "zone": pod.zone, "state": pod.state, "workers": pod.workers, "addresses": pod.addresses}
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        print(f"{pod.name} in {pod.zone}: {pod.state}, {pod.workers} workers")


COMMAND = Command("up", __doc__, EXAMPLES, add_arguments, up)
