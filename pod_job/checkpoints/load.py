"""Parameters on the mesh from a checkpoint, each host reading about the bytes that its devices hold.

A checkpoint's matrices lie row by row, so a slice of rows is one range of a file. Where the mesh splits columns among
hosts, each host reads an equal part of the rows instead, and the devices exchange them (`read_by_exchange`).

Letters: P places of a stack (layers, experts), R rows and C columns of a tensor in the checkpoint (of a torch Linear:
[out, in]).
"""

import contextlib
import ctypes
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int, Shaped

from pod_job.checkpoints.checkpoint import Checkpoint
from pod_job.checkpoints.huggingface import TensorFiles, map_ahead
from pod_job.checkpoints.orbax import Box, Converted, Fill, fill_from_converted
from pod_job.models.weight_table import Weight
from pod_job.progress import Progress, no_progress
from pod_job.storage.buffers import aligned_empty

log = logging.getLogger("pod_job")

PIECE_BYTES = 4 << 20
"""Size of one read; several in flight hide the latency of a bucket."""

LAYERS_AHEAD = 2
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def load_params(
    checkpoint: Checkpoint,
    table: Mapping[str, Weight],
    dtype: np.dtype | type,
    shardings: Mapping[str, Sharding],
    progress: Progress = no_progress,
) -> dict[str, dict[str, Array]]:
    """Returns the parameters `{"params": {name: array}}` of `dtype`, placed by `shardings`.

    Every process of the shardings' devices must call it with the same arguments.
    """
    started = time.monotonic()
    params = {}
    with returning_memory():
        for name, weight in progress(table.items(), len(table), "weights"):
            sharding = shardings[name]
            if isinstance(checkpoint, Converted):
                params[name] = read_array(weight, dtype, sharding, fill_from_converted(checkpoint, name))
            elif isinstance(sharding, NamedSharding) and (axis := split_column_axis(weight, sharding)) is not None:
                params[name] = read_by_exchange(checkpoint, weight, dtype, sharding, axis)
            else:
                params[name] = read_array(weight, dtype, sharding, fill_from_tensors(checkpoint))
            jax.block_until_ready(params[name])
    log.info("weights read in %.1f s", time.monotonic() - started)
    return {"params": params}


@contextlib.contextmanager
def returning_memory() -> Iterator[None]:
    """Returns large blocks to the system as they are freed; glibc keeps blocks up to 32 MiB, thread by thread.

    Measured on 470 MB of float32 weights: peak memory beyond what was there before and one tensor, in sizes of a
    process's share, with and without: 1.0 and 1.1 (one process), 1.1 and 1.4 (one, cast to bfloat16), 1.5 and 2.1 (two,
    fsdp), 1.3 and 1.7 (two, tensor), at equal time. Afterwards the limits are those that glibc comes to by itself in
    a process that frees large blocks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
    mallopt(M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 64 << 20)


def read_array(weight: Weight, dtype: np.dtype | type, sharding: Sharding, fill: Fill) -> Array:
    """Returns the weight; `fill` reads the slices that this process's devices hold, each once."""
    boxes = {box(index, weight.shape) for index in sharding.addressable_devices_indices_map(weight.shape).values()}
    # On 64 bytes or more, jax's CPU devices use an array as it is, without a copy.
    slices = {span: aligned_empty([stop - start for start, stop in span], np.dtype(dtype)) for span in boxes}
    fill(weight, slices)
    return jax.make_array_from_callback(weight.shape, sharding, lambda index: slices[box(index, weight.shape)])


def box(index: Any, shape: tuple[int, ...]) -> Box:
    """Returns the start and stop of each dimension of a slice of an array."""
    spans = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in spans)


