"""Causal grouped-query attention within segments: rotated queries, keys and values in, the heads' outputs out.

One interface: JAX's splash attention kernel where the program is lowered for TPU, cuDNN's flash attention on GPUs (in
neither does a score reach memory, nor is a key or value repeated), blocks for a mesh of CPUs, plain XLA elsewhere
and for shapes that a kernel does not take.

B rows, S positions, P positions before a row, N query heads, K key/value heads, H head size.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pod_job.models.attention_blocks import attend_blocks
from pod_job.models.attention_settings import AttentionSettings, Before, Heads, soft_cap
from pod_job.models.placement import Placement

LANES = 128  # of a TPU vector register: blocks of queries and keys are multiples of it
LARGEST_KERNEL_BLOCK = 512
# In longer rows a block's fixed work outweighs the masked pairs that a larger block computes (by the compiler's
# instructions for v5e: 8,192 positions 16% faster, 1,024 8% slower; with heads of 128 on v6e, and 512 keys at a time,
# 1,024 18% faster).
LONG_ROW, LARGEST_LONG_BLOCK = 2048, 1024
# The projections leave S innermost in memory, where a head narrower than LANES fills whole registers.
S_INNERMOST = splash.QKVLayout.SEQ_MINOR

Kernel = Callable[[Heads, Array, AttentionSettings], Array]
"""Attention for the rows and heads of one device: heads, segment ids and settings, as `attend` takes them."""


def attend(
    heads: Heads,
    segment_ids: Int[Array, "B S"],
    settings: AttentionSettings,
    placement: Placement,
) -> Float[Array, "B S N H"]:
    """Causal attention within segments, in float32; each key/value head serves N/K query heads, unrepeated.

    A query also sees as many of the keys before its row as `heads.before` says.

    Args:
        placement: the devices the program is lowered for.
    """
    kernel = None
    if placement.mesh is not None:
        kernel = kernel_for(placement.mesh.devices.flat[0], heads, settings.softcap)
    if placement.mesh is None or kernel is None:
        return attend_xla(heads, segment_ids, settings)
    # The partitioner cannot look into a kernel, nor split a loop: every device runs it on its own rows (and heads).
    of_heads = PartitionSpec(placement.rows, None, placement.heads)
    of_keys, of_rows = PartitionSpec(placement.rows, placement.heads), PartitionSpec(placement.rows)
    specs = Heads(
        of_heads,  # type: ignore[arg-type]
        of_heads,  # type: ignore[arg-type]
        of_heads,  # type: ignore[arg-type]
        None if heads.sinks is None else PartitionSpec(placement.heads),  # type: ignore[arg-type]
        None if heads.before is None else Before(of_keys, of_keys, of_rows),  # type: ignore[arg-type]
    )
    return jax.shard_map(
        lambda heads, segment_ids: kernel(heads, segment_ids, settings),
        mesh=placement.mesh,
        in_specs=(specs, of_rows),
        out_specs=of_heads,
        check_vma=False,
    )(heads, segment_ids)


def kernel_for(device: Any, heads: Heads, softcap: float | None) -> Kernel | None:
    """Returns the implementation for a mesh of such devices that takes such heads; None: plain XLA."""
    q = heads.q
    match device.platform:
        case "cpu":
            return attend_blocks
        case "tpu" if block_size(q.shape[1], None) is not None:
            return attend_splash
        case "gpu" if q.dtype.itemsize == 2 and softcap is None and heads.sinks is None:
            fits = q.shape[-1] <= largest_cudnn_head(device) and q.shape[-1] % 8 == 0
            return attend_cudnn if fits else None
    return None


def largest_cudnn_head(gpu: Any) -> int:
    """Returns the largest head size that cuDNN's flash attention takes on a GPU; 0: none (old ones, other makers)."""
    generation, _, _ = gpu.compute_capability.partition(".")  # "9.0"; AMD's are like "gfx942"
    if not generation.isdecimal() or int(generation) < 8:
        return 0
    return 256 if int(generation) >= 9 else 128


