"""Statistics of the vectors of each tap, measured on the first rows: for the scale of the input and decoder biases.

N rows, D width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from pod_job.errors import JobError
from pod_job.formats.statistics import OUTLIER_FACTOR
from pod_job.training.sources import RowBatch
from pod_job.training.tap_statistics import TapStatistics

MOST_UNUSABLE = 4
"""Times as many rows are looked at, at most, as are wanted."""
MEDIAN_STEPS = 50
"""Iterations of Weiszfeld's algorithm; distances to the median change by less than 0.1% after some twenty."""


class Measured(NamedTuple):
    """Measurements of one tap's usable rows, on every device.

    Attributes:
        median: the point with the least sum of distances to all rows.
        mean_norm, mean_squared_norm: of the rows.
        largest_norm: norm above which a row is an attention sink, as in the rows table of a run.
        rows: how many there were.
    """

    median: Float[Array, "D"]
    mean_norm: Float[Array, ""]
    mean_squared_norm: Float[Array, ""]
    largest_norm: Float[Array, ""]
    rows: Float[Array, ""]

    @property
    def statistics(self) -> TapStatistics:
        """Statistics as the trainer takes them."""
        return TapStatistics(float(self.mean_squared_norm), np.asarray(self.median))


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


@jax.jit
def measure_tap(vectors: Shaped[Array, "N D"], valid: Bool[Array, "N"]) -> Measured:
    """Returns the measurements of the valid rows that are not attention sinks."""
    values = vectors.astype(jnp.float32)
    norms = jnp.where(valid, jnp.linalg.norm(values, axis=1), jnp.nan)
    largest = OUTLIER_FACTOR * jnp.nanmedian(norms)
    usable = valid & (norms <= largest)
    values, norms = jnp.where(usable[:, None], values, 0.0), jnp.where(usable, norms, 0.0)
    count = jnp.maximum(jnp.sum(usable), 1).astype(jnp.float32)
    return Measured(
        median=geometric_median(values, usable, jnp.sum(values, axis=0) / count),
        mean_norm=jnp.sum(norms) / count,
        mean_squared_norm=jnp.sum(norms**2) / count,
        largest_norm=largest,
        rows=jnp.sum(usable).astype(jnp.float32),
    )


def geometric_median(
    values: Float[Array, "N D"], usable: Bool[Array, "N"], start: Float[Array, "D"]
) -> Float[Array, "D"]:
    """Returns the geometric median of the usable rows by Weiszfeld's algorithm.

    Weiszfeld, "Sur le point pour lequel la somme des distances de n points donnes est minimum" (1937), as SAELens and
    dictionary_learning initialize the decoder's bias.
    """

    def closer(_: Int[Array, ""] | int, median: Float[Array, "D"]) -> Float[Array, "D"]:
        distances = jnp.sqrt(jnp.maximum(jnp.sum((values - median) ** 2, axis=1), 1e-12))
        weights = jnp.where(usable, 1.0 / distances, 0.0)
        return weights @ values / jnp.maximum(jnp.sum(weights), 1e-30)

    with jax.default_matmul_precision("highest"):
        return jax.lax.fori_loop(0, MEDIAN_STEPS, closer, start)
