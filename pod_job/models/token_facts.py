"""Facts of each token under the model, from the final norm's output, without logits of all positions at once.

B rows, S positions, C positions of a chunk, D hidden, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pod_job.models.layer_attention import Tokens
from pod_job.models.placement import Placement

CHUNK_BYTES = 1 << 26
"""Bytes of logits that a device holds at a time, about."""


class TokenFacts(NamedTuple):
    """Log probability of each token given those before it, NaN for a segment's first one, in nats.

    `entropy` is that of the model's distribution over the token after it.
    """

    logprob: Float[Array, "B _"]
    entropy: Float[Array, "B _"]


def token_facts(
    normed: Float[Array, "B S D"],
    tokens: Tokens,
    vocab: int,
    placement: Placement,
    logits_of: Callable[[Float[Array, "B C D"]], Float[Array, "B C V"]],
) -> TokenFacts:
    """Returns the facts of all positions; `logits_of` gives float32 logits of some."""
    B, S, _ = normed.shape
    size = chunk_size(B // row_parts(placement), S, vocab)
    chunks = -(-S // size)
    after = jnp.pad(tokens.ids[:, 1:], [(0, 0), (0, chunks * size - S + 1)])
    normed = jnp.pad(normed, [(0, 0), (0, chunks * size - S), (0, 0)])

    def of_chunk(chunk: Int[Array, ""]) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
        x, targets = (jax.lax.dynamic_slice_in_dim(of_all, chunk * size, size, axis=1) for of_all in (normed, after))
        logits = logits_of(x)
        total = jax.nn.logsumexp(logits, axis=-1)
        # A sum, as it stays on the devices between which the vocabulary is split.
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        chosen = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        mean = jnp.sum(jnp.exp(logits - total[..., None]) * logits, axis=-1)
        return chosen - total, total - mean

    of_next, entropy = (
        jnp.moveaxis(of_chunks, 0, 1).reshape(B, chunks * size)[:, :S]
        for of_chunks in jax.lax.map(of_chunk, jnp.arange(chunks))
    )
    follows = tokens.segment_ids[:, 1:] == tokens.segment_ids[:, :-1]
    logprob = jnp.pad(jnp.where(follows, of_next[:, :-1], jnp.nan), [(0, 0), (1, 0)], constant_values=jnp.nan)
    return TokenFacts(logprob, entropy)


def chunk_size(rows: int, positions: int, vocab: int) -> int:
    """Returns how many positions of each row are in a chunk."""
    return max(1, min(positions, CHUNK_BYTES // (4 * vocab * max(1, rows))))


def row_parts(placement: Placement) -> int:
    """Returns the number of devices between which rows are split."""
    return 1 if placement.mesh is None else math.prod(placement.mesh.shape[axis] for axis in placement.rows)
