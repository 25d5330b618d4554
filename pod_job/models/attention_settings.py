"""Arguments of one layer's attention that all implementations share; the settings are static.

B rows, S positions, P positions before a row, N query heads, K key/value heads, H head size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Before(NamedTuple):
    """Rotated keys, and values, of tokens before those of a row.

    Attributes:
        behind: how many of them each position of the row sees: the last so many; 0: none.
    """

    k: Float[Array, "B K H P"]
    v: Float[Array, "B K H P"]
    behind: Int[Array, "B S"]


class Heads(NamedTuple):
    """Rotated queries, rotated keys, and values; `sinks` are scores that are in a head's softmax and have no value."""

    q: Float[Array, "B S N H"]
    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]
    sinks: Float[Array, " N"] | None = None
    before: Before | None = None


@dataclass(frozen=True)
class AttentionSettings:
    """Settings that turn a dot product into a score, and bound how far back a query sees.

    Attributes:
        scale: multiplies dot products of queries and keys.
        softcap: c turns a score x into c tanh(x / c) before the mask; None leaves it.
        window: how many positions a query sees, its own included; None: its segment from the start.
        heads_apart: queries and keys lie head by head in memory, as `rotated_heads` leaves them.
    """

    scale: float
    softcap: float | None = None
    window: int | None = None
    heads_apart: bool = False


def soft_cap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """Returns cap tanh(x / cap), which lies within +-cap; x itself where `cap` is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)
