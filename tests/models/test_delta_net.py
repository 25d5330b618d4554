"""Gated delta rules: chunk by chunk as token by token, each segment by itself, and layers of two kinds in one loop."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import apply, error, load

from pod_job.errors import JobError
from pod_job.models import delta_net, layer_loop
from pod_job.models.arch import Arch, read_arch
from pod_job.models.cache import empty_cache
from pod_job.models.delta_net import (
    Writes,
    convolve,
    delta_rule,
    filter_latest,
    next_token,
    unit_lower_inverse,
    windows_at,
)
from pod_job.models.taps import resolve
from pod_job.models.weight_table import weight_table
from pod_job.planning.model_cost import layer_flops
from tools.tiny_model import TinyModel, write_tiny_model

FAMILY = "qwen3_5_text"
LENGTHS = (13, 7)
SEGMENTS = np.repeat([np.repeat([1, 2], LENGTHS)], 2, axis=0)
POSITIONS = np.repeat([[position for length in LENGTHS for position in range(length)]], 2, axis=0)


def arch_of(family: str = FAMILY, **fields: Any) -> Arch:
    return read_arch(TinyModel(family, **fields).config())


def inputs(S: int, key_heads: int, value_heads: int) -> tuple[np.ndarray, ...]:
    """Queries, keys, values, decay and beta of two rows."""
    rng = np.random.default_rng(S)
    q, k = rng.normal(size=(2, 2, S, key_heads, 5))
    v = rng.normal(size=(2, S, value_heads, 3))
    decay, beta = -rng.exponential(size=(2, S, value_heads)), rng.uniform(size=(2, S, value_heads))
    return tuple(np.asarray(x, np.float32) for x in (q, k, v, decay, beta))


def token_by_token(q, k, v, decay, beta, segments) -> np.ndarray:
    """The rule as it is defined, in float64."""
    q, k, v, decay, beta = (np.asarray(x, np.float64) for x in (q, k, v, decay, beta))
    q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    out, group = np.empty_like(v), v.shape[2] // k.shape[2]
    for row, head in np.ndindex(v.shape[0], v.shape[2]):
        state = np.zeros((k.shape[-1], v.shape[-1]))
        for at in range(v.shape[1]):
            if at and segments[row, at] != segments[row, at - 1]:
                state[:] = 0
            key = k[row, at, head // group]
            state *= np.exp(decay[row, at, head])
            state += np.outer(key, beta[row, at, head] * (v[row, at, head] - key @ state))
            out[row, at, head] = q[row, at, head // group] / np.sqrt(len(key)) @ state
    return out


@pytest.mark.parametrize(("S", "ends"), [(1, ()), (8, (8,)), (9, (3, 4)), (29, (8, 20)), (29, (1, 16, 17, 28))])
@pytest.mark.parametrize(("key_heads", "value_heads"), [(2, 2), (1, 3)])
def test_chunks_give_what_the_rule_gives_token_by_token_in_each_segment(
    S: int, ends: tuple[int, ...], key_heads: int, value_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_net, "CHUNK", 8)
    segments = np.stack([np.searchsorted(ends, np.arange(S), side="right"), np.arange(S) // 5]).astype(np.int32)
    arrays = inputs(S, key_heads, value_heads)
    with jax.default_matmul_precision("highest"):
        found, _ = delta_rule(Writes(*map(jnp.asarray, arrays)), jnp.asarray(segments))
    np.testing.assert_allclose(np.asarray(found), token_by_token(*arrays, segments), atol=3e-6)


@pytest.mark.parametrize("C", [1, 2, 5, 20, 64])
def test_an_inverse_is_that_of_float64(C: int) -> None:
    below = np.tril(np.random.default_rng(C).normal(size=(2, 3, C, C)) / 4, -1)
    truth = np.linalg.inv(below + np.eye(C))
    with jax.default_matmul_precision("highest"):
        found = np.asarray(unit_lower_inverse(jnp.asarray(below, jnp.float32)))
    np.testing.assert_allclose(found, truth, atol=1e-6 * np.abs(truth).max())


ON_TWO_DEVICES = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from pod_job.models.delta_net import Writes, delta_rule
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
rule = jax.shard_map(delta_rule, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
x = jnp.ones((2, 130, 1, 4))
out, _ = jax.jit(rule)(Writes(x, x, x, -x[..., 0], x[..., 0]), jnp.ones((2, 130), jnp.int32))
print(out.shape)
"""


