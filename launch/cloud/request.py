"""From the configuration to a request for gcloud: the pod's name, its specification, and the way to its hosts."""

import hashlib

from launch.cloud.gcloud import PodSpec, Reach
from launch.cloud.pods import MADE_BY
from launch.hosts_file import groups_of
from launch.slices import pod_configs
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import JobError
from pod_job.preflight.tpu_facts import TPU7X


def pod_name(config: JobConfig) -> str:
    """Returns `cloud.name`, else a name made from the run folder, so that a job finds its pod again.

    The name of a slice follows it.
    """
    run_dir = config.storage.run_dir.rstrip("/")
    name = config.cloud.name or f"extract-{hashlib.sha256(run_dir.encode()).hexdigest()[:8]}"
    return name if config.pod.slice is None else f"{name}-{config.pod.slice}"


def pod_names(config: JobConfig) -> list[str]:
    """Returns the names of the pods of all slices; of a run on one pod, the name of that."""
    return [pod_name(of_slice) for of_slice in pod_configs(config)]


def pod_spec(config: JobConfig) -> PodSpec:
    """Returns the pod to create. Raises JobError for a field that a TPU pod needs and that is not set."""
    cloud, pod = config.cloud, config.pod
    if pod.kind is not PodKind.tpu:
        raise JobError(f"pod.kind={pod.kind.value} has no pod in the cloud; use pod=v5e_64 or another TPU pod")
    if not pod.accelerator_type:
        raise JobError("pod.accelerator_type is not set; give Cloud TPU's name such as v5litepod-64")
    if not pod.runtime_version:
        raise JobError("pod.runtime_version is not set; give a TPU VM image such as v2-alpha-tpuv5-lite")
    if pod.accelerator_type.startswith(f"{TPU7X.api_name}-"):
        raise JobError(
            f"pod.accelerator_type={pod.accelerator_type}: the Cloud TPU API does not have it, GKE does; "
            "use `pod-job manifest --for jobset`"
        )
    if not cloud.zones:
        raise JobError("cloud.zones is not set; give the zones to try in order, cloud.zones=us-west4-a,us-east5-b")
    return PodSpec(
        name=pod_name(config),
        accelerator_type=pod.accelerator_type,
        runtime_version=pod.runtime_version,
        capacity=cloud.capacity,
        valid_until=cloud.valid_until,
        labels=MADE_BY | dict(cloud.labels),
        service_account=cloud.service_account,
        internal_ip=cloud.internal_ip,
        reservation=cloud.reservation,
        flex_hours=cloud.flex_hours,
        network=cloud.network,
        subnetwork=cloud.subnetwork,
        tags=cloud.tags,
        create_flags=cloud.create_flags,
    )


def reach(config: JobConfig, zone: str) -> Reach:
    """Returns the way to the hosts of this job's pod in `zone`, or to those of its file."""
    cloud = config.cloud
    hosts = groups_of(config)[0].hosts if config.pod.hosts_file is not None else ()
    return Reach(pod_name(config), zone, cloud.project, cloud.internal_ip, cloud.ssh_flags, cloud.iap, hosts)
