"""Shows a run, its pods and each host, from the run folder and the API alone, without a login to any host.

With --follow until the run has ended: in a terminal as a table drawn in place, elsewhere as a line for each change.
"""

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from launch.cloud.cost import all_records, record_of
from launch.cloud.observe import NODE_EVERY_S, POLL_S, read_all
from launch.cloud.pods import Pod, find_pods
from launch.cloud.request import pod_name
from launch.job_config import config_of_run
from launch.verbs.arguments import add_follow, add_run
from launch.view.status_view import Live, table
from pod_job.commands.command_line import DONE, Command, add_json
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import JobError
from pod_job.host.status import HostStatus, Phase, latest_attempt
from pod_job.planning.batches import batch_count
from pod_job.planning.inputs import read_inputs
from pod_job.preflight.prices import hours, spent, usd_per_hour
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import RUN, committed
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

EXAMPLES = ("runs/first", "gs://my-bucket/qwen --follow", "experiment=v5e64 storage.run_dir=gs://my-bucket/qwen --json")
END_PHASES = (Phase.done, Phase.stopped, Phase.failed)


@dataclass(frozen=True)
class View:
    """A run at one moment: `facts` of it as a whole, as JSON values, and its hosts, None for one not heard of."""

    facts: dict[str, Any]
    hosts: Sequence[HostStatus | None]

    @property
    def ended(self) -> bool:
        return all(host is not None and host.phase in END_PHASES for host in self.hosts)


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_follow(parser)
    add_json(parser, "the state of the run")


def status(options: Namespace) -> int:
    config = config_of_run(options.overrides)
    folder = open_folder(config.storage.run_dir)
    with ThreadPoolExecutor(1) as gcloud:  # which takes its seconds while the run folder is read
        asked = gcloud.submit(pods_of, config)
        nothing = folder.stat(RUN) is None and latest_attempt(folder, config.pod.hosts) is None
        if nothing and not options.follow and not asked.result():
            raise JobError(f"storage.run_dir={config.storage.run_dir}: no run is there, and no pod of one; start it")
        batches = total_batches(config, folder)
        pods = asked.result()
    view = look(config, folder, batches, pods)
    if not options.follow:
        show(view, options.json)
        return DONE
    looked = time.monotonic()
    with Live(Console(), plain=options.json) as live:
        while True:
            if options.json:
                print(as_json(view), flush=True)
            else:
                live.show(view.facts, view.hosts)
            if view.ended:
                return DONE
            time.sleep(POLL_S)
            if time.monotonic() - looked > NODE_EVERY_S:
                looked = time.monotonic()
                pods = pods_of(config)
            view = look(config, folder, batches, pods)


def pods_of(config: JobConfig) -> list[Pod]:
    """The pods of a job in the cloud; none of a job on this machine."""
    return find_pods(pod_name(config), config.cloud.project) if config.pod.kind is PodKind.tpu else []


def total_batches(config: JobConfig, folder: Folder) -> int:
    """From the run itself once it has started; before that, its inputs are read."""
    if folder.stat(RUN) is None:
        return read_inputs(config).total_batches
    identity = read_run(folder)["identity"]
    return batch_count(identity["tasks"]["samples"], identity["save_every_n_samples"])


def look(config: JobConfig, folder: Folder, batches: int, pods: Sequence[Pod]) -> View:
    """The run as it is now."""
    attempt = latest_attempt(folder, config.pod.hosts)
    hosts = read_all(folder, config.pod.hosts, attempt) if attempt else [None] * config.pod.hosts
    return View(run_facts(config, folder, batches, hosts, pods, time.time()), hosts)


def run_facts(
    config: JobConfig,
    folder: Folder,
    batches: int,
    hosts: Sequence[HostStatus | None],
    pods: Sequence[Pod],
    now: float,
) -> dict[str, Any]:
    """The run and its pods as a whole. Costs are in dollars; None where they are not known."""
    heard = [host for host in hosts if host is not None]
    done = len(committed(folder))
    seconds = max((host.seconds for host in heard), default=0.0)
    rate = sum(host.batches for host in heard) / seconds if seconds else 0.0
    left_s = 0.0 if done == batches else (batches - done) / rate if rate else None
    cloud = config.cloud
    alive = {record_of(pod, cloud.capacity).key for pod in pods}
    last_heard = max((host.updated for host in heard), default=0.0)
    paid = hours(all_records(folder, pods, config), alive, last_heard, now)
    so_far = spent(paid, cloud.price_per_chip_hour) if paid else None
    hourly = usd_per_hour(config.pod.accelerator_type or "", cloud.capacity.value, cloud.price_per_chip_hour)
    expected = None
    if so_far is not None and hourly is not None and left_s is not None:
        expected = so_far + hourly * left_s / 3600
    return {
        "run": config.storage.run_dir,
        "batches_done": done,
        "batches": batches,
        "batches_per_hour": 3600 * rate or None,
        "tokens_per_s": sum(host.tokens for host in heard) / seconds if seconds else None,
        "left_s": left_s,
        "ready_at": now + left_s if left_s else None,
        "cost_so_far": so_far,
        "cost_expected": expected,
        "pod_hours": [{"zone": record.zone, "hours": round(time_h, 3)} for record, time_h in paid],
        "pods": [pod_facts(pod) for pod in pods],
    }


def pod_facts(pod: Pod) -> dict[str, Any]:
    return {
        "name": pod.name,
        "zone": pod.zone,
        "state": pod.state,
        "queued": pod.queued_state,
        "health": pod.health,
        "symptoms": pod.symptoms,
        "maintenance": pod.maintenance,
    }


def as_json(view: View) -> str:
    return json.dumps(view.facts | {"hosts": [asdict(host) if host else None for host in view.hosts]})


def show(view: View, with_json: bool) -> None:
    if with_json:
        print(as_json(view))
    else:
        Console().print(table(view.facts, view.hosts), highlight=False, soft_wrap=True)


COMMAND = Command("status", __doc__, EXAMPLES, add_arguments, status)
