"""Keys and values of layers with attention, and states of the others, kept from one call of the decoder to the next.

L layers with attention, J layers with a gated delta rule, B rows, C slots of a row, S positions of one call, K key and
value heads, H head size; in a state R value heads of each key head, N = K R of them, P value size, X positions that a
filter sees before its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pod_job.models.arch import Arch
from pod_job.models.bits import HALF, as_bits


class KeyValues(NamedTuple):
    """Rotated keys, and values, on CPUs with those of bfloat16 as integers.

    Positions are innermost: a head narrower than a TPU's 128 lanes is not padded.
    """

    k: Float[Array, "L B K H S"]
    v: Float[Array, "L B K H S"]

    @property
    def slots(self) -> int:
        """Positions of a row."""
        return self.k.shape[-1]

    def write(self, layer: Int[Array, ""] | int, k: Float[Array, "B S K H"], v: Float[Array, "B S K H"]) -> "KeyValues":
        """Returns these with the keys and values of one layer."""

        def put(stack: Array, x: Array) -> Array:
            x = as_bits(x) if stack.dtype == HALF else x
            return jax.lax.dynamic_update_slice(stack, x.transpose(0, 2, 3, 1)[None], (layer, 0, 0, 0, 0))

        return KeyValues(put(self.k, k), put(self.v, v))


class DeltaStates(NamedTuple):
    """States that gated delta rules keep of each row's sequence; of one layer, without the first dimension.

    Attributes:
        heads: the state of each value head, in float32.
        q: projections of the latest positions, before the filters; zeros before the sequence. `k` and `v` likewise.
    """

    heads: Float[Array, "*J B K R H P"]
    q: Float[Array, "*J B K X H"]
    k: Float[Array, "*J B K X H"]
    v: Float[Array, "*J B N X P"]

    def of_layer(self, place: Int[Array, ""] | int) -> "DeltaStates":
        """Returns the states of the layer at this place of the stack."""
        return DeltaStates(*(stack[place] for stack in self))

    def begun(self, begun: Bool[Array, " B"]) -> "DeltaStates":
        """Returns the states of one layer, zeros in rows whose sequence has not begun."""
        return DeltaStates(*(jnp.where(begun.reshape(-1, *[1] * (x.ndim - 1)), x, 0) for x in self))

    def write(self, place: Int[Array, ""] | int, states: "DeltaStates") -> "DeltaStates":
        """Returns these with the states of one layer."""
        return DeltaStates(*(stack.at[place].set(new) for stack, new in zip(self, states, strict=True)))


class Places(NamedTuple):
    """Places of a layer in Kept: how many with attention, and how many with a gated delta rule, come before it."""

    keys: Int[Array, ""] | int
    states: Int[Array, ""] | int


class Kept(NamedTuple):
    """Arrays that are kept of sequences; `states` is None where every layer has attention."""

    keys: KeyValues
    states: DeltaStates | None

    def of_layer(self, places: Places) -> "Kept":
        """Returns stacks of the one layer at these places; past the end, the last."""
        parts = zip(self, places, strict=True)
        return Kept(*(jax.tree.map(lambda x, at=at: jax.lax.dynamic_slice_in_dim(x, at, 1), x) for x, at in parts))

    def write(self, places: Places, layer: "Kept") -> "Kept":
        """Returns these with stacks of one layer, as from `of_layer`, in its places."""
        put = jax.lax.dynamic_update_slice_in_dim
        parts = zip(self, layer, places, strict=True)
        return Kept(*(jax.tree.map(lambda x, y, at=at: put(x, y, at, 0), x, y) for x, y, at in parts))


class Prefix(NamedTuple):
    """Keys and values of tokens that sequences of a call begin with, the last of them in the last slot.

    Attributes:
        behind: how many of the tokens each position of the call comes after: the last so many; 0: none.
    """

    keys: KeyValues
    behind: Int[Array, "B S"]


class Cache(NamedTuple):
    """A ring of slots per row. All rows write the slot `slot % C` next, so that one update serves them all.

    A row's latest tokens are in the slots before `slot`; what lies further back than its tokens is of an earlier
    sequence in this row, or nothing.
    """

    kept: Kept
    slot: Int[Array, ""]

    @property
    def slots(self) -> int:
        """Slots of a row."""
        return self.kept.keys.slots

    def append(self, new: Kept) -> "Cache":
        """Returns the cache with the keys and values [L B K H 1] of the next position of every row, and its states."""
        at = (0, 0, 0, 0, self.slot % self.slots)
        keys = jax.tree.map(lambda stack, x: jax.lax.dynamic_update_slice(stack, x, at), self.kept.keys, new.keys)
        return Cache(Kept(keys, new.states), self.slot + 1)


def no_key_values(arch: Arch, rows: int, positions: int, dtype: np.dtype | type) -> KeyValues:
    """Returns zeros for so many positions of all layers with attention."""
    shape = (arch.layers - arch.delta_layers, rows, arch.kv_heads, arch.head_dim, positions)
    return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def no_states(arch: Arch, rows: int, dtype: np.dtype | type) -> DeltaStates | None:
    """Returns the states of sequences without tokens; None where every layer has attention."""
    if (sizes := arch.delta) is None:
        return None
    J, K, N, X = arch.delta_layers, sizes.key_heads, sizes.value_heads, sizes.kernel - 1
    q, k = (jnp.zeros((J, rows, K, X, sizes.key_size), dtype) for _ in range(2))
    v = jnp.zeros((J, rows, N, X, sizes.value_size), dtype)
    return DeltaStates(jnp.zeros((J, rows, K, N // K, sizes.key_size, sizes.value_size), jnp.float32), q, k, v)


def empty_cache(arch: Arch, rows: int, slots: int, dtype: np.dtype | type, keys_dtype: np.dtype | type) -> Cache:
    """Returns a cache in which nothing is written; `keys_dtype` is that which keys and values are kept in."""
    kept = Kept(no_key_values(arch, rows, slots, keys_dtype), no_states(arch, rows, dtype))
    return Cache(kept, jnp.zeros((), jnp.int32))
