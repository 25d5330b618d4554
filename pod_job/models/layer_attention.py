"""Attention as the loop over layers calls it: rotary embedding, cache, and what differs from layer to layer.

B rows, S positions, C slots of the cache, N query heads, K key/value heads, H head size, R = H/2 rotary pairs.
"""

import functools
from collections.abc import Callable, Sequence
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
from pod_job.models.rope import Rope

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
        tables: cosine and sine as from `rotary_tables`, for each kind; None where no layer has a rotary embedding.
        branches: attention of each kind.
        from_cache: attend to what is in the cache, and not only to the keys of this call.
    """

    kind_of_layer: tuple[int, ...]
    tables: tuple[Float[Array, "kinds B S H"], Float[Array, "kinds B S H"]] | None
    branches: tuple[Attend, ...]
    from_cache: bool

    def __call__(
        self, i: Int[Array, ""] | int, projections: Projections, cache: Cache | None
    ) -> tuple[Float[Array, "B S N H"], Cache | None]:
        """Returns the heads' outputs of layer `i`, a number or a loop counter, and the cache with its keys."""
        like = 0 if len(self.branches) == 1 else i  # where there is one kind, every layer is like the first
        kind = self.kind_of_layer[like] if isinstance(like, int) else jnp.asarray(self.kind_of_layer)[like]
        q, k, v, swapped_q, swapped_k = projections
        if self.tables is not None:
            cos, sin = (table[kind] for table in self.tables)
            q, k = rotate(q, swapped_q, cos, sin), rotate(k, swapped_k, cos, sin)
        if cache is not None:
            cache = cache.write(i, k, v)
            k, v = (cache.k[i], cache.v[i]) if self.from_cache else (k, v)
        z = self.branches[kind](q, k, v) if isinstance(kind, int) else jax.lax.switch(kind, self.branches, q, k, v)
        return z, cache


def stack_attention(arch: Arch, placement: Placement, tokens: Tokens, cache: Cache | None) -> LayerStackAttention:
    """Prepares the attention of all layers over `tokens`; a single position attends to all that is in the cache."""
    kinds = tuple(dict.fromkeys(arch.attention))
    from_cache = cache is not None and tokens.ids.shape[1] == 1

    def branch(kind: LayerAttention) -> Attend:
        # YaRN's factor multiplies queries and keys alike, hence their products by its square.
        in_scale = 1.0 if kind.rope is None or arch.rotated is not None else kind.rope.attention_factor**2
        scale = arch.query_scale * in_scale
        settings = AttentionSettings(scale, arch.attn_softcap, kind.window)
        if cache is not None and from_cache:
            return functools.partial(attend_masked, mask=cache.mask(kind.window), settings=settings)
        return functools.partial(attend, segment_ids=tokens.segment_ids, settings=settings, placement=placement)

    kind_of_layer = tuple(kinds.index(kind) for kind in arch.attention)
    tables = stack_tables(arch, kinds, tokens)
    return LayerStackAttention(kind_of_layer, tables, tuple(map(branch, kinds)), from_cache)


def stack_tables(arch: Arch, kinds: Sequence[LayerAttention], tokens: Tokens) -> tuple[Array, Array] | None:
    """Returns the rotary tables of each kind of layer [kinds, B, S, H]; None where none rotates."""
    if all(kind.rope is None for kind in kinds):
        return None
    tables = [layer_tables(arch, kind.rope, tokens) for kind in kinds]
    # Behind a barrier, or the compiler moves these into the loop over layers and computes them for each.
    cos, sin = jax.lax.optimization_barrier(tuple(jnp.stack(table) for table in zip(*tables, strict=True)))
    return cos, sin


def layer_tables(arch: Arch, rope: Rope | None, tokens: Tokens) -> tuple[Array, Array]:
    """Returns the rotary tables of the layers with one rotary embedding; those of layers without leave all as it is."""
    rotated = arch.head_dim if arch.rotated is None else arch.rotated
    if rope is None:
        return rotary_tables(tokens.positions, np.zeros(rotated // 2, np.float32), arch.head_dim)
    # Where some dimensions are not rotated, the factor is no matter of all of a product.
    factor = 1.0 if arch.rotated is None else rope.attention_factor
    cos, sin = rotary_tables(tokens.positions, rope.frequencies(rotated), arch.head_dim, factor)
    if rope.kind != "longrope" or tokens.ids.shape[1] <= rope.original_positions:
        return cos, sin
    long_cos, long_sin = rotary_tables(tokens.positions, rope.frequencies(rotated, long=True), arch.head_dim, factor)
    long = (segment_lengths(tokens) > rope.original_positions)[..., None]
    return jnp.where(long, long_cos, cos), jnp.where(long, long_sin, sin)


def segment_lengths(tokens: Tokens) -> Int[Array, "B S"]:
    """Returns for each position the length of its sequence, which is its segment."""
    own = tokens.segment_ids[:, :, None] == tokens.segment_ids[:, None, :]
    return jnp.max(jnp.where(own, tokens.positions[:, None, :], 0), axis=-1) + 1


def swap_halves(x: Float[Array, "*B H"], rotated: int | None = None) -> Float[Array, "*B H"]:
    """Returns x with each rotary pair (h, h + r/2) exchanged, of the first r = `rotated` dimensions (None: of all)."""
    half = (x.shape[-1] if rotated is None else rotated) // 2
    first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
    return jnp.concatenate([second, first, rest], axis=-1)


def rotary_tables(
    positions: Int[Array, "B S"], frequencies: Float[np.ndarray, "R"], head_dim: int, factor: float = 1.0
) -> tuple[Float[Array, "B S H"], Float[Array, "B S H"]]:
    """Returns the cosine and signed sine, float32, that `rotate` takes; frequencies are in radians per position.

    Dimensions of the head past the pairs stay as they are; those of pairs are multiplied by `factor`.
    """
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if factor != 1:
        cos, sin = factor * cos, factor * sin
    rest = jnp.zeros((*angles.shape[:-1], head_dim - 2 * len(frequencies)))
    return jnp.concatenate([cos, cos, 1 + rest], axis=-1), jnp.concatenate([-sin, sin, rest], axis=-1)


def rotate(
    x: Float[Array, "B S N H"],
    swapped: Float[Array, "B S N H"],
    cos: Float[Array, "B S H"],
    sin: Float[Array, "B S H"],
) -> Float[Array, "B S N H"]:
    """Rotates x as Hugging Face does (half-split layout), in float32; `swapped` is `swap_halves(x)`."""
    rotated = x.astype(jnp.float32) * cos[:, :, None] + swapped.astype(jnp.float32) * sin[:, :, None]
    return rotated.astype(x.dtype)
