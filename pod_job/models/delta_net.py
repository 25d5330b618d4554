"""Gated DeltaNet: a linear recurrence in place of attention, computed chunk by chunk within segments.

Each value head has a state [H, P] that maps keys to values. A token lets it decay, and corrects what its key is mapped
to by a share `beta` of the difference to its value: S_t = exp(g_t) S_(t-1) + k_t (beta_t (v_t - exp(g_t) k_t S_(t-1)));
its query then reads q_t S_t. Gated Delta Networks (arXiv:2412.06464); the chunked form is that of transformers'
`torch_chunk_gated_delta_rule` (models/qwen3_next), with the state of another segment left out.

B rows, S positions, C positions of a chunk, D hidden, K key heads, R value heads of each, N = K R value heads, H key
size, P value size, W positions that a filter sees, X = W - 1, M positions after which a row's states are kept.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from pod_job.models.activations import activate
from pod_job.models.arch import Arch
from pod_job.models.cache import DeltaStates
from pod_job.models.placement import Placement
from pod_job.models.splice import Splice

CHUNK = 64
"""Positions whose products are matrices; the state goes from chunk to chunk."""
SMALLEST_NORM = 1e-6
"""Added to the squared length of a query or key before it is divided by it."""
NO_SEGMENT, PADDING = -1, -2
"""Segment of the state before the first chunk, and of the positions that fill up the last one."""
EXACT = jax.lax.Precision.HIGHEST
PROJECTIONS = ("q", "k", "v")


class Sequences(NamedTuple):
    """Sequences of one call.

    Attributes:
        ends: positions after which states are kept, [B x M, ...]; None: none are.
        before: states that the one position of every row goes on from, and is then part of; None: all begin here.
    """

    segment_ids: Int[Array, "B S"]
    ends: Int[Array, "B M"] | None = None
    before: DeltaStates | None = None


class Writes(NamedTuple):
    """Values that the rule takes of every token; `decay` is the logarithm of the factor, at most 0."""

    q: Float[Array, "B S K H"]
    k: Float[Array, "B S K H"]
    v: Float[Array, "B S N P"]
    decay: Float[Array, "B S N"]
    beta: Float[Array, "B S N"]


def delta_net(
    arch: Arch,
    placement: Placement,
    w: dict[str, Array],
    x: Float[Array, "B S D"],
    sequences: Sequences,
    splice: Splice,
) -> tuple[Float[Array, "B S D"], DeltaStates | None, dict[str, Array]]:
    """Returns what the layer adds to the residual stream, the states that are kept, and its sites.

    q, k and v are the projections before the filters, z the gated heads' outputs before the output projection.
    """
    made = placement.by_position(functools.partial(projected, placement, w), x)
    sites = {name: splice(name, made[name]) for name in PROJECTIONS}
    filtered, windows = {}, {}
    for name, value in sites.items():
        value, windows[name] = filtered_with_window(name, value, w[f"delta_{name}_conv"], sequences)
        filtered[name] = activate(arch, value)
    writes = Writes(**filtered, decay=made["decay"], beta=made["beta"])
    if sequences.before is not None:
        read, heads = next_token(writes, sequences.before.heads)
    else:
        length = placement.computed(x.shape[1])
        read, heads = rule_on(placement)(writes, sequences.segment_ids, sequences.ends, length)

    def output(parts: tuple[Float[Array, "B S N P"], Float[Array, "B S D"]]) -> tuple[Array, Array]:
        read, x = parts
        gate = placement.product("bsd,dnp->bsnp", x, w["delta_gate"])
        z = splice("z", gated_norm(arch, w["delta_norm"], read, gate))
        return placement.product("bsnp,npd->bsd", z, w["delta_o"]), z

    out, sites["z"] = placement.by_position(output, (read, x))
    return out, None if heads is None else DeltaStates(heads, **windows), sites


def projected(placement: Placement, w: dict[str, Array], x: Float[Array, "B S D"]) -> dict[str, Array]:
    """Returns q, k and v before the filters, and decay and beta as the rule takes them."""
    made = {name: placement.product("bsd,dnh->bsnh", x, w[f"delta_{name}"]) for name in PROJECTIONS}
    beta, step = (placement.product("bsd,dn->bsn", x, w[f"delta_{name}"]) for name in ("beta", "decay"))
    beta = jax.nn.sigmoid(beta.astype(jnp.float32)).astype(x.dtype)
    step = jax.nn.softplus(step.astype(jnp.float32) + w["delta_step_bias"].astype(jnp.float32))
    return made | {"decay": -jnp.exp(w["delta_rate"].astype(jnp.float32)) * step, "beta": beta}


def filtered_with_window(
    name: str, x: Float[Array, "B S N H"], filters: Float[Array, "W N H"], sequences: Sequences
) -> tuple[Float[Array, "B S N H"], Float[Array, "_ N X H"] | None]:
    """Returns one projection after its filter, and the latest positions of it that go with the states that are kept."""
    segment_ids, ends, before = sequences
    if before is not None:
        seen = jnp.append(jnp.moveaxis(getattr(before, name), 1, 2), x, axis=1)
        return filter_latest(seen, filters), jnp.moveaxis(seen[:, 1:], 2, 1)
    window = None if ends is None else windows_at(x, segment_ids, ends, len(filters) - 1)
    return convolve(x, filters, segment_ids), window


def rule_on(placement: Placement) -> Callable[..., tuple[Float[Array, "B S N P"], Float[Array, "..."] | None]]:
    """Returns `delta_rule` on each device's own rows and heads."""
    if placement.mesh is None:
        return delta_rule
    # The partitioner would gather all rows for the triangular systems.
    rows, heads = PartitionSpec(placement.rows), PartitionSpec(placement.rows, None, placement.delta_heads)
    states = PartitionSpec(placement.rows, placement.delta_heads)
    return jax.shard_map(
        delta_rule,
        mesh=placement.mesh,
        in_specs=(Writes(*[heads] * 5), rows, rows, PartitionSpec()),  # type: ignore[arg-type]
        out_specs=(heads, states),
        check_vma=False,
    )


