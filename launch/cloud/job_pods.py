"""Pods of a job, of all its slices: as the API lists them, or the hosts that the user has started."""

from launch.cloud.calls import PATIENCE_S
from launch.cloud.own_hosts import own_pods
from launch.cloud.pods import Pod, find_all
from launch.cloud.request import pod_names
from launch.hosts_file import UNREAD
from pod_job.config.schema import JobConfig, PodKind


def pods_of(config: JobConfig, patience_s: float = PATIENCE_S) -> list[Pod]:
    """Returns the pods of a job; none of one on this machine, or of one whose file of hosts is not read.

    Raises:
        JobError: the API gives no answer for `patience_s`.
    """
    if config.pod.kind is not PodKind.tpu or config.pod.hosts_file == UNREAD:
        return []
    if config.pod.hosts_file is not None:
        return own_pods(config)
    return find_all(pod_names(config), config.cloud.project, patience_s)
