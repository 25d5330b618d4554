"""Gemma's soft cap of attention scores and logits (arXiv:2408.00118)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def capped(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """cap tanh(x / cap), which lies within +-cap; x itself where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)
