"""Attention from the next position of each row to itself and to the slots of a cache that it sees.

On TPU and on CPUs only the blocks of slots that some row sees are read; elsewhere, and for shapes that are not taken by
blocks, XLA reads all of them.

L layers, B rows, C slots of a row, N query heads, K key/value heads, G = N/K, H head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pod_job.models.attention_settings import Heads, soft_cap
from pod_job.models.bits import as_numbers
from pod_job.models.cache import Cache, KeyValues
from pod_job.models.cache_kernel import block_slots, list_turns, sums_by_kernel, sums_by_turns
from pod_job.models.placement import Placement
from pod_job.models.softmax_sums import LOWEST, Sums, mean, sums_of


class View(NamedTuple):
    """Slots of the cache that layers of one kind see.

    Attributes:
        end: slot that is written next; a row's latest tokens are in the slots before it, all around the ring.
        reach: how many of them each row sees.
        scale: multiplies dot products of queries and keys.
        turns: of the loop over blocks, as from `list_turns` on each device; None where all slots are read.
    """

    end: Int[Array, ""]
    reach: Int[Array, " B"]
    scale: Float[Array, ""]
    turns: Int[Array, " _"] | None


class CachedLayer(NamedTuple):
    """Keys and values in a cache of all layers with attention, and what that of this `number` sees of its own."""

    kept: KeyValues
    number: Int[Array, ""] | int
    view: View


def make_view(cache: Cache, before: Int[Array, " B"], window: int | None, scale: float, placement: Placement) -> View:
    """Returns the view of layers with this window; `before` is how many tokens each row has so far."""
    end = cache.slot % cache.slots
    reach = jnp.minimum(before, min(cache.slots, window or cache.slots) - 1)
    view = View(end, reach, jnp.float32(scale), None)
    _, _, K, H, C = cache.kept.keys.k.shape
    T = block_slots(placement.platform, C, K * H, cache.kept.keys.k.dtype)
    if placement.mesh is None or T is None or (placement.platform == "tpu" and not placement.kernels):
        return view
    rows = PartitionSpec(placement.rows)
    # Every device loops over its own rows.
    turns = jax.shard_map(
        lambda end, reach: list_turns(end, reach, cache.slots, T),
        mesh=placement.mesh,
        in_specs=(PartitionSpec(), rows),
        out_specs=rows,
        check_vma=False,
    )(end, reach)
    return view._replace(turns=turns)


def attend_cached(
    heads: Heads, cached: CachedLayer, softcap: float | None, placement: Placement
) -> Float[Array, "B 1 N H"]:
    """Attends from one position of each row to its own key and value, and to the slots of the layer that it sees.

    The own ones are scored beside the cache, so that the loop over layers only reads it. `softcap` is as in
    AttentionSettings.
    """
    (q, own_k, own_v, sinks, _), view = heads, cached.view
    B, _, N, H = q.shape
    K = own_k.shape[2]
    grouped = q.reshape(B, K, N // K, H)
    sums = (sums_by_xla if view.turns is None else on_each_device)(grouped, cached, softcap, placement)
    products = jnp.einsum("bkgh,bkh->bkg", grouped, own_k[:, 0], preferred_element_type=jnp.float32)
    score = soft_cap(view.scale * products, softcap)[..., None]
    itself = Sums(score, jnp.ones_like(score), own_v[:, 0][:, :, None].astype(jnp.float32))
    z = mean([sums, itself], None if sinks is None else sinks.reshape(K, N // K, 1))
    return z.astype(own_v.dtype).reshape(B, 1, N, H)


def visible(view: View, slots: int) -> Bool[Array, "B C"]:
    """Returns True at the slots that each row sees."""
    back = (view.end - jnp.arange(slots)) % slots
    return (back > 0) & (back <= view.reach[:, None])


def sums_by_xla(
    grouped: Float[Array, "B K G H"], cached: CachedLayer, softcap: float | None, placement: Placement
) -> Sums:
    """Returns the sums over the slots of a layer, all of which are read on any platform."""
    del placement
    kept, number, view = cached
    k, v = (as_numbers(stack[number], grouped.dtype) for stack in kept)
    products = jnp.einsum("bkgh,bkhc->bkgc", grouped, k, preferred_element_type=jnp.float32)
    scores = soft_cap(view.scale * products, softcap)
    scores = jnp.where(visible(view, kept.slots)[:, None, None], scores, LOWEST)
    return jax.vmap(sums_of)(scores, v)


def on_each_device(
    grouped: Float[Array, "B K G H"], cached: CachedLayer, softcap: float | None, placement: Placement
) -> Sums:
    """Returns the sums by blocks on each device's rows and heads; the partitioner can split neither loop."""
    of_blocks = sums_by_kernel if placement.platform == "tpu" else sums_by_turns
    rows, nothing = PartitionSpec(placement.rows), PartitionSpec()
    of_heads = PartitionSpec(placement.rows, placement.heads)
    of_cache = PartitionSpec(None, placement.rows, placement.heads)
    specs = CachedLayer(
        KeyValues(of_cache, of_cache),  # type: ignore[arg-type]
        nothing,  # type: ignore[arg-type]
        View(nothing, rows, nothing, rows),  # type: ignore[arg-type]
    )
    return jax.shard_map(
        lambda grouped, cached: of_blocks(grouped, cached, softcap),
        mesh=placement.mesh,
        in_specs=(of_heads, specs),
        out_specs=of_heads,
        check_vma=False,
    )(grouped, cached._replace(number=jnp.asarray(cached.number)))
