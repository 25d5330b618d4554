"""Largest values, chosen by counting: exact, for any number of them, and without moving the values between devices.

The bits of floats that are not negative are ordered like the floats, so the k-th largest value follows from its bits,
BITS at a time: how many values reach each of 2^BITS - 1 thresholds. Of values that are split over devices, only counts
travel.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

BITS = 3
"""Bits decided in a pass, which is bound by reading the values and not by its comparisons."""
SELDOM = "seldom"
"""Name of the scope of a loop that is not entered but for ties; preflight counts it as no turn."""


def largest_per_row(values: Float[Array, "N F"], k: Int[Array, ""]) -> Bool[Array, "N F"]:
    """Returns the mask of each row's k largest values among its positive ones; of equal ones the first."""
    values = lax.stop_gradient(values)
    bits, width = ordered_bits(values)
    lowest = kth_largest(bits, jnp.full((len(values), 1), k), axis=1, width=width)
    above, equal = bits > lowest, (bits == lowest) & (bits > 0)
    missing = k - jnp.sum(above, axis=1, keepdims=True, dtype=jnp.int32)
    if width < 31:  # bfloat16: some row has equal values in every batch
        return above | first_of(equal, missing)
    crowded = jnp.any(jnp.sum(equal, axis=1, keepdims=True, dtype=jnp.int32) > missing)
    with jax.named_scope(SELDOM):
        # A loop of one turn or none: where SAEs are batched, a condition would become a choice between both outcomes.
        equal = lax.while_loop(
            lambda s: s[0], lambda s: (jnp.zeros_like(s[0]), first_of(s[1], missing)), (crowded, equal)
        )[1]
    return above | equal


def largest_of_batch(values: Float[Array, "N F"], count: Int[Array, ""]) -> Bool[Array, "N F"]:
    """Returns the mask of the `count` largest values of all rows among the positive ones; equal ones all or none."""
    bits, width = ordered_bits(lax.stop_gradient(values))
    lowest = kth_largest(bits, count.reshape(1, 1), axis=None, width=width)
    return (bits >= lowest) & (bits > 0) & (count > 0)


def ordered_bits(values: Float[Array, "N F"]) -> tuple[Int[Array, "N F"], int]:
    """Returns integers in the order of the values, 0 for those that are not positive, and how many bits they have."""
    positive = jnp.maximum(values, 0)
    if values.dtype == jnp.bfloat16:
        return lax.bitcast_convert_type(positive, jnp.int16).astype(jnp.int32), 15
    return lax.bitcast_convert_type(positive.astype(jnp.float32), jnp.int32), 31


def first_of(equal: Bool[Array, "N F"], missing: Int[Array, "N 1"]) -> Bool[Array, "N F"]:
    """Returns the mask of the first `missing` of those that are `equal` in each row."""
    width = equal.shape[1].bit_length()
    places = jnp.where(equal, equal.shape[1] - lax.broadcasted_iota(jnp.int32, equal.shape, 1), 0)
    return equal & (places >= kth_largest(places, missing, axis=1, width=width)) & (missing > 0)


def kth_largest(values: Int[Array, "N F"], k: Int[Array, "R 1"], axis: int | None, width: int) -> Int[Array, "R 1"]:
    """Returns the k-th largest value of each row, or of all of them; 0 where fewer than k are positive.

    Args:
        values: from 0 to 2^width - 1.
        k: one for each row with axis=1 (R = N), one for all with axis=None (R = 1).
    """
    passes = -(-width // BITS)
    highest = (1 << width) - 1

    def decide(turn: Int[Array, ""], known: Int[Array, "R 1"]) -> Int[Array, "R 1"]:
        shift = BITS * (passes - 1 - turn)
        digit = jnp.zeros_like(known)
        for level in range(1, 1 << BITS):
            # No value reaches a level beyond `highest`, which may be beyond 32 bits too.
            threshold = jnp.minimum(known + (level << shift), highest)
            reached = jnp.sum(values >= threshold, axis=axis, keepdims=True, dtype=jnp.int32) >= k
            digit += reached & (level <= (highest >> shift))
        return known + (digit << shift)

    return lax.fori_loop(0, passes, decide, jnp.zeros_like(k, jnp.int32))
