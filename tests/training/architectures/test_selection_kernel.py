"""The kernels for TPUs keep what XLA's operations keep, to the last bit; here they are interpreted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pod_job.training.architectures import selection_kernel
from pod_job.training.architectures.selection import keep_largest
from pod_job.training.architectures.selection_kernel import (
    MOST_BY_LANES,
    begins_with_lanes,
    keep_largest_of_rows,
    kernel_fits,
)
from pod_job.training.architectures.selection_split import keep_largest_of_split

ROWS = 8


def gaussian(random: np.random.Generator, latents: int) -> np.ndarray:
    return random.normal(size=(ROWS, latents))


def few_values(random: np.random.Generator, latents: int) -> np.ndarray:
    """Returns ties everywhere, negative values and zeros."""
    return random.choice([-1.0, 0.0, 0.5, 1.0, 1.0078125, 3e38], size=(ROWS, latents))


def one_lane(random: np.random.Generator, latents: int) -> np.ndarray:
    """Returns rows whose largest values all lie in one lane of the registers."""
    values = random.uniform(0, 1, size=(ROWS, latents))
    values[:, 5 :: selection_kernel.LANES] += 10.0
    return values


def hardly_any(random: np.random.Generator, latents: int) -> np.ndarray:
    return np.where(random.random((ROWS, latents)) < 3 / latents, random.random((ROWS, latents)), -1.0)


# Decided among all numbers, as these are few or k may be large, and among the largest of each lane.
@pytest.mark.parametrize(("latents", "most"), [(256, 64), (3200, 3200), (3200, 64)])
@pytest.mark.parametrize("values", [gaussian, few_values, one_lane, hardly_any])
def test_the_kernel_keeps_what_xla_keeps(monkeypatch: pytest.MonkeyPatch, values, latents: int, most: int) -> None:
    monkeypatch.setattr(selection_kernel, "MOST_TILE_ROWS", ROWS // 2)
    assert kernel_fits(ROWS, latents)
    rows = jax.nn.relu(jnp.asarray(values(np.random.default_rng(7), latents), jnp.bfloat16))
    counts = jnp.asarray([0, 1, 7, 16, 32, 33, 64, latents], jnp.float32)[:, None]
    kept = jax.jit(lambda rows, counts: keep_largest_of_rows(rows, counts, most=most, interpret=True))(rows, counts)
    expected = jax.vmap(lambda row, k: keep_largest(row[None], k)[0])(rows, counts[:, 0].astype(jnp.int32))
    np.testing.assert_array_equal(np.asarray(kept, np.float32), np.asarray(expected, np.float32))


@pytest.mark.parametrize("values", [gaussian, few_values, one_lane, hardly_any])
def test_split_latents_are_chosen_as_whole_ones(monkeypatch: pytest.MonkeyPatch, values) -> None:
    latents, parts = 3200, 4
    monkeypatch.setattr(selection_kernel, "MOST_TILE_ROWS", 4)
    assert kernel_fits(ROWS // 2, latents)
    assert begins_with_lanes(latents, MOST_BY_LANES)
    mesh = Mesh(np.reshape(jax.devices()[: 2 * parts], (2, parts)), ("data", "model"))
    random, counts = np.random.default_rng(7), jnp.asarray([0, 1, 33, 64], jnp.int32)
    rows = np.stack([values(random, latents * parts) for _ in counts])
    rows = jax.nn.relu(jnp.asarray(rows, jnp.bfloat16))
    split = partial(keep_largest_of_split, most=MOST_BY_LANES, mesh=mesh, interpret=True)
    kept = jax.jit(jax.vmap(split))(rows, counts)
    expected = jax.jit(jax.vmap(keep_largest))(rows, counts)
    np.testing.assert_array_equal(np.asarray(kept, np.float32), np.asarray(expected, np.float32))
