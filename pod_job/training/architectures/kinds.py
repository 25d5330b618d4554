"""The functions of every architecture under one name: `initial_parameters`, `encode`, `decode` and `loss`.

Conventions of parameters and shapes are those of `parts.Params` and `shape.SaeShape`.
"""

from types import ModuleType

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pod_job.config.train import Architecture
from pod_job.training.architectures import batch_topk, gated, jump_relu, matryoshka, relu, topk
from pod_job.training.architectures.initial import initial_parameters, jump_scale
from pod_job.training.architectures.parts import Batch, Coefficients, Metrics, Params, Scalar, decode
from pod_job.training.architectures.shape import SaeShape

MODULES: dict[Architecture, ModuleType] = {
    Architecture.relu: relu,
    Architecture.gated: gated,
    Architecture.topk: topk,
    Architecture.batch_topk: batch_topk,
    Architecture.jump_relu: jump_relu,
    Architecture.matryoshka: matryoshka,
}
__all__ = ["MODULES", "coefficients_for", "decode", "encode", "initial_parameters", "loss"]


def encode(
    shape: SaeShape, params: Params, rows: Float[Array, "N D"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "N F"]:
    """Returns the latents of `rows` as at inference.

    Args:
        dtype: of the factors of matrix products, which add up in float32; bfloat16 is a TPU's fast one.
    """
    return MODULES[shape.architecture].encode(shape, params, rows, dtype)


def loss(
    shape: SaeShape,
    params: Params,
    batch: Batch,
    coefficients: Coefficients,
    dead: Bool[Array, "F"],
    dtype: DTypeLike = jnp.float32,
) -> tuple[Scalar, Metrics]:
    """Returns the loss of training, a mean over the valid rows, and its metrics.

    Args:
        dead: latents that have not been active for long; AuxK revives them.
    """
    return MODULES[shape.architecture].loss(shape, params, batch, coefficients, dead, dtype)


def coefficients_for(shape: SaeShape, sparsity: float = 0.0, auxiliary: float = 1 / 32) -> Coefficients:
    """Returns coefficients with the k of the shape, and the bandwidth of Gemma Scope."""
    values = (sparsity, auxiliary, shape.k or 0, jump_scale(shape))
    return Coefficients(*(jnp.float32(value) for value in values))
