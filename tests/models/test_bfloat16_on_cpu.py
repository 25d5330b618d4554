"""bfloat16 on CPUs: no program holds a stack of weights, or a cache, in float32, and an activation is rounded once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pod_job.models.arch import read_arch
from pod_job.models.cache import empty_cache
from pod_job.models.decoder import Decoder
from pod_job.models.decoder_layer import mlp
from pod_job.models.placement import Placement
from pod_job.models.taps import resolve

ON_CPU = Placement(mesh=jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ("data",)), rows=("data",))
LAYERS, ROWS, SLOTS = 12, 2, 512
ARCH = read_arch(
    {
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "hidden_size": 64,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": SLOTS,
    }
)
MODEL = Decoder(ARCH, resolve([LAYERS - 1], [], ARCH), jnp.bfloat16, ON_CPU)


def shapes() -> Any:
    return jax.eval_shape(lambda: MODEL.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))


def temporary_bytes(program: Any, *arguments: Any) -> int:
    memory = jax.jit(program).lower(*arguments).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def test_a_forward_pass_makes_no_stack_of_weights_float32() -> None:
    params = shapes()
    layer_bytes = sum(x.size * 4 for x in jax.tree.leaves(params)) / LAYERS

    def activations(params: Any) -> Any:
        return MODEL.apply(params, jnp.zeros((1, 8), jnp.int32), return_activations=True, return_logits=False)[1]

    assert temporary_bytes(activations, params) < 2 * layer_bytes


def test_decode_makes_no_cache_float32() -> None:
    params, of_keys = shapes(), ON_CPU.kept_dtype(jnp.bfloat16)
    cache = jax.eval_shape(lambda: empty_cache(ARCH, ROWS, SLOTS, jnp.bfloat16, of_keys))
    keys_bytes = cache.kept.keys.k.size * 4 / LAYERS  # of one layer

    def extended(params: Any, cache: Any) -> Any:
        zeros = jnp.zeros((ROWS, 1), jnp.int32)
        return MODEL.apply(params, zeros, cache, positions=zeros, method="extend")[1].kept.keys.k[:, :, :, :, :1]

    assert temporary_bytes(extended, params, cache) < 4 * keys_bytes


def test_the_activation_is_the_exact_one_rounded_once() -> None:
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(1, 30, 64)), jnp.bfloat16)
    w = {name: jnp.asarray(random.normal(size=(64, 512)) / 4, jnp.bfloat16) for name in ("gate", "up")}
    w["down"] = w["up"].T
    found = np.asarray(jax.jit(lambda x, w: mlp(ARCH, ON_CPU, w, x)[1]["mlp_act"])(x, w), np.float64)
    gate, up = (np.asarray(x, np.float64)[0] @ np.asarray(w[name], np.float64) for name in ("gate", "up"))
    np.testing.assert_allclose(found[0], gate / (1 + np.exp(-gate)) * up, rtol=2.0**-8, atol=1e-4)
