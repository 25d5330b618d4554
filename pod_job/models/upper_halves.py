"""bfloat16 weights of a float32 model on a CPU, kept as what they are: the upper halves of float32 values.

Decode takes as long as reading the weights, and half of them is read in half the time; every value is the same. They
are kept as integers because XLA on CPUs turns whole stacks of bfloat16 into float32 before it takes a layer's.

D hidden, V vocabulary, N positions, R entries of the vocabulary at a time.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped, UInt16

from pod_job.models.arch import Arch
from pod_job.models.bits import HALF, as_bits
from pod_job.models.placement import Placement
from pod_job.models.position_blocks import over_blocks

ROWS_TOGETHER = 4096
"""Entries of the vocabulary whose logits are computed at a time: their weights as float32 stay in a CPU's cache."""
OF_MIXERS = ("q", "k", "v", "o", "attn_gate", "delta_q", "delta_k", "delta_v", "delta_gate", "delta_o")
OF_MLP = ("gate", "up", "down")


def kept_as_halves(arch: Arch, placement: Placement, in_bfloat16: Collection[str]) -> set[str]:
    """Returns which of the weights that are bfloat16 numbers are kept as upper halves: matrices of decode, on CPUs.

    Not those of experts, of which a step may use few, nor an embedding that devices share.
    """
    if placement.platform != "cpu":
        return set()
    names = OF_MIXERS if arch.experts else OF_MIXERS + OF_MLP
    if arch.tied and placement.weights is None and placement.heads is None:
        names += ("embed",)
    return {name for name in names if name in in_bfloat16}


def whole(weight: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Returns the weight as float32, where it is kept as upper halves."""
    if weight.dtype != HALF:
        return weight
    return jax.lax.bitcast_convert_type(weight.astype(jnp.uint32) << 16, jnp.float32)


def upper_halves(weight: Shaped[Array, "*shape"]) -> UInt16[Array, "*shape"]:
    """Returns bfloat16 values as integers, placed as they are."""
    return jax.jit(as_bits, out_shardings=weight.sharding)(weight)


def logits_by_rows(x: Float[Array, "N D"], unembed: UInt16[Array, "V D"]) -> Float[Array, "N V"]:
    """Returns x times the unembedding, of which some rows are made float32 at a time."""
    columns = x.T

    def product(some: UInt16[Array, "R D"]) -> Float[Array, "R N"]:
        return jnp.matmul(jax.lax.optimization_barrier(whole(some)), columns, preferred_element_type=jnp.float32)

    return over_blocks(product, -(-unembed.shape[0] // ROWS_TOGETHER), unembed, axis=0, block=ROWS_TOGETHER).T
