"""Pieces that the architectures are made of.

N rows, D input width, O output width, F latents, T taps of a crosscoder.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pod_job.training.architectures.selection import keep_largest
from pod_job.training.architectures.shape import SaeShape

Params = dict[str, jax.Array]
"""Parameters by name, in float32: encoder [D, F], encoder_bias [F], decoder [F, O], decoder_bias [O]; and

gated: gate_bias [F] and gate_scale [F] (`encoder_bias` is that of the magnitudes); jump_relu: log_threshold [F];
batch_topk and matryoshka: threshold [], which no gradient changes; with skip: skip [D, O].
"""
Scalar = Float[Array, ""]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Products:
    """How latents are multiplied; compiled in: no array of a batch.

    Attributes:
        sparse: whether TopK multiplies with the chosen latents alone, as is faster on one CPU device.
        parts: into which latents are split over devices; of each AuxK computes a few dead ones.
    """

    sparse: bool = False
    parts: int = 1


class Batch(NamedTuple):
    """Rows of one training step.

    Attributes:
        targets: what is reconstructed: `rows` themselves, unless for a transcoder.
        valid: rows that count; the others change nothing, but must be finite.
        revive: whether any latent of any SAE that runs together is dead; where none is, AuxK costs nothing.
        many: whether any of them has more dead latents in a part than `SaeShape.few_latents`; else AuxK computes these
            alone. A bool of Python where one of both is always right.
        keep: `selection.keep_largest`, or what gives the same faster on the devices.
        products: in which way latents are multiplied.
    """

    rows: Float[Array, "N D"]
    targets: Float[Array, "N O"]
    valid: Bool[Array, "N"]
    revive: Bool[Array, ""] | bool = True
    many: Bool[Array, ""] | bool = True
    keep: Partial = Partial(keep_largest)
    products: Products = Products()

    @property
    def weights(self) -> Float[Array, "N"]:
        """Weight of each row in a mean over the valid rows."""
        valid = self.valid.astype(jnp.float32)
        return valid / jnp.maximum(jnp.sum(valid), 1.0)


class Coefficients(NamedTuple):
    """Numbers of a loss that differ between SAEs of one shape, or over time.

    Attributes:
        sparsity: factor of the sparsity loss (relu, gated, jump_relu).
        auxiliary: factor of AuxK (topk, batch_topk, matryoshka); 1/32 in Gao et al. 2024, 1 in SAELens.
        k: active latents per row; starts from `SaeShape.k`, may differ from it and need not be whole with batch_topk.
        bandwidth: width of the kernel that estimates the gradient of jump_relu's thresholds.
    """

    sparsity: Scalar
    auxiliary: Scalar
    k: Scalar
    bandwidth: Scalar


class Metrics(NamedTuple):
    """Measurements of a loss over the valid rows of one batch.

    Attributes:
        loss: what is minimized.
        squared_error: |target - output|^2, mean over rows.
        deviation: |target - mean target|^2, mean over rows.
        sparsity, auxiliary: the other terms of the loss, before their coefficients.
        l0: active latents per row.
        fired: number of rows in which each latent was active.
        lowest: smallest active value; infinite if no latent was active. Of BatchTopK 0 where fewer than are chosen are
            positive.
    """

    loss: Scalar
    squared_error: Scalar
    deviation: Scalar
    sparsity: Scalar
    auxiliary: Scalar
    l0: Scalar
    fired: Float[Array, "F"]
    lowest: Scalar

    @property
    def explained_variance(self) -> Scalar:
        return 1.0 - self.squared_error / self.deviation


class Terms(NamedTuple):
    """Terms of a loss beside its reconstruction, means over the valid rows."""

    sparsity: Scalar
    auxiliary: Scalar


def product(
    left: Float[Array, "N K"], right: Float[Array, "K M"], dtype: DTypeLike, *, split: bool = False
) -> Float[Array, "N M"]:
    """Returns the matrix product in float32, of factors rounded to `dtype`; so are its gradients' factors.

    The gradient of `right`, a matrix of weights, is rounded to `dtype` too, on any number of devices, and so is the
    product itself where K is `split` over devices: half as many bytes travel where devices add them up.
    """
    return cast(jax.Array, _product(left, right, jnp.dtype(dtype).name, split))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(left: Float[Array, "N K"], right: Float[Array, "K M"], dtype: str, split: bool) -> Float[Array, "N M"]:
    added_up = jnp.dtype(dtype) if split else jnp.float32
    product = jnp.matmul(left.astype(dtype), right.astype(dtype), preferred_element_type=added_up)
    return product.astype(jnp.float32)


def _product_forward(
    left: Float[Array, "N K"], right: Float[Array, "K M"], dtype: str, split: bool
) -> tuple[Float[Array, "N M"], tuple[Float[Array, "N K"], Float[Array, "K M"]]]:
    return _product(left, right, dtype, split), (left, right)


def _product_backward(
    dtype: str, _: bool, factors: tuple[Float[Array, "N K"], Float[Array, "K M"]], gradient: Float[Array, "N M"]
) -> tuple[Float[Array, "N K"], Float[Array, "K M"]]:
    left, right = factors
    gradient = gradient.astype(dtype)
    of_left = jnp.matmul(gradient, right.astype(dtype).T, preferred_element_type=jnp.float32)
    of_right = jax.lax.platform_dependent(
        left.astype(dtype).T, gradient, cpu=_wide_product, default=partial(_rounded_product, dtype=dtype)
    )
    return of_left.astype(left.dtype), of_right.astype(dtype).astype(right.dtype)


def _wide_product(left: Float[Array, "K N"], right: Float[Array, "N M"]) -> Float[Array, "K M"]:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _rounded_product(left: Float[Array, "K N"], right: Float[Array, "N M"], dtype: str) -> Float[Array, "K M"]:
    # By itself in `dtype`: XLA leaves out a rounding that follows, and adds up in float32.
    return jnp.matmul(left, right, preferred_element_type=jnp.dtype(dtype)).astype(jnp.float32)


_product.defvjp(_product_forward, _product_backward)


def row_product(row: Float[Array, "K"], matrix: Float[Array, "K M"], dtype: DTypeLike) -> Float[Array, "M"]:
    """Returns `product` of one row, taken eight times: of one, XLA makes a sum on the vector units of TPUs, slower."""
    return product(jnp.tile(row, (8, 1)), matrix, dtype)[0]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def positive(values: Float[Array, "N F"], dtype: str) -> Float[Array, "N F"]:
    """Returns relu of the values, rounded to `dtype`; its gradient needs only what it returns."""
    return jnp.maximum(values, 0).astype(dtype)


def _positive_forward(values: Float[Array, "N F"], dtype: str) -> tuple[Float[Array, "N F"], Float[Array, "N F"]]:
    result = jnp.maximum(values, 0).astype(dtype)
    return result, result


def _positive_backward(dtype: str, result: Float[Array, "N F"], gradient: Float[Array, "N F"]) -> tuple[jax.Array]:
    return (jnp.where(result > 0, gradient, 0).astype(jnp.float32),)


positive.defvjp(_positive_forward, _positive_backward)


@jax.custom_vjp
def kept(latents: Float[Array, "N F"], mask: Bool[Array, "N F"]) -> Float[Array, "N F"]:
    """Returns the latents in the mask, the others as 0; its gradient needs only what it returns, and no mask."""
    return jnp.where(mask, latents, 0)


def _kept_forward(
    latents: Float[Array, "N F"], mask: Bool[Array, "N F"]
) -> tuple[Float[Array, "N F"], Float[Array, "N F"]]:
    result = kept(latents, mask)
    return result, result


def _kept_backward(result: Float[Array, "N F"], gradient: Float[Array, "N F"]) -> tuple[jax.Array, None]:
    return jnp.where(result > 0, gradient, 0), None


kept.defvjp(_kept_forward, _kept_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def largest(keep: Partial, most: int, values: Float[Array, "N F"], k: Int[Array, ""]) -> Float[Array, "N F"]:
    """Returns the k largest values of each row, chosen by `Batch.keep`; its gradient needs only what it returns.

    `most` is what k is at most.
    """
    return keep(values, k, most)


def _largest_forward(
    keep: Partial, most: int, values: Float[Array, "N F"], k: Int[Array, ""]
) -> tuple[Float[Array, "N F"], Float[Array, "N F"]]:
    result = keep(values, k, most)
    return result, result


def _largest_backward(
    _: Partial, most: int, result: Float[Array, "N F"], gradient: Float[Array, "N F"]
) -> tuple[jax.Array, None]:
    return _kept_backward(result, gradient)


largest.defvjp(_largest_forward, _largest_backward)


def pre_activations(
    shape: SaeShape, params: Params, rows: Float[Array, "N D"], dtype: DTypeLike
) -> Float[Array, "N F"]:
    """Returns rows @ encoder in float32, of rows from which the decoder's bias is subtracted where the shape says so.

    The gradient of that bias comes from a product with one row, which is zero: through all rows it would cost a
    sixth of the step.
    """
    if not shape.centered:
        return product(rows, params["encoder"], dtype)
    centered = rows - stop_gradient(params["decoder_bias"])
    shift = cast(jax.Array, no_shift(params["decoder_bias"], params["encoder"], jnp.dtype(dtype).name))
    return product(centered, params["encoder"], dtype) + shift


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def no_shift(bias: Float[Array, "D"], encoder: Float[Array, "D F"], dtype: str) -> Float[Array, "F"]:
    """Returns zeros whose gradient is that of -bias @ encoder for the bias, and none for the encoder."""
    return jnp.zeros(encoder.shape[1], jnp.float32)


def _no_shift_forward(
    bias: Float[Array, "D"], encoder: Float[Array, "D F"], dtype: str
) -> tuple[Float[Array, "F"], Float[Array, "D F"]]:
    return no_shift(bias, encoder, dtype), encoder


def _no_shift_backward(
    dtype: str, encoder: Float[Array, "D F"], gradient: Float[Array, "F"]
) -> tuple[Float[Array, "D"], Float[Array, "D F"]]:
    return -row_product(gradient, encoder.T, dtype), jnp.zeros_like(encoder)


no_shift.defvjp(_no_shift_forward, _no_shift_backward)


def decode(
    shape: SaeShape,
    params: Params,
    latents: Float[Array, "N F"],
    rows: Float[Array, "N D"],
    dtype: DTypeLike = jnp.float32,
    parts: int = 1,
) -> Float[Array, "N O"]:
    """Returns latents @ decoder + decoder_bias; with a skip connection plus rows @ skip. `parts`: as in `Products`."""
    output = product(latents, params["decoder"], dtype, split=parts > 1) + params["decoder_bias"]
    return output + product(rows, params["skip"], dtype) if shape.skip else output


def reconstructed(
    shape: SaeShape, params: Params, latents: Float[Array, "N F"], batch: Batch, dtype: DTypeLike
) -> Float[Array, "N O"]:
    """Returns `decode` of the latents of a batch's rows."""
    return decode(shape, params, latents, batch.rows, dtype, batch.products.parts)


