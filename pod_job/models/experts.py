"""Mixture of experts: a router chooses a few of many mlps for each token; what they give is added up by shares.

Tokens are sorted by expert, so that each expert multiplies only those that chose it: in one kernel on a TPU whose core
has room for it, by ragged matrix products on other TPUs and GPUs, block by block on a CPU. Where experts are split
among devices, each device computes its own for all tokens of its rows, and the results are added over the mesh axis.

B rows, S positions, D hidden, E experts (of a device), K experts of a token, F size of an expert, T tokens, R = K T
(expert, token) pairs, Q pairs of a block.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from pod_job.models.activations import activate, gated
from pod_job.models.arch import Arch
from pod_job.models.expert_kernel import StreamNorm, kernel_fits, mixture_by_kernel
from pod_job.models.placement import Placement
from pod_job.models.splice import Splice, unchanged

EXPERT_WEIGHTS = ("gate", "gate_bias", "up", "up_bias", "down", "down_bias")
LARGEST_BLOCK, SMALLEST_BLOCK = 128, 8
"""Pairs of a block on a CPU: the more an expert has, the fewer times its weights are read."""

Weights = dict[str, Float[Array, "E ..."]]
Product = Callable[[Float[Array, "Q i"], str], Float[Array, "Q o"]]
"""Product of rows with the expert's weight of this name, bias included."""


class Routing(NamedTuple):
    """Choice of experts for each token, by descending share; `logits` of all experts are in float32."""

    logits: Float[Array, "B S E"]
    ids: Int[Array, "B S K"]
    shares: Float[Array, "B S K"]


def route(
    arch: Arch, w: dict[str, Array], x: Float[Array, "B S D"], splice: Splice = unchanged
) -> tuple[Routing, dict[str, Array]]:
    """Returns each token's experts, and the router's sites."""
    routing = choose(arch, splice("router_logits", router_logits(w, x)), splice)
    return routing, {"router_logits": routing.logits, "expert_ids": routing.ids.astype(jnp.float32)}


def mixture(
    arch: Arch, placement: Placement, w: dict[str, Array], x: Float[Array, "B S D"], routing: Routing
) -> Float[Array, "B S D"]:
    """Returns the shares' sum of the chosen experts' outputs."""
    axis = placement.experts

    def of_device(x: Array, ids: Array, shares: Array, weights: Weights) -> Array:
        first = 0 if axis is None else jax.lax.axis_index(axis) * len(weights["up"])
        tokens = x.reshape(-1, x.shape[-1])
        chosen, shares = (of_token.reshape(len(tokens), -1) for of_token in (ids - first, shares))
        own = (chosen >= 0) & (chosen < len(weights["up"]))
        chosen = jnp.where(own, chosen, len(weights["up"]))
        if kernel_fits(arch, placement.kernel_kind, len(tokens), tokens.dtype):
            out = mixture_by_kernel(weights, tokens, chosen, shares)
        else:
            out = sum_of_pairs(arch, placement, weights, tokens, chosen.T, shares.T)
        out = out.reshape(x.shape)
        return out if axis is None else jax.lax.psum(out, axis)

    if placement.mesh is not None:  # the partitioner would gather all rows to sort them
        rows, experts = PartitionSpec(placement.rows), PartitionSpec(axis)
        of_device = jax.shard_map(
            of_device, mesh=placement.mesh, in_specs=(rows, rows, rows, experts), out_specs=rows, check_vma=False
        )
    out = of_device(x, routing.ids, routing.shares, expert_weights(w))
    return out + shared_expert(arch, w, x) if arch.shared_mlp else out


def expert_weights(w: dict[str, Array]) -> Weights:
    return {name: w[name] for name in EXPERT_WEIGHTS if name in w}


def adds_to_stream(arch: Arch, placement: Placement, stream: Float[Array, "B S D"]) -> bool:
    """Returns whether `added_by_kernel` takes the model: a norm before the experts, and nothing else beside them."""
    if placement.mesh is None or placement.experts is not None:
        return False
    T = stream.shape[0] * stream.shape[1] // math.prod(placement.mesh.shape[axis] for axis in placement.rows)
    plain = arch.pre_norms and not (arch.layer_norm or arch.post_norms or arch.parallel or arch.shared_mlp)
    return plain and arch.residual_scale == 1 and kernel_fits(arch, placement.kernel_kind, T, stream.dtype)


def added_by_kernel(
    arch: Arch, placement: Placement, w: dict[str, Array], stream: Float[Array, "B S D"], routing: Routing
) -> Float[Array, "B S D"]:
    """Returns the residual stream with the experts' outputs, which read it through their norm."""

    def of_device(stream: Array, ids: Array, shares: Array, weights: Weights, scale: Array) -> Array:
        tokens = stream.reshape(-1, stream.shape[-1])
        chosen, shares = (of_token.reshape(len(tokens), -1) for of_token in (ids, shares))
        out = mixture_by_kernel(weights, tokens, chosen, shares, StreamNorm(scale, arch.norm_eps))
        return out.reshape(stream.shape)

    rows, whole = PartitionSpec(placement.rows), PartitionSpec()
    on_devices = jax.shard_map(
        of_device,
        mesh=placement.mesh,
        in_specs=(rows, rows, rows, whole, whole),
        out_specs=rows,
        check_vma=False,
    )
    scale = w["mlp_norm"].astype(jnp.float32) + arch.norm_plus_one
    return on_devices(stream, routing.ids, routing.shares, expert_weights(w), scale)


