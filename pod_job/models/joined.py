"""Weights of the projections of queries, keys and values in other orders of their columns.

D hidden, N query heads, K key/value heads, H head size, L layers.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from pod_job.models.arch import Arch
from pod_job.models.attention import LANES
from pod_job.models.layer_attention import swap_halves
from pod_job.models.placement import Placement

PROJECTIONS = ("q", "k", "v", "q_swapped", "k_swapped")
JOINED = "qkv"
"""Name of the projections side by side, as one weight."""
JOINED_WEIGHTS = (JOINED, f"{JOINED}_bias")


def swaps_by_projection(arch: Arch, placement: Placement) -> bool:
    """Returns whether swapped queries and keys come from matrix products of their own, not from moving lanes about.

    A head that fills part of a vector register only makes a TPU shuffle lanes for every rotation, which costs it more
    than a second projection (Qwen2.5-0.5B on v5e: 7 ms of a 51 ms step). A norm between projection and rotation
    would need a second norm too.
    """
    return placement.platform == "tpu" and arch.head_dim < LANES and not (arch.qk_norm or arch.learned_positions)


def swapped_projections(arch: Arch, w: Mapping[str, Array]) -> dict[str, Array]:
    """Returns a layer's weights whose projections are swapped queries and keys: the same columns in another order."""
    return {
        f"{name[0]}_swapped{name[1:]}": swap_halves(w[name], arch.rotated)
        for name in ("q", "q_bias", "k", "k_bias")
        if name in w
    }


def joined_projections(arch: Arch, placement: Placement, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Returns weights [L, D, heads, H] and bias [L, heads, H] of all projections of each layer as one.

    For decode on TPU: each operation on its few rows costs an overhead (more than a microsecond on v5e), and v5e keeps
    these weights in its vector memory from token to token. Nothing where devices share the heads, as each then has its
    part of every projection.
    """
    if placement.platform != "tpu" or placement.heads is not None:
        return {}
    every = dict(weights) | (swapped_projections(arch, weights) if swaps_by_projection(arch, placement) else {})

    def side_by_side(suffix: str) -> dict[str, Array]:
        parts = [every[name + suffix] for name in PROJECTIONS if name + suffix in every]
        return {JOINED + suffix: jnp.concatenate(parts, axis=-2)} if parts else {}

    return side_by_side("") | side_by_side("_bias")


def split_heads(arch: Arch, heads: Float[Array, "B S _ H"]) -> dict[str, Float[Array, "B S _ H"]]:
    """Returns the heads of each projection in what the joined one gives."""
    sizes = [arch.heads if name[0] == "q" else arch.kv_heads for name in PROJECTIONS]
    parts, start = {}, 0
    for name, size in zip(PROJECTIONS, sizes, strict=True):
        if start < heads.shape[2]:
            parts[name] = heads[:, :, start : start + size]
        start += size
    return parts