def filter_latest(seen: Float[Array, "B W N H"], filters: Float[Array, "W N H"]) -> Float[Array, "B 1 N H"]:
    """Returns each channel's filter over the W latest positions, as `convolve` does."""
    total = jnp.sum(seen.astype(jnp.float32) * filters.astype(jnp.float32), axis=1, keepdims=True)
    return total.astype(seen.dtype)


def windows_at(
    x: Float[Array, "B S N H"], segment_ids: Int[Array, "B S"], ends: Int[Array, "B M"], X: int
) -> Float[Array, "B*M N X H"]:
    """Returns the X latest positions of each end's segment, the end last; zeros before the segment."""
    at = ends[..., None] - jnp.arange(X - 1, -1, -1)
    own = jnp.take_along_axis(segment_ids, ends, axis=1)[..., None]
    flat = jnp.maximum(at, 0).reshape(len(x), -1)
    seen = (at >= 0) & (jnp.take_along_axis(segment_ids, flat, axis=1).reshape(at.shape) == own)
    values = jnp.take_along_axis(x, flat[..., None, None], axis=1).reshape(*at.shape, *x.shape[2:])
    return jnp.moveaxis(jnp.where(seen[..., None, None], values, 0).reshape(-1, X, *x.shape[2:]), 2, 1)


def convolve(
    x: Float[Array, "B S N H"], filters: Float[Array, "W N H"], segment_ids: Int[Array, "B S"]
) -> Float[Array, "B S N H"]:
    """Returns each channel's filter over the last W positions of the same segment, the position itself last."""
    S, W = x.shape[1], len(filters)
    total = jnp.zeros(x.shape, jnp.float32)
    for back in range(min(W, S)):
        earlier = jnp.pad(x, [(0, 0), (back, 0), (0, 0), (0, 0)])[:, :S]
        of = jnp.pad(segment_ids, [(0, 0), (back, 0)], constant_values=NO_SEGMENT)[:, :S]
        seen = jnp.where((of == segment_ids)[..., None, None], earlier, 0).astype(jnp.float32)
        total = total + seen * filters[W - 1 - back].astype(jnp.float32)
    return total.astype(x.dtype)


