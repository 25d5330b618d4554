"""Check of versions: hosts run the Python and the jax that the job was planned and compiled with here."""

import sys
from importlib import metadata

from launch.cloud.bundle import make_bundle, pinned_versions
from launch.cloud.job_pods import pods_of
from launch.cloud.pods import Pod
from launch.cloud.remote import ask_briefly, script
from launch.cloud.request import reach
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError

VERSIONS_TIMEOUT_S = 60.0


def check_versions(config: JobConfig) -> str:
    """Compares Python and jax here with those of the hosts of a READY pod; without one, with those they will get."""
    here = {name: installed(name) for name in ("jax", "libtpu")}
    python = ".".join(map(str, sys.version_info[:2]))
    this_machine = f"here Python {python}, jax {here['jax']}"
    pod = next((pod for pod in pods_of(config) if pod.ready), None)
    if pod is not None and (by_host := host_versions(config, pod)):
        if len(set(by_host.values())) > 1:
            raise JobError(f"hosts differ in Python and jax: {by_host}; `pod-job down`, then `pod-job up`")
        versions = next(iter(by_host.values()))
        if versions.split()[-1] != here["jax"]:
            raise JobError(f"hosts have Python and jax {versions}, {this_machine}; install constraints.txt on both")
        return f"hosts have Python and jax {versions}, {this_machine}"
    if config.cloud.python is not None:
        return f"{this_machine}; hosts use {config.cloud.python}, whose versions show once the pod is READY"
    pinned = pinned_versions()
    wrong = [name for name in here if here[name] not in (None, pinned.get(name))]
    if wrong:
        raise JobError(
            f"{wrong[0]} {here[wrong[0]]} here, {pinned.get(wrong[0])} on the hosts: what is compiled here is not what "
            "runs there; pip install -c constraints.txt 'jax[tpu]'"
        )
    return f"{this_machine}; hosts get Python {python} and jax {pinned['jax']} {origin(config)}"


def origin(config: JobConfig) -> str:
    """Returns where hosts take their environment from, and what they must be able to reach for it."""
    if config.cloud.environments is not None:
        return f"as an archive in {config.cloud.environments}"
    way_out = "; without external addresses they need Cloud NAT for that, or cloud.environments=gs://bucket/folder"
    return f"by uv, with constraints.txt{way_out if config.cloud.internal_ip else ''}"


def host_versions(config: JobConfig, pod: Pod) -> dict[int, str]:
    """Returns host -> its Python and jax, for the hosts whose environment has been made."""
    values = {"PYTHON": config.cloud.python or "", "ENVIRONMENT": make_bundle(config.tasks).environment}
    answers = ask_briefly(reach(config, pod.zone), script("versions", values), VERSIONS_TIMEOUT_S)
    return {host: answer.detail for host, answer in sorted(answers.items()) if answer.word == "VERSIONS"}


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
