"""Shuffle buffer on the devices: every row that enters leaves once, at a random later step.

J slots, M rows of a step, D width. Row i of a step goes into a random slot of column i, and the row that lay there
leaves in its place. No row moves to another device; a batch has rows of M random ages, J steps on average.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Bool, Float, Int, UInt

from pod_job.models.bits import as_bits, as_numbers


class Buffer(NamedTuple):
    """Rows that wait, by tap and as `to_words` gives them, and which of them are rows at all."""

    words: dict[str, UInt[Array, "J M _"]]
    valid: Bool[Array, "J M"]


Rows = tuple[Mapping[str, Float[Array, "M _"]], Bool[Array, "M"]]
"""Rows of one step by tap, and which are valid; they leave the buffer in bfloat16."""


def empty_buffer(widths: dict[str, int], rows: int, slots: int) -> Buffer:
    """Returns a buffer without rows. `rows`: of one step."""
    nothing = {tap: to_words(jnp.zeros((rows, width))) for tap, width in widths.items()}
    return Buffer(jax.tree.map(lambda row: jnp.tile(row, (slots, 1, 1)), nothing), jnp.zeros((slots, rows), bool))


def exchange(buffer: Buffer, arriving: Rows, key: jax.Array) -> tuple[Buffer, Rows]:
    """Puts the valid rows into random slots and returns the rows that leave them; no other row enters.

    A row that leaves is valid unless its slot was empty.
    """
    rows, valid = arriving
    slots, count = buffer.valid.shape
    slot = jax.random.randint(key, (count,), 0, slots)
    return swap(buffer, (rows, valid), slot)


def put(buffer: Buffer, arriving: Rows, slot: Int[Array, ""]) -> Buffer:
    """Fills one slot of every column, before training starts."""
    return swap(buffer, arriving, jnp.broadcast_to(slot, arriving[1].shape))[0]


def take(buffer: Buffer, slot: Int[Array, ""]) -> tuple[Buffer, Rows]:
    """Empties one slot of every column, when no more rows come."""
    rows = {tap: from_words(held[slot]) for tap, held in buffer.words.items()}
    return buffer._replace(valid=buffer.valid.at[slot].set(False)), (rows, buffer.valid[slot])


def swap(buffer: Buffer, arriving: Rows, slot: Int[Array, "M"]) -> tuple[Buffer, Rows]:
    """Exchanges each valid row with the one in its column's slot, by a choice over all slots.

    A choice reads and writes the whole buffer, at the speed of memory; gathering rows would be slower on TPUs.
    """
    rows, valid = arriving
    here = (jnp.arange(buffer.valid.shape[0])[:, None] == slot) & valid
    leaving, held = {}, {}
    for tap, stored in buffer.words.items():
        leaving[tap] = from_words(jnp.sum(jnp.where(here[:, :, None], stored, 0), axis=0, dtype=stored.dtype))
        held[tap] = jnp.where(here[:, :, None], to_words(rows[tap]), stored)
    left = jnp.any(here & buffer.valid, axis=0)
    return Buffer(held, buffer.valid | here), (leaving, left)


def to_words(rows: Float[Array, "M D"]) -> UInt[Array, "M _"]:
    """Returns bfloat16 values two to a number of 32 bits, among which TPUs choose faster; an odd D's one to a number.

    Those of the first half of D are the lower halves.
    """
    bits = as_bits(rows.astype(jnp.bfloat16))
    if bits.shape[1] % 2:
        return bits
    lower, upper = jnp.split(bits.astype(jnp.uint32), 2, axis=1)
    return lower | upper << 16


def from_words(words: UInt[Array, "M _"]) -> BFloat16[Array, "M D"]:
    """Returns the bfloat16 values that `to_words` was given."""
    if words.dtype == jnp.uint32:
        words = jnp.concatenate([words & 0xFFFF, words >> 16], axis=1).astype(jnp.uint16)
    return as_numbers(words, jnp.bfloat16)
