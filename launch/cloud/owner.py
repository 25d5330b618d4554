"""Owner of pods: a verb that ends says in one line what stays in the cloud, what it costs, and how to delete it."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from launch.cloud import own_hosts
from launch.cloud.job_pods import pods_of
from launch.cloud.pods import Pod
from launch.cloud.request import pod_names
from launch.local import stopped_by_signals
from launch.shell import NotInstalled
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.preflight.prices import pod_usd_per_hour

LOOK_S = 60.0  # for the API to list pods while a verb ends


@contextmanager
def owning(config: JobConfig, overrides: Sequence[str], log: Log) -> Iterator[None]:
    """Says what stays in the cloud when an error, SIGINT, SIGTERM or SIGHUP leaves the block."""
    with stopped_by_signals():
        try:
            yield
        except BaseException:
            if line := line_of_what_stays(config, overrides):
                log(line)
            raise


def line_of_what_stays(config: JobConfig, overrides: Sequence[str]) -> str:
    """Returns the pods of the job in one line; where the API gives no answer, those that may exist. Empty: none."""
    try:
        pods = pods_of(config, LOOK_S)
    except NotInstalled:
        return ""  # nothing was ever asked for
    except JobError as error:
        return f"{maybe(config)} ({error}); {deleting(overrides)}"
    return what_stays(pods, config, overrides) if pods else ""


def what_stays(pods: Sequence[Pod], config: JobConfig, overrides: Sequence[str]) -> str:
    """Returns the pods, what they cost and the command that deletes them; of the user's own hosts, how a job ends."""
    if config.pod.hosts_file is not None:
        return own_hosts.staying(config, shlex.join(overrides))
    return f"{staying(pods, config)}; {deleting(overrides)}"


def staying(pods: Sequence[Pod], config: JobConfig) -> str:
    """Returns each pod with its state and its price."""
    return ", ".join(f"{pod.name} in {pod.zone} stays ({pod.state}), {price(pod, config)}" for pod in pods)


def price(pod: Pod, config: JobConfig) -> str:
    dead = not (pod.ready or pod.coming)
    if dead:
        return "which costs nothing but uses up quota"
    return f"{'at' if pod.granted else 'once it is granted at'} {hourly(config, pod.zone)}"


def hourly(config: JobConfig, zone: str | None = None) -> str:
    usd = pod_usd_per_hour(config, zone)
    return "an unknown price" if usd is None else f"${usd:,.2f} an hour"


def maybe(config: JobConfig) -> str:
    return f"{', '.join(pod_names(config))} may exist in {', '.join(config.cloud.zones)}, at {hourly(config)}"


def deleting(overrides: Sequence[str]) -> str:
    return f"delete it: pod-job down {shlex.join(overrides)}"
