"""Keys and values of all layers, kept from one call of the decoder to the next.

L layers, B rows, C slots of a row, S positions of one call, K key/value heads, H head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pod_job.models.arch import Arch


class KeyValues(NamedTuple):
    """Rotated keys, and values. Positions are innermost: a head narrower than a TPU's 128 lanes is not padded."""

    k: Float[Array, "L B K H S"]
    v: Float[Array, "L B K H S"]

    @property
    def slots(self) -> int:
        """Positions of a row."""
        return self.k.shape[-1]

    def write(self, layer: Int[Array, ""] | int, k: Float[Array, "B S K H"], v: Float[Array, "B S K H"]) -> "KeyValues":
        """Returns these with the keys and values of one layer."""

        def put(stack: Array, x: Array) -> Array:
            return jax.lax.dynamic_update_slice(stack, x.transpose(0, 2, 3, 1)[None], (layer, 0, 0, 0, 0))

        return KeyValues(put(self.k, k), put(self.v, v))


class Cache(NamedTuple):
    """A ring of slots per row. All rows write the slot `slot % C` next, so that one update serves them all.

    A row's latest tokens are in the slots before `slot`; what lies further back than its tokens is of an earlier
    sequence in this row, or nothing.
    """

    kept: KeyValues
    slot: Int[Array, ""]

    @property
    def slots(self) -> int:
        """Slots of a row."""
        return self.kept.slots

    def append(self, new: KeyValues) -> "Cache":
        """Returns the cache with the keys and values [L B K H 1] of the next position of every row."""
        at = (0, 0, 0, 0, self.slot % self.slots)
        kept = jax.tree.map(lambda stack, x: jax.lax.dynamic_update_slice(stack, x, at), self.kept, new)
        return Cache(kept, self.slot + 1)


def no_key_values(arch: Arch, rows: int, positions: int, dtype: np.dtype | type) -> KeyValues:
    """Returns zeros for so many positions of all layers."""
    shape = (arch.layers, rows, arch.kv_heads, arch.head_dim, positions)
    return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def empty_cache(arch: Arch, rows: int, slots: int, dtype: np.dtype | type) -> Cache:
    """Returns a cache in which nothing is written."""
    return Cache(no_key_values(arch, rows, slots, dtype), jnp.zeros((), jnp.int32))