def test_two_devices_of_a_cpu_do_not_wait_for_each_other() -> None:
    """Chunk by chunk, their programs once came to a stop on a machine of two cores."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.strip() == "(2, 130, 1, 4)", done.stderr


@pytest.mark.parametrize("at", [(0, 7), (2, 8), (15, 28), (16, 17), (27, 19)])
def test_a_token_after_any_position_reads_what_it_would_read_in_one_pass(
    at: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two states of each row, within a chunk, at its end, and after a segment of one position or of several chunks."""
    monkeypatch.setattr(delta_net, "CHUNK", 8)
    S = 29
    segments = np.stack([np.searchsorted((1, 17), np.arange(S), side="right"), np.arange(S) // 5]).astype(np.int32)
    arrays, token = inputs(S, 2, 4), inputs(1, 2, 4)
    with jax.default_matmul_precision("highest"):
        _, states = delta_rule(Writes(*map(jnp.asarray, arrays)), jnp.asarray(segments), jnp.array([at, at]))
        assert states is not None
        both = [jnp.repeat(jnp.asarray(x), 2, axis=0) for x in token]
        found, after = next_token(Writes(*both), states)
        again, _ = next_token(Writes(*both), after)
    for row, end in np.ndindex(2, 2):
        own = np.flatnonzero(segments[row, : at[end] + 1] == segments[row, at[end]])
        whole = [
            np.concatenate([x[row : row + 1, own], *[y[row : row + 1]] * 2], axis=1)
            for x, y in zip(arrays, token, strict=True)
        ]
        truth = token_by_token(*whole, np.zeros((1, len(own) + 2), np.int32))[0]
        np.testing.assert_allclose(np.stack([found, again])[:, 2 * row + end, 0], truth[-2:], atol=3e-6)


def test_a_filter_over_the_latest_positions_gives_what_it_gives_in_one_pass() -> None:
    """A segment shorter than the filter has zeros before it."""
    x, filters = np.random.default_rng(0).normal(size=(2, 20, 2, 3)), np.random.default_rng(1).normal(size=(4, 2, 3))
    x, filters = jnp.asarray(x, jnp.float32), jnp.asarray(filters, jnp.float32)
    expected = convolve(x, filters, jnp.asarray(SEGMENTS))
    ends = jnp.array([[0, 1, 12, 13, 18]] * 2)
    windows = windows_at(x, jnp.asarray(SEGMENTS), ends, 3)
    for at, window in zip(np.asarray(ends[0]), windows.reshape(2, 5, *windows.shape[1:]).swapaxes(0, 1), strict=True):
        seen = jnp.append(jnp.moveaxis(window, 2, 1), x[:, at + 1 : at + 2], axis=1)
        if at + 1 != LENGTHS[0]:
            np.testing.assert_allclose(filter_latest(seen, filters)[:, 0], expected[:, at + 1], atol=1e-6)


def test_a_filter_sees_the_latest_positions_of_its_segment() -> None:
    x, filters = np.random.default_rng(0).normal(size=(2, 20, 2, 3)), np.random.default_rng(1).normal(size=(4, 2, 3))
    expected = np.zeros_like(x)
    for at in range(20):
        first = max(at - 3, 0 if at < LENGTHS[0] else LENGTHS[0])
        expected[:, at] = sum(x[:, j] * filters[3 - at + j] for j in range(first, at + 1))
    found = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(filters, jnp.float32), jnp.asarray(SEGMENTS))
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("delta") / FAMILY, FAMILY, layers=3, hidden=48, heads=6, seed=3)


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_net, "CHUNK", 8)


