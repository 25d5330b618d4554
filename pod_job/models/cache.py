"""Keys and values of all layers, kept from one call of the decoder to the next.

L layers, B rows, C slots of a row, S positions of one call, K key/value heads, H head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pod_job.models.arch import Arch


class Cache(NamedTuple):
    """Slots below `slot` are written. All rows write the same slots, so prompts end, and not begin, together."""

    k: Float[Array, "L B C K H"]
    v: Float[Array, "L B C K H"]
    segment_ids: Int[Array, "B C"]
    slot: Int[Array, ""]

    def write(self, layer: Int[Array, ""] | int, k: Float[Array, "B S K H"], v: Float[Array, "B S K H"]) -> "Cache":
        """Returns the cache with this layer's rotated keys, and values, in the next slots."""
        at = (layer, 0, self.slot, 0, 0)
        return self._replace(
            k=jax.lax.dynamic_update_slice(self.k, k[None], at), v=jax.lax.dynamic_update_slice(self.v, v[None], at)
        )

    def begin(self, segment_ids: Int[Array, "B S"]) -> "Cache":
        """Returns the cache with the segments of the next slots noted, before any layer writes them."""
        noted = jax.lax.dynamic_update_slice(self.segment_ids, segment_ids.astype(jnp.int32), (0, self.slot))
        return self._replace(segment_ids=noted)

    def advance(self, count: int) -> "Cache":
        """Returns the cache once all layers have written `count` slots."""
        return self._replace(slot=self.slot + count)

    def mask(self, window: int | None) -> Bool[Array, "B 1 C"]:
        """Returns True at the slots that the one position at `slot` sees: up to its own, in its window and segment."""
        back = self.slot - jnp.arange(self.segment_ids.shape[1])
        near = back >= 0 if window is None else (back >= 0) & (back < window)
        own = jax.lax.dynamic_slice_in_dim(self.segment_ids, self.slot, 1, axis=1)
        return (near & (self.segment_ids == own))[:, None]


def empty_cache(arch: Arch, rows: int, slots: int, dtype: np.dtype | type) -> Cache:
    """Returns a cache in which nothing is written."""
    shape = (arch.layers, rows, slots, arch.kv_heads, arch.head_dim)
    keys, values = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
    return Cache(keys, values, jnp.zeros((rows, slots), jnp.int32), jnp.zeros((), jnp.int32))
