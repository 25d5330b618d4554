"""Largest values of each row on a TPU: one kernel that reads the values once and counts in the core's own memory.

What it keeps is what `selection.keep_largest` keeps. A value and its place make one whole number, which no two values
of a row share: the bits of a bfloat16 above those of the place, counted from the end. The k-th largest of these numbers
follows bit by bit, and everything from it on is kept. Of many numbers and a small k, the bits are decided among the
`LEVELS` largest numbers of each lane; where a lane has more of the k largest, which a count of all numbers shows, and
otherwise, among all.

N rows, F latents of a row, all on one device; R rows of a tile.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from pod_job.training.architectures.selection import keep_largest

VALUE_BITS = 15
"""Bits of a bfloat16 that is not negative."""
MOST_LATENTS = 1 << (31 - VALUE_BITS)
TILE_VALUES, MOST_TILE_ROWS, LANES = 1 << 19, 32, 128
"""Values and rows that are chosen from together at most, and the columns of a vector register."""
LEVELS = 6
"""Numbers of each lane that the bits are decided among at first: of 64 chosen ones, seven share a lane in 1 row of
7,000 where chance places them."""
MOST_BY_LANES = 64
"""Largest k for which that is tried: of 128 chosen ones, seven share a lane in a third of all tiles."""
KERNEL_MEMORY = 64 << 20
"""Bytes of the core's memory that the kernel may take: twice a tile of values and results, and one of numbers."""


def tile_rows(latents: int) -> int:
    """Returns a power of two, so that it divides what batches have: 8 or more."""
    return min(MOST_TILE_ROWS, 1 << (TILE_VALUES // latents).bit_length() - 1)


def kernel_fits(rows: int, latents: int) -> bool:
    """Returns whether the kernel takes so many rows of a device, with so many latents."""
    return latents <= MOST_LATENTS and latents % LANES == 0 and rows % tile_rows(latents) == 0


def begins_with_lanes(latents: int, most: int) -> bool:
    """Returns whether bits are decided among the largest numbers of each lane first; k is `most` at most."""
    return latents > 4 * LEVELS * LANES and most <= MOST_BY_LANES


def kernel_cycles(rows: int, latents: int, most: int) -> float:
    """Returns the cycles of the kernel where no lane is crowded: instructions in the TPU compiler's listing of them.

    The listing is that of libtpu 0.0.42.1 for v5e; each register of 8 x 128 values takes so many in each part.
    """
    registers, turns = rows * latents / (8 * LANES), VALUE_BITS + (latents - 1).bit_length()
    if begins_with_lanes(latents, most):
        return 10.1 * registers + 50.0 * turns * rows / tile_rows(latents)
    return (3.5 + 0.95 * turns) * registers


def keep_largest_on_tpu(
    values: Float[Array, "N F"], k: Int[Array, ""], most: int, *, mesh: Mesh
) -> Float[Array, "N F"]:
    """Returns `selection.keep_largest` of rows that are split over `data`, each whole on its device."""
    if not kernel_fits(len(values) // mesh.shape["data"], values.shape[1]):
        return keep_largest(values, k)
    rows = PartitionSpec("data")
    counts = jnp.broadcast_to(k, (len(values), 1)).astype(jnp.float32)
    kernel = partial(keep_largest_of_rows, most=most)
    of_devices = jax.shard_map(kernel, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False)
    return of_devices(values, counts)


def keep_largest_of_rows(
    values: Float[Array, "N F"], counts: Float[Array, "N 1"], *, most: int, interpret: bool = False
) -> Float[Array, "N F"]:
    """Returns the `counts` largest positive values of each row on this device, the others as 0."""
    rows, latents = values.shape
    size = tile_rows(latents)
    tile, column = pl.BlockSpec((size, latents), at_tile), pl.BlockSpec((size, 1), at_tile)
    numbers, largest = pltpu.VMEM((size, latents), jnp.int32), pltpu.VMEM((size, LEVELS * LANES), jnp.int32)
    return pl.pallas_call(
        partial(keep_largest_of_tile, begins_with_lanes(latents, most)),
        out_shape=jax.ShapeDtypeStruct(values.shape, values.dtype),
        grid=(rows // size,),
        in_specs=[column, tile],
        out_specs=tile,
        scratch_shapes=[numbers, largest],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=KERNEL_MEMORY),
        name="keep_largest",
        interpret=interpret,
    )(counts, values)


def at_tile(number: Any) -> tuple[Any, int]:
    return number, 0


def keep_largest_of_tile(by_lanes: bool, counts: Any, values: Any, results: Any, numbers: Any, largest: Any) -> None:
    """Kernel of one tile: references to k of each row, values and results, and memory for numbers.

    `by_lanes`: whether bits are decided among the largest numbers of each lane first.
    """
    latents = values.shape[1]
    place_bits = (latents - 1).bit_length()
    numbers[...] = numbered(values[...], 0, latents)
    width = VALUE_BITS + place_bits
    if by_lanes:
        write_largest_of_lanes(lambda start: numbers[:, start : start + LANES], latents, largest)
        lowest = kth_largest(largest, counts, width, width)
        crowded = jnp.max(reaching(numbers, lowest) - counts[...]) > 0
        turns = jnp.where(crowded, width, 0)
        lowest = jnp.where(crowded, kth_largest(numbers, counts, width, turns), lowest)
    else:
        lowest = kth_largest(numbers, counts, width, width)
    # From the lowest positive value on, or a zero would be kept where fewer than k are positive.
    lowest = jnp.maximum(lowest, 1 << place_bits)
    results[...] = jnp.where((numbers[...] >= lowest) & (counts[...] > 0), values[...], 0)


def numbered(values: Float[Array, "R L"], first: int, latents: int) -> Int[Array, "R L"]:
    """Returns the numbers of values that lie from the place `first` on, among so many latents."""
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32) >> 16
    places = lax.broadcasted_iota(jnp.int32, values.shape, 1)
    return (bits << (latents - 1).bit_length()) | (latents - 1 - first - places)


def write_largest_of_lanes(numbers_from: Callable[[int], Any], latents: int, largest: Any) -> None:
    """Writes the LEVELS largest numbers of each row and lane, level after level.

    `numbers_from` gives the numbers [R, LANES] from a place on.
    """
    blocks = [jnp.zeros((largest.shape[0], LANES), jnp.int32)] * LEVELS
    for start in range(0, latents, LANES):
        number = numbers_from(start)
        for level in range(LEVELS):
            blocks[level], number = jnp.maximum(blocks[level], number), jnp.minimum(blocks[level], number)
    for level, block in enumerate(blocks):
        largest[:, level * LANES : (level + 1) * LANES] = block


def kth_largest(numbers: Any, counts: Any, width: int, turns: Any) -> Int[Array, "R 1"]:
    """Returns the k-th largest of each row of the numbers, whose bits are `width`; `turns` is that or 0."""

    def decide(turn: Int[Array, ""], known: Int[Array, "R 1"]) -> Int[Array, "R 1"]:
        trial = known + (1 << (width - 1 - turn))
        return jnp.where(reaching(numbers, trial) >= counts[...], trial, known)

    return lax.fori_loop(0, turns, decide, jnp.zeros((numbers.shape[0], 1), jnp.int32))


def reaching(numbers: Any, level: Int[Array, "R 1"]) -> Float[Array, "R 1"]:
    """Returns how many numbers of each row reach the row's level."""
    return jnp.sum((numbers[...] >= level).astype(jnp.float32), axis=1, keepdims=True)
