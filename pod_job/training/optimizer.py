"""One SAE's optimizer step: Adam, clipped gradients, decoder rows of norm 1, and dead latents drawn again.

F latents, D input width, O output width, N rows.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from pod_job.config.train import Architecture
from pod_job.training.architectures.kinds import decode, encode
from pod_job.training.architectures.parts import Batch, Params, Scalar, decoder_norms
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.recipe import Recipe

RESAMPLED_ENCODER = 0.2
"""Norm of a resampled latent's encoder, in mean norms of the living ones' (Bricken et al. 2023)."""
RECENT = 10.0
"""Part of the steps so far, as one in so many, over which the threshold of BatchTopK is averaged."""


def schedule(step: Int[Array, ""] | int, recipe: Recipe) -> Scalar:
    """Returns the factor of the learning rate at a step, from 0: up along a line, 1, and down along a line to 0.

    As SAELens' `constant` schedule with warm-up and decay.
    """
    falling = (recipe.steps - step) / recipe.decay if recipe.decay else 1.0
    return jnp.minimum(rising(step, recipe.warm_up_steps), falling)


def rising(step: Int[Array, ""] | int, warm_up_steps: int) -> Scalar:
    """Returns the factor that goes up along a line to 1: that of the sparsity coefficient."""
    return jnp.minimum(jnp.float32(1), (step + 1) / max(warm_up_steps, 1))


def adam(recipe: Recipe) -> optax.GradientTransformation:
    """Returns Adam without the learning rate, which differs between SAEs, for gradients that are `clipped`."""
    return optax.scale_by_adam(recipe.beta1, recipe.beta2, recipe.epsilon)


def clipped(recipe: Recipe, gradient: Params, norm: Scalar) -> Params:
    """Returns the gradient, scaled down to `max_gradient_norm` where its norm is larger.

    As `optax.clip_by_global_norm`, which would read the gradient once more for its norm.
    """
    factor = jnp.where(norm < recipe.max_gradient_norm, 1.0, recipe.max_gradient_norm / norm)
    return jax.tree.map(lambda value: value * factor, gradient)


def without_growth(shape: SaeShape, params: Params, gradient: Params) -> tuple[Params, Scalar]:
    """Returns the gradient without that part of the decoder's which changes only the norms of its rows, and its norm.

    Bricken et al. 2023, appendix; for a crosscoder the sum of a row's norms in all taps. The norm follows from sums
    over each row before that part is taken off, so that the arrays are read once.
    """
    decoder, change = (values["decoder"].reshape(shape.latents, shape.taps, -1) for values in (params, gradient))
    lengths = jnp.maximum(jnp.sqrt(jnp.sum(decoder**2, axis=2)), 1e-12)
    along = jnp.sum(jnp.sum(change * decoder, axis=2) / lengths, axis=1, keepdims=True) / shape.taps**0.5
    squares = jnp.sum(jnp.maximum(jnp.sum(change**2, axis=(1, 2)) - along[:, 0] ** 2, 0.0))
    squares += optax.tree.norm(gradient | {"decoder": jnp.zeros(())}, squared=True)
    change = change - (along / lengths / shape.taps**0.5)[:, :, None] * decoder
    return gradient | {"decoder": change.reshape(gradient["decoder"].shape)}, jnp.sqrt(squares)


def with_unit_norms(shape: SaeShape, params: Params) -> Params:
    """Returns parameters whose decoder rows have norm 1."""
    norms = decoder_norms(shape, params["decoder"])
    return params | {"decoder": params["decoder"] / jnp.maximum(norms, 1e-12)[:, None]}


def resamples(shape: SaeShape) -> bool:
    """Returns whether dead latents of this architecture are drawn again; the others have AuxK or nothing."""
    return shape.architecture in (Architecture.relu, Architecture.gated)


def resampled(
    shape: SaeShape,
    params: Params,
    moments: optax.OptState,
    batch: Batch,
    dead: Bool[Array, "F"],
    key: jax.Array,
) -> tuple[Params, optax.OptState]:
    """Draws the dead latents again from rows that are reconstructed badly (Bricken et al. 2023, appendix).

    A row is chosen with a probability in proportion to its squared loss. Its direction becomes the latent's encoder,
    and its target's the latent's decoder; bias and Adam's moments start again.
    """
    output = decode(shape, params, encode(shape, params, batch.rows), batch.rows)
    losses = jnp.sum((batch.targets - output) ** 2, axis=1) * batch.valid
    cumulated = jnp.cumsum(losses**2)
    places = jax.random.uniform(key, (shape.latents,)) * cumulated[-1]
    chosen = jnp.minimum(jnp.searchsorted(cumulated, places, side="right"), len(losses) - 1)
    inputs, targets = batch.rows[chosen], batch.targets[chosen] - params["decoder_bias"]
    inputs = inputs - params["decoder_bias"] if shape.centered else inputs
    living = jnp.sum(jnp.linalg.norm(params["encoder"], axis=0) * ~dead) / jnp.maximum(jnp.sum(~dead), 1)
    length = RESAMPLED_ENCODER * jnp.where(living > 0, living, 1.0)
    decoder = targets / jnp.maximum(decoder_norms(shape, targets), 1e-12)[:, None]
    fresh = {
        name: jnp.zeros_like(params[name]) for name in ("encoder_bias", "gate_bias", "gate_scale") if name in params
    }
    fresh |= {"encoder": unit_columns(inputs) * length, "decoder": decoder}

    def renewed(name: str, old: jax.Array, new: jax.Array | float) -> jax.Array:
        return jnp.where(dead[:, None] if name == "decoder" else dead, new, old)

    params = {name: renewed(name, old, fresh[name]) if name in fresh else old for name, old in params.items()}

    def cleared(path: tuple, moment: jax.Array) -> jax.Array:
        name = getattr(path[-1], "key", None)
        return renewed(name, moment, 0.0) if name in fresh else moment

    return params, jax.tree_util.tree_map_with_path(cleared, moments)


def unit_columns(rows: Float[Array, "F D"]) -> Float[Array, "D F"]:
    return (rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).T


def threshold_rate(step: Int[Array, ""] | int, recipe: Recipe) -> Scalar:
    """Returns the rate of the threshold's moving average: 1 at the first step, and lower later.

    It is the average of about the last tenth of the steps so far, until `recipe.threshold_rate` stands for fewer: with
    that rate alone, the first batches would weigh as much as the last ones in a short training.
    """
    return jnp.maximum(recipe.threshold_rate, RECENT / (step + RECENT))


def followed(threshold: Float[Array, "S"], lowest: Float[Array, "S"], rate: Scalar) -> Float[Array, "S"]:
    """Returns the moving average of each SAE's smallest active value; batches without any leave it as it is."""
    moved = jnp.where(threshold > 0, threshold + rate * (lowest - threshold), lowest)
    return jnp.where(jnp.isfinite(lowest), moved, threshold)
