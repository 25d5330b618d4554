"""Measurement of each tap on the first rows of a source, for the scale of the input and decoder biases."""

from collections.abc import Iterator

import jax.numpy as jnp

from pod_job.errors import JobError
from pod_job.training.sources import RowBatch
from pod_job.training.tap_statistics import Measured, measure_tap

MOST_UNUSABLE = 4
"""Times as many rows are looked at, at most, as are wanted."""


def measure(batches: Iterator[RowBatch], rows: int) -> tuple[dict[str, Measured], list[RowBatch]]:
    """Returns the measurements of each tap over the first batches that hold `rows` rows at least, and these batches.

    Raises:
        JobError: none of the rows can be used, or all are zero.
    """
    taken: list[RowBatch] = []
    usable = looked_at = 0
    while usable < rows and looked_at < MOST_UNUSABLE * rows:
        batch = next(batches)
        taken.append(batch)
        usable, looked_at = usable + int(jnp.sum(batch.valid)), looked_at + len(batch.valid)
    valid = jnp.concatenate([batch.valid for batch in taken])
    measured = {}
    for tap in taken[0].vectors:
        measured[tap] = measure_tap(jnp.concatenate([batch.vectors[tap] for batch in taken]), valid)
        if not float(measured[tap].mean_squared_norm) > 0:
            raise JobError(
                f"train.saes: tap={tap} has no usable row among the first {looked_at:,}; look at the prompts"
            )
    return measured, taken