def fill_from_tensors(checkpoint: TensorFiles, of_stack: Sequence[tuple[str, int]] | None = None) -> Fill:
    """Returns a function that reads the rows any slice needs once, piece by piece, and casts them into the slices.

    `of_stack`: where the weight's rows lie, if not at `Weight.places`.
    """

    def fill(weight: Weight, slices: Mapping[Box, np.ndarray]) -> None:
        views = [View.of(weight, slice_box, array) for slice_box, array in slices.items()]
        spans, wanted = sorted({view.rows for view in views}), sorted({at for view in views for at in view.places})
        places = of_stack or weight.places
        row_bytes = checkpoint.tensors[places[0][0]].dtype.itemsize * matrix_shape(weight)[1]
        reads = [(at, *piece) for at in wanted for piece in pieces(spans, max(1, PIECE_BYTES // row_bytes))]
        read = map_ahead(lambda piece: checkpoint.read_place(places[piece[0]], *piece[1:], weight.part), reads)
        for (at, start, stop), data in zip(reads, read, strict=True):
            for view in views:
                view.take(at, start, stop, data)

    return fill


def pieces(spans: list[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """Yields the union of sorted spans in pieces of at most `most` rows."""
    done = 0
    for start, stop in spans:
        for at in range(max(start, done), stop, most):
            yield at, min(at + most, stop)
        done = max(done, stop)


def matrix_shape(weight: Weight) -> tuple[int, int]:
    """Returns R, C of the checkpoint's tensor (of one place of the stack), or of our part of it."""
    shape = weight.part_shape
    return (shape[0], shape[1]) if len(shape) == 2 else (1, math.prod(shape))


@dataclass(frozen=True)
class View:
    """A slice of a weight as the checkpoint has it: `matrix` [P, rows, columns] is a view of the slice's memory.

    `places` has for each place of the weight's stack that the slice holds where it is among them.
    """

    matrix: Shaped[np.ndarray, "P rows columns"]
    places: Mapping[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @classmethod
    def of(cls, weight: Weight, span: Box, array: np.ndarray) -> "View":
        stack, sizes = weight.stack, weight.shape[len(weight.stack) :]
        numbers = np.arange(math.prod(stack)).reshape(stack)[tuple(slice(*of_dim) for of_dim in span[: len(stack)])]
        span, at = span[len(stack) :], weight.leading_dims
        first, second = flat_span(span[:at], sizes[:at]), flat_span(span[at:], sizes[at:])
        matrix = array.reshape(numbers.size, first[1] - first[0], second[1] - second[0])
        places = {int(number): at for at, number in enumerate(numbers.ravel())}
        if weight.linear:
            return cls(matrix.swapaxes(1, 2), places, second, first)
        return cls(matrix, places, first, second)

    def take(self, place: int, start: int, stop: int, data: Shaped[np.ndarray, "R C"]) -> None:
        """Copies the view's part of rows [start, stop) of a place of the stack."""
        begin, end = max(start, self.rows[0]), min(stop, self.rows[1])
        if begin < end and place in self.places:
            target = slice(begin - self.rows[0], end - self.rows[0])
            self.matrix[self.places[place], target] = data[begin - start : end - start, slice(*self.columns)]


def flat_span(spans: Box, sizes: tuple[int, ...]) -> tuple[int, int]:
    """Returns where a slice lies in the flattened dimensions; only the first of them is ever split."""
    inner = math.prod(sizes[1:])
    assert all(span == (0, size) for span, size in zip(spans[1:], sizes[1:], strict=True))
    return (spans[0][0] * inner, spans[0][1] * inner) if spans else (0, 1)


def split_column_axis(weight: Weight, sharding: NamedSharding) -> int | None:
    """Returns our dimension that splits the checkpoint's columns among hosts, where rows can be exchanged instead."""
    rows, _ = matrix_shape(weight)
    hosts = {device.process_index for device in sharding.device_set}
    if len(hosts) == 1 or rows % sharding.mesh.size:
        return None
    return column_axis(weight, sharding)


def column_axis(weight: Weight, sharding: NamedSharding) -> int | None:
    """Returns our dimension that is split and makes up the checkpoint's columns."""
    split = [dim for dim, axis in enumerate(sharding.spec) if axis is not None]
    if len(weight.part_shape) < 2 or not split or split[0] < len(weight.stack):
        return None
    first_of_rows = len(weight.stack) + (weight.leading_dims if weight.linear else 0)
    return None if split[0] == first_of_rows else split[0]


def read_by_exchange(
    checkpoint: TensorFiles, weight: Weight, dtype: np.dtype | type, sharding: NamedSharding, axis: int
) -> Array:
    """Returns the weight, split along `axis`: devices get equal parts of the rows, and swap them for columns.

    Goes by the places of its stack, so that the rows in flight are few beside the weight.
    """
    rows = NamedSharding(sharding.mesh, PartitionSpec(sharding.mesh.axis_names))

    def read(place: tuple[str, int]) -> Array:
        tensor = Weight(matrix_shape(weight), (None, None), place[0], part=weight.part)
        return read_array(tensor, dtype, rows, fill_from_tensors(checkpoint, [place]))

    swap = exchange(sharding, axis, weight.shape, len(weight.stack), weight.linear)
    array = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)(weight.shape, dtype)
    for at, block in enumerate(map_ahead(read, weight.places, LAYERS_AHEAD)):
        array = jax.block_until_ready(swap(array, block, np.array(np.unravel_index(at, weight.stack), np.int32)))
    return array


@functools.lru_cache
def exchange(
    sharding: NamedSharding, axis: int, shape: tuple[int, ...], stack_dims: int, transposed: bool
) -> Callable[[Array, Array, Int[np.ndarray, " dims"]], Array]:
    """Returns the program that writes a place, split over all devices by rows, into an array split along `axis`."""
    parts = sharding.mesh.shape["model"]
    local = tuple(size // parts if at == axis else size for at, size in enumerate(shape))[stack_dims:]

    def swap(array: Array, block: Array, place: Int[Array, " dims"]) -> Array:
        block = jax.lax.all_to_all(block, "model", split_axis=1, concat_axis=0, tiled=True)
        block = jax.lax.all_gather(block, "data", axis=0, tiled=True)
        block = (block.T if transposed else block).reshape(local)
        return array.at[tuple(place)].set(block) if stack_dims else block

    by_rows = PartitionSpec(sharding.mesh.axis_names)
    specs = (sharding.spec, by_rows, PartitionSpec())
    swapped = jax.shard_map(swap, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec, check_vma=False)
    return jax.jit(swapped, donate_argnums=0)