@pytest.mark.parametrize("pieces", [layer_loop.MOST_PIECES, 0], ids=["one by one", "one loop"])
def test_packed_vectors_equal_hugging_face_over_each_sequence_alone(
    pieces: int, tiny: Path, short_chunks: None, torch_there: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of two kinds, whose heads' outputs have other sizes; a segment ends within a chunk."""
    from pod_job.checking.hf_reference import load_reference, run_reference

    monkeypatch.setattr(layer_loop, "MOST_PIECES", pieces)
    ids = np.random.default_rng(0).integers(0, 256, (2, sum(LENGTHS))).astype(np.int32)
    reference = load_reference(tiny)
    parts = [run_reference(reference, part) for part in np.split(ids, [LENGTHS[0]], axis=1)]
    model, params = load(tiny, taps=["*"] if pieces == 0 else ["layer_[01].*", "layer_3_norm", "layer_2"])
    found = apply(model, params, ids, positions=POSITIONS, segment_ids=SEGMENTS)
    truths = {name: np.concatenate([part[name] for part in parts], axis=1) for name in found}
    assert {name: off for name in found if not (off := error(found[name], truths[name])) <= 1e-5} == {}


def test_tokens_of_another_segment_change_no_bit(tiny: Path, short_chunks: None) -> None:
    ids = np.random.default_rng(0).integers(0, 256, (2, sum(LENGTHS))).astype(np.int32)
    other = ids.copy()
    other[:, : LENGTHS[0]] = (other[:, : LENGTHS[0]] + 1) % 256
    model, params = load(tiny, taps=["layer_2"])
    rows = {"positions": POSITIONS, "segment_ids": SEGMENTS}
    first, second = (apply(model, params, of_rows, **rows)["layer_2"] for of_rows in (ids, other))
    assert not np.array_equal(first[:, : LENGTHS[0]], second[:, : LENGTHS[0]])
    np.testing.assert_array_equal(first[:, LENGTHS[0] :], second[:, LENGTHS[0] :])


def test_a_row_whose_sequence_has_not_begun_sees_no_earlier_state(tiny: Path) -> None:
    model, params = load(tiny, taps=["layer_2"])
    empty = empty_cache(model.arch, 2, 8, jnp.float32, jnp.float32)
    assert empty.kept.states is not None
    ids, after = jnp.array([[3], [4]]), jnp.array([[0], [1]])  # the second row goes on
    used = empty._replace(kept=empty.kept._replace(states=jax.tree.map(jnp.ones_like, empty.kept.states)))
    first, second = (
        cast(Any, model.apply(params, ids, cache, positions=after, return_activations=True, method="extend"))
        for cache in (empty, used)
    )
    (one, other) = (output.activations["layer_2"] for output, _ in (first, second))
    np.testing.assert_array_equal(one[0], other[0])
    assert not np.array_equal(one[1], other[1])


def test_a_layer_copies_no_states_of_others(tiny: Path) -> None:
    """XLA on CPUs copies all that a branch of a conditional is given to write into."""
    model, params = load(tiny)
    cache = empty_cache(model.arch, 3, 8, jnp.float32, jnp.float32)
    assert cache.kept.states is not None
    ids = jnp.zeros((3, 1), jnp.int32)
    extend = jax.jit(
        lambda ids, cache: model.apply(params, ids, cache, positions=ids, method="extend"), donate_argnums=1
    )
    text = extend.lower(ids, cache).compile().as_text()
    stacked = ",".join(map(str, cache.kept.states.heads.shape))
    assert text is not None
    assert f"f32[{stacked}]" in text
    assert not [line for line in text.splitlines() if re.search(rf"f32\[{stacked}\]\S* copy\(", line)]


def test_weights_are_stacked_over_the_layers_that_have_them() -> None:
    table = weight_table(arch_of(layers=5))
    assert table["q"].shape[0] == 2
    assert table["delta_q"].shape[0] == 3
    assert table["q"].places[1][0] == "model.layers.3.self_attn.q_proj.weight"
    assert table["delta_o"].places[-1][0] == "model.layers.4.linear_attn.out_proj.weight"
    assert table["down"].shape[0] == 5


def test_sizes_of_heads_are_those_of_the_layer() -> None:
    arch = arch_of(heads=4, head_dim=16)
    assert [tap.width(arch) for tap in resolve(None, ["layer_[01].z"], arch)] == [8 * 12, 4 * 16]
    assert layer_flops(arch, delta=True) != layer_flops(arch)


def test_heads_that_do_not_fit_together_are_named() -> None:
    config = TinyModel(FAMILY).config() | {"linear_num_key_heads": 3}
    with pytest.raises(JobError, match=r"linear_num_key_heads=3 does not divide linear_num_value_heads=8$"):
        read_arch(config)
