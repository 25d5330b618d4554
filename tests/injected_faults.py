"""Faults that a model may have, each as a change of its program: what the parity gate must refuse."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from pod_job.models import attention_blocks, decoder_layer, layer_attention
from pod_job.models.arch import Arch, LayerAttention
from pod_job.models.layer_attention import Tokens

Weights = dict[str, jax.Array]
Change = Callable[[Arch, Weights], tuple[Arch, Weights]]


class Fault(NamedTuple):
    """A change of sizes and weights; `tokens` changes what a packed row is described as, `function` the code."""

    model: str
    name: str
    change: Change = lambda arch, weights: (arch, weights)
    tokens: Callable[[Tokens], Tokens] = lambda tokens: tokens
    function: tuple[Any, str, Callable[..., Any]] | None = None

    @contextmanager
    def in_code(self) -> Iterator[None]:
        """Puts the function in the place of the one of this name; whoever traces the model meanwhile has it."""
        with pytest.MonkeyPatch.context() as patch:
            if self.function is not None:
                patch.setattr(*self.function)
            yield


def arch(**fields: Any) -> Change:
    return lambda arch, weights: (dataclasses.replace(arch, **fields), weights)


def weight(change: Callable[[jax.Array], jax.Array], *names: str) -> Change:
    return lambda arch, weights: (arch, weights | {name: change(weights[name]) for name in names})


def moved(pairs: dict[str, str]) -> Change:
    return lambda arch, weights: (arch, weights | {name: weights[other] for name, other in pairs.items()})


def attention(change: Callable[[LayerAttention], LayerAttention]) -> Change:
    def changed(arch: Arch, weights: Weights) -> tuple[Arch, Weights]:
        return dataclasses.replace(arch, attention=tuple(map(change, arch.attention))), weights

    return changed


def rope(**fields: Any) -> Change:
    def changed(layer: LayerAttention) -> LayerAttention:
        values = {name: value(layer.rope) if callable(value) else value for name, value in fields.items()}
        return dataclasses.replace(layer, rope=dataclasses.replace(layer.rope, **values))

    return attention(changed)


def theta(times: float) -> Change:
    return rope(theta=lambda rope: times * rope.theta)


def window(change: Callable[[int], int | None]) -> Change:
    return attention(lambda layer: dataclasses.replace(layer, window=layer.window and change(layer.window)))


def layer_types_shifted(arch: Arch, weights: Weights) -> tuple[Arch, Weights]:
    return dataclasses.replace(arch, attention=(*arch.attention[1:], arch.attention[0])), weights


def halves(array: jax.Array) -> jax.Array:
    """Rotary pairs side by side, and not half a head apart."""
    return array.reshape(*array.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(array.shape)


def norm_in_bfloat16(arch: Arch, w: Weights, name: str, x: jax.Array) -> jax.Array:
    narrow = x.astype(jnp.bfloat16)
    normed = narrow * jax.lax.rsqrt(jnp.mean(narrow * narrow, axis=-1, keepdims=True) + jnp.bfloat16(arch.norm_eps))
    return (normed * (w[name] + (1 if arch.norm_plus_one else 0)).astype(jnp.bfloat16)).astype(x.dtype)


def layer_norm(arch: Arch, w: Weights, name: str, x: jax.Array) -> jax.Array:
    return right_norm(arch, w, name, x - x.mean(axis=-1, keepdims=True))


def angles_in_bfloat16(positions: jax.Array, frequencies: Any, *_: Any) -> tuple[jax.Array, jax.Array]:
    angles = positions[..., None].astype(jnp.bfloat16) * jnp.asarray(frequencies, jnp.bfloat16)
    cos, sin = jnp.cos(angles.astype(jnp.float32)), jnp.sin(angles.astype(jnp.float32))
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def in_code(module: Any, name: str, change: Callable[..., Any]) -> dict[str, Any]:
    """Replaces a function by `change(the right one, its arguments ...)`."""
    return {"function": (module, name, partial(change, getattr(module, name)))}


def keys_from(change: Callable[[Callable[..., jax.Array], jax.Array, int | None], jax.Array]) -> dict[str, Any]:
    """Changes the first key that the kernel lets a query see."""
    return in_code(attention_blocks, "first_visible", change)


def positions(change: Callable[[jax.Array], jax.Array]) -> dict[str, Any]:
    return {"tokens": lambda tokens: tokens._replace(positions=change(tokens.positions))}


right_norm = decoder_layer.norm
zero, reverse = jnp.zeros_like, partial(jnp.flip, axis=2)
previous_layer = partial(jnp.roll, shift=1, axis=0)
eight_bits = lambda array: array.astype(jnp.float8_e4m3fn).astype(array.dtype)  # noqa: E731
LLAMA3, SPIKES = "llama, llama3 rope", "qwen2, large biases"

FAULTS = [
    Fault("llama", "rope base 10 times", theta(10)),
    Fault("llama", "rope base 10% more", theta(1.1)),
    Fault("llama", "rope divided by 2", rope(kind="linear", factor=2.0)),
    Fault("llama", "rope pairs side by side", weight(halves, "q", "k")),
    Fault("llama", "attention factor of 1.1", rope(attention_factor=1.1)),
    Fault("llama", "eps 10 times", arch(norm_eps=1e-5)),
    Fault("llama", "no eps", arch(norm_eps=0.0)),
    Fault("llama", "gelu for silu", arch(activation="gelu_pytorch_tanh")),
    Fault("llama", "query scale 1 / H", arch(query_scale=1 / 16)),
    Fault("llama", "query scale 5% more", arch(query_scale=1.05 / 4)),
    Fault("llama", "gate and up exchanged", moved({"gate": "up", "up": "gate"})),
    Fault("llama", "norms exchanged", moved({"attn_norm": "mlp_norm", "mlp_norm": "attn_norm"})),
    Fault("llama", "weights of the layer before", weight(previous_layer, "q", "k", "v", "o")),
    Fault("llama", "mlp of the layer before", weight(previous_layer, "gate", "up", "down")),
    Fault("llama", "query heads reversed", weight(reverse, "q")),
    Fault("llama", "key heads reversed", weight(reverse, "k")),
    Fault("llama", "value heads reversed", weight(reverse, "v")),
    Fault("llama", "token ids one up", weight(partial(jnp.roll, shift=1, axis=0), "embed")),
    Fault("llama", "norm weights left out", weight(jnp.ones_like, "attn_norm")),
    Fault("llama", "final norm's weight left out", weight(jnp.ones_like, "final_norm")),
    Fault("llama", "mlp in eight bits", weight(eight_bits, "down")),
    Fault("qwen2", "no bias of q", weight(zero, "q_bias")),
    Fault("qwen2", "no bias of k", weight(zero, "k_bias")),
    Fault("qwen2", "no bias of v", weight(zero, "v_bias")),
    Fault("mistral", "window one longer", window(lambda size: size + 1)),
    Fault("mistral", "window one shorter", window(lambda size: size - 1)),
    Fault("mistral", "no window", window(lambda size: None)),
    Fault("qwen3", "no norm of keys", weight(jnp.ones_like, "k_norm")),
    Fault("qwen3", "norms of q and k left out", arch(qk_norm=False)),
    Fault("gemma2", "no cap of scores", arch(attn_softcap=None)),
    Fault("gemma2", "cap of scores 10% higher", arch(attn_softcap=2.2)),
    Fault("gemma2", "layer types shifted", layer_types_shifted),
    Fault("gemma2", "post norms exchanged", moved({"attn_post_norm": "mlp_post_norm", "mlp_post_norm": "mlp_norm"})),
    Fault("gemma2", "embedding not scaled", arch(embed_scale=1.0)),
    Fault("gemma3_text", "norms not plus one", arch(norm_plus_one=False)),
    Fault("gemma3_text", "one rope for all layers", rope(theta=10_000.0)),
    Fault(LLAMA3, "rope not scaled", rope(kind="default")),
    Fault(LLAMA3, "rope factor 4 for 8", rope(factor=4.0)),
    Fault("llama", "norms in bfloat16", **in_code(decoder_layer, "norm", lambda _, *x: norm_in_bfloat16(*x))),
    Fault("llama", "layer norms", **in_code(decoder_layer, "norm", lambda _, *x: layer_norm(*x))),
    Fault(
        "llama",
        "rotary angles in bfloat16",
        **in_code(layer_attention, "rotary_tables", lambda _, *x: angles_in_bfloat16(*x)),
    ),
    Fault(
        "llama",
        "scores in bfloat16",
        **in_code(
            attention_blocks, "block_scores", lambda right, *x: right(*x).astype(jnp.bfloat16).astype(jnp.float32)
        ),
    ),
    Fault(
        "llama",
        "kernel looks across segments",
        **keys_from(lambda right, ids, window: right(jnp.ones_like(ids), window)),
    ),
    Fault(
        "llama",
        "kernel looks one key into the segment before",
        **keys_from(lambda right, *x: jnp.maximum(right(*x) - 1, 0)),
    ),
    Fault(
        "llama",
        "kernel leaves out a segment's first key",
        **keys_from(lambda right, ids, window: jnp.minimum(right(ids, window) + 1, jnp.arange(ids.shape[1]))),
    ),
    Fault(
        "mistral",
        "kernel's window one longer",
        **keys_from(lambda right, ids, window: right(ids, window and window + 1)),
    ),
    Fault(
        "mistral",
        "kernel's window one shorter",
        **keys_from(lambda right, ids, window: right(ids, window and window - 1)),
    ),
    Fault("llama", "positions restart one token late", **positions(lambda p: jnp.roll(p, 1, axis=1))),
    Fault("llama", "positions restart one token early", **positions(lambda p: jnp.roll(p, -1, axis=1))),
    Fault("llama", "positions counted twice", **positions(lambda p: 2 * p)),
]
