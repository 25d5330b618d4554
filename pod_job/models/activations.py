"""Activation functions of an mlp, by the names that `config.json` gives them."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pod_job.models.arch import Arch

_gelu, _gelu_by_tanh = functools.partial(jax.nn.gelu, approximate=False), jax.nn.gelu

ACTIVATION_FUNCTIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_by_tanh,
    "gelu_fast": _gelu_by_tanh,
    "gelu_pytorch_tanh": _gelu_by_tanh,
    "gelu_python_tanh": _gelu_by_tanh,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}
"""The function of each of `arch.ACTIVATIONS`, by the name that `config.json` gives it."""


def gated(arch: Arch, gate: Float[Array, "*B F"], up: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """Returns the activated gate times `up`; with a limit, gpt-oss' clamped SwiGLU."""
    limit, wide = arch.glu_limit, jnp.promote_types(gate.dtype, jnp.bfloat16)
    if limit is None:
        return activate(arch, gate) * up
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    sigmoid = jax.nn.sigmoid(gate.astype(wide) * arch.glu_alpha).astype(gate.dtype)
    return gate * sigmoid * (up + 1)


def activate(arch: Arch, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the activation function of x."""
    # float16 is too narrow for the sigmoid of a large negative x; promoted with bfloat16 it becomes float32.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.bfloat16))
    return ACTIVATION_FUNCTIONS[arch.activation](wide).astype(x.dtype)
