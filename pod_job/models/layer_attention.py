"""Attention as the loop over layers calls it: rotary embedding, cache, and what differs from layer to layer.

B rows, S positions, C slots of the cache, N query heads, K key/value heads, H head size, R = H/2 rotary pairs.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pod_job.models.arch import Arch, LayerAttention
from pod_job.models.attention import attend, attend_masked
from pod_job.models.attention_settings import AttentionSettings
from pod_job.models.cache import Cache
from pod_job.models.placement import Placement

Attend = Callable[[Float[Array, "B S N H"], Float[Array, "B C K H"], Float[Array, "B C K H"]], Float[Array, "B S N H"]]
"""Attention over rotated queries, rotated keys, and values."""


class Tokens(NamedTuple):
    """Input of one forward pass. Tokens attend within their segment only."""

    ids: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]


class Projections(NamedTuple):
    """Queries, keys and values of one layer before the rotation; queries and keys also with swapped halves."""

    q: Float[Array, "B S N H"]
    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]
    swapped_q: Float[Array, "B S N H"]
    swapped_k: Float[Array, "B S K H"]


@dataclass(frozen=True)
class LayerStackAttention:
    """Attention of every layer of a decoder, for one forward pass.

    Layers differ in their window and rotary embedding, and few kinds of them alternate: the angles of all kinds are
    computed once, and the loop's body holds one branch per kind, so that a kernel's window stays static.

    Attributes:
        kind_of_layer: index into the other fields for each layer.
        cos, sin: as from `rotary_tables`, for each kind.
        branches: attention of each kind.
        from_cache: attend to what is in the cache, and not only to the keys of this call.
    """

    kind_of_layer: tuple[int, ...]
    cos: Float[Array, "kinds B S H"]
    sin: Float[Array, "kinds B S H"]
    branches: tuple[Attend, ...]
    from_cache: bool

    def __call__(
        self, i: Int[Array, ""] | int, projections: Projections, cache: Cache | None
    ) -> tuple[Float[Array, "B S N H"], Cache | None]:
        """Returns the heads' outputs of layer `i`, a number or a loop counter, and the cache with its keys."""
        like = 0 if len(self.branches) == 1 else i  # where there is one kind, every layer is like the first
        kind = self.kind_of_layer[like] if isinstance(like, int) else jnp.asarray(self.kind_of_layer)[like]
        q, k, v, swapped_q, swapped_k = projections
        cos, sin = self.cos, self.sin
        q, k = rotate(q, swapped_q, cos[kind], sin[kind]), rotate(k, swapped_k, cos[kind], sin[kind])
        if cache is not None:
            cache = cache.write(i, k, v)
            k, v = (cache.k[i], cache.v[i]) if self.from_cache else (k, v)
        z = self.branches[kind](q, k, v) if isinstance(kind, int) else jax.lax.switch(kind, self.branches, q, k, v)
        return z, cache


def stack_attention(arch: Arch, placement: Placement, tokens: Tokens, cache: Cache | None) -> LayerStackAttention:
    """Prepares the attention of all layers over `tokens`; a single position attends to all that is in the cache."""
    kinds = tuple(dict.fromkeys(arch.attention))
    tables = [rotary_tables(tokens.positions, kind.rope.frequencies(arch.head_dim)) for kind in kinds]
    # Behind a barrier, or the compiler moves these into the loop over layers and computes them for each.
    cos, sin = jax.lax.optimization_barrier(tuple(jnp.stack(table) for table in zip(*tables, strict=True)))
    from_cache = cache is not None and tokens.ids.shape[1] == 1

    def branch(kind: LayerAttention) -> Attend:
        # YaRN's factor multiplies queries and keys alike, hence their products by its square.
        scale = arch.query_scale * kind.rope.attention_factor**2
        settings = AttentionSettings(scale, arch.attn_softcap, kind.window)
        if cache is not None and from_cache:
            return functools.partial(attend_masked, mask=cache.mask(kind.window), settings=settings)
        return functools.partial(attend, segment_ids=tokens.segment_ids, settings=settings, placement=placement)

    kind_of_layer = tuple(kinds.index(kind) for kind in arch.attention)
    return LayerStackAttention(kind_of_layer, cos, sin, tuple(map(branch, kinds)), from_cache)


def swap_halves(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Returns x with each rotary pair (h, h + H/2) exchanged."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([second, first], axis=-1)


def rotary_tables(
    positions: Int[Array, "B S"], frequencies: Float[np.ndarray, "R"]
) -> tuple[Float[Array, "B S H"], Float[Array, "B S H"]]:
    """Returns the cosine and signed sine, float32, that `rotate` takes; frequencies are in radians per position."""
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(
    x: Float[Array, "B S N H"],
    swapped: Float[Array, "B S N H"],
    cos: Float[Array, "B S H"],
    sin: Float[Array, "B S H"],
) -> Float[Array, "B S N H"]:
    """Rotates x as Hugging Face does (half-split layout), in float32; `swapped` is `swap_halves(x)`."""
    rotated = x.astype(jnp.float32) * cos[:, :, None] + swapped.astype(jnp.float32) * sin[:, :, None]
    return rotated.astype(x.dtype)
