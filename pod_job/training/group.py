"""One group: SAEs of one shape, batched along a leading axis S, and their optimizer step.

N rows, D input width, O output width, F latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from pod_job.training.architectures.kinds import coefficients_for, initial_parameters, loss
from pod_job.training.architectures.parts import Batch, Coefficients, Metrics, Params, Products, Scalar
from pod_job.training.architectures.selection import keep_largest
from pod_job.training.architectures.selection_cpu import keep_largest_on_cpu
from pod_job.training.architectures.selection_kernel import keep_largest_on_tpu
from pod_job.training.architectures.selection_split import keep_largest_of_split
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.buffer import Rows
from pod_job.training.matrices import gathered, scattered
from pod_job.training.optimizer import (
    adam,
    clipped,
    followed,
    resampled,
    resamples,
    rising,
    schedule,
    threshold_rate,
    with_unit_norms,
    without_growth,
)
from pod_job.training.recipe import Recipe, SaePlan
from pod_job.training.tap_statistics import TapStatistics

MOST_ROWS = 1 << 30
"""Rows that are counted since a latent was active."""


class Scales(NamedTuple):
    """Factors of the rows of an SAE, one per dimension, equal within a tap."""

    inputs: Float[Array, "S D"]
    targets: Float[Array, "S O"]


class GroupState(NamedTuple):
    """State of the SAEs of one shape, batched along axis 0.

    Attributes:
        params: float32, of scaled rows: `saes.py` folds the scales in at output.
        idle_rows: rows since each latent was active.
        frozen_at: step at which an SAE's loss or gradient was not finite, after which it stays as it is; -1 before.
    """

    params: Params
    moments: optax.OptState
    scales: Scales
    idle_rows: Int[Array, "S F"]
    frozen_at: Int[Array, "S"]


class StepMetrics(NamedTuple):
    """Measurements of one step, of the SAEs of one group, in the order of its plans; as `parts.Metrics` but for:

    Attributes:
        dead_share: of the latents.
        gradient_norm: before clipping.
        rows: that the step trained on.
    """

    loss: Float[Array, "S"]
    squared_error: Float[Array, "S"]
    explained_variance: Float[Array, "S"]
    sparsity: Float[Array, "S"]
    auxiliary: Float[Array, "S"]
    l0: Float[Array, "S"]
    dead_share: Float[Array, "S"]
    gradient_norm: Float[Array, "S"]
    frozen_at: Int[Array, "S"]
    rows: Int[Array, ""]


@dataclass(frozen=True)
class Group:
    """SAEs of one shape; with k their largest k, each has its own in `coefficients`."""

    shape: SaeShape
    plans: tuple[SaePlan, ...]

    @property
    def coefficients(self) -> Coefficients:
        """Coefficients at their height, each [S]."""
        each = [coefficients_for(plan.shape, sparsity=plan.sparsity, auxiliary=plan.auxiliary) for plan in self.plans]
        return jax.tree.map(lambda *values: jnp.stack(values), *each)


def grouped(plans: Sequence[SaePlan]) -> tuple[Group, ...]:
    """Returns the SAEs by shape, in the order in which shapes first occur; shapes that differ only in k are one."""
    by_shape: dict[tuple, list[SaePlan]] = {}
    for plan in plans:
        size = {name: getattr(plan.shape, name) for name in plan.shape.__struct_fields__ if name != "k"}
        by_shape.setdefault((*size.items(), plan.shape.k is None), []).append(plan)
    return tuple(
        Group(max((plan.shape for plan in members), key=lambda shape: shape.k or 0), tuple(members))
        for members in by_shape.values()
    )


def initial_group(group: Group, statistics: Mapping[str, TapStatistics], recipe: Recipe) -> GroupState:
    """Returns the group's state before its first step, from the statistics of each tap."""
    shape, size = group.shape, len(group.plans)
    centers, scales = zip(*(center_and_scales(plan, statistics) for plan in group.plans), strict=True)
    params = [
        initial_parameters(shape, jax.random.key(plan.seed), jnp.asarray(center))
        for plan, center in zip(group.plans, centers, strict=True)
    ]
    stacked = jax.tree.map(lambda *values: jnp.stack(values), *params)
    return GroupState(
        params=stacked,
        moments=jax.vmap(adam(recipe).init)(stacked),
        scales=jax.tree.map(lambda *values: jnp.stack(values), *scales),
        idle_rows=jnp.zeros((size, shape.latents), jnp.int32),
        frozen_at=jnp.full(size, -1, jnp.int32),
    )


