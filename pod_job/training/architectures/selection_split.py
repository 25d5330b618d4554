"""Largest values of rows whose latents are split over TPUs: a kernel reads them once, and only counts travel.

What it keeps is what `selection.keep_largest` keeps. The kernel finds the `LEVELS` largest numbers of each lane on each
device, a number being a value and its place as in `selection_kernel`. The lowest of a row's k largest is found among
these alone; where a lane may have more of the k largest than that, among all values.

N rows, F latents of a row, C values of a row to decide among, over all devices; R rows of a tile. Numbers found lie
with their rows side by side, so that TPUs count a row's without sums across lanes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pod_job.training.architectures.selection import highest_reached, keep_largest, seldom_replaced
from pod_job.training.architectures.selection_kernel import (
    KERNEL_MEMORY,
    LANES,
    LEVELS,
    VALUE_BITS,
    at_tile,
    begins_with_lanes,
    kernel_fits,
    numbered,
    tile_rows,
    write_largest_of_lanes,
)

ROWS_INNERMOST = Layout(major_to_minor=(0, 1))
FOUND = LEVELS * LANES
"""Numbers of a row that the kernel finds on each device."""


class Ranks(NamedTuple):
    """Order of the values of a row: by their bits, and of equal ones by their places, counted from the row's end."""

    bits: Int[Array, "..."]
    places: Int[Array, "..."]


def lanes_cycles(rows: int, latents: int) -> float:
    """Returns the cycles of the kernel, from the listing that `selection_kernel.kernel_cycles` is from."""
    return 10.9 * rows * latents / (8 * LANES)


def keep_largest_of_split(
    values: Float[Array, "N F"], k: Int[Array, ""], most: int, *, mesh: Mesh, interpret: bool = False
) -> Float[Array, "N F"]:
    """Returns `selection.keep_largest` of bfloat16 rows that are split over `data`, and their latents over `model`.

    Args:
        most: what k is at most.
        interpret: whether XLA's operations stand in for the kernel, on any device.
    """
    rows, latents = len(values) // mesh.shape["data"], values.shape[1] // mesh.shape["model"]
    if not (kernel_fits(rows, latents) and begins_with_lanes(latents, most)):
        return keep_largest(values, k)
    values = lax.optimization_barrier(values)  # else XLA keeps them in float32 for each product that reads them
    split = PartitionSpec("data", "model")

    def numbers_down(values: Float[Array, "N F"]) -> Int[Array, "C N"]:
        return with_layout_constraint(largest_of_lanes(values, interpret=interpret).T, ROWS_INNERMOST)

    of_devices = jax.shard_map(
        numbers_down, mesh=mesh, in_specs=split, out_specs=PartitionSpec("model", "data"), check_vma=False
    )
    numbers = of_devices(lax.stop_gradient(values))
    found, counts = ranks_found(numbers, latents), jnp.full((1, len(values)), k)
    lowest = kth_largest(found, counts, values.shape[1], axis=0)
    # A lane whose last number is among the k largest may have more of them.
    last = lax.broadcasted_iota(jnp.int32, numbers.shape, 0) % FOUND >= FOUND - LANES
    crowded = jnp.any(reaching(found, lowest) & last)

    def among_all(given: tuple[Float[Array, "N F"], Int[Array, "1 N"]]) -> Ranks:
        lowest = kth_largest(ranks_of(given[0]), given[1].T, values.shape[1], axis=1)
        return Ranks(lowest.bits.T, lowest.places.T)

    lowest = seldom_replaced(lowest, crowded, among_all, (lax.stop_gradient(values), counts))
    return jnp.where(reaching(ranks_of(values), Ranks(lowest.bits.T, lowest.places.T)), values, 0)


def ranks_of(values: Float[Array, "N F"]) -> Ranks:
    """Returns the ranks of bfloat16 values, of which none is negative."""
    bits = lax.bitcast_convert_type(lax.stop_gradient(values), jnp.int16).astype(jnp.int32)
    return Ranks(bits, values.shape[1] - 1 - lax.broadcasted_iota(jnp.int32, values.shape, 1))


def ranks_found(numbers: Int[Array, "C N"], latents: int) -> Ranks:
    """Returns the ranks, among the latents of all devices, of the numbers that each found among its `latents`."""
    place_bits, devices = (latents - 1).bit_length(), len(numbers) // FOUND
    after = devices - 1 - lax.broadcasted_iota(jnp.int32, numbers.shape, 0) // FOUND
    return Ranks(numbers >> place_bits, after * latents + (numbers & ((1 << place_bits) - 1)))


def kth_largest(ranks: Ranks, k: Int[Array, "..."], latents: int, axis: int) -> Ranks:
    """Returns the rank of each row's k-th largest value along `axis`; of one that is not positive where fewer are.

    `latents`: values of a whole row, of which `ranks` may hold only some.
    """

    def count(mask: Bool[Array, "..."]) -> Int[Array, "..."]:
        return jnp.sum(mask, axis=axis, keepdims=True, dtype=jnp.int32)

    bits = highest_reached(lambda level: count(ranks.bits >= level), k, VALUE_BITS)
    missing, equal = k - count(ranks.bits > bits), ranks.bits == bits
    width = (latents - 1).bit_length()
    return Ranks(bits, highest_reached(lambda level: count(equal & (ranks.places >= level)), missing, width))


def reaching(ranks: Ranks, lowest: Ranks) -> Bool[Array, "..."]:
    """Returns the mask of the positive values from the row's lowest on."""
    equal = (ranks.bits == lowest.bits) & (ranks.places >= lowest.places)
    return ((ranks.bits > lowest.bits) | equal) & (ranks.bits > 0)


def largest_of_lanes(values: Float[Array, "N F"], *, interpret: bool = False) -> Int[Array, "N C"]:
    """Returns the LEVELS largest numbers of each row and lane on this device, level after level."""
    rows, latents = values.shape
    size = tile_rows(latents)
    return pl.pallas_call(
        largest_of_tile,
        out_shape=jax.ShapeDtypeStruct((rows, FOUND), jnp.int32),
        grid=(rows // size,),
        in_specs=[pl.BlockSpec((size, latents), at_tile)],
        out_specs=pl.BlockSpec((size, FOUND), at_tile),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=KERNEL_MEMORY),
        name="largest_of_lanes",
        interpret=interpret,
    )(values)


def largest_of_tile(values: Any, largest: Any) -> None:
    """Kernel of one tile: references to its values and to the numbers found."""
    latents = values.shape[1]
    write_largest_of_lanes(lambda start: numbered(values[:, start : start + LANES], start, latents), latents, largest)