def attend_xla(
    heads: Heads,
    segment_ids: Int[Array, "B S"],
    settings: AttentionSettings,
) -> Float[Array, "B S N H"]:
    """Computes `attend` as matrix products and a softmax; scores [B, K, N/K, S, S] lie in memory in float32."""
    return attend_masked(*with_before(heads, segment_mask(segment_ids, settings.window)), settings)


def with_before(heads: Heads, mask: Bool[Array, "B Q S"]) -> tuple[Heads, Bool[Array, "B Q T"]]:
    """Returns heads and mask with the keys before the row, T in sum, as if they were in it."""
    if (before := heads.before) is None:
        return heads, mask
    P = before.k.shape[-1]
    seen = jnp.arange(P) >= P - before.behind[..., None]
    k, v = (
        jnp.concatenate([ahead.transpose(0, 3, 1, 2), own], axis=1)
        for ahead, own in ((before.k, heads.k), (before.v, heads.v))
    )
    return Heads(heads.q, k, v, heads.sinks), jnp.concatenate([seen, mask], axis=-1)


def attend_masked(heads: Heads, mask: Bool[Array, "B Q T"], settings: AttentionSettings) -> Float[Array, "B Q N H"]:
    """Attends from Q queries of each row to those of its T keys and values that the mask shows to each."""
    q, k, v, sinks, _ = heads
    B, Q, N, H = q.shape
    T, K = k.shape[1:3]
    grouped = q.reshape(B, Q, K, N // K, H)
    scores = settings.scale * jnp.einsum("bskgh,btkh->bkgst", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], soft_cap(scores, settings.softcap), jnp.finfo(jnp.float32).min)
    if sinks is not None:
        of_sinks = sinks.astype(jnp.float32).reshape(1, K, N // K, 1, 1)
        scores = jnp.concatenate([scores, jnp.broadcast_to(of_sinks, (B, K, N // K, Q, 1))], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., :T]
    return jnp.einsum("bkgst,btkh->bskgh", weights.astype(v.dtype), v).reshape(B, Q, N, H)


def segment_mask(segment_ids: Int[Array, "B S"], window: int | None = None) -> Bool[Array, "B S S"]:
    """Returns True where query position s may look at key position t: t <= s, s - t < window, in one segment."""
    position = jnp.arange(segment_ids.shape[1])
    back = position[:, None] - position[None, :]
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    return near & (segment_ids[:, :, None] == segment_ids[:, None, :])


def attend_splash(
    heads: Heads,
    segment_ids: Int[Array, "B S"],
    settings: AttentionSettings,
    *,
    interpret: bool = False,
) -> Float[Array, "B S N H"]:
    """Computes `attend` by the kernel's multi-query form, once per row and key/value head; S a multiple of LANES.

    `interpret` runs it without a TPU, for tests.
    """
    q, k, v, sinks, before = heads
    B, S, N, H = q.shape
    K = k.shape[2]
    mask = splash.CausalMask((S, S))
    if settings.window is not None:
        mask = splash.LocalMask((S, S), (settings.window - 1, 0), 0)

    def run(mask: Any, keys: tuple[Array, Array], segments: splash.SegmentIds, sinks: Array | None) -> Any:
        kernel = splash_kernel(mask, N // K, settings, residuals=before is not None, interpret=interpret)
        of_each_group = jax.vmap(kernel, in_axes=(0, 0, 0, None, None if sinks is None else 0))
        return jax.vmap(of_each_group, in_axes=(0, 0, 0, 0, None))(queries, *keys, segments, sinks)

    # The kernel knows no scale: the queries carry it.
    scaled = q if settings.scale == 1 else (q.astype(jnp.float32) * settings.scale).astype(q.dtype)
    queries = scaled.reshape(B, S, K, N // K, H).transpose(0, 2, 3, 1, 4)
    own = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    of_sinks = None if sinks is None else sinks.reshape(K, N // K)
    out = run(mask, own, splash.SegmentIds(segment_ids, segment_ids), of_sinks)
    if before is not None:
        P = before.k.shape[-1]
        used = jnp.arange(P) >= P - jnp.max(before.behind, axis=1, keepdims=True)
        # A query that sees nothing before its row is in a segment that no key is in.
        segments = splash.SegmentIds((before.behind > 0).astype(jnp.int32), jnp.where(used, 1, 2))
        ahead = before.k.swapaxes(2, 3), before.v.swapaxes(2, 3)
        out = merged(out, run(splash.FullMask((S, P)), ahead, segments, None))
    return cast(Array, out).transpose(0, 3, 1, 2, 4).reshape(B, S, N, H)


def splash_kernel(mask: Any, group: int, settings: AttentionSettings, *, residuals: bool, interpret: bool) -> Any:
    """Returns the kernel for `group` query heads of one key/value head; `residuals`: it gives log sums too."""
    queries, keys = mask.shape
    block = block_size(queries, settings.window, settings.heads_apart)
    assert block is not None
    of_keys = next(size for size in range(min(block, keys), 0, -LANES) if keys % size == 0)
    layout = splash.QKVLayout.HEAD_DIM_MINOR if settings.heads_apart else S_INNERMOST
    return splash.make_splash_mqa_single_device(
        splash.MultiHeadMask([mask] * group),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=of_keys,
            block_kv_compute=computed_keys(of_keys) if settings.heads_apart else of_keys,
            q_layout=layout,
            k_layout=layout,
            v_layout=layout,
        ),
        attn_logits_soft_cap=settings.softcap,
        save_residuals=residuals,
        interpret=interpret,
    )


def computed_keys(block: int) -> int:
    """Returns how many keys of a block the kernel computes at a time where heads lie apart."""
    return next(size for size in range(min(block, LARGEST_KERNEL_BLOCK), 0, -LANES) if block % size == 0)


def merged(own: Any, ahead: Any) -> Float[Array, "..."]:
    """Returns outputs of attention to all keys, of those to two parts with the logarithms of their weights' sums."""
    (out, (log_sum,)), (ahead_out, (ahead_log_sum,)) = own, ahead
    share = jax.nn.sigmoid(ahead_log_sum - log_sum)[..., None]
    mixed = out.astype(jnp.float32) * (1 - share) + ahead_out.astype(jnp.float32) * share
    return mixed.astype(out.dtype)


def attend_cudnn(
    heads: Heads,
    segment_ids: Int[Array, "B S"],
    settings: AttentionSettings,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B S N H"]:
    """Computes `attend` by cuDNN's flash attention in bfloat16 or float16, without softcap and sinks.

    The mask is [B, 1, S, S]. `implementation="xla"` computes the same call without a GPU, for tests.
    """
    if heads.before is not None:
        heads, mask = with_before(heads, segment_mask(segment_ids, settings.window))
        return jax.nn.dot_product_attention(
            *heads[:3], mask=mask[:, None], scale=settings.scale, implementation=implementation
        )
    same_segment = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    behind_and_ahead = None if settings.window is None else (settings.window - 1, 0)
    return jax.nn.dot_product_attention(
        *heads[:3],
        mask=same_segment,
        scale=settings.scale,
        is_causal=True,
        local_window_size=behind_and_ahead,
        implementation=implementation,
    )


def block_size(S: int, window: int | None, heads_apart: bool = False) -> int | None:
    """Returns how many queries and keys the kernel takes at a time; None where it cannot take rows of S positions."""
    least = LARGEST_LONG_BLOCK if heads_apart else LONG_ROW
    long = least <= S and (window is None or window >= least)
    largest = LARGEST_LONG_BLOCK if long else LARGEST_KERNEL_BLOCK
    return next((size for size in range(largest, 0, -LANES) if S % size == 0), None)


def pairs_computed(S: int, window: int | None, heads_apart: bool = False) -> int:
    """Returns how many (block of queries, block of keys) pairs of a row have a visible pair, and are computed whole."""
    block = block_size(S, window, heads_apart)
    assert block is not None
    reach = S if window is None else window
    return sum(
        1
        for q in range(S // block)
        for k in range(q + 1)
        if (q - k) * block - (block - 1) < reach  # the nearest pair of the two blocks
    )
