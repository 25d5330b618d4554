"""Trainer: sparse autoencoders of any shapes, trained together on the rows of one forward pass.

SAEs of one shape are one group, batched along a leading axis S; groups stand side by side in one compiled step. The
devices of the job's mesh form another one here, `planning.trainer_layout`: SAEs are split over `saes`, latents over
`model`, rows over `data`, and between steps matrices over all three; XLA places the collectives. A step whose loss or
gradient is not finite freezes its SAE as it was before, and the others go on.

Usage, with `rows` {tap: [M, D]} from the forward pass, placed by `row_sharding`:

    trainer = Trainer(plans, recipe, mesh, row_axes, widths, rows=M)
    state = trainer.initial_state({tap: measure_tap(rows[tap], valid).statistics for tap in rows})
    for slot in range(recipe.buffer_steps):
        state = trainer.fill(state, rows, valid, slot)
    for _ in range(recipe.steps - recipe.buffer_steps):
        state, metrics = trainer.step(state, rows, valid)
    for slot in range(recipe.buffer_steps):
        state, metrics = trainer.drain(state, slot)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from pod_job.planning.trainer_layout import GroupSize, TrainerLayout, trainer_layout
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.buffer import Buffer, empty_buffer, exchange, put, take
from pod_job.training.group import Group, GroupState, StepMetrics, grouped, initial_group, train_group
from pod_job.training.matrices import kept_split
from pod_job.training.recipe import Recipe, SaePlan
from pod_job.training.tap_statistics import TapStatistics

ROW_DTYPE = "bfloat16"
"""Dtype of a step's rows in `lower`, which has none, and of those in the buffer."""
SPLIT = {
    "encoder_bias": PartitionSpec("saes", "model"),
    "gate_bias": PartitionSpec("saes", "model"),
    "gate_scale": PartitionSpec("saes", "model"),
    "log_threshold": PartitionSpec("saes", "model"),
    "idle_rows": PartitionSpec("saes", "model"),
}
"""Arrays of the state that are split over the mesh, by the last name on their path, with their leading axis S.

Matrices are split as `matrices.kept_split` says; others over that axis alone."""


class TrainerState(NamedTuple):
    """Everything that a training goes on from: a pytree of arrays, to be saved as it is."""

    groups: tuple[GroupState, ...]
    buffer: Buffer | None
    step: Int[Array, ""]


Rows = Mapping[str, Shaped[Array, "M _"]]


