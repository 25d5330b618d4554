"""Kinds of layers of a decoder, and a layer's place among those of its kind, over which their arrays are stacked."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from pod_job.models.arch import Arch


def is_delta(arch: Arch, layer: int) -> bool:
    """Returns whether a gated delta rule takes the place of attention in the layer; False past the last layer."""
    return layer < arch.layers and arch.attention[layer].delta


def place_of_layer(arch: Arch, i: Int[Array, ""] | int, *, delta: bool) -> Int[Array, ""] | int:
    """Returns how many layers of this kind come before layer i, a number or a loop counter."""
    if arch.delta is None:
        return i
    places = [sum(is_delta(arch, j) is delta for j in range(layer)) for layer in range(arch.layers)]
    return places[i] if isinstance(i, int) else jnp.array(places)[i]
