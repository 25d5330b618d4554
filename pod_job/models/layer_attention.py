"""Attention as the loop over layers calls it: rotary embedding, cache, and what differs from layer to layer.

B rows, S positions, N query heads, K key/value heads, H head size, R = H/2 rotary pairs.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from pod_job.models.arch import Arch, LayerAttention
from pod_job.models.attention import attend
from pod_job.models.attention_settings import AttentionSettings, Before, Heads
from pod_job.models.bits import as_numbers
from pod_job.models.cache import Cache, Kept, Prefix
from pod_job.models.cached_attention import CachedLayer, attend_cached, make_view
from pod_job.models.head_kernel import Turn, makes_heads, projected_heads
from pod_job.models.layer_kinds import place_of_layer
from pod_job.models.placement import Placement
from pod_job.models.rope import Rope

Attend = Callable[[Heads], Float[Array, "B S N H"]]
"""Attention of a layer's heads."""


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
    sinks: Float[Array, " N"] | None = None
    source: "ProjectionSource | None" = None


class ProjectionSource(NamedTuple):
    """The residual stream before the layer's norm, and its weights: what a kernel makes heads from by itself."""

    x: Float[Array, "B S D"]
    weights: Mapping[str, Array]


class LayerStackAttention(ABC):
    """Attention of every layer of a decoder, for one forward pass.

    Layers differ in their window and rotary embedding, and few kinds of them alternate: the angles of all kinds are
    computed once.
    """

    def __init__(self, arch: Arch, tokens: Tokens, prefix: Prefix | None = None) -> None:
        self.arch, self.prefix = arch, prefix
        self.kinds = tuple(dict.fromkeys(layer for layer in arch.attention if not layer.delta))
        self.kind_of_layer = tuple(0 if layer.delta else self.kinds.index(layer) for layer in arch.attention)
        self.tables = stack_tables(arch, self.kinds, tokens)
        self.scales = [arch.query_scale * factor_in_scale(arch, kind) for kind in self.kinds]
        self.softcap = arch.attn_softcap

    def __call__(
        self, i: Int[Array, ""] | int, projections: Projections, kept: Kept | None, at: Int[Array, ""] | int = 0
    ) -> tuple[Float[Array, "B _ N H"], Kept | None]:
        """Returns the heads' outputs of layer `i`, a number or a loop counter, and `kept` with its keys and values.

        Args:
            at: the layer's place in `kept`.
        """
        like = 0 if len(self.kinds) == 1 else i  # where there is one kind, every layer is like the first
        kind = self.kind_of_layer[like] if isinstance(like, int) else jnp.asarray(self.kind_of_layer)[like]
        q, k, v, swapped_q, swapped_k, sinks, source = projections
        if self.tables is not None:
            tables = tuple(table[kind] for table in self.tables)
            rotated = self.by_kernel(kind, source, tables)
            q, k, v = rotated or (rotate(q, swapped_q, *self.of_queries(tables)), rotate(k, swapped_k, *tables), v)
        kept = None if kept is None else kept._replace(keys=kept.keys.write(at, k, v))
        place = place_of_layer(self.arch, i, delta=False)
        return self.attend(place, kind, Heads(q, k, v, sinks, self.before(place, k.dtype))), kept

    def before(self, place: Int[Array, ""] | int, dtype: np.dtype | type) -> Before | None:
        """Returns the keys and values before the call of the layer at this place; None: there are none."""
        if self.prefix is None:
            return None
        k, v = (as_numbers(stack[place], dtype) for stack in self.prefix.keys)
        return Before(k, v, self.prefix.behind)

    def by_kernel(
        self, kind: Int[Array, ""] | int, source: ProjectionSource | None, tables: tuple[Array, ...]
    ) -> tuple[Array, Array, Array] | None:
        """Returns rotated queries and keys, and values, where a kernel makes them; None: they come from projections."""
        return None

    def of_queries(self, tables: tuple[Array, ...]) -> tuple[Array, ...]:
        """Returns the rotary tables of the queries, which those of keys are too where all positions have one."""
        return tables

    @abstractmethod
    def attend(self, place: Int[Array, ""] | int, kind: Int[Array, ""] | int, heads: Heads) -> Float[Array, "B S N H"]:
        """Returns the heads' outputs of the layer at this place among those with attention, which is of this kind."""