def decoder_norms(shape: SaeShape, decoder: Float[Array, "F O"]) -> Float[Array, "F"]:
    """Returns the norm of each latent's decoder row; for a crosscoder the sum of its norms in all taps.

    The sum is that of the sparsity loss of Lindsey et al., "Sparse Crosscoders for Cross-Layer Features and Model
    Diffing" (transformer-circuits.pub, 2024).
    """
    by_tap = decoder.reshape(decoder.shape[0], shape.taps, -1)
    return jnp.sum(jnp.sqrt(jnp.sum(by_tap**2, axis=2)), axis=1)


def weighted_sum(shape: SaeShape, params: Params, values: Float[Array, "N F"], weights: Float[Array, "N"]) -> Scalar:
    """Returns the sum of a value of each latent times the norm of its decoder row, mean over the valid rows."""
    return jnp.sum(jnp.sum(values * weights[:, None], axis=0) * decoder_norms(shape, params["decoder"]))


def squared_error(output: Float[Array, "N O"], targets: Float[Array, "N O"], weights: Float[Array, "N"]) -> Scalar:
    """Returns the squared distance, summed over dimensions, mean over the valid rows."""
    return jnp.sum(jnp.sum((targets - output) ** 2, axis=1) * weights)


class Activity(NamedTuple):
    """Activity of the latents over the valid rows, as `Metrics` has it."""

    fired: Float[Array, "F"]
    lowest: Scalar


