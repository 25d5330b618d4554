"""Loops over stacked layers that leave the chosen taps behind, and stop after the last one.

Few taps: the layers between two taps are one loop each, and a tap of the residual stream is simply a loop's result.
Many taps: one loop over all layers that carries a buffer per site. Either way compile time does not grow with depth.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pod_job.taps import INNER_SITES, Tap

Layer = Callable[[Any, Array], tuple[Array, dict[str, Array]]]

# Past this many separate loops, one loop with buffers compiles faster than it costs to write the buffers.
MOST_PIECES = 12


def run_layers(
    layer: Layer, x: Array, layers: int, taps: tuple[Tap, ...], keep: Callable[[Array], Array], to_the_end: bool
) -> tuple[Array, dict[str, Array]]:
    """Runs `layer(i, x) -> (x, sites)` for i = 0, 1, ... and returns the last x and `{tap name: keep(site)}`.

    `keep` picks the positions that are wanted. Unless `to_the_end`, layers past the last tap do not run.
    """
    stop = layers if to_the_end else max((layers_needed(tap) for tap in taps), default=0)
    cuts = pieces(taps, stop)
    if len(cuts) <= MOST_PIECES:
        return run_pieces(layer, x, cuts, taps, keep)
    return run_buffered(layer, x, stop, taps, keep)


def layers_needed(tap: Tap) -> int:
    """How many layers must run before the tap's value is there."""
    return tap.layer if tap.site == "resid_pre" else tap.layer + 1


def pieces(taps: tuple[Tap, ...], stop: int) -> list[tuple[int, int]]:
    """[start, stop) ranges of layers, cut wherever a tap is taken; a layer with a tap inside stands alone."""
    edges = {0, stop}
    for tap in taps:
        if tap.site in INNER_SITES:
            edges |= {tap.layer, tap.layer + 1}
        else:
            edges.add(layers_needed(tap))
    ordered = sorted(edges)
    return list(itertools.pairwise(ordered))


def run_pieces(
    layer: Layer, x: Array, cuts: list[tuple[int, int]], taps: tuple[Tap, ...], keep: Callable[[Array], Array]
) -> tuple[Array, dict[str, Array]]:
    residual = {0: x}  # by number of layers run
    activations = {}
    for start, stop in cuts:
        inner = [tap for tap in taps if tap.layer == start and tap.site in INNER_SITES]
        if inner:
            x, sites = layer(start, x)
            activations |= {tap.name: keep(sites[tap.site]) for tap in inner}
        else:
            x = jax.lax.fori_loop(start, stop, lambda i, x: layer(i, x)[0], x)
        residual[stop] = x
    between = [tap for tap in taps if tap.site not in INNER_SITES]
    return x, activations | {tap.name: keep(residual[layers_needed(tap)]) for tap in between}


def run_buffered(
    layer: Layer, x: Array, stop: int, taps: tuple[Tap, ...], keep: Callable[[Array], Array]
) -> tuple[Array, dict[str, Array]]:
    """One loop; each site has a buffer with a slot per tapped layer.

    Every layer writes into the slot of the next tapped layer at or after it, so that no branch is needed: the tapped
    layer writes last. Past the last tap the slot is out of range, and the write is dropped.
    """
    tapped: dict[str, list[int]] = {}
    for tap in taps:
        tapped.setdefault(tap.site, []).append(tap.layer)
    tapped = {site: sorted(at) for site, at in tapped.items()}
    slots = {site: jnp.array([sum(t < i for t in at) for i in range(stop)]) for site, at in tapped.items()}
    shapes = jax.eval_shape(lambda x: {site: keep(layer(0, x)[1][site]) for site in tapped}, x)
    buffers = {site: jnp.zeros((len(at), *shapes[site].shape), shapes[site].dtype) for site, at in tapped.items()}

    def body(i: Array, carry: tuple[Array, dict[str, Array]]) -> tuple[Array, dict[str, Array]]:
        x, buffers = carry
        x, sites = layer(i, x)
        return x, {site: buf.at[slots[site][i]].set(keep(sites[site]), mode="drop") for site, buf in buffers.items()}

    x, buffers = jax.lax.fori_loop(0, stop, body, (x, buffers))
    return x, {tap.name: buffers[tap.site][tapped[tap.site].index(tap.layer)] for tap in taps}