class WithinRows(LayerStackAttention):
    """Attention among the positions of one call; one branch per kind, so that a kernel's window stays static."""

    def __init__(
        self,
        arch: Arch,
        placement: Placement,
        tokens: Tokens,
        prefix: Prefix | None = None,
        spliced: bool = False,
    ) -> None:
        super().__init__(arch, tokens, prefix)
        self.placement = placement
        self.has_kernel = not spliced and self.tables is not None and makes_heads(arch, placement, tokens.ids.shape[1])

        def branch(kind: LayerAttention, scale: float) -> Attend:
            settings = AttentionSettings(1.0 if self.has_kernel else scale, self.softcap, kind.window, self.has_kernel)
            return functools.partial(attend, segment_ids=tokens.segment_ids, settings=settings, placement=placement)

        self.branches = tuple(map(branch, self.kinds, self.scales))

    def by_kernel(
        self, kind: Int[Array, ""] | int, source: ProjectionSource | None, tables: tuple[Array, ...]
    ) -> tuple[Array, Array, Array] | None:
        if not self.has_kernel or source is None:
            return None
        arch, (rows, heads) = self.arch, (self.placement.rows, self.placement.heads)
        of_rows, whole = PartitionSpec(rows), PartitionSpec()
        x, weights = source

        def scale(name: str) -> Float[Array, " _"]:
            return weights[name].astype(jnp.float32) + arch.norm_plus_one

        def made(name: str, turn: Turn | None) -> Float[Array, "B S _ H"]:
            kernel = jax.shard_map(
                functools.partial(projected_heads, eps=arch.norm_eps),
                mesh=self.placement.mesh,
                in_specs=(of_rows, whole, PartitionSpec(None, heads), turn and Turn(whole, of_rows, of_rows)),  # type: ignore[arg-type]
                out_specs=PartitionSpec(rows, heads),
                check_vma=False,
            )
            return kernel(x, scale("attn_norm"), weights[name], turn).transpose(0, 2, 1, 3)

        # The queries carry the scale of their products with keys.
        of_queries = scale("q_norm") * jnp.asarray(self.scales, jnp.float32)[kind]
        turns = {"q": Turn(of_queries, *tables), "k": Turn(scale("k_norm"), *tables), "v": None}
        q, k, v = (made(name, turn) for name, turn in turns.items())
        return q, k, v

    def attend(self, place: Int[Array, ""] | int, kind: Int[Array, ""] | int, heads: Heads) -> Float[Array, "B S N H"]:
        if isinstance(kind, int):
            return self.branches[kind](heads)
        return jax.lax.switch(kind, self.branches, heads)


class ToCache(LayerStackAttention):
    """Attention from one new position of each row to itself and to what is in the cache, which is only read."""

    def __init__(self, arch: Arch, placement: Placement, tokens: Tokens, cache: Cache) -> None:
        super().__init__(arch, tokens)
        self.keys, self.placement = cache.kept.keys, placement
        before = tokens.positions[:, 0]
        views = [
            make_view(cache, before, kind.window, scale, placement)
            for kind, scale in zip(self.kinds, self.scales, strict=True)
        ]
        self.views = jax.tree.map(lambda *parts: jnp.stack(parts), *views)

    def attend(self, place: Int[Array, ""] | int, kind: Int[Array, ""] | int, heads: Heads) -> Float[Array, "B 1 N H"]:
        view = jax.tree.map(lambda parts: parts[kind], self.views)
        return attend_cached(heads, CachedLayer(self.keys, place, view), self.softcap, self.placement)


def factor_in_scale(arch: Arch, kind: LayerAttention) -> float:
    """Returns what the rotary embedding contributes to the scale of queries.

    YaRN's factor multiplies queries and keys alike, hence their products by its square.
    """
    return 1.0 if kind.rope is None or arch.rotated is not None else kind.rope.attention_factor**2


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
