"""Statistics of a tap's rows, from which an SAE's input scale and first decoder bias follow.

N rows, D width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from pod_job.formats.statistics import OUTLIER_FACTOR

MEDIAN_STEPS = 50
"""Iterations of Weiszfeld's algorithm; distances to the median change by less than 0.1% after some twenty."""


@dataclass(frozen=True)
class TapStatistics:
    """Measurements of one tap.

    Attributes:
        mean_squared_norm: of the rows.
        center: first decoder bias, in the rows' own units: the geometric median (Bricken et al. 2023; Gao et al. 2024)
            as `measure_tap` gives it, or the mean, which a run's metadata.json has.
    """

    mean_squared_norm: float
    center: Float[np.ndarray, "D"]

    @property
    def scale(self) -> float:
        """Factor that gives rows a mean squared norm of their width (Anthropic, April 2024; SAELens)."""
        return float(np.sqrt(len(self.center) / self.mean_squared_norm))


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
