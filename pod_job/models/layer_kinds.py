"""Kinds of layers of a decoder, and a layer's place among those of its kind, over which their arrays are stacked."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pod_job.models.arch import Arch
from pod_job.models.cache import Places
from pod_job.models.layer_loop import Carry, Layer

Number = Int[Array, ""] | int

RunOfKind = Callable[[bool, Number, Number, Carry], tuple[Carry, dict[str, Array]]]
"""Runs a layer whose kind is known: whether it is a delta rule, its number, its place in what is kept, the carry."""


def is_delta(arch: Arch, layer: int) -> bool:
    """Returns whether a gated delta rule takes the place of attention in the layer; False past the last layer."""
    return layer < arch.layers and arch.attention[layer].delta


def place_of_layer(arch: Arch, i: Number, *, delta: bool) -> Number:
    """Returns how many layers of this kind come before layer i, a number or a loop counter."""
    if arch.delta is None:
        return i
    places = [sum(is_delta(arch, j) is delta for j in range(layer)) for layer in range(arch.layers)]
    return places[i] if isinstance(i, int) else jnp.array(places)[i]


def layer_by_kind(arch: Arch, run: RunOfKind, *, in_place: bool) -> Layer:
    """Returns the function that runs layer i, a number or a loop counter, by its kind.

    Args:
        in_place: branches of a conditional write into the arrays that they are given. XLA does that on TPU; elsewhere
            it copies them all, so that a branch is given what is kept of its layer alone.
    """
    kinds = [is_delta(arch, j) for j in range(arch.layers)]

    def layer(i: Number, carry: Carry) -> tuple[Carry, dict[str, Array]]:
        places = Places(*(place_of_layer(arch, i, delta=delta) for delta in (False, True)))
        if isinstance(i, int) or len(set(kinds)) == 1:
            delta = kinds[i if isinstance(i, int) else 0]
            return run(delta, i, places[delta], carry)
        kind, (x, kept) = jnp.array(kinds, jnp.int32)[i], carry
        at = places if in_place else Places(0, 0)
        branches = [functools.partial(run, delta, i, at[delta]) for delta in (False, True)]
        if kept is None or in_place:
            return jax.lax.switch(kind, branches, carry)
        (x, own), sites = jax.lax.switch(kind, branches, (x, kept.of_layer(places)))
        return (x, kept.write(places, own)), sites

    return layer