def gated_norm(
    arch: Arch, scale: Float[Array, " P"], x: Float[Array, "B S N P"], gate: Float[Array, "B S N P"]
) -> Float[Array, "B S N P"]:
    """Returns the RMSNorm of each head's output, times the SiLU of its gate."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + arch.norm_eps)
    scaled = normed.astype(x.dtype) * scale
    return (scaled.astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))).astype(x.dtype)


def delta_rule(
    writes: Writes,
    segment_ids: Int[Array, "B S"],
    ends: Int[Array, "B M"] | None = None,
    length: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "B S N P"], Float[Array, "B*M K R H P"] | None]:
    """Returns what every query reads of its head's state, and the states after the positions `ends`.

    A state begins with zeros in every segment, whose positions lie side by side, and is in float32.

    Args:
        length: positions that are computed, at least; None: all. Queries past them may read zeros.
    """
    q, k, v, decay, beta = writes
    B, S, K, H = q.shape
    N, P = v.shape[2:]
    C = min(CHUNK, S)

    def chunks(x: Array, fill: int = 0) -> Array:
        x = jnp.pad(x, [(0, 0), (0, -S % C), *[(0, 0)] * (x.ndim - 2)], constant_values=fill)
        return jnp.moveaxis(x.reshape(B, -1, C, *x.shape[2:]), 1, 0)

    of_heads = [x.astype(jnp.float32).reshape(B, S, K, N // K, *x.shape[3:]) for x in (v, decay, beta)]
    parts = (chunks(unit(q) * H**-0.5), chunks(unit(k)), *map(chunks, of_heads), chunks(segment_ids, PADDING))
    state = jnp.zeros((B, K, N // K, H, P), jnp.float32)
    kept = None if ends is None else jnp.zeros((B, ends.shape[1], *state.shape[1:]), jnp.float32)
    start = ChunkCarry(state, jnp.full(B, NO_SEGMENT, segment_ids.dtype), kept)

    def add(i: Int[Array, ""] | int, made: tuple[ChunkCarry, Array]) -> tuple[ChunkCarry, Array]:
        carry, out = made
        carry, read = run_chunk(ends, carry, C * i, tuple(part[i] for part in parts))
        return carry, jax.lax.dynamic_update_index_in_dim(out, read, i, 0)

    chunk_count = -(-(S if length is None else length) // C)
    last, out = jax.lax.fori_loop(0, chunk_count, add, (start, jnp.zeros_like(parts[2])))
    out = jnp.moveaxis(out, 0, 1).reshape(B, -1, N, P)[:, :S].astype(q.dtype)
    return out, None if last.kept is None else last.kept.reshape(-1, *state.shape[1:])


def next_token(
    writes: Writes, state: Float[Array, "B K R H P"]
) -> tuple[Float[Array, "B 1 N P"], Float[Array, "B K R H P"]]:
    """Returns what the query of one token reads of its head's state, and the state, which the token changed before."""
    q, k, v, decay, beta = writes
    B, _, K, H = q.shape
    of_heads = [x[:, 0].astype(jnp.float32).reshape(B, K, -1, *x.shape[3:]) for x in (v, decay, beta)]
    (v, decay, beta), query, key = of_heads, unit(q[:, 0]) * H**-0.5, unit(k[:, 0])
    state = jnp.exp(decay)[..., None, None] * state
    new = beta[..., None] * (v - jnp.einsum("bkh,bkrhp->bkrp", key, state, precision=EXACT))
    state = state + key[:, :, None, :, None] * new[..., None, :]
    out = jnp.einsum("bkh,bkrhp->bkrp", query, state, precision=EXACT)
    return out.reshape(B, 1, -1, out.shape[-1]).astype(q.dtype), state