def activity(latents: Float[Array, "N F"], batch: Batch) -> Activity:
    """Returns in how many rows each latent is active, and the smallest active value."""
    active = (latents > 0) & batch.valid[:, None]
    ones = (latents > 0).astype(latents.dtype)  # these add up exactly
    fired = row_product(batch.valid.astype(latents.dtype), ones, latents.dtype)
    return Activity(fired, jnp.min(jnp.where(active, latents, jnp.inf)).astype(jnp.float32))


def measured(loss: Scalar, error: Scalar, terms: Terms, active: Activity, batch: Batch) -> tuple[Scalar, Metrics]:
    """Returns the loss with its metrics, which carry no gradient."""
    weights = batch.weights
    with jax.default_matmul_precision("highest"):
        mean = row_product(weights, batch.targets, jnp.float32)
    metrics = Metrics(
        loss=loss,
        squared_error=error,
        deviation=squared_error(jnp.broadcast_to(mean, batch.targets.shape), batch.targets, weights),
        sparsity=terms.sparsity,
        auxiliary=terms.auxiliary,
        l0=jnp.sum(active.fired) / jnp.maximum(jnp.sum(batch.valid), 1),
        fired=active.fired,
        lowest=active.lowest,
    )
    return loss, stop_gradient(metrics)
