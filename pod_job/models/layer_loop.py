"""Loops over stacked layers that leave the chosen taps behind, and stop after the last one.

Few taps: the layers between two taps are one loop each, and a tap of the residual stream is simply a loop's result.
Many taps: one loop over all layers that carries a buffer per site. Either way compile time does not grow with depth.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pod_job.models.cache import Kept
from pod_job.models.taps import INNER_SITES, Tap

Carry = tuple[Float[Array, "B _ D"], Kept | None]
"""State that goes from layer to layer: the residual stream, and what is kept of sequences."""

Layer = Callable[[Int[Array, ""] | int, Carry], tuple[Carry, dict[str, Array]]]
"""Runs the layer of this number: the carry after it, and the layer's sites by name."""

# Past this many separate loops, one loop with buffers compiles faster than it costs to write the buffers.
MOST_PIECES = 12


def run_layers(
    layer: Layer, carry: Carry, layers: int, taps: tuple[Tap, ...], keep: Callable[[Array], Array], to_the_end: bool
) -> tuple[Carry, dict[str, Array]]:
    """Runs `layer(i, carry) -> (carry, sites)` for i = 0, 1, ...: the last carry, and `{tap name: keep(site)}`.

    `keep` picks the positions that are wanted. Unless `to_the_end`, layers past the last tap do not run.
    """
    stop = layers if to_the_end else max((layers_needed(tap) for tap in taps), default=0)
    cuts = pieces(taps, stop)
    if len(cuts) <= MOST_PIECES:
        return run_pieces(layer, carry, cuts, taps, keep)
    return run_buffered(layer, carry, stop, taps, keep)


def layers_needed(tap: Tap) -> int:
    """Returns how many layers must run before the tap's value is computed."""
    return tap.layer if tap.site == "resid_pre" else tap.layer + 1


def pieces(taps: tuple[Tap, ...], stop: int) -> list[tuple[int, int]]:
    """Returns [start, stop) ranges of layers, cut wherever a tap is taken; a layer with a tap inside stands alone."""
    edges = {0, stop}
    for tap in taps:
        if tap.site in INNER_SITES:
            edges |= {tap.layer, tap.layer + 1}
        else:
            edges.add(layers_needed(tap))
    ordered = sorted(edges)
    return list(itertools.pairwise(ordered))


def run_pieces(
    layer: Layer, carry: Carry, cuts: list[tuple[int, int]], taps: tuple[Tap, ...], keep: Callable[[Array], Array]
) -> tuple[Carry, dict[str, Array]]:
    """Runs each range of layers as a loop of its own, and takes the taps between them."""
    residual = {0: carry[0]}  # by number of layers run
    activations = {}
    for start, stop in cuts:
        inner = [tap for tap in taps if tap.layer == start and tap.site in INNER_SITES]
        if inner:
            carry, sites = layer(start, carry)
            activations |= {tap.name: keep(sites[tap.site]) for tap in inner}
        else:
            carry = jax.lax.fori_loop(start, stop, lambda i, carry: layer(i, carry)[0], carry)
        residual[stop] = carry[0]
    between = [tap for tap in taps if tap.site not in INNER_SITES]
    return carry, activations | {tap.name: keep(residual[layers_needed(tap)]) for tap in between}


def run_buffered(
    layer: Layer, carry: Carry, stop: int, taps: tuple[Tap, ...], keep: Callable[[Array], Array]
) -> tuple[Carry, dict[str, Array]]:
    """Runs one loop, in which each site has a buffer with a slot per tapped layer.

    Every layer writes into the slot of the next tapped layer at or after it, so that no branch is needed: the tapped
    layer writes last. Past the last tap the slot is out of range, and the write is dropped.
    """
    tapped: dict[str, list[int]] = {}
    for tap in taps:
        tapped.setdefault(tap.site, []).append(tap.layer)
    tapped = {site: sorted(at) for site, at in tapped.items()}
    slots = {site: jnp.array([sum(t < i for t in at) for i in range(stop)]) for site, at in tapped.items()}
    shapes = jax.eval_shape(lambda carry: {site: keep(layer(0, carry)[1][site]) for site in tapped}, carry)
    buffers = {site: jnp.zeros((len(at), *shapes[site].shape), shapes[site].dtype) for site, at in tapped.items()}

    def body(i: Array, state: tuple[Carry, dict[str, Array]]) -> tuple[Carry, dict[str, Array]]:
        carry, buffers = state
        carry, sites = layer(i, carry)
        return carry, {
            site: buf.at[slots[site][i]].set(keep(sites[site]), mode="drop") for site, buf in buffers.items()
        }

    carry, buffers = jax.lax.fori_loop(0, stop, body, (carry, buffers))
    return carry, {tap.name: buffers[tap.site][tapped[tap.site].index(tap.layer)] for tap in taps}
