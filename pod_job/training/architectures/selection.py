"""Largest values, chosen by counting: exact, for any number of them, and without moving the values between devices.

The bits of floats that are not negative are ordered like the floats, so the k-th largest value follows from its bits,
BITS at a time: how many values reach each of 2^BITS - 1 thresholds. Of values that are split over devices, only counts
travel.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

BITS = 3
"""Bits decided in a pass, which is bound by reading the values and not by its comparisons."""
NEAR = 7
"""Neighboring bfloat16 values among which the smallest of a batch's largest values is looked for first: as many as a
pass decides. One is 0.4% to 0.8% above the next."""
SELDOM = "seldom"
"""Name of the scope of what ordinary data do not enter, a loop or a branch; preflight does not count it."""

Result = TypeVar("Result")


def largest_per_row(values: Float[Array, "N F"], k: Int[Array, ""]) -> Bool[Array, "N F"]:
    """Returns the mask of each row's k largest values among its positive ones; of equal ones the first."""
    values = lax.stop_gradient(values)
    lowest = kth_largest(values, jnp.full((len(values), 1), k), axis=1)
    above = values > lowest
    missing = k - jnp.sum(above, axis=1, keepdims=True, dtype=jnp.int32)
    if values.dtype == jnp.bfloat16:  # some row has equal values in every batch
        return above | first_of(values, lowest, missing)
    equal = (values == lowest) & (values > 0)
    crowded = jnp.any(jnp.sum(equal, axis=1, keepdims=True, dtype=jnp.int32) > missing)

    equal = seldom_replaced(equal, crowded, lambda given: first_of(*given), (values, lowest, missing))
    return above | equal


def keep_largest(values: Float[Array, "N F"], k: Int[Array, ""], most: int | None = None) -> Float[Array, "N F"]:
    """Returns the k largest positive values of each row, of equal ones the first, and the others as 0.

    `most`, what k is at most, makes no difference here; it does where `keep_largest` has a kernel.
    """
    return jnp.where(largest_per_row(values, k), values, 0)


def largest_of_batch(
    values: Float[Array, "N F"], count: Int[Array, ""], guess: Float[Array, ""]
) -> tuple[Bool[Array, "N F"], Float[Array, ""]]:
    """Returns the mask of the `count` largest values of all rows among the positive ones, and the smallest of them.

    Equal ones are in it all or none. The smallest is 0 where fewer are positive, and infinite where `count` is 0.
    `guess` makes no difference to it: bfloat16 values are read once where it is near the smallest of them.
    """
    values, k = lax.stop_gradient(values), count.reshape(1, 1)
    lowest = kth_near(values, k, guess) if values.dtype == jnp.bfloat16 else kth_largest(values, k, axis=None)
    smallest = jnp.where(count > 0, lowest.reshape(()), jnp.inf).astype(jnp.float32)
    return (values >= lowest) & (values > 0) & (count > 0), smallest


