"""Causal grouped-query attention on a CPU: block by block, over the keys from a block's first segment on.

Softmax is summed up as the blocks of keys come (arXiv:2205.14135), so that the scores at hand stay in a core's cache,
and what a query may not see is, but for the blocks' edges, not computed: half of a row, and most of a packed one.

S positions, P positions before a row, N query heads, K key/value heads, G = N/K, H head size, Q queries and T keys of a
block.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pod_job.models.attention_settings import AttentionSettings, Before, Heads, soft_cap

LARGEST_CPU_BLOCK = 128  # 256 is a third slower, 64 a tenth (AMD EPYC, 1 MiB of cache for a core)


BEFORE_BLOCK = 128
"""Keys before a row that are taken at a time; their number is a multiple of it."""

Sums = tuple[Float[Array, "K G Q 1"], Float[Array, "K G Q 1"], Float[Array, "K G Q H"]]
"""The largest score so far, and relative to it the sum of weights and that of weighted values."""


def attend_blocks(
    heads: Heads,
    segment_ids: Int[Array, "B S"],
    settings: AttentionSettings,
) -> Float[Array, "B S N H"]:
    """Computes `attend` row after row; the positions of a segment lie side by side."""
    first = first_visible(segment_ids, settings.window)
    rows = heads._replace(sinks=None)
    return jax.lax.map(lambda row: attend_row(row[0]._replace(sinks=heads.sinks), row[1], settings), (rows, first))


def first_visible(segment_ids: Int[Array, "B S"], window: int | None) -> Int[Array, "B S"]:
    """Returns the first position that each position may look at: where its segment starts, or its window."""
    position = jnp.arange(segment_ids.shape[1])
    begins = jnp.diff(segment_ids, axis=1, prepend=-1) != 0
    first = jax.lax.cummax(jnp.where(begins, position, 0), axis=1)
    return first if window is None else jnp.maximum(first, position - window + 1)


def attend_row(
    heads: Heads,
    first: Int[Array, " S"],
    settings: AttentionSettings,
) -> Float[Array, "S N H"]:
    """Attends within one row, block of queries by block of queries; `first` as from `first_visible`."""
    q, k, v, sinks, before = heads
    S, N, H = q.shape
    K = k.shape[1]
    block = min(S, LARGEST_CPU_BLOCK)
    queries = q.reshape(S, K, N // K, H).transpose(1, 2, 0, 3)
    keys, values = k.transpose(1, 2, 0), v.transpose(1, 0, 2)

    def attend_block(i: Int[Array, ""], out: Float[Array, "K G S H"]) -> Float[Array, "K G S H"]:
        # Where S is not a multiple of the block, the last one has some queries again.
        start = jnp.minimum(i * block, S - block)

        def add(scores: Array, some: Float[Array, "K T H"], sums: Sums) -> Sums:
            most, total, weighted = sums
            higher = jnp.maximum(most, scores.max(-1, keepdims=True))
            weights, shrink = jnp.exp(scores - higher), jnp.exp(most - higher)
            products = jnp.einsum("kgqt,kth->kgqh", weights.astype(v.dtype), some, preferred_element_type=jnp.float32)
            return higher, total * shrink + weights.sum(-1, keepdims=True), weighted * shrink + products

        def add_keys(j: Int[Array, ""], sums: Sums) -> Sums:
            scores = block_scores(queries, keys, first, start, j, settings)
            return add(scores, jax.lax.dynamic_slice_in_dim(values, j * block, block, 1), sums)

        def add_before(j: Int[Array, ""], sums: Sums) -> Sums:
            assert before is not None
            some = jax.lax.dynamic_slice_in_dim(before.v, j * BEFORE_BLOCK, BEFORE_BLOCK, 2)
            return add(scores_before(queries, before, start, j, settings), some.swapaxes(1, 2), sums)

        nothing = jnp.zeros((K, N // K, block, 1))
        lowest = nothing + jnp.finfo(jnp.float32).min
        sums = (lowest, nothing, jnp.zeros((K, N // K, block, H)))
        if before is not None:
            P, furthest = before.k.shape[-1], jnp.max(jax.lax.dynamic_slice_in_dim(before.behind, start, block))
            sums = jax.lax.fori_loop((P - furthest) // BEFORE_BLOCK, P // BEFORE_BLOCK, add_before, sums)
        last = (start + block - 1) // block + 1
        most, total, weighted = jax.lax.fori_loop(first[start] // block, last, add_keys, sums)
        if sinks is not None:
            of_sinks = sinks.astype(jnp.float32).reshape(K, N // K, 1, 1)
            higher = jnp.maximum(most, of_sinks)
            total, weighted = total * jnp.exp(most - higher), weighted * jnp.exp(most - higher)
            total = total + jnp.exp(of_sinks - higher)
        return jax.lax.dynamic_update_slice_in_dim(out, (weighted / total).astype(q.dtype), start, 2)

    out = jax.lax.fori_loop(0, -(-S // block), attend_block, jnp.zeros(queries.shape, q.dtype))
    return out.transpose(2, 0, 1, 3).reshape(S, N, H)


def block_scores(
    queries: Float[Array, "K G S H"],
    keys: Float[Array, "K H S"],
    first: Int[Array, " S"],
    start: Int[Array, ""],
    j: Int[Array, ""],
    settings: AttentionSettings,
) -> Float[Array, "K G Q T"]:
    """Returns the scores of the queries from `start` and the j-th block of keys; the lowest float32 where masked.

    A query that sees no key of this block counts them alike for now: the first that it sees, its own at the latest,
    shrinks that to nothing.
    """
    K, G, S, H = queries.shape
    block = min(S, LARGEST_CPU_BLOCK)
    some = jax.lax.dynamic_slice_in_dim(queries, start, block, 2).reshape(K, G * block, H)
    theirs = jax.lax.dynamic_slice_in_dim(keys, j * block, block, 2)  # the last block moves back to end at S
    scores = settings.scale * jnp.matmul(some, theirs, preferred_element_type=jnp.float32).reshape(K, G, block, block)
    query = start + jnp.arange(block)[:, None]
    key = jnp.minimum(j * block, S - block) + jnp.arange(block)
    lowest = jax.lax.dynamic_slice_in_dim(first, start, block)[:, None]
    # Keys that the last block shares with the one before were counted there.
    seen = (key <= query) & (key >= lowest) & (key >= j * block)
    return jnp.where(seen, soft_cap(scores, settings.softcap), jnp.finfo(jnp.float32).min)


def scores_before(
    queries: Float[Array, "K G S H"],
    before: Before,
    start: Int[Array, ""],
    j: Int[Array, ""],
    settings: AttentionSettings,
) -> Float[Array, "K G Q T"]:
    """Returns the scores of the queries from `start` and the j-th block of keys before the row, as `block_scores`."""
    K, G, S, H = queries.shape
    block = min(S, LARGEST_CPU_BLOCK)
    some = jax.lax.dynamic_slice_in_dim(queries, start, block, 2).reshape(K, G * block, H)
    theirs = jax.lax.dynamic_slice_in_dim(before.k, j * BEFORE_BLOCK, BEFORE_BLOCK, 2)
    products = jnp.matmul(some, theirs, preferred_element_type=jnp.float32)
    scores = settings.scale * products.reshape(K, G, block, BEFORE_BLOCK)
    behind = jax.lax.dynamic_slice_in_dim(before.behind, start, block)[:, None]
    seen = j * BEFORE_BLOCK + jnp.arange(BEFORE_BLOCK) >= before.k.shape[-1] - behind
    return jnp.where(seen, soft_cap(scores, settings.softcap), jnp.finfo(jnp.float32).min)