def center_and_scales(plan: SaePlan, statistics: Mapping[str, TapStatistics]) -> tuple[np.ndarray, Scales]:
    """Returns the first decoder bias of an SAE, in units of its scaled targets, and its scales."""

    def scales(taps: tuple[str, ...]) -> jax.Array:
        each = [np.full(len(statistics[tap].center), statistics[tap].scale, np.float32) for tap in taps]
        return jnp.asarray(np.concatenate(each))

    center = np.concatenate([statistics[tap].center * statistics[tap].scale for tap in plan.reconstructed])
    return center.astype(np.float32), Scales(scales(plan.inputs), scales(plan.reconstructed))


class Update(NamedTuple):
    """Outcome of one SAE's step, before it is known whether it counts."""

    params: Params
    moments: optax.OptState
    metrics: Metrics
    gradient_norm: Scalar


def train_group(
    group: Group, state: GroupState, rows: Rows, step: Int[Array, ""], recipe: Recipe, mesh: Mesh
) -> tuple[GroupState, StepMetrics]:
    """Returns the state after one optimizer step on the valid rows, and what the step measured.

    `mesh` is `Trainer.sae_mesh`.
    """
    batch = stacked_batch(group, state, rows, recipe, mesh)
    dead = state.idle_rows >= recipe.dead_rows
    coefficients = group.coefficients
    coefficients = coefficients._replace(sparsity=coefficients.sparsity * rising(step, recipe.sparsity_warm_up))
    rates = jnp.array([plan.learning_rate for plan in group.plans]) * schedule(step, recipe)
    axes = Batch(0, 0, None, None, None, None, None)  # type: ignore[arg-type]
    differentiate = jax.vmap(
        partial(differentiated, group.shape, recipe.dtype), in_axes=(0, axes, 0, 0), spmd_axis_name="saes"
    )
    gradient, metrics = differentiate(
        gathered(group.shape, state.params, mesh, recipe.dtype), batch, coefficients, dead
    )
    gradient = scattered(group.shape, gradient, mesh)
    new = jax.vmap(partial(updated, group.shape, recipe))((state.params, state.moments), gradient, metrics, rates)
    new = redrawn(group, new, batch, dead, step, recipe)
    if (threshold := new.params.get("threshold")) is not None:
        threshold = followed(threshold, new.metrics.lowest, threshold_rate(step, recipe))
        new = new._replace(params=new.params | {"threshold": threshold})
    finite = jnp.isfinite(new.metrics.loss) & jnp.isfinite(new.gradient_norm)
    count = jnp.sum(batch.valid, dtype=jnp.int32)
    moves = finite & (state.frozen_at < 0) & (count > 0)

    def chosen(after: jax.Array, before: jax.Array) -> jax.Array:
        return jnp.where(moves.reshape(-1, *[1] * (after.ndim - 1)), after, before)

    idle = jnp.where(new.metrics.fired > 0, 0, jnp.minimum(state.idle_rows + count, MOST_ROWS))
    after = state._replace(
        params=jax.tree.map(chosen, new.params, state.params),
        moments=jax.tree.map(chosen, new.moments, state.moments),
        idle_rows=chosen(idle, state.idle_rows),
        frozen_at=jnp.where((state.frozen_at < 0) & ~finite, step, state.frozen_at),
    )
    return after, step_metrics(new, after, dead, count)


def step_metrics(new: Update, after: GroupState, dead: Bool[Array, "S F"], rows: Int[Array, ""]) -> StepMetrics:
    measured = new.metrics
    return StepMetrics(
        loss=measured.loss,
        squared_error=measured.squared_error,
        explained_variance=1.0 - measured.squared_error / measured.deviation,
        sparsity=measured.sparsity,
        auxiliary=measured.auxiliary,
        l0=measured.l0,
        dead_share=jnp.mean(dead, axis=1),
        gradient_norm=new.gradient_norm,
        frozen_at=after.frozen_at,
        rows=rows,
    )