def kth_near(values: Float[Array, "N F"], k: Int[Array, "1 1"], guess: Float[Array, ""]) -> Float[Array, "1 1"]:
    """Returns the k-th largest of all bfloat16 values: in one pass where it is among the NEAR values around the guess.

    The threshold of BatchTopK is such a guess: from one batch to the next it moves by less than the rounding.
    """
    middle = as_bits(lax.stop_gradient(guess).astype(jnp.bfloat16)).reshape(1, 1)
    start = jnp.maximum(middle - NEAR // 2, 1)
    reached = [count_reaching(values, as_value(start + level, values.dtype), None) >= k for level in range(NEAR)]
    lowest = as_value(start - 1 + sum(level.astype(jnp.int32) for level in reached), values.dtype)
    missed = ~(reached[0] & ~reached[-1])

    return seldom_replaced(lowest, missed.reshape(()), lambda given: kth_largest(*given, axis=None), (values, k))


def seldom_replaced(ordinary: Result, needed: Bool[Array, ""], replace: Callable[[Any], Result], given: Any) -> Result:
    """Returns `ordinary`, or `replace(given)` where that is needed, which costs nothing where it is not.

    A loop of one turn or none: where SAEs are batched, a condition would become a choice between both outcomes.
    """

    def turn(state: tuple[Bool[Array, ""], Result]) -> tuple[Bool[Array, ""], Result]:
        # What depends on nothing in the loop XLA computes before it, needed or not.
        here, needed = lax.optimization_barrier((given, state[0]))
        return jnp.zeros_like(needed), replace(here)

    with jax.named_scope(SELDOM):
        return lax.while_loop(lambda state: state[0], turn, (needed, ordinary))[1]


def kth_largest(values: Float[Array, "N F"], k: Int[Array, "R 1"], axis: int | None) -> Float[Array, "R 1"]:
    """Returns the k-th largest value of each row, or of all of them; 0 where fewer than k are positive.

    Args:
        values: float32 or bfloat16; these are read as they are, and their bits taken of thresholds only.
        k: one for each row with axis=1 (R = N), one for all with axis=None (R = 1).
    """

    def count(bits: Int[Array, "R 1"]) -> Int[Array, "R 1"]:
        return count_reaching(values, as_value(bits, values.dtype), axis)

    return as_value(highest_reached(count, k, width=15 if values.dtype == jnp.bfloat16 else 31), values.dtype)


def count_reaching(values: Float[Array, "N F"], level: Float[Array, "R 1"], axis: int | None) -> Int[Array, "R 1"]:
    return jnp.sum(values >= level, axis=axis, keepdims=True, dtype=jnp.int32)


def as_value(bits: Int[Array, "R 1"], dtype: DTypeLike) -> Float[Array, "R 1"]:
    """Returns the float32 or bfloat16 numbers, not negative, that have these bits."""
    return lax.bitcast_convert_type(bits.astype(jnp.int16) if dtype == jnp.bfloat16 else bits, dtype)


def as_bits(value: Float[Array, ""]) -> Int[Array, ""]:
    """Returns the bits of a bfloat16 number that is not negative."""
    return lax.bitcast_convert_type(value, jnp.int16).astype(jnp.int32)


def first_of(
    values: Float[Array, "N F"], lowest: Float[Array, "N 1"], missing: Int[Array, "N 1"]
) -> Bool[Array, "N F"]:
    """Returns the mask of the first `missing` of those values in each row that are equal to the row's `lowest`."""
    width = values.shape[1]

    def to_the(bits: Int[Array, "N 1"]) -> Bool[Array, "N F"]:
        return (values == lowest) & (lax.broadcasted_iota(jnp.int32, values.shape, 1) <= width - bits)

    def count(bits: Int[Array, "N 1"]) -> Int[Array, "N 1"]:
        return jnp.sum(to_the(bits), axis=1, keepdims=True, dtype=jnp.int32)

    # Places count from the end: the fewer reach a level the higher it is, as with values.
    return to_the(highest_reached(count, missing, width.bit_length())) & (missing > 0) & (values > 0)


def highest_reached(
    count: Callable[[Int[Array, "*R"]], Int[Array, "*R"]], k: Int[Array, "*R"], width: int, bits: int = BITS
) -> Int[Array, "*R"]:
    """Returns the highest level from 0 to 2^width - 1 that `k` or more reach, where `count(level)` do.

    `bits` are decided in a pass.
    """
    passes, highest = -(-width // bits), (1 << width) - 1

    def decide(turn: Int[Array, ""], known: Int[Array, "*R"]) -> Int[Array, "*R"]:
        shift = bits * (passes - 1 - turn)
        digit = jnp.zeros_like(known)
        for level in range(1, 1 << bits):
            # Levels beyond the highest, which may be beyond 32 bits too, are reached by none.
            reached = count(jnp.minimum(known + (level << shift), highest)) >= k
            digit += reached & (level <= (highest >> shift))
        return known + (digit << shift)

    return lax.fori_loop(0, passes, decide, jnp.zeros_like(k, jnp.int32))
