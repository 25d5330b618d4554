"""Causal grouped-query attention within segments: queries, keys and values in, the heads' outputs out.

B rows, S positions, N query heads, K key/value heads, H head size, R = H/2 rotary pairs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def segment_mask(segment_ids: Int[Array, "B S"]) -> Bool[Array, "B 1 S S"]:
    """True where query position s may look at key position t: t <= s, and both in one segment."""
    S = segment_ids.shape[1]
    causal = jnp.tril(jnp.ones((S, S), bool))
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return (same & causal)[:, None]


def attend(
    q: Float[Array, "B S N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], mask: Bool[Array, "B 1 S S"]
) -> Float[Array, "B S N H"]:
    """Softmax of scaled dot products, in float32; each key/value head serves N/K query heads and is not repeated."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")


def rotate(x: Float[Array, "B S N H"], angles: Float[Array, "B S R"]) -> Float[Array, "B S N H"]:
    """Rotary embedding in the half-split layout of Hugging Face: dimension h pairs with h + R."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
