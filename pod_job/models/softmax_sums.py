"""Softmax that is summed up as blocks of keys come, in float32 (arXiv:2205.14135).

K key/value heads, T keys, H head size; further dimensions before the last are those of queries.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

LOWEST = float(jnp.finfo(jnp.float32).min)
"""Score of a key that a query does not see."""


class Sums(NamedTuple):
    """Sums over some keys of each query.

    Attributes:
        most: a score that none lies far above.
        total: sum of exp(score - most).
        weighted: sum of exp(score - most) times the value.
    """

    most: Float[Array, "*queries 1"]
    total: Float[Array, "*queries 1"]
    weighted: Float[Array, "*queries H"]


def no_sums(*shape: int) -> Sums:
    """Returns the sums over no keys, with weighted values of this shape."""
    nothing = jnp.zeros((*shape[:-1], 1))
    return Sums(nothing + LOWEST, nothing, jnp.zeros(shape))


def sums_of(scores: Float[Array, "K *queries T"], values: Float[Array, "K H T"], before: Sums | None = None) -> Sums:
    """Returns the sums over the keys of these scores, added to those over the keys before them, if any."""
    most = scores.max(axis=-1, keepdims=True)
    most = most if before is None else jnp.maximum(before.most, most)
    weights = jnp.exp(scores - most)
    total = weights.sum(axis=-1, keepdims=True)
    weighted = jnp.einsum("k...t,kht->k...h", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    if before is None:
        return Sums(most, total, weighted)
    shrink = jnp.exp(before.most - most)
    return Sums(most, before.total * shrink + total, before.weighted * shrink + weighted)


def joined(parts: Sequence[Sums]) -> Sums:
    """Returns the sums over the keys of all parts."""
    most = functools.reduce(jnp.maximum, [part.most for part in parts])
    shares = [jnp.exp(part.most - most) for part in parts]
    of_parts = [[x * share for x in part[1:]] for part, share in zip(parts, shares, strict=True)]
    return Sums(most, *(functools.reduce(jnp.add, xs) for xs in zip(*of_parts, strict=True)))


def mean(parts: Sequence[Sums], sinks: Float[Array, "*heads 1"] | None) -> Float[Array, "*queries H"]:
    """Returns the weighted mean of values over all parts; a head's sink, if any, is a key without a value."""
    if sinks is not None:
        most = sinks.astype(jnp.float32)
        parts = [*parts, Sums(most, jnp.ones_like(most), jnp.zeros_like(most))]
    _, total, weighted = joined(parts) if len(parts) > 1 else parts[0]
    return weighted / total
