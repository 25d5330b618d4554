"""The verb `status`: how a job is doing, from its run folder and the API alone, without a login to any host."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.facts import show_facts
from launch.observe import POLL_S, read_all
from launch.options import Options
from launch.pods import Pod, find_pods
from launch.request import pod_name
from pod_job.config import JobConfig, PodKind, load
from pod_job.inputs import Inputs, read_inputs
from pod_job.run_folder.commit import committed
from pod_job.status import HostStatus, Phase, latest_attempt

END_PHASES = (Phase.done, Phase.stopped, Phase.failed)


def status(overrides: Sequence[str], options: Options) -> int:
    """Shows the run, the pod and each host; with --follow again and again until the run has ended."""
    config = load(overrides)
    inputs = read_inputs(config)
    while True:
        attempt = latest_attempt(inputs.folder, config.pod.hosts)
        hosts = read_all(inputs.folder, config.pod.hosts, attempt) if attempt else [None] * config.pod.hosts
        pods = find_pods(pod_name(config), config.cloud.project) if config.pod.kind is PodKind.tpu else []
        facts = run_facts(config, inputs, hosts, pods)
        if options.as_json:
            print(json.dumps(facts | {"hosts": [asdict(host) if host else None for host in hosts]}))
        else:
            show(facts, hosts, Console())
        if not options.follow or all(host is not None and host.phase in END_PHASES for host in hosts):
            return 0
        time.sleep(POLL_S)


def run_facts(
    config: JobConfig, inputs: Inputs, hosts: Sequence[HostStatus | None], pods: Sequence[Pod]
) -> dict[str, Any]:
    """The run and its pod as a whole. Costs are in the currency of cloud.price_per_chip_hour; None where unknown."""
    heard = [host for host in hosts if host is not None]
    done = len(committed(inputs.folder))
    seconds = max((host.seconds for host in heard), default=0.0)
    here = sum(host.batches for host in heard)
    rate = here / seconds if seconds else 0.0
    left_s = (inputs.total_batches - done) / rate if rate else None
    price = config.cloud.price_per_chip_hour
    hourly = price * config.pod.devices if price is not None else None
    now = time.time()
    spent = hourly * sum(pod.age_s(now) for pod in pods) / 3600 if hourly is not None and pods else None
    expected = spent + hourly * left_s / 3600 if spent is not None and hourly and left_s is not None else None
    return {
        "run": config.storage.run_dir,
        "batches_done": done,
        "batches": inputs.total_batches,
        "tokens_per_s": sum(host.tokens for host in heard) / seconds if seconds else None,
        "left_s": left_s,
        "cost_so_far": spent,
        "cost_expected": expected,
        "pods": [
            {"name": pod.name, "zone": pod.zone, "state": pod.state, "queued": pod.queued_state, "health": pod.health}
            for pod in pods
        ],
    }


def show(facts: dict[str, Any], hosts: Sequence[HostStatus | None], console: Console) -> None:
    """A few lines for the run, one for each pod, one for each host."""
    share = f"{facts['batches_done']:,} of {facts['batches']:,} batches"
    pace = [f"{facts['tokens_per_s']:,.0f} tokens/s"] if facts["tokens_per_s"] else []
    pace += [f"{facts['left_s']:,.0f} s left"] if facts["left_s"] else []
    lines = [("run", facts["run"]), ("done", ", ".join([share, *pace]))]
    lines += [("pod", f"{pod['name']} in {pod['zone']}: {pod['state']} {pod['health']}") for pod in facts["pods"]]
    if facts["cost_so_far"] is not None:
        expected = f", {facts['cost_expected']:,.2f} expected" if facts["cost_expected"] is not None else ""
        lines.append(("cost", f"{facts['cost_so_far']:,.2f} for the pods there are now{expected}"))
    show_facts(lines, console)
    table = Table("host", "phase", "steps", "batches", "tokens/s", "heard", "error", box=None)
    for number, host in enumerate(hosts):
        if host is None:
            table.add_row(str(number), "not heard of yet")
            continue
        speed = f"{host.tokens / host.seconds:,.0f}" if host.seconds else ""
        counts = (str(host.steps), f"{host.batches}/{host.batches_total}", speed)
        heard = f"{max(0.0, time.time() - host.updated):.0f} s ago"
        table.add_row(str(number), host.phase, *counts, heard, escape(host.error or ""))
    console.print(table, highlight=False)
