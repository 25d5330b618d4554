"""Gated SAE.

Rajamanoharan et al., "Improving Dictionary Learning with Gated Sparse Autoencoders" (arXiv:2404.16014), section 3.2:
the decoder of the auxiliary reconstruction is frozen. SAELens' `gated` has that loss, and does not freeze it.
"""

import jax.numpy as jnp
from jax.lax import stop_gradient
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
    pre_activations,
    reconstructed,
    squared_error,
    weighted_sum,
)
from pod_job.training.architectures.shape import SaeShape


def encode(
    shape: SaeShape, params: Params, rows: Float[Array, "N D"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "N F"]:
    """Returns the magnitudes of those latents whose gate is open."""
    return gate_and_latents(shape, params, rows, dtype)[1]


def gate_and_latents(
    shape: SaeShape, params: Params, rows: Float[Array, "N D"], dtype: DTypeLike
) -> tuple[Float[Array, "N F"], Float[Array, "N F"]]:
    """Returns the gates' pre-activations and the latents; both have one encoder, up to a scale per latent."""
    shared = pre_activations(shape, params, rows, dtype)
    gate = shared + params["gate_bias"]
    magnitude = jnp.maximum(shared * jnp.exp(params["gate_scale"]) + params["encoder_bias"], 0.0)
    return gate, jnp.where(gate > 0, magnitude, 0.0)


def loss(
    shape: SaeShape,
    params: Params,
    batch: Batch,
    coefficients: Coefficients,
    dead: Bool[Array, "F"],
    dtype: DTypeLike = jnp.float32,
) -> tuple[Scalar, Metrics]:
    """Returns squared error + sparsity * sum of relu(gates) + squared error of their own reconstruction.

    The gates count times the norms of the decoder rows, which are 1 in the paper. Dead latents are revived by
    resampling.
    """
    gate, latents = gate_and_latents(shape, params, batch.rows, dtype)
    error = squared_error(reconstructed(shape, params, latents, batch, dtype), batch.targets, batch.weights)
    opened = jnp.maximum(gate, 0.0)
    penalty = weighted_sum(shape, params, opened, batch.weights)
    frozen = {name: stop_gradient(params[name]) for name in ("decoder", "decoder_bias", "skip") if name in params}
    auxiliary = squared_error(reconstructed(shape, frozen, opened, batch, dtype), batch.targets, batch.weights)
    total = error + coefficients.sparsity * penalty + auxiliary
    return measured(total, error, Terms(penalty, auxiliary), activity(latents, batch), batch)
