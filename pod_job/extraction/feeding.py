"""Which rows of a step each host puts on its devices."""

from dataclasses import dataclass

from jax.sharding import NamedSharding

from pod_job.errors import JobError


@dataclass(frozen=True)
class Feeding:
    """This host's part in feeding steps.

    Hosts whose devices hold the same rows (their weights are split among them) form one feeder: they feed the same
    prompts, and the first of them writes the results. `row_starts` are the first global rows of the feeder's shards.
    """

    feeder: int
    feeders: int
    writes: bool
    row_starts: tuple[int, ...]


def feeding(rows: NamedSharding, global_rows: int, host: int) -> Feeding:
    """Which rows of a step this host feeds.

    Raises:
        JobError: hosts share some of their rows but not all, so that no host can feed them alone.
    """
    held: dict[int, set[int]] = {}
    for device, index in rows.devices_indices_map((global_rows,)).items():
        held.setdefault(device.process_index, set()).add(index[0].start or 0)
    groups: dict[tuple[int, ...], list[int]] = {}
    for process, starts in sorted(held.items()):
        groups.setdefault(tuple(sorted(starts)), []).append(process)
    if sum(map(len, groups)) != len(set().union(*held.values())):
        raise JobError(
            "mesh.model: hosts share some rows but not all; "
            "make mesh.model a multiple or a divisor of pod.devices_per_host"
        )
    ordered = sorted(groups)
    mine = tuple(sorted(held[host]))
    return Feeding(ordered.index(mine), len(ordered), groups[mine][0] == host, mine)
