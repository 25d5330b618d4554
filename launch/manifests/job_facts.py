"""Facts of a job that manifests of every engine state: its slice, its environment, and the time that it may take."""

from collections.abc import Mapping
from dataclasses import dataclass

from launch.cloud.checks import check_pod
from launch.cloud.limits import price
from launch.cloud.uploads import to_upload
from pod_job import environment
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import JobError
from pod_job.preflight.report import pod_slice
from pod_job.preflight.tpu_facts import Slice

RESTART_STATUS = 75
"""Exit status of a host after whose end another start may do: EX_TEMPFAIL of sysexits.h."""
GRACE_S = 45
"""From SIGTERM to SIGKILL: a host finishes its batches for 20 s, then writes its status."""

Values = Mapping[str, object]
"""A part of a manifest: its schema is the engine's."""


@dataclass(frozen=True)
class JobFacts:
    """A job for an engine to start; `sold`: its slice, `seconds`: how long a start may run, None without a limit."""

    config: JobConfig
    overrides: list[str]
    sold: Slice
    seconds: int | None

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every host, as start.sh sets them on a TPU VM."""
        return {
            environment.RUN: self.config.storage.run_dir,
            environment.RESTART_STATUS: str(RESTART_STATUS),
            environment.JAX_PORT: str(self.config.pod.port or environment.COORDINATOR_PORT),
            environment.BLAS_THREADS: "1",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
            "PYTHONUNBUFFERED": "1",
        }


def job_facts(config: JobConfig, overrides: list[str]) -> JobFacts:
    """Returns what a manifest states.

    Raises:
        JobError: it is no job for a TPU slice, or its hosts would not find what they read.
    """
    if config.pod.kind is not PodKind.tpu:
        raise JobError(f"pod.kind={config.pod.kind.value} has no slice to ask for; use pod=v5e_64 or another TPU pod")
    if config.pod.hosts_file is not None:
        raise JobError(f"pod.hosts_file={config.pod.hosts_file}: an engine makes the hosts itself; leave it out")
    sold = pod_slice(config)
    check_pod(config)
    check_elsewhere(config, "an engine uploads nothing")
    if not config.storage.run_dir.startswith("gs://"):
        raise JobError(f"storage.run_dir={config.storage.run_dir}: hosts of an engine share no folder; use gs://")
    cloud = config.cloud
    limits = [cloud.max_hours] if cloud.max_hours is not None else []
    limits += [cloud.max_usd / price(config)] if cloud.max_usd is not None else []
    return JobFacts(config, overrides, sold, round(3600 * min(limits)) if limits else None)


def check_elsewhere(config: JobConfig, reason: str) -> None:
    """Raises JobError for a model or tasks that only this machine has; `reason`: why they are needed elsewhere."""
    for source in to_upload(config):
        raise JobError(
            f"{source.field}={source.path} is on this machine alone, and {reason}; gcloud storage cp -r {source.path} "
            "gs://bucket/, and give that"
        )
