"""Sources of vectors to train on: a finished run, or the forward pass on the same devices, of which nothing is stored.

A source gives one `RowBatch` after the other, in an order that no mesh and no number of hosts changes, with the
position at which a later start goes on after it.

N rows of a batch, on all hosts; B rows of prompts and S positions of the forward pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from pod_job.extraction.feeder import Prefetch
from pod_job.extraction.feeding import Feeding
from pod_job.extraction.pipeline import FirstStep
from pod_job.extraction.step import Step
from pod_job.extraction.transfer import put_rows
from pod_job.host.stop_request import StopRequest
from pod_job.planning.inputs import Inputs
from pod_job.training.lanes import Lanes, LaneStep
from pod_job.training.run_rows import RunRows

AHEAD = 4
"""Batches that are read or tokenized ahead of the devices."""


class RowBatch(NamedTuple):
    """Vectors on the devices, split like the rows of a step; `valid` marks those that may be trained on."""

    vectors: dict[str, Shaped[Array, "N _"]]
    valid: Bool[Array, "N"]
    position: Any


@runtime_checkable  # so that tests can check annotations while they run
class Source(Protocol):
    """Vectors in an order of their own, from a position on and without end: all hosts agree when they stop."""

    waited_s: float
    """Seconds that the devices' input was waited for."""

    @property
    def start(self) -> Any:
        """Position before the first batch: a pytree of arrays, as every position is."""
        ...

    def batches(self, position: Any) -> Iterator[RowBatch]:
        """Yields the batches after a position."""
        ...


@dataclass
class RunSource:
    """Rows of a finished run, `part.rows.count` in a batch; the position is the number of batches."""

    rows: RunRows
    part: Feeding
    waited_s: float = 0.0

    @property
    def start(self) -> Int[Array, ""]:
        return self._position(0)

    def batches(self, position: Int[Array, ""]) -> Iterator[RowBatch]:
        first = int(position)
        read = Prefetch(self._read_from(first), AHEAD)
        for number, (vectors, valid) in enumerate(read, first + 1):
            self.waited_s = read.waited_s
            placed = put_rows([valid, *vectors.values()], self.part)
            yield RowBatch(dict(zip(vectors, placed[1:], strict=True)), placed[0], self._position(number))

    def _position(self, number: int) -> Int[Array, ""]:
        return everywhere(self.part.rows.sharding.mesh, np.int32(number))

    def _read_from(self, batch: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        count = self.part.rows.count
        while True:
            parts = [self.rows.read(batch * count + start, batch * count + stop) for start, stop in spans(self.part)]
            vectors = {tap: np.concatenate([part[0][tap] for part in parts]) for tap in parts[0][0]}
            yield vectors, np.concatenate([part[1] for part in parts])
            batch += 1


def spans(part: Feeding) -> list[tuple[int, int]]:
    """Returns the global rows [start, stop) of a step that a feeder has, neighboring shards as one."""
    size = part.feeder_rows // len(part.row_starts)
    joined: list[tuple[int, int]] = []
    for start in part.row_starts:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], start + size)
        else:
            joined.append((start, start + size))
    return joined


class StreamPosition(NamedTuple):
    """Position of each lane, and the batch of the steps after it, where a step has several."""

    lanes: Int[Array, "B 2"]
    batch: Int[Array, ""]


@partial(jax.jit, static_argnums=2)
def batches_of(
    steps: Sequence[dict[str, Shaped[Array, "B S _"]]], counted: Sequence[Int[Array, "B S"]], count: int
) -> list[tuple[dict[str, Shaped[Array, "N _"]], Bool[Array, "N"]]]:
    """Returns the vectors of some steps as `count` batches of rows, and which rows are counted and finite in every tap.

    A batch has the same positions of every row of prompts, so that no vector leaves its device.
    """
    vectors = {tap: jnp.concatenate([step[tap] for step in steps], axis=1) for tap in steps[0]}
    valid = jnp.concatenate(counted, axis=1) > 0
    for value in vectors.values():
        valid &= jnp.isfinite(jnp.sum(jnp.square(value.astype(jnp.float32)), axis=2))

    def batch(number: int) -> tuple[dict[str, Array], Bool[Array, "N"]]:
        size = valid.shape[1] // count
        part = slice(number * size, (number + 1) * size)
        rows = {tap: value[:, part].reshape(-1, value.shape[2]) for tap, value in vectors.items()}
        return rows, valid[:, part].reshape(-1)

    return [batch(number) for number in range(count)]


class StreamSource:
    """The forward pass over prompts, in batches of `batch_rows` of its positions: parts of a step, or several steps."""

    def __init__(self, inputs: Inputs, step: Step, batch_rows: int, first_step: FirstStep | None = None) -> None:
        """`batch_rows` is as `planning.training_schedule.check_batch_rows` has it; `first_step` looks at that step."""
        self.first_step = first_step
        self.inputs, self.step, self.part = inputs, step, step.feeding
        positions = self.part.rows.count * inputs.config.extract.seq_len
        self.batches_per_turn, self.steps_per_turn = max(1, positions // batch_rows), max(1, batch_rows // positions)
        self.waited_s = 0.0

    @property
    def start(self) -> StreamPosition:
        return self._position(np.zeros((self.part.feeder_rows, 2), np.int32), 0)

    def batches(self, position: StreamPosition) -> Iterator[RowBatch]:
        lanes = [row for start, stop in spans(self.part) for row in range(start, stop)]
        shards = {shard.index[0].start or 0: shard.data for shard in position.lanes.addressable_shards}
        before = np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
        ahead = Prefetch(Lanes(self.inputs, lanes, self.part.rows.count, before, StopRequest()).steps(), AHEAD)
        skipped = int(position.batch)
        while True:
            taken = list(islice(ahead, self.steps_per_turn))
            self.waited_s = ahead.waited_s
            made, after = self._compute(taken), taken[-1].positions
            for number, (vectors, valid) in enumerate(made[skipped:], skipped + 1):
                last = number == len(made)
                yield RowBatch(vectors, valid, self._position(after if last else before, 0 if last else number))
            before, skipped = after, 0

    def _compute(self, steps: Sequence[LaneStep]) -> list[tuple[dict[str, Array], Array]]:
        """Starts the forward passes of some steps; returns their batches."""
        outputs = [self.step(step.input, more=True) for step in steps]
        if self.first_step is not None:
            self.first_step(steps[0].input, outputs[0])
            self.first_step = None
        activations = [output.activations for output in outputs]
        counted = [put_rows([step.input.counted], self.part)[0] for step in steps]
        return batches_of(activations, counted, self.batches_per_turn)

    def _position(self, lanes: np.ndarray, batch: int) -> StreamPosition:
        return StreamPosition(
            put_rows([lanes], self.part)[0], everywhere(self.part.rows.sharding.mesh, np.int32(batch))
        )


def everywhere(mesh: Mesh | AbstractMesh, number: np.generic) -> Shaped[Array, ""]:
    """Returns a number that every device holds."""
    return jax.make_array_from_callback((), NamedSharding(mesh, PartitionSpec()), lambda _: np.asarray(number))
