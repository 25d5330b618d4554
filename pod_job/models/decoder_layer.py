"""One decoder layer: RMSNorm, attention, RMSNorm, gated mlp, each added to the residual stream.

B rows, S positions, D hidden, N query heads, K key/value heads, H head size, F mlp.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pod_job.models.arch import Arch
from pod_job.models.attention import LANES
from pod_job.models.cache import Cache
from pod_job.models.layer_attention import Projections, swap_halves
from pod_job.models.placement import Placement

ACTIVATION_FUNCTIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True)}
"""The function of each of `arch.ACTIVATIONS`, by the name that `config.json` gives it."""

Attention = Callable[[Projections], tuple[Float[Array, "B S N H"], Cache | None]]
"""A layer's attention: the heads' outputs, and the cache with the layer's keys and values in it."""


def decoder_layer(
    arch: Arch, placement: Placement, w: dict[str, Array], x: Float[Array, "B S D"], attention: Attention
) -> tuple[tuple[Float[Array, "B S D"], Cache | None], dict[str, Array]]:
    """Returns the residual stream after the layer, the cache that `attention` gives, and every site by name.

    Sites nobody uses cost nothing.
    """
    attn_in = rms_norm(arch, x, w["attn_norm"])
    q, k, v, projections = project(arch, w, attn_in)
    z, cache = attention(projections)
    attn_out = attn_out_pre_norm = jnp.einsum("bsnh,nhd->bsd", z, w["o"]) + w.get("o_bias", 0.0)
    if arch.post_norms:
        attn_out = rms_norm(arch, attn_out_pre_norm, w["attn_post_norm"])
    resid_mid = x + attn_out
    mlp_in = rms_norm(arch, resid_mid, w["mlp_norm"])
    mlp_act, mlp_out_pre_norm = mlp(arch, placement, w, mlp_in)
    mlp_out = rms_norm(arch, mlp_out_pre_norm, w["mlp_post_norm"]) if arch.post_norms else mlp_out_pre_norm
    resid_post = resid_mid + mlp_out
    heads = {name: value.reshape(*value.shape[:2], -1) for name, value in (("q", q), ("k", k), ("v", v), ("z", z))}
    sites = {
        "resid_pre": x,
        "attn_in": attn_in,
        "attn_out_pre_norm": attn_out_pre_norm,
        "attn_out": attn_out,
        "resid_mid": resid_mid,
        "mlp_in": mlp_in,
        "mlp_act": mlp_act,
        "mlp_out_pre_norm": mlp_out_pre_norm,
        "mlp_out": mlp_out,
        "resid_post": resid_post,
    }
    return (resid_post, cache), heads | sites


def project(
    arch: Arch, w: dict[str, Array], normed: Float[Array, "B S D"]
) -> tuple[Float[Array, "B S N H"], Float[Array, "B S K H"], Float[Array, "B S K H"], Projections]:
    """Returns queries, keys and values before any norm of theirs, and what attention takes."""

    def heads(name: str) -> Float[Array, "B S _ H"]:
        return jnp.einsum("bsd,dnh->bsnh", normed, w[name]) + w.get(f"{name}_bias", 0.0)

    q, k, v = heads("q"), heads("k"), heads("v")
    queries, keys = q, k
    if arch.qk_norm:
        queries, keys = rms_norm(arch, q, w["q_norm"]), rms_norm(arch, k, w["k_norm"])
    if "q_swapped" in w:
        return q, k, v, Projections(queries, keys, v, heads("q_swapped"), heads("k_swapped"))
    return q, k, v, Projections(queries, keys, v, swap_halves(queries), swap_halves(keys))


def mlp(
    arch: Arch, placement: Placement, w: dict[str, Array], normed: Float[Array, "B S D"]
) -> tuple[Float[Array, "B S F"], Float[Array, "B S D"]]:
    """Returns the input of the down projection, and its output."""
    gate = jnp.einsum("bsd,df->bsf", normed, w["gate"]) + w.get("gate_bias", 0.0)
    up = placement.isolate(jnp.einsum("bsd,df->bsf", normed, w["up"]) + w.get("up_bias", 0.0))
    # float16 is too narrow for the sigmoid of a large negative gate; promoted with bfloat16 it becomes float32.
    wide = gate.astype(jnp.promote_types(gate.dtype, jnp.bfloat16))
    mlp_act = ACTIVATION_FUNCTIONS[arch.activation](wide).astype(gate.dtype) * up
    return mlp_act, jnp.einsum("bsf,fd->bsd", mlp_act, w["down"]) + w.get("down_bias", 0.0)


def rms_norm(arch: Arch, x: Float[Array, "*B D"], scale: Float[Array, " D"]) -> Float[Array, "*B D"]:
    """Returns x / sqrt(mean(x^2) + eps) in float32, times `scale` in x's dtype; (1 + scale) in float32 for Gemma."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + arch.norm_eps)
    if arch.norm_plus_one:
        return (normed * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    return normed.astype(x.dtype) * scale


def swaps_by_projection(arch: Arch, placement: Placement) -> bool:
    """Returns whether swapped queries and keys come from matrix products of their own, not from moving lanes about.

    A head that fills part of a vector register only makes a TPU shuffle lanes for every rotation, which costs it more
    than a second projection (Qwen2.5-0.5B on v5e: 7 ms of a 51 ms step). A norm between projection and rotation
    would need a second norm too.
    """
    return placement.platform == "tpu" and arch.head_dim < LANES and not arch.qk_norm


def swapped_projections(w: dict[str, Array]) -> dict[str, Array]:
    """Returns a layer's weights whose projections are swapped queries and keys: the same columns in another order."""
    return {
        f"{name[0]}_swapped{name[1:]}": swap_halves(w[name]) for name in ("q", "q_bias", "k", "k_bias") if name in w
    }
