"""The commands of a start, for `--dry-run`: what needs no answer of the cloud is checked, and nothing is started."""

from collections.abc import Sequence

from launch.cloud.checks import check_pod
from launch.cloud.job import planned
from launch.local_slices import planned_here
from pod_job.config.schema import JobConfig, PodKind
from pod_job.planning.task_index import ESTIMATED
from pod_job.planning.training import look_at_prompts, read_job_inputs


def checked_commands(config: JobConfig, overrides: Sequence[str]) -> list[str]:
    """Returns the commands that would be started.

    Raises:
        JobError: the pod cannot be; or, of a job on this machine, its inputs would be refused.
    """
    check_pod(config)
    if config.pod.kind is PodKind.tpu:
        return planned(config)
    look_at_prompts(read_job_inputs(config, reading=ESTIMATED))
    return [str(command) for command in planned_here(config, overrides)]
