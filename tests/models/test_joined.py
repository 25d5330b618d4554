"""Decode for TPU gives the same as elsewhere: with joined projections, and sums as matrix products."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.models.arch import read_arch
from pod_job.models.cache import Cache, empty_cache
from pod_job.models.decoder import Decoder, Output
from pod_job.models.joined import JOINED_WEIGHTS, joined_projections
from pod_job.models.placement import Placement
from pod_job.models.taps import resolve
from tools.tiny_model import DELTA_KEYS

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},  # biases
    "qwen3": {"head_dim": 16},  # norms of queries and keys: halves are swapped after them
    "llama": {"attention_bias": False},
    "qwen3_5_text": {"num_hidden_layers": 3, "head_dim": 16, **DELTA_KEYS},  # weights of attention for some layers
}


class OnTpu(Placement):
    """Tells a decoder that it is lowered for TPU; nothing that it then does in decode needs one."""

    @property
    def platform(self) -> str:
        return "tpu"


def decoded(family: str, placement: Placement) -> tuple[Mapping[str, jax.Array], list[jax.Array]]:
    """Logits and activations of three tokens after each other in three rows, by a random model."""
    arch = read_arch({"model_type": family, **SIZES, **FAMILIES[family]})
    model = Decoder(arch, resolve([0, 1], ["layer_1.q", "layer_0.v"], arch), jnp.float32, placement)
    plain = Decoder(arch, model.taps, jnp.float32)
    shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 4, x.dtype), shapes)
    joined = model.joined_weights(params)
    cache = empty_cache(arch, 3, 8, jnp.float32, jnp.float32)
    values: list[jax.Array] = []
    extend = jax.jit(
        lambda ids, cache, positions: model.apply(
            {"params": {**params["params"], **joined}},
            ids,
            cache,
            positions=positions,
            return_activations=True,
            method="extend",
        )
    )
    for position in range(3):
        applied = extend(jnp.array([[1], [7], [position]]), cache, jnp.full((3, 1), position))
        (logits, activations), cache = cast(tuple[Output, Cache], applied)
        values += [cast(jax.Array, logits), *activations.values()]
    return joined, values


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_for_tpu_gives_what_it_gives_elsewhere(family: str) -> None:
    joined, values = decoded(family, OnTpu())
    none, expected = decoded(family, Placement())
    assert (bool(joined), bool(none)) == (True, False)
    assert set(joined) <= set(JOINED_WEIGHTS)
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-5)


def test_heads_that_devices_share_are_not_joined() -> None:
    arch = read_arch({"model_type": "llama", **SIZES})
    assert joined_projections(arch, OnTpu(heads="model"), {}) == {}
