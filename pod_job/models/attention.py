"""Causal grouped-query attention within segments: queries, keys and values in, the heads' outputs out.

B rows, S positions, N query heads, K key/value heads, H head size, R = H/2 rotary pairs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def segment_mask(segment_ids: Int[Array, "B S"], window: int | None = None) -> Bool[Array, "B S S"]:
    """True where query position s may look at key position t: t <= s, s - t < window, and both in one segment."""
    position = jnp.arange(segment_ids.shape[1])
    back = position[:, None] - position[None, :]
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    return near & (segment_ids[:, :, None] == segment_ids[:, None, :])


def attend(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids: Int[Array, "B S"],
    *,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B S N H"]:
    """Softmax of dot products times `scale`, in float32; each key/value head serves N/K query heads, unrepeated.

    Args:
        window: how many positions a query sees, its own included; None: its segment from the start.
        softcap: c turns a score x into c tanh(x / c) before the mask; None leaves it.
    """
    B, S, N, H = q.shape
    K = k.shape[2]
    grouped = q.reshape(B, S, K, N // K, H)
    scores = scale * jnp.einsum("bskgh,btkh->bkgst", grouped, k, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    seen = segment_mask(segment_ids, window)[:, None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("bkgst,btkh->bskgh", weights.astype(v.dtype), v).reshape(B, S, N, H)


def rotate(x: Float[Array, "B S N H"], angles: Float[Array, "B S R"]) -> Float[Array, "B S N H"]:
    """Rotary embedding in the half-split layout of Hugging Face: dimension h pairs with h + R."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