def stacked_batch(group: Group, state: GroupState, rows: Rows, recipe: Recipe, mesh: Mesh) -> Batch:
    """Returns each SAE's rows and targets, scaled, in float32, along axis 0."""
    values, valid = rows[0], jax.lax.with_sharding_constraint(rows[1], NamedSharding(mesh, PartitionSpec("data")))
    split = NamedSharding(mesh, PartitionSpec("saes", "data"))

    def gather(taps: Sequence[tuple[str, ...]], scales: Float[Array, "S _"]) -> Float[Array, "S N _"]:
        each = [jnp.concatenate([values[tap] for tap in names], axis=1) for names in taps]
        stacked = jax.lax.with_sharding_constraint(jnp.stack(each), split)
        return stacked.astype(jnp.float32) * scales[:, None, :]

    inputs = gather([plan.inputs for plan in group.plans], state.scales.inputs)
    targets = inputs
    if group.shape.transcoder:
        targets = gather([plan.reconstructed for plan in group.plans], state.scales.targets)
    parts, count = mesh.shape["model"], len(group.plans)
    dead = jnp.sum((state.idle_rows >= recipe.dead_rows).reshape(count, parts, -1), axis=2)
    revive = jnp.any(dead > 0) if any(plan.auxiliary for plan in group.plans) else False
    few = group.shape.few_latents(parts)
    many = jnp.any(dead > few) if parts * few < group.shape.latents else True
    products = Products(sparse=mesh.size == 1 and mesh.devices.flat[0].platform == "cpu", parts=parts)
    return Batch(inputs, targets, valid, revive, many, keep_for(mesh, recipe.dtype), products)


def keep_for(mesh: Mesh, dtype: str) -> Partial:
    """Returns `Batch.keep` for devices of a kind, of which each has whole rows or a part of their latents."""
    platform, whole = mesh.devices.flat[0].platform, mesh.shape["model"] == 1
    if platform == "tpu" and dtype == "bfloat16":
        return Partial(partial(keep_largest_on_tpu if whole else keep_largest_of_split, mesh=mesh))
    return Partial(keep_largest_on_cpu if platform == "cpu" and whole else keep_largest)


def differentiated(
    shape: SaeShape, dtype: str, params: Params, batch: Batch, coefficients: Coefficients, dead: Bool[Array, "F"]
) -> tuple[Params, Metrics]:
    """Returns the gradient of one SAE's loss, and what the loss measured."""
    return jax.grad(loss, argnums=1, has_aux=True)(shape, params, batch, coefficients, dead, dtype)


def updated(
    shape: SaeShape,
    recipe: Recipe,
    old: tuple[Params, optax.OptState],
    gradient: Params,
    metrics: Metrics,
    rate: Scalar,
) -> Update:
    """Returns one SAE's parameters and moments after a step of Adam along this gradient."""
    params, moments = old
    if recipe.unit_norm:
        gradient, norm = without_growth(shape, params, gradient)
    else:
        norm = optax.tree.norm(gradient)
    direction, moments = adam(recipe).update(clipped(recipe, gradient, norm), moments)
    params = jax.tree.map(lambda value, change: value - rate * change, params, direction)
    if recipe.unit_norm:
        params = with_unit_norms(shape, params)
    return Update(params, moments, metrics, norm)


def redrawn(
    group: Group, new: Update, batch: Batch, dead: Bool[Array, "S F"], step: Int[Array, ""], recipe: Recipe
) -> Update:
    """Returns the update with dead latents drawn again, in the steps and for the architectures that do so."""
    if not recipe.resample_steps or not resamples(group.shape):
        return new
    due = (step > 0) & (step % recipe.resample_steps == 0) & (step <= recipe.steps // 2)
    keys = jnp.stack([jax.random.fold_in(jax.random.key(plan.seed), step) for plan in group.plans])
    axes = Batch(0, 0, None, None, None, None, None)  # type: ignore[arg-type]
    draw = jax.vmap(partial(resampled, group.shape), in_axes=(0, 0, axes, 0, 0))
    params, moments = jax.lax.cond(
        due & jnp.any(dead),
        lambda: draw(new.params, new.moments, batch, dead, keys),
        lambda: (new.params, new.moments),
    )
    return new._replace(params=params, moments=moments)
