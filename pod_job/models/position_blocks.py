"""Products of a layer over blocks of positions up to the last that holds a token, on CPUs.

A packed row is seldom full, and a CPU's time follows the positions that it computes.

B rows, S positions, Q positions of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pod_job.models.bits import as_bits, as_numbers
from pod_job.models.placement import Placement

BLOCK = 128
"""Positions; a product of fewer takes more time for each, as the weights are read for few."""


@dataclass(frozen=True)
class FilledPlacement(Placement):
    """A placement that computes the first `blocks` of positions; past them the results are zeros."""

    blocks: Any = 0

    def by_position(self, compute: Callable[..., Any], x: Any) -> Any:
        return over_blocks(compute, self.blocks, x)

    def of_some(self) -> Placement:
        return Placement(**{field.name: getattr(self, field.name) for field in fields(Placement)})

    def computed(self, positions: int) -> Int[Array, ""]:
        return jnp.minimum(positions, self.blocks * BLOCK)


def computes_filled(placement: Placement, positions: int) -> bool:
    """Returns whether prefill of rows of so many positions leaves those past the last token out."""
    return placement.platform == "cpu" and positions > BLOCK


def filled_blocks(segment_ids: Int[Array, "B S"]) -> Int[Array, ""]:
    """Returns how many blocks of positions there are up to the last that is of a segment; segment 0 is padding."""
    position = jnp.arange(1, segment_ids.shape[1] + 1)
    return -(-jnp.max(jnp.where(segment_ids != 0, position, 0)) // BLOCK)


def padding_apart(segment_ids: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Returns the segments with each position of padding as one of its own, so that it attends to itself only."""
    position = jnp.arange(1, segment_ids.shape[1] + 1)
    return jnp.where(segment_ids == 0, -position, segment_ids)


def over_blocks(
    compute: Callable[..., Any], blocks: Int[Array, ""] | int, x: Any, axis: int = 1, block: int = BLOCK
) -> Any:
    """Returns `compute(x)` for so many blocks along an axis, that of positions, and zeros past them."""
    S = jax.tree.leaves(x)[0].shape[axis]
    size, shapes, of_parts = min(S, block), jax.eval_shape(compute, x), jax.tree.map(as_bits, x)
    nothing = jax.tree.map(lambda made: as_bits(jnp.zeros(made.shape, made.dtype)), shapes)

    def add(i: Int[Array, ""], made: Any) -> Any:
        start = jnp.minimum(i * size, S - size)  # the last block ends with the axis, and has some of it again
        parts = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis), of_parts)
        some = jax.tree.map(as_bits, compute(like(x, parts)))
        return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, axis), made, some)

    return like(shapes, jax.lax.fori_loop(0, blocks, add, nothing))


def like(x: Any, bits: Any) -> Any:
    """Returns arrays that are kept as bits in the dtypes of those of x."""
    return jax.tree.map(lambda x, some: as_numbers(some, x.dtype), x, bits)
