"""Attention to a cache: the kernel gives what XLA gives, and reads no block that its row does not see."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pod_job.models.attention_settings import Heads
from pod_job.models.cache import KeyValues
from pod_job.models.cache_kernel import block_slots, list_turns, sums_by_kernel, sums_by_turns
from pod_job.models.cached_attention import CachedLayer, View, attend_cached, sums_by_xla, visible
from pod_job.models.placement import Placement

SLOTS, T, LAYER = 384, 128, 1


def random_cache(shape: tuple[int, ...], dtype: jnp.dtype | type) -> tuple[jax.Array, KeyValues]:
    """Returns grouped queries [B, K, G, H] and a cache of two layers with other content in every slot."""
    B, K, _, H = shape
    rng = np.random.default_rng(1)
    queries = jnp.asarray(rng.normal(size=shape), dtype)
    k, v = (jnp.asarray(rng.normal(size=(2, B, K, H, SLOTS)), dtype) for _ in range(2))
    return queries, KeyValues(k, v)


@pytest.mark.parametrize(
    ("K", "G", "H", "softcap", "end"),
    [(2, 7, 64, None, 200), (1, 1, 128, 3.0, 0), (3, 2, 80, None, 383)],
)
def test_sums_by_blocks_equal_those_over_all_slots(K: int, G: int, H: int, softcap: float | None, end: int) -> None:
    """Rows that see nothing, a part of a block, across the end of the ring, and everything."""
    reach = jnp.array([0, 1, 130, 250, 383], jnp.int32)
    queries, kept = random_cache((len(reach), K, G, H), jnp.float32)
    at = jnp.int32(end)
    view = View(at, reach, jnp.float32(0.3), list_turns(at, reach, SLOTS, T))
    cached = CachedLayer(kept, jnp.int32(LAYER), view)
    truth = sums_by_xla(queries, cached, softcap, Placement())
    of_truth = truth.most + jnp.log(truth.total)
    for found in (sums_by_kernel(queries, cached, softcap, interpret=True), sums_by_turns(queries, cached, softcap)):
        assert np.isfinite(found.weighted).all()
        np.testing.assert_allclose(
            found.weighted[1:] / found.total[1:], truth.weighted[1:] / truth.total[1:], rtol=2e-5, atol=2e-5
        )
        total = found.most + jnp.log(found.total)
        np.testing.assert_allclose(total[1:], of_truth[1:], rtol=2e-5, atol=2e-5)
        assert np.exp(total[0]).max() == 0  # of a row that sees nothing, nothing is added to its own value


@settings(max_examples=40, deadline=None)
@given(st.integers(0, SLOTS - 1), st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=5))
def test_turns_are_the_blocks_that_a_row_sees_and_one_of_a_row_that_sees_nothing(end: int, reach: list[int]) -> None:
    blocks = SLOTS // T
    turns = np.asarray(list_turns(jnp.int32(end), jnp.array(reach, jnp.int32), SLOTS, T))
    made = [divmod(int(turn), blocks) for turn in turns[: turns[-1]]]
    seen = np.asarray(visible(View(jnp.int32(end), jnp.array(reach), jnp.float32(1), None), SLOTS))
    of_blocks: np.ndarray = seen.reshape(len(reach), blocks, -1).max(axis=-1)
    for row, slots in enumerate(of_blocks):
        own = [block for of_row, block in made if of_row == row]
        assert sorted(own) == (list(np.flatnonzero(slots)) if slots.any() else own[:1])
        assert len(own) >= 1
    assert [row for row, _ in itertools.groupby(made, lambda turn: turn[0])] == list(range(len(reach)))


@pytest.mark.parametrize("sinks", [False, True])
def test_a_position_attends_to_itself_and_to_what_its_row_sees(sinks: bool) -> None:
    B, K, G, H = 3, 2, 2, 16
    queries, kept = random_cache((B, K, G, H), jnp.float32)
    rng, reach, end = np.random.default_rng(2), [0, 5, 300], 40
    own_k, own_v = (jnp.asarray(rng.normal(size=(B, 1, K, H)), jnp.float32) for _ in range(2))
    of_sinks = jnp.asarray(rng.normal(size=K * G), jnp.float32) if sinks else None
    heads = Heads(queries.reshape(B, 1, K * G, H), own_k, own_v, of_sinks)
    view = View(jnp.int32(end), jnp.array(reach), jnp.float32(0.5), None)
    found = attend_cached(heads, CachedLayer(kept, LAYER, view), None, Placement())
    for row, length in enumerate(reach):
        slots = np.arange(end - length, end) % SLOTS
        for head in range(K * G):
            k, v = (np.asarray(x[LAYER, row, head // G])[:, slots] for x in kept)
            k, v = (
                np.append(x, np.asarray(y[row, 0, head // G])[:, None], axis=1) for x, y in ((k, own_k), (v, own_v))
            )
            scores = 0.5 * np.asarray(heads.q[row, 0, head]) @ k
            weights = np.exp(scores)
            total = weights.sum() + (np.exp(of_sinks[head]) if of_sinks is not None else 0)
            np.testing.assert_allclose(found[row, 0, head], v @ weights / total, rtol=1e-4, atol=1e-5)


def test_blocks_are_taken_on_tpu_in_half_precision_and_on_cpus() -> None:
    half, whole = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    assert [block_slots("tpu", slots, 128, half) for slots in (9216, 8448, 128)] == [512, 384, 128]
    assert block_slots("tpu", 9216, 128, whole) is None
    assert block_slots("cpu", 9216, 128, whole) == 128
    assert block_slots("gpu", 9216, 128, half) is block_slots(None, 9216, 128, half) is None
    assert block_slots("cpu", 200, 128, half) is block_slots("cpu", 128, 128, whole) is None


def test_blocks_of_many_heads_fit_into_the_vector_memory() -> None:
    half = jnp.dtype(jnp.bfloat16)
    for width, slots in ((4096, 512), (8192, 256), (65536, 128)):
        assert block_slots("tpu", 9216, width, half) == slots
