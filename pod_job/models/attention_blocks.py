"""Causal grouped-query attention on a CPU: block by block, over the keys from a block's first segment on.

Softmax is summed up as the blocks of keys come (`softmax_sums`), so that the scores at hand stay in a core's cache, and
what a query may not see is, but for the blocks' edges, not computed: half of a row, and most of a packed one.

S positions, P positions before a row, N query heads, K key/value heads, G = N/K, H head size, Q queries and T keys
taken at a time.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pod_job.models.attention_settings import AttentionSettings, Heads, soft_cap
from pod_job.models.softmax_sums import LOWEST, Sums, mean, no_sums, sums_of

QUERIES, KEYS = 256, 256
"""Positions of a block of queries, and of one of keys.

A block of queries is computed as two halves whose operations do not depend on each other, so that two cores compute
both. By one operation for all queries, or with 128 keys, a row of 3,581 takes 1.3 to 1.9 times as long (AMD EPYC).
"""
BEFORE_BLOCK = 128
"""Keys before a row that are taken at a time; their number is a multiple of it."""


class Queries(NamedTuple):
    """Queries of some positions, from `start` on.

    Attributes:
        first: position that each may look at first.
        behind: how many tokens before the row each comes after; None: there are none.
    """

    q: Float[Array, "K G Q H"]
    start: Int[Array, ""]
    first: Int[Array, " Q"]
    behind: Int[Array, " Q"] | None


def attend_blocks(
    heads: Heads,
    segment_ids: Int[Array, "B S"],
    settings: AttentionSettings,
) -> Float[Array, "B S N H"]:
    """Computes `attend` row after row; the positions of a segment lie side by side."""
    first = first_visible(segment_ids, settings.window)
    rows = heads._replace(sinks=None)
    out = jax.lax.map(lambda row: attend_row(row[0]._replace(sinks=heads.sinks), row[1], settings), (rows, first))
    return out.astype(heads.q.dtype)


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
    """Attends within one row, block of queries by block of queries; `first` as from `first_visible`.

    The result is float32 until all rows are done: XLA writes a part of a bfloat16 array by copying all of it.
    """
    q, k, v, sinks, before = heads
    S, N, H = q.shape
    K = k.shape[1]
    block, T = min(S, QUERIES), min(S, KEYS)
    halves = [(offset, size) for offset, size in ((0, block // 2), (block // 2, block - block // 2)) if size]
    sinks = None if sinks is None else sinks.reshape(K, N // K, 1, 1)
    queries = q.reshape(S, K, N // K, H).transpose(1, 2, 0, 3)
    keys, values = k.transpose(1, 2, 0), v.transpose(1, 0, 2)

    def taken(start: Int[Array, ""], size: int) -> Queries:
        some = jax.lax.dynamic_slice_in_dim(queries, start, size, 2)
        of_positions = (first, None if before is None else before.behind)
        return Queries(some, start, *jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), of_positions))

    def add_keys(some: Queries, j: Int[Array, ""], sums: Sums) -> Sums:
        theirs = jax.lax.dynamic_slice_in_dim(keys, j * T, T, 2)
        scores = block_scores(some, theirs, sees_in_row(some, j, T, S), settings)
        return sums_of(scores, jax.lax.dynamic_slice_in_dim(values, j * T, T, 1).swapaxes(1, 2), sums)

    def add_before(some: Queries, j: Int[Array, ""], sums: Sums) -> Sums:
        assert before is not None
        assert some.behind is not None
        theirs, values_of = (
            jax.lax.dynamic_slice_in_dim(x, j * BEFORE_BLOCK, BEFORE_BLOCK, 2) for x in (before.k, before.v)
        )
        at = j * BEFORE_BLOCK + jnp.arange(BEFORE_BLOCK)
        seen = at >= before.k.shape[-1] - some.behind[:, None]
        return sums_of(block_scores(some, theirs, seen, settings), values_of, sums)

    def attend_block(i: Int[Array, ""], out: Float[Array, "K G S H"]) -> Float[Array, "K G S H"]:
        # Where S is not a multiple of the block, the last one has some queries again.
        start = jnp.minimum(i * block, S - block)
        parts = [taken(start + offset, size) for offset, size in halves]
        sums = [no_sums(*part.q.shape) for part in parts]
        if before is not None:
            P, furthest = before.k.shape[-1], jnp.max(jax.lax.dynamic_slice_in_dim(before.behind, start, block))
            sums = summed(add_before, parts, sums, (P - furthest) // BEFORE_BLOCK, P // BEFORE_BLOCK)
        sums = summed(add_keys, parts, sums, first[start] // T, (start + block - 1) // T + 1)
        for part, of_part in zip(parts, sums, strict=True):
            out = jax.lax.dynamic_update_slice_in_dim(out, mean([of_part], sinks), part.start, 2)
        return out

    out = jax.lax.fori_loop(0, -(-S // block), attend_block, jnp.zeros(queries.shape))
    return out.transpose(2, 0, 1, 3).reshape(S, N, H)


def summed(
    add_block: Callable[[Queries, Int[Array, ""], Sums], Sums],
    parts: Sequence[Queries],
    sums: Sequence[Sums],
    begin: Int[Array, ""],
    end: Int[Array, ""] | int,
) -> list[Sums]:
    """Returns the sums of each part of the queries with the blocks of keys from `begin` to `end` added."""

    def add_to_each(j: Int[Array, ""], sums: list[Sums]) -> list[Sums]:
        return [add_block(part, j, of_part) for part, of_part in zip(parts, sums, strict=True)]

    return jax.lax.fori_loop(begin, end, add_to_each, list(sums))


def sees_in_row(queries: Queries, j: Int[Array, ""], T: int, S: int) -> Bool[Array, "Q T"]:
    """Returns which of the j-th block of the keys of a row each query sees."""
    query = queries.start + jnp.arange(queries.q.shape[2])[:, None]
    key = jnp.minimum(j * T, S - T) + jnp.arange(T)  # the last block moves back to end at S
    # Keys that the last block shares with the one before were counted there.
    return (key <= query) & (key >= queries.first[:, None]) & (key >= j * T)


def block_scores(
    queries: Queries, keys: Float[Array, "K H T"], seen: Bool[Array, "Q T"], settings: AttentionSettings
) -> Float[Array, "K G Q T"]:
    """Returns the scores of queries and keys, by one matrix product of each key/value head; the lowest where not seen.

    A query that sees none of them counts them alike for now: the first that it sees, its own at the latest, shrinks
    that to nothing.
    """
    K, G, Q, H = queries.q.shape
    products = jnp.matmul(queries.q.reshape(K, G * Q, H), keys, preferred_element_type=jnp.float32)
    scores = settings.scale * products.reshape(K, G, Q, keys.shape[-1])
    return jnp.where(seen, soft_cap(scores, settings.softcap), LOWEST)
