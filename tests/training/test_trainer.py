"""SAEs that are trained together are those that are trained alone, on any mesh, and a broken one breaks no other."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from msgspec.structs import replace as changed

from pod_job.config.train import Architecture
from pod_job.errors import JobError
from pod_job.planning.trainer_layout import TrainerLayout
from pod_job.training.architectures.kinds import encode
from pod_job.training.architectures.parts import decoder_norms
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.matrices import PARTS, WHOLE, kept_split
from pod_job.training.optimizer import followed, schedule, threshold_rate
from pod_job.training.recipe import Recipe, SaePlan, check_plans, check_recipe
from pod_job.training.tap_statistics import TapStatistics, measure_tap
from pod_job.training.trainer import Trainer, TrainerState

D, F, M = 16, 32, 64
RECIPE = Recipe(steps=400, warm_up_steps=5, buffer_steps=0, dtype="float32", resample_steps=0, dead_rows=20 * M)
TOPK = SaeShape(architecture=Architecture.topk, input_width=D, output_width=D, latents=F, k=4)
WIDTHS = {"a": D, "b": D}


def mesh_of(data: int, model: int) -> Mesh:
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def plan(name: str = "sae", shape: SaeShape = TOPK, **fields) -> SaePlan:
    return SaePlan(**({"name": name, "shape": shape, "inputs": ("a",), "learning_rate": 3e-3} | fields))


def trainer_of(*plans: SaePlan, recipe: Recipe = RECIPE, mesh: Mesh | None = None, rows: int = M) -> Trainer:
    check_plans(plans, WIDTHS)
    return Trainer(plans, recipe, mesh or mesh_of(1, 1), ("data", "model"), WIDTHS, rows)


def sparse_rows(seed: int, count: int = M) -> np.ndarray:
    """Returns rows that are sums of 3 of 24 directions, with an offset."""
    directions = np.random.default_rng(99).normal(size=(24, D))
    random = np.random.default_rng(seed)
    weights = np.where(random.random((count, 24)).argsort(axis=1) < 3, random.uniform(0.5, 2, (count, 24)), 0)
    return (weights @ directions + 3.0).astype(np.float32)


def batch(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return {"a": sparse_rows(seed), "b": sparse_rows(seed + 5000)}, np.arange(M) % 8 != 3


def statistics_of(rows: np.ndarray) -> TapStatistics:
    return measure_tap(rows, np.ones(len(rows), bool)).statistics


STATISTICS = {tap: statistics_of(batch(-seed)[0][tap]) for seed, tap in ((-1, "a"), (-2, "b"))}


def trained(trainer: Trainer, steps: int) -> tuple[TrainerState, list]:
    state, metrics = trainer.initial_state(STATISTICS), []
    for step in range(steps):
        state, measured = trainer.step(state, *batch(step))
        metrics.append(measured)
    return state, metrics


@pytest.fixture(scope="module")
def together() -> tuple[TrainerState, list]:
    """Five SAEs, of which four have one shape and one diverges, after twelve steps."""
    relu = SaeShape(architecture=Architecture.relu, input_width=D, output_width=D, latents=F)
    plans = (
        plan("one", seed=1),
        plan("two", seed=2, learning_rate=1e-3, inputs=("b",)),
        plan("three", changed(TOPK, k=2), seed=1),
        plan("four", relu, sparsity=0.1),
        plan("bad", learning_rate=1e38),
    )
    return trained(trainer_of(*plans), 12)


@pytest.mark.pod  # compiled a second time
def test_an_sae_trains_as_if_it_were_alone(together) -> None:
    index, alone = 2, plan(shape=changed(TOPK, k=2), seed=1)
    single, metrics = trained(trainer_of(alone), 12)
    for name, value in single.groups[0].params.items():
        np.testing.assert_allclose(value[0], together[0].groups[0].params[name][index], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics[-1][0].l0[0], together[1][-1][0].l0[index], rtol=1e-5)
    assert float(metrics[-1][0].l0[0]) == pytest.approx(alone.shape.k, rel=0.1)


def test_every_decoder_row_keeps_norm_one(together) -> None:
    for group in together[0].groups:
        for decoder in group.params["decoder"][:3]:  # the fourth of the first group diverged
            np.testing.assert_allclose(decoder_norms(TOPK, decoder), 1.0, rtol=1e-5)


@pytest.mark.pod
def test_training_explains_sparse_data() -> None:
    state, metrics = trained(trainer_of(plan(learning_rate=1e-2)), 400)
    first, last = float(metrics[0][0].explained_variance[0]), float(metrics[-1][0].explained_variance[0])
    assert first < 0.7
    assert last > 0.9
    assert int(state.step) == 400


KINDS = {
    "topk": {"k": 4},
    "batch_topk": {"k": 4},
    "matryoshka": {"k": 4, "group_sizes": (8, 24)},
    "gated": {},
}


OF_EACH_KIND = [
    plan(kind, changed(TOPK, architecture=Architecture(kind), **({"k": None} | fields)), sparsity=0.1)
    for kind, fields in KINDS.items()
]
TWO_OF_A_KIND = [plan("a"), plan("b", changed(TOPK, k=2), inputs=("b",))]


@pytest.mark.pod
@pytest.mark.parametrize(
    ("plans", "layout"), [(OF_EACH_KIND, TrainerLayout(2, 1, 4)), (TWO_OF_A_KIND, TrainerLayout(2, 2, 2))]
)
def test_eight_devices_train_what_one_does(plans: list[SaePlan], layout: TrainerLayout) -> None:
    recipe = changed(RECIPE, buffer_steps=2, resample_steps=2, dead_rows=2 * M)
    results = []
    for mesh, split_as in ((mesh_of(1, 1), None), (mesh_of(2, 4), layout)):
        trainer = replace(trainer_of(*plans, recipe=recipe, mesh=mesh), layout=split_as)
        state = trainer.initial_state(STATISTICS)
        for slot in range(2):
            state = trainer.fill(state, *batch(100 + slot), slot)
        for step in range(4):
            state, _ = trainer.step(state, *batch(step))
        results.append(state)
    encoder = results[1].groups[0].params["encoder"]
    assert encoder.sharding.shard_shape(encoder.shape) == (
        len(encoder) // layout.saes,
        D,
        F // layout.model // layout.data,
    )
    for single, split in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(np.asarray(single, np.float32), np.asarray(split, np.float32), rtol=2e-3, atol=2e-4)


def test_matrices_lie_in_parts_on_all_devices_where_these_are_equal() -> None:
    mesh = trainer_of(plan(), mesh=mesh_of(2, 4)).sae_mesh
    assert kept_split(F, mesh) is PARTS
    assert kept_split(F - 2, mesh) is WHOLE


def test_an_sae_that_is_not_finite_stops_alone(together) -> None:
    state, metrics = together
    frozen = np.asarray(metrics[-1][0].frozen_at)
    np.testing.assert_array_equal(frozen[:3], -1)
    assert 0 < frozen[3] < 12
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state.groups))


@pytest.mark.pod
def test_rows_that_are_not_finite_or_not_valid_are_not_trained_on() -> None:
    trainer = trainer_of(plan())
    rows, valid = batch(0)
    first, _ = trainer.step(trainer.initial_state(STATISTICS), rows, valid)
    dirty = {tap: values.copy() for tap, values in rows.items()}
    dirty["a"][~valid] = np.nan
    dirty["b"][7] = np.inf
    second, metrics = trainer.step(trainer.initial_state(STATISTICS), dirty, valid)
    assert int(metrics[0].rows) == valid.sum() - 1
    third, _ = trainer.step(trainer.initial_state(STATISTICS), rows, valid & (np.arange(M) != 7))
    np.testing.assert_array_equal(second.groups[0].params["encoder"], third.groups[0].params["encoder"])
    assert not np.array_equal(first.groups[0].params["encoder"], third.groups[0].params["encoder"])


@pytest.mark.pod
@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_dead_latents_come_back(architecture: str) -> None:
    shape = changed(TOPK, architecture=Architecture(architecture), k=4 if architecture == "topk" else None)
    recipe = changed(RECIPE, dead_rows=2 * M, resample_steps=5, steps=60, warm_up_steps=0, decay_steps=0)
    trainer = trainer_of(plan(shape=shape, auxiliary=1.0, sparsity=0.05), recipe=recipe)
    state = trainer.initial_state(STATISTICS)
    group = state.groups[0]
    # A quarter of the latents are almost out of reach; ReLU's get no gradient there at all.
    bias = group.params["encoder_bias"].at[:, : F // 4].set(-1.0 if architecture == "topk" else -50.0)
    state = state._replace(groups=(group._replace(params=group.params | {"encoder_bias": bias}),))
    shares = []
    for step in range(60):
        state, metrics = trainer.step(state, *batch(step))
        shares.append(float(metrics[0].dead_share[0]))
    assert max(shares) > 0.12
    assert shares[-1] <= max(shares) / 2


@pytest.mark.pod
def test_a_transcoder_and_a_crosscoder_read_the_taps_they_name() -> None:
    transcoder = changed(TOPK, transcoder=True, skip=True)
    crosscoder = changed(TOPK, taps=2, input_width=2 * D, output_width=2 * D, architecture=Architecture.batch_topk)
    trainer = trainer_of(plan("t", transcoder, targets=("b",)), plan("c", crosscoder, inputs=("a", "b")))
    rows, valid = batch(0)
    rows["b"] = (rows["a"] @ np.random.default_rng(0).normal(size=(D, D)) / 4).astype(np.float32)
    statistics = {tap: statistics_of(values) for tap, values in rows.items()}
    state = trainer.initial_state(statistics)
    for _ in range(80):
        state, metrics = trainer.step(state, dict(rows), valid)
    assert float(metrics[0].explained_variance[0]) > 0.9  # the skip connection learns the linear map
    assert float(metrics[1].explained_variance[0]) > 0.7
    threshold = float(state.groups[1].params["threshold"][0])
    assert 0 < threshold < 10


@pytest.mark.parametrize("steps", [1, 58, 400, 3000])
def test_the_threshold_lags_by_a_tenth_of_the_steps_at_most(steps: int) -> None:
    recipe, slopes = Recipe(steps=steps, warm_up_steps=0), jnp.array([1.0, 5.0])

    def follow(step: jax.Array, threshold: jax.Array) -> jax.Array:
        return followed(threshold, slopes * (step + 1), threshold_rate(step, recipe))

    thresholds = jax.lax.fori_loop(0, steps, follow, jnp.zeros(2)) / slopes
    assert (thresholds <= steps).all()
    assert (thresholds > 0.9 * steps).all()


@pytest.mark.pod
@pytest.mark.parametrize("steps", [20, 60])
def test_a_batch_topk_sae_has_k_active_latents_at_inference_after_a_short_training(steps: int) -> None:
    shape = changed(TOPK, architecture=Architecture.batch_topk)
    recipe = changed(RECIPE, steps=steps)
    state, _ = trained(trainer_of(plan(shape=shape, learning_rate=1e-2), recipe=recipe), steps)
    params = {name: value[0] for name, value in state.groups[0].params.items()}
    rows = jnp.asarray(sparse_rows(9999, 2000) * np.float32(STATISTICS["a"].scale))
    active = np.mean(np.sum(np.asarray(encode(shape, params, rows)) > 0, axis=1))
    assert active == pytest.approx(shape.k, rel=0.15)


def test_the_schedule_rises_stays_and_falls() -> None:
    recipe = Recipe(steps=100, warm_up_steps=10)
    factors = [float(schedule(step, recipe)) for step in (0, 9, 50, 80, 90, 99)]
    np.testing.assert_allclose(factors, [0.1, 1.0, 1.0, 1.0, 0.5, 0.05], rtol=1e-6)


def test_statistics_scale_rows_to_their_width_and_center_them() -> None:
    rows = sparse_rows(3, 2000)
    rows[::10] += 1000.0  # as attention sinks are
    rows[5] = np.nan
    measured = statistics_of(rows)
    usable = np.delete(rows, [5, *range(0, 2000, 10)], axis=0)
    np.testing.assert_allclose(np.mean(np.sum((usable * measured.scale) ** 2, axis=1)), D, rtol=1e-4)
    assert np.linalg.norm(measured.center - np.median(usable, axis=0)) < 2.0

    def distances(point: np.ndarray) -> float:
        return float(np.linalg.norm(usable - point, axis=1).sum())

    nearby = measured.center + np.random.default_rng(0).normal(size=(20, D)).astype(np.float32) * 0.05
    assert distances(measured.center) < min(map(distances, [*nearby, usable.mean(axis=0)]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": ("c",)}, "no tap is named c"),
        ({"shape": changed(TOPK, input_width=17, output_width=17)}, "input_width=17, but a has 16 dimensions"),
        ({"inputs": ("a", "b")}, "a and b has 32 dimensions"),
        ({"targets": ("b",)}, "only a transcoder"),
        ({"shape": changed(TOPK, k=33)}, "k=33 is not between"),
    ],
)
def test_plans_that_contradict_the_taps_are_named(fields: dict, message: str) -> None:
    with pytest.raises(JobError, match=message):
        check_plans((replace_plan(fields),), WIDTHS)


def replace_plan(fields: dict) -> SaePlan:
    return changed(plan(), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 1100}, "are more than the steps=1100"),
        ({"dtype": "float16"}, "dtype=float16"),
    ],
)
def test_recipes_that_contradict_themselves_are_named(fields: dict, message: str) -> None:
    with pytest.raises(JobError, match=message):
        check_recipe(Recipe(**({"steps": 10_000} | fields)))