def sum_of_pairs(
    arch: Arch,
    placement: Placement,
    weights: Weights,
    tokens: Float[Array, "T D"],
    chosen: Int[Array, "K T"],
    shares: Float[Array, "K T"],
) -> Float[Array, "T D"]:
    """Returns the shares' sum of the experts' outputs, each pair computed first; E in `chosen` is no expert."""
    run = by_ragged_products if placement.platform in ("tpu", "gpu") else by_blocks
    done, places = run(arch, weights, tokens, chosen.reshape(-1))
    out = jnp.zeros(tokens.shape, jnp.float32)
    # Choice by choice, whole rows at a time: a sum over the K of each token would move parts of a TPU's registers.
    for pair, expert, share in zip(done[places].reshape(len(chosen), *tokens.shape), chosen, shares, strict=True):
        # Pairs of other devices' experts hold whatever was in memory.
        out = out + jnp.where((expert < len(weights["up"]))[:, None], pair.astype(jnp.float32), 0) * share[:, None]
    # As a value of its own: in the shape of rows, the compiler would write every choice out in float32.
    return placement.isolate(out.astype(tokens.dtype))


def shared_expert(arch: Arch, w: dict[str, Array], x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """Returns the output of the expert of every token, times the sigmoid of its own router."""
    gate, up = (jnp.einsum("bsd,df->bsf", x, w[name]) for name in ("shared_gate", "shared_up"))
    share = jax.nn.sigmoid((x @ w["shared_router"]).astype(jnp.float32)).astype(x.dtype)
    return share * jnp.einsum("bsf,fd->bsd", gated(arch, gate, up), w["shared_down"])


def router_logits(w: dict[str, Array], x: Float[Array, "B S D"]) -> Float[Array, "B S E"]:
    logits = jnp.einsum("bsd,de->bse", x, w["router"], preferred_element_type=jnp.float32)
    return logits + w.get("router_bias", jnp.zeros(())).astype(jnp.float32)


def choose(arch: Arch, logits: Float[Array, "B S E"], splice: Splice) -> Routing:
    """Returns the experts with the largest logits, and the softmax of logits: over the chosen ones, or over all."""
    ids = jax.lax.top_k(logits, arch.experts_per_token)[1]
    ids = splice("expert_ids", ids.astype(jnp.float32)).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, ids, axis=-1)
    if arch.shares_of_chosen:
        return Routing(logits, ids, jax.nn.softmax(chosen, axis=-1))
    return Routing(logits, ids, jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True)))


def expert_mlp(arch: Arch, x: Float[Array, "Q D"], product: Product) -> Float[Array, "Q D"]:
    """Returns the output of each row's expert."""
    act = gated(arch, product(x, "gate"), product(x, "up")) if arch.gated else activate(arch, product(x, "up"))
    return product(act, "down")


def by_ragged_products(
    arch: Arch, weights: Weights, tokens: Float[Array, "T D"], expert: Int[Array, " R"]
) -> tuple[Float[Array, "places D"], Int[Array, " R"]]:
    """Returns outputs, and the place of each pair's among them; of pairs with expert E, of another device, any."""
    E = len(weights["up"])
    order = jnp.argsort(expert)
    sizes = jnp.sum(expert == jnp.arange(E)[:, None], axis=1, dtype=jnp.int32)
    of_row = jnp.minimum(expert[order], E - 1)

    def product(x: Float[Array, "R i"], name: str) -> Float[Array, "R o"]:
        y = jax.lax.ragged_dot(x, weights[name], sizes, preferred_element_type=x.dtype)
        return y + weights[f"{name}_bias"][of_row] if f"{name}_bias" in weights else y

    return expert_mlp(arch, tokens[order % len(tokens)], product), jnp.argsort(order)


def by_blocks(
    arch: Arch, weights: Weights, tokens: Float[Array, "T D"], expert: Int[Array, " R"]
) -> tuple[Float[Array, "places D"], Int[Array, " R"]]:
    """Computes `by_ragged_products` block by block of pairs with one expert; an expert's last block may have gaps."""
    E, R = len(weights["up"]), len(expert)
    Q = min(max(R // E, SMALLEST_BLOCK), LARGEST_BLOCK)
    of_expert = expert == jnp.arange(E)[:, None]
    sizes = jnp.sum(of_expert, axis=1)
    blocks = -(-sizes // Q)
    ends = jnp.cumsum(blocks)
    rank = jnp.take_along_axis(jnp.cumsum(of_expert, axis=1) - 1, jnp.minimum(expert, E - 1)[None], axis=0)[0]
    place = jnp.where(expert < E, (ends - blocks)[jnp.minimum(expert, E - 1)] * Q + rank, -1)
    most = -(-R // Q) + min(E, R)  # blocks, whatever the choice
    pair_at = jnp.zeros(most * Q, jnp.int32).at[place].set(jnp.arange(R), mode="drop", wrap_negative_indices=False)

    def run_block(block: Int[Array, ""] | int, out: Float[Array, "places D"]) -> Float[Array, "places D"]:
        at = jnp.searchsorted(ends, block, side="right")
        pairs = jax.lax.dynamic_slice_in_dim(pair_at, block * Q, Q)

        def product(x: Float[Array, "Q i"], name: str) -> Float[Array, "Q o"]:
            y = x @ weights[name][at]
            return y + weights[f"{name}_bias"][at] if f"{name}_bias" in weights else y

        done = expert_mlp(arch, tokens[pairs % len(tokens)], product)
        return jax.lax.dynamic_update_slice_in_dim(out, done, block * Q, 0)

    out = jax.lax.fori_loop(0, ends[-1], run_block, jnp.zeros((most * Q, tokens.shape[1]), tokens.dtype))
    return out, place
