"""Largest values of each row on a CPU: `selection.keep_largest`, with one count in a pass.

Of several counts in one loop XLA makes code without vector instructions, which takes 20 times as long for each. A
bfloat16 and its place make one whole number, which no two values of a row share; places of equal values of float32 are
decided after these.

N rows, F latents of a row.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pod_job.training.architectures.selection import highest_reached

SLICE = 256
"""Columns that are counted side by side before their counts are added up."""
VALUE_BITS = {"bfloat16": 15, "float32": 31}
"""Bits of a value that is not negative."""
NUMBER_BITS = 31


def keep_largest_on_cpu(values: Float[Array, "N F"], k: Int[Array, ""], most: int) -> Float[Array, "N F"]:
    """Returns the k largest positive values of each row, of equal ones the first, and the others as 0.

    `most`, what k is at most, makes no difference.
    """
    latents, k_of_rows = values.shape[1], jnp.full((len(values), 1), k)
    place_bits, width = latents.bit_length(), VALUE_BITS[values.dtype.name]
    places = latents - lax.broadcasted_iota(jnp.int32, values.shape, 1)  # from the end, so that the first is highest
    if width + place_bits <= NUMBER_BITS:
        bits = lax.bitcast_convert_type(values, jnp.int16).astype(jnp.int32)
        numbers = (bits << place_bits) | places
        kept = numbers >= lowest_chosen(numbers, k_of_rows, width + place_bits)
    else:
        bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
        lowest = lowest_chosen(bits, k_of_rows, NUMBER_BITS)
        missing = k_of_rows - count_reaching(bits, lowest + 1)
        equal = jnp.where(bits == lowest, places, 0)
        kept = (bits > lowest) | (equal >= jnp.maximum(lowest_chosen(equal, missing, place_bits), 1))
    return jnp.where(kept & (values > 0) & (k > 0), values, 0)


def lowest_chosen(numbers: Int[Array, "N F"], k: Int[Array, "N 1"], width: int) -> Int[Array, "N 1"]:
    """Returns the k-th largest number of each row, which have `width` bits; with fewer numbers above 0, 0."""
    return highest_reached(lambda level: count_reaching(numbers, level), k, width, bits=1)


def count_reaching(numbers: Int[Array, "N F"], level: Int[Array, "N 1"]) -> Int[Array, "N 1"]:
    """Returns how many numbers of each row reach the row's level."""
    whole = numbers.shape[1] // SLICE * SLICE
    slices = [numbers[:, start : start + SLICE] >= level for start in range(0, whole, SLICE)]
    counts = jnp.sum(numbers[:, whole:] >= level, axis=1, keepdims=True, dtype=jnp.int32)
    if slices:
        counts += jnp.sum(sum(part.astype(jnp.int32) for part in slices), axis=1, keepdims=True)
    return counts
