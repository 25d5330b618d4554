"""ReLU SAE with an L1 penalty.

Bricken et al., "Towards Monosemanticity" (transformer-circuits.pub, 2023), with the penalty of "Update on how we train
SAEs" (April 2024): each latent counts times the norm of its decoder row. SAELens: `standard`, with its lp_norm of 1.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pod_job.training.architectures.parts import (
    Batch,
    Coefficients,
    Metrics,
    Params,
    Scalar,
    Terms,
    activity,
    measured,
    positive,
    pre_activations,
    reconstructed,
    squared_error,
    weighted_sum,
)
from pod_job.training.architectures.shape import SaeShape


def encode(
    shape: SaeShape, params: Params, rows: Float[Array, "N D"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "N F"]:
    """Returns relu((rows - decoder_bias) @ encoder + encoder_bias), rounded to `dtype`."""
    return positive(pre_activations(shape, params, rows, dtype) + params["encoder_bias"], jnp.dtype(dtype).name)


def loss(
    shape: SaeShape,
    params: Params,
    batch: Batch,
    coefficients: Coefficients,
    dead: Bool[Array, "F"],
    dtype: DTypeLike = jnp.float32,
) -> tuple[Scalar, Metrics]:
    """Returns squared error + sparsity * sum of latents times decoder norms; dead latents are revived by resampling."""
    latents = encode(shape, params, batch.rows, dtype)
    error = squared_error(reconstructed(shape, params, latents, batch, dtype), batch.targets, batch.weights)
    penalty = weighted_sum(shape, params, latents, batch.weights)
    terms = Terms(penalty, jnp.float32(0))
    return measured(error + coefficients.sparsity * penalty, error, terms, activity(latents, batch), batch)