def unit(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Returns x divided by its length, in float32."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + SMALLEST_NORM)


class ChunkCarry(NamedTuple):
    """Values that go from chunk to chunk: the state, the segment that it is of, and the states kept so far."""

    state: Float[Array, "B K R H P"]
    segment: Int[Array, " B"]
    kept: Float[Array, "B M K R H P"] | None


def run_chunk(
    ends: Int[Array, "B M"] | None, carry: ChunkCarry, first: Int[Array, ""] | int, part: tuple[Array, ...]
) -> tuple[ChunkCarry, Float[Array, "B C K R P"]]:
    """Returns what goes on after a chunk, given its first position and inputs, and what the chunk's queries read."""
    (state, before, kept), (q, k, v, decay, beta, segments) = carry, part
    C, P = v.shape[1], v.shape[-1]
    v, decay, beta = jnp.moveaxis(v, 1, 3), jnp.moveaxis(decay, 1, 3), jnp.moveaxis(beta, 1, 3)  # [B K R C ...]
    sees = jnp.tril(segments[:, :, None] == segments[:, None, :])
    # Summed within the segment alone, so that no bit of it depends on another.
    total = jnp.einsum("bcd,bkrd->bkrc", sees.astype(jnp.float32), decay, precision=EXACT)
    between = jnp.exp(jnp.where(sees[:, None, None], total[..., :, None] - total[..., None, :], -jnp.inf))
    reads = jnp.where((segments == before[:, None])[:, None, None], jnp.exp(total), 0.0)
    stays = jnp.where((segments == segments[:, -1:])[:, None, None], jnp.exp(total[..., -1:] - total), 0.0)

    # A token's correction depends on those before it in its chunk: a triangular system with a diagonal of ones.
    products = jnp.einsum("bckh,bdkh->bkcd", k, k, precision=EXACT)[:, :, None]
    keys = (beta * reads)[..., None] * jnp.moveaxis(k, 1, 2)[:, :, None]
    inverse = unit_lower_inverse(jnp.tril(beta[..., None] * products * between, -1))
    right = jnp.concatenate([beta[..., None] * v, keys], axis=-1)
    solved = jnp.einsum("bkrcd,bkrdp->bkrcp", inverse, right, precision=EXACT)
    new = solved[..., :P] - jnp.einsum("bkrch,bkrhp->bkrcp", solved[..., P:], state, precision=EXACT)
    scores = jnp.einsum("bckh,bdkh->bkcd", q, k, precision=EXACT)[:, :, None] * between
    out = reads[..., None] * jnp.einsum("bckh,bkrhp->bkrcp", q, state, precision=EXACT)
    out = out + jnp.einsum("bkrcd,bkrdp->bkrcp", scores, new, precision=EXACT)
    if kept is not None:
        assert ends is not None
        at = ends - first
        here = (at >= 0) & (at < C)

        def with_ends(kept: Float[Array, "B M K R H P"]) -> Float[Array, "B M K R H P"]:
            after = states_after(jnp.clip(at, 0, C - 1), state, k, new, Shares(reads, between))
            return jnp.where(here[..., None, None, None, None], after, kept)

        kept = jax.lax.cond(jnp.any(here), with_ends, lambda kept: kept, kept)
    written = jnp.einsum("bckh,bkrcp->bkrhp", k, stays[..., None] * new, precision=EXACT)
    state = reads[..., -1][..., None, None] * state + written
    return ChunkCarry(state, segments[:, -1], kept), jnp.moveaxis(out, 3, 1)


class Shares(NamedTuple):
    """Factors that decay leaves at each position of a chunk: of the state before it, and of each position's write."""

    of_state: Float[Array, "B K R C"]
    of_writes: Float[Array, "B K R C C"]


def states_after(
    at: Int[Array, "B M"],
    state: Float[Array, "B K R H P"],
    k: Float[Array, "B C K H"],
    new: Float[Array, "B K R C P"],
    shares: Shares,
) -> Float[Array, "B M K R H P"]:
    """Returns the states after some positions of a chunk, which began with `state` and wrote `new`."""
    own = jnp.take_along_axis(shares.of_state, at[:, None, None], axis=3)
    of_writes = jnp.take_along_axis(shares.of_writes, at[:, None, None, :, None], axis=3)
    written = jnp.einsum("bckh,bkrmc,bkrcp->bmkrhp", k, of_writes, new, precision=EXACT)
    return jnp.moveaxis(own, 3, 1)[..., None, None] * state[:, None] + written


def unit_lower_inverse(below: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """Returns the inverse of I + below, where `below` is zero on and above the diagonal.

    Pairs of inverted blocks on the diagonal make one of twice their size. jax's `triangular_solve` in a loop leaves two
    devices of a CPU waiting for each other forever (jaxlib 0.10.2, on two cores).
    """
    C = below.shape[-1]
    size = 1 << (C - 1).bit_length()
    whole = jnp.pad(below, [*[(0, 0)] * (below.ndim - 2), (0, size - C), (0, size - C)])
    inverse = jnp.ones((*below.shape[:-2], size, 1, 1), below.dtype)
    for half in (1 << i for i in range((C - 1).bit_length())):
        count = size // (2 * half)
        blocks = whole.reshape(*below.shape[:-2], count, 2 * half, count, 2 * half)
        blocks = jnp.moveaxis(jnp.diagonal(blocks, axis1=-4, axis2=-2), -1, -3)[..., half:, :half]
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        left = -jnp.einsum("...ij,...jk,...kl->...il", second, blocks, first, precision=EXACT)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([upper, jnp.concatenate([left, second], axis=-1)], axis=-2)
    return inverse[..., 0, :C, :C]
