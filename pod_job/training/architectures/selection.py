"""Largest values, chosen by counting: exact, for any number of them, and without moving the values between devices.

The bits of floats that are not negative are ordered like the floats, so the k-th largest value follows from its 31
bits, BITS at a time: how many values reach each of 2^BITS - 1 thresholds. Where the values are split over devices, only
counts travel.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

BITS = 3
"""Bits decided in a pass: 11 passes, each bound by reading the values and not by its comparisons."""
PASSES = -(-31 // BITS)
SELDOM = "seldom"
"""Name of the scope of a loop that is not entered but for ties; preflight counts it as no turn."""


def largest_per_row(values: Float[Array, "N F"], k: Int[Array, ""]) -> Bool[Array, "N F"]:
    """Returns the mask of each row's k largest values among its positive ones; of equal ones the first."""
    values = lax.stop_gradient(values)
    lowest = kth_largest(values, jnp.full((len(values), 1), k), axis=1)
    above, equal = values > lowest, (values == lowest) & (values > 0)
    missing = k - jnp.sum(above, axis=1, keepdims=True, dtype=jnp.int32)
    return above | (equal & first_of(equal, missing))


def largest_of_batch(values: Float[Array, "N F"], count: Int[Array, ""]) -> Bool[Array, "N F"]:
    """Returns the mask of the `count` largest values of all rows among the positive ones; equal ones all or none."""
    values = lax.stop_gradient(values)
    lowest = kth_largest(values, count.reshape(1, 1), axis=None)
    return (values >= lowest) & (values > 0) & (count > 0)


def kth_largest(values: Float[Array, "N F"], k: Int[Array, "R 1"], axis: int | None) -> Float[Array, "R 1"]:
    """Returns the k-th largest value of each row, or of all of them; 0 where fewer are positive.

    Args:
        values: negative ones count as 0.
        k: one for each row with axis=1 (R = N), one for all with axis=None (R = 1).
    """
    bits = lax.bitcast_convert_type(jnp.maximum(values, 0.0), jnp.int32)
    levels = range(1, 1 << BITS)

    def decide(turn: Int[Array, ""], found: Int[Array, "R 1"]) -> Int[Array, "R 1"]:
        shift = BITS * (PASSES - 1 - turn)
        # A level past the 31st bit would wrap around: no value reaches it.
        thresholds = [
            jnp.where(level >> (31 - shift) > 0, jnp.iinfo(jnp.int32).max, found + (level << shift)) for level in levels
        ]
        reached = [jnp.sum(bits >= level, axis=axis, keepdims=True, dtype=jnp.int32) >= k for level in thresholds]
        return found + (sum(jnp.asarray(r, jnp.int32) for r in reached) << shift)

    return lax.bitcast_convert_type(lax.fori_loop(0, PASSES, decide, jnp.zeros_like(k, jnp.int32)), jnp.float32)


def first_of(equal: Bool[Array, "N F"], missing: Int[Array, "N 1"]) -> Bool[Array, "N F"]:
    """Returns a mask that leaves the first `missing` of the `equal` in each row; no pass is made if no row has more."""
    index = lax.broadcasted_iota(jnp.int32, equal.shape, 1)
    crowded = jnp.sum(equal, axis=1, keepdims=True, dtype=jnp.int32) > missing
    highest = 1 << (equal.shape[1] - 1).bit_length()

    def unsettled(state: tuple[Int[Array, ""], Int[Array, "N 1"]]) -> Bool[Array, ""]:
        return (state[0] > 0) & jnp.any(crowded)

    def halve(state: tuple[Int[Array, ""], Int[Array, "N 1"]]) -> tuple[Int[Array, ""], Int[Array, "N 1"]]:
        step, end = state
        before = jnp.sum(equal & (index < end + step), axis=1, keepdims=True, dtype=jnp.int32)
        return step // 2, jnp.where(before <= missing, end + step, end)

    start = jnp.int32(highest), jnp.zeros_like(missing)
    with jax.named_scope(SELDOM):
        end = lax.while_loop(unsettled, halve, start)[1]
    return (index < end) | ~crowded
