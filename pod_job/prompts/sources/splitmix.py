"""Random numbers that follow from a place and a seed alone: splitmix64 (https://prng.di.unimi.it/splitmix64.c)."""

import numpy as np
from jaxtyping import UInt64

STEP = np.uint64(0x9E3779B97F4A7C15)
"""Distance of the states of neighboring places."""


def splitmix64(x: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """Returns the generator's output for these states."""
    with np.errstate(over="ignore"):
        x = x + STEP
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
