"""Arrays between the host and its devices."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from pod_job.extraction.feeding import Feeding


def put_rows(arrays: Sequence[np.ndarray], feeding: Feeding) -> tuple[Array, ...]:
    """Returns a feeder's arrays [R, ...] as its part of global arrays, split like the rows of a step."""
    feeder_rows = len(arrays[0])
    per_shard = feeder_rows // len(feeding.row_starts)

    def put(local: np.ndarray) -> Array:
        def shard(index: Any) -> np.ndarray:
            at = feeding.row_starts.index(index[0].start or 0) * per_shard
            return local[at : at + per_shard]

        shape = (feeder_rows * feeding.feeders, *local.shape[1:])
        return jax.make_array_from_callback(shape, feeding.rows.sharding, shard)

    return tuple(put(array) for array in arrays)


def start_copy(output: Any) -> None:
    """Lets the devices send the arrays of a pytree while the next step runs."""
    for array in jax.tree.leaves(output):
        for shard in array.addressable_shards:
            shard.data.copy_to_host_async()


def local_rows(array: Array) -> list[np.ndarray]:
    """Returns this host's shards of an output by their rows, each once: [rows of a shard, M or S, width]."""
    jax.block_until_ready(array)  # where the program failed this raises; on CPU the copies would wait forever
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return [np.asarray(shards[start]) for start in sorted(shards)]
