"""TopK SAE with AuxK.

Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093). SAELens: `topk`, which multiplies
pre-activations by the norms of the decoder rows before it chooses; they are 1 here.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pod_job.training.architectures import relu
from pod_job.training.architectures.auxiliary import by_dense_products, loss_of_chosen
from pod_job.training.architectures.parts import Activity, Batch, Coefficients, Params, largest
from pod_job.training.architectures.selection import keep_largest
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.architectures.sparse_products import by_sparse_products


def encode(
    shape: SaeShape, params: Params, rows: Float[Array, "N D"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "N F"]:
    """Returns the k largest latents of each row, the others as 0; negative ones are 0 too."""
    assert shape.k is not None
    positive = relu.encode(shape, params, rows, dtype)
    return keep_largest(positive, jnp.int32(shape.k))


def chosen_latents(
    shape: SaeShape, params: Params, positive: Float[Array, "N F"], batch: Batch, coefficients: Coefficients
) -> tuple[Float[Array, "N F"], None]:
    """Returns the k largest latents of each row, the others as 0."""
    assert shape.k is not None
    return largest(batch.keep, shape.k, positive, coefficients.k.astype(jnp.int32)), None


def reconstruct(
    shape: SaeShape, params: Params, batch: Batch, coefficients: Coefficients, dtype: DTypeLike
) -> tuple[Float[Array, "N O"], Activity]:
    """Returns the reconstruction by the k largest latents of each row, and their activity."""
    way = by_sparse_products if batch.products.sparse else by_dense_products(chosen_latents)
    return way(shape, params, batch, coefficients, dtype)


loss = loss_of_chosen(reconstruct)
