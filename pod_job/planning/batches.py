"""Which samples make which batch, and which feeder computes which batches.

A batch's samples depend on the data and the configuration only; who computes it, on the hosts there are now.
"""

from collections.abc import Sequence
from itertools import pairwise

from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.models.sharding import row_shards
from pod_job.run_folder.layout import MAX_BATCHES


def total_batches(samples: int, save_every_n_samples: int) -> int:
    """Returns how many batches the run has; they are numbered from 1, and the last may be short.

    Raises:
        JobError: more batches than a run may have.
    """
    batches = -(-samples // save_every_n_samples)
    if batches > MAX_BATCHES:
        raise JobError(
            f"extract.save_every_n_samples={save_every_n_samples} cuts {samples:,} samples into {batches:,} batches, a "
            f"run has at most {MAX_BATCHES:,}; raise it to {-(-samples // MAX_BATCHES)} or more"
        )
    return batches


def batch_samples(batch: int, samples: int, save_every_n_samples: int) -> range:
    """Returns the indices of the samples of batch `batch` (from 1)."""
    start = (batch - 1) * save_every_n_samples
    return range(start, min(start + save_every_n_samples, samples))


def assign_batches(pending: Sequence[int], feeders: int) -> list[list[int]]:
    """Returns each feeder's batches, consecutive ones, so that a host reads its part of the data and no more."""
    edges = [len(pending) * i // feeders for i in range(feeders + 1)]
    return [list(pending[start:stop]) for start, stop in pairwise(edges)]


def feeding_hosts(config: JobConfig) -> int:
    """Returns the number of hosts, or of groups of hosts that hold one copy of the weights, that get batches."""
    return config.pod.slices * min(config.pod.hosts, row_shards(config.mesh, config.sharding))


def idle_line(samples: int, batches: int, hosts: int) -> str | None:
    """Returns how many hosts have no batch, and the batch size that gives each of them one; None where all have."""
    if batches >= hosts:
        return None
    idle = f"{hosts - batches} of {hosts} hosts that feed the devices have no batch"
    if samples < hosts:
        return f"{idle}: there are {samples} samples; a smaller pod takes as long"
    return f"{idle}; extract.save_every_n_samples={max(1, (samples - 1) // (hosts - 1))} gives each one"