@dataclass(frozen=True)
class Trainer:
    """Compiled steps of a training.

    Attributes:
        plans: the SAEs, checked by `recipe.check_plans`.
        mesh: the job's, by which rows arrive and lie in the buffer.
        row_axes: its axes that arriving rows are split over.
        widths: of the taps that are read, by name.
        rows: of one step, over all devices, valid or not.
        layout: of the SAEs; None for that which moves the fewest bytes.
    """

    plans: tuple[SaePlan, ...]
    recipe: Recipe
    mesh: Mesh
    row_axes: tuple[str, ...]
    widths: Mapping[str, int]
    rows: int
    layout: TrainerLayout | None = None

    @cached_property
    def sae_mesh(self) -> Mesh:
        """Mesh of the SAEs, with axes `data`, `saes` and `model`, over the devices of the job's in their order."""
        sizes = [group_size(len(group.plans), group.shape) for group in self.groups]
        layout = self.layout or trainer_layout(self.mesh.size, self.rows, sizes)
        devices = self.mesh.devices.reshape(layout.data, layout.saes, layout.model)
        return Mesh(devices, ("data", "saes", "model"), axis_types=(AxisType.Auto,) * 3)

    @property
    def groups(self) -> tuple[Group, ...]:
        return grouped(self.plans)

    def initial_state(self, statistics: Mapping[str, TapStatistics]) -> TrainerState:
        """Returns the state before the first step; `statistics` by tap. Equal on every mesh."""
        return jax.jit(lambda: self.state_of(statistics), out_shardings=self.state_shardings)()

    def state_of(self, statistics: Mapping[str, TapStatistics]) -> TrainerState:
        groups = tuple(initial_group(group, statistics, self.recipe) for group in self.groups)
        slots = self.recipe.buffer_steps
        buffer = empty_buffer(dict(self.widths), self.rows, slots) if slots else None
        return TrainerState(groups, buffer, jnp.int32(0))

    @cached_property
    def abstract_state(self) -> TrainerState:
        """Shapes, types and shardings of a state: what orbax restores it by."""
        widths = {tap: TapStatistics(1.0, np.zeros(width, np.float32)) for tap, width in self.widths.items()}
        shapes = jax.eval_shape(lambda: self.state_of(widths))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            jax.tree_util.tree_map_with_path(self.sharding_of, shapes),
        )

    @property
    def state_shardings(self) -> TrainerState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    def sharding_of(self, path: tuple, leaf: Any) -> NamedSharding:
        """Returns the sharding of one array of the state: Adam's moments lie like their parameters."""
        names = [getattr(part, "key", getattr(part, "name", None)) for part in path]
        if names[0] == "buffer":
            return NamedSharding(self.mesh, PartitionSpec(None, self.row_axes))
        if names[0] == "step":
            return NamedSharding(self.sae_mesh, PartitionSpec())
        latents = self.groups[path[1].idx].shape.latents
        split = SPLIT | kept_split(latents, self.sae_mesh)
        return NamedSharding(self.sae_mesh, split.get(str(names[-1]), PartitionSpec("saes")))

    @property
    def row_sharding(self) -> NamedSharding:
        """Sharding of a step's rows of every tap, and of `valid`."""
        return NamedSharding(self.mesh, PartitionSpec(self.row_axes))

    @cached_property
    def step(self) -> Any:
        """Function (state, rows, valid) -> (state, metrics of each group): one step on rows from the shuffle buffer.

        `rows`: {tap: [M, D]} as the model computed them, `valid`: [M], false for padding, special and sink tokens.
        Where there is a buffer these rows enter it, and as many that lay there are trained on. The state is donated.
        """
        return self.compiled_as(self.exchange_and_train, metrics=True)

    @cached_property
    def fill(self) -> Any:
        """Function (state, rows, valid, slot) -> state that only fills the buffer, at first, slot after slot."""
        return self.compiled_as(self.only_fill, metrics=False)

    @cached_property
    def drain(self) -> Any:
        """Function (state, slot) -> (state, metrics): one step on the rows of a slot, when no more come."""
        return self.compiled_as(self.take_and_train, metrics=True)

    def lower(self) -> jax.stages.Lowered:
        """Returns the step lowered from shapes alone, to be compiled for a pod that is not there."""
        rows = {
            tap: jax.ShapeDtypeStruct((self.rows, width), ROW_DTYPE, sharding=self.row_sharding)
            for tap, width in self.widths.items()
        }
        valid = jax.ShapeDtypeStruct((self.rows,), bool, sharding=self.row_sharding)
        return self.step.lower(self.abstract_state, rows, valid)

    def compiled_as(self, function: Any, *, metrics: bool) -> Any:
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        outputs = (self.state_shardings, everywhere) if metrics else self.state_shardings
        return jax.jit(function, donate_argnums=0, out_shardings=outputs)

    def exchange_and_train(
        self, state: TrainerState, rows: Rows, valid: Bool[Array, "M"]
    ) -> tuple[TrainerState, tuple[StepMetrics, ...]]:
        arriving = finite(rows, valid)
        if state.buffer is None:
            return self.train(state, *arriving)
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), state.step)
        buffer, leaving = exchange(state.buffer, arriving, key)
        return self.train(state._replace(buffer=buffer), *leaving)

    def only_fill(self, state: TrainerState, rows: Rows, valid: Bool[Array, "M"], slot: Int[Array, ""]) -> TrainerState:
        assert state.buffer is not None
        return state._replace(buffer=put(state.buffer, finite(rows, valid), slot))

    def take_and_train(self, state: TrainerState, slot: Int[Array, ""]) -> tuple[TrainerState, tuple[StepMetrics, ...]]:
        assert state.buffer is not None
        buffer, leaving = take(state.buffer, slot)
        return self.train(state._replace(buffer=buffer), *leaving)

    def train(
        self, state: TrainerState, rows: Rows, valid: Bool[Array, "M"]
    ) -> tuple[TrainerState, tuple[StepMetrics, ...]]:
        """One optimizer step of every SAE on these rows."""
        updated = [
            train_group(group, old, (rows, valid), state.step, self.recipe, self.sae_mesh)
            for group, old in zip(self.groups, state.groups, strict=True)
        ]
        groups, metrics = tuple(new for new, _ in updated), tuple(measured for _, measured in updated)
        return TrainerState(groups, state.buffer, state.step + 1), metrics


def finite(rows: Rows, valid: Bool[Array, "M"]) -> tuple[Rows, Bool[Array, "M"]]:
    """Returns the rows with zeros for those that are not valid, among them all with a NaN or an infinity in any tap."""
    for values in rows.values():
        valid = valid & jnp.all(jnp.isfinite(values), axis=1)
    return {tap: jnp.where(valid[:, None], values, 0) for tap, values in rows.items()}, valid


def group_size(count: int, shape: SaeShape) -> GroupSize:
    return GroupSize(count, shape.latents, shape.input_width, shape.output_width, shape.transcoder)
