"""JumpReLU SAE.

Rajamanoharan et al., "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders"
(arXiv:2407.14435): an L0 penalty, whose gradient for the thresholds is estimated with a rectangle kernel, and none for
anything else (their equations 11 and 12). SAELens: `jumprelu` with the sparsity loss `step`; it trains the threshold
instead of its logarithm.
"""

import jax
import jax.numpy as jnp
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
)
from pod_job.training.architectures.shape import SaeShape

Values = Float[Array, "N F"]
Thresholds = Float[Array, "F"]
Residuals = tuple[Values, Thresholds, Scalar]


def in_kernel(values: Values, threshold: Thresholds, bandwidth: Scalar) -> Values:
    """Returns 1 / bandwidth where a value is within half a bandwidth of its threshold, else 0."""
    return jnp.where(jnp.abs(values - threshold) < bandwidth / 2, 1.0 / bandwidth, 0.0)


@jax.custom_vjp
def jump_relu(values: Values, threshold: Thresholds, bandwidth: Scalar) -> Values:
    """Returns the values above their threshold, the others as 0."""
    return jnp.where(values > threshold, values, 0.0)


def jump_relu_forward(values: Values, threshold: Thresholds, bandwidth: Scalar) -> tuple[Values, Residuals]:
    return jump_relu(values, threshold, bandwidth), (values, threshold, bandwidth)


def jump_relu_backward(residuals: Residuals, gradient: Values) -> tuple[Values, Thresholds, Scalar]:
    values, threshold, bandwidth = residuals
    of_threshold = -threshold * jnp.sum(in_kernel(values, threshold, bandwidth) * gradient, axis=0)
    return jnp.where(values > threshold, gradient, 0.0), of_threshold, jnp.zeros_like(bandwidth)


jump_relu.defvjp(jump_relu_forward, jump_relu_backward)


@jax.custom_vjp
def step(values: Values, threshold: Thresholds, bandwidth: Scalar) -> Values:
    """Returns 1 for values above their threshold, else 0."""
    return (values > threshold).astype(jnp.float32)


def step_forward(values: Values, threshold: Thresholds, bandwidth: Scalar) -> tuple[Values, Residuals]:
    return step(values, threshold, bandwidth), (values, threshold, bandwidth)


def step_backward(residuals: Residuals, gradient: Values) -> tuple[Values, Thresholds, Scalar]:
    values, threshold, bandwidth = residuals
    of_threshold = -jnp.sum(in_kernel(values, threshold, bandwidth) * gradient, axis=0)
    return jnp.zeros_like(values), of_threshold, jnp.zeros_like(bandwidth)


step.defvjp(step_forward, step_backward)


def encode(
    shape: SaeShape, params: Params, rows: Float[Array, "N D"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "N F"]:
    """Returns the latents above exp(log_threshold), the others as 0."""
    values = pre_activations(shape, params, rows, dtype) + params["encoder_bias"]
    return jnp.where(values > jnp.exp(params["log_threshold"]), values, 0.0)


def loss(
    shape: SaeShape,
    params: Params,
    batch: Batch,
    coefficients: Coefficients,
    dead: Bool[Array, "F"],
    dtype: DTypeLike = jnp.float32,
) -> tuple[Scalar, Metrics]:
    """Returns squared error + sparsity * L0, or sparsity * (L0 / k - 1)^2 where the shape has a k to aim at."""
    values = pre_activations(shape, params, batch.rows, dtype) + params["encoder_bias"]
    threshold = jnp.exp(params["log_threshold"])
    latents = jump_relu(values, threshold, coefficients.bandwidth)
    error = squared_error(reconstructed(shape, params, latents, batch, dtype), batch.targets, batch.weights)
    counts = jnp.sum(step(values, threshold, coefficients.bandwidth), axis=1)
    penalties = counts if shape.k is None else (counts / coefficients.k - 1.0) ** 2
    penalty = jnp.sum(penalties * batch.weights)
    terms = Terms(penalty, jnp.float32(0))
    return measured(error + coefficients.sparsity * penalty, error, terms, activity(latents, batch), batch)
