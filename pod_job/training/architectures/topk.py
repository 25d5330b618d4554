"""TopK SAE with AuxK.

Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093). SAELens: `topk`, which multiplies
pre-activations by the norms of the decoder rows before it chooses; they are 1 here.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pod_job.training.architectures import relu
from pod_job.training.architectures.auxiliary import auxiliary_loss
from pod_job.training.architectures.parts import (
    Batch,
    Coefficients,
    Metrics,
    Params,
    Scalar,
    Terms,
    decode,
    kept,
    measured,
    squared_error,
)
from pod_job.training.architectures.selection import largest_per_row
from pod_job.training.architectures.shape import SaeShape


def encode(
    shape: SaeShape, params: Params, rows: Float[Array, "N D"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "N F"]:
    """Returns the k largest latents of each row, the others as 0; negative ones are 0 too."""
    assert shape.k is not None
    positive = relu.encode(shape, params, rows, dtype)
    return kept(positive, largest_per_row(positive, jnp.int32(shape.k)))


def loss(
    shape: SaeShape,
    params: Params,
    batch: Batch,
    coefficients: Coefficients,
    dead: Bool[Array, "F"],
    dtype: DTypeLike = jnp.float32,
) -> tuple[Scalar, Metrics]:
    """Returns squared error + auxiliary * AuxK."""
    positive = relu.encode(shape, params, batch.rows, dtype)
    latents = kept(positive, largest_per_row(positive, coefficients.k.astype(jnp.int32)))
    output = decode(shape, params, latents, batch.rows, dtype)
    error = squared_error(output, batch.targets, batch.weights)
    auxiliary = auxiliary_loss(shape, params, batch, output, (positive, dead), dtype)
    terms = Terms(jnp.float32(0), auxiliary)
    return measured(error + coefficients.auxiliary * auxiliary, error, terms, latents, batch)
