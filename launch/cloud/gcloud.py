"""Command lines of gcloud, all that the launcher uses, as pure functions: values in, argv out.

Facts about the commands: https://cloud.google.com/sdk/gcloud/reference/compute/tpus. Nothing is run here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.hosts_file import SshHost
from pod_job.config.cloud import Capacity

TPUS = ["gcloud", "compute", "tpus"]
ALPHA_TPUS = ["gcloud", "alpha", "compute", "tpus"]
"""Alone has named reservations, flex-start and ssh through Identity-Aware Proxy."""
# gcloud sets none of these; without them a dead host holds its ssh forever, and a password prompt holds a script.
SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=4")


@dataclass(frozen=True)
class PodSpec:
    """The pod to request, the same in every zone."""

    name: str
    accelerator_type: str
    runtime_version: str
    capacity: Capacity
    valid_until: str
    labels: Mapping[str, str]
    service_account: str | None
    internal_ip: bool
    reservation: str | None = None
    flex_hours: float | None = None
    network: str | None = None
    subnetwork: str | None = None
    tags: Sequence[str] = ()
    create_flags: Sequence[str] = ()

    @property
    def tpus(self) -> list[str]:
        """The group of commands that takes such a request."""
        alpha = self.reservation is not None or self.capacity is Capacity.flex_start
        return ALPHA_TPUS if alpha else TPUS


@dataclass(frozen=True)
class Reach:
    """How a pod's hosts are reached: `ssh_flags` go to ssh as they are; `iap`: through Identity-Aware Proxy.

    `hosts`: those that the user has started, which plain ssh reaches (see plain_ssh); gcloud does not know them.
    """

    name: str
    zone: str
    project: str | None
    internal_ip: bool
    ssh_flags: Sequence[str]
    iap: bool = False
    hosts: Sequence[SshHost] = ()

    @property
    def tpus(self) -> list[str]:
        return ALPHA_TPUS if self.iap else TPUS


def create_queued(spec: PodSpec, zone: str, project: str | None) -> list[str]:
    """Asks for one node through a queued resource; both have the pod's name."""
    return [
        *spec.tpus,
        *("queued-resources", "create", spec.name, f"--node-id={spec.name}"),
        f"--runtime-version={spec.runtime_version}",
        f"--valid-until-duration={spec.valid_until}",
        *node_flags(spec),
        *place(zone, project),
        "--async",
    ]


def create_node(spec: PodSpec, zone: str, project: str | None) -> list[str]:
    """Asks for a node at once; returns when it is READY or refused."""
    return [
        *spec.tpus,
        *("tpu-vm", "create", spec.name),
        f"--version={spec.runtime_version}",
        *node_flags(spec),
        *place(zone, project),
    ]


def node_flags(spec: PodSpec) -> list[str]:
    labels = ",".join(f"{key}={value}" for key, value in spec.labels.items())
    return [
        f"--accelerator-type={spec.accelerator_type}",
        f"--labels={labels}",
        *capacity_flags(spec),
        *([f"--service-account={spec.service_account}"] if spec.service_account else []),
        *([f"--network={spec.network}"] if spec.network else []),
        *([f"--subnetwork={spec.subnetwork}"] if spec.subnetwork else []),
        *([f"--tags={','.join(spec.tags)}"] if spec.tags else []),
        *(["--internal-ips"] if spec.internal_ip else []),
        *spec.create_flags,
    ]


def capacity_flags(spec: PodSpec) -> list[str]:
    """Returns the flags of the kind of capacity, which are not the same for a named reservation as for any."""
    if spec.capacity is Capacity.flex_start:
        return ["--provisioning-model=flex-start", f"--max-run-duration={round(3600 * (spec.flex_hours or 0))}s"]
    if spec.capacity is Capacity.reserved:
        return ["--reserved"] if spec.reservation is None else ["--reserved", f"--reservation={spec.reservation}"]
    return ["--spot"] if spec.capacity is Capacity.spot else []


def delete_queued(name: str, zone: str, project: str | None) -> list[str]:
    """Deletes a queued resource and, with --force, its node."""
    return [*TPUS, "queued-resources", "delete", name, "--force", *place(zone, project)]


def delete_node(name: str, zone: str, project: str | None) -> list[str]:
    return [*TPUS, "tpu-vm", "delete", name, *place(zone, project)]


def list_nodes(project: str | None) -> list[str]:
    """Lists all nodes of all zones, as JSON."""
    return [*TPUS, "tpu-vm", "list", *place("-", project), "--format=json"]


def list_queued(project: str | None) -> list[str]:
    """Lists all queued resources of all zones, as JSON."""
    return [*TPUS, "queued-resources", "list", *place("-", project), "--format=json"]


def ssh(reach: Reach, workers: str, command: str) -> list[str]:
    """Runs `command` on `workers` (`all`, `3` or `1,4`). gcloud splits it at blanks and ssh joins it again."""
    flags = [f"--ssh-flag=-o{option}" for option in SSH_OPTIONS] + [f"--ssh-flag={flag}" for flag in reach.ssh_flags]
    return [
        *reach.tpus,
        "tpu-vm",
        "ssh",
        reach.name,
        f"--worker={workers}",
        *_reached(reach),
        *flags,
        f"--command={command}",
    ]


def scp(reach: Reach, source: str, target: str) -> list[str]:
    """Copies a local file to `target` in the home folder of every worker."""
    flags = [f"--scp-flag=-o{option}" for option in SSH_OPTIONS] + [f"--scp-flag={flag}" for flag in reach.ssh_flags]
    return [*reach.tpus, "tpu-vm", "scp", source, f"{reach.name}:{target}", "--worker=all", *_reached(reach), *flags]


def describe_accelerator(accelerator_type: str, zone: str, project: str | None) -> list[str]:
    """Describes one kind of pod as a zone offers it; an error where it does not."""
    return [*TPUS, "accelerator-types", "describe", accelerator_type, *place(zone, project), "--format=json"]


def settings() -> list[str]:
    """Prints gcloud's own account and project, as JSON."""
    return ["gcloud", "config", "list", "--format=json"]


def describe_bucket(bucket: str) -> list[str]:
    """Describes a bucket, with its location, as JSON."""
    return ["gcloud", "storage", "buckets", "describe", f"gs://{bucket}", "--quiet", "--format=json"]


def bucket_policy(bucket: str) -> list[str]:
    """Prints who has which role on a bucket, as JSON."""
    return ["gcloud", "storage", "buckets", "get-iam-policy", f"gs://{bucket}", "--quiet", "--format=json"]


def project_policy(project: str) -> list[str]:
    """Prints who has which role on a project, as JSON."""
    return ["gcloud", "projects", "get-iam-policy", project, "--quiet", "--format=json"]


def describe_project(project: str) -> list[str]:
    """Describes a project, with its number, as JSON."""
    return ["gcloud", "projects", "describe", project, "--quiet", "--format=json"]


def version() -> list[str]:
    return ["gcloud", "version", "--format=json"]


def place(zone: str, project: str | None) -> list[str]:
    return [f"--zone={zone}", *([f"--project={project}"] if project else []), "--quiet"]


def _reached(reach: Reach) -> list[str]:
    way = ["--tunnel-through-iap"] if reach.iap else ["--internal-ip"] if reach.internal_ip else []
    return [*place(reach.zone, reach.project), *way]
