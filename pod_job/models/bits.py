"""bfloat16 numbers as the integers of their bits, which XLA on CPUs moves as they are.

jaxlib before 0.12 converts a whole bfloat16 array to float32 where a small part of it is read or written.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

HALF = jnp.uint16
"""Integers as wide as bfloat16."""


def as_bits(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Returns bfloat16 as integers, and any other array as it is."""
    return jax.lax.bitcast_convert_type(x, HALF) if x.dtype == jnp.bfloat16 else x


def as_numbers(x: Shaped[Array, "*shape"], dtype: np.dtype | type) -> Shaped[Array, "*shape"]:
    """Returns the array of this dtype that `as_bits` was given."""
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)
