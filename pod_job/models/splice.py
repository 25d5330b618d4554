"""Values that a forward pass goes on with at some taps, in place of those that it computes: how an SAE is spliced in.

B rows, S positions.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from pod_job.models.taps import Tap

Replaced = Mapping[Tap, Float[Array, "B S width"]]
"""The values that take the place of those at some taps."""
NOTHING: Replaced = MappingProxyType({})

Splice = Callable[[str, Shaped[Array, "B S *width"]], Shaped[Array, "B S *width"]]
"""Takes a site's name and value, and returns the value that a layer goes on with."""


def unchanged(site: str, value: Shaped[Array, "B S *width"]) -> Shaped[Array, "B S *width"]:
    """Returns the value: the splice of a forward pass in which nothing is replaced."""
    return value


def splice_at(replaced: Replaced, layer: Int[Array, ""] | int, *, apart: bool = False) -> Splice:
    """Returns what replaces the values of a layer, whose number may be a loop's counter.

    Where nothing is replaced it is `unchanged`, with which a kernel may compute several sites as one; not if `apart`.
    """

    def splice(site: str, value: Shaped[Array, "B S *width"]) -> Shaped[Array, "B S *width"]:
        for tap, other in replaced.items():
            if tap.site == site:
                value = jnp.where(layer == tap.layer, other.reshape(value.shape).astype(value.dtype), value)
        return value

    return splice if replaced or apart else unchanged
