"""AuxK: dead latents learn to reconstruct what the living ones leave.

Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093), appendix A.2. As in SAELens and in
EleutherAI's sparsify, the loss shrinks with the number of dead latents while there are fewer of them than AuxK uses.
As in OpenAI's code, a dead latent takes part where it is positive; SAELens takes negative ones too.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pod_job.training.architectures import relu
from pod_job.training.architectures.parts import (
    Activity,
    Batch,
    Coefficients,
    Metrics,
    Params,
    Scalar,
    Terms,
    activity,
    largest,
    measured,
    product,
    reconstructed,
    squared_error,
)
from pod_job.training.architectures.selection import SELDOM
from pod_job.training.architectures.shape import SaeShape

Choose = Callable[
    [SaeShape, Params, Float[Array, "N F"], Batch, Coefficients], tuple[Float[Array, "N F"], Scalar | None]
]
"""Chooses among the latents above 0 of the valid rows; the others become 0. With the smallest, where there is a use."""
Reconstruct = Callable[[SaeShape, Params, Batch, Coefficients, DTypeLike], tuple[Float[Array, "N O"], Activity]]
"""Reconstructs the targets by the latents that an architecture chooses."""


def by_dense_products(choose: Choose) -> Reconstruct:
    """Returns the reconstruction by latents that are chosen in this way, most of which are 0."""

    def reconstruct(
        shape: SaeShape, params: Params, batch: Batch, coefficients: Coefficients, dtype: DTypeLike
    ) -> tuple[Float[Array, "N O"], Activity]:
        positive = relu.encode(shape, params, batch.rows, dtype)
        latents, smallest = choose(shape, params, positive, batch, coefficients)
        active = activity(latents, batch)
        output = reconstructed(shape, params, latents, batch, dtype)
        return output, active if smallest is None else active._replace(lowest=smallest)

    return reconstruct


def loss_of_chosen(reconstruct: Reconstruct) -> Callable[..., tuple[Scalar, Metrics]]:
    """Returns the loss of an architecture that chooses latents: squared error + auxiliary * AuxK."""

    def loss(
        shape: SaeShape,
        params: Params,
        batch: Batch,
        coefficients: Coefficients,
        dead: Bool[Array, "F"],
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[Scalar, Metrics]:
        output, active = reconstruct(shape, params, batch, coefficients, dtype)
        error = squared_error(output, batch.targets, batch.weights)
        auxiliary = auxiliary_loss(shape, params, batch, output, dead, dtype)
        terms = Terms(jnp.float32(0), auxiliary)
        return measured(error + coefficients.auxiliary * auxiliary, error, terms, active, batch)

    return loss


def auxiliary_loss(
    shape: SaeShape,
    params: Params,
    batch: Batch,
    output: Float[Array, "N O"],
    dead: Bool[Array, "F"],
    dtype: DTypeLike,
) -> Scalar:
    """Returns the squared error with which the dead latents reconstruct the residual, mean over the valid rows.

    Args:
        output: reconstruction by the chosen latents.
    """
    if isinstance(batch.revive, bool) and not batch.revive:
        return jnp.float32(0)
    used = {name: params[name] for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")}
    residual = lax.stop_gradient(batch.targets - output)
    share = jnp.minimum(jnp.sum(dead, dtype=jnp.int32) / shape.auxiliary_k, 1.0)
    return share * cast(jax.Array, error_of_dead(shape, jnp.dtype(dtype).name, used, batch, residual, dead))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def error_of_dead(
    shape: SaeShape, dtype: str, params: Params, batch: Batch, residual: Float[Array, "N O"], dead: Bool[Array, "F"]
) -> Scalar:
    """Returns that error, and 0 where no latent is dead; only the parameters have a gradient."""
    return error_and_gradient(shape, dtype, params, batch, residual, dead)[0]


def error_and_gradient(
    shape: SaeShape, dtype: str, params: Params, batch: Batch, residual: Float[Array, "N O"], dead: Bool[Array, "F"]
) -> tuple[Scalar, Params]:
    """Returns the error and its gradient together: what a choice between ways hands from one to the other is large."""
    count, parts = jnp.sum(dead, dtype=jnp.int32), batch.products.parts

    def error(latents: Params, candidate: Bool[Array, "C"]) -> Scalar:
        values = jnp.where(candidate, relu.encode(shape, latents, batch.rows, dtype), 0)
        k = jnp.minimum(count, shape.auxiliary_k)
        taken = cast(jax.Array, largest(batch.keep, shape.auxiliary_k, values, k))
        output = product(taken, latents["decoder"], dtype, split=parts > 1)
        return squared_error(output, residual, batch.weights)

    def of_none(params: Params) -> tuple[Scalar, Params]:
        return jnp.float32(0), jax.tree.map(jnp.zeros_like, params)

    def of_few(params: Params) -> tuple[Scalar, Params]:
        places, candidate = dead_places(dead, shape.few_latents(parts), parts)
        return jax.value_and_grad(lambda every: error(at_places(every, places), candidate))(params)

    def of_many(params: Params) -> tuple[Scalar, Params]:
        return jax.value_and_grad(lambda every: error(every, dead))(params)

    def among_all(params: Params) -> tuple[Scalar, Params]:
        with jax.named_scope(SELDOM):
            return of_many(params)

    if isinstance(batch.many, bool):
        return lax.cond(batch.revive, of_many if batch.many else of_few, of_none, params)
    return lax.switch(jnp.asarray(batch.revive, jnp.int32) * (1 + batch.many), [of_none, of_few, among_all], params)


def _forward(
    shape: SaeShape, dtype: str, params: Params, batch: Batch, residual: Float[Array, "N O"], dead: Bool[Array, "F"]
) -> tuple[Scalar, Params]:
    return error_and_gradient(shape, dtype, params, batch, residual, dead)


def _backward(shape: SaeShape, dtype: str, gradient: Params, factor: Scalar) -> tuple[Params, None, None, None]:
    return jax.tree.map(lambda value: factor * value, gradient), None, None, None


error_of_dead.defvjp(_forward, _backward)


def dead_places(dead: Bool[Array, "F"], size: int, parts: int) -> tuple[Int[Array, "P C"], Bool[Array, "PC"]]:
    """Returns the places of `size` latents within each part of them, its dead ones first, and which of all are dead.

    Both are in the order of the latents. No latent leaves the device that has its part.
    """
    split = dead.reshape(parts, -1)
    places = jnp.argsort(~split, axis=1, stable=True)[:, :size]
    return places, (jnp.arange(size) < jnp.sum(split, axis=1, keepdims=True)).reshape(-1)


def at_places(params: Params, places: Int[Array, "P C"]) -> Params:
    """Returns the parameters of the latents at these places of each part alone."""
    encoder, bias, decoder = params["encoder"], params["encoder_bias"], params["decoder"]
    parts, D, output = len(places), len(encoder), decoder.shape[1]
    columns = jax.vmap(lambda part, at: part[:, at], in_axes=(1, 0), out_axes=1)(encoder.reshape(D, parts, -1), places)
    rows = jax.vmap(lambda part, at: part[at])
    return params | {
        "encoder": columns.reshape(D, -1),
        "encoder_bias": rows(bias.reshape(parts, -1), places).reshape(-1),
        "decoder": rows(decoder.reshape(parts, -1, output), places).reshape(-1, output),
    }
