"""The largest values are chosen exactly, whatever the values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pod_job.training.architectures.selection import kth_largest, largest_of_batch, largest_per_row
from pod_job.training.architectures.selection_cpu import keep_largest_on_cpu

ROWS = jax.jit(largest_per_row)
ON_CPU = jax.jit(lambda values, k: keep_largest_on_cpu(values, k, values.shape[1]) > 0)
BATCH = jax.jit(lambda values, count, guess=0.0: largest_of_batch(values, count, jnp.float32(guess)))


@settings(max_examples=60, deadline=None)
@given(
    # Few different values: ties everywhere. Denormal numbers are flushed to 0 by the devices.
    arrays(np.float32, (4, 13), elements=st.sampled_from([-1.0, 0.0, 1e-30, 0.5, 0.5000001, 1.0, 2.0, 3e38])),
    st.integers(0, 13),
)
def test_a_row_keeps_its_first_k_largest_positive_values(values: np.ndarray, k: int) -> None:
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    expected = np.zeros_like(values, bool)
    np.put_along_axis(expected, order, True, axis=1)
    for chosen in (ROWS(values, jnp.int32(k)), ON_CPU(values, jnp.int32(k))):
        np.testing.assert_array_equal(chosen, expected & (values > 0))


@pytest.mark.parametrize("count", [0, 1, 7, 300, 4000])
def test_a_batch_keeps_its_largest_values(count: int) -> None:
    values = np.random.default_rng(3).normal(size=(64, 50)).astype(np.float32) * 10.0 ** np.arange(-25, 25)
    expected = np.zeros(values.size, bool)
    expected[np.argsort(-values, axis=None)[:count]] = True
    chosen, smallest = BATCH(values, jnp.int32(count))
    np.testing.assert_array_equal(chosen, expected.reshape(values.shape) & (values > 0))
    assert smallest == {0: np.inf, 4000: 0}.get(count, values[expected.reshape(values.shape)].min(initial=np.inf))


@pytest.mark.parametrize("count", [0, 1, 500, 3000])
@pytest.mark.parametrize("off", [-1e9, -0.5, -0.02, -0.005, 0.0, 0.005, 0.02, 0.5, np.inf, np.nan])
def test_a_guess_makes_no_difference(count: int, off: float) -> None:
    values = jnp.array(np.random.default_rng(8).normal(size=(64, 80)), jnp.bfloat16)
    ordered = np.sort(np.asarray(values, np.float32), axis=None)[::-1]
    lowest = ordered[max(count, 1) - 1]
    chosen, _ = BATCH(values, jnp.int32(count), lowest * (1 + off))
    np.testing.assert_array_equal(chosen, (values >= lowest) & (values > 0) & (count > 0))


def test_k_differs_between_saes_that_run_together() -> None:
    values = np.abs(np.random.default_rng(4).normal(size=(3, 8, 30))).astype(np.float32)
    values[1] = 1.0  # one SAE full of ties, beside others without any
    chosen = jax.vmap(largest_per_row)(jnp.array(values), jnp.array([2, 5, 30], jnp.int32))
    np.testing.assert_array_equal(np.sum(chosen, axis=2), np.repeat([[2], [5], [30]], 8, axis=1))
    assert chosen[1, :, :5].all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kth_largest_is_exact_to_the_last_bit(dtype: str) -> None:
    values = jnp.array(np.random.default_rng(5).normal(size=(5, 1000)) * 1e30, dtype)
    chosen = jax.jit(kth_largest, static_argnums=2)(values, jnp.full((5, 1), 17, jnp.int32), 1)
    np.testing.assert_array_equal(chosen[:, 0], jnp.sort(values, axis=1)[:, -17])


def test_rounded_values_are_chosen_by_value_then_by_place() -> None:
    values = jnp.array(np.random.default_rng(6).normal(size=(16, 400)), jnp.bfloat16)
    wide = np.asarray(values, np.float32)
    assert len(np.unique(wide)) < wide.size / 2
    expected = np.zeros(values.shape, bool)
    np.put_along_axis(expected, np.argsort(-wide, axis=1, kind="stable")[:, :32], True, axis=1)
    np.testing.assert_array_equal(ROWS(values, jnp.int32(32)), expected)
    np.testing.assert_array_equal(ON_CPU(values, jnp.int32(32)), expected)


def test_a_cpu_keeps_what_other_devices_keep() -> None:
    # More columns than are counted side by side; one row of ties.
    values = np.random.default_rng(7).normal(size=(8, 600)).astype(np.float32)
    values[3] = np.round(values[3])
    np.testing.assert_array_equal(ON_CPU(values, jnp.int32(32)), ROWS(values, jnp.int32(32)))
