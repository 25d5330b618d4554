"""The decoder with taps: token ids in; logits and the chosen activations out, as return values.

Layers are stacked and looped on the device, so compile time does not grow with depth; only chosen taps are held, and
nothing past the last of them is computed when logits are not wanted.

B rows, S positions, M selected positions of a row, D hidden, N query heads, K key/value heads, H head size,
R = H/2 rotary pairs, F mlp, V vocabulary, L layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pod_job.models.arch import Arch, LayerAttention
from pod_job.models.attention import LANES, attend, attend_seen, rotary_tables, rotate, swap_halves
from pod_job.models.attention_blocks import capped
from pod_job.models.cache import Cache
from pod_job.models.layer_loop import run_layers
from pod_job.models.placement import Placement
from pod_job.models.taps import Tap
from pod_job.models.weight_table import weight_table

Activations = dict[str, Float[Array, "B M width"]]
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True)}


class Decoder(nn.Module):
    """A decoder (RMSNorm, rotary embedding, grouped-query attention, gated mlp) that returns its taps.

    Attributes:
        arch: sizes and switches.
        taps: what `return_activations=True` returns, in any order.
        dtype: of weights and compute; norms, softmax and rotary angles are float32 in any case. With float32,
            matrix products run at the highest precision of the device.
        placement: the mesh it is compiled for; by default one device of any kind.
    """

    arch: Arch
    taps: tuple[Tap, ...]
    dtype: Any = jnp.float32
    placement: Placement = Placement()

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        *,
        positions: Int[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        select: Int[Array, "B M"] | None = None,
        return_activations: bool = False,
        return_logits: bool = True,
        cache: Cache | None = None,
    ) -> Any:
        """One forward pass.

        Args:
            positions: for the rotary embedding; by default 0, 1, 2, ... in each row.
            segment_ids: tokens attend within their segment only; by default a row is one segment.
            select: positions whose activations are returned, per row; by default all.
            return_activations: return `(logits, activations)` instead of logits.
            return_logits: with False, `(None, activations)` is returned and no layer past the last tap runs.
            cache: of the positions before these, which come to its next slots. A call of one position attends to all
                that is in it; one of several must be the first.

        Returns:
            Logits [B, S, V] float32, or `(logits, {tap name: [B, M or S, width] in dtype})`. With a cache,
            `(logits of the last position [B, 1, V], activations, cache)`.
        """
        weights = {
            name: jnp.asarray(self.param(name, initializer(self.arch, name), weight.shape, self.dtype))
            for name, weight in weight_table(self.arch).items()
        }
        B, S = input_ids.shape
        positions = jnp.broadcast_to(jnp.arange(S), (B, S)) if positions is None else positions
        segment_ids = jnp.ones((B, S), jnp.int32) if segment_ids is None else segment_ids
        taps = self.taps if return_activations else ()
        with jax.default_matmul_precision("highest" if self.dtype == jnp.float32 else "default"):
            logits, activations, cache = self.forward(
                weights, input_ids, positions, segment_ids, select, taps, return_logits, cache
            )
        if cache is not None:
            return logits, activations, cache
        return (logits, activations) if return_activations else logits

    def forward(
        self,
        weights: dict[str, Array],
        input_ids: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
        select: Int[Array, "B M"] | None,
        taps: tuple[Tap, ...],
        return_logits: bool,
        cache: Cache | None,
    ) -> tuple[Float[Array, "B _ V"] | None, Activations, Cache | None]:
        arch, placement = self.arch, self.placement
        cache = None if cache is None else cache.begin(segment_ids)
        attention = attention_of_layers(arch, placement, positions, segment_ids, cache)
        layer_weights = {name: weights[name] for name, weight in weight_table(arch).items() if weight.stacked}
        swaps = input_ids.shape[1] > 1 and swaps_by_projection(arch, placement)

        def keep(x: Float[Array, "B S width"]) -> Array:
            return x if select is None else jnp.take_along_axis(x, select[..., None], axis=1)

        def layer(i: Int[Array, ""] | int, carry: tuple[Array, Any]) -> tuple[tuple[Array, Any], dict[str, Array]]:
            x, cache = carry
            one = {name: placement.gather(stack[i]) for name, stack in layer_weights.items()}
            one |= swapped_projections(one) if swaps else {}
            return decoder_layer(arch, placement, one, placement.row_major(x), functools.partial(attention, i, cache))

        x = placement.look_up(weights["embed"], input_ids)
        x = x * jnp.float32(arch.embed_scale).astype(self.dtype)
        to_the_end = return_logits or any(tap.site == "final_norm" for tap in taps)
        activations = {tap.name: keep(x) for tap in taps if tap.site == "embed"}
        layer_taps = tuple(tap for tap in taps if tap.site not in ("embed", "final_norm"))
        (x, cache), tapped = run_layers(layer, (x, cache), arch.layers, layer_taps, keep, to_the_end)
        cache = None if cache is None else cache.advance(input_ids.shape[1])
        activations |= tapped
        if not to_the_end:
            return None, activations, cache
        normed = rms_norm(arch, x, placement.gather(weights["final_norm"]))
        activations |= {tap.name: keep(normed) for tap in taps if tap.site == "final_norm"}
        if not return_logits:
            return None, activations, cache
        normed = normed if cache is None else normed[:, -1:]
        unembed = placement.gather(weights["embed"].T if arch.tied else weights["unembed"])
        logits = jnp.einsum("bsd,dv->bsv", normed, unembed, preferred_element_type=jnp.float32)
        return capped(logits, arch.logit_softcap), activations, cache


def attention_of_layers(
    arch: Arch,
    placement: Placement,
    positions: Int[Array, "B S"],
    segment_ids: Int[Array, "B S"],
    cache: Cache | None,
) -> Callable[..., tuple[Float[Array, "B S N H"], Cache | None]]:
    """`attention(i, cache, q, k, v, swapped q, swapped k) -> (z, cache)`: rotates, and attends as layer i does.

    i is a number or a loop counter. With a cache, keys and values go into it; a single position attends to all in it.

    Layers differ in their window and rotary embedding, and few kinds of them alternate: the angles of all kinds are
    computed once, and the loop's body holds one branch per kind, so that a kernel's window stays static.
    """
    kinds = tuple(dict.fromkeys(arch.attention))
    kind_of_layer = tuple(kinds.index(kind) for kind in arch.attention)
    tables = [rotary_tables(positions, kind.rope.frequencies(arch.head_dim)) for kind in kinds]
    # Behind a barrier, or the compiler moves these into the loop over layers and computes them for each.
    cos, sin = jax.lax.optimization_barrier(tuple(jnp.stack(table) for table in zip(*tables, strict=True)))
    from_cache = cache is not None and positions.shape[1] == 1

    def branch(kind: LayerAttention) -> Callable[..., Float[Array, "B S N H"]]:
        # YaRN's factor multiplies queries and keys alike, hence their products by its square.
        scale = arch.query_scale * kind.rope.attention_factor**2
        if cache is not None and from_cache:
            return functools.partial(attend_seen, seen=cache.seen(kind.window), scale=scale, softcap=arch.attn_softcap)
        return functools.partial(
            attend,
            segment_ids=segment_ids,
            window=kind.window,
            scale=scale,
            softcap=arch.attn_softcap,
            placement=placement,
        )

    branches = [branch(kind) for kind in kinds]

    def attention(
        i: Int[Array, ""] | int,
        cache: Cache | None,
        q: Float[Array, "B S N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        swapped_q: Float[Array, "B S N H"],
        swapped_k: Float[Array, "B S K H"],
    ) -> tuple[Float[Array, "B S N H"], Cache | None]:
        like = 0 if len(kinds) == 1 else i  # where there is one kind, every layer is like the first
        kind = kind_of_layer[like] if isinstance(like, int) else jnp.asarray(kind_of_layer)[like]
        q, k = rotate(q, swapped_q, cos[kind], sin[kind]), rotate(k, swapped_k, cos[kind], sin[kind])
        if cache is not None:
            cache = cache.write(i, k, v)
            k, v = (cache.k[i], cache.v[i]) if from_cache else (k, v)
        z = branches[kind](q, k, v) if isinstance(kind, int) else jax.lax.switch(kind, branches, q, k, v)
        return z, cache

    return attention


def swaps_by_projection(arch: Arch, placement: Placement) -> bool:
    """Whether swapped queries and keys come from matrix products of their own, and not from moving lanes about.

    A head that fills part of a vector register only makes a TPU shuffle lanes for every rotation, which costs it more
    than a second projection (Qwen2.5-0.5B on v5e: 7 ms of a 51 ms step). A norm between projection and rotation
    would need a second norm too.
    """
    return placement.platform == "tpu" and arch.head_dim < LANES and not arch.qk_norm


def swapped_projections(w: dict[str, Array]) -> dict[str, Array]:
    """A layer's weights whose projections are swapped queries and keys: the same columns, in another order."""
    return {
        f"{name[0]}_swapped{name[1:]}": swap_halves(w[name]) for name in ("q", "q_bias", "k", "k_bias") if name in w
    }


def decoder_layer(
    arch: Arch,
    placement: Placement,
    w: dict[str, Array],
    x: Float[Array, "B S D"],
    attention: Callable[..., tuple[Array, Any]],
) -> tuple[tuple[Float[Array, "B S D"], Any], dict[str, Array]]:
    """One layer: the residual stream after it with the cache `attention` gives, and every site in it by name.

    Sites nobody uses cost nothing.
    """

    def bias(name: str) -> Array | float:
        return w.get(f"{name}_bias", 0.0)

    def norm(x: Array, name: str, there: bool = True) -> Array:
        return rms_norm(arch, x, w[name]) if there else x

    def project(name: str) -> Array:
        return jnp.einsum("bsd,dnh->bsnh", normed, w[name]) + bias(name)

    resid_pre = x
    normed = norm(x, "attn_norm")
    q, k, v = project("q"), project("k"), project("v")
    queries, keys = norm(q, "q_norm", arch.qk_norm), norm(k, "k_norm", arch.qk_norm)
    swapped = (
        (project("q_swapped"), project("k_swapped")) if "q_swapped" in w else (swap_halves(queries), swap_halves(keys))
    )
    z, cache = attention(queries, keys, v, *swapped)
    attn_out = jnp.einsum("bsnh,nhd->bsd", z, w["o"]) + bias("o")
    attn_out = norm(attn_out, "attn_post_norm", arch.post_norms)
    resid_mid = x + attn_out
    normed = norm(resid_mid, "mlp_norm")
    gate = jnp.einsum("bsd,df->bsf", normed, w["gate"]) + bias("gate")
    up = placement.apart(jnp.einsum("bsd,df->bsf", normed, w["up"]) + bias("up"))
    mlp_act = ACTIVATIONS[arch.activation](gate) * up
    mlp_out = jnp.einsum("bsf,fd->bsd", mlp_act, w["down"]) + bias("down")
    mlp_out = norm(mlp_out, "mlp_post_norm", arch.post_norms)
    resid_post = resid_mid + mlp_out
    heads = {name: value.reshape(*value.shape[:2], -1) for name, value in (("q", q), ("k", k), ("v", v), ("z", z))}
    sites = {"attn_out": attn_out, "resid_mid": resid_mid, "mlp_act": mlp_act, "mlp_out": mlp_out}
    return (resid_post, cache), {"resid_pre": resid_pre, "resid_post": resid_post, **heads, **sites}


def rms_norm(arch: Arch, x: Float[Array, "*B D"], scale: Float[Array, " D"]) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + eps) in float32, then scaled in x's dtype; by 1 + scale in float32 where the family does."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + arch.norm_eps)
    if arch.norm_plus_one:
        return (normed * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    return normed.astype(x.dtype) * scale


def initializer(arch: Arch, name: str) -> Callable[..., Array]:
    """Random weights as Hugging Face draws them: normal(0.02), norms one (in effect), biases zero."""
    if name.endswith("norm"):
        return nn.initializers.zeros_init() if arch.norm_plus_one else nn.initializers.ones_init()
    return nn.initializers.zeros_init() if name.endswith("bias") else nn.initializers.normal(0.02)
