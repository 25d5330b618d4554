"""Jobs of the slices of a run: one configuration in, one for each slice out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from launch.hosts_file import groups_of
from pod_job.config.schema import JobConfig


@dataclass(frozen=True)
class SliceJob:
    """The job of one slice, as a job on one pod: its configuration, and the overrides that its hosts get.

    `number`: from 0.
    """

    number: int
    name: str
    config: JobConfig
    overrides: Sequence[str]


def has_slices(config: JobConfig) -> bool:
    """Returns whether the configuration is that of several slices, and not of one of them."""
    return config.pod.slices > 1 and config.pod.slice is None


def pod_configs(config: JobConfig) -> list[JobConfig]:
    """Returns the configuration of each pod of a run: of every slice, or of the run's one pod."""
    return [job.config for job in slice_jobs(config, [])] if has_slices(config) else [config]


def slice_jobs(config: JobConfig, overrides: Sequence[str]) -> list[SliceJob]:
    """Returns the jobs of the slices, named by their numbers from 0, or as the file of their hosts names them."""
    own = config.pod.hosts_file is not None
    names = [group.name for group in groups_of(config)] if own else [str(number) for number in range(config.pod.slices)]
    return [
        SliceJob(
            number,
            name,
            replace(config, pod=replace(config.pod, slice=name, port=config.pod.port and config.pod.port + number)),
            [*overrides, f"pod.slice='{name}'"],
        )
        for number, name in enumerate(names)
    ]


class Next(Enum):
    """Step that follows the end of a slice before the run's."""

    restart = "restart"
    leave = "leave"  # the others go on without it
    end = "end"  # of the run: every slice would meet the same


def after_loss(may_pass: bool, asked: bool, lost: int, budget: int) -> Next:
    """Returns what follows when a slice has ended before the run.

    Args:
        may_pass: whether nobody made a mistake, so that another start may do.
        asked: whether it was asked to stop.
        lost: slices that were lost so far, with this one.
        budget: how many may be started again.
    """
    if asked:
        return Next.leave
    if not may_pass:
        return Next.end
    return Next.restart if lost <= budget else Next.leave
