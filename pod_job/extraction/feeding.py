"""Rows of a step: how they are split over the mesh, and which of them each host puts on its devices."""

from dataclasses import dataclass

from jax.sharding import Mesh, NamedSharding

from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.models.mesh import row_sharding
from pod_job.models.sharding import row_shards


@dataclass(frozen=True)
class StepRows:
    """The rows of a step on all hosts: how many, and the sharding of arrays that have them as first dimension."""

    count: int
    sharding: NamedSharding


@dataclass(frozen=True)
class Feeding:
    """This host's part in feeding steps.

    Hosts whose devices hold the same rows (their weights are split among them) form one feeder: they feed the same
    prompts, and the first of them writes the results.

    Attributes:
        feeder: number of this host's feeder among the `feeders`.
        writes: this host writes the feeder's results.
        row_starts: first global rows of the feeder's shards.
    """

    rows: StepRows
    feeder: int
    feeders: int
    writes: bool
    row_starts: tuple[int, ...]

    @property
    def feeder_rows(self) -> int:
        """Rows of a step that this host's feeder fills."""
        return self.rows.count // self.feeders


def step_rows(config: JobConfig, mesh: Mesh) -> StepRows:
    """Returns the rows of a step of this job."""
    count = row_shards(config.mesh, config.sharding) * config.extract.rows_per_device
    return StepRows(count, row_sharding(mesh, config.sharding))


def feeding(rows: StepRows, host: int) -> Feeding:
    """Returns which rows of a step the host with this process index feeds.

    Raises:
        JobError: hosts share some of their rows but not all, so that no host can feed them alone.
    """
    starts_of_host: dict[int, set[int]] = {}
    for device, index in rows.sharding.devices_indices_map((rows.count,)).items():
        starts_of_host.setdefault(device.process_index, set()).add(index[0].start or 0)
    feeders: dict[tuple[int, ...], list[int]] = {}
    for process, starts in sorted(starts_of_host.items()):
        feeders.setdefault(tuple(sorted(starts)), []).append(process)
    if sum(map(len, feeders)) != len(set().union(*starts_of_host.values())):
        raise JobError(
            "mesh.model: hosts share some rows but not all; "
            "make mesh.model a multiple or a divisor of pod.devices_per_host"
        )
    row_starts = tuple(sorted(starts_of_host[host]))
    return Feeding(rows, sorted(feeders).index(row_starts), len(feeders), feeders[row_starts][0] == host, row_starts)
