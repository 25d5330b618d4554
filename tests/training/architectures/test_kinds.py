"""Each architecture computes what its paper defines, changed by nothing outside the valid rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_saes import reference_loss

from pod_job.config.train import Architecture
from pod_job.errors import JobError
from pod_job.training.architectures.kinds import coefficients_for, decode, encode, initial_parameters, loss
from pod_job.training.architectures.parts import Batch, Products, decoder_norms
from pod_job.training.architectures.shape import SaeShape, check_shape

D, OUT, F, N = 12, 10, 40, 24
KINDS = {
    Architecture.relu: {},
    Architecture.gated: {},
    Architecture.topk: {"k": 5},
    Architecture.batch_topk: {"k": 5},
    Architecture.jump_relu: {},
    Architecture.matryoshka: {"k": 5, "group_sizes": (8, 12, 20)},
}
USES = {
    "sae": {},
    "transcoder": {"transcoder": True, "output_width": OUT},
    "skip": {"transcoder": True, "output_width": OUT, "skip": True},
    "crosscoder": {"taps": 3},
}
LOSS_AND_GRADIENT = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=(0, 5))
"""Compiled once for each shape, for all tests: that is most of their time."""


def shape_of(architecture: Architecture, use: str = "sae", **changes) -> SaeShape:
    sizes = {"input_width": D, "output_width": D, "latents": F}
    return SaeShape(architecture=architecture, **(sizes | KINDS[architecture] | USES[use] | changes))


def example(shape: SaeShape, seed: int = 0) -> tuple[dict, Batch, np.ndarray]:
    """Returns parameters of which none is 0, rows of which a quarter is not valid, and dead latents."""
    random = np.random.default_rng(seed)
    params = initial_parameters(shape, jax.random.key(seed))
    params = {name: value + 0.1 * random.normal(size=value.shape).astype(np.float32) for name, value in params.items()}
    if "log_threshold" in params:
        params["log_threshold"] = params["log_threshold"] + 4.0
    rows = random.normal(size=(N, shape.input_width)).astype(np.float32)
    targets = random.normal(size=(N, shape.output_width)).astype(np.float32) if shape.transcoder else rows
    batch = Batch(jnp.array(rows), jnp.array(targets), jnp.arange(N) % 4 != 1)
    return params, batch, np.arange(F) % 7 == 2


@pytest.mark.parametrize(
    ("architecture", "use"),
    [
        *((architecture, "sae") for architecture in Architecture),
        (Architecture.gated, "skip"),
        (Architecture.relu, "crosscoder"),
        pytest.param(Architecture.topk, "transcoder", marks=pytest.mark.pod),
        pytest.param(Architecture.matryoshka, "skip", marks=pytest.mark.pod),
        pytest.param(Architecture.batch_topk, "crosscoder", marks=pytest.mark.pod),
        pytest.param(Architecture.jump_relu, "skip", marks=pytest.mark.pod),
    ],
)
def test_loss_and_metrics_are_those_of_the_paper(architecture: Architecture, use: str) -> None:
    shape = shape_of(architecture, use)
    check_shape(shape, "sae")
    params, batch, dead = example(shape)
    coefficients = coefficients_for(shape, sparsity=0.3, auxiliary=0.5)
    (value, metrics), _ = LOSS_AND_GRADIENT(shape, params, batch, coefficients, jnp.array(dead))
    valid = np.asarray(batch.valid)
    expected, latents = reference_loss(shape, params, batch.rows, batch.targets, valid, coefficients, dead)
    np.testing.assert_allclose(value, expected, rtol=2e-5)
    np.testing.assert_array_equal(metrics.fired, np.sum(latents > 0, axis=0))
    np.testing.assert_allclose(metrics.l0, np.sum(latents > 0) / valid.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics.lowest, latents[latents > 0].min(), rtol=1e-4)
    spread = np.var(np.asarray(batch.targets, np.float64)[valid], axis=0).sum()
    np.testing.assert_allclose(metrics.deviation, spread, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_dead_latents_are_revived_alone_as_they_are_among_all(parts: int) -> None:
    shape = shape_of(Architecture.topk)
    params, batch, dead = example(shape)
    few = shape.few_latents(parts)
    assert 0 < dead.reshape(parts, -1).sum(axis=1).max() <= few < shape.latents // parts
    batch = batch._replace(products=Products(parts=parts))
    coefficients = coefficients_for(shape, auxiliary=0.5)
    alone, among_all = (
        LOSS_AND_GRADIENT(shape, params, batch._replace(many=jnp.array(many)), coefficients, jnp.array(dead))
        for many in (False, True)
    )
    assert alone[0][1].auxiliary > 0
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(among_all), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("use", ["sae", pytest.param("skip", marks=pytest.mark.pod)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_with_the_chosen_latents_alone_are_those_with_all(use: str, dtype: str) -> None:
    # Two SAEs as they run together, of which one has a smaller k. Gradients of dense products are rounded to the dtype.
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    shape = shape_of(Architecture.topk, use)
    examples = [example(shape, seed) for seed in (0, 1)]
    params, rows, targets = (
        jax.tree.map(lambda *values: jnp.stack(values), *values)
        for values in zip(*[(params, batch.rows, batch.targets) for params, batch, _ in examples], strict=True)
    )
    coefficients = coefficients_for(shape, auxiliary=0.5)._replace(k=jnp.array([5.0, 3.0]))
    batch, dead = examples[0][1]._replace(rows=rows, targets=targets), jnp.array(examples[0][2])
    axes = (None, 0, Batch(0, 0, None, None, None, None, None), type(coefficients)(None, None, 0, None), None, None)

    def results(products: Products) -> list[jax.Array]:
        of_all = jax.vmap(LOSS_AND_GRADIENT, in_axes=axes)
        return jax.tree.leaves(of_all(shape, params, batch._replace(products=products), coefficients, dead, dtype))

    for dense, sparse in zip(results(Products()), results(Products(sparse=True)), strict=True):
        np.testing.assert_allclose(sparse, dense, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("architecture", [Architecture.gated, Architecture.jump_relu, Architecture.matryoshka])
def test_rows_that_are_not_valid_change_nothing(architecture: Architecture) -> None:
    shape = shape_of(architecture)
    params, batch, dead = example(shape)
    other = batch.rows + 3.0 * ~batch.valid[:, None]
    coefficients = coefficients_for(shape, sparsity=0.3)

    def results(rows: jax.Array) -> list[jax.Array]:
        changed = Batch(rows, rows, batch.valid)
        return jax.tree.leaves(LOSS_AND_GRADIENT(shape, params, changed, coefficients, jnp.array(dead)))

    for mine, theirs in zip(results(batch.rows), results(other), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "use"),
    [(Architecture.relu, "crosscoder"), (Architecture.gated, "skip"), (Architecture.topk, "sae")],
)
def test_gradients_are_differences_of_the_loss(architecture: Architecture, use: str) -> None:
    # Of the architectures whose gradient is not an estimate; the bias's takes a way of its own (pre_activations).
    shape = shape_of(architecture, use)
    params, batch, dead = example(shape)
    coefficients, dead = coefficients_for(shape, sparsity=0.3, auxiliary=0.0), jnp.array(dead)

    def total(p: dict) -> jax.Array:
        (value, metrics), _ = LOSS_AND_GRADIENT(shape, p, batch, coefficients, dead)
        # The gated loss's frozen decoder has no difference quotient.
        return value - metrics.auxiliary if architecture is Architecture.gated else value

    _, gradient = LOSS_AND_GRADIENT(shape, params, batch, coefficients, dead)
    for name in ("decoder_bias", "decoder", "skip", "encoder_bias"):
        if name in params and not (architecture is Architecture.gated and name == "decoder_bias" and shape.centered):
            direction = np.random.default_rng(1).normal(size=params[name].shape).astype(np.float32)
            step = 1e-3 / np.linalg.norm(direction)
            high, low = (total(params | {name: params[name] + sign * step * direction}) for sign in (1, -1))
            slope = (float(high) - float(low)) / (2 * step)
            np.testing.assert_allclose(np.sum(gradient[name] * direction), slope, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize(
    "architecture", [Architecture.gated, pytest.param(Architecture.matryoshka, marks=pytest.mark.pod)]
)
def test_bfloat16_factors_change_loss_and_gradients_by_their_rounding(architecture: Architecture) -> None:
    shape = shape_of(architecture)
    params, batch, dead = example(shape)
    coefficients, dead = coefficients_for(shape, sparsity=0.01), jnp.zeros(F, bool)
    if architecture is Architecture.matryoshka:
        coefficients = coefficients._replace(k=jnp.float32(F))  # so that rounding moves no latent in or out

    def values(dtype: str) -> list[jax.Array]:
        return jax.tree.leaves(LOSS_AND_GRADIENT(shape, params, batch, coefficients, dead, dtype)[1])

    for exact, rounded in zip(values("float32"), values("bfloat16"), strict=True):
        np.testing.assert_allclose(rounded, exact, atol=0.05 * float(jnp.max(jnp.abs(exact))) + 1e-6)


@pytest.mark.parametrize("architecture", [Architecture.batch_topk, Architecture.matryoshka])
def test_inference_takes_latents_above_the_threshold_whatever_the_batch(architecture: Architecture) -> None:
    shape = shape_of(architecture)
    params, batch, _ = example(shape)
    params["threshold"] = jnp.float32(0.7)
    latents = encode(shape, params, batch.rows)
    assert float(jnp.min(jnp.where(latents > 0, latents, jnp.inf))) > 0.7
    np.testing.assert_allclose(encode(shape, params, batch.rows[:1]), latents[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use", USES)
def test_first_parameters_reconstruct_from_unit_decoder_rows(use: str) -> None:
    shape = shape_of(Architecture.topk, use)
    bias = jnp.arange(float(shape.output_width))
    params = initial_parameters(shape, jax.random.key(1), bias)
    np.testing.assert_allclose(decoder_norms(shape, params["decoder"]), 1.0, rtol=1e-5)
    rows = jnp.ones((3, shape.input_width))
    np.testing.assert_allclose(decode(shape, params, jnp.zeros((3, F)), rows)[0], bias)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 41}, "k=41 is not between 1 and latents=40"),
        ({"k": None}, "needs k"),
        ({"latents": 0, "k": 1}, "latents=0 is too small"),
        ({"architecture": Architecture.relu}, "k=5 has no meaning"),
        ({"group_sizes": (40,)}, "only matryoshka has"),
        ({"architecture": Architecture.matryoshka, "group_sizes": (8, 8)}, "add up to 16, and latents=40"),
        ({"output_width": OUT}, "an SAE reconstructs its input"),
        ({"skip": True}, "only transcoders have it"),
        ({"taps": 5}, "do not divide by taps=5"),
        ({"taps": 3, "transcoder": True}, "a crosscoder reconstructs its own taps"),
    ],
)
def test_contradictory_sizes_are_named(fields: dict, message: str) -> None:
    base = {"architecture": Architecture.topk, "input_width": D, "output_width": D, "latents": F, "k": 5}
    with pytest.raises(JobError, match=message):
        check_shape(SaeShape(**(base | fields)), "sae")
