"""Attention to the slots of a cache that some row sees, block by block, and to no others: on CPUs, and on TPU a kernel.

One turn of a loop takes a block of slots of one row. Which blocks those are is a list, made once for all layers of a
kind; on TPU a pipeline reads the next block while one is computed.

L layers, B rows, C slots of a row, T slots of a block, K key/value heads, G query heads of each, H head size.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pod_job.models.attention_settings import soft_cap
from pod_job.models.bits import as_numbers
from pod_job.models.softmax_sums import LOWEST, Sums, joined, no_sums, sums_of

LANES = 128  # of a TPU vector register
LARGEST_BLOCKS = {"tpu": 512, "cpu": 128}
"""Slots, by platform. On TPU the fixed work of a turn of the loop outweighs what a larger block reads in vain."""
TURNS_TOGETHER = 4
"""Turns of a CPU's loop whose operations depend on nothing of each other's, so that each core computes some."""
LARGEST_BLOCK_BYTES = 4 << 20
"""Bytes of a block's keys at most: a TPU core's vector memory has two blocks of them and two of values."""


def block_slots(platform: str | None, slots: int, width: int, dtype: Any) -> int | None:
    """Returns the slots of a block for devices of this platform; None where all slots of all rows are read.

    `width` is the size of the keys of all heads of a slot, K x H.
    """
    if slots % LANES or (platform == "tpu" and dtype.itemsize != 2) or platform not in LARGEST_BLOCKS:
        return None
    if platform == "cpu" and slots == LANES:  # a single block: a loop would only take time to compile
        return None
    most = min(LARGEST_BLOCKS[platform], max(LANES, LARGEST_BLOCK_BYTES // (width * dtype.itemsize)))
    return next(size for size in range(most // LANES * LANES, 0, -LANES) if slots % size == 0)


def list_turns(end: Int[Array, ""], reach: Int[Array, " B"], slots: int, T: int) -> Int[Array, " _"]:
    """Returns the turns of a loop over blocks of slots, each as its row times the blocks of a row plus its block.

    The last value is their number. A row that sees nothing has a turn all the same, which writes its result. The latest
    block of a row comes first.
    """
    B, blocks = len(reach), slots // T
    latest = (end - 1) // T
    counts = jnp.clip(latest - (end - reach) // T + 1, 1, blocks)
    stops = jnp.cumsum(counts)
    turn = jnp.arange(B * blocks)[:, None]
    own = (stops - counts <= turn) & (turn < stops)  # no gather, which is slow on TPU
    row, start = ((own * of_row).sum(axis=1) for of_row in (jnp.arange(B), stops - counts))
    block = (latest - (turn[:, 0] - start)) % blocks
    return jnp.append(row * blocks + block, stops[-1]).astype(jnp.int32)


def sums_by_kernel(
    grouped: Float[Array, "B K G H"], cached: Any, softcap: float | None, *, interpret: bool = False
) -> Sums:
    """Returns the sums over the slots of a layer that each row sees; `cached` as in `attend_cached`.

    `interpret` runs it without a TPU, for tests.
    """
    kept, number, view = cached
    B, K, G, H = grouped.shape
    blocks = (len(view.turns) - 1) // B
    T = kept.slots // blocks
    scalars = jnp.concatenate([jnp.stack([number, view.end]), view.reach]).astype(jnp.int32)

    def of_row(turn: Array, turns: Any, scalars: Any, scale: Any) -> tuple[Array | int, ...]:
        return jax.lax.div(turns[turn], blocks), 0, 0, 0

    def of_slots(turn: Array, turns: Any, scalars: Any, scale: Any) -> tuple[Array | int, ...]:
        return scalars[0], jax.lax.div(turns[turn], blocks), 0, 0, jax.lax.rem(turns[turn], blocks)

    of_block = pl.BlockSpec((None, None, K, H, T), of_slots)
    of_queries, of_totals = pl.BlockSpec((None, K, G, H), of_row), pl.BlockSpec((None, K, G, LANES), of_row)
    mean, log_total = pl.pallas_call(
        functools.partial(add_block, blocks=blocks, softcap=softcap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(view.turns[-1],),
            in_specs=[of_queries, of_block, of_block],
            out_specs=[of_queries, of_totals],
            scratch_shapes=[pltpu.VMEM((K, G, size), jnp.float32) for size in (LANES, LANES, H)],
        ),
        out_shape=[jax.ShapeDtypeStruct((B, K, G, size), jnp.float32) for size in (H, LANES)],
        interpret=interpret,
        name="cached_attention",
    )(view.turns[:-1], scalars, view.scale[None], grouped, kept.k, kept.v)
    log_total = log_total[..., :1]
    return Sums(log_total, jnp.ones_like(log_total), mean)


def sums_by_turns(grouped: Float[Array, "B K G H"], cached: Any, softcap: float | None) -> Sums:
    """Returns what `sums_by_kernel` does, by XLA."""
    kept, number, view = cached
    B, K, G, H = grouped.shape
    blocks = (len(view.turns) - 1) // B
    T, count = kept.slots // blocks, view.turns[-1]

    def of_block(turn: Int[Array, ""]) -> tuple[Int[Array, ""], Sums]:
        """Returns the row of a turn, and the sums over its block alone; past the last turn as of slots nobody sees."""
        listed = view.turns[jnp.minimum(turn, count - 1)]
        row, block = listed // blocks, listed % blocks
        at = (number, row, 0, 0, block * T)
        k, v = (as_numbers(jax.lax.dynamic_slice(x, at, (1, 1, K, H, T))[0, 0], grouped.dtype) for x in kept)
        scores = jnp.einsum("kgh,khc->kgc", grouped[row], k, preferred_element_type=jnp.float32)
        back = (view.end - block * T - jnp.arange(T)) % kept.slots
        seen = (back > 0) & (back <= view.reach[row]) & (turn < count)
        scores = jnp.where(seen, soft_cap(view.scale * scores, softcap), LOWEST)
        return row, sums_of(scores, v)

    def add(i: Int[Array, ""], sums: Sums) -> Sums:
        for row, new in [of_block(i * TURNS_TOGETHER + turn) for turn in range(TURNS_TOGETHER)]:
            merged = joined([Sums(*(x[row] for x in sums)), new])
            sums = Sums(*(x.at[row].set(value) for x, value in zip(sums, merged, strict=True)))
        return sums

    return jax.lax.fori_loop(0, -(-count // TURNS_TOGETHER), add, no_sums(B, K, G, H))


class Refs(NamedTuple):
    """Arguments of the kernel, in its order: prefetched scalars, inputs, outputs, and what stays between turns."""

    turns: Any
    scalars: Any
    scale: Any
    queries: Any
    keys: Any
    values: Any
    mean: Any
    log_total: Any
    most: Any
    total: Any
    weighted: Any


def add_block(*arguments: Any, blocks: int, softcap: float | None) -> None:
    """Adds one block of slots to the sums of its row; the row's last block writes them."""
    turns, scalars, scale, queries, keys, values, mean, log_total, most, total, weighted = Refs(*arguments)
    turn, last_turn = pl.program_id(0), pl.num_programs(0) - 1
    row, block = jax.lax.div(turns[turn], blocks), jax.lax.rem(turns[turn], blocks)
    first = (turn == 0) | (jax.lax.div(turns[jnp.maximum(turn - 1, 0)], blocks) != row)
    last = (turn == last_turn) | (jax.lax.div(turns[jnp.minimum(turn + 1, last_turn)], blocks) != row)

    @pl.when(first)
    def _() -> None:
        most[...] = jnp.full(most.shape, LOWEST, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        weighted[...] = jnp.zeros(weighted.shape, jnp.float32)

    K, G, _ = queries.shape
    T = keys.shape[-1]
    back = scalars[1] - block * T - jax.lax.broadcasted_iota(jnp.int32, (G, T), 1)
    back = jnp.where(back <= 0, back + blocks * T, back)
    for head in range(K):
        k, v = keys[head], values[head]
        scores = jnp.dot(queries[head], k, preferred_element_type=jnp.float32)
        scores = jnp.where(back <= scalars[2 + row], soft_cap(scale[0] * scores, softcap), LOWEST)
        before = most[head, :, :1]
        highest = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        weights, shrink = jnp.exp(scores - highest), jnp.exp(before - highest)
        added = jax.lax.dot_general(
            weights.astype(v.dtype), v, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        most[head] = jnp.broadcast_to(highest, most.shape[1:])
        total[head] = total[head] * shrink + weights.sum(axis=1, keepdims=True)
        weighted[head] = weighted[head] * shrink + added

    @pl.when(last)
    def _() -> None:
        mean[...] = weighted[...] / total[..., :1]
        log_total[...] = most[...] + jnp.log(total[...])
