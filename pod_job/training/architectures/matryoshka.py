"""Matryoshka BatchTopK SAE with AuxK.

Bussmann, Nabeshima, Karvonen and Nanda, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders"
(arXiv:2503.17547): latents are chosen as by BatchTopK, and each prefix of the groups reconstructs by itself; the loss
is the sum over prefixes. SAELens: `matryoshka_batchtopk`.
"""

from itertools import accumulate, pairwise

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pod_job.training.architectures import batch_topk, relu
from pod_job.training.architectures.auxiliary import auxiliary_loss
from pod_job.training.architectures.parts import (
    Batch,
    Coefficients,
    Metrics,
    Params,
    Scalar,
    Terms,
    activity,
    measured,
    product,
    squared_error,
)
from pod_job.training.architectures.shape import SaeShape

encode = batch_topk.encode


def loss(
    shape: SaeShape,
    params: Params,
    batch: Batch,
    coefficients: Coefficients,
    dead: Bool[Array, "F"],
    dtype: DTypeLike = jnp.float32,
) -> tuple[Scalar, Metrics]:
    """Returns the squared errors of all prefixes of groups + auxiliary * AuxK of the whole; metrics are the whole's."""
    positive = relu.encode(shape, params, batch.rows, dtype)
    latents, smallest = batch_topk.chosen_latents(shape, params, positive, batch, coefficients)
    outputs = prefix_outputs(shape, params, latents, batch, dtype)
    errors = [squared_error(output, batch.targets, batch.weights) for output in outputs]
    auxiliary = auxiliary_loss(shape, params, batch, outputs[-1], dead, dtype)
    total = sum(errors[:-1], errors[-1]) + coefficients.auxiliary * auxiliary
    active = activity(latents, batch)._replace(lowest=smallest)
    return measured(total, errors[-1], Terms(jnp.float32(0), auxiliary), active, batch)


def prefix_outputs(
    shape: SaeShape, params: Params, latents: Float[Array, "N F"], batch: Batch, dtype: DTypeLike
) -> list[Float[Array, "N O"]]:
    """Returns the reconstructions by the first group, by the first two, and so on to all latents."""
    output = jnp.broadcast_to(params["decoder_bias"], (len(batch.rows), shape.output_width))
    if shape.skip:
        output = output + product(batch.rows, params["skip"], dtype)
    ends = [0, *accumulate(shape.group_sizes)]
    outputs = []
    for start, end in pairwise(ends):
        of_group = latents[:, start:end], params["decoder"][start:end]
        output = output + product(*of_group, dtype, split=batch.products.parts > 1)
        outputs.append(output)
    return outputs
