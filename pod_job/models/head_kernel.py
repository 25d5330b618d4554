"""Norm, projection, norm of heads and rotation on a TPU as one kernel, which leaves each head's positions together.

By XLA, norm and rotation of heads of 128 take three passes over the chip's memory, and the attention kernel another one
for the order it wants.

B rows, S positions, D hidden, N heads, H head size.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pod_job.models.arch import Arch
from pod_job.models.placement import KERNEL_KIND, Placement

MOST_POSITIONS, MOST_HEADS = 512, 8
"""Positions and heads that are computed together."""
KERNEL_MEMORY = 64 << 20
"""Bytes of the core's memory that the kernel may take, of 128 MiB on v6e."""
LANES = 128


def makes_heads(arch: Arch, placement: Placement, S: int) -> bool:
    """Returns whether the kernel takes a model's heads and rows of S positions on these devices."""
    heads = arch.qk_norm and arch.qk_norm_of_heads and arch.head_dim == LANES and arch.rotated is None
    fits = placement.kernel_kind == KERNEL_KIND and S % LANES == 0 and arch.hidden % LANES == 0
    return heads and fits and arch.pre_norms and not (arch.qkv_bias or arch.layer_norm)


class Turn(NamedTuple):
    """Norm and rotation of heads: the weight of their norm in float32, cosine and signed sine as in `rotary_tables`."""

    scale: Float[Array, " H"]
    cos: Float[Array, "B S H"]
    sin: Float[Array, "B S H"]


def projected_heads(
    x: Float[Array, "B S D"],
    norm: Float[Array, " D"],
    w: Float[Array, "D N H"],
    turn: Turn | None,
    *,
    eps: float,
    interpret: bool = False,
) -> Float[Array, "B N S H"]:
    """Returns the heads of x's RMSNorm times w; with `turn`, each divided by its root mean square, scaled and rotated.

    Args:
        norm: weight of x's norm in float32.
        eps: added to the mean squares of both norms.
        interpret: runs it without a TPU, for tests.
    """
    (B, S, D), (_, N, H) = x.shape, w.shape
    positions, heads = math.gcd(S, MOST_POSITIONS), math.gcd(N, MOST_HEADS)

    def of_rows(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, positions, size), lambda group, row, part: (row, part, 0))

    def vector(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, size), lambda group, row, part: (0, 0))

    turned = [] if turn is None else [(turn.scale[None], vector(H)), (turn.cos, of_rows(H)), (turn.sin, of_rows(H))]
    return pl.pallas_call(
        functools.partial(project_tile, eps=eps),
        out_shape=jax.ShapeDtypeStruct((B, N, S, H), x.dtype),
        grid=(N // heads, B, S // positions),
        in_specs=[
            of_rows(D),
            vector(D),
            pl.BlockSpec((D, heads * H), lambda group, row, part: (0, group)),
            *(spec for _, spec in turned),
        ],
        out_specs=pl.BlockSpec((1, heads, positions, H), lambda group, row, part: (row, group, part, 0)),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=KERNEL_MEMORY),
        name="projected_heads",
        interpret=interpret,
    )(x, norm[None], w.reshape(D, N * H), *(array for array, _ in turned))


def project_tile(x: Any, norm: Any, w: Any, *others: Any, eps: float) -> None:
    """Kernel of some positions of a row and some heads."""
    *turn, out = others
    H = out.shape[3]
    y = jnp.dot(
        rms_norm(x[0].astype(jnp.float32), eps, norm[...]).astype(x.dtype), w[...], preferred_element_type=jnp.float32
    )
    for head in range(out.shape[1]):
        of_head = y[:, head * H : (head + 1) * H]
        if turn:
            scale, cos, sin = turn
            of_head = rms_norm(of_head, eps, scale[...])
            of_head = of_head * cos[0] + pltpu.roll(of_head, H // 2, 1) * sin[0]
        out[0, head] = of_head.astype(out.dtype)


def rms_norm(x: Float[Array, "S H"], eps: float, scale: Float[Array, "1 H"]) -> Float[Array, "S H"]:
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale
