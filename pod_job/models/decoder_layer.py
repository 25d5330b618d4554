"""One decoder layer: norm, attention, norm, mlp, each added to the residual stream; `Arch` says what differs.

B rows, S positions, D hidden, N query heads, K key/value heads, H head size, F mlp.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pod_job.models.activations import activate, gated
from pod_job.models.arch import Arch
from pod_job.models.cache import Kept
from pod_job.models.experts import added_by_kernel, adds_to_stream, mixture, route
from pod_job.models.joined import JOINED, PROJECTIONS, split_heads
from pod_job.models.layer_attention import Projections, swap_halves
from pod_job.models.placement import Placement
from pod_job.models.selected_positions import at_positions
from pod_job.models.splice import Splice, unchanged

Attention = Callable[[Projections], tuple[Float[Array, "B _ N H"], Kept | None]]
"""A layer's attention: the heads' outputs, and what is kept of sequences, the layer's keys and values included."""


class LayerInput(NamedTuple):
    """Values of all positions, and the positions that a layer or a part of it gives its output of; None: all."""

    x: Float[Array, "B S D"]
    select: Int[Array, "B M"] | None = None


Mixer = Callable[[LayerInput, Splice], tuple[Float[Array, "B _ D"], Kept | None, dict[str, Float[Array, "B _ _ _"]]]]
"""Part of a layer that looks at other positions: its output, what is kept of sequences, and its sites."""


def decoder_layer(
    arch: Arch,
    placement: Placement,
    w: dict[str, Array],
    inputs: LayerInput,
    mixer: Mixer,
    splice: Splice = unchanged,
) -> tuple[tuple[Float[Array, "B _ D"], Kept | None], dict[str, Array]]:
    """Returns the residual stream after the layer, what is kept of sequences, and every site by name.

    Sites nobody uses cost nothing, and all are of the selected positions. Of a mixture of experts, the output is left
    out where `splice` is `unchanged` and a kernel adds it to the residual stream.
    """
    x = splice("resid_pre", inputs.x)
    attn_in = splice("attn_in", norm(arch, w, "attn_norm", x) if arch.pre_norms else x)
    mixed, kept, head_sites = mixer(inputs._replace(x=attn_in), splice)
    x, attn_in = at_positions(x, inputs.select), at_positions(attn_in, inputs.select)
    attn_out_pre_norm = splice("attn_out_pre_norm", mixed)
    attn_out = splice("attn_out", added(arch, w, "attn_post_norm", attn_out_pre_norm))
    resid_mid = splice("resid_mid", x + attn_out)
    mlp_reads = x if arch.parallel else resid_mid
    mlp_in = splice("mlp_in", norm(arch, w, "mlp_norm", mlp_reads) if arch.pre_norms else mlp_reads)
    resid_post, mlp_sites = with_mlp(arch, placement, w, resid_mid, mlp_in, splice)
    heads = {name: value.reshape(*value.shape[:2], -1) for name, value in head_sites.items()}
    sites = {
        "resid_pre": x,
        "attn_in": attn_in,
        "attn_out_pre_norm": attn_out_pre_norm,
        "attn_out": attn_out,
        "resid_mid": resid_mid,
        "mlp_in": mlp_in,
        **mlp_sites,
        "resid_post": resid_post,
    }
    return (resid_post, kept), heads | sites


def with_mlp(
    arch: Arch,
    placement: Placement,
    w: dict[str, Array],
    stream: Float[Array, "B S D"],
    mlp_in: Float[Array, "B S D"],
    splice: Splice,
) -> tuple[Float[Array, "B S D"], dict[str, Array]]:
    """Returns the residual stream with the output of the layer's mlp or experts, and the sites in between."""
    if arch.experts:
        routing, sites = route(arch, w, mlp_in, splice)
        if splice is unchanged and adds_to_stream(arch, placement, stream):
            return added_by_kernel(arch, placement, w, stream, routing), sites
        out = mixture(arch, placement, w, mlp_in, routing)
    else:
        out, sites = mlp(arch, placement, w, mlp_in, splice)
    out_pre_norm = splice("mlp_out_pre_norm", out)
    out = splice("mlp_out", added(arch, w, "mlp_post_norm", out_pre_norm))
    sites |= {"mlp_out_pre_norm": out_pre_norm, "mlp_out": out}
    return splice("resid_post", stream + out), sites


def attention_mixer(
    arch: Arch,
    placement: Placement,
    w: dict[str, Array],
    attend: Attention,
    inputs: LayerInput,
    splice: Splice,
) -> tuple[Float[Array, "B _ D"], Kept | None, dict[str, Float[Array, "B _ _ H"]]]:
    """Returns the output of the heads' output projection, what is kept of sequences, and the heads' sites."""
    normed, select = inputs
    q, k, v, projections = project(arch, placement, w, inputs, splice)
    z, kept = attend(projections)
    if select is not None:
        placement, normed = placement.of_some(), at_positions(normed, select)
        k, v = (at_positions(x, select) for x in (k, v))
    if arch.attn_gate:
        gate = jnp.einsum("bsd,dnh->bsnh", normed, w["attn_gate"]) + w.get("attn_gate_bias", 0.0)
        z = z * jax.nn.sigmoid(gate.astype(jnp.float32)).astype(z.dtype)
    z = splice("z", z)
    out = placement.by_position(lambda z: placement.product("bsnh,nhd->bsd", z, w["o"]), z) + w.get("o_bias", 0.0)
    return out, kept, {"q": q, "k": k, "v": v, "z": z}


def project(
    arch: Arch,
    placement: Placement,
    w: dict[str, Array],
    inputs: LayerInput,
    splice: Splice,
) -> tuple[Float[Array, "B _ N H"], Float[Array, "B S K H"], Float[Array, "B S K H"], Projections]:
    """Returns queries, keys and values before any norm of theirs, and what attention takes.

    Queries are of the selected positions.
    """
    normed, select = inputs

    def projected(names: Sequence[str]) -> Callable[[Array], dict[str, Array]]:
        def product(x: Float[Array, "B S D"], name: str) -> Float[Array, "B S _ H"]:
            return placement.product("bsd,dnh->bsnh", x, w[name]) + w.get(f"{name}_bias", 0.0)

        return lambda x: {name: product(x, name) for name in names}

    if JOINED in w:
        all_heads = split_heads(arch, placement.by_position(projected([JOINED]), normed)[JOINED])
    else:
        names = [name for name in PROJECTIONS if name in w]
        of_queries = [name for name in names if select is not None and name.startswith("q")]
        all_heads = placement.by_position(projected([name for name in names if name not in of_queries]), normed)
        all_heads |= placement.of_some().by_position(projected(of_queries), at_positions(normed, select))
    q, k, v = (splice(name, all_heads[name]) for name in ("q", "k", "v"))
    queries, keys = q, k
    if arch.qk_norm:
        queries, keys = norm(arch, w, "q_norm", q), norm(arch, w, "k_norm", k)
    if "q_swapped" in all_heads:
        swapped = all_heads["q_swapped"], all_heads["k_swapped"]
    else:
        swapped = swap_halves(queries, arch.rotated), swap_halves(keys, arch.rotated)
    return q, k, v, Projections(queries, keys, v, *swapped, w.get("sinks"))


def added(arch: Arch, w: dict[str, Array], post_norm: str, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """Returns what goes into the residual stream, of what attention or mlp gives."""
    x = norm(arch, w, post_norm, x) if arch.post_norms else x
    return x if arch.residual_scale == 1 else (x.astype(jnp.float32) * arch.residual_scale).astype(x.dtype)


def mlp(
    arch: Arch, placement: Placement, w: dict[str, Array], normed: Float[Array, "B S D"], splice: Splice = unchanged
) -> tuple[Float[Array, "B S D"], dict[str, Array]]:
    """Returns the output of the down projection, and its input as the site it is.

    On a CPU the activation is computed in float32 and rounded once; in bfloat16, each of its steps would round.
    """

    def by_position(normed: Float[Array, "B S D"]) -> tuple[Float[Array, "B S D"], dict[str, Array]]:
        def projection(name: str) -> Float[Array, "B S F"]:
            return placement.wide_product("bsd,df->bsf", normed, w[name]) + w.get(f"{name}_bias", 0.0)

        if arch.gated:
            gate, up = (placement.isolate(projection(name)) for name in ("gate", "up"))
            mlp_act = gated(arch, gate, up)
        else:
            mlp_act = activate(arch, projection("up"))
        mlp_act = splice("mlp_act", mlp_act.astype(normed.dtype))
        mlp_out = placement.product("bsf,fd->bsd", mlp_act, w["down"]) + w.get("down_bias", 0.0)
        return mlp_out, {"mlp_act": mlp_act}

    return placement.by_position(by_position, normed)


def norm(arch: Arch, w: Mapping[str, Array], name: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x normed over the dimensions of the norm's weight, in float32, times the weight in x's dtype.

    An RMSNorm is x / sqrt(mean(x^2) + eps); a LayerNorm subtracts the mean first, and adds a bias.
    """
    scale, wide = w[name], x.astype(jnp.float32)
    dims = tuple(range(-scale.ndim, 0))
    if arch.layer_norm:
        wide = wide - jnp.mean(wide, axis=dims, keepdims=True)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=dims, keepdims=True) + arch.norm_eps)
    if arch.layer_norm:
        return (normed * scale.astype(jnp.float32) + w[f"{name}_bias"].astype(jnp.float32)).astype(x.dtype)
    if arch.norm_plus_one or arch.norm_in_float32:
        return (normed * (scale.astype(jnp.float32) + arch.norm_plus_one)).astype(x.dtype)
    return normed.astype(x.dtype) * scale
