"""AuxK: dead latents learn to reconstruct what the living ones leave.

Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093), appendix A.2. As in SAELens and in
EleutherAI's sparsify, the loss shrinks with the number of dead latents while there are fewer of them than AuxK uses.
As in OpenAI's code, a dead latent takes part where it is positive; SAELens takes negative ones too.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pod_job.training.architectures import relu
from pod_job.training.architectures.parts import (
    Batch,
    Coefficients,
    Metrics,
    Params,
    Scalar,
    Terms,
    decode,
    measured,
    product,
    squared_error,
)
from pod_job.training.architectures.selection import largest_per_row
from pod_job.training.architectures.shape import SaeShape

Choose = Callable[[Float[Array, "N F"], Bool[Array, "N"], Coefficients], Float[Array, "N F"]]
"""Chooses among the latents above 0 of the valid rows; the others become 0."""


def loss_of_chosen(choose: Choose) -> Callable[..., tuple[Scalar, Metrics]]:
    """Returns the loss of an architecture that chooses latents in this way: squared error + auxiliary * AuxK."""

    def loss(
        shape: SaeShape,
        params: Params,
        batch: Batch,
        coefficients: Coefficients,
        dead: Bool[Array, "F"],
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[Scalar, Metrics]:
        positive = relu.encode(shape, params, batch.rows, dtype)
        latents = choose(positive, batch.valid, coefficients)
        output = decode(shape, params, latents, batch.rows, dtype)
        error = squared_error(output, batch.targets, batch.weights)
        auxiliary = auxiliary_loss(shape, params, batch, output, (positive, dead), dtype)
        terms = Terms(jnp.float32(0), auxiliary)
        return measured(error + coefficients.auxiliary * auxiliary, error, terms, latents, batch)

    return loss


def auxiliary_loss(
    shape: SaeShape,
    params: Params,
    batch: Batch,
    output: Float[Array, "N O"],
    activations: tuple[Float[Array, "N F"], Bool[Array, "F"]],
    dtype: DTypeLike,
) -> Scalar:
    """Returns the squared error with which the dead latents reconstruct the residual, mean over the valid rows.

    Args:
        output: reconstruction by the chosen latents.
        activations: relu of all pre-activations, and which latents are dead.
    """
    dead = activations[1]
    residual = lax.stop_gradient(batch.targets - output)
    count = jnp.sum(dead, dtype=jnp.int32)

    def largest(candidates: Float[Array, "N F"]) -> Float[Array, "N F"]:
        return jnp.where(largest_per_row(candidates, jnp.minimum(count, shape.auxiliary_k)), candidates, 0)

    def error(positive: Float[Array, "N F"], decoder: Float[Array, "F O"]) -> Scalar:
        candidates = jnp.where(dead, positive, 0)
        taken = lax.cond(batch.choose, largest, lambda values: values, candidates)
        reconstruction = product(taken, decoder, dtype)
        return squared_error(reconstruction, residual, batch.weights)

    share = jnp.minimum(count / shape.auxiliary_k, 1.0)
    return share * lax.cond(batch.revive, error, lambda *_: jnp.float32(0), activations[0], params["decoder"])
