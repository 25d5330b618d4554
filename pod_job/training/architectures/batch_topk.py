"""BatchTopK SAE with AuxK.

Bussmann, Leask and Nanda, "BatchTopK Sparse Autoencoders" (arXiv:2412.06410): k latents per row on average over the
batch; at inference those above a threshold, the mean over batches of the smallest active value. SAELens: `batchtopk`,
which it stores as `jumprelu`.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pod_job.training.architectures import relu
from pod_job.training.architectures.auxiliary import by_dense_products, loss_of_chosen
from pod_job.training.architectures.parts import Batch, Coefficients, Params, Scalar, kept
from pod_job.training.architectures.selection import largest_of_batch
from pod_job.training.architectures.shape import SaeShape


def encode(
    shape: SaeShape, params: Params, rows: Float[Array, "N D"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "N F"]:
    """Returns the latents above `threshold`, the others as 0."""
    positive = relu.encode(shape, params, rows, dtype)
    return jnp.where(positive > params["threshold"], positive, 0)


def chosen_latents(
    shape: SaeShape, params: Params, positive: Float[Array, "N F"], batch: Batch, coefficients: Coefficients
) -> tuple[Float[Array, "N F"], Scalar]:
    """Returns the k N largest latents of the N valid rows, the others as 0, and the smallest of them."""
    count = jnp.floor(coefficients.k * jnp.sum(batch.valid)).astype(jnp.int32)
    candidates = jnp.where(batch.valid[:, None], positive, 0)
    mask, smallest = largest_of_batch(candidates, count, params["threshold"])
    return kept(candidates, mask), smallest


loss = loss_of_chosen(by_dense_products(chosen_latents))
