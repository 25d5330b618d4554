"""Gated DeltaNet: a linear recurrence in place of attention, computed chunk by chunk within segments.

Each value head has a state [H, P] that maps keys to values. A token lets it decay, and corrects what its key is mapped
to by a share `beta` of the difference to its value: S_t = exp(g_t) S_(t-1) + k_t (beta_t (v_t - exp(g_t) k_t S_(t-1)));
its query then reads q_t S_t. Gated Delta Networks (arXiv:2412.06464); the chunked form is that of transformers'
`torch_chunk_gated_delta_rule` (models/qwen3_next), with the state of another segment left out.

B rows, S positions, C positions of a chunk, D hidden, K key heads, R value heads of each, N = K R value heads, H key
size, P value size, W positions that a filter sees.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from pod_job.models.activations import activate
from pod_job.models.arch import Arch
from pod_job.models.placement import Placement
from pod_job.models.splice import Splice

CHUNK = 64
"""Positions whose products are matrices; the state goes from chunk to chunk."""
SMALLEST_NORM = 1e-6
"""Added to the squared length of a query or key before it is divided by it."""
NO_SEGMENT, PADDING = -1, -2
"""Segment of the state before the first chunk, and of the positions that fill up the last one."""
EXACT = jax.lax.Precision.HIGHEST


def delta_net(
    arch: Arch,
    placement: Placement,
    w: dict[str, Array],
    x: Float[Array, "B S D"],
    segment_ids: Int[Array, "B S"],
    splice: Splice,
) -> tuple[Float[Array, "B S D"], dict[str, Array]]:
    """Returns what the layer adds to the residual stream, and its sites.

    q, k and v are the projections before the filters, z the gated heads' outputs before the output projection.
    """
    sites = {name: splice(name, jnp.einsum("bsd,dnh->bsnh", x, w[f"delta_{name}"])) for name in ("q", "k", "v")}
    q, k, v = (activate(arch, convolve(sites[name], w[f"delta_{name}_conv"], segment_ids)) for name in ("q", "k", "v"))
    beta, step = (jnp.einsum("bsd,dn->bsn", x, w[f"delta_{name}"]) for name in ("beta", "decay"))
    beta = jax.nn.sigmoid(beta.astype(jnp.float32)).astype(x.dtype)
    step = jax.nn.softplus(step.astype(jnp.float32) + w["delta_step_bias"].astype(jnp.float32))
    decay = -jnp.exp(w["delta_rate"].astype(jnp.float32)) * step
    rule = delta_rule
    if placement.mesh is not None:  # the partitioner would gather all rows for the triangular systems
        rows, heads = PartitionSpec(placement.rows), PartitionSpec(placement.rows, None, placement.delta_heads)
        specs = (*[heads] * 5, rows)
        rule = jax.shard_map(rule, mesh=placement.mesh, in_specs=specs, out_specs=heads, check_vma=False)
    z = rule(q, k, v, decay, beta, segment_ids)
    z = gated_norm(arch, w["delta_norm"], z, jnp.einsum("bsd,dnp->bsnp", x, w["delta_gate"]))
    sites["z"] = splice("z", z)
    return jnp.einsum("bsnp,npd->bsd", sites["z"], w["delta_o"]), sites


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
    q: Float[Array, "B S K H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S N P"],
    decay: Float[Array, "B S N"],
    beta: Float[Array, "B S N"],
    segment_ids: Int[Array, "B S"],
) -> Float[Array, "B S N P"]:
    """Returns what every query reads of its head's state, which begins with zeros in every segment; in float32 inside.

    `decay` is the logarithm of the factor, at most 0. Positions of a segment lie side by side.
    """
    B, S, K, H = q.shape
    N, P = v.shape[2:]
    C = min(CHUNK, S)

    def chunks(x: Array, fill: int = 0) -> Array:
        x = jnp.pad(x, [(0, 0), (0, -S % C), *[(0, 0)] * (x.ndim - 2)], constant_values=fill)
        return jnp.moveaxis(x.reshape(B, -1, C, *x.shape[2:]), 1, 0)

    of_heads = [x.astype(jnp.float32).reshape(B, S, K, N // K, *x.shape[3:]) for x in (v, decay, beta)]
    parts = (chunks(unit(q) * H**-0.5), chunks(unit(k)), *map(chunks, of_heads), chunks(segment_ids, PADDING))
    start = jnp.zeros((B, K, N // K, H, P), jnp.float32), jnp.full(B, NO_SEGMENT, segment_ids.dtype)
    _, out = jax.lax.scan(run_chunk, start, parts)
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, N, P)[:, :S].astype(q.dtype)


def unit(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Returns x divided by its length, in float32."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + SMALLEST_NORM)


def run_chunk(
    carry: tuple[Float[Array, "B K R H P"], Int[Array, " B"]], part: tuple[Array, ...]
) -> tuple[tuple[Float[Array, "B K R H P"], Int[Array, " B"]], Float[Array, "B C K R P"]]:
    """Returns the state after a chunk with the segment that it is of, and what the chunk's queries read."""
    (state, before), (q, k, v, decay, beta, segments) = carry, part
    P = v.shape[-1]
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
    written = jnp.einsum("bckh,bkrcp->bkrhp", k, stays[..., None] * new, precision=EXACT)
    state = reads[..., -1][..., None, None] * state + written
    return (state, segments[:, -1]), jnp.moveaxis(out, 3, 1)


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
