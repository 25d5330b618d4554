"""TopK's products on one CPU device: of each row with its k chosen latents alone.

Of 4,096 latents and k = 32 a dense product has 128 times the operations. Of loops that take one row of a matrix after
the other XLA makes vector instructions on CPUs; TPUs are faster with dense products, and rows or latents that are split
over devices would have to be sent.

N rows, D input width, O output width, F latents, K the largest k.
"""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.lax import stop_gradient
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pod_job.training.architectures.parts import (
    Activity,
    Batch,
    Coefficients,
    Params,
    no_shift,
    product,
)
from pod_job.training.architectures.shape import SaeShape


class Chosen(NamedTuple):
    """The largest latents of each row, the largest first; values that are not chosen are 0."""

    values: Float[Array, "N K"]
    places: Int[Array, "N K"]


class Weights(NamedTuple):
    """Parameters that latents go through, in float32."""

    encoder: Float[Array, "D F"]
    bias: Float[Array, "F"]
    decoder: Float[Array, "F O"]


def by_sparse_products(
    shape: SaeShape, params: Params, batch: Batch, coefficients: Coefficients, dtype: DTypeLike
) -> tuple[Float[Array, "N O"], Activity]:
    """Returns the reconstruction by the k largest latents of each row, as `auxiliary.by_dense_products` does."""
    assert shape.k is not None
    name, bias, rows = jnp.dtype(dtype).name, params["encoder_bias"], batch.rows
    if shape.centered:
        rows = rows - stop_gradient(params["decoder_bias"])
        bias = bias + cast(jax.Array, no_shift(params["decoder_bias"], params["encoder"], name))
    weights = Weights(params["encoder"], bias, params["decoder"])
    k = coefficients.k.astype(jnp.int32)
    output, chosen = cast(tuple[jax.Array, Chosen], coded(shape.k, name, rows, weights, k))
    output = output + params["decoder_bias"]
    if shape.skip:
        output = output + product(batch.rows, params["skip"], dtype)
    active = (chosen.values > 0) & batch.valid[:, None]
    fired = jnp.zeros(shape.latents).at[chosen.places].add(active.astype(jnp.float32))
    return output, Activity(fired, jnp.min(jnp.where(active, chosen.values, jnp.inf)))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def coded(
    most: int, dtype: str, rows: Float[Array, "N D"], weights: Weights, k: Int[Array, ""]
) -> tuple[Float[Array, "N O"], Chosen]:
    """Returns the k largest latents, `most` at most, and their sum of decoder rows; the weights alone have a gradient.

    Factors are rounded to `dtype`, as in `parts.product`.
    """

    @sequential_vmap  # of several SAEs one after the other: XLA would sort values that have one more axis
    def forward(rows: jax.Array, weights: Weights, k: jax.Array) -> tuple[jax.Array, Chosen]:
        latents = jnp.matmul(rows.astype(dtype), weights.encoder.astype(dtype), preferred_element_type=jnp.float32)
        positive = jnp.maximum(latents + weights.bias, 0).astype(dtype).astype(jnp.float32)
        values, places = lax.optimization_barrier(lax.top_k(positive, most))
        chosen = Chosen(jnp.where(jnp.arange(most) < k, values, 0), places)
        return weighted_sum_of_rows(chosen, rounded(weights.decoder, dtype)), chosen

    return forward(rows, weights, k)


def _coded_forward(
    most: int, dtype: str, rows: Float[Array, "N D"], weights: Weights, k: Int[Array, ""]
) -> tuple[tuple[Float[Array, "N O"], Chosen], tuple[Float[Array, "N D"], Float[Array, "F O"], Chosen]]:
    output, chosen = cast(tuple[jax.Array, Chosen], coded(most, dtype, rows, weights, k))
    return (output, chosen), (rows, weights.decoder, chosen)


def _coded_backward(
    most: int,
    dtype: str,
    kept: tuple[Float[Array, "N D"], Float[Array, "F O"], Chosen],
    gradients: tuple[Float[Array, "N O"], Chosen],
) -> tuple[None, Weights, None]:
    @sequential_vmap
    def backward(rows: jax.Array, decoder: jax.Array, chosen: Chosen, gradient: jax.Array) -> Weights:
        gradient = rounded(gradient, dtype)
        of_values = jnp.where(chosen.values > 0, products_with_rows(gradient, chosen, rounded(decoder, dtype)), 0)
        of_latents = Chosen(rounded(of_values, dtype), chosen.places)
        latents = len(decoder)
        return Weights(
            encoder=sum_at_places(of_latents, rounded(rows, dtype), latents).T,
            bias=jnp.zeros(latents).at[chosen.places].add(of_values),
            decoder=sum_at_places(chosen, gradient, latents),
        )

    return None, backward(*kept, gradients[0]), None


coded.defvjp(_coded_forward, _coded_backward)


def rounded(values: jax.Array, dtype: str) -> jax.Array:
    return values.astype(dtype).astype(jnp.float32)


def weighted_sum_of_rows(chosen: Chosen, matrix: Float[Array, "F O"]) -> Float[Array, "N O"]:
    """Returns of each row the sum of the matrix's rows at its places, times its values."""

    def add(turn: Int[Array, ""], total: Float[Array, "N O"]) -> Float[Array, "N O"]:
        return total + chosen.values[:, turn, None] * matrix[chosen.places[:, turn]]

    start = jnp.zeros((len(chosen.places), matrix.shape[1]))
    return lax.fori_loop(0, chosen.places.shape[1], add, start)


def products_with_rows(
    vectors: Float[Array, "N O"], chosen: Chosen, matrix: Float[Array, "F O"]
) -> Float[Array, "N K"]:
    """Returns the inner products of each vector with the matrix's rows at its places."""

    def multiply(_: None, places: Int[Array, "N"]) -> tuple[None, Float[Array, "N"]]:
        return None, jnp.einsum("no,no->n", vectors, matrix[places])

    return lax.scan(multiply, None, chosen.places.T)[1].T


def sum_at_places(chosen: Chosen, vectors: Float[Array, "N O"], latents: int) -> Float[Array, "F O"]:
    """Returns a matrix to whose rows at each vector's places that vector times its values is added."""

    def add(row: Int[Array, ""], total: Float[Array, "F O"]) -> Float[Array, "F O"]:
        # top_k gives a place of a row once.
        return total.at[chosen.places[row]].add(chosen.values[row][:, None] * vectors[row], unique_indices=True)

    return lax.fori_loop(0, len(vectors), add, jnp.zeros((latents, vectors.shape[1])))
